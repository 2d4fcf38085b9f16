"""The PostgreSQL store where it is another matter than a file: addresses, connections, commits, and several at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from holdfast.engine import ConfigurationError, Engine, NotReady
from holdfast.engine.records import Definition, Entry, ItemDefinition, Record
from holdfast.engine.store import Copied, Cursor, CursorMoved, Store, StoreError, TicketQuery, open_store
from holdfast.engine.store import postgres as postgres_module
from holdfast.engine.store.postgres import PostgresStore


@pytest.fixture
def own_postgres(start_postgres: Callable[..., Any]) -> Iterator[Any]:
    """A server for one test alone."""
    server = start_postgres()
    yield server
    server.stop()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = open_store(url)
    assert isinstance(store, PostgresStore)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def definition(id: str = "gig", version: int = 1) -> Definition:
    return Definition(id, "g", (ItemDefinition("general", "g", 10**9, None),), 1, None, None, None, version, "o")


async def begin(store: Store, id: str = "gig") -> None:
    await store.begin_sale(definition(id))
    await store.append([Copied(id, Cursor(0, 0), [Entry(1, 1, 1, f"s {definition(id).json()}")])])


def reserved(first: int, count: int, at: int = 5) -> Entry:
    pairs = "".join(f"{n:t>22}{n:b>22}" for n in range(first, first + count))
    return Entry(1, first + count - 1, at, f"r 1:1 {at + 1000} {pairs}")


async def everything(store: Store) -> list[Record]:
    return await store.tickets(TicketQuery("gig", 10**6))


# -- addresses, and what a start refuses -------------------------------------------------------------------------------

#: Passwords that were not escaped, and addresses with other mistakes; each has a piece that must not be shown.
WRONG = [
    "postgresql://ann:sesame@x@127.0.0.1:1/db",
    "postgresql://ann:sesame/x@127.0.0.1:1/db",
    "postgresql://ann:1/sesame@127.0.0.1:1/db",
    "postgresql://ann:1?sesame@127.0.0.1:1/db",
    "postgresql://ann:1#sesame@127.0.0.1:1/db",
    "postgresql://ann:sesame#x@127.0.0.1:1/db",
    "postgresql://ann:sesame[x@127.0.0.1:1/db",
    "postgresql://ann:sesame@127.0.0.1:port/db",
    "postgresql://ann:sesame@127.0.0.1:1/db?sslmode=sesame",
    "postgresql://ann:sesame@127.0.0.1:1/db?target_session_attrs=sesame",
    "postgresql://ann:sesame@127.0.0.1:1/db?sesame",
    "postgres://ann:sesame@127.0.0.1:1/db",
    "postgresql://ann:sesame@no.such.host.invalid/db",
    "postgresql://ann@127.0.0.1:1/db?password=sesame",
    "postgresql:///db?host=/no/such/folder&user=ann&password=sesame",
    "postgresql://",
]


@pytest.mark.parametrize("url", WRONG)
async def test_an_address_that_cannot_work_is_one_sentence_without_its_password(empty_redis: str, url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with Engine.connect(empty_redis, store=url):
            pass
    assert "store" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "sesame" not in "".join(traceback.format_exception_only(refused.value))


async def test_a_wrong_password_or_database_is_named_and_not_shown(empty_redis: str, postgres: Any) -> None:
    for url, reason in (
        (postgres.url(password="sesame"), "password authentication failed"),
        (postgres.url("nowhere"), '"nowhere" does not exist'),
        (postgres.url(options="-csearch_path=nowhere"), "search_path"),
    ):
        with pytest.raises(ConfigurationError, match=reason) as refused:
            async with Engine.connect(empty_redis, store=url):
                pass
        text = "".join(traceback.format_exception(refused.value))
        assert not any(
            secret in text
            for secret in (
                "sesame",
                sys.modules["postgresql"].PASSWORD,
                quote(sys.modules["postgresql"].PASSWORD, safe=""),
            )
        )


async def test_without_asyncpg_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "holdfast.engine.store.postgres")
    with pytest.raises(ConfigurationError, match=r"pip install 'holdfast\[postgresql\]'"):
        open_store("postgresql://ann@host/db")


async def test_a_database_that_cannot_hold_every_text_is_refused(postgres: Any, start_sql: Any) -> None:
    start_sql(postgres.url(), "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="encoding LATIN1"):
        async with opened(postgres.url("latin")):
            pass


@pytest.fixture
def start_sql() -> Callable[..., list[tuple[Any, ...]]]:
    """Runs statements on a connection of their own."""
    query: Callable[..., list[tuple[Any, ...]]] = sys.modules["postgresql"].query
    return query


# -- the schema --------------------------------------------------------------------------------------------------------


async def test_many_that_open_an_empty_database_at_once_make_one_schema(postgres: Any, start_sql: Any) -> None:
    for _ in range(3):
        url = postgres.fresh()
        stores = [open_store(url) for _ in range(8)]
        try:
            await asyncio.gather(*(store.open() for store in stores))
            values = await asyncio.gather(
                *(store.kept("secret", lambda at=at: f"{at}") for at, store in enumerate(stores))
            )
        finally:
            await asyncio.gather(*(store.close() for store in stores))
        assert len(set(values)) == 1
        assert start_sql(url, "SELECT version FROM holdfast_schema") == [(postgres_module.SCHEMA_VERSION,)]


async def test_deployments_share_a_database_by_their_schemas(postgres: Any) -> None:
    one = postgres.fresh()
    schema = one.rpartition("%3D")[2]
    other = postgres.fresh() + f"%2C{schema}"  # finds the tables of the first behind its own
    async with opened(one) as first, opened(other) as second:
        await begin(first)
        assert await second.cursors() == {}
        await second.kept("secret", lambda: "second")
        assert await first.peek("secret") is None


async def test_a_failed_migration_leaves_nothing(postgres: Any, start_sql: Any) -> None:
    url = postgres.fresh()
    start_sql(url, "CREATE TABLE tickets (in_the_way int)")
    with pytest.raises(StoreError, match="tickets"):
        async with opened(url):
            pass
    start_sql(url, "DROP TABLE tickets")
    async with opened(url) as store:
        await begin(store)


# -- the same answers as SQLite ----------------------------------------------------------------------------------------


async def test_pages_go_by_bytes_whatever_the_language_of_the_database(
    postgres: Any, start_sql: Any, fresh_store: Any, tmp_path: Path
) -> None:
    if int(start_sql(postgres.url(), "SHOW server_version_num")[0][0]) < 150000:
        pytest.skip("databases have a language of their own from PostgreSQL 15 on")
    create = (
        "CREATE DATABASE english ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'en-US' TEMPLATE template0"
    )
    start_sql(postgres.url(), create)
    signs = "aAbBzZ09-_"
    ids = [f"{sign}{other}{'x' * 20}" for sign in signs for other in signs]
    random.Random(7).shuffle(ids)
    pairs = "".join(id + "b" * 22 for id in ids)
    found = []
    for url in (postgres.url("english"), fresh_store("sqlite", tmp_path).url):
        store = open_store(url)
        await store.open()
        for sale in ("a-b", "ab", "a0", "aa"):
            await store.begin_sale(definition(sale))
        await begin(store)
        await store.append([Copied("gig", Cursor(1, 1), [Entry(1, 1 + len(ids), 5, f"r 1:1 99 {pairs}")])])
        await store.fold({"gig": 1 + len(ids)}, 10**6)
        paged: list[str] = []
        after = (0, "")
        while page := await store.tickets(TicketQuery("gig", 7, buyer="b" * 22, status="reserved", after=after)):
            paged += [record.id for record in page]
            # What a client may make of a cursor is behind the same ids.
            after = (page[-1].reserved_at, page[-1].id + "\0!")
        assert paged == sorted(ids)
        sales = [sale.id for sale in await store.sales("a", 3)]
        found.append((paged, sales, [sale.id for sale in await store.sales(sales[-1] + "\0!", 3)]))
        await store.close()
    assert found[0] == found[1]


async def test_tables_that_were_never_analysed_are_not_read_whole(postgres: Any) -> None:
    """The plan is made when they are empty, and kept while they grow."""
    url = postgres.fresh()
    async with opened(url):
        pass
    connection = await asyncpg.connect(url, server_settings=postgres_module.SETTINGS)
    column = "ARRAY['x']::text[]"
    number = "ARRAY[1]::bigint[]"
    for at, (query, values) in enumerate(
        [
            (postgres_module._BEGIN_TICKETS, [column] * 4 + [number] * 2),
            (postgres_module._END_TICKETS, [column] * 3 + [number] * 2 + [column] * 2),
            (postgres_module._TO_FOLD, [column] + [number] * 3),
            (postgres_module._LOCK_SLOTS, [column]),
            (postgres_module._SKUS, ["'x'"]),
        ]
    ):
        await connection.execute(f"PREPARE p{at} AS {query}")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE p{at} ({', '.join(values)})"))
        assert "Seq Scan" not in plan
        assert "Hash" not in plan.replace("HashAggregate", "")
        assert "Merge Join" not in plan
    await connection.close()


# -- commits -----------------------------------------------------------------------------------------------------------


async def test_a_commit_is_on_disk_whatever_the_role_says(postgres: Any, start_sql: Any) -> None:
    url = postgres.fresh()
    for said, found in (("off", "on"), ("remote_apply", "remote_apply"), ("local", "local")):
        start_sql(url, f"ALTER ROLE holdfast SET synchronous_commit = '{said}'")
        try:
            async with opened(url) as store:
                for pool in (store._writer, store._readers):
                    assert await pool.fetchval("SHOW synchronous_commit") == found
                # A connection that was used and given back is as it was.
                await store.kept("secret", lambda: "one")
                assert await store._writer.fetchval("SHOW synchronous_commit") == found
        finally:
            start_sql(url, "ALTER ROLE holdfast RESET synchronous_commit")


async def test_a_server_that_does_not_sync_is_told_loudly(
    start_postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_postgres(fsync="off")
    try:
        async with opened(server.fresh()) as store:
            await begin(store)
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
        assert len(told) == 1
        assert "fsync = off" in told[0]
    finally:
        server.stop()


@contextlib.contextmanager
def lost_in_commit(carried_out: bool) -> Iterator[list[int]]:
    """The connection is lost during the next COMMIT, which the server has carried out or not; how often."""
    real, lost = asyncpg.Connection.execute, [0]

    async def execute(self: Any, text: str, *args: Any, **options: Any) -> Any:
        if text != "COMMIT" or lost[0]:
            return await real(self, text, *args, **options)
        lost[0] += 1
        if carried_out:
            await real(self, text)
        self.terminate()
        raise ConnectionResetError("Connection lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg.Connection, "execute", execute)
        yield lost


@pytest.mark.parametrize("carried_out", [False, True], ids=["not carried out", "carried out"])
async def test_a_commit_without_an_answer_is_made_once_by_calling_again(
    postgres: Any, start_sql: Any, carried_out: bool
) -> None:
    ends = f"p {2:t>22} 1:1 {'o' * 22} paid\nc {2:t>22} 1:1 {'o' * 22} "

    async def steps(store: PostgresStore, call: Callable[[Callable[[], Any]], Any]) -> list[Any]:
        """Everything that a store writes; what was answered."""
        cursor = Cursor(1, 1)
        answers = [await call(lambda: store.kept("id", lambda: f"{random.random()}")) is not None]
        answers.append(await call(lambda: store.begin_sale(definition())))
        await call(lambda: store.append([Copied("gig", Cursor(0, 0), [Entry(1, 1, 1, f"s {definition().json()}")])]))
        await call(lambda: store.append([Copied("gig", cursor, [reserved(2, 3), Entry(1, 6, 7, ends)])]))
        await call(lambda: store.begin_amendment(definition(version=2)))
        await call(lambda: store.settle("gig", None))
        await call(lambda: store.begin_amendment(definition(version=3)))
        await call(lambda: store.settle("gig", definition(version=3)))
        answers.append(await call(lambda: store.fold({"gig": 6}, 100)))
        await call(lambda: store.set_dropped("gig", 4))
        await call(lambda: store.set_position("ann", "gig", Cursor(1, 2)))
        await call(lambda: store.set_position("ann", "gig", Cursor(1, 3)))
        return answers

    async def plain(work: Callable[[], Any]) -> Any:
        return await work()

    async def twice(work: Callable[[], Any]) -> Any:
        with lost_in_commit(carried_out) as lost:
            with pytest.raises(StoreError, match="Connection lost"):
                await work()
            assert lost == [1]
        try:
            return await work()
        except CursorMoved:
            assert carried_out

    tables = ("sales", "slots", "ledger", "tickets", "alarms", "positions")
    found = []
    for call in (plain, twice):
        url = postgres.fresh()
        async with opened(url) as store:
            answers = await steps(store, call)
        left = [start_sql(url, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
        # But for the times at which they were made.
        left[0] = [row[:3] for row in left[0]]
        left[4] = [row[1:] for row in left[4]]
        found.append((answers, left))
    assert found[0] == found[1]
    assert len(found[0][0][2].alarms) == 1


# -- servers that go away ----------------------------------------------------------------------------------------------


async def until(done: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await done():
            await asyncio.sleep(0.02)


async def test_killed_and_started_again_it_goes_on_with_nothing_lost_or_doubled(
    empty_redis: str, own_postgres: Any, start_sql: Any
) -> None:
    url = own_postgres.fresh()
    async with Engine.connect(empty_redis, store=url, snapshot_ms=5) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5000)
        paid: list[str] = []
        stop = asyncio.Event()

        async def buy(who: str) -> None:
            while not stop.is_set():
                ticket = await engine.reserve("gig", buyer=who, quantity=1)
                await engine.confirm(ticket.id, buyer=who)
                paid.append(ticket.id)
                await asyncio.sleep(0.003)

        buying = [asyncio.create_task(buy(f"b{at}")) for at in range(8)]
        for _ in range(2):
            before = len(paid)
            await until(lambda before=before: asyncio.sleep(0, len(paid) > before + 50))
            await asyncio.to_thread(own_postgres.kill)
            before = len(paid)  # selling does not wait for it
            await until(lambda before=before: asyncio.sleep(0, len(paid) > before + 50))
            await asyncio.to_thread(own_postgres.start)
        stop.set()
        await asyncio.gather(*buying)
        sequence = (await engine.sale("gig")).sequence

        async def copied() -> bool:
            try:
                return bool((await engine._store.cursors())["gig"].folded == sequence)
            except StoreError:
                return False

        await until(copied)
        assert engine._snapshot.alarms == []
        assert (await engine.readiness()).ready
    assert sorted(row[0] for row in start_sql(url, "SELECT ticket FROM purchases")) == sorted(paid)
    assert start_sql(url, "SELECT * FROM alarms") == []
    assert start_sql(url, "SELECT count(*), max(sequence) FROM slots") == [(1, sequence)]


async def answered(work: Callable[[], Any]) -> bool:
    try:
        await work()
    except (StoreError, NotReady):
        return False
    return True


async def test_a_server_that_hangs_is_given_up_and_found_again(
    empty_redis: str, own_postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine.connect(empty_redis, store=own_postgres.fresh(), snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        await engine.snapshot()
        store: Any = engine._store
        # Less patient from here on, and connected anew; a busy machine may need more than one try.
        monkeypatch.setattr(postgres_module, "CONNECT_S", 1.0)
        monkeypatch.setattr(postgres_module, "ANSWER_S", 1.0)
        for pool in (store._writer, store._readers):
            await pool.close()
        store._writer, store._readers = await store._pool(1), await store._pool(postgres_module.READERS)
        await until(lambda: answered(store.cursors))
        await until(lambda: answered(lambda: store.set_dropped("gig", 0)))
        own_postgres.signal(signal.SIGSTOP)
        try:
            ticket = await engine.reserve("gig", buyer="ann", quantity=1)
            await engine.confirm(ticket.id, buyer="ann")
            began = time.monotonic()
            # More than there are connections; some of which are new.
            calls = [store.cursors() for _ in range(8)] + [store.set_dropped("gig", 0), store.fold({"gig": 1}, 1)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(answer) for answer in answers] == [StoreError] * 10
            assert all("does not answer" in str(answer) for answer in answers)
            with pytest.raises(NotReady):
                await engine.snapshot()
            assert time.monotonic() - began < 15
        finally:
            own_postgres.signal(signal.SIGCONT)
        await until(lambda: answered(engine.snapshot))
        assert (await store.cursors())["gig"].folded == 3
        assert [record.id for record in await everything(store)] == [ticket.id.partition(".")[2]]
        assert engine._snapshot.alarms == []


async def test_who_hangs_in_the_middle_of_a_transaction_is_ended_by_the_server(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, idle = postgres_module.SETTINGS, str(postgres_module.IDLE_MS)
    quick = {name: "300" if value == idle else value for name, value in ours.items()}
    monkeypatch.setattr(postgres_module, "SETTINGS", quick)
    url = postgres.fresh()
    async with opened(url) as frozen, opened(url) as store:
        await begin(store)
        stuck, go_on = asyncio.Event(), asyncio.Event()

        async def hang(connection: Any) -> None:
            await connection.fetch(postgres_module._LOCK_SLOTS, ["gig"])
            stuck.set()
            await go_on.wait()

        hanging = asyncio.create_task(frozen._write(hang))
        await stuck.wait()
        await store.append([Copied("gig", Cursor(1, 1), [reserved(2, 3)])])
        go_on.set()
        with pytest.raises(StoreError):
            await hanging
        with pytest.raises(CursorMoved):
            await frozen.append([Copied("gig", Cursor(1, 1), [reserved(2, 3)])])


async def test_callers_that_are_cancelled_leave_whole_connections(postgres: Any) -> None:
    seeded = random.Random(3)
    async with opened(postgres.fresh()) as store:
        await begin(store)
        await store.append([Copied("gig", Cursor(1, 1), [reserved(2, 500)])])

        async def call(at: int) -> None:
            progress = (await store.cursors())["gig"]
            await store.fold({"gig": progress.cursor.sequence}, 7)
            await store.set_position(f"l{at}", "gig", Cursor(1, at))
            first = progress.cursor.sequence + 1
            with contextlib.suppress(CursorMoved):
                await store.append([Copied("gig", progress.cursor, [reserved(first, 5)])])
            await store.ticket("gig", f"{at:t>22}")

        tasks = [asyncio.create_task(call(at)) for at in range(60)]
        while pending := [task for task in tasks if not task.done()]:
            seeded.choice(pending).cancel()
            await asyncio.sleep(seeded.uniform(0, 0.004))
        await asyncio.wait(tasks)
        end = (await store.cursors())["gig"].cursor.sequence
        while (folded := await store.fold({"gig": end}, 10**6)).left:
            assert folded.alarms == []
        assert {record.id for record in await everything(store)} == {f"{n:t>22}" for n in range(2, end + 1)}


async def test_what_a_cancelled_caller_had_begun_is_carried_to_its_end(postgres: Any, start_sql: Any) -> None:
    store = open_store(url := postgres.fresh())
    await store.open()
    call = asyncio.create_task(store.set_position("ann", "gig", Cursor(1, 7)))
    for _ in range(3):
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await store.close()
    assert start_sql(url, "SELECT * FROM positions") == [("ann", "gig", 1, 7)]


async def test_two_that_copy_the_same_slots_in_any_order_wait_for_each_other(postgres: Any) -> None:
    """A deadlock would be an error of the server after a second."""
    url = postgres.fresh()
    names = [f"s{at}" for at in range(40)]
    async with opened(url) as one, opened(url) as two:
        for name in names:
            await begin(one, name)

        async def copy(store: Store, order: list[str], moved: list[int]) -> None:
            for _ in range(15):
                cursors = await store.cursors()
                entries = {name: reserved(cursors[name].cursor.sequence + 1, 1) for name in order}
                try:
                    await store.append([Copied(name, cursors[name].cursor, [entries[name]]) for name in order])
                except CursorMoved:
                    moved.append(1)
                await store.fold({name: entries[name].sequence for name in order}, 10)

        moved: list[int] = []
        await asyncio.gather(copy(one, names, moved), copy(two, names[::-1], moved))
        copied = {each.cursor.sequence for each in (await one.cursors()).values()}
        assert copied == {1 + 30 - len(moved)}
