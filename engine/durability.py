"""Payments that are to survive more than Redis' memory does: many of them, one wait.

A payment is made like any other. Its caller hears of it once a wait has proved that the level asked for is reached. A
wait that begins after a payment's reply covers it, whoever else paid meanwhile, in whatever sale. So all that come
while one wait is under way share the next, and a slow disk makes groups larger instead of buyers slower one by one.

The proof holds for one server process only. Whenever another one may have taken its place since the payment, nothing is
proved, and the payment is made once more, as its caller would do: it is the same operation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError, ResponseError

from holdfast.engine.batcher import tell
from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.errors import DurabilityUnavailable, HoldfastError, NotReady, OutcomeUnknown
from holdfast.engine.meters import Meters
from holdfast.engine.scripts import Scripts
from holdfast.engine.servers import Servers
from holdfast.engine.snapshot import Snapshot
from holdfast.engine.store import Cursor, StoreError
from holdfast.engine.transitions import Assured
from holdfast.engine.values import Durability

log = logging.getLogger("holdfast.durability")

#: Seconds for which a payment waits for its level before its caller hears that it was not reached in time. With
#: `appendfsync everysec` the disk is asked once a second, and a busy one takes another: a person waits that long.
REACH_S = 3.0

#: Milliseconds of one wait in Redis: those who come meanwhile wait for it, and a wait that ends is tried again.
WAIT_MS = 1_000

#: Seconds between two looks for payments that have waited too long, while the store or Redis is silent.
LOOK_S = 0.5

#: Seconds between two tries of a level that was not reached.
AGAIN_S = 0.05

#: Rounds in which the server is asked again because a connection was made meanwhile, which asking may need. After
#: them a payment goes on, and is not believed to be safe before the server was asked once more.
ASK_ROUNDS = 3

#: Seconds for which replicas that were seen are believed to be there. Seeing again costs a round trip, nothing more.
REPLICAS_SEEN_S = 1.0

#: Seconds between two looks for a store that was away: each may take until the store's own time-outs are over.
STORE_LOOK_S = 1.0

#: The first version of Redis with WAITAOF. An older one is believed when it says that every write is on disk before its
#: reply, and so is Valkey: 8.0.1 and 9.1.2 answer WAITAOF within a tenth of a second, whether they have synced by then
#: or not, where Redis 8.0.2 answers after each fdatasync (seen with strace at `appendfsync everysec`).
WAITAOF_SINCE = (7, 2)


class Assurance:
    """Waits for what payments were promised.

    Parameters
    ----------
    replicas: how many must have a payment at `replica`.
    """

    def __init__(self, servers: Servers, scripts: Scripts, snapshot: Snapshot, replicas: int, meters: Meters) -> None:
        self._meters = meters
        self._servers = servers
        self._scripts = scripts
        self._snapshot = snapshot
        self._replicas = replicas
        self._pending: dict[Durability, list[Assured]] = {level: [] for level in Durability}
        self._tasks: dict[Durability, asyncio.Task[None]] = {}
        #: Levels that were found to be available at a server: how many connections there had been, and when.
        self._available: dict[tuple[Server, Durability], tuple[int, float]] = {}
        #: Servers where every write is on disk before its reply, so that nothing is left to wait for.
        self._always: set[Server] = set()
        self._failing: set[Durability] = set()
        self._looked_for_store = -STORE_LOOK_S
        self._look: asyncio.Task[None] | None = None

    # -- what can be had -------------------------------------------------------------------------------------------

    def known_available(self, level: Durability, slot: str) -> bool:
        """Whether `require` would return at once. What the server says is believed until a connection is made anew.

        Parameters
        ----------
        slot: in which it is wanted.
        """
        if level is Durability.MEMORY:
            return True
        if level is Durability.STORED:
            return self._snapshot.away is None
        try:
            return self._known(level, self._servers.of(slot))
        except NotSent:
            return False

    def _known(self, level: Durability, server: Server) -> bool:
        connects, seen = self._available.get((server, level), (-1, 0.0))
        fresh = level is Durability.FSYNC or asyncio.get_running_loop().time() < seen + REPLICAS_SEEN_S
        return connects == server.connects and fresh

    async def _find_store(self) -> None:
        """Looks whether the store is back; whoever comes while somebody looks hears that it is not."""
        if self._look is None and asyncio.get_running_loop().time() >= self._looked_for_store + STORE_LOOK_S:
            self._look = asyncio.create_task(self._look_for_store())
            await asyncio.wait({self._look}, timeout=REACH_S)
        if self._snapshot.away is not None:
            raise NotReady(f"payments are to be stored, and {self._snapshot.away}")

    async def _look_for_store(self) -> None:
        try:
            with contextlib.suppress(StoreError, NotSent, NoReply, RedisError):
                await self._snapshot.run()
        finally:
            self._look = None
            self._looked_for_store = asyncio.get_running_loop().time()

    async def require(
        self, level: Durability, slot: str | None = None, *, anew: bool = False, patient: bool = False
    ) -> None:
        """Returns when payments can be had at this level.

        Parameters
        ----------
        slot: in which it is wanted; None is in all of them.
        anew: what was found out before does not count.
        patient: somebody waits, as for any call, while the server is replaced.

        Raises
        ------
        DurabilityUnavailable: not in this deployment.
        NotReady: not now, since Redis or the store does not answer.
        """
        if level is Durability.MEMORY:
            return
        if level is Durability.STORED:
            if anew or self._snapshot.away is not None:
                await self._find_store()
            return
        time_now = asyncio.get_running_loop().time
        give_up = time_now() + (self._servers.patience_s if patient else 0.0)
        while True:
            try:
                for server in self._servers.all() if slot is None else (self._servers.of(slot),):
                    await self._require_of(server, level, anew)
                return
            except (NotSent, NoReply) as error:
                if time_now() >= give_up:
                    raise NotReady(str(error)) from error
            await asyncio.sleep(AGAIN_S)

    async def require_somewhere(self, level: Durability) -> None:
        """Returns when payments can be had at this level at one server at least. Of the others it is logged why not:
        their sales refuse such payments until they can, and those of the first go on.

        Raises
        ------
        DurabilityUnavailable: at none. NotSent, NoReply: no server answers. NotReady: the store does not.
        """
        if level in (Durability.MEMORY, Durability.STORED):
            return await self.require(level)
        servers = self._servers.all()
        told = await asyncio.gather(
            *(self._require_of(server, level, False) for server in servers), return_exceptions=True
        )
        why_not = [(server, error) for server, error in zip(servers, told, strict=True) if error is not None]
        errors = sorted((error for _, error in why_not), key=lambda error: not isinstance(error, DurabilityUnavailable))
        for error in errors:
            if len(errors) == len(servers) or not isinstance(error, (DurabilityUnavailable, NotSent, NoReply)):
                raise error
        for server, error in why_not:
            log.error("payments at '%s' cannot be had now of the sales at %s: %s", level, server.place, error)

    async def _require_of(self, server: Server, level: Durability, anew: bool) -> None:
        """As `require` of one server; raises NotSent and NoReply where it does not answer."""
        if not anew and self._known(level, server):
            return
        for _ in range(ASK_ROUNDS):
            connects, seen = server.connects, asyncio.get_running_loop().time()
            why_not = await (self._no_fsync(server) if level is Durability.FSYNC else self._no_replica(server))
            if why_not:
                self._available.pop((server, level), None)
                raise DurabilityUnavailable(level, why_not)
            # What was told holds for the connections that there were when it was asked, and not for one made since.
            self._available[server, level] = connects, seen
            if connects == server.connects:
                return

    async def _no_fsync(self, server: Server) -> str | None:
        """Why payments cannot be on disk before they are acknowledged; None when they can."""
        asked = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite")
        replies = await server.pipeline([("CONFIG", "GET", name) for name in asked])
        appendonly, appendfsync, pauses = (_setting(reply) for reply in replies)
        if appendonly == "no":
            return "Redis writes no append-only file; set appendonly yes"
        always = not can_wait(server)
        (self._always.add if always else self._always.discard)(server)
        if always and appendfsync != "always":
            return (
                f"{'Valkey' if server.is_valkey else 'Redis'} {server.version} can only give it with "
                f"appendfsync always, and has {appendfsync or 'not told (CONFIG GET is not allowed)'}; "
                "set that (holdfast serve --durability fsync does for a Redis of its own), or use Redis 7.2 or newer"
            )
        if not always and (refusal := await self._refused(server, "WAITAOF", 0, 0, 0)):
            return refusal
        if always and pauses != "no":
            return "Redis stops to sync while it rewrites its append-only file; set no-appendfsync-on-rewrite no"
        if appendfsync == "no":
            return "Redis leaves it to the system when its append-only file reaches the disk; set appendfsync everysec"
        return None

    async def _no_replica(self, server: Server) -> str | None:
        """Why payments cannot be on replicas before they are acknowledged; None when they can."""
        replication = await server.info("replication")
        online = sum("state=online" in value for value in replication.values())
        if online < self._replicas:
            return f"{online} replicas are connected to Redis, and {self._replicas} must have a payment"
        return await self._refused(server, "WAIT", 0, 1)

    @staticmethod
    async def _refused(server: Server, *command: Any) -> str | None:
        """Why Redis does not take this command, which waits for nothing; None when it does."""
        try:
            await server.call(*command)
        except ResponseError as error:
            return f"Redis does not allow {command[0]} ({error})"
        return None

    # -- waiting ---------------------------------------------------------------------------------------------------

    def add(self, payment: Assured) -> None:
        """Has a payment that Redis has told of wait for its level."""
        payment.give_up = asyncio.get_running_loop().time() + REACH_S
        self._pending[payment.level].append(payment)
        if payment.level not in self._tasks:
            self._tasks[payment.level] = asyncio.create_task(self._work(payment.level))

    async def drained(self) -> None:
        """Returns once no payment waits."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait({self._look})

    async def _work(self, level: Durability) -> None:
        pending, loop = self._pending[level], asyncio.get_running_loop()
        group: list[Assured] = []
        try:
            while pending:
                group, pending[:] = pending[:], []
                proving = asyncio.create_task(self._prove_all(level, group))
                while not (await asyncio.wait({proving}, timeout=LOOK_S))[0]:
                    # Those who came meanwhile as well: a store that is silent may be so for long.
                    for payment in (*group, *pending):
                        if loop.time() >= payment.give_up:
                            self._give_up(payment)
                proofs = proving.result()
                # Compared last: whatever took the server's place while we waited was noticed on the way.
                now = loop.time()
                again: list[Assured] = []
                for payment in group:
                    proof, slot = proofs[payment], payment.slot.name
                    if payment.generation != self._servers.generation(slot) or proof.contradicts(payment):
                        if payment.done() or not payment.ask_again():
                            tell(payment.waiter, OutcomeUnknown())
                    elif proof.covers(payment):
                        payment.reached()
                    elif now >= payment.give_up:
                        self._give_up(payment)
                    elif not payment.done():
                        again.append(payment)
                pending += again
                if again:
                    await asyncio.sleep(AGAIN_S)
        except Exception:
            # A defect: said in full, and nobody waits for ever because of it.
            log.exception("payments at '%s' cannot be told of", level)
            for payment in (*group, *pending):
                tell(payment.waiter, OutcomeUnknown())
            pending.clear()
        finally:
            del self._tasks[level]

    def _give_up(self, payment: Assured) -> None:
        """Has a payment that has waited long enough told of as it is."""
        if not payment.done():
            self._meters.below_durability += 1
        payment.not_reached()

    async def _prove_all(self, level: Durability, group: Sequence[Assured]) -> dict[Assured, Proof]:
        """What one wait at each server, or one copy into the store, has proved of these payments."""
        if level is Durability.STORED:
            proof = await self._prove(level, group)
            return dict.fromkeys(group, proof)
        by_server: dict[Server, list[Assured]] = {}
        proofs = dict.fromkeys(group, Proof(False))
        for payment in group:
            with contextlib.suppress(NotSent):
                by_server.setdefault(self._servers.of(payment.slot.name), []).append(payment)
        found = await asyncio.gather(*(self._prove(level, each) for each in by_server.values()))
        for payments, proof in zip(by_server.values(), found, strict=True):
            proofs |= dict.fromkeys(payments, proof)
        return proofs

    async def _prove(self, level: Durability, group: Sequence[Assured]) -> Proof:
        """What one wait has proved of these payments, which one server has, or of any at `stored`."""
        try:
            if level is Durability.STORED:
                proof = Proof(True, await self._snapshot.reach({payment.slot.name for payment in group}, partly=True))
            elif level is Durability.REPLICA:
                proof = Proof(await self._waited(group, "WAIT", self._replicas) >= self._replicas)
            else:
                # Asked again when a connection was made since: the server may have been started anew, set otherwise.
                # One that is believed is asked each time, where another would be waited for.
                slot = group[0].slot.name
                server = self._servers.of(slot)
                await self.require(level, slot, anew=server in self._always)
                proof = Proof(server in self._always or (await self._waited(group, "WAITAOF", 1, 0))[0] >= 1)
        except (NotSent, NoReply, StoreError, RedisError, HoldfastError) as error:
            if level not in self._failing:
                self._failing.add(level)
                log.error("payments do not get to be '%s': %s", level, error)
            return Proof(False)
        except Exception:
            log.exception("payments do not get to be '%s'", level)
            return Proof(False)
        if level in self._failing and proof.holds:
            self._failing.discard(level)
            log.warning("payments get to be '%s' again", level)
        return proof

    async def _waited(self, group: Sequence[Assured], *command: Any) -> Any:
        return await self._scripts.wait(group[0].slot.keys, (*command, WAIT_MS))


