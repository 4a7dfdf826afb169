"""A supervisor and its zygotes without a kernel: the other end of http's sockets.

:class:`FakePool` runs in a thread of its own, speaks ``messages.py`` over real
SEQPACKET sockets, and gives every zygote a real log and outputs descriptor. What a
"job" does is a :class:`Script`, chosen by the text of its first file, so that a
test says what happens in the job itself. Nothing here sleeps: a script that must
wait waits for an event which the test sets, or for the next message.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from sandrun import journal
from sandrun.channel import Channel, Closed, close_all, pair
from sandrun.job import (
    ExitReason,
    JobSpec,
    OutputFile,
    OutputIndex,
    SkippedOutput,
    Usage,
    Verdict,
    encode_index,
)
from sandrun.logs import LogWriter
from sandrun.messages import (
    Acknowledge,
    Cancel,
    Dispatch,
    Drain,
    Elsewhere,
    EnvironmentInfo,
    Finished,
    FromZygote,
    Install,
    Installed,
    InstallFailed,
    InterpreterInfo,
    Keep,
    Kill,
    Lease,
    LogGrew,
    Package,
    PoolState,
    Ready,
    Resize,
    Resized,
    Restored,
    Result,
    Started,
    ToHttp,
    ToPool,
    ToZygote,
    UploadPart,
    Want,
    Welcome,
    Withdraw,
)

LOG_BYTES = 1024 * 1024


def reader_of(fd: int) -> int:
    """A description of its own, read only, as the supervisor makes it."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class FakeZygote:
    """One sandbox. ``run`` is called with it once a Dispatch is there."""

    def __init__(self, pool: FakePool, number: int, environment: str, warm: str) -> None:
        self.pool = pool
        self.id = number
        self.environment = environment
        self.warm = warm
        ours, theirs = pair()
        self.channel: Channel[FromZygote, ToZygote] = Channel(ours, ToZygote)
        self.theirs = theirs
        self.log_fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.log_fd, LOG_BYTES + journal.JOURNAL_BYTES)
        self.outputs_fd = os.memfd_create("outputs", os.MFD_CLOEXEC)
        self.log = LogWriter(self.log_fd, LOG_BYTES)
        self.dispatch: Dispatch | None = None
        self.upload: bytes = b""
        self.parts: list[UploadPart] = []
        self.t = 0.0
        self.cancelled = threading.Event()
        self.storage_bytes: int | None = None
        self.closed = False

    # ── what a script may do ────────────────────────────────────────────────

    @property
    def spec(self) -> JobSpec:
        assert self.dispatch is not None
        return self.dispatch.spec

    @property
    def files(self) -> dict[str, bytes]:
        """All plain files and archives of the submission, by path."""
        assert self.dispatch is not None
        found = {file.path: file.data for file in self.dispatch.files}
        for part in self.parts:
            found[part.path] = self.upload[part.offset : part.offset + part.size]
        return found

    def start(self, **changes: object) -> None:
        interpreter = self.spec.interpreter or "python3"
        complete = msgspec.structs.replace(
            self.spec,
            interpreter=interpreter,
            entrypoint=self.spec.entrypoint or next(iter(self.files), "main.py"),
            **changes,
        )
        assert self.dispatch is not None
        self.dispatch = msgspec.structs.replace(self.dispatch, spec=complete)
        self.send(Started(spec=complete))

    def write(self, data: bytes, stream: int = 1) -> None:
        self.t += 0.001
        self.log.write(stream, data, self.t)
        self.send(LogGrew(end=self.log.end))

    def end(
        self,
        reason: ExitReason = ExitReason.EXITED,
        outputs: dict[str, bytes] | None = None,
        *,
        exit_code: int | None = 0,
        cpu_seconds: float = 0.01,
        skipped: tuple[SkippedOutput, ...] = (),
        evidence: tuple[str, ...] = (),
        remedy: str | None = None,
    ) -> None:
        entries, offset = [], 0
        for path, data in (outputs or {}).items():
            os.pwrite(self.outputs_fd, data, offset)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(
                OutputFile(path=path, size_bytes=len(data), sha256=digest, offset=offset)
            )
            offset += len(data)
        index = encode_index(OutputIndex(files=tuple(entries), skipped=skipped))
        os.pwrite(self.outputs_fd, index, offset)
        self.send(
            Result(
                verdict=Verdict(
                    exit_reason=reason, exit_code=exit_code, evidence=evidence, remedy=remedy
                ),
                usage=Usage(
                    cpu_seconds=cpu_seconds,
                    memory_peak_bytes=10 * 1024 * 1024,
                    wall_time_s=0.02,
                    processes_peak=1,
                    output_bytes=offset,
                ),
                spec=self.spec,
                log_end=self.log.end,
                index_offset=offset,
                index_size=len(index),
            )
        )

    def send(self, message: FromZygote) -> None:
        try:
            self.channel.send(message)
        except Closed:
            pass

    def die(self) -> None:
        """As if PID 1 had been killed."""
        self.pool.drop(self)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.channel.close()
            os.close(self.log_fd)
            os.close(self.outputs_fd)


