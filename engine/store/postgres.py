"""The PostgreSQL store: whole columns at a time, one connection that writes and a few that read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import asyncpg

from holdfast.engine.errors import ConfigurationError
from holdfast.engine.records import SHARD_MARK, Definition, Entry, Record
from holdfast.engine.store import (
    Copied,
    Cursor,
    CursorMoved,
    Folded,
    Progress,
    Standing,
    StoredSale,
    StoreError,
    TicketQuery,
    rows,
)
from holdfast.engine.store.projection import (
    SALE_LINE_LIKE,
    Begun,
    Ended,
    changed,
    conflicts,
    definitions,
    read,
    transfers,
)
from holdfast.engine.values import Status

log = logging.getLogger("holdfast.store")

T = TypeVar("T")

#: Connections that read, for each process. Answers take a millisecond, and a server has 100 connections by default.
READERS = 3

#: Seconds to wait for a new connection.
CONNECT_S = 5.0

#: Milliseconds for which the server works on one statement before it gives up. The longest is what all buyers of a
#: slot have: a second for each million of tickets.
STATEMENT_MS = 15_000

#: Seconds to wait for the answer to a statement, or for a free connection: more than the server gives itself, so that
#: a server that lives says itself what is wrong.
ANSWER_S = STATEMENT_MS / 1000 + 2

#: Milliseconds to wait for a row that another process has locked: SQLite's `BUSY_MS`.
LOCK_MS = 5_000

#: Milliseconds after which the server ends the transaction of a process that has stopped in the middle of it, and with
#: it its locks. We are idle in one for as long as reading a step of the ledger takes, some 50 ms.
IDLE_MS = 10_000

#: What our sessions have otherwise than the server's defaults. Every statement below is a few look-ups in an index.
#: The planner would read whole tables where they are small or were never analysed, keep that plan, and a stampede makes
#: millions of rows of them within minutes: it is not asked.
SETTINGS = {
    "application_name": "holdfast",
    "statement_timeout": str(STATEMENT_MS),
    "lock_timeout": str(LOCK_MS),
    "idle_in_transaction_session_timeout": str(IDLE_MS),
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

#: Locks under which the schema is made or migrated: this number (the letters `hold`), and a hash of the schema's name.
MIGRATION_LOCK = 0x686F6C64

_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_AT_ONE_MOMENT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

#: What leads from each version of the schema to the next, the first from nothing. Texts are compared byte by byte, as
#: SQLite does. The ids in a ledger do not compress, so it is not tried. Pages of tickets are filled by less than half:
#: then their ends find room beside their beginnings and touch no index, and folding takes a third less.
_MIGRATIONS = (
    """
