"""The figures, one function each, in the order of issue 3's item 5. Runs as: root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import bare, edge, installs, jobs, node, peers, zygotes
from bench.client import Blocking, request
from bench.jobs import TRUE, Job
from bench.load import Load, Outcome
from bench.measure import Meter, descendants, median, percentile, pss_bytes
from bench.report import Report, Row
from sandrun.config import Config, parse
from sandrun.pool import environments
from sandrun.pool.lifecycle import State

CONFIG = """\
[rate_limit]
enabled = false
[pool]
ready = {ready}
ready_max = {ready_max}
capacity = {capacity}
environments_dir = "{directory}"
[interpreters.python3]
command = ["python3"]
extensions = [".py"]
mode = "exec"
[environments.default]
ready = {ready_exec}
[environments.door]
mode = "door"
[environments.fork]
mode = "fork"
"""
CONFIG_DATA = """\
[environments.data]
packages = ["numpy", "pandas"]
preload = ["numpy", "pandas"]
mode = "fork"
"""
SETTLE_S = 0.05  # between requests: a refill takes some ten milliseconds


@dataclass(frozen=True)
class Setting:
    """How much is measured, and where things are."""

    report: Report
    scratch: Path  # scripts, on a tmpfs
    environments_dir: Path
    data_python: str  # interpreter of the data environment, or "" without one
    quick: bool

    @property
    def samples(self) -> int:
        """Of one latency."""
        return 30 if self.quick else 100

    @property
    def seconds(self) -> float:
        """Of one throughput."""
        return 2.0 if self.quick else 4.0

    def config(self, *, ready: int = 6, ready_max: int = 32, data: bool = True) -> str:
        """TOML of a node whose environments are named after their start mode."""
        text = CONFIG.format(
            ready=ready,
            ready_max=ready_max,
            ready_exec=2 * ready,  # the pool halves it: generic zygotes are the spare ones
            capacity=128,
            directory=self.environments_dir,
        )
        return text + (CONFIG_DATA if data and self.data_python else "")

    def sandboxed(self) -> list[tuple[str, Job]]:
        """What is measured: (name of the row, job)."""
        rows = [
            ("true exec", TRUE),
            ("hello exec", jobs.hello("default")),
            ("hello door", jobs.hello("door")),
            ("hello fork", jobs.hello("fork")),
        ]
        return rows + ([("data fork", jobs.data("data"))] if self.data_python else [])

    def bare(self, job: Job) -> tuple[str, ...]:
        """The baseline's command line."""
        return job.bare(
            self.scratch, self.data_python if job.name == "data" else "/usr/bin/python3"
        )


def prepare_data(config: Config) -> str:
    """Build the data environment if it is not there; its interpreter, or "" with the reason."""
    directories, infos = environments.ensure(config, lambda *_: None)
    if not directories.get("data"):
        print(f"no numpy+pandas figures: {next(i.fault for i in infos if i.name == 'data')}")
        return ""
    return f"{directories['data']}/bin/python3"


def directories_of(config: Config) -> dict[str, str]:
    """Host directories of environments that are built already."""
    return environments.ensure(config, lambda *_: None)[0]


