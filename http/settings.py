"""The settings of the commands: one field is one flag, one `HOLDFAST_` variable, one key in `holdfast.toml`.

Nothing here touches a file or the network; `serve.py` and the command line use the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from holdfast.engine import ConfigurationError, Durability
from holdfast.engine.engine import REPLICAS_DEFAULT, RETENTION_MS_DEFAULT, SNAPSHOT_MS_DEFAULT

if TYPE_CHECKING:
    from .context import AppConfig

PORT_MAX = 65_535

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]

#: Processes that serve one port. Redis is one thread, and busy with about eight of them; each takes some 60 MB.
WORKERS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the data is.

    Parameters
    ----------
    data_dir
        Directory of everything that is kept.
    redis
        Redis to use, as a URL: redis://host:6379/0, rediss://host:6379/0 with TLS, unix:///path,
        redis+sentinel://host,host/name or redis+cluster://host,host. Without it, Holdfast starts its own.
    redis_server
        The redis-server or valkey-server to start instead of the newest that is found.
    store
        The durable database (sqlite:///path, postgresql://user:password@host/database). Without it, SQLite in the data
        directory.
    secret
        Keys the hashes of buyers and ticket ids. Without it, one is made once and kept.
    config
        The file in which settings are looked for (TOML, flat).
    """

    data_dir: Path = Path("holdfast-data")
    # Both may carry a password.
    redis: str | None = field(default=None, repr=False)
    redis_server: str | None = None
    store: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    config: Path = Path("holdfast.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings(Settings):
    """How to serve.

    Parameters
    ----------
    host
        Address to listen on.
    port
        Port to listen on; 0 takes a free one and prints it.
    workers
        Processes that serve the port; one that dies is started again.
    connections_max
        Connections that each process keeps; by default 10000, or as many as the system allows.
    operator_token
        Opens the operator's calls. Without it, one is made once, kept, and printed.
    buyer_token_key
        Buyers must then bring a JWT signed with this key (HS256, at least 32 bytes).
    trusted_proxy
        A proxy, as an address or a network, whose X-Forwarded-For is believed; repeatable.
    allow_origin
        An origin whose pages may call, such as https://shop.example; repeatable.
    durability
        What a payment survives by default: memory, fsync, replica or stored.
    replicas
        Replicas of Redis that must have a payment at 'replica'.
    snapshot_ms
        Milliseconds between two copies of what is new into the store.
    retention_ms
        Milliseconds that ended tickets stay in Redis.
    log_format
        Lines of the log: text for people, or json.
    log_level
        The least that is logged: debug, info, warning, error or critical.
    access_log
        Log every request, one line each.
    recover
        Rebuild what Redis has lost from the store before serving and, on Sentinel and Cluster, after failovers.
    demo
        Create the sale 'demo' when there is no sale at all.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    connections_max: int | None = None
    operator_token: str | None = field(default=None, repr=False)
    buyer_token_key: str | None = field(default=None, repr=False)
    trusted_proxy: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    durability: Durability = Durability.MEMORY
    replicas: int = REPLICAS_DEFAULT
    snapshot_ms: int = SNAPSHOT_MS_DEFAULT
    retention_ms: int = RETENTION_MS_DEFAULT
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"
    access_log: bool = False
    recover: bool = False
    demo: bool = False

    def __post_init__(self) -> None:
        """Refuse what can never work.

        Raises
        ------
        ConfigurationError: with the flag and what it takes.
        """
        if not 0 <= self.port <= PORT_MAX:
            raise ConfigurationError(f"--port must lie between 0 and {PORT_MAX}, not {self.port}.")
        if not 1 <= self.workers <= WORKERS_MAX:
            raise ConfigurationError(f"--workers must lie between 1 and {WORKERS_MAX}, not {self.workers}.")
        if self.durability not in frozenset(Durability):
            raise ConfigurationError(f"--durability must be one of {', '.join(Durability)}, not '{self.durability}'.")
        if self.replicas < 1:
            raise ConfigurationError(f"--replicas must be at least 1, not {self.replicas}.")
        if self.connections_max is not None and self.connections_max < 1:
            raise ConfigurationError(f"--connections-max must be at least 1, not {self.connections_max}.")
        if self.snapshot_ms < 1:
            raise ConfigurationError(f"--snapshot-ms must be at least 1, not {self.snapshot_ms}.")
        if self.log_format not in get_args(LogFormat):
            raise ConfigurationError(
                f"--log-format must be one of {', '.join(get_args(LogFormat))}, not '{self.log_format}'."
            )
        if self.log_level not in get_args(LogLevel):
            raise ConfigurationError(
                f"--log-level must be one of {', '.join(get_args(LogLevel))}, not '{self.log_level}'."
            )
        if self.retention_ms < 0:
            raise ConfigurationError(f"--retention-ms must not be negative, not {self.retention_ms}.")

    def app_config(self, operator_token: str) -> AppConfig:
        """The settings of the HTTP face, checked.

        Parameters
        ----------
        operator_token: where none is set.

        Raises
        ------
        ConfigurationError: one of them cannot be right.
        """
        from .context import AppConfig  # with all of aiohttp, which most commands do not need

        return AppConfig.checked(
            operator_token=self.operator_token if self.operator_token is not None else operator_token,
            buyer_token_key=self.buyer_token_key,
            trusted_proxy=self.trusted_proxy,
            allow_origin=self.allow_origin,
            access_log=self.access_log,
        )
