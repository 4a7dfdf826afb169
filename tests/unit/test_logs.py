"""The log: what is read is what was written, but for a gap that is told."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandrun import logs
from sandrun.errors import ProtocolError
from sandrun.logs import MAX_DATA, MIN_CAPACITY, STDERR, STDOUT, Gap, LogReader, LogWriter, Record


class Log:
    """A file with both of its ends."""

    def __init__(self, capacity: int = MIN_CAPACITY) -> None:
        self.fd = os.memfd_create("log")
        self.capacity = capacity
        self.writer = LogWriter(self.fd, capacity)
        self.reader = LogReader(self.fd, capacity)

    def read_all(self, position: int = 0, max_bytes: int = 100_000) -> list[Record | Gap]:
        found: list[Record | Gap] = []
        while more := self.reader.read(position, max_bytes):
            found += more
            position = more[-1].seq
        return found


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    os.close(made.fd)


def data(records: list[Record | Gap]) -> bytes:
    return b"".join(one.data for one in records if isinstance(one, Record))


def test_records_keep_order_time_and_stream(log: Log) -> None:
    log.writer.write(STDOUT, b"one", 0.5)
    log.writer.write(STDERR, b"two", 0.75)
    log.writer.write(logs.SYSTEM, b"", 1.0)  # nothing to say
    records = log.read_all()
    assert [(r.stream, r.data, r.t) for r in records if isinstance(r, Record)] == [
        (STDOUT, b"one", 0.5),
        (STDERR, b"two", 0.75),
    ]
    assert records[-1].seq == log.reader.end == log.writer.end


def test_the_last_bytes_before_a_position_are_found_by_stream(log: Log) -> None:
    log.writer.write(STDOUT, b"abc\xf0", 0)
    log.writer.write(STDOUT, b"\x9f", 0)
    log.writer.write(STDERR, b"x\xc3", 0)
    one, two, three = log.read_all()
    assert log.reader.before(0) == log.reader.before(three.seq + 1) == {}
    assert log.reader.before(one.seq) == {STDOUT: b"bc\xf0"}
    assert log.reader.before(two.seq) == {STDOUT: b"c\xf0\x9f"}
    assert log.reader.before(three.seq) == {STDOUT: b"c\xf0\x9f", STDERR: b"x\xc3"}
    assert log.reader.before(three.seq - 1) == {}  # no position of a record


def test_what_a_job_prints_passes_for_no_record(log: Log) -> None:
    """The head of a record, as it would be where this one ends."""
    size = 24
    end = 2 * size + size + 3
    forged = struct.pack("<QdIB3x", end, 0.0, 3, STDERR) + b"abc"
    for text in (forged, forged * 3, struct.pack("<Q", end) * 4000):
        log.writer.write(STDOUT, text, 0)
        (*_, last) = log.read_all()
        assert set(log.reader.before(last.seq)) <= {STDOUT, STDERR}  # nothing but his own text


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 4 * MAX_DATA), max_size=12))
def test_the_last_bytes_are_found_all_through_a_ring(sizes: list[int]) -> None:
    log = Log()
    try:
        for n, size in enumerate(sizes):
            log.writer.write(STDOUT, bytes([n]) * size, 0)
        seen = {0: b""}
        for record in log.read_all():
            seen[record.seq] = record.data if isinstance(record, Record) else b""
        for position, text in seen.items():
            found = log.reader.before(position).get(STDOUT, b"")
            assert found[-len(text) :] == text[-3:] if len(text) < 3 else found in (b"", text[-3:])
        last = max(seen)
        assert not sizes or log.reader.before(last)
    finally:
        os.close(log.fd)


def test_an_empty_log_is_empty(log: Log) -> None:
    assert (log.reader.read(0), log.reader.end, log.reader.dropped_bytes) == ([], 0, 0)


def test_a_large_write_becomes_several_records(log: Log) -> None:
    content = os.urandom(2 * MAX_DATA)
    log.writer.write(STDOUT, content, 0)
    records = log.read_all()
    assert len(records) == 2
    assert data(records) == content


def test_one_goes_on_from_where_he_was(log: Log) -> None:
    log.writer.write(STDOUT, b"a", 0)
    [first] = log.reader.read(0)
    assert log.reader.read(first.seq) == []
    log.writer.write(STDOUT, b"b", 0)
    assert data(log.reader.read(first.seq)) == b"b"


@pytest.mark.parametrize("position", [1, 5, 26, 10**9, -1])
def test_a_position_that_is_no_records_end_is_refused(log: Log, position: int) -> None:
    log.writer.write(STDOUT, b"some text", 0)
    log.writer.write(STDOUT, b"some text", 0)
    with pytest.raises(ValueError, match="no record ends at"):
        log.reader.read(position)


def test_a_file_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller"):
        LogWriter(-1, MIN_CAPACITY - 1)


_WRITES = st.lists(
    st.one_of(st.integers(1, 200), st.integers(1, 3 * MAX_DATA), st.just(MAX_DATA)), max_size=40
)


def written(sizes: list[int]) -> Iterator[bytes]:
    """Recognisable bytes: each position of the whole output differs from its neighbours."""
    at = 0
    for size in sizes:
        first, last = at // 4, (at + size + 3) // 4
        text = b"".join(struct.pack("<L", n) for n in range(first, last + 1))
        yield text[at % 4 :][:size]
        at += size


@settings(deadline=None)  # wall time is the machine's business
@given(sizes=_WRITES, capacity=st.integers(MIN_CAPACITY, 2 * MIN_CAPACITY))
def test_head_gap_and_tail_together_are_what_was_written(sizes: list[int], capacity: int) -> None:
    log = Log(capacity)
    try:
        everything = b""
        for piece in written(sizes):
            log.writer.write(STDOUT, piece, 0)
            everything += piece
        records = log.read_all()
        gaps = [number for number, one in enumerate(records) if isinstance(one, Gap)]
        assert len(gaps) <= 1
        if not gaps:
            assert data(records) == everything
            assert log.reader.dropped_bytes == 0
            return
        head, tail = data(records[: gaps[0]]), data(records[gaps[0] + 1 :])
        gap = records[gaps[0]]
        assert isinstance(gap, Gap)
        assert everything.startswith(head)
        assert everything.endswith(tail)
        assert len(head) + gap.dropped_bytes + len(tail) == len(everything)
        assert gap.dropped_bytes == log.reader.dropped_bytes == log.writer.dropped
        assert tail  # the newest output is always there
        assert head
        assert os.fstat(log.fd).st_size <= capacity
    finally:
        os.close(log.fd)


@settings(deadline=None)  # wall time is the machine's business
@given(sizes=_WRITES, steps=st.lists(st.integers(1, 5), max_size=10), most=st.integers(1, 300_000))
def test_a_reader_that_follows_sees_every_byte_or_a_gap(
    sizes: list[int], steps: list[int], most: int
) -> None:
    log = Log()
    try:
        pieces = list(written(sizes))
        everything = b"".join(pieces)
        position = seen = 0
        for step in [*steps, len(pieces)]:
            for piece in pieces[:step]:
                log.writer.write(STDERR, piece, 1.0)
            del pieces[:step]
            before = seen
            records = log.read_all(position, most)
            for one in records:
                if isinstance(one, Gap):
                    seen = -1  # from here on only the end can be compared
                elif seen >= 0:
                    assert everything[seen : seen + len(one.data)] == one.data
                    seen += len(one.data)
            position = records[-1].seq if records else position
            if seen < 0:
                tail = data(records[[isinstance(r, Gap) for r in records].index(True) :])
                done = len(everything) - sum(map(len, pieces))
                assert everything[:done].endswith(tail)
                seen = done
            assert seen >= before
        assert seen == len(everything)
        assert position == log.reader.end
    finally:
        os.close(log.fd)


def test_every_seq_that_was_seen_is_a_cursor_for_ever(log: Log) -> None:
    """A client comes back with an old one: he gets the rest, or a gap and the rest."""
    cursors = [0]
    for number in range(40):
        log.writer.write(STDOUT, bytes([number]) * 10_000, 0)
        cursors += [one.seq for one in log.reader.read(cursors[-1], 1 << 30)]
    newest = data(log.read_all())[-10_000:]
    for cursor in cursors[:-1]:
        assert data(log.read_all(cursor))[-10_000:] == newest


# ── a hostile writer ─────────────────────────────────────────────────────────


@settings(deadline=None)  # wall time is the machine's business
@given(
    junk=st.binary(max_size=400),
    at=st.integers(0, 400),
    position=st.integers(0, 500),
)
def test_a_damaged_file_gives_an_error_and_never_nonsense(
    junk: bytes, at: int, position: int
) -> None:
    log = Log()
    try:
        for _ in range(8):
            log.writer.write(STDOUT, b"text" * 5, 0)
        os.pwrite(log.fd, junk, at)
        try:
            records = log.reader.read(position)
        except (ValueError, ProtocolError):
            return
        assert all(one.seq >= position for one in records)
        assert sum(len(one.data) for one in records if isinstance(one, Record)) < 1 << 20
    finally:
        os.close(log.fd)


@settings(deadline=None)  # wall time is the machine's business
@given(fields=st.tuples(*[st.integers(0, 2**64 - 1) | st.integers(0, 2**19)] * 4))
def test_a_header_that_lies_ends(fields: tuple[int, int, int, int]) -> None:
    log = Log()
    try:
        os.pwrite(log.fd, struct.pack("<QQQQQ", 0x31676F6C72646E73, *fields), 0)
        try:
            records = log.read_all()
        except (ValueError, ProtocolError):
            return
        assert len(records) < 100_000
    finally:
        os.close(log.fd)


def test_a_file_without_a_header_is_named() -> None:
    fd = os.memfd_create("empty")
    try:
        with pytest.raises(ProtocolError, match="no header"):
            LogReader(fd, MIN_CAPACITY).read(0)
        os.pwrite(fd, bytes(100), 0)
        with pytest.raises(ProtocolError, match="damaged"):
            LogReader(fd, MIN_CAPACITY).read(0)
    finally:
        os.close(fd)
