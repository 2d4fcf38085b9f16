"""Hostile clients: slow, silent, greedy, confusing. They are cut off, and nobody else notices.

What is malformed in itself is sent by test_bad_input.py; here it is about time, room, and what comes after.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from holdfast.engine import ConfigurationError, Engine
from holdfast.http import direct, process
from holdfast.http.app import create_app
from holdfast.http.context import AppConfig
from holdfast.http.server import HttpServer
from holdfast.http.settings import ServeSettings
from holdfast.http.sockets import listening

from .conftest import OPERATOR_TOKEN

#: Seconds in which the server of these tests cuts off, and how often it looks.
HEAD_SECONDS, UNREAD_SECONDS, LOOK_SECONDS = 0.6, 0.6, 0.05

PATIENCE = 20

GOOD = b"GET /sales/gig HTTP/1.1\r\nHost: x\r\n\r\n"
BUYER = b"Host: x\r\nX-Buyer-Fingerprint: buyer-ann\r\nContent-Type: application/json\r\n"


class Client:
    """Bytes to and from the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def rest(self) -> bytes:
        """Everything until the connection is closed, which has to happen."""
        said = b""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while more := await self.reader.read(65_536):
                    said += more
        return said

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer."""
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            return int(head.split(b" ")[1]), await self.reader.readexactly(length)

    async def closed(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Served:
    """A server that is quick to cut off, with a sale."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server, self.port = server, port
        #: Those that hang up before the server ends.
        self.clients: list[Client] = []

    async def client(self, *said: bytes) -> Client:
        client = await Client.to(self.port)
        self.clients.append(client)
        for data in said:
            client.send(data)
        return client

    async def good(self) -> None:
        """A client that does everything right is served."""
        client = await self.client(GOOD)
        status, body = await client.answer()
        assert (status, json.loads(body)["id"]) == (200, "gig")
        await client.closed()

    async def closed(self) -> None:
        for client in self.clients:
            await client.closed()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "HEAD_SECONDS", HEAD_SECONDS)
    monkeypatch.setattr(direct, "UNREAD_SECONDS", UNREAD_SECONDS)
    monkeypatch.setattr(direct, "LOOK_SECONDS", LOOK_SECONDS)


@contextlib.asynccontextmanager
async def serving(engine: Engine, connections_max: int = 1000) -> AsyncIterator[Served]:
    await engine.create_sale("gig", name="The Gig", capacity=100)
    server = HttpServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)), connections_max)
    ((sock,),) = await listening("127.0.0.1", 0, 1, 0.0)
    port = sock.getsockname()[1]
    await server.start(sock)
    served = Served(server, port)
    try:
        yield served
    finally:
        await served.closed()
        await server.drain()


@pytest.fixture
async def served(engine: Engine, quick: None) -> AsyncIterator[Served]:
    async with serving(engine) as served:
        yield served


# Slow -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET /sales/gig HTTP/1.1\r\n", b"GET /sales/gig HTTP/1.1\r\nHost: x\r\nX-A: ", GOOD[:-1]],
    ids=["nothing", "a byte", "a line", "half a header", "all but a byte"],
)
@pytest.mark.parametrize("after", [0, 1], ids=["first", "after an answer"])
async def test_who_does_not_finish_asking_is_cut_off(served: Served, said: bytes, after: int) -> None:
    client = await served.client(*[GOOD] * after)
    for _ in range(after):
        assert (await client.answer())[0] == 200
    if after and not said:
        return  # an idle connection, which is kept
    began = time.monotonic()
    client.send(said)
    assert await client.rest() == b""
    assert time.monotonic() - began >= HEAD_SECONDS - 0.1
    await served.good()


async def test_bytes_that_drip_do_not_buy_time(served: Served) -> None:
    client = await served.client()
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for byte in (GOOD[:-4] + b"\r\nX-A: " + b"a" * 10_000)[:1000]:
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.02)
            if client.reader.at_eof():
                break
    assert await client.rest() == b""
    assert time.monotonic() - began < 10
    await served.good()


async def test_a_connection_that_asked_in_time_is_kept(served: Served) -> None:
    client = await served.client()
    for _ in range(3):
        await asyncio.sleep(HEAD_SECONDS * 0.7)
        client.send(GOOD)
        assert (await client.answer())[0] == 200
    await asyncio.sleep(HEAD_SECONDS * 2)
    client.send(b"POST /tickets/gig.x/payment HTTP/1.1\r\n" + BUYER + b"Content-Length: 0\r\n\r\n")
    assert (await client.answer())[0] == 404


async def test_a_body_that_takes_its_time_is_no_head(served: Served) -> None:
    client = await served.client(b"POST /sales/gig/tickets HTTP/1.1\r\n" + BUYER + b"Content-Length: 14\r\n\r\n")
    await asyncio.sleep(HEAD_SECONDS * 2)
    client.send(b'{"quantity":1}')
    assert (await client.answer())[0] == 201


