"""The tickets in the store follow its ledger later: nothing lost, nothing doubled, and nobody sees that they lag."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.engine import Engine, ItemSpec, Status
from holdfast.engine import snapshot as snapshot_module
from holdfast.engine.keys import slot_keys
from holdfast.engine.records import LETTERS, Definition, Entry, ItemDefinition, Record
from holdfast.engine.snapshot import Snapshot
from holdfast.engine.store import Copied, Cursor, Store, StoreError, TicketQuery, open_store

EXAMPLES = int(os.environ.get("HOLDFAST_EXAMPLES", "30"))


def connect(server: Any, store_at: Any, **options: Any) -> Engine:
    return Engine.connect(server.url, store=store_at.url, **({"snapshot_ms": None} | options))


@contextlib.asynccontextmanager
async def opened(store_at: Any, times: int = 1) -> AsyncIterator[list[Store]]:
    """The same store, opened as several processes would."""
    stores = [open_store(store_at.url) for _ in range(times)]
    async with contextlib.AsyncExitStack() as closing:
        for store in stores:
            closing.push_async_callback(store.close)
            await store.open()
        yield stores


def definition(version: int = 1) -> Definition:
    """With an item more for each version."""
    items = tuple(ItemDefinition(f"item-{at}", "", 10**9, None) for at in range(1, version + 1))
    return Definition("gig", "g", items, 1, None, None, None, version, "o")


def reserved(first: int, count: int, at: int) -> Entry:
    """One script call's reservations, by tickets that are numbered."""
    pairs = "".join(f"{n:t>22}{n:b>22}" for n in range(first, first + count))
    return Entry(1, first + count - 1, at, f"r 1:1 {at + 1000} {pairs}")


async def begin(store: Store) -> None:
    """The sale, as the first transition of its ledger."""
    await store.begin_sale(definition())
    await store.append([Copied("gig", Cursor(0, 0), [Entry(1, 1, 1, f"s {definition().json()}")])])


async def everything(store: Store) -> list[Record]:
    return await store.tickets(TicketQuery("gig", 10**6))


# -- the tables are what the ledger says -----------------------------------------------------------------------------

#: One ledger line: a kind and numbers to make the rest of it from. Few tickets, so that some end twice or begin twice.
LINES = st.tuples(st.sampled_from("rrrpcxs"), st.integers(0, 7), st.integers(1, 3))


def written(script: list[list[tuple[str, int, int]]]) -> list[Entry]:
    """A ledger of any lines that Redis may write, and of some that contradict each other."""
    entries, sequence, version = [], 1, 1
    begun: set[int] = set()
    for at, call in enumerate(script, start=2):
        lines = []
        for kind, who, count in call:
            # What ends without having begun never begins.
            id, packed = (
                f"{who:{'t' if who in begun else 'u'}>22}",
                f"1:{count}" + (f",{version}:1" if version > 1 else ""),
            )
            if kind == "s":
                version += 1
                lines.append(f"s {definition(version).json()}")
            elif kind == "r":
                # Some buyers are called as tickets are.
                pairs = "".join(f"{who + n:t>22}{who + n + 1:{'t' if n else 'b'}>22}" for n in range(count))
                lines.append(f"r {packed} {at + 50} {pairs}")
                sequence += count - 1
                begun |= set(range(who, who + count))
            elif kind == "x":
                lines.append(f"x {id} {packed} - {at + 50}")
            else:
                lines.append(f"{kind} {id} {packed} {'o' * 22} {'paid for ' + id if kind == 'p' else ''}")
            sequence += 1
        entries.append(Entry(1, sequence, at, "\n".join(lines)))
    return entries


