"""Short workloads on a real server and a real Redis, each fit to show what is missing in a mutant, in a few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import checkers, power
from .clients import Ask, Client, Habits, History, Load, SaleSpec
from .deployment import Deployment
from .history import Call, Operation, Outcome, Violation
from .servers import Broken, Redis

#: A workload: directory, environment of the product and seed to what the checkers found.
Workload = Callable[[Path, Mapping[str, str], int], Awaitable[list[Violation]]]

#: Seconds for which a mutant may be unquiet: one that has lost a unit never comes to rest.
QUIET_S = 3.0

#: Seconds after which a client gives an answer up.
ANSWER_S = 10.0

#: A folder with a failpoint in it, for PYTHONPATH.
LOSING = Path(__file__).parent / "losing"

#: Milliseconds between two copies of the ledger, so that quiet comes soon.
SNAPSHOT_MS = 100


@dataclass
class Stage:
    """A product at work, and what its clients write down."""

    product: Deployment
    seed: int
    history: History = field(default_factory=History)
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        self.clients.append(Client(len(self.clients), self.product.place, self.history, ANSWER_S))
        return self.clients[-1]

    async def look(self) -> None:
        """Reads the sales, so that the history tells their rules."""
        client = self.client()
        for sale in self.product.sales:
            await client.send(Ask(Call.SALE, "somebody", sale.id))

    async def judged(self, promised: Callable[[Operation], bool] = lambda operation: True) -> list[Violation]:
        """What the checkers find once all is quiet, or has had time to be."""
        for client in self.clients:
            client.close()
        with contextlib.suppress(Broken):
            await self.product.quiet(QUIET_S)
        sales = (await self.product.operator("GET", "/sales?limit=500"))["items"]
        finals = [await self.product._final(sale) for sale in sales]
        return checkers.check(self.history.operations, finals, promised)


@contextlib.asynccontextmanager
async def stage(
    directory: Path,
    environment: Mapping[str, str],
    seed: int,
    *sales: SaleSpec,
    snapshot_ms: int = SNAPSHOT_MS,
    workers: int = 1,
    with_power: bool = False,
) -> AsyncIterator[Stage]:
    """A product on a Redis and a store of its own.

    Parameters
    ----------
    with_power: the power of Redis can be cut.
    """
    directory.mkdir(parents=True, exist_ok=True)
    more = ("--snapshot-ms", str(snapshot_ms))
    redis = Redis(directory, env=power.environment(directory) if with_power else {})
    async with Deployment(directory, redis, sales=sales, env=environment, workers=workers, more=more) as product:
        on_it = Stage(product, seed)
        await on_it.look()
        yield on_it


async def crowd(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Many buyers who reserve, pay, cancel, repeat, come late, and try others' tickets."""
    async with stage(directory, environment, seed, SaleSpec("gig", {"general": 60}, 250, 6)) as on_it:
        load = crowd_of(on_it, 12)
        await asyncio.sleep(1.5)
        await load.stop()
        return await on_it.judged()


