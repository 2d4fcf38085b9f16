"""The description of the API: valid, complete, and what serves."""

from __future__ import annotations

import json
import re
from typing import Any

from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from holdfast.http import answers, examples, health
from holdfast.http.app import ROUTES
from holdfast.http.openapi import document
from holdfast.http.problems import TABLE
from holdfast.http.routes import APPLICATION_JSON, EVENT_STREAM, Route

#: Said where there is no call.
NOWHERE = {"method_not_allowed"}


async def test_it_is_served_to_anybody_and_valid(client: Any) -> None:
    answer = await client.get("/openapi.json")
    assert answer.status == 200
    described = await answer.json()
    validate(described)
    assert described == json.loads(json.dumps(document(ROUTES)))
    assert described["openapi"].startswith("3.1")
    assert set(described["components"]["securitySchemes"]) == {"operator", "buyerToken", "fingerprint"}


def test_every_call_and_every_refusal_is_in_it() -> None:
    described = document(ROUTES)
    calls = [f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods]
    assert sorted(calls) == sorted(f"{route.method} {route.path}" for route in ROUTES)
    ids = [operation["operationId"] for methods in described["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    said = set(re.findall(r"[a-z_]+", " ".join(map(str, _codes(described)))))
    assert said == {error.code for error in TABLE} - NOWHERE  # type: ignore[attr-defined]


def _codes(described: Any) -> list[str]:
    return [
        code
        for methods in described["paths"].values()
        for operation in methods.values()
        for response in operation["responses"].values()
        for content in response["content"].values()
        for part in content["schema"].get("allOf", ())
        for code in part.get("properties", {}).get("code", {}).get("enum", ())
    ]


def test_defaults_are_those_that_a_caller_could_send() -> None:
    schemas = document(ROUTES)["components"]["schemas"]
    fields = schemas["CreateSaleBody"]["properties"]
    assert fields["hold_ms"]["default"] == 900_000
    assert "default" not in fields["id"]
    assert "default" not in fields["capacity"]
    assert "default" not in schemas["ReserveBody"]["properties"]["lines"]


def test_a_stream_is_described_with_its_media_type_and_its_events() -> None:
    events = (("counts", answers.SaleAnswer), ("transition", answers.TicketAnswer))
    route = Route("GET", "/live", health.healthz, str, media_type=EVENT_STREAM, events=events, resumes=True)
    described = document([route])
    validate(described)
    operation = described["paths"]["/live"]["get"]
    answer = operation["responses"]["200"]
    assert answer["content"]["text/event-stream"]["schema"] == {"type": "string"}
    assert "`transition` with the data of `TicketAnswer`" in answer["description"]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["Last-Event-ID"]
    assert {"SaleAnswer", "TicketAnswer"} <= set(described["components"]["schemas"])


def test_every_call_says_what_it_does() -> None:
    described = document(ROUTES)
    chapters = [tag["name"] for tag in described["tags"]]
    for methods in described["paths"].values():
        for operation in methods.values():
            assert operation["summary"], operation
            assert operation["description"].startswith(operation["summary"])
            assert "`" not in operation["summary"]
            assert "----" not in operation["description"]
            assert set(operation["tags"]) <= set(chapters)
            assert all(parameter["description"] for parameter in operation["parameters"])
    assert len(set(chapters)) == len(chapters)


def test_every_example_is_one() -> None:
    """Of each body by its model, of each answer and refusal by its schema: a body is read by what reads them."""
    for route in ROUTES:
        if route.body is not None:
            route.body.model_validate_json(json.dumps(examples.BODIES[route.body]))
    described = document(ROUTES)
    registry = Registry().with_resource("urn:x", Resource(described, DRAFT202012))
    seen = 0
    for methods in described["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                for media_type, content in response["content"].items():
                    shown = [content["example"]] if "example" in content else []
                    shown += [each["value"] for each in content.get("examples", {}).values()]
                    assert shown or media_type != "application/problem+json"
                    for example in shown:
                        Draft202012Validator(_at_home(content["schema"]), registry=registry).validate(example)
                        seen += 1
    assert seen > 100


def _at_home(schema: Any) -> Any:
    """A schema whose references lead into the registered document."""
    if isinstance(schema, dict):
        return {name: f"urn:x{value}" if name == "$ref" else _at_home(value) for name, value in schema.items()}
    return [*map(_at_home, schema)] if isinstance(schema, list) else schema


def test_there_is_an_example_of_every_refusal_and_of_every_answer_in_json() -> None:
    assert set(examples.REFUSALS) == set(TABLE)
    assert set(examples.BODIES) == {route.body for route in ROUTES if route.body is not None}
    names = {route.handler.__name__ for route in ROUTES if route.media_type == APPLICATION_JSON}
    assert names - set(examples.ANSWERS) == {"show"}  # the description itself
    assert set(examples.ANSWERS) <= names
