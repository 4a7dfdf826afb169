"""The host runs out of things, parts stall, clients vanish: no job is lost, none is disturbed."""

import contextlib
import json
import os
import random
import signal
import socket
import time
from pathlib import Path

import faulty
import httpx
import pytest
import scarce
import servers
import test_crash as crash

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")

CONFIG = """\
[rate_limit]
enabled = false
[pool]
ready = 2
drain_seconds = 1
"""


@contextlib.contextmanager
def scarce_server(directory, config=CONFIG):
    """A server, and the file that says what its host has none of."""
    path = Path(directory, "faults")
    path.write_bytes(bytes(faulty.SIZE))
    with servers.running(config, program=(scarce.__file__, str(path))) as server:
        yield server, faulty.Control(path)


@pytest.fixture(name="host", scope="module")
def make_host(tmp_path_factory):
    """One server for all faults: each must be over when it is over."""
    with scarce_server(tmp_path_factory.mktemp("scarce")) as (server, control):
        yield server, control


def until(server, true):
    """Wait; each look is paced by an answer of the server's."""
    while not true(server.client.get("/health").json()):
        assert server.process.poll() is None, server.log


def paused(server):
    """PID 1s whose job has reached its pause."""
    return [pid for pid in crash.zygotes_of(server) if crash.is_paused(pid)]


def use_up(server):
    """End every sandbox that waits, so that new ones are needed, and their groups."""
    busy = paused(server)
    for pid in crash.zygotes_of(server):
        if pid not in busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def witness(server):
    """A job that runs beside it all: (id, PID 1)."""
    job = crash.submit(server, crash.FOREVER)
    crash.read_until(server, job, "up")
    return job, crash.busy_zygote(server)


def assert_undisturbed(server, job, pid):
    assert crash.status(server, job)["status"] == "running"
    assert crash.is_paused(pid)
    assert server.client.post(f"/jobs/{job}/cancel").json()["exit_reason"] == "cancelled"
    assert crash.quota(server)[0] == 0


# ── the host has none ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "supply"), [fault for fault in scarce.FAULTS if fault[1] not in ("start", "group")]
)
def test_a_host_that_runs_out_fails_no_job(host, name, supply):
    """The cause is told, jobs wait or are refused, and run once it is over."""
    server, control = host
    beside = witness(server)
    control.faults = [(name, supply)]
    use_up(server)
    until(server, lambda health: "supplies: " in (health["reason"] or ""))
    reply = server.client.post("/submit", json={"code": "print('ran')"})
    assert reply.status_code in (200, 503), reply.text
    control.faults = []
    until(server, lambda health: health["reason"] is None)
    if reply.status_code == 503:
        assert reply.headers["retry-after"]
        job = crash.submit(server, "print('ran')")
    else:
        job = reply.json()["job_id"]
    assert crash.wait_end(server, job)["exit_reason"] == "exited"
    assert server.client.get(f"/logs/{job}").json()["stdout"] == "ran\n"
    assert_undisturbed(server, *beside)


FEW = """\
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, (1200, 1200))
runpy.run_module("sandrun", run_name="__main__")
"""
SLOW_UPLOAD = (
    b"POST /submit HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 9999\r\n\r\n--b\r\nContent-Disposition: form-data; "
    b'name="files"; filename="a.tar"\r\n\r\n'
)


