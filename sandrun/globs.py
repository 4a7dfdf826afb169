r"""Output patterns, matched in linear time. Pure.

The rules are those of ``.gitignore``, turned round (what matches is kept):

- ``*`` any run of characters, ``?`` one character, ``[a-c]`` one of these,
  ``[!a-c]`` one of the others: none of them crosses a ``/``;
- ``**`` as a whole name: any number of directories;
- a pattern without ``/`` is looked for at every depth (``*.png``), one with a
  ``/`` inside begins at the work directory (``plots/*.png``, ``./top.txt``);
- a directory that matches brings everything below it (``results``, ``results/``:
  the latter matches directories only);
- ``!pattern`` takes out what the others let in, whatever the order;
- ``\`` takes the next character's meaning away.

The patterns and the names both come from strangers, so no pattern may be slow.
All of them together are one non-deterministic automaton whose set of states is
the bits of one integer; a character costs a few operations on that integer
(Baeza-Yates and Gonnet, Shift-And), whatever the patterns are: what the classes
accept is one integer for each stretch between the ends of their ranges. There is
nothing to backtrack. A walk keeps the state of a directory and goes on from there for
each of its entries, so no name is looked at twice.
"""

from __future__ import annotations

import functools
import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

MAX_PATTERNS: Final = 64
MAX_LENGTH: Final = 512  # characters of one pattern
MAX_TOTAL: Final = 4096  # of all: the integer then has about 600 bytes

# One item of a pattern is one bit: it stays, it moves on, or it dies.


class _Item(NamedTuple):
    """``accepts`` moves on, ``stays`` loops, ``skips`` may be left without a character."""

    literal: str = ""  # accepts just this
    ranges: tuple[tuple[str, str], ...] | None = None  # accepts what is in them (never "/")
    negated: bool = False  # or what is in none
    star: bool = False  # loops on all but "/"; may be left at any time
    globstar: bool = False  # loops on everything; left behind a "/", or at once
    sink: bool = False  # loops on everything, is never left


_SLASH: Final = _Item(literal="/")
_STAR: Final = _Item(star=True)
_GLOBSTAR: Final = _Item(literal="/", globstar=True)


class _Pattern(NamedTuple):
    """Items that match a whole path. The last two stand at its end and below it."""

    items: list[_Item]
    only_below: bool  # ``dir/``: what is below it, not a file of that name


class Matcher:
    """Compiled patterns. States are integers: treat them as opaque."""

    def __init__(self, positive: list[_Pattern], negative: list[_Pattern]) -> None:
        self._literal: dict[str, int] = {}
        self._flips: dict[int, int] = {}  # character's number → classes that begin or end there
        self._negated = 0
        self._star = self._globstar = self._loop_all = 0
        entry, bit = 0, 1
        ends = []
        for pattern in (*positive, *negative):
            entry |= bit
            for item in pattern.items:
                self._add(item, bit)
                bit <<= 1
            below = bit >> 1
            ends.append((below if pattern.only_below else below | below >> 1, below))
        self._keep = _union(end for end, _ in ends[: len(positive)])
        self._drop = _union(end for end, _ in ends[len(positive) :])
        self._drop_below = _union(below for _, below in ends[len(positive) :])
        self._stretches = sorted(self._flips)
        self._classes = [self._negated]  # what accepts a character of each stretch
        for number in self._stretches:
            self._classes.append(self._classes[-1] ^ self._flips[number])
        self.start = self._spread(entry, 0)

    def _add(self, item: _Item, bit: int) -> None:
        if item.literal:
            self._literal[item.literal] = self._literal.get(item.literal, 0) | bit
        if item.negated:
            self._negated |= bit
        for low, high in _apart(item.ranges or ()):
            for number in (low, high + 1):
                self._flips[number] = self._flips.get(number, 0) ^ bit
        if item.star:
            self._star |= bit
        if item.globstar:
            self._globstar |= bit
        if item.globstar or item.sink:
            self._loop_all |= bit

    def _spread(self, arrived: int, stayed: int) -> int:
        """Add the states that are reached without a character."""
        state = arrived | (arrived & self._globstar) << 1 | stayed
        return state | (state & self._star) << 1

    def advance(self, state: int, text: str) -> int:
        """The state behind ``text``: a name, or ``"/"``, or several of both."""
        literal, loop_all, star = self._literal, self._loop_all, self._star
        stretches, classes = self._stretches, self._classes
        for char in text:
            if not state:
                return 0
            accepts = literal.get(char, 0)
            loops = loop_all
            if char != "/":
                loops |= star
                accepts |= classes[bisect_right(stretches, ord(char))]
            state = self._spread((state & accepts) << 1, state & loops)
        return state

    def keeps(self, state: int) -> bool:
        """Whether a file whose whole path led to ``state`` is an output."""
        return bool(state & self._keep) and not state & self._drop

    def is_hopeless(self, state: int) -> bool:
        """Whether nothing below a directory (``state`` is behind its ``/``) can match."""
        return not state or bool(state & self._drop_below)

    def match(self, path: str) -> bool:
        """Whether the relative ``path`` of a file is an output."""
        return self.keeps(self.advance(self.start, path))


