"""A Redis that came back with less than the store knows: it sells nothing before recovery, which loses nothing kept."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import (
    Engine,
    HoldfastError,
    IdempotencyKeyReused,
    ItemSpec,
    LimitReached,
    NotReady,
    SoldOut,
    Status,
    Ticket,
    UnknownSale,
)
from holdfast.engine.keys import slot_keys
from holdfast.engine.records import Entry
from holdfast.engine.scripts import Refused, Scripts
from holdfast.engine.store import Copied, Cursor

PARTS = ("sale", "tickets", "buyers", "deadlines", "ledger")


def connect(server: Any, store_at: Any, **options: Any) -> Engine:
    return Engine.connect(server.url, store=store_at.url, **({"snapshot_ms": None} | options))


async def fill(engine: Engine) -> dict[str, Ticket]:
    """A sale with a ticket of every status, and a limit that is half used."""
    await engine.create_sale(
        "gig", name="Gig", items=[ItemSpec("vip", 5), ItemSpec("floor", 20)], hold_ms=600_000, max_per_buyer=4
    )
    await engine.create_sale("brief", name="Brief", capacity=3, hold_ms=1)
    made = {
        "held": await engine.reserve("gig", buyer="ann", lines={"vip": 1, "floor": 2}, key="h"),
        "bought": await engine.reserve("gig", buyer="ann", lines={"floor": 1}, key="b"),
        "cancelled": await engine.reserve("gig", buyer="bob", lines={"vip": 4}, key="c"),
        "ran out": await engine.reserve("brief", buyer="bob", quantity=2, key="x"),
    }
    await engine.confirm(made["bought"].id, buyer="ann", reference="pay_1", key="b")
    await engine.cancel(made["cancelled"].id, buyer="bob", key="c")
    while (await engine.sale("brief")).items[0].reserved:
        await asyncio.sleep(0.005)
    return made


async def check(engine: Engine, made: dict[str, Ticket]) -> None:
    """Everything of `fill` is as it was."""
    statuses = {name: (await engine.ticket(ticket.id)).status for name, ticket in made.items()}
    assert statuses == {
        "held": Status.RESERVED,
        "bought": Status.PURCHASED,
        "cancelled": Status.CANCELLED,
        "ran out": Status.EXPIRED,
    }
    assert {i.sku: (i.available, i.reserved, i.purchased) for i in (await engine.sale("gig")).items} == {
        "vip": (4, 1, 0),
        "floor": (17, 2, 1),
    }
    # Limits, replays and the deadline are what they were.
    with pytest.raises(LimitReached):
        await engine.reserve("gig", buyer="ann", lines={"floor": 1})
    assert (await engine.confirm(made["bought"].id, buyer="ann", reference="pay_1", key="b")).replayed
    assert (await engine.reserve("gig", buyer="ann", lines={"vip": 1, "floor": 2}, key="h")).replayed
    with pytest.raises(IdempotencyKeyReused):
        await engine.reserve("gig", buyer="ann", lines={"vip": 1}, key="h")
    held = await engine.ticket(made["held"].id)
    assert held.expires_at == made["held"].expires_at
    assert {t.id for t in (await engine.tickets("gig", buyer="ann")).items} == {made["held"].id, made["bought"].id}


async def nothing_is_sold(engine: Engine, made: dict[str, Ticket]) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: engine.reserve("gig", buyer="zoe", lines={"floor": 1}),
        lambda: engine.confirm(made["held"].id, buyer="ann"),
        lambda: engine.cancel(made["held"].id, buyer="ann"),
        lambda: engine.ticket(made["bought"].id),
        lambda: engine.sale("gig"),
        lambda: engine.amend_sale("gig", {"max_per_buyer": 9}),
        lambda: engine.create_sale("brief", name="Brief", capacity=3, hold_ms=1),
    ]
    for call in calls:
        with pytest.raises(NotReady):
            await call()
    readiness = await engine.readiness()
    assert not readiness.ready
    assert any("'gig'" in reason for reason in readiness.reasons)


async def test_an_empty_redis_sells_nothing_until_it_is_recovered(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
    redis_server.empty()
    async with connect(redis_server, store_at) as engine:
        await nothing_is_sold(engine, made)
        report = await engine.recover()
        assert report.clean
        assert {slot.slot for slot in report.slots} == {"gig", "brief"}
        assert (await engine.readiness()).ready
        await check(engine, made)
        await engine.confirm(made["held"].id, buyer="ann")
        assert await engine.snapshot() > 0
        assert engine._snapshot.alarms == []
    # The next start finds nothing to recover, and the epoch has risen for good.
    async with connect(redis_server, store_at) as engine:
        assert (await engine.recover()).slots == ()
        assert await engine._server.call("HGET", slot_keys("gig").sale, "epoch") == b"2"


async def test_what_was_copied_and_not_folded_is_recovered(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine._snapshot.run()
        assert all(progress.folded == 0 for progress in (await engine._store.cursors()).values())
        redis_server.empty()
        report = await engine.recover()
        assert report.clean
        assert [slot.tickets for slot in report.slots] == [1, 3]
        await check(engine, made)


async def test_a_contradiction_that_recovery_finds_in_the_ledger_is_reported(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine._snapshot.run()
        stored = await engine._store.sale("gig")
        assert stored is not None
        last, (_, _, id) = stored.cursor, made["cancelled"].id.partition(".")
        again = Entry(last.epoch, last.sequence + 1, 9, f"p {id} 1:4 {'o' * 22} paid")
        await engine._store.append([Copied("gig", last, [again])])
        report = await engine.recover(["gig"])
        assert not report.clean
        assert made["cancelled"].id in report.slots[0].conflicts[0]
        assert (await engine.recover(["gig"])).clean
        await check(engine, made)


async def test_an_older_copy_of_its_files_sells_nothing_until_it_is_recovered(
    private_redis: Any, store_at: Any, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    async with connect(private_redis, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10, hold_ms=600_000, max_per_buyer=4)
        first = await engine.reserve("gig", buyer="ann", quantity=3)
        await engine.snapshot()
        await engine._server.call("BGREWRITEAOF")
        while b"aof_rewrite_in_progress:1" in await engine._server.call("INFO", "persistence"):
            await asyncio.sleep(0.01)
        shutil.copytree(private_redis.directory, older)
        await engine.confirm(first.id, buyer="ann", reference="pay")
        second = await engine.reserve("gig", buyer="bob", quantity=4)
        await engine.confirm(second.id, buyer="bob")
        await engine.snapshot()
    private_redis.kill()
    shutil.rmtree(private_redis.directory)
    shutil.copytree(older, private_redis.directory)
    private_redis.start()
    async with connect(private_redis, store_at) as engine:
        # The old copy would sell seven units, of which four are gone.
        for call in (
            engine.reserve("gig", buyer="zoe", quantity=7),
            engine.cancel(first.id, buyer="ann"),
            engine.sale("gig"),
        ):
            with pytest.raises(NotReady):
                await call
        assert not (await engine.readiness()).ready
        assert (await engine.recover()).clean
        with pytest.raises(SoldOut):
            await engine.reserve("gig", buyer="zoe", quantity=4)
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (3, 0, 7)
        assert (await engine.ticket(first.id)).reference == "pay"


async def test_sweeping_does_not_make_an_older_redis_pass_for_a_whole_one(private_redis: Any, store_at: Any) -> None:
    """What is due in an old copy must stay there: each expiry would count its sequence up towards the store's."""
    async with connect(private_redis, store_at, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10, hold_ms=300)
        tickets = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(6)]
        kept = {name: await engine._server.call("DUMP", getattr(slot_keys("gig"), name)) for name in PARTS}
        for ticket in tickets[:3]:
            await engine.confirm(ticket.id, buyer="ann")
        assert await engine.snapshot() == 10
        for name, value in kept.items():
            await engine._server.call("RESTORE", getattr(slot_keys("gig"), name), "0", value, "REPLACE")
        with pytest.raises(NotReady):
            await engine.sale("gig")
    async with connect(private_redis, store_at, snapshot_ms=20) as engine:
        while (await engine._server.call("TIME"))[0] <= str(tickets[-1].expires_at // 1000 + 1).encode():
            await asyncio.sleep(0.05)
        assert await engine._sweeper.run() == 0
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="bob", quantity=1)
        assert await engine._server.call("HGET", slot_keys("gig").sale, "sequence") == b"7"
        assert (await engine.recover()).clean
        while (await engine.sale("gig")).items[0].reserved:
            await asyncio.sleep(0.02)
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.purchased) == (7, 3)
        assert engine._snapshot.alarms == []


