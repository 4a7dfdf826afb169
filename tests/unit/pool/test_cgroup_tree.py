"""The supervisor's side of control groups, against a fake cgroup file system.

``FakeKernel`` fills every new directory with a group's files and lets a directory
go with them. What it cannot show (limits that bite) is in tests/sandbox.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sandrun.errors import HostError, SetupError
from sandrun.job import MIB, Limits
from sandrun.pool.cgroup import job_group, kernfs
from sandrun.pool.cgroup.caps import Caps, host_caps
from sandrun.pool.cgroup.hierarchy import Hierarchy
from sandrun.pool.cgroup.instances import is_stale, own_name
from sandrun.pool.cgroup.layout import Layout

LIMITS = Limits(memory_bytes=64 * MIB, processes=8)
CAPS = Caps(memory_bytes=256 * MIB, processes=64, service_memory_bytes=16 * MIB)

PIDS = {
    "pids.max": "",
    "pids.current": "0\n",
    "pids.events": "max 0\n",
    "pids.peak": "0\n",
}
FILES = {
    "memory": {
        "memory.limit_in_bytes": "",
        "memory.max_usage_in_bytes": "",
        "memory.usage_in_bytes": "0\n",
        "memory.swappiness": "60\n",
        "memory.kmem.tcp.limit_in_bytes": "",
        "memory.oom_control": "oom_kill 0\n",
        "memory.stat": "hierarchical_memory_limit 9223372036854771712\n",
        "cgroup.event_control": "",
    },
    "pids": PIDS,
    "cpu": {"cpu.cfs_quota_us": "", "cpu.shares": "", "cpuacct.usage": "0\n"},
    "cpuacct": {"cpuacct.usage": "0\n"},
    "blkio": {"blkio.throttle.read_bps_device": "", "blkio.throttle.read_iops_device": ""},
    "unified": PIDS
    | {
        "cgroup.controllers": "cpu memory pids\n",
        "cgroup.subtree_control": "",
        "cgroup.kill": "",
        "memory.max": "",
        "memory.low": "",
        "memory.swap.max": "",
        "memory.oom.group": "",
        "memory.events": "oom_kill 0\n",
        "memory.current": "0\n",
        "memory.peak": "",
        "cpu.max": "",
        "cpu.weight": "",
        "cpu.stat": "usage_usec 0\n",
    },
}


class FakeKernel:
    """Directories that behave a little like control groups."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.refuse: dict[str, int] = {}  # end of a path that may not be written → errno
        self._mkdir, self._rmdir, self._write = os.mkdir, os.rmdir, kernfs.write
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        monkeypatch.setattr(kernfs, "write", self.write)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._mkdir(path, mode)
        hierarchy = Path(path).relative_to(self.root).parts[0]
        for name, text in (FILES[hierarchy] | {"cgroup.procs": "", "tasks": ""}).items():
            Path(path, name).write_text(text)

    def rmdir(self, path: str) -> None:
        if Path(path, "cgroup.procs").read_text().strip("0"):
            raise OSError(errno.EBUSY, "busy", path)
        for file in Path(path).iterdir():
            if file.is_file():
                file.unlink()
        self._rmdir(path)

    def write(self, path: str, text: str) -> None:
        for ending, number in self.refuse.items():
            if path.endswith(ending):
                raise OSError(number, os.strerror(number), path)
        self._write(path, text)

    def layout(self, version: int, *hierarchies: str, companion: bool = False) -> Layout:
        for name in (*hierarchies, *(("unified",) if companion else ())):
            os.mkdir(str(self.root / name))
            os.mkdir(str(self.root / name / "own"))
        own = {name: f"{self.root}/{name}/own" for name in hierarchies}
        return Layout(
            2 if version == 2 else 1,
            own,
            f"{self.root}/unified/own" if companion else None,
            {name: f"{self.root}/{name}" for name in hierarchies},
        )


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return FakeKernel(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def no_oom_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eventfd cannot be registered with an ordinary file."""
    monkeypatch.setattr(kernfs, "oom_event", lambda _, fd: os.dup(fd))
    monkeypatch.setattr(os, "eventfd_read", lambda _: 0)


def v2(kernel: FakeKernel) -> Hierarchy:
    hierarchy = Hierarchy(kernel.layout(2, "unified"), LIMITS, 1.5)
    hierarchy.create(CAPS)
    return hierarchy


def v1(kernel: FakeKernel, *, companion: bool = False) -> Hierarchy:
    layout = kernel.layout(1, "memory", "pids", "cpu", "cpuacct", companion=companion)
    hierarchy = Hierarchy(layout, LIMITS, 1.5)
    hierarchy.create(CAPS)
    return hierarchy


def test_v2_makes_leaves_and_hands_controllers_on(kernel: FakeKernel) -> None:
    top = kernel.root / "unified/own" / v2(kernel).name
    on = "+memory +pids +cpu"
    assert (kernel.root / "unified/own/cgroup.subtree_control").read_text() == on
    assert (top / "cgroup.subtree_control").read_text() == on
    assert (top / "jobs/cgroup.subtree_control").read_text() == on
    assert (top / "service/cgroup.procs").read_text() == "0", "we moved ourselves"
    assert (top / "memory.swap.max").read_text() == "0"
    assert (top / "jobs/memory.max").read_text() == str(256 * MIB)
    assert (top / "jobs/pids.max").read_text() == "64"
    assert (top / "service/memory.low").read_text() == str(16 * MIB)


def test_v2_slot_has_all_limits(kernel: FakeKernel) -> None:
    group = v2(kernel).create_slot(3)
    directory = Path(group.directory("unified"))
    assert directory.name == "3"
    assert (directory / "memory.max").read_text() == str(64 * MIB)
    assert (directory / "memory.oom.group").read_text() == "1"
    assert (directory / "pids.max").read_text() == "8"
    assert (directory / "cpu.max").read_text() == "150000 100000"
    group.close()


def test_v1_slot_has_all_limits(kernel: FakeKernel) -> None:
    hierarchy = v1(kernel)
    group = hierarchy.create_slot(0)
    assert Path(group.directory("memory"), "memory.limit_in_bytes").read_text() == str(64 * MIB)
    assert Path(group.directory("pids"), "pids.max").read_text() == "8"
    assert Path(group.directory("cpu"), "cpu.cfs_quota_us").read_text() == "150000"
    top = kernel.root / "memory/own" / hierarchy.name
    assert (top / "memory.swappiness").read_text() == "0"
    group.close()


def test_v1_alone_counts_cpu_time_with_cpuacct(kernel: FakeKernel) -> None:
    group = v1(kernel).create_slot(0)
    names, _ = group.control_files()
    assert {"attach.cpuacct", "cpuacct.usage"} <= set(names)
    group.close()


def test_hybrid_counts_cpu_time_with_cpuacct_since_entering_a_v2_group_waits(
    kernel: FakeKernel,
) -> None:
    hierarchy = v1(kernel, companion=True)
    group = hierarchy.create_slot(0)
    names, _ = group.control_files()
    assert {"attach.cpuacct", "cpuacct.usage"} <= set(names)
    assert "attach.unified" not in names
    assert not (kernel.root / "unified/own" / hierarchy.name).exists()
    group.close()


def test_hybrid_without_cpuacct_counts_cpu_time_in_the_companion(kernel: FakeKernel) -> None:
    layout = kernel.layout(1, "memory", "pids", "cpu", companion=True)
    hierarchy = Hierarchy(layout, LIMITS, 1.5)
    hierarchy.create(CAPS)
    group = hierarchy.create_slot(0)
    names, _ = group.control_files()
    assert {"attach.unified", "cpu.stat"} <= set(names)
    group.close()


def test_an_unusable_companion_is_done_without(kernel: FakeKernel) -> None:
    FILES["unified"].pop("cgroup.kill")
    try:
        hierarchy = v1(kernel, companion=True)
    finally:
        FILES["unified"]["cgroup.kill"] = ""
    assert not (kernel.root / "unified/own" / hierarchy.name).exists()
    group = hierarchy.create_slot(0)
    assert "cpuacct.usage" in group.control_files()[0]
    group.close()


def test_a_message_has_room_for_the_descriptors(kernel: FakeKernel) -> None:
    group = v1(kernel, companion=True).create_slot(0)
    names, fds = group.control_files()
    assert len(names) == len(fds) == len(set(fds)) <= job_group.ROOM_FOR_FDS
    fewer, _ = group.control_files(room=len(names) - 1)
    assert set(names) - set(fewer) == {"pids.peak"}, "what can be done without goes first"
    group.close()


def test_v2_reads_of_all_jobs_have_a_rate_on_every_disk(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES["unified"], "cgroup.controllers", "cpu io memory pids\n")
    monkeypatch.setitem(FILES["unified"], "io.max", "")
    monkeypatch.setattr("sandrun.pool.cgroup.hierarchy.disks", lambda: ("8:0",))
    hierarchy = v2(kernel)
    top = kernel.root / "unified/own" / hierarchy.name
    assert (top / "cgroup.subtree_control").read_text() == "+iomory +pids +cpu", "written over"
    assert (top / "jobs/io.max").read_text() == f"8:0 rbps={100 * MIB} riops=1600"
    assert hierarchy.limited_disks == ("8:0",)
    assert hierarchy.destroy()


def test_v1_reads_of_all_jobs_have_a_rate_in_one_group_for_all(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandrun.pool.cgroup.hierarchy.disks", lambda: ("8:0",))
    layout = kernel.layout(1, "memory", "pids", "cpu", "cpuacct", "blkio")
    hierarchy = Hierarchy(layout, LIMITS, 1.5, 2 * MIB)
    hierarchy.create(CAPS)
    jobs = kernel.root / "blkio/own" / hierarchy.name / "jobs"
    assert (jobs / "blkio.throttle.read_bps_device").read_text() == f"8:0 {2 * MIB}"
    assert (jobs / "blkio.throttle.read_iops_device").read_text() == "8:0 32"
    group = hierarchy.create_slot(0)
    names, fds = group.control_files()
    entered = os.readlink(f"/proc/self/fd/{fds[names.index('attach.blkio')]}")
    assert entered == str(jobs / "tasks"), "limits of v1 do not hold for the groups below"
    assert not (jobs / "0").exists()
    assert group.destroy()
    assert hierarchy.destroy()
    assert not jobs.parent.exists()


@pytest.mark.parametrize("why", ["switched off", "no disk", "not ours", "no throttling"])
def test_v1_disk_reads_are_not_limited_where_they_cannot_be(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("sandrun.pool.cgroup.hierarchy.disks", lambda: () if why == "no disk" else ("8:0",))
    layout = kernel.layout(1, "memory", "pids", "cpu", "cpuacct", "blkio")
    if why == "not ours":
        layout.directories["blkio"] += "/that/is/not/there"
    if why == "no throttling":
        kernel.refuse = {"read_bps_device": errno.EACCES}
    hierarchy = Hierarchy(layout, LIMITS, 1.5, 0 if why == "switched off" else MIB)
    hierarchy.create(CAPS)
    assert hierarchy.limited_disks == ()
    assert not (kernel.root / "blkio/own" / hierarchy.name).exists()
    group = hierarchy.create_slot(0)
    assert "attach.blkio" not in group.control_files()[0]
    group.close()


def test_v1_without_a_limit_of_network_buffers_starts(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel may count them for nobody. That is said by the doctor, and no reason to refuse:
    on v2, too, jobs can hold all that TCP has unless the host's tcp_mem is raised."""
    monkeypatch.delitem(FILES["memory"], "memory.kmem.tcp.limit_in_bytes")
    group = v1(kernel).create_slot(0)
    assert Path(group.directory("memory"), "memory.limit_in_bytes").read_text() == str(64 * MIB)
    group.close()


def test_destroy_leaves_nothing(kernel: FakeKernel) -> None:
    hierarchy = v2(kernel)
    group = hierarchy.create_slot(0)
    assert group.destroy()
    assert hierarchy.destroy()
    own = kernel.root / "unified/own"
    assert [path for path in own.iterdir() if path.is_dir()] == []
    assert (own / "cgroup.subtree_control").read_text() == "-memory -pids -cpu"


def test_a_group_that_others_use_is_passed_over_for_the_one_above(
    kernel: FakeKernel,
) -> None:
    """An ordinary shell shares its group with us: v2 says EBUSY there."""
    layout = kernel.layout(2, "unified")
    (kernel.root / "unified/cgroup.subtree_control").write_text("cpu memory pids\n")
    kernel.refuse = {"own/cgroup.subtree_control": errno.EBUSY}
    hierarchy = Hierarchy(layout, LIMITS, 1.0)
    hierarchy.create(CAPS)
    assert (kernel.root / "unified" / hierarchy.name / "service").is_dir()
    assert not (kernel.root / "unified/own" / hierarchy.name).exists()
    above = (kernel.root / "unified/cgroup.subtree_control").read_text()
    assert above == "cpu memory pids\n", "a group that others use is not changed"


def test_a_group_that_cannot_hand_on_is_named_with_the_cure(kernel: FakeKernel) -> None:
    layout = kernel.layout(2, "unified")
    kernel.refuse = {"own/cgroup.subtree_control": errno.EBUSY}
    with pytest.raises(HostError, match="Device or resource busy.*Delegate=yes"):
        Hierarchy(layout, LIMITS, 1.0).create(CAPS)
    assert [path for path in (kernel.root / "unified/own").iterdir() if path.is_dir()] == []


def test_a_missing_controller_is_named_with_the_cure(kernel: FakeKernel) -> None:
    layout = kernel.layout(2, "unified")
    (kernel.root / "unified/own/cgroup.controllers").write_text("memory pids\n")
    with pytest.raises(HostError, match="controllers cpu are not handed on.*Delegate=yes"):
        Hierarchy(layout, LIMITS, 1.0).create(CAPS)


def test_a_read_only_file_system_is_the_container_s(kernel: FakeKernel) -> None:
    layout = kernel.layout(1, "memory", "pids", "cpu", "cpuacct")
    kernel.refuse = {"service/cgroup.procs": errno.EROFS}
    with pytest.raises(HostError, match="in a container"):
        Hierarchy(layout, LIMITS, 1.0).create(CAPS)


def test_a_slot_that_fails_half_way_leaves_nothing(kernel: FakeKernel) -> None:
    hierarchy = v2(kernel)
    kernel.refuse = {"memory.oom.group": errno.EINVAL}
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SetupError, match="memory.oom.group"):
        hierarchy.create_slot(0)
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert not (kernel.root / "unified/own" / hierarchy.name / "jobs/0").exists()


