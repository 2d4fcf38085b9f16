"""What this process knows of each slot, and how a call gets there: checked, and sent again when Redis blinks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from holdfast.engine.batcher import Batcher, Waiter
from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.errors import HoldfastError, NotReady, OutcomeUnknown, SoldOut, UnknownSale
from holdfast.engine.keys import SlotKeys, slot_keys
from holdfast.engine.lookups import LookUps
from holdfast.engine.meters import Meters
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import Definition
from holdfast.engine.scripts import Refused, Scripts
from holdfast.engine.servers import Servers
from holdfast.engine.store import Cursor, Store, StoredSale, StoreError
from holdfast.engine.transitions import Transitions
from holdfast.engine.values import Line, Sale

log = logging.getLogger("holdfast.slots")

T = TypeVar("T")

#: Kinds of lines kept in the form in which callers see them: what people really order of one sale, in a few MB.
LINES_KNOWN_MAX = 1_000

#: Seconds for which a sale that is sold out for good is believed to be so without asking Redis again. Who restocks it
#: in another process is promised that it sells after 100 ms.
SOLD_OUT_S = 0.08

#: Seconds after which one caller asks again while the others are still refused, so that not all of them ask at once.
SOLD_OUT_ASK_S = 0.04

#: What passes by itself where somebody recovers what is behind.
_PASSING = (Outcome.BEHIND, Outcome.FENCED)

#: Seconds between two tries.
RESEND_PAUSE_S = 0.05

#: The generation of no server.
NEVER_MET = -1


class InShards(UnknownSale):
    """The sale of this id lives in several slots, and in none that is named by it."""


class Short(Protocol):
    """Takes the reservations for which a shard has too little."""

    def __call__(self, slot: Slot, others: Sequence[Unmade], /) -> list[Unmade]:
        """Those that are left: they are refused for another reason."""


#: A reservation that was not made: id, buyer, order, waiter, and what the script has answered.
Unmade = tuple[str, str, str, Waiter, bytes]


class KnownLines(dict[str, tuple[Line, ...]]):
    """Packed lines read once, up to `LINES_KNOWN_MAX` kinds of them.

    `get` answers only those that were read before. Reading lines of an item that the definition lacks is an IndexError.
    """

    def __init__(self, definition: Definition) -> None:
        self._definition = definition

    def __missing__(self, packed: str) -> tuple[Line, ...]:
        if len(self) >= LINES_KNOWN_MAX:
            self.clear()
        lines = self[packed] = self._definition.lines(packed)
        return lines


class Slot:
    """One slot as this process knows it.

    Attributes
    ----------
    sold_out: packed lines that were sold out for good a moment ago: when Redis was asked, and the refusal. Shards of
        one sale share it.
    short: who looks for units elsewhere when this slot has too few; None in a sale of one slot.
    floor: the store's cursor; a server that is below it has lost something, and every script refuses there.
    generation: of the server that was checked against the floor last.
    position: where its ledger stood in the last reply to a payment; nowhere before the first.
    time: the clock by which what is remembered grows old, in seconds.
    """

    def __init__(self, name: str, definition: Definition, floor: Cursor, generation: int, slots: Slots) -> None:
        self.name = name
        self.keys: SlotKeys = slot_keys(name)
        #: Before the id in a ticket's name.
        self.ticket_prefix = f"{name}."
        self.sold_out: dict[str, tuple[float, SoldOut]] = {}
        #: Those of which somebody asks again.
        self.asking: set[str] = set()
        self.short: Short | None = None
        self.floor = floor
        self.generation = generation
        self.definition = definition
        self.position = Cursor(0, 0)
        #: The generation of the server of which it was logged that it has lost something of this slot.
        self.told_lost = 0
        self._slots = slots
        self.time = asyncio.get_running_loop().time
        transitions, meters = slots.transitions, slots.meters.batches
        self.reserves = Batcher(lambda batch: transitions.reserve(self, batch), meter=meters["reserve"])
        self.reserves.refusal = slots.no_reserving(name)
        self.confirms = Batcher(lambda batch: transitions.confirm(self, batch), meter=meters["confirm"])
        self.cancels = Batcher(lambda batch: transitions.cancel(self, batch), meter=meters["cancel"])
        self.reads = Batcher(lambda batch: transitions.read(self, batch), meter=meters["read"])

    @property
    def definition(self) -> Definition:
        """The sale's definition; items are only ever added, so that an older one misnames nothing."""
        return self._definition

    @definition.setter
    def definition(self, definition: Definition) -> None:
        self._definition = definition
        #: As Redis told it; empty when it came from elsewhere.
        self._told = b""
        #: The number of each sku in packed lines.
        self.item_of = definition.indexes()
        #: Packed lines as callers see them. In a stampede nearly all want the same.
        self.lines = KnownLines(definition)
        #: Lines of so many units of the only item, packed.
        self.packed: dict[int | None, str] = {}
        self.sold_out.clear()
        self.asking.clear()

    def learn(self, told: bytes) -> None:
        """Takes up the definition that Redis tells; the same one again costs nothing, and forgets nothing."""
        if told != self._told:
            self.definition = Definition.from_json(told)
            self._told = told

    def remember_packed(self, quantity: int | None, packed: str) -> None:
        """Keeps the lines of this many units of the only item."""
        if len(self.packed) < LINES_KNOWN_MAX:
            self.packed[quantity] = packed

    def remember_sold_out(self, packed: str, asked_at: float, refusal: SoldOut) -> None:
        """Keeps a refusal that only a restock can end.

        Parameters
        ----------
        asked_at: when Redis was asked, by `time`.
        """
        if len(self.sold_out) >= LINES_KNOWN_MAX:
            self.sold_out.clear()
        self.sold_out[packed] = asked_at, refusal
        self.asking.discard(packed)

    def still_sold_out(self, packed: str) -> SoldOut | None:
        """The refusal of what was sold out a moment ago; None to whoever has to ask Redis.

        One of those who come late asks, and answers for all who come after.
        """
        known = self.sold_out.get(packed)
        if known is None:
            return None
        asked_at, refusal = known
        age = self.time() - asked_at
        if age < SOLD_OUT_ASK_S:
            return refusal
        if age < SOLD_OUT_S and packed in self.asking:
            return refusal
        self.asking.add(packed)
        return None

    async def run(self, send: Callable[[str, bool], Awaitable[T]], *, reads: bool = False, patient: bool = True) -> T:
        """As `Slots.run` on this slot."""
        return await self._slots.run(self, send, reads=reads, patient=patient)

    async def sale(self) -> Sale:
        """As `Slots.sale` of this slot."""
        return await self._slots.sale(self)

    def waiting(self) -> list[int]:
        """Calls that wait for their batch, by kind in the order of `meters.KINDS`."""
        return [batcher.waiting() for batcher in (self.reserves, self.confirms, self.cancels, self.reads)]

    async def drained(self) -> None:
        """Refuses new calls, and returns once none is under way."""
        for batcher in (self.reserves, self.confirms, self.cancels, self.reads):
            await batcher.drained()


