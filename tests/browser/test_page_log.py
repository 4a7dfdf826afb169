"""The live log: order, colours, size, and what it survives."""

import os
import re
import signal

import pytest
from playwright.sync_api import expect
from servers import NO_RATE_LIMIT, http_of

HUNDRED_THOUSAND = """
for i in range(100_000):
    print(f"line {i} " + "x" * (i % 120))
"""


def scroller(page):
    return page.raw.get_by_role("log")


def test_markup_and_escape_sequences_are_shown_as_text_and_as_classes(page):
    page.run(
        """
import sys
print("<img src=x onerror=document.title='owned'><script>alert(1)</script>")
print("\\x1b[31mred\\x1b[0m \\x1b[1;44mblue\\x1b[0m \\x1b[38;2;1;2;3mexact\\x1b[0m")
print("\\x1b]0;title\\x07after the title \\x1b[2J\\x1b[Hstill \\x00 here")
print("to stderr", file=sys.stderr)
"""
    )
    expect(page.log).to_contain_text(
        "<img src=x onerror=document.title='owned'><script>alert(1)</script>"
    )
    assert page.raw.locator(".log img, .log script").count() == 0
    assert page.raw.title().startswith("Completed")
    expect(page.raw.locator(".log-line .fg1")).to_have_text("red")
    expect(page.raw.locator(".log-line .bg4.a-bold")).to_have_text("blue")
    exact = page.raw.locator(".log-line span", has_text=re.compile("^exact$"))
    assert exact.evaluate("(e) => e.style.getPropertyValue('--ink')") == "rgb(1 2 3)"
    lightness = exact.evaluate("(e) => getComputedStyle(e).color").removeprefix("oklch(").split()[0]
    assert float(lightness) > 0.6  # on a dark page black cannot be read
    expect(page.log).to_contain_text("after the title still ␀ here")
    expect(page.raw.locator(".log-line.stderr")).to_contain_text("to stderr")
    expect(page.raw.locator(".log-line.stderr .label")).to_have_text("err")  # not by colour alone


def test_a_progress_bar_stays_on_one_line(page):
    page.run("for i in range(101): print(f'\\rdone {i}%', end='', flush=True)\nprint('\\nend')\n")
    assert page.log_lines() == ["done 100%", "end"]


def test_100_000_lines_stay_smooth_and_searchable(page):
    page.run(HUNDRED_THOUSAND)
    expect(page.raw.locator(".log .facts").first).to_contain_text("100,000 lines")
    expect(page.raw.locator(".log-line .text").last).to_have_text(re.compile("^line 99999 "))
    assert page.raw.locator(".log-line").count() < 200  # only what can be seen is in the document
    # A long way in small steps: no frame is blocked for long, and the lines are the right ones.
    worst = scroller(page).evaluate(
        """async (log) => {
          let worst = 0
          for (let step = 0; step <= 60; step++) {
            const start = performance.now()
            log.scrollTop = (log.scrollHeight * step) / 60
            await new Promise(requestAnimationFrame)
            worst = Math.max(worst, performance.now() - start)
          }
          log.scrollTop = 0
          return worst
        }"""
    )
    print(f"slowest of 60 scroll steps: {worst:.0f} ms")
    expect(page.raw.locator(".log-line .text").first).to_have_text("line 0 ")
    page.button("Search the log").click()
    page.raw.get_by_label("Search the log", exact=True).last.fill("line 54321 ")
    expect(page.raw.locator(".search .facts")).to_have_text("1 of 1")
    expect(page.raw.locator(".log-line.found .hit")).to_have_text("line 54321 ")


def test_on_a_phone_the_log_scrolls_in_itself_and_stays_at_its_end(open_page, server):
    """It once grew with its lines, and hung where wrapped ones were higher than reckoned."""
    page = open_page(server.url, width=360, height=740)
    page.is_ready()
    page.run("for n in range(3000): print('words and more words and', 'w' * (n % 60), 'line', n)\n")
    expect(page.log).to_contain_text("line 2999")
    assert page.raw.locator(".log-line").count() < 200
    box = page.raw.locator(".log-frame").bounding_box()
    assert box["height"] < 740


WRAPPED = """
for n in range(400):
    print('a-b.c/d, (e) ' * (n % 9), '\\t' * (n % 5), 'word  ' * (n % 7), '\\u6f22\\u5b57' * (n % 11), '\\U0001f600' * (n % 3))
print('the last line')
"""


@pytest.mark.parametrize("width", [360, 1440])
def test_whoever_follows_sees_the_last_line_whatever_wraps_before_it(open_page, server, width):
    """Punctuation, tabs and wide letters made lines higher than reckoned: four lines were missing."""
    page = open_page(server.url, width=width, height=740)
    page.is_ready()
    page.run(WRAPPED)
    last = page.raw.locator(".log-line", has_text="the last line")
    expect(last).to_be_in_viewport(ratio=0.9)
    gap = page.raw.evaluate(
        """() => {
          const log = document.querySelector('.log-scroll').getBoundingClientRect()
          return log.bottom - document.querySelector('.log-line:last-child').getBoundingClientRect().bottom
        }"""
    )
    assert 0 <= gap < 24


