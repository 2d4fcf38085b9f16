"""Whether everything can be sold, and how far everything has come: what operators and load balancers ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from redis.exceptions import AskError, RedisError

from holdfast.engine.connection import Elsewhere, NoReply, NotSent, Server
from holdfast.engine.keys import slot_keys
from holdfast.engine.memory import Memory
from holdfast.engine.records import Definition, Entry, sale_of, shard_of
from holdfast.engine.recovery import OVERSOLD, why_unready
from holdfast.engine.servers import Servers, each, milliseconds
from holdfast.engine.slots import Slots
from holdfast.engine.snapshot import Snapshot
from holdfast.engine.store import Cursor, Progress, Store, StoredSale, StoreError
from holdfast.engine.values import Condition, Readiness, Sale

T = TypeVar("T")

#: Seconds for which one question to Redis or the store is waited for: whoever probes gives up soon, and takes a server
#: that sells for one that does not.
ANSWER_S = 0.8

#: Seconds for the same when a recovery asks, which has nobody waiting: more than Redis gets for any reply.
RECOVERY_ANSWER_S = 30.0

#: Times that the server is met before it is asked: the first may find the connections lost, the second another server.
MEETINGS = 2

#: Sales asked for in one round trip, of the registry and of Redis: some 10 ms of either.
SALES_STEP = 500

#: Milliseconds that the store may be behind before that is an alarm: it is due each second, and a restart of
#: PostgreSQL or a long stampede take some.
BEHIND_MS_MAX = 60_000

#: Sales whose oldest transition that is not copied is looked at: each is an entry of up to 10 KB to read.
BEHIND_LOOKED_MAX = 100

#: Seconds between two looks at which sales there are, so that it is known which cannot be sold when the store is away.
LEARN_S = 10.0

#: Sales of which a condition tells the units, in the order of their ids; each is a few lines at every scrape.
SALES_SHOWN_MAX = 500

#: Items of all these sales together: 100 items in each of 500 would be a page of megabytes.
ITEMS_SHOWN_MAX = 2_000


class Health:
    """Looks at Redis, the store, and every sale.

    Parameters
    ----------
    store_id: of the store, by which Redis knows whose sales it holds.
    contradictions: tells what all processes of this server know to be wrong.
    """

    def __init__(
        self,
        servers: Servers,
        store: Store,
        slots: Slots,
        snapshot: Snapshot,
        memory: Memory,
        store_id: str,
        contradictions: Callable[[], Sequence[str]],
    ) -> None:
        self._servers = servers
        self._store = store
        self._slots = slots
        self._snapshot = snapshot
        self._memory = memory
        self._store_id = store_id
        self._contradictions = contradictions
        #: Sales that there were when the store was asked last.
        self._sales: frozenset[str] = frozenset()
        #: Questions that were not answered in time, and still wait.
        self._late: set[asyncio.Future[Any]] = set()
        #: Why sales could not be looked at in the last walk.
        self._silent: list[NotSent | NoReply] = []

    # -- whether everything can be sold -----------------------------------------------------------------------------

    async def readiness(self) -> Readiness:
        """Whether every sale can be sold now, and if not, why.

        While the store does not answer that is an alarm: the sales that this process knows go on.
        """
        alarms: list[str] = []
        reasons: list[str] = []
        try:
            now, away = await self._probe()
            reasons += away
            alarms += await self._advice()
            try:
                unready, late = await self._walk(now)
                reasons += unready.values()
                alarms += late
            except StoreError as error:
                alarms.append(f"{error}; what is sold waits in Redis alone")
                reasons += await self._without_store()
        except (NotSent, NoReply) as error:
            reasons.append(str(error))
        reasons += self._memory.full.values()
        # Asked for last: an alarm is over when the walk has met a later epoch.
        reasons += self._contradictions()
        return Readiness(not reasons, tuple(reasons), tuple(alarms))

    async def unready(self, *, partly: bool = False) -> dict[str, str]:
        """The sales that cannot be sold as they are, each with the reason.

        Parameters
        ----------
        partly: those of servers that do not answer now are left out, as long as one does.

        Raises
        ------
        StoreError, NotSent, NoReply: a side does not answer.
        """
        unready = (await self._walk(0, RECOVERY_ANSWER_S))[0]
        if self._silent and not partly:
            raise self._silent[0]
        return unready

    async def lost(self) -> dict[str, str | None]:
        """The slots that are behind the store or not in Redis, and those that are fenced, each with its fence or None.

        Those that were found oversold are left out: nobody but an operator can say what is to become of them.

        Raises
        ------
        StoreError, NotSent, NoReply: the store does not answer, or no server.
        """
        lost: dict[str, str | None] = {}
        after = ""
        while sales := await self._stored(self._store.slots(after, SALES_STEP), RECOVERY_ANSWER_S):
            heads = await self._heads([sale.slot for sale in sales], RECOVERY_ANSWER_S)
            for sale, head in zip(sales, heads, strict=True):
                # One with a gap stands beyond the store by its numbers, and lacks what the store has.
                if isinstance(head, list) and (why_unready(sale, head) or sale.slot in self._snapshot.gaps):
                    fence = head[0].decode(errors="replace") if head[0] else None
                    if fence is None or not fence.startswith(OVERSOLD):
                        lost[sale.slot] = fence
            after = sales[-1].slot
        return lost

    async def learn(self) -> None:
        """Looks which sales there are.

        Raises
        ------
        StoreError: the store does not answer.
        """
        self._sales = frozenset(await self._store.cursors())

    async def _probe(self) -> tuple[int, list[str]]:
        """The clock of Redis, Unix milliseconds, and why servers do not take reservations, of those that do not.

        Raises
        ------
        NotSent, NoReply: none of them does.
        """
        told = await each(self._servers.all(), self._probe_one)
        clocks = [answer for answer in told.values() if isinstance(answer, int)]
        if not clocks:
            raise next(iter(told.values()), NotSent(f"no node of the cluster at {self._servers.place} has any slots"))
        return max(clocks), [str(answer) for answer in told.values() if isinstance(answer, Exception)]

    async def _probe_one(self, server: Server) -> int:
        """Asks a server to write something that changes nothing, as a reservation would; its clock.

        A disk that is full, a replica, a primary without its replicas: all of them read, and take no reservation.

        Raises
        ------
        NotSent, NoReply: it does not, or holds the sales of another store.
        """
        for _ in range(MEETINGS):
            await self._redis(server.meet(), of=server)
        key = self._servers.deployment_key(server)
        try:
            await self._redis(server.call("SET", key, self._store_id, "NX"), of=server)
            theirs, clock = await self._redis(server.pipeline([("GET", key), ("TIME",)]), of=server)
        except Elsewhere:
            theirs, clock = None, await self._redis(server.call("TIME"), of=server)
        if isinstance(theirs, AskError) or theirs is None:
            # The marker is on its way to another node, which tells whose it is; this one has answered.
            theirs = self._store_id.encode()
        if isinstance(clock, RedisError) or theirs != self._store_id.encode():
            raise NotSent(f"Redis at {server.place} holds the sales of another store")
        return milliseconds(clock)

    async def _advice(self) -> list[str]:
        """What a primary would go on selling that was cut off from its replicas, which take over meanwhile."""
        if not self._servers.splits:
            return []
        told = await each(self._servers.all(), lambda server: self._redis(server.info("replication"), of=server))
        # Redis tells of good replicas only where it needs them.
        careless = [
            server.place
            for server, fields in told.items()
            if isinstance(fields, dict) and "min_slaves_good_slaves" not in fields and fields["connected_slaves"] != "0"
        ]
        return [
            f"Redis at {place} goes on selling when it is cut off from its replicas, and one of them may have taken "
            "its place: set min-replicas-to-write 1 and min-replicas-max-lag"
            for place in careless
        ]

    async def _walk(self, now: int, within: float | None = None) -> tuple[dict[str, str], list[str]]:
        """The sales that are not ready, and what is late.

        Parameters
        ----------
        now: the clock of Redis, by which the store may be late; 0 when nobody asks that.
        within: seconds for each question; None is `ANSWER_S`.
        """
        reasons: dict[str, str] = {}
        self._silent = []
        seen: list[str] = []
        behind: dict[str, Cursor] = {}
        after = ""
        while sales := await self._stored(self._store.slots(after, SALES_STEP), within):
            heads = await self._heads([sale.slot for sale in sales], within)
            for sale, head in zip(sales, heads, strict=True):
                if isinstance(head, (NotSent, NoReply)):
                    # Of each node that does not answer it is told once, and not of each of its sales.
                    self._silent.append(head)
                elif reason := why_unready(sale, head):
                    reasons[sale.slot] = reason
                elif now and _stands(head) > (sale.cursor.epoch, sale.cursor.sequence):
                    behind[sale.slot] = sale.cursor
                self._snapshot.seen(sale.slot, sale.cursor.epoch)
                seen.append(sale.slot)
            after = sales[-1].slot
        self._sales = frozenset(seen)
        oldest = await self._oldest(behind)
        late = []
        if oldest and now - oldest > BEHIND_MS_MAX:
            late.append(
                f"the store is {(now - oldest) // 1000} s behind Redis: {self._snapshot.away or 'nothing copies'}; "
                "what is sold meanwhile waits in Redis alone"
            )
        return reasons, late

    async def _without_store(self) -> list[str]:
        """Why nothing, or not everything, can be sold while the store does not answer."""
        believed = self._slots.believed()
        if not believed and not self._sales:
            return ["this process knows no sale yet, and the store does not answer"]
        names = [sale.slot for sale in believed]
        reasons: dict[str, str] = {}
        for at in range(0, len(names), SALES_STEP):
            heads = await self._heads(names[at : at + SALES_STEP])
            for sale, head in zip(believed[at : at + SALES_STEP], heads, strict=True):
                if not isinstance(head, (NotSent, NoReply)) and (reason := why_unready(sale, head)):
                    reasons[sale.slot] = reason
        for slot in self._slots.all():
            if slot.generation != self._servers.generation(slot.name) and slot.name not in reasons:
                reasons[slot.name] = (
                    f"'{slot.name}': Redis was restarted or replaced, and while the store does not answer nobody can "
                    "say what it has lost"
                )
        for name in sorted(self._sales.difference(names)):
            reasons[name] = f"'{name}' has not been met by this process, and the store does not answer"
        return list(reasons.values())

    # -- how far everything has come --------------------------------------------------------------------------------

    async def condition(self) -> Condition:
        """How everything stands. What Redis or the store do not tell in time is None, or missing."""
        readiness = await self.readiness()
        store = True
        progress: Mapping[str, Progress] = {}
        try:
            progress = await self._stored(self._store.cursors())
        except StoreError:
            store = False
        # Without the store what it had at least, of the sales that are known here.
        cursors = {slot.name: slot.floor for slot in self._slots.all()}
        cursors |= {name: each.cursor for name, each in progress.items()}
        unfolded = sum(max(0, each.cursor.sequence - each.folded) for each in progress.values()) if store else None
        try:
            redis = await self._in_redis(sorted(cursors, key=lambda name: (sale_of(name), shard_of(name))), cursors)
        except (NotSent, NoReply):
            redis = {}
        return Condition(
            readiness=readiness,
            contradictions=len(self._contradictions()),
            redis=bool(redis),
            store=store,
            unfolded=unfolded,
            sales_known=len({sale_of(slot) for slot in cursors}),
            **redis,
        )

    async def _in_redis(self, names: list[str], cursors: Mapping[str, Cursor]) -> dict[str, Any]:
        """What only Redis can tell, as the fields of a condition.

        Raises
        ------
        NotSent, NoReply.
        """
        told = await each(self._servers.all(), lambda server: self._redis(server.call("TIME"), of=server))
        clocks = [milliseconds(clock) for clock in told.values() if not isinstance(clock, Exception)]
        if not clocks:
            raise next(iter(told.values()), NotSent("no node of the cluster has any slots"))
        now = max(clocks)
        lag = 0
        behind: dict[str, Cursor] = {}
        transitions = 0
        parts: dict[str, list[Sale]] = {}
        items = 0
        for at in range(0, len(names), SALES_STEP):
            step = names[at : at + SALES_STEP]
            deadlines = [(name, ("ZRANGE", slot_keys(name).deadlines, "0", "0", "WITHSCORES")) for name in step]
            for at, reply in await self._redis(self._servers.clocked(deadlines)):
                if reply and not isinstance(reply, Exception):
                    lag = max(lag, at - _score(reply))
            heads = await self._heads(step)
            for name, head in zip(step, heads, strict=True):
                stands, cursor = _stands(head), cursors[name]
                if stands > (cursor.epoch, cursor.sequence):
                    behind[name] = cursor
                    transitions += max(0, stands[1] - cursor.sequence)
                begun = sale_of(name) in parts
                if begun or (len(parts) < SALES_SHOWN_MAX and items < ITEMS_SHOWN_MAX):
                    sale = await self._shown(name, head, cursor)
                    if sale is not None:
                        parts.setdefault(sale.id, []).append(sale)
                        items += 0 if begun else len(sale.items)
        oldest = await self._oldest(behind)
        used, limit = await self._fullest()
        return {
            "expiry_lag_ms": lag,
            "behind": transitions,
            "behind_ms": now - oldest if oldest else 0,
            "sales": tuple(map(self._whole, parts.values())),
            "memory_used": used,
            "memory_limit": limit,
        }

    async def _fullest(self) -> tuple[int, int]:
        """Bytes used and allowed, of the server that has used the largest part of its own."""

        async def ask(server: Server) -> tuple[int, int]:
            try:
                return Memory.told(await self._redis(server.info("memory"), of=server))
            except RedisError:
                return 0, 0  # not allowed to be asked

        told = (await each(self._servers.all(), ask)).values()
        known = [answer for answer in told if isinstance(answer, tuple)]
        return max(known, key=lambda memory: memory[0] / (memory[1] or 1), default=(0, 0))

    async def _shown(self, name: str, head: object, cursor: Cursor) -> Sale | None:
        """A sale with its counters; None when what lies in Redis is none."""
        epoch, sequence = _stands(head)
        counts = head[3] if isinstance(head, list) else None
        if not epoch or not isinstance(counts, bytes) or not counts.replace(b" ", b"").isdigit():
            return None
        slot = self._slots.known(name)
        definition = slot.definition if slot is not None else None
        if definition is None or len(definition.items) * 3 != len(counts.split()):
            (raw,) = await self._redis(self._servers.scatter([(name, ("HGET", slot_keys(name).sale, "definition"))]))
            try:
                definition = Definition.from_json(raw)
            except (ValueError, TypeError, KeyError):
                return None
        if len(definition.items) * 3 != len(counts.split()):
            return None
        ready = why_unready(StoredSale(definition.id, definition, None, cursor, 0, name), head) is None
        return replace(definition.sale(counts, epoch, sequence), ready=ready)

    @staticmethod
    def _whole(parts: Sequence[Sale]) -> Sale:
        """A sale of which these are the slots that could be read, in order."""
        sale = max(parts, key=lambda part: len(part.items))
        if sale.shards is None:
            return sale
        items = []
        for at, item in enumerate(sale.items):
            of_each = [part.items[at] for part in parts if at < len(part.items)]
            available, reserved, purchased = (
                sum(counts) for counts in zip(*((i.available, i.reserved, i.purchased) for i in of_each), strict=True)
            )
            # The shards were read one after the other: what is beyond the capacity was met in two of them.
            left = item.capacity - available - reserved - purchased if len(parts) == sale.shards else 0
            items.append(
                replace(
                    item,
                    available=max(0, available + min(0, left)),
                    reserved=reserved,
                    purchased=purchased,
                    in_transit=max(0, left),
                )
            )
        return replace(
            sale,
            items=tuple(items),
            sequence=sum(part.sequence for part in parts),
            epoch=max(part.epoch for part in parts),
            ready=len(parts) == sale.shards and all(part.ready for part in parts),
            place=",".join(str(part.position) for part in parts),
        )

    async def _oldest(self, behind: Mapping[str, Cursor]) -> int:
        """When the oldest transition beyond these cursors was made, Unix milliseconds; 0 when there is none."""
        looked = list(behind.items())[:BEHIND_LOOKED_MAX]
        if not looked:
            return 0
        commands = [
            (name, ("XRANGE", slot_keys(name).ledger, f"({cursor.floor}", "+", "COUNT", "1")) for name, cursor in looked
        ]
        ages = []
        for reply in await self._redis(self._servers.scatter(commands)):
            if reply and not isinstance(reply, Exception):
                try:
                    ages.append(Entry.parse(*reply[0]).at)
                except (ValueError, KeyError, TypeError):
                    continue  # damaged: the snapshot says so
        return min(ages, default=0)

    # -- the two sides ----------------------------------------------------------------------------------------------

    async def _heads(self, names: Sequence[str], within: float | None = None) -> list[Any]:
        """Fence, epoch, sequence and counters of these sales."""
        return await self._redis(
            self._servers.scatter(
                [(name, ("HMGET", slot_keys(name).sale, "fence", "epoch", "sequence", "counts")) for name in names]
            ),
            within,
        )

    async def _redis(self, work: Awaitable[T], within: float | None = None, of: Server | None = None) -> T:
        """What Redis answers in time, `ANSWER_S` where nothing is said; NotSent when that is too late.

        Parameters
        ----------
        of: the server that is asked; None is all of them.
        """
        within = within or ANSWER_S
        try:
            return await self._patiently(work, within)
        except TimeoutError:
            place = (of or self._servers).place
            raise NotSent(f"Redis at {place} does not answer within {within:g} s") from None

    async def _stored(self, work: Awaitable[T], within: float | None = None) -> T:
        """As `_redis` for the store, with StoreError."""
        within = within or ANSWER_S
        try:
            return await self._patiently(work, within)
        except TimeoutError:
            raise StoreError(f"the store does not answer within {within:g} s") from None

    async def _patiently(self, work: Awaitable[T], within: float) -> T:
        """What is answered in time; TimeoutError beyond.

        A question that is late is not given up: it may carry what others sent along with it.
        """
        asked = asyncio.ensure_future(work)
        try:
            await asyncio.wait({asked}, timeout=within)
        finally:
            if not asked.done():
                self._late.add(asked)
                asked.add_done_callback(self._heard_late)
        if not asked.done():
            raise TimeoutError
        return asked.result()

    def _heard_late(self, asked: asyncio.Future[Any]) -> None:
        self._late.discard(asked)
        if not asked.cancelled():
            asked.exception()

    async def stop(self) -> None:
        """Gives up what still waits."""
        while self._late:
            for asked in self._late:
                asked.cancel()
            await asyncio.wait(self._late, timeout=ANSWER_S)


def _stands(head: object) -> tuple[int, int]:
    """Epoch and sequence of a head; nowhere where there are none."""
    try:
        return int(head[1]), int(head[2])  # type: ignore[index]
    except (TypeError, ValueError):
        return 0, 0


def _score(reply: list[Any]) -> int:
    """The score of the one member, in the shape of either protocol version."""
    last = reply[-1]
    return int(float(last[-1] if isinstance(last, list) else last))
