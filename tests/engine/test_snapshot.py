"""The snapshot: exactly once, incremental, fenced; dropping; and what it does when a side is away."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from holdfast.engine import ConfigurationError, Engine, NotReady, Status
from holdfast.engine.connection import NoReply
from holdfast.engine.keys import slot_keys
from holdfast.engine.records import Definition, Entry, ItemDefinition
from holdfast.engine.store import Copied, Cursor, CursorMoved, open_store
from holdfast.engine.store.postgres import PostgresStore


def connect(server: Any, store_at: Any, **options: Any) -> Engine:
    return Engine.connect(server.url, store=store_at.url, **({"snapshot_ms": None} | options))


async def test_purchases_are_found_in_the_store_with_their_times(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10, hold_ms=60_000)
        paid = await engine.reserve("gig", buyer="ann", quantity=2)
        paid = await engine.confirm(paid.id, buyer="ann", reference="pay 1")
        gone = await engine.cancel((await engine.reserve("gig", buyer="bob", quantity=1)).id, buyer="bob")
        assert await engine.snapshot() == 5
        assert await engine.snapshot() == 0
    assert store_at.rows("SELECT * FROM purchases") == [
        (paid.id, "gig", "general:2", "pay 1", paid.reserved_at, paid.ended_at)
    ]
    assert store_at.rows("SELECT status, ended_at FROM tickets WHERE status = 'cancelled'") == [
        ("cancelled", gone.ended_at)
    ]


async def test_two_snapshotters_at_once_copy_everything_once(redis_server: Any, store_at: Any) -> None:
    async with (
        connect(redis_server, store_at, secret="one for both of them") as one,
        connect(redis_server, store_at, secret="one for both of them") as two,
    ):
        await one.create_sale("gig", name="Gig", capacity=3000)

        async def buy(at: int) -> None:
            engine = (one, two)[at % 2]
            ticket = await engine.reserve("gig", buyer=f"b{at}", quantity=1)
            if at % 3 == 0:
                await engine.confirm(ticket.id, buyer=f"b{at}")

        async def copy(engine: Engine) -> None:
            while not done.is_set():
                await engine.snapshot()
                await asyncio.sleep(0)

        done = asyncio.Event()
        copying = [asyncio.create_task(copy(engine)) for engine in (one, two)]
        for start in range(0, 3000, 300):
            await asyncio.gather(*(buy(at) for at in range(start, start + 300)))
        done.set()
        await asyncio.gather(*copying)
        await one.snapshot()
        assert one._snapshot.alarms == two._snapshot.alarms == []
        transitions = [
            t for entry in await one._store.ledger("gig", Cursor(0, 0), 100_000) for t in entry.transitions()
        ]
        assert [t.sequence for t in transitions] == list(range(1, 4002))
    assert store_at.rows("SELECT count(*) FROM tickets") == [(3000,)]
    assert store_at.rows("SELECT count(*) FROM purchases") == [(1000,)]


async def test_a_cursor_that_has_moved_refuses_the_whole_append(store_at: Any) -> None:
    store = open_store(store_at.url)
    await store.open()
    definition = Definition("gig", "g", (ItemDefinition("general", "g", 5, None),), 1, None, None, None, 1, "o")
    await store.begin_sale(definition)
    entries = [Entry(1, 1, 5, f"s {definition.json()}"), Entry(1, 2, 6, f"r 1:2 99 {'t' * 22}{'b' * 22}")]
    await store.append([Copied("gig", Cursor(0, 0), entries)])
    with pytest.raises(CursorMoved):
        await store.append([Copied("gig", Cursor(0, 0), entries)])
    with pytest.raises(CursorMoved):
        await store.append([Copied("gig", Cursor(1, 1), entries[1:])])
    assert len(await store.ledger("gig", Cursor(0, 0), 100)) == 2
    # Two different ends of one ticket raise an alarm, and are both kept.
    ends = [Entry(1, 3, 7, f"p {'t' * 22} 1:2 op pay"), Entry(1, 4, 8, f"c {'t' * 22} 1:2 op ")]
    await store.append([Copied("gig", Cursor(1, 2), ends)])
    alarms = (await store.fold({"gig": 4}, 100)).alarms
    assert len(alarms) == 1
    assert "cancelled" in alarms[0]
    record = await store.ticket("gig", "t" * 22)
    assert record is not None
    assert (record.status, record.ended_at, record.reference) == (Status.PURCHASED, 7, "pay")
    assert len(await store.ledger("gig", Cursor(0, 0), 100)) == 4
    await store.close()


class Killed(BaseException):
    """The process is gone."""


#: Copying and folding have fewer statements than this, all together and in any store.
STATEMENTS_MAX = 25


@contextlib.contextmanager
def dies_before(engine: Engine, statement: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process dies before its n-th statement that writes: nothing after that is done, COMMIT neither."""
    store: Any = engine._store
    left = [statement]

    def count(text: str) -> None:
        if text != "ROLLBACK":
            if left[0] == 0:
                raise Killed
            left[0] -= 1

    with monkeypatch.context() as patch:
        if isinstance(store, PostgresStore):

            def counted(method: Any) -> Any:
                async def call(self: Any, text: str, *args: Any, **options: Any) -> Any:
                    # One `BEGIN` of its own kind is what tells those that read.
                    if not text.startswith(("BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT set_config")):
                        count(text)
                    return await method(self, text, *args, **options)

                return call

            for name in ("execute", "fetch", "fetchrow", "fetchval"):
                patch.setattr(asyncpg.Connection, name, counted(getattr(asyncpg.Connection, name)))
        else:
            patch.setattr(store, "_write_db", Dying(store._write_db, count))
        yield


