"""A whole server and its limits on the kernel at hand; for `tests/vm/run`, which runs it
where there is only cgroup v2. Standard library alone: an emulated machine is slow.

PID 1 of the sandboxes is the compiled one (there is no start without it here), and each
start mode serves a job. Prints a line per promise and exits with the number of those not kept.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

CONFIG = """
[rate_limit]
enabled = false
[pool]
ready = 1
init = "native"
[environments.default]
[environments.exec]
mode = "exec"
[environments.fork]
mode = "fork"
[interpreters.python3]
command = ["python3"]
extensions = [".py"]
mode = "door"
[interpreters.sh]
command = ["sh"]
extensions = [".sh"]
"""
COMPILED = re.compile("/run/sandrun/init( .deleted.)?$")  # the Python one is an interpreter
LIMITS = {"timeout": 300, "cpu_seconds": 120}
BURN = "while True: pass"
HOG = "b = bytearray(300 * 1024 * 1024)\nfor i in range(0, len(b), 4096): b[i] = 1"
FORKS = "import os, time\nfor _ in range(50):\n    if os.fork() == 0: time.sleep(300)\n"
UNACCEPTED = """
import socket, time
server = socket.create_server(("127.0.0.1", 0), backlog=4096)
for _ in range(400):
    one = socket.create_connection(server.getsockname())
    one.setblocking(False)
    try:
        while one.send(bytes(65536)): pass
    except BlockingIOError: pass
    one.close()
time.sleep(300)
"""
PENDING = "import resource; print(resource.getrlimit(resource.RLIMIT_SIGPENDING)[1] <= 128)"
# (what, job, wanted exit reason, wanted text in stdout or evidence)
CASES = (
    ("a job runs (door)", {"code": "print(6 * 7)"}, "exited", "42"),
    ("a job runs (exec)", {"code": "print(6 * 7)", "environment": "exec"}, "exited", "42"),
    ("a job runs (fork)", {"code": "print(6 * 7)", "environment": "fork"}, "exited", "42"),
    ("its group is its root", {"code": "print(open('/proc/self/cgroup').read())"}, "exited", "0::/\n"),
    ("memory is limited", {"code": HOG, "memory_mb": 64}, "out_of_memory", "oom_kill"),
    ("CPU time is limited", {"code": BURN, "cpu_seconds": 2}, "cpu_limit", "CPU-seconds"),
    ("processes are limited", {"code": FORKS, "processes": 8}, "process_limit", "pids.events"),
    ("unaccepted connections are counted", {"code": UNACCEPTED}, "out_of_memory", "to nobody"),
    ("timers are limited", {"code": PENDING}, "exited", "True"),
    ("a shell runs", {"code": "echo $((6 * 7))", "interpreter": "sh"}, "exited", "42"),
)


def run(url, job):
    """POST /submit with a manifest, follow the log to its end, return status and log."""
    name = "main.sh" if job.get("interpreter") == "sh" else "main.py"
    manifest = {**LIMITS, **{k: v for k, v in job.items() if k != "code"}}
    body = json.dumps({"manifest": manifest, "files": {name: job["code"]}}).encode()
    request = urllib.request.Request(
        f"{url}/submit", body, {"Content-Type": "application/json"}
    )
    job_id = json.load(urllib.request.urlopen(request, timeout=600))["job_id"]
    log = urllib.request.urlopen(f"{url}/logs/{job_id}/stream", timeout=600).read().decode()
    status = json.load(urllib.request.urlopen(f"{url}/status/{job_id}", timeout=600))
    return status, log


def inits(server):
    """The program of each sandbox's PID 1, as the host's kernel tells it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(
                line.split(":", 1) for line in (path / "status").read_text().splitlines()
            )
            if status["NSpid"].split()[1:] == ["1"] and status["PPid"].strip() == str(server):
                found[path.name] = os.readlink(path / "exe")
        except OSError:
            continue  # it has ended
    return found


def groups_of(pid):
    """Directories of a server's group, and whether somebody holds the lock of each."""
    found = {}
    for path in Path("/sys/fs/cgroup").rglob(f"sandrun-{pid}-*"):
        if not path.is_dir():
            continue
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found[str(path)] = False
        except BlockingIOError:
            found[str(path)] = True
        finally:
            os.close(fd)
    return found


def start(config):
    """A server and its address, or "" if it has said why there is none."""
    argv = [sys.executable, "-m", "sandrun", "--config", config, "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    return server, server.stdout.readline().strip().split(" ")[-1]


def main():
    failed = 0
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(CONFIG)
        file.flush()
        killed, url = start(file.name)
        if not url:
            return 1
        living = groups_of(killed.pid)
        killed.send_signal(signal.SIGKILL)
        killed.wait(300)
        dead = groups_of(killed.pid)
        server, url = start(file.name)
        if not url:
            return 1
        swept = groups_of(killed.pid)
        for what, kept, found in (
            ("its group is locked", [*living.values()] == [True], living),
            ("killed, it leaves it unlocked", [*dead.values()] == [False], dead),
            ("and the next one sweeps it", not swept, swept),
        ):
            failed += not kept
            print("ok    " if kept else "FAILED", what, "" if kept else found, flush=True)
        for what, job, reason, text in CASES:
            status, log = run(url, job)
            evidence = " ".join(status["evidence"])
            kept = status["exit_reason"] == reason and text in log + evidence
            failed += not kept
            print("ok    " if kept else "FAILED", what, "" if kept else (status, log), flush=True)
        programs = inits(server.pid)
        kept = programs and all(map(COMPILED.match, programs.values()))
        failed += not kept
        print("ok    " if kept else "FAILED", "PID 1 is the compiled one", programs, flush=True)
        server.terminate()
        code = server.wait(300)
    left = [p for p in Path("/sys/fs/cgroup").rglob(f"sandrun-{server.pid}-*") if p.is_dir()]
    for what, kept in (("it ends with 0", code == 0), ("no group is left", not left)):
        failed += not kept
        print("ok    " if kept else "FAILED", what, "" if kept else (code, left), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
