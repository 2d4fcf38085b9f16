"""The bytes of one connection: a request written at once, its replies read as they come.

redis-py opens the connection (address, TLS, password, database); from then on its transport is driven from here. Its
own way from a command to a reply goes through a stream reader, a stream writer and a coroutine for each step, which
costs more than a batch of reservations does in Redis (measured, see `docs/design.md`). The parser is the same, hiredis.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

#: What the parser answers when a reply is not complete yet.
_NOTHING = object()


def pack(*command: Any) -> bytes:
    """A command in the protocol's form."""
    form: bytes = hiredis.pack_command(command)
    return form


class Wire(asyncio.Protocol):
    """Takes over the transport of a redis-py connection that has been opened.

    Parameters
    ----------
    connection: connected, with no command under way.
    """

    def __init__(self, connection: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._replies: list[Any] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self.lost = False
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

    async def exchange(self, packed: bytes, replies: int, timeout_s: float) -> list[Any]:
        """Writes commands and returns so many replies; those that are errors stand in their places.

        After anything that it raises, and after a cancellation, the connection is of no more use.

        Raises
        ------
        redis.exceptions.ConnectionError: it was lost.
        TimeoutError: the server is silent.
        """
        if self.lost:
            raise RedisConnectionError("the connection is closed")
        self._wanted = replies
        self._replies = []
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._give_up)
        try:
            self._transport.write(packed)
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        return self._replies

    def _give_up(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError("the server is silent"))

    def data_received(self, data: bytes) -> None:
        reader, replies = self._reader, self._replies
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING:
                # What nobody asked for (a push message of the newer protocol) is no reply.
                if not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        except RedisError as error:
            self._fail(error)
            return
        waiter = self._waiter
        if len(replies) >= self._wanted and waiter is not None and not waiter.done():
            waiter.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._fail(RedisConnectionError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
