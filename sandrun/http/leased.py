"""One leased zygote, what it is told, and what it leaves. Runs as nobody.

I/O: reads the log's size and the journal behind it.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec

from sandrun import journal
from sandrun.http.jobs import Kept
from sandrun.logs import LogReader
from sandrun.messages import Dispatch, Elsewhere, FromZygote, Result, Started

if TYPE_CHECKING:
    from sandrun.channel import Channel
    from sandrun.http.jobs import Job
    from sandrun.messages import Lease, StoreEntry, ToZygote


class Stage(Enum):
    """Where a leased zygote is."""

    READY = "ready"
    RESIZING = "resizing"
    DISPATCHED = "dispatched"
    STARTED = "started"
    GONE = "gone"


class Zygote:
    """One leased sandbox. Owned by :class:`sandrun.http.leases.Leases`."""

    __slots__ = (
        "cancelling",
        "channel",
        "environment",
        "id",
        "job",
        "kept",
        "pending",
        "restored",
        "stage",
        "warm",
    )

    def __init__(
        self, lease: Lease | StoreEntry, channel: Channel[ToZygote, FromZygote], kept: Kept
    ) -> None:
        assert lease.zygote is not None
        self.id = lease.zygote
        self.environment = lease.environment
        self.warm = lease.warm
        self.channel = channel
        self.kept = kept
        self.stage = Stage.READY
        self.job: Job | None = None
        self.pending: Dispatch | None = None  # while it is being resized
        self.cancelling = False
        self.restored = False  # an earlier http gave it its job


def dispatch_of(job: Job) -> Dispatch:
    """What its zygote is told."""
    upload = job.upload
    return Dispatch(
        spec=job.spec,
        files=job.files,
        index_offset=upload.index_offset if upload else 0,
        index_size=upload.index_size if upload else 0,
        manifest_given=job.given,
    )


def kept_of(log_fd: int, outputs_fd: int) -> Kept:
    """A log (with the journal behind it) and outputs, as they came from the supervisor."""
    capacity = os.fstat(log_fd).st_size - journal.JOURNAL_BYTES
    return Kept(LogReader(log_fd, capacity), log_fd, outputs_fd, os.close)


_decode_word: Final = msgspec.msgpack.Decoder(FromZygote).decode


def last_word(kept: Kept, slot: int) -> tuple[FromZygote, float] | None:
    """What PID 1 wrote into this slot of its journal, and when. Junk counts as nothing."""
    capacity = os.fstat(kept.log_fd).st_size - journal.JOURNAL_BYTES
    word = journal.read(kept.log_fd, capacity, slot)
    if word is None:
        return None
    try:
        message: FromZygote = _decode_word(word.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    allowed = (Started,) if slot == journal.STARTED else (Result, Elsewhere)
    return (message, word.t) if isinstance(message, allowed) else None
