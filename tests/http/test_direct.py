"""The short way and the ordinary one answer alike; what only the short one must get right: order, haste, hang-ups."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from holdfast.engine import Engine, NotReady, OutcomeUnknown, Overloaded, SoldOut
from holdfast.http import desk, direct
from holdfast.http.app import create_app
from holdfast.http.context import AppConfig
from holdfast.http.server import SERVER_OPTIONS

from .conftest import OPERATOR_TOKEN, DirectTestServer

Client = TestClient[Any, Any]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each complete request was taken by the short way."""
    answers: list[bool] = []
    take = desk.Desk.take

    def noted(self: desk.Desk, *args: Any) -> bool:
        answers.append(take(self, *args))
        return answers[-1]

    monkeypatch.setattr(desk.Desk, "take", noted)
    return answers


@pytest.fixture
async def ordinary(engine: Engine, aiohttp_client: Any) -> Client:
    """A client of a server without the short way."""
    server = TestServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)))
    await server.start_server(**SERVER_OPTIONS)
    client: Client = await aiohttp_client(server)
    return client


def buyer(name: str, **more: str) -> dict[str, str]:
    return {"X-Buyer-Fingerprint": f"buyer-{name}", **more}


async def answered(client: Client, path: str, headers: dict[str, str], body: object) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body, without what differs from one request to the next."""
    options: dict[str, Any] = {"data": body} if isinstance(body, (str, bytes)) else {"json": body}
    response = await client.post(path, headers=headers, **({} if body is None else options))
    raw = await response.text()
    # Ids are of one length, and so are instants; counters of request ids and milliseconds left are not.
    raw = re.sub(r"gig\.[\w-]{22}", "TICKET", raw)
    raw = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "INSTANT", raw)
    raw = re.sub(r'("(?:request_id|retry_after_ms|expires_in_ms)":)("[^"]*"|\d+)', r"\1 0", raw)
    kept = {name.lower(): value for name, value in response.headers.items()}
    del kept["date"], kept["content-length"]
    kept["x-request-id"] = re.sub(r"^[0-9a-f]{8}-\d+$", "made", kept["x-request-id"])
    if "location" in kept:
        kept["location"] = re.sub(r"gig\.[\w-]{22}", "TICKET", kept["location"])
    assert int(response.headers["Content-Length"]) == len(await response.read())
    return response.status, kept, raw


RESERVE = "/sales/gig/tickets"

#: Calls on a sale of ten units, four to a buyer; each in a sale of its own, so that what one does no other sees.
RESERVATIONS: dict[str, tuple[str, dict[str, str], object]] = {
    "plain": (RESERVE, buyer("ann"), {"quantity": 1}),
    "lines": (RESERVE, buyer("ann"), {"lines": [{"sku": "general", "quantity": 2}]}),
    "fingerprint in the body": (RESERVE, {}, {"quantity": 1, "fingerprint": "buyer-ann"}),
    "nobody named": (RESERVE, {}, {"quantity": 1}),
    "with a key": (RESERVE, buyer("ann", **{"Idempotency-Key": "k1"}), {"quantity": 1}),
    "with a request id": (RESERVE, buyer("ann", **{"X-Request-Id": "r-7"}), {"quantity": 1}),
    "of the operator": (
        RESERVE,
        {"Authorization": f"Bearer {OPERATOR_TOKEN}"},
        {"quantity": 1, "buyer": "someone by name"},
    ),
    "with the operator's token and nobody": (RESERVE, {"Authorization": f"Bearer {OPERATOR_TOKEN}"}, {"quantity": 1}),
    "with a wrong token": (RESERVE, buyer("ann", Authorization="Bearer nope"), {"quantity": 1}),
    "over the limit": (RESERVE, buyer("ann"), {"quantity": 5}),
    "over the limit, with an odd request id": (RESERVE, buyer("ann", **{"X-Request-Id": 'a"b\\c'}), {"quantity": 5}),
    "a body of another type": (RESERVE, buyer("ann", **{"Content-Type": "text/plain"}), '{"quantity":1}'),
    "a body with a charset": (
        RESERVE,
        buyer("ann", **{"Content-Type": "application/json; charset=utf-8"}),
        '{"quantity":1}',
    ),
    "no JSON": (RESERVE, buyer("ann", **{"Content-Type": "application/json"}), '{"quantity":'),
    "nothing": (RESERVE, buyer("ann"), None),
    "a wrong quantity": (RESERVE, buyer("ann"), {"quantity": True}),
    "quantity and lines": (RESERVE, buyer("ann"), {"quantity": 1, "lines": [{"sku": "general", "quantity": 2}]}),
    "an unknown sku": (RESERVE, buyer("ann"), {"lines": [{"sku": "nope", "quantity": 2}]}),
    "a short fingerprint": (RESERVE, {"X-Buyer-Fingerprint": "short"}, {"quantity": 1}),
    "a bad key": (RESERVE, buyer("ann", **{"Idempotency-Key": "a b"}), {"quantity": 1}),
    "an encoding": (
        RESERVE,
        buyer("ann", **{"Content-Encoding": "identity", "Content-Type": "application/json"}),
        '{"quantity":1}',
    ),
    "a query": (RESERVE + "?quantity=1", buyer("ann"), {"quantity": 1}),
    "an escaped path": ("/sales/%67ig/tickets", buyer("ann"), {"quantity": 1}),
    "a large body": (RESERVE, buyer("ann", **{"Content-Type": "application/json"}), " " * 9000),
    "an unknown sale": ("/sales/nope/tickets", buyer("ann"), {"quantity": 1}),
    "a sale that cannot be": ("/sales/NOPE/tickets", buyer("ann"), {"quantity": 1}),
    "no such path": ("/sales/gig/ticketss", buyer("ann"), {"quantity": 1}),
}


@pytest.mark.parametrize("case", RESERVATIONS)
async def test_a_reservation_is_answered_alike_on_both_ways(
    client: Client, ordinary: Client, engine: Engine, case: str
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=10, max_per_buyer=4)
    path, headers, body = RESERVATIONS[case]
    first = await answered(ordinary, path, headers, body)
    # The operator's and the derived buyers are the same on both; four units each are enough for all of these.
    if "Idempotency-Key" in headers and first[0] == 201:
        assert "Idempotent-Replayed" not in first[1]
        second = await answered(client, path, {**headers, "Idempotency-Key": "k2"}, body)
    else:
        second = await answered(client, path, headers, body)
    assert second == first


async def test_refusals_of_the_engine_are_said_alike(
    client: Client, ordinary: Client, engine: Engine, taken: list[bool]
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=1)
    await engine.create_sale("later", name="Later", capacity=1, opens_at=4_000_000_000_000)
    await engine.create_sale("over", name="Over", capacity=1, opens_at=1, closes_at=2)
    ticket = await engine.reserve("gig", buyer="buyer-ann", quantity=1, key="k1")
    calls: list[tuple[str, str, dict[str, str], object]] = [
        ("all_held", RESERVE, buyer("bob"), {"quantity": 1}),
        ("sold_out", RESERVE, buyer("bob"), {"quantity": 2}),
        ("sold_out", RESERVE, buyer("bob"), {"quantity": 2}),
        ("idempotency_key_reused", RESERVE, buyer("ann", **{"Idempotency-Key": "k1"}), {"quantity": 2}),
        ("not_yet_open", "/sales/later/tickets", buyer("bob"), {"quantity": 1}),
        ("closed", "/sales/over/tickets", buyer("bob"), {"quantity": 1}),
        ("not_your_ticket", f"/tickets/{ticket.id}/payment", buyer("bob"), None),
        ("payment_declined", f"/tickets/{ticket.id}/payment", buyer("ann"), {"outcome": "decline"}),
        ("unknown_ticket", f"/tickets/gig.{'a' * 22}/payment", buyer("ann"), None),
        ("unknown_ticket", "/tickets/nonsense/payment", buyer("ann"), None),
    ]
    for code, path, headers, body in calls:
        first = await answered(ordinary, path, headers, body)
        assert json.loads(first[2])["code"] == code
        assert await answered(client, path, headers, body) == first
    assert taken.count(False) == 1  # the ticket whose id is none
    await engine.confirm(ticket.id, buyer="buyer-ann")
    for headers in (buyer("ann"), buyer("ann")):
        first = await answered(ordinary, f"/tickets/{ticket.id}/payment", headers, None)
        assert json.loads(first[2])["ticket"]["status"] == "purchased"
        assert await answered(client, f"/tickets/{ticket.id}/payment", headers, None) == first


@pytest.mark.parametrize("body", [None, {}, {"reference": 'pay ünïcödé \U0001f39f "x" \\ 7'}, {"outcome": "approve"}])
@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "p1"}])
async def test_a_payment_and_its_repeat_are_answered_alike(
    client: Client, ordinary: Client, engine: Engine, taken: list[bool], body: object, key: dict[str, str]
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=10)
    tickets = [await engine.reserve("gig", buyer="buyer-ann", quantity=1) for _ in range(2)]
    for _ in range(2):
        first, second = [
            await answered(way, f"/tickets/{ticket.id}/payment", buyer("ann", **key), body)
            for way, ticket in zip((ordinary, client), tickets, strict=True)
        ]
        assert second == first
    assert taken == [True, True]


@pytest.mark.parametrize(
    ("error", "status"), [(NotReady("no"), 503), (Overloaded(), 503), (OutcomeUnknown(), 503), (ValueError("oh"), 500)]
)
async def test_what_goes_wrong_inside_is_said_alike(
    client: Client,
    ordinary: Client,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    gig: str,
    error: Exception,
    status: int,
) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)

    async def fails(*args: Any) -> None:
        raise error

    monkeypatch.setattr(engine._scripts, "reserve", fails)
    first = await answered(ordinary, RESERVE, buyer("ann"), {"quantity": 1})
    assert first[0] == status
    assert await answered(client, RESERVE, buyer("ann"), {"quantity": 1}) == first


async def test_the_stampede_takes_the_short_way(client: Client, engine: Engine, gig: str, taken: list[bool]) -> None:
    statuses = [(await client.post(RESERVE, json={"quantity": 1}, headers=buyer(f"ann-{n}"))).status for n in range(10)]
    assert statuses == [201] * 10
    assert taken == [True] * 10
    # Also on a connection that was on the ordinary way before.
    assert (await client.get("/sales/gig")).status == 200
    assert (await client.post(RESERVE, json={"quantity": 1}, headers=buyer("zoe"))).status == 409
    assert taken == [True] * 10 + [False, True]


async def test_a_sale_of_which_this_process_knows_nothing_yet(
    clients: Callable[..., Awaitable[Client]], engine: Engine, gig: str
) -> None:
    engine._slots._known.clear()
    client = await clients()
    assert (await client.post(RESERVE, json={"quantity": 1}, headers=buyer("ann"))).status == 201


async def test_pages_of_other_origins(clients: Callable[..., Awaitable[Client]], gig: str, taken: list[bool]) -> None:
    client = await clients(allow_origin=["https://shop.example"])
    plain = await client.post(RESERVE, json={"quantity": 1}, headers=buyer("ann"))
    assert (plain.status, plain.headers["Vary"]) == (201, "Origin")
    shop = await client.post(RESERVE, json={"quantity": 1}, headers=buyer("ann", Origin="https://shop.example"))
    assert shop.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert taken == [True, False]


# On the wire ----------------------------------------------------------------------------------------------------------


class Idle(asyncio.Transport):
    """A transport that nothing leaves.

    Attributes
    ----------
    flow: what was said of reading, "pause" and "resume". on_write: called before each write.
    closing: the other end is gone, and the connection has not heard of it yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.flow: list[str] = []
        self.closing = False
        self.on_write: Callable[[], object] = lambda: None

    async def answers(self, number: int) -> None:
        """Waits for so many answers."""
        while self.written.count(b"HTTP/1.1 ") < number:
            await asyncio.sleep(0)

    def write(self, data: Any) -> None:
        self.on_write()
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        self.flow.append("pause")

    def resume_reading(self) -> None:
        self.flow.append("resume")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        pass


