"""One client: its requests in order, each with a handler's coroutine. I/O.

Runs as nobody. Where a connection stands is a :class:`Phase`; what may happen next
in each is the match in :meth:`Peer.received`, ``half_closed`` and ``expired``.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum, auto
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from sandrun.errors import RequestError
from sandrun.http.answer import INTERNAL_ERROR, error_response, fields_of
from sandrun.http.connection import Connection, State
from sandrun.http.exchange import ClientGone, Headers, Request
from sandrun.http.live import LiveExchange, LiveWebSocket
from sandrun.http.target import split_target
from sandrun.http.websocket import INTERNAL_ERROR as INTERNAL
from sandrun.http.wire import Wire

if TYPE_CHECKING:
    import ssl

    from sandrun.http.connection import RequestHead
    from sandrun.http.server import Server

BUFFER_HIGH: Final = 64 * 1024  # received and not taken: above this we stop reading
LINGER_S: Final = 5.0  # so that a client in the middle of an upload sees why it was refused
LINGER_BYTES: Final = 64 * 1024 * 1024

log: Final = logging.getLogger("sandrun.http")


class Phase(Enum):
    """Where a connection stands."""

    IDLE = auto()  # between requests, or before the first byte
    HEAD = auto()  # a head has begun
    BUSY = auto()  # a handler runs
    LINGER = auto()  # answered and done; what still arrives is dropped
    OVER = auto()


class Peer(Wire):
    """One connection from accept to close."""

    def __init__(
        self,
        server: Server,
        address: str,
        *,
        tls: ssl.SSLContext | None,
        expect_proxy: bool,
    ) -> None:
        config = server.config
        super().__init__(
            server.loop,
            address,
            tls=tls,
            expect_proxy=expect_proxy,
            write_timeout_s=config.write_timeout_s,
        )
        self.server = server
        self.peer_address = address  # what the per-address cap counts
        self.connection = Connection(server.max_body)
        self.phase = Phase.IDLE
        self.websocket: LiveWebSocket | None = None
        self.task: asyncio.Task[None] | None = None
        self._body_waiter: asyncio.Future[None] | None = None
        self._body_waited_s = 0.0
        self._dropped = 0

    # ── from the wire ──

    def opened(self) -> None:
        """A peer that says nothing gets no longer than one that is slow with its head."""
        self.server.add(self)
        if self.server.draining:
            self.abort()
        self.set_deadline(self.loop.time() + self.server.config.head_timeout_s)

    def received(self, data: bytes) -> None:
        """See :class:`Wire`."""
        if self.phase is Phase.BUSY:
            if self.websocket is not None:
                self.websocket.feed(data)
                return
            self.connection.receive(data)
            # Of the next requests no more than one read is held: a handler may wait long.
            if self.connection.buffered > BUFFER_HIGH or self.connection.state is State.DONE:
                self.pause()
            self._wake_body()
        elif self.phase is Phase.LINGER:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.abort()
        elif self.phase is not Phase.OVER:
            self.connection.receive(data)
            self._advance()

    def half_closed(self) -> None:
        """See :class:`Wire`. A request that is complete still gets its answer."""
        if self.phase is not Phase.BUSY:
            self._end()
        elif self.websocket is not None:
            self.websocket.peer_gone()
            self._end()
        else:
            self._wake_body()

    def lost(self) -> None:
        """See :class:`Wire`."""
        self.phase = Phase.OVER
        self._wake_body()
        if self.websocket is not None:
            self.websocket.peer_gone()
        self.server.remove(self)

    def tls_failed(self) -> None:
        """See :class:`Wire`."""
        self.server.on_refusal("tls_failed")

    def expired(self) -> None:
        """See :class:`Wire`."""
        if self.phase is Phase.BUSY and self.websocket is not None:
            self.websocket.tick()
        elif self.phase is Phase.BUSY:
            self._body_too_slow()
        elif self.phase is Phase.HEAD:
            self._refuse(RequestError(408, "head_too_slow", "the head took too long"))
        elif self.phase is Phase.IDLE and self.unread():
            self.set_deadline(self.loop.time() + self.server.config.head_timeout_s)
        else:
            self._end()

    # ── requests ──

    def _advance(self) -> None:
        """Begin the next request if its head is here."""
        try:
            head = self.connection.next_request()
            if head is None:
                self._wait_for_head()
                return
            request = self._request(head)
        except RequestError as error:
            self._refuse(error)
            return
        self.phase = Phase.BUSY
        self._body_waited_s = 0.0
        self.set_deadline(None)
        self.server.busy(self)
        if self.connection.buffered > BUFFER_HIGH:
            self.pause()
        exchange = LiveExchange(self, request, head)
        self.task = self.loop.create_task(self._run(exchange))

    def _wait_for_head(self) -> None:
        if self.phase is Phase.IDLE and self.connection.buffered:
            self.phase = Phase.HEAD
            self.server.busy(self)
            self.set_deadline(self.loop.time() + self.server.config.head_timeout_s)
        if self.ended:
            self._end()

    def _request(self, head: RequestHead) -> Request:
        target = split_target(head.target)
        headers = Headers(head.fields)
        client = self.server.proxies.client(self.address, headers, secure=self.secure)
        return Request(
            method=head.method,
            path=target.path,
            raw_path=target.raw_path,
            raw_target=head.target,
            query=target.query,
            headers=headers,
            client=client.address,
            via_proxy=client.via_proxy or self.address != self.peer_address,
            secure=client.secure,
            http_version=head.http_version,
        )

    async def _run(self, exchange: LiveExchange) -> None:
        """One handler, whatever it does. Every way out leaves an answer or no connection."""
        try:
            try:
                await self.server.handler(exchange)
                if not exchange.started:
                    log.error("handler gave no answer to %s", exchange.request.method)
                    await exchange.respond(INTERNAL_ERROR)
            except RequestError as error:
                if not exchange.started:
                    await exchange.respond(error_response(error))
            except ClientGone:
                raise
            except Exception as error:  # noqa: BLE001  # the last line of defence: 500
                log.error("unhandled %s", describe(error))  # no content
                if not exchange.started:
                    await exchange.respond(INTERNAL_ERROR)
                elif self.websocket is not None:
                    await self.websocket.close(INTERNAL, "internal error")
            if self.websocket is not None:
                await self.websocket.close()
        except ClientGone:
            self.abort()
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception as error:  # noqa: BLE001  # not even the 500 could be sent
            log.error("unhandled %s", describe(error))
            self.abort()
        finally:
            self.task = None
            if not self.closing:
                self._next(whole=exchange.finished)

    def _next(self, *, whole: bool) -> None:
        """After an answer: the next request, or the end."""
        if self.websocket is not None:
            self._end()
        elif not whole:
            self.abort()  # the client must see that its answer is cut
        elif self.server.draining or not self.connection.next_cycle():
            self._end()
        else:
            self.phase = Phase.IDLE
            self.server.idle(self)
            self.set_deadline(self.loop.time() + self.server.config.idle_timeout_s)
            self.resume()
            if self.connection.buffered or self.ended:
                self._advance()

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no valid request, and close."""
        self.server.on_refusal(error.code)
        response = error_response(error)
        fields = fields_of(response.headers)
        fields.append((b"content-type", response.content_type.encode()))
        fields.append((b"date", self.server.date()))
        self.write(self.connection.refuse(response.status, fields, response.body))
        self._end()

    def _end(self) -> None:
        """Close, after the peer has had the chance to read our last answer.

        Bytes that reach a closed socket are answered with a reset, which may overtake
        the answer. So unless nothing is under way we shut our side, and read and drop
        what comes until the peer closes or a moment has passed. (RFC 9112 9.6)
        """
        if self.closing or self.phase is Phase.OVER:
            return
        idle = self.phase is Phase.IDLE and self.connection.state is State.HEAD
        if self.ended or idle or self.phase is Phase.LINGER:
            self.phase = Phase.OVER
            self.close()
            return
        self.phase = Phase.LINGER
        self.server.busy(self)
        self.shut_writing()
        self.resume()
        self.set_deadline(self.loop.time() + LINGER_S)

    def shut_down(self) -> None:
        """The server drains: idle connections end at once, the others after their answer."""
        if self.phase in (Phase.IDLE, Phase.HEAD) and not self.unread():
            self._end()

    # ── the body ──

    @property
    def keeps_alive(self) -> bool:
        """Whether the answer that is about to be sent may leave the connection open."""
        return not self.server.draining and self.connection.keeps_alive

    async def wait_body(self, received: int) -> None:
        """Wait for more body; ``received`` bytes of it have come.

        The client may make us wait for ``head_timeout_s`` at the beginning, and then
        as long as it needs at ``body_min_rate_kb``. Time that we spent not reading
        is not held against it. Raises :class:`ClientGone` and RequestError 408.
        """
        if self.ended or self.gone.done() or self.closing:
            raise ClientGone
        config = self.server.config
        allowed_s = config.head_timeout_s + received / (config.body_min_rate_kb * 1024)
        began = self.loop.time()
        self._body_waiter = self.loop.create_future()
        self.set_deadline(began + allowed_s - self._body_waited_s)
        self.resume()
        try:
            await self._body_waiter
        finally:
            self._body_waiter = None
            self._body_waited_s += self.loop.time() - began
            self.set_deadline(None)

    def _wake_body(self) -> None:
        if self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_result(None)

    def _body_too_slow(self) -> None:
        if self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_exception(
                RequestError(
                    408,
                    "body_too_slow",
                    f"the body must come at {self.server.config.body_min_rate_kb} KiB/s or more",
                )
            )


def describe(error: BaseException) -> str:
    """Type and place of an exception, without its text: that may quote a client."""
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{PurePath(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__} in {' > '.join(places[-4:])}"
