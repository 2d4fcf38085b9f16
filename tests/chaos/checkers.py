"""The invariants of a run, judged by what its clients saw and by the final reading: C, A, U, E, L and H.

- **C** In every answer and in the end, available, reserved and purchased add up to the capacity, and none is negative;
  the end is what the tickets add up to.
- **A** No acknowledged purchase that was promised is lost: in the end it is purchased over HTTP, in Redis and in the
  store, with its lines and its reference.
- **U** No unit is sold twice: what buyers surely had at one moment is within capacity and within their limits.
- **E** Every hold ends once: no ticket was seen in two terminal statuses, none was paid after its deadline, none ended
  before it or kept its units long after it; and the ledger says so, too.
- **L** Once quiet, store, ledger and Redis say the same.
- **H** The history is linearizable (`linearizability.py`).

Each judges what only it can see. What was lost is for A: a purchase that is gone counts neither as a unit sold twice
nor as a second ending. H is asked of sales in which C, A, U and E have found nothing: where a unit was sold twice no
order can be right, and to look for one would take long and say the same again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from holdfast.http.load.clock import Clock

from . import linearizability
from .facts import (
    CANCELLED,
    EXPIRED,
    MS,
    PURCHASED,
    RESERVED,
    Ledger,
    Lines,
    Rules,
    bare,
    clock_of,
    counts_by_tickets,
    counts_of,
    in_transit_of,
    instant_ms,
    lines_of,
    may_have_happened,
    told,
)
from .history import Call, Final, Operation, Outcome, Violation

#: Nanoseconds after its deadline in which the units of a hold are promised back, and as much again for a busy machine.
UNITS_BACK_NS = 2 * 1000 * MS

#: Nanoseconds that an answer may take while all is well. One that takes longer speaks of a fault: the units of holds
#: are then promised back `UNITS_BACK_NS` after it.
WELL_NS = 500 * MS

TERMINAL = (PURCHASED, CANCELLED, EXPIRED)


def check(
    operations: Sequence[Operation], finals: Sequence[Final], promised: Callable[[Operation], bool]
) -> list[Violation]:
    """What is wrong with a run.

    Parameters
    ----------
    operations: of all clients. finals: of each sale, once all was quiet.
    promised: whether this acknowledged payment had to survive what was done to the system.
    """
    clock = clock_of(operations)
    found: list[Violation] = []
    for sale in (_Sale(final, operations, clock) for final in finals):
        before = [*_counters(sale), *_acknowledged(sale, promised), *_sold_twice(sale), *_endings(sale)]
        found += [*before, *_agreement(sale)]
        if sale.operations and not before:
            found += _linearizable(sale)
    return found


def lost(operations: Sequence[Operation], finals: Sequence[Final]) -> list[Operation]:
    """Acknowledged payments whose ticket is not purchased in the end, whatever was promised."""
    return [operation for final in finals for operation in _Sale(final, operations, None).lost]


def oversold(operations: Sequence[Operation], finals: Sequence[Final]) -> int:
    """Units beyond capacity, at the worst moment of each item."""
    clock = clock_of(operations)
    return sum(excess for final in finals for _, excess, _ in _excesses(_Sale(final, operations, clock)))


def leaked(operations: Sequence[Operation], finals: Sequence[Final]) -> int:
    """Units that are neither available nor anybody's in the end."""
    missing = 0
    for final in finals:
        there = _by_tickets(final)
        missing += sum(max(0, there[sku][0] - units[0]) for sku, units in final.counts.items())
    return missing


class _Sale:
    """What is known of one sale: its operations by ticket, who was answered what.

    Attributes
    ----------
    given: the operation that was first answered with each ticket. about: what was asked about each.
    lost: acknowledged payments whose ticket is not purchased in the end.
    """

    def __init__(self, final: Final, operations: Sequence[Operation], clock: Clock | None) -> None:
        self.final = final
        self.name = final.sale
        self.clock = clock
        self.operations = [operation for operation in operations if operation.sale == final.sale]
        self.rules = Rules.of(self.operations)
        self.given: dict[str, Operation] = {}
        self.about: dict[str, list[Operation]] = defaultdict(list)
        for operation in sorted(self.operations, key=lambda operation: operation.ended or linearizability.NEVER):
            if operation.ticket is not None:
                self.about[operation.ticket].append(operation)
                if operation.call is Call.RESERVE and operation.outcome is Outcome.DONE:
                    self.given.setdefault(operation.ticket, operation)
        self.lost = [
            operation
            for operation in self.operations
            if operation.call is Call.PAY and operation.outcome is Outcome.DONE and not self._purchased(operation)
        ]

    def _purchased(self, operation: Operation) -> bool:
        return self.final.tickets.get(operation.ticket or "", {}).get("status") == PURCHASED

    def violation(self, checker: str, text: str, *operations: Operation) -> Violation:
        return Violation(checker, self.name, text, operations)


