"""Every message between our processes, in the order in which a job meets them. Pure.

One message, one frozen struct; a channel end is typed by the union of what it
may receive. Descriptors travel beside a message (SCM_RIGHTS), in the order its
docstring gives. Every string and list is bounded here, because each end treats
the other as possibly taken over.

::

    supervisor ──Spawn──▶ spawner ──clone──▶ zygote (PID 1)
    supervisor ──Lease──▶ http ──Dispatch──▶ zygote ──Started, LogGrew, Spent, Result──▶ http
    http ──Keep, Finished, Forget──▶ supervisor ──StoreEntry, Restored──▶ next http
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from sandrun.job import JobSpec, Limits, Usage, Verdict
from sandrun.verdict import Facts

Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
ZygoteId = Annotated[int, msgspec.Meta(ge=0)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]

StoreKey = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Part = Annotated[int, msgspec.Meta(ge=0, le=15)]  # which piece of an entry; http's choice
Parts = Annotated[dict[Part, bytes], msgspec.Meta(max_length=16)]

MAX_LOCK_BYTES = 96 * 1024  # compressed; 800 packages, most of it their hashes
INLINE_MAX_BYTES = 48 * 1024  # of files carried inside a Dispatch; a datagram holds 208 KiB


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    pass


# ── supervisor → http ────────────────────────────────────────────────────────


class Package(_Message, frozen=True, tag=False):
    """One installed distribution."""

    name: str
    version: str


class EnvironmentInfo(_Message, frozen=True, tag=False):
    """One environment as clients may see it.

    ``fault``: why it could not be built, or ""; jobs cannot run in it.
    """

    name: Name
    interpreter: Name
    version: Text = ""
    packages: tuple[Package, ...] = ()
    description: Text = ""
    fault: Text = ""


class InterpreterInfo(_Message, frozen=True, tag=False):
    """One interpreter that the sandbox's root really has."""

    name: Name
    path: Text  # inside the sandbox
    extensions: tuple[str, ...] = ()
    version: Text = ""
    mode: Name = "exec"


class Welcome(_Message, frozen=True):
    """First message to http: what this node can do.

    ``layers`` maps the name of an isolation layer to "on" or to the reason why
    it is off (only a layer that the operator waived, or an optional one).
    """

    environments: tuple[EnvironmentInfo, ...]
    interpreters: tuple[InterpreterInfo, ...]
    layers: dict[str, str]
    privacy: dict[str, str]  # measured facts: swap, core_pattern, job_files, ...


class Lease(_Message, frozen=True):
    """A ready zygote now belongs to http.

    Descriptors: its SEQPACKET socket; its log, read only; its outputs, read only.
    """

    zygote: ZygoteId
    environment: Name
    warm: Name  # interpreter that is already running in it, or "exec"


class Withdraw(_Message, frozen=True):
    """A leased zygote that http had not used is gone."""

    zygote: ZygoteId


class GiveBack(_Message, frozen=True):
    """There are more than needed: let this one go, unless it has a job by now."""

    zygote: ZygoteId


class Resized(_Message, frozen=True):
    """Answer to :class:`Resize`."""

    zygote: ZygoteId


class HttpDeaths(_Message, frozen=True):
    """How often an http has been replaced because it died, and why the last time."""

    count: int = 0
    cause: Text = ""


class KindState(_Message, frozen=True, tag=False):
    """One sort of zygote that is kept ready. ``served``: they boot; ``coming``: so many do now."""

    environment: Name
    warm: Name
    mode: Name
    coming: int = 0
    served: bool = True


