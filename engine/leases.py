"""Leases: one key per held ticket that Redis itself lets go at the deadline, for those who listen to its notifications.

They are a wake-up and never the truth, so nobody waits for them and a failure is only logged. Their commands ride along
with whatever goes to Redis next, in front of it: a call of their own would cost Redis and this process as much again as
a batch of reservations does, whatever its size (measured, see `docs/design.md`). They are plain commands and no script:
`SET` from a script takes Redis a third longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from redis.exceptions import ResponseError

from holdfast.engine.connection import Elsewhere, NoReply, NotSent, Server, refusal
from holdfast.engine.keys import SlotKeys
from holdfast.engine.servers import Servers
from holdfast.engine.wire import pack

log = logging.getLogger("holdfast.leases")

#: Seconds that they wait for a call to ride along with before they go alone.
WAIT_S = 0.002

#: Bytes that may wait: behind a stalled Redis leases are given up sooner than memory.
BYTES_MAX = 16 * 1024 * 1024


class Leases:
    """Sets and deletes leases in the background."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        #: By server, who sees off what waits there.
        self._tasks: dict[Server, asyncio.Task[None]] = {}

    def set(self, keys: SlotKeys, tickets: Sequence[str], deadline: int) -> None:
        """Gives the lease keys of these tickets a TTL that ends at `deadline`, Unix milliseconds.

        Parameters
        ----------
        tickets: ids, all of one length.
        """
        self._add(keys, _packed(_prefix(keys), tickets, deadline), len(tickets), len(tickets))

    def delete(self, keys: SlotKeys, tickets: Sequence[str]) -> None:
        """Removes the lease keys of these tickets before their time: they were paid or cancelled."""
        prefix = _prefix(keys)
        self._add(keys, pack("UNLINK", *[prefix + ticket for ticket in tickets]), 1, len(tickets))

    def _add(self, keys: SlotKeys, packed: bytes, replies: int, tickets: int) -> None:
        try:
            server = self._servers.of(keys.slot)
        except NotSent as error:
            self._heard([error])
            return
        if server.riding > BYTES_MAX:
            log.warning("too many leases are waiting; those of %d tickets are given up", tickets)
            return
        server.ride(packed, replies, self._heard)
        if server not in self._tasks:
            self._tasks[server] = asyncio.create_task(self._see_off(server))

    @staticmethod
    def _heard(replies: Sequence[object]) -> None:
        for reply in replies:
            if isinstance(reply, ResponseError):
                reply = refusal(reply) or reply
            if isinstance(reply, (ResponseError, NotSent, NoReply)):
                # While a slot is being moved that is as it has to be.
                level = logging.INFO if isinstance(reply, Elsewhere) else logging.WARNING
                log.log(level, "leases were not written: %s", reply)
                return

    async def _see_off(self, server: Server) -> None:
        """Sends what has found nothing to ride along with."""
        try:
            while server.riding:
                await asyncio.sleep(WAIT_S)
                if server.riding:
                    with contextlib.suppress(NotSent, NoReply):  # heard
                        await server.exchange(b"", 0)
        finally:
            del self._tasks[server]

    async def drained(self) -> None:
        """Returns once nothing waits or is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())


def _prefix(keys: SlotKeys) -> str:
    """Of the lease keys of a slot, up to the ticket's id: they name the ticket as callers know it."""
    return f"{keys.lease_prefix}{keys.slot}."


def _packed(prefix: str, tickets: Sequence[str], deadline: int) -> bytes:
    """`SET KEY "" PXAT DEADLINE` for each ticket, in the protocol's form; only the ids differ, so it is one `join`."""
    until = str(deadline).encode()
    size = len(prefix) + len(tickets[0])
    before = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b" % (size, prefix.encode())
    after = b"\r\n$0\r\n\r\n$4\r\nPXAT\r\n$%d\r\n%b\r\n" % (len(until), until)
    return before + (after + before).join([ticket.encode() for ticket in tickets]) + after
