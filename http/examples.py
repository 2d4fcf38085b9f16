"""An example of every body, answer and refusal, for those who read: `/openapi.json` and `/docs/errors`.

Answers and refusals are values of the types that the engine returns and raises, written by what writes the answers, so
that they cannot look otherwise than the real ones. A test holds every example against its model and its schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from holdfast.engine import (
    AllHeld,
    AlreadyCancelled,
    AlreadyPurchased,
    CapacityInUse,
    Closed,
    Durability,
    DurabilityUnavailable,
    HoldfastError,
    IdempotencyKeyReused,
    InvalidRequest,
    Item,
    LimitReached,
    Line,
    NotReady,
    NotYetOpen,
    NotYourTicket,
    OutcomeUnknown,
    Overloaded,
    PaymentDeclined,
    Sale,
    SaleExists,
    SoldOut,
    Status,
    Ticket,
    TicketExpired,
    UnknownSale,
    UnknownTicket,
)

from .callers import OPERATOR_CHALLENGE, TOKEN_CHALLENGE
from .models import (
    AmendSaleBody,
    CreateSaleBody,
    PaymentBatchBody,
    PaymentBody,
    ReserveBatchBody,
    ReserveBody,
    instant_text,
    sale_json,
    ticket_json,
)
from .problems import (
    BodyTooLarge,
    BuyerTokenRequired,
    HttpError,
    InternalError,
    InvalidBody,
    InvalidBuyerToken,
    MalformedJson,
    MalformedRequest,
    MethodNotAllowed,
    OperatorTokenRequired,
    RequestTimeout,
    UnknownRoute,
    UnsupportedMediaType,
    said,
    said_of_entry,
)

#: Noon of the Friday in the contract's examples, and the hold of a sale that does not say, Unix milliseconds.
_NOON: Final = 1_795_780_800_000
_HOLD_MS: Final = 900_000

_REQUEST_ID: Final = "0eb7192e-9"

_RESERVED: Final = Ticket(
    "gig.bqiG0D9kkSJWdrTgYupnbQ",
    "gig",
    Status.RESERVED,
    (Line("general", 2),),
    buyer="",
    reserved_at=_NOON,
    expires_at=_NOON + _HOLD_MS,
    as_of=_NOON,
)
_PURCHASED: Final = _RESERVED._replace(
    status=Status.PURCHASED, ended_at=_NOON + 47_108, reference="pay_123", durability=Durability.MEMORY
)
_CANCELLED: Final = _RESERVED._replace(status=Status.CANCELLED, ended_at=_NOON + 47_108)

_SALE: Final = Sale(
    "gig",
    "The Gig",
    (Item("general", "general", 100, None, available=57, reserved=3, purchased=40),),
    hold_ms=_HOLD_MS,
    max_per_buyer=4,
    opens_at=_NOON,
    closes_at=None,
    sequence=86,
)
_NEW: Final = Sale(
    "gig",
    "The Gig",
    (Item("general", "general", 100, None, available=100, reserved=0, purchased=0),),
    hold_ms=_HOLD_MS,
    max_per_buyer=4,
    opens_at=_NOON,
    closes_at=None,
    sequence=1,
)

#: What may be sent, by the model that validates it.
BODIES: Final[Mapping[Any, dict[str, object]]] = {
    CreateSaleBody: {
        "id": "gig",
        "name": "The Gig",
        "capacity": 100,
        "hold_ms": _HOLD_MS,
        "max_per_buyer": 4,
        "opens_at": instant_text(_NOON),
    },
    AmendSaleBody: {"capacity": 120, "closes_at": None},
    ReserveBody: {"quantity": 2},
    PaymentBody: {"reference": "pay_123"},
    ReserveBatchBody: {
        "entries": [
            {"buyer": "ann", "quantity": 2, "key": "cart-77"},
            {"buyer": "bob", "lines": [{"sku": "general", "quantity": 1}]},
        ]
    },
    PaymentBatchBody: {
        "entries": [{"ticket": _RESERVED.id, "buyer": "ann", "reference": "pay_123", "key": "pay-77"}],
    },
}

#: What is said when it is refused, by the kind of refusal.
REFUSALS: Final[Mapping[type[Exception], HoldfastError | HttpError]] = {
    type(error): error
    for error in (
        MalformedRequest("This is not HTTP as everybody reads it."),
        MalformedJson("The body is not JSON: expected value at line 1 column 1."),
        OperatorTokenRequired(
            "This call is the operator's: send 'Authorization: Bearer' and the operator's token.",
            headers=OPERATOR_CHALLENGE,
        ),
        BuyerTokenRequired("Send the buyer's token in the header X-Buyer-Token.", headers=TOKEN_CHALLENGE),
        InvalidBuyerToken("The buyer token has run out; ask for a new one.", headers=TOKEN_CHALLENGE),
        PaymentDeclined(),
        NotYourTicket(),
        UnknownRoute("There is nothing at this path."),
        UnknownSale("gig"),
        UnknownTicket(),
        MethodNotAllowed("Only DELETE, POST work here.", headers={"Allow": "DELETE, POST"}),
        RequestTimeout("The body did not arrive within 10 seconds."),
        SaleExists("gig"),
        CapacityInUse("general", 43),
        NotYetOpen(_NOON, 90_000),
        Closed(),
        LimitReached(1, "general"),
        SoldOut("general", 1),
        AllHeld("general", 0, 2_986),
        AlreadyPurchased(_PURCHASED),
        AlreadyCancelled(),
        TicketExpired(_NOON + _HOLD_MS),
        BodyTooLarge("The body of this call may have 8192 bytes at most."),
        UnsupportedMediaType(
            "The body must be sent as application/json (in UTF-8).", headers={"Accept": "application/json"}
        ),
        InvalidRequest("/lines/0/sku", "'balcony' is not an item of this sale"),
        InvalidBody([{"pointer": "/quantity", "detail": "must be at least 1"}]),
        IdempotencyKeyReused(),
        DurabilityUnavailable(Durability.REPLICA, "1 replica is needed, and none is connected."),
        InternalError("Something went wrong here; the operator's log has it under this request's id."),
        NotReady("Redis has lost the sale 'gig'; run `holdfast recover`."),
        Overloaded(),
        OutcomeUnknown(),
    )
}


#: What some refusals have at one call only: `/readyz` tells everything that is not ready.
_FURTHER: Final[Mapping[type[Exception], dict[str, object]]] = {
    NotReady: {"reasons": ["Redis has lost the sale 'gig'; run `holdfast recover`."]}
}


def refusal(kind: type[Exception]) -> dict[str, Any]:
    """The problem object of a refusal, as it is answered."""
    _, _, text = said(REFUSALS[kind], _REQUEST_ID, **_FURTHER.get(kind, {}))
    body: dict[str, Any] = json.loads(text)
    return body


def refusal_headers(kind: type[Exception]) -> Mapping[str, str]:
    """The headers that are answered with it."""
    return said(REFUSALS[kind], _REQUEST_ID)[1]


def _entry_refusal(error: HoldfastError) -> dict[str, object]:
    status, text = said_of_entry(error)
    return {"status": status, "problem": json.loads(text)}


#: What is answered, by the name of the handler.
ANSWERS: Final[Mapping[str, object]] = {
    "create_sale": sale_json(_NEW),
    "list_sales": {"items": [sale_json(_SALE)], "next": None},
    "show_sale": sale_json(_SALE),
    "amend_sale": sale_json(_SALE),
    "reserve": ticket_json(_RESERVED, private=True),
    "list_tickets": {"items": [ticket_json(_PURCHASED, private=True)], "next": None},
    "reserve_batch": {
        "entries": [
            {"status": 201, "ticket": ticket_json(_RESERVED, private=True)},
            _entry_refusal(SoldOut("general", 1)),
        ]
    },
    "pay_batch": {"entries": [{"status": 200, "ticket": ticket_json(_PURCHASED, private=True)}]},
    "show_ticket": ticket_json(_RESERVED, private=True),
    "pay": ticket_json(_PURCHASED, private=True),
    "cancel": ticket_json(_CANCELLED, private=True),
    "healthz": {"status": "ok"},
    "readyz": {"status": "ready"},
}
