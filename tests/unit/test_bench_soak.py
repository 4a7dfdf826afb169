"""What the soak calls a leak."""

import random

import pytest

from bench.soak import SLOPE_MAX_KB_MIN, Memory

MIB = 1 << 20


def memory(of_time, minutes=10):
    """Samples every two seconds."""
    times = [2.0 * n for n in range(int(minutes * 30))]
    return Memory([(t, int(of_time(t))) for t in times])


def test_what_grows_steadily_is_a_leak_whatever_is_on_its_way():
    chance = random.Random(1)

    def grows(t):
        return 20 * MIB + 300 * 1024 * t / 60 + chance.choice([0, 0, 8 * MIB])

    found = memory(grows)
    assert found.slope_kb_min() == pytest.approx(300, abs=10)
    assert found.is_leak()
    assert not memory(grows, minutes=3).is_leak()  # too short to tell


def test_what_comes_to_its_size_is_none():
    assert not memory(lambda t: min(30 * MIB, 20 * MIB + 2 * MIB * t / 60)).is_leak()
    for when in (310, 400, 450, 500, 590):
        assert not memory(lambda t, when=when: (21 if t > when else 20) * MIB).is_leak()


def test_templates_that_are_replaced_shrink_and_grow():
    assert abs(memory(lambda t: 3 * MIB + (t % 40) * 10_000).slope_kb_min()) < SLOPE_MAX_KB_MIN
    assert Memory([]).slope_kb_min() == 0.0
