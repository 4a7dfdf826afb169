"""A job's phases, ids and retention."""

from __future__ import annotations

import itertools
import os

import pytest

from sandrun.config import Retention
from sandrun.http.jobs import TRANSITIONS, Event, Job, Kept, Phase, Registry
from sandrun.http.quota import Client
from sandrun.job import ExitReason, JobSpec, OutputFile, Usage, Verdict

MIB = 1024 * 1024
_numbers = itertools.count()


def random_bytes(size: int) -> bytes:
    return next(_numbers).to_bytes(size, "little")


def make_registry(**changes: object) -> Registry:
    return Registry(Retention(**changes), random_bytes)  # type: ignore[arg-type]


def make_job(registry: Registry, now: float = 0.0, client: Client | None = None) -> Job:
    job_id, view_id = registry.new_ids()
    return Job(
        job_id=job_id,
        view_id=view_id,
        client=client or Client(b"c", 10, now),
        spec=JobSpec(),
        given=(),
        files=(),
        upload=None,
        charge=0,
        job_hash="",
        admitted=now,
        now=now,
        wall=1000.0,
    )


def make_kept(closed: list[int]) -> Kept:
    return Kept(None, 11, 12, closed.append)  # type: ignore[arg-type]


def end(
    registry: Registry, job: Job, now: float, reason: ExitReason = ExitReason.EXITED
) -> list[Job]:
    if job.phase is Phase.QUEUED:
        job.on_dispatched(make_kept([]), now)
    job.on_ended(Verdict(exit_reason=reason), Usage(), now)
    return registry.ended(job, now)


def test_every_phase_but_the_last_can_end() -> None:
    for phase in Phase:
        assert ((phase, Event.END) in TRANSITIONS) == (phase is not Phase.ENDED)


def test_a_job_has_one_end() -> None:
    registry = make_registry()
    job = make_job(registry)
    end(registry, job, 1)
    with pytest.raises(KeyError):
        job.on_ended(Verdict(exit_reason=ExitReason.EXITED), Usage(), 2)


def test_status_words() -> None:
    registry = make_registry()
    job = make_job(registry)
    assert job.status == "queued"
    job.on_dispatched(make_kept([]), 1)
    assert job.status == "running"
    job.on_started(JobSpec(), 1)
    assert job.status == "running"
    job.on_ended(Verdict(exit_reason=ExitReason.NONZERO_EXIT), Usage(), 2)
    assert job.status == "failed"


def test_ids_have_enough_bits_and_both_lead_to_the_job() -> None:
    registry = Registry(Retention(), os.urandom)
    job = make_job(registry)
    assert job.id.startswith("job_")
    assert job.view_id.startswith("view_")
    assert len(job.id) == 4 + 24
    registry.add(job)
    assert registry.find(job.id) == (job, True)
    assert registry.find(job.view_id) == (job, False)
    assert registry.find(job.id[:-1]) is None
    assert registry.find("\udcff") is None


def test_a_returned_job_lets_the_dead_sandboxs_descriptors_go() -> None:
    closed: list[int] = []
    job = make_job(make_registry())
    job.on_dispatched(make_kept(closed), 1)
    job.on_returned(2)
    assert closed == [11, 12]
    assert job.phase is Phase.QUEUED


def test_a_reader_keeps_the_descriptors_of_a_wiped_job() -> None:
    closed: list[int] = []
    registry = make_registry()
    job = make_job(registry)
    registry.add(job)
    kept = make_kept(closed)
    job.on_dispatched(kept, 1)
    end(registry, job, 2)
    kept.hold()
    registry.remove(job)
    assert not closed
    kept.release()
    assert closed == [11, 12]
    registry.remove(job)  # twice does no harm
    assert len(registry) == 0


def test_a_finished_job_stays_an_hour_a_failed_one_five_minutes() -> None:
    registry = make_registry()
    good, bad = make_job(registry), make_job(registry)
    registry.add(good)
    registry.add(bad)
    end(registry, good, 10)
    end(registry, bad, 10, ExitReason.SIGNALED)
    assert registry.due(309) == []
    assert registry.due(311) == [bad]
    assert registry.due(3609) == []
    assert registry.due(3611) == [good]


def test_looking_at_a_failed_job_keeps_it_five_more_minutes() -> None:
    registry = make_registry()
    job = make_job(registry)
    registry.add(job)
    end(registry, job, 10, ExitReason.SIGNALED)
    registry.on_read(job, 200)
    assert registry.due(400) == []
    assert registry.due(501) == [job]


def test_a_queued_job_is_due_at_its_timeout() -> None:
    registry = make_registry()
    job = make_job(registry)
    registry.add(job)
    assert registry.next_deadline == 300
    assert registry.due(300) == [job]


def test_memory_pressure_evicts_the_oldest_finished_jobs() -> None:
    registry = make_registry(total_mb=10)
    jobs = [make_job(registry) for _ in range(4)]
    evicted: list[Job] = []
    for number, job in enumerate(jobs):
        registry.add(job)
        job.outputs = {"x": OutputFile(path="x", size_bytes=4 * MIB, sha256="", offset=0)}
        for old in end(registry, job, number):
            registry.remove(old)
            evicted.append(old)
    assert evicted == jobs[:2]
    assert 8 * MIB <= registry.retained_bytes < 9 * MIB
    assert registry.find(jobs[0].id) is None


def test_a_host_that_is_short_gets_no_more_results_than_it_lacks_and_no_small_ones() -> None:
    registry = make_registry()
    jobs = [make_job(registry) for _ in range(4)]
    for number, (job, size) in enumerate(zip(jobs, (1000, 4 * MIB, 4 * MIB, 4 * MIB), strict=True)):
        registry.add(job)
        job.outputs = {"x": OutputFile(path="x", size_bytes=size, sha256="", offset=0)}
        end(registry, job, number)
    assert registry.worth(0) == []
    assert registry.worth(1) == jobs[1:2]
    assert registry.worth(5 * MIB) == jobs[1:3]
    assert registry.worth(500 * MIB) == jobs[1:]


def test_an_idempotency_key_belongs_to_a_client_and_lives_as_long_as_the_job() -> None:
    registry = make_registry()
    one, two = Client(b"1", 10, 0), Client(b"2", 10, 0)
    job = make_job(registry, client=one)
    registry.add(job, "key")
    assert registry.replay(one, "key") is job
    assert registry.replay(two, "key") is None
    registry.remove(job)
    assert registry.replay(one, "key") is None


def test_followers_are_told_and_may_leave_while_they_are() -> None:
    job = make_job(make_registry())
    seen: list[str] = []

    def watcher() -> None:
        seen.append(job.status)
        job.watchers.discard(watcher)

    job.watchers.add(watcher)
    job.on_dispatched(make_kept([]), 1)
    job.on_log(10)
    assert seen == ["running"]
