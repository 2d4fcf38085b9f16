"""The description of the API: OpenAPI 3.1, made from the routing table, models, limits and the table of refusals.

Nothing is described here by hand that stands elsewhere: bodies are the models that validate them, statuses those of
`problems.TABLE`, which call has what is in `app.ROUTES`, what it does is said in front of its handler, and examples
are those of `examples.py`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from aiohttp import hdrs, web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema, to_json

from holdfast.engine import Durability, NotReady, OutcomeUnknown, Overloaded, Status, limits

from . import examples
from .answers import Problem
from .bodies import IDEMPOTENCY_KEY_HEADER, PREFER_HEADER, written_response
from .callers import FINGERPRINT_HEADER, TOKEN_HEADER
from .models import BUYER_PATTERN, KEY_PATTERN, CreateSaleBody, ReserveBody, ReserveEntry
from .problems import (
    TYPE_PREFIX,
    BodyTooLarge,
    BuyerTokenRequired,
    InternalError,
    InvalidBody,
    InvalidBuyerToken,
    MalformedJson,
    MalformedRequest,
    OperatorTokenRequired,
    RequestTimeout,
    UnsupportedMediaType,
    kind_of,
)
from .routes import ANYONE, BUYER, OPERATOR, READER, Route

#: Of two fields exactly one; the handlers refuse both and none.
EITHER: Final[Mapping[type, tuple[str, str]]] = {
    CreateSaleBody: ("capacity", "items"),
    ReserveBody: ("quantity", "lines"),
    ReserveEntry: ("quantity", "lines"),
}

#: What a call may be refused with by who calls it.
_REFUSED_CALLERS: Final[Mapping[str, tuple[type[Exception], ...]]] = {
    ANYONE: (),
    OPERATOR: (OperatorTokenRequired,),
    READER: (OperatorTokenRequired, InvalidBuyerToken),
    BUYER: (OperatorTokenRequired, BuyerTokenRequired, InvalidBuyerToken),
}

_SCHEMES: Final[dict[str, dict[str, str]]] = {
    "operator": {"type": "http", "scheme": "bearer", "description": "The operator's token."},
    "buyerToken": {
        "type": "apiKey",
        "in": "header",
        "name": str(TOKEN_HEADER),
        "description": "A JWT (HS256) with sub and exp; required where the server has a key for them.",
    },
    "fingerprint": {
        "type": "apiKey",
        "in": "header",
        "name": str(FINGERPRINT_HEADER),
        "description": f"{limits.FINGERPRINT_CHARS_MIN} to {limits.FINGERPRINT_CHARS_MAX} visible ASCII characters of "
        "the client's choice, kept to itself.",
    },
}

#: By what callers may show who they are; an empty one is nobody in particular.
_SECURITY: Final[Mapping[str, list[dict[str, list[str]]]]] = {
    ANYONE: [{}],
    OPERATOR: [{"operator": []}],
    READER: [{}, {"fingerprint": []}, {"buyerToken": []}, {"operator": []}],
    BUYER: [{}, {"fingerprint": []}, {"buyerToken": []}, {"operator": []}],
}

#: The parameters in paths and queries: what they mean, and their schemas.
_PATH: Final[Mapping[str, tuple[str, dict[str, object]]]] = {
    "sale": ("The id of the sale.", {"type": "string", "pattern": limits.NAME_PATTERN}),
    "ticket": ("The id of the ticket, with the sale's in front.", {"type": "string", "minLength": 1}),
    "name": ("The name of the file.", {"type": "string", "minLength": 1}),
}

_QUERY: Final[Mapping[str, tuple[str, dict[str, object]]]] = {
    "limit": ("Entries of a page; 100 when absent.", {"type": "integer", "minimum": 1, "maximum": limits.PAGE_MAX}),
    "cursor": ("The `next` of the page before.", {"type": "string"}),
    "status": ("Only tickets of this status.", {"type": "string", "enum": [status.value for status in Status]}),
    "buyer": ("For the operator: the buyer that it is about.", {"type": "string", "pattern": BUYER_PATTERN}),
}

#: The chapters of the description by the modules of the handlers, in their order.
_TAGS: Final[Mapping[str, tuple[str, str]]] = {
    "sales": ("sales", "What is sold: made and changed by the operator, seen by everybody."),
    "tickets": ("tickets", "A buyer's claim on units of a sale: reserved, then purchased, cancelled or expired."),
    "batches": ("batches", "Many reservations or payments of many buyers in one call, for gateways."),
    "stream": ("live", "What changes, as it changes."),
    "health": ("operation", "How the server is."),
    "metrics": ("operation", "How the server is."),
    "openapi": ("description", "What you read here."),
    "docs": ("description", "What you read here."),
    "site": ("pages", "Pages for people, and the files that they are made of."),
}

#: The headers of answers that a client acts on.
_LOCATION: Final = {"Location": {"description": "The path of what was made.", "schema": {"type": "string"}}}
_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds, rounded up, where the refusal passes.", "schema": {"type": "integer"}}
}

#: What a status says by itself.
_DESCRIPTIONS: Final[Mapping[int, str]] = {
    201: "Made.",
    202: "Paid, but the durability that was asked for was not reached in time: `durability_pending` names it.",
}

#: What stands in front of the description of a handler: the call that it answers.
_CALL_IN_FRONT: Final = re.compile(r"`[A-Z]+ \S+`:\s*")

_REF: Final = "#/components/schemas/{model}"

#: Answers that are no JSON: text, and files, of which OpenAPI says nothing but the media type.
_RAW: Final[Mapping[Any, dict[str, object]]] = {str: {"type": "string"}, bytes: {}}

#: Where a stream of events is to go on: the id of the last event that was seen.
_LAST_EVENT_ID: Final[dict[str, object]] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The id of the last event that was seen: the stream goes on right after it. 0-0 is the beginning.",
    "schema": {"type": "string", "pattern": r"^\d+-\d+(,\d+-\d+)*$"},
}

#: The description, written.
DOCUMENT: web.AppKey[bytes] = web.AppKey("document", bytes)


class _Schema(GenerateJsonSchema):
    """Schemas without the defaults that only stand for an absent field, and that no caller could send."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        if described.get("default") in ("", 0, -1, []):
            del described["default"]
        return described


