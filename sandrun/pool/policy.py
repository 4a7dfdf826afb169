"""How many zygotes of a kind to keep, and when to make them. Runs as: root. Pure.

A refill costs several times what a short job costs, and on a small machine it takes
the processor from somebody who waits for a result. So:

* *How many*: what is expected to be taken while one is being made (arrivals per
  second times the seconds that a boot takes), with three standard deviations of
  Poisson arrivals on top; never less than the operator's floor, never more than the
  ceiling. A burst that found too few is remembered for a while (``peak``): the next
  one finds as many as it had to wait for.
* *When*: at once while jobs wait for one, or while less than half is left. Otherwise
  when no job runs, or a moment later (:data:`HOLD_S`): no job is long enough to starve
  the pool.
* *How fast*: a few of a kind at once. Ten boots side by side on two processors end
  together, late; two by two the first is there after a fifth of the time.
* Short memory takes the surplus first (:func:`ceiling_for`), then the stock itself.

Half-lives rather than windows: two numbers per kind, whatever happens.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final

RATE_HALF_LIFE_S: Final = 5.0  # of arrivals: a pause of ten seconds leaves a quarter
PEAK_HALF_LIFE_S: Final = 30.0  # of a burst: who submits a batch does so again soon
FIRST_BOOT_S: Final = 0.05  # until one has been seen
HOLD_S: Final = 0.03  # of a refill while jobs run: longer than a short job
BOOTS_AT_ONCE: Final = 2 * (os.cpu_count() or 1)  # of one kind: a boot also waits for the kernel
SHRINK_EVERY_S: Final = 5.0  # how often surplus is looked for, while there may be some
LOW_SHARE: Final = 0.10  # of the host's memory: below it nothing beyond the floor is made
VERY_LOW_SHARE: Final = 0.05  # below it one of a kind has to do


@dataclass(slots=True)
class Demand:
    """What is known of the demand for one kind. Times are seconds of any monotonic clock."""

    boot_s: float = FIRST_BOOT_S
    _rate: float = 0.0  # arrivals per second, at _seen
    _peak: float = 0.0  # zygotes that a burst would have needed, at _seen
    _seen: float = 0.0

    def _age(self, now: float) -> None:
        passed, self._seen = max(0.0, now - self._seen), now
        self._rate *= 0.5 ** (passed / RATE_HALF_LIFE_S)
        self._peak *= 0.5 ** (passed / PEAK_HALF_LIFE_S)

    def on_taken(self, now: float) -> None:
        """A job took one."""
        self._age(now)
        self._rate += math.log(2) / RATE_HALF_LIFE_S  # so that a steady rate reads as itself

    def on_short(self, now: float, needed: int) -> None:
        """Jobs wait: so many would have been enough."""
        self._age(now)
        self._peak = max(self._peak, needed)

    def on_booted(self, seconds: float) -> None:
        """One was made in so much time."""
        self.boot_s += 0.2 * (seconds - self.boot_s)

    def target(self, now: float, floor: int, ceiling: int) -> int:
        """How many to keep ready."""
        self._age(now)
        expected = self._rate * self.boot_s
        enough = expected + 3 * math.sqrt(expected)
        return min(ceiling, max(floor, math.ceil(enough - 0.5), round(self._peak)))


def ceiling_for(floor: int, ceiling: int, memory_share: float) -> int:
    """The ceiling of a kind on a host that has this share of its memory left."""
    if memory_share < VERY_LOW_SHARE:
        return 1
    if memory_share < LOW_SHARE:
        return min(floor, ceiling)
    return ceiling


def to_make(target: int, wanted: int, stock: int, *, lazily: bool) -> int:
    """How many of a kind are missing now.

    ``stock``: ready ones and those that are being made. ``wanted``: jobs that wait for
    one. ``lazily``: jobs run, and the refill may wait for them.
    """
    level = (target + 1) // 2 if lazily and not wanted else max(target, wanted)
    return max(0, level - stock)
