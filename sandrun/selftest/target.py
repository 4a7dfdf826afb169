"""The server under test, as a client sees it. I/O; standard library only.

Requests that a well-behaved library refuses to send are written to the socket as
bytes: :meth:`Target.raw` and :class:`Wire`.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from sandrun.pool.syscall_numbers import NUMBERS
from sandrun.selftest.case import Answer, Broken, Unable

TIMEOUT_S: Final = 90.0
_JOB: Final = re.compile(rb'"job_id":"(job_[A-Za-z0-9_-]+)"')
MAX_ANSWER: Final = 64 * 1024 * 1024

# Calls that no policy of ours names, and that must be refused all the same.
_UNNAMED: Final = {
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
# What a hostile Python program finds beside itself.
_TABLE: Final = "NUMBERS: dict[str, tuple[int | None, int | None]] = {}\n"
ATTACK: Final = (
    resources.files("sandrun.selftest")
    .joinpath("attack.py")
    .read_text(encoding="utf-8")
    .replace(_TABLE, f"NUMBERS = {_UNNAMED | NUMBERS!r}\n")
)


class Reply(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """The body, decoded. Raises :class:`Broken`."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Broken(
                f"{self.status} with a body that is no JSON: {self.body[:200]!r}"
            ) from None


class Wire:
    """One connection, byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def send(self, data: bytes) -> None:
        """Send, or notice that the server has had enough."""
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # what it said before it closed is still to be read

    def receive(self, limit: int = MAX_ANSWER) -> bytes:
        """Everything until the server closes. Raises :class:`Broken` when it does not."""
        data = bytearray()
        try:
            while len(data) < limit:
                piece = self.socket.recv(65536)
                if not piece:
                    break
                data += piece
        except TimeoutError:
            raise Broken(
                f"the server did not close the connection; it said {bytes(data[:200])!r}"
            ) from None
        except OSError:
            pass  # a reset: what had come before it counts
        return bytes(data)

    def exactly(self, size: int) -> bytes:
        """So many bytes, or fewer if the server closes."""
        data = b""
        try:
            while len(data) < size:
                piece = self.socket.recv(size - len(data))
                if not piece:
                    break
                data += piece
        except OSError:
            pass
        return data

    def head(self) -> bytes:
        """An answer's head."""
        data = b""
        while not data.endswith(b"\r\n\r\n") and len(data) < 65536:
            piece = self.exactly(1)
            if not piece:
                break
            data += piece
        return data


