"""Zero fail-open, shown: one step of the set-up at a time fails, is left out, or dies.

Whatever goes wrong before a sandbox stands, nothing of a job runs: the sandbox is
not leased, ``/health`` and the log name the step, and the job waits until one that
is whole is there. Every step of both PID 1s, the compiled and the Python one. See
``faulty.py`` for how the faults get in.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import faulty
import pytest
import servers

from sandrun.pool.native import build
from sandrun.pool.zygote import boot, child

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes are made by root")

FORK_MODE = """
[rate_limit]
enabled = false
[environments.default]
mode = "fork"
[pool]
ready = 2
"""
SMALL = "[rate_limit]\nenabled = false\n[pool]\nready = 2\n"
PROGRAM = "print('ran')"
UNBUILT = build.fault() if os.geteuid() == 0 else ""
INITS = ("python", "native") if not UNBUILT else ("python",)


class Faulty:
    """A server with faults. ``control.faults = [(kind, place, step), ...]``."""

    def __init__(self, server, control):
        self.server = server
        self.control = control

    def health(self):
        return self.server.client.get("/health").json()

    def warm(self):
        return self.server.client.get("/stats").json()["system"]["warm"]

    def kill_sandboxes(self):
        for pid in servers.descendants(self.server.process.pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                ids = status.partition("NSpid:")[2].split("\n")[0].split()
                if len(ids) > 1 and ids[-1] == "1":
                    os.kill(pid, signal.SIGKILL)

    def inject(self, *faults):
        """From now on, for every sandbox: those that stand are ended."""
        self.lift()
        self.until(lambda: self.health()["reason"] is None, "the last fault is still there")
        self.server.log.clear()
        self.control.faults = faults
        self.kill_sandboxes()

    def lift(self):
        self.control.faults = []

    def until(self, true, what):
        pause = threading.Event()
        end = time.monotonic() + 60
        while not (found := true()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}; health {self.health()}, log {self.server.log[-5:]}")
            pause.wait(0.03)
        return found

    def until_fault(self, text):
        """/health says why, and the log does."""
        self.until(lambda: text in (self.health()["reason"] or ""), f"/health does not say {text}")
        assert any(text in line for line in self.server.log), self.server.log
        assert self.health()["status"] != "ready"

    def submit(self, **manifest):
        """A job while nothing may run: its id, or None if the server takes none now."""
        response = self.server.post("/submit", {"main.py": PROGRAM}, manifest=manifest)
        assert response.status_code in (200, 503), response.text
        return response.json()["job_id"] if response.status_code == 200 else None

    def assert_nothing_ran(self, job_id):
        assert self.warm() == 0
        if job_id:
            assert self.server.client.get(f"/status/{job_id}").json()["status"] == "queued"
            assert self.server.client.get(f"/logs/{job_id}").json()["stdout"] == ""

    def assert_recovers(self, job_id):
        """The fault is gone: the job that waited runs, once."""
        self.lift()
        self.until(lambda: self.warm() > 0, "no sandbox comes")
        if job_id is None:
            job_id = self.submit()
        self.server.client.get(f"/logs/{job_id}/stream")
        status = self.server.client.get(f"/status/{job_id}").json()
        assert status["exit_reason"] == "exited"
        assert self.server.client.get(f"/logs/{job_id}").json()["stdout"] == "ran\n"


@contextlib.contextmanager
def running(directory, config=SMALL, faults=(), init=INITS[-1]):
    """A server with these faults from the start. Raises RuntimeError if it does not start."""
    path = Path(directory, "faults")
    path.write_bytes(bytes(faulty.SIZE))
    control = faulty.Control(path)
    control.faults = faults
    file = Path(directory, "config.toml")
    file.write_text(config)
    argv = [sys.executable, faulty.__file__, "serve", str(path), init]
    argv += ["--config", str(file), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    reader = None
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("sandrun is ready: "):
                break
        else:
            raise RuntimeError(f"exit status {process.wait()}: {''.join(lines)}")
        url = lines[-1].split()[-1]
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        server = servers.Server(process, url, lines)
        with server.client:
            yield Faulty(server, control)
    finally:
        process.terminate()
        process.wait(60)
        if reader:
            reader.join(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """init → its server, started when first asked for and kept for all tests."""
    found = {}
    with contextlib.ExitStack() as stack:

        def get(init):
            if init not in found:
                directory = tmp_path_factory.mktemp(init)
                found[init] = stack.enter_context(running(directory, init=init))
            return found[init]

        yield get


@pytest.fixture(params=INITS)
def node(nodes, request):
    found = nodes(request.param)
    found.until(lambda: found.warm() > 0, "no sandbox comes")
    return found


def names(steps):
    return [step.__name__.strip("_") for step in steps]


def compiled(file, array):
    """The names of a list of steps in C."""
    source = (build.SOURCE / file).read_text()
    body = re.search(rf"{array}\[\] = \{{\n(.*?)\n\}};", source, re.DOTALL)[1]
    return re.findall(r'\{"(\w+)",', body)


STEPS = {
    "python": {
        "boot": names(boot.BOOT_STEPS),
        "parked": names(child.PARKED_STEPS),
        "late": names(child.LATE_STEPS),
    },
    "native": {
        "boot": compiled("boot.c", "boot_steps"),
        "parked": compiled("child.c", "parked_steps"),
        "late": compiled("child.c", "late_steps"),
    },
}


def each_step(*places):
    """Parameters: init, place, step."""
    return [
        (init, place, step) for init in INITS for place in places for step in STEPS[init][place]
    ]


def of_each_init(pairs, but=()):
    return [
        (init, place, step)
        for init in INITS
        for place, step in pairs
        if step in STEPS[init][place] and (init, place, step) not in but
    ]


def test_both_have_the_same_steps_but_for_their_own_beginnings():
    differ = set(STEPS["python"]["boot"]) ^ set(STEPS["native"]["boot"])
    assert differ == {"wait_for_ids", "wake_ups"}
    assert STEPS["python"]["parked"] == STEPS["native"]["parked"]
    assert STEPS["python"]["late"] == STEPS["native"]["late"]


# ── a step fails ─────────────────────────────────────────────────────────────


SPAWN = [(init, "spawn", step) for init in INITS for step in ("network", "clone", "id_maps")]


@pytest.mark.parametrize(
    ("node", "place", "step"), each_step("boot", "parked") + SPAWN, indirect=["node"]
)
def test_a_step_that_fails_is_named_and_nothing_runs(node, place, step):
    node.inject(("fail", place, step))
    node.until_fault(f"{step}:")
    job_id = node.submit()
    node.assert_nothing_ran(job_id)
    node.assert_recovers(job_id)


@pytest.mark.parametrize("step", ["memory_file", "tmpfs"])
def test_a_supply_that_cannot_be_made_is_told_and_nothing_runs(node, step):
    node.inject(("fail", "supplies", step))
    node.until_fault("supplies: ")
    job_id = node.submit()
    node.assert_nothing_ran(job_id)
    node.assert_recovers(job_id)


@pytest.mark.parametrize(
    ("place", "step"),
    [("boot", "take_ids"), ("boot", "confine"), ("parked", "job_uid"), ("parked", "system_calls")],
)
def test_a_process_that_dies_in_a_step_is_not_used(node, place, step):
    node.inject(("die", place, step))
    node.until_fault("PID 1 ended while booting" if place == "boot" else "died before it was ready")
    job_id = node.submit()
    node.assert_nothing_ran(job_id)
    node.assert_recovers(job_id)


@pytest.mark.parametrize("step", ["private_namespaces", "build_root", "move_in", "user_namespace"])
def test_a_root_that_cannot_be_made_keeps_the_server_from_starting(tmp_path, step):
    name = {"user_namespace": "enter_user_namespace"}.get(step, step)
    with pytest.raises(RuntimeError, match="exit status") as error:
        with running(tmp_path, faults=[("fail", "prepare", name)]):
            pass
    assert f"{step}:" in str(error.value)
    assert "exit status 0" not in str(error.value)


@pytest.mark.parametrize(("node", "_", "step"), each_step("late"), indirect=["node"])
@pytest.mark.parametrize("how", ["fail", "die"])
def test_a_late_process_that_cannot_be_confined_is_a_server_fault(node, _, step, how):
    """Builds, other interpreters, unpacking: their processes are made when the job is there."""
    node.control.faults = [(how, "late", step)]
    try:
        built = node.server.run({"main.py": PROGRAM}, manifest={"build": "echo built"})
        packed = node.server.run(archive=servers.tar_of({"main.py": PROGRAM}))
    finally:
        node.lift()
    for answer in (built, packed):
        assert answer["exit_reason"] == "server_fault", answer
        assert (answer["stdout"], answer["output_files"]) == ("", {})
        wanted = step if how == "fail" else "park"
        assert wanted in answer["evidence"][0]


TEMPLATE_STEPS = """pid_namespace namespaces control_group cgroup_namespace own_session
standard_streams rlimits bounding_set job_ids no_capabilities no_new_privileges landlock
few_descriptors system_calls fresh""".split()
# With the compiled PID 1 these are fork.c's: see below.
COMPILED_AWAY = tuple(name for name in TEMPLATE_STEPS if name != "fresh")
# Each costs a server; the last of each kind of process are the default run.
EVERY = os.environ.get("SANDRUN_EVERY_STEP") == "1"


@pytest.mark.parametrize(
    "step", TEMPLATE_STEPS if EVERY else ["namespaces", "job_ids", "system_calls"]
)
def test_a_fork_of_a_template_that_cannot_be_confined_is_not_used(tmp_path, step):
    """SANDRUN_EVERY_STEP=1 tries each of the template's steps."""
    init = "python" if step in COMPILED_AWAY else INITS[-1]
    with running(tmp_path, FORK_MODE, [("fail", "template", step)], init) as node:
        node.until(
            lambda: any("default/python3 failed to boot" in line for line in node.server.log),
            "no boot has failed",
        )
        node.until(lambda: "python3" in (node.health()["reason"] or ""), "/health says nothing")
        failed = [line for line in node.server.log if "default/python3 failed to boot" in line]
        assert all(step in line or "park:" in line or "template:" in line for line in failed), (
            failed
        )
        listed = node.server.client.get("/environments").json()
        assert listed["stats"]["warm"] <= 1  # the generic one, of another kind


