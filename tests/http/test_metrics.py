"""What /metrics shows: what callers heard, on both ways and in all workers, and how everything stands."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from holdfast.engine import Engine, NotReady, SoldOut
from holdfast.engine.connection import NoReply
from holdfast.engine.meters import Spread
from holdfast.http import tally as tally_module
from holdfast.http.app import create_app
from holdfast.http.context import AppConfig
from holdfast.http.metrics import METRICS
from holdfast.http.server import SERVER_OPTIONS

from .conftest import OPERATOR_TOKEN
from .test_workers import PATIENCE, Client, Server, create, start, until  # noqa: F401

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Figures:
    """Every sample of a page by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def outcome(call: str, sale: str, heard: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return key("holdfast_outcomes_total", call=call, sale=sale, outcome=heard)


async def scrape(client: Any, operator: dict[str, str]) -> Figures:
    response = await client.get("/metrics", headers=operator)
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert response.headers["Cache-Control"] == "no-store"
    return read(await response.text())


def buyer(name: str) -> dict[str, str]:
    return {"X-Buyer-Fingerprint": f"buyer-{name:0>8}"}


@pytest.fixture(params=["short way", "ordinary way"])
async def either(request: pytest.FixtureRequest, engine: Engine, client: Any, aiohttp_client: Any) -> Any:
    """A client of a server with the short way, and of one without."""
    if request.param == "short way":
        return client
    server = TestServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN)))
    await server.start_server(**SERVER_OPTIONS)
    made: TestClient[Any, Any] = await aiohttp_client(server)
    return made


async def test_what_callers_heard_is_counted_alike_on_both_ways(
    either: Any, gig: str, operator: dict[str, str]
) -> None:
    async def reserve(name: str, quantity: Any, sale: str = gig) -> Any:
        return await either.post(f"/sales/{sale}/tickets", json={"quantity": quantity}, headers=buyer(name))

    tickets = [(await (await reserve(f"{at}", 4)).json())["id"] for at in range(2)]
    assert (await reserve("0", 1)).status == 409
    assert (await reserve("2", 4)).status == 409
    assert (await reserve("2", 0)).status == 422
    assert (await reserve("2", 1, "nope")).status == 404
    pay = f"/tickets/{tickets[0]}/payment"
    assert (await either.post(pay, headers=buyer("0"))).status == 200
    assert (await either.post(pay, headers=buyer("1"))).status == 403
    assert (await either.post(pay, headers=buyer("0"))).status == 409
    assert (await either.delete(f"/tickets/{tickets[1]}/payment", headers=buyer("1"))).status == 200
    assert (await either.post(f"/tickets/{'x' * 30}/payment", headers=buyer("1"))).status == 404
    figures = await scrape(either, operator)
    heard = {each: times for each, times in figures.items() if each[0] == "holdfast_outcomes_total" and times}
    assert heard == {
        outcome("reserve", "gig", "ok"): 2,
        outcome("reserve", "gig", "limit_reached"): 1,
        outcome("reserve", "gig", "all_held"): 1,
        outcome("reserve", "gig", "invalid_request"): 1,
        outcome("reserve", "", "unknown_sale"): 1,
        outcome("pay", "gig", "ok"): 1,
        outcome("pay", "gig", "not_your_ticket"): 1,
        outcome("pay", "gig", "already_purchased"): 1,
        outcome("pay", "", "unknown_ticket"): 1,
        outcome("cancel", "gig", "ok"): 1,
    }
    for call, times in (("reserve", 6), ("pay", 4), ("cancel", 1)):
        assert figures[key("holdfast_call_duration_seconds_count", call=call)] == times
        assert 0 < figures[key("holdfast_call_duration_seconds_sum", call=call)] < 10 * times
        assert figures[key("holdfast_call_duration_seconds_bucket", call=call, le="+Inf")] == times
    # None of them is counted as a request as well.
    assert not [each for each in figures if each[0] == "holdfast_http_requests_total"]