def _by_tickets(final: Final) -> dict[str, tuple[int, int, int]]:
    """What the tickets of the final listing add up to."""
    listed = ((lines_of(ticket["lines"]), ticket["status"]) for ticket in final.tickets.values())
    return counts_by_tickets(final.capacity, listed)


# -- C: counters -----------------------------------------------------------------------------------------------------


def _counters(sale: _Sale) -> Iterator[Violation]:
    capacity = sale.final.capacity
    for operation in sale.operations:
        if operation.call is Call.SALE and operation.outcome is Outcome.DONE:
            in_transit = in_transit_of(operation.answer)
            for sku, units in counts_of(operation.answer).items():
                between = in_transit[sku]
                if min(*units, between) < 0 or sum(units) + between != capacity[sku]:
                    yield sale.violation(
                        "C", f"'{sku}' had {units} of {capacity[sku]}, {between} in transit", operation
                    )
    by_tickets = _by_tickets(sale.final)
    for sku, units in sale.final.counts.items():
        between = sale.final.in_transit.get(sku, 0)
        if between:
            yield sale.violation("C", f"{between} units of '{sku}' are still in transit between shards in the end")
        elif min(units) < 0 or sum(units) != capacity[sku]:
            yield sale.violation("C", f"'{sku}' has {units} of {capacity[sku]} in the end")
        elif units != by_tickets[sku]:
            yield sale.violation("C", f"'{sku}' has {units} in the end, and the tickets add up to {by_tickets[sku]}")


# -- A: acknowledged purchases ---------------------------------------------------------------------------------------


def _acknowledged(sale: _Sale, promised: Callable[[Operation], bool]) -> Iterator[Violation]:
    final = sale.final
    stored_endings = {id: row["sequence"] for id, row in final.store.items() if row["status"] in TERMINAL}
    # Ended tickets leave Redis in the order in which they ended: what ended later than one that is there has not left.
    oldest = min((stored_endings[id] for id in final.redis if id in stored_endings), default=None)
    done: set[str] = set()
    for operation in sale.operations:
        id = operation.ticket
        if operation.call is not Call.PAY or operation.outcome is not Outcome.DONE or not promised(operation):
            continue
        assert id is not None
        if id in done:
            continue
        done.add(id)
        level = operation.level
        listed, row = final.tickets.get(id), final.store.get(id)
        if listed is None or listed["status"] != PURCHASED:
            status = listed["status"] if listed else "not there"
            yield sale.violation("A", f"{id} was acknowledged at {level} and is {status} in the end", operation)
            continue
        in_redis = final.redis.get(id)
        left = in_redis is None and (oldest is None or stored_endings.get(id, oldest) < oldest)
        if in_redis != PURCHASED and not left:
            yield sale.violation("A", f"{id} was acknowledged at {level} and is {in_redis} in Redis", operation)
        if row is None or row["status"] != PURCHASED:
            status = row["status"] if row else "not there"
            yield sale.violation("A", f"{id} was acknowledged at {level} and is {status} in the store", operation)
            continue
        yield from _as_bought(sale, operation, id)


def _as_bought(sale: _Sale, operation: Operation, id: str) -> Iterator[Violation]:
    """Lines and reference of a purchase, where the client was told one: what was given is what there is."""
    listed, row = sale.final.tickets[id], sale.final.store[id]
    given = lines_of(operation.answer["lines"])
    for where, lines in (("in the end", lines_of(listed["lines"])), ("in the store", lines_of(row["lines"]))):
        if lines != given:
            yield sale.violation("A", f"{id} was bought as {given} and is {lines} {where}", operation)
    reference = operation.answer.get("reference")
    for where, kept in (("in the end", listed.get("reference")), ("in the store", row.get("reference") or None)):
        if kept != reference:
            yield sale.violation("A", f"{id} was paid by {reference} and by {kept} {where}", operation)


# -- U: no unit twice ------------------------------------------------------------------------------------------------


def _sold_twice(sale: _Sale) -> Iterator[Violation]:
    for text, _, operations in _excesses(sale):
        yield sale.violation("U", text, *operations)


