"""The pages for people: the operator's dashboard, the shop, and the files that they are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final

from aiohttp import web

from holdfast.engine import HoldfastError, UnknownSale

from .context import ENGINE
from .files import MEDIA_TYPES, SELF_ALONE, File, file_response, read
from .problems import UnknownRoute
from .sales import sale_id

#: The package whose files these are.
PACKAGE: Final = "holdfast.http.pages"

#: The pages; what else lies beside them is what they are made of.
DASHBOARD: Final = "dashboard.html"
SHOP: Final = "shop.html"

#: What these pages may do. In a browser that knows its last part text cannot become markup, not even by a mistake of
#: ours: a name with a tag in it stays a name.
POLICY: Final = f"{SELF_ALONE}; require-trusted-types-for 'script'; trusted-types 'none'"

#: Seconds in which it must be known whether a sale exists. A page without this knowledge is a page all the same.
KNOWN_SECONDS = 1.0


@cache
def files() -> Mapping[str, File]:
    """Every file of these pages by its name."""
    return read(resources.files(PACKAGE))


async def dashboard(request: web.Request) -> web.Response:
    """`GET /`: the operator's page. It opens with the token, which it never sends in an address."""
    return file_response(request, files()[DASHBOARD], policy=POLICY)


async def shop(request: web.Request) -> web.Response:
    """`GET /shop/{sale}`: the buyers' page of a sale; with status 404, and saying so, when there is no such sale."""
    status = 200 if await _may_exist(request) else 404
    return file_response(request, files()[SHOP], policy=POLICY, status=status)


async def asset(request: web.Request) -> web.Response:
    """`GET /assets/{name}`: a file that these pages are made of."""
    file = files().get(request.match_info["name"])
    if file is None or file.media_type == MEDIA_TYPES["html"]:
        raise UnknownRoute("There is no such file.")
    return file_response(request, file)


async def _may_exist(request: web.Request) -> bool:
    """Whether there is such a sale, as far as can be known now: the page itself goes on asking."""
    try:
        async with asyncio.timeout(KNOWN_SECONDS):
            await request.app[ENGINE].sale(sale_id(request))
    except UnknownSale:
        return False
    except (HoldfastError, TimeoutError):
        pass
    return True
