"""The Redis servers of an engine: which one has a slot, and how commands get there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import redis.asyncio as redis_asyncio
from redis.exceptions import RedisError

from holdfast.engine import addresses
from holdfast.engine.addresses import Kind
from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.keys import DEPLOYMENT
from holdfast.engine.wire import pack

T = TypeVar("T")

#: A slot by its name, and a command on a key of it.
Command = tuple[str, Sequence[Any]]

#: Seconds for which who asks all servers waits for one of them: most hang for less, and the others' slots go on.
OTHERS_WAIT_S = 0.5

#: Seconds between two looks at where everything is while nothing is amiss.
FOLLOW_S = 1.0

#: Seconds for which a call is sent again before its caller hears that nothing, or an unknown outcome, came of it: long
#: enough for a restart that goes well, short enough for a person who waits.
PATIENCE_S = 3.0


class Servers:
    """The servers of an engine: here one; `cluster.py` and `sentinel.py` have the others.

    Parameters
    ----------
    one: the server.

    Attributes
    ----------
    place: where they are, for messages.
    follow_s: seconds between two looks at where everything is.
    patience_s: seconds for which calls are worth being sent again.
    follows: whether another server may take one's place.
    splits: whether one that was cut off while another took its place goes on selling, unless it has to have replicas.
    """

    patience_s = PATIENCE_S
    follow_s = FOLLOW_S
    follows = False
    splits = False

    def __init__(self, one: Server) -> None:
        self.one = one
        self.place = one.place
        #: Questions to one of several servers that still wait, in time or not.
        self._late: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Finds out where everything is.

        Raises
        ------
        ConfigurationError: what the address names is no such thing.
        NotSent, NoReply: nobody answers.
        """

    async def follow(self) -> None:
        """Finds out once more where everything is; raises as `start`. Done every now and then."""

    def all(self) -> Sequence[Server]:
        """Every server that has slots."""
        return (self.one,)

    def of(self, slot: str) -> Server:
        """The server that has this slot, as far as is known.

        Raises
        ------
        NotSent: nobody has it.
        """
        return self.one

    def generation(self, slot: str) -> int:
        """Another one whenever another server answers for this slot than before; 0 while none does."""
        return self.one.generation

    def deployment_key(self, server: Server) -> str:
        """The key by which this server knows whose sales it has.

        Raises
        ------
        NotSent: there is none, for it has no slots.
        """
        return DEPLOYMENT

    async def call(self, slot: str, *command: Any, generation: int | None = None) -> Any:
        """One command on a key of this slot; raises as `Server.call`."""
        return await self.one.call(*command, generation=generation)

    async def scatter(self, commands: Sequence[Command]) -> list[Any]:
        """Commands on many slots, one round trip for each server.

        Returns
        -------
        The replies, in the order of the commands. An error, and a `NotSent` or `NoReply` of a server that does not
        answer, stands in its place.

        Raises
        ------
        NotSent, NoReply: none of them answers.
        """
        return [reply for _, reply in await self.clocked(commands, clock=False)]

    async def clocked(self, commands: Sequence[Command], *, clock: bool = True) -> list[tuple[int, Any]]:
        """As `scatter`, each reply with the clock of its server, Unix milliseconds; 0 where there is no reply."""
        replies: list[tuple[int, Any]] = [(0, None)] * len(commands)
        by_server: dict[Server, list[int]] = {}
        for at, (slot, _) in enumerate(commands):
            try:
                by_server.setdefault(self.of(slot), []).append(at)
            except NotSent as error:
                replies[at] = 0, error
        failures = await asyncio.gather(
            *(self._ask(server, places, commands, replies, clock) for server, places in by_server.items())
        )
        if by_server and all(failures):
            raise next(failure for failure in failures if failure is not None)
        return replies

    async def _ask(
        self,
        server: Server,
        places: list[int],
        commands: Sequence[Command],
        replies: list[tuple[int, Any]],
        clock: bool,
    ) -> NotSent | NoReply | None:
        """Puts what one server answers into its places; why it does not, if so."""
        packed = [pack(*commands[at][1]) for at in places]
        if clock:
            packed.insert(0, pack("TIME"))
        now = 0
        try:
            heard = await self.in_time(server, server.exchange(b"".join(packed), len(packed), alone=True))
            if clock:
                now = milliseconds(heard.pop(0))
        except (NotSent, NoReply) as error:
            for at in places:
                replies[at] = 0, error
            return error
        for at, reply in zip(places, heard, strict=True):
            replies[at] = now, reply
        return None

    async def in_time(self, server: Server, work: Coroutine[Any, Any, T]) -> T:
        """What a server answers; where there are others, those who ask all of them do not wait long for one that hangs.

        A question that is late is not given up: it may carry what others sent along with it.
        """
        if len(self.all()) == 1:
            return await work
        asked = asyncio.create_task(work)
        # From here on: whoever asks may be cancelled.
        self._late.add(asked)
        asked.add_done_callback(self._heard_late)
        done, _ = await asyncio.wait({asked}, timeout=OTHERS_WAIT_S)
        if not done:
            raise NoReply(f"Redis at {server.place} does not answer within {OTHERS_WAIT_S:g} s")
        return asked.result()

    def _heard_late(self, asked: asyncio.Task[Any]) -> None:
        self._late.discard(asked)
        if not asked.cancelled():
            asked.exception()

    async def _give_up_late(self) -> None:
        late = list(self._late)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def meet(self) -> None:
        """Meets the servers that are there now; see `Server.meet`."""
        await asyncio.gather(*(server.meet() for server in self.all()))

    async def close(self) -> None:
        """Closes every connection."""
        await self._give_up_late()
        for server in self.all():
            await server.close()


def milliseconds(reply: Any) -> int:
    """The reply to TIME as Unix milliseconds.

    Raises
    ------
    NotSent: it is an error.
    """
    if isinstance(reply, RedisError):
        raise NotSent(f"Redis answers {reply}")
    return int(reply[0]) * 1000 + int(reply[1]) // 1000


async def each(servers: Iterable[Server], ask: Callable[[Server], Awaitable[Any]]) -> dict[Server, Any]:
    """What each server comes to; a `NotSent` or `NoReply` in its place where it does not answer.

    Parameters
    ----------
    ask: what to do with one.
    """

    async def asked(server: Server) -> Any:
        try:
            return await ask(server)
        except (NotSent, NoReply) as error:
            return error

    wanted = list(servers)
    return dict(zip(wanted, await asyncio.gather(*map(asked, wanted)), strict=True))


def open_servers(url: str, pool: redis_asyncio.ConnectionPool | None = None) -> Servers:
    """The servers at an address, not asked yet.

    Parameters
    ----------
    url: as of `addresses.read`. pool: connections to use instead; for tests on a fake.

    Raises
    ------
    ConfigurationError: the address is not usable.
    """
    from holdfast.engine.cluster import Cluster
    from holdfast.engine.sentinel import Sentinels

    if pool is not None:
        return Servers(Server(pool=pool))
    address = addresses.read(url)
    if address.kind is Kind.CLUSTER:
        return Cluster(address)
    if address.kind is Kind.SENTINELS:
        return Sentinels(address)
    return Servers(Server(url))
