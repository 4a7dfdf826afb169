"""Everything that takes bytes from outside, as functions of bytes: the fuzzers' targets.

A target returns, or raises what its callers expect of hostile bytes (caught here).
Anything else is a finding, as are the properties that some assert. ``seeds`` are
where mutation starts.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h11
import msgspec

from sandrun import errors, globs, journal, logs, manifest, messages, node_lock, requirements
from sandrun.channel import Channel, Closed, decoder, pair
from sandrun.http import multipart, proxy, ranges, target, websocket
from sandrun.http.connection import Connection, State
from sandrun.http.exchange import Headers
from sandrun.job import Limits
from sandrun.pool import native
from sandrun.pool import proxy as package_proxy
from sandrun.pool.zygote import unpack


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


RULES = manifest.Rules(Limits(), {"python3": (".py",), "bash": (".sh",)}, ("default",))


def fuzz_manifest(data: bytes) -> None:
    with contextlib.suppress(errors.RequestError):
        found = manifest.parse(data, RULES)
        spec = manifest.draft(found, Limits())
        assert all(
            0 < getattr(spec.limits, name) <= getattr(RULES.maxima, name)
            for name in spec.limits.__struct_fields__
        )
        msgspec.msgpack.encode(spec)


def fuzz_multipart(data: bytes) -> None:
    head, _, body = data.partition(b"\n")
    with contextlib.suppress(errors.RequestError):
        parser = multipart.FormParser(head.decode("latin-1"), max_parts=20)
        for at in range(0, len(body), 97):
            for event in parser.feed(body[at : at + 97]):
                if isinstance(event, multipart.PartStart) and event.path is not None:
                    assert not event.path.startswith("/")
                    assert ".." not in event.path.split("/")
        parser.finish()


def fuzz_http(data: bytes) -> None:
    connection = Connection(10_000)
    connection.receive(data)
    with contextlib.suppress(errors.RequestError, h11.LocalProtocolError):
        while connection.state is State.HEAD and (head := connection.next_request()):
            with contextlib.suppress(errors.RequestError):
                target.split_target(head.target)
            body = b""
            while piece := connection.next_body():
                body += piece
            assert len(body) <= 10_000
            if connection.state is not State.DONE:
                return
            connection.send_whole(200, [(b"content-length", b"0")], b"")
            if not connection.next_cycle():
                return


def fuzz_websocket(data: bytes) -> None:
    limits = websocket.WebSocketLimits(message_bytes=2000, frame_burst=50)
    ends = []
    for step in (len(data) or 1, 3):
        ws = websocket.WebSocketProtocol(limits, 0.0)
        end = []
        for at in range(0, len(data), step):
            for event in ws.receive(data[at : at + step], 0.0):
                if isinstance(event, websocket.Message):
                    assert event.size <= 2000
                    end.append(event)
        ends.append(end)
    # Cutting the stream changes no message. (A fault closes before what came with it.)
    assert all(whole == cut for whole, cut in zip(*ends, strict=False))


def fuzz_headers(data: bytes) -> None:
    text = data.decode("latin-1")
    spans = ranges.parse_range(text, 1000)
    assert spans is None or sum(span.size for span in spans) <= 1000
    ranges.none_match(text, '"x"')
    ranges.if_range_holds(text, '"x"')
    assert "\r" not in ranges.attachment(text)
    assert "\n" not in ranges.attachment(text)
    trusted = proxy.TrustedProxies(["0.0.0.0/0", "::/0"])
    for name in (b"forwarded", b"x-forwarded-for"):
        with contextlib.suppress(errors.RequestError):  # a malformed field is 400
            trusted.client("127.0.0.1", Headers([(name, data)]), secure=False)
    with contextlib.suppress(errors.ProtocolError):
        proxy.parse_proxy_header(proxy.PROXY_SIGNATURE + data)
    with contextlib.suppress(package_proxy.Refused):
        package_proxy.parse_target(text)


def fuzz_messages(data: bytes) -> None:
    """What http may say to root, and what PID 1 may say to http."""
    for union in (messages.ToPool, messages.FromZygote, messages.ToZygote, messages.FromSpawner):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decoder(union)(data)


def fuzz_channel(data: bytes) -> None:
    left, right = pair()
    there: Channel[messages.LogGrew, messages.ToZygote] = Channel(right, messages.ToZygote)
    with left, right:
        left.setsockopt(1, 7, 1 << 20)
        with contextlib.suppress(OSError):
            left.send(data)
            with contextlib.suppress(errors.ProtocolError, Closed):
                there.receive()


def fuzz_globs(data: bytes) -> None:
    patterns, _, path = data.decode("utf-8", "replace").rpartition("\n")
    with contextlib.suppress(errors.RequestError, ValueError):
        globs.compile(patterns.split("\n")).match(path)


def fuzz_requirements(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(requirements.RequirementsError):
        for line in requirements.parse(text):
            assert not line.startswith("-")
            assert "://" not in line
            assert requirements.parse(line) == (line,)
    with contextlib.suppress(node_lock.LockError):
        node_lock.parse(text)


LOG_CAPACITY = 64 + 4 * (24 + logs.MAX_DATA)


def fuzz_log(data: bytes) -> None:
    """A log and a journal that a sandbox wrote which is not ours any more."""
    fd = os.memfd_create("log")
    try:
        os.ftruncate(fd, LOG_CAPACITY + journal.JOURNAL_BYTES)
        os.pwrite(fd, data[:4096], 0)
        os.pwrite(fd, data[4096:], LOG_CAPACITY)
        reader = logs.LogReader(fd, LOG_CAPACITY)
        with contextlib.suppress(errors.ProtocolError, ValueError):
            position = 0
            for _ in range(50):
                records = reader.read(position, 4096)
                if not records:
                    break
                position = records[-1].seq
        for slot in (journal.STARTED, journal.FINAL):
            journal.read(fd, LOG_CAPACITY, slot)
    finally:
        os.close(fd)


def _unpack(kind: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        outside = Path(directory, "outside")
        work = Path(directory, "work")
        outside.mkdir()
        work.mkdir()
        upload = os.memfd_create("upload")
        os.write(upload, data)
        work_fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        part = messages.UploadPart(kind=kind, path=f"a.{kind}", offset=0, size=len(data))
        try:
            unpack.unpack(upload, [part], work_fd, max_files=50, max_bytes=100_000, strip_root=True)
        except unpack.UploadRefused as error:
            assert str(error).isprintable()
        finally:
            os.close(work_fd)
            os.close(upload)
        assert not list(outside.iterdir())
        assert sorted(path.name for path in Path(directory).iterdir()) == ["outside", "work"]
        size = 0
        for path in work.rglob("*"):
            info = path.lstat()
            size += info.st_size if stat.S_ISREG(info.st_mode) else 0
            assert not info.st_mode & 0o7000
            assert stat.S_IFMT(info.st_mode) in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}
            if path.is_symlink():
                assert path.resolve().is_relative_to(work.resolve())
        assert size <= 100_000


def fix_checksums(data: bytes) -> bytes:
    """Without this every mutation of a tar header would end at its checksum."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 155] = b"%06o\0" % sum(out[at : at + 512])
    return bytes(out)


