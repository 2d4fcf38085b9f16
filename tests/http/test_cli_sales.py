"""`holdfast sale`, `ticket`, `tail`, `snapshot` and `settings`: what they do, and what they print."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import Engine, Ticket
from holdfast.http import cli

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def deployment(empty_redis: str, tmp_path: Path) -> list[str]:
    """The flags that lead to it, and the environment's variables do not."""
    return ["--redis", empty_redis, "--store", f"sqlite:///{tmp_path / 'store.db'}"]


@pytest.fixture
def run(deployment: list[str], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command and gives what it printed; with `status`, what it complained of."""

    def run(*arguments: str, status: int = 0) -> str:
        found = cli.main([*arguments, *deployment])
        out, err = capsys.readouterr()
        assert found == status, err
        if status:
            assert out == ""
            assert err.startswith("holdfast: ")
            assert err.count("\n") == 1
        return str(err if status else out)

    return run


@pytest.fixture
def run_json(run: Run) -> Run:
    """Runs a command with --json and gives the one object that it printed."""
    return lambda *arguments: json.loads(run(*arguments, "--json"))


def buy(deployment: list[str], *calls: str) -> list[Ticket]:
    """Tickets of one unit of `gig`, each with what becomes of it: `reserve`, `confirm` or `cancel`."""

    async def work() -> list[Ticket]:
        async with Engine.connect(deployment[1], store=deployment[3], sweep=False, snapshot_ms=None) as engine:
            tickets = []
            for call in calls:
                ticket = await engine.reserve("gig", buyer="ann", quantity=1)
                if call == "confirm":
                    ticket = await engine.confirm(ticket.id, buyer="ann", reference="pay_1")
                if call == "cancel":
                    ticket = await engine.cancel(ticket.id, buyer="ann")
                tickets.append(ticket)
            return tickets

    return asyncio.run(work())


def test_a_sale_from_creation_to_its_end(run: Run, run_json: Run) -> None:
    made = run_json(
        *("sale", "create", "gig", "--name", "The Gig", "--item", "seat=80:Seats", "--item", "box=5:A: B:1"),
        *(
            "--hold",
            "1m30s",
            "--max-per-buyer",
            "4",
            "--opens-at",
            "2026-11-01T12:00:00+01:00",
            "--durability",
            "stored",
        ),
    )
    seat, box = made["items"]
    assert (seat["sku"], seat["name"], seat["capacity"]) == ("seat", "Seats", 80)
    assert (box["sku"], box["name"], box["capacity"], box["max_per_buyer"]) == ("box", "A: B", 5, 1)
    assert (made["hold_ms"], made["max_per_buyer"], made["durability"]) == (90_000, 4, "stored")
    assert (made["opens_at"], made["closes_at"]) == ("2026-11-01T11:00:00.000Z", None)

    amended = run_json(
        *("sale", "amend", "gig", "--item", "seat=120", "--item", "standing=40:Standing", "--hold", "2m"),
        *("--max-per-buyer", "none", "--opens-at", "none", "--name", "none"),
    )
    assert [(item["sku"], item["name"], item["capacity"]) for item in amended["items"]] == [
        ("seat", "Seats", 120),
        ("box", "A: B", 5),
        ("standing", "Standing", 40),
    ]
    assert (amended["hold_ms"], amended["max_per_buyer"], amended["opens_at"]) == (120_000, None, None)
    assert amended["name"] == "none"
    renamed = run_json("sale", "amend", "gig", "--item", "seat=:Best seats", "--name", "The Gig")
    assert (renamed["items"][0]["name"], renamed["items"][0]["capacity"]) == ("Best seats", 120)

    shown = run("sale", "show", "gig")
    assert shown.startswith("gig: The Gig\n")
    assert "Best seats" in shown
    assert run_json("sale", "show", "gig") == renamed
    listed = run("sale", "list")
    assert "gig" in listed
    assert "closed" not in listed

    before = time.time()
    closed = run_json("sale", "close", "gig")
    assert closed["closes_at"] is not None
    assert run_json("sale", "close", "gig") == closed
    assert time.time() >= before
    assert "gig: The Gig (closed)" in run("sale", "show", "gig")
    assert run_json("sale", "amend", "gig", "--closes-at", "none")["closes_at"] is None


def test_a_sale_that_has_not_opened_is_closed_for_good(run: Run, run_json: Run) -> None:
    made = run_json("sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--opens-at", "+1h")
    assert "not open yet" in run("sale", "list")
    closed = run_json("sale", "close", "gig")
    assert closed["closes_at"] < made["opens_at"]
    assert "closed" in run("sale", "list")


def test_instants_from_now(run_json: Run) -> None:
    before = time.time()
    made = run_json(
        *("sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--opens-at", "now", "--closes-at", "+1h30m")
    )
    opens, closes = (_seconds(made[name]) for name in ("opens_at", "closes_at"))
    assert before - 0.001 <= opens <= time.time()
    assert closes - opens == pytest.approx(5400, abs=1)


def _seconds(instant: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(instant).timestamp()


def test_the_same_sale_again(run: Run, run_json: Run) -> None:
    create = ("sale", "create", "gig", "--name", "Gig", "--capacity", "3")
    assert run_json(*create) == run_json(*create)
    assert "exists" in run(*create[:-1], "4", status=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sale", "create", "gig", "--name", "Gig"], "--capacity"),
        (["sale", "create", "--name", "Gig", "--capacity", "1"], "SALE"),
        (["sale", "create", "Gig", "--name", "Gig", "--capacity", "1"], "SALE must be 1 to 64"),
        (["sale", "create", "gig", "--name", "Gig", "--capacity", "many"], "--capacity"),
        (["sale", "create", "gig", "--name", "Gig", "--item", "a=1", "--item", "B=1"], "--item, number 2: sku must"),
        (["sale", "create", "gig", "--name", "Gig", "--item", "a="], "--item, number 1: capacity must"),
        (["sale", "create", "gig", "--name", "Gig", "--item", "5"], "SKU=CAPACITY"),
        (["sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--hold", "15"], "--hold"),
        (["sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--hold", "0s"], "--hold must be"),
        (["sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--opens-at", "noon"], "--opens-at"),
        (["sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--opens-at", "2026-11-27T12:00:00"], "+10m"),
        (["sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--durability", "paper"], "--durability"),
        (["sale", "create", "gig", "--name", "Gig", "--capacity", "1", "--durability", "replica"], "replica"),
        (["sale", "create", "gig", "--name", "Gig", "--capacty", "1"], "--capacity"),
        (["sale", "create", "gig", "--capacity", "1"], "--name is missing"),
        (["sale", "create", "gig", "--capacity", "1", "--name"], "--name requires an argument"),
        (["ticket", "show"], "TICKET is missing"),
        (["sale", "crate", "gig"], "create"),
        (["sale", "show", "nope"], "nope"),
        (["sale", "amend", "nope", "--capacity", "1"], "nope"),
        (["sale", "amend", "nope"], "nothing to change"),
        (["sale", "amend", "nope", "--max-per-buyer", "few"], "--max-per-buyer"),
        (["sale", "close", "nope"], "nope"),
        (["ticket", "show", "nope.0123456789abcdefghijkl"], "ticket"),
        (["ticket", "show", "nope"], "ticket"),
        (["tail", "nope", "--after", "7"], "EPOCH-SEQUENCE"),
        (["tail", "--after", "1-7"], "one sale"),
        (["tail", "nope"], "nope"),
        (["recover", "--sale", "nope"], "nope"),
        (["audit", "--sale", "nope"], "nope"),
    ],
)
def test_a_wrong_call_gets_one_line_and_status_2(run: Run, arguments: list[str], says: str) -> None:
    assert says in run(*arguments, status=2)


def test_what_is_refused_because_of_what_was_sold_gets_status_1(run: Run, deployment: list[str]) -> None:
    run("sale", "create", "gig", "--name", "Gig", "--capacity", "5")
    buy(deployment, "reserve", "confirm")
    assert "2 units" in run("sale", "amend", "gig", "--capacity", "1", status=1)


def test_a_ticket_with_its_history(run: Run, run_json: Run, deployment: list[str]) -> None:
    run("sale", "create", "gig", "--name", "Gig", "--capacity", "9")
    paid, held, cancelled = buy(deployment, "confirm", "reserve", "cancel")
    shown = run_json("ticket", "show", paid.id)
    assert (shown["status"], shown["reference"]) == ("purchased", "pay_1")
    assert [(each["kind"], each["sequence"]) for each in shown["history"]] == [("reserved", 2), ("purchased", 3)]
    assert [each["at"] for each in shown["history"]] == [shown["reserved_at"], shown["purchased_at"]]
    for ticket, kinds in ((held, ["reserved"]), (cancelled, ["reserved", "cancelled"])):
        assert [each["kind"] for each in run_json("ticket", "show", ticket.id)["history"]] == kinds
    text = run("ticket", "show", held.id)
    assert text.startswith(f"{held.id}: reserved, 1 of general\nmust be paid until ")
    assert "1-4" in text


def test_a_snapshot_now(run: Run, run_json: Run, deployment: list[str]) -> None:
    run("sale", "create", "gig", "--name", "Gig", "--capacity", "9")
    run("snapshot")
    buy(deployment, "confirm", "reserve")
    assert run_json("snapshot") == {"copied": 3}
    assert run("snapshot") == "0 transitions copied.\n"


@pytest.fixture
def tail(deployment: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `holdfast tail`, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "holdfast.http.cli", "tail", *arguments, *deployment]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        assert "following" in process.stderr.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def lines(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_tail_tells_every_transition_as_it_happens(
    run: Run, deployment: list[str], tail: Callable[..., subprocess.Popen[str]]
) -> None:
    run("sale", "create", "gig", "--name", "Gig", "--capacity", "9")
    every, one = tail(), tail("gig", "--from-start")
    assert [each["kind"] for each in lines(one, 1)] == ["sale"]
    run("sale", "create", "other", "--name", "Other", "--capacity", "1")
    assert [(each["sale"], each["kind"]) for each in lines(every, 1)] == [("other", "sale")]
    paid, cancelled = buy(deployment, "confirm", "cancel")
    expected = [(paid.id, "reserved"), (paid.id, "purchased"), (cancelled.id, "reserved"), (cancelled.id, "cancelled")]
    for process in (every, one):
        told = lines(process, 4)
        assert [(each["ticket"], each["kind"]) for each in told] == expected
        assert [(each["epoch"], each["sequence"]) for each in told] == [(1, 2), (1, 3), (1, 4), (1, 5)]
    later = tail("gig", "--after", "1-4")
    assert [each["sequence"] for each in lines(later, 1)] == [5]
    for process in (every, one, later):
        process.terminate()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")


def test_tail_on_a_terminal_is_for_people(run: Run, deployment: list[str], tmp_path: Path) -> None:
    run("sale", "create", "gig", "--name", "Gig", "--capacity", "9")
    (paid,) = buy(deployment, "confirm")
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", "holdfast.http.cli", "tail", "--from-start", *deployment]
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=its_end, stderr=subprocess.DEVNULL, env=environment | {"TERM": "xterm-256color"}
    ) as process:
        os.close(its_end)
        shown = b""
        while b"purchased" not in shown or b"pay_1" not in shown:
            shown += os.read(terminal, 4096)
        process.terminate()
        assert process.wait(20) == 0
    os.close(terminal)
    text = shown.decode()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert re.search(rf"\d\d:\d\d:\d\d\.\d{{3}}  purchased  {paid.id}  1 of general \(pay_1\)  gig 1-3", plain)
    assert "Gig: 9 of general, held 900 s" in plain


def test_a_reader_who_has_gone_is_no_mistake(
    run: Run, tail: Callable[..., subprocess.Popen[str]], deployment: list[str]
) -> None:
    run("sale", "create", "gig", "--name", "Gig", "--capacity", "9")
    process = tail("gig", "--from-start")
    lines(process, 1)
    assert process.stdout is not None
    process.stdout.close()
    buy(deployment, "reserve")
    assert process.stderr is not None
    assert (process.wait(20), process.stderr.read()) == (0, "")


def test_settings_tell_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.toml").write_text(
        '# ours\nhost = "0.0.0.0"\n\ndata-dir = "/srv/one"\nsecret = "s3cret-s3cret-s3cret"\nport = 1\n'
        'trusted_proxy = ["10.0.0.0/8"]\n'
    )
    monkeypatch.setenv("HOLDFAST_CONFIG", "other.toml")
    monkeypatch.setenv("HOLDFAST_DATA_DIR", "/srv/two")
    monkeypatch.setenv("HOLDFAST_OPERATOR_TOKEN", "s3cret-s3cret")
    arguments = ["settings", "--port", "3", "--store", "postgresql://ann:s3cret@db/shop?sslpassword=s3cret&sslmode=on"]
    assert cli.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "s3cret" not in out
    found = {row["setting"]: (row["value"], row["from"]) for row in map(json.loads, out.splitlines())}
    assert found["config"] == ("other.toml", "HOLDFAST_CONFIG")
    assert found["host"] == ("0.0.0.0", "other.toml:2")
    assert found["data_dir"] == ("/srv/two", "HOLDFAST_DATA_DIR")
    assert found["port"] == (3, "flag")
    assert found["secret"] == ("***", "other.toml:5")
    assert found["operator_token"] == ("***", "HOLDFAST_OPERATOR_TOKEN")
    assert found["trusted_proxy"] == (["10.0.0.0/8"], "other.toml:7")
    assert found["store"] == ("postgresql://ann:***@db/shop?sslpassword=***&sslmode=on", "flag")
    assert found["workers"] == (1, "default")
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "s3cret" not in out
    assert "--trusted-proxy" in out


@pytest.mark.parametrize(
    "address",
    ["redis://:s3cret@host/0", "redis://ann:p#s3cret@host", "redis://ann:p@s3cret@host", "redis://ann:p/s3cret@host"],
)
def test_no_part_of_a_password_is_shown(capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert cli.main(["settings", "--redis", address, "--json"]) == 0
    assert "s3cret" not in capsys.readouterr().out


def test_what_is_said_of_a_sale_is_no_setting(run_json: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_CAPACITY", "3")
    monkeypatch.setenv("HOLDFAST_MAX_PER_BUYER", "1")
    made = run_json("sale", "create", "gig", "--name", "Gig", "--capacity", "9")
    assert (made["capacity"], made["max_per_buyer"]) == (9, None)


def test_a_file_that_is_named_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings", "--config", "nowhere.toml"]) == 2
    assert capsys.readouterr().err == "holdfast: There is no settings file nowhere.toml.\n"


def test_a_slip_in_the_directory_is_not_an_empty_shop(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["sale", "list"], ["sale", "create", "gig", "--name", "Gig", "--capacity", "1"], ["snapshot"]):
        assert cli.main([*command, "--data-dir", "slip"]) == 2
        assert "There is no data directory slip" in capsys.readouterr().err
        assert not Path("slip").exists()
