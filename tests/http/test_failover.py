"""A primary is killed under those who buy: what they see of it through the client, the stream and the load harness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import Durability, Engine, Status, Ticket
from holdfast.engine.keys import tag
from holdfast.http.app import create_app
from holdfast.http.client import Client
from holdfast.http.context import AppConfig
from holdfast.http.load.run import Target, run
from holdfast.http.load.scenario import scenario_of
from holdfast.http.server import SERVER_OPTIONS

from .conftest import OPERATOR_TOKEN, DirectTestServer
from .test_load import Quiet, wrong

#: Seconds for all of it, with the failover.
SECONDS = 60.0


@asynccontextmanager
async def serving(address: str, directory: Path, patience_s: float | None = None) -> AsyncIterator[str]:
    """A server on Redis servers that may fail over, with a store of its own; its address.

    Parameters
    ----------
    patience_s: seconds for which it sends calls again before their callers hear of it; None is as always.
    """
    store = f"sqlite:///{directory / 'store.db'}"
    async with Engine.connect(address, store=store, snapshot_ms=100, heal=True) as engine:
        if patience_s is not None:
            engine._servers.patience_s = patience_s
        server = DirectTestServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)))
        await server.start_server(**SERVER_OPTIONS)
        try:
            yield str(server.make_url("/")).rstrip("/")
        finally:
            await server.close()


@pytest.mark.parametrize("patience_s", [None, 0.2], ids=["the server waits", "the client waits"])
async def test_no_error_reaches_a_client_that_a_retry_could_have_hidden(
    start_sentinels: Callable[..., Any], tmp_path: Path, patience_s: float | None
) -> None:
    group = await asyncio.to_thread(start_sentinels)
    async with (
        serving(group.address(), tmp_path, patience_s) as url,
        Client(url, operator_token=OPERATOR_TOKEN) as client,
    ):
        await client.create_sale("gig", name="The Gig", capacity=10_000, hold_ms=600_000)
        paid: list[Ticket] = []
        killed = asyncio.Event()
        after = 0

        async def buy(lane: int) -> None:
            nonlocal after
            number = 0
            # Some before the primary is killed, some while it is gone, some with the next one.
            while after < 40:
                number += 1
                buyer = f"buyer-{lane}-{number}"
                ticket = await client.reserve("gig", buyer=buyer, quantity=1)
                paid.append(await client.confirm(ticket.id, buyer=buyer, durability=Durability.STORED))
                after += killed.is_set()

        async def kill() -> None:
            while len(paid) < 20:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(group.primary().kill)
            killed.set()

        async with asyncio.timeout(SECONDS):
            await asyncio.gather(kill(), *(buy(lane) for lane in range(8)))
        assert {ticket.status for ticket in paid} == {Status.PURCHASED}
        assert len({ticket.id for ticket in paid}) == len(paid)
        for ticket in paid:
            assert (await client.ticket(ticket.id)).status is Status.PURCHASED


async def test_a_load_on_shards_goes_through_a_failover_and_so_does_a_reader(
    start_cluster: Callable[..., Any], tmp_path: Path
) -> None:
    cluster = await asyncio.to_thread(start_cluster)
    fields = {"buyers": 300, "capacity": 150, "within_ms": 6_000, "hold_ms": 20_000, "think_ms": 100, "retry": 1.0}
    # Whoever gets a ticket pays, so that all are sold: nobody is left who gave up while it was away.
    faithful = {"walk_away": 0.0, "cancel": 0.0, "hang_up": 0.0, "failover": True, "durability": "stored"}
    scenario = scenario_of("hot-sale", None, fields | faithful)
    heard: list[tuple[str, int, int]] = []

    async with serving(cluster.address(), tmp_path, 0.2) as url, Client(url, operator_token=OPERATOR_TOKEN) as client:
        running = asyncio.create_task(run(scenario, Target(url, token=OPERATOR_TOKEN), Quiet(), asyncio.Event()))
        async with asyncio.timeout(SECONDS):
            while not (page := await client.sales()).items or sum(i.purchased for i in page.items[0].items) < 20:
                await asyncio.sleep(0.05)
            sale = page.items[0].id

            async def follow() -> None:
                async for each in client.transitions(sale, after=(0, 0)):
                    heard.append((each.slot, each.epoch, each.sequence))

            following = asyncio.create_task(follow())
            while not heard:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(cluster.primary(tag(f"{sale}~1")).kill)
            done = await running
            assert wrong(done) == {}
            assert done.verdict.good
            ended = await client.sale(sale)
            assert (ended.items[0].purchased, ended.items[0].in_transit) == (150, 0)
            assert done.figures.outcomes["reserve"]["not_ready"] > 0
            # The reader is where the ledger is, without having been told, and has heard nothing twice.
            while {(slot, epoch): n for slot, epoch, n in heard}.get((f"{sale}~1", 2), 0) == 0:
                await asyncio.sleep(0.05)
            following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert len(set(heard)) == len(heard)
        for slot in {slot for slot, _, _ in heard}:
            numbers = [(epoch, n) for of, epoch, n in heard if of == slot]
            assert numbers == sorted(numbers)
