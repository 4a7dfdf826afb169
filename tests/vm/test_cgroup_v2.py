"""The tests of control groups and of the doctor on a pure cgroup v2 kernel, in a VM.

Takes some minutes, so only on demand: ``SANDRUN_VM=1 pytest tests/vm``, or the
script ``tests/vm/run`` by itself.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("SANDRUN_VM" not in os.environ, reason="minutes long: set SANDRUN_VM=1"),
]


@pytest.mark.parametrize("mode", ["plain", "child-group", "systemd"])
def test_v2(mode):
    done = subprocess.run([SCRIPT, mode], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
