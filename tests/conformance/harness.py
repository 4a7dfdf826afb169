"""Runs one script bare, at the door and as a fork, and says what each did. I/O.

A corpus file is the script itself. Comment lines of these forms set the scene
(``\\n`` and the like are escapes)::

    # args: one "two words"        # env: NAME=value          # stdin: text
    # file: pkg/mod.py=content     # only: main.py

All runs use the same directory, empty but for the script, so that whatever
contains a path is comparable byte for byte.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import re
import selectors
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

WARM_PYTHON: Final = Path(__file__).parents[2] / "sandrun/pool/zygote/warm_python.py"
WARM_NODE: Final = WARM_PYTHON.with_name("warm_node.js")
CORPUS: Final = Path(__file__).parent / "corpus"
TIMEOUT_S: Final = 60.0
PR_SET_CHILD_SUBREAPER: Final = 36
DEFAULT_ENV: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
}


@dataclass(frozen=True)
class Case:
    """One script and its scene."""

    source: bytes
    name: str = "main.py"
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    only: str = ""

    def environment(self) -> dict[str, str]:
        """The complete environment of the job."""
        return {**DEFAULT_ENV, **self.env}


@dataclass(frozen=True)
class Outcome:
    """What anybody outside could see of a run."""

    stdout: bytes
    stderr: bytes
    status: int  # as waitpid gives it
    files: dict[str, bytes]


def load(path: Path, name: str = "main.py") -> Case:
    """One file of the corpus, to be run under ``name``."""
    source = path.read_bytes()
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    stdin, only = b"", ""
    files: dict[str, bytes] = {}
    for key, text in re.findall(
        rb"^(?:#|//) (args|env|stdin|file|only): (.*?)\r?$", source, re.MULTILINE
    ):
        if key == b"args":
            args = tuple(shlex.split(text.decode()))
        elif key == b"env":
            variable, _, value = text.decode().partition("=")
            env[variable] = value
        elif key == b"stdin":
            stdin = _unescape(text)
        elif key == b"file":
            file, _, content = text.partition(b"=")
            files[file.decode()] = _unescape(content)
        else:
            only = text.decode()
    return Case(source, name, args, env, stdin, files, only)


def _unescape(text: bytes) -> bytes:
    return text.decode("unicode_escape").encode("latin-1") if b"\\" in text else text


class Bench:
    """A work directory and an installed warm interpreter for one Python."""

    def __init__(self, python: str, root: Path, preload: str = "", extra_path: str = "") -> None:
        self.python = python
        self.preload = preload
        self.extra_path = extra_path  # stays on PYTHONPATH
        self.work = root / "work"
        self.runtime = root / "runtime"
        self.work.mkdir()
        self.runtime.mkdir()
        if "node" not in python:
            subprocess.run([python, str(WARM_PYTHON), "install", str(self.runtime)], check=True)

    # ── the three ways ───────────────────────────────────────────────────────

    def bare(self, case: Case) -> Outcome:
        """``python3 main.py``."""
        self.lay_out(case)
        command = [self.python, case.name, *case.args]
        with self._started(command, case.environment()) as process:
            return self._finish(process, case.stdin)

    def door(self, case: Case) -> Outcome:
        """An interpreter that waits at its own door."""
        self.lay_out(Case(b""))
        (self.work / "main.py").unlink()  # it comes with the job
        with self.parked() as (process, go):
            self.lay_out(case)
            go.send(order(case, self.work))
            return self._finish(process, case.stdin)

    def fork(self, case: Case, template: Template) -> Outcome:
        """A fork of a template."""
        self.lay_out(case)
        job = template.fork()
        job.go.send(order(case, self.work))
        return self._observe(*job.collect(case.stdin))

    def node_door(self, case: Case) -> Outcome:
        """A node that waits (this bench's ``python`` is then node)."""
        self.lay_out(Case(b""))
        (self.work / "main.py").unlink()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [self.python, "-r", str(WARM_NODE), "door", str(theirs.fileno())]
        with ours, self._started(command, DEFAULT_ENV, theirs) as process:
            theirs.close()
            ready = ours.recv(4096)
            assert ready == b"+", (ready, process.communicate())
            self.lay_out(case)
            ours.send(order(case, self.work))
            return self._finish(process, case.stdin)

    # ── parts ────────────────────────────────────────────────────────────────

    def warm_environment(self, mode: str, fd: int) -> dict[str, str]:
        """What makes a started interpreter wait."""
        warm = f"{mode} {fd} {self.preload}"
        path = f"{self.runtime}:{self.extra_path}".rstrip(":")
        return {**DEFAULT_ENV, "PYTHONPATH": path, "SANDRUN_WARM": warm}

    @contextlib.contextmanager
    def parked(self) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
        """A ready interpreter and its go socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = self.warm_environment("door", theirs.fileno())
        with ours, self._started([self.python, "main.py"], env, theirs) as process:
            theirs.close()
            ready = ours.recv(4096)
            assert ready == b"+", (ready, process.communicate())
            yield process, ours

    def _started(
        self, command: list[str], env: dict[str, str], *passed: socket.socket
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=self.work,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[one.fileno() for one in passed],
        )

    def _finish(self, process: subprocess.Popen[bytes], stdin: bytes) -> Outcome:
        stdout, stderr = process.communicate(stdin, TIMEOUT_S)
        code = process.returncode
        return self._observe(stdout, stderr, -code if code < 0 else code << 8)

    def _observe(self, stdout: bytes, stderr: bytes, status: int) -> Outcome:
        files = {
            str(path.relative_to(self.work)): b"" if path.suffix == ".pyc" else path.read_bytes()
            for path in sorted(self.work.rglob("*"))
            if path.is_file()
        }
        # A core dump depends on the host; the signal does not.
        return Outcome(normal(stdout), normal(stderr), status & ~0x80, files)

    def lay_out(self, case: Case) -> None:
        """Empty the work directory (the directory itself stays) and fill it."""
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for name, content in {case.name: case.source, **case.files}.items():
            target = self.work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def order(case: Case, work: Path) -> bytes:
    """The datagram that lets a parked interpreter go."""
    return json.dumps(
        {
            "script": case.name,
            "args": case.args,
            "env": case.environment(),
            "cwd": str(work),
        },
        ensure_ascii=False,
    ).encode()


def normal(text: bytes) -> bytes:
    """Without what differs from one bare run to the next: addresses, thread ids, temporary names."""
    text = re.sub(rb"0x[0-9a-f]{6,}", b"0xADDRESS", text)
    text = re.sub(rb"(Thread\w*\()(.*?)\d{6,}", rb"\1\2IDENT", text)
    return re.sub(rb"pymp-\w+", b"pymp-NAME", text)


# ── the template and its forks ───────────────────────────────────────────────


class Template:
    """A running template, without namespaces: its forks become our children."""

    def __init__(self, bench: Bench) -> None:
        self.work = bench.work
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = bench.warm_environment("template", theirs.fileno())
        self.process = bench._started([bench.python, "main.py"], env, theirs)  # noqa: SLF001
        theirs.close()
        self.socket = ours
        ready = ours.recv(4096)
        assert ready == b"+", (ready, self.process.communicate())

    def fork(
        self, given_fds: dict[str, int] | None = None, *, confine: bool = False, **settings: object
    ) -> Job:
        """A parked fork. Raises AssertionError with the report of a failed step."""
        go, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes = [os.pipe() for _ in range(3)]
        (stdin, in_w), (out_r, stdout), (err_r, stderr) = pipes
        named = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "go": theirs.fileno()}
        named |= given_fds or {}
        request = {"op": "fork", "fds": list(named), "cwd": str(self.work), "confine": confine}
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", named.values()))]
        self.socket.sendmsg([json.dumps({**request, **settings}).encode()], rights)
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        theirs.close()
        reply = self.socket.recv(4096)
        ready = go.recv(4096)
        if (reply, ready[:1]) != (b"+", b"+"):
            go.close()
            for fd in (in_w, out_r, err_r):
                os.close(fd)
            raise AssertionError(reply, ready)
        return Job(int(ready[1:]), go, in_w, out_r, err_r, "pidfd" not in named)

    def close(self) -> None:
        """End of the socket: the template exits."""
        self.socket.close()
        self.process.communicate()


@dataclass
class Job:
    """A fork. It is our child, since we are the subreaper and its parent is gone."""

    pid: int
    go: socket.socket
    stdin: int
    stdout: int
    stderr: int
    is_ours: bool = True

    def collect(self, stdin: bytes) -> tuple[bytes, bytes, int]:
        """Feed it, read it, reap it (if it is our child and not that of some PID 1)."""
        self.go.close()
        with contextlib.suppress(BrokenPipeError):
            os.write(self.stdin, stdin)  # test inputs fit into a pipe
        os.close(self.stdin)
        read: dict[int, bytes] = {self.stdout: b"", self.stderr: b""}
        deadline = time.monotonic() + TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            for fd in read:
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(deadline - time.monotonic()):
                    data = os.read(key.fd, 65536)
                    read[key.fd] += data
                    if not data:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                assert time.monotonic() < deadline, "the job hangs"
        status = os.waitpid(self.pid, 0)[1] if self.is_ours else 0
        return read[self.stdout], read[self.stderr], status


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """While inside, orphans below us become our children."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@contextlib.contextmanager
def bench(python: str, preload: str = "", extra_path: str = "") -> Iterator[Bench]:
    """A :class:`Bench` in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="sandrun-warm-") as root:
        os.chmod(root, 0o755)  # a job of another uid runs there
        yield Bench(python, Path(root), preload, extra_path)
