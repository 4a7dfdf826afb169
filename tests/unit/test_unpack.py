"""Archives: ordinary ones come out whole, hostile ones are refused and leave nothing outside."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandrun.job import JobSpec, Limits
from sandrun.messages import InterpreterInfo, UploadPart
from sandrun.pool.zygote import unpack
from sandrun.pool.zygote.unpack import Report, UploadRefused

PYTHON = {"python3": InterpreterInfo(name="python3", path="/usr/bin/python3", extensions=(".py",))}


class Box:
    """A work directory inside one that must not change."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.work = top / "work"
        self.work.mkdir(parents=True)
        (top / "outside").write_text("untouched")

    def unpack(self, data: bytes, kind: str, **more: Any) -> Report:
        return self.unpack_parts([(kind, f"upload.{kind}", data)], **more)

    def unpack_parts(
        self,
        parts: list[tuple[str, str, bytes]],
        *,
        max_files: int = 1000,
        max_bytes: int = 1 << 20,
        **more: Any,
    ) -> Report:
        fd, index = upload(parts)
        work_fd = os.open(self.work, os.O_RDONLY)
        before = len(os.listdir("/proc/self/fd"))
        try:
            return unpack.unpack(
                fd, index, work_fd, max_files=max_files, max_bytes=max_bytes, **more
            )
        finally:
            assert len(os.listdir("/proc/self/fd")) == before  # no descriptor is left
            os.close(work_fd)
            os.close(fd)
            self.check_outside()

    def check_outside(self) -> None:
        assert sorted(os.listdir(self.top)) == ["outside", "work"]
        assert (self.top / "outside").read_text() == "untouched"

    def clear(self) -> None:
        shutil.rmtree(self.work)
        self.work.mkdir()

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.work)): path.read_bytes()
            for path in self.work.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


def upload(parts: list[tuple[str, str, bytes]]) -> tuple[int, list[UploadPart]]:
    fd = os.memfd_create("upload")
    index = []
    at = os.write(fd, b"something before it")
    for kind, name, data in parts:
        os.pwrite(fd, data, at)
        index.append(UploadPart(kind=kind, path=name, offset=at, size=len(data)))
        at += len(data)
    os.pwrite(fd, b"and something behind it", at)
    return fd, index


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


Member = tuple[str, bytes | None] | tarfile.TarInfo


