"""`holdfast load` against real servers, and against such that cheat: what it says, writes, and exits with."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from holdfast.engine import ConfigurationError, Engine, ItemSpec
from holdfast.http.load import page, result, screen
from holdfast.http.load.run import Run, Target, run
from holdfast.http.load.scenario import scenario_of
from holdfast.http.load.seller import CannotRun

TOKEN = "operator-token-for-tests"
DOCS = (Path(__file__).resolve().parents[2] / "docs" / "load.md").read_text()

#: Every preset as small as it still does what it is for.
SMALL: dict[str, dict[str, Any]] = {
    "2000-for-100": {
        "buyers": 200,
        "capacity": 20,
        "within_ms": 100,
        "hold_ms": 500,
        "think_ms": 50,
        "retry_for_s": 1.5,
        "hang_up": 0.1,
    },
    "steady": {"buyers": 200, "rate": 400.0, "ramp_s": 0.1, "hold_ms": 500, "think_ms": 50},
    "expiry-storm": {"buyers": 100, "capacity": 100, "second_wave": 100, "hold_ms": 1_000, "think_ms": 50},
    "hot-sale": {
        "buyers": 200,
        "capacity": 20,
        "within_ms": 200,
        "shards": 4,
        "hold_ms": 500,
        "think_ms": 50,
        "retry_for_s": 1.5,
    },
    "bots": {"buyers": 40, "capacity": 60, "rate": 100.0, "bots": 6, "bot_orders": 15, "hold_ms": 500, "think_ms": 50},
}


class Quiet:
    """A screen that only remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.phases: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def show(self, state: screen.State) -> None:
        self.phases.append(state.phase)

    def close(self) -> None:
        pass


async def driven(
    url: str, preset: str, *, stop: asyncio.Event | None = None, shown: Quiet | None = None, **fields: Any
) -> Run:
    """A small run of a preset against a server."""
    own = {name: fields.pop(name) for name in ("sale", "sku", "token", "buyer_token_key") if name in fields}
    target = Target(url.rstrip("/"), **({"token": TOKEN} | own))
    scenario = scenario_of(preset, None, SMALL[preset] | fields)
    return await run(scenario, target, shown or Quiet(), stop or asyncio.Event())


def wrong(done: Run) -> dict[str, str]:
    return {check.name: " ".join(check.evidence) for check in done.verdict.checks if check.passed is False}


def unmade(done: Run) -> set[str]:
    return {check.name for check in done.verdict.checks if check.passed is None}


@pytest.fixture
async def url(clients: Any) -> str:
    """The address of a real server."""
    return str((await clients()).make_url("/")).rstrip("/")


# Real servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", SMALL)
async def test_every_preset_finds_a_real_server_good(url: str, preset: str) -> None:
    done = await driven(url, preset)
    assert wrong(done) == {}
    assert unmade(done) == set()
    assert done.verdict.good
    figures = done.figures
    assert figures.requests == sum(sum(said.values()) for said in figures.outcomes.values())
    assert figures.from_due["all"].count > 0
    assert figures.outcomes["pay"]
    if preset == "2000-for-100":
        assert figures.outcomes["reserve"]["all_held"] > 0
        assert figures.outcomes["reserve"]["hung_up"] > 0
    if preset == "expiry-storm":
        # Units were held by those who walked away, and again by those who came after them.
        assert figures.outcomes["reserve"]["ok"] > 100
    if preset == "hot-sale":
        # Whatever shard a buyer had, it borrowed what it lacked: nearly all are sold.
        assert figures.outcomes["pay"]["ok"] >= 14
    if preset == "bots":
        assert {"limits", "share"} <= {check.name for check in done.verdict.checks}
        assert len(figures.outcomes["garbage"]) > 3


async def test_the_sales_of_a_run_are_closed_in_the_end(url: str, engine: Engine) -> None:
    done = await driven(url, "steady", sales=3, skew=1.0)
    assert wrong(done) == {}
    for id in done.sales:
        assert re.fullmatch(r"load-steady-[0-9a-f]{6}-[123]", id)
        assert (await engine.sale(id)).closes_at is not None
    assert set(done.figures.stock) == set(done.sales)


