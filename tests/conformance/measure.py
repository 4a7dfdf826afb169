"""``python measure.py [runs]``: dispatch to exit, door and fork against bare, in one run. I/O.

hello.py with the system's Python; numpy and pandas with SANDRUN_TEST_NUMPY_PYTHON.
Bare, door and fork take turns; medians. The proportional set size (PSS) is that of
a parked process. No namespaces: what the sandbox costs is measured in ``bench/``.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from pathlib import Path

import harness

HELLO = harness.Case(b"print('Hello, world')\n")
ENDINGS = {
    "hello.py": HELLO,
    "hello.py as job.py": harness.Case(HELLO.source, "job.py"),
    "sys.exit(3)": harness.Case(b"import sys\nprint('x')\nsys.exit(3)\n"),
    "uncaught": harness.Case(b"1/0\n"),
    "json, re": harness.Case(b"import json, re\nprint(json.dumps([1]))\n"),
    "open file at exit": harness.Case(b"f = open('out', 'w')\nf.write('x')\n"),
}
TABLES = {
    "numpy, pandas": harness.Case(
        b"import numpy as np, pandas as pd\n"
        b"d = pd.DataFrame({'a': np.arange(100) % 7, 'b': np.linspace(0, 1, 100)})\n"
        b"print(d.groupby('a').mean())\n"
    )
}


def pss_mb(pid: int) -> float:
    """Of one process, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Pss: +(\d+)", text, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def bare(bench: harness.Bench, case: harness.Case) -> float:
    bench.lay_out(case)
    start = time.perf_counter()
    process = bench._started([bench.python, case.name], case.environment())
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    took = time.perf_counter() - start
    process.communicate()
    return took


def door(bench: harness.Bench, case: harness.Case, sizes: list[float]) -> float:
    with bench.parked() as (process, go):
        sizes.append(pss_mb(process.pid))
        bench.lay_out(case)
        order = harness.order(case, bench.work)
        start = time.perf_counter()
        go.send(order)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        took = time.perf_counter() - start
        process.communicate()
    return took


def fork(
    bench: harness.Bench, template: harness.Template, case: harness.Case, sizes: list[float]
) -> float:
    job = template.fork()
    sizes.append(pss_mb(job.pid))
    bench.lay_out(case)
    order = harness.order(case, bench.work)
    start = time.perf_counter()
    job.go.send(order)
    os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
    took = time.perf_counter() - start
    job.collect(b"")
    return took


def measure(python: str, preload: str, cases: dict[str, harness.Case], runs: int) -> None:
    with harness.bench(python, preload) as bench, harness.subreaper():
        template = harness.Template(bench)
        for name, case in cases.items():
            door_mb: list[float] = []
            fork_mb: list[float] = []
            times = [
                (
                    bare(bench, case),
                    door(bench, case, door_mb),
                    fork(bench, template, case, fork_mb),
                )
                for _ in range(runs)
            ]
            b, d, f = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
            print(
                f"{name:20} bare {b:6.2f} ms   door {d:5.2f} ({d / b:.3f} x)   fork {f:5.2f} "
                f"({f / b:.3f} x)   PSS MB: door {statistics.median(door_mb):.1f}, "
                f"fork {statistics.median(fork_mb):.1f}"
            )
        template.close()


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    measure("/usr/bin/python3", "", ENDINGS, runs)
    if numpy_python := os.environ.get("SANDRUN_TEST_NUMPY_PYTHON"):
        measure(numpy_python, "numpy,pandas", TABLES, max(10, runs // 5))
