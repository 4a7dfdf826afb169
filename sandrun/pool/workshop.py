"""Where packages are built, and how what came out of strangers' archives is handled.
Runs as: root (supervisor, or ``sandrun env``). I/O; blocks.

An installer unpacks what anybody may have published, under a uid of its own. Should
such an archive take it over, it can put what it likes into the directories that it may
write: links to the host's files, fifos, a thousand directories inside each other. So
root's directory holds the installer's, which cannot be exchanged for a link then;
nothing is opened through a link; nothing here is recursive or takes a descriptor per
level, and how many files there may be is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from sandrun.errors import SandrunError
from sandrun.pool.directory_lock import try_lock, wait_lock

PREFIX: Final = ".build-"  # a name's beginning
INSIDE: Final = "/build"  # where the sandbox of an installer has ``work``
MAX_DEPTH: Final = 100  # directories; node_modules stay below 40
MAX_ENTRIES: Final = 500_000  # the largest projects of node have 300,000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PackageError(SandrunError):
    """Packages could not be had; the text is the installer's, without credentials.

    ``fault``: it is our build sandbox that failed, not what was asked for.
    """

    def __init__(self, text: str, *, fault: bool = False) -> None:
        super().__init__(text)
        self.fault = fault


class Workshop:
    """A directory for one build, root's alone; gone afterwards. Its lock tells it from one
    whose builder was killed.

    ``work`` (with ``home``, ``cache`` and ``tmp``), ``shm`` and ``env`` in it are the
    installer's: what it may see of them, and when, its sandbox decides.
    """

    def __init__(self, parent: Path, uid: int) -> None:
        turn = wait_lock(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = try_lock(self.path)
        finally:
            os.close(turn)
        self.work = self.path / "work"
        self.shm = self.path / "shm"
        self.env = self.path / "env"
        for path in (self.work, self.shm, self.env, *(self.work / n for n in _PLACES)):
            path.mkdir(mode=0o700)
            os.chown(path, uid, uid)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        remove_tree(self.path)
        if self._lock is not None:
            os.close(self._lock)

    def give(self, name: str, data: str | bytes, *, owner: int = 0, mode: int = 0o444) -> str:
        """A file in ``work`` for the installer to read; returns its path inside.

        An installer may have been at work in there, and nothing that it left is written to.
        """
        path = self.work / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, _NEW, 0o600), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if owner:
                os.fchown(file.fileno(), owner, owner)
            os.fchmod(file.fileno(), mode)
        return f"{INSIDE}/{name}"

    def take(self, name: str, most: int) -> str:
        """A file that the installer has written. It may be anything: look first."""
        data = read_start(self.work / name, most + 1)
        if data is None or len(data) > most:
            raise PackageError(f"the installer's {name} is not a file of a fair size")
        return data.decode("utf-8", "replace")


_PLACES: Final = ("home", "cache", "tmp")


def read_start(path: Path, size: int, *, follow: bool = False) -> bytes | None:
    """The first ``size`` bytes of a regular file, or None if it is none."""
    try:
        fd = os.open(path, _READ & ~os.O_NOFOLLOW if follow else _READ)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with open(fd, "rb", closefd=False) as file:
            return file.read(size)
    finally:
        os.close(fd)


def seal(directory: Path) -> None:
    """Give a tree to root, readable by all, writable by none, without special bits.

    What is in it was written by the installer's uid out of archives of strangers:
    nothing is followed, and what is neither file, directory nor link is refused, as is a
    tree too deep or with too many files to be handled. Raises :class:`PackageError`.
    """
    levels = [os.open(directory, _DIRECTORY)]
    try:
        below, entries = _seal_directory(levels[0], 0)
        names = [below]
        while levels:
            if not names[-1]:
                names.pop()
                os.close(levels.pop())
                continue
            if len(levels) > MAX_DEPTH:
                raise PackageError(f"a package has more than {MAX_DEPTH} directories in each other")
            levels.append(os.open(names[-1].pop(), _DIRECTORY, dir_fd=levels[-1]))
            below, entries = _seal_directory(levels[-1], entries)
            names.append(below)
    finally:
        for fd in levels:
            os.close(fd)


def _seal_directory(fd: int, entries: int) -> tuple[list[str], int]:
    """Seal a directory and what is in it; the names of its directories, the new count."""
    os.fchown(fd, 0, 0)
    os.fchmod(fd, 0o755)
    below = []
    with os.scandir(fd) as scan:
        for entry in scan:
            entries += 1
            if entries > MAX_ENTRIES:
                raise PackageError(f"the packages have more than {MAX_ENTRIES} files")
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                below.append(entry.name)
                continue
            os.chown(entry.name, 0, 0, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(mode):
                os.chmod(entry.name, 0o555 if mode & 0o111 else 0o444, dir_fd=fd)
            elif not stat.S_ISLNK(mode):
                raise PackageError(f"{entry.name} is a special file")
    return below, entries


def remove_tree(path: Path) -> None:
    """Remove a directory and what is in it, as far as that can be done.

    ``shutil.rmtree`` calls itself for each level until Python refuses, and what it has
    not removed stays in memory for ever. Here directories are moved to the top before
    they are emptied, so there is one level at any time.
    """
    with contextlib.suppress(OSError):
        fd = os.open(path, _DIRECTORY)
        try:
            _empty(fd)
        finally:
            os.close(fd)
        path.rmdir()


def _empty(top: int) -> None:
    moved = 0
    while names := os.listdir(top):
        for name in names:
            if _unlink(name, top):
                continue
            below = os.open(name, _DIRECTORY, dir_fd=top)
            try:
                for inner in os.listdir(below):
                    if not _unlink(inner, below):
                        moved = _move_up(inner, below, top, moved)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)


def _unlink(name: str, directory: int) -> bool:
    """Whether it was something else than a directory."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _move_up(name: str, directory: int, top: int, number: int) -> int:
    """Move a directory to ``top`` under the next number that is free; returns the one after."""
    while True:
        number += 1
        try:
            os.rename(name, f".{number}", src_dir_fd=directory, dst_dir_fd=top)
        except (FileExistsError, NotADirectoryError):
            continue  # there is something of that name
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            continue
        return number
