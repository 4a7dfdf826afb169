"""What http gives up at its start: each of its two walls alone, and both together.

Every attempt is made by a child that has called :func:`sandrun.confine.confine` the
way http does. Without a filter it is Landlock that must refuse; what Landlock does
not know (programs, new sockets) the filter must. What http lives by still works.
"""

from __future__ import annotations

import array
import ctypes
import errno
import json
import os
import platform
import signal
import socket
from pathlib import Path

import pytest

from sandrun import confine, errors
from sandrun.pool import seccomp
from sandrun.pool.linux import libc
from sandrun.pool.syscall_numbers import NUMBERS

ABI = libc.landlock_abi()
needs_landlock = pytest.mark.skipif(ABI < 1, reason="the kernel has no Landlock")


def in_child(program, attempts, before=lambda: None):
    """{name: "ok", an error's name or the signal that ended it} of each attempt."""
    found = {}
    for name, act in attempts.items():
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                before()
                confine.confine(program)
                try:
                    act()
                    text = "ok"
                except OSError as error:
                    text = errno.errorcode[error.errno]
                os.write(w, text.encode())
            finally:
                os._exit(0)
        os.close(w)
        with os.fdopen(r) as pipe:
            text = pipe.read()
        status = os.waitpid(pid, 0)[1]
        found[name] = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else text
    return found


def raw(name, *arguments):
    number = NUMBERS[name][platform.machine() == "aarch64"]
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.connect(address)


@pytest.fixture
def outside(tmp_path):
    """Things of others that a process may want: a file, listeners."""
    (tmp_path / "file").write_text("secret")
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0sandrun-test-{os.getpid()}")
    abstract.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    with abstract, tcp:
        yield tmp_path, abstract.getsockname(), tcp.getsockname()


def file_attempts(directory):
    file = directory / "file"
    return {
        "read": lambda: os.open(file, os.O_RDONLY),
        "write": lambda: os.open(file, os.O_WRONLY),
        "truncate": lambda: os.truncate(file, 0),
        "create": lambda: os.open(directory / "new", os.O_CREAT | os.O_WRONLY),
        "list": lambda: os.listdir(directory),
        "mkdir": lambda: os.mkdir(directory / "d"),
        "unlink": lambda: os.unlink(file),
        "symlink": lambda: os.symlink("x", directory / "l"),
        "rename": lambda: os.rename(file, directory / "other"),
        "device": lambda: os.open("/dev/null", os.O_RDWR),
        "proc": lambda: os.open("/proc/self/mem", os.O_RDWR),
        "exec": lambda: os.execv("/bin/true", ["true"]),
    }


@needs_landlock
def test_landlock_alone_closes_every_path(outside):
    directory, _, _ = outside
    attempts = file_attempts(directory)
    if ABI < 3:
        del attempts["truncate"]
    assert in_child(None, attempts) == dict.fromkeys(attempts, "EACCES")
    assert sorted(path.name for path in directory.iterdir()) == ["file"]
    assert (directory / "file").read_text() == "secret"


@needs_landlock
def test_landlock_alone_keeps_to_itself(outside):
    _, abstract, tcp = outside
    attempts = {}
    if ABI >= 4:
        attempts |= {
            "connect": lambda: connect(socket.AF_INET, tcp),
            "bind": lambda: socket.socket().bind(("127.0.0.1", 0)),
        }
    if ABI >= 6:
        attempts |= {
            "abstract": lambda: connect(socket.AF_UNIX, abstract),
            "kill": lambda: os.kill(os.getppid(), 0),
        }
    if ABI >= 4:
        wanted = {"connect": "EACCES", "bind": "EACCES", "abstract": "EPERM", "kill": "EPERM"}
        assert in_child(None, attempts) == {name: wanted[name] for name in attempts}
    # The control: without it these succeed, so the test tests something.
    connect(socket.AF_INET, tcp)
    connect(socket.AF_UNIX, abstract)
    os.kill(os.getpid(), 0)


