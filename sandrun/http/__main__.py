"""The http process: ``python -m sandrun.http``, started by the supervisor only.

Everything comes as an inherited descriptor (control channel, listening sockets,
config, certificate, seccomp filter), so that nothing has to be opened later. The
order of START_STEPS is the point: whatever needs a privilege, a path or an import
is done before :func:`confine`; the event loop is made after it, because libuv
would otherwise keep an io_uring, which no filter sees.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import uvloop

from sandrun import log_format
from sandrun.config import Config
from sandrun.confine import confine
from sandrun.errors import SandrunError
from sandrun.http import tls
from sandrun.http.app import App
from sandrun.http.handlers import Handlers
from sandrun.http.server import Server
from sandrun.http.static import Static, find_frontend
from sandrun.http.vitals import Vitals
from sandrun.messages import Drain, Loaded, Ready

if TYPE_CHECKING:
    import ssl

CLOSE_GRACE_S: Final = 3.0  # for answers that are on their way when the last job has ended
SPARE_FDS: Final = 1000  # for zygotes, three each, and the loop

log: Final = logging.getLogger("sandrun.http")


def main(argv: list[str] | None = None) -> int:
    """Serve until the supervisor says Drain. Returns the exit status."""
    options = parse(argv)
    log_format.set_up(logging.INFO, "%(asctime)s http %(levelname)s %(message)s")
    # Ctrl-C reaches the whole process group; it is the supervisor who decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = msgspec.msgpack.decode(read_fd(options.config), type=Config)
        context = tls_context(options)
        static = Static(find_frontend())
        program = read_fd(options.filter) if options.filter is not None else None
        name = Name()
        vitals = Vitals()
        files = raise_file_limit()
        drop(options)
        gc.collect()
        gc.freeze()  # what the start made stays: no collection looks at it again
        confine(program)
    except (SandrunError, OSError, msgspec.DecodeError) as error:
        log.error("cannot start: %s", error)
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(options, config, static, context, files, name, vitals))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """All but the flags are numbers of descriptors."""
    parser = argparse.ArgumentParser(prog="python -m sandrun.http")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--admin", type=int)
    parser.add_argument("--config", type=int, required=True)
    parser.add_argument("--filter", type=int)
    parser.add_argument("--tls-cert", type=int)
    parser.add_argument("--tls-key", type=int)
    parser.add_argument("--uid", type=int, help="become this user and group")
    parser.add_argument("--allow-root", action="store_true", help="for tests")
    return parser.parse_args(argv)


class Name:
    """What ``ps`` and ``top`` call us: the one that serves, or its standby.

    Opened while a path can still be opened.
    """

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        self.change("sandrun-standby")

    def change(self, name: str) -> None:
        """At most 15 characters. man: proc(5), /proc/PID/comm"""
        os.write(self._fd, name.encode())

    def close(self) -> None:
        """It stays what it is."""
        os.close(self._fd)


def read_fd(fd: int) -> bytes:
    """A whole memory descriptor; closes it."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return file.read()


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """From the certificate's and the key's descriptors; closes them."""
    if options.tls_cert is None:
        return None
    names = (options.tls_cert, options.tls_key)
    context = tls.server_context(*(f"/proc/self/fd/{fd}" for fd in names))
    for fd in names:
        os.close(fd)
    return context


def raise_file_limit() -> int:
    """Every kept job holds two descriptors. Returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Shares(NamedTuple):
    """What a process with so many descriptors may hold of each sort: none can be had at the
    expense of the others, above all not of zygotes, whose loss costs us a restart.
    """

    connections: int
    uploads: int
    ended: int  # jobs: a log and outputs each

    @classmethod
    def of(cls, files: int, connections: int, queued: int) -> Shares:
        """Of ``files``, as configured if there are enough. Pure."""
        connections = min(connections, files // 2)
        rest = files - connections - min(SPARE_FDS, files // 4)
        uploads = min(connections + queued, rest // 4)
        return cls(connections, uploads, (rest - uploads) // 2)


def drop(options: argparse.Namespace) -> None:
    """Root → ``--uid``. Raises :class:`SandrunError` if we would go on as root."""
    if options.uid is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(options.uid, options.uid, options.uid)
        os.setresuid(options.uid, options.uid, options.uid)
    if 0 in (*os.getresuid(), *os.getresgid()) and not options.allow_root:
        raise SandrunError("http does not run as root; give --uid")


async def serve(
    options: argparse.Namespace,
    config: Config,
    static: Static,
    context: ssl.SSLContext | None,
    files: int,
    name: Name,
    vitals: Vitals,
) -> int:
    """From Welcome to the last job's end."""
    loop = asyncio.get_running_loop()
    control = socket.socket(fileno=options.control)
    listener = socket.socket(fileno=options.listen)
    shares = Shares.of(files, config.http.max_connections, config.rate_limit.queue_length)
    http = msgspec.structs.replace(config.http, max_connections=shares.connections)
    app = App(
        msgspec.structs.replace(config, http=http),
        control,
        loop,
        max_ended=shares.ended,
        max_uploads=shares.uploads,
        runnable=vitals.runnable,
    )
    loop.add_signal_handler(signal.SIGTERM, app.on_drain, Drain(grace_s=0.0))
    app.leases.send(Loaded())
    await first_of(app.welcomed, app.drained)
    name.change("sandrun-http")
    name.close()
    server = Server(Handlers(app, static), http)
    server.on_refusal = app.metrics.refused
    app.server_gauges = lambda: {
        "connections": server.connections,
        "idle_connections": server.idle_connections,
        "websockets": server.websockets,
        "http_resident_bytes": vitals.resident_bytes(),
    }
    app.server_totals = lambda: {
        "connections": server.accepted,
        "http_cpu_seconds": vitals.cpu_seconds(),
    }
    urls = (url_of(listener, secure=context is not None),)
    running = [asyncio.create_task(server.serve([listener], context))]
    servers = [server]
    if options.admin is not None:
        admin = Server(Handlers(app, static, admin=True), http)
        running.append(asyncio.create_task(admin.serve([socket.socket(fileno=options.admin)])))
        servers.append(admin)
    await asyncio.sleep(0)  # the servers have begun to accept
    app.leases.send(Ready(urls=urls))
    ended = asyncio.create_task(first_of(app.drained, app.leaving))
    await asyncio.wait([ended, *running], return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in running if task.done()]
    await asyncio.gather(*(one.drain(CLOSE_GRACE_S) for one in servers))
    if not app.drained.is_set():
        await app.leases.recorded()  # whoever takes over is told everything
    app.close()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*running)
    return 1 if failed else 0


async def first_of(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def url_of(listener: socket.socket, *, secure: bool) -> str:
    """Where a listening socket is reached."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{Path(os.fsdecode(name))}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"{'https' if secure else 'http'}://{host}:{name[1]}"


if __name__ == "__main__":
    sys.exit(main())
