"""The Python client against real servers, bad networks and servers that die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

from holdfast.engine import (
    AllHeld,
    AlreadyCancelled,
    AlreadyPurchased,
    CapacityInUse,
    Closed,
    ConfigurationError,
    Durability,
    DurabilityUnavailable,
    Engine,
    HoldfastError,
    IdempotencyKeyReused,
    InvalidRequest,
    ItemSpec,
    Kind,
    LimitReached,
    Line,
    NotReady,
    NotYetOpen,
    NotYourTicket,
    Order,
    OutcomeUnknown,
    Overloaded,
    Payment,
    PaymentDeclined,
    SaleExists,
    SoldOut,
    Status,
    Ticket,
    TicketExpired,
    UnknownSale,
    UnknownTicket,
)
from holdfast.http import problems
from holdfast.http.client import Client
from holdfast.http.events import Event, events
from holdfast.http.problems import TABLE, HttpError, InvalidBody, problem
from holdfast.http.told import UnexpectedAnswer

ANN, BOB = "buyer-ann-1", "buyer-bob-1"
TOKEN = "operator-token-for-tests"


@pytest.fixture
def url(client: Any) -> str:
    """The address of a server on the engine of the test."""
    return str(client.make_url("/"))


@pytest.fixture
async def ann(url: str) -> AsyncIterator[Client]:
    async with Client(url, buyer=ANN) as client:
        yield client


@pytest.fixture
async def boss(url: str) -> AsyncIterator[Client]:
    async with Client(url, operator_token=TOKEN) as client:
        yield client


def public(ticket: Ticket) -> Ticket:
    """A ticket of the engine as far as the API tells it."""
    return ticket._replace(buyer="")


# The calls ------------------------------------------------------------------------------------------------------------


async def test_sales_are_what_the_engine_says(boss: Client, engine: Engine) -> None:
    items = [ItemSpec("seat", 5, "Seats", 3), ItemSpec("box", 2)]
    made = await boss.create_sale(
        "duo", name="Two kinds", items=items, hold_ms=60_000, opens_at=1_000, closes_at=4_000_000_000_123
    )
    assert made.created
    assert made == replace(await engine.sale("duo"), epoch=0, place="")
    again = await boss.create_sale(
        "duo", name="Two kinds", items=items, hold_ms=60_000, opens_at=1_000, closes_at=4_000_000_000_123
    )
    assert (again, again.created) == (made, False)
    amended = await boss.amend_sale("duo", {"closes_at": 4_000_000_000_456, "opens_at": None, "max_per_buyer": 2})
    assert amended == await boss.sale("duo") == replace(await engine.sale("duo"), epoch=0, place="")
    assert (amended.opens_at, amended.closes_at, amended.max_per_buyer) == (None, 4_000_000_000_456, 2)
    unnamed = await boss.create_sale(name="Something", capacity=1, durability=Durability.STORED)
    assert unnamed.durability is Durability.STORED
    page = await boss.sales(limit=1)
    rest = await boss.sales(cursor=page.next)
    assert {each.id for each in (*page.items, *rest.items)} == {"duo", unnamed.id}
    assert (await boss.ready()).ready


async def test_tickets_are_what_the_engine_says(ann: Client, engine: Engine, duo: str) -> None:
    held = await ann.reserve("duo", lines={"seat": 2, "box": 1}, key="cart-1")
    assert held == public(await engine.ticket(held.id))
    assert 0 < held.expires_in_ms <= 900_000
    assert (held.replayed, held.buyer) == (False, "")
    again = await ann.reserve("duo", lines=[Line("seat", 2), Line("box", 1)], key="cart-1")
    assert (again, again.replayed) == (held, True)
    paid = await ann.confirm(held.id, reference="pay/1", key="pay-1", durability=Durability.STORED)
    assert paid == public(await engine.ticket(held.id))
    assert (paid.status, paid.reference) == (Status.PURCHASED, "pay/1")
    assert (paid.durability, paid.pending) == (Durability.STORED, None)
    assert (await ann.confirm(held.id, reference="pay/1", key="pay-1")).replayed
    other = await ann.reserve("duo", lines={"seat": 1})
    cancelled = await ann.cancel(other.id)
    assert cancelled == public(await engine.ticket(other.id)) == await ann.ticket(other.id)
    assert (await ann.cancel(other.id)).replayed
    assert {each.id for each in (await ann.tickets("duo")).items} == {held.id, other.id}
    assert [each.id for each in (await ann.tickets("duo", status=Status.PURCHASED)).items] == [held.id]


async def test_a_call_without_a_key_has_one_of_its_own(ann: Client, gig: str) -> None:
    first, second = [await ann.reserve("gig", quantity=1) for _ in range(2)]
    assert first.id != second.id
    await ann.confirm(first.id)
    with pytest.raises(AlreadyPurchased) as refused:
        await ann.confirm(first.id)
    assert refused.value.ticket == await ann.ticket(first.id)


async def test_the_operator_names_buyers(boss: Client, engine: Engine, gig: str) -> None:
    ticket = await boss.reserve("gig", buyer="ann", quantity=1)
    assert (await engine.ticket(ticket.id)).buyer == engine.buyer_hash("ann")
    with pytest.raises(NotYourTicket):
        await boss.confirm(ticket.id, buyer="bob")
    with pytest.raises(NotYourTicket):
        await boss.cancel(ticket.id, buyer="bob")
    with pytest.raises(PaymentDeclined):
        await boss.confirm(ticket.id, buyer="ann", declined=True)
    assert (await boss.cancel(ticket.id, buyer="ann")).status is Status.CANCELLED
    assert [each.id for each in (await boss.tickets("gig", buyer="ann")).items] == [ticket.id]
    assert (await boss.tickets("gig", buyer="bob")).items == ()
    with pytest.raises(InvalidRequest, match="/buyer"):
        await boss.reserve("gig", quantity=1)


async def test_buyers_by_token(clients: Any, engine: Engine, gig: str) -> None:
    key = "a key for buyer tokens, 32 bytes or more"
    server = await clients(buyer_token_key=key)
    token = jwt.encode({"sub": "ann", "exp": time.time() + 60}, key)
    async with Client(str(server.make_url("/")), buyer_token=token) as client:
        ticket = await client.reserve("gig", quantity=1)
    assert (await engine.ticket(ticket.id)).buyer == engine.buyer_hash("ann")
    async with Client(str(server.make_url("/")), buyer=ANN) as client:
        with pytest.raises(problems.BuyerTokenRequired):
            await client.reserve("gig", quantity=1)


async def test_many_at_once(boss: Client, engine: Engine) -> None:
    await engine.create_sale("gig", name="The Gig", capacity=3)
    orders = [Order("ann", 2), Order("bob", lines={"general": 1}, key="cart-1"), Order("cid", 1)]
    first, second, third = await boss.reserve_many("gig", orders)
    assert isinstance(first, Ticket)
    assert isinstance(second, Ticket)
    assert isinstance(third, AllHeld)
    assert third.available == 0
    assert first == public(await engine.ticket(first.id))
    payments = [Payment(first.id, "ann", "pay_1"), Payment(second.id, "ann"), Payment("gig.nope", "ann")]
    paid, wrong, unknown = await boss.confirm_many("gig", payments, durability=Durability.STORED)
    assert isinstance(paid, Ticket)
    assert (paid.status, paid.durability) == (Status.PURCHASED, Durability.STORED)
    assert isinstance(wrong, NotYourTicket)
    assert isinstance(unknown, UnknownTicket)
    with pytest.raises(InvalidRequest) as refused:
        await boss.reserve_many("gig", [Order("ann", 1), Order("bob", 0)])
    assert refused.value.pointer == "/entries/1/quantity"
    assert await boss.reserve_many("gig", []) == []


@pytest.mark.parametrize("name", ["a/b", "..", "a?b=c", "%2e", "\u00fc", ""])
async def test_names_that_nobody_has_lead_nowhere_else(ann: Client, name: str) -> None:
    with pytest.raises((UnknownSale, problems.UnknownRoute, problems.MethodNotAllowed)):
        await ann.reserve(name, quantity=1)
    with pytest.raises((UnknownTicket, problems.UnknownRoute, problems.MethodNotAllowed)):
        await ann.confirm(name)


@pytest.mark.parametrize("address", ["", "localhost:8080", "ftp://host", "http://", "http://host/?x=1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigurationError):
        Client(address)


async def test_a_client_that_is_not_open(url: str) -> None:
    with pytest.raises(ConfigurationError, match="async with"):
        await Client(url).sale("gig")


async def test_a_session_of_the_callers_stays_open(url: str, gig: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with Client(url, session=session) as client:
            await client.sale("gig")
        assert not session.closed


# Refusals -------------------------------------------------------------------------------------------------------------

HELD = Ticket("gig.t", "gig", Status.PURCHASED, (Line("general", 2),), "", 1_000, 2_000, 1_500, "pay_1", 2_000)

#: One of each refusal, with attributes that are not the defaults. Those that are tried again say when: too late.
SAMPLES: dict[type[Exception], Exception] = {
    InvalidRequest: InvalidRequest("/a", "is wrong", [("/b", "is wrong, too")]),
    UnknownSale: UnknownSale("gig"),
    UnknownTicket: UnknownTicket(),
    SaleExists: SaleExists("gig"),
    CapacityInUse: CapacityInUse("seat", 7),
    NotYetOpen: NotYetOpen(1_795_780_800_007, 1),
    Closed: Closed(),
    LimitReached: LimitReached(2, "seat"),
    SoldOut: SoldOut("seat", 3),
    AllHeld: AllHeld("seat", 3, 17),
    NotYourTicket: NotYourTicket(),
    AlreadyPurchased: AlreadyPurchased(HELD),
    AlreadyCancelled: AlreadyCancelled(),
    TicketExpired: TicketExpired(1_795_780_800_007),
    PaymentDeclined: PaymentDeclined(),
    DurabilityUnavailable: DurabilityUnavailable(Durability.REPLICA, "there is none"),
    IdempotencyKeyReused: IdempotencyKeyReused(),
    NotReady: NotReady("the moon is full", 60_000),
    Overloaded: Overloaded(60_000),
    OutcomeUnknown: OutcomeUnknown(60_000),
    **{
        kind: kind("No.", headers={"Allow": "GET"} if kind is problems.MethodNotAllowed else {})
        for kind in TABLE
        if issubclass(kind, HttpError) and kind is not InvalidBody
    },
}

Served = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


@pytest.fixture
def served(aiohttp_server: Any) -> Served:
    """A server that answers as the test says, whatever it is asked."""

    async def serve(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        return str((await aiohttp_server(app)).make_url("/"))

    return serve


def test_there_is_a_sample_of_every_refusal() -> None:
    # InvalidBody is how the server says InvalidRequest of a body.
    assert set(SAMPLES) == set(TABLE) - {InvalidBody}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=lambda sample: sample.code)
async def test_a_refusal_arrives_as_it_was_raised(served: Served, sample: Any) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return problem(sample, "r-1")

    async with Client(await served(refuse), buyer=ANN, timeout_s=20) as client:
        with pytest.raises(type(sample)) as refused:
            await client.confirm("gig.t")
    assert type(refused.value) is type(sample)
    assert str(refused.value) == str(sample)
    assert vars(refused.value) == vars(sample)
    if isinstance(sample, HoldfastError) and not isinstance(sample, InvalidRequest):
        entry = problems.said_of_entry(sample)[1]

        async def refuse_entry(request: web.Request) -> web.Response:
            return web.Response(text=f'{{"entries":[{{"status":409,"problem":{entry}}}]}}')

        async with Client(await served(refuse_entry), operator_token=TOKEN, timeout_s=20) as client:
            (answer,) = await client.reserve_many("gig", [Order("ann", 1)])
        assert (type(answer), vars(answer)) == (type(sample), vars(sample))


async def test_a_code_of_a_newer_server(served: Served) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"code": "no_such_code", "detail": "No."}, status=418)

    async with Client(await served(refuse)) as client:
        with pytest.raises(UnexpectedAnswer, match=r"418.*no_such_code"):
            await client.sale("gig")


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="<html>Welcome!</html>", content_type="text/html"),
        web.Response(text="<html>Nothing here.</html>", content_type="text/html", status=404),
        web.Response(text="[1]"),
        web.Response(status=302, headers={"Location": "https://elsewhere.example/"}),
    ],
    ids=["html", "html 404", "other json", "redirection"],
)
async def test_something_else_than_a_server_of_ours(served: Served, answer: web.Response) -> None:
    async def handler(request: web.Request) -> web.Response:
        return answer

    async with Client(await served(handler)) as client:
        with pytest.raises(UnexpectedAnswer):
            await client.sale("gig")


#: A ticket as the API shows it, before something about it is spoilt.
SHOWN = {
    "id": "gig.t",
    "sale": "gig",
    "status": "reserved",
    "lines": [{"sku": "general", "quantity": 1}],
    "quantity": 1,
    "reserved_at": "2026-11-27T12:00:00.000Z",
    "expires_at": "2026-11-27T12:15:00.000Z",
    "expires_in_ms": 900_000,
}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "{}"),
        (200, json.dumps(SHOWN | {"status": "lent"})),
        (200, json.dumps(SHOWN | {"expires_at": "soon"})),
        (200, json.dumps(SHOWN | {"lines": [1]})),
        (200, '{"items":[],"next":null,"entries":[]}'),
        (200, "[" * 100_000),
        (409, '{"code":["sold_out"]}'),
        (409, '{"code":null}'),
        (409, '{"code":"already_purchased"}'),
        (401, '{"code":"operator_token_required"}'),
        (422, '{"code":"invalid_request"}'),
        (503, '{"code":"not_ready","reason":"?","retry_after_ms":"soon"}'),
        (503, '{"code":"overloaded","retry_after_ms":1e400}'),
    ],
)
async def test_an_answer_that_cannot_be_read_is_none_of_a_server_of_ours(
    served: Served, status: int, body: str
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/json")

    async with Client(await served(handler), operator_token=TOKEN, timeout_s=1) as client:
        for call in (
            client.sale("gig"),
            client.reserve("gig", buyer="ann", quantity=1),
            client.reserve_many("gig", [Order("ann", 1)]),
            client.create_sale("gig", name="Gig", capacity=1),
            client.ready(),
            anext(client.counts("gig")),
            anext(client.transitions("gig")),
            *(() if "expires_in_ms" in body else (client.ticket("gig.t"),)),
        ):
            with pytest.raises(UnexpectedAnswer) as refused:
                await call
            assert TOKEN not in str(refused.value)
        if "expires_in_ms" in body:
            with pytest.raises(UnexpectedAnswer):
                await client.ticket("gig.t")


@pytest.mark.parametrize("body", [b"data: {\xff}\n\n", b"event: counts\ndata: {}\n\n", b"data: " + b"x" * 3_000_000])
async def test_events_that_are_none_of_ours(served: Served, body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="text/event-stream")

    async with Client(await served(handler), timeout_s=1) as client:
        with pytest.raises(UnexpectedAnswer):
            await anext(client.counts("gig"))


async def test_an_answer_without_an_end_is_not_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 100_000)
        return response

    monkeypatch.setattr("holdfast.http.client.ANSWER_BYTES_MAX", 1_000_000)
    async with Client(await served(handler), timeout_s=20) as client:
        with pytest.raises(UnexpectedAnswer, match="more than 1,000,000 bytes"):
            await client.sale("gig")


async def test_credentials_of_other_things_stay_at_home(
    url: str, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password private\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    heard: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        heard.append(request.headers.get("Authorization"))
        return web.json_response({"code": "unknown_sale", "sale": "gig"}, status=404)

    address = await served(handler)
    for token in (None, TOKEN):
        async with Client(address, operator_token=token) as client:
            with pytest.raises(UnknownSale):
                await client.sale("gig")
    assert heard == [None, f"Bearer {TOKEN}"]


async def test_a_proxy_of_the_environment_is_used(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"code": "unknown_sale", "sale": request.host}, status=404)

    monkeypatch.setenv("http_proxy", await served(handler))
    monkeypatch.setenv("no_proxy", "elsewhere.example")
    async with Client("http://shop.example") as client:
        with pytest.raises(UnknownSale, match=r"shop\.example"):
            await client.sale("gig")


@pytest.mark.parametrize("token", ["", "two words", "line\n", "t\u00f6ken"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(ConfigurationError, match="operator_token") as refused:
        Client("http://host", operator_token=token)
    assert token.strip() == "" or token not in str(refused.value)


def test_no_room_for_the_operators_token() -> None:
    with pytest.raises(ConfigurationError, match="leaves no room"):
        Client("http://me:private@host", operator_token=TOKEN)


# Repetitions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", [NotReady("not yet", 300), Overloaded(300), OutcomeUnknown(300)], ids=lambda e: e.code
)
async def test_what_may_be_over_in_a_moment_is_tried_again_with_the_same_key(
    url: str, served: Served, gig: str, first: HoldfastError
) -> None:
    asked: list[tuple[float, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append((time.monotonic(), request.headers["Idempotency-Key"]))
        if len(asked) < 4:
            return problem(first, "r-1")
        async with aiohttp.ClientSession() as session:
            body = await request.read()
            async with session.post(url.rstrip("/") + request.path, data=body, headers=request.headers) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")

    async with Client(await served(handler), buyer=ANN) as client:
        ticket = await client.reserve("gig", quantity=1)
    assert ticket.status is Status.RESERVED
    assert len({key for _, key in asked}) == 1
    waits = [after - before for (before, _), (after, _) in pairwise(asked)]
    assert min(waits) >= 0.3


async def test_a_refusal_is_not_tried_again(served: Served) -> None:
    asked = 0

    async def refuse(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return problem(AllHeld("general", 0, 1), "r-1")

    async with Client(await served(refuse), buyer=ANN) as client:
        with pytest.raises(AllHeld):
            await client.reserve("gig", quantity=1)
    assert asked == 1


async def test_nobody_there_is_not_ready(gig: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        began = time.monotonic()
        async with Client(f"http://127.0.0.1:{port}", buyer=ANN, timeout_s=0.5) as client:
            for call in (client.reserve("gig", quantity=1), client.confirm("gig.t"), client.sale("gig")):
                with pytest.raises(NotReady):
                    await call
        assert time.monotonic() - began < 5


async def test_no_answer_in_time_is_unknown_only_of_what_changes_something(served: Served) -> None:
    async def silent(request: web.Request) -> web.Response:
        await asyncio.sleep(3)
        return web.Response()

    async with Client(await served(silent), buyer=ANN, operator_token=TOKEN, timeout_s=0.2) as client:
        with pytest.raises(OutcomeUnknown):
            await client.reserve("gig", quantity=1)
        with pytest.raises(OutcomeUnknown):
            await client.cancel("gig.t")
        with pytest.raises(NotReady):
            await client.sale("gig")
        with pytest.raises(OutcomeUnknown):
            await client.reserve_many("gig", [Order("ann", 1)])


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_without_an_answer_leaves_it_unknown(served: Served, status: int) -> None:
    async def gateway(request: web.Request) -> web.Response:
        return web.Response(text="Bad gateway", status=status)

    async with Client(await served(gateway), buyer=ANN, timeout_s=0.2) as client:
        with pytest.raises(OutcomeUnknown):
            await client.confirm("gig.t")
        with pytest.raises(NotReady):
            await client.ticket("gig.t")


async def test_once_unknown_it_stays_so_until_it_is_decided(served: Served) -> None:
    asked = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            assert request.transport is not None
            request.transport.abort()
        return problem(Overloaded(50), "r-1")

    async with Client(await served(handler), buyer=ANN, timeout_s=0.4) as client:
        with pytest.raises(OutcomeUnknown):
            await client.reserve("gig", quantity=1)
    assert asked > 1


async def test_what_was_decided_is_told_although_the_token_changed_meanwhile(served: Served) -> None:
    calls = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls > 1:
            return problem(problems.OperatorTokenRequired("No."), "r-1")
        later = problems.said_of_entry(NotReady("not yet", 1))[1]
        return web.Response(
            text=f'{{"entries":[{{"status":201,"ticket":{json.dumps(SHOWN)}}},{{"status":503,"problem":{later}}}]}}'
        )

    async with Client(await served(handler), operator_token=TOKEN) as client:
        held, open_ = await client.reserve_many("gig", [Order("ann", 1), Order("bob", 1)])
    assert isinstance(held, Ticket)
    assert held.id == "gig.t"
    assert isinstance(open_, NotReady)


async def test_entries_that_were_not_decided_are_sent_again(url: str, served: Served, engine: Engine) -> None:
    await engine.create_sale("gig", name="The Gig", capacity=10)
    asked: list[list[dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        sent = await request.json()
        asked.append(sent["entries"])
        async with aiohttp.ClientSession() as session:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with session.post(url.rstrip("/") + request.path, json=sent, headers=headers) as answer:
                entries = (await answer.json())["entries"]
        if len(asked) == 1:
            said = problems.said_of_entry(OutcomeUnknown(1))[1]
            entries[1] = {"status": 503, "problem": json.loads(said)}
        return web.json_response({"entries": entries})

    async with Client(await served(handler), operator_token=TOKEN) as client:
        orders = [Order("ann", 1), Order("bob", 2), Order("cid", 20)]
        first, second, third = await client.reserve_many("gig", orders)
    assert isinstance(first, Ticket)
    assert isinstance(second, Ticket)
    assert (second.quantity, second.replayed) == (2, True)
    assert isinstance(third, SoldOut)
    assert asked[1] == [asked[0][1]]
    assert (await engine.sale("gig")).items[0].reserved == 3


# Bad networks ---------------------------------------------------------------------------------------------------------


class Cutter:
    """Carries bytes to a server, and cuts connections as it is told.

    Attributes
    ----------
    before: requests that are still to be cut before they reach the server. after: answers that are still to be cut.
    cuts: how many were.
    """

    def __init__(self, url: str) -> None:
        address = aiohttp.client.URL(url)
        self._target = (address.host, address.port)
        self.before = self.after = self.cuts = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Cutter:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        self.hang_up()
        await asyncio.sleep(0.05)

    def hang_up(self) -> None:
        """Cuts every connection now."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        both = {writer, back}
        self._open |= both

        async def carry(source: asyncio.StreamReader, to: asyncio.StreamWriter, counter: str) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    if getattr(self, counter) > 0:
                        setattr(self, counter, getattr(self, counter) - 1)
                        self.cuts += 1
                        break
                    to.write(data)
                    await to.drain()
            for each in both:
                each.transport.abort()

        await asyncio.gather(carry(reader, back, "before"), carry(there, writer, "after"))
        self._open -= both


