"""package.json and package-lock.json, checked and re-emitted clean. Pure.

A lock of npm says where each package comes from, and that can be a git
repository, a path or any URL. Only packages of a registry are taken, with the
hash of their content; what is not understood is refused with its entry named, and
what is passed on holds nothing but what was understood.

Where a registry is, the host's npm knows, not this process: the origins that a
lock names are told, each with the first entry that names it.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from sandrun.errors import SandrunError
from sandrun.messages import MAX_LOCK_BYTES, NodeLock, Origin

MAX_TEXT: Final = 1024 * 1024  # a lock of 2000 packages
MAX_ENTRIES: Final = 2000
_MAX_ORIGINS: Final = 8
_WORD: Final = r"[A-Za-z0-9._~-]{1,214}"  # npm's rule for names, with the old upper case
_NAME: Final = re.compile(rf"(?:@{_WORD}/)?{_WORD}")
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+[0-9A-Za-z.+-]{0,128}")
_INTEGRITY: Final = re.compile(r"(?:sha(?:1|256|384|512)-[A-Za-z0-9+/=]{16,128} ?){1,4}")
_RANGE: Final = re.compile(rf"(?:npm:(?:@{_WORD}/)?{_WORD}@?)?[0-9A-Za-z .,^~<>=|*+_-]{{0,512}}")
_BIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_FILE: Final = re.compile(r"(?!.*\.\./)(?:\./)?[A-Za-z0-9._@/+-]{1,256}")
_WANTS: Final = ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies")
_FLAGS: Final = ("dev", "optional", "devOptional", "peer", "inBundle", "extraneous")
_LISTS: Final = ("os", "cpu", "libc")
_CURE: Final = 'run "npm install --package-lock-only" and send package-lock.json along'


class LockError(SandrunError):
    """An entry that cannot be had."""

    def __init__(self, entry: str, why: str) -> None:
        super().__init__(f"{entry[:120]!r}: {why}" if entry else why)
        self.entry = entry


def parse(lock_text: str, package_text: str | None = None) -> NodeLock:
    """The lock as the installer may see it. Raises :class:`LockError`.

    ``package_text``: package.json, if it is at hand; it must agree with the lock.
    """
    key = _key(lock_text, package_text or "\0")
    found = _known.pop(key, None) or _parse(lock_text, package_text)
    _known[key] = found  # the latest is the last
    while len(_known) > _KNOWN:
        del _known[next(iter(_known))]
    return found


# Parsing takes 20 us an entry: the same lock comes again with every job that has it.
_KNOWN: Final = 64  # of at most 96 KiB
_known: Final[dict[bytes, NodeLock]] = {}


def _key(*texts: str) -> bytes:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.digest()


def _parse(lock_text: str, package_text: str | None) -> NodeLock:
    lock = _object("package-lock.json", lock_text)
    packages = lock.get("packages")
    if lock.get("lockfileVersion") not in (2, 3) or not isinstance(packages, dict):
        raise LockError("", "package-lock.json is of an old format; npm 7 or newer writes another")
    if len(packages) > MAX_ENTRIES:
        raise LockError("", f"more than {MAX_ENTRIES} packages")
    root = _wants("", _mapping("", packages.get("", {})))
    if package_text is not None:
        _compare(root, _wants("", _object("package.json", package_text)))
    entries: dict[str, Any] = {"": {"name": "job", "version": "0.0.0", **root}}
    origins: dict[str, str] = {}
    for path in sorted(packages):
        if path:
            entries[path] = _entry(path, _mapping(path, packages[path]), origins)
    package = {"name": "job", "version": "0.0.0", "private": True, **root}
    clean = {"name": "job", "version": "0.0.0", "lockfileVersion": 3, "packages": entries}
    data = zlib.compress(msgspec.json.encode([package, clean], order="sorted"))
    if len(data) > MAX_LOCK_BYTES:
        raise LockError("", f"the lock takes {len(data)} bytes; {MAX_LOCK_BYTES} at most")
    return NodeLock(
        data=data,
        packages=len(entries) - 1,
        origins=tuple(Origin(url=url, entry=entry) for url, entry in origins.items()),
    )


def missing(name: str) -> LockError:
    """One of the two files is not in the upload."""
    if name == "package.json":
        return LockError("", "package-lock.json is there, and package.json is not: send both")
    return LockError("", f"package.json is there, and package-lock.json is not: {_CURE}")


def _object(name: str, text: str) -> dict[str, Any]:
    if len(text) > MAX_TEXT:
        raise LockError("", f"{name} is larger than {MAX_TEXT // 1024} KiB")
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        raise LockError("", f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise LockError("", f"{name} is not an object")
    return found


def _mapping(path: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LockError(path or "packages", "not an object")
    return value


def _compare(locked: dict[str, dict[str, str]], wanted: dict[str, dict[str, str]]) -> None:
    for key in _WANTS:
        mine, theirs = wanted.get(key, {}), locked.get(key, {})
        for name in sorted(mine.keys() | theirs.keys()):
            # npm lists what is optional in both places
            if mine.get(name) != theirs.get(name) and not (
                key == "dependencies" and name in wanted.get("optionalDependencies", {})
            ):
                raise LockError(name, f"package.json and package-lock.json differ; {_CURE}")


def _wants(path: str, entry: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What an entry needs: ranges of registry packages, nothing else."""
    if entry.get("workspaces"):
        raise LockError(path or "workspaces", "workspaces are not installed")
    found = {}
    for key in _WANTS:
        if entry.get(key) is None:
            continue
        wanted = _mapping(path, entry[key])
        for name, version in wanted.items():
            if not _NAME.fullmatch(name) or not isinstance(version, str):
                raise LockError(name, "not the name of a package with a version")
            if not _RANGE.fullmatch(version):
                raise LockError(
                    name, f"{version[:120]!r}: only packages of the registry are installed"
                )
        if wanted:
            found[key] = dict(sorted(wanted.items()))
    return found


