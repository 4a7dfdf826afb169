"""Control groups on the real kernel, whichever version it has.

Every test forks a supervisor of its own, which moves itself into a group and
takes all of it away again. v2 is run by ``tests/vm/run``.
"""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandrun.job import MIB, Limits
from sandrun.pool.cgroup.caps import Caps, socket_caps
from sandrun.pool.cgroup.hierarchy import Hierarchy
from sandrun.pool.cgroup.instances import is_stale, own_name
from sandrun.pool.cgroup.job_group import JobGroup
from sandrun.pool.cgroup.layout import find
from sandrun.pool.cgroup.tree import kill_tree, remove_tree
from sandrun.pool.disks import disks
from sandrun.pool.linux import libc
from sandrun.pool.linux.constants import CLONE
from sandrun.pool.zygote.group import GroupFiles

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")

LIMITS = Limits(memory_bytes=64 * MIB, processes=8)
CAPS = Caps(memory_bytes=256 * MIB, processes=64, service_memory_bytes=16 * MIB)


def run(body: Callable[[], object]) -> int:
    """The exit status for a fork: 0, or 1 after printing the exception."""
    try:
        body()
    except BaseException:  # noqa: BLE001  # a fork of pytest must never return into it
        traceback.print_exc()
        return 1
    return 0


def in_child(body: Callable[[], object]) -> int:
    """Run ``body`` in a fork; its wait status."""
    pid = os.fork()
    if pid == 0:
        os._exit(run(body))
    return os.waitpid(pid, 0)[1]


def supervise(body: Callable[[Hierarchy], object]) -> None:
    """Run ``body`` in a process that has made its hierarchy, and expect no trace."""

    def supervisor() -> None:
        hierarchy = Hierarchy.detect(LIMITS, cpus=1.0)
        hierarchy.create(CAPS)
        try:
            body(hierarchy)
        finally:
            assert hierarchy.destroy()

    pid = os.fork()
    if pid == 0:
        os._exit(run(supervisor))
    assert os.waitpid(pid, 0)[1] == 0
    assert not instances(f"sandrun-{pid}-*")


def instances(pattern: str) -> list[Path]:
    """Groups of that name in any hierarchy."""
    return list(Path("/sys/fs/cgroup").glob(f"**/{pattern}"))


def files_of(group: JobGroup) -> GroupFiles:
    """As PID 1 gets them: descriptors of its own."""
    names, fds = group.control_files()
    return GroupFiles(names, tuple(os.dup(fd) for fd in fds))


def run_job(files: GroupFiles, body: Callable[[], object]) -> int:
    def job() -> None:
        files.attach_self()
        body()

    return in_child(job)


@pytest.fixture
def parked() -> Iterator[Callable[[GroupFiles], int]]:
    """Start processes that sit in a group until the test ends."""
    pids: list[int] = []

    def start(files: GroupFiles) -> int:
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                files.attach_self()
                os.write(tell, b".")
                signal.pause()
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(ready, 1) == b"."
        os.close(ready)
        pids.append(pid)
        return pid

    yield start
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_network_buffers_of_jobs_are_a_part_of_what_the_host_has_for_everybody() -> None:
    assert socket_caps("287898\t383866\t575796\n", 4096) == (287898 * 2048, 32 * MIB)
    assert socket_caps("8192 12288 16384", 4096) == (16 * MIB, 8 * MIB)


def test_network_buffers_of_a_job_are_limited_where_its_memory_does_not_count_them() -> None:
    """v1 charged them to nothing: one job of 512 MB held 2 GB, all that TCP had on the host."""

    def body(hierarchy: Hierarchy) -> None:
        if hierarchy.version == 2:
            return  # memory.max counts them
        group = hierarchy.create_slot(0)
        name = "memory.kmem.tcp.limit_in_bytes"
        one = int(Path(group.directory("memory"), name).read_text())
        together = int(Path(group.directory("memory")).parent.joinpath(name).read_text())
        assert 0 < one <= 32 * MIB
        assert one < together < int(Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()[0]) * 4096
        assert group.destroy()

    supervise(body)


def test_what_jobs_read_from_the_disk_is_limited(tmp_path: Path) -> None:
    """By the kernel's count of what came from the disk, it took the time that the rate
    makes of it, whatever else the machine did meanwhile."""
    if not (names := disks()):
        pytest.skip("no disk here")
    (file := tmp_path / "cold").write_bytes(os.urandom(4 * MIB))
    device = file.stat().st_dev
    if f"{os.major(device)}:{os.minor(device)}" not in names:
        pytest.skip("the temporary directory is not on a whole disk")
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def from_disk() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))

    def read() -> None:
        start, before = time.monotonic(), from_disk()
        while os.read(fd, MIB):
            pass
        assert (came := from_disk() - before), "it was still in memory"
        # A burst goes through at once: half of it is a bound that always holds.
        assert time.monotonic() - start > came / (4 * MIB) / 2

    def supervisor() -> None:
        hierarchy = Hierarchy.detect(LIMITS, disk_read_bytes=4 * MIB)
        hierarchy.create(CAPS)
        try:
            assert hierarchy.limited_disks == names
            assert run_job(files_of(hierarchy.create_slot(0)), read) == 0
        finally:
            assert hierarchy.destroy()

    assert in_child(supervisor) == 0
    os.close(fd)