class Dying:
    """A connection of SQLite that counts."""

    def __init__(self, real: sqlite3.Connection, count: Callable[[str], None]) -> None:
        self._real, self._count = real, count

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name not in ("execute", "executemany"):
            return method

        def call(*args: Any) -> Any:
            self._count(args[0])
            return method(*args)

        return call


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_killed_at_any_statement_it_copies_and_folds_once(
    redis_server: Any, fresh_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for statement in range(STATEMENTS_MAX):
        (home := tmp_path / str(statement)).mkdir()
        store_at = fresh_store(kind, home)
        redis_server.empty()
        async with connect(redis_server, store_at) as engine:
            await engine.create_sale("gig", name="Gig", capacity=10)
            ticket = await engine.reserve("gig", buyer="ann", quantity=1)
            await engine.confirm(ticket.id, buyer="ann")
            died = False
            with dies_before(engine, statement, monkeypatch):
                try:
                    await engine.snapshot()
                except Killed:
                    died = True
            (progress,) = (await engine._store.cursors()).values()
            assert progress.cursor.sequence in (0, 3)
            assert progress.folded <= progress.cursor.sequence
            assert await engine.snapshot() == 3 - progress.cursor.sequence
            assert engine._snapshot.alarms == []
        assert store_at.rows("SELECT count(*) FROM ledger") == [(3,)]
        assert store_at.rows("SELECT status FROM tickets") == [("purchased",)]
        assert store_at.rows("SELECT sequence, folded FROM slots") == [(3, 3)]
        if not died:
            return
    raise AssertionError("there are more statements")


async def test_its_cost_follows_what_is_new(redis_server: Any, store_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    async with connect(redis_server, store_at) as engine:
        append = engine._store.append

        async def counted(stretches: Any) -> None:
            copied.append(sum(len(entry.transitions()) for stretch in stretches for entry in stretch.entries))
            await append(stretches)

        monkeypatch.setattr(engine._store, "append", counted)
        await engine.create_sale("gig", name="Gig", capacity=5000)
        await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(3000)))
        assert await engine.snapshot() == 3001
        assert sum(copied) == 3001
        copied.clear()
        await engine.reserve("gig", buyer="zoe", quantity=1)
        assert await engine.snapshot() == 1
        assert copied == [1]


async def test_the_ledger_is_trimmed_below_the_cursor_only(
    redis_server: Any, store_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.snapshot.KEEP_TRANSITIONS", 10)
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5000)
        for _ in range(400):
            await engine.reserve("gig", buyer="ann", quantity=1)
        assert await engine._servers.one.call("XLEN", slot_keys("gig").ledger) == 401
        await engine.snapshot()
        # Redis trims whole nodes of a hundred entries.
        assert 10 <= await engine._servers.one.call("XLEN", slot_keys("gig").ledger) < 250
        await engine.reserve("gig", buyer="ann", quantity=1)
        assert await engine.snapshot() == 1
        told = [t.sequence for e in await engine._store.ledger("gig", Cursor(0, 0), 1000) for t in e.transitions()]
        assert told == list(range(1, 403))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("freezes", ["before it is read", "before it is trimmed"])
