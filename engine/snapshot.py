"""The snapshot: what is new in every ledger, copied into the store exactly once.

The store's own cursor says where to go on, and moving it by compare-and-set in the same transaction as the rows is what
makes a second snapshotter, or one that was killed anywhere, harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from redis.exceptions import RedisError

from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.feed import Gap, read_redis
from holdfast.engine.keys import slot_keys
from holdfast.engine.slots import Slots
from holdfast.engine.store import Copied, Cursor, CursorMoved, Progress, Store

log = logging.getLogger("holdfast.snapshot")

#: Milliseconds, and transitions: how much of a ledger stays in Redis behind the cursor for live readers.
KEEP_MS = 10 * 60 * 1000
KEEP_TRANSITIONS = 100_000

#: Slots asked about in one round trip, and copied in one transaction: bounds the time of either to some 10 ms.
SLOTS_STEP = 500


class Snapshot:
    """Copies ledgers into the store.

    Attributes
    ----------
    alarms: contradictions found since the start, as sentences; also kept in the store.
    """

    def __init__(self, server: Server, store: Store, slots: Slots) -> None:
        self._server = server
        self._store = store
        self._slots = slots
        self._one_at_a_time = asyncio.Lock()
        #: Per slot, (time, sequence) of past cursors, to know what is older than KEEP_MS.
        self._past: dict[str, deque[tuple[float, Cursor]]] = {}
        self.alarms: list[str] = []

    async def run(self) -> int:
        """Copies what is new at this moment; how many transitions that were.

        Raises
        ------
        StoreError, NotSent, NoReply: a side does not answer; what was not committed will be copied next time.
        """
        async with self._one_at_a_time:
            total = 0
            while copied := await self._step():
                total += copied
            return total

    async def _step(self) -> int:
        progress = await self._store.cursors()
        names = list(progress)
        total = 0
        for at in range(0, len(names), SLOTS_STEP):
            total += await self._copy(await self._stretches(names[at : at + SLOTS_STEP], progress))
        return total

    async def _stretches(self, names: list[str], progress: dict[str, Progress]) -> list[Copied]:
        heads = await self._server.pipeline(
            [("HMGET", slot_keys(name).sale, "fence", "epoch", "sequence") for name in names]
        )
        stretches = []
        for name, head in zip(names, heads, strict=True):
            if isinstance(head, RedisError) or head[0] or not head[1]:
                continue  # absent or fenced: readiness says so, and recovery copies what there is
            cursor = progress[name].cursor
            if (int(head[1]), int(head[2])) <= (cursor.epoch, cursor.sequence):
                continue
            try:
                entries = await read_redis(self._server, slot_keys(name), cursor)
            except Gap:
                self._alarm(f"{name}: the ledger in Redis does not continue at {cursor.floor}; run `holdfast recover`")
                continue
            if entries:
                stretches.append(Copied(name, cursor, entries))
        return stretches

    async def _copy(self, stretches: list[Copied]) -> int:
        if not stretches:
            return 0
        try:
            for alarm in await self._store.append(stretches):
                self._alarm(alarm)
        except CursorMoved as moved:
            log.info("another process copies the ledger of %s", moved)
            return 0
        total = 0
        for stretch in stretches:
            last = stretch.entries[-1]
            cursor = Cursor(last.epoch, last.sequence)
            total += last.sequence - stretch.after.sequence
            self._slots.raise_floor(stretch.slot, cursor)
            await self._trim(stretch.slot, cursor)
        return total

    async def _trim(self, name: str, cursor: Cursor) -> None:
        """Trims what live readers have had time for. Never at or above the cursor: only copied entries go."""
        now = asyncio.get_running_loop().time()
        past = self._past.setdefault(name, deque())
        past.append((now, cursor))
        keep = Cursor(cursor.epoch, max(0, cursor.sequence - KEEP_TRANSITIONS))
        while past and past[0][0] <= now - KEEP_MS / 1000:
            keep = max(keep, past.popleft()[1], key=lambda c: (c.epoch, c.sequence))
        if keep.sequence:
            try:
                await self._server.call("XTRIM", slot_keys(name).ledger, "MINID", "~", keep.floor)
            except (NotSent, NoReply):
                log.info("the ledger of %s was not trimmed; the next snapshot will", name)

    def _alarm(self, text: str) -> None:
        if text not in self.alarms:
            self.alarms.append(text)
            log.critical("ALARM %s", text)
