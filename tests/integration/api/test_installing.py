"""What installing costs and tells: the real http, a supervisor that answers as it is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from sandrun.config import Config
from sandrun.messages import Install, Installed, InstallFailed


def ask(node: Any, requirements: str = "alpha\n", **files: str) -> Any:
    named = {"main.py": "hello", "requirements.txt": requirements, **files}
    parts = [("files", (name, io.BytesIO(text.encode()))) for name, text in named.items()]
    parts.append(("manifest", (None, json.dumps({"requirements": "requirements.txt"}))))
    return node.client.post("/run", files=parts)


def used(node: Any) -> float:
    found: float = node.client.get("/stats").json()["your_quota"]["used"]
    return found


def costs(seconds: float) -> Callable[[Install], Installed]:
    return lambda wish: Installed(
        request=wish.request,
        environment=wish.environment,
        seconds=seconds * 2,
        cpu_seconds=seconds,
        log="resolved 1 packages" if seconds else "",
    )


def test_installing_is_charged_and_a_hit_is_not(start: Callable[..., Any]) -> None:
    node = start(Config(), install=costs(6.0))
    first = ask(node).json()
    assert first["exit_reason"] == "exited"
    assert (first["timeline"]["install_seconds"], first["timeline"]["install_log"]) == (
        12.0,
        "resolved 1 packages",
    )
    after_first = used(node)
    assert 3.0 < after_first < 7.0  # some comes back meanwhile
    node.pool.install = costs(0.0)
    second = ask(node).json()
    assert (second["timeline"]["install_seconds"], second["timeline"]["install_log"]) == (0.0, None)
    assert used(node) < after_first + 0.5


def test_a_job_without_requirements_tells_of_no_installation(start: Callable[..., Any]) -> None:
    timeline = start(Config()).run().json()["timeline"]
    assert (timeline["install_seconds"], timeline["install_log"]) == (None, None)


@pytest.mark.parametrize("fault", [False, True])
def test_a_failed_installation_is_charged_unless_it_is_our_fault(
    start: Callable[..., Any], fault: bool
) -> None:
    def fail(wish: Install) -> InstallFailed:
        return InstallFailed(
            request=wish.request,
            reason="no solution: alpha",
            fault=fault,
            seconds=5.0,
            cpu_seconds=6.0,
        )

    node = start(Config(), install=fail)
    answer = ask(node).json()
    assert answer["exit_reason"] == ("server_fault" if fault else "dependency_error")
    assert answer["evidence"] == ["no solution: alpha"]
    assert answer["timeline"]["install_seconds"] == 5.0
    assert answer["timeline"]["started"] is None
    assert (used(node) < 0.5) is fault


def test_a_costly_installation_keeps_the_next_job_out(start: Callable[..., Any]) -> None:
    node = start(Config(), install=costs(40.0))
    assert ask(node).status_code == 200
    refused = ask(node)
    assert refused.status_code == 429
    assert refused.json()["details"]["reason"] == "cpu_seconds"
