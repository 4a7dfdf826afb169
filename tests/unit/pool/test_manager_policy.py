"""The manager's orders, without spawners: what it would order is made at once, by hand."""

import asyncio

import pytest

from sandrun.config import parse
from sandrun.messages import Booted, GiveBack, PoolState
from sandrun.pool import policy
from sandrun.pool.lifecycle import Event, State
from sandrun.pool.manager import Kind, Manager, Zygote
from sandrun.pool.pressure import HostMemory
from sandrun.pool.supplies import Supplies

CONFIG = """
[pool]
ready = {ready}
ready_max = {most}
capacity = {capacity}
"""


class Loop:
    """A clock that stands still, and a list of what is to happen."""

    def __init__(self):
        self.now = 1000.0
        self.soon = []
        self.later = []

    def time(self):
        return self.now

    def call_soon(self, work, *args):
        self.soon.append((work, args))

    def call_later(self, delay, work, *args):
        handle = asyncio.TimerHandle(self.now + delay, work, args, asyncio.get_running_loop())
        self.later.append(handle)
        return handle

    def run(self):
        while self.soon:
            work, args = self.soon.pop(0)
            work(*args)

    def pass_time(self, seconds):
        self.now += seconds
        due = [handle for handle in self.later if handle.when() <= self.now]
        self.later = [handle for handle in self.later if handle.when() > self.now]
        for handle in due:
            if not handle.cancelled():
                handle._run()
        self.run()


class Plenty(Supplies):
    """A host with memory, until a test says otherwise."""

    available = 1 << 30

    def memory(self, hierarchy):
        return HostMemory(1 << 30, self.available)


class Pool(Manager):
    """Zygotes without a sandbox. Those that are ordered are LEASED when :meth:`boot` says so."""

    def __init__(self, *, ready=4, most=32, capacity=64):
        self.said = []
        super().__init__(
            parse(CONFIG.format(ready=ready, most=most, capacity=capacity)),
            None,
            {},
            {},
            landlock=False,
            noswap=False,
            to_http=lambda message, fds: self.said.append(message),
            supplies=Plenty(),
        )
        self.loop = Loop()
        self.leasing = True
        self.spawners["default"].up = True
        self.add("python3", "fork", ready)

    def add(self, warm, mode, ready):
        self.kinds.append(Kind("default", warm, mode, ready))
        return self.kinds[-1]

    def _order(self, kind):
        zygote = Zygote(self._next_id, kind, 0, None, -1, (), ordered=self.loop.time())
        self._next_id += 1
        self.zygotes[zygote.id] = zygote
        self._count(zygote, 1)
        return True

    def boot(self, seconds=0.05):
        """Everything that was ordered; how many that were."""
        coming = [z for z in self.zygotes.values() if z.state is State.ORDERED]
        for zygote in coming:
            zygote.ordered = self.loop.time() - seconds
            self._advance(zygote, Event.SPAWNED)
            self._on_booted(Booted(zygote=zygote.id))
        self.loop.run()
        return len(coming)

    def fill(self):
        self.refill()
        self.loop.run()
        while self.boot():
            pass
        return self.kinds[0]

    def take(self, kind):
        zygote = next(
            z for z in self.zygotes.values() if z.kind is kind and z.state is State.LEASED
        )
        zygote.leased, zygote.lease_fds = True, (-1, -1, -1)
        assert self.bind(zygote.id)
        self.loop.run()
        return zygote

    def end(self, zygote):
        self._advance(zygote, Event.FINISHED)
        self._refill_after(zygote.kind)
        self.loop.run()


def in_loop(test):
    """Run an ordinary function where there is a loop to ask for."""

    async def main():
        test()

    return lambda: asyncio.run(main())


@in_loop
def test_every_kind_is_filled_to_its_floor_a_few_at_a_time():
    pool = Pool(ready=20)
    pool.refill()
    pool.loop.run()
    kind = pool.kinds[0]
    assert kind.coming == policy.BOOTS_AT_ONCE
    while pool.boot():
        assert kind.coming <= policy.BOOTS_AT_ONCE
    assert (kind.counts[State.LEASED], kind.coming) == (20, 0)


@in_loop
def test_a_refill_waits_while_a_job_runs_and_half_is_left():
    pool = Pool(ready=8)
    kind = pool.fill()
    job = pool.take(kind)
    assert kind.coming == 0
    pool.end(job)  # nobody waits for a result any more
    assert kind.coming == 1


@in_loop
def test_a_refill_does_not_wait_for_a_long_job():
    pool = Pool(ready=8)
    kind = pool.fill()
    pool.take(kind)
    pool.loop.pass_time(policy.HOLD_S)
    assert kind.coming == 1


@in_loop
def test_below_half_a_refill_does_not_wait():
    pool = Pool(ready=8)
    kind = pool.fill()
    for _ in range(4):
        pool.take(kind)
    assert kind.coming == 0
    pool.take(kind)
    assert kind.coming == 1


