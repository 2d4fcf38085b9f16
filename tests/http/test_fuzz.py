"""Every call of the API with what its description allows, and with what it does not, against a server process.

Seeded: the same requests each time. `HOLDFAST_EXAMPLES=500` for a longer run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from holdfast.http.app import ROUTES
from holdfast.http.openapi import document
from holdfast.http.routes import EVENT_STREAM

#: Requests of each kind to each call.
EXAMPLES = int(os.environ.get("HOLDFAST_EXAMPLES", "8"))

TOKEN = "operator-token-for-tests"
DOCUMENT = document(ROUTES)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
BUYERS = ("buyer-ann", "buyer-bob")
#: A stream has no end that a client of this kind could wait for: it has tests of its own.
CALLS = [f"{route.method} {route.path}" for route in ROUTES if route.media_type != EVENT_STREAM]
CALLERS: tuple[dict[str, str], ...] = (
    {"Authorization": f"Bearer {TOKEN}"},
    {"X-Buyer-Fingerprint": BUYERS[0]},
    {"X-Buyer-Fingerprint": BUYERS[1]},
    {},
)


class Api:
    """A server process with a sale and a ticket of each status."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.session = requests.Session()
        schema = schemathesis.openapi.from_dict(DOCUMENT)
        schema.config.update(base_url=address)
        operations = [each.ok() for each in schema.get_all_operations()]
        self.operations = {f"{each.method.upper()} {each.path}": each for each in operations}
        self.tickets = ["gig.x", "%00"]
        operator = {"Authorization": f"Bearer {TOKEN}"}
        sale = {"id": "gig", "name": "Gig", "capacity": 10_000_000, "hold_ms": 3_600_000}
        assert self._call("POST", "/sales", sale, **operator).status_code == 201
        brief = {"id": "brief", "name": "Brief", "capacity": 10, "hold_ms": 1}
        assert self._call("POST", "/sales", brief, **operator).status_code == 201
        for ending in ("POST", "DELETE", None):
            ticket = self.reserve()
            if ending:
                assert self._call(ending, f"/tickets/{ticket}/payment", None, **CALLERS[1]).status_code == 200
            self.tickets.append(ticket)
        self.tickets.append(self.reserve("brief"))

    def reserve(self, sale: str = "gig") -> str:
        """A ticket that the first buyer holds."""
        answer = self._call("POST", f"/sales/{sale}/tickets", {"quantity": 1}, **CALLERS[1])
        return str(answer.json()["id"])

    def _call(self, method: str, path: str, body: Any, **headers: str) -> requests.Response:
        return self.session.request(method, self.address + path, json=body, headers=headers, timeout=20)


@pytest.fixture(scope="module")
def api(tmp_path_factory: Any) -> Iterator[Api]:
    directory: Path = tmp_path_factory.mktemp("fuzz")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    with (
        open(directory / "errors.log", "w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "holdfast.http.cli", "serve", "--port", "0"],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env=environment | {"HOLDFAST_OPERATOR_TOKEN": TOKEN},
        ) as running,
    ):
        assert running.stdout is not None
        address = next(line for line in running.stdout if "serves on" in line).split()[-1]
        api = Api(address)
        yield api
        api.session.close()
        running.terminate()
        running.stdout.read()
    assert "Traceback" not in (directory / "errors.log").read_text().replace("aiohttp.http_exceptions", "")


@pytest.mark.timeout(60 + 10 * EXAMPLES)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "not allowed"])
@pytest.mark.parametrize("call", CALLS)
def test_every_answer_is_one_that_is_described(api: Api, call: str, mode: GenerationMode) -> None:
    operation = api.operations[call]

    @seed(1)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, print_blob=False, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def run(data: Any) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        known = {
            "sale": st.sampled_from(("gig", "brief")),
            "ticket": st.sampled_from(api.tickets),
            "name": st.sampled_from(("docs.css", "viewer.js", "base.css", "shop.js")),
        }
        headers = data.draw(st.sampled_from(CALLERS))
        for name in case.path_parameters or {}:
            # What exists is asked for more often than chance would.
            if data.draw(st.booleans()):
                case.path_parameters[name] = data.draw(known[name])
        if call.endswith("/payment") and data.draw(st.booleans()):
            # One that can be paid or cancelled, by who holds it.
            headers = CALLERS[1]
            case.path_parameters["ticket"] = api.reserve()
        response = case.call(headers=headers, session=api.session, timeout=20)
        case.validate_response(response, checks=CHECKS)

    try:
        run()
    except Unsatisfiable:
        # Any string may be the id of a ticket that does not exist: there is nothing to get wrong.
        assert mode is GenerationMode.NEGATIVE
