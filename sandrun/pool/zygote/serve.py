"""One job, from Dispatch to Acknowledge. Runs as: PID 1 of the sandbox, confined.

Events only: one ``poll`` over the http socket, the job's pipes, SIGCHLD and the
memory event, with a deadline computed from the limits. CPU time is no event; but
a job on *n* CPUs that has *b* seconds of its budget left cannot spend them in
less than *b/n*, so that is when we look again.

PID 1 is trusted to tell the truth about the job, so it opens nothing that could
block or run code: archives are parsed by a child under the job's uid and limits
(:mod:`unpack`), and outputs are taken only when every other process is dead
(:mod:`collect`).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from sandrun import globs, journal
from sandrun.channel import Channel, Closed, close_all, decoder
from sandrun.errors import RequestError, SetupError
from sandrun.job import (
    UNCHARGED_MOST,
    ExitReason,
    JobSpec,
    OutputIndex,
    Usage,
    Verdict,
    encode_index,
)
from sandrun.logs import MAX_DATA, STDERR, STDOUT, SYSTEM, LogWriter
from sandrun.messages import (
    Acknowledge,
    Cancel,
    Dispatch,
    Elsewhere,
    FromZygote,
    LogGrew,
    Result,
    Spent,
    Started,
    ToZygote,
)
from sandrun.pool import mounts
from sandrun.pool.zygote import child, collect, resolve, sockets, unpack
from sandrun.verdict import Facts

if TYPE_CHECKING:
    from sandrun.pool.zygote.boot import Boot

UNPACK_TIMEOUT_S: Final = 60.0  # 100 MB of gzip take about a second
SPENT_EVERY_S: Final = 1.0  # how often http hears what a running job has used: it charges that
REPORT_MAX_BYTES: Final = 1024 * 1024  # of the unpacking child: a spec, so 128 KiB at most
CPU_CHECK_MIN_S: Final = 0.01  # how late a CPU limit may bite, per CPU
LOOK_S: Final = 0.25  # how often connections are counted, or, if many,
LOOK_AGAIN_S: Final = 0.1
LOOK_COST: Final = 20  # but no more than a twentieth of the time is spent on it
OOM_COUNTED_S: Final = 0.02  # v1 tells of an OOM kill before it counts it
# Output of a job that writes much is told of, and read, in steps: single bytes would otherwise
# keep http busy, which serves everybody, for four times as long as it runs itself.
STEP_S: Final = 0.02
CALM_READS: Final = 128  # in a second: so much is told of at once
READS_PER_STEP: Final = 128  # of up to 64 KiB: 400 MB/s, and a flood of bytes is 6400/s
INDEX_ROOM: Final = 16 * 1024 * 1024  # behind the outputs, for their index
MAX_OUTPUT_FILES: Final = 10_000


decoder(ToZygote)  # made before the fork, found by the Channel after it


class Stop(Exception):
    """http is gone: so are we, and with us everything inside."""


class Over(Exception):
    """The job ended before its entrypoint ran."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.exit_reason)
        self.verdict = verdict


class Outcome(msgspec.Struct, kw_only=True):
    """How one process of the job ended."""

    exit_code: int | None = None
    signal: int | None = None
    cancelled: bool = False
    timed_out: bool = False
    cpu_exceeded: bool = False
    uncharged_bytes: int = 0  # if they ended it
    wall_time_s: float = 0.0

    @property
    def clean(self) -> bool:
        """It exited with 0 by itself."""
        return self.exit_code == 0 and not (self.cancelled or self.timed_out or self.cpu_exceeded)


def run(b: Boot) -> int:
    """Serve one job. Returns PID 1's exit status: 0, or 3 if the parked process died."""
    init = Init(b)
    try:
        return init.serve()
    except (Stop, Closed):
        return 0
    except Exception as error:  # noqa: BLE001 - ours, whatever it is: the client hears that much
        init.give_up(error)
        return 1


