"""The frozen values that the engine hands out. They carry no behaviour beyond what can be derived from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Status(StrEnum):
    """What has become of a ticket. Every status but `reserved` is terminal."""

    RESERVED = "reserved"
    PURCHASED = "purchased"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Durability(StrEnum):
    """What a payment survives once it is acknowledged: a set, not a ladder. `docs/reliability.md` has the matrix."""

    #: Redis has it in memory: its death is survived, as far as its append-only file goes.
    MEMORY = "memory"
    #: Redis has it in its append-only file, on disk.
    FSYNC = "fsync"
    #: A replica of Redis has it in memory.
    REPLICA = "replica"
    #: The store has it, on disk: whatever happens to Redis is survived.
    STORED = "stored"


class Position(NamedTuple):
    """A place in a sale's ledger: right behind the transition of this number.

    Parameters
    ----------
    epoch: one more with every recovery. sequence: counts on through them; (0, 0) is the beginning.
    """

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}"


class Line(NamedTuple):
    """So many units of one item.

    Parameters
    ----------
    sku: the item's name within its sale.
    quantity: units, at least 1.
    """

    sku: str
    quantity: int


@dataclass(frozen=True, slots=True)
class ItemSpec:
    """An item as the operator describes it.

    Parameters
    ----------
    sku: `[a-z0-9][a-z0-9-]{0,63}`, unique in the sale.
    capacity: units on sale, 0 to `limits.CAPACITY_MAX`.
    name: what a person reads; the sku when absent.
    max_per_buyer: units of this item that one buyer may hold and have bought together; None is no limit.
    """

    sku: str
    capacity: int
    name: str | None = None
    max_per_buyer: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a sale with its counters: `available + reserved + purchased + in_transit == capacity`.

    Parameters
    ----------
    in_transit: units on their way from one shard to another; 0 in a sale of one slot.
    """

    sku: str
    name: str
    capacity: int
    max_per_buyer: int | None
    available: int
    reserved: int
    purchased: int
    in_transit: int = 0


@dataclass(frozen=True, slots=True)
class Sale:
    """Something on sale, as it stood at `sequence` of its ledger.

    Parameters
    ----------
    hold_ms: how long a new ticket keeps its units, milliseconds.
    max_per_buyer: units that one buyer may hold and have bought together; None is no limit.
    opens_at, closes_at: the selling window, Unix milliseconds; None is open-ended.
    durability: of payments that ask for none; None is the engine's.
    sequence: the number of the last transition that these counters include; of a sale in shards the sum of theirs.
    epoch: it counts in; one more with every recovery, 0 for a sale of a listing that cannot be read now; of a sale in
        shards the highest.
    created: True when this very call made the sale, False when it stood already.
    ready: False for a sale of a listing that cannot be read now; its counters are then all 0.
    shards: over how many slots its units are divided; None is one.
    place: where the ledger stood: `EPOCH-SEQUENCE`, of a sale in shards those of all shards, joined by commas.
    """

    id: str
    name: str
    items: tuple[Item, ...]
    hold_ms: int
    max_per_buyer: int | None
    opens_at: int | None
    closes_at: int | None
    sequence: int
    durability: Durability | None = None
    created: bool = field(default=False, compare=False)
    ready: bool = True
    epoch: int = 0
    shards: int | None = None
    place: str = ""

    def __post_init__(self) -> None:
        if not self.place:
            object.__setattr__(self, "place", str(self.position))

    @property
    def position(self) -> Position:
        """Where the ledger of a sale of one slot stood: transitions from here on are not in these counters yet."""
        return Position(self.epoch, self.sequence)


class Ticket(NamedTuple):
    """One buyer's claim on units of a sale. All times are Unix milliseconds of the Redis server's clock.

    A named tuple, since one is made for every reservation, in a fifth of the time of a frozen dataclass. Equal are
    tickets in the same state, whenever and however they were read.

    Parameters
    ----------
    id: `SLOT.` and 22 base64url characters.
    buyer: the keyed hash of the buyer (never the buyer), to compare with `Engine.buyer_hash`.
    expires_at: from this instant on a reserved ticket can no longer be paid.
    ended_at: when it was purchased or cancelled; for an expired ticket its `expires_at`; None while reserved.
    reference: what the buyer's payment was called; None when nothing was given.
    as_of: the server's clock when this was read, so that `expires_in_ms` needs no clock of its own.
    replayed: this answer repeats an earlier success of the same operation; nothing was done now.
    durability: of a payment, what it has reached; None for everything else.
    pending: the durability that this payment should have had, when it was not reached in time; else None.
    """

    id: str
    sale: str
    status: Status
    lines: tuple[Line, ...]
    buyer: str
    reserved_at: int
    expires_at: int
    ended_at: int | None = None
    reference: str | None = None
    as_of: int = 0
    replayed: bool = False
    durability: Durability | None = None
    pending: Durability | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticket) and self[:9] == other[:9]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:9])

    def __repr__(self) -> str:
        """Without who bought it and how it was paid: a ticket may end up in a log."""
        return (
            f"Ticket(id={self.id!r}, status={self.status.value!r}, lines={self.lines!r}, "
            f"reserved_at={self.reserved_at}, expires_at={self.expires_at}, ended_at={self.ended_at})"
        )

    @property
    def quantity(self) -> int:
        """Units over all lines."""
        return sum(line.quantity for line in self.lines)

    @property
    def expires_in_ms(self) -> int:
        """Milliseconds of hold left when this was read; 0 once the ticket has ended."""
        return max(0, self.expires_at - self.as_of) if self.status is Status.RESERVED else 0


