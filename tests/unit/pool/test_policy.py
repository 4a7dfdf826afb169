"""How many zygotes are kept, and when they are made. No kernel, no clock but our own."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun.pool import policy
from sandrun.pool.policy import Demand


def arrivals(demand: Demand, rate: float, seconds: float, start: float = 0.0) -> float:
    """Poisson arrivals; when the last one was."""
    source, now = random.Random(7), start
    while now < start + seconds:
        now += source.expovariate(rate)
        demand.on_taken(now)
    return now


def test_without_demand_there_is_the_floor():
    assert Demand().target(0.0, 4, 32) == 4


def test_the_stock_follows_the_rate_and_the_time_that_a_boot_takes():
    slow, quick = Demand(boot_s=0.5), Demand(boot_s=0.02)
    now = arrivals(slow, 20, 30)
    assert arrivals(quick, 20, 30) == now
    # 10 are expected while one boots: with three deviations about 20.
    assert 14 <= slow.target(now, 4, 64) <= 28
    assert quick.target(now, 4, 64) == 4


def test_the_ceiling_is_never_passed():
    demand = Demand(boot_s=5.0)
    now = arrivals(demand, 200, 5)
    demand.on_short(now, 1000)
    assert demand.target(now, 4, 32) == 32


def test_a_burst_is_remembered_and_then_forgotten():
    demand = Demand()
    demand.on_short(10.0, 20)
    assert demand.target(10.0, 4, 32) == 20
    assert demand.target(10.0 + policy.PEAK_HALF_LIFE_S, 4, 32) == 10
    assert demand.target(10.0 + 5 * policy.PEAK_HALF_LIFE_S, 4, 32) == 4


def test_what_was_a_rate_is_the_floor_again_when_nobody_comes():
    demand = Demand(boot_s=1.0)
    now = arrivals(demand, 10, 20)
    assert demand.target(now, 2, 32) > 10
    assert demand.target(now + 60, 2, 32) == 2


def test_slower_boots_raise_the_stock():
    demand = Demand()
    now = arrivals(demand, 20, 20)
    before = demand.target(now, 2, 64)
    for _ in range(20):
        demand.on_booted(0.8)
    assert demand.target(now, 2, 64) > before


@pytest.mark.parametrize(
    ("share", "ceiling"), [(0.5, 32), (0.11, 32), (0.09, 4), (0.051, 4), (0.04, 1)]
)
def test_short_memory_takes_the_surplus_first_and_then_the_stock(share, ceiling):
    assert policy.ceiling_for(4, 32, share) == ceiling


def test_a_refill_waits_for_running_jobs_only_while_half_is_left():
    assert policy.to_make(8, 0, 7, lazily=True) == 0
    assert policy.to_make(8, 0, 4, lazily=True) == 0
    assert policy.to_make(8, 0, 3, lazily=True) == 1
    assert policy.to_make(8, 0, 3, lazily=False) == 5


def test_who_waits_for_a_zygote_is_served_at_once():
    assert policy.to_make(8, 12, 5, lazily=True) == 7


@given(st.integers(0, 64), st.integers(0, 64), st.integers(0, 64), st.booleans())
def test_never_more_than_is_missing(target, wanted, stock, lazily):
    made = policy.to_make(target, wanted, stock, lazily=lazily)
    assert 0 <= made <= max(0, max(target, wanted) - stock)
