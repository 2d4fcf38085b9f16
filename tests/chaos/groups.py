"""Redis as a cluster, or as a primary with sentinels, in the place that one Redis has in a deployment."""

from __future__ import annotations

import asyncio
from typing import Any

import redis
from clusters import Cluster, Node, Sentinels

from holdfast.engine.keys import slot_keys

from .servers import PATIENCE_S, redis_binary


class Group:
    """A running group, as `Deployment` takes a `Redis`.

    Parameters
    ----------
    servers: started already. What it does blocks, and is therefore done in threads here.
    """

    def __init__(self, servers: Cluster | Sentinels) -> None:
        self.servers = servers
        self.url = servers.address()

    @property
    def alive(self) -> bool:
        return True

    def kill(self) -> None:
        self.servers.stop()

    def primary(self, slot: str) -> Node:
        """The node that has a slot now."""
        return (
            self.servers.primary(slot_keys(slot).sale) if isinstance(self.servers, Cluster) else self.servers.primary()
        )

    async def ask_about(self, slot: str, *command: Any, timeout: float = PATIENCE_S) -> Any:
        """One command on a key of this slot, at the node that has it.

        Raises
        ------
        redis.RedisError: there is none, or it does not answer.
        """
        try:
            node = await asyncio.to_thread(self.primary, slot)
        except LookupError as error:
            raise redis.ConnectionError(str(error)) from error
        return await asyncio.to_thread(node.ask, *command, timeout_s=timeout)


def cluster(kind: str = "installed", **how: Any) -> Group:
    """A new cluster of three primaries and three replicas; see `clusters.Cluster`."""
    return Group(Cluster(redis_binary(kind), **how))


def sentinels(kind: str = "installed", **how: Any) -> Group:
    """A new primary with two replicas and three sentinels; see `clusters.Sentinels`."""
    return Group(Sentinels(redis_binary(kind), **how))
