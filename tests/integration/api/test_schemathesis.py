"""schemathesis against the running http process, from its own /openapi.json.

What it generates is cut off by a number of cases, not by time; its seed is fixed, so
that a failure here is a change of ours.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

# JSON Schema cannot say which paths are safe, that there is code or files but not both,
# which interpreters this host has, or which numbers are cursors of a log: there a 400
# is the right answer to "valid" data.
SETTINGS = """
[[operations]]
include-path-regex = "^/(submit$|run$|validate$|logs/|stream/|ws/)"
checks.positive_data_acceptance.enabled = false
"""
EXAMPLES = 12  # per operation and phase: about 1000 requests in all


@pytest.mark.timeout(180)
def test_the_server_is_what_its_openapi_says(start: Callable[..., Any], tmp_path: Path) -> None:
    node = start()
    described = node.client.get("/openapi.json").json()
    for path in ("/submit", "/run"):
        # A repetition is answered from its key and its body left unread: "wrong" ones too.
        del described["paths"][path]["post"]["parameters"][-1]
    file = tmp_path / "openapi.json"
    file.write_bytes(msgspec.json.encode(described))
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    argv = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run"]
    argv += ["--max-examples", str(EXAMPLES), "--seed", "1", "--request-timeout", "20"]
    argv += ["--generation-database", "none", "--warnings", "off", "--url", node.url, str(file)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
