"""Every row of the table in restore.py: what the last http left → what it becomes."""

import asyncio
import os

import msgspec
import pytest

from sandrun import journal
from sandrun.channel import Channel, Closed, close_all, pair
from sandrun.config import Config
from sandrun.http import records
from sandrun.http.app import App
from sandrun.http.jobs import Phase
from sandrun.http.records import Part
from sandrun.job import ExitReason, JobSpec, Usage, Verdict
from sandrun.logs import STDOUT, LogWriter
from sandrun.messages import (
    Acknowledge,
    Dispatch,
    Elsewhere,
    Finished,
    Forget,
    InlineFile,
    Kill,
    Restored,
    Result,
    Started,
    StoreEntry,
    ToPool,
    ToZygote,
    Welcome,
)

LOG_BYTES = 1024 * 1024
SPEC = JobSpec(entrypoint="main.py", interpreter="python3")
WELCOME = Welcome(environments=(), interpreters=(), layers={}, privacy={})
CLIENT, JOB = 1, 2


class Sandbox:
    """Descriptors of a zygote that an earlier http had given the job."""

    def __init__(self, *said, alive=True):
        ours, theirs = pair()
        self.channel = Channel(ours, ToZygote)
        ours.setblocking(False)
        log, outputs = os.memfd_create("log"), os.memfd_create("outputs")
        os.ftruncate(log, LOG_BYTES + journal.JOURNAL_BYTES)
        LogWriter(log, LOG_BYTES).write(STDOUT, b"said\n", 0.1)
        for message in said:
            slot = journal.STARTED if isinstance(message, Started) else journal.FINAL
            journal.write(log, LOG_BYTES, slot, msgspec.msgpack.encode(message), 11.0)
        self.alive = alive
        self.fds = [log, outputs] + ([theirs.detach()] if alive else [])
        if not alive:
            theirs.close()

    def heard(self):
        return drain(self.channel)


def drain(channel):
    found = []
    try:
        while True:
            message, fds = channel.receive()
            close_all(fds)
            found.append(message)
    except (BlockingIOError, Closed):
        return found


def account(**changes):
    fields = {
        "hash": b"h" * 16, "balance_s": 5.0, "updated": 10.0, "seen": 10.0, "starts": (9.0,),
        "unsettled": (JOB,), "last": JOB, "flow_balance_s": 0.0, "flow_expected_s": 1.0,
    } | changes  # fmt: skip
    return {Part.ACCOUNT: records.encode(records.AccountRecord(**fields))}


def job_parts():
    job = records.JobRecord(
        "job_secret", "view_secret", CLIENT, "key", SPEC, (), "hash", 9.0, 10.0, 0.0, 8, 0, 0
    )
    files = (InlineFile(path="main.py", data=b"print(1)"),)
    return {Part.JOB: records.encode(job), Part.FILES: records.encode(files)}


def restore(check, parts, sandbox=None, *, lost=False, client=None):
    """Make an App of what is kept, let it settle, and look at it."""

    async def main():
        ours, theirs = pair()
        ours.setblocking(False)
        supervisor = Channel(ours, ToPool)
        app = App(Config(), theirs, asyncio.get_running_loop(), clock=lambda: 20.0)
        app.on_welcome(WELCOME)
        app.on_entry(StoreEntry(key=CLIENT, parts=client or account()), [])
        entry = StoreEntry(key=JOB, parts=parts, lost=lost)
        if sandbox:
            entry = msgspec.structs.replace(entry, zygote=7, alive=sandbox.alive)
        app.on_entry(entry, sandbox.fds if sandbox else [])
        app.on_restored(Restored(max_jobs=100))
        found = app.registry.find("job_secret")
        assert found is not None
        job, owner = found
        assert owner
        assert app.registry.find("view_secret") == (job, False)
        assert app.registry.replay(job.client, "key") is job
        check(app, job, drain(supervisor))
        app.close()
        supervisor.close()

    asyncio.run(main())
    if sandbox:
        sandbox.channel.close()


def result(reason=ExitReason.EXITED, cpu_seconds=2.0):
    return Result(
        verdict=Verdict(exit_reason=reason, exit_code=0),
        usage=Usage(cpu_seconds=cpu_seconds), spec=SPEC, log_end=100,
    )  # fmt: skip


@pytest.mark.parametrize("alive", [True, False])
def test_a_record_that_cannot_be_read_is_kept_no_longer(alive):
    """It stayed in the store, its sandbox until a watchdog's time was over."""

    async def main():
        ours, theirs = pair()
        ours.setblocking(False)
        supervisor = Channel(ours, ToPool)
        app = App(Config(), theirs, asyncio.get_running_loop(), clock=lambda: 20.0)
        app.on_welcome(WELCOME)
        sandbox = Sandbox(Started(spec=SPEC), alive=alive)
        entry = StoreEntry(key=JOB, parts={Part.JOB: b"junk"}, zygote=7, alive=alive)
        app.on_entry(entry, sandbox.fds)
        app.on_restored(Restored(max_jobs=100))
        said = drain(supervisor)
        assert (Kill(zygote=7) in said) is alive
        assert Forget(key=JOB) in said
        assert not len(app.registry)
        app.close()
        supervisor.close()
        sandbox.channel.close()

    asyncio.run(main())


