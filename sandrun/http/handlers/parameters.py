"""What a request says: its query and the headers that choose an answer. Pure.

Runs as: nobody. What cannot be understood is a :class:`RequestError` 400.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sandrun.errors import RequestError
from sandrun.http import follow

if TYPE_CHECKING:
    from sandrun.http.exchange import Request

MAX_RUN_S: Final = 3600.0  # what a client may ask us to wait
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_UNSIGNED: Final = re.compile(r"\d{1,15}", re.ASCII)


def idempotency_key(request: Request) -> str | None:
    """The header's value. Raises :class:`RequestError` 400."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise RequestError(
            400,
            "bad_idempotency_key",
            "Idempotency-Key: expected 1 to 255 printable ASCII characters without spaces",
            details={"field": "Idempotency-Key"},
        )
    return key


def wants_events(request: Request) -> bool:
    """Whether the answer shall be Server-Sent Events."""
    return "text/event-stream" in (request.headers.get("accept") or "")


def cursor(request: Request) -> int:
    """``?since=``, else ``Last-Event-ID`` (of an event stream that reconnects), else 0."""
    value = request.query.get("since") or request.headers.get("last-event-id") or "0"
    if not _UNSIGNED.fullmatch(value):
        raise follow.bad_cursor(value[:40])
    return int(value)


def number(query: dict[str, str], name: str, most: float) -> float:
    """A number of seconds in the query. Raises :class:`RequestError` 400."""
    try:
        value = float(query[name])
        if not 0 <= value <= most:
            raise ValueError
    except ValueError:
        raise RequestError(
            400,
            "bad_parameter",
            f"{name}: expected seconds from 0 to {most:g}, got {query[name][:40]!r}",
            details={"field": name, "maximum": most},
        ) from None
    return value


def flag(query: dict[str, str], name: str) -> bool:
    """``?name=1``. Raises :class:`RequestError` 400 for anything but 0 and 1."""
    value = query.get(name, "0")
    if value not in {"0", "1", ""}:
        raise RequestError(
            400,
            "bad_parameter",
            f"{name}: expected 0 or 1, got {value[:40]!r}",
            details={"field": name, "allowed": ["0", "1"]},
        )
    return value != "0"


def stream_filter(request: Request) -> int | None:
    """``?stream=stdout`` or ``stderr``; None is all."""
    value = request.query.get("stream")
    if value is None:
        return None
    if value not in follow.STREAMS:
        raise RequestError(
            400,
            "bad_parameter",
            f"stream: expected stdout or stderr, got {value[:40]!r}",
            details={"field": "stream", "allowed": list(follow.STREAMS)},
        )
    return follow.STREAMS[value]


def prefers(request: Request, kind: str, other: str) -> bool:
    """Whether ``Accept`` puts ``kind`` before ``other``, which is what one gets by default."""
    accept = request.headers.get("accept")
    if accept is None or kind.partition("/")[0] not in accept:
        return False
    return _quality(accept, kind) > _quality(accept, other)


def _quality(accept: str, kind: str) -> float:
    """RFC 9110 12.5.1: the most specific range that fits decides."""
    best, quality = -1, 0.0
    main = kind.partition("/")[0]
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        rank = {kind: 2, f"{main}/*": 1, "*/*": 0}.get(name.lower(), -1)
        if rank > best:
            best, quality = rank, _q(parameters)
    return quality + best / 100  # text/html before */* at equal weight


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
