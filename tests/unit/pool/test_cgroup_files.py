"""PID 1's view of its group: both versions' file formats, on ordinary files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandrun.pool.zygote.group import POLLIN, POLLPRI, GroupFiles

V1 = {
    "attach.memory": "",
    "attach.pids": "",
    "memory.limit_in_bytes": "",
    "pids.max": "64\n",
    "memory.max_usage_in_bytes": "5000\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "pids.events": "max 3\n",
    "cpuacct.usage": "1500000000\n",
}
V2 = {
    "attach.unified": "",
    "memory.max": "",
    "pids.max": "64\n",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 1\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n",
    "pids.events": "max 3\n",
    "memory.current": "4000\n",
    "memory.peak": "5000\n",
    "pids.current": "2\n",
    "pids.peak": "7\n",
}


class Fake:
    """A directory of files and the descriptors to them."""

    def __init__(self, directory: Path, content: dict[str, str]) -> None:
        self.directory = directory
        for name, text in content.items():
            self[name] = text
        fds = tuple(os.open(directory / name, os.O_RDWR) for name in content)
        self.group = GroupFiles(tuple(content), fds)

    def __setitem__(self, name: str, text: str) -> None:
        with open(self.directory / name, "w") as file:
            file.write(text)

    def __getitem__(self, name: str) -> str:
        return (self.directory / name).read_text()


@pytest.fixture(params=[V1, V2], ids=["v1", "v2"])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Fake:
    return Fake(tmp_path, request.param)


def test_counters_start_at_zero_whatever_the_kernel_says(fake: Fake) -> None:
    assert fake.group.cpu_seconds() == 0
    assert fake.group.oom_kills() == 0
    assert fake.group.fork_refusals() == 0


def test_counters_count_from_there(fake: Fake) -> None:
    for name in ("memory.oom_control", "memory.events"):
        fake[name] = "oom 9\noom_kill 5\n"
    fake["pids.events"] = "max 4\n"
    fake["cpuacct.usage"] = "2000000000\n"
    fake["cpu.stat"] = "usage_usec 2000000\n"
    assert fake.group.oom_kills() == 3
    assert fake.group.fork_refusals() == 1
    assert fake.group.cpu_seconds() == pytest.approx(0.5)


def test_memory_peak(fake: Fake) -> None:
    assert fake.group.memory_peak() == 5000


def test_attach_writes_zero_everywhere(tmp_path: Path) -> None:
    fake = Fake(tmp_path, V1)
    fake.group.attach_self()
    assert fake["attach.memory"] == fake["attach.pids"] == "0"


def test_limits_are_written(fake: Fake) -> None:
    fake.group.set_memory(1 << 20)
    fake.group.set_processes(12)
    written = "memory.max" if (fake.directory / "memory.max").exists() else "memory.limit_in_bytes"
    assert fake[written] == "1048576"
    assert fake["pids.max"].startswith("12")


def test_processes_peak_is_the_kernel_s_where_this_job_got_higher(
    tmp_path: Path,
) -> None:
    fake = Fake(tmp_path, V2)
    assert fake.group.processes_peak() == 2, "7 was an earlier job's"
    fake["pids.peak"] = "9\n"
    assert fake.group.processes_peak() == 9


def test_processes_peak_remembers_what_it_saw(tmp_path: Path) -> None:
    fake = Fake(tmp_path, V2)
    fake["pids.current"] = "5\n"
    assert fake.group.processes_peak() == 5
    fake["pids.current"] = "1\n"
    assert fake.group.processes_peak() == 5


def test_processes_peak_is_the_limit_after_a_refused_fork(fake: Fake) -> None:
    fake["pids.events"] = "max 4\n"
    assert fake.group.processes_peak() == 64


def test_without_a_peak_file_the_usage_seen_stands_in(tmp_path: Path) -> None:
    fake = Fake(tmp_path, {name: text for name, text in V2.items() if name != "memory.peak"})
    assert fake.group.memory_peak() == 4000
    fake["memory.current"] = "10\n"
    assert fake.group.memory_peak() == 4000
    assert fake.group.memory_now() == 10


def test_v1_finds_the_usage_by_setting_the_peak_back(tmp_path: Path) -> None:
    fake = Fake(tmp_path, V1)
    fake.group.memory_now()
    assert fake["memory.max_usage_in_bytes"].startswith("0")
    assert fake.group.memory_peak() == 5000, "the peak is remembered"


def test_what_to_poll_for(tmp_path: Path) -> None:
    assert Fake(tmp_path, V2).group.oom_poll_mask == POLLPRI
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    fds = tuple(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in V1)
    for name, text in V1.items():
        (tmp_path / name).write_text(text)
    group = GroupFiles((*V1, "oom.event"), (*fds, event))
    assert group.oom_poll_mask == POLLIN
    assert group.oom_fd == event
    os.eventfd_write(event, 1)
    group.clear_oom_event()
    group.clear_oom_event()  # nothing there: no harm
    group.close()


def test_close_closes_all(fake: Fake) -> None:
    fake.group.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        fake.group.set_processes(1)
    fake.group.close()


def test_names_and_descriptors_go_together() -> None:
    with pytest.raises(ValueError, match="1 control files, 0 descriptors"):
        GroupFiles(("pids.max",), ())


@pytest.mark.parametrize("missing", ["memory.max", "pids.max", "memory.events", "cpu.stat"])
def test_a_group_without_what_enforces_limits_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ValueError, match="no control file"):
        Fake(tmp_path, {name: text for name, text in V2.items() if name != missing})


def test_a_table_without_the_counter_is_refused(tmp_path: Path) -> None:
    """Linux before 4.13 counts no OOM kills: a limit that nobody could explain."""
    with pytest.raises(ValueError, match="oom_kill"):
        Fake(tmp_path, V1 | {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"})
