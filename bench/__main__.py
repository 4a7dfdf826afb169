"""``python -m bench [--quick] [--only zygote,run,...]``: every figure of issue 3. Runs as: root."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench.measure import machine
from bench.report import Report, markdown, saved
from bench.suites import SUITES, Setting, prepare_data
from sandrun.config import parse

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the samples")
    parser.add_argument("--only", default=",".join(SUITES), help=f"some of {', '.join(SUITES)}")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path("/var/cache/sandrun/environments"),
        help="where numpy and pandas are installed for the data job",
    )
    parser.add_argument("--no-data", action="store_true", help="leave numpy and pandas out")
    parser.add_argument(
        "--readme",
        nargs="?",
        const=RESULTS,
        type=Path,
        metavar="FILE",
        help="measure nothing: print a results file (by default the newest) as Markdown",
    )
    options = parser.parse_args()
    if options.readme:
        print(markdown(saved(_results(options.readme, parser))))
        return 0
    names = options.only.split(",")
    if unknown := set(names) - set(SUITES):
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    if os.geteuid() != 0:
        parser.error("the sandboxes need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is taken down
    failed: list[str] = []
    gc.disable()  # a collection in the middle of a sample is not what we measure
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sandrun-bench-") as scratch:
        os.chmod(scratch, 0o755)
        setting = Setting(Report(machine()), Path(scratch), options.environments, "", options.quick)
        if not options.no_data:
            config = parse(replace(setting, data_python="?").config())
            setting = replace(setting, data_python=prepare_data(config))
        for name in names:
            gc.collect()
            begun = time.monotonic()
            try:
                SUITES[name](setting)
            except (RuntimeError, TimeoutError, OSError) as error:
                # The other suites' figures are worth having; the status tells.
                failed.append(f"{name}: {error or type(error).__name__}")
                print(f"  {failed[-1]}", flush=True)
            print(f"  ({name}: {time.monotonic() - begun:.0f} s)", flush=True)
    setting.report.print_targets()
    print(f"\n{setting.report.write(RESULTS)}")
    print("\n".join(f"not measured: {line}" for line in failed), end="\n" if failed else "")
    return 1 if failed else 0


def _results(place: Path, parser: argparse.ArgumentParser) -> Path:
    """The file itself, or the newest in a directory."""
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not files or not files[-1].is_file():
        parser.error(f"no results in {place}")
    return files[-1]


if __name__ == "__main__":
    sys.exit(main())
