"""What is killed while a job is being installed, followed or fetched is missed by nobody."""

import contextlib
import functools
import hashlib
import io
import json
import os
import signal
import tarfile
import threading

import httpx
import pytest
import servers
import test_crash as crash
import test_package_sources as sources
import websockets
import wheels
from websockets.sync.client import connect

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")


@pytest.fixture(name="server")
def make_server():
    with servers.running() as server:
        yield server


# ── followed ─────────────────────────────────────────────────────────────────

COUNTS = "import time\nfor n in range(40):\n    print(n, flush=True)\n    time.sleep(0.05)\n"


def by_events(server, job, said):
    """An event stream, taken up again with the last id that was whole."""
    headers = {"Accept": "text/event-stream"}
    while True:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("GET", f"{server.url}/stream/{job}", headers=headers, timeout=60) as reply,
        ):
            event = {}
            for line in reply.iter_lines():
                name, _, value = line.partition(": ")
                if name:
                    event[name] = value
                    continue
                if event.get("event") == "end":
                    return
                if "id" in event:
                    headers["Last-Event-ID"] = event["id"]
                    said.append(json.loads(event["data"])["data"])
                event = {}


def by_websocket(server, job, said):
    """A WebSocket, opened again behind the last record."""
    since, url = 0, server.url.replace("http", "ws")
    while True:
        with (
            contextlib.suppress(OSError, EOFError, websockets.WebSocketException),
            connect(f"{url}/ws/{job}?since={since}", open_timeout=60) as socket,
        ):
            for text in socket:
                message = json.loads(text)
                if message.get("event") == "end":
                    return
                said.append(message["data"])
                since = message["seq"]


def test_followers_of_either_kind_hear_each_word_once_whatever_becomes_of_http(server):
    job = crash.submit(server, COUNTS)
    heard = {by_events: [], by_websocket: []}
    threads = [threading.Thread(target=how, args=(server, job, heard[how])) for how in heard]
    for thread in threads:
        thread.start()
    for word in ("5\n", "15\n", "25\n"):
        while word not in "".join(heard[by_events]):
            crash.status(server, job)
        crash.kill_http(server)
    for thread in threads:
        thread.join()
    wanted = "".join(f"{n}\n" for n in range(40))
    assert ["".join(said) for said in heard.values()] == [wanted, wanted]
    assert crash.wait_end(server, job)["exit_reason"] == "exited"


# ── fetched ──────────────────────────────────────────────────────────────────

LARGE = "import os\nopen('o.bin', 'wb').write(os.urandom(16 << 20))\n"  # no socket buffers that


def cut_off(server, path):
    """A download in whose middle http is killed: (bytes that came, headers)."""
    got = b""
    with server.client.stream("GET", path) as reply:
        pieces = reply.iter_raw()
        got += next(pieces)
        crash.kill(crash.http_of(server))
        with contextlib.suppress(httpx.TransportError):
            for piece in pieces:
                got += piece
    crash.reconnect(server)
    return got, reply.headers


def test_a_download_that_was_cut_off_goes_on_and_nothing_counts_as_delivered(server):
    job = server.python(LARGE)["job_id"]
    (file,) = server.client.get(f"/outputs/{job}").json()["files"]
    got, headers = cut_off(server, f"/download/{job}/o.bin")
    assert len(got) < file["size_bytes"]
    asked = {"Range": f"bytes={len(got)}-", "If-Range": headers["etag"]}
    rest = server.client.get(f"/download/{job}/o.bin", headers=asked)
    assert rest.status_code == 206
    assert hashlib.sha256(got + rest.content).hexdigest() == file["sha256"]
    part, _ = cut_off(server, f"/download/{job}")
    assert len(part) < file["size_bytes"]
    archive = server.client.get(f"/download/{job}")
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as members:
        data = members.extractfile("o.bin").read()
    assert hashlib.sha256(data).hexdigest() == file["sha256"]
    while server.client.get(f"/status/{job}").status_code != 404:
        pass  # it has been delivered now, and goes as soon as that is known


# ── being installed ──────────────────────────────────────────────────────────


class Holding(sources.Quiet):
    """An index that answers when it may."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.begun.release()
        self.server.may_go.wait(60)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sources.SimpleHTTPRequestHandler.do_GET(self)


@pytest.fixture(name="slow", scope="module")
def make_slow(tmp_path_factory):
    """A server with an index that answers when a test lets it: (server, index)."""
    site = tmp_path_factory.mktemp("site")
    for number in range(9):
        wheels.make(site / f"simple/p{number}", f"p{number}", "1.0")
    handler = functools.partial(Holding, directory=str(site))
    with sources.serving(handler, may_go=threading.Event()) as (index, url):
        toml = f'[packages]\nindex_url = "{url}/simple"\n{sources.OPEN}'
        with servers.running(servers.NO_RATE_LIMIT + toml) as server:
            yield server, index


def submit(server, name):
    files = {"main.py": f"import {name}\nprint({name}.VERSION)", "requirements.txt": name}
    reply = server.post("/submit", files, manifest={"requirements": "requirements.txt"})
    assert reply.status_code == 200, reply.text
    return reply.json()["job_id"]


def of_module(server, module):
    """Processes of ours that run this module."""
    return [
        pid
        for pid in servers.descendants(server.process.pid)
        if module.encode() in crash.command(pid)
    ]


def upgrade(server):
    old = os.pidfd_open(crash.http_of(server))
    server.process.send_signal(signal.SIGUSR2)
    crash.select.select([old], [], [], 60)
    os.close(old)


KILLS = {
    "http": lambda server: crash.kill(crash.http_of(server)),
    "by an upgrade": upgrade,
    "spawner": lambda server: crash.kill(crash.spawner_of(server)),
    "builder": lambda server: crash.kill(of_module(server, "sandrun.pool.builder")[0]),
    "proxy": lambda server: crash.kill(of_module(server, "sandrun.pool.proxy")[0]),
}


@pytest.mark.parametrize(("number", "how"), [*enumerate(KILLS)])
def test_a_job_whose_packages_are_being_installed_waits_for_them_and_runs_once(slow, number, how):
    server, index = slow
    index.may_go.clear()
    index.begun = threading.Semaphore(0)
    before = crash.quota(server)[1]
    job = submit(server, f"p{number}")
    assert index.begun.acquire(timeout=60)
    KILLS[how](server)
    crash.reconnect(server)
    index.may_go.set()
    found = crash.wait_end(server, job)
    assert found["exit_reason"] == "exited", found
    assert server.client.get(f"/logs/{job}").json()["stdout"] == "1.0\n"
    assert crash.quota(server) == (0, before + 1)
