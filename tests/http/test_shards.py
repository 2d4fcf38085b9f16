"""Sales in shards as everybody outside sees them: one sale, whose tickets and transitions name the slot they lie in."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from holdfast.engine import Engine, InvalidRequest, NotReady, Order
from holdfast.engine.keys import slot_keys
from holdfast.http import cli
from holdfast.http.client import Client

from .conftest import OPERATOR_TOKEN
from .test_metrics import outcome, scrape
from .test_stream import Listener, listening

SHARDS = 3


@pytest.fixture
async def hot(engine: Engine) -> str:
    """A sale of 300 units in three shards."""
    return (await engine.create_sale("hot", name="The Hot", capacity=300, shards=SHARDS)).id


@pytest.fixture
async def boss(client: TestClient[Any, Any]) -> AsyncIterator[Client]:
    async with Client(str(client.make_url("/")), operator_token=OPERATOR_TOKEN) as made:
        yield made


@pytest.fixture
def secret() -> str:
    """The same in every run: each buyer has the same shard in every run."""
    return "the secret of the tests"


def buyer(number: int) -> dict[str, str]:
    return {"X-Buyer-Fingerprint": f"buyer-{number:06}"}


async def sell(client: TestClient[Any, Any], count: int) -> list[dict[str, Any]]:
    """Tickets of so many buyers, bought by HTTP: they lie in all shards, as the engine of the tests divides them."""
    answers = [await client.post("/sales/hot/tickets", json={"quantity": 1}, headers=buyer(n)) for n in range(count)]
    assert {answer.status for answer in answers} == {201}
    tickets = [await answer.json() for answer in answers]
    assert {ticket["id"].partition(".")[0] for ticket in tickets} == {f"hot~{n + 1}" for n in range(SHARDS)}
    return tickets


# Sales and tickets ----------------------------------------------------------------------------------------------------


async def test_a_sale_in_shards_says_so(client: TestClient[Any, Any], operator: dict[str, str]) -> None:
    body = {"id": "hot", "name": "The Hot", "capacity": 10, "shards": SHARDS}
    made = await client.post("/sales", json=body, headers=operator)
    assert made.status == 201
    sale = await made.json()
    assert (sale["shards"], sale["in_transit"], sale["items"][0]["in_transit"]) == (SHARDS, 0, 0)
    assert (sale["capacity"], sale["available"]) == (10, 10)
    assert (await client.post("/sales", json=body, headers=operator)).status == 200
    assert (await (await client.get("/sales/hot")).json()) == sale
    assert (await (await client.get("/sales", headers=operator)).json())["items"] == [sale]
    other = await client.post("/sales", json=body | {"shards": 2}, headers=operator)
    assert (await other.json())["code"] == "sale_exists"


@pytest.mark.parametrize("said", [{}, {"shards": 1}], ids=["nothing", "one"])
async def test_one_shard_is_an_ordinary_sale(
    client: TestClient[Any, Any], operator: dict[str, str], said: dict[str, int]
) -> None:
    made = await client.post("/sales", json={"id": "gig", "name": "The Gig", "capacity": 3, **said}, headers=operator)
    assert (await made.text()) == (
        '{"id":"gig","name":"The Gig","items":[{"sku":"general","name":"general","capacity":3,"available":3,'
        '"reserved":0,"purchased":0}],"hold_ms":900000,"max_per_buyer":null,"opens_at":null,"closes_at":null,'
        '"durability":null,"sequence":1,"capacity":3,"available":3,"reserved":0,"purchased":0}\n'
    )


@pytest.mark.parametrize("shards", [0, -1, 65, 1.0, 2.5, "2", True, None, [2], 2**63])
async def test_what_cannot_be_a_number_of_shards(
    client: TestClient[Any, Any], operator: dict[str, str], refused: Any, shards: object
) -> None:
    body = {"id": "hot", "name": "The Hot", "capacity": 10, "shards": shards}
    problem = await refused(await client.post("/sales", json=body, headers=operator), 422, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == ["/shards"]
    assert (await client.get("/sales/hot")).status == 404


async def test_shards_are_not_amended(
    client: TestClient[Any, Any], hot: str, operator: dict[str, str], refused: Any
) -> None:
    problem = await refused(
        await client.patch("/sales/hot", json={"shards": 2}, headers=operator), 422, "invalid_request"
    )
    assert [error["pointer"] for error in problem["errors"]] == ["/shards"]
    amended = await client.patch("/sales/hot", json={"capacity": 310}, headers=operator)
    assert ((await amended.json())["available"], (await amended.json())["shards"]) == (310, SHARDS)


async def test_a_ticket_is_found_by_its_id_in_every_call(client: TestClient[Any, Any], hot: str) -> None:
    for n, ticket in enumerate(await sell(client, 12)):
        path = f"/tickets/{ticket['id']}"
        assert ticket["sale"] == "hot"
        assert (await (await client.get(path)).json())["status"] == "reserved"
        (mine,) = (await (await client.get("/sales/hot/tickets", headers=buyer(n))).json())["items"]
        assert mine["id"] == ticket["id"]
        if n % 2:
            paid = await client.post(f"{path}/payment", headers=buyer(n))
            assert (paid.status, (await paid.json())["status"]) == (200, "purchased")
        else:
            cancelled = await client.delete(f"{path}/payment", headers=buyer(n))
            assert (cancelled.status, (await cancelled.json())["status"]) == (200, "cancelled")
    sale = await (await client.get("/sales/hot")).json()
    assert (sale["purchased"], sale["available"]) == (6, 294)


async def test_batches_reach_all_shards(client: TestClient[Any, Any], hot: str, operator: dict[str, str]) -> None:
    entries = [{"buyer": f"buyer-{n}", "quantity": 1, "key": f"k-{n}"} for n in range(30)]
    answer = await client.post("/sales/hot/tickets/batch", json={"entries": entries}, headers=operator)
    made = [entry["ticket"]["id"] for entry in (await answer.json())["entries"]]
    assert len({id.partition(".")[0] for id in made}) == SHARDS
    payments = [{"buyer": f"buyer-{n}", "ticket": id} for n, id in enumerate(made)]
    answer = await client.post("/sales/hot/payments/batch", json={"entries": payments}, headers=operator)
    assert {entry["status"] for entry in (await answer.json())["entries"]} == {200}


async def test_outcomes_are_counted_by_sale_and_not_by_slot(
    client: TestClient[Any, Any], hot: str, operator: dict[str, str]
) -> None:
    for n, ticket in enumerate(await sell(client, 12)):
        path = f"/tickets/{ticket['id']}/payment"
        # The short way, the long way, and the call that has no short one.
        if n % 3 == 0:
            await client.post(path, headers=buyer(n))
        elif n % 3 == 1:
            await client.post(path, headers=buyer(n) | {"Connection": "close"})
        else:
            await client.delete(path, headers=buyer(n))
    figures = await scrape(client, operator)
    assert figures[outcome("reserve", "hot", "ok")] == 12
    assert figures[outcome("pay", "hot", "ok")] == 8
    assert figures[outcome("cancel", "hot", "ok")] == 4
    sales = {value for _, labels in figures for name, value in labels if name == "sale"}
    assert sales <= {"", "hot"}
    states = {dict(labels)["state"]: units for (name, labels), units in figures.items() if name == "holdfast_units"}
    assert sum(states.values()) == 300
    assert states["in_transit"] == 0


# The stream -----------------------------------------------------------------------------------------------------------


async def until_told(listener: Listener, tickets: set[str]) -> list[Any]:
    """The transitions up to the one with which all of these were told."""
    waiting, told = set(tickets), []
    while waiting:
        event = await listener.next()
        if event.name == "transition":
            told.append(event)
            waiting.discard(event.data.get("ticket", ""))
    return told


async def test_everybody_hears_the_counters_of_all_shards(client: TestClient[Any, Any], hot: str) -> None:
    async with listening(client, "hot") as listener:
        first = await listener.next()
        assert first.id == "1-1,1-1,1-1"
        assert first.data == await (await client.get("/sales/hot")).json()
        await sell(client, 12)
        seen = await listener.until(lambda event: event.data["reserved"] == 12)
        assert {event.name for event in seen} == {"counts"}
        assert all(event.data["shards"] == SHARDS for event in seen)


async def test_the_operator_hears_every_shard_and_goes_on_at_any_place(
    client: TestClient[Any, Any], hot: str, operator: dict[str, str]
) -> None:
    begin = operator | {"Last-Event-ID": "0-0"}
    async with listening(client, "hot", **begin) as listener:
        assert (await listener.next()).id == "0-0,0-0,0-0"
        tickets = {ticket["id"] for ticket in await sell(client, 15)}
        told = await until_told(listener, tickets)
    assert Counter(event.data["kind"] for event in told) == {"sale": SHARDS, "reserved": 15}
    for event in told:
        assert event.data["sale"] == "hot"
        assert event.data.get("ticket", "").startswith((f"{event.data['slot']}.", ""))
        own = event.id.split(",")[int(event.data["slot"].partition("~")[2]) - 1]
        assert own == f"{event.data['epoch']}-{event.data['sequence']}"
    for at, event in enumerate(told[:-1]):
        rest = {each.data["ticket"] for each in told[at + 1 :] if "ticket" in each.data}
        async with listening(client, "hot", **operator, **{"Last-Event-ID": event.id}) as listener:
            assert (await listener.next()).name == "counts"
            again = await until_told(listener, rest)
        names = [(each.data["slot"], each.data["sequence"]) for each in told[at + 1 :]]
        assert sorted((each.data["slot"], each.data["sequence"]) for each in again) == sorted(names)


async def test_readers_who_come_in_the_middle_of_a_stampede_miss_nothing(
    client: TestClient[Any, Any], engine: Engine, operator: dict[str, str]
) -> None:
    await engine.create_sale("hot", name="The Hot", capacity=2_000, hold_ms=600_000, shards=SHARDS)
    drawn, held = random.Random(5), []
    gone = asyncio.Event()

    async def follow(begin: int) -> None:
        while len(held) < begin:
            await asyncio.sleep(0.001)
        async with listening(client, "hot", **operator, **{"Last-Event-ID": "0-0"}) as listener:
            await listener.next()
            await gone.wait()
            told = await until_told(listener, set(held))
        names = [(event.data["slot"], event.data["sequence"]) for event in told]
        assert len(set(names)) == len(names)
        assert sum(event.data["kind"] == "reserved" for event in told) == 2_000
        for slot in {slot for slot, _ in names}:
            numbers = [number for of, number in names if of == slot]
            assert numbers == list(range(1, len(numbers) + 1))

    followers = [asyncio.create_task(follow(drawn.randrange(1_500))) for _ in range(6)]
    for n in range(100):
        made = await engine.reserve_many("hot", [Order(f"buyer-{n}-{m}", 1) for m in range(20)])
        held += [ticket.id for ticket in made]  # type: ignore[union-attr]
    gone.set()
    await asyncio.gather(*followers)


async def test_a_place_has_as_many_positions_as_the_sale_has_shards(
    client: TestClient[Any, Any], hot: str, operator: dict[str, str], refused: Any
) -> None:
    for place in ("1-1", "1-1,1-1", "1-1,1-1,1-1,1-1", "0-0,0-0"):
        answer = await client.get("/sales/hot/stream", headers=operator | {"Last-Event-ID": place})
        problem = await refused(answer, 422, "invalid_request")
        assert problem["errors"][0]["pointer"] == "/Last-Event-ID"
    for place in ("1-1,", ",", "1-1,,1-1", "1-1, 1-1,1-1", ",".join(["1-1"] * 999)):
        answer = await client.get("/sales/hot/stream", headers={"Last-Event-ID": place})
        await refused(answer, 422, "invalid_request")


async def test_an_operator_hears_of_the_other_shards_while_one_cannot_be_read(
    client: TestClient[Any, Any], engine: Engine, hot: str, operator: dict[str, str]
) -> None:
    async with listening(client, "hot", **operator) as listener:
        await listener.next()
        await engine._servers.call("hot~2", "HSET", slot_keys("hot~2").sale, "fence", "being rebuilt")
        made: set[str] = set()
        for n in range(40):
            with suppress(NotReady):
                made.add((await engine.reserve("hot", buyer=f"buyer-{n:06}", quantity=1)).id)
        assert {id.partition(".")[0] for id in made} == {"hot~1", "hot~3"}
        await until_told(listener, made)


async def test_one_look_is_for_all_readers_of_all_shards(
    client: TestClient[Any, Any], engine: Engine, hot: str, operator: dict[str, str]
) -> None:
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(client, "hot", **operator)) for _ in range(5)]
        for listener in listeners:
            await listener.next()

        async def reads() -> int:
            stats = await engine._servers.one.call("INFO", "commandstats")
            text = stats.decode() if isinstance(stats, bytes) else str(stats)
            return sum(
                int(line.partition("calls=")[2].partition(",")[0])
                for line in text.splitlines()
                if line.startswith("cmdstat_xrange:")
            )

        before = await reads()
        ticket = (await sell(client, 12))[-1]["id"]
        await asyncio.gather(*(until_told(listener, {ticket}) for listener in listeners))
        # Not once for each of five: looks in which something was new, of three slots each.
        assert await reads() - before <= 10 * SHARDS


# The client -----------------------------------------------------------------------------------------------------------


async def test_the_client_tells_what_the_engine_tells(boss: Client, engine: Engine) -> None:
    made = await boss.create_sale("hot", name="The Hot", capacity=30, shards=SHARDS)
    assert (made.created, made.shards, made.items[0].in_transit) == (True, SHARDS, 0)
    tickets = [await boss.reserve("hot", buyer=f"buyer-{n}", quantity=1) for n in range(9)]
    await boss.confirm(tickets[0].id, buyer="buyer-0")
    tail = await engine.tail("hot", after=(0, 0))
    known = await tail.read()
    told = []
    async for transition in boss.transitions("hot", after=(0, 0)):
        told.append(transition)
        if len(told) == len(known):
            break
    assert [each.place for each in told] == [each.place for each in known]
    assert told == known
    middle = told[len(told) // 2]
    rest = []
    async for transition in boss.transitions("hot", after=middle.place):
        rest.append((transition.slot, transition.position))
        if len(rest) == len(told) - len(told) // 2 - 1:
            break
    assert set(rest) == {(each.slot, each.position) for each in told[len(told) // 2 + 1 :]}
    async for sale in boss.counts("hot"):
        assert sale == await engine.sale("hot")
        break
    with pytest.raises(InvalidRequest):
        await boss.amend_sale("hot", {"shards": 2})


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(empty_redis: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command and gives its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    deployment = ["--redis", empty_redis, "--store", f"sqlite:///{tmp_path / 'store.db'}"]

    def run(*arguments: str) -> tuple[int, str]:
        status = cli.main([*arguments, *deployment])
        out, err = capsys.readouterr()
        return status, out or err

    run.deployment = deployment  # type: ignore[attr-defined]
    run.connect = lambda: Engine.connect(empty_redis, store=deployment[3])  # type: ignore[attr-defined]
    return run


def test_the_command_line_sells_and_looks(run: Any) -> None:
    create = ("sale", "create", "hot", "--name", "The Hot", "--capacity", "30")
    assert run(*create, "--shards", "65")[0] == 2
    assert run(*create, "--shards", "0")[0] == 2
    status, made = run(*create, "--shards", "3")
    assert status == 0
    assert re.search(r"reserved +purchased +in transit +per buyer", made)
    assert "; shards: 3\n" in made
    assert json.loads(run(*create, "--shards", "3", "--json")[1])["shards"] == 3
    assert run(*create, "--shards", "2")[0] == 2
    run("sale", "create", "gig", "--name", "The Gig", "--capacity", "5")
    assert "in transit" not in run("sale", "show", "gig")[1]
    listed = run("sale", "list")[1]
    assert re.search(r"purchased +in transit +shards", listed)
    assert re.search(r"hot +The Hot +30 +30 +0 +0 +0 +3", listed)


def test_the_command_line_follows_a_ticket_and_its_slot(run: Any) -> None:
    run("sale", "create", "hot", "--name", "The Hot", "--capacity", "30", "--shards", "3")

    async def buy() -> tuple[str, list[Any]]:
        async with run.connect() as engine:
            ticket = await engine.reserve("hot", buyer="ann", quantity=1)
            await engine.confirm(ticket.id, buyer="ann")
            await engine.reserve("hot", buyer="bob", quantity=1)
            await engine.snapshot()
            return ticket.id, await (await engine.tail("hot", after="0-0")).read()

    ticket, told = asyncio.run(buy())
    status, shown = run("ticket", "show", ticket, "--json")
    assert (status, [each["kind"] for each in json.loads(shown)["history"]]) == (0, ["reserved", "purchased"])
    assert {each["slot"] for each in json.loads(shown)["history"]} == {ticket.partition(".")[0]}
    assert run("ticket", "show", f"hot~4.{ticket.partition('.')[2]}")[0] == 2
    status, audited = run("audit", "--sale", "hot")
    assert status == 0
    assert all(f"hot~{n}" in audited for n in (1, 2, 3))
    assert run("audit", "--sale", "hot~2")[0] == 0
    assert "hot~1" not in run("audit", "--sale", "hot~2")[1]
    assert run("audit", "--sale", "hot~4")[0] == 2
    status, recovered = run("recover", "--sale", "hot")
    assert status == 0
    assert all(f"hot~{n}" in recovered for n in (1, 2, 3))
    assert run("tail", "hot", "--after", "1-1")[0] == 2
    assert run("tail", "hot", "--after", "1-1,here,1-1")[0] == 2
    assert len(told) == 6


async def test_tail_prints_the_place_and_goes_on_at_any(run: Any) -> None:
    async with run.connect() as engine:
        await engine.create_sale("hot", name="The Hot", capacity=30, shards=3)
        for n in range(6):
            await engine.reserve("hot", buyer=f"buyer-{n}", quantity=1)

    async def printed(count: int, *begin: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "holdfast.http.cli", "tail", "hot", *begin, *run.deployment]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                return [json.loads(await process.stdout.readline()) for _ in range(count)]
        finally:
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0

    told = await printed(9, "--from-start")
    rest = await printed(4, "--after", told[4]["place"])
    assert [(each["slot"], each["sequence"]) for each in rest] == [
        (each["slot"], each["sequence"]) for each in told[5:]
    ]
