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
    in_transit: NotRequired[Units]


class SaleAnswer(TypedDict):
    """A sale with its counters.

    `shards` and `in_transit` are there when it has several; `ready` is there, and false, when it cannot be read now.
    """

    id: Name
    name: str
    items: list[ItemAnswer]
    hold_ms: Annotated[int, Field(ge=limits.HOLD_MS_MIN, le=limits.HOLD_MS_MAX)]
    max_per_buyer: int | None
    opens_at: InstantText | None
    closes_at: InstantText | None
    durability: Durability | None
    shards: NotRequired[int]
    sequence: Units
    capacity: Units
    available: Units
    reserved: Units
    purchased: Units
    in_transit: NotRequired[Units]
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
    """A transition in the operator's stream.

    Of a ticket; or, when `kind` is `sale`, of the sale and its terms; or, when it is `transfer`, of units between two
    shards. `slot` is there when the sale has several.
    """

    epoch: Units
    sequence: Units
    at: InstantText
    kind: Kind
    sale: Name
    slot: NotRequired[str]
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
    shards: NotRequired[int]


class Mistake(TypedDict):
    """What is wrong, and where: a JSON pointer."""

    pointer: str
    detail: str


class EntryProblem(TypedDict):
    """A refusal (RFC 9457); which of the further fields are there is told by `code`."""

    type: Annotated[str, Field(description="Where the code is explained: a path on this server.")]
    title: Annotated[str, Field(description="What it is, for people; the same for each code.")]
    status: Annotated[int, Field(description="The status of the answer.")]
    detail: Annotated[str, Field(description="What is wrong here, for people.")]
    code: Annotated[str, Field(description="What programs decide by.")]
    errors: NotRequired[Annotated[list[Mistake], Field(description="Each mistake, and a JSON pointer to it.")]]
    sale: NotRequired[Annotated[str, Field(description="The sale that it is about.")]]
    sku: NotRequired[Annotated[str, Field(description="The item that it is about.")]]
    available: NotRequired[Annotated[Units, Field(description="Units of this item that are free now.")]]
    in_use: NotRequired[Annotated[Units, Field(description="Units of this item that are held or sold.")]]
    remaining: NotRequired[Annotated[Units, Field(description="Units that this buyer may still take.")]]
    opens_at: NotRequired[Annotated[InstantText, Field(description="When the selling window begins.")]]
    expired_at: NotRequired[Annotated[InstantText, Field(description="When the hold ran out.")]]
    durability: NotRequired[Annotated[Durability, Field(description="What was asked for.")]]
    retry_after_ms: NotRequired[
        Annotated[Units, Field(description="When to try again, milliseconds; the header `Retry-After` has seconds.")]
    ]
    ticket: NotRequired[Annotated[TicketAnswer, Field(description="The ticket as it stands.")]]
    reason: NotRequired[Annotated[str, Field(description="What is not ready or cannot be had, for an operator.")]]
    reasons: NotRequired[Annotated[list[str], Field(description="At `/readyz`: everything that is not ready.")]]


class Problem(EntryProblem):
    """The refusal of a call."""

    request_id: Annotated[str, Field(description="What the log calls this request.")]


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
