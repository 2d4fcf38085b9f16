"""Bodies in and out: what each call takes (pydantic, from the bytes as they came) and what it answers.

A field that may be left out has a default that validation would refuse (`0` for a quantity, `""` for a name), so that
"absent" needs no `null`: `null` is accepted only where it has a meaning of its own.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Literal, NoReturn, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError, to_json

# pydantic reads that of the standard library from Python 3.12 on, and brings this one along.
from typing_extensions import TypedDict

from holdfast.engine import Durability, Item, ItemSpec, Line, Sale, SaleTransition, Status, Terms, Ticket, limits

UTC_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

#: Texts of each kind that are remembered: in a stampede nearly all instants fall into a few seconds, those of a batch
#: are the same, and so are the lines of tickets.
TEXTS_MAX = 4096

#: A capacity that was not given: 0 is a capacity.
NO_CAPACITY = -1

#: Shards that were not given: a sale of one slot.
NO_SHARDS = 0

#: Visible ASCII: a fingerprint must be spelled alike in a header and in a body.
FINGERPRINT_PATTERN = rf"^[\x21-\x7e]{{{limits.FINGERPRINT_CHARS_MIN},{limits.FINGERPRINT_CHARS_MAX}}}$"

#: A buyer as the operator or a token names it: anything printable, so that it can never spell a derived one.
BUYER_PATTERN = rf"^[^\x00-\x1f\x7f]{{1,{limits.BUYER_CHARS_MAX}}}$"

#: An idempotency key in a body; as in the header.
KEY_PATTERN = rf"^[\x21-\x7e]{{1,{limits.KEY_CHARS_MAX}}}$"

#: What people read: one line of it.
TEXT_PATTERN = r"^[^\x00-\x1f\x7f]+$"

#: What each pattern means, for a person.
PATTERN_SENTENCES = {
    limits.NAME_PATTERN: "must be 1 to 64 lower-case letters, digits and hyphens, and start with a letter or a digit",
    FINGERPRINT_PATTERN: (
        f"must be {limits.FINGERPRINT_CHARS_MIN} to {limits.FINGERPRINT_CHARS_MAX} visible ASCII characters"
    ),
    BUYER_PATTERN: f"must be 1 to {limits.BUYER_CHARS_MAX} characters without control characters",
    KEY_PATTERN: f"must be 1 to {limits.KEY_CHARS_MAX} visible ASCII characters",
    TEXT_PATTERN: "must not be empty and must not contain control characters",
}

_RFC3339 = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


# Times ----------------------------------------------------------------------------------------------------------------


def instant_ms(text: object) -> int:
    """An RFC 3339 instant with an offset as Unix milliseconds; what is finer than that is cut off.

    Raises
    ------
    PydanticCustomError: it is not one, or lies before 1970.
    """
    match = _RFC3339.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        _refuse_instant()
    date, clock, fraction, offset = match.groups()
    milliseconds = (fraction or "0")[:3].ljust(3, "0")
    try:
        instant = datetime.fromisoformat(f"{date}T{clock}.{milliseconds}{'+00:00' if offset in 'Zz' else offset}")
    except ValueError:
        _refuse_instant()
    value = (instant - UTC_EPOCH) // MILLISECOND
    if not 0 <= value <= limits.INSTANT_MS_MAX:
        raise PydanticCustomError("instant_range", "must lie between the years 1970 and 9999")
    return value


def _refuse_instant() -> NoReturn:
    raise PydanticCustomError("instant", "must be a time with an offset, such as 2026-11-27T12:00:00Z")


@lru_cache(maxsize=TEXTS_MAX)
def _second_text(second: int) -> str:
    return (UTC_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=TEXTS_MAX)
def instant_text(unix_ms: int) -> str:
    """Unix milliseconds as `2026-11-27T12:00:00.000Z`."""
    second, millisecond = divmod(unix_ms, 1000)
    return f"{_second_text(second)}.{millisecond:03d}Z"


# Bodies in ------------------------------------------------------------------------------------------------------------

Name = Annotated[str, Field(pattern=limits.NAME_PATTERN)]
DisplayName = Annotated[str, Field(pattern=TEXT_PATTERN, max_length=limits.DISPLAY_NAME_CHARS_MAX)]
Capacity = Annotated[int, Field(ge=0, le=limits.CAPACITY_MAX)]
PerBuyer = Annotated[int, Field(ge=1, le=limits.CAPACITY_MAX)]
HoldMs = Annotated[int, Field(ge=limits.HOLD_MS_MIN, le=limits.HOLD_MS_MAX)]
Shards = Annotated[int, Field(ge=1, le=limits.SHARDS_MAX)]
Quantity = Annotated[int, Field(ge=1, le=limits.QUANTITY_MAX)]
Fingerprint = Annotated[str, Field(pattern=FINGERPRINT_PATTERN)]
Buyer = Annotated[str, Field(pattern=BUYER_PATTERN)]
Reference = Annotated[str, Field(pattern=TEXT_PATTERN, max_length=limits.REFERENCE_CHARS_MAX)]
Key = Annotated[str, Field(pattern=KEY_PATTERN)]
Instant = Annotated[int, BeforeValidator(instant_ms), WithJsonSchema({"type": "string", "format": "date-time"})]


class Body(BaseModel):
    """A body that takes exactly its fields, each in exactly its JSON type."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ItemBody(Body):
    """An item of a new sale."""

    sku: Name
    capacity: Capacity
    name: DisplayName = ""
    max_per_buyer: PerBuyer | None = None