CREATE TABLE kept (name text COLLATE "C" PRIMARY KEY, value text NOT NULL);
CREATE TABLE sales (
    id text COLLATE "C" PRIMARY KEY, definition text, pending text, created_at bigint NOT NULL
);
CREATE TABLE slots (
    slot text COLLATE "C" PRIMARY KEY, sale text COLLATE "C" NOT NULL REFERENCES sales (id),
    epoch bigint NOT NULL, sequence bigint NOT NULL, dropped bigint NOT NULL DEFAULT 0,
    folded bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE ledger (
    slot text COLLATE "C" NOT NULL, sequence bigint NOT NULL, epoch bigint NOT NULL, at bigint NOT NULL,
    transitions text COLLATE "C" NOT NULL,
    PRIMARY KEY (slot, sequence)
);
ALTER TABLE ledger ALTER transitions SET STORAGE EXTERNAL;
CREATE TABLE positions (
    listener text COLLATE "C" NOT NULL, slot text COLLATE "C" NOT NULL, epoch bigint NOT NULL, sequence bigint NOT NULL,
    PRIMARY KEY (listener, slot)
);
CREATE TABLE alarms (at bigint NOT NULL, slot text COLLATE "C" NOT NULL, detail text NOT NULL);
CREATE TABLE tickets (
    slot text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, status text COLLATE "C" NOT NULL,
    lines text COLLATE "C" NOT NULL, buyer text COLLATE "C" NOT NULL,
    reserved_at bigint NOT NULL, expires_at bigint NOT NULL, ended_at bigint, sequence bigint NOT NULL DEFAULT 0,
    operation text COLLATE "C" NOT NULL DEFAULT '', reference text COLLATE "C" NOT NULL DEFAULT '',
    PRIMARY KEY (slot, id)
) WITH (fillfactor = 45);
CREATE INDEX tickets_by_time ON tickets (slot, reserved_at, id);
CREATE INDEX tickets_by_buyer ON tickets (slot, buyer, reserved_at, id);
CREATE VIEW purchases AS
    SELECT t.slot || '.' || t.id AS ticket, s.sale AS sale, t.lines AS lines, t.reference AS reference,
           t.reserved_at AS reserved_at, t.ended_at AS purchased_at
    FROM tickets t JOIN slots s ON s.slot = t.slot WHERE t.status = 'purchased';
""",
    # What shards have lent and borrowed.
    'ALTER TABLE slots ADD COLUMN transfers text COLLATE "C"',
)

#: The version of the schema, in `holdfast_schema`.
SCHEMA_VERSION = len(_MIGRATIONS)

_ENTRY = "epoch, sequence, at, transitions"
_SKUS = "SELECT s.definition, s.pending FROM slots c JOIN sales s ON s.id = c.sale WHERE c.slot = $1"

#: In the order of their names, so that two processes that write to some of the same slots wait and do not block.
_LOCK_SLOTS = "SELECT slot, epoch, sequence, folded FROM slots WHERE slot = ANY($1) ORDER BY slot FOR UPDATE"

#: What of a slot's ledger is to be folded next: up to `upto`, but not more entries than it takes to reach `wanted`.
_TO_FOLD = f"""
SELECT w.slot, l.* FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS w (slot, after, wanted, upto),
LATERAL (
    SELECT {_ENTRY} FROM ledger WHERE ledger.slot = w.slot AND sequence > w.after AND sequence <= least(
        w.upto, (SELECT min(sequence) FROM ledger WHERE ledger.slot = w.slot AND sequence >= w.wanted)
    )
) AS l ORDER BY w.slot, l.sequence
"""

_BEGIN_TICKETS = f"""
WITH begun AS (
    INSERT INTO tickets (slot, id, lines, buyer, reserved_at, expires_at, status)
    SELECT *, '{Status.RESERVED}'
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
    ON CONFLICT DO NOTHING RETURNING slot
) SELECT slot, count(*) FROM begun GROUP BY slot
"""

_END_TICKETS = f"""
WITH ended AS (
    UPDATE tickets t SET
        status = e.status, ended_at = coalesce(e.ended_at, t.expires_at), sequence = e.sequence,
        operation = e.operation, reference = e.reference
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[])
        AS e (slot, id, status, ended_at, sequence, operation, reference)
    WHERE t.slot = e.slot AND t.id = e.id AND t.status = '{Status.RESERVED}' RETURNING t.slot
) SELECT slot, count(*) FROM ended GROUP BY slot
"""


class PostgresStore:
    """A store in the current schema of a PostgreSQL database.

    What a method was doing is carried to its end when its caller is cancelled, as SQLite's thread does, so that no
    connection is left in the middle of something. A commit whose answer is lost may have happened or not, and each
    method may then simply be called again: appending and folding compare where they stand, and what the others write
    is the same twice.

    Parameters
    ----------
    url: `postgresql://user:password@host:port/database?...`, as libpq and asyncpg read it.

    Raises
    ------
    ConfigurationError: this can be no such address.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = _name(url)
        self._writer: Any = None
        self._readers: Any = None
        self._under_way: set[asyncio.Task[Any]] = set()
        #: Alarms of a step of folding whose commit had no answer.
        self._untold: list[str] = []

    async def open(self) -> None:
        self._writer, self._readers = await self._pool(1), await self._pool(READERS)
        try:
            await self._on(self._writer, None, self._look_at_server)
        except ValueError:  # of asyncpg's reading of the address; its sentences quote what stands in it
            raise ConfigurationError(_no_address()) from None
        await self._write(_migrate)

    async def _pool(self, size: int) -> Any:
        async def as_it_is(connection: Any) -> None:
            """We leave nothing behind that would have to be reset."""

        return await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=size,
            init=_durable,
            reset=as_it_is,
            timeout=CONNECT_S,
            command_timeout=ANSWER_S,
            server_settings=SETTINGS,
        )

    async def _look_at_server(self, connection: Any) -> None:
        encoding = await connection.fetchval("SHOW server_encoding")
        if encoding != "UTF8":
            raise StoreError(
                f"the store {self._name} has the encoding {encoding}: make a database with ENCODING 'UTF8'"
            )
        for setting in ("fsync", "full_page_writes"):
            if await connection.fetchval(f"SHOW {setting}") != "on":
                log.critical(
                    "PURCHASES MAY BE LOST: the PostgreSQL server of the store %s runs with %s = off, so that a power "
                    "failure may destroy what it has confirmed; switch it on",
                    self._name,
                    setting,
                )

    async def close(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way)
        for pool in (self._writer, self._readers):
            if pool is not None:
                try:
                    async with asyncio.timeout(CONNECT_S):
                        await pool.close()
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pool.terminate()

    async def _on(self, pool: Any, begin: str | None, work: Callable[[Any], Awaitable[T]]) -> T:
        """Does this on a connection, in a transaction that begins so; to its end, also when the caller is cancelled."""

        async def do() -> T:
            async with pool.acquire(timeout=ANSWER_S) as connection:
                try:
                    if begin is None:
                        return await work(connection)
                    await connection.execute(begin)
                    result = await work(connection)
                    await connection.execute("COMMIT")
                    return result
                except BaseException as error:
                    await _tidy(connection, error)
                    raise

        return await self._to_the_end(do())

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncpg.PostgresError as error:
            raise StoreError(f"the store {self._name} refuses: {_sentence(error)}") from error
        except asyncpg.ClientConfigurationError:
            raise
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise StoreError(f"the store {self._name} does not answer: {_sentence(error)}") from error

    async def _write(self, work: Callable[[Any], Awaitable[T]]) -> T:
        return await self._on(self._writer, _WRITE, work)

    async def _read(self, query: str, *values: Any) -> list[Any]:
        return await self._on(self._readers, None, lambda connection: connection.fetch(query, *values))

    async def _look(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Of one moment: what is folded between two statements would be missing from both."""
        return await self._on(self._readers, _AT_ONE_MOMENT, work)

    async def kept(self, name: str, make: Callable[[], str]) -> str:
        async def keep(connection: Any) -> str:
            query = "SELECT value FROM kept WHERE name = $1"
            value = await connection.fetchval(query, name)
            if value is None:
                await connection.execute("INSERT INTO kept VALUES ($1, $2) ON CONFLICT DO NOTHING", name, make())
                value = await connection.fetchval(query, name)
            return str(value)

        return await self._write(keep)

    async def peek(self, name: str) -> str | None:
        found = await self._read("SELECT value FROM kept WHERE name = $1", name)
        return str(found[0][0]) if found else None

    async def begin_sale(self, definition: Definition) -> StoredSale:
        async def begin(connection: Any) -> StoredSale:
            made = await connection.fetchval(
                "INSERT INTO sales VALUES ($1, NULL, $2, $3) ON CONFLICT DO NOTHING RETURNING id",
                definition.id,
                definition.json(),
                int(time.time() * 1000),
            )
            if made is None:
                return rows.stored_sale(await connection.fetchrow(_named(definition.id), definition.id))
            slots = definition.slots()
            await connection.execute(
                "INSERT INTO slots (slot, sale, epoch, sequence) SELECT slot, $2, 0, 0 FROM unnest($1::text[]) AS slot",
                list(slots),
                definition.id,
            )
            return StoredSale(definition.id, None, definition, Cursor(0, 0), 0, slots[0])

        return await self._write(begin)

    async def begin_amendment(self, definition: Definition) -> None:
        query = "UPDATE sales SET pending = $1 WHERE id = $2"
        await self._write(lambda connection: connection.execute(query, definition.json(), definition.id))

    async def settle(self, sale: str, definition: Definition | None) -> None:
        async def settle(connection: Any) -> None:
            if definition is None:
                query = "UPDATE sales SET pending = NULL WHERE id = $1 AND definition IS NOT NULL"
                await connection.execute(query, sale)
            else:
                await _set_definitions(connection, [definition])

        await self._write(settle)

    async def sale(self, name: str) -> StoredSale | None:
        found = await self._read(_named(name), name)
        return rows.stored_sale(found[0]) if found else None

    async def sales(self, after: str, limit: int) -> list[StoredSale]:
        query = f"SELECT {rows.SALE} FROM {rows.FIRST_SLOT} WHERE s.id > $1 ORDER BY s.id LIMIT $2"
        return [rows.stored_sale(row) for row in await self._read(query, _text(after), limit)]

    async def slots(self, after: str, limit: int) -> list[StoredSale]:
        query = f"SELECT {rows.SALE} FROM {rows.EVERY_SLOT} WHERE c.slot > $1 ORDER BY c.slot LIMIT $2"
        return [rows.stored_sale(row) for row in await self._read(query, _text(after), limit)]

    async def cursors(self) -> dict[str, Progress]:
        found = await self._read(f"SELECT {rows.PROGRESS}, slot FROM slots")
        return {slot: rows.progress(numbers) for *numbers, slot in found}

    async def append(self, copied: Sequence[Copied]) -> None:
        await self._write(lambda connection: _append(connection, copied))

    async def fold(self, upto: Mapping[str, int], limit: int) -> Folded:
        alarms: list[str] = []
        try:
            left = await self._write(lambda connection: _fold(connection, upto, limit, alarms))
        except StoreError:
            # It may have been committed, and then nobody finds them again. If not, they are found twice.
            self._untold += alarms
            raise
        told, self._untold = dict.fromkeys(self._untold + alarms), []
        return Folded(left, list(told))

    async def set_dropped(self, slot: str, sequence: int) -> None:
        query = "UPDATE slots SET dropped = $1 WHERE slot = $2"
        await self._write(lambda connection: connection.execute(query, sequence, slot))

    async def ticket(self, slot: str, id: str, *, pending: bool = True) -> Record | None:
        query = f"SELECT {rows.TICKET} FROM tickets WHERE slot = $1 AND id = $2"
        # Other tickets may name the same characters, as their buyer or across two names.
        later = (
            f"SELECT {_ENTRY} FROM ledger WHERE slot = $1 AND strpos(transitions, $2) > 0"
            " AND sequence > (SELECT folded FROM slots WHERE slot = $1) ORDER BY sequence"
        )

        async def look(connection: Any) -> Record | None:
            found = await _records(connection, slot, query, slot, id)
            record = found[0] if found else None
            if not pending or (record is not None and record.status is not Status.RESERVED):
                return record
            return changed(record, id, [Entry(*row) for row in await connection.fetch(later, slot, id)])

        return await (self._look(look) if pending else self._on(self._readers, None, look))

    async def tickets(self, query: TicketQuery) -> list[Record]:
        reserved_at, id = query.after
        where, values = "slot = $1 AND (reserved_at, id) > ($2, $3)", [query.slot, reserved_at, _text(id), query.limit]
        for column, value in (("buyer", query.buyer), ("status", query.status)):
            if value is not None:
                values.append(value)
                where += f" AND {column} = ${len(values)}"
        text = f"SELECT {rows.TICKET} FROM tickets WHERE {where} ORDER BY reserved_at, id LIMIT $4"
        return await self._records(query.slot, text, *values)

    async def records(self, slot: str, ids: Sequence[str]) -> dict[str, Record]:
        text = f"SELECT {rows.TICKET} FROM tickets WHERE slot = $1 AND id = ANY($2)"
        return {record.id: record for record in await self._records(slot, text, slot, list(ids))}

    async def _records(self, slot: str, query: str, *values: Any) -> list[Record]:
        return await self._on(self._readers, None, lambda connection: _records(connection, slot, query, *values))

    async def standing(self, slot: str) -> Standing:
        units = (
            "SELECT buyer, lines, status, count(*) FROM tickets WHERE slot = $1"
            f" AND status IN ('{Status.RESERVED}', '{Status.PURCHASED}') GROUP BY buyer, lines, status"
        )

        async def look(connection: Any) -> Standing:
            now = await connection.fetchrow(f"SELECT {rows.PROGRESS} FROM slots WHERE slot = $1", slot)
            found = await connection.fetch(units, slot)
            return Standing(rows.progress(now), rows.units(found, await _skus(connection, slot)))

        return await self._look(look)

    async def ledger(self, slot: str, after: Cursor, limit: int) -> list[Entry]:
        # A reader may have had transitions that were then lost: their epoch ends here before its position.
        last = "SELECT sequence FROM ledger WHERE slot = $1 AND epoch <= $3 ORDER BY sequence DESC LIMIT 1"
        query = (
            f"SELECT {_ENTRY} FROM ledger WHERE slot = $1 AND sequence > least($2, coalesce(({last}), 0))"
            " ORDER BY sequence LIMIT $4"
        )
        return [Entry(*row) for row in await self._read(query, slot, after.sequence, after.epoch, limit)]

    async def amended(self, slot: str) -> Definition | None:
        query = (
            f"SELECT {_ENTRY} FROM ledger WHERE slot = $1 AND (transitions LIKE $2 OR transitions LIKE $3)"
            " ORDER BY sequence DESC LIMIT 1"
        )
        told = definitions(Entry(*row) for row in await self._read(query, slot, *SALE_LINE_LIKE))
        return told[-1] if told else None

    async def position(self, listener: str, slot: str) -> Cursor | None:
        query = "SELECT epoch, sequence FROM positions WHERE listener = $1 AND slot = $2"
        found = await self._read(query, listener, slot)
        return Cursor(*found[0]) if found else None

    async def set_position(self, listener: str, slot: str, cursor: Cursor) -> None:
        query = (
            "INSERT INTO positions VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (listener, slot) DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence"
        )
        values = (listener, slot, cursor.epoch, cursor.sequence)
        await self._write(lambda connection: connection.execute(query, *values))


# -- addresses, connections and what goes wrong with them --------------------------------------------------------------


def _no_address() -> str:
    return (
        "store: this is no address of a store; give postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
        "and what is neither letter nor digit in the password as %XX (@ is %40)"
    )


def _name(url: str) -> str:
    """The database and its host for sentences, without user and password.

    Raises
    ------
    ConfigurationError: the address cannot be told from a password in it.
    """
    try:
        parts: SplitResult = urlsplit(url)
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    except ValueError:
        raise ConfigurationError(_no_address()) from None
    auth, _, host = parts.netloc.rpartition("@")
    # A password with a sign of its own would go on behind it.
    if "@" in auth or "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise ConfigurationError(_no_address())
    database = unquote(parts.path.lstrip("/")) or asked.get("dbname") or asked.get("database") or "of the user's name"
    return f"{database} on {host or asked.get('host') or 'this machine'}"


def _text(position: str) -> str:
    """A position that a client names, without what PostgreSQL has no text for: no id has a NUL, so that what follows it
    is the same."""
    return position.partition("\0")[0]


async def _durable(connection: Any) -> None:
    """A commit is on disk when it returns, whatever the server or the role says: by then it may be trimmed from Redis.
    What waits for more than that, such as a standby, goes on doing so."""
    await connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )


async def _tidy(connection: Any, error: BaseException) -> None:
    """Leaves a connection that others can use, or none. One that was lost has left the pool, and cannot be asked."""
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        if isinstance(error, (asyncpg.PostgresError, CursorMoved, StoreError)):
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            return
    with contextlib.suppress(asyncpg.InterfaceError):
        # Without a word: who does not answer would not answer to that, either.
        connection.terminate()


def _sentence(error: BaseException) -> str:
    """Why, on one line."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.partition("\n")[0] or type(error).__name__


# -- statements, inside the caller's transaction -----------------------------------------------------------------------


async def _migrate(connection: Any) -> None:
    schema = await connection.fetchval("SELECT current_schema()")
    if schema is None:
        raise StoreError("the store has no schema to be in: create the one that search_path names")
    await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", MIGRATION_LOCK, schema)
    table = f'"{schema.replace(chr(34), chr(34) * 2)}".holdfast_schema'
    known = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)
    if not known:
        await connection.execute(f"CREATE TABLE {table} (version integer NOT NULL)")
        await connection.execute(f"INSERT INTO {table} VALUES (0)")
    version = await connection.fetchval(f"SELECT version FROM {table}")
    if version > SCHEMA_VERSION:
        raise StoreError(f"the store has schema {version}, and this Holdfast knows {SCHEMA_VERSION}: use a newer one")
    if version < SCHEMA_VERSION:
        for migration in _MIGRATIONS[version:]:
            await connection.execute(migration)
        await connection.execute(f"UPDATE {table} SET version = $1", SCHEMA_VERSION)


