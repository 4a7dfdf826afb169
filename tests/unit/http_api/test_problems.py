"""The table of problem codes is what the source can say, and what the interface tells."""

from __future__ import annotations

import ast
from pathlib import Path

from sandrun.http import openapi
from sandrun.http.problems import PROBLEMS

SOURCE = Path(__file__).parents[3] / "sandrun"
# Written without RequestError: an answer of bytes at the door, and of last resort.
ELSEWHERE = {"internal_error", "too_many_connections"}


def codes_in_the_source() -> set[str]:
    """Second argument of each ``RequestError(status, code, ...)`` and ``refuse(...)``."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in {"RequestError", "refuse"} and len(node.args) > 1:
                code = node.args[1]
                if isinstance(code, ast.Constant):
                    found.add(code.value)
                else:  # refuse() hands on what it was given
                    assert ast.unparse(code) == "code", f"{path}:{node.lineno}"
    return found


def test_every_code_is_in_the_table_and_nothing_else() -> None:
    assert codes_in_the_source() | ELSEWHERE == PROBLEMS.keys()


def test_the_interface_lists_them() -> None:
    described = openapi.document()["components"]["schemas"]["Problem"]["properties"]["code"]
    assert described["enum"] == sorted(PROBLEMS)
    assert all(f"`{code}`" in described["description"] for code in PROBLEMS)
