"""One request over a connection of one's own, and never sent twice: a history must know of every request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

#: Bytes of an answer's head; ours are a few hundred.
HEAD_BYTES_MAX = 65_536


class Lost(Exception):
    """The connection ended before the answer did."""


class Connection:
    """A keep-alive connection of one client, opened when it is needed.

    A history must know of every request that was sent. Libraries send a GET or a DELETE again when a connection that
    was kept turns out to be dead; this one never does.
    """

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Sends a request and reads its answer: status, headers in lower case, JSON body.

        Raises
        ------
        OSError: nobody listens; nothing was sent. Lost: it was sent, and no answer came.
        """
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection(*self._place, limit=2**22)
        reader, writer = self._streams
        try:
            writer.write(request(method, path, f"{self._place[0]}:{self._place[1]}", headers, body))
            await writer.drain()
            status, answer_headers, raw = await read_answer(reader)
        except (OSError, asyncio.IncompleteReadError, Lost) as error:
            self.close()
            raise Lost(str(error) or type(error).__name__) from error
        except BaseException:
            # Cancelled: the answer under way belongs to nobody, least of all to the next request.
            self.close()
            raise
        if answer_headers.get("connection", "").lower() == "close":
            self.close()
        return status, answer_headers, json.loads(raw) if raw else {}

    def close(self) -> None:
        """Hangs up, at once and without a farewell."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


def request(method: str, path: str, host: str, headers: Mapping[str, str] | None, body: Any) -> bytes:
    """A request as bytes."""
    payload = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        *(f"{key}: {value}" for key, value in (headers or {}).items()),
    ]
    if payload:
        lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case and body of one answer with a length.

    Raises
    ------
    Lost: the connection was closed before the answer began. IncompleteReadError: or before it ended.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise Lost("closed before the answer") from error
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    return int(first.split(" ")[1]), headers, await reader.readexactly(length)
