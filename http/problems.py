"""The status of every refusal, and how it is said: RFC 9457 `application/problem+json`.

`TABLE` is the one place where an exception meets a status code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from aiohttp import web

from holdfast.engine import (
    AllHeld,
    AlreadyCancelled,
    AlreadyPurchased,
    CapacityInUse,
    Closed,
    ConfigurationError,
    DurabilityUnavailable,
    HoldfastError,
    IdempotencyKeyReused,
    InvalidRequest,
    LimitReached,
    NotReady,
    NotYetOpen,
    NotYourTicket,
    OutcomeUnknown,
    Overloaded,
    PaymentDeclined,
    SaleExists,
    SoldOut,
    TicketExpired,
    UnknownSale,
    UnknownTicket,
)

from .models import instant_text, ticket_json

#: Where a code is explained, relative to the server.
TYPE_PREFIX = "/docs/errors#"

#: Details that are instants: the engine counts in milliseconds, people and JSON read RFC 3339.
INSTANT_DETAILS = ("opens_at", "expired_at")


class HttpError(Exception):
    """A refusal that only HTTP knows. `str(error)` is a sentence that a person understands.

    Parameters
    ----------
    detail: that sentence.
    headers: what the answer must carry beside it (`Allow`, `WWW-Authenticate`).
    closes: the connection cannot be used again, because the rest of the request was not read.
    """

    code: ClassVar[str]

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, closes: bool = False) -> None:
        super().__init__(detail)
        self.headers = headers or {}
        self.closes = closes


class MalformedRequest(HttpError):
    """What arrived is not HTTP, or not in a way that everybody reads alike."""

    code = "malformed_request"


class MalformedJson(HttpError):
    """The body is no JSON at all."""

    code = "malformed_json"


class InvalidBody(HttpError):
    """The body is JSON, but not what this call takes.

    Parameters
    ----------
    errors: for each mistake a JSON pointer into the body and a sentence.
    count: of mistakes, when there are more than these.
    """

    code = "invalid_request"

    def __init__(self, errors: list[dict[str, str]], count: int = 0) -> None:
        first = errors[0]
        more = max(count, len(errors)) - 1
        others = f" (and {more} more)" if more else ""
        super().__init__(f"{first['pointer'] or 'The body'}: {first['detail']}{others}")
        self.errors = errors


class OperatorTokenRequired(HttpError):
    """The call is the operator's, and the caller has not shown to be the operator."""

    code = "operator_token_required"


class BuyerTokenRequired(HttpError):
    """Buyers are told apart by signed tokens here, and there was none."""

    code = "buyer_token_required"


class InvalidBuyerToken(HttpError):
    """The buyer's token is not signed with our key, has run out, or names nobody."""

    code = "invalid_buyer_token"


class UnknownRoute(HttpError):
    """Nothing lives at this path."""

    code = "unknown_route"


class MethodNotAllowed(HttpError):
    """The path exists, but not with this method; the `Allow` header names those that do."""

    code = "method_not_allowed"


class RequestTimeout(HttpError):
    """The body did not arrive in time."""

    code = "request_timeout"


class BodyTooLarge(HttpError):
    """The body is larger than this call takes."""

    code = "body_too_large"


class UnsupportedMediaType(HttpError):
    """The body is not JSON by its own description."""

    code = "unsupported_media_type"


class InternalError(HttpError):
    """A mistake of ours; the log has what happened, under the request's id."""

    code = "internal_error"


class Kind(NamedTuple):
    """How one kind of refusal is said: its status, a title that never changes, and what whoever hears it should do."""

    status: int
    title: str
    advice: str