FORK_SOURCE = (build.SOURCE / "fork.c").read_text()
MIDDLE_STEPS = re.findall(r'^    step = "(\w+)"', FORK_SOURCE, re.MULTILINE)
CHILD_STEPS = re.findall(r'^    {"(\w+)", \w+},', FORK_SOURCE, re.MULTILINE)


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """A server whose python3 is forked from a template by fork.c."""
    if UNBUILT:
        pytest.skip(UNBUILT)
    with running(tmp_path_factory.mktemp("forks"), FORK_MODE, init="native") as found:
        yield found


def test_a_template_forks_by_these_steps():
    assert {*MIDDLE_STEPS, *CHILD_STEPS} == {*COMPILED_AWAY, "request", "fork", "place", "dumpable"}


@pytest.mark.parametrize("how", ["fail", "die"])
@pytest.mark.parametrize("step", [*MIDDLE_STEPS, *CHILD_STEPS])
def test_a_compiled_fork_of_a_template_that_fails_is_not_used(forks, step, how):
    forks.until(lambda: forks.warm() > 0, "no sandbox comes")
    forks.inject((how, "fork", step))
    try:
        # Who dies in the sandbox says nothing, nor does a template that dies itself; PID 1,
        # which waits for a word, does.
        silent = how == "die" and step in (*CHILD_STEPS, "request", "pid_namespace")
        forks.until_fault("park:" if silent else f"{step}:")
        listed = forks.server.client.get("/environments").json()
        assert listed["stats"]["warm"] <= 1  # the generic one, of another kind
    finally:
        forks.lift()
    # The template has lived through it, or the next one serves.
    forks.until(lambda: forks.warm() > 1, "no sandbox comes")
    assert forks.server.run({"main.py": PROGRAM})["stdout"] == "ran\n"


