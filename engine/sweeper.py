"""The sweeper: finds slots whose next deadline has passed and expires what is due there. The index is the truth."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial

from holdfast.engine.connection import NotSent, Server
from holdfast.engine.errors import NotReady, OutcomeUnknown, UnknownSale
from holdfast.engine.keys import slot_keys
from holdfast.engine.servers import Servers
from holdfast.engine.slots import Slots
from holdfast.engine.store import Store, StoreError

log = logging.getLogger("holdfast.sweeper")

#: Seconds between two looks for slots that may have something due.
TICK_S = 0.2

#: Seconds between two looks at a slot, at the most. A new hold runs out after the sale's hold time at the earliest, so
#: that nothing is missed in between, unless another process has just made that shorter: then what was held by it comes
#: back later by as much. Within one second of the deadline is promised.
IDLE_S = 0.6

#: Seconds between two looks for sales that other processes created.
DISCOVER_S = 1.0

#: Seconds for which the sweep of one server is waited for, where there are others: it may have died in between.
OTHERS_WAIT_S = 0.5

#: Slots asked about in one round trip.
SLOTS_STEP = 500


class Sweeper:
    """Expires holds on time, with nothing but the clock and the deadline index."""

    def __init__(self, servers: Servers, store: Store, slots: Slots) -> None:
        self._servers = servers
        self._store = store
        self._slots = slots
        self._names: set[str] = set()
        self._discovered = -DISCOVER_S
        self._blind = False
        self._wake = asyncio.Event()
        #: Slots that are to be looked at whatever is known of them.
        self._woken: set[str] = set()
        #: By slot, when something may be due there, by the loop's clock.
        self._next: dict[str, float] = {}
        #: By server, the sweep that is under way there.
        self._under_way: dict[Server, asyncio.Task[int]] = {}

    def wake(self, *slots: str) -> None:
        """Looks now: a notification said that a hold ran out in one of these slots, or a sale was created."""
        self._woken.update(slots)
        self._wake.set()

    async def run(self) -> int:
        """Expires what is due now; how many tickets.

        Raises
        ------
        NotSent, NoReply: Redis does not answer.
        """
        await self._discover()
        time, (woken, self._woken) = asyncio.get_running_loop().time(), (self._woken, set())
        every = self._names | {slot.name for slot in self._slots.all()}
        names = sorted(name for name in every if self._next.get(name, 0.0) <= time or name in woken)
        expired = 0
        for at in range(0, len(names), SLOTS_STEP):
            step = names[at : at + SLOTS_STEP]
            heads = await self._servers.clocked(
                [(name, ("ZRANGE", slot_keys(name).deadlines, "0", "0", "WITHSCORES")) for name in step]
            )
            due: dict[Server, list[str]] = {}
            for name, (now, head) in zip(step, heads, strict=True):
                left_s = 0.0 if isinstance(head, Exception) else (_score(head) - now) / 1000 if head else IDLE_S
                self._next[name] = time + min(left_s, self._idle_s(name))
                if head and not isinstance(head, Exception) and left_s <= 0:
                    with contextlib.suppress(NotSent):
                        due.setdefault(self._servers.of(name), []).append(name)
            expired += await self._sweep_all(due)
        return expired

    def _idle_s(self, name: str) -> float:
        """Seconds for which no hold can run out that was not there yet."""
        slot = self._slots.known(name)
        return min(IDLE_S, slot.definition.hold_ms / 1000) if slot is not None else IDLE_S

    async def _sweep_all(self, due: Mapping[Server, Sequence[str]]) -> int:
        """Sweeps these slots: those of one server one after the other, and no server waits for another for long."""
        tasks = []
        for server, names in due.items():
            if server not in self._under_way:
                task = self._under_way[server] = asyncio.create_task(self._sweep_each(names))
                task.add_done_callback(partial(self._swept, server))
                tasks.append(task)
        if not tasks:
            return 0
        try:
            # One server is waited for: there is nobody else to see to.
            done, _ = await asyncio.wait(tasks, timeout=None if len(self._servers.all()) == 1 else OTHERS_WAIT_S)
        except asyncio.CancelledError:
            for task in self._under_way.values():
                task.cancel()
            raise
        return sum(task.result() for task in done if task.exception() is None)

    def _swept(self, server: Server, task: asyncio.Task[int]) -> None:
        del self._under_way[server]
        if not task.cancelled() and (error := task.exception()):
            log.error("a sweep failed", exc_info=error)

    async def _sweep_each(self, names: Sequence[str]) -> int:
        return sum([await self.sweep(name) for name in names])

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
