"""Python children for compiled PID 1s: what parses archives and collects outputs. Runs
as: root of the spawner's user namespace (a fork of the spawner) at first, a job's uid,
limits and filter at the end. I/O.

A compiled PID 1 has no Python to fork from, so it asks for a process in its own
namespaces, over a socket that it shares with nobody, and may do so once per operation. The request is three bytes and descriptors; what there is to do comes
later, over the socket that the child has, when it is confined like any process of
the job. So we read nothing that a sandbox wrote but a letter and two counts, and do
nothing for it but a fork: with the namespaces that the descriptor of a process
names, and it can name only those of its own sandbox.

Three processes, as for a template: this one moves its *children's* pid namespace
there (a process never changes its own, and there is no way back, so the spawner
cannot do it); the one in the middle enters the other namespaces; the last is an orphan in
the sandbox's pid namespace, so its PID 1 reaps it.

It outlives its spawner for as long as there are sandboxes of that one: without it they
could not end their jobs. If it dies itself, its spawner has the sockets and starts another;
if that is dead too, the supervisor has them and starts one (``successor.py``).

``U``  unpack the upload and find out what to run; attached to the job's group
``C``  collect the outputs; every process of the job is dead by then
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Annotated, Any, Final, NoReturn

import msgspec

from sandrun import globs
from sandrun.channel import close_all
from sandrun.job import JobSpec, encode_index
from sandrun.messages import Dispatch
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE, PR, SECBITS_LOCKED
from sandrun.pool.zygote import boot, child, collect, resolve
from sandrun.pool.zygote.serve import INDEX_ROOM, MAX_OUTPUT_FILES

NAME: Final = "sandrun-assist"
NEWS: Final = b"+"  # what brings the sockets of new sandboxes, at most MAX_FDS of them
NAMESPACES: Final = (  # of a sandbox; and its cgroup namespace is made by PID 1
    CLONE.NEWUSER | CLONE.NEWPID | CLONE.NEWNS | CLONE.NEWIPC | CLONE.NEWUTS | CLONE.NEWNET
)
UNPACK: Final = ord("U")
COLLECT: Final = ord("C")
MAX_FDS: Final = 24
HAND_OVER_MS: Final = 5  # between looks at who our parent is
REQUEST_MAX_BYTES: Final = 256 * 1024
SNAPSHOT_MAX_BYTES: Final = INDEX_ROOM


class _Group:
    """Where a child attaches itself."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        self._fds = fds

    def attach_self(self) -> None:
        for fd in self._fds:
            os.pwrite(fd, b"0", 0)


class _Request:
    """Three bytes and descriptors, in the order that serve.c has. Owns them."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        if len(data) != 3 or data[0] not in (UNPACK, COLLECT):
            raise ValueError("not a request")
        self.operation, walled, attached = data
        rest = iter(fds)
        self.pidfd, *self.stdio, self.go, self.work, self.outputs = (next(rest) for _ in range(7))
        self.upload = next(rest) if self.operation == UNPACK else -1
        self.ruleset = next(rest) if walled else -1
        self.attach = tuple(rest)
        if len(self.attach) != attached:
            raise ValueError("descriptors are missing")


Placed = list[tuple[bytes, int, int, int]]  # path, size, mtime in ns, inode


class _Collect(msgspec.Struct, frozen=True):
    """What PID 1 wants collected."""

    spec: JobSpec
    placed: Placed = []
    # Bytes of it, behind the room for outputs.
    snapshot: Annotated[int, msgspec.Meta(ge=0, le=SNAPSHOT_MAX_BYTES)] = 0


_decode_dispatch: Final = msgspec.msgpack.Decoder(Dispatch).decode
_decode_collect: Final = msgspec.msgpack.Decoder(_Collect).decode
_decode_placed: Final = msgspec.msgpack.Decoder(Placed).decode


def run(
    server: socket.socket, plan: boot.Plan, ends: list[socket.socket], parents: Parents
) -> None:
    """Serve the requests of all PID 1s of a spawner; returns when nobody is left.
    ``server`` tells of new ones; ``ends`` are the sockets of those that there were before us.
    """
    libc.set_name(NAME)
    clients = {end.fileno(): Client(end) for end in ends}
    serve(server, plan, clients, parents)


def drop_news(server: socket.socket) -> None:
    """What an assistant that has ended did not hear: its successor is told of all."""
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while fds := socket.recv_fds(server, 1, MAX_FDS)[1]:
            close_all(fds)
    server.setblocking(True)


class Parents(msgspec.Struct, frozen=True):
    """The pids of our spawner, 0 if that was dead before us, and of the supervisor, whose
    child we are then.
    """

    spawner: int
    supervisor: int

    def is_supervisor(self) -> bool:
        """Whether we have been handed on; not before may its end be ours, because a
        dying parent's files are closed first. Without a supervisor we end at once.
        """
        parent = os.getppid()
        if parent == self.spawner:
            return False
        libc.prctl(PR.SET_PDEATHSIG, signal.SIGKILL)
        if parent != self.supervisor or os.getppid() != parent:
            os._exit(0)
        return True


def serve(
    server: socket.socket, plan: boot.Plan, clients: dict[int, Client], parents: Parents
) -> None:
    """Hear of PID 1s from ``server`` and answer each; after its end, those that are left."""
    poll = select.poll()
    for fd in (server.fileno(), *clients):
        poll.register(fd, select.POLLIN)
    spawned, handed_on = True, False  # we hear of more; we have got another parent
    while spawned or clients:
        handed_on = handed_on or (not spawned and parents.is_supervisor())
        for fd, _ in poll.poll(None if spawned or handed_on else HAND_OVER_MS):
            if fd != server.fileno():
                if not clients[fd].answer(plan):
                    poll.unregister(fd)
                    clients.pop(fd).socket.close()
                continue
            # What is inheritable leaks into nothing: we execute nothing.
            data, fds, *_ = socket.recv_fds(server, 1, MAX_FDS)
            if not data:
                poll.unregister(server)
                spawned = False
            for ours in fds:
                clients[ours] = Client(socket.socket(fileno=ours))
                poll.register(ours, select.POLLIN)


class Client:
    """One PID 1. It may have been taken over, and then asks whatever it likes."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self._left = {UNPACK, COLLECT}  # a job needs each once

    def answer(self, plan: boot.Plan) -> bool:
        """Answer one request, if there is one. False: there will be no more."""
        try:
            data, fds, flags, _ = socket.recv_fds(self.socket, 16, MAX_FDS)
        except BlockingIOError:
            return True
        except OSError:  # reset: it died with something unread
            return False
        if not data or data[0] not in self._left or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(fds)
            return False
        self._left.discard(data[0])
        _answer(data, fds, plan)
        return bool(self._left)


