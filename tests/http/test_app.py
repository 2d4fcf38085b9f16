"""What surrounds every request: ids, methods, other origins, the order of checks, mistakes of our own."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from holdfast.engine import ConfigurationError, Engine
from holdfast.http.context import AppConfig

PAY = "/tickets/gig.aaaaaaaaaaaaaaaaaaaaaa/payment"
SHOP = "https://shop.example"


# Request ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", ["r-1", "!", "x" * 128, "00-4bf92f3577b34da6a3ce929d0e0e4736-01"])
async def test_a_sane_request_id_is_kept(client: Any, refused: Any, request_id: str) -> None:
    response = await client.get("/nope", headers={"X-Request-Id": request_id})
    assert (await refused(response, 404, "unknown_route"))["request_id"] == request_id
    assert (await client.get("/healthz", headers={"X-Request-Id": request_id})).headers["X-Request-Id"] == request_id


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "ü", "a\tb"])
async def test_any_other_gets_one_of_ours(client: Any, request_id: str) -> None:
    first = await client.get("/healthz", headers={"X-Request-Id": request_id})
    second = await client.get("/healthz")
    made = {first.headers["X-Request-Id"], second.headers["X-Request-Id"]}
    assert len(made) == 2
    assert request_id not in made


# Methods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/sales", "GET, HEAD, POST"),
        ("/sales/gig", "GET, HEAD, PATCH"),
        ("/sales/gig/tickets", "GET, HEAD, POST"),
        ("/tickets/x", "GET, HEAD"),
        (PAY, "DELETE, POST"),
        ("/healthz", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
    ],
)
async def test_allow_names_what_works(client: Any, refused: Any, path: str, allow: str) -> None:
    response = await client.put(path)
    await refused(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == allow


@pytest.mark.parametrize("path", ["/sales/gig", "/healthz", "/readyz"])
async def test_head_is_get_without_a_body(client: Any, gig: str, path: str) -> None:
    got, headed = await client.get(path), await client.head(path)
    assert (got.status, headed.status) == (200, 200)
    assert await headed.read() == b""
    assert headed.headers["Content-Type"] == got.headers["Content-Type"]


async def test_head_of_what_is_not_there(client: Any) -> None:
    response = await client.head("/sales/nope")
    assert (response.status, await response.read()) == (404, b"")


# Other origins --------------------------------------------------------------------------------------------------------

PREFLIGHT = {"Origin": SHOP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


async def test_no_other_origin_by_default(client: Any, gig: str, refused: Any) -> None:
    response = await client.get("/sales/gig", headers={"Origin": SHOP})
    assert "Access-Control-Allow-Origin" not in response.headers
    preflight = await client.options("/sales/gig/tickets", headers=PREFLIGHT)
    await refused(preflight, 405, "method_not_allowed")
    assert "Access-Control-Allow-Origin" not in preflight.headers


async def test_an_allowed_origin(clients: Any, gig: str, refused: Any) -> None:
    client = await clients(allow_origin=[SHOP, "http://localhost:3000"])
    response = await client.get("/sales/gig", headers={"Origin": SHOP})
    assert response.headers["Access-Control-Allow-Origin"] == SHOP
    assert response.headers["Vary"] == "Origin"
    assert "Location" in response.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in response.headers

    preflight = await client.options("/sales/gig/tickets", headers=PREFLIGHT)
    assert (preflight.status, await preflight.read()) == (204, b"")
    assert preflight.headers["Access-Control-Allow-Origin"] == SHOP
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in preflight.headers

    refusal = await client.get("/sales/nope", headers={"Origin": SHOP})
    await refused(refusal, 404, "unknown_sale")
    assert refusal.headers["Access-Control-Allow-Origin"] == SHOP


@pytest.mark.parametrize("origin", ["https://evil.example", "https://shop.example.evil.example", "null", SHOP.upper()])
async def test_any_other_origin(clients: Any, gig: str, refused: Any, origin: str) -> None:
    client = await clients(allow_origin=[SHOP])
    response = await client.get("/sales/gig", headers={"Origin": origin})
    assert response.status == 200
    assert "Access-Control-Allow-Origin" not in response.headers
    assert response.headers["Vary"] == "Origin"
    preflight = await client.options("/sales/gig/tickets", headers=PREFLIGHT | {"Origin": origin})
    await refused(preflight, 405, "method_not_allowed")


async def test_every_origin(clients: Any, gig: str) -> None:
    client = await clients(allow_origin=["*"])
    response = await client.get("/sales/gig", headers={"Origin": "https://anyone.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in response.headers


# Precedence -----------------------------------------------------------------------------------------------------------


async def test_the_order_of_checks_of_an_operator_call(
    client: Any, operator: dict[str, str], gig: str, refused: Any
) -> None:
    big, text = b"x" * 9000, {"Content-Type": "text/plain"}
    json = {"Content-Type": "application/json"}

    async def sent(method: str, path: str, body: bytes, headers: dict[str, str], status: int, code: str) -> None:
        await refused(await client.request(method, path, data=body, headers=headers), status, code)

    await sent("PUT", "/nope", big, text, 404, "unknown_route")
    await sent("PUT", "/sales", big, text, 405, "method_not_allowed")
    await sent("POST", "/sales", big, text, 401, "operator_token_required")
    await sent("POST", "/sales", big, operator | text, 413, "body_too_large")
    await sent("POST", "/sales", b"{", operator | text, 415, "unsupported_media_type")
    await sent("POST", "/sales", b"{", operator | json, 400, "malformed_json")
    await sent("PATCH", "/sales/NOPE", b'{"x":1}', operator | json, 422, "invalid_request")
    await sent("PATCH", "/sales/NOPE", b'{"name":"x"}', operator | json, 404, "unknown_sale")


async def test_the_order_of_checks_of_a_buyers_call(clients: Any, engine: Engine, gig: str, refused: Any) -> None:
    client = await clients()
    keyed = await clients(buyer_token_key="a key for buyer tokens, 32 bytes or more")
    json = {"Content-Type": "application/json", "X-Buyer-Fingerprint": "fp-12345678"}
    await refused(await keyed.post(PAY, data=b"x" * 9000), 401, "buyer_token_required")
    await refused(await client.post(PAY, data=b"x" * 9000, headers=json), 413, "body_too_large")
    await refused(await client.post(PAY, data=b'{"x":1}', headers=json), 422, "invalid_request")
    bad_key = json | {"Idempotency-Key": "a b"}
    await refused(await client.post(PAY, data=b"{}", headers=bad_key), 422, "invalid_request")
    await refused(await client.post(PAY, data=b"{}", headers=json), 404, "unknown_ticket")
    ticket = await engine.reserve("gig", buyer="somebody", quantity=1)
    path = f"/tickets/{ticket.id}/payment"
    await engine.cancel(ticket.id, buyer="somebody")
    await refused(await client.post(path, data=b"{}", headers=json), 403, "not_your_ticket")
    mine = json | {"X-Buyer-Fingerprint": "somebody"}
    await refused(await client.post(path, data=b'{"outcome":"decline"}', headers=mine), 409, "already_cancelled")


async def test_window_then_limit_then_stock(client: Any, engine: Engine, refused: Any) -> None:
    reserve = {"json": {"quantity": 3}}
    await engine.create_sale("tight", name="Tight", capacity=2, max_per_buyer=2, closes_at=1)
    await refused(await client.post("/sales/tight/tickets", **reserve), 409, "closed")
    await engine.amend_sale("tight", {"closes_at": None})
    await refused(await client.post("/sales/tight/tickets", **reserve), 409, "limit_reached")
    await engine.amend_sale("tight", {"max_per_buyer": None})
    await refused(await client.post("/sales/tight/tickets", **reserve), 409, "sold_out")


# Mistakes of our own --------------------------------------------------------------------------------------------------


async def test_a_mistake_of_ours_is_logged_and_not_shown(
    client: Any, engine: Engine, refused: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(sale: str) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr(engine, "sale", broken)
    with caplog.at_level(logging.ERROR, "holdfast.http"):
        response = await client.get("/sales/gig", headers={"X-Request-Id": "r-500"})
    assert "secret" not in str(await refused(response, 500, "internal_error"))
    assert "r-500" in caplog.text
    assert "a secret detail" in caplog.text


async def test_answers_do_not_tell_versions(client: Any) -> None:
    assert (await client.get("/healthz")).headers["Server"] == "Holdfast"


# Settings -------------------------------------------------------------------------------------------------------------

TOKEN = "operator-token-for-tests"


@pytest.mark.parametrize(
    "settings",
    [
        {"operator_token": "short"},
        {"operator_token": "with a blank in it"},
        {"operator_token": TOKEN, "buyer_token_key": "short-secret"},
        {"operator_token": TOKEN, "trusted_proxy": ["10.0.0.0/33"]},
        {"operator_token": TOKEN, "trusted_proxy": ["proxy.example"]},
        {"operator_token": TOKEN, "allow_origin": ["shop.example"]},
        {"operator_token": TOKEN, "allow_origin": ["https://shop.example/"]},
        {"operator_token": TOKEN, "allow_origin": ["ftp://shop.example"]},
        {"operator_token": TOKEN, "allow_origin": ["https://[::1"]},
    ],
)
def test_settings_that_cannot_be_right(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        AppConfig.checked(**settings)
    assert settings["operator_token"] not in str(refusal.value)
    assert "short-secret" not in str(refusal.value)


def test_settings_do_not_show_secrets() -> None:
    config = AppConfig.checked(operator_token=TOKEN, buyer_token_key="a key for buyer tokens, 32 bytes or more")
    assert TOKEN not in repr(config)
    assert "buyer tokens" not in repr(config)
