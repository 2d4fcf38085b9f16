"""The calls about tickets, row by row."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from holdfast.engine import Engine

ANN = {"X-Buyer-Fingerprint": "fp-ann-ann"}
BOB = {"X-Buyer-Fingerprint": "fp-bob-bob"}
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def reserve(client: Any, sale: str = "gig", buyer: dict[str, str] = ANN, **body: Any) -> dict[str, Any]:
    response = await client.post(f"/sales/{sale}/tickets", json=body or {"quantity": 1}, headers=buyer)
    assert response.status == 201, await response.text()
    ticket: dict[str, Any] = await response.json()
    return ticket


def payment(ticket: dict[str, Any]) -> str:
    return f"/tickets/{ticket['id']}/payment"


# Reserve --------------------------------------------------------------------------------------------------------------


async def test_reserve(client: Any, gig: str) -> None:
    response = await client.post("/sales/gig/tickets", json={"quantity": 2}, headers=ANN)
    assert response.status == 201
    assert response.headers["Cache-Control"] == "no-store"
    assert "Idempotent-Replayed" not in response.headers
    ticket = await response.json()
    assert response.headers["Location"] == f"/tickets/{ticket['id']}"
    assert re.fullmatch(r"gig\.[A-Za-z0-9_-]{22}", ticket["id"])
    assert list(ticket) == [
        "id",
        "sale",
        "status",
        "lines",
        "quantity",
        "reserved_at",
        "expires_at",
        "expires_in_ms",
    ]
    assert (ticket["sale"], ticket["status"], ticket["quantity"]) == ("gig", "reserved", 2)
    assert ticket["lines"] == [{"sku": "general", "quantity": 2}]
    assert INSTANT.fullmatch(ticket["reserved_at"])
    assert INSTANT.fullmatch(ticket["expires_at"])
    assert 0 < ticket["expires_in_ms"] <= 900_000
    sale = await (await client.get("/sales/gig")).json()
    assert (sale["available"], sale["reserved"], sale["purchased"]) == (8, 2, 0)


async def test_reserve_lines(client: Any, duo: str, refused: Any) -> None:
    lines = [{"sku": "seat", "quantity": 1}, {"sku": "box", "quantity": 1}, {"sku": "seat", "quantity": 1}]
    ticket = await reserve(client, "duo", lines=lines)
    assert ticket["quantity"] == 3
    assert {line["sku"]: line["quantity"] for line in ticket["lines"]} == {"seat": 2, "box": 1}
    for body in ({"quantity": 1}, {"lines": [{"sku": "nope", "quantity": 1}]}):
        await refused(await client.post("/sales/duo/tickets", json=body, headers=ANN), 422, "invalid_request")


async def test_stock_refusals(client: Any, operator: dict[str, str], duo: str, refused: Any) -> None:
    await reserve(client, "duo", BOB, lines=[{"sku": "box", "quantity": 1}])
    body = {"lines": [{"sku": "box", "quantity": 2}]}
    held = await refused(await client.post("/sales/duo/tickets", json=body, headers=ANN), 409, "all_held")
    assert (held["sku"], held["available"]) == ("box", 1)
    assert held["retry_after_ms"] > 0
    body = {"lines": [{"sku": "box", "quantity": 3}]}
    out = await refused(await client.post("/sales/duo/tickets", json=body, headers=ANN), 409, "sold_out")
    assert (out["sku"], out["available"]) == ("box", 1)
    assert "retry_after_ms" not in out


async def test_limit_reached(client: Any, gig: str, refused: Any) -> None:
    await reserve(client, quantity=3)
    response = await client.post("/sales/gig/tickets", json={"quantity": 2}, headers=ANN)
    assert (await refused(response, 409, "limit_reached"))["remaining"] == 1


async def test_not_yet_open(client: Any, engine: Engine, refused: Any) -> None:
    await engine.create_sale("later", name="Later", capacity=1, opens_at=32_472_144_000_000)
    response = await client.post("/sales/later/tickets", json={"quantity": 1}, headers=ANN)
    problem = await refused(response, 409, "not_yet_open")
    assert problem["opens_at"] == "2999-01-01T00:00:00.000Z"


async def test_reserve_replayed(client: Any, gig: str, refused: Any) -> None:
    keyed = ANN | {"Idempotency-Key": "cart-77"}
    first = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=keyed)
    again = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=keyed)
    assert (first.status, again.status) == (201, 201)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.headers["Location"] == again.headers["Location"]
    assert (await first.json())["id"] == (await again.json())["id"]
    assert (await (await client.get("/sales/gig")).json())["reserved"] == 1
    other = await client.post("/sales/gig/tickets", json={"quantity": 2}, headers=keyed)
    await refused(other, 422, "idempotency_key_reused")
    elsewhere = await client.post(
        "/sales/gig/tickets", json={"quantity": 2}, headers=BOB | {"Idempotency-Key": "cart-77"}
    )
    assert elsewhere.status == 201
    assert "Idempotent-Replayed" not in elsewhere.headers
    await client.post(payment(await first.json()), headers=ANN)
    later = await client.post("/sales/gig/tickets", json={"quantity": 1}, headers=keyed)
    assert (later.status, (await later.json())["status"]) == (201, "purchased")


# Pay ------------------------------------------------------------------------------------------------------------------


async def test_pay(client: Any, gig: str, operator: dict[str, str]) -> None:
    ticket = await reserve(client)
    response = await client.post(payment(ticket), json={"reference": "pay_123"}, headers=ANN)
    assert response.status == 200
    assert "Location" not in response.headers
    paid = await response.json()
    assert (paid["status"], paid["reference"], paid["expires_in_ms"]) == ("purchased", "pay_123", 0)
    assert INSTANT.fullmatch(paid["purchased_at"])
    sale = await (await client.get("/sales/gig")).json()
    assert (sale["available"], sale["reserved"], sale["purchased"]) == (9, 0, 1)
    path = f"/tickets/{ticket['id']}"
    assert (await (await client.get(path, headers=ANN)).json())["reference"] == "pay_123"
    assert (await (await client.get(path, headers=operator)).json())["reference"] == "pay_123"
    assert "reference" not in await (await client.get(path, headers=BOB)).json()


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}, {"Content-Type": "text/plain"}])
async def test_pay_with_an_empty_body(client: Any, gig: str, headers: dict[str, str]) -> None:
    ticket = await reserve(client)
    response = await client.post(payment(ticket), data=b"", headers=ANN | headers)
    assert response.status == 200
    assert "reference" not in await response.json()


async def test_pay_twice(client: Any, gig: str, refused: Any) -> None:
    ticket = await reserve(client)
    keyed = ANN | {"Idempotency-Key": "k-1"}
    first = await client.post(payment(ticket), json={"reference": "r-1"}, headers=keyed)
    again = await client.post(payment(ticket), json={"reference": "r-1"}, headers=keyed)
    assert (first.status, again.status) == (200, 200)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    for headers in (ANN, ANN | {"Idempotency-Key": "k-2"}):
        problem = await refused(await client.post(payment(ticket), headers=headers), 409, "already_purchased")
        assert problem["ticket"]["id"] == ticket["id"]
        assert problem["ticket"]["reference"] == "r-1"
        assert problem["ticket"]["purchased_at"]


async def test_pay_another_ones_ticket(client: Any, gig: str, refused: Any) -> None:
    ticket = await reserve(client)
    await refused(await client.post(payment(ticket), headers=BOB), 403, "not_your_ticket")
    await client.post(payment(ticket), headers=ANN)
    problem = await refused(await client.post(payment(ticket), headers=BOB), 403, "not_your_ticket")
    assert "ticket" not in problem


async def test_a_declined_payment_leaves_the_hold(client: Any, gig: str, refused: Any) -> None:
    ticket = await reserve(client)
    await refused(await client.post(payment(ticket), json={"outcome": "decline"}, headers=ANN), 402, "payment_declined")
    shown = await (await client.get(f"/tickets/{ticket['id']}")).json()
    assert (shown["status"], shown["expires_at"]) == ("reserved", ticket["expires_at"])
    assert (await client.post(payment(ticket), json={"outcome": "approve"}, headers=ANN)).status == 200


async def test_pay_what_was_cancelled(client: Any, gig: str, refused: Any) -> None:
    ticket = await reserve(client)
    await client.delete(payment(ticket), headers=ANN)
    await refused(await client.post(payment(ticket), headers=ANN), 409, "already_cancelled")


async def test_pay_or_cancel_what_has_run_out(client: Any, engine: Engine, refused: Any) -> None:
    await engine.create_sale("brief", name="Brief", capacity=1, hold_ms=1)
    ticket = await reserve(client, "brief")
    await asyncio.sleep(0.01)
    for response in (
        await client.post(payment(ticket), headers=ANN),
        await client.delete(payment(ticket), headers=ANN),
    ):
        problem = await refused(response, 410, "ticket_expired")
        assert problem["expired_at"] == ticket["expires_at"]
    shown = await (await client.get(f"/tickets/{ticket['id']}")).json()
    assert (shown["status"], shown["expired_at"], shown["expires_in_ms"]) == ("expired", ticket["expires_at"], 0)


# Cancel ---------------------------------------------------------------------------------------------------------------


async def test_cancel_and_again(client: Any, gig: str) -> None:
    ticket = await reserve(client, quantity=2)
    first = await client.delete(payment(ticket), headers=ANN)
    again = await client.delete(payment(ticket), headers=ANN)
    assert (first.status, again.status) == (200, 200)
    cancelled = await first.json()
    assert cancelled["status"] == "cancelled"
    assert INSTANT.fullmatch(cancelled["cancelled_at"])
    assert (await again.json())["cancelled_at"] == cancelled["cancelled_at"]
    assert (await (await client.get("/sales/gig")).json())["available"] == 10


async def test_cancel_refusals(client: Any, gig: str, refused: Any) -> None:
    ticket = await reserve(client)
    await refused(await client.delete(payment(ticket), headers=BOB), 403, "not_your_ticket")
    body = await client.delete(payment(ticket), json={"fingerprint": "fp-ann-ann"}, headers=ANN)
    await refused(body, 422, "invalid_request")
    await client.post(payment(ticket), headers=ANN)
    problem = await refused(await client.delete(payment(ticket), headers=ANN), 409, "already_purchased")
    assert problem["ticket"]["status"] == "purchased"


# Look -----------------------------------------------------------------------------------------------------------------

UNKNOWN = [
    "gig.aaaaaaaaaaaaaaaaaaaaaa",
    "nope.aaaaaaaaaaaaaaaaaaaaaa",
    "gig~1.aaaaaaaaaaaaaaaaaaaaaa",
    "gig",
    "x",
    "gig.short",
    "GIG.aaaaaaaaaaaaaaaaaaaaaa",
    "gig.aaaaaaaaaaaaaaaaaaaaa!",
    "gig.aaaaaaaaaaaaaaaaaaaaaaa",
    "a" * 500,
    "%00",
    "%FF%FE",
    "gig.aaaaaaaaaaaaaaaaaaaaaa%0A",
]


@pytest.mark.parametrize("ticket", UNKNOWN)
async def test_unknown_tickets(send: Any, gig: str, refused: Any, ticket: str) -> None:
    path = f"/tickets/{ticket}"
    await refused(await send("GET", path), 404, "unknown_ticket")
    await refused(await send("POST", f"{path}/payment", headers=ANN), 404, "unknown_ticket")
    await refused(await send("DELETE", f"{path}/payment", headers=ANN), 404, "unknown_ticket")


async def test_a_buyers_own_tickets(client: Any, gig: str) -> None:
    mine, other = await reserve(client), await reserve(client, buyer=BOB)
    await client.post(payment(mine), json={"reference": "r-1"}, headers=ANN)
    second = await reserve(client)

    async def listed(query: str = "", buyer: dict[str, str] = ANN) -> set[str]:
        response = await client.get(f"/sales/gig/tickets{query}", headers=buyer)
        assert response.status == 200
        return {ticket["id"] for ticket in (await response.json())["items"]}

    assert await listed() == {mine["id"], second["id"]}
    assert await listed("?status=purchased") == {mine["id"]}
    assert await listed("?status=expired") == set()
    assert await listed(buyer=BOB) == {other["id"]}
    assert await listed(buyer={}) == set()


async def test_the_operator_sees_all_tickets(client: Any, operator: dict[str, str], gig: str) -> None:
    tickets = [await reserve(client), await reserve(client), await reserve(client, buyer=BOB)]
    everything = {ticket["id"] for ticket in tickets}

    async def page(query: str) -> dict[str, Any]:
        answer: dict[str, Any] = await (await client.get(f"/sales/gig/tickets{query}", headers=operator)).json()
        return answer

    assert {ticket["id"] for ticket in (await page(""))["items"]} == everything
    assert [ticket["id"] for ticket in (await page("?buyer=fp-bob-bob"))["items"]] == [tickets[2]["id"]]
    assert (await page("?status=purchased"))["items"] == []
    seen: list[str] = []
    cursor = ""
    for _ in range(10):
        answer = await page(f"?limit=2{cursor}")
        assert len(answer["items"]) <= 2
        seen += [ticket["id"] for ticket in answer["items"]]
        if answer["next"] is None:
            break
        cursor = f"&cursor={answer['next']}"
    assert sorted(seen) == sorted(everything)
