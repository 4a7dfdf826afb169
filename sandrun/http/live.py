"""The real :class:`Exchange` and :class:`WebSocket`, on top of one :class:`Peer`. I/O.

Runs as nobody. What each method promises is written in ``exchange.py``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from sandrun.errors import RequestError
from sandrun.http import websocket as protocol
from sandrun.http.answer import Fields, compress, fields_of
from sandrun.http.connection import CONTINUE, State
from sandrun.http.exchange import ClientGone, Request, Response
from sandrun.http.framing import too_large

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandrun.http.connection import RequestHead
    from sandrun.http.peer import Peer

BODILESS: Final = frozenset((204, 304))
DELIVERY_WAIT_S: Final = 5.0
DELIVERY_GRACE_S: Final = 0.1  # a client that dies with our bytes unread resets in that time
DELIVERY_CHECK_S: Final = (0.001, 0.05)  # first, longest
SOCKET_HIGH: Final = 32 * 1024  # of a WebSocket: there may be thousands of followers
SOCKET_LOW: Final = 8 * 1024


class LiveExchange:
    """One request of a :class:`Peer`."""

    def __init__(self, peer: Peer, request: Request, head: RequestHead) -> None:
        self.request = request
        self.body_limit = peer.server.max_body
        self.content_length = head.length
        self.started = False
        self.finished = False
        self._peer = peer
        self._connection = peer.connection
        self._expects_continue = head.expects_continue
        self.received = 0
        self._left: int | None = None  # bytes of the answer still to write, if it has a length
        self._bodiless = request.method == "HEAD"

    @property
    def gone(self) -> asyncio.Future[None]:
        """See :class:`Exchange`."""
        return self._peer.gone

    @property
    def silent(self) -> asyncio.Future[None]:
        """See :class:`Exchange`."""
        return self._peer.silent

    # ── the request's body ──

    async def read(self) -> bytes:
        """See :class:`Exchange`."""
        connection = self._connection
        length = self.content_length
        if length is not None and length > self.body_limit:
            raise too_large(self.body_limit, length)
        while True:
            piece = connection.next_body()
            if piece:
                self.received += len(piece)
                if self.received > self.body_limit:
                    raise too_large(self.body_limit)
                return piece
            if connection.state is not State.BODY:
                return b""
            if self._expects_continue and not self.received:
                self._expects_continue = False
                self._peer.write(CONTINUE)
            await self._peer.wait_body(self.received)

    def _skip_body(self) -> None:
        """Drop the rest of a body that nobody reads, if it is already here."""
        try:
            while self._connection.next_body():
                pass
        except RequestError:
            pass  # the state is BROKEN now: the connection will close

    # ── the answer ──

    async def respond(self, response: Response) -> None:
        """See :class:`Exchange`."""
        bodiless = response.status in BODILESS
        if bodiless:
            fields, body = fields_of(response.headers), b""
        else:
            fields = fields_of((*response.headers, ("Content-Type", response.content_type)))
            body = compress(response, self.request.headers, fields)
        self._begin_answer(fields, None if bodiless else len(body))
        pieces = self._connection.send_whole(response.status, fields, body)
        self.finished = True
        self._peer.write_pieces(pieces)
        await self._peer.drain()

    def _begin_answer(self, fields: Fields, length: int | None) -> None:
        """Add what only the server knows to ``fields``."""
        if self.started:
            raise RuntimeError("the exchange is already answered")
        if self._peer.closing:
            raise ClientGone
        self._skip_body()
        fields.append((b"date", self._peer.server.date()))
        if length is not None:
            fields.append((b"content-length", b"%d" % length))
        if not self._peer.keeps_alive:
            fields.append((b"connection", b"close"))
        self.started = True

    async def start(
        self, status: int, headers: Sequence[tuple[str, str]], length: int | None
    ) -> None:
        """See :class:`Exchange`."""
        self._bodiless = self._bodiless or status in BODILESS
        self._left = length
        fields = fields_of(headers)
        self._begin_answer(fields, None if status in BODILESS else length)
        self._peer.write(self._connection.send_head(status, fields))
        await self._peer.drain()

    async def write(self, data: bytes | memoryview) -> None:
        """See :class:`Exchange`."""
        size = len(data)
        if self._left is not None:
            if size > self._left:
                raise ValueError(f"{size} bytes written, {self._left} left of the length given")
            self._left -= size
        if self._peer.closing:
            raise ClientGone
        if not size or self._bodiless:
            return
        self._peer.write_pieces(self._connection.send_data(data))
        await self._peer.drain()

    async def finish(self) -> None:
        """See :class:`Exchange`."""
        if self.finished:
            return
        if self._left and not self._bodiless:
            raise ValueError(f"{self._left} bytes of the length given are missing")
        end = self._connection.send_end()
        self.finished = True
        if end:
            self._peer.write(end)
        await self._peer.drain()

    async def delivered(self) -> bool:
        """See :class:`Exchange`."""
        peer = self._peer
        if self.request.via_proxy or not self.finished:
            return False
        if not self._connection.can_cycle:
            peer.shut_writing()
        delay, longest = DELIVERY_CHECK_S
        waited = 0.0
        while not peer.closing and waited < DELIVERY_WAIT_S:
            if not peer.unacknowledged():
                if not peer.ended:
                    await asyncio.wait((self.gone,), timeout=DELIVERY_GRACE_S)
                return not peer.closing
            await asyncio.wait((self.gone,), timeout=delay)
            waited += delay
            delay = min(2 * delay, longest)
        return False

    async def websocket(self, *, subprotocols: Sequence[str] = ()) -> LiveWebSocket:
        """See :class:`Exchange`."""
        if self.started:
            raise RuntimeError("the exchange is already answered")
        accepted = protocol.check_handshake(self.request, subprotocols)
        if self._connection.state is not State.DONE:
            raise RequestError(400, "bad_handshake", "a WebSocket handshake has no body")
        if self._peer.closing or self._peer.ended:
            raise ClientGone
        self.started = self.finished = True
        self._peer.write(self._connection.send_upgrade(accepted.headers))
        socket = LiveWebSocket(self._peer, accepted.subprotocol)
        self._peer.websocket = socket
        self._peer.limit_write_buffer(SOCKET_HIGH, SOCKET_LOW)
        rest = self._connection.take_rest()
        self._peer.resume()
        socket.begin(rest)
        return socket


class LiveWebSocket:
    """An upgraded :class:`Peer`."""

    def __init__(self, peer: Peer, subprotocol: str | None) -> None:
        self.subprotocol = subprotocol
        self._peer = peer
        self._limits = peer.server.websocket_limits
        now = peer.loop.time()
        self._protocol = protocol.WebSocketProtocol(self._limits, now)
        self._heard = now
        self._pinged = False
        self._queue: deque[protocol.Message] = deque()
        self._queued_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = peer.loop.create_future()

    def begin(self, early: bytes) -> None:
        """Start the timers, and take what the peer sent behind its handshake."""
        self._peer.set_deadline(self._heard + self._limits.ping_after_s)
        if early:
            self.feed(early)

    # ── from the peer ──

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        self._heard = self._peer.loop.time()
        if self._pinged:
            self._pinged = False
            self._peer.set_deadline(self._heard + self._limits.ping_after_s)
        for event in self._protocol.receive(data, self._heard):
            match event:
                case protocol.Message():
                    self._queue.append(event)
                    self._queued_bytes += event.size + 64
                case protocol.Reply():
                    # A peer that pings and does not read gets no pongs to pile up.
                    if not self._peer.write_blocked:
                        self._peer.write(event.data)
                case protocol.Closed():
                    self._end()
        if self._queued_bytes > self._limits.queue_bytes:
            self._peer.pause()
        self._wake()

    def peer_gone(self) -> None:
        """The connection is over."""
        self._end()

    def tick(self) -> None:
        """The deadline has passed: ping, or give up."""
        limits = self._limits
        now = self._peer.loop.time()
        quiet = now - self._heard
        if self._over.done():
            self._peer.close()
        elif quiet < limits.ping_after_s:
            self._peer.set_deadline(self._heard + limits.ping_after_s)
        elif not self._pinged:
            self._pinged = True
            if not self._peer.write_blocked:
                self._peer.write(self._protocol.send_ping())
            self._peer.set_deadline(now + limits.pong_within_s)
        else:
            self._peer.abort()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
            if not self._peer.closing:
                # The handler may wait for something else: it has so long to notice.
                self._peer.set_deadline(self._peer.loop.time() + self._limits.close_within_s)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ── for the handler ──

    async def send_text(self, text: str) -> None:
        """See :class:`WebSocket`."""
        await self._peer.drain()
        if self._over.done() or not self._protocol.is_open:
            raise ClientGone
        self._peer.write(self._protocol.send_text(text))
        await self._peer.drain()

    async def send_bytes(self, data: bytes) -> None:
        """As :meth:`send_text`, a binary message."""
        await self._peer.drain()
        if self._over.done() or not self._protocol.is_open:
            raise ClientGone
        self._peer.write(self._protocol.send_bytes(data))
        await self._peer.drain()

    async def receive(self) -> str | bytes | None:
        """See :class:`WebSocket`."""
        while not self._queue:
            if self._over.done():
                return None
            self._waiter = self._peer.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._queue.popleft()
        self._queued_bytes -= message.size + 64
        if self._queued_bytes <= self._limits.queue_bytes:
            self._peer.resume()
        return message.data

    async def close(self, code: int = protocol.NORMAL, reason: str = "") -> None:
        """See :class:`WebSocket`."""
        if not self._over.done() and not self._peer.closing:
            data = self._protocol.send_close(code, reason)
            if data:
                self._peer.write(data)
            self._peer.resume()
            await asyncio.wait((self._over,), timeout=self._limits.close_within_s)
        self._end()