async def test_several_processes_share_the_plan_and_one_verdict(url: str) -> None:
    done = await driven(url, "steady", processes=3, walk_away=0.0, cancel=0.0, repeat=0.0, hold_ms=60_000)
    assert wrong(done) == {}
    assert done.figures.outcomes == {"pay": {"ok": 200}, "reserve": {"ok": 200}}
    assert done.figures.from_due["all"].count == 400
    assert len(done.figures.cpu) == 3


async def test_clients_that_wait_for_each_other(url: str) -> None:
    done = await driven(url, "steady", arrival="clients", clients=7, buyers=100, think_ms=0, walk_away=0.0, cancel=0.0)
    assert wrong(done) == {}
    assert done.figures.outcomes["reserve"]["ok"] == 100


async def test_a_sale_that_is_there_without_the_operator(url: str, engine: Engine) -> None:
    await engine.create_sale("gig", name="The Gig", capacity=50, hold_ms=800, max_per_buyer=4)
    done = await driven(url, "2000-for-100", sale="gig", token=None)
    assert wrong(done) == {}
    assert unmade(done) == {"leaked", "tickets", "refusals"}
    assert (await engine.sale("gig")).closes_at is None
    (item,) = (await engine.sale("gig")).items
    assert done.figures.outcomes["pay"].get("ok", 0) == item.purchased


async def test_an_item_of_a_sale_that_is_there(url: str, engine: Engine) -> None:
    items = [ItemSpec("seat", 5, max_per_buyer=3), ItemSpec("box", 2)]
    await engine.create_sale("duo", name="Two kinds", items=items, hold_ms=500)
    with pytest.raises(ConfigurationError, match="name one with --sku"):
        await driven(url, "2000-for-100", sale="duo")
    done = await driven(url, "2000-for-100", sale="duo", sku="seat", buyers=30)
    assert wrong(done) == {}
    assert done.figures.stock["duo"][-1].purchased <= 5


