"""The expiries of tickets as a feed: woken by notifications, read from the ledger, none missed and none repeated."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from holdfast.engine.background import Background
from holdfast.engine.connection import NoReply, NotSent
from holdfast.engine.errors import UnknownSale
from holdfast.engine.feed import beyond, read
from holdfast.engine.keys import slot_keys
from holdfast.engine.records import SALE_LINE, Definition, Transition
from holdfast.engine.servers import Servers
from holdfast.engine.store import Cursor, Store, StoreError
from holdfast.engine.values import Expiration

log = logging.getLogger("holdfast.expirations")

#: Seconds between two looks when no notification comes: they are late and lossy.
POLL_S = 0.5


class _Reader:
    """One slot's ledger, read on from a position."""

    def __init__(self, slot: str, definition: Definition, cursor: Cursor) -> None:
        self.slot = slot
        self.definition = definition
        self.cursor = cursor

    def expiration(self, transition: Transition) -> Expiration:
        return Expiration(
            slot=self.slot,
            epoch=transition.epoch,
            sequence=transition.sequence,
            sale=self.definition.id,
            ticket=f"{self.slot}.{transition.ticket}",
            lines=self.definition.lines(transition.lines),
            expired_at=transition.expires_at,
            at=transition.at,
        )


async def expirations(
    servers: Servers, store: Store, background: Background, sale: str | None, name: str | None, from_start: bool
) -> AsyncIterator[Expiration]:
    """See `Engine.expirations`."""
    readers: dict[str, _Reader] = {}
    waker = background.add_waker()
    first = True
    try:
        while True:
            waker.clear()
            more = False
            try:
                # Sales that appear while we listen are read from their beginning.
                await _discover(servers, store, readers, sale, name, from_start or not first)
                first = False
                for reader in readers.values():
                    async for expiration in _new(servers, store, reader, name):
                        more = True
                        yield expiration
            except (NotSent, NoReply, StoreError) as error:
                # Redis or the store is away for a moment: the positions are kept, and nothing is missed.
                log.info("expiries cannot be read now (%s); it is tried again", error)
            if not more:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await waker.wait()
    finally:
        background.remove_waker(waker)


async def _discover(
    servers: Servers, store: Store, readers: dict[str, _Reader], sale: str | None, name: str | None, from_start: bool
) -> None:
    names = await _slots_of(store, sale) if sale is not None else list(await store.cursors())
    for slot in names:
        if slot in readers:
            continue
        stored = await store.sale(slot)
        if stored is None:
            raise UnknownSale(slot)
        cursor = await store.position(name, slot) if name is not None else None
        if cursor is None and from_start:
            cursor = Cursor(0, 0)
        if cursor is None:
            epoch, sequence = await servers.call(slot, "HMGET", slot_keys(slot).sale, "epoch", "sequence")
            cursor = Cursor(int(epoch or 0), int(sequence or 0))
            if name is not None:
                await store.set_position(name, slot, cursor)
        readers[slot] = _Reader(slot, stored.known, cursor)


async def _slots_of(store: Store, sale: str) -> tuple[str, ...]:
    stored = await store.sale(sale)
    if stored is None:
        raise UnknownSale(sale)
    return stored.known.slots()


async def _new(servers: Servers, store: Store, reader: _Reader, name: str | None) -> AsyncIterator[Expiration]:
    """What is new in one slot; the position is remembered when everything of a ledger entry was taken."""
    keys = slot_keys(reader.slot)
    while entries := await read(servers, store, keys, reader.cursor):
        for entry in entries:
            expired = False
            for transition in beyond([entry], reader.cursor):
                if transition.kind == SALE_LINE:
                    reader.definition = Definition.from_json(transition.lines)
                elif transition.kind == "x":
                    expired = True
                    yield reader.expiration(transition)
            reader.cursor = Cursor(entry.epoch, entry.sequence)
            if name is not None and (expired or entry is entries[-1]):
                await store.set_position(name, reader.slot, reader.cursor)
