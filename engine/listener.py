"""The keyspace-notification listener: wakes who waits for leases that ran out. Late and lossy, hence only a wake-up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.keys import EXPIRED_EVENTS, lease_ticket
from holdfast.engine.servers import Servers
from holdfast.engine.wire import Wire, pack

log = logging.getLogger("holdfast.listener")

#: Seconds before the subscription is tried again after it was lost.
RETRY_S = 1.0

#: Seconds between two looks for servers that have come or gone, or were replaced.
FOLLOW_S = 1.0

#: What the parser answers when a message is not complete yet.
_NOTHING = object()


class Listeners:
    """A listener at every server: each announces the leases of its own slots only.

    Parameters
    ----------
    heard: called with the ticket id of a lease that ran out; of several that are announced together, one.
    """

    def __init__(self, servers: Servers, heard: Callable[[str], None]) -> None:
        self._servers = servers
        self._heard = heard
        self._at: dict[Server, tuple[Listener, asyncio.Task[None]]] = {}
        self._begun = asyncio.Event()

    async def run(self) -> None:
        """Listens until cancelled, wherever slots are."""
        try:
            while True:
                there = self._servers.all()
                for server in there:
                    if server not in self._at:
                        listener = Listener(server, self._heard)
                        self._at[server] = listener, asyncio.create_task(listener.run())
                for server in [server for server in self._at if server not in there]:
                    self._at.pop(server)[1].cancel()
                self._begun.set()
                await asyncio.sleep(FOLLOW_S)
        finally:
            tasks = [task for _, task in self._at.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def subscribed(self) -> None:
        """Returns once every server that is known has been subscribed to."""
        await self._begun.wait()
        for listener, _ in list(self._at.values()):
            await listener.subscribed.wait()


class Listener:
    """Subscribes to the expired leases of one server; parameters as of `Listeners`."""

    def __init__(self, server: Server, heard: Callable[[str], None]) -> None:
        self._server = server
        self._heard = heard
        self._said = False
        #: Set while the subscription stands.
        self.subscribed = asyncio.Event()

    async def enable(self) -> bool:
        """Adds `Ex` to the server's notification flags; False when that is forbidden, which is said once."""
        try:
            reply = await self._server.call("CONFIG", "GET", "notify-keyspace-events")
            flags = (reply.get(b"notify-keyspace-events", b"") if isinstance(reply, dict) else reply[1]).decode()
            # A stands for every kind of event, x among them.
            wanted = flags + ("" if "E" in flags else "E") + ("" if "x" in flags or "A" in flags else "x")
            if wanted != flags:
                await self._server.call("CONFIG", "SET", "notify-keyspace-events", wanted)
            return True
        except ResponseError as error:
            if not self._said:
                self._said = True
                log.warning(
                    "Redis does not allow CONFIG (%s): set notify-keyspace-events Ex in its configuration; "
                    "without notifications the sweeper alone expires",
                    error,
                )
            return False
        except (NotSent, NoReply):
            return False  # the subscription will not be had either, which is said there

    async def run(self) -> None:
        """Listens until cancelled; subscribes again whenever the connection is lost."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, NotSent) as error:
                # Once for each that was had, and not for each try.
                if self.subscribed.is_set():
                    log.info("the subscription was lost (%s); it is tried again", type(error).__name__)
            finally:
                self.subscribed.clear()
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        await self.enable()
        connection = await self._server.connect_apart()
        generation = self._server.generation
        try:
            if not Wire.fits(connection):
                await asyncio.Event().wait()  # a fake, which announces nothing
            ears = _Ears(connection, self.subscribed, self._heard)
            ears.send(pack("PSUBSCRIBE", EXPIRED_EVENTS))
            # Who died without a word closes nothing, and announces nothing any more.
            try:
                while self._server.generation == generation:
                    if (await asyncio.wait({ears.lost}, timeout=FOLLOW_S))[0]:
                        ears.lost.result()
            finally:
                ears.lost.cancel()
            raise NotSent("another server has taken its place")
        finally:
            await connection.disconnect(nowait=True)


class _Ears(asyncio.Protocol):
    """A connection that only listens.

    When a million holds run out in one second Redis announces a million leases, and a message through redis-py costs as
    much as a reservation. One announcement in a stretch of them wakes as well as all of them do; the others are only
    parsed.
    """

    def __init__(self, connection: Any, subscribed: asyncio.Event, heard: Callable[[str], None]) -> None:
        self._subscribed = subscribed
        self._heard = heard
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport = connection._writer.transport
        self._transport.set_protocol(self)

    def send(self, packed: bytes) -> None:
        """Writes a command."""
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        """Looks for an announcement, and for the answer to the subscription."""
        self._reader.feed(data)
        woken = False
        while (message := self._reader.gets()) is not _NOTHING:
            if isinstance(message, Exception):
                self._lose(RedisConnectionError(str(message)))
            elif isinstance(message, list) and message[0] == b"psubscribe":
                self._subscribed.set()
            elif not woken and isinstance(message, list) and message[0] == b"pmessage":
                ticket = lease_ticket(message[3].decode(errors="replace"))
                if ticket is not None:
                    woken = True
                    self._heard(ticket)

    def connection_lost(self, error: Exception | None) -> None:
        """The subscription is gone, too."""
        self._lose(RedisConnectionError("the server closed the connection"))

    def _lose(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_exception(error)