def _answer(data: bytes, fds: list[int], plan: boot.Plan) -> None:
    """By a process, or not at all: its PID 1 sees the end of a socket."""
    try:
        try:
            request = _Request(data, fds)
        except (ValueError, StopIteration, RuntimeError):
            return
        if plan.landlock_abi and request.ruleset < 0:
            return  # a wall that is there is not left out
        try:
            libc.setns(request.pidfd, CLONE.NEWPID)
            pid = os.fork()
        except OSError as error:  # it has ended meanwhile, or there is no room
            _tell(request.go, error)
            return
        if pid == 0:
            _enter(request, plan)
        os.waitpid(pid, 0)
    finally:
        close_all(fds)


def _enter(request: _Request, plan: boot.Plan) -> NoReturn:
    try:
        libc.setns(request.pidfd, NAMESPACES & ~CLONE.NEWPID)
        if os.fork() == 0:
            _become(request, plan)
    except OSError as error:
        _tell(request.go, error)
    finally:
        os._exit(0)


def _tell(go: int, error: OSError) -> None:
    with contextlib.suppress(OSError):
        os.set_blocking(go, False)  # it may be anything, a full pipe for example
        os.write(go, msgspec.json.encode(("assist", error.errno or 0, str(error))))


def _become(request: _Request, plan: boot.Plan) -> NoReturn:
    kept = [request.work, request.outputs]
    if request.operation == UNPACK:
        kept.append(request.upload)
    confinement = child.Confinement(
        _Group(request.attach),
        plan.programs["default"],
        plan.default_limits,
        plan.max_limits,
        request.ruleset,
        tuple(kept),
    )

    def bounding_set(_: child.Confinement) -> None:
        libc.drop_bounding_set(frozenset(), plan.last_capability)
        libc.prctl(PR.SET_SECUREBITS, SECBITS_LOCKED)

    work = _unpack if request.operation == UNPACK else _collect
    stdin, stdout, stderr = request.stdio
    child.become(
        (bounding_set, *STEPS),
        confinement,
        _report(work, plan),
        socket.socket(fileno=request.go),
        (stdin, stdout, stderr),
    )


def _dumpable(_: child.Confinement) -> None:
    # No parent-death signal: our parent is about to end. When PID 1 ends, so do we.
    libc.prctl(PR.SET_DUMPABLE, 1)  # the change of uid cleared it


STEPS: Final[tuple[child.Step, ...]] = tuple(
    _dumpable if step is child._die_with_parent else step  # noqa: SLF001 - the one that differs
    for step in child.PARKED_STEPS
)


def _report(
    work: Callable[[boot.Plan, bytes], Any], plan: boot.Plan
) -> Callable[[socket.socket], None]:
    """Say ready, hear what is to be done, write the answer to stdout as msgpack."""

    def then(go: socket.socket) -> None:
        go.send(child.READY + b"%d" % os.getpid())
        request = go.recv(REQUEST_MAX_BYTES)
        data = msgspec.msgpack.encode(work(plan, request))
        while data:
            data = data[os.write(1, data) :]

    return then


def _unpack(plan: boot.Plan, request: bytes) -> dict[str, object]:
    work, outputs, upload = (child.KEPT_FD + n for n in range(3))
    answer = resolve.resolve(plan, _decode_dispatch(request), upload, work)
    placed = [(os.fsencode(path), *facts) for path, facts in collect.snapshot(work).items()]
    data = msgspec.msgpack.encode(placed)
    os.pwrite(outputs, data, plan.max_limits.output_bytes)
    return {"answer": answer, "snapshot": len(data)}


def _collect(plan: boot.Plan, request: bytes) -> dict[str, object]:
    work, outputs = child.KEPT_FD, child.KEPT_FD + 1
    order = _decode_collect(request)
    placed = order.placed
    if order.snapshot:
        placed = _decode_placed(os.pread(outputs, order.snapshot, plan.max_limits.output_bytes))
    try:
        index, offset = collect.collect(
            work,
            globs.compile(order.spec.outputs),
            {os.fsdecode(path): tuple(facts) for path, *facts in placed},  # type: ignore[misc]
            outputs,
            max_bytes=order.spec.limits.output_bytes,
            max_files=MAX_OUTPUT_FILES,
        )
    except (OSError, ValueError) as error:
        return {"fault": str(error), "over_limit": False}
    data = encode_index(index) if index.files or index.skipped else b""
    if data:
        os.pwrite(outputs, data, offset)
    return {
        "fault": "",
        "over_limit": collect.is_over_limit(index),
        "index_offset": offset,
        "index_size": len(data),
        "output_bytes": sum(file.size_bytes for file in index.files),
    }
