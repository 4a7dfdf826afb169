"""What a hot cache hit of requirements adds to a job's start. Runs as: root.

A job with requirements that are there already, against the same job without, one after
the other in one run: with one line, and with a hundred (a frozen environment).
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import node
from bench.client import Blocking
from bench.jobs import BOUNDARY
from bench.measure import median, percentile
from bench.report import Row

if TYPE_CHECKING:
    from bench.suites import Setting

CONFIG = """\
[rate_limit]
enabled = false
[packages]
find_links = ["{wheels}"]
offline = true
[environments.default]
ready = 2
"""
SETTLE_S = 0.1  # until the one zygote of an installed environment has a successor
LINES = (1, 100)


def installs(setting: Setting) -> None:
    """The suite."""
    with tempfile.TemporaryDirectory() as directory:  # a build sandbox has its own /dev/shm
        wheels = Path(directory)
        wheels.chmod(0o755)
        for number in range(max(LINES)):
            _wheel(wheels, f"bench{number}")
        _measure(setting, wheels)


def _measure(setting: Setting, wheels: Path) -> None:
    with node.running(CONFIG.format(wheels=wheels)) as server:
        client = Blocking(server.url)
        bodies = {f"hit of {count}": _body(count) for count in LINES}
        for body in bodies.values():
            _start_ms(client, body)  # installs it
        samples: dict[str, list[float]] = {name: [] for name in ("plain", *bodies)}
        for _ in range(max(50, setting.samples)):
            for name, body in (("plain", _body(0)), *bodies.items()):
                time.sleep(SETTLE_S)
                samples[name].append(_start_ms(client, body))
        client.close()
    plain = median(samples["plain"])
    for name, taken in samples.items():
        middle, last = median(taken), percentile(taken, 0.99)
        setting.report.add(Row("installs", name, middle, "ms", middle / plain, last, n=len(taken)))
        if name != "plain":
            setting.report.add(Row("installs", f"{name} adds", middle - plain, "ms", n=len(taken)))


def _start_ms(client: Blocking, body: bytes) -> float:
    """POST /run until its answer; the job itself is the same each time."""
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    start = time.perf_counter()
    status, answer = client.send("POST", "/run", kind, body)
    taken = (time.perf_counter() - start) * 1000
    if status != 200 or answer["exit_reason"] != "exited":
        raise RuntimeError(f"{status} {answer}")
    return taken


def _body(lines: int) -> bytes:
    text = "".join(f"bench{number}>=1.0,<2; python_version > '3.0'\n" for number in range(lines))
    manifest = {"environment": "default", "entrypoint": "main.py"}
    if lines:
        manifest["requirements"] = "requirements.txt"
    parts = [
        ('name="manifest"', json.dumps(manifest)),
        ('name="files"; filename="main.py"', "print('hello')\n"),
        ('name="files"; filename="requirements.txt"', text or "\n"),
    ]
    joined = "".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n"
        for head, content in parts
    )
    return f"{joined}--{BOUNDARY}--\r\n".encode()


def _wheel(directory: Path, name: str) -> None:
    """A wheel with one empty module."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        lines.append(f"{path},sha256={digest.decode()},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"])
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
