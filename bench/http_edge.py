"""The HTTP edge against its baselines, measured in one run.

    python bench/http_edge.py

* a constant on GET: requests a second and CPU per request, against uvicorn with h11
  on uvloop (needs ``uvicorn`` and ``wrk``);
* an upload of 100 MB into a memory descriptor, against a plain asyncio protocol;
* memory of idle keep-alive connections and of open WebSockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from sandrun.config import Http
from sandrun.http.exchange import Exchange, Response
from sandrun.http.server import Server

BODY = b'{"status":"ok"}'
UPLOAD = 100 * 1024 * 1024
GET = b"GET /status/job_x HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TICKS = os.sysconf("SC_CLK_TCK")


async def handler(exchange: Exchange) -> None:
    """Three routes."""
    path = exchange.request.path
    if path == "/upload":
        fd = os.memfd_create("upload")
        while piece := await exchange.read():
            os.write(fd, piece)
        os.close(fd)
    elif path == "/ws":
        ws = await exchange.websocket()
        while await ws.receive() is not None:
            pass
        return
    await exchange.respond(Response(200, BODY))


async def uvicorn_app(_scope: object, _receive: object, send) -> None:
    """The same constant as an ASGI application."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


class Plain(asyncio.Protocol):
    """Copies what comes into a memory descriptor."""

    def connection_made(self, transport) -> None:
        self.transport, self.fd, self.size = transport, os.memfd_create("plain"), 0

    def data_received(self, data: bytes) -> None:
        self.size += os.write(self.fd, data)
        if self.size >= UPLOAD:
            os.close(self.fd)
            self.transport.write(BODY)
            self.transport.close()


async def serve(kind: str, port: int) -> None:
    """One server in this process."""
    if kind == "plain":
        server = await asyncio.get_running_loop().create_server(Plain, "127.0.0.1", port)
        await server.serve_forever()
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    await Server(handler, Http(max_connections_per_address=20_000)).serve([listener])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_bytes(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


@contextlib.contextmanager
def running(command: list[str], port: int):
    """A server process that accepts."""
    with subprocess.Popen(command) as process:
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield process.pid
        finally:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def own(kind: str, port: int) -> list[str]:
    return [sys.executable, __file__, kind, str(port)]


def requests(name: str, command: list[str], port: int) -> float:
    with running(command, port) as pid:
        before = cpu_seconds(pid)
        output = subprocess.run(
            ["wrk", "-t1", "-c32", "-d5", f"http://127.0.0.1:{port}/status/job_x"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        used = cpu_seconds(pid) - before
    count = int(re.search(r"(\d+) requests in", output)[1])
    print(f"{name:>12}: {count / 5:8.0f} requests/s, {used / count * 1e6:5.0f} us of CPU each")
    return count / used


def upload(port: int, head: bytes) -> float:
    piece = bytes(1024 * 1024)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        began = time.perf_counter()
        sock.sendall(head)
        for _ in range(UPLOAD // len(piece)):
            sock.sendall(piece)
        sock.recv(1000)
        return UPLOAD / 1e6 / (time.perf_counter() - began)


def uploads() -> None:
    ours, plain = free_port(), free_port()
    head = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % UPLOAD
    with running(own("ours", ours), ours), running(own("plain", plain), plain):
        pairs = [(upload(ours, head), upload(plain, b"")) for _ in range(9)]
    mine, theirs = (sorted(column)[4] for column in zip(*pairs, strict=True))
    print(f"100 MB upload: {mine:.0f} MB/s, plain protocol {theirs:.0f} MB/s: {mine / theirs:.2f}")


async def hold(port: int, count: int, request: bytes, pid: int) -> float:
    """Bytes of the server's memory for each of ``count`` connections."""
    before = rss_bytes(pid)
    writers = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        writers.append(writer)

    for _ in range(count // 100):
        await asyncio.gather(*(one() for _ in range(100)))
    used = rss_bytes(pid) - before
    for writer in writers:
        writer.close()
    return used / count


def memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name, count, request in (
        ("idle", min(10_000, hard - 100), GET),
        ("WebSocket", 2000, UPGRADE),
    ):
        port = free_port()
        with running(own("ours", port), port) as pid:
            used = asyncio.run(hold(port, count // 100 * 100, request, pid))
        print(f"{count} {name} connections: {used / 1024:.1f} KiB each")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main() -> None:
    if (
        shutil.which("wrk") is None
        or shutil.which("uvicorn", path=str(Path(sys.executable).parent)) is None
    ):
        print("requests: wrk or uvicorn is not installed, left out")
    else:
        ours, theirs = free_port(), free_port()
        uvicorn = [
            sys.executable, "-m", "uvicorn", "http_edge:uvicorn_app", "--app-dir", str(Path(__file__).parent),
            "--http", "h11", "--loop", "uvloop", "--no-access-log", "--log-level", "error",
            "--port", str(theirs),
        ]  # fmt: skip
        ratios = [
            requests("sandrun", own("ours", ours), ours) / requests("uvicorn+h11", uvicorn, theirs)
            for _ in range(3)
        ]
        print(f"requests per CPU second, ratio: {sorted(ratios)[1]:.2f}")
    uploads()
    memory()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(sys.argv[1], int(sys.argv[2])))
    else:
        main()
