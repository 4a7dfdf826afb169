"""B: /proc, /sys, /dev."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import python, shell
from sandrun.selftest.case import Case

CASES: Final[tuple[Case, ...]] = (
    python(
        "B2",
        "no kernel setting can be read or written through /proc",
        """
        for path in ("/proc/sys", "/proc/sysrq-trigger", "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/key-users",
                     "/proc/timer_list", "/proc/sched_debug", "/proc/kallsyms", "/proc/modules", "/proc/mem",
                     "/proc/bus", "/proc/irq", "/proc/acpi", "/proc/scsi", "/proc/fs", "/proc/tty", "/proc/iomem",
                     "/proc/ioports", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/pagetypeinfo", "/proc/interrupts",
                     "/proc/locks", "/proc/config.gz", "/proc/diskstats", "/proc/partitions", "/proc/swaps",
                     "/proc/cmdline", "/proc/sysvipc", "/proc/pressure", "/proc/mtrr", "/proc/kpageflags"):
            expect(path, os.path.exists(path), False)
        """,
    ),
    python(
        "B2.core",
        "core_pattern, modprobe and uevent_helper are out of reach",
        """
        for path in ("sys/kernel/core_pattern", "sys/kernel/modprobe", "sys/vm/overcommit_memory", "sys/kernel/hostname", "sys/fs/binfmt_misc/register"):
            refused(path, lambda: open("/proc/" + path, "w").write("x"), by=("ENOENT", "EACCES"))
        refused("uevent_helper", lambda: open("/sys/kernel/uevent_helper", "w"), by=("ENOENT", "EACCES"))
        """,
    ),
    python(
        "B5",
        "PID 1 shows nothing of itself",
        """
        names = ("environ maps smaps fd fdinfo stack syscall mem exe cwd root auxv io wchan timers "
                 "pagemap personality numa_maps map_files ns/net clear_refs mountinfo mounts").split()
        for name in names:
            path = "/proc/1/" + name
            try:
                data = os.listdir(path) if name in ("fd", "fdinfo", "map_files") else (os.readlink(path) if name in ("exe", "cwd", "root", "ns/net") else open(path, "rb").read(64))
                if data and data != b"0":
                    note("%s: %r" % (path, data))
            except OSError:
                pass
        """,
    ),
    python(
        "B5.all",
        "only the job's own processes are listed",
        """
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        others = [pid for pid in pids if pid not in (1, os.getpid())]
        for pid in others:
            note("%d: %r" % (pid, open("/proc/%d/cmdline" % pid).read()))
        expect("pid is small", os.getpid() < 300, True)
        """,
    ),
    python(
        "B6",
        "/proc/net is the sandbox's own: loopback only, no socket of others",
        """
        try:
            lines = open("/proc/self/net/dev").read().splitlines()[2:]
            expect("interfaces", sorted(line.split(":")[0].strip() for line in lines), ["lo"])
            for name in ("tcp", "tcp6", "udp", "udp6", "raw", "netlink", "packet"):
                path = "/proc/self/net/" + name
                if os.path.exists(path):
                    rows = open(path).read().splitlines()[1:]
                    if rows and name != "netlink":
                        note("%s: %r" % (name, rows[:3]))
            if os.path.exists("/proc/self/net/route"):
                expect("routes", len(open("/proc/self/net/route").read().splitlines()) <= 1, True)
            unix = [l.split()[-1] for l in open("/proc/self/net/unix").read().splitlines()[1:] if len(l.split()) > 7]
            expect("named unix sockets", unix, [])
        except FileNotFoundError:
            pass
        """,
    ),
    python(
        "B7",
        "/proc/self/cgroup and mountinfo tell nothing of the host's paths",
        """
        for line in open("/proc/self/cgroup"):
            expect("cgroup", line.strip().split(":", 2)[2], "/")
        text = open("/proc/self/mountinfo").read() + open("/proc/self/mounts").read()
        for word in ("/root/", "/var/lib", "/var/cache", "sandrun-", "/work/main", "overlay", "upperdir"):
            if word in text:
                note("mountinfo has " + word)
        """,
    ),
    python(
        "B8",
        "there is no /sys: no cgroup files, firmware, powercap, block devices",
        """
        expect("/sys", os.path.exists("/sys/kernel") or os.path.exists("/sys/fs"), False)
        for root, _, names in os.walk("/sys"):
            note("%s: %r" % (root, names))
        for path in ("/sys/fs/cgroup/cgroup.procs", "/cgroup", "/dev/cpuctl"):
            expect(path, os.path.exists(path), False)
        """,
    ),
    python(
        "B10",
        "/dev has five devices and four links, nothing else",
        """
        wanted = "fd full null random shm stderr stdin stdout urandom zero".split()
        expect("/dev", sorted(os.listdir("/dev")), wanted)
        for name in ("mem", "kmem", "kmsg", "kvm", "fuse", "tty", "ptmx", "pts/0", "console", "loop0", "net/tun",
                     "vhost-net", "vsock", "mapper/control", "rtc", "hwrng", "uinput", "snapshot", "userfaultfd", "mqueue"):
            refused(name, os.open, "/dev/" + name, os.O_RDWR, by=("ENOENT", "EACCES", "ENXIO"))
        """,
    ),
    python(
        "B10.works",
        "the five devices do what they do everywhere",
        """
        open("/dev/null", "w").write("x")
        expect("zero", open("/dev/zero", "rb").read(4), bytes(4))
        expect("urandom", len(set(open("/dev/urandom", "rb").read(64))) > 8, True)
        expect("full", outcome(lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x")), "ENOSPC")
        """,
    ),
    python(
        "B11",
        "terminals cannot be opened or typed into, whatever the command's high bits",
        """
        for name in ("/dev/tty", "/dev/ptmx", "/dev/pts/ptmx", "/dev/console", "/dev/tty0"):
            refused(name, os.open, name, os.O_RDWR, by=("ENOENT", "ENXIO", "EACCES"))
        import ctypes
        for fd in (0, 1, 2):
            for command in (0x5412, 0x541C, 0x540E, 0x5423, 0x5441, 0x4B44, 0x100005412, 0xFFFFFFFF00005412):
                refused("ioctl %d %#x" % (fd, command), raw, "ioctl", fd, command, ctypes.create_string_buffer(b"x"), by=("ENOTTY", "SIGSYS", "EINVAL", "EPERM"))
        for fd in (0, 1, 2):
            expect("isatty", os.isatty(fd), False)
        """,
    ),
    python(
        "B12",
        "the kernel's entropy pool cannot be credited or drained",
        """
        import ctypes
        fd = os.open("/dev/urandom", os.O_RDWR)
        for command in (0x40045201, 0x40085203, 0x5204, 0x5206, 0x5207):
            refused("RND %#x" % command, raw, "ioctl", fd, command, ctypes.create_string_buffer(16), by=("ENOTTY", "EPERM"))
        os.write(fd, os.urandom(1 << 16))
        """,
    ),
    python(
        "B13.oom",
        "the job cannot make itself harder to kill",
        """
        def lower(name, value):
            open("/proc/self/" + name, "w").write(value)
        refused("oom_score_adj", lower, "oom_score_adj", "-1000", by=("EACCES", "EPERM"))
        before = open("/proc/self/oom_score_adj").read()
        refused("oom_adj", lower, "oom_adj", "-17", by=("EACCES", "EPERM", "ENOENT"))
        expect("unchanged", open("/proc/self/oom_score_adj").read(), before)
        """,
    ),
    python(
        "B14.attr",
        "security attributes, timer slack and coredump filter of others cannot be set",
        """
        for pid in ("1", str(os.getppid())):
            for name in ("attr/current", "attr/exec", "timerslack_ns", "coredump_filter", "oom_score_adj", "loginuid", "clear_refs", "comm"):
                refused(pid + "/" + name, lambda: open("/proc/%s/%s" % (pid, name), "w").write("1"), by=("EACCES", "EPERM", "ENOENT", "EINVAL"))
        """,
    ),
    python(
        "B15.below",
        "the process file system beneath the sandbox's own cannot be uncovered",
        """
        import ctypes
        refused("umount", raw, "umount2", b"/proc", 2, by=("SIGSYS",))
        fd = os.open("/", os.O_RDONLY)
        below = os.open("proc", os.O_RDONLY, dir_fd=fd)
        expect("still ours", os.path.exists("/proc/self/fd/%d/sys" % below), False)
        expect("as many", len([n for n in os.listdir(below) if n.isdigit()]) <= 2, True)
        """,
    ),
    shell(
        "B16.shell",
        "a shell that walks /proc and /dev finds no more",
        """
        ls -d /proc/[0-9]*/ 2>/dev/null | wc -l | { read n; [ $n -le 6 ] || echo "$n processes"; }
        cat /proc/1/environ 2>/dev/null | tr '\\0' '\\n'
        ls /proc/*/fd 2>/dev/null | grep -c socket
        cat /proc/version /proc/cpuinfo >/dev/null 2>&1 && echo readable
        echo held
        """,
        stdout="0\nheld\n",
    ),
)
