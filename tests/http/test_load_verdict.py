"""The verdict of a load test: logs made by hand, each with a defect that a check has to find, and some without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from holdfast.http.load.claims import End, Listed, Reading
from holdfast.http.load.clock import Clock
from holdfast.http.load.log import HUNG_UP, LOST, MS, NOT_SENT, Call, Operation
from holdfast.http.load.verdict import Verdict, judge

#: Milliseconds by which the server's clock is ahead of the clients', and those of a hold.
AHEAD = 1_700_000_000_000
HOLD = 1_000


class Log:
    """A log in the making: every operation takes 2 ms of a clock that begins with 0."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.now = 0

    def did(self, buyer: int, call: Call, *, quantity: int = 1, key: str = "", **told: Any) -> Operation:
        begun = told.pop("begun", self.now)
        ended = told.pop("ended", begun + 2)
        operation = Operation(buyer, call, 0, key, quantity, begun * MS, begun * MS, ended * MS, **told)
        self.operations.append(operation)
        self.now = max(self.now, ended)
        return operation

    def reserves(self, buyer: int, ticket: str, *, key: str = "", quantity: int = 1, **told: Any) -> Operation:
        begun = told.get("begun", self.now)
        clock = AHEAD + begun + 1
        answer = {"state": "reserved", "now": clock, "expires_at": clock + HOLD, "units": quantity, "status": 201}
        return self.did(
            buyer, Call.RESERVE, quantity=quantity, key=key or f"r-{buyer}", ticket=ticket, **(answer | told)
        )

    def pays(self, buyer: int, ticket: str, **told: Any) -> Operation:
        clock = AHEAD + told.get("begun", self.now) + 1
        answer = {"state": "purchased", "units": 1, "expires_at": clock + HOLD, "ended_at": clock, "status": 200}
        return self.did(buyer, Call.PAY, key=f"p-{ticket}", ticket=ticket, **(answer | told))

    def cancels(self, buyer: int, ticket: str) -> Operation:
        return self.did(buyer, Call.CANCEL, ticket=ticket, state="cancelled", units=1, status=200)

    def hears(self, buyer: int, code: str, *, key: str = "", **told: Any) -> Operation:
        return self.did(buyer, Call.RESERVE, key=key or f"r-{buyer}", status=409, code=code, **told)


def end(
    tickets: dict[str, str] | None = None, *, capacity: int = 2, counts: tuple[int, int, int] | None = None, **more: Any
) -> End:
    """The last word: tickets of one unit by id with their status, and counters that fit unless others are given."""
    listed = {id: Listed(id, status, 1) for id, status in (tickets or {}).items()}
    sold = sum(ticket.status == "purchased" for ticket in listed.values())
    counts = counts or (capacity - sold, 0, sold)
    last = Reading(*counts, capacity)
    fields = {"own": True, "tickets": listed, "readings": [last], "counts": last}
    return End("gig", **(fields | more), capacity=capacity, capacity_max=capacity)  # type: ignore[arg-type]


def wrong(verdict: Verdict) -> list[str]:
    """The checks that failed."""
    return [check.name for check in verdict.checks if check.passed is False]


def evidence(verdict: Verdict, name: str) -> str:
    (check,) = (check for check in verdict.checks if check.name == name)
    return " ".join(check.evidence)


def judged(log: Log, last: End, **more: Any) -> Verdict:
    return judge(log.operations, [last], **more)


@pytest.fixture
def log() -> Log:
    return Log()


# What is right --------------------------------------------------------------------------------------------------------


def test_a_run_without_a_defect_is_good(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "b")
    log.hears(3, "all_held", quantity=1)
    log.pays(1, "a")
    log.cancels(2, "b")
    log.reserves(3, "c")
    log.pays(3, "c")
    log.hears(4, "sold_out")
    verdict = judged(log, end({"a": "purchased", "b": "cancelled", "c": "purchased"}, max_per_buyer=1))
    assert wrong(verdict) == []
    assert verdict.good
    assert verdict.sentence.startswith("GOOD")


