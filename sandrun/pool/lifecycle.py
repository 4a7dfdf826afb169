"""Life of one zygote, as a table. Runs as: root (supervisor). Pure.

::

    ORDERED ─spawned▶ BOOTING ─booted▶ LEASED ─taken▶ BUSY ─finished▶ ENDING ─exited▶ GONE

From every living state a death leads to GONE, and a kill to ENDING. What is not
in the table is a bug or a lie of a peer: the zygote is killed on doubt, never
repaired. Nothing leads back: a zygote serves one job at most.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final


class State(IntEnum):
    """Where a zygote is in its life."""

    ORDERED = auto()  # the spawner was asked
    BOOTING = auto()  # PID 1 exists
    LEASED = auto()  # ready, in http's hands
    BUSY = auto()  # http dispatched a job
    ENDING = auto()  # finished or killed, not yet reaped
    GONE = auto()


class Event(IntEnum):
    """What may happen to it."""

    SPAWNED = auto()
    BOOTED = auto()
    FAILED = auto()  # a boot step failed
    TAKEN = auto()
    FINISHED = auto()
    KILLED = auto()
    EXITED = auto()  # reaped: every process of its pid namespace is gone


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.ORDERED, Event.SPAWNED): State.BOOTING,
    (State.ORDERED, Event.FAILED): State.GONE,
    (State.BOOTING, Event.BOOTED): State.LEASED,
    (State.BOOTING, Event.FAILED): State.ENDING,
    (State.LEASED, Event.TAKEN): State.BUSY,
    (State.LEASED, Event.FINISHED): State.ENDING,  # http gave it back unused
    (State.BUSY, Event.FINISHED): State.ENDING,
    (State.ENDING, Event.FINISHED): State.ENDING,
    (State.ENDING, Event.TAKEN): State.ENDING,  # it died while the message was on its way
    (State.ENDING, Event.BOOTED): State.ENDING,
    (State.ENDING, Event.FAILED): State.ENDING,
    **{
        (state, Event.KILLED): State.ENDING
        for state in (State.BOOTING, State.LEASED, State.BUSY, State.ENDING)
    },
    **{
        (state, Event.EXITED): State.GONE
        for state in (State.BOOTING, State.LEASED, State.BUSY, State.ENDING)
    },
}


def step(state: State, event: Event) -> State | None:
    """The next state, or None if this cannot happen."""
    return TRANSITIONS.get((state, event))
