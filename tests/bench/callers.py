"""Many concurrent callers in one process: of the engine, or of redis-py with one EVALSHA for each call.

A process of its own on the first core; its Redis runs on the second. It measures itself, after a warm-up and until it
stops its callers, and checks at the end that Redis has counted what it has.

The engine is used as anybody would: `Engine.connect` with everything on (sweeper, listener, leases, a snapshot each
second into SQLite). redis-py is used as well as it can be: hiredis, uvloop, a unix socket, a pool whose size the set-up
tries out, raw replies, and the script of `peers/lua/reserve.lua` by its hash.

Usage: python -P -m bench.callers OPTIONS, a JSON object: see `Options`. Prints a JSON object.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio as redis_asyncio
import uvloop

from holdfast.engine import Durability, Engine
from holdfast.engine.identity import random_id

from .measure import cpu_seconds

#: Seconds before the measured time, once every caller has come through: caches and queues fill.
WARM_UP_S = 0.3

#: Seconds in which every caller has come through, or something hangs: as many connections are made as there are.
FIRST_SECONDS_MAX = 30.0

#: Units on sale: more than any run takes.
CAPACITY = 1_000_000_000

#: What the figures to reach are stated for.
MAX_PER_BUYER = 4

LUA = Path(__file__).parent / "peers" / "lua"


@dataclass(frozen=True, slots=True)
class Options:
    """What to do.

    Parameters
    ----------
    mode: `engine-reserve`, `engine-pairs` (reserve, then confirm) or `redis-py`.
    redis: its address. redis_pid: its process, whose CPU time is taken.
    directory: for the engine's store.
    callers: how many at the same time. pool: connections of redis-py. durability: of payments.
    """

    mode: str
    redis: str
    redis_pid: int
    directory: str
    callers: int
    seconds: float
    pool: int = 0
    durability: str = "memory"


class Meter:
    """What the callers have done, and whether they should stop."""

    def __init__(self, redis_pid: int) -> None:
        self.done = 0
        self.stop = False
        self._redis_pid = redis_pid

    def _now(self) -> tuple[float, float, float, int]:
        return time.monotonic(), time.process_time(), cpu_seconds(self._redis_pid), self.done

    async def run(self, callers: int, call: Callable[[], Awaitable[object]], seconds: float) -> dict[str, Any]:
        async def caller() -> None:
            while not self.stop:
                await call()
                self.done += 1

        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        async with asyncio.timeout(FIRST_SECONDS_MAX):
            while self.done < callers:
                await asyncio.sleep(0.01)
        await asyncio.sleep(WARM_UP_S)
        before = self._now()
        await asyncio.sleep(seconds)
        after = self._now()
        self.stop = True
        await asyncio.gather(*tasks)
        took, server, database, count = (late - early for early, late in zip(before, after, strict=True))
        return {"count": count, "seconds": took, "cpu": {"server": server, "database": database}}


async def engine_calls(options: Options, meter: Meter) -> dict[str, Any]:
    store = f"sqlite:///{Path(options.directory) / 'store.db'}"
    numbers = itertools.count()
    async with Engine.connect(options.redis, store=store, secret="bench-secret-bench-secret") as engine:
        await engine.create_sale("hot", name="Hot", capacity=CAPACITY, max_per_buyer=MAX_PER_BUYER)
        pairs, durability = options.mode == "engine-pairs", Durability(options.durability)

        async def reserve() -> None:
            await engine.reserve("hot", buyer=f"buyer-{next(numbers)}", quantity=1)

        async def pair() -> None:
            buyer = f"buyer-{next(numbers)}"
            ticket = await engine.reserve("hot", buyer=buyer, quantity=1)
            paid = await engine.confirm(ticket.id, buyer=buyer, durability=durability)
            if paid.pending is not None:
                raise RuntimeError(f"a payment was not '{durability}' in time")

        async with redis_asyncio.from_url(options.redis) as client:
            calls_before = await _xadd_calls(client)
            result = await meter.run(options.callers, pair if pairs else reserve, options.seconds)
            transitions = meter.done * (2 if pairs else 1)
            # Each script call that changed something has written one ledger entry.
            result["batch"] = transitions / max(1, await _xadd_calls(client) - calls_before)
        sale = await engine.sale("hot")
        item = sale.items[0]
        result["counted"] = item.purchased if pairs else item.reserved
    return result | {"total": meter.done}


async def _xadd_calls(client: redis_asyncio.Redis) -> int:
    stats = await client.info("commandstats")
    return int(stats.get("cmdstat_xadd", {}).get("calls", 0))


async def redis_py_calls(options: Options, meter: Meter) -> dict[str, Any]:
    pool = redis_asyncio.BlockingConnectionPool.from_url(options.redis, max_connections=options.pool, timeout=None)
    async with redis_asyncio.Redis(connection_pool=pool) as client:
        prefix = "rp:{hot}:"
        sha = await client.script_load((LUA / "reserve.lua").read_text())
        fields: dict[Any, Any] = {
            "available": CAPACITY,
            "reserved": 0,
            "hold_ms": 900_000,
            "max_per_buyer": MAX_PER_BUYER,
        }
        await client.hset(prefix + "sale", mapping=fields)
        keys = [prefix + name for name in ("sale", "tickets", "buyers", "deadlines", "ledger")]
        numbers = itertools.count()

        async def reserve() -> None:
            id = random_id()
            reply = await client.evalsha(sha, 6, *keys, f"{prefix}lease:{id}", id, f"buyer-{next(numbers)}", "1")
            if reply[0] != b"ok":
                raise RuntimeError(f"the script answered {reply}")

        result = await meter.run(options.callers, reserve, options.seconds)
        result["counted"] = int(await client.hget(prefix + "sale", "reserved") or 0)
        await client.flushall()
    return result | {"total": meter.done}


async def main(options: Options) -> dict[str, Any]:
    meter = Meter(options.redis_pid)
    return await (redis_py_calls if options.mode == "redis-py" else engine_calls)(options, meter)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(main(Options(**json.loads(sys.argv[1]))))))
