"""The other side of a run: makes the sales, watches their counters, waits for the holds to end, reads the last word."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from holdfast.engine import ConfigurationError

from ..models import instant_text
from .claims import Claim, End, Listed, Reading, Sale
from .contract import instant_ms
from .figures import Stock
from .log import Operation
from .requests import Requests
from .scenario import Scenario
from .wire import Wire

#: Seconds between two looks at the counters of a sale.
LOOK_SECONDS: Final = 0.1

#: Seconds beyond a hold's end in which its units must be back: the server promises about one, on a machine with time.
GRACE_SECONDS: Final = 10.0

#: The same where a Redis may be lost: nothing is swept until another has taken over, and what it lost is recovered.
GRACE_FAILOVER_SECONDS: Final = 30.0

#: Tickets that are read at a time, and those that are listed by one call.
READ_AT_ONCE: Final = 32
PAGE: Final = 500

#: Purchases that are read one by one after they were listed: a few seconds.
AGAIN_MAX: Final = 5_000

#: Times that a call is tried, with a pause between them: a server may be starting again, or a sale that a failover has
#: left behind the store be recovered, which together take 20 s at the most.
TRIES: Final = 40
TRY_AGAIN_SECONDS: Final = 0.5


class CannotRun(Exception):
    """Why nothing could be done or proved, in one sentence for a person."""


@dataclass(slots=True)
class Watched:
    """A sale of the run, and what it said of itself.

    Parameters
    ----------
    sku: of the item that is bought. own: whether this run made it. limits: per buyer, all that it ever had.
    shards: whether its units are divided over several slots.
    stock, readings: the counters over time, for plots and for the verdict.
    """

    id: str
    sku: str
    own: bool
    hold_ms: int
    limits: set[int | None] = field(default_factory=set)
    stock: list[Stock] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    sequence: int = 0
    shards: bool = False

    @property
    def unsettled(self) -> int:
        """Units that are held, or on their way between shards."""
        return self.readings[-1].reserved + self.readings[-1].in_transit


class Seller:
    """One run's sales.

    Parameters
    ----------
    token: the operator's, when it is known. run: goes into the ids of sales.
    """

    def __init__(self, wire: Wire, requests: Requests, scenario: Scenario, token: str | None, run: str) -> None:
        self._wire, self._requests, self._scenario, self._run = wire, requests, scenario, run
        self._token = token
        self._operator = f"Authorization: Bearer {token}\r\n" if token else ""
        self._start = 0
        self.sales: list[Watched] = []

    # Before -----------------------------------------------------------------------------------------------------------

    async def use(self, sale: str, sku: str | None) -> str | None:
        """Buy in a sale that is there; the sku that orders have to name, None where there is only one.

        Raises
        ------
        ConfigurationError: it is not there, or it is not clear which item.
        CannotRun: the server does not answer.
        """
        status, body = await self._call("GET", f"/sales/{sale}")
        if status != 200:
            raise ConfigurationError(f"--sale {sale}: {body.get('detail', status)}")
        skus = [item["sku"] for item in body["items"]]
        if sku is None and len(skus) > 1:
            raise ConfigurationError(f"--sale {sale} has the items {', '.join(skus)}: name one with --sku.")
        if sku is not None and sku not in skus:
            raise ConfigurationError(f"--sale {sale} has no item '{sku}'; it has {', '.join(skus)}.")
        self.sales = [Watched(sale, sku or skus[0], False, body["hold_ms"])]
        self._took(self.sales[0], body)
        return sku if len(skus) > 1 else None

    async def create(self) -> None:
        """Make the sales of the scenario.

        Raises
        ------
        ConfigurationError: the token is not the operator's.
        CannotRun: the server does not answer, or does not make them.
        """
        scenario = self._scenario
        for place in range(scenario.sales):
            id = f"load-{scenario.name}-{self._run}" + (f"-{place + 1}" if scenario.sales > 1 else "")
            body = {
                "id": id,
                "name": f"Load test {datetime.now(UTC):%H:%M} UTC: {scenario.name}",
                "capacity": scenario.capacity,
                "hold_ms": scenario.hold_ms,
            }
            if scenario.max_per_buyer is not None:
                body["max_per_buyer"] = scenario.max_per_buyer
            # A server of before knows neither.
            if scenario.shards > 1:
                body["shards"] = scenario.shards
            if scenario.durability is not None:
                body["durability"] = scenario.durability.value
            status, made = await self._call("POST", "/sales", body=body, headers=self._operator)
            if status == 401:
                raise ConfigurationError("The server does not take this operator's token; give the right one.")
            # 200: it was made by a call that was not answered.
            if status not in (200, 201):
                raise CannotRun(f"The server did not make the sale {id}: {status} {made.get('detail', '')}")
            self.sales.append(Watched(id, "general", True, scenario.hold_ms))
            self._took(self.sales[-1], made)

    # While ------------------------------------------------------------------------------------------------------------

    async def watch(self, start: int, looked: Callable[[], None]) -> None:
        """Reads the counters until it is cancelled.

        Parameters
        ----------
        start: of the run, nanoseconds. looked: is called after each look.
        """
        self._start = start
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for sale in self.sales:
                await self._look(sale)
            looked()

    async def _look(self, sale: Watched) -> bool:
        """Reads the counters once; whether there was an answer."""
        exchange = await self._wire.ask(self._requests.call("GET", f"/sales/{sale.id}"))
        if exchange.answer is None or exchange.answer.status != 200:
            return False
        self._took(sale, json.loads(exchange.answer.body))
        return True

    def _took(self, sale: Watched, body: Mapping[str, Any]) -> None:
        item = next(item for item in body["items"] if item["sku"] == sale.sku)
        sale.sequence = body["sequence"]
        sale.limits.add(_least(body.get("max_per_buyer"), item.get("max_per_buyer")))
        # Amended, the longest counts: nobody is accused of a hold that may still last.
        sale.hold_ms = max(sale.hold_ms, body["hold_ms"])
        sale.shards = "shards" in body
        counts = item["available"], item["reserved"], item["purchased"]
        in_transit = item.get("in_transit", 0)
        sale.readings.append(Reading(*counts, item["capacity"], in_transit))
        if self._start:
            sale.stock.append(Stock(max(0.0, (time.monotonic_ns() - self._start) / 1e9), *counts, in_transit))

    # After ------------------------------------------------------------------------------------------------------------

    async def settle(self, operations: Sequence[Operation], waits: Callable[[float, int], None]) -> None:
        """Wait until all holds have ended, at most for as long as they may last.

        Parameters
        ----------
        waits: is told now and then how many seconds it may take yet, and how many units are held.
        """
        grace = GRACE_FAILOVER_SECONDS if self._scenario.failover else GRACE_SECONDS
        for number, sale in enumerate(self.sales):
            theirs = Sale((each for each in operations if each.sale == number), _unread(sale))
            last = max((_ends(claim, sale.hold_ms) for claim in theirs.claims.values()), default=0)
            quiet = -1
            while (now := time.monotonic_ns()) < last + int(grace * 1e9):
                if not sale.own:
                    # Others' holds are not ours to wait for.
                    if now > last + int(1e9):
                        break
                elif await self._look(sale) and not sale.unsettled:
                    # Twice: what a client that hung up has left behind may still be on its way.
                    if quiet == sale.sequence:
                        break
                    quiet = sale.sequence
                waits((last - now) / 1e9, sale.unsettled)
                await asyncio.sleep(LOOK_SECONDS * 2)

    async def ends(self, operations: Sequence[Operation], *, quiet: bool) -> list[End]:
        """The last word on each sale.

        Parameters
        ----------
        quiet: whether `settle` came to its end.

        Raises
        ------
        CannotRun: the server does not answer.
        """
        return [
            await self._end(sale, Sale((each for each in operations if each.sale == number), _unread(sale)), quiet)
            for number, sale in enumerate(self.sales)
        ]

    async def _end(self, sale: Watched, known: Sale, quiet: bool) -> End:
        for _ in range(TRIES):
            if await self._look(sale):
                break
            await asyncio.sleep(TRY_AGAIN_SECONDS)
        else:
            raise CannotRun(f"{sale.id} could not be read in the end: the server does not answer.")
        tickets = await self._list(sale.id, self._operator) if self._token else None
        of_buyers: dict[int, list[Listed]] = {}
        if tickets is None:
            looked_up = await self._read_each(known.by_ticket)
        else:
            paid = [id for id, claim in known.by_ticket.items() if claim.acknowledged() is not None]
            looked_up = await self._read_each(paid[:AGAIN_MAX])
        if tickets is not None and tickets.keys() - known.by_ticket.keys():
            for buyer in {claim.buyer for claim in known.claims.values() if claim.unresolved}:
                of_buyers[buyer] = list((await self._list(sale.id, self._requests.buyer(buyer))).values())
        capacities = [reading.capacity for reading in sale.readings]
        return End(
            sale.id,
            sale.own,
            min(capacities),
            max(capacities),
            next(iter(sale.limits)) if len(sale.limits) == 1 else None,
            sale.readings,
            sale.readings[-1],
            quiet,
            tickets,
            looked_up,
            of_buyers,
            sale.shards,
            self._scenario.failover,
        )

    async def _list(self, sale: str, headers: str) -> dict[str, Listed]:
        """The tickets of a sale that the caller may see."""
        found: dict[str, Listed] = {}
        cursor: str | None = None
        while True:
            path = f"/sales/{sale}/tickets?limit={PAGE}" + (f"&cursor={cursor}" if cursor else "")
            status, page = await self._call("GET", path, headers=headers)
            if status != 200:
                raise CannotRun(f"The tickets of {sale} cannot be listed: {status} {page.get('detail', '')}")
            for item in page["items"]:
                found[item["id"]] = _listed(item)
            cursor = page["next"]
            if cursor is None:
                return found

    async def _read_each(self, tickets: Iterable[str]) -> dict[str, Listed]:
        found: dict[str, Listed] = {}
        rest = iter(tickets)

        async def reader() -> None:
            for id in rest:
                status, ticket = await self._call("GET", f"/tickets/{id}")
                if status == 200:
                    found[id] = _listed(ticket)
                elif status == 404:
                    found[id] = Listed(id, "not there", 0)

        await asyncio.gather(*(reader() for _ in range(READ_AT_ONCE)))
        return found

    async def close(self) -> None:
        """Close the sales that this run made."""
        now = instant_text(int(datetime.now(UTC).timestamp() * 1000))
        for sale in self.sales:
            if sale.own:
                await self._call("PATCH", f"/sales/{sale.id}", body={"closes_at": now}, headers=self._operator)

    async def _call(
        self, method: str, path: str, *, headers: str = "", body: object = None
    ) -> tuple[int, dict[str, Any]]:
        for left in reversed(range(TRIES)):
            exchange = await self._wire.ask(self._requests.call(method, path, headers=headers, body=body))
            answer = exchange.answer
            # Of a server that was never there, once is enough.
            if answer is not None and (answer.status != 503 or not left):
                break
            if not self.sales or not left:
                raise CannotRun("the server does not answer.")
            await asyncio.sleep(TRY_AGAIN_SECONDS)
        assert answer is not None
        try:
            read = json.loads(answer.body)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise CannotRun(f"What answers at this address is no Holdfast server: {method} {path} got {answer.status}.")
        return answer.status, read


def _unread(sale: Watched) -> End:
    """Stands for the last word, where only the log is asked."""
    return End(sale.id, sale.own, 0, 0)


def _ends(claim: Claim, hold_ms: int) -> int:
    """The clients' clock, nanoseconds, by which an order holds nothing any more; 0 when it does not."""
    if claim.begun is None or claim.acknowledged() is not None:
        return 0
    _, until = claim.possibly(None)
    last = max(each.ended for each in claim.requests)
    return min(until, last + hold_ms * 1_000_000)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _listed(ticket: Mapping[str, Any]) -> Listed:
    return Listed(ticket["id"], ticket["status"], ticket["quantity"], instant_ms(ticket["expires_at"]))
