"""The check of histories, checked: it accepts what happened, not what cannot have, and agrees with brute force."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .facts import CANCELLED, EXPIRED, PURCHASED, RESERVED, Lines, clock_of, counts_of, lines_of
from .history import Call, Final, Operation, Outcome
from .linearizability import Decision, decide
from .simulation import Crowd, Sale

SEEDS = st.integers(0, 2**32)


def history(seed: int, calls: int = 400, most: int | None = None, clients: int = 12) -> tuple[list[Operation], Final]:
    return Crowd(Sale({"general": 40, "box": 9}, 150, most), seed, clients, calls).run()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([None, 3]), st.booleans())
def test_what_happened_is_accepted(seed: int, most: int | None, timed: bool) -> None:
    operations, final = history(seed, most=most)
    verdict = decide(operations, final, clock_of(operations) if timed else None)
    assert verdict.decision is Decision.LINEARIZABLE, verdict


def test_thousands_of_operations_of_60_clients_are_decided_in_seconds() -> None:
    operations, final = Crowd(Sale({"general": 2000, "box": 300}, 300), 1, clients=60, calls=8000).run()
    began = time.process_time()
    assert decide(operations, final, clock_of(operations)).decision is Decision.LINEARIZABLE
    # Of the processor, which others use, too: it takes two seconds where nobody else is.
    assert time.process_time() - began < 30


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_without_a_ledger_an_order_is_searched_for(seed: int) -> None:
    operations, final = history(seed, calls=120, clients=4)
    assert decide(operations, replace(final, ledgers=()), clock_of(operations)).decision is Decision.LINEARIZABLE


def test_a_ledger_that_lies_convinces_nobody() -> None:
    """Two reservations in the order of the ledger, and a client who knows better."""
    operations, final = [], final_of({"a": (("general", 1),), "b": (("general", 2),)}, {"general": 3})
    operations.append(reserved(1, 0, 10, "a", 1))
    operations.append(sale_read(2, 12, 14, (2, 1, 0)))
    operations.append(reserved(3, 15, 20, "b", 2))
    (ledger,) = final.ledgers
    lies = replace(final, ledgers=(tuple((at, text) for at, (_, text) in enumerate(reversed(ledger), start=1)),))
    assert decide(operations, lies).decision is Decision.LINEARIZABLE
    operations[1] = sale_read(2, 12, 14, (1, 2, 0))  # what the ledger would have it
    assert decide(operations, lies).decision is Decision.NOT_LINEARIZABLE


def test_a_key_is_not_refused_for_what_its_own_ticket_holds() -> None:
    final = final_of({"a": (("general", 2),)}, {"general": 3})
    unknown = Operation(1, "b1", Call.RESERVE, "gig", 0, lines=(("general", 2),), key="k")
    held = {"sku": "general", "available": 1}
    refused = replace(unknown, begun=5, ended=9, status=409, code="all_held", answer=held)
    assert decide([unknown, replace(refused, key="another")], final).decision is Decision.LINEARIZABLE
    assert decide([unknown, refused], final).decision is Decision.NOT_LINEARIZABLE


def test_beyond_the_bound_it_is_undecided() -> None:
    operations, final = history(3)
    verdict = decide(operations, final, clock_of(operations), states_max=10)
    assert verdict.decision is Decision.UNDECIDED
    assert "10 states" in verdict.why


# -- corruptions -----------------------------------------------------------------------------------------------------


def stale_read(rng: random.Random, operations: list[Operation], final: Final) -> Final | None:
    """A sale answered as if the last payment before it had not been made."""
    for at, read in rng.sample(list(enumerate(operations)), len(operations)):
        if read.call is not Call.SALE or read.ended is None:
            continue
        paid = [o for o in operations if o.call is Call.PAY and o.outcome is Outcome.DONE and o.begun < read.ended]
        # One that is under way might be the one that it did not see.
        if not paid or any(o.ended is None or o.ended >= read.begun for o in paid):
            continue
        lines = dict(lines_of(paid[-1].answer["lines"]))
        items = [
            {"sku": sku, "available": a, "reserved": r + lines.get(sku, 0), "purchased": p - lines.get(sku, 0)}
            for sku, (a, r, p) in counts_of(read.answer).items()
        ]
        operations[at] = replace(read, answer=read.answer | {"items": items})
        return final
    return None


def lost_update(rng: random.Random, operations: list[Operation], final: Final) -> Final | None:
    """A ticket that was acknowledged as cancelled and is purchased in the end, counters and all."""
    cancelled = [o.ticket for o in operations if o.call is Call.CANCEL and o.outcome is Outcome.DONE]
    if not cancelled:
        return None
    id = rng.choice(cancelled)
    tickets = final.tickets | {
        id: final.tickets[id] | {"status": PURCHASED, "purchased_at": final.tickets[id]["reserved_at"]}
    }
    units = dict(lines_of(tickets[id]["lines"]))
    counts = {sku: (a - units.get(sku, 0), r, p + units.get(sku, 0)) for sku, (a, r, p) in final.counts.items()}
    return replace(final, tickets=tickets, counts=counts)


def swapped_tickets(rng: random.Random, operations: list[Operation], final: Final) -> Final | None:
    """Two buyers were answered each other's ticket, and each paid or cancelled their own."""
    done = [
        at
        for at, o in enumerate(operations)
        if o.call is Call.RESERVE and o.outcome is Outcome.DONE and final.tickets[o.ticket]["status"] != EXPIRED
    ]
    for first in rng.sample(done, len(done)):
        for second in done:
            one, other = operations[first], operations[second]
            if one.ticket != other.ticket and one.buyer != other.buyer:
                operations[first] = replace(one, ticket=other.ticket, answer=other.answer)
                operations[second] = replace(other, ticket=one.ticket, answer=one.answer)
                return final
    return None


