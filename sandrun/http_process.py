"""The supervisor's side of one http process, from its exec to its end. Runs as: root. I/O.

An http loads, says Loaded, and waits until it is *attached*: told who we are and what
is kept. Between the two it may wait for as long as we like, which is what a standby
does: it has been started beside the one that serves, and takes its place in
milliseconds instead of the half second, or more under load, that an interpreter
and its imports take.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from sandrun.channel import Channel, Closed, close_all, pair
from sandrun.config import Config
from sandrun.errors import ConfigError, ProtocolError
from sandrun.messages import Ping, StoreEntry, ToHttp, ToPool, Welcome
from sandrun.pool import seccomp
from sandrun.pool.supplies import Supplies

log = logging.getLogger(__name__)

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python does not name it
SEND_BUFFER: Final = 4 * 1024 * 1024  # so that http never waits for us on a busy machine
MAX_OUTBOX: Final = 4096
MESSAGES_AT_ONCE: Final = 64


class Settings(NamedTuple):
    """What an http is started with. A certificate is kept as it was when it was checked:
    one that is being replaced, or is damaged, must not meet an http that follows a crash.
    """

    config: Config
    certificate: tuple[bytes, bytes] | None  # PEM: chain, key


def read_settings(config: Config) -> Settings:
    """``config`` and its certificate. Raises :class:`ConfigError` for one that is no good."""
    http = config.http
    if not http.tls_cert:
        return Settings(config, None)
    import ssl  # noqa: PLC0415 - two megabytes that a server without TLS does not have

    pem = tuple(
        _read_pem(path, name) for name, path in (("cert", http.tls_cert), ("key", http.tls_key))
    )
    fds = [memory_fd(name, data) for name, data in zip(("cert", "key"), pem, strict=True)]
    try:
        paths = [f"/proc/self/fd/{fd}" for fd in fds]
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*paths)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"http.tls_cert {http.tls_cert} and http.tls_key {http.tls_key}: "
            f"{error.strerror or error}"
        ) from error
    finally:
        close_all(fds)
    return Settings(config, (pem[0], pem[1]))


def _read_pem(path: str, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"http.tls_{name}: {path}: {error.strerror}") from error


def memory_fd(name: str, data: bytes) -> int:
    """A sealed memory file with ``data``, to hand to a child."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
    )
    return fd