@pytest.mark.parametrize("landlock", [True, False])
def test_the_filter_alone_starts_nothing_and_opens_nothing(outside, monkeypatch, landlock):
    directory, abstract, tcp = outside
    if not landlock:
        monkeypatch.setattr(confine, "_close_the_paths", lambda: None)
    attempts = file_attempts(directory) | {
        "execveat": lambda: raw("execveat", 1, b"", None, None, 0x1000),
        "fork": os.fork,
        "vfork": lambda: raw("clone", 0x4111, 0, 0, 0, 0),
        "ptrace": lambda: raw("ptrace", 16, os.getppid(), 0, 0),
        "socket": socket.socket,
        "unix": lambda: connect(socket.AF_UNIX, abstract),
        "datagrams": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "kill": lambda: os.kill(os.getppid(), 0),
        "io_uring": lambda: raw("io_uring_setup", 1, ctypes.create_string_buffer(120)),
        "code": lambda: raw("mmap", 0, 4096, 7, 0x22, -1, 0),
    }
    found = in_child(seccomp.http_program(), attempts)
    killed = {name for name, how in found.items() if how == "SIGSYS"}
    assert killed == {"exec", "execveat", "ptrace"}
    assert {found[name] for name in file_attempts(directory)} <= {"EACCES", "EPERM", "SIGSYS"}
    assert found["io_uring"] == "ENOSYS"
    assert set(found.values()) <= {"EACCES", "EPERM", "ENOSYS", "SIGSYS"}, found
    # Sockets that are open cannot be pointed elsewhere either.
    made = socket.socket()
    late = {
        "connect": lambda: made.connect(tcp),
        "bind": lambda: made.bind(("127.0.0.1", 0)),
        "fastopen": lambda: made.sendto(b"x", 0x20000000, tcp),
    }
    with made:
        assert in_child(seccomp.http_program(), late) == dict.fromkeys(late, "EPERM")


def test_what_http_lives_by_still_works(outside):
    """Accepting, memory files, sendfile, descriptors by SCM_RIGHTS, its own pairs."""
    directory, _, _ = outside
    listener = socket.create_server(("127.0.0.1", 0))
    given, taken = socket.socketpair()
    file = os.open(directory / "file", os.O_RDONLY)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            confine.confine(seccomp.http_program())
            client, _ = listener.accept()
            memory = os.memfd_create("upload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, 4096)
            os.pwrite(memory, b"content", 0)
            os.sendfile(client.fileno(), memory, 0, 7)
            client.shutdown(socket.SHUT_WR)
            taken.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
            socket.socketpair()
            report = {"given": os.read(file, 99).decode(), "status": status_of("self")}
        except BaseException as error:
            report = {"error": repr(error)}
        finally:
            os.write(w, json.dumps(report).encode())
            os._exit(0)
    os.close(w)
    with listener, given, taken, socket.create_connection(listener.getsockname()) as client:
        assert client.recv(99) == b"content"
        assert client.recv(99) == b""
        _, fds, _, _ = socket.recv_fds(given, 1, 4)
        assert os.pread(fds[0], 7, 0) == b"content"
        os.close(fds[0])
        with os.fdopen(r) as pipe:
            assert json.load(pipe) == {"given": "secret", "status": "closed"}
    os.waitpid(pid, 0)
    os.close(file)


def status_of(pid):
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except PermissionError:
        return "closed"


def test_a_landlock_that_fails_ends_the_start(monkeypatch):
    """Only a kernel without it is excused."""
    calls = []

    def answer(number, *arguments):
        calls.append(number)
        ctypes.set_errno(errno.EPERM)
        return -1 if len(calls) >= fails_at else 7 if number == 444 and arguments[2] else 99

    closed = []
    monkeypatch.setattr(confine, "_syscall", answer)
    monkeypatch.setattr(confine.os, "close", closed.append)
    for fails_at in (1, 2, 3):
        calls.clear()
        with pytest.raises(errors.SetupError, match="landlock"):
            confine._close_the_paths()
    assert closed == [99]

    def without(*_):
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(confine, "_syscall", without)
    confine._close_the_paths()


@pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")
def test_the_http_that_serves_is_confined(server):
    import servers

    pid = servers.http_of(server.process.pid)
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    assert {fields[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert "0" not in fields["Uid"].split()
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0  # not dumpable: its /proc is root's
