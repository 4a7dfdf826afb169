r"""multipart/form-data → parts with safe names, as the bytes come in. Sans-IO.

The ``multipart`` package finds the boundaries; what its header parsing hands out is
not used, because it gives file names raw, cuts ``C:\dir\a`` to ``a``, takes the last
of two file names and ignores ``filename*``. Content-Disposition is read here, once
and strictly, and every file name goes through :mod:`sandrun.paths`.

The parser's own strict mode is off: whether it accepts the line break that most
clients send behind the last boundary depends on how the bytes were cut into reads.
What it would refuse beyond that (a preamble, a long boundary, a part without a name)
is refused here, however the bytes are cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

import multipart  # type: ignore[import-untyped]  # it ships no py.typed

from sandrun.errors import RequestError
from sandrun.paths import safe_relative_path

MAX_HEADER_BYTES: Final = 8 * 1024  # of one line: a path of 1024 bytes, escaped, twice
MAX_HEADERS: Final = 8  # of one part; RFC 7578 knows three
MAX_NAME_BYTES: Final = 128  # of a form field

# RFC 2046 5.1.1
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER: Final = re.compile(
    r';[ \t]*([!#$&+.^_`|~0-9A-Za-z*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s";,]*))[ \t]*'
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ESCAPED: Final = re.compile(r'\\(["\\])')
# What browsers escape in a quoted name, and nothing else: '%' itself they do not.
_BROWSER_ESCAPES: Final = (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"))
_IDENTITY: Final = frozenset(("", "7bit", "8bit", "binary"))


class PartStart(NamedTuple):
    """A part begins. ``path``: the file name as a safe relative path; None for a field."""

    name: str
    path: str | None
    content_type: str  # in lower case, without parameters; "" if not given


class End(Enum):
    """End of a part."""

    PART = auto()


Event = PartStart | bytes | End


class FormParser:
    """Feed it every piece of the body, then :meth:`finish`.

    ``content_type`` is the request's header. Raises :class:`RequestError`: 400
    ``bad_form``, 400 ``bad_path`` naming the file, 413 ``too_many_parts`` or
    ``part_head_too_large``.
    """

    def __init__(self, content_type: str, *, max_parts: int) -> None:
        self._max_parts = max_parts
        boundary = boundary_of(content_type)
        self._first = b"--" + boundary.encode("ascii")
        self._begun = False
        self._held = b""
        self._parser = multipart.PushMultipartParser(
            boundary,
            max_header_size=MAX_HEADER_BYTES,
            max_header_count=MAX_HEADERS,
            max_segment_count=max_parts,
        )

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events in ``data``. Consume them all before the next call."""
        if not self._begun:
            data = self._begin(data)
        if not data:
            return
        try:
            for event in self._parser.parse(data):
                if event is None:
                    yield End.PART
                elif isinstance(event, multipart.MultipartSegment):
                    yield part_start(event.headerlist)
                else:
                    yield bytes(event)
        except multipart.ParserLimitReached as error:
            self._limit_reached(error)
        except multipart.MultipartError as error:
            bad_form(str(error))

    def _begin(self, data: bytes) -> bytes:
        """Hold bytes back until the first boundary is there; there is no preamble."""
        held = self._held + data
        opening = held[2:] if held.startswith(b"\r\n") else held
        if not self._first.startswith(opening[: len(self._first)]):
            bad_form("the body does not begin with the boundary")
        if len(opening) < len(self._first):
            self._held = held
            return b""
        self._held, self._begun = b"", True
        return held

    def finish(self) -> None:
        """The body is over. Raises :class:`RequestError` if the form is not."""
        try:
            self._parser.close()
        except multipart.MultipartError:
            bad_form("the body ends before the closing boundary")

    def _limit_reached(self, error: multipart.MultipartError) -> NoReturn:
        if "count exceeded" in str(error) and "header" not in str(error):
            raise RequestError(
                413,
                "too_many_parts",
                f"the form has more than {self._max_parts} parts",
                details={"limit": self._max_parts},
            ) from None
        raise RequestError(
            413,
            "part_head_too_large",
            f"a part has more than {MAX_HEADERS} header lines, or one of more than "
            f"{MAX_HEADER_BYTES} bytes",
        ) from None


def bad_form(message: str) -> NoReturn:
    """400."""
    raise RequestError(400, "bad_form", f"multipart: {message}")


def boundary_of(content_type: str) -> str:
    """The boundary that a Content-Type names. Raises :class:`RequestError` 400."""
    kind, semicolon, rest = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        bad_form("Content-Type is not multipart/form-data")
    found = _parameters(semicolon + rest).get("boundary", "")
    if not _BOUNDARY.fullmatch(found):
        bad_form("Content-Type has no valid boundary")
    return found


def part_start(headers: list[tuple[str, str]]) -> PartStart:
    """The header lines of one part → its name and path."""
    by_name: dict[str, str] = {}
    for name, value in headers:
        if name in by_name:
            bad_form(f"a part has two {name[:64]} lines")
        if _CONTROL.search(value):
            # A bare line feed; the parser sees it or not as the reads were cut.
            bad_form(f"the {name[:64]} line of a part has a control character")
        by_name[name] = value
    if by_name.get("Content-Transfer-Encoding", "").strip().lower() not in _IDENTITY:
        bad_form("Content-Transfer-Encoding is not accepted, send the bytes as they are")
    content_type = by_name.get("Content-Type", "").partition(";")[0].strip().lower()
    disposition = by_name.get("Content-Disposition", "")
    kind, semicolon, rest = disposition.partition(";")
    if kind.strip().lower() != "form-data":
        bad_form("a part has no Content-Disposition: form-data")
    parameters = _parameters(semicolon + rest)
    name = parameters.get("name", "")
    if not name or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        bad_form(f"a part's name is missing, not printable, or over {MAX_NAME_BYTES} bytes")
    filename = _filename(parameters)
    return PartStart(name, None if filename is None else _safe(filename), content_type)


def _parameters(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    text = text.rstrip(" \t;")
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None:
            bad_form("a header parameter is malformed")
        name = match[1].lower()
        if name in found:
            bad_form(f"parameter {name[:64]!r} is given twice")
        found[name] = match[3] if match[2] is None else _unquote(match[2])
        at = match.end()
    return found


def _unquote(quoted: str) -> str:
    text = _ESCAPED.sub(r"\1", quoted)
    for escape, character in _BROWSER_ESCAPES:
        text = text.replace(escape, character)
    return text


def _filename(parameters: dict[str, str]) -> str | None:
    """RFC 6266 4.3: ``filename*`` wins over ``filename``."""
    extended = parameters.get("filename*")
    if extended is None:
        return parameters.get("filename")
    charset, quote, rest = extended.partition("'")
    _language, second, value = rest.partition("'")
    if charset.lower() != "utf-8" or not quote or not second:
        bad_form("filename* is not in the form UTF-8''...")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        bad_form("filename* is not valid UTF-8")


def _safe(filename: str) -> str:
    try:
        if filename.endswith("/"):
            raise ValueError("names a directory")
        return safe_relative_path(filename)
    except ValueError as error:
        shown = filename[:200].encode("utf-8", "replace").decode()
        raise RequestError(
            400, "bad_path", f"files: {shown!r} {error}", details={"path": shown}
        ) from None
