"""Directories dropped, chosen and pasted; what is left out; what is warned of."""

import json
import re
import shutil

import pytest
from playwright.sync_api import expect

WALK = """
import os
for directory, names, files in sorted(os.walk(".")):
    print("D", directory)
    for name in sorted(files):
        path = os.path.join(directory, name)
        print("F", path, os.path.getsize(path))
"""


@pytest.fixture
def project(tmp_path):
    """300 files in nested directories: several scripts, spaces, long names, empty ones."""
    root = tmp_path / "My project ✦"
    names = ["plain.txt", "with space.txt", "日本語.txt", "файл.txt", "ملف.txt", "emoji 🏜️.txt", "é.txt",
             "quote'\".txt", "<b>&amp;.txt", "#hash?.txt", "x" * 120 + ".txt"]  # fmt: skip
    for i in range(299 - len(names)):
        names.append(f"deep {i % 7}/{'nested/' * (i % 5)}file_{i}.dat")
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * number)
    (root / "empty").mkdir()
    (root / "hollow" / "inside").mkdir(parents=True)
    (root / "main.py").write_text(WALK)
    return root


def walk(root):
    """What WALK prints for this directory."""
    import os

    lines = []
    for directory, _, files in sorted(os.walk(root)):
        place = os.path.relpath(directory, root)
        lines.append(f"D {'.' if place == '.' else './' + place}")
        lines += [
            f"F {'' if place == '.' else ''}./{'' if place == '.' else place + '/'}{name} {os.path.getsize(os.path.join(directory, name))}"
            for name in sorted(files)
        ]
    return lines


def raw_log(page, server):
    return server.client.get(f"/logs/{job_id(page)}", headers={"Accept": "text/plain"}).text


def job_id(page):
    return re.search(r"#job=([\w-]+)", page.raw.url)[1]


def test_a_nested_directory_of_300_files_arrives_whole(page, server, project):
    page.drop(project)
    expect(page.raw.get_by_role("tab", name="Code")).to_contain_text("300")
    page.run()
    assert raw_log(page, server).splitlines() == walk(project)


def test_what_is_usually_not_wanted_is_left_out_and_one_click_takes_it(page, server, tmp_path):
    root = tmp_path / "project"
    for path in ("main.py", "node_modules/pkg/index.js", ".git/HEAD", "src/__pycache__/a.pyc"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(WALK if path == "main.py" else "x")
    page.drop(root)
    notice = page.raw.locator(".notice", has_text="Left out")
    for name in (".git", "node_modules", "src/__pycache__"):
        expect(notice).to_contain_text(name)
    page.button("Include node_modules").click()
    expect(notice).not_to_contain_text("node_modules")
    page.run()
    text = raw_log(page, server)
    assert "./node_modules/pkg/index.js" in text
    assert ".git" not in text
    assert "__pycache__" not in text


def test_likely_secrets_raise_a_warning_and_can_be_taken_out(page, server, tmp_path):
    for path in (".env", "keys/id_rsa", ".env.example"):
        (tmp_path / "p" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / path).write_text("SECRET")
    (tmp_path / "p" / "main.py").write_text(WALK)
    page.drop(tmp_path / "p")
    notice = page.raw.locator(".notice", has_text="secrets")
    expect(notice).to_contain_text("2 files")
    notice.get_by_role("button", name="Remove").click()
    expect(notice).to_have_count(0)
    page.run()
    text = raw_log(page, server)
    assert "id_rsa" not in text
    assert ".env.example" in text


def test_job_json_in_the_drop_fills_the_form(page, tmp_path):
    job = {
        "entrypoint": "go.py",
        "args": ["a b", "c"],
        "memory_mb": 128,
        "outputs": ["out/*"],
        "env": {"K": "v"},
        "stdin": "in",
    }
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "job.json").write_text(json.dumps(job))
    (tmp_path / "p" / "go.py").write_text(
        "import sys, os\nprint(sys.argv[1:], os.environ['K'], sys.stdin.read())\n"
    )
    page.drop(tmp_path / "p")
    expect(page.raw.locator(".command")).to_contain_text("python3 go.py 'a b' c")
    page.settings()
    expect(page.raw.locator("#f-memory_mb")).to_have_value("128")
    expect(page.raw.get_by_label("Patterns")).to_have_value("out/*")
    page.raw.get_by_label("Arguments").fill("")  # the form wins, also where it is emptied
    page.run()
    expect(page.log).to_contain_text("[] v in")