# ── a step is left out, and nobody says so ───────────────────────────────────

# What the attestation sees by itself, though the step claims that all is well.
SEEN = [
    ("boot", "take_ids"),
    ("boot", "writable_places"),
    ("boot", "proc"),
    ("boot", "landlock_rulesets"),
    ("boot", "bounding_set"),
    ("boot", "confine"),
    ("parked", "attach"),
    ("parked", "own_cgroup_namespace"),
    ("parked", "own_session"),
    ("parked", "rlimits"),
    ("parked", "job_uid"),
    ("parked", "no_new_privileges"),
    ("parked", "system_calls"),
]
# Seen where the parked process is ours. One that has executed an interpreter is whole
# all the same: the kernel takes capabilities and descriptors away at the exec.
SEEN_BEFORE_EXEC = [("parked", "no_capabilities"), ("parked", "few_descriptors")]
# What it cannot see, and why that is no way out.
UNSEEN = {
    ("boot", "wait_for_ids"): "the next step needs the ids",
    ("boot", "wake_ups"): "PID 1 then does not hear of its child's end; the wall limit does",
    ("boot", "quiet_descriptors"): "PID 1's own; the job's three are pipes",
    ("boot", "names"): "a host name and a label for ps",
    ("boot", "loopback"): "it is a look: the spawner has raised it",
    ("boot", "work_directory"): "PID 1 cannot go on without the descriptor",
    ("boot", "park"): "there is nothing to attest without it",
    ("boot", "cgroup_namespace"): "PID 1's own view of its group",
    ("boot", "attest_job"): "it is the look itself",
    ("boot", "attest_self"): "it is the look itself",
    ("parked", "die_with_parent"): "the pid namespace ends with PID 1 anyway",
    ("parked", "landlock"): "no file of /proc tells; the mounts are the first wall",
    ("parked", "signals"): "the job's own comfort",
}


