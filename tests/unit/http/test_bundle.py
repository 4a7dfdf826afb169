"""The page's modules come as one script that says the same as they do apart."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode

import pytest

from sandrun.http.bundle import bundle
from sandrun.http.static import BUNDLE, Static, find_frontend

MODULES = {
    "app/main.js": """// A comment.

import whole from '../vendor/whole.js'
import { a as renamed, later,
  Thing } from './parts.js'
import * as parts from './parts.js'

console.log(whole(2), renamed, parts.a, later(), new Thing().name, parts.EXAMPLE)
""",
    "app/parts.js": """import { two } from '../vendor/list.js'
export const a = two
export async function* many() {}
export function later() { return many.name + twice(a) }
function twice(n) { return 2 * n }
export class Thing { name = 'thing' }
export const EXAMPLE = `
import sys
import (
`
""",
    "vendor/whole.js": "const a=40;export default function(n){return a+n}",
    "vendor/list.js": "/* kept */const t=2;export{t as two,t};\n",
}


def test_joined_modules_do_what_they_do_apart() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine: apt-get install nodejs")
    said = subprocess.run(
        [node, "--input-type=module", "-e", bundle(MODULES, "app/main.js")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "42 2 2 many4 thing \nimport sys\nimport (\n\n"


def test_a_module_that_two_import_runs_once_and_first() -> None:
    script = bundle(MODULES, "app/main.js")
    order = [line[3:] for line in script.splitlines() if line.startswith("// ") and "/" in line]
    assert order == ["vendor/whole.js", "vendor/list.js", "app/parts.js", "app/main.js"]


@pytest.mark.parametrize(
    "text",
    [
        "export let changes = 1\n",  # an importer's copy would not change with it
        "export * from './other.js'\n",
        "import './other.js'\n",
        "import a, { b } from './other.js'\n",
        "console.log(1)\nimport { late } from './other.js'\n",
        "console.log(import.meta.url)\n",
    ],
)
def test_a_form_that_is_not_known_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"app/main\.js: this form is not known"):
        bundle({"app/main.js": text, "app/other.js": ""}, "app/main.js")


def test_a_circle_and_a_missing_module_are_refused() -> None:
    circle = {"a.js": "import { b } from './b.js'\n", "b.js": "import { a } from './a.js'\n"}
    with pytest.raises(ValueError, match=r"a\.js: imports itself by way of a\.js and b\.js"):
        bundle(circle, "a.js")
    with pytest.raises(ValueError, match=r"a\.js: no module b\.js"):
        bundle({"a.js": circle["a.js"]}, "a.js")


def test_the_served_page_asks_for_two_files_by_what_they_contain() -> None:
    static = Static(find_frontend())
    assert static.page is not None
    page = static.page.body.decode()
    for path in ("app.css", "app/bundle.js"):
        assert f'"{path}?v={static.assets["/" + path].version}"' in page
    assert page.count("?v=") == 2
    assert b"\nexport " not in static.assets[BUNDLE].body


def test_what_stands_inside_the_page_is_allowed_by_its_hash_and_nothing_else() -> None:
    static = Static(find_frontend())
    assert static.page is not None
    (inside,) = re.findall(rb"<script>(.*?)</script>", static.page.body, re.DOTALL)
    digest = b64encode(hashlib.sha256(inside).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in static.page.policy
    assert b"http-equiv" not in static.page.body  # two policies would both have to allow it


def test_no_answer_can_end_the_element_that_carries_it() -> None:
    static = Static(find_frontend())
    answers = {"name": "</script><script>alert(1)</script><!--"}
    page = static.page_with(json.dumps(answers).encode()).decode()
    assert "alert(1)" in page
    (carried,) = re.findall(r'<script type="application/json" id="given">(.*?)</script>', page)
    assert "<" not in carried
    assert json.loads(carried) == answers
