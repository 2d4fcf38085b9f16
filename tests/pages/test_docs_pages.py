"""The pages about the API, in a browser: listed, tried, and asking nobody else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import Page, expect

from holdfast.http.app import ROUTES
from holdfast.http.problems import TABLE

pytestmark = pytest.mark.asyncio(loop_scope="session")

#: As in conftest.py.
TOKEN = "operator-token-for-tests"


def asked(page: Page) -> list[str]:
    """The addresses that a page asks for from now on."""
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    return addresses


async def authorize(page: Page, scheme: str, value: str) -> None:
    await page.get_by_role("button", name="Authorize").first.click()
    form = page.locator(".auth-container").filter(has=page.locator("h4 code", has_text=re.compile(f"^{scheme}$")))
    await form.get_by_role("textbox").fill(value)
    await form.get_by_role("button", name="Apply credentials").click()
    await page.get_by_role("button", name="Close").first.click()


async def execute(page: Page, operation: str, *, parameters: dict[str, str] | None = None, body: str = "") -> Any:
    """Try a call out; the status and the answer as the page shows them."""
    block = page.locator(f"#operations-{operation}")
    if "is-open" not in (await block.get_attribute("class") or ""):
        await block.locator(".opblock-summary-control").click()
    for name, value in (parameters or {}).items():
        await block.locator(f"tr[data-param-name='{name}'] input").fill(value)
    if body:
        await block.locator("textarea.body-param__text").fill(body)
    await block.get_by_role("button", name="Execute").click()
    live = block.locator(".live-responses-table .response").first
    await expect(live).to_be_visible()
    return (await live.locator(".response-col_status").inner_text()).strip(), await live.inner_text()


async def test_every_call_is_listed_and_nobody_else_is_asked(open_page: Any, server: Any) -> None:
    page = await open_page("/healthz")
    addresses = asked(page)
    await page.goto(server.address + "/docs")
    await expect(page.locator(".opblock")).to_have_count(len(ROUTES))
    listed = await page.locator(".opblock-summary-path").evaluate_all("each => each.map((e) => e.dataset.path)")
    assert sorted(listed) == sorted(route.path for route in ROUTES)
    for operation in ("sales-create_sale", "tickets-pay", "live-stream"):
        await page.locator(f"#operations-{operation} .opblock-summary-control").click()
    await expect(page.locator(".opblock.is-open")).to_have_count(3)
    assert len(addresses) >= 5
    assert {address for address in addresses if not address.startswith((server.address + "/", "data:"))} == set()


async def test_a_sale_is_made_and_a_ticket_bought_by_trying_it_out(open_page: Any) -> None:
    page = await open_page("/docs")
    await authorize(page, "operator", TOKEN)
    made = await execute(page, "sales-create_sale", body='{"id": "tried", "name": "Tried", "capacity": 3}')
    assert made[0] == "201"
    page = await open_page("/docs")
    await authorize(page, "fingerprint", "buyer-ann-1")
    status, text = await execute(
        page, "tickets-reserve", parameters={"sale": "tried", "Idempotency-Key": "cart-77"}, body='{"quantity": 2}'
    )
    assert status == "201"
    (ticket,) = set(re.findall(r"tried\.[\w-]{22}", text))
    status, text = await execute(page, "tickets-pay", parameters={"ticket": ticket}, body='{"reference": "pay_123"}')
    assert status == "200"
    assert '"purchased"' in text
    status, text = await execute(page, "tickets-cancel", parameters={"ticket": ticket})
    assert status == "409"
    assert "/docs/errors#already_purchased" in text


async def test_the_refusals_fit_on_a_phone(open_page: Any) -> None:
    page = await open_page("/docs/errors", viewport={"width": 360, "height": 740})
    await expect(page.get_by_role("cell", name="all_held")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_a_refusal_is_found_by_its_anchor(open_page: Any, server: Any) -> None:
    page = await open_page("/docs/errors")
    codes = {error.code for error in TABLE}  # type: ignore[attr-defined]
    await expect(page.locator("section")).to_have_count(len(codes))
    await page.get_by_role("cell", name="all_held").get_by_role("link").click()
    await expect(page).to_have_url(server.address + "/docs/errors#all_held")
    await expect(page.locator("#all_held")).to_be_in_viewport()
    await expect(page.locator("#all_held")).to_contain_text("What to do.")