def test_a_folder_can_be_chosen(page, tmp_path):
    (tmp_path / "chosen" / "lib").mkdir(parents=True)
    (tmp_path / "chosen" / "main.py").write_text("import lib.tool\n")
    (tmp_path / "chosen" / "lib" / "tool.py").write_text("print('imported')\n")
    page.raw.locator("input[webkitdirectory]").set_input_files(tmp_path / "chosen")
    expect(page.raw.locator(".tree")).to_contain_text("tool.py")
    page.run()
    expect(page.log).to_contain_text("imported")


def test_a_script_can_be_pasted(page):
    page.button("Open files").click()
    page.raw.locator(".menu-item", has_text="Empty the workspace").click()
    expect(page.raw.get_by_text("Drop a directory here")).to_be_visible()
    page.raw.evaluate("navigator.clipboard.writeText('#!/bin/sh\\necho pasted\\n')")
    page.raw.keyboard.press("Control+v")
    expect(page.raw.locator(".command")).to_contain_text("main.sh")
    page.run()
    expect(page.log).to_contain_text("pasted")


def test_an_archive_that_is_dropped_alone_is_unpacked(page, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "main.py").write_text("print(open('data.txt').read())\n")
    (tmp_path / "p" / "data.txt").write_text("out of the zip")
    page.drop(shutil.make_archive(str(tmp_path / "Project"), "zip", tmp_path, "p"))
    expect(page.raw.get_by_text("is unpacked by the server")).to_be_visible()
    page.run()
    assert page.log_lines() == ["out of the zip"]


def test_a_script_from_a_clipboard_with_crlf_is_a_script(page):
    page.button("Open files").click()
    page.raw.locator(".menu-item", has_text="Empty the workspace").click()
    page.raw.evaluate(
        """() => {
          const clipboardData = new DataTransfer()
          clipboardData.setData('text/plain', '#!/bin/sh\\r\\nif true; then\\r\\n\\techo fine 🏜️\\r\\nfi\\r\\n')
          document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true }))
        }"""
    )
    expect(page.raw.locator(".command")).to_contain_text("main.sh")
    page.run()
    assert page.log_lines() == ["fine 🏜️"]


def test_the_only_program_of_a_project_runs_wherever_it_lies(page, tmp_path):
    for path in ("README.md", "src/main.py", "src/lib/__init__.py", "src/lib/tool.py"):
        (tmp_path / "p" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / path).write_text("from lib import tool\nprint('found')\n" if "main" in path else "")
    page.drop(tmp_path / "p")
    expect(page.raw.locator(".command")).to_contain_text("python3 src/main.py")
    page.run()
    assert page.log_lines() == ["found"]


def test_a_file_that_nothing_runs_leads_to_its_setting(page, tmp_path):
    (tmp_path / "Main.java").write_text("public class Main {}")
    page.drop(tmp_path / "Main.java")
    page.run(headline="Not started: the upload cannot run as it is")
    page.button("Set the interpreter").click()
    expect(page.raw.get_by_label("Interpreter")).to_be_focused()


def test_a_dropped_file_can_be_edited_before_it_runs(page, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "main.py").write_text("print(open('word.txt').read())\n")
    (tmp_path / "p" / "word.txt").write_text("before")
    page.drop(tmp_path / "p")
    page.raw.locator(".tree .row-main", has_text="word.txt").click()
    page.write("after")
    page.run()
    assert page.log_lines() == ["after"]