class CreateSaleBody(Body):
    """`POST /sales`. Either `capacity` or `items`."""

    id: Name = ""
    name: DisplayName
    capacity: Capacity = NO_CAPACITY
    items: Annotated[list[ItemBody], Field(min_length=1, max_length=limits.ITEMS_MAX)] = []
    hold_ms: HoldMs = limits.HOLD_MS_DEFAULT
    max_per_buyer: PerBuyer | None = None
    opens_at: Instant | None = None
    closes_at: Instant | None = None
    durability: Durability | None = None
    shards: Shards = NO_SHARDS


class AmendItemBody(Body):
    """An item in a merge patch, found by its sku; one that is not there yet is added."""

    sku: Name
    capacity: Capacity = NO_CAPACITY
    name: DisplayName = ""
    max_per_buyer: PerBuyer | None = None


class AmendSaleBody(Body):
    """`PATCH /sales/{sale}`: what is given changes, `null` takes a limit or an end of the window away."""

    name: DisplayName = ""
    capacity: Capacity = NO_CAPACITY
    items: Annotated[list[AmendItemBody], Field(min_length=1, max_length=limits.ITEMS_MAX)] = []
    hold_ms: HoldMs = 0
    max_per_buyer: PerBuyer | None = None
    opens_at: Instant | None = None
    closes_at: Instant | None = None

    def changes(self) -> dict[str, object]:
        """What was given, as the engine takes it."""
        changes = {name: getattr(self, name) for name in self.model_fields_set}
        if "items" in changes:
            changes["items"] = [item.model_dump(exclude_unset=True) for item in self.items]
        return changes


class LineBody(Body):
    """So many units of one item."""

    sku: Name
    quantity: Quantity


class ReserveBody(Body):
    """`POST /sales/{sale}/tickets`. Either `quantity` or `lines`."""

    quantity: Quantity = 0
    lines: Annotated[list[LineBody], Field(min_length=1, max_length=limits.LINES_MAX)] = []
    fingerprint: Fingerprint = ""
    buyer: Buyer = ""


class PaymentBody(Body):
    """`POST /tickets/{id}/payment`; every field may be left out, and so may the body."""

    reference: Reference = ""
    outcome: Literal["approve", "decline"] = "approve"
    fingerprint: Fingerprint = ""
    buyer: Buyer = ""


