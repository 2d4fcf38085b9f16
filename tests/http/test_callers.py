"""Who calls: operator, signed tokens, fingerprints, and what a request tells by itself."""

from __future__ import annotations

import base64
import json
import time
from ipaddress import ip_network
from typing import Any

import jwt
import pytest
from multidict import CIMultiDict

from holdfast.engine import Engine
from holdfast.http.callers import client_address

KEY = "a key for buyer tokens, long enough for HS512 too: sixty-four bytes or more"
FINGERPRINT = {"X-Buyer-Fingerprint": "fp-12345678"}


# The operator ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic b3A6b3A=",
        "Token operator-token-for-tests",
        "Bearer \udcff",
    ],
)
async def test_operator_calls_need_the_token(client: Any, refused: Any, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await client.get("/sales", headers=headers)
    await refused(response, 401, "operator_token_required")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_wrong_token_is_refused_on_open_calls_too(client: Any, refused: Any, gig: str) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    await refused(await client.get("/sales/gig", headers=wrong), 401, "operator_token_required")
    await refused(
        await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=wrong), 401, "operator_token_required"
    )
    assert (await client.get("/sales/gig", headers={"Authorization": "Basic b3A6b3A="})).status == 200


async def test_the_scheme_is_read_in_any_case(client: Any, operator: dict[str, str]) -> None:
    headers = {"Authorization": operator["Authorization"].replace("Bearer", "bEARER")}
    assert (await client.get("/sales", headers=headers)).status == 200


async def test_the_operator_acts_for_a_named_buyer(
    client: Any, engine: Engine, operator: dict[str, str], gig: str, refused: Any
) -> None:
    unnamed = await refused(
        await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=operator), 422, "invalid_request"
    )
    assert unnamed["errors"][0]["pointer"] == "/buyer"
    response = await client.post("/sales/gig/tickets", json={"quantity": 1, "buyer": "Zoë"}, headers=operator)
    assert response.status == 201
    ticket = await response.json()
    assert (await engine.ticket(ticket["id"])).buyer == engine.buyer_hash("Zoë")

    path = f"/tickets/{ticket['id']}/payment"
    await refused(await client.post(path, headers=operator), 422, "invalid_request")
    await refused(await client.post(path, json={"buyer": "someone"}, headers=operator), 403, "not_your_ticket")
    assert (await client.post(path, json={"buyer": "Zoë"}, headers=operator)).status == 200
    await refused(await client.delete(path, headers=operator), 422, "invalid_request")
    await refused(await client.delete(path, params={"buyer": "Zoë"}, headers=operator), 409, "already_purchased")
    for buyer in ("", "a\x00b", "x" * 513):
        await refused(await client.delete(path, params={"buyer": buyer}, headers=operator), 422, "invalid_request")


async def test_the_operator_names_a_buyer_by_fingerprint(
    client: Any, engine: Engine, operator: dict[str, str], gig: str, refused: Any
) -> None:
    by_header = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=operator | FINGERPRINT)
    by_field = await client.post(
        "/sales/gig/tickets", json={"quantity": 1, "fingerprint": "fp-12345678"}, headers=operator
    )
    by_name = await client.post("/sales/gig/tickets", json={"quantity": 1, "buyer": "fp-12345678"}, headers=operator)
    for response in (by_header, by_field, by_name):
        assert (await engine.ticket((await response.json())["id"])).buyer == engine.buyer_hash("fp-12345678")
    body = {"quantity": 1, "buyer": "somebody else"}
    response = await client.post("/sales/gig/tickets", json=body, headers=operator | FINGERPRINT)
    await refused(response, 422, "invalid_request")


async def test_nobody_else_names_a_buyer(client: Any, gig: str, refused: Any) -> None:
    for response in (
        await client.post("/sales/gig/tickets", json={"quantity": 1, "buyer": "b"}),
        await client.post("/sales/gig/tickets", json={"quantity": 1, "buyer": "fp-12345678"}, headers=FINGERPRINT),
        await client.get("/sales/gig/tickets?buyer=b"),
        await client.delete("/tickets/gig.aaaaaaaaaaaaaaaaaaaaaa/payment?buyer=b"),
        await client.post("/tickets/gig.aaaaaaaaaaaaaaaaaaaaaa/payment", json={"buyer": "b"}),
    ):
        problem = await refused(response, 422, "invalid_request")
        assert problem["errors"][0]["pointer"] == "/buyer"


# Fingerprints ---------------------------------------------------------------------------------------------------------


