"""Rows 13 and 14: processes of the product die, between Redis and the answer, or while they copy into the store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from holdfast import lua

from ..clients import Ask, Client, History, Load, SaleSpec
from ..deployment import Deployment
from ..history import Call, Operation, Outcome
from ..plan import Case, Run, now
from ..proxy import Proxy
from ..servers import Broken, Holdfast, Redis, kill, until

# 13: the snapshotter is killed ----------------------------------------------------------------------------------------

#: Where the failpoint lives that is loaded into the product's processes (see failpoint/sitecustomize.py).
FAILPOINT = Path(__file__).resolve().parent.parent / "failpoint"


async def snapshotter_killed(run: Run) -> None:
    """Before and after each statement of the store's writer, the process that copies is killed by a failpoint."""
    redis = Redis(run.directory)
    armed = run.directory / "armed"
    env = {"PYTHONPATH": str(FAILPOINT), "FAILPOINT": str(armed)}
    async with Deployment(run.directory, redis, workers=2, env=env, more=("--snapshot-ms", "100")) as product:
        load = run.clients(product)
        await load.more(30)
        load.phase("fault")
        points = [(statement, side) for statement in range(1, 9) for side in ("before", "after")]
        if run.quick:
            points = run.rng.sample(points, 4)
        run.trials = 0
        for statement, side in points:
            alive = set(product.holdfast.children())
            armed.write_text(f"{statement} {side}")

            async def died() -> bool:
                return not armed.exists()

            await until(f"the snapshotter dies {side} statement {statement}", died)

            async def replaced(alive: set[int] = alive) -> bool:
                now_alive = set(product.holdfast.children())
                return len(now_alive) == 2 and now_alive != alive

            await until("a worker is started in its place", replaced)
            run.trials += 1
        await run.healed(now())
        await run.over(product)
        await no_alarms(product)


async def two_snapshotters(run: Run) -> None:
    """Two products on one Redis and one store: both copy, and one of them is killed now and then."""
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, more=("--snapshot-ms", "20")) as product:
        second = Holdfast(
            run.directory, redis=redis.url, store=product.store, name="second", more=("--snapshot-ms", "20")
        )
        product.processes.append(second)
        await second.start()
        load = run.clients(product)
        await load.more(30)
        load.phase("fault")
        run.trials = 2 if run.quick else 6
        for _ in range(run.trials):
            await load.more(15)
            second.kill()
            await second.start()
        await run.healed(now())
        await run.over(product)
        await no_alarms(product)


async def no_alarms(product: Deployment) -> None:
    """The store must have found no contradiction.

    Raises
    ------
    Broken: it has.
    """
    if found := await product.query("SELECT detail FROM alarms"):
        raise Broken(f"alarms in the store: {found[:3]}")


# 14: a worker dies between the script and the reply -------------------------------------------------------------------


async def dies_before_reply(run: Run) -> None:
    """Redis has done it and its answer is held back when the worker is killed; the same key then tells."""
    redis = Redis(run.directory)
    async with Proxy("127.0.0.1", redis.port) as proxy:
        # Longer than workers take to start again.
        sales = (SaleSpec("large", {"general": 1_000}, 60_000),)
        async with Deployment(run.directory, redis, redis_url=proxy.url, workers=2, sales=sales) as product:
            history = History()
            # One client alone, so that it is known whose script ran.
            run.load = Load(product.place, run.key, 0, sales=product.sales, history=history)
            client = Client(1, product.place, history, 20.0)
            run.trials = 2 if run.quick else 5
            # Redis knows the scripts before the first of them is cut short.
            await _both(client, "before", Client.send)
            history.phase = "fault"
            for trial in range(run.trials):

                async def cut_short(client: Client, ask: Ask) -> Operation:
                    return await _cut_short(run, product, proxy, client, ask)

                await _both(client, str(trial), cut_short)
            client.close()
            history.phase = "after"
            run.finals = await product.finals()
            (large,) = [final for final in run.finals if final.sale == "large"]
            if len(large.tickets) != run.trials + 1:
                raise Broken(f"{run.trials} reservations, each repeated, made {len(large.tickets)} tickets")


async def _both(client: Client, name: str, send: Callable[[Client, Ask], Awaitable[Operation]]) -> None:
    """A reservation and its payment, each by `send` and then once more in peace: the same must come back."""
    buyer, lines = f"buyer-of-{name}", (("general", 1),)
    reserve = Ask(Call.RESERVE, buyer, "large", lines=lines, key=f"r-{name}")
    ticket = (await _twice(client, reserve, send)).ticket
    await _twice(client, Ask(Call.PAY, buyer, "large", ticket, key=f"p-{name}", reference=f"pay-{name}"), send)


async def _twice(client: Client, ask: Ask, send: Callable[[Client, Ask], Awaitable[Operation]]) -> Operation:
    first, second = await send(client, ask), await client.send(ask)
    told = [{name: value for name, value in each.answer.items() if name != "expires_in_ms"} for each in (first, second)]
    if first.status is None or told[0] != told[1]:
        raise Broken(f"{ask}: first {first.status} {first.answer}, then {second.status} {second.answer}")
    return first


async def _cut_short(run: Run, product: Deployment, proxy: Proxy, client: Client, ask: Ask) -> Operation:
    """Sends it, kills its worker when Redis has done it, and repeats it until it is answered; the answer."""
    before = await product.sequence(ask.sale)
    # On the connection of this very script: the sweeper and the readers go on.
    script = lua.load("reserve" if ask.call is Call.RESERVE else "confirm")
    proxy.hold_answers(after=hashlib.sha1(script.encode()).hexdigest().encode())
    sent = asyncio.ensure_future(client.send(ask))

    async def done() -> bool:
        return await product.sequence(ask.sale) > before

    await until(f"Redis does {ask.call}", done)
    killed = now()
    for pid in product.holdfast.children():
        kill(pid)
    operation = await sent
    proxy.hang_up()
    proxy.release()
    if operation.outcome is not Outcome.UNKNOWN:
        raise Broken(f"{ask.call} was answered {operation.status}, though its worker was killed")

    async def answered() -> Operation | None:
        again = await client.send(ask)
        return again if again.outcome is Outcome.DONE else None

    answer: Operation = await until(f"the repeat of {ask.call} is answered", answered, pause=0.1)
    run.recover_s.append((now() - killed) / 1e9)
    return answer


CASES = (
    Case(13, "snapshotter killed", "at each statement", snapshotter_killed),
    Case(13, "snapshotter killed", "two at once", two_snapshotters, quick=0),
    Case(14, "worker dies before the reply", "reply held, kill -9", dies_before_reply),
)