def test_clients_cannot_take_every_descriptor():
    """Uploads that never end took all: others got 500, http a lease that it had to die of."""
    config = CONFIG + "[http]\nmax_connections_per_address = 5000\n"
    with servers.running(config, program=("-c", FEW)) as server:
        beside = witness(server)
        host, port = server.url.removeprefix("http://").split(":")
        with contextlib.ExitStack() as clients:
            for _ in range(1500):
                client = clients.enter_context(socket.create_connection((host, int(port)), 30))
                client.sendall(SLOW_UPLOAD)
                assert_held_or_refused(client)
            # Each on a connection of its own: one that was idle may have had to make room.
            refused = httpx.post(f"{server.url}/submit", files={"files": ("a.tar", b"x" * 9)})
            assert refused.status_code == 503, refused.text
            assert refused.json()["code"] in ("uploads_full", "too_many_connections")
            assert refused.headers["retry-after"]
            for n in range(12):
                reply = httpx.post(f"{server.url}/run", json={"code": f"print({n})"})
                while reply.status_code == 503:  # those that were refused are still being told
                    reply = httpx.post(f"{server.url}/run", json={"code": f"print({n})"})
                assert reply.json()["stdout"] == f"{n}\n"
        assert server.client.get("/health").json()["http_restarts"] == 0
        assert_undisturbed(server, *beside)
        assert not [line for line in server.log if "unhandled" in line]


def assert_held_or_refused(client):
    """If there is an answer already, it says when to come again."""
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"\r\nretry-after:" in answer.lower()


def test_a_full_control_group_fails_no_job(host):
    """Groups are kept for the next sandbox: more sandboxes than ever are needed to notice."""
    server, control = host
    beside = witness(server)
    control.faults = [("ENOSPC", "group")]
    jobs = []
    while not (server.client.get("/health").json()["reason"] or "").count("cgroup"):
        reply = server.client.post("/submit", json={"code": crash.FOREVER})
        if reply.status_code == 200:
            jobs.append(reply.json()["job_id"])
        else:
            assert reply.headers["retry-after"]
    assert jobs
    control.faults = []
    until(server, lambda health: health["reason"] is None)
    for job in jobs:
        crash.read_until(server, job, "up")
        assert server.client.post(f"/jobs/{job}/cancel").json()["exit_reason"] == "cancelled"
    assert_undisturbed(server, *beside)


def test_no_process_can_be_started(host):
    """Neither a spawner nor an http: both come when they can."""
    server, control = host
    beside = witness(server)
    servers.standby_of(server.process.pid)
    control.faults = [("EAGAIN", "start")]
    os.kill(crash.spawner_of(server), signal.SIGKILL)
    until(server, lambda health: "Resource temporarily" in (health["reason"] or ""))
    crash.kill_http(server)  # the standby is there
    assert crash.status(server, beside[0])["status"] == "running"
    crash.kill(crash.http_of(server))
    control.faults = []
    crash.reconnect(server)
    until(server, lambda health: health["reason"] is None)
    assert server.python("print(1)")["stdout"] == "1\n"
    assert_undisturbed(server, *beside)


def test_a_storage_that_cannot_be_made_larger_ends_in_one_state(host):
    server, control = host
    beside = witness(server)
    control.faults = [("ENOSPC", "resize")]
    job = crash.submit(server, "print(1)", storage_mb=50)
    control.faults = []
    found = crash.wait_end(server, job)
    assert found["exit_reason"] in ("exited", "server_fault"), found
    assert_undisturbed(server, *beside)


def test_a_host_short_of_memory_refuses_new_jobs_and_disturbs_none(host):
    server, control = host
    beside = witness(server)
    small = server.python("print('kept')")["job_id"]
    large = server.python("open('o', 'wb').write(bytes(1 << 20))")["job_id"]
    control.faults = [("low", "memory")]
    until(server, lambda health: "MiB of memory left" in (health["reason"] or ""))
    refused = server.client.post("/submit", json={"code": "1"})
    assert (refused.status_code, refused.json()["code"]) == (503, "host_pressure")
    assert refused.headers["retry-after"]
    control.faults = [("EMFILE", "look")]  # nor can it look: what it saw last counts
    control.faults = []
    until(server, lambda health: health["reason"] is None)
    assert server.client.get(f"/logs/{small}").json()["stdout"] == "kept\n"
    assert server.client.get(f"/status/{large}").status_code == 404
    assert server.python("print(1)")["stdout"] == "1\n"
    assert_undisturbed(server, *beside)


