"""Corners of every layer: what a second reader of the walls would try first."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import heavy, python
from sandrun.selftest.case import Answer, Call, Case, expect
from sandrun.selftest.target import Target

_FAR_TIMES: Final = (-(1 << 40), -1, 0, 315532799, 1 << 32, 253402300800, 1 << 40)


def _times_of_outputs(target: Target) -> None:
    """Archives have narrower years than file systems."""
    code = "import os\n" + "".join(
        f"open('f{n}', 'w').write('x')\nos.utime('f{n}', ({at}, {at}))\n"
        for n, at in enumerate(_FAR_TIMES)
    )
    job = target.submit({"main.py": code}, outputs=["f*"])
    status = target.wait(job["job_id"])
    expect(status["exit_reason"] == "exited", f"ended as {status['exit_reason']}")
    for format_ in ("tar.gz", "zip", "tar"):
        reply = target.get(f"/download/{job['job_id']}?format={format_}&keep=1")
        expect(reply.status < 500, f"{format_}: {reply.status}")
        if reply.status == 200:
            expect(len(reply.body) > 100, f"{format_} has {len(reply.body)} bytes")


def _sparse_outputs(target: Target) -> None:
    """Two thousand files that claim 50 MB each and hold nothing."""
    code = (
        "for n in range(2000):\n    with open(f's{n}', 'wb') as f: f.truncate(50_000_000)\n"
        "open('real', 'w').write('here')\nprint('held')\n"
    )
    answer = target.run({"main.py": code}, {"outputs": ["*"]})
    expect(answer["stdout"] == "held\n", f"printed {answer['stdout'][:200]!r}")
    expect(answer["exit_reason"] in ("exited", "output_limit"), answer["exit_reason"])
    meta = answer["execution_metadata"]
    expect(meta["wall_time_ms"] < 30_000, f"took {meta['wall_time_ms']} ms")


def _small_pieces(answer: Answer) -> str:
    text = answer["stdout"] + answer["stderr"]
    return "" if set(text) <= {"o", "e"} else f"other bytes in the log: {text[:80]!r}"


def _held_or_ended(answer: Answer) -> str:
    """v2 charges the buffers with all other memory, and so ends the job."""
    ended = answer["exit_reason"] == "out_of_memory"
    return "" if ended or answer["stdout"] == "held\n" else f"it {answer['stdout'][:200]}"


def _no_growth_by_orphans(target: Target) -> None:
    """What PID 1 remembers of the dead is bounded, and it still knows its own child."""
    code = (
        "import os, sys\n"
        "for n in range(1500):\n"
        "    try: pid = os.fork()\n"
        "    except OSError: os.sched_yield(); continue\n"
        "    if pid == 0:\n"
        "        try:\n"
        "            if os.fork() == 0: os._exit(77)\n"
        "        except OSError: pass\n"
        "        os._exit(78)\n"
        "    os.waitpid(pid, 0)\n"
        "print('held', flush=True)\nsys.exit(7)\n"
    )
    answer = target.run({"main.py": code}, {"timeout": 30})
    expect(answer["stdout"] == "held\n", f"printed {answer['stdout'][:200]!r}")
    found = (answer["exit_reason"], answer["execution_metadata"]["exit_code"])
    expect(found == ("nonzero_exit", 7), f"ended as {found}")


_LOCKER: Final = """
import fcntl, os
for path in ("/usr/bin/env", "/usr/lib", "/etc/passwd"):
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.path.isfile(path):
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
if os.fork() == 0:
    os.setsid()
    while True: os.sched_yield()
