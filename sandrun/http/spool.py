"""Files of a submission → inline pieces or one sealed memory descriptor. I/O; unprivileged.

Bytes are stored and never looked into: archives are opened inside the sandbox.
Small plain files stay in memory and travel inside the Dispatch; an archive, or
more than that, goes to a memfd as it arrives, so that a connection costs one read
buffer however large its upload is. The sum over all clients is bounded: past it
new uploads get 503 while running jobs are untouched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from sandrun.errors import RequestError
from sandrun.http.jobs import Upload
from sandrun.job import MIB
from sandrun.messages import INLINE_MAX_BYTES, InlineFile, UploadPart

if TYPE_CHECKING:
    from collections.abc import Iterable

SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
JOB_JSON: Final = "job.json"
MAX_JOB_JSON: Final = 64 * 1024  # manifest.MAX_BYTES
FIRST_LINE: Final = 256
PER_FILE_BYTES: Final = 64  # msgpack around an inline file, rounded up
ARCHIVES: Final = ((".tar.gz", "tar"), (".tgz", "tar"), (".tar", "tar"), (".zip", "zip"))
UNSUPPORTED: Final = (
    ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.lz4", ".7z", ".rar",
)  # fmt: skip

_encode: Final = msgspec.msgpack.Encoder().encode


class Budget:
    """Bytes and descriptors of all uploads held at once."""

    def __init__(self, max_bytes: int, max_files: int = 1 << 30) -> None:
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.used = 0
        self.files = 0

    def take_file(self) -> None:
        """One more memory descriptor. Raises :class:`RequestError` 503.

        Clients that send slowly could otherwise hold every descriptor that there is.
        """
        if self.files >= self.max_files:
            raise RequestError(
                503,
                "uploads_full",
                f"{self.files} uploads are held already; try again soon",
                retry_after_s=5,
            )
        self.files += 1

    def give_file(self) -> None:
        """It is closed."""
        self.files -= 1

    def take(self, size: int) -> None:
        """Raises :class:`RequestError` 503 when there is no room."""
        if self.used + size > self.max_bytes:
            raise RequestError(
                503,
                "uploads_full",
                f"all uploads together may hold {self.max_bytes // MIB} MiB now; try again soon",
                retry_after_s=5,
            )
        self.used += size

    def give(self, size: int) -> None:
        """Take back."""
        self.used -= size


MAX_TEXT: Final = 65_537  # one more than requirements.py takes


class Spooled(NamedTuple):
    """A complete submission. ``charge`` bytes are owed back to the budget."""

    files: tuple[InlineFile, ...]
    upload: Upload | None
    parts: tuple[UploadPart, ...]  # of the upload
    has_archive: bool
    job_json: bytes | None
    digest: hashlib._Hash
    charge: int

    def plain_files(self) -> list[tuple[str, bool]]:
        """(path, executable) of everything that is no archive."""
        found = [(file.path, file.executable) for file in self.files]
        found += [(part.path, part.executable) for part in self.parts if part.kind == "file"]
        return found

    def text(self, path: str, limit: int = MAX_TEXT) -> str:
        """A small plain text, such as requirements.txt; "" if it is not there."""
        for file in self.files:
            if file.path == path:
                return file.data.decode("utf-8", "replace")
        for part in self.parts:
            if part.path == path and self.upload is not None:
                size = min(part.size, limit)
                return os.pread(self.upload.fd, size, part.offset).decode("utf-8", "replace")
        return ""

    def first_line(self, path: str) -> bytes:
        """The first 256 bytes of a plain file."""
        for file in self.files:
            if file.path == path:
                return file.data[:FIRST_LINE]
        for part in self.parts:
            if part.path == path and self.upload is not None:
                return os.pread(self.upload.fd, min(part.size, FIRST_LINE), part.offset)
        return b""


def archive_kind(name: str) -> str:
    """What to unpack it as: "tar", "zip", or "file". Raises :class:`RequestError` 415 for what we cannot unpack."""
    lower = name.lower()
    for suffix, kind in ARCHIVES:
        if lower.endswith(suffix):
            return kind
    for suffix in UNSUPPORTED:
        if lower.endswith(suffix):
            raise RequestError(
                415,
                "unsupported_archive",
                f"archives of type {suffix} are not unpacked; send .tar.gz, .tgz, .tar or .zip",
                details={"given": suffix, "allowed": [known for known, _ in ARCHIVES]},
            )
    return "file"


class Spool:
    """Takes one submission's files in order. ``close`` frees what ``finish`` did not hand over."""

    def __init__(self, budget: Budget, max_bytes: int, max_files: int) -> None:
        self._budget = budget
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._inline: list[tuple[str, bytearray]] = []
        self._parts: list[UploadPart] = []
        self._paths: set[str] = set()
        self._path = ""
        self._kind = "file"
        self._start = 0  # of the current part in the descriptor
        self._magic = b""  # its first bytes, once it lies in the descriptor
        self._fd = -1
        self._size = 0  # of the descriptor
        self._total = 0  # of all content
        self._inline_size = 0
        self._charge = 0
        self._digest = hashlib.sha256()
        self._job_json: bytearray | None = None

    @property
    def received_bytes(self) -> int:
        """Content so far."""
        return self._total

    def add(self, path: str, data: bytes) -> None:
        """A whole file at once."""
        self.begin(path)
        self.write(data)
        self.end()

    def begin(self, path: str) -> None:
        """A part begins. ``path`` is relative and safe already."""
        if path in self._paths:
            raise RequestError(
                400, "duplicate_file", f"files: {path!r} is there twice", details={"path": path}
            )
        if len(self._paths) >= self._max_files:
            raise RequestError(
                413,
                "too_many_files",
                f"files: more than {self._max_files} in one upload",
                details={"limit": self._max_files},
            )
        kind = archive_kind(path)
        self._paths.add(path)
        self._path, self._kind = path, kind
        self._digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        if path == JOB_JSON:
            self._job_json = bytearray()
        if kind != "file":
            self._spill()
        self._inline_size += len(path) + PER_FILE_BYTES
        if self._fd < 0:
            self._inline.append((path, bytearray()))
        else:
            self._start, self._magic = self._size, b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """More of the current part."""
        size = len(data)
        if self._total + size > self._max_bytes:
            raise too_large(self._max_bytes)
        self._budget.take(size)
        self._charge += size
        self._total += size
        self._digest.update(data)
        if self._path == JOB_JSON and self._job_json is not None:
            self._keep_job_json(data)
        self._inline_size += size
        if self._fd < 0 and self._inline_size > INLINE_MAX_BYTES:
            self._spill()
        if self._fd < 0:
            self._inline[-1][1].extend(data)
        else:
            if len(self._magic) < 4:
                self._magic += bytes(data[:4])
            self._append(data)

    def _keep_job_json(self, data: bytes | bytearray | memoryview) -> None:
        assert self._job_json is not None
        self._job_json += data
        if len(self._job_json) > MAX_JOB_JSON:
            raise RequestError(
                413,
                "manifest_too_large",
                f"job.json: larger than {MAX_JOB_JSON} bytes",
                details={"limit": MAX_JOB_JSON},
            )

    def end(self) -> None:
        """The current part is complete."""
        if self._fd >= 0:
            self._parts.append(
                UploadPart(
                    kind=self._kind,
                    path=self._path,
                    offset=self._start,
                    size=self._size - self._start,
                    executable=_executable(self._magic),
                )
            )
        self._digest.update(b"\0")

    def _spill(self) -> None:
        """Move what is inline to a descriptor and go on there."""
        if self._fd >= 0:
            return
        self._budget.take_file()
        try:
            self._fd = os.memfd_create("upload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            self._budget.give_file()
            raise
        open_part = bool(self._inline) and self._inline[-1][0] == self._path
        for path, data in self._inline:
            start = self._size
            self._append(data)
            if open_part and path == self._path:
                self._start, self._magic = start, bytes(data[:4])
            else:
                self._parts.append(
                    UploadPart(
                        kind="file",
                        path=path,
                        offset=start,
                        size=len(data),
                        executable=_executable(data),
                    )
                )
        self._inline.clear()

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def finish(self) -> Spooled:
        """Seal and hand over."""
        _no_file_is_a_directory(self._paths)
        upload = self._seal() if self._fd >= 0 else None
        files = tuple(
            InlineFile(path=path, data=bytes(data), executable=_executable(data))
            for path, data in self._inline
        )
        charge, self._charge = self._charge, 0
        job_json = bytes(self._job_json) if self._job_json is not None else None
        parts = tuple(self._parts)
        has_archive = any(part.kind != "file" for part in parts)
        return Spooled(files, upload, parts, has_archive, job_json, self._digest, charge)

    def _seal(self) -> Upload:
        offset = self._size
        self._append(_encode(self._parts))
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, SEALS)
        fd, self._fd = self._fd, -1
        return Upload(fd, offset, self._size - offset)

    def take_back(self, spooled: Spooled) -> None:
        """What was handed over is not wanted: free it with ``close``."""
        self._fd = spooled.upload.fd if spooled.upload else -1
        self._charge = spooled.charge

    def close(self) -> None:
        """Free what was not handed over."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._budget.give_file()
        self._budget.give(self._charge)
        self._charge = 0


def _executable(data: bytes | bytearray) -> bool:
    """Form uploads carry no mode: a program is recognised by its first bytes."""
    return data[:4] == b"\x7fELF" or data[:2] == b"#!"


def _no_file_is_a_directory(paths: Iterable[str]) -> None:
    known = set(paths)
    for path in known:
        if "/" not in path:
            continue
        parts = path.split("/")
        for count in range(1, len(parts)):
            parent = "/".join(parts[:count])
            if parent in known and archive_kind(parent) == "file":
                raise RequestError(
                    400,
                    "path_conflict",
                    f"files: {parent!r} is a file and the directory of {path!r}",
                    details={"path": path},
                )


def too_large(max_bytes: int) -> RequestError:
    """413 that names the limit."""
    return RequestError(
        413,
        "too_large",
        f"the request is larger than {max_bytes // MIB} MiB",
        details={"limit_bytes": max_bytes},
    )
