"""A primary that sentinels watch: wherever they say that it is."""

from __future__ import annotations

import asyncio
import itertools
import logging

import redis.asyncio as redis_asyncio
from redis.exceptions import RedisError, ResponseError

from holdfast.engine.addresses import Address, Place, shown
from holdfast.engine.connection import CONNECTION, NotSent, Server
from holdfast.engine.errors import ConfigurationError
from holdfast.engine.servers import Servers

log = logging.getLogger("holdfast.sentinel")

#: Seconds for one sentinel to tell. They are asked together: one that hangs holds nobody up for longer.
ANSWER_S = 0.5

#: Seconds between two looks at who is the primary. Until somebody looks, what is written to one that was replaced and
#: is still there is lost; a look is a small question to each sentinel.
FOLLOW_S = 0.2

#: Seconds for which calls are sent again: a primary that died is replaced after the `down-after-milliseconds` of the
#: sentinels (1 to 5 s with the settings that `docs/howto/sentinel.md` advises) and an election of a second.
PATIENCE_S = 10.0


class Sentinels(Servers):
    """The primary of a group that sentinels watch.

    Parameters
    ----------
    address: of the sentinels, and what they call the group.
    """

    patience_s = PATIENCE_S
    follows = True
    splits = True
    follow_s = FOLLOW_S

    def __init__(self, address: Address) -> None:
        assert address.node is not None  # as `addresses.read` makes it
        assert address.sentinel is not None
        self._address = address
        self._sentinels = [
            redis_asyncio.Redis(
                connection_pool=redis_asyncio.ConnectionPool(**address.sentinel | CONNECTION, host=host, port=port)
            )
            for host, port in address.hosts
        ]
        #: Where connections were led to last.
        self._primary: Place | None = None
        pool = redis_asyncio.ConnectionPool(**address.node | CONNECTION, host="")
        generations = itertools.count(1)
        one = Server(pool=pool, place=address.place, generations=generations, locate=self._lead, primary=True)
        super().__init__(one)

    async def start(self) -> None:
        """As `Servers.start`."""
        await self.follow()

    async def follow(self) -> None:
        """As `Servers.follow`: connections to whoever is not the primary any more are given up."""
        before = self._primary
        place = await self._locate()
        if before is not None and before != place:
            log.warning("the sentinels name %s as the primary, and no longer %s", shown(place), shown(before))
            await self.one.abandon()

    async def _lead(self) -> Place:
        """Where a connection is to go; raises NotSent where nobody knows."""
        try:
            return await self._locate()
        except ConfigurationError as error:
            raise NotSent(str(error)) from error

    async def _locate(self) -> Place:
        """Where the primary is. Of sentinels that disagree the one with the later epoch is right.

        Raises
        ------
        NotSent: none of them tells. ConfigurationError: they do not know the group.
        """
        told = await asyncio.gather(*map(self._tell, self._sentinels))
        known = [answer for answer in told if isinstance(answer, tuple)]
        if not known:
            for answer in told:
                if isinstance(answer, ConfigurationError):
                    raise answer
            raise NotSent(f"none of the sentinels at {self._address.place} tells where the primary is")
        _, self._primary = max(known)
        return self._primary

    async def _tell(self, sentinel: redis_asyncio.Redis) -> tuple[int, Place] | Exception:
        """The epoch and the place of the primary as one sentinel knows them, or why it does not tell."""
        asked = sentinel.pipeline(transaction=False)
        asked.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._address.group)
        asked.execute_command("SENTINEL MASTER", self._address.group)
        try:
            async with asyncio.timeout(ANSWER_S):
                # The one that leads a failover has the new epoch in MASTER, and the old address until all replicas
                # follow the new primary: only GET-MASTER-ADDR-BY-NAME tells where that is.
                place, fields = await asked.execute(raise_on_error=False)
            for answer in (place, fields):
                if isinstance(answer, ResponseError):
                    return ConfigurationError(f"the sentinels do not know '{self._address.group}': {answer}")
            host, port = place
            host = host.decode() if isinstance(host, bytes) else str(host)
            return int(fields["config-epoch"]), (host, int(port))
        except (RedisError, OSError, TimeoutError, KeyError, ValueError, TypeError) as error:
            return NotSent(type(error).__name__)

    async def close(self) -> None:
        """As `Servers.close`."""
        await super().close()
        for sentinel in self._sentinels:
            await sentinel.aclose(close_connection_pool=True)
