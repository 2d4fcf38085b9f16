"""The buyers' page in a real browser, against a real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

Open = Callable[..., Any]

TOKEN = "operator-token-for-tests"


def tickets(page: Page, status: str) -> Any:
    return page.locator(f".ticket[data-status={status}]")


async def reserve(page: Page) -> None:
    await page.get_by_role("button", name=re.compile("^Reserve")).click()


async def buy(page: Page, more: int = 0) -> None:
    """Reserves one and `more`, and pays."""
    for _ in range(more):
        await page.get_by_role("button", name=re.compile("^More")).click()
    await reserve(page)
    await page.get_by_role("button", name=re.compile("^Pay for")).click()
    await expect(tickets(page, "purchased")).to_be_visible()


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_a_buyer_reserves_pays_and_finds_the_ticket_again(server: Any, open_page: Open) -> None:
    sale = server.create("concert", name="Das große Konzert", capacity=10, max_per_buyer=4)
    page = await open_page(f"/shop/{sale}")
    await expect(page.get_by_role("heading", name="Das große Konzert", level=1)).to_be_visible()
    await expect(page.locator("#link-state")).to_have_text("Live")
    await expect(page.locator(".left")).to_have_text("10 left")
    await page.get_by_role("button", name="More: Das große Konzert").click()
    await reserve(page)
    held = tickets(page, "reserved")
    await expect(held).to_be_focused()
    await expect(held.locator(".time")).to_have_text(re.compile(r"1[45]:\d\d"))
    await expect(held.get_by_role("heading")).to_have_text("2 × Das große Konzert")
    await expect(page.locator(".left")).to_have_text("8 left")
    (ticket,) = server.tickets(sale)
    assert (ticket["status"], ticket["quantity"]) == ("reserved", 2)

    await page.reload()
    await held.get_by_role("button", name="Pay for 2").click()
    paid = tickets(page, "purchased")
    await expect(paid).to_contain_text("Paid. It is yours.")
    await expect(paid).to_be_focused()
    assert server.tickets(sale)[0]["status"] == "purchased"
    await expect(page.locator("#stock")).to_have_text("You have 2 of the 4 that one buyer may have.")

    again = await open_page(f"/shop/{sale}", context=page.context)
    await expect(tickets(again, "purchased")).to_contain_text(ticket["id"])
    stranger = await open_page(f"/shop/{sale}")
    await expect(stranger.locator("#stock")).to_be_attached()
    await expect(stranger.locator("#mine")).to_be_hidden()


async def test_several_items_in_one_ticket_and_given_back(server: Any, open_page: Open) -> None:
    items = [{"sku": "seat", "name": "Seat", "capacity": 5}, {"sku": "box", "name": "Box", "capacity": 2}]
    sale = server.create("theatre", items=items)
    page = await open_page(f"/shop/{sale}")
    button = page.get_by_role("button", name=re.compile("^Reserve"))
    await expect(button).to_be_disabled()
    await page.get_by_label("Seat", exact=True).fill("3")
    await page.get_by_role("button", name="More: Box").click()
    await expect(button).to_have_text("Reserve 4")
    await expect(page.locator("#stock")).to_have_text("All of it, or nothing.")
    await button.click()
    held = tickets(page, "reserved")
    await expect(held.get_by_role("heading")).to_have_text("3 × Seat, 1 × Box")
    await expect(page.get_by_label("Seat", exact=True)).to_have_value("0")
    await held.get_by_role("button", name="Give back").click()
    await expect(tickets(page, "cancelled")).to_contain_text("Given back")
    assert server.sale(sale)["available"] == 7
    await expect(page.locator(".left").first).to_have_text("5 left")


async def test_a_declined_payment_can_be_tried_again(server: Any, open_page: Open) -> None:
    page = await open_page(f"/shop/{server.create('declined', capacity=1)}")
    await reserve(page)
    held = tickets(page, "reserved")
    await held.get_by_role("button", name="Rehearse a declined card").click()
    await expect(held.get_by_role("status")).to_contain_text("The payment was declined.")
    await held.get_by_role("button", name="Pay for").click()
    await expect(tickets(page, "purchased")).to_be_visible()


# Nothing is bought twice ----------------------------------------------------------------------------------------------


class Posts:
    """What the page has POSTed: the idempotency key of each, and what becomes of the answers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.keys: list[str] = []
        self.fates: list[Callable[[Route], Any]] = []

    async def attach(self, page: Page) -> Posts:
        await page.route(re.compile(self.path), self._take)
        return self

    async def _take(self, route: Route) -> None:
        if route.request.method != "POST":
            await route.continue_()
            return
        self.keys.append(route.request.headers["idempotency-key"])
        fate = self.fates.pop(0) if self.fates else None
        await (fate(route) if fate else route.continue_())


