"""What a Result says of a job, as far as it can be believed. Runs as nobody.

A zygote may have been taken over: what it says is bounded here. I/O: reads the job's own
log and outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sandrun.errors import ProtocolError
from sandrun.http.archive import read_index
from sandrun.job import ExitReason, Verdict
from sandrun.logs import STDERR, Record
from sandrun.remedies import remedy_for
from sandrun.verdict import Facts, decide

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.jobs import Job
    from sandrun.messages import Result

REMEDY_LOG_BYTES: Final = 256 * 1024  # a longer log is not searched for a missing module
MAX_CPU_S: Final = 1e6  # of one job, whatever its zygote says


def believable(cpu_seconds: float) -> float:
    """A zygote may have been taken over: what it says gives nobody credit, and NaN no account without end."""
    return min(max(0.0, cpu_seconds), MAX_CPU_S)


def take_result(app: App, job: Job, result: Result) -> Verdict:
    """What a Result says of a job, as far as it can be believed."""
    job.spec = result.spec
    job.log_end = min(result.log_end, app.maxima.log_bytes)
    verdict = result.verdict or decide(
        result.facts or Facts(), result.usage, result.spec.limits, app.maxima
    )
    if job.cancelled and verdict.exit_reason is not ExitReason.EXITED:
        verdict = Verdict(
            exit_reason=ExitReason.CANCELLED,
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            evidence=verdict.evidence,
        )
    if verdict.exit_reason is ExitReason.NONZERO_EXIT and verdict.remedy is None:
        verdict = _with_remedy(app, job, verdict)
    if result.index_size and job.kept is not None:
        try:
            index = read_index(job.kept.outputs_fd, result.index_offset, result.index_size)
        except (ProtocolError, OSError):
            verdict = Verdict(
                exit_reason=ExitReason.SERVER_FAULT,
                evidence=("the outputs that the sandbox handed over are damaged",),
            )
        else:
            job.outputs = {file.path: file for file in index.files}
            job.skipped = {skipped.path: skipped.reason for skipped in index.skipped}
    return verdict


def _with_remedy(app: App, job: Job, verdict: Verdict) -> Verdict:
    """A module that is not there leads to the environment that has it."""
    if job.kept is None or not 0 < job.log_end <= REMEDY_LOG_BYTES:
        return verdict
    try:
        entries = job.kept.log.read(0, REMEDY_LOG_BYTES)
    except (ProtocolError, ValueError):  # damaged: the verdict says the rest
        return verdict
    said = [e.data for e in entries if isinstance(e, Record) and e.stream == STDERR]
    remedy = remedy_for(
        b"".join(said).decode("utf-8", "replace"),
        app.welcome.environments if app.welcome else (),
        job.spec.environment,
        requirements=app.config.packages.requirements,
    )
    return msgspec.structs.replace(verdict, remedy=remedy)