class Wire:
    """A connection on which bytes go out as the test wants them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @staticmethod
    def request(name: str, quantity: int = 1, path: str = RESERVE, **headers: str) -> bytes:
        body = json.dumps({"quantity": quantity})
        lines = {"Host": "x", "Content-Type": "application/json", "X-Request-Id": name, **buyer(name), **headers}
        head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        return f"POST {path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    async def answer(self) -> tuple[int, str]:
        """Status and request id of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"Content-Length: (\d+)", head, re.IGNORECASE)
        name = re.search(r"X-Request-Id: (\S+)", head, re.IGNORECASE)
        assert length
        assert name
        await self.reader.readexactly(int(length[1]))
        return int(head.split()[1]), name[1]


Wires = Callable[[], Awaitable[Wire]]


@pytest.fixture
async def wire(engine: Engine) -> AsyncIterator[Wires]:
    server = DirectTestServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)))
    await server.start_server(**SERVER_OPTIONS)
    opened = []

    async def connect() -> Wire:
        opened.append(Wire(*await asyncio.open_connection(server.host, server.port)))
        return opened[-1]

    yield connect
    for each in opened:
        each.writer.close()
    await server.close()


async def answered_once(wire: Wires) -> Wire:
    """A connection that the server has, for certain."""
    connection = await wire()
    connection.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    status, _ = await connection.answer()
    assert status == 200
    return connection


