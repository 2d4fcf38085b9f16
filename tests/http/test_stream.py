"""`GET /sales/{sale}/stream`: counters for all, every transition for the operator, and nobody waits for others."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from unittest import mock

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from holdfast.engine import Engine, Order, Position
from holdfast.engine.keys import slot_keys
from holdfast.http import stream as streams
from holdfast.http.stream import STREAMS

SECONDS = 20.0


class Event(NamedTuple):
    """What a stream said; `id` is empty where it has none."""

    name: str
    id: str
    data: dict[str, Any]


class Listener:
    """Reads events as a browser would, and no faster than it is asked to."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response
        self.comments = 0
        self.retry = 0

    async def next(self) -> Event:
        fields: dict[str, str] = {}
        async with asyncio.timeout(SECONDS):
            while True:
                line = (await self.response.content.readline()).decode()
                assert line.endswith("\n"), "the stream has ended"
                name, _, value = line.rstrip("\n").partition(": ")
                if line == "\n" and "data" in fields:
                    return Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
                if line == "\n":
                    fields.clear()
                elif not name:
                    self.comments += 1
                elif name == "retry":
                    self.retry = int(value)
                else:
                    fields[name] = value

    async def until(self, condition: Callable[[Event], Any]) -> list[Event]:
        """The events up to the one that is waited for."""
        seen: list[Event] = []
        while not seen or not condition(seen[-1]):
            seen.append(await self.next())
        return seen

    async def transitions(self, upto: Position) -> list[str]:
        """The ids of the transitions up to this one."""
        seen = await self.until(lambda event: event.name == "transition" and event.id == str(upto))
        return [event.id for event in seen if event.name == "transition"]


@asynccontextmanager
async def listening(client: TestClient[Any, Any], sale: str = "gig", **headers: str) -> AsyncIterator[Listener]:
    response = await client.get(f"/sales/{sale}/stream", headers=headers)
    try:
        assert response.status == 200, await response.read()
        assert response.headers["Content-Type"] == "text/event-stream"
        yield Listener(response)
    finally:
        response.close()


def ids(begin: int, end: int) -> list[str]:
    return [f"1-{n}" for n in range(begin, end + 1)]


async def test_everybody_hears_the_counters_and_nothing_else(
    client: TestClient[Any, Any], engine: Engine, gig: str
) -> None:
    async with listening(client) as listener:
        first = await listener.next()
        assert first == Event("counts", "1-1", await (await client.get("/sales/gig")).json())
        assert streams.RETRY_MS_MIN <= listener.retry <= streams.RETRY_MS_MAX
        ticket = await engine.reserve(gig, buyer="buyer-ann", quantity=3)
        await engine.confirm(ticket.id, buyer="buyer-ann", reference="secret reference")
        seen = await listener.until(lambda event: event.data["purchased"] == 3)
        assert {event.name for event in seen} == {"counts"}
        assert seen[-1].data == await (await client.get("/sales/gig")).json()
        assert ticket.id not in str(seen)
        await engine.amend_sale(gig, {"capacity": 12, "name": "Another"})
        assert (await listener.until(lambda event: event.data["name"] == "Another"))[-1].data["available"] == 9


async def test_the_operator_hears_every_transition(
    client: TestClient[Any, Any], engine: Engine, gig: str, operator: dict[str, str]
) -> None:
    async with listening(client, **operator) as listener:
        first = await listener.next()
        assert (first.name, first.id) == ("counts", "1-1")
        ticket = await engine.reserve(gig, buyer="buyer-ann", quantity=2)
        await engine.confirm(ticket.id, buyer="buyer-ann", reference="pay_1")
        other = await engine.reserve(gig, buyer="buyer-bob", quantity=1)
        await engine.cancel(other.id, buyer="buyer-bob")
        await engine.amend_sale(gig, {"capacity": 11})
        seen = await listener.until(lambda event: event.name == "transition" and event.data["kind"] == "sale")
    told = [event for event in seen if event.name == "transition"]
    assert [event.id for event in told] == ids(2, 6)
    assert {event.id for event in seen if event.name == "counts"} == {""}
    reserved, purchased, _, cancelled, amended = (event.data for event in told)
    shown = await (await client.get(f"/tickets/{ticket.id}", headers=operator)).json()
    about = {"epoch": 1, "sale": "gig", "ticket": ticket.id, "lines": shown["lines"], "quantity": 2}
    assert reserved == about | {
        "sequence": 2,
        "kind": "reserved",
        "at": shown["reserved_at"],
        "expires_at": shown["expires_at"],
    }
    assert purchased == about | {
        "sequence": 3,
        "kind": "purchased",
        "at": shown["purchased_at"],
        "reference": "pay_1",
    }
    assert (cancelled["kind"], cancelled["ticket"]) == ("cancelled", other.id)
    assert amended["items"] == [{"sku": "general", "name": "general", "capacity": 11}]
    assert (amended["max_per_buyer"], amended["hold_ms"], amended["opens_at"]) == (4, 900_000, None)


