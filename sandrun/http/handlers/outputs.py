"""Outputs: their list, single files and ranges of them, everything as an archive.

Runs as nobody. I/O: the exchange and the descriptor of the job's outputs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from sandrun.errors import RequestError
from sandrun.http import api, archive, views
from sandrun.http.exchange import Exchange, Response
from sandrun.http.handlers.parameters import flag
from sandrun.http.handlers.replies import NO_STORE, find, respond_json
from sandrun.http.ranges import (
    Span,
    attachment,
    if_range_holds,
    none_match,
    parse_range,
)
from sandrun.http.router import Match, not_found
from sandrun.http.turns import TURNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandrun.http.app import App
    from sandrun.http.jobs import Job
    from sandrun.job import OutputFile

DOWNLOAD_POLICY: Final = (
    ("Content-Security-Policy", "sandbox; default-src 'none'"),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
)


class Outputs:
    """Routes to what a job left."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def outputs(self, exchange: Exchange, match: Match) -> None:
        """The list."""
        job, _ = find(self.app, match.id)
        files = [views.output_entry(match.id, file) for file in job.outputs.values()]
        await respond_json(
            exchange,
            api.Outputs(job_id=match.id, status=job.status, total_files=len(files), files=files),
        )

    async def download(self, exchange: Exchange, match: Match) -> None:
        """Everything as one archive; delivered means deleted."""
        request = exchange.request
        job, owner = find(self.app, match.id)
        kind = request.query.get("format", "tar.gz")
        if kind not in archive.FORMATS:
            known = ", ".join(archive.FORMATS)
            raise RequestError(
                400,
                "bad_format",
                f"format: expected one of {known}, got {kind[:40]!r}",
                details={"field": "format", "allowed": list(archive.FORMATS)},
            )
        keep = flag(request.query, "keep")
        if not job.has_ended:
            raise RequestError(
                409,
                "not_finished",
                f"the job is {job.status}; its outputs are there when it has ended",
                details={"status": job.status},
                retry_after_s=1,
            )
        await self._send_archive(exchange, job, kind)
        if owner and not keep and request.method != "HEAD" and await exchange.delivered():
            self.app.delete(job)

    async def _archive_step(self, steps: Iterator[bytes]) -> bytes | None:
        """The next piece. One for all archives per turn of the loop: compressing takes
        milliseconds, and a hundred downloads at once must not take a hundred times that
        from everybody else.
        """
        await TURNS.take()
        return next(steps, None)

    async def _send_archive(self, exchange: Exchange, job: Job, kind: str) -> None:
        files = tuple(job.outputs.values())
        name = f"outputs.{kind}"
        headers = (
            ("Content-Type", archive.FORMATS[kind]),
            ("Content-Disposition", attachment(name)),
            *DOWNLOAD_POLICY,
            *NO_STORE,
        )
        length = archive.tar_size(files) if kind == "tar" else None
        if job.kept is None:  # it ended before it had a sandbox
            await exchange.start(200, headers, length)
            for piece in archive.stream(kind, -1, ()):
                await exchange.write(piece)
            await exchange.finish()
            return
        kept = job.kept.hold()
        try:
            await exchange.start(200, headers, length)
            if exchange.request.method != "HEAD":
                steps = archive.stream(kind, kept.outputs_fd, files)
                while (step := await self._archive_step(steps)) is not None:
                    await exchange.write(step)
            await exchange.finish()
        finally:
            kept.release()

    async def download_file(self, exchange: Exchange, match: Match) -> None:
        """One file, or ranges of it."""
        request = exchange.request
        job, _ = find(self.app, match.id)
        file = job.outputs.get(match.path)
        if file is None or job.kept is None:
            raise not_found()
        etag = f'"{file.sha256}"'
        headers = (
            ("Content-Type", views.mime_type(file.path)),
            ("Content-Disposition", attachment(file.path.rpartition("/")[2])),
            ("ETag", etag),
            ("Accept-Ranges", "bytes"),
            *DOWNLOAD_POLICY,
            *NO_STORE,
        )
        if none_match(request.headers.get("if-none-match"), etag):
            await exchange.respond(Response(304, content_type="", headers=headers[1:]))
            return
        spans = None
        if if_range_holds(request.headers.get("if-range"), etag):
            spans = parse_range(request.headers.get("range"), file.size_bytes)
        kept = job.kept.hold()
        try:
            await _send_spans(exchange, kept.outputs_fd, file, spans, headers)
        finally:
            kept.release()


async def _send_spans(
    exchange: Exchange,
    fd: int,
    file: OutputFile,
    spans: list[Span] | None,
    headers: tuple[tuple[str, str], ...],
) -> None:
    total = file.size_bytes
    if spans is not None and not spans:
        raise RequestError(
            416,
            "range_not_satisfiable",
            f"Range: the file has {total} bytes",
            details={"size_bytes": total},
            headers=(("Content-Range", f"bytes */{total}"),),
        )
    if spans is None:
        await exchange.start(200, headers, total)
        await _send(exchange, fd, file.offset, total)
    elif len(spans) == 1:
        span = spans[0]
        headers = (*headers, ("Content-Range", span.content_range(total)))
        await exchange.start(206, headers, span.size)
        await _send(exchange, fd, file.offset + span.offset, span.size)
    else:
        await _send_multipart(exchange, fd, file, spans, headers)
    await exchange.finish()


async def _send_multipart(
    exchange: Exchange,
    fd: int,
    file: OutputFile,
    spans: list[Span],
    headers: tuple[tuple[str, str], ...],
) -> None:
    boundary = os.urandom(16).hex()
    kind = headers[0][1]
    heads = [
        f"--{boundary}\r\nContent-Type: {kind}\r\n"
        f"Content-Range: {span.content_range(file.size_bytes)}\r\n\r\n".encode()
        for span in spans
    ]
    tail = f"--{boundary}--\r\n".encode()
    length = sum(len(h) + s.size + 2 for h, s in zip(heads, spans, strict=True)) + len(tail)
    outer = ("Content-Type", f"multipart/byteranges; boundary={boundary}")
    await exchange.start(206, (outer, *headers[1:]), length)
    for head, span in zip(heads, spans, strict=True):
        await exchange.write(head)
        await _send(exchange, fd, file.offset + span.offset, span.size)
        await exchange.write(b"\r\n")
    await exchange.write(tail)


async def _send(exchange: Exchange, fd: int, offset: int, size: int) -> None:
    if exchange.request.method == "HEAD":
        return
    for piece in archive.pieces(fd, offset, size):
        await exchange.write(piece)
        if len(piece) == archive.PIECE_BYTES:  # there may be more
            await TURNS.take()
