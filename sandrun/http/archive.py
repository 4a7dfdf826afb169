"""Outputs descriptor → tar, tar.gz or zip, piece by piece. I/O (pread only); unprivileged.

Constant memory: a piece is read when the previous one has left. File names come
from a job, so they are checked when the index is read (``read_index``) and written
byte-exact: pax headers for tar, the UTF-8 flag for zip.
"""

from __future__ import annotations

import os
import tarfile
import time
import zipfile
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from sandrun.errors import ProtocolError
from sandrun.job import OutputFile, OutputIndex, decode_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PIECE_BYTES: Final = 64 * 1024
MAX_INDEX_BYTES: Final = 32 * 1024 * 1024  # 10,000 files with long names are about 4 MiB
MAX_PATH_BYTES: Final = 4096  # PATH_MAX
LEVEL: Final = 1  # most of the size for a fifth of the time; outputs are often compressed anyway
FORMATS: Final = {
    "tar.gz": "application/gzip",
    "tar": "application/x-tar",
    "zip": "application/zip",
}
MAX_TIME_S: Final = 8**11 - 1  # of a ustar mtime
_ZIP_EPOCH_S: Final = 315_532_800  # 1980-01-01: zip cannot say anything earlier
_ZIP_LAST_S: Final = 4_354_819_199  # 2107-12-31


def read_index(fd: int, offset: int, size: int) -> OutputIndex:
    """The index behind the files' bytes, with every number and name checked.

    PID 1 of a sandbox wrote it and may have been taken over: what is not plausible
    is a :class:`ProtocolError`, never a huge allocation or a strange name.
    """
    if not size:
        return OutputIndex()
    if size > MAX_INDEX_BYTES:
        raise ProtocolError(f"outputs: an index of {size} bytes")
    raw = os.pread(fd, size, offset)
    try:
        index = decode_index(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("outputs: the index is not one") from error
    seen: set[str] = set()
    total = 0
    for file in index.files:
        _check_path(file.path, seen)
        total += file.size_bytes
        end = file.offset + file.size_bytes
        if file.offset < 0 or file.size_bytes < 0 or end > offset or total > offset:
            raise ProtocolError("outputs: a file lies outside the descriptor")
        if len(file.sha256) != 64 or set(file.sha256) - set("0123456789abcdef"):
            raise ProtocolError("outputs: a checksum is not one")
    return index


def _check_path(path: str, seen: set[str]) -> None:
    parts = path.split("/")
    bad = (
        path in seen
        or "\0" in path
        or len(path) > MAX_PATH_BYTES
        or any(part in {"", ".", ".."} for part in parts)
    )
    if bad:
        raise ProtocolError("outputs: a path is not relative and clean")
    seen.add(path)


def pieces(fd: int, offset: int, size: int) -> Iterator[bytes]:
    """The bytes of a range. Raises :class:`ProtocolError` if the descriptor is shorter."""
    end = offset + size
    while offset < end:
        piece = os.pread(fd, min(PIECE_BYTES, end - offset), offset)
        if not piece:
            raise ProtocolError("outputs: the descriptor is too short")
        offset += len(piece)
        yield piece


def stream(kind: str, fd: int, files: Iterable[OutputFile]) -> Iterator[bytes]:
    """One archive of ``kind`` (a key of FORMATS), in steps of about one piece of work each.

    A step may give b"": what was compressed is not out yet.
    """
    if kind == "zip":
        return _zip(fd, files)
    if kind == "tar":
        return _tar(fd, files)
    return _gzip(_tar(fd, files))


def tar_size(files: Iterable[OutputFile]) -> int:
    """Bytes of the tar of ``files``, for Content-Length."""
    size = 2 * tarfile.BLOCKSIZE
    for file in files:
        size += (
            len(_tar_header(file)) + -(-file.size_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        )
    return size


def _tar_header(file: OutputFile) -> bytes:
    info = tarfile.TarInfo(file.path)
    info.size = file.size_bytes
    info.mtime = min(max(file.mtime_s, 0), MAX_TIME_S)
    info.mode = 0o755 if file.executable else 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _tar(fd: int, files: Iterable[OutputFile]) -> Iterator[bytes]:
    for file in files:
        yield _tar_header(file)
        yield from pieces(fd, file.offset, file.size_bytes)
        rest = -file.size_bytes % tarfile.BLOCKSIZE
        if rest:
            yield bytes(rest)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for chunk in chunks:
        yield compressor.compress(chunk)  # b"" too: 100 MB of zeros must not come in one step
    yield compressor.flush()


class _Sink:
    """What zipfile writes to: it cannot seek, and is emptied after every piece."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        self._buffer += data
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data


def _zip(fd: int, files: Iterable[OutputFile]) -> Iterator[bytes]:
    sink = _Sink()
    names: set[str] = set()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:  # type: ignore[call-overload]
        for file in files:
            info = _zip_info(file, names)
            with archive.open(info, "w", force_zip64=file.size_bytes >= 1 << 31) as member:
                for piece in pieces(fd, file.offset, file.size_bytes):
                    member.write(piece)
                    yield sink.take()
            if data := sink.take():
                yield data
    yield sink.take()


def _zip_info(file: OutputFile, names: set[str]) -> zipfile.ZipInfo:
    # Zip names are UTF-8: what is not gets U+FFFD, and a number where two then meet.
    name = file.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    plain, count = name, 1
    while name in names:
        count += 1
        name = f"{plain}.{count}"
    names.add(name)
    moment = min(max(file.mtime_s, _ZIP_EPOCH_S), _ZIP_LAST_S)
    info = zipfile.ZipInfo(name, time.gmtime(moment)[:6])
    info.filename = name  # the constructor cuts at NUL and swaps separators: undo the latter
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (0o100755 if file.executable else 0o100644) << 16
    info.create_system = 3  # Unix: the mode above means something
    return info
