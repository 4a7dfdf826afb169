"""Ten times more jobs than fit: what those that get in notice of it. Runs as: root. I/O.

::

    python -m bench.overload [--seconds N] [--factor F]

Against a server of our own, in one run:

1. capacity: jobs per second with more clients than sandboxes;
2. just at capacity: few clients, two for each processor, which keep it busy;
3. as many arrive as it can do, at random moments. Only printed: what they notice hangs
   on chance, and on how soon others are refused;
4. overload: ``factor`` times as many. The first seconds, in which a queue may still be
   a burst, are not counted;
5. after it: one job at a time.

Held against the promise: latency of jobs that are admitted under overload stays
within twice that just at capacity (median and 95th percentile); refusals are fast and say
when to come again; no job ends otherwise than by itself, but those that use more
memory than their own limit; jobs that were running before all this never notice.
Exit status 1 if any of it is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from bench import node
from bench.client import Connections, request
from bench.load import REFUSED, new_event_loop
from bench.measure import percentile

CONFIG = """\
[rate_limit]
enabled = false
[http]
max_connections_per_address = 12000
[retention]
finished_seconds = 5
failed_seconds = 5
[pool]
drain_seconds = 1
"""
HELLO = "print('hello')"
LARGE = "x = bytearray(200 << 20)"  # within its limit
HOG = "x = bytearray(200 << 20)"  # over its limit of 64 MiB
LONG = "import time\nwhile True: print(end='.', flush=True); time.sleep(0.1)"
# (share, code, manifest, how it ends)
MIX = (
    (0.94, HELLO, {}, "exited"),
    (0.03, LARGE, {"memory_mb": 256}, "exited"),
    (0.03, HOG, {"memory_mb": 64}, "out_of_memory"),
)
CLIENTS = 48
FEW_PER_PROCESSOR = 2
SETTLE_S = 12.0  # of overload: a queue is a burst for 5 s, and is worked off in as many
LATENCY_FACTOR = 2.0
REFUSAL_P99_S = 0.5


@dataclass
class Seen:
    """What came back, after the settling."""

    latencies: list[float] = field(default_factory=list)  # of HELLO, from the moment it was due
    queued: list[float] = field(default_factory=list)  # of that: before its first process ran
    refusals: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """For people."""
        shares = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        times = [f"{n} {percentile(self.latencies, s) * 1000:.0f} ms" for s, n in shares]
        times += [f"p50 before it started {percentile(self.queued, 0.5) * 1000:.0f} ms"]
        refused = f"{len(self.refusals)} refused"
        if self.refusals:
            refused += f" in {percentile(self.refusals, 0.5) * 1000:.1f} ms"
            refused += f" (p99 {percentile(self.refusals, 0.99) * 1000:.0f} ms)"
        return f"{len(self.latencies)} jobs, {', '.join(times)}; {refused}; {dict(self.ends)}"


class Traffic:
    """Arrivals at random moments; ``url`` is the server's."""

    def __init__(self, url: str, seed: int) -> None:
        self.connections = Connections(url)
        self.random = random.Random(seed)
        self.messages = [
            request(
                self.connections.parts, "POST", "/run", "application/json",
                json.dumps({"code": code, "manifest": manifest}).encode(),
            )
            for _, code, manifest, _ in MIX
        ]  # fmt: skip

    async def one(self, kind: int, due: float, seen: Seen | None) -> bool:
        """One job, due at a moment of ``perf_counter``; not counted without ``seen``.

        Whether it was admitted.
        """
        sent = time.perf_counter()
        try:
            status, head, body = await self.connections.ask(self.messages[kind])
        except OSError as error:
            if seen is not None:
                seen.wrong[type(error).__name__] += 1
            return False
        now = time.perf_counter()
        if seen is None:
            return status not in REFUSED
        if status in REFUSED:
            seen.refusals.append(now - sent)
            if b"\r\nretry-after:" not in head.lower():
                seen.wrong[f"{status} without Retry-After"] += 1
            seen.ends[json.loads(body)["code"]] += 1
            return False
        answer = json.loads(body)
        end = answer.get("exit_reason", str(status))
        seen.ends[end] += 1
        if end != MIX[kind][3]:
            seen.wrong[f"{MIX[kind][1][:24]!r} ended as {end}"] += 1
        elif kind == 0:
            seen.latencies.append(now - due)
            times = answer["timeline"]
            seen.queued.append(times["started"] - times["submitted"])
        return True

    def _kind(self) -> int:
        (kind,) = self.random.choices(range(len(MIX)), [share for share, *_ in MIX])
        return kind

    async def closed(self, seconds: float, clients: int, seen: Seen | None = None) -> float:
        """So many clients with one job of the mix each at a time. Jobs per second."""
        start, done = time.perf_counter(), 0

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < start + seconds:
                if await self.one(self._kind(), time.perf_counter(), seen):
                    done += 1
                else:
                    await asyncio.sleep(self.random.uniform(0.1, 0.3))

        await asyncio.gather(*(client() for _ in range(clients)))
        return done / (time.perf_counter() - start)

    async def open(self, rate: float, seconds: float, settle_s: float = 0.0) -> Seen:
        """``rate`` arrivals a second, of the mix."""
        seen = Seen()
        start = due = time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        while due < start + settle_s + seconds:
            due += self.random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            kind = self._kind()
            counted = seen if due > start + settle_s else None
            task = asyncio.create_task(self.one(kind, due, counted))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return seen


