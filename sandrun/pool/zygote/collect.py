"""/work → output files. Runs as: PID 1 of the sandbox, with the job's effective uid.

Every other process is dead by now, so nothing moves while we look. But the job
has arranged what we see: links, fifos, sockets, sparse files of exabytes, names
that are no text, modes of 0000, and trees as deep and as wide as its storage let
it. So the walk opens one name at a time below a descriptor, never follows a link,
never opens what is not a regular file, and is bounded in depth, entries, bytes and
index. What matches a pattern and is not taken is told with the reason.

Uploaded files that the job left alone are not outputs: :func:`snapshot` remembers
size, time and inode of each before the job begins.
"""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Generator, Iterator
from typing import Any, Final, NamedTuple

from sandrun.globs import Matcher
from sandrun.job import OutputFile, OutputIndex, SkippedOutput

OVER_LIMIT: Final = "over the output limit"
MAX_DEPTH: Final = 100  # of directories; each costs a descriptor
MAX_ENTRIES: Final = 200_000  # looked at; about two seconds
MAX_PATH_BYTES: Final = 4096  # PATH_MAX: no client could make a longer one
MAX_INDEX_BYTES: Final = 8 * 1024 * 1024  # of all paths together
MAX_SKIPPED: Final = 1000
PIECE: Final = 256 * 1024
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# NONBLOCK: should it be a fifo after all, we do not wait for a writer.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Snapshot = dict[str, tuple[int, int, int]]  # path → size, mtime in ns, inode


def _find_sha256() -> Any:
    # The interpreter's own, by its name in 3.12+ and before: hashlib would load all
    # of OpenSSL into every sandbox's PID 1.
    for name in ("_sha2", "_sha256", "hashlib"):
        try:
            return importlib.import_module(name).sha256
        except ImportError:
            continue
    raise ImportError("no sha256")


_sha256: Final = _find_sha256()


# ── walking ──────────────────────────────────────────────────────────────────


class Found(NamedTuple):
    """One entry that is no directory, or a directory that is not entered (``reason``)."""

    directory_fd: int
    name: str
    path: str
    state: int  # of the matcher
    reason: str = ""


class _Level:
    """One directory on the way down. Owns its descriptor unless it is the root."""

    def __init__(self, fd: int, path: str, state: int) -> None:
        self.fd = fd
        self.path = path
        self.state = state
        self.below: list[str] = []
        mode = os.fstat(fd).st_mode
        if mode & 0o700 != 0o700:
            os.fchmod(fd, 0o700)  # the job locked itself out; without x nothing below opens


def walk(root_fd: int, matcher: Matcher | None = None) -> Iterator[Found]:
    """Everything below ``root_fd`` that ``matcher`` may still want, in no order.

    Not recursive: a job chooses the depth. Holds at most MAX_DEPTH descriptors.
    """
    levels: list[_Level] = []
    entries = 0
    try:
        root = _Level(root_fd, "", matcher.start if matcher else 0)
        levels.append(root)
        entries = yield from _scan(root, matcher, entries)
        while levels:
            level = levels[-1]
            if not level.below or entries > MAX_ENTRIES:
                levels.pop()
                if level.fd != root_fd:
                    os.close(level.fd)
                continue
            name = level.below.pop()
            path = level.path + name
            state = matcher.advance(level.state, name + "/") if matcher else 0
            if matcher and matcher.is_hopeless(state):
                continue
            found = Found(level.fd, name, path, state)
            if reason := _too_deep(len(levels), path):
                yield found._replace(reason=reason)
                continue
            try:
                fd = _open(name, _DIRECTORY, level.fd, 0o700)
                try:
                    levels.append(_Level(fd, path + "/", state))
                except BaseException:
                    os.close(fd)
                    raise
            except OSError as error:
                yield found._replace(reason=error.strerror or "not readable")
                continue
            entries = yield from _scan(levels[-1], matcher, entries)
        if entries > MAX_ENTRIES:
            reason = f"more than {MAX_ENTRIES} files and directories"
            yield Found(root_fd, ".", ".", 0, reason)
    finally:
        for level in levels:
            if level.fd != root_fd:
                os.close(level.fd)


def _too_deep(levels: int, path: str) -> str:
    if levels >= MAX_DEPTH:
        return f"what is in it lies deeper than {MAX_DEPTH} directories"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        return f"its path is longer than {MAX_PATH_BYTES} bytes"
    return ""


def _scan(level: _Level, matcher: Matcher | None, entries: int) -> Generator[Found, None, int]:
    """Yield the files of one directory, note its directories; returns the new count."""
    with os.scandir(level.fd) as scan:
        for entry in scan:
            entries += 1
            if entries > MAX_ENTRIES:
                break
            if entry.is_dir(follow_symlinks=False):
                level.below.append(entry.name)
                continue
            state = matcher.advance(level.state, entry.name) if matcher else 0
            if matcher is None or matcher.keeps(state):
                yield Found(level.fd, entry.name, level.path + entry.name, state)
    return entries


