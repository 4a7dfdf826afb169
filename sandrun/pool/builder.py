"""A sandbox for installers: resolves and installs packages, then is gone.
Runs as: root of the host for its set-up; what it runs is an unprivileged uid.

Started by exec, one per build. It sees the host's ``/usr`` read-only, the index
directories that the operator named, and one writable directory at
:data:`WORK`. It has no network but a listener on its own loopback: the socket is
made in here and served by a proxy of ours outside, so the way out is one
descriptor, and there is no route to go around it.

Nothing of a package runs in here: wheels only, and byte-compiling happens in an
interpreter that does not import what it compiles.

::

    parent ──Build──▶ builder ──Listening + socket──▶ parent ── starts the proxy
                      builder ──Built──▶ parent
"""

from __future__ import annotations

import fcntl
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any, Final, NoReturn

import msgspec

from sandrun.channel import Channel, Closed
from sandrun.pool import mounts, workshop
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE, MS, PR
from sandrun.pool.spawner import build_root, move_in, private_namespaces, top_level
from sandrun.pool.zygote.group import GroupFiles

WORK: Final = workshop.INSIDE
_NEW_ROOT: Final = "/tmp"
_MIB: Final = 1024 * 1024
_TAIL_BYTES: Final = 32 * 1024  # of what the commands say
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


class Build(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What to run, and in which surroundings.

    ``commands`` run one after the other until one fails. ``read_only`` and
    ``writable`` are (path of the host, path inside).
    Descriptors: the control files of a job group named in ``control_files``.
    """

    commands: tuple[tuple[str, ...], ...]
    env: dict[str, str]
    uid: int
    program: bytes  # seccomp
    writable: tuple[tuple[str, str], ...]
    read_only: tuple[tuple[str, str], ...] = ()
    network: bool = False
    timeout_s: float = 600.0
    file_mb: int = 4096  # largest file; torch's largest library has 1 GB
    control_files: tuple[str, ...] = ()


class Listening(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Descriptor: the listener that is this sandbox's only way out."""


class Built(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``status``: of the last command, negative for a signal. ``text``: its last words.

    ``command``: the number of it, -1 if the sandbox itself could not be made.
    """

    status: int
    command: int
    text: str
    timed_out: bool = False


FromBuilder = Listening | Built


# ── set-up ───────────────────────────────────────────────────────────────────


def _entries(build: Build) -> tuple[mounts.Entry, ...]:
    entries = list(
        mounts.plan(
            top_level(),
            [name for name in mounts.ETC_COPIED if os.path.exists(f"/etc/{name}")],
            "",
            (),
        )
    )
    for source, path in build.read_only:
        if os.path.isdir(source):
            entries.append(mounts.Directory(path))
        else:
            entries += (mounts.Directory(os.path.dirname(path)), mounts.File(path, b""))
        entries.append(mounts.Bind(source, path))
    entries += (mounts.Directory(path) for _, path in build.writable)
    return tuple(entries)


def _loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _set_up(build: Build) -> None:
    private_namespaces()
    libc.unshare(CLONE.NEWNET)
    _loopback()
    writable = {path: libc.open_tree(source) for source, path in build.writable}
    build_root(_entries(build))
    for path, tree in writable.items():
        libc.move_mount(tree, _NEW_ROOT + path)
        os.close(tree)
    move_in()
    for _, path in build.writable:
        libc.mount("none", path, "none", MS.REMOUNT | MS.BIND | MS.NOSUID | MS.NODEV)
    libc.prctl(PR.SET_NO_NEW_PRIVS, 1)


def _listener() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


# ── running the commands ─────────────────────────────────────────────────────


def _confine(build: Build) -> None:
    """In the child, between fork and exec."""
    os.setsid()
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
    for name, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, build.file_mb * _MIB),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_NPROC, 256),
        (resource.RLIMIT_SIGPENDING, 128),
    ):
        resource.setrlimit(name, (value, value))
    os.setgroups([])
    os.setresgid(build.uid, build.uid, build.uid)
    os.setresuid(build.uid, build.uid, build.uid)  # from root: all capabilities go with it
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)  # a change of ids clears it
    os.umask(0o022)
    libc.load_filter(build.program)


def _run(build: Build, command: tuple[str, ...], deadline: float) -> tuple[int, bytes, bool]:
    """(status, last words, timed out)."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=build.env,
        cwd=WORK,
        preexec_fn=lambda: _confine(build),  # noqa: PLW1509 - we have one thread
    )
    assert process.stdout is not None
    tail = b""
    timed_out = False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                timed_out = True
                process.kill()
                break
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            tail = (tail + data)[-_TAIL_BYTES:]
    return process.wait(), tail, timed_out


def _work(channel: Channel[FromBuilder, Build], build: Build) -> None:
    _set_up(build)
    env = dict(build.env)
    if build.network:
        listener = _listener()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        env |= {"HTTPS_PROXY": url, "HTTP_PROXY": url, "ALL_PROXY": url}
        channel.send(Listening(), (listener.fileno(),))
        listener.close()  # from here on only the proxy accepts
    build = msgspec.structs.replace(build, env=env)
    deadline = time.monotonic() + build.timeout_s
    status, tail, timed_out, number = 0, b"", False, 0
    for number, command in enumerate(build.commands):  # noqa: B007 - the last one is told
        status, tail, timed_out = _run(build, command, deadline)
        if status:
            break
    text = tail.decode("utf-8", "replace")
    channel.send(Built(status=status, command=number, text=text, timed_out=timed_out))


def _first_process(channel: Channel[FromBuilder, Build], build: Build) -> NoReturn:
    """PID 1 of the sandbox: when it ends, everything in it does."""
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        _work(channel, build)
        code = 0
    except (OSError, subprocess.SubprocessError) as error:
        channel.send(Built(status=-1, command=-1, text=f"build sandbox: {error}"))
    finally:
        os._exit(code)


def main() -> int:
    """One build: its order and its answer go over the socket named on the command line."""
    libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
    libc.set_name("sandrun-builder")
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    received: Any = Build
    channel: Channel[FromBuilder, Build] = Channel(sock, received)
    try:
        build, fds = channel.receive()
    except Closed:
        return 1
    if build.control_files:
        GroupFiles(build.control_files, fds).attach_self()
    libc.unshare(CLONE.NEWPID)
    pid = os.fork()
    if pid == 0:
        _first_process(channel, build)
    channel.close()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
