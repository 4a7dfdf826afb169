"""M: WebSocket."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from sandrun.selftest.case import Broken, Call, Case, each, expect
from sandrun.selftest.target import Target, Wire

_SLEEPER: Final = "import time; print('here', flush=True); time.sleep(20)"


def frame(
    op: int,
    data: bytes = b"",
    *,
    fin: bool = True,
    mask: bool = True,
    rsv: int = 0,
    length: bytes | None = None,
) -> bytes:
    """One frame; everything may be wrong."""
    head = bytes((fin << 7 | rsv << 4 | op,))
    if length is None:
        n = len(data)
        length = (
            bytes((n,))
            if n < 126
            else b"\x7e" + struct.pack("!H", n)
            if n < 65536
            else b"\x7f" + struct.pack("!Q", n)
        )
    length = bytes((length[0] | mask << 7,)) + length[1:]
    key = os.urandom(4)
    body = bytes(b ^ key[i % 4] for i, b in enumerate(data)) if mask else data
    return head + length + (key if mask else b"") + body


def _handshake(target: Target, path: str, *fields: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    wanted = fields or (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    )
    return target.head(f"GET {path} HTTP/1.1", *wanted)


def _first_head(target: Target, data: bytes) -> bytes:
    with target.wire() as wire:
        wire.send(data)
        return wire.head()


@contextmanager
def _opened(target: Target) -> Iterator[Wire]:
    """A WebSocket to the log of a running job, which is cancelled afterwards."""
    job = target.submit({"main.py": _SLEEPER}, timeout=25)["job_id"]
    try:
        with target.wire() as wire:
            wire.send(_handshake(target, f"/logs/{job}/stream"))
            head = wire.head()
            if not head.startswith(b"HTTP/1.1 101"):
                raise Broken(f"no upgrade: {head[:100]!r}")
            yield wire
    finally:
        target.request("DELETE", f"/jobs/{job}")


def _close_code(data: bytes) -> int:
    """Walk the server's frames to its close frame; 0 if there is none."""
    at = 0
    while at + 2 <= len(data):
        op, length = data[at] & 15, data[at + 1] & 127
        at += 2
        if length == 126:
            length = struct.unpack("!H", data[at : at + 2])[0]
            at += 2
        elif length == 127:
            length = struct.unpack("!Q", data[at : at + 8])[0]
            at += 8
        if op == 8:
            return int(struct.unpack("!H", data[at : at + 2])[0]) if length >= 2 else 1005
        at += length
    return 0


def closes(*codes: int, send: tuple[bytes, ...]) -> Callable[[Target], None]:
    """The server ends the connection with one of these codes."""

    def run(target: Target) -> None:
        with _opened(target) as wire:
            for piece in send:
                wire.send(piece)
            code = _close_code(wire.receive())
            expect(code in codes or code == 0, f"closed with {code}, not {codes}")
        expect(target.get("/health").status == 200, "the server is gone")

    return run


def _handshakes(target: Target) -> None:
    job = target.run({"main.py": "print(1)"})["job_id"]
    path = f"/logs/{job}/stream"
    key = "Sec-WebSocket-Key: " + base64.b64encode(b"k" * 16).decode()
    upgrade, connection, version = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
    )
    for fields in (
        (upgrade, connection, version),
        (upgrade, connection, version, key, key),
        (upgrade, connection, "Sec-WebSocket-Version: 8", key),
        (upgrade, connection, version, "Sec-WebSocket-Key: abc"),
        (upgrade, connection, version, "Sec-WebSocket-Key: " + "A" * 1000),
        (
            upgrade,
            connection,
            version,
            key,
            "Sec-WebSocket-Protocol: " + ",".join(f"p{i}" for i in range(1000)),
        ),
    ):
        text = _first_head(target, _handshake(target, path, *fields))
        expect(text[9:12] in (b"400", b"426"), f"{fields[-1][:60]}: {text[:80]!r}")


def _foreign_origin(target: Target) -> None:
    job = target.run({"main.py": "print(1)"})["job_id"]
    key = "Sec-WebSocket-Key: " + base64.b64encode(b"k" * 16).decode()
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "file://",
        "http://127.0.0.1.evil.example",
    ):
        with target.wire() as wire:
            wire.send(
                _handshake(
                    target,
                    f"/ws/{job}",
                    "Upgrade: websocket",
                    "Connection: Upgrade",
                    "Sec-WebSocket-Version: 13",
                    key,
                    f"Origin: {origin}",
                )
            )
            head = wire.head()
        expect(head[9:12] in (b"403", b"101"), f"{origin}: {head[:60]!r}")
        if target.host in ("127.0.0.1", "localhost", "::1"):
            expect(head[9:12] == b"403", f"a page of {origin} may listen on a loopback server")


def _unknown_job(target: Target) -> None:
    for name in ("job_unknown", "view_unknown", "job_" + "A" * 24, "..", "%00"):
        text = _first_head(target, _handshake(target, f"/ws/{name}"))
        expect(text[9:12] in (b"404", b"400"), f"{name}: {text[:60]!r}")


