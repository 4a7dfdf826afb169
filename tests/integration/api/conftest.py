"""The real http process, in a process of its own, with the fake pool at its other end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import msgspec
import pytest
from fakes import FakePool

from sandrun.channel import pair
from sandrun.config import Config, RateLimit

UNLIMITED = RateLimit(enabled=False)


@dataclass
class Node:
    """One running http process and what it believes to be a pool."""

    process: subprocess.Popen[bytes]
    pool: FakePool
    url: str
    admin_url: str
    client: httpx.Client

    def run(self, text: str = "hello", **more: object) -> httpx.Response:
        return self.client.post("/run", json={"code": text, **more})

    def submit(self, text: str = "hello", **more: object) -> dict[str, object]:
        reply = self.client.post("/submit", json={"code": text, **more})
        assert reply.status_code == 200, reply.text
        found: dict[str, object] = reply.json()
        return found


def memory_fd(data: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


def seccomp_filter() -> bytes:
    from sandrun.pool.seccomp import http_program  # noqa: PLC0415  # the supervisor's part

    return http_program()


@pytest.fixture(name="start")
def make_start() -> Iterator[Callable[..., Node]]:
    """Starts nodes and ends them after the test."""
    nodes: list[Node] = []

    def start(config: Config | None = None, **pool_options: object) -> Node:
        config = config or msgspec.structs.replace(Config(), rate_limit=UNLIMITED)
        ours, theirs = pair()
        public, admin = listener(), listener()
        config_fd, filter_fd = (
            memory_fd(msgspec.msgpack.encode(config)),
            memory_fd(seccomp_filter()),
        )
        fds = (theirs.fileno(), public.fileno(), admin.fileno(), config_fd, filter_fd)
        names = ("--control", "--listen", "--admin", "--config", "--filter")
        argv = [sys.executable, "-m", "sandrun.http"]
        for name, fd in zip(names, fds, strict=True):
            argv += [name, str(fd)]
        argv += ["--uid", "64999"] if os.geteuid() == 0 else []
        process = subprocess.Popen(argv, pass_fds=fds)
        urls = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in (public, admin)]
        for sock in (theirs, public, admin):
            sock.close()
        os.close(config_fd)
        os.close(filter_fd)
        pool = FakePool(ours, **pool_options).start()  # type: ignore[arg-type]
        client = httpx.Client(base_url=urls[0], timeout=20)
        node = Node(process, pool, urls[0], urls[1], client)
        nodes.append(node)
        assert pool.http_ready.wait(20), "http did not say Ready"
        return node

    yield start
    for node in nodes:
        node.client.close()
        if node.process.poll() is None:
            node.process.kill()
        node.process.wait(10)
        node.pool.stop()


@pytest.fixture(name="node")
def make_node(start: Callable[..., Node]) -> Node:
    """A node with the defaults and no quota."""
    return start()
