"""What this host can isolate, and the cure for what it cannot. Runs as: root. I/O.

``python -m sandrun doctor [--json]`` for people and scripts; the server's own start
asks the same probes (:func:`probe_all`) and does not start without a mandatory
layer (:func:`refuse_or_pass`). Standard library only: it runs before anything is
installed, and then says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final

from sandrun import probes
from sandrun.errors import HostError
from sandrun.probes import Needs, Probe

if TYPE_CHECKING:
    from sandrun.config import Config
    from sandrun.pool.cgroup.hierarchy import Hierarchy

__all__ = ["Probe", "main", "privacy_facts", "probe_all", "refuse_or_pass"]

_PACKAGES: Final = (
    "cgroupspy",
    "h11",
    "msgspec",
    "multipart",
    "packaging",
    "uvloop",
    "wsproto",
)
_MARKS: Final = {"ok": "ok", "missing": "MISSING", "optional_missing": "without"}
_PRIVACY: Final = {  # what /privacy calls it → the probe that measured it
    "swap": "swap",
    "core_dumps": "core_dumps",
    "job_files_swap": "tmpfs_noswap",
    "freed_memory": "init_on_free",
}


def probe_all(config: Config | None = None) -> tuple[Probe, ...]:
    """Try every isolation layer in forked children. About 40 ms; changes nothing.

    To be called while single-threaded.
    """
    return probes.probe_all(Needs.of(config))


def refuse_or_pass(found: Iterable[Probe], waived: Collection[str] = ()) -> None:
    """Raise HostError for the first mandatory layer that is missing and not waived."""
    for probe in found:
        if probe.status == "missing" and probe.name not in waived:
            raise HostError(
                f"isolation layer {probe.name} cannot be had: {probe.cause}",
                probe.cure or "run 'python -m sandrun doctor' for the whole picture",
            )


def privacy_facts(found: Iterable[Probe]) -> dict[str, str]:
    """The measured facts that ``/privacy`` tells clients."""
    details = {probe.name: probe.detail for probe in found}
    facts = {name: details[probe] for name, probe in _PRIVACY.items() if probe in details}
    return {"job_files": "tmpfs and memory descriptors, never a disk", **facts}


# ── the command ──────────────────────────────────────────────────────────────


def main(argv: list[str]) -> int:
    """0: every mandatory layer is there; 1: not."""
    parser = argparse.ArgumentParser(prog="python -m sandrun doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--config", help="TOML file whose needs and waived layers count")
    options = parser.parse_args(argv)
    config = _load(options.config)
    waived: tuple[str, ...] = config.pool.waive if config else ()
    found = (*probe_all(config), *_with_packages())
    missing = [p for p in found if p.status == "missing" and p.name not in waived]
    print(_as_json(found, not missing) if options.json else table(found, waived))
    return 1 if missing else 0


def _load(path: str | None) -> Config | None:
    if path is None:
        return None
    from pathlib import Path  # noqa: PLC0415 - and msgspec, which may be missing

    from sandrun import config  # noqa: PLC0415

    return config.load(Path(path))


def _with_packages() -> tuple[Probe, ...]:
    """Probes that need the installed packages; without them, which are missing."""
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        cause = f"not installed: {', '.join(absent)}"
        return (_probe("packages", cause, "uv sync, or pip install ."),)
    from sandrun.pool import seccomp  # noqa: PLC0415
    from sandrun.pool.cgroup.hierarchy import Hierarchy  # noqa: PLC0415
    from sandrun.pool.native import build  # noqa: PLC0415

    return (
        _probe("packages", ""),
        _compiled_init(build.fault()),
        _filter_tables(seccomp.cross_check),
        _real_group(Hierarchy),
    )


def _compiled_init(fault: str) -> Probe:
    """Whether PID 1 of the sandboxes can be the compiled one."""
    if not fault:
        return dataclasses.replace(_probe("native_init", ""), detail="compiled", mandatory=False)
    cause, _, cure = fault.partition("; ")
    probe = _probe("native_init", f"{cause}: PID 1 is the Python one, jobs cost more CPU", cure)
    return dataclasses.replace(probe, status="optional_missing", mandatory=False)


def _filter_tables(cross_check: Callable[[], list[str]]) -> Probe:
    """Whether libseccomp numbers the system calls as our filter does."""
    try:
        wrong = cross_check()
    except HostError as error:  # the library is not there: nothing is known to be wrong
        probe = _probe("seccomp_tables", error.what, error.cure)
        return dataclasses.replace(probe, status="optional_missing", mandatory=False)
    probe = _probe("seccomp_tables", "; ".join(wrong))
    return probe if wrong else dataclasses.replace(probe, detail="libseccomp numbers them alike")


def _real_group(hierarchy_class: type[Hierarchy]) -> Probe:
    """Make our groups, one job's group in them, and take all away again."""
    try:
        hierarchy = hierarchy_class.detect()
        hierarchy.create()
    except HostError as error:
        return _probe("cgroup_groups", error.what, error.cure)
    try:
        group = hierarchy.create_slot(0)
        names = group.control_files()[0]
        group.destroy()
        where, disks = str(hierarchy), ", ".join(hierarchy.limited_disks)
    except (OSError, HostError) as error:
        return _probe("cgroup_groups", str(error))
    finally:
        gone = hierarchy.destroy()
    if not gone:
        return _probe("cgroup_groups", "a group of ours could not be removed")
    detail = f"{where}, {len(names)} files"
    if disks:
        detail += f", disk reads limited on {disks}"
    return dataclasses.replace(_probe("cgroup_groups", ""), detail=detail)


