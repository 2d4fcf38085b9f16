"""The audit: never a false alarm while everything sells, and whatever is changed by hand is found."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.engine import (
    AllHeld,
    CapacityInUse,
    Engine,
    ItemSpec,
    LimitReached,
    SlotAudit,
    SoldOut,
    TicketExpired,
    UnknownSale,
)
from holdfast.engine.audit import FINDINGS_MAX, Tally
from holdfast.engine.keys import slot_keys
from holdfast.engine.store import Units
from holdfast.engine.values import Status

KEYS = slot_keys("gig")


def connect(server: Any, tmp_path: Path, **options: Any) -> Engine:
    quiet = {"snapshot_ms": None, "sweep": False, "listen": False}
    return Engine.connect(server.url, store=f"sqlite:///{tmp_path / 'store.db'}", **(quiet | options))


async def fill(engine: Engine, *, fold: bool = True) -> dict[str, str]:
    """A sale with tickets of every kind, part of which the store has not folded, and part not even copied."""
    await engine.create_sale("gig", name="Gig", items=[ItemSpec("vip", 9), ItemSpec("floor", 90)], hold_ms=600_000)
    made = {}
    for name in ("ann", "bob", "cyd", "dan", "eva", "fay"):
        ticket = await engine.reserve("gig", buyer=name, lines={"vip": 1, "floor": 3})
        made[name] = ticket.id.partition(".")[2]
        if name in ("bob", "eva"):
            await engine.confirm(ticket.id, buyer=name)
        if name in ("cyd", "fay"):
            await engine.cancel(ticket.id, buyer=name)
        if name == "cyd" and fold:
            await engine.snapshot()
        if name == "dan" and fold:
            await engine._snapshot.run()
    return made


async def audited(engine: Engine, **options: Any) -> SlotAudit:
    (slot,) = (await engine.audit(["gig"], **options)).slots
    return slot


# The arithmetic -------------------------------------------------------------------------------------------------------

LINES = st.dictionaries(st.integers(1, 3), st.integers(1, 4), min_size=1).map(
    lambda units: ",".join(f"{item}:{quantity}" for item, quantity in sorted(units.items()))
)
ENDINGS = st.sampled_from([Status.PURCHASED, Status.CANCELLED, Status.EXPIRED])
STEPS = st.lists(st.tuples(st.sampled_from("abc"), LINES, st.none() | ENDINGS), max_size=30)


@given(STEPS, st.integers(0, 30))
def test_a_tally_that_takes_up_some_and_replays_the_rest_is_the_sum_of_all(steps: Any, folded: int) -> None:
    tally = Tally(2)
    tally.grow(3)
    held, sold = Counter[int](), Counter[int]()
    buyers: dict[str, Counter[int]] = {}
    early: Counter[tuple[str, str, Status]] = Counter()
    for at, (buyer, lines, ending) in enumerate(steps):
        units = {int(item): int(n) for item, n in (part.split(":") for part in lines.split(","))}
        if ending in (None, Status.PURCHASED):
            buyers.setdefault(buyer, Counter()).update(units)
            (sold if ending else held).update(units)
        if at < folded and ending in (None, Status.PURCHASED):
            early[buyer, lines, ending or Status.RESERVED] += 1
    for (buyer, lines, status), tickets in early.items():
        tally.add(Units(buyer, lines, status, tickets))
    for buyer, lines, _ in steps[folded:]:
        tally.begin(buyer, lines)
    for buyer, lines, ending in steps[folded:]:
        if ending is not None:
            tally.end(buyer, lines, ending)
    assert tally.held == [held[item] for item in (1, 2, 3)]
    assert tally.sold == [sold[item] for item in (1, 2, 3)]
    assert tally.buyers == {
        buyer: ",".join(f"{item}:{n}" for item, n in sorted(units.items())) for buyer, units in buyers.items()
    }


# What agrees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [True, False])
async def test_what_agrees_is_said_to_agree(redis_server: Any, tmp_path: Path, fold: bool) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await fill(engine, fold=fold)
        slot = await audited(engine, tickets=True)
        assert slot.findings == ()
        assert (slot.held, slot.purchased, slot.at) == (8, 8, "1-11")
        assert slot.buyers == 6
        assert "agree at 1-11" in str(slot)
        assert (await engine.audit()).clean
        with pytest.raises(UnknownSale):
            await engine.audit(["nope"])


async def test_an_audit_writes_nothing(redis_server: Any, tmp_path: Path) -> None:
    def dumped() -> list[object]:
        with redis_server.client() as client:
            in_redis = [sorted(client.keys()), client.xrange(KEYS.ledger)]
            in_redis += [client.hgetall(key) for key in (KEYS.sale, KEYS.tickets, KEYS.buyers)]
            in_redis += [client.zrange(KEYS.deadlines, 0, -1, withscores=True), client.get("hf:deployment")]
        with sqlite3.connect(tmp_path / "store.db") as db:
            return [*in_redis, *db.iterdump()]

    async with connect(redis_server, tmp_path) as engine:
        await fill(engine)
        await engine._leases.drained()
        before = dumped()
        assert (await engine.audit(tickets=True)).clean
        assert dumped() == before


async def test_after_a_recovery_it_agrees(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await fill(engine)
        assert (await engine.recover(["gig"])).clean
        await engine.reserve("gig", buyer="zoe", lines={"vip": 1})
        assert (await audited(engine, tickets=True)).findings == ()


async def test_a_recovery_meanwhile_is_no_disagreement(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.audit.STEP", 1)
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1000)
        # More than a server packs into one piece, which a scan would take out at once.
        await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(700)))
        await engine.snapshot()
        await asyncio.gather(*(engine.reserve("gig", buyer=f"c{at}", quantity=1) for at in range(5)))
        real, recovered = engine._scripts.audit, []

        async def audit(*args: Any) -> Any:
            part = await real(*args)
            if len(recovered) < 2 and args[2] != "0":
                # What was not copied is lost, and the sequence falls back.
                redis_server.empty()
                recovered.append(await engine.recover(["gig"]))
            return part

        monkeypatch.setattr(engine._scripts, "audit", audit)
        assert (await audited(engine)).findings == ()
        assert len(recovered) == 2


async def crowd(engine: Engine, dice: random.Random, until: float) -> int:
    """Buyers who reserve, pay, cancel, or let their hold run out; how many calls."""
    calls, mine = 0, []
    while time.monotonic() < until:
        calls += 1
        buyer = f"b{dice.randrange(60)}"
        try:
            if dice.random() < 0.5 or not mine:
                lines = {sku: dice.randint(1, 2) for sku in dice.sample(("vip", "floor"), dice.randint(1, 2))}
                mine.append((await engine.reserve("gig", buyer=buyer, lines=lines), buyer))
            else:
                ticket, buyer = mine.pop(dice.randrange(len(mine)))
                what = dice.random()
                if what < 0.4:
                    await engine.confirm(ticket.id, buyer=buyer)
                elif what < 0.8:
                    await engine.cancel(ticket.id, buyer=buyer)
        except (SoldOut, AllHeld, LimitReached, TicketExpired):
            pass
    return calls


async def operator(engine: Engine, dice: random.Random, until: float) -> None:
    """An operator who amends all the time: capacities, limits, a new item."""
    items = 2
    while time.monotonic() < until:
        changes: dict[str, object] = {"max_per_buyer": dice.choice([None, 8, 20])}
        if dice.random() < 0.3 and items < 5:
            items += 1
            changes["items"] = [{"sku": f"new-{items}", "capacity": 10}]
        else:
            changes["items"] = [{"sku": "floor", "capacity": dice.randrange(400, 600)}]
        with contextlib.suppress(CapacityInUse):
            await engine.amend_sale("gig", changes)
        await asyncio.sleep(dice.random() / 20)


async def test_it_never_raises_a_false_alarm(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.audit.STEP", 7)
    monkeypatch.setattr("holdfast.engine.snapshot.FOLD_PAUSE_S", 0.05)
    monkeypatch.setattr("holdfast.engine.engine.FOLD_PAUSE_S", 0.05)
    monkeypatch.setattr("holdfast.engine.snapshot.KEEP_TRANSITIONS", 200)
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    dice = random.Random(seed)
    # The seller sweeps, copies, folds, trims and drops; the auditor is another engine, as the command is.
    seller = connect(redis_server, tmp_path, sweep=True, snapshot_ms=20, retention_ms=100)
    async with seller as engine, connect(redis_server, tmp_path) as auditor:
        items = [ItemSpec("vip", 200), ItemSpec("floor", 500, max_per_buyer=15)]
        await engine.create_sale("gig", name="Gig", items=items, hold_ms=300)
        until = time.monotonic() + 5
        crowds = [asyncio.create_task(crowd(engine, random.Random(dice.random()), until)) for _ in range(12)]
        amending = asyncio.create_task(operator(engine, random.Random(dice.random()), until))
        audits, positions = 0, set()
        while time.monotonic() < until:
            slot = await audited(auditor, tickets=dice.random() < 0.5)
            assert slot.findings == (), f"seed {seed}"
            audits += 1
            positions.add(slot.at)
        await amending
        assert sum(await asyncio.gather(*crowds)) > 500
        assert audits > 5
        assert len(positions) > 5
        assert (await auditor.audit(tickets=True)).clean
        # Tickets have left Redis, and the ledger was trimmed there: all of it was put to the test.
        assert await engine._servers.one.call("HGET", KEYS.sale, "dropped") == b"1"


# What does not --------------------------------------------------------------------------------------------------------


def set_counts(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hset(KEYS.sale, "counts", "5 2 2 79 6 6")
    return ["item 'floor': Redis has 79 available, 6 reserved, 6 purchased, the ledger 78 available", "at 1-11"]


def lose_counts(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hdel(KEYS.sale, "counts")
    return ["item 'vip': Redis has no counters", "item 'floor': Redis has no counters"]


def change_rules(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hset(KEYS.sale, "rules", "600000 9 0 0 0 0")
    return ["Redis has version 1 with the rules 600000 9 0 0 0 0, the ledger version 1 with 600000 0 0 0 0 0"]


def change_buyer(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    name = buyer("ann")
    client.hset(KEYS.buyers, name, f"1:1 {made['ann']}")
    return [f"buyer {name}: Redis has 1 of 'vip', the ledger 1 of 'vip', 3 of 'floor', at 1-11"]


def lose_buyer(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hdel(KEYS.buyers, buyer("eva"))
    return [f"buyer {buyer('eva')}: Redis has nothing, the ledger 1 of 'vip', 3 of 'floor'"]


def invent_buyer(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hset(KEYS.buyers, "x" * 22, "what?")
    return [f"buyer {'x' * 22}: Redis has 'what?', the ledger nothing"]


def lose_buyers(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.delete(KEYS.buyers)
    return [f"buyer {buyer(name)}: Redis has nothing" for name in ("ann", "bob", "dan", "eva")]


def damage_buyers(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.set(KEYS.buyers, "damage")
    return ["one of its keys in Redis is damaged"]


def lose_ticket(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hdel(KEYS.tickets, made["ann"], made["dan"])
    return [f"gig.{made[name]}: Redis has nothing, the ledger reserved 1:1,2:3" for name in ("ann", "dan")]


def change_ticket(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    record = client.hget(KEYS.tickets, made["ann"]).decode()
    client.hset(KEYS.tickets, made["ann"], record.replace("1:1,2:3", "1:1"))
    client.hset(KEYS.tickets, made["dan"], "r")
    return [f"gig.{made['ann']}: Redis has reserved 1:1, the ledger", f"gig.{made['dan']}: Redis has what cannot be"]


def lose_last_line(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.xdel(KEYS.ledger, "1-11")
    return ["Redis stands at transition 11, and transition 11 is neither in its ledger nor in the store's"]


def lose_middle_line(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.xdel(KEYS.ledger, "1-9")
    return ["and transition 9 is neither in its ledger nor in the store's"]


def damage_line(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.delete(KEYS.ledger)
    client.xadd(KEYS.ledger, {"at": "1", "d": "what"}, id="1-8")
    client.xadd(KEYS.ledger, {"at": "1"}, id="1-9")
    return ["the ledger cannot be read after transition 6"]


def lose_ledger(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.delete(KEYS.ledger)
    return ["transition 8 is neither in its ledger nor in the store's"]


def fence(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hset(KEYS.sale, "fence", "token")
    return ["gig is fenced", "holdfast recover --sale gig"]


def lose_sale(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.delete(KEYS.sale)
    return ["gig is not in Redis"]


def set_back(client: Any, made: dict[str, str], buyer: Callable[[str], str]) -> list[str]:
    client.hset(KEYS.sale, "sequence", "3")
    return ["gig stands in Redis before 1-7"]


@pytest.mark.parametrize(
    "change",
    [
        set_counts, lose_counts, change_rules, change_buyer, lose_buyer, invent_buyer, lose_buyers, damage_buyers,
        lose_ticket, change_ticket, lose_last_line, lose_middle_line, damage_line, lose_ledger, fence, lose_sale,
        set_back,
    ],
)  # fmt: skip
async def test_what_is_changed_in_redis_is_named(redis_server: Any, tmp_path: Path, change: Any) -> None:
    async with connect(redis_server, tmp_path) as engine:
        made = await fill(engine)
        with redis_server.client() as client:
            wanted = change(client, made, engine.buyer_hash)
        slot = await audited(engine, tickets=True)
        assert len(slot.findings) >= 1
        for sentence in wanted:
            assert any(sentence in finding for finding in slot.findings), slot.findings
        others = [finding for finding in slot.findings if not any(sentence in finding for sentence in wanted)]
        assert others == []
        assert not (await engine.audit()).clean or change in (lose_ticket, change_ticket)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tickets SET status = 'purchased' WHERE status = 'reserved'",
        "UPDATE tickets SET lines = 'vip:1,floor:2' WHERE status = 'reserved'",
        "UPDATE tickets SET buyer = 'x' || substr(buyer, 2) WHERE status = 'reserved'",
        "DELETE FROM tickets WHERE status = 'purchased'",
        "DELETE FROM ledger WHERE sequence = 8",
        "UPDATE slots SET folded = folded - 1",
    ],
)
async def test_what_is_changed_in_the_store_is_named(redis_server: Any, tmp_path: Path, change: str) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await fill(engine)
        await engine._servers.one.call("XTRIM", KEYS.ledger, "MINID", "1-9")
        with sqlite3.connect(tmp_path / "store.db") as db:
            db.execute(change)
        db.close()
        assert (await audited(engine)).findings != ()


async def test_a_contradiction_in_the_ledger_is_named(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        made = await fill(engine)
        with redis_server.client() as client:
            # Cancelled before, in what was folded; and one that nobody began.
            client.xadd(KEYS.ledger, {"at": "1", "d": f"p {made['cyd']} 1:1,2:3 {'o' * 22} "}, id="1-12")
            client.xadd(KEYS.ledger, {"at": "1", "d": f"c {'n' * 22} 1:1,2:3 {'o' * 22} "}, id="1-13")
            client.hset(KEYS.sale, "sequence", "13")
        assert (await audited(engine)).findings == (
            f"gig.{made['cyd']}: transition 12 says purchased, but it was cancelled before",
            f"gig.{'n' * 22}: transition 13 ends it, and the ledger never began it",
        )


async def test_what_it_names_is_bounded(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1000)
        await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(FINDINGS_MAX + 5)))
        await engine._servers.one.call("UNLINK", KEYS.buyers)
        slot = await audited(engine)
        assert len(slot.findings) == FINDINGS_MAX + 1
        assert slot.findings[-1] == "gig: 5 more that disagree"


async def test_a_sale_that_is_being_created_is_no_disagreement(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await fill(engine)
        stored = await engine._store.sale("gig")
        assert stored is not None
        begun = type(stored.known).from_json(stored.known.json().replace('"gig"', '"new"'))
        await engine._store.begin_sale(begun)
        assert (await engine.audit()).clean