def test_following_goes_on_where_the_browser_moved_the_log_by_itself(page):
    """A log whose end came nearer, and then more lines: it stood still in the middle of a fast job."""
    page.run("for n in range(400): print('line', n)\n")
    followed = page.raw.evaluate(
        """async () => {
          const frame = () => new Promise((next) => requestAnimationFrame(() => setTimeout(next)))
          const log = document.querySelector('.log-scroll'), all = document.querySelector('.log-all')
          await frame()
          const height = parseFloat(all.style.height)
          all.style.height = `${height / 2}px`
          void log.scrollTop // the browser moves it up to the new end, and tells so in a frame
          all.style.height = `${height * 2}px`
          await frame()
          await frame()
          return [log.scrollHeight - log.clientHeight - log.scrollTop, !!document.querySelector('.to-tail')]
        }"""
    )
    assert followed == [0, False]
    scroller(page).press("Home")
    expect(page.button("To the end")).to_be_visible()


def test_following_reaches_the_end_without_motion(open_page, server):
    """What was to stop all transitions made one of each change: the log's end was measured too early."""
    page = open_page(server.url, reduced_motion="reduce")
    page.is_ready()
    page.run("for n in range(300): print('line', n)\n")
    early = page.raw.evaluate(
        """() => {
          const log = document.querySelector('.log-scroll'), all = document.querySelector('.log-all')
          const before = log.scrollHeight
          all.style.height = `${parseFloat(all.style.height) + 1000}px`
          return log.scrollHeight - before
        }"""
    )
    assert early == 1000


def test_following_stops_when_the_user_scrolls_up_and_comes_back(page):
    page.write(
        "import time\nfor i in range(100_000):\n    print('tick', i, flush=True)\n    time.sleep(0.02)\n"
    )
    page.start()
    log = scroller(page)
    page.eventually("document.querySelector('.log-scroll').scrollTop > 200")
    log.hover()
    page.raw.mouse.wheel(0, -2000)
    expect(page.button("Follow")).to_be_visible()
    top = log.evaluate("(e) => e.scrollTop")
    # Twenty more lines come, and the view stands still.
    page.eventually(
        "(window.seen ??= parseInt(document.querySelector('.log .facts').textContent)) + 20"
        " < parseInt(document.querySelector('.log .facts').textContent)"
    )
    assert log.evaluate("(e) => e.scrollTop") == top
    page.button("Follow").click()
    expect(page.button("Follow")).to_have_count(0)
    page.raw.keyboard.press("Control+.")
    page.ended("Cancelled")


def test_the_log_can_be_copied_and_downloaded(page):
    page.run("import sys\nsys.stdout.buffer.write(b'bytes \\xff\\n')\nprint('end')\n")
    page.button("Copy the log").click()
    expect(page.raw.locator(".toast")).to_contain_text("copied")
    assert page.clipboard() == "bytes \ufffd\nend\n"
    with page.raw.expect_download() as download:
        page.button("Download the log").click()
    assert download.value.path().read_bytes() == b"bytes \xff\nend\n"


NUMBERS = """
import time
for i in range(400):
    print("number", i, flush=True)
    time.sleep(0.01)
"""
ALL_NUMBERS = [f"number {i}" for i in range(400)]


def copied_lines(page):
    page.button("Copy the log").click()
    expect(page.raw.locator(".toast")).to_contain_text("copied")
    return page.clipboard().splitlines()


def test_a_log_goes_on_across_a_server_restart_without_a_lost_or_doubled_line(
    open_page, start_server
):
    server = start_server(NO_RATE_LIMIT)
    page = open_page(server.url)
    page.is_ready()
    page.write(NUMBERS)
    page.start()
    expect(page.log).to_contain_text("number 20")
    http = http_of(server.process.pid)
    os.kill(http, signal.SIGKILL)
    page.ended()
    assert copied_lines(page) == ALL_NUMBERS


def test_a_connection_that_breaks_again_and_again_loses_and_doubles_nothing(page):
    sockets = []

    def on_socket(socket):
        server = socket.connect_to_server()
        sockets.append(socket)
        taken = []

        def pass_on(message):
            taken.append(message)
            if len(taken) % 60 == 0:
                socket.close(code=1011)  # in the middle; the server's end is dropped with it
            else:
                socket.send(message)

        server.on_message(pass_on)

    page.raw.route_web_socket(re.compile("/stream"), on_socket)
    page.run(NUMBERS)
    assert len(sockets) > 3
    assert copied_lines(page) == ALL_NUMBERS


@pytest.mark.parametrize("blocked", ["websocket", "websocket and events"])
def test_where_a_proxy_blocks_the_stream_the_page_falls_back(page, blocked):
    """WebSocket, else Server-Sent Events, else polling: the same lines on one cursor."""
    page.raw.route_web_socket(re.compile("/stream"), lambda socket: socket.close())
    asked = []

    def on_stream(route):
        asked.append(route.request.headers.get("accept"))
        if "events" in blocked:
            route.fulfill(status=502, body="bad gateway")
        else:
            route.continue_()

    page.raw.route(re.compile("/logs/[^/]+/stream"), on_stream)
    page.run(NUMBERS)
    assert "text/event-stream" in asked
    assert copied_lines(page) == ALL_NUMBERS


def test_a_reloaded_page_finds_its_running_job_and_all_its_lines(page):
    page.write(NUMBERS)
    page.start()
    expect(page.log).to_contain_text("number 20")
    page.raw.reload()
    page.ended()
    assert copied_lines(page) == ALL_NUMBERS
