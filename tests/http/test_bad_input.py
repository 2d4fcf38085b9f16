"""What is sent and what it gets: every row is answered by a problem of the right kind, and never by a 5xx."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, NamedTuple

import pytest

JSON = {"Content-Type": "application/json"}
RESERVE = "/sales/gig/tickets"
PAY = "/tickets/gig.aaaaaaaaaaaaaaaaaaaaaa/payment"


class Row(NamedTuple):
    """One bad request: what it is, and what it gets."""

    name: str
    status: int
    code: str
    body: bytes | None = None
    method: str = "POST"
    path: str = RESERVE
    headers: dict[str, str] = JSON
    pointer: str | None = None
    operator: bool = False


def reserving(name: str, body: bytes, pointer: str) -> Row:
    return Row(name, 422, "invalid_request", body, pointer=pointer)


def creating(what: str, pointer: str, /, **fields: Any) -> Row:
    body = {"name": "X", "capacity": 1} | fields
    present = {key: value for key, value in body.items() if value is not ...}
    raw = json.dumps(present).encode()
    return Row(what, 422, "invalid_request", raw, path="/sales", pointer=pointer, operator=True)


def amending(what: str, pointer: str, /, **fields: Any) -> Row:
    raw = json.dumps(fields).encode()
    return Row(what, 422, "invalid_request", raw, "PATCH", "/sales/gig", pointer=pointer, operator=True)


def broken(name: str, body: bytes) -> Row:
    return Row(name, 400, "malformed_json", body)


def listing(name: str, query: str, pointer: str) -> Row:
    return Row(name, 422, "invalid_request", None, "GET", f"{RESERVE}?{query}", {}, pointer)


def cursor(text: str) -> str:
    """The query with a cursor that we would not have given."""
    return "cursor=" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


ROWS = [
    # No JSON.
    broken("empty body", b""),
    broken("blank body", b"  \n"),
    broken("open brace", b"{"),
    broken("trailing comma", b'{"quantity":1,}'),
    broken("trailing text", b'{"quantity":1} x'),
    broken("two documents", b'{"quantity":1}{"quantity":1}'),
    broken("single quotes", b"{'quantity':1}"),
    broken("bare word", b"quantity"),
    broken("comment", b'{"quantity":1/*one*/}'),
    broken("byte order mark", b'\xef\xbb\xbf{"quantity":1}'),
    broken("UTF-16", '{"quantity":1}'.encode("utf-16")),
    broken("invalid UTF-8", b'{"fingerprint":"\xff\xfe1234567"}'),
    broken("overlong UTF-8", b'{"fingerprint":"\xc0\xaf1234567"}'),
    broken("lone surrogate", b'{"fingerprint":"\\ud80012345678"}'),
    broken("lone surrogate in a name", b'{"\\udfff":1}'),
    broken("bare NUL", b"\x00"),
    broken("NUL inside a string", b'{"fingerprint":"a\x001234567"}'),
    broken("NaN", b'{"quantity":NaN}'),
    broken("Infinity", b'{"quantity":Infinity}'),
    broken("minus Infinity", b'{"quantity":-Infinity}'),
    broken("leading zero", b'{"quantity":01}'),
    broken("plus sign", b'{"quantity":+1}'),
    broken("hexadecimal", b'{"quantity":0x1}'),
    broken("5,000 digits", b'{"quantity":' + b"9" * 5000 + b"}"),
    broken("5,000 brackets", b"[" * 5000),
    broken("1,000 objects deep", b'{"a":' * 1000 + b"1" + b"}" * 1000),
    # JSON, but no object.
    reserving("array", b"[]", ""),
    reserving("null", b"null", ""),
    reserving("number", b"1", ""),
    reserving("string", b'"quantity"', ""),
    # Wrong fields.
    reserving("no field", b"{}", "/quantity"),
    reserving("quantity and lines", b'{"quantity":1,"lines":[{"sku":"general","quantity":1}]}', "/quantity"),
    reserving("fraction 1.0", b'{"quantity":1.0}', "/quantity"),
    reserving("fraction 1.5", b'{"quantity":1.5}', "/quantity"),
    reserving("exponent", b'{"quantity":1e0}', "/quantity"),
    reserving("exponent beyond all", b'{"quantity":1e999}', "/quantity"),
    reserving("number in quotes", b'{"quantity":"2"}', "/quantity"),
    reserving("true", b'{"quantity":true}', "/quantity"),
    reserving("null quantity", b'{"quantity":null}', "/quantity"),
    reserving("array for a number", b'{"quantity":[1]}', "/quantity"),
    reserving("object for a number", b'{"quantity":{"$gt":0}}', "/quantity"),
    reserving("zero", b'{"quantity":0}', "/quantity"),
    reserving("minus zero", b'{"quantity":-0}', "/quantity"),
    reserving("negative", b'{"quantity":-1}', "/quantity"),
    reserving("too many", b'{"quantity":1000001}', "/quantity"),
    reserving("2^63", b'{"quantity":9223372036854775808}', "/quantity"),
    reserving("500 digits", b'{"quantity":' + b"9" * 500 + b"}", "/quantity"),
    reserving("last of two wins, and is wrong", b'{"quantity":1,"quantity":0}', "/quantity"),
    reserving("unknown field", b'{"quantity":1,"price":1}', "/price"),
    reserving("unknown field to be escaped", b'{"quantity":1,"a/b~c":1}', "/a~1b~0c"),
    reserving("prototype", b'{"quantity":1,"__proto__":{}}', "/__proto__"),
    reserving("50 deep in an unknown field", b'{"quantity":1,"a":' + b"[" * 50 + b"]" * 50 + b"}", "/a"),
    reserving("null lines", b'{"lines":null}', "/lines"),
    reserving("no lines", b'{"lines":[]}', "/lines"),
    reserving("object for lines", b'{"lines":{}}', "/lines"),
    reserving("number as line", b'{"lines":[1]}', "/lines/0"),
    reserving("line without quantity", b'{"lines":[{"sku":"general"}]}', "/lines/0/quantity"),
    reserving("line without sku", b'{"lines":[{"quantity":1}]}', "/lines/0/sku"),
    reserving("sku in capitals", b'{"lines":[{"sku":"GENERAL","quantity":1}]}', "/lines/0/sku"),
    reserving("sku with a line end", b'{"lines":[{"sku":"general\\n","quantity":1}]}', "/lines/0/sku"),
    reserving("sku with a NUL", b'{"lines":[{"sku":"general\\u0000","quantity":1}]}', "/lines/0/sku"),
    reserving("empty sku", b'{"lines":[{"sku":"","quantity":1}]}', "/lines/0/sku"),
    reserving("unknown sku", b'{"lines":[{"sku":"nope","quantity":1}]}', "/lines/0/sku"),
    reserving("line with a price", b'{"lines":[{"sku":"general","quantity":1,"x":1}]}', "/lines/0/x"),
    reserving("51 lines", b'{"lines":[' + b",".join([b'{"sku":"general","quantity":1}'] * 51) + b"]}", "/lines"),
    reserving("number as fingerprint", b'{"quantity":1,"fingerprint":12345678}', "/fingerprint"),
    reserving("null fingerprint", b'{"quantity":1,"fingerprint":null}', "/fingerprint"),
    reserving("fingerprint with a NUL", b'{"quantity":1,"fingerprint":"derived\\u00001234"}', "/fingerprint"),
    reserving("buyer", b'{"quantity":1,"buyer":"b"}', "/buyer"),
    reserving("null buyer", b'{"quantity":1,"buyer":null}', "/buyer"),
    # Media types and sizes.
    Row("no media type", 415, "unsupported_media_type", b'{"quantity":1}', headers={}),
    Row("text", 415, "unsupported_media_type", b'{"quantity":1}', headers={"Content-Type": "text/plain"}),
    Row(
        "form",
        415,
        "unsupported_media_type",
        b"quantity=1",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    Row("Latin-1", 415, "unsupported_media_type", b"{}", headers={"Content-Type": "application/json; charset=latin-1"}),
    Row(
        "merge patch for a POST",
        415,
        "unsupported_media_type",
        b"{}",
        headers={"Content-Type": "application/merge-patch+json"},
    ),
    Row("nonsense media type", 415, "unsupported_media_type", b"{}", headers={"Content-Type": ";;=,"}),
    Row("compressed", 415, "unsupported_media_type", b"\x1f\x8b\x08", headers=JSON | {"Content-Encoding": "gzip"}),
    Row("compressed, unknown", 415, "unsupported_media_type", b"{}", headers=JSON | {"Content-Encoding": "zz"}),
    Row("payment as text", 415, "unsupported_media_type", b"{}", path=PAY, headers={"Content-Type": "text/plain"}),
    Row("one byte too large", 413, "body_too_large", b" " * 8193),
    Row("a megabyte", 413, "body_too_large", b" " * 1_000_000),
    Row("too large for a DELETE", 413, "body_too_large", b" " * 8193, "DELETE", PAY),
    # Headers and queries.
    Row("empty key", 422, "invalid_request", b'{"quantity":1}', headers=JSON | {"Idempotency-Key": ""}),
    Row("blank in a key", 422, "invalid_request", b'{"quantity":1}', headers=JSON | {"Idempotency-Key": "a b"}),
    Row("long key", 422, "invalid_request", b'{"quantity":1}', headers=JSON | {"Idempotency-Key": "k" * 256}),
    Row("accent in a key", 422, "invalid_request", b'{"quantity":1}', headers=JSON | {"Idempotency-Key": "clé"}),
    Row("key of a payment", 422, "invalid_request", b"", path=PAY, headers={"Idempotency-Key": "a b"}),
    Row(
        "query on a POST", 422, "invalid_request", b'{"quantity":1}', path=f"{RESERVE}?quantity=1", pointer="/quantity"
    ),
    Row("body on a DELETE", 422, "invalid_request", b"{}", "DELETE", PAY, pointer=""),
    listing("limit 0", "limit=0", "/limit"),
    listing("limit 501", "limit=501", "/limit"),
    listing("limit -1", "limit=-1", "/limit"),
    listing("limit in words", "limit=ten", "/limit"),
    listing("limit 1.0", "limit=1.0", "/limit"),
    listing("limit in other digits", "limit=%D9%A1", "/limit"),
    listing("empty limit", "limit=", "/limit"),
    listing("limit twice", "limit=1&limit=2", "/limit"),
    listing("unknown status", "status=paid", "/status"),
    listing("empty status", "status=", "/status"),
    listing("junk cursor", "cursor=%00junk", "/cursor"),
    listing("cursor of another listing", cursor('["gig"]'), "/cursor"),
    listing("cursor of too large numbers", cursor("[" + "9" * 30 + ', "x"]'), "/cursor"),
    listing("cursor of a lone surrogate", cursor('[1, "\\ud800"]'), "/cursor"),
    listing("cursor 1,500 deep", cursor("[" * 1500), "/cursor"),
    listing("cursor in other letters", "cursor=%C3%BC", "/cursor"),
    listing("unknown parameter", "page=2", "/page"),
    listing("parameter that is no Unicode", "%FF=%FF", "/\ufffd"),
    # Payments.
    Row("outcome", 422, "invalid_request", b'{"outcome":"maybe"}', path=PAY, pointer="/outcome"),
    Row("empty reference", 422, "invalid_request", b'{"reference":""}', path=PAY, pointer="/reference"),
    Row("reference with a NUL", 422, "invalid_request", b'{"reference":"a\\u0000b"}', path=PAY, pointer="/reference"),
    Row("reference of two lines", 422, "invalid_request", b'{"reference":"a\\nb"}', path=PAY, pointer="/reference"),
    Row(
        "long reference", 422, "invalid_request", b'{"reference":"' + b"r" * 256 + b'"}', path=PAY, pointer="/reference"
    ),
    Row("number as reference", 422, "invalid_request", b'{"reference":1}', path=PAY, pointer="/reference"),
    Row("amount", 422, "invalid_request", b'{"amount":1}', path=PAY, pointer="/amount"),
    Row("broken payment", 400, "malformed_json", b"{", path=PAY),
    # Sales.
    creating("no name", "/name", name=...),
    creating("empty name", "/name", name=""),
    creating("null name", "/name", name=None),
    creating("name with a NUL", "/name", name="a\x00b"),
    creating("long name", "/name", name="n" * 201),
    creating("id in capitals", "/id", id="DROP"),
    creating("long id", "/id", id="a" * 65),
    creating("id with a dot", "/id", id="a.b"),
    creating("id with a brace", "/id", id="a}b"),
    creating("id with a shard's mark", "/id", id="a~1"),
    creating("null id", "/id", id=None),
    creating("no capacity", "/capacity", capacity=...),
    creating("capacity and items", "/capacity", items=[{"sku": "a", "capacity": 1}]),
    creating("negative capacity", "/capacity", capacity=-1),
    creating("capacity with a fraction", "/capacity", capacity=1.5),
    creating("capacity beyond all", "/capacity", capacity=10**9 + 1),
    creating("no items", "/items", capacity=..., items=[]),
    creating("101 items", "/items", capacity=..., items=[{"sku": f"s{n}", "capacity": 1} for n in range(101)]),
    creating("a sku twice", "/items/1/sku", capacity=..., items=[{"sku": "a", "capacity": 1}] * 2),
    creating("item without capacity", "/items/0/capacity", capacity=..., items=[{"sku": "a"}]),
    creating("hold of nothing", "/hold_ms", hold_ms=0),
    creating("hold of 31 days", "/hold_ms", hold_ms=31 * 24 * 3600 * 1000),
    creating("limit of nothing", "/max_per_buyer", max_per_buyer=0),
    creating("instant without offset", "/opens_at", opens_at="2026-11-27T12:00:00"),
    creating("instant as a number", "/opens_at", opens_at=1_795_780_800_000),
    creating("instant before 1970", "/opens_at", opens_at="1969-12-31T23:59:59Z"),
    creating("day that is none", "/closes_at", closes_at="2026-02-30T12:00:00Z"),
    creating("closes before it opens", "/closes_at", opens_at="2026-11-27T12:00:00Z", closes_at="2026-11-27T11:00:00Z"),
    creating("unknown field of a sale", "/price", price=1),
    amending("null for a name", "/name", name=None),
    amending("null for a hold", "/hold_ms", hold_ms=None),
    amending("null for a capacity", "/capacity", capacity=None),
    amending("another id", "/id", id="other"),
    amending("item without sku", "/items/0/sku", items=[{"capacity": 1}]),
    amending("new item without capacity", "/items/0/capacity", items=[{"sku": "new"}]),
    Row(
        "patch as text",
        415,
        "unsupported_media_type",
        b"{}",
        "PATCH",
        "/sales/gig",
        {"Content-Type": "a/b"},
        None,
        True,
    ),
    # Routes and methods.
    Row("root of a wrong tree", 404, "unknown_route", b"", path="/nope"),
    Row("trailing slash", 404, "unknown_route", None, "GET", "/sales/gig/", {}),
    Row("two slashes", 404, "unknown_route", None, "GET", "//sales", {}),
    Row("too deep", 404, "unknown_route", None, "GET", "/sales/gig/tickets/1", {}),
    Row("dots", 404, "unknown_route", None, "GET", "/sales/%2e%2e/%2e%2e/etc/passwd", {}),
    Row("strange bytes", 404, "unknown_route", None, "GET", "/%00%FF%C0%AF", {}),
    Row("long path", 404, "unknown_route", None, "GET", "/" + "a" * 4000, {}),
    Row("PUT", 405, "method_not_allowed", b"{}", "PUT"),
    Row("DELETE of a sale", 405, "method_not_allowed", None, "DELETE", "/sales/gig", {}),
    Row("GET of a payment", 405, "method_not_allowed", None, "GET", PAY, {}),
    Row("OPTIONS", 405, "method_not_allowed", None, "OPTIONS", RESERVE, {}),
    Row("TRACE", 405, "method_not_allowed", None, "TRACE", RESERVE, {}),
    Row("POST to health", 405, "method_not_allowed", b"", "POST", "/healthz"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_bad_input(client: Any, send: Any, operator: dict[str, str], gig: str, refused: Any, row: Row) -> None:
    headers = row.headers | (operator if row.operator else {})
    # aiohttp's client would add a media type of its own.
    skip = [] if "Content-Type" in headers else ["Content-Type"]
    response = await send(row.method, row.path, data=row.body, headers=headers, skip_auto_headers=skip)
    problem = await refused(response, row.status, row.code)
    if row.pointer is not None:
        assert row.pointer in [error["pointer"] for error in problem["errors"]]
    if row.status == 405:
        assert row.method not in response.headers["Allow"].split(", ")
    sale = await (await client.get("/sales/gig")).json()
    assert (sale["available"], sale["name"]) == (10, "The Gig")


# Below HTTP: what aiohttp itself refuses ------------------------------------------------------------------------------


async def exchange(client: Any, raw: bytes) -> bytes:
    """What the server says to these bytes; when that is nothing, what it says when no more come."""
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    try:
        writer.write(raw)
        await writer.drain()
        answer = b""
        try:
            async with asyncio.timeout(0.2):
                while part := await reader.read(65_536):
                    answer += part
        except TimeoutError:
            # It keeps the connection, or waits for more.
            if not answer:
                writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), 10)
        return answer
    except ConnectionError:
        return b""
    finally:
        writer.close()


HEAD = b"POST /sales/gig/tickets HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GARBAGE = {
    "noise": bytes(range(256)) * 4,
    "NULs": b"\x00" * 1000,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /sales/gig\r\n\r\n",
    "version 9": b"GET /sales/gig HTTP/9.9\r\nHost: x\r\n\r\n",
    "method of noise": b"G\x01T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower-case method": b"get /sales/gig HTTP/1.1\r\nHost: x\r\n\r\n",
    "target with a blank": b"GET /sales/ gig HTTP/1.1\r\nHost: x\r\n\r\n",
    "target of noise": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target of noise": b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute target with a port of noise": b"GET http://x:999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "header without a colon": b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "header with a NUL": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a\r\n b\r\n\r\n",
    "huge header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: a\r\n" * 5000 + b"\r\n",
    "huge target": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{}  ",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "length in words": HEAD + b"Content-Length: four\r\n\r\n{}  ",
    "length with a sign": HEAD + b"Content-Length: +4\r\n\r\n{}  ",
    "length beyond all": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "unknown coding": HEAD + b"Transfer-Encoding: zip\r\nConnection: close\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunk size of noise": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk too short": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n0\r\n\r\n",
    "chunk size beyond all": HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n{}\r\n",
    "body that breaks off": HEAD + b"Content-Length: 100\r\n\r\n{",
    "strange expectation": HEAD
    + b"Expect: the-spanish-inquisition\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "upgrade": b"GET /sales/gig HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
}


#: Odd, but to be understood: HTTP/0.9, and an upgrade that we do not take up.
READABLE = (GARBAGE["no version"], GARBAGE["upgrade"])


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_on_the_wire(client: Any, gig: str, raw: bytes) -> None:
    answer = await exchange(client, raw)
    status = int(answer.split(b" ", 2)[1]) if answer else None
    assert status is None or status < 500
    assert status is None or status >= 400 or raw in READABLE
    assert b"Traceback" not in answer
    assert b".py" not in answer
    # It still serves, and nothing was reserved.
    assert (await (await client.get("/sales/gig")).json())["available"] == 10


async def test_a_smuggled_request_is_not_answered(client: Any, gig: str) -> None:
    hidden = b"POST /sales/gig/tickets HTTP/1.1\r\nHost: x\r\n\r\n"
    raw = HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden
    answer = await exchange(client, raw)
    assert answer.count(b"HTTP/1.1 ") <= 1


async def test_chunks_may_not_grow_without_end(client: Any, gig: str) -> None:
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    answer = await exchange(client, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 8)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


async def test_an_announced_size_is_refused_before_it_comes(client: Any, gig: str) -> None:
    answer = await exchange(client, HEAD + b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_waits_is_invited(client: Any, gig: str) -> None:
    raw = HEAD + b'Content-Length: 14\r\nExpect: 100-Continue\r\nConnection: close\r\n\r\n{"quantity":1}'
    answer = await exchange(client, raw)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")


async def test_a_body_that_never_comes(client: Any, gig: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.http.bodies.BODY_SECONDS_MAX", 0.05)
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(HEAD + b"Content-Length: 10\r\n\r\n{")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer
