"""What was measured, as a table on the terminal and an HTML page with charts. Pure but for
writing the files."""

from __future__ import annotations

import html
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import median, percentile


@dataclass(frozen=True)
class Row:
    """One figure. ``ratio``: to the baseline of the same run; seconds, or jobs per second."""

    suite: str
    what: str
    value: float
    unit: str
    ratio: float | None = None
    p99: float | None = None
    cpu_ms: float | None = None  # per job
    n: int = 0
    note: str = ""
    ratio_low: float | None = None  # of the 10th percentiles: what a quiet machine would show


@dataclass(frozen=True)
class Target:
    """One line of issue 3 or 5. ``find``: (suite, what) of the row; ``field`` is what is bound."""

    text: str
    find: tuple[str, str]
    bound: float
    at_least: bool = False
    field: str = "ratio"


TARGETS = (
    Target("hello.py at the zygote, fork, <= 0.10 x bare", ("zygote", "hello fork"), 0.10),
    Target("hello.py through /run, fork, <= 0.25 x bare", ("run", "hello fork"), 0.25),
    Target("numpy+pandas through /run, <= 0.02 x bare", ("run", "data fork"), 0.02),
    Target("/bin/true through /run, <= 4 x bare", ("run", "true exec"), 4.0),
    Target(
        "hello jobs/s through HTTP, fork, >= 2 x bare",
        ("throughput", "hello fork best"),
        2.0,
        at_least=True,
    ),
    Target(
        "numpy+pandas jobs/s, >= 20 x bare", ("throughput", "data fork best"), 20.0, at_least=True
    ),
    Target("idle zygote, fork, <= 2 MB PSS", ("scale", "fork PSS at 10"), 2.0, field="value"),
    Target("idle zygote, door, <= 8 MB PSS", ("scale", "door PSS at 10"), 8.0, field="value"),
    Target("creation at 1,000 ready, <= 1.3 x that at 10", ("scale", "exec creation at 1000"), 1.3),
    Target(
        "a hot hit of requirements adds <= 5 ms",
        ("installs", "hit of 1 adds"),
        5.0,
        field="value",
    ),
    Target("GET /status, >= 0.6 x uvicorn+h11", ("edge", "GET /status"), 0.6, at_least=True),
    Target("100 MB upload, >= 0.7 x copy", ("edge", "100 MB upload"), 0.7, at_least=True),
    Target("write to WebSocket, <= 2 ms", ("edge", "write to WebSocket"), 2.0, field="value"),
    Target("follower, <= 64 KiB", ("edge", "followers of one log"), 64.0, field="value"),
    Target("idle server, wake-ups a second", ("idle", "wake-ups"), 0.5, field="value"),
)


class Report:
    """Collects rows and prints them as they come."""

    def __init__(self, machine: dict[str, str]) -> None:
        self.machine = machine
        self.rows: list[Row] = []
        for key, value in machine.items():
            print(f"{key:>8}  {value}")
        print(_line("what", "value", "x bare", "at p10", "p99", "CPU/job", "n", "note"))

    def add(self, row: Row) -> None:
        """One more figure."""
        self.rows.append(row)
        print(_format(row), flush=True)

    def latency(
        self, suite: str, what: str, samples: list[float], bare: list[float], note: str = ""
    ) -> None:
        """Seconds of ours, and those of the baseline that stood between them."""
        self.add(
            Row(
                suite,
                what,
                median(samples) * 1000,
                "ms",
                median(samples) / median(bare),
                percentile(samples, 0.99) * 1000,
                n=len(samples),
                note=note,
                ratio_low=percentile(samples, 0.1) / percentile(bare, 0.1),
            )
        )

    def targets(self) -> list[tuple[str, str, str]]:
        """(target, measured, "met" / "missed" / "not measured")."""
        found = {(row.suite, row.what): row for row in self.rows}
        lines = []
        for target in TARGETS:
            row = found.get(target.find)
            value = getattr(row, target.field) if row else None
            low = f" ({row.ratio_low:.3g} at p10)" if row and row.ratio_low else ""
            if value is None:
                lines.append((target.text, "-", "not measured"))
                continue
            met = value >= target.bound if target.at_least else value <= target.bound
            lines.append((target.text, f"{value:.3g}{low}", "met" if met else "MISSED"))
        return lines

    def print_targets(self) -> None:
        """The table of issue 3."""
        print("\ntarget / measured / met?")
        for text, value, met in self.targets():
            print(f"  {text:<48} {value:<22} {met}")

    def write(self, directory: Path) -> Path:
        """JSON and HTML; the page's path."""
        directory.mkdir(parents=True, exist_ok=True)
        name = self.machine["date"].replace(" ", "-").replace(":", "")[:17]
        rows = [asdict(row) for row in self.rows]
        data = {"machine": self.machine, "rows": rows, "targets": self.targets()}
        (directory / f"{name}.json").write_text(json.dumps(data, indent=1))
        page = directory / f"{name}.html"
        page.write_text(_page(self))
        return page


