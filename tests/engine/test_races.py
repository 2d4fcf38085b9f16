"""Races on a real Redis: many at once, exactly so many winners."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import AllHeld, Engine, HoldfastError, LimitReached, SoldOut, Status, Ticket
from holdfast.engine.store import Cursor


async def outcome(call: Any) -> str:
    try:
        ticket: Ticket = await call
        return "replayed" if ticket.replayed else "ok"
    except HoldfastError as error:
        return error.code


@pytest.mark.parametrize("processes", [1, 3])
async def test_2000_buyers_100_tickets_exactly_100_winners(redis_server: Any, tmp_path: Path, processes: int) -> None:
    engines = [
        Engine.connect(redis_server.url, store=f"sqlite:///{tmp_path / 'store.db'}", secret="one for all of them")
        for _ in range(processes)
    ]
    for engine in engines:
        await engine.start()
    await engines[0].create_sale("gig", name="Gig", capacity=100)
    answers = await asyncio.gather(
        *(outcome(engines[at % processes].reserve("gig", buyer=f"b{at}", quantity=1)) for at in range(2000))
    )
    assert answers.count("ok") == 100
    assert answers.count("all_held") == 1900
    assert [(i.available, i.reserved) for i in (await engines[0].sale("gig")).items] == [(0, 100)]
    for engine in engines:
        await engine.close()


@pytest.mark.parametrize("seed", range(3))
async def test_confirm_cancel_and_expiry_in_the_same_millisecond(redis_server: Any, tmp_path: Path, seed: int) -> None:
    """Hundreds of tickets, each fired at from three sides around its deadline: exactly one side wins each."""
    chance = random.Random(seed)
    async with Engine.connect(redis_server.url, store=f"sqlite:///{tmp_path / 'store.db'}", sweep=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1000, hold_ms=120)
        tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(300)))
        ends: dict[str, list[str]] = {}

        async def fire(at: int, ticket: Ticket) -> None:
            seconds, micros = await engine._servers.one.call("TIME")
            now = int(seconds) * 1000 + int(micros) // 1000
            # Around the deadline, some a little early, some a little late.
            await asyncio.sleep((ticket.expires_at - now + chance.uniform(-4, 4)) / 1000)
            sides = [
                outcome(engine.confirm(ticket.id, buyer=f"b{at}")),
                outcome(engine.cancel(ticket.id, buyer=f"b{at}")),
                engine._sweeper.sweep("gig"),
            ]
            chance.shuffle(sides)
            said = await asyncio.gather(*sides)
            ends[ticket.id] = [answer for answer in said if isinstance(answer, str)]

        await asyncio.gather(*(fire(at, ticket) for at, ticket in enumerate(tickets)))
        while (await engine._sweeper.sweep("gig")) or (await engine.sale("gig")).items[0].reserved:
            await asyncio.sleep(0.005)
        await engine.snapshot()
        assert engine._snapshot.alarms == []
        told: dict[str, list[str]] = {ticket.id: [] for ticket in tickets}
        for entry in await engine._store.ledger("gig", Cursor(0, 0), 10_000):
            for transition in entry.transitions():
                if transition.kind in "pcx":
                    told[f"gig.{transition.ticket}"].append(transition.kind)
        sold = 0
        for ticket in tickets:
            wins = ends[ticket.id].count("ok")
            (kind,) = told[ticket.id]
            assert wins == (0 if kind == "x" else 1)
            status = (await engine.ticket(ticket.id)).status
            assert status is {"p": Status.PURCHASED, "c": Status.CANCELLED, "x": Status.EXPIRED}[kind]
            sold += kind == "p"
        assert [(i.available, i.reserved, i.purchased) for i in (await engine.sale("gig")).items] == [
            (1000 - sold, 0, sold)
        ]
        assert {kind for kinds in told.values() for kind in kinds} >= {"x"}


async def test_random_traffic_from_several_processes_leaves_everything_in_agreement(
    redis_server: Any, tmp_path: Path
) -> None:
    chance = random.Random(20)
    engines = [
        Engine.connect(redis_server.url, store=f"sqlite:///{tmp_path / 'store.db'}", secret="one for all of them")
        for _ in range(3)
    ]
    for engine in engines:
        await engine.start()
    await engines[0].create_sale("gig", name="Gig", capacity=60, hold_ms=150, max_per_buyer=6)
    bought: list[Ticket] = []

    async def buyer(at: int) -> None:
        for _ in range(12):
            engine = chance.choice(engines)
            try:
                ticket = await engine.reserve("gig", buyer=f"b{at % 25}", quantity=chance.randint(1, 3))
            except (AllHeld, SoldOut, LimitReached):
                await asyncio.sleep(chance.random() * 0.02)
                continue
            match chance.choice(["pay", "pay", "cancel", "walk away"]):
                case "pay":
                    await asyncio.sleep(chance.random() * 0.16)
                    with contextlib.suppress(HoldfastError):
                        bought.append(await chance.choice(engines).confirm(ticket.id, buyer=f"b{at % 25}"))
                case "cancel":
                    await outcome(chance.choice(engines).cancel(ticket.id, buyer=f"b{at % 25}"))

    await asyncio.gather(*(buyer(at) for at in range(60)))
    while (await engines[0].sale("gig")).items[0].reserved:
        await asyncio.sleep(0.01)
    for engine in engines:
        await engine.close()
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with Engine.connect(redis_server.url, store=store, secret="one for all of them") as engine:
        (item,) = (await engine.sale("gig")).items
        sold = sum(ticket.quantity for ticket in bought)
        assert (item.available, item.reserved, item.purchased) == (60 - sold, 0, sold)
        page = await engine.tickets("gig", limit=500)
        assert page.next is None
        assert {t.id for t in page.items if t.status is Status.PURCHASED} == {t.id for t in bought}
        assert engine._snapshot.alarms == []


async def test_everything_runs_on_a_server_in_cluster_mode(servers: Any, tmp_path: Path) -> None:
    """Every key of a call in one slot of the cluster: leases, notifications, dropping and recovery included."""
    url = servers("cluster").empty()
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with Engine.connect(url, store=store, snapshot_ms=20, retention_ms=0) as engine:
        await engine._listeners.subscribed()
        sales = ["one", "two", "three", "four"]
        for sale in sales:
            await engine.create_sale(sale, name=sale, capacity=30, hold_ms=250)
        expiring = engine.expirations(from_start=True)
        tickets = await asyncio.gather(
            *(engine.reserve(sale, buyer=f"b{at}", quantity=1) for sale in sales for at in range(30))
        )
        await asyncio.gather(
            *(engine.confirm(t.id, buyer=f"b{at % 30}") for at, t in enumerate(tickets) if at % 3 == 0)
        )
        await asyncio.gather(*(engine.cancel(t.id, buyer=f"b{at % 30}") for at, t in enumerate(tickets) if at % 3 == 1))
        async with asyncio.timeout(10):
            told = {(await anext(expiring)).ticket for _ in range(40)}
        assert told == {t.id for at, t in enumerate(tickets) if at % 3 == 2}
        await expiring.aclose()  # type: ignore[attr-defined]
        for sale in sales:
            assert [(i.available, i.purchased) for i in (await engine.sale(sale)).items] == [(20, 10)]
        await engine.snapshot()
        assert (await engine.recover(sales)).clean
        for sale in sales:
            assert [(i.available, i.purchased) for i in (await engine.sale(sale)).items] == [(20, 10)]
        assert (await engine.readiness()).ready
