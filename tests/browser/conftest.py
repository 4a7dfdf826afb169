"""A real Chromium on the real page, against the real server (tests/servers.py).

Every page that a test opens is watched: an exception in it, a console error or a
violated Content-Security-Policy fails the test, whatever it was about.
"""

import contextlib
import shutil

import pytest
import servers
from pages import Page

ARGUMENTS = [
    "--no-sandbox",  # the tests run as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
# A refused request is written to the console by the browser itself; tests provoke some.
NETWORK = ("Failed to load resource", "WebSocket connection to")

WATCH_POLICY = """
addEventListener('securitypolicyviolation', (event) => console.error(
  `policy violated: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`))
"""


# Not "session": Playwright keeps an event loop running in this thread for as long.
@pytest.fixture(scope="module")
def chromium():
    """The browser. Without one there is nothing to test."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)  # a busy machine is slow, not wrong

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """``open_page(url, width=…, height=…, theme=…)`` → a watched :class:`Page`."""
    complaints = []
    contexts = []

    def on_console(message):
        if message.type == "error" and not message.text.startswith(NETWORK):
            complaints.append(message.text)

    def open_one(url, *, width=1440, height=900, theme="dark", context=None, **options):
        if context is None:
            context = chromium.new_context(
                viewport={"width": width, "height": height},
                color_scheme=theme,
                accept_downloads=True,
                **options,
            )
            context.add_init_script(WATCH_POLICY)
            with contextlib.suppress(Exception):  # only for secure origins
                context.grant_permissions(["clipboard-read", "clipboard-write"])
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(f"{error.message}\n{error.stack}"))
        page.goto(url)
        return Page(page)

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def page(open_page, server):
    """The page of the shared server, ready to run."""
    page = open_page(server.url)
    page.is_ready()
    return page


@pytest.fixture
def start_server():
    """``start_server(toml)`` → a server of this test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda config: stack.enter_context(servers.running(config))