@pytest.mark.parametrize(
    ("file", "text", "like_new"),
    [
        ("pids.current", "0\n", True),
        ("pids.current", "1\n", False),
        ("memory.current", f"{MIB}\n", True),
        ("memory.current", f"{64 * MIB}\n", False),
    ],
)
def test_reset_refuses_a_group_that_is_not_empty(
    kernel: FakeKernel, file: str, text: str, like_new: bool
) -> None:
    group = v2(kernel).create_slot(0)
    Path(group.directory("unified"), file).write_text(text)
    assert group.reset() is like_new
    group.close()


def test_reset_of_a_removed_group_is_refused(kernel: FakeKernel) -> None:
    group = v2(kernel).create_slot(0)
    assert group.destroy()
    assert not group.reset()


def test_a_group_that_was_busy_at_its_destruction_is_not_used_again(kernel: FakeKernel) -> None:
    """Its descriptors are closed: reset() once asserted that they were there."""
    group = v2(kernel).create_slot(0)
    Path(group.directory("unified"), "cgroup.procs").write_text("4194304")
    assert not group.destroy()
    assert not group.reset()
    Path(group.directory("unified"), "cgroup.procs").write_text("")
    assert group.destroy()


def test_kill_uses_the_kernel_s_own_where_there_is_one(kernel: FakeKernel) -> None:
    group = v2(kernel).create_slot(0)
    group.kill()
    assert Path(group.directory("unified"), "cgroup.kill").read_text() == "1"
    group.close()


