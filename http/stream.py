"""`GET /sales/{sale}/stream`: what happens in a sale, as server-sent events (WHATWG HTML, section 9.2).

Everybody hears the counters as they change; the operator hears every transition besides. For each sale that somebody
follows in this process, one task looks at Redis ten times a second and tells all of them the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11
from multidict import istr
from pydantic_core import to_json

from holdfast.engine import (
    Engine,
    InvalidRequest,
    NotReady,
    Overloaded,
    Position,
    Sale,
    SaleTransition,
    Tail,
    UnknownSale,
)
from holdfast.engine.tail import POLL_S, positions

from .bodies import read_query
from .callers import asked_by, is_operator
from .context import ABANDONED, ENGINE
from .models import sale_json, transition_json
from .routes import EVENT_STREAM
from .sales import sale_id

log = logging.getLogger("holdfast.http")

LAST_EVENT_ID_HEADER: Final = istr("Last-Event-ID")

#: Seconds of silence after which a comment is sent: proxies give up connections that are silent for 30 to 60.
HEARTBEAT_SECONDS: Final = 15.0

#: Seconds between two looks at a sale that cannot be read now.
AWAY_SECONDS: Final = 0.5

#: Milliseconds after which a client that has lost its stream connects again. Drawn between the two for each: after a
#: restart not all of them come in the same moment.
RETRY_MS_MIN: Final = 1_000
RETRY_MS_MAX: Final = 4_000

#: Of the process' time, the part that telling readers may take. With a thousand of them one round takes some 20 ms:
#: then they hear two or three times a second, and buyers wait no longer.
SHARE_MAX: Final = 0.05

#: Readers that are told before others are let in: a millisecond's worth.
SLICE: Final = 50

#: Bytes that an operator may leave unread, beside what the two systems' sockets hold. It is then cut off, and goes on
#: with `Last-Event-ID` once it has read what it had.
UNREAD_BYTES_MAX: Final = 256 * 1024

#: The same for everybody else, who may be thousands: a few events of a sale with a hundred items. Five thousand who do
#: not read then take some 300 MB, and not over a gigabyte.
PUBLIC_UNREAD_BYTES_MAX: Final = 32 * 1024

#: Streams of a process when nobody says how many.
READERS_MAX_DEFAULT: Final = 5_000

_HEADERS: Final = {
    hdrs.CONTENT_TYPE: EVENT_STREAM,
    hdrs.CACHE_CONTROL: "no-store",
    # nginx would collect events until its buffer is full.
    "X-Accel-Buffering": "no",
}

_HEARTBEAT: Final = b": still here\n\n"


#: Where a reader stands in a sale: its position in each slot, which is one unless the sale is in shards.
Place = tuple[Position, ...]


def _place(text: str) -> Place:
    return tuple(positions(text))


def _reaches(here: Place, there: Place) -> bool:
    """Whether whoever stands here has had everything up to there."""
    return all(mine >= other for mine, other in zip(here, there, strict=True))


def _furthest(here: Place, there: Place) -> Place:
    return tuple(map(max, here, there))


def _event(name: str, data: bytes, id: str | None = None) -> bytes:
    named = f"event: {name}\n" if id is None else f"event: {name}\nid: {id}\n"
    return named.encode() + b"data: " + data + b"\n\n"


def _told(transition: SaleTransition) -> bytes:
    return _event("transition", to_json(transition_json(transition)), transition.place)


class _Reader:
    """One connection that follows a sale.

    Parameters
    ----------
    after: where an operator stands, who hears transitions; None for everybody else.
    chunked: each piece is framed as HTTP/1.1 has it.

    Attributes
    ----------
    ended: is set, or cancelled, when there is no more to hear, or nobody to hear it.
    """

    __slots__ = ("_chunked", "_transport", "after", "ended")

    def __init__(self, transport: asyncio.WriteTransport, after: Place | None, chunked: bool) -> None:
        self.after = after
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport = transport
        self._chunked = chunked

    def tell(self, events: bytes, framed: bytes) -> bool:
        """Writes events; False when the reader has left too much unread, and is cut off.

        Parameters
        ----------
        framed: the same as a chunk.
        """
        transport = self._transport
        if transport.is_closing():
            return True
        most = PUBLIC_UNREAD_BYTES_MAX if self.after is None else UNREAD_BYTES_MAX
        if transport.get_write_buffer_size() > most:
            transport.abort()
            return False
        transport.write(framed if self._chunked else events)
        return True

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _framed(events: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(events), events)


class Channel:
    """A sale that is followed here: what is read of it, and who hears that.

    Attributes
    ----------
    interest: streams that are open or about to be; at none it ends.
    sale: as it was seen last; None before the first look.
    dropped: readers that were cut off because they did not read.
    over: it tells nothing more.
    """

    def __init__(self, engine: Engine, sale: str) -> None:
        self._engine = engine
        self.id = sale
        self._loop = asyncio.get_running_loop()
        self.interest = 0
        self.over = False
        self.sale: Sale | None = None
        #: A sale, and its JSON.
        self._written: tuple[Sale | None, bytes] = None, b""
        self._readers: set[_Reader] = set()
        #: Reads the ledger for all operators; None while none follows.
        self._tail: Tail | None = None
        #: Up to where operators have been told.
        self._told: Place = ()
        self._told_at = self._loop.time()
        #: Seconds that telling took since the last pause.
        self._spent = 0.0
        self.dropped = 0
        self._first = asyncio.create_task(self._look())
        self._task = asyncio.create_task(self._follow())

    async def begun(self) -> Sale:
        """The sale, once it was looked at.

        Raises
        ------
        UnknownSale, NotReady.
        """
        await asyncio.shield(self._first)
        assert self.sale is not None
        return self.sale

    def join(self, reader: _Reader, tail: Tail | None = None) -> bool:
        """Has a reader hear what comes; an operator once it has caught up.

        That is when it has read what this channel has told, or where nobody is told yet, what it has seen. To wait for
        a look that finds nothing new would be to wait until no shard sells.

        Parameters
        ----------
        tail: an operator's, which has read up to `reader.after`.

        Returns
        -------
        Whether it has joined; an operator who has not reads on, and asks again.
        """
        if tail is not None and reader.after is not None:
            assert self.sale is not None
            if not _reaches(reader.after, _place(self.sale.place) if self._tail is None else self._told):
                return False
            if self._tail is None:
                self._tail, self._told = tail, reader.after
        self._readers.add(reader)
        return True

    def leave(self, reader: _Reader) -> None:
        """Nobody hears it any more."""
        self._readers.discard(reader)

    def counts(self, id: str | None) -> bytes:
        """The event of the counters as they are now."""
        assert self.sale is not None
        # Thousands join at once: it is written once for all of them.
        if self._written[0] is not self.sale:
            self._written = self.sale, to_json(sale_json(self.sale))
        return _event("counts", self._written[1], id)

    def end(self) -> None:
        """Tells nothing more, to anybody."""
        self._first.cancel()
        self._task.cancel()
        for reader in self._readers:
            reader.end()

    async def _follow(self) -> None:
        try:
            await asyncio.wait([self._first])
            if self._first.cancelled() or self._first.exception() is not None:
                return
            while self.interest:
                pause = max(POLL_S, self._spent / SHARE_MAX)
                self._spent = 0.0
                await asyncio.sleep(pause)
                await self._round()
        except UnknownSale:
            pass
        except Exception:
            log.exception("the stream of '%s' failed", self.id)
        finally:
            self.over = True
            for reader in self._readers:
                reader.end()

    async def _round(self) -> None:
        before = self.sale
        assert before is not None
        upto: Place | None = None
        try:
            now = await self._look()
            upto = _place(now.place)
        except NotReady:
            # Of a sale in shards one may be away, and the others sell: nobody can say how far they have come.
            now = self.sale = replace(before, ready=False)
            await asyncio.sleep(AWAY_SECONDS)
        if now != before:
            public, plain = self.counts(now.place), self.counts(None)
            await self._tell([reader for reader in self._readers if reader.after is None], public)
            await self._tell([reader for reader in self._readers if reader.after is not None], plain)
        # The ledger may lie in a store that does not answer now: it is read in the next round.
        with suppress(NotReady):
            await self._tell_operators(upto)
        if self._loop.time() - self._told_at > HEARTBEAT_SECONDS:
            await self._tell(list(self._readers), _HEARTBEAT)

    async def _look(self) -> Sale:
        now = await self._engine.sale(self.id)
        if now != self.sale:
            self.sale = now
        return now

    async def _tell_operators(self, upto: Place | None) -> None:
        """Tells what has come up to this place; all there is when it is None."""
        operators = [reader for reader in self._readers if reader.after is not None]
        tail = self._tail
        if not operators:
            self._tail = None
        if not operators or tail is None:
            return
        while (upto is None or not _reaches(self._told, upto)) and (transitions := await tail.read()):
            events = [_told(transition) for transition in transitions]
            began, self._told = self._told, _place(tail.place)
            # Whoever joins from now on has read as far on its own, or waits.
            operators = [reader for reader in self._readers if reader.after is not None]
            await self._tell([reader for reader in operators if reader.after == began], b"".join(events))
            for reader in operators:
                assert reader.after is not None
                if reader.after != began:
                    await self._tell([reader], _unheard(transitions, events, reader.after))
                reader.after = _furthest(reader.after, self._told)

    async def _tell(self, readers: Sequence[_Reader], events: bytes) -> None:
        """Writes to readers, and lets others in between; whoever does not read is cut off, and not waited for."""
        if not events:
            return
        framed = _framed(events)
        self._told_at = self._loop.time()
        for at in range(0, len(readers), SLICE):
            began = perf_counter()
            for reader in readers[at : at + SLICE]:
                if not reader.ended.done() and not reader.tell(events, framed):
                    self.dropped += 1
            self._spent += perf_counter() - began
            await asyncio.sleep(0)


def _unheard(transitions: Iterable[SaleTransition], events: Iterable[bytes], after: Place) -> bytes:
    """The events of those transitions that somebody has not heard who has come further, perhaps not in every slot."""
    unheard = []
    for transition, event in zip(transitions, events, strict=True):
        place = _place(transition.place)
        if not _reaches(after, place):
            unheard.append(event)
            after = _furthest(after, place)
    return b"".join(unheard)


class EventStream(web.StreamResponse):
    """The answer: it goes on until the client leaves, or the server ends.

    Like aiohttp's file response it does its work while it is prepared, so that what surrounds every request has put
    its headers in before.
    """

    def __init__(self, streams: Streams, channel: Channel, tail: Tail | None, resumed: bool) -> None:
        super().__init__(headers=_HEADERS)
        self._streams = streams
        self._channel = channel
        self._tail = tail
        self._resumed = resumed

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends everything."""
        try:
            writer = await super().prepare(request)
            if request.transport is not None:
                await self._send(request, request.transport)
        finally:
            self._streams.left(self._channel)
        return writer

    async def _send(self, request: web.BaseRequest, transport: asyncio.Transport) -> None:
        channel, tail = self._channel, self._tail
        after = _place(tail.place) if tail is not None else None
        reader = _Reader(transport, after, request.version >= HttpVersion11)
        request[ABANDONED] = reader.ended
        self._streams.readers.add(reader)
        if self._streams.ended:
            reader.end()
        try:
            # The headers go with it.
            await self.write(f"retry: {random.randint(RETRY_MS_MIN, RETRY_MS_MAX)}\n\n".encode())
            if tail is None:
                events = channel.counts(channel.sale.place if channel.sale else None)
                reader.tell(events, _framed(events))
                channel.join(reader)
            else:
                await self.write(channel.counts(None if self._resumed else tail.place))
                await self._catch_up(reader, tail)
            await asyncio.wait([reader.ended])
        finally:
            channel.leave(reader)
            self._streams.readers.discard(reader)
            reader.end()

    async def _catch_up(self, reader: _Reader, tail: Tail) -> None:
        """Sends what an operator has missed, at its own pace, until it can hear what all operators hear."""
        while not reader.ended.done():
            try:
                transitions = await tail.read()
            except NotReady:
                transitions = []
                await asyncio.sleep(AWAY_SECONDS)
            reader.after = _place(tail.place)
            if transitions:
                await self.write(b"".join(map(_told, transitions)))
            if self._channel.join(reader, tail):
                return


