"""Warm interpreters, their failures: nothing runs that is not wholly ready."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import harness

from sandrun.pool.zygote import warm_python

PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module")
def bench() -> Iterator[harness.Bench]:
    with harness.bench(PYTHON) as bench:
        yield bench


@pytest.fixture(scope="module")
def template(bench: harness.Bench) -> Iterator[harness.Template]:
    with harness.subreaper():
        template = harness.Template(bench)
        yield template
        template.close()


@contextlib.contextmanager
def started(
    bench: harness.Bench, mode: str, preload: str = "", stdio: int = subprocess.PIPE
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {**bench.warm_environment(mode, theirs.fileno())}
    env["SANDRUN_WARM"] += preload
    process = subprocess.Popen(
        [PYTHON, "main.py"],
        cwd=bench.work,
        env=env,
        stdin=stdio,
        stdout=stdio,
        stderr=stdio,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    with ours, process:
        yield process, ours


def test_a_preload_that_fails_is_reported_and_nothing_runs(bench: harness.Bench) -> None:
    with started(bench, "door", "os,does_not_exist") as (process, ours):
        step, _, text = json.loads(ours.recv(4096))
    assert (step, process.returncode) == ("preload", 1)
    assert "does_not_exist" in text


def test_an_interpreter_that_nobody_needs_ends_quietly(bench: harness.Bench) -> None:
    with started(bench, "door") as (process, ours):
        assert ours.recv(4096) == b"+"
        ours.close()
        assert process.communicate() == (b"", b"")
    assert process.returncode == 0


def test_a_template_wants_pipes_since_its_streams_remember(bench: harness.Bench) -> None:
    with started(bench, "template", stdio=subprocess.DEVNULL) as (_, ours):
        assert json.loads(ours.recv(4096))[0] == "stdio"


def test_a_failed_step_is_named_and_the_template_lives(template: harness.Template) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(AssertionError, match="control_group.*No space left"):
        template.fork({"cgroup": fd})
    os.close(fd)
    with pytest.raises(AssertionError, match="place.*No such file"):
        template.fork(cwd="/does/not/exist")
    template.fork().collect(b"")


def test_a_fork_that_nobody_needs_ends_quietly(template: harness.Template) -> None:
    assert template.fork().collect(b"") == (b"", b"", 0)


def test_what_a_start_has_already_read_makes_a_cold_start(bench: harness.Bench) -> None:
    for env in (
        {"PYTHONHASHSEED": "0"},
        {"PYTHONOPTIMIZE": "2"},
        {"HOME": "/tmp"},
        {"LC_ALL": "C"},
    ):
        source = b"import sys, locale, site; print(hash('x') if sys.flags.hash_randomization == 0 "
        source += b"else 0, sys.flags, locale.setlocale(0), site.USER_BASE, __debug__)"
        case = harness.Case(source, env=env)
        assert bench.door(case) == bench.bare(case)


def test_a_script_that_is_no_plain_file_starts_cold(bench: harness.Bench, tmp_path: Path) -> None:
    source = b"import sys; print(__file__, sys.argv, sys.path[0], __name__, __package__)"
    (tmp_path / "__main__.py").write_bytes(source)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.write(tmp_path / "__main__.py", "__main__.py")
    zipped = (tmp_path / "app.zip").read_bytes()
    compiled = subprocess.run(
        [PYTHON, "-c", "import py_compile; print(py_compile.compile('__main__.py'))"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()
    pyc = (tmp_path / compiled).read_bytes()
    for case in (
        harness.Case(zipped),
        harness.Case(b"#!/usr/bin/env python3\n" + zipped, "app"),
        harness.Case(pyc, "job.pyc"),
        harness.Case(pyc, "job"),
    ):
        assert bench.door(case) == bench.bare(case)


def test_a_script_in_a_directory_or_behind_a_link(bench: harness.Bench) -> None:
    source = b"import sys, os; print(__file__, sys.path[0], sys.argv)"
    case = harness.Case(source, "deep/er/script.py", args=("x",))
    assert bench.door(case) == bench.bare(case)


# ── what may be left unfreed ─────────────────────────────────────────────────


class Plain:
    """Nothing happens when it goes."""


class WithFinaliser:
    """Something does."""

    def __del__(self) -> None:
        """Visible to somebody."""


def generator():  # noqa: ANN201
    yield 1


@pytest.mark.parametrize(
    "one", [Plain(), [], {}, Plain, test_a_fork_that_nobody_needs_ends_quietly]
)
def test_inert_objects_may_be_left(one: object) -> None:
    assert warm_python._is_inert([one])


def test_objects_that_would_act_may_not() -> None:
    plain = Plain()
    with open(os.devnull, "w", encoding="utf-8") as file, socket.socket() as sock:
        for one in (
            WithFinaliser(),
            generator(),
            file,
            file.buffer,
            sock,
            weakref.ref(plain, lambda _: None),
        ):
            assert not warm_python._is_inert([one]), one