class Target:
    """One server. ``url`` like ``http://127.0.0.1:8000``."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unable(f"not a URL: {url!r}")
        self.url = url.rstrip("/")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.secure = parts.scheme == "https"
        self._lock = threading.Lock()
        self._jobs: list[str] = []  # to be deleted by forget()
        self._asking = threading.Lock()  # not the same: who asks may open a connection
        self._programs: frozenset[str] | None = None
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    @property
    def authority(self) -> str:
        """For a Host field."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"

    # ── whole requests ───────────────────────────────────────────────────────

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request over this thread's connection."""
        for attempt in (1, 2):
            connection = self._connection()
            try:
                connection.request(method, path, body or None, {**(headers or {})})
                response = connection.getresponse()
                data = response.read(MAX_ANSWER)
            except (http.client.HTTPException, OSError) as error:
                connection.close()  # it connects again when it is used again
                # A kept connection may end between two requests; that is no fault.
                if attempt == 1 and not isinstance(error, TimeoutError):
                    continue
                raise Broken(f"{method} {path[:80]}: no answer ({error!r})") from error
            if method == "POST" and (job := _JOB.search(data)):
                self._jobs.append(job[1].decode())
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, data)
        raise AssertionError

    def get(self, path: str, **headers: str) -> Reply:
        """GET; ``headers`` with underscores for dashes."""
        return self.request(
            "GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            if self.secure:
                connection = http.client.HTTPSConnection(
                    self.host, self.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
                )
            else:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def forget(self) -> None:
        """Delete the jobs that were made: a server keeps what was not fetched."""
        jobs, self._jobs = self._jobs, []
        for job_id in jobs:
            self.request("DELETE", f"/jobs/{job_id}")

    def close(self) -> None:
        """Close the kept connections of all threads; a later request opens new ones."""
        # They stay in the list: a thread that lives on uses its own again.
        with self._lock:
            for connection in self._connections:
                connection.close()

    def warm(self) -> int:
        """How many unused sandboxes the server keeps ready."""
        return int(self.get("/stats").json()["system"]["warm"])

    # ── jobs ─────────────────────────────────────────────────────────────────

    def post(
        self,
        path: str,
        files: Mapping[str, str | bytes],
        manifest: Mapping[str, Any] | str | bytes | None = None,
        **query: str,
    ) -> Reply:
        """A multipart submission. Raises :class:`Unable` when we may not submit more."""
        body, kind = multipart(files, manifest)
        target = f"{path}?{urlencode(query)}" if query else path
        reply = self.request("POST", target, body, {"Content-Type": kind})
        if reply.status == http.client.TOO_MANY_REQUESTS:
            after = reply.headers.get("retry-after", "?")
            raise Unable(
                f"the server's rate limit ends here (again in {after} s): {reply.json()['error']}"
            )
        return reply

    def run(
        self,
        files: Mapping[str, str | bytes],
        manifest: Mapping[str, Any] | None = None,
        **query: str,
    ) -> Answer:
        """``POST /run``: the answer, once the job has ended."""
        reply = self.post("/run", files, manifest, **query)
        if reply.status != http.client.OK:
            raise Broken(f"the job was refused: {reply.status} {reply.body[:300]!r}")
        answer: Answer = reply.json()
        return answer

    def python(self, code: str, **manifest: Any) -> Answer:
        """A Python program with ``attack.py`` beside it."""
        return self.run({"main.py": code, "attack.py": ATTACK}, manifest)

    def submit(self, files: Mapping[str, str | bytes], **manifest: Any) -> Answer:
        """``POST /submit``: ``job_id``, ``view_id`` and so on."""
        reply = self.post("/submit", files, manifest)
        if reply.status != http.client.OK:
            raise Broken(f"the job was refused: {reply.status} {reply.body[:300]!r}")
        answer: Answer = reply.json()
        return answer

    def wait(self, job_id: str) -> Answer:
        """Follow a job to its end; its status."""
        self.get(f"/logs/{job_id}/stream", Accept="text/plain")
        status: Answer = self.get(f"/status/{job_id}").json()
        return status

    def programs(self) -> frozenset[str]:
        """Interpreters that the server offers, and compilers that its sandbox has."""
        with self._asking:
            if self._programs is None:
                listed = self.get("/environments").json()
                names = {entry["name"] for entry in listed["interpreters"]}
                code = (
                    "for p in gcc make unshare ps; do command -v $p >/dev/null && echo $p; done; :"
                )
                names |= set(self.run({"main.sh": code})["stdout"].split())
                self._programs = frozenset(names)
            return self._programs

    # ── bytes ────────────────────────────────────────────────────────────────

    @contextmanager
    def wire(self, timeout_s: float = 15.0) -> Iterator[Wire]:
        """A connection of one's own."""
        sock: socket.socket = socket.create_connection((self.host, self.port), timeout_s)
        if self.secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host)
        with sock:
            yield Wire(sock)

    def raw(self, data: bytes, timeout_s: float = 15.0) -> bytes:
        """Send these bytes; everything that comes back until the server closes."""
        with self.wire(timeout_s) as wire:
            wire.send(data)
            return wire.receive()

    def head(self, line: str, *fields: str, host: bool = True) -> bytes:
        """A request head. Surrogate escapes stand for bytes that are not ASCII."""
        lines = [line, *([f"Host: {self.authority}"] if host else []), *fields, "", ""]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def multipart(
    files: Mapping[str, str | bytes], manifest: Mapping[str, Any] | str | bytes | None
) -> tuple[bytes, str]:
    """A form's body and its Content-Type."""
    boundary = secrets.token_hex(12)
    parts = []
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        shown = quote(name, safe="/ !#$&'()+,-.;=@[]^_`{}~") if '"' in name or "%" in name else name
        parts.append((f'name="files"; filename="{shown}"', data))
    if manifest is not None:
        text = json.dumps(manifest) if isinstance(manifest, Mapping) else manifest
        parts.append(('name="manifest"', text.encode() if isinstance(text, str) else text))
    return form(boundary, parts), f"multipart/form-data; boundary={boundary}"


def form(boundary: str, parts: list[tuple[str, bytes]]) -> bytes:
    """``parts``: (parameters of Content-Disposition, content)."""
    body = bytearray()
    for head, content in parts:
        line = f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n"
        body += line.encode("utf-8", "surrogateescape") + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return bytes(body)
