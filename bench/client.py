"""Keep-alive HTTP/1.1, as little as it takes. :class:`Reader` is sans-IO, the rest I/O."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections import deque
from typing import cast
from urllib.parse import SplitResult, urlsplit


class Reader:
    """Bytes → (status, head, body). Content-Length and chunked bodies."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> tuple[int, bytes, bytes] | None:
        """One response when it is whole. There is never more than one on its way."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return None
        status = int(head[9:12])
        if status == 100:
            self._buffer = rest
            return self.feed(b"")
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body = _chunks(rest)
        else:
            _, found, tail = lower.partition(b"\r\ncontent-length:")
            length = int(tail.split(b"\r\n", 1)[0]) if found else 0
            body = rest[:length] if len(rest) >= length else None
        if body is None:
            return None
        self._buffer = b""
        return status, head, body


def _chunks(data: bytes) -> bytes | None:
    body = []
    while True:
        size, end, data = data.partition(b"\r\n")
        if not end:
            return None
        length = int(size.split(b";")[0], 16)
        if len(data) < length + 2:
            return None
        if not length:
            return b"".join(body)
        body.append(data[:length])
        data = data[length + 2 :]


def request(
    parts: SplitResult, method: str, path: str, content_type: str = "", body: bytes = b""
) -> bytes:
    """One request's bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", "Accept: application/json"]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def address(parts: SplitResult) -> tuple[str, int]:
    """Host and port of a URL."""
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


class Blocking:
    """One connection, one request at a time; for latencies."""

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        self._socket = socket.create_connection(address(self.parts), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(
        self, method: str, path: str, content_type: str = "", body: bytes = b""
    ) -> tuple[int, dict]:
        """Status and the JSON body."""
        status, answer = self._ask(request(self.parts, method, path, content_type, body))
        return status, json.loads(answer or b"{}")

    def text(self, path: str) -> str:
        """The body of an answer that is no JSON."""
        return self._ask(request(self.parts, "GET", path))[1].decode()

    def _ask(self, message: bytes) -> tuple[int, bytes]:
        self._socket.sendall(message)
        reader = Reader()
        while (found := reader.feed(self._receive())) is None:
            pass
        return found[0], found[2]

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Connection(asyncio.Protocol):
    """One connection for many clients' loops. ``ask`` one request at a time."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._waiter: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self.transport: asyncio.Transport
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        found = self._reader.feed(data)
        if found and self._waiter and not self._waiter.done():
            self._waiter.set_result(found)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("the server closed the connection"))

    async def ask(self, message: bytes) -> tuple[int, bytes, bytes]:
        """Send, and wait for the answer: status, head, body."""
        if self.closed:
            raise ConnectionError("the connection is closed")
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        return await self._waiter


class Connections:
    """Reused connections to one server."""

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        self._idle: deque[Connection] = deque()

    async def ask(self, message: bytes) -> tuple[int, bytes, bytes]:
        """Over an idle connection, or a new one."""
        while self._idle and self._idle[-1].closed:
            self._idle.pop()
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            answer = await connection.ask(message)
        except BaseException:
            connection.transport.abort()
            raise
        if b"connection: close" in answer[1].lower():
            connection.transport.close()
        else:
            self._idle.append(connection)
        return answer

    async def _connect(self) -> Connection:
        context = ssl.create_default_context() if self.parts.scheme == "https" else None
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, *address(self.parts), ssl=context
        )
        return connection

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in self._idle:
            connection.transport.close()