def test_every_step_is_either_seen_by_the_attestation_or_explained():
    steps = {(place, step) for _, place, step in each_step("boot", "parked")}
    assert {*SEEN, *SEEN_BEFORE_EXEC, *UNSEEN} >= steps
    if not UNBUILT:
        assert {*SEEN, *SEEN_BEFORE_EXEC, *UNSEEN} == steps


SEEN_OF_EACH = of_each_init(SEEN)
# An exec does not mend it there: the compiled PID 1 has come by an exec itself and so
# holds its capabilities as ambient ones, which its children inherit.
if not UNBUILT:
    SEEN_OF_EACH.append(("native", "parked", "no_capabilities"))


@pytest.mark.parametrize(("node", "place", "step"), SEEN_OF_EACH, indirect=["node"])
def test_a_step_that_is_silently_left_out_is_seen_before_the_lease(node, place, step):
    node.inject(("skip", place, step))
    node.until_fault("default/")
    assert any("failed to boot" in line for line in node.server.log)
    job_id = node.submit()
    node.assert_nothing_ran(job_id)
    node.assert_recovers(job_id)


@pytest.mark.parametrize(
    ("node", "place", "step"),
    of_each_init(SEEN_BEFORE_EXEC, [("native", "parked", "no_capabilities")]),
    indirect=["node"],
)
def test_what_an_exec_mends_is_leased_only_where_it_is_mended(node, place, step):
    look = (
        "import os\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap')])\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:-1])\n"
    )
    node.inject(("skip", place, step))
    try:
        node.until_fault("attest_job: ")
        answer = node.server.run({"main.py": look})
    finally:
        node.lift()
    assert answer["stdout"].splitlines() == [str(["0" * 16] * 5), "['0', '1', '2']"]


