"""Wait status + counters + limits → Verdict with evidence. Pure.

PID 1 of the sandbox tells the facts when the job's last process is dead; http
decides, once, whatever PID 1 is written in. A job's failure is a value. Each reason comes with the counter or event that proves it,
and with the manifest line that would change it.
"""

from __future__ import annotations

import signal
from typing import Annotated, Final, Literal

import msgspec

from sandrun.job import MIB, UNCHARGED_MOST, ExitReason, Limits, Usage, Verdict

_SIGSYS: Final = int(signal.SIGSYS)
_NAMES: Final = {int(s): s.name for s in signal.Signals if s < signal.SIGRTMIN}


# A sandbox may have been taken over: http decides from what these can hold.
_Small = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known when a job is over."""

    exit_code: _Small | None = None  # of the entrypoint's own process
    signal: _Small | None = None
    cancelled: bool = False
    timed_out: bool = False
    cpu_exceeded: bool = False
    oom_kills: _Count = 0
    uncharged_bytes: _Count = 0
    fork_refusals: _Count = 0
    storage_full: bool = False
    inodes_full: bool = False
    log_dropped_bytes: _Count = 0
    outputs_over_limit: bool = False
    fail_on_output_limit: bool = False
    phase: Literal["upload", "build", "entrypoint"] = "entrypoint"


def decide(facts: Facts, usage: Usage, limits: Limits, maxima: Limits) -> Verdict:
    """The reason that explains the most, in the order in which one causes another."""
    if facts.cancelled:
        return _verdict(facts, ExitReason.CANCELLED, ("cancelled by the client",))
    if facts.oom_kills:
        return _out_of_memory(facts, usage, limits, maxima)
    if facts.uncharged_bytes:
        held, most = facts.uncharged_bytes // MIB, UNCHARGED_MOST // MIB
        what = (
            f"TCP connections held {held} MiB of the kernel's memory that it charges to nobody, "
            f"over {most}"
        )
        remedy = "accept connections and close them, or make fewer"
        return _verdict(facts, ExitReason.OUT_OF_MEMORY, (what,), remedy)
    if facts.timed_out:
        return _verdict(
            facts,
            ExitReason.WALL_TIMEOUT,
            (f"ran {usage.wall_time_s:.1f} of {limits.timeout_s:g} s, then was killed",),
            _raise("timeout", limits.timeout_s, maxima.timeout_s, 2 * limits.timeout_s),
        )
    if facts.cpu_exceeded:
        return _verdict(
            facts,
            ExitReason.CPU_LIMIT,
            (
                f"used {usage.cpu_seconds:.2f} of {limits.cpu_seconds:g} CPU-seconds, then was killed",
            ),
            _raise("cpu_seconds", limits.cpu_seconds, maxima.cpu_seconds, 2 * limits.cpu_seconds),
        )
    if facts.signal == _SIGSYS:
        return _verdict(
            facts,
            ExitReason.SYSCALL_DENIED,
            ("the kernel sent SIGSYS: a system call that the sandbox forbids",),
            "see the README for the system calls that a job may use",
        )
    failed = facts.signal is not None or facts.exit_code != 0
    if failed and (facts.storage_full or facts.inodes_full):
        return _storage(facts, usage, limits, maxima)
    if failed and facts.fork_refusals:
        return _verdict(
            facts,
            ExitReason.PROCESS_LIMIT,
            (f"pids.events max={facts.fork_refusals}: no more than {limits.processes} at once",),
            _raise("processes", limits.processes, maxima.processes, 2 * limits.processes),
        )
    if facts.fail_on_output_limit and (facts.log_dropped_bytes or facts.outputs_over_limit):
        return _verdict(
            facts,
            ExitReason.OUTPUT_LIMIT,
            (
                f"{facts.log_dropped_bytes} bytes of log dropped over {limits.log_bytes // MIB} MiB"
                if facts.log_dropped_bytes
                else f"outputs are over {limits.output_bytes // MIB} MiB",
            ),
            "write less, or narrow the output patterns",
        )
    if facts.signal is not None:
        name = _NAMES.get(facts.signal, "signal")
        return _verdict(facts, ExitReason.SIGNALED, (f"{name} ({facts.signal}) ended it",))
    if facts.exit_code:
        return _verdict(facts, ExitReason.NONZERO_EXIT, (f"exit status {facts.exit_code}",))
    return _verdict(facts, ExitReason.EXITED, ())


def _verdict(
    facts: Facts, reason: ExitReason, evidence: tuple[str, ...], remedy: str | None = None
) -> Verdict:
    if facts.phase == "build":
        evidence = (*evidence, "this was the build command; the entrypoint did not run")
    return Verdict(
        exit_reason=reason,
        exit_code=facts.exit_code,
        signal=facts.signal,
        evidence=evidence,
        remedy=remedy,
    )


def _out_of_memory(facts: Facts, usage: Usage, limits: Limits, maxima: Limits) -> Verdict:
    limit = limits.memory_bytes
    return _verdict(
        facts,
        ExitReason.OUT_OF_MEMORY,
        (
            f"memory.events oom_kill={facts.oom_kills}",
            f"peak {usage.memory_peak_bytes / MIB:.0f} of {limit / MIB:.0f} MiB, files included",
        ),
        _raise("memory_mb", limit // MIB, maxima.memory_bytes // MIB, 2 * limit // MIB),
    )


def _storage(facts: Facts, usage: Usage, limits: Limits, maxima: Limits) -> Verdict:
    what = (
        f"{usage.storage_bytes / MIB:.0f} of {limits.storage_bytes / MIB:.0f} MiB written, none left"
        if facts.storage_full
        else "no inodes left: too many files"
    )
    return _verdict(
        facts,
        ExitReason.STORAGE_LIMIT,
        (what,),
        _raise(
            "storage_mb",
            limits.storage_bytes // MIB,
            maxima.storage_bytes // MIB,
            2 * limits.storage_bytes // MIB,
        ),
    )


def _raise(field: str, value: float, maximum: float, proposal: float) -> str:
    if value >= maximum:
        return f"{field} is at this server's maximum of {maximum:g}: use less"
    return f'raise it: "{field}": {min(proposal, maximum):g}'