def _named(name: str) -> str:
    return f"SELECT {rows.SALE} FROM {rows.named(name)} = $1"


async def _set_definitions(connection: Any, told: Sequence[Definition], *, by_ledger: bool = False) -> None:
    """Takes up definitions, in the order in which they were told."""
    query = "SELECT id, definition, pending FROM sales WHERE id = ANY($1) ORDER BY id FOR UPDATE"
    have = {id: texts for id, *texts in await connection.fetch(query, [definition.id for definition in told])}
    for definition in told:
        if definition.id in have:
            have[definition.id] = list(rows.settled(definition, *have[definition.id], by_ledger=by_ledger))
    await connection.execute(
        "UPDATE sales SET definition = d.definition, pending = d.pending"
        " FROM unnest($1::text[], $2::text[], $3::text[]) AS d (id, definition, pending) WHERE sales.id = d.id",
        list(have),
        *([texts[at] for texts in have.values()] for at in range(2)),
    )


async def _skus(connection: Any, slot: str) -> list[str]:
    return rows.skus(await connection.fetchrow(_SKUS, slot))


async def _records(connection: Any, slot: str, query: str, *values: Any) -> list[Record]:
    """What a query for tickets finds. Items are only ever added: the skus that are read after it have them all."""
    found = await connection.fetch(query, *values)
    return rows.records(found, await _skus(connection, slot)) if found else []


