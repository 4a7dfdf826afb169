"""Outputs: what matches and changed is taken, whatever else the job left is survived."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun import globs
from sandrun.job import OutputFile, OutputIndex, SkippedOutput, decode_index, encode_index
from sandrun.pool.zygote import collect

LIMIT = 1 << 20


class Work:
    """A work directory, an outputs descriptor, and what is in them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.fd = os.open(path, os.O_RDONLY)
        self.outputs = os.memfd_create("outputs")
        self.before: collect.Snapshot = {}
        self.end = 0

    def write(self, name: str | bytes, content: bytes = b"x") -> Path:
        path = self.path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def collect(self, *patterns: str, max_bytes: int = LIMIT, max_files: int = 1000) -> OutputIndex:
        fds = len(os.listdir("/proc/self/fd"))
        index, self.end = collect.collect(
            self.fd,
            globs.compile(patterns or ("*",)),
            self.before,
            self.outputs,
            max_bytes=max_bytes,
            max_files=max_files,
        )
        assert len(os.listdir("/proc/self/fd")) == fds
        assert sum(file.size_bytes for file in index.files) == self.end <= max_bytes
        return index

    def content(self, file: OutputFile) -> bytes:
        return os.pread(self.outputs, file.size_bytes, file.offset)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    place = Work(tmp_path / "work")
    yield place
    os.close(place.fd)
    os.close(place.outputs)


def names(index: OutputIndex) -> list[str]:
    return [file.path for file in index.files]


def skipped(index: OutputIndex) -> dict[str, str]:
    return {one.path: one.reason for one in index.skipped}


def test_content_checksum_and_facts_are_exact(work: Work) -> None:
    contents = {"a.bin": os.urandom(700_000), "d/e/b.txt": b"text\n", "empty": b""}
    for name, content in contents.items():
        work.write(name, content)
    (work.path / "d/e/b.txt").chmod(0o755)
    os.utime(work.path / "empty", (5, 1_600_000_000))
    index = work.collect()
    assert names(index) == sorted(contents)
    for file in index.files:
        assert work.content(file) == contents[file.path]
        assert file.sha256 == hashlib.sha256(contents[file.path]).hexdigest()
    facts = {file.path: (file.executable, file.mtime_s) for file in index.files}
    assert facts["d/e/b.txt"][0]
    assert facts["empty"] == (False, 1_600_000_000)


def test_only_what_matches_is_taken(work: Work) -> None:
    for name in ("a.png", "b.txt", "plots/c.png", "cache/d.png"):
        work.write(name)
    assert names(work.collect("*.png", "!cache/")) == ["a.png", "plots/c.png"]


def test_if_nothing_matches_nothing_is_written(work: Work) -> None:
    work.write("a.txt")
    assert work.collect("*.png") == OutputIndex()
    assert os.fstat(work.outputs).st_size == 0


def test_inputs_that_were_left_alone_are_no_outputs(work: Work) -> None:
    for name in ("same", "changed", "replaced", "touched", "d/same"):
        os.utime(work.write(name, b"before"), ns=(0, 1_000_000_000))
    (work.path / "link").symlink_to("same")
    work.before = collect.snapshot(work.fd)
    assert work.collect() == OutputIndex()
    (work.path / "changed").write_bytes(b"after!")  # of the same size
    other = work.write("new", b"before")
    os.utime(other, ns=(0, 1_000_000_000))
    other.rename(work.path / "replaced")  # of the same size and time
    os.utime(work.path / "touched")
    index = work.collect()
    assert names(index) == ["changed", "replaced", "touched"]
    assert index.skipped == ()


def test_what_is_no_regular_file_is_told_and_never_opened(work: Work) -> None:
    secret = work.path.parent / "secret"
    secret.write_text("secret")
    (work.path / "to-file").symlink_to(secret)
    (work.path / "to-dir").symlink_to(work.path.parent)
    (work.path / "to-proc").symlink_to("/proc/self/environ")
    (work.path / "loop").symlink_to(".")
    os.mkfifo(work.path / "fifo")  # an open without O_NONBLOCK would wait for ever
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(work.path / "socket"))
        index = work.collect()
    assert names(index) == []
    assert skipped(index) == {
        "to-file": "a symbolic link",
        "to-dir": "a symbolic link",
        "to-proc": "a symbolic link",
        "loop": "a symbolic link",
        "fifo": "a fifo",
        "socket": "a socket",
    }


def test_what_does_not_fit_is_skipped_and_the_rest_is_taken(work: Work) -> None:
    work.write("big", b"b" * 900)
    work.write("small", b"s" * 200)
    with work.write("sparse").open("wb") as file:
        file.truncate(1 << 40)
    index = work.collect(max_bytes=1000)
    assert len(index.files) == 1
    assert set(skipped(index).values()) == {collect.OVER_LIMIT}
    assert len(index.skipped) == 2


