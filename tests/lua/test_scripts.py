"""Scripts called directly: batches, refusals that change nothing, replays, and the fence."""

from __future__ import annotations

import random
from typing import Any

import pytest
import redis


def id22(name: str) -> str:
    """An id, a buyer or an operation of 22 characters."""
    return f"{name:.<22}"


def order(ticket: str, buyer: str = "ann", lines: str = "1:1", flag: str = "k") -> tuple[str, ...]:
    """An entry of reserve."""
    return id22(ticket), id22(buyer), f"{flag}{lines}"


def payment(
    ticket: str, buyer: str = "ann", operation: str = "pay", reference: str = "", mode: str = "a"
) -> tuple[str, ...]:
    """An entry of confirm."""
    return id22(ticket), id22(buyer), id22(operation), f"{mode}{reference}"


def cancellation(ticket: str, buyer: str = "ann", operation: str = "cancel") -> tuple[str, ...]:
    """An entry of cancel."""
    return id22(ticket), id22(buyer), id22(operation)


def words(answers: list[str]) -> list[str]:
    """The first word of each; `paid` for a confirmation, which answers with the record as it was."""
    return ["paid" if answer.startswith("r ") else answer.split(" ")[0] for answer in answers]


@pytest.fixture
def sale(slot: Any) -> Any:
    """Ten units, holds of a second."""
    assert slot.create() == ["ok"]
    return slot


# Create ---------------------------------------------------------------------------------------------------------------


def test_create_again_changes_nothing(slot: Any) -> None:
    assert slot.create() == ["ok"]
    before = slot.everything()
    assert slot.create() == ["replayed"]
    other = slot.run("create", "sale ledger", "{}", "another origin", "1000 0 0 0 0", "5 0 0")
    assert other == ["sale_exists"]
    assert slot.everything() == before
    assert slot.ledger() == [("1-1", 's {"version":1}')]


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_entry_by_entry_in_order(slot: Any) -> None:
    slot.create("3 1", rules="1000 2 0 0 0 1")
    answers = slot.answers(
        "reserve",
        order("t1", "ann", "1:2"),
        order("t2", "ann"),
        order("t3", "bob", "2:1"),
        order("t4", "cid", "2:1"),
        order("t5", "cid", "1:2"),
        order("t6", "dan", "1:1,2:1"),
        order("t7", "dan", "3:1"),
        order("t8", "eve", "2:2"),
        order("t9", "eve", "1:2"),
        order("t10", "eve", "1:1"),
    )
    deadline = slot.now + 1000
    assert answers == [
        "ok",
        "limit_reached 0 0",
        "ok",
        f"all_held 2 0 {deadline}",
        f"all_held 1 1 {deadline}",
        f"all_held 2 0 {deadline}",
        "unknown_item",
        "limit_reached 2 1",
        f"all_held 1 1 {deadline}",
        "ok",
    ]
    assert slot.counts() == "0 3 0 0 1 0"
    # One call, one entry: its id is the sequence of its last line.
    assert [id for id, _ in slot.ledger()] == ["1-1", "1-4"]
    assert slot.ledger()[1][1].split("\n") == [
        f"r 1:2 {deadline} {id22('t1')}{id22('ann')}",
        f"r 2:1 {deadline} {id22('t3')}{id22('bob')}",
        f"r 1:1 {deadline} {id22('t10')}{id22('eve')}",
    ]


def test_the_last_unit_goes_to_one_of_a_batch(slot: Any) -> None:
    slot.create("1")
    assert (
        words(slot.answers("reserve", *(order(f"t{n}", f"buyer-{n}") for n in range(50)))) == ["ok"] + ["all_held"] * 49
    )
    assert words(slot.answers("confirm", payment("t0", "buyer-0"))) == ["paid"]
    assert slot.answers("reserve", order("t50")) == ["sold_out 1 0"]
    assert slot.counts() == "0 0 1"


