"""A sale's ledger followed from a position: every transition in order, none missed and none repeated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Final

from holdfast.engine.connection import NoReply, NotSent
from holdfast.engine.errors import NotReady
from holdfast.engine.feed import beyond, read
from holdfast.engine.records import SALE_LINE, Definition, Entry
from holdfast.engine.servers import Servers
from holdfast.engine.slots import KnownLines, Slot
from holdfast.engine.store import Cursor, Store, StoreError
from holdfast.engine.values import Kind, Position, SaleTransition

log = logging.getLogger("holdfast.tail")

#: Seconds between two looks for what is new. Asking Redis to wait for it would wake every reader at every batch of a
#: stampede, hundreds a second; ten looks cost it 0.1 ms.
POLL_S: Final = 0.1

#: What the letter of a ticket's ledger line says.
_KINDS: Final = {"r": Kind.RESERVED, "p": Kind.PURCHASED, "c": Kind.CANCELLED, "x": Kind.EXPIRED}


class Tail:
    """A reader of one sale's ledger, from Redis, and where it was trimmed there, from the store.

    Made by `Engine.tail`.

    Attributes
    ----------
    sale: its id.
    position: right behind what was read last.
    """

    def __init__(self, servers: Servers, store: Store, slot: Slot, after: Position) -> None:
        self.sale = slot.name
        self.position = after
        self._servers = servers
        self._store = store
        self._slot = slot
        # Items are only ever added, so that the newest definition names those of every line before it, too.
        self._lines = KnownLines(slot.definition)

    async def read(self) -> list[SaleTransition]:
        """The next transitions; empty when there are no more yet. A few thousand at the most: ask again for the rest.

        Raises
        ------
        NotReady: Redis or the store does not answer; the position is kept.
        """
        after = Cursor(*self.position)
        try:
            entries = await read(self._servers, self._store, self._slot.keys, after)
        except (NotSent, NoReply, StoreError) as error:
            raise NotReady(str(error)) from error
        told: list[SaleTransition] = []
        for entry in entries:
            told.extend(self._told(entry))
            self.position = Position(entry.epoch, entry.sequence)
            # Reading an entry that carries a whole batch takes half a millisecond: others are let in between.
            await asyncio.sleep(0)
        return told

    def _told(self, entry: Entry) -> Iterator[SaleTransition]:
        for transition in beyond([entry], Cursor(*self.position)):
            epoch, sequence, at, letter = transition[:4]
            if letter == SALE_LINE:
                definition = Definition.from_json(transition.lines)
                self._lines = KnownLines(definition)
                yield SaleTransition(epoch, sequence, at, Kind.SALE, self.sale, terms=definition.terms())
            else:
                yield SaleTransition(
                    epoch,
                    sequence,
                    at,
                    _KINDS[letter],
                    self.sale,
                    f"{self._slot.name}.{transition.ticket}",
                    self._lines[transition.lines],
                    transition.expires_at or None,
                    transition.reference or None,
                )


async def transitions(tail: Tail) -> AsyncIterator[SaleTransition]:
    """See `Engine.transitions`."""
    away = False
    while True:
        try:
            told = await tail.read()
        except NotReady as error:
            if not away:
                log.warning("the ledger of '%s' cannot be read now (%s); it is tried again", tail.sale, error)
            away, told = True, []
        else:
            away = False
        for transition in told:
            yield transition
        if not told:
            await asyncio.sleep(POLL_S)
