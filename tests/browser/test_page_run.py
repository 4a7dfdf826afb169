"""Writing, running, stopping, and what the page says about the end."""

import re

from playwright.sync_api import expect


def test_the_first_example_runs_with_one_click_and_shows_its_files(page):
    page.button(re.compile("^Run")).click()
    page.ended()
    expect(page.log).to_contain_text("101 points, peak 0.9998")
    expect(page.outputs).to_have_text(["summary.json", "wave.csv", "wave.svg"])
    image = page.raw.locator(".preview img")
    expect(image).to_be_visible()
    assert image.evaluate("(img) => img.decode().then(() => img.naturalWidth)") > 0


def test_a_small_job_is_one_request(page):
    """It was six and a WebSocket."""
    asked = []
    page.raw.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
    page.raw.on("websocket", lambda socket: asked.append(socket.url))
    page.run()
    expect(page.preview.locator("img")).to_be_visible()
    # On a slow machine it asks how the job is.
    besides = ("blob:", "/stats", "/status/")
    own = [what for what in asked if not any(word in what for word in besides)]
    assert len(own) == 1, own
    assert "/run?" in own[0]


def test_the_keyboard_stays_where_it_pressed_run(page):
    page.write("import time\nprint('on', flush=True)\ntime.sleep(100)\n")
    page.button(re.compile("^Run")).focus()
    page.raw.keyboard.press("Enter")
    expect(page.log).to_contain_text("on")
    expect(page.button("Cancel")).to_be_focused()
    page.raw.keyboard.press("Enter")
    page.ended("Cancelled")
    expect(page.button(re.compile("^Run"))).to_be_focused()


def test_a_refused_setting_is_one_click_away(page):
    page.settings()
    page.raw.get_by_label("Requirements file").fill("nope.txt")
    page.start()
    alert = page.raw.get_by_role("alert")
    expect(alert).to_contain_text("nope.txt is not in the upload")
    expect(alert.get_by_role("button", name="Show")).to_be_visible()


def test_every_interpreter_that_was_found_has_an_example_that_runs(page, server):
    found = {entry["name"] for entry in server.client.get("/environments").json()["interpreters"]}
    page.button("Examples").click()
    titles = page.raw.locator(".menu-item span").all_text_contents()
    page.raw.keyboard.press("Escape")
    words = {"python3": "Python", "node": "JavaScript", "bash": "Bash", "sh": "POSIX shell", "perl": "Perl",
             "ruby": "Ruby", "Rscript": "R", "php": "PHP", "lua": "Lua", "go": "Go"}  # fmt: skip
    for name in found & set(words):
        assert any(title.startswith(words[name]) for title in titles), name
    for title in titles:
        if "limit" in title:
            continue
        page.example(title)
        page.run()
        expect(page.raw.locator(".log-line").first).to_be_visible()


def test_a_run_needs_nothing_but_the_keyboard(page):
    """Tab to the editor, write, leave it by Esc and Tab, choose a setting, run, reach the log."""
    keys = page.raw.keyboard
    keys.press("Alt+1")
    expect(page.raw.get_by_role("tab", name="Code")).to_be_focused()
    for _ in range(12):
        keys.press("Tab")
        if page.raw.evaluate("document.activeElement.matches('.code textarea')"):
            break
    keys.press("Control+a")
    keys.insert_text("import sys\nprint('hands', 'off', *sys.argv[1:])")
    keys.press("Escape")
    keys.press("Tab")
    expect(page.button(re.compile("^Run"))).to_be_focused()
    keys.press("Alt+2")
    keys.press("ArrowLeft")
    keys.press("ArrowRight")
    expect(page.raw.get_by_role("tab", name="Settings")).to_have_attribute("aria-selected", "true")
    field = page.raw.get_by_label("Arguments")
    while not field.evaluate("(input) => input === document.activeElement"):
        keys.press("Tab")
    keys.type("one 'two three'")
    keys.press("Control+Enter")
    page.ended()
    keys.press("Alt+l")
    expect(page.raw.get_by_role("log")).to_be_focused()
    assert page.log_lines() == ["hands off one two three"]


def test_tab_indents_and_enter_keeps_the_indentation(page):
    page.raw.locator(".code textarea").focus()
    keys = page.raw.keyboard
    keys.press("Control+a")
    keys.type("if True:")
    keys.press("Enter")
    keys.type("a = 1")
    keys.press("Enter")
    keys.press("Tab")
    keys.type("b")
    keys.press("Shift+Tab")
    value = page.raw.locator(".code textarea").input_value()
    assert value == "if True:\n    a = 1\n    b"
    keys.press("Control+z")
    assert page.raw.locator(".code textarea").input_value() != value


def test_a_failed_program_shows_its_code_and_the_traceback_leads_to_the_line(page):
    page.run("def f():\n    raise ValueError('deep')\n\nf()\n", "Failed with exit code 1")
    expect(page.log).to_contain_text("ValueError: deep")
    expect(page.raw.locator(".verdict")).to_have_count(0)  # the headline has said it all
    page.raw.locator(".log .frame").last.click()
    selected = page.raw.evaluate(
        "() => { const a = document.querySelector('.code textarea'); return a.value.slice(a.selectionStart, a.selectionEnd) }"
    )
    assert selected == "    raise ValueError('deep')"