def test_a_run_that_heard_nothing_proves_nothing(log: Log) -> None:
    log.did(1, Call.RESERVE, key="r-1", code=NOT_SENT)
    verdict = judged(log, end())
    assert wrong(verdict) == []
    assert not verdict.good


def test_an_interrupted_run_is_not_good_and_accuses_nobody_of_holds_that_go_on(log: Log) -> None:
    log.reserves(1, "a")
    verdict = judged(log, end({"a": "reserved"}, counts=(1, 1, 0), quiet=False), interrupted=True)
    assert wrong(verdict) == []
    assert not verdict.good
    assert "INTERRUPTED" in verdict.sentence


# Stock ----------------------------------------------------------------------------------------------------------------


def test_more_paid_than_there_is(log: Log) -> None:
    for buyer, ticket in enumerate("abc"):
        log.reserves(buyer, ticket)
        log.pays(buyer, ticket)
    verdict = judged(log, end(dict.fromkeys("abc", "purchased"), counts=(0, 0, 2)))
    assert "oversold" in wrong(verdict)
    assert "3 units at one moment, of 2" in evidence(verdict, "oversold")


def test_more_held_at_once_than_there_is(log: Log) -> None:
    for buyer, ticket in enumerate("abc"):
        log.reserves(buyer, ticket)
    verdict = judged(log, end(dict.fromkeys("abc", "expired")))
    assert wrong(verdict) == ["oversold"]


def test_units_that_were_held_one_after_the_other_are_not_oversold(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "b")
    log.cancels(1, "a")
    log.reserves(3, "c")
    log.now += HOLD + 10
    log.reserves(4, "d")
    log.reserves(5, "e")
    assert wrong(judged(log, end({"a": "cancelled"} | dict.fromkeys("bcde", "expired")))) == []


def test_a_cancellation_without_an_answer_may_have_given_its_unit_back(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "b")
    log.did(1, Call.CANCEL, ticket="a", code=LOST)
    log.reserves(3, "c")
    assert wrong(judged(log, end({"a": "cancelled", "b": "expired", "c": "expired"}))) == []


def test_without_the_server_s_clock_only_purchases_count(log: Log) -> None:
    for buyer, ticket in enumerate("abc"):
        # A clock that jumped by a minute between two answers.
        log.reserves(buyer, ticket, now=AHEAD + buyer * 60_000)
    assert "oversold" not in wrong(judged(log, end(dict.fromkeys("abc", "expired"))))


def test_the_counters_say_more_sold_than_there_is(log: Log) -> None:
    log.reserves(1, "a")
    last = end({"a": "expired"}, counts=(-1, 0, 3))
    assert {"oversold", "counters", "leaked"} <= set(wrong(judged(log, last)))


def test_a_unit_that_never_came_back(log: Log) -> None:
    log.reserves(1, "a")
    assert wrong(judged(log, end({"a": "expired"}, counts=(1, 1, 0)))) == ["leaked"]
    verdict = judged(log, end({"a": "expired"}, counts=(1, 0, 0)))
    assert set(wrong(verdict)) == {"leaked", "counters"}


def test_a_counter_that_counts_a_purchase_no_ticket_has(log: Log) -> None:
    log.reserves(1, "a")
    assert wrong(judged(log, end({"a": "expired"}, counts=(1, 0, 1)))) == ["leaked"]


def test_counters_that_did_not_add_up_on_the_way(log: Log) -> None:
    log.reserves(1, "a")
    last = end({"a": "expired"}, readings=[Reading(1, 0, 0, 2), Reading(2, 0, 0, 2)])
    assert wrong(judged(log, last)) == ["counters"]


