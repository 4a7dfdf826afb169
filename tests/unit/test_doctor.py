"""What the doctor concludes from what the probes found."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandrun import doctor, probes
from sandrun.config import Config
from sandrun.errors import HostError
from sandrun.probes import (
    Check,
    Facts,
    Missing,
    Needs,
    Probe,
    Status,
    explain,
    larger_tcp_mem,
    swap_devices,
)


def probe(name: str, status: Status = "ok", cure: str = "a cure") -> Probe:
    return Probe(
        name=name,
        layer="namespaces",
        status=status,
        detail="as found",
        cause="" if status == "ok" else "why not",
        cure=cure,
        mandatory=status == "missing",
    )


def test_all_mandatory_layers_pass() -> None:
    doctor.refuse_or_pass((probe("pid_namespace"), probe("landlock", "optional_missing")))


def test_the_first_missing_layer_is_named_with_its_cure() -> None:
    found = (probe("pid_namespace"), probe("seccomp", "missing"), probe("swap", "missing"))
    with pytest.raises(HostError, match="seccomp cannot be had: why not; a cure"):
        doctor.refuse_or_pass(found)


def test_a_waived_layer_passes_and_another_does_not() -> None:
    doctor.refuse_or_pass((probe("swap", "missing"),), ("swap",))
    with pytest.raises(HostError, match="seccomp"):
        doctor.refuse_or_pass((probe("swap", "missing"), probe("seccomp", "missing")), ("swap",))


def test_a_layer_without_a_known_cure_points_to_the_doctor() -> None:
    with pytest.raises(HostError, match="sandrun doctor"):
        doctor.refuse_or_pass((probe("seccomp", "missing", cure=""),))


def test_the_table_names_each_cure_once() -> None:
    text = doctor.table([probe("a", "missing"), probe("b", "missing"), probe("c")])
    assert text.count("a cure") == 1
    assert "for a, b" in text
    assert text.endswith("cannot start: a, b")


def test_the_table_tells_what_was_waived() -> None:
    text = doctor.table([probe("swap", "missing")], ("swap",))
    assert "waived   swap" in text
    assert text.endswith("every mandatory layer is there")


def test_privacy_facts_are_what_was_measured() -> None:
    facts = doctor.privacy_facts((probe("swap"), probe("init_on_free", "optional_missing")))
    assert facts["swap"] == "as found"
    assert facts["freed_memory"] == "as found"


def test_needs_follow_the_config() -> None:
    needs = Needs.of(Config())
    assert needs.uid_base == Config().pool.uid_base == probes.UID_BASE
    assert needs.descriptors > Config().http.max_connections


# ── causes and cures ─────────────────────────────────────────────────────────

PLAIN = Facts(root=True, container="", filtered=False, sys_admin=True, sysctls={})


def test_who_is_not_root_is_told_so() -> None:
    known = Facts(root=False, container="docker", filtered=True, sys_admin=False, sysctls={})
    assert explain("pid_namespace", errno.EPERM, known) == "run as root"


def test_a_confined_container_is_told_its_options() -> None:
    known = Facts(root=True, container="podman", filtered=True, sys_admin=True, sysctls={})
    assert "podman container with --privileged" in explain("net_namespace", errno.EPERM, known)


def test_a_namespace_limit_is_named() -> None:
    known = Facts(True, "", False, True, {"user.max_net_namespaces": "0"})
    assert "user.max_net_namespaces=65536 (it is 0)" in explain(
        "net_namespace", errno.ENOSPC, known
    )
    known = Facts(True, "", False, True, {"user.max_mnt_namespaces": "3"})
    assert "max_mnt" in explain("mount_namespace", errno.ENOSPC, known)


@pytest.mark.parametrize(
    ("sysctl", "value", "cure"),
    [
        ("kernel.unprivileged_userns_clone", "0", "=1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "=0"),
    ],
)
def test_what_keeps_user_namespaces_away_is_named(sysctl: str, value: str, cure: str) -> None:
    known = Facts(True, "", False, True, {sysctl: value})
    assert explain("nested_user_namespace", errno.EPERM, known) == f"sysctl -w {sysctl}{cure}"


def test_a_missing_kernel_option_is_named() -> None:
    assert "CONFIG_NET_NS" in explain("net_namespace", errno.EINVAL, PLAIN)


def test_a_missing_capability_and_a_foreign_filter_are_named() -> None:
    weak = Facts(True, "", False, False, {})
    assert "CAP_SYS_ADMIN" in explain("tmpfs", errno.EPERM, weak)
    filtered = Facts(True, "", True, True, {})
    assert "SystemCallFilter" in explain("tmpfs", errno.EPERM, filtered)
    assert "audit log" in explain("tmpfs", errno.EPERM, PLAIN)


def test_without_an_errno_nothing_is_guessed() -> None:
    assert explain("swap", 0, PLAIN) == ""


def test_swap_in_memory_is_no_swap_on_a_disk() -> None:
    head = "Filename Type Size Used Priority\n"
    assert swap_devices(head) == []
    assert swap_devices(head + "/dev/zram0 partition 100 0 100\n") == []
    assert swap_devices(head + "/swapfile file 100 0 -2\n") == ["/swapfile"]


# ── children ─────────────────────────────────────────────────────────────────


def fine(_: Needs) -> str:
    return "fine"


def refused(_: Needs) -> str:
    raise PermissionError(errno.EPERM, "no")


def absent(_: Needs) -> str:
    raise Missing("not there", "get it")


def broken(_: Needs) -> str:
    raise ZeroDivisionError


def killed(_: Needs) -> str:
    import os  # noqa: PLC0415
    import signal  # noqa: PLC0415

    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_a_probe_that_kills_its_child_is_missing_and_the_next_ones_run() -> None:
    checks = (
        Check("a", "", fine),
        Check("b", "", killed),
        Check("c", "", absent, mandatory=False),
        Check("d", "", refused),
        Check("e", "", broken),
        Check("f", "", fine),
    )
    found = list(probes._run_group(checks, Needs()))
    assert [(p.name, p.status) for p in found] == [
        ("a", "ok"),
        ("b", "missing"),
        ("c", "optional_missing"),
        ("d", "missing"),
        ("e", "missing"),
        ("f", "ok"),
    ]
    assert found[1].cause == "killed by SIGKILL"
    assert found[2].cure == "get it"
    assert found[4].cause.startswith("the probe itself failed: ZeroDivisionError")


def test_tcp_must_have_room_for_all_that_jobs_may_hold() -> None:
    assert larger_tcp_mem("33711\t44950\t67422\n", 750_000) == (
        "sysctl -w net.ipv4.tcp_mem='375000 562500 750000'"
    )
    assert larger_tcp_mem("375000 562500 750000", 750_000) == ""


def test_every_layer_that_may_be_waived_is_probed() -> None:
    """The config's names are the probes' names: a typing error would waive nothing."""
    import typing  # noqa: PLC0415

    from sandrun import config  # noqa: PLC0415

    names = {check.name for group in (*probes.GROUPS, probes.READ_ONLY) for check in group}
    assert set(typing.get_args(config.Layer)) <= names


def test_the_doctor_starts_before_anything_is_installed() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['msgspec'] = None\n"
        "from sandrun import doctor; sys.exit(doctor.main(['--json']))"
    )
    root = Path(doctor.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(root)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    report = json.loads(done.stdout)
    packages = next(p for p in report["probes"] if p["name"] == "packages")
    assert done.returncode == 1
    assert not report["ok"]
    assert "cgroupspy" in packages["cause"]
    assert "pip install" in packages["cure"]


def test_every_layer_that_is_missing_has_a_cause_and_a_cure() -> None:
    checks = [*(check for group in probes.GROUPS for check in group), *probes.READ_ONLY]
    for check in checks:
        for outcome in (
            probes.Outcome(cause="not as wanted"),
            probes.Outcome(cause="the call failed", errno=errno.EIO),
            probes.Outcome(cause="killed by SIGSYS", errno=errno.EPERM),
        ):
            found = probes._judge(check, outcome)
            assert found.cause == outcome.cause, check.name
            assert found.cure, check.name