def can_wait(server: Server) -> bool:
    """Whether the server has a WAITAOF that is worth something."""
    version = tuple(int(part) for part in server.version.split(".")[:2] if part.isdecimal())
    return not server.is_valkey and version >= WAITAOF_SINCE


@dataclass(frozen=True, slots=True)
class Proof:
    """What a wait has shown.

    Parameters
    ----------
    holds: the wait was met. cursors: what it says of each slot, if that differs: how far the store has come.
    """

    holds: bool
    cursors: Mapping[str, Cursor] | None = None

    def covers(self, payment: Assured) -> bool:
        """Whether the payment is as durable as was asked."""
        if self.cursors is None:
            return self.holds
        cursor, position = self._cursor(payment), payment.position
        return cursor.epoch == position.epoch and cursor.sequence >= position.sequence

    def contradicts(self, payment: Assured) -> bool:
        """Whether the sale was recovered since the payment, which may have been lost by then."""
        return self._cursor(payment).epoch > payment.position.epoch

    def _cursor(self, payment: Assured) -> Cursor:
        """How far the store has come in the payment's slot; nowhere in one of which nothing is told."""
        return (self.cursors or {}).get(payment.slot.name, Cursor(0, 0))


def _setting(reply: Any) -> str | None:
    """The one value that CONFIG GET answered; None when it is not told."""
    if isinstance(reply, Exception) or len(reply) == 0:
        return None
    # A map in the newer protocol.
    value = next(iter(reply.values())) if isinstance(reply, dict) else reply[1]
    return str(value.decode())
