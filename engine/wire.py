"""The bytes of one connection: commands written as they come, those of one turn together, and replies told apart again.

redis-py opens the connection (address, TLS, password, database); from then on its transport is driven from here. Its
own way from a command to a reply goes through a stream reader, a stream writer and a coroutine for each step, which
costs more than a batch of reservations does in Redis (measured, see `docs/design.md`). The parser is the same, hiredis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

#: What the parser answers when a reply is not complete yet.
_NOTHING = object()

#: Seconds by which a timer may come too early: event loops count in milliseconds.
_EARLY_S = 0.001


def pack(*command: Any) -> bytes:
    """A command in the protocol's form."""
    form: bytes = hiredis.pack_command(command)
    return form


class NotWritten(RedisConnectionError):
    """The connection was lost before anything of this was written on it."""


class _Exchange:
    """Commands that were written and whose replies have not all come."""

    __slots__ = ("replies", "until", "waiter", "wanted")

    def __init__(self, wanted: int, until: float, waiter: asyncio.Future[list[Any]]) -> None:
        self.wanted = wanted
        self.until = until
        self.waiter = waiter
        self.replies: list[Any] = []


class Wire(asyncio.Protocol):
    """Takes over the transport of a redis-py connection that has been opened.

    Parameters
    ----------
    connection: connected, with no command under way. timeout_s: seconds until a silent server counts as gone.

    Attributes
    ----------
    lost: the connection is closed. waiting: callers that wait for replies.
    """

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        #: In the order in which they were written, which is that of the replies.
        self._under_way: deque[_Exchange] = deque()
        #: Bytes of this turn, while something is under way.
        self._gathered: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self.lost = False
        self.waiting = 0
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError, replyError=connection._parser.parse_error, notEnoughData=_NOTHING
        )
        self._transport: asyncio.Transport = connection._writer.transport
        self._transport.set_protocol(self)

    @staticmethod
    def fits(connection: Any) -> bool:
        """Whether there is a transport to take over; the connections of a fake have none."""
        writer = getattr(connection, "_writer", None)
        return isinstance(writer, asyncio.StreamWriter)

    async def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Writes commands and returns so many replies; those that are errors stand in their places.

        Others may write before the replies have come. A caller who is cancelled takes nothing from them; the
        replies are passed over when they come.

        Raises
        ------
        NotWritten: it is lost, and these have not gone out.
        redis.exceptions.ConnectionError: it was lost.
        TimeoutError: the server is silent; those who wrote later still wait for their own time.
        """
        if self.lost:
            raise NotWritten("the connection is closed")
        until = self._loop.time() + self._timeout_s
        exchange = _Exchange(replies, until, self._loop.create_future())
        if not self._under_way:
            # A lone caller goes out at once, with no wait for company.
            self._transport.write(packed)
        else:
            if not self._gathered:
                self._loop.call_soon(self._write)
            self._gathered.append(packed)
        self._under_way.append(exchange)
        if self._timer is None:
            self._timer = self._loop.call_at(until, self._look)
        self.waiting += 1
        try:
            return await exchange.waiter
        finally:
            self.waiting -= 1

    def _write(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._transport.write(b"".join(gathered))

    def _look(self) -> None:
        """Tells those whose time is over; there is one timer for all, and it is not moved for each."""
        self._timer = None
        now = self._loop.time() + _EARLY_S
        for exchange in self._under_way:
            if exchange.until > now:
                self._timer = self._loop.call_at(exchange.until, self._look)
                return
            if not exchange.waiter.done():
                exchange.waiter.set_exception(TimeoutError("the server is silent"))

    def data_received(self, data: bytes) -> None:
        reader, under_way = self._reader, self._under_way
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING:
                # What nobody asked for (a push message of the newer protocol) is no reply.
                if isinstance(reply, hiredis.PushNotification):
                    continue
                if not under_way:
                    raise RedisConnectionError("the server answers what nobody asked")
                exchange = under_way[0]
                exchange.replies.append(reply)
                if len(exchange.replies) == exchange.wanted:
                    under_way.popleft()
                    if not exchange.waiter.done():
                        exchange.waiter.set_result(exchange.replies)
        except RedisError as error:
            self._transport.abort()
            self._lose(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(RedisConnectionError("the server closed the connection"))

    def _lose(self, error: Exception) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        written = len(self._under_way) - len(gathered)
        for at, exchange in enumerate(self._under_way):
            if not exchange.waiter.done():
                exchange.waiter.set_exception(error if at < written else NotWritten(str(error)))
        self._under_way.clear()
