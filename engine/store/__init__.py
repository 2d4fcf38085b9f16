"""The durable database: what any store must do. SQLite lives in `sqlite.py`, PostgreSQL in `postgres.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from holdfast.engine.records import Definition, Entry, Record
from holdfast.engine.values import Status


class StoreError(Exception):
    """The store cannot be reached, or refuses. What was under way did not happen; when the connection to a server was
    lost in the middle of a commit it may have, and the same call again finds out."""


class CursorMoved(Exception):
    """Someone else has copied this slot meanwhile: read the cursor again."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a slot's ledger has been copied: the epoch and sequence of the last transition."""

    epoch: int
    sequence: int

    @property
    def floor(self) -> str:
        """As the scripts take it."""
        return f"{self.epoch}-{self.sequence}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a slot has come.

    Parameters
    ----------
    cursor: how far its ledger has been copied. folded: up to which sequence tickets are up to date with that.
    dropped: up to which sequence its ended tickets were dropped from Redis.
    """

    cursor: Cursor
    dropped: int
    folded: int


@dataclass(frozen=True, slots=True)
class StoredSale:
    """A sale in the registry, with one of its slots: the one asked for, or its first.

    Parameters
    ----------
    id: of the sale.
    definition: as last acknowledged; None while the sale is being created.
    pending: an intent that was written before Redis was asked, None when settled.
    cursor: of the slot.
    dropped: sequence up to which ended tickets were dropped from Redis; 0 when none was.
    slot: its name; the sale's id unless the sale is in shards.
    transfers: what this shard has lent and borrowed, as of the cursor; None where nothing ever was.
    """

    id: str
    definition: Definition | None
    pending: Definition | None
    cursor: Cursor
    dropped: int
    slot: str
    transfers: str | None = None

    @property
    def known(self) -> Definition:
        """The definition, or the intent where there is nothing else."""
        known = self.definition or self.pending
        assert known is not None  # a row is made with one of the two
        return known


@dataclass(frozen=True, slots=True)
class Copied:
    """A stretch of one slot's ledger, to be appended in one transaction with others.

    Parameters
    ----------
    after: the cursor that it follows on; the append is refused when it has moved.
    """

    slot: str
    after: Cursor
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Folded:
    """What one step of folding came to.

    Parameters
    ----------
    left: transitions that are still to be folded, of those asked for.
    alarms: transitions that contradict what is stored, as sentences. The store keeps both.
    """

    left: int
    alarms: Sequence[str]


class Units(NamedTuple):
    """So many tickets of one buyer with the same lines (packed) and the same status, reserved or purchased.

    There may be others like them.
    """

    buyer: str
    lines: str
    status: Status
    tickets: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What is held and sold of a slot, of one moment.

    Parameters
    ----------
    progress: of the slot at that moment. units: as folded up to `progress.folded`.
    """

    progress: Progress
    units: Sequence[Units]


@dataclass(frozen=True, slots=True)
class TicketQuery:
    """Tickets of a slot in the order `(reserved_at, id)`.

    Parameters
    ----------
    buyer: hash, or None for all. status: or None for all. after: position to go on from, not included.
    """

    slot: str
    limit: int
    buyer: str | None = None
    status: str | None = None
    after: tuple[int, str] = field(default=(0, ""))


class Store(Protocol):
    """What the engine asks of a database. Every method raises `StoreError` when the database cannot answer."""

    async def open(self) -> None:
        """Connects, makes or migrates the schema."""

    async def close(self) -> None: ...

    async def kept(self, name: str, make: Callable[[], str]) -> str:
        """The value kept under this name; made and kept when there is none. The same for all who ask at once."""
        ...

    async def peek(self, name: str) -> str | None:
        """The value kept under this name, if there is one."""
        ...

    async def begin_sale(self, definition: Definition) -> StoredSale:
        """Registers the intent to create a sale, and its slots, or returns the sale that has this id already."""
        ...

    async def begin_amendment(self, definition: Definition) -> None:
        """Registers the intent to amend a sale."""

    async def settle(self, sale: str, definition: Definition | None) -> None:
        """Ends an intent: with the definition that now holds, or with None when it was refused."""

    async def sale(self, name: str) -> StoredSale | None:
        """The sale of this id with its first slot, or the sale of this slot with just that."""
        ...

    async def sales(self, after: str, limit: int) -> list[StoredSale]:
        """In the order of their ids, each with its first slot."""
        ...

    async def slots(self, after: str, limit: int) -> list[StoredSale]:
        """Every slot with its sale, in the order of the names of the slots."""
        ...

    async def cursors(self) -> dict[str, Progress]:
        """How far each slot has come, by slot."""
        ...

    async def append(self, copied: Sequence[Copied]) -> None:
        """Appends ledgers as they stand, takes up the definitions and transfers in them and moves the cursors, in one
        transaction. The first definition of a sale in shards is left to `settle`: others may not be created yet.

        Tickets are brought up to date by `fold`, later: this is all that a stampede has to pay for.

        Raises
        ------
        CursorMoved: a cursor is not where `after` says; nothing was written.
        """

    async def fold(self, upto: Mapping[str, int], limit: int) -> Folded:
        """Brings tickets up to date with what was appended, in one transaction with how far that has come.

        Parameters
        ----------
        upto: per slot, the sequence to come to, not beyond its cursor. limit: transitions, up to a ledger entry more.
        """
        ...

    async def set_dropped(self, slot: str, sequence: int) -> None: ...

    async def ticket(self, slot: str, id: str, *, pending: bool = True) -> Record | None:
        """A ticket as the ledger in the store tells it.

        Parameters
        ----------
        pending: look through what is not folded, too: 30 ms when 200,000 transitions wait. What has left Redis is found
            without it.
        """
        ...

    async def tickets(self, query: TicketQuery) -> list[Record]:
        """Tickets as they were folded."""
        ...

    async def records(self, slot: str, ids: Sequence[str]) -> dict[str, Record]:
        """Those of these tickets that were folded, by id. At most a few thousand ids."""
        ...

    async def standing(self, slot: str) -> Standing:
        """What every buyer of a slot that is registered holds and has bought, as it was folded."""
        ...

    async def ledger(self, slot: str, after: Cursor, limit: int) -> list[Entry]:
        """Entries beyond `after`, in order: later in its epoch, or in a later epoch."""
        ...

    async def amended(self, slot: str) -> Definition | None:
        """The last definition in the ledger of a slot. A shard may have an older one than the sale, for a moment."""
        ...

    async def position(self, listener: str, slot: str) -> Cursor | None:
        """How far a named listener has come."""
        ...

    async def set_position(self, listener: str, slot: str, cursor: Cursor) -> None: ...


def open_store(url: str) -> Store:
    """The store at this address, not yet opened.

    Parameters
    ----------
    url: `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql://user:password@host:port/database`.

    Raises
    ------
    ConfigurationError: there is no such kind of store, or what it needs is not installed.
    """
    from holdfast.engine.errors import ConfigurationError
    from holdfast.engine.store.sqlite import SqliteStore

    scheme, _, rest = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        try:
            from holdfast.engine.store.postgres import PostgresStore
        except ModuleNotFoundError as error:
            if error.name != "asyncpg":
                raise
            raise ConfigurationError(
                "store: PostgreSQL needs asyncpg, which is not installed: pip install 'holdfast[postgresql]'"
            ) from error
        return PostgresStore(url)
    if scheme != "sqlite" or not rest.startswith("/") or rest == "/":
        raise ConfigurationError(
            "store: this is no address of a store; give sqlite:///PATH (three slashes, then the path) "
            "or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        )
    return SqliteStore(rest[1:])