def _open(name: str, flags: int, dir_fd: int, mode: int) -> int:
    """Open; if the job took its own rights away, give them back first.

    chmod follows links, and this name is none: it was looked at, and nobody is
    left who could change it.
    """
    try:
        return os.open(name, flags, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, mode, dir_fd=dir_fd)
        return os.open(name, flags, dir_fd=dir_fd)


def snapshot(work_fd: int) -> Snapshot:
    """What is there before the job begins."""
    found: Snapshot = {}
    for entry in walk(work_fd):
        if not entry.reason:
            info = os.stat(entry.name, dir_fd=entry.directory_fd, follow_symlinks=False)
            found[entry.path] = (info.st_size, info.st_mtime_ns, info.st_ino)
    return found


# ── collecting ───────────────────────────────────────────────────────────────


class _Collection:
    def __init__(self, outputs_fd: int, max_bytes: int, max_files: int) -> None:
        self._fd = outputs_fd
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._index_bytes = 0
        self._owner = os.geteuid()
        self.offset = 0
        self.files: list[OutputFile] = []
        self.skipped: list[SkippedOutput] = []

    def skip(self, path: str, reason: str) -> None:
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(SkippedOutput(path=path[:MAX_PATH_BYTES], reason=reason))

    def add(self, entry: Found, info: os.stat_result) -> None:
        """Take one file, or say why not."""
        reason = self._refusal(entry, info)
        if reason:
            self.skip(entry.path, reason)
            return
        try:
            fd = _open(entry.name, _FILE, entry.directory_fd, 0o600)
        except OSError as error:
            self.skip(entry.path, error.strerror or "not readable")
            return
        try:
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode) or now.st_ino != info.st_ino:
                self.skip(entry.path, "it changed")
                return
            digest = self._copy(fd, now.st_size)
        except OSError as error:
            self.skip(entry.path, error.strerror or "not readable")
            return
        finally:
            os.close(fd)
        self._index_bytes += len(os.fsencode(entry.path))
        self.files.append(
            OutputFile(
                path=entry.path,
                size_bytes=now.st_size,
                sha256=digest,
                offset=self.offset,
                executable=bool(info.st_mode & 0o111),
                mtime_s=int(info.st_mtime),
            )
        )
        self.offset += now.st_size

    def _refusal(self, entry: Found, info: os.stat_result) -> str:
        if not stat.S_ISREG(info.st_mode):
            return _KINDS.get(stat.S_IFMT(info.st_mode), "not a regular file")
        if info.st_uid != self._owner:
            return "not the job's own"
        path_bytes = len(os.fsencode(entry.path))
        if path_bytes > MAX_PATH_BYTES:
            return f"its path is longer than {MAX_PATH_BYTES} bytes"
        if len(self.files) >= self._max_files:
            return f"more than {self._max_files} output files"
        if self._index_bytes + path_bytes > MAX_INDEX_BYTES:
            return "too many long paths"
        if self.offset + info.st_size > self._max_bytes:
            return OVER_LIMIT
        return ""

    def _copy(self, fd: int, size: int) -> str:
        """Append exactly ``size`` bytes; returns their SHA-256 in hex."""
        digest = _sha256()
        at = self.offset
        end = at + size
        while at < end:
            piece = os.read(fd, min(PIECE, end - at))
            if not piece:
                raise OSError(0, "it is shorter than it was")
            digest.update(piece)
            view = memoryview(piece)
            while view:
                done = os.pwrite(self._fd, view, at)
                at += done
                view = view[done:]
        text: str = digest.hexdigest()
        return text


def is_over_limit(index: OutputIndex) -> bool:
    """Whether an output was left out because it did not fit."""
    return any(skipped.reason == OVER_LIMIT for skipped in index.skipped)


def collect(
    work_fd: int,
    matcher: Matcher,
    before: Snapshot,
    outputs_fd: int,
    *,
    max_bytes: int,
    max_files: int,
) -> tuple[OutputIndex, int]:
    """Copy what matches and is new or changed to ``outputs_fd``, from offset 0 on.

    Returns the index, sorted by path, and the offset behind the last byte. A file
    that does not fit into ``max_bytes`` is skipped (reason OVER_LIMIT), smaller
    ones behind it are still taken.
    """
    taken = _Collection(outputs_fd, max_bytes, max_files)
    for entry in walk(work_fd, matcher):
        if entry.reason:
            taken.skip(entry.path, entry.reason)
            continue
        try:
            info = os.stat(entry.name, dir_fd=entry.directory_fd, follow_symlinks=False)
        except OSError as error:
            taken.skip(entry.path, error.strerror or "not readable")
            continue
        if before.get(entry.path) != (info.st_size, info.st_mtime_ns, info.st_ino):
            taken.add(entry, info)
    taken.files.sort(key=lambda file: file.path)
    taken.skipped.sort(key=lambda skipped: skipped.path)
    return OutputIndex(files=tuple(taken.files), skipped=tuple(taken.skipped)), taken.offset
