"""A sale's ledger followed: every transition, in order, none missed and none repeated, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import (
    Engine,
    HoldfastError,
    InvalidRequest,
    ItemSpec,
    Kind,
    Position,
    Sale,
    SaleTransition,
    UnknownSale,
)
from holdfast.engine.keys import slot_keys


async def stretch(transitions: AsyncIterator[SaleTransition], upto: Position) -> list[SaleTransition]:
    """What is told up to this position."""
    told: list[SaleTransition] = []
    async with asyncio.timeout(20):
        async for transition in transitions:
            told.append(transition)
            if transition.position >= upto:
                break
    return told


def counted(told: list[SaleTransition]) -> dict[str, tuple[int, int, int]]:
    """The counters that follow from a ledger told from its beginning."""
    counts: dict[str, list[int]] = {}
    for transition in told:
        if transition.terms is not None:
            for item in transition.terms.items:
                held = counts.setdefault(item.sku, [0, 0, 0])
                held[0] = item.capacity - held[1] - held[2]
        for line in transition.lines:
            held = counts[line.sku]
            n = line.quantity
            change = {
                Kind.RESERVED: (-n, n, 0),
                Kind.PURCHASED: (0, -n, n),
                Kind.CANCELLED: (n, -n, 0),
                Kind.EXPIRED: (n, -n, 0),
            }[transition.kind]
            counts[line.sku] = [a + b for a, b in zip(held, change, strict=True)]
    return {sku: (a, r, p) for sku, (a, r, p) in counts.items()}


def counts_of(sale: Sale) -> dict[str, tuple[int, int, int]]:
    return {item.sku: (item.available, item.reserved, item.purchased) for item in sale.items}


async def busy(engine: Engine, seed: int = 7, rounds: int = 6) -> None:
    """Batches of every kind of transition, and amendments between them."""
    drawn = random.Random(seed)
    await engine.create_sale(
        "gig", name="Gig", items=[ItemSpec("seat", 500), ItemSpec("box", 50, name="Box")], hold_ms=600_000
    )
    for at in range(rounds):
        lines = [{"seat": drawn.randint(1, 2)} if drawn.random() < 0.7 else {"box": 1, "seat": 1} for _ in range(20)]
        made = await asyncio.gather(
            *(engine.reserve("gig", buyer=f"b{n}", lines=wanted) for n, wanted in enumerate(lines)),
            return_exceptions=True,
        )
        tickets = [(n, ticket) for n, ticket in enumerate(made) if not isinstance(ticket, BaseException)]
        await asyncio.gather(
            *(engine.confirm(t.id, buyer=f"b{n}", reference=f"pay {n}") for n, t in tickets if n % 3 == 0),
            *(engine.cancel(t.id, buyer=f"b{n}") for n, t in tickets if n % 3 == 1),
        )
        await engine.amend_sale("gig", {"items": [{"sku": f"new-{at}", "capacity": 5}]})
        await engine.reserve("gig", buyer="ann", lines={f"new-{at}": 2})


async def test_everything_is_told_and_adds_up_to_the_counters(engine: Engine) -> None:
    await busy(engine)
    sale = await engine.sale("gig")
    told = await stretch(engine.transitions("gig", after=(0, 0)), sale.position)
    assert [t.position for t in told] == [Position(1, n) for n in range(1, sale.sequence + 1)]
    assert counted(told) == counts_of(sale)
    assert told[0].kind is Kind.SALE
    assert told[0].terms is not None
    assert told[0].terms.name == "Gig"
    assert told[0].terms.items == (ItemSpec("seat", 500, "seat"), ItemSpec("box", 50, "Box"))
    bought = next(t for t in told if t.kind is Kind.PURCHASED)
    assert bought.reference is not None
    assert bought.reference.startswith("pay ")
    assert bought.reference not in repr(bought)
    assert bought.ticket is not None
    ticket = await engine.ticket(bought.ticket)
    assert (bought.at, bought.lines, bought.quantity) == (ticket.ended_at, ticket.lines, ticket.quantity)
    reserved = next(t for t in told if t.ticket == bought.ticket and t.kind is Kind.RESERVED)
    assert (reserved.at, reserved.expires_at) == (ticket.reserved_at, ticket.expires_at)


@pytest.mark.parametrize("kept", [10_000, 5, 0], ids=["in Redis", "the last of it in Redis", "in the store"])
async def test_any_position_is_one_to_go_on_from(engine: Engine, kept: int) -> None:
    await busy(engine, rounds=3)
    await engine.snapshot()
    await engine._servers.call("gig", "XTRIM", slot_keys("gig").ledger, "MAXLEN", str(kept))
    end = (await engine.sale("gig")).position
    whole = await stretch(engine.transitions("gig", after=(0, 0)), end)
    assert len(whole) == end.sequence
    for at in range(0, len(whole) - 1, 3):
        assert await stretch(engine.transitions("gig", after=whole[at].position), end) == whole[at + 1 :]


async def test_without_a_position_it_begins_now(engine: Engine) -> None:
    await busy(engine, rounds=1)
    tail = await engine.tail("gig")
    assert tail.position == (await engine.sale("gig")).position
    assert await tail.read() == []
    ticket = await engine.reserve("gig", buyer="bob", lines={"seat": 1})
    (told,) = await tail.read()
    assert (told.kind, told.ticket, told.sale) == (Kind.RESERVED, ticket.id, "gig")
    assert tail.position == told.position
    assert await tail.read() == []


async def test_a_hold_that_ran_out_is_told_with_its_deadline(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=3, hold_ms=30)
    ticket = await engine.reserve("gig", buyer="ann", quantity=2)
    told = await stretch(engine.transitions("gig", after=(0, 0)), Position(1, 3))
    assert [t.kind for t in told] == [Kind.SALE, Kind.RESERVED, Kind.EXPIRED]
    assert (told[2].ticket, told[2].expires_at, told[2].quantity) == (ticket.id, ticket.expires_at, 2)
    assert told[2].at >= ticket.expires_at


async def test_a_position_that_cannot_be_is_refused(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=3)
    for after in ((-1, 0), (0, -1), "1-1,1-1", "1", "here"):
        with pytest.raises(InvalidRequest, match="is no place"):
            await engine.tail("gig", after=after)
    with pytest.raises(UnknownSale):
        await engine.tail("other")
    with pytest.raises(UnknownSale):
        await anext(engine.transitions("other", after=(0, 0)))


async def test_nothing_is_missed_while_the_ledger_is_trimmed_and_sold_from(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=3_000, hold_ms=600_000)
    following = asyncio.create_task(stretch(engine.transitions("gig", after=(0, 0)), Position(1, 3_001)))

    async def trim() -> None:
        while not following.done():
            await engine.snapshot()
            copied = (await engine._store.cursors())["gig"].cursor
            await engine._servers.call(
                "gig", "XTRIM", slot_keys("gig").ledger, "MINID", f"{copied.epoch}-{copied.sequence}"
            )

    async def buy(buyer: int) -> None:
        for _ in range(60):
            await engine.reserve("gig", buyer=f"b{buyer}", quantity=1)

    await asyncio.gather(trim(), *map(buy, range(50)))
    assert [t.sequence for t in following.result()] == list(range(1, 3_002))


async def test_a_redis_that_dies_and_comes_back_is_waited_for(private_redis: Any, tmp_path: Path) -> None:
    async with Engine.connect(private_redis.url, store=f"sqlite:///{tmp_path / 'store.db'}") as engine:
        await engine.create_sale("gig", name="Gig", capacity=100, hold_ms=600_000)
        following = asyncio.create_task(stretch(engine.transitions("gig", after=(0, 0)), Position(2, 22)))
        for n in range(10):
            await engine.reserve("gig", buyer=f"b{n}", quantity=1)
        private_redis.kill()
        private_redis.start()
        for n in range(10):
            await engine.reserve("gig", buyer=f"c{n}", quantity=1)
        told = await following
        assert [t.sequence for t in told] == list(range(1, 23))
        # The restart is one of them: what it may have lost keeps its numbers.
        assert [(t.epoch, t.kind) for t in told if t.kind is not Kind.RESERVED] == [(1, Kind.SALE), (2, Kind.SALE)]


async def test_it_goes_on_in_the_epoch_of_a_recovery(redis_server: Any, store_at: Any) -> None:
    async with Engine.connect(redis_server.url, store=store_at.url, snapshot_ms=50) as engine:
        await busy(engine, rounds=2)
        await engine.snapshot()
        before = (await engine.sale("gig")).position
        following = engine.transitions("gig", after=(0, 0))
        told = await stretch(following, before)
        with redis_server.client() as client:
            client.flushall()
        report = await engine.recover(["gig"])
        assert report.clean
        for _ in range(3):
            await engine.reserve("gig", buyer="zoe", lines={"seat": 1})
        after = (await engine.sale("gig")).position
        assert after.epoch == 2
        # Told to who was there all along (an iterator that was left is at its end), and to who comes now.
        told += await stretch(engine.transitions("gig", after=before), after)
        assert [t.position for t in told] == sorted({t.position for t in told})
        assert [t.kind for t in told[-4:]] == [Kind.SALE] + [Kind.RESERVED] * 3
        assert counted(told) == counts_of(await engine.sale("gig"))
        assert await stretch(engine.transitions("gig", after=(0, 0)), after) == told


async def test_a_reader_lives_through_a_recovery(redis_server: Any, tmp_path: Path) -> None:
    async with Engine.connect(redis_server.url, store=f"sqlite:///{tmp_path / 's.db'}", snapshot_ms=50) as engine:
        await engine.create_sale("gig", name="Gig", capacity=50, hold_ms=600_000)
        following = asyncio.create_task(stretch(engine.transitions("gig", after=(0, 0)), Position(2, 0)))
        for n in range(5):
            await engine.reserve("gig", buyer=f"b{n}", quantity=1)
        await engine.snapshot()
        with redis_server.client() as client:
            client.flushall()
        with pytest.raises(HoldfastError):
            await engine.reserve("gig", buyer="zoe", quantity=1)
        await engine.recover(["gig"])
        told = await following
        assert [t.position for t in told] == [*(Position(1, n) for n in range(1, 7)), Position(2, told[-1].sequence)]
        assert told[-1].kind is Kind.SALE