def _never_reads(target: Target) -> None:
    """Clients that subscribe to a flood and do not read do not slow its job."""
    job = target.submit({"main.py": "for i in range(200000): print('x' * 60)\n"}, timeout=20)[
        "job_id"
    ]
    with ExitStack() as stack:
        for _ in range(10):
            wire = stack.enter_context(target.wire(30))
            wire.send(_handshake(target, f"/logs/{job}/stream"))
        status = target.wait(job)
        expect(status["exit_reason"] == "exited", f"the job ended as {status['exit_reason']}")
    expect(target.get("/health").status == 200, "the server is gone")


def _vanish(target: Target) -> None:
    """Fifty subscribers that vanish without a word."""
    job = target.submit({"main.py": _SLEEPER}, timeout=25)["job_id"]
    for _ in range(50):
        with target.wire() as wire:
            wire.send(_handshake(target, f"/logs/{job}/stream"))
            wire.head()
    status = target.get(f"/status/{job}").json()
    expect(status["status"] in ("running", "queued"), f"the job is {status['status']}")
    expect(target.request("DELETE", f"/jobs/{job}").status in (200, 204), "DELETE")


def _early_frames(target: Target) -> None:
    """Frames in the same segment as the handshake are frames, not requests."""
    job = target.submit({"main.py": _SLEEPER}, timeout=25)["job_id"]
    try:
        text = target.raw(_handshake(target, f"/ws/{job}") + frame(8, struct.pack("!H", 1000)))
        expect(text.startswith(b"HTTP/1.1 101") and text.count(b"HTTP/1.1") == 1, f"{text[:200]!r}")
    finally:
        target.request("DELETE", f"/jobs/{job}")


CASES: Final[tuple[Case, ...]] = (
    Call(id="M1", title="unmasked frames", run=closes(1002, send=(frame(1, b"x", mask=False),))),
    Call(
        id="M2.rsv",
        title="reserved bits and opcodes",
        run=closes(1002, send=(frame(1, b"x", rsv=4),)),
    ),
    Call(
        id="M2.opcode",
        title="an opcode that does not exist",
        run=closes(1002, send=(frame(5, b"x"),)),
    ),
    Call(
        id="M3",
        title="a control frame of more than 125 bytes",
        run=closes(1002, send=(frame(9, b"x" * 126),)),
    ),
    Call(
        id="M3.fragment",
        title="a control frame in fragments",
        run=closes(1002, send=(frame(9, b"x", fin=False),)),
    ),
    Call(
        id="M3.flood",
        title="a flood of pings",
        run=closes(1008, 1002, 1009, send=(frame(9) * 50_000,)),
        heavy=True,
    ),
    Call(
        id="M4",
        title="a message of a hundred thousand empty fragments",
        run=closes(
            1008, 1002, 1009, send=(frame(1, b"", fin=False), frame(0, b"", fin=False) * 100_000)
        ),
        heavy=True,
    ),
    Call(
        id="M4.mixed",
        title="a new message inside another",
        run=closes(1002, send=(frame(1, b"x", fin=False), frame(1, b"y"))),
    ),
    Call(
        id="M4.alone", title="a continuation of nothing", run=closes(1002, send=(frame(0, b"x"),))
    ),
    Call(
        id="M5",
        title="a frame that announces exabytes",
        run=closes(1002, 1009, send=(frame(1, b"x", length=b"\x7f\x7f" + b"\xff" * 7),)),
    ),
    Call(
        id="M5.sign",
        title="a length with the top bit set",
        run=closes(1002, 1009, send=(frame(1, b"x", length=b"\x7f\xff" + b"\xff" * 7),)),
    ),
    Call(
        id="M5.long",
        title="a length in more bytes than it needs",
        run=closes(
            1002,
            1003,
            1008,
            1009,
            send=(
                frame(1, b"x", length=b"\x7f" + struct.pack("!Q", 1)),
                frame(8, struct.pack("!H", 1003)),
            ),
        ),
    ),
    Call(id="M6", title="text that is not UTF-8", run=closes(1007, send=(frame(1, b"\xff\xfe"),))),
    Call(
        id="M6.split",
        title="text that is not UTF-8, in fragments",
        run=closes(1007, send=(frame(1, b"\xc3", fin=False), frame(0, b"\x28"))),
    ),
    Call(
        id="M7",
        title="close codes that nobody may send",
        run=each(
            *(
                closes(1002, 1007, send=(frame(8, struct.pack("!H", code)),))
                for code in (999, 1005, 1006, 1015, 5000)
            )
        ),
    ),
    Call(
        id="M7.short", title="a close frame of one byte", run=closes(1002, send=(frame(8, b"x"),))
    ),
    Call(
        id="M8.large",
        title="a message over the limit",
        run=closes(1009, 1008, send=(frame(2, b"x" * 200_000),)),
    ),
    Call(id="M9", title="subscribers of a flood that never read", run=_never_reads, heavy=True),
    Call(id="M10", title="pages of another origin", run=_foreign_origin),
    Call(id="M11", title="handshakes that are none", run=_handshakes),
    Call(id="M12", title="subscribers that vanish", run=_vanish),
    Call(id="M13", title="logs of jobs that do not exist", run=_unknown_job),
    Call(id="M14.early", title="frames in the handshake's segment", run=_early_frames),
)
