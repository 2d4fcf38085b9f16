"""Connections to Redis, and noticing when the server behind them is another one than before.

redis-py re-sends a command by itself after a lost connection, and cannot say afterwards whether the first one was sent.
Here that difference matters (`not_ready` against `outcome_unknown`, and a server that must be checked before it is
believed), so redis-py opens connections and what happens around a command is ours (the bytes in `wire.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from typing import Any, NamedTuple

import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.maint_notifications import MaintNotificationsConfig

from holdfast.engine.addresses import Place, read, unusable
from holdfast.engine.errors import ConfigurationError
from holdfast.engine.wire import NotWritten, Wire, pack

log = logging.getLogger("holdfast.connection")

#: Seconds until a silent server counts as gone; a script holds Redis for about 2 ms, a rewrite of the append-only file
#: may stall it for a second or two.
REPLY_TIMEOUT_S = 5.0

#: Seconds to open a connection on a machine that does not answer at all.
CONNECT_TIMEOUT_S = 2.0


#: Exchanges of one process with one server that are under way; most share a connection, and the others have their own.
#: Each carries a whole batch, so that a few keep Redis busy. A server allows 10,000 connections.
CONNECTIONS_MAX = 64

#: What travels on the connection that all share: these are short in Redis and in their replies, and never wait.
_TOGETHER = frozenset({"EVALSHA", "EVAL"})


#: How connections are opened, whatever they lead to.
CONNECTION: dict[str, Any] = {
    # One timer around a command, ours, instead of redis-py's task for each send.
    "socket_timeout": None,
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "retry": Retry(NoBackoff(), 0),
    "health_check_interval": 0,
    # Nothing is said on a connection that Holdfast does not need: a Redis user may be allowed just that.
    "driver_info": None,
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}

#: The words with which Redis refuses before anything is done, and whether that passes by itself: a full memory or disk
#: does not, a server that loads, a replica or a cluster on the move does.
_REFUSALS = {
    "OOM": False,
    "MISCONF": False,
    "READONLY": True,
    "MASTERDOWN": True,
    "NOREPLICAS": True,
    "CLUSTERDOWN": True,
    "TRYAGAIN": True,
    "BUSY": True,
    "LOADING": True,
}

_WORDS: dict[type[ResponseError], str] = {
    OutOfMemoryError: "OOM",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
}


class NotSent(Exception):
    """Redis did not take the command: nothing has happened.

    Parameters
    ----------
    passing: trying again in a moment may well succeed; not so when memory or disk is full.
    """

    def __init__(self, reason: str, passing: bool = True) -> None:
        super().__init__(reason)
        self.passing = passing


class Elsewhere(NotSent):
    """The slot of the command is another node's.

    Parameters
    ----------
    slot: its number in the cluster. place: of the node; the host is empty where it is the one that answered.
    once: only this command is to be sent there: the slot is being moved, and the node that answered has it still.
    """

    def __init__(self, slot: int, place: Place, once: bool) -> None:
        super().__init__("the slot is being moved" if once else "the slot was moved to another node")
        self.slot = slot
        self.place = place
        self.once = once


class NoReply(Exception):
    """The command was sent and its reply never came: it may have happened or not."""


class _Rider(NamedTuple):
    """Commands that travel in front of others."""

    packed: bytes
    replies: int
    heard: Callable[[Sequence[Any]], None]


class ServerChanged(RedisConnectionError):
    """A connection reached another server process than the last one did; raised before anything is sent on it."""


class Server:
    """One Redis server: the only one of an engine, or a node of a cluster, or the primary that sentinels name.

    Parameters
    ----------
    url: `redis://`, `rediss://` or `unix://`, with the special characters of user and password as %XX.
    pool: connections to use instead.
    place: where it is, for messages; None is what the address tells.
    generations: numbers that were not used before; shared by the nodes of a deployment, so that each is one node's.
    locate: tells where to connect to, for one that moves; raises NotSent where nobody knows.
    primary: whatever is not a primary is not used.

    Raises
    ------
    ConfigurationError: the address is not usable; the sentence shows nothing of it.

    Attributes
    ----------
    generation: another one each time that another server process (`run_id`) is met. Whoever knows something of the data
        compares the generation that he learnt it in.
    connects: connections that were made so far. Whoever has asked the server for a setting asks again when there is one
        more.
    riding: bytes that wait for the next exchange.
    version: of the server that was met last. is_valkey: whether that is Valkey's own, and not the one of Redis.
    reign: what it calls the history that it writes: a new one after each failover and restart. Empty for a fake.
    """

    def __init__(
        self,
        url: str = "",
        pool: redis_asyncio.ConnectionPool | None = None,
        *,
        place: str | None = None,
        generations: Iterator[int] | None = None,
        locate: Callable[[], Awaitable[Place]] | None = None,
        primary: bool = False,
    ) -> None:
        #: Where it is, without user and password: it stands in messages and logs. The address itself is not kept.
        self.place = place or ("a fake" if pool is not None else read(url).place)
        self._generations = generations or itertools.count(1)
        self.generation = next(self._generations)
        self.connects = 0
        self.riding = 0
        self.version = ""
        self.is_valkey = False
        self.reign = ""
        self._fake = pool is not None and place is None
        self._locate = locate
        self._primary = primary
        #: Whether it is a node of a cluster, in Redis' word.
        self._mode = ""
        #: Of the process that was met last, and of the history that it writes.
        self._met: tuple[str, str] | None = None
        self._free: list[Any] = []
        self._busy: set[Any] = set()
        self._shared: Any = None
        self._opening: asyncio.Task[Any] | None = None
        self._turn = asyncio.Semaphore(CONNECTIONS_MAX)
        self._riders: list[_Rider] = []
        try:
            self.pool = pool or redis_asyncio.ConnectionPool.from_url(url, **CONNECTION)
            if not self._fake:
                self.pool.connection_kwargs["redis_connect_func"] = self._greet
            self.pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RedisError):
            # Not in the library's words, which may quote a part of the password.
            raise unusable() from None

    async def _greet(self, connection: Any) -> None:
        """Asks a new connection which server process it has reached, before anything else is said on it."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        fields = info_fields(await connection.read_response())
        await connection.send_command("INFO", "replication")
        replication = info_fields(await connection.read_response())
        if self._primary and replication.get("role") != "master":
            raise RedisConnectionError("it is no primary")
        self.reign = replication.get("master_replid", "")
        self._mode = fields.get("redis_mode", "")
        met = fields.get("run_id", ""), self.reign
        self.is_valkey = "valkey_version" in fields
        self.version = fields.get("valkey_version") or fields.get("redis_version", "")
        if self._met is None:
            self._met = met
        elif met != self._met:
            self._met = met
            self.generation = next(self._generations)
            log.warning(
                "redis is another process than before (generation %d): it is checked before it is used", self.generation
            )
            raise ServerChanged("redis was restarted or replaced")
        connection.generation = self.generation
        self.connects += 1

    async def abandon(self) -> None:
        """Gives up every connection: what is under way on them hears NoReply. The next call makes new ones."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        left, self._free = [*self._free, *self._busy], []
        if self._shared is not None:
            left.append(self._shared)
            self._shared = None
        for connection in left:
            await connection.disconnect(nowait=True)

    async def call(self, *command: Any, generation: int | None = None) -> Any:
        """One command.

        Parameters
        ----------
        generation: of the server for which it is meant; None is the one that is known now.

        Raises
        ------
        NotSent: Redis could not be reached, is another one than it was meant for, or refuses commands for now.
        NoReply: the connection was lost with the command under way.
        redis.exceptions.ResponseError: Redis answered with an error.
        """
        (reply,) = await self.exchange(pack(*command), 1, generation, alone=command[0] not in _TOGETHER)
        if isinstance(reply, ResponseError):
            raise refusal(reply) or reply
        return reply

    async def info(self, section: str) -> dict[str, str]:
        """A section of what INFO answers, by field; raises as `call`."""
        return info_fields(await self.call("INFO", section))

    async def meet(self) -> None:
        """Meets the server that is there now: if it is another one than before, this call hears it and not the next."""
        with contextlib.suppress(NotSent, NoReply, ResponseError):
            await self.call("PING")

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Several commands in one round trip, on a connection of their own for that time.

        A reply that is an error is returned in its place. Raises as `call`, which is the same for one command.
        """
        return await self.exchange(b"".join(pack(*command) for command in commands), len(commands), alone=True)

    async def exchange(
        self, packed: bytes, replies: int, generation: int | None = None, *, alone: bool = False
    ) -> list[Any]:
        """As `pipeline`, with commands that are in the protocol's form already, on the connection that all share.

        What is sent in one turn of the event loop travels together, also while replies are still under way.

        Parameters
        ----------
        replies: how many commands these are. generation: as of `call`.
        alone: on a connection of their own, because they wait in Redis or their replies are long: everybody would wait
            behind them.
        """
        # Of now, and not of when a connection is there: until then others may meet another server, and what this call
        # carries (the floor above all) was learnt of this one.
        generation = self.generation if generation is None else generation
        send = self._alone if alone or self._fake else self._together
        async with self._turn:
            if not self._riders:
                return await send(generation, packed, replies) if replies else []
            riders, self._riders, self.riding = self._riders, [], 0
            ahead = sum(rider.replies for rider in riders)
            packed = b"".join([*(rider.packed for rider in riders), packed])
            try:
                answers = await send(generation, packed, ahead + replies)
            except (NotSent, NoReply) as error:
                for rider in riders:
                    rider.heard([error])
                raise
            at = 0
            for rider in riders:
                rider.heard(answers[at : at + rider.replies])
                at += rider.replies
            return answers[ahead:]

    async def _together(self, generation: int, packed: bytes, replies: int) -> list[Any]:
        connection = self._shared
        if connection is None or not self._usable(connection):
            connection = await self._share()
        self._busy.add(connection)
        try:
            return await self._exchange(connection, generation, packed, replies)
        finally:
            if not connection.wire.waiting:
                self._busy.discard(connection)
                if connection is not self._shared:
                    await self._end(connection)

    async def _alone(self, generation: int, packed: bytes, replies: int) -> list[Any]:
        connection = await self._connection()
        self._busy.add(connection)
        try:
            if not connection.is_connected:
                await self._connect(connection)
            return await self._exchange(connection, generation, packed, replies)
        except (NotSent, NoReply):
            raise
        except BaseException:
            # A cancelled caller must not leave its reply for the next one.
            await self._discard(connection)
            raise
        finally:
            self._busy.discard(connection)
            if connection.is_connected:
                self._free.append(connection)

    def ride(self, packed: bytes, replies: int, heard: Callable[[Sequence[Any]], None]) -> None:
        """Sends commands in front of the next exchange, whosever that is; nobody waits for them.

        Parameters
        ----------
        heard: takes the replies, or in their place the one `NotSent` or `NoReply` because of which there are none.
        """
        self._riders.append(_Rider(packed, replies, heard))
        self.riding += len(packed)

    async def _exchange(self, connection: Any, generation: int, packed: bytes, replies: int) -> list[Any]:
        if not generation == connection.generation == self.generation:
            # Met by another call while this one waited.
            raise NotSent("Redis was restarted or replaced")
        try:
            if connection.wire is not None:
                answers: list[Any] = await connection.wire.exchange(packed, replies)
            else:
                await connection.send_packed_command(packed, check_health=False)
                answers = [await self._reply(connection) for _ in range(replies)]
        except NotWritten as error:
            await self._discard(connection)
            raise NotSent("the connection to Redis was lost") from error
        except (RedisError, OSError) as error:
            await self._discard(connection)
            raise NoReply("the connection to Redis was lost") from error
        if connection.generation != self.generation:
            # Whoever answered is not the server any more: what it has done, nobody will know of.
            await self._discard(connection)
            raise NoReply("Redis was replaced while the command was under way")
        for answer in answers:
            if isinstance(answer, (BusyLoadingError, ReadOnlyError)):
                await self._discard(connection)
                raise NotSent(f"Redis answers: {answer}")
        return answers

    async def _share(self) -> Any:
        """The connection that all share, opened once for all who ask for it meanwhile."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), context=Context())
        opening = self._opening
        try:
            # Whoever is cancelled leaves it to the others.
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled():
                raise NotSent("the connections to Redis were given up") from None
            raise
        if isinstance(opened, NotSent):
            raise NotSent(str(opened)) from opened
        return opened

    async def _open(self) -> Any:
        """Opens it, and returns it or why that failed: an exception would be everybody's, with all their tracebacks."""
        connection = self._make()
        try:
            await self._connect(connection)
            await self._leave()
            self._shared = connection
            return connection
        except NotSent as error:
            return error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._opening = None

    async def connect_apart(self) -> Any:
        """A connection of the caller's own, who ends it.

        Raises
        ------
        NotSent: nobody knows where to. RedisError, OSError: nobody is there, or does not answer in time.
        """
        connection = self.pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                if self._locate is not None:
                    connection.host, connection.port = await self._locate()
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _connect(self, connection: Any) -> None:
        # Where nothing greets, with the connections of a fake, there is one server.
        connection.generation = self.generation
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                if self._locate is not None:
                    connection.host, connection.port = await self._locate()
                await connection.connect()
        except (RedisError, OSError, TimeoutError) as error:
            await self._discard(connection)
            raise NotSent(f"Redis at {self.place} {_why(error)}") from error
        connection.wire = Wire(connection, REPLY_TIMEOUT_S) if Wire.fits(connection) else None

    async def _connection(self) -> Any:
        while self._free:
            connection = self._free.pop()
            # The server hung up while it was idle: what is sent on it now would end as an unknown outcome. Or it is not
            # the server any more, but for this connection, which something between us has kept open.
            if connection.wire is None or self._usable(connection):
                return connection
            await connection.disconnect(nowait=True)
        return self._make()

    def _usable(self, connection: Any) -> bool:
        return not connection.wire.lost and connection.generation == self.generation

    def _make(self) -> Any:
        connection = self.pool.make_connection()  # type: ignore[no-untyped-call]
        connection.wire = None
        return connection

    @staticmethod
    async def _reply(connection: Any) -> Any:
        try:
            return await connection.read_response()
        except (BusyLoadingError, ReadOnlyError, ResponseError) as error:
            return error

    async def _discard(self, connection: Any) -> None:
        # What broke one connection most likely broke those beside it.
        idle, self._free = self._free, []
        await self._leave()
        for each in (connection, *idle):
            await self._end(each)

    async def _leave(self) -> None:
        """Shares the shared connection no more."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await self._end(shared)

    @staticmethod
    async def _end(connection: Any) -> None:
        """Closes a connection, unless somebody waits on it: then the last of them does, see `exchange`."""
        if connection.wire is None or not connection.wire.waiting:
            await connection.disconnect(nowait=True)

    async def check_policy(self) -> None:
        """Refuses a server that would throw stock away when memory is short.

        Raises
        ------
        ConfigurationError: `maxmemory-policy` is something else than `noeviction`, or is not told: a connection asks
            with INFO for the server's process anyway, so that it costs nobody anything to allow it.
        """
        if self._fake:
            return
        try:
            info = await self.info("memory")
        except ResponseError as error:
            raise ConfigurationError(
                f"Redis does not tell its maxmemory-policy, which must be noeviction: allow INFO ({error})"
            ) from error
        policy = info.get("maxmemory_policy", "")
        if not policy:
            raise ConfigurationError("Redis does not tell its maxmemory-policy, which must be noeviction: allow INFO")
        if policy != "noeviction":
            raise ConfigurationError(
                f"Redis evicts keys when memory is full ({policy}): set maxmemory-policy noeviction, or stock gets lost"
            )

    async def check_whole(self) -> None:
        """Refuses a node of a cluster that has some of its slots only: the sales in others would never be sold.

        Raises
        ------
        ConfigurationError: other nodes have the rest.
        """
        if self._mode != "cluster":
            return
        slots = await self.call("CLUSTER", "SLOTS")
        if len({primary[2] for _, _, primary, *_ in slots}) > 1:
            raise ConfigurationError(
                f"Redis at {self.place} is one node of a cluster, and others have the rest of its slots: give "
                "redis+cluster://HOST:PORT,HOST:PORT"
            )

    async def close(self) -> None:
        """Closes every connection."""
        await self.abandon()
        await self.pool.disconnect()


def info_fields(info: bytes) -> dict[str, str]:
    """What INFO answered, by field."""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def refusal(error: ResponseError) -> NotSent | None:
    """The error as a refusal, if it is one. Older servers wrap it: "ERR Error running script ...: -OOM command ..."."""
    if isinstance(error, AskError):  # MovedError is one, too
        return Elsewhere(error.slot_id, (error.host, error.port), not isinstance(error, MovedError))
    # Of some, redis-py has the first word as a class, and leaves it out.
    for word in f"{_WORDS.get(type(error), '')} {error}".split():
        if (word := word.lstrip("-")) in _REFUSALS:
            return NotSent(f"Redis refuses ({word})", passing=_REFUSALS[word])
    return None


def _why(error: BaseException) -> str:
    """Why there is no connection, in words that name no secret; the library's may do so."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in causes:
        if isinstance(each, AuthenticationError):
            return "does not accept this user and password"
        if isinstance(each, NoPermissionError):
            return "does not allow this user what Holdfast needs: give it the rules of deploy/redis-users.acl"
        if isinstance(each, ssl.SSLCertVerificationError):
            return (
                f"shows a certificate that is not trusted ({each.verify_message}): name its authority with ssl_ca_certs"
            )
        if isinstance(each, ssl.SSLError):
            return f"does not speak TLS like this ({each.reason})"
        if isinstance(each, FileNotFoundError):
            return "cannot be reached: its socket, or a file that the address names with ssl_, is not there"
        if isinstance(each, PermissionError):
            return "cannot be reached: this user may not open its socket, or a file that the address names with ssl_"
    return f"cannot be reached ({type(error).__name__})"
