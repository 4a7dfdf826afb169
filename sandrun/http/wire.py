"""One client's byte stream: TLS, PROXY header, flow control and deadlines. I/O.

Runs as nobody. What the bytes mean is decided in :mod:`sandrun.http.peer`, which
derives from :class:`Wire`. An asyncio protocol and not a stream: a stream costs a
task switch and a copy for every read.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import TYPE_CHECKING, Final, cast

from sandrun.errors import ProtocolError
from sandrun.http.exchange import ClientGone
from sandrun.http.proxy import may_be_proxy_header, parse_proxy_header
from sandrun.http.tls import HANDSHAKE_RECORD, PLAIN_HTTP_HINT, TlsFailed, TlsLayer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

# A peer must take HIGH - LOW bytes within write_timeout_s: 3 KiB/s with its default.
WRITE_HIGH: Final = 256 * 1024
WRITE_LOW: Final = 64 * 1024
JOIN_BELOW: Final = 16 * 1024  # copying is cheaper than a second system call


class Wire(asyncio.Protocol):
    """Owns one transport. Derived classes say what :meth:`received` and its like do."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: str,
        *,
        tls: ssl.SSLContext | None,
        expect_proxy: bool,
        write_timeout_s: float,
    ) -> None:
        self.loop = loop
        self.address = address  # of the client, once a PROXY header has been read
        self.secure = tls is not None
        self.gone: asyncio.Future[None] = loop.create_future()
        self.ended = False  # the peer has shut down its sending side
        self._silent: asyncio.Future[None] | None = None  # made for those who ask
        self._tls_context = tls
        self._tls: TlsLayer | None = None
        # Bytes that are looked at before anything else gets them; None: all decided.
        self._opening: bytearray | None = bytearray() if tls or expect_proxy else None
        self._expect_proxy = expect_proxy
        self._write_timeout_s = write_timeout_s
        self._transport: asyncio.Transport
        self._drainers: list[asyncio.Future[None]] = []
        self._write_blocked = False
        self._reading = True
        self._closing = False
        self._shut = False  # we have said that we send no more
        self._deadline: float | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0  # uvloop's handle of a time that has passed has no when()

    # ── what derived classes do ──

    def opened(self) -> None:
        """The connection stands."""

    def received(self, data: bytes) -> None:
        """Clear text from the peer."""
        raise NotImplementedError

    def half_closed(self) -> None:
        """The peer sends no more."""
        raise NotImplementedError

    def lost(self) -> None:
        """The connection is over; ``gone`` is done."""

    def tls_failed(self) -> None:
        """The peer's TLS is broken or older than ours; the connection closes."""

    def expired(self) -> None:
        """The deadline has passed."""
        raise NotImplementedError

    # ── from the event loop ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        self.opened()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._opening is not None:
            data = self._open(data)
        if data and self._tls is not None:
            data = self._decrypt(self._tls, data)
        if data:
            self.received(data)

    def eof_received(self) -> bool:
        """See asyncio.Protocol. True: we may still send (``shutdown`` by the client)."""
        if not self.ended:
            self._end_of_input()
        return True

    def _end_of_input(self) -> None:
        self.ended = True
        self._fall_silent()
        self.half_closed()

    def _fall_silent(self) -> None:
        if self._silent is not None and not self._silent.done():
            self._silent.set_result(None)

    @property
    def silent(self) -> asyncio.Future[None]:
        """Done once the peer sends no more, or is gone."""
        if self._silent is None:
            self._silent = self.loop.create_future()
            if self.ended or self.gone.done():
                self._silent.set_result(None)
        return self._silent

    def connection_lost(self, _error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._closing = True
        self.set_deadline(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.gone.done():
            self.gone.set_result(None)
        self._fall_silent()
        self._wake_drainers()
        self.lost()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._write_blocked = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._write_blocked = False
        self._wake_drainers()

    def _wake_drainers(self) -> None:
        drainers, self._drainers = self._drainers, []
        for drainer in drainers:
            if not drainer.done():
                drainer.set_result(None)

    # ── before the first request ──

    def _open(self, data: bytes) -> bytes:
        """Decide what the first bytes are; returns those that belong to what follows."""
        buffer = cast("bytearray", self._opening)
        buffer += data
        if self._expect_proxy and may_be_proxy_header(buffer):
            try:
                header = parse_proxy_header(buffer)
            except ProtocolError:
                self.abort()
                return b""
            if header is None:
                return b""
            self.address = self.address if header.address is None else header.address
            del buffer[: header.size]
        self._expect_proxy = False
        if not buffer:
            return b""
        self._opening = None
        if self._tls_context is not None:
            if buffer[0] != HANDSHAKE_RECORD:
                self._send_raw(PLAIN_HTTP_HINT)
                self.close()
                return b""
            self._tls = TlsLayer(self._tls_context)
        return bytes(buffer)

    def _decrypt(self, tls: TlsLayer, data: bytes) -> bytes:
        if self._closing:
            return b""
        try:
            clear = tls.receive(data)
        except TlsFailed:
            self.tls_failed()
            self._send_raw(tls.take_output())
            self.close()
            return b""
        self._send_raw(tls.take_output())
        if tls.closed and not self.ended:
            if clear:
                self.received(clear)
            self._end_of_input()
            return b""
        return clear

    # ── reading ──

    def pause(self) -> None:
        """Stop reading: the kernel's buffer fills, then the peer waits."""
        if self._reading and not self._closing:
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._reading and not self._closing:
            self._reading = True
            self._transport.resume_reading()

    # ── writing ──

    def write(self, data: bytes | memoryview) -> None:
        """Send, or buffer what the socket does not take. Nothing once closing."""
        if self._closing or self._shut:
            return
        if self._tls is not None:
            try:
                data = self._tls.send(data)
            except TlsFailed:
                self.abort()
                return
        self._transport.write(data)

    def _send_raw(self, data: bytes) -> None:
        if data and not self._shut:
            self._transport.write(data)

    def write_pieces(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send several pieces with few system calls and few copies."""
        if sum(len(piece) for piece in pieces) < JOIN_BELOW:
            self.write(b"".join(pieces))
            return
        for piece in pieces:
            self.write(piece)

    @property
    def write_blocked(self) -> bool:
        """Whether the peer is behind in reading."""
        return self._write_blocked

    def limit_write_buffer(self, high: int, low: int) -> None:
        """How much may wait to be sent before :meth:`drain` waits."""
        self._transport.set_write_buffer_limits(high, low)

    async def drain(self) -> None:
        """Wait until there is room to write. Raises :class:`ClientGone`.

        A peer that does not make room within ``write_timeout_s`` is cut off.
        """
        while self._write_blocked and not self._closing:
            room = self.loop.create_future()
            self._drainers.append(room)
            stalled = self.loop.call_later(self._write_timeout_s, self.abort)
            try:
                await room
            finally:
                stalled.cancel()
        if self._closing:
            raise ClientGone

    def unacknowledged(self) -> int:
        """Bytes written that the peer's TCP has not acknowledged. man: tcp(7), SIOCOUTQ"""
        waiting = self._transport.get_write_buffer_size()
        sock = self._transport.get_extra_info("socket")
        raw = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return waiting + cast("int", struct.unpack("i", raw)[0])

    def unread(self) -> bool:
        """Whether the peer has sent what we have not yet read. man: tcp(7), SIOCINQ"""
        sock = self._transport.get_extra_info("socket")
        if self._transport.is_closing() or sock is None or sock.fileno() < 0:
            return False
        raw = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
        return cast("int", struct.unpack("i", raw)[0]) > 0

    # ── the end ──

    @property
    def closing(self) -> bool:
        """Whether we have given the connection up."""
        return self._closing

    def shut_writing(self) -> None:
        """Say that nothing more will be sent; the peer may still send."""
        if self._closing or self._shut:
            return
        if self._tls is not None:
            self._send_raw(self._tls.close())
        self._shut = True
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        """Close when everything is sent; a peer that does not read gets no longer than others."""
        if self._closing:
            return
        if self._tls is not None and not self._shut:
            self._send_raw(self._tls.close())
        self._closing = True
        self._transport.close()
        self._wake_drainers()
        self.set_deadline(self.loop.time() + self._write_timeout_s)

    def abort(self) -> None:
        """Close now; what was not sent is dropped."""
        self._closing = True
        self._transport.abort()
        self._wake_drainers()

    # ── one deadline ──

    def set_deadline(self, when: float | None) -> None:
        """Have :meth:`expired` called at ``when`` (the loop's time), or not at all.

        There is one timer per connection. It is only re-armed when it fires early
        or a nearer deadline is set, so that moving a deadline away costs nothing.
        """
        self._deadline = when
        if when is None:
            return
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._deadline > self.loop.time():
            self.set_deadline(self._deadline)
        elif self._closing:
            self.abort()
        else:
            self._deadline = None
            self.expired()
