"""Named environments: packages that are there before the job is.
Runs as: root (supervisor, or ``sandrun env``). I/O; blocks.

An environment is a directory ``NAME-HASH`` laid out like a venv. It is mounted
read-only at ``/opt/env``, whose ``bin`` comes first on a job's PATH; the
interpreter in it is a link to the one in the sandbox's ``/usr``, and finds its
packages by the ``pyvenv.cfg`` beside it, however it is started.

Its life. The requirement lines, the interpreter and the index settings make up
the *inputs*; while they are unchanged the directory is used as it is, without
asking a network. Otherwise uv resolves them to a *lock* (exact versions, with the
hashes of the files), and HASH is the lock's: an environment is rebuilt only when
its lock changes. uv installs into a directory of its own uid, which is then
given to root, without any write permission, and renamed into place.

No code of a package runs here. Wheels only, so there is no ``setup.py``; modules
are compiled by an interpreter that does not look at the directory (``-I -S``),
because a ``.pth`` file in it would be executed at an interpreter's start.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

import msgspec

from sandrun import requirements
from sandrun.config import Config, Environment
from sandrun.errors import HostError, SandrunError
from sandrun.messages import EnvironmentInfo, Package
from sandrun.pool import mounts, package_index, seccomp
from sandrun.pool.builder import WORK
from sandrun.pool.directory_lock import try_lock, wait_lock
from sandrun.pool.installer import UV, Installer
from sandrun.pool.workshop import PREFIX, PackageError, Workshop, read_start, remove_tree, seal

BUILD_UID_OFFSET: Final = -2  # below the id of http; the proxy's is one further down
RECORD: Final = "sandrun-environment.json"
_FORMAT: Final = 1  # of what is installed: a change rebuilds every environment
_LOCK_BYTES: Final = 4 * 1024 * 1024  # 300 packages with the hashes of all their wheels
_PROBE: Final = (
    "import sys,sysconfig as s;print(sys.implementation.name,"
    "*sys.version_info[:3],s.get_config_var('SOABI'))"
)
_TREES: Final = ("/usr/", "/bin/", "/lib/", "/lib64/")  # what a sandbox sees of the host
_METADATA_BYTES: Final = 16 * 1024  # its name and version come first
_MAX_PACKAGES: Final = 1000  # listed by /environments

Say = Callable[[str], None]


class Python(msgspec.Struct, frozen=True, kw_only=True):
    """An interpreter of the sandbox's root file system."""

    program: str  # without links
    version: str  # "3.11.2"
    abi: str

    @property
    def name(self) -> str:
        """``python3.11``."""
        return "python" + ".".join(self.version.split(".")[:2])


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Lies in each environment's directory."""

    inputs: str  # hash of what was asked for
    lock: str
    python: Python
    packages: tuple[Package, ...]


# ── what is asked for ────────────────────────────────────────────────────────


def find_python(command: str, path: str = mounts.PATH) -> Python:
    """The Python that ``command`` means in a sandbox. Raises :class:`PackageError`.

    Never the server's own: that may live in a venv that no sandbox sees.
    """
    for directory in path.split(":"):
        found = shutil.which(command, path=directory)
        if found is None:
            continue
        program = os.path.realpath(found)
        if program.startswith(_TREES):
            return _probe(program)
    raise PackageError(f"no {command} on {path}, which is what a sandbox has of this host")