def test_the_same_ticket_twice_in_one_batch(sale: Any) -> None:
    first, again, other = sale.answers(
        "reserve", order("t1", lines="1:2"), order("t1", lines="1:2"), order("t1", lines="1:3")
    )
    assert (first, again.split(" ")[0], other) == ("ok", "replayed", "idempotency_key_reused")
    assert sale.counts() == "8 2 0"

    entries = [payment("t1", reference="r 1"), payment("t1", reference="r 1"), payment("t1", reference="r 2")]
    paid, again, reused, conflict = sale.answers("confirm", *entries, payment("t1", operation="another"))
    assert (words([paid, again]), reused) == (["paid", "replayed"], "idempotency_key_reused")
    assert again.removeprefix("replayed ") == conflict.removeprefix("already_purchased ")
    assert again.startswith("replayed p" + paid[1:])
    assert again.endswith(f" {id22('pay')} r 1")
    assert sale.counts() == "8 0 2"

    sale.answers("reserve", order("t2"))
    gone, again, by_another = sale.answers(
        "cancel", cancellation("t2"), cancellation("t2"), cancellation("t2", operation="another")
    )
    assert words([gone, again, by_another]) == ["ok", "replayed", "replayed"]
    assert gone.removeprefix("ok ") == by_another.removeprefix("replayed ")
    assert sale.counts() == "8 0 2"
    assert [text.split(" ")[0] for _, text in sale.ledger()] == ["s", "r", "p", "r", "c"]


def test_a_ticket_is_one_transition_of_its_own(sale: Any) -> None:
    sale.answers("reserve", order("t1"), order("t2"), order("t3"))
    sale.answers("confirm", payment("t2"), payment("t3"))
    # The record names the sequence of the transition that ended the ticket: s is 1, r are 2 to 4.
    paid = [sale.client.hget(sale.keys.tickets, id22(name)).decode() for name in ("t2", "t3")]
    assert [record.split(" ")[6] for record in paid] == ["5", "6"]
    assert sale.run("read", "sale tickets", sale.floor, id22("t3"), id22("nope"), id22("t1")) == [
        "ok",
        sale.now,
        paid[1],
        None,
        f"r 1:1 {sale.now} {sale.now + 1000} {id22('ann')}",
    ]


# Refusals -------------------------------------------------------------------------------------------------------------


def reserved_and_ended(slot: Any) -> None:
    """Tickets in every state: `held`, `paid`, `gone`, and `late`, whose hold is over at the end."""
    slot.create("10 1", rules="1000 6 0 0 3 0")
    slot.answers("reserve", order("paid"), order("gone"), order("late", "bob", "2:1"))
    slot.answers("confirm", payment("paid", reference="r 1"))
    slot.answers("cancel", cancellation("gone"))
    slot.now += 999
    slot.answers("reserve", order("held", lines="1:2"))


RESERVE_REFUSALS = [
    (order("paid", "bob"), "idempotency_key_reused"),
    (order("held", lines="1:3"), "idempotency_key_reused"),
    (order("new", lines="1:1,3:1"), "unknown_item"),
    (order("new", lines="1:4"), "limit_reached 0 3"),
    (order("new", "cid", "1:4"), "limit_reached 1 3"),
    (order("new", "cid", "2:2"), "sold_out 2 0"),
]
CONFIRM_REFUSALS = [
    (payment("nope"), "unknown_ticket"),
    (payment("held", "bob"), "not_your_ticket"),
    (payment("held", mode="d"), "payment_declined"),
    (payment("paid", operation="another"), "already_purchased"),
    (payment("paid", reference="r 2"), "idempotency_key_reused"),
    (payment("paid", reference="r 1", mode="d"), "idempotency_key_reused"),
    (payment("paid", reference="r 1"), "replayed"),
    (payment("gone"), "already_cancelled"),
]
CANCEL_REFUSALS = [
    (cancellation("nope"), "unknown_ticket"),
    (cancellation("held", "bob"), "not_your_ticket"),
    (cancellation("paid"), "already_purchased"),
    (cancellation("gone"), "replayed"),
]


