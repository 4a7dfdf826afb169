"""Jobs that have just begun: how many, and the memory that they will still take. Pure.

The host's figures do not show it yet. ``now`` is monotonic seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sandrun.http.jobs import Job
    from sandrun.job import Usage

YOUNG_S: Final = 3.0  # so long a job's memory may not show in the host's figures yet
CROWD_S: Final = 1.0  # a job that has run for so long is no rival of those that begin
PEAK_DECAY: Final = 0.02  # of the memory that a job is expected to use, with each one that ends


class YoungJobs:
    """Those of all clients, in the order of their starts."""

    def __init__(self) -> None:
        self._jobs: dict[Job, tuple[float, int]] = {}  # since when, and what it may still take
        self.reserved_bytes = 0
        self._peak_bytes = 0  # about what the larger ones of late have used

    def beginners(self, now: float) -> int:
        """How many began less than ``CROWD_S`` ago."""
        young = 0
        for since, _ in reversed(self._jobs.values()):
            if now - since > CROWD_S:
                break
            young += 1
        return young

    def reserve(self, job: Job, now: float) -> None:
        """What a job that has just begun takes is not in the host's figures yet."""
        for old, (since, reserved) in list(self._jobs.items()):
            if now - since < YOUNG_S:
                break
            del self._jobs[old]
            self.reserved_bytes -= reserved
        reserved = min(job.spec.limits.memory_bytes, self._peak_bytes)
        self._jobs[job] = (now, reserved)
        self.reserved_bytes += reserved

    def release(self, job: Job, usage: Usage) -> None:
        """It has ended: what it used tells what to expect of the next ones."""
        _, reserved = self._jobs.pop(job, (0.0, 0))
        self.reserved_bytes -= reserved
        expected = self._peak_bytes - int(PEAK_DECAY * self._peak_bytes)
        self._peak_bytes = max(usage.memory_peak_bytes, expected)