class Entry(TypedDict):
    """What the entries of batch calls have in common.

    Entries are dictionaries: of 500 models the making would cost more than everything else that is done with them.
    """

    __pydantic_config__ = Body.model_config  # type: ignore[misc]

    buyer: Buyer
    key: NotRequired[Key]


class LineEntry(TypedDict):
    """So many units of one item."""

    __pydantic_config__ = Body.model_config  # type: ignore[misc]

    sku: Name
    quantity: Quantity


class ReserveEntry(Entry):
    """An entry of `POST /sales/{sale}/tickets/batch`. Either `quantity` or `lines`."""

    quantity: NotRequired[Quantity]
    lines: NotRequired[Annotated[list[LineEntry], Field(min_length=1, max_length=limits.LINES_MAX)]]


class PaymentEntry(Entry):
    """An entry of `POST /sales/{sale}/payments/batch`."""

    ticket: str
    reference: NotRequired[Reference]
    outcome: NotRequired[Literal["approve", "decline"]]


class ReserveBatchBody(Body):
    """`POST /sales/{sale}/tickets/batch`."""

    entries: Annotated[list[ReserveEntry], Field(min_length=1, max_length=limits.ENTRIES_MAX)]


class PaymentBatchBody(Body):
    """`POST /sales/{sale}/payments/batch`."""

    entries: Annotated[list[PaymentEntry], Field(min_length=1, max_length=limits.ENTRIES_MAX)]


# What was wrong with a body -------------------------------------------------------------------------------------------

#: pydantic's kinds of error in our words; `{}` takes from the error's context.
_SENTENCES = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this call",
    "int_type": "must be a whole number, without a fraction and without quotes",
    "int_parsing_size": "is too large a number",
    "string_type": "must be a string",
    "string_too_long": "must have at most {max_length} characters",
    "string_unicode": "must be valid Unicode",
    "list_type": "must be an array",
    "too_short": "must have at least {min_length} entry",
    "too_long": "must have at most {max_length} entries",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