async def test_a_fingerprint_in_header_or_body_is_the_same_buyer(client: Any, gig: str, refused: Any) -> None:
    body = {"quantity": 1, "fingerprint": "fp-12345678"}
    ticket = await (await client.post("/sales/gig/tickets", json=body)).json()
    listed = await (await client.get("/sales/gig/tickets", headers=FINGERPRINT)).json()
    assert [each["id"] for each in listed["items"]] == [ticket["id"]]
    both = await client.post("/sales/gig/tickets", json=body, headers=FINGERPRINT)
    assert both.status == 201
    other = {"X-Buyer-Fingerprint": "fp-87654321"}
    await refused(await client.post("/sales/gig/tickets", json=body, headers=other), 422, "invalid_request")
    path = f"/tickets/{ticket['id']}/payment"
    await refused(await client.post(path, headers=other), 403, "not_your_ticket")
    assert (await client.post(path, json={"fingerprint": "fp-12345678"})).status == 200


@pytest.mark.parametrize(
    "name", ["", "short-7", "x" * 129, "with a blank", "tab\tinside", "ünicode-name", "derived\x7f1"]
)
async def test_malformed_fingerprints(client: Any, gig: str, refused: Any, name: str) -> None:
    in_body = await client.post("/sales/gig/tickets", json={"quantity": 1, "fingerprint": name})
    problem = await refused(in_body, 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/fingerprint"
    if "\x7f" not in name:
        in_header = await client.get("/sales/gig/tickets", headers={"X-Buyer-Fingerprint": name})
        problem = await refused(in_header, 422, "invalid_request")
        assert problem["errors"][0]["pointer"] == "/X-Buyer-Fingerprint"


async def test_two_fingerprint_headers_must_agree(client: Any, gig: str, refused: Any) -> None:
    twice = CIMultiDict([("X-Buyer-Fingerprint", "fp-12345678"), ("X-Buyer-Fingerprint", "fp-87654321")])
    response = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=twice)
    await refused(response, 422, "invalid_request")


async def test_a_buyer_who_says_nothing(client: Any, gig: str, refused: Any) -> None:
    browser = {"User-Agent": "browser/1", "Accept-Language": "de"}
    ticket = await (await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=browser)).json()
    path = f"/tickets/{ticket['id']}/payment"
    for other in (browser | {"User-Agent": "browser/2"}, browser | {"Accept-Language": "fr"}, browser | FINGERPRINT):
        await refused(await client.delete(path, headers=other), 403, "not_your_ticket")
    # Without a trusted proxy the header is the client's own word.
    told = browser | {"X-Forwarded-For": "192.0.2.9"}
    assert (await client.delete(path, headers=told)).status == 200


async def test_long_headers_make_a_buyer_too(client: Any, gig: str) -> None:
    headers = {"User-Agent": "x" * 4000, "Accept-Language": "é" * 500}
    assert (await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=headers)).status == 201


async def test_buyers_behind_a_trusted_proxy_are_told_apart(clients: Any, gig: str, refused: Any) -> None:
    client = await clients(trusted_proxy=["127.0.0.0/8", "::1"])
    ticket = await (
        await client.post("/sales/gig/tickets", json={"quantity": 1}, headers={"X-Forwarded-For": "192.0.2.1"})
    ).json()
    path = f"/tickets/{ticket['id']}/payment"
    other = await client.delete(path, headers={"X-Forwarded-For": "192.0.2.2"})
    await refused(other, 403, "not_your_ticket")
    pretending = await client.delete(path, headers={"X-Forwarded-For": "192.0.2.1, 192.0.2.2"})
    await refused(pretending, 403, "not_your_ticket")
    assert (await client.delete(path, headers={"X-Forwarded-For": "junk, 192.0.2.1"})).status == 200


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [", ,"], "10.0.0.1"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        (None, ["198.51.100.1"], ""),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_address_of_a_client(peer: str | None, forwarded: list[str], address: str) -> None:
    trusted = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert client_address(peer, forwarded, trusted) == address


# Signed tokens --------------------------------------------------------------------------------------------------------


def token(key: str = KEY, algorithm: str = "HS256", **claims: Any) -> dict[str, str]:
    return {"X-Buyer-Token": jwt.encode(claims, key, algorithm=algorithm)}


def soon() -> int:
    return int(time.time()) + 60