@pytest.mark.parametrize("alive", [True, False])
def test_a_result_that_the_last_http_had_read_is_in_the_journal(alive):
    sandbox = Sandbox(Started(spec=SPEC), result(), alive=alive)

    def check(app, job, said):
        assert (job.status, job.exit_reason) == ("completed", ExitReason.EXITED)
        assert (job.started, job.ended) == (11.0, 11.0)
        assert job.client.active == 0
        assert job.kept.log.read(0)[0].data == b"said\n"
        assert (Finished(zygote=7) in said) is alive
        assert sandbox.heard() == ([Acknowledge()] if alive else [])

    restore(check, job_parts(), sandbox)


def test_a_result_is_charged_once():
    def charged(_, job, __):
        assert job.client.balance_s == pytest.approx(min(10.0, 5.0 + 10.0 * 10.0 / 60.0) - 2.0)

    def paid(_, job, __):
        assert job.client.balance_s == 5.0
        assert job.client.active == 0

    restore(charged, job_parts(), Sandbox(Started(spec=SPEC), result(), alive=False))
    settled = account(unsettled=())
    restore(paid, job_parts(), Sandbox(Started(spec=SPEC), result(), alive=False), client=settled)


def test_what_was_charged_while_it_ran_is_not_charged_again():
    def check(_, job, __):
        assert job.client.balance_s == pytest.approx(min(10.0, 5.0 + 10.0 * 10.0 / 60.0) - 0.5)

    some = account(charged=(1.5,))
    restore(check, job_parts(), Sandbox(Started(spec=SPEC), result(), alive=False), client=some)


def test_a_job_that_the_account_does_not_know_yet_takes_its_place_and_its_start():
    def check(_, job, __):
        assert job.client.active == 1
        assert list(job.client.starts) == [8.0, 9.0]

    restore(check, job_parts(), client=account(unsettled=(), last=CLIENT, starts=(8.0,)))


def test_a_running_job_goes_on_and_gets_no_second_dispatch():
    sandbox = Sandbox(Started(spec=SPEC))

    def check(app, job, _):
        assert job.phase is Phase.RUNNING
        assert app.active == {job}
        assert sandbox.heard() == []

    restore(check, job_parts(), sandbox)


def test_a_dispatch_whose_fate_is_not_known_is_said_again():
    sandbox = Sandbox()

    def check(app, job, _):
        assert job.phase is Phase.DISPATCHED
        assert app.active == {job}
        (dispatch,) = sandbox.heard()
        assert isinstance(dispatch, Dispatch)
        assert (dispatch.spec, dispatch.files[0].data) == (SPEC, b"print(1)")

    restore(check, job_parts(), sandbox)


def test_a_job_that_had_started_when_its_zygote_died_is_our_fault_and_does_not_run_again():
    def check(app, job, _):
        assert job.exit_reason is ExitReason.SERVER_FAULT
        assert (job.client.active, list(job.client.starts)) == (0, [])
        assert not app.queue

    restore(check, job_parts(), Sandbox(Started(spec=SPEC), alive=False))


@pytest.mark.parametrize("lost", [True, False])
def test_a_job_that_had_not_started_waits_again(lost):
    def check(app, job, _):
        assert (job.phase, app.position(job)) == (Phase.QUEUED, 1)
        assert job.client.active == 1

    restore(check, job_parts(), None if lost else Sandbox(alive=False), lost=lost)


def test_what_belongs_elsewhere_waits_for_it():
    other = msgspec.structs.replace(SPEC, args=("other",))
    sandbox = Sandbox(Elsewhere(spec=other))

    def check(app, job, said):
        assert (job.phase, job.returned, job.spec) == (Phase.QUEUED, 1, other)
        assert Finished(zygote=7) in said
        assert len(app.queue) == 1

    restore(check, job_parts(), sandbox)


def test_an_end_that_only_http_knew_stays():
    verdict = Verdict(exit_reason=ExitReason.EXPIRED, evidence=("no sandbox",))
    end = records.encode(records.EndRecord(verdict, Usage(), 15.0))

    def check(app, job, _):
        assert (job.verdict, job.ended) == (verdict, 15.0)
        assert not app.queue

    restore(check, job_parts() | {Part.END: end})


def test_a_cancel_that_the_zygote_may_not_have_heard_is_said_again():
    state = records.encode(records.StateRecord(0, True, 10.5, None))
    sandbox = Sandbox(Started(spec=SPEC))

    def check(_, job, __):
        assert job.dispatched == 10.5
        assert [type(message).__name__ for message in sandbox.heard()] == ["Cancel"]

    restore(check, job_parts() | {Part.STATE: state}, sandbox)


def test_a_journal_of_junk_counts_as_empty():
    sandbox = Sandbox()
    journal.write(sandbox.fds[0], LOG_BYTES, journal.FINAL, b"junk", 1.0)
    journal.write(sandbox.fds[0], LOG_BYTES, journal.STARTED, msgspec.msgpack.encode(result()), 1.0)

    def check(_, job, __):
        assert job.phase is Phase.DISPATCHED

    restore(check, job_parts(), sandbox)
