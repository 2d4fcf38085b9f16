"""Units moved from one shard of a sale to another: lent, stored, received, stored, settled.

Each step is a script that changes nothing when it runs again, and no step is taken before the store has the one that it
relies on. So a Redis that loses its last moments has lost a step that nobody relied on, which is as if it had never
been, or it is behind the store and sells nothing until it was recovered from it. Whoever finds a transfer that was left
in the middle may carry it to its end; `docs/design.md` argues why no unit is doubled or lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping
from typing import Final, TypeVar

from holdfast.engine.connection import NoReply, NotSent
from holdfast.engine.errors import NotReady, OutcomeUnknown
from holdfast.engine.records import Transfers, shard_of
from holdfast.engine.scripts import Scripts
from holdfast.engine.slots import Slot
from holdfast.engine.snapshot import Snapshot
from holdfast.engine.store import Store, StoreError

T = TypeVar("T")

#: Seconds for the store to take a step: more than any commit of a store that is well. Buyers wait meanwhile.
STORED_S: Final = 5.0


class Carrier:
    """Moves units between slots that this process knows."""

    def __init__(self, scripts: Scripts, store: Store, snapshot: Snapshot) -> None:
        self._scripts = scripts
        self._store = store
        self._snapshot = snapshot

    async def ready(self, slots: Collection[Slot]) -> None:
        """Returns where the store takes what these have done; asked only when it did not the last time.

        What is lent while it is away is in transit for as long as that lasts, and sold by nobody.

        Raises
        ------
        NotReady: it is still away.
        """
        if self._snapshot.away is not None:
            await self._stored(slots)

    async def lend(self, lender: Slot, borrower: Slot, wanted: str) -> str:
        """Has a shard lend; the lines that are in transit then, empty where it has nothing to give.

        Parameters
        ----------
        wanted: packed lines, the units that are needed.

        Raises
        ------
        NotReady: the lender cannot be asked; what it may have lent is found by whoever asks it again.
        """
        number = shard_of(borrower.name)
        _, lines = await _told(lender.run(lambda floor, _: self._scripts.lend(lender.keys, floor, number, wanted)))
        return lines

    async def carry(self, lenders: Collection[Slot], borrower: Slot) -> int:
        """Brings to the borrower what these have lent to it; how many transfers there were.

        Raises
        ------
        NotReady: a side does not answer; what is in transit stays so until somebody calls this again.
        """
        stored = await self._stored(lenders)
        arrived = 0
        for lender in lenders:
            # As the store has it, and not as Redis said: nothing is received that the lender could still forget.
            number, lines = stored[lender.name].unsettled().get(shard_of(borrower.name), (0, ""))
            if lines:
                await self._receive(lender, borrower, number, lines)
                arrived += 1
        return arrived

    async def _receive(self, lender: Slot, borrower: Slot, number: int, lines: str) -> None:
        await _told(
            borrower.run(
                lambda floor, _: self._scripts.receive(borrower.keys, floor, shard_of(lender.name), number, lines)
            )
        )

    async def settle(self, lenders: Collection[Slot], borrower: Slot) -> None:
        """Ends what these have lent to the borrower and it has received; raises as `carry`."""
        (received,) = (await self._stored([borrower])).values()
        for lender in lenders:
            # As above: nothing is settled that the borrower could still forget to have received.
            if number := received.into.get(shard_of(lender.name)):
                await self._settle(lender, borrower, number)

    async def _settle(self, lender: Slot, borrower: Slot, number: int) -> None:
        await _told(
            lender.run(lambda floor, _: self._scripts.settle(lender.keys, floor, shard_of(borrower.name), number))
        )

    async def _stored(self, slots: Collection[Slot]) -> Mapping[str, Transfers]:
        """What the store has of what these have lent and borrowed, once all that they have done by now is copied."""
        try:
            async with asyncio.timeout(STORED_S):
                await self._snapshot.reach({slot.name for slot in slots})
                found = await asyncio.gather(*(self._store.sale(slot.name) for slot in slots))
        except TimeoutError:
            raise NotReady(f"the store has not taken within {STORED_S:g} s what moves between shards") from None
        except (StoreError, NotSent, NoReply) as error:
            raise NotReady(f"what moves between shards waits for the store: {error}") from error
        return {sale.slot: Transfers.parse(sale.transfers) for sale in found if sale is not None}


async def _told(work: Awaitable[T]) -> T:
    """What a step has answered. One whose outcome is not known is looked for by whoever goes on with the transfer."""
    try:
        return await work
    except OutcomeUnknown as error:
        raise NotReady("a shard does not answer") from error
