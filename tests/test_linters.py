"""ruff, formatting, types and who may import whom, as tests: one command for all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "sandrun").rglob("*.py"))

# (who, what it may never import, why)
CONTRACTS = (
    ("sandrun/http", ("sandrun.pool", "ctypes", "sandrun.supervisor"), "http has no privileges"),
    ("sandrun/pool", ("sandrun.http",), "root never parses what clients send"),
    ("sandrun/pool/zygote", ("asyncio", "logging", "h11", "uvloop", "cgroupspy", "pyseccomp",
                             "subprocess", "hashlib", "tarfile", "zipfile", "sandrun.config"),
     "every import is on every job's bill"),
)
# Modules that must not do I/O: no os, no socket, no clock.
SANS_IO = (
    "sandrun/job.py", "sandrun/messages.py", "sandrun/errors.py", "sandrun/manifest.py",
    "sandrun/globs.py", "sandrun/paths.py", "sandrun/restart.py", "sandrun/pool/lifecycle.py",
    "sandrun/verdict.py", "sandrun/pool/mounts.py", "sandrun/http/quota.py",
    "sandrun/http/queue.py", "sandrun/http/young.py", "sandrun/http/router.py", "sandrun/http/framing.py",
    "sandrun/http/connection.py", "sandrun/http/websocket.py", "sandrun/http/listener.py",
)  # fmt: skip
IO_MODULES = {"socket", "time", "asyncio", "subprocess", "select", "threading"}
CTYPES_HOMES = ("sandrun/pool/linux/", "sandrun/pool/native/launcher.py", "sandrun/confine.py",
                "sandrun/pool/zygote/warm_python.py", "sandrun/probes.py", "sandrun/selftest/")  # fmt: skip


def run(*argv):
    result = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout + result.stderr


def test_ruff_has_nothing_to_say():
    code, text = run("ruff", "check", "--output-format", "concise", ".")
    assert code == 0, text


def test_the_code_is_formatted():
    code, text = run("ruff", "format", "--check", "sandrun", "bench")
    assert code == 0, text


@pytest.mark.timeout(300)
def test_types_are_strict():
    code, text = run("mypy", "--no-error-summary")
    assert code == 0, text


def imports(path):
    """Modules that a file imports at run time (not those under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text())
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hidden |= {id(child) for part in node.body for child in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("folder", "forbidden", "why"), CONTRACTS, ids=lambda v: str(v)[:20])
def test_who_may_import_whom(folder, forbidden, why):
    for path in MODULES:
        name = str(path.relative_to(ROOT))
        if not name.startswith(folder + "/"):
            continue
        for module in imports(path):
            for bad in forbidden:
                assert module != bad and not module.startswith(bad + "."), f"{name}: {module}: {why}"


@pytest.mark.parametrize("name", SANS_IO)
def test_pure_modules_import_no_io(name):
    found = set(imports(ROOT / name)) & IO_MODULES
    assert not found, f"{name} imports {found}"


def test_ctypes_has_few_homes():
    for path in MODULES:
        name = str(path.relative_to(ROOT))
        if "ctypes" in set(imports(path)):
            assert name.startswith(CTYPES_HOMES), name


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_says_what_it_is(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc, f"{path} has no docstring"


def test_the_lock_is_current():
    code, text = run("uv", "lock", "--check", "--offline")
    if "ModuleNotFoundError" in text or "No module named" in text:
        pytest.skip("uv is not installed")
    assert code == 0 or "offline" in text.lower(), text