async def answer_lost(route: Route) -> None:
    """The server does it, and the browser never hears of it."""
    await route.fetch()
    await route.abort("connectionreset")


def refused_with(code: str) -> Callable[[Route], Any]:
    problem = json.dumps({"code": code, "detail": "for now", "retry_after_ms": 50})

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, content_type="application/problem+json", body=problem)

    return refuse


async def test_a_double_click_buys_once(server: Any, open_page: Open) -> None:
    sale = server.create("double", capacity=10)
    page = await open_page(f"/shop/{sale}")
    posts = await Posts("/tickets$").attach(page)
    release = asyncio.Event()

    async def held_up(route: Route) -> None:
        await release.wait()
        await route.continue_()

    posts.fates = [held_up]
    button = page.get_by_role("button", name=re.compile("^Reserve"))
    await button.dblclick()
    await expect(page.locator("#said")).to_have_text("Asking…")
    await page.locator("#reserve").click(force=True)
    await page.keyboard.press("Enter")
    release.set()
    await expect(tickets(page, "reserved")).to_be_visible()
    assert (len(posts.keys), server.sale(sale)["reserved"]) == (1, 1)


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(server: Any, open_page: Open) -> None:
    sale = server.create("lost", capacity=10)
    page = await open_page(f"/shop/{sale}")
    posts = await Posts("/tickets$").attach(page)
    posts.fates = [answer_lost, refused_with("outcome_unknown"), refused_with("overloaded"), refused_with("not_ready")]
    await reserve(page)
    await expect(tickets(page, "reserved")).to_be_visible()
    assert (len(posts.keys), len(set(posts.keys))) == (5, 1)
    assert server.sale(sale)["reserved"] == 1

    payments = await Posts("/payment$").attach(page)
    payments.fates = [answer_lost, refused_with("outcome_unknown")]
    await page.get_by_role("button", name="Pay for").click()
    await expect(tickets(page, "purchased")).to_contain_text("Paid. It is yours.")
    assert (len(payments.keys), len(set(payments.keys))) == (3, 1)

    # Another purchase is another operation.
    await reserve(page)
    await expect(tickets(page, "reserved")).to_be_visible()
    assert len(set(posts.keys)) == 2


@pytest.mark.parametrize("carried_out", [True, False], ids=["carried out", "not sent"])
async def test_a_reload_in_the_middle_goes_on_with_the_same_key(
    server: Any, open_page: Open, carried_out: bool
) -> None:
    sale = server.create(f"reload-{carried_out}".lower(), capacity=10)
    page = await open_page(f"/shop/{sale}")
    posts = await Posts("/tickets$").attach(page)
    under_way = asyncio.Event()

    async def never_answered(route: Route) -> None:
        if carried_out:
            await route.fetch()
        under_way.set()

    posts.fates = [never_answered]
    await reserve(page)
    await under_way.wait()
    await page.reload()
    await expect(tickets(page, "reserved")).to_have_count(1)
    await expect(page.locator("#said")).to_be_empty()
    assert (len(posts.keys), len(set(posts.keys))) == (2, 1)
    assert server.sale(sale)["reserved"] == 1


async def test_a_buyer_may_stop_asking(server: Any, open_page: Open) -> None:
    sale = server.create("stopped", capacity=1)
    page = await open_page(f"/shop/{sale}")
    posts = await Posts("/tickets$").attach(page)
    posts.fates = [refused_with("overloaded")] * 50
    await reserve(page)
    await expect(page.locator("#said")).to_contain_text("Very many people are asking.")
    await page.get_by_role("button", name="Stop asking").click()
    await expect(page.locator("#said")).to_contain_text("Stopped asking.")
    await expect(page.get_by_role("button", name="Reserve 1")).to_be_enabled()
    posts.fates = []
    await reserve(page)
    await expect(tickets(page, "reserved")).to_be_visible()


