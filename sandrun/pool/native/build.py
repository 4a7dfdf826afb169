"""Compile PID 1, once per version of its source. Runs as: root (supervisor). I/O, a
compiler.

The result is kept beside the source if that can be written to, for the next start;
otherwise it is made again, which takes about two seconds. Whoever could change either could change
this file as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).parent
CACHE: Final = SOURCE / ".build"
TIMEOUT_S: Final = 120.0
CURE: Final = "apt install gcc libc6-dev"
_COMPILERS: Final = ("cc", "gcc", "clang")
_COMMON: Final = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fstack-protector-strong"),
    *("-Wl,-z,relro", "-Wl,-z,now"),
)
_INIT_FLAGS: Final = (*_COMMON, "-D_FORTIFY_SOURCE=2", "-fPIE", "-static-pie")
_LIBRARIES: Final = ("launch", "fork")
_LIBRARY_FLAGS: Final = (*_COMMON, "-shared", "-fPIC")
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class NotBuilt(Exception):
    """There is no compiled PID 1, and why."""


class Native(NamedTuple):
    """Sealed memory files: PID 1's program, the library that starts it, and the one by
    which templates fork.
    """

    init: int
    launch: int
    fork: int


def load(defines: tuple[str, ...] = ()) -> Native:
    """Build if need be. The descriptors are the caller's. Raises :class:`NotBuilt`.

    ``defines``: for tests, see SANDRUN_FAULTS in sys.c and fork.c.
    """
    sources = sorted(path for path in SOURCE.iterdir() if path.suffix in {".c", ".h"})
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise NotBuilt(f"no C compiler; {CURE}")
    digest = hashlib.sha256(repr((compiler, _INIT_FLAGS, defines, platform.machine())).encode())
    for path in sources:
        digest.update(path.read_bytes())
    kept = CACHE / digest.hexdigest()[:16]
    try:
        return _read(kept)
    except OSError:
        pass  # not built yet
    with tempfile.TemporaryDirectory(prefix="sandrun-build-") as directory:
        _compile(compiler, Path(directory), defines)
        built = _read(Path(directory))
        _keep(Path(directory), kept)
    return built


def fault() -> str:
    """Why :func:`load` would not succeed, with the cure behind "; ", or ""."""
    try:
        for fd in load():
            os.close(fd)
    except NotBuilt as error:
        return str(error)
    return ""


def _compile(compiler: str, directory: Path, defines: tuple[str, ...]) -> None:
    macros = tuple(f"-D{name}" for name in defines)
    sources = sorted(str(path) for path in SOURCE.glob("*.c") if path.stem not in _LIBRARIES)
    for argv in (
        (compiler, *_INIT_FLAGS, *macros, "-o", str(directory / "init"), *sources),
        *(
            (
                compiler,
                *_LIBRARY_FLAGS,
                *macros,
                "-o",
                f"{directory}/{name}.so",
                f"{SOURCE}/{name}.c",
            )
            for name in _LIBRARIES
        ),
    ):
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotBuilt(f"{compiler}: {error}") from error
        if done.returncode:
            words = done.stderr.strip().splitlines()
            raise NotBuilt(f"{compiler}: {words[-1] if words else 'failed'}; {CURE}")


def _keep(directory: Path, kept: Path) -> None:
    """Publish whole or not at all: another start may do the same at this moment."""
    with contextlib.suppress(OSError):  # a read-only installation
        CACHE.mkdir(mode=0o755, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            copy = Path(place) / "copy"
            shutil.copytree(directory, copy)
            copy.rename(kept)


def _read(directory: Path) -> Native:
    names = ("init", *(f"{name}.so" for name in _LIBRARIES))
    contents = [(name, (directory / name).read_bytes()) for name in names]
    return Native(*(_sealed(f"sandrun-{name}", content) for name, content in contents))


def _sealed(name: str, content: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
