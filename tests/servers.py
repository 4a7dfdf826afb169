"""A real server for tests: `python -m sandrun` in a process of its own, as root."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx

# Software emulation starts a Python 35 times slower.
SLOW = 10 if os.environ.get("RUN_IN_VM") == "tcg" else 1
NO_RATE_LIMIT = "[rate_limit]\nenabled = false\n"


@dataclass
class Server:
    """One running node. ``url`` is where it listens."""

    process: subprocess.Popen
    url: str
    log: list[str] = field(default_factory=list)
    client: httpx.Client = None

    def __post_init__(self):
        self.client = httpx.Client(base_url=self.url, timeout=60 * SLOW)

    def run(self, files=None, *, manifest=None, archive=None, **params):
        """POST /run with plain files (or an archive), and the answer as a dict."""
        response = self.post("/run", files, manifest=manifest, archive=archive, **params)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path, files=None, *, manifest=None, archive=None, **params):
        parts = []
        for name, content in (files or {}).items():
            data = content.encode() if isinstance(content, str) else content
            parts.append(("files", (name, data)))
        if archive is not None:
            parts.append(("files", archive))
        if manifest is not None:
            parts.append(("manifest", (None, json.dumps(manifest))))
        return self.client.post(path, files=parts, params=params)

    def python(self, code, **manifest):
        """Run a Python program; the answer of /run."""
        return self.run({"main.py": code}, manifest=manifest)

    def stop(self, number=signal.SIGTERM):
        """End it and wait; the exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60 * SLOW)


@contextlib.contextmanager
def running(config=NO_RATE_LIMIT, *, listen="127.0.0.1:0", options=(), program=("-m", "sandrun")):
    """Start a server with this TOML, yield a :class:`Server`, end it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "config.toml")
        file.write_text(config)
        argv = [sys.executable, *program, "--config", str(file), "--listen", listen]
        argv += options
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = []
        url = None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("sandrun is ready: "):
                url = line.split()[-1]
                break
        if url is None:
            raise RuntimeError(f"the server did not start ({process.wait()}):\n{''.join(lines)}")
        # Nobody must block on a full pipe: keep reading what it logs.
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        server = Server(process, url, lines)
        try:
            yield server
        finally:
            server.stop()
            reader.join(10)
            process.stdout.close()


def tar_of(files, *, mode="w:gz", name="project.tar.gz"):
    """{path: content} as an archive part for ``post(archive=...)``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return name, buffer.getvalue()


def our_cgroups():
    """Groups of any sandrun instance on this machine."""
    found = []
    for root, directories, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{root}/{name}" for name in directories if name.startswith("sandrun-")]
    return sorted(found)


def http_of(pid):
    """The http that serves under the supervisor ``pid``; its standby has another name."""
    while True:
        for child in descendants(pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "sandrun-http":
                    return child
        os.kill(pid, 0)  # between two of them there is none


def standby_of(pid):
    """The next http, once it is there. Each look is paced by the processes' own files."""
    while True:
        for child in descendants(pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "sandrun-standby":
                    return child
        os.kill(pid, 0)


def descendants(pid):
    """Process ids below ``pid``."""
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError):  # it may end at any moment
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                children = [int(word) for word in task.read_text().split()]
                found += children
                queue += children
    return found
