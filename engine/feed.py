"""The ledger read in order: from Redis, and where it was trimmed there, from the store."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.engine.keys import SlotKeys
from holdfast.engine.records import Entry, Transition
from holdfast.engine.servers import Servers
from holdfast.engine.store import Cursor, Store

#: Ledger entries read at a time. An entry may carry a whole batch: 20 are at most 3,000 transitions, 10 ms of parsing.
ENTRIES_STEP = 20


class Gap(Exception):
    """Redis' ledger does not continue where the reader stands."""


async def read_redis(
    servers: Servers, keys: SlotKeys, after: Cursor, count: int = ENTRIES_STEP, *, copied: bool = False
) -> list[Entry]:
    """The next entries of a slot's ledger in Redis.

    Parameters
    ----------
    copied: `after` is how far the store has come. A later epoch that follows on it is then a failover's, since a
        recovery raises the store's first; any other reader may have read what was then lost.

    Raises
    ------
    Gap: there are newer entries, but not the next one: it was trimmed, or lost.
    NotSent, NoReply: Redis does not answer.
    """
    raw = await servers.call(keys.slot, "XRANGE", keys.ledger, f"({after.epoch}-{after.sequence}", "+", "COUNT", count)
    entries = [Entry.parse(stream_id, fields) for stream_id, fields in raw]
    if entries:
        # After a recovery sequences count on from what was not lost: they only follow within an epoch.
        first = entries[0]
        follows = first.epoch <= max(after.epoch, 1) or (copied and first.first == after.sequence + 1)
        if first.first > after.sequence + 1 or not follows:
            raise Gap
    else:
        epoch, sequence = await servers.call(keys.slot, "HMGET", keys.sale, "epoch", "sequence")
        if epoch and (int(epoch), int(sequence)) > (after.epoch, after.sequence):
            raise Gap
    return entries


async def read(servers: Servers, store: Store, keys: SlotKeys, after: Cursor) -> list[Entry]:
    """The next entries of a slot's ledger, wherever they are kept."""
    try:
        return await read_redis(servers, keys, after)
    except Gap:
        return await store.ledger(keys.slot, after, ENTRIES_STEP)


def beyond(entries: list[Entry], after: Cursor) -> Iterator[Transition]:
    """The transitions of these entries that the reader has not had. A new epoch counts on from what was not lost."""
    for entry in entries:
        for transition in entry.transitions():
            if entry.epoch > after.epoch or transition.sequence > after.sequence:
                yield transition