Lone = Callable[[], Awaitable[tuple[direct.Connection, Idle]]]


@pytest.fixture
async def lone(engine: Engine) -> AsyncIterator[Lone]:
    """Makes connections of a server whose transports do what the test wants."""
    runner = direct.Runner(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)))
    await runner.setup()
    made = []

    async def make() -> tuple[direct.Connection, Idle]:
        assert isinstance(runner.server, direct.DirectServer)
        connection, transport = runner.server(), Idle()
        connection.connection_made(transport)
        made.append(connection)
        # aiohttp's own task of the connection has begun.
        await asyncio.sleep(0)
        return connection, transport

    yield make
    for connection in made:
        connection.connection_lost(None)
    await runner.cleanup()


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Holds reservations on their way to Redis until it is opened."""
    gate = Gate()
    real = engine._scripts.reserve

    async def held(*args: Any) -> Any:
        gate.sizes.append(len(args[2]))
        await gate.open.wait()
        return await real(*args)

    monkeypatch.setattr(engine._scripts, "reserve", held)
    return gate


class Gate:
    """`open` lets reservations pass; `sizes` has the batches that came to it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.sizes: list[int] = []

    async def reached(self) -> None:
        while not self.sizes:
            await asyncio.sleep(0.001)


#: The short way, and the ordinary one.
PATHS = {"s": RESERVE, "o": RESERVE.replace("gig", "%67ig")}


