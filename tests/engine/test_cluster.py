"""The engine on a Redis Cluster of six processes: sales on every node, slots and nodes that come and go meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shoppers
from clusters import hash_slot
from redis.crc import key_slot

from holdfast.engine import (
    ConfigurationError,
    Durability,
    DurabilityUnavailable,
    Engine,
    NotReady,
    Status,
    addresses,
)
from holdfast.engine.cluster import DEPLOYMENT_KEYS, SLOTS, Cluster, _Claim, _View
from holdfast.engine.connection import Elsewhere, NoReply, NotSent
from holdfast.engine.keys import deployment, slot_keys

SALES = [f"gig-{number}" for number in range(12)]


def connect(cluster: Any, tmp_path: Path, **options: Any) -> Engine:
    return Engine.connect(cluster.address(), store=f"sqlite:///{tmp_path / 'store.db'}", **options)


async def open_sales(engine: Engine, names: list[str], capacity: int = 100_000, hold_ms: int = 60_000) -> None:
    for name in names:
        await engine.create_sale(name, name=name, capacity=capacity, hold_ms=hold_ms)


def one_on_each(cluster: Any) -> list[str]:
    """A sale's name on each primary, in the order of the primaries."""
    nodes = {node: next(name for name in SALES if cluster.primary(name) is node) for node in cluster.primaries}
    return list(nodes.values())


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def counts(engine: Engine, sale: str) -> tuple[int, int, int]:
    (item,) = (await engine.sale(sale)).items
    return item.available, item.reserved, item.purchased


