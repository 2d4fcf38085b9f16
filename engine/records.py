"""The packed forms that Redis holds: ticket records, ledger lines, counters. The counterpart of `lua/includes/`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from holdfast.engine.values import Durability, Item, ItemSpec, Line, Sale, Status, Terms, Ticket

#: The letter of each status in records and ledger lines.
LETTERS = {"r": Status.RESERVED, "p": Status.PURCHASED, "c": Status.CANCELLED, "x": Status.EXPIRED}
LETTER_OF = {status: letter for letter, status in LETTERS.items()}

#: Characters of ticket ids, buyers and operations.
ID_CHARS = 22

#: Kinds of ledger lines beside those of tickets: the sale was created, amended or recovered.
SALE_LINE = "s"

#: Units moved between this shard and another; the line ends with all that this shard has lent and borrowed.
TRANSFER_LINE = "t"

#: In the place of lines where there are none.
NO_LINES = "-"

#: Between a sale's id and the number of a shard in the name of a slot.
SHARD_MARK = "~"


def sale_of(slot: str) -> str:
    """The sale that lives in the slot of this name."""
    return slot.partition(SHARD_MARK)[0]


def shard_of(slot: str) -> int:
    """The number of the shard that this slot is, from 1; 0 for the slot of a sale that is in no shards."""
    return int(slot.partition(SHARD_MARK)[2] or 0)


@dataclass(frozen=True, slots=True)
class ItemDefinition:
    """What the operator said of an item."""

    sku: str
    name: str
    capacity: int
    max_per_buyer: int | None


@dataclass(frozen=True, slots=True)
class Definition:
    """What the operator said of a sale; kept as JSON in Redis, in the store and in the ledger.

    Parameters
    ----------
    version: 1 when created, one more with every amendment.
    origin: digest of the request that created the sale, to know its repeat.
    durability: of payments that ask for none. Fixed for good: other processes read a definition again only when it is
        needed, and a payment must not be less safe than was said.
    shards: over how many slots the units are divided; None is one, named by the sale. Fixed for good.
    excess: by number of the shard, units of each item that its share has beyond an equal part: what a recovery found
        sold there beyond what there was.
    """

    id: str
    name: str
    items: tuple[ItemDefinition, ...]
    hold_ms: int
    max_per_buyer: int | None
    opens_at: int | None
    closes_at: int | None
    version: int
    origin: str
    durability: Durability | None = None
    shards: int | None = None
    excess: Mapping[str, Sequence[int]] | None = None

    def json(self) -> str:
        """One line, keys in order: equal definitions are equal texts."""
        body = {
            "id": self.id,
            "name": self.name,
            "items": [
                {"sku": i.sku, "name": i.name, "capacity": i.capacity, "max_per_buyer": i.max_per_buyer}
                for i in self.items
            ],
            "hold_ms": self.hold_ms,
            "max_per_buyer": self.max_per_buyer,
            "opens_at": self.opens_at,
            "closes_at": self.closes_at,
            "version": self.version,
            "origin": self.origin,
        }
        if self.durability is not None:
            body["durability"] = self.durability
        # Absent where there are none: an older text, and the origin that was made from it, stay as they are.
        if self.shards is not None:
            body["shards"] = self.shards
        if self.excess is not None:
            body["excess"] = self.excess
        return json.dumps(body, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> Definition:
        body: dict[str, Any] = json.loads(text)
        body["items"] = tuple(ItemDefinition(**item) for item in body["items"])
        if "durability" in body:
            body["durability"] = Durability(body["durability"])
        return Definition(**body)

    def rules(self) -> str:
        """The rules that the scripts read, packed: see `lua/includes/slot.lua`."""
        numbers = [self.hold_ms, self.max_per_buyer or 0, self.opens_at or 0, self.closes_at or 0]
        return " ".join(map(str, numbers + [item.max_per_buyer or 0 for item in self.items]))

    def slots(self) -> tuple[str, ...]:
        """The names of the slots in which the sale lives, in order."""
        if self.shards is None:
            return (self.id,)
        return tuple(f"{self.id}{SHARD_MARK}{number}" for number in range(1, self.shards + 1))

    def share(self, slot: str) -> tuple[int, ...]:
        """Of each item, how many of its units are this slot's own: they add up to the capacity over all slots."""
        if self.shards is None:
            return tuple(item.capacity for item in self.items)
        number, excess = shard_of(slot), self.excess or {}
        share = []
        for at, item in enumerate(self.items):
            beyond = {shard: units[at] for shard, units in excess.items() if at < len(units)}
            equal, rest = divmod(max(0, item.capacity - sum(beyond.values())), self.shards)
            share.append(equal + (number <= rest) + beyond.get(str(number), 0))
        return tuple(share)

    def capacities(self, slot: str | None = None) -> str:
        """The capacities of this slot; of the only one where none is named."""
        return " ".join(map(str, self.share(slot or self.id)))

    def fresh_counts(self, slot: str | None = None) -> str:
        """The counters of this slot when nothing is held or sold."""
        return " ".join(f"{units} 0 0" for units in self.share(slot or self.id))

    def sale(self, counts: bytes | str, epoch: int, sequence: int) -> Sale:
        """The sale with its counters as they stood at `sequence`."""
        numbers = [int(n) for n in counts.split()]
        items = tuple(
            Item(item.sku, item.name, item.capacity, item.max_per_buyer, *numbers[3 * at : 3 * at + 3])
            for at, item in enumerate(self.items)
        )
        return Sale(
            id=self.id,
            name=self.name,
            items=items,
            hold_ms=self.hold_ms,
            max_per_buyer=self.max_per_buyer,
            opens_at=self.opens_at,
            closes_at=self.closes_at,
            sequence=sequence,
            durability=self.durability,
            epoch=epoch,
            shards=self.shards,
        )

    def terms(self) -> Terms:
        """What of this the operator has said."""
        return Terms(
            name=self.name,
            items=tuple(ItemSpec(item.sku, item.capacity, item.name, item.max_per_buyer) for item in self.items),
            hold_ms=self.hold_ms,
            max_per_buyer=self.max_per_buyer,
            opens_at=self.opens_at,
            closes_at=self.closes_at,
            durability=self.durability,
            shards=self.shards,
        )

    def lines(self, packed: str) -> tuple[Line, ...]:
        """`1:2,3:1` as lines with skus."""
        return tuple(
            Line(self.items[int(item) - 1].sku, int(quantity))
            for item, _, quantity in (part.partition(":") for part in packed.split(","))
        )

    def indexes(self) -> dict[str, int]:
        """The number of each sku, from 1, as packed lines name them."""
        return {item.sku: at for at, item in enumerate(self.items, start=1)}