def saved(file: Path) -> Report:
    """A report that :meth:`Report.write` wrote, without printing it again."""
    data = json.loads(file.read_text())
    report = Report.__new__(Report)
    report.machine, report.rows = data["machine"], [Row(**row) for row in data["rows"]]
    return report


README_SUITES = ("zygote", "run", "open loop", "throughput", "scale", "idle", "peers")


def markdown(report: Report) -> str:
    """The README's table: targets, then the figures a reader compares."""
    facts = ", ".join(f"{key} {value}" for key, value in report.machine.items() if key != "load")
    lines = [f"Measured on {facts}.", "", "| target | measured | |", "|---|---|---|"]
    lines += [f"| {text} | {value} | {met} |" for text, value, met in report.targets()]
    lines += ["", "| figure | value | × bare | p99 | CPU per job |", "|---|---|---|---|---|"]
    for suite in README_SUITES:
        for row in report.rows:
            if row.suite == suite:
                what, value, ratio, _, p99, cpu, *_ = _cells(row)
                lines.append(f"| {what} | {value} | {ratio} | {p99} | {cpu} |")
    return "\n".join(lines)


def _line(*words: str) -> str:
    what, value, ratio, low, p99, cpu, n, note = words
    return f"  {what:<34} {value:>13} {ratio:>7} {low:>7} {p99:>11} {cpu:>9} {n:>6}  {note}"


def _format(row: Row) -> str:
    return _line(*_cells(row))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.suite}: {row.what}",
        f"{row.value:.4g} {row.unit}",
        "" if row.ratio is None else f"{row.ratio:.3f}",
        "" if row.ratio_low is None else f"{row.ratio_low:.3f}",
        "" if row.p99 is None else f"{row.p99:.2f} ms",
        "" if row.cpu_ms is None else f"{row.cpu_ms:.2f} ms",
        str(row.n or ""),
        row.note,
    )


# ── the page ─────────────────────────────────────────────────────────────────

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}table{border-collapse:collapse;width:100%}td,th{text-align:right;
padding:.15rem .5rem;border-bottom:1px solid #8884}td:first-child,th:first-child,td:last-child
{text-align:left}.met{color:#1a7f37}.MISSED{color:#cf222e}svg{width:100%;height:auto}
svg text{font:12px system-ui;fill:currentColor}
"""


def _page(report: Report) -> str:
    facts = " &middot; ".join(html.escape(f"{k} {v}") for k, v in report.machine.items())
    targets = "".join(
        f"<tr><td>{html.escape(t)}<td>{v}<td class='{m.split()[0]}'>{m}"
        for t, v, m in report.targets()
    )
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in _cells(row)) for row in report.rows
    )
    bars = [row for row in report.rows if row.ratio is not None and row.unit == "ms"]
    rates = [row for row in report.rows if row.ratio is not None and row.unit == "jobs/s"]
    return (
        f"<!doctype html><meta charset=utf-8><title>sandrun bench</title><style>{_STYLE}</style>"
        f"<h1>sandrun bench</h1><p>{facts}</p>"
        f"<h2>Targets</h2><table><tr><th>target<th>measured<th>{targets}</table>"
        f"<h2>Latency, times bare (log scale, less is better)</h2>{_bars(bars)}"
        f"<h2>Throughput, times bare (log scale, more is better)</h2>{_bars(rates)}"
        f"<h2>All figures</h2><table><tr><th>what<th>value<th>x bare<th>at p10<th>p99<th>CPU/job<th>n<th>"
        f"{rows}</table>"
    )


def _bars(rows: list[Row]) -> str:
    """A bar for each ratio; the line is bare."""
    if not rows:
        return "<p>not measured</p>"
    ratios = [max(row.ratio or 0.0, 1e-4) for row in rows]
    low = math.floor(math.log10(min(*ratios, 0.5)))
    high = math.ceil(math.log10(max(*ratios, 2.0)))

    def x(ratio: float) -> float:
        return 240 + 600 * (math.log10(ratio) - low) / (high - low)

    parts = []
    for index, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
        top = 24 * index
        fill = "#8888" if "bare" in row.what else "#2f6feb"
        parts.append(
            f"<text x=232 y={top + 16} text-anchor=end>{html.escape(f'{row.suite}: {row.what}')}"
            f"</text><rect x=240 y={top + 4} height=16 rx=2 width={max(1, x(ratio) - 240):.1f} "
            f"fill='{fill}'/><text x={x(ratio) + 6:.1f} y={top + 16}>{ratio:.3g} x</text>"
        )
    height = 24 * len(rows)
    one = f"<path d='M{x(1):.1f} 0V{height}' stroke=currentColor stroke-dasharray=4 />"
    return f"<svg viewBox='0 0 920 {height}' role=img>{''.join(parts)}{one}</svg>"
