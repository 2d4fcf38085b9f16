"""The calls about tickets: reserve, pay, cancel, look."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import hdrs, web

from holdfast.engine import InvalidRequest, Line, Order, Payment, Status, Ticket

from .bodies import (
    PREFERENCE_APPLIED_HEADER,
    idempotency_key,
    json_response,
    preference_applied,
    preferred_durability,
    read_model,
    read_query,
    require_no_body,
)
from .callers import Caller, asked_by, authenticate, authenticate_reader, require_buyer_name
from .context import ENGINE, Headers
from .models import PaymentBody, ReserveBody, ticket_json
from .sales import page_limit, sale_id

_REPLAYED = {"Idempotent-Replayed": "true"}


def _own_ticket(ticket: Ticket, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    headers = {**(headers or {}), **(_REPLAYED if ticket.replayed else {})}
    return json_response(ticket_json(ticket, private=True), status=status, headers=headers)


def reserve_order(body: ReserveBody, caller: Caller, headers: Headers) -> Order:
    """The order of a body.

    Raises
    ------
    InvalidRequest: it wants nothing, or the same in two ways; the buyer or the key cannot be right.
    """
    if bool(body.quantity) == bool(body.lines):
        raise InvalidRequest("/quantity", "is required, or 'lines' in its place; one of the two")
    return Order(
        caller.buyer(fingerprint=body.fingerprint, buyer=body.buyer),
        body.quantity or None,
        [Line(line.sku, line.quantity) for line in body.lines] or None,
        idempotency_key(headers),
    )


def confirm_payment(ticket: str, body: PaymentBody, caller: Caller, headers: Headers) -> Payment:
    """The payment of a body; raises as `reserve_order`."""
    return Payment(
        ticket,
        caller.buyer(fingerprint=body.fingerprint, buyer=body.buyer),
        body.reference or None,
        idempotency_key(headers),
        body.outcome == "decline",
    )


async def reserve(request: web.Request) -> web.Response:
    """`POST /sales/{sale}/tickets`: hold units for a buyer.

    All lines or nothing. The ticket keeps its units until `expires_at`; what is not paid by then comes back by itself.
    """
    caller = authenticate(asked_by(request))
    read_query(request)
    body = await read_model(request, ReserveBody)
    order = reserve_order(body, caller, request.headers)
    ticket = await request.app[ENGINE].reserve(sale_id(request), **order._asdict())
    return _own_ticket(ticket, status=201, headers={hdrs.LOCATION: f"/tickets/{ticket.id}"})


async def list_tickets(request: web.Request) -> web.Response:
    """`GET /sales/{sale}/tickets`: a buyer's own tickets.

    For the operator all of them, or those of `?buyer=`. The oldest come first.
    """
    caller = authenticate(asked_by(request))
    query = read_query(request, "status", "limit", "cursor", "buyer")
    named = require_buyer_name(query["buyer"]) if "buyer" in query else ""
    buyer = caller.named_buyer(buyer=named) if caller.operator else caller.buyer(buyer=named)
    status = _status(query["status"]) if "status" in query else None
    limit = page_limit(query.get("limit"))
    page = await request.app[ENGINE].tickets(
        sale_id(request), buyer=buyer, status=status, limit=limit, cursor=query.get("cursor")
    )
    return json_response({"items": [ticket_json(ticket, private=True) for ticket in page.items], "next": page.next})


def _status(text: str) -> Status:
    try:
        return Status(text)
    except ValueError:
        raise InvalidRequest("/status", f"must be one of {', '.join(Status)}") from None


async def show_ticket(request: web.Request) -> web.Response:
    """`GET /tickets/{ticket}`: a ticket as it stands.

    Whoever has the id may look; only owner and operator see the reference.
    """
    caller = authenticate_reader(asked_by(request))
    read_query(request)
    engine = request.app[ENGINE]
    ticket = await engine.ticket(request.match_info["ticket"])
    private = caller.operator or (
        ticket.reference is not None
        and (buyer := caller.reader()) is not None
        and engine.buyer_hash(buyer) == ticket.buyer
    )
    return json_response(ticket_json(ticket, private=private))


async def pay(request: web.Request) -> web.Response:
    """`POST /tickets/{ticket}/payment`: pay for a held ticket.

    The payment is a mock: confirming is the payment, and `{"outcome": "decline"}` rehearses a declined card. With
    `Prefer: durability=LEVEL` it is answered once that much has it.
    """
    caller = authenticate(asked_by(request))
    read_query(request)
    body = await read_model(request, PaymentBody, may_be_empty=True)
    payment = confirm_payment(request.match_info["ticket"], body, caller, request.headers)
    preferred = preferred_durability(request.headers)
    ticket = await request.app[ENGINE].confirm(**payment._asdict(), durability=preferred)
    if ticket.pending is not None:
        return _own_ticket(ticket, status=202)
    applied: dict[str, str] = {}
    if preferred is not None:
        applied[PREFERENCE_APPLIED_HEADER] = preference_applied(ticket.durability)
    return _own_ticket(ticket, headers=applied)


async def cancel(request: web.Request) -> web.Response:
    """`DELETE /tickets/{ticket}/payment`: give a held ticket back.

    Its units are free again at once. The repeat is answered like the first call.
    """
    caller = authenticate(asked_by(request))
    query = read_query(request, "buyer")
    await require_no_body(request)
    buyer = caller.buyer(buyer=require_buyer_name(query["buyer"]) if "buyer" in query else "")
    return _own_ticket(await request.app[ENGINE].cancel(request.match_info["ticket"], buyer=buyer))