class HttpProcess:
    """One http process. ``attached``: it has been told everything and may serve."""

    def __init__(
        self,
        settings: Settings,
        uid: int,
        listeners: list[socket.socket],
        on_message: Callable[[HttpProcess, ToPool, list[int]], None],
        on_exit: Callable[[HttpProcess, int], None],
        supplies: Supplies,
    ) -> None:
        self.settings = settings
        self.uid = uid
        self.listeners = listeners
        self.on_message = on_message
        self.on_exit = on_exit
        self.loop = asyncio.get_running_loop()
        self.attached = False
        self.loaded = False  # nothing but what we know is missing to it
        self.ready = False  # it serves
        self.leaving = False  # told to make room for the next
        self.fault = ""  # why we ended it
        self._silent_s = 0.0
        self._outbox: deque[tuple[ToHttp, tuple[int, ...]]] = deque()
        self._entries: Iterator[tuple[StoreEntry, tuple[int, ...]]] | None = None
        self._restored: Callable[[], None] = lambda: None
        self._start(supplies)

    def _start(self, supplies: Supplies) -> None:
        """Exec http with its descriptors. Raises OSError, and nothing is left then."""
        contents = {
            "--config": msgspec.msgpack.encode(self.settings.config),
            "--filter": seccomp.http_program(),
        }
        if self.settings.certificate is not None:
            contents["--tls-cert"], contents["--tls-key"] = self.settings.certificate
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            control, end = pair()
            ours.callback(control.close)
            theirs.callback(end.close)
            for sock in (control, end):
                _send_buffer(sock, SEND_BUFFER)
            control.setblocking(False)
            fds = {"--control": end.fileno()}
            for option, content in contents.items():
                fds[option] = memory_fd(option.strip("-"), content)
                theirs.callback(os.close, fds[option])
            for option, sock in zip(("--listen", "--admin"), self.listeners, strict=False):
                fds[option] = sock.fileno()
            argv = [sys.executable, "-I", "-m", "sandrun.http", "--uid", str(self.uid)]
            for option, fd in fds.items():
                argv += [option, str(fd)]
            self.process = supplies.start(argv, tuple(fds.values()))
            ours.callback(self.end)
            self.pidfd = supplies.watch(self.process.pid)
            ours.pop_all()
        self.channel: Channel[ToHttp, ToPool] = Channel(control, ToPool)
        self.loop.add_reader(control.fileno(), self.hear)
        self.loop.add_reader(self.pidfd, self._ended)

    def attach(
        self,
        welcome: Welcome,
        entries: Iterator[tuple[StoreEntry, tuple[int, ...]]],
        restored: Callable[[], None],
    ) -> None:
        """Tell it who we are and what there is; ``restored`` is called behind that."""
        self.attached = True
        self.send(welcome, ())
        self._entries = entries
        self._restored = restored
        self._flush()

    def send(self, message: ToHttp, fds: tuple[int, ...]) -> None:
        """Send, in order. Dropped if nobody is attached: a new http is told everything.

        Descriptors are the caller's, and duplicated if they must wait.
        """
        if not self.attached:
            return
        if self._entries is None and not self._outbox:
            try:
                self.channel.send(message, fds)
            except Closed:
                return
            except BlockingIOError:
                self.loop.add_writer(self.channel.fileno(), self._flush)
            else:
                return
        if len(self._outbox) >= MAX_OUTBOX:
            self._give_up("it does not read its messages")
            return
        copies: list[int] = []
        try:
            copies += map(os.dup, fds)
        except OSError as error:  # what it is not told now it would never know
            close_all(copies)
            self._give_up(str(error))
            return
        self._outbox.append((message, tuple(copies)))

    def look(self, passed_s: float, most_s: float) -> None:
        """``passed_s`` after the last look: end it if it has said nothing for ``most_s``
        (twice that while it has much to load), else ask it for a word.

        What counts is time in which we listened: if it was us who slept, or the
        machine, nobody has been silent.
        """
        self._silent_s += passed_s
        loads = self.attached and not self.ready if self.loaded else True
        if self._silent_s > (2 * most_s if loads else most_s):
            self._give_up(f"it said nothing for {self._silent_s:g} s")
        elif self.loaded and self._entries is None and not self._outbox:
            with contextlib.suppress(BlockingIOError, Closed):
                self.channel.send(Ping())

    def _give_up(self, why: str) -> None:
        if not self.fault:
            self.fault = why
            log.error("http is ended: %s", why)
            self.process.kill()

    def _flush(self) -> None:
        """First what was kept, then what was said meanwhile."""
        try:
            if self._entries is not None:
                self._send_entries(self._entries)
            while self._outbox:
                message, fds = self._outbox[0]
                self.channel.send(message, fds)
                close_all(fds)
                self._outbox.popleft()
        except BlockingIOError:
            self.loop.add_writer(self.channel.fileno(), self._flush)
            return
        except Closed:
            self._drop_outbox()
        self.loop.remove_writer(self.channel.fileno())

    def _send_entries(self, entries: Iterator[tuple[StoreEntry, tuple[int, ...]]]) -> None:
        for entry, fds in entries:
            try:
                self.channel.send(entry, fds)
            except BlockingIOError:
                self._entries = chain([(entry, fds)], entries)
                raise
        self._entries = None
        self._restored()

    def hear(self) -> None:
        """Handle what it has said, up to a bound, so that the others have their turn."""
        for _ in range(MESSAGES_AT_ONCE):
            if not self._hear_one():
                return

    def hear_all(self) -> None:
        """Handle everything that it has said."""
        while self._hear_one():
            pass

    def _hear_one(self) -> bool:
        try:
            message, fds = self.channel.receive()
        except BlockingIOError:
            return False
        except Closed:
            self.loop.remove_reader(self.channel.fileno())
            return False
        except ProtocolError as error:
            self._junk(error)
            return False
        self._silent_s = 0.0
        try:
            self.on_message(self, message, fds)
        except ProtocolError as error:
            self._junk(error)
            return False
        return True

    def _junk(self, error: ProtocolError) -> None:
        self._give_up(f"it sent junk ({error})")

    def _ended(self) -> None:
        """Its last words count: they are all in the socket."""
        code = self.process.wait()
        self.loop.remove_reader(self.pidfd)
        self.hear_all()
        self.loop.remove_reader(self.channel.fileno())
        self.loop.remove_writer(self.channel.fileno())
        self._drop_outbox()
        self._entries = None
        os.close(self.pidfd)
        self.channel.close()
        self.attached = False
        self.on_exit(self, code)

    def _drop_outbox(self) -> None:
        for _, fds in self._outbox:
            close_all(fds)
        self._outbox.clear()

    def end(self) -> None:
        """Kill it, if it is still there."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _send_buffer(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)  # past net.core.wmem_max
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
