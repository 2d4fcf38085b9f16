"""The batch calls: many entries, each with its own outcome, and what refuses the whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from holdfast.engine import Engine, limits
from holdfast.http.bodies import BATCH_BYTES_MAX, MISTAKES_MAX

JSON = {"Content-Type": "application/json"}
RESERVE = "/sales/gig/tickets/batch"
PAY = "/sales/gig/payments/batch"
BOTH = pytest.mark.parametrize("path", [RESERVE, PAY])


@pytest.fixture
def post(client: Any, operator: dict[str, str]) -> Any:
    """Posts entries as the operator; the answer's entries."""

    async def call(path: str, *entries: Any) -> list[dict[str, Any]]:
        response = await client.post(path, json={"entries": entries}, headers=operator)
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        answer = json.loads(await response.read())
        assert list(answer) == ["entries"]
        assert len(answer["entries"]) == len(entries)
        for entry in answer["entries"]:
            assert list(entry)[:2] in (["status", "ticket"], ["status", "problem"])
            if "problem" in entry:
                problem = entry["problem"]
                assert list(problem)[:5] == ["type", "title", "status", "detail", "code"]
                assert problem["type"] == f"/docs/errors#{problem['code']}"
                assert problem["status"] == entry["status"]
        return list(answer["entries"])

    return call


