"""PID 1 is written twice. The same odd jobs under both, and the same answers.

Times, identifiers and measured amounts apart, every field of an answer must be the
same, and every byte of the log.
"""

import contextlib
import os
import re

import pytest
import servers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes are made by root")

CONFIG = f"""{servers.NO_RATE_LIMIT}
[pool]
init = "{{}}"
[limits]
log_mb = 1
output_mb = 2
[environments.default]
[environments.fork]
mode = "fork"
"""
# What a warm interpreter adds to its exit status; see FAREWELL in sandrun/pool/seccomp.py.
FAREWELL = "import os, signal, threading, time\ndef leave(n): os._exit(0x5EED5A00 | n)\n"
FAREWELLS = {
    "alone": "print('x', flush=True); leave(7)",
    "with outputs": "open('o', 'w').write('y'); print('x', flush=True); leave(8)",
    "of a child": "if not os.fork(): leave(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))",
    "of children": "for n in range(50):\n if not os.fork(): leave(n)\n"
    "print(sum(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(50)))",
    "beside a child": "if not os.fork(): signal.pause()\nopen('o', 'w').write('y'); leave(4)",
    "beside a child that writes": "r, w = os.pipe()\nif not os.fork():\n"
    " f = os.open('o', 66)\n while True: os.pwrite(f, b'y', 0), os.write(w, b'x')\n"
    "os.read(r, 1); leave(4)",
    "beside a zombie": "if not os.fork(): os._exit(0)\ntime.sleep(0.05); leave(4)",
    "of a thread": "threading.Thread(target=leave, args=(5,)).start(); signal.pause()",
    "beside a thread": "threading.Thread(target=signal.pause, daemon=True).start(); leave(6)",
    "under signals": "signal.signal(signal.SIGALRM, lambda *_: None)\n"
    "signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3); time.sleep(0.01); leave(9)",
    "of another program": "os.execv('/usr/bin/python3', ['python3', '-c', "
    "'import os; os._exit(0x5EED5A00 | 2)'])",
    "of a child that is stopped": "pid = os.fork()\nif not pid: signal.raise_signal(19); leave(1)\n"
    "os.waitpid(pid, os.WUNTRACED); leave(3)",
    "at a full log": "os.write(1, bytes(2 << 20)); leave(1)",
}
MEASURED = {
    "job_id", "view_id", "worker_metadata", "metrics", "cursor", "cpu_seconds",
    "memory_peak_bytes", "memory_peak_mb", "wall_time_ms", "processes_peak", "timeline",
}  # fmt: skip


@pytest.fixture(scope="module")
def both():
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(servers.running(CONFIG.format(init)))
            for init in ("native", "python")
        ]


def python(code, **manifest):
    return {"files": {"main.py": code}, "manifest": manifest}


def shell(code, **manifest):
    return {"files": {"main.sh": code}, "manifest": {"entrypoint": "main.sh", **manifest}}


