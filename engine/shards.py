"""Sales in shards: which slot a buyer's reservations go to, and the whole of a sale read from all of its slots."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from zlib import crc32

from holdfast.engine.connection import NoReply, NotSent
from holdfast.engine.errors import HoldfastError, NotReady, UnknownSale
from holdfast.engine.lookups import LookUps
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import Definition, Transfers, shard_of
from holdfast.engine.scripts import Refused
from holdfast.engine.servers import Servers
from holdfast.engine.slots import RESEND_PAUSE_S, Short, Slot, Slots
from holdfast.engine.store import Cursor
from holdfast.engine.values import Item, Sale

#: How often a sale is read anew because units were met twice: in the shard that sent them and in the one that had them
#: by the time it was read. Each time takes a transfer at that very moment.
LOOKS_MAX: Final = 5

#: What is read of each shard's hash.
_FIELDS: Final = ("fence", "epoch", "sequence", "definition", "counts", "transfers")

#: Seconds between two of these looks, at the most.
LOOK_PAUSE_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard as it was read.

    Parameters
    ----------
    definition: as of then. counts: available, reserved, purchased of each item. deadline: of the next hold to run out,
    Unix milliseconds of its server; None without holds. now: the clock of that server.
    """

    slot: Slot
    epoch: int
    sequence: int
    definition: Definition
    counts: Sequence[int]
    transfers: Transfers
    deadline: int | None
    now: int

    def available(self, item: int) -> int:
        """Units of the item with this number, from 0; none of one that this shard does not have yet."""
        return self.counts[3 * item] if 3 * item < len(self.counts) else 0

    def in_use(self, item: int) -> int:
        """Units of the item that are held or sold here."""
        return sum(self.counts[3 * item + 1 : 3 * item + 3])


@dataclass(frozen=True, slots=True)
class Look:
    """A whole sale as it was read: every shard, one after the other.

    Parameters
    ----------
    began: by the clock of the slots. shards: those that could be read, in order. refusals: why the others could not.
    passing: whether that may be over in a moment, for all of them.
    """

    began: float
    shards: Sequence[Shard]
    refusals: Mapping[str, HoldfastError]
    passing: bool

    @property
    def definition(self) -> Definition:
        """The newest that any shard has."""
        return max((shard.definition for shard in self.shards), key=lambda definition: definition.version)

    @property
    def level(self) -> bool:
        """Whether all shards have the same definition."""
        return len({shard.definition.version for shard in self.shards}) == 1

    def of(self, slot: Slot) -> Shard | None:
        """This slot, if it could be read."""
        return next((shard for shard in self.shards if shard.slot is slot), None)

    def available(self, item: int) -> int:
        return sum(shard.available(item) for shard in self.shards)

    def in_transit(self, item: int) -> int:
        """Units sent and not received yet; fewer than none when some were met twice."""
        return sum(shard.transfers.lent_of(item) for shard in self.shards)

    def reserved(self, item: int) -> int:
        return sum(shard.in_use(item) for shard in self.shards) - self.purchased(item)

    def purchased(self, item: int) -> int:
        return sum(shard.counts[3 * item + 2] for shard in self.shards if 3 * item < len(shard.counts))

    def capacity(self, item: int) -> int:
        """Units on sale. While an amendment is under way, those of the shards together."""
        if self.level:
            return self.definition.items[item].capacity
        shares = [shard.definition.share(shard.slot.name) for shard in self.shards]
        return sum(share[item] for share in shares if item < len(share))

    @property
    def torn(self) -> bool:
        """Whether units were met twice."""
        return any(self.in_transit(item) < 0 for item in range(len(self.definition.items)))

    def due(self) -> list[Slot]:
        """The slots with holds that have run out and were not swept yet."""
        return [shard.slot for shard in self.shards if shard.deadline is not None and shard.deadline <= shard.now]

    def retry_ms(self) -> int | None:
        """Milliseconds until the next hold runs out anywhere; None without holds."""
        left = [max(1, shard.deadline - shard.now) for shard in self.shards if shard.deadline is not None]
        return min(left, default=None)

    def unsettled(self) -> list[tuple[int, int, int]]:
        """Transfers that are not settled: number of the lender, of the borrower, of the transfer between the two."""
        return [
            (shard_of(shard.slot.name), borrower, number)
            for shard in self.shards
            for borrower, (number, _) in shard.transfers.unsettled().items()
        ]

    def sale(self) -> Sale:
        """The sale with its counters."""
        definition = self.definition
        items = []
        for at, item in enumerate(definition.items):
            in_transit = self.in_transit(at)
            items.append(
                Item(
                    sku=item.sku,
                    name=item.name,
                    capacity=self.capacity(at),
                    max_per_buyer=item.max_per_buyer,
                    # What was met twice was available where it was met first, or is held by now where it went.
                    available=max(0, self.available(at) + min(0, in_transit)),
                    reserved=self.reserved(at),
                    purchased=self.purchased(at),
                    in_transit=max(0, in_transit),
                )
            )
        none = " ".join("0 0 0" for _ in definition.items)
        return replace(
            definition.sale(none, max(shard.epoch for shard in self.shards), sum(s.sequence for s in self.shards)),
            items=tuple(items),
            place=",".join(f"{shard.epoch}-{shard.sequence}" for shard in self.shards),
        )


