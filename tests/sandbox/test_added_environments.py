"""Environments that come and go while the pool runs, on the real kernel."""

from __future__ import annotations

import asyncio
import os

import pytest

from sandrun import config
from sandrun.config import Environment
from sandrun.errors import SetupError
from sandrun.messages import Lease, Withdraw
from sandrun.pool import seccomp
from sandrun.pool.cgroup.hierarchy import Hierarchy
from sandrun.pool.manager import Manager

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the pool needs root")


class Http:
    """Takes leases and keeps their descriptors: a zygote whose socket closes ends."""

    def __init__(self) -> None:
        self.sockets: dict[int, int] = {}
        self.leases: dict[int, str] = {}
        self.changed = asyncio.Event()

    def __call__(self, message, fds) -> None:
        match message:
            case Lease():
                self.leases[message.zygote] = message.environment
                self.sockets[message.zygote] = os.dup(fds[0])
            case Withdraw():
                self.leases.pop(message.zygote, None)
                os.close(self.sockets.pop(message.zygote))
        self.changed.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    def count(self, name: str) -> int:
        return list(self.leases.values()).count(name)


async def with_pool(scenario) -> None:
    settings = config.parse("[pool]\nready = 1\n")
    hierarchy = Hierarchy.detect(settings.limits.defaults, settings.pool.cpus)
    hierarchy.create()
    programs = {
        "default": seccomp.job_program(),
        "compute": seccomp.job_program("compute"),
        "zygote": seccomp.zygote_program(),
    }
    http = Http()
    pool = Manager(settings, hierarchy, programs, {}, landlock=True, noswap=False, to_http=http)
    try:
        await pool.start()
        pool.open_leases()
        await scenario(pool, http)
    finally:
        await pool.stop()
        for fd in http.sockets.values():
            os.close(fd)
        assert hierarchy.destroy()


def test_one_that_is_added_gets_zygotes_and_one_that_is_removed_loses_them(tmp_path):
    async def scenario(pool, http):
        await pool.add_environment("own", Environment(ready=1), str(tmp_path))
        await http.until(lambda h: h.count("own") == 2 and h.count("default") == 2)
        assert pool.is_idle("own")
        pool.want("own", "python3", 1)
        assert not pool.is_idle("own")
        process = pool.spawners["own"].process
        index = pool.spawners["own"].index
        pool.want("own", "python3", 0)
        pool.remove_environment("own")
        await http.until(lambda h: h.count("own") == 0)
        await http.until(lambda _: process.returncode is not None)
        assert pool.fault == ""
        assert http.count("default") == 2
        await pool.add_environment("next", Environment(ready=1), str(tmp_path))
        assert pool.spawners["next"].index == index
        await http.until(lambda h: h.count("next") == 2)

    asyncio.run(with_pool(scenario))


def test_one_whose_spawner_cannot_start_is_refused_and_the_pool_is_well(tmp_path):
    async def scenario(pool, http):
        with pytest.raises(SetupError, match="missing"):
            await pool.add_environment("own", Environment(), str(tmp_path / "missing"))
        assert "own" not in pool.spawners
        assert pool.fault == ""
        await http.until(lambda h: h.count("default") == 2)

    asyncio.run(with_pool(scenario))