# Outcomes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["expired", "reserved", None])
def test_a_purchase_that_was_acknowledged_and_is_gone(log: Log, status: str | None) -> None:
    log.reserves(1, "a")
    log.pays(1, "a")
    verdict = judged(log, end({"a": status} if status else {}))
    assert "purchases" in wrong(verdict)
    assert "a was acknowledged as paid" in evidence(verdict, "purchases")


def test_without_the_operator_each_purchase_is_looked_up(log: Log) -> None:
    log.reserves(1, "a")
    log.pays(1, "a")
    looked_up = {"a": Listed("a", "expired", 1)}
    assert wrong(judged(log, _unlisted(looked_up))) == ["purchases"]
    assert wrong(judged(log, _unlisted({"a": Listed("a", "purchased", 1)}))) == []
    verdict = judged(log, _unlisted({}))
    assert wrong(verdict) == []
    assert {check.name for check in verdict.checks if check.passed is None} >= {"purchases", "tickets"}


def _unlisted(looked_up: dict[str, Listed]) -> End:
    return replace(end({"a": "purchased"}), tickets=None, looked_up=looked_up)


def test_a_purchase_with_other_units(log: Log) -> None:
    log.reserves(1, "a")
    log.pays(1, "a")
    last = replace(
        end({"a": "purchased"}), tickets={"a": Listed("a", "purchased", 2)}, counts=Reading(0, 0, 2, 2), readings=[]
    )
    assert wrong(judged(log, last)) == ["purchases"]


def test_a_ticket_that_nobody_asked_for(log: Log) -> None:
    log.reserves(1, "a")
    verdict = judged(log, end({"a": "expired", "x": "expired"}))
    assert wrong(verdict) == ["tickets"]
    assert "x (expired)" in evidence(verdict, "tickets")


def test_a_ticket_of_a_client_that_hung_up_is_explained_once(log: Log) -> None:
    log.did(1, Call.RESERVE, key="r-1", code=HUNG_UP)
    log.reserves(2, "b")
    theirs = [Listed("x", "expired", 1)]
    assert wrong(judged(log, end({"x": "expired", "b": "expired"}, of_buyers={1: theirs}))) == []
    # Two tickets for one order that nobody was told of.
    theirs.append(Listed("y", "expired", 1))
    last = end({"x": "expired", "y": "expired", "b": "expired"}, of_buyers={1: theirs})
    assert wrong(judged(log, last)) == ["tickets"]


def test_a_ticket_that_is_not_there_any_more(log: Log) -> None:
    log.reserves(1, "a")
    assert wrong(judged(log, end({}))) == ["tickets"]


def test_a_ticket_that_is_paid_though_nobody_paid(log: Log) -> None:
    log.reserves(1, "a")
    assert wrong(judged(log, end({"a": "purchased"}))) == ["tickets"]
    log.pays(1, "a", status=0, code=LOST, state="")
    assert wrong(judged(log, end({"a": "purchased"}))) == []


def test_a_ticket_that_is_cancelled_though_nobody_cancelled(log: Log) -> None:
    log.reserves(1, "a")
    assert wrong(judged(log, end({"a": "cancelled"}))) == ["tickets"]


