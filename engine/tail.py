"""A sale's ledger followed from a position: every transition in order, none missed and none repeated."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

from holdfast.engine.connection import NoReply, NotSent
from holdfast.engine.errors import InvalidRequest, NotReady
from holdfast.engine.feed import beyond, read
from holdfast.engine.limits import SHARDS_MAX
from holdfast.engine.records import NO_LINES, SALE_LINE, TRANSFER_LINE, Definition, Entry
from holdfast.engine.servers import Servers
from holdfast.engine.slots import KnownLines, Slot
from holdfast.engine.store import Cursor, Store, StoreError
from holdfast.engine.values import Kind, Position, SaleTransition

log = logging.getLogger("holdfast.tail")

#: Seconds between two looks for what is new. Asking Redis to wait for it would wake every reader at every batch of a
#: stampede, hundreds a second; ten looks cost it 0.1 ms.
POLL_S: Final = 0.1

#: Characters of a place: a position takes 20 at the most that anybody can reach.
PLACE_CHARS_MAX: Final = 21 * SHARDS_MAX

_POSITION: Final = re.compile(r"[0-9]{1,6}-[0-9]{1,13}")

#: What the letter of a ticket's ledger line says.
_KINDS: Final = {"r": Kind.RESERVED, "p": Kind.PURCHASED, "c": Kind.CANCELLED, "x": Kind.EXPIRED}


class Tail:
    """A reader of one sale's ledger, from Redis, and where it was trimmed there, from the store.

    Made by `Engine.tail`. Of a sale in shards it reads one slot after the other: transitions are in order in each slot.

    Attributes
    ----------
    sale: its id.
    """

    def __init__(
        self, servers: Servers, store: Store, sale: str, slots: Sequence[Slot], after: Sequence[Position]
    ) -> None:
        self.sale = sale
        self._readers = [_Reader(servers, store, slot, at) for slot, at in zip(slots, after, strict=True)]

    @property
    def position(self) -> Position:
        """Right behind what was read last, in a sale of one slot."""
        return self._readers[0].position

    @property
    def place(self) -> str:
        """Right behind what was read last, in any sale."""
        return ",".join(str(reader.position) for reader in self._readers)

    async def read(self) -> list[SaleTransition]:
        """The next transitions; empty when there are no more yet. A few thousand at the most for each slot: ask again
        for the rest.

        Raises
        ------
        NotReady: Redis or the store does not answer; the place is kept.
        """
        told: list[SaleTransition] = []
        away: NotReady | None = None
        for at, reader in enumerate(self._readers):
            before = "".join(f"{other.position}," for other in self._readers[:at])
            behind = "".join(f",{other.position}" for other in self._readers[at + 1 :])
            try:
                told += await reader.read((before, behind))
            except NotReady as error:
                # The others go on; what they have told is behind their positions, and must not be lost.
                away = error
        if away is not None and not told:
            raise away
        return told


class _Reader:
    """A reader of one slot's ledger.

    Attributes
    ----------
    position: right behind what was read last.
    """

    def __init__(self, servers: Servers, store: Store, slot: Slot, after: Position) -> None:
        self.position = after
        self._servers = servers
        self._store = store
        self._slot = slot
        # Items are only ever added, so that the newest definition names those of every line before it, too.
        self._lines = KnownLines(slot.definition)

    async def read(self, around: tuple[str, str]) -> list[SaleTransition]:
        """The next transitions; raises as `Tail.read`.

        Parameters
        ----------
        around: as of `SaleTransition`.
        """
        after = Cursor(*self.position)
        try:
            entries = await read(self._servers, self._store, self._slot.keys, after)
        except (NotSent, NoReply, StoreError) as error:
            raise NotReady(str(error)) from error
        told: list[SaleTransition] = []
        for entry in entries:
            told.extend(self._told(entry, around))
            self.position = Position(entry.epoch, entry.sequence)
            # Reading an entry that carries a whole batch takes half a millisecond: others are let in between.
            await asyncio.sleep(0)
        return told

    def _told(self, entry: Entry, around: tuple[str, str]) -> Iterator[SaleTransition]:
        slot, sale = self._slot.name, self._slot.definition.id
        for transition in beyond([entry], Cursor(*self.position)):
            epoch, sequence, at, letter = transition[:4]
            if letter == SALE_LINE:
                definition = Definition.from_json(transition.lines)
                self._lines = KnownLines(definition)
                yield SaleTransition(
                    epoch, sequence, at, Kind.SALE, sale, terms=definition.terms(), slot=slot, around=around
                )
            elif letter == TRANSFER_LINE:
                lines = self._lines[transition.lines] if transition.lines != NO_LINES else ()
                yield SaleTransition(epoch, sequence, at, Kind.TRANSFER, sale, lines=lines, slot=slot, around=around)
            else:
                yield SaleTransition(
                    epoch,
                    sequence,
                    at,
                    _KINDS[letter],
                    sale,
                    f"{slot}.{transition.ticket}",
                    self._lines[transition.lines],
                    transition.expires_at or None,
                    transition.reference or None,
                    None,
                    slot,
                    around,
                )


def positions(place: str) -> list[Position]:
    """A place as the positions in the slots of its sale.

    Raises
    ------
    InvalidRequest: it is none.
    """
    parts = place.split(",")
    if len(place) > PLACE_CHARS_MAX or not all(_POSITION.fullmatch(part) for part in parts):
        raise InvalidRequest("/after", "is no place: EPOCH-SEQUENCE, of a sale in shards of each, joined by commas")
    return [Position(*map(int, part.split("-"))) for part in parts]


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
