"""Files in, files out: byte-exact, bounded, sealed."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import tarfile
import zipfile

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandrun.errors import ProtocolError, RequestError
from sandrun.http import archive
from sandrun.http.__main__ import Shares
from sandrun.http.spool import SEALS, Budget, Spool, archive_kind
from sandrun.job import OutputFile, OutputIndex, encode_index
from sandrun.messages import INLINE_MAX_BYTES, UploadPart

MIB = 1024 * 1024


def content(spool: Spool) -> dict[str, bytes]:
    """Finish, and read everything back as PID 1 would."""
    done = spool.finish()
    found = {file.path: file.data for file in done.files}
    if done.upload:
        fd = done.upload.fd
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
        raw = os.pread(fd, done.upload.index_size, done.upload.index_offset)
        for part in msgspec.msgpack.decode(raw, type=list[UploadPart]):
            assert part.path not in found
            found[part.path] = os.pread(fd, part.size, part.offset)
        os.close(fd)
    return found


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}\.(txt|tar|zip|py)", fullmatch=True),
        st.lists(st.integers(0, 30_000), max_size=3),
        max_size=6,
    )
)
def test_every_byte_comes_back_whatever_the_mix(files: dict[str, list[int]]) -> None:
    budget = Budget(100 * MIB)
    spool = Spool(budget, 100 * MIB, 100)
    expected = {}
    for path, sizes in files.items():
        pieces = [hashlib.sha256(path.encode()).digest()[:1] * size for size in sizes]
        expected[path] = b"".join(pieces)
        spool.begin(path)
        for piece in pieces:
            spool.write(piece)
        spool.end()
    assert content(spool) == expected
    assert budget.used == sum(map(len, expected.values()))


def test_small_files_stay_inline_and_an_archive_does_not() -> None:
    spool = Spool(Budget(MIB), MIB, 10)
    spool.add("main.py", b"print(1)")
    done = spool.finish()
    assert done.upload is None
    assert done.files[0].data == b"print(1)"
    spool = Spool(Budget(MIB), MIB, 10)
    spool.add("x.tar.gz", b"tiny")
    done = spool.finish()
    assert done.upload is not None
    assert done.has_archive
    assert done.plain_files() == []
    os.close(done.upload.fd)


def test_programs_are_recognised_by_their_first_bytes() -> None:
    spool = Spool(Budget(4 * MIB), 4 * MIB, 10)
    spool.add("a", b"\x7fELF" + bytes(INLINE_MAX_BYTES))
    spool.add("b", b"#!/bin/sh\n")
    spool.add("c", b"text")
    done = spool.finish()
    assert done.upload is not None
    raw = os.pread(done.upload.fd, done.upload.index_size, done.upload.index_offset)
    parts = msgspec.msgpack.decode(raw, type=list[UploadPart])
    assert [part.executable for part in parts] == [True, True, False]
    os.close(done.upload.fd)


@pytest.mark.parametrize("size", [10, 200_000])
def test_what_is_abandoned_is_freed(size: int) -> None:
    budget = Budget(MIB)
    before = len(os.listdir("/proc/self/fd"))
    spool = Spool(budget, MIB, 10)
    spool.begin("a")
    spool.write(bytes(size))
    spool.close()
    spool.close()
    assert (budget.used, budget.files) == (0, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_uploads_take_no_more_descriptors_than_they_may() -> None:
    budget = Budget(MIB, max_files=2)
    spools = [Spool(budget, MIB, 10) for _ in range(3)]
    for spool in spools[:2]:
        spool.begin("a.tar")
    with pytest.raises(RequestError) as caught:
        spools[2].begin("a.tar")
    assert (caught.value.status, caught.value.code) == (503, "uploads_full")
    spools[0].close()
    spools[2].begin("b.tar")
    for spool in spools:
        spool.close()
    assert budget.files == 0


@pytest.mark.parametrize("files", [256, 1024, 4096, 20_000, 524_288])
def test_no_sort_of_descriptors_lives_at_the_expense_of_the_others(files: int) -> None:
    shares = Shares.of(files, 12_000, 1000)
    spare = files - shares.connections - shares.uploads - 2 * shares.ended
    assert min(1000, files // 4) <= spare
    assert min(shares) > 0
    assert files < 20_000 or shares.connections >= 10_000


def test_limits_are_named() -> None:
    spool = Spool(Budget(MIB), 100, 2)
    spool.begin("a")
    with pytest.raises(RequestError, match="larger"):
        spool.write(bytes(101))
    with pytest.raises(RequestError, match="twice"):
        spool.begin("a")
    spool.begin("b")
    with pytest.raises(RequestError, match="more than 2"):
        spool.begin("c")
    with pytest.raises(RequestError) as caught:
        Budget(10).take(11)
    assert caught.value.status == 503
    assert caught.value.retry_after_s


def test_a_file_cannot_be_a_directory_too() -> None:
    spool = Spool(Budget(MIB), MIB, 10)
    spool.add("a", b"")
    spool.add("a/b", b"")
    with pytest.raises(RequestError, match="directory"):
        spool.finish()


def test_archive_kinds() -> None:
    assert archive_kind("P.TAR.GZ") == "tar"
    assert archive_kind("p.zip") == "zip"
    assert archive_kind("p.tar.py") == "file"
    with pytest.raises(RequestError) as caught:
        archive_kind("p.tar.zst")
    assert caught.value.status == 415


# ── archives out ────────────────────────────────────────────────────────────

NAMES = [
    "a.txt",
    "dir/b.bin",
    "ü/é.txt",
    "x" * 120 + "/" + "y" * 200,
    "bad\udcff.txt",
    "-rf",
    "new\nline",
]


@pytest.fixture(name="outputs")
def make_outputs() -> tuple[int, list[OutputFile], dict[str, bytes]]:
    fd = os.memfd_create("outputs")
    files, expected, offset = [], {}, 0
    for number, name in enumerate(NAMES):
        data = os.urandom(number * 50_000)
        os.pwrite(fd, data, offset)
        files.append(
            OutputFile(
                path=name,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                offset=offset,
                mtime_s=1_700_000_000,
                executable=number == 1,
            )
        )
        expected[name] = data
        offset += len(data)
    return fd, files, expected


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_tar_is_byte_exact(
    kind: str, outputs: tuple[int, list[OutputFile], dict[str, bytes]]
) -> None:
    fd, files, expected = outputs
    pieces = list(archive.stream(kind, fd, files))
    assert max(map(len, pieces)) <= 2 * archive.PIECE_BYTES
    raw = b"".join(pieces)
    if kind == "tar":
        assert len(raw) == archive.tar_size(files)
    else:
        raw = gzip.decompress(raw)
    with tarfile.open(fileobj=io.BytesIO(raw), errors="surrogateescape") as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        assert tar.getmember("dir/b.bin").mode == 0o755
    assert found == expected
    os.close(fd)


def test_zip_is_byte_exact(outputs: tuple[int, list[OutputFile], dict[str, bytes]]) -> None:
    fd, files, expected = outputs
    raw = b"".join(archive.stream("zip", fd, files))
    with zipfile.ZipFile(io.BytesIO(raw)) as packed:
        assert packed.testzip() is None
        found = {name: packed.read(name) for name in packed.namelist()}
    assert found == {name.replace("\udcff", "\ufffd"): data for name, data in expected.items()}
    os.close(fd)


def index_of(files: list[OutputFile], content_bytes: int = 100) -> tuple[int, int, int]:
    fd = os.memfd_create("outputs")
    os.pwrite(fd, bytes(content_bytes), 0)
    raw = encode_index(OutputIndex(files=tuple(files)))
    os.pwrite(fd, raw, content_bytes)
    return fd, content_bytes, len(raw)


def entry(**changes: object) -> OutputFile:
    good: dict[str, object] = {"path": "a", "size_bytes": 10, "sha256": "0" * 64, "offset": 0}
    return OutputFile(**(good | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "tar"])
def test_an_archive_comes_in_small_steps_however_well_it_packs(kind: str) -> None:
    """100 MB of zeros came in one step of half a second: nothing left the compressor."""
    size = 32 * 1024 * 1024
    fd = os.memfd_create("outputs")
    os.ftruncate(fd, size)
    file = OutputFile(path="zeros", size_bytes=size, sha256="0" * 64, offset=0)
    steps = sum(1 for _ in archive.stream(kind, fd, (file,)))
    os.close(fd)
    assert steps >= size / archive.PIECE_BYTES


def test_a_good_index_is_read() -> None:
    fd, offset, size = index_of([entry(), entry(path="b/c", offset=90)])
    assert len(archive.read_index(fd, offset, size).files) == 2
    os.close(fd)


@pytest.mark.parametrize(
    "files",
    [
        [entry(path="/etc/passwd")],
        [entry(path="../x")],
        [entry(path="a/../x")],
        [entry(path="a//b")],
        [entry(path="")],
        [entry(path="a\0b")],
        [entry(), entry()],
        [entry(offset=-1)],
        [entry(size_bytes=-1)],
        [entry(offset=95)],
        [entry(size_bytes=60), entry(path="b", size_bytes=60)],
        [entry(sha256="x")],
        [entry(sha256='"' * 64)],
    ],
)
def test_an_index_that_lies_is_refused(files: list[OutputFile]) -> None:
    fd, offset, size = index_of(files)
    with pytest.raises(ProtocolError):
        archive.read_index(fd, offset, size)
    os.close(fd)


def test_junk_is_no_index() -> None:
    fd = os.memfd_create("outputs")
    os.pwrite(fd, b"\xff" * 100, 0)
    for size in (1, 100, 1 << 39):
        with pytest.raises(ProtocolError):
            archive.read_index(fd, 0, size)
    os.close(fd)
