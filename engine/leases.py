"""Leases: one key per held ticket that Redis itself lets go at the deadline, for those who listen to its notifications.

They are a wake-up and never the truth, so nobody waits for them and a failure is only logged. All of them go through
one queue, in order: a ticket's lease is set before it is deleted. They are plain commands in a pipeline and no script:
`SET` from a script takes Redis a third longer (measured).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import RedisError

from holdfast.engine.connection import NoReply, NotSent, Server

log = logging.getLogger("holdfast.leases")

#: Batches that may wait: behind a stalled Redis leases are given up sooner than memory.
QUEUE_MAX = 10_000


class _Batch(NamedTuple):
    prefix: str
    tickets: Sequence[str]
    deadline: int | None


class Leases:
    """Sets and deletes leases in the background."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._queue: deque[_Batch] = deque()
        self._task: asyncio.Task[None] | None = None

    def set(self, prefix: str, tickets: Sequence[str], deadline: int) -> None:
        """Gives the lease keys of these tickets a TTL that ends at `deadline`, Unix milliseconds.

        Parameters
        ----------
        prefix: of the keys, up to the ticket's id. tickets: ids, all of one length.
        """
        self._add(_Batch(prefix, tickets, deadline))

    def delete(self, prefix: str, tickets: Sequence[str]) -> None:
        """Removes the lease keys of these tickets before their time: they were paid or cancelled."""
        self._add(_Batch(prefix, tickets, None))

    def _add(self, batch: _Batch) -> None:
        if len(self._queue) >= QUEUE_MAX:
            log.warning("too many leases are waiting; those of %d tickets are given up", len(batch.tickets))
            return
        self._queue.append(batch)
        if self._task is None:
            self._task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._queue:
                batch = self._queue.popleft()
                try:
                    if batch.deadline is None:
                        await self._server.call("UNLINK", *(batch.prefix + ticket for ticket in batch.tickets))
                    else:
                        replies = await self._server.exchange(_packed(batch), len(batch.tickets))
                        if isinstance(replies[-1], RedisError):
                            raise replies[-1]
                except (NotSent, NoReply, RedisError) as error:
                    log.warning("leases of %d tickets were not written: %s", len(batch.tickets), error)
        finally:
            self._task = None

    async def drained(self) -> None:
        """Returns once nothing waits or is under way."""
        while self._task is not None:
            await asyncio.wait([self._task])


def _packed(batch: _Batch) -> bytes:
    """`SET KEY "" PXAT DEADLINE` for each ticket, in the protocol's form; only the ids differ, so it is one `join`."""
    prefix, deadline = batch.prefix.encode(), str(batch.deadline).encode()
    size = len(prefix) + len(batch.tickets[0])
    before = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b" % (size, prefix)
    after = b"\r\n$0\r\n\r\n$4\r\nPXAT\r\n$%d\r\n%b\r\n" % (len(deadline), deadline)
    return before + (after + before).join(ticket.encode() for ticket in batch.tickets) + after
