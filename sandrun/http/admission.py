"""Whether one more job would wait too long. Pure.

A bound on the queue's length says nothing about time: a thousand jobs of a
millisecond are nothing, ten of five minutes are an hour. So a job is accepted by
the wait that it would have: its place in the queue times the pace at which jobs
leave it, which is measured.

A burst may wait for as long as the operator allows (``queue_seconds``), or as long as a
job takes. A queue that does not get shorter than half a job's own time for
:data:`STANDING_S` is no burst but overload: from then on whoever would wait longer than
a quarter of it is refused, so that those who are accepted are served almost as fast as
ever: refusing takes processor time from the jobs, too. A queue as short as that still
never runs dry, since others come at once. It is over when nobody has had to be refused
for as long. (The distinction is that of
CoDel, Nichols and Jacobson 2012: good queue and bad queue.)

What counts is the place of this client's next job in the fair queue, not the length of
the queue: the first job of a new client is hardly ever refused for others' backlog.
``now`` is monotonic seconds.

:func:`crowded` is about the other end: when to hold back a job although a sandbox is
ready for it. Sixty short jobs at once on two processors end all together, after sixty
times the time that one takes; four at a time end one after the other, the last of them
no later. So while the processors have more to do than they can, only a few young jobs
run side by side, and the others wait where fairness decides. Jobs that sleep are no
crowd, and a host that others keep busy stops nobody: as many run as are there of others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

STANDING_S: Final = 5.0  # a queue of that age is no burst
TARGET_S: Final = 0.25  # no wait below this is called long
TARGET_SHARE: Final = 0.5  # of a job's own time: as long as that again would double the latency
OVERLOAD_S: Final = 0.05  # under overload: the least wait that is refused
OVERLOAD_SHARE: Final = 0.25
SMOOTHING: Final = 0.05  # twenty starts or so count: zygotes come in batches
YOUNG_PER_PROCESSOR: Final = 2  # may always run: one waits for memory while the other computes
CROWD: Final = 4  # runnable threads for each processor
OUR_SHARE: Final = 0.5  # of them: if the others are more, waiting would only leave it to them
STALL_STARTS: Final = 8  # no start for that many times the pace: the pace is not what it was


def crowded(young: int, runnable: Callable[[], int], processors: int) -> bool:
    """Whether the next job would only take time from those that have just begun.

    ``young``: jobs that began less than a second ago; ``runnable``: threads on this host
    that run or want to, asked only if it matters.
    """
    if young < YOUNG_PER_PROCESSOR * processors:
        return False
    threads = runnable()
    return threads > CROWD * processors and young >= OUR_SHARE * threads


class Admission:
    """Measures the pace, tells the wait. ``most_s``: the longest wait of a burst."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._pace_s = 0.0  # seconds between two starts while jobs wait; 0: not known
        self._last_start: float | None = None  # None: nothing waited after it
        self._standing_since: float | None = None
        self._overload_until: float | None = None  # None: there is none

    def on_start(self, waiting: int, now: float) -> None:
        """A job has left the queue; ``waiting`` are still in it."""
        if self._last_start is not None:
            gap = now - self._last_start
            self._pace_s = self._pace_s + SMOOTHING * (gap - self._pace_s) if self._pace_s else gap
        self._last_start = now if waiting else None

    def wait_s(self, place: int, now: float, guess_s: float) -> float:
        """Seconds until the job at ``place`` (1 is next) starts.

        ``guess_s``: the pace, as long as none has been measured.
        """
        pace = self._pace_s or guess_s
        if self._last_start is not None:
            pace = max(pace, (now - self._last_start) / STALL_STARTS)
        return place * pace

    def refusal(
        self, place: int, waiting: int, now: float, guess_s: float, service_s: float
    ) -> float:
        """0 if a job that would get ``place`` may come in, else after how many seconds to try."""
        target = max(TARGET_S, TARGET_SHARE * service_s)
        overload = self._look(self.wait_s(waiting, now, guess_s) > target, now)
        if overload:
            allowed = max(OVERLOAD_S, OVERLOAD_SHARE * service_s)
        else:
            allowed = max(service_s, self._most_s)
        # The next one always may: with nobody before it, waiting costs nobody anything.
        if place <= 1 or (wait := self.wait_s(place, now, guess_s)) <= allowed:
            return 0.0
        if overload:
            self._overload_until = now + STANDING_S
        return max(1.0, wait - allowed)

    def _look(self, long: bool, now: float) -> bool:
        """Whether this is overload, now that the wait is ``long`` or not."""
        if self._overload_until is not None and now < self._overload_until:
            return True
        self._overload_until = None
        if not long:
            self._standing_since = None
        elif self._standing_since is None:
            self._standing_since = now
        elif now - self._standing_since >= STANDING_S:
            self._standing_since = None
            self._overload_until = now + STANDING_S
            return True
        return False
