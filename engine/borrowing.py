"""Reservations for which a shard has too little: units are borrowed for them, or it is said why nobody has any.

One round at a time for each shard and process, for all who wait there: a stampede on a shard that runs dry becomes one
transfer, and not a stampede of transfers. Whoever is refused in the end hears what is true of the whole sale, as it was
read after their call had come.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from holdfast.engine.batcher import Call, Waiter, tell
from holdfast.engine.errors import AllHeld, HoldfastError, NotReady, OutcomeUnknown, Overloaded, SoldOut
from holdfast.engine.limits import QUEUE_MAX
from holdfast.engine.records import pack_lines, shard_of, units_of
from holdfast.engine.shards import Family, Look
from holdfast.engine.slots import RESEND_PAUSE_S, Slot, Unmade
from holdfast.engine.transfers import Carrier
from holdfast.engine.transitions import Transitions

log = logging.getLogger("holdfast.borrowing")

#: Rounds of borrowing for one call, after which it hears that all is held for now: others have been faster each time.
ROUNDS_MAX: Final = 8

#: Seconds between two rounds for the same call, at the most: two shards that want each other's last unit must not
#: take it from each other at the same pace for ever.
ROUND_PAUSE_S: Final = 0.03

#: Milliseconds after which a caller should ask again when nothing has a deadline: units in transit arrive, and others
#: give up theirs, within less than that.
SOON_MS: Final = 200

#: Seconds for which nothing is lent after the store did not answer: what is lent then would be stuck in transit.
STORE_AWAY_S: Final = 1.0

#: What a shard answers when its own stock does not do.
_SHORT: Final = (b"sold_out ", b"all_held ")


class _Wanting:
    """The waiter of a call that a shard could not meet.

    Attributes
    ----------
    rounds: how often something was borrowed for it.
    asked_at: when it was found that it has to be, by the loop's clock.
    """

    __slots__ = ("_waiter", "asked_at", "done", "rounds", "set_exception", "set_result")

    def __init__(self, waiter: Waiter, now: float) -> None:
        self.asked_at = now
        self._waiter = waiter
        self.done: Callable[[], bool] = waiter.done
        self.set_result: Callable[[Any], None] = waiter.set_result
        self.set_exception: Callable[[BaseException], None] = waiter.set_exception
        self.rounds = 0


class Borrowing:
    """Looks for what shards lack.

    Attributes
    ----------
    families: finds the sale in shards of this id.
    """

    def __init__(self, carrier: Carrier, transitions: Transitions) -> None:
        self.families: Callable[[str], Family | None] = lambda sale: None
        self._carrier = carrier
        self._transitions = transitions
        self._wanting: dict[str, list[Call]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        #: By borrower, the end of its last transfers, which nobody has to wait for but the next ones.
        self._settling: dict[str, asyncio.Task[None]] = {}
        #: By sale, when its units may move again.
        self._not_before: dict[str, float] = {}

    def short(self, slot: Slot, others: Sequence[Unmade]) -> list[Unmade]:
        """Takes up those for which there is too little here; the rest is refused for other reasons."""
        left: list[Unmade] = []
        wanting = self._wanting.setdefault(slot.name, [])
        for unmade in others:
            id, buyer, order, waiter, answer = unmade
            if not answer.startswith(_SHORT):
                left.append(unmade)
            elif len(wanting) >= QUEUE_MAX:
                tell(waiter, Overloaded())
            elif isinstance(waiter, _Wanting):
                wanting.append((id, buyer, order, waiter))
            else:
                wanting.append((id, buyer, order, _Wanting(waiter, slot.time())))
        if wanting and slot.name not in self._tasks:
            self._tasks[slot.name] = asyncio.create_task(self._work(slot, wanting))
        return left

    async def drained(self) -> None:
        """Returns once nobody waits for units, and no transfer is under way."""
        while tasks := [*self._tasks.values(), *self._settling.values()]:
            await asyncio.wait(tasks)

    async def _work(self, slot: Slot, wanting: list[Call]) -> None:
        try:
            while wanting:
                calls, wanting[:] = wanting[:], []
                try:
                    await self._round(slot, calls)
                except HoldfastError as error:
                    _tell_all(calls, error.with_traceback(None))
                except Exception:
                    # A defect: said in full, and nobody waits for ever because of it.
                    log.exception("nothing can be borrowed for '%s'", slot.name)
                    _tell_all(calls, OutcomeUnknown())
                except BaseException:
                    _tell_all(calls, asyncio.CancelledError())
                    raise
        finally:
            del self._tasks[slot.name]

    # -- one round --------------------------------------------------------------------------------------------------

    async def _round(self, slot: Slot, calls: Sequence[Call]) -> None:
        """Answers those that nothing can be had for, borrows for the others and sends them again."""
        calls = [call for call in calls if not call[-1].done()]
        family = self.families(slot.definition.id)
        if not calls or family is None:
            return
        tired = max(call[-1].rounds for call in calls)
        if tired > 1:
            await asyncio.sleep(random.uniform(0, ROUND_PAUSE_S))
        look = await family.look()
        hopeful, unknown = self._answered(look, calls)
        if hopeful:
            await self._help(family, look, slot, hopeful)
        if unknown:
            await self._later(family, slot, unknown, next(iter(look.refusals.values())))

    async def _help(self, family: Family, look: Look, slot: Slot, hopeful: Sequence[Call]) -> None:
        """Borrows for these calls, and sends them again."""
        served, others, needed = _needed(look, slot, hopeful)
        for call in hopeful:
            call[-1].rounds += 1
        if due := look.due():
            # Their units are neither held nor available, until somebody looks.
            await asyncio.gather(*(self._transitions.sweep(each) for each in due))
        if needed:
            await self._borrow(family, look, slot, needed)
        elif look.unsettled():
            # What there is, is on its way to others, or was left there.
            await self.finish(family, look)
        slot.reserves.put_first(served)
        # For these there was nothing left: one look for all of them finds out whether there is now.
        self._wanting[slot.name].extend(others)

    async def _later(self, family: Family, slot: Slot, calls: Sequence[Call], why: HoldfastError) -> None:
        """Looks again in a moment for these calls; those that have waited long enough hear why not."""
        again = [call for call in calls if slot.time() < call[-1].asked_at + family.patience_s]
        _tell_all([call for call in calls if call not in again], why.with_traceback(None))
        if again:
            await asyncio.sleep(RESEND_PAUSE_S)
            self._wanting[slot.name].extend(again)

    def _answered(self, look: Look, calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
        """Tells those calls that cannot be met what is the case.

        Returns
        -------
        The others: those that may be met now, and those of which nobody knows, since a shard cannot be asked just now.
        """
        hopeful: list[Call] = []
        unknown: list[Call] = []
        passing = list(look.refusals.values()) if look.passing else []
        refusals: dict[str, HoldfastError | None] = {}
        for call in calls:
            order, waiter = call[2], call[3]
            packed = order[1:]
            if packed not in refusals:
                refusals[packed] = _refusal(look, packed)
            refusal = refusals[packed]
            if refusal in passing:
                unknown.append(call)
                continue
            if refusal is None and waiter.rounds >= ROUNDS_MAX:
                refusal = _all_held(look, packed)
            if refusal is None:
                hopeful.append(call)
                continue
            if isinstance(refusal, SoldOut):
                # For all shards: they remember together.
                look.shards[0].slot.remember_sold_out(packed, look.began, refusal)
            tell(waiter, refusal)
        return hopeful, unknown

    async def _borrow(self, family: Family, look: Look, slot: Slot, needed: Mapping[int, int]) -> None:
        """Has other shards send what is needed here, or what they have of it.

        Raises
        ------
        NotReady: the store does not answer, without which nothing is moved.
        """
        if settling := self._settling.get(slot.name):
            await asyncio.wait({settling})
        if slot.time() < self._not_before.get(family.name, 0.0):
            raise NotReady("units would have to come from another shard, and the store does not answer")
        me = look.of(slot)
        inbound = [
            family.slots[lender - 1]
            for lender, borrower, number in look.unsettled()
            if borrower == shard_of(slot.name) and (me is None or number > me.transfers.into.get(lender, 0))
        ]
        asked = {} if inbound else _asked(look, slot, needed)
        if asked:
            await self._carrier.ready([slot, *asked])
        results = await asyncio.gather(
            *(self._carrier.lend(lender, slot, wanted) for lender, wanted in asked.items()), return_exceptions=True
        )
        lenders = inbound + [
            lender for lender, lines in zip(asked, results, strict=True) if isinstance(lines, str) and lines
        ]
        for error in results:
            if isinstance(error, BaseException) and not isinstance(error, NotReady):
                raise error
        if not lenders:
            return  # others were faster
        try:
            await self._carrier.carry(lenders, slot)
        except NotReady:
            self._not_before[family.name] = slot.time() + STORE_AWAY_S
            raise
        settling = asyncio.create_task(self._settle(lenders, slot))
        self._settling[slot.name] = settling
        settling.add_done_callback(lambda task: self._settled(slot.name, task))

    async def _settle(self, lenders: Sequence[Slot], slot: Slot) -> None:
        try:
            await self._carrier.settle(lenders, slot)
        except NotReady as error:
            log.info("a transfer to '%s' is not settled yet: %s", slot.name, error)

    def _settled(self, name: str, task: asyncio.Task[None]) -> None:
        if self._settling.get(name) is task:
            del self._settling[name]
        if not task.cancelled() and (error := task.exception()):
            log.error("a transfer to '%s' was not settled", name, exc_info=error)

    async def finish(self, family: Family, look: Look) -> None:
        """Carries to their end the transfers that were not when this look was taken.

        Raises
        ------
        NotReady: a side does not answer.
        """
        by_borrower: dict[int, list[Slot]] = {}
        for lender, borrower, _ in look.unsettled():
            by_borrower.setdefault(borrower, []).append(family.slots[lender - 1])
        away: NotReady | None = None
        for borrower, lenders in by_borrower.items():
            slot = family.slots[borrower - 1]
            try:
                await self._carrier.carry(lenders, slot)
                await self._carrier.settle(lenders, slot)
            except NotReady as error:
                away = error  # the others' servers may answer
        if away is not None:
            raise away

    async def gather(self, family: Family, slot: Slot, needed: Mapping[int, int]) -> None:
        """Borrows so many units, by item number from 1, as far as others have them; raises as `finish`."""
        await self._borrow(family, await family.look(), slot, needed)


def _tell_all(calls: Sequence[Call], error: BaseException) -> None:
    for call in calls:
        tell(call[-1], error)


def _refusal(look: Look, packed: str) -> HoldfastError | None:
    """Why nobody has what these lines ask for; None when it can be had, or may be in a moment."""
    lines = units_of(packed)
    lacking = [(item - 1, units) for item, units in lines if look.available(item - 1) < units]
    if look.refusals:
        # What those shards have that cannot be read, nobody knows.
        return next(iter(look.refusals.values())) if lacking else None
    items = look.definition.items
    for at, units in lacking:
        if look.capacity(at) - look.purchased(at) < units:
            return SoldOut(items[at].sku, look.available(at))
    for at, units in lacking:
        if look.available(at) + max(0, look.in_transit(at)) < units and not look.due():
            return _all_held(look, packed)
    return None


def _all_held(look: Look, packed: str) -> AllHeld:
    lines, items = units_of(packed), look.definition.items
    lacking = [item - 1 for item, units in lines if look.available(item - 1) < units] or [lines[0][0] - 1]
    # Units on their way, or that others were faster to take, may do before the next hold runs out.
    soon = all(look.available(item - 1) + max(0, look.in_transit(item - 1)) >= units for item, units in lines)
    left = look.retry_ms()
    retry_ms = SOON_MS if left is None else min(left, SOON_MS) if soon else left
    return AllHeld(items[lacking[0]].sku, max(0, look.available(lacking[0])), retry_ms)


def _needed(look: Look, slot: Slot, calls: Sequence[Call]) -> tuple[list[Call], list[Call], dict[int, int]]:
    """Those of these calls that the sale has enough for, first come, the others, and by item number the units that this
    shard lacks for the first."""
    wanted: Counter[int] = Counter()
    served: list[Call] = []
    others: list[Call] = []
    for call in calls:
        lines = units_of(call[2][1:])
        if all(look.available(item - 1) - wanted[item] >= units for item, units in lines):
            wanted.update(dict(lines))
            served.append(call)
        else:
            others.append(call)
    here = look.of(slot)
    lacking = {item: units - (here.available(item - 1) if here else 0) for item, units in wanted.items()}
    return served, others, {item: units for item, units in lacking.items() if units > 0}


def _asked(look: Look, slot: Slot, needed: Mapping[int, int]) -> dict[Slot, str]:
    """Which shards are asked for what: of each item first the one that has the most."""
    lines: dict[Slot, list[tuple[int, int]]] = {}
    for item, units in needed.items():
        others = [shard for shard in look.shards if shard.slot is not slot and shard.available(item - 1) > 0]
        # Of those that have as much, not everybody's first.
        random.shuffle(others)
        for shard in sorted(others, key=lambda shard: shard.available(item - 1), reverse=True):
            if units <= 0:
                break
            part = min(units, shard.available(item - 1))
            lines.setdefault(shard.slot, []).append((item, part))
            units -= part
    return {lender: pack_lines(wanted) for lender, wanted in lines.items()}
