"""The pages as they are served: whole, from this server alone, and under a policy that lets nothing else in."""

from __future__ import annotations

import asyncio
import gzip
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from holdfast.engine import Engine, NotReady, Sale
from holdfast.http import site

FOLDER = Path(site.__file__).parent / "pages"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "pages.md"
PAGES = ("/", "/shop/gig")
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.js"))
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".css", ".js", ".svg"))


class Parts(HTMLParser):
    """Where a page leads, and what stands in it that should stand in a file."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        found = {name: value or "" for name, value in attrs}
        self.targets += [found[name] for name in ("src", "href") if name in found and not found[name].startswith("#")]
        self.inline += [name for name in found if name == "style" or name.startswith("on")]
        self.ids += [found["id"]] if "id" in found else []

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style") and data.strip():
            self.inline.append(data)


def imports(name: str) -> set[str]:
    """The files that a script is made of, as it names them."""
    return set(re.findall(r'^import .*?from "\./([^"]+)";$', (FOLDER / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_only_what_the_server_has(client: Any, gig: str, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status, answer.content_type, answer.charset) == (200, "text/html", "utf-8")
    parts = Parts(await answer.text())
    assert parts.inline == []
    assert len(parts.ids) == len(set(parts.ids))
    assert len(parts.targets) >= 4
    for target in parts.targets:
        assert (await client.get(urljoin(path, target))).status == 200, target


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_may_do_nothing_but_talk_to_this_server(client: Any, gig: str, path: str) -> None:
    headers = (await client.get(path)).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Request-Id"]


def test_files_name_no_other_place() -> None:
    found = [
        (path.name, address)
        for path in FOLDER.iterdir()
        if path.is_file() and path.suffix != ".py"
        for address in re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text())
        if address != "http://www.w3.org/2000/svg"
    ]
    assert found == []


def test_every_script_is_used_and_there() -> None:
    reached, waiting = set(), {"dashboard.js", "shop.js"}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= imports(name) - reached
    assert sorted(reached) == SCRIPTS


def test_every_file_is_documented() -> None:
    (section,) = re.findall(r"^## The files\n(.*)", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    documented = re.findall(r"`([\w-]+\.(?:html|css|js))`", section)
    assert sorted(documented) == sorted(
        path.name for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js")
    )


def test_text_never_becomes_markup() -> None:
    # The policy forbids it in browsers that know it; in all others nothing here does it.
    sinks = re.compile(r"(inner|outer|insertAdjacent|set)HTML|document\.write|\beval\(|new Function|DOMParser")
    assert [name for name in SCRIPTS if sinks.search((FOLDER / name).read_text())] == []


def test_a_script_is_one() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here; the browser reads the scripts in tests/pages")
    for name in SCRIPTS:
        # From its standard input, because by its name node would take it for an old script.
        command = [node, "--input-type=module", "--check"]
        done = subprocess.run(command, input=(FOLDER / name).read_bytes(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


async def test_a_file_is_sent_once_and_packed(client: Any) -> None:
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for name in NAMES:
        answer = await client.get(f"/assets/{name}", headers={"Accept-Encoding": "identity"})
        content = await answer.read()
        assert (answer.status, answer.content_type) == (200, kinds[Path(name).suffix])
        assert content == (FOLDER / name).read_bytes()
        assert answer.headers["Cache-Control"] == "no-cache"
        again = await client.get(f"/assets/{name}", headers={"If-None-Match": f'"other", {answer.headers["ETag"]}'})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", answer.headers["ETag"])
        packed = await client.get(f"/assets/{name}", headers={"Accept-Encoding": "br, gzip"}, auto_decompress=False)
        if packed.headers.get("Content-Encoding") == "gzip":
            assert gzip.decompress(await packed.read()) == content
        head = await client.head(f"/assets/{name}", headers={"Accept-Encoding": "identity"})
        assert (head.status, head.headers["Content-Length"], await head.read()) == (200, str(len(content)), b"")


async def test_nothing_else_is_a_file(send: Any, refused: Any) -> None:
    for name in ("nothing.js", "shop.html", "dashboard.html", "__init__.py", "%2e%2e%2fapp.py", "docs", "SHOP.JS"):
        await refused(await send("GET", f"/assets/{name}"), 404, "unknown_route")


async def test_a_page_is_no_place_to_write_to(client: Any, refused: Any) -> None:
    for path in ("/", "/shop/gig", "/assets/shop.js"):
        answer = await client.post(path)
        await refused(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("sale", ["nothing", "Not-An-Id", "%3Cb%3E", "x" * 65])
async def test_the_shop_of_an_unknown_sale_is_a_404_that_people_can_read(send: Any, gig: str, sale: str) -> None:
    answer = await send("GET", f"/shop/{sale}")
    assert (answer.status, answer.content_type) == (404, "text/html")
    known = await send("GET", f"/shop/{gig}", headers={"If-None-Match": answer.headers["ETag"]})
    assert known.status == 304, "it is the same page"
    again = await send("GET", f"/shop/{sale}", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status == 404, "a browser must not show an unknown sale as a known one"


async def test_the_shop_opens_when_the_sale_cannot_be_read(
    client: Any, engine: Engine, gig: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(sale: str) -> Sale:
        raise NotReady("nothing is known now")

    async def frozen(sale: str) -> Sale:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(site, "KNOWN_SECONDS", 0.05)
    for broken in (away, frozen):
        monkeypatch.setattr(engine, "sale", broken)
        assert (await client.get("/shop/gig")).status == 200
    assert (await client.get("/")).status == 200