def _probe(name: str, cause: str, cure: str = "") -> Probe:
    return Probe(
        name=name,
        layer={"cgroup_groups": "limits", "seccomp_tables": "system calls"}.get(name, ""),
        status="missing" if cause else "ok",
        detail=cause or "installed",
        cause=cause,
        cure=cure,
        mandatory=True,
    )


def _as_json(found: tuple[Probe, ...], passed: bool) -> str:
    return json.dumps(
        {
            "ok": passed,
            "host": {
                "kernel": platform.release(),
                "machine": platform.machine(),
                "python": platform.python_version(),
                "uid": os.geteuid(),
            },
            "probes": [dataclasses.asdict(probe) for probe in found],
        },
        indent=2,
    )


def table(found: Iterable[Probe], waived: Collection[str] = ()) -> str:
    """For people: a line for each layer, then each cure with what it is for."""
    lines = [f"sandrun on Linux {platform.release()}, {platform.machine()}"]
    heading = None
    cures: dict[str, list[str]] = {}
    ordered = sorted(found, key=lambda probe: _HEADINGS.index(probe.layer))
    for probe in ordered:
        if probe.layer != heading:
            heading = probe.layer
            lines += ["", heading or "host"]
        mark = "waived" if _is_waived(probe, waived) else _MARKS[probe.status]
        lines.append(f"  {mark:8} {probe.name:22} {probe.detail}")
        if probe.status != "ok" and probe.cure:
            cures.setdefault(probe.cure, []).append(probe.name)
    if cures:
        lines += ["", "what would help"]
        lines += [f"  {cure}\n    for {', '.join(names)}" for cure, names in cures.items()]
    missing = [p.name for p in ordered if p.status == "missing" and not _is_waived(p, waived)]
    verdict = f"cannot start: {', '.join(missing)}" if missing else "every mandatory layer is there"
    return "\n".join([*lines, "", verdict])


_HEADINGS: Final = (
    "namespaces",
    "file system",
    "system calls",
    "privileges",
    "limits",
    "memory",
    "",
)


def _is_waived(probe: Probe, waived: Collection[str]) -> bool:
    return probe.status == "missing" and probe.name in waived


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