# ── one layer off, the others hold ───────────────────────────────────────────

NO_LOOK = ("skip", "boot", "attest_job")
WRITES = """
import errno
for path in ("/etc/open/x", "/etc/x", "/usr/x", "/x", "/dev/x"):
    try:
        open(path, "w")
        print(path, "ok")
    except OSError as error:
        print(path, errno.errorcode[error.errno])
"""


def ran(node, code):
    node.until(lambda: node.warm() > 0, "no sandbox comes")
    answer = node.server.run({"main.py": code})
    assert answer["exit_reason"] == "exited", answer
    return answer["stdout"].splitlines()


def test_without_landlock_the_mounts_hold(node):
    node.inject(("skip", "boot", "landlock_rulesets"), NO_LOOK)
    try:
        lines = ran(node, WRITES)
    finally:
        node.lift()
    assert not [line for line in lines if line.endswith(" ok")]
    assert "/etc/x EROFS" in lines


def test_without_read_only_mounts_landlock_holds(tmp_path):
    """A tree that anybody may write, on a mount that is not read-only: Landlock alone."""
    with running(tmp_path, faults=[("open", "mounts", "root"), NO_LOOK]) as node:
        assert "/etc/open/x EACCES" in ran(node, WRITES)
        # The control: with both walls off the write succeeds, so the test tests something.
        node.inject(("open", "mounts", "root"), ("skip", "boot", "landlock_rulesets"), NO_LOOK)
        assert "/etc/open/x ok" in ran(node, WRITES)


ATTEMPTS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def how(result):
    return "ok" if result != -1 else errno.errorcode[ctypes.get_errno()]
def tried(function, *args):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, how(function(*args)).encode())
        os._exit(0)
    os.close(w)
    text = os.read(r, 99).decode()
    _, status = os.waitpid(pid, 0)
    return text or "SIG%d" % os.WTERMSIG(status)
print("mount", tried(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None))
print("umount", tried(libc.umount2, b"/proc", 2))
print("sethostname", tried(libc.sethostname, b"x", 1))
print("chroot", tried(libc.chroot, b"/tmp"))
print("ptrace", tried(libc.ptrace, 16, 1, 0, 0))
print("kill", tried(libc.kill, 1, 9))
print("mknod", tried(libc.mknod, b"/tmp/d", 0o60600, 0xfe00))
print("setuid", tried(libc.setresuid, 1001, 1001, 1001))
"""


def test_without_the_filter_the_lack_of_capabilities_holds(node):
    node.inject(("skip", "parked", "system_calls"), NO_LOOK)
    try:
        lines = ran(node, ATTEMPTS)
    finally:
        node.lift()
    # EACCES is Landlock's answer, before the lack of a capability is noticed.
    assert {line.split()[1] for line in lines} <= {"EPERM", "EACCES"}, lines
    assert len(lines) == 8


def test_with_capabilities_the_filter_holds(node):
    node.inject(("skip", "parked", "no_capabilities"), ("skip", "boot", "bounding_set"), NO_LOOK)
    try:
        # PID 1 then lacks nothing either, and its own look would refuse it.
        node.control.faults = [*node.control.faults, ("skip", "boot", "attest_self")]
        node.kill_sandboxes()
        lines = dict(line.split() for line in ran(node, ATTEMPTS))
    finally:
        node.lift()
    assert (lines["mount"], lines["umount"], lines["chroot"], lines["ptrace"]) == ("SIG31",) * 4
    assert (lines["sethostname"], lines["mknod"]) == ("EPERM", "EPERM")
    assert lines["kill"] == "EPERM"
