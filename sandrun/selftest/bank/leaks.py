"""C: what is inherited."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank._words import python, shell
from sandrun.selftest.case import Call, Case, Job, expect
from sandrun.selftest.target import Target

_NODE_FDS: Final = """
const fs = require("fs");
const own = new Set(["pipe", "/dev/null"]);
const found = [];
for (const fd of fs.readdirSync("/proc/self/fd")) {
  let to;
  try { to = fs.readlinkSync("/proc/self/fd/" + fd); } catch { continue; }
  if (Number(fd) > 2 && !/^(anon_inode:|pipe:|\\/proc\\/|\\/work\\/)/.test(to)) found.push(fd + " " + to);
}
console.log(found.length ? found.join("\\n") : "held");
"""

# What only the server's own processes know.
_SECRETS: Final = (
    b"sandrun.pool", b"sandrun-init", b"SpawnerReady", b"BootFailed", b"uid_base", b"/sys/fs/cgroup",
    b"X-Forwarded", b"multipart/form-data", b"view_id", b"Dispatch", b"config.toml",
)  # fmt: skip


def _same_after_violence(target: Target) -> None:
    """Descriptors, limits and signals of a job do not depend on what went before."""
    look = (
        "import os, resource, signal\n"
        "fds = sorted(f for f in os.listdir('/proc/self/fd'))\n"
        "print(fds[:-1], [os.readlink('/proc/self/fd/' + f).split(':')[0] for f in fds[:3]])\n"
        "print([l for l in open('/proc/self/status') if l.startswith(('Sig', 'Shd', 'Cap', 'Seccomp:', 'NoNew', 'Groups', 'Umask'))][3:])\n"
        "print(open('/proc/self/limits').read().replace(' ', ''))\n"
        "print(os.getpriority(0, 0), os.sched_getaffinity(0) and os.sched_getscheduler(0))\n"
        "print(sorted(os.environ.items()), os.getcwd(), os.umask(0))\n"
    )
    first = target.run({"main.py": look})["stdout"]
    for code, more in (
        ("import os; os.kill(os.getpid(), 9)", {}),
        ("while True: pass", {"timeout": 0.3}),
        ("import os\nfor i in range(200): os.dup(1)\nos.kill(-1, 19)", {"timeout": 0.3}),
        ("b = bytearray(200 << 20)", {"memory_mb": 64}),
    ):
        target.run({"main.py": code}, more)
    for _ in range(5):
        again = target.run({"main.py": look})["stdout"]
        expect(again == first, f"a later job finds {again!r}, the first found {first!r}")


CASES: Final[tuple[Case, ...]] = (
    python(
        "C1",
        "a Python job has descriptors 0, 1 and 2, all pipes",
        """
        fds = {int(f): None for f in os.listdir("/proc/self/fd")}
        for fd in list(fds):
            try:
                fds[fd] = os.readlink("/proc/self/fd/%d" % fd)
            except OSError:
                del fds[fd]
        expect("descriptors", sorted(fds), [0, 1, 2])
        for fd, to in fds.items():
            expect(to, to.startswith("pipe:"), True)
        """,
    ),
    shell(
        "C1.bash",
        "a shell job has descriptors 0, 1 and 2 (and its script)",
        """
        for fd in /proc/self/fd/*; do
            to=$(readlink $fd 2>/dev/null) || continue
            case "$to" in pipe:*|/proc/*|/work/main.sh|/dev/null) ;; *) echo "$fd $to";; esac
        done
        echo held
        """,
    ),
    Job(
        id="C1.node",
        title="a node job has no descriptor but its own",
        code=_NODE_FDS,
        file="index.js",
        needs=("node",),
    ),
    Job(
        id="C1.perl",
        title="a perl job has no descriptor but its own",
        code=(
            'opendir(my $d, "/proc/self/fd"); my @bad;\n'
            'for (readdir $d) { next if /^\\./; my $t = readlink("/proc/self/fd/$_") // next;\n'
            "  push @bad, qq($_ $t) unless $t =~ m{^(pipe:|/proc/|/work/)}; }\n"
            'print @bad ? join("\\n", @bad) : "held", "\\n";\n'
        ),
        file="main.pl",
        needs=("perl",),
    ),
    Job(
        id="C1.compute",
        title="a job under the compute profile has descriptors 0, 1 and 2",
        code="import os\nprint([fd for fd in range(256) if os.path.exists('/dev/fd/%d' % fd)][:4])\n",
        manifest={"profile": "compute"},
        stdout="[0, 1, 2]\n",
        reason=("exited",),
    ),
    Call(id="C4", title="the same after crashes, timeouts and floods", run=_same_after_violence),
    python(
        "C5",
        "standard input is at its end and cannot be written",
        """
        expect("read", os.read(0, 1), b"")
        refused("write", os.write, 0, b"x", by=("EBADF", "EPIPE"))
        import fcntl
        fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)
        fcntl.fcntl(2, fcntl.F_SETFL, os.O_NONBLOCK)
        """,
    ),
    python(
        "C6",
        "standard output opened again is only the own log",
        """
        for path in ("/proc/self/fd/1", "/dev/stdout", "/dev/fd/1"):
            fd = os.open(path, os.O_WRONLY)
            refused("truncate", os.ftruncate, fd, 0, by=("EINVAL",))
            refused("seek", os.lseek, fd, 0, 0, by=("ESPIPE",))
            os.close(fd)
        def read_back():
            os.set_blocking(os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK), False)
            data = os.read(os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK), 100)
            if data:
                raise RuntimeError("read %r" % data)
            raise OSError(11, "nothing")
        expect("reading one's own pipe", outcome(read_back), "EAGAIN", "EACCES")
        """,
    ),
    python(
        "C7",
        "the log's pipe cannot be resized",
        """
        import fcntl
        for size in (1 << 20, 4096):
            refused("F_SETPIPE_SZ", fcntl.fcntl, 1, 1031, size, by=("EPERM",))
        refused("splice", raw, "splice", 0, 0, 1, 0, 100, 0, by=("EINVAL",))
        refused("tee", raw, "tee", 0, 1, 100, 0, by=("EINVAL",))
        refused("vmsplice", raw, "vmsplice", 1, 0, 0, 0, by=("EINVAL",))
        """,
    ),
    python(
        "C8",
        "the environment is the documented one, in memory too",
        """
        wanted = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "LANG", "TZ"}
        extra = set(os.environ) - wanted - {"LC_CTYPE", "NODE_CHANNEL_FD"}
        expect("environ", sorted(extra), [])
        data = open("/proc/self/environ", "rb").read().split(b"\\0")
        names = {e.split(b"=")[0].decode() for e in data if e}
        expect("/proc/self/environ", sorted(n for n in names - wanted if not n.startswith("SANDRUN_WARM") and n != "PYTHONPATH"), [])
        """,
    ),
    python(
        "C8.memory",
        "the whole address space holds no secret of the server's",
        """
        WORDS = """
        f"{[bytes(b ^ 0x55 for b in word).hex() for word in _SECRETS]!r}"
        """
        # The words are kept in another alphabet, or we would find our own copies.
        shift = bytes(b ^ 0x55 for b in range(256))
        words = [bytes.fromhex(h) for h in WORDS]
        found = set()
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in maps:
                where, mode, _, _, _, *name = line.split()
                if "r" not in mode or (name and (name[0].startswith("[v") or name[0].startswith("/usr"))):
                    continue
                start, end = (int(word, 16) for word in where.split("-"))
                for at in range(start, end, 1 << 20):
                    try:
                        memory.seek(at)
                        data = memory.read(min(end - at, 1 << 20)).translate(shift)
                    except (OSError, ValueError, OverflowError):
                        continue
                    found |= {word for word in words if word in data}
        for word in found:
            note(word.translate(shift).decode())
        """,
    ),
    python(
        "C9",
        "signals, limits, scheduling and umask are those of a fresh login",
        """
        import resource, signal
        expect("blocked", status("SigBlk"), "0" * 16)
        ignored = int(status("SigIgn"), 16) & ~(1 << 12 | 1 << 24)
        expect("ignored", ignored, 0)
        expect("umask", os.umask(0o022), 0o022)
        expect("nice", os.getpriority(0, 0), 0)
        expect("policy", os.sched_getscheduler(0) if outcome(os.sched_getscheduler, 0) == "ok" else 0, 0)
        expect("core", resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1, True)
        expect("memlock", resource.getrlimit(resource.RLIMIT_MEMLOCK), (0, 0))
        expect("cwd", os.getcwd(), "/work")
        expect("session leader", os.getsid(0) == os.getpid() or os.getsid(0) > 1, True)
        expect("itimer", signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))
        """,
    ),
    python(
        "C9.core",
        "a crash leaves no core file",
        """
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), 11)
        _, how = os.waitpid(pid, 0)
        expect("signalled", os.WTERMSIG(how), 11)
        expect("files", sorted(os.listdir("/work")), ["attack.py", "main.py"] if not os.path.exists("__pycache__") else ["__pycache__", "attack.py", "main.py"])
        """,
    ),
    python(
        "C10",
        "there is no controlling terminal",
        """
        refused("tcgetpgrp", os.tcgetpgrp, 0, by=("ENOTTY",))
        refused("ctermid", os.open, os.ctermid(), os.O_RDWR)
        expect("tty", open("/proc/self/stat").read().rsplit(")")[1].split()[4], "0")
        """,
    ),
    python(
        "C11.keyring",
        "the session's keyrings are out of reach",
        """
        for name, args in (("keyctl", (0, -3, 0)), ("add_key", (b"user", b"d", b"p", 1, -3)), ("request_key", (b"user", b"d", None, -3))):
            refused(name, raw, name, *args, by=("SIGSYS",))
        """,
    ),
    python(
        "C12.argv",
        "the command line names nothing of the host",
        """
        line = open("/proc/self/cmdline", "rb").read().split(b"\\0")
        expect("argv", line[-2:], [b"main.py", b""])
        expect("length", len(line), 3)
        """,
    ),
)
