"""The sans-IO connection: however the bytes are cut, the same events come out."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandrun.errors import RequestError
from sandrun.http.connection import Connection, State
from sandrun.http.framing import MAX_HEAD_BYTES, ChunkedBody

GET = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n"


def serve(data, cuts):
    """Feed ``data`` cut at ``cuts``; answer each request with its own body."""
    connection = Connection(10**6)
    log, sent, body = [], b"", b""
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        connection.receive(data[at:cut])
        at = cut
        while True:
            try:
                if connection.state is State.HEAD:
                    head = connection.next_request()
                    if head is None:
                        break
                    log.append((head.method, head.target, head.length))
                    body = b""
                while piece := connection.next_body():
                    body += piece
            except RequestError as error:
                return [*log, error.status], sent
            if connection.state is not State.DONE:
                break
            log.append(body)
            fields = [(b"content-length", b"%d" % len(body))]
            sent += b"".join(connection.send_whole(200, fields, body))
            if not connection.next_cycle():
                return [*log, "close"], sent
    return log, sent


STREAM = (
    GET
    + b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    + b"POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nX: trailer\r\n\r\n"
    + b"HEAD /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    + b"\r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n"
    + b"GET /5 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n"
    + GET
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cutting_the_stream_changes_nothing(cuts):
    expected = [
        ("GET", b"/a?b=c", 0), b"",
        ("POST", b"/1", 5), b"hello",
        ("POST", b"/2", None), b"hello0123456789abcdef",
        ("HEAD", b"/3", 0), b"",
        ("GET", b"/4", 0), b"",
        400,
    ]  # fmt: skip
    assert serve(STREAM, cuts)[0] == expected


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_no_bytes_make_anything_but_a_request_error(data, cuts):
    for prefix in (
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\n",
    ):
        serve(prefix + data, [min(cut, len(prefix + data)) for cut in cuts])


def test_a_head_is_too_large_also_when_it_comes_whole():
    """h11 applies its limit to incomplete heads only."""
    field = b"X: " + b"a" * (MAX_HEAD_BYTES - len(GET) - 5)
    ok = GET[:-2] + field + b"\r\n\r\n"
    assert len(ok) == MAX_HEAD_BYTES
    assert serve(ok, [])[0][0] == ("GET", b"/a?b=c", 0)
    assert serve(ok.replace(b"X: a", b"X: aa"), [])[0] == [431]


def test_tiny_chunks_come_out_as_one_piece_and_are_bounded():
    body = ChunkedBody()
    data = bytearray(b"1\r\na\r\n" * 4000)
    assert body.take(data) == b"a" * 4000
    with pytest.raises(RequestError, match="64 bytes"):
        data += b"1\r\na\r\n" * 4000
        body.take(data)


def test_many_large_chunks_are_fine():
    body, data = ChunkedBody(), bytearray()
    for _ in range(100):
        data += (b"%x\r\n" % 128 + b"a" * 128 + b"\r\n") * 200
        assert len(body.take(data)) == 128 * 200


def test_a_client_that_will_not_keep_alive_gets_no_next_cycle():
    for line in (b"Connection: foo, Close\r\n", b"Connection: a\r\nConnection: close\r\n"):
        connection = Connection(100)
        connection.receive(GET.replace(b"Host", line + b"Host") + GET)
        assert connection.next_request() is not None
        assert not connection.keeps_alive
        connection.send_whole(200, [(b"content-length", b"0")], b"")
        assert not connection.next_cycle()


def test_what_is_written_whole_is_what_h11_reads():
    _, sent = serve(STREAM, [])
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(sent)
    response = client.next_event()
    assert response.status_code == 200
    assert response.headers == [(b"content-length", b"0")]
