"""Row 17: nobody is told any more when a hold runs out."""

from __future__ import annotations

import asyncio

from ..deployment import Deployment
from ..plan import Case, Run, now
from ..servers import Broken, Redis

#: Milliseconds from a deadline until its units are back: the sweeper looks five times a second, on a busy machine.
SWEPT_MS_MAX = 2_000


async def unheard(run: Run) -> None:
    """Notifications off, and who subscribed is thrown out again and again."""
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product)
        await load.more(30)
        load.phase("fault")
        run.trials = 10 if run.quick else 30
        for _ in range(run.trials):
            await redis.ask("CONFIG", "SET", "notify-keyspace-events", "")
            await redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.sleep(run.rng.uniform(0, 0.2))
        await run.healed(now())
        await run.over(product)
        worst = max(await swept_late_ms(product), default=0)
        run.remarks.append(f"units were back at most {worst} ms after the deadline")
        if worst > SWEPT_MS_MAX:
            raise Broken(f"units came back {worst} ms after their deadline, more than {SWEPT_MS_MAX} ms")


async def swept_late_ms(product: Deployment) -> list[int]:
    """Milliseconds between each deadline and the return of its units, from the stored ledger."""
    entries = await product.query("SELECT at, transitions FROM ledger")
    return [
        at - int(line.rsplit(" ", 1)[1]) for at, text in entries for line in text.split("\n") if line.startswith("x ")
    ]


CASES = (Case(17, "notifications off, subscriber dead", "CONFIG SET, CLIENT KILL", unheard),)