class Streams:
    """All streams of a process.

    Attributes
    ----------
    readers: who follows something now.
    readers_max: streams that may be open at once; whoever asks for more hears `overloaded`, but for the operator.
    ended: the server ends.
    """

    def __init__(self, engine: Engine) -> None:
        self.readers: set[_Reader] = set()
        self.readers_max = READERS_MAX_DEFAULT
        self._engine = engine
        self._channels: dict[str, Channel] = {}
        self._open = 0
        self.ended = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Readers that were cut off because they did not read."""
        return self._dropped + sum(channel.dropped for channel in self._channels.values())

    async def open(self, sale: str, operator: bool, after: str | None) -> EventStream:
        """The answer to a caller.

        Parameters
        ----------
        after: the place of the last transition that an operator has seen.

        Raises
        ------
        UnknownSale, NotReady, Overloaded. InvalidRequest: `after` is no place in this sale.
        """
        if self.ended:
            raise NotReady("this server is ending", retry_after_ms=RETRY_MS_MIN)
        # The operator is one, and must see what goes on when everybody else looks, too.
        if self._open >= self.readers_max and not operator:
            raise Overloaded
        channel = self._channels.get(sale)
        if channel is None or channel.over:
            channel = self._channels[sale] = Channel(self._engine, sale)
        channel.interest += 1
        self._open += 1
        try:
            seen = await channel.begun()
            tail = await self._engine.tail(sale, after=after or seen.place) if operator else None
        except BaseException:
            self.left(channel)
            raise
        # Of a beginning that is not where it was asked for (0-0, or what was lost), the reader learns the place.
        return EventStream(self, channel, tail, resumed=tail is not None and tail.place == after)

    def left(self, channel: Channel) -> None:
        """A stream has ended, or was not opened after all."""
        self._open -= 1
        channel.interest -= 1
        if not channel.interest:
            self._dropped += channel.dropped
            if self._channels.get(channel.id) is channel:
                del self._channels[channel.id]

    async def on_shutdown(self, app: web.Application) -> None:
        """As `end`, for an application that is shut down."""
        self.end()

    def end(self) -> None:
        """Ends every stream: their readers go on elsewhere, or later."""
        self.ended = True
        for channel in self._channels.values():
            channel.end()
        for reader in self.readers:
            reader.end()


#: The streams of the application.
STREAMS: web.AppKey[Streams] = web.AppKey("streams", Streams)


async def stream(request: web.Request) -> web.StreamResponse:
    """`GET /sales/{sale}/stream`: a sale as it changes, as server-sent events.

    Everybody gets the counters, whenever they change. The operator gets every transition besides, in order, none
    missing and none twice, from `Last-Event-ID` on.
    """
    operator = is_operator(asked_by(request))
    read_query(request)
    sale = sale_id(request)
    after = _last_event_id(request)
    if request.method == hdrs.METH_HEAD:
        await request.app[ENGINE].sale(sale)
        return web.Response(headers=_HEADERS)
    try:
        return await request.app[STREAMS].open(sale, operator, after)
    except InvalidRequest as error:
        raise InvalidRequest(f"/{LAST_EVENT_ID_HEADER}", error.detail) from None


def _last_event_id(request: web.Request) -> str | None:
    text = request.headers.get(LAST_EVENT_ID_HEADER)
    if not text:
        return None
    try:
        positions(text)
    except InvalidRequest:
        detail = "must be the id of an event of this stream, such as 1-27"
        raise InvalidRequest(f"/{LAST_EVENT_ID_HEADER}", detail) from None
    return text
