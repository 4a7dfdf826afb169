"""The README's pictures of the page, taken of a real run. Runs as: root. I/O.

::

    python -m bench.screenshots [FOLDER]      needs chromium on PATH and ``[test]``'s playwright

Colours are reduced to a palette by the program ``pngquant``, if there is one: a third of
the bytes. Look at what came out before it is committed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bench import node
from bench.page import ARGUMENTS, CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser, Page

FOLDER: Final = Path(__file__).parents[1] / "frontend" / "screenshots"
ENDED: Final = ".state.good, .state.bad"


def first_example(page: Page) -> None:
    """The page as it comes. Run thrice: what the first of all jobs warms up is warm then."""
    for _ in range(3):
        before = page.evaluate("location.hash")
        page.locator(".run").click()
        while page.evaluate("location.hash") == before:
            page.wait_for_timeout(50)
        page.locator(".preview img").wait_for()
        page.wait_for_timeout(500)  # the pool refills


def over_the_limit(page: Page) -> None:
    """The example that asks for more memory than it has."""
    page.get_by_role("button", name="Examples").click()
    page.locator(".menu-item", has_text="over the memory limit").click()
    page.locator(".run").click()
    page.locator(".verdict .button").wait_for()


class Shot(NamedTuple):
    """One picture."""

    name: str
    width: int
    height: int
    theme: str
    steps: Callable[[Page], None]


SHOTS: Final = (
    Shot("wide-light.png", 1280, 800, "light", first_example),
    Shot("limit-dark.png", 1280, 720, "dark", over_the_limit),
    Shot("phone-dark.png", 360, 740, "dark", first_example),
)


def take(browser: Browser, url: str, shot: Shot, folder: Path) -> None:
    """Drive a page of its own to the state, and write what it shows."""
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.theme,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url)
    page.locator(".run:enabled").wait_for()
    shot.steps(page)
    page.locator(ENDED).wait_for()
    page.mouse.move(0, 0)
    page.screenshot(path=folder / shot.name)
    context.close()
    if shutil.which("pngquant"):
        quantize = ("pngquant", "--force", "--ext", ".png", "--skip-if-larger", "64", "--")
        subprocess.run((*quantize, str(folder / shot.name)), check=False)


def main() -> int:
    """Take all."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        print("no chromium on PATH", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    from playwright.sync_api import sync_playwright

    with node.running(CONFIG) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        for shot in SHOTS:
            take(browser, server.url, shot, folder)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