def test_output_patterns_show_what_they_match_while_they_are_typed(page, tmp_path):
    for path in ("main.py", "data/a.csv", "data/b.csv", "notes.md"):
        (tmp_path / "p" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / path).write_text("pass")
    page.drop(tmp_path / "p")
    page.settings()
    patterns = page.raw.get_by_label("Patterns")
    patterns.fill("data/*.csv")
    expect(page.raw.get_by_text("Matches 2 files of yours")).to_be_visible()
    patterns.fill("data/*.csv\n!b.*")
    expect(page.raw.get_by_text("Matches 1 file of yours")).to_be_visible()


def test_an_upload_over_the_limit_is_refused_with_the_limit_before_it_is_sent(
    open_page, start_server, tmp_path
):
    import os

    server = start_server("[http]\nmax_upload_mb = 1\n[rate_limit]\nenabled = false\n")
    page = open_page(server.url)
    page.is_ready()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "main.py").write_text("pass")
    (tmp_path / "p" / "noise.bin").write_bytes(os.urandom(3 * 1024 * 1024))
    page.drop(tmp_path / "p")
    page.start()
    alert = page.raw.get_by_role("alert")
    expect(alert).to_contain_text("Too large")
    expect(alert).to_contain_text("1 MB")


def test_a_program_of_45_000_lines_is_pasted_at_once(page):
    """Chromium's own insertion takes minutes, and each line once had a number of its own element."""
    page.raw.evaluate(
        """() => {
          const area = document.querySelector('.code textarea')
          const clipboardData = new DataTransfer()
          clipboardData.setData('text/plain', Array.from({ length: 45_000 }, (_, i) => `print(${i})`).join('\\r\\n'))
          area.select()
          area.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }))
        }"""
    )
    assert page.raw.locator(".gutter").text_content().endswith("\n45000\n")
    assert page.raw.locator(".gutter *").count() == 0
    page.run()
    expect(page.log).to_contain_text("44999")


def test_a_pasted_c_program_is_compiled_and_runs(page):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on this machine: apt-get install gcc libc6-dev")
    page.raw.evaluate(
        """() => {
          const clipboardData = new DataTransfer()
          clipboardData.setData('text/plain', '#include <stdio.h>\\nint main(void) { puts("from C"); }\\n')
          document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true }))
        }"""
    )
    expect(page.raw.locator(".notice")).to_contain_text("main.c is compiled before it runs")
    expect(page.raw.locator(".command")).to_have_text("$ cc main.c -o main && ./main")
    page.run()
    expect(page.log).to_contain_text("from C")
    expect(page.outputs).to_have_count(0)  # what the compiler made is no result
    page.button("Change").click()
    expect(page.raw.get_by_label("Build command")).to_have_value("cc main.c -o main")


def test_of_several_programs_the_one_that_is_open_runs(page, tmp_path):
    """A teacher's folder: no main.py, odd names, programs that ask."""
    folder = tmp_path / "Übung 3 (Abgabe)"
    for name, text in {
        "Müller, Anna/aufgabe 1.py": "print('Hallo')",
        "O'Neil/lösung.py": "print('Hi ' + input('Name? '))",
        "readme.txt": "x",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    page.drop(folder)
    page.raw.locator(".row-main", has_text="aufgabe 1.py").click()
    expect(page.raw.locator(".command")).to_have_text("$ python3 'Müller, Anna/aufgabe 1.py'")
    page.run()
    expect(page.log).to_contain_text("Hallo")
    page.raw.locator(".row-main", has_text="lösung.py").click()
    expect(page.raw.locator(".command")).to_contain_text("lösung.py")
    page.run(headline="Failed with exit code 1")
    page.button("Give it input").click()
    expect(page.raw.get_by_label("Standard input")).to_be_focused()
    page.raw.keyboard.type("Ada")
    page.run()
    expect(page.log).to_contain_text("Hi Ada")