async def test_a_node_that_freezes_holds_up_no_others(
    freezes: str, start_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.snapshot.KEEP_TRANSITIONS", 1)
    cluster = start_cluster(replicas=0, node_timeout_ms=60_000)
    frozen, well, _ = cluster.primaries
    names = [f"gig-{number}" for number in range(30)]
    frozen_sales = [name for name in names if cluster.primary(name) is frozen][:5]
    others = [name for name in names if cluster.primary(name) is well][:2]
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with Engine.connect(cluster.address(), store=store, snapshot_ms=None, sweep=False) as engine:
        for name in (*frozen_sales, *others):
            await engine.create_sale(name, name=name, capacity=10, hold_ms=60_000)
            for buyer in ("ann", "bob"):
                await engine.reserve(name, buyer=buyer, quantity=1)
        before = freezes == "before it is read"
        owner, step = (engine._snapshot, "_behind") if before else (engine._store, "append")
        real = getattr(owner, step)

        async def and_freeze(*args: Any) -> Any:
            found = await real(*args)
            monkeypatch.setattr(owner, step, real)
            frozen.pause()
            return found

        monkeypatch.setattr(owner, step, and_freeze)
        try:
            async with asyncio.timeout(4):
                if before:
                    with pytest.raises(NoReply):
                        await engine._snapshot.run()
                else:
                    await engine._snapshot.run()
            told = await engine._store.cursors()
            copied = {name for name in (*frozen_sales, *others) if told[name].cursor.sequence == 3}
            assert copied == {*others, *(frozen_sales if not before else ())}
        finally:
            frozen.resume()
        await engine.snapshot()
        assert {progress.cursor.sequence for progress in (await engine._store.cursors()).values()} == {3}


async def test_while_the_store_is_away_selling_goes_on_and_is_copied_later(
    redis_server: Any, fresh_store: Any, tmp_path: Path
) -> None:
    store_at = fresh_store("sqlite", tmp_path)
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        locker = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        engine._store._write_db.execute("PRAGMA busy_timeout = 50")  # type: ignore[attr-defined]
        locker.execute("BEGIN EXCLUSIVE")
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        await engine.confirm(ticket.id, buyer="ann")
        with pytest.raises(NotReady):
            await engine.snapshot()
        with pytest.raises(NotReady):
            await engine.create_sale("other", name="Other", capacity=1)
        locker.execute("ROLLBACK")
        locker.close()
        assert await engine.snapshot() == 3
        await engine.create_sale("other", name="Other", capacity=1)


async def test_a_creation_that_died_between_store_and_redis_is_finished(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        create = engine._scripts.create

        async def dies(*args: Any) -> Any:
            raise Killed

        engine._scripts.create = dies  # type: ignore[method-assign]
        with pytest.raises(Killed):
            await engine.create_sale("gig", name="Gig", capacity=10)
        engine._scripts.create = create  # type: ignore[method-assign]
        assert (await engine.readiness()).ready
        assert (await engine.reserve("gig", buyer="ann", quantity=1)).quantity == 1
        assert not (await engine.create_sale("gig", name="Gig", capacity=10)).created


async def test_an_amendment_that_died_halfway_is_made_or_not_made(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        amend, settle = engine._scripts.amend, engine._store.settle

        async def dies(*args: Any) -> Any:
            raise Killed

        engine._scripts.amend = dies  # type: ignore[method-assign]
        with pytest.raises(Killed):
            await engine.amend_sale("gig", {"capacity": 20})
        engine._scripts.amend = amend  # type: ignore[method-assign]
        assert (await engine.sale("gig")).items[0].capacity == 10
        engine._store.settle = dies  # type: ignore[method-assign]
        with pytest.raises(Killed):
            await engine.amend_sale("gig", {"capacity": 30})
        engine._store.settle = settle  # type: ignore[method-assign]
        assert (await engine.sale("gig")).items[0].capacity == 30
        await engine.snapshot()
        stored = await engine._store.sale("gig")
        assert stored is not None
        assert stored.known.items[0].capacity == 30
        assert stored.pending is None


async def test_another_secret_is_refused(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at):
        pass
    with pytest.raises(ConfigurationError, match="another one"):
        async with connect(redis_server, store_at, secret="quite another secret"):
            pass
    with pytest.raises(ConfigurationError, match="too few"):
        async with connect(redis_server, store_at, secret="short"):
            pass
    async with connect(redis_server, store_at) as engine:
        assert await engine.kept("token", lambda: "one") == "one"
        assert await engine.kept("token", lambda: "two") == "one"
    if store_at.kind == "sqlite":
        assert Path(store_at.url.removeprefix("sqlite:///")).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("url", ["mysql://x", "sqlite://relative", "sqlite:///", "nonsense", ""])
async def test_a_store_that_is_not_known_is_refused(redis_server: Any, url: str) -> None:
    with pytest.raises(ConfigurationError):
        async with Engine.connect(redis_server.url, store=url):
            pass


async def test_a_newer_schema_is_refused(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at):
        pass
    newer = {"sqlite": "PRAGMA user_version = 99", "postgresql": "UPDATE holdfast_schema SET version = 99"}
    store_at.do(newer[store_at.kind])
    with pytest.raises(ConfigurationError, match="schema 99"):
        async with connect(redis_server, store_at):
            pass


async def test_a_file_that_is_no_store_is_refused_and_left_alone(
    redis_server: Any, fresh_store: Any, tmp_path: Path
) -> None:
    store_at = fresh_store("sqlite", tmp_path)
    (tmp_path / "store.db").write_text("These are the minutes of the last meeting, and no database at all. " * 50)
    before = (tmp_path / "store.db").read_bytes()
    with pytest.raises(ConfigurationError, match=r"store\.db"):
        async with connect(redis_server, store_at):
            pass
    assert (tmp_path / "store.db").read_bytes() == before
    with pytest.raises(ConfigurationError):
        async with Engine.connect(redis_server.url, store=f"sqlite:///{tmp_path}/no/such/place.db"):
            pass
