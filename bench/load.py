"""A load generator for any sandrun server. I/O; needs nothing of sandrun but its URL.

::

    python -m bench.load URL --jobs N --clients C [--rate R] [--code CODE | --file F]
                             [--environment E] [--interpreter I] [--path /run]

Closed loop by default: C clients, each with one job at a time. With ``--rate`` the
jobs arrive at random moments, R a second on average, whether earlier ones are done
or not; latency then counts from the moment of arrival. 429 and 503 are counted as
refusals and not retried. Exit status 1 if any job failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import Connections, request
from bench.measure import percentile

try:
    from uvloop import new_event_loop
except ImportError:  # the load is then a little heavier on this side
    from asyncio import new_event_loop

REFUSED = (429, 503)


@dataclass
class Outcome:
    """What came back."""

    latencies: list[float] = field(default_factory=list)  # seconds, of jobs that ran
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def jobs_per_second(self) -> float:
        """Of jobs that ran."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def failed(self) -> int:
        """Neither run to the end nor refused."""
        good = sum(self.statuses[str(code)] for code in (200, *REFUSED))
        return self.statuses.total() - good


class Load:
    """Sends ``message`` again and again. ``jobs``: how many, or None until :attr:`stop`."""

    def __init__(self, url: str, message: bytes, jobs: int | None) -> None:
        self.connections = Connections(url)
        self.message = message
        self.left = math.inf if jobs is None else jobs
        self.outcome = Outcome()
        self.stop = False

    async def one(self, start: float) -> None:
        """One job; its latency counts from ``start``."""
        try:
            status, _, body = await self.connections.ask(self.message)
        except (OSError, ConnectionError) as error:
            self.outcome.statuses[type(error).__name__] += 1
            return
        key = str(status)
        if status == 200:
            reason = _reason(body)
            key = key if reason in ("exited", "") else reason
            self.outcome.latencies.append(time.perf_counter() - start)
        self.outcome.statuses[key] += 1

    async def _client(self) -> None:
        while self.left > 0 and not self.stop:
            self.left -= 1
            await self.one(time.perf_counter())

    async def closed(self, clients: int) -> Outcome:
        """``clients`` loops, each with one job at a time."""
        start = time.perf_counter()
        await asyncio.gather(*(self._client() for _ in range(clients)))
        return self._end(start)

    async def open(self, rate: float, source: random.Random) -> Outcome:
        """Poisson arrivals."""
        start = due = time.perf_counter()
        tasks = set()
        while self.left > 0 and not self.stop:
            self.left -= 1
            due += source.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self.one(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return self._end(start)

    def _end(self, start: float) -> Outcome:
        self.outcome.seconds = time.perf_counter() - start
        self.connections.close()
        return self.outcome


def _reason(body: bytes) -> str:
    # Cheaper than parsing the whole answer; the field is always there.
    _, found, rest = body.partition(b'"exit_reason":"')
    return rest.split(b'"', 1)[0].decode() if found else ""  # /submit


# ── on the terminal ──────────────────────────────────────────────────────────


def histogram(latencies: list[float], width: int = 50) -> list[str]:
    """Lines of a histogram with logarithmic bins, two to a doubling."""
    if not latencies:
        return []
    step = 2**0.5
    bins = Counter(math.floor(math.log(max(value, 1e-6)) / math.log(step)) for value in latencies)
    most = max(bins.values())
    lines = []
    for index in range(min(bins), max(bins) + 1):
        count = bins[index]
        bar = "█" * round(width * count / most) or ("▏" if count else "")
        lines.append(f"{step**index * 1000:9.2f} ms  {bar} {count or ''}")
    return lines


def summary(outcome: Outcome) -> list[str]:
    """What a person wants to know."""
    count, rate = len(outcome.latencies), outcome.jobs_per_second
    answers = ", ".join(f"{key}: {n}" for key, n in outcome.statuses.most_common())
    lines = [f"{count} jobs in {outcome.seconds:.2f} s: {rate:.1f} jobs/s", f"answers: {answers}"]
    if outcome.latencies:
        shares = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max"))
        lines.append(
            ", ".join(f"{n} {percentile(outcome.latencies, s) * 1000:.2f} ms" for s, n in shares)
        )
    return lines


async def _progress(load: Load, jobs: int) -> None:
    start = time.perf_counter()
    while True:
        done = load.outcome.statuses.total()
        share = done / jobs
        bar = ("█" * round(30 * share)).ljust(30, "·")
        rate = done / max(1e-9, time.perf_counter() - start)
        sys.stderr.write(f"\r{bar} {done}/{jobs}  {rate:.0f}/s ")
        sys.stderr.flush()
        await asyncio.sleep(0.2)


def main(argv: list[str] | None = None) -> int:
    """Parse, load, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.load", description=__doc__.split("\n")[0]
    )
    parser.add_argument("url")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.0, help="arrivals a second: open loop")
    parser.add_argument("--code", default="print('hello')")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--interpreter")
    parser.add_argument("--environment")
    parser.add_argument("--path", default="/run", choices=("/run", "/submit"))
    options = parser.parse_args(argv)
    body: dict[str, object] = {"code": options.file.read_text() if options.file else options.code}
    if options.interpreter:
        body["interpreter"] = options.interpreter
    if options.environment:
        body["manifest"] = {"environment": options.environment}
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        outcome = runner.run(_main(options, json.dumps(body).encode()))
    print("\n".join([*histogram(outcome.latencies), *summary(outcome)]))
    return 1 if outcome.failed else 0


async def _main(options: argparse.Namespace, body: bytes) -> Outcome:
    load = Load(options.url, b"", options.jobs)
    parts = load.connections.parts
    load.message = request(parts, "POST", options.path, "application/json", body)
    progress = asyncio.create_task(_progress(load, options.jobs)) if sys.stderr.isatty() else None
    try:
        if options.rate:
            return await load.open(options.rate, random.Random())
        return await load.closed(options.clients)
    finally:
        if progress:
            progress.cancel()
            sys.stderr.write("\r\033[K")


if __name__ == "__main__":
    sys.exit(main())