class Bare:
    """Samples of the baseline, taken between ours."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.samples: dict[str, list[bare.Run]] = {}

    def take(self, job: Job) -> None:
        """One more."""
        self.samples.setdefault(job.name, []).append(bare.run(self.setting.bare(job)))

    def walls(self, job: Job) -> list[float]:
        """Seconds."""
        return [run.wall_s for run in self.samples[job.name]]

    def rows(self, suite: str) -> Iterator[Row]:
        """The baseline itself."""
        for name, runs in self.samples.items():
            yield Row(
                suite,
                f"{name} bare",
                median(run.wall_s for run in runs) * 1000,
                "ms",
                1.0,
                percentile((run.wall_s for run in runs), 0.99) * 1000,
                median(run.cpu_s for run in runs) * 1000,
                len(runs),
            )


# ── (a) at the zygote ────────────────────────────────────────────────────────


def zygote(setting: Setting) -> None:
    """Dispatch → result known, pool full and quiet; then jobs back to back for the CPU."""
    _with_pool(setting, setting.config(), _zygote)


def _with_pool(setting: Setting, text: str, work: Callable, **options: bool) -> None:
    from uvloop import new_event_loop

    config = parse(text)

    async def main() -> None:
        async with zygotes.pool(config, directories_of(config), **options) as driver:
            await work(setting, driver)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


async def _zygote(setting: Setting, driver: zygotes.Driver) -> None:
    bares = Bare(setting)
    rows = setting.sandboxed()
    samples: dict[str, list[float]] = {name: [] for name, _ in rows}
    await driver.settled()
    for round_ in range(setting.samples):
        for name, job in rows:
            if name.startswith("data") and round_ % 3:
                continue  # a bare run takes a third of a second
            bares.take(job)
            await driver.settled()
            samples[name].append(await driver.run(job))
    for row in bares.rows("zygote"):
        setting.report.add(row)
    for name, job in rows:
        setting.report.latency("zygote", name, samples[name], bares.walls(job))
    for name, job in rows:
        await _back_to_back(setting, driver, name, job)


async def _back_to_back(setting: Setting, driver: zygotes.Driver, name: str, job: Job) -> None:
    """Throughput of the pool alone with 4 jobs at a time, and CPU per job."""
    before = bare.throughput(setting.bare(job), 2, setting.seconds / 3)
    await driver.settled()
    meter = Meter(os.getpid())
    start = meter.now()
    until = time.perf_counter() + setting.seconds
    walls: list[float] = []

    async def loop() -> None:
        while time.perf_counter() < until:
            walls.append(await driver.run(job))

    await asyncio.gather(*(loop() for _ in range(4)))
    seconds = time.perf_counter() - until + setting.seconds
    await driver.settled()
    used = meter.now() - start
    after = bare.throughput(setting.bare(job), 2, setting.seconds / 3)
    setting.report.add(
        Row(
            "zygote rate",
            name,
            len(walls) / seconds,
            "jobs/s",
            len(walls) / seconds / ((before + after) / 2),
            percentile(walls, 0.99) * 1000,
            used.total / len(walls) * 1000,
            len(walls),
            f"bare {(before + after) / 2:.0f}/s, kernel threads "
            f"{used.kernel / len(walls) * 1000:.2f} ms, others {used.others:.1f} CPUs",
        )
    )


# ── (b) through HTTP ─────────────────────────────────────────────────────────


def run(setting: Setting) -> None:
    """``POST /run`` and submit + wait over a kept connection, pool full; then open loop."""
    with node.running(setting.config()) as server:
        client = Blocking(server.url)
        bares = Bare(setting)
        rows = setting.sandboxed()
        ran: dict[str, list[float]] = {name: [] for name, _ in rows}
        waited: dict[str, list[float]] = {name: [] for name, _ in rows}
        _wait_ready(client, len(rows))
        for round_ in range(setting.samples):
            for name, job in rows:
                if name.startswith("data") and round_ % 3:
                    continue
                bares.take(job)
                time.sleep(SETTLE_S)
                ran[name].append(_timed(_run_once, client, job))
                bares.take(job)
                time.sleep(SETTLE_S)
                waited[name].append(_timed(_submit_and_wait, client, job))
        client.close()
        for row in bares.rows("run"):
            setting.report.add(row)
        for suite, samples in (("run", ran), ("submit+wait", waited)):
            for name, job in rows:
                setting.report.latency(suite, name, samples[name], bares.walls(job))
        for name, job in rows:
            for rate in (20,) if setting.quick else (20, 50, 80):
                _open_loop(setting, server.url, name, job, rate, bares.walls(job))


def _wait_ready(client: Blocking, kinds: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        _, known = client.send("GET", "/environments")
        if known["stats"]["warm"] >= 6 * min(kinds, 4):
            return
        time.sleep(0.1)
    raise RuntimeError("the pool does not fill")


def _timed(work: Callable[[Blocking, Job], None], client: Blocking, job: Job) -> float:
    start = time.perf_counter()
    work(client, job)
    return time.perf_counter() - start


def _run_once(client: Blocking, job: Job) -> None:
    status, answer = client.send("POST", "/run", *job.body)
    if status != 200 or answer["exit_reason"] != "exited" or answer["stdout"] != job.expect:
        raise RuntimeError(f"{job.name}: {status} {answer}")


def _submit_and_wait(client: Blocking, job: Job) -> None:
    """Long polls of the log until it says that the job has ended."""
    status, answer = client.send("POST", "/submit", *job.body)
    if status != 200:
        raise RuntimeError(f"{job.name}: {status} {answer}")
    cursor, ended = 0, False
    while not ended:
        path = f"/logs/{answer['job_id']}?since={cursor}&wait=30"
        _, news = client.send("GET", path)
        cursor, ended = news["cursor"], news["status"] not in ("queued", "running")


def _open_loop(
    setting: Setting, url: str, name: str, job: Job, rate: int, walls: list[float]
) -> None:
    async def main() -> Outcome:
        load = Load(url, b"", int(rate * setting.seconds))
        load.message = request(load.connections.parts, "POST", "/run", *job.body)
        return await load.open(rate, random.Random(1))

    outcome = _with_loop(main())
    setting.report.latency(
        "open loop", f"{name} at {rate}/s", outcome.latencies, walls, _answers(outcome)
    )


def _with_loop(work) -> Outcome:
    from uvloop import new_event_loop

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


def _answers(outcome: Outcome) -> str:
    odd = {key: count for key, count in outcome.statuses.items() if key != "200"}
    return f"not 200: {odd}" if odd else ""


# ── (c) throughput ───────────────────────────────────────────────────────────


def throughput(setting: Setting) -> None:
    """Closed loop through ``/run`` at 1 to 64 clients, each between two bare runs."""
    with node.running(setting.config(ready=8)) as server:
        client = Blocking(server.url)
        _wait_ready(client, 4)
        client.close()
        meter = Meter(server.pid)
        for name, job in setting.sandboxed():
            best = None
            for clients in (1, 4, 16) if setting.quick else (1, 2, 4, 8, 16, 64):
                row = _rate(setting, server.url, meter, name, job, clients)
                setting.report.add(row)
                best = row if best is None or (row.ratio or 0) > (best.ratio or 0) else best
            assert best is not None
            setting.report.add(_best(best, name))


def _best(row: Row, name: str) -> Row:
    return Row(row.suite, f"{name} best", row.value, row.unit, row.ratio, cpu_ms=row.cpu_ms)


def _rate(setting: Setting, url: str, meter: Meter, name: str, job: Job, clients: int) -> Row:
    async def main() -> Outcome:
        load = Load(url, b"", None)
        load.message = request(load.connections.parts, "POST", "/run", *job.body)
        asyncio.get_running_loop().call_later(setting.seconds, setattr, load, "stop", True)
        return await load.closed(clients)

    argv = setting.bare(job)
    before = bare.throughput(argv, 2, setting.seconds / 4)
    start = meter.now()
    outcome = _with_loop(main())
    used = meter.now() - start
    after = bare.throughput(argv, 2, setting.seconds / 4)
    done = max(1, len(outcome.latencies))
    base = (before + after) / 2
    return Row(
        "throughput",
        f"{name}, {clients} clients",
        outcome.jobs_per_second,
        "jobs/s",
        outcome.jobs_per_second / base,
        percentile(outcome.latencies, 0.99) * 1000,
        used.total / done * 1000,
        len(outcome.latencies),
        f"p50 {median(outcome.latencies) * 1000:.1f} ms, bare {base:.0f}/s, "
        f"others {used.others:.1f} CPUs {_answers(outcome)}",
    )


# ── (d) creation and idle memory ─────────────────────────────────────────────


def scale(setting: Setting) -> None:
    """CPU to make and unmake one idle zygote, and its PSS, with so many ready."""
    for kind in ("exec", "fork", "door"):
        first: float | None = None
        levels = (10, 100) if setting.quick else (10, 100, 1000)
        for level in levels:
            if kind == "door" and level > 100:
                continue  # memory: 8 GB
            with contextlib.suppress(TimeoutError):
                first = _with_scale(setting, kind, level, first)


def _with_scale(setting: Setting, kind: str, level: int, first: float | None) -> float | None:
    environment = "default" if kind == "exec" else kind
    text = f"""\