def told(entries: list[Entry]) -> tuple[dict[str, Record], int]:
    """What the tickets are by the plain reading of the ledger; and how many transitions contradict it."""
    tickets: dict[str, Record] = {}
    wrong = 0
    for t in (t for entry in entries for t in entry.transitions()):
        have = tickets.get(t.ticket)
        if t.kind == "r" and have is None:
            tickets[t.ticket] = Record(t.ticket, Status.RESERVED, t.lines, t.at, t.expires_at, t.buyer)
        elif t.kind in "pcx" and have is not None and have.status is Status.RESERVED:
            at = have.expires_at if t.kind == "x" else t.at
            tickets[t.ticket] = have._replace(
                status=LETTERS[t.kind], ended_at=at, sequence=t.sequence, operation=t.operation, reference=t.reference
            )
        elif t.kind != "s":
            wrong += 1
    return tickets, wrong


SCRIPTS = st.lists(st.lists(LINES, min_size=1, max_size=4), min_size=1, max_size=12)


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), script=SCRIPTS)
def test_any_ledger_folded_in_any_steps(fresh_store: Any, data: st.DataObject, script: Any) -> None:
    any_ledger(fresh_store, "sqlite", data, script)


# Fewer, since a question takes ten times as long.
@settings(max_examples=max(1, EXAMPLES // 4), deadline=None)
@given(data=st.data(), script=SCRIPTS)
def test_any_ledger_folded_in_any_steps_in_postgresql(fresh_store: Any, data: st.DataObject, script: Any) -> None:
    any_ledger(fresh_store, "postgresql", data, script)


def any_ledger(fresh_store: Any, kind: str, data: st.DataObject, script: list[list[tuple[str, int, int]]]) -> None:
    entries = written(script)

    async def check(store_at: Any) -> None:
        async with opened(store_at, 2) as stores:
            for each in stores if kind == "sqlite" else ():
                each._write_db.execute("PRAGMA synchronous = OFF")  # type: ignore[attr-defined]
            await begin(stores[0])
            cursor, done, alarms = Cursor(1, 1), 0, 0
            while True:
                move = data.draw(st.sampled_from(["append", "fold", "look"] if done < len(entries) else ["fold"]))
                store = data.draw(st.sampled_from(stores))
                if move == "append":
                    step = entries[done : done + data.draw(st.integers(1, 4))]
                    await store.append([Copied("gig", cursor, step)])
                    done, cursor = done + len(step), Cursor(1, step[-1].sequence)
                elif move == "fold":
                    before = (await store.cursors())["gig"].folded
                    folded = await store.fold({"gig": cursor.sequence}, data.draw(st.integers(1, 12)))
                    alarms += len(folded.alarms)
                    progress = (await store.cursors())["gig"]
                    assert progress.folded + folded.left == cursor.sequence
                    assert progress.folded > before or not folded.left
                    if done == len(entries) and not folded.left:
                        break
                else:
                    # Whoever asks for one ticket hears of everything that was copied.
                    tickets, _ = told(entries[:done])
                    for id in [f"{who:t>22}" for who in range(11)]:
                        assert await store.ticket("gig", id) == tickets.get(id)
            tickets, wrong = told(entries)
            assert {record.id: record for record in await everything(stores[1])} == tickets
            assert bool(alarms) == bool(wrong)
            assert len(store_at.rows("SELECT * FROM alarms")) == alarms
            assert (await stores[1].ledger("gig", Cursor(0, 0), 1000))[1:] == entries

    with tempfile.TemporaryDirectory() as path:
        asyncio.run(check(fresh_store(kind, Path(path))))


async def test_a_ledger_entry_that_exceeds_the_step_is_folded_whole(store_at: Any) -> None:
    async with opened(store_at) as (store,):
        await begin(store)
        await store.append([Copied("gig", Cursor(1, 1), [reserved(2, 50, 5), reserved(52, 50, 6)])])
        assert (await store.fold({"gig": 101}, 1)).left == 100
        assert (await store.fold({"gig": 101}, 1)).left == 50
        assert (await store.fold({"gig": 101}, 1)).left == 0
        assert len(await everything(store)) == 100


# -- interrupted, and by several at once -----------------------------------------------------------------------------


async def test_several_fold_and_copy_at_once(store_at: Any) -> None:
    async with opened(store_at, 3) as (writer, one, two):
        await begin(writer)
        appended = asyncio.Event()
        steps = {"sqlite": 200, "postgresql": 40}[store_at.kind]

        async def append() -> None:
            for at in range(steps):
                first = 2 + 10 * at
                await writer.append([Copied("gig", Cursor(1, first - 1), [reserved(first, 10, at)])])
                # Wherever it is while they fold, it is somewhere.
                for n in range(first - 20, first + 10, 3):
                    assert n < 2 or await writer.ticket("gig", f"{n:t>22}") is not None
            appended.set()

        async def fold(store: Store) -> list[str]:
            alarms: list[str] = []
            while True:
                last = appended.is_set()
                progress = (await store.cursors())["gig"]
                assert progress.folded <= progress.cursor.sequence
                folded = await store.fold({"gig": progress.cursor.sequence}, 30)
                alarms += folded.alarms
                if last and not folded.left:
                    return alarms

        assert await asyncio.gather(fold(one), fold(two), append()) == [[], [], None]
        assert {record.id for record in await everything(one)} == {f"{n:t>22}" for n in range(2, 2 + 10 * steps)}


#: Copies and folds without end, in a process of its own.
ENDLESS = """
import asyncio, sys
from holdfast.engine.records import Entry
from holdfast.engine.store import Copied, open_store

async def main():
    store = open_store(sys.argv[1])
    await store.open()
    print("begun", flush=True)
    while True:
        cursor = (await store.cursors())["gig"].cursor
        first = cursor.sequence + 1
        pairs = "".join(f"{n:t>22}{n:b>22}" for n in range(first, first + 40))
        entries = [Entry(1, first + 39, first, f"r 1:1 {first + 1000} {pairs}")]
        ends = "\\n".join(f"c {n:t>22} 1:1 {'o' * 22} " for n in range(first, first + 10))
        entries.append(Entry(1, first + 49, first, ends))
        await store.append([Copied("gig", cursor, entries)])
        await store.fold({"gig": first + 49}, 25)

asyncio.run(main())
"""


async def test_killed_between_copying_and_folding_again_and_again(store_at: Any) -> None:
    async with opened(store_at) as (store,):
        await begin(store)
    for _ in range({"sqlite": 8, "postgresql": 3}[store_at.kind]):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", ENDLESS, store_at.url], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(random.uniform(0.01, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        ((sequence, folded),) = store_at.rows("SELECT sequence, folded FROM slots")
        assert folded <= sequence
    assert folded < sequence  # a step takes less than is appended
    async with opened(store_at) as (store,):
        while (folding := await store.fold({"gig": sequence}, 1000)).left:
            assert folding.alarms == []
        entries = await store.ledger("gig", Cursor(0, 0), 10**6)
        assert [t.sequence for entry in entries for t in entry.transitions()] == list(range(1, sequence + 1))
        tickets, wrong = told(entries)
        assert wrong == 0
        assert {record.id: record for record in await everything(store)} == tickets
    assert store_at.rows("SELECT * FROM alarms") == []


# -- when it is done -------------------------------------------------------------------------------------------------


async def pending(store: Store) -> int:
    progress = (await store.cursors())["gig"]
    return progress.cursor.sequence - progress.folded


async def test_a_stampede_is_folded_when_it_is_over(store_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "FOLD_CALM_PER_S", 1)
    monkeypatch.setattr(snapshot_module, "FOLD_BEHIND_MAX", 150)
    monkeypatch.setattr(snapshot_module, "FOLD_STEP_MIN", 20)
    monkeypatch.setattr(snapshot_module, "FOLD_STEP_MAX", 20)
    async with opened(store_at) as (store,):
        await begin(store)
        snapshot = Snapshot(None, store, None)  # type: ignore[arg-type]
        await snapshot.fold_when_calm()
        assert await pending(store) == 0
        for at in range(15):
            await store.append([Copied("gig", Cursor(1, 1 + 10 * at), [reserved(2 + 10 * at, 10, at)])])
            await snapshot.fold_when_calm()
            assert await pending(store) == 10 * (at + 1)
        # So much may wait, and of what is more a step is done each time.
        for at in range(15, 20):
            await store.append([Copied("gig", Cursor(1, 1 + 10 * at), [reserved(2 + 10 * at, 10, at)])])
            before = await pending(store)
            await snapshot.fold_when_calm()
            assert await pending(store) == (before - 20 if before > 150 else before)
        # Nobody buys any more.
        assert snapshot._last_turn is not None
        snapshot._last_turn = (snapshot._last_turn[0] - 100, snapshot._last_turn[1])
        await snapshot.fold_when_calm()
        assert await pending(store) == 0
        assert len(await everything(store)) == 200


async def test_a_turn_ends_when_its_time_is_over(store_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one looks whether it is still calm."""
    monkeypatch.setattr(snapshot_module, "FOLD_STEP_MIN", 5)
    monkeypatch.setattr(snapshot_module, "FOLD_STEP_MAX", 5)
    monkeypatch.setattr(snapshot_module, "FOLD_TURN_S", 0.2)
    async with opened(store_at) as (store,):
        await begin(store)
        await store.append([Copied("gig", Cursor(1, 1), [reserved(2 + 10 * at, 10, at) for at in range(200)])])
        await Snapshot(None, store, None).fold_when_calm()  # type: ignore[arg-type]
        assert 0 < await pending(store) < 2001


async def test_steps_follow_what_they_take(store_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(store_at) as (store,):
        await begin(store)
        await store.append([Copied("gig", Cursor(1, 1), [reserved(2 + 100 * at, 100, at) for at in range(600)])])
        snapshot = Snapshot(None, store, None)  # type: ignore[arg-type]
        monkeypatch.setattr(snapshot_module, "FOLD_STEP_S", 10**9)
        sizes = []
        while left := await snapshot._fold_step({"gig": 60_001}):
            sizes.append((snapshot._step, left))
        assert max(sizes)[0] == snapshot_module.FOLD_STEP_MAX
        monkeypatch.setattr(snapshot_module, "FOLD_STEP_S", 0)
        for _ in range(10):
            await snapshot._fold_step({"gig": 60_001})
        assert snapshot._step == snapshot_module.FOLD_STEP_MIN


async def test_closing_folds_everything(redis_server: Any, store_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "FOLD_CALM_PER_S", -1)
    async with connect(redis_server, store_at, snapshot_ms=10) as engine:
        await engine.create_sale("gig", name="Gig", capacity=3000)
        await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(3000)))
        while (await engine._store.cursors())["gig"].cursor.sequence < 3001:
            await asyncio.sleep(0.01)
        assert await pending(engine._store) > 0
    assert store_at.rows("SELECT count(*) FROM tickets") == [(3000,)]


async def test_when_it_is_calm_the_tables_follow_by_themselves(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at, snapshot_ms=10) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        await engine.confirm(ticket.id, buyer="ann")
        async with asyncio.timeout(10):
            while store_at.rows("SELECT ticket FROM purchases") != [(ticket.id,)]:
                await asyncio.sleep(0.02)


async def test_an_amendment_does_not_wait_for_folding(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", items=[ItemSpec("vip", 5)])
        await engine.reserve("gig", buyer="ann", quantity=1)
        await engine.amend_sale("gig", {"items": [{"sku": "floor", "capacity": 7}]})
        stored = await engine._store.sale("gig")
        assert stored is not None
        assert [item.sku for item in stored.known.items] == ["vip", "floor"]
        assert await pending(engine._store) == 3
        await engine.reserve("gig", buyer="ann", lines={"vip": 1, "floor": 2})
        await engine.snapshot()
        assert store_at.rows("SELECT lines FROM tickets ORDER BY lines") == [("vip:1",), ("vip:1,floor:2",)]


# -- nobody sees that the tables lag ---------------------------------------------------------------------------------


async def test_listings_are_complete_while_nothing_is_folded(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5000)
        # More than Redis remembers of one buyer.
        mine = await asyncio.gather(*(engine.reserve("gig", buyer="ann", quantity=1) for _ in range(600)))
        other = await engine.reserve("gig", buyer="bob", quantity=1)
        await engine._snapshot.run()
        assert await pending(engine._store) == 602

        async def listed(**query: Any) -> set[str]:
            ids: list[str] = []
            page = await engine.tickets("gig", limit=100, **query)
            while True:
                ids += [ticket.id for ticket in page.items]
                if page.next is None:
                    break
                page = await engine.tickets("gig", limit=100, cursor=page.next, **query)
            assert len(ids) == len(set(ids))
            return set(ids)

        # Whoever has few is answered by Redis alone.
        assert await listed(buyer="bob") == {other.id}
        assert await pending(engine._store) == 602
        assert await listed(buyer="ann") == {ticket.id for ticket in mine}
        assert await pending(engine._store) == 0
        late = await engine.reserve("gig", buyer="bob", quantity=1)
        assert await listed() == {other.id, late.id, *(ticket.id for ticket in mine)}


async def test_a_listing_of_who_had_too_many_before_some_were_dropped(redis_server: Any, store_at: Any) -> None:
    """Redis names fewer than it may, and has forgotten some all the same: those are in the table by then."""
    async with connect(redis_server, store_at, retention_ms=0) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5000)
        mine = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(520)]
        for ticket in mine[-20:]:
            await engine.cancel(ticket.id, buyer="ann")
        await engine.snapshot()
        await next_second(engine)
        assert await engine._retention.run() == 20
        mine += [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(3)]
        await engine._snapshot.run()
        first = await engine.tickets("gig", buyer="ann", limit=500)
        second = await engine.tickets("gig", buyer="ann", limit=500, cursor=first.next)
        assert await pending(engine._store) == 3
        assert {t.id for t in (*first.items, *second.items)} == {ticket.id for ticket in mine}


async def next_second(engine: Engine) -> None:
    """Returns when what has ended is older than Redis' whole second."""
    seconds, _ = await engine._servers.one.call("TIME")
    while (await engine._servers.one.call("TIME"))[0] == seconds:
        await asyncio.sleep(0.02)


async def test_what_is_not_folded_does_not_leave_redis(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at, retention_ms=0) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        first = await engine.reserve("gig", buyer="ann", quantity=1, key="1")
        await engine.cancel(first.id, buyer="ann")
        await engine.snapshot()
        second = await engine.reserve("gig", buyer="ann", quantity=1, key="2")
        await engine.cancel(second.id, buyer="ann")
        await engine._snapshot.run()
        await next_second(engine)
        tickets = slot_keys("gig").tickets
        assert await engine._retention.run() == 1
        assert await engine._servers.one.call("HKEYS", tickets) == [second.id.partition(".")[2].encode()]
        assert await engine._retention.run() == 0
        await engine._snapshot.fold()
        assert await engine._retention.run() == 1
        assert await engine._servers.one.call("HLEN", tickets) == 0
        for at, ticket in enumerate((first, second), start=1):
            assert (await engine.ticket(ticket.id)).status is Status.CANCELLED
            assert (await engine.reserve("gig", buyer="ann", quantity=1, key=f"{at}")).replayed
        # A key of its own finds nothing there, and is new.
        assert not (await engine.reserve("gig", buyer="ann", quantity=1, key="3")).replayed


async def test_a_contradiction_is_told_when_it_is_folded(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at, snapshot_ms=10) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        await engine.cancel(ticket.id, buyer="ann")
        await engine.snapshot()
        keys, (_, _, id) = slot_keys("gig"), ticket.id.partition(".")
        await engine._servers.one.call("XADD", keys.ledger, "1-4", "at", "9", "d", f"p {id} 1:1 {'o' * 22} paid")
        await engine._servers.one.call("HSET", keys.sale, "sequence", "4")
        async with asyncio.timeout(10):
            while (await engine.readiness()).ready:
                await asyncio.sleep(0.02)
        assert any(ticket.id in reason for reason in (await engine.readiness()).reasons)
        assert len(store_at.rows("SELECT * FROM alarms")) == 1
        assert (await engine.ticket(ticket.id)).status is Status.CANCELLED


# -- files of earlier versions ---------------------------------------------------------------------------------------

#: What version 1 made, but for the tables that are the same.
VERSION_1 = """
CREATE TABLE kept (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sales (
    id TEXT PRIMARY KEY, definition TEXT, pending TEXT, created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE slots (
    slot TEXT PRIMARY KEY, sale TEXT NOT NULL REFERENCES sales (id),
    epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, dropped INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE ledger (
    slot TEXT NOT NULL, sequence INTEGER NOT NULL, epoch INTEGER NOT NULL, at INTEGER NOT NULL,
    transitions TEXT NOT NULL,
    PRIMARY KEY (slot, sequence)
) WITHOUT ROWID;
CREATE TABLE tickets (
    slot TEXT NOT NULL, id TEXT NOT NULL, status TEXT NOT NULL, lines TEXT NOT NULL, buyer TEXT NOT NULL,
    reserved_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, ended_at INTEGER, sequence INTEGER NOT NULL DEFAULT 0,
    operation TEXT NOT NULL DEFAULT '', reference TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (slot, id)
) WITHOUT ROWID;
CREATE INDEX tickets_by_time ON tickets (slot, reserved_at, id);
CREATE INDEX tickets_by_buyer ON tickets (slot, buyer, reserved_at, id);
CREATE TABLE positions (
    listener TEXT NOT NULL, slot TEXT NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
    PRIMARY KEY (listener, slot)
) WITHOUT ROWID;
CREATE TABLE alarms (at INTEGER NOT NULL, slot TEXT NOT NULL, detail TEXT NOT NULL);
CREATE VIEW purchases AS
    SELECT t.slot || '.' || t.id AS ticket, s.sale AS sale, t.lines AS lines, t.reference AS reference,
           t.reserved_at AS reserved_at, t.ended_at AS purchased_at
    FROM tickets t JOIN slots s ON s.slot = t.slot WHERE t.status = 'purchased';
PRAGMA user_version = 1;
"""


def version_1(path: Path) -> None:
    """A file as version 1 left it: a sale, a ticket that is held and one that was bought."""
    held, bought = f"{1:t>22}", f"{2:t>22}"
    with contextlib.closing(sqlite3.connect(path / "store.db", isolation_level=None)) as db:
        db.executescript(VERSION_1)
        db.execute("INSERT INTO sales VALUES ('gig', ?, NULL, 1)", (definition().json(),))
        db.execute("INSERT INTO slots VALUES ('gig', 'gig', 1, 4, 0)")
        for sequence, text in (
            (1, f"s {definition().json()}"),
            (3, f"r 1:2 99 {held}{'b' * 22}{bought}{'c' * 22}"),
            (4, f"p {bought} 1:2 {'o' * 22} pay 1"),
        ):
            db.execute("INSERT INTO ledger VALUES ('gig', ?, 1, ?, ?)", (sequence, sequence, text))
        values = "('gig', ?, 'reserved', 'item-1:2', ?, 3, 99, NULL, 0, '', '')"
        db.execute(f"INSERT INTO tickets VALUES {values}", (held, "b" * 22))
        values = "('gig', ?, 'purchased', 'item-1:2', ?, 3, 99, 4, 4, ?, 'pay 1')"
        db.execute(f"INSERT INTO tickets VALUES {values}", (bought, "c" * 22, "o" * 22))


async def test_a_file_of_version_1_is_taken_over(fresh_store: Any, tmp_path: Path) -> None:
    version_1(tmp_path)
    old, new = fresh_store("sqlite", tmp_path), fresh_store("sqlite", tmp_path / "new")
    held, bought = f"{1:t>22}", f"{2:t>22}"
    async with opened(old, 2) as (store, other):
        progress = (await store.cursors())["gig"]
        assert (progress.cursor, progress.folded) == (Cursor(1, 4), 4)
        tickets, wrong = told(await store.ledger("gig", Cursor(0, 0), 100))
        assert wrong == 0
        assert {record.id: record for record in await everything(other)} == tickets
        assert [r.id for r in await store.tickets(TicketQuery("gig", 9, buyer="c" * 22))] == [bought]
        await store.append([Copied("gig", Cursor(1, 4), [Entry(1, 5, 5, f"c {held} 1:2 {'o' * 22} ")])])
        assert (await other.fold({"gig": 5}, 100)).alarms == []
        assert [r.status for r in await everything(store)] == [Status.CANCELLED, Status.PURCHASED]
    assert old.rows("SELECT ticket, lines, reference, purchased_at FROM purchases") == [
        (f"gig.{bought}", "item-1:2", "pay 1", 4)
    ]
    # It is what a new file is.
    (tmp_path / "new").mkdir()
    async with opened(new):
        pass
    query = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2"
    assert old.rows(query) == new.rows(query)
    for table in ("slots", "tickets", "ledger"):
        assert old.rows(f"PRAGMA table_info({table})") == new.rows(f"PRAGMA table_info({table})")
    assert old.rows("PRAGMA user_version") == new.rows("PRAGMA user_version")


async def test_taking_over_is_all_or_nothing(fresh_store: Any, tmp_path: Path) -> None:
    version_1(tmp_path)
    old = fresh_store("sqlite", tmp_path)
    old.do("CREATE TABLE tickets_1 (in_the_way)")
    store = open_store(old.url)
    with pytest.raises(StoreError):
        await store.open()
    await store.close()
    assert old.rows("SELECT count(*) FROM tickets") == [(2,)]
    assert old.rows("PRAGMA user_version") == [(1,)]
    old.do("DROP TABLE tickets_1")
    async with opened(old) as (store,):
        assert len(await everything(store)) == 2


async def test_what_every_buyer_has_is_told_as_of_one_moment(store_at: Any) -> None:
    async with opened(store_at) as (store,):
        await begin(store)
        tickets = [f"{n:t>22}" for n in range(5)]
        await store.append([Copied("gig", Cursor(1, 1), [reserved(2, 4, 5)])])
        line = f"r 1:2 1005 {tickets[0]}{2:b>22}"
        ends = f"p {tickets[2]} 1:1 {'o' * 22} paid\nc {tickets[3]} 1:1 {'o' * 22} "
        await store.append([Copied("gig", Cursor(1, 5), [Entry(1, 6, 6, line), Entry(1, 8, 7, ends)])])
        await store.fold({"gig": 6}, 100)
        early = await store.standing("gig")
        assert (early.progress.cursor, early.progress.folded) == (Cursor(1, 8), 6)
        assert {(each.buyer[-1], each.lines, each.status, each.tickets) for each in early.units} == {
            ("2", "1:1", Status.RESERVED, 1),
            ("2", "1:2", Status.RESERVED, 1),
            ("3", "1:1", Status.RESERVED, 1),
            ("4", "1:1", Status.RESERVED, 1),
            ("5", "1:1", Status.RESERVED, 1),
        }
        await store.fold({"gig": 8}, 100)
        late = await store.standing("gig")
        assert ("3", "1:1", Status.RESERVED, 1) not in {(each.buyer[-1], *each[1:]) for each in late.units}
        assert ("2", "1:1", Status.PURCHASED, 1) in {(each.buyer[-1], *each[1:]) for each in late.units}
        found = await store.records("gig", [*tickets, "absent"])
        assert set(found) == {tickets[0], *tickets[2:]}
        assert found == {id: await store.ticket("gig", id) for id in found}
