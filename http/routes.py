"""A line of the routing table: what is served, and what the description of the API tells of it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from aiohttp.typedefs import Handler

from .bodies import BODY_BYTES_MAX, JSON

#: Who may make a call: anyone, without being looked at; anyone, of whom the owner sees more; a buyer; the operator.
ANYONE: Final = "anyone"
READER: Final = "reader"
BUYER: Final = "buyer"
OPERATOR: Final = "operator"

#: The media types of answers.
APPLICATION_JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
HTML: Final = "text/html"
PLAIN_TEXT: Final = "text/plain"
#: Of files, each with its own.
ANY_MEDIA: Final = "*/*"


class Route(NamedTuple):
    """One line of the routing table; GET answers HEAD too.

    Parameters
    ----------
    answer: the type of what is answered, with one of `statuses`; `str` or `bytes` where it is not JSON.
    who: may make the call.
    media_type: of the answer.
    events: of an event stream, its events by name with the types of their data.
    resumes: it takes `Last-Event-ID`.
    body: the model that validates it; None where the call takes none.
    bytes_max: of the body; the handler holds to the same.
    query: the parameters that it takes. keyed, prefers: it takes `Idempotency-Key`, `Prefer: durability=LEVEL`.
    refusals: its own, beside those that every such call has.
    """

    method: str
    path: str
    handler: Handler
    answer: type
    who: str = ANYONE
    statuses: tuple[int, ...] = (200,)
    body: Any = None
    bytes_max: int = BODY_BYTES_MAX
    media_types: frozenset[str] = JSON
    may_be_empty: bool = False
    query: tuple[str, ...] = ()
    keyed: bool = False
    prefers: bool = False
    refusals: tuple[type[Exception], ...] = ()
    media_type: str = APPLICATION_JSON
    events: tuple[tuple[str, Any], ...] = ()
    resumes: bool = False