@pytest.mark.parametrize(
    ("script", "refusals"),
    [("reserve", RESERVE_REFUSALS), ("confirm", CONFIRM_REFUSALS), ("cancel", CANCEL_REFUSALS)],
    ids=["reserve", "confirm", "cancel"],
)
def test_a_refusal_changes_nothing(slot: Any, script: str, refusals: list[tuple[str, str]]) -> None:
    reserved_and_ended(slot)
    if script == "reserve":
        # One item sold for good: `sold_out` needs that no hold stands in it.
        slot.answers("confirm", payment("late", "bob"))
    before = slot.everything()
    for entry, expected in refusals:
        (answer,) = slot.answers(script, entry)
        assert answer == expected or answer.split(" ")[0] == expected
        assert slot.everything() == before, expected
    assert words(slot.answers(script, *(entry for entry, _ in refusals))) == [
        expected.split(" ")[0] for _, expected in refusals
    ]
    assert slot.everything() == before


def test_outside_the_window_nothing_is_reserved(slot: Any) -> None:
    opens_at, closes_at = slot.now + 10, slot.now + 20
    slot.create(rules=f"1000 0 {opens_at} {closes_at} 0")
    before = slot.everything()
    assert slot.answers("reserve", order("t1")) == [f"not_yet_open {opens_at}"]
    slot.now = opens_at - 1
    assert slot.answers("reserve", order("t1")) == [f"not_yet_open {opens_at}"]
    slot.now = closes_at
    assert slot.answers("reserve", order("t1")) == ["closed"]
    assert slot.everything() == before
    slot.now = opens_at
    assert slot.answers("reserve", order("t1")) == ["ok"]
    slot.now = closes_at - 1
    assert slot.answers("reserve", order("t2")) == ["ok"]


ALL_KEYS = "sale tickets buyers deadlines ledger"
EVERY_CALL = [
    ("reserve", ALL_KEYS, [*order("new")]),
    ("confirm", ALL_KEYS, [*payment("held")]),
    ("cancel", ALL_KEYS, [*cancellation("held")]),
    ("expire", ALL_KEYS, []),
    ("amend", ALL_KEYS, ["1", '{"version":2}', "1000 0 0 0 0 0", "20 1"]),
    ("lend", ALL_KEYS, ["2", "1:1"]),
    ("receive", "sale ledger", ["2", "1", "1:1"]),
    ("read", "sale tickets", [id22("held")]),
    ("mine", "sale tickets buyers", [id22("ann")]),
    ("drop", "sale tickets buyers", ["1000", str(2**53), id22("paid")]),
]


@pytest.mark.parametrize(("script", "keys", "args"), EVERY_CALL, ids=[call[0] for call in EVERY_CALL])
def test_a_slot_that_may_not_be_used_answers_and_changes_nothing(
    slot: Any, script: str, keys: str, args: list[str]
) -> None:
    assert slot.run(script, keys, "0-0", *args) == ["missing"]
    assert slot.everything()["names"] == []
    reserved_and_ended(slot)
    slot.now += 1
    sequence = int(slot.ledger()[-1][0].removeprefix("1-"))
    before = slot.everything()
    for floor in (f"1-{sequence + 1}", "2-0", "2-1"):
        assert slot.run(script, keys, floor, *args) == ["behind"]
    assert slot.everything() == before
    assert slot.run("fence", "sale", "token") == ["ok", slot.now, "1", str(sequence), 0]
    before = slot.everything()
    for floor in ("0-0", "2-0"):
        assert slot.run(script, keys, floor, *args) == ["fenced"]
    assert slot.everything() == before
    slot.client.hdel(slot.keys.sale, "fence")
    # At the floor exactly it works, and changes what it should.
    assert slot.run(script, keys, f"1-{sequence}", *args)[0] == "ok"
    assert (slot.everything() == before | {"sale": slot.client.hgetall(slot.keys.sale)}) == (script in ("read", "mine"))


def test_a_key_of_a_slot_that_dropped_tickets_asks_the_store(sale: Any) -> None:
    assert sale.answers("reserve", order("t1", flag="k")) == ["ok"]
    sale.client.hset(sale.keys.sale, "dropped", "1")
    before = sale.everything()
    assert sale.answers("reserve", order("t2", flag="k")) == ["check_store"]
    assert sale.everything() == before
    assert sale.answers("reserve", order("t3", flag="n"), order("t2", flag="s")) == ["ok", "ok"]
    assert words(sale.answers("reserve", order("t1", flag="k"))) == ["replayed"]


