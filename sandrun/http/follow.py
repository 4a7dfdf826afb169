"""Reading a job's log: all at once, or as it grows. I/O: pread only; unprivileged.

A follower costs an Event and one step's bytes, however slow it is: it reads at its
own pace from the shared record file and is woken by the job, never polled. Its
position is a ``seq`` of ``logs.py``, so whoever comes back with the last one he saw
goes on without a lost or doubled byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final

from sandrun.errors import ProtocolError, RequestError
from sandrun.http import api, views
from sandrun.http.turns import TURNS
from sandrun.logs import STDERR, STDOUT, Gap, Record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from sandrun.http.jobs import Job, Kept

STEP_BYTES: Final = 32 * 1024  # held by one follower at a time; 64 KiB is the target for all of it
# An answer up to this is made at once. Above, 8 MiB of NULs are 49 MB of JSON, and any
# number of clients could have asked for it and not read.
LARGE_BYTES: Final = 256 * 1024
STREAMS: Final = {"stdout": STDOUT, "stderr": STDERR}
FEW: Final = 64  # followers of all logs together that are told at once
FOLLOWER_S: Final = 0.001  # for each that is more; to tell one takes about a third of it
ALL_BYTES: Final = 1 << 31  # the log is bounded by its own size


def read(job: Job, position: int, max_bytes: int) -> list[Record | Gap]:
    """Records after ``position``. Raises ValueError for a position that is none.

    A log that its zygote has damaged reads as empty: the verdict says the rest.
    """
    if job.kept is None or not job.log_end:
        if position:
            raise ValueError(position)
        return []
    try:
        return job.kept.log.read(position, max_bytes)
    except ProtocolError:
        return []


def raw(entry: Record | Gap, wanted: int | None = None) -> bytes:
    """One entry for a plain text reader, byte-exact; ``wanted`` is one stream, None all."""
    if isinstance(entry, Gap):
        return b"\n[%d bytes of output dropped here]\n" % entry.dropped_bytes
    return entry.data if wanted is None or entry.stream == wanted else b""


def dropped_bytes(job: Job) -> int:
    """Bytes lost from the middle."""
    if job.kept is None or not job.log_end:
        return 0
    try:
        return job.kept.log.dropped_bytes
    except ProtocolError:
        return 0


def bad_cursor(position: object) -> RequestError:
    """400 for a cursor that we did not give out."""
    return RequestError(
        400,
        "bad_cursor",
        f"since: {position!r} is not a cursor of this log; use 0 or a cursor from a reply",
        details={"field": "since"},
    )


def snapshot(
    job: Job, position: int = 0, *, records: bool = False, max_bytes: int = ALL_BYTES
) -> api.Logs:
    """The log from ``position`` on, for JSON. Raises :class:`RequestError` 400."""
    try:
        entries = read(job, position, max_bytes)
    except ValueError:
        raise bad_cursor(position) from None
    earlier = before(job.kept, position) if entries else {}

    def text(stream: int) -> str:
        data = b"".join(e.data for e in entries if isinstance(e, Record) and e.stream == stream)
        # The rest of a character that is not whole comes with what follows.
        return views.utf8_after(earlier.get(stream, b"")).decode(data, final=job.has_ended)

    return api.Logs(
        stdout=text(STDOUT),
        stderr=text(STDERR),
        records=views.log_records(entries, earlier) if records else [],
        cursor=entries[-1].seq if entries else position,
        dropped_bytes=dropped_bytes(job),
        status=job.status,
    )


def is_large(job: Job) -> bool:
    """Whether the log is too large to be held in an answer for a client that may not read."""
    return job.kept is not None and job.log_end > LARGE_BYTES


async def take_turn(job: Job, position: int = 0) -> None:
    """Before the log is read at once: whoever reads much has to wait."""
    if job.log_end - position > STEP_BYTES:
        await TURNS.take()


def end_of(kept: Kept, position: int) -> int:
    """The ``seq`` of the last record now, as its log says: it is not read for that."""
    try:
        return max(position, kept.log.end)
    except ProtocolError:  # damaged by its sandbox
        return position


def before(kept: Kept | None, position: int) -> dict[int, bytes]:
    """What a decoder has to know that goes on from ``position``."""
    if kept is None or not position:
        return {}
    try:
        return kept.log.before(position)
    except ProtocolError:  # damaged by its sandbox
        return {}


def texts(kept: Kept, position: int, end: int, stream: int, *, final: bool) -> Iterator[str]:
    """The text of one stream in pieces, as :func:`snapshot` would give it. ``final``: no
    more will follow.
    """
    earlier = before(kept, position) if position < end else {}
    decoder = views.utf8_after(earlier.get(stream, b""))
    for entries in steps(kept, position, end):
        yield decoder.decode(b"".join(raw(e, stream) for e in entries if isinstance(e, Record)))
    yield decoder.decode(b"", final=final)


def raws(kept: Kept, position: int, end: int, stream: int | None) -> Iterator[bytes]:
    """The bytes of one stream or of all, gaps told, in pieces."""
    for entries in steps(kept, position, end):
        yield b"".join(raw(entry, stream) for entry in entries)


def steps(kept: Kept, position: int, end: int) -> Iterator[list[Record | Gap]]:
    """Records after ``position`` and up to ``end``, a step's bytes at a time."""
    while position < end:
        try:
            entries = kept.log.read(position, STEP_BYTES)
        except (ProtocolError, ValueError):
            return  # damaged by its sandbox
        entries = [entry for entry in entries if entry.seq <= end]
        if not entries:
            return
        yield entries
        position = entries[-1].seq


