"""D: looking into others. E: signalling others."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import killed, python, shell
from sandrun.selftest.case import Answer, Case


def _quick(answer: Answer) -> str:
    wall = answer["execution_metadata"]["wall_time_ms"]
    return "" if wall < 5000 else f"took {wall} ms"


CASES: Final[tuple[Case, ...]] = (
    killed("D1", "ptrace(PTRACE_ATTACH) of PID 1", "raw('ptrace', 16, 1, 0, 0)"),
    python(
        "D1.all",
        "ptrace in every form, of everybody, is fatal",
        """
        for request in (0, 16, 0x4206, 1, 4, 12, 0x4200):
            for pid in (1, os.getpid(), os.getppid(), 2):
                refused("ptrace %d %d" % (request, pid), raw, "ptrace", request, pid, 0, 0, by=("SIGSYS",))
        """,
    ),
    python(
        "D2.vm",
        "process_vm_readv and writev are fatal",
        """
        import ctypes
        buffer = ctypes.create_string_buffer(64)
        for name in ("process_vm_readv", "process_vm_writev"):
            for pid in (1, os.getpid()):
                refused(name, raw, name, pid, buffer, 1, buffer, 1, 0, by=("SIGSYS",))
        """,
    ),
    python(
        "D3",
        "memory of others is closed, one's own child's is not a way out",
        """
        for pid in (1, os.getppid()):
            for flags in (os.O_RDONLY, os.O_RDWR):
                refused("mem of %d" % pid, os.open, "/proc/%d/mem" % pid, flags, by=("EACCES", "EPERM", "ENOENT"))
        """,
    ),
    python(
        "D4",
        "descriptors cannot be taken from others",
        """
        refused("pidfd_open", raw, "pidfd_open", 1, 0, by=("ENOSYS",))
        refused("pidfd_getfd", raw, "pidfd_getfd", 0, 0, 0, by=("SIGSYS",))
        refused("pidfd_send_signal", raw, "pidfd_send_signal", 0, 9, 0, 0, by=("SIGSYS", "ENOSYS", "EBADF"))
        refused("CLONE_PIDFD", raw, "clone", 0x1000 | 17, 0, 0, 0, 0, by=("EPERM",))
        """,
    ),
    python(
        "D5.kcmp",
        "kcmp, process_madvise, userfaultfd, perf and bpf are fatal",
        """
        for name, args in (("kcmp", (1, os.getpid(), 0, 0, 0)), ("process_madvise", (0, 0, 0, 0, 0)), ("userfaultfd", (0,)),
                           ("perf_event_open", (0, 0, -1, -1, 0)), ("bpf", (0, 0, 0))):
            refused(name, raw, name, *args, by=("SIGSYS",))
        """,
    ),
    python(
        "D7",
        "a suspended vfork parent and its tree are gone with the job",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                import signal
                os.kill(os.getppid(), signal.SIGSTOP)
                signal.pause()
            import signal; signal.pause()
        """,
        also=_quick,
    ),
    python(
        "D8.prctl",
        "PR_SET_PTRACER, PR_SET_MM, PR_SET_DUMPABLE and the like are refused",
        """
        for name, option in (("PTRACER", 0x59616D61), ("MM", 35), ("DUMPABLE", 4), ("SECCOMP", 22), ("CHILD_SUBREAPER", 36),
                             ("MEMORY_MERGE", 67), ("SPECULATION", 53), ("IO_FLUSHER", 57), ("TSC", 26), ("SCHED_CORE", 62), ("MDWE", 65)):
            refused(name, raw, "prctl", option, 1, 0, 0, 0, by=("EINVAL", "EPERM", "SIGSYS"))
        """,
    ),
    python(
        "E1",
        "no signal reaches anything but the job itself",
        """
        import errno, signal
        for pid in (1, os.getppid()):
            for number in (0, 9, 19, 15, 2):
                refused("kill %d %d" % (pid, number), os.kill, pid, number, by=("EPERM", "ESRCH"))
        seen = []
        for pid in range(2, 5000):
            if pid == os.getpid():
                continue
            try:
                os.kill(pid, 0)
                seen.append(pid)
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.EPERM):
                    seen.append((pid, error.errno))
                elif error.errno == errno.EPERM:
                    seen.append((pid, "EPERM"))
        expect("others", seen, [])
        for big in (32768, 65536, 1 << 22, (1 << 31) - 1):
            refused("kill %d" % big, os.kill, big, 9, by=("ESRCH",))
        """,
    ),
    python(
        "E1.queue",
        "queued and thread signals to PID 1 are refused",
        """
        import ctypes
        info = ctypes.create_string_buffer(128)
        for name, args in (("rt_sigqueueinfo", (1, 9, info)), ("rt_tgsigqueueinfo", (1, 1, 9, info)), ("tgkill", (1, 1, 9)), ("tkill", (1, 9))):
            refused(name, raw, name, *args, by=("EPERM", "ESRCH", "ENOSYS", "SIGSYS"))
        """,
    ),
    python(
        "E2.kill_all",
        "kill(-1, SIGKILL) reaches only the job's own children",
        """
        import signal, time
        children = []
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
        os.kill(-1, signal.SIGKILL)
        for pid in children:
            expect("child", os.WTERMSIG(os.waitpid(pid, 0)[1]), 9)
        """,
    ),
    python(
        "E3",
        "CLONE_PARENT, CLONE_PTRACE and CLONE_UNTRACED are refused",
        """
        for bit in (0x8000, 0x2000, 0x800000):
            refused(hex(bit), raw, "clone", bit | 17, 0, 0, 0, 0, by=("EPERM",))
        """,
    ),
    python(
        "E4",
        "SIGIO owners and foreign timers are refused",
        """
        import ctypes, fcntl, struct
        for command, value in ((8, 1), (10, 9), (15, 1), (8, -1)):
            refused("fcntl %d" % command, fcntl.fcntl, 0, command, value, by=("EPERM", "EINVAL"))
        event = ctypes.create_string_buffer(struct.pack("qiii", 0, 9, 4, 1) + bytes(48))
        timer = ctypes.create_string_buffer(8)
        refused("timer", raw, "timer_create", 1, event, timer, by=("EINVAL", "EPERM"))
        """,
    ),
    python(
        "E5",
        "a job that stops itself ends at its wall limit",
        "import signal; os.kill(0, signal.SIGSTOP)",
        manifest={"timeout": 0.5},
        reason=("wall_timeout",),
        stdout="",
        also=_quick,
    ),
    python(
        "E6",
        "stopped children and a parent in wait() end at the wall limit",
        """
        import signal
        for _ in range(4):
            if os.fork() == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
        os.wait()
        """,
        manifest={"timeout": 0.5},
        reason=("wall_timeout",),
        stdout="",
        also=_quick,
    ),
    python(
        "E7",
        "a job that blocks and ignores every signal is killed all the same",
        """
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True: pass
        """,
        manifest={"timeout": 0.4},
        reason=("wall_timeout",),
        stdout="",
        also=_quick,
    ),
    python(
        "E8.sigint",
        "SIGINT, SIGHUP and SIGTERM to the own group end the job alone",
        "import signal; os.kill(0, signal.SIGTERM); signal.pause()",
        reason=("signaled",),
        stdout="",
    ),
    python(
        "E9.sigsys",
        "a SIGSYS that the job sends to itself is its own affair",
        "import signal; os.kill(os.getpid(), signal.SIGSYS)",
        reason=("syscall_denied", "signaled"),
        stdout="",
    ),
    shell(
        "E10",
        "thousands of short children are all reaped",
        "for i in $(seq 800); do (:) & [ $((i % 40)) = 0 ] && wait; done; wait; echo held",
        heavy=True,
    ),
    python(
        "E11.orphans",
        "orphans by the hundred are reaped by the sandbox's init",
        """
        for _ in range(300):
            pid = os.fork()
            if pid == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.waitpid(pid, 0)
        left = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                left += "Z" in status("State", pid)
            except FileNotFoundError:
                pass  # reaped in this moment
        expect("zombies", left < 20, True)
        """,
    ),
)