def test_two_tickets_for_one_key(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(1, "b")
    verdict = judged(log, end({"a": "expired", "b": "expired"}))
    assert wrong(verdict) == ["keys"]
    assert "a and b" in evidence(verdict, "keys")


def test_one_ticket_for_two_buyers(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "a")
    assert "keys" in wrong(judged(log, end({"a": "expired"})))


def test_a_repeat_that_is_refused_what_its_key_has(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "b")
    log.hears(1, "all_held")
    verdict = judged(log, end({"a": "expired", "b": "expired"}))
    assert wrong(verdict) == ["keys"]


def test_a_repeat_beside_the_first_request_may_be_refused(log: Log) -> None:
    log.reserves(2, "b")
    log.reserves(3, "c")
    log.cancels(2, "b")
    log.reserves(1, "a", begun=20, ended=30)
    log.hears(1, "all_held", begun=3, ended=40)
    assert wrong(judged(log, end({"a": "expired", "b": "cancelled", "c": "expired"}))) == []


def test_two_endings_of_one_ticket(log: Log) -> None:
    log.reserves(1, "a")
    log.cancels(1, "a")
    log.pays(1, "a")
    assert "endings" in wrong(judged(log, end({"a": "purchased"})))


def test_a_payment_after_the_deadline(log: Log) -> None:
    log.reserves(1, "a")
    log.pays(1, "a", ended_at=AHEAD + 5_000, expires_at=AHEAD + 5_000)
    verdict = judged(log, end({"a": "purchased"}))
    assert wrong(verdict) == ["endings"]
    assert "paid 0 ms after" in evidence(verdict, "endings")


def test_a_hold_that_ended_before_its_time(log: Log) -> None:
    given = log.reserves(1, "a")
    log.pays(1, "a", status=410, code="ticket_expired", state="expired", expires_at=given.expires_at, ended_at=0)
    assert wrong(judged(log, end({"a": "expired"}))) == ["endings"]


def test_a_hold_that_goes_on_after_its_time(log: Log) -> None:
    given = log.reserves(1, "a")
    log.now += HOLD + 10
    log.reserves(1, "a", expires_at=given.expires_at, now=AHEAD + log.now + 1)
    assert wrong(judged(log, end({"a": "expired"}))) == ["endings"]


# Refusals and limits --------------------------------------------------------------------------------------------------


def test_a_buyer_with_more_than_the_limit(log: Log) -> None:
    log.reserves(1, "a", key="one")
    log.reserves(1, "b", key="two")
    last = end({"a": "expired", "b": "expired"}, max_per_buyer=1)
    assert wrong(judged(log, last)) == ["limits"]


def test_a_limit_that_was_said_to_be_reached_and_was_not(log: Log) -> None:
    log.hears(1, "limit_reached")
    assert wrong(judged(log, end(max_per_buyer=1))) == ["limits"]


def test_a_limit_that_may_have_been_reached(log: Log) -> None:
    log.did(1, Call.RESERVE, key="one", code=HUNG_UP)
    log.hears(1, "limit_reached", key="two")
    assert wrong(judged(log, end(max_per_buyer=1))) == []


def test_sold_out_while_units_were_free_for_good(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "b")
    log.pays(1, "a")
    # One is only held: it may come back, and all_held would have been right.
    log.hears(3, "sold_out")
    verdict = judged(log, end({"a": "purchased", "b": "expired"}))
    assert wrong(verdict) == ["refusals"]
    assert "1 of 2 can have been sold" in evidence(verdict, "refusals")


def test_all_held_while_units_were_free(log: Log) -> None:
    log.reserves(1, "a")
    log.hears(2, "all_held")
    assert wrong(judged(log, end({"a": "expired"}))) == ["refusals"]


def test_all_held_after_holds_had_run_out(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "b")
    log.now += HOLD + 10
    log.hears(3, "all_held")
    assert wrong(judged(log, end({"a": "expired", "b": "expired"}))) == ["refusals"]


def test_refusals_that_may_have_been_true(log: Log) -> None:
    # Both units may be taken by requests that are still under way, or that nobody heard the end of.
    log.reserves(1, "a", begun=0, ended=50)
    log.did(2, Call.RESERVE, key="r-2", code=LOST, begun=0, ended=10)
    log.hears(3, "all_held", begun=5, ended=8)
    log.pays(1, "a", begun=60, ended=90)
    log.did(2, Call.RESERVE, key="r-2", ticket="b", status=201, state="reserved", begun=60, ended=62)
    log.did(2, Call.PAY, key="p-b", ticket="b", code=LOST, begun=70, ended=72)
    log.hears(4, "sold_out", begun=75, ended=80)
    last = end({"a": "purchased", "b": "purchased"})
    assert wrong(judged(log, last)) == []


def test_an_order_that_nobody_heard_of_may_hold_its_units_for_ever(log: Log) -> None:
    log.reserves(1, "a")
    log.did(2, Call.RESERVE, key="r-2", code=HUNG_UP)
    log.now += 100
    log.hears(3, "all_held")
    assert wrong(judged(log, end({"a": "expired"}))) == []


def test_in_a_sale_of_others_a_refusal_is_no_accusation(log: Log) -> None:
    log.reserves(1, "a")
    log.hears(2, "sold_out")
    last = end({"a": "expired", "theirs": "purchased"}, own=False)
    verdict = judged(log, last)
    assert wrong(verdict) == []
    assert {check.name for check in verdict.checks if check.passed is None} == {"leaked", "tickets", "refusals"}


def test_an_honest_buyer_who_was_kept_from_a_share(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(9, "b", key="one")
    log.hears(2, "all_held")
    last = end({"a": "expired", "b": "expired"}, capacity=3, max_per_buyer=1)
    assert set(wrong(judged(log, last, is_honest=lambda buyer: buyer != 9))) == {"share", "refusals"}
    # With less than enough for everybody, it is luck.
    last = end({"a": "expired", "b": "expired"}, capacity=2, max_per_buyer=1)
    assert wrong(judged(log, last, is_honest=lambda buyer: buyer != 9)) == []


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(500, "internal_error"), (502, ""), (503, ""), (504, "timeout")])
def test_an_answer_with_a_status_of_its_own(log: Log, status: int, code: str) -> None:
    log.did(1, Call.RESERVE, key="r-1", status=status, code=code)
    assert wrong(judged(log, end())) == ["contract"]


