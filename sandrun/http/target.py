"""Request target → path and query. Pure.

The target has passed the framing check: visible ASCII, well-formed escapes, no
backslash, no fragment. Escapes are decoded once, here, and never again.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from sandrun.http.framing import refuse

MAX_QUERY_FIELDS: Final = 32  # no route has more than a handful


class Target(NamedTuple):
    """See :class:`sandrun.http.exchange.Request`."""

    path: str
    raw_path: str
    query: dict[str, str]


def split_target(target: bytes) -> Target:
    """Raises :class:`sandrun.errors.RequestError` 400 for a path that plays tricks."""
    raw, _, query = target.partition(b"?")
    raw_path = raw.decode("ascii")
    path = _decode_path(raw_path) if b"%" in raw else raw_path
    if "/." in path and not _DOTS.isdisjoint(path.split("/")):
        refuse(400, "bad_path", "the path has a '.' or '..' segment")
    return Target(path, raw_path, split_query(query) if query else {})


_DOTS: Final = frozenset((".", ".."))


def _decode_path(raw_path: str) -> str:
    lower = raw_path.lower()
    if "%2f" in lower:
        refuse(400, "bad_path", "the path has an escaped slash")
    if "%00" in lower:
        refuse(400, "bad_path", "the path has an escaped NUL")
    return unquote_to_bytes(raw_path).decode("utf-8", "surrogateescape")


def split_query(query: bytes) -> dict[str, str]:
    """``a=1&b=2`` → dict; the last of equal names wins. What is not UTF-8 is 400."""
    fields = [field for field in query.split(b"&") if field]
    if len(fields) > MAX_QUERY_FIELDS:
        refuse(400, "bad_query", f"the query has more than {MAX_QUERY_FIELDS} fields")
    found: dict[str, str] = {}
    for field in fields:
        name, _, value = field.replace(b"+", b" ").partition(b"=")
        try:
            found[unquote_to_bytes(name).decode()] = unquote_to_bytes(value).decode()
        except UnicodeDecodeError:
            refuse(400, "bad_query", "the query is not valid UTF-8")
    return found
