"""TLS, PROXY headers, trusted proxies, delivery, and answers as they go over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
import subprocess
from pathlib import Path

import pytest
from edge import Handler, echo, parse_answers, run, serving, talk, until

from sandrun.config import Http
from sandrun.http.exchange import ClientGone, Exchange, Response
from sandrun.http.proxy import PROXY_SIGNATURE
from sandrun.http.server import Server
from sandrun.http.tls import server_context

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"


def get(*fields: bytes, path: bytes = b"/") -> bytes:
    return (
        b"GET "
        + path
        + b" HTTP/1.1\r\nHost: a\r\n"
        + b"".join(f + b"\r\n" for f in fields)
        + b"\r\n"
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    path = tmp_path_factory.mktemp("tls")
    return make_certificate(path, "one")


def make_certificate(path: Path, name: str) -> tuple[str, str]:
    cert, key = str(path / f"{name}.pem"), str(path / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", cert, "-days", "1", "-subj", f"/CN={name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def client_context(**options: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in options.items():
        setattr(context, name, value)
    return context


# ── TLS ──


async def talk_tls(port: int, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """As ``talk``, with a blocking socket: uvloop's client loses data before a close_notify.

    End the session with ``Connection: close`` in ``data``.
    """

    def blocking() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            (context or client_context()).wrap_socket(plain) as sock,
        ):
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    return await asyncio.to_thread(blocking)


def test_requests_over_tls(certificate: tuple[str, str]) -> None:
    async def main() -> None:
        async with serving(tls=server_context(*certificate)) as (_, port):
            body = b"x" * 700_000
            post = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            raw = await talk_tls(port, GET + post + body + get(b"Connection: close"))
            first, second, third = parse_answers(raw)
            assert (first.status, third.status) == (200, 200)
            assert second.body == b"POST /a " + body

    run(main())


def test_plain_http_on_the_tls_port_gets_a_hint_and_no_noise(certificate: tuple[str, str]) -> None:
    async def main() -> None:
        async with serving(tls=server_context(*certificate)) as (_, port):
            for data in (GET, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\xff" * 5000):
                (answer,) = parse_answers(await talk(port, data))
                assert answer.status == 400
                assert b"HTTPS" in answer.body

    run(main())


def test_old_tls_and_broken_handshakes_are_refused(certificate: tuple[str, str]) -> None:
    async def main() -> None:
        async with serving(tls=server_context(*certificate), head_timeout_s=0.2) as (server, port):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await talk_tls(port, GET, client_context(maximum_version=ssl.TLSVersion.TLSv1_2))
            assert b"HTTP" not in await talk(port, b"\x16\x03\x01\x00\x05hello" + bytes(500))
            # A handshake that is never finished ends with the head's deadline.
            assert await talk(port, b"\x16", shut=False) == b""
            assert parse_answers(await talk_tls(port, get(b"Connection: close")))[0].status == 200
            await until(lambda: not (server.connections))

    run(main())


def test_a_new_certificate_is_used_without_a_restart(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    async def shown(port: int) -> bytes | None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context())
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()
        return shown

    async def main() -> None:
        context = server_context(*certificate)
        async with serving(tls=context) as (_, port):
            before = await shown(port)
            context.load_cert_chain(*make_certificate(tmp_path, "two"))
            assert before != await shown(port)

    run(main())


# ── who the client is ──


async def who(exchange: Exchange) -> None:
    request = exchange.request
    text = f"{request.client} {request.via_proxy} {request.secure}"
    await exchange.respond(Response(200, text.encode(), "text/plain"))


def proxy_v2(address: str, *, command: int = 1, extra: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    body = packed * 2 + struct.pack("!HH", 1, 2) + extra
    kind = 0x21 if family == socket.AF_INET6 else 0x11
    return PROXY_SIGNATURE + struct.pack("!BBH", 0x20 | command, kind, len(body)) + body


@pytest.mark.parametrize("step", [0, 1])
def test_a_trusted_proxy_names_the_client_by_proxy_header(step: int) -> None:
    async def main() -> None:
        async with serving(who, trusted_proxies=("127.0.0.0/8",)) as (_, port):
            for header, expected in (
                (proxy_v2("203.0.113.7"), b"203.0.113.7 True False"),
                (proxy_v2("2001:db8::1", extra=b"\x04\x00\x01x"), b"2001:db8::1 True False"),
                (proxy_v2("::ffff:203.0.113.9"), b"203.0.113.9 True False"),
                (proxy_v2("203.0.113.7", command=0), b"127.0.0.1 False False"),
                (b"", b"127.0.0.1 False False"),
            ):
                answers = parse_answers(await talk(port, header + GET + GET, step=step))
                assert [answer.body for answer in answers] == [expected] * 2

    run(main())


def test_nobody_else_may_send_a_proxy_header_and_bad_ones_end_the_connection() -> None:
    async def main() -> None:
        async with serving(who) as (_, port):
            assert b" 400 " in await talk(port, proxy_v2("203.0.113.7") + GET)
            headers = (b"X-Forwarded-For: 203.0.113.7", b"Forwarded: for=203.0.113.8")
            (answer,) = parse_answers(await talk(port, get(*headers)))
            assert answer.body == b"127.0.0.1 False False"
        async with serving(who, trusted_proxies=("127.0.0.1",)) as (_, port):
            for bad in (
                proxy_v2("203.0.113.7", command=7),
                PROXY_SIGNATURE + b"\x21\x11\xff\xff",
                PROXY_SIGNATURE + b"\x21\x11\x00\x02ab",
                PROXY_SIGNATURE + b"\x11\x11\x00\x00",
            ):
                assert await talk(port, bad + GET) == b""

    run(main())


def test_a_trusted_proxy_names_the_client_by_header() -> None:
    async def main() -> None:
        async with serving(who, trusted_proxies=("127.0.0.1", "10.0.0.0/8")) as (_, port):
            for fields, expected in (
                ((b"X-Forwarded-For: 203.0.113.7",), b"203.0.113.7 True False"),
                ((b"X-Forwarded-For: 1.1.1.1, 203.0.113.7, 10.0.0.1",), b"203.0.113.7 True False"),
                (
                    (b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-For: 203.0.113.7"),
                    b"203.0.113.7 True False",
                ),
                (
                    (b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-Proto: https"),
                    b"203.0.113.7 True True",
                ),
                ((b"X-Forwarded-For: nonsense",), b"127.0.0.1 False False"),
                ((b"X-Forwarded-For: 203.0.113.7, unknown",), b"127.0.0.1 False False"),
                (
                    (b'Forwarded: for=1.1.1.1, for="[2001:db8::7]:80";proto=https;by=x',),
                    b"2001:db8::7 True True",
                ),
                ((b"Forwarded: for=203.0.113.7, for=unknown",), b"127.0.0.1 False False"),
            ):
                (answer,) = parse_answers(await talk(port, get(*fields)))
                assert answer.body == expected, fields
            both = get(b"X-Forwarded-For: 203.0.113.7", b"Forwarded: for=203.0.113.8")
            assert parse_answers(await talk(port, both))[0].status == 400

    run(main())


@pytest.mark.parametrize(
    "own",
    [b'for="', b'for=6.6.6.6;x="', b"for=6.6.6.6, nonsense;;", b"for", b"=", b'for="a"b', b"for=a b"],
)
def test_a_client_cannot_swallow_what_its_proxy_says_of_it(own: bytes) -> None:
    """An open quote in the client's part made the client the proxy: another quota, and
    the proxy's acknowledgement of an archive counted as the client's."""

    async def main() -> None:
        async with serving(who, trusted_proxies=("127.0.0.1",)) as (_, port):
            for appended in (b"for=203.0.113.7", b'for="[2001:db8::7]:80";by="_x"'):
                for fields in ([own + b", " + appended], [own, appended]):
                    lines = (b"Forwarded: " + field for field in fields)
                    (answer,) = parse_answers(await talk(port, get(*lines)))
                    assert answer.status == 400, fields

    run(main())


def test_a_unix_socket_has_no_client_unless_its_peer_tells(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        server = Server(who, Http())
        task = asyncio.create_task(server.serve([listener]))
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET + get(b"X-Forwarded-For: 203.0.113.7", b"Connection: close"))
        first, second = parse_answers(await reader.read(-1))
        assert first.body == b" False False"
        assert second.body == b"203.0.113.7 True False"
        writer.close()
        await server.drain(1)
        await task

    run(main())


# ── delivery ──


def delivering(
    results: list[bool], size: int, over: asyncio.Event, *, length: bool = True
) -> Handler:
    async def handler(exchange: Exchange) -> None:
        try:
            await exchange.start(200, (), size if length else None)
            left = size
            while left:
                piece = bytes(min(left, 100_000))
                await exchange.write(piece)
                left -= len(piece)
            await exchange.finish()
            results.append(await exchange.delivered())
        except ClientGone:
            results.append(False)
            raise
        finally:
            over.set()

    return handler


@pytest.mark.parametrize("how", ["keep-alive", "close", "http/1.0", "chunked", "tls"])
def test_what_a_client_has_read_is_delivered(how: str, certificate: tuple[str, str]) -> None:
    async def main() -> None:
        results: list[bool] = []
        size = 5_000_000
        over = asyncio.Event()
        handler = delivering(results, size, over, length=how != "chunked")
        request = {
            "keep-alive": GET,
            "chunked": GET,
            "http/1.0": b"GET / HTTP/1.0\r\n\r\n",
        }.get(how, get(b"Connection: close"))
        tls = server_context(*certificate) if how == "tls" else None
        async with serving(handler, tls=tls) as (_, port):
            raw = await (talk_tls(port, request) if tls else talk(port, request))
            assert len(raw) > size
            await over.wait()
        assert results == [True]

    run(main())


@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_that_was_not_read_is_not_delivered(
    tls: bool, certificate: tuple[str, str]
) -> None:
    async def main() -> None:
        results: list[bool] = []
        over = asyncio.Event()
        handler = delivering(results, 30_000_000, over)
        context = server_context(*certificate) if tls else None
        async with serving(handler, tls=context, write_timeout_s=5) as (_, port):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client_context() if tls else None
            )
            writer.write(GET)
            await reader.readexactly(100_000)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await over.wait()
        assert results == [False]

    run(main())


def test_a_client_killed_with_the_answer_in_its_kernel_has_not_got_it() -> None:
    """Every byte is acknowledged, and then the reset comes: the grace catches it."""

    async def main() -> None:
        results: list[bool] = []
        over = asyncio.Event()
        async with serving(delivering(results, 10_000, over)) as (_, port):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(GET)
            await until(lambda: not (not ready(sock)))
            sock.close()  # with bytes unread: the kernel sends a reset
            await over.wait()
        assert results == [False]

    run(main())


def ready(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_behind_a_proxy_nothing_counts_as_delivered() -> None:
    async def main() -> None:
        results: list[bool] = []
        over = asyncio.Event()
        handler = delivering(results, 10, over)
        async with serving(handler, trusted_proxies=("127.0.0.1",)) as (_, port):
            await talk(port, get(b"X-Forwarded-For: 203.0.113.7"))
            await over.wait()
        assert results == [False]

    run(main())


# ── answers ──


async def answers(exchange: Exchange) -> None:
    match exchange.request.path:
        case "/json":
            await exchange.respond(Response(200, b'{"a": "' + b"x" * 5000 + b'"}'))
        case "/binary":
            await exchange.respond(Response(200, b"x" * 5000, "application/octet-stream"))
        case "/etag":
            await exchange.respond(Response(200, b"x" * 5000, headers=(("ETag", '"a"'),)))
        case "/small":
            await exchange.respond(Response(200, b"{}"))
        case "/204":
            await exchange.respond(Response(204, b"never", ""))
        case "/304":
            await exchange.respond(Response(304, headers=(("ETag", '"a"'),)))
        case "/own":
            headers = (("Content-Security-Policy", "sandbox"), ("X-Other", "1"))
            await exchange.respond(Response(200, b"<p>", "text/html", headers))
        case "/stream":
            await exchange.start(200, (("Content-Type", "text/plain"),), None)
            for piece in (b"one", b"", memoryview(b"two"), b"three" * 10_000):
                await exchange.write(piece)
            await exchange.finish()
        case "/sized":
            await exchange.start(200, (), 6)
            await exchange.write(b"abc")
            await exchange.write(b"def")
            await exchange.finish()


PATHS = ("json", "binary", "etag", "small", "204", "304", "own", "stream", "sized")


def test_every_answer_has_the_headers_that_keep_a_browser_from_guessing() -> None:
    async def main() -> None:
        async with serving(answers, kwargs={"wall": lambda: 784111777.0}) as (_, port):
            data = b"".join(get(path=b"/" + path.encode()) for path in PATHS)
            found = dict(zip(PATHS, parse_answers(await talk(port, data)), strict=True))
            for path, answer in found.items():
                assert answer.headers["x-content-type-options"] == "nosniff", path
                assert answer.headers["referrer-policy"] == "no-referrer", path
                assert answer.headers["date"] == "Sun, 06 Nov 1994 08:49:37 GMT", path
            assert found["own"].headers["content-security-policy"] == "sandbox"
            assert "default-src 'none'" in found["small"].headers["content-security-policy"]
            for path in ("204", "304"):
                assert "content-length" not in found[path].headers
                assert "content-type" not in found[path].headers or path == "304"
            assert found["stream"].body == b"onetwo" + b"three" * 10_000
            assert found["sized"].body == b"abcdef"

    run(main())


def test_head_is_the_same_without_the_body() -> None:
    async def main() -> None:
        async with serving(answers) as (_, port):
            for path in PATHS:
                request = get(b"Accept-Encoding: gzip", path=b"/" + path.encode())
                (full,) = parse_answers(await talk(port, request))
                raw = await talk(port, request.replace(b"GET", b"HEAD", 1) * 2)
                first, second = parse_answers(raw, head=True)
                assert first.status == full.status
                assert set(first.headers) == set(full.headers), path
                assert first.headers.get("content-length") == full.headers.get("content-length")

    run(main())


def test_text_is_compressed_when_it_pays_and_never_otherwise() -> None:
    async def main() -> None:
        async with serving(answers) as (_, port):

            async def fetch(path: bytes, accept: bytes) -> tuple[bytes, dict[str, str]]:
                raw = await talk(port, get(b"Accept-Encoding: " + accept, path=path))
                (answer,) = parse_answers(raw)
                return answer.body, answer.headers

            for accept in (b"gzip", b"br, gzip;q=0.5", b"*"):
                body, headers = await fetch(b"/json", accept)
                assert headers["content-encoding"] == "gzip"
                assert headers["vary"] == "accept-encoding"
                assert len(gzip.decompress(body)) == 5009
            for path, accept in (
                (b"/json", b"identity"),
                (b"/json", b"gzip;q=0"),
                (b"/json", b"br"),
                (b"/binary", b"gzip"),
                (b"/etag", b"gzip"),
                (b"/small", b"gzip"),
            ):
                _, headers = await fetch(path, accept)
                assert "content-encoding" not in headers

    run(main())


def test_a_body_that_nobody_reads_does_not_become_the_next_request() -> None:
    async def ignore(exchange: Exchange) -> None:
        await exchange.respond(Response(404, b"{}"))

    async def main() -> None:
        async with serving(ignore) as (_, port):
            small = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(GET) + GET
            assert len(parse_answers(await talk(port, small + GET))) == 2
            large = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n"
            (answer,) = parse_answers(await talk(port, large + GET * 200_000))
            assert answer.headers["connection"] == "close"

    run(main())


def test_writing_more_or_less_than_announced_breaks_the_connection() -> None:
    async def more(exchange: Exchange) -> None:
        await exchange.start(200, (), 5)
        await exchange.write(b"123456")

    async def less(exchange: Exchange) -> None:
        await exchange.start(200, (), 5)
        await exchange.write(b"1234")
        await exchange.finish()

    async def main() -> None:
        for handler, end in ((more, b"\r\n\r\n"), (less, b"1234")):
            async with serving(handler) as (_, port):
                assert (await talk(port, GET + GET)).endswith(end)

    run(main())


def test_the_echo_handler_sees_path_and_query_decoded_once() -> None:
    async def main() -> None:
        async with serving(echo) as (_, port):
            (answer,) = parse_answers(await talk(port, get(path=b"/a%2525%C3%A9%20b?x=1")))
            assert answer.body == "GET /a%25é b ".encode()

    run(main())
