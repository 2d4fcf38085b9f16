"""Server-sent events as they are read from a connection (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

#: What an answer with events calls itself.
MEDIA_TYPE: Final = "text/event-stream"

#: Bytes of one event: a sale of 100 items with the longest names has 90 KB.
EVENT_BYTES_MAX: Final = 1024 * 1024


class Event(NamedTuple):
    """One event; `id` is empty when it has none of its own."""

    name: str
    id: str
    data: str


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """The events in what arrives, piece by piece; what ends in the middle of one is no event.

    Raises
    ------
    ValueError: these are no events: not UTF-8, or one that has no end.
    """
    rest = b""
    size = 0
    fields: dict[str, str] = {}
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        size += len(piece)
        for line in lines:
            text = line.removesuffix(b"\r").decode()
            if text:
                name, _, value = text.partition(":")
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value
            else:
                if "data" in fields:
                    yield Event(fields.get("event", "message"), fields.get("id", ""), fields["data"])
                fields = {}
                size = len(rest)
        if size > EVENT_BYTES_MAX:
            raise ValueError(f"an event of more than {EVENT_BYTES_MAX:,} bytes")
