"""Finds a Chromium for the tests of the report page."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["INSTALL", "WIDE", "drawn_all", "find_chromium", "install_chromium", "launched", "opened", "until"]

INSTALL = (
    "no Chromium: install one (Debian: apt-get install chromium; anywhere: python -m playwright install chromium) "
    "or set BSHARP_CHROMIUM to its path"
)
WIDE = {"width": 1280, "height": 900}
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """$BSHARP_CHROMIUM, else a Chromium or Chrome on PATH, else playwright's own; None where there is none."""
    named = os.environ.get("BSHARP_CHROMIUM")
    if named:
        return named
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return found
    if find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


@contextmanager
def launched() -> Iterator[Any]:
    """A headless browser; raises LookupError, with what to install, where it cannot be had."""
    if find_spec("playwright") is None:
        raise LookupError("no playwright: pip install -e '.[dev]'")
    path = find_chromium()
    if path is None:
        raise LookupError(INSTALL)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without --no-sandbox Chromium does not start as root, as in most containers.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page, ready; on leaving: one request (the page itself), nothing on the console, no injected code run."""
    context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
    page = context.new_page()
    page.set_default_timeout(30_000)
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    try:
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        yield page
        assert page.evaluate("window.__pwned") is None
        # blob: and data: are the page's own memory.
        assert {url for url in requests if not url.startswith(("blob:", "data:"))} == {path.as_uri()}
        assert messages == []
    finally:
        context.close()


def until(page: Any, expression: str) -> None:
    """Wait for a JavaScript expression to hold. (The page's security policy forbids playwright's wait_for_function.)"""
    end = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(50)


def drawn_all(page: Any) -> int:
    """Open every fold and option, scroll every chart into view, wait until all are drawn; how many there are."""
    page.evaluate(
        "document.querySelectorAll('section details').forEach((fold) => { fold.open = true; });"
        "document.querySelectorAll('.option').forEach((option) => { option.hidden = false; });"
    )
    count = int(page.locator("figure.chart").count())
    for at in range(count):
        one = page.locator("figure.chart").nth(at)
        one.scroll_into_view_if_needed()
        one.locator(".cartesianlayer .subplot").first.wait_for(state="attached")
    charts = "[...document.querySelectorAll('figure.chart')].filter(f => f.querySelector('.cartesianlayer .subplot'))"
    until(page, f"{charts}.length === {count}")
    return count


def install_chromium() -> str | None:
    """Debian's chromium by apt-get, where that is allowed; its path, or None."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return None
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "chromium"]
    for command in (install, ["apt-get", "update", "--quiet"], install):
        try:
            subprocess.run(command, check=False, capture_output=True, timeout=240, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = find_chromium()
        if found:
            return found
    return None


def main() -> None:
    """Say which Chromium the page will be tested in; install one where there is none and that is possible."""
    found = find_chromium()
    if found is None:
        print("no Chromium found; trying apt-get install chromium", flush=True)
        found = install_chromium()
    print(f"the page is tested in {found}" if found else f"the page is NOT tested in a browser: {INSTALL}")


if __name__ == "__main__":
    main()
