"""What a payment is to survive, over HTTP: asked, answered, refused; the same on both ways through the server."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict, CIMultiDictProxy

from holdfast.engine import Durability, Engine, InvalidRequest
from holdfast.engine import durability as durability_module
from holdfast.http.app import create_app
from holdfast.http.bodies import preferred_durability
from holdfast.http.context import AppConfig

from .conftest import OPERATOR_TOKEN, DirectTestServer

BUYER = {"X-Buyer-Fingerprint": "buyer-ann"}
OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}


@pytest.fixture(params=[DirectTestServer, TestServer], ids=["short", "ordinary"])
async def served(request: pytest.FixtureRequest, engine: Engine) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of a server with the short way, and of one without."""
    app: web.Application = create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN))
    async with TestClient(request.param(app)) as client:
        await engine.create_sale("gig", name="Gig", capacity=50)
        yield client


async def pay(client: Any, engine: Engine, prefer: str | None, body: object = None, **headers: str) -> Any:
    ticket = await engine.reserve("gig", buyer="buyer-ann", quantity=1)
    preference = {} if prefer is None else {"Prefer": prefer}
    options = {} if body is None else {"json": body}
    return await client.post(f"/tickets/{ticket.id}/payment", headers=BUYER | preference | headers, **options)


@pytest.mark.parametrize("body", [None, {"reference": "pay_1"}])
async def test_the_answer_says_what_was_reached(served: Any, engine: Engine, body: object) -> None:
    plain = await pay(served, engine, None, body)
    assert (plain.status, (await plain.json())["durability"]) == (200, "memory")
    assert "Preference-Applied" not in plain.headers
    for level in ("stored", "memory"):
        asked = await pay(served, engine, f"durability={level}", body)
        answer = await asked.json()
        assert (asked.status, answer["durability"], answer["status"]) == (200, level, "purchased")
        assert asked.headers["Preference-Applied"] == f"durability={level}"
        assert "durability_pending" not in answer
    other = await pay(served, engine, "respond-async", body)
    assert (other.status, "Preference-Applied" in other.headers) == (200, False)


async def test_too_late_is_202_and_the_same_key_waits_again(
    served: Any, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability_module, "REACH_S", 0.2)
    monkeypatch.setattr(durability_module, "LOOK_S", 0.05)
    ticket = await engine.reserve("gig", buyer="buyer-ann", quantity=1)
    headers = BUYER | {"Prefer": "durability=stored", "Idempotency-Key": "k"}
    path = f"/tickets/{ticket.id}/payment"
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    late = await served.post(path, headers=headers)
    answer = await late.json()
    assert (late.status, answer["status"]) == (202, "purchased")
    assert (answer["durability"], answer["durability_pending"]) == ("memory", "stored")
    assert "Preference-Applied" not in late.headers
    batch = {"entries": [{"ticket": ticket.id, "buyer": "buyer-ann", "key": "k"}]}
    prefer = OPERATOR | {"Prefer": "durability=stored"}
    (entry,) = (await (await served.post("/sales/gig/payments/batch", headers=prefer, json=batch)).json())["entries"]
    assert (entry["status"], entry["ticket"]["durability_pending"]) == (202, "stored")
    other.execute("ROLLBACK")
    other.close()
    while (again := await served.post(path, headers=headers)).status == 202:
        await asyncio.sleep(0.01)
    assert (again.status, again.headers["Preference-Applied"]) == (200, "durability=stored")
    assert again.headers["Idempotent-Replayed"] == "true"
    (entry,) = (await (await served.post("/sales/gig/payments/batch", headers=prefer, json=batch)).json())["entries"]
    assert (entry["status"], entry["ticket"]["durability"]) == (200, "stored")


async def test_what_cannot_be_had_is_refused_and_nothing_is_done(served: Any, engine: Engine) -> None:
    refused = await pay(served, engine, "durability=replica")
    problem = await refused.json()
    assert (refused.status, problem["code"], problem["durability"]) == (422, "durability_unavailable", "replica")
    assert "1 must have a payment" in problem["detail"]
    wrong = await pay(served, engine, "durability=disk")
    problem = await wrong.json()
    assert (wrong.status, problem["code"], problem["errors"][0]["pointer"]) == (422, "invalid_request", "/Prefer")
    assert (await engine.sale("gig")).items[0].purchased == 0
    sale = {"name": "Safe", "capacity": 1, "durability": "replica"}
    assert (await served.post("/sales", headers=OPERATOR, json=sale)).status == 422
    made = await served.post("/sales", headers=OPERATOR, json=sale | {"durability": "stored"})
    assert (made.status, (await made.json())["durability"]) == (201, "stored")
    odd = await served.post("/sales", headers=OPERATOR, json=sale | {"durability": "disk"})
    assert "must be 'memory', 'fsync', 'replica' or 'stored'" in (await odd.json())["detail"]
    amended = await served.patch("/sales/gig", headers=OPERATOR, json={"durability": "stored"})
    assert (await amended.json())["errors"][0]["pointer"] == "/durability"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["durability=stored"], Durability.STORED),
        (['Durability = "Stored"'], Durability.STORED),
        (["respond-async, wait=10, durability=fsync; x=1"], Durability.FSYNC),
        (["respond-async", "durability=memory"], Durability.MEMORY),
        (["durability=stored, durability=memory"], Durability.STORED),
        (['a="durability=stored, durability=fsync"'], None),
        (['a="x", durability=fsync'], Durability.FSYNC),
        (['a="\\", durability=stored"'], None),
        (["handling=lenient;durability=stored"], None),
        (["x-durability=stored"], None),
        ([""], None),
        (["=,;\"',,"], None),
    ],
)
def test_preferences_are_read_as_rfc_7240_writes_them(lines: list[str], expected: Durability | None) -> None:
    headers = CIMultiDictProxy(CIMultiDict([("Prefer", line) for line in lines]))
    assert preferred_durability(headers) == expected


@pytest.mark.parametrize(
    "line", ["durability", "durability=", "durability=disk", 'durability="sto red"', "durability=2"]
)
def test_a_level_that_does_not_exist_is_a_mistake(line: str) -> None:
    with pytest.raises(InvalidRequest, match="durability must be one of memory, fsync, replica, stored"):
        preferred_durability(CIMultiDictProxy(CIMultiDict({"Prefer": line})))
