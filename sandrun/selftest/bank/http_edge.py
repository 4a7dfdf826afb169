"""L: HTTP, byte by byte."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

from sandrun.selftest.case import Call, Case, each, expect
from sandrun.selftest.target import Target

_NEXT: Final = "GET /smuggled HTTP/1.1"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 \d{3} ")


def refused(
    line: str,
    *fields: str,
    body: bytes = b"",
    by: tuple[int, ...] = (400,),
    host: bool = True,
) -> Callable[[Target], None]:
    """A head (surrogate escapes allowed) that ends in one refusal and a closed connection.

    An innocent request follows in the same bytes: if it is answered too, a proxy
    and the server disagree about where the first one ended.
    """

    def run(target: Target) -> None:
        data = target.head(line, *fields, host=host) + body + target.head(_NEXT)
        text = target.raw(data)
        _one_refusal(text, by)

    return run


def _one_refusal(text: bytes, by: tuple[int, ...]) -> None:
    first = text.split(b"\r\n", 1)[0]
    status = int(first.split()[1]) if first.startswith(b"HTTP/1.1 ") else 0
    # A close without a word refuses too.
    expect(not text or status in by, f"answered {first!r}, not {by}")
    expect(len(_STATUS_LINE.findall(text)) <= 1, f"answered twice: {text[:400]!r}")
    for word in (b"Traceback", b"/work/main", b"site-packages", b'.py"'):
        expect(word not in text, f"the answer shows {word!r}")


def raw_refused(data: bytes, *by: int) -> Callable[[Target], None]:
    """Bytes that are no request."""

    def run(target: Target) -> None:
        _one_refusal(target.raw(data), by or (400, 408, 431, 501, 505))

    return run


def _post(
    *fields: str, body: bytes = b"", by: tuple[int, ...] = (400,)
) -> Callable[[Target], None]:
    return refused("POST /submit HTTP/1.1", *fields, body=body, by=by)


def _get(*fields: str, line: str = "GET / HTTP/1.1", **more: Any) -> Callable[[Target], None]:
    return refused(line, *fields, **more)


def _chunked(body: bytes, by: tuple[int, ...] = (400, 413, 415)) -> Callable[[Target], None]:
    return _post("Transfer-Encoding: chunked", "Content-Type: application/json", body=body, by=by)


def _any_segmentation(target: Target) -> None:
    """Too large a head is refused however it is cut."""
    data = target.head("GET / HTTP/1.1", "X: " + "a" * 70_000)
    for cut in (1, 100, 16_000, len(data) - 3):
        with target.wire() as wire:
            wire.send(data[:cut])
            time.sleep(0.02)
            wire.send(data[cut:])
            _one_refusal(wire.receive(), (431,))


def _expect_header(target: Target) -> None:
    text = target.raw(
        target.head(
            "POST /submit HTTP/1.1",
            "Expect: 100-continue",
            "Content-Type: multipart/form-data; boundary=b",
            "Content-Length: 99999999999",
        )
    )
    expect(text.startswith(b"HTTP/1.1 413"), f"answered {text[:60]!r}")
    text = target.raw(
        target.head(
            "POST /submit HTTP/1.1", "Expect: 200-maybe", "Content-Length: 1", "Connection: close"
        )
        + b"x"
    )
    expect(text[9:12] in (b"417", b"415", b"400"), f"answered {text[:60]!r}")


def _half_closed(target: Target) -> None:
    with target.wire() as wire:
        wire.send(target.head("GET /health HTTP/1.1", "Connection: close"))
        if not target.secure:
            wire.socket.shutdown(socket.SHUT_WR)
        expect(wire.receive().startswith(b"HTTP/1.1 "), "no answer to a half-closed connection")


def _silent_connections(target: Target) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(target.wire()) for _ in range(100)]
        for wire in opened[:50]:
            wire.send(b"GET / HT")
        expect(target.get("/health").status == 200, "a hundred silent clients stop the server")
    expect(target.get("/health").status == 200, "their end stops the server")


def _random_bytes(target: Target) -> None:
    for _ in range(20):
        text = target.raw(os.urandom(3000) + b"\r\n\r\n")
        _one_refusal(text, (400, 431, 501, 505))
    expect(target.get("/health").status == 200, "random bytes stop the server")


def _errors_reveal_nothing(target: Target) -> None:
    for path in (
        "/<script>alert(1)</script>",
        "/status/%3Cscript%3E",
        "/download/x/y",
        "/logs/" + "a" * 200,
        "/etc/passwd",
        "/.git/config",
        "/%0d%0aX:y",
        "//b/c",
        "/.env",
        "/sandrun/config.py",
        "/server-status",
        "/metrics",
    ):
        reply = target.get(path.replace("<", "%3C").replace(">", "%3E"))
        expect(reply.status in (400, 404), f"{path}: {reply.status}")
        expect(
            reply.headers.get("content-type", "").startswith("application/json"),
            f"{path}: {reply.headers.get('content-type')}",
        )
        expect(b"<script" not in reply.body, f"{path} is reflected")
        for word in (b"Traceback", b'File "', b"/root/", b"/work/"):
            expect(word not in reply.body, f"{path} shows {word!r}")
        expect(reply.headers.get("x-content-type-options") == "nosniff", f"{path}: may be sniffed")


def _methods(target: Target) -> None:
    for method, path, wanted in (
        ("PUT", "/submit", 405),
        ("GET", "/submit", 405),
        ("DELETE", "/health", 405),
        ("POST", "/status/x", 405),
        ("PATCH", "/", 405),
    ):
        reply = target.request(method, path)
        expect(reply.status in (wanted, 501), f"{method} {path}: {reply.status}")
        expect(reply.status == 501 or reply.headers.get("allow"), f"{method} {path}: no Allow")


def _pipelined(target: Target) -> None:
    """Ten requests in one segment: ten answers in order, or fewer and a close; never mixed."""
    data = b"".join(
        target.head(f"GET /{'health' if i % 2 else 'nothing'} HTTP/1.1") for i in range(9)
    )
    text = target.raw(data + target.head("GET /health HTTP/1.1", "Connection: close"))
    statuses = [part[:3] for part in text.split(b"HTTP/1.1 ")[1:]]
    expect(statuses == [b"404", b"200"] * 4 + [b"404", b"200"], f"answered {statuses}")


def _forwarded_is_not_believed(target: Target) -> None:
    """Headers of a proxy that nobody configured change nothing about who we are."""
    for name in (
        "X-Forwarded-For",
        "Forwarded",
        "X-Real-IP",
        "X-Forwarded-Host",
        "X-Original-URL",
        "X-HTTP-Method-Override",
        "X-Rewrite-URL",
        "Client-IP",
        "CF-Connecting-IP",
    ):
        value = (
            "for=1.2.3.4"
            if name == "Forwarded"
            else "DELETE"
            if "Method" in name
            else "/metrics"
            if "URL" in name
            else "1.2.3.4"
        )
        reply = target.request("GET", "/health", headers={name: value})
        expect(reply.status == 200 and "status" in reply.json(), f"{name}: {reply.status}")


def _slow_head(target: Target) -> None:
    """A head that comes byte by byte is given up within the head's deadline."""
    start = time.monotonic()
    with target.wire(25) as wire:
        for byte in target.head("GET / HTTP/1.1", "X: " + "a" * 500):
            try:
                wire.socket.sendall(bytes((byte,)))
            except OSError:
                break
            time.sleep(0.25)
            if time.monotonic() - start > 20:
                break
        expect(time.monotonic() - start < 18, "a head may take 18 s")


