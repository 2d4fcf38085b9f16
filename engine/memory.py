"""Redis' memory, watched: stock that nobody has yet is refused before there is no room for what is held.

A reservation takes memory for a ticket and its ledger, and the ledger cannot be trimmed while the store is away. What
is held can be paid, cancelled and expired in the room that is kept for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from redis.exceptions import RedisError

from holdfast.engine.connection import Server
from holdfast.engine.errors import NotReady
from holdfast.engine.servers import Servers, each
from holdfast.engine.slots import Slots

log = logging.getLogger("holdfast.memory")

#: Shares of the memory that Redis may use: above the first nothing is reserved, below the second again. A payment adds
#: some 130 bytes to the 450 of a held ticket, and takes its lease of 100 away: a tenth is room for all that is held.
MARGIN = 0.90
MARGIN_AGAIN = 0.85

#: Seconds between two looks. At 20,000 reservations a second, 500 bytes each, that is 10 MB.
LOOK_S = 1.0

#: Milliseconds after which a refused buyer may try again: copying and trimming, or more memory, take a while.
RETRY_AFTER_MS = 5_000


class Memory:
    """Watches the memory of each server.

    Attributes
    ----------
    full: by server, why nothing is reserved there now.
    """

    def __init__(self, servers: Servers, slots: Slots) -> None:
        self._servers = servers
        self._slots = slots
        self.full: dict[Server, str] = {}

    async def run(self) -> None:
        """Looks, and lets the slots reserve or not.

        Raises
        ------
        NotSent, NoReply: a server does not answer; the others were looked at.
        """
        told = await each(self._servers.all(), self._ask)
        self.full = {server: why for server, why in self.full.items() if server in told}
        for server, info in told.items():
            if isinstance(info, dict):
                self._judge(server, info)
        self._slots.refuse_reserving({server: NotReady(why, RETRY_AFTER_MS) for server, why in self.full.items()})
        for info in told.values():
            if isinstance(info, Exception):
                raise info

    async def _ask(self, server: Server) -> dict[str, str]:
        try:
            return await self._servers.in_time(server, server.info("memory"))
        except RedisError:
            return {}  # not allowed to be asked, which the start has warned of

    def _judge(self, server: Server, info: Mapping[str, str]) -> None:
        used, limit = self.told(info)
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            # The start refuses it; a node that came later was not there to be asked.
            why = f"Redis at {server.place} evicts keys when memory is full ({policy}): set maxmemory-policy noeviction"
        elif limit and used > (MARGIN_AGAIN if server in self.full else MARGIN) * limit:
            why = (
                f"Redis uses {used:,} of {limit:,} bytes; reserving goes on below {MARGIN_AGAIN:.0%} (raise maxmemory, "
                "and see that the store answers: the ledger is trimmed behind it)"
            )
        elif self.full.pop(server, None):
            log.warning("Redis at %s has memory again: reserving goes on", server.place)
            return
        else:
            return
        if server not in self.full:
            self.full[server] = why
            log.critical("ALARM %s", why)

    @staticmethod
    def told(info: Mapping[str, str]) -> tuple[int, int]:
        """Bytes used and bytes allowed, as INFO has them; 0 where it does not tell."""
        # Without a limit of its own Redis has the machine's. What waits for replicas and files does not count for it.
        limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
        return int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0)), limit
