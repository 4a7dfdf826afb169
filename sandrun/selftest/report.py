"""The report card: as text, JSON and HTML. Pure."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import Final

from sandrun.selftest.case import LAYERS, Outcome, State, layer

_MARKS: Final[dict[State, str]] = {"held": "✓", "broken": "✗", "unable": "?"}
_COLOURS: Final[dict[State, str]] = {"held": "32", "broken": "31;1", "unable": "33"}


def by_layer(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes under their layer's letter, layers in order."""
    found: dict[str, list[Outcome]] = {}
    for letter in LAYERS:
        members = [outcome for outcome in outcomes if layer(outcome.case) == letter]
        if members:
            found[letter] = members
    return found


def verdict(outcomes: Sequence[Outcome]) -> str:
    """One sentence."""
    count = Counter(outcome.state for outcome in outcomes)
    text = f"{count['held']} of {len(outcomes)} cases held"
    if count["broken"]:
        text += f", {count['broken']} BROKEN"
    if count["unable"]:
        text += f", {count['unable']} could not be run"
    return text


def as_text(outcomes: Sequence[Outcome], *, colour: bool = False, verbose: bool = False) -> str:
    """For a terminal. Details only of what did not hold, unless ``verbose``."""
    lines = []
    for letter, members in by_layer(outcomes).items():
        held = sum(outcome.state == "held" for outcome in members)
        lines.append(f"{letter}  {LAYERS[letter]:32} {held:3} of {len(members)} held")
        for outcome in members:
            if outcome.state == "held" and not verbose:
                continue
            mark = _MARKS[outcome.state]
            if colour:
                mark = f"\x1b[{_COLOURS[outcome.state]}m{mark}\x1b[0m"
            lines.append(f"   {mark} {outcome.case.id:16} {outcome.case.title}")
            if outcome.detail:
                lines.append(f"       {_plain(outcome.detail)}")
    lines += ["", verdict(outcomes)]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """What a hostile program printed must not steer our terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)[:1500]


def as_json(outcomes: Sequence[Outcome], target: str) -> str:
    """For programs."""
    count = Counter(outcome.state for outcome in outcomes)
    return json.dumps(
        {
            "target": target,
            "held": count["held"],
            "broken": count["broken"],
            "unable": count["unable"],
            "layers": [
                {
                    "layer": letter,
                    "name": LAYERS[letter],
                    "cases": [
                        {
                            "id": outcome.case.id,
                            "title": outcome.case.title,
                            "state": outcome.state,
                            "detail": outcome.detail,
                            "seconds": round(outcome.seconds, 3),
                        }
                        for outcome in members
                    ],
                }
                for letter, members in by_layer(outcomes).items()
            ],
        },
        indent=1,
    )


_STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-top: 1px solid #8884 }
td:first-child { font-family: ui-monospace, monospace; white-space: nowrap }
.held { color: #18794e } .broken { color: #c62828; font-weight: 600 } .unable { color: #8a6100 }
@media (prefers-color-scheme: dark) { .held { color: #57c998 } .broken { color: #ff8a80 } .unable { color: #e3b341 } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font-size: .85rem }
"""


def as_html(outcomes: Sequence[Outcome], target: str, when: str) -> str:
    """One self-contained page without scripts."""
    parts = []
    for letter, members in by_layer(outcomes).items():
        held = sum(outcome.state == "held" for outcome in members)
        name = html.escape(LAYERS[letter])
        parts.append(f"<h2>{letter}. {name}: {held} of {len(members)}</h2>\n<table>")
        parts.append("<tr><th>case</th><th>what is tried</th><th>result</th></tr>")
        parts += (_row(outcome) for outcome in members)
        parts.append("</table>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>sandrun selftest</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>sandrun selftest of {html.escape(target)}</h1>\n"
        f"<p>{html.escape(verdict(outcomes))}. {html.escape(when)}</p>\n{body}\n</body></html>\n"
    )


def _row(outcome: Outcome) -> str:
    detail = f"<pre>{html.escape(_plain(outcome.detail))}</pre>" if outcome.detail else ""
    return (
        f"<tr><td>{html.escape(outcome.case.id)}</td>"
        f"<td>{html.escape(outcome.case.title)}{detail}</td>"
        f'<td class="{outcome.state}">{_MARKS[outcome.state]} {outcome.state}</td></tr>'
    )