async def test_sales_are_sold_on_every_node(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        await open_sales(engine, SALES, capacity=10, hold_ms=400)
        assert {cluster.primary(name) for name in SALES} == set(cluster.primaries)

        async def sell(name: str) -> None:
            held = [await engine.reserve(name, buyer=f"b-{number}", quantity=1) for number in range(3)]
            await engine.confirm(held[0].id, buyer="b-0", reference="pay_1")
            await engine.cancel(held[1].id, buyer="b-1")

        await asyncio.gather(*map(sell, SALES))
        listed = await engine.sales(limit=500)
        assert {sale.id: sale.items[0].purchased for sale in listed.items} == dict.fromkeys(SALES, 1)

        async def all_expired() -> bool:
            return all([await counts(engine, name) == (9, 0, 1) for name in SALES])

        await until(all_expired)
        await engine.snapshot()
        assert (await engine.audit()).clean
        assert (await engine.readiness()).ready
        tickets = [ticket for name in SALES for ticket in (await engine.tickets(name)).items]
        assert {status: sum(t.status is status for t in tickets) for status in Status} == {
            Status.RESERVED: 0, Status.PURCHASED: 12, Status.CANCELLED: 12, Status.EXPIRED: 12
        }  # fmt: skip


async def test_nodes_without_the_names_that_are_preferred(
    server_binary: Any, start_cluster: Any, tmp_path: Path
) -> None:
    cluster = start_cluster(
        server_binary("installed"),
        replicas=0,
        settings={"cluster-preferred-endpoint-type": "hostname"},
        elsewhere={number: (f"127.0.0.{number + 1}", ()) for number in range(3)},
    )
    async with connect(cluster, tmp_path) as engine:
        assert sorted(server.place for server in engine._servers.all()) == [f"{n.host}:{n.port}" for n in cluster.nodes]
        names = one_on_each(cluster)
        await open_sales(engine, names)
        for name in names:
            to = next(node for node in cluster.primaries if node is not cluster.primary(name))
            await asyncio.to_thread(cluster.move, name, to)
            await engine.reserve(name, buyer="ann", quantity=1)
        assert len(engine._servers.all()) == 3


async def test_a_node_alone_is_no_server(cluster: Any, tmp_path: Path) -> None:
    for node in cluster.primaries:
        address = f"redis://127.0.0.1:{node.port}/0"
        with pytest.raises(ConfigurationError, match=r"is one node of a cluster.*give redis\+cluster://"):
            async with Engine.connect(address, store=f"sqlite:///{tmp_path / 'store.db'}"):
                pass


async def test_every_node_announces_its_expiries(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(Engine, "_heard", lambda self, ticket: heard.append(ticket.partition(".")[0]))
    async with connect(cluster, tmp_path) as engine:
        names = one_on_each(cluster)
        await open_sales(engine, names, hold_ms=150)
        for name in names:
            await engine.reserve(name, buyer="ann", quantity=2)

        async def all_heard() -> bool:
            return set(heard) == set(names)

        await until(all_heard)


async def test_a_call_outlasts_the_move_of_its_slot(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        (name, *_) = one_on_each(cluster)
        await open_sales(engine, [name], capacity=10)
        await engine.reserve(name, buyer="ann", quantity=1)
        for keys in (1, 2, 3, 4):
            to = next(node for node in cluster.primaries if node is not cluster.primary(name))
            old = cluster.begin_move(name, to)
            # Some keys here and some there: Redis tells the scripts to try again, and their callers hear nothing of it.
            cluster.carry(name, old, to, keys=keys)
            waiting = asyncio.create_task(engine.reserve(name, buyer=f"bob-{keys}", quantity=1))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            while cluster.carry(name, old, to):
                pass
            cluster.end_move(name, old, to)
            assert (await waiting).status is Status.RESERVED
        assert await counts(engine, name) == (5, 5, 0)
        await engine.snapshot()
        assert (await engine.audit()).clean


async def test_it_is_ready_while_the_slot_of_its_marker_moves(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        server = engine._servers.all()[0]
        slot = key_slot(engine._servers.deployment_key(server).encode())
        to = next(node for node in cluster.primaries if node is not cluster.primary(slot))
        old = cluster.begin_move(slot, to)
        assert (await engine.readiness()).ready
        assert cluster.carry(slot, old, to) == 1
        assert (await engine.readiness()).ready
        cluster.end_move(slot, old, to)
        assert (await engine.readiness()).ready


async def test_slots_move_while_everybody_buys(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        names = one_on_each(cluster)
        await open_sales(engine, names)
        async with shoppers.Shoppers(engine, names, ("memory", "replica", "stored")) as busy:
            for name in names:
                await busy.more(name)
                nodes = cluster.primaries
                to = nodes[(nodes.index(cluster.primary(name)) + 1) % len(nodes)]
                await asyncio.to_thread(cluster.move, name, to, keys=1)
                await busy.more(name)
        # The move was shorter than anybody's patience.
        assert not busy.put_off, busy.put_off
        await shoppers.kept(engine, busy, "memory")


async def test_slots_move_as_valkey_moves_them(valkey_cluster: Any, tmp_path: Path) -> None:
    cluster = valkey_cluster
    async with connect(cluster, tmp_path) as engine:
        names = one_on_each(cluster)
        await open_sales(engine, names)
        async with shoppers.Shoppers(engine, names) as busy:
            for name in names:
                await busy.more(name)
                nodes = cluster.primaries
                to = nodes[(nodes.index(cluster.primary(name)) + 1) % len(nodes)]
                await asyncio.to_thread(cluster.migrate, name, to)
                await busy.more(name)
        assert not busy.put_off, busy.put_off
        await shoppers.kept(engine, busy, "memory")


async def test_scripts_that_were_flushed_are_loaded_again(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        names = one_on_each(cluster)
        await open_sales(engine, names)
        for node in cluster.primaries:
            node.ask("SCRIPT", "FLUSH")
        for name in names:
            await engine.reserve(name, buyer="ann", quantity=1)


@pytest.mark.timeout(60)
async def test_what_was_moved_to_a_node_that_hangs_holds_nobody_up(start_cluster: Any) -> None:
    cluster = start_cluster(replicas=0, node_timeout_ms=60_000)
    old, hanging, well = cluster.primaries
    nodes = Cluster(addresses.read(cluster.address()))
    await nodes.start()
    try:
        names = [name for name in SALES if cluster.primary(name) in (old, well)]
        moved = [name for name in names if cluster.primary(name) is old]
        assert len(moved) > 2
        for name in moved:
            cluster.move(name, hanging)
        hanging.pause()
        commands = [(name, ("HGET", slot_keys(name).sale, "epoch")) for name in names]
        async with asyncio.timeout(4):
            replies = await nodes.scatter(commands)
        for name, reply in zip(names, replies, strict=True):
            assert isinstance(reply, NoReply) if name in moved else reply is None
    finally:
        hanging.resume()
        await nodes.close()


@pytest.mark.timeout(60)
async def test_the_memory_of_others_is_looked_at_beside_a_node_that_hangs(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(replicas=0, node_timeout_ms=60_000)
    async with connect(cluster, tmp_path) as engine:
        hanging, full, well = one_on_each(cluster)
        await open_sales(engine, [hanging, full, well])
        cluster.primary(hanging).pause()
        try:
            cluster.primary(full).ask("CONFIG", "SET", "maxmemory", "1mb")
            async with asyncio.timeout(4):
                with pytest.raises(NoReply):
                    await engine._memory.run()
            with pytest.raises(NotReady, match="reserving goes on"):
                await engine.reserve(full, buyer="ann", quantity=1)
            await engine.reserve(well, buyer="ann", quantity=1)
        finally:
            cluster.nodes[0].resume()


@pytest.mark.timeout(60)
async def test_sales_are_listed_beside_a_node_that_hangs(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(replicas=0, node_timeout_ms=60_000)
    async with connect(cluster, tmp_path) as engine:
        await open_sales(engine, SALES, capacity=3)
        await engine.create_sale("wide", name="Wide", capacity=12, shards=3)
        hanging = cluster.primaries[0]
        away = {name for name in SALES if cluster.primary(name) is hanging}
        hanging.pause()
        try:
            async with asyncio.timeout(6):
                listed = (await engine.sales(limit=500)).items
        finally:
            hanging.resume()
        assert {sale.id for sale in listed if not sale.ready} - {"wide"} == away
        assert {sale.items[0].available for sale in listed if sale.ready and sale.id != "wide"} == {3}
        assert len(listed) == len(SALES) + 1


async def test_what_is_being_moved_is_asked_for_together(cluster: Any) -> None:
    nodes = Cluster(addresses.read(cluster.address()))
    await nodes.start()
    old, *_, to = cluster.primaries
    names = [name for name in SALES if cluster.primary(name) is old]
    try:
        for name in names:
            cluster.begin_move(name, to)
            to.ask_all(("ASKING",), ("SET", slot_keys(name).sale, name))
        commands = [(name, ("GET", slot_keys(name).sale)) for name in SALES]
        told = await nodes.clocked(commands)
        assert [reply for _, reply in told] == [name.encode() if name in names else None for name in SALES]
        assert all(now > 0 for now, _ in told)
    finally:
        for name in names:
            while cluster.carry(name, old, to):
                pass
            cluster.end_move(name, old, to)
        await nodes.close()


@pytest.mark.timeout(120)
async def test_a_primary_dies_and_its_replica_sells_on(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(node_timeout_ms=1_000)
    async with connect(cluster, tmp_path) as engine:
        away, *others = one_on_each(cluster)
        await open_sales(engine, [away, *others])
        async with shoppers.Shoppers(engine, [away, *others], ("memory", "replica", "stored")) as busy:
            await busy.more(away)
            old, (replica,) = cluster.primary(away), cluster.replicas(away)
            # Nobody takes over until the others have sold.
            replica.pause()
            old.kill()
            for name in others:
                await busy.more(name)
            replica.resume()
            await asyncio.to_thread(cluster.wait_failed_over, away, old)
            await shoppers.well(engine)
            await busy.more(away)
            # It comes back as a replica of the one that has taken its place.
            await asyncio.to_thread(old.restart)
            await asyncio.to_thread(cluster.wait_ok)
            await busy.more(away)
        await shoppers.kept(engine, busy, "replica", "stored")


@pytest.mark.parametrize("away", ["a primary", "a replica"])
@pytest.mark.timeout(120)
async def test_a_start_waits_for_no_node_whatever_it_is_to_do(start_cluster: Any, tmp_path: Path, away: str) -> None:
    cluster = start_cluster(node_timeout_ms=60_000)
    first = cluster.primaries[0]
    mine = [name for name in SALES if cluster.primary(name) is first]
    healthy = [name for name in SALES if cluster.primary(name) is not first]
    async with connect(cluster, tmp_path, durability=Durability.REPLICA) as engine:
        await open_sales(engine, [mine[0], healthy[0]])
    (first if away == "a primary" else cluster.replicas(first)[0]).kill()
    async with connect(cluster, tmp_path, durability=Durability.REPLICA, recover=True) as engine:
        # What the healthy nodes can give is there, and what the other cannot is refused.
        await engine.create_sale(healthy[1], name="New", capacity=5, durability=Durability.REPLICA)
        for name in healthy[:2]:
            held = await engine.reserve(name, buyer="ann", quantity=1)
            assert (await engine.confirm(held.id, buyer="ann")).durability is Durability.REPLICA
        with pytest.raises((NotReady, DurabilityUnavailable)):
            await engine.create_sale(mine[1], name="New", capacity=5, durability=Durability.REPLICA)


@pytest.mark.timeout(120)
async def test_a_primary_that_was_away_is_not_believed(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(node_timeout_ms=1_000)
    async with connect(cluster, tmp_path) as engine:
        (name, *_) = one_on_each(cluster)
        await open_sales(engine, [name], capacity=5)
        first = await engine.reserve(name, buyer="ann", quantity=1)
        await engine.confirm(first.id, buyer="ann", durability=Durability.STORED)
        old = cluster.primary(name)
        old.pause()
        await asyncio.to_thread(cluster.wait_failed_over, name, old)
        await shoppers.well(engine)
        held = [await engine.reserve(name, buyer=f"b-{number}", quantity=1) for number in range(4)]
        # What it was asked before it stopped it answers now, and for a moment it takes itself for the primary.
        old.resume()
        for ticket, number in zip(held, range(4), strict=True):
            await engine.confirm(ticket.id, buyer=f"b-{number}")
        assert await counts(engine, name) == (0, 0, 5)
        await asyncio.to_thread(cluster.wait_ok)
        assert await counts(engine, name) == (0, 0, 5)
        await engine.snapshot()
        assert (await engine.audit()).clean


@pytest.mark.timeout(120)
@pytest.mark.parametrize("looks", [True, False])
async def test_a_process_that_stood_still_meets_its_node_anew(
    looks: bool, start_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = start_cluster(primaries=3, replicas=1)
    keys = slot_keys("gig")
    async with connect(cluster, tmp_path) as awake, connect(cluster, tmp_path) as asleep:
        await open_sales(awake, ["gig"], capacity=3)
        await asleep.reserve("gig", buyer="zoe", quantity=1)
        await awake.snapshot()
        # From here on it hears of nothing.
        await asleep._background.stop()
        first = cluster.primary("gig")
        stored = {key: first.ask("DUMP", key) for key in (keys.sale, keys.tickets, keys.buyers, keys.ledger)}
        second = await asyncio.to_thread(cluster.fail_over, "gig")
        for buyer in ("ann", "bob"):
            held = await awake.reserve("gig", buyer=buyer, quantity=1)
            await awake.confirm(held.id, buyer=buyer, durability=Durability.STORED)
        await asyncio.to_thread(cluster.wait_ok)
        # Nobody votes for the same pair twice within two node time-outs.
        first.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        await asyncio.to_thread(cluster.wait_failed_over, "gig", second)
        # The replica had not been sent the last of it.
        first.ask_all(*(("RESTORE", key, 0, dump, "REPLACE") for key, dump in stored.items()))
        if looks:
            await asleep._servers.follow()
        else:
            monkeypatch.setattr("holdfast.engine.cluster.STALE_S", 0.1)
        with pytest.raises(NotReady, match="knows less"):
            await asleep.reserve("gig", buyer="eve", quantity=1)


async def test_a_later_epoch_is_no_other_server(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        nodes, node = engine._servers, min(cluster.primaries, key=lambda node: cluster.seats()[node].epoch)
        name = next(name for name in SALES if cluster.primary(name) is node)
        await open_sales(engine, [name])
        before, server = nodes.generation(name), nodes.of(name)
        waiting = asyncio.create_task(server.call("WAIT", 99, 1500))
        # As when it is given more slots. What is under way there is not given up, and the sale is checked again.
        assert node.ask("CLUSTER", "BUMPEPOCH").startswith(b"BUMPED")

        async def noticed() -> bool:
            return nodes.generation(name) != before

        await until(noticed)
        await engine.reserve(name, buyer="ann", quantity=1)
        assert nodes.of(name) is server
        assert await waiting == 1


@pytest.mark.timeout(120)
async def test_a_primary_that_comes_back_empty_sells_nothing(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(replicas=0, node_timeout_ms=1_000)
    async with connect(cluster, tmp_path) as engine:
        away, *others = one_on_each(cluster)
        await open_sales(engine, [away, *others], capacity=3)
        bought = await engine.reserve(away, buyer="ann", quantity=1)
        await engine.confirm(bought.id, buyer="ann", durability=Durability.STORED)
        node = cluster.primary(away)
        node.kill()
        node.forget()
        for name in others:
            await engine.reserve(name, buyer="ann", quantity=1)
        node.restart()
        await asyncio.to_thread(cluster.wait_ok)
        with pytest.raises(NotReady):
            await engine.reserve(away, buyer="bob", quantity=1)
        assert not (await engine.readiness()).ready
        for name in others:
            await engine.reserve(name, buyer="bob", quantity=1)
        await engine.recover([away])
        assert await counts(engine, away) == (2, 0, 1)
        await engine.reserve(away, buyer="bob", quantity=2)
        assert (await engine.readiness()).ready


@pytest.mark.timeout(120)
async def test_a_node_is_added_while_everybody_buys(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(replicas=0)
    async with connect(cluster, tmp_path) as engine:
        names = one_on_each(cluster)
        await open_sales(engine, names)
        async with shoppers.Shoppers(engine, names) as busy:
            new = await asyncio.to_thread(cluster.add_node)
            await asyncio.to_thread(cluster.rebalance, new, 60)
            for name in names[:2]:
                await asyncio.to_thread(cluster.move, name, new)
            for name in names:
                await busy.more(name)
        assert not busy.put_off, busy.put_off
        assert [cluster.primary(name) is new for name in names] == [True, True, False]
        await shoppers.kept(engine, busy, "memory")


@pytest.mark.timeout(120)
async def test_a_node_with_one_slot(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(replicas=0)
    (*_, slot) = dict.fromkeys(hash_slot(deployment(number)) for number in range(DEPLOYMENT_KEYS))
    async with connect(cluster, tmp_path) as engine:
        new = await asyncio.to_thread(cluster.add_node)
        await asyncio.to_thread(cluster.move, slot, new)

        async def known() -> bool:
            return f"127.0.0.1:{new.port}" in {server.place for server in engine._servers.all()}

        await until(known)
        assert (await engine.readiness()).ready
        assert (await engine.condition()).redis
    async with connect(cluster, tmp_path) as engine:
        assert (await engine.readiness()).ready
    assert new.ask("KEYS", "*") == [deployment(DEPLOYMENT_KEYS - 1).encode()]


async def test_a_node_that_was_wrongly_named_leaves(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        nodes = engine._servers
        owner, slot = nodes.of("gig"), hash_slot("gig")
        replica = next(node for node in cluster.nodes if node not in cluster.primaries)
        for port in (replica.port, int(owner.place.rpartition(":")[2])):
            nodes._elsewhere(owner, Elsewhere(slot, ("127.0.0.1", port), once=False))
        assert len(nodes.all()) == 4

        async def left() -> bool:
            return len(nodes.all()) == 3

        await until(left)
        assert (await engine.readiness()).ready


async def test_a_look_makes_no_connections(cluster: Any) -> None:
    def made() -> list[int]:
        return [node.info("stats")["total_connections_received"] for node in cluster.nodes]

    nodes = Cluster(addresses.read(cluster.address()))
    await nodes.start()
    try:
        before = made()
        for _ in range(3):
            await nodes.follow()
        # Ours, with which they are asked.
        assert [now - then for now, then in zip(made(), before, strict=True)] == [1] * 6
        for node in cluster.nodes:
            node.ask("CLIENT", "KILL", "TYPE", "normal")
        await nodes.follow()
        assert len(nodes._told) == 6
    finally:
        await nodes.close()


async def test_others_are_asked_when_none_of_the_first_tells(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.cluster.ASKED_MAX", 1)
    cluster = start_cluster(replicas=0, node_timeout_ms=60_000)
    nodes = Cluster(addresses.read(cluster.address()))
    await nodes.start()
    first = next(node for node in cluster.nodes if nodes.all()[0].place.endswith(f":{node.port}"))
    first.pause()
    try:
        await nodes.follow()
    finally:
        first.resume()
        await nodes.close()


async def test_a_node_that_has_left_is_forgotten(cluster: Any, tmp_path: Path) -> None:
    async with connect(cluster, tmp_path) as engine:
        await open_sales(engine, ["gig"])
        left = engine._servers.of("gig")
        await asyncio.to_thread(cluster.fail_over, "gig")
        await engine.reserve("gig", buyer="ann", quantity=1)

        async def forgotten() -> bool:
            return left not in engine._servers._servers.values()

        await until(forgotten)
        assert len(engine._servers.all()) == 3


@pytest.mark.timeout(120)
async def test_a_node_that_was_reset_is_not_believed(start_cluster: Any, tmp_path: Path) -> None:
    cluster = start_cluster(replicas=0, node_timeout_ms=60_000)
    new = await asyncio.to_thread(cluster.add_node)
    id, members = cluster.seats()[new].id, cluster.primaries
    async with connect(cluster, tmp_path) as engine:
        await open_sales(engine, ["gig"])
        for node in members:
            node.ask("CLUSTER", "FORGET", id)
        new.ask("CLUSTER", "RESET", "HARD")
        for node in members:
            node.pause()
        before = engine._servers.all()
        try:
            # Nobody else tells: without slots, it is no reason to forget who has them.
            with pytest.raises(NotSent):
                await engine._servers.follow()
        finally:
            for node in members:
                node.resume()
        assert engine._servers.all() == before
        await engine.reserve("gig", buyer="ann", quantity=1)


@pytest.mark.timeout(120)
async def test_another_cluster_at_a_seeds_place_is_not_believed(
    start_cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = start_cluster(replicas=0), start_cluster(primaries=1, replicas=0)
    (foreign,) = theirs.nodes
    foreign.kill()
    # Its epochs are later than any of ours.
    known = foreign.directory / "nodes.conf"
    known.write_text(known.read_text().replace(" 1 connected", " 90 connected").replace("Epoch 1 ", "Epoch 90 "))
    address = ours.address([*ours.nodes, foreign])
    async with Engine.connect(address, store=f"sqlite:///{tmp_path / 'store.db'}") as engine:
        await open_sales(engine, ["gig"])
        await asyncio.to_thread(foreign.restart)

        async def noticed() -> bool:
            return str(foreign.port) in caplog.text

        await until(noticed)
        await engine.reserve("gig", buyer="ann", quantity=1)
        assert len(engine._servers.all()) == 3
        await engine._servers.follow()
    assert caplog.text.count(f"{foreign.port} is none of this cluster") == 1


def view(node: str, *claims: tuple[str, int]) -> _View:
    """What a node tells: all slots are claimed by each of these, in this epoch."""
    ids = frozenset(name.encode() for name in "abc")
    return _View(node.encode(), ids, tuple((0, SLOTS - 1, _Claim(epoch, of.encode(), (of, 1))) for of, epoch in claims))


@pytest.mark.parametrize(
    ("looks", "owner"),
    [
        ([[view("a", ("a", 5)), view("b", ("b", 7))]], "b:1"),
        ([[view("b", ("b", 7)), view("a", ("a", 5))]], "b:1"),
        # Who has it is silent, and somebody was away for longer.
        ([[view("b", ("b", 7))], [view("a", ("a", 5))]], "b:1"),
        ([[view("b", ("b", 7))], [view("a")]], "b:1"),
        ([[view("b", ("b", 7))], [view("a", ("c", 8))]], "c:1"),
        # It says itself that it has it no longer.
        ([[view("b", ("b", 7))], [view("a", ("a", 5)), view("b", ("a", 5))]], "a:1"),
        # Somebody has heard of its later epoch, and not of what it has given away.
        ([[view("a", ("a", 7)), view("b", ("a", 7)), view("c", ("b", 8))]], "a:1"),
    ],
)
async def test_who_is_right(looks: list[list[_View]], owner: str) -> None:
    nodes = Cluster(addresses.read("redis+cluster://a:1"))
    for views in looks:
        nodes._take(views)
    assert [server.place for server in nodes.all()] == [owner]
    assert nodes.of("gig").place == owner
    await nodes.close()
