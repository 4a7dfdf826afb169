"""Links, copies, history, the quota, and a server that is elsewhere or away."""

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect

FRONTEND = Path(__file__).parents[2] / "frontend"


def test_on_a_phone_a_view_link_shows_the_job_first(page, open_page, server):
    page.run("print('look')\n")
    other = open_page(page.share("Copy view link"), width=360, height=740)
    expect(other.log).to_contain_text("look")
    expect(other.log).to_be_in_viewport()


def test_a_view_link_opens_elsewhere_and_can_look_but_not_cancel(page, open_page, server):
    page.write(
        "import time\nprint('shared', flush=True)\nopen('a.txt', 'w').write('a')\ntime.sleep(100)\n"
    )
    page.start()
    expect(page.log).to_contain_text("shared")
    link = page.share("Copy view link")
    own = re.search(r"#job=([\w-]+)", page.raw.url)[1]
    assert own not in link
    other = open_page(link)
    expect(other.log).to_contain_text("shared")
    expect(other.raw.get_by_text("view only")).to_be_visible()
    expect(other.button("Cancel")).to_be_disabled()
    expect(other.button("Delete now")).to_have_count(0)
    view = re.search(r"#view=([\w-]+)", link)[1]
    status = other.raw.evaluate(
        "async (id) => (await fetch(`/jobs/${id}/cancel`, {method: 'POST'})).status", view
    )
    assert status == 403
    page.button("Cancel").click()
    page.ended("Cancelled")
    other.ended("Cancelled")
    expect(other.outputs).to_have_text(["a.txt"])
    expect(other.raw.get_by_text("The link shows the job, not its source.")).to_be_visible()
    other.button("Download all").click()
    expect(other.raw.get_by_text("nothing is deleted")).to_be_visible()


def test_a_link_to_a_job_that_is_gone_says_so_and_makes_nothing_up(open_page, server):
    page = open_page(f"{server.url}#view=view_{'A' * 32}")
    expect(page.headline).to_have_text("No longer on the server")
    expect(page.raw.get_by_text("Nothing is left of this job")).to_be_visible()
    expect(page.raw.locator(".step.later")).to_have_count(4)
    expect(page.raw.locator(".usage b")).to_have_text(["–"] * 5)
    page.is_ready()


def test_the_secret_stays_behind_the_hash(page):
    asked = []
    page.raw.on(
        "request", lambda request: asked.append((request.url, request.headers.get("referer")))
    )
    page.run("print(1)\n")
    own = re.search(r"#job=([\w-]+)", page.raw.url)[1]
    page.raw.reload()
    page.ended()
    documents = [
        url
        for url, _ in asked
        if own in url and not re.search(r"/(status|logs|outputs|download|jobs)/", url)
    ]
    assert not [url for url in documents if "#" not in url]
    assert not [referer for _, referer in asked if referer]
    stored = page.raw.evaluate("JSON.stringify(localStorage)")
    assert own not in stored


def test_copy_as_python_and_job_json_say_the_same_as_the_form(page, tmp_path):
    code = "import sys\nprint('argument', sys.argv[1])\n"
    page.settings()
    page.raw.get_by_label("Arguments").fill("'a b'")
    page.code()
    page.run(code)
    assert json.loads(page.share("Copy job.json")) == {"args": ["a b"]}
    program = page.share("Copy as Python")
    (tmp_path / "main.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "argument a b\ncompleted exited\n", done.stderr


def run_in(folder, command):
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout)["stdout"]


def test_copy_as_curl_runs_the_same_job(page, tmp_path):
    """What was written here lies in no folder: the command has it."""
    page.settings()
    page.raw.get_by_label("Arguments").fill("it\\'s")
    page.code()
    page.run("import sys\nprint('ü', sys.argv[1])\n")
    assert run_in(tmp_path, page.share("Copy as curl")) == "ü it's\n"


def test_copy_as_curl_of_a_folder_sends_the_folder(page, tmp_path):
    (tmp_path / "main.py").write_text("print('dropped')\n")
    (tmp_path / "other.txt").write_text("x")
    page.drop(tmp_path)
    page.run()
    command = page.share("Copy as curl")
    (tmp_path / "main.py").write_text("print('from the folder')\n")
    assert run_in(tmp_path, command) == "from the folder\n"


