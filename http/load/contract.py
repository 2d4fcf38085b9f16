"""What an answer says, and whether it is one that the contract allows (docs/api.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from pydantic_core import from_json

from .. import models
from ..problems import TABLE
from .log import Call, Operation
from .wire import Answer

#: The status of each code.
STATUSES: Final[Mapping[str, int]] = {str(vars(error).get("code", "")): kind.status for error, kind in TABLE.items()}

#: Codes that any call may hear: the server cannot say or do more now.
ALWAYS: Final = frozenset({"not_ready", "overloaded", "outcome_unknown"})

#: What each call may be refused with, asked as the harness asks it.
REFUSALS: Final[Mapping[Call, frozenset[str]]] = {
    Call.RESERVE: ALWAYS | {"not_yet_open", "closed", "limit_reached", "sold_out", "all_held", "request_timeout"},
    Call.PAY: ALWAYS | {"already_purchased", "already_cancelled", "ticket_expired", "request_timeout"},
    Call.CANCEL: ALWAYS | {"already_purchased", "ticket_expired"},
}

#: The status of each call's success. 202: paid, and its durability was not reached in time.
SUCCESSES: Final[Mapping[Call, tuple[int, ...]]] = {Call.RESERVE: (201,), Call.PAY: (200, 202), Call.CANCEL: (200,)}

#: What a ticket may be after each call's success: a repeated reservation is answered with the ticket as it is now.
STATES: Final[Mapping[Call, tuple[str, ...]]] = {
    Call.RESERVE: ("reserved", "purchased", "cancelled", "expired"),
    Call.PAY: ("purchased",),
    Call.CANCEL: ("cancelled",),
}

#: Texts of instants that are remembered: in a stampede nearly all fall into a few seconds.
TEXTS_MAX: Final = 4096

instant_ms = lru_cache(TEXTS_MAX)(models.instant_ms)

#: Characters of an answer that are shown where it is wrong.
SHOWN_CHARS: Final = 160


def read(operation: Operation, sale: str, answer: Answer, expected: tuple[int, str] | None = None) -> None:
    """Write down what the answer to an operation says, and in `wrong` what of it the contract does not allow.

    Parameters
    ----------
    sale: the id of its sale. expected: status and code of the only refusal that is right, for garbage.
    """
    operation.status = answer.status
    operation.replayed = answer.headers.get(b"idempotent-replayed") == b"true"
    try:
        body = from_json(answer.body)
        if not isinstance(body, dict):
            raise ValueError
    except ValueError:
        operation.wrong = f"{answer.status} with a body that is no JSON object: {_shown(answer)}"
        return
    try:
        if 200 <= answer.status < 300:
            operation.wrong = _success(operation, sale, body, expected)
        else:
            operation.wrong = _refusal(operation, answer, body, expected)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        operation.wrong = f"{answer.status} lacks something ({type(error).__name__}: {error}): {_shown(answer)}"


def _success(operation: Operation, sale: str, body: dict[str, Any], expected: tuple[int, str] | None) -> str:
    if expected is not None:
        return f"{operation.status} for garbage that has to be refused with {expected[0]} {expected[1]}"
    asked = operation.ticket
    operation.ticket = _visible(str(body["id"]))
    operation.state = _visible(str(body["status"]))
    operation.units = int(body["quantity"])
    operation.expires_at = instant_ms(body["expires_at"])
    if operation.state == "reserved":
        operation.now = operation.expires_at - int(body["expires_in_ms"])
    ended_at = body.get("purchased_at") or body.get("cancelled_at")
    operation.ended_at = instant_ms(ended_at) if ended_at else 0
    if operation.status not in SUCCESSES[operation.call]:
        return f"{operation.status} is no answer to {operation.call}"
    if operation.state not in STATES[operation.call]:
        return f"the ticket {operation.ticket} is {operation.state} after {operation.call}"
    if asked and operation.ticket != asked:
        return f"{operation.call} of {asked} was answered with {operation.ticket}"
    if body["sale"] != sale:
        return f"{operation.ticket} belongs to {body['sale']}, and {sale} was asked for"
    if operation.units != operation.quantity:
        return f"{operation.ticket} has {operation.units} units, and {operation.quantity} were asked for"
    return ""


def _refusal(operation: Operation, answer: Answer, body: dict[str, Any], expected: tuple[int, str] | None) -> str:
    operation.code = code = _visible(str(body.get("code", "")))
    operation.retry_after_ms = int(body.get("retry_after_ms", 0))
    ticket = body.get("ticket")
    if code == "already_purchased" and isinstance(ticket, dict):
        operation.state, operation.ended_at = "purchased", instant_ms(ticket["purchased_at"])
        operation.expires_at = instant_ms(ticket["expires_at"])
    elif code == "ticket_expired":
        operation.state, operation.expires_at = "expired", instant_ms(body["expired_at"])
    elif code == "already_cancelled":
        operation.state = "cancelled"
    if not answer.headers.get(b"content-type", b"").startswith(b"application/problem+json"):
        return f"{answer.status} is not application/problem+json: {_shown(answer)}"
    if expected is not None:
        if (answer.status, code) != expected and code not in ALWAYS:
            return f"{answer.status} {code} for garbage that has to be refused with {expected[0]} {expected[1]}"
    elif code not in REFUSALS[operation.call]:
        return f"{answer.status} {code or 'without a code'} is no answer to {operation.call}: {_shown(answer)}"
    if STATUSES.get(code) != answer.status:
        return f"{code} has status {STATUSES.get(code)}, and came with {answer.status}"
    return ""


def _shown(answer: Answer) -> str:
    return _visible(answer.body.decode("utf-8", "replace").strip())


def _visible(text: str) -> str:
    """The beginning of a text from outside, as it may go to a terminal."""
    return re.sub(r"[^ -~]", "?", text[:SHOWN_CHARS])
