"""A sale in plain Python with clients around it: histories whose truth is known, made in no time.

Clients, their delays and lost answers are drawn from a seed; every call is carried out at one instant between its begin
and its end. What the sale says is by its own clock, which is not that of the clients.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from .facts import CANCELLED, EXPIRED, MS, PURCHASED, RESERVED, Lines, lines_of
from .history import Call, Final, Operation, Outcome

#: Milliseconds by which the sale's clock is ahead of the clients'.
AHEAD_MS = 1_800_000_000_000

#: Milliseconds between two sweeps.
SWEEP_MS = 200

LETTER = {PURCHASED: "p", CANCELLED: "c", EXPIRED: "x"}


def instant(ms: int) -> str:
    """As the API writes it."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Held:
    """A ticket of the simulated sale."""

    id: str
    buyer: str
    lines: Lines
    reserved_at: int
    expires_at: int
    status: str = RESERVED
    ended_at: int | None = None
    paid_by: tuple[str, str | None] | None = None
    sequence: int = 0


@dataclass
class Sale:
    """The sequential sale: one call after the other, each at its instant. The model that the checkers know."""

    capacity: dict[str, int]
    hold_ms: int = 300
    most: int | None = None
    tickets: dict[str, Held] = field(default_factory=dict)
    ledger: list[tuple[int, str]] = field(default_factory=list)
    units: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    had: Counter[str] = field(default_factory=Counter)
    by_key: dict[tuple[str, str], Held] = field(default_factory=dict)
    running: dict[str, Held] = field(default_factory=dict)

    def log(self, text: str) -> int:
        self.ledger.append((len(self.ledger) + 1, text))
        return len(self.ledger)

    def packed(self, lines: Lines) -> str:
        skus = list(self.capacity)
        return ",".join(f"{skus.index(sku) + 1}:{quantity}" for sku, quantity in lines)

    def counts(self) -> dict[str, tuple[int, int, int]]:
        held, sold = self.units[RESERVED], self.units[PURCHASED]
        return {sku: (units - held[sku] - sold[sku], held[sku], sold[sku]) for sku, units in self.capacity.items()}

    def count(self, held: Held, sign: int) -> None:
        """Adds a ticket to what its status has, or takes it away."""
        if held.status in (RESERVED, PURCHASED):
            for sku, quantity in held.lines:
                self.units[held.status][sku] += sign * quantity
                self.had[held.buyer] += sign * quantity

    def end(self, held: Held, status: str, now: int) -> None:
        self.count(held, -1)
        del self.running[held.id]
        held.status, held.ended_at = status, held.expires_at if status == EXPIRED else now
        last = str(held.expires_at) if status == EXPIRED else (held.paid_by or ("", ""))[0]
        held.sequence = self.log(f"{LETTER[status]} {held.id} {self.packed(held.lines)} - {last}")
        self.count(held, 1)

    def sweep(self, now: int) -> None:
        for held in list(self.running.values()):
            if now >= held.expires_at:
                self.end(held, EXPIRED, now)

    def shown(self, held: Held, now: int) -> dict[str, Any]:
        status = EXPIRED if held.status == RESERVED and now >= held.expires_at else held.status
        body: dict[str, Any] = {
            "id": f"gig.{held.id}",
            "sale": "gig",
            "status": status,
            "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in held.lines],
            "reserved_at": instant(held.reserved_at),
            "expires_at": instant(held.expires_at),
            "expires_in_ms": max(0, held.expires_at - now) if status == RESERVED else 0,
        }
        if status != RESERVED:
            body[f"{status}_at"] = instant(held.expires_at if status == EXPIRED else held.ended_at or 0)
        if held.paid_by is not None:
            body["reference"] = held.paid_by[0]
        return body

    def call(self, operation: Operation, now: int) -> tuple[int, str | None, dict[str, Any]]:
        """Carries a call out: status, code and body of its answer."""
        match operation.call:
            case Call.RESERVE:
                return self.reserve(operation, now)
            case Call.SALE:
                return 200, None, self.body()
        held = self.tickets.get((operation.ticket or "").rpartition(".")[2])
        if held is None:
            return 404, "unknown_ticket", {}
        if operation.call is Call.TICKET:
            return 200, None, self.shown(held, now)
        return self.finish(operation, held, now)

    def body(self) -> dict[str, Any]:
        items = [
            {"sku": sku, "available": units[0], "reserved": units[1], "purchased": units[2]}
            for sku, units in self.counts().items()
        ]
        return {"id": "gig", "items": items, "max_per_buyer": self.most}

    def reserve(self, operation: Operation, now: int) -> tuple[int, str | None, dict[str, Any]]:
        lines = lines_of(operation.lines)
        if operation.key is not None and (operation.buyer, operation.key) in self.by_key:
            return 201, None, self.shown(self.by_key[operation.buyer, operation.key], now)
        why = self.why_not(operation.buyer, lines)
        if why is not None and why[0] != "sold_out":
            self.sweep(now)
            why = self.why_not(operation.buyer, lines)
        if why is not None:
            return 409, why[0], why[1]
        id = f"{len(self.tickets):022}"
        held = Held(id, operation.buyer, lines, now, now + self.hold_ms)
        self.tickets[id] = self.running[id] = held
        self.count(held, 1)
        if operation.key is not None:
            self.by_key[operation.buyer, operation.key] = held
        self.log(f"r {self.packed(lines)} {held.expires_at} {id}{operation.buyer:_>22}")
        return 201, None, self.shown(held, now)

    def why_not(self, buyer: str, lines: Lines) -> tuple[str, dict[str, Any]] | None:
        wanted = sum(quantity for _, quantity in lines)
        if self.most is not None and self.had[buyer] + wanted > self.most:
            return "limit_reached", {"remaining": max(0, self.most - self.had[buyer])}
        counts = self.counts()
        for code in ("sold_out", "all_held"):
            for sku, quantity in lines:
                available, held, _ = counts[sku]
                if available + (held if code == "sold_out" else 0) < quantity:
                    return code, {"sku": sku, "available": available}
        return None

    def finish(self, operation: Operation, held: Held, now: int) -> tuple[int, str | None, dict[str, Any]]:
        if operation.buyer != held.buyer:
            return 403, "not_your_ticket", {}
        paying = operation.call is Call.PAY
        if held.status == RESERVED and now < held.expires_at:
            if paying:
                held.paid_by = f"pay-{operation.begun}" if operation.key is None else operation.key, operation.key
            self.end(held, PURCHASED if paying else CANCELLED, now)
            return 200, None, self.shown(held, now)
        if held.status == PURCHASED:
            assert held.paid_by is not None
            if paying and operation.key is not None and operation.key == held.paid_by[1]:
                return 200, None, self.shown(held, now)
            return 409, "already_purchased", {}
        if held.status == CANCELLED:
            return (409, "already_cancelled", {}) if paying else (200, None, self.shown(held, now))
        return 410, "ticket_expired", {"expired_at": instant(held.expires_at)}

    def final(self) -> Final:
        """The final reading of it."""
        now = max((held.expires_at for held in self.tickets.values()), default=0)
        self.sweep(now)
        rows = {
            f"gig.{held.id}": {
                "status": held.status,
                "lines": dict(held.lines),
                "sequence": held.sequence,
                "reference": (held.paid_by or ("",))[0],
            }
            for held in self.tickets.values()
        }
        return Final(
            "gig",
            dict(self.capacity),
            self.counts(),
            {f"gig.{held.id}": self.shown(held, now) for held in self.tickets.values()},
            {id: row["status"] for id, row in rows.items()},
            rows,
            (tuple(self.ledger),),
        )