#: Every exception that can be answered. A test holds this equal to the engine's refusals.
TABLE: Mapping[type[Exception], Kind] = {
    MalformedRequest: Kind(
        400,
        "The request is not HTTP",
        "Mend the client: the same bytes will never be taken. Connect anew; this connection is closed.",
    ),
    MalformedJson: Kind(
        400,
        "The body is not JSON",
        "Send one JSON document in UTF-8. The same body will never be taken.",
    ),
    OperatorTokenRequired: Kind(
        401,
        "The operator's token is required",
        "Send `Authorization: Bearer TOKEN`; the server prints it when it starts. Buyers send none.",
    ),
    BuyerTokenRequired: Kind(
        401,
        "A buyer token is required",
        "Ask the shop for a token for this buyer, and send it as `X-Buyer-Token`.",
    ),
    InvalidBuyerToken: Kind(
        401,
        "The buyer token is not valid",
        "Get a fresh token for this buyer, and send the call again with it, and with the same key.",
    ),
    PaymentDeclined: Kind(
        402,
        "The payment was declined",
        "Pay again before `expires_at`; the units stay held until then.",
    ),
    NotYourTicket: Kind(
        403,
        "The ticket belongs to another buyer",
        "Pay or cancel as the buyer who reserved: with the same token, or the same fingerprint.",
    ),
    UnknownRoute: Kind(
        404,
        "Nothing lives here",
        "Look at `/docs` for what there is.",
    ),
    UnknownSale: Kind(
        404,
        "There is no such sale",
        "Check the sale's id. A sale that Redis has lost is `not_ready`, never this.",
    ),
    UnknownTicket: Kind(
        404,
        "There is no such ticket",
        "Check the ticket's id, all of it.",
    ),
    MethodNotAllowed: Kind(
        405,
        "The method is not allowed here",
        "Use one of the methods in the header `Allow`.",
    ),
    RequestTimeout: Kind(
        408,
        "The body did not arrive in time",
        "Send the call again, with the same key, on a new connection.",
    ),
    SaleExists: Kind(
        409,
        "A different sale has this id",
        "Take another id, or change the sale that there is with PATCH.",
    ),
    CapacityInUse: Kind(
        409,
        "The capacity is held or sold",
        "Choose a capacity of `in_use` or more. What is held may come back: it can be less later.",
    ),
    NotYetOpen: Kind(
        409,
        "The sale has not opened yet",
        "Come back at `opens_at`; the header `Retry-After` says in how many seconds that is.",
    ),
    Closed: Kind(
        409,
        "The sale is closed",
        "Do not try again: the selling window is over.",
    ),
    LimitReached: Kind(
        409,
        "The buyer's limit is reached",
        "Take `remaining` units or fewer. Cancelling a held ticket, or letting it run out, makes room.",
    ),
    SoldOut: Kind(
        409,
        "Sold out",
        "Take `available` units or fewer, or none: what is held would not be enough either.",
    ),
    AllHeld: Kind(
        409,
        "Everything left is held",
        "Try again after `retry_after_ms`, when the next hold runs out, or take `available` units now.",
    ),
    AlreadyPurchased: Kind(
        409,
        "The ticket was purchased already",
        "Nothing: the ticket is paid, and `ticket` shows it. A repeat with the payment's key gets the success again.",
    ),
    AlreadyCancelled: Kind(
        409,
        "The ticket was cancelled",
        "Reserve again, with a new key.",
    ),
    TicketExpired: Kind(
        410,
        "The hold has run out",
        "Reserve again, with a new key. The units went back to the others.",
    ),
    BodyTooLarge: Kind(
        413,
        "The body is too large",
        "Send less at once: the calls of one ticket take 8 KiB, those of a batch 256 KiB.",
    ),
    UnsupportedMediaType: Kind(
        415,
        "The media type is not supported",
        "Send `Content-Type: application/json`, uncompressed.",
    ),
    InvalidRequest: Kind(
        422,
        "The request is not valid",
        "Mend what `errors` names. The same values will never be taken.",
    ),
    InvalidBody: Kind(
        422,
        "The request is not valid",
        "Mend what `errors` names. The same values will never be taken.",
    ),
    IdempotencyKeyReused: Kind(
        422,
        "The idempotency key was used for another request",
        "Use a new key for a new request. A repeat must be the very same request.",
    ),
    DurabilityUnavailable: Kind(
        422,
        "The durability cannot be had here",
        "Ask for another durability, or for none. The sentence says what the deployment lacks.",
    ),
    InternalError: Kind(
        500,
        "Something went wrong here",
        "Tell the operator the request's id. Sending it again with the same key is safe.",
    ),
    NotReady: Kind(
        503,
        "Not ready",
        "Send the same call again after `retry_after_ms`. Nothing was done.",
    ),
    Overloaded: Kind(
        503,
        "Too many requests are waiting",
        "Send the same call again after `retry_after_ms`, a little later each time. Nothing was done.",
    ),
    OutcomeUnknown: Kind(
        503,
        "The outcome is not known",
        "Send the same call again with the same key after `retry_after_ms`: it tells what became of the first one.",
    ),
}


