"""Holds that run out: by the sweeper, the listener, and reserve itself; leases; and the feed of expiries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_asyncio

from holdfast.engine import AllHeld, Engine, Expiration, LimitReached, Status
from holdfast.engine.keys import EXPIRED_EVENTS, lease_ticket, slot_keys
from holdfast.engine.store import Cursor

Servers = Callable[[str], Any]


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Waits for what the test waits for, and no longer."""
    give_up = time.monotonic() + seconds
    while not await condition() if asyncio.iscoroutinefunction(condition) else not condition():
        assert time.monotonic() < give_up, "it did not happen"
        await asyncio.sleep(0.005)


def quiet(url: str, tmp_path: Path, **roles: bool) -> Engine:
    """An engine without the roles that the test does not want."""
    return Engine.connect(url, store=f"sqlite:///{tmp_path / 'store.db'}", **roles)  # type: ignore[arg-type]


async def test_with_listener_and_notifications_off_stock_returns_within_a_second(
    servers: Servers, tmp_path: Path
) -> None:
    process = servers("embedded")
    async with quiet(process.empty(), tmp_path, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=50, hold_ms=300)
        tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(50)))

        async def back() -> bool:
            return (await engine.sale("gig")).items[0].available == 50

        await until(back)
        await engine.snapshot()
        entries = await engine._store.ledger("gig", Cursor(0, 0), 1000)
        written = [t.at for entry in entries for t in entry.transitions() if t.kind == "x"]
        assert len(written) == 50
        assert max(written) - tickets[0].expires_at < 1000
        with process.client() as client:
            assert client.config_get("notify-keyspace-events")["notify-keyspace-events"] == ""


async def test_reserve_takes_a_unit_that_is_due_at_once(redis_server: Any, tmp_path: Path) -> None:
    async with quiet(redis_server.url, tmp_path, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1, hold_ms=50, max_per_buyer=1)
        first = await engine.reserve("gig", buyer="ann", quantity=1)
        with pytest.raises(AllHeld) as refused:
            await engine.reserve("gig", buyer="bob", quantity=1)
        with pytest.raises(LimitReached):
            await engine.reserve("gig", buyer="ann", quantity=1)
        await asyncio.sleep(refused.value.retry_after_ms / 1000 + 0.002)
        # The same buyer: the limit, too, counts only what is still held.
        await engine.reserve("gig", buyer="ann", quantity=1)
        assert (await engine.ticket(first.id)).status is Status.EXPIRED
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved) == (0, 1)


async def test_a_due_unit_is_had_behind_thousands_of_due_holds(redis_server: Any, tmp_path: Path) -> None:
    async with quiet(redis_server.url, tmp_path, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=3000, hold_ms=300)
        held = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(3000)))
        last = max(ticket.expires_at for ticket in held)
        await until(lambda: time.time() * 1000 > last)
        ticket = await engine.reserve("gig", buyer="zoe", quantity=2500)
        assert ticket.quantity == 2500


async def test_config_forbidden_runs_without_notifications_and_says_so_once(
    start_redis: Callable[..., Any], any_binary: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = start_redis(any_binary, "--rename-command", "CONFIG", "")
    caplog.set_level(logging.WARNING)
    async with quiet(process.url, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1, hold_ms=50)
        await engine.reserve("gig", buyer="ann", quantity=1)

        async def back() -> bool:
            return (await engine.sale("gig")).items[0].available == 1

        await until(back)
        (listener, _), *_ = engine._listeners._at.values()
        await listener.enable()
    assert sum("without notifications" in record.message for record in caplog.records) == 1


async def test_flags_that_are_set_already_stay(redis_server: Any, tmp_path: Path) -> None:
    with redis_server.client() as client:
        client.config_set("notify-keyspace-events", "Klg")
        async with quiet(redis_server.url, tmp_path) as engine:
            await engine._listeners.subscribed()
            flags = client.config_get("notify-keyspace-events")["notify-keyspace-events"]
    assert set(flags) == set("KElgx")


@pytest.fixture
async def events(redis_server: Any) -> AsyncIterator[list[str]]:
    """What a raw subscriber hears: ticket ids of expired leases."""
    heard: list[str] = []
    client = redis_asyncio.Redis(unix_socket_path=redis_server.socket)
    pubsub = client.pubsub()
    await pubsub.psubscribe(EXPIRED_EVENTS)
    await pubsub.get_message(timeout=5)

    async def listen() -> None:
        async for message in pubsub.listen():
            ticket = lease_ticket(message["data"].decode())
            if ticket is not None:
                heard.append(ticket)

    task = asyncio.create_task(listen())
    yield heard
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    await client.aclose()


async def test_a_raw_subscriber_hears_what_ran_out_and_nothing_else(
    redis_server: Any, tmp_path: Path, events: list[str]
) -> None:
    async with quiet(redis_server.url, tmp_path) as engine:
        await engine._listeners.subscribed()
        await engine.create_sale("gig", name="Gig", capacity=30, hold_ms=700)
        tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(30)))
        for at, ticket in enumerate(tickets):
            if at % 3 == 0:
                await engine.confirm(ticket.id, buyer=f"b{at}")
            elif at % 3 == 1:
                await engine.cancel(ticket.id, buyer=f"b{at}")
        await engine._leases.drained()
        with redis_server.client() as client:
            keys = slot_keys("gig")
            held = {ticket.id for at, ticket in enumerate(tickets) if at % 3 == 2}
            leases = {key.decode() for key in client.keys(keys.lease_prefix + "*")}
            assert leases == {keys.lease_prefix + id for id in held}
            for ticket in tickets[2::3]:
                assert (
                    client.execute_command("PEXPIRETIME", keys.lease_prefix + ticket.id) == ticket.expires_at
                    if (client.info("server")["redis_version"] >= "7")
                    else client.pttl(keys.lease_prefix + ticket.id) > 0
                )
        await until(lambda: set(events) == held)
        assert len(events) == len(held)