def pointer(location: tuple[int | str, ...]) -> str:
    """A place in a document as a JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def sentence(error: ErrorDetails) -> str:
    """What is wrong with a value, for a person."""
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "string_pattern_mismatch":
        return PATTERN_SENTENCES[context["pattern"]]
    template = _SENTENCES.get(kind)
    # Our own errors (an instant) bring their sentence with them.
    return template.format(**context) if template else error["msg"]


# Bodies out -----------------------------------------------------------------------------------------------------------

ENDED_FIELDS = {Status.PURCHASED: "purchased_at", Status.CANCELLED: "cancelled_at", Status.EXPIRED: "expired_at"}


def ticket_json(ticket: Ticket, *, private: bool) -> dict[str, object]:
    """A ticket as it is answered.

    Parameters
    ----------
    private: the reader is its owner or the operator, who may see `reference`. The buyer is shown to nobody.
    """
    body: dict[str, object] = {
        "id": ticket.id,
        "sale": ticket.sale,
        "status": ticket.status.value,
        "lines": [{"sku": line.sku, "quantity": line.quantity} for line in ticket.lines],
        "quantity": ticket.quantity,
        "reserved_at": instant_text(ticket.reserved_at),
        "expires_at": instant_text(ticket.expires_at),
        "expires_in_ms": ticket.expires_in_ms,
    }
    if ticket.ended_at is not None:
        body[ENDED_FIELDS[ticket.status]] = instant_text(ticket.ended_at)
    if private and ticket.reference is not None:
        body["reference"] = ticket.reference
    if ticket.durability is not None:
        body["durability"] = ticket.durability.value
        if ticket.pending is not None:
            body["durability_pending"] = ticket.pending.value
    return body


@lru_cache(maxsize=TEXTS_MAX)
def _lines_text(lines: tuple[Line, ...]) -> str:
    """The lines of a ticket and their total, as they stand in its JSON; skus need no escapes."""
    listed = ",".join(f'{{"sku":"{line.sku}","quantity":{line.quantity}}}' for line in lines)
    return f'"lines":[{listed}],"quantity":{sum(line.quantity for line in lines)}'


#: What stands before the id in the text of every ticket.
TICKET_BEGIN = '{"id":"'


def ticket_text(ticket: Ticket) -> str:
    """The ticket as its owner or the operator is answered: the JSON of `ticket_json`, in a third of the time."""
    status = ticket.status
    ended = ""
    if ticket.ended_at is not None:
        ended = f',"{ENDED_FIELDS[status]}":"{instant_text(ticket.ended_at)}"'
        if ticket.reference is not None:
            ended += f',"reference":{to_json(ticket.reference).decode()}'
        if ticket.durability is not None:
            ended += f',"durability":"{ticket.durability.value}"'
            if ticket.pending is not None:
                ended += f',"durability_pending":"{ticket.pending.value}"'
    return (
        f'{TICKET_BEGIN}{ticket.id}","sale":"{ticket.sale}","status":"{status.value}",{_lines_text(ticket.lines)},'
        f'"reserved_at":"{instant_text(ticket.reserved_at)}","expires_at":"{instant_text(ticket.expires_at)}",'
        f'"expires_in_ms":{ticket.expires_in_ms}{ended}}}\n'
    )


def sale_json(sale: Sale) -> dict[str, object]:
    """A sale as it is answered, with its totals."""
    items: list[dict[str, object]] = []
    for item in sale.items:
        counted = {"available": item.available, "reserved": item.reserved, "purchased": item.purchased}
        items.append(_item_terms(item) | counted | ({} if sale.shards is None else {"in_transit": item.in_transit}))
    return {
        "id": sale.id,
        "name": sale.name,
        "items": items,
        **_terms_json(sale),
        "sequence": sale.sequence,
        "capacity": sum(item.capacity for item in sale.items),
        "available": sum(item.available for item in sale.items),
        "reserved": sum(item.reserved for item in sale.items),
        "purchased": sum(item.purchased for item in sale.items),
        **({} if sale.shards is None else {"in_transit": sum(item.in_transit for item in sale.items)}),
        **({} if sale.ready else {"ready": False}),
    }


def transition_json(transition: SaleTransition) -> dict[str, object]:
    """A transition as the operator is told it; the buyer is shown to nobody."""
    body: dict[str, object] = {
        "epoch": transition.epoch,
        "sequence": transition.sequence,
        "at": instant_text(transition.at),
        "kind": transition.kind.value,
        "sale": transition.sale,
    }
    if transition.slot != transition.sale:
        body["slot"] = transition.slot
    terms = transition.terms
    if terms is not None:
        return body | {
            "name": terms.name,
            "items": [_item_terms(item) for item in terms.items],
            **_terms_json(terms),
        }
    if transition.ticket is not None:
        body["ticket"] = transition.ticket
    body["lines"] = [{"sku": line.sku, "quantity": line.quantity} for line in transition.lines]
    body["quantity"] = transition.quantity
    if transition.expires_at is not None:
        body["expires_at"] = instant_text(transition.expires_at)
    if transition.reference is not None:
        body["reference"] = transition.reference
    return body


def _item_terms(item: Item | ItemSpec) -> dict[str, object]:
    fields: dict[str, object] = {"sku": item.sku, "name": item.name, "capacity": item.capacity}
    if item.max_per_buyer is not None:
        fields["max_per_buyer"] = item.max_per_buyer
    return fields


def _terms_json(of: Sale | Terms) -> dict[str, object]:
    return {
        "hold_ms": of.hold_ms,
        "max_per_buyer": of.max_per_buyer,
        "opens_at": None if of.opens_at is None else instant_text(of.opens_at),
        "closes_at": None if of.closes_at is None else instant_text(of.closes_at),
        "durability": of.durability,
        **({} if of.shards is None else {"shards": of.shards}),
    }
