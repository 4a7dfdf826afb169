"""Packages for node: installed by npm in a build sandbox, exactly as a lock says.
Runs as: root (supervisor). Asks the host's npm for its settings; blocks.

The lock was parsed and re-emitted by http (``node_lock.py``) and is not looked at
here: it goes compressed into the build sandbox, where node unpacks it. What the
host's npm is configured for decides where packages come from: a lock that names
another server is refused with its entry, and the proxy would refuse it too.

No code of a package runs (``--ignore-scripts``). The result is laid out as an
environment: ``node_modules``, which a link at the sandbox's root leads to, and
``bin`` with the packages' programs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from sandrun.pool import mounts
from sandrun.pool.builder import WORK
from sandrun.pool.environments import Python
from sandrun.pool.installer import CA_FILE, Installer, Surroundings
from sandrun.pool.package_index import redact
from sandrun.pool.proxy import Settings
from sandrun.pool.workshop import PackageError, seal

if TYPE_CHECKING:
    from sandrun.config import Packages
    from sandrun.messages import NodeLock
    from sandrun.pool.workshop import Workshop

_TIMEOUT_S: Final = 30.0  # of npm telling its settings
_SCOPE: Final = re.compile(r"@[A-Za-z0-9._~-]+:registry")
_PROGRAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_AUTH: Final = re.compile(
    r"^\s*//([^:=\s]+?):(_authToken|_auth|username|_password)\s*=\s*(.*?)\s*$"
)
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z0-9_]+)\}")
_UNPACK: Final = (
    "const f=require('fs'),z=require('zlib');"
    "const [p,l]=JSON.parse(z.inflateSync(f.readFileSync('lock.z'),{maxOutputLength:1<<25}));"
    f"f.writeFileSync('{mounts.ENVIRONMENT}/package.json',JSON.stringify(p));"
    f"f.writeFileSync('{mounts.ENVIRONMENT}/package-lock.json',JSON.stringify(l));"
)


class Registry(msgspec.Struct, frozen=True, kw_only=True):
    """Where the host's npm gets packages from."""

    url: str
    scopes: dict[str, str] = {}  # "@scope:registry" → URL
    default: str = ""  # npm's own, whose address in a lock stands for ``url``
    auth: tuple[str, ...] = ()  # lines of an npmrc, for these servers only
    ca_file: str = ""
    proxy: str = ""
    strict_ssl: bool = True

    @property
    def origins(self) -> frozenset[str]:
        """Servers that a lock may name."""
        named = (self.url, self.default, *self.scopes.values())
        return frozenset(origin(url) for url in named if url)

    @property
    def identity(self) -> tuple[str, ...]:
        """What decides which package a name means, without passwords."""
        return (redact(self.url), *(f"{k}={redact(v)}" for k, v in sorted(self.scopes.items())))


def origin(url: str) -> str:
    """``https://host:port``. Raises :class:`PackageError`."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PackageError(f"npm's registry {redact(url)!r} is not an http(s) URL", fault=True)
    return f"{parts.scheme}://{parts.hostname}:{port}"


# ── what the host has ────────────────────────────────────────────────────────


def find(command: str) -> str:
    """Path of a program that sandboxes see too. Raises :class:`PackageError`."""
    for directory in mounts.PATH.split(":"):
        found = shutil.which(command, path=directory)
        if found is not None and os.path.realpath(found).startswith("/usr/"):
            return found
    raise PackageError(f"this server has no {command}, so packages for node cannot be installed")


def find_node(command: str) -> Python:
    """The node of a sandbox, with the version and ABI of its modules."""
    program = os.path.realpath(find(command))
    code = "console.log(process.versions.node,process.versions.modules)"
    words = _ask((program, "-e", code), {}).split()
    if len(words) != 2:
        raise PackageError(f"{program} is not a node")
    return Python(program=program, version=words[0], abi=words[1])


def discover(packages: Packages, environ: Mapping[str, str]) -> Registry:
    """The operator's registry, else those that npm tells. Raises :class:`PackageError`."""
    if packages.offline:
        raise PackageError("this server asks no registry for node's packages ([packages] offline)")
    npm = find("npm")
    listed = _ask((npm, "config", "ls", "-l", "--json"), environ)
    bare = {"npm_config_userconfig": os.devnull, "npm_config_globalconfig": os.devnull}
    default = _ask((npm, "config", "get", "registry"), bare).strip()
    try:
        config = json.loads(listed)
    except ValueError as error:
        raise PackageError("npm does not tell its settings", fault=True) from error
    scopes = {key: str(value) for key, value in config.items() if _SCOPE.fullmatch(key)}
    registry = Registry(
        url=packages.npm_registry or str(config.get("registry") or default),
        scopes={} if packages.npm_registry else scopes,
        default=default,
        ca_file=packages.ca_file or str(config.get("cafile") or ""),
        proxy=str(config.get("https-proxy") or config.get("proxy") or ""),
        strict_ssl=config.get("strict-ssl") is not False,
    )
    files = (config.get("globalconfig"), config.get("userconfig"))
    lines = _auth_lines([Path(str(file)) for file in files if file], registry, environ)
    return msgspec.structs.replace(registry, auth=lines)


