"""Buyers at work on an engine who write down what they were told, for tests in which servers come and go."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from holdfast.engine import (
    AllHeld,
    Durability,
    DurabilityUnavailable,
    Engine,
    NotReady,
    OutcomeUnknown,
    SoldOut,
    Ticket,
    UnknownTicket,
)

#: Seconds for which one call is repeated with its key. Longer than any failover: who still does not know then has found
#: something.
KNOW_S = 30.0

#: Seconds in which a sale whose node is gone is promised to sell again, on a busy machine.
AGAIN_S = 30.0


class Shoppers:
    """While it lasts, each of some buyers reserves a unit and pays for it, again and again.

    Parameters
    ----------
    sales: by turns. levels: of the payments, by turns. each: buyers of every sale.

    Attributes
    ----------
    bought: ticket and durability of every payment that was acknowledged. put_off: by sale, what calls heard that said
    "not now" or "unknown". last: by sale, when somebody last bought (monotonic).
    lost: reservations that were gone when they were to be paid.
    """

    def __init__(
        self, engine: Engine, sales: Sequence[str], levels: Sequence[str] = ("memory",), each: int = 3
    ) -> None:
        self._engine, self._sales, self._each = engine, sales, each
        self._levels = itertools.cycle([Durability(level) for level in levels])
        self._names = itertools.count()
        self._stopping = False
        self.bought: dict[str, Durability] = {}
        self.put_off: dict[str, Counter[str]] = defaultdict(Counter)
        self.last: dict[str, float] = defaultdict(float)
        self.lost = 0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._shop(sale)) for sale in self._sales for _ in range(self._each)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            return
        await asyncio.gather(*self._tasks)

    async def more(self, sale: str, purchases: int = 3) -> None:
        """Waits until so many more purchases in this sale have begun after now and been acknowledged."""
        async with asyncio.timeout(AGAIN_S):
            for _ in range(purchases):
                since = time.monotonic()
                while self.last[sale] < since:
                    for task in self._tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.01)

    async def _shop(self, sale: str) -> None:
        while not self._stopping:
            name = f"b-{next(self._names)}"
            began = time.monotonic()
            try:
                held = await self._known(sale, lambda n=name: self._engine.reserve(sale, buyer=n, quantity=1, key=n))
            except (AllHeld, SoldOut):
                await asyncio.sleep(0.02)
                continue
            try:
                paid = await self._known(sale, self._payment(held.id, name, next(self._levels)))
            except UnknownTicket:
                # Redis lost its memory of it, as it may: the reservation was acknowledged in memory.
                self.lost += 1
                continue
            assert paid.durability is not None
            self.bought[paid.id] = paid.durability
            self.last[sale] = max(self.last[sale], began)

    def _payment(self, ticket: str, name: str, level: Durability) -> Callable[[], Awaitable[Ticket]]:
        def at(level: Durability) -> Awaitable[Ticket]:
            return self._engine.confirm(ticket, buyer=name, reference=name, key=name, durability=level)

        async def pay() -> Ticket:
            try:
                return await at(level)
            except DurabilityUnavailable:
                # No replica is left, for instance: whoever can do without goes on.
                return await at(Durability.MEMORY)

        return pay

    async def _known(self, sale: str, call: Callable[[], Awaitable[Ticket]]) -> Ticket:
        """The call, repeated with its key until its outcome is known."""
        give_up = time.monotonic() + KNOW_S
        while True:
            try:
                return await call()
            except (NotReady, OutcomeUnknown) as error:
                self.put_off[sale][str(error)] += 1
                if time.monotonic() > give_up:
                    raise
            await asyncio.sleep(0.05)


async def well(engine: Engine) -> None:
    """Waits until everything can be sold; does what an operator does where it takes one."""
    give_up = time.monotonic() + AGAIN_S
    while not (readiness := await engine.readiness()).ready:
        assert time.monotonic() < give_up, readiness
        if any(sign in reason for reason in readiness.reasons for sign in ("holdfast recover", "the store at")):
            await engine.recover()
        await asyncio.sleep(0.05)


async def kept(engine: Engine, shoppers: Shoppers, *levels: str) -> None:
    """Every purchase that was acknowledged at these levels is one, and counters, ledger and store agree."""
    await engine.snapshot()
    for id, level in shoppers.bought.items():
        if level.value in levels:
            assert (await engine.ticket(id)).status.value == "purchased", (id, level)
    report = await engine.audit()
    assert report.clean, str(report)
