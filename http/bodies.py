"""How requests are read (body, query, idempotency key) and answers written: the bytes, not what they mean."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TypeVar

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import istr
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from holdfast.engine import Durability, InvalidRequest, limits

from .context import Headers
from .models import Body, pointer, sentence
from .problems import BodyTooLarge, InvalidBody, MalformedJson, RequestTimeout, UnsupportedMediaType

B = TypeVar("B", bound=Body)

#: Bytes of a body: fifty lines of the longest skus fit in.
BODY_BYTES_MAX = 8 * 1024

#: Bytes of the body of a batch call: 500 entries of 524 bytes, or fewer with longer names or more lines.
BATCH_BYTES_MAX = 256 * 1024

#: Mistakes of a body that are named: more than fit into a single call, and fewer than a megabyte of them.
MISTAKES_MAX = 2_000

#: Seconds in which a body must arrive. It fits into a few packets: who needs longer only holds a connection.
BODY_SECONDS_MAX = 10.0

#: The media types that a body may have, and those of a merge patch.
JSON = frozenset({"application/json"})
MERGE_PATCH = frozenset({"application/json", "application/merge-patch+json"})

IDEMPOTENCY_KEY_HEADER = istr("Idempotency-Key")

#: RFC 7240: what a payment is to survive, and that it does.
PREFER_HEADER = istr("Prefer")
PREFERENCE_APPLIED_HEADER = istr("Preference-Applied")

#: One preference of RFC 7240 with its value; its parameters are passed over.
_PREFERENCE = re.compile(
    r"""(?:^|,)\s*(?P<name>[\w!#$%&'*+.^`|~-]+)\s*(?:=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s",;]*)))?"""
    r"""(?:[^",]|"(?:[^"\\]|\\.)*")*"""
)

_DURABILITIES = frozenset(Durability)

_KEY = re.compile(rf"[\x21-\x7e]{{1,{limits.KEY_CHARS_MAX}}}")

# State changes from one moment to the next, and a buyer's tickets are nobody else's: no cache may keep an answer.
_JSON_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


# In -------------------------------------------------------------------------------------------------------------------


async def read_body(request: web.Request, *, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The whole body, which may be empty.

    Raises
    ------
    BodyTooLarge: it says so or turns out to be.
    MalformedJson: it broke off, or was not framed as announced.
    RequestTimeout: it did not arrive in `BODY_SECONDS_MAX`.
    """
    announced = request.content_length
    if announced is not None and announced > bytes_max:
        raise _too_large(bytes_max)
    content = request.content
    if content.is_eof():
        # The usual case: a small body came with its headers, and nothing needs a timer.
        return await _drain(request, bytes_max)
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            return await _drain(request, bytes_max)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {BODY_SECONDS_MAX:.0f} seconds.", closes=True) from None


async def _drain(request: web.Request, bytes_max: int) -> bytes:
    content = request.content
    pieces: list[bytes] = []
    size = 0
    try:
        while size <= bytes_max and not (pieces and content.at_eof()):
            pieces.append(await content.readany())
            size += len(pieces[-1])
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise MalformedJson("The body did not arrive as it was announced.", closes=True) from error
    if size > bytes_max:
        raise _too_large(bytes_max)
    return b"".join(pieces)


def _too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body of this call may have {bytes_max} bytes at most.", closes=True)


async def read_model(
    request: web.Request,
    model: type[B],
    *,
    media_types: frozenset[str] = JSON,
    may_be_empty: bool = False,
    bytes_max: int = BODY_BYTES_MAX,
) -> B:
    """The body as a model: size, then media type, then JSON, then the fields.

    Raises
    ------
    BodyTooLarge, RequestTimeout: as `read_body`.
    UnsupportedMediaType: it is not JSON by its own description.
    MalformedJson: it is no JSON, or empty where one is needed.
    InvalidBody: its fields are wrong; all that are wrong are named.
    """
    return parse_model(
        await read_body(request, bytes_max=bytes_max),
        request.headers,
        model,
        media_types=media_types,
        may_be_empty=may_be_empty,
    )


def parse_model(
    raw: bytes, headers: Headers, model: type[B], *, media_types: frozenset[str] = JSON, may_be_empty: bool = False
) -> B:
    """A body that has arrived as a model; raises as `read_model`, but for size and time."""
    if not raw:
        if may_be_empty:
            return model()
        raise MalformedJson("The body is empty; this call needs a JSON object.")
    media_type = headers.get(hdrs.CONTENT_TYPE)
    if media_type not in media_types:
        _require_media_type(media_type, media_types)
    if hdrs.CONTENT_ENCODING in headers:
        _require_no_encoding(headers[hdrs.CONTENT_ENCODING])
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _refused(raw, error) from None


def _require_media_type(sent: str | None, media_types: frozenset[str]) -> None:
    essence, _, parameters = (sent or "").partition(";")
    if essence.strip().lower() in media_types:
        name, _, charset = parameters.partition("=")
        if not parameters.strip() or name.strip().lower() != "charset" or charset.strip(' "').lower() == "utf-8":
            return
    raise UnsupportedMediaType(
        f"The body must be sent as {' or '.join(sorted(media_types))} (in UTF-8).",
        headers={"Accept-Patch" if len(media_types) > 1 else "Accept": ", ".join(sorted(media_types))},
    )


def _require_no_encoding(sent: str) -> None:
    if sent.strip().lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed.", headers={hdrs.ACCEPT_ENCODING: "identity"})


def _refused(raw: bytes, error: ValidationError) -> MalformedJson | InvalidBody:
    mistakes = error.errors(include_url=False, include_input=False)
    if mistakes[0]["type"] == "json_invalid":
        return MalformedJson(f"The body is not JSON: {mistakes[0]['ctx']['error']}.")
    try:
        # The validating parser takes NaN and Infinity for numbers; JSON has neither.
        from_json(raw, allow_inf_nan=False)
    except ValueError as broken:
        return MalformedJson(f"The body is not JSON: {broken}.")
    told = [{"pointer": pointer(mistake["loc"]), "detail": sentence(mistake)} for mistake in mistakes[:MISTAKES_MAX]]
    return InvalidBody(told, len(mistakes))


async def require_no_body(request: web.Request) -> None:
    """Refuse a body where nobody would read it: what it says must not be ignored without a word.

    Raises
    ------
    BodyTooLarge, RequestTimeout: as `read_body`.
    InvalidRequest: there is one.
    """
    if await read_body(request):
        raise InvalidRequest("", "this call takes no body; a buyer is named in a header")


def read_query(request: web.Request, *names: str) -> Mapping[str, str]:
    """The query's parameters, each at most once.

    Raises
    ------
    InvalidRequest: one that this call does not have, or one twice.
    """
    if not request.query_string:
        return {}
    query = request.query
    for name in query:
        if name not in names:
            pointer = name[:40].replace("~", "~0").replace("/", "~1")
            raise InvalidRequest(f"/{pointer}", "is not a parameter of this call")
        if len(query.getall(name)) > 1:
            raise InvalidRequest(f"/{name}", "is given more than once")
    return query


def idempotency_key(headers: Headers) -> str | None:
    """The call's idempotency key, if it has one.

    Raises
    ------
    InvalidRequest: it is malformed, or there are two.
    """
    keys = headers.getall(IDEMPOTENCY_KEY_HEADER, None)
    if keys is None:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidRequest(
            f"/{IDEMPOTENCY_KEY_HEADER}", f"must be one key of 1 to {limits.KEY_CHARS_MAX} visible ASCII characters"
        )
    return keys[0]


def preferred_durability(headers: Headers) -> Durability | None:
    """What a payment is asked to survive (`Prefer: durability=LEVEL`, RFC 7240); None when nothing is said of it.

    Raises
    ------
    InvalidRequest: there is no such level. Not passed over, as a preference may be: the caller would count on it.
    """
    if PREFER_HEADER not in headers:
        return None
    for preference in _PREFERENCE.finditer(", ".join(headers.getall(PREFER_HEADER))):
        if preference["name"].lower() == "durability":
            level = (preference["quoted"] or preference["plain"] or "").strip().lower()
            if level not in _DURABILITIES:
                raise InvalidRequest(f"/{PREFER_HEADER}", f"durability must be one of {', '.join(Durability)}")
            return Durability(level)
    return None


def preference_applied(durability: Durability | None) -> str:
    """The value of `Preference-Applied` for a payment that survives this."""
    return f"durability={durability}"


# Out ------------------------------------------------------------------------------------------------------------------


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer in JSON that no cache keeps, ended by a newline for those who read it in a terminal."""
    return written_response(to_json(body) + b"\n", status=status, headers=headers)


def written_response(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """As `json_response`, of JSON that is written already."""
    return web.Response(body=body, status=status, headers={**_JSON_HEADERS, **headers} if headers else _JSON_HEADERS)