@pytest.fixture
async def cutter(url: str) -> AsyncIterator[Cutter]:
    async with Cutter(url) as cutter:
        yield cutter


@pytest.mark.parametrize("end", ["before", "after"])
async def test_a_call_that_is_cut_off_sells_once(cutter: Cutter, engine: Engine, gig: str, end: str) -> None:
    async with Client(cutter.url, buyer=ANN) as client:
        setattr(cutter, end, 2)
        held = await client.reserve("gig", quantity=1)
        assert (cutter.cuts, held.replayed) == (2, end == "after")
        setattr(cutter, end, 2)
        paid = await client.confirm(held.id)
        assert (cutter.cuts, paid.replayed, paid.status) == (4, end == "after", Status.PURCHASED)
        other = await client.reserve("gig", quantity=1)
        setattr(cutter, end, 2)
        assert (await client.cancel(other.id)).status is Status.CANCELLED
        assert cutter.cuts == 6
    (item,) = (await engine.sale("gig")).items
    assert (item.reserved, item.purchased) == (0, 1)


async def test_a_stampede_through_a_bad_network_sells_each_unit_once(cutter: Cutter, engine: Engine) -> None:
    await engine.create_sale("gig", name="The Gig", capacity=60)
    async with Client(cutter.url, operator_token=TOKEN) as client:

        async def buy(buyer: str) -> str:
            cutter.before += 1
            try:
                ticket = await client.reserve("gig", buyer=buyer, quantity=1)
            except (SoldOut, AllHeld) as refusal:
                return refusal.code
            cutter.after += 1
            return (await client.confirm(ticket.id, buyer=buyer)).id

        ends = await asyncio.gather(*(buy(f"buyer-{at}") for at in range(100)))
    assert cutter.cuts > 100
    bought = [end for end in ends if end.startswith("gig.")]
    assert len(bought) == len(set(bought)) == 60
    (item,) = (await engine.sale("gig")).items
    assert (item.available, item.reserved, item.purchased) == (0, 0, 60)