@pytest.mark.parametrize("script", ["reserve", "confirm", "cancel"])
def test_a_ledger_that_is_ahead_refuses_before_anything_is_written(sale: Any, script: str) -> None:
    sale.answers("reserve", order("t1"))
    sale.client.xadd(sale.keys.ledger, {"at": "0", "d": "stranger"}, id="1-1000")
    before = sale.everything()
    entry = {"reserve": order("t2"), "confirm": payment("t1"), "cancel": cancellation("t1")}[script]
    with pytest.raises(redis.ResponseError):
        sale.answers(script, entry)
    assert sale.everything() == before


# Expiry ---------------------------------------------------------------------------------------------------------------


def test_a_hold_ends_at_its_deadline_and_not_before(sale: Any) -> None:
    sale.answers("reserve", order("t1", lines="1:3"), order("t2", "bob"))
    deadline = sale.now + 1000
    sale.now = deadline - 1
    before = sale.everything()
    assert sale.on_all("expire") == ["ok", sale.now, 1, 3, 0, 0, deadline]
    assert sale.everything() == before
    sale.now = deadline
    # Before it is swept it can no longer be paid or cancelled.
    assert sale.answers("confirm", payment("t1")) == [f"ticket_expired {deadline}"]
    assert sale.answers("cancel", cancellation("t1")) == [f"ticket_expired {deadline}"]
    assert sale.everything() == before
    sale.now += 5
    assert sale.on_all("expire") == ["ok", sale.now, 1, 5, 2, 0, -1]
    assert sale.counts() == "10 0 0"
    assert sale.ledger()[-1] == (
        "1-5",
        f"x {id22('t1')} 1:3 - {deadline}\nx {id22('t2')} 1:1 - {deadline}",
    )
    after = sale.everything()
    assert after["buyers"][id22("ann").encode()] == f"- {id22('t1')}".encode()
    assert sale.on_all("expire")[4:] == [0, 0, -1]
    assert sale.answers("confirm", payment("t1")) == [f"ticket_expired {deadline}"]
    assert sale.answers("cancel", cancellation("t1")) == [f"ticket_expired {deadline}"]
    assert sale.everything() == after


def test_reserve_takes_units_whose_hold_has_run_out(slot: Any) -> None:
    slot.create("2", rules="1000 2 0 0 0")
    slot.answers("reserve", order("t1", lines="1:2"))
    slot.now += 1000
    assert slot.answers("reserve", order("t2", lines="1:2"), order("t3", "bob")) == [
        "ok",
        f"all_held 1 0 {slot.now + 1000}",
    ]
    assert slot.counts() == "0 2 0"
    assert [line[0] for line in slot.ledger()[-1][1].split("\n")] == ["x", "r"]


def test_one_call_expires_so_many_and_says_that_there_are_more(slot: Any) -> None:
    slot.create("1200")
    for at in range(0, 1200, 100):
        slot.answers("reserve", *(order(f"t{n}", f"b{n}") for n in range(at, at + 100)))
    slot.now += 1000
    # Only a limit or short stock makes reserve sweep, and then one call's worth at the most.
    for_all = (order("t", lines="1:1200"), order("u", "bob", "1:1200"))
    assert slot.answers("reserve", *for_all) == ["sweep_first", "sweep_first"]
    # Members of a hundred: one is begun below the bound of 150, and finished.
    replies = [slot.on_all("expire")[4:6] for _ in range(5)]
    assert replies == [[200, 1]] * 4 + [[200, 0]]
    assert slot.counts() == "1200 0 0"
    assert slot.answers("reserve", order("t", lines="1:1200")) == ["ok"]


