"""`holdfast serve --workers 2` as processes: who serves, who takes over, and that nobody's request is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from holdfast.engine import Engine
from holdfast.engine.keys import slot_keys
from holdfast.http import supervisor
from holdfast.http.app import create_app
from holdfast.http.context import AppConfig
from holdfast.http.server import HttpServer
from holdfast.http.settings import ServeSettings
from holdfast.http.sockets import listening
from holdfast.http.worker import Orders

#: Seconds in which what is awaited must have come.
PATIENCE = 30

#: Buyers at once: enough for each worker to have several, whatever the kernel's hash does.
BUYERS = 24

MODULE = "holdfast.http.worker"


# Processes ------------------------------------------------------------------------------------------------------------


class Server:
    """`holdfast serve` on a data directory, and the processes under it."""

    def __init__(self, data: Path, *options: str, workers: int = 2, port: int = 0, environment: Any = None) -> None:
        self.data = data
        self._seen: set[int] = set()
        command = [sys.executable, "-m", "holdfast.http.cli", "serve", "--workers", str(workers), "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, "--data-dir", str(data), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
            | (environment or {}),
        )

    def ready(self) -> Server:
        """Waits for the first lines."""
        assert self.process.stdout is not None
        text = ""
        while "operator token" not in text:
            line = self.process.stdout.readline()
            assert line, f"the server ended at once: {text} {self.process.communicate()[1]}"
            text += line
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", text)[1])  # type: ignore[index]
        self.operator = {"Authorization": "Bearer " + re.search(r"operator token: (\S+)", text)[1]}  # type: ignore[index]
        return self

    @property
    def redis(self) -> dict[str, Any]:
        """What is recorded of the private Redis."""
        record: dict[str, Any] = json.loads((self.data / "redis" / "server.json").read_text())
        return record

    def workers(self) -> list[int]:
        """The pids of the workers that live."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == self.process.pid and MODULE in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
        self._seen.update(found)
        return found

    def leader(self) -> int | None:
        """The worker that holds a lock of POSIX: besides the leader's, only SQLite takes some, for a moment."""
        workers = self.workers()
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "POSIX" and words[3] == "WRITE" and int(words[4]) in workers:
                inode = words[5].rpartition(":")[2]
                if any(inode == str(found) for found in _inodes(int(words[4]), "memfd:")):
                    return int(words[4])
        return None

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """Sends a signal, if any, and waits: exit status, and what went to standard error."""
        if number is not None:
            self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err

    def clear_away(self) -> None:
        """Ends what a failed test has left: in order, and then what did not go in order."""
        for pid in self.workers():
            os.kill(pid, signal.SIGCONT)
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.process.kill()
        for pid in self._seen:
            if alive(pid) and MODULE in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError, TypeError):
            pid = self.redis["pid"]
            if os.readlink(f"/proc/{pid}/cwd") == str(self.data / "redis"):
                os.kill(pid, signal.SIGKILL)
        with self.process:
            pass

    def stored(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.data / "holdfast.db")) as db:
            return [row[0] for row in db.execute(query)]


def _inodes(pid: int, kind: str) -> list[int]:
    """The inodes of what a process has opened of a kind, as the names of its descriptors begin."""
    found = []
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if kind in os.readlink(descriptor):
                    found.append(descriptor.stat().st_ino)
    return found


def clients_of(pid: int, port: int) -> set[int]:
    """The ports from which clients are connected to a process."""
    ours = {str(inode) for inode in _inodes(pid, "socket:")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(row[2].rpartition(":")[2], 16)
        for row in rows
        if row[9] in ours and int(row[1].rpartition(":")[2], 16) == port and row[3] == "01"
    }


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until(condition: Callable[[], Any]) -> Any:
    """Waits until something is so, and gives what was found."""
    give_up = time.monotonic() + PATIENCE
    while not (found := await asyncio.to_thread(condition)):
        assert time.monotonic() < give_up, "it did not come"
        await asyncio.sleep(0.01)
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*options: str, data: str = "data", **how: Any) -> Server:
        servers.append(Server(tmp_path / data, *options, **how))
        return servers[-1]

    yield make
    for server in servers:
        server.clear_away()


