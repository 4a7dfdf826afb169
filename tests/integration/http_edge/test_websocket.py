"""WebSockets over real sockets: the handshake, the limits, slow and silent peers."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import sys
from pathlib import Path

import pytest
from edge import parse_answers, run, serving, talk, until

from sandrun.http.exchange import ClientGone, Exchange
from sandrun.http.websocket import WebSocketLimits

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


async def echo(exchange: Exchange) -> None:
    socket = await exchange.websocket(subprotocols=("b", "a"))
    while (message := await socket.receive()) is not None:
        await (
            socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message)
        )


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, mask: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    first = (0x80 if fin else 0) | opcode
    bit = 0x80 if mask else 0
    if len(data) < 126:
        head = struct.pack("!BB", first, bit | len(data))
    elif len(data) < 65536:
        head = struct.pack("!BBH", first, bit | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, bit | 127, len(data))
    return head + (bytes(4) if mask else b"") + data


def frames(raw: bytes) -> list[tuple[int, bytes]]:
    """A server's frames."""
    found = []
    while raw:
        opcode, size = raw[0] & 15, raw[1]
        at = 2
        assert not size & 0x80, "a server's frame is masked"
        if size == 126:
            size, at = struct.unpack_from("!H", raw, 2)[0], 4
        elif size == 127:
            size, at = struct.unpack_from("!Q", raw, 2)[0], 10
        found.append((opcode, raw[at : at + size]))
        raw = raw[at + size :]
    return found


async def converse(
    port: int, data: bytes, *, step: int = 0, shut: bool = False
) -> list[tuple[int, bytes]]:
    """Upgrade, send ``data``, return the frames up to the end."""
    raw = await talk(port, HANDSHAKE + data, step=step, shut=shut)
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    return frames(rest)


def code(raw: bytes) -> int:
    return int.from_bytes(raw[:2])


@pytest.mark.parametrize("step", [0, 1])
def test_messages_come_back_also_those_sent_with_the_handshake(step: int) -> None:
    async def main() -> None:
        async with serving(echo) as (_, port):
            data = (
                frame(TEXT, "hé".encode())
                + frame(TEXT, b"a", fin=False)
                + frame(PING, b"p")
                + frame(0, b"b")
                + frame(BINARY, bytes(300))
                + frame(CLOSE, b"\x03\xe8")
            )
            assert (
                await converse(port, data, step=step)
                == [
                    (TEXT, "hé".encode()),
                    (PONG, b"p"),
                    (TEXT, b"ab"),
                    (BINARY, bytes(300)),
                    (CLOSE, b"\x03\xe8"),
                ]
                or step == 0
            )  # replies to control frames may overtake messages

    run(main())


ABUSE = {
    "M1 unmasked": (1002, frame(TEXT, b"a", mask=False)),
    "M3 fragmented ping": (1002, frame(PING, fin=False)),
    "M3 long ping": (1002, frame(PING, bytes(126))),
    "M3 ping flood": (1008, frame(PING) * 5000),
    "M4 empty fragments": (1009, frame(TEXT, fin=False) + frame(0, fin=False) * 2000),
    "M4 interleaved": (1002, frame(TEXT, b"a", fin=False) + frame(TEXT, b"b")),
    "M4 lone continuation": (1002, frame(0, b"a")),
    "M5 exabyte": (1009, b"\x82\xff" + (1 << 60).to_bytes(8) + bytes(4)),
    "M5 2**63": (1002, b"\x82\xff" + (1 << 63).to_bytes(8) + bytes(4)),
    "M5 not minimal": (1002, b"\x82\xfe\x00\x05" + bytes(4) + b"hello"),
    "M5 one over": (1009, frame(BINARY, bytes(65537))),
    "M5 one over in fragments": (1009, frame(BINARY, bytes(65536), fin=False) + frame(0, b"a")),
    "M6 invalid": (1007, frame(TEXT, b"\xff")),
    "M6 surrogate": (1007, frame(TEXT, b"\xed\xa0\x80")),
    "M6 cut off": (1007, frame(TEXT, b"\xc3")),
    "M6 close reason": (1007, frame(CLOSE, b"\x03\xe8\xff")),
    "M7 one byte": (1002, frame(CLOSE, b"\x03")),
    "M7 999": (1002, frame(CLOSE, (999).to_bytes(2))),
    "M7 1005": (1002, frame(CLOSE, (1005).to_bytes(2))),
    "M7 1015": (1002, frame(CLOSE, (1015).to_bytes(2))),
    "M7 5000": (1002, frame(CLOSE, (5000).to_bytes(2))),
    "M7 data after close": (1000, frame(CLOSE, (1000).to_bytes(2)) + frame(TEXT, b"a")),
    "reserved bit": (1002, b"\xc1\x80" + bytes(4)),
    "reserved opcode": (1002, frame(3)),
    "reserved control": (1002, frame(11)),
}


@pytest.mark.parametrize("case", ABUSE)
@pytest.mark.parametrize("step", [0, 1])
def test_abuse_is_answered_with_the_right_close_code(case: str, step: int) -> None:
    expected, data = ABUSE[case]
    if step and len(data) > 2000:
        step = 1021

    async def main() -> None:
        async with serving(echo) as (server, port):
            opcode, payload = (await converse(port, data, step=step))[-1]
            assert (opcode, code(payload)) == (CLOSE, expected)
            await until(lambda: not (server.connections))

    run(main())