# ── what is stuck ────────────────────────────────────────────────────────────


def test_a_job_whose_pid_1_is_silent_ends_with_server_fault(tmp_path):
    config = CONFIG + "watchdog_seconds = 2\n"  # a spawner has twice that to start
    with scarce_server(tmp_path, config) as (server, _):
        cancelled = crash.submit(server, crash.FOREVER)
        crash.read_until(server, cancelled, "up")
        os.kill(crash.busy_zygote(server), signal.SIGSTOP)
        found = server.client.post(f"/jobs/{cancelled}/cancel", params={"wait": 30}).json()
        assert found["exit_reason"] in ("cancelled", None), found
        assert crash.wait_end(server, cancelled)["exit_reason"] == "cancelled"
        beside = witness(server)
        stuck = crash.submit(server, crash.FOREVER, timeout=5)
        crash.read_until(server, stuck, "up")
        while not (found := [p for p in paused(server) if p != beside[1]]):
            crash.status(server, stuck)
        os.kill(found[0], signal.SIGSTOP)
        found = crash.wait_end(server, stuck)
        assert found["exit_reason"] == "server_fault", found
        assert server.client.get(f"/logs/{stuck}").json()["stdout"] == "up\n"
        assert_undisturbed(server, *beside)


STUCK = """\
[rate_limit]
enabled = false
[pool]
ready = 2
drain_seconds = 1
watchdog_seconds = 3
[interpreters.python3]
command = ["python3"]
extensions = [".py"]
mode = "fork"
"""


@pytest.fixture(name="watched", scope="module")
def make_watched():
    """A server that loses patience soon."""
    with servers.running(STUCK) as server:
        yield server


def test_an_http_and_a_standby_that_say_nothing_are_replaced(watched):
    """Nothing told them from those that have nothing to do: clients waited for ever."""
    beside = witness(watched)
    stopped = servers.standby_of(watched.process.pid), crash.http_of(watched)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    crash.reconnect(watched)
    health = again(watched, "/health")
    assert health["http_restarts"] >= 1
    assert health["http_last_end"].startswith(("it said nothing for ", "exit status -9"))
    assert crash.http_of(watched) not in stopped
    assert any("http is ended: it said nothing for " in line for line in watched.log)
    assert_undisturbed(watched, *beside)


def test_a_spawner_that_says_nothing_is_replaced(watched):
    """Its orders timed out one by one, and it stayed."""
    beside = witness(watched)
    os.kill(crash.spawner_of(watched), signal.SIGSTOP)
    use_up(watched)
    assert watched.python("print('ran')")["stdout"] == "ran\n"
    assert_undisturbed(watched, *beside)


def test_what_a_killed_spawner_leaves_is_collected(watched):
    """Its template, and what it had started to ask for its version, stayed as zombies."""
    for _ in range(2):
        use_up(watched)
        os.kill(crash.spawner_of(watched), signal.SIGKILL)
        assert watched.python("print('ran')")["stdout"] == "ran\n"
    left = None
    while left != set():
        found = zombies(watched)
        left = found if left is None else left & found  # others come and go with each job
        watched.client.get("/health")