FACTS = """
import os, resource, signal, socket, sys
def status():
    for line in open("/proc/self/status"):
        if line.startswith(("Sig", "Shd", "Cap", "Secc", "NoNew", "Uid", "Gid", "Groups", "Umask")):
            print(line.rstrip())
def descriptors():
    for fd in sorted(os.listdir("/proc/self/fd"), key=int)[:-1]:
        print(fd, os.readlink("/proc/self/fd/" + fd).split(":")[0], os.get_inheritable(int(fd)))
def limits():
    return [(n, resource.getrlimit(getattr(resource, n))) for n in dir(resource) if "RLIMIT_" in n]
for fact in (
    os.getcwd, os.getuid, os.geteuid, os.getgid, os.getgroups, os.getppid, socket.gethostname,
    status, descriptors, limits,
    lambda: oct(os.umask(0)), lambda: os.nice(0), lambda: os.getpid() == os.getsid(0),
    lambda: open("/proc/self/oom_score_adj").read(), lambda: open("/proc/self/comm").read(),
    lambda: sys.argv, lambda: sorted(os.environ.items()), lambda: open("/proc/self/cgroup").read(),
    lambda: sorted(name for name in os.listdir("/proc") if name.isdigit()),
    lambda: sorted(line.split()[4] for line in open("/proc/self/mountinfo")),
    lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()), lambda: len(os.sched_getaffinity(0)),
    lambda: sorted(os.listdir(".")), lambda: os.listdir("/dev/shm"), lambda: os.listdir("/tmp"),
):
    try:
        print(fact())
    except OSError as error:
        print(error)
"""
SIGNALS = (1, 2, 6, 9, 11, 13, 15, 17, 25, 31, 34, 64)
JOBS = {
    "facts": python(FACTS, args=["-x", "", "two\nlines", "ünï", '"\\\t'], env={"A": "ö\n€", "E": ""}),
    "facts of another interpreter": {
        "files": {"a.py": FACTS, "main.sh": 'exec python3 a.py "$@"'},
        "manifest": {"entrypoint": "main.sh", "args": ["-x", "", "two\nlines", "ünï"]},
    },
    "facts of the compute profile": python(FACTS, profile="compute"),
    "facts of a build": python(FACTS, build="python3 main.py"),
    "path is the job's": python("import os; print(os.environ['PATH'])", env={"PATH": "/x:/bin"}),
    "zombies": python(
        "import os\nfor n in range(20):\n if not os.fork(): os._exit(n)\nprint('done')"
    ),
    "double forks": python(
        "import os, time\nfor n in range(5):\n if not os.fork():\n  if os.fork(): os._exit(0)\n"
        "  os.setsid(); os.read(os.pipe()[0], 1)\nprint('done')"
    ),
    "closed streams": python(
        "import os\nos.close(0); os.close(1); os.close(2)\nopen('x','w').write('y')"
    ),
    "stopped": python("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", timeout=0.5),
    "huge output": python("import sys\nsys.stdout.write('0123456789abcde\\n' * 500_000)"),
    "flood of tiny records": python("import os\nfor n in range(3000): os.write(1, b'%d\\n' % n)"),
    "kill all": python("import os\nos.kill(-1, 9)\nprint('alive')"),
    "kill the init": python("import os\ntry: os.kill(1, 9)\nexcept OSError as e: print(e)"),
    "timeout": python("while True: pass", timeout=0.5),
    "cpu": python("import os\nos.fork()\nwhile True: pass", cpu_seconds=0.3),
    "memory": python(
        "open('kept', 'w').write('x')\na = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): a[i] = 1",
        memory_mb=64,
    ),
    "memory of a child": python(
        "import os, signal\nopen('kept', 'w').write('x')\nif not os.fork():\n a = bytearray(1 << 30)\n"
        " for i in range(0, 1 << 30, 4096): a[i] = 1\nos.wait()\nsignal.pause()",
        memory_mb=64,
    ),
    "storage": python("f = open('x', 'wb')\nfor n in range(64): f.write(bytes(1 << 20)); f.flush()",
                      storage_mb=16),
    "processes": python(
        "import os, signal\nfor n in range(100):\n if not os.fork(): signal.pause()", processes=16
    ),
    "open files": python("import os\nfds = [os.open('/', 0) for _ in range(99)]", open_files=64),
    "more open files": python("import resource; print(resource.getrlimit(7))", open_files=512),
    "outputs over the limit": python("open('x', 'wb').write(bytes(3 << 20))"),
    "no outputs wanted": python("open('x', 'w').write('y')", outputs=[]),
    "outputs by pattern": python(
        "import os\nfor n in ('a.txt', 'b.log', '__pycache__'): os.mkdir('d' + n)\n"
        "open('da.txt/x.txt', 'w').write('1')\nopen('y.log', 'w').write('2')",
        outputs=["*.txt", "!y*"],
    ),
    "outputs of all kinds": python(
        "import os\nos.mkfifo('f'); os.symlink('/etc', 's'); os.mkdir('e'); os.mkdir('l', 0)\n"
        "open(b'\\xff', 'w').write('z'); os.mkdir('__pycache__'); open('__pycache__/x', 'w')"
    ),
    "only the upload is left": python("import os; os.remove('main.py'); os.mkdir('empty')"),
    "the upload is changed": python("open('main.py', 'a').write('#')"),
    "nothing on stdin": python("import sys; print(repr(sys.stdin.read()))"),
    "a byte on stdin": python("import sys; print(repr(sys.stdin.read()))", stdin="x"),
    "stdin that nobody reads": python("pass", stdin="x" * 60_000),
    "stdin in pieces": python("import sys; print(len(sys.stdin.read()))", stdin="ä" * 9_000),
    "a name like an option": {"files": {"-c.py": "print(1)"}, "manifest": {"entrypoint": "-c.py"}},
    "an option to a shell": {"files": {"-x.sh": "echo 1"}, "manifest": {"entrypoint": "-x.sh"}},
    "a binary that is none": {
        "files": {"x.bin": "\x00\x01"},
        "manifest": {"entrypoint": "x.bin", "interpreter": "binary"},
    },
    "a binary in a folder": {
        "files": {"a b/ü": '#!/bin/sh\necho $0 "$@"'},
        "manifest": {"entrypoint": "a b/ü", "interpreter": "binary", "args": ["-1", "2 3"]},
    },
    "a binary without its interpreter": {
        "files": {"x": "#!/no/such\n"},
        "manifest": {"entrypoint": "x", "interpreter": "binary"},
    },
    "another interpreter": shell("echo $0 $#; exit 7", args=["a", "b c"]),
    "connections that nobody accepts": python(
        "import socket\nserver = socket.create_server(('127.0.0.1', 0), backlog=4096)\nkept = []\n"
        "for n in range(400):\n one = socket.create_connection(server.getsockname())\n"
        " one.setblocking(False)\n try:\n  while one.send(bytes(65536)): pass\n"
        " except BlockingIOError: kept.append(one)\nimport time; time.sleep(60)"
    ),
    "build": shell("cat built; ls", build="echo 1 > built; echo told; echo err >&2"),
    "build that fails": shell("echo no", build="echo told; exit 3"),
    "build that is killed": shell("echo no", build="kill -9 $$"),
    "build that leaves a process": python("print(1)", build="sleep 100 & exit 0"),
    "build that kills all": python("print(1)", build="kill -9 -1; exit 0"),
    "build that puts a process in the parked one's place": python(
        "import os\nos.write(1, b'x'); print(sum(n.isdigit() for n in os.listdir('/proc')))",
        build="sleep 100 & for d in /proc/[0-9]*; do n=${d#/proc/}; "
        "[ $n = $$ ] || [ $n = $! ] || kill -9 $n; done; exit 0",
    ),
    "build too long": shell("echo no", build="sleep 100", timeout=0.5),
    "build out of memory": python(
        "print(1)", build="exec python3 -c 'b\"x\" * (1 << 28)'", memory_mb=48
    ),
    "many small files": {
        "files": {f"f/{n}": "" for n in range(300)} | {"main.py": "print(1)"},
        "manifest": {"entrypoint": "main.py"},
    },
    "a file that is a directory": {"files": {"a": "", "a/b": "", "main.py": ""}, "manifest": {}},
    "a name twice": {"files": {"main.py": "", "./main.py": ""}, "manifest": {}},
    "a long name": {"files": {"main.py": "print(1)", "x" * 255: ""}, "manifest": {}},
    "controls in arguments": python(
        "import sys; print(len(sys.argv), set(sys.argv[1:]))", args=["\x01" * 8] * 1000
    ),
    "a tar": {"archive": servers.tar_of({"main.py": "open('x', 'w').write('y')"})},
    "a tar with a job.json": {
        "archive": servers.tar_of(
            {"main.py": "import sys; print(sys.argv)", "job.json": '{"args": ["1"], "timeout": 9}'}
        )
    },
    "a tar with a bad job.json": {
        "archive": servers.tar_of({"main.py": "", "job.json": '{"args": 1}'})
    },
    "a tar that wants more storage": {
        "archive": servers.tar_of({"main.py": "print(1)", "job.json": '{"storage_mb": 50}'})
    },
    "a tar for an environment that is none": {
        "archive": servers.tar_of({"main.py": "", "job.json": '{"environment": "none"}'})
    },
    "a tar for an interpreter that is none": {
        "archive": servers.tar_of({"main.py": "", "job.json": '{"interpreter": "none"}'})
    },
    "a tar with a build": {
        "archive": servers.tar_of({"main.py": "print(1)"}), "manifest": {"build": "echo 2 > x"}
    },
    "a tar that is cut": {
        "archive": ("x.tar.gz", servers.tar_of({"main.py": "print(1)"})[1][:60])
    },
    "a tar that is too large": {
        "archive": servers.tar_of({"main.py": "", "x": "y" * (3 << 20)}),
        "manifest": {"storage_mb": 2},
    },
    "an empty tar": {"archive": servers.tar_of({})},
    **{
        f"farewell {name} in {mode}": python(FAREWELL + code, environment=environment)
        for name, code in FAREWELLS.items()
        for mode, environment in (("door", "default"), ("fork", "fork"))
    },
    **{
        f"signal {number}": python(
            f"import os, signal\ntry: signal.signal({number}, signal.SIG_DFL)\n"
            f"except OSError: pass\nos.kill(os.getpid(), {number}); print('alive')"
        )
        for number in SIGNALS
    },
}  # fmt: skip


