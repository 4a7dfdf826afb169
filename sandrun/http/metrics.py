"""Counters and histograms as Prometheus text. Pure. No ids, no addresses, no content."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

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
PHASES: Final = ("queued", "starting", "running", "total")


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
        self.upload_bytes = 0
        self.phases = {phase: Histogram() for phase in PHASES}

    def render(self, gauges: dict[str, float]) -> str:
        """Prometheus text format 0.0.4."""
        lines = ["# TYPE sandrun_jobs_total counter"]
        lines += [
            f'sandrun_jobs_total{{exit_reason="{reason}"}} {count}'
            for reason, count in sorted(self.jobs.items())
        ]
        lines.append("# TYPE sandrun_refusals_total counter")
        lines += [
            f'sandrun_refusals_total{{code="{code}"}} {count}'
            for code, count in sorted(self.refusals.items())
        ]
        lines.append("# TYPE sandrun_requests_total counter")
        lines += [
            f'sandrun_requests_total{{route="{route}"}} {count}'
            for route, count in sorted(self.requests.items())
        ]
        lines.append("# TYPE sandrun_upload_bytes_total counter")
        lines.append(f"sandrun_upload_bytes_total {self.upload_bytes}")
        lines.append("# TYPE sandrun_job_phase_seconds histogram")
        for phase, histogram in self.phases.items():
            lines += _histogram("sandrun_job_phase_seconds", phase, histogram)
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE sandrun_{name} gauge", f"sandrun_{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _histogram(name: str, phase: str, histogram: Histogram) -> list[str]:
    lines, seen = [], 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), histogram.counts, strict=True):
        seen += count
        lines.append(f'{name}_bucket{{phase="{phase}",le="{bound}"}} {seen}')
    lines.append(f'{name}_sum{{phase="{phase}"}} {histogram.total:g}')
    lines.append(f'{name}_count{{phase="{phase}"}} {seen}')
    return lines