async def test_the_network_may_go_and_come(server: Any, open_page: Open) -> None:
    sale = server.create("offline", capacity=5)
    page = await open_page(f"/shop/{sale}")
    await expect(page.locator("#link-state")).to_have_text("Live")
    await page.context.set_offline(True)
    await reserve(page)
    await expect(page.locator("#said")).to_contain_text("The connection was lost.")
    await page.context.set_offline(False)
    await expect(tickets(page, "reserved")).to_be_visible()
    assert server.sale(sale)["reserved"] == 1


# What a buyer is told -------------------------------------------------------------------------------------------------


async def test_a_hold_that_runs_out(server: Any, open_page: Open) -> None:
    sale = server.create("brief", capacity=1, hold_ms=1500)
    page = await open_page(f"/shop/{sale}")
    await reserve(page)
    held = tickets(page, "reserved")
    await expect(held.locator(".time")).to_have_text(re.compile("0:0[12]"))
    await expect(held).to_have_attribute("data-hurry", "yes")
    over = tickets(page, "expired")
    await expect(over).to_contain_text("not charged")
    await expect(over.get_by_role("button")).to_have_count(0)
    await expect(page.locator("#announce")).to_contain_text("ran out")
    await expect(page.locator(".left")).to_have_text("1 left")
    await page.reload()
    await page.get_by_text("1 earlier ticket").click()
    await expect(over).to_be_visible()


async def test_the_countdown_does_not_believe_the_clock_of_the_reader(server: Any, open_page: Open) -> None:
    sale = server.create("clocks", capacity=1, hold_ms=60_000)
    page = await open_page(f"/shop/{sale}")
    await page.clock.install(time=datetime.now() + timedelta(days=3))
    await page.reload()
    await reserve(page)
    await expect(tickets(page, "reserved").locator(".time")).to_have_text(re.compile(r"1:00|0:5\d"))


async def test_all_held_then_back_then_sold_out(server: Any, open_page: Open) -> None:
    sale = server.create("last-one", name="The Last One", capacity=1)
    ann, bob = await open_page(f"/shop/{sale}"), await open_page(f"/shop/{sale}")
    await reserve(ann)
    await expect(tickets(ann, "reserved")).to_be_visible()
    await expect(bob.locator(".left")).to_have_text("all held (1)")
    await expect(bob.locator("#stock")).to_have_text("Nothing free: 1 unit is held by others and may come back.")
    await reserve(bob)
    await expect(bob.locator("#said")).to_contain_text("All held by others")
    await expect(bob.locator("#said-after")).to_have_text(
        re.compile(r"The next hold ends in 1[45]:\d\d at the latest\.")
    )
    await ann.get_by_role("button", name="Give back").click()
    await expect(bob.locator("#said")).to_contain_text("1 is free again.")
    await buy(bob)
    await expect(ann.get_by_role("button", name="Sold out")).to_be_disabled()
    await expect(ann.locator(".left")).to_have_text("sold out")
    await expect(ann.locator("#stock")).to_have_text("Sold out.")


async def test_waiting_ends_when_what_was_held_is_paid(server: Any, open_page: Open) -> None:
    sale = server.create("paid-away", name="Paid Away", capacity=1)
    held = server.reserve(sale)
    page = await open_page(f"/shop/{sale}")
    await reserve(page)
    await expect(page.locator("#said-after")).to_contain_text("The next hold ends in")
    server.pay(held)
    await expect(page.locator("#said")).to_have_text("Sold outWhat others held has been paid.")
    await expect(page.locator("#said-after")).to_have_text("")
    # The pointer is still where it was pressed: the button that is off looks off.
    button = page.get_by_role("button", name="Sold out")
    assert await button.evaluate("(element) => element.matches(':hover')")
    await expect(button).to_have_css("background-color", "rgb(221, 231, 226)")


async def test_waiting_ends_when_the_sale_closes(server: Any, open_page: Open) -> None:
    sale = server.create("shut", name="Shut", capacity=1)
    server.reserve(sale)
    page = await open_page(f"/shop/{sale}")
    await reserve(page)
    await expect(page.locator("#said-after")).to_contain_text("The next hold ends in")
    server.operate("PATCH", f"/sales/{sale}", {"closes_at": "2020-01-01T00:00:00Z"})
    await expect(page.get_by_role("button", name="Closed")).to_be_visible()
    await expect(page.locator("#said")).to_have_text("")
    await expect(page.locator("#said-after")).to_have_text("")


