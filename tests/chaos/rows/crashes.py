"""Rows 1, 2, 3 and 18: Redis dies, loses what was not on the disk, comes back torn, empty, or without its scripts."""

from __future__ import annotations

import asyncio
import shutil

from .. import power
from ..clients import Habits
from ..deployment import Deployment
from ..plan import ALL, STORED, Case, Run, now
from ..servers import PATIENCE_S, Broken, Redis, until

#: Purchases that a run has before the fault, and between one fault and the next.
WARM = 60


def levels(*names: str) -> Habits:
    """Clients that pay at these levels; those who ask for none get the default."""
    return Habits(levels=names)


# 1: Redis killed ------------------------------------------------------------------------------------------------------


async def _killed(run: Run, *, fsync: str, kind: str = "installed", habits: Habits, delay_ms: int = 0) -> None:
    env = power.environment(run.directory, delay_ms) if delay_ms else {}
    redis = Redis(run.directory, kind=kind, fsync=fsync, env=env)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, habits)
        run.trials = 1 if run.quick else 3
        for _ in range(run.trials):
            load.phase("load")
            await load.more(WARM)
            await load.only("memory", run.rng.uniform(0.3, 1))
            load.phase("fault")
            redis.kill()
            await asyncio.sleep(run.rng.choice((0, 0.3)))
            back = now()
            await redis.start()
            await product.ready()
            await run.healed(back)
        await run.over(product)


async def killed_always(run: Run) -> None:
    """appendfsync always: on the disk before the answer."""
    await _killed(run, fsync="always", habits=levels("memory", "fsync", "stored"))


async def killed_everysec(run: Run) -> None:
    """appendfsync everysec, the product's own default: written before the answer, flushed within the second."""
    await _killed(run, fsync="everysec", habits=levels("memory", "stored"))


async def killed_no(run: Run) -> None:
    """appendfsync no: written before the answer, flushed when the kernel likes."""
    await _killed(run, fsync="no", habits=levels("memory", "stored"))


async def killed_embedded(run: Run) -> None:
    """The 6.2 of the wheel."""
    await _killed(run, fsync="everysec", kind="embedded", habits=levels("memory", "stored"))


async def killed_valkey(run: Run) -> None:
    """Valkey."""
    await _killed(run, fsync="always", kind="valkey", habits=levels("memory", "fsync", "stored"))


async def killed_slow_disk(run: Run) -> None:
    """Everysec on a disk that takes 1.5 s for a flush: Redis then holds writes back in its own memory for up to 2 s."""
    await _killed(run, fsync="everysec", habits=levels("memory", "stored"), delay_ms=1500)


# 2: power loss --------------------------------------------------------------------------------------------------------


async def _power_loss(run: Run, *, fsync: str, kind: str = "installed", habits: Habits) -> None:
    redis = Redis(run.directory, kind=kind, fsync=fsync, env=power.environment(run.directory))
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, habits)
        run.trials = 1 if run.quick else 3
        cut = 0
        for _ in range(run.trials):
            load.phase("load")
            await load.more(WARM)
            # Anywhere in the second between two flushes.
            await load.only("memory" if run.case.shows_loss else "fsync", run.rng.uniform(0.3, 1))
            load.phase("fault")
            redis.kill()
            cut += power.cut(redis)
            back = now()
            await redis.start()
            await product.ready()
            await run.healed(back)
        run.remarks.append(f"{cut} bytes of the append-only file were cut")
        await run.over(product)


async def power_always(run: Run) -> None:
    await _power_loss(run, fsync="always", habits=levels("memory", "fsync", "stored"))


async def power_everysec(run: Run) -> None:
    await _power_loss(run, fsync="everysec", habits=levels("memory", "stored"))


async def power_no(run: Run) -> None:
    await _power_loss(run, fsync="no", habits=levels("memory", "stored"))


async def power_valkey(run: Run) -> None:
    await _power_loss(run, fsync="always", kind="valkey", habits=levels("memory", "fsync", "stored"))


async def power_waitaof(run: Run) -> None:
    """Everysec on a server that is waited for (WAITAOF), for payments that ask for it."""
    await _power_loss(run, fsync="everysec", kind="waitaof", habits=levels("memory", "fsync", "stored"))


# 3: an append-only file that is torn or corrupt -----------------------------------------------------------------------