def _excesses(sale: _Sale) -> Iterator[tuple[str, int, tuple[Operation, ...]]]:
    """Where more was sold than there is, or than a buyer may have: a sentence, units beyond capacity, operations."""
    had = list(_surely_had(sale))
    in_the_end = _by_tickets(sale.final)
    for sku, capacity in sale.final.capacity.items():
        most, at = _peak(had, sku)
        bought = in_the_end[sku][2]
        if max(most, bought) > capacity:
            text = f"of {capacity} units of '{sku}' {most} were taken at one moment, and {bought} are in the end"
            yield text, max(most, bought) - capacity, at
    by_buyer: dict[str, list[_Had]] = defaultdict(list)
    for each in had:
        by_buyer[each[0].buyer].append(each)
    limits = [(None, sale.rules.most), *sale.rules.most_of.items()]
    for buyer, theirs in by_buyer.items():
        for name, limit in limits:
            most, at = _peak(theirs, name)
            if limit and most > limit:
                yield f"{buyer} had {most} units{f' of {name!r}' if name else ''} at once, and may have {limit}", 0, at


#: The operation that gave a ticket, its lines, from when and until when its units were surely its buyer's, nanoseconds.
_Had = tuple[Operation, Lines, int, int]


def _surely_had(sale: _Sale) -> Iterator[_Had]:
    """Tickets that the end knows, as their buyers surely had them: from the answer to whatever may have ended them."""
    for id in sale.given:
        ticket, about = sale.final.tickets.get(id), sale.about[id]
        if ticket is None:
            continue
        # A hold that was lost is made anew when it is asked for again with its key: the ticket of the end is had since
        # the answer that told of that one.
        told = [each for each in about if each.call is Call.RESERVE and each.outcome is Outcome.DONE]
        given = next((each for each in told if each.answer["expires_at"] == ticket["expires_at"]), None)
        if given is None:
            continue
        assert given.ended is not None
        lines = lines_of(given.answer["lines"])
        if ticket["status"] == PURCHASED:
            yield given, lines, given.ended, linearizability.NEVER
            continue
        ends = [other.begun for other in about if other.call is Call.CANCEL and may_have_happened(other)]
        if sale.clock is not None:
            ends.append(sale.clock.earliest(instant_ms(ticket["expires_at"])))
            yield given, lines, given.ended, min(ends)


def _peak(had: Sequence[_Had], sku: str | None) -> tuple[int, tuple[Operation, ...]]:
    """The most units that were had at once, of an item or (None) of all, and the operations that gave them."""
    steps: list[tuple[int, int, int, int]] = []
    for at, (_, lines, since, until) in enumerate(had):
        units = sum(quantity for name, quantity in lines if sku in (None, name))
        if units and since < until:
            # At one instant what ends goes first: only what is sure counts.
            steps += [(since, 1, at, units), (until, 0, at, units)]
    now, most = 0, 0
    holders: set[int] = set()
    at_most: set[int] = set()
    for _, begins, at, units in sorted(steps):
        now += units if begins else -units
        holders ^= {at}
        if now > most:
            most, at_most = now, set(holders)
    return most, tuple(had[at][0] for at in sorted(at_most))


# -- E: every hold ends once -----------------------------------------------------------------------------------------


def _endings(sale: _Sale) -> Iterator[Violation]:
    gone = {operation.ticket for operation in sale.lost}
    for id, operations in sale.about.items():
        yield from _seen(sale, id, operations, id in gone)
    yield from _units_back(sale)
    ledger = Ledger.of(sale.final)
    for gap in ledger.gaps:
        yield sale.violation("E", f"the ledger has a gap: {gap}")
    for id in ledger.twice:
        yield sale.violation("E", f"{id} was done twice in the ledger")
    for id, endings in ledger.endings.items():
        if len(endings) > 1:
            yield sale.violation("E", f"{id} ended {len(endings)} times in the ledger: {endings}")
        if id not in ledger.begun:
            yield sale.violation("E", f"{id} ended in the ledger and never began")


def _seen(sale: _Sale, id: str, operations: Sequence[Operation], is_lost: bool) -> Iterator[Violation]:
    """What was said of one ticket: one ending, at the right time."""
    seen: dict[str, Operation] = {}
    deadline: int | None = None
    for operation in operations:
        status, answer = told(operation), operation.answer
        if status in TERMINAL:
            seen.setdefault(str(status), operation)
        if operation.code == "ticket_expired":
            deadline = instant_ms(answer["expired_at"])
        elif operation.outcome is Outcome.DONE and "expires_at" in answer:
            deadline = instant_ms(answer["expires_at"])
            if "purchased_at" in answer and instant_ms(answer["purchased_at"]) >= deadline:
                yield sale.violation(
                    "E", f"{id} was paid at {answer['purchased_at']}, and expired at {answer['expires_at']}", operation
                )
            if "expired_at" in answer and answer["expired_at"] != answer["expires_at"]:
                yield sale.violation("E", f"{id} expired at {answer['expired_at']}", operation)
        else:
            continue
        # A clock that jumps is not judged by: `clock` is None then.
        if sale.clock is None or operation.ended is None:
            continue
        if status == EXPIRED and operation.ended < sale.clock.earliest(deadline):
            yield sale.violation("E", f"{id} had expired before its deadline", operation)
        if status == RESERVED and operation.begun > sale.clock.latest(deadline):
            yield sale.violation("E", f"{id} was reserved after its deadline", operation)
    if len(seen) > 1 and not (is_lost and PURCHASED in seen):
        yield sale.violation("E", f"{id} was {' and '.join(seen)}", *seen.values())


