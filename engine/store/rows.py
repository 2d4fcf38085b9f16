"""Rows of the tables as the engine's values, for any store: sales, tickets, and lines with their skus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.engine.records import SHARD_MARK, Definition, Record
from holdfast.engine.store import Cursor, Progress, StoredSale, Units
from holdfast.engine.values import Status

#: Columns of a ticket, as `records` takes them.
TICKET = "id, status, lines, reserved_at, expires_at, buyer, ended_at, sequence, operation, reference"

#: Columns of a sale `s` with a slot `c` of it, as `stored_sale` takes them.
SALE = "s.id, s.definition, s.pending, c.epoch, c.sequence, c.dropped, c.slot, c.transfers"

#: A sale with its first slot, by the names of slots.
FIRST_SLOT = f"sales s JOIN slots c ON c.slot IN (s.id, s.id || '{SHARD_MARK}1')"

#: A slot with its sale.
EVERY_SLOT = "slots c JOIN sales s ON s.id = c.sale"

#: Columns of a slot, as `progress` takes them.
PROGRESS = "epoch, sequence, dropped, folded"


def named(name: str) -> str:
    """Where a sale is looked for by its id or by the name of a slot; what it is compared with follows."""
    return f"{EVERY_SLOT} WHERE c.slot" if SHARD_MARK in name else f"{FIRST_SLOT} WHERE s.id"


def stored_sale(row: Sequence[Any]) -> StoredSale:
    id, definition, pending, epoch, sequence, dropped, slot, transfers = row
    return StoredSale(
        id,
        Definition.from_json(definition) if definition else None,
        Definition.from_json(pending) if pending else None,
        Cursor(epoch, sequence),
        dropped,
        slot,
        transfers,
    )


def progress(row: Sequence[int]) -> Progress:
    epoch, sequence, dropped, folded = row
    return Progress(Cursor(epoch, sequence), dropped, folded)


def settled(
    definition: Definition, known: str | None, pending: str | None, *, by_ledger: bool = False
) -> tuple[str | None, str | None]:
    """What holds of a sale, and the intent that is left, once this definition was told: a newer one stays, and an
    intent that it fulfils is settled.

    Parameters
    ----------
    known, pending: as they stand in the row. by_ledger: a slot's ledger told it. Of a sale in shards that does not say
        that all shards are there, and the intent to create it stays.
    """
    if by_ledger and known is None and definition.shards is not None:
        return known, pending
    if known is None or Definition.from_json(known).version <= definition.version:
        known = definition.json()
    if pending is not None and Definition.from_json(pending).version <= definition.version:
        pending = None
    return known, pending


def skus(row: Sequence[str | None] | None) -> list[str]:
    """The skus of a sale in their order, from its definition and its intent; none when there is no such sale."""
    text = (row[0] or row[1]) if row is not None else None
    return [item.sku for item in Definition.from_json(text).items] if text else []


class Packed(dict[str, str]):
    """Lines as they stand in SQL, where they name skus for those who read the tables, by item number as in records.

    Parameters
    ----------
    skus: of the sale, in order.
    """

    def __init__(self, skus: Sequence[str]) -> None:
        self._numbers = {sku: at for at, sku in enumerate(skus, start=1)}

    def __missing__(self, lines: str) -> str:
        parts = (part.partition(":") for part in lines.split(","))
        packed = self[lines] = ",".join(f"{self._numbers[sku]}:{quantity}" for sku, _, quantity in parts)
        return packed


class Readable(dict[str, str]):
    """The way back: packed lines as they stand in SQL.

    Parameters
    ----------
    skus: of the sale, in order.
    """

    def __init__(self, skus: Sequence[str]) -> None:
        self._skus = skus

    def __missing__(self, packed: str) -> str:
        parts = (part.partition(":") for part in packed.split(","))
        lines = self[packed] = ",".join(f"{self._skus[int(item) - 1]}:{quantity}" for item, _, quantity in parts)
        return lines


def records(rows: Iterable[Sequence[Any]], skus: Sequence[str]) -> list[Record]:
    packed = Packed(skus)
    return [Record(row[0], Status(row[1]), packed[row[2]], *row[3:]) for row in rows]


def units(rows: Iterable[Sequence[Any]], skus: Sequence[str]) -> list[Units]:
    """Of (buyer, lines, status, number of tickets)."""
    packed = Packed(skus)
    known = {status.value: status for status in Status}
    return [Units(buyer, packed[lines], known[status], tickets) for buyer, lines, status, tickets in rows]