@pytest.mark.parametrize("order", ["sss", "sos", "oss", "sso", "ooo", "oso", "soos"])
@pytest.mark.parametrize("pieces", ["at once", "while the first is under way", "one by one"])
async def test_pipelined_requests_are_answered_in_order(
    wire: Wires, gate: Gate, gig: str, order: str, pieces: str
) -> None:
    names = [f"request-{at}" for at in range(len(order))]
    requests = [Wire.request(name, path=PATHS[way]) for name, way in zip(names, order, strict=True)]
    connection = await wire()
    if pieces == "at once":
        gate.open.set()
        connection.writer.write(b"".join(requests))
    elif pieces == "one by one":
        gate.open.set()
        for request in requests:
            connection.writer.write(request)
            await connection.writer.drain()
    else:
        connection.writer.write(requests[0])
        await gate.reached()
        for request in requests[1:]:
            connection.writer.write(request)
            await connection.writer.drain()
            # Each is read by itself: the server is in this loop, too.
            await asyncio.sleep(0.005)
        assert gate.sizes == [1]
        gate.open.set()
    assert [await connection.answer() for _ in order] == [(201, name) for name in names]


@pytest.mark.parametrize("at", [1, 40, 100, -15, -14, -5, -1])
async def test_a_request_in_two_pieces(wire: Wires, gig: str, engine: Engine, at: int, taken: list[bool]) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)
    connection = await wire()
    for name in ("first-one", "second-one"):
        request = Wire.request(name)
        connection.writer.write(request[:at])
        await connection.writer.drain()
        # Long enough for the server to read it: what it does with it is the same whenever it does.
        await asyncio.sleep(0.02)
        connection.writer.write(request[at:])
        assert await connection.answer() == (201, name)


