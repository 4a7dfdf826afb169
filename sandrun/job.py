"""The nouns: what a job is, may use, did use, and how it ended. Pure.

Everything here is a frozen ``msgspec.Struct``: it crosses process borders as
msgpack and reaches clients as JSON. Units are in the names.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

MIB: Final = 1024 * 1024
# Of connections that a job made to itself and nobody accepted: see pool/zygote/sockets.py.
UNCHARGED_MOST: Final = 32 * MIB


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one job may use. Every number is enforced by the kernel or by PID 1."""

    timeout_s: float = 300.0  # wall clock, from exec to the last process's end
    cpu_seconds: float = 60.0  # of all processes together
    memory_bytes: int = 512 * MIB  # of the whole tree, files in tmpfs included, no swap
    storage_bytes: int = 100 * MIB  # work, home, tmp and shm together
    processes: int = 64  # processes and threads alive at once
    open_files: int = 256  # per process
    log_bytes: int = 8 * MIB  # stdout and stderr kept; head and tail survive
    output_bytes: int = 100 * MIB  # output files handed back, all together


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run. ``None`` means: find out from the files (see ``manifest.py``)."""

    entrypoint: str | None = None  # relative path, '/' separated
    interpreter: str | None = None  # a name of [interpreters], or "binary"
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    stdin: bytes | None = None
    outputs: tuple[str, ...] = ("*", "!__pycache__/")
    requirements: str | None = None  # relative path of requirements.txt
    environment: str = "default"
    profile: str = "default"  # syscall profile: "default" or "compute"
    build: str | None = None  # shell command, run before the entrypoint
    fail_on_output_limit: bool = False
    limits: Limits = Limits()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a job used, from its control group and the clock."""

    cpu_seconds: float = 0.0  # what collecting its outputs took included
    memory_peak_bytes: int = 0
    wall_time_s: float = 0.0
    processes_peak: int = 0
    storage_bytes: int = 0
    output_bytes: int = 0
    log_dropped_bytes: int = 0


class ExitReason(StrEnum):
    """Why a job ended. The words of the HTTP contract."""

    EXITED = "exited"
    NONZERO_EXIT = "nonzero_exit"
    SIGNALED = "signaled"
    WALL_TIMEOUT = "wall_timeout"
    CPU_LIMIT = "cpu_limit"
    OUT_OF_MEMORY = "out_of_memory"
    PROCESS_LIMIT = "process_limit"
    STORAGE_LIMIT = "storage_limit"
    OUTPUT_LIMIT = "output_limit"
    SYSCALL_DENIED = "syscall_denied"
    DEPENDENCY_ERROR = "dependency_error"
    UPLOAD_ERROR = "upload_error"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    HOST_PRESSURE = "host_pressure"
    SERVER_FAULT = "server_fault"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended, the proof, and what the client can do about it.

    ``exit_code`` and ``signal`` are those of the entrypoint's own process;
    at most one of them is set, neither if it never started.
    """

    exit_reason: ExitReason
    exit_code: int | None = None
    signal: int | None = None
    evidence: tuple[str, ...] = ()
    remedy: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether ``status`` is ``completed`` (else ``failed``)."""
        return self.exit_reason is ExitReason.EXITED


class OutputFile(msgspec.Struct, frozen=True, kw_only=True):
    """One output, as it lies in the outputs descriptor.

    ``path`` is relative to the work directory; bytes of it that are not UTF-8
    are surrogate escapes. ``offset`` and ``size_bytes`` locate the content.
    """

    path: str
    size_bytes: int
    sha256: str  # hex
    offset: int
    executable: bool = False
    mtime_s: int = 0


class SkippedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A file that matched an output pattern and was not taken, with the reason."""

    path: str
    reason: str  # "symlink", "fifo", "too large", ...


class OutputIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Lies in the outputs descriptor behind the last file's bytes (``encode_index``)."""

    files: tuple[OutputFile, ...] = ()
    skipped: tuple[SkippedOutput, ...] = ()


# How an index lies in the descriptor. A str with surrogate escapes has no msgpack
# form, so paths travel as the bytes that they are.
_WireFile = tuple[bytes, int, str, int, bool, int]
_WireIndex = tuple[tuple[_WireFile, ...], tuple[tuple[bytes, str], ...]]
_decode_index: Final = msgspec.msgpack.Decoder(_WireIndex).decode


def encode_index(index: OutputIndex) -> bytes:
    """The form of an index in the outputs descriptor."""
    files = [
        (
            f.path.encode("utf-8", "surrogateescape"),
            f.size_bytes,
            f.sha256,
            f.offset,
            f.executable,
            f.mtime_s,
        )
        for f in index.files
    ]
    skipped = [(s.path.encode("utf-8", "surrogateescape"), s.reason) for s in index.skipped]
    return msgspec.msgpack.encode((files, skipped))


def decode_index(data: bytes) -> OutputIndex:
    """The reverse. Raises msgspec.DecodeError for what is no index."""
    files, skipped = _decode_index(data)
    return OutputIndex(
        files=tuple(
            OutputFile(
                path=_text(path),
                size_bytes=size,
                sha256=sha256,
                offset=offset,
                executable=executable,
                mtime_s=mtime_s,
            )
            for path, size, sha256, offset, executable, mtime_s in files
        ),
        skipped=tuple(SkippedOutput(path=_text(path), reason=reason) for path, reason in skipped),
    )


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
