"""What the log says of each order: its ticket, and from when until when it surely or possibly had units."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .clock import Clock
from .log import NEVER, PENDING, Call, Operation, Outcome


@dataclass(frozen=True, slots=True)
class Listed:
    """A ticket as the server has it in the end. `expires_at` is in Unix milliseconds."""

    id: str
    status: str
    quantity: int
    expires_at: int = 0


class Reading(NamedTuple):
    """The counters of a sale as they were read."""

    available: int
    reserved: int
    purchased: int
    capacity: int
    in_transit: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """What the server says of one sale, on the way and when all was over.

    Parameters
    ----------
    own: whether this run made the sale, so that nobody else buys in it.
    capacity, capacity_max: units of the item, the least and the most that the sale said of itself.
    max_per_buyer: units; None where there is no limit, or where it was amended.
    readings: the counters, each time that they were read.
    counts: the counters in the end; None when they could not be read.
    quiet: whether all holds had ended by then, or had been given all the time that they have.
    tickets: all of them, by id; None without the operator's token.
    looked_up: tickets that were read one by one, after that: those that clients paid, and without the token all.
    of_buyers: the tickets of each buyer who does not know what became of an order, by number.
    shards: whether its units are divided over several slots.
    failover: whether a Redis may have been lost meanwhile, with what only its memory had.
    """

    sale: str
    own: bool
    capacity: int
    capacity_max: int
    max_per_buyer: int | None = None
    readings: Sequence[Reading] = ()
    counts: Reading | None = None
    quiet: bool = True
    tickets: Mapping[str, Listed] | None = None
    looked_up: Mapping[str, Listed] = field(default_factory=dict)
    of_buyers: Mapping[int, Sequence[Listed]] = field(default_factory=dict)
    shards: bool = False
    failover: bool = False


@dataclass(slots=True)
class Claim:
    """One order of one buyer: all requests to reserve that carry one key, and what was asked about its ticket.

    Parameters
    ----------
    given: the first answer with a ticket. tickets: every id that this key was answered with.
    begun: when the first request that may have reserved was sent; None when none may have.
    about: payments and cancellations of its ticket.
    """

    buyer: int
    key: str
    units: int
    requests: list[Operation] = field(default_factory=list)
    given: Operation | None = None
    tickets: list[str] = field(default_factory=list)
    begun: int | None = None
    about: list[Operation] = field(default_factory=list)

    @property
    def unresolved(self) -> bool:
        """Whether it may have a ticket that nobody was told of."""
        return self.begun is not None and self.given is None

    def acknowledged(self) -> Operation | None:
        """The first answer that said that it was paid."""
        return next((each for each in self.about if each.call is Call.PAY and each.outcome is Outcome.DONE), None)

    def kept(self) -> Operation | None:
        """The first answer that said that it was paid, and as durably as it should be."""
        paid = self.acknowledged()
        return None if paid is None or paid.status == PENDING else paid

    def may_be_paid(self) -> Operation | None:
        """The first payment that may have been made."""
        return next((each for each in self.about if each.call is Call.PAY and _may(each)), None)

    def surely(self, clock: Clock | None) -> tuple[int, int]:
        """From when until when its units were surely its buyer's."""
        if self.given is None or self.given.state not in ("reserved", "purchased"):
            return 0, 0
        if self.acknowledged() is not None:
            return self.given.ended, NEVER
        if clock is None:
            return 0, 0
        ends = [each.begun for each in self.about if each.call is Call.CANCEL and _may(each)]
        return self.given.ended, min([clock.earliest(self.given.expires_at), *ends])

    def possibly(self, clock: Clock | None, failover: bool = False) -> tuple[int, int]:
        """From when until when its units were possibly its buyer's.

        Parameters
        ----------
        failover: a cancellation may have been lost, and so may a reservation, which its repeat then made anew.
        """
        if self.begun is None:
            return 0, 0
        if self.given is None or self.may_be_paid() is not None:
            return self.begun, NEVER
        cancelled = [each.ended for each in self.about if each.call is Call.CANCEL and each.outcome is Outcome.DONE]
        ends = [] if failover else cancelled
        if clock is not None:
            deadlines = [each.expires_at for each in (*self.requests, *self.about)] if failover else []
            ends.append(clock.latest(max([self.given.expires_at, *deadlines])))
        return self.begun, min(ends, default=NEVER)


def _may(operation: Operation) -> bool:
    """Whether it was done, or may have been."""
    return operation.outcome is not Outcome.REFUSED