async def test_who_sends_far_ahead_is_not_read_without_bound(
    wire: Wires, engine: Engine, gig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.amend_sale(gig, {"capacity": 10_000, "max_per_buyer": None})
    await engine.reserve(gig, buyer="someone", quantity=1)
    monkeypatch.setattr(direct, "EARLY_BYTES_MAX", 1000)
    connection = await wire()
    names = [f"request-{at}" for at in range(500)]
    connection.writer.write(b"".join(Wire.request(name) for name in names))
    assert [await connection.answer() for _ in names] == [(201, name) for name in names]


async def test_what_arrives_together_is_begun_together(
    wire: Wires, engine: Engine, gig: str, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    await engine.amend_sale(gig, {"capacity": 1_000})
    gate.open.set()
    connections = [await answered_once(wire) for _ in range(50)]
    rounds: list[int] = []
    begin = direct.Turn._begin

    def noted(self: direct.Turn) -> None:
        rounds.append(len(self._arrived))
        begin(self)

    monkeypatch.setattr(direct.Turn, "_begin", noted)
    for at, connection in enumerate(connections):
        connection.writer.write(Wire.request(f"request-{at}"))
    assert [await connection.answer() for connection in connections] == [
        (201, f"request-{at}") for at in range(len(connections))
    ]
    assert sum(rounds) == len(connections)
    assert max(rounds) > 10


@pytest.mark.parametrize("where", ["parse", "begin"])
async def test_a_mistake_of_ours_in_one_request_ends_its_connection_and_no_other(
    wire: Wires,
    engine: Engine,
    gig: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)
    connections = [await answered_once(wire) for _ in range(3)]
    if where == "begin":
        take = desk.Desk.take

        def broken(self: desk.Desk, connection: Any, message: Any, body: bytes) -> bool:
            if message.headers.get("X-Request-Id") == "the-second":
                raise RuntimeError("a mistake")
            return take(self, connection, message, body)

        monkeypatch.setattr(desk.Desk, "take", broken)
    else:
        parse = direct.Connection.parse

        class Broken:
            def feed_data(self, data: bytes) -> None:
                raise RuntimeError("a mistake")

        def broken_parse(self: direct.Connection, data: bytes) -> Any:
            if b"the-second" in data:
                self._parser = Broken()  # type: ignore[assignment]
            return parse(self, data)

        monkeypatch.setattr(direct.Connection, "parse", broken_parse)
    for connection, name in zip(connections, ("the-first", "the-second", "the-third"), strict=True):
        connection.writer.write(Wire.request(name))
    assert await connections[0].answer() == (201, "the-first")
    assert await connections[2].answer() == (201, "the-third")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await connections[1].answer()
    assert "a request could not be answered" in caplog.text


async def test_what_arrived_on_a_connection_that_is_lost_at_once_is_not_done(
    lone: Lone, engine: Engine, gig: str, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)
    connection, _ = await lone()
    connection.data_received(Wire.request("the-first"))
    connection.connection_lost(None)
    # Goes out after whatever has come before.
    await engine.reserve(gig, buyer="someone-else", quantity=1)
    assert (await engine.sale(gig)).items[0].reserved == 2
    assert not caplog.records


async def test_a_connection_ends_though_what_arrived_last_goes_the_ordinary_way(lone: Lone) -> None:
    connection, transport = await lone()
    connection.data_received(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    # Without a limit: it waits for its request, and for nothing that never comes.
    await connection.shutdown(None)
    assert transport.written.startswith(b"HTTP/1.1 200 OK")


async def test_what_follows_a_declined_upgrade_is_answered_in_order(wire: Wires, engine: Engine, gig: str) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)
    connection = await wire()
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: the-first\r\n"
    upgrade = head + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    second = Wire.request("the-second")
    connection.writer.write(upgrade + second[:-5])
    assert await connection.answer() == (200, "the-first")
    connection.writer.write(second[-5:] + Wire.request("the-third"))
    assert await connection.answer() == (201, "the-second")
    assert await connection.answer() == (201, "the-third")


async def test_nothing_is_begun_for_who_does_not_read(lone: Lone, engine: Engine, gig: str) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)
    connection, transport = await lone()
    transport.on_write = connection.pause_writing
    connection.data_received(Wire.request("the-first"))
    await transport.answers(1)
    connection.data_received(Wire.request("the-second"))
    # Goes out after whatever has come before.
    await engine.reserve(gig, buyer="someone-else", quantity=1)
    assert transport.written.count(b"HTTP/1.1") == 1
    assert (await engine.sale(gig)).items[0].reserved == 3
    transport.on_write = lambda: None
    connection.resume_writing()
    await transport.answers(2)
    connection.data_received(Wire.request("the-third"))
    await transport.answers(3)
    assert re.findall(rb"X-Request-Id: (\S+)", transport.written) == [b"the-first", b"the-second", b"the-third"]


async def test_what_aiohttp_paused_stays_paused(lone: Lone, engine: Engine, gig: str) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)
    connection, transport = await lone()
    many = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100
    # More than aiohttp keeps comes while one is answered, and still more before that is looked at.
    transport.on_write = lambda: connection._loop.call_soon(connection.data_received, many)
    connection.data_received(Wire.request("the-first"))
    connection.data_received(many)
    await transport.answers(1)
    transport.on_write = lambda: None
    while "pause" not in transport.flow:
        await asyncio.sleep(0)
    # What it has is answered before it takes more.
    await asyncio.sleep(0)
    assert transport.flow[-1] == "pause"
    await transport.answers(201)
    assert transport.flow[-1] == "resume"


