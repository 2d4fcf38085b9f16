"""Buyers: seeded closed loops over HTTP that write down all they ask and hear."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from .history import Call, Operation, Outcome
from .servers import Broken, until
from .wire import Connection, Lost

#: Seconds after which a client gives an answer up: longer than the product waits for Redis.
ANSWER_S = 12.0

#: Times that a client asks again with the same key until it knows, and seconds between: a pause that grows.
RETRIES = 12
RETRY_S = (0.05, 0.1, 0.2, 0.4, 0.8)

#: Seconds that a client waits after it was told that nothing can be sold now.
NOT_NOW_S = 0.1


@dataclass(frozen=True)
class SaleSpec:
    """A sale of a run: units by sku, milliseconds of the hold, units of one buyer, slots that share its units."""

    id: str
    items: Mapping[str, int]
    hold_ms: int
    max_per_buyer: int | None = None
    shards: int | None = None

    @property
    def slots(self) -> list[str]:
        return [self.id] if self.shards is None else [f"{self.id}~{number}" for number in range(1, self.shards + 1)]

    def body(self) -> dict[str, Any]:
        """As `POST /sales` takes it."""
        body: dict[str, Any] = {"id": self.id, "name": self.id.title(), "hold_ms": self.hold_ms}
        body["items"] = [{"sku": sku, "capacity": capacity} for sku, capacity in self.items.items()]
        body |= {"shards": self.shards} if self.shards else {}
        return body | ({"max_per_buyer": self.max_per_buyer} if self.max_per_buyer else {})


#: Two small ones that are fought over, one of them with two items, and one with room for many purchases.
SALES = (
    SaleSpec("hot", {"general": 40}, 400, 6),
    SaleSpec("pair", {"seat": 30, "box": 12}, 700, 8),
    SaleSpec("large", {"general": 50_000}, 2_000),
)


@dataclass(frozen=True)
class Habits:
    """What clients do, as probabilities, and how fast.

    Parameters
    ----------
    levels: durabilities asked of payments, each as likely; None asks for none.
    pay, cancel: of a ticket in hand; the rest is left to expire. late: of those, paid when it is too late.
    keyless: reserves without a key. hang_up: requests whose answer is not waited for.
    again: reserves and payments that are sent once more, later. stranger: payments and cancels of others' tickets.
    think_s: seconds between two requests, the mean. answer_s: seconds after which an answer is given up.
    """

    levels: tuple[str | None, ...] = (None,)
    pay: float = 0.6
    cancel: float = 0.15
    late: float = 0.3
    keyless: float = 0.1
    hang_up: float = 0.01
    again: float = 0.05
    stranger: float = 0.02
    think_s: float = 0.01
    answer_s: float = ANSWER_S


class History:
    """The operations of a run, as they end, and what no answer may be."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.strange: list[str] = []
        self.phase = "load"

    def add(self, operation: Operation) -> Operation:
        self.operations.append(operation)
        return operation

    def count(self, call: Call, since: int = 0, start: int = 0) -> int:
        """Operations of a kind that were done, of those that began at `since` (monotonic nanoseconds) or later.

        Parameters
        ----------
        start: how many operations there were at `since`: none of those began later.
        """
        return sum(
            each.call is call and each.begun >= since and each.outcome is Outcome.DONE
            for each in islice(self.operations, start, None)
        )

    def purchases(self) -> int:
        return self.count(Call.PAY)


@dataclass
class Ask:
    """One request to be made, as it may be made again."""

    call: Call
    buyer: str
    sale: str
    ticket: str | None = None
    lines: tuple[tuple[str, int], ...] = ()
    key: str | None = None
    durability: str | None = None
    reference: str | None = None

    def http(self) -> tuple[str, str, dict[str, str], Any]:
        """Method, path, headers and body."""
        headers = {"X-Buyer-Fingerprint": self.buyer}
        if self.key is not None:
            headers["Idempotency-Key"] = self.key
        if self.durability is not None:
            headers["Prefer"] = f"durability={self.durability}"
        match self.call:
            case Call.RESERVE:
                lines = [{"sku": sku, "quantity": quantity} for sku, quantity in self.lines]
                return "POST", f"/sales/{self.sale}/tickets", headers, {"lines": lines}
            case Call.PAY:
                return "POST", f"/tickets/{self.ticket}/payment", headers, {"reference": self.reference}
            case Call.CANCEL:
                return "DELETE", f"/tickets/{self.ticket}/payment", headers, None
            case Call.TICKET:
                return "GET", f"/tickets/{self.ticket}", headers, None
        return "GET", f"/sales/{self.sale}", headers, None


