"""The framing check: what h11 lets through and we do not. Pure.

h11 is a correct parser but a lenient one: it takes bare line feeds, folded lines,
two framing headers at once, chunk extensions, and heads of any size when they
arrive in one read (measured, 0.16). Each of those is a place where a proxy before
us may see another message than we do, which is request smuggling. So the raw bytes
of every head and every chunk are looked at here first, and h11 is fed only what
passed. Nothing is repaired: a message is unambiguous or it is refused.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn

from sandrun.errors import RequestError

MAX_HEAD_BYTES: Final = 16 * 1024  # h11's default; nginx allows 4 x 8 KiB
MAX_LINE_BYTES: Final = 8 * 1024  # of the request line; what RFC 9112 3 asks for at least
MAX_FIELDS: Final = 100  # Apache's LimitRequestFields
MAX_CHUNK_LINE: Final = 16  # hexadecimal digits; extensions are refused
MAX_TRAILER_BYTES: Final = 4096
# Chunks are parsed one by one in Python: 100,000 chunks of one byte cost 0.6 s of CPU.
FREE_CHUNKS: Final = 4096  # a program that flushes each line
MIN_MEAN_CHUNK: Final = 64  # bytes, of the chunks beyond the free ones

# Known ones; which of them a path takes is the router's to say (405). Others are 501.
METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"QUERY")
)

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ ]+) HTTP/([0-9])\.([0-9])")
_BAD_TARGET: Final = re.compile(rb"[^\x21-\x7e]|[\\#]|%(?![0-9A-Fa-f]{2})")
# RFC 9110 5.5 without obs-fold. Anchored by fullmatch, one pass, no backtracking.
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_HOST: Final = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+;=-]+|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?"
)
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")  # below 2**63, no sign, no leading zero
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
# Names that some server or CGI gateway folds into the framing headers.
_ALIASES: Final = frozenset((b"content_length", b"transfer_encoding"))
_NOT_IN_TRAILERS: Final = frozenset((b"content-length", b"transfer-encoding", b"host"))


class Framing(NamedTuple):
    """What the check found out. ``length`` None: the body is chunked."""

    length: int | None
    expects_continue: bool
    keep_alive: bool


def refuse(status: int, code: str, message: str) -> NoReturn:
    """The request is answered with this and the connection closed."""
    raise RequestError(status, code, message)


def find_head(buffer: bytearray, searched: int) -> int:
    """Length of the head at the start of ``buffer``, -1 if it is not complete.

    ``searched`` bytes were looked at in an earlier call. What can be refused early
    is: a peer that does not speak HTTP/1 should not get to wait for a deadline.
    """
    if not 65 <= buffer[0] <= 90:
        refuse(400, "bad_request_line", _not_http(buffer[0]))
    start = max(searched - 3, 0)
    end = buffer.find(b"\r\n\r\n", start)
    if _BARE_LF.search(buffer, start, end if end >= 0 else len(buffer)):
        refuse(400, "bad_head", "a line ends in a line feed without a carriage return")
    size = end + 4 if end >= 0 else len(buffer)
    if size > MAX_LINE_BYTES and buffer.find(b"\r\n", 0, MAX_LINE_BYTES) < 0:
        refuse(414, "uri_too_long", f"the request line has more than {MAX_LINE_BYTES} bytes")
    if size > MAX_HEAD_BYTES:
        refuse(431, "head_too_large", f"the head has more than {MAX_HEAD_BYTES} bytes")
    return size if end >= 0 else -1


def _not_http(first: int) -> str:
    if first == 0x16:  # a TLS record of type handshake
        return "this port speaks HTTP in clear text, and this looks like TLS"
    return "the request does not begin with a method"


def check_head(head: bytes, max_body: int) -> Framing:
    """Check one whole head, blank line included. Raises :class:`RequestError`.

    ``max_body`` is the largest Content-Length any route takes.
    """
    line, *lines = head[:-4].split(b"\r\n")
    method, version = _check_request_line(line)
    if len(lines) > MAX_FIELDS:
        refuse(431, "too_many_fields", f"the head has more than {MAX_FIELDS} fields")
    fields: dict[bytes, list[bytes]] = {}
    for text in lines:
        found = _FIELD.fullmatch(text)
        if found is None:
            refuse(400, "bad_field", _what_is_wrong(text))
        name, value = found.groups()
        fields.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    for alias in _ALIASES:
        if alias in fields:
            refuse(400, "bad_framing", f"field {alias.decode()} is not accepted")
    _check_host(fields.get(b"host", []), version)
    length = _check_length(fields, version, max_body)
    upgrade = fields.get(b"upgrade")
    if upgrade is not None and version == b"1.0":
        refuse(400, "bad_upgrade", "Upgrade needs HTTP/1.1")
    expect = fields.get(b"expect")
    if expect is not None and [value.lower() for value in expect] != [b"100-continue"]:
        refuse(417, "expectation_failed", "only Expect: 100-continue is supported")
    if method not in METHODS:
        refuse(501, "method_not_implemented", f"method {method.decode()[:32]} is not implemented")
    tokens = b",".join(fields.get(b"connection", ())).lower().split(b",")
    # HTTP/1.0 with "keep-alive" is closed as well, as h11 does: nobody needs it.
    keep_alive = version == b"1.1" and b"close" not in [token.strip() for token in tokens]
    return Framing(length, expect is not None and version == b"1.1", keep_alive)


def _check_request_line(line: bytes) -> tuple[bytes, bytes]:
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        refuse(400, "bad_request_line", "expected METHOD SP TARGET SP HTTP/1.1")
    method, target, major, minor = found.groups()
    if major != b"1" or minor not in b"01":
        version = f"{major.decode()}.{minor.decode()}"
        refuse(505, "version_not_supported", f"expected HTTP/1.1 or HTTP/1.0, got HTTP/{version}")
    if len(target) > MAX_LINE_BYTES:
        refuse(414, "uri_too_long", f"the target has more than {MAX_LINE_BYTES} bytes")
    if not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*"):
        if method == b"CONNECT":
            refuse(501, "method_not_implemented", "method CONNECT is not implemented")
        refuse(400, "bad_target", "the request target must begin with '/'")
    if _BAD_TARGET.search(target):
        refuse(
            400,
            "bad_target",
            "the request target has a character that must be percent-encoded, or a bad escape",
        )
    return method, b"1." + minor


def _what_is_wrong(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "a folded header line is not accepted"
    name, colon, _ = line.partition(b":")
    if not colon or not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        return "a header line is not 'name: value' with a token as its name"
    return f"field {name.decode()[:64]} has a control character in its value"


def _check_host(values: list[bytes], version: bytes) -> None:
    if not values and version == b"1.0":
        return
    if len(values) != 1:
        refuse(400, "bad_host", f"expected one Host field, got {len(values)}")
    found = _HOST.fullmatch(values[0])
    if found is None or int(found[1] or b"0") > 65535:
        refuse(400, "bad_host", "field Host is not host or host:port")


def _check_length(fields: dict[bytes, list[bytes]], version: bytes, max_body: int) -> int | None:
    lengths = fields.get(b"content-length", [])
    codings = fields.get(b"transfer-encoding")
    if codings is not None:
        if lengths:
            refuse(400, "bad_framing", "Content-Length and Transfer-Encoding exclude each other")
        if version == b"1.0":
            refuse(400, "bad_framing", "Transfer-Encoding needs HTTP/1.1")
        if [coding.lower() for coding in codings] != [b"chunked"]:
            refuse(400, "bad_framing", "the only Transfer-Encoding is one field of 'chunked'")
        return None
    if not lengths:
        return 0
    # Two equal ones too: a proxy may have taken the other view of "5, 5".
    if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
        refuse(400, "bad_framing", "expected one Content-Length in plain decimal digits")
    length = int(lengths[0])
    if length > max_body:
        raise too_large(max_body, length)
    return length


def too_large(limit: int, given: int | None = None) -> RequestError:
    """The one answer to a body that is over a limit."""
    details = {"limit_bytes": limit} | ({"given_bytes": given} if given is not None else {})
    return RequestError(
        413, "body_too_large", f"the body may have at most {limit} bytes", details=details
    )


class ChunkedBody:
    """Takes chunked coding apart, byte-exact. Feed it, then :meth:`take` until ``b""``.

    ``ended``: the last chunk and its trailers have been seen; what follows them
    stays in the buffer that was given and is the next request's.
    """

    def __init__(self) -> None:
        self.ended = False
        self._left = 0  # bytes of the current chunk still to come
        self._closing = False  # its CRLF is still to come
        self._in_trailers = False
        self._chunks = 0
        self._total = 0
        self._trailer_bytes = 0

    def take(self, buffer: bytearray) -> bytes:
        """Cut the next piece of body off the front of ``buffer``.

        ``b""``: more bytes are needed, or ``ended``. All complete small chunks that
        are there come as one piece. Raises :class:`RequestError`.
        """
        pieces: list[bytes] = []
        at = 0
        while not self.ended:
            if self._left:
                piece = bytes(buffer[at : at + self._left])
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._closing = self._left == 0
                continue
            after = self._trailer(buffer, at) if self._in_trailers else self._line(buffer, at)
            if after < 0:
                break
            at = after
        del buffer[:at]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, buffer: bytearray, at: int) -> int:
        """Past the size line at ``at`` (and the CRLF before it); -1 for not yet."""
        if self._closing:
            ending = buffer[at : at + 2]
            if not b"\r\n".startswith(ending):
                refuse(400, "bad_chunk", "a chunk does not end where its size says")
            if len(ending) < 2:
                return -1
            at += 2
        end = buffer.find(b"\r\n", at, at + MAX_CHUNK_LINE + 2)
        if end < 0:
            seen = bytes(buffer[at : at + MAX_CHUNK_LINE + 2]).removesuffix(b"\r")
            if seen and not _CHUNK_SIZE.fullmatch(seen):
                refuse(400, "bad_chunk", "a chunk size is not plain hexadecimal digits")
            return -1
        size = bytes(buffer[at:end])
        if not _CHUNK_SIZE.fullmatch(size):
            refuse(400, "bad_chunk", "a chunk size is not plain hexadecimal digits")
        self._closing = False
        self._left = int(size, 16)
        self._count(self._left)
        self._in_trailers = self._left == 0
        return end + 2

    def _count(self, size: int) -> None:
        self._chunks += 1
        beyond = self._chunks - FREE_CHUNKS
        if beyond > 0 and self._total < beyond * MIN_MEAN_CHUNK:
            refuse(
                400,
                "chunks_too_small",
                f"chunks must have {MIN_MEAN_CHUNK} bytes or more on average",
            )
        self._total += size

    def _trailer(self, buffer: bytearray, at: int) -> int:
        """Past the trailer line at ``at``; trailers are checked and dropped."""
        room = MAX_TRAILER_BYTES - self._trailer_bytes
        end = buffer.find(b"\r\n", at, at + room)
        if end == at:
            self.ended = True
            return at + 2
        if _BARE_LF.search(buffer, at, end if end >= 0 else at + room):
            refuse(400, "bad_chunk", "a trailer line ends in a bare line feed")
        if end < 0:
            if len(buffer) - at >= room:
                refuse(431, "trailers_too_large", "the trailers are too large")
            return -1
        found = _FIELD.fullmatch(buffer, at, end)
        if found is None or found[1].lower() in _NOT_IN_TRAILERS | _ALIASES:
            refuse(400, "bad_chunk", "a trailer is malformed or not allowed there")
        self._trailer_bytes += end + 2 - at
        return end + 2
