"""What holds everywhere: accessibility, sizes, themes, weight, policy."""

import gzip
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

BUSY = """
import sys
print("\\x1b[31mred\\x1b[32m green\\x1b[33m yellow\\x1b[34m blue\\x1b[35m magenta\\x1b[36m cyan\\x1b[0m plain")
print("warning", file=sys.stderr)
open("table.csv", "w").write("a,b\\n1,2\\n")
open("data.json", "w").write('{"a": [1, null, "x"]}')
"""


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing_serious(open_page, server, theme):
    page = open_page(server.url, theme=theme, reduced_motion="reduce")
    page.is_ready()
    assert page.findings() == []
    page.run(BUSY)
    page.look_at("data.json")
    expect(page.preview.locator("pre")).to_be_visible()
    assert page.findings() == []
    page.look_at("table.csv")
    page.settings()
    assert page.findings() == []
    page.code()
    page.run("data = bytearray(2**30)\n", re.compile("^Stopped"))
    assert page.findings() == []
    for name in ("Privacy and isolation", "Jobs of this tab", "Keyboard"):
        page.button(name).click()
        expect(page.raw.get_by_role("dialog")).to_be_visible()
        assert page.findings() == []
        page.raw.keyboard.press("Escape")
    page.button("Open files").click()
    assert page.findings() == []


COLOURS = """
import sys
print("\x1b[38;5;226mpale\x1b[0m \x1b[38;2;0;0;90mdark\x1b[0m \x1b[7;33mturned\x1b[0m")
print("seek", file=sys.stderr)
"""


def test_axe_finds_nothing_serious_where_something_went_wrong_or_is_shown_to_others(
    open_page, server, tmp_path
):
    page = open_page(server.url, reduced_motion="reduce")
    page.is_ready()

    def is_fine(page, *themes):
        for theme in themes:
            page.raw.emulate_media(color_scheme=theme)
            assert page.findings() == []

    page.run(COLOURS)
    page.button("Search the log").click()
    page.raw.get_by_label("Search the log").fill("seek")
    is_fine(page, "light", "dark")
    other = open_page(page.share("Copy view link"), context=page.raw.context)
    other.ended()
    is_fine(other, "dark")
    other.raw.close()
    page.run("import nothing_of_nobody\n", "Failed with exit code 1")
    expect(page.button("Add nothing-of-nobody and run again")).to_be_visible()
    is_fine(page, "light")
    page.settings()
    page.raw.get_by_label("Arguments").fill("'open")
    expect(page.button("The arguments hold an open")).to_be_visible()
    is_fine(page, "dark")
    page.raw.get_by_label("Arguments").fill("")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "job.json").write_text("{,}")
    (tmp_path / "p" / "main.c").write_text("int main(void) { return 0; }\n")
    page.drop(tmp_path / "p")
    expect(page.raw.get_by_text("is compiled before it runs")).to_be_visible()
    page.run(headline="Not started: the upload cannot run as it is")
    is_fine(page, "light", "dark")
    page.button("Open job.json").click()
    expect(page.raw.locator(".code textarea")).to_have_value("{,}")
    page.write("{}")
    page.run(headline=re.compile("^Completed|^The build failed"))


def test_remedies_need_nothing_but_the_keyboard(page):
    keys = page.raw.keyboard
    page.run("print('hello', input())\n", "Failed with exit code 1")
    page.button("Give it input").focus()
    keys.press("Enter")
    expect(page.raw.get_by_label("Standard input")).to_be_focused()
    keys.type("you")
    keys.press("Control+Enter")
    page.ended()
    assert page.log_lines() == ["hello you"]
    page.raw.locator("#f-memory_mb").fill("64")
    page.code()
    before = page.raw.evaluate("location.hash")
    page.run("data = bytearray(80 * 2**20)\n", re.compile("^Stopped"))
    assert page.raw.evaluate("location.hash") != before
    page.button(re.compile("^Raise memory to .* and run again$")).focus()
    keys.press("Enter")
    page.ended()
    expect(page.button(re.compile("^Run"))).to_be_focused()  # not lost with the button