@in_loop
def test_a_burst_is_made_for_in_full_and_found_the_next_time():
    pool = Pool(ready=2)
    kind = pool.fill()
    for _ in range(2):
        pool.take(kind)
    pool.want("default", "python3", 10)
    pool.loop.run()
    assert kind.coming == policy.BOOTS_AT_ONCE
    while kind.wanted:
        pool.boot()
        for _ in range(min(kind.counts[State.LEASED], kind.wanted)):
            pool.take(kind)
            pool.want("default", "python3", kind.wanted - 1)
    for zygote in list(pool.zygotes.values()):
        if zygote.state is State.BUSY:
            pool.end(zygote)
    while pool.boot():
        pass
    assert kind.counts[State.LEASED] == 12


@in_loop
def test_surplus_goes_when_nobody_has_needed_it_and_then_no_timer_is_left():
    pool = Pool(ready=2)
    kind = pool.fill()
    pool.want("default", "python3", 16)
    pool.want("default", "python3", 0)
    pool.fill()
    assert kind.counts[State.LEASED] == 16
    for _ in range(40):
        pool.said.clear()
        pool.loop.pass_time(policy.SHRINK_EVERY_S)
        for message in pool.said:
            if isinstance(message, GiveBack):
                pool.end(pool.zygotes[message.zygote])
    assert kind.counts[State.LEASED] == 2
    pool.loop.pass_time(60)
    assert pool.loop.later == []


@in_loop
def test_what_no_kind_is_warm_for_waits_for_a_generic_one():
    pool = Pool()
    generic = pool.add("exec", "exec", 2)
    pool.fill()
    pool.want("default", "bash", 3)
    pool.want("default", "node", 4)
    assert generic.wanted == 7
    assert pool.kinds[0].wanted == 0
    pool.want("default", "bash", 0)
    assert generic.wanted == 4
    assert not pool.is_idle("default")
    pool.want("default", "node", 0)
    assert pool.is_idle("default")


@in_loop
def test_a_kind_that_jobs_wait_for_is_made_before_the_others():
    pool = Pool(ready=1)
    waiting = pool.add("exec", "exec", 1)
    orders = []
    order = pool._order
    pool._order = lambda kind: orders.append(kind) or order(kind)
    pool.want("default", "bash", 1)
    pool.refill()
    pool.loop.run()
    assert orders == [waiting, pool.kinds[0]]


@in_loop
def test_no_more_are_kept_than_may_run():
    pool = Pool(ready=4, capacity=6)
    kind = pool.fill()
    for _ in range(4):
        pool.take(kind)
    pool.loop.pass_time(policy.HOLD_S)
    while pool.boot():
        pass
    assert kind.counts[State.LEASED] == 2


@in_loop
def test_short_memory_shrinks_the_stock():
    pool = Pool(ready=4)
    kind = pool.fill()
    pool.supplies.available = (1 << 30) * policy.VERY_LOW_SHARE / 2
    pool.report()
    assert pool.target(kind) == 1
    pool._look_for_surplus(kind)
    assert sum(isinstance(m, GiveBack) for m in pool.said) == 2  # half of what is too much


@in_loop
def test_the_counts_are_those_of_the_zygotes():
    pool = Pool(ready=8)
    kind = pool.fill()
    jobs = [pool.take(kind) for _ in range(6)]
    pool.end(jobs[0])
    pool.boot()
    pool.report()
    states = [zygote.state for zygote in pool.zygotes.values()]
    for state in State:
        assert kind.counts[state] == pool.counts[state] == states.count(state)
    said = next(m for m in reversed(pool.said) if isinstance(m, PoolState))
    assert (said.warm, said.busy) == (states.count(State.LEASED), states.count(State.BUSY))
    assert said.kinds[0].coming == kind.coming


@in_loop
def test_http_hears_of_many_changes_once():
    pool = Pool(ready=8)
    kind = pool.fill()
    pool.loop.pass_time(1)
    pool.said.clear()
    for _ in range(5):
        pool.take(kind)
    assert pool.said == []
    pool.loop.pass_time(1)
    assert sum(isinstance(m, PoolState) for m in pool.said) == 1


@in_loop
def test_a_kind_whose_boot_failed_is_not_to_be_waited_for():
    pool = Pool()
    kind = pool.fill()
    pool._boot_failure(kind, "template: it died")
    pool.report()
    assert not next(m for m in reversed(pool.said) if isinstance(m, PoolState)).kinds[0].served


@pytest.mark.parametrize("count", [10, 1000])
def test_an_order_looks_at_its_own_kind_only(count):
    """Once every event looked at every zygote, for every kind: creation grew with the stock."""

    async def main():
        pool = Pool(ready=count, most=count + 1, capacity=2 * count)
        kind = pool.fill()

        class Unseen(dict):
            def values(self):
                raise AssertionError("somebody looks at all zygotes")

        job = pool.take(kind)
        pool.zygotes = Unseen(pool.zygotes)
        pool.end(job)
        pool.report()
        assert kind.coming == 1

    asyncio.run(main())
