"""Fuzz for as long as you like: ``python tests/fuzz/run.py [TARGET ...] [--seconds 60]``.

With atheris (``uv sync --extra fuzz``) the parsers written in Python are instrumented
and the mutations guided by what they reach; without it they are random. An input that
breaks a target is written to ``crash-TARGET`` and its name printed; exit status 1.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None
if atheris:
    with atheris.instrument_imports(include=["sandrun"]):
        from targets import TARGETS, compiled
else:
    from targets import TARGETS, compiled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    broken = 0
    for name in options.targets or TARGETS:
        # libFuzzer ends its process; and a target that dies must not end the others.
        pid = os.fork()
        if pid == 0:
            run = guided if atheris and name != "compiled" else at_random
            os._exit(run(name, options.seconds))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(f"{name}: {'held' if code == 0 else f'BROKEN ({code})'}", flush=True)
        broken += code != 0
    return 1 if broken else 0


def guided(name: str, seconds: float) -> int:
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="sandrun-corpus-") as corpus:
        for number, seed in enumerate(target.seeds):
            Path(corpus, str(number)).write_bytes(seed)
        argv = [sys.argv[0], corpus, f"-max_total_time={int(seconds)}", "-max_len=8192"]
        argv += [f"-artifact_prefix=crash-{name}-", "-verbosity=1", "-print_final_stats=1"]
        atheris.Setup(argv, target.run)
        atheris.Fuzz()
    return 0


def mutate(data: bytes, dice: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(out) + 1)
        match dice.randrange(4):
            case 0 if at < len(out):
                out[at] = dice.choice((0, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            case 1:
                del out[at : at + dice.randint(1, 64)]
            case 2:
                out[at:at] = out[at : at + dice.randint(1, 512)]
            case _:
                out[at:at] = dice.randbytes(dice.randint(1, 16))
    return bytes(out)


def at_random(name: str, seconds: float) -> int:
    target = TARGETS[name]
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = mutate(dice.choice(target.seeds), dice)
        try:
            target.run(data)
        except BaseException:
            traceback.print_exc()
            Path(f"crash-{name}").write_bytes(data)
            print(f"{name}: see crash-{name} (seed {seed})", flush=True)
            return 1
        count += 1
    print(f"{name}: {count} inputs (seed {seed})", flush=True)
    compiled.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
