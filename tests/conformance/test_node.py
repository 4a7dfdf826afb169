"""A job cannot tell a node that waited from ``node main.js``, except by its speed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

NODE = shutil.which("node") or ""
SCRIPTS = sorted(path.name for path in Path(__file__).with_name("corpus_node").iterdir())

pytestmark = pytest.mark.skipif(not NODE, reason="there is no node on this machine")


@pytest.fixture(scope="module")
def bench() -> Iterator[harness.Bench]:
    with harness.bench(NODE) as bench:
        yield bench


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_at_the_door_does_what_it_does_bare(bench: harness.Bench, script: str) -> None:
    path = harness.CORPUS.with_name("corpus_node") / script
    case = harness.load(path, "main" + path.suffix)
    assert bench.node_door(case) == bench.bare(case)
