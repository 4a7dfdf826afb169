"""The pool driven as http drives it, without http. Runs as: root. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from bench.jobs import Job
from sandrun.channel import Channel, Closed, close_all
from sandrun.config import Config
from sandrun.messages import Acknowledge, FromZygote, GiveBack, Lease, Result, ToZygote
from sandrun.pool import seccomp
from sandrun.pool.cgroup.hierarchy import Hierarchy
from sandrun.pool.lifecycle import State
from sandrun.pool.manager import Kind, Manager
from sandrun.supervisor import load_native


@dataclass(eq=False)
class Leased:
    """One ready zygote, as http would hold it."""

    id: int
    channel: Channel[ToZygote, FromZygote] | None  # None: it is only counted
    fds: tuple[int, ...]  # log, outputs

    def close(self) -> None:
        """Let it go."""
        if self.channel:
            self.channel.close()
        for fd in self.fds:
            os.close(fd)


class Driver:
    """The near end of everything the pool leases."""

    def __init__(self, manager: Manager, *, keep_files: bool = True) -> None:
        self.manager = manager
        self.loop = asyncio.get_running_loop()
        self.keep_files = keep_files
        self.ready: dict[tuple[str, str], dict[int, Leased]] = {}
        self.changed = asyncio.Event()

    def to_http(self, message, fds) -> None:
        """What the manager says to http."""
        if isinstance(message, Lease):
            channel, files = None, ()
            if self.keep_files:
                sock = socket.socket(fileno=os.dup(fds[0]))
                sock.setblocking(False)
                channel, files = Channel(sock, FromZygote), tuple(os.dup(fd) for fd in fds[1:])
            kind = (message.environment, message.warm)
            leased = Leased(message.zygote, channel, files)
            self.ready.setdefault(kind, {})[leased.id] = leased
        if isinstance(message, GiveBack):
            self.give_back(message.zygote)
        self.changed.set()

    def give_back(self, zygote: int) -> None:
        """The pool has more than it needs."""
        for ready in self.ready.values():
            if leased := ready.pop(zygote, None):
                leased.close()
                self.manager.finished(zygote)

    async def settled(self) -> None:
        """Wait until every kind has what it wants and nothing else is going on."""
        manager = self.manager
        while True:
            self.changed.clear()
            ready = sum(kind.counts[State.LEASED] for kind in manager.kinds)
            if len(manager.zygotes) == ready and all(
                kind.stock >= manager.target(kind) for kind in manager.kinds
            ):
                return
            await asyncio.wait_for(self.changed.wait(), 60)

    async def lease(self, environment: str, warm: str) -> Leased:
        """A ready zygote of one kind, as soon as there is one."""
        kind = (environment, warm)
        while True:
            if ready := self.ready.get(kind):
                return ready.pop(next(iter(ready)))
            self.changed.clear()
            self.manager.want(environment, warm, 4)
            await asyncio.wait_for(self.changed.wait(), 60)

    async def run(self, job: Job) -> float:
        """One job; seconds from the dispatch to its result."""
        leased = await self.lease(job.environment, job.warm)
        dispatch = job.dispatch()
        future: asyncio.Future[Result] = self.loop.create_future()
        channel = leased.channel

        def on_readable() -> None:
            try:
                while not future.done():
                    message, _ = channel.receive()
                    if isinstance(message, Result):
                        future.set_result(message)
            except BlockingIOError:
                pass
            except Closed:
                future.set_exception(RuntimeError("the zygote died"))

        self.loop.add_reader(channel.fileno(), on_readable)
        start = time.perf_counter()
        sandbox = self.manager.bind(leased.id)
        if sandbox is None:
            raise RuntimeError("the zygote died")
        channel.send(dispatch)
        result = await future
        wall = time.perf_counter() - start
        if result.verdict or not result.facts or result.facts.exit_code != 0:
            raise RuntimeError(f"{job.name}: {result.verdict or result.facts}")
        self.loop.remove_reader(channel.fileno())
        channel.send(Acknowledge())
        close_all(sandbox.fds)
        self.manager.finished(leased.id)
        leased.close()
        return wall


@contextlib.asynccontextmanager
async def pool(
    config: Config, directories: dict[str, str], *, keep_files: bool = True
) -> AsyncIterator[Driver]:
    """A running pool of our own, gone afterwards."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    hierarchy = Hierarchy.detect(config.limits.defaults, config.pool.cpus)
    hierarchy.sweep_stale()
    hierarchy.create()
    driver: Driver

    def to_http(message: object, fds: tuple[int, ...]) -> None:
        driver.to_http(message, fds)

    native = load_native(config.pool.init)
    manager = Manager(
        config,
        hierarchy,
        {
            "default": seccomp.job_program("default"),
            "warm": seccomp.job_program("warm"),
            "compute": seccomp.job_program("compute_exec"),
            "zygote": seccomp.zygote_program(),
        },
        directories,
        landlock=True,
        noswap=True,
        native=native,
        to_http=to_http,
    )
    driver = Driver(manager, keep_files=keep_files)
    try:
        await manager.start()
        manager.open_leases()
        yield driver
    finally:
        await manager.stop()
        close_all(native or ())
        for kind in driver.ready.values():
            for leased in kind.values():
                leased.close()
        hierarchy.destroy()


def kind_of(manager: Manager, environment: str, warm: str) -> Kind:
    """The pool's own record of one sort of zygote."""
    return next(k for k in manager.kinds if (k.environment, k.warm) == (environment, warm))
