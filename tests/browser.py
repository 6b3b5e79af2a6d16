"""The machine's chromium, as a customer or an operator uses it: every page is watched while a test looks at it.

A test fails when its pages throw, write an error to the console (which is how a broken Content-Security-Policy shows),
or ask any other origin for anything. The fixtures are imported by name.
"""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.service import OPERATOR_KEY

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
#: Without these chromium tries to reach its maker at every start.
_SWITCHES = [
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", *(["--no-sandbox"] if os.geteuid() == 0 else []),
]  # fmt: skip
#: How long a test waits for something to be seen: far above anything measured, so that only a hang shows.
PATIENCE_MS = 20_000
#: How often one window may find live updates away.
MOST_AWAY = 2
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

Scheme = Literal["light", "dark"]
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a file. Skipped where there is none, but never in CI.

    No longer than that: it comes with an event loop of its own, beside which no other test's can run.
    """
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("there is no chromium, and CI must have one")
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_SWITCHES)
        yield browser
        browser.close()


@dataclass
class Window:
    """A person's browser: its own cookies, one size, one colour scheme. `pages` are its tabs."""

    context: BrowserContext
    faults: list[str] = field(default_factory=list)
    #: Console errors that a test brings about on purpose, such as an answer of 409.
    expected: list[str] = field(default_factory=list)

    def page(self, url: str) -> Page:
        """Open a tab."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.faults.append(f"thrown: {error}"))
        page.on("console", self._heard)
        page.on("request", lambda request: self._asked(url, request))
        page.goto(url)
        return page

    def expects(self, *patterns: str) -> None:
        """Let console errors pass that one of these patterns finds."""
        self.expected += patterns

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _asked(self, url: str, request: Request) -> None:
        asked = urlsplit(request.url)
        if asked.scheme in ("http", "https") and asked.hostname != urlsplit(url).hostname:
            self.faults.append(f"asked another host: {request.url}")

    def check(self) -> None:
        unexpected = [f for f in self.faults if not any(re.search(pattern, f) for pattern in self.expected)]
        # On a busy machine live updates may be away for a moment, which is no fault of a page: it polls. Not for long.
        away = [f for f in unexpected if re.search("503 .*/v1/live", f)]
        assert len(away) <= MOST_AWAY, away
        assert unexpected == away, unexpected


Windows = Callable[..., Window]


@pytest.fixture
def windows(chromium: Browser) -> Iterator[Windows]:
    """Make windows: `windows(size=PHONE, scheme="dark", java_script_enabled=False, locale="de-DE", …)`."""
    made: list[Window] = []

    def window(*, size: dict[str, int] = DESKTOP, scheme: Scheme = "light", **options: Any) -> Window:
        context = chromium.new_context(
            viewport=size,  # type: ignore[arg-type]
            color_scheme=scheme,
            reduced_motion="reduce",
            has_touch=size["width"] < 600,
            **options,
        )
        made.append(Window(context))
        return made[-1]

    yield window
    for each in made:
        each.context.close()
    for each in made:
        each.check()


@contextmanager
def another_site(policy: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """Serve pages from somebody's own origin, with a Content-Security-Policy; yields that, and its pages by path."""
    pages: dict[str, str] = {}

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8" if self.path in pages else "image/x-icon")
            if policy:
                self.send_header("Content-Security-Policy", policy)
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", pages
        finally:
            server.shutdown()
            thread.join()


def sign_in(page: Page, key: str = OPERATOR_KEY) -> None:
    """Sign in on an operators' page that shows its form."""
    page.get_by_label("Operator key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def assert_accessible(page: Page) -> None:
    """Have axe-core look at a page as it is now: WCAG 2.2 AA and its best practices, contrast included."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert found == [], [
        (
            each["id"],
            each["help"],
            [node["html"][:200] + " " + node.get("failureSummary", "")[:300] for node in each["nodes"]][:3],
        )
        for each in found
    ]