def test_over_the_memory_limit_there_is_evidence_and_one_button_raises_it(page):
    page.settings()
    page.raw.locator("#f-memory_mb").fill("64")
    page.code()
    page.run(
        "data = bytearray(100 * 1024 * 1024)\nprint('fitted')\n",
        "Stopped: it used more than 64 MB of memory",
    )
    expect(page.raw.locator(".evidence")).to_contain_text("oom")
    page.button("Raise memory to 128 MB and run again").click()
    expect(page.headline).not_to_have_text(re.compile("Stopped"))
    page.ended()
    expect(page.log).to_contain_text("fitted")
    page.settings()
    expect(page.raw.locator("#f-memory_mb")).to_have_value("128")


def test_over_the_wall_time_limit(page):
    page.settings()
    page.raw.locator("#f-timeout").fill("1")
    page.code()
    page.run(
        "import time\nprint('waiting', flush=True)\ntime.sleep(60)\n",
        "Stopped: it ran longer than 1 s",
    )
    expect(page.button("Raise wall time to 4 s and run again")).to_be_visible()


def test_a_requirement_that_cannot_be_had_is_told_and_its_file_is_one_click_away(page):
    page.button("Open files").click()
    page.raw.locator("#new-file").fill("requirements.txt")
    page.raw.keyboard.press("Enter")
    expect(page.raw.locator(".row.current")).to_contain_text("requirements.txt")
    page.write("no-such-thing-anywhere==99\n")
    page.settings()
    page.raw.get_by_label("Requirements file").fill("requirements.txt")
    page.code()
    page.raw.locator(".row-main", has_text="main.py").click()
    page.run(headline="Not started: a requirement could not be installed")
    expect(page.raw.locator(".verdict")).to_contain_text("requirements.txt")
    expect(page.raw.locator(".evidence li").first).not_to_be_empty()
    expect(page.raw.get_by_text("It was never started, so it printed nothing.")).to_be_visible()
    expect(page.raw.locator(".step.unreached .step-name")).to_have_text(["Run", "Outputs"])
    expect(page.raw.locator(".usage b")).to_have_text(["–"] * 5)
    page.button("Open requirements.txt").click()
    expect(page.raw.locator(".code textarea")).to_have_value("no-such-thing-anywhere==99\n")


def test_a_running_job_can_be_cancelled_and_its_log_stays(page):
    page.write("import time\nprint('begun', flush=True)\ntime.sleep(100)\n")
    page.start()
    expect(page.log).to_contain_text("begun")
    expect(page.headline).to_have_text("Running")
    assert page.raw.title().startswith("Running")
    page.button("Cancel").click()
    page.ended("Cancelled")
    expect(page.log).to_contain_text("begun")
    expect(page.button(re.compile("^Run"))).to_be_enabled()


def test_settings_reach_the_job(page):
    page.settings()
    page.raw.get_by_label("Arguments").fill("""one "two 2" 'three'""")
    page.raw.get_by_label("Standard input").fill("typed in")
    page.button("Add a variable").click()
    page.raw.get_by_label("Name of variable 1").fill("COLOUR")
    page.raw.get_by_label("Value of variable 1").fill("sand & <b>")
    page.raw.get_by_label("Patterns").fill("*.txt\n!b*")
    page.code()
    page.run("""
import os, sys
print(sys.argv[1:], sys.stdin.read(), os.environ["COLOUR"])
for name in ("a.txt", "b.txt", "c.log"):
    open(name, "w").write(name)
""")
    expect(page.log).to_contain_text("['one', 'two 2', 'three'] typed in sand & <b>")
    expect(page.outputs).to_have_text(["a.txt"])


def test_the_form_knows_the_servers_maxima(page):
    page.settings()
    page.raw.locator("#f-memory_mb").fill("999999")
    expect(page.raw.locator(".limit .problem")).to_have_text("Memory goes up to 2048 here")
    expect(page.button("Memory goes up to 2048 here")).to_be_visible()  # beside Run, too
    expect(page.button(re.compile("^Run"))).to_be_disabled()
    page.raw.locator("#f-memory_mb").fill("32")
    expect(page.button(re.compile("^Run"))).to_be_enabled()


def test_a_refusal_of_the_server_names_the_field(page):
    """LD_PRELOAD is a variable's name for the page; the server knows better."""
    page.settings()
    page.button("Add a variable").click()
    page.raw.get_by_label("Name of variable 1").fill("LD_PRELOAD")
    page.start()
    expect(page.raw.get_by_role("alert")).to_contain_text("LD_PRELOAD")


def test_a_second_run_replaces_the_first_ones_log_and_files(page):
    page.run("open('one.txt', 'w').write('1')\nprint('first')\n")
    expect(page.outputs).to_have_text(["one.txt"])
    page.run("open('two.txt', 'w').write('2')\nprint('second')\n")
    expect(page.outputs).to_have_text(["two.txt"])
    assert page.log_lines() == ["second"]