def test_the_tabs_jobs_are_listed_and_can_be_edited_and_run_again(page):
    page.run("print('the first')\n")
    page.run("raise SystemExit(2)\n", "Failed with exit code 2")
    page.button("Jobs of this tab").click()
    entries = page.raw.locator(".history li")
    expect(entries).to_have_count(2)
    entries.nth(1).get_by_role("button", name="Edit and run again").click()
    expect(page.raw.locator(".code textarea")).to_have_value("print('the first')\n")
    page.run()
    assert page.log_lines() == ["the first"]
    assert page.raw.evaluate("Object.keys(localStorage).join()") in ("", "sandrun.theme")


def test_a_429_is_lived_through(open_page, start_server):
    """The budget is used up, the page counts down and then starts by itself."""
    server = start_server("[rate_limit]\ncpu_seconds_per_minute = 3\n")
    page = open_page(server.url)
    page.is_ready()
    expect(page.raw.locator(".quota")).to_contain_text("/ 3 s")
    expect(page.raw.locator(".cost")).to_contain_text("you have 3")
    # 3.2 s more than what flows back meanwhile, however slow this machine is.
    page.run("""
from time import monotonic, process_time
start = monotonic()
while process_time() - 0.05 * (monotonic() - start) < 3.2:
    pass
print("spent")
""")
    page.write("print('refilled')\n")
    page.start()
    alert = page.raw.get_by_role("alert")
    expect(alert).to_contain_text("Not yet. Your quota")
    assert page.findings() == []
    expect(page.headline).to_have_text("Completed")  # of the last job, which is still there
    expect(page.log).to_contain_text("spent")
    page.button(re.compile("^Run in ")).click()
    expect(alert).to_contain_text("runs in")
    page.ended()
    expect(page.log).to_contain_text("refilled")


def test_a_server_that_goes_away_is_said_and_noticed_when_it_is_back(open_page, start_server):
    server = start_server("[rate_limit]\nenabled = false\n")
    page = open_page(server.url)
    page.is_ready()
    page.raw.route("**/*", lambda route: route.abort())
    page.start()
    expect(page.raw.get_by_text("The server does not answer.")).to_be_visible()
    page.raw.unroute("**/*")
    expect(page.raw.get_by_text("The server does not answer.")).to_have_count(0)
    page.run("print('back')\n")


@pytest.fixture
def static_server():
    """``python3 -m http.server`` in the frontend's directory."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=FRONTEND)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}/"
        found.shutdown()
        thread.join()


def test_from_a_static_server_a_field_names_the_api(open_page, start_server, static_server):
    server = start_server(
        f'[rate_limit]\nenabled = false\n[http]\nallowed_origins = ["{static_server.rstrip("/")}"]\n'
    )
    page = open_page(static_server)
    page.raw.get_by_label("Address of the sandrun API").fill(server.url)
    page.button("Connect").click()
    page.is_ready()
    page.run("print('from afar')\nopen('f.txt', 'w').write('far file')\n")
    expect(page.log).to_contain_text("from afar")
    expect(page.preview).to_contain_text("far file")
    page.raw.reload()
    page.is_ready()
    page.ended()


def test_a_link_cannot_send_files_to_a_foreign_api_by_itself(open_page, static_server):
    page = open_page(f"{static_server}#api=http://127.0.0.1:9")
    expect(page.raw.get_by_label("Address of the sandrun API")).to_be_visible()
    expect(page.button(re.compile("^Run"))).to_be_disabled()


def test_the_trust_panel_shows_what_the_server_measured(page, server):
    facts = server.client.get("/privacy").json()
    page.button("Privacy and isolation").click()
    panel = page.raw.get_by_role("dialog")
    expect(panel.locator(".layers li")).to_have_count(len(facts["isolation"]))
    expect(panel).to_contain_text(facts["logged"])
    page.raw.keyboard.press("Escape")
    expect(panel).to_have_count(0)
