"""The API for people: a viewer of `/openapi.json`, and a page that explains every refusal.

The viewer is Swagger UI, as it was released, from `pages/vendor`; nothing comes from anywhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import Final

from aiohttp import web
from pydantic import TypeAdapter

from . import examples
from .answers import Problem
from .files import MEDIA_TYPES, File, file_response, read
from .openapi import refusals, told
from .problems import TABLE, Kind, UnknownRoute
from .routes import Route

#: The package whose folders have the files.
PACKAGE: Final = "holdfast.http.pages"

#: The page of the viewer; what else lies in its folder, and the two files of Swagger UI, are what it is made of.
VIEWER: Final = "viewer.html"
SWAGGER_UI: Final = ("swagger-ui-bundle.js", "swagger-ui.css")

#: The frame of the page of refusals.
ERRORS: Final = "errors.html"

#: The page of refusals, made of the routing table.
REFUSALS_PAGE: web.AppKey[File] = web.AppKey("refusals_page", File)


@cache
def files() -> Mapping[str, File]:
    """Every file of these pages by its name."""
    folder = resources.files(PACKAGE)
    vendor = read(folder / "vendor")
    return read(folder / "docs") | {name: vendor[name] for name in SWAGGER_UI}


async def viewer(request: web.Request) -> web.Response:
    """`GET /docs`: the API to read and to try, in a browser."""
    return file_response(request, files()[VIEWER])


async def errors(request: web.Request) -> web.Response:
    """`GET /docs/errors`: every refusal with its meaning, its fields and what to do; the `type` of each leads here."""
    return file_response(request, request.app[REFUSALS_PAGE])


async def docs_file(request: web.Request) -> web.Response:
    """`GET /docs/{name}`: a file that these pages are made of."""
    name = request.match_info["name"]
    file = files().get(name)
    if file is None or file.media_type == MEDIA_TYPES["html"]:
        raise UnknownRoute("There is no such file.")
    return file_response(request, file)


# The page of refusals -------------------------------------------------------------------------------------------------

#: What every refusal has; the others are its own.
_COMMON: Final = frozenset({"type", "title", "status", "detail", "code", "request_id"})

#: The headers that are said to all.
_COMMON_HEADERS: Final = frozenset({"Content-Type", "Cache-Control"})


@cache
def refusals_page(routes: tuple[Route, ...]) -> File:
    """The page of every refusal that these calls have, from the table of refusals and what the exceptions say."""
    kinds: dict[str, type[Exception]] = {}
    for error in TABLE:
        # Of two exceptions with one code, the first one speaks.
        kinds.setdefault(error.code, error)  # type: ignore[attr-defined]
    frame = Template(files()[ERRORS].content.decode())
    listed = "\n".join(
        f'<tr><td>{TABLE[error].status}</td><td><a href="#{code}">{code}</a></td>'
        f"<td>{escape(TABLE[error].title)}</td></tr>"
        for code, error in kinds.items()
    )
    explained = "\n".join(_explained(code, error, _said_by(code, routes)) for code, error in kinds.items())
    return File.of(frame.substitute(listed=listed, explained=explained).encode(), MEDIA_TYPES["html"])


def _explained(code: str, error: type[Exception], said_by: str) -> str:
    kind: Kind = TABLE[error]
    meaning = re.split(r"(?<=[.])\s", told(error))[0]
    example = examples.refusal(error)
    described = TypeAdapter(Problem).json_schema()["properties"]
    fields = "".join(
        f"<dt><code>{name}</code></dt><dd>{_marked(described[name]['description'])}</dd>"
        for name in example
        if name not in _COMMON
    )
    headers = "".join(
        f"<dt><code>{name}</code></dt><dd>a header: <code>{escape(value)}</code></dd>"
        for name, value in examples.refusal_headers(error).items()
        if name not in _COMMON_HEADERS
    )
    return f"""<section id="{code}">
<h2><a href="#{code}">{code}</a> <span class="status">{kind.status}</span></h2>
<p>{_marked(meaning)}</p>
<p><strong>What to do.</strong> {_marked(kind.advice)}</p>
{f"<dl>{fields}{headers}</dl>" if fields or headers else ""}
<p class="said-by">{said_by}</p>
<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>
</section>"""


def _said_by(code: str, routes: tuple[Route, ...]) -> str:
    """Which calls have this refusal."""
    calls = [
        f"{route.method} {route.path}"
        for route in routes
        if any(error.code == code for error in refusals(route))  # type: ignore[attr-defined]
    ]
    if not calls:
        return "Said where there is no such call."
    if len(calls) == len(routes):
        return "Said by every call."
    return "Said by " + ", ".join(f"<code>{escape(call)}</code>" for call in calls) + "."


def _marked(text: str) -> str:
    """A sentence as HTML, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
