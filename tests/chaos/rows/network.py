"""Rows 5 and 6 on one Redis: the network parts the product from it, a replica takes over."""

from __future__ import annotations

import asyncio

import redis.asyncio as aioredis

from ..clients import Habits
from ..deployment import Deployment
from ..plan import ALL, STORED, Case, Run, now
from ..proxy import Proxy
from ..servers import Redis, until
from ..wires import Wire

# 5: partition ---------------------------------------------------------------------------------------------------------


async def silent(run: Run) -> None:
    """Nothing passes either way, and nobody is told: shorter, and longer than the product waits for a reply."""
    redis = Redis(run.directory)
    async with (
        Proxy("127.0.0.1", redis.port) as proxy,
        Deployment(run.directory, redis, redis_url=proxy.url, workers=2) as product,
    ):
        load = run.clients(product, Habits(levels=("memory", "stored")))
        partitions = (2.0,) if run.quick else (2.0, 7.0)
        run.trials = len(partitions)
        for seconds in partitions:
            load.phase("load")
            await load.more(30)
            load.phase("fault")
            proxy.hold_answers()
            await asyncio.sleep(run.rng.uniform(0, 0.2))
            proxy.hold_requests()
            await asyncio.sleep(seconds)
            healed = now()
            # What was on its way arrives now, late.
            proxy.release()
            await run.healed(healed)
        await run.over(product)


async def cut(run: Run) -> None:
    """Connections are reset again and again, some with requests under way, and refused for a while."""
    redis = Redis(run.directory)
    async with (
        Proxy("127.0.0.1", redis.port) as proxy,
        Deployment(run.directory, redis, redis_url=proxy.url, workers=2) as product,
    ):
        load = run.clients(product, Habits(levels=("memory", "stored")))
        await load.more(30)
        load.phase("fault")
        run.trials = 10 if run.quick else 40
        for _ in range(run.trials):
            proxy.refuse()
            await asyncio.sleep(run.rng.choice((0, 0, 0.3)))
            proxy.refuse(False)
            await asyncio.sleep(run.rng.uniform(0, 0.2))
        await run.healed(now())
        await run.over(product)


async def wire_cut(run: Run) -> None:
    """Redis lives in a network of its own, and the interface that leads there goes down, and up again."""
    with Wire() as wire:
        redis = Redis(run.directory, host=wire.host, prefix=wire.prefix)
        async with Deployment(run.directory, redis, workers=2) as product:
            load = run.clients(product, Habits(levels=("memory", "stored")))
            cuts = (2.0, 0.3, 7.0)
            run.trials = len(cuts)
            for seconds in cuts:
                load.phase("load")
                await load.more(30)
                load.phase("fault")
                wire.cut()
                await asyncio.sleep(seconds)
                wire.mend()
                await run.healed(now())
            await run.over(product)


#: Milliseconds between two copies of the ledger, where something is to be lost: one just before would have it all.
RARELY = ("--snapshot-ms", "4000")

# 6: failover ----------------------------------------------------------------------------------------------------------


async def _failover(run: Run, killed: bool) -> None:
    """The run does what Sentinel does: promotes the replica, and the proxy, as an HAProxy would, leads to it.

    Killed: the primary's machine is gone, and what it had sent to its replica in the last moment with it: replication
    is cut a little before. Otherwise: clients are paused, the replica has everything, and takes over.
    """
    first = Redis(run.directory, name="first")
    await first.start()
    async with Proxy(first.host, first.port) as front, Proxy(first.host, first.port) as between:
        second = Redis(run.directory, name="second", options=("--replicaof", f"{between.listen} {between.port}"))
        async with Deployment(run.directory, first, redis_url=front.url, workers=2, more=RARELY) as product:
            product.processes.append(second)
            await second.start()

            async def linked() -> bool:
                async with second.client() as client:
                    return bool((await client.info("replication")).get("master_link_status") == "up")

            await until("the replica is in sync", linked)
            load = run.clients(product, Habits(levels=("memory", "replica", "stored")))
            await load.more(60)
            load.phase("fault")
            if killed:
                between.hold_answers()
                await load.only("memory", 0.8)
                first.kill()
            else:
                await first.ask("CLIENT", "PAUSE", "5000", "WRITE")
                await until("the replica has everything", lambda: _same_offset(first, second))
            between.refuse()
            await second.ask("REPLICAOF", "NO", "ONE")
            promoted = now()
            front.switch(second.host, second.port)
            if not killed:
                first.kill()
            product.redis = second
            await product.ready()
            await run.healed(promoted)
            # Alone now: payments at `replica` are refused, the others go on.
            await run.over(product)


async def _same_offset(first: Redis, second: Redis) -> bool:
    try:
        async with first.client() as one, second.client() as other:
            there, here = await one.info("replication"), await other.info("replication")
    except (aioredis.RedisError, OSError):
        return False
    return bool(there["master_repl_offset"] == here.get("slave_repl_offset"))


async def failover_killed(run: Run) -> None:
    await _failover(run, killed=True)


async def failover_graceful(run: Run) -> None:
    await _failover(run, killed=False)


CASES = (
    Case(5, "partition", "silent both ways", silent),
    Case(5, "partition", "resets", cut, quick=0),
    Case(5, "partition", "veth down", wire_cut, quick=0),
    Case(6, "failover", "killed, replication cut before", failover_killed,
         survives=STORED | {"replica"}, shows_loss="memory", quick=0),
    Case(6, "failover", "graceful", failover_graceful, survives=ALL, quick=0),
)  # fmt: skip
