"""The unit file for systemd says what the server needs of it."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandrun import supervisor
from sandrun.__main__ import EX_CONFIG, EX_UNAVAILABLE
from sandrun.config import Config

UNIT = Path(__file__).parent.parent.parent / "sandrun.service"


def service():
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return parser["Service"]


def test_it_gives_the_server_time_to_drain_and_leaves_its_jobs_alone():
    unit = service()
    drain_s = Config().pool.drain_seconds + supervisor.DRAIN_MARGIN_S
    assert float(unit["TimeoutStopSec"]) > drain_s
    assert unit["KillMode"] == "mixed"
    assert unit["OOMPolicy"] == "continue"
    assert unit["Delegate"] == "yes"
    assert int(unit["LimitNOFILE"]) > Config().http.max_connections * 4


def test_it_is_told_of_readiness_and_does_not_start_again_what_cannot_run():
    unit = service()
    assert unit["Type"] == "notify"
    assert unit["RestartPreventExitStatus"].split() == [str(EX_CONFIG), str(EX_UNAVAILABLE)]
    assert int(unit["WatchdogSec"]) > 2


def test_systemd_understands_all_of_it(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", UNIT.read_text())
    copy = tmp_path / "sandrun.service"
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "sandrun.service" in line]
    assert ours == [], done.stderr