def second_sale_of_the_last_unit(rng: random.Random, operations: list[Operation], final: Final) -> Final | None:
    """One more ticket than there are units, for somebody who had heard that all was sold."""
    sold_out = [at for at, o in enumerate(operations) if o.code == "sold_out" and len(o.lines) == 1]
    if not sold_out:
        return None
    at = rng.choice(sold_out)
    ((sku, quantity),) = operations[at].lines
    id = "gig.one-too-many---------"
    body = {
        "id": id,
        "status": PURCHASED,
        "lines": [{"sku": sku, "quantity": quantity}],
        "reserved_at": "2027-01-15T08:00:00.000Z",
        "expires_at": "2099-01-15T08:00:00.000Z",
        "purchased_at": "2027-01-15T08:00:00.000Z",
        "expires_in_ms": 0,
    }
    asked = operations[at]
    operations[at] = replace(asked, status=201, code=None, ticket=id, answer=body)
    end = max(o.ended or 0 for o in operations)
    pay = replace(asked, call=Call.PAY, lines=(), key=None, begun=end, ended=end + 1, status=200, code=None)
    operations.append(replace(pay, ticket=id, answer=body))
    available, reserved, purchased = final.counts[sku]
    counts = final.counts | {sku: (available - quantity, reserved, purchased + quantity)}
    return replace(final, tickets=final.tickets | {id: body}, counts=counts)


def second_ticket_for_a_key(rng: random.Random, operations: list[Operation], final: Final) -> Final | None:
    """A repeat with its key that was answered with somebody's other ticket."""
    done = [o for o in operations if o.call is Call.RESERVE and o.outcome is Outcome.DONE]
    keyed = [o for o in done if o.key is not None]
    if not keyed:
        return None
    one = rng.choice(keyed)
    others = [o for o in done if o.ticket != one.ticket]
    assert one.ended is not None
    again = replace(one, begun=one.ended + 1, ended=one.ended + 2, ticket=others[0].ticket, answer=others[0].answer)
    operations.append(again)
    return final


def paid_for_another(rng: random.Random, operations: list[Operation], final: Final) -> Final | None:
    """A payment that somebody made for a ticket of another buyer."""
    paid = [at for at, o in enumerate(operations) if o.call is Call.PAY and o.outcome is Outcome.DONE]
    if not paid:
        return None
    at = rng.choice(paid)
    operations[at] = replace(operations[at], buyer="somebody else")
    return final