def test_the_supervisor_lives_in_the_service_leaf_and_goes_back() -> None:
    before = Path("/proc/self/cgroup").read_text()

    def supervisor() -> None:
        hierarchy = Hierarchy.detect(LIMITS)
        hierarchy.create(CAPS)
        inside = Path("/proc/self/cgroup").read_text()
        assert hierarchy.destroy()
        assert f"{hierarchy.name}/service" in inside
        assert Path("/proc/self/cgroup").read_text() == before

    assert in_child(supervisor) == 0


def test_a_process_attaches_itself_and_is_seen() -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        files = files_of(group)
        assert run_job(files, lambda: check_inside(group)) == 0
        assert group.processes() == ()

    def check_inside(group: JobGroup) -> None:
        assert group.processes() == (os.getpid(),)

    supervise(body)


def test_a_process_without_rights_attaches_itself_through_the_descriptors() -> None:
    """The kernel asks for the rights of who opened the file (Linux 5.16, CVE-2021-4197)."""

    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        assert run_confined(files_of(group), lambda: check(group)) == 0

    def run_confined(files: GroupFiles, then: Callable[[], None]) -> int:
        def job() -> None:
            libc.unshare(CLONE.NEWCGROUP)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            libc.unshare(CLONE.NEWUSER)
            files.attach_self()
            then()

        return in_child(job)

    def check(group: JobGroup) -> None:
        assert group.processes() == (os.getpid(),)

    supervise(body)


def test_memory_over_the_limit_kills_and_is_counted() -> None:
    def body(hierarchy: Hierarchy) -> None:
        files = files_of(hierarchy.create_slot(0))
        assert run_job(files, lambda: bytearray(16 * MIB)) == 0
        assert files.oom_kills() == 0
        assert 16 * MIB <= files.memory_peak() < 40 * MIB
        poll = select.poll()
        poll.register(files.oom_fd or -1, files.oom_poll_mask)
        assert not poll.poll(0)
        assert run_job(files, lambda: bytearray(100 * MIB)) == signal.SIGKILL
        assert poll.poll(5000), "the event of the shortage"
        assert files.oom_kills() >= 1
        files.clear_oom_event()
        assert not poll.poll(0)
        assert files.memory_peak() >= 60 * MIB
        assert files.memory_now() < 16 * MIB

    supervise(body)


def test_limits_are_changed_through_the_descriptors() -> None:
    def body(hierarchy: Hierarchy) -> None:
        files = files_of(hierarchy.create_slot(0))
        files.set_memory(128 * MIB)
        assert run_job(files, lambda: bytearray(100 * MIB)) == 0
        files.set_memory(32 * MIB)
        assert run_job(files, lambda: bytearray(100 * MIB)) == signal.SIGKILL

    supervise(body)


def test_forks_over_the_limit_are_refused_and_counted() -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        files = files_of(group)
        files.set_processes(4)
        assert run_job(files, fork_until_refused) == 0
        assert files.fork_refusals() == 1
        assert files.processes_peak() == 4
        kill_tree(group.directory("pids" if hierarchy.version == 1 else "unified"))

    def fork_until_refused() -> None:
        children = 0
        try:
            while True:
                if os.fork() == 0:
                    signal.pause()
                children += 1
        except BlockingIOError:
            assert children == 3

    supervise(body)


def test_cpu_time_is_counted_and_capped() -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        files = files_of(group)
        run_job(files, lambda: burn(0.2))
        assert 0.15 < files.cpu_seconds() < 1.0
        limit = "cpu.cfs_quota_us" if hierarchy.version == 1 else "cpu.max"
        directory = group.directory("cpu" if hierarchy.version == 1 else "unified")
        assert Path(f"{directory}/{limit}").read_text().split()[0] == "100000"

    def burn(seconds: float) -> None:
        while time.process_time() < seconds:
            pass

    supervise(body)


def test_a_reset_group_starts_at_zero(parked: Callable[[GroupFiles], int]) -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        files = files_of(group)
        pid = parked(files)
        assert not group.reset(), "a process is in it"
        group.kill()
        os.waitpid(pid, 0)
        run_job(files, lambda: bytearray(100 * MIB))
        files.set_memory(32 * MIB)
        files.set_processes(3)
        if not group.reset():  # v2 before Linux 6.12 cannot set the peak back
            assert hierarchy.version == 2
            return
        again = files_of(group)
        assert again.oom_kills() == again.fork_refusals() == 0
        assert again.cpu_seconds() < 0.05
        assert again.memory_peak() < 8 * MIB
        assert run_job(again, lambda: bytearray(48 * MIB)) == 0, "the default limit is back"
        assert again.processes_peak() <= 8

    supervise(body)