class Order(NamedTuple):
    """What a buyer orders of a sale; the fields are those of `Engine.reserve`.

    Parameters
    ----------
    quantity: units, in a sale of one item; or `lines`, units by sku.
    key: names the operation: the same key again gives the same ticket.
    """

    buyer: str
    quantity: int | None = None
    lines: Mapping[str, int] | Sequence[Line] | None = None
    key: str | None = None


class Payment(NamedTuple):
    """What pays for a ticket; the fields are those of `Engine.confirm`."""

    ticket: str
    buyer: str
    reference: str | None = None
    key: str | None = None
    declined: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; `next` is the opaque cursor of the following one, or None at the end."""

    items: tuple[T, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Expiration:
    """A ticket whose hold ran out, as the ledger has it.

    `(slot, epoch, sequence)` names this transition for good: whoever may see it twice compares these.

    Parameters
    ----------
    expired_at: the ticket's deadline, Unix milliseconds.
    at: when the expiry was written, Unix milliseconds; `at - expired_at` is the lag.
    """

    slot: str
    epoch: int
    sequence: int
    sale: str
    ticket: str
    lines: tuple[Line, ...]
    expired_at: int
    at: int


class Kind(StrEnum):
    """What a transition of a ledger did: to a ticket, which has this status from then on, or to the sale itself."""

    RESERVED = "reserved"
    PURCHASED = "purchased"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    #: Created, amended or recovered.
    SALE = "sale"
    #: Units lent, received or settled between two shards.
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator said of a sale; the fields are those of `Engine.create_sale`."""

    name: str
    items: tuple[ItemSpec, ...]
    hold_ms: int
    max_per_buyer: int | None
    opens_at: int | None
    closes_at: int | None
    durability: Durability | None
    shards: int | None = None


class SaleTransition(NamedTuple):
    """A transition of a sale, as the ledger has it. `(slot, epoch, sequence)` names it for good.

    Parameters
    ----------
    at: when it happened, Unix milliseconds.
    ticket: id; None for one of the sale itself. lines: of the ticket.
    expires_at: of a ticket that was reserved or expired, Unix milliseconds.
    reference: what the payment is called elsewhere; None when nothing was given.
    terms: of the sale from then on; None for a ticket's transition.
    slot: whose ledger it stands in; the sale's id unless the sale is in shards.
    around: what stands before and behind this slot's position in a place of the whole sale; nothing in a sale of one
        slot.
    """

    epoch: int
    sequence: int
    at: int
    kind: Kind
    sale: str
    ticket: str | None = None
    lines: tuple[Line, ...] = ()
    expires_at: int | None = None
    reference: str | None = None
    terms: Terms | None = None
    slot: str = ""
    around: tuple[str, str] = ("", "")

    @property
    def position(self) -> Position:
        """Right behind it in its slot: where a reader of a sale of one slot goes on."""
        return Position(self.epoch, self.sequence)

    @property
    def place(self) -> str:
        """Right behind it: where a reader of the whole sale goes on."""
        before, behind = self.around
        return f"{before}{self.epoch}-{self.sequence}{behind}"

    @property
    def quantity(self) -> int:
        """Units over all lines."""
        return sum(line.quantity for line in self.lines)

    def __repr__(self) -> str:
        """Without how it was paid: a transition may end up in a log."""
        return f"SaleTransition({self.sale!r}, {self.epoch}-{self.sequence}, {self.kind.value!r}, {self.ticket!r})"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether everything can be sold, and if not, why: one reason per sale or part that is not ready.

    Parameters
    ----------
    alarms: what is wrong without keeping anything from being sold now.
    """

    ready: bool
    reasons: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How a deployment stands at one moment. None is what could not be learnt in time.

    Parameters
    ----------
    contradictions: transitions that contradict what is stored, and ledgers that cannot be copied, each an alarm.
    redis, store: whether it answers.
    expiry_lag_ms: how long ago the oldest hold was due of those that have not ended yet; 0 when none is due.
    behind, behind_ms: transitions that the store does not have yet, and the age of the oldest; without the store as
        compared with what it had, of the sales that this process knows.
    unfolded: transitions in the store that its tables of tickets do not show yet.
    memory_used, memory_limit: bytes of Redis; the limit is `maxmemory`, or the machine's.
    sales_known: how many sales there are. sales: the first of them by id, with their counters.
    """

    readiness: Readiness
    contradictions: int
    redis: bool
    store: bool
    unfolded: int | None = None
    expiry_lag_ms: int | None = None
    behind: int | None = None
    behind_ms: int | None = None
    memory_used: int | None = None
    memory_limit: int | None = None
    sales_known: int = 0
    sales: tuple[Sale, ...] = ()
