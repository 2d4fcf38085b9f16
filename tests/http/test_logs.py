"""The log: what a line says, in both formats, and what never stands in one."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from holdfast.engine import ConfigurationError, Engine
from holdfast.http.logs import FIELDS, REQUEST, JsonFormatter, TextFormatter, set_up_logging
from holdfast.http.settings import ServeSettings

from .conftest import OPERATOR_TOKEN, Clients


def record(message: str = "it is %s", *args: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("holdfast.x", logging.WARNING, __file__, 1, message, args or ("so",), None)
    made.__dict__.update(more)
    return made


def test_a_line_of_json() -> None:
    line = json.loads(JsonFormatter("worker 2").format(record("it is %s\n", "s\u00f6")))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "warning", "logger": "holdfast.x", "message": "it is s\u00f6\n", "worker": "worker 2"}


def test_an_exception_is_a_field_and_the_line_stays_one() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        made = record(exc_info=sys.exc_info())
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "Traceback" in json.loads(line)["exception"]
    assert "worker" not in json.loads(line)


def test_nothing_is_shown_that_is_not_meant_to_be() -> None:
    line = json.loads(JsonFormatter().format(record(token="secret", **{FIELDS: {"status": 200}})))
    assert set(line) == {"time", "level", "logger", "message", "status"}


def test_a_line_names_the_request_that_caused_it() -> None:
    token = REQUEST.set("r-1")
    try:
        assert json.loads(JsonFormatter().format(record()))["request_id"] == "r-1"
        assert (
            TextFormatter("worker 1").format(record()).endswith(" WARNING worker 1 holdfast.x: it is so [request r-1]")
        )
        assert TextFormatter().format(record("request %s failed", "r-1")).endswith(": request r-1 failed")
    finally:
        REQUEST.reset(token)
    assert "request" not in TextFormatter().format(record())


def test_the_log_is_set_up_anew(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    set_up_logging("", "json", "critical")
    assert (root.handlers, root.level) == (before, level), "somebody else has set it up"
    root.handlers.clear()
    try:
        set_up_logging("worker 1")
        set_up_logging("worker 1", "json", "error")
        logging.getLogger("holdfast.x").warning("not this")
        logging.getLogger("holdfast.x").error("this")
        logging.getLogger("holdfast.access").info("and this")
        lines = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
        assert lines == ["this", "and this"]
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize(("setting", "value"), [("log_format", "yaml"), ("log_level", "loud")])
def test_what_cannot_be_a_setting(setting: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--{setting.replace('_', '-')} must be one of .*, not '{value}'"):
        ServeSettings(**{setting: value})  # type: ignore[arg-type]


# The log of requests --------------------------------------------------------------------------------------------------

SECRETS = ("buyer-of-secrets", "pay-secret-1", OPERATOR_TOKEN, "key-secret-1")


async def test_requests_are_logged_on_both_ways_without_secrets(
    clients: Clients, gig: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "holdfast.access")
    client = await clients(access_log=True)
    who = {"X-Buyer-Fingerprint": "buyer-of-secrets", "Idempotency-Key": "key-secret-1", "X-Request-Id": "r-7"}
    made = await client.post(f"/sales/{gig}/tickets", json={"quantity": 1}, headers=who)
    ticket = (await made.json())["id"]
    pay = f"/tickets/{ticket}/payment"
    await client.post(pay, json={"reference": "pay-secret-1"}, headers=who)
    await client.post(pay, json={"reference": "pay-secret-1"}, headers=who | {"Idempotency-Key": "another"})
    await client.post(f"/sales/{gig}/tickets", json={"quantity": 100}, headers=who | {"Idempotency-Key": "another"})
    operator = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    await client.get(f"/tickets/{ticket}?secret=1", headers=operator)
    await client.request("PURGE", f"/tea/{ticket}")
    await client.request("BREW", f"/coffee/{ticket}")
    lines = [json.loads(JsonFormatter().format(each)) for each in caplog.records if each.name == "holdfast.access"]
    told = [tuple(line[name] for name in ("method", "route", "status", "outcome")) for line in lines]
    assert told == [
        ("POST", "/sales/{sale}/tickets", 201, "ok"),
        ("POST", "/tickets/{ticket}/payment", 200, "ok"),
        ("POST", "/tickets/{ticket}/payment", 409, "already_purchased"),
        ("POST", "/sales/{sale}/tickets", 409, "limit_reached"),
        ("GET", "/tickets/{ticket}", 422, "invalid_request"),
        ("other", "", 404, "unknown_route"),
        ("other", "", 400, "malformed_request"),
    ]
    assert [line["request_id"] for line in lines[:4]] == ["r-7"] * 4
    assert all(0 < line["duration_ms"] < 10_000 for line in lines[:-1])
    text = "\n".join(map(json.dumps, lines))
    assert [secret for secret in (*SECRETS, ticket) if secret in text] == []


async def test_requests_are_not_logged_by_default(client: Any, gig: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await client.post(f"/sales/{gig}/tickets", json={"quantity": 1})
    await client.get(f"/sales/{gig}")
    assert [each for each in caplog.records if each.name == "holdfast.access"] == []


async def test_what_the_engine_logs_for_a_request_names_it(
    client: Any, gig: str, engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        logging.getLogger("holdfast.engine").error("deep down")
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "sale", broken)
    formatter = TextFormatter()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda each: lines.append(formatter.format(each))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        assert (await client.get(f"/sales/{gig}", headers={"X-Request-Id": "r-9"})).status == 500
    finally:
        logging.getLogger().removeHandler(handler)
    assert any(line.endswith("holdfast.engine: deep down [request r-9]") for line in lines)