@pytest.mark.parametrize("invited", [False, True])
async def test_a_client_that_hangs_up_in_its_body_is_no_mistake_of_ours(
    lone: Lone, engine: Engine, gig: str, invited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.reserve(gig, buyer="someone", quantity=1)
    headers = {"Expect": "100-continue"} if invited else {}
    for turns in range(8):
        connection, transport = await lone()
        transport.closing = turns % 2 == 1
        connection.data_received(Wire.request("the-first", **headers)[:-3])
        for _ in range(turns):
            await asyncio.sleep(0)
        connection.connection_lost(None)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not caplog.records


async def test_a_client_that_hangs_up_before_its_call_was_sent_leaves_nothing(
    wire: Wires, engine: Engine, gate: Gate, gig: str
) -> None:
    slot = await engine._slots.get(gig)
    connections = [await wire() for _ in range(3)]
    connections[0].writer.write(Wire.request("first-one"))
    await gate.reached()
    for connection in connections[1:]:
        connection.writer.write(Wire.request("later-one"))
    while len(slot.reserves._waiting) < 2:
        await asyncio.sleep(0.001)
    connections[1].writer.transport.abort()
    while not any(call[-1].done() for call in slot.reserves._waiting):
        await asyncio.sleep(0.001)
    gate.open.set()
    assert await connections[0].answer() == (201, "first-one")
    assert await connections[2].answer() == (201, "later-one")
    assert gate.sizes == [1, 1]
    assert (await engine.sale(gig)).items[0].reserved == 2


async def test_a_request_under_way_is_answered_before_the_server_ends(engine: Engine, gate: Gate, gig: str) -> None:
    server = DirectTestServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)))
    await server.start_server(**SERVER_OPTIONS)
    connection = Wire(*await asyncio.open_connection(server.host, server.port))
    connection.writer.write(Wire.request("first-one"))
    await gate.reached()
    closing = asyncio.create_task(server.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    gate.open.set()
    assert await connection.answer() == (201, "first-one")
    await closing
    assert await connection.reader.read() == b""
    connection.writer.close()


async def test_a_connection_that_waits_for_its_answer_is_not_idle(
    engine: Engine, gate: Gate, gig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = DirectTestServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)))
    await server.start_server(**{**SERVER_OPTIONS, "keepalive_timeout": 0.2})
    keepalive = direct.Connection._process_keepalive

    def noted(self: direct.Connection) -> None:
        keepalive(self)
        gate.open.set()

    monkeypatch.setattr(direct.Connection, "_process_keepalive", noted)
    connection = Wire(*await asyncio.open_connection(server.host, server.port))
    connection.writer.write(Wire.request("first-one"))
    assert await connection.answer() == (201, "first-one")
    # And one that is idle after it is closed in the end.
    assert await connection.reader.read() == b""
    connection.writer.close()
    await server.close()


