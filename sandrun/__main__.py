"""sandrun's command line: argv in, exit code out.

::

    python -m sandrun [serve] [--config FILE] [--listen ADDR:PORT] [--self-signed] [--sample]
                      [--verbose]      serve; --listen also takes [V6]:PORT and unix:/PATH
    python -m sandrun doctor           what this host can isolate, and the cure for the rest
    python -m sandrun selftest         try the walls of a server, or with --local of this host
    python -m sandrun env              named environments: list them, build them ahead of time
    python -m sandrun run, submit      a directory or files, from here to a server
    python -m sandrun sample           the sample job
    python -m sandrun upgrade          a running server takes new code, and loses no job
    python -m sandrun version

Each tells its own options with --help.

Exit status: 0 fine, 1 failed, 78 (EX_CONFIG) the configuration is wrong, 69
(EX_UNAVAILABLE) the host lacks something; both say what to do.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sandrun import log_format

if TYPE_CHECKING:
    from sandrun.pool.supplies import Supplies

EX_UNAVAILABLE = 69
EX_CONFIG = 78


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; without a name it is ``serve``."""
    args = sys.argv[1:] if argv is None else argv
    name = args[0] if args and not args[0].startswith("-") else "serve"
    rest = args[1:] if args and args[0] == name else args
    if name in ("-h", "--help") or (rest[:1] in (["-h"], ["--help"]) and name == "serve"):
        print(_usage())
        return 0
    match name:
        case "serve":
            return serve(rest)
        case "doctor":
            from sandrun import doctor  # noqa: PLC0415 - starts without our dependencies

            return doctor.main(rest)
        case "env":
            from sandrun import env_command  # noqa: PLC0415

            return env_command.main(rest)
        case "run" | "submit" | "sample":
            from sandrun import client  # noqa: PLC0415

            return client.main([name, *rest])
        case "selftest":
            from sandrun.selftest import command  # noqa: PLC0415

            return command.main(rest)
        case "upgrade":
            from sandrun import upgrade_command  # noqa: PLC0415

            return upgrade_command.main(rest)
        case "version":
            from sandrun import __version__  # noqa: PLC0415

            print(__version__)
            return 0
    print(f"sandrun: unknown command {name!r}", file=sys.stderr)
    print(_usage(), file=sys.stderr)
    return 2


def _usage() -> str:
    return (__doc__ or "").replace("::\n\n", "")


def serve(argv: list[str], supplies: Supplies | None = None) -> int:
    """``python -m sandrun [--config FILE] [--listen ADDR:PORT]``.

    ``supplies``: what the pool takes from the host, if not from the real one.
    """
    parser = argparse.ArgumentParser(prog="python -m sandrun")
    parser.add_argument("--config", type=Path, help="TOML file; see config.example.toml")
    parser.add_argument("--listen", help="ADDR:PORT, [V6]:PORT or unix:/PATH")
    parser.add_argument("--self-signed", action="store_true", help="TLS, to try it out")
    parser.add_argument("--sample", action="store_true", help="run a sample job when ready")
    parser.add_argument("--verbose", action="store_true", help="log more")
    options = parser.parse_args(argv)
    level = logging.DEBUG if options.verbose else logging.INFO
    log_format.set_up(level, "%(asctime)s %(levelname)s %(message)s")
    try:
        import msgspec  # noqa: PLC0415 - a missing dependency gets a sentence, not a traceback

        from sandrun import config, self_signed, supervisor  # noqa: PLC0415
        from sandrun.errors import ConfigError, HostError, SetupError  # noqa: PLC0415
        from sandrun.pool import environments  # noqa: PLC0415
    except ImportError as error:
        print(f"sandrun: {error}; install with: pip install .", file=sys.stderr)
        return EX_UNAVAILABLE
    try:
        certificates: list[self_signed.Certificate] = []  # one at most; a reload keeps it

        def amend(settings: config.Config) -> config.Config:
            if options.listen:
                http = msgspec.structs.replace(settings.http, listen=options.listen)
                settings = msgspec.structs.replace(settings, http=http)
            if options.self_signed:
                if not certificates:
                    certificates.append(self_signed.make(settings))
                settings = self_signed.with_certificate(settings, certificates[0])
            return settings

        def read() -> config.Config:
            if options.config:
                return config.load(options.config, amend)
            return config.check(amend(config.Config()), "command line")

        settings = read()
        directories, infos = environments.ensure(settings, logging.info)
        return supervisor.serve(
            environments.without_faulty(settings, infos),
            Announcer(
                sample=options.sample,
                fingerprint=certificates[0].fingerprint if certificates else "",
            ),
            directories,
            infos,
            read,
            supplies,
        )
    except ConfigError as error:
        print(f"sandrun: {error}", file=sys.stderr)
        return EX_CONFIG
    except (HostError, SetupError) as error:
        print(f"sandrun: cannot start: {error}", file=sys.stderr)
        print("sandrun: `python -m sandrun doctor` shows all layers", file=sys.stderr)
        return EX_UNAVAILABLE


class Announcer:
    """Says once where we are, with a command that works; ``sample``: runs the sample job."""

    def __init__(self, *, sample: bool, fingerprint: str = "") -> None:
        self._sample = sample
        self._fingerprint = fingerprint  # of a certificate that nobody but we has signed
        self._said = False

    def __call__(self, urls: tuple[str, ...]) -> None:
        """http serves; it may have been started again."""
        if self._said:
            return
        self._said = True
        url = urls[0]
        print(f"sandrun is ready: {url}", flush=True)
        code = """{"code": "print(6 * 7)"}"""
        silent, target = "-s", url
        if url.startswith("unix:"):
            silent, target = f"-s --unix-socket {url.removeprefix('unix:')}", "http://localhost"
        if self._fingerprint:
            print(f"self-signed certificate, SHA-256 {self._fingerprint}", flush=True)
            silent = "-sk"
        print(
            f"try: curl {silent} {target}/run -H 'Content-Type: application/json' -d '{code}'",
            flush=True,
        )
        if self._sample:
            argv = [sys.executable, "-I", "-m", "sandrun", "sample", "--url", url]
            argv += ["--insecure"] if self._fingerprint else []
            subprocess.Popen(argv, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
