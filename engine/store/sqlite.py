"""The SQLite store: write-ahead log, full fsync, one thread that writes and one that reads."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

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
from holdfast.engine.store.projection import SALE_LINE_LIKE, Ended, changed, conflicts, definitions, read, transfers
from holdfast.engine.values import Status

T = TypeVar("T")

#: The version of the schema below, in `PRAGMA user_version`.
SCHEMA_VERSION = 3

#: Milliseconds to wait for another process' transaction (a second snapshotter, a backup) before giving up.
BUSY_MS = 5_000

#: KiB of pages that the writer keeps. Tickets and buyers are random, so that folding touches any page of two indexes,
#: 110 bytes a ticket: 64 MB keep those of half a million tickets from being read again and again.
CACHE_KIB = 64 * 1024

#: Pages (4 KB) in the write-ahead log after which they are copied into the file, for which the writer stands still. A
#: second of a stampede appends 300, and 2,000 transitions folded into 200,000 tickets write 3,000, often the same ones
#: again. With SQLite's 1,000 folding takes a tenth more CPU; with four times as many no less, and it pauses longer.
CHECKPOINT_PAGES = 4096

_TICKETS = """CREATE TABLE tickets (
    slot TEXT NOT NULL, id TEXT NOT NULL, status TEXT NOT NULL, lines TEXT NOT NULL, buyer TEXT NOT NULL,
    reserved_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, ended_at INTEGER, sequence INTEGER NOT NULL DEFAULT 0,
    operation TEXT NOT NULL DEFAULT '', reference TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX tickets_by_id ON tickets (slot, id);
CREATE INDEX tickets_by_time ON tickets (slot, reserved_at);
CREATE INDEX tickets_by_buyer ON tickets (slot, buyer, reserved_at);
CREATE VIEW purchases AS
    SELECT t.slot || '.' || t.id AS ticket, s.sale AS sale, t.lines AS lines, t.reference AS reference,
           t.reserved_at AS reserved_at, t.ended_at AS purchased_at
    FROM tickets t JOIN slots s ON s.slot = t.slot WHERE t.status = 'purchased'"""

_SCHEMA = f"""
CREATE TABLE kept (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sales (
    id TEXT PRIMARY KEY, definition TEXT, pending TEXT, created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE slots (
    slot TEXT PRIMARY KEY, sale TEXT NOT NULL REFERENCES sales (id),
    epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, dropped INTEGER NOT NULL DEFAULT 0,
    folded INTEGER NOT NULL DEFAULT 0, transfers TEXT
) WITHOUT ROWID;
CREATE TABLE ledger (
    slot TEXT NOT NULL, sequence INTEGER NOT NULL, epoch INTEGER NOT NULL, at INTEGER NOT NULL,
    transitions TEXT NOT NULL,
    PRIMARY KEY (slot, sequence)
) WITHOUT ROWID;
CREATE TABLE positions (
    listener TEXT NOT NULL, slot TEXT NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
    PRIMARY KEY (listener, slot)
) WITHOUT ROWID;
CREATE TABLE alarms (at INTEGER NOT NULL, slot TEXT NOT NULL, detail TEXT NOT NULL);
{_TICKETS};
"""

#: From version 1, which kept tickets up to date with every append, and as a table in the order of their random ids.
_FROM_1 = f"""
ALTER TABLE slots ADD COLUMN folded INTEGER NOT NULL DEFAULT 0;
UPDATE slots SET folded = sequence;
DROP VIEW purchases;
DROP INDEX tickets_by_time;
DROP INDEX tickets_by_buyer;
ALTER TABLE tickets RENAME TO tickets_1;
{_TICKETS};
INSERT INTO tickets SELECT * FROM tickets_1 ORDER BY slot, reserved_at, id;
DROP TABLE tickets_1;
"""

#: From version 2, which knew no shards.
_FROM_2 = """
ALTER TABLE slots ADD COLUMN transfers TEXT;
"""

#: What leads from each version of the schema to the present one.
_MIGRATIONS = (_SCHEMA, _FROM_1 + _FROM_2, _FROM_2)


class SqliteStore:
    """A store in one file.

    Parameters
    ----------
    path: of the file; made (readable by its owner only) when it is not there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # One thread each: SQLite has one writer, and readers must not wait behind its fsync.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="holdfast-store-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="holdfast-store-read")
        self._write_db: sqlite3.Connection | None = None
        self._read_db: sqlite3.Connection | None = None

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except sqlite3.Error as error:
            raise StoreError(f"the store {Path(self.path).name} does not answer: {error}") from error

    async def open(self) -> None:
        def connect_both() -> None:
            self._write_db = self._connect()
            self._write_db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._write_db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            self._migrate(self._write_db)
            self._read_db = self._connect()

        await self._on(self._writer, connect_both)

    def _connect(self) -> sqlite3.Connection:
        if not os.path.exists(self.path):
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
                # The file's name has to outlive a power failure as well as what is in it.
                folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            except OSError as error:
                raise StoreError(f"the store {self.path} cannot be made: {error.strerror}") from error
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=BUSY_MS / 1000)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            # Every commit is on disk when it returns: by then it may be trimmed from Redis.
            db.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:
            db.close()
            raise
        return db

    @staticmethod
    def _migrate(db: sqlite3.Connection) -> None:
        with _transaction(db):
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"the store has schema {version}, and this Holdfast knows {SCHEMA_VERSION}: use a newer one"
                )
            if version < SCHEMA_VERSION:
                for statement in _MIGRATIONS[version].split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    async def close(self) -> None:
        def close(db: sqlite3.Connection | None) -> None:
            if db is not None:
                db.close()

        await self._on(self._reader, lambda: close(self._read_db))
        await self._on(self._writer, lambda: close(self._write_db))
        self._reader.shutdown()
        self._writer.shutdown()

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def in_transaction() -> T:
            assert self._write_db is not None
            with _transaction(self._write_db):
                return work(self._write_db)

        return await self._on(self._writer, in_transaction)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def in_transaction() -> T:
            assert self._read_db is not None
            # Of one moment: what is folded between two statements would be missing from both.
            with _transaction(self._read_db, "DEFERRED"):
                return work(self._read_db)

        return await self._on(self._reader, in_transaction)

    async def kept(self, name: str, make: Callable[[], str]) -> str:
        def keep(db: sqlite3.Connection) -> str:
            row = db.execute("SELECT value FROM kept WHERE name = ?", (name,)).fetchone()
            if row is None:
                row = (make(),)
                db.execute("INSERT INTO kept VALUES (?, ?)", (name, row[0]))
            return str(row[0])

        return await self._write(keep)

    async def peek(self, name: str) -> str | None:
        def read(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT value FROM kept WHERE name = ?", (name,)).fetchone()
            return str(row[0]) if row else None

        return await self._read(read)

    async def begin_sale(self, definition: Definition) -> StoredSale:
        def begin(db: sqlite3.Connection) -> StoredSale:
            known = _sale(db, definition.id)
            if known is not None:
                return known
            now = int(time.time() * 1000)
            db.execute("INSERT INTO sales VALUES (?, NULL, ?, ?)", (definition.id, definition.json(), now))
            slots = definition.slots()
            db.executemany(
                "INSERT INTO slots (slot, sale, epoch, sequence) VALUES (?, ?, 0, 0)",
                [(slot, definition.id) for slot in slots],
            )
            return StoredSale(definition.id, None, definition, Cursor(0, 0), 0, slots[0])

        return await self._write(begin)

    async def begin_amendment(self, definition: Definition) -> None:
        values = (definition.json(), definition.id)
        await self._write(lambda db: db.execute("UPDATE sales SET pending = ? WHERE id = ?", values))

    async def settle(self, sale: str, definition: Definition | None) -> None:
        def settle(db: sqlite3.Connection) -> None:
            if definition is None:
                db.execute("UPDATE sales SET pending = NULL WHERE id = ? AND definition IS NOT NULL", (sale,))
            else:
                _set_definition(db, definition)

        await self._write(settle)

    async def sale(self, name: str) -> StoredSale | None:
        return await self._read(lambda db: _sale(db, name))

    async def sales(self, after: str, limit: int) -> list[StoredSale]:
        query = f"SELECT {rows.SALE} FROM {rows.FIRST_SLOT} WHERE s.id > ? ORDER BY s.id LIMIT ?"
        return await self._read(lambda db: [rows.stored_sale(row) for row in db.execute(query, (after, limit))])

    async def slots(self, after: str, limit: int) -> list[StoredSale]:
        query = f"SELECT {rows.SALE} FROM {rows.EVERY_SLOT} WHERE c.slot > ? ORDER BY c.slot LIMIT ?"
        return await self._read(lambda db: [rows.stored_sale(row) for row in db.execute(query, (after, limit))])

    async def cursors(self) -> dict[str, Progress]:
        query = f"SELECT slot, {rows.PROGRESS} FROM slots"
        return await self._read(lambda db: {row[0]: rows.progress(row[1:]) for row in db.execute(query)})

    async def append(self, copied: Sequence[Copied]) -> None:
        def append(db: sqlite3.Connection) -> None:
            for stretch in copied:
                _append(db, stretch)

        await self._write(append)

    async def fold(self, upto: Mapping[str, int], limit: int) -> Folded:
        def fold(db: sqlite3.Connection) -> Folded:
            left, room = 0, limit
            alarms: list[str] = []
            for slot, end in upto.items():
                folded, more, found = _fold(db, slot, end, room)
                room -= folded
                left += more
                alarms += found
            return Folded(left, alarms)

        return await self._write(fold)

    async def set_dropped(self, slot: str, sequence: int) -> None:
        await self._write(lambda db: db.execute("UPDATE slots SET dropped = ? WHERE slot = ?", (sequence, slot)))

    async def ticket(self, slot: str, id: str, *, pending: bool = True) -> Record | None:
        query = f"SELECT {rows.TICKET} FROM tickets WHERE slot = ? AND id = ?"
        # Other tickets may name the same characters, as their buyer or across two names.
        later = (
            "SELECT epoch, sequence, at, transitions FROM ledger WHERE slot = ?"
            " AND sequence > (SELECT folded FROM slots WHERE slot = ?) AND instr(transitions, ?) ORDER BY sequence"
        )

        def look(db: sqlite3.Connection) -> Record | None:
            row = db.execute(query, (slot, id)).fetchone()
            record = _records(db, slot, [row])[0] if row else None
            if not pending or (record is not None and record.status is not Status.RESERVED):
                return record
            return changed(record, id, [Entry(*row) for row in db.execute(later, (slot, slot, id))])

        return await self._read(look)

    async def tickets(self, query: TicketQuery) -> list[Record]:
        where, values = ["slot = ?", "(reserved_at, id) > (?, ?)"], [query.slot, *query.after]
        if query.buyer is not None:
            where.append("buyer = ?")
            values.append(query.buyer)
        if query.status is not None:
            where.append("status = ?")
            values.append(query.status)
        text = f"SELECT {rows.TICKET} FROM tickets WHERE {' AND '.join(where)} ORDER BY reserved_at, id LIMIT ?"
        return await self._read(
            lambda db: _records(db, query.slot, db.execute(text, (*values, query.limit)).fetchall())
        )

    async def records(self, slot: str, ids: Sequence[str]) -> dict[str, Record]:
        query = f"SELECT {rows.TICKET} FROM tickets WHERE slot = ? AND id IN (SELECT value FROM json_each(?))"
        values = (slot, json.dumps(list(ids)))
        records = await self._read(lambda db: _records(db, slot, db.execute(query, values).fetchall()))
        return {record.id: record for record in records}

    async def standing(self, slot: str) -> Standing:
        progress = f"SELECT {rows.PROGRESS} FROM slots WHERE slot = ?"
        units = (
            # As they lie in the file: put together by buyer, which is any order, they take SQLite three times as long.
            "SELECT buyer, lines, status, 1 FROM tickets WHERE slot = ?"
            f" AND status IN ('{Status.RESERVED}', '{Status.PURCHASED}') ORDER BY reserved_at"
        )

        def read(db: sqlite3.Connection) -> Standing:
            (now,) = db.execute(progress, (slot,)).fetchall()
            return Standing(rows.progress(now), rows.units(db.execute(units, (slot,)), _skus(db, slot)))

        return await self._read(read)

    async def ledger(self, slot: str, after: Cursor, limit: int) -> list[Entry]:
        # A reader may have had transitions that were then lost: their epoch ends here before its position.
        last = "SELECT sequence FROM ledger WHERE slot = ? AND epoch <= ? ORDER BY sequence DESC LIMIT 1"
        query = (
            "SELECT epoch, sequence, at, transitions FROM ledger"
            " WHERE slot = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        )

        def read(db: sqlite3.Connection) -> list[Entry]:
            (known,) = db.execute(last, (slot, after.epoch)).fetchone() or (0,)
            return [Entry(*row) for row in db.execute(query, (slot, min(after.sequence, known), limit))]

        return await self._read(read)

    async def amended(self, slot: str) -> Definition | None:
        query = (
            "SELECT epoch, sequence, at, transitions FROM ledger"
            " WHERE slot = ? AND (transitions LIKE ? OR transitions LIKE ?) ORDER BY sequence DESC LIMIT 1"
        )
        found = await self._read(lambda db: db.execute(query, (slot, *SALE_LINE_LIKE)).fetchall())
        told = definitions(Entry(*row) for row in found)
        return told[-1] if told else None

    async def position(self, listener: str, slot: str) -> Cursor | None:
        query = "SELECT epoch, sequence FROM positions WHERE listener = ? AND slot = ?"

        def read(db: sqlite3.Connection) -> Cursor | None:
            row = db.execute(query, (listener, slot)).fetchone()
            return Cursor(*row) if row else None

        return await self._read(read)

    async def set_position(self, listener: str, slot: str, cursor: Cursor) -> None:
        values = (listener, slot, cursor.epoch, cursor.sequence)
        await self._write(lambda db: db.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", values))


@contextmanager
def _transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    # IMMEDIATE: cursors are compared under the write lock, which is what fences a second process.
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _sale(db: sqlite3.Connection, name: str) -> StoredSale | None:
    row = db.execute(f"SELECT {rows.SALE} FROM {rows.named(name)} = ?", (name,)).fetchone()
    return rows.stored_sale(row) if row else None


def _set_definition(db: sqlite3.Connection, definition: Definition, *, by_ledger: bool = False) -> None:
    row = db.execute("SELECT definition, pending FROM sales WHERE id = ?", (definition.id,)).fetchone()
    if row is not None:
        values = (*rows.settled(definition, *row, by_ledger=by_ledger), definition.id)
        db.execute("UPDATE sales SET definition = ?, pending = ? WHERE id = ?", values)


def _skus(db: sqlite3.Connection, slot: str) -> list[str]:
    return rows.skus(
        db.execute(
            "SELECT s.definition, s.pending FROM sales s JOIN slots c ON c.sale = s.id WHERE c.slot = ?", (slot,)
        ).fetchone()
    )


def _records(db: sqlite3.Connection, slot: str, found: Sequence[tuple[str, ...]]) -> list[Record]:
    """Rows as records."""
    return rows.records(found, _skus(db, slot)) if found else []


def _append(db: sqlite3.Connection, copied: Copied) -> None:
    """Appends one stretch of a ledger inside the caller's transaction."""
    last = copied.entries[-1]
    moved = db.execute(
        "UPDATE slots SET epoch = ?, sequence = ? WHERE slot = ? AND epoch = ? AND sequence = ?",
        (last.epoch, last.sequence, copied.slot, copied.after.epoch, copied.after.sequence),
    )
    if moved.rowcount != 1:
        raise CursorMoved(copied.slot)
    db.executemany(
        "INSERT INTO ledger VALUES (?, ?, ?, ?, ?)",
        [(copied.slot, entry.sequence, entry.epoch, entry.at, entry.text) for entry in copied.entries],
    )
    # Not left to folding: they name the items of the lines that follow, and an amendment must not wait.
    for definition in definitions(copied.entries):
        _set_definition(db, definition, by_ledger=True)
    if SHARD_MARK in copied.slot and (told := transfers(copied.entries)) is not None:
        db.execute("UPDATE slots SET transfers = ? WHERE slot = ?", (told, copied.slot))


def _fold(db: sqlite3.Connection, slot: str, end: int, room: int) -> tuple[int, int, list[str]]:
    """Folds one slot inside the caller's transaction: transitions folded, transitions left, alarms."""
    (folded,) = db.execute("SELECT folded FROM slots WHERE slot = ?", (slot,)).fetchone()
    if folded >= end or room <= 0:
        return 0, max(0, end - folded), []
    entries: list[Entry] = []
    last = folded
    # The first entry, however large, and what else there is room for.
    for row in db.execute(
        "SELECT epoch, sequence, at, transitions FROM ledger WHERE slot = ? AND sequence > ? AND sequence <= ?"
        " ORDER BY sequence",
        (slot, folded, end),
    ):
        entries.append(Entry(*row))
        last = entries[-1].sequence
        if last - folded >= room:
            break
    else:
        end = last
    # Under the write lock, where nobody else moves it.
    db.execute("UPDATE slots SET folded = ? WHERE slot = ?", (last, slot))
    return last - folded, end - last, _project(db, slot, entries)


def _project(db: sqlite3.Connection, slot: str, entries: Sequence[Entry]) -> list[str]:
    """Brings the tickets of these entries up to date; the alarms that it raised."""
    begun, ended = read(entries)
    readable = rows.Readable(_skus(db, slot))
    # By id, so that what lies on one page is written together; of two that contradict each other the first stays first.
    begun.sort(key=itemgetter(0))
    ended.sort(key=itemgetter(0))
    known = db.executemany(
        "INSERT OR IGNORE INTO tickets (slot, id, status, lines, buyer, reserved_at, expires_at)"
        f" VALUES (?, ?, '{Status.RESERVED}', ?, ?, ?, ?)",
        [(slot, id, readable[lines], buyer, at, deadline) for id, lines, buyer, at, deadline in begun],
    ).rowcount
    closed = db.executemany(
        "UPDATE tickets SET status = ?, ended_at = coalesce(?, expires_at), sequence = ?, operation = ?, reference = ?"
        f" WHERE slot = ? AND id = ? AND status = '{Status.RESERVED}'",
        [(status.value, at, sequence, by, reference, slot, id) for id, status, at, sequence, by, reference in ended],
    ).rowcount
    if max(known, 0) == len(begun) and max(closed, 0) == len(ended):
        return []
    return _conflicts(db, slot, ended, len(begun) - max(known, 0))


def _conflicts(db: sqlite3.Connection, slot: str, ended: Sequence[Ended], begun_twice: int) -> list[str]:
    """Names and keeps the transitions that contradict what is stored."""
    have: dict[str, tuple[str, int]] = {}
    for end in ended:
        row = db.execute("SELECT status, sequence FROM tickets WHERE slot = ? AND id = ?", (slot, end.id)).fetchone()
        if row is not None:
            have[end.id] = row
    alarms = conflicts(slot, ended, begun_twice, have)
    now = int(time.time() * 1000)
    db.executemany("INSERT INTO alarms VALUES (?, ?, ?)", [(now, slot, alarm) for alarm in alarms])
    return alarms
