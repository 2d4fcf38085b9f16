"""The sweeper: finds slots whose next deadline has passed and expires what is due there. The index is the truth."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from redis.exceptions import RedisError

from holdfast.engine.connection import NotSent, Server
from holdfast.engine.errors import NotReady, OutcomeUnknown, UnknownSale
from holdfast.engine.keys import slot_keys
from holdfast.engine.slots import Slots
from holdfast.engine.store import Store, StoreError

log = logging.getLogger("holdfast.sweeper")

#: Seconds between two looks at every slot. Stock is promised back within one second of the deadline.
TICK_S = 0.2

#: Seconds between two looks for sales that other processes created.
DISCOVER_S = 1.0

#: Slots asked about in one round trip.
SLOTS_STEP = 500


class Sweeper:
    """Expires holds on time, with nothing but the clock and the deadline index."""

    def __init__(self, server: Server, store: Store, slots: Slots) -> None:
        self._server = server
        self._store = store
        self._slots = slots
        self._names: set[str] = set()
        self._discovered = -DISCOVER_S
        self._blind = False
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Looks now: a notification said that a hold ran out, or a sale was created."""
        self._wake.set()

    async def run(self) -> int:
        """Expires what is due now; how many tickets.

        Raises
        ------
        NotSent, NoReply: Redis does not answer.
        """
        await self._discover()
        names = sorted(self._names | {slot.name for slot in self._slots.all()})
        expired = 0
        for at in range(0, len(names), SLOTS_STEP):
            step = names[at : at + SLOTS_STEP]
            commands = [("ZRANGE", slot_keys(name).deadlines, "0", "0", "WITHSCORES") for name in step]
            clock, *heads = await self._server.pipeline([("TIME",), *commands])
            if isinstance(clock, RedisError):
                raise NotSent(f"Redis answers {clock}")
            now = int(clock[0]) * 1000 + int(clock[1]) // 1000
            for name, head in zip(step, heads, strict=True):
                if not isinstance(head, RedisError) and head and _score(head) <= now:
                    expired += await self.sweep(name)
        return expired

    async def sweep(self, name: str) -> int:
        """Expires everything that is due in one slot, a bounded call at a time; nothing in a slot that is not ready."""
        try:
            slot = await self._slots.get(name)
        except (NotReady, OutcomeUnknown, UnknownSale):
            return 0
        return await self._slots.transitions.sweep(slot, gently=True)

    async def pause(self) -> None:
        """Waits for the next look: a tick, or a wake-up."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it may swallow a cancellation that comes with the wake-up.
            async with asyncio.timeout(TICK_S):
                await self._wake.wait()
        self._wake.clear()

    async def _discover(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._discovered < DISCOVER_S:
            return
        self._discovered = now
        try:
            progress = await self._store.cursors()
        except StoreError as error:
            if not self._blind:
                log.warning("sales of other processes cannot be looked up: %s", error)
            self._blind = True
            return
        self._blind = False
        self._names = set(progress)
        for name, copied in progress.items():
            self._slots.raise_floor(name, copied.cursor)


def _score(head: list[object]) -> float:
    """The score of the one member, in the shape of either protocol version."""
    last = head[-1]
    return float(last[-1] if isinstance(last, list) else last)  # type: ignore[arg-type]