def tar(*members: Member, mode: Any = "w", **options: Any) -> bytes:
    """(name, content), (name, None) for a directory, or a TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def special(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return out.getvalue()


PROJECT: dict[str, bytes] = {
    "main.py": b"print(1)\n",
    "pkg/__init__.py": b"",
    "pkg/data/größe.bin": bytes(range(256)) * 300,
    "pkg/" + "long" * 20 + "/" + "name" * 30 + ".txt": b"deep",
}


# ── ordinary archives ────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_ordinary_tar_comes_out_as_it_went_in(box: Box, mode: str, form: int) -> None:
    report = box.unpack(tar(*PROJECT.items(), mode=mode, format=form), "tar")
    assert box.files() == PROJECT
    assert {file.path: file.size for file in report.files} == {
        path: len(content) for path, content in PROJECT.items()
    }
    assert (report.bytes, report.root) == (sum(map(len, PROJECT.values())), "")


def test_a_ustar_with_a_split_name(box: Box) -> None:
    name = "d" * 90 + "/" + "n" * 90
    box.unpack(tar((name, b"x"), format=tarfile.USTAR_FORMAT), "tar")
    assert box.files() == {name: b"x"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_ordinary_zip_comes_out_as_it_went_in(box: Box, method: int) -> None:
    box.unpack(zipped(*PROJECT.items(), ("empty/", b""), method=method), "zip")
    assert box.files() == PROJECT
    assert (box.work / "empty").is_dir()


def test_a_streamed_zip_with_data_descriptors_and_zip64(box: Box) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in PROJECT.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    box.unpack(pipe.data, "zip")
    assert box.files() == PROJECT


def test_names_with_a_dot_in_front_and_directories_of_their_own(box: Box) -> None:
    box.unpack(
        tar(("./", None), ("./a", None), ("./a/b", b"1"), ("a", None), (".//c", b"2")), "tar"
    )
    assert box.files() == {"a/b": b"1", "c": b"2"}


def test_modes_are_masked_owner_is_us_and_possible_times_are_kept(box: Box) -> None:
    members = [
        special("setuid", tarfile.REGTYPE, mode=0o7777, uid=0, gid=0, mtime=1_600_000_000),
        special("closed", tarfile.REGTYPE, mode=0, uid=4_000_000_000, mtime=8**11 - 1),
        special("d", tarfile.DIRTYPE, mode=0o1777),
        special("d/x", tarfile.REGTYPE, mode=0o666),
    ]
    report = box.unpack(tar(*members), "tar")

    def mode(path: str) -> int:
        return stat.S_IMODE((box.work / path).stat().st_mode)

    assert [mode("setuid"), mode("closed"), mode("d/x")] == [0o755, 0o644, 0o644]
    assert mode("d") == 0o755
    assert {file.path for file in report.files if file.executable} == {"setuid"}
    assert (box.work / "setuid").stat().st_mtime == 1_600_000_000
    assert (box.work / "closed").stat().st_mtime < 8**11 - 1
    assert (box.work / "closed").stat().st_uid == os.geteuid()


@pytest.mark.parametrize("mtime", [-1, -(2**40), 2**63 - 1])
def test_an_impossible_time_is_ignored(box: Box, mtime: int) -> None:
    box.unpack(tar(special("x", tarfile.REGTYPE, mtime=mtime), format=tarfile.GNU_FORMAT), "tar")
    assert 0 < (box.work / "x").stat().st_mtime < unpack.MAX_TIME_S


def test_a_zip_keeps_the_executable_bit(box: Box) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("tool")
        info.external_attr = 0o104755 << 16
        archive.writestr(info, b"x")
    assert box.unpack(out.getvalue(), "zip").files[0].executable
    assert stat.S_IMODE((box.work / "tool").stat().st_mode) == 0o755


@pytest.mark.parametrize("content", [b"\x7fELF...", b"#!/bin/sh\n"])
def test_a_program_is_executable_even_if_the_form_carried_no_mode(box: Box, content: bytes) -> None:
    report = box.unpack_parts([("file", "bin/tool", content), ("file", "notes", b"x")])
    assert [(f.path, f.executable) for f in report.files] == [("bin/tool", True), ("notes", False)]


def test_gzip_members_one_after_another_are_one_stream(box: Box) -> None:
    data = tar(*PROJECT.items())
    box.unpack(gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(100), "tar")
    assert box.files() == PROJECT


def test_xattrs_and_acls_are_ignored(box: Box) -> None:
    info = special("x", tarfile.REGTYPE)
    info.pax_headers = {
        "SCHILY.xattr.security.capability": "\1\0\0\2",
        "SCHILY.acl.access": "user::rwx",
        "LIBARCHIVE.xattr.user.a": "YQ==",
    }
    box.unpack(tar(info, format=tarfile.PAX_FORMAT), "tar")
    assert os.listxattr(box.work / "x") == []


@pytest.mark.parametrize(
    "name",
    [
        "-rf",
        "--checkpoint-action=exec=sh",
        "con.txt ",
        "trailing.",
        "e\u0301",
        "\u202eexe",
        "ünï🙂",
    ],
)
def test_strange_but_valid_names_are_kept_exactly(box: Box, name: str) -> None:
    box.unpack(tar((name, b"x")), "tar")
    assert os.listdir(box.work) == [name]


def test_a_nested_archive_is_a_file_like_any_other(box: Box) -> None:
    inner = zipped(("x", b"y"))
    box.unpack(zipped(("inner.zip", inner)), "zip")
    assert box.files() == {"inner.zip": inner}


# ── the directory around a project ───────────────────────────────────────────


def test_a_single_directory_around_everything_is_taken_away(box: Box) -> None:
    data = tar(("p", None), ("p/p/p", b"1"), ("p/main.py", b"2"), ("p/.0", b"3"), ("._p", b"mac"))
    report = box.unpack(data, "tar", strip_root=True)
    assert report.root == "p"
    assert box.files() == {"p/p": b"1", "main.py": b"2", ".0": b"3", "._p": b"mac"}
    assert "main.py" in {file.path for file in report.files}


@pytest.mark.parametrize(
    "parts",
    [
        [("tar", "a.tar", tar(("p/main.py", b""), ("README", b"")))],
        [("tar", "a.tar", tar(("p/main.py", b""), ("q/x", b"")))],
        [("tar", "a.tar", tar(("p/main.py", b""))), ("file", "data.csv", b"1")],
    ],
)
def test_it_stays_if_something_is_beside_it(box: Box, parts: list[tuple[str, str, bytes]]) -> None:
    assert box.unpack_parts(parts, strip_root=True).root == ""
    assert "p/main.py" in box.files()


def test_it_stays_if_the_entrypoint_is_named_with_it(box: Box) -> None:
    data = tar(("p/main.py", b""))
    assert box.unpack(data, "tar", strip_root=True, unless="p/main.py").root == ""


@pytest.mark.parametrize("target", ["../etc/passwd", "..", "x/../../etc/main.py"])
def test_it_stays_if_a_link_leads_through_it_from_above(box: Box, target: str) -> None:
    """``etc/l → ../etc/passwd`` is inside, and what is left without ``etc/`` is not."""
    link = special("etc/l", tarfile.SYMTYPE, linkname=target)
    data = tar(("etc/main.py", b""), link)
    assert box.unpack(data, "tar", strip_root=True).root == ""
    assert os.path.realpath(box.work / "etc" / "l").startswith(str(box.work))


# ── links and special files ──────────────────────────────────────────────────


def test_a_link_that_stays_inside_is_made(box: Box) -> None:
    links = [
        special("node_modules/.bin/tool", tarfile.SYMTYPE, linkname="../tool/cli.js"),
        special("d/loop", tarfile.SYMTYPE, linkname="."),
        special("dangling", tarfile.SYMTYPE, linkname="d/none"),
    ]
    report = box.unpack(tar(*links, ("node_modules/tool/cli.js", b"js"), ("d/x", b"")), "tar")
    assert (box.work / "node_modules/.bin/tool").read_bytes() == b"js"
    assert {file.path for file in report.files} == {"node_modules/tool/cli.js", "d/x"}


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "/", "../outside", "../../x", "a/../../outside", "", "..", "x" * 1025],
)
def test_a_link_that_leads_out_is_refused(box: Box, target: str) -> None:
    info = special("link", tarfile.SYMTYPE, linkname=target)
    with pytest.raises(UploadRefused, match="link|too large"):
        box.unpack(tar(info, format=tarfile.GNU_FORMAT), "tar")
    assert os.listdir(box.work) == []


def test_a_link_through_a_link_is_refused(box: Box) -> None:
    """Lexically inside, in truth outside: x/../../.. where x leads down."""
    members = [
        special("a/b/c/here", tarfile.SYMTYPE, linkname="."),
        special("out", tarfile.SYMTYPE, linkname="a/b/c/here/../../../../outside"),
    ]
    with pytest.raises(UploadRefused, match="through another link"):
        box.unpack(tar(*members), "tar")


@pytest.mark.parametrize("target", ["d", "/etc", "../.."])
def test_nothing_is_written_through_a_link(box: Box, target: str) -> None:
    link = special("l", tarfile.SYMTYPE, linkname=target)
    with pytest.raises(UploadRefused, match="is a link already"):
        box.unpack(tar(("d/y", b""), link, ("l/x", b"evil")), "tar")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "fifo"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"V", "type"),
        (b"\xff", "type"),
    ],
)
def test_what_is_no_file_directory_or_link_is_refused(box: Box, kind: bytes, why: str) -> None:
    for target in ("/etc/passwd", "ok", "../outside"):
        with pytest.raises(UploadRefused, match=why):
            box.unpack(tar(special("x", kind, linkname=target)), "tar")


def test_a_symbolic_link_in_a_zip_is_refused(box: Box) -> None:
    for mode in (0xA1FF, 0x11FF, 0x21FF, 0xC1FF):
        info = zipfile.ZipInfo("link")
        info.create_system = 3
        info.external_attr = mode << 16
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(info, "../outside")
        with pytest.raises(UploadRefused, match="symbolic link|no regular file"):
            box.unpack(out.getvalue(), "zip")


# ── names ────────────────────────────────────────────────────────────────────

BAD_NAMES = [
    "../x", "a/../../x", "/etc/cron.d/x", "//x", "C:\\x", "..\\x", "a/..", "..", "x\ny", "\x1b[31m",
    "n" * 256, "d/" * 2000 + "x", "d/" * 101 + "x",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:20])
def test_a_name_that_is_not_plainly_relative_is_refused(box: Box, name: str) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with pytest.raises(UploadRefused) as caught:
            box.unpack(tar((name, b"x"), format=form), "tar")
        assert str(caught.value).isprintable()
    with pytest.raises(UploadRefused):
        box.unpack(zipped((name, b"x")), "zip")
    assert box.files() == {}


@pytest.mark.parametrize("name", ["../d", "..", "/d", "a/../d", "../"])
def test_a_directory_that_is_not_plainly_relative_is_refused(box: Box, name: str) -> None:
    with pytest.raises(UploadRefused):
        box.unpack(tar((name, None)), "tar")


def test_a_name_that_is_not_utf8_is_refused(box: Box) -> None:
    data = tar(("x\udcff", b""), format=tarfile.GNU_FORMAT, errors="surrogateescape")
    with pytest.raises(UploadRefused, match="UTF-8") as caught:
        box.unpack(data, "tar")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "members",
    [
        [("a", b"1"), ("a", b"2")],
        [("a", b"1"), ("./a", b"2")],
        [("a", b"1"), ("a", None)],
        [("a", b"1"), ("a/b", b"2")],
        [("a/b", b"1"), ("a", b"2")],
        [("a", None), ("a", b"1")],
    ],
)
def test_a_name_twice_is_refused(box: Box, members: list[tuple[str, bytes | None]]) -> None:
    with pytest.raises(UploadRefused, match="twice|already"):
        box.unpack(tar(*members), "tar")


def test_a_part_beside_the_archive_may_not_hide_in_it(box: Box) -> None:
    with pytest.raises(UploadRefused, match="twice"):
        box.unpack_parts([("file", "a", b"1"), ("tar", "t.tar", tar(("a", b"2")))])


# ── bombs ────────────────────────────────────────────────────────────────────


def test_a_bomb_stops_before_a_byte_over_the_limit_is_written(box: Box) -> None:
    bomb = gzip.compress(tar(("zeros", bytes(5 << 20))))
    for data, kind in ((bomb, "tar"), (zipped(("zeros", bytes(5 << 20))), "zip")):
        with pytest.raises(UploadRefused, match="more than 1048576 bytes"):
            box.unpack(data, kind)
        assert sum(map(len, box.files().values())) <= 1 << 20
        box.clear()


def test_many_members_are_counted_with_their_directories(box: Box) -> None:
    for members in ([(f"f{n}", b"") for n in range(20)], [(f"d{n}/e/f", b"") for n in range(5)]):
        with pytest.raises(UploadRefused, match="more than 10 files"):
            box.unpack(tar(*members), "tar", max_files=10)
    with pytest.raises(UploadRefused, match="20 members"):
        box.unpack(zipped(*[(f"z{n}", b"") for n in range(20)]), "zip", max_files=10)


@pytest.mark.parametrize("size", [unpack.MAX_PADDING + 1, 40 << 20])
def test_zeros_behind_the_end_are_bounded(box: Box, size: int) -> None:
    with pytest.raises(UploadRefused, match="padding"):
        box.unpack(gzip.compress(tar(("x", b"")) + bytes(size)), "tar")


def test_gzip_in_gzip_and_other_compressions_are_refused(box: Box) -> None:
    with pytest.raises(UploadRefused, match="not a tar"):
        box.unpack(gzip.compress(gzip.compress(tar(("x", b"")))).ljust(2000, b"\0"), "tar")
    for start in (b"BZh91AY", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"):
        with pytest.raises(UploadRefused, match="compressed with"):
            box.unpack(start + bytes(600), "tar")


def test_a_thousand_empty_gzip_members_are_too_many(box: Box) -> None:
    with pytest.raises(UploadRefused, match="gzip members"):
        box.unpack(gzip.compress(b"") * 1001 + gzip.compress(tar(("x", b""))), "tar")


def raw_header(
    name: bytes = b"x",
    size: bytes = b"00000000000",
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\0",
) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:107] = b"0000644"
    block[124 : 124 + len(size)] = size
    block[136:147] = b"00000000000"
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[263:265] = b"00"
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize(
    "data",
    [
        raw_header(size=b"\x80" + b"\xff" * 11) + END,  # base-256, 8 EiB and more
        raw_header(size=b"\xff" * 12) + END,  # base-256, negative
        raw_header(size=b"-0000000001") + END,
        raw_header(size=b"0o000000001") + END,
        raw_header(size=b"1_000000000") + END,
        raw_header(size=b"0000000000x") + END,
        raw_header(size=b"77777777777") + END,
        raw_header(size=b"00000000001") + END[:512],  # no end
        raw_header(kind=b"5", size=b"00000000001") + END + END,  # a directory with content
        raw_header(name=b"") + END,
        raw_header(name=b"x/", kind=b"0") + END,
        raw_header(magic=b"\0\0\0\0\0\0") + END,
        raw_header()[:300],
        raw_header(),
        raw_header() + END[:512],
        raw_header() + END + b"x" * 512,
        raw_header() + END + raw_header(name=b"late") + END,
        raw_header(kind=b"L", size=b"10000000000") + END,  # a name of 1 GiB
        raw_header(kind=b"K", size=b"00000010000") + bytes(4096) + END,
        raw_header(kind=b"x", size=b"00010000000") + END,
        raw_header(kind=b"L", size=b"00000000004") + b"name".ljust(512, b"\0") + END,  # no member
        raw_header(kind=b"L", size=b"00000000000") * 2 + raw_header() + END,  # nested
        b"",
        b"x" * 100,
        b"x" * 2000,
    ],
)  # fmt: skip
def test_a_tar_that_lies_or_is_cut_off_is_refused(box: Box, data: bytes) -> None:
    for upload_data in (data, gzip.compress(data)):
        with pytest.raises(UploadRefused):
            box.unpack(upload_data, "tar")
        box.clear()


def test_a_wrong_checksum_is_refused(box: Box) -> None:
    data = bytearray(raw_header() + END)
    data[0:1] = b"y"
    with pytest.raises(UploadRefused, match="checksum"):
        box.unpack(bytes(data), "tar")


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    head = raw_header(b"pax", b"%011o" % len(records), kind)
    return head + records + bytes(-len(records) % 512) + raw_header() + END


@pytest.mark.parametrize(
    "records",
    [
        b"99 path=y\n", b"3 path=y\n", b"path=y\n", b"10 path=yy", b"9 pathyyy\n", b"-1 path=y\n",
        b"0 a=b\n", b"11 size=-1\n", b"13 size=0x10\n", b"26 size=99999999999999999999\n"[:26],
        b"16 path=../../x\n", b"10 path=\0\n", b"22 GNU.sparse.major=1\n",
    ],
)  # fmt: skip
def test_a_pax_header_that_lies_is_refused(box: Box, records: bytes) -> None:
    with pytest.raises(UploadRefused):
        box.unpack(pax(records), "tar")


def test_a_global_pax_header_may_comment_but_not_rename(box: Box) -> None:
    box.unpack(pax(b"15 comment=abc\n", b"g"), "tar")  # git archive writes one
    assert box.files() == {"x": b""}
    with pytest.raises(UploadRefused, match="global"):
        box.unpack(pax(b"10 path=y\n", b"g"), "tar")


def test_header_data_is_bounded_in_total(box: Box) -> None:
    big = b"200000 comment=".ljust(199_999, b"c") + b"\n"
    head = raw_header(b"pax", b"%011o" % len(big), b"x")
    member = head + big + bytes(-len(big) % 512)
    data = b"".join(member + raw_header(b"f%d" % n) for n in range(100)) + END
    with pytest.raises(UploadRefused, match="too large"):
        box.unpack(gzip.compress(data, 1), "tar")


def test_a_cut_off_or_damaged_gzip_is_refused(box: Box) -> None:
    whole = gzip.compress(tar(*PROJECT.items()))
    for data in (whole[:-1], whole[:-8], whole[:50], whole[:3], whole + b"x", whole + b"\x1f\x8b"):
        with pytest.raises(UploadRefused):
            box.unpack(data, "tar")
        box.clear()
    damaged = bytearray(whole)
    damaged[-5] ^= 1  # of the checksum
    with pytest.raises(UploadRefused):
        box.unpack(bytes(damaged), "tar")


# ── zips that lie ────────────────────────────────────────────────────────────


def zip_entry(
    name: bytes,
    packed: bytes,
    size: int,
    crc: int,
    *,
    flags: int = 0,
    method: int = 8,
    local_name: bytes | None = None,
    at: int = 0,
    claim: int | None = None,
) -> tuple[bytes, bytes]:
    """(local header with data, central header)."""  # fmt: skip
    local = local_name if local_name is not None else name
    claim = len(packed) if claim is None else claim
    head = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 20, flags, method, 0, 0, crc, claim, size, len(local), 0
    )
    central = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, method, 0, 0, crc, claim, size, len(name),
        0, 0, 0, 0, 0, at,
    )  # fmt: skip
    return head + local + packed, central + name


def zip_file(
    local: bytes,
    central: bytes,
    count: int = 1,
    *,
    before: bytes = b"",
    tail: bytes = b"",
    start: int | None = None,
    comment: bytes = b"",
) -> bytes:
    start = len(before) + len(local) if start is None else start
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(central), start, len(comment))
    return before + local + central + end + comment + tail


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


GOOD = b"hello" * 10
PACKED = deflated(GOOD)
CRC = zlib.crc32(GOOD)


def test_the_hand_made_zip_is_right(box: Box) -> None:
    box.unpack(zip_file(*zip_entry(b"x", PACKED, 50, CRC), comment=b"c" * 65_535), "zip")
    assert box.files() == {"x": GOOD}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC ^ 1)), "checksum"),
        (zip_file(*zip_entry(b"x", PACKED, 49, CRC)), "bytes that it claims"),
        (zip_file(*zip_entry(b"x", PACKED, 51, CRC)), "bytes that it claims"),
        (zip_file(*zip_entry(b"x", PACKED + b"junk", 50, CRC)), "after the end"),
        (zip_file(*zip_entry(b"x", PACKED[:-1], 50, CRC)), "cut off|damaged"),
        (zip_file(*zip_entry(b"x", b"\xff" * 9, 50, CRC)), "damaged"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC, flags=1)), "encrypted"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC, method=12)), "method 12"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC, local_name=b"y")), "two names"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC, claim=500)), "overlaps"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC, claim=2**32 - 1)), "overlaps"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC, at=3)), "headers|outside"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC, at=2**31)), "outside"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC), before=b"MZ junk"), "headers|outside"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC), tail=b"junk"), "after the end"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC), start=5), "not where"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC), count=2), "damaged"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC), count=0), "damaged"),
        (zip_file(*zip_entry(b"x", PACKED, 50, CRC), count=0xFFFF), "damaged"),
        (b"", "not a zip"),
        (b"PK\5\6", "not a zip"),
        (b"x" * 100_000, "not a zip"),
    ],
)
def test_a_zip_that_lies_is_refused(box: Box, data: bytes, why: str) -> None:
    with pytest.raises(UploadRefused, match=why):
        box.unpack(data, "zip")


def end64(count: int, size: int, start: int, place: int) -> bytes:
    return struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start
    ) + struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)


@pytest.mark.parametrize(("count", "size", "shift"), [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)])
def test_a_zip64_end_without_need_is_read_and_must_agree(
    box: Box, count: int, size: int, shift: int
) -> None:
    """What ``zip -`` and other streaming tools write."""
    local, central = zip_entry(b"x", PACKED, 50, CRC)
    start = len(local)
    place = start + len(central)
    short = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), start, 0)
    long = end64(count, len(central) + size, start, place + shift)
    data = local + central + long + short
    if (count, size, shift) == (1, 0, 0):
        box.unpack(data, "zip")
        assert box.files() == {"x": GOOD}
    else:
        with pytest.raises(UploadRefused, match="differ|damaged"):
            box.unpack(data, "zip")


def test_overlapping_members_are_refused(box: Box) -> None:
    """Fifield's better zip bomb: many names for the same bytes."""
    local, central = zip_entry(b"x", PACKED, 50, CRC)
    other = central[:-1] + b"y"
    with pytest.raises(UploadRefused, match="overlaps|two names"):
        box.unpack(zip_file(local, central + other, 2), "zip")
    inner, inner_central = zip_entry(b"b", PACKED, 50, CRC, at=0)
    outer, outer_central = zip_entry(b"a", inner, len(inner), zlib.crc32(inner), method=0)
    inner_central = inner_central[:42] + struct.pack("<L", 31) + inner_central[46:]
    with pytest.raises(UploadRefused, match="overlaps"):
        box.unpack(zip_file(outer, outer_central + inner_central, 2), "zip")


