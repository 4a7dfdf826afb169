"""Logs as they are written into an answer, for ``/run`` and the log's own routes.

Runs as nobody. I/O: the exchange and, through ``follow.py``, the job's log.
"""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import msgspec

from sandrun.http import api, follow, views
from sandrun.http.exchange import Exchange
from sandrun.http.handlers.replies import NO_STORE
from sandrun.http.turns import TURNS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sandrun.http.jobs import Kept
    from sandrun.logs import Gap, Record

EVENTS: Final = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("X-Accel-Buffering", "no"),
    *NO_STORE,
)
KEEPALIVE_S: Final = 15.0  # of an event stream: proxies cut what is silent for a minute


async def write_events(
    exchange: Exchange,
    steps: AsyncGenerator[list[Record | Gap], None],
    position: int,
    kept: Kept | None,
) -> int:
    """Records as events. The cursor after the last one."""
    decode = views.TextDecoder(follow.before(kept, position))
    async with aclosing(steps):
        async for entries in steps:
            lines = [
                b"id: %d\ndata: %b\n\n"
                % (entry.seq, api.encode(views.log_record(entry, decode(entry))))
                for entry in entries
            ]
            await exchange.write(b"".join(lines) or b":\n\n")
            if entries:
                position = entries[-1].seq
    return position


async def stream_reply(
    exchange: Exchange,
    status: int,
    headers: tuple[tuple[str, str], ...],
    reply: api.Logs | api.RunReply,
    kept: Kept,
    since: int,
    *,
    ended: bool,
    records: bool = False,
) -> None:
    """A reply with a large log, as the client takes it: never more than a step is held."""
    end = follow.end_of(kept, since)
    marks = [os.urandom(16).hex() for _ in follow.STREAMS]
    reply = msgspec.structs.replace(reply, stdout=marks[0], stderr=marks[1], cursor=end)
    rest = api.encode(reply)
    await exchange.start(status, (("Content-Type", "application/json"), *headers), None)
    for mark, stream in zip(marks, follow.STREAMS.values(), strict=True):
        before, _, rest = rest.partition(mark.encode())
        await exchange.write(before)
        for text in follow.texts(kept, since, end, stream, final=ended):
            await exchange.write(api.encode(text)[1:-1])
            await TURNS.take()
    if records:
        before, bracket, rest = rest.partition(b'"records":[')
        await exchange.write(before + bracket)
        comma, decode = b"", views.TextDecoder(follow.before(kept, since))
        for entries in follow.steps(kept, since, end):
            listed = (api.encode(views.log_record(one, decode(one))) for one in entries)
            await exchange.write(comma + b",".join(listed))
            comma = b","
            await TURNS.take()
    await exchange.write(rest)
    await exchange.finish()
