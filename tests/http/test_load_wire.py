"""The lean client, and how it reads answers: against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from holdfast.engine import ConfigurationError
from holdfast.http.load import contract
from holdfast.http.load.log import HUNG_UP, LOST, NO_ANSWER, NOT_SENT, Call, Operation, Outcome
from holdfast.http.load.requests import GARBAGE, Requests
from holdfast.http.load.wire import Answer, Wire, address_of

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def wire(serve: Serve, connections: int = 4, patience_s: float = 30.0) -> AsyncIterator[Wire]:
    """A client of a server that does this with each connection."""
    served: set[asyncio.Task[Any]] = set()

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serving, "127.0.0.1", 0)
    client = Wire(address_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), connections, patience_s)
    try:
        yield client
    finally:
        client.close()
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await server.wait_closed()


async def request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def test_answers_one_after_the_other_on_one_connection() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await request(reader)
            writer.write(OK[:20])
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(OK[20:])

    async with wire(serve) as client:
        for _ in range(3):
            exchange = await client.ask(REQUEST)
            assert exchange.answer is not None
            assert (exchange.answer.status, exchange.answer.body) == (200, b"{}")
            assert exchange.begun <= exchange.ended
    assert connections == 1


async def test_chunks_and_a_hundred_before_the_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.write(
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nLocation: /x\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
        )

    async with wire(serve) as client:
        answer = (await client.ask(REQUEST)).answer
    assert answer is not None
    assert (answer.status, answer.body, answer.headers[b"location"]) == (201, b"{}", b"/x")


async def test_a_connection_that_is_lost_is_no_answer_and_not_used_again() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await request(reader)
        if connections > 1:
            writer.write(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
            await writer.drain()

    async with wire(serve, connections=1) as client:
        assert (await client.ask(REQUEST)).why == LOST
        assert (await client.ask(REQUEST)).answer is not None
        assert (await client.ask(REQUEST)).answer is not None
    assert connections == 3


async def test_what_is_not_http_is_no_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await reader.read()

    async with wire(serve) as client:
        assert (await client.ask(REQUEST)).why == LOST


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with wire(serve, patience_s=0.05) as client:
        assert (await client.ask(REQUEST)).why == NO_ANSWER


async def test_hanging_up_sends_the_request_and_waits_for_nothing() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await request(reader))
        heard.append(await reader.read())

    async with wire(serve) as client:
        exchange = await client.hang_up(REQUEST)
        assert (exchange.why, exchange.answer) == (HUNG_UP, None)
        async with asyncio.timeout(10):
            while not heard:
                await asyncio.sleep(0.001)
    assert heard[0] == REQUEST


async def test_more_requests_than_connections_wait_their_turn() -> None:
    under_way = most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        while True:
            await request(reader)
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            under_way -= 1
            writer.write(OK)

    async with wire(serve, connections=3) as client:
        await client.open(10)
        exchanges = await asyncio.gather(*(client.ask(REQUEST) for _ in range(20)))
    assert all(exchange.answer is not None for exchange in exchanges)
    assert most == 3
    assert sum(exchange.waited for exchange in exchanges) == 17


async def test_an_answer_that_nobody_waits_for_is_not_taken_for_another() -> None:
    asked: list[bytes] = []
    told = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked.append(await request(reader))
            await told.wait()
            writer.write(OK[:-2] + b"%2d" % len(asked))

    async with wire(serve, connections=1) as client:
        first = asyncio.create_task(client.ask(REQUEST))
        async with asyncio.timeout(10):
            while not asked:
                await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        told.set()
        answer = (await client.ask(REQUEST)).answer
    assert answer is not None
    assert answer.body == b" 2"


async def test_nobody_waits_for_ever_when_connections_are_lost() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)

    async with wire(serve, connections=2) as client:
        async with asyncio.timeout(20):
            exchanges = await asyncio.gather(*(client.ask(REQUEST) for _ in range(20)))
    assert {exchange.why for exchange in exchanges} == {LOST}


async def test_without_a_server_nothing_is_sent(unused_tcp_port: int) -> None:
    client = Wire(address_of(f"http://127.0.0.1:{unused_tcp_port}"), 2, 1.0)
    exchange = await client.ask(REQUEST)
    assert (exchange.why, exchange.answer) == (NOT_SENT, None)
    client.close()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://here", "http://", "http://u:p@here", "http://here:port", "http://here/?a"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--url must look like"):
        address_of(url)


def test_an_address_with_a_path_before_all_others() -> None:
    address = address_of("https://shop.example/tickets/")
    assert (address.host, address.port, address.secure, address.base) == ("shop.example", 443, True, "/tickets")
    assert (
        Requests(address, "run").reserve("gig", "", "k", 1).startswith(b"POST /tickets/sales/gig/tickets HTTP/1.1\r\n")
    )


# Reading answers ------------------------------------------------------------------------------------------------------

TICKET = {
    "id": "gig.x",
    "sale": "gig",
    "status": "reserved",
    "lines": [{"sku": "general", "quantity": 2}],
    "quantity": 2,
    "reserved_at": "2026-11-27T12:00:00.000Z",
    "expires_at": "2026-11-27T12:00:05.000Z",
    "expires_in_ms": 5_000,
}
PROBLEM = {
    "type": "/docs/errors#all_held",
    "title": "T",
    "status": 409,
    "detail": "D",
    "code": "all_held",
    "request_id": "1",
}


def read(
    status: int, body: Any, call: Call = Call.RESERVE, expected: tuple[int, str] | None = None, **headers: bytes
) -> Operation:
    operation = Operation(1, call, 0, "k", 2, 0, 0, 1, ticket="" if call is Call.RESERVE else "gig.x")
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {b"content-type": b"application/problem+json" if status >= 400 else b"application/json"}
    named |= {name.replace("_", "-").encode(): value for name, value in headers.items()}
    contract.read(operation, "gig", Answer(status, named, content), expected)
    return operation


def test_a_ticket_is_read() -> None:
    operation = read(201, TICKET, idempotent_replayed=b"true")
    assert operation.wrong == ""
    assert (operation.ticket, operation.state, operation.units, operation.replayed) == ("gig.x", "reserved", 2, True)
    assert operation.expires_at - operation.now == 5_000
    assert operation.outcome is Outcome.DONE


def test_a_refusal_is_read() -> None:
    operation = read(409, PROBLEM | {"sku": "general", "available": 0, "retry_after_ms": 17})
    assert operation.wrong == ""
    assert (operation.code, operation.retry_after_ms, operation.outcome) == ("all_held", 17, Outcome.REFUSED)


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (500, "internal_error", Outcome.UNKNOWN),
        (502, "", Outcome.UNKNOWN),
        (503, "outcome_unknown", Outcome.UNKNOWN),
        (503, "overloaded", Outcome.REFUSED),
        (503, "not_ready", Outcome.REFUSED),
    ],
)
def test_what_a_client_knows_after_a_failure(status: int, code: str, outcome: Outcome) -> None:
    assert read(status, PROBLEM | {"code": code}).outcome is outcome


@pytest.mark.parametrize(
    ("status", "body", "call", "says"),
    [
        (201, b"<html>", Call.RESERVE, "no JSON object"),
        (201, [], Call.RESERVE, "no JSON object"),
        (200, TICKET, Call.RESERVE, "200 is no answer to reserve"),
        (201, TICKET | {"sale": "other"}, Call.RESERVE, "belongs to other"),
        (201, TICKET | {"quantity": 3}, Call.RESERVE, "has 3 units"),
        (201, {key: TICKET[key] for key in TICKET if key != "expires_at"}, Call.RESERVE, "lacks something"),
        (200, TICKET, Call.PAY, "is reserved after pay"),
        (200, TICKET | {"id": "gig.y", "status": "purchased"}, Call.PAY, "answered with gig.y"),
        (409, PROBLEM | {"code": "already_purchased"}, Call.RESERVE, "no answer to reserve"),
        (409, PROBLEM, Call.PAY, "no answer to pay"),
        (400, PROBLEM, Call.RESERVE, "has status 409, and came with 400"),
        (500, PROBLEM | {"code": "internal_error"}, Call.RESERVE, "500 internal_error is no answer"),
        (502, b"Bad Gateway", Call.RESERVE, "no JSON object"),
    ],
)
def test_answers_outside_the_contract(status: int, body: Any, call: Call, says: str) -> None:
    assert says in read(status, body, call).wrong


def test_a_refusal_that_is_no_problem_object() -> None:
    assert "not application/problem+json" in read(409, PROBLEM, content_type=b"text/html").wrong


def test_garbage_must_be_refused_as_it_deserves() -> None:
    expected = (422, "invalid_request")
    assert read(422, PROBLEM | {"code": "invalid_request"}, Call.GARBAGE, expected).wrong == ""
    assert "has to be refused" in read(400, PROBLEM | {"code": "malformed_json"}, Call.GARBAGE, expected).wrong
    assert "has to be refused" in read(201, TICKET, Call.GARBAGE, expected).wrong
    assert {status for garbage in GARBAGE for status in garbage.expected[:1]} >= {400, 401, 404, 405, 413, 415, 422}
