"""One WebSocket, server side: bytes in, events out. Sans-IO.

wsproto speaks the protocol and passes every Autobahn case, but it bounds nothing:
it takes a frame that announces an exabyte, a million empty fragments, and pings as
fast as they come, each at 15 µs of our time. :class:`FrameGate` reads the frame
headers before wsproto does and refuses at the header what is over a limit, so that
nothing is allocated for it. permessage-deflate is never offered: 200 KB of it
became one message of 200 MB (measured, 1.3.2).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
from wsproto import events
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.utilities import LocalProtocolError, generate_accept_token

from sandrun.errors import RequestError
from sandrun.http.exchange import Headers, Request

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
MAX_REASON_BYTES: Final = 123  # of a control frame's 125, two are the code
MAX_SUBPROTOCOLS: Final = 32
JOIN_PARTS: Final = 256  # pieces of a message that arrives byte by byte
_CONTROL: Final = 0x8
_FIN: Final = 0x80


class WebSocketLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer may do. The times are the server's to keep."""

    message_bytes: int = 64 * 1024
    fragments: int = 512  # of one message
    frames_per_s: float = 200.0
    frame_burst: float = 1000.0
    queue_bytes: int = 64 * 1024  # received and not taken: then we stop reading
    ping_after_s: float = 20.0  # without a byte from the peer
    pong_within_s: float = 20.0
    close_within_s: float = 3.0


class Refused(Exception):
    """The peer broke a limit. ``code`` and text go into the close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class FrameGate:
    """Follows the frame headers in a byte stream and counts. Never buffers payload."""

    def __init__(self, limits: WebSocketLimits, now: float) -> None:
        self._limits = limits
        self._header = bytearray()
        self._payload_left = 0
        self._message_bytes = 0
        self._fragments = 0
        self._allowance = limits.frame_burst
        self._counted_at = now

    def check(self, data: bytes, now: float) -> None:
        """Look at ``data`` before wsproto does. Raises :class:`Refused`."""
        at = 0
        while at < len(data):
            if self._payload_left:
                step = min(self._payload_left, len(data) - at)
                self._payload_left -= step
                at += step
                continue
            self._header.append(data[at])
            at += 1
            if len(self._header) >= 2 and len(self._header) == self._header_size():
                self._frame(now)
                self._header.clear()

    def _header_size(self) -> int:
        second = self._header[1]
        extended = {126: 2, 127: 8}.get(second & 0x7F, 0)
        return 2 + extended + (4 if second & 0x80 else 0)

    def _frame(self, now: float) -> None:
        self._count(now)
        first, second = self._header[:2]
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(self._header[2 : 4 if length == 126 else 10])
        if length >> 63:
            raise Refused(PROTOCOL_ERROR, "the first bit of a length must be 0")
        self._payload_left = length
        if first & _CONTROL:
            return  # wsproto refuses those of more than 125 bytes at the header
        self._message_bytes += length
        self._fragments += 1
        if self._message_bytes > self._limits.message_bytes:
            raise Refused(TOO_BIG, f"at most {self._limits.message_bytes} bytes per message")
        if self._fragments > self._limits.fragments:
            raise Refused(TOO_BIG, f"at most {self._limits.fragments} fragments per message")
        if first & _FIN:
            self._message_bytes = self._fragments = 0

    def _count(self, now: float) -> None:
        limits = self._limits
        gained = (now - self._counted_at) * limits.frames_per_s
        self._allowance = min(limits.frame_burst, self._allowance + gained) - 1
        self._counted_at = now
        if self._allowance < 0:
            raise Refused(POLICY, "too many frames")


class Message(NamedTuple):
    """A whole message from the peer; ``size`` in bytes."""

    data: str | bytes
    size: int


class Reply(NamedTuple):
    """Bytes to send to the peer at once: a pong, or our close frame."""

    data: bytes


class Closed(NamedTuple):
    """The WebSocket is over; close the connection behind the replies."""

    code: int


Event = Message | Reply | Closed


class WebSocketProtocol:
    """Frames ↔ messages, within :class:`WebSocketLimits`."""

    def __init__(self, limits: WebSocketLimits, now: float) -> None:
        self._gate = FrameGate(limits, now)
        self._ws = Connection(ConnectionType.SERVER)
        self._parts: list[str | bytes] = []
        self.closed = False  # nothing more will be received

    def receive(self, data: bytes, now: float) -> Iterator[Event]:
        """What ``data`` says. After a :class:`Closed` everything is ignored."""
        if self.closed:
            return
        try:
            self._gate.check(data, now)
        except Refused as error:
            yield from self._fail(error.code, str(error))
            return
        self._ws.receive_data(data)
        for event in self._ws.events():
            yield from self._on(event)
            if self.closed:
                return

    def _on(self, event: events.Event) -> Iterator[Event]:
        match event:
            case events.TextMessage() | events.BytesMessage():
                self._add(event.data)
                if event.message_finished:
                    yield self._message()
            case events.Ping():
                if self._ws.state is ConnectionState.OPEN:
                    yield Reply(self._ws.send(event.response()))
            case events.CloseConnection():
                yield from self._on_close(event)
            case _:
                pass  # a pong: that it came is all it says

    def _add(self, data: str | bytes | bytearray) -> None:
        self._parts.append(data if isinstance(data, str) else bytes(data))
        if len(self._parts) > JOIN_PARTS:  # one object of 50 bytes per byte, otherwise
            self._parts = [_join(self._parts)]

    def _message(self) -> Message:
        data = _join(self._parts)
        self._parts = []
        return Message(data, len(data.encode() if isinstance(data, str) else data))

    def _on_close(self, event: events.CloseConnection) -> Iterator[Event]:
        """The peer closes, or wsproto found an error of the peer's."""
        state = self._ws.state
        if state is ConnectionState.CLOSED:
            self.closed = True
            yield Closed(int(event.code))
        elif state is ConnectionState.REMOTE_CLOSING:
            self.closed = True
            yield Reply(self._ws.send(event.response()))
            yield Closed(int(event.code))
        else:
            yield from self._fail(int(event.code), event.reason or "")

    def _fail(self, code: int, reason: str) -> Iterator[Event]:
        self.closed = True
        data = self.send_close(code, reason)
        if data:
            yield Reply(data)
        yield Closed(code)

    def send_text(self, text: str) -> bytes:
        """Raises :class:`wsproto.utilities.LocalProtocolError` once closing has begun."""
        return self._ws.send(events.TextMessage(data=text))

    def send_bytes(self, data: bytes) -> bytes:
        """As :meth:`send_text`, a binary message."""
        return self._ws.send(events.BytesMessage(data=data))

    def send_ping(self) -> bytes:
        """A ping, or nothing if closing has begun."""
        if self._ws.state is not ConnectionState.OPEN:
            return b""
        return self._ws.send(events.Ping())

    def send_close(self, code: int, reason: str) -> bytes:
        """Our close frame, or nothing if we have sent one."""
        cut = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        try:
            return self._ws.send(events.CloseConnection(code=code, reason=cut))
        except LocalProtocolError:
            return b""

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        return self._ws.state is ConnectionState.OPEN and not self.closed


