"""``python -m sandrun selftest``: an operator tries his own walls. I/O.

::

    python -m sandrun selftest URL | --local [--config FILE] [--json] [--html FILE]
                               [--only A,F6,...] [--jobs N] [--verbose]

``URL`` is tried as any client could, within the rate limits that it has for us.
``--local`` starts a server for the purpose (root), with the operator's own
configuration if ``--config`` names it, but without rate limits and on a port of
its own; then the host is compared before and after as well.

Exit status: 0 all held, 1 something did not, 2 nothing could be tried.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sandrun.selftest import host, report
from sandrun.selftest.bank import CASES
from sandrun.selftest.case import Broken, Call, Case, Outcome, Unable
from sandrun.selftest.run import run_all
from sandrun.selftest.target import Target

_START_TIMEOUT_S: Final = 90.0
_HOST_CASE: Final = Call(id="X1", title="the host is as it was before", run=lambda _: None)


def main(argv: list[str]) -> int:
    """Run the bank, write the card."""
    parser = argparse.ArgumentParser(prog="python -m sandrun selftest", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("url", nargs="?", help="a server that runs")
    parser.add_argument("--local", action="store_true", help="start a server for the purpose")
    parser.add_argument("--config", type=Path, help="with --local: its configuration")
    parser.add_argument("--only", default="", help="ids or their beginnings, by commas")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
    parser.add_argument("--verbose", action="store_true", help="list what held, too")
    options = parser.parse_args(argv)
    if bool(options.url) == options.local:
        parser.error("give either a URL or --local")
    cases = chosen(options.only)
    if not cases:
        parser.error(f"no case begins with {options.only!r}")
    progress = _progress(len(cases))
    try:
        if options.local:
            target_name = "a server of its own on this host"
            outcomes = _local(options.config, cases, options.jobs, progress)
        else:
            target_name = options.url
            outcomes = _remote(options.url, cases, options.jobs, progress)
    except (Unable, Broken, OSError) as error:
        print(f"sandrun selftest: {error}", file=sys.stderr)
        return 2
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if options.html:
        when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        options.html.write_text(report.as_html(outcomes, target_name, when), encoding="utf-8")
    if options.json:
        print(report.as_json(outcomes, target_name))
    else:
        colour = sys.stdout.isatty()
        print(report.as_text(outcomes, colour=colour, verbose=options.verbose))
    states = {outcome.state for outcome in outcomes}
    return 1 if "broken" in states else 0 if "held" in states else 2


def chosen(only: str) -> list[Case]:
    """Cases whose id begins with one of the words; all without any."""
    words = tuple(word for word in only.split(",") if word)
    return [case for case in CASES if not words or case.id.startswith(words)]


class _progress:  # noqa: N801 - used as a function
    """On stderr, how many cases have ended: one line that changes on a terminal, else a
    line for each tenth of them. Minutes of silence look like a hang.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.lock = threading.Lock()
        self.on_terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """What goes on now."""
        start, end = ("\r\x1b[K", "") if self.on_terminal else ("sandrun selftest: ", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def __call__(self, outcome: Outcome) -> None:
        with self.lock:
            self.done += 1
            tenth = self.done * 10 // self.total > (self.done - 1) * 10 // self.total
            if self.on_terminal:
                self.say(f"{self.done}/{self.total} {outcome.case.id} {outcome.state}")
            elif tenth:
                self.say(f"{self.done} of {self.total} cases have ended")


def _remote(url: str, cases: Sequence[Case], jobs: int, on_end: _progress) -> list[Outcome]:
    target = Target(url)
    try:
        health = target.get("/health")
        if health.status != http.client.OK:
            raise Unable(f"{url} is not ready: {health.body[:300]!r}")
        outcomes = run_all(cases, target, jobs, on_end)
        target.forget()
        return outcomes
    finally:
        target.close()


def _local(
    config: Path | None, cases: Sequence[Case], jobs: int, on_end: _progress
) -> list[Outcome]:
    if os.geteuid() != 0:
        raise Unable("--local starts a server and so must be root")
    on_end.say("starting a server of its own")
    with serving(config) as (url, pid), host.Canaries() as canaries:
        target = Target(url)
        target.run({"main.py": "print(1)"})  # the first job makes what stays
        target.forget()
        target.close()
        before = host.at_rest(pid, canaries)
        outcomes = run_all(cases, target, jobs, on_end)
        target.forget()
        target.close()
        on_end.say("comparing the host with what it was")
        changed = host.settled(pid, canaries, before, target.warm)
        target.close()
    outcomes.append(
        Outcome(case=_HOST_CASE, state="broken" if changed else "held", detail="; ".join(changed))
    )
    return outcomes


@contextlib.contextmanager
def serving(config: Path | None) -> Iterator[tuple[str, int]]:
    """A server of our own: its URL and its supervisor's pid. It has ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="sandrun-selftest-") as directory:
        file = Path(directory, "config.toml")
        file.write_text(_without_limits(config), encoding="utf-8")
        argv = [sys.executable, "-m", "sandrun", "--config", str(file), "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        timer = threading.Timer(_START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            url = _wait_for_url(process)
            timer.cancel()
            # Nobody must block on a full pipe: its log is read and dropped.
            reader.start()
            yield url, process.pid
        finally:
            timer.cancel()
            process.terminate()
            process.wait(60)
            if reader.is_alive():
                reader.join(10)
            process.stdout.close()


def _without_limits(config: Path | None) -> str:
    """The operator's configuration, with the limits between clients off."""
    import tomllib  # noqa: PLC0415

    text = config.read_text(encoding="utf-8") if config else ""
    if "rate_limit" in tomllib.loads(text):
        lines, inside = [], False
        for line in text.splitlines():
            if line.lstrip().startswith("["):
                inside = line.strip().startswith("[rate_limit")
            if not inside:
                lines.append(line)
        text = "\n".join(lines)
    return f"{text}\n[rate_limit]\nenabled = false\n"


def _wait_for_url(process: subprocess.Popen[str]) -> str:
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if line.startswith("sandrun is ready: "):
            return line.split()[-1]
    raise Unable(f"the server did not start ({process.wait()}):\n{''.join(said)[-2000:]}")
