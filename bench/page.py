"""How long a person waits for the page, in real Chromium. Runs as: root. I/O.

::

    python -m bench.page [--samples N]      needs chromium on PATH and ``[test]``'s playwright

Two figures of issue 6: from the navigation to a *Run* that can be pressed, and from the
click on it to the first example's result on the screen, each until the frame that shows
it was drawn. Between two samples of the second runs the same program bare: what is left
is the price of the browser, of HTTP and of the sandbox. The best of several is the
page's own time; median and worst tell about the machine it shares.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import bare, node
from bench.measure import median

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CONFIG: Final = "[rate_limit]\nenabled = false\n"
# A window of a new profile loads pages of the browser's own, for a second and more.
OWN_PAGES: Final = "WebUIOmniboxPopup,WebUIOmniboxAimPopup,PreloadTopChromeWebUI"
ARGUMENTS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    f"--disable-features={OWN_PAGES}",
]
TARGET_MS: Final = {"interactive, nothing cached": 300, "interactive, reloaded": 300, "log": 150}
TARGET_BYTES: Final = 200_000
SETTLE_S: Final = 0.5  # the pool refills, the page's clock and a new window come to rest

# One observer for everything that changes; a frame after the change it is on the screen.
WATCH: Final = """
globalThis.seen = {}
globalThis.shift = 0
const drawn = (name) => {
  if (name in seen) return
  seen[name] = null
  requestAnimationFrame(() => setTimeout(() => { seen[name] = performance.now() }))
}
const SIGNS = {
  interactive: () => document.querySelector('.reach.ready') && document.querySelector('.run:enabled'),
  log: () => document.querySelector('.log-line'),
  verdict: () => document.querySelector('.state.good'),
  files: () => document.querySelector('.output'),
  preview: () => document.querySelector('.preview img')?.complete,
}
const look = () => { for (const name in SIGNS) if (!(name in seen) && SIGNS[name]()) drawn(name) }
new MutationObserver(look).observe(document, { subtree: true, childList: true, attributes: true })
document.addEventListener('load', look, true)
document.addEventListener('click', (event) => {
  if (event.target.closest('.run')) globalThis.clicked = performance.now()
}, true)
new PerformanceObserver((list) => { for (const entry of list.getEntries()) shift += entry.value })
  .observe({ type: 'layout-shift', buffered: true })
"""
SEEN: Final = """async (name) => {
  while (!seen[name]) await new Promise((next) => setTimeout(next, 5))
  return seen[name]
}"""
AFTER_CLICK: Final = ("log", "verdict", "files", "preview")


def open_page(browser: Browser) -> Page:
    """A page with an empty cache and its observer, not yet anywhere."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(WATCH)
    return context.new_page()


def visit(browser: Browser, url: str, figures: dict[str, list[float]]) -> Page:
    """Twice: with an empty cache, and again. The page that is open then."""
    page = open_page(browser)
    time.sleep(SETTLE_S)
    page.goto(url)
    figures["interactive, nothing cached"].append(page.evaluate(SEEN, "interactive"))
    page.reload()
    figures["interactive, reloaded"].append(page.evaluate(SEEN, "interactive"))
    return page


def run_example(page: Page, figures: dict[str, list[float]]) -> None:
    """One click on a page that has rested."""
    page.locator(".run").click()
    for name in AFTER_CLICK:
        at = page.evaluate(SEEN, name)
        figures[name].append(at - page.evaluate("clicked"))
    figures["layout shift"].append(page.evaluate("shift"))


def weight(browser: Browser, url: str) -> int:
    """Bytes of the whole page as they come over the wire."""
    page = open_page(browser)
    sizes: list[int] = []
    page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    page.goto(url)
    page.evaluate(SEEN, "interactive")
    page.context.close()
    return sum(sizes)


def report(name: str, values: Iterable[float]) -> None:
    """Best, median, worst, and the target where there is one."""
    ordered = sorted(values)
    target = TARGET_MS.get(name)
    said = f"   target {target} ms" if target else ""
    print(f"{name:30} {ordered[0]:8.1f} {median(ordered):8.1f} {ordered[-1]:8.1f}{said}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("--samples", type=int, default=15)
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        parser.error("no chromium on PATH")
    from playwright.sync_api import sync_playwright

    names = ("interactive, nothing cached", "interactive, reloaded", *AFTER_CLICK, "layout shift")
    figures: dict[str, list[float]] = {name: [] for name in names}
    bares: list[float] = []
    with (
        node.running(CONFIG) as server,
        tempfile.TemporaryDirectory(dir="/dev/shm") as scratch,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        script = Path(scratch, "main.py")
        for _ in range(options.samples):
            page = visit(browser, server.url, figures)
            script.write_text(page.locator(".code textarea").input_value())
            with contextlib.chdir(scratch):
                bares.append(bare.run(("/usr/bin/python3", str(script))).wall_s * 1000)
            time.sleep(SETTLE_S)
            run_example(page, figures)
            page.context.close()
        total = weight(browser, server.url)
        browser.close()
    print(f"{'ms':30} {'best':>8} {'median':>8} {'worst':>8}   of {options.samples}")
    for name in names[:-1]:
        report(name, figures[name])
    report("the program, bare", bares)
    print(f"{'layout shift, worst':30} {max(figures['layout shift']):8.4f}{'':20}target 0")
    print(f"{'bytes on the wire':30} {total:8}{'':20}target {TARGET_BYTES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