async def _damaged(run: Run, flip: bool) -> None:
    redis = Redis(run.directory, fsync="everysec")
    async with Deployment(run.directory, redis, workers=1) as product:
        load = run.clients(product, levels("memory", "stored"))
        run.trials = 1 if run.quick else 4
        refused = repaired = 0
        for _ in range(run.trials):
            load.phase("load")
            await load.more(WARM)
            load.phase("fault")
            redis.kill()
            (file, *_) = power.append_only(redis)
            data = bytearray(file.read_bytes())
            if flip:
                for _ in range(run.rng.randint(1, 8)):
                    data[run.rng.randrange(max(0, len(data) - 200_000), len(data))] ^= 1 << run.rng.randrange(8)
            else:
                del data[len(data) - run.rng.randint(1, min(len(data), 60_000)) :]
            file.write_bytes(data)
            back = now()
            if not await _loads(redis):
                # As its operator would: a file that cannot be read is put aside, and the store tells what there was.
                refused += 1
                redis.kill()
                shutil.move(redis.data, redis.data.with_name(f"refused-{refused}"))
                redis.data.mkdir()
                await redis.start()
            if flip:
                # A flipped bit that still reads as a command is believed by Redis: every sale is rebuilt.
                status, said = await product.holdfast.recover(*(sale.id for sale in product.sales))
                product.recoveries.append(said)
                if status:
                    repaired += 1
                    await redis.ask("FLUSHALL")
            await product.ready()
            await run.healed(back)
        run.remarks.append(f"{refused} of {run.trials} files were refused by Redis")
        if repaired:
            run.remarks.append(f"{repaired} times recovery did not believe what Redis had; it was emptied")
        await run.over(product)


async def _loads(redis: Redis) -> bool:
    """Whether it comes up with this file."""
    redis.launch()

    async def decided() -> str:
        if not redis.alive:
            return "refused"
        try:
            return "loaded" if await redis.ask("PING", timeout=2) else ""
        except Exception:
            return ""

    return bool(await until("Redis loads or refuses", decided) == "loaded")


async def torn(run: Run) -> None:
    await _damaged(run, flip=False)


async def flipped(run: Run) -> None:
    await _damaged(run, flip=True)


# 18: scripts and data gone --------------------------------------------------------------------------------------------


async def scripts_flushed(run: Run) -> None:
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, levels("memory", "stored"))
        await load.more(WARM)
        load.phase("fault")
        run.trials = 40 if run.quick else 200
        for _ in range(run.trials):
            await redis.ask("SCRIPT", "FLUSH")
            await asyncio.sleep(run.rng.uniform(0, 0.03))
        await run.healed(now())
        await run.over(product)


async def restarted(run: Run) -> None:
    """In good order, again and again."""
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, levels("memory", "stored"))
        run.trials = 2 if run.quick else 5
        for _ in range(run.trials):
            load.phase("load")
            await load.more(WARM // 2)
            load.phase("fault")
            await redis.shut_down()
            back = now()
            await redis.start()
            await product.ready(recover=False)
            await run.healed(back)
        await run.over(product)


async def empty(run: Run) -> None:
    """It comes back with nothing at all, as a Redis without a file does."""
    redis = Redis(run.directory, fsync="none")
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, levels("memory", "stored"))
        run.trials = 1 if run.quick else 3
        for _ in range(run.trials):
            load.phase("load")
            await load.more(WARM)
            await load.only("memory", run.rng.uniform(0.3, 1))
            load.phase("fault")
            redis.kill()
            back = now()
            await redis.start()

            async def says() -> list[str] | None:
                return await product.readiness()

            reasons = await until("an empty Redis is not ready", says, PATIENCE_S)
            if not product.needs_recovery(reasons):
                raise Broken(f"an empty Redis is not ready for other reasons: {reasons}")
            await product.ready()
            await run.healed(back)
        await run.over(product)


_KILLED, _POWER, _DAMAGED, _GONE = "Redis killed", "power loss", "AOF torn or corrupt", "scripts flushed, restarts"

CASES = (
    Case(1, _KILLED, "appendfsync always", killed_always, quick=0),
    # With everysec Redis holds writes back while a flush is under way: on a busy disk a kill loses up to two seconds.
    Case(1, _KILLED, "appendfsync everysec", killed_everysec, survives=STORED),
    Case(1, _KILLED, "appendfsync no", killed_no, quick=0),
    Case(1, _KILLED, "everysec, Redis 6.2", killed_embedded, survives=STORED, quick=0),
    Case(1, _KILLED, "appendfsync always, Valkey 9", killed_valkey, quick=0),
    Case(1, _KILLED, "everysec, slow disk", killed_slow_disk, survives=STORED, shows_loss="memory", quick=0),
    Case(2, _POWER, "appendfsync everysec", power_everysec, survives=STORED, shows_loss="memory"),
    Case(2, _POWER, "appendfsync no", power_no, survives=STORED, shows_loss="memory", quick=0),
    Case(2, _POWER, "appendfsync always", power_always),
    Case(2, _POWER, "appendfsync always, Valkey 9", power_valkey, quick=0),
    Case(2, _POWER, "everysec, WAITAOF", power_waitaof, survives=ALL - {"memory"}, shows_loss="memory", quick=0),
    Case(3, _DAMAGED, "torn", torn, survives=STORED),
    Case(3, _DAMAGED, "bits flipped", flipped, survives=STORED, quick=0),
    Case(18, _GONE, "SCRIPT FLUSH in a loop", scripts_flushed),
    Case(18, _GONE, "restarts in a loop", restarted, quick=0),
    Case(18, _GONE, "empty restarts", empty, survives=STORED, shows_loss="memory"),
)
