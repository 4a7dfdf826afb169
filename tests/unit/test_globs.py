"""Output patterns: what they mean, and that none of them is slow."""

from __future__ import annotations

import fnmatch
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandrun import globs


@pytest.mark.parametrize(
    ("patterns", "kept", "left"),
    [
        (["*"], ["a", "a/b", ".hidden", "a b/ü/c.txt"], []),
        (["*.png"], ["a.png", "plots/a.png", ".png"], ["a.pngx", "a/png", "apng"]),
        (["plots/*.png"], ["plots/a.png"], ["a.png", "x/plots/a.png", "plots/x/a.png"]),
        (["./*.txt"], ["a.txt"], ["sub/a.txt"]),
        (["results/"], ["results/a", "results/b/c", "x/results/a"], ["results", "resultsx/a"]),
        (["results"], ["results", "results/a", "x/results", "x/results/b"], ["results.txt"]),
        (["a/b/"], ["a/b/c"], ["a/b", "x/a/b/c"]),
        (["a/**/z"], ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/b/zz", "b/a/z"]),
        (["**/z"], ["z", "a/z", "a/b/z"], ["zz", "a/zz"]),
        (["a/**"], ["a/b", "a/b/c"], ["a", "b/a/c"]),
        (["**"], ["a", "a/b"], []),
        (["**/"], ["a/b", "a/b/c"], ["a"]),
        (["a/**/**/z"], ["a/z", "a/b/c/z"], ["a"]),
        (["?.txt"], ["a.txt", "é.txt", "d/b.txt"], ["ab.txt", ".txt"]),
        (["[a-c]x"], ["ax", "cx"], ["dx", "x", "-x"]),
        (["[!a-c]x"], ["dx", "-x"], ["ax", "x"]),
        (["[]]x", "[^]]y"], ["]x", "ay"], ["]y"]),
        (["[a-]x"], ["ax", "-x"], ["bx"]),
        ([r"\*", r"\!b", "[!]a]c"], ["*", "!b", "bc"], ["a", "b", "ac"]),
        (["*.log", "!debug.log"], ["a.log", "d/b.log"], ["debug.log", "d/debug.log"]),
        (["!debug.log", "*.log"], ["a.log"], ["debug.log"]),
        (["!*.tmp"], ["a", "d/b"], ["a.tmp", "d/b.tmp"]),
        (["*", "!cache/"], ["a", "cache"], ["cache/a", "d/cache/b"]),
        (["a*b*c"], ["abc", "axbxc", "abbcc"], ["ab", "acb", "abcd"]),
        (["a*/b"], ["a/b", "ax/b"], ["a/x/b", "axb"]),
        ([], [], ["a"]),
        (["caf\u00e9", "\udcff*"], ["café", "\udcffx"], ["cafe"]),
    ],
)
def test_patterns_mean_what_the_documentation_says(
    patterns: list[str], kept: list[str], left: list[str]
) -> None:
    matcher = globs.compile(patterns)
    assert [path for path in kept if not matcher.match(path)] == []
    assert [path for path in left if matcher.match(path)] == []


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "empty"),
        ("!", "empty"),
        ("/", "relative"),
        ("/etc/passwd", "relative"),
        ("~", "relative"),
        ("~/x", "relative"),
        ("../*", "goes up"),
        ("a/../b", "goes up"),
        ("!../b", "goes up"),
        ("a\0b", "NUL"),
        ("[abc", "no ']'"),
        ("[]", "no ']'"),
        ("[c-a]", "wrong way round"),
        ("a\\", "backslash"),
        ("x" * (globs.MAX_LENGTH + 1), "allowed"),
    ],
)
def test_a_wrong_pattern_is_named_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        globs.compile(["ok", pattern])
    assert repr(pattern[:80]) in str(caught.value)


def test_patterns_are_bounded_together() -> None:
    with pytest.raises(ValueError, match="64 are allowed"):
        globs.compile(["a"] * 65)
    with pytest.raises(ValueError, match="together"):
        globs.compile(["a" * 500] * 9)


def test_a_directory_without_hope_is_known_before_it_is_read() -> None:
    matcher = globs.compile(["plots/*.png", "*", "!cache/"])
    assert matcher.is_hopeless(matcher.advance(matcher.start, "cache/"))
    assert not matcher.is_hopeless(matcher.advance(matcher.start, "plots/"))
    only = globs.compile(["plots/*.png"])
    assert only.is_hopeless(only.advance(only.start, "other/"))


def _walk_steps(matcher: globs.Matcher, path: str) -> int:
    state = matcher.start
    most = 0
    for char in path:
        state = matcher.advance(state, char)
        most = max(most, state.bit_length())
    return most


@pytest.mark.parametrize(
    "pattern", ["*a" * 200 + "b", "**/a/" * 80 + "b", "*?" * 200 + "b", "[!b]*" * 100 + "b"]
)
def test_the_state_never_outgrows_the_patterns(pattern: str) -> None:
    """What backtracking matchers spend minutes on (dependencies: pathspec, wcmatch > 3 s):
    here the work per character is one pass over an integer of this many bits."""
    matcher = globs.compile([pattern])
    assert not matcher.match("a" * 255 + "/" + "a/" * 400 + "a")
    assert _walk_steps(matcher, "a/" * 200 + "a" * 255) <= len(pattern) + 4


# ── against a naive reference ────────────────────────────────────────────────


def _names_match(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_names_match(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return (
        bool(path)
        and fnmatch.fnmatchcase(path[0], pattern[0])
        and _names_match(pattern[1:], path[1:])
    )


def _naive(pattern: str, path: str) -> bool:
    names = [name for name in pattern.split("/") if name]
    directory = pattern.endswith("/")
    while len(names) > 1 and names[-1] == "**":
        names.pop()
        directory = True
    if "/" not in pattern.rstrip("/"):
        names = ["**", *(["*"] if names == ["**"] else names)]
    if names == ["**"]:
        names = ["**", "*"]
    parts = path.split("/")
    lengths = range(1, len(parts) + (not directory))
    return any(_names_match(names, parts[:n]) for n in lengths)


_PATTERN_NAME = st.one_of(
    st.just("**"), st.text("ab*?", min_size=1, max_size=4), st.sampled_from(["[ab]", "[!a]*"])
).filter(lambda name: name == "**" or "**" not in name)
_PATTERNS = st.builds(
    lambda names, slash: "/".join(names) + slash,
    st.lists(_PATTERN_NAME, min_size=1, max_size=4),
    st.sampled_from(["", "/"]),
)
_PATHS = [
    "/".join(names)
    for depth in (1, 2, 3)
    for names in itertools.product(("a", "b", "ab", "aab"), repeat=depth)
]


@given(pattern=_PATTERNS)
def test_the_automaton_agrees_with_a_naive_matcher(pattern: str) -> None:
    matcher = globs.compile([pattern])
    for path in _PATHS:
        assert matcher.match(path) == _naive(pattern, path), (pattern, path)


@given(patterns=st.lists(st.text(max_size=20), max_size=8), path=st.text(max_size=40))
def test_any_text_is_a_pattern_or_a_clean_refusal(patterns: list[str], path: str) -> None:
    try:
        matcher = globs.compile(patterns)
    except ValueError:
        return
    assert matcher.match(path) in {True, False}