class PoolState(_Message, frozen=True):
    """Sent when it changes: for ``/stats``, ``/health``, admission, and to know what is
    worth waiting for.

    ``fault`` is the first cause why the pool cannot make zygotes, or "".
    ``pressure`` is why the host is too short of memory for new jobs, or "".
    ``memory_available_bytes`` is what new jobs may still use on this host,
    ``memory_missing_bytes`` what the host lacks: what ended jobs have left may make room.
    ``records`` is how many entries the store holds, as of a second ago at most.
    """

    warm: int
    booting: int
    busy: int
    capacity: int
    fault: Text = ""
    pressure: Text = ""
    memory_available_bytes: Bytes = 1 << 40
    memory_missing_bytes: Bytes = 0
    records: Annotated[int, msgspec.Meta(ge=0)] = 0
    kinds: tuple[KindState, ...] = ()


class Installed(_Message, frozen=True):
    """Answer to :class:`Install`: dispatch the job to ``environment``.

    ``seconds`` and ``cpu_seconds`` are 0 if nothing had to be done. ``log`` is for
    the job's timeline.
    """

    request: int
    environment: Name
    version: Text = ""
    packages: tuple[Package, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    log: Text = ""


class InstallFailed(_Message, frozen=True):
    """Answer to :class:`Install`: the resolver's words.

    ``fault``: it failed by no fault of the job's.
    """

    request: int
    reason: Text
    fault: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Drain(_Message, frozen=True):
    """Accept no more jobs, finish those that run, then exit.

    ``grace_s``: seconds until running jobs are cancelled.
    """

    grace_s: float = 0.0


class Leave(_Message, frozen=True):
    """Another http takes over: answer what is open within ``grace_s``, then exit.

    Jobs go on; the next http finds them in the store.
    """

    grace_s: float = 0.0


class StoreEntry(_Message, frozen=True):
    """What an earlier http had kept under ``key``; its first message after Welcome.

    A large entry comes in several messages, the descriptors with the last.
    Descriptors: ``fds`` of http's own; then, if ``zygote`` is not None and not
    ``lost``, its log and outputs, and, if it is ``alive``, its socket.
    ``lost``: the zygote was dead before it was bound, so it never had the job.
    """

    key: StoreKey
    parts: Parts
    fds: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    zygote: ZygoteId | None = None
    environment: Name = "default"
    warm: Name = "exec"
    alive: bool = False
    lost: bool = False


class Restored(_Message, frozen=True):
    """No more entries. ``max_jobs``: for so many jobs the store has descriptors."""

    max_jobs: int


class StoreState(_Message, frozen=True):
    """The store has become full, or has room again."""

    full: bool


class Ping(_Message, frozen=True):
    """Say something; nothing else is asked. See :class:`Pong`."""


ToHttp = (
    Welcome
    | Ping
    | StoreEntry
    | Restored
    | Lease
    | Withdraw
    | GiveBack
    | Resized
    | PoolState
    | HttpDeaths
    | StoreState
    | Installed
    | InstallFailed
    | Leave
    | Drain
)


# ── http → supervisor ────────────────────────────────────────────────────────


class Loaded(_Message, frozen=True):
    """http has started and confined itself; it waits for :class:`Welcome`."""


class Pong(_Message, frozen=True):
    """Answer to :class:`Ping`, before and after Welcome: this process is not stuck."""


class Keep(_Message, frozen=True):
    """Put this into the store; sent before what it says is done, and never answered.

    Each part replaces the one of the same number, an empty one removes it; what is
    not named stays. Descriptors that come along replace those of the entry, and
    ``drop_fds`` closes them. ``zygote``: this leased one is about to get the job. It is
    bound to the entry: the supervisor keeps its socket, log and outputs, and makes
    another in its place; ``unbind`` lets them go.
    """

    key: StoreKey
    parts: Parts = {}
    drop_fds: bool = False
    zygote: ZygoteId | None = None
    unbind: bool = False


class Forget(_Message, frozen=True):
    """Remove an entry and close its descriptors."""

    key: StoreKey


class Ready(_Message, frozen=True):
    """http listens; ``urls`` are what it serves."""

    urls: tuple[Text, ...]


class Resize(_Message, frozen=True):
    """Give an idle leased zygote another storage size before its dispatch."""

    zygote: ZygoteId
    storage_bytes: Bytes


class Want(_Message, frozen=True):
    """Jobs wait for zygotes of this kind: ``waiting`` is how many."""

    environment: Name
    warm: Name
    waiting: int


class Origin(_Message, frozen=True, tag=False):
    """A server that a lock takes files from, and the first entry that does."""

    url: Annotated[str, msgspec.Meta(max_length=512)]  # "https://host:port"
    entry: Annotated[str, msgspec.Meta(max_length=256)]


class NodeLock(_Message, frozen=True, tag=False):
    """``data``: zlib of JSON [package.json, package-lock.json], both re-emitted clean.

    Whoever passes it on need not look inside.
    """

    data: Annotated[bytes, msgspec.Meta(max_length=MAX_LOCK_BYTES)]
    packages: Annotated[int, msgspec.Meta(ge=0, le=10_000)]
    origins: Annotated[tuple[Origin, ...], msgspec.Meta(max_length=8)] = ()


class Install(_Message, frozen=True):
    """Make (or find) an environment with these requirement lines on top of a named one,
    or, if there is a ``lock``, with the packages of that for node.

    :class:`Installed` or :class:`InstallFailed` with the same ``request`` follows.
    While jobs wait for it (:class:`Want`) or run in it, it is not evicted.
    """

    request: Annotated[int, msgspec.Meta(ge=0)]
    environment: Name
    lines: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=512)], ...], msgspec.Meta(max_length=500)
    ]
    lock: NodeLock | None = None


