"""Files as they are answered: read once, by their exact names, with a tag, packed, and with what a page may do."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

from aiohttp import hdrs, web

#: The media type of a file, by the end of its name.
MEDIA_TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

#: What a page may do: load our own files, talk to our own calls, and nothing else. No script or style stands in a page.
SELF_ALONE: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

#: With every file: it is what it says it is, and no other site learns where a reader came from or shares their window.
_SAFE: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

#: Kept by browsers, and asked about each time: a changed page must not meet the scripts of the version before it.
_REVALIDATED: Final = "no-cache"

#: A browser that takes gzip, and does not say so only to refuse it.
_TAKES_GZIP: Final = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)


class File(NamedTuple):
    """A file as it is answered.

    Parameters
    ----------
    packed: the same by gzip; None when that is not smaller.
    tag: of its content, quotes and all; weak, because it is that of the packed bytes, too.
    """

    content: bytes
    packed: bytes | None
    media_type: str
    tag: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> File:
        """A file of these bytes."""
        packed = gzip.compress(content, mtime=0)
        tag = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, packed if len(packed) < len(content) else None, media_type, f'W/"{tag}"')


def read(folder: Traversable) -> dict[str, File]:
    """The files of a folder by their names, those whose media type is known."""
    found: dict[str, File] = {}
    for each in folder.iterdir():
        media_type = MEDIA_TYPES.get(each.name.rpartition(".")[2])
        if media_type is not None:
            found[each.name] = File.of(each.read_bytes(), media_type)
    return found


def file_response(request: web.Request, file: File, *, policy: str = SELF_ALONE, status: int = 200) -> web.Response:
    """A file; or 304 for a browser that has it.

    Parameters
    ----------
    policy: the Content-Security-Policy, of a page.
    """
    headers = {
        **_SAFE,
        hdrs.ETAG: file.tag,
        hdrs.CACHE_CONTROL: _REVALIDATED,
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
    }
    if file.media_type.startswith("text/html"):
        headers[hdrs.CONTENT_SECURITY_POLICY] = policy
    if status == 200 and _has_it(request, file):
        return web.Response(status=304, headers=headers)
    headers[hdrs.CONTENT_TYPE] = file.media_type
    content = file.content
    if file.packed is not None and _TAKES_GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        content = file.packed
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return web.Response(body=content, status=status, headers=headers)


def _has_it(request: web.Request, file: File) -> bool:
    """Whether the browser has this very file."""
    told = request.headers.get(hdrs.IF_NONE_MATCH, "")
    return told.strip() == "*" or file.tag in (tag.strip() for tag in told.split(","))
