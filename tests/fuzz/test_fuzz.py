"""A bounded run of every fuzz target: the longer one is ``python tests/fuzz/run.py``."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS, compiled


@st.composite
def mutated(draw, seeds):
    """A seed with a few bytes set, cut, doubled or put in."""
    out = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 5))):
        if not out:
            break
        at = draw(st.integers(0, len(out) - 1))
        change = draw(st.sampled_from(["set", "cut", "double", "insert"]))
        if change == "set":
            out[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del out[at : at + draw(st.integers(1, 600))]
        elif change == "double":
            out[at:at] = out[at : at + 512]
        else:
            out[at:at] = draw(st.binary(max_size=20))
    return bytes(out)


@pytest.fixture(scope="module", autouse=True)
def end_the_driver():
    yield
    compiled.close()


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_break_it(name):
    if name == "compiled" and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    target = TARGETS[name]

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(mutated(target.seeds), st.binary(max_size=300)))
    def try_it(data):
        target.run(data)

    for seed in target.seeds:
        target.run(seed)
    try_it()