def test_zip64_sizes_of_2_to_the_64_are_refused(box: Box) -> None:
    local, central = zip_entry(b"x", PACKED, 2**32 - 1, CRC, claim=2**32 - 1)
    extra = struct.pack("<2H2Q", 1, 16, 2**64 - 1, 2**64 - 1)
    central = central[:30] + struct.pack("<H", len(extra)) + central[32:] + extra
    with pytest.raises(UploadRefused, match="overlaps|more than"):
        box.unpack(zip_file(local, central), "zip")


# ── the child's work ─────────────────────────────────────────────────────────


def resolved(
    box: Box, data: bytes, spec: JobSpec | None = None, given: tuple[str, ...] = ()
) -> Any:
    fd, parts = upload([("tar", "a.tar", data)])
    work_fd = os.open(box.work, os.O_RDONLY)
    try:
        return unpack.unpack_and_resolve(
            unpack.Upload(fd, parts, work_fd, 100, 1 << 20),
            spec or JobSpec(),
            given,
            PYTHON,
            ("default", "science"),
            Limits(),
            Limits(timeout_s=3600, memory_bytes=1 << 31),
        )
    finally:
        os.close(work_fd)
        os.close(fd)


def test_a_job_json_in_the_archive_is_merged(box: Box) -> None:
    data = tar(("p/job.json", b'{"args": ["a"], "timeout": 9}'), ("p/main.py", b""))
    spec = JobSpec(limits=Limits(timeout_s=5))
    found = resolved(box, data, spec, ("timeout",))
    assert (found.root, found.files) == ("p", 2)
    assert found.spec == JobSpec(
        entrypoint="main.py", interpreter="python3", args=("a",), limits=Limits(timeout_s=5)
    )


