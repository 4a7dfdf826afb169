"""Clients that are slow, silent, gone, or too many. Deadlines are short, nothing sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest
from edge import echo, parse_answers, run, serving, talk, until

from sandrun.errors import RequestError
from sandrun.http.exchange import ClientGone, Exchange, Response

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SHORT = 0.05


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(-1)
    except ConnectionResetError:
        return b""


def test_a_client_that_connects_and_says_nothing_is_cut_off() -> None:
    async def main() -> None:
        async with serving(head_timeout_s=SHORT) as (server, port):
            reader, writer = await connect(port)
            assert await until_closed(reader) == b""
            writer.close()

    run(main())


def test_a_head_that_drips_in_is_answered_408_at_an_absolute_deadline() -> None:
    async def main() -> None:
        async with serving(head_timeout_s=SHORT) as (_, port):
            reader, writer = await connect(port)

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    writer.write(b"GET / HTTP/1.1\r\n")
                    while True:
                        writer.write(b"X: a\r\n")
                        await writer.drain()
                        await asyncio.sleep(SHORT / 10)

            dripping = asyncio.create_task(drip())
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 408 ")
            dripping.cancel()
            writer.close()

    run(main())


def test_an_idle_connection_is_closed_without_a_word() -> None:
    async def main() -> None:
        async with serving(idle_timeout_s=SHORT) as (_, port):
            reader, writer = await connect(port)
            writer.write(GET)
            answers = parse_answers(await until_closed(reader))
            assert [answer.status for answer in answers] == [200]
            assert "connection" not in answers[0].headers
            writer.close()

    run(main())


@pytest.mark.parametrize("head", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_a_body_slower_than_the_minimum_rate_is_answered_408(head: bytes) -> None:
    async def main() -> None:
        async with serving(head_timeout_s=SHORT, body_min_rate_kb=1000) as (_, port):
            reader, writer = await connect(port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n")

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        writer.write(b"1\r\na\r\n")
                        await writer.drain()
                        await asyncio.sleep(SHORT / 10)

            dripping = asyncio.create_task(drip())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")
            dripping.cancel()
            writer.close()

    run(main())


def test_time_that_the_handler_takes_is_not_held_against_the_client() -> None:
    async def slow(exchange: Exchange) -> None:
        size = len(await exchange.read())
        await asyncio.sleep(4 * SHORT)
        while piece := await exchange.read():
            size += len(piece)
        await exchange.respond(Response(200, b"%d" % size))

    async def main() -> None:
        async with serving(slow, head_timeout_s=SHORT, body_min_rate_kb=1_000_000) as (_, port):
            data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n"
            answers = parse_answers(await talk(port, data + b"x" * 3_000_000))
            assert answers[0].body == b"3000000"

    run(main())


def test_a_reader_that_never_reads_is_cut_off_and_costs_bounded_memory() -> None:
    written = []
    ended = asyncio.Event()

    async def flood(exchange: Exchange) -> None:
        await exchange.start(200, (), None)
        try:
            while True:
                await exchange.write(bytes(64 * 1024))
                written.append(64)
        except ClientGone:
            ended.set()
            raise

    async def main() -> None:
        async with serving(flood, write_timeout_s=SHORT) as (server, port):
            reader, writer = await connect(port)
            writer.transport.pause_reading()
            writer.write(GET)
            await ended.wait()
            # Ours, and what the two kernel buffers between us took.
            assert sum(written) < 16 * 1024
            writer.transport.abort()

    run(main())


def test_the_body_is_read_only_as_fast_as_the_handler_takes_it() -> None:
    go = asyncio.Event()

    async def lazy(exchange: Exchange) -> None:
        await go.wait()
        size = 0
        while piece := await exchange.read():
            assert len(piece) <= 256 * 1024
            size += len(piece)
        await exchange.respond(Response(200, b"%d" % size))

    async def main() -> None:
        async with serving(lazy) as (server, port):
            size = 40_000_000
            data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
            sending = asyncio.create_task(talk(port, data + b"x" * size))
            await until(lambda: not (not server.connections))
            (peer,) = server._peers
            await until(lambda: not (not peer.connection.buffered))
            for _ in range(2000):
                await asyncio.sleep(0)
                assert peer.connection.buffered < 600_000
            go.set()
            assert parse_answers(await sending)[0].body == b"%d" % size

    run(main())


def test_pipelined_requests_are_held_one_read_deep_while_a_handler_waits() -> None:
    """64 KiB and a read of them were taken from each of any number of connections."""

    async def main() -> None:
        go = asyncio.Event()

        async def waiting(exchange: Exchange) -> None:
            await go.wait()
            await exchange.respond(Response(200, b"{}"))

        async with serving(waiting) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET)
            await until(lambda: server.connections == 1 and server.idle_connections == 0)
            (peer,) = server._peers
            writer.write(GET)
            await until(lambda: peer.connection.buffered > 0)
            held = peer.connection.buffered
            writer.write(GET * 100)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert peer.connection.buffered == held
            go.set()
            for _ in range(102):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                await reader.readexactly(2)
            writer.close()

    run(main())


def test_a_client_that_dies_in_its_upload_is_seen_at_once() -> None:
    seen: list[str] = []
    over = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        try:
            while await exchange.read():
                pass
        except ClientGone:
            seen.append("gone")
            over.set()
            raise

    async def main() -> None:
        async with serving(handler) as (server, port):
            head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345"
            for end in (lambda w: w.close(), reset, lambda w: w.write_eof()):
                over.clear()
                reader, writer = await connect(port)
                writer.write(head)
                await writer.drain()
                end(writer)
                await over.wait()
                writer.close()
            assert seen == ["gone"] * 3
            await until(lambda: not (server.connections))

    run(main())


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def test_a_waiting_handler_learns_that_its_client_has_gone() -> None:
    done = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await asyncio.wait((exchange.gone,))
        done.set()
        await exchange.respond(Response(200))

    async def main() -> None:
        async with serving(wait) as (_, port):
            _, writer = await connect(port)
            writer.write(GET)
            await writer.drain()
            reset(writer)
            await done.wait()

    run(main())


def test_a_half_closed_client_still_gets_its_answers() -> None:
    async def later(exchange: Exchange) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await echo(exchange)

    async def main() -> None:
        async with serving(later) as (_, port):
            answers = parse_answers(await talk(port, GET * 3))
            assert [answer.status for answer in answers] == [200] * 3

    run(main())


def test_one_address_cannot_take_every_connection() -> None:
    async def main() -> None:
        async with serving(max_connections_per_address=3) as (server, port):
            held = [await connect(port) for _ in range(3)]
            await until(lambda: not (server.connections < 3))
            assert b" 503 " in await talk(port, b"")
            held[0][1].close()
            await until(lambda: not (server.connections > 2))
            assert parse_answers(await talk(port, GET))[0].status == 200
            for _, writer in held:
                writer.close()

    run(main())


def test_at_the_global_cap_the_longest_idle_connection_makes_room() -> None:
    async def main() -> None:
        async with serving(kwargs={"evict_after_s": 0.0}, max_connections=3) as (server, port):
            held = [await connect(port) for _ in range(3)]
            await until(lambda: not (server.connections < 3))
            assert parse_answers(await talk(port, GET))[0].status == 200
            assert await until_closed(held[0][0]) == b""
            for _, writer in held:
                writer.close()

    run(main())


def test_a_connection_whose_request_is_not_read_yet_is_not_idle() -> None:
    """A server that was behind with reading reset the clients it had kept waiting."""

    async def main() -> None:
        async with serving(kwargs={"evict_after_s": 0.0}, max_connections=3) as (server, port):
            held = [await connect(port) for _ in range(3)]
            await until(lambda: not (server.connections < 3))
            # All before the loop turns: the request is there, and so is one client too many.
            held[0][1].write(GET)
            (listener,) = server._listeners
            with socket.create_connection(("127.0.0.1", port)):
                server._accept(listener)
                answer = await held[0][0].readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert await until_closed(held[1][0]) == b""
            for _, writer in held:
                writer.close()

    run(main())


def test_a_client_at_work_is_not_reset_for_a_new_one() -> None:
    """Its next request may be on its way: the new one is told to come again."""

    async def main() -> None:
        async with serving(kwargs={"evict_after_s": 3600.0}, max_connections=1) as (_, port):
            reader, writer = await connect(port)
            for _ in range(3):
                writer.write(GET)
                await reader.readuntil(b"\r\n\r\n")
                assert b" 503 " in await talk(port, b"")
            writer.close()

    run(main())


def test_draining_does_not_reset_a_request_that_has_arrived() -> None:
    async def main() -> None:
        async with serving() as (server, port):
            reader, writer = await connect(port)
            await until(lambda: server.connections == 1)
            writer.write(GET)
            await server.drain(10)
            answer = parse_answers(await reader.read(-1))[0]
            assert answer.status == 200
            writer.close()

    run(main())


def test_whoever_is_turned_away_can_read_why() -> None:
    """With his request unread, closing would reset the connection."""

    async def main() -> None:
        async with serving(max_connections_per_address=1) as (server, port):
            reader, writer = await connect(port)
            await until(lambda: server.connections == 1)
            (listener,) = server._listeners
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n")
                server._accept(listener)
                assert b" 503 " in client.recv(4096)
                assert client.recv(4096) == b"", "an orderly end, no reset"
            writer.close()

    run(main())


def test_without_descriptors_accepting_backs_off_and_goes_on() -> None:
    async def main() -> None:
        async with serving() as (server, port):
            (listener,) = server._listeners

            class Exhausted:
                """A listener whose process has no descriptors left, once."""

                calls = 0

                def accept(self) -> None:
                    self.calls += 1
                    raise OSError(24, "too many open files")

            exhausted = Exhausted()
            server.loop.remove_reader(listener)
            removed = []
            server._back_off = lambda which: removed.append(which)  # type: ignore[method-assign]
            server._accept(exhausted)  # type: ignore[arg-type]
            assert removed == [exhausted]
            assert exhausted.calls == 1
            server._accept_again(listener)
            assert parse_answers(await talk(port, GET))[0].status == 200

    run(main())


def test_draining_ends_idle_connections_and_finishes_the_others() -> None:
    go = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await go.wait()
        await exchange.respond(Response(200, b"{}"))

    async def main() -> None:
        async with serving(wait) as (server, port):
            idle, idle_writer = await connect(port)
            busy, busy_writer = await connect(port)
            busy_writer.write(GET)
            await until(lambda: not (server.connections < 2 or len(server._idle) > 1))
            draining = asyncio.create_task(server.drain(10))
            assert await until_closed(idle) == b""
            go.set()
            (answer,) = parse_answers(await until_closed(busy))
            busy_writer.close()
            idle_writer.close()
            await draining
            assert answer.headers["connection"] == "close"
            assert not server.connections
            with pytest.raises(ConnectionRefusedError):
                await connect(port)

    run(main())


def test_what_outlives_the_grace_is_cut_off() -> None:
    async def forever(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with serving(forever) as (server, port):
            reader, writer = await connect(port)
            writer.write(GET)
            await until(lambda: not (not server.connections or server._idle))
            await server.drain(SHORT)
            assert await until_closed(reader) == b""
            writer.close()

    run(main())


def test_errors_are_rendered_and_nothing_of_them_leaks(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(exchange: Exchange) -> None:
        match exchange.request.path:
            case "/limit":
                raise RequestError(
                    429, "slow_down", "too fast", details={"used": 3}, retry_after_s=1.2
                )
            case "/bug":
                raise KeyError("the client's secret")
            case "/silent":
                return
            case "/header":
                await exchange.respond(Response(200, headers=(("X", "a\r\nSet-Cookie: b"),)))
            case "/type":
                await exchange.respond(Response(200, b"x", "text/plain\r\nX: y"))
            case "/late":
                await exchange.start(200, (), 10)
                await exchange.write(b"12345")
                raise RequestError(400, "too_late", "never seen")

    async def main() -> None:
        async with serving(handler) as (_, port):
            for path, status in (
                ("limit", 429),
                ("bug", 500),
                ("silent", 500),
                ("header", 500),
                ("type", 500),
            ):
                raw = await talk(
                    port,
                    GET.replace(b"/ ", b"/%b " % path.encode()) + GET.replace(b"/ ", b"/limit "),
                )
                first, second = parse_answers(raw)
                assert (first.status, second.status) == (status, 429), path
                assert b"secret" not in raw
                assert "set-cookie" not in first.headers
            assert second.body == (
                b'{"error":"too fast","code":"slow_down","details":{"used":3},"retry_after":1.2}'
            )
            assert second.headers["retry-after"] == "2"
            # The client must be able to tell that its answer was cut.
            raw = await talk(port, GET.replace(b"/ ", b"/late ") + GET)
            assert raw.endswith(b"12345")

    run(main())
    assert "KeyError in" in caplog.text
    assert "secret" not in caplog.text
