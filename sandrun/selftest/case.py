"""The two kinds of case, and how one ends. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from sandrun.selftest.target import Target

Answer = dict[str, Any]  # of POST /run
State = Literal["held", "broken", "unable"]

LAYERS: Final = {
    "A": "namespaces and file systems",
    "B": "/proc, /sys and devices",
    "C": "descriptors and environment",
    "D": "tracing other processes",
    "E": "signals",
    "F": "exhaustion",
    "G": "network",
    "H": "between jobs",
    "I": "uploads",
    "J": "manifest",
    "K": "outputs and downloads",
    "L": "HTTP",
    "M": "WebSocket",
    "N": "ids, browsers, fairness",
    "S": "system calls",
    "X": "the host afterwards",
}


class Unable(Exception):
    """The case cannot be run here. The text says why."""


class Broken(Exception):
    """The server did not do what it must."""


def expect(held: object, complaint: str) -> None:
    """Raises :class:`Broken` with ``complaint`` if ``held`` is not true."""
    if not held:
        raise Broken(complaint)


def each(*runs: Callable[[Target], None]) -> Callable[[Target], None]:
    """One call that makes all of these."""

    def run(target: Target) -> None:
        for one in runs:
            one(target)

    return run


def _no_complaint(_: Answer) -> str:
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A program, submitted as any client would.

    ``reason``: exit reasons of which it must end with one. ``stdout``: exactly
    what it must have printed; None if that does not matter. Python programs find
    ``attack.py`` beside themselves and print ``held`` when every attempt was
    refused. ``also`` looks at the whole answer and returns a complaint or "".
    ``needs``: interpreters or programs that the sandbox must have. ``heavy``
    cases keep both CPUs or much memory busy for a while.
    """

    id: str
    title: str
    code: str
    reason: tuple[str, ...] = ("exited",)
    stdout: str | None = "held\n"
    file: str = "main.py"
    files: Mapping[str, str] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    also: Callable[[Answer], str] = _no_complaint
    heavy: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """Something that a client does. ``run`` raises Broken or Unable."""

    id: str
    title: str
    run: Callable[[Target], None]
    needs: tuple[str, ...] = ()
    heavy: bool = False


Case = Job | Call


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a case ended. ``detail``: the complaint or the reason."""

    case: Case
    state: State
    detail: str = ""
    seconds: float = 0.0


def layer(case: Case) -> str:
    """Its layer's letter."""
    return case.id[0]


def judge(case: Job, answer: Answer) -> str:
    """What is wrong with this answer of ``POST /run``, or ""."""
    reason = answer.get("exit_reason")
    if reason not in case.reason:
        evidence = "; ".join(answer.get("evidence") or ())
        return f"ended as {reason!r} ({evidence}), not {' or '.join(case.reason)}; {_tail(answer)}"
    if case.stdout is not None and answer.get("stdout") != case.stdout:
        return f"printed {answer.get('stdout', '')[:600]!r}, not {case.stdout!r}; {_tail(answer)}"
    return case.also(answer)


def _tail(answer: Answer) -> str:
    return f"stdout {answer.get('stdout', '')[-300:]!r}, stderr {answer.get('stderr', '')[-500:]!r}"
