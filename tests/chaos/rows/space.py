"""Rows 8, 9, 10 and 12: no room on a disk or in memory, and a store that is slow or away."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from typing import Any

import postgresql

from ..clients import Habits
from ..deployment import Deployment
from ..disks import SmallDisk
from ..plan import Case, Run, now
from ..servers import Broken, Redis, Skipped, until

#: What clients may hear while nothing can be sold.
CLEAR = {"not_ready", "overloaded", "outcome_unknown"}

BOTH = Habits(levels=("memory", "stored"))


def refused_clearly(run: Run) -> None:
    """Every 5xx of the fault said what it was.

    Raises
    ------
    Broken: one did not.
    """
    for operation in run.operations:
        if operation.status is not None and operation.status >= 500 and operation.code not in CLEAR:
            raise Broken(f"heard {operation.status} {operation.answer}")


async def unavailable(run: Run, code: set[str] = CLEAR) -> None:
    """Waits until clients are refused for it: the fault has arrived."""
    since = now()

    async def told() -> bool:
        return any(each.begun >= since and each.code in code for each in run.operations)

    await until("clients hear of it", told)


async def redis_disk_full(run: Run) -> None:
    with SmallDisk(run.directory / "redis-data", 8) as disk:
        redis = Redis(run.directory)
        async with Deployment(run.directory, redis, workers=2) as product:
            load = run.clients(product, BOTH)
            run.trials = 1 if run.quick else 3
            for _ in range(run.trials):
                load.phase("load")
                await load.more(30)
                load.phase("fault")
                disk.fill(run.rng.randrange(20_000))
                await unavailable(run)
                await asyncio.sleep(1)
                freed = now()
                disk.free()
                # It tries its file again every second; with `always` it would have ended.
                if not redis.alive:
                    await redis.start()
                await product.ready()
                await run.healed(freed)
            await run.over(product)
            refused_clearly(run)


async def store_disk_full(run: Run) -> None:
    with SmallDisk(run.directory / "small", 12) as disk:
        redis = Redis(run.directory)
        store = f"sqlite:///{disk.directory / 'store.db'}"
        async with Deployment(run.directory, redis, store=store, workers=2) as product:
            load = run.clients(product, BOTH)
            await load.more(30)
            load.phase("fault")
            disk.fill(0)

            async def stuck() -> bool:
                before = await _stored(product)
                await asyncio.sleep(1.5)
                return await _stored(product) == before

            await until("the store takes nothing more", stuck)
            before = await _stored(product)
            # Selling goes on at the lower level, and what is not copied stays in Redis' ledger.
            await load.more(60)
            if await _stored(product) != before:
                raise Broken("the cursor moved although the disk was full")
            for slot, cursor in before.items():
                await _untrimmed(product, slot, cursor)
            freed = now()
            disk.free()
            await run.healed(freed)
            await run.over(product)
            refused_clearly(run)


async def _stored(product: Deployment) -> dict[str, int]:
    return dict(await product.query("SELECT slot, sequence FROM slots"))


async def _untrimmed(product: Deployment, slot: str, cursor: int) -> None:
    """All that is not in the store is in the ledger in Redis, without a gap."""
    entries: Any = await product.redis.ask("XRANGE", f"hf:{{{slot}}}:ledger", f"(1-{cursor}", "+", "COUNT", 1)
    if entries and await product.sequence(slot) > cursor:
        from holdfast.engine.records import Entry

        first = Entry.parse(*entries[0]).first
        if first > cursor + 1:
            raise Broken(f"{slot}: the store has {cursor}, and the ledger in Redis begins at {first}")


async def memory_full(run: Run) -> None:
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, BOTH)
        run.trials = 2 if run.quick else 5
        for _ in range(run.trials):
            load.phase("load")
            await load.more(30)
            load.phase("fault")
            used = dict(line.split(":", 1) for line in (await _info(redis, "memory")).splitlines() if ":" in line)
            await redis.ask("CONFIG", "SET", "maxmemory", str(int(used["used_memory"]) + run.rng.randrange(40_000)))
            await unavailable(run)
            await asyncio.sleep(run.rng.uniform(0.2, 1))
            freed = now()
            await redis.ask("CONFIG", "SET", "maxmemory", "0")
            await run.healed(freed)
        await run.over(product)
        refused_clearly(run)


async def _info(redis: Redis, section: str) -> str:
    async with redis.client() as client:
        info = await client.info(section)
    return "\n".join(f"{key}:{value}" for key, value in info.items())


async def store_locked(run: Run) -> None:
    """Another process holds SQLite's lock, longer than the five seconds for which the product waits for it."""
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, BOTH)
        holds = (2.0,) if run.quick else (2.0, 8.0)
        run.trials = len(holds)
        for seconds in holds:
            load.phase("load")
            await load.more(30)
            load.phase("fault")
            db = sqlite3.connect(product.store.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
            try:
                db.execute("BEGIN EXCLUSIVE")
                selling = load.history.purchases()
                await asyncio.sleep(seconds)
                sold = load.history.purchases() - selling
                db.execute("ROLLBACK")
            finally:
                db.close()
            freed = now()
            if not sold:
                raise Broken(f"nothing was sold in the {seconds} s in which the store was locked")
            run.remarks.append(f"{sold} purchases in {seconds:.0f} s without the store")
            await run.healed(freed)
        await run.over(product)
        refused_clearly(run)


async def _postgres_away(run: Run, killed: bool) -> None:
    """PostgreSQL is frozen, longer than the product waits for it, or all of it is killed and started again."""
    folder = postgresql.binaries()
    if folder is None:
        raise Skipped("no PostgreSQL here: apt-get install postgresql")
    template = run.directory / "template"
    postgresql.make_template(folder, template)
    database = postgresql.Postgres(folder, template)
    try:
        redis = Redis(run.directory)
        async with Deployment(run.directory, redis, store=database.fresh(), workers=2) as product:
            load = run.clients(product, BOTH)
            pauses = (2.0,) if run.quick else (2.0, 20.0)
            run.trials = len(pauses)
            for seconds in pauses:
                load.phase("load")
                await load.more(30)
                load.phase("fault")
                selling = load.history.purchases()
                if killed:
                    database.kill()
                else:
                    database.signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                sold = load.history.purchases() - selling
                if killed:
                    await asyncio.to_thread(database.start)
                else:
                    database.signal(signal.SIGCONT)
                back = now()
                if not sold:
                    raise Broken(f"nothing was sold in the {seconds} s in which PostgreSQL was away")
                run.remarks.append(f"{sold} purchases in {seconds:.0f} s without the store")
                await run.healed(back)
            await run.over(product)
            refused_clearly(run)
    finally:
        database.stop()


async def postgres_frozen(run: Run) -> None:
    """SIGSTOP of every process of PostgreSQL."""
    await _postgres_away(run, killed=False)


async def postgres_killed(run: Run) -> None:
    """kill -9 of every process of PostgreSQL, and a new start."""
    await _postgres_away(run, killed=True)


CASES = (
    Case(8, "disk full under Redis", "tmpfs", redis_disk_full),
    Case(9, "disk full under the store", "tmpfs", store_disk_full),
    Case(10, "maxmemory", "CONFIG SET", memory_full),
    Case(12, "slow or absent store", "SQLite locked", store_locked),
    Case(12, "slow or absent store", "PostgreSQL frozen", postgres_frozen, quick=0),
    Case(12, "slow or absent store", "PostgreSQL killed", postgres_killed, quick=0),
)
