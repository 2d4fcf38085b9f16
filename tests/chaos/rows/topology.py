"""Rows 5, 6 and 7 on Redis Cluster and Sentinel: a node is cut off, a replica takes over, slots move."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect
from collections.abc import Iterator, Sequence

from clusters import Cluster, Node

from holdfast.engine.keys import slot_keys

from .. import groups
from ..clients import SALES as ORDINARY
from ..clients import Habits, SaleSpec
from ..deployment import Deployment
from ..groups import Group
from ..history import Call, Operation, Outcome
from ..plan import ALL, STORED, Case, Run, now
from ..servers import until
from ..wires import PEERS, Wire
from .network import RARELY

#: The sale whose node has the trouble: it has units for everybody all along.
SALE = "large"

#: The primary that has it, of three.
NUMBER = 1

HABITS = Habits(levels=("memory", "replica", "stored"))

#: As everywhere, and one that is fought over by buyers of three shards, which lend each other the last units.
SALES = (*ORDINARY, SaleSpec("wide", {"general": 60}, 500, 6, shards=3))

#: Redis' words about a slot that is being moved: nobody's business.
INSIDE = ("TRYAGAIN", "MOVED ", "ASK ")


@contextlib.contextmanager
def _apart(kind: str, wire: Wire) -> Iterator[Group]:
    """A group whose node with `SALE` is at the other end of a wire, and all others are at this one."""
    there = (wire.host, wire.prefix)
    if kind == "Cluster":
        group = groups.cluster(host=PEERS, elsewhere={NUMBER: there})
    else:
        # Who is alone shall not sell for long.
        alone = {"min-replicas-max-lag": 1}
        group = groups.sentinels(host=PEERS, elsewhere={0: there}, min_replicas_to_write=1, settings=alone)
    try:
        yield group
    finally:
        group.kill()


async def _sells_again(run: Run, product: Deployment, since: int) -> None:
    """Waits until everything sells, and notes how long `SALE` did not, from the begin of the fault on."""
    assert run.load is not None
    after, operations = now(), run.load.history.operations
    await product.ready()

    async def sold() -> int | None:
        done = [
            each.ended or 0
            for each in operations
            if each.call is Call.RESERVE and each.sale == SALE and each.outcome is Outcome.DONE and each.begun >= after
        ]
        return min(done, default=None)

    run.recover_s.append((await until(f"{SALE} sells again", sold, pause=0.05) - since) / 1e9)
    # What the others have lost shows when they are asked for.
    await product.ready()


def _tell(run: Run) -> None:
    """Notes for how long anybody heard 503; nobody may hear what Redis says of slots on the move."""
    assert run.load is not None
    for name in (sale.id for sale in run.load.sales):
        stretches = _unsold([each for each in run.operations if each.sale == name])
        if stretches:
            run.remarks.append(f"'{name}' sold nothing and answered 503 for {max(stretches):.2f} s at the most")
    for each in run.operations:
        said = str(each.answer)
        if any(word in said for word in INSIDE):
            run.load.history.strange.append(f"client {each.client} heard {said}")


def _unsold(operations: Sequence[Operation]) -> list[float]:
    """Seconds in which 503 was heard and nothing else came of anything, each time."""
    done = sorted(each.ended for each in operations if each.outcome is Outcome.DONE and each.ended is not None)
    gaps: set[tuple[int, int]] = set()
    for each in operations:
        if each.status == 503 and each.ended is not None:
            at = bisect(done, each.ended)
            gaps.add((done[at - 1] if at else each.begun, done[at] if at < len(done) else each.ended))
    return [(until - since) / 1e9 for since, until in gaps]


async def _ends(run: Run, product: Deployment, since: int | None = None) -> None:
    """The end of a run, whose fault began at `since`; None where it is no fault but a move."""
    if since is not None:
        await _sells_again(run, product, since)
    await run.over(product)
    _tell(run)


# 5: partition ---------------------------------------------------------------------------------------------------------


async def _cut_off(run: Run, kind: str, alone: bool) -> None:
    """Alone: the primary is cut off from everybody. Otherwise from its peers only, and the product is on its side."""
    with Wire() as wire, _apart(kind, wire) as group:
        async with Deployment(run.directory, group, workers=2, sales=SALES) as product:
            load = run.clients(product, HABITS)
            await load.more(40)
            load.phase("fault")
            old, since = group.primary(SALE), now()
            if alone:
                wire.cut()
            else:
                wire.part()
            await asyncio.to_thread(_failed_over, group, old)
            await asyncio.sleep(run.rng.uniform(0.5, 2))
            # The old one comes back, and believes for a moment that nothing has happened.
            if alone:
                wire.mend()
            else:
                wire.join()
            await _ends(run, product, since)


def _failed_over(group: Group, old: Node) -> None:
    if isinstance(group.servers, Cluster):
        group.servers.wait_failed_over(SALE, old)
    else:
        group.servers.wait_failed_over(old)


async def cluster_node_alone(run: Run) -> None:
    await _cut_off(run, "Cluster", alone=True)


async def cluster_two_primaries(run: Run) -> None:
    await _cut_off(run, "Cluster", alone=False)


async def sentinel_two_primaries(run: Run) -> None:
    await _cut_off(run, "Sentinel", alone=False)


# 6: failover ----------------------------------------------------------------------------------------------------------


async def _killed(run: Run, kind: str) -> None:
    """kill -9 of the primary, which had sent nothing to its replicas for a moment: its machine takes that along."""
    with Wire() as wire, _apart(kind, wire) as group:
        async with Deployment(run.directory, group, workers=2, sales=SALES, more=RARELY) as product:
            load = run.clients(product, HABITS)
            await load.more(60)
            load.phase("fault")
            wire.part()
            await load.only("memory", 0.7)
            old, since = group.primary(SALE), now()
            old.kill()
            await asyncio.to_thread(_failed_over, group, old)
            # Not before: the kernel there would still send what the process had handed to it.
            wire.join()
            await _sells_again(run, product, since)
            load.phase("back")
            await asyncio.to_thread(old.restart)
            await load.more(20)
            await run.over(product)
            _tell(run)


async def cluster_killed(run: Run) -> None:
    await _killed(run, "Cluster")


async def sentinel_killed(run: Run) -> None:
    await _killed(run, "Sentinel")


async def cluster_graceful(run: Run) -> None:
    """CLUSTER FAILOVER, one after the other, of every node: as for an upgrade."""
    group = groups.cluster()
    async with Deployment(run.directory, group, workers=2, sales=SALES) as product:
        load = run.clients(product, HABITS)
        await load.more(60)
        load.phase("fault")
        since = now()
        nodes = await asyncio.to_thread(lambda: group.servers.primaries)
        run.trials = len(nodes)
        for node in nodes:
            slot = next(await asyncio.to_thread(group.servers.slots, node))
            await asyncio.to_thread(group.servers.fail_over, slot)
            await load.more(20)
            await asyncio.to_thread(group.servers.wait_ok)
        await _ends(run, product, since)


async def sentinel_by_order(run: Run) -> None:
    """SENTINEL FAILOVER: a replica is promoted while the primary still sells, and what it had not sent is lost.

    It may be any of the two replicas, so that what must survive has to be on both.
    """
    group = groups.sentinels()
    async with Deployment(run.directory, group, workers=2, sales=SALES, more=("--replicas", "2")) as product:
        load = run.clients(product, HABITS)
        await load.more(60)
        load.phase("fault")
        old, since = group.primary(SALE), now()
        await asyncio.to_thread(group.servers.fail_over)
        await until("the old primary is left", lambda: asyncio.to_thread(_left, old))
        await _ends(run, product, since)


def _left(node: Node) -> bool:
    """Whether nobody but sentinels and ourselves is connected to it any more."""
    with node.client() as client:
        return all(
            each["name"].startswith("sentinel-") or each["cmd"] == "client|list"
            for each in client.client_list(_type="normal")
        )


# 7: reshard -----------------------------------------------------------------------------------------------------------


async def reshard(run: Run) -> None:
    """The slot of each sale goes to the next node, ten keys at a time, as redis-cli does it, while everybody buys."""
    group = groups.cluster()
    async with Deployment(run.directory, group, workers=2, sales=SALES) as product:
        load = run.clients(product, HABITS)
        rounds = 1 if run.quick else 3
        slots = [slot for sale in product.sales for slot in sale.slots]
        run.trials = rounds * len(slots)
        await load.more(60)
        load.phase("fault")
        for _ in range(rounds):
            for slot in slots:
                await _move(group, slot)
                await load.more(20)
        await _ends(run, product)


async def _move(group: Group, slot: str) -> None:
    def move() -> None:
        nodes = group.servers.primaries
        at = nodes.index(group.primary(slot))
        group.servers.move(slot_keys(slot).sale, nodes[(at + 1) % len(nodes)], pause_s=0.01)

    await asyncio.to_thread(move)


async def node_added(run: Run) -> None:
    """A node is added while everybody buys, and gets the slots of all sales and some more."""
    group = groups.cluster()
    async with Deployment(run.directory, group, workers=2, sales=SALES) as product:
        load = run.clients(product, HABITS)
        await load.more(60)
        load.phase("fault")
        new = await asyncio.to_thread(group.servers.add_node)
        await asyncio.to_thread(group.servers.rebalance, new, 300)
        for slot in (slot for sale in product.sales for slot in sale.slots):
            await asyncio.to_thread(group.servers.move, slot_keys(slot).sale, new)
        await _ends(run, product)


CASES = (
    Case(5, "partition", "Cluster, a node alone", cluster_node_alone, survives=STORED | {"replica"}, quick=0),
    Case(5, "partition", "Cluster, a primary on each side", cluster_two_primaries,
         survives=STORED | {"replica"}),
    Case(5, "partition", "Sentinel, a primary on each side", sentinel_two_primaries,
         survives=STORED | {"replica"}, quick=0),
    Case(6, "failover", "Cluster, killed, replication cut before", cluster_killed,
         survives=STORED | {"replica"}, shows_loss="memory"),
    Case(6, "failover", "Cluster, graceful", cluster_graceful, survives=ALL, quick=0),
    Case(6, "failover", "Sentinel, killed, replication cut before", sentinel_killed,
         survives=STORED | {"replica"}, shows_loss="memory"),
    Case(6, "failover", "Sentinel, by order", sentinel_by_order, survives=STORED | {"replica"}, quick=0),
    Case(7, "reshard", "slots moved", reshard),
    Case(7, "reshard", "a node added", node_added, quick=0),
)  # fmt: skip
