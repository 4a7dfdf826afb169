"""``python -m sandrun upgrade``: the running server's http is replaced. I/O: /proc, a signal.

The supervisor executes a new ``python -m sandrun.http`` from what is installed now
and hands it everything; no job and no answer is lost. The supervisor itself, its
spawners and ready sandboxes stay as they are.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from pathlib import Path

WAIT_S = 60.0


def main(argv: list[str]) -> int:
    """Ask, and wait until the old http has gone. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sandrun upgrade")
    parser.add_argument("--pid", type=int, help="of the server, if there are several")
    parser.add_argument("--reload", action="store_true", help="read the configuration again, too")
    options = parser.parse_args(argv)
    servers = {options.pid: http_of(options.pid)} if options.pid else running()
    found = [(pid, http) for pid, http in servers.items() if http]
    if len(found) != 1:
        pids = ", ".join(str(pid) for pid, _ in found) or "none"
        print(f"sandrun: expected one running server, found {pids}; use --pid", file=sys.stderr)
        return 1
    pid, http = found[0]
    try:
        old = os.pidfd_open(http)
        os.kill(pid, signal.SIGHUP if options.reload else signal.SIGUSR2)
    except OSError as error:
        print(f"sandrun: process {pid}: {error.strerror}", file=sys.stderr)
        return 1
    ready, _, _ = select.select([old], [], [], WAIT_S)
    os.close(old)
    if not ready:
        print("sandrun: the old process is still there; the log says why", file=sys.stderr)
        return 1
    print("sandrun: upgraded")
    return 0


def running() -> dict[int, int]:
    """{server: its http} of this machine, as far as we may look."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (http := http_of(int(entry.name))):
            found[int(entry.name)] = http
    return found


def http_of(pid: int) -> int:
    """The http that serves among the children of ``pid``, or 0."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            try:
                name = Path(f"/proc/{child}/comm").read_text(encoding="ascii").strip()
                argv = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            # Anybody may call himself so; the command line is root's, as is the parent.
            if name == "sandrun-http" and b"sandrun.http" in argv:
                return int(child)
    return 0
