"""The calls about sales, row by row."""

from __future__ import annotations

import json
from typing import Any

import pytest

DESCRIPTION = {"id": "drop", "name": "The Drop", "capacity": 100}


async def test_create_and_look(client: Any, operator: dict[str, str]) -> None:
    response = await client.post("/sales", json=DESCRIPTION, headers=operator)
    assert response.status == 201
    assert response.headers["Location"] == "/sales/drop"
    expected = {
        "id": "drop",
        "name": "The Drop",
        "items": [
            {"sku": "general", "name": "general", "capacity": 100, "available": 100, "reserved": 0, "purchased": 0}
        ],
        "hold_ms": 900_000,
        "max_per_buyer": None,
        "opens_at": None,
        "closes_at": None,
        "durability": None,
        "capacity": 100,
        "available": 100,
        "reserved": 0,
        "purchased": 0,
    }
    created = await response.json()
    assert isinstance(created.pop("sequence"), int)
    assert created == expected
    shown = await (await client.get("/sales/drop")).json()
    shown.pop("sequence")
    assert shown == expected


async def test_create_in_full(client: Any, operator: dict[str, str]) -> None:
    body = {
        "id": "full",
        "name": "In full — ünïcode",
        "items": [{"sku": "seat", "name": "A seat", "capacity": 5, "max_per_buyer": 3}, {"sku": "box", "capacity": 0}],
        "hold_ms": 1000,
        "max_per_buyer": 2,
        "opens_at": "2020-01-01T01:00:00+01:00",
        "closes_at": "2999-12-31T00:00:00.5Z",
    }
    sale = await (await client.post("/sales", json=body, headers=operator)).json()
    assert sale["items"] == [
        {
            "sku": "seat",
            "name": "A seat",
            "capacity": 5,
            "max_per_buyer": 3,
            "available": 5,
            "reserved": 0,
            "purchased": 0,
        },
        {"sku": "box", "name": "box", "capacity": 0, "available": 0, "reserved": 0, "purchased": 0},
    ]
    assert sale["name"] == "In full — ünïcode"
    assert (sale["hold_ms"], sale["max_per_buyer"], sale["capacity"]) == (1000, 2, 5)
    assert sale["opens_at"] == "2020-01-01T00:00:00.000Z"
    assert sale["closes_at"] == "2999-12-31T00:00:00.500Z"


async def test_the_identical_repeat_and_another_description(
    client: Any, operator: dict[str, str], refused: Any
) -> None:
    first = await client.post("/sales", json=DESCRIPTION, headers=operator)
    again = await client.post("/sales", json=DESCRIPTION, headers=operator)
    assert (first.status, again.status) == (201, 200)
    assert again.headers["Location"] == "/sales/drop"
    other = await client.post("/sales", json=DESCRIPTION | {"capacity": 99}, headers=operator)
    await refused(other, 409, "sale_exists")


async def test_an_id_is_made_when_none_is_given(client: Any, operator: dict[str, str]) -> None:
    response = await client.post("/sales", json={"name": "Anonymous", "capacity": 1}, headers=operator)
    sale = await response.json()
    assert response.headers["Location"] == f"/sales/{sale['id']}"
    assert (await client.get(f"/sales/{sale['id']}")).status == 200


async def test_list(client: Any, operator: dict[str, str], gig: str, duo: str) -> None:
    listed = await (await client.get("/sales", headers=operator)).json()
    assert {sale["id"] for sale in listed["items"]} == {gig, duo}
    assert listed["next"] is None


@pytest.mark.parametrize(
    "sale", ["nope", "UPPER", "a" * 65, "-a", "%20", "a%2Fb", "%00", "%FF", "%ED%A0%80", "gig%0A", "%C3%BC", "gig."]
)
async def test_unknown_sales(send: Any, operator: dict[str, str], gig: str, refused: Any, sale: str) -> None:
    buyer = {"X-Buyer-Fingerprint": "fp-12345678"}
    path = f"/sales/{sale}"
    await refused(await send("GET", path), 404, "unknown_sale")
    await refused(await send("PATCH", path, json={"name": "x"}, headers=operator), 404, "unknown_sale")
    await refused(await send("POST", f"{path}/tickets", json={"quantity": 1}, headers=buyer), 404, "unknown_sale")
    await refused(await send("GET", f"{path}/tickets", headers=buyer), 404, "unknown_sale")


async def test_amend(client: Any, operator: dict[str, str], gig: str) -> None:
    async def amend(**changes: Any) -> dict[str, Any]:
        response = await client.patch("/sales/gig", json=changes, headers=operator)
        assert response.status == 200, await response.text()
        sale: dict[str, Any] = await response.json()
        return sale

    sale = await amend(name="New", hold_ms=5000, opens_at="2020-01-01T00:00:00Z", closes_at="2999-01-01T00:00:00Z")
    assert (sale["name"], sale["hold_ms"], sale["max_per_buyer"], sale["capacity"]) == ("New", 5000, 4, 10)
    assert sale["opens_at"] == "2020-01-01T00:00:00.000Z"
    sale = await amend(max_per_buyer=None, opens_at=None, closes_at=None)
    assert (sale["max_per_buyer"], sale["opens_at"], sale["closes_at"], sale["name"]) == (None, None, None, "New")
    assert (await amend(capacity=12))["available"] == 12
    assert (await amend())["capacity"] == 12


async def test_amend_items(client: Any, operator: dict[str, str], duo: str) -> None:
    changes = {"items": [{"sku": "seat", "capacity": 6, "max_per_buyer": None}, {"sku": "lawn", "capacity": 9}]}
    merge_patch = operator | {"Content-Type": "application/merge-patch+json"}
    response = await client.patch("/sales/duo", data=json.dumps(changes), headers=merge_patch)
    assert response.status == 200
    items = {item["sku"]: item for item in (await response.json())["items"]}
    assert {sku: item["capacity"] for sku, item in items.items()} == {"seat": 6, "box": 2, "lawn": 9}
    assert "max_per_buyer" not in items["seat"]


async def test_capacity_in_use(client: Any, operator: dict[str, str], gig: str, refused: Any) -> None:
    await client.post("/sales/gig/tickets", json={"quantity": 3})
    response = await client.patch("/sales/gig", json={"capacity": 2}, headers=operator)
    problem = await refused(response, 409, "capacity_in_use")
    assert (problem["sku"], problem["in_use"]) == ("general", 3)


async def test_closing_a_sale(client: Any, operator: dict[str, str], gig: str, refused: Any) -> None:
    await client.patch("/sales/gig", json={"closes_at": "2020-01-01T00:00:00Z"}, headers=operator)
    await refused(await client.post("/sales/gig/tickets", json={"quantity": 1}), 409, "closed")


async def test_the_rest_is_the_operators(client: Any, gig: str, refused: Any) -> None:
    await refused(await client.post("/sales", json=DESCRIPTION), 401, "operator_token_required")
    await refused(await client.patch("/sales/gig", json={}), 401, "operator_token_required")