class Family:
    """The shards of one sale, as this process knows them.

    Attributes
    ----------
    slots: in the order of their numbers.
    """

    def __init__(self, name: str, slots: Sequence[Slot], registry: Slots, servers: Servers) -> None:
        self.name = name
        self.slots = tuple(slots)
        self._registry = registry
        self._servers = servers
        #: Seconds for which a shard that cannot be asked is worth waiting for.
        self.patience_s = servers.patience_s
        self._looking: asyncio.Task[Look] | None = None
        self._next: asyncio.Task[Look] | None = None
        for slot in slots:
            # What is sold out for good is so for every buyer, whichever shard is theirs.
            slot.sold_out, slot.asking = slots[0].sold_out, slots[0].asking

    @property
    def definition(self) -> Definition:
        """As it was read last."""
        return max((slot.definition for slot in self.slots), key=lambda definition: definition.version)

    def of(self, who: str) -> Slot:
        """The slot of a buyer, for good: limits are counted there.

        Parameters
        ----------
        who: the buyer's hash, in which every character is as good as random.
        """
        return self.slots[crc32(who.encode()) % len(self.slots)]

    async def sale(self) -> Sale:
        """The sale with its counters.

        Raises
        ------
        NotReady: a shard is fenced, behind its floor or not there.
        """
        return (await self.whole()).sale()

    async def whole(self) -> Look:
        """Every shard, read after this was called; raises as `sale`, for what passes only when it has not in time."""
        time = self.slots[0].time
        give_up, torn = time() + self.patience_s, 0
        while True:
            look = await self.look()
            for refusal in look.refusals.values():
                if not look.passing or time() >= give_up:
                    raise refusal.with_traceback(None)
            if look.refusals:
                await asyncio.sleep(RESEND_PAUSE_S)
                continue
            torn += look.torn
            if not look.torn or torn >= LOOKS_MAX:
                return look
            await asyncio.sleep(random.uniform(0, LOOK_PAUSE_S))

    async def look(self) -> Look:
        """As `whole`, with those shards that can be read. One look is for all who ask before it begins."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)
            return await asyncio.shield(self._looking)
        # The one under way may have read a shard before something happened that this caller knows of.
        if self._next is None:
            self._next = asyncio.create_task(self._look_after(self._looking))
        return await asyncio.shield(self._next)

    async def _look_after(self, looking: asyncio.Task[Look]) -> Look:
        await asyncio.wait({looking})
        self._looking, self._next = self._next, None
        assert self._looking is not None
        self._looking.add_done_callback(self._looked)
        return await self._look()

    def _looked(self, task: asyncio.Task[Look]) -> None:
        if self._looking is task:
            self._looking = None
        if not task.cancelled():
            task.exception()  # those who asked may have gone

    async def _look(self) -> Look:
        began = self.slots[0].time()
        refusals: dict[str, HoldfastError] = {}
        passing = True
        # Another server than before is believed once the floor was read again.
        changed = [slot for slot in self.slots if slot.generation != self._servers.generation(slot.name)]
        told = await asyncio.gather(*(self._registry.refresh(slot) for slot in changed), return_exceptions=True)
        for slot, error in zip(changed, told, strict=True):
            if isinstance(error, NotSent):
                refusals[slot.name] = NotReady(f"'{slot.name}': {error}")
            elif isinstance(error, Refused):
                refusals[slot.name] = await self._registry.reason(slot, error.outcome)
                passing = passing and self._registry.heals
            elif isinstance(error, HoldfastError):
                refusals[slot.name], passing = error, False
            elif error is not None:
                raise error
        commands: list[tuple[str, Sequence[Any]]] = []
        for slot in self.slots:
            commands += [
                (slot.name, ("HMGET", slot.keys.sale, *_FIELDS)),
                (slot.name, ("ZRANGE", slot.keys.deadlines, "0", "0", "WITHSCORES")),
            ]
        # As of now: while the replies are under way, the store may come further than what they tell.
        floors = [slot.floor for slot in self.slots]
        try:
            replies = await self._servers.clocked(commands)
        except (NotSent, NoReply) as error:
            return Look(began, (), {self.name: NotReady(str(error))}, passing)
        shards = []
        for slot, floor, (now, head), (_, first) in zip(self.slots, floors, replies[::2], replies[1::2], strict=True):
            if slot.name not in refusals:
                shard = await self._shard(slot, floor, now, head, first)
                if isinstance(shard, Shard):
                    shards.append(shard)
                else:
                    refusals[slot.name] = shard
                    # A server that is away is replaced, and what is behind is recovered where somebody does that.
                    passing = passing and (isinstance(head, (NotSent, NoReply)) or self._registry.heals)
        return Look(began, shards, refusals, passing)

    async def _shard(self, slot: Slot, floor: Cursor, now: int, head: Any, first: Any) -> Shard | HoldfastError:
        """What was read of a shard, or why it says nothing.

        Parameters
        ----------
        floor: how far the store had come before it was read.
        """
        if isinstance(head, Exception) or isinstance(first, Exception):
            return NotReady(f"'{slot.name}': {head if isinstance(head, Exception) else first}")
        fence, epoch, sequence, definition, counts, transfers = head
        if fence or not epoch:
            return await self._registry.reason(slot, Outcome.FENCED if fence else Outcome.MISSING)
        try:
            if (int(epoch), int(sequence)) < (floor.epoch, floor.sequence):
                return await self._registry.reason(slot, Outcome.BEHIND)
            slot.learn(definition)
            return Shard(
                slot,
                int(epoch),
                int(sequence),
                slot.definition,
                [int(count) for count in counts.split()],
                Transfers.parse(transfers),
                _score(first) if first else None,
                now,
            )
        except HoldfastError as error:
            return error
        except (ValueError, TypeError, AttributeError):
            return NotReady(f"'{slot.name}' is damaged in Redis; run `holdfast recover --sale {slot.name}`")


class Shards:
    """The sales in shards that this process has met.

    Parameters
    ----------
    short: takes the reservations for which a shard has too little.
    """

    def __init__(self, slots: Slots, servers: Servers, short: Short) -> None:
        self._slots = slots
        self._servers = servers
        self._looked_up: LookUps[Family] = LookUps(self._load)
        self._known = self._looked_up.known
        self._short = short

    def known(self, sale: str) -> Family | None:
        """The sale, if this process has met it."""
        return self._known.get(sale)

    def all(self) -> list[Family]:
        return list(self._known.values())

    async def get(self, sale: str) -> Family:
        """The sale of this id, which is in shards.

        Raises
        ------
        UnknownSale: there is no such sale, or it is in no shards.
        NotReady: the store does not answer, or Redis where the sale has to be made there first.
        """
        return await self._looked_up.get(sale)

    async def _load(self, sale: str) -> Family:
        stored = await self._slots.registered(sale)
        if stored is None or stored.known.shards is None or stored.id != sale:
            raise UnknownSale(sale)
        if stored.definition is None:
            await self._slots.create(stored.known)
        # Met when they are first called: who has the others does not wait for a shard that is away.
        slots = [self._slots.unmet(name, stored.known) for name in stored.known.slots()]
        for slot in slots:
            slot.short = self._short
        return Family(sale, slots, self._slots, self._servers)


def _score(first: list[Any]) -> int:
    """The score of the one member, in the shape of either protocol version."""
    last = first[-1]
    return int(float(last[-1] if isinstance(last, list) else last))