[pool]
ready = 2
ready_max = {level + 1}
capacity = {level + 64}
template_jobs = 1000000
[interpreters.python3]
command = ["python3"]
mode = "exec"
[environments.default]
ready = {2 * level if kind == "exec" else 2}
"""
    if kind != "exec":
        text += f'[environments.{kind}]\nmode = "{kind}"\nready = {level}\n'
    costs: list[float] = []

    async def work(_: Setting, driver: zygotes.Driver) -> None:
        wanted = zygotes.kind_of(
            driver.manager, environment, "exec" if kind == "exec" else "python3"
        )
        for other in driver.manager.kinds:
            if other is not wanted:
                other.ready = 0
        await driver.settled()
        costs.append(await _creation(driver, wanted))
        pids = [z.pid for z in driver.manager.zygotes.values() if z.kind is wanted]
        each = [
            pss_bytes(pid) + sum(pss_bytes(child) for child in descendants(pid))
            for pid in pids[:: max(1, len(pids) // 50)]
        ]
        own = [pss_bytes(pid) for pid in pids[:: max(1, len(pids) // 50)]]
        setting.report.add(
            Row(
                "scale",
                f"{kind} PSS at {level}",
                median(each) / 2**20,
                "MiB",
                n=len(each),
                note=f"of which PID 1 {median(own) / 2**20:.2f} MiB",
            )
        )

    _with_pool(setting, text, work, keep_files=False)
    base = first if first is not None else costs[0]
    setting.report.add(
        Row(
            "scale",
            f"{kind} creation at {level}",
            costs[0] * 1000,
            "ms CPU",
            costs[0] / base,
            note=f"make and unmake; ratio to that at {10}",
        )
    )
    return base


async def _creation(driver: zygotes.Driver, kind) -> float:
    """CPU seconds to end and replace one idle zygote."""
    meter = Meter(os.getpid())
    start = meter.now()
    done = 0
    for _ in range(5):
        victims = [
            z for z in driver.manager.zygotes.values() if z.kind is kind and z.state is State.LEASED
        ][:8]
        for zygote_ in victims:
            leased = driver.ready[kind.environment, kind.warm].pop(zygote_.id)
            driver.manager.kill(zygote_.id)
            leased.close()
            done += 1
        driver.manager.refill()
        await asyncio.sleep(0)
        await driver.settled()
    return (meter.now() - start).total / done


# ── idle ─────────────────────────────────────────────────────────────────────


def idle(setting: Setting) -> None:
    """How often our processes run when nobody asks for anything."""
    with node.running(setting.config()) as server:
        client = Blocking(server.url)
        _wait_ready(client, 4)
        client.close()
        time.sleep(2)
        seconds = 5.0
        before = _switches(server.pid)
        time.sleep(seconds)
        after = _switches(server.pid)
        woken = {pid: after[pid] - before.get(pid, 0) for pid in after}
        total = sum(woken.values()) / seconds
        note = f"of {len(woken)} processes; cgroup and PSS: " + ", ".join(
            f"{name} {size / 2**20:.1f} MiB" for name, size in _sizes(server.pid)
        )
        setting.report.add(Row("idle", "wake-ups", total, "/s", n=len(woken), note=note))


def _switches(pid: int) -> dict[int, int]:
    found = {}
    for each in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    found[each] = int(line.split()[1])
    return found


def _sizes(pid: int) -> list[tuple[str, int]]:
    sizes: list[tuple[str, int]] = [("supervisor", pss_bytes(pid))]
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            name = Path(f"/proc/{child}/comm").read_text().strip()
            if b"sandrun.http" in line:
                sizes.append((name.removeprefix("sandrun-"), pss_bytes(child)))  # http, standby
            elif name == "sandrun-spawner":
                sizes.append(("spawner", pss_bytes(child)))
    return sizes


# ── (e) peers ────────────────────────────────────────────────────────────────


def others(setting: Setting) -> None:
    """Sandboxes on PATH, latency between bare runs, and 4 at a time."""
    for name, runner in peers.found(setting.scratch):
        for job in (TRUE, jobs.hello("default")):
            argv = setting.bare(job)
            bares = Bare(setting)
            samples: list[bare.Run] = []
            try:
                runner(argv)
                for _ in range(setting.samples):
                    bares.take(job)
                    samples.append(runner(argv))
            except (RuntimeError, OSError) as error:
                print(f"  {name} does not run {job.name} here: {error}")
                continue
            finally:
                if job is not TRUE and hasattr(runner, "close"):
                    runner.close()
            ours = [sample.wall_s for sample in samples]
            base = bares.walls(job)
            setting.report.add(
                Row(
                    "peers",
                    f"{job.name} {name}",
                    median(ours) * 1000,
                    "ms",
                    median(ours) / median(base),
                    percentile(ours, 0.99) * 1000,
                    n=len(ours),  # no CPU: who waits for whose child differs from peer to peer
                    ratio_low=percentile(ours, 0.1) / percentile(base, 0.1),
                )
            )


SUITES: dict[str, Callable[[Setting], None]] = {
    "zygote": zygote,
    "run": run,
    "throughput": throughput,
    "scale": scale,
    "idle": idle,
    "edge": edge.edge,
    "installs": installs.installs,
    "peers": others,
}