async def test_holds_that_are_made_longer_meanwhile_are_waited_for(
    url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.http.load.seller.GRACE_SECONDS", 0.5)

    async def amends() -> None:
        while not (sales := (await engine.sales()).items) or not sales[0].items[0].purchased:
            await asyncio.sleep(0.01)
        await engine.amend_sale(sales[0].id, {"hold_ms": 4_000})

    amending = asyncio.create_task(amends())
    done = await driven(url, "steady", buyers=60, rate=100.0, walk_away=0.5, cancel=0.0, hold_ms=1_000, think_ms=20)
    await amending
    assert wrong(done) == {}


async def test_without_the_operator_a_purchase_that_is_not_there_is_lost(aiohttp_server: Any) -> None:
    cheat = Cheat("forgets what it listed")
    cheat.sale = {"id": "gig", "capacity": 50, "hold_ms": 500}
    server: TestServer = await aiohttp_server(cheat.app())
    done = await driven(str(server.make_url("/")), "2000-for-100", sale="gig", token=None, hang_up=0.0, buyers=20)
    assert "purchases" in wrong(done)


async def test_buyers_with_signed_tokens(clients: Any) -> None:
    key = "a key for buyer tokens, 32 bytes or more"
    url = str((await clients(buyer_token_key=key)).make_url("/"))
    done = await driven(url, "bots", buyer_token_key=key)
    assert wrong(done) == {}


async def test_a_run_that_is_stopped_finishes_what_is_under_way(url: str) -> None:
    stop, shown = asyncio.Event(), Quiet()

    async def stops() -> None:
        while "running" not in shown.phases:
            await asyncio.sleep(0.01)
        stop.set()

    stopping = asyncio.create_task(stops())
    done = await driven(url, "steady", rate=20.0, buyers=2_000, stop=stop, shown=shown)
    await stopping
    assert wrong(done) == {}
    assert done.verdict.interrupted
    assert not done.verdict.good
    assert "INTERRUPTED" in done.verdict.sentence
    assert done.figures.requests < 2_000


# Servers that cheat ---------------------------------------------------------------------------------------------------


class Cheat:
    """The calls that a run makes, from memory, with one thing wrong.

    Parameters
    ----------
    how: what is wrong; empty for nothing.
    """

    def __init__(self, how: str = "") -> None:
        self.how = how
        self.tickets: dict[str, dict[str, Any]] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.closed = False
        self.sequence = 0
        self.asked = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/sales", self.create),
                web.get("/sales/{sale}", self.show),
                web.patch("/sales/{sale}", self.show),
                web.post("/sales/{sale}/tickets", self.reserve),
                web.get("/sales/{sale}/tickets", self.list),
                web.get("/tickets/{ticket}", self.look),
                web.post("/tickets/{ticket}/payment", self.pay),
                web.delete("/tickets/{ticket}/payment", self.cancel),
            ]
        )
        return app

    async def create(self, request: web.Request) -> web.Response:
        self.sale = await request.json()
        return web.json_response(self.counts(), status=201)

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response(self.counts())

    def counts(self) -> dict[str, Any]:
        self.sweep()
        states = Counter(ticket["status"] for ticket in self.tickets.values())
        if self.how == "leaks" and states["expired"]:
            states["reserved"] += 1
        capacity = self.sale["capacity"]
        purchased, reserved = states["purchased"], states["reserved"]
        item = {
            "sku": "general",
            "capacity": capacity,
            "available": capacity - purchased - reserved,
            "reserved": reserved,
            "purchased": purchased,
        }
        limit = self.sale.get("max_per_buyer")
        return {
            "id": self.sale["id"],
            "items": [item],
            "hold_ms": self.sale["hold_ms"],
            "max_per_buyer": limit,
            "sequence": self.sequence,
        }

    def sweep(self) -> None:
        for ticket in self.tickets.values():
            if ticket["status"] == "reserved" and time.time() >= ticket["until"]:
                ticket["status"] = "expired"

    async def reserve(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.how == "stalls" and self.asked == 2:
            time.sleep(1)
        if self.how == "breaks" and self.asked % 10 == 0:
            return web.Response(status=500, text="oops")
        if self.how == "denies the sale" and self.asked % 10 == 0:
            return self.refuse(404, "unknown_sale")
        self.sweep()
        buyer, key = request.headers["X-Buyer-Fingerprint"], request.headers["Idempotency-Key"]
        if (buyer, key) in self.keys and self.how != "forgets keys":
            return self.answer(self.keys[buyer, key], 201, {"Idempotent-Replayed": "true"})
        taken = sum(ticket["status"] in ("reserved", "purchased") for ticket in self.tickets.values())
        bought = sum(ticket["status"] == "purchased" for ticket in self.tickets.values())
        theirs = sum(
            ticket["buyer"] == buyer and ticket["status"] in ("reserved", "purchased")
            for ticket in self.tickets.values()
        )
        capacity = self.sale["capacity"] + (5 if self.how == "oversells" else 0)
        if self.how != "knows no limit" and theirs >= self.sale.get("max_per_buyer", 1000):
            return self.refuse(409, "limit_reached")
        if taken >= capacity:
            return self.refuse(409, "sold_out" if bought >= capacity or self.how == "says sold out" else "all_held")
        id = f"{self.sale['id']}.{len(self.tickets):022d}"
        until = time.time() + self.sale["hold_ms"] / 1000
        self.tickets[id] = {"status": "reserved", "buyer": buyer, "until": until, "at": None}
        self.keys[buyer, key] = id
        self.sequence += 1
        return self.answer(id, 201)

    async def pay(self, request: web.Request) -> web.Response:
        self.sweep()
        id = request.match_info["ticket"]
        ticket = self.tickets[id]
        if ticket["status"] == "expired":
            return self.refuse(410, "ticket_expired", expired_at=instant(ticket["until"]))
        ticket |= {"status": "purchased", "at": time.time()}
        self.sequence += 1
        answer = self.answer(id, 200)
        if self.how == "loses purchases" and self.sequence % 3 == 0:
            ticket["status"] = "expired"
        return answer

    async def cancel(self, request: web.Request) -> web.Response:
        id = request.match_info["ticket"]
        self.tickets[id] |= {"status": "cancelled", "at": time.time()}
        self.sequence += 1
        return self.answer(id, 200)

    async def list(self, request: web.Request) -> web.Response:
        items = [self.ticket(id) for id in self.tickets]
        if self.how == "has a ticket of its own":
            items.append(self.ticket(next(iter(self.tickets))) | {"id": f"{self.sale['id']}.own"})
        return web.json_response({"items": items, "next": None})

    async def look(self, request: web.Request) -> web.Response:
        if self.how == "forgets what it listed":
            return self.refuse(404, "unknown_ticket")
        return self.answer(request.match_info["ticket"], 200)

    def ticket(self, id: str) -> dict[str, Any]:
        ticket = self.tickets[id]
        left = max(0, round((ticket["until"] - time.time()) * 1000)) if ticket["status"] == "reserved" else 0
        ended = {f"{ticket['status']}_at": instant(ticket["at"])} if ticket["at"] else {}
        return {
            "id": id,
            "sale": self.sale["id"],
            "status": ticket["status"],
            "quantity": 1,
            "expires_at": instant(ticket["until"]),
            "expires_in_ms": left,
        } | ended

    def answer(self, id: str, status: int, headers: dict[str, str] | None = None) -> web.Response:
        return web.json_response(self.ticket(id), status=status, headers=headers)

    def refuse(self, status: int, code: str, **more: Any) -> web.Response:
        return web.json_response(
            {"code": code, "status": status, "retry_after_ms": 100} | more,
            status=status,
            content_type="application/problem+json",
        )


def instant(at: float) -> str:
    milliseconds = int(at * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000)) + f".{milliseconds % 1000:03d}Z"


