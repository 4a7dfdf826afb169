"""F: too much of everything. Short limits: the card should take minutes, not hours."""

from __future__ import annotations

import time
from typing import Any, Final

from sandrun.selftest.bank._words import python, shell
from sandrun.selftest.case import Answer, Call, Case, Job, expect
from sandrun.selftest.target import Target

_FEW: Final = {"timeout": 2, "cpu_seconds": 1.5, "processes": 24, "memory_mb": 96}
_ENDS: Final = (
    "wall_timeout", "cpu_limit", "process_limit", "out_of_memory", "nonzero_exit", "signaled",
    "exited", "storage_limit",
)  # fmt: skip


def flood(id: str, title: str, code: str, **more: Any) -> Job:  # noqa: A002
    """A case that keeps the machine busy and may end by several limits."""
    more.setdefault("reason", _ENDS)
    manifest = {**_FEW, **more.pop("manifest", {})}
    return Job(id=id, title=title, code=code, stdout=None, manifest=manifest, heavy=True, **more)


def _at_most_processes(most: int) -> Any:
    def also(answer: Answer) -> str:
        peak = answer["execution_metadata"]["processes_peak"]
        return "" if peak <= most else f"{peak} processes at once, {most} were allowed"

    return also


def _memory_kept(mib: int) -> Any:
    def also(answer: Answer) -> str:
        peak = answer["execution_metadata"]["memory_peak_bytes"]
        return "" if peak <= mib * 1024 * 1024 * 1.05 else f"used {peak >> 20} of {mib} MiB"

    return also


def _ends_at_once(answer: Answer) -> str:
    # CPU time: on a busy host the same job may take longer by the clock.
    used = answer["execution_metadata"]["cpu_seconds"]
    return "" if used < 5 else f"used {used} CPU-seconds"


def _one_exhausted_another_not(target: Target) -> None:
    hog = (
        "import os, time\n"
        "n = 0\n"
        "try:\n    while True:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "except OSError: time.sleep(2.5)\n"
    )
    job = target.submit({"main.py": hog}, timeout=4, processes=200)
    answer = target.run(
        {
            "main.py": "import os\nfor i in range(150):\n    if os.fork() == 0: os._exit(0)\n    os.wait()\nprint('held')"
        },
    )
    expect(answer["stdout"] == "held\n", f"the neighbour's job: {answer['stderr'][-300:]}")
    target.request("POST", f"/jobs/{job['job_id']}/cancel")


def _pool_comes_back(target: Target) -> None:
    for _ in range(30):
        answer = target.run({"main.py": "import os; os.kill(os.getpid(), 9)"})
        expect(answer["exit_reason"] == "signaled", f"ended as {answer['exit_reason']}")
    start = time.monotonic()
    answer = target.run({"main.py": "print('held')"})
    expect(answer["stdout"] == "held\n", "the pool does not come back")
    expect(time.monotonic() - start < 10, "the pool needs 10 s to come back")


def _cancel_is_quick(target: Target) -> None:
    code = "import os\nfor _ in range(7): os.fork()\nwhile True: pass"
    job = target.submit({"main.py": code}, processes=140, timeout=30, memory_mb=1024)
    status = {}
    for _ in range(500):
        status = target.get(f"/status/{job['job_id']}").json()
        if status["status"] == "running":
            break
        time.sleep(0.01)
    start = time.monotonic()
    reply = target.request("POST", f"/jobs/{job['job_id']}/cancel")
    expect(reply.status == 200, f"cancel: {reply.status}")
    status = target.wait(job["job_id"])
    expect(status["exit_reason"] == "cancelled", f"ended as {status['exit_reason']}")
    expect(time.monotonic() - start < 10, "killing 128 processes took 10 s")