@pytest.mark.parametrize("kept", [1_000, 0], ids=["in Redis", "in the store"])
async def test_it_goes_on_after_any_event(
    client: TestClient[Any, Any], engine: Engine, gig: str, operator: dict[str, str], kept: int
) -> None:
    await asyncio.gather(*(engine.reserve(gig, buyer=f"buyer-{n}", quantity=1) for n in range(9)))
    await engine.snapshot()
    await engine._servers.one.call("XTRIM", slot_keys(gig).ledger, "MAXLEN", str(kept))
    for after in range(10):
        async with listening(client, **operator, **{"Last-Event-ID": f"{min(after, 1)}-{after}"}) as listener:
            first = await listener.next()
            assert (first.name, first.id, first.data["reserved"]) == ("counts", "", 9)
            assert await listener.transitions(Position(1, 10)) == ids(after + 1, 10)


async def test_readers_who_come_in_the_middle_of_a_stampede_miss_nothing(
    client: TestClient[Any, Any], engine: Engine, operator: dict[str, str]
) -> None:
    await engine.create_sale("gig", name="The Gig", capacity=2_001, hold_ms=600_000)
    end, drawn = Position(1, 2_001), random.Random(11)

    async def follow(begin: int) -> None:
        # Each comes when so much has happened, and wants to know what was before, too.
        while (await engine.sale("gig")).sequence < begin:
            await asyncio.sleep(0.001)
        after = drawn.randrange(begin)
        async with listening(client, **operator, **{"Last-Event-ID": f"{min(after, 1)}-{after}"}) as listener:
            assert await listener.transitions(end) == ids(after + 1, end.sequence)

    async def buy() -> None:
        for n in range(100):
            await asyncio.gather(*(engine.reserve("gig", buyer=f"buyer-{n}-{m}", quantity=1) for m in range(20)))
            if n % 20 == 0:
                await engine.snapshot()

    await asyncio.gather(buy(), *(follow(drawn.randrange(1, 2_000)) for _ in range(30)))


async def test_many_readers_cost_redis_what_one_costs(
    client: TestClient[Any, Any], engine: Engine, gig: str, operator: dict[str, str]
) -> None:
    async def reads() -> int:
        told = (await engine._servers.one.call("INFO", "commandstats")).decode()
        return sum(map(int, re.findall(r"cmdstat_(?:xrange|hmget):calls=(\d+)", told)))

    async def follow(everybody_there: asyncio.Barrier, done: asyncio.Barrier) -> None:
        async with listening(client, **operator) as listener:
            await listener.next()
            for n in range(5):
                await everybody_there.wait()
                await listener.transitions(Position(1, n + 2))
                await done.wait()

    there, done = asyncio.Barrier(21), asyncio.Barrier(21)
    followers = [asyncio.create_task(follow(there, done)) for _ in range(20)]
    spent = []
    for n in range(5):
        await there.wait()
        if n == 0:
            # Joined once they have heard something together.
            await engine.reserve(gig, buyer="buyer-ann", quantity=1)
            await done.wait()
            continue
        before = await reads()
        await engine.reserve(gig, buyer=f"buyer-{n}", quantity=1)
        await done.wait()
        spent.append(await reads() - before)
    await asyncio.gather(*followers)
    # The reservation, the counters, the ledger, and looks at nothing new while a slow machine told everybody.
    assert min(spent) <= 8


async def test_counters_are_told_at_most_ten_times_a_second(client: TestClient[Any, Any], engine: Engine) -> None:
    await engine.create_sale("gig", name="The Gig", capacity=1_000)
    loop = asyncio.get_running_loop()
    async with listening(client) as listener:
        await listener.next()
        began = loop.time()
        for n in range(300):
            await engine.reserve("gig", buyer=f"buyer-{n}", quantity=1)
        seen = await listener.until(lambda event: event.data["reserved"] == 300)
        assert len(seen) <= (loop.time() - began) / 0.1 + 1


async def test_who_does_not_read_is_cut_off_and_the_others_go_on(
    client: TestClient[Any, Any], engine: Engine, operator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "UNREAD_BYTES_MAX", 1024)
    await engine.create_sale("gig", name="The Gig", capacity=1_000_000)
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.setblocking(False)
    loop = asyncio.get_running_loop()
    address = client.server.host, client.server.port
    asked = f"GET /sales/gig/stream HTTP/1.1\r\nHost: x\r\nAuthorization: {operator['Authorization']}\r\n\r\n"
    with lazy:
        await loop.sock_connect(lazy, address)
        await loop.sock_sendall(lazy, asked.encode())
        assert await loop.sock_recv(lazy, 4096)
        held: Any = client.app[STREAMS] if client.app is not None else None
        async with listening(client, **operator) as listener:
            await listener.next()
            n = 1
            while not held.dropped:
                orders = [Order(f"buyer-{n}-{m}", 1) for m in range(1_000)]
                await engine.reserve_many("gig", orders)
                assert await listener.transitions(Position(1, n + 1_000)) == ids(n + 1, n + 1_000)
                n += 1_000
            assert len(held.readers) == 1