def compile(patterns: Sequence[str]) -> Matcher:  # noqa: A001 - as in re.compile
    """Patterns → :class:`Matcher`. Raises ValueError with the pattern and the reason."""
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"there are {len(patterns)} patterns; {MAX_PATTERNS} are allowed")
    if sum(map(len, patterns)) > MAX_TOTAL:
        raise ValueError(f"the patterns have more than {MAX_TOTAL} characters together")
    positive: list[_Pattern] = []
    negative: list[_Pattern] = []
    for pattern in patterns:
        try:
            if pattern.startswith("!"):
                negative.append(_parse(pattern[1:]))
            else:
                positive.append(_parse(pattern))
        except ValueError as error:
            raise ValueError(f"pattern {pattern[:80]!r}: {error}") from None
    if negative and not positive:
        positive.append(_parse("*"))
    return Matcher(positive, negative)


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)


def _parse(pattern: str) -> _Pattern:
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"it has {len(pattern)} characters; {MAX_LENGTH} are allowed")
    if "\0" in pattern:
        raise ValueError("there is a NUL in it")
    if pattern.startswith(("/", "~/")) or pattern == "~":
        raise ValueError("it must be relative to the work directory")
    anchored = "/" in pattern.rstrip("/")
    names = [name for name in pattern.split("/") if name not in {"", "."}]
    if ".." in names:
        raise ValueError("it goes up with '..'")
    directory = pattern.endswith("/")
    while len(names) > 1 and names[-1] == "**":
        names.pop()
        directory = True
    if not names:
        raise ValueError("it is empty")
    if names == ["**"]:
        names, anchored = ["*"], False
    items: list[_Item] = []
    if not anchored and names[0] != "**":
        items.append(_GLOBSTAR)
    for number, name in enumerate(names):
        if name != "**":
            items += _parse_name(name)
            if number < len(names) - 1:
                items.append(_SLASH)
        elif not (items and items[-1].globstar):
            items.append(_GLOBSTAR)
    items += (_SLASH, _Item(sink=True))
    return _Pattern(items, directory)


def _parse_name(name: str) -> list[_Item]:
    items: list[_Item] = []
    at = 0
    while at < len(name):
        char = name[at]
        at += 1
        if char == "*":
            if not (items and items[-1].star):
                items.append(_STAR)
        elif char == "?":
            items.append(_Item(ranges=(), negated=True))
        elif char == "[":
            item, at = _parse_class(name, at)
            items.append(item)
        elif char == "\\":
            if at == len(name):
                raise ValueError("it ends in a backslash")
            items.append(_Item(literal=name[at]))
            at += 1
        else:
            items.append(_Item(literal=char))
    return items


def _apart(ranges: Iterable[tuple[str, str]]) -> list[tuple[int, int]]:
    """The same characters' numbers, in ranges that do not touch."""
    found: list[tuple[int, int]] = []
    for low, high in sorted((ord(low), ord(high)) for low, high in ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    return found


def _parse_class(name: str, at: int) -> tuple[_Item, int]:
    negated = name[at : at + 1] in {"!", "^"}
    at += negated
    end = name.find("]", at + 1)  # a "]" that comes first is one of the characters
    if end < 0:
        raise ValueError("a '[' has no ']'; write [[] for the character itself")
    ranges: list[tuple[str, str]] = []
    while at < end:
        low = name[at]
        if at + 2 < end and name[at + 1] == "-":
            high = name[at + 2]
            if high < low:
                raise ValueError(f"the range {low}-{high} is the wrong way round")
            ranges.append((low, high))
            at += 3
        else:
            ranges.append((low, low))
            at += 1
    return _Item(ranges=tuple(ranges), negated=negated), end + 1