@pytest.mark.parametrize("width", [360, 768, 1024, 1440, 1920, 3840])
def test_no_width_scrolls_sideways_or_hides_the_run_button(open_page, server, width):
    page = open_page(server.url, width=width, height=max(640, width * 9 // 16), theme="light")
    page.is_ready()
    page.run("print('w' * 500)\nopen('name_' * 20 + '.txt', 'w').write('x' * 500)\n")
    page.settings()
    assert page.raw.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("Run", "Examples", "Open files", "Privacy and isolation", "Share", "Download all"):
        box = page.button(re.compile(f"^{name}")).bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name


def test_the_page_weighs_less_than_200_kb_and_asks_nobody_else(open_page, server):
    page = open_page("about:blank")
    asked = []
    page.raw.on("response", lambda response: asked.append(response))
    page.raw.goto(server.url)
    page.is_ready()
    assert all(response.url.startswith((server.url, "data:")) for response in asked)
    total = 0
    for response in asked:
        if response.request.resource_type in ("document", "script", "stylesheet"):
            total += response.request.sizes()["responseBodySize"]
    print(f"page: {total} bytes on the wire")
    assert total < 200_000


def test_nothing_moves_while_the_page_loads_or_a_job_succeeds(open_page, server):
    page = open_page("about:blank")
    page.raw.add_init_script(
        """window.shifts = []
        new PerformanceObserver((list) => { for (const e of list.getEntries()) shifts.push([e.value, e.sources.map((s) => s.node?.className)]) })
          .observe({ type: 'layout-shift', buffered: true })"""
    )
    page.raw.goto(server.url)
    page.is_ready()
    assert page.raw.evaluate("shifts") == []
    page.run()  # the example as it is: a changed text would move its own words
    expect(page.preview.locator("img")).to_be_visible()
    assert page.raw.evaluate("shifts") == []


def test_on_a_phone_a_run_leads_to_its_results_and_cancel_stays_in_reach(open_page, server):
    page = open_page(server.url, width=360, height=740, theme="light")
    page.is_ready()
    page.button("Examples").click()
    for item in page.raw.locator(".menu-item").all():
        box = item.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    page.raw.keyboard.press("Escape")
    page.write("import time\nprint('begun', flush=True)\ntime.sleep(100)\n")
    page.button(re.compile("^Run")).click()
    expect(page.log).to_contain_text("begun")
    expect(page.headline).to_be_in_viewport()
    expect(page.button("Cancel")).to_be_in_viewport()
    page.button("Cancel").click()
    page.ended("Cancelled")


def test_a_strict_policy_is_sent_and_kept(page, server):
    policy = server.client.get("/", headers={"Accept": "text/html"}).headers[
        "content-security-policy"
    ]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.run(BUSY)  # and the fixture fails if anything was refused that the page needs


def test_theme_follows_the_system_and_can_be_chosen(open_page, server):
    page = open_page(server.url, theme="light")
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.raw.evaluate(background)
    page.button(re.compile("^Theme")).click()
    dark = page.raw.evaluate(background)
    assert light != dark
    page.raw.reload()
    assert page.raw.evaluate(background) == dark


def test_reduced_motion_stops_all_animation(open_page, server):
    page = open_page(server.url, reduced_motion="reduce")
    page.is_ready()
    page.write("import time\nprint('on', flush=True)\ntime.sleep(100)\n")
    page.start()
    expect(page.log).to_contain_text("on")
    # An endless one would never let this come true.
    page.eventually("document.getAnimations().every((a) => a.playState !== 'running')")
    page.raw.keyboard.press("Control+.")
    page.ended("Cancelled")


def test_the_end_is_announced_to_screen_readers(page):
    page.run("print(1)\nopen('x', 'w').write('y')\n")
    expect(page.raw.locator("[aria-live=polite]")).to_have_text("Completed. 1 output file.")


def test_the_vendored_files_come_with_their_licences():
    vendor = Path(__file__).parents[2] / "frontend" / "vendor"
    assert "MIT" in (vendor / "vue.LICENSE.txt").read_text()
    assert "Apache License" in (vendor / "htm.LICENSE.txt").read_text()
    assert len(gzip.compress((vendor / "vue.runtime.esm-browser.prod.js").read_bytes())) < 50_000