async def measure(url: str, seconds: float, factor: float) -> list[str]:
    """All of it; what does not hold, as sentences."""
    traffic = Traffic(url, 1)
    steady = await _submit(traffic, LONG)
    await traffic.closed(5, CLIENTS)  # pools and caches come to their size
    capacity = await traffic.closed(seconds, CLIENTS)
    print(f"capacity: {capacity:.0f} jobs/s")
    at = Seen()
    reached = await traffic.closed(seconds, FEW_PER_PROCESSOR * (os.cpu_count() or 1), at)
    print(f"just at capacity ({reached:.0f} jobs/s): {at.line()}")
    arriving = await traffic.open(capacity, seconds, settle_s=SETTLE_S)
    print(f"as many arrive: {arriving.line()}")
    over = await traffic.open(capacity * factor, seconds, settle_s=SETTLE_S)
    print(f"at {factor:g} x capacity: {over.line()}")
    after = Seen()
    for _ in range(20):
        await traffic.one(0, time.perf_counter(), after)
    print(f"after it: {after.line()}")
    wrong = [
        f"{name} ({n} x)" for seen in (at, arriving, over, after) for name, n in seen.wrong.items()
    ]
    for share, name in ((0.5, "median"), (0.95, "95th percentile")):
        before, now = percentile(at.latencies, share), percentile(over.latencies, share)
        if not now <= LATENCY_FACTOR * before:
            wrong.append(f"{name} {now * 1000:.0f} ms, at capacity {before * 1000:.0f} ms")
    if not over.refusals:
        wrong.append("nobody was refused: that was no overload")
    elif percentile(over.refusals, 0.99) > REFUSAL_P99_S:
        wrong.append(f"refusals take up to {percentile(over.refusals, 0.99) * 1000:.0f} ms")
    if after.refusals:
        wrong.append("refused after the overload had ended")
    status = json.loads(await _get(traffic, f"/status/{steady}"))["status"]
    if status != "running":
        wrong.append(f"the job that ran all the time is {status}")
    traffic.connections.close()
    return wrong


async def _submit(traffic: Traffic, code: str) -> str:
    body = json.dumps({"code": code, "manifest": {"timeout": 3600}}).encode()
    message = request(traffic.connections.parts, "POST", "/submit", "application/json", body)
    _, _, answer = await traffic.connections.ask(message)
    return str(json.loads(answer)["job_id"])


async def _get(traffic: Traffic, path: str) -> bytes:
    return (await traffic.connections.ask(request(traffic.connections.parts, "GET", path)))[2]


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.overload", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--factor", type=float, default=10.0)
    options = parser.parse_args()
    with node.running(CONFIG) as server, asyncio.Runner(loop_factory=new_event_loop) as runner:
        wrong = runner.run(measure(server.url, options.seconds, options.factor))
        wrong += [line.strip() for line in server.log if "refused" in line or "ERROR" in line]
    for line in wrong:
        print(f"WRONG {line}")
    print("not as promised" if wrong else "as promised")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
