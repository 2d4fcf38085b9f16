"""Sales on several clusters in one process: the same load on each, in turns, at a steady rate, and then sold out.

A process of its own on the first core; all Redis servers run on the second. The clusters take short turns, so that what
disturbs the machine for a while disturbs all of them. Pairs (reserve, then confirm) come at instants of their own, a
Poisson process; each is for a sale drawn at random and a buyer of its own. What the servers have used is asked of them
(INFO cpu), to the microsecond. If that is asked for, a sale whose every unit is held refuses buyers, in the same turns;
and in the end a sale of each side is sold out, unit by unit: some have to move between shards then.

The engines are used as anybody would: `Engine.connect` with everything on (sweeper, listener, leases, a snapshot each
second into SQLite).

Usage: python -P -m bench.sales OPTIONS, a JSON object: see `Options`. Prints a JSON object: samples by side.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis
import uvloop
from redis.crc import key_slot

from holdfast.engine import AllHeld, Engine, Overloaded, SoldOut
from holdfast.engine import borrowing as borrowing_module
from holdfast.engine.keys import slot_keys

from .callers import CAPACITY, MAX_PER_BUYER

T = TypeVar("T")

#: Seconds of load before each measured time: queues fill, connections are made.
WARM_UP_S = 0.5

#: Callers who saturate: twice as many as there are sales.
CALLERS = 1_200

#: The share of what the first side can do, in a trial, at which they are compared without being saturated.
LOAD = 0.5

#: Callers who buy a sale until nothing is left, and the seconds that each pauses in the mean between two tickets: 1,000
#: a second, so that the last units last as long as it takes to move some.
BUYING_CALLERS = 200
BUYING_PAUSE_S = 0.2

#: Units of the sale that refuses, a few for each shard, and for how long they are held: longer than any run.
HELD_UNITS = 240
HELD_MS = 24 * 3600 * 1000

#: Seconds after the load until what it has left behind is done, and for which nothing is done then.
IDLE_AFTER_S = 2.0
IDLE_S = 5.0

#: Sales are spread evenly over this many parts of the slots, and so over any number of nodes that divides it.
PARTS = 6

#: Slots of a Redis Cluster.
SLOTS = 16_384


@dataclass(frozen=True, slots=True)
class Side:
    """One of those who take turns.

    Parameters
    ----------
    redis: its address. nodes: its servers, as host and port.
    sales: how many, evenly spread; or one hot sale. shards: of each sale; 0 where sales are not divided.
    """

    redis: str
    nodes: Sequence[tuple[str, int]]
    sales: int
    shards: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """What to do.

    Parameters
    ----------
    sides: by name. directory: for the engines' stores.
    rounds, seconds: how often each has its turn, and for how long.
    units: in the sale that is sold out in the end; 0 leaves that out, and the sale that refuses.
    """

    sides: Mapping[str, Side]
    directory: str
    rounds: int
    seconds: float
    units: int = 0


def spread_names(count: int) -> list[str]:
    """Names of sales, as many in each part of a cluster's slots."""
    parts: list[list[str]] = [[] for _ in range(PARTS)]
    each = -(-count // PARTS)
    for number in itertools.count():
        name = f"sale-{number}"
        part = parts[key_slot(name.encode()) * PARTS // SLOTS]
        if len(part) < each:
            part.append(name)
        elif all(len(part) == each for part in parts):
            return list(itertools.chain(*zip(*parts, strict=True)))[:count]
    raise AssertionError


class Load:
    """One side: its engine, its sales, and what its servers have used."""

    def __init__(self, engine: Engine, side: Side, names: Sequence[str], seed: int) -> None:
        self._engine = engine
        self._names = names
        self._clients = [redis.Redis(host=host, port=port, socket_timeout=60) for host, port in side.nodes]
        self._seed = seed
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._pairs: set[asyncio.Task[None]] = set()
        self.done = 0
        self.refused = 0
        self.wrong: list[str] = []

    async def pair(self) -> None:
        """One buyer."""
        try:
            buyer = f"buyer-{self._seed}-{next(self._numbers)}"
            ticket = await self._engine.reserve(self._random.choice(self._names), buyer=buyer, quantity=1)
            await self._engine.confirm(ticket.id, buyer=buyer)
            self.done += 1
        except Overloaded:
            # Those who come at instants of their own pile up where the machine stands still for a moment.
            pass
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    async def refusal(self) -> None:
        """One buyer who comes while every unit is held."""
        try:
            buyer = f"late-{self._seed}-{next(self._numbers)}"
            ticket = await self._engine.reserve("held", buyer=buyer, quantity=1)
            self.wrong.append(f"{ticket.id} was made of units that others hold")
        except AllHeld:
            self.refused += 1
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    async def hold_all(self, shards: int) -> None:
        """A sale whose every unit is held."""
        more: dict[str, Any] = {"shards": shards} if shards else {}
        await self._engine.create_sale("held", name="Held", capacity=HELD_UNITS, hold_ms=HELD_MS, **more)
        for number in range(HELD_UNITS):
            await self._engine.reserve("held", buyer=f"holder-{number}", quantity=1)

    async def warm(self) -> None:
        """Each sale once: the process meets them, and the servers the scripts."""
        for name in self._names:
            ticket = await self._engine.reserve(name, buyer="warm", quantity=1)
            await self._engine.confirm(ticket.id, buyer="warm")
        self.done += len(self._names)

    async def saturated(
        self, seconds: float, call: Callable[[], Awaitable[None]] | None = None, callers: int = CALLERS
    ) -> dict[str, Any]:
        """Callers who wait for each answer; what was used for the pairs, or other calls, that were answered."""
        stop, call = False, call or self.pair

        async def caller() -> None:
            while not stop:
                await call()

        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        sample = await self._measured(seconds)
        stop = True
        await asyncio.gather(*tasks)
        return sample

    async def steady(self, rate: float, seconds: float) -> dict[str, Any]:
        """Pairs that are due at instants of their own; what was used for those that were answered."""
        arriving = asyncio.create_task(self._arrive(rate))
        sample = await self._measured(seconds)
        arriving.cancel()
        await asyncio.wait({arriving})
        while self._pairs:
            await asyncio.wait(self._pairs)
        return sample | {"rate": rate}

    async def _measured(self, seconds: float) -> dict[str, Any]:
        await asyncio.sleep(WARM_UP_S)
        before = self.now()
        await asyncio.sleep(seconds)
        return self.sample(before, self.now())

    def sample(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
        """What happened between two of these."""
        used = {name: after[name] - before[name] for name in before}
        nodes = [used[f"node {at}"] for at in range(len(self._clients))]
        return {
            "count": used["done"], "seconds": used["time"], "server": used["own"], "nodes": nodes,
            "calls": used["calls"], "reads": used["reads"], "bytes_in": used["in"], "bytes_out": used["out"],
            "file": used["file"],
        }  # fmt: skip

    async def sell_out(self, units: int, shards: int) -> dict[str, Any]:
        """Every unit of a new sale is bought; how many transfers that took, and how long calls waited for them."""
        more: dict[str, Any] = {"shards": shards} if shards else {}
        await self._engine.create_sale("last", name="Last", capacity=units, **more)
        waits, answers = _timed_waits(), 0
        before = self.now()

        async def caller(number: int) -> None:
            nonlocal answers
            for turn in itertools.count():
                await asyncio.sleep(self._random.expovariate(1 / BUYING_PAUSE_S))
                buyer = f"last-{number}-{turn}"
                try:
                    ticket = await self._engine.reserve("last", buyer=buyer, quantity=1)
                except AllHeld:
                    continue
                except SoldOut:
                    return
                await self._engine.confirm(ticket.id, buyer=buyer)
                answers += 1

        await asyncio.gather(*(caller(number) for number in range(BUYING_CALLERS)))
        after = self.now() | {"done": before["done"] + answers}
        (item,) = (await self._engine.sale("last")).items
        if (item.purchased, answers) != (units, units):
            raise RuntimeError(f"{answers} of {units} units were bought, and Redis has {item}")
        return self.sample(before, after) | {"waits_ms": waits, "transfers": self._transfers(shards)}

    def _transfers(self, shards: int) -> int:
        """Those that shards of the sale have received."""
        found = 0
        for shard in range(1, shards + 1):
            key = slot_keys(f"last~{shard}").sale
            raw = next(filter(None, (_peek(client, key) for client in self._clients)), None)
            if raw:
                found += sum(json.loads(raw).get("into", {}).values())
        return found

    async def _arrive(self, rate: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += self._random.expovariate(rate)
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            pair = asyncio.create_task(self.pair())
            self._pairs.add(pair)
            pair.add_done_callback(self._pairs.discard)

    def now(self) -> dict[str, float]:
        """Clock, what was done, and what was used so far."""
        now = {
            "time": time.monotonic(),
            "own": time.process_time(),
            "done": float(self.done + self.refused),
            **dict.fromkeys(("calls", "reads", "in", "out", "file"), 0.0),
        }
        for at, client in enumerate(self._clients):
            info: Any = client.info("everything")
            now[f"node {at}"] = info["used_cpu_user"] + info["used_cpu_sys"]
            now["calls"] += info.get("cmdstat_evalsha", {}).get("calls", 0)
            now["reads"] += info.get("total_reads_processed", 0)
            now["in"] += info["total_net_input_bytes"]
            now["out"] += info["total_net_output_bytes"]
            now["file"] += info.get("aof_current_size", 0)
        return now

    async def folded(self) -> None:
        """Returns when the store has all of it, in its tickets, too."""
        await self._engine.snapshot()

    async def counted(self) -> int:
        """Units that Redis has as sold."""
        return sum([(await self._engine.sale(name)).items[0].purchased for name in self._names])


def _peek(client: redis.Redis, key: str) -> Any:
    """The transfers of a shard, if this node has it."""
    try:
        return client.hget(key, "transfers")
    except redis.exceptions.ResponseError:
        return None


def _timed_waits() -> list[float]:
    """Milliseconds that each call from now on waits for units of another shard, as they end."""
    waits: list[float] = []
    time_now = asyncio.get_running_loop().time

    class Timed(borrowing_module._Wanting):
        __slots__ = ()

        def __init__(self, waiter: Any, now: float) -> None:
            super().__init__(waiter, now)
            self.set_result = self._timed(self.set_result, now)
            self.set_exception = self._timed(self.set_exception, now)

        @staticmethod
        def _timed(tell: Callable[[Any], None], began: float) -> Callable[[Any], None]:
            def told(answer: Any) -> None:
                waits.append((time_now() - began) * 1_000)
                tell(answer)

            return told

    borrowing_module._Wanting = Timed  # type: ignore[misc]
    return waits


async def main(options: Options) -> dict[str, Any]:
    gc.freeze()
    gc.set_threshold(50_000)
    loads: dict[str, Load] = {}
    async with AsyncExitStack() as stack:
        for seed, (name, side) in enumerate(options.sides.items()):
            store = f"sqlite:///{Path(options.directory) / f'{seed}.db'}"
            engine = await stack.enter_async_context(
                Engine.connect(side.redis, store=store, secret="bench-secret-bench-secret")
            )
            names = spread_names(side.sales) if side.sales > 1 else ["hot"]
            more: dict[str, Any] = {"shards": side.shards} if side.shards else {}
            for sale in names:
                await engine.create_sale(sale, name=sale, capacity=CAPACITY, max_per_buyer=MAX_PER_BUYER, **more)
            loads[name] = Load(engine, side, names, seed)
        for name, load in loads.items():
            await load.warm()
            if options.units:
                await load.hold_all(options.sides[name].shards)
        trial = await next(iter(loads.values())).saturated(options.seconds)
        rate = LOAD * trial["count"] / trial["seconds"]
        samples: dict[str, dict[str, list[dict[str, Any]]]] = {
            name: {"even": [], "steady": [], "saturated": [], "all held": []} for name in loads
        }
        most = max(len(side.nodes) for side in options.sides.values())
        for turn in turns(list(loads), options.rounds):
            load, kept = loads[turn], samples[turn]
            if not options.units:
                # Each node has what it has where all of that is spread over most nodes.
                part = len(options.sides[turn].nodes) / most
                kept["even"].append(await load.steady(rate * part, options.seconds))
            kept["steady"].append(await load.steady(rate, options.seconds))
            kept["saturated"].append(await load.saturated(options.seconds))
            if options.units:
                kept["all held"].append(await load.saturated(options.seconds, load.refusal))
        idle = await _idle(loads)
        last = {}
        if options.units:
            last = {
                name: await load.sell_out(options.units, options.sides[name].shards) for name, load in loads.items()
            }
        for name, load in loads.items():
            if load.wrong:
                raise RuntimeError(f"{name}: {len(load.wrong)} pairs failed: {load.wrong[0]}")
            if (counted := await load.counted()) != load.done:
                raise RuntimeError(f"{name}: {load.done} pairs went well, and Redis has {counted}")
    return {"samples": samples, "idle": idle, "last": last}


async def _idle(loads: Mapping[str, Load]) -> dict[str, dict[str, float]]:
    """The shares of a core that servers, and engines on the mean, use while nobody comes."""
    for load in loads.values():
        await load.folded()
    await asyncio.sleep(IDLE_AFTER_S)
    before = {name: load.now() for name, load in loads.items()}
    await asyncio.sleep(IDLE_S)
    idle = {}
    for name, load in loads.items():
        used = load.sample(before[name], load.now())
        idle[name] = {
            "server": used["server"] / used["seconds"] / len(loads),
            "database": sum(used["nodes"]) / used["seconds"],
        }
    return idle


def turns(names: Sequence[T], rounds: int) -> Iterator[T]:
    """Each of them in each round; backwards in every other, so that nobody always follows the same."""
    for number in range(rounds):
        yield from names if number % 2 == 0 else reversed(names)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sides = {name: Side(**side) for name, side in given.pop("sides").items()}
    print(json.dumps(uvloop.run(main(Options(sides=sides, **given)))))
