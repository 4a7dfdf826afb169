"""Which disks get a rate."""

from __future__ import annotations

from pathlib import Path

from sandrun.pool.disks import disks, readings


def test_disks_are_those_with_a_size_that_are_not_memory(tmp_path: Path) -> None:
    found = (("sda", "100", "8:0"), ("zram0", "8", "253:0"), ("loop0", "0", "7:0"))
    for name, size, number in found:
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
        (tmp_path / name / "dev").write_text(f"{number}\n")
    (tmp_path / "gone").mkdir()
    assert disks(str(tmp_path)) == ("8:0",)
    assert disks(str(tmp_path / "no-sys")) == ()


def test_a_reading_counts_as_64_kib_at_least() -> None:
    assert readings(100 * 1024 * 1024) == 1600
    assert readings(1) == 1, "0 would be no reading at all"
