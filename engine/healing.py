"""Healing: sales that a failover left behind the store are recovered without anybody being asked, where that is wanted.

Otherwise they wait for `holdfast recover`. It is safe as long as one primary at a time takes writes: see
`min-replicas-to-write` in `docs/howto/sentinel.md`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from holdfast.engine.errors import NotReady
from holdfast.engine.health import Health

log = logging.getLogger("holdfast.healing")

#: Seconds between two looks for sales that cannot be sold.
LOOK_S: Final = 1.0

#: Seconds for which another's recovery is left alone before it counts as one that died: the longest of them, of
#: millions of tickets, takes about a minute.
FENCED_S: Final = 120.0


class Healing:
    """Recovers what is behind.

    Parameters
    ----------
    recover: recovers the slot of this name; raises NotReady when another has taken over.
    """

    def __init__(self, health: Health, recover: Callable[[str], Awaitable[object]]) -> None:
        self._health = health
        self._recover = recover
        #: By slot, the fence that stands there and since when it was seen.
        self._fences: dict[str, tuple[str, float]] = {}

    async def run(self) -> None:
        """Recovers what is behind now, and leaves alone what somebody else is recovering, or has found oversold.

        Raises
        ------
        StoreError, NotSent, NoReply: a side does not answer.
        """
        now = asyncio.get_running_loop().time()
        seen: dict[str, tuple[str, float]] = {}
        for slot, fence in (await self._health.lost()).items():
            if fence is not None:
                known, since = self._fences.get(slot, (fence, now))
                seen[slot] = fence, since if known == fence else now
                if now - seen[slot][1] < FENCED_S:
                    continue
            log.warning("'%s' is behind the store: it is recovered", slot)
            try:
                await self._recover(slot)
            except NotReady as error:
                log.warning("'%s': %s", slot, error)
        self._fences = seen