class Finished(_Message, frozen=True):
    """http has the result (or gave the zygote up): destroy it."""

    zygote: ZygoteId


class Kill(_Message, frozen=True):
    """End this zygote now, whatever it does."""

    zygote: ZygoteId


ToPool = Loaded | Pong | Keep | Forget | Ready | Resize | Want | Install | Finished | Kill


# ── http → zygote ────────────────────────────────────────────────────────────


class InlineFile(_Message, frozen=True, tag=False):
    """A small plain file, sent along. ``path`` is relative and already safe."""

    path: Text
    data: bytes
    executable: bool = False


class UploadPart(_Message, frozen=True, tag=False):
    """One part of the upload descriptor: a plain file or an archive to unpack."""

    kind: str  # "file", "tar", "zip" (gzip is recognised by its content)
    path: Text
    offset: Bytes
    size: Bytes
    executable: bool = False


class Dispatch(_Message, frozen=True):
    """Run this. The only command that a zygote gets in its life.

    Descriptors: none, or the sealed upload. The upload ends with a msgpack list
    of :class:`UploadPart` at ``index_offset`` of ``index_size`` bytes.
    PID 1 checks every limit against the maxima it was booted with.
    """

    spec: JobSpec
    files: tuple[InlineFile, ...] = ()
    index_offset: Bytes = 0
    index_size: Bytes = 0
    manifest_given: tuple[str, ...] = ()  # fields of the manifest part: they win over job.json


class Cancel(_Message, frozen=True):
    """Kill the job; a Result with ``cancelled`` follows."""


class Acknowledge(_Message, frozen=True):
    """http has the Result: PID 1 may exit."""


ToZygote = Dispatch | Cancel | Acknowledge


# ── zygote → http ────────────────────────────────────────────────────────────


class Started(_Message, frozen=True):
    """The entrypoint runs. ``spec`` is complete: every ``None`` has been found out."""

    spec: JobSpec
    build: bool = False  # it is the build command that runs first


class LogGrew(_Message, frozen=True):
    """The log now ends at ``end`` (bytes of its record file)."""

    end: Bytes


class Spent(_Message, frozen=True):
    """CPU time of the job so far, about once a second while it runs; may be left out."""

    cpu_seconds: float


