"""What deploy/ watches with: a real Prometheus scrapes a real server and runs every query of dashboard and alerts.

Grafana itself is not here; its dashboard is checked for the fields that it relies on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from holdfast.http.metrics import METRICS

from .test_docs import anchors, rows

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
PAGE = (ROOT / "docs" / "metrics.md").read_text()

DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "holdfast.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]

#: Seconds in which what is awaited must have come.
PATIENCE = 40

#: What Grafana puts in the place of its variables.
VARIABLES = {"$__rate_interval": "15s", "$instance": ".*", "$sale": ".*"}


def needs(program: str) -> Any:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program} on this machine")


def query_of(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


QUERIES = {
    f"{panel['title']}, {target['refId']}": query_of(target["expr"]) for panel in PANELS for target in panel["targets"]
}


# The list of metrics --------------------------------------------------------------------------------------------------


def test_every_metric_is_documented_and_no_other() -> None:
    documented = {
        row[0].strip("`"): (row[1], tuple(re.findall(r"`(\w+)`", row[2])), row[3])
        for row in rows(PAGE)
        if row[0].startswith("`holdfast_")
    }
    assert documented == {each.shown: (each.kind, each.labels, each.help.rstrip(".")) for each in METRICS}


def test_names_have_their_units_and_kinds() -> None:
    for each in METRICS:
        assert re.fullmatch(r"holdfast_[a-z_]+", each.name)
        assert not each.name.endswith(("_total", "_ms", "_percent")), each.name
        assert (each.kind == "histogram") == bool(each.bounds), each.name
        assert list(each.bounds) == sorted(set(each.bounds)), each.name


def test_every_question_on_the_page_is_about_metrics_that_there_are() -> None:
    asked = [row[1].strip("`") for row in rows(PAGE) if len(row) == 2 and "holdfast_" in row[1]]
    assert len(asked) == 5
    assert {name for question in asked for name in named(question)} <= NAMES


def samples() -> Iterator[str]:
    for each in METRICS:
        yield from (
            (f"{each.name}{end}" for end in ("_bucket", "_count", "_sum")) if each.kind == "histogram" else [each.shown]
        )


NAMES = set(samples())


def named(expression: str) -> set[str]:
    return set(re.findall(r"\bholdfast_\w+", expression))


# Dashboard ------------------------------------------------------------------------------------------------------------


def test_the_dashboard_is_one() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("holdfast", "Holdfast")
    assert DASHBOARD["schemaVersion"] >= 36
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["type"] in ("timeseries", "stat", "bargauge")
        assert panel["fieldConfig"]["defaults"]["unit"] in ("short", "s", "bytes", "percentunit", "reqps")
        assert panel["options"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            # What a legend names has to be in the result.
            assert all(label in target["expr"] for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance", "sale"}
    assert variables["datasource"]["type"] == "datasource"


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = {name for query in QUERIES.values() for name in named(query)}
    assert shown <= NAMES
    roots = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    assert {each.shown for each in METRICS} - roots == {"holdfast_build_info"}


def test_grafana_finds_its_files() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "holdfast.yml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    mounted = {
        tuple(volume.split(":")[:2]) for service in ("grafana", "prometheus") for volume in services[service]["volumes"]
    }
    assert ("./deploy/grafana/dashboards", provider["options"]["path"]) in mounted
    assert ("./deploy/grafana/provisioning", "/etc/grafana/provisioning") in mounted
    for local, _ in mounted:
        assert not local.startswith("./") or (ROOT / local).exists(), local
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/holdfast.json"
    assert source["url"] == "http://prometheus:9090"
    scrape = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    (job,) = scrape["scrape_configs"]
    command = services["prometheus"]["entrypoint"][-1]
    assert f"> {job['authorization']['credentials_file']}" in command
    (target,) = job["static_configs"][0]["targets"]
    servers = [service for service in services.values() if "build" in service]
    assert [target] * 3 == [f"{service['networks']['default']['aliases'][0]}:8080" for service in servers]


# Alerts ---------------------------------------------------------------------------------------------------------------


@needs("promtool")
def test_alerts_fire_when_they_should_and_not_before() -> None:
    for command in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        done = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_where_to_read_on() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for alert in ALERTS:
        expected = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert["alert"]]
        assert set(expected) == {True, False}, alert["alert"]
        assert alert["labels"]["severity"] in ("critical", "warning")
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert anchor in anchors((ROOT / page).read_text()), alert["alert"]
        assert alert["annotations"]["summary"]
        assert named(alert["expr"]) <= NAMES


# In earnest -----------------------------------------------------------------------------------------------------------


class Prometheus:
    """A Prometheus of our own on the configuration in deploy/, with other addresses and less patience."""

    def __init__(self, home: Path, target: str, token: str) -> None:
        (home / "token").write_text(token)
        shutil.copy(PROMETHEUS / "alerts.yml", home)
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        job["authorization"]["credentials_file"] = str(home / "token")
        job["static_configs"] = [{"targets": [target]}]
        self.config = home / "prometheus.yml"
        self.config.write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self.config}",
                f"--storage.tsdb.path={home / 'data'}",
                f"--web.listen-address={self._address}",
                "--log.level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def get(self, path: str, **parameters: str) -> Any:
        """What it answers; an AssertionError with its words when that is an error."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://{self._address}/api/v1/{path}?{query}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise  # it does not answer yet
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def until(self, condition: Callable[[], Any]) -> Any:
        give_up = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, "prometheus has ended"
            try:
                if found := condition():
                    return found
            except OSError:
                pass  # it does not listen or answer yet
            assert time.monotonic() < give_up, "it did not come"
            time.sleep(0.1)

    def value(self, query: str) -> list[Any]:
        found: list[Any] = self.get("query", query=query)["result"]
        return found

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def holdfast(tmp_path: Path) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """A server with two workers: its address, the operator's token, and its process."""
    command = [sys.executable, "-m", "holdfast.http.cli", "serve", "--demo", "--port", "0", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "data")],
        env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        printed = ""
        while "Try it" not in printed:
            line = process.stdout.readline()
            assert line, "the server ended at once"
            printed += line
        address = re.search(r"http://(\S+)", printed)
        token = re.search(r"operator token: (\S+)", printed)
        assert address
        assert token
        yield address[1], token[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        process.stdout.close()


def call(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://{address}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} | headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@needs("prometheus")
@needs("promtool")
@pytest.mark.timeout(150)
def test_every_query_of_dashboard_and_alerts_finds_something(
    holdfast: tuple[str, str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, token, _ = holdfast
    prometheus = Prometheus(tmp_path, address, token)
    try:
        checked = subprocess.run(["promtool", "check", "config", prometheus.config], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        for at in range(5):
            buyer = {"X-Buyer-Fingerprint": f"buyer-{at:08}"}
            status, ticket = call(address, "POST", "/sales/demo/tickets", {"quantity": 1}, **buyer)
            assert status == 201
            ending = "POST" if at else "DELETE"
            assert call(address, ending, f"/tickets/{json.loads(ticket)['id']}/payment", **buyer)[0] == 200
            assert call(address, "POST", "/sales/demo/tickets", {"quantity": 4}, **buyer)[0] == (409 if at else 201)
            call(address, "GET", "/sales/demo")
        _, page = call(address, "GET", "/metrics", Authorization=f"Bearer {token}")
        # As a person reads it: what is emitted is what is documented.
        emitted = {family.name for family in text_string_to_metric_families(page)}
        assert emitted == {each.name for each in METRICS}

        (reserved,) = prometheus.until(
            lambda: [
                each
                for each in prometheus.value('sum(holdfast_outcomes_total{call="reserve",outcome="ok",sale="demo"})')
                if each["value"][1] == "6"
            ]
        )
        assert reserved
        missing = dict(QUERIES)

        def all_found() -> bool:
            for title, query in list(missing.items()):
                if prometheus.value(query):
                    del missing[title]
            return not missing

        try:
            prometheus.until(all_found)
        except AssertionError:
            raise AssertionError(f"these found nothing: {missing}") from None
        for row in rows(PAGE):
            if len(row) == 2 and "holdfast_" in row[1]:
                assert prometheus.value(row[1].strip("`")), row
        for variable in DASHBOARD["templating"]["list"]:
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", str(variable.get("definition")))
            if match:
                assert prometheus.get(f"label/{match[2]}/values", **{"match[]": match[1]})
        # Those of the alerts find nothing, and are evaluated without a mistake.
        found = prometheus.until(
            lambda: (
                all(rule["health"] == "ok" for rule in rules)
                if len(rules := prometheus.get("rules")["groups"][0]["rules"]) == len(ALERTS)
                else None
            )
        )
        assert found
        assert {alert["alert"] for alert in ALERTS if prometheus.value(alert["expr"])} == set()
        (target,) = prometheus.get("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
    finally:
        prometheus.stop()