def answer_of(server, job):
    response = server.post("/run", **job, inline=1)
    return {"http": response.status_code, **response.json()}


def comparable(value):
    """An answer without what a clock or a counter of the kernel says."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in MEASURED}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, str):
        value = re.sub(r"job_[\w-]{24}", "job", value)
        return re.sub(r"^(peak|ran|used|.* held) [\d.]+", r"\1", value)
    return value


@pytest.mark.parametrize("name", JOBS)
def test_both_give_the_same_answer(both, name):
    native, reference = (comparable(answer_of(server, JOBS[name])) for server in both)
    assert native == reference


def test_a_flood_of_single_bytes_is_read_in_steps(both):
    """Each byte once woke PID 1, and PID 1 woke http: five times the job's own CPU time, of
    processes that serve everybody. In packet mode every read takes but one byte.
    """
    flood = (
        "import fcntl, os, time\n"
        "fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_DIRECT)\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end: os.write(1, b'x')\n"
    )
    for server in both:
        answer = answer_of(server, python(flood))
        assert answer["exit_reason"] == "exited"
        reply = server.client.get(f"/logs/{answer['job_id']}", params={"records": 1}).json()
        steps = answer["execution_metadata"]["wall_time_ms"] / 20 + 2
        assert len(reply["records"]) <= steps * 129
        assert reply["stdout"] == "x" * len(reply["records"])
