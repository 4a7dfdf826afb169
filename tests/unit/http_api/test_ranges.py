"""Ranges without amplification, and headers that a file name cannot break out of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun.http.ranges import (
    Span,
    attachment,
    if_range_holds,
    none_match,
    parse_range,
)


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        (None, None),
        ("bytes=0-4", [(0, 5)]),
        ("bytes=5-", [(5, 5)]),
        ("bytes=-3", [(7, 3)]),
        ("bytes=-30", [(0, 10)]),
        ("bytes=8-100", [(8, 2)]),
        ("bytes=0-0,9-9", [(0, 1), (9, 1)]),
        ("bytes=9-9, 0-0", [(9, 1), (0, 1)]),
        ("bytes=0-5,3-8", [(0, 9)]),
        ("bytes=0-0,0-0,0-0", [(0, 1)]),
        ("bytes=10-", []),
        ("bytes=-0", []),
        ("bytes=18446744073709551616-", None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-٣", None),
        ("items=0-4", None),
        ("bytes 0-4", None),
        ("bytes=" + ",".join(["0-0"] * 17), None),
    ],
)
def test_parse_range(header: str | None, spans: list[tuple[int, int]] | None) -> None:
    found = parse_range(header, 10)
    assert found == (None if spans is None else [Span(*span) for span in spans])


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=16),
    st.integers(1, 40),
)
def test_a_request_never_costs_more_than_the_file(pieces: list[tuple[int, int]], size: int) -> None:
    header = "bytes=" + ",".join(f"{min(p)}-{max(p)}" for p in pieces)
    spans = parse_range(header, size)
    assert spans is not None
    assert sum(span.size for span in spans) <= size
    wanted = {n for p in pieces for n in range(min(p), max(p) + 1) if n < size}
    assert wanted == {n for s in spans for n in range(s.offset, s.offset + s.size)}


def test_conditions() -> None:
    assert if_range_holds(None, '"a"')
    assert if_range_holds('"a"', '"a"')
    assert not if_range_holds('W/"a"', '"a"')
    assert not if_range_holds("Tue, 01 Jan 2030 00:00:00 GMT", '"a"')
    assert none_match('W/"a"', '"a"')
    assert none_match('"b", "a"', '"a"')
    assert none_match("*", '"a"')
    assert not none_match(None, '"a"')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("result.txt", 'attachment; filename="result.txt"'),
        ('a";x=".txt', "attachment; filename=\"a__x=_.txt\"; filename*=UTF-8''a%22%3Bx%3D%22.txt"),
        ("é.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A9.txt"),
    ],
)
def test_file_names_in_headers(name: str, value: str) -> None:
    assert attachment(name) == value.replace("a__x=_", "a__x__")


@given(st.text(max_size=300))
def test_no_name_breaks_out_of_the_header(name: str) -> None:
    value = attachment(name)
    assert value.isascii()
    assert value.isprintable()
    assert value.count('"') == 2