async def judged(aiohttp_server: Any, how: str, preset: str = "2000-for-100", **fields: Any) -> Run:
    server: TestServer = await aiohttp_server(Cheat(how).app())
    return await driven(str(server.make_url("/")), preset, **fields)


async def test_a_server_of_another_kind_that_does_not_cheat_is_good(aiohttp_server: Any) -> None:
    assert wrong(await judged(aiohttp_server, "", hang_up=0.0)) == {}


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("oversells", {"oversold"}),
        ("forgets keys", {"keys"}),
        ("loses purchases", {"purchases"}),
        ("leaks", {"leaked"}),
        ("says sold out", {"refusals"}),
        ("breaks", {"contract"}),
        ("denies the sale", {"contract"}),
        ("forgets what it listed", {"purchases"}),
        ("has a ticket of its own", {"tickets"}),
    ],
)
async def test_a_server_that_cheats_is_found_guilty(
    aiohttp_server: Any, monkeypatch: pytest.MonkeyPatch, how: str, found: set[str]
) -> None:
    # A leak is waited for as long as its units may be late.
    monkeypatch.setattr("holdfast.http.load.seller.GRACE_SECONDS", 1.0)
    done = await judged(aiohttp_server, how, hang_up=0.0, repeat=0.3, retry=0.0, buyers=100, hold_ms=1_500)
    assert found <= wrong(done).keys(), wrong(done)
    assert not done.verdict.good
    assert "WRONG" in done.verdict.sentence


async def test_a_server_that_knows_no_limit_is_found_guilty(aiohttp_server: Any) -> None:
    # A buyer who hangs up, and whose key is new each time, is one of the bots.
    done = await judged(aiohttp_server, "knows no limit", "bots", bot_orders=30)
    assert "limits" in wrong(done)


async def test_a_stall_is_seen_by_those_who_were_due_meanwhile(aiohttp_server: Any) -> None:
    done = await judged(
        aiohttp_server, "stalls", "steady", connections=1, buyers=60, rate=200.0, ramp_s=0.0, walk_away=1.0, cancel=0.0
    )
    due, service = done.figures.from_due["reserve"], done.figures.service["reserve"]
    # One request stalled for a second, and nearly all others were due while it did.
    assert due.percentiles[50.0] > 300
    assert service.percentiles[50.0] < due.percentiles[50.0] / 2
    assert done.figures.waited > 30
    assert "harness sent late" in done.figures.late


# What it writes -------------------------------------------------------------------------------------------------------


def paths(value: Any, path: str = "") -> set[str]:
    """The names of all fields, nested ones with a dot; what stands for many names is a star."""
    if isinstance(value, list):
        return set().union(*(paths(each, path) for each in value)) if value else {path}
    if not isinstance(value, dict) or "p99.9" in value:
        return {path}
    found: set[str] = set()
    for name, each in value.items():
        star = re.search(r"(^|\.)(outcomes|latency_ms|stock|outcomes\.\*|scenario|machine)$", path)
        found |= paths(each, f"{path}.{'*' if star else name}".lstrip("."))
    return found


