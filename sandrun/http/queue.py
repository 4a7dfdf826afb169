"""Who runs next: deficit round-robin between clients by CPU seconds. Pure.

Every client that waits has a *flow*: its jobs in order of arrival and a balance
of CPU seconds. A flow with a positive balance may start a job and pays for it; a
flow without gets one quantum more and goes to the end of the line. Three changes
to the textbook (Shreedhar and Varghese, 1995), because a job's cost is known
only when it has ended:

* A flow pays the *expected* cost at the start and the difference at the end, so
  the balance may be negative: a debt. Textbook DRR would make a client with one
  long job wait for several rounds before it could start it.
* A debt outlives an empty flow (else a client would clear it by waiting for its
  queue to run dry), shrinks by one quantum per round, and is forgotten at zero.
* Flows without debt that have just become active are served before the old ones,
  once (the "new flows" of FQ-CoDel, RFC 8290): a new client's first job waits for
  other *new* clients only, never for anybody's backlog.

Bound, shown by simulation in the tests: when a job of a new client arrives, at
most one job of each other client that is new too can start before it, however
long the queues of the old ones are.

Some jobs cannot start although it is their turn (no sandbox of their environment
is ready): ``pop`` takes a predicate and passes them over without charging them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

QUANTUM_S: Final = 1.0  # CPU seconds: most jobs cost less, so most rounds start one job each
EXPECTED_S: Final = 1.0  # of a client's first job; afterwards its own average
MAX_DEBTORS: Final = 16_384

Item = TypeVar("Item")


class _Flow(Generic[Item]):
    __slots__ = ("balance_s", "expected_s", "items", "round")

    def __init__(self, balance_s: float, expected_s: float) -> None:
        self.items: deque[Item] = deque()
        self.balance_s = balance_s
        self.expected_s = expected_s
        self.round = 0


class FairQueue(Generic[Item]):
    """Items of many clients. ``client`` is any hashable."""

    def __init__(self, quantum_s: float = QUANTUM_S) -> None:
        self._quantum_s = quantum_s
        self._flows: OrderedDict[Hashable, _Flow[Item]] = OrderedDict()  # with items
        self._new: OrderedDict[Hashable, None] = OrderedDict()  # of these, not yet served
        self._idle: OrderedDict[Hashable, _Flow[Item]] = OrderedDict()  # debts and averages
        self._round = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, client: Hashable, item: Item, *, first: bool = False) -> None:
        """Append; ``first`` puts an item back that has already had its turn."""
        flow = self._flows.get(client)
        if flow is None:
            flow = self._wake(client)
            self._flows[client] = flow
            if flow.balance_s >= 0:
                self._new[client] = None
        if first:
            flow.items.appendleft(item)
        else:
            flow.items.append(item)
        self._length += 1

    def _wake(self, client: Hashable) -> _Flow[Item]:
        flow = self._idle.pop(client, None)
        if flow is None:
            return _Flow(0.0, EXPECTED_S)
        forgiven = (self._round - flow.round) * self._quantum_s
        flow.balance_s = min(0.0, flow.balance_s + forgiven)
        return flow

    def pop(self, ready: Callable[[Item], bool] = lambda _: True) -> Item | None:
        """The next item for which ``ready`` says yes, or None."""
        for client in self._new:
            if ready(self._flows[client].items[0]):
                del self._new[client]
                return self._start(client, self._flows[client])
        able = [c for c, flow in self._flows.items() if ready(flow.items[0])]
        if not able:
            return None
        for client in able:
            if self._flows[client].balance_s > 0:
                return self._start(client, self._flows[client])
            # It had its turn and only gets its quantum: to the end of the line.
        return self._next_round(able)

    def _next_round(self, able: list[Hashable]) -> Item:
        """Nobody can pay: give quanta until the first one can, all at once."""
        rounds = 1 + min(int(-self._flows[client].balance_s / self._quantum_s) for client in able)
        self._round += rounds
        for client in able:
            self._flows[client].balance_s += rounds * self._quantum_s
        chosen = next(client for client in able if self._flows[client].balance_s > 0)
        return self._start(chosen, self._flows[chosen])

    def _start(self, client: Hashable, flow: _Flow[Item]) -> Item:
        item = flow.items.popleft()
        self._length -= 1
        flow.balance_s -= flow.expected_s
        if not flow.items:
            del self._flows[client]
            self._rest(client, flow)
        elif flow.balance_s <= 0:
            self._flows.move_to_end(client)
        return item

    def _rest(self, client: Hashable, flow: _Flow[Item]) -> None:
        flow.balance_s = min(0.0, flow.balance_s)
        flow.round = self._round
        self._idle[client] = flow
        if len(self._idle) > MAX_DEBTORS:
            self._idle.popitem(last=False)

    def settle(self, client: Hashable, cpu_seconds: float) -> None:
        """A started item has ended and really used ``cpu_seconds``."""
        flow = self._flows.get(client) or self._idle.get(client)
        if flow is None:
            return
        flow.balance_s += flow.expected_s - cpu_seconds
        if client in self._idle:
            flow.balance_s = min(0.0, flow.balance_s)
        flow.expected_s += 0.3 * (cpu_seconds - flow.expected_s)

    def standing(self, client: Hashable) -> tuple[float, float]:
        """(balance, expected cost) of a client, to be given to :meth:`restore`."""
        flow = self._flows.get(client)
        if flow is not None:
            return flow.balance_s, flow.expected_s
        flow = self._idle.get(client)
        if flow is None:
            return 0.0, EXPECTED_S
        forgiven = (self._round - flow.round) * self._quantum_s
        return min(0.0, flow.balance_s + forgiven), flow.expected_s

    def restore(self, client: Hashable, balance_s: float, expected_s: float) -> None:
        """A client of an earlier process, before any of its items is pushed."""
        self._rest(client, _Flow(balance_s, expected_s))

    def remove(self, client: Hashable, item: Item) -> bool:
        """Take an item out (cancelled, expired). Whether it was there."""
        flow = self._flows.get(client)
        if flow is None or item not in flow.items:
            return False
        flow.items.remove(item)
        self._length -= 1
        if not flow.items:
            del self._flows[client]
            self._new.pop(client, None)
            self._rest(client, flow)
        return True

    def position(self, client: Hashable, item: Item) -> int:
        """How many items start before this one, about, plus one; 0 if it is not here.

        Every other client starts at most as many jobs before it as stand before it
        in its own flow, and one more if it is ahead in line.
        """
        flow = self._flows.get(client)
        if flow is None or item not in flow.items:
            return 0
        return self._place(client, flow.items.index(item), new=client in self._new)

    def next_position(self, client: Hashable) -> int:
        """The position that one more item of ``client`` would have."""
        flow = self._flows.get(client)
        if flow is not None:
            return self._place(client, len(flow.items), new=client in self._new)
        idle = self._idle.get(client)
        return self._place(client, 0, new=idle is None or self.standing(client)[0] >= 0)

    def _place(self, client: Hashable, index: int, *, new: bool) -> int:
        ahead, behind_us = index, False
        for other, theirs in self._flows.items():
            if other == client:
                behind_us = True
                continue
            first = other in self._new and not new
            turns = index + (0 if behind_us and not first else 1)
            if new and other not in self._new:
                turns = index
            ahead += min(len(theirs.items), turns)
        return ahead + 1

    def __iter__(self) -> Iterator[Item]:
        for flow in self._flows.values():
            yield from flow.items
