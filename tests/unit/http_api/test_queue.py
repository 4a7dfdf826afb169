"""Deficit round-robin: who runs next, and a bound on a new client's wait."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun.config import RateLimit
from sandrun.errors import RequestError
from sandrun.http.queue import FairQueue
from sandrun.http.quota import Quota


def drain(queue: FairQueue[str]) -> list[str]:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item)
    return found


def test_one_client_is_served_in_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in "abc":
        queue.push("x", item)
    assert drain(queue) == ["a", "b", "c"]
    assert len(queue) == 0


def test_a_backlog_never_delays_another_clients_first_job() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.push("greedy", f"g{number}")
    assert queue.pop() == "g0"
    queue.push("new", "n0")
    assert queue.position("new", "n0") == 1
    assert queue.pop() == "n0"


def test_clients_with_backlogs_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        for client in "xyz":
            queue.push(client, f"{client}{number}")
    served = drain(queue)
    for start in (0, 3, 6):
        assert {item[0] for item in served[start : start + 3]} == {"x", "y", "z"}


def test_who_used_more_cpu_waits_longer() -> None:
    queue: FairQueue[str] = FairQueue()
    counts = {"heavy": 0, "light": 0}
    for number in range(200):
        queue.push("heavy", f"heavy {number}")
        queue.push("light", f"light {number}")
    for _ in range(100):
        item = queue.pop()
        assert item is not None
        client = item.split()[0]
        counts[client] += 1
        queue.settle(client, 10.0 if client == "heavy" else 1.0)
    assert counts["light"] > 5 * counts["heavy"]


def test_a_debt_outlives_an_empty_queue() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("heavy", "h0")
    assert queue.pop() == "h0"
    queue.settle("heavy", 100.0)
    for number in range(10):
        queue.push("light", f"l{number}")
    queue.push("heavy", "h1")
    served = drain(queue)
    assert served[-1] == "h1"


def test_a_job_whose_sandbox_is_not_ready_is_passed_over_and_keeps_its_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("x", "needs pandas")
    queue.push("y", "plain")
    assert queue.pop(lambda item: item == "plain") == "plain"
    assert queue.pop(lambda item: item == "plain") is None
    assert queue.pop() == "needs pandas"


def test_what_had_its_turn_goes_back_to_the_front() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("x", "a")
    queue.push("x", "b")
    assert queue.pop() == "a"
    queue.push("x", "a", first=True)
    assert drain(queue) == ["a", "b"]


def test_removed_items_are_gone() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("x", "a")
    queue.push("x", "b")
    assert queue.remove("x", "a")
    assert not queue.remove("x", "a")
    assert queue.remove("x", "b")
    assert queue.pop() is None
    assert queue.position("x", "a") == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(0, 5)),
            st.tuples(st.just("pop"), st.integers(0, 20)),
            st.tuples(st.just("remove"), st.integers(0, 5)),
        ),
        max_size=200,
    )
)
def test_every_item_comes_out_exactly_once(steps: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    inside: dict[int, int] = {}
    number = 0
    for step, value in steps:
        if step == "push":
            queue.push(value, number)
            inside[number] = value
            number += 1
        elif step == "pop":
            item = queue.pop()
            assert (item is None) == (not inside)
            if item is not None:
                queue.settle(inside.pop(item), float(value))
        else:
            mine = [item for item, client in inside.items() if client == value]
            if mine:
                assert queue.position(value, mine[-1]) >= len(mine)
                assert queue.remove(value, mine[-1])
                del inside[mine[-1]]
        assert len(queue) == len(inside)
    assert sorted(queue) == sorted(inside)


# ── the simulation of issue 5 ───────────────────────────────────────────────

SLOTS = 8
HOURS = 3
CLIENTS = 1000


@pytest.mark.timeout(120)
def test_a_thousand_clients_for_hours_and_a_new_clients_first_job_starts_within_the_bound() -> None:
    """Greedy, steady and rare clients with jobs from 0.1 to 60 s share 8 slots.

    Bound: before a first job start at most one job each of those clients that
    waited already when it came, never a second one and never a later comer's.
    """
    chance = random.Random(5)
    now = 0.0
    config = RateLimit(concurrent_jobs=5, jobs_per_hour=1000, cpu_seconds_per_minute=30)
    quota = Quota(config, lambda size: chance.randbytes(size), now)
    queue: FairQueue[tuple[int, int]] = FairQueue()
    events: list[tuple[float, int, str, tuple[int, int]]] = []
    order = iter(range(10**9))

    def at(when: float, what: str, job: tuple[int, int]) -> None:
        heapq.heappush(events, (when, next(order), what, job))

    def cost(client: int) -> float:
        return chance.choice((20.0, 60.0)) if client % 10 == 0 else chance.uniform(0.1, 3.0)

    for client in range(CLIENTS):
        at(chance.uniform(0, HOURS * 3600), "come", (client, 0))
    seen: set[int] = set()
    ahead: dict[int, set[int]] = {}  # who may still start one job before its first
    free, starts, finished, waited = SLOTS, 0, 0, 0
    backlog = 0
    while events:
        now, _, what, job = heapq.heappop(events)
        client, number = job
        account = quota.client(f"10.{client >> 8}.{client & 255}.1", now)
        if what == "come":
            try:
                quota.admit(account, now)
            except RequestError as error:
                assert error.retry_after_s is not None
                if number < 30:
                    at(now + error.retry_after_s, "come", job)
                continue
            queue.push(client, job)
            if client not in seen:
                seen.add(client)
                ahead[client] = {other for other, _ in queue} - {client}
                waited += bool(ahead[client])
            more = 30 if client % 10 == 0 else 3
            if number < more and now < HOURS * 3600:
                pause = 0.01 if client % 10 == 0 else chance.uniform(1, 600)
                at(now + pause, "come", (client, number + 1))
        else:
            free += 1
            finished += 1
            quota.settle(account, cost(client), now)
            queue.settle(client, cost(client))
        backlog = max(backlog, len(queue))
        while free and (started := queue.pop()) is not None:
            free -= 1
            starts += 1
            if started[1] == 0:
                del ahead[started[0]]
            for allowed in ahead.values():
                assert started[0] in allowed
                allowed.remove(started[0])
            at(now + cost(started[0]), "end", started)
    assert len(seen) == CLIENTS
    assert finished == starts
    assert backlog > 50  # else the test shows nothing
    assert waited > 100
    assert not ahead
