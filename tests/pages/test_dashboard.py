"""The operator's page in a real browser, against a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

Open = Callable[..., Any]

TOKEN = "operator-token-for-tests"


async def look_at(open_page: Open, sale: str, **options: Any) -> Page:
    """The dashboard, with this sale in view and its stream open."""
    page: Page = await open_page(f"/#token={TOKEN}&sale={sale}", **options)
    await expect(page.locator("#sale-id")).to_have_text(sale)
    await expect(page.locator("#link-state")).to_have_text("Live")
    return page


def total(page: Page, name: str) -> Any:
    return page.locator(f"#total-{name}")


# Signing in -----------------------------------------------------------------------------------------------------------


async def test_the_token_leaves_the_address_and_stays_in_the_tab(server: Any, open_page: Open) -> None:
    sale = server.create("signed-in", capacity=1)
    asked: list[str] = []
    page = await open_page("about:blank")
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(f"{server.address}/#token={TOKEN}&sale={sale}")
    await expect(page.locator("#sale-id")).to_have_text(sale)
    assert page.url == f"{server.address}/#sale={sale}"
    assert await page.evaluate("[Object.values(sessionStorage), Object.values(localStorage)]") == [[TOKEN], []]
    await page.reload()
    await expect(page.locator("#sale-id")).to_have_text(sale)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Operator's token")).to_be_focused()
    await expect(page.locator("#sale")).to_be_hidden()
    assert await page.evaluate("sessionStorage.length") == 0
    assert asked
    assert not [url for url in asked if TOKEN in url.partition("#")[0]]
    assert TOKEN not in (server._directory / "errors.log").read_text()


async def test_a_wrong_token_is_told(server: Any, open_page: Open) -> None:
    sale = server.create("told", capacity=1)
    page = await open_page(f"/#token=not-the-token&sale={sale}")
    await expect(page.get_by_role("alert")).to_have_text("This is not the operator's token.")
    await page.get_by_label("Operator's token").fill("nor this ü")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("A token has visible ASCII characters only; this is none.")
    await page.get_by_label("Operator's token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.locator("#sale-id")).to_have_text(sale)
    # The server was started anew with another one.
    await page.route(re.compile("/sales\\?"), lambda route: route.fulfill(status=401, body='{"code":"x"}'))
    await expect(page.get_by_role("alert")).to_have_text("The token is not accepted any more.")


# Sales are made and changed -------------------------------------------------------------------------------------------


async def test_a_sale_is_made_with_mistakes_told_at_their_fields(server: Any, open_page: Open) -> None:
    server.create("taken", capacity=1)
    page = await look_at(open_page, "taken")
    await page.get_by_role("button", name="New sale").click()
    dialog = page.get_by_role("dialog", name="New sale")
    await expect(dialog.get_by_label("Name", exact=True)).to_be_focused()
    await dialog.get_by_label("Units").fill("many")
    await dialog.get_by_role("button", name="Create").click()
    await expect(dialog.get_by_label("Name", exact=True)).to_be_focused()
    await expect(dialog.get_by_label("Name", exact=True)).to_have_accessible_description(
        re.compile("must not be empty")
    )
    await expect(dialog.get_by_label("Units")).to_have_accessible_description(re.compile("must be a whole number"))
    await expect(dialog.get_by_label("Units")).to_have_attribute("aria-invalid", "true")

    await dialog.get_by_label("Name", exact=True).fill("Sommernachtsball")
    await dialog.get_by_label("Id", exact=True).fill("taken")
    await dialog.get_by_role("button", name="Add another kind").click()
    await dialog.get_by_label("Item", exact=True).nth(0).fill("Stehplätze")
    await expect(dialog.get_by_label("Its id", exact=True).nth(0)).to_have_value("stehplaetze")
    await dialog.get_by_label("Units").nth(0).fill("1,200")
    await dialog.get_by_label("Item", exact=True).nth(1).fill("Loge")
    await dialog.get_by_label("Units").nth(1).fill("12")
    await dialog.get_by_label("Per buyer").nth(1).fill("0")
    await dialog.get_by_label("Hold time", exact=True).fill("90")
    await dialog.get_by_label("Unit of the hold time").select_option("seconds")
    await dialog.get_by_label("Limit", exact=True).fill("6")
    await dialog.get_by_role("button", name="Create").click()
    await expect(dialog.get_by_label("Per buyer").nth(1)).to_have_accessible_description(
        re.compile("must be at least 1")
    )
    await expect(dialog.locator("[aria-invalid]")).to_have_count(1)
    await dialog.get_by_label("Per buyer").nth(1).fill("2")
    await dialog.get_by_role("button", name="Create").click()
    await expect(dialog.get_by_label("Id", exact=True)).to_have_accessible_description(
        re.compile("another sale has this id")
    )
    await dialog.get_by_label("Id", exact=True).fill("sommerball")
    await dialog.get_by_role("button", name="Create").click()
    await expect(dialog).to_be_hidden()
    await expect(page.get_by_role("heading", name="Sommernachtsball", level=1)).to_be_focused()
    assert page.url.endswith("/#sale=sommerball")
    sale = server.sale("sommerball")
    assert (sale["hold_ms"], sale["max_per_buyer"], sale["capacity"]) == (90_000, 6, 1212)
    assert [(item["sku"], item["name"], item.get("max_per_buyer")) for item in sale["items"]] == [
        ("stehplaetze", "Stehplätze", None),
        ("loge", "Loge", 2),
    ]
    await expect(page.get_by_role("meter", name="Loge")).to_have_attribute("aria-valuenow", "12")
    await page.go_back()
    await expect(page.locator("#sale-id")).to_have_text("taken")
    await page.get_by_role("link", name=re.compile("Sommernachtsball")).click()
    await page.get_by_role("link", name="Shop page").click()
    await expect(page.get_by_role("button", name="More: Loge")).to_be_visible()


async def test_the_first_sale(start_server: Any, open_page: Open) -> None:
    server = start_server()
    page = await open_page(f"{server.address}/#token={TOKEN}")
    await page.get_by_role("button", name="Create a sale").click()
    await page.get_by_label("Name", exact=True).fill("First")
    await page.get_by_label("Units").fill("3")
    await page.keyboard.press("Enter")
    await expect(total(page, "capacity")).to_have_text("3")
    await expect(page.locator("#sales li")).to_have_count(1)
    await expect(page.locator("#sale-state")).to_have_text("Open")


async def test_a_sale_is_changed_restocked_closed_and_opened_again(server: Any, open_page: Open) -> None:
    sale = server.create("changing", name="Before", capacity=2, closes_at="2099-01-01T00:00:00Z")
    shop = await open_page(f"/shop/{sale}")
    page = await look_at(open_page, sale)
    await page.get_by_role("button", name="Restock").click()
    await page.get_by_label("Before: units to add").fill("8")
    await page.keyboard.press("Enter")
    await expect(total(page, "capacity")).to_have_text("10")
    await expect(shop.locator(".left")).to_have_text("10 left")

    await page.get_by_role("button", name="Change").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Name", exact=True).fill("Behind")
    await dialog.get_by_label("Hold time", exact=True).fill("2")
    await dialog.get_by_label("Limit", exact=True).fill("4")
    await dialog.get_by_label("Closes").fill("")
    await dialog.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("heading", name="Behind", level=1)).to_be_visible()
    await expect(page.locator("#sale-facts")).to_have_text("hold 2 minutes · at most 4 units per buyer")
    changed = server.sale(sale)
    assert (changed["hold_ms"], changed["max_per_buyer"], changed["closes_at"], changed["capacity"]) == (
        120_000,
        4,
        None,
        10,
    )

    held = server.reserve(sale, quantity=4)
    await page.get_by_role("button", name="Change").click()
    await dialog.get_by_label("Units", exact=True).fill("3")
    await dialog.get_by_role("button", name="Save").click()
    await expect(dialog.get_by_label("Units", exact=True)).to_have_accessible_description(
        re.compile("4 are held or sold")
    )
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Change")).to_be_focused()

    await page.get_by_role("button", name="Close", exact=True).click()
    await expect(page.get_by_role("dialog")).to_contain_text("4 units are held and can still be paid.")
    await page.get_by_role("button", name="Close the sale").click()
    await expect(page.locator("#sale-state")).to_have_text("Closed")
    await expect(shop.get_by_role("button", name="Closed")).to_be_disabled()
    server.pay(held)
    await expect(total(page, "purchased")).to_have_text("4")
    await page.get_by_role("button", name="Open again").click()
    await expect(page.locator("#sale-state")).to_have_text("Open")
    await expect(shop.get_by_role("button", name="Reserve 1")).to_be_enabled()


async def test_a_sale_that_is_not_open_yet_can_be_closed(server: Any, open_page: Open) -> None:
    opens = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    page = await look_at(open_page, server.create("early", capacity=2, opens_at=opens))
    await expect(page.locator("#sale-state")).to_have_text("Not yet open")
    await page.get_by_role("button", name="Close", exact=True).click()
    await page.get_by_role("button", name="Close the sale").click()
    await expect(page.locator("#sale-state")).to_have_text("Closed")


async def test_the_states_of_sales_in_the_list(server: Any, open_page: Open) -> None:
    server.create("state-open", capacity=2)
    server.reserve(server.create("state-held", capacity=1))
    server.pay(server.reserve(server.create("state-sold", capacity=1)))
    server.create("state-closed", capacity=1, closes_at="2020-01-01T00:00:00Z")
    server.create("state-later", capacity=1, opens_at="2099-01-01T00:00:00Z")
    # So many that a field to find one is of use.
    for number in range(5):
        server.create(f"state-more-{number}", capacity=1)
    page = await look_at(open_page, "state-open")
    for sale, state in (
        ("state-open", "Open"),
        ("state-held", "All held"),
        ("state-sold", "Sold out"),
        ("state-closed", "Closed"),
        ("state-later", "Not yet open"),
    ):
        await expect(page.locator(f"#sales a[href='#sale={sale}'] .pill")).to_have_text(state)
    await page.locator("#filter").fill("STATE-SO")
    await expect(page.locator("#sales li:visible")).to_have_count(1)


async def test_an_unknown_sale_in_the_address(server: Any, open_page: Open) -> None:
    server.create("known", capacity=1)
    page = await open_page(f"/#token={TOKEN}&sale=nothing-here")
    await expect(page.get_by_role("heading", name="There is no such sale")).to_be_visible()
    await page.locator("#sales a[href='#sale=known']").click()
    await expect(page.locator("#sale-id")).to_have_text("known")


# As it happens --------------------------------------------------------------------------------------------------------


async def test_what_happens_is_seen(server: Any, open_page: Open) -> None:
    items = [{"sku": "a", "name": "<b>Bold</b>", "capacity": 10}, {"sku": "b", "name": "Plain", "capacity": 10}]
    sale = server.create("seen", items=items, hold_ms=60_000)
    page = await look_at(open_page, sale)
    first = server.reserve(sale, lines=[{"sku": "a", "quantity": 2}, {"sku": "b", "quantity": 1}])
    second = server.reserve(sale, lines=[{"sku": "b", "quantity": 4}])
    server.call(
        "POST",
        f"/tickets/{first['id']}/payment",
        {"reference": "<i>pay_1"},
        **{"X-Buyer-Fingerprint": "buyer-without-a-browser"},
    )
    server.cancel(second)
    rows = page.locator("#feed tr")
    await expect(rows).to_have_count(4)
    told = [await row.locator("td").all_inner_texts() for row in await rows.all()]
    assert [row[1:] for row in told] == [
        ["cancelled", "4 × Plain", second["id"], ""],
        ["purchased", "2 × <b>Bold</b>, 1 × Plain", first["id"], "<i>pay_1"],
        ["reserved", "4 × Plain", second["id"], ""],
        ["reserved", "2 × <b>Bold</b>, 1 × Plain", first["id"], ""],
    ]
    await expect(total(page, "available")).to_have_text("17")
    await expect(total(page, "purchased")).to_have_text("3")
    meter = page.get_by_role("meter", name="Plain")
    await expect(meter).to_have_attribute("aria-valuetext", "9 available, 0 held, 1 sold of 10")
    told = re.compile("Reserved .*; Purchased ")
    await expect(page.locator("#rates svg[role=img]")).to_have_attribute("aria-label", told)

    # Held still, nothing moves but the stock; then all of it comes.
    await page.get_by_role("button", name="Pause").click()
    server.reserve(sale, lines=[{"sku": "b", "quantity": 2}])
    await expect(total(page, "reserved")).to_have_text("2")
    await expect(rows).to_have_count(4)
    await page.get_by_role("button", name="Resume").click()
    await expect(rows).to_have_count(5)


async def test_a_sale_in_shards(server: Any, open_page: Open) -> None:
    sale = server.create("hot", capacity=9, shards=3, hold_ms=60_000)
    page = await look_at(open_page, sale)
    await expect(page.locator("#sale-facts")).to_contain_text("3 shards")
    # More than the shard of this buyer has: it borrows, and the log says what went where.
    ticket = server.reserve(sale, quantity=7)
    await expect(page.locator("#feed")).to_contain_text(ticket["id"])
    moved = page.locator("#feed tr", has_text="moved").first
    await expect(moved).to_contain_text(re.compile(r"\d × .*hot~[123]"))
    await expect(total(page, "reserved")).to_have_text("7")
    await expect(total(page, "available")).to_have_text("2")

    # On their way they are shown, for as long as they are.
    moving = server.sale(sale)
    moving["items"][0] |= {"available": 0, "in_transit": 2}
    moving |= {"available": 0, "in_transit": 2}

    async def stream(route: Route) -> None:
        body = f"event: counts\nid: 1-1,1-1,1-1\ndata: {json.dumps(moving)}\n\n"
        await route.fulfill(body=body, content_type="text/event-stream")

    await page.route("**/stream", stream)
    await page.reload()
    words = "0 available, 7 held, 0 sold, 2 in transit of 9"
    await expect(page.get_by_role("meter")).to_have_attribute("aria-valuetext", words)
    await expect(page.locator("#sale-state")).to_have_text("All held")


async def test_a_stampede_does_not_kill_the_page(server: Any, open_page: Open) -> None:
    sale = server.create("stampede", capacity=1_000_000)
    page = await look_at(open_page, sale)
    entries = 400

    def batch(number: int) -> None:
        body = {"entries": [{"buyer": f"b-{number}-{at}", "quantity": 1} for at in range(entries)]}
        answer = server.operate("POST", f"/sales/{sale}/tickets/batch", body)
        assert {entry["status"] for entry in answer["entries"]} == {201}

    batches = 25
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(batch, range(batches)))
    # None is missing, and none is drawn but the last.
    await expect(page.locator("#feed-said")).to_have_text(f"{entries * batches:,} since you opened this sale")
    await expect(total(page, "reserved")).to_have_text(f"{entries * batches:,}")
    assert await page.locator("#feed tr").count() == 40
    peak = await page.locator("#rates svg[role=img]").get_attribute("aria-label")
    assert peak
    await page.get_by_role("button", name="New sale").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert await page.evaluate("window.shifted") < 0.1


async def test_refusals_are_counted_from_the_metrics(server: Any, open_page: Open) -> None:
    sale = server.create("refusing", capacity=1)
    server.reserve(sale)
    looks = 0

    async def metrics(route: Route) -> None:
        nonlocal looks
        looks += 1
        assert route.request.headers["authorization"] == f"Bearer {TOKEN}"
        lines = [
            f'holdfast_outcomes_total{{call="reserve",sale="{sale}",outcome="ok"}} {looks * 9}.0',
            f'holdfast_outcomes_total{{call="reserve",sale="{sale}",outcome="all_held"}} {looks * 120}.0',
            f'holdfast_outcomes_total{{call="reserve",sale="another",outcome="sold_out"}} {looks * 7}.0',
            f'holdfast_outcomes_total{{call="pay",sale="{sale}",outcome="not_your_ticket"}} {looks}',
        ]
        await route.fulfill(content_type="text/plain", body="# TYPE x counter\n" + "\n".join(lines) + "\n")

    page = await open_page("about:blank")
    await page.route(re.compile("/metrics$"), metrics)
    await page.goto(f"{server.address}/#token={TOKEN}&sale={sale}")
    legend = page.locator("#refusals .legend li")
    await expect(legend).to_have_text([re.compile(r"All held\s*[1-9]"), re.compile(r"Other\s*0?\.?[1-9]")])
    await expect(page.locator("#refusals path")).to_have_count(2)


async def test_without_metrics_the_page_says_so_and_goes_on(server: Any, open_page: Open) -> None:
    sale = server.create("unmeasured", capacity=1)
    page = await open_page("about:blank")
    await page.route(re.compile("/metrics$"), lambda route: route.fulfill(status=404, body="{}"))
    await page.goto(f"{server.address}/#token={TOKEN}&sale={sale}")
    await expect(page.locator("#refusals")).to_contain_text("This server has no metrics to count refusals from.")
    await expect(page.locator("#link-state")).to_have_text("Live")


async def test_what_is_wrong_with_the_server_stands_on_top(server: Any, open_page: Open) -> None:
    page = await open_page("about:blank")
    said: dict[str, Any] = {"status": 503, "body": {"code": "not_ready", "reasons": ["'gig' is behind the store"]}}

    async def readyz(route: Route) -> None:
        await route.fulfill(status=said["status"], content_type="application/json", body=json.dumps(said["body"]))

    await page.clock.install()
    await page.route(re.compile("/readyz$"), readyz)
    await page.goto(f"{server.address}/")
    banner = page.locator("#health")
    await expect(banner).to_contain_text("Not ready: some of it cannot be sold")
    await expect(banner).to_contain_text("'gig' is behind the store")
    said.update(status=200, body={"status": "ready", "alarms": ["the store does not answer"]})
    await page.clock.run_for(5_000)
    await expect(banner).to_contain_text("Something is wrong, and selling goes on")
    said.update(status=200, body={"status": "ready"})
    await page.clock.run_for(5_000)
    await expect(banner).to_be_hidden()


async def test_without_a_stream_the_stock_is_read_all_the_same(server: Any, open_page: Open) -> None:
    sale = server.create("polled", capacity=5)
    page = await open_page("about:blank")
    await page.route(re.compile("/stream$"), lambda route: route.fulfill(status=404, body='{"code":"unknown_route"}'))
    await page.goto(f"{server.address}/#token={TOKEN}&sale={sale}")
    await expect(page.locator("#link-state")).to_have_text("Looks every 2 s")
    server.reserve(sale)
    await expect(total(page, "reserved")).to_have_text("1")
    await expect(page.locator("#rates")).to_contain_text("The live stream cannot be had here")


async def test_both_pages_outlive_a_server_that_is_killed(start_server: Any, open_page: Open) -> None:
    server = start_server("--workers", "2")
    sale = server.create("outlived", capacity=20)
    page = await look_at(lambda path: open_page(server.address + path), sale)
    shop = await open_page(f"{server.address}/shop/{sale}")
    await shop.get_by_role("button", name="Reserve 1").click()
    await expect(shop.locator(".ticket[data-status=reserved]")).to_be_visible()
    await expect(page.locator("#feed tr")).to_have_count(1)
    server.kill()
    await expect(page.locator("#link-state")).to_have_text("Connecting again")
    await expect(shop.locator("#link-state")).to_have_text("Connecting again")
    # A payment that nobody answers, and that is asked for until somebody does.
    await shop.get_by_role("button", name="Pay for").click()
    await expect(shop.locator(".said-here")).to_contain_text("The connection was lost.")
    await page.route(re.compile("/stream$"), lambda route: route.abort())
    server.start()
    await expect(shop.locator(".ticket[data-status=purchased]")).to_be_visible()
    await expect(shop.locator("#link-state")).to_have_text("Live")
    server.pay(server.reserve(sale))
    await expect(page.locator("#link-state")).to_have_text("Looks every 2 s")
    await page.unroute_all()
    await expect(page.locator("#link-state")).to_have_text("Live")
    # What happened before, and while there was no stream: each once, and in order.
    await expect(page.locator("#feed tr")).to_have_count(4)
    assert await page.locator("#feed .kind").all_inner_texts() == ["purchased", "reserved", "purchased", "reserved"]
    await expect(total(page, "purchased")).to_have_text("2")


async def test_the_desk_fits_a_narrow_window(server: Any, open_page: Open) -> None:
    sale = server.create("narrow", name="Sommernachtsball im Kurhaus " + "lang" * 20, capacity=1_000_000_000)
    page = await look_at(open_page, sale, viewport={"width": 320, "height": 640})
    server.reserve(sale)
    await expect(page.locator("#feed tr")).to_have_count(1)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320
    await page.get_by_role("button", name="New sale").click()
    await page.get_by_role("button", name="Add another kind").click()
    assert await page.evaluate("document.querySelector('dialog[open]').scrollWidth <= innerWidth")
