"""The batch calls: many reservations or payments of many buyers in one request, each with an outcome of its own.

For gateways, and so for the operator alone. Entries are served like as many single calls, from the same queue; what is
saved is everything around them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from aiohttp import web

from holdfast.engine import ConfigurationError, HoldfastError, InvalidRequest, Line, Order, Payment, Ticket

from .bodies import (
    BATCH_BYTES_MAX,
    IDEMPOTENCY_KEY_HEADER,
    preferred_durability,
    read_model,
    read_query,
    written_response,
)
from .callers import FINGERPRINT_HEADER, asked_by, require_operator
from .context import ABANDONED, ENGINE, REQUEST_ID
from .metrics import TALLY
from .models import TICKET_BEGIN, Body, PaymentBatchBody, PaymentEntry, ReserveBatchBody, ReserveEntry, ticket_text
from .problems import InvalidBody, outcome_of, said_of_entry, went_wrong
from .sales import sale_id
from .tally import OK, PAY, RESERVE

log = logging.getLogger("holdfast.http")

B = TypeVar("B", bound=Body)

#: What a refusal is, for those who are refused for the same reason: its class and what it carries.
_Reason = tuple[object, ...]


async def reserve_batch(request: web.Request) -> web.Response:
    """`POST /sales/{sale}/tickets/batch`: hold units for many buyers.

    Each entry is met or refused by itself, as if it had come alone, and is answered in its place.
    """
    body = await _read(request, ReserveBatchBody)
    orders = _orders(body.entries)
    return await _answered(request, 201, RESERVE, request.app[ENGINE].reserve_many(sale_id(request), orders))


async def pay_batch(request: web.Request) -> web.Response:
    """`POST /sales/{sale}/payments/batch`: pay for many tickets.

    Each entry is met or refused by itself, as if it had come alone, and is answered in its place.
    """
    body = await _read(request, PaymentBatchBody)
    payments = [_payment(entry) for entry in body.entries]
    work = request.app[ENGINE].confirm_many(
        sale_id(request), payments, durability=preferred_durability(request.headers)
    )
    return await _answered(request, 200, PAY, work)


async def _read(request: web.Request, model: type[B]) -> B:
    require_operator(asked_by(request))
    read_query(request)
    body = await read_model(request, model, bytes_max=BATCH_BYTES_MAX)
    for header, field in ((IDEMPOTENCY_KEY_HEADER, "key"), (FINGERPRINT_HEADER, "buyer")):
        if header in request.headers:
            raise InvalidRequest(f"/{header}", f"is not for batch calls: give each entry its '{field}'")
    return body


def _orders(entries: Sequence[ReserveEntry]) -> list[Order]:
    """What the entries order.

    Raises
    ------
    InvalidBody: some want nothing, or the same in two ways.
    """
    # As NamedTuple makes them, without a call of its own for each.
    new = tuple.__new__
    orders: list[Order] = []
    mistakes: list[dict[str, str]] = []
    for at, entry in enumerate(entries):
        quantity, lines = entry.get("quantity"), entry.get("lines")
        if (quantity is None) == (lines is None):
            detail = "is required, or 'lines' in its place; one of the two"
            mistakes.append({"pointer": f"/entries/{at}/quantity", "detail": detail})
        wanted = None if lines is None else [Line(line["sku"], line["quantity"]) for line in lines]
        orders.append(new(Order, (entry["buyer"], quantity, wanted, entry.get("key"))))
    if mistakes:
        raise InvalidBody(mistakes)
    return orders


def _payment(entry: PaymentEntry) -> Payment:
    declined = entry.get("outcome") == "decline"
    return Payment(entry["ticket"], entry["buyer"], entry.get("reference"), entry.get("key"), declined)


async def _answered(
    request: web.Request, status: int, call: str, work: Awaitable[list[Ticket | HoldfastError]]
) -> web.Response:
    """The answer that tells what became of each entry.

    Parameters
    ----------
    status: of an entry that was met. call: what each entry would be by itself.
    work: given up when the client is gone: what was not sent to Redis then is not done.
    """
    task = request[ABANDONED] = asyncio.ensure_future(work)
    answers = await task
    outcomes = request.app[TALLY].of_sale(call, request.match_info["sale"])
    for answer in answers:
        outcomes[OK if isinstance(answer, Ticket) else outcome_of(answer)] += 1
    text = _text(answers, status, request[REQUEST_ID])
    return written_response(f'{{"entries":[{text}]}}\n'.encode())


def _text(answers: Sequence[Ticket | HoldfastError], status: int, request_id: str) -> str:
    """What became of each, as the entries of the answer. Most are alike, and what is alike is written once."""
    begin, begin_pending = (f'{{"status":{each},"ticket":{TICKET_BEGIN}' for each in (status, 202))
    # What a ticket shares with the one before it, all but its id and its buyer, and the text of that.
    shared: tuple[object, ...] = ()
    rest = ""
    refusals: dict[_Reason, str] = {}
    texts: list[str] = []
    for answer in answers:
        if isinstance(answer, Ticket):
            theirs = answer[1:4] + answer[5:]
            if theirs != shared:
                shared = theirs
                replayed = ',"replayed":true' if answer.replayed else ""
                rest = f"{ticket_text(answer)[len(TICKET_BEGIN) + len(answer.id) : -1]}{replayed}}}"
            texts.append((begin if answer.pending is None else begin_pending) + answer.id + rest)
            continue
        reason = (type(answer), *vars(answer).values())
        text = refusals.get(reason)
        if text is None:
            text = refusals[reason] = _refusal(answer, request_id)
        texts.append(text)
    return ",".join(texts)


def _refusal(error: HoldfastError, request_id: str) -> str:
    if isinstance(error, ConfigurationError):
        log.error("request %s failed", request_id, exc_info=error)
        error_status, problem = said_of_entry(went_wrong())
    else:
        error_status, problem = said_of_entry(error)
    return f'{{"status":{error_status},"problem":{problem}}}'