async def test_a_refusal_on_the_short_way_before_anything_is_sent(
    client: Any, gig: str, engine: Engine, operator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post(f"/sales/{gig}/tickets", json={"quantity": 1}, headers=buyer("1"))
    engine._slots.refuse_reserving({engine._servers.one: NotReady("Redis is full")})
    assert (await client.post(f"/sales/{gig}/tickets", json={"quantity": 1}, headers=buyer("1"))).status == 503
    engine._slots.refuse_reserving({})

    figures = await scrape(client, operator)
    assert figures[outcome("reserve", "gig", "not_ready")] == 1
    assert figures[key("holdfast_call_duration_seconds_count", call="reserve")] == 2


async def test_entries_of_batch_calls_are_counted_one_by_one(client: Any, gig: str, operator: dict[str, str]) -> None:
    entries = [{"buyer": f"b{at}", "quantity": 4} for at in range(4)]
    answer = await client.post(f"/sales/{gig}/tickets/batch", json={"entries": entries}, headers=operator)
    tickets = [entry["ticket"]["id"] for entry in (await answer.json())["entries"] if "ticket" in entry]
    pays = [{"buyer": "b0", "ticket": ticket} for ticket in tickets]
    await client.post(f"/sales/{gig}/payments/batch", json={"entries": pays}, headers=operator)
    figures = await scrape(client, operator)
    assert figures[outcome("reserve", "gig", "ok")] == 2
    assert figures[outcome("reserve", "gig", "all_held")] == 2
    assert figures[outcome("pay", "gig", "ok")] == 1
    assert figures[outcome("pay", "gig", "not_your_ticket")] == 1
    route = "/sales/{sale}/tickets/batch"
    assert figures[key("holdfast_http_requests_total", method="POST", route=route, status="200")] == 1
    assert figures[key("holdfast_batch_calls_sum", script="reserve")] == 4


async def test_other_requests_are_counted_by_route_and_status(client: Any, gig: str, operator: dict[str, str]) -> None:
    await client.get(f"/sales/{gig}")
    await client.get("/sales/nope")
    await client.head("/healthz")
    await client.get("/made/up/1")
    await client.get("/made/up/2")
    await client.request("PURGE", "/made/up/3")
    await client.put(f"/sales/{gig}/tickets")
    figures = await scrape(client, operator)
    counted = {
        tuple(dict(labels)[name] for name in ("method", "route", "status")): times
        for (name, labels), times in figures.items()
        if name == "holdfast_http_requests_total"
    }
    assert counted == {
        ("GET", "/sales/{sale}", "200"): 1,
        ("GET", "/sales/{sale}", "404"): 1,
        ("HEAD", "/healthz", "200"): 1,
        ("GET", "", "404"): 2,
        ("other", "", "404"): 1,
        ("other", "/sales/{sale}/tickets", "405"): 1,
    }
    measured = figures[key("holdfast_http_request_duration_seconds_count", method="GET", route="/sales/{sale}")]
    assert measured == 2


async def test_sales_beyond_a_bound_share_a_line(
    client: Any, engine: Engine, operator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally_module, "SALES_MAX", 2)
    for sale in ("a", "b", "c", "d"):
        await engine.create_sale(sale, name=sale, capacity=10)
        for at in range(2):
            assert (
                await client.post(f"/sales/{sale}/tickets", json={"quantity": 1}, headers=buyer(f"{at}"))
            ).status == 201
    figures = await scrape(client, operator)
    assert [figures[outcome("reserve", sale, "ok")] for sale in ("a", "b", "")] == [2, 2, 4]
    assert outcome("reserve", "c", "ok") not in figures
    # What there is of each is shown all the same.
    assert figures[key("holdfast_units", sale="d", sku="general", state="reserved")] == 2


async def test_how_everything_stands(client: Any, duo: str, engine: Engine, operator: dict[str, str]) -> None:
    lines = [{"sku": "seat", "quantity": 2}, {"sku": "box", "quantity": 1}]
    await client.post(f"/sales/{duo}/tickets", json={"lines": lines}, headers=buyer("1"))
    await engine.snapshot()
    figures = await scrape(client, operator)
    units = {
        (dict(labels)["sku"], dict(labels)["state"]): value
        for (name, labels), value in figures.items()
        if name == "holdfast_units"
    }
    assert units == {
        ("seat", "available"): 3,
        ("seat", "reserved"): 2,
        ("seat", "purchased"): 0,
        ("box", "available"): 1,
        ("box", "reserved"): 1,
        ("box", "purchased"): 0,
    }
    assert figures[key("holdfast_capacity_units", sale="duo", sku="seat")] == 5
    for name in ("ready", "redis_up", "store_up", "sales", "workers", "worker_starts_total", "connections_open"):
        assert figures[key(f"holdfast_{name}")] == 1, name
    for name in ("snapshot_behind_transitions", "unfolded_transitions", "expiry_lag_seconds", "contradictions"):
        assert figures[key(f"holdfast_{name}")] == 0, name
    assert figures[key("holdfast_sale_ready", sale="duo")] == 1
    used, limit = (figures[key(f"holdfast_redis_memory_{each}_bytes")] for each in ("used", "limit"))
    assert figures[key("holdfast_redis_memory_used_ratio")] == pytest.approx(used / limit)
    assert figures[key("holdfast_worker_memory_bytes")] > 10_000_000


async def test_the_page_is_the_operators_and_comes_in_two_formats(
    client: Any, gig: str, refused: Any, operator: dict[str, str]
) -> None:
    await refused(await client.get("/metrics"), 401, "operator_token_required")
    await refused(await client.get("/metrics?x=1", headers=operator), 422, "invalid_request")
    # As Prometheus asks for it.
    accept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3"
    response = await client.get("/metrics", headers=operator | {"Accept": accept})
    assert response.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {family.name for family in parse_openmetrics(await response.text())}
    assert families == {described.name for described in METRICS}
    odd = {"Accept": "text/plain;version=two;escaping=\u00e9, application/openmetrics-text;version=nonsense"}
    assert (await client.get("/metrics", headers=operator | odd)).status == 200
    assert (await client.head("/metrics", headers=operator)).status == 200


async def test_figures_are_shown_when_nothing_answers(
    client: Any, gig: str, engine: Engine, operator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post(f"/sales/{gig}/tickets", json={"quantity": 1}, headers=buyer("1"))

    async def silent(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(3)
        raise NoReply("the connection to Redis was lost")

    with monkeypatch.context() as patch:
        patch.setattr(engine._servers.one, "exchange", silent)
        patch.setattr(engine._store, "cursors", silent)
        began = time.monotonic()
        figures = await scrape(client, operator)
        assert time.monotonic() - began < 5
    assert [figures[key(f"holdfast_{name}")] for name in ("ready", "redis_up", "store_up")] == [0, 0, 0]
    assert figures[outcome("reserve", "gig", "ok")] == 1
    assert key("holdfast_expiry_lag_seconds") not in figures


async def test_connections_that_were_turned_away(client: Any, operator: dict[str, str]) -> None:
    client.server.runner.server.connections_max = 0
    assert (await client.get("/sales/x")).status == 503
    assert (await scrape(client, operator))[key("holdfast_connections_turned_away_total")] == 1


async def test_readers_of_streams_are_shown(client: Any, gig: str, operator: dict[str, str]) -> None:
    async with client.get(f"/sales/{gig}/stream") as stream:
        await stream.content.readuntil(b"\n\n")
        figures = await scrape(client, operator)
        assert figures[key("holdfast_stream_readers")] == 1
        assert figures[key("holdfast_stream_readers_dropped_total")] == 0
        route = "/sales/{sale}/stream"
        assert figures[key("holdfast_http_requests_total", method="GET", route=route, status="200")] == 1
    give_up = time.monotonic() + 10
    while (await scrape(client, operator))[key("holdfast_stream_readers")]:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


def test_alike_answers_of_a_turn_are_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [9.75]
    monkeypatch.setattr(tally_module, "perf_counter", lambda: now[0])
    tally = tally_module.Tally(lambda sale: sale == "gig")
    refusal = SoldOut("general", 0)
    tally.turn()
    first, paid = tally.begin("reserve", "gig"), tally.begin("pay", "nix")
    assert (tally.reserving, tally.paying) == ({"gig": first}, {"nix": paid})
    now[0] = 9.875
    tally.turn()
    second = tally.begin("reserve", "gig")
    first.heard += [None, None, refusal, refusal, None, SoldOut("general", 0), ZeroDivisionError()]
    second.heard += [None]
    paid.heard += [None]
    tally.answering += [first, second, paid]
    now[0] = 10.0
    tally.written()
    assert {labels: times for labels, times in tally.outcomes() if times} == {
        ("reserve", "gig", "ok"): 4,
        ("reserve", "gig", "sold_out"): 3,
        ("reserve", "gig", "internal_error"): 1,
        ("pay", "", "ok"): 1,
    }
    spread = tally.seconds["reserve"]
    assert {bound: count for bound, count in zip(spread.bounds, spread.counts, strict=False) if count} == {0.25: 8}
    assert spread.total == 7 * 0.25 + 0.125
    assert tally.seconds["pay"].total == 0.25
    tally.written()
    assert tally.seconds["pay"].total == 0.25, "counted once"


def test_a_figure_belongs_to_the_first_bound_that_it_does_not_exceed() -> None:
    spread = Spread((1.0, 2.0))
    for figure in (0.5, 1.0, 1.5, 2.0, 2.5):
        spread.add(figure)
    assert spread.figures() == [2, 2, 1, 7.5]


# Several workers ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(150)
async def test_one_page_tells_of_all_workers_and_of_the_dead(start: Callable[..., Server]) -> None:  # noqa: F811
    server = await asyncio.to_thread(start().ready)
    await create(server, "gig", capacity=100)

    async def figures() -> Figures:
        client = Client(server.port)
        status, page = await text(client, server.operator)
        await client.close()
        assert status == 200
        return read(page)

    async def eventually(condition: Callable[[Figures], bool]) -> Figures:
        give_up = time.monotonic() + PATIENCE
        while not condition(found := await figures()):
            assert time.monotonic() < give_up, found
            await asyncio.sleep(0.05)
        return found

    for at in range(24):
        client = Client(server.port, f"{at}")
        assert (await client.request("POST", "/sales/gig/tickets", {"quantity": 1}))[0] == 201
        await client.close()
    # Whoever answers has the others' figures of a second ago at the latest.
    ok = outcome("reserve", "gig", "ok")
    found = await eventually(lambda page: page.get(ok) == 24 and page[key("holdfast_workers")] == 2)
    assert found[key("holdfast_worker_starts_total")] == 2
    assert found[key("holdfast_call_duration_seconds_count", call="reserve")] == 24
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = set(server.workers())
        starts = (await figures())[key("holdfast_worker_starts_total")]
        os.kill(min(before), number)
        await until(lambda before=before: len(set(server.workers()) - before) == 1 and len(server.workers()) == 2)
        # Its successor goes on from what it had counted, and it is not there any more.
        again = await eventually(
            lambda page, starts=starts: (
                page[key("holdfast_worker_starts_total")] == starts + 1 and page[key("holdfast_workers")] == 2
            )
        )
        assert again[ok] == 24
    await server_ends(server)


async def text(client: Any, headers: dict[str, str]) -> tuple[int, str]:
    """A page that is no JSON."""
    await client.connect()
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "here", **headers}.items())
    client._writer.write(f"GET /metrics HTTP/1.1\r\n{head}\r\n".encode())
    answer = (await client._reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
    return int(answer.split()[1]), (await client._reader.readexactly(length)).decode()


async def server_ends(server: Server) -> None:
    status, err = await asyncio.to_thread(server.end, signal.SIGTERM)
    assert status == 0, err
