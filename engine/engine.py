"""`Engine`, the face of the library: checks what callers say, sends it to the slot, turns answers into values."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import redis.asyncio as redis_asyncio
from redis.exceptions import ResponseError

from holdfast.engine import checks
from holdfast.engine.amending import AMEND_ROUNDS, Amending
from holdfast.engine.audit import Audit, AuditReport
from holdfast.engine.audit_shards import audit_shards
from holdfast.engine.background import Background
from holdfast.engine.batcher import Call, Waiter, collected
from holdfast.engine.borrowing import Borrowing
from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.durability import Assurance
from holdfast.engine.embedded import Appendfsync, EmbeddedRedis
from holdfast.engine.errors import (
    CapacityInUse,
    ConfigurationError,
    DurabilityUnavailable,
    HoldfastError,
    InvalidRequest,
    NotReady,
    SaleExists,
    UnknownSale,
    UnknownTicket,
)
from holdfast.engine.expirations import expirations
from holdfast.engine.healing import LOOK_S as HEALING_LOOK_S
from holdfast.engine.healing import Healing
from holdfast.engine.health import LEARN_S, Health
from holdfast.engine.identity import random_id, split_ticket
from holdfast.engine.leadership import TAKE_SECONDS, Leadership
from holdfast.engine.leases import Leases
from holdfast.engine.limits import HOLD_MS_DEFAULT, INSTANT_MS_MAX
from holdfast.engine.listener import Listeners
from holdfast.engine.memory import LOOK_S as MEMORY_LOOK_S
from holdfast.engine.memory import Memory
from holdfast.engine.mending import MEND_S, Mending
from holdfast.engine.meters import KINDS, Meters
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import SHARD_MARK, Definition, Record, sale_of
from holdfast.engine.recovery import BUYER_TICKETS_MAX, Recovery, RecoveryReport
from holdfast.engine.retention import Retention
from holdfast.engine.scripts import Refused, Scripts
from holdfast.engine.secret import Keeper, establish
from holdfast.engine.servers import each, open_servers
from holdfast.engine.shards import Family, Shards
from holdfast.engine.slots import InShards, Slot, Slots
from holdfast.engine.snapshot import FOLD_PAUSE_S, Snapshot
from holdfast.engine.store import CursorMoved, StoredSale, StoreError, TicketQuery, open_store
from holdfast.engine.sweeper import Sweeper
from holdfast.engine.tail import Tail, positions, transitions
from holdfast.engine.transfers import Carrier
from holdfast.engine.transitions import APPROVED, DECLINED, KEYED, RANDOM, Assured, Transitions
from holdfast.engine.values import (
    Condition,
    Durability,
    Expiration,
    ItemSpec,
    Line,
    Order,
    Page,
    Payment,
    Position,
    Readiness,
    Sale,
    SaleTransition,
    Status,
    Ticket,
)

log = logging.getLogger("holdfast.engine")

T = TypeVar("T")

#: What a call of many takes.
E = TypeVar("E", Order, Payment)

#: Milliseconds for which an ended ticket stays in Redis, and a keyed call is answered without asking the store (a day).
RETENTION_MS_DEFAULT = 24 * 3600 * 1000

#: Milliseconds between two snapshots: what a loss of Redis can cost at the weakest durability.
SNAPSHOT_MS_DEFAULT = 1000

#: Replicas that must have a payment at `replica`: one, as long as that one takes over when the primary is lost.
REPLICAS_DEFAULT = 1

#: Where an engine without an address keeps its Redis, its store and its secret.
DATA_DIR_DEFAULT = Path("holdfast-data")

#: Seconds for which a listing of sales waits for those that cannot be read, all together: a node may hang.
LISTING_S = 2.0

#: Seconds between two tries to reach Redis at the start.
REACH_PAUSE_S = 0.25


class Engine:
    """Reserves, confirms and cancels units of sales in Redis, and keeps what happened in a store.

    Made by `Engine.connect`, used as an async context manager. All methods may be called concurrently; calls on
    the same sale are coalesced into one script call. Refusals are the exceptions of `holdfast.engine.errors`.

    Attributes
    ----------
    embedded: the private Redis, None when an address was given.
    meters: what this engine has counted.
    """

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        store: str | None = None,
        data_dir: str | Path | None = None,
        secret: str | bytes | None = None,
        redis_server: str | None = None,
        sweep: bool = True,
        listen: bool = True,
        snapshot_ms: int | None = SNAPSHOT_MS_DEFAULT,
        retention_ms: int = RETENTION_MS_DEFAULT,
        durability: Durability = Durability.MEMORY,
        replicas: int = REPLICAS_DEFAULT,
        recover: bool = False,
        heal: bool = False,
        leadership: Leadership | None = None,
    ) -> Self:
        """An engine that is not started yet: `async with Engine.connect(...) as engine`.

        Parameters
        ----------
        url: of Redis; None starts a private one in `data_dir`.
        store: `sqlite:///PATH` or `postgresql://...`; None is `holdfast.db` in `data_dir`.
        data_dir: None is `./holdfast-data`; used only where `url` or `store` is not given.
        secret: 16 characters at least, keys every hash; None is one made on the first start and kept.
        redis_server: path of the server to start; None takes the newest there is.
        sweep: expire holds from here. listen: also when Redis announces them.
        snapshot_ms: milliseconds between snapshots; None takes none (`snapshot()` still does).
        retention_ms: milliseconds for which ended tickets stay in Redis.
        durability: of payments that ask for none, in sales that say none.
        replicas: of Redis that must have a payment at `replica`.
        recover: rebuild what Redis has lost before the start is over.
        heal: on Sentinel and Cluster, rebuild what a failover has lost, whenever that is.
        leadership: shared with engines of other processes: sweeps and copies only while this one leads. None leads.
        """
        engine = cls()
        engine.meters = Meters()
        data = Path(data_dir) if data_dir is not None else DATA_DIR_DEFAULT
        engine._url = url
        engine._data_dir = data
        engine._store_url = store
        engine._secret = secret
        if url is None:
            # Every write on disk before its reply, instead of once a second: a payment then waits for nothing more.
            appendfsync: Appendfsync = "always" if durability is Durability.FSYNC else "everysec"
            engine.embedded = EmbeddedRedis(data, redis_server=redis_server, appendfsync=appendfsync)
        engine._roles = {"sweep": sweep, "listen": listen}
        engine._snapshot_ms = snapshot_ms
        engine._retention_ms = retention_ms
        engine._durability = durability
        engine._replicas = replicas
        engine._recover_at_start = recover
        engine._heal = heal
        engine._leadership = leadership
        return engine

    _url: str | None
    _data_dir: Path
    _store_url: str | None
    _secret: str | bytes | None
    _roles: Mapping[str, bool]
    _snapshot_ms: int | None
    _retention_ms: int
    _durability: Durability
    _replicas: int
    _recover_at_start: bool
    _heal: bool
    _leadership: Leadership | None = None
    _leads: bool = False
    meters: Meters
    embedded: EmbeddedRedis | None = None
    #: For tests: connections to a fake, and includes to replace in the scripts.
    _pool: redis_asyncio.ConnectionPool | None = None
    _replaced: Mapping[str, str] | None = None

    async def start(self) -> None:
        """Connects to Redis and the store and begins to sweep, listen and snapshot.

        Raises
        ------
        ConfigurationError: it cannot run like this; the sentence says what to do.
        """
        self._background = Background()
        try:
            if self.embedded is not None:
                self._url = await self.embedded.start()
            await self._open_store()
            self._servers = open_servers(self._url or "", self._pool)
            await self._reached(self._servers.start)
            await self._reached(lambda: self._of_each(Server.check_policy))
            if not self._servers.follows:
                await self._reached(self._servers.one.check_whole)
            self._keeper = Keeper(self._store, self._data_dir if self.embedded is not None else None)
            self._identity = await establish(self._secret, self._keeper, self._store)
            await self._belong_together()
            self._scripts = Scripts(self._servers, self._replaced)
            self._leases = Leases(self._servers)
            self._transitions = Transitions(self._scripts, self._store, self._leases, self.meters)
            self._slots = Slots(self._servers, self._scripts, self._store, self._transitions, self.meters)
            self._snapshot = Snapshot(self._servers, self._store, self._slots, self.meters)
            self._slots.copy = self._snapshot.take_up
            carrier = Carrier(self._scripts, self._store, self._snapshot)
            self._borrowing = Borrowing(carrier, self._transitions)
            self._shards = Shards(self._slots, self._servers, self._borrowing.short)
            self._borrowing.families = self._shards.known
            self._amending = Amending(self._scripts, self._store, self._snapshot, self._borrowing, self._transitions)
            self._mending = Mending(self._store, self._shards, self._borrowing, self._amending)
            self._assurance = Assurance(self._servers, self._scripts, self._snapshot, self._replicas, self.meters)
            self._memory = Memory(self._servers, self._slots)
            self._health = Health(
                self._servers, self._store, self._slots, self._snapshot, self._memory, self._store_id, self._alarms
            )
            self._retention = Retention(self._servers, self._scripts, self._store, self._retention_ms)
            self._sweeper = Sweeper(self._servers, self._store, self._slots)
            self._recovery = Recovery(
                self._servers, self._scripts, self._store, self._slots, self._leases, self._retention_ms
            )
            self._recovery.raise_elsewhere = self._raise_elsewhere
            self._audit = Audit(self._servers, self._scripts, self._store)
            self._listeners = Listeners(self._servers, self._heard)
            await self._reached(lambda: self._assurance.require_somewhere(self._durability))
            if self._recover_at_start:
                await self._recover_lost()
            self._begin()
        except DurabilityUnavailable as error:
            await self.close()
            raise ConfigurationError(f"--durability: {error}") from error
        except StoreError as error:
            await self.close()
            raise ConfigurationError(str(error)) from error
        except BaseException:
            await self.close()
            raise

    async def _open_store(self) -> None:
        if self._store_url is None:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = open_store(self._store_url or f"sqlite:///{self._data_dir / 'holdfast.db'}")
        await self._store.open()

    async def _belong_together(self) -> None:
        """Refuses a Redis with the sales of another store: each would copy, trim and recover what is the other's."""
        ours = self._store_id = await self._store.kept("store-id", random_id)

        async def compare(server: Server) -> None:
            key = self._servers.deployment_key(server)
            try:
                await server.call("SET", key, ours, "NX")
                theirs = await server.call("GET", key)
            except ResponseError as error:
                raise ConfigurationError(
                    f"Redis refuses ({error}): give this user the rules of deploy/redis-users.acl"
                ) from error
            if theirs != ours.encode():
                raise ConfigurationError(
                    "this Redis holds the sales of another store: give that store (--store, --data-dir), "
                    "or another Redis or database number (--redis)"
                )

        await self._reached(lambda: self._of_each(compare))

    async def _of_each(self, ask: Callable[[Server], Awaitable[None]]) -> None:
        """Asks every server; of several, those that answer do: the sales of the others wait.

        Raises
        ------
        NotSent, NoReply: none of them does.
        """
        told = await each(self._servers.all(), ask)
        away = [error for error in told.values() if error is not None]
        if len(away) == len(told):
            raise away[0] if away else NotSent("no node of the cluster has any slots")
        for error in away:
            log.error("%s: what it has is not sold until it does", error)

    async def _reached(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Asks until there is an answer, where servers are replaced: a failover may be under way.

        Raises
        ------
        ConfigurationError: there is none.
        """
        give_up = time.monotonic() + (self._servers.patience_s if self._servers.follows else 0)
        while True:
            try:
                return await ask()
            except (NotSent, NoReply) as error:
                if time.monotonic() >= give_up:
                    raise ConfigurationError(f"{error}: is the address right, and is it up?") from error
                log.info("%s; it is tried again", error)
            await asyncio.sleep(REACH_PAUSE_S)

    def _begin(self) -> None:
        background = self._background
        if self._leadership is None:
            self._lead()
        else:
            leadership = self._leadership
            background.repeat("leadership", lambda: self._take_turn(leadership), lambda: asyncio.sleep(TAKE_SECONDS))
        if self._servers.follows:
            self._slots.heals = self._heal
            background.repeat("topology", self._servers.follow, lambda: asyncio.sleep(self._servers.follow_s))
        background.repeat("registry", self._health.learn, lambda: asyncio.sleep(LEARN_S))
        background.repeat("memory", self._memory.run, lambda: asyncio.sleep(MEMORY_LOOK_S))
        if self._roles["listen"]:
            background.start("listener", self._listeners.run())
        if self.embedded is not None:
            background.start("redis", self.embedded.keep_alive())

    def _lead(self) -> None:
        """Begins what one engine at a time has to do."""
        background = self._background
        self._leads = True
        if self._roles["sweep"]:
            background.repeat("sweeper", self._sweeper.run, self._sweeper.pause)
        if self._snapshot_ms is not None:
            seconds = self._snapshot_ms / 1000
            background.repeat("snapshot", self._snapshot.run, lambda: asyncio.sleep(seconds))
            background.repeat("folding", self._snapshot.fold_when_calm, lambda: asyncio.sleep(FOLD_PAUSE_S))
            background.repeat("shards", self._mending.run, lambda: asyncio.sleep(MEND_S))
            background.repeat("retention", self._retention.run, lambda: asyncio.sleep(max(1.0, seconds)))
        if self._heal and self._servers.follows:
            healing = Healing(self._health, lambda slot: self.recover([slot]))
            background.repeat("healing", healing.run, lambda: asyncio.sleep(HEALING_LOOK_S))

    async def _take_turn(self, leadership: Leadership) -> None:
        """Leads when no other process does, and tells the others which alarms were raised here."""
        # A call of any engine may copy, and so find a contradiction: it is told whoever leads.
        leadership.post(self._snapshot.alarms)
        if not self._leads and leadership.take():
            self._lead()

    async def close(self) -> None:
        """Refuses new calls, finishes what is under way, takes a last snapshot, and stops the private Redis.

        Whatever fails on the way is logged, and the rest is closed all the same.
        """
        async with AsyncExitStack() as closing:
            # Done in the reverse order.
            if self.embedded is not None:
                closing.push_async_callback(self.embedded.stop)
            if hasattr(self, "_store"):
                closing.push_async_callback(self._store.close)
            if hasattr(self, "_servers"):
                closing.push_async_callback(self._servers.close)
            if hasattr(self, "_slots"):
                closing.push_async_callback(self._finish)
            if hasattr(self, "_health"):
                closing.push_async_callback(self._health.stop)
            closing.push_async_callback(self._background.stop)

    async def _finish(self) -> None:
        await self._slots.drained()
        await self._borrowing.drained()
        await self._leases.drained()
        await self._assurance.drained()
        # Without the lead, others go on copying.
        if self._snapshot_ms is None or (self._leadership is not None and not self._leads):
            return
        try:
            await self._snapshot.run()
            await self._snapshot.fold()
        except (NotSent, NoReply, StoreError) as error:
            log.error("no last snapshot: %s; what is missing is copied after the next start", error)
        except Exception:
            # A defect: the rest has still to be closed.
            log.exception("no last snapshot; what is missing is copied after the next start")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _heard(self, ticket: str) -> None:
        self._sweeper.wake(ticket.partition(".")[0])
        self._background.wake_listeners()

    # -- sales -----------------------------------------------------------------------------------------------------

    async def create_sale(
        self,
        sale: str | None = None,
        *,
        name: str,
        capacity: int | None = None,
        items: Sequence[ItemSpec] | None = None,
        hold_ms: int = HOLD_MS_DEFAULT,
        max_per_buyer: int | None = None,
        opens_at: int | None = None,
        closes_at: int | None = None,
        durability: Durability | None = None,
        shards: int | None = None,
    ) -> Sale:
        """Puts something on sale. The same call again returns the sale as it stands now, with `created` False.

        Parameters
        ----------
        sale: its id; None has one made.
        capacity: units of its only item, `general`; or `items`, not both.
        hold_ms: how long tickets keep their units, milliseconds.
        max_per_buyer: units that one buyer may hold and have bought together.
        opens_at, closes_at: Unix milliseconds; None is open-ended.
        durability: of payments that ask for none; None is the engine's. It stays as it is.
        shards: slots over which the units are divided, so that several cores or nodes sell them; None is one. It stays
            as it is.

        Raises
        ------
        InvalidRequest: a value that can never be right. DurabilityUnavailable.
        SaleExists: the id belongs to a sale that was described otherwise.
        NotReady: Redis or the store does not answer; repeat the call.
        """
        id = random_id().lower().replace("_", "0").replace("-", "0") if sale is None else sale
        draft = checks.definition(
            id, name, capacity, items, hold_ms, max_per_buyer, opens_at, closes_at, durability, shards
        )
        if draft.durability is not None:
            for slot in draft.slots():
                await self._assurance.require(draft.durability, slot)
        origin = hashlib.blake2b(draft.json().encode(), digest_size=16).hexdigest()
        definition = Definition.from_json(json.dumps(json.loads(draft.json()) | {"origin": origin}))
        stored = await self._stored(self._store.begin_sale(definition))
        if stored.known.origin != origin:
            raise SaleExists(id)
        if stored.definition is not None:
            return await self.sale(id)
        found = await self._find(id)  # creates what is registered and not yet in Redis
        self._sweeper.wake(*definition.slots())
        return replace(await found.sale(), created=True)

    async def _find(self, sale: str) -> Slot | Family:
        """The sale of this id.

        Raises
        ------
        UnknownSale, NotReady.
        """
        found = self._slots.whole(sale) or self._shards.known(sale)
        if found is None:
            if SHARD_MARK in sale:
                raise UnknownSale(sale)
            try:
                found = await self._slots.get(sale)
            except InShards:
                found = await self._shards.get(sale)
        return found

    async def _home(self, sale: str, buyer: str) -> Slot:
        """The slot in which this buyer reserves; raises as `_find`, and InvalidRequest."""
        found = await self._find(sale)
        return found if isinstance(found, Slot) else found.of(self._who(buyer))

    async def amend_sale(self, sale: str, changes: Mapping[str, object]) -> Sale:
        """Changes a sale while it sells, by JSON merge patch: what is absent stays, None removes a limit or an instant.

        Parameters
        ----------
        changes: `name`, `hold_ms` (for new tickets), `max_per_buyer`, `opens_at`, `closes_at`, `capacity` (sales of
            one item), `items` (merged by sku, never removed; a new one needs its capacity).

        Raises
        ------
        InvalidRequest, UnknownSale, NotReady.
        CapacityInUse: less capacity than is held and sold.
        """
        slot = await self._find(sale)
        if not isinstance(slot, Slot):
            return await self._amending.amend(slot, changes)
        for _ in range(AMEND_ROUNDS):
            current, known = await self._slots.sale(slot), slot.definition
            wanted = checks.amended(known, changes)
            if wanted == known:
                return current
            wanted = Definition.from_json(json.dumps(json.loads(wanted.json()) | {"version": known.version + 1}))
            await self._stored(self._store.begin_amendment(wanted))
            outcome, item, in_use = await self._slots.run(slot, self._amend(slot, known.version, wanted))
            if outcome in (Outcome.OK, Outcome.REPLAYED):
                await self._stored(self._store.settle(sale, wanted))
                # Copied before it is acknowledged: a Redis that loses the amendment is then behind, and does not sell.
                await self._stored(self._redis(self._snapshot.reach({slot.name})))
                return await self.sale(sale)
            if outcome is Outcome.CAPACITY_IN_USE:
                await self._stored(self._store.settle(sale, None))
                raise CapacityInUse(wanted.items[item - 1].sku, in_use)
            if outcome is Outcome.SWEEP_FIRST:
                await self._sweeper.sweep(slot.name)
        raise NotReady(f"'{sale}' is amended by too many at once")

    def _amend(
        self, slot: Slot, version: int, wanted: Definition
    ) -> Callable[[str, bool], Awaitable[tuple[Outcome, int, int]]]:
        return lambda floor, again: self._scripts.amend(
            slot.keys, floor, version, wanted.json(), wanted.rules(), wanted.capacities()
        )

    async def sale(self, sale: str) -> Sale:
        """The sale with its counters.

        Raises
        ------
        UnknownSale, NotReady.
        """
        return await (await self._find(sale)).sale()

    async def sales(self, *, limit: int = 100, cursor: str | None = None) -> Page[Sale]:
        """Sales in the order of their ids.

        Parameters
        ----------
        limit: rows, 1 to `limits.PAGE_MAX`. cursor: `next` of the page before.
        """
        checks.page_limit(limit)
        (after,) = _position(cursor, str) or ("",)
        rows = await self._stored(self._store.sales(str(after), limit + 1))
        until = asyncio.get_running_loop().time() + LISTING_S
        items = await asyncio.gather(*(self._listed(row, until) for row in rows[:limit]))
        return Page(tuple(items), _cursor(rows[limit - 1].id) if len(rows) > limit else None)

    async def _listed(self, stored: StoredSale, until: float) -> Sale:
        """A sale of a listing: one that cannot be read by then is listed all the same, with nothing to sell."""
        try:
            async with asyncio.timeout_at(until):
                return await self.sale(stored.id)
        except (NotReady, TimeoutError):
            none = " ".join("0 0 0" for _ in stored.known.items)
            return replace(stored.known.sale(none, 0, stored.cursor.sequence), ready=False)

    # -- tickets ---------------------------------------------------------------------------------------------------

    async def reserve(
        self,
        sale: str,
        *,
        buyer: str,
        quantity: int | None = None,
        lines: Mapping[str, int] | Sequence[Line] | None = None,
        key: str | None = None,
    ) -> Ticket:
        """Holds units for a buyer until the sale's hold time is over. All lines or nothing.

        Parameters
        ----------
        quantity: units, in a sale of one item; or `lines`, units by sku.
        key: names this operation: the same key again gives the same ticket, `replayed`.

        Raises
        ------
        InvalidRequest, UnknownSale, IdempotencyKeyReused, NotYetOpen, Closed, LimitReached, SoldOut, AllHeld.
        Overloaded, NotReady: nothing was done. OutcomeUnknown: repeat it with the same key.
        """
        waiter: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        slot = self._slots.whole(sale) or await self._home(sale, buyer)
        try:
            slot.reserves.put(self._order(slot, waiter, self._who(buyer), quantity, lines, key))
        except checks.UnknownSku:
            # Another process may have added an item a moment ago: read the sale once more before saying so.
            await self._slots.sale(slot)
            slot.reserves.put(self._order(slot, waiter, self._who(buyer), quantity, lines, key))
        return await waiter

    def reserve_for(
        self,
        waiter: Waiter,
        sale: str,
        buyer: str,
        quantity: int | None = None,
        lines: Mapping[str, int] | Sequence[Line] | None = None,
        key: str | None = None,
    ) -> bool:
        """As `reserve`, for a caller without a task: `waiter` hears the ticket, or why there is none.

        Returns
        -------
        Whether it was taken up. If not, something has to be looked up first, nothing was done, and `reserve` does it.

        Raises
        ------
        InvalidRequest, Overloaded, NotReady: nothing was done, and the waiter hears nothing.
        """
        slot = self._slots.whole(sale)
        if slot is None:
            return self._reserve_in_shards(waiter, sale, buyer, quantity, lines, key)
        checks.buyer(buyer)
        try:
            packed = self._packed(slot, quantity, lines)
        except checks.UnknownSku:
            return False
        # Before the buyer is hashed: most of a stampede comes when everything is gone.
        refusal = slot.still_sold_out(packed) if key is None else None
        if refusal is not None:
            waiter.set_exception(refusal)
        else:
            slot.reserves.put(self._reservation(slot, waiter, self._identity.buyer(buyer), packed, key))
        return True

    def _reserve_in_shards(
        self,
        waiter: Waiter,
        sale: str,
        buyer: str,
        quantity: int | None,
        lines: Mapping[str, int] | Sequence[Line] | None,
        key: str | None,
    ) -> bool:
        """As `reserve_for`, of a sale in shards."""
        family = self._shards.known(sale)
        if family is None:
            return False
        checks.buyer(buyer)
        try:
            packed = self._packed(family.slots[0], quantity, lines)
        except checks.UnknownSku:
            return False
        # What is sold out for good is so in all shards, and they remember it together.
        refusal = family.slots[0].still_sold_out(packed) if key is None else None
        if refusal is not None:
            waiter.set_exception(refusal)
        else:
            who = self._identity.buyer(buyer)
            slot = family.of(who)
            slot.reserves.put(self._reservation(slot, waiter, who, packed, key))
        return True

    async def reserve_many(self, sale: str, entries: Sequence[Order]) -> list[Ticket | HoldfastError]:
        """As `reserve` for each entry, in their order and with one wait for all: the ticket of each, or its refusal.

        No entry's refusal is another's. They queue like the calls of everybody else, and are not one transition: what
        of them was not sent when the caller stops to wait is not done.

        Raises
        ------
        InvalidRequest: entries that can never be right, with pointers like `/entries/3/quantity`; nothing was done.
        UnknownSale.
        """

        def call(waiter: Waiter, who: str, order: Order) -> Call:
            return self._order(slot, waiter, who, order.quantity, order.lines, order.key)

        try:
            found = self._slots.whole(sale) or await self._find(sale)
            if not isinstance(found, Slot):
                return await self._reserve_many_in_shards(found, entries)
            slot = found
            try:
                calls, waiters = self._calls(entries, call)
            except checks.UnknownSku:
                await self._slots.sale(slot)
                calls, waiters = self._calls(entries, call)
        except NotReady as error:
            return [error] * len(entries)
        slot.reserves.put_all(calls)
        return await collected(waiters)

    async def _reserve_many_in_shards(self, family: Family, entries: Sequence[Order]) -> list[Ticket | HoldfastError]:
        """As `reserve_many`, of a sale in shards: each entry goes to its buyer's."""

        def call(waiter: Waiter, who: str, order: Order) -> tuple[Slot, Call]:
            slot = family.of(who)
            return slot, self._order(slot, waiter, who, order.quantity, order.lines, order.key)

        try:
            calls, waiters = self._calls(entries, call)
        except checks.UnknownSku:
            await family.sale()
            calls, waiters = self._calls(entries, call)
        for slot, of_slot in _by_slot(calls).items():
            slot.reserves.put_all(of_slot)
        return await collected(waiters)

    def _order(
        self,
        slot: Slot,
        waiter: Waiter,
        who: str,
        quantity: int | None,
        lines: Mapping[str, int] | Sequence[Line] | None,
        key: str | None,
    ) -> Call:
        """The call that reserves this.

        Parameters
        ----------
        who: the buyer's hash.

        Raises
        ------
        InvalidRequest. SoldOut: Redis said so a moment ago.
        """
        packed = self._packed(slot, quantity, lines)
        refusal = slot.still_sold_out(packed) if key is None else None
        if refusal is not None:
            raise refusal.with_traceback(None)
        return self._reservation(slot, waiter, who, packed, key)

    @staticmethod
    def _packed(slot: Slot, quantity: int | None, lines: Mapping[str, int] | Sequence[Line] | None) -> str:
        """The lines, packed; raises as `checks.lines`."""
        # True and 1.0 are keys of the same entry as 1, and no quantities.
        plain = lines is None and type(quantity) is int
        packed = slot.packed.get(quantity) if plain else None
        if packed is None:
            packed = checks.lines(slot.definition, slot.item_of, quantity, lines)
            if plain:
                slot.remember_packed(quantity, packed)
        return packed

    def _reservation(self, slot: Slot, waiter: Waiter, who: str, packed: str, key: str | None) -> Call:
        if key is None:
            return random_id(), who, RANDOM + packed, waiter
        checks.key(key)
        return self._identity.ticket(slot.definition.id, who, key), who, KEYED + packed, waiter

    def _who(self, buyer: str) -> str:
        """The buyer's hash.

        Raises
        ------
        InvalidRequest: nobody can be called that.
        """
        return self._identity.buyer(checks.buyer(buyer))

    async def confirm(
        self,
        ticket: str,
        *,
        buyer: str,
        reference: str | None = None,
        key: str | None = None,
        declined: bool = False,
        durability: Durability | None = None,
    ) -> Ticket:
        """Pays for a reserved ticket: it becomes purchased, for good.

        Parameters
        ----------
        reference: what the payment is called elsewhere, kept with the purchase.
        key: names this operation: the same key again gives the same purchase, `replayed`.
        declined: rehearse a declined payment; the ticket stays as it is.
        durability: what it must survive before this returns; None is the sale's, or the engine's.

        Returns
        -------
        The ticket. When its durability could not be reached in time, `pending` names it: the ticket is paid for, at
        `memory`, and the same call with the same key waits again.

        Raises
        ------
        InvalidRequest, UnknownTicket, NotYourTicket, AlreadyPurchased, AlreadyCancelled, TicketExpired,
        PaymentDeclined, IdempotencyKeyReused. DurabilityUnavailable: nothing was done.
        Overloaded, NotReady: nothing was done. OutcomeUnknown: repeat it with the same key.
        """
        waiter: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        slot, id = await self._locate(ticket)
        level = self._level(slot, durability)
        await self._assurance.require(level, slot.name, patient=True)
        assured = self._assured(waiter, slot, level)
        slot.confirms.put(self._payment(id, assured, self._who(buyer), ticket, reference, key, declined))
        return await waiter

    def confirm_for(
        self,
        waiter: Waiter,
        ticket: str,
        buyer: str,
        reference: str | None = None,
        key: str | None = None,
        declined: bool = False,
        durability: Durability | None = None,
    ) -> bool:
        """As `confirm`, for a caller without a task: see `reserve_for`."""
        parts = split_ticket(ticket)
        slot = self._slots.known(parts[0]) if parts is not None else None
        if parts is None or slot is None:
            return False
        level = self._level(slot, durability)
        if level is not Durability.MEMORY:
            if not self._assurance.known_available(level, slot.name):
                return False
            waiter = self._assured(waiter, slot, level)
        slot.confirms.put(self._payment(parts[1], waiter, self._who(buyer), ticket, reference, key, declined))
        return True

    def _level(self, slot: Slot, asked: Durability | None) -> Durability:
        """The durability of a payment that asks for this."""
        return asked or slot.definition.durability or self._durability

    def _assured(self, waiter: Waiter, slot: Slot, level: Durability) -> Waiter:
        """Whoever hears the ticket first, so that `waiter` hears it once it is as durable as this."""
        return waiter if level is Durability.MEMORY else Assured(waiter, slot, level, self._assurance.add)

    async def confirm_many(
        self, sale: str, entries: Sequence[Payment], *, durability: Durability | None = None
    ) -> list[Ticket | HoldfastError]:
        """As `confirm` for each entry: see `reserve_many`. The ticket of another sale is an UnknownTicket.

        Raises
        ------
        InvalidRequest, UnknownSale: as `reserve_many`. DurabilityUnavailable: nothing was done.
        """

        def call(waiter: Waiter, who: str, payment: Payment) -> Call:
            parts = split_ticket(payment.ticket)
            id = parts[1] if parts is not None and parts[0] == slot.name else ""
            assured = self._assured(waiter, slot, level)
            call = self._payment(id, assured, who, payment.ticket, payment.reference, payment.key, payment.declined)
            if not id:
                raise UnknownTicket
            return call

        try:
            found = self._slots.whole(sale) or await self._find(sale)
            if not isinstance(found, Slot):
                return await self._confirm_many_in_shards(found, entries, durability)
            slot = found
            level = self._level(slot, durability)
            await self._assurance.require(level, slot.name, patient=True)
        except NotReady as error:
            return [error] * len(entries)
        calls, waiters = self._calls(entries, call)
        slot.confirms.put_all(calls)
        return await collected(waiters)

    async def _confirm_many_in_shards(
        self, family: Family, entries: Sequence[Payment], durability: Durability | None
    ) -> list[Ticket | HoldfastError]:
        """As `confirm_many`, of a sale in shards: each entry goes to its ticket's."""

        def call(waiter: Waiter, who: str, payment: Payment) -> tuple[Slot, Call]:
            parts = split_ticket(payment.ticket)
            slot = by_name.get(parts[0]) if parts is not None else None
            id = parts[1] if parts is not None and slot is not None else ""
            assured = self._assured(waiter, slot or family.slots[0], level)
            call = self._payment(id, assured, who, payment.ticket, payment.reference, payment.key, payment.declined)
            if slot is None:
                raise UnknownTicket
            return slot, call

        by_name = {slot.name: slot for slot in family.slots}
        level = self._level(family.slots[0], durability)
        for slot in family.slots:
            await self._assurance.require(level, slot.name, patient=True)
        calls, waiters = self._calls(entries, call)
        for slot, of_slot in _by_slot(calls).items():
            slot.confirms.put_all(of_slot)
        return await collected(waiters)

    def _payment(
        self,
        id: str,
        waiter: Waiter,
        who: str,
        ticket: str,
        reference: str | None,
        key: str | None,
        declined: bool,
    ) -> Call:
        """The call that pays like this; `who` is the buyer's hash."""
        payment = (DECLINED if declined else APPROVED) + checks.reference(reference)
        call = id, who, self._operation("confirm", ticket, checks.key(key)), payment, waiter
        if isinstance(waiter, Assured):
            waiter.call = call
        return call

    async def cancel(self, ticket: str, *, buyer: str, key: str | None = None) -> Ticket:
        """Gives a reserved ticket's units back. Cancelling again returns the cancelled ticket, `replayed`.

        Raises
        ------
        InvalidRequest, UnknownTicket, NotYourTicket, AlreadyPurchased, TicketExpired.
        Overloaded, NotReady: nothing was done. OutcomeUnknown: repeat it.
        """
        waiter: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        slot, id = await self._locate(ticket)
        slot.cancels.put((id, self._who(buyer), self._operation("cancel", ticket, checks.key(key)), waiter))
        return await waiter

    async def ticket(self, ticket: str) -> Ticket:
        """The ticket as it stands.

        Raises
        ------
        UnknownTicket, NotReady.
        """
        slot, id = await self._locate(ticket)
        now, record = await self._read(slot, id)
        if record is None:
            record = await self._transitions.left_redis(slot, id)
        return await self._transitions.shown(slot, record, now)

    def _read(self, slot: Slot, id: str) -> asyncio.Future[tuple[int, Record | None]]:
        waiter: asyncio.Future[tuple[int, Record | None]] = asyncio.get_running_loop().create_future()
        slot.reads.put((id, waiter))
        return waiter

    async def tickets(
        self,
        sale: str,
        *,
        buyer: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Ticket]:
        """Tickets of a sale, oldest first: of one buyer, or all.

        Parameters
        ----------
        status: only these. limit: rows, 1 to `limits.PAGE_MAX`. cursor: `next` of the page before.

        Raises
        ------
        InvalidRequest, UnknownSale, NotReady.
        """
        checks.page_limit(limit)
        position = _position(cursor, int, str) or (0, "")
        found = await self._find(sale)
        after = (int(position[0]), str(position[1]))
        if buyer is None:
            places = (found,) if isinstance(found, Slot) else found.slots
            # The store has every ticket once it has caught up with the ledger, expiries included.
            await asyncio.gather(*(self._sweeper.sweep(slot.name) for slot in places))
            await self._up_to_date(*places)
            return await self._page(places, TicketQuery("", limit + 1, None, status, after), {}, limit)
        who = self._who(buyer)
        slot = found if isinstance(found, Slot) else found.of(who)
        _, live = await self._slots.run(slot, lambda floor, _: self._scripts.mine(slot.keys, floor, who), reads=True)
        if len(live) >= BUYER_TICKETS_MAX:
            # Redis may have left out older ones, which the store's table need not have yet. When it names fewer, those
            # that it left out are older than one that was dropped since, and so they are folded.
            await self._up_to_date(slot)
        fresh = {record.id: record for record in live if (record.reserved_at, record.id) > after}
        query = TicketQuery("", limit + 1, who, None, after)
        return await self._page((slot,), query, fresh, limit, status)

    async def _up_to_date(self, *slots: Slot) -> None:
        """The store's tickets of these slots as Redis has them now, and not what comes meanwhile."""
        await self._stored(self._redis(self._snapshot.reach({slot.name for slot in slots})))
        for slot in slots:
            await self._stored(self._snapshot.fold(slot.name))

    async def _page(
        self,
        slots: Sequence[Slot],
        query: TicketQuery,
        live: Mapping[str, Record],
        limit: int,
        status: Status | None = None,
    ) -> Page[Ticket]:
        """Tickets of the store, overlaid with what Redis says of them now, and those that only Redis has so far.

        Parameters
        ----------
        slots: of one sale, among which the tickets lie in one order. query: of each of them. live: of a single slot.
        """
        known: dict[str, tuple[Slot, Record]] = {}
        for slot in slots:
            found = await self._stored(self._store.tickets(replace(query, slot=slot.name)))
            known |= {record.id: (slot, record) for record in found}
        known |= {id: (slots[0], record) for id, record in live.items()}
        # A full page of the store ends somewhere, and what Redis has beyond that belongs to the next one.
        merged = sorted(known.values(), key=lambda pair: (pair[1].reserved_at, pair[1].id))
        rows = merged[:limit]
        reads = await asyncio.gather(*(self._read(slot, record.id) for slot, record in rows))
        now = max((now for now, _ in reads), default=0)
        tickets = [
            await self._transitions.shown(slot, fresh or record, now)
            for (slot, record), (_, fresh) in zip(rows, reads, strict=True)
        ]
        wanted = query.status or status
        last = _cursor(rows[-1][1].reserved_at, rows[-1][1].id) if len(merged) > limit else None
        return Page(tuple(ticket for ticket in tickets if wanted is None or ticket.status == wanted), last)

    async def _locate(self, ticket: str) -> tuple[Slot, str]:
        parts = split_ticket(ticket)
        if parts is None:
            raise UnknownTicket
        try:
            return self._slots.known(parts[0]) or await self._slots.get(parts[0]), parts[1]
        except UnknownSale:
            raise UnknownTicket from None

    def _calls(
        self, entries: Sequence[E], call: Callable[[Waiter, str, E], T]
    ) -> tuple[list[T], list[asyncio.Future[Ticket]]]:
        """The calls of entries and the waiter of each; one that is refused before it is sent has its answer already.

        Parameters
        ----------
        call: makes the call of a waiter, a buyer's hash and an entry.

        Raises
        ------
        InvalidRequest: entries that can never be right, all of them; UnknownSku when that may be over in a moment.
        """
        create_future = asyncio.get_running_loop().create_future
        waiters: list[asyncio.Future[Ticket]] = []
        calls: list[T] = []
        mistakes: list[tuple[int, InvalidRequest]] = []
        refused: list[tuple[asyncio.Future[Ticket], HoldfastError]] = []
        for at, entry in enumerate(entries):
            try:
                checks.buyer(entry.buyer)
            except InvalidRequest as error:
                mistakes.append((at, error))
        hashes = ["" for _ in entries] if mistakes else self._identity.buyers([entry.buyer for entry in entries])
        for at, (entry, who) in enumerate(zip(entries, hashes, strict=True)):
            waiter = create_future()
            waiters.append(waiter)
            try:
                calls.append(call(waiter, who, entry))
            except InvalidRequest as error:
                mistakes.append((at, error))
            except HoldfastError as error:
                # Kept by its waiter, and without this frame, which it would keep.
                refused.append((waiter, error.with_traceback(None)))
        if mistakes:
            raise checks.all_of(sorted(mistakes, key=itemgetter(0)))
        for waiter, refusal in refused:
            waiter.set_exception(refusal)
        return calls, waiters

    def _operation(self, call: str, ticket: str, key: str | None) -> str:
        return random_id() if key is None else self._identity.operation(call, ticket, key)

    # -- identity --------------------------------------------------------------------------------------------------

    def buyer_hash(self, buyer: str) -> str:
        """The only form of a buyer that is kept, as in `Ticket.buyer`."""
        return self._who(buyer)

    def ticket_id(self, sale: str, *, buyer: str, key: str) -> str:
        """The id that reserving with this key gives; of a sale in shards, once this process has met it."""
        who = self.buyer_hash(buyer)
        family = self._shards.known(sale)
        return f"{family.of(who).name if family else sale}.{self._identity.ticket(sale, who, key)}"

    async def kept(self, name: str, make: Callable[[], str]) -> str:
        """A secret made once and kept beside the engine's own: 0600 in the data directory, or in the store."""
        return await self._stored(self._keeper.kept(name, make))

    # -- care ------------------------------------------------------------------------------------------------------

    async def readiness(self) -> Readiness:
        """Whether every sale can be sold now, and if not, why.

        While the store does not answer that is an alarm: the sales that this process knows go on, and only they are
        looked at.
        """
        return await self._health.readiness()

    async def condition(self) -> Condition:
        """How everything stands: for whoever watches. Answered within seconds, whatever else does not answer."""
        return await self._health.condition()

    def knows(self, sale: str) -> bool:
        """Whether this process has met the sale: it exists."""
        return self._slots.whole(sale) is not None or self._shards.known(sale) is not None

    def waiting(self) -> dict[str, int]:
        """Calls that wait here for their batch, by kind."""
        by_slot = [slot.waiting() for slot in self._slots.all()]
        return dict(zip(KINDS, (sum(each) for each in zip(*by_slot, strict=True)), strict=True)) if by_slot else {}

    def _alarms(self) -> list[str]:
        if self._leadership is None:
            return self._snapshot.alarms
        self._leadership.post(self._snapshot.alarms)
        return self._leadership.alarms()

    async def snapshot(self) -> int:
        """Copies what is new in every ledger into the store and folds it into its tables now; how many transitions
        were new.

        Raises
        ------
        NotReady: Redis or the store does not answer.
        """
        copied = await self._stored(self._redis(self._snapshot.run()))
        await self._stored(self._snapshot.fold())
        return copied

    async def recover(self, sales: Sequence[str] | None = None, *, accept_oversold: bool = False) -> RecoveryReport:
        """Rebuilds sales in Redis from the union of store and Redis.

        Parameters
        ----------
        sales: which, or which of their shards; None is everything that is not ready.
        accept_oversold: raise a capacity to what is held and sold, where that is more; else the sale stays closed.

        Raises
        ------
        UnknownSale.
        NotReady: a side does not answer, or another recovery took over; run it again.
        """
        if sales is None:
            await self._servers.meet()
            names = list(await self._stored(self._redis(self._health.unready())))
        else:
            names = await self._slots_of(sales)
            # One that hangs holds nobody up who is elsewhere.
            with contextlib.suppress(NotSent):
                for server in {self._servers.of(name) for name in names}:
                    await server.meet()
        reports = []
        for name in names:
            stored = await self._stored(self._store.sale(name))
            if stored is None:
                raise UnknownSale(name)
            try:
                reports.append(
                    await self._stored(self._redis(self._recovery.recover(stored, accept_oversold=accept_oversold)))
                )
            except Refused as error:
                raise NotReady(f"another recovery of '{name}' has taken over") from error
            except CursorMoved as error:
                raise NotReady(f"another process copied or recovered '{name}' meanwhile: run it again") from error
            self._snapshot.forget(name)
        return RecoveryReport(tuple(reports))

    async def audit(self, sales: Sequence[str] | None = None, *, tickets: bool = False) -> AuditReport:
        """Compares what Redis counts with what the ledger tells, while everything sells on. Writes nothing.

        Parameters
        ----------
        sales: which, or which of their shards; None is all.
        tickets: also each ticket that is held, not only counters and buyers.

        Raises
        ------
        UnknownSale. NotReady: a side does not answer.
        """
        every = list(await self._stored(self._store.cursors()))
        names = every if sales is None else await self._slots_of(sales)
        reports = []
        for name in names:
            reports.append(await self._stored(self._redis(self._audit.audit(name, tickets=tickets))))
        for sale in dict.fromkeys(sale_of(name) for name in names if SHARD_MARK in name):
            # Between the shards, once each of them is known to agree with its own ledger.
            if {slot for slot in every if sale_of(slot) == sale} <= set(names):
                reports.append(await audit_shards(await self._shards.get(sale)))
        return AuditReport(tuple(reports))

    async def _slots_of(self, names: Sequence[str]) -> list[str]:
        """The slots of sales, and slots that are named themselves.

        Raises
        ------
        UnknownSale.
        """
        slots: list[str] = []
        for name in names:
            stored = await self._stored(self._store.sale(name))
            if stored is None:
                raise UnknownSale(name)
            slots += [name] if SHARD_MARK in name else stored.known.slots()
        return slots

    async def _raise_elsewhere(self, wanted: Definition) -> Definition:
        return await self._amending.raised(await self._shards.get(wanted.id), wanted)

    async def _recover_lost(self) -> None:
        """At the start. Of several servers one may be away: what it has is recovered when its place has been taken."""
        if not self._servers.follows:
            await self.recover()
            return
        names: list[str] = []

        async def look() -> None:
            await self._servers.meet()
            names.extend(await self._stored(self._health.unready(partly=True)))

        await self._reached(look)
        for name in names:
            try:
                await self.recover([name])
            except NotReady as error:
                log.error("'%s' is not recovered yet: %s", name, error)

    def expirations(
        self, *, sale: str | None = None, name: str | None = None, from_start: bool = False
    ) -> AsyncIterator[Expiration]:
        """Every ticket whose hold runs out, from now on, in the order of each sale's ledger.

        Exactly once for each iterator; with a `name`, at least once across restarts: what was swept together (one
        ledger entry) counts as delivered when the one after it is asked for, and comes again as a whole until then.
        `(slot, epoch, sequence)` tells a repeat.

        Parameters
        ----------
        sale: only this one's. name: remembers in the store how far this listener has come.
        from_start: begin with the oldest there is, where nothing is remembered.
        """
        return expirations(self._servers, self._store, self._background, sale, name, from_start)

    async def tail(self, sale: str, *, after: tuple[int, int] | str | None = None) -> Tail:
        """A reader of the sale's ledger, for who wants to look when it suits; `transitions` looks by itself.

        Parameters
        ----------
        after: a place to go on from: `EPOCH-SEQUENCE`, or those of all shards joined by commas, or epoch and sequence
            in a sale of one slot; (0, 0) and `0-0` are the beginning of any sale, None is where the ledger stands now.
            A place that the ledger has not reached is taken for its end: a server was lost with what lay beyond.

        Raises
        ------
        UnknownSale, NotReady.
        InvalidRequest: `after` is no place of this sale.
        """
        found = await self._find(sale)
        now = (await found.sale()).place
        slots = (found,) if isinstance(found, Slot) else found.slots
        stands = positions(now)
        if after is None:
            begin = stands
        else:
            begin = positions(after) if isinstance(after, str) else [Position(*after)]
            if begin == [Position(0, 0)]:
                begin *= len(slots)
        if len(begin) != len(slots):
            raise InvalidRequest("/after", f"is no place in '{sale}', which has come to {now}")
        if min(map(min, begin)) < 0:
            raise InvalidRequest("/after", f"is no place in '{sale}': its numbers begin with 0-0")
        # What lay beyond was lost with the server that had it, and its numbers go to others.
        return Tail(self._servers, self._store, sale, slots, list(map(min, begin, stands)))

    async def transitions(
        self, sale: str, *, after: tuple[int, int] | str | None = None
    ) -> AsyncIterator[SaleTransition]:
        """Every transition of a sale, without a gap, from Redis or, where it was trimmed there, the store: in order in
        each slot, and of a sale in shards those of one slot after those of another.

        Without an end: while Redis or the store does not answer, it waits. Go on later with the `place` of the last one
        that was handled.

        Parameters
        ----------
        after: as of `tail`.

        Raises
        ------
        UnknownSale, NotReady, InvalidRequest: at the first step, as `tail`.
        """
        async for transition in transitions(await self.tail(sale, after=after)):
            yield transition

    # -- failures of the two sides, as callers hear them -----------------------------------------------------------

    async def _stored(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except StoreError as error:
            raise NotReady(str(error)) from error

    async def _redis(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except (NotSent, NoReply) as error:
            raise NotReady(str(error)) from error


def _by_slot(calls: Sequence[tuple[Slot, Call]]) -> dict[Slot, list[Call]]:
    by_slot: dict[Slot, list[Call]] = {}
    for slot, call in calls:
        by_slot.setdefault(slot, []).append(call)
    return by_slot


def _cursor(*position: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def _position(cursor: str | None, *kinds: type) -> list[Any] | None:
    if cursor is None:
        return None
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(position, list) and [type(part) for part in position] == list(kinds):
            for part in position:
                if isinstance(part, str):
                    part.encode()  # a lone surrogate is nothing that the store could look for
                elif not 0 <= part <= INSTANT_MS_MAX:
                    raise ValueError
            return position
    except (binascii.Error, ValueError, RecursionError):
        pass
    raise InvalidRequest("/cursor", "is not a cursor that this listing gave")