async def test_who_does_not_read_is_cut_off(served: Served) -> None:
    client = await served.client()
    # More answers than all buffers on the way hold.
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while not client.writer.is_closing():
                client.send(GOOD * 1000)
                await client.writer.drain()
                await asyncio.sleep(0.01)
    assert client.writer.is_closing()
    await served.good()


async def test_the_end_does_not_wait_for_who_does_not_read(engine: Engine) -> None:
    async with serving(engine) as served:
        client = await served.client()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    client.send(GOOD * 1000)
                    await client.writer.drain()
        served.clients.clear()
        began = time.monotonic()
    assert time.monotonic() - began < 5
    await client.closed()


# Greedy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [100, 4000])
async def test_a_head_that_grows_is_cut_off(served: Served, step: int) -> None:
    client = await served.client(b"GET /sales/gig HTTP/1.1\r\nHost: x\r\n")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 10 * direct.HEAD_BYTES_MAX and not client.reader.at_eof():
            client.send(b"X-A: " + b"a" * (step - 7) + b"\r\n")
            await client.writer.drain()
            sent += step
            await asyncio.sleep(0)
    answer = await client.rest()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert sent < 4 * direct.HEAD_BYTES_MAX + 1_000_000
    await served.good()


async def test_more_connections_than_there_is_room_for(engine: Engine, quick: None) -> None:
    async with serving(engine, connections_max=20) as served:
        kept = [await served.client(GOOD) for _ in range(20)]
        for client in kept:
            assert (await client.answer())[0] == 200
        # The operator and whoever watches get through, once per connection.
        for said in (
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /sales HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % OPERATOR_TOKEN.encode(),
        ):
            client = await served.client(said)
            raw = await client.rest()
            assert raw.startswith(b"HTTP/1.1 200 ")
            assert b"\r\nConnection: close\r\n" in raw
        # Everybody else hears that there is no room.
        order = b"POST /sales/gig/tickets HTTP/1.1\r\n" + BUYER + b'Content-Length: 14\r\n\r\n{"quantity":1}'
        wrong = b"GET /sales HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nope\r\n\r\n"
        for said in (GOOD, order, wrong, GOOD * 3):
            raw = await (await served.client(said)).rest()
            assert raw.startswith(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n")
            assert raw.count(b"HTTP/1.1 ") == 1
            assert b"\r\nRetry-After: 1\r\n" in raw
            assert json.loads(raw.partition(b"\r\n\r\n")[2])["code"] == "overloaded"
        assert (await engine.sale("gig")).items[0].reserved == 0
        # Who was there is served, and who leaves makes room.
        kept[0].send(GOOD)
        assert (await kept[0].answer())[0] == 200
        await kept[1].closed()
        async with asyncio.timeout(PATIENCE):
            while not (await (await served.client(GOOD[:-2] + b"Connection: close\r\n\r\n")).rest()).startswith(
                b"HTTP/1.1 200"
            ):
                await asyncio.sleep(0.05)


async def test_surplus_connections_are_bounded_too(
    engine: Engine, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(direct, "SURPLUS_MAX", 5)
    async with serving(engine, connections_max=10) as served:
        kept = [await served.client(GOOD) for _ in range(10)]
        for client in kept:
            assert (await client.answer())[0] == 200
        silent = [await served.client() for _ in range(5)]
        await asyncio.sleep(0)
        refused = await served.client(GOOD)
        assert await refused.rest() == b""
        for client in silent:
            assert await client.rest() == b""
        async with asyncio.timeout(PATIENCE):
            while "turned away" not in caplog.text:
                await asyncio.sleep(0.01)


def test_the_most_connections_are_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((1_000_000, direct.CONNECTIONS_MAX_DEFAULT), (4096, 4096 - process.FILES_KEPT), (256, 128)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert process.connections_max(ServeSettings()) == most
        assert process.connections_max(ServeSettings(connections_max=100)) == 100
    with pytest.raises(ConfigurationError, match=r"--connections-max 129 is more than .* 128: raise"):
        process.connections_max(ServeSettings(connections_max=129))
    with pytest.raises(ConfigurationError, match="at least 1"):
        ServeSettings(connections_max=0)


# Confusing ------------------------------------------------------------------------------------------------------------

#: A request that a proxy and a server may cut differently: were the second one hidden in it seen, there would be two
#: answers.
HIDDEN = b"DELETE /tickets/gig.x/payment HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
POST = b"POST /sales/gig/tickets HTTP/1.1\r\n" + BUYER
SMUGGLED = {
    "length and chunks": POST + b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + HIDDEN,
    "chunks and length": POST + CHUNKED + b"Content-Length: 6\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a list of lengths": POST + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "chunked, spelled oddly": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked twice": POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n" + HIDDEN,
    "identity and length": POST + b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "a blank before the colon": POST + b"Content-Length : 0\r\n\r\n" + HIDDEN,
    "a blank before the name": POST + b" Content-Length: 0\r\n\r\n" + HIDDEN,
    "a folded encoding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a tab in the encoding": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a bare line feed": POST + b"X-A: a\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "a bare carriage return": POST + b"X-A: a\rContent-Length: 0\r\n\r\n" + HIDDEN,
    "a NUL in a name": POST + b"Content-\x00Length: 0\r\n\r\n" + HIDDEN,
    "a chunk size with a sign": POST + CHUNKED + b"\r\n+0\r\n\r\n" + HIDDEN,
    "a chunk size in hexadecimal of C": POST + CHUNKED + b"\r\n0x0\r\n\r\n" + HIDDEN,
    "a chunk size that overflows": POST + CHUNKED + b"\r\n10000000000000000\r\n\r\n" + HIDDEN,
    "a chunk without an end": POST + CHUNKED + b"\r\n1\r\nab0\r\n\r\n" + HIDDEN,
    "a chunk ended by a line feed": POST + CHUNKED + b"\r\n0\n\n" + HIDDEN,
    "a chunk with a long extension": POST + CHUNKED + b"\r\n0;" + b"a" * 100_000 + b"\r\n\r\n" + HIDDEN,
    "chunks in HTTP/1.0": POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n" + HIDDEN,
    "a length with a sign": POST + b"Content-Length: +0\r\n\r\n" + HIDDEN,
    "a length in hexadecimal": POST + b"Content-Length: 0x0\r\n\r\n" + HIDDEN,
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n" + HIDDEN,
    "two hosts": GOOD[:-2] + b"Host: y\r\n\r\n",
    "HTTP/0.9": b"GET /sales/gig\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "garbage behind a request": b"\x00\xff\x16\x03" * 100,
}

#: What may be accepted, as long as what follows is not taken for another request than it is.
ACCEPTED = {"two hosts", "a chunk with a long extension"}


@pytest.mark.parametrize("pieces", ["whole", "in pieces", "behind a good one"])
@pytest.mark.parametrize("name", SMUGGLED)
async def test_nothing_is_smuggled(served: Served, name: str, pieces: str) -> None:
    raw = SMUGGLED[name]
    client = await served.client()
    if pieces == "in pieces":
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(raw), max(1, len(raw) // 40)):
                client.send(raw[at : at + max(1, len(raw) // 40)])
                await client.writer.drain()
                await asyncio.sleep(0.001)
    else:
        client.send((GOOD if pieces == "behind a good one" else b"") + raw)
    if name in ACCEPTED:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    said = await client.rest()
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", said)]
    assert b"aiohttp" not in said
    if pieces == "behind a good one" and statuses[:1] == [200]:
        # What arrives together is parsed together, and a mistake in it is the answer to all of it.
        del statuses[0]
    if name in ACCEPTED:
        assert all(status < 500 for status in statuses)
    else:
        # One refusal, or none, and then the end: the hidden request has no answer.
        assert len(statuses) <= 1
        assert all(400 <= status < 500 for status in statuses), said
    await served.good()


async def test_an_absolute_target_is_its_path(served: Served) -> None:
    client = await served.client(b"GET http://elsewhere.example/sales/gig HTTP/1.1\r\nHost: x\r\n\r\n")
    status, body = await client.answer()
    assert (status, json.loads(body)["id"]) == (200, "gig")


async def test_who_has_hung_up_its_half_is_taken_for_gone(served: Served) -> None:
    client = await served.client(GOOD)
    client.writer.write_eof()
    # Answered or not: it is closed at once, and holds nothing.
    began = time.monotonic()
    await client.rest()
    assert time.monotonic() - began < PATIENCE / 2


# All together ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: address and pid."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    with subprocess.Popen(
        [sys.executable, "-m", "holdfast.http.cli", "serve", "--port", "0", "--demo", "--data-dir", "data"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    ) as running:
        assert running.stdout is not None
        address = next(line for line in running.stdout if "serves on" in line).split()[-1]
        next(line for line in running.stdout if "Try it" in line)
        yield address, running.pid
        running.terminate()
        running.stdout.read()


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_crowd_of_them_takes_little_room_and_leaves_others_served(server_process: tuple[str, int]) -> None:
    address, pid = server_process
    port = int(address.rpartition(":")[2])
    async with ClientSession(address) as session:
        async with session.get("/sales/demo") as answer:
            assert answer.status == 200
        before = resident(pid)
        crowd = []
        for at in range(300):
            client = await Client.to(port)
            crowd.append(client)
            # As much as each may send before it is cut off, of a head, a body, or what comes after a request.
            client.send(
                (
                    b"GET / HTTP/1.1\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 120,
                    POST.replace(b"/gig/", b"/demo/") + b"Content-Length: 8000\r\n\r\n" + b" " * 7999,
                    b"GET /sales/demo HTTP/1.1\r\nHost: x\r\n\r\n" * 2000,
                )[at % 3]
            )
            if at % 10 == 0:
                async with session.get("/sales/demo") as answer:
                    assert answer.status == 200
        async with session.post("/sales/demo/tickets", json={"quantity": 1}) as answer:
            assert answer.status == 201
        # A third each of 8 KB, 8 KB, and 64 KB and their answers.
        assert resident(pid) - before < 300 * 300_000
        for client in crowd:
            await client.closed()
        async with session.get("/readyz") as answer:
            assert answer.status == 200
