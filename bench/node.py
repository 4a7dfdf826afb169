"""A server in a process of its own. Runs as: root. I/O."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(eq=False)
class Node:
    """A running server."""

    pid: int
    url: str
    log: list[str] = field(default_factory=list)


@contextlib.contextmanager
def running(config: str) -> Iterator[Node]:
    """Start a server with this TOML; end it and wait. Raises RuntimeError with its log."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "config.toml")
        file.write_text(config)
        argv = [sys.executable, "-m", "sandrun", "--config", str(file), "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line)
                if line.startswith("sandrun is ready: "):
                    break
            else:
                raise RuntimeError("the server did not start:\n" + "".join(lines))
            url, out = lines[-1].split()[-1], process.stdout
            # Nobody must block on a full pipe: keep reading what it logs.
            threading.Thread(target=lambda: lines.extend(out), daemon=True).start()
            yield Node(process.pid, url, lines)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)  # the second: it does not wait for jobs
                process.wait(60)