@dataclass(frozen=True, slots=True)
class Transfers:
    """What a shard has lent and borrowed, as `lua/includes/transfers.lua` keeps it.

    Parameters
    ----------
    text: as it lies in Redis and in the store; empty where nothing ever was.
    steps: how often it has changed. lent: units of each item, sent to other shards less received from them.
    out: by borrower, number and lines of the last transfer to it; the lines are empty once it is settled.
    into: by lender, number of the last transfer received from it.
    """

    text: str = ""
    steps: int = 0
    lent: tuple[int, ...] = ()
    out: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    into: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def parse(text: str | bytes | None) -> Transfers:
        """Reads what a script wrote.

        Raises
        ------
        ValueError: it is damaged.
        """
        if not text:
            return Transfers()
        text = text.decode() if isinstance(text, bytes) else text
        try:
            body = json.loads(text)
            # An empty table of Lua may be written as a list.
            out, into = dict(body["out"] or {}), dict(body["into"] or {})
            return Transfers(
                text,
                int(body["steps"]),
                tuple(int(units) for units in body["lent"]),
                {int(shard): (int(last["number"]), str(last.get("lines", ""))) for shard, last in out.items()},
                {int(shard): int(number) for shard, number in into.items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not what a shard has lent and borrowed: {error}") from error

    def lent_of(self, item: int) -> int:
        """Net units lent of the item with this number, from 0; none of one that was added since the last transfer."""
        return self.lent[item] if item < len(self.lent) else 0

    def unsettled(self) -> dict[int, tuple[int, str]]:
        """By borrower, number and lines of what was sent to it and is not known to be there for good."""
        return {shard: last for shard, last in self.out.items() if last[1]}


def units_of(lines: str) -> list[tuple[int, int]]:
    """Packed lines as item numbers, from 1, and units; none for an empty text."""
    parts = (part.partition(":") for part in lines.split(",") if part)
    return [(int(item), int(units)) for item, _, units in parts]


def pack_lines(lines: Iterable[tuple[int, int]]) -> str:
    """Lines by item number as one text; the same units always give the same text."""
    return ",".join(f"{item}:{quantity}" for item, quantity in sorted(lines))


class Record(NamedTuple):
    """A ticket as Redis and the store keep it, without its sale's definition.

    Parameters
    ----------
    id: without the slot.
    lines: packed, by item number.
    sequence: number of the transition that ended it; 0 while reserved.
    operation: what ended it; `-` for expiry.
    """

    id: str
    status: Status
    lines: str
    reserved_at: int
    expires_at: int
    buyer: str
    ended_at: int | None = None
    sequence: int = 0
    operation: str = ""
    reference: str = ""

    @staticmethod
    def parse(id: str, packed: str) -> Record:
        """Reads a record as `lua/includes/tickets.lua` writes it."""
        parts = packed.split(" ", 8)
        status = LETTERS[parts[0]]
        if status is Status.RESERVED:
            return Record(id, status, parts[1], int(parts[2]), int(parts[3]), parts[4])
        return Record(
            id,
            status,
            parts[1],
            int(parts[2]),
            int(parts[3]),
            parts[4],
            int(parts[5]),
            int(parts[6]),
            parts[7],
            parts[8],
        )

    @property
    def last_item(self) -> int:
        """The highest item number among the lines, which stands last."""
        return int(self.lines[self.lines.rfind(",") + 1 :].partition(":")[0])

    def pack(self) -> str:
        """Writes a record as `lua/includes/tickets.lua` reads it."""
        head = f"{LETTER_OF[self.status]} {self.lines} {self.reserved_at} {self.expires_at} {self.buyer}"
        if self.status is Status.RESERVED:
            return head
        return f"{head} {self.ended_at} {self.sequence} {self.operation} {self.reference}"

    def ticket(
        self,
        slot: str,
        definition: Definition,
        now: int,
        *,
        replayed: bool = False,
        durability: Durability | None = None,
    ) -> Ticket:
        """The ticket as callers see it at `now`: a hold that has run out is expired, whether it was swept or not."""
        status, ended_at = self.status, self.ended_at
        if status is Status.RESERVED and now >= self.expires_at:
            status, ended_at = Status.EXPIRED, self.expires_at
        return Ticket(
            id=f"{slot}.{self.id}",
            sale=definition.id,
            status=status,
            lines=definition.lines(self.lines),
            buyer=self.buyer,
            reserved_at=self.reserved_at,
            expires_at=self.expires_at,
            ended_at=ended_at,
            reference=self.reference or None,
            as_of=now,
            replayed=replayed,
            durability=durability,
        )


class Transition(NamedTuple):
    """One transition, as the ledger tells it.

    Parameters
    ----------
    kind: `r`, `p`, `c`, `x` of a ticket, `s` of the sale itself, or `t` of units moved between shards.
    ticket: id without the slot; empty for `s` and `t`.
    lines: packed; for `s` the definition as JSON.
    buyer: of `r`. expires_at: of `r` and `x`. operation, reference: of `p` and `c`; of `t` what was done
        (`lent`, `received`, `settled`, `recovered`), and the transfers as JSON from then on.
    """

    epoch: int
    sequence: int
    at: int
    kind: str
    ticket: str
    lines: str
    buyer: str = ""
    expires_at: int = 0
    operation: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the ledger stream: the transitions of one script call. `sequence` is that of the last one."""

    epoch: int
    sequence: int
    at: int
    text: str

    @property
    def first(self) -> int:
        """Sequence of the first transition."""
        lines = self.text.split("\n")
        grouped = [line for line in lines if line.startswith("r ")]
        tickets = sum((len(line) - line.rindex(" ") - 1) // (2 * ID_CHARS) for line in grouped)
        return self.sequence - (len(lines) - len(grouped) + tickets) + 1

    @staticmethod
    def parse(stream_id: bytes, fields: Mapping[bytes, bytes] | Sequence[Any]) -> Entry:
        epoch, _, sequence = stream_id.partition(b"-")
        values = fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))
        return Entry(int(epoch), int(sequence), int(values[b"at"]), values[b"d"].decode())

    def transitions(self) -> list[Transition]:
        """What it tells, in order: see `lua/includes/ledger.lua`."""
        told: list[tuple[str, str, str, str, int, str, str]] = []
        for line in self.text.split("\n"):
            kind, _, rest = line.partition(" ")
            if kind == SALE_LINE:
                told.append((kind, "", rest, "", 0, "", ""))
            elif kind == TRANSFER_LINE:
                done, _, _, lines, state = rest.split(" ", 4)
                told.append((kind, "", lines, "", 0, done, state))
            elif kind == "r":
                lines, expires_at, pairs = rest.split(" ")
                deadline = int(expires_at)
                for at in range(0, len(pairs), 2 * ID_CHARS):
                    ticket, buyer = pairs[at : at + ID_CHARS], pairs[at + ID_CHARS : at + 2 * ID_CHARS]
                    told.append((kind, ticket, lines, buyer, deadline, "", ""))
            else:
                ticket, lines, operation, reference = rest.split(" ", 3)
                if kind == "x":
                    told.append((kind, ticket, lines, "", int(reference), operation, ""))
                else:
                    told.append((kind, ticket, lines, "", 0, operation, reference))
        first = self.sequence - len(told) + 1
        return [Transition(self.epoch, first + at, self.at, *what) for at, what in enumerate(told)]
