"""The aiohttp application: its routes, and what surrounds every request.

Inside, everything raises; here every exception becomes an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11
from aiohttp.typedefs import Handler, Middleware
from multidict import istr

from holdfast.engine import (
    AllHeld,
    AlreadyCancelled,
    AlreadyPurchased,
    CapacityInUse,
    Closed,
    ConfigurationError,
    DurabilityUnavailable,
    Engine,
    HoldfastError,
    IdempotencyKeyReused,
    LimitReached,
    NotReady,
    NotYetOpen,
    NotYourTicket,
    PaymentDeclined,
    SaleExists,
    SoldOut,
    TicketExpired,
    UnknownSale,
    UnknownTicket,
)
from holdfast.engine.records import sale_of

from . import answers, batches, docs, health, metrics, models, openapi, sales, site, stream, tickets
from .bodies import BATCH_BYTES_MAX, BODY_BYTES_MAX, MERGE_PATCH
from .context import CONFIG, ENGINE, REQUEST_ID, AppConfig, Headers
from .logs import REQUEST, log_access
from .metrics import TALLY
from .problems import HttpError, InternalError, MethodNotAllowed, UnknownRoute, outcome_of, problem, went_wrong
from .routes import ANY_MEDIA, BUYER, EVENT_STREAM, HTML, OPERATOR, PLAIN_TEXT, READER, Route
from .tally import CALLS, METHODS, OK, OTHER_METHOD, Tally
from .totals import Totals

log = logging.getLogger("holdfast.http")

REQUEST_ID_HEADER = istr("X-Request-Id")

#: What the answers call us: no versions, which only help whoever looks for an old one.
SERVER_NAME = "Holdfast"

NOTHING_HERE = "There is nothing at this path."

#: The path of whatever has no other, as it is written and as the router calls it.
_ANYTHING_PATTERN = "/{path:.*}"
_ANYTHING = "/{path}"

#: What a request id from outside may look like: it goes into logs and headers.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


_RESERVING = (UnknownSale, IdempotencyKeyReused, NotYetOpen, Closed, LimitReached, SoldOut, AllHeld)
_PAYING = (
    DurabilityUnavailable,
    UnknownTicket,
    NotYourTicket,
    IdempotencyKeyReused,
    AlreadyPurchased,
    AlreadyCancelled,
    TicketExpired,
    PaymentDeclined,
)

#: Every call there is.
ROUTES = (
    Route(
        "POST",
        "/sales",
        sales.create_sale,
        answers.SaleAnswer,
        OPERATOR,
        (200, 201),
        body=models.CreateSaleBody,
        refusals=(SaleExists,),
    ),
    Route("GET", "/sales", sales.list_sales, answers.SalesAnswer, OPERATOR, query=("limit", "cursor")),
    Route("GET", "/sales/{sale}", sales.show_sale, answers.SaleAnswer, READER, refusals=(UnknownSale,)),
    Route(
        "PATCH",
        "/sales/{sale}",
        sales.amend_sale,
        answers.SaleAnswer,
        OPERATOR,
        body=models.AmendSaleBody,
        media_types=MERGE_PATCH,
        refusals=(UnknownSale, CapacityInUse),
    ),
    Route(
        "POST",
        "/sales/{sale}/tickets",
        tickets.reserve,
        answers.TicketAnswer,
        BUYER,
        (201,),
        body=models.ReserveBody,
        keyed=True,
        refusals=_RESERVING,
    ),
    Route(
        "GET",
        "/sales/{sale}/tickets",
        tickets.list_tickets,
        answers.TicketsAnswer,
        BUYER,
        query=("status", "limit", "cursor", "buyer"),
        refusals=(UnknownSale,),
    ),
    Route(
        "POST",
        "/sales/{sale}/tickets/batch",
        batches.reserve_batch,
        answers.BatchAnswer,
        OPERATOR,
        body=models.ReserveBatchBody,
        bytes_max=BATCH_BYTES_MAX,
        refusals=(UnknownSale,),
    ),
    Route(
        "POST",
        "/sales/{sale}/payments/batch",
        batches.pay_batch,
        answers.BatchAnswer,
        OPERATOR,
        body=models.PaymentBatchBody,
        bytes_max=BATCH_BYTES_MAX,
        prefers=True,
        refusals=(UnknownSale,),
    ),
    Route(
        "GET",
        "/sales/{sale}/stream",
        stream.stream,
        str,
        READER,
        refusals=(UnknownSale,),
        media_type=EVENT_STREAM,
        events=(("counts", answers.SaleAnswer), ("transition", answers.TransitionAnswer)),
        resumes=True,
    ),
    Route("GET", "/tickets/{ticket}", tickets.show_ticket, answers.TicketAnswer, READER, refusals=(UnknownTicket,)),
    Route(
        "POST",
        "/tickets/{ticket}/payment",
        tickets.pay,
        answers.TicketAnswer,
        BUYER,
        (200, 202),
        body=models.PaymentBody,
        may_be_empty=True,
        keyed=True,
        prefers=True,
        refusals=_PAYING,
    ),
    Route(
        "DELETE",
        "/tickets/{ticket}/payment",
        tickets.cancel,
        answers.TicketAnswer,
        BUYER,
        query=("buyer",),
        refusals=(UnknownTicket, NotYourTicket, AlreadyPurchased, TicketExpired),
    ),
    Route("GET", "/healthz", health.healthz, answers.HealthAnswer),
    Route("GET", "/readyz", health.readyz, answers.HealthAnswer, refusals=(NotReady,)),
    Route("GET", "/metrics", metrics.show_metrics, str, OPERATOR, media_type=PLAIN_TEXT),
    Route("GET", "/openapi.json", openapi.show, answers.DescriptionAnswer),
    Route("GET", "/docs", docs.viewer, str, media_type=HTML),
    Route("GET", "/docs/errors", docs.errors, str, media_type=HTML),
    Route("GET", "/docs/{name}", docs.docs_file, bytes, media_type=ANY_MEDIA, refusals=(UnknownRoute,)),
    Route("GET", "/", site.dashboard, str, media_type=HTML),
    Route("GET", "/shop/{sale}", site.shop, str, statuses=(200, 404), media_type=HTML),
    Route("GET", "/assets/{name}", site.asset, bytes, media_type=ANY_MEDIA, refusals=(UnknownRoute,)),
)


def create_app(engine: Engine, config: AppConfig, totals: Totals | None = None) -> web.Application:
    """The whole HTTP face of an engine.

    Parameters
    ----------
    engine: started, and closed by whoever started it.
    config: the checked settings.
    totals: what the other workers of this server count; None where there are none.
    """
    request_ids = RequestIds()
    app = web.Application(middlewares=[_surround(config, request_ids)], client_max_size=BODY_BYTES_MAX)
    app[ENGINE] = engine
    app[CONFIG] = config
    app[health.DRAINING] = asyncio.Event()
    app[REQUEST_IDS] = request_ids
    app[stream.STREAMS] = streams = stream.Streams(engine)
    app.on_shutdown.append(streams.on_shutdown)
    metrics.install(app, engine, totals)
    app[openapi.DOCUMENT] = openapi.written(ROUTES)
    app[docs.REFUSALS_PAGE] = docs.refusals_page(ROUTES)
    _add_routes(app.router, ROUTES)
    return app


# Routes ---------------------------------------------------------------------------------------------------------------


def _add_routes(router: web.UrlDispatcher, routes: Iterable[Route]) -> None:
    """Every path gets its methods, and a last one that refuses all others; every other path is refused too.

    aiohttp would do that by itself, but outside the middleware's reach, with answers of its own.
    """
    paths: dict[str, dict[str, Route]] = {}
    for route in routes:
        by_method = paths.setdefault(route.path, {})
        by_method[route.method] = route
        if route.method == hdrs.METH_GET:
            by_method[hdrs.METH_HEAD] = route
    expect = _expect(BODY_BYTES_MAX)
    for path, by_method in paths.items():
        resource = router.add_resource(path)
        for method, route in by_method.items():
            resource.add_route(method, route.handler, expect_handler=_expect(route.bytes_max))
        resource.add_route(hdrs.METH_ANY, _method_not_allowed(sorted(by_method)), expect_handler=expect)
    router.add_resource(_ANYTHING_PATTERN).add_route(hdrs.METH_ANY, _unknown_route, expect_handler=expect)


def _method_not_allowed(allowed: list[str]) -> Handler:
    allow = ", ".join(allowed)

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise MethodNotAllowed(f"Only {allow} work here.", headers={hdrs.ALLOW: allow})

    return refuse


async def _unknown_route(request: web.Request) -> web.StreamResponse:
    raise UnknownRoute(NOTHING_HERE)


def _expect(bytes_max: int) -> Callable[[web.Request], Awaitable[None]]:
    async def expect(request: web.Request) -> None:
        """Invite a body that waits to be invited, unless it is too large anyway; any other expectation is ignored."""
        if (
            request.version >= HttpVersion11
            and request.headers[hdrs.EXPECT].lower() == "100-continue"
            and (request.content_length or 0) <= bytes_max
        ):
            # Who is gone by now is met again where the body is read.
            with contextlib.suppress(ConnectionError):
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # These bytes are no part of the answer; aiohttp would take it for begun.
            request.writer.output_size = 0

    return expect


# Around every request -------------------------------------------------------------------------------------------------


class RequestIds:
    """What requests are called in logs and answers."""

    def __init__(self) -> None:
        # Counted, not drawn: one is made for every request, and only has to be unlike the others.
        self._prefix = secrets.token_hex(4)
        self._counter = itertools.count(1)

    def of(self, headers: Headers) -> str:
        """The name that the client gave the request, or a new one."""
        given = headers.get(REQUEST_ID_HEADER)
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return self.new()

    def new(self) -> str:
        """A name that no other request has."""
        return f"{self._prefix}-{next(self._counter)}"


REQUEST_IDS: web.AppKey[RequestIds] = web.AppKey("request_ids", RequestIds)


def _surround(config: AppConfig, request_ids: RequestIds) -> Middleware:
    cors = CrossOrigin(config.allow_origins) if config.allow_origins else None

    @web.middleware
    async def surround(request: web.Request, handler: Handler) -> web.StreamResponse:
        began, outcome = perf_counter(), OK
        request_id = request[REQUEST_ID] = request_ids.of(request.headers)
        REQUEST.set(request_id)
        response: web.StreamResponse | None = cors.preflight(request) if cors is not None else None
        if response is None:
            try:
                response = await handler(request)
            except ConfigurationError as error:
                # No answer to a request: a mistake of the operator's that shows only now.
                outcome = outcome_of(error)
                response = _internal_error(request, request_id)
            except (HoldfastError, HttpError) as error:
                outcome = outcome_of(error)
                response = problem(error, request_id)
            except web.HTTPNotFound:
                # aiohttp's own, for targets without a path: `OPTIONS *`, `CONNECT host:443`.
                outcome = UnknownRoute.code
                response = problem(UnknownRoute(NOTHING_HERE), request_id)
            except ConnectionError as error:
                # The client is gone; aiohttp finds that out again when it writes, and is silent about it.
                outcome = outcome_of(error)
                response = problem(InternalError("The connection was lost."), request_id)
            except Exception as error:
                outcome = outcome_of(error)
                response = _internal_error(request, request_id)
        headers = response.headers
        headers[REQUEST_ID_HEADER] = request_id
        headers[hdrs.SERVER] = SERVER_NAME
        if cors is not None:
            cors.mark(request, response)
        seconds = perf_counter() - began
        route = _route(request)
        _count(request.app[TALLY], request, route, response.status, outcome, seconds)
        if config.access_log:
            method = request.method if request.method in METHODS else OTHER_METHOD
            log_access(method, route, response.status, outcome, seconds, request_id)
        return response

    return surround


def _route(request: web.Request) -> str:
    """The path with its placeholders; empty for one that nothing lives at."""
    resource = request.match_info.route.resource
    return "" if resource is None or resource.canonical == _ANYTHING else resource.canonical


def _count(tally: Tally, request: web.Request, route: str, status: int, outcome: str, seconds: float) -> None:
    call = CALLS.get((request.method, route))
    if call is None:
        tally.answered(request.method, route, status, seconds)
    else:
        asked = request.match_info
        sale = asked["sale"] if "sale" in asked else sale_of(asked["ticket"].partition(".")[0])
        tally.of_sale(call, sale)[outcome] += 1
        tally.seconds[call].add(seconds)


def _internal_error(request: web.Request, request_id: str) -> web.Response:
    log.exception("request %s: %s %r failed", request_id, request.method, request.path)
    return problem(went_wrong(), request_id)


class CrossOrigin:
    """What pages of other origins may do: the public and the buyers' calls, never with a browser's credentials.

    Parameters
    ----------
    allow_origins: origins, or `*` among them for any.
    """

    #: Headers that a page may send, and those that it may read.
    REQUEST_HEADERS = "Content-Type, Idempotency-Key, X-Buyer-Fingerprint, X-Buyer-Token, X-Request-Id"
    RESPONSE_HEADERS = "Idempotent-Replayed, Location, Retry-After, X-Request-Id"
    METHODS = "DELETE, GET, HEAD, POST"

    #: Seconds for which a browser may remember a preflight.
    MAX_AGE_SECONDS = "600"

    def __init__(self, allow_origins: frozenset[str]) -> None:
        self.any_origin = "*" in allow_origins
        self._origins = allow_origins

    def _allowed(self, request: web.Request) -> str | None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return None
        if self.any_origin:
            return "*"
        return origin if origin in self._origins else None

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks beforehand; None when this is not that, or not from an allowed origin."""
        if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return None
        if self._allowed(request) is None:
            return None
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: self.METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: self.REQUEST_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: self.MAX_AGE_SECONDS,
            },
        )

    def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Say in an answer which origin may read it."""
        if not self.any_origin:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = self._allowed(request)
        if origin is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = self.RESPONSE_HEADERS