class Slots:
    """The slots that this process has met."""

    def __init__(
        self, servers: Servers, scripts: Scripts, store: Store, transitions: Transitions, meters: Meters
    ) -> None:
        self._servers = servers
        self._scripts = scripts
        self._store = store
        self.transitions = transitions
        self.meters = meters
        self._looked_up: LookUps[Slot] = LookUps(self._load)
        self._known = self._looked_up.known
        #: Whether somebody recovers what is behind: then it is worth waiting for.
        self.heals = False
        #: Has the store copy what is new in a slot, beyond this; how far it is copied then (`Snapshot.take_up`).
        self.copy: Callable[[str, Cursor], Awaitable[Cursor]]
        #: Those of sales that are in no shards. A buyer names a sale, and must not get into a shard by its name.
        self._whole: dict[str, Slot] = {}
        #: By server, why nothing is reserved now in its slots.
        self._no_reserving: Mapping[Server, NotReady] = {}

    def known(self, name: str) -> Slot | None:
        """The slot if this process has met it."""
        return self._known.get(name)

    def whole(self, sale: str) -> Slot | None:
        """The slot of this sale, if this process has met it and it is in no shards."""
        return self._whole.get(sale)

    def raise_floor(self, name: str, cursor: Cursor) -> None:
        """The store has copied this far: a server that has less is not to be believed."""
        slot = self._known.get(name)
        if slot is not None and (cursor.epoch, cursor.sequence) > (slot.floor.epoch, slot.floor.sequence):
            slot.floor = cursor

    def all(self) -> list[Slot]:
        return list(self._known.values())

    def believed(self) -> list[StoredSale]:
        """The sales as the store had them when it was asked last: all that can be said while it does not answer."""
        return [StoredSale(slot.definition.id, slot.definition, None, slot.floor, 0, slot.name) for slot in self.all()]

    def refuse_reserving(self, refusals: Mapping[Server, NotReady]) -> None:
        """Has the slots of these servers refuse to reserve, and all others reserve again."""
        if refusals or self._no_reserving:
            self._no_reserving = refusals
            for slot in self.all():
                slot.reserves.refusal = self.no_reserving(slot.name)

    def no_reserving(self, name: str) -> NotReady | None:
        """Why nothing is reserved in this slot now, if so."""
        if not self._no_reserving:
            return None
        try:
            return self._no_reserving.get(self._servers.of(name))
        except NotSent:
            return None

    async def get(self, name: str) -> Slot:
        """The slot of this name.

        Raises
        ------
        UnknownSale: the registry has no such slot. InShards: but a sale of this id.
        NotReady: store or Redis does not answer.
        """
        return await self._looked_up.get(name)

    def unmet(self, name: str, definition: Definition) -> Slot:
        """The slot of this name, of a sale in shards, without asking for it: the first call in it does.

        Parameters
        ----------
        definition: as the registry has it.
        """
        slot = self._known.get(name)
        if slot is None:
            slot = self._known[name] = Slot(name, definition, Cursor(0, 0), NEVER_MET, self)
        return slot

    async def _load(self, name: str) -> Slot:
        generation = self._servers.generation(name)
        stored = await self.registered(name)
        if stored is None:
            raise UnknownSale(name)
        if stored.slot != name:
            raise InShards(name)
        slot = Slot(name, stored.known, stored.cursor, generation, self)
        if stored.definition is None:
            await self.create(stored.known)

        async def look(floor: str, again: bool) -> None:
            try:
                await self._meet(slot)
            except Refused:
                slot.generation = NEVER_MET  # whoever wants something of it looks again, and hears why

        await self.run(slot, look, reads=True)
        if slot.definition.shards is None:
            slot = self._whole[name] = self._known.setdefault(name, slot)
        return slot

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._whole.pop(name, None)

    async def _meet(self, slot: Slot) -> None:
        """Learns the definition that Redis has, and marks the slot with the server that has it.

        Raises
        ------
        NotSent, NoReply. Refused: the slot cannot be used.
        """
        fresh = await self._servers.call(slot.name, "HGET", slot.keys.sale, "definition")
        if fresh:
            slot.learn(fresh)
        if reign := self._servers.of(slot.name).reign:
            epoch = await self._scripts.renew(slot.keys, slot.floor.floor, reign)
            # A sale begins in the first; a later one was raised by a failover.
            if epoch > max(slot.floor.epoch, 1):
                await self._take_up(slot, epoch)

    async def _take_up(self, slot: Slot, epoch: int) -> None:
        """Has the store take up the epoch that a failover has raised, before anything is done in it.

        From then on whatever was read of the old primary, and is on its way into the store just now, finds the cursor
        moved. If it was faster, the new primary lacks what the store has.

        Raises
        ------
        Refused: it does, or somebody recovers the slot. NotSent. NotReady: the store does not answer.
        """
        try:
            reached = await self.copy(slot.name, slot.floor)
        except StoreError as error:
            raise NotReady(str(error)) from error
        if reached.epoch < epoch:
            raise Refused(Outcome.BEHIND)
        slot.floor = reached

    async def registered(self, name: str) -> StoredSale | None:
        """The sale in the store's registry.

        Raises
        ------
        NotReady: the store does not answer.
        """
        try:
            return await self._store.sale(name)
        except StoreError as error:
            raise NotReady(str(error)) from error

    async def create(self, definition: Definition) -> None:
        """Brings a registered sale into Redis, every slot of it, and settles the intent; two may do so at once."""
        await asyncio.gather(*(self._create(name, definition) for name in definition.slots()))
        try:
            await self._store.settle(definition.id, definition)
        except StoreError as error:
            raise NotReady(str(error)) from error

    async def _create(self, name: str, definition: Definition) -> None:
        slot = Slot(name, definition, Cursor(0, 0), self._servers.generation(name), self)
        rules, counts = definition.rules(), definition.fresh_counts(name)
        outcome = await self.run(
            slot, lambda *_: self._scripts.create(slot.keys, definition.json(), definition.origin, rules, counts)
        )
        if outcome is Outcome.SALE_EXISTS:
            raise NotReady(f"Redis has another sale '{name}' than the store: is this the right Redis for this store?")

    async def refresh(self, slot: Slot) -> None:
        """Learns floor and definition again, after Redis has become another process.

        Raises
        ------
        NotSent: Redis does not answer. Refused: the slot cannot be used. UnknownSale.
        NotReady: the store does not answer, so that nothing can be said about what Redis has.
        """
        generation = self._servers.generation(slot.name)
        stored = await self.registered(slot.name)
        if stored is None:
            self._forget(slot.name)
            raise UnknownSale(slot.name)
        slot.floor = stored.cursor
        try:
            await self._meet(slot)
        except NoReply as error:
            raise NotSent(str(error)) from error
        slot.generation = generation

    async def run(
        self, slot: Slot, send: Callable[[str, bool], Awaitable[T]], *, reads: bool = False, patient: bool = True
    ) -> T:
        """Runs one script call, again when Redis was lost in the middle: every script tolerates to run twice.

        Parameters
        ----------
        send: makes the call, given the floor and whether it was sent before.
        reads: it changes nothing, so that there is no outcome to be unknown.
        patient: somebody waits, and may wait until a slot that is behind has been recovered.

        Raises
        ------
        OutcomeUnknown: the call was sent and no reply could be had in time (`Servers.patience_s`).
        NotReady: nothing was done.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._servers.patience_s
        sent = False
        while True:
            try:
                if slot.generation != self._servers.generation(slot.name):
                    await self.refresh(slot)
                generation = slot.generation
                reply = await send(slot.floor.floor, sent)
                if generation != self._servers.generation(slot.name):
                    # One that was cut off may have answered, and the one that has the slot now knows nothing of it.
                    raise NoReply("another server has the slot than the one that answered")
                return reply
            except Refused as refused:
                if self.heals and patient and refused.outcome in _PASSING and loop.time() < give_up:
                    await asyncio.sleep(RESEND_PAUSE_S)
                    continue
                if sent:
                    raise OutcomeUnknown from refused
                raise await self.reason(slot, refused.outcome) from refused
            except NotReady as error:
                if sent:
                    raise OutcomeUnknown from error
                raise
            except NotSent as error:
                if loop.time() >= give_up or not error.passing:
                    raise (OutcomeUnknown() if sent else NotReady(str(error))) from error
            except NoReply as error:
                sent = not reads
                if loop.time() >= give_up:
                    raise (OutcomeUnknown() if sent else NotReady(str(error))) from error
            await asyncio.sleep(RESEND_PAUSE_S)

    async def reason(self, slot: Slot, outcome: Outcome) -> HoldfastError:
        """Why a whole call was refused in this slot."""
        if outcome is Outcome.FENCED:
            return NotReady(f"'{slot.name}' is being rebuilt")
        if outcome is Outcome.MISSING and await self.registered(slot.name) is None:
            self._forget(slot.name)
            return UnknownSale(slot.name)
        if slot.told_lost != slot.generation:
            slot.told_lost = slot.generation
            log.critical(
                "ALARM Redis knows less of '%s' than the store (%s): nothing of it is sold until `holdfast recover`",
                slot.name,
                outcome,
            )
        return NotReady(
            f"Redis knows less of '{slot.name}' than the store ({outcome}); it is not sold until it has been recovered",
            retry_after_ms=5000,
        )

    async def sale(self, slot: Slot) -> Sale:
        """The sale with its counters, of one instant; the slot then has that instant's definition.

        Raises
        ------
        NotReady: the slot is fenced, behind its floor or not there.
        """

        async def look(_: str, again: bool) -> Sale:
            # As of now: while the reply is under way, the store may come further than what it tells.
            floor = slot.floor
            fence, epoch, sequence, definition, counts = await self._servers.call(
                slot.name, "HMGET", slot.keys.sale, "fence", "epoch", "sequence", "definition", "counts"
            )
            if fence:
                raise Refused(Outcome.FENCED)
            if not epoch:
                raise Refused(Outcome.MISSING)
            if (int(epoch), int(sequence)) < (floor.epoch, floor.sequence):
                raise Refused(Outcome.BEHIND)
            slot.learn(definition)
            return slot.definition.sale(counts, int(epoch), int(sequence))

        return await self.run(slot, look, reads=True)

    async def drained(self) -> None:
        """Refuses new calls, and returns once none is under way."""
        for slot in self.all():
            await slot.drained()
        await self.transitions.drained()