def test_after_the_clock_jumped_back_a_hold_lasts_longer_and_ends_once(sale: Any) -> None:
    sale.answers("reserve", order("t1"))
    sale.now += 1000
    sale.answers("reserve", order("t2"))
    sale.on_all("expire")
    before = sale.everything()
    sale.now -= 3_600_000
    assert sale.on_all("expire")[4] == 0
    for script, entry in (("confirm", payment("t1")), ("cancel", cancellation("t1"))):
        assert words(sale.answers(script, entry)) == ["ticket_expired"]
    assert sale.everything() == before
    # What was still held can be paid, and is then out of reach of its deadline.
    assert words(sale.answers("confirm", payment("t2"))) == ["paid"]
    sale.now += 2 * 3_600_000
    assert sale.on_all("expire")[4] == 0
    assert sale.counts() == "9 0 1"


# Amend ----------------------------------------------------------------------------------------------------------------


def test_amend_never_takes_what_is_held_or_sold(sale: Any) -> None:
    sale.answers("reserve", order("t1", lines="1:3"), order("t2"))
    sale.answers("confirm", payment("t2"))
    before = sale.everything()
    assert sale.on_all("amend", 1, "{}", "1000 0 0 0 0", "3") == ["capacity_in_use", 1, 4]
    assert sale.on_all("amend", 7, "{}", "1000 0 0 0 0", "20") == ["version_changed"]
    assert sale.everything() == before
    assert sale.on_all("amend", 1, '{"version":2}', "1000 0 0 0 0 0", "4 7") == ["ok"]
    assert sale.on_all("amend", 1, '{"version":2}', "1000 0 0 0 0 0", "4 7") == ["replayed"]
    assert sale.counts() == "0 3 1 7 0 0"
    assert sale.ledger()[-1][1] == 's {"version":2}'


def test_amend_sweeps_what_is_in_the_way(sale: Any) -> None:
    sale.answers("reserve", order("t1", lines="1:3"))
    sale.now += 1000
    assert sale.on_all("amend", 1, '{"version":2}', "1000 0 0 0 0", "2") == ["ok"]
    assert sale.counts() == "2 0 0"
    assert [line[0] for line in sale.ledger()[-1][1].split("\n")] == ["x", "s"]


# Drop -----------------------------------------------------------------------------------------------------------------


def test_drop_takes_only_what_has_ended_is_stored_and_is_old(slot: Any) -> None:
    reserved_and_ended(slot)
    keys, ids = "sale tickets buyers", [id22(name) for name in ("paid", "gone", "held", "late", "nope")]
    ended = slot.now - 999
    before = slot.everything()
    assert slot.run("drop", keys, slot.floor, 4, ended, *ids) == ["ok", 0]  # paid is 5, gone is 6
    assert slot.run("drop", keys, slot.floor, 6, ended - 1, *ids) == ["ok", 0]
    assert slot.everything() == before
    assert slot.run("drop", keys, slot.floor, 5, ended, *ids) == ["ok", 1]
    assert slot.run("drop", keys, slot.floor, 6, ended, *ids) == ["ok", 1]
    left = slot.everything()
    assert set(left["tickets"]) == {id22("held").encode(), id22("late").encode()}
    # A purchase counts for its buyer's limit for good.
    assert left["buyers"][id22("ann").encode()] == f"1:3 {id22('held')}".encode()
    assert left["sale"] == before["sale"] | {b"dropped": b"1"}
    assert (left["ledger"], left["deadlines"]) == (before["ledger"], before["deadlines"])
    assert slot.answers("confirm", payment("paid")) == ["unknown_ticket"]


# Mine -----------------------------------------------------------------------------------------------------------------


def test_mine_gives_a_buyers_tickets_oldest_first(slot: Any) -> None:
    reserved_and_ended(slot)
    ok, now, *pairs = slot.run("mine", "sale tickets buyers", slot.floor, id22("ann"))
    assert (ok, now) == ("ok", slot.now)
    assert pairs[::2] == [id22("paid"), id22("gone"), id22("held")]
    assert [record[0] for record in pairs[1::2]] == ["p", "c", "r"]
    assert slot.run("mine", "sale tickets buyers", slot.floor, id22("nobody")) == ["ok", slot.now]


# The fence ------------------------------------------------------------------------------------------------------------