def _entry(path: str, entry: dict[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    steps = path.split("node_modules/")
    if steps[0] or len(steps) > 40 or not all(_is_step(step) for step in _between(steps)):
        raise LockError(path, "not a place below node_modules")
    if entry.get("link"):
        raise LockError(path, "links are not installed")
    version = entry.get("version")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise LockError(path, "has no version of the registry")
    clean: dict[str, Any] = {"version": version, **_wants(path, entry)}
    clean |= {flag: True for flag in _FLAGS if entry.get(flag) is True}
    if isinstance(entry.get("name"), str) and _NAME.fullmatch(entry["name"]):
        clean["name"] = entry["name"]  # an alias
    for key in _LISTS:
        values = entry.get(key)
        if isinstance(values, list) and all(
            isinstance(value, str) and re.fullmatch(r"!?[a-z0-9]{1,16}", value) for value in values
        ):
            clean[key] = values
    clean |= _optional_peers(entry) | _programs(path, entry)
    if not clean.get("inBundle"):
        clean |= _source(path, entry, origins)
    return clean


def _between(steps: list[str]) -> list[str]:
    """Names between ``node_modules/`` and the next one's slash."""
    names = steps[1:]
    if not names or not all(name.endswith("/") for name in names[:-1]):
        return [""]
    return [name.removesuffix("/") for name in names]


def _is_step(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and not name.startswith(".")


def _source(path: str, entry: dict[str, Any], origins: dict[str, str]) -> dict[str, str]:
    found = {}
    resolved = entry.get("resolved")
    if resolved is not None:
        origin = _origin(path, resolved)
        if origin not in origins and len(origins) == _MAX_ORIGINS:
            raise LockError(path, "the lock names too many hosts")
        origins.setdefault(origin, path[:256])
        found["resolved"] = resolved
    integrity = entry.get("integrity")
    if not isinstance(integrity, str) or not _INTEGRITY.fullmatch(integrity):
        raise LockError(path, "has no hash of its content (integrity)")
    return {**found, "integrity": integrity}


def _origin(path: str, resolved: object) -> str:
    """``https://host:port`` of a file of a registry."""
    text = resolved if isinstance(resolved, str) and len(resolved) < 1024 else ""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise LockError(path, "its address is not one") from None
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise LockError(
            path, f"{text[:120]!r}: only packages of the registry are installed, by version"
        )
    return f"{url.scheme}://{url.hostname}:{port or (443 if url.scheme == 'https' else 80)}"


def _optional_peers(entry: dict[str, Any]) -> dict[str, Any]:
    meta = entry.get("peerDependenciesMeta")
    if not isinstance(meta, dict):
        return {}
    names = [
        name
        for name, value in meta.items()
        if _NAME.fullmatch(name) and isinstance(value, dict) and value.get("optional") is True
    ]
    return {"peerDependenciesMeta": {name: {"optional": True} for name in sorted(names)}}


def _programs(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    programs = entry.get("bin")
    if programs is None:
        return {}
    if not isinstance(programs, dict) or not all(
        isinstance(target, str) and _BIN.fullmatch(name) and _FILE.fullmatch(target)
        for name, target in programs.items()
    ):
        raise LockError(path, "its programs (bin) are not names and files")
    return {"bin": dict(sorted(programs.items()))}
