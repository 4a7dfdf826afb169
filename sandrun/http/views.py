"""A job as clients see it: :class:`~sandrun.http.jobs.Job` → types of ``api.py``. Pure."""

from __future__ import annotations

import codecs
import mimetypes
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from sandrun.http import api
from sandrun.job import MIB
from sandrun.logs import STREAM_NAMES, Gap, Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandrun.http.app import App
    from sandrun.http.jobs import Job
    from sandrun.http.quota import Client
    from sandrun.job import Limits, OutputFile

_utf8: Final = codecs.getincrementaldecoder("utf-8")

# Fixed at import: the host's /etc/mime.types differ, and http opens nothing later.
_TYPES: Final = {
    **mimetypes.MimeTypes(filenames=()).types_map[True],
    ".gz": "application/gzip",
    ".ipynb": "application/x-ipynb+json",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".tgz": "application/gzip",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}


def mime_type(path: str) -> str:
    """By the last extension; what is not known is bytes."""
    _, dot, extension = path.rpartition("/")[2].rpartition(".")
    return _TYPES.get(f".{extension.lower()}" if dot else "", "application/octet-stream")


def shown(path: str) -> str:
    """A path as JSON can carry it: bytes that are not UTF-8 become U+FFFD."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def download_url(secret: str, path: str) -> str:
    """Byte-exact, also for names that are not UTF-8."""
    return f"/download/{quote(secret)}/{quote(path.encode('utf-8', 'surrogateescape'))}"


def size_formatted(size: int) -> str:
    """1536 → "1.5 KB"."""
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"


def _status_fields(app: App, job: Job, secret: str) -> dict[str, object]:
    usage, verdict = job.usage, job.verdict
    position = app.position(job)
    wall_s = usage.wall_time_s
    if not job.has_ended and job.started is not None:
        wall_s = app.clock() - job.started
    memory_mb = round(usage.memory_peak_bytes / MIB, 3)
    return {
        "job_id": secret,
        "status": job.status,
        "exit_reason": job.exit_reason,
        "queue_position": position,
        "eta_s": app.eta_s(position),
        "execution_metadata": api.ExecutionMetadata(
            cpu_seconds=usage.cpu_seconds,
            memory_peak_bytes=usage.memory_peak_bytes,
            memory_peak_mb=memory_mb,
            wall_time_ms=round(wall_s * 1000),
            exit_code=verdict.exit_code if verdict else None,
            signal=verdict.signal if verdict else None,
            environment=job.spec.environment,
            interpreter=job.spec.interpreter,
            processes_peak=usage.processes_peak,
            output_bytes=usage.output_bytes,
        ),
        "metrics": api.Metrics(
            cpu_seconds=usage.cpu_seconds, memory_mb=memory_mb, runtime=round(wall_s, 6)
        ),
        "evidence": list(verdict.evidence) if verdict else [],
        "remedy": verdict.remedy if verdict else None,
        "job_hash": job.job_hash,
        "output_files": {
            shown(path): api.OutputMeta(
                size_bytes=file.size_bytes, sha256=file.sha256, type=mime_type(path)
            )
            for path, file in job.outputs.items()
        },
        "skipped_outputs": {shown(path): reason for path, reason in job.skipped.items()},
        "timeline": api.Timeline(
            submitted=job.wall(job.submitted) or 0.0,
            install_seconds=job.install_s,
            install_log=job.install_log or None,
            started=job.wall(job.started),
            ended=job.wall(job.ended),
            expires=job.wall(job.deadline),
        ),
        "worker_metadata": api.WorkerMetadata(worker_id=app.worker_id),
    }


def status(app: App, job: Job, secret: str) -> api.Status:
    """For /status."""
    return api.Status(**_status_fields(app, job, secret))  # type: ignore[arg-type]


def run_reply(app: App, job: Job, logs: api.Logs, outputs: list[api.InlineOutput]) -> api.RunReply:
    """For /run."""
    return api.RunReply(
        **_status_fields(app, job, job.id),  # type: ignore[arg-type]
        view_id=job.view_id,
        stdout=logs.stdout,
        stderr=logs.stderr,
        cursor=logs.cursor,
        dropped_bytes=logs.dropped_bytes,
        outputs=outputs,
    )


def run_end(app: App, job: Job, cursor: int, outputs: list[api.InlineOutput]) -> api.RunEnd:
    """For /run as an event stream."""
    return api.RunEnd(
        **_status_fields(app, job, job.id),  # type: ignore[arg-type]
        view_id=job.view_id,
        cursor=cursor,
        outputs=outputs,
    )


def submitted(app: App, job: Job) -> api.Submitted:
    """For /submit."""
    position = app.position(job)
    return api.Submitted(
        job_id=job.id,
        view_id=job.view_id,
        status="queued",
        position=position,
        eta_s=app.eta_s(position),
        expires_at=job.wall(job.deadline) or 0.0,
    )


def output_entry(secret: str, file: OutputFile) -> api.OutputEntry:
    """One line of /outputs."""
    kind = mime_type(file.path)
    return api.OutputEntry(
        name=shown(file.path.rpartition("/")[2]),
        path=shown(file.path),
        size=file.size_bytes,
        size_bytes=file.size_bytes,
        size_formatted=size_formatted(file.size_bytes),
        sha256=file.sha256,
        type=kind,
        mime_type=kind,
        download_url=download_url(secret, file.path),
    )


def log_record(entry: Record | Gap, data: str) -> api.LogRecord:
    """One entry of the log, with its text decoded."""
    if isinstance(entry, Gap):
        return api.LogRecord(
            seq=entry.seq, t=0.0, stream="gap", data="", dropped_bytes=entry.dropped_bytes
        )
    return api.LogRecord(
        seq=entry.seq, t=round(entry.t, 6), stream=STREAM_NAMES[entry.stream], data=data
    )


def log_records(
    entries: Sequence[Record | Gap], before: Mapping[int, bytes]
) -> list[api.LogRecord]:
    """Each piece; a character may be split between two, so they are decoded in order."""
    decode = TextDecoder(before)
    return [log_record(entry, decode(entry)) for entry in entries]


def utf8_after(data: bytes) -> codecs.IncrementalDecoder:
    """A decoder for what follows ``data``, of which only the end of a character that is
    not whole counts.
    """
    decoder = _utf8("replace")
    decoder.decode(data)
    return decoder


class TextDecoder:
    """Bytes of one log's streams → text. Invalid UTF-8 is replaced; a character that
    two records share comes with the second one. ``before``: the last bytes of each stream
    before the first entry, as ``LogReader.before`` has them.
    """

    def __init__(self, before: Mapping[int, bytes]) -> None:
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}
        for stream, data in before.items():
            decoder = utf8_after(data)
            if decoder.getstate()[0]:
                self._decoders[stream] = decoder

    def __call__(self, entry: Record | Gap) -> str:
        """Text of the next entry of the log."""
        if isinstance(entry, Gap):
            self._decoders.clear()
            return ""
        if not self._decoders and entry.data.isascii():
            return entry.data.decode("ascii")
        decoder = self._decoders.get(entry.stream)
        if decoder is None:
            decoder = self._decoders[entry.stream] = _utf8("replace")
        return decoder.decode(entry.data)


def limit_column(limits: Limits) -> api.LimitColumn:
    """In the manifest's units."""
    return api.LimitColumn(
        timeout=limits.timeout_s,
        cpu_seconds=limits.cpu_seconds,
        memory_mb=limits.memory_bytes // MIB,
        storage_mb=limits.storage_bytes // MIB,
        processes=limits.processes,
        open_files=limits.open_files,
        log_mb=limits.log_bytes / MIB,
        output_mb=limits.output_bytes / MIB,
    )


