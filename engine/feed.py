"""The ledger read in order: from Redis, and where it was trimmed there, from the store."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.engine.connection import Server
from holdfast.engine.keys import SlotKeys
from holdfast.engine.records import Entry, Transition
from holdfast.engine.store import Cursor, Store

#: Ledger entries read at a time. An entry may carry a whole batch: 20 are at most 3,000 transitions, 10 ms of parsing.
ENTRIES_STEP = 20


class Gap(Exception):
    """Redis' ledger does not continue where the reader stands."""


async def read_redis(server: Server, keys: SlotKeys, after: Cursor, count: int = ENTRIES_STEP) -> list[Entry]:
    """The next entries of a slot's ledger in Redis.

    Raises
    ------
    Gap: there are newer entries, but not the next one: it was trimmed, or lost.
    NotSent, NoReply: Redis does not answer.
    """
    raw = await server.call("XRANGE", keys.ledger, f"({after.epoch}-{after.sequence}", "+", "COUNT", count)
    entries = [Entry.parse(stream_id, fields) for stream_id, fields in raw]
    if entries:
        # After a recovery sequences count on from what was not lost: they only follow within an epoch.
        if entries[0].first > after.sequence + 1 or entries[0].epoch > max(after.epoch, 1):
            raise Gap
    else:
        epoch, sequence = await server.call("HMGET", keys.sale, "epoch", "sequence")
        if epoch and (int(epoch), int(sequence)) > (after.epoch, after.sequence):
            raise Gap
    return entries


async def read(server: Server, store: Store, slot: str, keys: SlotKeys, after: Cursor) -> list[Entry]:
    """The next entries of a slot's ledger, wherever they are kept."""
    try:
        return await read_redis(server, keys, after)
    except Gap:
        return await store.ledger(slot, after, ENTRIES_STEP)


def beyond(entries: list[Entry], after: Cursor) -> Iterator[Transition]:
    """The transitions of these entries that the reader has not had. A new epoch counts on from what was not lost."""
    for entry in entries:
        for transition in entry.transitions():
            if entry.epoch > after.epoch or transition.sequence > after.sequence:
                yield transition