def call(id: str, title: str, run: Callable[[Target], None], **more: Any) -> Call:  # noqa: A002
    """Shorter."""
    return Call(id=id, title=title, run=run, **more)


_CL: Final = "Content-Length: "
_TE: Final = "Transfer-Encoding: "

CASES: Final[tuple[Case, ...]] = (
    call(
        "L1",
        "Content-Length and Transfer-Encoding together",
        each(
            _post(_CL + "5", _TE + "chunked", body=b"0\r\n\r\n"),
            _post(_TE + "chunked", _CL + "5", body=b"0\r\n\r\n"),
        ),
    ),
    call(
        "L2",
        "Transfer-Encoding in every other spelling",
        each(
            *(
                _post(_TE + value, by=(400, 501))
                for value in (
                    "xchunked",
                    "chunked, identity",
                    "identity",
                    "gzip, chunked",
                    "chunked,",
                    "",
                    "\x0bchunked",
                    "chunked\x00",
                    "chunked;q=1",
                    '"chunked"',
                )
            ),
            _post(_TE + "chunked", _TE + "chunked", by=(400, 501)),
        ),
    ),
    call(
        "L2.http10",
        "Transfer-Encoding in HTTP/1.0",
        refused("POST /submit HTTP/1.0", _TE + "chunked", body=b"0\r\n\r\n"),
    ),
    call(
        "L2.space",
        "a space before the colon",
        each(_post("Transfer-Encoding : chunked"), _post("Content-Length : 5")),
    ),
    call(
        "L3",
        "Content-Length in every other spelling",
        each(
            *(
                _post(_CL + value)
                for value in (
                    "5,5",
                    "+5",
                    "-1",
                    "0x5",
                    "5 5",
                    "05",
                    "00",
                    "",
                    "18446744073709551616",
                    "5_0",
                    "\u0665",
                    "5.0",
                    "1e1",
                    "5;",
                )
            ),
            _post(_CL + "5", _CL + "6"),
            _post(_CL + "5", _CL + "5"),
        ),
    ),
    call(
        "L4",
        "folded fields",
        each(_get("X: a", " b"), _get("X: a", "\tb"), _post("Transfer-Encoding:\r\n chunked")),
    ),
    call(
        "L5",
        "bare line feeds, carriage returns and NULs",
        each(
            raw_refused(b"GET / HTTP/1.1\nHost: a\n\n"),
            _get("X: a\rb"),
            _get("X: a\nTransfer-Encoding: chunked"),
            _get("X: a\x00b"),
            _get("X\x00: b"),
            _get("X: \x01"),
            _get("X: \x7f"),
        ),
    ),
    call(
        "L6",
        "Host missing, doubled or strange",
        each(
            refused("GET / HTTP/1.1", host=False),
            _get("Host: b"),
            *(
                refused("GET / HTTP/1.1", f"Host: {value}", host=False)
                for value in (
                    "",
                    "u@a",
                    "a/b",
                    "a,b",
                    "a b",
                    "a:b",
                    "a:65536",
                    "[::1",
                    "a?b",
                    "a#b",
                )
            ),
        ),
    ),
    call(
        "L7",
        "targets that are no path",
        each(
            *(
                _get(line=f"{method} {path} HTTP/1.1", by=(400, 404, 405, 414, 501))
                for method, path in (
                    ("GET", "*"),
                    ("CONNECT", "a:443"),
                    ("GET", "http://b/"),
                    ("GET", "status"),
                    ("GET", "/a#b"),
                    ("GET", "/a\\b"),
                    ("GET", "/a b"),
                    ("GET", "/é"),
                    ("GET", "/%zz"),
                    ("GET", "/%00"),
                    ("GET", "/a/../b"),
                    ("GET", "/%2e%2e/b"),
                    ("GET", "/" + "a" * 100_000),
                )
            )
        ),
    ),
    call(
        "L8",
        "methods and versions that are none",
        each(
            *(
                refused(line, by=(400, 405, 501, 505))
                for line in (
                    "BREW / HTTP/1.1",
                    "get / HTTP/1.1",
                    "GE(T / HTTP/1.1",
                    "GET /",
                    "GET / HTTP/0.9",
                    "GET / HTTP/1.2",
                    "GET / HTTP/3",
                    "GET / http/1.1",
                    "GET  / HTTP/1.1",
                    "GET\t/ HTTP/1.1",
                    "GET / HTTP/1.1 ",
                    "GET / HTTP/1.1\x00",
                )
            )
        ),
    ),
    call(
        "L9",
        "heads beyond the limit",
        each(
            _get("X: " + "a" * 17_000, by=(431,)),
            _get("X: " + "a" * 100_000, by=(431,)),
            _get(*(["X: a"] * 500), by=(431,)),
        ),
    ),
    call("L9.cut", "heads beyond the limit, cut in every way", _any_segmentation),
    call(
        "L10",
        "chunks that are none",
        each(
            *(
                _chunked(body)
                for body in (
                    b"g\r\n",
                    b"5;a=b\r\nhello\r\n0\r\n\r\n",
                    b"5;\r\nhello\r\n0\r\n\r\n",
                    b"5 \r\nhello\r\n0\r\n\r\n",
                    b"\t5\r\nhello\r\n",
                    b"+5\r\nhello\r\n",
                    b"0x5\r\nhello\r\n",
                    b"10000000000000005\r\nhello\r\n",
                    b"\r\nhello\r\n",
                    b"5\nhello\r\n",
                    b"5\r\nhelloX\r\n",
                    b"5\r\nhello\n0\r\n\r\n",
                    b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
                    b"f" * 1000 + b"\r\n",
                )
            )
        ),
    ),
    call("L11.pipeline", "ten requests in one segment", _pipelined),
    call("L12.head", "a head that trickles in is given up", _slow_head),
    call("L14", "clients that half close", _half_closed),
    call(
        "L16", "Expect: 100-continue with too large a body, and other expectations", _expect_header
    ),
    call(
        "L17",
        "HTTP/2, TLS and noise on this port",
        each(
            raw_refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            raw_refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512)),
            raw_refused(b"SSH-2.0-x\r\n"),
            raw_refused(b"\x00" * 5000),
            raw_refused(b"EHLO x\r\n\r\n"),
            raw_refused(b"\r\n" * 5000),
        ),
    ),
    call("L17.random", "random bytes", _random_bytes),
    call("L19", "a hundred silent connections", _silent_connections),
    call("L20.methods", "wrong methods on known paths", _methods),
    call("L21.proxy", "proxy headers from nobody's proxy", _forwarded_is_not_believed),
    call(
        "L22",
        "underscores are not dashes",
        each(_post("Transfer_Encoding: chunked"), _post("Content_Length: 5")),
    ),
    call(
        "L23.fields",
        "field names that are none",
        each(
            _get("nonsense"),
            _get(": a"),
            _get("A B: c"),
            _get("é: c"),
            _get("A\x7f: c"),
            _get("(A): c"),
        ),
    ),
    call("L24", "errors reflect and reveal nothing", _errors_reveal_nothing),
)
