"""The table of refusals: complete, and said as promised."""

from __future__ import annotations

import json

import pytest

from holdfast.engine import AllHeld, ConfigurationError, HoldfastError, NotReady, NotYetOpen, TicketExpired
from holdfast.http.problems import TABLE, HttpError, MethodNotAllowed, kind_of, problem


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {each for sub in kind.__subclasses__() for each in {sub} | subclasses(sub)}


def test_every_refusal_has_a_status_and_nothing_else_has() -> None:
    coded = {error for error in subclasses(HoldfastError) if "code" in vars(error)}
    assert set(TABLE) == (coded - {ConfigurationError}) | subclasses(HttpError)


def test_what_derives_from_a_refusal_is_said_like_it() -> None:
    class Special(NotReady):
        """Of no code of its own."""

    assert kind_of(Special) == TABLE[NotReady]
    with pytest.raises(LookupError):
        kind_of(ConfigurationError)


#: Section 7 of the contract.
STATUSES = {
    "malformed_request": 400,
    "malformed_json": 400,
    "operator_token_required": 401,
    "buyer_token_required": 401,
    "invalid_buyer_token": 401,
    "payment_declined": 402,
    "not_your_ticket": 403,
    "unknown_route": 404,
    "unknown_sale": 404,
    "unknown_ticket": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "sale_exists": 409,
    "capacity_in_use": 409,
    "not_yet_open": 409,
    "closed": 409,
    "limit_reached": 409,
    "sold_out": 409,
    "all_held": 409,
    "already_purchased": 409,
    "already_cancelled": 409,
    "ticket_expired": 410,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "idempotency_key_reused": 422,
    "durability_unavailable": 422,
    "internal_error": 500,
    "not_ready": 503,
    "overloaded": 503,
    "outcome_unknown": 503,
}


def test_the_codes_and_their_statuses() -> None:
    assert {error.code: kind.status for error, kind in TABLE.items()} == STATUSES


@pytest.mark.parametrize(
    ("retry_after_ms", "seconds"), [(0, "1"), (1, "1"), (999, "1"), (1000, "1"), (1001, "2"), (90_000, "90")]
)
def test_retry_after_is_rounded_up(retry_after_ms: int, seconds: str) -> None:
    response = problem(AllHeld("general", 0, retry_after_ms), "r-1")
    assert response.headers["Retry-After"] == seconds
    assert json.loads(response.body)["retry_after_ms"] == retry_after_ms  # type: ignore[arg-type]


def test_instants_are_written_for_people() -> None:
    opening = json.loads(problem(NotYetOpen(1_795_780_800_000, 5), "r-1").body)  # type: ignore[arg-type]
    assert opening["opens_at"] == "2026-11-27T12:00:00.000Z"
    expired = json.loads(problem(TicketExpired(1_795_780_800_007), "r-1").body)  # type: ignore[arg-type]
    assert expired["expired_at"] == "2026-11-27T12:00:00.007Z"


def test_what_was_sent_may_be_quoted_even_when_it_is_no_unicode() -> None:
    response = problem(NotReady("\ud800"), "r-1")
    assert json.loads(response.body)["detail"] == "Not ready: \ud800"  # type: ignore[arg-type]


def test_headers_of_a_refusal() -> None:
    response = problem(MethodNotAllowed("No.", headers={"Allow": "GET"}), "r-1")
    assert response.headers["Allow"] == "GET"
