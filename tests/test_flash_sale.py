"""The product as its users meet it: the command, real HTTP, its own Redis, 2,000 buyers, and kill -9 in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

BUYERS = 2000
CAPACITY = 100

#: Seconds for which a buyer goes on trying while the server is down.
PATIENCE_S = 60.0


@pytest.fixture(autouse=True, scope="module")
def enough_files() -> None:
    """Both ends of 2,000 connections are ours."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass
class ServerProcess:
    """`holdfast serve` on a data directory, with what it printed."""

    data: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[str] | None = None
    operator: str = ""

    def start(self, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "holdfast.http.cli",
            "serve",
            "--port",
            str(self.port),
            "--data-dir",
            str(self.data),
        ]
        self.process = subprocess.Popen(
            [*command, *self.options, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        text = ""
        while "operator token" not in text:
            line = self.process.stdout.readline()
            assert line, f"the server ended at once: {text}"
            text += line
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", text)[1])  # type: ignore[index]
        self.operator = re.search(r"operator token: (\S+)", text)[1]  # type: ignore[index]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def redis_pid(self) -> int:
        return int(json.loads((self.data / "redis" / "server.json").read_text())["pid"])

    def kill(self, with_redis: bool) -> None:
        """kill -9, of the server alone or of its Redis as well."""
        assert self.process is not None
        redis = self.redis_pid
        self.process.send_signal(signal.SIGKILL)
        if with_redis:
            os.kill(redis, signal.SIGKILL)
        self.process.wait()
        self.close_pipe()

    def stop(self) -> int:
        """Ctrl-C; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        self.close_pipe()
        return status

    def close_pipe(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Any:
    server = ServerProcess(tmp_path / "data")
    yield server
    if server.process is not None:
        server.stop()


@dataclass
class Seen:
    """What the buyers saw, by their own log."""

    tickets: dict[str, str] = field(default_factory=dict)
    paid: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)


async def create(server: ServerProcess, sale: str, **fields: Any) -> None:
    async with aiohttp.ClientSession() as session:
        body = {"id": sale, "name": sale, "capacity": CAPACITY} | fields
        headers = {"Authorization": f"Bearer {server.operator}"}
        async with session.post(f"{server.url}/sales", json=body, headers=headers) as answer:
            assert answer.status in (200, 201), await answer.text()


async def persist(session: aiohttp.ClientSession, url: str, **request: Any) -> tuple[int, dict[str, Any]]:
    """Sends until there is an answer that says what happened: what a careful client does, with its key."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError):
            async with session.post(url, **request) as answer:
                body = await answer.json()
                if answer.status != 503:
                    return answer.status, body
        assert time.monotonic() < give_up, f"no answer from {url}"
        await asyncio.sleep(0.05)


async def buy(server: ServerProcess, sale: str, at: int, seen: Seen, pay: bool) -> None:
    """One buyer on a connection of their own."""
    headers = {"X-Buyer-Fingerprint": f"buyer-{at:06d}", "Idempotency-Key": f"key-{at}"}
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        status, body = await persist(session, f"{server.url}/sales/{sale}/tickets", json={"quantity": 1})
        if status != 201:
            seen.refused[f"{status} {body.get('code')}"] += 1
            return
        seen.tickets[f"buyer-{at:06d}"] = body["id"]
        if pay:
            url = f"{server.url}/tickets/{body['id']}/payment"
            status, body = await persist(session, url, json={"reference": f"pay-{at}"})
            assert (status, body["status"]) == (200, "purchased"), body
            seen.paid.add(body["id"])


async def counters(server: ServerProcess, sale: str) -> tuple[int, int, int]:
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/sales/{sale}") as answer:
        (item,) = (await answer.json())["items"]
        return item["available"], item["reserved"], item["purchased"]


def stored(server: ServerProcess, query: str) -> set[str]:
    with contextlib.closing(sqlite3.connect(server.data / "holdfast.db")) as db:
        return {row[0] for row in db.execute(query)}


@contextlib.asynccontextmanager
async def ready(server: ServerProcess) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/readyz") as answer:
            assert answer.status == 200, await answer.text()
        yield


@pytest.mark.timeout(180)
async def test_2000_buyers_for_100_tickets_over_http(server: ServerProcess) -> None:
    server.start()
    await create(server, "drop")
    seen = Seen()
    await asyncio.gather(*(buy(server, "drop", at, seen, pay=False) for at in range(BUYERS)))
    assert len(set(seen.tickets.values())) == CAPACITY
    assert seen.refused == {"409 all_held": BUYERS - CAPACITY}
    assert await counters(server, "drop") == (0, CAPACITY, 0)
    assert server.stop() == 0
    assert stored(server, "SELECT slot || '.' || id FROM tickets") == set(seen.tickets.values())


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("with_redis", "kind"),
    [(False, "sqlite"), (True, "sqlite"), (True, "postgresql")],
    ids=["server alone", "server and its Redis", "on PostgreSQL"],
)
async def test_killed_in_the_middle_every_figure_agrees_at_the_end(
    server: ServerProcess, fresh_store: Any, tmp_path: Path, with_redis: bool, kind: str
) -> None:
    buyers = BUYERS
    if kind == "postgresql":
        store_at = fresh_store(kind, tmp_path)
        server.options = ("--store", store_at.url)
        buyers = BUYERS // 4  # the stampede itself is another test's
    server.start()
    await create(server, "drop")
    seen = Seen()

    async def kill_in_the_middle() -> None:
        while len(seen.paid) < CAPACITY // 5:
            await asyncio.sleep(0.001)
        server.kill(with_redis)
        await asyncio.to_thread(server.start)

    await asyncio.gather(kill_in_the_middle(), *(buy(server, "drop", at, seen, pay=True) for at in range(buyers)))
    assert len(seen.paid) == len(set(seen.tickets.values())) == CAPACITY
    assert sum(seen.refused.values()) == buyers - CAPACITY
    assert set(seen.refused) <= {"409 all_held", "409 sold_out"}
    assert await counters(server, "drop") == (0, 0, CAPACITY)
    async with ready(server):
        pass
    assert server.stop() == 0
    for query, expected in (
        ("SELECT ticket FROM purchases WHERE sale = 'drop'", seen.paid),
        ("SELECT detail FROM alarms", set()),
    ):
        found = {row[0] for row in store_at.rows(query)} if kind == "postgresql" else stored(server, query)
        assert found == expected
    assert (server.data / "holdfast.db").exists() == (kind == "sqlite")


@pytest.mark.timeout(120)
async def test_starting_again_finds_sales_holds_and_purchases_where_they_were(server: ServerProcess) -> None:
    server.start()
    await create(server, "drop", hold_ms=600_000)
    seen = Seen()
    await asyncio.gather(*(buy(server, "drop", at, seen, pay=at % 2 == 0) for at in range(20)))
    before = await counters(server, "drop")
    token = server.operator
    assert server.stop() == 0
    server.start()
    assert server.operator == token
    assert await counters(server, "drop") == before == (80, 10, 10)
    again = Seen()
    await asyncio.gather(*(buy(server, "drop", at, again, pay=True) for at in range(20)))
    assert again.tickets == seen.tickets
    assert await counters(server, "drop") == (80, 0, 20)


@pytest.mark.timeout(120)
async def test_a_redis_without_its_files_sells_nothing_until_it_is_recovered(server: ServerProcess) -> None:
    server.start()
    await create(server, "drop", hold_ms=600_000)
    seen = Seen()
    await asyncio.gather(*(buy(server, "drop", at, seen, pay=at % 2 == 0) for at in range(20)))
    assert server.stop() == 0
    for path in sorted((server.data / "redis").rglob("*"), reverse=True):
        if path.suffix in (".aof", ".rdb", ".manifest"):
            path.unlink()
    server.start()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/readyz") as answer:
            assert answer.status == 503
            assert "drop" in await answer.text()
        headers = {"X-Buyer-Fingerprint": "a-new-buyer"}
        url = f"{server.url}/sales/drop/tickets"
        async with session.post(url, json={"quantity": 1}, headers=headers) as answer:
            assert (answer.status, (await answer.json())["code"]) == (503, "not_ready")
            assert "Retry-After" in answer.headers
    command = [sys.executable, "-m", "holdfast.http.cli", "recover", "--data-dir", str(server.data)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "drop" in done.stdout
    async with ready(server):
        pass
    assert await counters(server, "drop") == (80, 10, 10)
    again = Seen()
    await asyncio.gather(*(buy(server, "drop", at, again, pay=True) for at in range(20)))
    assert again.tickets == seen.tickets
    assert seen.paid < again.paid
    assert await counters(server, "drop") == (80, 0, 20)


@pytest.mark.timeout(120)
async def test_a_kept_copy_of_the_data_directory_works_elsewhere(server: ServerProcess, tmp_path: Path) -> None:
    """Copied while the server runs, as a backup would: what was acknowledged a moment before is in it."""
    server.start()
    await create(server, "drop", hold_ms=600_000)
    seen = Seen()
    await asyncio.gather(*(buy(server, "drop", at, seen, pay=at % 2 == 0) for at in range(20)))
    moved = ServerProcess(tmp_path / "elsewhere" / "deeper" / "data")
    shutil.copytree(server.data, moved.data)
    moved.start("--recover")
    try:
        assert moved.operator == server.operator
        assert await counters(moved, "drop") == (80, 10, 10)
        again = Seen()
        await asyncio.gather(*(buy(moved, "drop", at, again, pay=True) for at in range(20)))
        assert again.tickets == seen.tickets
        assert await counters(moved, "drop") == (80, 0, 20)
        assert await counters(server, "drop") == (80, 10, 10)
    finally:
        assert moved.stop() == 0


def test_the_server_takes_as_many_connections_as_the_system_allows(server: ServerProcess) -> None:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    assert server.process is not None
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] == most
