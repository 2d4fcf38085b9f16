"""What a process that died left in the middle of a sale in shards, found and brought to its end by whoever leads."""

from __future__ import annotations

import logging
from typing import Final

from holdfast.engine.amending import Amending
from holdfast.engine.borrowing import Borrowing
from holdfast.engine.errors import CapacityInUse, HoldfastError, UnknownSale
from holdfast.engine.records import SHARD_MARK, sale_of
from holdfast.engine.shards import Family, Shards
from holdfast.engine.store import Store

log = logging.getLogger("holdfast.mending")

#: Seconds between two looks. What is the same in two of them is nobody's work any more.
MEND_S: Final = 1.0


class Mending:
    """Looks at sales in shards, and finishes what nobody finishes."""

    def __init__(self, store: Store, shards: Shards, borrowing: Borrowing, amending: Amending) -> None:
        self._store = store
        self._shards = shards
        self._borrowing = borrowing
        self._amending = amending
        #: By sale, the transfers that were not settled in the last look, and the versions of shards that differed.
        self._left: dict[str, tuple[frozenset[tuple[int, int, int]], frozenset[int]]] = {}

    async def run(self) -> None:
        """One look at every sale in shards.

        Raises
        ------
        StoreError: the store does not tell which there are.
        """
        for sale in sorted({sale_of(slot) for slot in await self._store.cursors() if SHARD_MARK in slot}):
            try:
                await self._mend(await self._shards.get(sale))
            except UnknownSale:
                continue
            except HoldfastError as error:
                log.info("'%s' is looked at again: %s", sale, error)
            except Exception:
                # A defect: said in full, and the others are looked at all the same.
                log.exception("'%s' cannot be mended", sale)

    async def _mend(self, family: Family) -> None:
        look = await family.look()
        unsettled = frozenset(look.unsettled())
        versions = frozenset(() if look.level else (shard.definition.version for shard in look.shards))
        before, versions_before = self._left.get(family.name, (frozenset(), frozenset()))
        self._left[family.name] = unsettled, versions
        if unsettled & before:
            log.info("finishing transfers of '%s' that were left", family.name)
            await self._borrowing.finish(family, look)
        if versions and versions == versions_before and not look.refusals:
            log.info("finishing an amendment of '%s' that was left", family.name)
            try:
                await self._amending.levelled(family)
            except CapacityInUse as error:
                log.warning("it was taken back: %s", error)