class Client:
    """One buyer's device: one request at a time, on one connection.

    Parameters
    ----------
    number: of this client. place: host and port, as of now; asked before each request.
    """

    def __init__(self, number: int, place: Callable[[], tuple[str, int]], history: History, answer_s: float) -> None:
        self.number = number
        self.history = history
        self.answer_s = answer_s
        self._place = place
        self._at: tuple[str, int] | None = None
        self._connection: Connection | None = None

    async def send(self, ask: Ask, hang_up_s: float | None = None) -> Operation:
        """One request, written down; `hang_up_s` seconds after sending it the client is gone."""
        if self._at != self._place() or self._connection is None:
            self.close()
            self._at = self._place()
            self._connection = Connection(*self._at)
        method, path, headers, body = ask.http()
        operation = Operation(
            self.number, ask.buyer, ask.call, ask.sale, time.monotonic_ns(),
            ticket=ask.ticket, lines=ask.lines, key=ask.key, durability=ask.durability, phase=self.history.phase,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self.answer_s if hang_up_s is None else hang_up_s):
                status, _, answer = await self._connection.ask(method, path, headers, body)
        except (Lost, OSError, TimeoutError):
            self.close()
            return self.history.add(operation)
        except asyncio.CancelledError:
            self.close()
            self.history.add(operation)
            raise
        operation = replace(
            operation,
            ended=time.monotonic_ns(),
            status=status,
            code=answer.get("code"),
            answer=answer,
            ticket=answer.get("id") if ask.call is Call.RESERVE and status < 300 else ask.ticket,
        )
        if wrong := strange(ask, operation):
            self.history.strange.append(wrong)
        return self.history.add(operation)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def strange(ask: Ask, operation: Operation) -> str | None:
    """Why this cannot be the answer to what was asked, if it cannot: somebody else's, or a mistake of the server's."""
    answer, asked = operation.answer, f"client {operation.client} asked {ask.call} of {ask.ticket or ask.sale}"
    if operation.status is not None and operation.status >= 500 and operation.status != 503:
        return f"{asked} and heard {operation.status} {answer}"
    if operation.outcome is not Outcome.DONE:
        return None
    if ask.call is Call.SALE:
        return None if answer.get("id") == ask.sale else f"{asked} and heard of {answer.get('id')}"
    said = tuple((line["sku"], line["quantity"]) for line in answer.get("lines", []))
    if answer.get("sale") != ask.sale or (ask.ticket is not None and answer.get("id") != ask.ticket):
        return f"{asked} and heard of {answer.get('id')} in {answer.get('sale')}"
    if ask.call is Call.RESERVE and sorted(said) != sorted(ask.lines):
        return f"{asked} for {ask.lines} and got {said}"
    if ask.call is Call.PAY and answer.get("reference") != ask.reference:
        return f"{asked} by {ask.reference} and heard of payment {answer.get('reference')}"
    return None


