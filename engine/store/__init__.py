"""The durable database: what any store must do. SQLite lives in `sqlite.py`; others stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from holdfast.engine.records import Definition, Entry, Record


class StoreError(Exception):
    """The store cannot be reached, or refuses; whatever was under way did not happen."""


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
    """How far a slot has been copied, and up to which sequence its ended tickets were dropped from Redis."""

    cursor: Cursor
    dropped: int


@dataclass(frozen=True, slots=True)
class StoredSale:
    """A sale in the registry.

    Parameters
    ----------
    definition: as last acknowledged; None while the sale is being created.
    pending: an intent that was written before Redis was asked, None when settled.
    cursor: of its slot.
    dropped: sequence up to which ended tickets were dropped from Redis; 0 when none was.
    """

    id: str
    definition: Definition | None
    pending: Definition | None
    cursor: Cursor
    dropped: int

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
        """Registers the intent to create a sale, or returns the sale that has this id already."""
        ...

    async def begin_amendment(self, definition: Definition) -> None:
        """Registers the intent to amend a sale."""

    async def settle(self, sale: str, definition: Definition | None) -> None:
        """Ends an intent: with the definition that now holds, or with None when it was refused."""

    async def sale(self, sale: str) -> StoredSale | None: ...

    async def sales(self, after: str, limit: int) -> list[StoredSale]:
        """In the order of their ids."""
        ...

    async def cursors(self) -> dict[str, Progress]:
        """How far each slot has come, by slot."""
        ...

    async def append(self, copied: Sequence[Copied]) -> list[str]:
        """Appends transitions, brings tickets up to date and moves the cursors, in one transaction.

        Returns the alarms that it raised: transitions that contradict what is stored. They are kept, too.

        Raises
        ------
        CursorMoved: a cursor is not where `after` says; nothing was written.
        """
        ...

    async def set_dropped(self, slot: str, sequence: int) -> None: ...

    async def ticket(self, slot: str, id: str) -> Record | None: ...

    async def tickets(self, query: TicketQuery) -> list[Record]: ...

    async def ledger(self, slot: str, after: Cursor, limit: int) -> list[Entry]:
        """Entries beyond `after`, in order: later in its epoch, or in a later epoch."""
        ...

    async def position(self, listener: str, slot: str) -> Cursor | None:
        """How far a named listener has come."""
        ...

    async def set_position(self, listener: str, slot: str, cursor: Cursor) -> None: ...


def open_store(url: str) -> Store:
    """The store at this address, not yet opened.

    Parameters
    ----------
    url: `sqlite:///relative.db`, `sqlite:////absolute.db`.

    Raises
    ------
    ConfigurationError: there is no such kind of store.
    """
    from holdfast.engine.errors import ConfigurationError
    from holdfast.engine.store.sqlite import SqliteStore

    scheme, _, rest = url.partition("://")
    if scheme != "sqlite" or not rest.startswith("/") or rest == "/":
        raise ConfigurationError(
            "store: this is no address of a store; give sqlite:///PATH (three slashes, then the path)"
        )
    return SqliteStore(rest[1:])