CORRUPTIONS = [
    stale_read,
    lost_update,
    swapped_tickets,
    second_sale_of_the_last_unit,
    second_ticket_for_a_key,
    paid_for_another,
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_what_cannot_have_happened_is_not_accepted(corrupt: object) -> None:
    tried = 0
    for seed in range(12):
        # So few answers are lost that nothing else can explain what was changed.
        operations, final = Crowd(Sale({"general": 30, "box": 9}, 150), seed, 8, 300, lose=0.0).run()
        clock = clock_of(operations)
        changed = corrupt(random.Random(seed), operations, final)  # type: ignore[operator]
        if changed is not None:
            tried += 1
            verdict = decide(operations, changed, clock, states_max=20_000)
            assert verdict.decision is not Decision.LINEARIZABLE, seed
    assert tried >= 6


# -- brute force -----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(0, 3))
def test_brute_force_agrees_on_tiny_histories(seed: int, changes: int) -> None:
    rng = random.Random(seed)
    most = rng.choice([None, 2])
    crowd = Crowd(Sale({"general": rng.randint(1, 3)}, rng.choice([4, 1000]), most), seed, 3, 5, lose=0.2, think_ms=1)
    operations, final = crowd.run()
    for _ in range(changes):
        change(rng, operations)
    # The rules are known by an answer about the sale, which stands in every real history.
    first = min(o.begun for o in operations) - 10
    units = final.capacity["general"]
    operations.append(sale_read(9, first, first + 1, (units, 0, 0), most))
    verdict = decide(operations, final)
    assert verdict.decision is not Decision.UNDECIDED
    assert (verdict.decision is Decision.LINEARIZABLE) == any_order(operations, final, most), verdict


def change(rng: random.Random, operations: list[Operation]) -> None:
    """Something else that a client might have written down."""
    one, other = rng.randrange(len(operations)), rng.randrange(len(operations))
    match rng.randrange(4):
        case 0:  # answers swapped
            a, b = operations[one], operations[other]
            if a.call is b.call and None not in (a.ended, b.ended):
                operations[one] = replace(a, answer=b.answer, status=b.status, code=b.code, ticket=b.ticket)
                operations[other] = replace(b, answer=a.answer, status=a.status, code=a.code, ticket=a.ticket)
        case 1:  # the whole call at another time
            a, by = operations[one], rng.randint(-8, 8) * 1_000_000
            if a.ended is not None:
                operations[one] = replace(a, begun=a.begun + by, ended=a.ended + by)
        case 2:  # by another buyer
            operations[one] = replace(operations[one], buyer=operations[other].buyer)
        case 3:  # without an answer
            operations[one] = replace(operations[one], ended=None, status=None, code=None, answer={})


#: By id: buyer, key, lines, status, the key of its payment.
Tickets = dict[str, tuple[str, str | None, Lines, str, object]]


def any_order(operations: Sequence[Operation], final: Final, most: int | None) -> bool:
    """Every order there is, one by one. Holds may end at any time: these histories know no clock."""
    capacity = final.capacity["general"]

    dead: set[object] = set()

    def explore(left: tuple[Operation, ...], tickets: Tickets) -> bool:
        here = frozenset(map(id, left)), frozenset(tickets.items())
        if here in dead:
            return False
        dead.add(here)
        if not any(o.outcome is not Outcome.UNKNOWN for o in left) and {
            name: ticket[3] for name, ticket in tickets.items()
        } == {name: body["status"] for name, body in final.tickets.items()}:
            return True
        for name, (buyer, key, lines, status, _) in tickets.items():
            if status == RESERVED and explore(left, tickets | {name: (buyer, key, lines, EXPIRED, None)}):
                return True
        horizon = min((o.ended for o in left if o.ended is not None), default=2**63)
        for operation in left:
            if operation.begun <= horizon:
                rest = tuple(o for o in left if o is not operation)
                if any(explore(rest, after) for after in outcomes(operation, tickets)):
                    return True
        return False

    def units(tickets: Tickets, status: str, buyer: str | None = None) -> int:
        mine = [lines for who, _, lines, s, _ in tickets.values() if s == status and buyer in (None, who)]
        return sum(quantity for lines in mine for _, quantity in lines)

    def outcomes(o: Operation, tickets: Tickets) -> Iterator[Tickets]:
        """What there is after the call, for each way in which its answer can be right."""
        open_ended, done = o.outcome is Outcome.UNKNOWN, o.outcome is Outcome.DONE
        held, sold = units(tickets, RESERVED), units(tickets, PURCHASED)
        left = capacity - held - sold
        if o.call is Call.SALE:
            if open_ended or counts_of(o.answer) == {"general": (left, held, sold)}:
                yield tickets
            return
        if o.call is Call.RESERVE:
            wanted = sum(quantity for _, quantity in o.lines)
            mine = units(tickets, RESERVED, o.buyer) + units(tickets, PURCHASED, o.buyer)
            same = [i for i, t in tickets.items() if o.key is not None and t[:2] == (o.buyer, o.key)]
            if same:
                if open_ended or (done and o.ticket == same[0] and is_so(o, tickets[same[0]][3])):
                    yield tickets
                return
            if o.code == "sold_out" and left == o.answer["available"] and left + held < wanted:
                yield tickets
            if o.code == "all_held" and left == o.answer["available"] and left < wanted <= left + held:
                yield tickets
            over = most is not None and mine + wanted > most
            if o.code == "limit_reached" and over and o.answer["remaining"] == max(0, (most or 0) - mine):
                yield tickets
            if (open_ended or (done and is_so(o, RESERVED))) and left >= wanted and not over:
                for id in [o.ticket or ""] if done else list(final.tickets):
                    if id not in tickets and lines_of(final.tickets[id]["lines"]) == lines_of(o.lines):
                        yield tickets | {id: (o.buyer, o.key, lines_of(o.lines), RESERVED, None)}
            return
        ticket = tickets.get(o.ticket or "")
        if open_ended:
            yield tickets
        if ticket is None:
            if o.code == "unknown_ticket":
                yield tickets
            return
        owner, key, lines, status, paid_by = ticket
        if o.call is Call.TICKET:
            if done and is_so(o, status):
                yield tickets
            return
        if owner != o.buyer:
            if o.code == "not_your_ticket":
                yield tickets
            return
        ends = PURCHASED if o.call is Call.PAY else CANCELLED
        by = o.key or o.begun
        if (open_ended or done) and status == RESERVED:
            yield tickets | {o.ticket or "": (owner, key, lines, ends, by)}
        if done and status == ends and (ends == CANCELLED or paid_by == by):
            yield tickets
        if o.code == "already_purchased" and status == PURCHASED and (o.call is Call.CANCEL or paid_by != by):
            yield tickets
        if o.code == "already_cancelled" and status == CANCELLED:
            yield tickets
        if o.code == "ticket_expired" and status in (RESERVED, EXPIRED):
            yield tickets

    def is_so(o: Operation, status: str) -> bool:
        told = o.answer["status"]
        return told == status or (told == EXPIRED and status == RESERVED)

    # A sale that is sold out is refused from memory for 80 ms to those without a key.
    remembered = [
        replace(o, begun=o.begun - 80_000_000) if o.code == "sold_out" and o.key is None else o for o in operations
    ]
    return explore(tuple(remembered), {})


# -- histories by hand -----------------------------------------------------------------------------------------------


def reserved(client: int, begun: int, ended: int, id: str, quantity: int) -> Operation:
    return Operation(
        client, f"b{client}", Call.RESERVE, "gig", begun, ended, f"gig.{id}", (("general", quantity),), status=201,
        answer=ticket(id, (("general", quantity),)),
    )  # fmt: skip


def sale_read(client: int, begun: int, ended: int, counts: tuple[int, int, int], most: int | None = None) -> Operation:
    item = dict(zip(("available", "reserved", "purchased"), counts, strict=True))
    answer = {"items": [{"sku": "general", **item}], "max_per_buyer": most}
    return Operation(client, "reader", Call.SALE, "gig", begun, ended, status=200, answer=answer)


def ticket(id: str, lines: Lines, status: str = RESERVED) -> dict[str, object]:
    return {
        "id": f"gig.{id}",
        "status": status,
        "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines],
        "reserved_at": "2027-01-15T08:00:00.000Z",
        "expires_at": "2027-01-15T09:00:00.000Z",
        "expires_in_ms": 3_600_000,
    }


def final_of(tickets: dict[str, Lines], capacity: dict[str, int]) -> Final:
    """Everything still held."""
    held = {sku: sum(dict(lines).get(sku, 0) for lines in tickets.values()) for sku in capacity}
    return Final(
        "gig",
        capacity,
        {sku: (units - held[sku], held[sku], 0) for sku, units in capacity.items()},
        {f"gig.{id}": ticket(id, lines) for id, lines in tickets.items()},
        {},
        {},
        (
            tuple(
                (at, f"r 1:{dict(lines)['general']} 0 {id:_>22}{'b':_>22}")
                for at, (id, lines) in enumerate(tickets.items(), start=1)
            ),
        ),
    )