class Init:
    """PID 1. Born confined, with its job process parked."""

    def __init__(self, b: Boot) -> None:
        self.plan = b.plan
        self.order = b.order
        self.group = b.group
        self.work_fd = b.work_fd
        self.outputs_fd = b.outputs_fd
        self.confinement = b.confinement
        self.parked: child.Process | None = b.parked
        self.parked_tasks = b.group.processes_now()
        self.log_fd = b.log_fd
        self.log = LogWriter(b.log_fd, b.plan.max_limits.log_bytes)
        b.http.setblocking(False)
        self.http: Channel[FromZygote, ToZygote] = Channel(b.http, ToZygote)
        self.spec = JobSpec()
        self.cancelled = False
        self.started = time.monotonic()
        self.nudged = 0
        self.step_end = 0.0
        self.reads = 0
        self.second_end = 0.0
        self.second_reads = 0
        self.was_calm = True
        self.rests = False  # poll does not watch the streams
        self.wants_room = False  # poll says when http's queue has some
        self.cpu_before = 0.0
        self.storage_bytes = 0
        self._statuses: dict[int, int] = {}
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        self.poll = select.poll()
        self.poll.register(b.http, select.POLLIN)
        self.poll.register(self._wake_r, select.POLLIN)

    # ── the job's life ───────────────────────────────────────────────────────

    def serve(self) -> int:
        """Wait for the one Dispatch, run it, report, wait to be dismissed."""
        dispatch, fds = self._await_dispatch()
        if dispatch is None:
            return 3
        self.started = time.monotonic()
        self.cpu_before = self.group.cpu_seconds()
        spec = self.spec = dispatch.spec
        outcome = Outcome()
        before = collect.Snapshot()
        over: Verdict | None = None
        phase: Literal["upload", "build", "entrypoint"] = "upload"
        try:
            self._check_limits(spec)
            spec = self._place_files(dispatch, fds)
            close_all(fds)
            self._set_limits(spec)
            before = collect.snapshot(self.work_fd)
            if spec.build:
                phase = "build"
                outcome = self._build(spec)
            if phase != "build" or outcome.clean:
                phase = "entrypoint"
                outcome = self._entrypoint(spec)
        except Over as error:
            over = error.verdict
        except _Elsewhere as error:
            self._send(Elsewhere(spec=error.spec, requirements=error.requirements))
            self._await_dismissal()
            return 0
        except SetupError as error:
            over = Verdict(exit_reason=ExitReason.SERVER_FAULT, evidence=(str(error),))
        self._kill_everything()
        full = self._storage_state()
        usage, start = self._usage(outcome), time.process_time()
        # If it was over before it ran, what lies there is what came.
        index, index_offset = (OutputIndex(), 0) if over else self._collect(spec, before)
        taken = sum(file.size_bytes for file in index.files)
        # What it took, the job has made as long as it is.
        cpu_seconds = usage.cpu_seconds + time.process_time() - start
        usage = msgspec.structs.replace(usage, output_bytes=taken, cpu_seconds=cpu_seconds)
        facts = Facts(
            exit_code=outcome.exit_code,
            signal=outcome.signal,
            cancelled=outcome.cancelled,
            timed_out=outcome.timed_out,
            cpu_exceeded=outcome.cpu_exceeded,
            oom_kills=self.group.oom_kills(),
            uncharged_bytes=outcome.uncharged_bytes,
            fork_refusals=self.group.fork_refusals(),
            storage_full=full[0],
            inodes_full=full[1],
            log_dropped_bytes=self.log.dropped,
            outputs_over_limit=collect.is_over_limit(index),
            fail_on_output_limit=spec.fail_on_output_limit,
            phase=phase,
        )
        data = encode_index(index) if index.files or index.skipped else b""
        if data:
            os.pwrite(self.outputs_fd, data, index_offset)
        self._send(
            Result(
                verdict=over,
                facts=facts,
                usage=usage,
                spec=spec,
                log_end=self.log.end,
                index_offset=index_offset,
                index_size=len(data),
            )
        )
        self._await_dismissal()
        return 0

    def give_up(self, error: Exception) -> None:
        """A fault of ours in the middle of a job: nothing of it runs on."""
        self._kill_everything()
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        where = frame.tb_frame.f_code.co_name if frame else "?"
        verdict = Verdict(
            exit_reason=ExitReason.SERVER_FAULT,
            evidence=(f"{type(error).__name__} in {where}: {error}"[:500],),
        )
        self._send(Result(verdict=verdict, usage=Usage(), spec=self.spec, log_end=self.log.end))
        self._await_dismissal()

    def _await_dispatch(self) -> tuple[Dispatch | None, list[int]]:
        while True:
            for fd, _ in self.poll.poll():
                if fd == self._wake_r:
                    self._reap()
                    if self.parked and self.parked.pid in self._statuses:
                        return None, []
                    continue
                message, fds = self.http.receive()
                if isinstance(message, Dispatch):
                    return message, fds
                close_all(fds)
                if isinstance(message, Cancel):
                    self.cancelled = True
                else:
                    raise Stop

    def _await_dismissal(self) -> None:
        while True:
            for fd, _ in self.poll.poll():
                if fd == self._wake_r:
                    self._reap()
                    continue
                message, fds = self.http.receive()
                close_all(fds)
                if isinstance(message, Acknowledge):
                    return

    # ── before the entrypoint ────────────────────────────────────────────────

    def _check_limits(self, spec: JobSpec) -> None:
        """http may have been taken over: it gets no more than the operator's maxima."""
        for name in spec.limits.__struct_fields__:
            if not 0 < getattr(spec.limits, name) <= getattr(self.plan.max_limits, name):
                raise SetupError("limits", 0, f"{name} is over the maximum")
        if spec.environment != self.plan.environment:
            raise SetupError("environment", 0, f"this is {self.plan.environment!r}")

    def _place_files(self, dispatch: Dispatch, fds: list[int]) -> JobSpec:
        """Put the upload into /work; returns the complete spec."""
        try:
            for file in dispatch.files:
                unpack.write_file(self.work_fd, file.path, file.data, executable=file.executable)
        except unpack.UploadRefused as error:
            raise Over(_upload_error(str(error))) from error
        except OSError as error:
            raise Over(_upload_error(f"{file.path}: {error.strerror}")) from error
        if not fds:
            self._need_installed(dispatch.spec, _requirements_of(dispatch))
            return dispatch.spec
        spec, requirements = self._unpack(dispatch, fds[0])
        self._check_limits(msgspec.structs.replace(spec, environment=self.plan.environment))
        if (
            spec.environment != self.plan.environment
            or spec.limits.storage_bytes != dispatch.spec.limits.storage_bytes
        ):
            raise _Elsewhere(spec, requirements)
        self._need_installed(spec, requirements)
        return spec

    def _need_installed(self, spec: JobSpec, requirements: str) -> None:
        """Installed requirements make an environment of their own; this may be a named one."""
        if requirements and self.plan.environment in self.plan.known_environments:
            raise _Elsewhere(spec, requirements)

    def _unpack(self, dispatch: Dispatch, upload_fd: int) -> tuple[JobSpec, str]:
        """Let a child under the job's uid, limits and filter open the archives."""
        report = bytearray()
        process = child.fork_confined(
            child.LATE_STEPS,
            self._late_confinement("default", (upload_fd, self.work_fd)),
            child.report_through_stdout(
                lambda: resolve.resolve(self.plan, dispatch, child.KEPT_FD, child.KEPT_FD + 1)
            ),
        )
        process.await_ready()

        def sink(_: int, data: bytes) -> None:
            if len(report) <= REPORT_MAX_BYTES:  # more is no report, and will not decode
                report.extend(data)

        outcome = self._supervise(process, sink, UNPACK_TIMEOUT_S, dispatch.spec.limits.cpu_seconds)
        if outcome.cancelled:
            raise Over(Verdict(exit_reason=ExitReason.CANCELLED, evidence=("while unpacking",)))
        if self.group.oom_kills():
            raise Over(_upload_error("unpacking took more memory than the job may use"))
        if outcome.timed_out or outcome.cpu_exceeded:
            raise Over(_upload_error("unpacking took too long"))
        try:
            answer: resolve.Answer = msgspec.msgpack.decode(report, type=resolve.Answer)
        except (msgspec.DecodeError, RecursionError):
            raise Over(_upload_error("the archive could not be unpacked")) from None
        if isinstance(answer, unpack.Refused):
            raise Over(_upload_error(answer.reason))
        return answer.spec, answer.requirements

    def _set_limits(self, spec: JobSpec) -> None:
        limits, default = spec.limits, self.plan.default_limits
        if limits.memory_bytes != default.memory_bytes:
            try:
                self.group.set_memory(limits.memory_bytes)
            except OSError:
                raise Over(
                    Verdict(
                        exit_reason=ExitReason.OUT_OF_MEMORY,
                        evidence=(
                            f"{self.group.memory_now()} bytes were in use before the job began",
                        ),
                        remedy="raise memory_mb",
                    )
                ) from None
        if limits.processes != default.processes:
            self.group.set_processes(limits.processes)

    def _build(self, spec: JobSpec) -> Outcome:
        self._send(Started(spec=spec, build=True))
        process = self._late("default")
        go = self._go(spec, path="/bin/sh", argv=("sh", "-c", spec.build or ""))
        return self._run(process, go, spec, b"")

    # ── the entrypoint ───────────────────────────────────────────────────────

    def _entrypoint(self, spec: JobSpec) -> Outcome:
        self._send(Started(spec=spec))
        if self._fits_warm(spec):
            process, self.parked = self.parked, None
            assert process is not None
            go = self._go(spec, script=spec.entrypoint or "", args=spec.args)
            return self._run(process, go, spec, spec.stdin or b"")
        path, argv = self._command(spec)
        go = self._go(spec, path=path, argv=argv)
        if self.parked and self.order.mode == "exec" and spec.profile == "default":
            process, self.parked = self.parked, None
        else:
            self._dismiss_parked()
            process = self._late(spec.profile)
        return self._run(process, go, spec, spec.stdin or b"")

    def _fits_warm(self, spec: JobSpec) -> bool:
        return (
            self.parked is not None
            and self.order.mode != "exec"
            and self.order.warm == spec.interpreter
            and spec.profile == "default"
        )

    def _command(self, spec: JobSpec) -> tuple[str, tuple[str, ...]]:
        entry = spec.entrypoint or ""
        if spec.interpreter == "binary":
            return f"{mounts.WORK}/{entry}", (f"./{entry}", *spec.args)
        command = self.plan.commands.get(spec.interpreter or "")
        if command is None:
            raise Over(
                Verdict(
                    exit_reason=ExitReason.UPLOAD_ERROR,
                    evidence=(f"interpreter {spec.interpreter!r} is not in this environment",),
                    remedy=f"one of {', '.join(self.plan.commands)}",
                )
            )
        # A name that begins with "-" must not be taken for an option.
        script = f"./{entry}" if entry.startswith("-") else entry
        return command[0], (*command, script, *spec.args)

    def _go(
        self,
        spec: JobSpec,
        *,
        path: str = "",
        argv: tuple[str, ...] = (),
        script: str = "",
        args: tuple[str, ...] = (),
    ) -> child.Go:
        default = self.plan.default_limits.open_files
        return child.Go(
            env={**self.plan.env, **spec.env},
            path=path,
            argv=argv,
            script=script,
            args=args,
            open_files=0 if spec.limits.open_files == default else spec.limits.open_files,
        )

    def _late(self, profile: str) -> child.Process:
        process = child.fork_confined(
            child.LATE_STEPS, self._late_confinement(profile), child.wait_and_exec
        )
        process.await_ready()
        return process

    def _late_confinement(self, profile: str, kept: tuple[int, ...] = ()) -> child.Confinement:
        return child.Confinement(
            self.group,
            self.plan.programs[profile],
            self.plan.default_limits,
            self.plan.max_limits,
            self.confinement.ruleset,
            kept,
        )

    def _dismiss_parked(self) -> None:
        if self.parked:
            process, self.parked = self.parked, None
            os.kill(process.pid, signal.SIGKILL)
            process.go.close()
            close_all([process.stdin, process.stdout, process.stderr])

    # ── running one process ──────────────────────────────────────────────────

    def _run(self, process: child.Process, go: child.Go, spec: JobSpec, stdin: bytes) -> Outcome:
        start = self.started = time.monotonic()

        def sink(stream: int, data: bytes) -> None:
            self.log.write(stream, data, time.monotonic() - start)

        try:
            process.release(go)
        except OSError:
            pass  # it died in the meantime; its status says how
        limits = spec.limits
        return self._supervise(process, sink, limits.timeout_s, limits.cpu_seconds, stdin)

    def _supervise(
        self,
        process: child.Process,
        sink: Callable[[int, bytes], None],
        timeout_s: float,
        cpu_seconds: float,
        stdin: bytes = b"",
    ) -> Outcome:
        """Feed and drain the process until it ends, or a limit ends everything."""
        start = time.monotonic()
        deadline = start + timeout_s
        cpu_end = self.group.cpu_seconds() + cpu_seconds
        cpus = os.cpu_count() or 1
        cpu_check = start + max(cpu_seconds / cpus, CPU_CHECK_MIN_S)
        report = start + SPENT_EVERY_S
        look = start + LOOK_S
        outcome = Outcome()
        streams = {process.stdout: STDOUT, process.stderr: STDERR}
        for fd in streams:
            os.set_blocking(fd, False)
            self.poll.register(fd, select.POLLIN)
        feed = memoryview(stdin)
        if feed:
            os.set_blocking(process.stdin, False)
            self.poll.register(process.stdin, select.POLLOUT)
        else:
            os.close(process.stdin)
        oom_fd = self.group.oom_fd
        if oom_fd is not None:
            self.poll.register(oom_fd, self.group.oom_poll_mask)
        ended = False
        while not ended:
            now = time.monotonic()
            wait_s = min(deadline, cpu_check, report, look) - now
            rests = self._listen(streams, now)
            if rests or (self.log.end != self.nudged and not self.wants_room):
                wait_s = min(wait_s, self.step_end - now)
            for fd, mask in self.poll.poll(max(0, wait_s) * 1000 + 0.5):
                if fd in streams:
                    self.reads += 1
                    self.second_reads += 1
                    self._drain(fd, streams, sink)
                elif fd == self._wake_r:
                    self._reap()
                    ended = process.pid in self._statuses
                elif fd == process.stdin:
                    feed = self._feed(fd, feed, mask)
                elif fd == oom_fd:
                    ended = self._out_of_memory(oom_fd) or ended
                    report = time.monotonic() + OOM_COUNTED_S
                else:
                    ended = self._http_event(mask) or ended
            now = time.monotonic()
            if not ended and now >= deadline:
                outcome.timed_out = ended = True
            if not ended and now >= cpu_check:
                left = cpu_end - self.group.cpu_seconds()
                if left <= 0:
                    outcome.cpu_exceeded = ended = True
                cpu_check = now + max(left / cpus, CPU_CHECK_MIN_S)
            if not ended and now >= look:
                spent = time.process_time()
                held, many = sockets.uncharged_bytes()
                if held > UNCHARGED_MOST:
                    outcome.uncharged_bytes = held
                    ended = True
                cost_s = (time.process_time() - spent) * LOOK_COST
                look = time.monotonic() + max(cost_s, LOOK_AGAIN_S if many else LOOK_S)
            if not ended and now >= report:
                ended = self.group.oom_kills() > 0
                self._tell_spent()
                report = now + SPENT_EVERY_S
            self._nudge()
        outcome.wall_time_s = time.monotonic() - start
        outcome.cancelled = self.cancelled
        self._end_of(process)
        self.step_end = 0.0  # what is left to read and to tell is read and told at once
        self._listen(streams, start)
        for fd in tuple(streams):
            self._drain(fd, streams, sink, to_the_end=True)
        if feed:
            self.poll.unregister(process.stdin)
            os.close(process.stdin)
        if oom_fd is not None:
            self.poll.unregister(oom_fd)
        code = os.waitstatus_to_exitcode(self._statuses.pop(process.pid))
        if code < 0:
            outcome.signal = -code
        else:
            outcome.exit_code = code
        self._nudge()
        return outcome

    def _listen(self, streams: dict[int, int], now: float) -> bool:
        """Watch the streams, or leave them for the rest of a step; whether it is left."""
        if now >= self.step_end:
            self.reads = 0
        if now >= self.second_end:
            self.was_calm = self.second_reads <= CALM_READS
            self.second_reads = 0
            self.second_end = now + 1
        rests = self.reads >= READS_PER_STEP
        if rests != self.rests:
            self.rests = rests
            for fd in streams:
                # Not a mask of 0: poll tells of a hang-up whatever the mask.
                if rests:
                    self.poll.unregister(fd)
                else:
                    self.poll.register(fd, select.POLLIN)
        return rests

    def _drain(
        self,
        fd: int,
        streams: dict[int, int],
        sink: Callable[[int, bytes], None],
        *,
        to_the_end: bool = False,
    ) -> None:
        """Read what is there. One step at a time while the job runs, so that a flood
        cannot keep us from its deadline; to the end when every writer is dead.
        """
        while fd in streams:
            try:
                data = os.read(fd, MAX_DATA)
            except BlockingIOError:
                data = None
            if data:
                sink(streams[fd], data)
            elif data == b"" or to_the_end:
                self.poll.unregister(fd)
                os.close(fd)
                del streams[fd]
            if not to_the_end:
                return

    def _feed(self, fd: int, feed: memoryview, mask: int) -> memoryview:
        done = 0
        if not mask & (select.POLLERR | select.POLLHUP):
            try:
                done = os.write(fd, feed[:MAX_DATA])
            except BlockingIOError:
                return feed
            except BrokenPipeError:
                done = 0
        rest = feed[done:] if done else memoryview(b"")
        if not rest:
            self.poll.unregister(fd)
            os.close(fd)
        return rest

    def _out_of_memory(self, oom_fd: int) -> bool:
        if self.group.oom_poll_mask == select.POLLIN:
            os.read(oom_fd, 8)
        return self.group.oom_kills() > 0

    def _http_event(self, mask: int) -> bool:
        if mask & select.POLLOUT:
            self.poll.modify(self.http.socket, select.POLLIN)
            self.wants_room = False
        if not mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return False
        try:
            message, fds = self.http.receive()
        except BlockingIOError:
            return False
        close_all(fds)
        if isinstance(message, Cancel):
            self.cancelled = True
            return True
        return False

    # ── the end ──────────────────────────────────────────────────────────────

    def _kill_everything(self) -> None:
        """No process but PID 1 survives.

        kill(-1) from PID 1 reaches all others in one step under the kernel's task
        lock, so nothing can fork its way out.
        """
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._reap(block=True)

    def _end_of(self, process: child.Process) -> None:
        """See that nothing of ``process`` is left, and spare the parked one if we can.

        Unpacking and building come before the entrypoint, which should find its warm
        interpreter. The group tells whether the parked process is alone again; if
        anything else is in there, or hides, everything goes and the start is cold.
        """
        if self.parked is None:
            self._kill_everything()
            return
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        while process.pid not in self._statuses:
            pid, status = os.waitpid(-1, 0)
            self._statuses[pid] = status
        self._reap()
        # A build that killed the parked process may have put another in its place.
        if self.parked.pid in self._statuses or self.group.processes_now() != self.parked_tasks:
            process_of_job, self.parked = self.parked, None
            self._kill_everything()
            close_all([process_of_job.stdin, process_of_job.stdout, process_of_job.stderr])
            process_of_job.go.close()

    def _reap(self, *, block: bool = False) -> None:
        """Collect the dead: our children, and orphans that became ours."""
        try:
            while os.read(self._wake_r, 4096):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._statuses[pid] = status

    def _usage(self, outcome: Outcome) -> Usage:
        return Usage(
            cpu_seconds=max(0.0, self.group.cpu_seconds() - self.cpu_before),
            memory_peak_bytes=self.group.memory_peak(),
            wall_time_s=outcome.wall_time_s,
            processes_peak=self.group.processes_peak(),
            storage_bytes=self.storage_bytes,
            log_dropped_bytes=self.log.dropped,
        )

    def _storage_state(self) -> tuple[bool, bool]:
        info = os.fstatvfs(self.work_fd)
        self.storage_bytes = (info.f_blocks - info.f_bfree) * info.f_frsize
        return info.f_bavail == 0, info.f_favail == 0

    def _collect(self, spec: JobSpec, before: collect.Snapshot) -> tuple[OutputIndex, int]:
        try:
            return collect.collect(
                self.work_fd,
                globs.compile(spec.outputs),
                before,
                self.outputs_fd,
                max_bytes=spec.limits.output_bytes,
                max_files=MAX_OUTPUT_FILES,
            )
        except (OSError, RequestError, ValueError) as error:
            text = f"outputs could not be collected: {error}\n"
            self.log.write(SYSTEM, text.encode(errors="replace"), time.monotonic() - self.started)
            return OutputIndex(), 0

    # ── towards http ─────────────────────────────────────────────────────────

    def _send(self, message: FromZygote) -> None:
        """Send, waiting for room if need be: http must hear this.

        First into the journal: the http that reads it may be killed before it acts.
        """
        slot = journal.STARTED if isinstance(message, Started) else journal.FINAL
        data = msgspec.msgpack.encode(message)
        try:
            journal.write(self.log_fd, self.plan.max_limits.log_bytes, slot, data, time.monotonic())
        except OSError:
            pass  # no page left for it: the message itself still gets through
        while True:
            try:
                self.http.send(message)
            except BlockingIOError:
                waiter = select.poll()
                waiter.register(self.http.socket, select.POLLOUT)
                waiter.poll()
            else:
                return

    def _tell_spent(self) -> None:
        """Best effort: the Result tells the whole."""
        try:
            self.http.send(Spent(cpu_seconds=self.group.cpu_seconds() - self.cpu_before))
        except BlockingIOError:
            pass

    def _nudge(self) -> None:
        """Tell http that the log grew. If its queue is full, poll says when there is room."""
        now = time.monotonic()
        if self.log.end == self.nudged or now < self.step_end:
            return
        is_calm = self.was_calm and self.second_reads <= CALM_READS
        self.step_end = now + (0 if is_calm else STEP_S)
        try:
            self.http.send(LogGrew(end=self.log.end))
        except BlockingIOError:
            self.poll.modify(self.http.socket, select.POLLIN | select.POLLOUT)
            self.wants_room = True
        else:
            self.nudged = self.log.end


def _requirements_of(dispatch: Dispatch) -> str:
    for file in dispatch.files:
        if file.path == dispatch.spec.requirements:
            return file.data.decode("utf-8", "replace")
    return ""


class _Elsewhere(Exception):
    def __init__(self, spec: JobSpec, requirements: str) -> None:
        super().__init__(spec.environment)
        self.spec = spec
        self.requirements = requirements


def _upload_error(reason: str) -> Verdict:
    return Verdict(
        exit_reason=ExitReason.UPLOAD_ERROR,
        evidence=(reason,),
        remedy="mend the upload and submit again",
    )
