"""Tickets in bulk: batches of reservations through the engine, without a caller for each of them.

The tickets, their ledger entries, deadlines and leases are the real ones. The one place of the bench that reaches
behind `Engine`, as its tests do: the scripts can be given a clock, by which all holds run out within the same second,
however long the filling takes; and leases can be left out, to see what they weigh.

Usage: python -P -m bench.fill OPTIONS, a JSON object: see `Options`. Prints a JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from holdfast.engine import Engine

#: Batches under way: while Redis works on one, the next is put together. The engine sends what waits, so that each
#: stays a script call of its own.
BATCHES_AT_ONCE = 2

#: Batches after which their leases are waited for: they are set behind everybody's back, and given up when too many
#: wait.
LEASES_EVERY = 100

#: Milliseconds before the end of the second in which all holds run out: rounding stays inside it.
SPREAD_MS = 990


@dataclass(frozen=True, slots=True)
class Options:
    """What to fill.

    Parameters
    ----------
    redis, store, secret: of the engine.
    sale: which; created with `capacity` when that is given.
    count: tickets of one unit, each with a buyer of its own. batch: in one script call.
    leases: False leaves them out.
    deadline: Unix ms at which the first hold runs out, the last less than a second later; 0 goes by the real clock.
    hold_ms: of the sale. seconds: what filling is expected to take, over which the deadlines are spread.
    prefix: of the buyers, to tell two fillings apart.
    """

    redis: str
    store: str
    secret: str
    sale: str
    count: int
    batch: int
    prefix: str
    leases: bool = True
    capacity: int = 0
    deadline: int = 0
    hold_ms: int = 900_000
    seconds: float = 1.0
    spread_ms: int = SPREAD_MS


def fixed_clock(options: Options) -> str:
    """The scripts' clock: within one second for as long as the filling takes, and never backwards."""
    base = options.deadline - options.hold_ms
    began = int(time.time() * 1000)
    stretch = max(1.0, options.seconds * 1000 / max(1, options.spread_ms))
    return f"""
local function clock()
  local time = redis.call('TIME')
  local passed = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) - {began}
  return {base} + math.max(0, math.min({options.spread_ms}, math.floor(passed / {stretch:.3f})))
end
"""


class Filler:
    """Hears the answers of one batch after the other: a waiter of the engine's, without a task or a future.

    Parameters
    ----------
    errors: where those go whose ticket was not made.

    Attributes
    ----------
    made: tickets so far.
    """

    def __init__(self, errors: list[str]) -> None:
        self.made = 0
        self._errors = errors
        self._left = 0
        self._all_heard = asyncio.Event()

    def done(self) -> bool:
        return False

    def set_result(self, _: object, /) -> None:
        self.made += 1
        self._heard()

    def set_exception(self, exception: BaseException, /) -> None:
        self._errors.append(f"{type(exception).__name__}: {exception}")
        self._heard()

    def _heard(self) -> None:
        self._left -= 1
        if not self._left:
            self._all_heard.set()

    async def reserve(self, engine: Engine, sale: str, buyers: Sequence[str]) -> None:
        """One batch: a ticket for each of the buyers."""
        self._left = len(buyers)
        self._all_heard.clear()
        for buyer in buyers:
            if not engine.reserve_for(self, sale, buyer=buyer, quantity=1):
                raise RuntimeError(f"the engine does not know the sale '{sale}'")
        await self._all_heard.wait()


async def fill(options: Options) -> dict[str, Any]:
    engine = Engine.connect(
        options.redis, store=options.store, secret=options.secret, sweep=False, listen=False, snapshot_ms=None
    )
    if options.deadline:
        engine._replaced = {"clock": fixed_clock(options)}
    async with engine:
        if options.capacity:
            await engine.create_sale(
                options.sale, name="Filled", capacity=options.capacity, hold_ms=options.hold_ms, max_per_buyer=4
            )
        # From here on the engine knows the sale.
        await engine.sale(options.sale)
        leases = engine._leases
        if not options.leases:
            leases.set = lambda *_: None  # type: ignore[method-assign]
        starts = iter(range(0, options.count, options.batch))
        errors: list[str] = []
        fillers = [Filler(errors) for _ in range(BATCHES_AT_ONCE)]

        async def work(filler: Filler) -> None:
            for turn, start in enumerate(starts, start=1):
                numbers = range(start, min(start + options.batch, options.count))
                await filler.reserve(engine, options.sale, [f"{options.prefix}-{number:09d}" for number in numbers])
                if turn % LEASES_EVERY == 0:
                    await leases.drained()

        began = time.monotonic()
        await asyncio.gather(*map(work, fillers))
        await leases.drained()
        seconds = time.monotonic() - began
    return {"made": sum(filler.made for filler in fillers), "seconds": seconds, "errors": errors[:3]}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(fill(Options(**json.loads(sys.argv[1]))))))
