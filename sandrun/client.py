"""The HTTP client behind ``python -m sandrun run`` and ``submit``. I/O.

::

    python -m sandrun run DIR|FILE... [--url URL] [--entrypoint main.py] [-- ARGS...]

packs the files, submits them, follows the log to stdout and stderr, writes the
outputs below ``--output`` and ends with the job's exit status. ``submit`` only
prints the answer to ``POST /submit``. Standard library only, so that the file
can be copied anywhere.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import secrets
import socket
import ssl
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

DEFAULT_URL: Final = "http://127.0.0.1:8000"
SKIPPED: Final = frozenset({".git", "node_modules", "__pycache__", ".venv"})
SIGNAL_BASE: Final = 128  # as shells say it
ABOUT: Final = {
    "run": "Run a directory or files: the log to stdout and stderr, the outputs to --output.",
    "submit": "Send a directory or files, print the ids of the job, and go.",
    "sample": "Run a sample job and show what comes back.",
}


class ServerError(Exception):
    """The server refused; the text is for a person."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Client:
    """One server. ``url`` like ``http://127.0.0.1:8000`` or ``unix:/run/sandrun.sock``.

    ``insecure``: any certificate will do.
    """

    def __init__(self, url: str, *, insecure: bool = False) -> None:
        parts = urlsplit(url)
        known = parts.hostname if parts.scheme in ("http", "https") else parts.scheme == "unix"
        if not known:
            raise ServerError(f"not a URL: {url!r}; say http://HOST:PORT, https:// or unix:/PATH")
        self._parts = parts
        self._insecure = insecure

    def _connect(self) -> http.client.HTTPConnection:
        if self._parts.scheme == "unix":
            return _UnixConnection(self._parts.path)
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            if self._insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            return http.client.HTTPSConnection(host, port, context=context)
        return http.client.HTTPConnection(host, port)

    def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "", accept: str = ""
    ) -> http.client.HTTPResponse:
        """One request. Raises :class:`ServerError` for a 4xx or 5xx."""
        connection = self._connect()
        headers = {"Accept": accept or "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
        except OSError as error:
            connection.close()
            cure = ""
            if isinstance(error, ConnectionRefusedError | FileNotFoundError):
                cure = "; nothing listens there: start `python -m sandrun`, or name it with --url"
            raise ServerError(f"{self._parts.geturl()}: {error}{cure}") from error
        if response.status >= http.client.BAD_REQUEST:
            text = response.read().decode(errors="replace")
            try:
                text = json.loads(text)["error"]
            except (ValueError, KeyError, TypeError):
                text = text[:300]
            raise ServerError(f"{response.status}: {text}")
        return response

    def submit(self, archive: bytes, manifest: dict[str, Any]) -> dict[str, Any]:
        """``POST /submit`` a tar.gz and a manifest."""
        boundary = secrets.token_hex(16)
        body = io.BytesIO()
        for head, content in (
            ('name="files"; filename="project.tar.gz"', archive),
            ('name="manifest"', json.dumps(manifest).encode()),
        ):
            body.write(f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode())
            body.write(content + b"\r\n")
        body.write(f"--{boundary}--\r\n".encode())
        kind = f"multipart/form-data; boundary={boundary}"
        answer: dict[str, Any] = json.load(self.request("POST", "/submit", body.getvalue(), kind))
        return answer

    def follow(self, job_id: str) -> str:
        """Copy the job's log to our stdout and stderr until its end; its exit reason."""
        stream = self.request("GET", f"/logs/{job_id}/stream", accept="text/event-stream")
        for raw in stream:
            if not raw.startswith(b"data:"):
                continue
            record = json.loads(raw[5:])
            if record.get("event") == "end":
                return str(record["exit_reason"])
            target = sys.stderr if record.get("stream") == "stderr" else sys.stdout
            target.write(record.get("data", ""))
            target.flush()
        raise ServerError("the log ended without the job's end")

    def status(self, job_id: str) -> dict[str, Any]:
        """``GET /status``."""
        answer: dict[str, Any] = json.load(self.request("GET", f"/status/{job_id}"))
        return answer

    def download(self, job_id: str, target: Path) -> list[str]:
        """Fetch the outputs as tar and write them below ``target``; their names."""
        response = self.request("GET", f"/download/{job_id}?format=tar")
        written = []
        with tarfile.open(fileobj=io.BytesIO(response.read())) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    continue  # the server is not trusted with our file system
                source = archive.extractfile(member)
                assert source is not None
                file = target.joinpath(*path.parts)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(source.read())
                written.append(member.name)
        return written


def pack(paths: list[Path]) -> bytes:
    """Files and directories as tar.gz; a directory's content is at the top."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in paths:
            if path.is_dir():
                for root, directories, names in os.walk(path):
                    directories[:] = sorted(d for d in directories if d not in SKIPPED)
                    for name in sorted(names):
                        file = Path(root, name)
                        archive.add(file, str(file.relative_to(path)), recursive=False)
            else:
                archive.add(path, path.name, recursive=False)
    return buffer.getvalue()


# What `python -m sandrun --sample` runs: several files, a live log, an output.
SAMPLE: Final = {
    "main.py": """import json
import time

from squares import squares

for number, square in squares(5):
    print(f"{number} squared is {square}", flush=True)
    time.sleep(0.1)
with open("squares.json", "w") as file:
    json.dump(dict(squares(5)), file)
""",
    "squares.py": """def squares(count):
    return [(n, n * n) for n in range(1, count + 1)]
""",
    "job.json": '{"outputs": ["*.json"], "timeout": 10}',
}


def sample(client: Client) -> int:
    """Run the sample job and show what comes back."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in SAMPLE.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    print("a sample job:", ", ".join(SAMPLE), flush=True)
    job = client.submit(buffer.getvalue(), {})
    reason = client.follow(job["job_id"])
    status = client.status(job["job_id"])
    print(f"it ended: {reason}, {status['execution_metadata']['wall_time_ms']:.0f} ms")
    for path in status["output_files"]:
        content = client.request("GET", f"/download/{job['job_id']}/{path}").read()
        print(f"its output {path}: {content.decode()}")
    client.request("DELETE", f"/jobs/{job['job_id']}").read()
    print("and it is deleted again", flush=True)
    return int(status["status"] != "completed")


def main(argv: list[str]) -> int:
    """``run``, ``submit`` or ``sample``; ``argv[0]`` is which."""
    command, rest = argv[0], argv[1:]
    args: list[str] = []
    if "--" in rest:
        split = rest.index("--")
        rest, args = rest[:split], rest[split + 1 :]
    parser = argparse.ArgumentParser(
        prog=f"python -m sandrun {command}", description=ABOUT[command]
    )
    url = os.environ.get("SANDRUN_URL", DEFAULT_URL)
    parser.add_argument(
        "--url", default=url, help="the server; else $SANDRUN_URL, else %(default)s"
    )
    parser.add_argument("--insecure", action="store_true", help="accept any certificate")
    if command == "sample":
        options = parser.parse_args(rest)
        return _told(lambda: sample(Client(options.url, insecure=options.insecure)))
    parser.epilog = "What follows -- are the program's arguments. A job.json says the rest."
    parser.add_argument("paths", nargs="+", type=Path, help="a directory or files")
    parser.add_argument("--entrypoint", metavar="FILE", help="the file to start")
    parser.add_argument("--interpreter", metavar="NAME", help="such as python3, node, bash")
    parser.add_argument("--environment", metavar="NAME", help="one of GET /environments")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="of wall time")
    if command == "run":
        parser.add_argument(
            "--output", type=Path, default=Path("output"), help="where outputs go (%(default)s)"
        )
    options = parser.parse_args(rest)
    names = ("entrypoint", "interpreter", "environment", "timeout")
    manifest = {name: value for name in names if (value := getattr(options, name)) is not None}
    if args:
        manifest["args"] = args
    if missing := [str(path) for path in options.paths if not path.exists()]:
        parser.error(f"no such file: {', '.join(missing)}")
    return _told(
        lambda: _run(
            Client(options.url, insecure=options.insecure),
            pack(options.paths),
            manifest,
            options.output if command == "run" else None,
        )
    )


