"""Reserving: lines, limits, windows, capacities, and refusals that say why."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from holdfast.engine import (
    AllHeld,
    CapacityInUse,
    Closed,
    Engine,
    HoldfastError,
    IdempotencyKeyReused,
    InvalidRequest,
    ItemSpec,
    LimitReached,
    Line,
    NotYetOpen,
    Sale,
    SaleExists,
    SoldOut,
    UnknownSale,
)
from holdfast.engine import limits as engine_limits
from holdfast.engine.keys import slot_keys

TWO = [ItemSpec("vip", 2, "Very", 1), ItemSpec("floor", 5)]


def counters(sale: Sale) -> dict[str, tuple[int, int, int]]:
    return {item.sku: (item.available, item.reserved, item.purchased) for item in sale.items}


async def everything_in_redis(engine: Engine) -> dict[str, Any]:
    """Every value of every key but the leases, to see that nothing was written."""
    names = ("sale", "tickets", "buyers", "deadlines", "ledger")
    return {name: await engine._servers.call("gig", "DUMP", getattr(slot_keys("gig"), name)) for name in names}


async def test_several_items_are_all_or_nothing(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", items=TWO)
    await engine.reserve("gig", buyer="ann", lines={"vip": 1, "floor": 4})
    with pytest.raises(AllHeld) as refused:
        await engine.reserve("gig", buyer="bob", lines={"vip": 1, "floor": 2})
    assert refused.value.sku == "floor"
    assert counters(await engine.sale("gig")) == {"vip": (1, 1, 0), "floor": (1, 4, 0)}


async def test_the_same_sku_on_two_lines_is_added_up(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", items=TWO)
    with pytest.raises(SoldOut):
        await engine.reserve("gig", buyer="ann", lines=[Line("floor", 3), Line("floor", 3)])
    ticket = await engine.reserve("gig", buyer="ann", lines=[Line("floor", 2), Line("vip", 1), Line("floor", 2)])
    assert ticket.lines == (Line("vip", 1), Line("floor", 4))
    assert ticket.quantity == 5
    assert counters(await engine.sale("gig"))["floor"] == (1, 4, 0)


async def test_the_last_unit_is_sold_and_not_one_more(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=3)
    await engine.reserve("gig", buyer="ann", quantity=3)
    with pytest.raises(AllHeld):
        await engine.reserve("gig", buyer="bob", quantity=1)


async def test_limits_count_held_and_bought_units(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", items=TWO, max_per_buyer=4)
    held = await engine.reserve("gig", buyer="ann", lines={"floor": 2})
    bought = await engine.reserve("gig", buyer="ann", lines={"floor": 1})
    await engine.confirm(bought.id, buyer="ann")
    with pytest.raises(LimitReached) as refused:
        await engine.reserve("gig", buyer="ann", lines={"floor": 2})
    assert (refused.value.remaining, refused.value.sku) == (1, None)
    await engine.cancel(held.id, buyer="ann")
    await engine.reserve("gig", buyer="ann", lines={"floor": 2, "vip": 1})
    with pytest.raises(LimitReached):
        await engine.reserve("gig", buyer="ann", lines={"vip": 1})
    with pytest.raises(LimitReached) as refused:
        await engine.reserve("gig", buyer="bob", lines={"vip": 2})
    assert (refused.value.remaining, refused.value.sku) == (1, "vip")


async def test_the_limit_holds_when_everything_comes_at_once(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=1000, max_per_buyer=4)
    answers = await asyncio.gather(
        *(engine.reserve("gig", buyer="ann", quantity=1) for _ in range(300)), return_exceptions=True
    )
    assert sum(not isinstance(answer, HoldfastError) for answer in answers) == 4
    assert {type(answer) for answer in answers if isinstance(answer, Exception)} == {LimitReached}


async def test_a_refusal_says_why_and_when(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=4, hold_ms=50_000)
    first = await engine.reserve("gig", buyer="ann", quantity=1)
    await engine.amend_sale("gig", {"hold_ms": 90_000})
    second = await engine.reserve("gig", buyer="bob", quantity=2)
    with pytest.raises(AllHeld) as held:
        await engine.reserve("gig", buyer="cyd", quantity=2)
    assert held.value.available == 1
    assert 40_000 < held.value.retry_after_ms <= 50_000
    # Once the first is paid, the next unit can come back with the second.
    await engine.confirm(first.id, buyer="ann")
    with pytest.raises(AllHeld) as held:
        await engine.reserve("gig", buyer="cyd", quantity=2)
    assert 80_000 < held.value.retry_after_ms <= 90_000
    with pytest.raises(SoldOut) as gone:
        await engine.reserve("gig", buyer="cyd", quantity=4)
    assert (gone.value.sku, gone.value.available) == ("general", 1)
    await engine.confirm(second.id, buyer="bob")
    with pytest.raises(SoldOut):
        await engine.reserve("gig", buyer="cyd", quantity=2)


async def test_the_selling_window(engine: Engine) -> None:
    now = int(time.time() * 1000)
    await engine.create_sale("gig", name="Gig", capacity=4, opens_at=now + 40_000, closes_at=now + 80_000)
    with pytest.raises(NotYetOpen) as refused:
        await engine.reserve("gig", buyer="ann", quantity=1)
    assert refused.value.opens_at == now + 40_000
    assert 30_000 < refused.value.retry_after_ms <= 40_000
    await engine.amend_sale("gig", {"opens_at": None})
    ticket = await engine.reserve("gig", buyer="ann", quantity=1, key="k")
    await engine.amend_sale("gig", {"closes_at": now})
    with pytest.raises(Closed):
        await engine.reserve("gig", buyer="ann", quantity=1)
    # What is held may still be paid, and a repeat is still answered.
    assert (await engine.reserve("gig", buyer="ann", quantity=1, key="k")).replayed
    await engine.confirm(ticket.id, buyer="ann")


async def test_capacity_raised_and_lowered_while_selling(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", items=TWO)
    paid = await engine.reserve("gig", buyer="ann", lines={"floor": 2})
    await engine.confirm(paid.id, buyer="ann")
    await engine.reserve("gig", buyer="bob", lines={"floor": 1, "vip": 1})
    with pytest.raises(CapacityInUse) as refused:
        await engine.amend_sale("gig", {"items": [{"sku": "vip", "capacity": 2}, {"sku": "floor", "capacity": 2}]})
    assert (refused.value.sku, refused.value.in_use) == ("floor", 3)
    assert counters(await engine.sale("gig")) == {"vip": (1, 1, 0), "floor": (2, 1, 2)}
    lowered = await engine.amend_sale("gig", {"items": [{"sku": "floor", "capacity": 3}]})
    assert counters(lowered) == {"vip": (1, 1, 0), "floor": (0, 1, 2)}
    raised = await engine.amend_sale(
        "gig", {"name": "Gig 2", "items": [{"sku": "floor", "capacity": 9}, {"sku": "side", "capacity": 7}]}
    )
    assert counters(raised) == {"vip": (1, 1, 0), "floor": (6, 1, 2), "side": (7, 0, 0)}
    assert raised.name == "Gig 2"
    ticket = await engine.reserve("gig", buyer="cyd", lines={"side": 7})
    assert ticket.lines == (Line("side", 7),)
    assert await engine.amend_sale("gig", {}) == await engine.sale("gig")


async def test_amendments_at_once_are_all_applied(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", items=[ItemSpec(f"i{at}", 1) for at in range(8)])
    await asyncio.gather(
        *(engine.amend_sale("gig", {"items": [{"sku": f"i{at}", "capacity": 10 + at}]}) for at in range(8))
    )
    assert [item.capacity for item in (await engine.sale("gig")).items] == [10 + at for at in range(8)]


async def test_creating_again(engine: Engine) -> None:
    first = await engine.create_sale("gig", name="Gig", capacity=5)
    again = await engine.create_sale("gig", name="Gig", capacity=5)
    assert (first.created, again.created) == (True, False)
    await engine.amend_sale("gig", {"capacity": 6})
    assert (await engine.create_sale("gig", name="Gig", capacity=5)).items[0].capacity == 6
    with pytest.raises(SaleExists):
        await engine.create_sale("gig", name="Gig", capacity=7)
    both = await asyncio.gather(*(engine.create_sale("late", name="Late", capacity=1) for _ in range(10)))
    assert {sale.id for sale in both} == {"late"}
    made = await engine.create_sale(name="Nameless", capacity=1)
    assert (await engine.sale(made.id)).name == "Nameless"


async def test_sales_are_listed_in_pages(engine: Engine) -> None:
    for id in ("c", "a", "b", "e", "d"):
        await engine.create_sale(id, name=id, capacity=1)
    first = await engine.sales(limit=3)
    second = await engine.sales(limit=3, cursor=first.next)
    assert [sale.id for sale in (*first.items, *second.items)] == ["a", "b", "c", "d", "e"]
    assert second.next is None
    with pytest.raises(InvalidRequest):
        await engine.sales(cursor="nonsense")


async def test_a_buyers_tickets_are_listed_in_pages_across_redis_and_store(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=2000)
    for _ in range(3):
        made = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(200)]
        await engine.snapshot()
    await engine.reserve("gig", buyer="bob", quantity=1)
    found: list[str] = []
    cursor = None
    while True:
        page = await engine.tickets("gig", buyer="ann", limit=70, cursor=cursor)
        found += [ticket.id for ticket in page.items]
        cursor = page.next
        if cursor is None:
            break
    # Redis names a buyer's newest 512; the older ones come from the store.
    assert len(found) == len(set(found)) == 600
    assert found[-1] == made[-1].id or made[-1].id in found
    assert len((await engine.tickets("gig", limit=500)).items) == 500


async def test_a_key_names_one_ticket_of_one_buyer(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", items=TWO)
    first = await engine.reserve("gig", buyer="ann", lines={"vip": 1, "floor": 1}, key="k")
    again = await engine.reserve("gig", buyer="ann", lines=[Line("floor", 1), Line("vip", 1)], key="k")
    assert (again.id, again.replayed) == (first.id, True)
    assert engine.ticket_id("gig", buyer="ann", key="k") == first.id
    with pytest.raises(IdempotencyKeyReused):
        await engine.reserve("gig", buyer="ann", lines={"floor": 1}, key="k")
    other = await engine.reserve("gig", buyer="bob", lines={"floor": 1}, key="k")
    assert other.id != first.id


BAD_LINES: list[tuple[dict[str, Any], str]] = [
    ({"quantity": 0}, "/quantity"),
    ({"quantity": -1}, "/quantity"),
    ({"quantity": 1.5}, "/quantity"),
    ({"quantity": 1.0}, "/quantity"),
    ({"quantity": True}, "/quantity"),
    ({"quantity": "2"}, "/quantity"),
    ({"quantity": 10**30}, "/quantity"),
    ({"quantity": 2**53}, "/quantity"),
    ({}, "/quantity"),
    ({"quantity": 1, "lines": {"general": 1}}, "/quantity"),
    ({"lines": []}, "/lines"),
    ({"lines": {"nothing": 1}}, "/lines/0/sku"),
    ({"lines": [Line("general", 1), Line("Général", 1)]}, "/lines/1/sku"),
    ({"lines": [Line("general", 1), Line("general", -1)]}, "/lines/1/quantity"),
    ({"lines": [Line("general", 1)] * 51}, "/lines"),
    ({"lines": [Line("general", engine_limits.QUANTITY_MAX)] * 2}, "/lines/1/quantity"),
]


@pytest.mark.parametrize(("request_", "pointer"), BAD_LINES)
async def test_impossible_quantities_are_refused_before_anything_is_written(
    engine: Engine, request_: dict[str, Any], pointer: str
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=5)
    before = await everything_in_redis(engine)
    with pytest.raises(InvalidRequest) as refused:
        await engine.reserve("gig", buyer="ann", **request_)
    assert refused.value.pointer == pointer
    assert await everything_in_redis(engine) == before


BAD_SALES: list[tuple[dict[str, Any], str]] = [
    ({"name": "", "capacity": 1}, "/name"),
    ({"name": "x" * 201, "capacity": 1}, "/name"),
    ({"name": "a\nb", "capacity": 1}, "/name"),
    ({"name": "x"}, "/capacity"),
    ({"name": "x", "capacity": 1, "items": [ItemSpec("a", 1)]}, "/capacity"),
    ({"name": "x", "capacity": -1}, "/capacity"),
    ({"name": "x", "capacity": 10**10}, "/capacity"),
    ({"name": "x", "capacity": 1.5}, "/capacity"),
    ({"name": "x", "items": []}, "/items"),
    ({"name": "x", "items": [ItemSpec("a", 1), ItemSpec("a", 1)]}, "/items/1/sku"),
    ({"name": "x", "items": [ItemSpec("A", 1)]}, "/items/0/sku"),
    ({"name": "x", "items": [ItemSpec("a", 1, max_per_buyer=0)]}, "/items/0/max_per_buyer"),
    ({"name": "x", "items": [ItemSpec(f"i{at}", 1) for at in range(101)]}, "/items"),
    ({"name": "x", "capacity": 1, "hold_ms": 0}, "/hold_ms"),
    ({"name": "x", "capacity": 1, "hold_ms": 10**12}, "/hold_ms"),
    ({"name": "x", "capacity": 1, "max_per_buyer": 0}, "/max_per_buyer"),
    ({"name": "x", "capacity": 1, "opens_at": 5, "closes_at": 5}, "/closes_at"),
    ({"name": "x", "capacity": 1, "opens_at": -5}, "/opens_at"),
    ({"sale": "No", "name": "x", "capacity": 1}, "/id"),
    ({"sale": "x" * 65, "name": "x", "capacity": 1}, "/id"),
    ({"sale": "a\n", "name": "x", "capacity": 1}, "/id"),
]


@pytest.mark.parametrize(("request_", "pointer"), BAD_SALES)
async def test_impossible_sales_are_refused(engine: Engine, request_: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await engine.create_sale(**({"sale": "gig"} | request_))
    assert refused.value.pointer == pointer
    assert (await engine.sales()).items == ()


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"capacity": None}, "/capacity"),
        ({"nonsense": 1}, "/nonsense"),
        ({"items": [{"sku": "new"}]}, "/items/0/capacity"),
        ({"items": [{"capacity": 3}]}, "/items/0/sku"),
        ({"items": [{"sku": "general", "colour": 1}]}, "/items/0/colour"),
        ({"items": {"sku": "general"}}, "/items"),
        ({"hold_ms": None}, "/hold_ms"),
        ({"name": None}, "/name"),
        ({"capacity": 3, "items": []}, "/capacity"),
    ],
)
async def test_impossible_amendments_are_refused(engine: Engine, changes: dict[str, Any], pointer: str) -> None:
    await engine.create_sale("gig", name="Gig", capacity=5)
    before = await everything_in_redis(engine)
    with pytest.raises(InvalidRequest) as refused:
        await engine.amend_sale("gig", changes)
    assert refused.value.pointer == pointer
    assert await everything_in_redis(engine) == before


async def test_an_unknown_sale(engine: Engine) -> None:
    for call in (
        engine.sale("nope"),
        engine.reserve("nope", buyer="ann", quantity=1),
        engine.amend_sale("nope", {}),
        engine.tickets("nope"),
    ):
        with pytest.raises(UnknownSale):
            await call


async def test_only_a_keyed_hash_of_the_buyer_is_kept(engine: Engine, tmp_path: Any) -> None:
    await engine.create_sale("gig", name="Gig", capacity=5)
    ticket = await engine.reserve("gig", buyer="ann-the-buyer", quantity=1, key="ann-the-key")
    await engine.confirm(ticket.id, buyer="ann-the-buyer", key="ann-the-key")
    await engine.snapshot()
    values = await everything_in_redis(engine)
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))
    for everything in (b"".join(value or b"" for value in values.values()), stored):
        assert b"ann-the" not in everything
        assert engine.buyer_hash("ann-the-buyer").encode() in everything or everything is not stored
    assert "ann-the-buyer" not in repr(ticket)
    assert ticket.buyer not in repr(ticket)
