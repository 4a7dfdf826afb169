"""Decisions → classic BPF, the machine code of seccomp. Pure.

A policy is a tree of two kinds of node: :class:`Return` gives the kernel its
answer, :class:`Switch` looks at one 32-bit word of ``struct seccomp_data`` and
goes on with the node of the range the word is in. :func:`assemble` turns the tree
into the packed ``struct sock_filter`` array that ``seccomp(2)`` takes.

Why not libseccomp, which the project has for a second opinion: with ENOSYS as the
default it cannot give a refused *argument* an errno of its own (socket →
EAFNOSUPPORT, ioctl → ENOTTY), and programs look at exactly that errno. It also
cannot be told which calls are hot.

Three things make the result small and quick:

* a ``Switch`` becomes a binary search tree split by *weight*, so that what is
  called often is decided in few comparisons;
* neighbouring ranges with the same answer are one range;
* code is made backwards, from the last instruction to the first: BPF jumps only
  go forward, so every target is already there when a jump to it is written, and
  equal answers share one instruction. Jumps reach 255 instructions; what is
  farther is repeated (a return) or reached by ``ja`` (a subtree).

Only LD|W|ABS, ALU|AND|K, JEQ, JGE, JA and RET are used: these are what the kernel
understands when it works out which calls are always allowed and may skip the
filter (``seccomp_is_const_allow`` in kernel/seccomp.c, since Linux 5.11).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_WORD_MAX: Final = 0xFFFF_FFFF
_REACH: Final = 253  # a conditional jump's 255, less the two instructions that may come between

# linux/bpf_common.h
_LD_W_ABS: Final = 0x20
_AND_K: Final = 0x54
_JA: Final = 0x05
_JEQ_K: Final = 0x15
_JGE_K: Final = 0x35
_RET_K: Final = 0x06

# struct seccomp_data { int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6]; }
NR_OFFSET: Final = 0
ARCH_OFFSET: Final = 4


def argument_offset(index: int) -> int:
    """Where the low 32 bits of argument ``index`` lie; both machines are little-endian."""
    return 16 + 8 * index


@dataclass(frozen=True, slots=True)
class Return:
    """The kernel's answer: a ``SECCOMP_RET_*`` value."""

    value: int


class Case(NamedTuple):
    """``first <= word <= last`` leads to ``node``; heavier cases are found sooner."""

    first: int
    last: int
    node: Node
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Switch:
    """A choice by the word at ``offset``, after ``mask``. Cases must not overlap."""

    offset: int
    cases: tuple[Case, ...]
    default: Node
    mask: int = _WORD_MAX


@dataclass(frozen=True, slots=True)
class _Compare:
    """``if word <code> k: yes else: no``; the word has been loaded."""

    code: int
    k: int
    yes: Node | _Compare
    no: Node | _Compare


Node: TypeAlias = Return | Switch
_Target: TypeAlias = Node | _Compare

_GAP_WEIGHT: Final = 0.1  # numbers that nobody names are seldom called


def assemble(root: Node) -> bytes:
    """The program for ``root``. Raises ValueError if cases overlap or it is too long."""
    code = _Code()
    code.place(root)
    if len(code.backwards) > MAX_INSTRUCTIONS:
        raise ValueError(f"program: {len(code.backwards)} instructions, at most {MAX_INSTRUCTIONS}")
    return b"".join(reversed(code.backwards))


class _Code:
    """Instructions, last one first. A position is an index into ``backwards``."""

    def __init__(self) -> None:
        self.backwards: list[bytes] = []
        self._placed: dict[_Target, int] = {}

    def place(self, target: _Target) -> int:
        """Make sure that ``target`` is there, wherever; its position."""
        known = self._placed.get(target)
        if known is None:
            known = self._place_new(target)
            self._placed[target] = known
        return known

    def _place_new(self, target: _Target) -> int:
        match target:
            case Return(value):
                return self._emit(_RET_K, value)
            case Switch():
                return self._place_switch(target)
            case _Compare(code, k, yes, no):
                return self._place_compare(code, k, yes, no)

    def _place_switch(self, switch: Switch) -> int:
        tree = _search_tree(_ranges(switch))
        if isinstance(tree, Return | Switch):  # nothing to choose: no load needed
            return self.place(tree)
        self._place_next(tree)
        if switch.mask != _WORD_MAX:
            self._emit(_AND_K, switch.mask)
        return self._emit(_LD_W_ABS, switch.offset)

    def _place_compare(self, code: int, k: int, yes: _Target, no: _Target) -> int:
        self.place(no)
        self.place(yes)
        yes_at = self._near(yes)
        no_at = self._near(no)
        here = len(self.backwards)
        return self._emit(code, k, here - yes_at - 1, here - no_at - 1)

    def _place_next(self, target: _Target) -> None:
        """Have ``target`` be what runs next."""
        at = self.place(target)
        distance = len(self.backwards) - at - 1
        if distance:
            self._emit(_JA, distance)

    def _near(self, target: _Target) -> int:
        """A position within a conditional jump's reach that leads to ``target``."""
        at = self._placed[target]
        distance = len(self.backwards) - at - 1
        if distance <= _REACH:
            return at
        if isinstance(target, Return):
            at = self._emit(_RET_K, target.value)
            self._placed[target] = at  # the next one is more likely to reach this
            return at
        return self._emit(_JA, distance)

    def _emit(self, code: int, k: int, yes: int = 0, no: int = 0) -> int:
        self.backwards.append(struct.pack("=HBBI", code, yes, no, k))
        return len(self.backwards) - 1


def _ranges(switch: Switch) -> list[Case]:
    """The cases in order, gaps filled with the default, equal neighbours joined."""
    filled: list[Case] = []
    position = 0
    for case in sorted(switch.cases, key=lambda case: case.first):
        if not position <= case.first <= case.last <= _WORD_MAX:
            raise ValueError(f"cases overlap or leave 32 bits: {case.first}..{case.last}")
        if case.first > position:
            _join(filled, Case(position, case.first - 1, switch.default, _GAP_WEIGHT))
        _join(filled, case)
        position = case.last + 1
    if position <= _WORD_MAX:
        _join(filled, Case(position, _WORD_MAX, switch.default, _GAP_WEIGHT))
    return filled


def _join(cases: list[Case], case: Case) -> None:
    if cases and cases[-1].node == case.node:
        before = cases.pop()
        case = Case(before.first, case.last, case.node, before.weight + case.weight)
    cases.append(case)


def _search_tree(ranges: list[Case]) -> _Target:
    """A binary search tree over ``ranges``, split where the weights balance."""
    if len(ranges) == 1:
        return ranges[0].node
    if len(ranges) == 3 and ranges[0].node == ranges[2].node:
        middle = ranges[1]
        if middle.first == middle.last:
            return _Compare(_JEQ_K, middle.first, middle.node, ranges[0].node)
    split = _balance(ranges)
    return _Compare(
        _JGE_K,
        ranges[split].first,
        _search_tree(ranges[split:]),
        _search_tree(ranges[:split]),
    )


def _balance(ranges: list[Case]) -> int:
    """Where to cut, so that both sides weigh as nearly the same as possible."""
    total = sum(case.weight for case in ranges)
    best, best_off, left = 1, total, 0.0
    for index in range(1, len(ranges)):
        left += ranges[index - 1].weight
        off = abs(total - 2 * left)
        if off < best_off:
            best, best_off = index, off
    return best