def service_limits(app: App) -> api.ServiceLimits:
    """Defaults and maxima."""
    return api.ServiceLimits(
        default=limit_column(app.defaults),
        maximum=limit_column(app.maxima),
        max_upload_mb=app.config.http.max_upload_mb,
        max_files=app.config.limits.files,
    )


def your_quota(app: App, client: Client) -> api.YourQuota:
    """A client's standing."""
    standing = app.quota.standing(client, app.clock())
    return api.YourQuota(
        used=round(standing.used_s, 3),
        limit=standing.limit_s,
        available=round(standing.available_s, 3),
        active_jobs=standing.active_jobs,
        max_active_jobs=standing.max_active_jobs,
        jobs_this_hour=standing.jobs_this_hour,
        max_jobs_per_hour=standing.max_jobs_per_hour,
        can_submit=not standing.reason,
        reason=standing.reason or None,
        resets_in=round(standing.resets_in_s, 3),
        enforced=app.config.rate_limit.enabled,
    )


def system(app: App) -> api.System:
    """The node in four numbers."""
    return api.System(
        queue_length=len(app.queue),
        active_jobs=len(app.active),
        warm=app.leases.ready_count,
        capacity=app.pool.capacity if app.pool else app.config.pool.capacity,
    )


def stats(app: App, client: Client) -> api.Stats:
    """For /stats."""
    return api.Stats(your_quota=your_quota(app, client), system=system(app))


