"""The keyspace-notification listener: wakes who waits for leases that ran out. Late and lossy, hence only a wake-up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from redis.exceptions import RedisError, ResponseError

from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.keys import EXPIRED_EVENTS, lease_ticket

log = logging.getLogger("holdfast.listener")

#: Seconds before the subscription is tried again after it was lost.
RETRY_S = 1.0


class Listener:
    """Subscribes to expired leases.

    Parameters
    ----------
    heard: called with the ticket id of each lease that ran out.
    """

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
                    "Redis does not allow CONFIG (%s): running without notifications, the sweeper alone expires", error
                )
            return False
        except (NotSent, NoReply) as error:
            log.info("notifications could not be switched on: %s", error)
            return False

    async def run(self) -> None:
        """Listens until cancelled; subscribes again whenever the connection is lost."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.info("the subscription was lost (%s); it is tried again", type(error).__name__)
            finally:
                self.subscribed.clear()
            await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        await self.enable()
        client = self._server.client()
        pubsub = client.pubsub(ignore_subscribe_messages=False)
        try:
            await pubsub.psubscribe(EXPIRED_EVENTS)
            while True:
                # A time-out of its own: silence is normal here, and no reason to reconnect.
                message = await pubsub.get_message(timeout=None)
                if message is None:
                    continue
                if message["type"] == "psubscribe":
                    self.subscribed.set()
                elif message["type"] == "pmessage":
                    ticket = lease_ticket(bytes(message["data"]).decode(errors="replace"))
                    if ticket is not None:
                        self._heard(ticket)
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
            await client.aclose()