@dataclass
class Load:
    """Clients at work.

    Parameters
    ----------
    place: where the product is, as of now. seed: of every choice. clients: how many.
    """

    place: Callable[[], tuple[str, int]]
    seed: str
    clients: int = 32
    habits: Habits = field(default_factory=Habits)
    sales: Sequence[SaleSpec] = SALES
    history: History = field(default_factory=History)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False
    _tickets: list[tuple[str, str]] = field(default_factory=list)

    def start(self) -> Load:
        self._tasks = [asyncio.create_task(self._live(number)) for number in range(self.clients)]
        return self

    async def stop(self, seconds: float = 60.0) -> None:
        """No new errands; clients that do not know yet ask on until they do, or have asked often enough."""
        self._stopping = True
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        for task in late:
            task.cancel()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in done:
            if isinstance(result, Exception):
                raise result

    async def more(self, count: int, call: Call = Call.PAY, seconds: float = 40.0) -> None:
        """Waits until so many more operations of this kind have begun and been done."""
        since, start = time.monotonic_ns(), len(self.history.operations)

        async def enough() -> bool:
            return self.history.count(call, since, start) >= count

        await until(f"{count} more {call}", enough, seconds, pause=0.02)

    async def only(self, level: str, seconds: float) -> None:
        """For so long payments are made at this level alone: each at `stored` copies all that was paid before it."""
        usual, self.habits = self.habits, replace(self.habits, levels=(level,))
        try:
            await asyncio.sleep(seconds)
        finally:
            self.habits = usual

    def phase(self, name: str) -> int:
        """Names what happens from now on; this instant, monotonic nanoseconds."""
        self.history.phase = name
        return time.monotonic_ns()

    async def _live(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        client = Client(number, self.place, self.history, self.habits.answer_s)
        later: list[tuple[float, Ask]] = []
        errand = 0
        try:
            while not self._stopping:
                errand += 1
                await self._think(rng)
                if later and later[0][0] <= time.monotonic():
                    await self._know(client, rng, later.pop(0)[1])
                elif rng.random() < 0.1:
                    await client.send(Ask(Call.SALE, self._buyer(rng), rng.choice(self.sales).id))
                else:
                    later += await self._errand(client, rng, f"{number}-{errand}")
        finally:
            client.close()

    def _buyer(self, rng: random.Random) -> str:
        # Fewer buyers than clients: their limits are contended, too.
        return f"buyer-{rng.randrange(max(4, self.clients * 2 // 3)):04}"

    async def _think(self, rng: random.Random) -> None:
        await asyncio.sleep(rng.expovariate(1 / self.habits.think_s) if self.habits.think_s else 0)

    async def _errand(self, client: Client, rng: random.Random, name: str) -> list[tuple[float, Ask]]:
        """Reserves, and does something with the ticket; what is to be sent again later, with when."""
        habits, buyer = self.habits, self._buyer(rng)
        spec = rng.choice(self.sales)
        skus = rng.sample(sorted(spec.items), rng.randint(1, len(spec.items)))
        lines = tuple((sku, rng.randint(1, 3)) for sku in sorted(skus))
        key = None if rng.random() < habits.keyless else f"r-{name}"
        reserve = Ask(Call.RESERVE, buyer, spec.id, lines=lines, key=key)
        later = []
        if key is not None and rng.random() < habits.again:
            later.append((time.monotonic() + rng.uniform(0, 2 * spec.hold_ms / 1000), reserve))
        held = await self._know(client, rng, reserve)
        if held.outcome is not Outcome.DONE or held.ticket is None:
            return later
        ticket = held.ticket
        self._tickets.append((spec.id, ticket))
        await self._think(rng)
        if rng.random() < 0.15:
            await client.send(Ask(Call.TICKET, buyer, spec.id, ticket=ticket))
        if rng.random() < habits.stranger:
            call = rng.choice((Call.PAY, Call.CANCEL))
            await self._know(
                client, rng, Ask(call, f"{buyer}-not", spec.id, ticket=ticket, key=f"s-{name}", reference=name)
            )
        choice = rng.random()
        pay = Ask(Call.PAY, buyer, spec.id, ticket=ticket, key=f"p-{name}", reference=f"pay-{name}")
        pay.durability = rng.choice(habits.levels)
        cancel = Ask(Call.CANCEL, buyer, spec.id, ticket=ticket)
        if choice < habits.pay:
            await self._know(client, rng, pay)
            if rng.random() < habits.again:
                later.append(
                    (time.monotonic() + rng.uniform(0, 2), rng.choice((pay, cancel, replace(pay, key=f"q-{name}"))))
                )
        elif choice < habits.pay + habits.cancel:
            await self._know(client, rng, cancel)
        elif rng.random() < habits.late:
            later.append((time.monotonic() + spec.hold_ms / 1000 + rng.uniform(-0.02, 0.1), rng.choice((pay, cancel))))
        return later

    async def _know(self, client: Client, rng: random.Random, ask: Ask) -> Operation:
        """Sends it, and again with the same key until its outcome, and the durability asked for, is known."""
        hang_up_s = rng.uniform(0, 0.01) if rng.random() < self.habits.hang_up else None
        operation = await client.send(ask, hang_up_s)
        repeatable = ask.key is not None or ask.call is not Call.RESERVE
        for retry in range(RETRIES):
            unknown, weaker = operation.outcome is Outcome.UNKNOWN, operation.status == 202
            if operation.code in ("not_ready", "overloaded") and retry == 0:
                await asyncio.sleep(NOT_NOW_S)
                return operation
            if not repeatable or not (unknown or (weaker and retry < 3)):
                return operation
            await asyncio.sleep(RETRY_S[min(retry, len(RETRY_S) - 1)])
            operation = await client.send(ask)
        return operation


async def operator(place: tuple[str, int], token: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """A call of the operator's.

    Raises
    ------
    Broken: it was refused, or not answered.
    """
    connection = Connection(*place)
    try:
        async with asyncio.timeout(ANSWER_S):
            status, _, answer = await connection.ask(method, path, {"Authorization": f"Bearer {token}"}, body)
    except (Lost, OSError, TimeoutError) as error:
        raise Broken(f"{method} {path}: {type(error).__name__} {error}") from error
    finally:
        connection.close()
    if status >= 300:
        raise Broken(f"{method} {path}: {status} {answer}")
    return answer
