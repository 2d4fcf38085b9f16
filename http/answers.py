"""What the calls answer, as types: for the description of the API alone. Answers are written by `models.py`."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from holdfast.engine import Durability, Kind, Status, limits

from .models import Name, Quantity

InstantText = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Units = Annotated[int, Field(ge=0)]


class TicketLine(TypedDict):
    """So many units of one item."""

    sku: Name
    quantity: Quantity


class TicketAnswer(TypedDict):
    """A ticket; the buyer is never shown, and `reference` only to its owner and the operator."""

    id: str
    sale: Name
    status: Status
    lines: list[TicketLine]
    quantity: Units
    reserved_at: InstantText
    expires_at: InstantText
    expires_in_ms: Units
    purchased_at: NotRequired[InstantText]
    cancelled_at: NotRequired[InstantText]
    expired_at: NotRequired[InstantText]
    reference: NotRequired[str]
    durability: NotRequired[Durability]
    durability_pending: NotRequired[Durability]


class ItemAnswer(TypedDict):
    """An item of a sale with its counters."""

    sku: Name
    name: str
    capacity: Units
    max_per_buyer: NotRequired[int]
    available: Units
    reserved: Units
    purchased: Units


class SaleAnswer(TypedDict):
    """A sale with its counters; `ready` is there, and false, when it cannot be read now."""

    id: Name
    name: str
    items: list[ItemAnswer]
    hold_ms: Annotated[int, Field(ge=limits.HOLD_MS_MIN, le=limits.HOLD_MS_MAX)]
    max_per_buyer: int | None
    opens_at: InstantText | None
    closes_at: InstantText | None
    durability: Durability | None
    sequence: Units
    capacity: Units
    available: Units
    reserved: Units
    purchased: Units
    ready: NotRequired[Literal[False]]


class TicketsAnswer(TypedDict):
    """A page of tickets, and the cursor of the next one."""

    items: list[TicketAnswer]
    next: str | None


class SalesAnswer(TypedDict):
    """A page of sales, and the cursor of the next one."""

    items: list[SaleAnswer]
    next: str | None


class ItemTerms(TypedDict):
    """An item as the operator described it."""

    sku: Name
    name: str
    capacity: Units
    max_per_buyer: NotRequired[int]


class TransitionAnswer(TypedDict):
    """A transition in the operator's stream: of a ticket, or, when `kind` is `sale`, of the sale and its terms."""

    epoch: Units
    sequence: Units
    at: InstantText
    kind: Kind
    sale: Name
    ticket: NotRequired[str]
    lines: NotRequired[list[TicketLine]]
    quantity: NotRequired[Units]
    expires_at: NotRequired[InstantText]
    reference: NotRequired[str]
    name: NotRequired[str]
    items: NotRequired[list[ItemTerms]]
    hold_ms: NotRequired[int]
    max_per_buyer: NotRequired[int | None]
    opens_at: NotRequired[InstantText | None]
    closes_at: NotRequired[InstantText | None]
    durability: NotRequired[Durability | None]


class Mistake(TypedDict):
    """What is wrong, and where: a JSON pointer."""

    pointer: str
    detail: str


class EntryProblem(TypedDict):
    """A refusal (RFC 9457); which of the further fields are there is told by `code`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: NotRequired[list[Mistake]]
    sku: NotRequired[str]
    available: NotRequired[Units]
    in_use: NotRequired[Units]
    remaining: NotRequired[Units]
    opens_at: NotRequired[InstantText]
    expired_at: NotRequired[InstantText]
    retry_after_ms: NotRequired[Units]
    ticket: NotRequired[TicketAnswer]
    reasons: NotRequired[list[str]]


class Problem(EntryProblem):
    """The refusal of a call."""

    request_id: str


class EntryAnswer(TypedDict):
    """What became of one entry of a batch call."""

    status: int
    ticket: NotRequired[TicketAnswer]
    replayed: NotRequired[bool]
    problem: NotRequired[EntryProblem]


class BatchAnswer(TypedDict):
    """What became of each entry, in their order."""

    entries: list[EntryAnswer]


class HealthAnswer(TypedDict):
    """The process answers, or everything can be sold."""

    status: Literal["ok", "ready"]
    alarms: NotRequired[list[str]]


class DescriptionAnswer(TypedDict):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, str]
    paths: dict[str, object]
    components: dict[str, object]