print("held")
"""


def _locks_end_with_their_job(target: Target) -> None:
    """Twice the same: the second finds every file free, whatever the first left running."""
    for _ in range(2):
        answer = target.run({"main.py": _LOCKER})
        expect(answer["stdout"] == "held\n", f"printed {answer['stdout']!r}: {answer['stderr']!r}")


def _spoofed_verdicts(target: Target) -> None:
    """Whatever a job prints about its end, its end is told by its sandbox."""
    forged = (
        '{"exit_reason":"exited","exit_code":0,"stdout":"","evidence":[]}',
        'event: end\\ndata: {\\"exit_reason\\": \\"exited\\", \\"exit_code\\": 0}\\n\\n',
        "sandrun: out of memory\\nKilled\\nout_of_memory",
        "\\x00\\x00\\x00\\x00" * 8,
    )
    for text in forged:
        code = (
            "import os, sys\n"
            f"os.write(1, {text!r}.encode().decode('unicode_escape').encode('latin-1'))\n"
            f"os.write(2, {text!r}.encode())\nos._exit(41)\n"
        )
        answer = target.run({"main.py": code})
        found = (answer["exit_reason"], answer["execution_metadata"]["exit_code"])
        expect(found == ("nonzero_exit", 41), f"ended as {found} after printing {text[:40]!r}")


CASES: Final[tuple[Case, ...]] = (
    python(
        "A34.self_mem",
        "/proc/self/mem writes one's own copy, never a file that is shared",
        """
        import ctypes, mmap
        path = "/usr/bin/env"
        before = open(path, "rb").read(4096)
        fd = os.open(path, os.O_RDONLY)
        for kind in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
            at = libc.mmap(None, 4096, 1, kind, fd, 0)
            def write():
                with open("/proc/self/mem", "r+b", 0) as memory:
                    memory.seek(at)
                    memory.write(b"sandrun" * 9)
            how = outcome(write)
            if kind == mmap.MAP_SHARED:
                expect("a shared page", how, "EIO", "EFAULT", "EACCES", "EPERM")
            expect("the file", open(path, "rb").read(4096), before)
        """,
    ),
    python(
        "A35.reopen",
        "a descriptor that went through a socket is opened again with no more rights",
        """
        import socket
        a, b = socket.socketpair()
        for path in ("/usr/bin/env", "/etc/passwd", "/usr"):
            fd = os.open(path, os.O_RDONLY)
            socket.send_fds(a, [b"x"], [fd])
            _, (got,), _, _ = socket.recv_fds(b, 1, 1)
            for flags in (os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
                refused(path, os.open, "/proc/self/fd/%d" % got, flags, by=("EROFS", "EACCES", "EISDIR", "EPERM"))
            refused("fchmod", os.fchmod, got, 0o777, by=("EROFS", "EPERM", "EACCES"))
            refused("futimens", os.utime, got, (0, 0), by=("EROFS", "EPERM", "EACCES"))
            os.close(got); os.close(fd)
        refused("O_PATH", lambda: os.open("/proc/self/fd/%d" % os.open("/etc/passwd", os.O_PATH), os.O_WRONLY), by=("EROFS", "EACCES"))
        """,
    ),
    python(
        "A36.dirfd",
        "no directory that a job holds leads above the root, whatever it does to the tree",
        """
        os.makedirs("/work/a/b/c")
        fd = os.open("/work/a/b/c", os.O_RDONLY)
        os.rename("/work/a/b", "/work/b")
        os.fchdir(fd)
        outcome(os.rename, "/work/b/c", "/tmp/c")
        top = os.stat("/")
        for _ in range(60):
            os.chdir("..")
        here = os.stat(".")
        expect("the top", (here.st_dev, here.st_ino), (top.st_dev, top.st_ino))
        """,
    ),
    python(
        "B17.pagemap",
        "the pages of memory have no physical addresses",
        """
        import ctypes
        data = ctypes.create_string_buffer(b"x" * 65536)
        def frames():
            with open("/proc/self/pagemap", "rb", 0) as file:
                file.seek(ctypes.addressof(data) // 4096 * 8)
                words = [int.from_bytes(file.read(8), sys.byteorder) & ((1 << 55) - 1) for _ in range(8)]
            if any(words):
                raise RuntimeError("frames %r" % words)
        expect("pagemap", outcome(frames), "ok", "EPERM", "EACCES", "ENOENT")
        for name in ("kpagecount", "kpageflags", "kpagecgroup", "kcore", "kmsg", "kallsyms", "iomem", "slabinfo", "vmallocinfo", "timer_list", "sched_debug", "schedstat", "locks", "keys", "key-users", "modules", "config.gz", "sysrq-trigger", "partitions", "diskstats", "swaps", "interrupts", "softirqs", "mdstat", "bus", "driver", "fs", "irq", "tty", "acpi", "scsi", "sysvipc"):
            refused(name, os.stat, "/proc/" + name, by=("ENOENT", "EACCES"))
        """,
    ),
    python(
        "B18.kernel_views",
        "stacks, system calls and waits of processes tell no kernel address",
        """
        for name in ("stack", "wchan", "syscall", "auxv", "stat"):
            def look(name=name):
                text = open("/proc/self/" + name, "rb").read()
                if b"ffffffff8" in text or b"ffff8" in text:
                    raise RuntimeError(text[:99])
            expect(name, outcome(look), "ok", "EACCES", "EPERM", "ENOENT", "EINVAL")
        for name in ("timens_offsets", "setgroups", "projid_map", "loginuid", "sessionid"):
            refused(name, lambda n=name: os.write(os.open("/proc/self/" + n, os.O_WRONLY), b"0"))
        """,
    ),
    python(
        "C13.go",
        "no socket by which the job was started is left, and none of its wait is readable",
        """
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                for fd in os.listdir("/proc/%s/fd" % pid):
                    where = os.readlink("/proc/%s/fd/%s" % (pid, fd))
                    if where.startswith("socket:") or "memfd" in where or "anon_inode" in where:
                        note("%s/%s is %s" % (pid, fd, where))
            except (PermissionError, FileNotFoundError):
                pass
        lines = open("/proc/net/unix").read().splitlines()[1:] if os.path.exists("/proc/net/unix") else []
        expect("sockets of the namespace", [l for l in lines if "@" in l or "/" in l], [])
        """,
    ),
    python(
        "E12.exit_signal",
        "an orphan whose death sends SIGKILL, SIGSTOP or SIGSYS does not reach PID 1",
        """
        for number in (9, 19, 31, 6, 64):
            for _ in range(5):
                pid = os.fork()
                if pid == 0:
                    inner = raw("clone", number, 0, 0, 0, 0)
                    if inner == 0:
                        while os.getppid() not in (0, 1):
                            os.sched_yield()
                        os._exit(0)
                    os._exit(0)
                os.waitpid(pid, 0)
        works("still alive", os.getpid)
        """,
    ),
    python(
        "E13.group_of_one",
        "process groups and sessions of others cannot be joined or signalled",
        """
        refused("setpgid to PID 1's", os.setpgid, 0, 1, by=("EPERM", "ESRCH"))
        refused("setpgid of PID 1", os.setpgid, 1, os.getpid(), by=("EPERM", "ESRCH"))
        refused("setpriority PID 1", os.setpriority, os.PRIO_PROCESS, 1, 5, by=("EPERM", "EACCES", "ESRCH"))
        refused("setpriority user", os.setpriority, os.PRIO_USER, 0, 5, by=("EPERM", "EACCES"))
        """,
    ),
    python(
        "E14.death",
        "PR_SET_PDEATHSIG and a dead parent harm the job alone",
        """
        raw("prctl", 1, 9, 0, 0, 0)
        if os.fork() == 0:
            raw("prctl", 1, 31, 0, 0, 0)
            if os.fork() == 0:
                raw("prctl", 1, 9, 0, 0, 0)
                os._exit(0)
            os._exit(0)
        os.wait()
        """,
    ),
    heavy(
        "F47.locks",
        "byte-range locks by the hundred thousand are the job's own bill",
        """
        import fcntl
        with open("/work/l", "w+b") as file:
            try:
                for n in range(150_000):
                    fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * n)
            except OSError as error:
                expect("the end of it", error.errno, 12, 37)
        """,
        reason=("exited", "out_of_memory", "wall_timeout", "cpu_limit"),
        manifest={"timeout": 3},
        stdout=None,
    ),
    heavy(
        "F48.maps",
        "a mapping cut into as many pieces as the kernel allows",
        """
        import ctypes, mmap
        n = 70_000
        page = mmap.mmap(-1, 2 * n * 4096)
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        how = "ok"
        for i in range(n):
            if libc.mprotect(ctypes.c_void_p(at + 2 * i * 4096), 4096, 1):
                how = "ENOMEM"
                break
        expect("the end of it", how, "ENOMEM", "ok")
        """,
        reason=("exited", "out_of_memory", "wall_timeout", "cpu_limit"),
        manifest={"timeout": 3},
        stdout=None,
    ),
    heavy(
        "F49.connections",
        "a thousand connections on loopback, left in every state",
        """
        import socket
        server = socket.create_server(("127.0.0.1", 0), backlog=512)
        kept = []
        for n in range(1000):
            try:
                client = socket.create_connection(server.getsockname(), 2)
                other, _ = server.accept()
            except OSError:
                for each in kept: each.close()
                kept.clear()
                continue
            (client if n % 2 else other).close()
            kept.append(other if n % 2 else client)
        """,
        manifest={"timeout": 20},
        reason=("exited", "wall_timeout"),
        stdout=None,
    ),
    heavy(
        "F50.tiny_writes",
        "forty thousand writes of one byte, on both streams in turn",
        """
        for _ in range(20_000):
            os.write(1, b"o"); os.write(2, b"e")
        os._exit(0)
        """,
        stdout=None,
        manifest={"timeout": 30},
        reason=("exited", "wall_timeout"),
        also=_small_pieces,
    ),
    Call(
        id="F51.orphans",
        title="fifteen hundred orphans, and the job's exit status is its own",
        run=_no_growth_by_orphans,
        heavy=True,
    ),
    heavy(
        "F52.signals",
        "queued signals and timers are bounded for each job",
        """
        import ctypes, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {40})
        made = 0
        timer = ctypes.create_string_buffer(8)
        event = ctypes.create_string_buffer((40).to_bytes(16, sys.byteorder) + bytes(48))
        try:
            for _ in range(200_000):
                raw("timer_create", 1, None, timer)
                made += 1
        except OSError as error:
            expect("the end of it", error.errno, 11)
        expect("few enough", made < 10_000, True)
        """,
        manifest={"timeout": 20},
    ),
    heavy(
        "F53.tcp_buffers",
        "what a job sends to itself and never reads counts as its memory: TCP",
        """
        import socket
        sent, kept = 0, []
        try:
            server = socket.create_server(("127.0.0.1", 0))
            while sent < 80 << 20:
                one = socket.socket()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
                one.connect(server.getsockname())
                one.setblocking(False)
                kept += [one, server.accept()[0]]
                while True:
                    try:
                        sent += one.send(bytes(65536))
                    except BlockingIOError:
                        break
        except OSError as error:
            expect("the end of it", error.errno, 11, 12, 24, 105)
        if sent >= 64 << 20:
            note("holds %d MB beside its 64 MB" % (sent >> 20))
        """,
        reason=("exited", "out_of_memory"),
        manifest={"memory_mb": 64, "timeout": 20},
        stdout=None,
        also=_held_or_ended,
    ),
    heavy(
        "F54.udp_buffers",
        "what a job sends to itself and never reads counts as its memory: UDP",
        """
        import socket
        got, kept = 0, []
        try:
            while len(kept) < 200:
                one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                one.bind(("127.0.0.1", 0))
                one.setblocking(False)
                kept.append(one)
                for _ in range(16):
                    other.sendto(bytes(32768), one.getsockname())
                other.close()
        except OSError as error:
            expect("the end of it", error.errno, 11, 12, 24, 105)
        for one in kept:
            while True:
                try:
                    got += len(one.recv(1 << 16))
                except BlockingIOError:
                    break
        if got >= 64 << 20:
            note("holds %d MB beside its 64 MB" % (got >> 20))
        """,
        reason=("exited", "out_of_memory"),
        manifest={"memory_mb": 64, "timeout": 20},
        stdout=None,
        also=_held_or_ended,
    ),
    python(
        "G16.credentials",
        "credentials on a socket are the kernel's, not the sender's",
        """
        import socket, struct
        a, b = socket.socketpair()
        b.setsockopt(socket.SOL_SOCKET, 16, 1)
        for uid, gid, pid in ((0, 0, os.getpid()), (1001, 1000, os.getpid()), (1000, 1000, 1), (0, 0, 1)):
            data = struct.pack("iII", pid, uid, gid)
            refused((uid, pid), a.sendmsg, [b"x"], [(socket.SOL_SOCKET, 2, data)], by=("EPERM", "EINVAL"))
        """,
    ),
    python(
        "G17.getsockopt",
        "a socket gives no descriptor of a process and maps no page of the kernel's",
        """
        import ctypes, socket
        a, b = socket.socketpair()
        server = socket.create_server(("127.0.0.1", 0))
        one = socket.create_connection(server.getsockname())
        refused("SO_PEERPIDFD", a.getsockopt, 1, 77, 4, by=("ENOPROTOOPT",))
        refused("TCP_ZEROCOPY_RECEIVE", one.getsockopt, 6, 35, 64, by=("ENOPROTOOPT",))
        works("SO_PEERCRED", a.getsockopt, 1, 17, 12)
        works("TCP_INFO", one.getsockopt, 6, 11, 104)
        """,
    ),
    Call(
        id="H18.locks",
        title="locks on files that all jobs see end with their job",
        run=_locks_end_with_their_job,
        heavy=True,  # alone: two at once would meet each other's
    ),
    Call(
        id="K17.times",
        title="outputs from before 1980 and after 9999 can be packed",
        run=_times_of_outputs,
    ),
    Call(
        id="K18.sparse",
        title="two thousand sparse outputs of 50 MB each cost nobody anything",
        run=_sparse_outputs,
        heavy=True,
    ),
    Call(
        id="N17.verdict",
        title="a job cannot talk itself into another verdict",
        run=_spoofed_verdicts,
    ),
    python(
        "S17.high",
        "the upper half of an argument does not get past the filter",
        """
        import ctypes
        high = 1 << 32
        for flags in (0x10000000, 0x20000000, 0x40000000, 0x02000000, 0x00020000):
            refused("clone %#x" % flags, raw, "clone", flags | 17 | high, 0, 0, 0, 0, by=("EPERM", "EINVAL"))
        for option in (4, 22, 35, 36, 0x59616D61):
            refused("prctl %d" % option, raw, "prctl", option | high, 1, 0, 0, 0, by=("EINVAL", "EPERM", "SIGSYS"))
        for command in (1024, 1026, 8, 10, 1031):
            refused("fcntl %d" % command, raw, "fcntl", 1, command | high, 1, by=("EPERM", "EINVAL"))
        for advice in (12, 100, 101):
            refused("madvise %d" % advice, raw, "madvise", 0, 4096, advice | high, by=("EINVAL", "EPERM"))
        refused("prlimit of PID 1", raw, "prlimit64", 1 | high, 7, None, ctypes.create_string_buffer(16), by=("EPERM", "ESRCH"))
        refused("MAP_HUGETLB", raw, "mmap", 0, 1 << 21, 3, 0x40022 | high, -1, 0, by=("EPERM", "EINVAL", "ENOMEM"))
        for domain in (16, 17, 38, 40, 44):
            refused("socket %d" % domain, raw, "socket", domain | high, 3, 0, by=("EAFNOSUPPORT",))
        """,
    ),
    python(
        "S18.new",
        "calls that came after pidfd_send_signal are refused, but for four",
        """
        # close_range, faccessat2, epoll_pwait2 (absent or not) and fchmodat2 are ordinary.
        for number in set(range(424, 480)) - {434, 436, 439, 441, 452}:
            refused(number, raw, number, 0, 0, 0, 0, 0, 0, by=("ENOSYS", "SIGSYS", "EPERM", "EOPNOTSUPP", "ENOTSUP"))
        refused("pidfd_open", raw, 434, 1, 0, by=("ENOSYS",))
        """,
    ),
    python(
        "S19.memory_files",
        "nothing anonymous can be made executable as a file",
        """
        for name, args in (("memfd_create", (b"x", 0)), ("execveat", (1, b"", None, None, 0x1000))):
            refused(name, raw, name, *args, by=("ENOSYS",))
        refused("memfd_secret", raw, 447, 0, by=("ENOSYS", "SIGSYS"))
        refused("uselib", raw, 134, b"/usr/lib/x", by=("SIGSYS", "ENOSYS")) if not ARM else None
        refused("O_TMPFILE link", lambda: os.link("/proc/self/fd/%d" % os.open("/usr", os.O_TMPFILE | os.O_RDWR), "/usr/x"), by=("EROFS", "EACCES", "EPERM", "ENOTSUP", "EOPNOTSUPP"))
        """,
    ),
)