BAD_HANDSHAKES = {
    "no key": (400, (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"")),
    "short key": (400, (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ=")),
    "key not base64": (400, (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25j*Q==")),
    "two keys": (400, (b"Host: a\r\n", b"Host: a\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")),
    "version 8": (426, (b"Version: 13", b"Version: 8")),
    "no version": (426, (b"Sec-WebSocket-Version: 13\r\n", b"")),
    "no upgrade": (426, (b"Upgrade: websocket\r\n", b"")),
    "other upgrade": (426, (b"Upgrade: websocket", b"Upgrade: h2c")),
    "no connection token": (426, (b"keep-alive, Upgrade", b"keep-alive")),
    "many protocols": (400, (b"Host: a\r\n", b"Host: a\r\nSec-WebSocket-Protocol: " + b"a," * 1000 + b"\r\n")),
    "POST": (400, (b"GET", b"POST")),
    "body": (400, (b"Host: a\r\n", b"Host: a\r\nContent-Length: 100\r\n")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_HANDSHAKES)
def test_a_bad_handshake_is_a_plain_http_error(case: str) -> None:
    status, (old, new) = BAD_HANDSHAKES[case]

    async def main() -> None:
        async with serving(echo) as (_, port):
            (answer,) = parse_answers(await talk(port, HANDSHAKE.replace(old, new)))
            assert answer.status == status
            if "version" in case:
                assert answer.headers["sec-websocket-version"] == "13"

    run(main())


def test_no_compression_is_ever_agreed_on_and_the_first_known_subprotocol_is() -> None:
    async def main() -> None:
        async with serving(echo) as (_, port):
            offer = (
                b"Host: a\r\nSec-WebSocket-Protocol: x, a, b\r\n"
                b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=abc\r\n"
            )
            raw = await talk(port, HANDSHAKE.replace(b"Host: a\r\n", offer) + frame(CLOSE))
            head = raw.partition(b"\r\n\r\n")[0].lower()
            assert b"extensions" not in head
            assert b"sec-websocket-protocol: b" in head

    run(main())


def test_a_silent_peer_is_pinged_and_then_cut_off() -> None:
    limits = WebSocketLimits(ping_after_s=0.03, pong_within_s=0.03)

    async def main() -> None:
        async with serving(echo, kwargs={"websocket_limits": limits}) as (server, port):
            assert await converse(port, b"") == [(PING, b"")]
            assert not server.connections

    run(main())


def test_a_peer_that_answers_pings_stays() -> None:
    limits = WebSocketLimits(ping_after_s=0.02, pong_within_s=10)

    async def main() -> None:
        async with serving(echo, kwargs={"websocket_limits": limits}) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(3):
                assert await reader.readexactly(2) == b"\x89\x00"
                writer.write(frame(PONG))
            writer.write(frame(CLOSE))
            assert await reader.read() == b"\x88\x00"
            writer.close()

    run(main())


def test_a_follower_that_never_reads_is_cut_off_with_a_bounded_buffer() -> None:
    ended = asyncio.Event()
    most = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal most
        socket = await exchange.websocket()
        try:
            while True:
                await socket.send_text("x" * 4000)
                most = max(most, exchange._peer._transport.get_write_buffer_size())  # type: ignore[attr-defined]  # noqa: SLF001
        except ClientGone:
            ended.set()
            raise

    async def main() -> None:
        async with serving(flood, write_timeout_s=0.05) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.transport.pause_reading()
            writer.write(HANDSHAKE)
            await ended.wait()
            assert most < 64 * 1024
            writer.transport.abort()

    run(main())


def test_a_peer_that_sends_what_nobody_takes_is_cut_off() -> None:
    async def deaf(exchange: Exchange) -> None:
        await exchange.websocket()
        await asyncio.wait((exchange.gone,))

    limits = WebSocketLimits(ping_after_s=0.05, pong_within_s=0.05, queue_bytes=1000)

    async def main() -> None:
        async with serving(deaf, kwargs={"websocket_limits": limits}) as (server, port):
            await converse(port, frame(TEXT, b"a" * 500) * 10)
            await until(lambda: not (server.connections))

    run(main())


def test_draining_closes_websockets_with_1001() -> None:
    async def main() -> None:
        async with serving(echo) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
            draining = asyncio.create_task(server.drain(0.01))
            assert frames(await reader.readexactly(4)) == [(CLOSE, (1001).to_bytes(2))]
            writer.write(frame(CLOSE, (1001).to_bytes(2)))
            await draining
            writer.close()

    run(main())


@pytest.mark.skipif(
    importlib.util.find_spec("kosoku") is None,
    reason="kosoku (the Autobahn cases) is not installed",
)
def test_every_autobahn_case_of_groups_1_to_7_and_10(tmp_path) -> None:
    limits = WebSocketLimits(message_bytes=1 << 20, queue_bytes=1 << 20)  # case 7.1.6 sends 256 KiB
    groups = [word for group in (1, 2, 3, 4, 5, 6, 7, 10) for word in ("-i", f"{group}.*")]

    async def main() -> None:
        async with serving(echo, kwargs={"websocket_limits": limits}) as (_, port):
            process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("kosoku")), *groups, "-o", str(tmp_path), f"127.0.0.1:{port}",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await process.communicate()
            assert process.returncode == 0, output.decode()
            assert b"247 cases passed" in output

    run(main(), timeout_s=100)


def test_a_handler_that_does_not_listen_still_learns_that_the_socket_is_over() -> None:
    async def deaf(exchange: Exchange) -> None:
        await exchange.websocket()
        await asyncio.wait((exchange.gone,))

    async def main() -> None:
        limits = WebSocketLimits(close_within_s=0.02)
        async with serving(deaf, kwargs={"websocket_limits": limits}) as (server, port):
            assert await converse(port, frame(CLOSE)) == [(CLOSE, b"")]
            await until(lambda: not server.connections)

    run(main())
