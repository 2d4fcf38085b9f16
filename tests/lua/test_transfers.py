"""Units on their way from one shard to another: what each step changes, and that it changes it once."""

from __future__ import annotations

import json
from typing import Any

import pytest

ALL_KEYS = "sale tickets buyers deadlines ledger"


def id22(name: str) -> str:
    return name.ljust(22, "_")


@pytest.fixture
def sale(slot: Any) -> Any:
    """A shard with ten units of one item and four of another."""
    slot.create("10 4", rules="1000 0 0 0 0 0")
    return slot


def reserve(sale: Any, name: str, lines: str) -> str:
    (answer,) = sale.answers("reserve", (id22(name), id22("ann"), "n" + lines))
    return str(answer).split(" ")[0]


def transfers(slot: Any) -> Any:
    return json.loads(slot.client.hget(slot.keys.sale, "transfers"))


def lend(slot: Any, borrower: int, wanted: str) -> list[object]:
    reply = slot.on_all("lend", borrower, wanted)
    return list(reply)


def receive(slot: Any, lender: int, number: int, lines: str, floor: str = "0-0") -> Any:
    return slot.run("receive", "sale ledger", floor, lender, number, lines)


def settle(slot: Any, borrower: int, number: int) -> Any:
    return slot.run("settle", "sale ledger", "0-0", borrower, number)


def test_a_lender_gives_what_is_needed_or_half_of_what_it_has(sale: Any) -> None:
    assert lend(sale, 2, "1:1") == ["ok", 1, "1:5"]
    assert sale.counts() == "5 0 0 4 0 0"
    assert lend(sale, 3, "1:4,2:1") == ["ok", 1, "1:4,2:2"]
    assert lend(sale, 4, "1:9,2:9") == ["ok", 1, "1:1,2:2"]
    assert sale.counts() == "0 0 0 0 0 0"
    assert transfers(sale)["lent"] == [10, 4]
    assert [text.split("{")[0] for _, text in sale.ledger()[1:]] == [
        "t lent 2 1 1:5 ",
        "t lent 3 1 1:4,2:2 ",
        "t lent 4 1 1:1,2:2 ",
    ]


def test_the_ledger_has_the_whole_state(sale: Any) -> None:
    lend(sale, 2, "1:1")
    assert json.loads(sale.ledger()[-1][1].split(" ", 5)[5]) == transfers(sale)
    settle(sale, 2, 1)
    receive(sale, 3, 1, "2:1")
    assert json.loads(sale.ledger()[-1][1].split(" ", 5)[5]) == transfers(sale)
    assert transfers(sale) == {"steps": 3, "lent": [5, -1], "out": {"2": {"number": 1}}, "into": {"3": 1}}


def test_who_has_nothing_gives_nothing_and_changes_nothing(sale: Any) -> None:
    assert reserve(sale, "t1", "1:10") == "ok"
    before = sale.everything()
    assert lend(sale, 2, "1:1") == ["ok", 0, ""]
    assert lend(sale, 2, "9:1") == ["ok", 0, ""], "an item that this shard does not have yet"
    assert sale.everything() == before


def test_a_transfer_that_is_not_settled_is_told_again(sale: Any) -> None:
    assert lend(sale, 2, "1:1") == ["ok", 1, "1:5"]
    before = sale.everything()
    assert lend(sale, 2, "1:3,2:1") == ["replayed", 1, "1:5"]
    assert sale.everything() == before
    assert settle(sale, 2, 1) == ["ok"]
    assert lend(sale, 2, "1:3,2:1") == ["ok", 2, "1:3,2:2"]


def test_lending_gives_back_holds_that_have_run_out_first(sale: Any) -> None:
    assert reserve(sale, "t1", "1:10") == "ok"
    sale.now += 1000
    assert lend(sale, 2, "1:1") == ["ok", 1, "1:5"]
    assert sale.counts() == "5 0 0 4 0 0"
    assert [line[:2] for line in sale.ledger()[-1][1].split("\n")] == ["x ", "t "]


def test_what_is_received_is_available_once(sale: Any) -> None:
    assert receive(sale, 2, 1, "1:5,2:1") == ["ok"]
    assert sale.counts() == "15 0 0 5 0 0"
    before = sale.everything()
    assert receive(sale, 2, 1, "1:5,2:1") == ["replayed"]
    assert sale.everything() == before
    assert receive(sale, 3, 1, "1:1") == ["ok"], "each lender counts its transfers by itself"
    assert receive(sale, 2, 2, "1:1") == ["ok"]
    assert receive(sale, 2, 1, "1:5,2:1") == ["replayed"]
    assert sale.counts() == "17 0 0 5 0 0"


def test_a_shard_that_lacks_an_earlier_transfer_has_lost_something(sale: Any) -> None:
    before = sale.everything()
    assert receive(sale, 2, 2, "1:1") == ["behind"]
    assert receive(sale, 2, 1, "3:1") == ["behind"], "an item that is not here"
    assert sale.everything() == before


def test_settling_ends_that_very_transfer(sale: Any) -> None:
    lend(sale, 2, "1:1")
    before = sale.everything()
    assert settle(sale, 2, 2) == settle(sale, 2, 0) == settle(sale, 3, 1) == ["replayed"]
    assert sale.everything() == before
    assert settle(sale, 2, 1) == ["ok"]
    assert sale.counts() == "5 0 0 4 0 0"
    before = sale.everything()
    assert settle(sale, 2, 1) == ["replayed"]
    assert sale.everything() == before


def test_a_share_is_amended_beside_what_is_lent_and_borrowed(sale: Any) -> None:
    lend(sale, 2, "1:6")
    receive(sale, 3, 1, "2:2")
    assert reserve(sale, "t1", "1:1,2:5") == "ok"
    assert sale.on_all("amend", 1, '{"version":5}', "1000 0 0 0 0 0", "6 4") == ["capacity_in_use", 1, 1]
    assert sale.on_all("amend", 1, '{"version":5}', "1000 0 0 0 0 0", "7 2") == ["capacity_in_use", 2, 5]
    assert sale.on_all("amend", 1, '{"version":5}', "1000 0 0 0 0 0", "8 3") == ["ok"]
    assert sale.counts() == "1 1 0 0 5 0"
    assert sale.client.hget(sale.keys.sale, "version") == b"5"


def test_transfers_go_on_when_memory_is_full(real_slot: Any) -> None:
    slot = real_slot
    slot.create("10")
    lend(slot, 2, "1:1")
    slot.client.config_set("maxmemory", 1)
    try:
        assert receive(slot, 3, 1, "1:1") == ["ok"]
        assert settle(slot, 2, 1) == ["ok"]
    finally:
        slot.client.config_set("maxmemory", 0)