def test_a_job_json_may_send_the_job_to_another_environment(box: Box) -> None:
    found = resolved(box, tar(("job.json", b'{"environment": "science"}'), ("x", b"")))
    assert (found.spec.environment, found.spec.entrypoint) == ("science", None)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("job.json", b'{"timeout": 99999}'), ("main.py", b"")], "timeout: 99999 is over"),
        ([("job.json", b"{"), ("main.py", b"")], "job.json: is not valid JSON"),
        ([("job.json", b" " * 70_000), ("main.py", b"")], "job.json: it has 65537 bytes"),
        ([("job.json", b'{"environment": "no"}')], "environment: expected one of"),
        ([("a.py", b""), ("b.py", b"")], "entrypoint: none of"),
        ([("../x", b"")], "../x: its name"),
    ],
)
def test_a_refusal_is_a_value_in_words(box: Box, members: list[Member], why: str) -> None:
    found = resolved(box, tar(*members))
    assert isinstance(found, unpack.Refused)
    assert why in found.reason


def test_small_files_are_written_one_by_one(box: Box) -> None:
    work_fd = os.open(box.work, os.O_RDONLY)
    try:
        unpack.write_file(work_fd, "d/e/a.py", b"1")
        unpack.write_file(work_fd, "d/b", b"2", executable=True)
        unpack.write_file(work_fd, "d/e/c", b"")
        with pytest.raises(UploadRefused):
            unpack.write_file(work_fd, "../x", b"")
        with pytest.raises(FileExistsError):
            unpack.write_file(work_fd, "d/b", b"3")
        (box.work / "link").symlink_to("/tmp")  # noqa: S108 - must not be followed
        with pytest.raises((UploadRefused, OSError)):
            unpack.write_file(work_fd, "link/x", b"")
    finally:
        os.close(work_fd)
    assert box.files() == {"d/e/a.py": b"1", "d/b": b"2", "d/e/c": b""}
    box.check_outside()


