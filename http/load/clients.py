"""What buyers do, one coroutine each: they ask, think, pay, cancel, repeat, hang up, and write down what they hear."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from . import contract
from .log import LOST, NOT_SENT, Call, Operation, Outcome
from .plan import Buyer, Intent
from .requests import GARBAGE, Requests
from .scenario import Scenario
from .wire import Exchange, Wire

#: Seconds for which a request whose outcome is not known, or that the server could not take now, is sent again with its
#: key: a Redis that fails over is away for 3 to 8, and a sale that has to be recovered then for some more.
REPEAT_FOR_SECONDS: Final = 30.0

#: Seconds before the first of these repeats where the answer does not say, and before each at the most; each next one
#: waits twice as long.
REPEAT_SECONDS: Final = 0.1
REPEAT_SECONDS_MAX: Final = 2.0

#: Seconds between two tries after a refusal, at the least: a deadline that has just passed is told as 0.
RETRY_SECONDS_MIN: Final = 0.05

#: Orders that one bot has under way at a time.
BOT_LANES: Final = 4

#: Shares of a bot's orders that are garbage, sent twice at once, hung up.
BOT_GARBAGE: Final = 0.2
BOT_DUPLICATES: Final = 0.4
BOT_HANG_UPS: Final = 0.2


class Clients:
    """The buyers of one process.

    Parameters
    ----------
    sales: ids, by number. heard: is told every operation that has ended.
    """

    def __init__(
        self,
        scenario: Scenario,
        wire: Wire,
        requests: Requests,
        sales: tuple[str, ...],
        heard: Callable[[Operation], None],
    ) -> None:
        self._scenario, self._wire, self._requests, self._sales = scenario, wire, requests, sales
        self._heard = heard
        self._stop = asyncio.Event()
        self._resting: set[asyncio.Future[None]] = set()

    def stop(self) -> None:
        """Nobody asks for anything new; who thinks, decides now; who waits to try again, leaves."""
        self._stop.set()
        for resting in self._resting:
            _wake(resting)

    async def rest(self, seconds: float) -> None:
        """Sleeps, unless all is to end."""
        if self._stop.is_set() or seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        until: asyncio.Future[None] = loop.create_future()
        handle = loop.call_later(seconds, _wake, until)
        self._resting.add(until)
        try:
            await until
        finally:
            self._resting.discard(until)
            handle.cancel()

    async def shop(self, buyer: Buyer, due: int) -> None:
        """All that one buyer does.

        Parameters
        ----------
        due: when it was to come, nanoseconds of the monotonic clock.
        """
        if buyer.orders:
            await self._hammer(buyer, due)
            return
        named = self._requests.buyer(buyer.number)
        ticket = await self._reserve(buyer, named, f"r-{buyer.number}", due)
        if ticket is not None:
            await self._decide(buyer, named, ticket)

    async def _decide(self, buyer: Buyer, named: str, ticket: str) -> None:
        if buyer.intent is Intent.WALK_AWAY:
            return
        due = time.monotonic_ns() + int(buyer.think * 1e9)
        await self.rest(buyer.think)
        # Who was woken early decides early.
        due = min(due, time.monotonic_ns())
        if buyer.intent is Intent.CANCEL:
            await self._settled(buyer, Call.CANCEL, self._requests.cancel(ticket, named), "", due, ticket)
            return
        key = f"p-{ticket}"
        request = self._requests.pay(ticket, named, key)
        paid = await self._settled(buyer, Call.PAY, request, key, due, ticket)
        if buyer.repeats and paid is not None and paid.outcome is Outcome.DONE:
            await self._ask(buyer, Call.PAY, request, key, time.monotonic_ns(), ticket)

    async def _reserve(self, buyer: Buyer, named: str, key: str, due: int) -> str | None:
        """The ticket that the buyer got; None when it got none, or left before it knew."""
        request = self._requests.reserve(self._sales[buyer.sale], named, key, self._scenario.units)
        if buyer.hangs_up:
            exchange = await self._wire.hang_up(request)
            self._note(buyer, Call.RESERVE, key, due, exchange)
            if not buyer.comes_back:
                return None
            due = time.monotonic_ns()
        if buyer.duplicates:
            both = [self._settled(buyer, Call.RESERVE, request, key, due) for _ in range(2)]
            heard = await asyncio.gather(*both)
        else:
            heard = [await self._settled(buyer, Call.RESERVE, request, key, due)]
        give_up = time.monotonic() + self._scenario.retry_for_s
        while True:
            done = next((one for one in heard if one is not None and one.outcome is Outcome.DONE), None)
            if done is not None:
                break
            last = heard[-1]
            if last is None or not buyer.retries or last.code not in ("all_held", "not_yet_open"):
                return None
            pause = max(last.retry_after_ms / 1000, RETRY_SECONDS_MIN)
            if self._stop.is_set() or time.monotonic() + pause > give_up:
                return None
            due = time.monotonic_ns() + int(pause * 1e9)
            await self.rest(pause)
            if self._stop.is_set():
                return None
            heard = [await self._settled(buyer, Call.RESERVE, request, key, due)]
        if buyer.repeats:
            await self._ask(buyer, Call.RESERVE, request, key, time.monotonic_ns())
        return done.ticket if done.state == "reserved" else None

    async def _settled(
        self, buyer: Buyer, call: Call, request: bytes, key: str, due: int, ticket: str = ""
    ) -> Operation | None:
        """The answer; where the outcome is not known, or was put off, the same is asked again. None: nobody answers."""
        pause = REPEAT_SECONDS
        give_up = time.monotonic() + REPEAT_FOR_SECONDS
        while True:
            operation = await self._ask(buyer, call, request, key, due, ticket)
            put_off = operation.status == 503 or operation.code == NOT_SENT
            if operation.outcome is not Outcome.UNKNOWN and not put_off:
                return operation
            if self._stop.is_set():
                break
            rest = 0.0 if operation.code == LOST and pause == REPEAT_SECONDS else pause
            rest = max(rest, operation.retry_after_ms / 1000)
            if time.monotonic() + rest > give_up:
                break
            due = time.monotonic_ns() + int(rest * 1e9)
            await self.rest(rest)
            pause = min(2 * pause, REPEAT_SECONDS_MAX)
        return None

    async def _ask(self, buyer: Buyer, call: Call, request: bytes, key: str, due: int, ticket: str = "") -> Operation:
        return self._note(buyer, call, key, due, await self._wire.ask(request), ticket)

    def _note(
        self,
        buyer: Buyer,
        call: Call,
        key: str,
        due: int,
        exchange: Exchange,
        ticket: str = "",
        expected: tuple[int, str] | None = None,
    ) -> Operation:
        quantity = self._scenario.units if call is not Call.GARBAGE else 0
        operation = Operation(
            buyer.number,
            call,
            buyer.sale,
            key,
            quantity,
            due,
            exchange.begun,
            exchange.ended,
            exchange.waited,
            code=exchange.why,
            ticket=ticket,
        )
        if exchange.answer is not None:
            contract.read(operation, self._sales[buyer.sale], exchange.answer, expected)
        self._heard(operation)
        return operation

    # Bots -------------------------------------------------------------------------------------------------------------

    async def _hammer(self, bot: Buyer, due: int) -> None:
        """Many orders, each with a key of its own, in several lanes; what comes of them is paid."""
        named = self._requests.buyer(bot.number)
        orders = iter(range(bot.orders))
        # Its own chance, so that what one bot does hangs on no other; numbers of the seed and the bot never meet.
        chance = random.Random(self._scenario.seed * 1_000_003 + bot.number)
        fates = [chance.random() for _ in range(bot.orders * 3)]

        async def lane() -> None:
            nonlocal due
            for order in orders:
                if self._stop.is_set():
                    return
                garbage, duplicate, hang_up = fates[3 * order : 3 * order + 3]
                if garbage < BOT_GARBAGE:
                    await self._garbage(bot, named, order, due)
                else:
                    once = bot._replace(
                        duplicates=duplicate < BOT_DUPLICATES,
                        hangs_up=hang_up < BOT_HANG_UPS,
                        comes_back=order % 2 == 0,
                    )
                    ticket = await self._reserve(once, named, f"r-{bot.number}-{order}", due)
                    if ticket is not None:
                        await self._decide(bot, named, ticket)
                due = time.monotonic_ns()

        await asyncio.gather(*(lane() for _ in range(BOT_LANES)))

    async def _garbage(self, bot: Buyer, named: str, order: int, due: int) -> None:
        garbage = GARBAGE[order % len(GARBAGE)]
        # The operator's call says nothing of a buyer.
        header = "" if garbage.headers and garbage.headers[0].startswith("Authorization") else named
        request = self._requests.garbage(garbage, self._sales[bot.sale], header)
        exchange = await self._wire.ask(request)
        self._note(bot, Call.GARBAGE, "", due, exchange, expected=garbage.expected)


def _wake(resting: asyncio.Future[None]) -> None:
    if not resting.done():
        resting.set_result(None)