@pytest.mark.parametrize(
    ("after", "most"),
    [(None, streams.PUBLIC_UNREAD_BYTES_MAX), ((Position(1, 1),), streams.UNREAD_BYTES_MAX)],
    ids=["anybody", "the operator"],
)
async def test_how_much_may_be_left_unread(after: streams.Place | None, most: int) -> None:
    transport = mock.Mock(spec=asyncio.WriteTransport)
    transport.is_closing.return_value = False
    reader = streams._Reader(transport, after, True)
    transport.get_write_buffer_size.return_value = most
    assert reader.tell(b"event", b"framed")
    transport.write.assert_called_once_with(b"framed")
    transport.get_write_buffer_size.return_value = most + 1
    assert not reader.tell(b"event", b"framed")
    transport.abort.assert_called_once_with()
    transport.write.assert_called_once()


async def test_a_sale_that_cannot_be_read_says_so_and_comes_back(
    clients: Any, redis_server: Any, tmp_path: Any, operator: dict[str, str], aiohttp_client: Any
) -> None:
    from holdfast.http.app import create_app
    from holdfast.http.context import AppConfig

    async with Engine.connect(redis_server.url, store=f"sqlite:///{tmp_path / 'x.db'}", snapshot_ms=50) as engine:
        app = create_app(engine, AppConfig.checked(operator_token=operator["Authorization"].split()[1]))
        client = await aiohttp_client(app)
        await engine.create_sale("gig", name="The Gig", capacity=10)
        async with listening(client, **operator) as listener:
            await listener.next()
            await engine.reserve("gig", buyer="buyer-ann", quantity=1)
            await listener.transitions(Position(1, 2))
            await engine.snapshot()
            with redis_server.client() as redis:
                redis.flushall()
            lost = await listener.until(lambda event: event.name == "counts" and "ready" in event.data)
            assert lost[-1].data["ready"] is False
            await engine.recover(["gig"])
            back = await listener.until(lambda event: event.name == "transition")
            assert back[-1].data["kind"] == "sale"
            assert back[-1].data["epoch"] == 2
            assert [event.data["reserved"] for event in back if event.name == "counts"][-1:] == [1]


@pytest.mark.parametrize("after", ["1-7", "1-999", "2-0", "7-1"])
async def test_who_has_seen_what_was_lost_goes_on_where_the_ledger_ends(
    client: TestClient[Any, Any], engine: Engine, gig: str, operator: dict[str, str], after: str
) -> None:
    await engine.reserve(gig, buyer="buyer-ann", quantity=1)
    async with listening(client, **operator, **{"Last-Event-ID": after}) as listener:
        # The place is told, so that the next break does not skip what gets the lost numbers.
        assert (await listener.next()).id == "1-2"
        await engine.reserve(gig, buyer="buyer-bob", quantity=1)
        assert await listener.transitions(Position(1, 3)) == ["1-3"]


async def test_who_has_seen_what_a_failover_lost_goes_on_where_the_epoch_was_raised(
    client: TestClient[Any, Any], engine: Engine, gig: str, operator: dict[str, str]
) -> None:
    for n in range(4):
        await engine.reserve(gig, buyer=f"buyer-{n}", quantity=1)
    async with listening(client, **operator, **{"Last-Event-ID": "1-3"}) as live:
        assert await live.transitions(Position(1, 5)) == ["1-4", "1-5"]
        # As the new primary has it: what came after 1-3 was never copied to it.
        call, keys = engine._servers.one.call, slot_keys(gig)
        definition = await call("HGET", keys.sale, "definition")
        await call("XDEL", keys.ledger, "1-4", "1-5")
        await call("XADD", keys.ledger, "2-4", "at", "1", "d", b"s " + definition)
        await call("HSET", keys.sale, "epoch", "2", "sequence", "4")
        await engine.snapshot()
        assert await live.transitions(Position(2, 4)) == ["2-4"]
    for seen in ("1-3", "1-5"):
        async with listening(client, **operator, **{"Last-Event-ID": seen}) as listener:
            assert (await listener.next()).id == ""
            event = await listener.next()
            assert (event.id, event.data["kind"]) == ("2-4", "sale")