def told(entries: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """The status of each entry, and its code or the status of its ticket."""
    return [
        (entry["status"], entry["problem"]["code"] if "problem" in entry else entry["ticket"]["status"])
        for entry in entries
    ]


async def units(client: Any, sale: str = "gig") -> tuple[int, int, int]:
    shown = await (await client.get(f"/sales/{sale}")).json()
    return shown["available"], shown["reserved"], shown["purchased"]


# Outcomes -------------------------------------------------------------------------------------------------------------


async def test_reserve_batch(client: Any, post: Any, operator: dict[str, str], duo: str) -> None:
    path = "/sales/duo/tickets/batch"
    seat, box = ({"sku": sku, "quantity": 1} for sku in ("seat", "box"))
    answers = await post(
        path,
        {"buyer": "b-1", "lines": [seat, box, seat], "key": "cart-1"},
        {"buyer": "b-1", "lines": [seat | {"quantity": 2}]},
        {"buyer": "b-2", "lines": [box | {"quantity": 2}]},
        {"buyer": "b-2", "lines": [box | {"quantity": 3}]},
        {"buyer": "b-1", "lines": [seat, box, seat], "key": "cart-1"},
        {"buyer": "b-1", "lines": [seat], "key": "cart-1"},
        {"buyer": "b-3", "lines": [seat]},
    )
    assert told(answers) == [
        (201, "reserved"),
        (409, "limit_reached"),
        (409, "all_held"),
        (409, "sold_out"),
        (201, "reserved"),
        (422, "idempotency_key_reused"),
        (201, "reserved"),
    ]
    assert [entry.get("replayed") for entry in answers] == [None, None, None, None, True, None, None]
    assert answers[1]["problem"]["remaining"] == 1
    assert answers[1]["problem"]["sku"] == "seat"
    assert (answers[2]["problem"]["sku"], answers[2]["problem"]["available"]) == ("box", 1)
    assert answers[2]["problem"]["retry_after_ms"] > 0
    # The tickets are those of the single call, to the letter.
    for at in (0, 4, 6):
        ticket = answers[at]["ticket"]
        shown = await (await client.get(f"/tickets/{ticket['id']}", headers=operator)).json()
        assert ticket | {"expires_in_ms": 0} == shown | {"expires_in_ms": 0}
        assert list(ticket) == list(shown)
        assert 0 < ticket["expires_in_ms"] <= 900_000
    assert answers[0]["ticket"]["id"] == answers[4]["ticket"]["id"]
    assert await units(client, "duo") == (3, 4, 0)


async def test_a_refusal_says_what_the_single_call_says(
    client: Any, post: Any, operator: dict[str, str], engine: Engine, gig: str
) -> None:
    await engine.create_sale("later", name="Later", capacity=1, opens_at=32_472_144_000_000)
    await engine.create_sale("gone", name="Gone", capacity=1, closes_at=1)
    await post(RESERVE, {"buyer": "b-1", "quantity": 3, "key": "k"})
    for sale, order in [
        ("gig", {"buyer": "b-1", "quantity": 2}),
        ("gig", {"buyer": "b-2", "quantity": 4, "key": "k"}),
        ("gig", {"buyer": "b-1", "quantity": 2, "key": "k"}),
        ("later", {"buyer": "b-1", "quantity": 1}),
        ("gone", {"buyer": "b-1", "quantity": 1}),
    ]:
        (entry,) = await post(f"/sales/{sale}/tickets/batch", order)
        keyed = {"Idempotency-Key": order["key"]} if "key" in order else {}
        body = {name: value for name, value in order.items() if name != "key"}
        single = await client.post(f"/sales/{sale}/tickets", json=body, headers=operator | keyed)
        said = await single.json()
        assert entry["status"] == single.status
        if single.status == 201:
            assert single.headers["Idempotent-Replayed"] == "true"
            assert entry["ticket"]["id"] == said["id"]
            continue
        del said["request_id"]
        said.pop("retry_after_ms", None)
        entry["problem"].pop("retry_after_ms", None)
        assert entry["problem"] == said


async def test_a_single_call_and_an_entry_with_the_same_key_are_one(
    client: Any, post: Any, operator: dict[str, str], gig: str
) -> None:
    fingerprint = {"X-Buyer-Fingerprint": "fp-ann-ann", "Idempotency-Key": "cart-1"}
    single = await (await client.post("/sales/gig/tickets", json={"quantity": 2}, headers=fingerprint)).json()
    first, other = await post(
        RESERVE,
        {"buyer": "fp-ann-ann", "quantity": 2, "key": "cart-1"},
        {"buyer": "b-1", "quantity": 1, "key": "cart-1"},
    )
    assert (first["ticket"]["id"], first["replayed"]) == (single["id"], True)
    assert "replayed" not in other
    again = await client.post(
        "/sales/gig/tickets", json={"quantity": 1, "buyer": "b-1"}, headers=operator | {"Idempotency-Key": "cart-1"}
    )
    assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert (await again.json())["id"] == other["ticket"]["id"]

    entry = {"ticket": single["id"], "buyer": "fp-ann-ann", "reference": "pay_1", "key": "p-1"}
    paid = await post(PAY, entry, entry, entry | {"reference": "pay_2"})
    assert told(paid) == [(200, "purchased"), (200, "purchased"), (422, "idempotency_key_reused")]
    assert [answer.get("replayed") for answer in paid] == [None, True, None]
    payment = f"/tickets/{single['id']}/payment"
    repeat = await client.post(payment, json={"reference": "pay_1"}, headers=fingerprint | {"Idempotency-Key": "p-1"})
    assert (repeat.status, repeat.headers["Idempotent-Replayed"]) == (200, "true")
    assert await units(client) == (7, 1, 2)


async def test_pay_batch(client: Any, post: Any, engine: Engine, gig: str, duo: str) -> None:
    ids = [(await engine.reserve("gig", buyer="b-1", quantity=1)).id for _ in range(4)]
    foreign = (await engine.reserve("duo", buyer="b-1", lines={"seat": 1})).id
    await engine.create_sale("brief", name="Brief", capacity=1, hold_ms=1)
    await engine.cancel(ids[3], buyer="b-1")
    answers = await post(
        PAY,
        {"ticket": ids[0], "buyer": "b-1", "reference": "päy_1"},
        {"ticket": ids[0], "buyer": "b-1"},
        {"ticket": ids[1], "buyer": "b-2"},
        {"ticket": ids[1], "buyer": "b-1", "outcome": "decline"},
        {"ticket": ids[2], "buyer": "b-1", "outcome": "approve"},
        {"ticket": ids[3], "buyer": "b-1"},
        {"ticket": foreign, "buyer": "b-1"},
        {"ticket": "gig.aaaaaaaaaaaaaaaaaaaaaa", "buyer": "b-1"},
        {"ticket": "../../etc/passwd\u0000", "buyer": "b-1"},
        {"ticket": "", "buyer": "b-1"},
        {"ticket": f"{ids[1]}\n", "buyer": "b-1"},
    )
    unknown = [(404, "unknown_ticket")] * 5
    assert told(answers) == [
        (200, "purchased"),
        (409, "already_purchased"),
        (403, "not_your_ticket"),
        (402, "payment_declined"),
        (200, "purchased"),
        (409, "already_cancelled"),
        *unknown,
    ]
    assert answers[0]["ticket"]["reference"] == "päy_1"
    assert answers[0]["ticket"].pop("durability") == "memory"
    assert answers[1]["problem"]["ticket"] == answers[0]["ticket"]
    assert "reference" not in answers[4]["ticket"]
    assert "purchased_at" in answers[4]["ticket"]
    assert await units(client) == (7, 1, 2)
    assert (await engine.ticket(foreign)).status == "reserved"
    late = await engine.reserve("brief", buyer="b-1", quantity=1)
    await asyncio.sleep(0.01)
    (expired,) = await post("/sales/brief/payments/batch", {"ticket": late.id, "buyer": "b-1"})
    assert expired["status"] == 410
    assert expired["problem"]["expired_at"].endswith("Z")


async def test_a_buyers_limit_holds_within_a_batch(client: Any, post: Any, gig: str) -> None:
    answers = await post(RESERVE, *({"buyer": "b-1", "quantity": quantity} for quantity in (3, 2, 1, 1)))
    assert told(answers) == [(201, "reserved"), (409, "limit_reached"), (201, "reserved"), (409, "limit_reached")]
    assert [entry["problem"]["remaining"] for entry in (answers[1], answers[3])] == [1, 0]


async def test_500_entries_and_single_calls_share_100_units(
    client: Any, post: Any, engine: Engine, operator: dict[str, str]
) -> None:
    await engine.create_sale("drop", name="Drop", capacity=100, max_per_buyer=1)
    entries = [{"buyer": f"b-{at:03}" + "x" * 100, "quantity": 1, "key": "k"} for at in range(500)]

    async def single(at: int) -> list[dict[str, Any]]:
        response = await client.post(
            "/sales/drop/tickets", json={"quantity": 1}, headers={"X-Buyer-Fingerprint": f"single-{at}"}
        )
        return [{"status": response.status, "ticket" if response.status == 201 else "problem": await response.json()}]

    path = "/sales/drop/tickets/batch"
    answers = await asyncio.gather(
        post(path, *entries), *(single(at) for at in range(60)), post(path, *entries), post(path, *reversed(entries))
    )
    assert {pair for each in answers for pair in told(each)} == {(201, "reserved"), (409, "all_held")}
    won = [entry["ticket"]["id"] for each in answers for entry in each if entry["status"] == 201]
    new = [entry for each in answers for entry in each if entry["status"] == 201 and "replayed" not in entry]
    assert len(set(won)) == len(new) == 100
    assert await units(client, "drop") == (0, 100, 0)


async def test_a_sale_called_batch_is_a_sale(client: Any, post: Any, engine: Engine, gig: str) -> None:
    await engine.create_sale("batch", name="Batch", capacity=5)
    headers = {"X-Buyer-Fingerprint": "fp-ann-ann"}
    single = await client.post("/sales/batch/tickets", json={"quantity": 1}, headers=headers)
    assert (single.status, (await single.json())["sale"]) == (201, "batch")
    (entry,) = await post("/sales/batch/tickets/batch", {"buyer": "b-1", "quantity": 1})
    assert entry["ticket"]["sale"] == "batch"
    assert await units(client) == (10, 0, 0)


@pytest.mark.parametrize(
    "path", ["/sales/gig/12345678", "/sales/gig12345678", "/sales/gig?tickets", "/sales/giga?x=12345"]
)
async def test_only_the_path_of_tickets_reserves(client: Any, send: Any, engine: Engine, gig: str, path: str) -> None:
    await engine.create_sale("gi", name="Gi", capacity=5)
    response = await send("POST", path, json={"quantity": 1}, headers={"X-Buyer-Fingerprint": "fp-ann-ann"})
    assert response.status in (404, 405)
    assert await units(client) == (10, 0, 0)
    assert await units(client, "gi") == (5, 0, 0)


# What refuses the whole -----------------------------------------------------------------------------------------------


@BOTH
async def test_the_operator_alone(clients: Any, operator: dict[str, str], gig: str, refused: Any, path: str) -> None:
    client = await clients()
    body = {"entries": [{"buyer": "b-1", "quantity": 1}]}
    for headers in ({}, {"X-Buyer-Fingerprint": "fp-ann-ann"}, {"Authorization": "Bearer wrong-token"}):
        await refused(await client.post(path, json=body, headers=headers), 401, "operator_token_required")
    keyed = await clients(buyer_token_key="a key for buyer tokens, 32 bytes or more")
    await refused(await keyed.post(path, json=body), 401, "operator_token_required")
    response = await keyed.post(RESERVE, json=body, headers=operator)
    assert (await response.json())["entries"][0]["status"] == 201
    for method in ("GET", "PUT", "DELETE"):
        other = await client.request(method, path, headers=operator)
        await refused(other, 405, "method_not_allowed")
        assert other.headers["Allow"] == "POST"


@BOTH
async def test_the_order_of_refusals(client: Any, operator: dict[str, str], refused: Any, path: str) -> None:
    unknown = path.replace("gig", "nope")
    big, text = b" " * (BATCH_BYTES_MAX + 1), {"Content-Type": "text/plain"}
    bad = operator | JSON | {"Idempotency-Key": "k"}
    await refused(await client.post(unknown, data=big, headers=text), 401, "operator_token_required")
    await refused(await client.post(unknown, data=big, headers=operator | text), 413, "body_too_large")
    await refused(await client.post(unknown, data=b"{", headers=operator | text), 415, "unsupported_media_type")
    await refused(await client.post(unknown, data=b"{", headers=bad), 400, "malformed_json")
    body = b'{"entries":[{"buyer":"b","quantity":1,"ticket":"t"}]}'
    problem = await refused(await client.post(unknown, data=body, headers=bad), 422, "invalid_request")
    assert problem["errors"][0]["pointer"].startswith("/entries/0/")
    entry = {"buyer": "b", "quantity": 1} if path == RESERVE else {"buyer": "b", "ticket": "nope.x"}
    body = json.dumps({"entries": [entry]}).encode()
    problem = await refused(await client.post(unknown, data=body, headers=bad), 422, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == ["/Idempotency-Key"]
    await refused(await client.post(unknown, data=body, headers=operator | JSON), 404, "unknown_sale")
    await refused(
        await client.post(unknown.replace("nope", "NO%20PE"), data=body, headers=operator | JSON), 404, "unknown_sale"
    )


@BOTH
async def test_who_is_named_by_a_header_is_refused(
    client: Any, operator: dict[str, str], gig: str, refused: Any, path: str
) -> None:
    entry = {"buyer": "b", "quantity": 1} if path == RESERVE else {"buyer": "b", "ticket": "gig.x"}
    for name in ("Idempotency-Key", "X-Buyer-Fingerprint"):
        headers = operator | {name: "fp-ann-ann"}
        problem = await refused(
            await client.post(path, json={"entries": [entry]}, headers=headers), 422, "invalid_request"
        )
        assert problem["errors"][0]["pointer"] == f"/{name}"
    response = await client.post(f"{path}?buyer=b", json={"entries": [entry]}, headers=operator)
    await refused(response, 422, "invalid_request")
    assert await units(client) == (10, 0, 0)


async def test_256_kib_and_500_entries_and_no_more(
    client: Any, post: Any, operator: dict[str, str], engine: Engine, refused: Any
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=5000)
    entries = [{"buyer": "b" * 480 + f"{at:03}", "quantity": 1} for at in range(limits.ENTRIES_MAX)]
    body = json.dumps({"entries": entries}, separators=(",", ":")).encode()
    assert len(body) <= BATCH_BYTES_MAX
    full = body + b" " * (BATCH_BYTES_MAX - len(body))
    response = await client.post(RESERVE, data=full, headers=operator | JSON)
    assert response.status == 200
    assert {entry["status"] for entry in (await response.json())["entries"]} == {201}
    await refused(await client.post(RESERVE, data=full + b" ", headers=operator | JSON), 413, "body_too_large")

    async def piecemeal() -> Any:
        for at in range(0, len(full), 10_000):
            yield full[at : at + 10_000]
        yield b" "

    await refused(await client.post(RESERVE, data=piecemeal(), headers=operator | JSON), 413, "body_too_large")
    small = [{"buyer": "b", "quantity": 1}] * (limits.ENTRIES_MAX + 1)
    for many in (small, []):
        problem = await refused(
            await client.post(RESERVE, json={"entries": many}, headers=operator), 422, "invalid_request"
        )
        assert [error["pointer"] for error in problem["errors"]] == ["/entries"]
    assert await units(client) == (4500, 500, 0)
    # Other calls keep their limit.
    await refused(await client.post("/sales/gig/tickets", data=b" " * 8193, headers=JSON), 413, "body_too_large")
    await refused(await client.post("/sales", data=b" " * 8193, headers=operator | JSON), 413, "body_too_large")


async def test_a_large_body_that_waits_is_invited(client: Any, operator: dict[str, str], gig: str) -> None:
    entries = [{"buyer": f"b-{at}", "quantity": 1} for at in range(400)]
    body = json.dumps({"entries": entries}).encode()
    assert len(body) > 8192
    response = await client.post(RESERVE, data=body, headers=operator | JSON, expect100=True)
    assert response.status == 200
    assert [entry["status"] for entry in (await response.json())["entries"]] == [201] * 10 + [409] * 390
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    head = f"POST {RESERVE} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {BATCH_BYTES_MAX + 1}\r\n"
    writer.write((head + f"Authorization: {operator['Authorization']}\r\n\r\n").encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


GOOD = {"buyer": "b-1", "quantity": 1}


@pytest.mark.parametrize(
    ("entry", "pointers"),
    [
        (1, [""]),
        (None, [""]),
        ([], [""]),
        ("buyer", [""]),
        ({}, ["/buyer"]),
        ({"quantity": 1}, ["/buyer"]),
        ({"buyer": "b"}, ["/quantity"]),
        (GOOD | {"lines": [{"sku": "general", "quantity": 1}]}, ["/quantity"]),
        (GOOD | {"quantity": 0}, ["/quantity"]),
        (GOOD | {"quantity": "1"}, ["/quantity"]),
        (GOOD | {"quantity": 1.0}, ["/quantity"]),
        (GOOD | {"quantity": True}, ["/quantity"]),
        (GOOD | {"quantity": None}, ["/quantity"]),
        (GOOD | {"quantity": 10**30}, ["/quantity"]),
        (GOOD | {"buyer": ""}, ["/buyer"]),
        (GOOD | {"buyer": 7}, ["/buyer"]),
        (GOOD | {"buyer": None}, ["/buyer"]),
        (GOOD | {"buyer": "b" * 513}, ["/buyer"]),
        (GOOD | {"buyer": "derived\x00a"}, ["/buyer"]),
        (GOOD | {"key": ""}, ["/key"]),
        (GOOD | {"key": None}, ["/key"]),
        (GOOD | {"key": "a b"}, ["/key"]),
        (GOOD | {"key": "k" * 256}, ["/key"]),
        (GOOD | {"key": "clé"}, ["/key"]),
        (GOOD | {"fingerprint": "fp-ann-ann"}, ["/fingerprint"]),
        (GOOD | {"a/b~c": 1, "__proto__": {}}, ["/a~1b~0c", "/__proto__"]),
        ({"buyer": "b", "lines": []}, ["/lines"]),
        ({"buyer": "b", "lines": {}}, ["/lines"]),
        ({"buyer": "b", "lines": [5]}, ["/lines/0"]),
        ({"buyer": "b", "lines": [{"sku": "general", "quantity": 1}] * 51}, ["/lines"]),
        ({"buyer": "b", "lines": [{"sku": "GENERAL"}]}, ["/lines/0/sku", "/lines/0/quantity"]),
        ({"buyer": "b", "lines": [{"sku": "general", "quantity": 1, "x": 1}]}, ["/lines/0/x"]),
        ({"buyer": "b", "lines": [{"sku": "nope", "quantity": 1}]}, ["/lines/0/sku"]),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_a_mistake_in_an_entry(
    client: Any, operator: dict[str, str], gig: str, refused: Any, entry: Any, pointers: list[str]
) -> None:
    for entries, at in (([entry], [0]), ([GOOD, entry, GOOD, entry], [1, 3])):
        response = await client.post(RESERVE, json={"entries": entries}, headers=operator)
        problem = await refused(response, 422, "invalid_request")
        told = [error["pointer"] for error in problem["errors"]]
        assert sorted(told) == sorted(f"/entries/{number}{pointer}" for number in at for pointer in pointers)
    assert await units(client) == (10, 0, 0)


PAYMENT = {"ticket": "gig.aaaaaaaaaaaaaaaaaaaaaa", "buyer": "b-1"}


@pytest.mark.parametrize(
    ("entry", "pointers"),
    [
        ({}, ["/buyer", "/ticket"]),
        (PAYMENT | {"ticket": 5}, ["/ticket"]),
        (PAYMENT | {"outcome": "maybe"}, ["/outcome"]),
        (PAYMENT | {"outcome": None}, ["/outcome"]),
        (PAYMENT | {"reference": ""}, ["/reference"]),
        (PAYMENT | {"reference": "a\nb"}, ["/reference"]),
        (PAYMENT | {"reference": "a\u2028b"}, ["/reference"]),
        (PAYMENT | {"reference": "r" * 256}, ["/reference"]),
        (PAYMENT | {"key": "a b"}, ["/key"]),
        (PAYMENT | {"amount": 1}, ["/amount"]),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
async def test_a_mistake_in_a_payment(
    client: Any, operator: dict[str, str], engine: Engine, gig: str, refused: Any, entry: Any, pointers: list[str]
) -> None:
    good = {"ticket": (await engine.reserve("gig", buyer="b-1", quantity=1)).id, "buyer": "b-1"}
    response = await client.post(PAY, json={"entries": [good, entry, good, entry]}, headers=operator)
    problem = await refused(response, 422, "invalid_request")
    told = [error["pointer"] for error in problem["errors"]]
    assert sorted(told) == sorted(f"/entries/{number}{pointer}" for number in (1, 3) for pointer in pointers)
    assert await units(client) == (9, 1, 0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 422),
        (b"null", 422),
        (b"{}", 422),
        (b'{"entries":{}}', 422),
        (b'{"entries":null}', 422),
        (b'{"entries":[{"buyer":"b","quantity":1}],"all":true}', 422),
        (b'{"entries":[{"buyer":"b","quantity":1}]', 400),
        (b'{"entries":[{"buyer":"b","quantity":NaN}]}', 400),
        (b'{"entries":[{"buyer":"\\ud800","quantity":1}]}', 400),
        (b'{"entries":[{"buyer":"\xff","quantity":1}]}', 400),
        (b'{"entries":' + b"[" * 100_000, 400),
        (b'{"entries":[' + b'{"buyer":' * 20_000, 400),
        (b'{"entries":[{"buyer":"b","quantity":' + b"9" * 200_000 + b"}]}", 400),
        (b'{"entries":[' + b"1," * 120_000 + b"1]}", 422),
        (b'{"entries":[{' + b'"a":1,' * 40_000 + b'"b":1}]}', 422),
        (b'{"entries":[{' + b",".join(b'"k%d":1' % at for at in range(20_000)) + b"}]}", 422),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_hostile_json(
    client: Any, operator: dict[str, str], gig: str, refused: Any, body: bytes, status: int
) -> None:
    for path in (RESERVE, PAY):
        response = await client.post(path, data=body, headers=operator | JSON)
        problem = await refused(response, status, "malformed_json" if status == 400 else "invalid_request")
        assert len(problem.get("errors", ())) <= MISTAKES_MAX
    assert await units(client) == (10, 0, 0)


async def test_the_last_of_two_fields_counts(client: Any, operator: dict[str, str], gig: str) -> None:
    body = b'{"entries":[{"buyer":"x"}],"entries":[{"buyer":"a","buyer":"b","quantity":9,"quantity":1}]}'
    response = await client.post(RESERVE, data=body, headers=operator | JSON)
    assert [entry["status"] for entry in (await response.json())["entries"]] == [201]
    listed = await (await client.get("/sales/gig/tickets?buyer=b", headers=operator)).json()
    assert len(listed["items"]) == 1


# When something goes away ---------------------------------------------------------------------------------------------


async def test_a_redis_that_does_not_answer_is_told_of_each_entry(
    post: Any, engine: Engine, gig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.engine.connection import NoReply, NotSent

    monkeypatch.setattr("holdfast.engine.servers.Servers.patience_s", 0.05)
    ticket = await engine.reserve("gig", buyer="b-1", quantity=1)
    real = engine._scripts.reserve

    async def no_reply(*args: Any) -> Any:
        await real(*args)
        raise NoReply("lost")

    async def not_sent(*args: Any) -> Any:
        raise NotSent("gone")

    entries = [{"buyer": f"b-{at}", "quantity": 1, "key": "k"} for at in range(3)]
    monkeypatch.setattr(engine._scripts, "reserve", no_reply)
    unknown = await post(RESERVE, *entries)
    assert told(unknown) == [(503, "outcome_unknown")] * 3
    assert unknown[0]["problem"]["retry_after_ms"] == 1000
    monkeypatch.setattr(engine._scripts, "reserve", not_sent)
    monkeypatch.setattr(engine._scripts, "confirm", not_sent)
    assert told(await post(RESERVE, *entries)) == [(503, "not_ready")] * 3
    assert told(await post(PAY, {"ticket": ticket.id, "buyer": "b-1"})) == [(503, "not_ready")]
    monkeypatch.setattr(engine._scripts, "reserve", real)
    again = await post(RESERVE, *entries)
    assert [(entry["status"], entry["replayed"]) for entry in again] == [(201, True)] * 3


async def test_a_full_queue_refuses_those_who_do_not_fit(
    post: Any, engine: Engine, gig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = await engine._slots.get("gig")
    monkeypatch.setattr(slot.reserves, "_queue_max", 2)
    answers = await post(RESERVE, *({"buyer": f"b-{at}", "quantity": 1} for at in range(4)))
    assert told(answers) == [(201, "reserved")] * 2 + [(503, "overloaded")] * 2
    assert answers[3]["problem"]["retry_after_ms"] == 1000


async def test_what_was_not_sent_when_the_client_goes_is_not_done(
    client: Any, operator: dict[str, str], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=1000)
    real, sent, go_on = engine._scripts.reserve, asyncio.Event(), asyncio.Event()

    async def held_up(*args: Any) -> Any:
        sent.set()
        await go_on.wait()
        return await real(*args)

    monkeypatch.setattr(engine._scripts, "reserve", held_up)
    body = json.dumps({"entries": [{"buyer": f"b-{at}", "quantity": 1} for at in range(500)]}).encode()
    _, writer = await asyncio.open_connection(client.server.host, client.server.port)
    head = f"POST {RESERVE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Authorization: {operator['Authorization']}\r\n\r\n".encode() + body)
    await asyncio.wait_for(sent.wait(), 10)
    writer.transport.abort()
    while client.server.handler.connections:
        await asyncio.sleep(0.005)
    go_on.set()
    single = await client.post(
        "/sales/gig/tickets", json={"quantity": 1}, headers={"X-Buyer-Fingerprint": "fp-ann-ann"}
    )
    assert single.status == 201
    assert await units(client) == (849, 151, 0)
