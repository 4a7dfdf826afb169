"""``python -m sandrun env build|list``: named environments from the command line.
Runs as: root to build, anybody to list. I/O.

Building ahead of time keeps a server's start short, and is the only thing that
asks the index for newer versions (``--upgrade``).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from sandrun import config
from sandrun.config import Config
from sandrun.errors import ConfigError
from sandrun.messages import EnvironmentInfo
from sandrun.pool import environments

EX_CONFIG = 78


def main(argv: list[str]) -> int:
    """Run one verb. Exit status 1 if an environment could not be built."""
    parser = argparse.ArgumentParser(prog="python -m sandrun env")
    parser.add_argument("verb", nargs="?", choices=("build", "list"), default="list")
    parser.add_argument("names", nargs="*", help="environments; all of the file when none is given")
    parser.add_argument("--config", type=Path, help="TOML file; see config.example.toml")
    parser.add_argument("--upgrade", action="store_true", help="build: resolve again, take newer")
    options = parser.parse_args(argv)
    try:
        settings = config.load(options.config) if options.config else Config()
    except ConfigError as error:
        print(f"sandrun: {error}", file=sys.stderr)
        return EX_CONFIG
    unknown = [name for name in options.names if name not in settings.environments]
    if unknown:
        known = ", ".join(settings.environments)
        print(f"sandrun: no environment {unknown[0]!r}; there are: {known}", file=sys.stderr)
        return 2
    names = options.names or list(settings.environments)
    if options.verb == "list":
        for name in names:
            print(_line(settings, name))
        return 0
    if os.geteuid() != 0:
        print("sandrun: building an environment needs root: sudo python -m sandrun env build")
        return 1
    _, infos = environments.ensure(settings, _say, names=names, upgrade=options.upgrade)
    for info in infos:
        print(_summary(info))
    return 1 if any(info.fault for info in infos) else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _summary(info: EnvironmentInfo) -> str:
    if info.fault:
        return f"{info.name}: failed"
    packages = " ".join(f"{package.name}=={package.version}" for package in info.packages)
    return f"{info.name}: {info.interpreter} {info.version} {packages}".rstrip()


def _line(settings: Config, name: str) -> str:
    environment = settings.environments[name]
    if environment.path:
        return f"{name}: as it is in {environment.path}"
    if not environment.packages:
        return f"{name}: {environment.interpreter}, no packages of its own"
    builds = environments.Store(settings.pool.environments_dir).of(name)
    if not builds:
        return f"{name}: not built"
    directory, record = builds[0]
    info = EnvironmentInfo(
        name=name,
        interpreter=environment.interpreter,
        version=record.python.version,
        packages=record.packages,
    )
    return f"{_summary(info)} ({directory})"