_KINDS = dict(TABLE)


def kind_of(error: type[Exception]) -> Kind:
    """How a kind of refusal is said; a kind that is not in the table is said like the one that it derives from.

    Raises
    ------
    LookupError: neither it nor anything that it derives from is in the table.
    """
    kind = _KINDS.get(error)
    if kind is None:
        kind = next((TABLE[each] for each in error.__mro__ if each in TABLE), None)
        if kind is None:
            raise LookupError(f"{error.__name__} has no status")
        _KINDS[error] = kind
    return kind


def outcome_of(error: BaseException) -> str:
    """What became of a call that ended like this: the code of the refusal that its caller hears."""
    if isinstance(error, (HoldfastError, HttpError)) and not isinstance(error, ConfigurationError):
        return error.code
    return InternalError.code


def went_wrong() -> InternalError:
    """What is said when a request failed and the log has why."""
    return InternalError("Something went wrong here; the operator's log has it under this request's id.")


def said(error: HoldfastError | HttpError, request_id: str, **extra: object) -> tuple[int, dict[str, str], str]:
    """A refusal as status, headers and body, which is ASCII.

    Parameters
    ----------
    error: an instance of a class in `TABLE`, or of one derived from it.
    request_id: what the log calls this request.
    extra: further members of the problem object.
    """
    status, members = _members(error)
    details = {**_details(error), **extra}
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    if isinstance(error, HttpError):
        headers.update(error.headers)
    retry_after_ms = details.get("retry_after_ms")
    if isinstance(retry_after_ms, int):
        headers["Retry-After"] = str(max(1, -(-retry_after_ms // 1000)))
    return status, headers, _text({**members, "request_id": request_id, **details}) + "\n"


def said_of_entry(error: HoldfastError | HttpError) -> tuple[int, str]:
    """The refusal of one entry of a batch as status and problem object; the request's id stands in the header alone."""
    status, members = _members(error)
    return status, _text({**members, **_details(error)})


def _members(error: HoldfastError | HttpError) -> tuple[int, dict[str, object]]:
    """The status of a refusal, and what the problem objects of all refusals have."""
    kind = kind_of(type(error))
    return kind.status, {
        "type": TYPE_PREFIX + error.code,
        "title": kind.title,
        "status": kind.status,
        "detail": str(error),
        "code": error.code,
    }


def _text(body: Mapping[str, object]) -> str:
    # ASCII only: a refusal may quote what was sent, and lone surrogates have no UTF-8.
    return json.dumps(body, separators=(",", ":"))


def problem(error: HoldfastError | HttpError, request_id: str, **extra: object) -> web.Response:
    """Say a refusal; parameters as of `said`."""
    status, headers, text = said(error, request_id, **extra)
    response = web.Response(body=text.encode("ascii"), status=status, headers=headers)
    if isinstance(error, HttpError) and error.closes:
        response.force_close()
    return response


def _details(error: HoldfastError | HttpError) -> dict[str, object]:
    if isinstance(error, InvalidBody):
        return {"errors": error.errors}
    if isinstance(error, HttpError):
        return {}
    if isinstance(error, InvalidRequest):
        return {"errors": [{"pointer": pointer, "detail": detail} for pointer, detail in error.mistakes]}
    if isinstance(error, AlreadyPurchased):
        # Ownership is checked before state: whoever hears this is the owner.
        return {"ticket": ticket_json(error.ticket, private=True)}
    details = error.details()
    for name in INSTANT_DETAILS:
        instant_ms = details.get(name)
        if isinstance(instant_ms, int):
            details[name] = instant_text(instant_ms)
    return details