async def test_too_few_are_left(server: Any, open_page: Open) -> None:
    sale = server.create("few", name="Few", capacity=5)
    page = await open_page(f"/shop/{sale}")
    await page.get_by_label("Few", exact=True).fill("4")
    server.pay(server.reserve(sale, quantity=3))
    await expect(page.locator(".left")).to_have_text("2 left")
    await reserve(page)
    await expect(page.locator("#said")).to_contain_text("Only 2 left")
    await expect(page.get_by_label("Few", exact=True)).to_have_value("2")
    await reserve(page)
    await expect(tickets(page, "reserved")).to_contain_text("2 × Few")


async def test_a_limit(server: Any, open_page: Open) -> None:
    sale = server.create("limited", capacity=10, max_per_buyer=3)
    page = await open_page(f"/shop/{sale}")
    await page.get_by_label("Limited", exact=True).fill("2")
    await reserve(page)
    await expect(tickets(page, "reserved")).to_be_visible()
    await page.get_by_label("Limited", exact=True).fill("2")
    await reserve(page)
    await expect(page.locator("#said")).to_contain_text("You may take 1 more of Limited.")
    await page.get_by_label("Limited", exact=True).fill("1")
    await reserve(page)
    await expect(tickets(page, "reserved")).to_have_count(2)
    await reserve(page)
    await expect(page.locator("#said")).to_contain_text("You have reached the limit")


async def test_a_sale_opens_by_itself_and_closes(server: Any, open_page: Open) -> None:
    sale = server.create("window", capacity=3, opens_at=in_seconds(3000))
    page = await open_page(f"/shop/{sale}")
    await expect(page.get_by_role("button", name=re.compile(r"^Opens in (50:00|49:\d\d)"))).to_be_disabled()
    server.operate("PATCH", f"/sales/{sale}", {"opens_at": in_seconds(2)})
    await page.get_by_role("button", name="Reserve 1").click()
    await expect(tickets(page, "reserved")).to_be_visible()
    server.operate("PATCH", f"/sales/{sale}", {"closes_at": in_seconds(0)})
    await expect(page.get_by_role("button", name="Closed")).to_be_disabled()
    await page.get_by_role("button", name="Pay for").click()
    await expect(tickets(page, "purchased")).to_be_visible()


async def test_who_clicks_a_moment_too_early_waits_for_the_opening(server: Any, open_page: Open) -> None:
    sale = server.create("early-click", capacity=3, opens_at=in_seconds(3.5))
    page = await open_page("/shop/nothing-here")

    async def open_already(route: Route) -> None:
        # The page takes the sale for open: its clock is ahead.
        answer = await route.fetch()
        await route.fulfill(response=answer, body=json.dumps(await answer.json() | {"opens_at": None}))

    await page.route(re.compile("/stream$"), lambda route: route.abort())
    await page.route(re.compile(f"/sales/{sale}$"), open_already)
    await page.goto(f"{server.address}/shop/{sale}")
    await reserve(page)
    await expect(page.locator("#said")).to_contain_text(re.compile("A moment too early|^$"))
    await expect(tickets(page, "reserved")).to_be_visible()


async def test_refusals_that_come_before_the_page_knows(server: Any, open_page: Open) -> None:
    sale = server.create("late-news", capacity=3)
    page = await open_page(f"/shop/{sale}")
    await expect(page.locator("#link-state")).to_have_text("Live")
    opens = in_seconds(3600)
    for problem, words in (
        ({"code": "closed"}, "The sale is closed"),
        ({"code": "not_yet_open", "opens_at": opens, "retry_after_ms": 9_000_000}, "Not open yet"),
        ({"code": "sold_out", "sku": "general", "available": 0}, "Sold out"),
        ({"code": "invalid_request", "errors": [{"pointer": "/quantity", "detail": "is odd"}]}, "quantity: is odd"),
    ):
        posts = Posts("/tickets$")

        async def refuse(route: Route, problem: Any = problem) -> None:
            await route.fulfill(status=409, content_type="application/problem+json", body=json.dumps(problem))

        posts.fates = [refuse]
        await posts.attach(page)
        await reserve(page)
        await expect(page.locator("#said")).to_contain_text(words)


