"""Rows 15, 16, 19 and 20: what clients and the network between do: repeat, delay, hang up, send nonsense, race."""

from __future__ import annotations

import asyncio
import time

from ..clients import Ask, Client, Habits, History, Load, SaleSpec
from ..deployment import Deployment
from ..history import Call, Operation, Outcome
from ..plan import Case, Run
from ..replay import Replayer
from ..servers import Broken, Redis

# 15: duplicated, delayed, reordered -----------------------------------------------------------------------------------


async def replayed(run: Run) -> None:
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        history = History()
        async with Replayer(product.place, lambda: history, run.key) as replayer:
            load = Load(replayer.place, run.key, 24, Habits(again=0.2), product.sales, history)
            run.load = load.start()
            load.phase("fault")
            await load.more(80 if run.quick else 300)
            await load.stop()
            await replayer.done()
        load.phase("after")
        run.trials = replayer.repeats
        if replayer.differing:
            raise Broken(f"{len(replayer.differing)} repeats were answered otherwise: {replayer.differing[0]}")
        run.finals = await product.finals()


# 16: clients that hang up ---------------------------------------------------------------------------------------------


async def hang_ups(run: Run) -> None:
    """Four of ten requests are given up within 10 ms; the clients check that every answer is theirs."""
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, Habits(hang_up=0.4, think_s=0.003), clients=48)
        load.phase("fault")
        await load.more(100 if run.quick else 400)
        await load.stop()
        run.trials = sum(each.ended is None for each in run.operations)
        run.finals = await product.finals()


# 20: confirm, cancel and expiry in the same millisecond ---------------------------------------------------------------

#: Milliseconds of the holds that are raced against.
RACED_MS = 60

#: Seconds around the deadline in which payment and cancellation set out.
AROUND_S = 0.003


async def same_millisecond(run: Run) -> None:
    sales = (SaleSpec("race", {"general": 100_000}, RACED_MS),)
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=1, sales=sales) as product:
        history = History()
        run.load = Load(product.place, run.key, 0, sales=sales, history=history)
        history.phase = "fault"
        run.trials = 400 if run.quick else 3_000
        trials = iter(range(run.trials))
        ends: dict[str, int] = {}

        async def race(number: int) -> None:
            clients = [Client(number * 3 + at, product.place, history, 20.0) for at in range(3)]
            for trial in trials:
                buyer = f"buyer-{trial:05}"
                held = await clients[0].send(
                    Ask(Call.RESERVE, buyer, "race", lines=(("general", 1),), key=f"r-{trial}")
                )
                if held.outcome is not Outcome.DONE or held.ended is None:
                    raise Broken(f"reserve was answered {held.status} {held.answer}")
                # The deadline by our clock, as well as we know it: half of the way back was after Redis looked.
                due = held.ended / 1e9 + held.answer["expires_in_ms"] / 1000
                asks = [
                    Ask(Call.PAY, buyer, "race", ticket=held.ticket, key=f"p-{trial}", reference=f"pay-{trial}"),
                    Ask(Call.CANCEL, buyer, "race", ticket=held.ticket),
                    Ask(Call.TICKET, buyer, "race", ticket=held.ticket),
                ]
                # One trial in four races payment and cancellation alone, well before the deadline.
                early = 0.02 if run.rng.random() < 0.25 else 0.0
                starts = [due - early + run.rng.uniform(-AROUND_S, AROUND_S / 3) for _ in asks]
                outcomes = await asyncio.gather(
                    *(at(client, ask, start) for client, ask, start in zip(clients, asks, starts, strict=True))
                )
                done = [each.call for each in outcomes[:2] if each.outcome is Outcome.DONE]
                if len(done) > 1:
                    raise Broken(f"{held.ticket} was paid and cancelled")
                which = str(done[0]) if done else "expired"
                ends[which] = ends.get(which, 0) + 1
            for client in clients:
                client.close()

        await asyncio.gather(*(race(number) for number in range(12)))
        history.phase = "after"
        run.finals = await product.finals()
        run.remarks.append(", ".join(f"{count} {which}" for which, count in sorted(ends.items())))


async def at(client: Client, ask: Ask, when: float) -> Operation:
    """Sends it at this instant of the monotonic clock."""
    await asyncio.sleep(max(0.0, when - time.monotonic()))
    return await client.send(ask)


CASES = (
    Case(15, "duplicated, delayed, reordered", "replaying proxy", replayed),
    Case(16, "clients that hang up", "4 in 10 requests", hang_ups),
    Case(20, "pay, cancel, expire at once", "at the deadline", same_millisecond),
)
