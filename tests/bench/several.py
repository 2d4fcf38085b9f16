"""One hot sale in one slot, sold by several processes at the same time: what a pair costs Redis as they become more.

Each process has one script call of the sale under way; what it hears meanwhile travels in its next one. So the same
calls from more processes travel in smaller company, until Redis has so much to do that they wait for each other.

All processes run on the first core, Redis on the second. The most that are ever needed are started, and each turn is
taken by the first few of them; the others are idle. The first sweeps and copies, as the one of a server's workers that
leads. In a steady turn all of them together have half the rate that the first reaches alone, in a calm one a twentieth;
in a saturated turn they share its callers. They share one core as well, and a process that waits for it gathers company
meanwhile: with cores of their own, calls travel in smaller company than here.

Usage: python -P -m bench.several OPTIONS, a JSON object: see `Options`. Prints a JSON object: samples by number of
processes. Those who sell are the same module with `Seller` as options; they take an order on each line of their input
and answer it with a line.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import uvloop

from holdfast.engine import Engine

from .callers import CAPACITY, MAX_PER_BUYER
from .sales import CALLERS, LOAD, Load, Side, turns

#: The share of what the first can do that is calm: every process has time to spare, and so has Redis.
CALM = 0.05

#: Seconds within which a process has answered, whatever it was asked.
ANSWER_SECONDS_MAX = 60.0

#: Bytes of an answer, at the most.
LINE_MAX = 2**20


@dataclass(frozen=True, slots=True)
class Options:
    """What to do.

    Parameters
    ----------
    redis: its address. nodes: its servers, as host and port. directory: for the store.
    processes: how many sell, in turns.
    rounds, seconds: how often each number has its turn, and for how long.
    """

    redis: str
    nodes: Sequence[tuple[str, int]]
    directory: str
    processes: Sequence[int]
    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Seller:
    """One of those who sell; number 0 makes the sale, sweeps and copies."""

    redis: str
    nodes: Sequence[tuple[str, int]]
    directory: str
    seller: int


async def sell(options: Seller) -> None:
    """Does what the lines of the input say, until there are no more."""
    gc.freeze()
    gc.set_threshold(50_000)
    first = options.seller == 0
    leads: dict[str, Any] = {} if first else {"sweep": False, "snapshot_ms": None}
    store = f"sqlite:///{Path(options.directory) / 'store.db'}"
    async with Engine.connect(options.redis, store=store, secret="bench-secret-bench-secret", **leads) as engine:
        if first:
            await engine.create_sale("hot", name="Hot", capacity=CAPACITY, max_per_buyer=MAX_PER_BUYER)
        load = Load(engine, Side(options.redis, options.nodes, 1), ["hot"], options.seller)
        _answer({})
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            if order["kind"] == "counted":
                _answer({"counted": await load.counted()})
                continue
            if order["kind"] == "steady":
                sample = await load.steady(order["rate"], order["seconds"])
            else:
                sample = await load.saturated(order["seconds"], callers=order["callers"])
            _answer(sample | {"total": load.done, "wrong": load.wrong[:1]})


def _answer(told: Mapping[str, Any]) -> None:
    print(json.dumps(told), flush=True)


class Selling:
    """A process that sells, seen from outside."""

    def __init__(self, process: Process) -> None:
        self._process = process
        #: Pairs that it has made so far.
        self.total = 0

    @classmethod
    async def start(cls, options: Seller) -> Self:
        command = (sys.executable, "-P", "-m", "bench.several", json.dumps(asdict(options)))
        selling = cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=LINE_MAX))
        await selling._hear()
        return selling

    async def ask(self, **order: Any) -> dict[str, Any]:
        """The answer to an order.

        Raises
        ------
        RuntimeError: it ended instead, or something went wrong in it.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        answer = await self._hear()
        self.total = answer.get("total", self.total)
        for wrong in answer.get("wrong", ()):
            raise RuntimeError(f"a pair failed: {wrong}")
        return answer

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), ANSWER_SECONDS_MAX)
        if not line:
            raise RuntimeError("a process that sells has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


def together(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One sample of those taken at the same time: each process has counted its own pairs, and all the same Redis."""
    both = {name: sum(sample[name] for sample in samples) for name in ("count", "server")}
    return {**samples[0], **both}


async def main(options: Options) -> dict[str, Any]:
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {
        str(number): {"calm": [], "steady": [], "saturated": []} for number in options.processes
    }
    async with AsyncExitStack() as stack:
        sellers: list[Selling] = []
        for number in range(max(options.processes)):
            seller = Seller(options.redis, options.nodes, options.directory, number)
            sellers.append(await Selling.start(seller))
            stack.push_async_callback(sellers[-1].end)

        async def turn(number: int, **order: Any) -> dict[str, Any]:
            return together(
                await asyncio.gather(*(seller.ask(seconds=options.seconds, **order) for seller in sellers[:number]))
            )

        trial = await turn(1, kind="saturated", callers=CALLERS)
        most = trial["count"] / trial["seconds"]
        for number in turns(options.processes, options.rounds):
            kept = samples[str(number)]
            kept["calm"].append(await turn(number, kind="steady", rate=CALM * most / number))
            kept["steady"].append(await turn(number, kind="steady", rate=LOAD * most / number))
            kept["saturated"].append(await turn(number, kind="saturated", callers=CALLERS // number))
        counted = (await sellers[0].ask(kind="counted"))["counted"]
        if counted != (total := sum(seller.total for seller in sellers)):
            raise RuntimeError(f"{total} pairs went well, and Redis has {counted}")
    return {"samples": samples}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if "seller" in given:
        uvloop.run(sell(Seller(**given)))
    else:
        print(json.dumps(uvloop.run(main(Options(**given)))))