async def borrowed(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Many buyers of three shards, which lend each other the last units while every second reply of Redis is lost."""
    path = f"{LOSING}:{environment['PYTHONPATH']}"
    sale = SaleSpec("gig", {"general": 60}, 250, 6, shards=3)
    async with stage(directory, {**environment, "PYTHONPATH": path}, seed, sale) as on_it:
        load = crowd_of(on_it, 12, pay=0.5, cancel=0.3)
        await asyncio.sleep(3)
        await load.stop()
        return await on_it.judged()


def crowd_of(on_it: Stage, clients: int, **habits: Any) -> Load:
    """Buyers at work on a stage, who write into its history."""
    chosen = Habits(**{"pay": 0.3, "cancel": 0.4, "again": 0.3, "stranger": 0.2, "hang_up": 0.0} | habits)
    product = on_it.product
    return Load(product.place, str(on_it.seed), clients, chosen, product.sales, on_it.history).start()


async def reserve(client: Client, sale: str, quantity: int = 1, buyer: str = "", **more: Any) -> Operation:
    lines = (("general", quantity),)
    return await client.send(Ask(Call.RESERVE, buyer or f"buyer-{client.number:04}", sale, lines=lines, **more))


async def pay(client: Client, held: Operation, **more: Any) -> Operation:
    name = f"pay-{client.number}-{held.begun}"
    ask = Ask(Call.PAY, held.buyer, held.sale, ticket=held.ticket, key=name, reference=name, **more)
    return await client.send(ask)


async def last_units(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Buyers who all want the last units, two at a time of an odd number, and pay."""
    async with stage(directory, environment, seed, SaleSpec("gig", {"general": 9}, 1000)) as on_it:

        async def buy(client: Client) -> None:
            held = await reserve(client, "gig", 2)
            if held.outcome is Outcome.DONE:
                await pay(client, held)

        await asyncio.gather(*(buy(on_it.client()) for _ in range(12)))
        await on_it.look()
        return await on_it.judged()


async def greedy(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Buyers who each take more than they may."""
    async with stage(directory, environment, seed, SaleSpec("gig", {"general": 500}, 1000, 4)) as on_it:

        async def take(client: Client) -> None:
            for _ in range(6):
                held = await reserve(client, "gig")
                if held.outcome is Outcome.DONE:
                    await pay(client, held)

        await asyncio.gather(*(take(on_it.client()) for _ in range(6)))
        return await on_it.judged()


async def late(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Payments that arrive in the milliseconds after the deadline, before anything was swept."""
    async with stage(directory, environment, seed, SaleSpec("gig", {"general": 500}, 300)) as on_it:
        rng = random.Random(seed)

        async def pay_late(client: Client) -> None:
            for _ in range(3):
                held = await reserve(client, "gig")
                await asyncio.sleep(held.answer["expires_in_ms"] / 1000 + rng.uniform(0, 0.02))
                await pay(client, held)

        await asyncio.gather(*(pay_late(on_it.client()) for _ in range(15)))
        return await on_it.judged()


async def left_to_expire(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Holds that nobody pays, in a sale that nobody else wants."""
    async with stage(directory, environment, seed, SaleSpec("gig", {"general": 500}, 100)) as on_it:
        await asyncio.gather(*(reserve(on_it.client(), "gig") for _ in range(10)))
        return await on_it.judged()


async def redis_lost(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Payments that are to be stored; then Redis loses everything, and is rebuilt from the store."""
    # Nothing but the payments themselves brings their ledger into the store.
    async with stage(
        directory, environment, seed, SaleSpec("gig", {"general": 500}, 2000), snapshot_ms=600_000
    ) as on_it:

        async def buy(client: Client) -> None:
            for _ in range(3):
                await pay(client, await reserve(client, "gig"), durability="stored")

        await asyncio.gather(*(buy(on_it.client()) for _ in range(8)))
        on_it.product.redis.kill()
        on_it.product.redis.forget()
        await on_it.product.redis.start()
        await on_it.product.ready()
        await on_it.product.recover("gig")
        return await on_it.judged(lambda operation: operation.level == "stored")


async def power_lost(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Payments that are to be on the disk of a Redis that syncs once a second, and a power failure."""
    sale = SaleSpec("gig", {"general": 500}, 2000)
    async with stage(directory, environment, seed, sale, snapshot_ms=600_000, with_power=True) as on_it:

        async def buy(client: Client) -> None:
            for _ in range(3):
                await pay(client, await reserve(client, "gig"), durability="fsync")

        await asyncio.gather(*(buy(on_it.client()) for _ in range(8)))
        redis = on_it.product.redis
        redis.kill()
        power.cut(redis)
        await redis.start()
        await on_it.product.ready()
        found = await on_it.judged(lambda operation: operation.level == "fsync")
        # The reservations of the last second are gone, as they may be, which no order of what happened explains.
        return [violation for violation in found if violation.checker == "A"]


async def two_who_copy(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Two workers who both copy the ledger, for payments that are to be stored."""
    sale = SaleSpec("gig", {"general": 100_000}, 1500)
    async with stage(directory, environment, seed, sale, snapshot_ms=20, workers=2) as on_it:
        load = crowd_of(on_it, 16, levels=("stored",), think_s=0.002)
        await load.more(400)
        await load.stop()
        return await on_it.judged()


async def redis_rolled_back(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """All is sold and stored; then Redis comes back with its file of before, and everybody comes again."""
    async with stage(directory, environment, seed, SaleSpec("gig", {"general": 8}, 5000)) as on_it:
        product, kept = on_it.product, directory / "kept"
        shutil.copytree(product.redis.data, kept)

        async def buy(client: Client) -> None:
            held = await reserve(client, "gig")
            if held.outcome is Outcome.DONE:
                await pay(client, held, durability="stored")

        await asyncio.gather(*(buy(on_it.client()) for _ in range(8)))
        product.redis.kill()
        product.redis.forget()
        shutil.copytree(kept, product.redis.data, dirs_exist_ok=True)
        await product.redis.start()
        await asyncio.gather(*(buy(on_it.client()) for _ in range(8)))
        with contextlib.suppress(Broken):
            await product.ready()
        return await on_it.judged(lambda operation: operation.level == "stored")


async def rebuilt_while_it_sells(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """`holdfast recover` on a sale that is well and busy."""
    async with stage(directory, environment, seed, SaleSpec("gig", {"general": 100_000}, 1500)) as on_it:
        load = crowd_of(on_it, 8, think_s=0.002, pay=0.9, cancel=0.1)
        await load.more(100)
        with contextlib.suppress(Broken):
            await on_it.product.recover("gig")
        await load.stop()
        return await on_it.judged()


async def replies_lost(directory: Path, environment: Mapping[str, str], seed: int) -> list[Violation]:
    """Redis carries calls out and its answers are lost, again and again, while buyers buy without keys."""
    path = f"{LOSING}:{environment['PYTHONPATH']}"
    sale = SaleSpec("gig", {"general": 100_000}, 500)
    async with stage(directory, {**environment, "PYTHONPATH": path}, seed, sale) as on_it:
        load = crowd_of(on_it, 8, keyless=1.0)
        await load.more(30)
        await load.stop()
        return await on_it.judged()