class Elsewhere(_Message, frozen=True):
    """Nothing has run: job.json inside the archive asks for what this zygote cannot
    give (another environment, another storage size), or the upload's requirements must
    be installed first. Dispatch ``spec`` again there.

    ``requirements``: text of the file that ``spec.requirements`` names, or "".
    """

    spec: JobSpec
    requirements: Annotated[str, msgspec.Meta(max_length=65_536)] = ""


class Result(_Message, frozen=True):
    """The end. The outputs descriptor holds an ``OutputIndex`` at ``index_offset``.

    ``facts``: what http decides the verdict from. ``verdict`` only if the job ended
    before its entrypoint ran, or by a fault of ours.
    """

    usage: Usage
    spec: JobSpec
    log_end: Bytes
    verdict: Verdict | None = None
    facts: Facts | None = None
    index_offset: Bytes = 0
    index_size: Bytes = 0


FromZygote = Started | LogGrew | Spent | Elsewhere | Result


# ── supervisor ↔ spawner (one per environment) ───────────────────────────────


class InterpreterSpec(_Message, frozen=True, tag=False):
    """One interpreter of the config: ``command[0]`` is looked up in the sandbox's root."""

    command: tuple[Text, ...]
    extensions: tuple[Text, ...] = ()
    mode: Name = "exec"


class Prepare(_Message, frozen=True):
    """Build the root file system and confine yourself; :class:`SpawnerReady` follows.

    ``programs``: compiled seccomp filters by name ("zygote", "default", "compute").
    ``uid_base``: first of 65,536 user ids of the host that are this spawner's.
    ``known_environments``: names that a job.json may ask for. ``native``: PID 1s are to
    be the compiled one; descriptors: those of ``pool.native.build.Native``.
    """

    environment: Name
    environment_dir: Text  # host path, "" for none
    interpreter: Name
    mode: Name  # of ``interpreter`` in this environment: "fork" wants a template
    preload: tuple[Text, ...]
    template_jobs: int
    template_seconds: float
    uid_base: int
    interpreters: dict[str, InterpreterSpec]
    known_environments: tuple[Name, ...]
    programs: dict[str, bytes]
    landlock: bool
    max_files: int
    default_limits: Limits
    max_limits: Limits
    native: bool = False


class Spawn(_Message, frozen=True):
    """Make one zygote.

    Descriptors, in order: the zygote's end of its http socket; its log (writable);
    its outputs (writable); the detached tmpfs mount; then the control files of its
    job group named in ``control_files``.
    """

    zygote: ZygoteId
    warm: Name
    mode: Name
    slot: int  # decides the pair of user ids
    living: int  # zygotes of this environment, this one included
    control_files: tuple[str, ...]


class Spawned(_Message, frozen=True):
    """PID 1 exists under ``pid`` (ours to reap: CLONE_PARENT); it is still booting.

    Descriptor, if it is compiled: its assistant's end of their socket.
    """

    zygote: ZygoteId
    pid: int


class Booted(_Message, frozen=True):
    """PID 1 is confined, its job process parked and attested: it may be leased."""

    zygote: ZygoteId


class BootFailed(_Message, frozen=True):
    """A boot step failed; PID 1 has exited or will be killed. Nothing ran."""

    zygote: ZygoteId
    step: Text
    errno: int = 0
    detail: Text = ""


class SpawnerReady(_Message, frozen=True):
    """The root file system stands. ``interpreters`` were found in it."""

    interpreters: tuple[InterpreterInfo, ...]
    version: Text = ""


class Succeed(_Message, frozen=True):
    """Assist the sandboxes of a spawner that is dead, which had found ``interpreters``.

    Descriptor: its user namespace. The ends of their sockets follow.
    """

    interpreters: tuple[InterpreterInfo, ...]


ToSpawner = Prepare | Spawn
ToSuccessor = Prepare | Succeed
FromSpawner = SpawnerReady | Spawned | Booted | BootFailed