async def test_a_redis_that_is_replaced_while_we_run_is_checked_before_it_is_used(
    private_redis: Any, store_at: Any
) -> None:
    async with connect(private_redis, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
        private_redis.kill()
        shutil.rmtree(private_redis.directory)
        private_redis.directory.mkdir()
        private_redis.start()
        assert not (await engine.readiness()).ready
        await nothing_is_sold(engine, made)
        assert (await engine.recover()).clean
        await check(engine, made)


async def test_a_redis_that_restarts_with_everything_goes_on_by_itself(private_redis: Any, store_at: Any) -> None:
    async with connect(private_redis, store_at, snapshot_ms=50) as engine:
        made = await fill(engine)
        for _ in range(3):
            private_redis.kill()
            private_redis.start()
            await check(engine, made)
        await engine.confirm(made["held"].id, buyer="ann")
        assert (await engine.readiness()).ready
        with private_redis.client() as client:
            client.script_flush()
        with pytest.raises(HoldfastError):
            await engine.confirm(made["held"].id, buyer="ann")


async def test_recovery_from_redis_that_is_ahead_keeps_what_only_redis_knows(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)  # nothing of it was copied to the store
        await engine.recover(["gig", "brief"])
        await check(engine, made)
        page = await engine._store.ledger("gig", Cursor(0, 0), 1000)
        sequences = [t.sequence for entry in page for t in entry.transitions()]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_tickets_that_only_redis_has_survive_a_lost_ledger(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine._server.call("UNLINK", slot_keys("gig").ledger)
        await engine.snapshot()
        assert any("does not continue" in alarm for alarm in engine._snapshot.alarms)
        report = await engine.recover(["gig"])
        assert report.slots[0].appended > 0
        assert (await engine.readiness()).ready
        await check(engine, made)


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize("step", range(12))
async def test_interrupted_at_any_step_it_can_be_run_again(redis_server: Any, store_at: Any, step: int) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
    redis_server.empty()
    async with connect(redis_server, store_at) as engine:
        calls = 0
        run = Scripts._run

        async def dies(self: Scripts, *args: Any) -> Any:
            nonlocal calls
            calls += args[0] != "lease"
            if calls > step:
                raise Crash
            return await run(self, *args)

        Scripts._run = dies  # type: ignore[method-assign]
        try:
            await engine.recover()
            crashed = False
        except Crash:
            crashed = True
        finally:
            Scripts._run = run  # type: ignore[method-assign]
        if crashed:
            assert not (await engine.readiness()).ready
            assert (await engine.recover()).clean
        assert (await engine.readiness()).ready
        await check(engine, made)


async def test_two_recoveries_at_once(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
    redis_server.empty()
    async with connect(redis_server, store_at) as one, connect(redis_server, store_at) as two:
        await asyncio.gather(one.recover(), two.recover(), return_exceptions=True)
        await one.recover()
        assert (await two.readiness()).ready
        await check(two, made)
        await check(one, made)


async def test_a_fence_that_was_taken_over_stops_the_first_recovery(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await fill(engine)
        keys = slot_keys("gig")
        await engine._scripts.fence(keys, "one")
        await engine._scripts.fence(keys, "two")
        with pytest.raises(Refused):
            await engine._scripts.clear(keys, "one")
        with pytest.raises(Refused):
            await engine._scripts.restore(keys, "one", "tickets", ["a", "b"])
        with pytest.raises(Refused):
            await engine._scripts.unfence(keys, "one", "9", "9", "{}", "", "1", "", "", "0")
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="zoe", lines={"floor": 1})


async def test_an_oversold_sale_stays_closed_and_is_named(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=2)
        ticket = await engine.reserve("gig", buyer="ann", quantity=2)
        await engine.confirm(ticket.id, buyer="ann")
        await engine.snapshot()
        stored = await engine._store.sale("gig")
        assert stored is not None
        smaller = stored.known.json().replace('"capacity":2', '"capacity":1')
        await engine._store.settle("gig", type(stored.known).from_json(smaller))
        report = await engine.recover(["gig"])
        assert report.slots[0].oversold == ("general",)
        assert not report.clean
        assert "OVERSOLD" in str(report.slots[0])
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="bob", quantity=1)


async def test_recovering_what_does_not_exist(engine: Engine) -> None:
    with pytest.raises(UnknownSale):
        await engine.recover(["nope"])
    assert (await engine.recover()).slots == ()


async def test_recovery_of_many_tickets_in_steps(redis_server: Any, store_at: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("holdfast.engine.recovery.STEP", 100)
    async with connect(redis_server, store_at, sweep=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5000)
        tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at % 300}", quantity=1) for at in range(2000)))
        await asyncio.gather(*(engine.confirm(t.id, buyer=f"b{at % 300}") for at, t in enumerate(tickets) if at % 2))
        await engine.snapshot()
        before = {key: await engine._server.call("HGETALL", key) for key in (slot_keys("gig").tickets,)}
        redis_server.empty()
        assert (await engine.recover()).slots[0].tickets == 2000
        after = {key: await engine._server.call("HGETALL", key) for key in before}
        assert _pairs(after) == _pairs(before)
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (3000, 1000, 1000)


def _pairs(replies: dict[str, Any]) -> dict[str, dict[bytes, bytes]]:
    return {
        key: reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        for key, reply in replies.items()
    }
