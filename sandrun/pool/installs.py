"""Requirements of jobs: installed once per lock, kept in memory, shared read-only.
Runs as: root (supervisor). I/O; the builds themselves block in threads.

Three steps, each remembered. *Inputs* (lines, environment, interpreter, index) →
*lock* (exact versions with hashes; asked again after :data:`LOCK_SECONDS`, since an
index goes on) → *environment*, a directory named by the lock's hash, with a spawner
of its own that keeps a zygote ready. So a second job with the same lines costs a
lookup, and one with other lines and the same lock costs a resolution.

A job's bytes never get into the cache: only the installer writes there, in its own
sandbox, into a fresh directory per build with a download cache of its own (a link
out of a shared one would let a package poison the next). Jobs mount the finished
directory read-only; it is root's, and nothing in it is executed at the build.

The cache is a tmpfs in a mount namespace that ends with the supervisor: it is
gone whatever happens. It is bounded in bytes and in environments, and the least
recently used goes first; one in which jobs wait or run stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from sandrun import requirements
from sandrun.config import Config, Environment
from sandrun.errors import SandrunError
from sandrun.job import MIB
from sandrun.messages import Install, Installed, InstallFailed, NodeLock
from sandrun.pool import environments, npm, package_index
from sandrun.pool.installer import Installer
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE, MS, MountAttr
from sandrun.pool.workshop import PackageError, Workshop, remove_tree
from sandrun.requirements import RequirementsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandrun.pool.environments import Python, Record

log = logging.getLogger(__name__)

RAM_DIRECTORY: Final = "/run/sandrun"
PREFIX: Final = "requirements-"
NODE_PREFIX: Final = f"{PREFIX}node-"
LOCK_SECONDS: Final = 3600.0  # how long a resolution is taken for the index's present one
GRACE_SECONDS: Final = 60.0  # after an answer, until its job has been heard of
NODE_RETRY_SECONDS: Final = 60.0
QUEUE: Final = 64  # builds that wait; more are refused
_GONE: Final = ".gone-"  # the beginning of a name
_INODE_BYTES: Final = 1024  # that a file takes besides its content
_LOCKS: Final = 10_000  # remembered: 64 bytes each
_BUSY: Final = "too many installations wait already; try again"


def ram_directory(size_mb: int, *, noswap: bool, path: str = RAM_DIRECTORY) -> Path:
    """A tmpfs that only this process and its later children see. Raises OSError.

    Changes the mount namespace of the calling thread: call it at the start.
    """
    libc.unshare(CLONE.NEWNS)
    # A slave: unmounts of the host still reach us, and nothing of ours the host.
    libc.mount("none", "/", "none", MS.REC | MS.SLAVE)
    os.makedirs(path, 0o755, exist_ok=True)
    options = {"size": str(size_mb * MIB), "mode": "755"}
    if noswap:
        options["noswap"] = ""
    fd = libc.detached_tmpfs(options, MountAttr.NOSUID | MountAttr.NODEV)
    try:
        libc.move_mount(fd, path)
    finally:
        os.close(fd)
    return Path(path)


class Pool(Protocol):
    """What this needs of the manager."""

    async def add_environment(self, name: str, environment: Environment, directory: str) -> None:
        """Start its spawner; returns when it is ready. Raises SetupError."""

    def remove_environment(self, name: str) -> None:
        """End its spawner and its idle zygotes."""

    def is_idle(self, name: str) -> bool:
        """Whether no job waits for it or runs in it."""


# ── which to evict: pure ─────────────────────────────────────────────────────


class Kept(msgspec.Struct):
    """One environment in the cache."""

    directory: Path
    record: Record
    size_bytes: int
    used: float  # monotonic


def victims(
    kept: dict[str, Kept],
    is_idle: Callable[[str], bool],
    now: float,
    *,
    count: int,
    size_bytes: int,
) -> list[str]:
    """Names to evict, least recently used first, until what stays fits.

    What is in use stays, so the result may not be enough.
    """
    over_count = len(kept) - count
    over_bytes = sum(entry.size_bytes for entry in kept.values()) - size_bytes
    found = []
    for name, entry in sorted(kept.items(), key=lambda item: item[1].used):
        if over_count <= 0 and over_bytes <= 0:
            break
        if now - entry.used >= GRACE_SECONDS and is_idle(name):
            found.append(name)
            over_count -= 1
            over_bytes -= entry.size_bytes
    return found


# ── building ─────────────────────────────────────────────────────────────────


class Order(NamedTuple):
    """One thing to be built."""

    inputs: str
    base: str  # the named environment
    lines: tuple[str, ...]
    python: Python  # or node, if there is a lock
    lock: NodeLock | None = None
    registry: npm.Registry | None = None


class Done(NamedTuple):
    """What became of it."""

    name: str
    seconds: float
    cpu_seconds: float
    log: str


class Failed(Exception):
    """It could not be built; costs are told all the same."""

    def __init__(self, reason: str, *, fault: bool, seconds: float, cpu_seconds: float) -> None:
        super().__init__(reason)
        self.fault = fault
        self.seconds = seconds
        self.cpu_seconds = cpu_seconds


class Installs:
    """The cache, and the way into it."""

    def __init__(
        self,
        config: Config,
        pool: Pool,
        directory: Path,
        make_installer: Callable[[], Installer],
        index: package_index.Index,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.pool = pool
        self.directory = directory
        self.index = index
        self.clock = clock
        self._make_installer = make_installer
        self._kept: dict[str, Kept] = {}
        self._locks: dict[str, tuple[str, float]] = {}  # inputs → (environment, when)
        self._pythons: dict[str, Python] = {}
        self._building: dict[str, asyncio.Task[Done]] = {}
        self._installers: set[Installer] = set()  # at work
        self._removed = 0  # environments so far
        self._turn = asyncio.Semaphore(config.packages.installs)
        self._adding = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._node: tuple[Python, npm.Registry] | None = None  # and what its npm is told
        self._node_refusal: tuple[PackageError, float] | None = None

    async def install(self, wish: Install) -> Installed | InstallFailed:
        """Answer one wish; never raises."""
        started = self.clock()
        try:
            if wish.lock is not None:
                order = await self._node_order(wish, wish.lock)
            else:
                order = self._order(wish)
            done = self._hit(order.inputs)
            if done is None:
                # Whoever wishes the same meanwhile waits for the same build, and pays
                # nothing; it goes on though the first of them has gone.
                task, first = self._build_once(order)
                done = await asyncio.shield(task)
                if not first:
                    done = done._replace(cpu_seconds=0.0)
        except Failed as error:
            return InstallFailed(
                request=wish.request,
                reason=str(error)[:4096],
                fault=error.fault,
                seconds=error.seconds,
                cpu_seconds=error.cpu_seconds,
            )
        except (SandrunError, OSError) as error:
            fault = not isinstance(error, RequirementsError | PackageError) or (
                isinstance(error, PackageError) and error.fault
            )
            reason = package_index.redact(str(error))[:4096]
            if fault:
                log.error("installing for a job failed: %s", reason)
            return InstallFailed(
                request=wish.request, reason=reason, fault=fault, seconds=self.clock() - started
            )
        entry = self._kept[done.name]
        entry.used = self.clock()
        return Installed(
            request=wish.request,
            environment=done.name,
            version=entry.record.python.version,
            packages=entry.record.packages[:400],  # fits a message
            seconds=done.seconds,
            cpu_seconds=done.cpu_seconds,
            log=done.log[:4096],
        )

    def _base(self, wish: Install) -> Environment:
        """Check what http has checked already: it may have been taken over."""
        base = self.config.environments.get(wish.environment)
        if not self.config.packages.requirements:
            raise PackageError("this server installs no requirements ([packages] requirements)")
        if base is None:
            raise PackageError(f"there is no environment {wish.environment!r}")
        if base.path:
            raise PackageError(
                f"environment {wish.environment!r} is a directory of the operator's: "
                "nothing can be added to it"
            )
        return base

    async def _node_order(self, wish: Install, lock: NodeLock) -> Order:
        base = self._base(wish)
        if base.packages:
            raise PackageError(
                f"environment {wish.environment!r} has packages for {base.interpreter}: those "
                'for node go on top of one without, such as "default"'
            )
        name = node_interpreter(self.config)
        if name is None:
            raise PackageError("this server has no node")
        node, registry = await self._ask_node(self.config.interpreters[name].command[0])
        asked = (f"# npm {wish.environment}", hashlib.sha256(lock.data).hexdigest())
        inputs = environments.lock_hash("\n".join((*asked, *registry.identity)), node)
        return Order(inputs, wish.environment, (), node, lock, registry)

    async def _ask_node(self, command: str) -> tuple[Python, npm.Registry]:
        """Asked once: it takes 0.6 s, which no client pays. A refusal holds for a while."""
        async with self._asking:
            if self._node is not None:
                return self._node
            if self._node_refusal and self.clock() - self._node_refusal[1] < NODE_RETRY_SECONDS:
                raise self._node_refusal[0]
            try:
                registry = await asyncio.to_thread(npm.discover, self.config.packages, os.environ)
                node = await asyncio.to_thread(npm.find_node, command)
            except PackageError as error:
                self._node_refusal = error, self.clock()
                raise
            self._node = node, registry
            return self._node

    def _order(self, wish: Install) -> Order:
        base = self._base(wish)
        lines = requirements.parse("\n".join((*base.packages, *wish.lines)))
        python = self._python(self.config.interpreters[base.interpreter].command[0])
        asked = (f"# {wish.environment}", *lines)
        return Order(
            environments.inputs_hash(asked, python, self.index), wish.environment, lines, python
        )

    def _python(self, command: str) -> Python:
        if command not in self._pythons:
            self._pythons[command] = environments.find_python(command)
        return self._pythons[command]

    def _hit(self, inputs: str) -> Done | None:
        name, when = self._locks.get(inputs, ("", 0.0))
        if name not in self._kept:
            return None
        # What was installed from a lock is what the lock says, for ever.
        if name.startswith(NODE_PREFIX) or self.clock() - when < LOCK_SECONDS:
            return Done(name, 0.0, 0.0, "")
        return None

    def _build_once(self, order: Order) -> tuple[asyncio.Task[Done], bool]:
        """The build of ``order``, and whether it has been started for this call."""
        task = self._building.get(order.inputs)
        if task is not None:
            return task, False
        if len(self._building) >= QUEUE:
            raise Failed(_BUSY, fault=True, seconds=0.0, cpu_seconds=0.0)
        task = asyncio.get_running_loop().create_task(self._build(order))
        self._building[order.inputs] = task
        task.add_done_callback(lambda _: self._building.pop(order.inputs, None))
        return task, True

    async def _build(self, order: Order) -> Done:
        async with self._turn:
            started = self.clock()
            installer = self._make_installer()
            self._installers.add(installer)
            try:
                await self.make_room()
                directory, record, said = await self._try(installer, order, started)
                while not await self._admit(order, directory, record):
                    directory, record, said = await self._try(installer, order, started)
            except (SandrunError, OSError) as error:
                fault = not isinstance(error, PackageError) or error.fault
                raise Failed(
                    package_index.redact(str(error)),
                    fault=fault,
                    seconds=self.clock() - started,
                    cpu_seconds=installer.cpu_seconds,
                ) from error
            finally:
                self._installers.discard(installer)
            self._remember(order.inputs, directory.name)
            return Done(
                directory.name, self.clock() - started, installer.cpu_seconds, "\n".join(said)
            )

    async def _try(
        self, installer: Installer, order: Order, started: float
    ) -> tuple[Path, Record, list[str]]:
        """Twice, if it is our sandbox that came to an end, as when somebody kills it."""
        try:
            return await asyncio.to_thread(self._build_directory, installer, order)
        except PackageError as error:
            late = self.clock() - started > self.config.packages.install_timeout_s / 2
            if not error.fault or late or installer.killed:
                raise
            log.warning("installing for a job failed, once more: %s", error)
        return await asyncio.to_thread(self._build_directory, installer, order)

    def _build_directory(
        self, installer: Installer, order: Order
    ) -> tuple[Path, Record, list[str]]:
        """In a thread. Raises :class:`PackageError`."""
        if order.lock is not None and order.registry is not None:
            return self._build_node(installer, order, order.lock, order.registry)
        started = time.monotonic()
        with Workshop(self.directory, installer.uid) as workshop:
            lock = environments.make_lock(installer, workshop, order.python, order.lines)
            count = lock.count("==")
            said = [f"resolved {count} packages in {time.monotonic() - started:.2f} s"]
            # The named environment is part of the name: its preload and mode are.
            target = self.directory / self._name(order.base, lock, order.python)
            record = environments.read_record(target)
            if record is None:
                started = time.monotonic()
                built = environments.install(
                    installer,
                    workshop,
                    order.python,
                    lock,
                    environments.reserved_commands(self.config),
                )
                listed = environments.packages(environments.site_packages(built, order.python))
                record = environments.Record(
                    inputs=order.inputs, lock=lock, python=order.python, packages=listed
                )
                environments.write_record(built, record)
                _put(built, target)
                said.append(f"installed them in {time.monotonic() - started:.2f} s")
            return target, record, said

    def _build_node(
        self, installer: Installer, order: Order, lock: NodeLock, registry: npm.Registry
    ) -> tuple[Path, Record, list[str]]:
        started = time.monotonic()
        target = self.directory / (NODE_PREFIX + order.inputs)
        with Workshop(self.directory, installer.uid) as workshop:
            reserved = environments.reserved_commands(self.config)
            built, words = npm.install(installer, workshop, lock, registry, order.python, reserved)
            record = environments.Record(
                inputs=order.inputs, lock="", python=order.python, packages=()
            )
            environments.write_record(built, record)
            _put(built, target)
        seconds = time.monotonic() - started
        said = [f"installed {lock.packages} packages of the lock in {seconds:.2f} s"]
        return target, record, [*said, words[:1000]] if words else said

    @staticmethod
    def _name(base: str, lock: str, python: Python) -> str:
        return PREFIX + environments.lock_hash(f"# {base}\n{lock}", python)

    async def _admit(self, order: Order, directory: Path, record: Record) -> bool:
        """Give the environment a spawner, unless it has one. False if it was evicted between
        being found and now.
        """
        name = directory.name
        async with self._adding:
            if name in self._kept:
                self._kept[name].used = self.clock()
                return True
            if not _is_there(directory):
                return False
            base = self.config.environments[order.base]
            if order.lock is not None:
                node = node_interpreter(self.config) or base.interpreter
                base = msgspec.structs.replace(base, interpreter=node, mode="", preload=())
            # One zygote waits: a lock that comes back finds it, and many locks cost little.
            mode = base.mode or self.config.interpreters[base.interpreter].mode
            # Never "fork": a client's packages get no template that others share.
            mode = "door" if mode == "fork" else mode
            environment = msgspec.structs.replace(base, packages=(), ready=1, mode=mode)
            try:
                await self.pool.add_environment(name, environment, str(directory))
            except SandrunError:
                await asyncio.to_thread(remove_tree, self._take_away(directory))
                raise
            size = await asyncio.to_thread(_size_of, directory)
            self._kept[name] = Kept(directory, record, size, self.clock())
        await self.make_room()
        return True

    def _remember(self, inputs: str, name: str) -> None:
        self._locks.pop(inputs, None)
        self._locks[inputs] = (name, self.clock())
        while len(self._locks) > _LOCKS:
            del self._locks[next(iter(self._locks))]

    async def make_room(self) -> None:
        """Evict what is too much. A quarter of the memory is for the next build."""
        packages = self.config.packages
        evicted = []
        for name in victims(
            self._kept,
            self.pool.is_idle,
            self.clock(),
            count=packages.cache_environments,
            size_bytes=packages.cache_mb * MIB * 3 // 4,
        ):
            self.pool.remove_environment(name)
            evicted.append(self._take_away(self._kept.pop(name).directory))
        for gone in evicted:
            await asyncio.to_thread(remove_tree, gone)

    def _take_away(self, directory: Path) -> Path:
        """Nobody finds it half there: it has another name before it is removed, which is
        done in a thread, since a package may have so many files that it takes seconds.
        """
        self._removed += 1
        return directory.rename(self.directory / f"{_GONE}{self._removed}")

    async def stop(self) -> None:
        """End the builds that run and return when they have."""
        tasks = list(self._building.values())
        while self._building:
            for installer in self._installers:
                installer.kill()
            # One that waited for its turn meanwhile begins, and is ended in its turn.
            await asyncio.wait(self._building.values(), timeout=0.1)
        await asyncio.gather(*tasks, return_exceptions=True)


def node_interpreter(config: Config) -> str | None:
    """Name of the interpreter that is node."""
    for name, interpreter in config.interpreters.items():
        if os.path.basename(interpreter.command[0]) == "node":
            return name
    return None


def _is_there(directory: Path) -> bool:
    return directory.is_dir()  # of a tmpfs: it does not block


def _put(built: Path, target: Path) -> None:
    """Into its place. Two builds at once may come to the same lock by different words: the
    second finds it taken, by the same content.
    """
    try:
        built.rename(target)
    except OSError:
        if environments.read_record(target) is None:
            raise


def _size_of(directory: Path) -> int:
    return sum(
        os.lstat(os.path.join(root, name)).st_blocks * 512 + _INODE_BYTES
        for root, directories, files in os.walk(directory)
        for name in (*files, *directories)
    )


def installer_factory(
    config: Config,
    index: package_index.Index,
    program: bytes,
    control: tuple[Iterable[str], Iterable[int]] = ((), ()),
) -> Callable[[], Installer]:
    """Installers for :class:`Installs`; ``control``: files of the group they run in."""

    def make() -> Installer:
        return Installer(
            index,
            config.pool.uid_base + environments.BUILD_UID_OFFSET,
            program,
            private_hosts=config.packages.private_hosts,
            file_hosts=config.packages.file_hosts,
            timeout_s=config.packages.install_timeout_s,
            control=(tuple(control[0]), tuple(control[1])),
        )

    return make
