"""What people who see, hear or move otherwise would stumble over, as far as axe-core finds it: nothing."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # Colours do not depend on the width, nor the arrangement on the colours.
    pytest.mark.parametrize(("scheme", "width"), [("light", 320), ("dark", 1280)]),
]

Open = Callable[..., Any]

TOKEN = "operator-token-for-tests"


def axe() -> str:
    """The script of axe-core; the Python around it is never imported."""
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text()


async def violations(page: Page) -> list[str]:
    """Each rule that the page breaks, and where."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(axe())
    found = await page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


async def test_the_shop(server: Any, open_page: Open, scheme: str, width: int) -> None:
    items = [
        {"sku": "seat", "name": "Seat", "capacity": 5, "max_per_buyer": 2},
        {"sku": "box", "name": "Box", "capacity": 1},
        {"sku": "none", "name": "None", "capacity": 0},
    ]
    sale = server.create(f"axe-{scheme}-{width}", items=items)
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "reduced_motion": "reduce"}
    page = await open_page(f"/shop/{sale}", **options)
    await expect(page.locator("#link-state")).to_have_text("Live")
    assert await violations(page) == []
    # Held, purchased, cancelled and refused.
    for ending in ("Pay for", "Give back", ""):
        await page.get_by_role("button", name="More: Seat").click()
        await page.get_by_role("button", name="Reserve 1").click()
        if ending:
            await page.locator("[data-status=reserved]").get_by_role("button", name=ending).click()
            await expect(page.locator("[data-status=reserved]")).to_have_count(0)
    await expect(page.locator("[data-status=reserved]")).to_have_count(1)
    server.reserve(sale, lines=[{"sku": "box", "quantity": 1}])
    await page.get_by_role("button", name="More: Box").click()
    await page.get_by_role("button", name="Reserve 1").click()
    await expect(page.locator("#said")).to_contain_text("All held by others")
    assert await violations(page) == []
    server.operate("PATCH", f"/sales/{sale}", {"hold_ms": 1000, "items": [{"sku": "box", "capacity": 2}]})
    await page.get_by_role("button", name=re.compile("^Reserve")).click()
    await expect(page.locator("[data-hurry=yes]")).to_have_count(1)
    assert await violations(page) == []
    await expect(page.locator("[data-status=expired]")).to_have_count(1)
    server.operate("PATCH", f"/sales/{sale}", {"closes_at": "2020-01-01T00:00:00Z"})
    await expect(page.get_by_role("button", name="Closed")).to_be_visible()
    assert await violations(page) == []
    await page.goto(f"{server.address}/shop/nothing-here")
    await expect(page.get_by_role("heading", name="There is no such sale")).to_be_visible()
    assert await violations(page) == []


async def test_the_dashboard(server: Any, open_page: Open, scheme: str, width: int) -> None:
    items = [{"sku": "seat", "name": "Seat", "capacity": 50}, {"sku": "box", "name": "Box", "capacity": 4}]
    sale = server.create(f"axe-desk-{scheme}-{width}", items=items, max_per_buyer=10)
    later = {"capacity": 1, "opens_at": "2099-01-01T00:00:00Z"}
    server.create(f"axe-later-{scheme}-{width}", **later)
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}
    page = await open_page("/#token=not-the-token", **options)
    await expect(page.get_by_role("alert")).to_have_text("This is not the operator's token.")
    assert await violations(page) == []
    await page.route(re.compile("/readyz$"), lambda route: route.fulfill(status=503, body='{"reasons":["one","two"]}'))
    await page.goto(f"{server.address}/?#token={TOKEN}&sale={sale}")
    await expect(page.locator("#link-state")).to_have_text("Live")
    server.pay(server.reserve(sale, lines=[{"sku": "seat", "quantity": 3}]))
    server.cancel(server.reserve(sale, lines=[{"sku": "box", "quantity": 1}]))
    await expect(page.locator("#feed tr")).to_have_count(4)
    await expect(page.locator("#health")).to_contain_text("two")
    assert await violations(page) == []
    await page.get_by_role("button", name="Pause").click()
    for button in ("New sale", "Change", "Restock", "Close"):
        await page.get_by_role("button", name=button, exact=True).click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        if button == "New sale":
            await page.get_by_role("button", name="Add another kind").click()
            await page.get_by_role("button", name="Create", exact=True).click()
            await expect(page.locator("[aria-invalid=true]")).not_to_have_count(0)
        assert await violations(page) == [], button
        await page.keyboard.press("Escape")
