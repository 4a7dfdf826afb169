"""Who is told what leases bring: :class:`sandrun.http.app.App`, or a test. Pure: types only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sandrun.http.jobs import Job
    from sandrun.job import JobSpec
    from sandrun.messages import (
        Drain,
        HttpDeaths,
        Installed,
        InstallFailed,
        Leave,
        PoolState,
        Restored,
        Result,
        Started,
        StoreEntry,
        StoreState,
        Welcome,
    )


class Listener(Protocol):
    """Who is told. Called from the event loop, never concurrently."""

    def on_welcome(self, welcome: Welcome) -> None:
        """The node introduces itself."""

    def on_pool_state(self, state: PoolState) -> None:
        """The pool has changed."""

    def on_http_deaths(self, deaths: HttpDeaths) -> None:
        """Why we are not the first http."""

    def on_entry(self, entry: StoreEntry, fds: list[int]) -> None:
        """An earlier http has left this; the descriptors are the listener's."""

    def on_restored(self, restored: Restored) -> None:
        """That was all."""

    def on_store_state(self, state: StoreState) -> None:
        """The store is full, or has room again."""

    def on_dispatch(self, job: Job, zygote: int) -> None:
        """The job is about to be sent to this zygote: the last moment to record it."""

    def on_leave(self, leave: Leave) -> None:
        """Another http takes over."""

    def on_installed(self, answer: Installed | InstallFailed) -> None:
        """The requirements of a job are there, or cannot be had."""

    def on_drain(self, drain: Drain) -> None:
        """No more jobs."""

    def on_ready(self) -> None:
        """One more zygote."""

    def on_started(self, job: Job, started: Started) -> None:
        """Its first process runs."""

    def on_log(self, job: Job, end: int) -> None:
        """Its log has grown to ``end``."""

    def on_spent(self, job: Job, cpu_seconds: float) -> None:
        """It has used so much so far."""

    def on_elsewhere(self, job: Job, spec: JobSpec, requirements: str) -> None:
        """It belongs into another sandbox; nothing has run."""

    def on_result(self, job: Job, result: Result) -> None:
        """The end."""

    def on_lost(self, job: Job, *, started: bool) -> None:
        """Its sandbox is gone without a result."""

    def on_supervisor_gone(self) -> None:
        """The control channel is closed."""
