"""A request's body → what to run and with which files. I/O: the spool; unprivileged.

Three forms: multipart (files and a manifest), JSON with files and a manifest, and
JSON with one piece of code. A field of the manifest part wins over ``job.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from sandrun import manifest
from sandrun.errors import RequestError
from sandrun.http import api
from sandrun.http.multipart import End, FormParser, PartStart
from sandrun.http.spool import JOB_JSON, Budget, Spool, Spooled, too_large
from sandrun.job import MIB, JobSpec
from sandrun.manifest import Manifest
from sandrun.paths import safe_relative_path

if TYPE_CHECKING:
    from sandrun.http.app import App
    from sandrun.http.exchange import Exchange

MAX_JSON: Final = 8 * MIB  # decoded at one go; larger submissions are multipart
MAX_SPEC: Final = 72 * 1024  # with 48 KiB of inline files it fits a message of 128 KiB
FIELDS: Final = 4  # parts of a form that are no files
MANIFEST_STRINGS: Final = 16 * 1024  # of the manifest's 64 KiB, and the body's own names
CODE_NAME: Final = "main"

_encode_spec: Final = msgspec.msgpack.Encoder().encode


class Submission(NamedTuple):
    """Ready to be accepted."""

    spec: JobSpec
    given: tuple[str, ...]  # fields of the manifest part
    spooled: Spooled
    job_hash: str


async def read_submission(exchange: Exchange, app: App, spool: Spool) -> Submission:
    """Read the whole body. Raises :class:`RequestError` 400, 408, 413, 415 or 503."""
    kind = check_media_type(exchange)
    if kind == "application/json":
        raw = await read_json(exchange, app.budget)
        check_strings(raw, app.config.limits.files)
        body = api_decode(api.decode_submit, raw)
        given = _from_json(body, app, spool)
    else:
        given = await _from_form(exchange, app, spool)
    return _complete(given, app, spool)


def check_media_type(exchange: Exchange) -> str:
    """The media type of a submission. Raises :class:`RequestError` 415."""
    kind = media_type(exchange)
    if kind not in {"application/json", "multipart/form-data"}:
        raise unsupported(kind, "multipart/form-data or application/json")
    return kind


def media_type(exchange: Exchange) -> str:
    """The body's type without parameters, in lower case."""
    value = exchange.request.headers.get("content-type") or ""
    return value.partition(";")[0].strip().lower()


def unsupported(kind: str, wanted: str) -> RequestError:
    """415 that says what is understood."""
    return RequestError(
        415,
        "unsupported_media_type",
        f"Content-Type: expected {wanted}, got {kind or 'none'}",
        details={"given": kind[:100], "expected": wanted},
    )


async def read_json(exchange: Exchange, budget: Budget, limit: int = MAX_JSON) -> bytes:
    """A small body at once. What is here of it while it comes counts as upload.

    Without that, clients that send slowly could hold 8 MiB each, however many they are.
    """
    exchange.body_limit = min(exchange.body_limit, limit)
    announced = exchange.content_length
    if announced is not None and announced > limit:
        raise too_large(limit)
    first = await exchange.read()
    if announced is not None and len(first) == announced:
        return first
    pieces: list[bytes] = []
    held = 0
    try:
        piece = first
        while piece:
            budget.take(len(piece))
            held += len(piece)
            pieces.append(piece)
            piece = await exchange.read()
        return b"".join(pieces)
    finally:
        budget.give(held)


def check_strings(raw: bytes, max_files: int) -> None:
    """Raises :class:`RequestError` 413 for JSON that is nothing but tiny strings.

    Decoding 8 MiB of one-letter files took 0.6 s of everybody's time and 150 MB, to be
    refused for their number. An escaped quote is no end of a string, so text has none:
    the count is never too high for an honest body.
    """
    strings = (raw.count(b'"') - raw.count(b'\\"')) // 2
    most = 2 * max_files + MANIFEST_STRINGS
    if strings > most:
        raise RequestError(
            413,
            "too_many_files",
            f"files: more than {max_files} in one upload",
            details={"limit": max_files},
        )


