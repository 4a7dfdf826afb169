"""Requirement lines, checked and re-emitted clean. Pure.

The file of a client is never given to an installer: pip's format holds options
(``--index-url`` would fetch from anywhere, ``-r /etc/passwd`` reads files of the
host), URLs and paths. Each line is parsed as a PEP 508 requirement and written
again from what was understood; everything else is refused with its line named.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement

from sandrun.errors import SandrunError

MAX_BYTES: Final = 64 * 1024  # a lock of 300 packages without hashes is 6 KiB
MAX_LINES: Final = 500
MAX_LINE: Final = 512
# What takes time to parse, 40 us each: a lock of 300 packages with two markers each has 600.
MAX_CLAUSES: Final = 2000
_NEVER: Final = frozenset("\\$")  # continues a line, names a variable: for an installer, not for us


class RequirementsError(SandrunError):
    """A line that cannot be had. ``line`` counts from 1."""

    def __init__(self, line: int, text: str, why: str) -> None:
        super().__init__(f"line {line}: {text[:120]!r}: {why}")
        self.line = line


def parse(text: str) -> tuple[str, ...]:
    """Requirement lines of ``text``: checked, normalised, sorted, each once.

    Raises :class:`RequirementsError`.
    """
    if len(text) > MAX_BYTES:
        raise RequirementsError(1, "", f"the file is larger than {MAX_BYTES // 1024} KiB")
    found = set()
    clauses = 0
    for number, line in _logical_lines(text.removeprefix("\ufeff")):
        clauses += _clauses(line)
        if clauses > MAX_CLAUSES:
            raise RequirementsError(number, line, f"more than {MAX_CLAUSES} versions and markers")
        found.add(_clean(number, line))
        if len(found) > MAX_LINES:
            raise RequirementsError(number, line, f"more than {MAX_LINES} requirements")
    return tuple(sorted(found))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, content) without comments and empty lines, continuations joined."""
    start, parts = 0, list[str]()
    for number, raw in enumerate(text.splitlines(), 1):
        start = start if parts else number
        parts.append(raw.removesuffix("\\"))
        if not raw.endswith("\\"):
            yield from _content(start, parts)
            parts = []
    yield from _content(start, parts)


def _content(number: int, parts: list[str]) -> Iterator[tuple[int, str]]:
    if line := _without_comment("".join(parts)).strip():
        yield number, line


def _without_comment(line: str) -> str:
    r"""A comment is what pip sees as one: ``#`` at the start or behind a blank.

    One look at each character: a regular expression (``\s+#``) took a minute for a line
    of 64 KiB of blanks.
    """
    at = line.find("#")
    while at > 0 and not line[at - 1].isspace():
        at = line.find("#", at + 1)
    return line if at < 0 else line[:at]


def _clauses(line: str) -> int:
    return line.count(",") + line.count("(") + (line.count("'") + line.count('"')) // 2


def _clean(number: int, line: str) -> str:
    if len(line) > MAX_LINE:
        raise RequirementsError(number, line, f"longer than {MAX_LINE} characters")
    if line.startswith("-") or " --" in line:
        raise RequirementsError(
            number, line, "options are not taken; the server has its own index and makes the hashes"
        )
    if "://" in line or line.startswith(("/", ".", "~")) or line.endswith((".whl", ".tar.gz")):
        raise RequirementsError(
            number, line, "URLs and paths are not taken, only names and versions of the index"
        )
    try:
        return _normalised(line)
    except (InvalidRequirement, RecursionError) as error:
        why = str(error).splitlines()[0] if str(error) else "too deep"
        raise RequirementsError(number, line, f"not a requirement: {why}") from error


# 0.1 ms a line with a marker: the same lines come again with every job that has them.
@functools.lru_cache(maxsize=2048)  # at most 2 MiB, most lines are short
def _normalised(line: str) -> str:
    requirement = Requirement(line)
    if requirement.url:
        raise InvalidRequirement("URLs and paths are not taken")
    clean = str(requirement)
    if not clean.isprintable() or _NEVER & set(clean):
        raise InvalidRequirement("it has a character that no requirement needs")
    return clean


def names(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the distributions that the lines ask for."""
    return tuple(Requirement(line).name for line in lines)
