"""When to start a child again, and when to say why not. Pure.

Exponential back-off with a circuit breaker: a child that keeps dying young is
tried ever more rarely, and its last cause of death is what ``/health`` shows.
A child that lived for a while starts with a clean slate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 10.0
HEALTHY_AFTER_S: Final = 10.0  # lived this long: its death is news, not a pattern
OPEN_AFTER: Final = 5  # failures in a row until we call it broken


@dataclass
class Restart:
    """The record of one child's deaths. Times are seconds of any monotonic clock."""

    failures: int = 0
    started: float = 0.0
    cause: str = ""

    def on_start(self, now: float) -> None:
        """The child was started."""
        self.started = now

    def on_success(self) -> None:
        """The child did what it is for."""
        self.failures = 0
        self.cause = ""

    def on_failure(self, now: float, cause: str) -> float:
        """The child died or failed. Returns the seconds to wait before the next try."""
        if self.started and now - self.started >= HEALTHY_AFTER_S:
            self.failures = 0
        self.failures += 1
        self.cause = cause
        return float(min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (self.failures - 1)))

    @property
    def fault(self) -> str:
        """The cause if this child is broken, else ""."""
        return self.cause if self.failures >= OPEN_AFTER else ""
