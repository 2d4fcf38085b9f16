"""The description of the API: OpenAPI 3.1, made from the routing table, models, limits and the table of refusals.

Nothing is described here by hand that stands elsewhere: bodies are the models that validate them, statuses those of
`problems.TABLE`, and which call has what is in `app.ROUTES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from aiohttp import hdrs, web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema, to_json

from holdfast.engine import Durability, NotReady, OutcomeUnknown, Overloaded, Status, limits

from .answers import Problem
from .bodies import IDEMPOTENCY_KEY_HEADER, PREFER_HEADER, written_response
from .callers import FINGERPRINT_HEADER, TOKEN_HEADER
from .models import BUYER_PATTERN, KEY_PATTERN, CreateSaleBody, ReserveBody, ReserveEntry
from .problems import (
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

_PATH: Final[Mapping[str, dict[str, object]]] = {
    "sale": {"type": "string", "pattern": limits.NAME_PATTERN},
    "ticket": {"type": "string", "minLength": 1},
}

_QUERY: Final[Mapping[str, dict[str, object]]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": limits.PAGE_MAX},
    "cursor": {"type": "string"},
    "status": {"type": "string", "enum": [status.value for status in Status]},
    "buyer": {"type": "string", "pattern": BUYER_PATTERN},
}

_REF: Final = "#/components/schemas/{model}"

#: Answers that are no JSON: text, and files, of which OpenAPI says nothing but the media type.
_RAW: Final[Mapping[Any, dict[str, str]]] = {str: {"type": "string"}, bytes: {}}

#: Where a stream of events is to go on: the id of the last event that was seen.
_LAST_EVENT_ID: Final[dict[str, object]] = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "string", "pattern": r"^\d+-\d+$"},
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
    """`GET /openapi.json`."""
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
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": version("holdfast"), "summary": "Scarce things, sold once."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _operation(route: Route) -> dict[str, object]:
    name = route.handler.__name__
    operation: dict[str, object] = {
        "operationId": name,
        "summary": name.replace("_", " ").capitalize(),
        "security": _SECURITY[route.who],
        "parameters": [*_parameters(route)],
        "responses": _responses(route),
    }
    if route.body is not None:
        schema = {"$ref": _REF.format(model=route.body.__name__)}
        operation["requestBody"] = {
            "required": not route.may_be_empty,
            "content": {media_type: {"schema": schema} for media_type in sorted(route.media_types)},
            "description": f"At most {route.bytes_max} bytes.",
        }
    return operation


def _parameters(route: Route) -> Iterable[dict[str, object]]:
    for name, schema in _PATH.items():
        if f"{{{name}}}" in route.path:
            yield {"name": name, "in": "path", "required": True, "schema": schema}
    for name in route.query:
        yield {"name": name, "in": "query", "schema": _QUERY[name]}
    if route.keyed:
        schema = {"type": "string", "pattern": KEY_PATTERN}
        yield {"name": str(IDEMPOTENCY_KEY_HEADER), "in": "header", "schema": schema}
    if route.resumes:
        yield _LAST_EVENT_ID
    if route.prefers:
        schema = {"type": "string", "enum": [f"durability={level.value}" for level in Durability]}
        yield {"name": str(PREFER_HEADER), "in": "header", "schema": schema}


def _responses(route: Route) -> dict[str, object]:
    raw = _RAW.get(route.answer)
    schema = {"$ref": _REF.format(model=route.answer.__name__)} if raw is None else raw
    description = "Done."
    if route.events:
        # OpenAPI has no word for what the events of a stream are: their types are named where people read.
        events = ", ".join(f"`{name}` with the data of `{data.__name__}`" for name, data in route.events)
        description = f"Events, until either side ends it: {events}."
    responses: dict[str, object] = {
        str(status): {"description": description, "content": {route.media_type: {"schema": schema}}}
        for status in route.statuses
    }
    codes: dict[int, set[str]] = {}
    for error in _refusals(route):
        codes.setdefault(kind_of(error).status, set()).add(error.code)  # type: ignore[attr-defined]
    for status, several in sorted(codes.items()):
        refusal = {
            "allOf": [
                {"$ref": _REF.format(model=Problem.__name__)},
                {"properties": {"code": {"enum": sorted(several)}, "status": {"const": status}}},
            ]
        }
        responses[str(status)] = {
            "description": ", ".join(sorted(several)),
            "content": {"application/problem+json": {"schema": refusal}},
        }
    return responses


def _refusals(route: Route) -> Iterable[type[Exception]]:
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