async def _append(connection: Any, copied: Sequence[Copied]) -> None:
    locked = await connection.fetch(_LOCK_SLOTS, [stretch.slot for stretch in copied])
    cursors = {slot: Cursor(epoch, sequence) for slot, epoch, sequence, _ in locked}
    for stretch in copied:
        if cursors.get(stretch.slot) != stretch.after:
            raise CursorMoved(stretch.slot)
        cursors[stretch.slot] = Cursor(stretch.entries[-1].epoch, stretch.entries[-1].sequence)
    await connection.execute(
        "UPDATE slots SET epoch = c.epoch, sequence = c.sequence"
        " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS c (slot, epoch, sequence) WHERE slots.slot = c.slot",
        list(cursors),
        [cursor.epoch for cursor in cursors.values()],
        [cursor.sequence for cursor in cursors.values()],
    )
    entries = [entry for stretch in copied for entry in stretch.entries]
    await connection.execute(
        "INSERT INTO ledger (slot, epoch, sequence, at, transitions)"
        " SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])",
        [stretch.slot for stretch in copied for _ in stretch.entries],
        *([getattr(entry, field) for entry in entries] for field in ("epoch", "sequence", "at", "text")),
    )
    # Not left to folding: they name the items of the lines that follow, and an amendment must not wait.
    if told := definitions(entries):
        await _set_definitions(connection, told, by_ledger=True)
    moved = {stretch.slot: transfers(stretch.entries) for stretch in copied if SHARD_MARK in stretch.slot}
    if any(moved.values()):
        await connection.execute(
            "UPDATE slots SET transfers = coalesce(m.transfers, slots.transfers)"
            " FROM unnest($1::text[], $2::text[]) AS m (slot, transfers) WHERE slots.slot = m.slot",
            list(moved),
            list(moved.values()),
        )