# Clients --------------------------------------------------------------------------------------------------------------


class Lost(Exception):
    """A request was sent, and the connection ended without an answer."""


class Client:
    """One client that keeps its connection for as long as the server does, and does nothing by itself."""

    def __init__(self, port: int, name: str = "") -> None:
        self.port = port
        self.headers = {"Host": "here", "Content-Type": "application/json"}
        if name:
            self.headers["X-Buyer-Fingerprint"] = f"buyer-{name:0>8}"
        self.local = 0
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        """Raises ConnectionRefusedError when nobody listens."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.local = self._writer.get_extra_info("sockname")[1]

    async def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Sends it once."""
        await self.connect()
        content = b"" if body is None else json.dumps(body).encode()
        sent = self.headers | {"Content-Length": str(len(content))} | (headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        assert self._writer is not None
        try:
            self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
            async with asyncio.timeout(PATIENCE):
                answer = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(re.search(r"content-length: (\d+)", answer)[1])  # type: ignore[index]
                found = json.loads(await self._reader.readexactly(length) or b"null")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self.close()
            raise Lost from error
        if "connection: close" in answer:
            await self.close()
        return int(answer.split()[1]), found

    async def closed(self) -> bool:
        """Waits until the server closes the connection."""
        return await self._reader.read() == b""

    async def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def clients(server: Server, count: int = BUYERS) -> AsyncIterator[list[Client]]:
    """Connected clients, of which each worker has at least one."""
    made: list[Client] = []
    try:
        while len(made) < count or not all(clients_of(pid, server.port) for pid in server.workers()):
            assert len(made) < 40 * count, "one of the workers gets no connection"
            made.append(Client(server.port, str(len(made))))
            # A request makes sure that it was accepted.
            await made[-1].connect()
            assert await made[-1].request("GET", "/healthz") == (200, {"status": "ok"})
        yield made
    finally:
        for client in made:
            await client.close()


async def create(server: Server, sale: str, **fields: Any) -> None:
    operator = Client(server.port)
    body = {"id": sale, "name": sale, "capacity": 100_000} | fields
    status, answer = await operator.request("POST", "/sales", body, server.operator)
    assert status == 201, answer
    await operator.close()


async def counters(server: Server, sale: str) -> tuple[int, int, int]:
    client = Client(server.port)
    _, answer = await client.request("GET", f"/sales/{sale}")
    await client.close()
    return answer["available"], answer["reserved"], answer["purchased"]


class Traffic:
    """Clients that reserve and pay one ticket after the other, half of them with a new connection for each request."""

    def __init__(self, server: Server, sale: str, *, reconnect: bool = True) -> None:
        self.server = server
        self.sale = sale
        self.answered = 0
        self.paid: set[str] = set()
        self.lost: list[int] = []
        self.enough = False
        self._reconnect = reconnect

    async def run(self, clients: list[Client]) -> None:
        await asyncio.gather(*(self._buy(at, client) for at, client in enumerate(clients)))

    async def _buy(self, at: int, client: Client) -> None:
        turn = 0
        with contextlib.suppress(ConnectionRefusedError):
            while not self.enough:
                turn += 1
                path = f"/sales/{self.sale}/tickets"
                ticket = await self._send(at, client, path, {"quantity": 1}, f"{at}-{turn}", 201)
                paid = await self._send(at, client, f"/tickets/{ticket['id']}/payment", None, f"{at}-{turn}", 200)
                self.paid.add(paid["id"])

    async def _send(self, at: int, client: Client, path: str, body: Any, key: str, expected: int) -> Any:
        while True:
            try:
                status, answer = await client.request("POST", path, body, {"Idempotency-Key": key})
            except Lost:
                self.lost.append(client.local)
                continue
            assert status == expected, answer
            self.answered += 1
            if self._reconnect and at % 2:
                await client.close()
            return answer

    async def goes_on(self, requests: int = 200) -> None:
        """Waits until some more requests were answered."""
        wanted = self.answered + requests
        await until(lambda: self.answered >= wanted)


# The tests ------------------------------------------------------------------------------------------------------------


def test_orders_arrive_as_they_were_sent() -> None:
    settings = ServeSettings(
        redis="unix:///tmp/s?db=0",
        secret="a secret of sixteen or more",
        operator_token="a-token-of-the-operator",
        trusted_proxy=("10.0.0.0/8",),
        workers=3,
    )
    orders = Orders(settings=settings, sockets=(5, 6), leadership=7, totals=8, place=1)
    assert orders.line().count(b"\n") == 1
    assert Orders.read(orders.line()) == orders


async def test_all_serve_one_port_and_end_together(start: Callable[..., Server]) -> None:
    server = start("--secret", "a secret of sixteen or more").ready()
    await create(server, "drop", capacity=10)
    pids = server.workers()
    assert len(pids) == 2
    for pid in pids:
        # What anybody on this machine can read.
        assert "secret" not in Path(f"/proc/{pid}/cmdline").read_text()
    async with clients(server) as buyers:
        answers = await asyncio.gather(
            *(buyer.request("POST", "/sales/drop/tickets", {"quantity": 1}) for buyer in buyers)
        )
        assert [status for status, _ in answers].count(201) == 10
        assert {answer["code"] for status, answer in answers if status != 201} == {"all_held"}
        pid = server.redis["pid"]
        # As a terminal does it.
        os.killpg(server.process.pid, signal.SIGINT)
        assert await asyncio.to_thread(server.end) == (0, "")
    assert not any(map(alive, [*pids, pid]))
    assert len(server.stored("SELECT id FROM tickets")) == 10


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_server_stops_without_a_failed_request(start: Callable[..., Server], workers: int) -> None:
    server = start(workers=workers).ready()
    await create(server, "drop")
    idle = Client(server.port)
    await idle.request("GET", "/healthz")
    async with clients(server) as buyers:
        traffic = Traffic(server, "drop")
        running = asyncio.create_task(traffic.run(buyers))
        await traffic.goes_on()
        status, err = await asyncio.to_thread(server.end, signal.SIGTERM)
        # Each went on until nobody listened any more.
        await running
        assert await idle.closed()
        await idle.close()
    assert (status, err, traffic.lost) == (0, "", [])
    stored = set(server.stored("SELECT ticket FROM purchases"))
    assert stored == traffic.paid


async def test_a_worker_is_replaced_without_a_failed_request(start: Callable[..., Server]) -> None:
    server = start().ready()
    await create(server, "drop")
    async with clients(server) as buyers:
        traffic = Traffic(server, "drop")
        running = asyncio.create_task(traffic.run(buyers))
        await traffic.goes_on()
        for pid in server.workers():
            os.kill(pid, signal.SIGTERM)
            await until(lambda pid=pid: not alive(pid))
            await until(lambda: len(server.workers()) == 2)
            await traffic.goes_on()
        traffic.enough = True
        await running
        assert traffic.lost == []
        assert await counters(server, "drop") == (100_000 - len(traffic.paid), 0, len(traffic.paid))
    status, err = await asyncio.to_thread(server.end, signal.SIGTERM)
    assert (status, err.count("takes its place")) == (0, 2)


async def test_a_worker_that_is_killed_costs_its_own_connections_and_nothing_else(start: Callable[..., Server]) -> None:
    server = start().ready()
    await create(server, "drop")
    async with clients(server) as buyers:
        traffic = Traffic(server, "drop", reconnect=False)
        running = asyncio.create_task(traffic.run(buyers))
        await traffic.goes_on()
        victim, other = server.workers()
        doomed = clients_of(victim, server.port)
        os.kill(victim, signal.SIGKILL)
        # While it is away, its share waits in its queue: nobody is refused, and nobody is lost.
        late = [Client(server.port) for _ in range(BUYERS)]
        assert await asyncio.gather(*(client.request("GET", "/healthz") for client in late)) == [
            (200, {"status": "ok"})
        ] * len(late)
        (fresh,) = await until(lambda: len(server.workers()) == 2 and set(server.workers()) - {victim, other})
        await until(lambda: clients_of(fresh, server.port))
        await traffic.goes_on()
        traffic.enough = True
        await running
        assert traffic.lost
        assert set(traffic.lost) <= doomed
        assert await counters(server, "drop") == (100_000 - len(traffic.paid), 0, len(traffic.paid))
        for client in late:
            await client.close()
    status, err = await asyncio.to_thread(server.end, signal.SIGTERM)
    assert (status, err.count("\n")) == (0, 1), err
    assert re.search(r"worker \d \(pid \d+\) has ended without being asked \(SIGKILL\)", err)
    assert set(server.stored("SELECT ticket FROM purchases")) == traffic.paid


async def test_when_the_leader_dies_another_expires_and_copies(start: Callable[..., Server]) -> None:
    server = start().ready()
    await create(server, "brief", hold_ms=1000)
    leader = await until(server.leader)
    (other,) = set(server.workers()) - {leader}
    client = Client(server.port, "1")
    status, ticket = await client.request("POST", "/sales/brief/tickets", {"quantity": 1})
    assert status == 201
    os.kill(leader, signal.SIGKILL)
    killed = time.monotonic()
    await until(lambda: not alive(leader))
    expired = f"SELECT 1 FROM tickets WHERE status = 'expired' AND slot || '.' || id = '{ticket['id']}'"
    await until(lambda: server.stored(expired))
    # A second until the deadline, one between two snapshots, and some for a machine that does other things.
    assert time.monotonic() - killed < 6
    assert server.leader() not in (leader, None)
    assert server.leader() == other
    await client.close()


async def test_every_worker_tells_the_alarms_of_each(start: Callable[..., Server]) -> None:
    server = start("--snapshot-ms", "600000").ready()
    await create(server, "drop")
    async with clients(server) as everyone:
        for client in everyone[:3]:
            assert (await client.request("POST", "/sales/drop/tickets", {"quantity": 1}))[0] == 201
        assert {(await client.request("GET", "/readyz"))[0] for client in everyone} == {200}
        with redis.Redis(unix_socket_path=server.redis["socket"]) as broken:
            broken.xtrim(slot_keys("drop").ledger, maxlen=1, approximate=False)
        # One worker copies on demand, and finds that something is missing.
        operator = Client(server.port)
        await operator.request("GET", "/sales/drop/tickets", headers=server.operator)
        await operator.close()
        give_up = time.monotonic() + PATIENCE
        while {(await client.request("GET", "/readyz"))[0] for client in everyone} != {503}:
            assert time.monotonic() < give_up, "the others do not hear of it"
        answers = [await client.request("GET", "/readyz") for client in everyone]
        assert all("does not continue" in answer["detail"] for _, answer in answers)


async def test_workers_end_with_their_supervisor_and_the_next_start_goes_on(start: Callable[..., Server]) -> None:
    server = start().ready()
    await create(server, "drop")
    pids, redis_pid = server.workers(), server.redis["pid"]
    async with clients(server, 2) as buyers:
        _, ticket = await buyers[0].request("POST", "/sales/drop/tickets", {"quantity": 1})
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        server.process.kill()
        await asyncio.to_thread(server.process.wait, PATIENCE)
        # At once, on the same port, while they are still there.
        again = start(port=server.port)
        await until(lambda: (server.data / "server.lock").read_text() == f"{again.process.pid}\n")
        # Until it has found the port taken; were this too short, the test would only show less.
        await asyncio.sleep(0.3)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await asyncio.to_thread(again.ready)
        await until(lambda: not any(map(alive, pids)))
        assert again.redis["pid"] == redis_pid
        client = Client(again.port, "0")
        status, found = await client.request("GET", f"/tickets/{ticket['id']}")
        assert (status, found["status"]) == (200, "reserved")
        await client.close()
    assert (await asyncio.to_thread(again.end, signal.SIGTERM)) == (0, "")
    assert not alive(redis_pid)


async def test_mistakes_get_one_line(start: Callable[..., Server]) -> None:
    server = start().ready()
    status, err = start(data="other", port=server.port).end()
    assert (status, err) == (2, f"holdfast: Cannot listen on 127.0.0.1 port {server.port}: address already in use.\n")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        status, err = start("--redis", f"redis://127.0.0.1:{nobody.getsockname()[1]}", data="third").end()
    assert (status, err.count("\n")) == (2, 1)
    assert "is the address right" in err
    status, err = start("--operator-token", "short", data="fourth").end()
    assert (status, err.count("\n")) == (2, 1)
    assert "--operator-token" in err


async def test_workers_that_never_start_end_the_whole(start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import os, sys\nif {MODULE!r} in sys.orig_argv: os._exit(3)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = start(environment={"PYTHONPATH": path})
    status, err = await asyncio.to_thread(server.end)
    assert status == 2
    assert re.fullmatch(r"holdfast: worker \d \(pid \d+\) does not start: exit status 3\n", err)
    assert not alive(server.redis["pid"] or 0)


async def test_who_waits_to_be_accepted_is_answered_at_the_end(engine: Engine) -> None:
    server = HttpServer(create_app(engine, AppConfig.checked(operator_token="a-token-of-the-operator")))
    ((sock,),) = await listening("127.0.0.1", 0, 1, 0.0)
    port = sock.getsockname()[1]
    await server.start(sock)
    waiting = []
    for _ in range(3):
        # Nothing else runs meanwhile, so that they are connected and not yet accepted.
        waiting.append(socket.create_connection(("127.0.0.1", port)))
        waiting[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
    await server.drain()
    for connection in waiting:
        with connection, connection.makefile("rb") as answer:
            text = answer.read().lower()
            assert text.startswith(b"http/1.1 200")
            assert b"connection: close" in text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_a_worker_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "END_SECONDS", 0.1)
    process = await asyncio.create_subprocess_exec("sleep", "60", stdin=asyncio.subprocess.PIPE)
    worker = supervisor._Worker(1, process)
    await worker.ends()
    assert worker.status == "SIGKILL"
    assert "is killed" in caplog.text


async def test_a_worker_that_is_stuck_is_killed_and_replaced(start: Callable[..., Server]) -> None:
    server = start().ready()
    stuck, other = server.workers()
    os.kill(stuck, signal.SIGSTOP)
    began = time.monotonic()
    # Two stretches of silence, and the start of another.
    while stuck in server.workers() or len(server.workers()) < 2:
        assert time.monotonic() - began < 2 * supervisor.SILENT_SECONDS + PATIENCE
        await asyncio.sleep(0.1)
    assert other in server.workers()
    status, err = await asyncio.to_thread(server.end, signal.SIGTERM)
    assert status == 0
    assert "has been silent" in err


async def test_one_stretch_of_silence_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SILENT_SECONDS", 0.4)
    said = "sleep 0.6; echo alive; sleep 0.6; echo alive; sleep 0.6; echo draining; exec sleep 60"
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", said, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    worker = supervisor._Worker(1, process)
    assert await worker.leaves()
    assert not await worker.leaves()
    assert await process.wait() == -signal.SIGKILL


async def test_streams_end_in_order_and_hear_of_every_worker(start: Callable[..., Server]) -> None:
    server = start().ready()
    operator = Client(server.port)
    body = {"id": "demo", "name": "Demo", "capacity": 100}
    assert (await operator.request("POST", "/sales", body, server.operator))[0] == 201
    await operator.close()
    head = f"GET /sales/demo/stream HTTP/1.1\r\nHost: here\r\nAuthorization: {server.operator['Authorization']}\r\n\r\n"
    streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(BUYERS)]
    async with asyncio.timeout(PATIENCE):
        for reader, writer in streams:
            writer.write(head.encode())
            await reader.readuntil(b"event: counts\nid: 1-1\n")
        buyers = [Client(server.port, f"{n}") for n in range(BUYERS)]
        for buyer in buyers:
            assert (await buyer.request("POST", "/sales/demo/tickets", {"quantity": 1}))[0] == 201
        for reader, _ in streams:
            for n in range(BUYERS):
                await reader.readuntil(f"event: transition\nid: 1-{n + 2}\n".encode())
        for buyer in buyers:
            await buyer.close()
        server.process.send_signal(signal.SIGTERM)
        for reader, writer in streams:
            assert (await reader.read()).endswith(b"\r\n0\r\n\r\n")
            writer.close()
    assert await asyncio.to_thread(server.end) == (0, "")