async def test_expiries_are_told_once_and_in_order(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=100, hold_ms=100)
    told: list[Expiration] = []

    async def listen() -> None:
        async for expiration in engine.expirations(sale="gig"):
            told.append(expiration)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.05)
    tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=2) for at in range(20)))
    await engine.confirm(tickets[0].id, buyer="b0")
    await until(lambda: len(told) == 19)
    again = await asyncio.gather(*(engine.reserve("gig", buyer=f"c{at}", quantity=1) for at in range(5)))
    await until(lambda: len(told) == 24)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert {e.ticket for e in told} == {t.id for t in (*tickets[1:], *again)}
    assert [e.sequence for e in told] == sorted({e.sequence for e in told})
    deadline = {t.id: t.expires_at for t in (*tickets, *again)}
    for expiration in told:
        assert expiration.expired_at == deadline[expiration.ticket] <= expiration.at
        assert (expiration.slot, expiration.sale, expiration.epoch) == ("gig", "gig", 1)
        assert expiration.lines[0].sku == "general"


async def test_a_named_listener_goes_on_where_it_was(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=100, hold_ms=50)
    first = engine.expirations(name="mail")
    waiting = asyncio.ensure_future(anext(first))
    await asyncio.sleep(0.05)
    tickets = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(3)]
    told = [await waiting, await anext(first)]
    # It dies while it works on the second: that one was not finished and comes again.
    await first.aclose()  # type: ignore[attr-defined]
    second = engine.expirations(name="mail")
    async with asyncio.timeout(10):
        while {e.ticket for e in told} != {t.id for t in tickets}:
            told.append(await anext(second))
    late = asyncio.ensure_future(anext(second))
    assert told[1] in told[2:]
    assert len({(e.slot, e.epoch, e.sequence) for e in told}) == 3
    # Once the next one was asked for, everything before it counts as delivered.
    await asyncio.sleep(0.2)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    third = engine.expirations(name="mail")
    waiting = asyncio.ensure_future(anext(third))
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    assert (await waiting).ticket == ticket.id
    await third.aclose()  # type: ignore[attr-defined]


async def test_expiries_older_than_redis_keeps_come_from_the_store(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=100, hold_ms=20)
    tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(10)))

    async def back() -> bool:
        return (await engine.sale("gig")).items[0].available == 100

    await until(back)
    await engine.snapshot()
    await engine._servers.call("gig", "XTRIM", slot_keys("gig").ledger, "MAXLEN", "0")
    listening = engine.expirations(from_start=True)
    async with asyncio.timeout(10):
        told = [await anext(listening) for _ in range(10)]
    await listening.aclose()  # type: ignore[attr-defined]
    assert {e.ticket for e in told} == {t.id for t in tickets}


async def test_a_sale_is_looked_at_when_something_may_be_due_there(redis_server: Any, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    roles: dict[str, Any] = {"sweep": False, "listen": False, "snapshot_ms": None}
    async with Engine.connect(redis_server.url, store=store, **roles) as engine:
        clocked, looked = engine._servers.clocked, []

        async def noted(commands: Any, **how: Any) -> Any:
            looked.append(sorted(name for name, _ in commands))
            return await clocked(commands, **how)

        engine._servers.clocked = noted  # type: ignore[method-assign]
        for name, hold_ms in (("idle", 60_000), ("long", 60_000), ("quick", 40)):
            await engine.create_sale(name, name=name, capacity=5, hold_ms=hold_ms)
        await engine.reserve("long", buyer="ann", quantity=1)
        await engine._sweeper.run()
        await engine._sweeper.run()
        engine._sweeper.wake("long")
        await engine._sweeper.run()
        assert [each for each in looked if each] == [["idle", "long", "quick"], ["long"]]
        # A hold of the quick one may have begun and run out since; of the others none.
        ticket = await engine.reserve("quick", buyer="ann", quantity=1)
        await until_expired(engine, ticket)
        assert await engine._sweeper.run() == 1
        assert looked[-1] == ["quick"]


async def until_expired(engine: Engine, ticket: Any) -> None:
    async with asyncio.timeout(10):
        while (await engine.ticket(ticket.id)).status is not Status.EXPIRED:
            await asyncio.sleep(0.002)
