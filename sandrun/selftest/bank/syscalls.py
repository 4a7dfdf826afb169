"""S: the system call filter, seen from inside. The policy's own tests judge its bytes."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import killed, python, shell
from sandrun.selftest.case import Case, Job

_FATAL: Final = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "kcmp",
    "pidfd_getfd",
    "userfaultfd",
    "bpf",
    "perf_event_open",
    "keyctl",
    "add_key",
    "request_key",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "unshare",
    "setns",
    "open_by_handle_at",
    "name_to_handle_at",
    "fanotify_init",
    "fanotify_mark",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "reboot",
    "swapon",
    "swapoff",
    "acct",
    "settimeofday",
    "clock_settime",
    "adjtimex",
    "clock_adjtime",
    "quotactl_fd",
]
_ABSENT: Final = [
    "clone3",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "openat2",
    "pidfd_open",
    "memfd_create",
    "execveat",
    "membarrier",
    "inotify_init1",
    "signalfd4",
    "timerfd_create",
    "preadv2",
    "pwritev2",
    "mincore",
]

CASES: Final[tuple[Case, ...]] = (
    python(
        "S1",
        "every call that no program needs ends the caller",
        f"""
        for name in {_FATAL!r}:
            if name in NUMBERS:
                refused(name, raw, name, 0, 0, 0, 0, 0, by=("SIGSYS", "ENOSYS") if NUMBERS[name][ARM] is None else ("SIGSYS",))
        """,
    ),
    python(
        "S2",
        "calls with a fallback are not there",
        f"""
        for name in {_ABSENT!r}:
            if name in NUMBERS:
                refused(name, raw, name, 0, 0, 0, 0, 0, by=("ENOSYS",))
        """,
    ),
    python(
        "S3",
        "unknown numbers are not there, however large",
        """
        for number in [*range(463, 512), 600, 1000, 4095, 1 << 16, (1 << 31) - 1]:
            refused(number, raw, number, 0, 0, 0, by=("ENOSYS", "SIGSYS"))
        """,
    ),
    python(
        "S4.x32",
        "the x32 numbers are fatal or absent",
        """
        if not ARM:
            for number in (0, 1, 39, 59, 101, 165, 512, 520, 545):
                refused("x32 %d" % number, raw, number | 0x40000000, 0, 0, 0, by=("SIGSYS", "ENOSYS"))
        """,
    ),
    Job(
        id="S5.i386",
        title="the 32-bit system call gate is fatal",
        code=(
            '#include <stdio.h>\nint main(void) { long r; puts("alive"); fflush(stdout);\n'
            '  __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); printf("pid %ld\\n", r); return 0; }\n'
        ),
        file="main.c",
        manifest={"build": "gcc -o prog main.c 2>/dev/null || exit 9", "entrypoint": "prog"},
        needs=("gcc",),
        reason=("syscall_denied", "signaled"),
        stdout="alive\n",
    ),
    killed(
        "S6.thread",
        "a forbidden call in a thread ends the whole job",
        """
        import threading, time
        threading.Thread(target=raw, args=("unshare", 0)).start()
        time.sleep(5)
    """,
    ),
    python(
        "S7.ioctl",
        "ioctls that reach drivers are refused on every descriptor",
        """
        import ctypes
        r, w = os.pipe()
        f = os.open("/work/f", os.O_RDWR | os.O_CREAT)
        z = os.open("/dev/zero", os.O_RDONLY)
        for fd in (0, 1, r, f, z):
            for command in (0x4004667F, 0xC0045877, 0x40086602, 0x801C581F, 0x5331, 0x1261, 0xAE00, 0x4B4B, 0x125D, 0xC020660B, 0x40049408, 0x6611):
                refused("%d %#x" % (fd, command), raw, "ioctl", fd, command, ctypes.create_string_buffer(64), by=("ENOTTY", "EINVAL"))
        """,
    ),
    python(
        "S8.futex",
        "priority-inheritance futexes are not there",
        """
        import ctypes
        word = ctypes.create_string_buffer(8)
        for op in (6, 7, 8, 11, 12, 13, 6 | 128, 11 | 128 | 256):
            refused("futex %d" % op, raw, "futex", word, op, 0, None, None, 0, by=("ENOSYS",))
        """,
    ),
    python(
        "S9.arch_prctl",
        "segment registers and control-flow state beside FS are refused",
        """
        if not ARM:
            for code in (0x1001, 0x1004, 0x1011, 0x1012, 0x2001, 0x2003, 0x3001, 0x4001, 0x5001, 0x1022, 0x1023):
                refused(hex(code), raw, "arch_prctl", code, 0, by=("EINVAL",))
            for name in ("iopl", "ioperm", "modify_ldt"):
                refused(name, raw, name, 3, 0, 0, by=("SIGSYS",))
        """,
    ),
    python(
        "S10.vsock_like",
        "io_uring cannot do what the filter forbids",
        """
        import ctypes
        for name in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
            refused(name, raw, name, 1, ctypes.create_string_buffer(120), 0, 0, by=("ENOSYS",))
        """,
    ),
    python(
        "S11.seccomp",
        "filters can neither be listed nor listened to",
        """
        for args in ((0, 0, 0), (1, 0, 0), (1, 8, 0), (2, 0, 0), (3, 0, 0)):
            refused(str(args), raw, "seccomp", *args, by=("EINVAL", "SIGSYS"))
        refused("PR_SET_SECCOMP", raw, "prctl", 22, 1, 0, 0, 0, by=("EINVAL",))
        """,
    ),
    python(
        "S12.status",
        "every process of the job is filtered, unprivileged and without new privileges",
        """
        def look():
            for name, wanted in (("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", "0" * 16), ("CapBnd", "0" * 16), ("Uid", "\\t".join(["1000"] * 4))):
                if status(name) != wanted:
                    raise RuntimeError("%s is %s" % (name, status(name)))
        works("child", look)
        works("grandchild", lambda: works("x", look) or (problems and 1 / 0))
        """,
    ),
    shell(
        "S13.exec",
        "after exec the same filter stands",
        """
        for p in python3 perl ruby node; do
            command -v $p >/dev/null || continue
        done
        grep -q '^Seccomp:.2$' /proc/self/status && /usr/bin/env grep -q '^NoNewPrivs:.1$' /proc/self/status && echo held
        """,
    ),
    Job(
        id="S14.compute",
        title="the compute profile starts no process and opens no socket",
        code=(
            "import errno, os, socket\n"
            "def how(f):\n    try: f(); return 'ok'\n    except OSError as e: return errno.errorcode[e.errno]\n"
            "print(how(os.fork), how(lambda: socket.socket()), how(lambda: os.execv('/bin/true', ['true'])))\n"
        ),
        manifest={"profile": "compute"},
        reason=("exited", "syscall_denied"),
        stdout=None,
        also=lambda answer: f"printed {answer['stdout']!r}" if "ok" in answer["stdout"] else "",
    ),
    Job(
        id="S14.compute_fork",
        title="under the compute profile even a raw clone is refused",
        code=(
            "import ctypes, os\nl = ctypes.CDLL(None, use_errno=True)\n"
            "r = l.syscall(56 if os.uname().machine == 'x86_64' else 220, 17, 0, 0, 0, 0)\n"
            "if r == 0: os._exit(0)\nprint('forked' if r > 0 else 'held')\n"
        ),
        manifest={"profile": "compute"},
        reason=("exited", "syscall_denied"),
        stdout=None,
        also=lambda answer: "it forked" if "forked" in answer["stdout"] else "",
    ),
    python(
        "S15.wx",
        "code that a program writes itself still meets the filter",
        """
        import ctypes, mmap, platform
        if platform.machine() == "x86_64":
            def attempt():
                page = mmap.mmap(-1, 4096, prot=7)
                # mov eax, 272 (unshare); xor edi, edi; syscall; ret
                page.write(b"\\xb8\\x10\\x01\\x00\\x00\\x31\\xff\\x0f\\x05\\xc3")
                ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
            refused("unshare from a page of one's own", attempt, by=("SIGSYS", "EACCES", "EPERM"))
        """,
    ),
    python(
        "S16.fork_bits",
        "clone with harmless flags still works, so that the refusals mean something",
        """
        pid = raw("clone", 17, 0, 0, 0, 0)
        if pid == 0:
            os._exit(5)
        expect("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 5)
        import socket, subprocess, threading
        works("subprocess", subprocess.run, ["true"])
        def in_thread():
            thread = threading.Thread(target=os.getpid)
            thread.start(); thread.join()
        works("thread", in_thread)
        works("socket", socket.socket)
        """,
    ),
)
