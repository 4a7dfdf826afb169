"""Followers of a log, when there are many."""

import asyncio

from sandrun.http import follow
from sandrun.logs import STDERR, STDOUT, Gap, Record


def test_neighbours_of_one_stream_are_told_together_and_nothing_changes_places():
    entries = [
        Record(10, 0.1, STDOUT, b"a"),
        Record(20, 0.2, STDOUT, b"b"),
        Record(30, 0.3, STDERR, b"c"),
        Gap(40, 7),
        Record(50, 0.4, STDERR, b"d"),
        Record(60, 0.5, STDERR, b"e"),
    ]
    assert follow.joined(entries) == [
        Record(20, 0.1, STDOUT, b"ab"),
        Record(30, 0.3, STDERR, b"c"),
        Gap(40, 7),
        Record(60, 0.4, STDERR, b"de"),
    ]
    assert follow.joined([]) == []


def test_a_few_followers_never_wait_and_many_do(monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(follow.asyncio, "sleep", sleep)
    crowd = follow.Crowd()
    for count in (follow.FEW, 4000):
        crowd.count = count
        asyncio.run(crowd.take_turn())
    (seconds,) = waited
    assert 1.0 < seconds < 8.0
    with crowd:
        assert crowd.count == 4001
    assert crowd.count == 4000
