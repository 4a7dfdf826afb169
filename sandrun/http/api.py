"""The JSON contract: every body that goes in or out, as a type. Pure.

``openapi.py`` generates the public description from these types, and the server
decodes and encodes with the same ones. Keys are never removed or retyped.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sandrun.job import ExitReason  # msgspec resolves annotations at run time

UNSET: Final = msgspec.UNSET


class _Reply(msgspec.Struct, kw_only=True):
    pass


# ── in ───────────────────────────────────────────────────────────────────────


class SubmitBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """JSON body of /submit and /run. ``code`` is the one-liner's form.

    ``files`` maps relative paths to text; ``manifest`` is the manifest part, which
    ``sandrun.manifest`` reads from its own bytes.
    """

    manifest: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    files: dict[str, str] | None = None
    code: str | None = None
    interpreter: str | None = None
    stdin: str | None = None
    args: list[str] | None = None


class FileSize(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One file that would be uploaded."""

    path: str
    size: int = 0


class ValidateBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of /validate: a manifest and the paths (with sizes, if known); or that of /submit."""

    manifest: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    files: list[str | FileSize] | dict[str, str] = []


# ── out ──────────────────────────────────────────────────────────────────────


class Problem(_Reply, omit_defaults=True):
    """Every error. ``code`` is stable and for programs."""

    error: str
    code: str
    details: dict[str, Any] | None = None
    retry_after: float | None = None


class Submitted(_Reply):
    """Answer to /submit."""

    job_id: str
    view_id: str
    status: str
    position: int
    eta_s: float
    expires_at: float  # seconds since 1970


class UploadProgress(_Reply):
    """Answer to /upload: ``receiving``, then ``accepted`` for the job's life.

    ``total_bytes`` is of the whole body, null where it was not announced (chunked).
    Once it is accepted the counts are null.
    """

    status: str
    received_bytes: int | None
    total_bytes: int | None


class ExecutionMetadata(_Reply):
    """What the job used."""

    cpu_seconds: float = 0.0
    memory_peak_bytes: int = 0
    memory_peak_mb: float = 0.0
    wall_time_ms: int = 0
    exit_code: int | None = None
    signal: int | None = None
    environment: str = ""
    interpreter: str | None = None
    processes_peak: int = 0
    output_bytes: int = 0


class Metrics(_Reply):
    """The same in the original interface's words."""

    cpu_seconds: float = 0.0
    memory_mb: float = 0.0
    runtime: float = 0.0


class OutputMeta(_Reply):
    """Value of ``output_files``."""

    size_bytes: int
    sha256: str
    type: str


class Timeline(_Reply):
    """Seconds since 1970, or null for what has not happened.

    ``install_seconds``: how long its requirements took to be had, 0 if they were
    there already; ``install_log``: what the installer said of it.
    """

    submitted: float
    install_seconds: float | None = None
    install_log: str | None = None
    started: float | None = None
    ended: float | None = None
    expires: float | None = None


class WorkerMetadata(_Reply):
    """Which node ran it. ``signature`` is reserved."""

    worker_id: str
    signature: str | None = None


class Status(_Reply):
    """Answer to /status."""

    job_id: str
    status: str
    exit_reason: ExitReason | None
    queue_position: int
    eta_s: float
    execution_metadata: ExecutionMetadata
    metrics: Metrics
    evidence: list[str]
    remedy: str | None
    job_hash: str
    output_files: dict[str, OutputMeta]
    skipped_outputs: dict[str, str]
    timeline: Timeline
    worker_metadata: WorkerMetadata


class InlineOutput(_Reply, omit_defaults=True):
    """One output of /run; ``data_base64`` when ``?inline=1`` and it is small."""

    path: str
    size_bytes: int
    sha256: str
    type: str
    download_url: str
    data_base64: str | None = None


class RunReply(Status):
    """Answer to /run: the status, the output, the files."""

    view_id: str
    stdout: str
    stderr: str
    cursor: int
    dropped_bytes: int
    outputs: list[InlineOutput]


class RunEnd(Status):
    """The ``end`` of /run as an event stream: the log has come already, record by record."""

    view_id: str
    cursor: int
    outputs: list[InlineOutput]
    event: str = "end"


