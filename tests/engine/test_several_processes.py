"""What one process knows and another has changed: amendments, items, floors, recoveries."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import Engine, Line, NotReady, OutcomeUnknown, Status
from holdfast.engine.keys import slot_keys
from holdfast.engine.records import Entry, ItemDefinition
from holdfast.engine.scripts import Scripts
from holdfast.engine.store import Copied, Cursor

PARTS = ("sale", "tickets", "buyers", "deadlines", "ledger")


def connect(server: Any, tmp_path: Path, **options: Any) -> Engine:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    return Engine.connect(server.url, store=store, **({"snapshot_ms": None, "secret": "one for all of them"} | options))


async def keep(engine: Engine, sale: str) -> dict[str, bytes]:
    """Everything that Redis has of a sale, as an older file would."""
    keys = slot_keys(sale)
    return {name: await engine._servers.one.call("DUMP", getattr(keys, name)) for name in PARTS}


async def put_back(engine: Engine, sale: str, kept: dict[str, bytes]) -> None:
    keys = slot_keys(sale)
    for name, value in kept.items():
        await engine._servers.one.call("UNLINK", getattr(keys, name))
        if value is not None:
            await engine._servers.one.call("RESTORE", getattr(keys, name), "0", value)


async def test_an_item_that_another_process_added(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as one, connect(redis_server, tmp_path) as two:
        await one.create_sale("gig", name="Gig", capacity=5)
        await two.sale("gig")
        await one.amend_sale("gig", {"items": [{"sku": "vip", "capacity": 5}]})
        tickets = [await one.reserve("gig", buyer="ann", lines={"vip": 1}, key=f"k{at}") for at in range(4)]
        # The other one met the sale before it had this item; it learns of it by the first ticket that names it.
        assert (await two.ticket(tickets[0].id)).lines == (Line("vip", 1),)
    async with connect(redis_server, tmp_path) as one, connect(redis_server, tmp_path) as two:
        await one.create_sale("fig", name="Fig", capacity=5)
        for call in ("confirm", "cancel", "reserve", "tickets", "lines"):
            fresh = connect(redis_server, tmp_path)
            async with fresh:
                await fresh.sale("fig")
                await one.amend_sale("fig", {"items": [{"sku": call, "capacity": 5}]})
                ticket = await one.reserve("fig", buyer="ann", lines={call: 1}, key=call)
                match call:
                    case "confirm":
                        shown = await fresh.confirm(ticket.id, buyer="ann")
                    case "cancel":
                        shown = await fresh.cancel(ticket.id, buyer="ann")
                    case "tickets":
                        shown = (await fresh.tickets("fig", buyer="ann")).items[-1]
                    case _:
                        shown = await fresh.reserve("fig", buyer="ann", lines={call: 1}, key=call)
                assert Line(call, 1) in shown.lines


async def test_an_acknowledged_amendment_that_redis_loses_is_noticed(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        await engine.snapshot()
        kept = await keep(engine, "gig")
        await engine.amend_sale("gig", {"capacity": 10})
        await put_back(engine, "gig", kept)
    async with connect(redis_server, tmp_path) as engine:
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="ann", quantity=50)
        assert not (await engine.readiness()).ready
        assert (await engine.recover()).clean
        assert (await engine.sale("gig")).items[0].capacity == 10


async def test_a_process_with_an_old_floor_learns_the_new_one_when_redis_is_replaced(
    private_redis: Any, tmp_path: Path
) -> None:
    """It took no part in the snapshots; only the other run id tells it to ask the store again."""
    older = tmp_path / "older"
    async with (
        connect(private_redis, tmp_path) as one,
        connect(private_redis, tmp_path, sweep=False, listen=False) as two,
    ):
        await one.create_sale("gig", name="Gig", capacity=5, hold_ms=600_000)
        await two.reserve("gig", buyer="ann", quantity=1)
        shutil.copytree(private_redis.directory, older)
        await one.reserve("gig", buyer="bob", quantity=4)
        await one.snapshot()
        assert (await two._slots.get("gig")).floor == Cursor(0, 0)
        private_redis.kill()
        shutil.rmtree(private_redis.directory)
        shutil.copytree(older, private_redis.directory)
        private_redis.start()
        before = two._servers.one.generation
        for _ in range(3):
            # The first may have gone out on the connection that was cut.
            with pytest.raises((NotReady, OutcomeUnknown)):
                await two.reserve("gig", buyer="zoe", quantity=4)
        assert two._servers.one.generation == before + 1
        assert (await one.recover()).clean
        (item,) = (await two.sale("gig")).items
        assert (item.available, item.reserved) == (0, 5)


async def test_two_recoveries_again_and_again_end_ready(redis_server: Any, tmp_path: Path) -> None:
    async with (
        connect(redis_server, tmp_path, snapshot_ms=5) as one,
        connect(redis_server, tmp_path, snapshot_ms=5) as two,
    ):
        await one.create_sale("gig", name="Gig", capacity=500)
        for round_ in range(15):
            ticket = await one.reserve("gig", buyer=f"b{round_}", quantity=1)
            await one.confirm(ticket.id, buyer=f"b{round_}")
            ends = await asyncio.gather(one.recover(["gig"]), two.recover(["gig"]), return_exceptions=True)
            assert {type(end) for end in ends if isinstance(end, BaseException)} <= {NotReady}
            if not (await one.readiness()).ready:
                await one.recover()
            assert (await two.readiness()).ready
            (item,) = (await two.sale("gig")).items
            assert (item.available, item.purchased) == (499 - round_, 1 + round_)


async def test_a_recovery_that_lost_its_fence_cannot_leave_the_slot_behind(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5)
        await engine.reserve("gig", buyer="ann", quantity=1)
        unfence = Scripts.unfence
        late = [True]

        async def raises_the_epoch_late(self: Scripts, *args: Any) -> None:
            """The loser's store transaction lands between the winner's and its last script."""
            if late:
                late.clear()
                sale = await engine._store.sale("gig")
                assert sale is not None
                after = sale.cursor
                line = f"s {sale.known.json()}"
                entries = [Entry(after.epoch + 1, after.sequence + 1, 1, line)]
                await engine._store.append([Copied("gig", after, entries)])
            await unfence(self, *args)

        monkeypatch.setattr(Scripts, "unfence", raises_the_epoch_late)
        assert (await engine.recover(["gig"])).clean
        assert (await engine.readiness()).ready
        assert (await engine.reserve("gig", buyer="bob", quantity=1)).quantity == 1


async def test_recovery_keeps_items_that_only_redis_knows(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5)
        await engine.snapshot()
        known = await engine._store.sale("gig")
        assert known is not None
        slot = await engine._slots.get("gig")
        vip = ItemDefinition("vip", "vip", 3, None)
        newer = replace(known.known, items=(*known.known.items, vip), version=2)
        await engine._scripts.amend(slot.keys, "0-0", 1, newer.json(), newer.rules(), newer.capacities())
        ticket = await engine.reserve("gig", buyer="ann", lines={"vip": 2})
        await engine._servers.one.call("UNLINK", slot.keys.ledger)
        report = await engine.recover(["gig"])
        assert report.clean
        assert (await engine.ticket(ticket.id)).lines == (Line("vip", 2),)
        assert [(i.sku, i.reserved) for i in (await engine.sale("gig")).items] == [("general", 0), ("vip", 2)]


async def test_a_key_whose_ticket_was_dropped_before_the_recovery_is_still_known(
    redis_server: Any, tmp_path: Path
) -> None:
    """Recovery leaves old tickets in the store; a late repeat must not make them anew."""
    async with connect(redis_server, tmp_path, retention_ms=0) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1, key="k")
        await engine.confirm(ticket.id, buyer="ann", key="p")
        await engine.snapshot()
        seconds, _ = await engine._servers.one.call("TIME")
        while (await engine._servers.one.call("TIME"))[0] == seconds:
            await asyncio.sleep(0.02)
        redis_server.empty()
        report = await engine.recover()
        assert report.slots[0].tickets == 0
        again = await engine.reserve("gig", buyer="ann", quantity=1, key="k")
        assert (again.id, again.replayed, again.status) == (ticket.id, True, Status.PURCHASED)
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (4, 0, 1)


async def test_a_listener_from_before_a_recovery_hears_what_comes_after(redis_server: Any, tmp_path: Path) -> None:
    """Redis loses what the listener had seen, and recovery counts on from before it."""
    async with connect(redis_server, tmp_path, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=50, hold_ms=30)
        await engine.snapshot()
        for at in range(20):
            ticket = await engine.reserve("gig", buyer=f"b{at}", quantity=1)
            await engine.cancel(ticket.id, buyer=f"b{at}")
        await engine._store.set_position("mail", "gig", Cursor(1, 41))
        redis_server.empty()
        await engine.recover()
        tickets = []
        for at in range(5):
            # Each swept by itself, in an entry of its own.
            tickets.append(await engine.reserve("gig", buyer=f"c{at}", quantity=1))
            while not await engine._sweeper.sweep("gig"):
                await asyncio.sleep(0.005)
        await engine.snapshot()
        for trimmed in (False, True):
            if trimmed:
                await engine._servers.one.call("XTRIM", slot_keys("gig").ledger, "MAXLEN", "1")
                await engine._store.set_position("mail", "gig", Cursor(1, 41))
            listening = engine.expirations(name="mail")
            async with asyncio.timeout(10):
                told = {(await anext(listening)).ticket for _ in range(5)}
            await listening.aclose()  # type: ignore[attr-defined]
            assert told == {ticket.id for ticket in tickets}


async def test_listening_goes_on_when_redis_comes_back(private_redis: Any, tmp_path: Path) -> None:
    async with connect(private_redis, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=50, hold_ms=300)
        listening = engine.expirations()
        waiting = asyncio.ensure_future(anext(listening))
        await asyncio.sleep(0.05)
        private_redis.kill()
        await asyncio.sleep(0.1)
        private_redis.start()
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        async with asyncio.timeout(20):
            assert (await waiting).ticket == ticket.id
        await listening.aclose()  # type: ignore[attr-defined]


async def test_a_snapshot_ends_while_selling_goes_on(redis_server: Any, tmp_path: Path) -> None:
    """It copies what was there when it began, or an operator's listing would wait for the stampede to end."""
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10**6)
        selling = True

        async def sell(at: int) -> None:
            while selling:
                await engine.reserve("gig", buyer=f"b{at}", quantity=1)

        sellers = [asyncio.create_task(sell(at)) for at in range(200)]
        while (await engine.sale("gig")).sequence < 1000:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            for _ in range(3):
                assert await engine.snapshot() > 0
            assert (await engine.tickets("gig", limit=10)).next
        selling = False
        await asyncio.gather(*sellers)


async def test_one_sale_that_is_not_ready_does_not_hide_the_others(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        for sale in ("a", "b", "c"):
            await engine.create_sale(sale, name=sale, capacity=5)
        await engine._scripts.fence(slot_keys("b"), "a token")
        listed = (await engine.sales()).items
        assert [(sale.id, sale.ready, sale.items[0].available) for sale in listed] == [
            ("a", True, 5),
            ("b", False, 0),
            ("c", True, 5),
        ]
