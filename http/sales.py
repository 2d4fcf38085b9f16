"""The calls about sales."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from holdfast.engine import InvalidRequest, ItemSpec, UnknownSale, limits

from .bodies import MERGE_PATCH, json_response, read_model, read_query
from .callers import asked_by, is_operator, require_operator
from .context import ENGINE
from .models import NO_CAPACITY, AmendSaleBody, CreateSaleBody, sale_json

#: Rows of a listing when the caller does not say.
LIMIT_DEFAULT = 100

_NAME = re.compile(limits.NAME_PATTERN)


def is_sale_id(text: str) -> bool:
    """Whether a sale can have this id."""
    return _NAME.fullmatch(text) is not None


def sale_id(request: web.Request) -> str:
    """The sale that the path names.

    Raises
    ------
    UnknownSale: no sale can have such an id.
    """
    sale = request.match_info["sale"]
    if not is_sale_id(sale):
        raise UnknownSale(sale[:64])
    return sale


def page_limit(text: str | None) -> int:
    """The `limit` of a listing.

    Raises
    ------
    InvalidRequest: it is not a number from 1 to `limits.PAGE_MAX`.
    """
    if text is None:
        return LIMIT_DEFAULT
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text, re.ASCII) or int(text) > limits.PAGE_MAX:
        raise InvalidRequest("/limit", f"must be a whole number from 1 to {limits.PAGE_MAX}")
    return int(text)


async def create_sale(request: web.Request) -> web.Response:
    """`POST /sales`: put something on sale.

    The same description again is answered with 200 and the sale as it stands; another one of the same id is refused.
    """
    require_operator(asked_by(request))
    read_query(request)
    body = await read_model(request, CreateSaleBody)
    has_capacity = body.capacity != NO_CAPACITY
    if has_capacity == bool(body.items):
        raise InvalidRequest("/capacity", "is required, or 'items' in its place; one of the two")
    sale = await request.app[ENGINE].create_sale(
        body.id or None,
        name=body.name,
        capacity=body.capacity if has_capacity else None,
        items=[ItemSpec(item.sku, item.capacity, item.name or None, item.max_per_buyer) for item in body.items] or None,
        hold_ms=body.hold_ms,
        max_per_buyer=body.max_per_buyer,
        opens_at=body.opens_at,
        closes_at=body.closes_at,
        durability=body.durability,
        shards=body.shards or None,
    )
    return json_response(
        sale_json(sale), status=201 if sale.created else 200, headers={hdrs.LOCATION: f"/sales/{sale.id}"}
    )


async def list_sales(request: web.Request) -> web.Response:
    """`GET /sales`: all sales, in the order of their ids."""
    require_operator(asked_by(request))
    query = read_query(request, "limit", "cursor")
    page = await request.app[ENGINE].sales(limit=page_limit(query.get("limit")), cursor=query.get("cursor"))
    return json_response({"items": [sale_json(sale) for sale in page.items], "next": page.next})


async def show_sale(request: web.Request) -> web.Response:
    """`GET /sales/{sale}`: a sale with its counters.

    For each item and in sum, `available + reserved + purchased` is `capacity`; in a sale in shards
    `in_transit` is one more of these.
    """
    is_operator(asked_by(request))
    read_query(request)
    return json_response(sale_json(await request.app[ENGINE].sale(sale_id(request))))


async def amend_sale(request: web.Request) -> web.Response:
    """`PATCH /sales/{sale}`: change a sale while it sells.

    A JSON merge patch: what is absent stays, and `null` takes a limit or an end of the window away. Items are merged by
    their sku and never removed.
    """
    require_operator(asked_by(request))
    read_query(request)
    body = await read_model(request, AmendSaleBody, media_types=MERGE_PATCH)
    return json_response(sale_json(await request.app[ENGINE].amend_sale(sale_id(request), body.changes())))
