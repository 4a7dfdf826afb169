"""The page in the words of its user, over Playwright's."""

import json
import re
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import expect

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()

EDITOR = ".code textarea"
ENDED = ".state.good, .state.bad, .state.muted"


class Page:
    """Wraps a Playwright page (``raw``). Nothing here sleeps: ``expect`` waits for what is seen."""

    def __init__(self, raw):
        self.raw = raw

    # ── looking ──────────────────────────────────────────────────────────────

    @property
    def headline(self):
        return self.raw.locator(".state h2")

    @property
    def log(self):
        return self.raw.locator(".log-window")

    @property
    def outputs(self):
        return self.raw.locator(".output .row-main bdi")

    @property
    def preview(self):
        return self.raw.locator(".preview")

    def button(self, name, **options):
        return self.raw.get_by_role("button", name=name, **options)

    def log_lines(self):
        """Texts of the lines that are rendered just now."""
        return self.raw.locator(".log-line .text").all_text_contents()

    def is_ready(self):
        expect(self.raw.locator(".reach.ready")).to_have_count(1)
        expect(self.button(re.compile("^Run"))).to_be_enabled()

    def eventually(self, condition):
        """Wait for a JavaScript expression. (wait_for_function needs eval, which the policy refuses.)"""
        self.raw.evaluate(
            "async () => { while (!(%s)) await new Promise((next) => setTimeout(next, 20)) }"
            % condition
        )

    # ── doing ────────────────────────────────────────────────────────────────

    def write(self, code):
        """Replace the open file's text."""
        self.raw.locator(EDITOR).fill(code)

    def start(self):
        self.raw.keyboard.press("Control+Enter")

    def ended(self, headline="Completed", timeout=60_000):
        """Wait for the job's end, which must read like this."""
        self.raw.locator(ENDED).wait_for(timeout=timeout)
        expect(self.headline).to_have_text(headline)

    def run(self, code=None, headline="Completed"):
        """Run and wait for the end. Until the job is accepted the page shows the last one."""
        if code is not None:
            self.write(code)
        before = self.raw.evaluate("location.hash")
        self.start()
        self.eventually(f"location.hash !== {json.dumps(before)}")
        self.ended(headline)

    def example(self, title):
        self.button("Examples").click()
        self.raw.locator(".menu-item", has_text=title).click()

    def settings(self):
        self.raw.get_by_role("tab", name="Settings").click()

    def code(self):
        self.raw.get_by_role("tab", name="Code").click()

    def drop(self, *paths):
        """Drop real files and directories, as the desktop would."""
        session = self.raw.context.new_cdp_session(self.raw)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send(
                "Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data}
            )
        session.detach()
        expect(self.raw.locator(".toast")).to_contain_text("taken in")

    def look_at(self, path):
        """Open an output's preview."""
        self.raw.locator(".output .row-main", has_text=path).click()
        expect(self.raw.locator(".preview-head b")).to_have_text(path)

    def findings(self):
        """axe-core's serious and critical findings, readable."""
        self.raw.evaluate(AXE)  # through the debugger: the page's policy refuses foreign scripts
        found = self.raw.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            (rule["id"], node["target"], node["failureSummary"])
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]

    def clipboard(self):
        return self.raw.evaluate("navigator.clipboard.readText()")

    def share(self, what):
        self.button("Share").click()
        self.raw.locator(".menu-item", has_text=what).click()
        expect(self.raw.locator(".toast")).to_contain_text("copied")
        return self.clipboard()