def again(server, path):
    """The answer, once there is somebody who gives it."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            return server.client.get(path).json()
        assert server.process.poll() is None, server.log


def zombies(server):
    """Children of the supervisor that have ended and that it has not collected."""
    found = set()
    for pid in servers.descendants(server.process.pid):
        with contextlib.suppress(OSError):
            _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            if fields.split()[:2] == ["Z", str(server.process.pid)]:
                found.add(pid)
    return found


# ── any order ────────────────────────────────────────────────────────────────

BIG = 30_000  # times 16 bytes: large enough for a kill to come in between
KINDS = (
    # (code with its token, how it may end by itself)
    ("print('{}')", "exited"),
    ("print('{}', flush=True)\nimport time\ntime.sleep(0.3)", "exited"),
    (f"open('o', 'w').write('{{}}' * {BIG})\nprint('{{}}')", "exited"),
    ("print('{}', flush=True)\nimport signal\nsignal.pause()", "cancelled"),
    ("print('{}', flush=True)\nimport os\nos.fork()\nimport signal\nsignal.pause()", "cancelled"),
)
STEPS = 60
MOST_S = 20.0  # no more steps after that, on a slow machine


class Schedule:
    """Random events, from a seed, and what must be true at the end."""

    def __init__(self, server, control, seed):
        self.server, self.control = server, control
        self.chance = random.Random(seed)  # noqa: S311
        self.jobs = {}  # id -> (token, code)
        self.deleted = set()

    def again(self, request):
        """A request that a kill cut off is sent once more, as a client would.

        Without http and without a process to be had, it waits: then that fault is over.
        """
        while True:
            try:
                return request()
            except httpx.TransportError:
                if {("EAGAIN", "start"), ("EMFILE", "watch")} & set(self.control.faults):
                    self.plenty()
                self.server.client.close()
                self.server.client = httpx.Client(base_url=self.server.url, timeout=15)

    def submit(self):
        token = f"{self.chance.randrange(1 << 64):016x}"
        code = self.chance.choice(KINDS)[0].replace("{}", token)
        reply = self.post(token, code)
        if reply.status_code == 200:
            self.jobs[reply.json()["job_id"]] = (token, code)
        else:
            assert reply.status_code == 503, reply.text
            assert reply.headers["retry-after"]

    def post(self, token, code):
        """The same token is the same request: of every three, one is an archive to unpack."""
        request = {"json": {"code": code}}
        if int(token, 16) % 3 == 0:
            files = {f"data/{n}": token for n in range(100)} | {"main.py": code}
            request = {"files": {"files": servers.tar_of(files)}}
        headers = {"Idempotency-Key": token}
        return self.again(lambda: self.server.client.post("/submit", headers=headers, **request))

    def submit_again(self):
        """The same request twice is the same job."""
        if self.jobs:
            job, (token, code) = self.chance.choice(list(self.jobs.items()))
            reply = self.post(token, code)
            assert reply.status_code == 503 or reply.json()["job_id"] == job, reply.text

    def cancel(self):
        if self.jobs:
            job = self.chance.choice(list(self.jobs))
            self.again(lambda: self.server.client.post(f"/jobs/{job}/cancel"))

    def delete(self):
        if self.jobs:
            job = self.chance.choice(list(self.jobs))
            self.again(lambda: self.server.client.delete(f"/jobs/{job}"))
            self.deleted.add(job)
            del self.jobs[job]

    def vanish(self):
        """A client that hangs up in the middle of its request, or before the answer."""
        host, port = self.server.url.removeprefix("http://").split(":")
        body = json.dumps({"code": "print(1)"}).encode()
        head = f"POST /run HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        data = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as sock:
            sock.sendall(data[: self.chance.randrange(1, len(data) + 1)])

    def scarcity(self):
        self.control.faults = [self.chance.choice([*scarce.FAULTS, ("low", "memory")])]

    def plenty(self):
        self.control.faults = []

    def kill(self, found, number=signal.SIGKILL):
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(found), number)

    def kill_zygote(self):
        """Any but the witness's."""
        self.kill([pid for pid in crash.zygotes_of(self.server) if pid != self.beside[1]])

    def kill_one_of_ours(self):
        """http, its standby, a spawner, a template or whatever else there is of ours."""
        spared = {self.beside[1], *servers.descendants(self.beside[1])}
        self.kill([p for p in servers.descendants(self.server.process.pid) if p not in spared])

    def kill_http(self):
        self.kill([servers.http_of(self.server.process.pid)] if self.control.faults == [] else [])

    def upgrade(self):
        os.kill(self.server.process.pid, signal.SIGUSR2)

    def stop_and_go(self):
        os.kill(self.server.process.pid, signal.SIGSTOP)
        self.kill_zygote()
        os.kill(self.server.process.pid, signal.SIGCONT)

    ACTIONS = (
        *(submit,) * 7, cancel, cancel, delete, submit_again, vanish, vanish, scarcity, plenty,
        kill_zygote, kill_zygote, kill_one_of_ours, kill_http, upgrade, stop_and_go,
    )  # fmt: skip

    def run(self):
        self.beside = witness(self.server)
        self.server.client.timeout = 15
        until_s = time.monotonic() + MOST_S
        for _ in range(int(os.environ.get("SANDRUN_STEPS", STEPS))):
            self.chance.choice(self.ACTIONS)(self)
            if time.monotonic() > until_s:
                break
        self.plenty()

    def judge(self):
        """Each job ended once, in a state that explains itself; nothing else has happened."""
        for job, (token, code) in self.jobs.items():
            by_itself = next(end for text, end in KINDS if text.replace("{}", token) == code)
            if by_itself == "cancelled":
                self.again(lambda job=job: self.server.client.post(f"/jobs/{job}/cancel"))
            found = self.again(lambda job=job: crash.wait_end(self.server, job))
            # "signaled": what was killed was the job's own process.
            reasons = ("exited", "cancelled", "server_fault", "signaled")
            assert found["exit_reason"] in reasons, found
            again = self.again(lambda job=job: crash.status(self.server, job))
            assert again["exit_reason"] == found["exit_reason"]
            text = self.again(lambda job=job: self.server.client.get(f"/logs/{job}").json())
            assert text["stdout"] in ("", f"{token}\n"), (text, token)  # never run twice
            if found["exit_reason"] == "exited":
                assert text["stdout"] == f"{token}\n"
                self.judge_outputs(job, token, code)
        for job in self.deleted:
            gone = self.again(lambda job=job: self.server.client.get(f"/status/{job}"))
            assert gone.status_code == 404
        self.again(lambda: self.server.client.get("/health"))
        crash.reconnect(self.server)
        assert_undisturbed(self.server, *self.beside)
        assert self.server.python("print('end')")["stdout"] == "end\n"

    def judge_outputs(self, job, token, code):
        """All of it, or nothing if it wrote nothing."""
        listed = self.again(lambda: self.server.client.get(f"/outputs/{job}").json()["files"])
        assert [file["path"] for file in listed] == ["o"] * code.startswith("open")
        if listed:
            content = self.again(lambda: self.server.client.get(f"/download/{job}/o").text)
            assert content == token * BIG


def busy(server):
    system = server.client.get("/stats").json()["system"]
    return system["active_jobs"]


@pytest.mark.timeout(240)
def test_any_schedule_of_faults_ends_each_job_once_and_leaves_nothing(tmp_path):
    """The seed is in the failure's output; SANDRUN_SEED repeats it."""
    seed = int(os.environ.get("SANDRUN_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"SANDRUN_SEED={seed}")  # noqa: T201
    groups = set(servers.our_cgroups())
    with scarce_server(tmp_path) as (server, control):
        schedule = Schedule(server, control, seed)
        schedule.run()
        schedule.judge()
        while busy(server):
            pass
        pids = servers.descendants(server.process.pid)
        name = f"/sandrun-{server.process.pid}-"
    for pid in pids:
        assert not Path(f"/proc/{pid}/ns/pid").exists() or is_another(pid, server.process.pid)
    assert not [group for group in set(servers.our_cgroups()) - groups if name in group]


def is_another(pid, supervisor):
    """A number may have been given again: such a process is not of this server."""
    text = Path(f"/proc/{pid}/cmdline").read_bytes()
    return str(supervisor).encode() not in text and b"sandrun" not in text
