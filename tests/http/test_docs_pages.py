"""The pages about the API: what they are made of, and that every refusal is explained where its `type` leads."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from holdfast.http import docs, examples
from holdfast.http.files import SELF_ALONE
from holdfast.http.problems import TABLE, TYPE_PREFIX

VENDOR = Path(docs.__file__).parent / "pages" / "vendor"
PAGES = ("/docs", "/docs/errors")


class Sections(HTMLParser):
    """The text of each section by its id, and where links, scripts and styles lead."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.inline: list[str] = []
        self._section = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._tag = tag
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "section":
            self._section = found["id"]
            self.sections[self._section] = ""
        self.targets += [found[name] for name in ("src", "href") if name in found]
        self.inline += [name for name in found if name == "style" or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style") and data.strip():
            self.inline.append(data)
        if self._section:
            self.sections[self._section] += data


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_only_what_the_server_has(client: Any, path: str) -> None:
    answer = await client.get(path)
    assert answer.status == 200
    assert answer.content_type == "text/html"
    assert answer.headers["Content-Security-Policy"] == SELF_ALONE
    assert "unsafe" not in SELF_ALONE
    found = Sections(await answer.text())
    assert found.inline == []
    for target in found.targets:
        assert target.startswith(("/", "#", "data:,")), target
        if target.startswith("/docs/"):
            assert (await client.get(target)).status == 200


async def test_a_file_is_answered_by_its_exact_name_and_not_again_to_who_has_it(client: Any) -> None:
    for name, media_type in (
        ("swagger-ui-bundle.js", "text/javascript"),
        ("swagger-ui.css", "text/css"),
        ("viewer.js", "text/javascript"),
        ("docs.css", "text/css"),
    ):
        answer = await client.get(f"/docs/{name}")
        assert (answer.status, answer.content_type) == (200, media_type)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        again = await client.get(f"/docs/{name}", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status, await again.read()) == (304, b"")
        head = await client.head(f"/docs/{name}")
        assert (head.status, head.headers["ETag"]) == (200, answer.headers["ETag"])


@pytest.mark.parametrize(
    "name", ["viewer.html", "errors.html", "README.md", "swagger-ui-LICENSE", "..%2F__init__.py", "%2e%2e", "docs"]
)
async def test_nothing_else_is_there(send: Any, refused: Any, name: str) -> None:
    await refused(await send("GET", f"/docs/{name}"), 404, "unknown_route")


async def test_every_refusal_is_explained_where_its_type_leads(client: Any) -> None:
    path, _, _ = TYPE_PREFIX.partition("#")
    found = Sections(await (await client.get(path)).text())
    assert len(set(found.ids)) == len(found.ids)
    codes = {error.code: error for error in TABLE}  # type: ignore[attr-defined]
    assert set(found.sections) == set(codes)
    for error, kind in TABLE.items():
        code: str = error.code  # type: ignore[attr-defined]
        text = found.sections[code]
        assert str(kind.status) in text
        assert re.sub("`", "", kind.advice) in text
        assert "Said " in text
        first = next(each for each in TABLE if each.code == code)  # type: ignore[attr-defined]
        for field in examples.refusal(first):
            assert field in text
    # Each says when to come back, where that is known.
    waiting = {code for code, text in found.sections.items() if "Retry-After" in text}
    assert waiting == {"not_yet_open", "all_held", "not_ready", "overloaded", "outcome_unknown"}


def test_swagger_ui_is_the_one_that_its_page_names() -> None:
    page = (VENDOR / "README.md").read_text()
    (version,) = re.findall(r"^Swagger UI (\S+), Apache-2.0", page, re.MULTILINE)
    assert f'PACKAGE_VERSION:"{version}"' in (VENDOR / "swagger-ui-bundle.js").read_text()
    named = dict(re.findall(r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \|$", page, re.MULTILINE))
    assert set(named) == set(docs.SWAGGER_UI)
    assert {name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() for name in named} == named
    assert all((VENDOR / target).exists() for target in re.findall(r"\]\(([^)]+)\)", page))