def test_kill_without_it_first_takes_the_room_to_fork(kernel: FakeKernel) -> None:
    group = v1(kernel).create_slot(0)
    group.kill()
    assert Path(group.directory("pids"), "pids.max").read_text() == "0"
    assert group.reset()
    assert Path(group.directory("pids"), "pids.max").read_text() == "8"
    group.close()


def test_sweep_takes_dead_instances_only(kernel: FakeKernel) -> None:
    hierarchy = v2(kernel)
    own = kernel.root / "unified/own"
    for name in (f"sandrun-{os.getpid()}-1", "sandrun-test-1", "sandrun-1", "other"):
        os.mkdir(str(own / name))
    assert hierarchy.sweep_stale() == (f"sandrun-{os.getpid()}-1",)
    left = {path.name for path in own.iterdir() if path.is_dir()}
    assert left == {hierarchy.name, "sandrun-test-1", "sandrun-1", "other"}


def test_a_name_is_stale_when_its_process_is_another_or_gone() -> None:
    mine = own_name(os.getpid())
    assert not is_stale(mine)
    assert is_stale(f"sandrun-{os.getpid()}-1"), "the process id was given to another"
    assert not is_stale("sandrun-x-1")
    assert not is_stale(f"{mine}.scope")


def test_caps_leave_the_host_a_share() -> None:
    small = host_caps(1024 * MIB, 32_768)
    assert small.memory_bytes == 768 * MIB
    assert small.processes == 24_576
    large = host_caps(64 * 1024 * MIB, 4_194_304)
    assert large.memory_bytes == 63 * 1024 * MIB
    assert large.service_memory_bytes == 256 * MIB