def test_a_full_file_system_is_told_in_words(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UploadRefused, match="does not fit: No space"):
        tree = unpack.Tree(os.open(box.work, os.O_RDONLY), 5, 100)
        tree.file("x", 1, iter([b"x"]), executable=False)


# ── mutations ────────────────────────────────────────────────────────────────

SEEDS = [
    ("tar", tar(*list(PROJECT.items())[:3], special("l", tarfile.SYMTYPE, linkname="main.py"))),
    ("tar", gzip.compress(tar(*PROJECT.items(), format=tarfile.GNU_FORMAT), mtime=0)),
    ("tar", tar(("é" * 80, b"x"), format=tarfile.PAX_FORMAT)),
    ("zip", zipped(*list(PROJECT.items())[:3])),
    ("zip", zipped(("a", b"x" * 100), ("b/", b""), method=zipfile.ZIP_STORED)),
]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    kind, data = draw(st.sampled_from(SEEDS))
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(out) - 1))
        change = draw(st.sampled_from(["set", "cut", "double", "insert"]))
        if change == "set":
            out[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del out[at : at + draw(st.integers(1, 600))]
        elif change == "double":
            out[at:at] = out[at : at + 512]
        else:
            out[at:at] = draw(st.binary(max_size=20))
        if not out:
            break
    return kind, bytes(out)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    counter = iter(range(10**9))
    top = tmp_path_factory.mktemp("mutations")
    return (top / str(number) for number in counter)


def _fix_tar_checksums(data: bytes) -> bytes:
    """Without this every mutation of a header would die at its checksum."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 155] = b"%06o\0" % sum(out[at : at + 512])
    return bytes(out)


@settings(deadline=None)  # it writes files
@given(upload=mutated(), fix=st.booleans())
def test_a_mutated_archive_is_unpacked_inside_or_refused(
    places: Iterator[Path], upload: tuple[str, bytes], fix: bool
) -> None:
    kind, data = upload
    box = Box(next(places))
    try:
        box.unpack(
            _fix_tar_checksums(data) if fix else data,
            kind,
            max_files=20,
            max_bytes=200_000,
            strip_root=True,
        )
    except UploadRefused as error:
        assert str(error).isprintable()
    for path in box.work.rglob("*"):
        info = path.lstat()
        assert stat.S_IFMT(info.st_mode) in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}
        if path.is_symlink():
            assert path.resolve().is_relative_to(box.work.resolve())
    assert sum(map(len, box.files().values())) <= 200_000
