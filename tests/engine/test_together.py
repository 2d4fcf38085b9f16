"""Calls of many sales on one connection: one write, each its own reply, and nobody harmed by a neighbour."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis.exceptions import ResponseError

from holdfast.engine import Engine
from holdfast.engine import connection as connection_module
from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.wire import pack

#: Seconds until what is waited for must have come.
PATIENCE_S = 10.0


class Scripted:
    """A server that greets as Redis does, and answers scripts when it is told to.

    Attributes
    ----------
    connections: of each, in the order in which they came, the pieces in which its scripts arrived, by their first keys.
    """

    def __init__(self) -> None:
        self.connections: list[list[list[str]]] = []
        self.run_id = "one"
        self.greets = asyncio.Event()
        self.greets.set()
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Scripted]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
            for writer in self._writers:
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces: list[list[str]] = []
        self.connections.append(pieces)
        self._writers.append(writer)
        parser = hiredis.Reader(encoding="utf-8")
        while data := await reader.read(65536):
            parser.feed(data)
            piece = []
            while command := parser.gets():
                if command[0] == "HELLO":
                    writer.write(b"%1\r\n+proto\r\n:3\r\n")
                elif command[0] == "INFO":
                    await self.greets.wait()
                    info = f"redis_version:7.0.0\r\nrun_id:{self.run_id}\r\n"
                    writer.write(f"${len(info)}\r\n{info}\r\n".encode())
                else:
                    piece.append(command[-1])
            if piece:
                pieces.append(piece)
        writer.close()

    def answer(self, *replies: str, at: int = 0) -> None:
        """Sends replies on the connection of this number; one that begins with `-` is an error."""
        lines = [reply if reply.startswith("-") else f"+{reply}" for reply in replies]
        self._writers[at].write("".join(f"{line}\r\n" for line in lines).encode())

    def hang_up(self, at: int = 0) -> None:
        self._writers[at].transport.abort()


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with Scripted().running() as scripted:
        yield scripted


@pytest.fixture
async def server(scripted: Scripted) -> AsyncIterator[Server]:
    server = Server(scripted.url)
    yield server
    await server.close()


async def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.001)


def call(server: Server, name: str) -> asyncio.Task[Any]:
    return asyncio.create_task(server.call("EVALSHA", "0" * 40, 0, name))


async def under_way(server: Server, scripted: Scripted, name: str = "first", at: int = 0) -> asyncio.Task[Any]:
    """A call that the server has and has not answered."""
    calling = call(server, name)
    await until(lambda: len(scripted.connections) > at and [name] in scripted.connections[at])
    return calling


def watched(server: Server) -> list[bytes]:
    """What is written on the shared connection from now on, write by write."""
    writes: list[bytes] = []
    transport = server._shared.wire._transport

    class Watched:
        def write(self, packed: bytes) -> None:
            writes.append(packed)
            transport.write(packed)

    server._shared.wire._transport = Watched()
    return writes


async def test_what_is_sent_in_one_turn_travels_together(server: Server, scripted: Scripted) -> None:
    first = await under_way(server, scripted)
    writes = watched(server)
    more = [call(server, f"c{at}") for at in range(5)]
    await until(lambda: len(scripted.connections[0]) > 1)
    # In one write, and while the first is still under way.
    assert len(writes) == 1
    assert scripted.connections == [[["first"], ["c0", "c1", "c2", "c3", "c4"]]]
    scripted.answer("for first", "for c0", "-ERR for c1", "for c2")
    assert [await first, await more[0], await more[2]] == [b"for first", b"for c0", b"for c2"]
    with pytest.raises(ResponseError, match="for c1"):
        await more[1]
    assert not more[3].done()
    scripted.answer("for c3", "for c4")
    assert [await more[3], await more[4]] == [b"for c3", b"for c4"]


async def test_a_lone_call_waits_for_no_company(server: Server, scripted: Scripted) -> None:
    warm = await under_way(server, scripted)
    scripted.answer("warm")
    await warm
    writes = watched(server)
    lone = call(server, "lone")
    await asyncio.sleep(0)
    assert len(writes) == 1
    await until(lambda: len(scripted.connections[0]) > 1)
    scripted.answer("lone")
    assert await lone == b"lone"


async def test_who_is_cancelled_takes_nothing_from_the_others(server: Server, scripted: Scripted) -> None:
    first = await under_way(server, scripted)
    gone, stays = call(server, "gone"), call(server, "stays")
    await until(lambda: len(scripted.connections[0]) > 1)
    for cancelled in (first, gone):
        cancelled.cancel()
    await asyncio.wait({first, gone})
    scripted.answer("for first", "for gone", "for stays")
    assert await stays == b"for stays"
    later = await under_way(server, scripted, "later")
    scripted.answer("for later")
    assert await later == b"for later"
    assert len(scripted.connections) == 1


async def test_a_silent_server_is_left_and_who_came_later_has_their_own_time(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT_S", 1.0)
    server = Server(scripted.url)
    began = time.monotonic()
    first = await under_way(server, scripted)
    await asyncio.sleep(0.6)
    second = await under_way(server, scripted, "second")
    with pytest.raises(NoReply):
        await first
    assert time.monotonic() - began >= 0.99
    assert not second.done()
    # What was silent once is not asked again.
    third = await under_way(server, scripted, "third", at=1)
    scripted.answer("for first", "for second")
    assert await second == b"for second"
    scripted.answer("for third", at=1)
    assert await third == b"for third"
    # Whoever waited last has closed the silent one.
    await until(scripted._writers[0].transport.is_closing)
    assert not server._busy
    await server.close()


async def test_a_lost_connection_is_told_to_all_by_what_was_written(server: Server, scripted: Scripted) -> None:
    written = await under_way(server, scripted)
    wire = server._shared.wire
    gathered = call(server, "gathered")
    await asyncio.sleep(0)
    wire.connection_lost(None)  # as the transport tells it, in the very turn in which they gather
    with pytest.raises(NoReply):
        await written
    with pytest.raises(NotSent):
        await gathered
    assert scripted.connections == [[["first"]]]
    again = await under_way(server, scripted, "again", at=1)
    scripted.hang_up(1)
    with pytest.raises(NoReply):
        await again
    last = await under_way(server, scripted, "last", at=2)
    scripted.answer("for last", at=2)
    assert await last == b"for last"


async def test_a_server_that_was_replaced_answers_nobody(server: Server, scripted: Scripted) -> None:
    calls = [await under_way(server, scripted), call(server, "second")]
    await until(lambda: len(scripted.connections[0]) > 1)
    scripted.run_id = "two"
    with pytest.raises(NotSent):
        await server.pipeline([("HGET", "key", "field")])  # met on a connection of its own
    assert server.generation == 2
    scripted.answer("for first", "for second")
    for each in calls:
        with pytest.raises(NoReply, match="replaced"):
            await each
    at = len(scripted.connections)
    new = await under_way(server, scripted, "new", at=at)
    scripted.answer("for new", at=at)
    assert await new == b"for new"


async def test_it_is_opened_once_for_all_and_a_failure_is_told_to_all(server: Server, scripted: Scripted) -> None:
    scripted.greets.clear()
    calls = [call(server, f"c{at}") for at in range(20)]
    await until(lambda: scripted.connections)
    calls[0].cancel()  # who began to open it
    await asyncio.wait({calls[0]})
    scripted.greets.set()
    await until(lambda: scripted.connections[0])
    scripted.answer(*[f"for c{at}" for at in range(1, 20)])
    assert await asyncio.gather(*calls[1:]) == [b"for c%d" % at for at in range(1, 20)]
    assert len(scripted.connections) == 1

    await server.close()
    scripted.run_id = "two"
    heard: list[Any] = []
    server.ride(pack("SET", "lease", "a"), 1, heard.extend)
    refused = await asyncio.gather(*(call(server, "refused") for _ in range(20)), return_exceptions=True)
    assert [type(each) for each in refused] == [NotSent] * 20
    assert scripted.connections[1:] == [[]]
    # Whoever rode along does not wait for a better day.
    assert [type(each) for each in heard] == [NotSent]


async def test_closing_ends_an_opening(server: Server, scripted: Scripted) -> None:
    scripted.greets.clear()
    calling = call(server, "c")
    await until(lambda: scripted.connections)
    await server.close()
    with pytest.raises(NotSent):
        await calling
    scripted.greets.set()


async def test_what_waits_in_redis_holds_nobody_up(redis_server: Any) -> None:
    server = Server(redis_server.url)
    waiting = asyncio.create_task(server.pipeline([("SET", "k", "v"), ("WAIT", 7, 60_000)]))
    await until(lambda: server._busy)
    assert await server.call("EVAL", "return 7", 0) == 7
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})
    await server.close()


async def test_riders_travel_in_front_of_whoever_goes_next(server: Server, scripted: Scripted) -> None:
    heard: list[Any] = []
    first = await under_way(server, scripted)
    server.ride(pack("SET", "lease", "a") + pack("SET", "lease", "b"), 2, heard.extend)
    second = call(server, "second")
    await until(lambda: len(scripted.connections[0]) > 1)
    assert scripted.connections[0][1] == ["a", "b", "second"]
    scripted.answer("for first", "OK", "-ERR no", "for second")
    assert [await first, await second] == [b"for first", b"for second"]
    assert heard[0] == b"OK"
    assert isinstance(heard[1], ResponseError)
    # Those who find none after all.
    assert await server.exchange(b"", 0) == []


async def test_many_sales_share_a_connection_and_each_buyer_has_their_ticket(redis_server: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sweep": False, "listen": False, "snapshot_ms": None}
    async with Engine.connect(redis_server.url, store=f"sqlite:///{tmp_path / 'store.db'}", **options) as engine:
        names = [f"gig{at}" for at in range(40)]
        for name in names:
            await engine.create_sale(name, name=name, capacity=100)
        await engine.reserve(names[0], buyer="warm", quantity=1)  # the server knows the script
        with redis_server.client() as client:
            before = client.info()
            for turn in range(5):
                tickets = await asyncio.gather(
                    *(engine.reserve(name, buyer=f"{name}-{turn}", quantity=1) for name in names)
                )
                assert [ticket.sale for ticket in tickets] == names
            after = client.info()
        # Two hundred script calls; alone, each would be a read of its own.
        assert after["total_reads_processed"] - before["total_reads_processed"] < 60
        assert after["connected_clients"] - before["connected_clients"] <= 1
        for name in names:
            assert (await engine.sale(name)).items[0].reserved == 5 + (name == names[0])


async def test_a_server_that_is_given_up_is_met_anew(server: Server, scripted: Scripted) -> None:
    first = await under_way(server, scripted)
    await server.abandon()
    with pytest.raises(NoReply):
        await first
    idle = await under_way(server, scripted, "idle", at=1)
    scripted.answer("for idle", at=1)
    await idle
    await server.abandon()
    await under_way(server, scripted, "anew", at=2)
    assert len(scripted.connections) == 3
