"""TLS as a filter: bytes from the wire in, clear text out, and back. Sans-IO.

Our own layer over ``ssl.MemoryBIO`` rather than the event loop's, because we need
what that one hides: the first byte (a client that speaks plain HTTP to this port
gets a sentence instead of line noise), a PROXY header before the handshake, and how
many bytes still wait anywhere (a job is deleted only after its archive has really
been delivered).
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Final

HANDSHAKE_RECORD: Final = 0x16  # first byte of every TLS connection
READ_BYTES: Final = 256 * 1024
_HINT: Final = b"This port speaks HTTPS: use https:// instead of http://\n"
PLAIN_HTTP_HINT: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_HINT), _HINT)
)


class TlsFailed(Exception):
    """The peer broke the protocol or has nothing in common with us."""


def server_context(cert: str, key: str, *, allow_tls12: bool = False) -> ssl.SSLContext:
    """A context with this certificate. Call :meth:`load_cert_chain` on it to replace it.

    ``cert`` and ``key`` are paths of PEM files. Raises OSError or ``ssl.SSLError``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if allow_tls12 else ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key)
    return context


class TlsLayer:
    """One connection's TLS, server side."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.established = False
        self.closed = False  # the peer has said that it sends no more

    def receive(self, data: bytes) -> bytes:
        """Clear text in ``data``. There may be bytes to send afterwards: :meth:`take_output`.

        Raises :class:`TlsFailed` (an alert for the peer may wait in the output).
        """
        self._incoming.write(data)
        try:
            if not self.established:
                self._tls.do_handshake()
                self.established = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise TlsFailed(error.reason or "protocol error") from error

    def _read(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            try:
                piece = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                piece = b""
            if not piece:
                self.closed = True
                break
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, data: bytes | memoryview) -> bytes:
        """``data`` as records for the wire. Raises :class:`TlsFailed`."""
        try:
            view = memoryview(data)
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as error:
            raise TlsFailed(error.reason or "protocol error") from error
        return self._outgoing.read()

    def take_output(self) -> bytes:
        """What the protocol itself wants to send: handshake, alerts."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def close(self) -> bytes:
        """Our close_notify."""
        # Want-read is the normal case: the peer's own close_notify is not here yet.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        return self.take_output()
