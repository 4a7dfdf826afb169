"""Counters and histograms as Prometheus text. Pure. No ids, no addresses, no content."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BUCKETS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
)
PHASES: Final = ("upload", "queued", "starting", "running", "total")

# What is here is always rendered, at 0 too.
COUNTERS: Final = {
    "jobs": ("sandrun_jobs_total", "exit_reason", "Jobs that have ended, by exit reason."),
    "refusals": ("sandrun_refusals_total", "code", "Requests refused, by problem code."),
    "requests": ("sandrun_requests_total", "route", "Requests that reached a route."),
}
GAUGES: Final = {
    "queue_length": "Jobs that wait for a sandbox.",
    "active_jobs": "Jobs in a sandbox.",
    "jobs_kept": "Jobs whose id is known, ended ones included.",
    "ready_zygotes": "Sandboxes leased and without a job.",
    "pool_warm": "Ready sandboxes as the pool counts them.",
    "pool_capacity": "Sandboxes with a job that there may be at once.",
    "pool_booting": "Sandboxes being made.",
    "pool_busy": "Sandboxes with a job.",
    "pool_fault": "1 while the pool cannot make sandboxes.",
    "pool_memory_available_bytes": "What limits of further jobs may add up to.",
    "http_restarts": "How often an http that died was replaced.",
    "host_pressure": "1 while jobs are refused because the host is short of memory.",
    "queue_wait_seconds": "Seconds until a job at the queue's end starts, about.",
    "upload_bytes": "Uploads held now.",
    "upload_limit_bytes": "Beyond this new uploads get 503.",
    "retained_bytes": "Logs and outputs of ended jobs.",
    "store_records": "Records that outlive this process: one for each job, client and node.",
    "clients": "Accounts known.",
    "draining": "1 while no more jobs are accepted.",
    "store_full": "1 while nothing more can be recorded.",
    "connections": "Client connections that stand.",
    "idle_connections": "Of these, between two requests.",
    "websockets": "Of these, upgraded.",
    "http_resident_bytes": "Resident memory of the process that serves.",
}
TOTALS: Final = {
    "jobs_accepted": "Jobs accepted.",
    "job_cpu_seconds": "CPU time of ended jobs.",
    "job_output_bytes": "Bytes of outputs that ended jobs handed back.",
    "upload_bytes": "Bytes of uploads accepted.",
    "connections": "Client connections accepted.",
    "http_cpu_seconds": "CPU time of the process that serves.",
}


class Histogram:
    """Observations in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total += seconds


class Metrics:
    """Everything that is counted. Gauges are given at the time of the scrape."""

    def __init__(self) -> None:
        self.jobs: Counter[str] = Counter()  # by exit reason
        self.refusals: Counter[str] = Counter()  # by problem code
        self.requests: Counter[str] = Counter()  # by route
        self.totals: dict[str, float] = dict.fromkeys(TOTALS, 0.0)
        self.phases = {phase: Histogram() for phase in PHASES}

    def refused(self, code: str) -> None:
        """One more refusal. ``code`` is one of ours: their number is bounded."""
        self.refusals[code] += 1

    def render(self, gauges: Mapping[str, float], totals: Mapping[str, float]) -> str:
        """Prometheus text format 0.0.4. ``totals`` are counted by somebody else."""
        lines: list[str] = []
        for attribute, (name, label, said) in COUNTERS.items():
            lines += _head(name, "counter", said)
            counts: Counter[str] = getattr(self, attribute)
            lines += [f'{name}{{{label}="{key}"}} {n}' for key, n in sorted(counts.items())]
        for key, said in TOTALS.items():
            name = f"sandrun_{key}_total"
            value = totals.get(key, self.totals[key])
            lines += [*_head(name, "counter", said), f"{name} {_number(value)}"]
        name = "sandrun_job_phase_seconds"
        lines += _head(
            name, "histogram", "Time of a job in each phase; total begins at acceptance."
        )
        for phase, histogram in self.phases.items():
            lines += _histogram(name, phase, histogram)
        for key, said in GAUGES.items():
            name = f"sandrun_{key}"
            lines += [*_head(name, "gauge", said), f"{name} {_number(gauges.get(key, 0.0))}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, said: str) -> tuple[str, str]:
    return f"# HELP {name} {said}", f"# TYPE {name} {kind}"


def _number(value: float) -> str:
    """All digits of a whole number: %g would round a count of bytes to six."""
    return str(int(value)) if value == int(value) else f"{value:.6f}"


def _histogram(name: str, phase: str, histogram: Histogram) -> list[str]:
    lines, seen = [], 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), histogram.counts, strict=True):
        seen += count
        lines.append(f'{name}_bucket{{phase="{phase}",le="{bound}"}} {seen}')
    lines.append(f'{name}_sum{{phase="{phase}"}} {_number(histogram.total)}')
    lines.append(f'{name}_count{{phase="{phase}"}} {seen}')
    return lines
