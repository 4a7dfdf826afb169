"""A mixed load for N minutes, and then nothing must be left. Runs as: root. I/O.

::

    python -m bench.soak [--minutes N] [--clients C]

Short, long, hostile, big and cancelled jobs, and clients that hang up, all at once
against a server of our own. When the load has ended, the pool is quiet again and
retention (two seconds here) is over, counts must be what they were before it:
processes, descriptors of each of our processes, control groups, mounts, namespaces;
and no job may be left, neither in http nor in the supervisor's store.

Memory is judged for each process by itself (http, standby, supervisor, spawners,
their assistants and templates), and by its slope, not by its level:

* what counts is the memory that nobody else can have written, ``Anonymous`` and
  ``Swap`` of smaps_rollup: unlike PSS it does not change when another process that
  shares pages comes or goes, as sandboxes do all the time;
* of each :data:`WINDOW_S` the lowest sample counts: an answer of some megabytes that is
  on its way at that moment is no leak;
* the slope is that of these minima over the second half: buffers, caches and arenas that
  come to their size in the first half are flat in the second. It is the median of the
  slopes over a quarter of that time: a table that is made larger once, like the one of
  Python's interned strings by a megabyte, is a step and no slope.

A slope is a leak from :data:`SLOPE_MAX_KB_MIN` on, if the second half has at least
:data:`WINDOWS_MIN` windows, that is in a run of five minutes or more; a shorter run
prints it and does not judge it. Each is printed per thousand jobs, too: a real leak
is as large there whatever the machine.
Exit status 1 on any leak or wrong answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench import node
from bench.client import Blocking, Connections, request
from bench.load import new_event_loop
from bench.measure import anonymous_bytes, descendants, group_directories, median

CONFIG = """\
[http]
admin_listen = "127.0.0.1:{port}"
[rate_limit]
enabled = false
[pool]
ready = 4
drain_seconds = 2
template_jobs = 200
[retention]
finished_seconds = 2
failed_seconds = 2
[environments.default]
[environments.fork]
mode = "fork"
"""
BOMB = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""
# (name, weight, code, manifest, exit reasons that are right)
MIX = (
    ("hello", 40, "print('hello')", {}, {"exited"}),
    ("fork hello", 30, "print('hello')", {"environment": "fork"}, {"exited"}),
    ("long", 3, "import time; time.sleep(3)", {}, {"exited"}),
    ("big output", 4, "open('o','wb').write(bytes(8<<20))", {"outputs": ["o"]}, {"exited"}),
    ("big log", 4, "for i in range(20000): print('x' * 200)", {}, {"exited"}),
    ("crash", 3, "import os; os.abort()", {}, {"signaled", "crashed", "signal"}),
    ("memory", 2, "x = bytearray(1 << 30)", {"memory_mb": 64}, {"out_of_memory", "exited"}),
    ("fork bomb", 1, BOMB, {"timeout": 1, "cpu_seconds": 1}, set()),
    ("loop", 2, "while True: pass", {"timeout": 1}, set()),
    ("daemons", 4, "import os\nfor i in range(8):\n  if not os.fork(): os.setsid(); __import__('time').sleep(99)", {}, {"exited"}),
)  # fmt: skip
SLOPE_MAX_KB_MIN = 256  # of one process; two bytes per job at 2,000 jobs a minute are 4
WINDOW_S = 15.0
WINDOWS_MIN = 10
SETTLE_S = 90.0
KEPT = ("sandrun_jobs_kept", "sandrun_store_records", "sandrun_clients")


@dataclass(frozen=True)
class Counts:
    """What a leak would raise."""

    processes: int
    descriptors: dict[str, int]
    groups: int
    mounts: int
    namespaces: int

    def above(self, other: Counts, slack: int) -> list[str]:
        """Where we are over ``other``, as sentences."""
        pairs = [
            ("processes", self.processes, other.processes),
            ("control groups", self.groups, other.groups),
            ("mounts", self.mounts, other.mounts),
            ("namespaces", self.namespaces, other.namespaces),
            *(
                (f"descriptors of {n}", c, other.descriptors.get(n, 0))
                for n, c in self.descriptors.items()
            ),
        ]
        return [
            f"{name}: {now}, before {before}" for name, now, before in pairs if now > before + slack
        ]


@dataclass
class Memory:
    """What one process has for itself, over time: (seconds, bytes)."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    def lows(self) -> list[tuple[float, int]]:
        """The lowest sample of each window of the second half."""
        start = self.samples[len(self.samples) // 2][0] if self.samples else 0.0
        lows: dict[int, tuple[float, int]] = {}
        for t, size in self.samples:
            if t >= start:
                window = int((t - start) / WINDOW_S)
                lows[window] = min(lows.get(window, (t, size)), (t, size), key=lambda low: low[1])
        return list(lows.values())

    def slope_kb_min(self) -> float:
        """Median of the second half's, each over a quarter of it, in KiB per minute."""
        lows = self.lows()
        pairs = zip(lows, lows[max(1, len(lows) // 4) :], strict=False)
        slopes = [(b - a) / (t_b - t_a) for (t_a, a), (t_b, b) in pairs]
        return median(slopes) * 60 / 1024 if slopes else 0.0

    def is_leak(self) -> bool:
        """Whether it grows, as far as that can be told."""
        return len(self.lows()) >= WINDOWS_MIN and self.slope_kb_min() > SLOPE_MAX_KB_MIN

    def line(self, jobs_per_minute: float) -> str:
        """For people."""
        slope, mib = self.slope_kb_min(), [size / 2**20 for _, size in self.samples]
        per_thousand = slope * 1000 / jobs_per_minute
        return (
            f"{mib[0]:6.1f} MiB, half-way {mib[len(mib) // 2]:6.1f}, last {mib[-1]:6.1f};"
            f" {slope:+7.0f} KiB/min ({per_thousand:+.1f} KiB per 1,000 jobs)"
        )


def ours(pid: int) -> dict[str, int]:
    """Long-lived processes of a server by name."""
    found = {"supervisor": pid}
    counts: Counter[str] = Counter()
    for child in descendants(pid):
        try:
            name = Path(f"/proc/{child}/comm").read_text().strip().removeprefix("sandrun-")
            status = Path(f"/proc/{child}/status").read_text()
        except OSError:
            continue
        if len(status.partition("\nNSpid:")[2].partition("\n")[0].split()) > 1:
            continue  # in a sandbox
        kind = name if name in ("http", "standby", "spawner", "assist") else "template"
        counts[kind] += 1
        found[f"{kind} {counts[kind]}" if counts[kind] > 1 else kind] = child
    return found


def count(pid: int) -> Counts:
    """Look at the server from outside."""
    below = descendants(pid)
    namespaces = set()
    mounts = 0
    for each in (pid, *below):
        try:
            here = {
                os.readlink(f"/proc/{each}/ns/{n}") for n in ("mnt", "net", "pid", "user", "ipc")
            }
            if next(n for n in here if n.startswith("mnt")) not in namespaces:
                mounts += len(Path(f"/proc/{each}/mountinfo").read_text().splitlines())
            namespaces |= here
        except (OSError, StopIteration):
            continue
    directory = next(iter(group_directories(pid).values()))
    groups = sum(len(directories) for _, directories, _ in os.walk(directory))
    fds = {name: len(os.listdir(f"/proc/{each}/fd")) for name, each in ours(pid).items()}
    return Counts(len(below), fds, groups, mounts, len(namespaces))


class Mix:
    """The load. Everything odd ends up in :attr:`wrong`."""

    def __init__(self, url: str, seed: int) -> None:
        self.connections = Connections(url)
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def client(self, until: float) -> None:
        """One job after the other."""
        weights = [row[1] for row in MIX]
        while time.monotonic() < until:
            name, _, code, manifest, reasons = self.random.choices(MIX, weights)[0]
            body = json.dumps({"code": code, "manifest": manifest}).encode()
            how = self.random.random()
            try:
                if how < 0.08:
                    await self._cancelled(body)
                    name = "cancelled"
                elif how < 0.12:
                    await self._hung_up(body)
                    name = "hung up"
                else:
                    await self._run(name, body, reasons)
            except (OSError, ConnectionError) as error:
                self.wrong[f"{name}: {type(error).__name__}"] += 1
            self.done[name] += 1

    async def _ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        kind = "application/json" if body else ""
        parts = self.connections.parts
        status, _, answer = await self.connections.ask(request(parts, method, path, kind, body))
        return status, answer

    async def _run(self, name: str, body: bytes, reasons: set[str]) -> None:
        status, answer = await self._ask("POST", "/run", body)
        if status == 503:
            self.done["refused"] += 1
            await asyncio.sleep(0.2)
            return
        reason = json.loads(answer).get("exit_reason") if status == 200 else str(status)
        if reason == "server_fault" or status != 200 or (reasons and reason not in reasons):
            self.wrong[f"{name}: {reason}"] += 1

    async def _cancelled(self, body: bytes) -> None:
        status, answer = await self._ask("POST", "/submit", body)
        if status == 200:
            await asyncio.sleep(self.random.uniform(0, 0.2))
            job = json.loads(answer)["job_id"]
            status, _ = await self._ask("POST", f"/jobs/{job}/cancel")
            if status not in (200, 404, 409):
                self.wrong[f"cancel: {status}"] += 1

    async def _hung_up(self, body: bytes) -> None:
        parts = self.connections.parts
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(request(parts, "POST", "/run", "application/json", body))
        await asyncio.sleep(self.random.uniform(0, 0.1))
        writer.transport.abort()


async def soak(server: node.Node, seconds: float, clients: int) -> tuple[Mix, dict[str, Memory]]:
    """Load for a while, taking memory every few seconds."""
    mix = Mix(server.url, 1)
    until = time.monotonic() + seconds
    memory: dict[str, Memory] = {}
    tasks = [asyncio.create_task(mix.client(until)) for _ in range(clients)]
    while time.monotonic() < until:
        await asyncio.sleep(min(2.0, seconds / 20))
        for name, pid in ours(server.pid).items():
            if size := anonymous_bytes(pid):
                memory.setdefault(name, Memory()).samples.append((time.monotonic(), size))
        left = max(0, round(until - time.monotonic()))
        sys.stderr.write(f"\r{mix.done.total()} jobs, {left} s left, wrong: {dict(mix.wrong)} ")
    await asyncio.gather(*tasks)
    mix.connections.close()
    sys.stderr.write("\n")
    return mix, memory


def records(port: int) -> list[str]:
    """Jobs that http or the store still know, as sentences; each client has a record, too,
    and the node has one.
    """
    connection = Blocking(f"http://127.0.0.1:{port}")
    try:
        lines = connection.text("/metrics").splitlines()
    finally:
        connection.close()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith(KEPT))
    jobs, kept, clients = (int(values[name]) for name in KEPT)
    left = [f"{jobs} jobs are left in http"] if jobs else []
    return left + ([f"{kept - clients - 1} too many records in the store"] * (kept > clients + 1))


def quiet(server: node.Node, port: int, before: Counts) -> list[str]:
    """Wait until nothing is above ``before``; what still is after a while."""
    until = time.monotonic() + SETTLE_S
    while True:
        left = count(server.pid).above(before, slack=0)
        # A slot keeps its group for the next job: as many as there were jobs at once.
        left = [line for line in left if not line.startswith(("control groups", "descriptors"))]
        left += records(port)
        if not left or time.monotonic() > until:
            return left
        time.sleep(1)


def main() -> int:
    """Run, compare, judge."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    groups = _groups()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with node.running(CONFIG.format(port=port)) as server:
        # The first load brings pools and caches to their size: what follows is compared.
        asyncio.Runner(loop_factory=new_event_loop).run(soak(server, 10, options.clients))
        time.sleep(5)
        first = count(server.pid)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            mix, memory = runner.run(soak(server, options.minutes * 60, options.clients))
        leaks = quiet(server, port, first)
        last = count(server.pid)
        # Groups and their descriptors are kept for reuse, up to the jobs at once.
        most = options.clients * 2 + 16
        leaks += [
            line
            for line in last.above(first, slack=most * 20)
            if line.startswith(("control", "desc"))
        ]
    leaks += [f"left after the end: {name}" for name in sorted(_groups() - groups)]
    for name, taken in memory.items():
        print(f"{name:>12}: {taken.line(mix.done.total() / options.minutes)}")
        if taken.is_leak():
            leaks.append(f"memory of {name} grows by {taken.slope_kb_min():.0f} KiB/min")
            print(f"{'':>12}  KiB: {' '.join(str(size // 1024) for _, size in taken.lows())}")
    print(f"jobs: {dict(mix.done)}")
    print(f"counts before {first}\n   and after {last}")
    for line in leaks:
        print(f"LEAK {line}")
    for line, times in mix.wrong.items():
        print(f"WRONG {line} ({times} x)")
    print("clean" if not leaks and not mix.wrong else "not clean")
    return 1 if leaks or mix.wrong else 0


def _groups() -> set[str]:
    found = set()
    for root, directories, _ in os.walk("/sys/fs/cgroup"):
        found |= {f"{root}/{name}" for name in directories if name.startswith("sandrun-")}
    return {name for name in found if not _alive(name)}


def _alive(directory: str) -> bool:
    name = Path(directory).name.split("-")
    return len(name) > 1 and name[1].isdigit() and Path(f"/proc/{name[1]}").exists()


if __name__ == "__main__":
    sys.exit(main())