def test_a_rebuild_behind_the_fence(sale: Any) -> None:
    sale.answers("reserve", order("t1"))
    assert sale.run("fence", "sale", "mine") == ["ok", sale.now, "1", "2", 0]
    before = sale.everything()
    record = f"r 1:2 {sale.now} {sale.now + 9} {id22('bob')}"
    rebuild = [
        ("clear", ALL_KEYS, []),
        ("restore", "sale tickets buyers deadlines", ["1", id22("t9"), id22("bob"), "1:2", record]),
        ("unfence", "sale ledger", ["2", "8", '{"version":1}', "origin", "1", "1000 0 0 0 0", "8 2 0", "1", ""]),
    ]
    for script, keys, args in rebuild:
        assert sale.run(script, keys, "another's", *args) == ["fenced"]
    assert sale.create() == ["fenced"]
    assert sale.everything() == before
    for script, keys, args in rebuild:
        assert sale.run(script, keys, "mine", *args) == ["ok"]
    assert sale.ledger() == [("2-8", 's {"version":1}')]
    assert sale.counts() == "8 2 0"
    rebuilt = sale.everything()
    assert rebuilt["tickets"] == {id22("t9").encode(): record.encode()}
    assert rebuilt["buyers"] == {id22("bob").encode(): f"1:2 {id22('t9')}".encode()}
    assert rebuilt["deadlines"] == [(id22("t9").encode(), sale.now + 9)]
    for script, keys, args in rebuild:
        assert sale.run(script, keys, "mine", *args) == ["fenced"]
    sale.floor = "2-8"
    assert words(sale.answers("confirm", payment("t9", "bob"))) == ["paid"]
    assert sale.ledger()[-1][0] == "2-9"


def test_restored_buyers_have_what_their_tickets_say(sale: Any) -> None:
    def record(status: str, lines: str, buyer: str, expires_at: int) -> str:
        ended = "" if status == "r" else f" {sale.now} 7 {id22('o')} "
        return f"{status} {lines} {sale.now} {expires_at} {id22(buyer)}{ended}"

    late, later = sale.now + 8, sale.now + 9
    tickets = [
        (id22("t1"), id22("ann"), "1:1", record("r", "1:1", "ann", late)),
        (id22("t2"), id22("bob"), "-", record("c", "2:1", "bob", late)),
        ("", id22("ann"), "2:3", ""),  # purchased long ago
        (id22("t3"), id22("ann"), "-", record("x", "1:5", "ann", late)),
        (id22("t4"), id22("ann"), "1:2,2:1", record("p", "1:2,2:1", "ann", late)),
        ("", id22("cyd"), "1:4", ""),
        (id22("t5"), id22("dan"), "1:1", record("r", "1:1", "dan", later)),
        (id22("t6"), id22("eva"), "1:1", record("r", "1:1", "eva", late)),
    ]
    sale.run("fence", "sale", "mine")
    assert sale.run("clear", ALL_KEYS, "mine") == ["ok"]
    for step in (tickets[:5], tickets[5:]):
        args = ["2", *(value for column in zip(*step, strict=True) for value in column)]
        assert sale.run("restore", "sale tickets buyers deadlines", "mine", *args) == ["ok"]
    state = sale.everything()
    assert {name.decode().rstrip("."): text.decode() for name, text in state["buyers"].items()} == {
        "ann": f"1:3,2:4 {id22('t1')}{id22('t3')}{id22('t4')}",
        "bob": f"- {id22('t2')}",
        "cyd": "1:4 ",
        "dan": f"1:1 {id22('t5')}",
        "eva": f"1:1 {id22('t6')}",
    }
    assert {id.decode().rstrip(".") for id in state["tickets"]} == {"t1", "t2", "t3", "t4", "t5", "t6"}
    assert dict(state["deadlines"]) == {id22(t).encode(): at for t, at in (("t1", late), ("t5", later), ("t6", late))}


def test_whatever_lies_in_the_place_of_a_sale_is_fenced(slot: Any) -> None:
    slot.client.set(slot.keys.sale, "damage")
    assert slot.run("fence", "sale", "mine") == ["ok", slot.now, "", "", 0]
    assert slot.run("fence", "sale", "next") == ["ok", slot.now, "", "", 1]
    assert slot.client.hgetall(slot.keys.sale) == {b"fence": b"next"}


