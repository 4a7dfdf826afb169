"""A: out of the namespaces, out of the file system."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import killed, python, shell
from sandrun.selftest.case import Answer, Case, Job

_MOUNT_CALLS: Final = {
    "mount": 'b"none", b"/tmp", b"tmpfs", 0, None',
    "umount2": 'b"/proc", 2',
    "pivot_root": 'b".", b"."',
    "chroot": 'b"."',
    "fsopen": 'b"tmpfs", 0',
    "fsmount": "3, 0, 0",
    "fsconfig": "3, 6, None, None, 0",
    "fspick": '-100, b"/", 0',
    "open_tree": '-100, b"/usr", 1',
    "move_mount": '3, b"", -100, b"/tmp", 4',
    "mount_setattr": '-100, b"/usr", 0, None, 0',
    "setns": "3, 0",
    "unshare": "0x10000000",
    "name_to_handle_at": '-100, b"/", None, None, 0',
    "open_by_handle_at": "-100, None, 0",
}


def _output_is_a_file(answer: Answer) -> str:
    paths = set(answer["output_files"])
    return "" if paths <= {"out.txt"} else f"handed back {sorted(paths)}"


CASES: Final[tuple[Case, ...]] = (
    killed("A1", "unshare(CLONE_NEWUSER)", "raw('unshare', 0x10000000)"),
    shell(
        "A1.tool",
        "unshare -Ur as a program",
        "unshare -Ur true 2>/dev/null && echo escaped || echo held",
        needs=("unshare",),
    ),
    python(
        "A2",
        "clone() with each new-namespace bit is refused",
        """
        for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            refused("clone %#x" % bit, raw, "clone", bit | 17, 0, 0, 0, 0, by=("EPERM",))
            refused("with VFORK", raw, "clone", bit | 0x4100, 0, 0, 0, 0, by=("EPERM",))
        """,
    ),
    python(
        "A2.clone3",
        "clone3(), whose flags no filter can read, is not there",
        """
        import ctypes, struct
        for flags in (0, 0x10000000, 0x20000000 | 0x40000000, 0x200000000):
            args = ctypes.create_string_buffer(struct.pack("11Q", flags, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0))
            refused("clone3 %#x" % flags, raw, "clone3", args, 88, by=("ENOSYS",))
        """,
    ),
    python(
        "A4",
        "the namespace files of PID 1 cannot be opened, setns is fatal",
        """
        for name in ("mnt", "pid", "net", "user", "uts", "ipc", "cgroup"):
            refused("/proc/1/ns/" + name, lambda: os.open("/proc/1/ns/" + name, os.O_RDONLY))
            def join():
                raw("setns", os.open("/proc/self/ns/" + name, os.O_RDONLY), 0)
            refused("setns " + name, join, by=("SIGSYS",))
        """,
    ),
    *(
        killed(f"A5.{name}", f"{name}() ends the job", f"raw({name!r}, {arguments})")
        for name, arguments in _MOUNT_CALLS.items()
    ),
    python(
        "A8",
        "no chain of .. leaves the root",
        """
        root = os.stat("/")
        for start in ("/work", "/usr/lib", "/proc/self", "/dev/shm", "/"):
            fd = os.open(start, os.O_RDONLY)
            for _ in range(4096):
                above = os.open("..", os.O_RDONLY, dir_fd=fd)
                os.close(fd)
                fd = above
            here = os.fstat(fd)
            expect(start, (here.st_dev, here.st_ino), (root.st_dev, root.st_ino))
            os.close(fd)
        """,
    ),
    python(
        "A8.long",
        "a path of .. as long as the kernel takes does not leave the root",
        """
        path = "/usr" + "/.." * 1300
        expect("root", sorted(os.listdir(path)), sorted(os.listdir("/")))
        for name in ("root", "boot", "mnt", "srv", "media", "lost+found", "sys"):
            expect(name, os.path.exists(path + "/" + name), False)
        """,
    ),
    python(
        "A9.write",
        "nothing outside the four writable places takes a file",
        """
        import errno
        writable = ("/work", "/tmp", "/home/sandrun", "/dev/shm")
        places = ["/"] + ["/" + name for name in os.listdir("/")]
        for base in ("/usr", "/etc", "/var", "/opt", "/run", "/home"):
            for root, names, _ in os.walk(base):
                places += [os.path.join(root, name) for name in names[:40]]
                if root.count("/") > 2:
                    names.clear()
        for place in places:
            if place.startswith(writable) or place.startswith("/proc") or place == "/var/tmp":
                continue
            try:
                os.open(place + "/hostile", os.O_WRONLY | os.O_CREAT)
                note("wrote into " + place)
            except OSError as error:
                expect(place, errno.errorcode[error.errno], "EROFS", "EACCES", "EPERM", "ENOENT", "ENOTDIR")
        """,
    ),
    python(
        "A9.change",
        "no file of the host can be changed, renamed, linked or removed",
        """
        for path in ("/usr/bin/env", "/etc/passwd", "/usr/lib", "/dev/null", "/bin"):
            refused("unlink " + path, os.unlink, path, by=("EROFS", "EACCES", "EPERM", "EISDIR"))
            refused("rename " + path, os.rename, path, "/work/x", by=("EROFS", "EACCES", "EXDEV", "EPERM"))
            refused("chmod " + path, os.chmod, path, 0o777, by=("EROFS", "EPERM"))
            refused("utime " + path, os.utime, path, (0, 0), by=("EROFS", "EPERM", "EACCES"))
            refused("link " + path, os.link, path, "/work/x", by=("EXDEV", "EPERM", "EACCES", "EROFS"))
        for path in ("/usr/bin/env", "/etc/passwd"):
            refused("truncate " + path, os.truncate, path, 0, by=("EROFS", "EACCES", "EPERM"))
            refused("open " + path, os.open, path, os.O_WRONLY, by=("EROFS", "EACCES", "EPERM"))
        """,
    ),
    python(
        "A10",
        "device nodes cannot be made and no block device is there",
        """
        import stat
        for kind, numbers in ((stat.S_IFBLK, ((254, 0), (8, 0), (7, 0))), (stat.S_IFCHR, ((1, 1), (1, 3), (10, 200), (5, 1)))):
            for major, minor in numbers:
                for place in ("/work/d", "/dev/d", "/tmp/d"):
                    refused("mknod", os.mknod, place, kind | 0o666, os.makedev(major, minor), by=("EPERM", "EACCES", "EROFS"))
        for root, _, names in os.walk("/dev"):
            for name in names:
                expect(name, stat.S_ISBLK(os.stat(os.path.join(root, name)).st_mode), False)
        """,
    ),
    python(
        "A11",
        "overlay whiteouts: char 0:0 and their xattrs are refused",
        """
        import stat
        refused("mknod", os.mknod, "/work/w", stat.S_IFCHR, os.makedev(0, 0), by=("EPERM",))
        for name in ("user.overlay.opaque", "trusted.overlay.opaque", "user.x", "security.capability"):
            refused(name, os.setxattr, "/work", name, b"y", by=("ENOTSUP", "EPERM", "ENOSYS"))
        """,
    ),
    python(
        "A14",
        "the job removes and replaces its own work directory",
        """
        refused("rename /work", os.rename, "/work", "/tmp/w", by=("EBUSY", "EROFS", "EACCES", "EXDEV"))
        refused("rmdir /work", os.rmdir, "/work", by=("EBUSY", "EROFS", "EACCES", "ENOTEMPTY"))
        os.makedirs("/work/in/side")
        os.chdir("/work/in/side")
        os.rmdir("/work/in/side")
        os.rmdir("/work/in")
        os.symlink("/etc", "/work/in")
        """,
        manifest={"outputs": ["in/**", "in"]},
        also=lambda answer: "handed back /etc" if answer["output_files"] else "",
    ),
    python(
        "A15",
        "a directory and a link to / change places while the job ends",
        """
        import signal
        os.makedirs("out"); open("out/out.txt", "w").write("mine")
        os.symlink("/etc", "link")
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.setsid()
            while True:
                raw("renameat2", -100, b"out", -100, b"link", 2)
        import time; time.sleep(0.05)
        """,
        manifest={"outputs": ["**"]},
        also=lambda answer: (
            ""
            if not any("passwd" in path or "hosts" in path for path in answer["output_files"])
            else f"handed back {sorted(answer['output_files'])}"
        ),
    ),
    python(
        "A16",
        "set-user-id programs give nothing, and none can be made",
        """
        import stat, subprocess
        for program in ("su", "mount", "ping", "passwd", "newgrp", "chsh", "sudo", "pkexec"):
            path = "/usr/bin/" + program
            if os.path.exists(path):
                run = subprocess.run([path, "--version"], capture_output=True, stdin=subprocess.DEVNULL)
        open("/work/copy", "wb").write(open("/usr/bin/id", "rb").read())
        os.chmod("/work/copy", 0o6755)
        out = subprocess.run(["/work/copy"], capture_output=True, text=True).stdout
        expect("id", out.strip(), "uid=1000(sandrun) gid=1000(sandrun) groups=1000(sandrun)")
        expect("NoNewPrivs", status("NoNewPrivs"), "1")
        """,
    ),
    python(
        "A17",
        "the id maps cannot be written and map two ids, none of them root's",
        """
        for name in ("uid_map", "gid_map", "setgroups", "projid_map"):
            refused(name, lambda: open("/proc/self/" + name, "w").write("0 0 1\\n"))
        lines = open("/proc/self/uid_map").read().split("\\n")[:-1]
        expect("lines", len(lines), 1)
        inside, outside, count = map(int, lines[0].split())
        expect("inside", (inside, count), (1000, 2))
        expect("outside is unprivileged", outside >= 1000, True)
        """,
    ),
    python(
        "A18",
        "no change of ids leads to root or to PID 1's",
        """
        for ids in (0, 1, 1001, 65534, 65535):
            refused("setresuid %d" % ids, os.setresuid, ids, ids, ids, by=("EPERM", "EINVAL"))
            refused("setresgid %d" % ids, os.setresgid, ids, ids, ids, by=("EPERM", "EINVAL"))
            refused("setuid", os.setuid, ids, by=("EPERM", "EINVAL"))
            refused("setreuid", os.setreuid, ids, ids, by=("EPERM", "EINVAL"))
        refused("setgroups", os.setgroups, [0], by=("EPERM",))
        expect("ids", os.getresuid() + os.getresgid(), (1000,) * 6)
        expect("groups", os.getgroups(), [])
        """,
    ),
    python(
        "A19",
        "every capability set is empty and stays so",
        """
        import ctypes
        header = ctypes.create_string_buffer(bytes([0x22, 5, 8, 0x20, 0, 0, 0, 0]))
        data = ctypes.create_string_buffer(b"\\xff" * 24)
        refused("capset", raw, "capset", header, data, by=("EPERM",))
        for what, args in (("ambient", (47, 2, 21, 0, 0)), ("keepcaps", (8, 1, 0, 0, 0)), ("securebits", (28, 0, 0, 0, 0)), ("capbset_drop", (24, 21, 0, 0, 0))):
            refused(what, raw, "prctl", *args, by=("EPERM", "EINVAL", "SIGSYS"))
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            expect(name, status(name), "0" * 16)
        """,
    ),
    shell(
        "A20",
        "tools that make sandboxes cannot be used to leave one",
        """
        for tool in "unshare -U true" "nsenter -t 1 -m true" "bwrap --bind / / true" \\
                "runuser -u root true" "newuidmap 1 0 0 1" "setpriv --reuid=0 true" "chroot / true"; do
            command -v ${tool%% *} >/dev/null || continue
            $tool >/dev/null 2>&1 && echo "worked: $tool"
        done
        echo held
        """,
    ),
    python(
        "A23",
        "personality() that weakens address randomisation is refused",
        """
        for value in (0x0040000, 0x0400000, 0x0008, 0x8000000):
            refused(hex(value), raw, "personality", value, by=("EPERM",))
        works("query", raw, "personality", 0xFFFFFFFF)
        """,
    ),
    python(
        "A24",
        "the host name is sandrun and stays so",
        """
        import ctypes, socket
        refused("sethostname", raw, "sethostname", ctypes.create_string_buffer(b"x"), 1, by=("EPERM",))
        refused("setdomainname", raw, "setdomainname", ctypes.create_string_buffer(b"x"), 1, by=("EPERM",))
        expect("name", (socket.gethostname(), os.uname().nodename), ("sandrun", "sandrun"))
        """,
    ),
    python(
        "A25",
        "a program that the job made runs inside the same walls",
        """
        import shutil, subprocess
        shutil.copy("/usr/bin/env", "/work/own")
        expect("runs", subprocess.run(["/work/own", "true"]).returncode, 0)
        open("/work/s", "w").write("#!/work/own sh\\ngrep -c '^Seccomp:.2' /proc/self/status; grep NoNewPrivs /proc/self/status\\n")
        os.chmod("/work/s", 0o755)
        out = subprocess.run(["/work/s"], capture_output=True, text=True).stdout.split()
        expect("inherited", out, ["1", "NoNewPrivs:", "1"])
        refused("memfd_create", raw, "memfd_create", b"x", 0, by=("ENOSYS",))
        refused("execveat", raw, "execveat", -1, b"", None, None, 0x1000, by=("ENOSYS",))
        """,
    ),
    python(
        "A26",
        "the interpreter's own file cannot be overwritten (CVE-2019-5736)",
        """
        for path in ("/proc/self/exe", "/proc/1/exe", sys.executable, os.path.realpath(sys.executable)):
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND):
                refused(path, os.open, path, flags, by=("EACCES", "ETXTBSY", "EROFS", "ENOENT", "EPERM"))
        def through_a_descriptor():
            fd = os.open("/proc/self/exe", os.O_PATH)
            os.open("/proc/self/fd/%d" % fd, os.O_RDWR)
        refused("O_PATH", through_a_descriptor, by=("EACCES", "ETXTBSY", "EROFS"))
        """,
    ),
    python(
        "A28.magic",
        "no magic link of /proc leads out",
        """
        for path in ("/proc/1/root", "/proc/1/cwd", "/proc/1/exe", "/proc/1/fd", "/proc/1/map_files", "/proc/self/map_files"):
            try:
                found = os.listdir(path) if os.path.isdir(path) else os.readlink(path)
                if path != "/proc/self/map_files":
                    note("%s: %r" % (path, found))
            except OSError:
                pass
        expect("own root", os.readlink("/proc/self/root"), "/")
        expect("own root's list", sorted(os.listdir("/proc/self/root/")), sorted(os.listdir("/")))
        """,
    ),
    python(
        "A29.protected",
        "links of others' files by linkat and /proc/self/fd are refused",
        """
        import ctypes
        fd = os.open("/etc/passwd", os.O_RDONLY)
        refused("AT_EMPTY_PATH", raw, "linkat", fd, b"", -100, b"/work/p", 0x1000, by=("ENOENT", "EXDEV", "EPERM"))
        refused("magic link", raw, "linkat", -100, b"/proc/self/fd/%d" % fd, -100, b"/work/p", 0x400, by=("EXDEV", "EPERM", "EACCES"))
        """,
    ),
    python(
        "A30.exchange",
        "RENAME_EXCHANGE and RENAME_WHITEOUT across the walls are refused",
        """
        open("/work/f", "w").close()
        for other in (b"/etc/passwd", b"/usr/bin/env", b"/dev/null"):
            refused(str(other), raw, "renameat2", -100, b"/work/f", -100, other, 2, by=("EXDEV", "EROFS", "EACCES", "EPERM"))
        refused("whiteout", raw, "renameat2", -100, b"/work/f", -100, b"/work/g", 4, by=("EPERM", "EINVAL", "EACCES"))
        """,
    ),
    python(
        "A31.mounts",
        "only the expected mounts are there, and the fixed ones are read-only and nosuid",
        """
        known = {"/", "/usr", "/proc", "/opt/env", "/work", "/home/sandrun", "/tmp", "/dev/shm"}
        known |= {"/" + name for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")}
        for line in open("/proc/self/mountinfo"):
            fields = line.split()
            target, options = fields[4], fields[5].split(",")
            if target not in known:
                note("mount at " + target)
            if "nosuid" not in options:
                note(target + " is not nosuid")
            if target not in ("/work", "/home/sandrun", "/tmp", "/dev/shm", "/proc") and "ro" not in options:
                note(target + " is writable")
            if target in ("/work", "/home/sandrun", "/tmp", "/dev/shm") and "nodev" not in options:
                note(target + " is not nodev")
        """,
    ),
    python(
        "A32.attach",
        "a detached tree, a new proc and a new tmpfs cannot be had from a child either",
        """
        def nested():
            if os.fork() == 0:
                try:
                    raw("unshare", 0x10020000)
                finally:
                    os._exit(0)
            _, how = os.wait()
            if os.WIFSIGNALED(how):
                raise OSError(1, "killed")
        refused("in a grandchild", nested)
        """,
    ),
    python(
        "A33.landlock",
        "Landlock rules cannot be loosened; more of them do no harm",
        """
        for name in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
            if name in NUMBERS:
                refused(name, raw, name, 0, 0, 0)
        """,
    ),
    Job(
        id="A25.c",
        title="a compiled program finds the same walls",
        code=(
            "#define _GNU_SOURCE\n#include <sched.h>\n#include <stdio.h>\n#include <sys/mount.h>\n"
            '#include <unistd.h>\nint main(void) { puts("alive"); fflush(stdout);\n'
            '  mount("none", "/tmp", "tmpfs", 0, 0); puts("mounted"); return 0; }\n'
        ),
        file="main.c",
        manifest={"build": "gcc -o prog main.c", "entrypoint": "prog"},
        needs=("gcc",),
        reason=("syscall_denied",),
        stdout="alive\n",
    ),
)
