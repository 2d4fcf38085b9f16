"""The engine on a primary that sentinels watch: it goes wherever they say that the primary is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import shoppers

from holdfast.engine import ConfigurationError, Durability, Engine, Status

SALES = ["gig", "show"]


def connect(group: Any, tmp_path: Path, **options: Any) -> Engine:
    address = options.pop("address", group.address())
    return Engine.connect(address, store=f"sqlite:///{tmp_path / 'store.db'}", **options)


async def open_sales(engine: Engine) -> None:
    for name in SALES:
        await engine.create_sale(name, name=name, capacity=100_000, hold_ms=60_000)


async def test_it_sells_on_the_primary_that_the_sentinels_name(start_sentinels: Any, tmp_path: Path) -> None:
    group = start_sentinels(replicas=1, password="p@ss/word", sentinel_password="other")
    address = group.address(db=2).replace("p@ss/word", "p%40ss%2Fword")
    async with connect(group, tmp_path, address=address) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5, hold_ms=100)
        bought = await engine.reserve("gig", buyer="ann", quantity=1)
        await engine.confirm(bought.id, buyer="ann", durability=Durability.REPLICA)
        await engine.reserve("gig", buyer="ann", quantity=2)
        async with asyncio.timeout(10):
            while (await engine.sale("gig")).items[0].reserved:
                await asyncio.sleep(0.02)
        assert (await engine.ticket(bought.id)).status is Status.PURCHASED
        assert (await engine.audit()).clean


async def test_sentinels_that_do_not_know_the_name(sentinels: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nobody"):
        async with connect(sentinels, tmp_path, address=sentinels.address().replace("/holdfast", "/nobody")):
            pass


@pytest.mark.timeout(120)
async def test_a_primary_dies_and_a_replica_sells_on(start_sentinels: Any, tmp_path: Path) -> None:
    group = start_sentinels(down_after_ms=1_500)
    # Any of the two may be promoted, so both must have what is to survive.
    async with connect(group, tmp_path, replicas=2) as engine:
        await open_sales(engine)
        async with shoppers.Shoppers(engine, SALES, ("memory", "replica", "stored")) as busy:
            await busy.more("gig")
            old = group.primary()
            old.kill()
            await asyncio.to_thread(group.wait_failed_over, old)
            await shoppers.well(engine)
            await busy.more("gig")
            await busy.more("show")
        await shoppers.kept(engine, busy, "replica", "stored")


@pytest.mark.timeout(120)
async def test_a_primary_that_was_away_is_not_believed(start_sentinels: Any, tmp_path: Path) -> None:
    group = start_sentinels(down_after_ms=1_500)
    async with connect(group, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5, hold_ms=60_000)
        first = await engine.reserve("gig", buyer="ann", quantity=1)
        await engine.confirm(first.id, buyer="ann", durability=Durability.STORED)
        old = group.primary()
        old.pause()
        await asyncio.to_thread(group.wait_failed_over, old)
        await shoppers.well(engine)
        held = [await engine.reserve("gig", buyer=f"b-{number}", quantity=1) for number in range(4)]
        # Sentinels lead it to the new primary only after some seconds: until then there are two that take writes.
        old.resume()
        assert old.info("replication")["role"] == "master"
        for number, ticket in enumerate(held):
            await engine.confirm(ticket.id, buyer=f"b-{number}")
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.purchased) == (0, 5)
        assert old.ask("HGET", "hf:{gig}:sale", "sequence") == b"3"
        await engine.snapshot()
        assert (await engine.audit()).clean


@pytest.mark.timeout(120)
async def test_it_listens_to_the_next_primary_after_a_silent_death(start_sentinels: Any, tmp_path: Path) -> None:
    group = start_sentinels()
    async with connect(group, tmp_path) as engine:
        await engine._listeners.subscribed()
        old = group.primary()
        # Its connections stay open, and nothing comes on them.
        old.pause()
        new = await asyncio.to_thread(group.wait_failed_over, old)
        async with asyncio.timeout(20):
            while not new.ask("PUBSUB", "NUMPAT"):
                await asyncio.sleep(0.05)
        assert old.paused


@pytest.mark.timeout(120)
async def test_it_follows_a_failover_by_order(start_sentinels: Any, tmp_path: Path) -> None:
    group = start_sentinels(min_replicas_to_write=1)
    async with connect(group, tmp_path, replicas=2) as engine:
        await open_sales(engine)
        async with shoppers.Shoppers(engine, SALES, ("memory", "stored")) as busy:
            await busy.more("gig")
            new = await asyncio.to_thread(group.fail_over)
            async with asyncio.timeout(20):
                # Redis has what the engine asks of the new one: scripts were loaded there.
                while "evalsha" not in {each["cmd"] for each in new.client().client_list()}:
                    await asyncio.sleep(0.05)
            await shoppers.well(engine)
            await busy.more("gig")
            await busy.more("show")
        await shoppers.kept(engine, busy, "stored")


@pytest.mark.timeout(120)
async def test_it_follows_while_a_replica_does_not(start_sentinels: Any, tmp_path: Path) -> None:
    # By its address the old primary comes last: of two that are told with the same epoch it would be taken.
    group = start_sentinels(down_after_ms=20_000, elsewhere={0: ("127.0.0.2", ())})
    leader = group.sentinels[0]

    def told(reply: list[bytes]) -> dict[bytes, bytes]:
        return dict(zip(reply[::2], reply[1::2], strict=True))

    def promoted() -> int | None:
        replicas = map(told, leader.ask("SENTINEL", "REPLICAS", group.NAME))
        return next((int(each[b"port"]) for each in replicas if b"promoted" in each[b"flags"]), None)

    def named() -> set[int]:
        asked = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", group.NAME
        return {int(sentinel.ask(*asked)[1]) for sentinel in group.sentinels}

    # What the old one sells until then is lost; the store must not have it.
    async with connect(group, tmp_path, snapshot_ms=None) as engine:
        await open_sales(engine)
        async with asyncio.timeout(20):
            while not all(node.ask("EXISTS", f"hf:{{{sale}}}:sale") for node in group.nodes for sale in SALES):
                await asyncio.sleep(0.02)
        leader.ask("SENTINEL", "FAILOVER", group.NAME)
        async with asyncio.timeout(20):
            while (port := promoted()) is None:
                await asyncio.sleep(0)
            (slow,) = (node for node in group.nodes[1:] if node.port != port)
            slow.pause()
            while named() != {port}:
                await asyncio.sleep(0.02)
        (new,) = (node for node in group.nodes if node.port == port)
        before = new.ask("HGET", "hf:{gig}:sale", "sequence")
        async with asyncio.timeout(5):
            while new.ask("HGET", "hf:{gig}:sale", "sequence") == before:
                await engine.reserve("gig", buyer="ann", quantity=1)
                await asyncio.sleep(0.05)
        # The one that leads still waits for the other replica, and has the old address beside the new epoch.
        master = told(leader.ask("SENTINEL", "MASTER", group.NAME))
        assert b"failover_in_progress" in master[b"flags"]
        assert int(master[b"port"]) != port
