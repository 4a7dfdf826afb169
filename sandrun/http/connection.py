"""One HTTP/1.1 connection, server side: bytes in, events out. Sans-IO.

h11 parses the heads and writes streamed answers. Everything it is fed has been
through :mod:`sandrun.http.framing`, a head at a time: it never sees bodies, which
are counted or taken apart here, so it cannot disagree with the check about where
the next request begins. Each request gets a fresh h11, and an idle connection has
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from http import HTTPStatus
from typing import Final

import h11

from sandrun.errors import RequestError
from sandrun.http.framing import ChunkedBody, Framing, check_head, find_head, refuse

REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

Headers = list[tuple[bytes, bytes]]


class State(Enum):
    """Where in the cycle of one request the receiving side is."""

    HEAD = auto()  # waiting for a request, or in the middle of its head
    BODY = auto()
    DONE = auto()  # the request is complete; what else arrives is the next one's
    BROKEN = auto()  # refused or upgraded: nothing more is parsed


class RequestHead:
    """A request line and its fields, checked."""

    __slots__ = ("expects_continue", "fields", "http_version", "length", "method", "target")

    def __init__(self, event: h11.Request, framing: Framing) -> None:
        self.method = event.method.decode()
        self.target: bytes = event.target
        self.fields: Sequence[tuple[bytes, bytes]] = tuple(event.headers)
        self.http_version = event.http_version.decode()
        self.length = framing.length
        self.expects_continue = framing.expects_continue


class Connection:
    """Owns no socket. ``max_body`` is the largest Content-Length any route takes."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_fresh",
        "_h11",
        "_is_head",
        "_keep_alive",
        "_left",
        "_max_body",
        "_may_skip_line",
        "_searched",
        "_whole",
        "state",
    )

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._buffer = bytearray()
        self._fresh = b""  # received behind ``_buffer``: handed out as it came, if that can be
        self._searched = 0
        self._may_skip_line = True
        self._h11: h11.Connection | None = None
        self._chunked: ChunkedBody | None = None
        self._is_head = False
        self._keep_alive = True  # as far as the client's request goes
        self._whole = False  # the answer was written by send_whole
        self._left = 0  # bytes of a body with Content-Length not yet seen
        self.state = State.HEAD

    # ── receiving ──

    @property
    def buffered(self) -> int:
        """Bytes received and not yet given out."""
        return len(self._buffer) + len(self._fresh)

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer. What they mean comes out of the ``next_*`` methods."""
        if self._fresh or self._buffer:
            self._settle()
            self._buffer += data
        else:
            self._fresh = data

    def _settle(self) -> bytearray:
        """Everything in one buffer."""
        if self._fresh:
            self._buffer += self._fresh
            self._fresh = b""
        return self._buffer

    def next_request(self) -> RequestHead | None:
        """The next request, or None if its head is not complete.

        Raises :class:`RequestError`; the connection must then be closed behind the
        answer, for nobody knows where the next request begins.
        """
        if self.state is not State.HEAD:
            return None
        buffer = self._settle()
        # RFC 9112 2.2: one empty line before a request, from clients that end a
        # body with a line break too many.
        if self._may_skip_line and buffer[:2] == b"\r\n":
            del buffer[:2]
            self._may_skip_line = False
        if not buffer or (self._may_skip_line and buffer == b"\r"):
            return None
        try:
            size = find_head(buffer, self._searched)
            if size < 0:
                self._searched = len(buffer)
                return None
            head = bytes(buffer[:size])
            del buffer[:size]
            self._searched = 0
            return self._parse(head)
        except RequestError:
            self.state = State.BROKEN
            raise

    def _parse(self, head: bytes) -> RequestHead:
        framing = check_head(head, self._max_body)
        self._h11 = h11.Connection(h11.SERVER)
        self._h11.receive_data(head)
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            refuse(400, "bad_head", str(error))
        if not isinstance(event, h11.Request):
            refuse(400, "bad_head", "this is not a request")
        self._is_head = event.method == b"HEAD"
        self._keep_alive = framing.keep_alive
        self._chunked = ChunkedBody() if framing.length is None else None
        self._left = framing.length or 0
        self.state = State.DONE if framing.length == 0 else State.BODY
        return RequestHead(event, framing)

    def next_body(self) -> bytes:
        """The next piece of body; ``b""`` if it is over (see ``state``) or not there yet.

        Raises :class:`RequestError` for malformed chunks.
        """
        if self.state is not State.BODY:
            return b""
        if self._chunked is None:
            return self._cut()
        try:
            piece = self._chunked.take(self._settle())
        except RequestError:
            self.state = State.BROKEN
            raise
        if self._chunked.ended:
            self.state = State.DONE
        return piece

    def _cut(self) -> bytes:
        """Of a body with a Content-Length: all that is here."""
        if self._fresh and not self._buffer and len(self._fresh) <= self._left:
            piece, self._fresh = self._fresh, b""  # the usual case of a large upload: no copy
        else:
            buffer = self._settle()
            piece = bytes(buffer[: self._left])
            del buffer[: self._left]
        self._left -= len(piece)
        if not self._left:
            self.state = State.DONE
        return piece

    # ── sending ──

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow this answer as things stand."""
        return self.state is State.DONE and self._keep_alive

    def send_upgrade(self, headers: Headers) -> bytes:
        """101 Switching Protocols. What the peer sent early is then in :meth:`take_rest`."""
        self.state = State.BROKEN
        return whole_head(101, headers)

    def take_rest(self) -> bytes:
        """All bytes received and not given out."""
        rest = bytes(self._settle())
        self._buffer.clear()
        return rest

    def send_head(self, status: int, headers: Headers) -> bytes:
        """The head of a streamed answer.

        With Content-Length in ``headers`` the body has that length, without it the
        body is chunked (or lasts until the end for HTTP/1.0). Raises
        :class:`h11.LocalProtocolError` for a field that cannot be sent.
        """
        assert self._h11 is not None
        response = h11.Response(
            status_code=status, headers=headers, reason=REASONS.get(status, b"")
        )
        return self._h11.send(response) or b""

    def send_data(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Pieces to write for this piece of body; ``data`` itself is one of them."""
        assert self._h11 is not None
        event = h11.Data(data=data)  # type: ignore[arg-type]
        return self._h11.send_with_data_passthrough(event) or []  # type: ignore[return-value]

    def send_end(self) -> bytes:
        """End of the body. Raises :class:`h11.LocalProtocolError` if it is too short."""
        assert self._h11 is not None
        return self._h11.send(h11.EndOfMessage()) or b""

    def send_whole(self, status: int, headers: Headers, body: bytes) -> list[bytes | memoryview]:
        """A whole answer at once; ``headers`` has its Content-Length, if it has one.

        Written here and not by h11: its state machine guards a stream of events
        against mistakes that a single write cannot make, and costs as much again as
        parsing the request did (35 of 150 µs). The fields must have been checked.
        """
        self._whole = True
        head = whole_head(status, headers)
        return [head, body] if body and not self._is_head else [head]

    def refuse(self, status: int, headers: Headers, body: bytes) -> bytes:
        """A whole answer to something that is no valid request. Nothing is parsed after it."""
        self.state = State.BROKEN
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        return b"".join(self.send_whole(status, headers, body))

    @property
    def can_cycle(self) -> bool:
        """Whether, request and answer being complete, another request may follow."""
        if not self.keeps_alive:
            return False
        return self._whole or (self._h11 is not None and self._h11.our_state is h11.DONE)

    def next_cycle(self) -> bool:
        """Be ready for the next request; False if the connection must close."""
        if not self.can_cycle:
            return False
        self._h11 = None
        self._whole = self._is_head = False
        self._may_skip_line = True
        self.state = State.HEAD
        return True


def whole_head(status: int, headers: Headers) -> bytes:
    """Status line, fields and blank line."""
    line = b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b""))
    return b"".join((line, *(b"%b: %b\r\n" % field for field in headers), b"\r\n"))
