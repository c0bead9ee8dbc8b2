"""A browser on the console, as a person has it: what it asked of other places and what went wrong in it is kept."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes_server import World
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

# The names under which distributions ship it.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
VARIABLE = "CHROMIUM"
PATIENCE_MS = 20_000
# The browser says so of every reply that is an error, whatever the page makes of it.
EXPECTED = "Failed to load resource"


def chromium() -> str | None:
    """The browser of this machine, which the variable CHROMIUM may name."""
    named = os.environ.get(VARIABLE)
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser without a window; the test is skipped where there is none.

    Not to be kept beyond a module: while it is there this thread has a loop that runs, and no test could have another.
    """
    path = chromium()
    if path is None:
        pytest.skip(f"no Chromium on this machine: apt-get install chromium, or name one in {VARIABLE}")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page on ``url``. ``outside`` are requests to other places, ``errors`` what scripts and policy complained of."""

    page: Page
    url: str
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, path: str = "/") -> Page:
        """The page, when the server's lists have come."""
        self.page.goto(f"{self.url}{path}")
        return self.page

    def document(self, name: str) -> Any:
        """The row of a document."""
        return self.page.locator(".document", has_text=name)

    def ask(self, question: str) -> Any:
        """Ask, and wait for the end of the answer; its article."""
        num_before = self.page.locator(".exchange").count()
        self.page.get_by_label("Question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        article = self.page.locator(".exchange").nth(num_before)
        article.locator(".took, .wrong").first.wait_for(timeout=3 * PATIENCE_MS)
        return article

    def upload(self, name: str, text: str | bytes, kind: str = "text/plain") -> Any:
        """Choose a file, as the picker would; its row."""
        data = text.encode() if isinstance(text, str) else text
        self.page.get_by_label("Drop a file here").set_input_files({"name": name, "mimeType": kind, "buffer": data})
        return self.document(name)


Visits = Callable[..., AbstractContextManager[tuple[World, Visit]]]


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A new page of a new person; at the end nothing may have gone outside, and nothing may have complained."""
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    visit = Visit(page, url)

    def only_here(route: Route) -> None:
        if route.request.url.startswith(url):
            route.continue_()
        else:
            visit.outside.append(route.request.url)
            route.abort()

    context.route("**/*", only_here)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            visit.errors.append(message.text) if message.type == "error" and EXPECTED not in message.text else None
        ),
    )
    try:
        yield visit
    finally:
        context.close()
    assert visit.outside == []
    assert visit.errors == []
