"""Every case of the bank against a real server, many at once and one after another.

The default run takes each case once: its layer runs four at a time beside an honest
neighbour, heavy cases alone; the host is compared after each layer. With
``SANDRUN_HOSTILE=all`` everything runs a second time, one case at a time, with the
host compared after *each*. A case that the machine cannot run is skipped with its
reason; a randomised one names its seed in its complaint.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from sandrun.selftest.bank import CASES
from sandrun.selftest.case import LAYERS, layer
from sandrun.selftest.run import run_all, run_one

ALL = os.environ.get("SANDRUN_HOSTILE") == "all"
WORKERS = 4
LETTERS = [letter for letter in LAYERS if any(layer(case) == letter for case in CASES)]


@pytest.fixture(scope="session")
def ran(bench, neighbour_of):
    """letter → (outcomes by id, what changed on the host, the neighbour); run when asked for."""
    found = {}

    def run(letter):
        if letter not in found:
            cases = [case for case in CASES if layer(case) == letter]
            with neighbour_of(bench) as neighbour:
                outcomes = run_all(cases, bench.target, WORKERS)
            by_id = {outcome.case.id: outcome for outcome in outcomes}
            found[letter] = by_id, bench.changes(), neighbour
        return found[letter]

    return run


@pytest.mark.timeout(300)  # the first case of a layer runs the whole layer
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_case_holds(ran, case):
    outcomes, _, _ = ran(layer(case))
    outcome = outcomes[case.id]
    if outcome.state == "unable":
        pytest.skip(outcome.detail)
    assert outcome.state == "held", f"{case.title}: {outcome.detail}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("letter", LETTERS)
def test_the_host_is_as_it_was(ran, letter):
    """Processes, mounts, groups, descriptors, namespaces, settings, canaries, memory."""
    _, changes, _ = ran(letter)
    assert not changes, f"after {LAYERS[letter]}: {changes}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("letter", LETTERS)
def test_an_honest_neighbour_does_not_notice(ran, letter):
    _, _, neighbour = ran(letter)
    assert not neighbour.complaints
    assert neighbour.jobs


@pytest.mark.skipif(not ALL, reason="SANDRUN_HOSTILE=all runs each case alone as well")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_case_holds_alone_and_leaves_nothing(bench, case):
    outcome = run_one(case, bench.target)
    if outcome.state == "unable":
        pytest.skip(outcome.detail)
    assert outcome.state == "held", f"{case.title}: {outcome.detail}"
    assert not bench.changes()


def test_ids_are_unique_and_every_layer_has_cases():
    counts = Counter(case.id for case in CASES)
    assert not [name for name, count in counts.items() if count > 1]
    assert {case.id[0] for case in CASES} == set("ABCDEFGHIJKLMNS")
    assert len(CASES) > 300