Script = Callable[[FakeZygote], None]


def hello(zygote: FakeZygote) -> None:
    """The default: says hello, leaves one file, exits with 0."""
    zygote.start()
    zygote.write(b"hello\n")
    zygote.end(outputs={"result.txt": b"42\n"})


@dataclass
class FakePool:
    """The supervisor's end of ``control``. ``scripts`` maps file texts to scripts."""

    control: socket.socket
    ready: int = 4
    environments: tuple[str, ...] = ("default",)
    scripts: dict[bytes, Script] = field(default_factory=dict)
    script: Script = hello
    capacity: int = 64
    warm: str = "python3"
    refill: bool = True
    install: Callable[[Install], Installed | InstallFailed] = lambda wish: Installed(
        request=wish.request, environment=wish.environment
    )
    received: list[ToPool] = field(default_factory=list)
    dispatched: list[FakeZygote] = field(default_factory=list)
    zygotes: dict[int, FakeZygote] = field(default_factory=dict)
    drained: threading.Event = field(default_factory=threading.Event)
    http_ready: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.channel: Channel[ToHttp, ToPool] = Channel(self.control, ToPool)
        self.control.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe()
        self._calls: list[Callable[[], None]] = []
        self._count = 0
        self._stopping = False
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._on_wake)
        self._selector.register(self.control, selectors.EVENT_READ, self._on_control)
        self._thread = threading.Thread(target=self._run, name="fake pool", daemon=True)

    def start(self) -> FakePool:
        self._thread.start()
        self.call(self._welcome)
        return self

    def stop(self) -> None:
        self.call(self._stop)
        self._thread.join(10)
        for zygote in list(self.zygotes.values()):
            zygote.close()
        self.channel.close()
        self._selector.close()
        os.close(self._wake_r)
        wake, self._wake_w = self._wake_w, -1
        os.close(wake)

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the pool's thread. A job's thread may outlive its test: then not."""
        if self._wake_w >= 0:
            self._calls.append(function)
            os.write(self._wake_w, b".")

    def wait(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Until ``condition`` holds; looked at after every message."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "the pool did not see it"

    def drain(self, grace_s: float = 0.0) -> None:
        self.call(lambda: self.channel.send(Drain(grace_s=grace_s)))

    def lease(self, environment: str = "default", warm: str | None = None) -> None:
        self.call(lambda: self._lease(environment, warm or self.warm))

    # ── in the thread ───────────────────────────────────────────────────────

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                key.data()
            with self.changed:
                self.changed.notify_all()

    def _stop(self) -> None:
        self._stopping = True

    def _on_wake(self) -> None:
        os.read(self._wake_r, 4096)
        while self._calls:
            self._calls.pop(0)()

    def _welcome(self) -> None:
        self.channel.send(
            Welcome(
                environments=tuple(
                    EnvironmentInfo(
                        name=name,
                        interpreter="python3",
                        version="3.11.7",
                        packages=(Package(name="numpy", version="2.0"),),
                    )
                    for name in self.environments
                ),
                interpreters=(
                    InterpreterInfo(
                        name="python3", path="/usr/bin/python3", extensions=(".py",), mode="door"
                    ),
                    InterpreterInfo(name="node", path="/usr/bin/node", extensions=(".js",)),
                    InterpreterInfo(name="bash", path="/bin/bash", extensions=(".bash",)),
                    InterpreterInfo(name="sh", path="/bin/sh", extensions=(".sh",)),
                ),
                layers={"pid_namespace": "on", "seccomp": "on"},
                privacy={"swap": "off"},
            )
        )
        self.channel.send(Restored(max_jobs=100_000))
        self._state()
        for name in self.environments:
            for _ in range(self.ready):
                self._lease(name, self.warm)

    def _state(self) -> None:
        self.channel.send(PoolState(warm=self.ready, booting=0, busy=0, capacity=self.capacity))

    def _lease(self, environment: str, warm: str) -> None:
        self._count += 1
        zygote = FakeZygote(self, self._count, environment, warm)
        self.zygotes[zygote.id] = zygote
        log, outputs = reader_of(zygote.log_fd), reader_of(zygote.outputs_fd)
        self.channel.send(
            Lease(zygote=zygote.id, environment=environment, warm=warm),
            (zygote.theirs.fileno(), log, outputs),
        )
        zygote.theirs.close()
        os.close(log)
        os.close(outputs)
        self._selector.register(
            zygote.channel.socket, selectors.EVENT_READ, lambda: self._on_zygote(zygote)
        )

    def _on_control(self) -> None:
        try:
            message, fds = self.channel.receive()
            close_all(fds)
        except BlockingIOError:
            return
        except Closed:
            self._selector.unregister(self.control)
            self.drained.set()
            return
        self.received.append(message)
        match message:
            case Ready():
                self.http_ready.set()
            case Keep(zygote=int(number)):
                if self.refill:
                    self._lease(self.zygotes[number].environment, self.zygotes[number].warm)
            case Finished(zygote=number) | Kill(zygote=number):
                self.drop(self.zygotes[number])
            case Resize(zygote=number, storage_bytes=size):
                self.zygotes[number].storage_bytes = size
                self.channel.send(Resized(zygote=number))
            case Install():
                self.channel.send(self.install(message))
            case Want():
                pass

    def drop(self, zygote: FakeZygote) -> None:
        if not zygote.closed:
            self._selector.unregister(zygote.channel.socket)
            zygote.close()

    def withdraw(self, number: int) -> None:
        def act() -> None:
            self.drop(self.zygotes[number])
            self.channel.send(Withdraw(zygote=number))

        self.call(act)

    def _on_zygote(self, zygote: FakeZygote) -> None:
        if zygote.closed:
            return  # by a message of http that came in the same turn
        try:
            message, fds = zygote.channel.receive()
        except BlockingIOError:
            return
        except Closed:
            self.drop(zygote)
            return
        match message:
            case Dispatch():
                zygote.dispatch = message
                self._read_upload(zygote, message, fds)
                self.dispatched.append(zygote)
                files = zygote.files
                script = next(
                    (self.scripts[text] for text in files.values() if text in self.scripts),
                    self.script,
                )
                script(zygote)
            case Cancel():
                zygote.cancelled.set()
                if zygote.spec.env.get("IGNORE_CANCEL") is None:
                    zygote.end(ExitReason.CANCELLED, exit_code=None)
            case Acknowledge():
                pass

    def _read_upload(self, zygote: FakeZygote, message: Dispatch, fds: list[int]) -> None:
        if not message.index_size:
            return
        (fd,) = fds
        size = os.fstat(fd).st_size
        zygote.upload = os.pread(fd, size, 0)
        raw = os.pread(fd, message.index_size, message.index_offset)
        zygote.parts = msgspec.msgpack.decode(raw, type=list[UploadPart])
        os.close(fd)


def elsewhere(environment: str) -> Script:
    """A job whose job.json asks for another environment."""

    def script(zygote: FakeZygote) -> None:
        if zygote.environment == environment:
            hello(zygote)
        else:
            spec = msgspec.structs.replace(zygote.spec, environment=environment)
            zygote.send(Elsewhere(spec=spec))

    return script
