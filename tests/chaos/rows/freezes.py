"""Row 4: processes that stand still for a while and then go on as if nothing had been."""

from __future__ import annotations

import asyncio
import signal

from ..clients import Habits
from ..deployment import Deployment
from ..plan import Case, Run, now
from ..servers import Redis, kill


def _seconds(run: Run) -> tuple[float, ...]:
    """How long each freeze is: shorter, and longer than the five seconds for which the product waits for Redis."""
    return (1.0,) if run.quick else (1.0, 7.0)


async def redis_frozen(run: Run) -> None:
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, Habits(levels=("memory", "stored")))
        freezes = _seconds(run) if run.quick else (*_seconds(run), 30.0)
        for seconds in freezes:
            load.phase("load")
            await load.more(30)
            load.phase("fault")
            redis.freeze()
            await asyncio.sleep(seconds)
            thawed = now()
            redis.thaw()
            await run.healed(thawed)
        run.trials = len(freezes)
        await run.over(product)


async def worker_frozen(run: Run) -> None:
    """One of two; when it is the one that sweeps and copies, nobody else does meanwhile."""
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        # Half of the connections end at the frozen one: its clients give up, and ask again.
        load = run.clients(product, Habits(answer_s=2.0))
        workers = product.holdfast.children()
        for worker in workers[:1] if run.quick else workers:
            load.phase("load")
            await load.more(30)
            load.phase("fault")
            kill(worker, signal.SIGSTOP)
            await asyncio.sleep(_seconds(run)[-1])
            thawed = now()
            kill(worker, signal.SIGCONT)
            await run.healed(thawed)
            run.trials += 1
        await run.over(product)


async def supervisor_frozen(run: Run) -> None:
    """And a worker dies meanwhile: its successor comes when the supervisor is back."""
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, Habits(answer_s=2.0))
        await load.more(30)
        load.phase("fault")
        product.holdfast.freeze()
        kill(run.rng.choice(product.holdfast.children()))
        await asyncio.sleep(_seconds(run)[0])
        thawed = now()
        product.holdfast.thaw()
        await run.healed(thawed)
        await run.over(product)


async def replica_frozen(run: Run) -> None:
    """Payments at `replica` are not acknowledged at that while it stands still."""
    redis = Redis(run.directory)
    await redis.start()
    replica = Redis(run.directory, name="replica", options=("--replicaof", f"{redis.host} {redis.port}"))
    async with Deployment(run.directory, redis, workers=2) as product:
        product.processes.append(replica)
        await replica.start()
        await _in_sync(replica)
        load = run.clients(product, Habits(levels=("memory", "replica")))
        for seconds in _seconds(run):
            load.phase("load")
            await load.more(30)
            load.phase("fault")
            replica.freeze()
            await asyncio.sleep(seconds)
            thawed = now()
            replica.thaw()
            await run.healed(thawed)
        run.trials = len(_seconds(run))
        await run.over(product)


async def _in_sync(replica: Redis) -> None:
    from ..servers import until

    async def linked() -> bool:
        info = await replica.ask("INFO", "replication")
        text = info.decode() if isinstance(info, bytes) else str(info)
        return "master_link_status:up" in text or "'master_link_status': 'up'" in text

    await until("the replica is in sync", linked)


_FROZEN = "freeze"

CASES = (
    Case(4, _FROZEN, "Redis", redis_frozen),
    Case(4, _FROZEN, "a worker", worker_frozen, quick=0),
    Case(4, _FROZEN, "supervisor, a worker dies", supervisor_frozen, quick=0),
    Case(4, _FROZEN, "replica", replica_frozen, quick=0),
)