def _join(parts: list[str | bytes]) -> str | bytes:
    if isinstance(parts[0], str):
        return "".join(part for part in parts if isinstance(part, str))
    return b"".join(part for part in parts if isinstance(part, bytes))


class Accepted(NamedTuple):
    """Fields of the 101 answer."""

    headers: list[tuple[bytes, bytes]]
    subprotocol: str | None


def check_handshake(request: Request, subprotocols: Sequence[str]) -> Accepted:
    """RFC 6455 4.2. Raises :class:`RequestError` 400, 405 or 426."""
    headers = request.headers
    if request.method != "GET" or request.http_version != "1.1":
        raise RequestError(400, "bad_handshake", "a WebSocket begins with GET and HTTP/1.1")
    if "websocket" not in _tokens(headers, "upgrade") or "upgrade" not in _tokens(
        headers, "connection"
    ):
        raise RequestError(
            426,
            "upgrade_required",
            "expected Connection: upgrade and Upgrade: websocket",
            headers=(("Upgrade", "websocket"), ("Connection", "upgrade")),
        )
    if headers.get("sec-websocket-version") != "13":
        raise RequestError(
            426,
            "upgrade_required",
            "expected Sec-WebSocket-Version: 13",
            headers=(("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
        )
    key = _key(headers.get_all("sec-websocket-key"))
    answer = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-accept", generate_accept_token(key)),
    ]
    chosen = _choose(_tokens(headers, "sec-websocket-protocol", fold=False), subprotocols)
    if chosen is not None:
        answer.append((b"sec-websocket-protocol", chosen.encode("ascii")))
    return Accepted(answer, chosen)


def _tokens(headers: Headers, name: str, *, fold: bool = True) -> list[str]:
    value = headers.get(name) or ""
    return [(token.lower() if fold else token).strip() for token in value.split(",")]


def _key(values: list[str]) -> bytes:
    try:
        if len(values) == 1 and len(base64.b64decode(values[0], validate=True)) == 16:
            return values[0].encode("ascii")
    except (binascii.Error, ValueError):
        pass
    raise RequestError(400, "bad_handshake", "expected one Sec-WebSocket-Key of 16 bytes in base64")


def _choose(offered: list[str], supported: Sequence[str]) -> str | None:
    if len(offered) > MAX_SUBPROTOCOLS:
        raise RequestError(
            400, "bad_handshake", f"more than {MAX_SUBPROTOCOLS} subprotocols are offered"
        )
    return next((name for name in supported if name in offered), None)
