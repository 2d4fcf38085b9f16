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
    """Watches the memory of a server.

    Attributes
    ----------
    full: why nothing is reserved now; None when it is.
    """

    def __init__(self, server: Server, slots: Slots) -> None:
        self._server = server
        self._slots = slots
        self.full: str | None = None

    async def run(self) -> None:
        """Looks, and lets the slots reserve or not.

        Raises
        ------
        NotSent, NoReply: Redis does not answer.
        """
        try:
            info = await self._server.info("memory")
        except RedisError:
            return  # not allowed to be asked, which the start has warned of
        used, limit = self.told(info)
        if limit and used > MARGIN * limit and self.full is None:
            self.full = (
                f"Redis uses {used:,} of {limit:,} bytes; reserving goes on below {MARGIN_AGAIN:.0%} (raise maxmemory, "
                "and see that the store answers: the ledger is trimmed behind it)"
            )
            log.critical("ALARM %s", self.full)
            self._slots.refuse_reserving(NotReady(self.full, RETRY_AFTER_MS))
        elif self.full is not None and used <= MARGIN_AGAIN * limit:
            self.full = None
            log.warning("Redis has memory again: reserving goes on")
            self._slots.refuse_reserving(None)

    @staticmethod
    def told(info: Mapping[str, str]) -> tuple[int, int]:
        """Bytes used and bytes allowed, as INFO has them; 0 where it does not tell."""
        # Without a limit of its own Redis has the machine's. What waits for replicas and files does not count for it.
        limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
        return int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0)), limit