# The stream -----------------------------------------------------------------------------------------------------------


async def some(stream: AsyncIterator[Any], count: int) -> list[Any]:
    found = []
    async with contextlib.aclosing(stream) as stream:  # type: ignore[type-var]
        async for each in stream:
            found.append(each)
            if len(found) == count:
                break
    return found


async def test_events_are_read_however_they_are_cut() -> None:
    text = (
        b": hello\n\nretry: 5\n\nevent: a\r\nid: 1\r\ndata: x\r\ndata:y\r\n\r\ndata: \xc3\xbc\n\nevent: b\n\ndata: cut"
    )
    for size in range(1, len(text)):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for at in range(0, len(text), size):
                yield text[at : at + size]

        assert [event async for event in events(pieces())] == [Event("a", "1", "x\ny"), Event("message", "", "\u00fc")]


async def test_transitions_go_on_after_every_break(cutter: Cutter, engine: Engine, gig: str) -> None:
    async with Client(cutter.url, operator_token=TOKEN, timeout_s=5) as client:
        seen: list[Any] = []

        async def follow() -> None:
            async for transition in client.transitions("gig", after=(0, 0)):
                seen.append(transition)

        task = asyncio.create_task(follow())
        for round_ in range(4):
            ticket = await engine.reserve("gig", buyer=f"b-{round_}", quantity=1)
            await engine.confirm(ticket.id, buyer=f"b-{round_}", reference=f"pay_{round_}")
            while len(seen) < 3 + 2 * round_:
                await asyncio.sleep(0.01)
                assert not task.done()
            cutter.hang_up()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert seen == await some(engine.transitions("gig", after=(0, 0)), 9)
    assert [each.kind for each in seen] == [Kind.SALE, *[Kind.RESERVED, Kind.PURCHASED] * 4]