async def test_with_a_key_the_token_is_required_and_names_the_buyer(
    clients: Any, engine: Engine, gig: str, refused: Any
) -> None:
    client = await clients(buyer_token_key=KEY)
    for headers in ({}, FINGERPRINT):
        response = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=headers)
        await refused(response, 401, "buyer_token_required")
        assert "X-Buyer-Token" in response.headers["WWW-Authenticate"]
    ann, bob = token(sub="ann", exp=soon()), token(sub="bob", exp=soon())
    response = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=ann)
    assert response.status == 201
    ticket = await response.json()
    assert (await engine.ticket(ticket["id"])).buyer == engine.buyer_hash("ann")
    path = f"/tickets/{ticket['id']}/payment"
    await refused(await client.post(path), 401, "buyer_token_required")
    await refused(await client.delete(path), 401, "buyer_token_required")
    await refused(await client.get("/sales/gig/tickets"), 401, "buyer_token_required")
    await refused(await client.post(path, headers=bob), 403, "not_your_ticket")
    assert (await client.post(path, json={"reference": "r-1"}, headers=ann)).status == 200
    assert (await (await client.get(f"/tickets/{ticket['id']}", headers=ann)).json())["reference"] == "r-1"
    for reader in ({}, bob):
        assert "reference" not in await (await client.get(f"/tickets/{ticket['id']}", headers=reader)).json()
    wrong = token(sub="ann", exp=soon(), key="another key of more than 32 bytes....")
    await refused(await client.get(f"/tickets/{ticket['id']}", headers=wrong), 401, "invalid_buyer_token")


async def test_with_a_key_the_operator_still_names_the_buyer(
    clients: Any, engine: Engine, gig: str, operator: dict[str, str]
) -> None:
    client = await clients(buyer_token_key=KEY)
    response = await client.post("/sales/gig/tickets", json={"quantity": 1, "buyer": "ann"}, headers=operator)
    assert (await engine.ticket((await response.json())["id"])).buyer == engine.buyer_hash("ann")


def unsigned(header: Any, claims: Any) -> str:
    parts = (json.dumps(part).encode() if not isinstance(part, bytes) else part for part in (header, claims))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."


def signed_raw(payload: bytes) -> str:
    return jwt.PyJWS().encode(payload, KEY, algorithm="HS256")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "a.b.c",
        "....",
        "\udcff\udcfe",
        unsigned({"alg": "none"}, {"sub": "ann", "exp": 9_999_999_999}),
        unsigned({"alg": "HS256"}, {"sub": "ann", "exp": 9_999_999_999}),
        jwt.encode({"sub": "ann", "exp": 9_999_999_999}, KEY, algorithm="HS512"),
        jwt.encode({"sub": "ann", "exp": 9_999_999_999}, "another key of more than 32 bytes....", algorithm="HS256"),
        jwt.encode({"sub": "ann"}, KEY, algorithm="HS256"),
        jwt.encode({"exp": 9_999_999_999}, KEY, algorithm="HS256"),
        jwt.encode({"sub": "ann", "exp": 1}, KEY, algorithm="HS256"),
        signed_raw(b'{"sub": "ann", "exp": "soon"}'),
        signed_raw(b'{"sub": "ann", "exp": 1e999}'),
        signed_raw(b'{"sub": "ann", "exp": NaN}'),
        signed_raw(b'{"sub": "ann", "exp": null}'),
        signed_raw(b'{"sub": "", "exp": 9999999999}'),
        signed_raw(b'{"sub": 7, "exp": 9999999999}'),
        signed_raw(b'{"sub": null, "exp": 9999999999}'),
        signed_raw(b'{"sub": ["ann"], "exp": 9999999999}'),
        signed_raw(b'{"sub": "derived\\u0000x", "exp": 9999999999}'),
        signed_raw(b'{"sub": "\\ud800", "exp": 9999999999}'),
        signed_raw(b'{"sub": "' + b"x" * 513 + b'", "exp": 9999999999}'),
        signed_raw(b'{"sub": "ann", "exp": 9999999999, "nbf": 9999999998}'),
        signed_raw(b'{"sub": "ann", "exp": 9999999999, "aud": "someone else"}'),
        signed_raw(b"[]"),
        signed_raw(b"\xff"),
        signed_raw(b"[" * 3000),
    ],
    ids=lambda text: repr(text)[:24],
)
async def test_invalid_buyer_tokens(clients: Any, gig: str, refused: Any, text: str) -> None:
    client = await clients(buyer_token_key=KEY)
    response = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers={"X-Buyer-Token": text})
    problem = await refused(response, 401, "invalid_buyer_token")
    assert KEY not in json.dumps(problem)