class Reader(HTMLParser):
    """Whatever a page names, and how its elements nest."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag


async def test_the_report_needs_nothing_else_and_the_json_is_as_documented(url: str) -> None:
    done = await driven(url, "bots", name="a-drop")
    text = page.page(done)
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.tags["script"] == reader.tags["link"] == reader.tags["img"] == 0
    assert not [each for each in reader.attributes if each[1] in ("src", "href", "xlink:href", "onload", "onclick")]
    assert not re.search(r"url\(|@import|https?://(?!127\.0\.0\.1)", text)
    plots = [value for tag, name, value in reader.attributes if tag == "svg" and name == "aria-label"]
    assert len(plots) == 3
    assert reader.tags["table"] == reader.tags["caption"] >= 4
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    for check in done.verdict.checks:
        assert check.title in text

    body = json.loads(result.as_json(done))
    assert body["format"] == result.FORMAT
    (documented,) = re.findall(r"^## The JSON\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^\| `([^`]+)`", documented, re.MULTILINE))
    assert named == paths(body)


async def test_a_report_says_what_was_wrong_and_escapes_it(aiohttp_server: Any) -> None:
    done = await judged(aiohttp_server, "breaks", hang_up=0.0)
    text = page.page(done)
    assert 'class="bad"' in text
    assert "no JSON object: oops" in text
    assert "WRONG" in result.text(done)
    assert result.text(done).count("no JSON object: oops") <= 11


def test_the_documentation_names_every_preset_field_and_check() -> None:
    from holdfast.http.load.scenario import PRESETS, Scenario

    for name in (*PRESETS, *Scenario.model_fields):
        assert f"`{name}`" in DOCS, name
    source = (Path(page.__file__).parent / "verdict.py").read_text()
    checks = re.findall(r'_check\(\s*"(\w+)"', source)
    assert len(checks) == 11
    for name in checks:
        assert f"| `{name}` |" in DOCS, name


# The screen -----------------------------------------------------------------------------------------------------------


async def test_a_run_on_a_terminal_and_elsewhere(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = screen.Lines(Console(no_color=True, width=300))
    scenario = scenario_of("bots", None, SMALL["bots"])
    done = await run(scenario, Target(url, TOKEN), shown, asyncio.Event())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Watch it at {url}/#sale={done.sales[0]} (in a tab that is signed in)"
    assert any("running: " in line and "/46 buyers" in line for line in lines)
    assert any("waiting until " in line for line in lines)

    console = Console(width=100, force_terminal=True)
    picture = screen.Picture(console)
    await run(scenario, Target(url, TOKEN), picture, asyncio.Event())
    drawn = capsys.readouterr().out
    assert "buyers are done" in drawn
    assert "sold" in drawn


# The command ----------------------------------------------------------------------------------------------------------

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Runs the command; its exit status, output and errors."""

    async def command(*arguments: str, interrupt_at: str | None = None) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "holdfast.http.cli",
            "load",
            *arguments,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out = ""
            if interrupt_at is not None:
                assert process.stdout is not None
                while interrupt_at not in out:
                    line = await asyncio.wait_for(process.stdout.readline(), 30)
                    assert line, out
                    out += line.decode()
                process.send_signal(signal.SIGINT)
            rest, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return int(process.returncode or 0), out + rest.decode(), errors.decode()

    return command


def flags(preset: str) -> list[str]:
    return [part for name, value in SMALL[preset].items() for part in (f"--{name.replace('_', '-')}", str(value))]


async def test_the_command_ends_well_and_leaves_its_files(url: str, load: Load, tmp_path: Path) -> None:
    (tmp_path / "holdfast-data").mkdir()
    (tmp_path / "holdfast-data" / "operator_token").write_text(TOKEN)
    status, out, errors = await load("2000-for-100", "--url", url, *flags("2000-for-100"), "--json", "out.json")
    assert (status, errors) == (0, "")
    assert "GOOD: 10 checks passed." in out
    (report,) = tmp_path.glob("holdfast-load-????????-??????.html")
    assert f"report: {report.name}" in out
    assert json.loads((tmp_path / "out.json").read_text())["verdict"]["good"] is True