@dataclass
class Crowd:
    """Clients of a simulated sale.

    Parameters
    ----------
    calls: in all. lose: share of calls whose answer is lost; half of those are never carried out.
    """

    sale: Sale
    seed: int
    clients: int = 20
    calls: int = 1000
    lose: float = 0.03
    think_ms: float = 5.0

    def run(self) -> tuple[list[Operation], Final]:
        """The history and the final reading."""
        rng = random.Random(self.seed)
        operations: list[Operation] = []
        events: list[tuple[int, int, Callable[[int], None]]] = []

        def at(instant: int, what: Callable[[int], None]) -> None:
            heapq.heappush(events, (instant, len(events) + rng.randrange(1 << 40), what))

        def delay(mean_ms: float) -> int:
            return 1 + int(rng.expovariate(1 / mean_ms) * MS)

        def sweep(now: int) -> None:
            self.sale.sweep(now // MS + AHEAD_MS)
            if len(operations) < self.calls:
                at(now + SWEEP_MS * MS, sweep)

        def begin(client: int, script: Iterator[Operation]) -> Callable[[int], None]:
            def run(now: int) -> None:
                asked = replace(next(script), client=client, begun=now)
                if rng.random() < self.lose:
                    operations.append(asked)
                    last[client] = asked
                    if rng.random() < 0.5:
                        at(now + delay(20), lambda then: void(self.sale.call(asked, then // MS + AHEAD_MS)))
                    at(now + delay(self.think_ms), run)
                else:
                    at(now + delay(3), carry_out(asked))

            def carry_out(asked: Operation) -> Callable[[int], None]:
                def run_it(now: int) -> None:
                    status, code, answer = self.sale.call(asked, now // MS + AHEAD_MS)
                    at(now + delay(3), lambda then: hear(replace(asked, ended=then, status=status, code=code), answer))

                return run_it

            def hear(heard: Operation, answer: dict[str, Any]) -> None:
                heard = replace(heard, answer=answer, ticket=answer.get("id", heard.ticket))
                operations.append(heard)
                last[client] = heard
                if len(operations) < self.calls:
                    assert heard.ended is not None
                    at(heard.ended + delay(self.think_ms), run)

            return run

        last: dict[int, Operation] = {}
        for client in range(self.clients):
            at(delay(self.think_ms), begin(client, self.script(rng, client, last)))
        at(0, sweep)
        while events:
            now, _, what = heapq.heappop(events)
            if len(operations) < self.calls or what is not sweep:
                what(now)
        return operations, self.sale.final()

    def script(self, rng: random.Random, client: int, last: dict[int, Operation]) -> Iterator[Operation]:
        """What a client asks next, whatever it heard."""
        number = 0
        skus = list(self.sale.capacity)
        while True:
            number += 1
            buyer = f"buyer-{rng.randrange(self.clients)}"
            blank = Operation(client, buyer, Call.SALE, "gig", 0)
            if rng.random() < 0.15:
                yield blank
                continue
            chosen = sorted(rng.sample(skus, rng.randint(1, len(skus))))
            key = None if rng.random() < 0.3 else f"r-{client}-{number}"
            lines = tuple((sku, rng.randint(1, 2)) for sku in chosen)
            reserve = replace(blank, call=Call.RESERVE, lines=lines, key=key)
            for _ in range(3):
                yield reserve
                if last[client].outcome is not Outcome.UNKNOWN or key is None:
                    break
            held = last[client]
            if held.outcome is not Outcome.DONE:
                continue
            for _ in range(rng.randint(0, 4)):
                call = rng.choices((Call.PAY, Call.CANCEL, Call.TICKET), (4, 2, 2))[0]
                who = buyer if rng.random() < 0.9 else "somebody else"
                pay_key = f"p-{client}-{number}" if call is Call.PAY and rng.random() < 0.7 else None
                yield replace(
                    held, buyer=who, call=call, lines=(), key=pay_key, answer={}, ended=None, status=None, code=None
                )


def void(_: object) -> None:
    """For a lambda whose result nobody wants."""
