"""The descriptor store: what of http's must outlive http. Runs as: root (supervisor). I/O.

The idea is systemd's FDSTORE. http keeps a record of every accepted job here, as
bytes that are never decoded on this side, and the descriptors that belong to it.
A new http gets all of it back and goes on where the last one was killed.

An *entry* has a key, numbered parts, descriptors that http sent (an upload) and
at most one *sandbox*: socket, log and outputs of the zygote that has the job.
These never travel up from http: the supervisor made them, leases duplicates, and
moves its own into the store when http says which zygote got the job. So a record
costs one datagram without descriptors, and http cannot pass off another file as
a job's log.

http may be taken over, so everything is bounded: past the high mark http is told
and refuses new jobs; past the limits :meth:`Store.keep` raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from sandrun.channel import close_all
from sandrun.errors import ProtocolError
from sandrun.messages import Keep, StoreEntry

MAX_BYTES: Final = 256 * 1024 * 1024  # 100,000 ended jobs take about 120 MiB
ENTRY_BYTES: Final = 512  # what Python needs for an entry and its parts, about
HIGH: Final = 0.9  # refuse new jobs above, so that what runs can still be recorded
LOW: Final = 0.85
MESSAGE_BYTES: Final = 96 * 1024  # of parts in one StoreEntry; a message holds 128 KiB
SANDBOX_FDS: Final = 3
ENTRY_FDS: Final = 1  # an upload


@dataclass(slots=True)
class Sandbox:
    """Descriptors of one zygote with a job. ``socket`` is -1 once it is dead."""

    zygote: int
    environment: str
    warm: str
    socket: int
    log: int
    outputs: int

    @property
    def fds(self) -> tuple[int, ...]:
        """In the order of :class:`StoreEntry`."""
        return (self.log, self.outputs, *((self.socket,) if self.socket >= 0 else ()))


@dataclass(slots=True)
class Entry:
    """One record."""

    parts: dict[int, bytes] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    sandbox: Sandbox | None = None
    lost: int | None = None  # the zygote that was dead before it could be bound
    size: int = ENTRY_BYTES


class Store:
    """All entries, within bounds. ``on_state`` hears when it gets full, or has room again."""

    def __init__(
        self,
        max_fds: int,
        on_state: Callable[[bool], None] = lambda _: None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.max_fds = max_fds
        self.max_bytes = max_bytes
        self.bytes = 0
        self.fds = 0
        self.full = False
        self._on_state = on_state
        self._entries: dict[int, Entry] = {}
        self._of_zygote: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def max_jobs(self) -> int:
        """For so many ended jobs there are descriptors (a log and outputs each)."""
        return int(self.max_fds * LOW) // 2

    # ── what http says ───────────────────────────────────────────────────────

    def keep(self, message: Keep, fds: list[int]) -> None:
        """Change or make an entry; owns ``fds``. Raises :class:`ProtocolError` when over a bound.

        ``message.zygote`` is the caller's: see :meth:`bind`.
        """
        entry = self._entries.get(message.key)
        grown = sum(len(data) for data in message.parts.values()) + ENTRY_BYTES
        if len(fds) > ENTRY_FDS:
            close_all(fds)
            raise ProtocolError(f"Keep with {len(fds)} descriptors")
        if self.bytes + grown > self.max_bytes or self.fds + len(fds) > self.max_fds:
            close_all(fds)
            raise ProtocolError("http keeps more than the store holds")
        if entry is None:
            entry = self._entries[message.key] = Entry()
            self.bytes += ENTRY_BYTES
        for part, data in message.parts.items():
            change = len(data) - len(entry.parts.pop(part, b""))
            entry.size += change
            self.bytes += change
            if data:
                entry.parts[part] = data
        if fds or message.drop_fds:
            self._replace_fds(entry, tuple(fds))
        if message.unbind:
            self._unbind(entry)
        self._look()

    def bind(self, key: int, zygote: int, sandbox: Sandbox | None) -> None:
        """Join an entry to the zygote that gets its job. None: that one is dead already."""
        entry = self._entries[key]
        self._unbind(entry)
        if sandbox is None:
            entry.lost = zygote
            return
        entry.sandbox = sandbox
        self.fds += SANDBOX_FDS
        self._of_zygote[zygote] = entry
        self._look()

    def forget(self, key: int) -> None:
        """Remove an entry; one that is not there was removed already."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._unbind(entry)
        self._replace_fds(entry, ())
        self.bytes -= entry.size
        self._look()

    # ── what the pool says ───────────────────────────────────────────────────

    def zygote_gone(self, zygote: int) -> None:
        """It is dead: its socket says nothing more that its journal does not say."""
        entry = self._of_zygote.pop(zygote, None)
        if entry is not None and entry.sandbox is not None and entry.sandbox.socket >= 0:
            os.close(entry.sandbox.socket)
            entry.sandbox.socket = -1
            self.fds -= 1

    def holds(self, zygote: int) -> bool:
        """Whether some entry is bound to this living zygote."""
        return zygote in self._of_zygote

    # ── the next http ────────────────────────────────────────────────────────

    def entries(self) -> Iterator[tuple[StoreEntry, tuple[int, ...]]]:
        """Every entry as messages with descriptors, which stay the store's."""
        for key in sorted(self._entries):
            entry = self._entries.get(key)
            if entry is not None:
                yield from self._messages(key, entry)

    def _messages(self, key: int, entry: Entry) -> Iterator[tuple[StoreEntry, tuple[int, ...]]]:
        parts = dict(entry.parts)
        while parts and sum(len(data) for data in parts.values()) > MESSAGE_BYTES:
            part, data = parts.popitem()
            yield StoreEntry(key=key, parts={part: data}), ()
        sandbox = entry.sandbox
        if sandbox is None:
            yield (
                StoreEntry(
                    key=key,
                    parts=parts,
                    fds=len(entry.fds),
                    zygote=entry.lost,
                    lost=entry.lost is not None,
                ),
                entry.fds,
            )
            return
        message = StoreEntry(
            key=key,
            parts=parts,
            fds=len(entry.fds),
            zygote=sandbox.zygote,
            environment=sandbox.environment,
            warm=sandbox.warm,
            alive=sandbox.socket >= 0,
        )
        yield message, (*entry.fds, *sandbox.fds)

    def close(self) -> None:
        """Let everything go."""
        for key in list(self._entries):
            self.forget(key)

    # ── inside ───────────────────────────────────────────────────────────────

    def _replace_fds(self, entry: Entry, fds: tuple[int, ...]) -> None:
        close_all(entry.fds)
        self.fds += len(fds) - len(entry.fds)
        entry.fds = fds

    def _unbind(self, entry: Entry) -> None:
        entry.lost = None
        sandbox, entry.sandbox = entry.sandbox, None
        if sandbox is not None:
            self._of_zygote.pop(sandbox.zygote, None)
            close_all(sandbox.fds)
            self.fds -= len(sandbox.fds)

    def _look(self) -> None:
        """Tell when a mark is passed; two marks, so that it does not flutter."""
        mark = LOW if self.full else HIGH
        full = self.bytes > self.max_bytes * mark or self.fds > self.max_fds * mark
        if full != self.full:
            self.full = full
            self._on_state(full)