@pytest.mark.parametrize("code", ["not_ready", "overloaded", "outcome_unknown"])
def test_a_server_may_say_that_it_cannot_now(log: Log, code: str) -> None:
    log.did(1, Call.RESERVE, key="r-1", status=503, code=code)
    assert wrong(judged(log, end())) == []


def test_what_was_wrong_with_an_answer_is_told(log: Log) -> None:
    log.reserves(1, "a", wrong="its lines are others")
    verdict = judged(log, end({"a": "expired"}))
    assert wrong(verdict) == ["contract"]
    assert "its lines are others (buyer 1, reserve, key r-1)" in evidence(verdict, "contract")


def test_evidence_is_bounded_and_counted(log: Log) -> None:
    for buyer in range(50):
        log.did(buyer, Call.RESERVE, key="k", status=500, code="internal_error")
    (check,) = (check for check in judged(log, end()).checks if check.name == "contract")
    assert (check.wrong, len(check.evidence)) == (50, 10)


# Sales in shards ------------------------------------------------------------------------------------------------------


def test_units_between_shards_are_counted(log: Log) -> None:
    log.reserves(1, "gig~1.a")
    log.pays(1, "gig~1.a")
    last = end({"gig~1.a": "purchased"}, capacity=5, shards=True)
    moving = [Reading(2, 1, 0, 5, 2), Reading(4, 0, 1, 5, 0)]
    assert judged(log, replace(last, readings=moving)).good
    for lost in (Reading(2, 1, 0, 5, 1), Reading(2, 1, 0, 5, 3), Reading(5, 1, 0, 5, -1)):
        verdict = judged(log, replace(last, readings=[lost, *moving]))
        assert wrong(verdict) == ["counters"]
        assert "in transit, of 5" in evidence(verdict, "counters")


def test_units_that_never_arrive_are_lost(log: Log) -> None:
    log.reserves(1, "gig~1.a")
    log.pays(1, "gig~1.a")
    last = replace(end({"gig~1.a": "purchased"}, shards=True), counts=Reading(0, 0, 1, 2, 1))
    assert wrong(judged(log, last)) == ["leaked"]