def fuzz_tar(data: bytes) -> None:
    _unpack("tar", fix_checksums(data))


def fuzz_zip(data: bytes) -> None:
    _unpack("zip", data)


# ── the decoder of the compiled PID 1 ────────────────────────────────────────


class Compiled:
    """msgpack.c under the address and undefined-behaviour sanitizers, in a process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="sandrun-fuzz-")

    def build(self) -> list[str]:
        here = Path(__file__).parent
        source = Path(next(iter(native.__path__)))
        program = str(Path(self._directory.name, "driver"))
        command = ["gcc", "-g", "-O1", "-std=gnu11", "-fsanitize=address,undefined"]
        command += ["-fno-sanitize-recover=all", "-static-libasan", f"-I{source}", "-o", program]
        command += [str(here / "msgpack_driver.c"), str(source / "msgpack.c")]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return [program]

    def __call__(self, data: bytes) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                self.build(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(len(data).to_bytes(4, "little") + data)
        self._process.stdin.flush()
        answer = self._process.stdout.read(1)
        if answer not in (b"0", b"1"):
            assert self._process.stderr
            raise AssertionError(self._process.stderr.read().decode()[-3000:])

    def close(self) -> None:
        if self._process:
            self._process.communicate()
            self._process = None
        self._directory.cleanup()


compiled = Compiled()


# ── seeds ────────────────────────────────────────────────────────────────────


def _tar(**options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:  # type: ignore[call-overload]
        for name, body in (("p/main.py", b"print(1)"), ("p/" + "long" * 40, b"x" * 600)):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        link = tarfile.TarInfo("p/link")
        link.type, link.linkname = tarfile.SYMTYPE, "main.py"
        archive.addfile(link)
    return buffer.getvalue()


def _zip(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("p/main.py", "print(1)")
        archive.writestr("p/data", "x" * 500)
    return buffer.getvalue()


FORM = (
    b"multipart/form-data; boundary=XX\n--XX\r\nContent-Disposition: form-data; "
    b'name="files"; filename="src/a.py"\r\nContent-Type: text/plain\r\n\r\nbody\r\n--XX\r\n'
    b"Content-Disposition: form-data; name=manifest; filename*=utf-8''%41\r\n\r\n{}\r\n--XX--\r\n"
)
DISPATCH = msgspec.msgpack.encode(
    messages.Dispatch(
        spec=manifest.draft(manifest.Manifest(args=("a",), env={"A": "b"}), Limits()),
        files=(messages.InlineFile(path="main.py", data=b"print(1)"),),
    )
)

TARGETS: dict[str, Target] = {
    "manifest": Target(
        fuzz_manifest,
        (
            b'{"entrypoint":"main.py","args":["a"],"env":{"A":"b"},"timeout":1.5,"outputs":["*"]}',
            b'{"limits":1,"stdin":"\\ud800","processes":1e400}',
        ),
    ),
    "multipart": Target(fuzz_multipart, (FORM,)),
    "http": Target(
        fuzz_http,
        (
            b"POST /a%41?b=c HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
        ),
    ),
    "websocket": Target(
        fuzz_websocket,
        (
            b"\x81\x85\1\2\3\4igop\x6c\x89\x80\0\0\0\0",
            b"\x01\x81\0\0\0\0a\x80\x81\0\0\0\0b\x88\x82\0\0\0\0\x03\xe8",
            b"\x82\xfe\x01\x00\0\0\0\0" + bytes(256),
        ),
    ),
    "headers": Target(
        fuzz_headers,
        (b"bytes=0-4,5-", b'for="[2001:db8::1]:80";proto=https, for=1.2.3.4', b'W/"x", "y"'),
    ),
    "messages": Target(fuzz_messages, (DISPATCH, msgspec.msgpack.encode(messages.Cancel()))),
    "channel": Target(fuzz_channel, (DISPATCH,)),
    "globs": Target(fuzz_globs, (b"*\n!**/x/[a-z]*\na/b.c", b"a?[!b]*\nab")),
    "requirements": Target(
        fuzz_requirements,
        (
            b'numpy>=1.2 ; python_version < "3"\n# c\nrequests[a,b]==2 \\\n --hash=sha256:00',
            b'{"lockfileVersion":3,"packages":{"":{},"node_modules/a":{"version":"1.0.0","resolved":"https://r/a.tgz","integrity":"sha512-AAAAAAAAAAAAAAAAAAAAAA=="}}}',
        ),
    ),
    "log": Target(
        fuzz_log,
        (
            (0x31676F6C72646E73).to_bytes(8, "little") + (40).to_bytes(8, "little") + bytes(48)
            + (29).to_bytes(8, "little") + bytes(8) + b"\5\0\0\0\1\0\0\0hello",
        ),
    ),
    "tar": Target(
        fuzz_tar,
        (
            _tar(format=tarfile.PAX_FORMAT),
            _tar(format=tarfile.GNU_FORMAT),
            gzip.compress(_tar(format=tarfile.GNU_FORMAT), mtime=0),
        ),
    ),
    "zip": Target(fuzz_zip, (_zip(zipfile.ZIP_STORED), _zip(zipfile.ZIP_DEFLATED))),
    "compiled": Target(compiled, (DISPATCH, msgspec.msgpack.encode({"a": [1, 2.5, None, -1]}))),
}  # fmt: skip