async def _fold(connection: Any, upto: Mapping[str, int], room: int, alarms: list[str]) -> int:
    """Folds so many transitions; how many are left. The alarms are added to those given."""
    left = 0
    wanted: dict[str, tuple[int, int]] = {}
    # Under the locks, where nobody else moves them.
    for slot, _, _, folded in await connection.fetch(_LOCK_SLOTS, list(upto)):
        step = min(room, upto[slot] - folded)
        if step > 0:
            wanted[slot] = (folded, folded + step)
            room -= step
        else:
            left += max(0, upto[slot] - folded)
    if not wanted:
        return left
    ledgers: dict[str, list[Entry]] = {slot: [] for slot in wanted}
    after, want = ([both[at] for both in wanted.values()] for at in range(2))
    for slot, *entry in await connection.fetch(_TO_FOLD, list(wanted), after, want, [upto[slot] for slot in wanted]):
        ledgers[slot].append(Entry(*entry))
    last = {slot: entries[-1].sequence if entries else wanted[slot][0] for slot, entries in ledgers.items()}
    # Where they end before what was wanted, there is nothing up to the end.
    left += sum(upto[slot] - last[slot] for slot, (_, want) in wanted.items() if last[slot] >= want)
    await connection.execute(
        "UPDATE slots SET folded = f.folded FROM unnest($1::text[], $2::bigint[]) AS f (slot, folded)"
        " WHERE slots.slot = f.slot",
        list(last),
        list(last.values()),
    )
    await _project(connection, ledgers, alarms)
    return left


