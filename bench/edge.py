"""The HTTP edge of a real server against its baselines, in one run. Runs as: root.

* ``GET /status/{id}`` of an ended job against uvicorn with h11 serving a constant, both
  under ``wrk``. Requests per CPU second, because others use this machine too: a server
  of one thread that has a core to itself serves just that many in a second;
* 100 MB through ``/submit`` against a copy through a plain protocol of the same loop;
* from ``write`` in a job to a WebSocket client, on the clock that both read;
* memory of idle connections and of followers of one log, in one http process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench import node
from bench.client import Blocking
from bench.http_edge import GET, UPGRADE, cpu_seconds, free_port, rss_bytes, running
from bench.measure import descendants, median, percentile
from bench.report import Row

if TYPE_CHECKING:
    from bench.suites import Setting

CONFIG = """\
[rate_limit]
enabled = false
[http]
max_connections_per_address = 20000
idle_timeout_s = 3600
[pool]
ready = 2
"""
UPLOAD = 99 * 1024 * 1024  # with the form around it below the 100 MiB of one request
BOUNDARY = b"-" * 24 + b"d74496d66958873e"  # as curl has it
FOLLOWERS = 2000
IDLE = 10_000
LINES = 150
TICKER = f"""
import sys, time
time.sleep(1)
for _ in range({LINES}):
    time.sleep(0.01)
    sys.stdout.write(f"{{time.monotonic_ns()}}\\n")
    sys.stdout.flush()
