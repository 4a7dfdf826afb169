"""Requests that are not quite requests, over real sockets, cut in every way.

Each refused case is followed by a whole, innocent request in the same bytes: if
that one is answered too, a proxy before us and we disagree about where the first
one ended, which is request smuggling.
"""

from __future__ import annotations

import pytest
from edge import parse_answers, run, serving, talk

H = b"Host: a\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def get(line: bytes = b"GET / HTTP/1.1", *fields: bytes) -> bytes:
    """A head of ``line``, Host, and ``fields``."""
    return b"".join((line, b"\r\n", H, *(field + b"\r\n" for field in fields), b"\r\n"))


def post(*fields: bytes, body: bytes = b"") -> bytes:
    """A POST head and body."""
    return get(b"POST / HTTP/1.1", *fields) + body


REFUSED = {
    # L1
    "cl_and_te": (
        400,
        post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    ),
    "te_and_cl": (
        400,
        post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    ),
    # L2
    "te_xchunked": (400, post(b"Transfer-Encoding: xchunked")),
    "te_list": (400, post(b"Transfer-Encoding: chunked, identity")),
    "te_identity": (400, post(b"Transfer-Encoding: identity")),
    "te_gzip_chunked": (400, post(b"Transfer-Encoding: gzip, chunked")),
    "te_trailing_comma": (400, post(b"Transfer-Encoding: chunked,")),
    "te_empty": (400, post(b"Transfer-Encoding:")),
    "te_twice": (400, post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    "te_vertical_tab": (400, post(b"Transfer-Encoding: \x0bchunked")),
    "te_space_before_colon": (400, post(b"Transfer-Encoding : chunked")),
    "te_in_1_0": (400, get(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "te_folded": (400, post(b"Transfer-Encoding:\r\n chunked")),
    # L3
    "cl_twice": (400, post(b"Content-Length: 5", b"Content-Length: 6")),
    "cl_twice_same": (400, post(b"Content-Length: 5", b"Content-Length: 5")),
    "cl_list": (400, post(b"Content-Length: 5,5")),
    "cl_list_spaced": (400, post(b"Content-Length: 5, 5")),
    "cl_plus": (400, post(b"Content-Length: +5")),
    "cl_minus": (400, post(b"Content-Length: -1")),
    "cl_hex": (400, post(b"Content-Length: 0x5")),
    "cl_spaced": (400, post(b"Content-Length: 5 5")),
    "cl_leading_zero": (400, post(b"Content-Length: 05")),
    "cl_zeros": (400, post(b"Content-Length: 00")),
    "cl_empty": (400, post(b"Content-Length:")),
    "cl_2_64": (400, post(b"Content-Length: 18446744073709551616")),
    "cl_2_63": (400, post(b"Content-Length: 9223372036854775808")),
    "cl_underscore": (400, post(b"Content-Length: 5_0")),
    "cl_unicode_digit": (400, post("Content-Length: \u0665".encode())),
    "cl_float": (400, post(b"Content-Length: 5.0")),
    "cl_too_large": (413, post(b"Content-Length: 1048577")),
    # L4
    "fold_space": (400, get(b"GET / HTTP/1.1", b"X: a", b" b")),
    "fold_tab": (400, get(b"GET / HTTP/1.1", b"X: a", b"\tb")),
    "fold_first": (400, b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n"),
    # bare line feeds, carriage returns, controls
    "bare_lf": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare_lf_in_field": (400, get(b"GET / HTTP/1.1", b"X: a\nTransfer-Encoding: chunked")),
    "bare_lf_at_end": (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    "bare_cr": (400, get(b"GET / HTTP/1.1", b"X: a\rb")),
    "bare_cr_in_line": (400, get(b"GET /\r HTTP/1.1")),
    "nul_in_value": (400, get(b"GET / HTTP/1.1", b"X: a\0b")),
    "nul_in_name": (400, get(b"GET / HTTP/1.1", b"X\0: b")),
    "control_in_value": (400, get(b"GET / HTTP/1.1", b"X: \x01")),
    "del_in_value": (400, get(b"GET / HTTP/1.1", b"X: \x7f")),
    "no_colon": (400, get(b"GET / HTTP/1.1", b"nonsense")),
    "empty_name": (400, get(b"GET / HTTP/1.1", b": a")),
    "space_in_name": (400, get(b"GET / HTTP/1.1", b"A B: c")),
    "utf8_name": (400, get(b"GET / HTTP/1.1", "\xe9: c".encode())),
    "alias_te": (400, post(b"Transfer_Encoding: chunked")),
    "alias_cl": (400, post(b"Content_Length: 5")),
    # L6
    "host_missing": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "host_twice": (400, get(b"GET / HTTP/1.1", b"Host: b")),
    "host_twice_same": (400, get(b"GET / HTTP/1.1", b"Host: a")),
    "host_empty": (400, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "host_user": (400, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "host_path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "host_list": (400, b"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n"),
    "host_space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "host_bad_port": (400, b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"),
    "host_big_port": (400, b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n"),
    "host_bad_v6": (400, b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    "host_twice_in_1_0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"),
    # L7
    "star_get": (400, get(b"GET * HTTP/1.1")),
    "connect": (501, get(b"CONNECT a:443 HTTP/1.1")),
    "absolute_form": (400, get(b"GET http://b/ HTTP/1.1")),
    "no_slash": (400, get(b"GET status HTTP/1.1")),
    "fragment": (400, get(b"GET /a#b HTTP/1.1")),
    "backslash": (400, get(b"GET /a\\b HTTP/1.1")),
    "space_in_target": (400, get(b"GET /a b HTTP/1.1")),
    "raw_utf8": (400, get("GET /é HTTP/1.1".encode())),
    "bad_escape": (400, get(b"GET /%zz HTTP/1.1")),
    "short_escape": (400, get(b"GET /%a HTTP/1.1")),
    "escaped_nul": (400, get(b"GET /%00 HTTP/1.1")),
    "escaped_slash": (400, get(b"GET /a%2Fb HTTP/1.1")),
    "dots": (400, get(b"GET /a/../b HTTP/1.1")),
    "escaped_dots": (400, get(b"GET /a/%2e%2E/b HTTP/1.1")),
    "dot": (400, get(b"GET /a/. HTTP/1.1")),
    "bad_query": (400, get(b"GET /?a=%ff HTTP/1.1")),
    "long_target": (414, get(b"GET /" + b"a" * 9000 + b" HTTP/1.1")),
    "very_long_target": (414, get(b"GET /" + b"a" * 100_000 + b" HTTP/1.1")),
    # methods and versions
    "unknown_method": (501, get(b"BREW / HTTP/1.1")),
    "lower_method": (400, get(b"get / HTTP/1.1")),
    "bad_method": (400, get(b"GE(T / HTTP/1.1")),
    "no_version": (400, b"GET /\r\n" + H + b"\r\n"),
    "http_0_9": (505, get(b"GET / HTTP/0.9")),
    "http_1_2": (505, get(b"GET / HTTP/1.2")),
    "http_2": (505, get(b"GET / HTTP/2.0")),
    "http_lower": (400, get(b"GET / http/1.1")),
    "http_long_version": (400, get(b"GET / HTTP/1.10")),
    "two_spaces": (400, get(b"GET  / HTTP/1.1")),
    "tab_in_line": (400, get(b"GET\t/ HTTP/1.1")),
    "trailing_space": (400, get(b"GET / HTTP/1.1 ")),
    "h2_preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "two_empty_lines_first": (400, b"\r\n\r\n" + get()),
    # L9
    "large_head": (431, get(b"GET / HTTP/1.1", b"X: " + b"a" * 17_000)),
    "huge_head": (431, get(b"GET / HTTP/1.1", b"X: " + b"a" * 100_000)),
    "many_fields": (431, get(b"GET / HTTP/1.1", *(b"X: a" for _ in range(101)))),
    "endless_field": (431, b"GET / HTTP/1.1\r\n" + b"a" * 20_000),
    # L10
    "chunk_bad_hex": (400, CHUNKED + b"g\r\n"),
    "chunk_extension": (400, CHUNKED + b"5;a=b\r\nhello\r\n0\r\n\r\n"),
    "chunk_bare_semicolon": (400, CHUNKED + b"5;\r\nhello\r\n0\r\n\r\n"),
    "chunk_space_after_size": (400, CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk_tab_before_size": (400, CHUNKED + b"\t5\r\nhello\r\n0\r\n\r\n"),
    "chunk_plus": (400, CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk_0x": (400, CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk_overflow": (400, CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "chunk_empty_size": (400, CHUNKED + b"\r\nhello\r\n0\r\n\r\n"),
    "chunk_bare_lf": (400, CHUNKED + b"5\nhello\n0\n\n"),
    "chunk_lf_after_data": (400, CHUNKED + b"5\r\nhello\n0\r\n\r\n"),
    "chunk_too_long": (400, CHUNKED + b"3\r\nhello\r\n0\r\n\r\n"),
    "chunk_long_extension": (400, CHUNKED + b"5;" + b"a" * 65_536),
    "chunk_cr_only": (400, CHUNKED + b"5\rhello"),
    "trailer_cl": (400, CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n"),
    "trailer_te": (400, CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "trailer_host": (400, CHUNKED + b"0\r\nHost: b\r\n\r\n"),
    "trailer_folded": (400, CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n"),
    "trailer_bare_lf": (400, CHUNKED + b"0\r\nX: a\n\r\n"),
    "trailers_large": (431, CHUNKED + b"0\r\n" + b"X: aaaaaaaa\r\n" * 500 + b"\r\n"),
    "chunks_over_limit": (413, CHUNKED + b"200000\r\n" + b"a" * 0x100001),
    "chunks_tiny": (400, CHUNKED + b"1\r\na\r\n" * 6000),
    # L16
    "expect_unknown": (417, get(b"POST / HTTP/1.1", b"Expect: 200-ok")),
    "expect_twice": (417, post(b"Expect: 100-continue", b"Expect: 100-continue")),
    "expect_too_large": (413, post(b"Expect: 100-continue", b"Content-Length: 1048577")),
    # L17
    "upgrade_1_0": (400, get(b"GET / HTTP/1.0", b"Upgrade: websocket")),
    "tls_on_clear_port": (400, bytes.fromhex("16030100c8010000c40303") + b"x" * 190),
    "random_bytes": (400, b"\x80\xff\x00" * 1000),
    "json_first": (400, b'{"a": 1}\r\n\r\n'),
}

ACCEPTED = {
    "plain": ([200], get()),
    "te_case": ([200], post(b"Transfer-Encoding: Chunked", body=b"5\r\nhello\r\n0\r\n\r\n")),
    "te_tab": ([200], post(b"Transfer-Encoding:\tchunked \t", body=b"0\r\n\r\n")),
    "chunk_upper_hex": ([200], CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n"),
    "chunk_leading_zeros": ([200], CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n"),
    "trailers": ([200], CHUNKED + b"5\r\nhello\r\n0\r\nX: a\r\nY: b\r\n\r\n"),
    "cl_0": ([200], post(b"Content-Length: 0")),
    "cl": ([200], post(b"Content-Length:5 ", body=b"hello")),
    "pipelined": ([200, 200, 200], get() + post(b"Content-Length: 2", body=b"hi") + get()),
    "pipelined_chunked": ([200, 200], CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + get()),
    "good_then_bad": ([200, 400], get() + b"GET / HTTP/1.1\r\n\r\n" + get()),
    "empty_line_first": ([200], b"\r\n" + get()),
    "line_break_after_body": ([200, 200], post(b"Content-Length: 2", body=b"hi\r\n") + get()),
    "http_1_0": ([200], b"GET / HTTP/1.0\r\n\r\n"),
    "http_1_0_closes": ([200], b"GET / HTTP/1.0\r\n\r\n" + get()),
    "close": ([200], get(b"GET / HTTP/1.1", b"Connection: close") + get()),
    "options_star": ([200], get(b"OPTIONS * HTTP/1.1")),
    "host_port": ([200], b"GET / HTTP/1.1\r\nHost: a.b-c:8000\r\n\r\n"),
    "host_v6": ([200], b"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n"),
    "latin1_value": ([200], get(b"GET / HTTP/1.1", b"X: \xe9")),
    "escaped": ([200], get(b"GET /%C3%A9%20%0D%0A?q=%C3%A9 HTTP/1.1")),
    "not_utf8": ([200], get(b"GET /%c0%ae%c0%ae/x HTTP/1.1")),
    "h2c_is_ignored": ([200], get(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: h2c")),
    "hundred_fields": ([200], get(b"GET / HTTP/1.1", *(b"X: a" for _ in range(99)))),
    "continue": ([100, 200], post(b"Expect: 100-continue", b"Content-Length: 2") + b"hi"),
    "nothing": ([], b""),
    "half_a_head": ([], b"GET / HTTP/1.1\r\nHost"),
    "half_a_body": ([], post(b"Content-Length: 5", body=b"hel")),
    "half_a_chunk": ([], CHUNKED + b"5\r\nhel"),
}

STEPS = {"whole": 0, "bytes": 1, "threes": 3}


def small_enough(data: bytes, step: int) -> bytes:
    """Nothing is learnt from 100,000 writes of one byte."""
    return data if not step or len(data) < 2000 else b""


@pytest.mark.parametrize("cut", STEPS)
def test_what_is_not_unambiguous_is_refused_and_ends_the_connection(cut: str) -> None:
    step = STEPS[cut]

    async def main() -> None:
        async with serving(max_upload_mb=1) as (_, port):
            for name, (status, data) in REFUSED.items():
                if small_enough(data, step):
                    answers = parse_answers(await talk(port, data + NEXT, step=step))
                    assert [answer.status for answer in answers] == [status], name
                    assert answers[0].headers["connection"] == "close", name
                    assert b'"code":' in answers[0].body, name

    run(main())


@pytest.mark.parametrize("cut", STEPS)
def test_what_is_unambiguous_is_answered_in_order(cut: str) -> None:
    step = STEPS[cut]

    async def main() -> None:
        async with serving(max_upload_mb=1) as (_, port):
            for name, (statuses, data) in ACCEPTED.items():
                answers = parse_answers(await talk(port, data, step=step))
                given = [answer.status for answer in answers]
                # A body that is already there needs no 100 Continue.
                if given != statuses:
                    given = [status for status in given if status != 100]
                    statuses = [status for status in statuses if status != 100]
                assert given == statuses, name

    run(main())


def test_a_refused_upload_is_refused_before_it_is_sent() -> None:
    async def main() -> None:
        head = post(b"Expect: 100-continue", b"Content-Length: 2000000")
        async with serving(max_upload_mb=1) as (_, port):
            answers = parse_answers(await talk(port, head, shut=False))
            assert [answer.status for answer in answers] == [413]

    run(main())


def test_a_client_in_the_middle_of_an_upload_still_reads_why_it_was_refused() -> None:
    async def main() -> None:
        data = post(b"Content-Length: 9000000") + b"x" * 9_000_000
        async with serving(max_upload_mb=1) as (_, port):
            answers = parse_answers(await talk(port, data))
            assert [answer.status for answer in answers] == [413]

    run(main())


def test_a_connection_is_closed_after_a_refusal_even_if_the_client_goes_on_listening() -> None:
    async def main() -> None:
        async with serving() as (server, port):
            assert b" 400 " in await talk(port, b"GET / HTTP/1.1\r\n\r\n", shut=False)

    run(main())
