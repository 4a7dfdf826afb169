"""A classic BPF machine, as the kernel's seccomp has it. Pure; shares no code with sandrun.

Written from linux/filter.h and the kernel's ``bpf_check_classic`` and
``seccomp_check_filter``, so that it can judge the *bytes* that get loaded.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAX_INSTRUCTIONS = 4096
SECCOMP_DATA_SIZE = 64
LD_W_ABS, ALU_AND_K, RET_K = 0x20, 0x54, 0x06
JMP_JA, JMP_JEQ_K, JMP_JGT_K, JMP_JGE_K, JMP_JSET_K = 0x05, 0x15, 0x25, 0x35, 0x45
CONDITIONAL = {JMP_JEQ_K, JMP_JGT_K, JMP_JGE_K, JMP_JSET_K}
KNOWN = {LD_W_ABS, ALU_AND_K, RET_K, JMP_JA} | CONDITIONAL


class Instruction(NamedTuple):
    code: int
    jt: int
    jf: int
    k: int


class Outcome(NamedTuple):
    """The filter's answer, how many instructions it took, whether it read an argument."""

    value: int
    steps: int
    looked_at_arguments: bool


def parse(program: bytes) -> list[Instruction]:
    """The instructions, after the checks that the kernel makes before it takes them."""
    if len(program) % 8 or not program:
        raise ValueError("not an array of struct sock_filter")
    instructions = [Instruction(*fields) for fields in struct.iter_unpack("<HBBI", program)]
    if len(instructions) > MAX_INSTRUCTIONS:
        raise ValueError(f"{len(instructions)} instructions")
    for at, instruction in enumerate(instructions):
        _check(at, instruction, len(instructions))
    if instructions[-1].code != RET_K:
        raise ValueError("the last instruction does not return")
    return instructions


def _check(at: int, instruction: Instruction, length: int) -> None:
    code, jt, jf, k = instruction
    if code not in KNOWN:
        raise ValueError(f"{at}: unknown code {code:#x}")
    if code == LD_W_ABS and (k % 4 or k + 4 > SECCOMP_DATA_SIZE):
        raise ValueError(f"{at}: load from {k}")
    if code == JMP_JA and at + 1 + k >= length:
        raise ValueError(f"{at}: jump out of the program")
    if code in CONDITIONAL and at + 1 + max(jt, jf) >= length:
        raise ValueError(f"{at}: jump out of the program")


def unreachable(instructions: list[Instruction]) -> set[int]:
    """Positions that no input leads to by any chain of jumps."""
    reached: set[int] = set()
    waiting = [0]
    while waiting:
        at = waiting.pop()
        if at in reached:
            continue
        reached.add(at)
        code, jt, jf, k = instructions[at]
        if code == JMP_JA:
            waiting.append(at + 1 + k)
        elif code in CONDITIONAL:
            waiting += [at + 1 + jt, at + 1 + jf]
        elif code != RET_K:
            waiting.append(at + 1)
    return set(range(len(instructions))) - reached


def run(
    instructions: list[Instruction], arch: int, number: int, arguments: tuple[int, ...] = ()
) -> Outcome:
    """What the filter answers to one call. Arguments are 64-bit words, 0 where not given."""
    words = [argument % 2**64 for argument in arguments] + [0] * (6 - len(arguments))
    data = struct.pack("<IIQ6Q", number % 2**32, arch, 0x7FFF_1234_5678, *words)
    accumulator, at, looked = 0, 0, False
    for steps in range(1, len(instructions) + 1):
        code, jt, jf, k = instructions[at]
        at += 1
        if code == RET_K:
            return Outcome(k, steps, looked)
        if code == LD_W_ABS:
            accumulator = int.from_bytes(data[k : k + 4], "little")
            looked |= k >= 8  # noqa: PLR2004 - beyond nr and arch
        elif code == ALU_AND_K:
            accumulator &= k
        elif code == JMP_JA:
            at += k
        else:
            taken = {
                JMP_JEQ_K: accumulator == k,
                JMP_JGT_K: accumulator > k,
                JMP_JGE_K: accumulator >= k,
                JMP_JSET_K: bool(accumulator & k),
            }[code]
            at += jt if taken else jf
    raise AssertionError("ran past the end")
