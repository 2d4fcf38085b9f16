"""Row 11: the clock of Redis jumps an hour, forward or back. Deadlines are by that clock."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ..clients import Habits
from ..deployment import Deployment
from ..history import Call, Outcome
from ..plan import Case, Run, now
from ..preload import library
from ..servers import Broken, Redis


async def _jump(run: Run, by: int) -> None:
    clock = run.directory / "clock"
    clock.write_bytes(bytes(8))
    env = {"LD_PRELOAD": library("clock", run.directory), "CLOCK_OFFSET": str(clock)}
    redis = Redis(run.directory, env=env)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, Habits(levels=("memory", "stored")))
        await load.more(30)
        load.phase("fault")
        _set(clock, by)
        jumped = now()
        await asyncio.sleep(2)
        load.phase("load")
        await load.more(30)
        load.phase("fault")
        _set(clock, 0)
        await run.healed(jumped)
        run.trials = 2
        load.phase("after")
        await load.more(30)
        await load.stop()
        # What was reserved in the hour ahead holds until then: once all clients are gone, that hour comes.
        _set(clock, max(0, by))
        run.finals = await product.finals()
        _no_late_payment(run)


def _set(clock: Path, seconds: int) -> None:
    """In place, since Redis has it mapped."""
    with clock.open("r+b") as file:
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def _no_late_payment(run: Run) -> None:
    """No ticket was paid at or after its deadline, by the clock that both are of.

    Raises
    ------
    Broken: one was.
    """
    for operation in run.operations:
        answer = operation.answer
        paid = operation.call is Call.PAY and operation.outcome is Outcome.DONE and "purchased_at" in answer
        if paid and answer["purchased_at"] >= answer["expires_at"]:
            raise Broken(f"{operation.ticket} was paid at {answer['purchased_at']}, after {answer['expires_at']}")


async def forward(run: Run) -> None:
    await _jump(run, 3600)


async def back(run: Run) -> None:
    await _jump(run, -3600)


CASES = (
    Case(11, "clock jump", "an hour forward and back again", forward),
    Case(11, "clock jump", "an hour back and forward again", back, quick=0),
)