def _told(work: Callable[[], int]) -> int:
    try:
        return work()
    except ServerError as error:
        print(f"sandrun: {error}", file=sys.stderr)
        return 1


def _run(client: Client, archive: bytes, manifest: dict[str, Any], output: Path | None) -> int:
    job = client.submit(archive, manifest)
    if output is None:  # submit
        print(json.dumps(job, indent=2))
        return 0
    client.follow(job["job_id"])
    status = client.status(job["job_id"])
    meta = status["execution_metadata"]
    print(
        f"[{status['exit_reason']}: {meta['wall_time_ms']:.0f} ms,"
        f" {meta['cpu_seconds']:.2f} CPU-s, {meta['memory_peak_mb']:.0f} MB]",
        file=sys.stderr,
    )
    for line in status["evidence"]:
        print(f"[{line}]", file=sys.stderr)
    if status["remedy"]:
        print(f"[{status['remedy']}]", file=sys.stderr)
    if status["output_files"]:
        written = client.download(job["job_id"], output)
        count = f"{len(written)} output file{'' if len(written) == 1 else 's'}"
        print(f"[{count} in {output}/]", file=sys.stderr)
    if meta["signal"]:
        return SIGNAL_BASE + int(meta["signal"])
    return int(meta["exit_code"] or 0) or int(status["status"] != "completed")
