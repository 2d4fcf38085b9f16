"""The pictures in docs/, made anew by naming this file: `python -m pytest tests/pages/pictures.py`.

The system's letters are used. With Inter on the machine (Debian's fonts-inter) the pictures come out as they are.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

Open = Callable[..., Any]

TOKEN = "operator-token-for-tests"
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"

#: Seconds of selling before the dashboard is looked at: a good part of what its charts look back on.
SELLING_SECONDS = 55

#: Bytes of a picture: they are in the repository for good.
BYTES_MAX = 150_000

ITEMS = [
    {"sku": "standing", "name": "Stehplatz", "capacity": 24_000, "max_per_buyer": 4},
    {"sku": "balcony", "name": "Balkon", "capacity": 3_600},
    {"sku": "box", "name": "Loge", "capacity": 48, "max_per_buyer": 2},
]


async def take(page: Page, name: str, **options: Any) -> None:
    FOLDER.mkdir(exist_ok=True)
    picture = await page.screenshot(path=FOLDER / f"{name}.png", animations="disabled", **options)
    assert len(picture) <= BYTES_MAX, f"{name}.png has {len(picture)} bytes"


@contextmanager
def selling(server: Any, sale: str) -> Iterator[None]:
    """Buyers come, more and fewer; most pay, some give back, some let it run out."""
    over = threading.Event()
    chance = random.Random(7)

    def sell() -> None:
        number = 0
        while not over.wait(0.25):
            wanted = round(60 + 55 * abs(number % 90 - 45) / 45 * chance.random())
            number += 1
            skus = [chance.choices(["standing", "balcony", "box"], [60, 30, 6])[0] for _ in range(wanted)]
            entries = [
                {"buyer": f"buyer-{number}-{at}", "lines": [{"sku": sku, "quantity": chance.choice((1, 2, 2, 3))}]}
                for at, sku in enumerate(skus)
            ]
            answer = server.operate("POST", f"/sales/{sale}/tickets/batch", {"entries": entries})
            held = [entry["ticket"]["id"] for entry in answer["entries"] if "ticket" in entry]
            paid = [{"ticket": held[at], "buyer": entries_buyer(answer, entries, held[at])} for at in range(len(held))]
            paid = [each for each in paid if chance.random() < 0.72]
            if paid:
                server.operate("POST", f"/sales/{sale}/payments/batch", {"entries": paid})

    thread = threading.Thread(target=sell)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def entries_buyer(answer: Any, entries: Any, ticket: str) -> str:
    """Who has this ticket."""
    return next(
        str(entry["buyer"])
        for entry, told in zip(entries, answer["entries"], strict=True)
        if told.get("ticket", {}).get("id") == ticket
    )


async def test_the_dashboard(start_server: Any, open_page: Open) -> None:
    server = start_server()
    server.create("hafenfest", name="Hafenfest: Open Air", items=ITEMS, max_per_buyer=6, hold_ms=12_000)
    server.create("matinee", name="Sunday Matinee", capacity=180)
    server.reserve("matinee", quantity=42)
    server.pay(server.reserve(server.create("print-run", name="Signed Print, 1 of 25", capacity=25), quantity=25))
    server.create("winter", name="Winter Season 2027", capacity=1_200, opens_at="2099-01-09T09:00:00Z")
    options = {"viewport": {"width": 1280, "height": 925}}
    light = await open_page(f"{server.address}/#token={TOKEN}&sale=hafenfest", **options)
    dark = await open_page(f"{server.address}/#token={TOKEN}&sale=hafenfest", color_scheme="dark", **options)
    with selling(server, "hafenfest"):
        await asyncio.sleep(SELLING_SECONDS)
        for page, name in ((light, "dashboard"), (dark, "dashboard-dark")):
            # While one is taken, the other stands still.
            await expect(page.locator("#rates .legend strong").first).not_to_have_text("0")
            await take(page, name)


async def test_the_shop(start_server: Any, open_page: Open) -> None:
    server = start_server()
    items = [{**ITEMS[0], "capacity": 400}, {**ITEMS[1], "capacity": 60}, {**ITEMS[2], "capacity": 4}]
    sale = server.create("gala", name="Sommernachtsball im Kurhaus", items=items, max_per_buyer=6)
    for number in range(30):
        lines = [{"sku": "standing", "quantity": 4}, {"sku": "balcony", "quantity": 1}]
        body = {"entries": [{"buyer": f"buyer-{number}", "lines": lines}]}
        ticket = server.operate("POST", f"/sales/{sale}/tickets/batch", body)["entries"][0]["ticket"]["id"]
        if number % 3:
            paid = {"entries": [{"ticket": ticket, "buyer": f"buyer-{number}"}]}
            server.operate("POST", f"/sales/{sale}/payments/batch", paid)
    server.reserve(sale, lines=[{"sku": "box", "quantity": 2}])
    for name, options in (
        ("shop", {"viewport": {"width": 760, "height": 900}}),
        ("shop-phone-dark", {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}),
    ):
        page = await open_page(f"{server.address}/shop/{sale}", **options)
        await page.get_by_role("button", name="More: Balkon").click()
        await page.get_by_role("button", name="Reserve 1").click()
        await page.get_by_role("button", name="Pay for 1 × Balkon").click()
        await expect(page.locator("[data-status=purchased]")).to_be_visible()
        await page.get_by_role("button", name="More: Stehplatz").click()
        await page.get_by_role("button", name="More: Stehplatz").click()
        await page.get_by_role("button", name=re.compile("Reserve 2")).click()
        await expect(page.locator("[data-status=reserved]")).to_be_visible()
        await page.evaluate("scrollTo(0, 0)")
        await page.locator("#name").click()
        await take(page, name)


async def test_the_report_of_a_load(start_server: Any, open_page: Open, tmp_path: Path) -> None:
    server = start_server()
    report = tmp_path / "report.html"
    command = [sys.executable, "-m", "holdfast.http.cli", "load", "2000-for-100", "--url", server.address]
    await asyncio.to_thread(
        subprocess.run, [*command, "--operator-token", TOKEN, "--report", str(report)], check=True, cwd=tmp_path
    )
    page = await open_page(report.as_uri(), viewport={"width": 1040, "height": 640})
    await take(page, "report")
    charts = [
        await page.locator("section", has_text=title).first.bounding_box() for title in ("Requests over time", "Stock")
    ]
    first, last = charts
    assert first is not None
    assert last is not None
    height = last["y"] + last["height"] - first["y"] + 40
    clip = {"x": 0, "y": first["y"] - 20, "width": 1040, "height": height}
    await take(page, "report-charts", full_page=True, clip=clip)
