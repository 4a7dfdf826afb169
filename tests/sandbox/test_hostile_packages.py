"""Wheels that attack the server which installs them, through real HTTP."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest
import servers
import wheels

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a real server needs root")

MANIFEST = {"requirements": "requirements.txt"}
SHOUT = "#!/bin/sh\necho SHADOWED\n"


def data(name: str, files: dict[str, str]) -> dict[str, str]:
    """Files that a wheel puts below the environment's root."""
    inside = {f"{name}-1.0.data/{path}": text for path, text in files.items()}
    return {f"{name}/__init__.py": "", **inside}


def add_link(wheel, path: str, target: str) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        info = zipfile.ZipInfo(path)
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)


def add_zeros(wheel, path: str, size_mb: int) -> None:
    with (
        zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open(path, "w") as file,
    ):
        for _ in range(size_mb):
            file.write(bytes(1024 * 1024))


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheels")
    directory.chmod(0o755)  # the installer is another user
    shadows = {f"scripts/{name}": SHOUT for name in ("node", "bash", "perl", "python4")}
    wheels.make(directory, "shadow", "1.0", data("shadow", shadows))
    wheels.make(directory, "reserved", "1.0", data("reserved", {"scripts/python3": SHOUT}))
    wheels.make(directory, "entry", "1.0", scripts={"python3": "entry:main"})
    home = "home = /opt/env/stolen\n"
    stolen = {"data/stolen/lib/python3.11/encodings/__init__.py": "import os; os._exit(7)\n"}
    wheels.make(directory, "venv", "1.0", data("venv", {"data/pyvenv.cfg": home, **stolen}))
    wheels.make(directory, "below", "1.0", data("below", {"data/bin/pyvenv.cfg": home}))
    wheels.make(directory, "tree", "1.0", data("tree", {"data/bin/pybuilddir.txt": "x\n"}))
    start = {
        "start.pth": "import os; os.environ['FROM_PTH'] = str(os.getpid())\n",
        "sitecustomize.py": "import builtins; builtins.CUSTOM = True\n",
        "start/__init__.py": "",
    }
    wheels.make(directory, "start", "1.0", start)
    away = {f"{'../' * 8}work/escaped": "1", f"{'../' * 5}bin/node": SHOUT, "away/a.py": ""}
    wheels.make(directory, "away", "1.0", away)
    add_link(wheels.make(directory, "linked", "1.0"), "linked/passwd", "/etc/passwd")
    add_zeros(wheels.make(directory, "bomb", "1.0"), "bomb/zeros", 512)
    deep = {"deep/__init__.py": "", f"deep/{'a/' * 1900}b.py": ""}
    wheels.make(directory, "deep", "1.0", deep)
    record = {"data/sandrun-environment.json/x": ""}
    wheels.make(directory, "record", "1.0", data("record", record))
    wheels.make(
        directory,
        "wordy",
        "1.0",
        {
            "wordy/__init__.py": "VERSION = '1.0'",
            "wordy.egg-info/PKG-INFO": "Name: wordy\n" * 1_000_000,
        },
    )
    wheels.make(directory, "good", "1.0")
    toml = (
        f'{servers.NO_RATE_LIMIT}[packages]\nfind_links = ["{directory}"]\n'
        "offline = true\ncache_mb = 128\n"
    )
    with servers.running(toml) as server:
        yield server


def job(node, package: str, code: str, **manifest):
    files = {"main.py": code, "requirements.txt": package}
    return node.run(files, manifest=MANIFEST | manifest)


def test_no_program_of_a_wheel_takes_an_interpreters_place(node):
    """The pool asks each for its version, outside of any job: that must be the host's."""
    code = "import os; print(sorted(os.listdir('/opt/env/bin')))"
    answer = job(node, "shadow", code)
    assert answer["exit_reason"] == "exited", answer["evidence"]
    assert not {"node", "bash", "perl", "python4"} & set(eval(answer["stdout"]))  # noqa: S307


@pytest.mark.parametrize("package", ["reserved", "entry", "venv", "below", "tree"])
def test_a_wheel_that_writes_over_the_venv_is_refused(node, package):
    """``pyvenv.cfg`` decides where the standard library is: it is code, even under ``-I -S``."""
    answer = job(node, package, "print(1)")
    assert answer["exit_reason"] == "dependency_error"
    assert "python3" in answer["evidence"][0] or "of its own" in answer["evidence"][0]


def test_what_a_wheel_runs_at_the_start_of_python_runs_in_its_own_job_only(node):
    code = (
        "import builtins, os\n"
        "print(os.environ.get('FROM_PTH') == '1', getattr(builtins, 'CUSTOM', False))\n"
        "print(os.getpid() == 1, os.getuid())\n"
    )
    answer = job(node, "start", code)
    # Whatever of it ran, ran as the job: PID 1 has not read the directory.
    assert answer["exit_reason"] == "exited", answer["evidence"]
    assert answer["stdout"].splitlines()[0].startswith("False")
    assert answer["stdout"].splitlines()[1] == "False 1000"
    for other in (node.python(code), job(node, "good", code)):
        assert other["stdout"] == "False False\nFalse 1000\n"


def test_no_path_of_a_wheel_leads_out_of_the_environment(node):
    code = (
        "import os\n"
        "print(os.path.exists('/work/escaped'), os.path.exists('/opt/env/bin/node'))\n"
        "print([n for r, _, f in os.walk('/opt/env') for n in f if n == 'escaped'])\n"
    )
    answer = job(node, "away", code)
    assert answer["exit_reason"] == "dependency_error" or answer["stdout"] == "False False\n[]\n"


def test_a_link_in_a_wheel_is_not_one(node):
    code = (
        "import linked, os; p = os.path.join(os.path.dirname(linked.__file__), 'passwd')\n"
        "print(os.path.islink(p), open(p).read())"
    )
    answer = job(node, "linked", code)
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", "False /etc/passwd\n")


def test_a_bomb_hurts_its_own_job_and_the_next_installation_works(node):
    answer = job(node, "bomb", "print(1)")
    assert answer["exit_reason"] == "dependency_error", answer
    assert "good" not in answer["evidence"][0]
    after = job(node, "good", "import good; print(good.VERSION)")
    assert (after["exit_reason"], after["stdout"]) == ("exited", "1.0\n"), after["evidence"]


def test_a_package_of_a_thousand_directories_is_refused_and_leaves_nothing(node):
    """Python gave up on removing them: nobody got an answer, and the memory was gone."""
    answer = job(node, "deep", "print(1)")
    assert (answer["exit_reason"], answer["stdout"]) == ("dependency_error", "")
    assert "directories" in answer["evidence"][0]
    left = os.listdir(f"/proc/{node.process.pid}/root/run/sandrun")
    assert not [name for name in left if not name.startswith("requirements-")]


def test_a_package_that_takes_the_place_of_the_record_is_at_fault_itself(node):
    answer = job(node, "record", "print(1)")
    assert answer["exit_reason"] == "dependency_error"
    assert "sandrun-environment.json" in answer["evidence"][0]


def test_the_server_does_not_read_what_a_package_says_of_itself(node):
    """Root's process parsed it, at twenty times its size, and everybody waited."""
    answer = job(node, "wordy", "import wordy; print(wordy.VERSION)")
    assert (answer["exit_reason"], answer["stdout"]) == ("exited", "1.0\n"), answer["evidence"]
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak) < 100 * 1024