async def test_sold_out_for_good_is_refused_without_asking_redis_until_it_is_restocked(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=1)
    await engine.confirm((await engine.reserve("gig", buyer="someone", quantity=1)).id, buyer="someone")
    real, asked = engine._scripts.reserve, 0

    async def counted(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        return await real(*args)

    monkeypatch.setattr(engine._scripts, "reserve", counted)
    # By a clock that stands still: however slow the machine is, the first asks for all.
    monkeypatch.setattr(await engine._slots.get("gig"), "time", lambda: 100.0)
    for n in range(200):
        response = await client.post(RESERVE, json={"quantity": 1}, headers=buyer(f"bob-{n}"))
        assert (await response.json())["code"] == "sold_out"
    assert asked == 1
    # A repeat with a key may have its ticket already: it is always asked for.
    before = asked
    await client.post(RESERVE, json={"quantity": 1}, headers=buyer("cyd", **{"Idempotency-Key": "k"}))
    assert asked == before + 1
    await engine.amend_sale("gig", {"capacity": 2})
    assert (await client.post(RESERVE, json={"quantity": 1}, headers=buyer("dan"))).status == 201


async def test_of_those_who_come_late_to_a_sold_out_sale_one_asks(
    engine: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.set()
    await engine.create_sale("gig", name="Gig", capacity=0)
    slot = await engine._slots.get("gig")
    clock = 100.0
    monkeypatch.setattr(slot, "time", lambda: clock)

    async def refused(callers: int) -> int:
        """How many calls went to Redis for so many callers."""
        before = sum(gate.sizes)
        waiters = [asyncio.get_running_loop().create_future() for _ in range(callers)]
        for waiter in waiters:
            assert engine.reserve_for(waiter, "gig", "somebody", 1)
        assert {type(error) for error in await asyncio.gather(*waiters, return_exceptions=True)} == {SoldOut}
        return sum(gate.sizes) - before

    assert await refused(1) == 1
    _, refusal = slot.sold_out["1:1"]
    slot.sold_out["1:1"] = clock - 0.01, refusal
    assert await refused(10) == 0
    slot.sold_out["1:1"] = clock - 0.06, refusal
    assert await refused(10) == 1
    slot.sold_out["1:1"] = clock - 0.09, refusal
    assert await refused(10) == 10