def api_decode(decode: Any, raw: bytes) -> Any:
    """Decode by one of the types of ``api.py``. Raises :class:`RequestError` 400."""
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        raise RequestError(400, "bad_request", f"body: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "bad_json", f"body: not JSON: {error}") from None


def safe_path(path: str) -> str:
    """``path`` as ``paths.py`` has it. Raises :class:`RequestError` 400."""
    try:
        return safe_relative_path(path)
    except ValueError as error:
        shown = path[:200].encode("utf-8", "replace").decode()
        raise RequestError(
            400, "bad_path", f"files: {shown!r} {error}", details={"path": shown}
        ) from None


def _from_json(body: api.SubmitBody, app: App, spool: Spool) -> Manifest:
    given = Manifest()
    if body.manifest:
        given = manifest.parse(bytes(body.manifest), app.rules)
    if body.code is None and not body.files:
        raise RequestError(400, "no_files", "body: give code or files")
    if body.code is not None and body.files:
        raise RequestError(
            400, "bad_request", "body: give code or files, not both", details={"field": "code"}
        )
    fields: dict[str, Any] = {}
    if body.interpreter is not None:
        fields["interpreter"] = body.interpreter
    elif body.code is not None and given.interpreter is msgspec.UNSET:
        fields["interpreter"] = "python3"
    if body.stdin is not None:
        fields["stdin"] = body.stdin
    if body.args is not None:
        fields["args"] = body.args
    if body.code is not None:
        fields["entrypoint"] = CODE_NAME + app.extension(
            fields.get("interpreter", given.interpreter)
        )
    if fields:
        given = manifest.merge(manifest.check(fields, app.rules, "body"), given)
    if body.code is not None:
        spool.add(fields["entrypoint"], utf8(body.code, "code"))
    for path, text in (body.files or {}).items():
        spool.add(safe_path(path), utf8(text, "files"))
    return given


def utf8(text: str, field: str) -> bytes:
    """Raises :class:`RequestError` 400: JSON can say what no file can hold."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RequestError(400, "bad_request", f"{field}: has a lone surrogate") from None


def _complete(given: Manifest, app: App, spool: Spool) -> Submission:
    """Everything has been read: what is it that shall run?"""
    spooled = spool.finish()
    try:
        wanted = given
        if spooled.job_json is not None:
            job_json = manifest.parse(spooled.job_json, app.rules, JOB_JSON)
            wanted = manifest.merge(given, job_json)
        spec = manifest.draft(wanted, app.defaults)
        app.require_environment(spec.environment)
        if not spooled.has_archive:
            spec = manifest.complete(
                spec, spooled.plain_files(), spooled.first_line, app.rules.interpreters
            )
        encoded = _encode_spec(spec)
        if len(encoded) > MAX_SPEC:
            raise RequestError(
                413,
                "manifest_too_large",
                f"manifest: it takes {len(encoded)} bytes; {MAX_SPEC} are allowed "
                "(a long stdin can be a file)",
                details={"field": "manifest", "value": len(encoded), "maximum": MAX_SPEC},
            )
        spooled.digest.update(encoded)
    except BaseException:
        spool.take_back(spooled)
        raise
    return Submission(spec, given.given, spooled, spooled.digest.hexdigest())


async def _from_form(exchange: Exchange, app: App, spool: Spool) -> Manifest:
    """Parts ``files`` go to the spool as they arrive; ``manifest`` is kept."""
    content_type = exchange.request.headers.get("content-type") or ""
    parser = FormParser(content_type, max_parts=app.config.limits.files + FIELDS)
    sink = _FormSink(spool)
    while piece := await exchange.read():
        for event in parser.feed(piece):
            sink.take(event)
    parser.finish()
    if sink.files == 0:
        raise RequestError(400, "no_files", "files: the form has no part of this name")
    if sink.manifest is None:
        return Manifest()
    return manifest.parse(bytes(sink.manifest), app.rules)


class _FormSink:
    """Where the parts of a form go, one after the other."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._is_file = False
        self.files = 0
        self.manifest: bytearray | None = None

    def take(self, event: PartStart | bytes | End) -> None:
        """One event of the parser. Raises :class:`RequestError` 400 or 413."""
        if isinstance(event, PartStart):
            self._begin(event)
        elif isinstance(event, End):
            if self._is_file:
                self._spool.end()
        elif self._is_file:
            self._spool.write(event)
        elif self.manifest is not None:
            self.manifest += event
            if len(self.manifest) > manifest.MAX_BYTES:
                raise RequestError(
                    413,
                    "manifest_too_large",
                    f"manifest: more than {manifest.MAX_BYTES} bytes",
                    details={"field": "manifest", "maximum": manifest.MAX_BYTES},
                )

    def _begin(self, part: PartStart) -> None:
        self._is_file = part.name == "files"
        if self._is_file:
            if part.path is None:
                raise RequestError(
                    400,
                    "no_file_name",
                    "files: a part has no file name (curl: files=@NAME)",
                    details={"field": "files"},
                )
            self.files += 1
            self._spool.begin(part.path)
        elif part.name != "manifest":
            raise RequestError(
                400,
                "unknown_part",
                f"there is no part {part.name[:80]!r}; known are files and manifest",
                details={"field": part.name[:80], "allowed": ["files", "manifest"]},
            )
        elif self.manifest is not None:
            raise RequestError(
                400, "bad_form", "manifest: is there twice", details={"field": "manifest"}
            )
        else:
            self.manifest = bytearray()
