"""Sales in shards: one stock over several slots, and no unit doubled or lost on its way between them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import (
    AllHeld,
    CapacityInUse,
    Engine,
    HoldfastError,
    InvalidRequest,
    ItemSpec,
    LimitReached,
    NotReady,
    Order,
    Overloaded,
    Payment,
    SaleExists,
    SoldOut,
    Status,
    Ticket,
    UnknownSale,
    UnknownTicket,
    borrowing,
    checks,
    transfers,
)
from holdfast.engine.audit_shards import _disagreements
from holdfast.engine.feed import read_redis
from holdfast.engine.keys import slot_keys
from holdfast.engine.records import Definition, ItemDefinition, Transfers
from holdfast.engine.snapshot import Snapshot
from holdfast.engine.store import Copied, StoreError
from holdfast.engine.transfers import Carrier

PARTS = ("sale", "tickets", "buyers", "deadlines", "ledger")


def connect(server: Any, tmp_path: Path, **options: Any) -> Engine:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    return Engine.connect(server.url, store=store, **({"secret": "one for all of them"} | options))


def buyers_of(engine: Engine, sale: str, shard: int, count: int, name: str = "b") -> list[str]:
    """So many buyers whose shard this is."""
    family = engine._shards.known(sale)
    assert family is not None
    found: list[str] = []
    at = 0
    while len(found) < count:
        if family.of(engine.buyer_hash(f"{name}{at}")) is family.slots[shard - 1]:
            found.append(f"{name}{at}")
        at += 1
    return found


async def outcome(call: Any) -> Ticket | HoldfastError:
    try:
        ticket: Ticket = await call
        return ticket
    except HoldfastError as error:
        return error


async def quiet(engine: Engine, sale: str) -> None:
    """Returns when no transfer is under way; everything then agrees."""
    family = engine._shards.known(sale)
    assert family is not None
    async with asyncio.timeout(20):
        while (look := await family.whole()).unsettled() or not look.level:
            await asyncio.sleep(0.01)
    assert _disagreements(family, look) == []
    report = await engine.audit([sale], tickets=True)
    assert report.clean, str(report)


def adds_up(sale: Any) -> None:
    for item in sale.items:
        assert min(item.available, item.reserved, item.purchased, item.in_transit) >= 0
        assert item.available + item.reserved + item.purchased + item.in_transit == item.capacity


async def keep(engine: Engine, slot: str) -> dict[str, bytes]:
    """Everything that Redis has of a slot, as an older file would."""
    keys = slot_keys(slot)
    return {name: await engine._servers.call(slot, "DUMP", getattr(keys, name)) for name in PARTS}


async def put_back(engine: Engine, slot: str, kept: dict[str, bytes]) -> None:
    """Has Redis lose what a slot did since; whoever knew its floor reads it again, as after any restart."""
    keys = slot_keys(slot)
    for name, value in kept.items():
        await engine._servers.call(slot, "UNLINK", getattr(keys, name))
        if value is not None:
            await engine._servers.call(slot, "RESTORE", getattr(keys, name), "0", value)
    for server in engine._servers.all():
        server.generation += 1


# What callers see -----------------------------------------------------------------------------------------------------


async def test_a_sale_in_shards_is_sold_like_any_other(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        made = await engine.create_sale("gig", name="Gig", capacity=10, max_per_buyer=2, shards=3)
        assert (made.created, made.shards, made.place, made.sequence) == (True, 3, "1-1,1-1,1-1", 3)
        again = await engine.create_sale("gig", name="Gig", capacity=10, max_per_buyer=2, shards=3)
        assert (again.created, again) == (False, made)
        with pytest.raises(SaleExists):
            await engine.create_sale("gig", name="Gig", capacity=10, max_per_buyer=2, shards=4)
        tickets = [await engine.reserve("gig", buyer=f"b{at}", quantity=1, key="k") for at in range(5)]
        assert {ticket.sale for ticket in tickets} == {"gig"}
        for at, ticket in enumerate(tickets):
            assert ticket.id == engine.ticket_id("gig", buyer=f"b{at}", key="k")
            assert (await engine.reserve("gig", buyer=f"b{at}", quantity=1, key="k")).replayed
            assert (await engine.ticket(ticket.id)).id == ticket.id
            assert [each.id for each in (await engine.tickets("gig", buyer=f"b{at}")).items] == [ticket.id]
        with pytest.raises(LimitReached):
            await engine.reserve("gig", buyer="b0", quantity=2)
        await engine.confirm(tickets[0].id, buyer="b0")
        await engine.cancel(tickets[1].id, buyer="b1")
        sale = await engine.sale("gig")
        adds_up(sale)
        assert (sale.items[0].available, sale.items[0].reserved, sale.items[0].purchased) == (6, 3, 1)
        assert [each.id for each in (await engine.sales()).items] == ["gig"]
        (shown,) = (await engine.condition()).sales
        assert shown == sale
        assert (await engine.condition()).sales_known == 1
        assert (await engine.readiness()).ready
        await quiet(engine, "gig")
        with pytest.raises(InvalidRequest):
            await engine.amend_sale("gig", {"shards": 2})


async def test_one_shard_is_none(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        sale = await engine.create_sale("gig", name="Gig", capacity=1, shards=1)
        assert sale.shards is None
        assert not (await engine.create_sale("gig", name="Gig", capacity=1)).created
        assert (await engine.reserve("gig", buyer="ann", quantity=1)).id.startswith("gig.")
        for wrong in (0, 65, True, 1.5):
            with pytest.raises(InvalidRequest):
                await engine.create_sale("fig", name="Fig", capacity=1, shards=wrong)  # type: ignore[arg-type]


async def test_nobody_gets_into_a_shard_by_its_name(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10, shards=2)
        await engine.create_sale("fig", name="Fig", capacity=10)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        for name in ("gig~1", "gig~3", "fig~1", "gig~"):
            for call in (
                engine.reserve(name, buyer="ann", quantity=1),
                engine.sale(name),
                engine.tickets(name, buyer="ann"),
                engine.amend_sale(name, {"name": "x"}),
                engine.tail(name),
            ):
                with pytest.raises(UnknownSale):
                    await call
        id = ticket.id.partition(".")[2]
        for slot in ("gig", "gig~3", "fig~1"):
            with pytest.raises(UnknownTicket):
                await engine.ticket(f"{slot}.{id}")


async def test_a_listing_of_all_tickets_is_in_one_order(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=40, shards=4)
        made = [await engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(25)]
        await engine.confirm(made[3].id, buyer="b3")
        listed: list[Ticket] = []
        cursor = None
        while True:
            page = await engine.tickets("gig", limit=4, cursor=cursor)
            listed += page.items
            if (cursor := page.next) is None:
                break
        assert sorted(listed, key=lambda ticket: (ticket.reserved_at, ticket.id.partition(".")[2])) == listed
        assert {ticket.id for ticket in listed} == {ticket.id for ticket in made}
        assert [each.id for each in (await engine.tickets("gig", status=Status.PURCHASED)).items] == [made[3].id]


async def test_batches_go_to_the_shards_of_their_buyers(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=20, shards=3)
        orders = [Order(buyer=f"b{at}", quantity=1, key="k") for at in range(25)]
        answers = await engine.reserve_many("gig", orders)
        tickets = [answer for answer in answers if isinstance(answer, Ticket)]
        assert len(tickets) == 20
        assert {type(answer) for answer in answers} == {Ticket, AllHeld}
        assert len({ticket.id.partition(".")[0] for ticket in tickets}) == 3
        payments = [
            Payment(ticket=answer.id, buyer=f"b{at}") for at, answer in enumerate(answers) if isinstance(answer, Ticket)
        ]
        paid = await engine.confirm_many("gig", [*payments, Payment(ticket="gig." + "x" * 22, buyer="b1")])
        assert [type(answer) for answer in paid] == [Ticket] * 20 + [UnknownTicket]
        assert {type(answer) for answer in await engine.reserve_many("gig", [Order("zoe", 1)])} == {SoldOut}
        await quiet(engine, "gig")


async def test_the_ledgers_of_all_shards_are_followed_as_one(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=12, shards=3, hold_ms=100)
        (greedy,) = buyers_of(engine, "gig", 2, 1)
        await engine.reserve("gig", buyer=greedy, quantity=12)
        told = []
        tail = await engine.tail("gig", after=(0, 0))
        async with asyncio.timeout(10):
            while sum(transition.kind == "expired" for transition in told) < 1:
                told += await tail.read()
                await asyncio.sleep(0.01)
        assert {t.kind for t in told} == {"sale", "reserved", "expired", "transfer"}
        by_slot: dict[str, list[int]] = {}
        for transition in told:
            assert transition.sale == "gig"
            by_slot.setdefault(transition.slot, []).append(transition.sequence)
        assert set(by_slot) == {"gig~1", "gig~2", "gig~3"}
        assert all(sequences == list(range(1, len(sequences) + 1)) for sequences in by_slot.values())
        # From any place on, exactly the rest comes, in whatever order the shards are read.
        names = [(transition.slot, transition.sequence) for transition in told]
        for cut in range(0, len(told), 3):
            resumed = await engine.tail("gig", after=told[cut].place)
            rest: list[Any] = []
            while len(rest) < len(told) - cut - 1:
                rest += await resumed.read()
            assert Counter((t.slot, t.sequence) for t in rest) >= Counter(names[cut + 1 :])
        assert tail.place == (await engine.sale("gig")).place
        for wrong in ((1, 1), "1-1", "1-1,1-1,x", ""):
            with pytest.raises(InvalidRequest):
                await engine.tail("gig", after=wrong)
        seen = [e async for e in _first(engine.expirations(sale="gig", from_start=True), 1)]
        assert [(e.sale, e.slot) for e in seen] == [("gig", "gig~2")]


async def _first(iterator: Any, count: int) -> Any:
    async for each in iterator:
        yield each
        count -= 1
        if not count:
            return


# Borrowing ------------------------------------------------------------------------------------------------------------


async def test_one_buyer_may_have_all_units_of_all_shards(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10, shards=4)
        ticket = await engine.reserve("gig", buyer="ann", quantity=10)
        assert ticket.quantity == 10
        with pytest.raises(AllHeld) as held:
            await engine.reserve("gig", buyer="bob", quantity=1)
        assert held.value.available == 0
        assert 800_000 < held.value.retry_after_ms <= 900_000, "the deadline in another shard than the buyer's"
        with pytest.raises(SoldOut) as gone:
            await engine.reserve("gig", buyer="bob", quantity=11)
        assert gone.value.available == 0
        await engine.cancel(ticket.id, buyer="ann")
        assert (await engine.reserve("gig", buyer="bob", quantity=10)).quantity == 10
        await quiet(engine, "gig")


async def test_an_item_that_another_process_added_is_had_in_every_shard(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as one, connect(redis_server, tmp_path) as two:
        await one.create_sale("gig", name="Gig", items=[ItemSpec("seat", 9)], shards=3)
        await two.sale("gig")
        await one.amend_sale("gig", {"items": [{"sku": "box", "capacity": 9}]})
        (first,) = buyers_of(two, "gig", 1, 1)
        assert (await two.reserve("gig", buyer=first, lines={"box": 1})).quantity == 1
        # In this process the first shard has told of the item, and the third has not.
        for buyer in buyers_of(two, "gig", 3, 2):
            waiter: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
            assert two.reserve_for(waiter, "gig", buyer, lines={"box": 1})
            assert [(line.sku, line.quantity) for line in (await waiter).lines] == [("box", 1)]
        await quiet(two, "gig")


async def test_who_wants_more_than_is_left_is_told_when_a_hold_runs_out(redis_server: Any, tmp_path: Path) -> None:
    """What is available or on its way does not do: asking again in a moment would be in vain."""
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=3, shards=2)
        await engine.reserve("gig", buyer="ann", quantity=2)
        with pytest.raises(AllHeld) as held:
            await engine.reserve("gig", buyer="bob", quantity=2)
        assert held.value.available == 1
        assert 800_000 < held.value.retry_after_ms <= 900_000


async def test_an_order_of_several_items_borrows_each_that_is_short(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        items = [ItemSpec("seat", 6), ItemSpec("box", 3), ItemSpec("rug", 4)]
        await engine.create_sale("gig", name="Gig", items=items, shards=3)
        with pytest.raises(SoldOut) as gone:
            await engine.reserve("gig", buyer="ann", lines={"seat": 5, "box": 4})
        assert (gone.value.sku, gone.value.available) == ("box", 3)
        ticket = await engine.reserve("gig", buyer="ann", lines={"seat": 5, "box": 3, "rug": 1})
        assert ticket.quantity == 9
        with pytest.raises(AllHeld):
            await engine.reserve("gig", buyer="bob", lines={"seat": 1, "box": 1})
        assert (await engine.reserve("gig", buyer="bob", lines={"seat": 1, "rug": 3})).quantity == 4
        await quiet(engine, "gig")
        adds_up(await engine.sale("gig"))


async def test_holds_that_ran_out_elsewhere_are_had_here(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=4, shards=4, hold_ms=50)
        for shard in range(1, 5):
            (buyer,) = buyers_of(engine, "gig", shard, 1)
            await engine.reserve("gig", buyer=buyer, quantity=1)
        await asyncio.sleep(0.06)
        assert (await engine.reserve("gig", buyer="zoe", quantity=4)).quantity == 4


@pytest.mark.parametrize("shards", [2, 5, 8])
async def test_a_stampede_of_several_processes_sells_every_unit_once(
    redis_server: Any, tmp_path: Path, shards: int
) -> None:
    """More want than there is, and most of them have the same shard: it is emptied again and again."""
    chance = random.Random(shards)
    engines = [connect(redis_server, tmp_path) for _ in range(2)]
    for engine in engines:
        await engine.start()
    await engines[0].create_sale("gig", name="Gig", capacity=60, max_per_buyer=3, shards=shards)
    await engines[1].sale("gig")
    crowd = buyers_of(engines[0], "gig", 1, 60, "c") + [f"b{at}" for at in range(60)]

    async def come(buyer: str) -> list[Ticket | HoldfastError]:
        engine = chance.choice(engines)
        await asyncio.sleep(chance.uniform(0, 0.02))
        answers = []
        for _ in range(chance.randint(1, 3)):
            answers.append(await outcome(engine.reserve("gig", buyer=buyer, quantity=chance.randint(1, 2))))
        return answers

    answers = [answer for each in await asyncio.gather(*map(come, crowd)) for answer in each]
    tickets = [answer for answer in answers if isinstance(answer, Ticket)]
    refused = {type(answer) for answer in answers if not isinstance(answer, Ticket)}
    assert refused <= {AllHeld, LimitReached}, refused
    await quiet(engines[0], "gig")
    sale = await engines[1].sale("gig")
    adds_up(sale)
    held = sum(ticket.quantity for ticket in tickets)
    assert sale.items[0].reserved == held
    had = Counter(dict.fromkeys(crowd, 0))
    # Somebody heard that all is held, and so it is, but for what one order could not use.
    assert held >= 59
    for ticket in tickets:
        had[ticket.buyer] += ticket.quantity
    assert max(had.values()) <= 3
    (left,) = [item.available for item in sale.items]
    assert held + left == 60
    for engine in engines:
        await engine.close()


async def test_two_shards_that_want_each_others_last_unit_come_to_an_end(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=2, shards=2)
        for round_ in range(10):
            ones = buyers_of(engine, "gig", 1, 1, f"x{round_}-") + buyers_of(engine, "gig", 2, 1, f"y{round_}-")
            answers = await asyncio.gather(*(outcome(engine.reserve("gig", buyer=buyer, quantity=2)) for buyer in ones))
            tickets = [answer for answer in answers if isinstance(answer, Ticket)]
            assert len(tickets) <= 1
            assert {type(answer) for answer in answers} <= {Ticket, AllHeld}
            for buyer, answer in zip(ones, answers, strict=True):
                if isinstance(answer, Ticket):
                    await engine.cancel(answer.id, buyer=buyer)
        await quiet(engine, "gig")


async def test_those_for_whom_nothing_is_left_are_not_asked_for_again_and_again(
    redis_server: Any, tmp_path: Path
) -> None:
    """Somebody gives a unit back every now and then, and hundreds wait for one: each such unit is asked for once."""
    async with connect(redis_server, tmp_path) as engine, connect(redis_server, tmp_path) as other:
        await engine.create_sale("gig", name="Gig", capacity=40, shards=2)
        await other.sale("gig")
        holders = buyers_of(other, "gig", 2, 40, "h")
        held = [await other.reserve("gig", buyer=buyer, quantity=1) for buyer in holders]
        asked = []
        reserve = engine._transitions.reserve

        async def counted(slot: Any, batch: Any) -> None:
            asked.extend(batch)
            await reserve(slot, batch)

        engine._transitions.reserve = counted  # type: ignore[method-assign]

        async def give_back() -> None:
            for buyer, ticket in zip(holders, held, strict=True):
                await other.cancel(ticket.id, buyer=buyer)
                await asyncio.sleep(0.002)

        crowd = buyers_of(engine, "gig", 1, 1_000, "w")
        answers, _ = await asyncio.gather(
            asyncio.gather(*(outcome(engine.reserve("gig", buyer=buyer, quantity=1)) for buyer in crowd)), give_back()
        )
        assert {type(answer) for answer in answers} <= {Ticket, AllHeld}
        # Once for each, and again for whom there was something.
        assert len(asked) < 1_500
        await quiet(engine, "gig")


async def test_who_waits_for_units_is_bounded_in_number_and_time(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowing, "QUEUE_MAX", 20)
    monkeypatch.setattr(transfers, "STORED_S", 0.5)
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=20, shards=2)
        first, *crowd = buyers_of(engine, "gig", 1, 101)
        await engine.reserve("gig", buyer=first, quantity=10)
        append, hang = engine._store.append, asyncio.Event()

        async def hangs(copied: Any) -> None:
            await hang.wait()
            await append(copied)

        monkeypatch.setattr(engine._store, "append", hangs)
        answers = [asyncio.create_task(outcome(engine.reserve("gig", buyer=crowd[0], quantity=1)))]
        async with asyncio.timeout(10):
            while not (await engine.sale("gig")).items[0].in_transit:
                await asyncio.sleep(0.01)
            answers += [
                asyncio.create_task(outcome(engine.reserve("gig", buyer=buyer, quantity=1))) for buyer in crowd[1:]
            ]
            told = Counter(type(answer) for answer in await asyncio.gather(*answers))
        assert set(told) == {NotReady, Overloaded}
        assert told[NotReady] <= 21
        hang.set()
        monkeypatch.setattr(engine._store, "append", append)
        await engine.snapshot()
        await engine._mending.run()
        await engine._mending.run()
        await quiet(engine, "gig")


async def test_while_the_store_is_away_a_shard_keeps_its_units(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowing, "STORE_AWAY_S", 0.01)
    async with connect(redis_server, tmp_path, snapshot_ms=50) as engine:
        await engine.create_sale("gig", name="Gig", capacity=160, shards=4)
        append = engine._store.append

        async def silent(copied: Any) -> None:
            raise StoreError("the store does not answer")

        monkeypatch.setattr(engine._store, "append", silent)
        greedy, others = buyers_of(engine, "gig", 1, 1), buyers_of(engine, "gig", 4, 40, "q")
        await engine.reserve("gig", buyer=greedy[0], quantity=40)
        async with asyncio.timeout(10):
            while engine._snapshot.away is None:
                await asyncio.sleep(0.01)
        for buyer in buyers_of(engine, "gig", 1, 20, "z"):
            assert isinstance(await outcome(engine.reserve("gig", buyer=buyer, quantity=1)), NotReady)
            await asyncio.sleep(0.02)
        assert (await engine.sale("gig")).items[0].in_transit == 0
        for buyer in others:
            await engine.reserve("gig", buyer=buyer, quantity=1)
        monkeypatch.setattr(engine._store, "append", append)


async def test_a_restock_is_heard_of_within_a_tenth_of_a_second(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as one, connect(redis_server, tmp_path) as two:
        await one.create_sale("gig", name="Gig", capacity=3, shards=3)
        await one.confirm((await one.reserve("gig", buyer="ann", quantity=3)).id, buyer="ann")
        for buyer in (f"b{at}" for at in range(20)):
            with pytest.raises(SoldOut):
                await two.reserve("gig", buyer=buyer, quantity=1)
        await one.amend_sale("gig", {"capacity": 5})
        await asyncio.sleep(0.1)
        assert (await two.reserve("gig", buyer="bob", quantity=2)).quantity == 2
        with pytest.raises(AllHeld):
            await two.reserve("gig", buyer="zoe", quantity=1)


async def test_without_the_store_nobody_hears_that_it_is_sold_out(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=4, shards=2)
        away = [True]
        append = engine._store.append

        async def silent(copied: Any) -> None:
            if away[0]:
                raise StoreError("the store does not answer")
            await append(copied)

        monkeypatch.setattr(engine._store, "append", silent)
        one, two = buyers_of(engine, "gig", 1, 2)
        await engine.confirm((await engine.reserve("gig", buyer=one, quantity=2)).id, buyer=one)
        for _ in range(2):
            with pytest.raises(NotReady, match="store"):
                await engine.reserve("gig", buyer=two, quantity=1)
        with pytest.raises(SoldOut):
            await engine.reserve("gig", buyer=two, quantity=4)
        adds_up(await engine.sale("gig"))
        away[0] = False
        async with asyncio.timeout(10):
            while not isinstance(await outcome(engine.reserve("gig", buyer=two, quantity=2)), Ticket):
                await asyncio.sleep(0.05)
        await quiet(engine, "gig")


# Transfers, step by step ----------------------------------------------------------------------------------------------


class World:
    """A sale in three shards on which transfers are made step by step, by processes that die between any two."""

    def __init__(self, engine: Engine, chance: random.Random) -> None:
        self.engine = engine
        self.chance = chance
        self.kept: list[tuple[str, dict[str, bytes]]] = []

    async def step(self) -> str:
        engine, chance = self.engine, self.chance
        family = await engine._shards.get("gig")
        carrier = engine._borrowing._carrier
        one, two = chance.sample(family.slots, 2)
        kind = chance.choices(
            ["lend", "copy", "carry", "settle", "reserve", "end", "keep", "lose"], [4, 2, 4, 3, 4, 2, 5, 2]
        )[0]
        try:
            match kind:
                case "lend":
                    await carrier.lend(one, two, chance.choice(("1:1", "1:2,2:1", "2:3")))
                case "copy":
                    await engine._snapshot.reach({one.name})
                case "carry":
                    await carrier.carry([one], two)
                case "settle":
                    await carrier.settle([one], two)
                case "reserve":
                    who = chance.choice("abcdefgh")
                    await engine.reserve("gig", buyer=who, lines={chance.choice(("seat", "box")): chance.randint(1, 4)})
                case "end":
                    who = chance.choice("abcdefgh")
                    held = (await engine.tickets("gig", buyer=who)).items
                    for ticket in held[:1]:
                        await chance.choice((engine.confirm, engine.cancel))(ticket.id, buyer=who)
                case "keep":
                    self.kept.append((one.name, await keep(engine, one.name)))
                case "lose" if self.kept:
                    # One of the last: what is older is behind the store, and only recovered.
                    at = len(self.kept) - chance.randint(1, min(4, len(self.kept)))
                    slot, kept = self.kept[at]
                    # What was kept of it later is a history that never was.
                    self.kept = self.kept[:at] + [each for each in self.kept[at:] if each[0] != slot]
                    await put_back(engine, slot, kept)
        except HoldfastError as error:
            return f"{kind}: {error.code}"
        return kind

    async def ready(self) -> None:
        """Recovers what has lost something that the store knows."""
        await self.engine.recover()


@pytest.mark.parametrize("seed", range(6))
async def test_no_unit_is_doubled_or_lost_whatever_is_lost_between_the_steps(
    redis_server: Any, tmp_path: Path, seed: int
) -> None:
    """Random steps of transfers, sales and snapshots; shards of which Redis loses its last steps; recoveries."""
    async with connect(redis_server, tmp_path, snapshot_ms=None, sweep=False, listen=False) as engine:
        items = [ItemSpec("seat", 9), ItemSpec("box", 5)]
        await engine.create_sale("gig", name="Gig", items=items, shards=3)
        world = World(engine, random.Random(seed))
        family = await engine._shards.get("gig")
        history = []
        for _ in range(120):
            history.append(await world.step())
            await world.ready()
            look = await family.whole()
            assert _disagreements(family, look) == [], history
            sale = look.sale()
            adds_up(sale)
            assert look.capacity(0) == 9
            for shard in look.shards:
                share = shard.definition.share(shard.slot.name)
                for at, units in enumerate(share):
                    own = shard.available(at) + shard.in_use(at)
                    assert own == units - shard.transfers.lent_of(at), history
        # Whoever comes later finishes all of it, and then every unit can be had.
        for _ in range(3):
            await engine._mending.run()
        await quiet(engine, "gig")
        left = (await engine.sale("gig")).items
        if (seats := left[0].available) > 0:
            assert (await engine.reserve("gig", buyer="zoe", lines={"seat": seats})).quantity == seats
        for item in (await engine.sale("gig")).items:
            assert item.in_transit == 0


@pytest.mark.parametrize("forgetful", [0, 1], ids=["lender", "borrower"])
async def test_no_step_is_taken_that_relies_on_what_a_shard_may_forget(
    redis_server: Any, tmp_path: Path, forgetful: int
) -> None:
    """One of the two loses its step when the next one was made: it is behind the store then, and sells nothing."""
    async with connect(redis_server, tmp_path, snapshot_ms=None, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=8, shards=2)
        await engine.snapshot()
        family = await engine._shards.get("gig")
        one, two = family.slots
        carrier = engine._borrowing._carrier
        kept = await keep(engine, family.slots[forgetful].name)
        await carrier.lend(one, two, "1:3")
        await carrier.carry([one], two)
        if forgetful == 1:
            await carrier.settle([one], two)
        await put_back(engine, family.slots[forgetful].name, kept)
        assert not (await engine.readiness()).ready
        assert (await engine.recover()).clean
        for _ in range(2):
            await engine._mending.run()
        await quiet(engine, "gig")
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.in_transit) == (8, 0)


async def test_a_copy_under_way_while_a_failover_is_taken_up_doubles_no_unit(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lending is read from the old primary and reaches the store only once a new one, that has lost it, sells."""
    async with connect(redis_server, tmp_path, snapshot_ms=None, sweep=False, listen=False) as engine:
        monkeypatch.setattr(engine._servers, "follows", True)
        await engine.create_sale("gig", name="Gig", capacity=8, shards=2)
        family = await engine._shards.get("gig")
        await engine.snapshot()
        one, two = family.slots
        # What the replica has: the same, of another history than the one that it writes once it is a primary.
        await engine._servers.call("gig~1", "HSET", slot_keys("gig~1").sale, "reign", "0" * 40)
        kept = await keep(engine, "gig~1")
        carrier = engine._borrowing._carrier
        await carrier.lend(one, two, "1:3")
        append, read, go_on = engine._store.append, asyncio.Event(), asyncio.Event()

        async def slow(copied: Any) -> None:
            if not read.is_set():
                read.set()
                await go_on.wait()
            await append(copied)

        monkeypatch.setattr(engine._store, "append", slow)
        # Of another process, which has not heard of the failover.
        other = Snapshot(engine._servers, engine._store, engine._slots)
        carrying = asyncio.create_task(outcome(Carrier(engine._scripts, engine._store, other).carry([one], two)))
        await read.wait()
        await put_back(engine, "gig~1", kept)
        (first,), (second,) = buyers_of(engine, "gig", 1, 1), buyers_of(engine, "gig", 2, 1)
        held = await engine.reserve("gig", buyer=first, quantity=4)
        go_on.set()
        await carrying
        assert isinstance(await outcome(engine.reserve("gig", buyer=second, quantity=7)), AllHeld)
        assert (await engine.reserve("gig", buyer=second, quantity=4)).quantity == held.quantity == 4
        await engine.snapshot()
        assert engine._snapshot.alarms == []
        await quiet(engine, "gig")


