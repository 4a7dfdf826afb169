"""What goes into the head and body of an answer. Pure.

Every answer carries the headers that keep a browser from guessing: they are added
here, so that no handler can forget them.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable
from email.utils import formatdate
from typing import Any, Final

import msgspec

from sandrun.errors import RequestError
from sandrun.http.exchange import Headers, Response

Fields = list[tuple[bytes, bytes]]

GZIP_MIN_BYTES: Final = 1400  # below that it saves no packet
GZIP_MAX_BYTES: Final = 512 * 1024  # 5 ms of the loop's time at level 1
GZIP_LEVEL: Final = 1
COMPRESSIBLE: Final = ("application/json", "application/javascript", "image/svg+xml", "text/")

_DEFAULTS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_DEFAULT_NAMES: Final = frozenset(name for name, _ in _DEFAULTS)
_OURS: Final = frozenset((b"content-length", b"transfer-encoding", b"date"))
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_Q_ZERO: Final = re.compile(r";\s*q\s*=\s*0(?:\.0{0,3})?\s*$", re.IGNORECASE)

INTERNAL_ERROR: Final = Response(500, b'{"error":"internal error","code":"internal_error"}')

_encode: Final = msgspec.json.Encoder().encode


def fields_of(headers: Iterable[tuple[str, str]]) -> Fields:
    """A handler's headers as bytes, and ours beside them.

    Raises ValueError for one that would break the head: a file name of a job may
    have found its way into it.
    """
    fields: Fields = []
    missing = True
    for name, value in headers:
        raw = (name.lower().encode("latin-1"), value.encode("latin-1"))
        if not _NAME.fullmatch(raw[0]) or not _VALUE.fullmatch(raw[1]) or raw[0] in _OURS:
            raise ValueError(f"header {name!r} cannot be sent")
        fields.append(raw)
        missing = missing and raw[0] not in _DEFAULT_NAMES
    if missing:
        fields.extend(_DEFAULTS)
    else:
        given = {name for name, _ in fields}
        fields.extend(field for field in _DEFAULTS if field[0] not in given)
    return fields


def compress(response: Response, request_headers: Headers, fields: Fields) -> bytes:
    """The body to send: compressed if that pays. Adds to ``fields`` what tells so."""
    body = response.body
    if not GZIP_MIN_BYTES <= len(body) <= GZIP_MAX_BYTES:
        return body
    if not response.content_type.startswith(COMPRESSIBLE):
        return body
    if any(name in (b"content-encoding", b"etag", b"content-range") for name, _ in fields):
        return body
    if not any(name == b"vary" for name, _ in fields):
        fields.append((b"vary", b"accept-encoding"))
    if not accepts_gzip(request_headers.get("accept-encoding")):
        return body
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    packed = compressor.compress(body) + compressor.flush()
    if len(packed) >= len(body):
        return body
    fields.append((b"content-encoding", b"gzip"))
    return packed


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a client that sent this takes gzip."""
    if not accept_encoding:
        return False
    for part in accept_encoding.split(","):
        name = part.partition(";")[0].strip().lower()
        if name in ("gzip", "x-gzip", "*") and not _Q_ZERO.search(part):
            return True
    return False


def error_response(error: RequestError) -> Response:
    """The JSON that api.md promises for every refusal."""
    content: dict[str, Any] = {"error": error.message, "code": error.code}
    headers = error.headers
    if error.details is not None:
        content["details"] = error.details
    if error.retry_after_s is not None:
        content["retry_after"] = error.retry_after_s
        headers = (*headers, ("Retry-After", str(max(math.ceil(error.retry_after_s), 1))))
    return Response(error.status, _encode(content), headers=headers)


def http_date(seconds: float) -> bytes:
    """IMF-fixdate."""
    return formatdate(seconds, usegmt=True).encode()
