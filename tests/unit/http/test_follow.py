"""Followers of a log, when there are many."""

import asyncio
import os
from collections import Counter
from types import SimpleNamespace

import pytest

from sandrun.http import archive, follow, views
from sandrun.http.handlers import outputs
from sandrun.logs import HEADER_BYTES, STDERR, STDOUT, Gap, LogReader, LogWriter, Record


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


# ── what others wait for ─────────────────────────────────────────────────────

LOG_BYTES = 1 << 20
LINES = 60_000
READERS = 12


class CountingReader(LogReader):
    """Knows what it has read of the records."""

    def __init__(self, fd, capacity):
        super().__init__(fd, capacity)
        self.sizes = []

    def _block(self, at, size):
        self.sizes.append(size)
        return super()._block(at, size)


@pytest.fixture(name="ended")
def make_ended():
    """A job that has ended, with a log whose middle is lost."""
    fd = os.memfd_create("log")
    writer = LogWriter(fd, LOG_BYTES)
    for _ in range(LINES):
        writer.write(STDOUT, b"x\n", 0.5)
    kept = SimpleNamespace(log=CountingReader(fd, LOG_BYTES))
    yield SimpleNamespace(kept=kept, log_end=writer.end, has_ended=True, watchers=set())
    os.close(fd)


def test_where_a_log_ends_is_not_looked_for(ended):
    """The whole log was read for that, for each answer in JSON and each one in text."""
    assert follow.end_of(ended.kept, 0) == ended.log_end
    assert ended.kept.log.sizes == []


def test_a_log_of_small_records_is_read_about_once_and_in_large_blocks(ended):
    log = ended.kept.log
    found = [entry for step in follow.steps(ended.kept, 0, ended.log_end) for entry in step]
    assert sum(len(entry.data) for entry in found if isinstance(entry, Record)) > LOG_BYTES // 20
    assert sum(log.sizes) <= 1.25 * (LOG_BYTES - HEADER_BYTES)
    assert len(log.sizes) <= 2.5 * LOG_BYTES / follow.STEP_BYTES


async def in_turns(readers):
    """Let them read side by side: how many steps there were in each turn of the loop, but
    for each one's first.
    """
    steps, turn = Counter(), 0

    async def read(reader):
        await anext(reader)
        async for _ in reader:
            steps[turn] += 1

    tasks = [asyncio.ensure_future(read(reader)) for reader in readers]
    while not all(task.done() for task in tasks):
        turn += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    return steps


def test_in_a_turn_of_the_loop_one_reader_of_a_long_log_makes_a_step(ended):
    """Each of them used to read to the end before anybody else was heard."""

    async def all_of_them():
        return await in_turns([follow.follow(ended, 0) for _ in range(READERS)])

    steps = asyncio.run(all_of_them())
    assert steps.total() >= READERS * (LOG_BYTES // follow.STEP_BYTES - 2)
    assert max(steps.values()) == 1


def test_in_a_turn_of_the_loop_one_piece_of_a_file_is_sent():
    """To a client who takes it as fast as it comes, the whole file was sent in one turn."""
    size = 6 * archive.PIECE_BYTES + 1
    fd = os.memfd_create("outputs")
    os.ftruncate(fd, size)

    class Client:
        """Takes everything at once, and is asked what it has got."""

        request = SimpleNamespace(method="GET")

        def __init__(self):
            self.pieces = []

        async def write(self, data):
            self.pieces.append(len(data))

    async def all_of_them():
        clients = [Client() for _ in range(READERS)]
        sending = [asyncio.ensure_future(outputs._send(c, fd, 0, size)) for c in clients]
        seen, most = READERS, 0
        await asyncio.sleep(0)  # each one's first
        while not all(task.done() for task in sending):
            await asyncio.sleep(0)
            now = sum(len(client.pieces) for client in clients)
            seen, most = now, max(most, now - seen)
        return most, {sum(client.pieces) for client in clients}

    most, sizes = asyncio.run(all_of_them())
    os.close(fd)
    assert sizes == {size}
    assert most <= 2  # the last byte comes right behind the piece before it


# ── taken up in the middle of a character ────────────────────────────────────

TEXT = "a\u00e9\u20ac\U0001f600 z"


def split_log(pieces):
    """Of a job that has ended, a record for each piece of stdout, with others between."""
    fd = os.memfd_create("log")
    writer = LogWriter(fd, LOG_BYTES)
    for piece in pieces:
        writer.write(STDOUT, piece, 0.5)
        writer.write(STDERR, b"!", 0.5)
    kept = SimpleNamespace(log=LogReader(fd, LOG_BYTES))
    job = SimpleNamespace(kept=kept, log_end=writer.end, has_ended=False, status="running")
    return fd, job


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_follower_that_comes_back_after_any_record_sees_each_character_once(width):
    """The rest of a character came as U+FFFD after a cursor that lay in its middle."""
    data = TEXT.encode()
    fd, job = split_log(data[at : at + width] for at in range(0, len(data), width))
    entries = follow.read(job, 0, 1 << 20)
    for there in range(len(entries) + 1):
        text = ""
        for position, part in ((0, entries[:there]), (None, entries[there:])):
            start = entries[there - 1].seq if position is None and there else 0
            decode = views.TextDecoder(follow.before(job.kept, start))
            text += "".join(decode(one) for one in part if one.stream == STDOUT)
        assert text == TEXT
    os.close(fd)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_who_asks_again_and_again_gets_each_character_once(width):
    """Also with U+FFFD for the part that was there already."""
    data = TEXT.encode()
    fd, job = split_log(data[at : at + width] for at in range(0, len(data), width))
    answers, listed, cursor = "", "", 0
    while (reply := follow.snapshot(job, cursor, records=True, max_bytes=1)).cursor != cursor:
        answers += reply.stdout
        listed += "".join(one.data for one in reply.records if one.stream == "stdout")
        cursor = reply.cursor
    assert answers == listed == TEXT
    os.close(fd)


def test_what_is_no_character_at_the_end_of_all_is_told_as_such():
    fd, job = split_log([b"caf\xc3"])
    assert follow.snapshot(job).stdout == "caf"
    job.has_ended = True
    assert follow.snapshot(job).stdout == "caf\ufffd"
    pieces = [follow.texts(job.kept, 0, job.log_end, STDOUT, final=final) for final in (0, 1)]
    assert ["".join(texts) for texts in pieces] == ["caf", "caf\ufffd"]
    os.close(fd)
