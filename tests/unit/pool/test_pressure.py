"""When a host is too short of memory for one more job."""

from pathlib import Path

import pytest

from sandrun.job import MIB
from sandrun.pool.pressure import HostMemory, Pressure, parse_meminfo, parse_stall

GIB = 1024 * MIB


def test_refused_below_the_mark_and_taken_again_well_above_it():
    pressure = Pressure()
    looks = [
        (600, ""),
        (511, "the host has 511 MiB of memory left"),
        (520, "…"),
        (641, ""),
        (520, ""),
    ]
    for available, expected in looks:
        reason = pressure.judge(HostMemory(16 * GIB, available * MIB))
        assert bool(reason) == bool(expected), (available, reason)
    assert "511 MiB" in Pressure().judge(HostMemory(16 * GIB, 511 * MIB))


def test_a_small_host_has_a_lower_mark():
    assert not Pressure().judge(HostMemory(2 * GIB, 200 * MIB))
    assert Pressure().judge(HostMemory(2 * GIB, 100 * MIB))


def test_stalls_count_when_memory_is_short_and_not_when_there_is_plenty():
    """A job that thrashes at its own limit raises them, too: it must not close the door."""
    assert not Pressure().judge(HostMemory(16 * GIB, 8 * GIB, 90.0))
    assert "waited for it 50 %" in Pressure().judge(HostMemory(16 * GIB, GIB, 50.0))
    assert not Pressure().judge(HostMemory(16 * GIB, GIB, 5.0))


def test_only_a_host_that_is_short_itself_lacks_memory_that_results_could_give_back():
    """Jobs that had filled the memory set apart for jobs wiped what others had not fetched."""
    pressure = Pressure()
    assert pressure.judge(HostMemory(16 * GIB, 100 * MIB, host_bytes=900 * MIB))
    assert pressure.missing_bytes == 0
    assert pressure.judge(HostMemory(16 * GIB, 100 * MIB, host_bytes=100 * MIB))
    assert pressure.missing_bytes == 540 * MIB
    assert not pressure.judge(HostMemory(16 * GIB, GIB, host_bytes=GIB))
    assert pressure.missing_bytes == 0


def test_what_the_kernel_writes_is_read():
    total, available = parse_meminfo(Path("/proc/meminfo").read_text())
    assert 0 < available <= total
    some = "some avg10=1.00 avg60=0.00 avg300=0.00 total=1\n"
    assert parse_stall(some + "full avg10=12.34 avg60=1.00 avg300=0.00 total=1\n") == 12.34
    assert parse_stall(some) == 0.0
    try:
        text = Path("/proc/pressure/memory").read_text()
    except OSError:
        pytest.skip("this kernel has no PSI")
    assert 0.0 <= parse_stall(text) <= 100.0