def _units_back(sale: _Sale) -> Iterator[Violation]:
    """Holds that have run out and still keep their units, in the end or in an answer that had time to know."""
    by_tickets = _by_tickets(sale.final)
    for sku, (_, reserved, _) in sale.final.counts.items():
        if reserved > by_tickets[sku][1]:
            yield sale.violation(
                "E", f"{reserved} units of '{sku}' are still held in the end, by tickets of {by_tickets[sku][1]}"
            )
    listed = sale.final.tickets
    # Where a hold was lost, counters that still had it cannot be judged.
    if sale.clock is None or not sale.given.keys() <= listed.keys():
        return
    holds = [
        (
            sale.clock.earliest(instant_ms(ticket["reserved_at"])),
            sale.clock.latest(instant_ms(ticket["expires_at"])) + UNITS_BACK_NS,
            dict(lines_of(ticket["lines"])),
        )
        for ticket in listed.values()
    ]
    # One that is late may have been under way for long when another is answered.
    troubled = [(each.begun, each.ended or each.begun) for each in sale.operations if _in_trouble(each)]
    for operation in sale.operations:
        if operation.call is not Call.SALE or operation.outcome is not Outcome.DONE:
            continue
        assert operation.ended is not None
        if any(operation.begun - UNITS_BACK_NS < end and begin <= operation.ended for begin, end in troubled):
            continue
        possible = Counter[str]()
        for since, until, units in holds:
            if since <= operation.ended and until >= operation.begun:
                possible.update(units)
        for sku, (_, reserved, _) in counts_of(operation.answer).items():
            if reserved > possible[sku]:
                text = f"{reserved} units of '{sku}' were held, and {possible[sku]} by holds that can have run"
                yield sale.violation("E", text, operation)


def _in_trouble(operation: Operation) -> bool:
    """Whether this answer, or its lack, speaks of a fault."""
    late = operation.ended is not None and operation.ended - operation.begun > WELL_NS
    return late or operation.outcome is Outcome.UNKNOWN or (operation.status or 0) >= 500


# -- L: store = ledger = Redis ---------------------------------------------------------------------------------------


def _agreement(sale: _Sale) -> Iterator[Violation]:
    final = sale.final
    ledger = Ledger.of(final)
    names = {bare(id): id for id in (*final.tickets, *final.store, *final.redis)}
    for id in ledger.begun.keys() - names.keys():
        yield sale.violation("L", f"{id} is in the ledger, and nowhere else")
    for id, name in names.items():
        row, listed = final.store.get(name), final.tickets.get(name)
        said: dict[str, str | None] = {
            "the ledger": ledger.status(id) if id in ledger.begun else None,
            "the store": row["status"] if row else None,
            "the listing": listed["status"] if listed else None,
        }
        if name in final.redis or said["the ledger"] in (None, RESERVED):
            said["Redis"] = final.redis.get(name)
        if len(set(said.values())) > 1:
            yield sale.violation("L", f"{name}: " + ", ".join(f"{who} says {what}" for who, what in said.items()))
        elif row is not None and said["the ledger"] is not None:
            ending = ledger.endings.get(id, [(RESERVED, 0)])[0][1]
            in_store, in_ledger = (lines_of(row["lines"]), row["sequence"]), (ledger.begun[id][0], ending)
            if in_store != in_ledger:
                text = f"{name}, lines and ending transition: {in_store} in the store, and {in_ledger} in the ledger"
                yield sale.violation("L", text)
    for (lender, borrower, number), said in ledger.transfers.items():
        if not ledger.recovered and (said.get("lent") != said.get("received") or "settled" not in said):
            text = f"transfer {number} from shard {lender} to {borrower} was, in their ledgers, {said}"
            yield sale.violation("L", text)
    replayed = ledger.counts(final.capacity)
    for sku, units in final.counts.items():
        if units != replayed[sku]:
            yield sale.violation("L", f"'{sku}' has {units}, and the ledger adds up to {replayed[sku]}")


# -- H: linearizable -------------------------------------------------------------------------------------------------


def _linearizable(sale: _Sale) -> Iterator[Violation]:
    verdict = linearizability.decide(sale.operations, sale.final, sale.clock)
    if verdict.decision is not linearizability.Decision.LINEARIZABLE:
        yield sale.violation("H", f"{verdict.decision}: {verdict.why}", *verdict.operations)