def test_a_second_rebuild_takes_the_fence_over(sale: Any) -> None:
    sale.run("fence", "sale", "first")
    sale.run("fence", "sale", "second")
    assert sale.run("clear", ALL_KEYS, "first") == ["fenced"]
    assert sale.run("clear", ALL_KEYS, "second") == ["ok"]


# What the fake cannot do ----------------------------------------------------------------------------------------------


def test_with_full_memory_only_new_reservations_are_refused(real_slot: Any) -> None:
    slot, client = real_slot, real_slot.client
    slot.create()
    slot.answers("reserve", order("t1"), order("t2"), order("t3"))
    client.config_set("maxmemory", 1)
    try:
        before = slot.everything()
        refused: list[tuple[str, list[object]]] = [
            ("reserve", [*order("t4")]),
            ("amend", [1, '{"version":2}', "1000 0 0 0 0", "20"]),
            ("lend", ["2", "1:1"]),
        ]
        for script, args in refused:
            with pytest.raises(redis.ResponseError, match=r"OOM|maxmemory"):
                slot.on_all(script, *args)
            assert slot.everything() == before
        assert words(slot.answers("confirm", payment("t1"))) == ["paid"]
        assert words(slot.answers("cancel", cancellation("t2"))) == ["ok"]
        slot.now += 1000
        assert slot.on_all("expire")[4] == 1
        assert slot.counts() == "9 0 1"
    finally:
        client.config_set("maxmemory", 0)


def test_a_random_history_always_adds_up(real_slot: Any) -> None:
    """Single calls and batches mixed, with time moving: counters, buyers and tickets agree at every step."""
    slot, chance = real_slot, random.Random(1)
    slot.create("7 5", rules="1000 4 0 0 3 0")
    made: list[tuple[str, str]] = []
    for step in range(80):
        slot.now += chance.choice((0, 1, 300))
        entries = []
        for n in range(chance.randint(1, 6)):
            buyer = f"b{chance.randint(1, 5)}"
            made.append((f"t{step}-{n}", buyer))
            entries.append(order(*made[-1], chance.choice(("1:1", "2:1", "1:2,2:1")), chance.choice("nks")))
        slot.answers("reserve", *entries)
        some = chance.sample(made[-20:], k=min(len(made), 4))
        if step % 3 == 0:
            slot.answers("confirm", *(payment(*each) for each in some[:1]))
        slot.answers("cancel", *(cancellation(*each) for each in some[1:3]))
        if step % 10 == 0:
            slot.on_all("expire")
        _adds_up(slot, (7, 5))


def _adds_up(slot: Any, capacities: tuple[int, int]) -> None:
    everything = slot.everything()
    units: dict[tuple[str, int], int] = {}
    buyers: dict[str, int] = {}
    held = set()
    for id, record in everything["tickets"].items():
        status, lines, _, _, buyer, *_ = record.decode().split(" ")
        for item, quantity in (part.split(":") for part in lines.split(",")):
            units[status, int(item)] = units.get((status, int(item)), 0) + int(quantity)
            if status in "rp":
                buyers[buyer] = buyers.get(buyer, 0) + int(quantity)
        if status == "r":
            held.add(id.decode())
    counted = [(units.get(("r", item), 0), units.get(("p", item), 0)) for item in (1, 2)]
    expected = [(capacities[at] - sum(pair), *pair) for at, pair in enumerate(counted)]
    assert slot.counts() == " ".join(str(n) for triple in expected for n in triple)
    assert min(min(triple) for triple in expected) >= 0
    had = {}
    for buyer, packed in everything["buyers"].items():
        counts, _, _ = packed.decode().partition(" ")
        had[buyer.decode()] = sum(int(part.split(":")[1]) for part in counts.split(",") if ":" in part)
    assert {buyer: total for buyer, total in had.items() if total} == buyers
    assert max(had.values(), default=0) <= 4
    indexed = {
        member[at : at + 22].decode() for member, _ in everything["deadlines"] for at in range(0, len(member), 22)
    }
    assert held <= indexed
