"""An upload → files below /work. Runs as: the job's uid inside the sandbox, under
the job's limits and filter (``write_file`` alone: PID 1, for plain files).

Archives are the most dangerous thing that a client sends, and general readers are
written to read whatever they meet. This one reads three formats the narrow way:
tar (ustar, pax, GNU long names), gzip around it, and zip (stored and deflated).
What is not plainly right is refused with the member's name, before anything of
the job has run. ``tarfile`` and ``zipfile`` are not used: they repair, skip and
guess, and their extraction follows names through links.

What is promised, and where:

- *Nothing is written outside /work, and nothing through a link* (:class:`Tree`):
  names pass ``safe_relative_path``; every directory is opened step by step from
  the work descriptor with ``O_NOFOLLOW``, every file made with ``O_EXCL``. No
  path is ever resolved, so there is no race and no length at which it gives up.
- *Links*: hard links, devices, fifos and sparse files are refused. Symbolic links
  are refused unless they come from a tar, are relative, stay inside and lead
  through no other link (``node_modules/.bin`` needs them); they are made after
  the last file, so that no file can meet one.
- *Modes* become 0644 or 0755, the owner is whoever we are, xattrs and ACLs are
  ignored, times are kept if they are possible.
- *A name twice* is refused: which of them wins is what attacks are made of.
- *Bombs*: bytes, entries and depth are counted while they are written; header
  data is bounded; what decompresses to more than the limit stops there. Zip
  entries may not overlap, and must end where the next begins or before.
- *Truncation*: a tar without its end marker, a gzip without its checksum, a zip
  member whose size or CRC differs is refused. After the end only zeros may come.

People pack a project from outside (``tar cz project/``): if an upload is a single
archive whose top level is one directory and nothing else, that directory is taken
away, unless the manifest names its entrypoint with it or a link leads through it from above.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol

import msgspec

from sandrun import manifest
from sandrun.errors import RequestError
from sandrun.job import JobSpec, Limits
from sandrun.manifest import shown
from sandrun.messages import InterpreterInfo, UploadPart
from sandrun.paths import safe_relative_path

MAX_DEPTH: Final = 100  # directories; real trees (node_modules) stay below 40
MAX_META: Final = 256 * 1024  # of one pax header: an xattr may have 64 KiB
MAX_META_TOTAL: Final = 16 * 1024 * 1024
MAX_GZIP_MEMBERS: Final = 1000  # parallel compressors write one per block or so
MAX_PADDING: Final = 1024 * 1024  # zeros after a tar's end; GNU tar pads to 10 KiB
PIECE: Final = 256 * 1024
HEAD_BYTES: Final = 256  # of a file, to find its #! line
MAX_REQUIREMENTS: Final = 65_536  # bytes of text, as in messages.Elsewhere
JOB_JSON: Final = "job.json"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_TIME_S: Final = 1 << 32  # the year 2106: later ones are lies


class UploadRefused(Exception):
    """``member`` of the upload is not acceptable, and why."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"{shown(member)}: {reason}")
        self.member = member
        self.reason = reason


class Written(NamedTuple):
    """One regular file in /work."""

    path: str
    size: int
    executable: bool


class Report(NamedTuple):
    """What an upload became. ``root`` is the directory that was taken away, or ""."""

    files: list[Written]
    bytes: int
    root: str


# ── writing ──────────────────────────────────────────────────────────────────


