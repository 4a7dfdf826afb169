"""Targets, proxies, paths, answers and frame counting: the small pure parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun.errors import ProtocolError, RequestError
from sandrun.http import proxy
from sandrun.http.answer import accepts_gzip, error_response, fields_of
from sandrun.http.exchange import Headers
from sandrun.http.target import split_target
from sandrun.http.websocket import FrameGate, Refused, WebSocketLimits
from sandrun.paths import safe_relative_path


def test_the_path_is_decoded_once_and_the_raw_one_kept():
    target = split_target(b"/a%20%252e%ff?x=1&x=%32&y=+z&flag")
    assert target.path == "/a %2e\udcff"
    assert target.raw_path == "/a%20%252e%ff"
    assert target.query == {"x": "2", "y": " z", "flag": ""}


@pytest.mark.parametrize(
    "path",
    [b"/%00", b"/a%2fb", b"/a%2Fb", b"/..", b"/a/../b", b"/%2e%2e/b", b"/a/%2E", b"/./a", b"/a/.."],
)
def test_paths_that_play_tricks_are_refused(path):
    with pytest.raises(RequestError, match="path"):
        split_target(path)


def test_names_that_only_look_like_tricks_are_not():
    for path in (b"/...", b"/.hidden", b"/a..b", b"/..a", b"/a%5cb", b"/a%0d%0ab", b"//a"):
        split_target(path)


def test_a_query_has_few_fields_and_is_utf8():
    for query in (b"/?" + b"a&" * 33, b"/?a=%ff"):
        with pytest.raises(RequestError):
            split_target(query)


def test_header_names_are_case_insensitive_and_repeated_fields_join():
    headers = Headers([(b"accept", b"a"), (b"x", b"1"), (b"accept", b"b")])
    assert headers.get("ACCEPT") == "a, b"
    assert headers.get_all("accept") == ["a", "b"]
    assert headers.get("y", "none") == "none"
    assert "X" in headers
    assert "y" not in headers


@given(st.text())
def test_a_safe_path_stays_below_where_it_is_joined(text):
    try:
        path = safe_relative_path(text)
    except ValueError:
        return
    names = path.split("/")
    assert path
    assert not {"", ".", ".."} & set(names)
    assert not path.startswith("/")
    assert "\0" not in path
    assert safe_relative_path(path) == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"), ("/a", "absolute"), ("..", "'..'"), ("a/..", "'..'"), ("a\\b", "backslash"),
        ("a\0", "control"), ("a\x9f", "control"), ("a\x7f", "control"), ("./.", "no file"),
        ("\udcff", "UTF-8"), ("a" * 256, "segment"), ("é" * 128, "segment"), ("a/" * 600, "long"),
    ],
)  # fmt: skip
def test_unsafe_paths_are_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        safe_relative_path(text)


def test_addresses_of_hops():
    for text, expected in (
        ("1.2.3.4", "1.2.3.4"), ("1.2.3.4:80", "1.2.3.4"), ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]:80", "2001:db8::1"), ("::ffff:1.2.3.4", "1.2.3.4"), ("fe80::1%eth0", "fe80::1"),
        ("unknown", None), ("_hidden", None), ("", None), ("1.2.3.4.5", None), ("[::1", "::1"),
    ):  # fmt: skip
        assert proxy.parse_hop(text) == expected


@given(st.text(max_size=60))
def test_no_forwarded_header_breaks_the_parser(text):
    trusted = proxy.TrustedProxies(["0.0.0.0/0", "::/0"])
    for name in (b"forwarded", b"x-forwarded-for"):
        headers = Headers([(name, text.encode("latin-1", "replace"))])
        try:
            trusted.client("127.0.0.1", headers, secure=False)
        except RequestError as error:
            assert (error.status, name) == (400, b"forwarded")


@given(st.binary(max_size=80))
def test_no_proxy_header_breaks_the_parser(data):
    try:
        header = proxy.parse_proxy_header(proxy.PROXY_SIGNATURE + data)
    except ProtocolError:
        return
    assert header is None or header.size <= proxy.MAX_PROXY_BYTES


def test_what_is_left_of_an_untrusted_hop_is_not_believed():
    trusted = proxy.TrustedProxies(["10.0.0.0/8"])
    headers = Headers([(b"x-forwarded-for", b"6.6.6.6, 10.0.0.3, 1.2.3.4, 10.0.0.2")])
    assert trusted.client("10.0.0.1", headers, secure=False).address == "1.2.3.4"
    assert trusted.client("9.9.9.9", headers, secure=False).address == "9.9.9.9"


def test_headers_that_would_break_the_head_are_our_bug_not_the_clients_response():
    for name, value in (
        ("X", "a\r\nb"),
        ("X", "a\0"),
        ("X y", "a"),
        ("X", "☃"),
        ("Content-Length", "1"),
    ):
        with pytest.raises(ValueError):
            fields_of(((name, value),))


def test_retry_after_is_rounded_up_to_whole_seconds():
    response = error_response(RequestError(503, "busy", "later", retry_after_s=0.2))
    assert ("Retry-After", "1") in response.headers


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False), ("", False), ("gzip", True), ("GZIP", True), ("br, gzip", True),
        ("gzip;q=0", False), ("gzip; q=0.000", False), ("gzip;q=0.001", True), ("*", True),
        ("identity", False), ("*;q=0", False),
    ],
)  # fmt: skip
def test_accept_encoding(header, expected):
    assert accepts_gzip(header) is expected


def test_the_frame_rate_is_a_bucket():
    gate = FrameGate(WebSocketLimits(frames_per_s=10, frame_burst=5), now=0)
    ping = b"\x89\x80\0\0\0\0"
    gate.check(ping * 5, now=0)
    with pytest.raises(Refused, match="too many"):
        gate.check(ping, now=0)
    gate = FrameGate(WebSocketLimits(frames_per_s=10, frame_burst=5), now=0)
    for tenth in range(100):
        gate.check(ping, now=tenth / 10)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_the_gate_counts_the_same_however_frames_are_cut(data, step):
    def outcome(size):
        gate = FrameGate(WebSocketLimits(message_bytes=200, frame_burst=20), now=0)
        try:
            for at in range(0, len(data), size):
                gate.check(data[at : at + size], now=0)
        except Refused as error:
            return error.code, str(error)
        return gate._payload_left, bytes(gate._header)

    assert outcome(step) == outcome(1000)