async def test_silence_is_broken(
    client: TestClient[Any, Any], gig: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    async with listening(client) as listener:
        await listener.next()
        following = asyncio.create_task(listener.next())
        while not listener.comments:
            await asyncio.sleep(0.01)
        await engine.reserve(gig, buyer="buyer-ann", quantity=1)
        assert (await following).name == "counts"


async def test_the_end_of_the_server_ends_the_stream(
    client: TestClient[Any, Any], gig: str, operator: dict[str, str], refused: Any
) -> None:
    async with listening(client) as public, listening(client, **operator) as private:
        await public.next()
        await private.next()
        assert client.app is not None
        client.app[STREAMS].end()
        async with asyncio.timeout(SECONDS):
            # Ended in order, and not broken off.
            assert await public.response.content.read() == b""
            assert await private.response.content.read() == b""
        await refused(await client.get("/sales/gig/stream"), 503, "not_ready")


async def test_streams_leave_room_for_buyers(
    client: TestClient[Any, Any], gig: str, refused: Any, operator: dict[str, str]
) -> None:
    assert client.app is not None
    client.app[STREAMS].readers_max = 2
    async with listening(client) as first, listening(client, **operator):
        await first.next()
        await refused(await client.get("/sales/gig/stream"), 503, "overloaded")
        async with listening(client, **operator) as another:
            await another.next()
    while client.app[STREAMS].readers:
        await asyncio.sleep(0.005)
    async with listening(client) as again:
        await again.next()


async def test_nothing_is_left_of_readers_who_come_and_go(
    client: TestClient[Any, Any], engine: Engine, gig: str, operator: dict[str, str]
) -> None:
    drawn = random.Random(3)
    assert client.app is not None
    held = client.app[STREAMS]

    async def visit(n: int) -> None:
        reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
        sale = drawn.choice(["gig", "gig", "none"])
        token = f"Authorization: {operator['Authorization']}\r\n" if drawn.random() < 0.5 else ""
        writer.write(f"GET /sales/{sale}/stream HTTP/1.1\r\nHost: x\r\n{token}\r\n".encode())
        for _ in range(drawn.randrange(4)):
            await asyncio.sleep(0)
        if drawn.random() < 0.5:
            await reader.read(drawn.choice([1, 100, 1000]))
        # Some leave in order, some are gone.
        (writer.close if drawn.random() < 0.5 else writer.transport.abort)()

    for n in range(20):
        await asyncio.gather(*(visit(m) for m in range(20)), return_exceptions=True)
        await engine.amend_sale(gig, {"capacity": 20 + n})
    async with asyncio.timeout(SECONDS):
        while held.readers or held._channels or held._open:
            await asyncio.sleep(0.01)


async def test_what_cannot_be_followed_is_refused(
    client: TestClient[Any, Any], clients: Any, gig: str, operator: dict[str, str], refused: Any
) -> None:
    await refused(await client.get("/sales/none/stream"), 404, "unknown_sale")
    await refused(await client.get("/sales/gig/stream?from=1"), 422, "invalid_request")
    wrong = {"Authorization": "Bearer wrong-token-00"}
    await refused(await client.get("/sales/gig/stream", headers=wrong), 401, "operator_token_required")
    for last in ("2", "1-", "-1-2", "1-2-3", "x-y", "1-" + "9" * 16, "\u0661-1"):
        answer = await client.get("/sales/gig/stream", headers={"Last-Event-ID": last})
        problem = await refused(answer, 422, "invalid_request")
        assert problem["errors"][0]["pointer"] == "/Last-Event-ID"
    answer = await client.get("/sales/gig/stream", headers=operator | {"Last-Event-ID": "1-1,1-1"})
    problem = await refused(answer, 422, "invalid_request")
    assert problem["errors"] == [{"pointer": "/Last-Event-ID", "detail": "is no place in 'gig', which has come to 1-1"}]
    assert (await client.post("/sales/gig/stream")).status == 405
    head = await client.head("/sales/gig/stream")
    assert (head.status, head.headers["Content-Type"]) == (200, "text/event-stream")
    assert (await client.head("/sales/none/stream")).status == 404
    # Counters are public where buyers need a token, too.
    with_tokens = await clients(buyer_token_key="k" * 32, allow_origin=["https://shop.example"])
    async with listening(with_tokens, Origin="https://shop.example") as listener:
        assert (await listener.next()).name == "counts"
        assert listener.response.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert listener.response.headers["X-Request-Id"]
        assert listener.response.headers["Server"] == "Holdfast"


async def test_a_client_of_http_1_0_is_told_without_chunks(
    client: TestClient[Any, Any], engine: Engine, gig: str
) -> None:
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    writer.write(b"GET /sales/gig/stream HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head
        assert (await reader.readline()).startswith(b"retry: ")
        await reader.readuntil(b"event: counts\n")
        await engine.reserve(gig, buyer="buyer-ann", quantity=1)
        await reader.readuntil(b"event: counts\nid: 1-2\ndata: {")
    writer.close()