async def test_transitions_begin_with_the_present(boss: Client, engine: Engine, gig: str) -> None:
    await engine.reserve("gig", buyer="ann", quantity=1)
    following = asyncio.create_task(some(boss.transitions("gig"), 1))
    (sale,) = await some(boss.counts("gig"), 1)
    assert sale == await engine.sale("gig")
    second = None
    while not following.done():
        second = second or await engine.reserve("gig", buyer="ann", quantity=1)
        await engine.cancel(second.id, buyer="ann")
        second = None
        await asyncio.sleep(0.2)
    (first,) = following.result()
    assert first.position > sale.position
    (after,) = await some(boss.transitions("gig", after=(1, 1)), 1)
    assert after.position == (1, 2)


async def test_counts_tell_what_changed(ann: Client, engine: Engine, gig: str) -> None:
    async def buy() -> None:
        await asyncio.sleep(0.3)
        await engine.reserve("gig", buyer="ann", quantity=3)

    buying = asyncio.create_task(buy())
    first, second = await some(ann.counts("gig"), 2)
    await buying
    assert [each.items[0].reserved for each in (first, second)] == [0, 3]
    assert second == await engine.sale("gig")


async def test_refusals_of_a_stream(ann: Client, boss: Client, gig: str) -> None:
    with pytest.raises(UnknownSale):
        await some(ann.counts("nope"), 1)
    with pytest.raises(problems.OperatorTokenRequired):
        await some(ann.transitions("gig"), 1)
    for after in ((-1, 0), "1-1,1-1", "here"):
        with pytest.raises(InvalidRequest):
            await some(boss.transitions("gig", after=after), 1)