class Sale:
    """All that the log has of one sale.

    Attributes
    ----------
    claims: by buyer and key. by_ticket: the claim that was given it.
    clocks: of the servers, by slot: those of a sale in shards lie on several.
    """

    def __init__(self, operations: Iterable[Operation], end: End) -> None:
        self.end = end
        self.operations = sorted(operations, key=lambda each: each.ended)
        self.claims: dict[tuple[int, str], Claim] = {}
        self.by_ticket: dict[str, Claim] = {}
        for each in self.operations:
            if each.call is Call.RESERVE:
                self._reserved(each)
        for each in self.operations:
            if each.call in (Call.PAY, Call.CANCEL) and (claim := self.by_ticket.get(each.ticket)) is not None:
                claim.about.append(each)
        readings: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for each in self.operations:
            if each.now:
                readings[_slot(each.ticket)].append((each.begun, each.ended, each.now))
        self.clocks = {slot: Clock.of(theirs) for slot, theirs in readings.items()}

    def clock(self, ticket: str) -> Clock | None:
        """The clock by which this ticket's hold ends, as far as it is known."""
        return self.clocks.get(_slot(ticket))

    def surely(self, claim: Claim) -> tuple[int, int]:
        """From when until when the units of a claim were surely its buyer's."""
        if not self.end.failover:
            return claim.surely(self._clock_of(claim))
        paid = claim.kept()
        return (0, 0) if paid is None else (paid.ended, NEVER)

    def possibly(self, claim: Claim) -> tuple[int, int]:
        """From when until when the units of a claim were possibly its buyer's."""
        return claim.possibly(self._clock_of(claim), self.end.failover)

    def _clock_of(self, claim: Claim) -> Clock | None:
        return None if claim.given is None else self.clock(claim.given.ticket)

    def _reserved(self, operation: Operation) -> None:
        key = operation.buyer, operation.key
        claim = self.claims.get(key)
        if claim is None:
            claim = self.claims[key] = Claim(operation.buyer, operation.key, operation.quantity)
        claim.requests.append(operation)
        if _may(operation):
            claim.begun = operation.begun if claim.begun is None else min(claim.begun, operation.begun)
        if operation.outcome is Outcome.DONE and operation.ticket:
            if claim.given is None:
                claim.given = operation
            if operation.ticket not in claim.tickets:
                claim.tickets.append(operation.ticket)
            self.by_ticket.setdefault(operation.ticket, claim)

    def by_buyer(self) -> dict[int, list[Claim]]:
        found: dict[int, list[Claim]] = defaultdict(list)
        for claim in self.claims.values():
            found[claim.buyer].append(claim)
        return found

    def listed(self, ticket: str) -> Listed | None:
        """A ticket as the server has it in the end, as far as it was looked at."""
        tickets = self.end.looked_up if self.end.tickets is None else self.end.tickets
        return tickets.get(ticket)


def _slot(ticket: str) -> str:
    """The slot that a ticket names: what stands before the dot, or nothing where something else is called a ticket."""
    return ticket.rpartition(".")[0]


def peak(spans: Iterable[tuple[int, int, int]]) -> tuple[int, int]:
    """The most units at one moment, and when that was, of spans from, until and units.

    At one instant what ends goes first: only what is sure counts.
    """
    steps = sorted(
        step for since, until, units in spans if since < until for step in ((since, 1, units), (until, 0, units))
    )
    now = most = at = 0
    for instant, begins, units in steps:
        now += units if begins else -units
        if now > most:
            most, at = now, instant
    return most, at


class Bounds:
    """How many units were at the most had by anybody at some moment of a stretch of time."""

    def __init__(self, spans: Iterable[tuple[int, int, int]]) -> None:
        spans = [span for span in spans if span[0] < span[1]]
        self._begins, self._begun = _summed((since, units) for since, _, units in spans)
        self._ends, self._ended = _summed((until, units) for _, until, units in spans)

    def between(self, begun: int, ended: int) -> int:
        """Units of all spans that touch this stretch."""
        return self._begun[bisect_right(self._begins, ended)] - self._ended[bisect_left(self._ends, begun)]


def _summed(steps: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The instants in order, and the units up to each, beginning with none."""
    ordered = sorted(steps)
    sums = [0]
    for _, units in ordered:
        sums.append(sums[-1] + units)
    return [instant for instant, _ in ordered], sums
