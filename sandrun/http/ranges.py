"""``Range``, ``If-Range``, ``If-None-Match`` and file names in headers. Pure. RFC 9110, 6266, 8187."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, NamedTuple
from urllib.parse import quote

MAX_RANGES: Final = 16  # a player asks for one or two; more is ignored and the whole file sent
_SPEC: Final = re.compile(r"(\d{0,19})-(\d{0,19})", re.ASCII)


class Span(NamedTuple):
    """``size`` bytes from ``offset`` on."""

    offset: int
    size: int

    def content_range(self, total: int) -> str:
        """The header's value."""
        return f"bytes {self.offset}-{self.offset + self.size - 1}/{total}"


def parse_range(value: str | None, size: int) -> list[Span] | None:
    """None: send everything. []: nothing of it can be had (416).

    A header that is malformed, of another unit, or asks for too many pieces is
    ignored, as RFC 9110 14.2 allows. Pieces that overlap are merged, so that a
    request can never cost more bytes than the file has.
    """
    if value is None:
        return None
    unit, equals, specs = value.partition("=")
    pieces = specs.split(",")
    if unit.strip().lower() != "bytes" or not equals or len(pieces) > MAX_RANGES:
        return None
    spans: list[Span] = []
    for piece in pieces:
        found = _SPEC.fullmatch(piece.strip(" \t"))
        if found is None or found.group() == "-":
            return None
        first, last = found.groups()
        if first and last and int(last) < int(first):
            return None
        if first:
            start, end = int(first), min(int(last) + 1 if last else size, size)
        else:
            start, end = max(0, size - int(last)), size
        if start < end:
            spans.append(Span(start, end - start))
    return _merge(spans)


def _merge(spans: list[Span]) -> list[Span]:
    ordered = sorted(spans)
    if any(a.offset + a.size > b.offset for a, b in pairwise(ordered)):
        merged: list[Span] = []
        for span in ordered:
            if merged and span.offset <= merged[-1].offset + merged[-1].size:
                start = merged[-1].offset
                end = max(start + merged[-1].size, span.offset + span.size)
                merged[-1] = Span(start, end - start)
            else:
                merged.append(span)
        return merged
    return spans


def if_range_holds(value: str | None, etag: str) -> bool:
    """Whether a Range may be honoured: only the very same strong ETag counts."""
    return value is None or value.strip() == etag


def none_match(value: str | None, etag: str) -> bool:
    """Whether the client has this already (weak comparison, RFC 9110 13.1.2)."""
    if value is None:
        return False
    if value.strip() == "*":
        return True
    return any(tag.strip().removeprefix("W/") == etag for tag in value.split(","))


def attachment(name: str) -> str:
    """``Content-Disposition`` for a hostile file name.

    The plain form is ASCII without anything that could end the header or the
    string; the exact name follows by RFC 8187.
    """
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    clean = "".join(char for char in name if char.isprintable()) or "download"
    plain = re.sub(r"[^A-Za-z0-9 ._+()-]", "_", clean)[:150]
    value = f'attachment; filename="{plain}"'
    if plain != clean:
        value += f"; filename*=UTF-8''{quote(clean[:200], safe='')}"
    return value