def _probe(program: str) -> Python:
    try:
        result = subprocess.run(
            (program, "-I", "-S", "-c", _PROBE), capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{program}: {error}") from error
    words = result.stdout.decode("utf-8", "replace").split()
    if len(words) != 5 or words[0] != "cpython":
        raise PackageError(f"{program} is not a CPython, so packages cannot be installed for it")
    return Python(program=program, version=".".join(words[1:4]), abi=words[4])


def inputs_hash(lines: Iterable[str], python: Python, index: package_index.Index) -> str:
    """Changes when what is asked for does. An index's password does not count."""
    constraints = [_text(Path(path)) for path in index.constraints]
    asked = (
        _FORMAT,
        tuple(lines),
        python,
        [package_index.redact(url) for url in index.urls],
        (index.no_index, index.best_match, constraints),
    )
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def lock_hash(lock: str, python: Python) -> str:
    """Names the content: same lock, same interpreter, same packages."""
    data = msgspec.json.encode((_FORMAT, lock, python, platform.machine()))
    return hashlib.sha256(data).hexdigest()[:32]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


# ── locking and installing ───────────────────────────────────────────────────


def make_lock(
    installer: Installer, workshop: Workshop, python: Python, lines: tuple[str, ...]
) -> str:
    """Resolve ``lines``. Raises :class:`PackageError` with the resolver's words."""
    command = [UV, "pip", "compile", workshop.give("requirements.in", "\n".join(lines) + "\n")]
    command += ["--output-file", f"{WORK}/lock.txt", "--generate-hashes", "--only-binary", ":all:"]
    command += ["--python", python.program, "--no-annotate", "--no-header", "--quiet"]
    constraints = "\n".join(_text(Path(path)) for path in installer.index.constraints)
    if constraints.strip():
        command += ["--constraints", workshop.give("constraints.txt", constraints)]
    installer.run(workshop, (tuple(command),), projects=requirements.names(lines))
    return workshop.take("lock.txt", _LOCK_BYTES)


def lay_out(directory: Path, python: Python, owner: int) -> None:
    """The skeleton of a venv for :data:`mounts.ENVIRONMENT`. ``owner`` may fill it."""
    site = site_packages(directory, python)
    site.mkdir(parents=True)
    (directory / "bin").mkdir()
    for name in ("python", "python3", python.name):
        (directory / "bin" / name).symlink_to(python.program)
    (directory / "lib64").symlink_to("lib")
    (directory / "pyvenv.cfg").write_bytes(_pyvenv(python))
    for path in (directory, directory / "bin", directory / "lib", site.parent, site):
        os.chown(path, owner, owner)


def check_skeleton(directory: Path, python: Python, reserved: Collection[str]) -> list[str]:
    """Refuse a tree in which a wheel wrote over the venv itself; what was left out of ``bin``.

    A wheel's ``data`` goes anywhere below the environment. The attacks: a
    ``pyvenv.cfg`` (also one in ``bin``), ``pybuilddir.txt`` or ``._pth`` tells the
    interpreter to take its standard library from the package, and then ``-I -S``
    runs the package's code; a ``bin/node`` is found before the host's, and is asked
    for its version outside of any job. ``reserved``: commands of the interpreters.
    Raises :class:`PackageError`.
    """
    programs = directory / "bin"
    site = site_packages(directory, python)
    for path in (directory / "lib", site.parent, site, programs):
        if path.is_symlink() or not path.is_dir():
            raise _overwritten(path.name)
    config = directory / "pyvenv.cfg"
    if config.is_symlink() or not config.is_file() or config.read_bytes() != _pyvenv(python):
        raise _overwritten(config.name)
    if not (directory / "lib64").is_symlink() or os.readlink(directory / "lib64") != "lib":
        raise _overwritten("lib64")
    links = {"python", "python3", python.name}
    for name in links:
        if not (programs / name).is_symlink() or os.readlink(programs / name) != python.program:
            raise _overwritten(f"bin/{name}")
    left_out = []
    for entry in sorted(os.scandir(programs), key=lambda entry: entry.name):
        if entry.name in links:
            continue
        if not entry.is_file(follow_symlinks=False) or _LANDMARK.search(entry.name):
            raise _overwritten(f"bin/{entry.name}")
        if entry.name in reserved or entry.name.startswith("python"):
            os.unlink(entry.path)
            left_out.append(entry.name)
    return left_out


_LANDMARK: Final = re.compile(r"^pyvenv\.cfg$|^pybuilddir\.txt$|\._pth$|\.zip$", re.IGNORECASE)


def _overwritten(name: str) -> PackageError:
    return PackageError(f"a package puts a {name!r} of its own into the environment's place")


def _pyvenv(python: Python) -> bytes:
    return (
        f"home = {os.path.dirname(python.program)}\n"
        "include-system-site-packages = false\n"
        f"version = {python.version}\n"
    ).encode()


def reserved_commands(config: Config) -> frozenset[str]:
    """Names that no package may have for a program: an interpreter is the host's.

    One that is a script itself starts other programs by name when it is asked for its
    version: then no program of the host may be shadowed.
    """
    commands = [interpreter.command[0] for interpreter in config.interpreters.values()]
    names = {os.path.basename(command) for command in commands}
    if any(_is_script(shutil.which(command, path=mounts.PATH)) for command in commands):
        for directory in mounts.PATH.split(":"):
            names.update(os.listdir(directory) if os.path.isdir(directory) else ())
    return frozenset(names)


def _is_script(program: str | None) -> bool:
    if program is None:
        return False
    try:
        with open(program, "rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def site_packages(directory: Path, python: Python) -> Path:
    """Where the packages are."""
    return directory / "lib" / python.name / "site-packages"


def install(
    installer: Installer,
    workshop: Workshop,
    python: Python,
    lock: str,
    reserved: Collection[str] = (),
) -> Path:
    """Install ``lock``; returns the finished directory, which is root's. Raises
    :class:`PackageError`. ``reserved``: as in :func:`check_skeleton`.
    """
    directory = workshop.env
    lay_out(directory, python, installer.uid)
    names = tuple(line.partition("==")[0] for line in lock.splitlines() if "==" in line)
    inside = mounts.ENVIRONMENT
    sync: tuple[str, ...] = (UV, "pip", "sync", workshop.give("lock.txt.given", lock))
    sync += (
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--python",
        f"{inside}/bin/python3",
        "--quiet",
    )
    site = f"{inside}/lib/{python.name}/site-packages"
    # unchecked: the tree never changes, so an import need not compare times.
    # Files that are not Python 3 (templates, tests of syntax errors) fail: no matter.
    code = (
        "import compileall,os,re;"
        f"compileall.compile_dir({site!r},quiet=2,workers=os.cpu_count(),maxlevels=40,"
        "rx=re.compile('/tests/'),"  # half of pandas; seldom imported
        "invalidation_mode=__import__('py_compile').PycInvalidationMode.UNCHECKED_HASH)"
    )
    compiling = (python.program, "-I", "-S", "-c", code)
    installer.run(
        workshop,
        (sync, compiling) if names else (compiling,),
        projects=names[:8],
        writable=((str(directory), inside),),
    )
    check_skeleton(directory, python, reserved)
    seal(directory)
    return directory


# ── an environment's directory ───────────────────────────────────────────────


class Store:
    """The directories of all named environments."""

    def __init__(self, directory: str) -> None:
        self.path = Path(directory)

    def open(self) -> None:
        """Make the directory; it must be root's alone. Raises :class:`PackageError`."""
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        info = self.path.stat()
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise PackageError(f"{self.path} may be written by others; chown root and chmod 755 it")

    def of(self, name: str) -> list[tuple[Path, Record]]:
        """(directory, record) of each build of ``name`` that is whole."""
        found = []
        for directory in self.path.glob(f"{name}-*"):
            tail = directory.name.removeprefix(f"{name}-")
            if len(tail) == 32 and "-" not in tail and (record := read_record(directory)):
                found.append((directory, record))
        return found

    def adopt(self, built: Path, name: str, record: Record) -> Path:
        """Move a finished build into place under its lock's hash."""
        target = self.path / f"{name}-{lock_hash(record.lock, record.python)}"
        write_record(built, record)
        # A directory that others may see is never half there. (Two builders at once
        # make the same content: the second finds the place taken.)
        try:
            built.rename(target)
        except OSError:
            if read_record(target) is None:
                raise
        return target

    def prune(self, name: str, keep: Path) -> None:
        """Remove the other builds of ``name``."""
        for directory, _ in self.of(name):
            if directory != keep:
                remove_tree(directory)

    def sweep(self) -> list[str]:
        """Remove what killed builders have left, and say what. One that is at work, of
        this server or of another, holds a lock.
        """
        swept: list[str] = []
        if not self.path.is_dir():
            return swept
        turn = wait_lock(self.path)  # between its making and its lock there is a moment
        try:
            for left in sorted(self.path.glob(f"{PREFIX}*")):
                if (lock := try_lock(left)) is not None:
                    remove_tree(left)
                    os.close(lock)
                    swept.append(left.name)
        finally:
            os.close(turn)
        return swept


def read_record(directory: Path) -> Record | None:
    """The record of a finished build, or None."""
    try:
        return msgspec.json.decode((directory / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def write_record(directory: Path, record: Record) -> None:
    """Write it whole or not at all."""
    new = directory / f"{RECORD}.new"
    # A wheel may have brought something of this name: never write through it.
    for path in (new, directory / RECORD):
        if path.is_dir() and not path.is_symlink():
            raise _overwritten(path.name)
    new.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, 0o444), "wb") as file:
        file.write(msgspec.json.encode(record))
    new.rename(directory / RECORD)


def packages(site: Path, *, follow: bool = False) -> tuple[Package, ...]:
    """Name and version of what is installed, from the start of its metadata.

    A package decides what that is and how long: root's process looks for two short
    fields and parses nothing. ``follow`` links, in an operator's own directory.
    """
    found: dict[str, Package] = {}
    with os.scandir(site) as scan:
        names = sorted(e.name for e in scan if e.name.endswith((".dist-info", ".egg-info")))
    for entry in names:
        fields = _fields(site / entry, follow=follow)
        name = fields.get("name", "")
        if name and len(found) < _MAX_PACKAGES:
            version = fields.get("version", "")
            found[name.lower()] = Package(name=name[:128], version=version[:128])
    return tuple(found[key] for key in sorted(found))


def _fields(info: Path, *, follow: bool) -> dict[str, str]:
    """The first fields of a distribution's metadata. Old ones are a file themselves."""
    for path in (info / "METADATA", info / "PKG-INFO", info):
        head = read_start(path, _METADATA_BYTES, follow=follow)
        if head is not None:
            break
    else:
        return {}
    fields: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            break  # the description follows
        fields.setdefault(key.lower(), value.strip())
    return fields


# ── all of them ──────────────────────────────────────────────────────────────


class Environments:
    """Builds what is missing. ``say`` gets a line for each step that takes time."""

    def __init__(self, config: Config, say: Say, index: package_index.Index | None = None) -> None:
        self.config = config
        self.say = say
        self.index = index or package_index.discover(config.packages, os.environ)
        self.store = Store(config.pool.environments_dir)
        self._installer: Installer | None = None

    @property
    def installer(self) -> Installer:
        """Made when the first environment must be built."""
        if self._installer is None:
            uid = self.config.pool.uid_base + BUILD_UID_OFFSET
            self._installer = Installer(
                self.index,
                uid,
                seccomp.job_program("default"),
                private_hosts=self.config.packages.private_hosts,
                file_hosts=self.config.packages.file_hosts,
            )
        return self._installer

    def python_of(self, environment: Environment) -> Python:
        """Its interpreter. Raises :class:`PackageError`."""
        return find_python(self.config.interpreters[environment.interpreter].command[0])

    def ensure(self, name: str, *, upgrade: bool = False) -> tuple[str, EnvironmentInfo]:
        """Directory ("" for none) and description. Raises :class:`SandrunError`, OSError."""
        environment = self.config.environments[name]
        info = EnvironmentInfo(
            name=name,
            interpreter=environment.interpreter,
            description=environment.description[:4096],
        )
        if environment.path:
            return environment.path, _existing(environment.path, info)
        if not environment.packages:
            return "", info
        directory, record = self._built(name, environment, upgrade=upgrade)
        return str(directory), msgspec.structs.replace(
            info,
            version=record.python.version,
            packages=record.packages,
        )

    def _built(self, name: str, environment: Environment, *, upgrade: bool) -> tuple[Path, Record]:
        python = self.python_of(environment)
        lines = requirements.parse("\n".join(environment.packages))
        inputs = inputs_hash(lines, python, self.index)
        self.store.open()
        builds = self.store.of(name)
        for directory, record in builds:
            if record.inputs == inputs and not upgrade:
                return directory, record
        started = time.monotonic()
        self.say(f"environment {name}: resolving {len(lines)} requirements")
        with Workshop(self.store.path, self.installer.uid) as workshop:
            lock = make_lock(self.installer, workshop, python, lines)
            for directory, old in builds:
                if (old.lock, old.python) == (lock, python):
                    record = msgspec.structs.replace(old, inputs=inputs)
                    write_record(directory, record)
                    self.say(f"environment {name}: its lock is unchanged")
                    return directory, record
            self.say(f"environment {name}: installing {lock.count('==')} packages")
            built = install(self.installer, workshop, python, lock, reserved_commands(self.config))
            listed = packages(site_packages(built, python))
            record = Record(inputs=inputs, lock=lock, python=python, packages=listed)
            directory = self.store.adopt(built, name, record)
        self.store.prune(name, directory)
        self.say(f"environment {name}: built in {time.monotonic() - started:.1f} s")
        return directory, record


def _existing(path: str, info: EnvironmentInfo) -> EnvironmentInfo:
    """An operator's own venv, used as it is."""
    directory = Path(path)
    if not directory.is_dir():
        raise PackageError(f"path {path} is not a directory")
    sites = sorted(directory.glob("lib/python3*/site-packages"))
    version = sites[0].parent.name.removeprefix("python") if sites else ""
    listed = packages(sites[0], follow=True) if sites else ()
    return msgspec.structs.replace(info, version=version, packages=listed)


def ensure(
    config: Config, say: Say, *, names: Iterable[str] | None = None, upgrade: bool = False
) -> tuple[dict[str, str], tuple[EnvironmentInfo, ...]]:
    """Directory and description of every environment, built if need be.

    One that fails does not stop the others: it has no directory, and its
    description's ``fault`` says why.
    """
    environments = Environments(config, say)
    for left in environments.store.sweep():
        say(f"removed what a killed build had left: {left}")
    directories: dict[str, str] = {}
    infos = []
    for name in config.environments if names is None else names:
        try:
            directory, info = environments.ensure(name, upgrade=upgrade)
            directories[name] = directory
        except (SandrunError, OSError) as error:
            fault = package_index.redact(_words(error))
            say(f"environment {name} cannot be used: {fault}")
            info = EnvironmentInfo(
                name=name,
                interpreter=config.environments[name].interpreter,
                description=config.environments[name].description[:4096],
                fault=fault[:4096],
            )
        infos.append(info)
    return directories, tuple(infos)


def without_faulty(config: Config, infos: tuple[EnvironmentInfo, ...]) -> Config:
    """``config`` without the environments that could not be built: none is started.

    ``default`` stays, because it must; http refuses jobs for what has a fault.
    """
    faulty = {info.name for info in infos if info.fault} - {"default"}
    kept = {name: env for name, env in config.environments.items() if name not in faulty}
    return msgspec.structs.replace(config, environments=kept)


def _words(error: Exception) -> str:
    if isinstance(error, requirements.RequirementsError):
        return f"packages, {error}"
    if isinstance(error, HostError):
        return f"{error.what}; {error.cure}"
    return str(error)
