"""A real server, a real Chromium, and what happens between them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import requests
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

TOKEN = "operator-token-for-tests"
#: Its characters need no more than eight: a fingerprint of a buyer who is no browser.
OTHER_BUYER = {"X-Buyer-Fingerprint": "buyer-without-a-browser"}

#: Seconds in which a process must have said what is awaited.
PATIENCE = 30

#: Milliseconds in which something must be seen on a page, on a machine that does much else besides.
SEEN_MS = 15_000
expect.set_options(timeout=SEEN_MS)

#: Without a sandbox, which root has none of; and nothing that calls home, which a closed network would hold up.
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)

#: What a browser writes into its console by itself, about answers that the pages read and explain.
EXPECTED_IN_CONSOLE = re.compile(r"Failed to load resource|net::ERR_")

#: Adds up how far things on the page have been moved without anybody's doing.
WATCH_SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


class Server:
    """A `holdfast serve` of its own, and the calls that tests make beside the browser.

    Parameters
    ----------
    directory: its data, which outlives a kill.
    arguments: further flags.
    """

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._directory = directory
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()

    def start(self) -> Server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        command = [sys.executable, "-m", "holdfast.http.cli", "serve", "--port", str(self.port), "--data-dir", "data"]
        with (self._directory / "errors.log").open("a") as errors:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                cwd=self._directory,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                env=environment | {"HOLDFAST_OPERATOR_TOKEN": TOKEN},
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "operator token" in line:
                return self
        raise AssertionError((self._directory / "errors.log").read_text())

    def kill(self) -> None:
        """kill -9, of all its processes; its Redis lives on."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = [int(child) for child in children if b"holdfast" in Path(f"/proc/{child}/cmdline").read_bytes()]
        # The one that watches over the others first, or it would replace them.
        for each in (pid, *workers):
            os.kill(each, signal.SIGKILL)
        with self._process:
            self._process.wait(PATIENCE)

    def stop(self) -> None:
        self.session.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with self._process:
                self._process.wait(PATIENCE)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """What is answered to anybody."""
        return self.session.request(method, self.address + path, json=body, headers=headers, timeout=20).json()

    def operate(self, method: str, path: str, body: Any = None) -> Any:
        """What is answered to the operator."""
        return self.call(method, path, body, Authorization=f"Bearer {TOKEN}")

    def create(self, sale: str, **fields: Any) -> str:
        """A new sale; its id."""
        made = self.operate("POST", "/sales", {"id": sale, "name": sale.title(), **fields})
        assert made.get("id") == sale, made
        return sale

    def sale(self, sale: str) -> Any:
        return self.call("GET", f"/sales/{sale}")

    def reserve(self, sale: str, **body: Any) -> Any:
        """A ticket of somebody else's."""
        ticket = self.call("POST", f"/sales/{sale}/tickets", body or {"quantity": 1}, **OTHER_BUYER)
        assert ticket.get("status") == "reserved", ticket
        return ticket

    def pay(self, ticket: Any) -> Any:
        return self.call("POST", f"/tickets/{ticket['id']}/payment", {}, **OTHER_BUYER)

    def cancel(self, ticket: Any) -> Any:
        return self.call("DELETE", f"/tickets/{ticket['id']}/payment", None, **OTHER_BUYER)

    def tickets(self, sale: str) -> list[Any]:
        """All tickets of all buyers, oldest first."""
        return list(self.operate("GET", f"/sales/{sale}/tickets")["items"])

    def until(self, condition: Callable[[], Any]) -> Any:
        """Waits until something is so."""
        give_up = time.monotonic() + 10
        while not (found := condition()):
            assert time.monotonic() < give_up
            time.sleep(0.02)
        return found


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; without one the test is skipped, or fails where it has to be there."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "no chromium here: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("BROWSER_REQUIRED") else pytest.skip(reason)
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """One for the whole run."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        await browser.close()


class Watched:
    """Opens windows, each with a memory of its own, and sees what goes wrong in them."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self._browser = browser
        self._server = server
        self.contexts: list[BrowserContext] = []
        self.wrong: list[str] = []

    async def __call__(self, path: str, *, context: BrowserContext | None = None, **options: Any) -> Page:
        """A page at a path of the server; in a context of its own, or in that of another page."""
        if context is None:
            context = await self._browser.new_context(**options)
            context.set_default_timeout(SEEN_MS)
            await context.add_init_script(WATCH_SHIFTS)
            self.contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda message: self._heard(message.type, message.text))
        await page.goto(path if ":" in path else self._server.address + path)
        return page

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not EXPECTED_IN_CONSOLE.search(text):
            self.wrong.append(text)


Open = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser, server: Server) -> AsyncIterator[Open]:
    """Opens pages of the server; in the end none of them may have complained."""
    watched = Watched(browser, server)
    yield watched
    for context in watched.contexts:
        await context.close()
    assert watched.wrong == []


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Server]:
    """One for the whole run: each test has sales of its own."""
    server = Server(tmp_path_factory.mktemp("pages")).start()
    yield server
    server.stop()


@pytest.fixture
def start_server(tmp_path: Path, chromium: str) -> Iterator[Callable[..., Server]]:
    """Starts a server for one test: `start_server("--workers", "2")`."""
    started: list[Server] = []

    def start(*arguments: str) -> Server:
        started.append(Server(tmp_path, *arguments).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()