def test_all_held_may_be_units_between_shards_and_sold_out_may_not(log: Log) -> None:
    log.reserves(1, "gig~1.a")
    log.pays(1, "gig~1.a")
    log.hears(2, "all_held")
    last = end({"gig~1.a": "purchased"})
    assert wrong(judged(log, last)) == ["refusals"]
    assert judged(log, replace(last, shards=True)).good
    log.hears(3, "sold_out")
    assert wrong(judged(log, replace(last, shards=True))) == ["refusals"]


def test_each_slot_has_a_clock_of_its_own(log: Log) -> None:
    # The second node's clock is a second behind: no contradiction, and each deadline is by its own.
    log.reserves(1, "gig~1.a")
    for n in (2, 3):
        begun = log.now
        clock = AHEAD - 1_000 + begun + 1
        log.reserves(n, f"gig~2.b{n}", now=clock, expires_at=clock + HOLD)
    tickets = {"gig~1.a": "expired", "gig~2.b2": "expired", "gig~2.b3": "expired"}
    last = end(tickets, capacity=3, shards=True)
    assert judged(log, last).good
    log.did(2, Call.PAY, begun=500, ticket="gig~2.b2", state="expired", status=410, code="ticket_expired",
            expires_at=log.operations[1].expires_at)  # fmt: skip
    assert wrong(judged(log, last)) == ["endings"]


# A failover -----------------------------------------------------------------------------------------------------------


def test_what_was_only_held_may_be_lost_in_a_failover(log: Log) -> None:
    log.reserves(1, "a")
    log.reserves(2, "b")
    log.cancels(2, "b")
    # Lost with the server: the first is sold to others, the second is held again, and so the third finds nothing.
    for n, ticket in ((3, "c"), (4, "d")):
        log.reserves(n, ticket)
        log.pays(n, ticket)
    log.hears(1, "sold_out")
    last = end({"b": "expired", "c": "purchased", "d": "purchased"})
    assert {"oversold", "tickets", "keys", "endings"} <= set(wrong(judged(log, last)))
    assert judged(log, replace(last, failover=True)).good


def test_a_payment_that_was_to_survive_a_failover_has_to(log: Log) -> None:
    log.reserves(1, "a")
    log.pays(1, "a")
    last = replace(end({"a": "expired"}), failover=True)
    assert wrong(judged(log, last)) == ["purchases"]
    assert wrong(judged(log, replace(end({}), failover=True))) == ["purchases"]
    # Sold to somebody else as well.
    for n in (2, 3):
        log.reserves(n, f"b{n}")
        log.pays(n, f"b{n}")
    sold = dict.fromkeys(("a", "b2", "b3"), "purchased")
    assert "oversold" in wrong(judged(log, replace(end(sold, counts=(0, 0, 3)), failover=True)))


def test_a_payment_that_was_not_durable_in_time_may_be_lost_in_a_failover(log: Log) -> None:
    log.reserves(1, "a")
    log.pays(1, "a", status=202)
    last = end({"a": "expired"})
    assert wrong(judged(log, last)) == ["purchases"]
    assert judged(log, replace(last, failover=True)).good


# The clock ------------------------------------------------------------------------------------------------------------


def test_a_clock_is_as_narrow_as_the_quickest_answers() -> None:
    readings: Sequence[tuple[int, int, int]] = [(0, 10 * MS, AHEAD + 5), (100 * MS, 101 * MS, AHEAD + 100)]
    clock = Clock.of(readings)
    assert clock is not None
    assert clock.low <= AHEAD <= clock.high
    assert clock.high - clock.low <= 2 + 2 * 2.0
    assert clock.earliest(AHEAD + 50) <= 50 * MS <= clock.latest(AHEAD + 50)


def test_a_clock_that_jumped_tells_nothing() -> None:
    assert Clock.of([(0, MS, AHEAD), (MS, 2 * MS, AHEAD + 60_000)]) is None
    assert Clock.of([]) is None
