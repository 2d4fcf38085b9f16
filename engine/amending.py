"""A sale in shards amended: the first shard decides, the others follow, and what does not fit is taken back.

An amendment holds once the first shard has it and the store has that: from then on it is brought to the others by
whoever began it, or by whoever finds shards that differ. Versions only ever rise: two who do the same do it once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Final, TypeVar

from holdfast.engine import checks
from holdfast.engine.borrowing import Borrowing
from holdfast.engine.connection import NoReply, NotSent
from holdfast.engine.errors import CapacityInUse, NotReady
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import Definition
from holdfast.engine.scripts import Scripts
from holdfast.engine.shards import Family, Look, Shard
from holdfast.engine.slots import Slot
from holdfast.engine.snapshot import Snapshot
from holdfast.engine.store import Store, StoreError
from holdfast.engine.transitions import Transitions
from holdfast.engine.values import Sale

log = logging.getLogger("holdfast.amending")

T = TypeVar("T")

#: Rounds in which an amendment is merged anew because another one came first.
AMEND_ROUNDS: Final = 20

#: Rounds in which units are fetched for a shard whose share shrinks, while others may take them again.
FIT_ROUNDS: Final = 10

#: Seconds between two of either, at the most.
ROUND_PAUSE_S: Final = 0.02


class _DoesNotFit(Exception):
    """A shard has more in use than its share would be, and no units can be had for it."""


class Amending:
    """Amends sales in shards."""

    def __init__(
        self, scripts: Scripts, store: Store, snapshot: Snapshot, borrowing: Borrowing, transitions: Transitions
    ) -> None:
        self._scripts = scripts
        self._store = store
        self._snapshot = snapshot
        self._borrowing = borrowing
        self._transitions = transitions

    async def amend(self, family: Family, changes: Mapping[str, object]) -> Sale:
        """As `Engine.amend_sale`.

        Raises
        ------
        InvalidRequest. CapacityInUse: nothing was amended, or it was taken back.
        NotReady: a side does not answer; what was begun is finished or taken back later.
        """
        for _ in range(AMEND_ROUNDS):
            look = await self.levelled(family)
            known = look.definition
            wanted = checks.amended(known, changes)
            if wanted == known:
                return look.sale()
            if [item.capacity for item in wanted.items] != [item.capacity for item in known.items]:
                # Equal parts again: units can be moved to where they are in use.
                wanted = replace(wanted, excess=None)
            wanted = replace(wanted, version=known.version + 1)
            await self._must_fit(family, look, wanted)
            if await self.begin(family, look, wanted):
                await self._everywhere(family)
                return await family.sale()
            await asyncio.sleep(random.uniform(0, ROUND_PAUSE_S))
        raise NotReady(f"'{family.name}' is amended by too many at once")

    async def begin(self, family: Family, look: Look, wanted: Definition) -> bool:
        """Has the first shard and the store take up an amendment; whether it was this one, and no other before it."""
        await _stored(self._store.begin_amendment(wanted))
        try:
            if not await self._bring(family, look.shards[0], wanted):
                return False
        except _DoesNotFit as error:
            await _stored(self._store.settle(family.name, None))
            raise self._in_use(await family.whole(), wanted) from error
        await self._kept(family, family.slots[:1], wanted)
        return True

    async def levelled(self, family: Family) -> Look:
        """The whole sale with all shards amended alike: an amendment that was left in the middle is finished first.

        Raises
        ------
        CapacityInUse: it had to be taken back. NotReady.
        """
        look = await family.whole()
        if not look.level:
            await self._everywhere(family)
            look = await family.whole()
        return look

    async def raised(self, family: Family, wanted: Definition) -> Definition:
        """Has the first shard and the store take up a capacity that the recovery of another shard raises.

        Raises
        ------
        NotReady: a side does not answer, or the sale was amended meanwhile.
        """
        slot, capacities = family.slots[0], wanted.capacities(family.slots[0].name)
        outcome, _, _ = await slot.run(
            lambda floor, _: self._scripts.amend(
                slot.keys, floor, wanted.version - 1, wanted.json(), wanted.rules(), capacities
            )
        )
        if outcome not in (Outcome.OK, Outcome.REPLAYED):
            raise NotReady(f"'{family.name}' was amended meanwhile: run it again")
        await self._kept(family, family.slots[:1], wanted)
        return wanted

    async def _everywhere(self, family: Family) -> None:
        """Brings the newest definition to every shard, or takes it back where it does not fit.

        Raises
        ------
        CapacityInUse: it was taken back. NotReady.
        """
        while not (look := await family.whole()).level:
            newest = look.definition
            # Never a shard before the store knows what it is amended to: Redis could forget it everywhere but there.
            await self._kept(family, family.slots, newest)
            try:
                behind = [shard for shard in look.shards if shard.definition.version < newest.version]
                # Those that gain first: the others need what they bring.
                for shard in sorted(behind, key=lambda shard: any(_lacking(shard, newest).values())):
                    await self._bring(family, shard, newest)
            except _DoesNotFit as error:
                older = min((shard.definition for shard in look.shards), key=lambda definition: definition.version)
                back = _taken_back(older, newest)
                log.warning("an amendment of '%s' does not fit and is taken back", family.name)
                first = (await family.whole()).shards[0]
                await self._bring(family, first, back)
                await self._kept(family, family.slots[:1], back)
                await self._everywhere(family)
                raise self._in_use(await family.whole(), newest) from error
        # Copied before it is acknowledged: a shard that loses the amendment is then behind, and does not sell.
        await self._kept(family, family.slots, look.definition)
        await _stored(self._store.settle(family.name, look.definition))

    async def _kept(self, family: Family, slots: tuple[Slot, ...], wanted: Definition) -> None:
        """Has the store copy these slots, and returns once it has this definition of the sale, or a later one."""
        try:
            await self._snapshot.reach({slot.name for slot in slots})
        except (NotSent, NoReply, StoreError) as error:
            raise NotReady(str(error)) from error
        stored = await _stored(self._store.sale(family.name))
        known = stored.definition if stored is not None else None
        if known is None or known.version < wanted.version or (known.version == wanted.version and known != wanted):
            raise NotReady(f"the amendment of '{family.name}' was lost on its way to the store; repeat it")

    async def _bring(self, family: Family, shard: Shard, wanted: Definition) -> bool:
        """Amends one shard, with units fetched from others where its share shrinks below what is in use.

        Returns
        -------
        Whether it has this definition now; not when somebody else has amended it since it was read.

        Raises
        ------
        _DoesNotFit. NotReady.
        """
        slot, version = shard.slot, shard.definition.version
        capacities = wanted.capacities(slot.name)
        for _ in range(FIT_ROUNDS):
            outcome, _, _ = await slot.run(
                lambda floor, _: self._scripts.amend(
                    slot.keys, floor, version, wanted.json(), wanted.rules(), capacities
                )
            )
            if outcome in (Outcome.OK, Outcome.REPLAYED):
                return True
            if outcome is Outcome.VERSION_CHANGED:
                return False
            if outcome is Outcome.SWEEP_FIRST:
                await self._transitions.sweep(slot)
                continue
            look = await family.whole()
            now = look.of(slot)
            assert now is not None  # the whole sale was read
            lacking = _lacking(now, wanted)
            if lacking:
                await self._borrowing.gather(family, slot, lacking)
                if look.unsettled():
                    # What is lacking may be on its way between two others, or was left there.
                    await self._borrowing.finish(family, look)
            await asyncio.sleep(random.uniform(0, ROUND_PAUSE_S))
        raise _DoesNotFit

    async def _must_fit(self, family: Family, look: Look, wanted: Definition) -> None:
        """Refuses a capacity that is less than what is held and sold, before anything is begun."""
        if self._too_small(look, wanted) is not None and look.due():
            await asyncio.gather(*(self._transitions.sweep(slot) for slot in look.due()))
            look = await family.whole()
        if self._too_small(look, wanted) is not None:
            raise self._in_use(look, wanted)

    @staticmethod
    def _too_small(look: Look, wanted: Definition) -> int | None:
        """The first item of which more is held and sold than there would be."""
        for at, item in enumerate(wanted.items):
            if look.reserved(at) + look.purchased(at) > item.capacity:
                return at
        return None

    def _in_use(self, look: Look, wanted: Definition) -> CapacityInUse:
        at = self._too_small(look, wanted)
        if at is None:
            # It was, a moment ago; the one whose capacity shrinks most is named.
            at = max(range(len(look.definition.items)), key=lambda at: look.capacity(at) - wanted.items[at].capacity)
        return CapacityInUse(wanted.items[at].sku, look.reserved(at) + look.purchased(at))


async def _stored(work: Awaitable[T]) -> T:
    try:
        return await work
    except StoreError as error:
        raise NotReady(str(error)) from error


def _taken_back(older: Definition, newest: Definition) -> Definition:
    """What holds when an amendment is taken back: as before, with the items and units that it has brought, since some
    may be sold by now. That fits everywhere, because no share is less than it is."""
    before = {item.sku: item for item in older.items}
    items = tuple(
        replace(before.get(item.sku, item), capacity=max(item.capacity, before.get(item.sku, item).capacity))
        for item in newest.items
    )
    back = replace(older, items=items, version=newest.version + 1)
    if older.excess == newest.excess:
        return back
    # Equal parts lie elsewhere in the two, so that each share is said: the larger of the two that it had.
    shares = [map(max, zip_longest(older.share(slot), newest.share(slot), fillvalue=0)) for slot in older.slots()]
    excess = {str(number): tuple(share) for number, share in enumerate(shares, start=1)}
    capacities = map(sum, zip(*excess.values(), strict=True))
    items = tuple(replace(item, capacity=units) for item, units in zip(items, capacities, strict=True))
    return replace(back, items=items, excess=excess)


def _lacking(shard: Shard, wanted: Definition) -> dict[int, int]:
    """Units that have to come here before the shard fits into its new share, by item number."""
    share = wanted.share(shard.slot.name)
    lacking = {at + 1: shard.in_use(at) + shard.transfers.lent_of(at) - units for at, units in enumerate(share)}
    return {item: units for item, units in lacking.items() if units > 0}
