"""A job's log: a record file in shared memory with one writer and many readers. I/O.

PID 1 of the sandbox appends, http reads through a descriptor of its own with
``pread`` only (a mapping could die of SIGBUS, a shared description would share
its offset). The job never holds the file, but what is in it is the job's, and a
zygote might be taken over: readers check every field.

A *position* counts bytes of records ever written. A record's ``seq`` is the
position behind it, so the last ``seq`` a client saw is the cursor from which it
goes on. The head of the log stays where it is; behind it lies a ring that keeps
the tail, so the middle is what gets lost::

    | header 64 | head: records ... | ring: records, oldest overwritten first |

    header   magic, end, ring_base, first, dropped     five u64, little endian
    record   seq u64, t f64, length u32, stream u8, 3 bytes 0, data

``end`` is the position behind the newest record, ``ring_base`` the position at
which the ring begins (0: not in use yet), ``first`` that of the ring's oldest
whole record, ``dropped`` the bytes of output lost between head and ``first``.
A record never wraps: what does not fit before the ring's end is padded with a
record of stream PAD. The writer moves ``first`` on *before* it overwrites, and
readers look at ``first`` again *after* they read: what they got was whole.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

from sandrun.errors import ProtocolError

STDOUT: Final = 1
STDERR: Final = 2
SYSTEM: Final = 3  # said by sandrun, not by the job
PAD: Final = 0

_MAGIC: Final = 0x31676F6C72646E73  # "sndrlog1"
_HEADER: Final = struct.Struct("<QQQQQ")
_RECORD: Final = struct.Struct("<QdIB3x")
HEADER_BYTES: Final = 64
MAX_DATA: Final = 64 * 1024  # of one record; PID 1 reads pipes in steps of this size
MIN_CAPACITY: Final = HEADER_BYTES + 4 * (_RECORD.size + MAX_DATA)

_FIRST_BYTES: Final = _RECORD.size + 4096  # of a single record
_CHARACTER_BYTES: Final = 3  # of one in UTF-8 that is not whole
_BACK_RECORDS: Final = 8  # that are looked at behind a position; one character has four bytes
_BACK_BYTES: Final = MAX_DATA + 4096
_FORGERIES: Final = 16  # a job may print what looks like the head of a record
_BLOCK_BYTES: Final = 64 * 1024  # of many: a call for each would take longer than all the rest

STREAM_NAMES: Final = {STDOUT: "stdout", STDERR: "stderr", SYSTEM: "system"}


class Record(NamedTuple):
    """One piece of output. ``t`` is in seconds since the job began."""

    seq: int
    t: float
    stream: int
    data: bytes


class Gap(NamedTuple):
    """``dropped_bytes`` of output were lost here; go on from ``seq``."""

    seq: int
    dropped_bytes: int


class LogWriter:
    """Appends. Owned by PID 1 of the sandbox.

    ``capacity`` is the file's whole size in bytes, at least ``MIN_CAPACITY``.
    """

    def __init__(self, fd: int, capacity: int) -> None:
        if capacity < MIN_CAPACITY:
            raise ValueError(f"a log of {capacity} bytes is smaller than {MIN_CAPACITY}")
        self._fd = fd
        self._head_end = (capacity - HEADER_BYTES) // 2
        self._ring_size = capacity - HEADER_BYTES - self._head_end
        self.end = 0
        self.dropped = 0
        self._ring_base = 0
        self._first = 0
        self._ring: list[tuple[int, int]] = []  # (position behind it, output bytes) oldest first
        self._ring_head = 0
        self._save()

    def _save(self) -> None:
        header = _HEADER.pack(_MAGIC, self.end, self._ring_base, self._first, self.dropped)
        os.pwrite(self._fd, header, 0)

    def write(self, stream: int, data: bytes, t: float) -> None:
        """Append ``data``; what is over the capacity pushes out the middle."""
        for start in range(0, len(data), MAX_DATA):
            self._append(stream, data[start : start + MAX_DATA], t)
        self._save()

    def _append(self, stream: int, data: bytes, t: float) -> None:
        size = _RECORD.size + len(data)
        if not self._ring_base:
            if self.end + size <= self._head_end:
                self._put(HEADER_BYTES + self.end, stream, data, t)
                self.end += size
                return
            self._ring_base = self._first = self.end
        offset = (self.end - self._ring_base) % self._ring_size
        room = self._ring_size - offset
        if room < size:
            self._make_room(self.end + room)
            if room >= _RECORD.size:
                self._put(self._physical(self.end), PAD, b"", t, length=room - _RECORD.size)
            self.end += room
            self._ring.append((self.end, 0))
        self._make_room(self.end + size)
        self._put(self._physical(self.end), stream, data, t)
        self.end += size
        self._ring.append((self.end, len(data)))

    def _physical(self, position: int) -> int:
        ring_start = HEADER_BYTES + self._head_end
        return ring_start + (position - self._ring_base) % self._ring_size

    def _put(
        self, at: int, stream: int, data: bytes, t: float, *, length: int | None = None
    ) -> None:
        length = len(data) if length is None else length
        seq = self.end + _RECORD.size + length
        os.pwritev(self._fd, (_RECORD.pack(seq, t, length, stream), data), at)

    def _make_room(self, new_end: int) -> None:
        before = self._first
        while self._first < new_end - self._ring_size:
            self._first, lost = self._ring[self._ring_head]
            self.dropped += lost
            self._ring_head += 1
        if self._ring_head > 4096:
            del self._ring[: self._ring_head]
            self._ring_head = 0
        if self._first != before:
            self._save()  # before the bytes are overwritten


class LogReader:
    """Reads from any position, any number of times. Owned by http."""

    def __init__(self, fd: int, capacity: int) -> None:
        self._fd = fd
        self._head_end = (capacity - HEADER_BYTES) // 2
        self._ring_size = capacity - HEADER_BYTES - self._head_end

    def _header(self) -> tuple[int, int, int, int]:
        raw = os.pread(self._fd, _HEADER.size, 0)
        if len(raw) < _HEADER.size:
            raise ProtocolError("log: no header")
        magic, end, ring_base, first, dropped = _HEADER.unpack(raw)
        if magic != _MAGIC or not (
            (0 <= end <= self._head_end and not ring_base and not first)
            or (0 < ring_base <= self._head_end and ring_base <= first <= end)
        ):
            raise ProtocolError("log: damaged header")
        return end, ring_base, first, dropped

    @property
    def end(self) -> int:
        """The position behind the newest record: the cursor of one who read all."""
        return self._header()[0]

    @property
    def dropped_bytes(self) -> int:
        """Bytes of output lost from the middle."""
        return self._header()[3]

    def read(self, position: int, max_bytes: int = 256 * 1024) -> list[Record | Gap]:
        """Records from ``position`` (0 or some record's ``seq``) on.

        Returns about ``max_bytes`` of them at most, [] at the end. A position that
        has been overwritten gives a :class:`Gap` first. Raises ValueError for a
        position that is no record's ``seq``.
        """
        end, ring_base, first, dropped = self._header()
        if not 0 <= position <= end:
            raise ValueError(f"no record ends at {position}")
        found: list[Record | Gap] = []
        taken = 0
        block, block_at = b"", 0  # what was read last, and where it lies
        while position < end and taken < max_bytes:
            if ring_base and ring_base <= position < first:
                found.append(Gap(first, dropped))
                position = first
                continue
            in_ring = bool(ring_base) and position >= ring_base
            if in_ring:
                offset = (position - ring_base) % self._ring_size
                room = self._ring_size - offset
                if room < _RECORD.size:
                    position += room
                    continue
                at = HEADER_BYTES + self._head_end + offset
            else:
                room = self._head_end - position
                at = HEADER_BYTES + position
            record, size = _record(block, at - block_at, position, room)
            if record is None:
                wanted = max(size, _FIRST_BYTES, min(_BLOCK_BYTES, max_bytes - taken))
                block, block_at = self._block(at, min(room, wanted)), at
                record, size = _record(block, 0, position, room)
                if len(block) < size:  # longer than we thought: now we know how long
                    block += self._block(at + len(block), size - len(block))
                    record, size = _record(block, 0, position, room)
                if in_ring:
                    # Look again: the writer may have come round while we read.
                    end, ring_base, first, dropped = self._header()
                    if position < first:
                        block = b""
                        continue
            if record is None:
                raise ValueError(f"no record ends at {position}")
            position += size
            if record.stream != PAD:
                found.append(record)
                taken += size
        return found

    def before(self, position: int) -> dict[int, bytes]:
        """By stream, the last bytes before a record's ``seq``, three at most: whoever goes
        on from there may be in the middle of a character. Of streams that are not found
        close by there is nothing.
        """
        end, ring_base, first, _ = self._header()
        if not 0 < position <= end:
            return {}
        in_ring = bool(ring_base) and position > ring_base
        if in_ring:
            offset = (position - ring_base) % self._ring_size or self._ring_size
            at, oldest = HEADER_BYTES + self._head_end + offset, max(first, position - offset)
        else:
            at, oldest = HEADER_BYTES + position, 0
        size = min(position - oldest, _BACK_BYTES)
        if size <= 0:
            return {}
        block = self._block(at - size, size)
        if in_ring and self._header()[2] > position - size:
            return {}  # the writer has come round while we read
        return _last_bytes(block, position)

    def _block(self, at: int, size: int) -> bytes:
        return os.pread(self._fd, size, at)


def _last_bytes(block: bytes, position: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    stop = len(block)
    for _ in range(_BACK_RECORDS):
        start = _start_of_last(block, stop, position)
        if start < 0:
            break
        stream = _RECORD.unpack_from(block, start)[3]
        data = block[start + _RECORD.size : stop] + found.get(stream, b"")
        found[stream] = data[-_CHARACTER_BYTES:]
        position -= stop - start
        stop = start
    return found


def _start_of_last(block: bytes, stop: int, seq: int) -> int:
    """Where the record begins that ends at ``stop``, or -1."""
    wanted = struct.pack("<Q", seq)
    start = stop
    for _ in range(_FORGERIES):
        start = block.rfind(wanted, 0, min(stop, start + len(wanted) - 1))
        if start < 0:
            break
        if start + _RECORD.size <= stop:
            _, _, length, stream = _RECORD.unpack_from(block, start)
            if start + _RECORD.size + length == stop and stream <= SYSTEM:
                return start
    return -1


def _record(block: bytes, start: int, position: int, room: int) -> tuple[Record | None, int]:
    """The record at ``start`` of a block, and its size; None if it is not whole there,
    with the size if that is known, or if it is none, with 0.
    """
    if not 0 <= start <= len(block) - _RECORD.size:
        return None, 0
    seq, t, length, stream = _RECORD.unpack_from(block, start)
    size = _RECORD.size + length
    if seq != position + size or size > room or stream > SYSTEM or not 0 <= t < 1e9:
        return None, 0
    if stream == PAD:
        return Record(seq, t, stream, b""), size
    if length > MAX_DATA:
        return None, 0
    data = block[start + _RECORD.size : start + size]
    return (Record(seq, t, stream, data) if len(data) == length else None), size
