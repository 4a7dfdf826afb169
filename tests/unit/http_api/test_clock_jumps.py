"""Clocks that jump: the seam is App's ``clock`` and ``wall``."""

import asyncio

import msgspec
import pytest
import test_restore as given

from sandrun.channel import Channel, pair
from sandrun.config import Config
from sandrun.http.app import App
from sandrun.job import ExitReason
from sandrun.messages import Kill, Restored, Started, StoreEntry, ToPool

DAY_S = 86400.0


def after_a_jump(check, jump_s=0.0, wall_jump_s=0.0, sandbox=None):
    """One accepted job, waiting or running; the clocks jump; what is due happens."""

    async def main():
        ours, theirs = pair()
        ours.setblocking(False)
        supervisor = Channel(ours, ToPool)
        now = {"clock": 20.0, "wall": 1e9}
        loop = asyncio.get_running_loop()
        clocks = {"clock": lambda: now["clock"], "wall": lambda: now["wall"]}
        app = App(Config(), theirs, loop, **clocks)
        app.on_welcome(given.WELCOME)
        app.on_entry(StoreEntry(key=given.CLIENT, parts=given.account()), [])
        entry = StoreEntry(key=given.JOB, parts=given.job_parts())
        if sandbox:
            entry = msgspec.structs.replace(entry, zygote=7, alive=True)
        app.on_entry(entry, sandbox.fds if sandbox else [])
        app.on_restored(Restored(max_jobs=100))
        job, _ = app.registry.find("job_secret")
        now["clock"] += jump_s
        now["wall"] += wall_jump_s
        app._on_timer()
        check(app, job, given.drain(supervisor))
        app.close()
        supervisor.close()

    asyncio.run(main())
    if sandbox:
        sandbox.channel.close()


def test_a_host_that_slept_for_a_day_expires_what_waited_and_gives_the_place_back():
    def check(app, job, _):
        assert job.exit_reason is ExitReason.EXPIRED
        assert job.client.active == 0
        assert not app.queue

    after_a_jump(check, jump_s=DAY_S)


def test_a_host_that_slept_for_a_day_ends_a_job_that_should_have_ended_once():
    def check(app, job, said):
        assert job.exit_reason is ExitReason.SERVER_FAULT
        assert job.client.active == 0
        assert said.count(Kill(zygote=7)) == 1
        assert app.active == set()

    after_a_jump(check, jump_s=DAY_S, sandbox=given.Sandbox(Started(spec=given.SPEC)))


@pytest.mark.parametrize("wall_jump_s", [DAY_S, -DAY_S])
def test_the_wall_clock_ends_nothing(wall_jump_s):
    def waits(app, job, _):
        assert (job.status, job.client.active, len(app.queue)) == ("queued", 1, 1)

    def runs(app, job, _):
        assert (job.status, job.client.active, app.active) == ("running", 1, {job})

    after_a_jump(waits, wall_jump_s=wall_jump_s)
    sandbox = given.Sandbox(Started(spec=given.SPEC))
    after_a_jump(runs, wall_jump_s=wall_jump_s, sandbox=sandbox)