class LogRecord(_Reply, omit_defaults=True):
    """One piece of output. ``t`` is in seconds since the job began.

    ``stream`` is "stdout", "stderr", "system" (said by sandrun) or "gap": from the
    middle of a log over its cap ``dropped_bytes`` were lost here.
    """

    seq: int
    t: float
    stream: str
    data: str
    dropped_bytes: int = 0


class LogEnd(_Reply):
    """The last message of a stream."""

    status: str
    exit_reason: ExitReason | None
    event: str = "end"


class Logs(_Reply):
    """Answer to /logs. Go on with ``?since=<cursor>``."""

    stdout: str
    stderr: str
    records: list[LogRecord]
    cursor: int
    dropped_bytes: int
    status: str


class OutputEntry(_Reply):
    """One file of /outputs."""

    name: str
    path: str
    size: int
    size_bytes: int
    size_formatted: str
    sha256: str
    type: str
    mime_type: str
    download_url: str


class Outputs(_Reply):
    """Answer to /outputs."""

    job_id: str
    status: str
    total_files: int
    files: list[OutputEntry]


class YourQuota(_Reply):
    """``used``, ``limit`` and ``available`` are CPU seconds."""

    used: float
    limit: float
    available: float
    active_jobs: int
    max_active_jobs: int
    jobs_this_hour: int
    max_jobs_per_hour: int
    can_submit: bool
    reason: str | None
    resets_in: float
    enforced: bool


class System(_Reply):
    """The node."""

    queue_length: int
    active_jobs: int
    warm: int
    capacity: int


class Stats(_Reply):
    """Answer to /stats."""

    your_quota: YourQuota
    system: System


class EnvironmentEntry(_Reply):
    """One environment."""

    name: str
    interpreter: str
    version: str
    packages: dict[str, str]
    warm: int
    description: str
    fault: str  # why jobs cannot run in it, or ""


class InterpreterEntry(_Reply):
    """One interpreter that jobs may name."""

    name: str
    version: str
    extensions: list[str]
    mode: str


class EnvironmentStats(_Reply):
    """Counts over all environments."""

    total: int
    warm: int


class Environments(_Reply):
    """Answer to /environments. ``templates`` are the environments' names."""

    templates: list[str]
    environments: list[EnvironmentEntry]
    interpreters: list[InterpreterEntry]
    stats: EnvironmentStats


class Health(_Reply):
    """Answer to /health: ``ready``, ``draining`` or ``unavailable``.

    ``http_restarts``: how often the process that answers has been replaced because it
    died, the last time by ``http_last_end``.
    """

    status: str
    worker_id: str
    reason: str | None
    http_restarts: int
    http_last_end: str | None


class LimitColumn(_Reply):
    """Limits in the manifest's units."""

    timeout: float
    cpu_seconds: float
    memory_mb: int
    storage_mb: int
    processes: int
    open_files: int
    log_mb: float
    output_mb: float


class ServiceLimits(_Reply):
    """What a manifest gets and may ask for, and what a request may hold."""

    default: LimitColumn
    maximum: LimitColumn
    max_upload_mb: int
    max_files: int


class ServiceInfo(_Reply):
    """Answer to GET /."""

    service: str
    version: str
    status: str
    description: str
    privacy: dict[str, Any]
    limits: ServiceLimits
    interpreters: list[str]
    environments: list[str]
    links: dict[str, str]


class Privacy(_Reply):
    """Answer to /privacy: measured where it can be measured."""

    facts: dict[str, str]
    isolation: dict[str, str]
    retention: dict[str, float]
    logged: str
    addresses: str


class PatternMatch(_Reply):
    """Which of the named files one output pattern matches."""

    pattern: str
    files: list[str]
    complete: bool = True  # false: there was too much to look at everything


class Validated(_Reply):
    """Answer to /validate."""

    valid: bool
    entrypoint: str | None
    interpreter: str | None
    environment: str
    profile: str
    limits: LimitColumn
    why: dict[str, str]
    outputs: list[PatternMatch]
    warm: bool
    position: int
    eta_s: float
    quota_cost_cpu_seconds: float
    quota: YourQuota


encode: Final = msgspec.json.Encoder().encode
decode_submit: Final = msgspec.json.Decoder(SubmitBody).decode
decode_validate: Final = msgspec.json.Decoder(ValidateBody).decode
