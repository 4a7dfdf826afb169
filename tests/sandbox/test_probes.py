"""The probes on the real kernel: right about this host, and without a trace."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun import doctor
from sandrun.pool import seccomp  # imported here: a weakened child may not be able to
from sandrun.pool.cgroup import hierarchy
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import PR
from sandrun.probes import Probe

assert hierarchy
assert seccomp

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the probes need root")


def probes_after(weaken: Callable[[], object]) -> dict[str, Probe]:
    """Probe in a fork that was weakened first."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            weaken()
            found = doctor.probe_all()
            rows = [
                [p.name, p.layer, p.status, p.detail, p.cause, p.cure, p.mandatory] for p in found
            ]
            os.write(writing, json.dumps(rows).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        rows = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return {row[0]: Probe(*row) for row in rows}


def traces() -> tuple[str, str, str, list[str], str]:
    namespaces = [os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")]
    return (
        Path("/proc/self/mountinfo").read_text(),
        os.uname().nodename,
        Path("/proc/self/cgroup").read_text(),
        namespaces,
        Path("/proc/self/status").read_text().split("CapInh")[1].split("Speculation")[0],
    )


def test_probing_leaves_the_process_and_the_host_as_they_were() -> None:
    before = traces()
    fds = len(os.listdir("/proc/self/fd"))
    doctor.probe_all()
    assert traces() == before
    assert len(os.listdir("/proc/self/fd")) == fds


def test_every_probe_has_a_name_of_its_own_and_says_something() -> None:
    found = doctor.probe_all()
    assert len({p.name for p in found}) == len(found)
    assert all(p.detail for p in found)
    assert all(p.cause and p.cure for p in found if p.status == "missing")


def test_without_cap_sys_admin_the_namespaces_are_missing_and_the_cure_is_known() -> None:
    status = Path("/proc/self/status").read_text()
    less = int(status.split("CapPrm:")[1].split()[0], 16) & ~(1 << 21)
    found = probes_after(lambda: libc.capset(less, less, 0))
    assert found["pid_namespace"].status == "missing"
    assert found["tmpfs"].status == "missing"
    assert found["pid_namespace"].cure
    assert found["no_new_privs"].status == "ok"


def test_a_filter_that_kills_is_survived_and_reported() -> None:
    """A container runtime may answer unshare(2) with SIGSYS."""

    def weaken() -> None:
        unshare = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
        rules = (
            (0x20, 0, 0, 0),
            (0x15, 0, 1, unshare),
            (0x06, 0, 0, 0x80000000),  # SECCOMP_RET_KILL_PROCESS
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
        libc.prctl(PR.SET_NO_NEW_PRIVS, 1)
        libc.load_filter(b"".join(struct.pack("<HBBI", *rule) for rule in rules))

    found = probes_after(weaken)
    assert found["pid_namespace"].cause == "killed by SIGSYS"
    assert found["user_namespace"].status == "missing"
    assert found["pidfd"].status == "ok"
    assert found["capabilities"].status == "ok"


def test_nobody_is_told_to_run_as_root() -> None:
    def weaken() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

    found = probes_after(weaken)
    assert found["mount_namespace"].cure == "run as root"
    assert found["cgroup"].cure == "run as root"


def test_the_command_s_exit_status_says_whether_the_server_would_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = doctor.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    missing = [p["name"] for p in report["probes"] if p["status"] == "missing"]
    assert report["ok"] is (status == 0) is (not missing)
    assert {"kernel", "machine", "python", "uid"} <= set(report["host"])