async def test_the_command_ends_with_1_when_something_is_wrong(aiohttp_server: Any, load: Load) -> None:
    server: TestServer = await aiohttp_server(Cheat("oversells").app())
    url = str(server.make_url("/"))
    status, out, _ = await load("2000-for-100", "--url", url, "--operator-token", "any", *flags("2000-for-100"))
    assert status == 1
    assert "WRONG: no unit is sold twice" in out


async def test_an_interrupted_command_writes_its_report(url: str, load: Load, tmp_path: Path) -> None:
    status, out, errors = await load(
        "steady", "--url", url, "--operator-token", TOKEN, "--rate", "20", "--hold-ms", "500", interrupt_at="running: "
    )
    assert (status, errors) == (1, "")
    assert "INTERRUPTED" in out
    assert list(tmp_path.glob("holdfast-load-*.html"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Name a scenario"),
        (("flood",), "There is no scenario 'flood'"),
        (("steady", "--buyers", "0"), "holdfast: --buyers: input should be greater than or equal to 1, not 0.\n"),
        (("steady", "--cancel", "0.9", "--walk-away", "0.9"), "cannot be more than 1"),
        (("steady", "--url", "nowhere"), "--url must look like"),
        (("steady", "--url", "http://127.0.0.1:1/#token=s3cret", "--sale", "gig"), "--url must look like"),
        (("steady", "--url", "http://me:s3cret@127.0.0.1:1", "--sale", "gig"), "--url must look like"),
        (("steady", "--sale", "gig", "--capacity", "3"), "--sale gig has its own"),
        (("steady",), "needs the operator's token"),
        (("steady", "--report", "no/such/place.html"), "cannot be written"),
        (("steady", "--json", "."), "cannot be written"),
        (("--scenario", "none.toml"), "none.toml cannot be read"),
    ],
)
async def test_a_wrong_call_is_one_line_and_2(load: Load, arguments: tuple[str, ...], says: str) -> None:
    status, out, errors = await load(*arguments)
    assert (status, out) == (2, "")
    assert says in errors
    assert errors.count("\n") == 1
    assert "s3cret" not in errors


async def test_the_kept_token_stays_on_this_machine_unless_its_directory_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "holdfast-data").mkdir()
    (tmp_path / "holdfast-data" / "operator_token").write_text(TOKEN)
    elsewhere = ("steady", "--url", "http://nobody.invalid")
    status, _, errors = await load(*elsewhere)
    assert (status, "needs the operator's token" in errors) == (2, True)
    status, _, errors = await load(*elsewhere, "--data-dir", "holdfast-data")
    assert (status, "Nothing answers" in errors) == (1, True)
    (tmp_path / "holdfast-data" / "operator_token").write_bytes(b"\xff\xfe")
    status, _, errors = await load("steady", "--url", "http://127.0.0.1:1")
    assert (status, "needs the operator's token" in errors) == (2, True)


async def test_a_server_that_is_away_is_one_line_and_1(load: Load, unused_tcp_port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    status, out, errors = await load("steady", "--url", url, "--operator-token", TOKEN)
    assert (status, out) == (1, "")
    assert errors.startswith(f"holdfast: Nothing answers at {url}")
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


async def test_a_wrong_token_and_a_sale_that_is_not_there_are_wrong_calls(url: str, load: Load) -> None:
    status, _, errors = await load("steady", "--url", url, "--operator-token", "guessed")
    assert (status, errors.count("\n")) == (2, 1)
    assert "does not take this operator's token" in errors
    status, _, errors = await load("steady", "--url", url, "--sale", "nothing")
    assert (status, errors.count("\n")) == (2, 1)
    assert "--sale nothing: " in errors


async def test_the_list_of_scenarios(load: Load) -> None:
    status, out, errors = await load("--list")
    assert (status, errors) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(SMALL)


async def test_what_is_no_holdfast_server(aiohttp_server: Any) -> None:
    server: TestServer = await aiohttp_server(web.Application())
    with pytest.raises(CannotRun, match="no Holdfast server"):
        await driven(str(server.make_url("/")), "steady")


async def test_too_few_open_files_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    with pytest.raises(CannotRun, match="ulimit"):
        await driven(url, "steady")
