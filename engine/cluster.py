"""A Redis Cluster: which node has which slots, learnt from the nodes, and followed when slots and primaries move."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import redis.asyncio as redis_asyncio
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from holdfast.engine.addresses import Address, Place, shown
from holdfast.engine.connection import CONNECTION, Elsewhere, NoReply, NotSent, Server, refusal
from holdfast.engine.errors import ConfigurationError
from holdfast.engine.keys import deployment, tag
from holdfast.engine.servers import Command, Servers

log = logging.getLogger("holdfast.cluster")

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

#: Slots of a cluster, by its protocol.
SLOTS = 16_384

#: Seconds between two looks while something is.
LOOK_AGAIN_S = 0.1

#: Seconds for one node to tell. One that hangs must not keep the others from being believed.
ANSWER_S = 1.0

#: Seconds for which what the nodes told is relied on. Longer than the time between two looks (`FOLLOW_S`) and that of
#: one (`ANSWER_S`): only who stood still, or hears nothing of any node, comes to it.
STALE_S = 5.0

#: What nodes tell instead of a host where names are preferred and a node has none.
UNNAMED = "?"

#: Nodes asked at a time. One that was cut off tells what was, and is outvoted by its older epochs.
ASKED_MAX = 8

#: Seconds that a node which has lost its slots has for what it was sent before: then it is given up.
GRACE_S = 0.3

#: Seconds for which calls are sent again: a primary that died is replaced after the cluster's node time-out (2 to 5 s
#: with the settings that `docs/howto/cluster.md` advises) and an election of a second.
PATIENCE_S = 10.0

#: Numbers of keys of which one is in each slot; those below 16,384 leave 44 % of the slots without one. For a node with
#: one slot some 16,384 are tried, 20 ms.
DEPLOYMENT_KEYS = 148_336


class _Claim(NamedTuple):
    """That a node has slots.

    Parameters
    ----------
    epoch: of the claim. node: its id.
    """

    epoch: int
    node: bytes
    place: Place


class _View(NamedTuple):
    """The cluster as one node sees it.

    Parameters
    ----------
    node: its own id. nodes: the ids of all that it knows. claims: each with its first and its last slot.
    """

    node: bytes
    nodes: frozenset[bytes]
    claims: tuple[tuple[int, int, _Claim], ...]


class Cluster(Servers):
    """The primaries of a cluster.

    Parameters
    ----------
    address: of some nodes; the others are learnt from them.
    """

    patience_s = PATIENCE_S
    follows = True

    def __init__(self, address: Address) -> None:
        assert address.node is not None  # as `addresses.read` makes it
        self.place = address.place
        self._late: set[asyncio.Task[Any]] = set()
        self._node = address.node
        self._seeds = address.hosts
        self._generations = itertools.count(1)
        #: By place, the nodes that have slots, or had them a moment ago, or are being given some.
        self._servers: dict[Place, Server] = {}
        self._owners: list[Server | None] = [None] * SLOTS
        self._primaries: tuple[Server, ...] = ()
        #: By slot, the claim that is believed.
        self._claims: list[_Claim | None] = [None] * SLOTS
        #: What was told at the last look, and the ids of all nodes that were ever told of.
        self._told: list[_View] = []
        self._nodes: set[bytes] = set()
        self._foreign: set[Place] = set()
        #: By place, the connection on which a node is asked.
        self._asked: dict[Place, Any] = {}
        self._one_at_a_time = asyncio.Lock()
        self._deployment: dict[Server, str] = {}
        #: By slot, the number of the last change in that, out of the servers' generations.
        self._changes: list[int] = [0] * SLOTS
        self._looking: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False
        self._looked = 0.0
        #: When the last look began that was answered, by `_clock`.
        self._heard = float("-inf")

    async def start(self) -> None:
        """As `Servers.start`."""
        await self.follow()
        missing = self._owners.count(None)
        if missing:
            log.warning("%d of the %d slots of the cluster have no node now", missing, SLOTS)

    def all(self) -> Sequence[Server]:
        """As `Servers.all`: the primaries that have slots."""
        return self._primaries

    def of(self, slot: str) -> Server:
        """As `Servers.of`."""
        server = self._owners[number(slot)]
        if server is None:
            self._look_soon()
            raise NotSent("no node of the cluster has this sale's slot now")
        return server

    def generation(self, slot: str) -> int:
        """As `Servers.generation`: also when a server has a slot again, or in a later epoch."""
        at = number(slot)
        server = self._owners[at]
        return 0 if server is None else max(server.generation, self._changes[at])

    def deployment_key(self, server: Server) -> str:
        """As `Servers.deployment_key`: a key in one of the server's own slots.

        Raises
        ------
        NotSent: it has none.
        """
        key = self._deployment.get(server)
        if key is None or self._owners[key_slot(key.encode())] is not server:
            if server not in self._owners:
                raise NotSent(f"{server.place} has no slots of the cluster now")
            keys = map(deployment, range(DEPLOYMENT_KEYS))
            key = next(key for key in keys if self._owners[key_slot(key.encode())] is server)
            self._deployment[server] = key
        return key

    async def call(self, slot: str, *command: Any, generation: int | None = None) -> Any:
        """As `Servers.call`. While a slot is being moved, what has gone ahead is asked for there."""
        await self._catch_up()
        server = self.of(slot)
        if generation is not None and generation != self.generation(slot):
            raise NotSent("another server has this sale's slot now")
        try:
            return await server.call(*command)
        except Elsewhere as elsewhere:
            there = self._elsewhere(server, elsewhere)
            if not elsewhere.once:
                raise
            return await self._asking(there, command)
        except (NotSent, NoReply):
            self._look_soon()
            raise

    async def clocked(self, commands: Sequence[Command], *, clock: bool = True) -> list[tuple[int, Any]]:
        """As `Servers.clocked`. What was moved is asked for once more, of all servers together as well."""
        await self._catch_up()
        replies = await super().clocked(commands, clock=clock)
        moved: list[int] = []
        ahead: list[tuple[int, Server]] = []
        for at, (now, reply) in enumerate(replies):
            if isinstance(reply, ResponseError) and (refused := refusal(reply)):
                replies[at] = now, refused
                if isinstance(refused, Elsewhere):
                    with contextlib.suppress(NotSent):
                        there = self._elsewhere(self.of(commands[at][0]), refused)
                        if refused.once:
                            ahead.append((at, there))
                        else:
                            moved.append(at)
            elif isinstance(reply, (NotSent, NoReply)):
                self._look_soon()
        if moved:
            try:
                again = await super().clocked([commands[at] for at in moved], clock=clock)
            except (NotSent, NoReply) as error:
                again = [(0, error)] * len(moved)
            for at, (now, reply) in zip(moved, again, strict=True):
                replies[at] = now, (refusal(reply) or reply) if isinstance(reply, ResponseError) else reply
        answers = await asyncio.gather(
            *(self.in_time(there, self._asking(there, commands[at][1])) for at, there in ahead), return_exceptions=True
        )
        for (at, _), answer in zip(ahead, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, (NotSent, NoReply, ResponseError)):
                raise answer
            replies[at] = replies[at][0], answer
        return replies

    @staticmethod
    async def _asking(there: Server, command: Sequence[Any]) -> Any:
        """What a node answers that has a part of a slot on its way to it; raises as `call`."""
        asking, reply = await there.pipeline([("ASKING",), command])
        for answer in (asking, reply):
            if isinstance(answer, ResponseError):
                raise refusal(answer) or answer from None
        return reply

    def _elsewhere(self, asked: Server, elsewhere: Elsewhere) -> Server:
        """The node that another one names, which is believed to have the slot from now on, or this once.

        Raises
        ------
        Elsewhere: it does not name it.
        """
        host, port = elsewhere.place
        if host == UNNAMED:
            self._look_soon()
            raise elsewhere
        place = host or self._place_of(asked)[0], port
        server = self._server(place)
        if not elsewhere.once:
            self._owners[elsewhere.slot] = server
            self._changes[elsewhere.slot] = next(self._generations)
            if server not in self._primaries:
                self._primaries = (*self._primaries, server)
            # What the nodes told before may be what they tell again, and is taken up all the same.
            self._told = []
            self._look_soon()
        return server

    @staticmethod
    def _place_of(server: Server) -> Place:
        where = server.pool.connection_kwargs
        return where["host"], where["port"]

    def _server(self, place: Place) -> Server:
        server = self._servers.get(place)
        if server is None:
            host, port = place
            pool = redis_asyncio.ConnectionPool(**self._node | CONNECTION, host=host, port=port)
            server = Server(pool=pool, place=shown(place), generations=self._generations, primary=True)
            self._servers[place] = server
        return server

    # -- who has what ----------------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        """Has somebody look who has what, unless somebody does, or nobody needs to know any more."""
        if self._looking is None and not self._closed:
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            wait = self._looked + LOOK_AGAIN_S - asyncio.get_running_loop().time()
            if wait > 0:
                await asyncio.sleep(wait)
            with contextlib.suppress(NotSent, NoReply, ConfigurationError):
                await self.follow()
        finally:
            self._looking = None

    async def _catch_up(self) -> None:
        """Looks before anything is sent, where this process stood still: what it knows may not be true any more.

        Raises
        ------
        NotSent: nobody tells.
        """
        # The second look is for one that was under way when it stopped, and hears what was told before.
        for _ in range(2):
            if _clock() - self._heard <= STALE_S:
                return
            self._look_soon()
            if self._looking is not None:
                await asyncio.wait({self._looking})
        if _clock() - self._heard > STALE_S:
            raise NotSent(f"no node of the cluster at {self.place} tells who has which slots")

    async def follow(self) -> None:
        """As `Servers.follow`."""
        async with self._one_at_a_time:
            self._looked, began = asyncio.get_running_loop().time(), _clock()
            known = [self._place_of(server) for server in self._primaries]
            places = list(dict.fromkeys([*known, *self._seeds]))
            for place in self._asked.keys() - places:
                await self._asked.pop(place).disconnect(nowait=True)
            views: list[_View] = []
            failure: Exception = NotSent(f"no node of the cluster at {self.place} tells who has which slots")
            # The others only when none of the first tells.
            while places and not views:
                asked, places = places[:ASKED_MAX], places[ASKED_MAX:]
                told = dict(zip(asked, await asyncio.gather(*map(self._tell, asked)), strict=True))
                views = self._ours({place: view for place, view in told.items() if isinstance(view, _View)})
                failure = next((error for error in told.values() if isinstance(error, Exception)), failure)
            if not views:
                raise failure
            if views != self._told:
                self._take(views)
                self._told = views
            self._heard = began

    def _ours(self, views: Mapping[Place, _View]) -> list[_View]:
        """The views of nodes of this cluster: where one of them was, there may be another cluster's now."""
        if views and not self._nodes:
            # As the first look has it, whoever knows most of them.
            self._nodes |= max((view.nodes for view in views.values()), key=len)
        ours = []
        for place, view in views.items():
            if not self._nodes.isdisjoint(view.nodes):
                ours.append(view)
                self._nodes |= view.nodes
                self._foreign.discard(place)
            elif place not in self._foreign:
                self._foreign.add(place)
                log.error("the node at %s is none of this cluster: what it tells is not believed", shown(place))
        return ours

    async def _tell(self, place: Place) -> _View | Exception:
        """Who has what as one node sees it, or why it does not tell."""
        try:
            async with asyncio.timeout(ANSWER_S):
                slots, nodes = await self._answers(place)
        except (RedisError, OSError, TimeoutError) as error:
            return NotSent(f"Redis at {shown(place)} does not tell who has which slots ({type(error).__name__})")
        for answer in (slots, nodes):
            if isinstance(answer, ResponseError):
                return ConfigurationError(f"{shown(place)} is no node of a Redis Cluster: {answer}")
        myself, epochs = _read(nodes)
        claims = []
        for first, last, primary, *_ in slots:
            claim = _Claim(epochs.get(primary[2], 0), primary[2], _where(primary, place))
            claims.append((int(first), int(last), claim))
        return _View(myself, frozenset(epochs), tuple(claims))

    async def _answers(self, place: Place) -> list[Any]:
        # On a connection that is kept for this: a seed may be a replica, which is no server of ours, and answers all
        # the same. One with TLS reads its certificates when it is made, and would hold everybody up at each look.
        connection = self._asked.get(place)
        if connection is None:
            pool = redis_asyncio.ConnectionPool(**self._node | CONNECTION, host=place[0], port=place[1])
            connection = self._asked[place] = pool.make_connection()  # type: ignore[no-untyped-call]
        if connection.is_connected:
            # The node may have hung up since the last look.
            with contextlib.suppress(RedisError, OSError):
                return await self._ask_view(connection)
        return await self._ask_view(connection)

    @staticmethod
    async def _ask_view(connection: Any) -> list[Any]:
        answers = []
        try:
            await connection.connect()
            for command in (("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")):
                await connection.send_command(*command)
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    answers.append(error)
        except BaseException:
            # A reply that comes too late must not be the next one's.
            await connection.disconnect(nowait=True)
            raise
        return answers

    def _take(self, views: Sequence[_View]) -> None:
        """Takes up who has what; of two who say otherwise, the one with the later epoch is right.

        What a node has it tells itself. Of one that is silent, what others say counts, and what it had as long as
        nobody claims that in a later epoch: it is forgotten neither for a moment nor by nodes that were away longer.
        """
        heard = {view.node for view in views}
        best: list[_Claim | None] = [None] * SLOTS
        for view in views:
            for first, last, claim in view.claims:
                if claim.node in heard and claim.node != view.node:
                    continue
                for slot in range(first, last + 1):
                    other = best[slot]
                    if other is None or other.epoch < claim.epoch:
                        best[slot] = claim
        for slot, known in enumerate(self._claims):
            if known is not None and known.node not in heard:
                other = best[slot]
                if other is None or other.epoch < known.epoch:
                    best[slot] = known
        # A later epoch of the same claim, too: somebody else may have had the slot meanwhile, and the one that has it
        # again lacks what that one did. Or it was given other slots: then nothing comes of it but another check.
        change = next(self._generations)
        for slot, (known, new) in enumerate(zip(self._claims, best, strict=True)):
            if new != known:
                self._changes[slot] = change
        self._claims = best
        before = self._primaries
        servers = {place: self._server(place) for place in {claim.place for claim in best if claim}}
        self._owners = [servers[claim.place] if claim else None for claim in best]
        self._primaries = tuple(servers[place] for place in sorted(servers))
        for server in before:
            if server not in self._primaries:
                log.warning("%s has no slots of the cluster any more", server.place)
                # What hangs in it is sent to whoever has the slots now.
                leaving = asyncio.create_task(self._leave(server))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, server: Server) -> None:
        await asyncio.sleep(GRACE_S)
        if server not in self._primaries:
            await server.abandon()
            # For whoever had it in hand, and connected anew.
            await asyncio.sleep(GRACE_S)
        if server not in self._primaries:
            self._servers = {place: each for place, each in self._servers.items() if each is not server}
            self._deployment.pop(server, None)
            await server.close()

    async def close(self) -> None:
        """As `Servers.close`."""
        self._closed = True
        await self._give_up_late()
        tasks = [task for task in (self._looking, *self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._asked.values():
            await connection.disconnect(nowait=True)
        for server in self._servers.values():
            await server.close()


def number(slot: str) -> int:
    """The number that a cluster gives to a slot, by what all of its keys have between their braces."""
    return int(key_slot(tag(slot).encode()))


def _where(node: Sequence[Any], asked: Place) -> Place:
    """Where a node is, as the one at `asked` has it in CLUSTER SLOTS."""
    host = (node[0] or b"").decode()
    if host == UNNAMED:
        # Names are preferred, and it has none: its address stands beside, as pairs or, in the newer protocol, as a map.
        more = node[3] if len(node) > 3 else ()
        beside = more if isinstance(more, dict) else dict(zip(more[::2], more[1::2], strict=True))
        host = (beside.get(b"ip") or b"").decode()
    # Without a host it is where the one is that was asked: that one itself, as long as nobody has told it its address,
    # or any node behind an address of which the nodes know nothing.
    return host or asked[0], int(node[1])


def _clock() -> float:
    """Seconds; where the system has such a clock, also those in which the machine was suspended."""
    return time.clock_gettime(_CLOCK)


def _read(nodes: Any) -> tuple[bytes, dict[bytes, int]]:
    """Whose answer to CLUSTER NODES this is, and the epoch of each node, by ids."""
    text: bytes = nodes if isinstance(nodes, bytes) else str(nodes).encode()
    myself, epochs = b"", {}
    for line in text.splitlines():
        fields = line.split()
        epochs[fields[0]] = int(fields[6])
        if b"myself" in fields[2].split(b","):
            myself = fields[0]
    return myself, epochs
