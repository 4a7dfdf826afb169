"""Every case, layer by layer. Pure data; ``../run.py`` brings it to life."""

from __future__ import annotations

from typing import Final

from sandrun.selftest.bank import (
    between,
    clients,
    corners,
    downloads,
    exhaustion,
    http_edge,
    leaks,
    manifests,
    namespaces,
    network,
    proc,
    processes,
    shared,
    syscalls,
    uploads,
    websocket,
)
from sandrun.selftest.case import Case

CASES: Final[tuple[Case, ...]] = (
    *namespaces.CASES,
    *proc.CASES,
    *leaks.CASES,
    *processes.CASES,
    *exhaustion.CASES,
    *network.CASES,
    *between.CASES,
    *uploads.CASES,
    *manifests.CASES,
    *downloads.CASES,
    *http_edge.CASES,
    *websocket.CASES,
    *clients.CASES,
    *syscalls.CASES,
    *corners.CASES,
    *shared.CASES,
)