def _ask(argv: tuple[str, ...], environ: Mapping[str, str]) -> str:
    env = {
        "PATH": mounts.PATH,
        "HOME": "/nonexistent",
        **environ,
        "npm_config_update_notifier": "false",
    }
    try:
        return subprocess.run(
            argv, env=env, cwd="/", capture_output=True, timeout=_TIMEOUT_S, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{argv[0]}: {error}", fault=True) from error


def _auth_lines(
    files: list[Path], registry: Registry, environ: Mapping[str, str]
) -> tuple[str, ...]:
    """npm lists no credentials; they are read where it reads them, the last one wins."""
    hosts = {urlsplit(url).netloc for url in (registry.url, *registry.scopes.values())}
    found: dict[str, str] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for line in text.splitlines():
            match = _AUTH.match(line)
            if match and match[1].partition("/")[0] in hosts:
                value = _VARIABLE.sub(lambda name: environ.get(name[1], ""), match[3])
                found[f"//{match[1]}:{match[2]}"] = value
    return tuple(f"{key}={value}" for key, value in found.items())


# ── installing ───────────────────────────────────────────────────────────────


def check_origins(lock: NodeLock, registry: Registry, file_hosts: Collection[str]) -> None:
    """Refuse a lock that takes files from elsewhere. Raises :class:`PackageError`."""
    for named in lock.origins:
        if named.url not in registry.origins and urlsplit(named.url).hostname not in file_hosts:
            raise PackageError(
                f"package-lock.json: {named.entry!r} comes from {named.url}, which is not a "
                "registry of this server; only packages of its registries are installed"
            )


def install(
    installer: Installer,
    workshop: Workshop,
    lock: NodeLock,
    registry: Registry,
    node: Python,
    reserved: Collection[str],
) -> tuple[Path, str]:
    """Install; the finished directory, which is root's, and npm's words. Raises
    :class:`PackageError`.
    """
    check_origins(lock, registry, installer.file_hosts)
    directory = workshop.env
    workshop.give("lock.z", lock.data)
    npmrc = "\n".join((*_npmrc(registry), ""))
    workshop.give("home/.npmrc", npmrc, owner=installer.uid, mode=0o400)
    ci = (find("npm"), "ci", "--prefix", mounts.ENVIRONMENT, "--ignore-scripts")
    words = installer.run(
        workshop,
        ((node.program, "-e", _UNPACK), (*ci, "--no-audit", "--no-fund")),
        writable=((str(directory), mounts.ENVIRONMENT),),
        surroundings=_surroundings(installer, registry, network=lock.packages > 0),
    )
    _lay_out(directory, reserved)
    seal(directory)
    return directory, words.strip()


def _npmrc(registry: Registry) -> tuple[str, ...]:
    scopes = (f"{key}={value}" for key, value in registry.scopes.items())
    return (f"registry={registry.url}", *scopes, *registry.auth)


def _surroundings(installer: Installer, registry: Registry, *, network: bool) -> Surroundings:
    env = {
        "PATH": mounts.PATH,
        "HOME": f"{WORK}/home",
        "TMPDIR": f"{WORK}/tmp",
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "npm_config_userconfig": f"{WORK}/home/.npmrc",
        "npm_config_globalconfig": f"{WORK}/home/none",
        "npm_config_cache": f"{WORK}/cache",
        "npm_config_ignore_scripts": "true",
        "npm_config_update_notifier": "false",
        "npm_config_progress": "false",
        "npm_config_loglevel": "error",
        "npm_config_logs_max": "0",
        "npm_config_fetch_retries": "1",
        "npm_config_fetch_timeout": "60000",
        "npm_config_git": "/nonexistent",
        "npm_config_strict_ssl": str(registry.strict_ssl).lower(),
    }
    binds: tuple[tuple[str, str], ...] = ()
    if registry.ca_file and os.path.isfile(registry.ca_file):
        env["npm_config_cafile"] = CA_FILE
        binds = ((os.path.realpath(registry.ca_file), CA_FILE),)
    if not network:
        return Surroundings(env, binds, None)
    urls = (registry.url, *registry.scopes.values())
    parts = [urlsplit(url) for url in urls]
    ports = {p.port or (443 if p.scheme == "https" else 80) for p in parts}
    settings = Settings(
        hosts=(*dict.fromkeys(p.hostname or "" for p in parts), *installer.file_hosts),
        private_hosts=installer.private_hosts,
        ports=(443, *sorted(ports - {443})),
        ca_file=registry.ca_file,
        upstream=registry.proxy,
    )
    return Surroundings(env, binds, settings)


def _lay_out(directory: Path, reserved: Collection[str]) -> None:
    """``bin`` with links to the packages' programs, none of which is an interpreter's name.

    What npm left was written out of archives of strangers: nothing is followed.
    """
    for name in ("package.json", "package-lock.json"):
        (directory / name).unlink(missing_ok=True)
    modules = directory / "node_modules"
    if not modules.is_symlink() and not modules.exists():
        modules.mkdir()
    programs = modules / ".bin"
    for path in (modules, programs):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise PackageError(f"npm left a {path.name!r} that is not a directory")
    left = {entry.name for entry in os.scandir(directory)} - {"node_modules"}
    if left:
        raise PackageError(f"npm left {min(left)!r} beside node_modules")
    (directory / "bin").mkdir()
    for name in sorted(os.listdir(programs)) if programs.exists() else ():
        taken = name in reserved or name.startswith("python")
        if _PROGRAM.fullmatch(name) and not taken:
            (directory / "bin" / name).symlink_to(f"../node_modules/.bin/{name}")
