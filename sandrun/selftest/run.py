"""Runs cases, a few at a time. I/O: HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Final

from sandrun.selftest.case import Broken, Call, Case, Job, Outcome, State, Unable, judge
from sandrun.selftest.target import ATTACK, Target

_RUN_TIMEOUT: Final = 20  # seconds of wall time that a case's program gets, unless it says so


def run_one(case: Case, target: Target) -> Outcome:
    """One case, start to end. Never raises for what the server does."""
    start = time.monotonic()
    state: State = "held"
    detail = ""
    try:
        missing = sorted(set(case.needs) - target.programs()) if case.needs else []
        if missing:
            raise Unable(f"the sandbox has no {', '.join(missing)}")
        if isinstance(case, Job):
            detail = _job(case, target)
            state = "broken" if detail else "held"
        else:
            _call(case, target)
    except Unable as error:
        state, detail = "unable", str(error)
    except Broken as error:
        state, detail = "broken", str(error)
    except OSError as error:
        state, detail = "broken", f"no connection: {error}"
    except Exception as error:  # noqa: BLE001 - an answer of an unforeseen shape
        state, detail = "broken", f"not understood: {error!r}"
    return Outcome(case=case, state=state, detail=detail, seconds=time.monotonic() - start)


def _job(case: Job, target: Target) -> str:
    files = {case.file: case.code, **case.files}
    if case.file.endswith(".py"):
        files.setdefault("attack.py", ATTACK)
    manifest = {"timeout": _RUN_TIMEOUT, **case.manifest}
    if len(case.files) or case.file not in ("main.py", "index.js", "main.sh", "run.sh"):
        manifest.setdefault("entrypoint", case.file)
    return judge(case, target.run(files, manifest))


def _call(case: Call, target: Target) -> None:
    case.run(target)


def run_all(
    cases: Iterable[Case],
    target: Target,
    workers: int,
    on_end: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Every case, ``workers`` at a time; heavy ones alone, at the end.

    Outcomes come in the order of ``cases``; ``on_end`` hears of each as it ends.
    """
    cases = list(cases)
    light = [case for case in cases if not case.heavy]
    heavy = [case for case in cases if case.heavy]
    found: dict[str, Outcome] = {}
    lock = threading.Lock()
    for outcome in _pooled(light, target, workers):
        with lock:
            found[outcome.case.id] = outcome
        on_end(outcome)
    for case in heavy:
        outcome = run_one(case, target)
        found[case.id] = outcome
        on_end(outcome)
    return [found[case.id] for case in cases]


def _pooled(cases: list[Case], target: Target, workers: int) -> Iterator[Outcome]:
    with ThreadPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(run_one, case, target) for case in cases]):
            yield future.result()
