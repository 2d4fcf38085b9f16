"""Leases: one key per held ticket that Redis itself lets go at the deadline, for those who listen to its notifications.

They are a wake-up and never the truth, so nobody waits for them and a failure is only logged. All of them go through
one queue, in order: a ticket's lease is set before it is deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from redis.exceptions import RedisError

from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.scripts import Scripts

log = logging.getLogger("holdfast.leases")

#: Calls that may wait: behind a stalled Redis leases are given up sooner than memory.
QUEUE_MAX = 10_000


class Leases:
    """Sets and deletes leases in the background."""

    def __init__(self, server: Server, scripts: Scripts) -> None:
        self._server = server
        self._scripts = scripts
        self._queue: deque[tuple[Sequence[str], int | None]] = deque()
        self._task: asyncio.Task[None] | None = None

    def set(self, keys: Sequence[str], deadline: int) -> None:
        """Gives these lease keys a TTL that ends at `deadline`, Unix milliseconds."""
        self._add(keys, deadline)

    def delete(self, keys: Sequence[str]) -> None:
        """Removes these lease keys before their time: their tickets were paid or cancelled."""
        self._add(keys, None)

    def _add(self, keys: Sequence[str], deadline: int | None) -> None:
        if len(self._queue) >= QUEUE_MAX:
            log.warning("too many leases are waiting; those of %d tickets are given up", len(keys))
            return
        self._queue.append((keys, deadline))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            while self._queue:
                keys, deadline = self._queue.popleft()
                try:
                    if deadline is None:
                        await self._server.call("UNLINK", *keys)
                    else:
                        await self._scripts.lease(keys, deadline)
                except (NotSent, NoReply, RedisError) as error:
                    log.warning("leases of %d tickets were not written: %s", len(keys), error)
        finally:
            self._task = None

    async def drained(self) -> None:
        """Returns once nothing waits or is under way."""
        while self._task is not None:
            await asyncio.wait([self._task])
