"""One request and its answer, as handlers see them. Pure: types only, no I/O.

Handlers are written against these protocols and tested with fakes of them;
``server.py`` has the real thing. A handler is ``async def handler(exchange)``:

* it may :meth:`~Exchange.read` the body, or leave it;
* it answers once, with :meth:`~Exchange.respond`, with ``start`` / ``write`` /
  ``finish``, or with :meth:`~Exchange.websocket`;
* it raises :class:`sandrun.errors.RequestError` before it has answered, and the
  server renders it; any other exception is a 500 that is logged without content;
* :class:`ClientGone` may come out of every method that reads or writes: let it
  through, the server knows.

A handler is not cancelled when its client disappears (an accepted job goes on);
one that waits for something else also waits for :attr:`Exchange.gone`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PIECE: Final = 512 * 1024  # of one read(); usually what one recv gave, 256 KiB at most


class ClientGone(Exception):
    """The connection has ended before the exchange had. Nobody's fault."""


class Headers:
    """Header fields in their order. Names are case-insensitive, values latin-1."""

    __slots__ = ("raw",)

    def __init__(self, raw: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.raw = raw  # names in lower case

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value; several fields of one name are joined by ``", "`` (RFC 9110 5.3)."""
        values = self.get_all(name)
        return ", ".join(values) if values else default

    def get_all(self, name: str) -> list[str]:
        """The value of each field of this name."""
        wanted = name.lower().encode("latin-1", "replace")
        return [value.decode("latin-1") for key, value in self.raw if key == wanted]

    def __contains__(self, name: str) -> bool:
        """Whether there is a field of this name."""
        wanted = name.lower().encode("latin-1", "replace")
        return any(key == wanted for key, _ in self.raw)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name in lower case, value) in order."""
        for key, value in self.raw:
            yield key.decode("latin-1"), value.decode("latin-1")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked. Everything here has passed the framing check.

    ``path``: percent-decoded once, begins with ``/`` (or is ``*`` for OPTIONS).
    Bytes that are not UTF-8 are surrogate escapes (job outputs may have such
    names): compare it, never open it. Refused before a handler sees them: a
    malformed escape, ``%00``, ``%2F``, and ``.`` or ``..`` as a segment, escaped
    or not.
    ``raw_path``: the same as it stood in the request line, without the query.
    ``query``: decoded, the last of several equal names wins.
    ``client``: the address of the client, in canonical text, as the trusted
    proxies tell it; ``""`` over a Unix socket whose peer told none.
    ``via_proxy``: whether a trusted proxy stands between us and the client (then
    our TCP knows nothing about delivery, see :meth:`Exchange.delivered`).
    ``secure``: whether the client spoke TLS (to us or to a trusted proxy).
    """

    method: str
    path: str
    raw_path: str = "/"
    raw_target: bytes = b"/"
    query: dict[str, str] = {}
    headers: Headers = msgspec.field(default_factory=Headers)
    client: str = ""
    via_proxy: bool = False
    secure: bool = False
    http_version: str = "1.1"


class Response(msgspec.Struct, frozen=True, kw_only=False):
    """A whole answer. ``content_type`` "" sends none (204, 304)."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class WebSocket(Protocol):
    """An accepted WebSocket. The server pings, answers pings, and closes on abuse."""

    @property
    def subprotocol(self) -> str | None:
        """The one that was agreed on."""

    async def send_text(self, text: str) -> None:
        """Send one message; waits while the peer reads too slowly.

        Buffers a bounded amount. Raises :class:`ClientGone` once the socket is
        closed by either side, or when the peer makes no progress for
        ``write_timeout_s``.
        """

    async def receive(self) -> str | bytes | None:
        """Next message of at most 64 KiB; None once the socket is closed.

        Call it even if the protocol has no messages from the client: a peer that
        sends what nobody takes is cut off.
        """

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Closing handshake; returns when the peer has agreed or after a few seconds.

        ``reason`` is cut to 123 bytes. Closing twice is fine.
        """


class Exchange(Protocol):
    """One request on one connection."""

    @property
    def request(self) -> Request:
        """What was asked."""

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done once the client has disconnected. For ``asyncio.wait``; never cancel it.

        A client that has only shut down its sending side is still there.
        """

    @property
    def silent(self) -> asyncio.Future[None]:
        """Done once the client sends no more: a FIN, or gone altogether. Never cancel it.

        Most clients that do this have closed; a few still read. Only writing tells.
        """

    body_limit: int
    """Bytes of body that ``read`` will give. Set it before the first ``read``.

    Starts at ``max_upload_mb``. A Content-Length over it is refused with 413 by
    the first ``read``, before any of the body (or a 100 Continue) has gone over
    the wire; a chunked body when it passes the limit.
    """

    @property
    def content_length(self) -> int | None:
        """Bytes of body that were announced; 0 without a body, None if chunked."""

    @property
    def received(self) -> int:
        """Bytes of body that ``read`` has given so far."""

    async def read(self) -> bytes:
        """Next piece of the body, up to ``MAX_PIECE``; ``b""`` at its end (and again after it).

        The socket is read only as fast as this is called. A client that waits for
        100 Continue gets it with the first call. Raises :class:`ClientGone`, or
        :class:`RequestError` 408 (slower than ``body_min_rate_kb``), 413 (over
        ``body_limit``) or 400 (malformed chunks).
        """

    async def respond(self, response: Response) -> None:
        """Send a whole answer; returns when it is written or safely buffered.

        Adds Date, Content-Length and, if ``response`` does not set them,
        X-Content-Type-Options, Referrer-Policy and Content-Security-Policy. JSON,
        HTML and other text is compressed when the client accepts gzip and it pays,
        unless Content-Encoding, ETag or Content-Range is set. A HEAD request gets
        no body.
        """

    async def start(
        self, status: int, headers: Sequence[tuple[str, str]], length: int | None
    ) -> None:
        """Send the head of a streamed answer, with the same headers added.

        ``length`` None: chunked (or until the end of the connection for HTTP/1.0).
        Content-Length, Transfer-Encoding, Connection and Date are the server's.
        """

    async def write(self, data: bytes | memoryview) -> None:
        """Send a piece of the body; waits while the peer reads too slowly.

        ``data`` must not change afterwards. For a HEAD request it is dropped.
        Raises :class:`ClientGone`, also when there was no progress for
        ``write_timeout_s``. Writing more than ``length`` is a ValueError.
        """

    async def finish(self) -> None:
        """End the body. An answer that is not finished breaks the connection."""

    async def delivered(self) -> bool:
        """After ``finish``: whether the client's TCP has acknowledged every byte.

        Waits a few seconds at most. False if the connection broke or was reset.
        Behind a proxy (``request.via_proxy``) it is always False: those
        acknowledgements would be the proxy's.
        """

    async def websocket(self, *, subprotocols: Sequence[str] = ()) -> WebSocket:
        """Accept the upgrade, with the first of ``subprotocols`` that the client offers.

        Check Origin before. Raises :class:`RequestError` 400 or 426 if the request
        is no valid WebSocket handshake.
        """


Handler = Callable[[Exchange], Awaitable[None]]


def wants_websocket(request: Request) -> bool:
    """Whether the request asks to become a WebSocket."""
    upgrade = request.headers.get("upgrade")
    return upgrade is not None and upgrade.strip().lower() == "websocket"
