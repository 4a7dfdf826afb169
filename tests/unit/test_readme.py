"""What the README says is tested, is."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILES = {
    "C": "tests/sandbox/test_crash.py",
    "L": "tests/sandbox/test_server_life.py",
    "F": "tests/sandbox/test_faults.py",
    "P": "tests/sandbox/test_crash_phases.py",
    "J": "tests/unit/http_api/test_clock_jumps.py",
}


def test_each_row_of_what_survives_what_names_tests_that_exist():
    section = (ROOT / "README.md").read_text().split("## What survives what")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        named = re.findall(r"\b([CLFPJ]) `(\w+)`", row)
        assert named, row
        for letter, name in named:
            assert f"def test_{name}(" in (ROOT / FILES[letter]).read_text(), name