async def test_a_stream_of_nobody_is_not_ready() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with Client(f"http://127.0.0.1:{closed.getsockname()[1]}", timeout_s=0.3) as client:
            with pytest.raises(NotReady):
                await some(client.counts("gig"), 1)


# A server that dies ---------------------------------------------------------------------------------------------------


@pytest.fixture
def restarting(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a server, always on the same port and the same directory; the last one is ended in order."""
    processes: list[subprocess.Popen[str]] = []
    port = "0"

    def start() -> subprocess.Popen[str]:
        nonlocal port
        command = [sys.executable, "-m", "holdfast.http.cli", "serve", "--port", port, "--data-dir", "data"]
        process = subprocess.Popen(
            [*command, "--operator-token", TOKEN],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        port = process.stdout.readline().strip().rpartition(":")[2]
        process.url = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=20)


async def test_a_server_that_is_killed_loses_no_call(restarting: Callable[[], subprocess.Popen[str]]) -> None:
    server = restarting()
    url = server.url  # type: ignore[attr-defined]
    async with Client(url, operator_token=TOKEN) as client:
        await client.create_sale("gig", name="The Gig", capacity=150)
        answered = 0

        async def reserve(at: int) -> Ticket | HoldfastError:
            nonlocal answered
            # Some come while it dies, and some while it is gone.
            await asyncio.sleep(at * 0.005)
            try:
                return await client.reserve("gig", buyer=f"buyer-{at}", quantity=1)
            except (SoldOut, AllHeld) as refusal:
                return refusal
            finally:
                answered += 1

        calls = [asyncio.create_task(reserve(at)) for at in range(200)]
        while answered < 40:
            await asyncio.sleep(0.001)
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert answered < 200
        await asyncio.to_thread(restarting)
        ends = await asyncio.gather(*calls)
        tickets = [end for end in ends if isinstance(end, Ticket)]
        assert len({ticket.id for ticket in tickets}) == len(tickets) == 150
        sale = await client.sale("gig")
        assert (sale.items[0].available, sale.items[0].reserved, sale.items[0].purchased) == (0, 150, 0)
        for ticket in tickets:
            assert (await client.ticket(ticket.id)).status is Status.RESERVED


def test_the_client_needs_nothing_of_the_server() -> None:
    code = "import sys, holdfast.http.client; print(*(m for m in sys.modules if m.startswith('holdfast.http.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    needed = ("client", "events", "models", "problems", "told")
    assert sorted(done.stdout.split()) == [f"holdfast.http.{name}" for name in needed]
