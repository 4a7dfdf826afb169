"""Jobs that bring requirements, through real HTTP: installed once, then warm."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import pytest
import servers
import wheels

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")

CODE = "import sys, alpha, beta; print(alpha.VERSION, beta.VERSION, sys.prefix)"
WANTED = "1.0 1.0 /opt/env\n"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A server whose index is a directory: ``alpha`` needs ``beta``."""
    directory = tmp_path_factory.mktemp("wheels")
    directory.chmod(0o755)  # the installer is another user
    wheels.make(directory, "alpha", "1.0", requires=["beta"])
    wheels.make(directory, "beta", "1.0")
    toml = f'{servers.NO_RATE_LIMIT}[packages]\nfind_links = ["{directory}"]\noffline = true\n'
    with servers.running(toml) as server:
        yield server


def asking(text: str, code: str = CODE) -> dict[str, str]:
    return {"main.py": code, "requirements.txt": text}


MANIFEST = {"requirements": "requirements.txt"}


def test_a_requirement_is_installed_and_the_job_runs(node):
    answer = node.run(asking("alpha\n"), manifest=MANIFEST)
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", WANTED), answer["evidence"]


def test_the_same_lock_leads_to_the_same_environment(node):
    first = node.run(asking("alpha\n"), manifest=MANIFEST)
    second = node.run(asking("# again\nalpha>=1\nbeta\n"), manifest=MANIFEST)
    names = {a["execution_metadata"]["environment"] for a in (first, second)}
    assert len(names) == 1


def test_requirements_inside_an_archive_named_by_its_job_json(node):
    files = asking("alpha\n") | {"job.json": '{"requirements": "requirements.txt"}'}
    answer = node.run(archive=servers.tar_of(files))
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", WANTED), answer["evidence"]


def test_requirements_inside_an_archive_named_by_the_manifest(node):
    files = {"main.py": CODE, "needs/all.txt": "alpha\n"}
    answer = node.run(archive=servers.tar_of(files), manifest={"requirements": "needs/all.txt"})
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", WANTED), answer["evidence"]


@pytest.mark.parametrize(
    "line", ["-r /etc/passwd", "x @ file:///etc/passwd", "--index-url http://h/"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_is_no_requirement_is_named(node, line, packed):
    files = asking(f"beta\n{line}\n")
    if packed:
        answer = node.run(archive=servers.tar_of(files), manifest=MANIFEST)
    else:
        answer = node.run(files, manifest=MANIFEST)
    assert answer["exit_reason"] == "dependency_error"
    assert "line 2" in answer["evidence"][0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_without_requirements_is_no_error(node, packed):
    files = asking("# nothing yet\n", "print(1)")
    if packed:
        answer = node.run(archive=servers.tar_of(files), manifest=MANIFEST)
    else:
        answer = node.run(files, manifest=MANIFEST)
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", "1\n"), answer["evidence"]


def test_a_restarted_http_loses_no_job_that_waits_for_its_requirements(node):
    """A spare wheel makes a new lock, so that there is something to wait for."""
    code = "import alpha; print(alpha.VERSION)"
    job = node.post("/submit", asking("alpha>=0.5\n", code), manifest=MANIFEST).json()
    http = servers.http_of(node.process.pid)
    os.kill(http, signal.SIGKILL)
    answer = {}
    deadline = time.monotonic() + 60
    while answer.get("status") not in ("completed", "failed") and time.monotonic() < deadline:
        try:
            answer = node.client.get(f"/status/{job['job_id']}").json()
        except httpx.TransportError:
            continue  # it is being started
    assert answer["exit_reason"] == "exited", answer
    assert node.client.get(f"/logs/{job['job_id']}").json()["stdout"] == "1.0\n"


def test_what_the_index_has_not_ends_with_the_resolvers_words(node):
    answer = node.run(asking("alpha==9\n"), manifest=MANIFEST)
    assert answer["exit_reason"] == "dependency_error"
    assert "alpha" in answer["evidence"][0]


def test_the_packages_cannot_be_changed_by_a_job(node):
    """Hard links, writes, renames: the next job finds what was installed."""
    code = (
        "import os, alpha\n"
        "path = alpha.__file__\n"
        "for act in (lambda: open(path, 'a'), lambda: os.link(path, 'here'),\n"
        "            lambda: os.chmod(path, 0o666), lambda: os.unlink(path),\n"
        "            lambda: os.rename(os.path.dirname(path), '/work/x'),\n"
        "            lambda: os.mkdir('/opt/env/new')):\n"
        "    try: act(); print('DONE')\n"
        "    except OSError as error: print(error.errno)\n"
    )
    answer = node.run(asking("alpha\n", code), manifest=MANIFEST)
    assert answer["exit_reason"] == "exited", answer["evidence"]
    assert "DONE" not in answer["stdout"]
    assert node.run(asking("alpha\n"), manifest=MANIFEST)["stdout"] == WANTED


def test_other_jobs_do_not_see_them_and_are_told_how_to(node):
    answer = node.python("import alpha")
    assert answer["exit_reason"] == "nonzero_exit"
    assert 'a line "alpha"' in answer["remedy"]


def test_nobody_may_name_such_an_environment_himself(node):
    name = node.run(asking("alpha\n"), manifest=MANIFEST)["execution_metadata"]["environment"]
    response = node.post("/run", {"main.py": CODE}, manifest={"environment": name})
    assert response.status_code == 400


def test_the_host_sees_no_mount_of_the_cache(node):
    assert node.run(asking("alpha\n"), manifest=MANIFEST)["exit_reason"] == "exited"
    assert "/run/sandrun" not in Path("/proc/self/mountinfo").read_text()


def test_a_real_requirement_from_the_index_that_this_host_uses():
    with servers.running(servers.NO_RATE_LIMIT) as server:
        code = "import six; print(six.moves.range(3))"
        answer = server.run(asking("six>=1.16\n", code), manifest=MANIFEST)
    if answer["exit_reason"] == "dependency_error":
        pytest.skip(f"the package index cannot be reached: {answer['evidence'][0][:200]}")
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", "range(0, 3)\n"), answer
