"""A job cannot tell a warm start from ``python3 main.py``, except by its speed.

Each script of the corpus runs bare and then warm; standard output, standard error,
exit status and the files it leaves must be the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import harness
import pytest

PYTHON = os.environ.get("SANDRUN_TEST_PYTHON", "/usr/bin/python3")
SCRIPTS = sorted(path.name for path in harness.CORPUS.glob("*.py"))


@pytest.fixture(scope="module")
def bench() -> Iterator[harness.Bench]:
    with harness.bench(PYTHON) as bench:
        yield bench


@pytest.fixture(scope="module")
def template(bench: harness.Bench) -> Iterator[harness.Template]:
    with harness.subreaper():
        template = harness.Template(bench)
        yield template
        template.close()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["main.py", "job.py"])
def test_a_script_at_the_door_does_what_it_does_bare(
    bench: harness.Bench, script: str, name: str
) -> None:
    case = harness.load(harness.CORPUS / script, name)
    if case.only and name != case.only:
        pytest.skip(f"a difference that the docstring of warm_python admits to: {script}")
    assert bench.door(case) == bench.bare(case)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_forked_script_does_what_it_does_bare(
    bench: harness.Bench, template: harness.Template, script: str
) -> None:
    case = harness.load(harness.CORPUS / script)
    assert bench.fork(case, template) == bench.bare(case)