def test_the_number_of_files_is_bounded(work: Work) -> None:
    for number in range(12):
        work.write(f"f{number}")
    index = work.collect(max_files=10)
    assert len(index.files) == 10
    assert set(skipped(index).values()) == {"more than 10 output files"}


def test_the_number_of_entries_is_bounded(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MAX_ENTRIES", 20)
    for number in range(30):
        work.write(f"d{number}/f")
    index = work.collect()
    assert len(index.files) <= 20
    assert "more than 20" in skipped(index)["."]


def test_the_list_of_what_was_skipped_is_bounded(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "MAX_SKIPPED", 5)
    for number in range(9):
        (work.path / f"l{number}").symlink_to("x")
    assert len(work.collect().skipped) == 5


def test_names_that_are_no_text_survive_the_way_to_http(work: Work) -> None:
    raw = [b"\xff\xfe", b"new\nline", b"esc\x1b[2J", "größe".encode(), b"-rf", b"a\\b", b" "]
    for name in raw:
        work.write(name, name)
    index = work.collect()
    assert sorted(os.fsencode(file.path) for file in index.files) == sorted(raw)
    assert decode_index(encode_index(index)) == index


def test_locked_files_and_directories_are_taken_all_the_same(work: Work) -> None:
    """As root this proves little; tests/sandbox runs it as the job's uid."""
    work.write("closed", b"1").chmod(0)
    work.write("d/x", b"2")
    work.write("e/x", b"3")
    (work.path / "d").chmod(0)
    (work.path / "e").chmod(0o400)
    (work.path).chmod(0)
    index = work.collect()
    assert [work.content(file) for file in index.files] == [b"1", b"2", b"3"]
    assert [file.executable for file in index.files] == [False] * 3


def _dig(top: Path, levels: int, name: str = "d") -> None:
    """mkdir and chdir, as a job would: the path becomes longer than PATH_MAX."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(top)
        for _ in range(levels):
            os.mkdir(name)
            os.chdir(name)
        Path("bottom").write_bytes(b"deep")
    finally:
        os.fchdir(here)
        os.close(here)


def _undig(top: Path, levels: int, name: str = "d") -> None:
    """What rmtree cannot do."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.unlink("bottom", dir_fd=fd)
    for _ in range(levels):
        above = os.open("..", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        os.rmdir(name, dir_fd=above)
        fd = above
    os.close(fd)


@pytest.mark.parametrize(
    ("levels", "name", "reason"),
    [(3000, "d", "deeper than 100 directories"), (30, "n" * 250, "longer than 4096 bytes")],
)
def test_a_tree_deeper_than_a_path_can_say_is_cut_with_a_reason(
    work: Work, levels: int, name: str, reason: str
) -> None:
    work.write("top")
    _dig(work.path, levels, name)
    try:
        index = work.collect()
        assert names(index) == ["top"]
        [why] = skipped(index).values()
        assert reason in why
        assert collect.snapshot(work.fd).keys() == {"top"}
    finally:
        _undig(work.path, levels, name)


def test_a_tree_of_99_levels_is_taken(work: Work) -> None:
    _dig(work.path, 99)
    assert names(work.collect()) == ["d/" * 99 + "bottom"]


def test_a_full_outputs_descriptor_is_told(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: object, _at: int) -> int:
        raise OSError(28, "No space left on device")

    work.write("a")
    monkeypatch.setattr(os, "pwrite", full)
    assert skipped(work.collect()) == {"a": "No space left on device"}


def test_the_directory_can_be_walked_again_and_again(work: Work) -> None:
    work.write("a")
    for _ in range(3):
        assert set(collect.snapshot(work.fd)) == {"a"}


_PATHS = st.binary(min_size=1, max_size=12).map(os.fsdecode)


@given(
    files=st.lists(_PATHS, max_size=5),
    reasons=st.lists(st.tuples(_PATHS, st.text(max_size=9)), max_size=3),
)
def test_any_index_is_read_as_it_was_written(
    files: list[str], reasons: list[tuple[str, str]]
) -> None:
    index = OutputIndex(
        files=tuple(
            OutputFile(
                path=path, size_bytes=n, sha256="0" * 64, offset=n, executable=n > 1, mtime_s=-n
            )
            for n, path in enumerate(files)
        ),
        skipped=tuple(SkippedOutput(path=path, reason=reason) for path, reason in reasons),
    )
    assert decode_index(encode_index(index)) == index