async def _project(connection: Any, ledgers: Mapping[str, Sequence[Entry]], alarms: list[str]) -> None:
    """Brings the tickets of these entries up to date."""
    told = {slot: read(entries) for slot, entries in ledgers.items() if entries}
    skus = {
        slot: rows.skus(texts)
        for slot, *texts in await connection.fetch(
            "SELECT c.slot, s.definition, s.pending FROM slots c JOIN sales s ON s.id = c.sale WHERE c.slot = ANY($1)",
            list(told),
        )
    }
    known, closed = await _begin(connection, told, skus), await _end(connection, told)
    for slot, (begun, ended) in told.items():
        twice = len(begun) - known.get(slot, 0)
        if twice or closed.get(slot, 0) != len(ended):
            found = await _conflicts(connection, slot, ended, twice)
            alarms += found


async def _begin(
    connection: Any, told: Mapping[str, tuple[list[Begun], list[Ended]]], skus: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Makes tickets; how many of each slot."""
    slots: list[str] = []
    lines: list[str] = []
    every: list[Begun] = []
    for slot, (begun, _) in told.items():
        readable = rows.Readable(skus[slot])
        slots += [slot] * len(begun)
        lines += [readable[each[1]] for each in begun]
        every += begun
    if not every:
        return {}
    ids, _, buyers, times, deadlines = zip(*every, strict=True)
    return dict(await connection.fetch(_BEGIN_TICKETS, slots, ids, lines, buyers, times, deadlines))


async def _end(connection: Any, told: Mapping[str, tuple[list[Begun], list[Ended]]]) -> dict[str, int]:
    """Ends tickets; how many of each slot."""
    slots: list[str] = []
    every: list[Ended] = []
    for slot, (_, ended) in told.items():
        # Of two ends of one ticket the first holds.
        first = {each.id: each for each in reversed(ended)}
        slots += [slot] * len(first)
        every += first.values()
    if not every:
        return {}
    ids, statuses, *others = zip(*every, strict=True)
    return dict(await connection.fetch(_END_TICKETS, slots, ids, list(map(str, statuses)), *others))


async def _conflicts(connection: Any, slot: str, ended: Sequence[Ended], begun_twice: int) -> list[str]:
    """Names and keeps the transitions that contradict what is stored."""
    query = "SELECT id, status, sequence FROM tickets WHERE slot = $1 AND id = ANY($2)"
    found = await connection.fetch(query, slot, list({end.id for end in ended}))
    # As in the other store, by ticket.
    alarms = conflicts(slot, sorted(ended, key=attrgetter("id")), begun_twice, {id: tuple(was) for id, *was in found})
    query = "INSERT INTO alarms SELECT $1, $2, * FROM unnest($3::text[])"
    await connection.execute(query, int(time.time() * 1000), slot, alarms)
    return alarms