class Watch:
    """A wake-up for one follower of one job. ``with Watch(job, gone) as watch: ...``.

    ``gone``: also wakes when the client has left; ``silent``: as if the time were over,
    once, when the client sends no more.
    """

    def __init__(
        self,
        job: Job,
        gone: asyncio.Future[None] | None = None,
        silent: asyncio.Future[None] | None = None,
    ) -> None:
        self._job = job
        self._gone = gone
        self._silent = silent
        self._fell_silent = False
        self._event = asyncio.Event()

    def __enter__(self) -> Watch:
        self._job.watchers.add(self._event.set)
        if self._gone is not None:
            self._gone.add_done_callback(self._on_gone)
        if self._silent is not None:
            self._silent.add_done_callback(self._on_silent)
        return self

    def __exit__(self, *exc: object) -> None:
        self._job.watchers.discard(self._event.set)
        if self._gone is not None:
            self._gone.remove_done_callback(self._on_gone)
        if self._silent is not None:
            self._silent.remove_done_callback(self._on_silent)

    def _on_gone(self, _: asyncio.Future[None]) -> None:
        self._event.set()

    def _on_silent(self, _: asyncio.Future[None]) -> None:
        self._fell_silent = True
        self._event.set()

    @property
    def is_gone(self) -> bool:
        """Whether nobody reads any more."""
        return self._gone is not None and self._gone.done()

    async def changed(self, timeout_s: float | None = None) -> bool:
        """Wait for the next change. False if the time was over first."""
        if timeout_s is None:
            await self._event.wait()
        else:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._event.wait()
            except TimeoutError:
                return False
        self._event.clear()
        if self._fell_silent:
            self._fell_silent = False
            return False
        return True


class Crowd:
    """All followers of all logs. Thousands of them, of a job that says a word every 50 ms,
    took all of http's time; together they get about a third of it. The more there are, the
    longer each waits between two looks, and then hears in one message what came meanwhile.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *exc: object) -> None:
        self.count -= 1

    @property
    def is_large(self) -> bool:
        """Whether they have to wait."""
        return self.count > FEW

    async def take_turn(self) -> None:
        """Not all at the same moment: that would keep everybody else waiting."""
        if self.is_large:
            more = self.count - FEW
            await asyncio.sleep(more * FOLLOWER_S * random.uniform(0.5, 1.5))  # noqa: S311


CROWD: Final = Crowd()  # of this process


def joined(entries: list[Record | Gap]) -> list[Record | Gap]:
    """Neighbours of one stream as one record, with the position of the last."""
    found: list[Record | Gap] = []
    for entry in entries:
        last = found[-1] if found else None
        if isinstance(entry, Record) and isinstance(last, Record) and entry.stream == last.stream:
            found[-1] = Record(entry.seq, last.t, last.stream, last.data + entry.data)
        else:
            found.append(entry)
    return found


@contextlib.contextmanager
def until(gone: asyncio.Future[None], timeout_s: float | None) -> Iterator[asyncio.Future[None]]:
    """Done once the client is ``gone`` or the time is over."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    timer = None if timeout_s is None else loop.call_later(timeout_s, end)
    gone.add_done_callback(end)
    try:
        yield over
    finally:
        gone.remove_done_callback(end)
        if timer is not None:
            timer.cancel()


async def wait_ended(job: Job, timeout_s: float | None) -> bool:
    """Until the job has ended. False if the time was over first.

    Woken once, at the end: every other change of the job is looked at in passing.
    """
    if job.has_ended:
        return True
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look() -> None:
        if job.has_ended and not ended.done():
            ended.set_result(None)

    job.watchers.add(look)
    try:
        if timeout_s is None:
            await ended
        else:
            async with asyncio.timeout(timeout_s):
                await ended
    except TimeoutError:
        return job.has_ended
    finally:
        job.watchers.discard(look)
    return True


async def follow(
    job: Job,
    position: int,
    gone: asyncio.Future[None] | None = None,
    keepalive_s: float | None = None,
    silent: asyncio.Future[None] | None = None,
) -> AsyncGenerator[list[Record | Gap], None]:
    """Steps of the log from ``position`` on, until the job has ended and all is read.

    Yields [] after ``keepalive_s`` without news, and once when the client falls
    ``silent``. Ends early when the client is
    ``gone`` or the job is wiped. Raises ValueError for a bad position.
    """
    with CROWD, Watch(job, gone, silent) as watch:
        behind = False  # the first look is at once
        while not watch.is_gone:
            if behind and not job.has_ended:
                await CROWD.take_turn()
            behind = True
            ended = job.has_ended  # before the read: what comes in between is read next time
            if ended and job.kept is None and position:
                return  # wiped
            entries = read(job, position, STEP_BYTES)
            if entries:
                is_much = entries[-1].seq - position >= STEP_BYTES
                position = entries[-1].seq
                yield joined(entries) if CROWD.is_large else entries
                if is_much:
                    await TURNS.take()
            elif ended:
                return
            elif not await watch.changed(keepalive_s):
                yield []
