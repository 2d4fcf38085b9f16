"""Each checker on a history that is right but for one thing, which it alone notices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from .checkers import check, leaked, lost, oversold
from .facts import CANCELLED, EXPIRED, PURCHASED
from .history import Call, Final, Operation, Outcome
from .simulation import Crowd, Sale

Run = tuple[list[Operation], Final]


def run(seed: int = 5) -> Run:
    return Crowd(Sale({"general": 60}, 150), seed, 10, 500).run()


def letters(run: Run, promised: bool = True) -> str:
    operations, final = run
    return "".join(sorted({violation.checker for violation in check(operations, [final], lambda operation: promised)}))


def find(operations: list[Operation], call: Call, **known: Any) -> int:
    """The place of a call that was done, of which these answers are known."""
    return next(
        at
        for at, o in enumerate(operations)
        if o.call is call
        and o.outcome is Outcome.DONE
        and all(o.answer.get(name) == value for name, value in known.items())
    )


def ended_as(run: Run, status: str) -> str:
    return next(id for id, body in run[1].tickets.items() if body["status"] == status)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_found_where_nothing_is_wrong(seed: int) -> None:
    right = run(seed)
    assert letters(right) == ""
    assert (lost(right[0], [right[1]]), oversold(right[0], [right[1]]), leaked(right[0], [right[1]])) == ([], 0, 0)


# Each takes a run that is right and makes one thing wrong.


def counters_that_do_not_add_up(run: Run) -> Run:
    operations, final = run
    at = find(operations, Call.SALE)
    (item,) = operations[at].answer["items"]
    operations[at] = replace(operations[at], answer={"items": [item | {"available": item["available"] + 1}]})
    return operations, final


def negative_counters(run: Run) -> Run:
    operations, final = run
    at = find(operations, Call.SALE)
    (item,) = operations[at].answer["items"]
    wrong = item | {"available": -1, "purchased": item["purchased"] + item["available"] + 1}
    operations[at] = replace(operations[at], answer={"items": [wrong]})
    return operations, final


def another_reference(run: Run) -> Run:
    operations, final = run
    id = ended_as(run, PURCHASED)
    return operations, replace(final, tickets=final.tickets | {id: final.tickets[id] | {"reference": "another"}})


def limits_passed(run: Run) -> Run:
    operations, final = run
    changed = [
        replace(o, answer=o.answer | {"max_per_buyer": 1}) if o.call is Call.SALE and o.answer else o
        for o in operations
    ]
    return changed, final


def more_than_there_is(run: Run) -> Run:
    """The same history, of a sale that has one unit less than were bought, and says so."""
    operations, final = run
    capacity = final.counts["general"][2] - 1
    unread = [o for o in operations if o.call is not Call.SALE]
    return unread, replace(final, capacity={"general": capacity}, counts={"general": (0, 0, capacity)})


def paid_too_late(run: Run) -> Run:
    operations, final = run
    at = find(operations, Call.PAY)
    answer = operations[at].answer
    operations[at] = replace(operations[at], answer=answer | {"purchased_at": answer["expires_at"]})
    return operations, final


def ended_twice_in_the_ledger(run: Run) -> Run:
    operations, final = run
    id = ended_as(run, CANCELLED).partition(".")[2]
    text = f"x {id} 1:1 - 1800000000000"
    return operations, replace(final, ledgers=((*final.ledgers[0], (len(final.ledgers[0]) + 1, text)),))


def a_gap_in_the_ledger(run: Run) -> Run:
    operations, final = run
    return operations, replace(final, ledgers=(tuple((at + (at > 20), text) for at, text in final.ledgers[0]),))


def expired_early(run: Run) -> Run:
    operations, final = run
    id = ended_as(run, EXPIRED)
    given = next(o for o in operations if o.ticket == id and o.call is Call.RESERVE)
    assert given.ended is not None
    answer = final.tickets[id]
    read = replace(given, call=Call.TICKET, begun=given.ended + 1, ended=given.ended + 2, status=200, answer=answer)
    return [*operations, read], final


def the_store_forgot(run: Run) -> Run:
    operations, final = run
    id = ended_as(run, CANCELLED)
    return operations, replace(final, store=final.store | {id: final.store[id] | {"status": "reserved"}})


def redis_says_otherwise(run: Run) -> Run:
    operations, final = run
    return operations, replace(final, redis=final.redis | {ended_as(run, CANCELLED): EXPIRED})


def paid_by_a_stranger(run: Run) -> Run:
    operations, final = run
    at = find(operations, Call.PAY)
    operations[at] = replace(operations[at], buyer="somebody else")
    return operations, final


@pytest.mark.parametrize(
    ("change", "checkers"),
    [
        (counters_that_do_not_add_up, "C"),
        (negative_counters, "C"),
        (another_reference, "A"),
        (limits_passed, "U"),
        (more_than_there_is, "CLU"),
        (paid_too_late, "E"),
        (ended_twice_in_the_ledger, "E"),
        (a_gap_in_the_ledger, "EL"),
        (expired_early, "E"),
        (the_store_forgot, "L"),
        (redis_says_otherwise, "L"),
        (paid_by_a_stranger, "H"),
    ],
)
def test_one_thing_wrong_is_noticed(change: Callable[[Run], Run], checkers: str) -> None:
    assert letters(change(run())) == checkers


def without(run: Run, id: str) -> Run:
    """The system has lost a purchase before anybody copied it, with all that belonged to it."""
    operations, final = run
    body = final.tickets[id] | {"status": EXPIRED, "expired_at": final.tickets[id]["expires_at"]}
    units = sum(line["quantity"] for line in body["lines"])
    (available, reserved, purchased) = final.counts["general"]
    ledger = tuple((at, text.replace(f"p {id[4:]}", f"x {id[4:]}")) for at, text in final.ledgers[0])
    ledger = tuple(
        (at, f"{text[: text.rindex(' ')]} 0" if text.startswith(f"x {id[4:]}") else text) for at, text in ledger
    )
    return operations, replace(
        final,
        tickets=final.tickets | {id: body},
        counts={"general": (available + units, reserved, purchased - units)},
        redis=final.redis | {id: EXPIRED},
        store=final.store | {id: final.store[id] | {"status": EXPIRED}},
        ledgers=(ledger,),
    )


def test_a_lost_purchase_is_a_violation_where_it_was_promised() -> None:
    right = run()
    at = find(right[0], Call.PAY)
    wrong = without(right, str(right[0][at].ticket))
    assert letters(wrong) == "A"
    assert {operation.ticket for operation in lost(wrong[0], [wrong[1]])} == {right[0][at].ticket}


def test_units_that_nobody_has_have_leaked() -> None:
    operations, final = run()
    available, reserved, purchased = final.counts["general"]
    wrong = replace(final, counts={"general": (available - 2, reserved + 2, purchased)})
    assert leaked(operations, [wrong]) == 2
    assert "C" in letters((operations, wrong))


def test_a_hold_that_was_lost_and_made_anew_by_its_key_was_not_had_in_between() -> None:
    operations, final = run()
    made = [
        o
        for o in operations
        if o.call is Call.RESERVE and o.outcome is Outcome.DONE and o.answer["id"] in final.tickets
    ]
    last = max(made, key=lambda o: o.ended or 0)
    first = min(o.begun for o in operations)
    # A failover has lost what was answered then, with its deadline.
    lost_hold = last.answer | {"expires_at": made[0].answer["expires_at"]}
    before = replace(last, begun=first, ended=first + 1, answer=lost_hold)
    assert lost_hold["expires_at"] != last.answer["expires_at"]
    assert oversold([before, *operations], [final]) == 0


def test_units_beyond_capacity_are_counted() -> None:
    operations, final = more_than_there_is(run())
    assert oversold(operations, [final]) >= 1


def test_counters_are_not_judged_while_other_answers_are_overdue() -> None:
    """A read that gets through first, when all that hung is about to be answered, may show holds that nobody swept."""
    operations, final = run()
    at = max(n for n, o in enumerate(operations) if o.call is Call.SALE and o.outcome is Outcome.DONE)
    read, (item,) = operations[at], operations[at].answer["items"]
    assert read.ended is not None
    wrong = item | {"available": item["available"] - 1, "reserved": item["reserved"] + 1}
    # Long after everything: no hold can have run.
    later = 60 * 1_000_000_000
    stale = replace(read, begun=read.begun + later, ended=read.ended + later, answer={"items": [wrong]})
    assert "E" in letters(([*operations, stale], final))
    hung = replace(read, begun=stale.begun - later // 2, ended=(stale.ended or 0) + 1_000)
    assert "E" not in letters(([*operations, stale, hung], final))


def in_shards(run: Run, *transfers: tuple[str, str]) -> Run:
    """The same, of a sale in two shards, the second of which had no buyers; what each says of transfers, in order."""
    operations, final = run
    first, second = list(final.ledgers[0]), list[tuple[int, str]]()
    for lent_by, text in transfers:
        ledger = first if lent_by == "first" else second
        ledger.append((len(ledger) + 1, f"t {text} {{}}"))
    return operations, replace(final, ledgers=(tuple(first), tuple(second)))


def test_units_between_shards_count() -> None:
    operations, final = in_shards(run())
    at = find(operations, Call.SALE)
    (item,) = operations[at].answer["items"]
    moved = item | {"available": item["available"] - 1}
    operations[at] = replace(operations[at], answer={"items": [moved]})
    assert letters((operations, final)) == "C"
    operations[at] = replace(operations[at], answer={"items": [moved | {"in_transit": 1}]})
    assert letters((operations, final)) == ""
    assert letters((operations, replace(final, in_transit={"general": 1}))) == "C"


def test_what_one_shard_lent_another_has_received() -> None:
    lent, received, settled = ("first", "lent 2 1 1:3"), ("second", "received 1 1 1:3"), ("first", "settled 2 1 1:3")
    assert letters(in_shards(run(), lent, received, settled)) == ""
    assert letters(in_shards(run(), lent)) == "L"
    assert letters(in_shards(run(), lent, received)) == "L"
    assert letters(in_shards(run(), lent, ("second", "received 1 1 1:4"), settled)) == "L"
    assert letters(in_shards(run(), lent, received, received, settled)) == "E"


def test_nobody_is_sold_out_while_another_shard_has_units() -> None:
    operations, final = in_shards(run())
    refused = Operation(
        999, "late", Call.RESERVE, final.sale, 1, 2, lines=(("general", 1),), status=409, code="sold_out",
        answer={"code": "sold_out", "sku": "general", "available": 0},
    )  # fmt: skip
    # Before anybody had bought anything.
    assert letters(([refused, *operations], final)) == "H"
    # What is on its way is all held; so is, for a moment, what another shard has.
    held = replace(refused, code="all_held", answer=refused.answer | {"code": "all_held"})
    assert letters(([held, *operations], final)) == ""
    assert letters(([held, *operations], replace(final, ledgers=final.ledgers[:1]))) == "H"
