"""What every process of the server does, whether it serves alone, watches over others, or is one of them."""

from __future__ import annotations

import gc
import resource
import sys
from typing import Any, Final

from holdfast.engine import ConfigurationError, Durability, Engine

from .direct import CONNECTIONS_MAX_DEFAULT, SURPLUS_MAX
from .settings import ServeSettings

#: Open files of a process beside its connections: 64 to Redis, the store, listening sockets, pipes; and those that are
#: turned away.
FILES_KEPT: Final = 256 + SURPLUS_MAX

#: Objects made and not yet freed before the garbage collector looks for those that only refer to each other: what 2,000
#: requests that arrive together keep (22 each, measured). Python's 700 are those of 32, which it would walk over again
#: and again, and find nothing.
YOUNG_OBJECTS: Final = 50_000


def engine_of(settings: ServeSettings, **more: Any) -> Engine:
    """The engine of a process of the server, not yet started.

    Parameters
    ----------
    more: what this process does otherwise than `Engine.connect` by itself.
    """
    options = {
        "store": settings.store,
        "data_dir": settings.data_dir,
        "secret": settings.secret,
        "redis_server": settings.redis_server,
        "durability": Durability(settings.durability),
        "replicas": settings.replicas,
        "snapshot_ms": settings.snapshot_ms,
        "retention_ms": settings.retention_ms,
    }
    return Engine.connect(settings.redis, **(options | more))


def allow_many_connections() -> None:
    """Use what the system allows: a connection is an open file, and the usual soft limit is 1,024 of them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def connections_max(settings: ServeSettings) -> int:
    """How many connections each process keeps: as set, or as many as the system allows, up to the default.

    Raises
    ------
    ConfigurationError: the system does not allow as many as are set.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where only a few files may be open, half of them.
    possible = sys.maxsize if files == resource.RLIM_INFINITY else max(files - FILES_KEPT, files // 2)
    if settings.connections_max is None:
        return min(possible, CONNECTIONS_MAX_DEFAULT)
    if settings.connections_max > possible:
        raise ConfigurationError(
            f"--connections-max {settings.connections_max} is more than this system allows, which is {possible}: "
            "raise the limit of open files (ulimit -n, LimitNOFILE)."
        )
    return settings.connections_max


def collect_rarely() -> None:
    """Keep the garbage collector from what cannot be garbage: requests under way, and whatever the imports made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