def test_charged_memory_keeps_a_group_from_being_used_again() -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        kept = os.memfd_create("kept")
        run_job(files_of(group), lambda: os.write(kept, bytes(8 * MIB)))
        assert not group.reset()

    supervise(body)


def test_kill_ends_a_whole_tree() -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        files = files_of(group)
        run_job(files, spawn_sleepers)
        assert len(group.processes()) == 4
        pidfds = [os.pidfd_open(pid) for pid in group.processes()]
        group.kill()
        for fd in pidfds:
            assert select.select([fd], [], [], 5.0)[0]

    def spawn_sleepers() -> None:
        for _ in range(4):
            if os.fork() == 0:
                signal.pause()

    supervise(body)


def test_destroy_says_busy_while_a_process_is_inside(
    parked: Callable[[GroupFiles], int],
) -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        pid = parked(files_of(group))
        assert not group.destroy()
        group.kill()
        os.waitpid(pid, 0)
        assert group.destroy()
        assert group.destroy(), "twice does no harm"

    supervise(body)


def test_all_jobs_together_stay_under_the_caps() -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        files = files_of(group)
        files.set_memory(4096 * MIB)
        assert run_job(files, lambda: bytearray(300 * MIB)) == signal.SIGKILL
        files.set_processes(4096)

    supervise(body)


def test_nothing_of_ours_may_swap() -> None:
    def body(hierarchy: Hierarchy) -> None:
        group = hierarchy.create_slot(0)
        if hierarchy.version == 1:
            assert Path(f"{group.directory('memory')}/memory.swappiness").read_text() == "0\n"
        else:
            top = Path(group.directory("unified")).parent.parent
            assert (top / "memory.swap.max").read_text() == "0\n"

    supervise(body)


def test_an_instance_in_another_pid_namespace_is_left_alone() -> None:
    """Its number means another process here, or none: its group was taken for a dead one's,
    and every process in it killed.
    """

    def inside() -> None:
        hierarchy = Hierarchy.detect(LIMITS, cpus=1.0)
        hierarchy.name = "sandrun-4194303-1"
        assert is_stale(hierarchy.name)
        hierarchy.create(CAPS)
        try:
            assert hierarchy.name not in Hierarchy.detect().sweep_stale()
            assert hierarchy.create_slot(0).processes() == ()
        finally:
            assert hierarchy.destroy()

    assert in_child(inside) == 0
    assert not instances("sandrun-4194303-1")


def test_the_next_start_sweeps_what_a_killed_supervisor_left() -> None:
    ready, tell = os.pipe()

    def doomed() -> None:
        hierarchy = Hierarchy.detect(LIMITS)
        hierarchy.create(CAPS)
        files = files_of(hierarchy.create_slot(0))
        if os.fork() == 0:
            files.attach_self()
            os.dup2(tell, 1)
            os.closerange(3, 1024)  # as a process that was executed
            os.write(1, f"{hierarchy.name} {os.getpid()}".encode())
            signal.pause()
        signal.pause()

    pid = os.fork()
    if pid == 0:
        os._exit(run(doomed))
    name, orphan = os.read(ready, 200).decode().split()
    assert instances(name)
    orphan_fd = os.pidfd_open(int(orphan))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert name in Hierarchy.detect().sweep_stale()
    assert not instances(name)
    assert select.select([orphan_fd], [], [], 5.0)[0], "the job that was left is dead"


def test_a_living_supervisor_is_not_swept() -> None:
    def body(hierarchy: Hierarchy) -> None:
        assert hierarchy.name not in Hierarchy.detect().sweep_stale()
        assert hierarchy.create_slot(0).processes() == ()

    supervise(body)


def test_v2_nests_in_a_group_that_it_has_for_itself() -> None:
    """The normal deployment: a unit with Delegate=yes, a container's first process."""
    layout = find(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    if layout.version == 1:
        pytest.skip("v1 has no such rule")
    mount = Path(layout.ceilings["unified"])
    home = next(  # where our parents hand controllers on
        path
        for path in (
            Path(layout.directories["unified"]),
            *Path(layout.directories["unified"]).parents,
        )
        if {"memory", "pids", "cpu"} <= set((path / "cgroup.subtree_control").read_text().split())
    )
    assert home.is_relative_to(mount)
    own = home / f"sandrun-test-{os.getpid()}"
    own.mkdir()
    try:

        def supervisor() -> None:
            (own / "cgroup.procs").write_text("0")
            hierarchy = Hierarchy.detect(LIMITS)
            hierarchy.create(CAPS)
            assert (own / own_name(os.getpid()) / "service").is_dir()
            group = hierarchy.create_slot(0)
            files = files_of(group)
            assert run_job(files, lambda: bytearray(100 * MIB)) == signal.SIGKILL
            assert group.destroy()
            assert hierarchy.destroy()
            assert (own / "cgroup.procs").read_text() == f"{os.getpid()}\n"

        assert in_child(supervisor) == 0
    finally:
        assert remove_tree(str(own))
