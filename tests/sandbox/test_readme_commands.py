"""The commands under "Run something" in the README, word by word in one shell."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_commands_of_the_readme_do_what_they_say(server, tmp_path):
    """They left ``$JOB``, ``$KEY`` and ``project/`` to be guessed."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine: apt-get install curl")
    block = README.read_text().split("## Run something")[1].split("```sh\n")[1].split("```")[0]
    url = server.url
    script = block.replace("http://127.0.0.1:8000", url).replace(".venv/bin/python", sys.executable)
    script = script.replace("-m sandrun run", f"-m sandrun run --url {url}")
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer, end = json.JSONDecoder().raw_decode(done.stdout)
    assert answer["stdout"] == "42\n"
    events, file, rest = done.stdout[end:].partition("event: output\n")
    assert [line for line in events.splitlines() if line.startswith("event")] == [
        "event: job",
        "event: end",
    ]
    _, _, rest = (file + rest).partition("\n\n")
    answer, end = json.JSONDecoder().raw_decode(rest)
    assert answer["output_files"].keys() == {"said.txt"}
    upload, end = json.JSONDecoder().raw_decode(rest, end)
    assert upload["status"] == "accepted"
    with tarfile.open(tmp_path / "outputs.tar.gz") as archive:
        assert archive.getnames() == ["said.txt"]
    assert "--an-argument" in (tmp_path / "output/said.txt").read_text()
    assert "[1 output file in output/]" in done.stderr