async def show(request: web.Request) -> web.Response:
    """`GET /openapi.json`: this description of the API, OpenAPI 3.1."""
    return written_response(request.app[DOCUMENT])


@cache
def written(routes: tuple[Route, ...]) -> bytes:
    """The description of these calls as JSON; made once, which takes as long as many requests."""
    return to_json(document(routes)) + b"\n"


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The description of these calls."""
    routes = tuple(routes)
    types: dict[str, Any] = {Problem.__name__: Problem}
    for route in routes:
        for described in (route.body, route.answer, *(data for _, data in route.events)):
            if described not in (None, *_RAW):
                types[described.__name__] = described
    schemas, shared = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(described)) for name, described in types.items()],
        ref_template=_REF,
        schema_generator=_Schema,
    )
    components = shared["$defs"]
    for (name, _), schema in schemas.items():
        components.setdefault(name, schema)
    for model, fields in EITHER.items():
        if model.__name__ not in components:
            continue
        components[model.__name__]["oneOf"] = [{"required": [field]} for field in fields]
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    used = {_tag(route) for route in routes}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": version("holdfast"),
            "summary": "Scarce things, sold once.",
            "description": "Every refusal is explained at [/docs/errors](/docs/errors).",
        },
        "paths": paths,
        "tags": [{"name": name, "description": text} for name, text in dict(_TAGS.values()).items() if name in used],
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _tag(route: Route) -> str:
    """The chapter that a call stands in."""
    module = route.handler.__module__.rpartition(".")[2]
    return _TAGS[module][0]


def told(described: object) -> str:
    """What a docstring tells those who do not read the code: what stands before its sections, a line a paragraph."""
    text = re.split(r"\n\n(?:Parameters|Raises|Attributes|Returns)\n---", inspect.getdoc(described) or "")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _operation(route: Route) -> dict[str, object]:
    name = route.handler.__name__
    text = _CALL_IN_FRONT.sub("", told(route.handler), count=1)
    first = re.split(r"[.:;](?=\s|$)", text)[0]
    operation: dict[str, object] = {
        "operationId": name,
        "summary": first[:1].upper() + first[1:],
        "description": text[:1].upper() + text[1:],
        "tags": [_tag(route)],
        "security": _SECURITY[route.who],
        "parameters": [*_parameters(route)],
        "responses": _responses(route),
    }
    if route.body is not None:
        described = {
            "schema": {"$ref": _REF.format(model=route.body.__name__)},
            "example": examples.BODIES[route.body],
        }
        operation["requestBody"] = {
            "required": not route.may_be_empty,
            "content": dict.fromkeys(sorted(route.media_types), described),
            "description": f"At most {route.bytes_max} bytes.",
        }
    return operation


def _parameters(route: Route) -> Iterable[dict[str, object]]:
    for name, (text, schema) in _PATH.items():
        if f"{{{name}}}" in route.path:
            yield {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
    for name in route.query:
        text, schema = _QUERY[name]
        yield {"name": name, "in": "query", "description": text, "schema": schema}
    if route.keyed:
        yield {
            "name": str(IDEMPOTENCY_KEY_HEADER),
            "in": "header",
            "description": "Names the operation: the same key again gets the same success, and nothing is done twice.",
            "schema": {"type": "string", "pattern": KEY_PATTERN},
        }
    if route.resumes:
        yield _LAST_EVENT_ID
    if route.prefers:
        yield {
            "name": str(PREFER_HEADER),
            "in": "header",
            "description": "What the payment is to survive before it is answered.",
            "schema": {"type": "string", "enum": [f"durability={level.value}" for level in Durability]},
        }


def _responses(route: Route) -> dict[str, object]:
    answered: dict[str, object] = {
        "schema": _RAW.get(route.answer, {"$ref": _REF.format(model=route.answer.__name__)}),
    }
    example = examples.ANSWERS.get(route.handler.__name__)
    if example is not None:
        answered["example"] = example
    description = "Done."
    if route.events:
        # OpenAPI has no word for what the events of a stream are: their types are named where people read.
        events = ", ".join(f"`{name}` with the data of `{data.__name__}`" for name, data in route.events)
        description = f"Events, until either side ends it: {events}."
    responses: dict[str, object] = {
        str(status): {
            "description": _DESCRIPTIONS.get(status, description),
            "content": {route.media_type: answered},
            **({"headers": _LOCATION} if status == 201 else {}),
        }
        for status in route.statuses
    }
    by_status: dict[int, dict[str, type[Exception]]] = {}
    for error in refusals(route):
        by_status.setdefault(kind_of(error).status, {}).setdefault(error.code, error)  # type: ignore[attr-defined]
    for status, several in sorted(by_status.items()):
        codes = sorted(several)
        shown = {
            code: {"summary": kind_of(several[code]).title, "value": examples.refusal(several[code])} for code in codes
        }
        refused = {
            "schema": {
                "allOf": [
                    {"$ref": _REF.format(model=Problem.__name__)},
                    {"properties": {"code": {"enum": codes}, "status": {"const": status}}},
                ]
            },
            "examples": shown,
        }
        waits = any("retry_after_ms" in each["value"] for each in shown.values())
        responses[str(status)] = {
            "description": ", ".join(f"[{code}]({TYPE_PREFIX}{code})" for code in codes),
            "content": {"application/problem+json": refused},
            **({"headers": _RETRY_AFTER} if waits else {}),
        }
    return responses


def refusals(route: Route) -> Iterable[type[Exception]]:
    """Everything that this call may be refused with."""
    yield from route.refusals
    yield from _REFUSED_CALLERS[route.who]
    yield from (MalformedRequest, InternalError, Overloaded)
    if route.who == ANYONE:
        return
    yield from (InvalidBody, NotReady, OutcomeUnknown)
    if route.body is not None:
        yield from (MalformedJson, UnsupportedMediaType)
    if route.method != hdrs.METH_GET:
        yield from (BodyTooLarge, RequestTimeout, MalformedJson)