async def test_an_unknown_sale(server: Any, open_page: Open) -> None:
    page = await open_page("/shop/nothing-here")
    await expect(page.get_by_role("heading", name="There is no such sale")).to_be_visible()
    await expect(page.locator("#shop")).to_be_hidden()


async def test_names_are_text(server: Any, open_page: Open) -> None:
    name = '<img src=x onerror="document.title=1"><b>Bold</b> & "quoted" 𝒰nicode ' + "lang" * 30
    items = [
        {"sku": "a", "name": name, "capacity": 1_000_000_000},
        {"sku": "b" * 64, "name": "<script>", "capacity": 0},
    ]
    sale = server.create("markup", name=name, items=items)
    page = await open_page(f"/shop/{sale}", viewport={"width": 320, "height": 600})
    await expect(page.get_by_role("heading", level=1)).to_have_text(name)
    await expect(page.locator(".item-name").last).to_have_text("<script>")
    await expect(page.locator(".left").first).to_have_text("1,000,000,000 left")
    assert await page.locator("main img, main b, main script").count() == 0
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


async def test_where_buyers_need_tokens_the_page_says_that_it_cannot_sell(
    start_server: Any, browser: Any, open_page: Open
) -> None:
    server = start_server("--buyer-token-key", "k" * 32)
    page = await open_page(f"{server.address}/shop/{server.create('members', capacity=7)}")
    await expect(page.get_by_text("This page cannot sell here.")).to_be_visible()
    await expect(page.locator(".left")).to_have_text("7 left")
    await expect(page.locator("#reserve")).to_be_hidden()


async def test_without_a_stream_the_page_looks_by_itself(server: Any, open_page: Open) -> None:
    sale = server.create("no-stream", capacity=5)
    page = await open_page("/shop/nothing-here")
    await page.route(re.compile("/stream$"), lambda route: route.abort())
    await page.goto(f"{server.address}/shop/{sale}")
    await expect(page.locator("#link-state")).to_have_text("Looks every 2 s")
    server.reserve(sale)
    await expect(page.locator(".left")).to_have_text("4 left")
    await page.unroute_all()
    await expect(page.locator("#link-state")).to_have_text("Live")


async def test_nothing_moves_under_the_finger(server: Any, open_page: Open) -> None:
    sale = server.create("steady", capacity=50)
    page = await open_page(f"/shop/{sale}", viewport={"width": 390, "height": 800})
    await expect(page.locator("#link-state")).to_have_text("Live")
    held = server.reserve(sale, quantity=50)
    await expect(page.locator(".left")).to_have_text("all held (50)")
    server.cancel(held)
    await expect(page.locator("#said")).to_contain_text("50 are free again.")
    assert await page.evaluate("window.shifted") < 0.05
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390


async def test_by_keyboard_alone(server: Any, open_page: Open) -> None:
    sale = server.create("keys", name="Keys", capacity=10)
    page = await open_page(f"/shop/{sale}")
    await expect(page.get_by_role("button", name="Reserve 1")).to_be_enabled()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the sale")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_label("Keys", exact=True)).to_be_focused()
    await page.keyboard.press("ArrowUp")
    await page.keyboard.press("Enter")
    held = tickets(page, "reserved")
    await expect(held).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(held.get_by_role("button", name="Pay for 2 × Keys")).to_be_focused()
    await page.keyboard.press("Space")
    await expect(tickets(page, "purchased")).to_be_focused()


async def test_both_pages_behind_a_path_of_a_proxy(server: Any, open_page: Open) -> None:
    sale = server.create("proxied", capacity=1)
    page = await open_page("about:blank")
    asked: list[str] = []

    async def without_prefix(route: Route) -> None:
        asked.append(route.request.url)
        await route.fulfill(response=await route.fetch(url=route.request.url.replace("/tickets-inc/", "/")))

    # What is not under the path is another's.
    await page.route(re.compile(re.escape(server.address)), lambda route: route.abort())
    await page.route(re.compile("/tickets-inc/"), without_prefix)
    await page.route(re.compile("/stream$"), lambda route: route.abort())
    await page.goto(f"{server.address}/tickets-inc/shop/{sale}")
    await buy(page)
    await page.goto(f"{server.address}/tickets-inc/#token={TOKEN}&sale={sale}")
    await expect(page.locator("#total-purchased")).to_have_text("1")
    await page.get_by_role("link", name="Shop page").click()
    await expect(tickets(page, "purchased")).to_be_visible()
