"""Clients that are many, slow, or gone: what they cost, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import msgspec
import pytest
from fakes import FakeZygote

from sandrun.config import Config, Http, RateLimit

MIB = 1024 * 1024
PATIENCE_S = 20.0  # for what takes milliseconds on a quiet machine
BOUNDARY = b"------------------------d74496d66958873e"
PART = (
    b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b\r\n'
)
BODY = (
    PART % (b"main.py", b"print(1)")
    + PART % (b"data.bin", bytes(200_000))
    + PART % (b"project.tar", bytes(100_000))
    + b"--" + BOUNDARY + b"--\r\n"
)  # fmt: skip
HEAD = (
    b"POST /submit HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    b"Content-Type: multipart/form-data; boundary=" + BOUNDARY + b"\r\n"
)


def config(**http: object) -> Config:
    limited = msgspec.structs.replace(Http(), **http)
    return msgspec.structs.replace(Config(), http=limited, rate_limit=RateLimit())


def dial(node: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", httpx.URL(node.url).port), PATIENCE_S)


def metric(node: Any, name: str) -> int:
    text = httpx.get(f"{node.admin_url}/metrics").text
    return int(text.partition(f"\n{name} ")[2].split()[0])


def descriptors(node: Any) -> int:
    """Of http; both numbers are read between two requests on the admin listener."""
    return len(os.listdir(f"/proc/{node.process.pid}/fd"))


def settle(what: Callable[[], object], wanted: object) -> None:
    until = time.monotonic() + PATIENCE_S
    while (found := what()) != wanted:
        assert time.monotonic() < until, f"{found} and not {wanted}"


def kill(sock: socket.socket, how: str) -> None:
    """``reset``: as a host whose process was killed with unread data, ``close``: a FIN."""
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def chunked(body: bytes) -> bytes:
    pieces = [body[at : at + 30_000] for at in range(0, len(body), 30_000)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


# Bytes of the request that arrive: nothing, half a head, a head, then into each part.
STAGES = {
    "nothing": 0,
    "in the head": 40,
    "after the head": len(HEAD) + 40,
    "in a part's head": len(HEAD) + 140,
    "in a small file": BODY.index(b"print(1)") + len(HEAD) + 50,
    "in a descriptor": len(HEAD) + 150_000,
    "in an archive": len(HEAD) + 280_000,
    "before the last boundary": -len(BOUNDARY) - 12,
    "before the last byte": -3,
}


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_client_killed_at_any_stage_of_its_upload_leaves_nothing(
    start: Callable[..., Any], coding: str
) -> None:
    node = start(config())
    if coding == "length":
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    else:
        request = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY)
    node.client.get("/stats")
    metric(node, "sandrun_upload_bytes")
    before = descriptors(node), metric(node, "sandrun_connections")
    for stage, end in STAGES.items():
        for how in ("reset", "close"):
            sock = dial(node)
            sock.sendall(request[:end] if end else b"")
            if "in a d" in stage or "archive" in stage:  # it is held while it comes
                settle(lambda: metric(node, "sandrun_upload_bytes") > 100_000, wanted=True)
            kill(sock, how)
            settle(lambda: metric(node, "sandrun_upload_bytes"), 0)
            settle(lambda: (descriptors(node), metric(node, "sandrun_connections")), before)
            quota = node.client.get("/stats").json()["your_quota"]
            assert (quota["active_jobs"], quota["jobs_this_hour"]) == (0, 0), (stage, how)
    assert node.pool.dispatched == []


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_client_killed_behind_its_upload_has_its_job(start: Callable[..., Any], how: str) -> None:
    """The last byte was sent: the job is accepted, counts, and can be had by its key."""
    node = start(config())
    key = {"Idempotency-Key": "k"}
    sock = dial(node)
    lines = b"Idempotency-Key: k\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    sock.sendall(HEAD + lines + BODY)
    settle(lambda: node.client.get("/upload", headers=key).text.count("accepted"), 1)
    kill(sock, how)
    job = node.client.post("/submit", json={}, headers=key).json()["job_id"]
    settle(lambda: node.client.get(f"/status/{job}").json()["status"], "completed")
    assert node.client.get("/stats").json()["your_quota"]["jobs_this_hour"] == 1
    assert len(node.pool.dispatched) == 1


def bulky(zygote: FakeZygote) -> None:
    zygote.start()
    zygote.end(outputs={"big.bin": os.urandom(8 * MIB), "small": b"1"})


DOWNLOADS = {
    "tar": "/download/{}?format=tar",
    "tar.gz": "/download/{}",
    "zip": "/download/{}?format=zip",
    "file": "/download/{}/big.bin",
}


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_a_client_killed_at_any_stage_of_its_download_deletes_nothing_and_leaves_nothing(
    start: Callable[..., Any], kind: str
) -> None:
    node = start(script=bulky)
    job = node.run().json()["job_id"]
    target = DOWNLOADS[kind].format(job)
    whole = len(node.client.get(f"{target}{'&' if '?' in target else '?'}keep=1").content)
    assert whole > 8 * MIB - 1
    metric(node, "sandrun_connections")
    before = descriptors(node), metric(node, "sandrun_connections")
    for amount in (0, 1, 100, 70_000, 3 * MIB, whole - 1000):
        for how in ("reset", "close"):
            sock = dial(node)
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            left = amount
            while left > 0 and (piece := sock.recv(min(left, 65536))):
                left -= len(piece)
            kill(sock, how)
            settle(lambda: (descriptors(node), metric(node, "sandrun_connections")), before)
            assert node.client.get(f"/status/{job}").status_code == 200, (amount, how)
    assert len(node.client.get(target).content) == whole
    if kind != "file":
        settle(lambda: node.client.get(f"/status/{job}").status_code, 404)


# ── slow ones ────────────────────────────────────────────────────────────────

ATTACKS = {
    "slow head": ("-H",),
    "slow body": ("-B", "-t", "POST"),
    "slow read": ("-X", "-w", "1", "-y", "2", "-n", "1", "-z", "1", "-k", "3"),
    "ranges": ("-R",),
}


@pytest.mark.skipif(not shutil.which("slowhttptest"), reason="slowhttptest is not installed")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_slow_client_attack_is_cut_off_while_others_are_served(
    start: Callable[..., Any], attack: str
) -> None:
    node = start(
        config(head_timeout_s=1.0, idle_timeout_s=1.0, write_timeout_s=1.0, body_min_rate_kb=64),
        script=bulky,
    )
    job = node.run().json()["job_id"]
    path = {"slow body": "/submit", "slow head": "/stats"}.get(attack, f"/download/{job}/big.bin")
    argv = ["slowhttptest", *ATTACKS[attack], "-c", "150", "-r", "150", "-i", "1", "-l", "4"]
    held = metric(node, "sandrun_connections")
    with subprocess.Popen(
        [*argv, "-u", node.url + path, "-p", "1"], stdout=subprocess.DEVNULL, cwd="/tmp"
    ) as process:
        served = 0
        while process.poll() is None:
            assert httpx.get(f"{node.url}/stats", timeout=PATIENCE_S).status_code == 200
            served += 1
        assert served > 1
    settle(lambda: metric(node, "sandrun_connections") <= held, wanted=True)
    assert node.client.get("/stats").json()["your_quota"]["active_jobs"] == 0
    if attack == "slow head":
        text = httpx.get(f"{node.admin_url}/metrics").text
        assert int(re.search(r'code="head_too_slow"} (\d+)', text)[1]) > 0


# ── many ─────────────────────────────────────────────────────────────────────

IDLE, FOLLOWERS = 10_000, 2_000
# Measured 3 and 26 KiB (Python 3.11); the target for a follower is 64 KiB.
MAX_IDLE_BYTES, MAX_FOLLOWER_BYTES = 8 * 1024, 64 * 1024


@pytest.fixture(name="room")
def make_room() -> Iterator[int]:
    """Connections that this process and http can hold, each of them one end of each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield max(0, hard - 1500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect_all(node: Any, stack: ExitStack, count: int, request: bytes) -> list[socket.socket]:
    socks = []
    for _ in range(count):
        sock = stack.enter_context(dial(node))
        sock.sendall(request)
        socks.append(sock)
        assert sock.recv(12, socket.MSG_PEEK) in (b"HTTP/1.1 200", b"HTTP/1.1 101")
    return socks


def test_ten_thousand_idle_connections_cost_little(start: Callable[..., Any], room: int) -> None:
    count = min(IDLE, room)
    node = start(config(max_connections_per_address=20_000, idle_timeout_s=600.0))
    metric(node, "sandrun_connections")
    before = metric(node, "sandrun_http_resident_bytes")
    with ExitStack() as stack:
        request = b"GET /environments HTTP/1.1\r\nHost: a\r\n\r\n"
        socks = connect_all(node, stack, count, request)
        assert metric(node, "sandrun_idle_connections") >= count
        each = (metric(node, "sandrun_http_resident_bytes") - before) / count
        assert each <= MAX_IDLE_BYTES, f"{each:.0f} bytes for each of {count} idle connections"
        socks[0].sendall(request)  # and the oldest is still served
        assert socks[0].recv(1 << 16).startswith(b"HTTP/1.1 200")
    settle(lambda: metric(node, "sandrun_connections") < 10, wanted=True)


def test_two_thousand_followers_of_one_log_each_see_it_all(
    start: Callable[..., Any], room: int
) -> None:
    count = min(FOLLOWERS, room)
    node = start(
        config(max_connections_per_address=20_000), script=lambda zygote: zygote.start()
    )
    job = node.submit()["job_id"]
    metric(node, "sandrun_connections")
    before = metric(node, "sandrun_http_resident_bytes")
    upgrade = (
        f"GET /ws/{job} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    lines = [b"line %d %b\n" % (number, b"x" * 100) for number in range(20)]
    with ExitStack() as stack:
        socks = connect_all(node, stack, count, upgrade)
        assert metric(node, "sandrun_websockets") == count
        (zygote,) = node.pool.dispatched
        for line in lines:
            node.pool.call(lambda line=line: zygote.write(line))
        node.pool.call(zygote.end)
        settle(lambda: node.client.get(f"/status/{job}").json()["status"], "completed")
        grown = metric(node, "sandrun_http_resident_bytes") - before
        assert grown / count <= MAX_FOLLOWER_BYTES, f"{grown / count:.0f} bytes per follower"
        for sock in socks:
            assert said(sock) == b"".join(lines).decode()
    settle(lambda: metric(node, "sandrun_websockets"), 0)


def said(sock: socket.socket) -> str:
    """Everything that a follower is told, up to the close frame."""
    raw = b""
    while b'"event":"end"' not in raw:
        piece = sock.recv(65536)
        assert piece
        raw += piece
    raw = raw.partition(b"\r\n\r\n")[2]
    found = ""
    while raw:
        size, skip = raw[1], 2
        if size == 126:
            size, skip = int.from_bytes(raw[2:4], "big"), 4
        if raw[0] & 15 == 1:
            found += json.loads(raw[skip : skip + size]).get("data", "")
        raw = raw[skip + size :]
    return found
