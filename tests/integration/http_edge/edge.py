"""A server on a real socket, in the test's own loop, and a client of raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import uvloop

from sandrun.config import Http
from sandrun.http.exchange import Exchange, Response
from sandrun.http.server import Server

Handler = Callable[[Exchange], Awaitable[None]]


async def echo(exchange: Exchange) -> None:
    """Answers with method, path and body."""
    body = b""
    while piece := await exchange.read():
        body += piece
    request = exchange.request
    text = f"{request.method} {request.path} ".encode("utf-8", "surrogateescape") + body
    await exchange.respond(Response(200, text, "text/plain"))


@contextlib.asynccontextmanager
async def serving(
    handler: Handler = echo, *, tls: Any = None, kwargs: Any = None, **config: Any
) -> AsyncIterator[tuple[Server, int]]:
    """A running server and its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    port = listener.getsockname()[1]
    server = Server(handler, Http(**config), **(kwargs or {}))
    task = asyncio.create_task(server.serve([listener], tls))
    await asyncio.sleep(0)
    try:
        yield server, port
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)


class Answer(NamedTuple):
    """One parsed response."""

    status: int
    headers: dict[str, str]
    body: bytes


def parse_answers(raw: bytes, *, head: bool = False) -> list[Answer]:
    """All final and interim responses in a byte stream."""
    answers = []
    while raw:
        head_bytes, _, raw = raw.partition(b"\r\n\r\n")
        line, *fields = head_bytes.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for field in fields:
            name, _, value = field.partition(": ")
            assert name not in headers, f"two {name}"
            headers[name.lower()] = value
        body = b""
        if "content-length" in headers and not head:
            size = int(headers["content-length"])
            body, raw = raw[:size], raw[size:]
            assert len(body) == size
        elif headers.get("transfer-encoding") == "chunked" and not head:
            while True:
                size_line, _, raw = raw.partition(b"\r\n")
                size = int(size_line, 16)
                body += raw[:size]
                assert raw[size : size + 2] == b"\r\n"
                raw = raw[size + 2 :]
                if not size:
                    break
        answers.append(Answer(int(status), headers, body))
    return answers


async def talk(
    port: int, data: bytes, *, step: int = 0, shut: bool = True, tls: Any = None
) -> bytes:
    """Send ``data`` (``step`` bytes at a time), half-close, read to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(data), step or len(data) or 1):
                writer.write(data[at : at + (step or len(data))])
                await writer.drain()
                if step:
                    await asyncio.sleep(0)  # let the server see this much on its own
            if shut:
                writer.write_eof()
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := await reader.read(65536):
                received += piece
        return received
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until ``condition`` holds."""
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0)


def run(main: Awaitable[Any], *, timeout_s: float = 30.0) -> Any:
    """Run a test's coroutine on uvloop, as http does."""

    async def bounded() -> Any:
        return await asyncio.wait_for(main, timeout_s)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())