class Tree:
    """Writes below one directory descriptor and counts. Owns at most one descriptor."""

    def __init__(self, root_fd: int, max_files: int, max_bytes: int) -> None:
        self._root = root_fd
        self._max_files = max_files
        self._max_bytes = max_bytes
        self.kinds: dict[str, str] = {}  # path → "directory", "file" or "link"
        self.files: list[Written] = []
        self.bytes = 0
        self._links: list[tuple[str, str]] = []
        self.links_by_top = False  # one leads up to the top and down again
        self._last = ""  # the directory that is open
        self._last_fd = root_fd

    @property
    def room(self) -> int:
        """How many files and directories may still come."""
        return self._max_files - len(self.kinds)

    def close(self) -> None:
        """Close the directory that was written to last."""
        if self._last_fd != self._root:
            os.close(self._last_fd)
        self._last, self._last_fd = "", self._root

    def safe(self, name: str) -> str:
        """A member's name as a clean path."""
        try:
            path = safe_relative_path(name)
        except ValueError as error:
            raise UploadRefused(name, f"its name {error}") from None
        if path.count("/") >= MAX_DEPTH:
            raise UploadRefused(name, f"it is more than {MAX_DEPTH} directories deep")
        return path

    def directory(self, name: str) -> None:
        """A directory member. The root itself (``./``) is there already."""
        if not name.strip("./"):
            if ".." in name:
                raise UploadRefused(name, "its name has a '..' segment")
            return
        path = self.safe(name)
        self._enter(path, name)

    def file(
        self,
        name: str,
        size: int,
        pieces: Iterator[bytes],
        *,
        executable: bool,
        mtime_s: int | None = None,
    ) -> None:
        """A regular file: ``pieces`` are its content, of ``size`` bytes if they tell the truth."""
        path = self.safe(name)
        if self.bytes + size > self._max_bytes:
            self._too_large(name)  # before the first byte of it is written
        parent, _, last = path.rpartition("/")
        self._add(path, "file", name)
        directory = self._enter(parent, name)
        fd = os.open(last, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            written = 0
            for piece in pieces:
                if not written:
                    executable = executable or piece.startswith(manifest.RUNNABLE)
                written += len(piece)
                self.bytes += len(piece)
                if self.bytes > self._max_bytes:
                    self._too_large(name)
                _write_all(fd, piece, name)
            _seal(fd, executable=executable, mtime_s=mtime_s)
        finally:
            os.close(fd)
        self.files.append(Written(path, written, executable))

    def link(self, name: str, target: str) -> None:
        """A symbolic link, made at the end."""
        path = self.safe(name)
        self._add(path, "link", name)
        self._enter(path.rpartition("/")[0], name)
        self._links.append((path, target))

    def finish(self) -> None:
        """Make the links that are harmless; refuse the others."""
        for path, target in self._links:
            self._check_link(path, target)
        for path, target in self._links:
            parent, _, last = path.rpartition("/")
            os.symlink(target, last, dir_fd=self._enter(parent, path))

    def _check_link(self, path: str, target: str) -> None:
        advice = "pack what it points to instead (tar -h), or leave it out"
        if not target or target.startswith("/") or len(target) > 1024 or "\0" in target:
            raise UploadRefused(path, f"it is a link to {shown(target)}; {advice}")
        at = path.split("/")[:-1]
        names = [name for name in target.split("/") if name not in {"", "."}]
        for number, name in enumerate(names):
            if name != "..":
                at.append(name)
            elif at:
                at.pop()
                self.links_by_top = self.links_by_top or not at
            else:
                raise UploadRefused(path, f"it is a link out of the upload; {advice}")
            if number < len(names) - 1 and self.kinds.get("/".join(at)) == "link":
                raise UploadRefused(path, f"it is a link through another link; {advice}")

    def _add(self, path: str, kind: str, name: str) -> None:
        if path in self.kinds:
            raise UploadRefused(name, f"it is there twice (as a {self.kinds[path]} before)")
        if not self.room:
            raise UploadRefused(
                name, f"the upload has more than {self._max_files} files and directories"
            )
        self.kinds[path] = kind

    def _too_large(self, name: str) -> NoReturn:
        raise UploadRefused(
            name, f"the upload unpacks to more than {self._max_bytes} bytes (storage_mb)"
        )

    def _enter(self, path: str, name: str) -> int:
        """The descriptor of directory ``path``, which is made if need be. Ours to close."""
        if path == self._last:
            return self._last_fd
        self.close()
        at = self._root
        if not path:
            return at
        done = ""
        try:
            for step in path.split("/"):
                done = f"{done}/{step}" if done else step
                kind = self.kinds.get(done)
                if kind is None:
                    self._add(done, "directory", name)
                    os.mkdir(step, 0o755, dir_fd=at)
                elif kind != "directory":
                    raise UploadRefused(name, f"{shown(done)} is a {kind} already")
                below = os.open(step, _DIRECTORY, dir_fd=at)
                if at != self._root:
                    os.close(at)
                at = below
        except BaseException:
            if at != self._root:
                os.close(at)
            raise
        self._last, self._last_fd = path, at
        return at


def _write_all(fd: int, data: bytes, name: str) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError as error:
            raise UploadRefused(name, f"it does not fit: {error.strerror}") from error


def _seal(fd: int, *, executable: bool, mtime_s: int | None) -> None:
    os.fchmod(fd, 0o755 if executable else 0o644)
    if mtime_s is None or not 0 <= mtime_s < MAX_TIME_S:
        # The clock of tmpfs ticks every 4 ms: a job that changes a file so soon after
        # its making would not change its time. A whole second is no tick.
        mtime_s = os.fstat(fd).st_mtime_ns // 1_000_000_000
    os.utime(fd, ns=(mtime_s * 1_000_000_000, mtime_s * 1_000_000_000))


def write_file(work_fd: int, path: str, data: bytes, *, executable: bool = False) -> None:
    """Write one small plain file, as PID 1. ``path`` is checked again.

    Raises :class:`UploadRefused`, or OSError (a name that is there twice: EEXIST).
    """
    tree = Tree(work_fd, MAX_DEPTH + 1, len(data))
    *parents, _ = tree.safe(path).split("/")
    try:
        at = ""
        for step in parents:
            at = f"{at}/{step}" if at else step
            if _is_directory(work_fd, at):
                tree.kinds[at] = "directory"  # another file of the upload needed it too
        tree.file(path, len(data), iter((data,)), executable=executable)
    finally:
        tree.close()


def _is_directory(work_fd: int, path: str) -> bool:
    # Nothing but our own files and directories is in /work yet: no link to follow.
    try:
        return stat.S_ISDIR(os.stat(path, dir_fd=work_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


# ── reading ──────────────────────────────────────────────────────────────────


class Stream(Protocol):
    """Bytes in order."""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        ...


class Slice:
    """A range of a descriptor. ``pread`` only: the offset is shared with others."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._at = offset
        self._end = offset + size

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        found = os.pread(self._fd, min(size, self._end - self._at), self._at)
        self._at += len(found)
        return found


class Gunzip:
    """A gzip stream, opened piece by piece. Raises :class:`UploadRefused`."""

    def __init__(self, source: Stream, name: str) -> None:
        self._source = source
        self._name = name
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._members = 1
        self._input = b""
        self._piece = b""  # decompressed
        self._at = 0  # how much of it was asked for
        self._ended = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        found = []
        while size:
            if self._at == len(self._piece):
                if self._ended:
                    break
                self._piece, self._at = self._more(), 0
            part = self._piece[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            found.append(part)
        return b"".join(found)

    def _more(self) -> bytes:
        found, self._input = _inflate(self._inflate, self._input, self._source, self._name)
        if self._inflate.eof:
            self._next_member(self._inflate.unused_data)
        return found

    def _next_member(self, rest: bytes) -> None:
        while not (rest := rest.lstrip(b"\0")):
            rest = self._source.read(PIECE)
            if not rest:
                self._ended = True
                return
        self._members += 1
        if self._members > MAX_GZIP_MEMBERS:
            raise UploadRefused(self._name, f"it has more than {MAX_GZIP_MEMBERS} gzip members")
        if not b"\x1f\x8b".startswith(rest[:2]):
            raise UploadRefused(self._name, "there is something after the end of the gzip data")
        self._input = rest
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)


def _inflate(
    inflate: zlib._Decompress, data: bytes, source: Stream, name: str
) -> tuple[bytes, bytes]:
    """One piece of output, and the input that is left."""
    data = data or source.read(PIECE)
    try:
        # With no input left there may still be output that did not fit before.
        found = inflate.decompress(data, PIECE)
    except zlib.error:
        raise UploadRefused(name, "its compressed data is damaged") from None
    if not (data or found or inflate.eof):
        raise UploadRefused(name, "its compressed data is cut off")
    return found, inflate.unconsumed_tail


def _pieces(stream: Stream, size: int, name: str) -> Iterator[bytes]:
    """Exactly ``size`` bytes of ``stream``."""
    while size:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise UploadRefused(name, "the archive is cut off")
        size -= len(piece)
        yield piece


# ── tar ──────────────────────────────────────────────────────────────────────

_BLOCK: Final = 512
# Behind name, mode, uid and gid: size, mtime, checksum, type, target, magic, prefix.
_TAR: Final = struct.Struct("<12s12s8sc100s6s2x80x155s")
_EXECUTABLE: Final = 0o111
_NO_TAR: Final = "it is not a tar (ustar, pax or GNU)"
_REFUSED_TYPES: Final = {
    b"1": "a hard link; pack the files themselves (tar --hard-dereference)",
    b"3": "a device",
    b"4": "a device",
    b"6": "a fifo",
    b"S": "a sparse file; pack it without --sparse",
}


class _Head(NamedTuple):
    name: str
    mode: int
    size: int
    mtime_s: int
    kind: bytes
    target: str


class _Extended:
    """What pax and GNU headers say about the next member."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.target: str | None = None
        self.size: int | None = None
        self.mtime_s: int | None = None
        self.seen: set[bytes] = set()


class TarReader:
    """One tar: headers in, calls of a :class:`Tree` out."""

    def __init__(self, stream: Stream, tree: Tree, name: str) -> None:
        self._stream = stream
        self._tree = tree
        self._name = name
        self._meta = 0
        self._begun = False

    def read_all(self) -> None:
        """Every member, then the end."""
        extended = _Extended()
        while (block := self._block()) is not None:
            head = self._head(block)
            if head.kind in b"xgLK":
                self._extend(extended, head)
            else:
                self._member(self._apply(head, extended))
                extended = _Extended()
        if extended.seen:
            self._refuse("its last header has no member")
        self._end()

    def _refuse(self, reason: str) -> NoReturn:
        raise UploadRefused(self._name, reason)

    def _block(self) -> bytes | None:
        block = self._stream.read(_BLOCK)
        if len(block) < _BLOCK:
            missing = "the tar is cut off: its end marker is missing"
            self._refuse(missing if self._begun else _NO_TAR)
        return block if block.strip(b"\0") else None

    def _end(self) -> None:
        """A second block of zeros, and after it nothing but padding."""
        total = 0
        while piece := self._stream.read(PIECE):
            total += len(piece)
            if piece.strip(b"\0"):
                self._refuse("there is something after the end of the tar")
            if total > MAX_PADDING:
                self._refuse("there is too much padding after the end of the tar")
        if total < _BLOCK:
            self._refuse("the tar is cut off: its end marker is missing")

    def _head(self, block: bytes) -> _Head:
        name, mode = block[:100], block[100:108]
        size, mtime, checksum, kind, target, magic, prefix = _TAR.unpack_from(block, 124)
        if magic[:5] != b"ustar":
            self._refuse("a tar header is damaged" if self._begun else _NO_TAR)
        self._begun = True
        if _octal(checksum) != sum(block) - sum(block[148:156]) + 8 * 0x20:
            self._refuse("a tar header is damaged: wrong checksum")
        name = name.partition(b"\0")[0]
        prefix = prefix.partition(b"\0")[0]
        if prefix and magic == b"ustar\0":  # GNU keeps other things there
            name = prefix + b"/" + name
        number = _number(size)
        if number is None:
            self._refuse(f"{shown(_text(name))}: its size is not a number")
        return _Head(
            _text(name),
            _octal(mode) or 0,
            number,
            -1 if (when := _number(mtime)) is None else when,
            kind,
            _text(target.partition(b"\0")[0]),
        )

    def _extend(self, extended: _Extended, head: _Head) -> None:
        if head.kind in extended.seen:
            self._refuse("a tar header is there twice for one member")
        self._meta += head.size
        most = 1024 + 1 if head.kind in b"LK" else MAX_META
        if head.size > most or self._meta > MAX_META_TOTAL:
            self._refuse(f"a tar header of {head.size} bytes is too large")
        extended.seen.add(head.kind)
        data = b"".join(_pieces(self._stream, head.size, self._name))
        self._skip_padding(head.size)
        if head.kind == b"L":
            extended.name = _text(data.rstrip(b"\0"))
        elif head.kind == b"K":
            extended.target = _text(data.rstrip(b"\0"))
        else:
            self._pax(extended, data, everywhere=head.kind == b"g")

    def _pax(self, extended: _Extended, data: bytes, *, everywhere: bool) -> None:
        for key, value in self._records(data):
            if key.startswith(b"GNU.sparse."):
                self._refuse("it has a sparse file; pack it without --sparse")
            if key not in {b"path", b"linkpath", b"size", b"mtime"}:
                continue  # owners, xattrs, comments
            if everywhere:
                self._refuse(f"a global tar header sets {key.decode()}")
            if key == b"path":
                extended.name = _text(value)
            elif key == b"linkpath":
                extended.target = _text(value)
            elif key == b"size":
                if not value.isdigit() or len(value) > 20:
                    self._refuse("a size in a tar header is not a number")
                extended.size = int(value)
            elif (whole := value.partition(b".")[0]).isdigit() and len(whole) < 20:
                extended.mtime_s = int(whole)

    def _records(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        r"""``"%d %s=%s\n"``, the number being the length of all of it (POSIX pax)."""
        at = 0
        while at < len(data) and data[at]:
            space = data.find(b" ", at, at + 12)
            digits = data[at:space] if space > 0 else b""
            end = at + int(digits) if digits.isdigit() else -1
            if not space < end <= len(data) or data[end - 1 : end] != b"\n":
                self._refuse("a pax header is damaged")
            key, equals, value = data[space + 1 : end - 1].partition(b"=")
            if not equals:
                self._refuse("a pax header is damaged")
            yield key, value
            at = end

    def _apply(self, head: _Head, extended: _Extended) -> _Head:
        return head._replace(
            name=head.name if extended.name is None else extended.name,
            target=head.target if extended.target is None else extended.target,
            size=head.size if extended.size is None else extended.size,
            mtime_s=head.mtime_s if extended.mtime_s is None else extended.mtime_s,
        )

    def _member(self, head: _Head) -> None:
        kind = head.kind
        if kind in _REFUSED_TYPES:
            raise UploadRefused(head.name, f"it is {_REFUSED_TYPES[kind]}")
        if kind == b"5" or (kind == b"\0" and head.name.endswith("/")):
            self._empty(head)
            self._tree.directory(head.name)
        elif kind == b"2":
            self._empty(head)
            self._tree.link(head.name, head.target)
        elif kind in {b"0", b"\0", b"7"}:
            if head.name.endswith("/"):
                raise UploadRefused(head.name, "it is a file with the name of a directory")
            self._tree.file(
                head.name,
                head.size,
                _pieces(self._stream, head.size, head.name),
                executable=bool(head.mode & _EXECUTABLE),
                mtime_s=head.mtime_s,
            )
            self._skip_padding(head.size)
        else:
            raise UploadRefused(head.name, f"its type {ascii(kind)[1:]} is not known")

    def _empty(self, head: _Head) -> None:
        if head.size:
            raise UploadRefused(head.name, "it is not a file and has content")

    def _skip_padding(self, size: int) -> None:
        rest = -size % _BLOCK
        if len(self._stream.read(rest)) < rest:
            self._refuse("the tar is cut off")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")  # what is not UTF-8 is refused as a name


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    # int() would take signs, underscores and blanks inside.
    return None if digits.strip(b"01234567") else int(digits or b"0", 8)


def _number(field: bytes) -> int | None:
    """An octal or (GNU) base-256 number; None if it is neither, or negative."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    return _octal(field)


# ── zip ──────────────────────────────────────────────────────────────────────

_END: Final = struct.Struct("<4s4H2LH")
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_MAX_COMMENT: Final = 0xFFFF
_MAX32: Final = 0xFFFFFFFF
_MAX16: Final = 0xFFFF
_STORED: Final = 0
_DEFLATED: Final = 8
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_UNIX: Final = 3


class _ZipEntry(NamedTuple):
    raw_name: bytes
    name: str
    method: int
    crc: int
    packed: int
    size: int
    at: int
    mode: int


class ZipReader:
    """One zip in a range of a descriptor: its directory in, calls of a :class:`Tree` out."""

    def __init__(self, fd: int, offset: int, size: int, tree: Tree, name: str) -> None:
        self._fd = fd
        self._offset = offset
        self._size = size
        self._tree = tree
        self._name = name

    def read_all(self) -> None:
        """Every member, in the order in which they lie there."""
        start, entries = self._directory()
        entries.sort(key=lambda entry: entry.at)
        ends = [entry.at for entry in entries[1:]] + [start]
        for entry, end in zip(entries, ends, strict=True):
            self._member(entry, end)

    def _refuse(self, reason: str) -> NoReturn:
        raise UploadRefused(self._name, reason)

    def _at(self, at: int, size: int) -> bytes:
        if at < 0 or size < 0 or at + size > self._size:
            self._refuse("the zip points outside itself")
        found = os.pread(self._fd, size, self._offset + at)
        if len(found) < size:
            self._refuse("it is cut off")
        return found

    def _directory(self) -> tuple[int, list[_ZipEntry]]:
        """Where the central directory begins, and its entries."""
        count, size, start = self._end_record()
        if count * _CENTRAL.size > size:
            self._refuse("the zip's directory is damaged")
        if count > self._tree.room:
            self._refuse(f"it has {count} members, which is too many")
        if size > MAX_META_TOTAL:
            self._refuse("the zip's directory is too large")
        data = self._at(start, size)
        entries = []
        at = 0
        for _ in range(count):
            entry, at = self._central(data, at)
            entries.append(entry)
        if at != size:
            self._refuse("the zip's directory is damaged")
        return start, entries

    def _end_record(self) -> tuple[int, int, int]:
        tail_at = max(0, self._size - _END.size - _MAX_COMMENT)
        tail = self._at(tail_at, self._size - tail_at)
        found = tail.rfind(b"PK\5\6")
        if found < 0 or len(tail) - found < _END.size:
            self._refuse("it is not a zip, or it is cut off")
        _, disk, first, here, count, size, start, comment = _END.unpack_from(tail, found)
        if found + _END.size + comment != len(tail):
            self._refuse("there is something after the end of the zip")
        end = tail_at + found
        record = self._end_record64(end)  # streaming tools write one without need
        if record:
            short = (disk, first, here, count, size, start)
            disk, first, here, count, size, start, end = record
            limits = (_MAX16,) * 4 + (_MAX32,) * 2
            for value, long, most in zip(short, record, limits, strict=False):
                if value not in {long, most}:
                    self._refuse("the zip has two ends that differ")
        if disk or first or here != count:
            self._refuse("it is a part of a zip in several parts")
        if start + size != end:
            # Something before the archive (or the directory's place is a lie).
            self._refuse("the zip's directory is not where it should be")
        return count, size, start

    def _end_record64(self, end: int) -> tuple[int, int, int, int, int, int, int] | None:
        at = end - _END64_LOCATOR.size
        if at < 0 or self._at(at, 4) != b"PK\6\7":
            return None
        _, _, place, disks = _END64_LOCATOR.unpack(self._at(at, _END64_LOCATOR.size))
        if place + _END64.size != at or disks > 1:
            self._refuse("the zip's end is damaged")
        raw = self._at(place, _END64.size)
        signature, _, _, _, disk, first, here, count, size, start = _END64.unpack(raw)
        if signature != b"PK\6\6":
            self._refuse("the zip's end is damaged")
        return disk, first, here, count, size, start, place

    def _central(self, data: bytes, at: int) -> tuple[_ZipEntry, int]:
        if at + _CENTRAL.size > len(data):
            self._refuse("the zip's directory is damaged")
        (
            signature, made_by, _, flags, method, _, _, crc, packed, size,
            name_size, extra_size, comment_size, disk, _, attributes, place,
        ) = _CENTRAL.unpack_from(data, at)  # fmt: skip
        at += _CENTRAL.size
        end = at + name_size + extra_size + comment_size
        if signature != b"PK\1\2" or end > len(data) or disk not in {0, _MAX16}:
            self._refuse("the zip's directory is damaged")
        raw = data[at : at + name_size]
        name = _text(raw)
        extra = data[at + name_size : at + name_size + extra_size]
        size, packed, place = self._sizes64(extra, size, packed, place)
        if flags & _ENCRYPTED:
            raise UploadRefused(name, "it is encrypted")
        if method not in {_STORED, _DEFLATED}:
            raise UploadRefused(name, f"its compression method {method} is not known; use deflate")
        mode = attributes >> 16 if made_by >> 8 == _UNIX else 0
        return _ZipEntry(raw, name, method, crc, packed, size, place, mode), end

    def _sizes64(self, extra: bytes, *values: int) -> list[int]:
        """Values that are all ones stand in the extra field 1, in this order."""
        found = list(values)
        at = 0
        while at + 4 <= len(extra):
            tag, length = struct.unpack_from("<2H", extra, at)
            body = extra[at + 4 : at + 4 + length]
            at += 4 + length
            if tag != 1:
                continue
            where = 0
            for number, value in enumerate(found):
                if value == _MAX32:
                    if where + 8 > len(body):
                        self._refuse("the zip's directory is damaged")
                    found[number] = int.from_bytes(body[where : where + 8], "little")
                    where += 8
            break
        return found

    def _member(self, entry: _ZipEntry, end: int) -> None:
        kind = stat.S_IFMT(entry.mode)
        is_directory = entry.name.endswith("/")
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR} or (kind == stat.S_IFDIR) > is_directory:
            what = "a symbolic link" if kind == stat.S_IFLNK else "no regular file"
            raise UploadRefused(entry.name, f"it is {what}")
        local = _LOCAL.unpack(self._at(entry.at, _LOCAL.size))
        name_size, extra_size = local[9], local[10]
        data_at = entry.at + _LOCAL.size + name_size + extra_size
        if local[0] != b"PK\3\4" or local[3] != entry.method or local[2] & _ENCRYPTED:
            raise UploadRefused(entry.name, "its two headers in the zip differ")
        if self._at(entry.at + _LOCAL.size, name_size) != entry.raw_name:
            raise UploadRefused(entry.name, "it has two names in the zip")
        if data_at + entry.packed > end:
            raise UploadRefused(entry.name, "it overlaps another member of the zip")
        if is_directory:
            if entry.size:
                raise UploadRefused(entry.name, "it is a directory and has content")
            self._tree.directory(entry.name)
            return
        self._tree.file(
            entry.name,
            entry.size,
            self._content(entry, data_at),
            executable=bool(entry.mode & _EXECUTABLE),
        )

    def _content(self, entry: _ZipEntry, at: int) -> Iterator[bytes]:
        source = Slice(self._fd, self._offset + at, entry.packed)
        if entry.method == _STORED:
            pieces = _pieces(source, entry.packed, entry.name)
        else:
            pieces = _deflated(source, entry.name)
        crc = size = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            if size > entry.size:
                break
            yield piece
        if size != entry.size:
            raise UploadRefused(entry.name, f"it is not of the {entry.size} bytes that it claims")
        if crc != entry.crc:
            raise UploadRefused(entry.name, "its checksum is wrong")


def _deflated(source: Stream, name: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data = b""
    while not inflate.eof:
        piece, data = _inflate(inflate, data, source, name)
        if piece:
            yield piece
    if inflate.unused_data or source.read(1):
        raise UploadRefused(name, "there is something after the end of its data")


# ── a whole upload ───────────────────────────────────────────────────────────


def unpack(
    upload_fd: int,
    parts: Sequence[UploadPart],
    work_fd: int,
    *,
    max_files: int,
    max_bytes: int,
    strip_root: bool = False,
    unless: str | None = None,
) -> Report:
    """Write every part below ``work_fd``. Raises :class:`UploadRefused`.

    ``strip_root``: take away the only top directory (see the module's text), but
    not if there is a file ``unless``, whose name would then no longer be right, or a link
    that needs its name.
    ``max_files`` counts directories too; ``max_bytes`` is the sum of file sizes.
    """
    tree = Tree(work_fd, max_files, max_bytes)
    try:
        for part in parts:
            _READERS[part.kind](upload_fd, part, tree)
        tree.finish()
    finally:
        tree.close()
    root = ""
    # A link by way of the top (p/x → ../p/y) would lead out of /work without it.
    stays = unless in tree.kinds or tree.links_by_top
    if strip_root and len(parts) == 1 and parts[0].kind != "file" and not stays:
        root = _only_directory(tree.kinds)
    if not root:
        return Report(tree.files, tree.bytes, "")
    _lift(work_fd, root)
    prefix = f"{root}/"
    files = [file._replace(path=file.path.removeprefix(prefix)) for file in tree.files]
    return Report(files, tree.bytes, root)


def _read_file_part(fd: int, part: UploadPart, tree: Tree) -> None:
    source = Slice(fd, part.offset, part.size)
    pieces = _pieces(source, part.size, part.path)
    tree.file(part.path, part.size, pieces, executable=part.executable)


def _read_tar_part(fd: int, part: UploadPart, tree: Tree) -> None:
    magic = os.pread(fd, min(6, part.size), part.offset)
    source: Stream = Slice(fd, part.offset, part.size)
    if magic.startswith(b"\x1f\x8b"):
        source = Gunzip(source, part.path)
    for other, start in (("bzip2", b"BZh"), ("xz", b"\xfd7zXZ"), ("zstd", b"\x28\xb5\x2f\xfd")):
        if magic.startswith(start):
            raise UploadRefused(part.path, f"it is compressed with {other}; send tar.gz or zip")
    TarReader(source, tree, part.path).read_all()


def _read_zip_part(fd: int, part: UploadPart, tree: Tree) -> None:
    ZipReader(fd, part.offset, part.size, tree, part.path).read_all()


_READERS: Final[Mapping[str, Callable[[int, UploadPart, Tree], None]]] = {
    "file": _read_file_part,
    "tar": _read_tar_part,
    "zip": _read_zip_part,
}


def _only_directory(kinds: Mapping[str, str]) -> str:
    """The one directory at the top, or "". What macOS adds beside it does not count."""
    tops = [p for p in kinds if "/" not in p and not p.startswith(("._", "__MACOSX"))]
    return tops[0] if len(tops) == 1 and kinds[tops[0]] == "directory" else ""


def _lift(work_fd: int, root: str) -> None:
    """Move what is in ``root`` one level up, and ``root`` away."""
    root_fd = os.open(root, _DIRECTORY, dir_fd=work_fd)
    try:
        inside = os.listdir(root_fd)
        taken = {*inside, *os.listdir(work_fd)}
        # It may hold something of its own name (project/project/...).
        aside = next(
            name for number in range(len(taken) + 1) if (name := f".{number}") not in taken
        )
        os.rename(root, aside, src_dir_fd=work_fd, dst_dir_fd=work_fd)
        for name in inside:
            os.rename(name, name, src_dir_fd=root_fd, dst_dir_fd=work_fd)
        os.rmdir(aside, dir_fd=work_fd)
    finally:
        os.close(root_fd)


# ── the child's whole work ───────────────────────────────────────────────────


class Upload(NamedTuple):
    """What the child is given."""

    fd: int
    parts: Sequence[UploadPart]
    work_fd: int
    max_files: int
    max_bytes: int


class Unpacked(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """The files are there. ``spec`` is complete, unless it belongs elsewhere."""

    spec: JobSpec
    files: int = 0
    bytes: int = 0
    root: str = ""  # the directory that was taken away
    requirements: str = ""  # text of the file that the spec names


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """The upload is not acceptable, in words for the client."""

    reason: str


def unpack_and_resolve(
    upload: Upload,
    spec: JobSpec,
    given: Collection[str],
    interpreters: Mapping[str, InterpreterInfo],
    environments: Collection[str],
    _default_limits: Limits,
    max_limits: Limits,
) -> Unpacked | Refused:
    """Unpack, merge a job.json, find out what to run. Never raises for the upload's fault.

    If the job.json asks for another environment or storage size, the spec is
    returned as far as it is known: the job goes on in another sandbox.
    """
    extensions = {name: info.extensions for name, info in interpreters.items()}
    try:
        report = unpack(
            upload.fd,
            upload.parts,
            upload.work_fd,
            max_files=upload.max_files,
            max_bytes=upload.max_bytes,
            strip_root=True,
            unless=spec.entrypoint,
        )
        known = {file.path: file.executable for file in report.files}
        merged = spec
        if JOB_JSON in known:
            rules = manifest.Rules(max_limits, extensions, environments)
            data = read_head(upload.work_fd, JOB_JSON, manifest.MAX_BYTES + 1)
            merged = manifest.overlay(spec, given, manifest.parse(data, rules, JOB_JSON))
        requirements = ""
        if merged.requirements is not None:
            if merged.requirements not in known:
                raise UploadRefused(
                    merged.requirements, "it is named as requirements and not there"
                )
            head = read_head(upload.work_fd, merged.requirements, MAX_REQUIREMENTS + 1)
            if len(head) > MAX_REQUIREMENTS:
                raise UploadRefused(merged.requirements, "requirements take 64 KiB at most")
            requirements = head.decode("utf-8", "replace")
        if _fits(spec, merged):
            merged = manifest.complete(
                merged,
                known.items(),
                lambda path: read_head(upload.work_fd, path, HEAD_BYTES),
                extensions,
            )
    except (UploadRefused, RequestError) as error:
        return Refused(reason=str(error))
    except OSError as error:
        return Refused(reason=f"the upload cannot be written: {error.strerror}")
    return Unpacked(
        spec=merged,
        files=len(known),
        bytes=report.bytes,
        root=report.root,
        requirements=requirements,
    )


def _fits(spec: JobSpec, merged: JobSpec) -> bool:
    same = merged.environment == spec.environment
    return same and merged.limits.storage_bytes == spec.limits.storage_bytes


def read_head(work_fd: int, path: str, size: int) -> bytes:
    """The first bytes of a regular file, walked to step by step."""
    *parents, last = path.split("/")
    at = work_fd
    try:
        for step in parents:
            below = os.open(step, _DIRECTORY, dir_fd=at)
            if at != work_fd:
                os.close(at)
            at = below
        fd = os.open(last, _READ_FILE, dir_fd=at)
    finally:
        if at != work_fd:
            os.close(at)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)
