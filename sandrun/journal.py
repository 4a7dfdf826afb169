"""PID 1's last words, kept in the log descriptor behind the log. I/O: pread, pwrite.

A message to http may be read by a http that dies before it acts. So PID 1 writes
each message that changes a job's fate here before it sends it, and an http that
adopts the job reads what the last one may have heard::

    | log: ``capacity`` bytes | slot STARTED | slot FINAL |
    slot   length u32, crc32 u32, t f64, then the message as it was sent

``t`` is seconds of CLOCK_MONOTONIC, which is one clock for the whole host. The
checksum tells a slot that was being written when PID 1 was killed; such a slot
counts as empty, because what it announces had not been done yet. Readers treat
the content as hostile, like all that comes from a sandbox.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple
from zlib import crc32

STARTED: Final = 0  # the first process of the job may be running
FINAL: Final = 1  # Result or Elsewhere
SLOT_BYTES: Final = 132 * 1024  # a message is at most 128 KiB
JOURNAL_BYTES: Final = 2 * SLOT_BYTES  # the file is sparse: two pages are really used
_HEAD: Final = struct.Struct("<IId")


class Word(NamedTuple):
    """One message and when it was written."""

    data: bytes
    t: float


def write(fd: int, capacity: int, slot: int, data: bytes, t: float) -> None:
    """Record ``data``. ``capacity`` is the log's."""
    head = _HEAD.pack(len(data), crc32(data), t)
    os.pwritev(fd, (head, data), capacity + slot * SLOT_BYTES)


def read(fd: int, capacity: int, slot: int) -> Word | None:
    """What was recorded whole, or None."""
    at = capacity + slot * SLOT_BYTES
    raw = os.pread(fd, 4096, at)
    if len(raw) < _HEAD.size:
        return None
    length, checksum, t = _HEAD.unpack_from(raw)
    if not 0 < length <= SLOT_BYTES - _HEAD.size:
        return None
    data = raw[_HEAD.size : _HEAD.size + length]
    if len(data) < length:
        data += os.pread(fd, length - len(data), at + len(raw))
    return Word(data, t) if len(data) == length and crc32(data) == checksum else None