CASES: Final[tuple[Case, ...]] = (
    flood(
        "F1",
        "the classic fork bomb, in bash",
        ":(){ :|:& };:\nwait; while :; do :|:; done",
        file="main.sh",
        also=_at_most_processes(24),
    ),
    flood(
        "F2",
        "a fork bomb with threads that swallows its errors",
        "import os, threading\ndef more():\n    while True:\n        try:\n"
        "            os.fork(); threading.Thread(target=more).start()\n        except BaseException: pass\nmore()\n",
        also=_at_most_processes(24),
    ),
    Call(
        id="F3",
        title="one job at its process limit, another forks freely",
        run=_one_exhausted_another_not,
        heavy=True,
    ),
    flood(
        "F4",
        "a chain of forks that never exec, each waiting for the next",
        "import os\nwhile True:\n    try:\n        if os.fork(): os.wait(); os._exit(0)\n    except OSError: pass\n",
        also=_at_most_processes(24),
    ),
    flood(
        "F5.daemons",
        "a storm of daemons, each its own session",
        "import os\nwhile True:\n    try:\n        if os.fork() == 0:\n            os.setsid()\n            if os.fork(): os._exit(0)\n"
        "    except OSError: os.sched_yield()\n",
        also=_at_most_processes(24),
    ),
    Job(
        id="F6",
        title="memory in one process",
        code="b = []\nwhile True: b.append(bytearray(8 << 20))\n",
        manifest={"memory_mb": 64},
        reason=("out_of_memory",),
        stdout="",
        also=_memory_kept(64),
        heavy=True,
    ),
    Job(
        id="F6.children",
        title="memory in sixteen children together",
        code="import os, time\nfor _ in range(16):\n    if os.fork() == 0:\n        b = bytearray(16 << 20)\n        for i in range(0, len(b), 4096): b[i] = 1\n        time.sleep(5)\nos.wait()\n",
        manifest={"memory_mb": 96, "timeout": 8},
        reason=("out_of_memory",),
        stdout="",
        also=_memory_kept(96),
        heavy=True,
    ),
    Job(
        id="F6.cow",
        title="memory that a fork shares until it is written",
        code="import os\nb = bytearray(40 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nfor _ in range(4):\n    if os.fork() == 0:\n        for i in range(0, len(b), 4096): b[i] = 2\n        import time; time.sleep(5)\nos.wait()\n",
        manifest={"memory_mb": 96, "timeout": 8},
        reason=("out_of_memory",),
        stdout="",
        also=_memory_kept(96),
        heavy=True,
    ),
    Job(
        id="F7",
        title="memory that grows slowly",
        code="import time\nb = []\nwhile True: b.append(bytearray(1 << 20)); time.sleep(0.01)\n",
        manifest={"memory_mb": 48},
        reason=("out_of_memory",),
        stdout="",
    ),
    Job(
        id="F8",
        title="only a child runs out of memory and the parent says that all is fine",
        code="import os\nif os.fork() == 0:\n    b = bytearray(300 << 20)\n    for i in range(0, len(b), 4096): b[i] = 1\nos.wait()\nprint('fine')\n",
        manifest={"memory_mb": 64},
        reason=("out_of_memory",),
        stdout=None,
        heavy=True,
    ),
    python(
        "F9",
        "all writable places together hold the storage limit and no more",
        """
        import errno
        total = 0
        piece = bytes(1 << 18)
        for place in ("/work", "/tmp", "/dev/shm", "/home/sandrun"):
            try:
                with open(place + "/fill", "wb", 0) as file:
                    while total < 64 << 20:
                        total += file.write(piece)
            except OSError as error:
                expect("error", errno.errorcode[error.errno], "ENOSPC")
        expect("at most 10 MiB", total <= 10 << 20, True)
        expect("nearly 10 MiB", total > 8 << 20, True)
        """,
        manifest={"storage_mb": 10, "outputs": []},
    ),
    python(
        "F10",
        "names without content: inodes end before memory does",
        """
        import errno
        count = 0
        try:
            for count in range(200000):
                os.symlink("x", "/tmp/%d" % count)
        except OSError as error:
            expect("error", errno.errorcode[error.errno], "ENOSPC")
        expect("bounded", count < 20000, True)
        """,
        manifest={"storage_mb": 10, "outputs": []},
        also=_ends_at_once,
    ),
    python(
        "F11",
        "directories as deep as they go, with long names",
        """
        import errno
        depth = 0
        try:
            for depth in range(100000):
                os.mkdir("d" * 255); os.chdir("d" * 255)
        except OSError as error:
            expect("error", errno.errorcode[error.errno], "ENOSPC", "ENOMEM", "ENAMETOOLONG")
        """,
        manifest={"storage_mb": 10, "outputs": ["**"]},
        also=_ends_at_once,
    ),
    python(
        "F12",
        "a sparse file of exabytes is neither made nor read",
        """
        for size in (1 << 62, 1 << 50, 1 << 40):
            outcome(os.truncate, "/work/sparse", size)
        with open("/work/out.bin", "wb") as file:
            try:
                file.truncate(1 << 40)
            except OSError:
                pass
        refused("fallocate", lambda: os.posix_fallocate(os.open("/work/f", os.O_RDWR | os.O_CREAT), 0, 1 << 40), by=("ENOSPC", "EFBIG"))
        """,
        manifest={"outputs": ["*.bin"]},
        also=_ends_at_once,
    ),
    python(
        "F13",
        "pipes filled to the last are charged to the job",
        """
        import errno
        pipes = []
        try:
            while True:
                r, w = os.pipe()
                os.set_blocking(w, False)
                pipes.append((r, w))
                try:
                    while True: os.write(w, bytes(65536))
                except BlockingIOError:
                    pass
        except OSError as error:
            expect("error", errno.errorcode[error.errno], "EMFILE", "ENFILE", "ENOMEM")
        expect("bounded by the limit", len(pipes) * 2 <= 256, True)
        """,
        manifest={"memory_mb": 64},
        reason=("exited",),
    ),
    python(
        "F14",
        "socket buffers and descriptors in flight are charged and bounded",
        """
        import array, socket
        pairs = []
        try:
            while True:
                pair = socket.socketpair()
                for end in pair:
                    end.setblocking(False)
                    try: end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
                    except OSError: pass
                pairs.append(pair)
                try:
                    while True: pair[0].send(bytes(65536))
                except BlockingIOError: pass
                try:
                    while True:
                        pair[1].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pair[0].fileno()] * 50))])
                except OSError: pass
        except OSError:
            pass
        """,
        manifest={"memory_mb": 96},
        reason=("exited", "out_of_memory"),
        stdout=None,
        heavy=True,
        also=_ends_at_once,
    ),
    python(
        "F15",
        "System V IPC and POSIX message queues are not there; /dev/shm counts",
        """
        for name, args in (("shmget", (0, 4096, 0o1600)), ("semget", (0, 1, 0o1600)), ("msgget", (0, 0o1600)), ("mq_open", (b"x", 0o102, 0o600, None))):
            if name in NUMBERS:
                refused(name, raw, name, *args, by=("ENOSYS", "SIGSYS", "EPERM"))
        x86 = {"shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240}
        if not ARM:
            for name, number in x86.items():
                refused(name, raw, number, 0, 4096, 0o1600, 0, by=("ENOSYS", "SIGSYS", "EPERM"))
        """,
    ),
    python(
        "F17",
        "nothing can be locked into memory or taken from huge pages",
        """
        import ctypes, mmap
        refused("mlockall", raw, "mlockall", 3, by=("EPERM",))
        refused("MAP_LOCKED", lambda: mmap.mmap(-1, 1 << 20, flags=0x2022), by=("EPERM", "EAGAIN", "EINVAL"))
        refused("MAP_HUGETLB", lambda: mmap.mmap(-1, 2 << 20, flags=0x40022), by=("EINVAL", "ENOMEM"))
        for advice in (12, 13, 100, 101):
            refused("madvise %d" % advice, raw, "madvise", 0, 0, advice, by=("EINVAL",))
        """,
    ),
    flood(
        "F18",
        "page cache by the gigabyte stays in the job's own account",
        "import os\nwhile True:\n    with open('/tmp/x', 'wb') as f:\n        for _ in range(40): f.write(bytes(1 << 20))\n    open('/tmp/x', 'rb').read()\n",
        manifest={"memory_mb": 128},
        also=_memory_kept(128),
    ),
    flood(
        "F19",
        "kernel memory: names that are not there, epoll items, timers",
        "import os, select\ne = []\nn = 0\nwhile True:\n    n += 1\n    try: os.stat('/work/%d' % n)\n    except OSError: pass\n    if n % 50 == 0 and len(e) < 200:\n        try: e.append(select.epoll())\n        except OSError: pass\n",
        also=_memory_kept(96),
    ),
    python(
        "F20",
        "descriptors end at the limit, which cannot be raised past the maximum",
        """
        import errno, resource
        fds = []
        try:
            while True: fds.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            expect("error", errno.errorcode[error.errno], "EMFILE")
        expect("bounded", len(fds) <= 64, True)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        expect("hard limit", hard <= 1 << 16, True)
        """,
        manifest={"open_files": 64},
    ),
    python(
        "F21",
        "threads count as processes",
        """
        import threading
        event = threading.Event()
        started = 0
        try:
            while started < 1000:
                threading.Thread(target=event.wait, daemon=True).start()
                started += 1
        except RuntimeError:
            pass
        event.set()
        print(started < 40)
        problems.clear()
        """,
        manifest={"processes": 32},
        stdout="True\nheld\n",
        reason=("exited", "process_limit"),
    ),
    python(
        "F22.rlimits",
        "hard limits cannot be raised",
        """
        import resource
        for name in ("NOFILE", "NPROC", "CORE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO"):
            number = getattr(resource, "RLIMIT_" + name)
            soft, hard = resource.getrlimit(number)
            if hard != resource.RLIM_INFINITY:
                def more():
                    try:
                        resource.setrlimit(number, (hard, hard + 1))
                    except ValueError:
                        raise OSError(1, "not allowed")
                refused(name, more, by=("EPERM",))
        refused("of PID 1", raw, "prlimit64", 1, 7, None, None, by=("EPERM", "SIGSYS"))
        """,
    ),
    python(
        "F23.sched",
        "scheduling cannot be bettered",
        """
        refused("nice -5", os.setpriority, 0, 0, -5, by=("EACCES", "EPERM"))
        refused("others' nice", os.setpriority, 1, 0, 5, by=("EPERM",))
        refused("FIFO", lambda: os.sched_setscheduler(0, 1, os.sched_param(1)), by=("EPERM",))
        refused("affinity", lambda: os.sched_setaffinity(0, {0}), by=("EPERM",))
        refused("ioprio", raw, "ioprio_set", 1, 0, 1 << 13, by=("EPERM",))
        refused("sched_setattr", raw, "sched_setattr", 0, None, 0, by=("EPERM",))
        """,
    ),
    Job(
        id="F24",
        title="a sleep of thirty years",
        code="import time; time.sleep(1e9)",
        manifest={"timeout": 0.4},
        reason=("wall_timeout",),
        stdout="",
        also=_ends_at_once,
    ),
    Job(
        id="F25.cpu",
        title="endless loops on every CPU end at the CPU limit",
        code="import os\nfor _ in range(3): os.fork()\nwhile True: pass\n",
        manifest={"cpu_seconds": 0.6, "timeout": 20},
        reason=("cpu_limit",),
        stdout="",
        heavy=True,
        also=lambda answer: (
            ""
            if answer["execution_metadata"]["cpu_seconds"] < 1.5
            else f"used {answer['execution_metadata']['cpu_seconds']} CPU-seconds of 0.6"
        ),
    ),
    Job(
        id="F26",
        title="a flood of output on one line, both streams and NULs",
        code="import os, sys\nb = b'x\\0' * 32768\nfor _ in range(600): os.write(1, b); os.write(2, b)\n",
        stdout=None,
        reason=("exited", "output_limit"),
        also=lambda answer: "" if answer["dropped_bytes"] > 0 else "nothing was dropped",
        heavy=True,
    ),
    flood("F26.yes", "yes, for ever", "exec yes", file="main.sh", manifest={"timeout": 1}),
    Job(
        id="F28",
        title="a job that prints 'truncated' loses nothing",
        code="print('truncated'); print('[truncated]'); print('the rest')",
        stdout="truncated\n[truncated]\nthe rest\n",
    ),
    Job(
        id="F29",
        title="a grandchild that keeps stdout open does not hold the job",
        code="import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(3600)\n    os._exit(0)\nos.wait(); print('held')\n",
        also=_ends_at_once,
    ),
    Job(
        id="F30",
        title="a daemon writes no file after the job's end",
        code="import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(0.3); open('/work/late.txt', 'w').write('x')\n    os._exit(0)\nos.wait(); open('/work/out.txt', 'w').write('y'); print('held')\n",
        also=lambda answer: (
            ""
            if set(answer["output_files"]) == {"out.txt"}
            else f"handed back {sorted(answer['output_files'])}"
        ),
    ),
    Job(
        id="F31",
        title="a job that closes its standard streams still ends as it ends",
        code="import os, time\nfor fd in (0, 1, 2): os.close(fd)\ntime.sleep(0.2)\nos._exit(7)\n",
        reason=("nonzero_exit",),
        stdout="",
        also=lambda answer: (
            "" if answer["execution_metadata"]["exit_code"] == 7 else "exit code lost"
        ),
    ),
    python(
        "F33",
        "sync and syncfs are refused, fsync costs nothing",
        """
        refused("sync", raw, "sync", by=("EPERM",))
        refused("syncfs", lambda: raw("syncfs", os.open("/work", os.O_RDONLY)), by=("EPERM",))
        with open("/work/f", "wb") as file:
            for _ in range(500):
                file.write(b"x"); file.flush(); os.fsync(file.fileno())
        os.unlink("/work/f")
        # On a file of the host, opened to be read, each would flush its disk. What is not
        # made cannot fail for a pipe either.
        _, pipe = os.pipe()
        for name in ("fsync", "fdatasync"):
            works(name + " is not made", raw, name, pipe)
        works("POSIX_FADV_DONTNEED is not made", os.posix_fadvise, pipe, 0, 0, os.POSIX_FADV_DONTNEED)
        """,
    ),
    Job(
        id="F35",
        title="files renamed by the thousand while the job ends",
        code="import os\nos.mkdir('o')\nfor i in range(500): open('o/%d' % i, 'w').close()\nif os.fork() == 0:\n    os.setsid()\n    n = 0\n    while True:\n        for i in range(500):\n            try: os.rename('o/%d' % i, 'o/x%d' % i); os.rename('o/x%d' % i, 'o/%d' % i)\n            except OSError: pass\nprint('held')\n",
        also=lambda answer: (
            "" if len(answer["output_files"]) == 500 else f"{len(answer['output_files'])} files"
        ),
    ),
    python(
        "F37",
        "arguments and environments beyond the kernel's limits end in E2BIG",
        """
        refused("argv", os.execv, "/usr/bin/env", ["env"] + ["x" * 131000] * 100, by=("E2BIG",))
        refused("one", os.execv, "/usr/bin/env", ["env", "x" * 140000], by=("E2BIG",))
        refused("env", os.execve, "/usr/bin/env", ["env"], {"A": "x" * 140000}, by=("E2BIG",))
        """,
    ),
    Job(
        id="F39",
        title="a compile bomb: a gigabyte of initialised data",
        code="int a[1 << 28] = {1};\nint main(void) { return a[0]; }\n",
        file="main.c",
        manifest={
            "build": "gcc -o prog main.c",
            "entrypoint": "prog",
            "storage_mb": 20,
            "memory_mb": 256,
            "timeout": 8,
            "cpu_seconds": 6,
        },
        needs=("gcc",),
        reason=("storage_limit", "out_of_memory", "wall_timeout", "cpu_limit", "nonzero_exit"),
        stdout=None,
        heavy=True,
    ),
    Job(
        id="F39.include",
        title="a source file that includes itself",
        code='#include "main.c"\n#include "main.c"\n',
        file="main.c",
        manifest={
            "build": "gcc -o prog main.c",
            "entrypoint": "prog",
            "timeout": 4,
            "cpu_seconds": 3,
        },
        needs=("gcc",),
        reason=("nonzero_exit", "wall_timeout", "cpu_limit", "out_of_memory"),
        stdout=None,
        heavy=True,
    ),
    Job(
        id="F39.device",
        title="a build that reads /dev/zero and /dev/urandom for ever",
        code="print('held')",
        manifest={"build": "cat /dev/zero /dev/urandom > /tmp/x", "timeout": 5, "storage_mb": 8},
        reason=("storage_limit", "wall_timeout", "nonzero_exit"),
        stdout="",
    ),
    Job(
        id="F40",
        title="a catastrophic regular expression ends at the limit",
        code="import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')\n",
        manifest={"timeout": 0.7},
        reason=("wall_timeout",),
        stdout="",
        also=_ends_at_once,
    ),
    Job(
        id="F40.node",
        title="a catastrophic regular expression in node ends at the limit",
        code="/^(a+)+$/.test('a'.repeat(40) + 'b')",
        file="index.js",
        needs=("node",),
        manifest={"timeout": 1.0},
        reason=("wall_timeout",),
        stdout="",
        also=_ends_at_once,
    ),
    Call(
        id="F42",
        title="thirty jobs that die at once: the pool comes back",
        run=_pool_comes_back,
        heavy=True,
    ),
    Call(
        id="F43.cancel",
        title="cancelling a tree of 128 spinning processes",
        run=_cancel_is_quick,
        heavy=True,
    ),
    shell(
        "F44.quota_after",
        "after its disk is full a job may free and use it again",
        """
        head -c 20M /dev/zero > /tmp/a 2>/dev/null && echo "no limit"
        rm /tmp/a; head -c 2M /dev/zero > /tmp/b && echo held
        """,
        manifest={"storage_mb": 10, "outputs": []},
    ),
    Job(
        id="F45.stderr_only",
        title="a job that fails with a full disk and no words is explained",
        code="f = open('/tmp/x', 'wb')\nf.write(bytes(30 << 20))\n",
        manifest={"storage_mb": 5, "outputs": []},
        reason=("storage_limit",),
        stdout="",
    ),
    Job(
        id="F46.deep_recursion",
        title="recursion without end is a job's own crash",
        code="import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()\n",
        reason=("signaled", "out_of_memory", "nonzero_exit"),
        stdout="",
        manifest={"memory_mb": 256},
    ),
)