def environments(app: App) -> api.Environments:
    """For /environments."""
    welcome = app.welcome
    known = welcome.environments if welcome else ()
    entries = [
        api.EnvironmentEntry(
            name=environment.name,
            interpreter=environment.interpreter,
            version=environment.version,
            packages={package.name: package.version for package in environment.packages},
            warm=app.leases.warm_count(environment.name),
            description=environment.description,
            fault=environment.fault,
        )
        for environment in known
    ]
    return api.Environments(
        templates=[entry.name for entry in entries],
        environments=entries,
        interpreters=[
            api.InterpreterEntry(
                name=interpreter.name,
                version=interpreter.version,
                extensions=list(interpreter.extensions),
                mode=interpreter.mode,
            )
            for interpreter in (welcome.interpreters if welcome else ())
        ],
        stats=api.EnvironmentStats(total=len(entries), warm=app.leases.ready_count),
    )


def health(app: App) -> api.Health:
    """Ready, or the first cause why not."""
    reason: str | None = None
    state = "ready"
    if app.draining:
        state, reason = "draining", "the server is stopping"
    elif app.welcome is None or app.pool is None:
        state, reason = "starting", "the pool is starting"
    elif app.pool.fault or app.pool.pressure:
        state, reason = "unavailable", app.pool.fault or app.pool.pressure
    return api.Health(
        status=state,
        worker_id=app.worker_id,
        reason=reason,
        http_restarts=app.http_deaths,
        http_last_end=app.http_death_cause or None,
    )


def privacy(app: App) -> api.Privacy:
    """Measured facts come from the supervisor's Welcome."""
    retention = app.config.retention
    welcome = app.welcome
    return api.Privacy(
        facts=dict(welcome.privacy) if welcome else {},
        isolation=dict(welcome.layers) if welcome else {},
        retention={
            "delivered_seconds": 0.0,
            "finished_seconds": retention.finished_seconds,
            "failed_seconds": retention.failed_seconds,
            "total_mb": float(retention.total_mb),
        },
        logged="start, stop and faults of the server; no job ids, addresses, names or content",
        addresses="kept as a keyed hash in memory; the key changes daily and is never stored",
    )


def service_info(app: App, version: str) -> api.ServiceInfo:
    """For GET /."""
    retention = app.config.retention
    return api.ServiceInfo(
        service="sandrun",
        version=version,
        status=health(app).status,
        description="Runs code anonymously in a sandbox of its own and forgets it",
        privacy={
            "accounts": False,
            "storage": "memory",
            "auto_delete": True,
            "finished_seconds": retention.finished_seconds,
            "failed_seconds": retention.failed_seconds,
            "details": "/privacy",
        },
        limits=service_limits(app),
        interpreters=[known.name for known in (app.welcome.interpreters if app.welcome else ())],
        environments=list(app.config.environments),
        links={
            "openapi": "/openapi.json",
            "environments": "/environments",
            "stats": "/stats",
            "health": "/health",
        },
    )
