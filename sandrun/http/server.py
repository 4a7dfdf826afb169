"""Listening sockets → clients, within the caps. I/O; the only file that accepts.

Runs as nobody. The sockets were bound by the supervisor and inherited; nothing is
opened here. Accepting is our own and not the event loop's, because at the limit of
descriptors it must back off instead of spinning, and a connection over a cap must
cost no more than an accept and a close.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import socket
import time
from typing import TYPE_CHECKING, Final

from sandrun.http.answer import http_date
from sandrun.http.peer import Peer
from sandrun.http.proxy import TrustedProxies, canonical
from sandrun.http.websocket import GOING_AWAY, WebSocketLimits
from sandrun.job import MIB

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from sandrun.config import Http
    from sandrun.http.exchange import Handler

ACCEPTS_PER_WAKE: Final = 64  # then the others get their turn
NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
TURNED_AWAY_READ: Final = 64 * 1024  # bytes of a request that is not served
LOOKS_FOR_IDLE: Final = 64  # connections; an accept must stay cheap
EVICT_AFTER_S: Final = 1.0  # a client at work sends its next request sooner
BACK_OFF_S: Final = 0.25  # with no descriptors left, before we look again
# Inherited by what is accepted: a client whose host went away in the middle of a silent
# log (or that closed it: no text can be sent to see) is noticed in a minute or two.
KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
_BUSY: Final = b'{"error":"too many connections","code":"too_many_connections","retry_after":5}'
BUSY_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nRetry-After: 5\r\nConnection: close\r\n\r\n%b" % (len(_BUSY), _BUSY)
)

log: Final = logging.getLogger("sandrun.http")


class Server:
    """Serves one handler on any number of sockets.

    ``wall`` gives the time for Date headers, in seconds since 1970. A connection that has
    been idle for ``evict_after_s`` seconds may have to make room for a new one.
    """

    def __init__(
        self,
        handler: Handler,
        config: Http,
        *,
        wall: Callable[[], float] = time.time,
        websocket_limits: WebSocketLimits = WebSocketLimits(),  # noqa: B008  # frozen
        evict_after_s: float = EVICT_AFTER_S,
    ) -> None:
        self.handler = handler
        self.config = config
        self.websocket_limits = websocket_limits
        self.max_body = config.max_upload_mb * MIB
        self.proxies = TrustedProxies(config.trusted_proxies)
        self.draining = False
        self.on_refusal: Callable[[str], None] = lambda _: None  # told what no handler saw
        self.accepted = 0  # connections, ever
        self.loop: asyncio.AbstractEventLoop
        self._wall = wall
        self._evict_after_s = evict_after_s
        self._date = (0, b"")
        self._listeners: dict[socket.socket, ssl.SSLContext | None] = {}
        self._peers: set[Peer] = set()
        self._idle: dict[Peer, float] = {}  # since when (the loop's time); oldest first
        self._admitted = 0  # those that stand, and those that the loop still sets up
        self._by_address: dict[str, int] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._empty = asyncio.Event()  # no connection stands
        self._empty.set()

    # ── life ──

    async def serve(
        self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None
    ) -> None:
        """Serve until :meth:`drain` is done, or this is cancelled. Owns the sockets."""
        self.loop = asyncio.get_running_loop()
        for listener in sockets:
            listener.setblocking(False)
            if listener.family != socket.AF_UNIX:
                for level, option, value in KEEPALIVE:
                    listener.setsockopt(level, option, value)
            self._listeners[listener] = tls
            self.loop.add_reader(listener, self._accept, listener)
        try:
            await self._stopped.wait()
        finally:
            self._close_listeners()
            self._cut_off()

    async def drain(self, grace_s: float) -> None:
        """Accept no more; end idle connections now, the others after their answer.

        After ``grace_s`` seconds what is left is cut off, WebSockets with 1001.
        """
        self.draining = True
        self._close_listeners()
        for peer in tuple(self._peers):
            peer.shut_down()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace_s)
        closing = [peer.websocket.close(GOING_AWAY) for peer in self._peers if peer.websocket]
        await asyncio.gather(*closing)
        self._cut_off()
        self._stopped.set()

    def _cut_off(self) -> None:
        for peer in tuple(self._peers):
            if peer.task is not None:
                peer.task.cancel()
            peer.abort()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            self.loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    # ── accepting ──

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_WAKE):
            try:
                sock, name = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._back_off(listener)
                    return
                continue  # the client went away between SYN and accept
            self._admit(sock, name, self._listeners[listener])

    def _back_off(self, listener: socket.socket) -> None:
        """Out of descriptors: the backlog waits, and one idle connection makes room."""
        self.on_refusal("no_descriptors")
        log.warning("out of file descriptors, not accepting for %s s", BACK_OFF_S)
        self._evict_idle()
        self.loop.remove_reader(listener)
        self.loop.call_later(BACK_OFF_S, self._accept_again, listener)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener)

    def _admit(self, sock: socket.socket, name: object, tls: ssl.SSLContext | None) -> None:
        address = canonical(name[0]) if isinstance(name, tuple) else ""
        trusted = self.proxies.trusts(address)
        if not self._has_room(address, trusted=trusted):
            self.on_refusal("too_many_connections")
            _turn_away(sock, tls)
            return
        self.accepted += 1
        self._admitted += 1
        self._by_address[address] = self._by_address.get(address, 0) + 1
        peer = Peer(self, address, tls=tls, expect_proxy=trusted)
        task = self.loop.create_task(self._hand_over(sock, peer))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _hand_over(self, sock: socket.socket, peer: Peer) -> None:
        """The socket to the event loop."""
        try:
            sock.setblocking(False)
            if peer.peer_address:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.connect_accepted_socket(lambda: peer, sock)
        except OSError:  # the client went away in between
            sock.close()
            self._release(peer.peer_address)

    def _release(self, address: str) -> None:
        self._admitted -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _has_room(self, address: str, *, trusted: bool) -> bool:
        """A trusted proxy has no cap of its own: it speaks for many clients."""
        cap = self.config.max_connections_per_address
        if not trusted and self._by_address.get(address, 0) >= cap:
            return False
        if self._admitted < self.config.max_connections:
            return True
        return self._evict_idle()

    def _evict_idle(self) -> bool:
        """Close the connection that has been idle longest; False if none has been for long.

        Not one whose next request is there but not read yet (while we are behind, those
        are many), nor one that might send its next at this moment: both would be reset.
        """
        idle_since = self.loop.time() - self._evict_after_s
        for peer, since in itertools.islice(self._idle.items(), LOOKS_FOR_IDLE):
            if since > idle_since:
                break
            if not peer.unread():
                del self._idle[peer]  # its end is seen later: do not choose it twice
                peer.abort()
                return True
        return False

    # ── from peers ──

    def add(self, peer: Peer) -> None:
        """A connection stands."""
        self._peers.add(peer)
        self._empty.clear()
        self._idle[peer] = self.loop.time()

    def remove(self, peer: Peer) -> None:
        """A connection is over."""
        self._peers.discard(peer)
        self._idle.pop(peer, None)
        self._release(peer.peer_address)
        if not self._peers:
            self._empty.set()

    def busy(self, peer: Peer) -> None:
        """A request has begun."""
        self._idle.pop(peer, None)

    def idle(self, peer: Peer) -> None:
        """A request has ended and the connection stays."""
        self._idle[peer] = self.loop.time()

    @property
    def connections(self) -> int:
        """How many stand now."""
        return len(self._peers)

    @property
    def idle_connections(self) -> int:
        """Of these, how many have no request under way."""
        return len(self._idle)

    @property
    def websockets(self) -> int:
        """Of these, how many are upgraded."""
        return sum(peer.websocket is not None for peer in self._peers)

    def date(self) -> bytes:
        """Value of the Date header."""
        now = int(self._wall())
        if self._date[0] != now:
            self._date = (now, http_date(now))
        return self._date[1]


def _turn_away(sock: socket.socket, tls: ssl.SSLContext | None) -> None:
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        if tls is None:
            sock.send(BUSY_ANSWER)
            # Closed with bytes unread, a socket is reset, which may overtake the answer.
            sock.recv(TURNED_AWAY_READ)