"""


def edge(setting: Setting) -> None:
    """All of it."""
    with node.running(CONFIG) as server:
        http = http_of(server.pid)
        client = Blocking(server.url)
        _status(setting, server, client, http)
        _uploads(setting, server, client)
        _log_latency(setting, server, client)
        client.close()
    for what, count in (("idle connections", IDLE), ("followers of one log", FOLLOWERS)):
        with node.running(CONFIG) as server:  # a fresh one: freed memory would hide what is used
            _memory(setting, server, what, count)


def http_of(pid: int) -> int:
    """The process that serves; its standby has another name."""
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text().strip() == "sandrun-http":
                return child
    raise RuntimeError("no sandrun-http")


def _json(body: dict[str, str]) -> tuple[str, bytes]:
    return "application/json", json.dumps(body).encode()


# ── requests ─────────────────────────────────────────────────────────────────


def _status(setting: Setting, server: node.Node, client: Blocking, http: int) -> None:
    if not shutil.which("wrk") or not (Path(sys.executable).parent / "uvicorn").exists():
        print("GET /status: wrk or uvicorn is not installed, left out")
        return
    _, job = client.send("POST", "/run", *_json({"code": "print(1)"}))
    ours = f"{server.url}/status/{job['job_id']}"
    port = free_port()
    argv = [sys.executable, "-m", "uvicorn", "bench.http_edge:uvicorn_app", "--http", "h11"]
    argv += ["--loop", "uvloop", "--no-access-log", "--log-level", "error", "--port", str(port)]
    pairs = []
    with running(argv, port) as theirs:
        for _ in range(3 if setting.quick else 5):
            mine = _wrk(ours, http)
            pairs.append((mine, _wrk(f"http://127.0.0.1:{port}/", theirs)))
    mine, base = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(one / other for one, other in pairs)
    note = f"per CPU second; uvicorn+h11 with a constant {base:.0f}"
    setting.report.add(Row("edge", "GET /status", mine, "req/s", ratio, n=len(pairs), note=note))


def _wrk(url: str, pid: int) -> float:
    """Requests per CPU second of the server."""
    before = cpu_seconds(pid)
    argv = ["wrk", "-t1", "-c32", "-d2", url]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said, said
    return int(re.search(r"(\d+) requests in", said)[1]) / (cpu_seconds(pid) - before)


# ── uploads ──────────────────────────────────────────────────────────────────


def _uploads(setting: Setting, server: node.Node, client: Blocking) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "bench.http_edge", "plain", str(port)]
    pairs = []
    http, cpu, cpu_plain = http_of(server.pid), 0.0, 0.0
    with running(argv, port) as plain:
        for _ in range(5 if setting.quick else 9):
            before, before_plain = cpu_seconds(http), cpu_seconds(plain)
            mine = _submit(server, client)
            pairs.append((mine, _copy(port)))
            cpu += cpu_seconds(http) - before
            cpu_plain += cpu_seconds(plain) - before_plain
    mine, base = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(one / other for one, other in pairs)
    count = len(pairs)
    note = f"plain protocol {base:.0f}; {cpu / count * 1e3:.0f} and {cpu_plain / count * 1e3:.0f} ms of CPU"
    setting.report.add(Row("edge", "100 MB upload", mine, "MB/s", ratio, n=count, note=note))
    setting.report.add(
        Row("edge", "100 MB upload, CPU", cpu / count, "s", cpu_plain / cpu, n=count)
    )


def _submit(server: node.Node, client: Blocking) -> float:
    head = b"".join(
        b'--%b\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b'
        % (BOUNDARY, name, text)
        for name, text in ((b"main.py", b"pass\r\n"), (b"data.bin", b""))
    )
    tail = b"\r\n--%b--\r\n" % BOUNDARY
    size = len(head) + UPLOAD + len(tail)
    request = (
        b"POST /submit HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=%b\r\nContent-Length: %d\r\n\r\n"
        % (BOUNDARY, size)
    )
    seconds, answer = _send(urlsplit(server.url).port or 0, request + head, tail)
    job = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert client.send("DELETE", f"/jobs/{job['job_id']}")[0] == 204
    return UPLOAD / 1e6 / seconds


def _copy(port: int) -> float:
    return UPLOAD / 1e6 / _send(port, b"", bytes(1024 * 1024))[0]


def _send(port: int, head: bytes, tail: bytes) -> tuple[float, bytes]:
    piece = bytes(1024 * 1024)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        began = time.perf_counter()
        sock.sendall(head)
        for _ in range(UPLOAD // len(piece)):
            sock.sendall(piece)
        sock.sendall(tail)
        answer = sock.recv(65536)
        seconds = time.perf_counter() - began
        while more := sock.recv(65536):
            answer += more
        return seconds, answer


# ── logs ─────────────────────────────────────────────────────────────────────


def _log_latency(setting: Setting, server: node.Node, client: Blocking) -> None:
    _, job = client.send("POST", "/submit", *_json({"code": TICKER}))
    port = urlsplit(server.url).port or 0
    late = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(UPGRADE.replace(b"/ws ", f"/ws/{job['job_id']} ".encode()))
        for text, at in _frames(sock):
            for line in json.loads(text).get("data", "").split():
                late.append((at - int(line)) / 1e6)
    note = f"p90 {percentile(late, 0.9):.2f} ms"
    setting.report.add(
        Row("edge", "write to WebSocket", median(late), "ms", None, percentile(late, 0.99),
            n=len(late), note=note)
    )  # fmt: skip


def _frames(sock: socket.socket) -> Iterator[tuple[bytes, int]]:
    """Text frames of a server, and when (monotonic ns) the last byte of each was here."""
    buffer, at = b"", 0
    while b"\r\n\r\n" not in buffer:
        buffer += sock.recv(65536)
    buffer = buffer.partition(b"\r\n\r\n")[2]
    while True:
        while len(buffer) >= 4:
            size, skip = buffer[1], 2
            if size == 126:
                size, skip = int.from_bytes(buffer[2:4]), 4
            if len(buffer) < skip + size:
                break
            frame, opcode, buffer = (
                buffer[skip : skip + size],
                buffer[0] & 15,
                buffer[skip + size :],
            )
            if opcode == 8:
                return
            yield frame, at
        piece = sock.recv(65536)
        at = time.monotonic_ns()
        if not piece:
            return
        buffer += piece


# ── memory ───────────────────────────────────────────────────────────────────


def _memory(setting: Setting, server: node.Node, what: str, count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(count, hard // 2 - 200) // 100 * 100  # of the server's, half is for connections
    client = Blocking(server.url)
    code = "import time\nfor i in range(600):\n    print(i, 'x' * 200, flush=True); time.sleep(0.1)"
    _, job = client.send("POST", "/submit", *_json({"code": code}))
    request = GET.replace(b"/status/job_x", b"/environments")
    if what != "idle connections":
        request = UPGRADE.replace(b"/ws ", f"/ws/{job['job_id']} ".encode())
    port = urlsplit(server.url).port or 0
    each = asyncio.run(_hold(port, count, request, http_of(server.pid)))
    client.send("DELETE", f"/jobs/{job['job_id']}")
    client.close()
    setting.report.add(Row("edge", what, each / 1024, "KiB", n=count, note="resident, each"))


async def _hold(port: int, count: int, request: bytes, pid: int) -> float:
    """Bytes of the server's memory for each of ``count`` connections."""
    before = rss_bytes(pid)
    loop = asyncio.get_running_loop()
    socks: list[socket.socket] = []

    async def one() -> None:
        sock = socket.socket()
        socks.append(sock)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, request)
        await loop.sock_recv(sock, 4096)

    async def read_on() -> None:
        """Followers that read; each has then been sent something."""
        until = time.monotonic() + 3
        while time.monotonic() < until:
            for sock in socks:
                with contextlib.suppress(BlockingIOError):
                    sock.recv(65536)
            await asyncio.sleep(0.05)

    try:
        for _ in range(count // 100):
            await asyncio.gather(*(one() for _ in range(100)))
        await read_on()
        return (rss_bytes(pid) - before) / count
    finally:
        for sock in socks:
            sock.close()