async def test_a_new_primary_that_lacks_what_was_just_copied_is_recovered_first(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round: the copy comes into the store before the new epoch does, and after the floor was read."""
    async with connect(redis_server, tmp_path, snapshot_ms=None, sweep=False, listen=False) as engine:
        monkeypatch.setattr(engine._servers, "follows", True)
        await engine.create_sale("gig", name="Gig", capacity=5)
        await engine.snapshot()
        await engine._servers.call("gig", "HSET", slot_keys("gig").sale, "reign", "0" * 40)
        kept = await keep(engine, "gig")
        ticket = await engine.reserve("gig", buyer="ann", quantity=3)
        await engine.confirm(ticket.id, buyer="ann")
        copied = await engine._store.cursors()
        entries = await read_redis(engine._servers, slot_keys("gig"), copied["gig"].cursor, copied=True)
        await put_back(engine, "gig", kept)
        renew = engine._scripts.renew

        async def late(*args: Any) -> Any:
            renewed = await renew(*args)
            if entries:
                await engine._store.append([Copied("gig", copied["gig"].cursor, entries[:])])
                entries.clear()
            return renewed

        monkeypatch.setattr(engine._scripts, "renew", late)
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="bob", quantity=3)
        assert not (await engine.readiness()).ready
        assert await engine._health.lost() == {"gig": None}
        report = await engine.recover(["gig"])
        assert report.clean, str(report)
        assert (await engine.ticket(ticket.id)).status is Status.PURCHASED
        assert isinstance(await outcome(engine.reserve("gig", buyer="bob", quantity=3)), SoldOut)
        assert (await engine.readiness()).ready


@pytest.mark.parametrize("step", ["lent", "received", "settled"])
async def test_what_a_process_left_in_the_middle_is_finished(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=6, shards=2)
        family = await engine._shards.get("gig")
        one, two = family.slots
        carrier = engine._borrowing._carrier
        await carrier.lend(one, two, "1:2")
        if step != "lent":
            await carrier.carry([one], two)
        if step == "settled":
            await carrier.settle([one], two)
        async with asyncio.timeout(10):
            while (await family.look()).unsettled():
                await asyncio.sleep(0.05)
        await quiet(engine, "gig")
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.in_transit) == (6, 0)


async def test_who_meets_units_in_transit_hears_that_all_is_held(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=2, shards=2)
        family = await engine._shards.get("gig")
        one, two = family.slots
        await engine._borrowing._carrier.lend(one, two, "1:1")
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.in_transit) == (1, 1)
        with pytest.MonkeyPatch.context() as patch:

            async def nobody(*_: Any) -> int:
                return 0

            patch.setattr(engine._borrowing._carrier, "carry", nobody)
            with pytest.raises(AllHeld) as held:
                await engine.reserve("gig", buyer="ann", quantity=2)
            assert held.value.retry_after_ms <= 200
        # And otherwise whoever meets them carries them to their end.
        assert (await engine.reserve("gig", buyer="ann", quantity=2)).quantity == 2


# Amendments -----------------------------------------------------------------------------------------------------------


async def test_a_capacity_shrinks_to_what_is_in_use_wherever_that_lies(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=40, shards=4)
        (greedy,) = buyers_of(engine, "gig", 3, 1)
        await engine.confirm((await engine.reserve("gig", buyer=greedy, quantity=15)).id, buyer=greedy)
        with pytest.raises(CapacityInUse) as in_use:
            await engine.amend_sale("gig", {"capacity": 14})
        assert (in_use.value.sku, in_use.value.in_use) == ("general", 15)
        assert (await engine.sale("gig")).items[0].capacity == 40
        sale = await engine.amend_sale("gig", {"capacity": 15})
        assert (sale.items[0].capacity, sale.items[0].available) == (15, 0)
        with pytest.raises(SoldOut):
            await engine.reserve("gig", buyer="ann", quantity=1)
        sale = await engine.amend_sale("gig", {"capacity": 30, "name": "Big"})
        assert (sale.name, sale.items[0].capacity, sale.items[0].available) == ("Big", 30, 15)
        await asyncio.sleep(0.1)
        assert (await engine.reserve("gig", buyer="ann", quantity=15)).quantity == 15
        sale = await engine.amend_sale("gig", {"items": [{"sku": "vip", "capacity": 7}]})
        assert (await engine.reserve("gig", buyer="bob", lines={"vip": 7})).quantity == 7
        await quiet(engine, "gig")


async def test_a_capacity_fits_beside_a_transfer_that_was_left(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=9, shards=3)
        (buyer,) = buyers_of(engine, "gig", 1, 1)
        family = await engine._shards.get("gig")
        one, two, three = family.slots
        carrier = engine._borrowing._carrier
        await carrier.lend(three, one, "1:3")
        await carrier.carry([three], one)
        await carrier.settle([three], one)
        await engine.reserve("gig", buyer=buyer, quantity=6)
        # What the first shard will lack is on its way between two others, and nobody goes on with that.
        await carrier.lend(two, three, "1:3")
        (item,) = (await engine.amend_sale("gig", {"capacity": 6})).items
        assert (item.capacity, item.available, item.reserved, item.in_transit) == (6, 0, 6, 0)


async def test_an_amendment_races_with_a_stampede(redis_server: Any, tmp_path: Path) -> None:
    """Up and down while it sells: it holds everywhere or nowhere, and everything adds up at every look."""
    chance = random.Random(5)
    async with connect(redis_server, tmp_path) as one, connect(redis_server, tmp_path) as two:
        await one.create_sale("gig", name="Gig", capacity=50, shards=4)
        await two.sale("gig")
        over = False

        async def buy(at: int) -> list[Ticket]:
            had = []
            while not over:
                answer = await outcome(chance.choice((one, two)).reserve("gig", buyer=f"b{at}", quantity=1))
                if isinstance(answer, Ticket):
                    had.append(answer)
                    if len(had) > 2:
                        await one.cancel(had.pop(0).id, buyer=f"b{at}")
                else:
                    assert isinstance(answer, (SoldOut, AllHeld)), answer
                    await asyncio.sleep(0.005)
            return had

        buyers = [asyncio.create_task(buy(at)) for at in range(20)]
        capacities = set()
        for engine in (one, two) * 8:
            # Those that buy hold 40 to 60: some of these fit for as long as nobody looks twice, and some never.
            wanted = chance.randint(30, 120)
            answer = await asyncio.gather(engine.amend_sale("gig", {"capacity": wanted}), return_exceptions=True)
            assert isinstance(answer[0], CapacityInUse) or answer[0].items[0].capacity == wanted, answer
            sale = await engine.sale("gig")
            adds_up(sale)
            capacities.add(sale.items[0].capacity)
        over = True
        kept = [ticket for had in await asyncio.gather(*buyers) for ticket in had]
        assert len(capacities) > 2
        await quiet(one, "gig")
        sale = await one.sale("gig")
        assert sale.items[0].reserved == len(kept)


async def test_a_restock_that_is_bought_at_once_reaches_every_shard_or_none(redis_server: Any, tmp_path: Path) -> None:
    """A shard has more than its equal part, since an oversale was accepted, and the restock would make the parts equal:
    what the first shard gains is bought before another, which would lose, has been amended."""
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=6, shards=3)
        ones, twos, threes = (buyers_of(engine, "gig", shard, 2) for shard in (1, 2, 3))
        await engine.reserve("gig", buyer=twos[0], quantity=2)
        await engine._servers.call("gig~2", "HSET", slot_keys("gig~2").sale, "counts", "2 0 0")
        await engine.reserve("gig", buyer=twos[1], quantity=2)
        await engine.recover(["gig"], accept_oversold=True)
        await quiet(engine, "gig")
        for buyer in (ones[0], threes[0]):
            await engine.reserve("gig", buyer=buyer, quantity=2)
        assert [(item.capacity, item.available) for item in (await engine.sale("gig")).items] == [(8, 0)]

        bring, bought = engine._amending._bring, []

        async def brings(family: Any, shard: Any, wanted: Any) -> bool:
            brought = await bring(family, shard, wanted)
            if not bought:
                bought.append(await engine.reserve("gig", buyer=ones[1], quantity=2))
            return brought

        engine._amending._bring = brings  # type: ignore[method-assign]
        with contextlib.suppress(CapacityInUse):  # then it was taken back, with the units that it had brought
            await engine.amend_sale("gig", {"capacity": 10})
        await quiet(engine, "gig")
        sale = await engine.sale("gig")
        adds_up(sale)
        assert sale.items[0].reserved == 10


async def test_a_sale_that_cannot_be_mended_keeps_no_other_from_it(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        for name in ("gig", "zig"):
            await engine.create_sale(name, name=name, capacity=6, shards=2)
        mend = engine._mending._mend

        async def fails(family: Any) -> None:
            if family.name == "gig":
                raise RuntimeError("a defect")
            await mend(family)

        engine._mending._mend = fails  # type: ignore[method-assign]
        family = await engine._shards.get("zig")
        await engine._borrowing._carrier.lend(family.slots[0], family.slots[1], "1:1")
        await quiet(engine, "zig")


@pytest.mark.parametrize("seed", range(4))
async def test_an_amendment_killed_in_the_middle_is_finished_or_taken_back(
    redis_server: Any, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=40, shards=4)
        for at in range(12):
            await engine.reserve("gig", buyer=f"b{at}", quantity=1)
        calls = 0
        dies_at = chance.randint(1, 4)
        amend = engine._scripts.amend

        class Killed(BaseException):
            pass

        async def dies(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == dies_at:
                raise Killed
            return await amend(*args)

        engine._scripts.amend = dies  # type: ignore[method-assign]
        with pytest.raises(Killed):
            await engine.amend_sale("gig", {"capacity": chance.choice((20, 60))})
        engine._scripts.amend = amend  # type: ignore[method-assign]
        adds_up(await engine.sale("gig"))
        family = await engine._shards.get("gig")
        async with asyncio.timeout(10):
            while not (await family.whole()).level:
                await asyncio.sleep(0.05)
        sale = await engine.sale("gig")
        adds_up(sale)
        assert sale.items[0].capacity in (20, 40, 60)
        assert (sale.items[0].capacity == 40) == (dies_at == 1)
        await quiet(engine, "gig")


async def test_an_amendment_that_does_not_fit_any_more_is_taken_back_everywhere(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=8, shards=4)
        amend, sold = engine._scripts.amend, False

        async def and_then_it_sells(*args: Any) -> Any:
            nonlocal sold
            answer = await amend(*args)
            if not sold:
                sold = True
                # In the meantime nearly everything was sold.
                family = await engine._shards.get("gig")
                left = (await family.whole()).sale().items[0].available
                await engine.reserve("gig", buyer="ann", quantity=left)
            return answer

        monkeypatch.setattr(engine._scripts, "amend", and_then_it_sells)
        with pytest.raises(CapacityInUse):
            await engine.amend_sale("gig", {"capacity": 4, "name": "Small"})
        sale = await engine.sale("gig")
        assert (sale.name, sale.items[0].capacity) == ("Gig", 8)
        await quiet(engine, "gig")


# When something is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 4])
async def test_a_creation_that_was_killed_is_finished_by_whoever_looks(
    redis_server: Any, tmp_path: Path, shards: int
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        create, made = engine._scripts.create, 0

        async def dies(*args: Any) -> Any:
            nonlocal made
            made += 1
            if made > 1:
                raise asyncio.CancelledError
            return await create(*args)

        engine._scripts.create = dies  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await engine.create_sale("gig", name="Gig", capacity=5, shards=shards)
        engine._scripts.create = create  # type: ignore[method-assign]
        await engine.snapshot()
        assert (await engine.readiness()).ready
    async with connect(redis_server, tmp_path) as engine:
        assert (await engine.readiness()).ready
        assert (await engine.reserve("gig", buyer="ann", quantity=5)).quantity == 5
        await quiet(engine, "gig")


async def test_one_shard_of_many_is_lost_and_recovered(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=12, shards=3)
        (greedy,) = buyers_of(engine, "gig", 2, 1)
        ticket = await engine.reserve("gig", buyer=greedy, quantity=9)
        await quiet(engine, "gig")
        await engine.snapshot()
        before = await engine.sale("gig")
        keys = slot_keys("gig~2")
        await engine._servers.call("gig~2", "UNLINK", *(getattr(keys, name) for name in PARTS))
        readiness = await engine.readiness()
        assert not readiness.ready
        assert all("gig~2" in reason for reason in readiness.reasons)
        with pytest.raises(NotReady):
            await engine.sale("gig")
        # The others sell on: what they have, and what they can borrow of each other.
        one = buyers_of(engine, "gig", 1, 4)
        sold = [await outcome(engine.reserve("gig", buyer=buyer, quantity=1)) for buyer in one]
        had = sum(isinstance(answer, Ticket) for answer in sold)
        # One unit more than was needed lies in the shard that borrowed.
        assert (had, {type(answer) for answer in sold[had:]}) == (2, {NotReady})
        report = await engine.recover()
        assert [slot.slot for slot in report.slots] == ["gig~2"]
        assert report.clean
        after = await engine.sale("gig")
        adds_up(after)
        assert after.items[0].reserved == before.items[0].reserved + had
        assert (await engine.confirm(ticket.id, buyer=greedy)).status is Status.PURCHASED
        await quiet(engine, "gig")
        assert [slot.slot for slot in (await engine.recover(["gig"])).slots] == ["gig~1", "gig~2", "gig~3"]
        await quiet(engine, "gig")


async def test_what_redis_alone_knows_of_a_transfer_is_taken_up_without_its_ledger(
    redis_server: Any, tmp_path: Path
) -> None:
    """Units were received and sold, and neither is stored when the ledger is lost: the tickets tell of the one."""
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=8, shards=2)
        family = await engine._shards.get("gig")
        one, two = family.slots
        carrier = engine._borrowing._carrier
        await carrier.lend(one, two, "1:3")
        await carrier.carry([one], two)
        (buyer,) = buyers_of(engine, "gig", 2, 1)
        await engine.reserve("gig", buyer=buyer, quantity=7)
        await engine._servers.call("gig~2", "UNLINK", slot_keys("gig~2").ledger)
        (report,) = (await engine.recover(["gig~2"])).slots
        assert (report.oversold, report.held) == ((), 7)
        for _ in range(2):
            await engine._mending.run()
        await quiet(engine, "gig")
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved) == (1, 7)


async def test_a_shard_that_is_recovered_while_the_sale_shrinks_fits(redis_server: Any, tmp_path: Path) -> None:
    """20 units in place of 40, of which 10 are sold in one shard: they fit, once that shard has borrowed."""
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=40, shards=4)
        (buyer,) = buyers_of(engine, "gig", 3, 1)
        ticket = await engine.reserve("gig", buyer=buyer, quantity=10)
        await engine.confirm(ticket.id, buyer=buyer)
        await engine.snapshot()
        family = await engine._shards.get("gig")
        look = await family.whole()
        # Whoever amends has come to the first shard when the third is lost.
        wanted = replace(checks.amended(look.definition, {"capacity": 20}), version=2)
        assert await engine._amending.begin(family, look, wanted)
        await engine._servers.call("gig~3", "UNLINK", *(getattr(slot_keys("gig~3"), name) for name in PARTS))
        report = await engine.recover(["gig~3"])
        assert report.clean, str(report)
        assert (await engine.amend_sale("gig", {"max_per_buyer": 20})).items[0].capacity == 20
        await quiet(engine, "gig")
        sale = await engine.sale("gig")
        adds_up(sale)
        assert (sale.items[0].available, sale.items[0].purchased) == (10, 10)


async def test_more_sold_than_there_is_in_one_shard(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=6, shards=3)
        one, two, three = buyers_of(engine, "gig", 2, 3)
        kept = await keep(engine, "gig~2")
        await engine.reserve("gig", buyer=one, quantity=2)
        await engine.snapshot()
        # An older copy of Redis sells the same units once more, and both get into the store.
        counts = await engine._servers.call("gig~2", "HGET", slot_keys("gig~2").sale, "counts")
        assert counts == b"0 2 0"
        await engine._servers.call("gig~2", "HSET", slot_keys("gig~2").sale, "counts", "2 0 0")
        await engine.reserve("gig", buyer=two, quantity=2)
        del kept
        assert not (await engine.audit(["gig"])).clean
        report = await engine.recover(["gig~2"])
        assert report.slots[0].oversold == ("general",)
        assert not (await engine.readiness()).ready
        report = await engine.recover(["gig"], accept_oversold=True)
        assert [slot.accepted for slot in report.slots] == [(), ("general",), ()]
        async with asyncio.timeout(10):
            while (sale := await engine.sale("gig")).items[0].capacity != 8 or not (
                await (await engine._shards.get("gig")).whole()
            ).level:
                await asyncio.sleep(0.05)
        adds_up(sale)
        assert (sale.items[0].available, sale.items[0].reserved) == (4, 4)
        await quiet(engine, "gig")
        assert (await engine.reserve("gig", buyer=three, quantity=4)).quantity == 4
        # The next amendment gives equal parts again.
        sale = await engine.amend_sale("gig", {"capacity": 10})
        assert (sale.items[0].available, sale.items[0].reserved) == (2, 8)
        await quiet(engine, "gig")


@pytest.mark.parametrize("forged", ["lent", "counts", "out", "into", "both"])
async def test_the_audit_finds_what_was_forged(redis_server: Any, tmp_path: Path, forged: str) -> None:
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=9, shards=3)
        (greedy,) = buyers_of(engine, "gig", 2, 1)
        await engine.reserve("gig", buyer=greedy, quantity=9)
        await quiet(engine, "gig")
        key = slot_keys("gig~2").sale
        text = (await engine._servers.call("gig~2", "HGET", key, "transfers")).decode()
        counts = (await engine._servers.call("gig~2", "HGET", key, "counts")).decode()
        assert Transfers.parse(text).lent == (-6,)
        match forged:
            case "lent":
                text = text.replace("-6", "-7")
            case "counts":
                counts = "1 9 0"
            case "into":
                text = text.replace('"into":{"', '"into":{"9":1,"')
            case "out":
                text = text.replace('"out":{', '"out":{"1":{"number":4,"lines":"1:1"}')
            case "both":
                text, counts = text.replace("-6", "-7"), "1 9 0"
        await engine._servers.call("gig~2", "HSET", key, "transfers", text, "counts", counts)
        report = await engine.audit()
        assert not report.clean
        assert any("gig~2" in slot.slot and slot.findings for slot in report.slots)


async def test_the_audit_finds_a_transfer_that_only_one_side_knows(redis_server: Any, tmp_path: Path) -> None:
    """Each shard agrees with its own ledger, and there is more than there was."""
    async with connect(redis_server, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=9, shards=3)
        await engine._scripts.receive(slot_keys("gig~2"), "0-0", 3, 1, "1:5")
        await engine.snapshot()
        report = await engine.audit()
        assert [bool(slot.findings) for slot in report.slots] == [False, False, False, True]
        assert "received 1 transfers from shard 3" in str(report)
        # One shard alone says nothing of the others.
        assert (await engine.audit(["gig~2"])).clean


# What a sale in shards is ---------------------------------------------------------------------------------------------


def definition(**changes: Any) -> Definition:
    items = (ItemDefinition("seat", "seat", 10, None), ItemDefinition("box", "box", 2, 1))
    values: dict[str, Any] = {
        "id": "gig",
        "name": "Gig",
        "items": items,
        "hold_ms": 1000,
        "max_per_buyer": None,
        "opens_at": None,
        "closes_at": None,
        "version": 1,
        "origin": "o",
    }
    return Definition(**(values | changes))


def test_the_text_of_a_sale_of_one_slot_is_as_before() -> None:
    assert "shards" not in definition().json()
    assert "excess" not in definition(shards=4).json()
    for made in (definition(), definition(shards=4), definition(shards=3, excess={"2": [0, 5]})):
        assert Definition.from_json(made.json()) == made


@pytest.mark.parametrize("shards", [2, 3, 7, 64])
def test_shares_add_up_to_the_capacity(shards: int) -> None:
    for made in (definition(shards=shards), definition(shards=shards, excess={"2": [3, 1], "1": [1]})):
        shares = [made.share(slot) for slot in made.slots()]
        assert [sum(share[at] for share in shares) for at in range(2)] == [10, 2]
        assert all(min(share) >= 0 for share in shares)
    assert definition(shards=3).share("gig~1") == (4, 1)
    assert definition(shards=3).share("gig~3") == (3, 0)
    assert definition().share("gig") == (10, 2)


# With a knife ---------------------------------------------------------------------------------------------------------

#: A process that borrows for its buyer and kills itself at a step.
DIES = """
import asyncio, os, signal, sys
from holdfast.engine import Engine
from holdfast.engine.transfers import Carrier

url, store, at, buyer = sys.argv[1:]


def dying(name):
    real = getattr(Carrier, name)

    async def dies(self, *args):
        if at == f"before {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await real(self, *args)
        if at == f"after {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(Carrier, name, dies)


for name in ("lend", "_stored", "_receive", "_settle"):
    dying(name)


async def main():
    async with Engine.connect(url, store=store, secret="one for all of them", snapshot_ms=None, sweep=False) as engine:
        await engine.reserve("gig", buyer=buyer, quantity=4)
        await engine._borrowing.drained()


asyncio.run(main())
"""


@pytest.mark.parametrize(
    "step",
    ["after lend", "after _stored", "before _receive", "after _receive", "before _settle", "after _settle"],
)
async def test_a_process_killed_between_two_steps_leaves_nothing_in_transit(
    redis_server: Any, tmp_path: Path, step: str
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=6, shards=3)
        (buyer,) = buyers_of(engine, "gig", 2, 1)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DIES, redis_server.url, f"sqlite:///{tmp_path / 'store.db'}", step, buyer
        )
        assert await process.wait() == -signal.SIGKILL
        # Nobody else may be told that it is sold out, whatever has become of that process.
        for at in range(3):
            answer = await outcome(engine.reserve("gig", buyer=f"b{at}", quantity=2))
            assert isinstance(answer, (Ticket, AllHeld)), answer
            if isinstance(answer, Ticket):
                await engine.cancel(answer.id, buyer=f"b{at}")
        await quiet(engine, "gig")
        (item,) = (await engine.sale("gig")).items
        assert item.available + item.reserved == 6
        assert item.reserved in (0, 4)


@pytest.mark.parametrize("copied", [False, True], ids=["not stored", "stored"])
@pytest.mark.parametrize("lost", ["lend", "receive", "settle"])
async def test_a_redis_that_lost_its_last_steps_neither_doubles_nor_loses_units(
    private_redis: Any, tmp_path: Path, lost: str, copied: bool
) -> None:
    """An older append-only file put back after a step, with the store beside it knowing of that step or not."""
    older = tmp_path / "older"
    async with connect(private_redis, tmp_path, snapshot_ms=None, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=8, shards=2)
        family = await engine._shards.get("gig")
        one, two = family.slots
        carrier = engine._borrowing._carrier
        (buyer,) = buyers_of(engine, "gig", 2, 1)
        steps = {
            "lend": lambda: carrier.lend(one, two, "1:3"),
            "receive": lambda: carrier.carry([one], two),
            "settle": lambda: carrier.settle([one], two),
        }
        await engine.snapshot()
        for name, step in steps.items():
            if name == lost:
                await engine._servers.one.call("CONFIG", "SET", "appendfsync", "always")
                shutil.copytree(private_redis.directory, older)
            await step()
            if name == lost:
                break
        if lost == "receive":
            # What was received is sold before it is lost.
            await engine.reserve("gig", buyer=buyer, quantity=7)
        if copied:
            await engine.snapshot()
        private_redis.kill()
        shutil.rmtree(private_redis.directory)
        shutil.copytree(older, private_redis.directory)
        private_redis.start()
    async with connect(private_redis, tmp_path) as engine:
        readiness = await engine.readiness()
        assert readiness.ready != copied
        if copied:
            with pytest.raises(NotReady):
                await engine.sale("gig")
            assert (await engine.recover()).clean
        await engine.sale("gig")
        for _ in range(2):
            await engine._mending.run()
        await quiet(engine, "gig")
        (item,) = (await engine.sale("gig")).items
        adds_up(await engine.sale("gig"))
        assert item.in_transit == 0
        assert item.reserved == (7 if copied and lost == "receive" else 0)
        left = item.available
        assert (await engine.reserve("gig", buyer="zoe", quantity=left)).quantity == left
        with pytest.raises(AllHeld):
            await engine.reserve("gig", buyer="yan", quantity=1)
        await quiet(engine, "gig")


#: Several of these want what there is, each with buyers of its own.
BUYS = """
import asyncio, json, random, sys
from holdfast.engine import Engine, HoldfastError

url, store, seed = sys.argv[1:]


async def main():
    chance = random.Random(int(seed))
    async with Engine.connect(url, store=store, secret="one for all of them") as engine:
        await engine.sale("gig")

        async def come(buyer):
            await asyncio.sleep(chance.uniform(0, 0.3))
            try:
                ticket = await engine.reserve("gig", buyer=buyer, quantity=chance.randint(1, 2))
            except HoldfastError as error:
                return [error.code, "", 0]
            if chance.random() < 0.5:
                await engine.confirm(ticket.id, buyer=buyer)
                return ["paid", ticket.id, ticket.quantity]
            return ["held", ticket.id, ticket.quantity]

        print(json.dumps(await asyncio.gather(*(come(f"{seed}-{at}") for at in range(1000)))))


asyncio.run(main())
"""


@pytest.mark.parametrize("shards", [3, 8])
async def test_thousands_of_buyers_at_two_processes_get_what_there_is(
    empty_redis: str, tmp_path: Path, shards: int
) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with Engine.connect(empty_redis, store=store, secret="one for all of them") as engine:
        await engine.create_sale("gig", name="Gig", capacity=400, max_per_buyer=2, shards=shards)
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", BUYS, empty_redis, store, str(seed), stdout=asyncio.subprocess.PIPE
            )
            for seed in range(2)
        ]
        told = []
        for process in processes:
            out, _ = await process.communicate()
            assert process.returncode == 0
            told += json.loads(out)
        heard = Counter(code for code, _, _ in told)
        assert set(heard) <= {"paid", "held", "all_held", "sold_out"}, heard
        assert heard["all_held"] > 1000
        await quiet(engine, "gig")
        (item,) = (await engine.sale("gig")).items
        ids = [id for code, id, _ in told if id]
        assert len(ids) == len(set(ids))
        assert item.purchased == sum(units for code, _, units in told if code == "paid")
        assert item.reserved == sum(units for code, _, units in told if code == "held")
        # One unit may be left that only those met who wanted two.
        assert item.available <= 1


# In each store --------------------------------------------------------------------------------------------------------


async def test_every_store_keeps_what_shards_lend(empty_redis: str, store_at: Any) -> None:
    async with Engine.connect(empty_redis, store=store_at.url, secret="one for all of them") as engine:
        items = [ItemSpec("seat", 9), ItemSpec("box", 4)]
        await engine.create_sale("gig", name="Gig", items=items, shards=3)
        await engine.create_sale("fig", name="Fig", capacity=3)
        (buyer,) = buyers_of(engine, "gig", 2, 1)
        await engine.reserve("gig", buyer=buyer, lines={"seat": 9, "box": 3})
        await engine.amend_sale("gig", {"items": [{"sku": "seat", "capacity": 12}]})
        await quiet(engine, "gig")
        await engine.snapshot()
        assert [sale.id for sale in (await engine.sales()).items] == ["fig", "gig"]
        names = ["fig", "gig~1", "gig~2", "gig~3"]
        assert [stored.slot for stored in await engine._store.slots("", 10)] == names
        assert [stored.slot for stored in await engine._store.slots("gig~1", 1)] == ["gig~2"]
        told = dict(store_at.rows("SELECT slot, transfers FROM slots"))
        assert sorted(told) == names
        assert told["fig"] is None
        for name in names[1:]:
            lying = await engine._servers.call(name, "HGET", slot_keys(name).sale, "transfers")
            assert Transfers.parse(told[name]) == Transfers.parse(lying)
            assert (await engine._store.sale(name)).slot == name  # type: ignore[union-attr]
        assert (await engine._store.sale("gig")).slot == "gig~1"  # type: ignore[union-attr]
        assert await engine._store.sale("gig~4") is None
        assert await engine._store.sale("fig~1") is None
        for name in names[1:]:
            await engine._servers.call(name, "UNLINK", *(getattr(slot_keys(name), part) for part in PARTS))
        report = await engine.recover()
        assert report.clean
        assert [slot.slot for slot in report.slots] == names[1:]
        await quiet(engine, "gig")
        seats, boxes = (await engine.sale("gig")).items
        assert (seats.available, seats.reserved, boxes.available, boxes.reserved) == (3, 9, 1, 3)


async def test_a_store_from_before_shards_is_migrated(empty_redis: str, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with Engine.connect(empty_redis, store=f"sqlite:///{path}", secret="one for all of them") as engine:
        await engine.create_sale("fig", name="Fig", capacity=3)
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE slots DROP COLUMN transfers")
        db.execute("PRAGMA user_version = 2")
    async with Engine.connect(empty_redis, store=f"sqlite:///{path}", secret="one for all of them") as engine:
        assert (await engine.reserve("fig", buyer="ann", quantity=1)).quantity == 1
        await engine.create_sale("gig", name="Gig", capacity=4, shards=2)
        assert (await engine.reserve("gig", buyer="ann", quantity=4)).quantity == 4
        await quiet(engine, "gig")


# On a cluster ---------------------------------------------------------------------------------------------------------


async def test_shards_lend_each_other_across_the_nodes_of_a_cluster(cluster: Any, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with Engine.connect(cluster.address(), store=store, secret="one for all of them") as engine:
        await engine.create_sale("gig", name="Gig", capacity=60, max_per_buyer=5, shards=6)
        nodes = {engine._servers.of(f"gig~{number}").place for number in range(1, 7)}
        assert len(nodes) > 1
        crowd = buyers_of(engine, "gig", 1, 40, "c") + [f"b{at}" for at in range(40)]
        answers = await asyncio.gather(*(outcome(engine.reserve("gig", buyer=buyer, quantity=2)) for buyer in crowd))
        assert Counter(type(answer) for answer in answers) == {Ticket: 30, AllHeld: 50}
        await quiet(engine, "gig")
        adds_up(await engine.sale("gig"))


async def test_a_new_process_sells_though_the_node_of_another_shard_is_away(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(replicas=0, node_timeout_ms=1_000)
    options: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'store.db'}", "secret": "one for all of them"}
    async with Engine.connect(cluster.address(), **options) as old:
        await old.create_sale("gig", name="Gig", capacity=30, shards=3)
        (buyer,) = buyers_of(old, "gig", 1, 1)
    cluster.primary("gig~2").kill()
    async with Engine.connect(cluster.address(), snapshot_ms=None, **options) as new:
        # Nobody takes the place of the one that is away, and this one is not waited for.
        async with asyncio.timeout(new._servers.patience_s / 2):
            assert (await new.reserve("gig", buyer=buyer, quantity=1)).quantity == 1


async def test_a_shard_whose_node_fails_over_is_waited_for(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster()
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with Engine.connect(cluster.address(), store=store, secret="one for all of them") as engine:
        await engine.create_sale("gig", name="Gig", capacity=40, shards=4)
        await engine.snapshot()
        dead = await asyncio.to_thread(cluster.primary, "gig~2")
        others = [number for number in range(1, 5) if cluster.primary(f"gig~{number}") is not dead]
        (buyer,) = buyers_of(engine, "gig", others[0], 1)
        await asyncio.to_thread(dead.kill)
        # More than those have that answer: what the others have is known again when a replica has taken over.
        async with asyncio.timeout(30):
            while not isinstance(answer := await outcome(engine.reserve("gig", buyer=buyer, quantity=40)), Ticket):
                assert isinstance(answer, (NotReady, AllHeld)), answer
                await asyncio.sleep(0.1)
        await quiet(engine, "gig")
        adds_up(await engine.sale("gig"))
