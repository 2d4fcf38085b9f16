"""The snapshot: what is new in every ledger, copied into the store exactly once, and folded into its tickets.

The store's own cursor says where to go on, and moving it by compare-and-set in the same transaction as the rows is what
makes a second snapshotter, or one that was killed anywhere, harmless. Copying is cheap and never waits; folding, which
writes to random places for every ticket, waits until fewer people buy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from redis.exceptions import ResponseError

from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.feed import Gap, read_redis
from holdfast.engine.keys import slot_keys
from holdfast.engine.meters import Meters
from holdfast.engine.servers import Command, Servers
from holdfast.engine.slots import Slots
from holdfast.engine.store import Copied, Cursor, CursorMoved, Progress, Store, StoreError

log = logging.getLogger("holdfast.snapshot")

#: Milliseconds, and transitions: how much of a ledger stays in Redis behind the cursor for live readers.
KEEP_MS = 10 * 60 * 1000
KEEP_TRANSITIONS = 100_000

#: Slots asked about in one round trip, and copied in one transaction: bounds the time of either to some 10 ms.
SLOTS_STEP = 500

#: Ledger entries of one slot read at a time, and copied in one transaction with its fsync: a second of a stampede, and
#: at the most 37,500 transitions, 1.7 MB, for which Redis is busy a millisecond.
ENTRIES_STEP = 250

#: Transitions a second up to which what is new is folded at once. It costs 15 to 35 us of CPU each, less in larger
#: steps: at this rate at the most 7 % of a core. Beyond it selling needs the core, and the tables wait.
FOLD_CALM_PER_S = 2_000

#: Transitions that may wait to be folded in a stampede, before one step is done each turn all the same: 9 MB of ledger.
#: It bounds what remains to be done when it is over, to some 10 s beside selling.
FOLD_BEHIND_MAX = 200_000

#: Seconds that a step of folding should hold the store's one writer, for whom copies and new sales wait; its size
#: follows what the last one took. Transitions in a step: in fewer than the least nothing but the fsync is left to save.
FOLD_STEP_S = 0.05
FOLD_STEP_MIN = 1_000
FOLD_STEP_MAX = 20_000

#: Seconds for which one turn folds, before it looks whether it is still calm; and between two turns.
FOLD_TURN_S = 1.0
FOLD_PAUSE_S = 1.0


class Snapshot:
    """Copies ledgers into the store.

    Attributes
    ----------
    alarms: contradictions found and not yet recovered from, as sentences; the store keeps those between transitions.
    away: why nothing could be copied the last time; None when it could.
    """

    def __init__(self, servers: Servers, store: Store, slots: Slots, meters: Meters | None = None) -> None:
        self._meters = meters or Meters()
        self._servers = servers
        self._store = store
        self._slots = slots
        self._one_at_a_time = asyncio.Lock()
        #: Per slot, (time, sequence) of past cursors, to know what is older than KEEP_MS.
        self._past: dict[str, deque[tuple[float, Cursor]]] = {}
        self.alarms: list[str] = []
        #: Per slot, the epoch in which the store was seen last: one more after each recovery, also of other processes.
        self._epochs: dict[str, int] = {}
        self.away: str | None = None
        #: Slots whose ledger in Redis does not continue where the store stands: the store has what Redis has lost.
        self.gaps: set[str] = set()
        #: By slot, where the store was seen, for the next `take_up`; and the task that does it.
        self._wanted: dict[str, Cursor] = {}
        self._taking_up: asyncio.Task[tuple[Mapping[str, Cursor], Sequence[NotSent | NoReply]]] | None = None
        #: Transitions in the next step of folding.
        self._step = FOLD_STEP_MIN
        #: When folding had its last turn, and the transitions that the store had then.
        self._last_turn: tuple[float, int] | None = None

    async def run(self) -> int:
        """Copies what is new at this moment, and not what comes meanwhile; how many transitions that were.

        The tickets in the store follow with `fold`.

        Raises
        ------
        StoreError, NotSent, NoReply: a side does not answer; what was not committed will be copied next time.
            What the other nodes have was copied.
        """
        async with self._one_at_a_time, self._noticing():
            began = time.monotonic()
            cursors = await self._cursors()
            names = list(cursors)
            away: list[NotSent | NoReply] = []
            copied = 0
            for at in range(0, len(names), SLOTS_STEP):
                copied += await self._bring(names[at : at + SLOTS_STEP], cursors, away)
            self._meters.snapshots.add(time.monotonic() - began)
            if away:
                raise away[0]
            return copied

    async def reach(self, names: Collection[str], *, partly: bool = False) -> Mapping[str, Cursor]:
        """Copies what is new in these slots, which this process knows, and nothing of others: how far each is copied.

        Parameters
        ----------
        partly: slots of a server that does not answer stay where they are, while others do.

        Raises
        ------
        StoreError, NotSent, NoReply: as of `run`.
        """
        async with self._one_at_a_time, self._noticing():
            # What the store had at least. When it has more by now, it says so before anything is written.
            cursors = {slot.name: slot.floor for slot in self._slots.all() if slot.name in names}
            away: list[NotSent | NoReply] = []
            await self._bring(list(cursors), cursors, away)
            if away and not partly:
                raise away[0]
            return cursors

    async def take_up(self, name: str, after: Cursor) -> Cursor:
        """Copies what is new in this slot beyond where the store was seen, together with all others that are asked for
        at the same time: after a failover these are many. How far it is copied then.

        Raises
        ------
        StoreError, NotSent, NoReply: as of `run`.
        """
        self._wanted[name] = after
        if self._taking_up is None:
            self._taking_up = asyncio.create_task(self._take_up())
            # Those who asked may have gone.
            self._taking_up.add_done_callback(lambda task: task.cancelled() or task.exception())
        cursors, away = await asyncio.shield(self._taking_up)
        if cursors[name] == after and away:
            raise away[0]
        return cursors[name]

    async def _take_up(self) -> tuple[Mapping[str, Cursor], Sequence[NotSent | NoReply]]:
        async with self._one_at_a_time:
            # Who comes from here on goes with the next.
            cursors, self._wanted, self._taking_up = self._wanted, {}, None
            away: list[NotSent | NoReply] = []
            async with self._noticing():
                await self._bring(list(cursors), cursors, away)
            return cursors, away

    async def _bring(self, names: list[str], cursors: dict[str, Cursor], away: list[NotSent | NoReply]) -> int:
        """Copies what is new in these slots, and moves their `cursors` along; how many transitions that were.

        Parameters
        ----------
        away: takes the failures of nodes that do not answer; the slots of the others are copied.
        """
        total = 0
        behind = await self._behind(names, cursors, away)
        while behind:
            try:
                total += await self._copy(await self._stretches(behind, cursors, away))
            except CursorMoved as moved:
                log.info("another process copies the ledger of %s", moved)
                cursors.update(await self._cursors())
            behind = {name: head for name, head in behind.items() if _before(cursors[name], head)}
        return total

    @asynccontextmanager
    async def _noticing(self) -> AsyncIterator[None]:
        """Sees whether the store answers."""
        try:
            yield
        except StoreError as error:
            if self.away is None:
                log.critical("ALARM %s; selling goes on, and what is sold waits in Redis alone", error)
            self.away = str(error)
            raise
        if self.away is not None:
            log.warning("the store answers again")
        self.away = None

    async def fold(self, slot: str | None = None) -> None:
        """Brings the tickets of one slot, or of all, up to date with what has been copied by now.

        Raises
        ------
        StoreError: the store does not answer; what was not committed will be folded next time.
        """
        progress = await self._store.cursors()
        upto = _unfolded({slot: progress[slot]} if slot is not None else progress)
        while upto and await self._fold_step(upto):
            pass

    async def fold_when_calm(self) -> None:
        """A turn of folding: what is there, when few buy; in a stampede nothing, or a step when too much waits.

        Raises
        ------
        StoreError: as of `fold`.
        """
        progress = await self._store.cursors()
        upto = _unfolded(progress)
        pending = sum(end - progress[slot].folded for slot, end in upto.items())
        now, copied = time.monotonic(), sum(each.cursor.sequence for each in progress.values())
        last, self._last_turn = self._last_turn, (now, copied)
        # By all processes together: another one's copies are our work, too.
        calm = last is None or copied - last[1] <= FOLD_CALM_PER_S * (now - last[0])
        if not upto or (not calm and pending <= FOLD_BEHIND_MAX):
            return
        while await self._fold_step(upto):
            if not calm or time.monotonic() > now + FOLD_TURN_S:
                return
            # Half of the time is left to others who want to write.
            await asyncio.sleep(FOLD_STEP_S)

    async def _cursors(self) -> dict[str, Cursor]:
        """Where the store stands."""
        cursors = {name: progress.cursor for name, progress in (await self._store.cursors()).items()}
        for name, cursor in cursors.items():
            self.seen(name, cursor.epoch)
            self._slots.raise_floor(name, cursor)
        return cursors

    def seen(self, slot: str, epoch: int) -> None:
        """The store has this epoch of a slot. When it was raised, a recovery has been, here or elsewhere."""
        known = self._epochs.get(slot, epoch)
        self._epochs[slot] = max(known, epoch)
        if epoch > known:
            self.forget(slot)

    async def _fold_step(self, upto: Mapping[str, int]) -> int:
        """Folds as much as may hold the writer; how many transitions are left."""
        began = time.monotonic()
        folded = await self._store.fold(upto, self._step)
        took = time.monotonic() - began
        for alarm in folded.alarms:
            self._alarm(alarm)
        if took > FOLD_STEP_S:
            self._step = max(FOLD_STEP_MIN, self._step // 2)
        elif folded.left and took < FOLD_STEP_S / 2:
            self._step = min(FOLD_STEP_MAX, self._step * 2)
        return folded.left

    async def _behind(
        self, names: list[str], cursors: dict[str, Cursor], away: list[NotSent | NoReply]
    ) -> dict[str, Cursor]:
        """Where the ledgers of those slots end that have something new."""
        heads = await self._servers.scatter(
            [(name, ("HMGET", slot_keys(name).sale, "fence", "epoch", "sequence")) for name in names]
        )
        behind = {}
        for name, head in zip(names, heads, strict=True):
            if isinstance(head, (NotSent, NoReply)):
                away.append(head)
                continue
            # Absent or fenced: readiness says so, and recovery copies what there is.
            if not isinstance(head, Exception) and not head[0] and head[1]:
                try:
                    end = Cursor(int(head[1]), int(head[2]))
                except (ValueError, TypeError):
                    self._alarm(f"{name}: Redis does not tell where it stands; run `holdfast recover`")
                    continue
                if _before(cursors[name], end):
                    behind[name] = end
        return behind

    async def _stretches(
        self, behind: dict[str, Cursor], cursors: dict[str, Cursor], away: list[NotSent | NoReply]
    ) -> list[Copied]:
        """The next stretch of each of these ledgers; what has none now is not `behind` any more.

        The servers are asked at the same time, and one that hangs is asked for one of its ledgers only: copying waits
        for nobody else meanwhile.
        """
        by_server: dict[Server, list[str]] = {}
        for name in list(behind):
            try:
                by_server.setdefault(self._servers.of(name), []).append(name)
            except NotSent as error:
                del behind[name]
                away.append(error)
        found: dict[str, Copied] = {}

        async def read(server: Server, names: list[str]) -> None:
            for at, name in enumerate(names):
                try:
                    stretch = await self._stretch(server, name, behind, cursors)
                except (NotSent, NoReply) as error:
                    away.append(error)
                    for left in names[at:] if isinstance(error, NoReply) else (name,):
                        del behind[left]
                    if isinstance(error, NoReply):
                        return
                    continue
                if stretch is not None:
                    found[name] = stretch

        await asyncio.gather(*(read(server, names) for server, names in by_server.items()))
        # In the order in which every process copies them.
        return [found[name] for name in behind if name in found]

    async def _stretch(
        self, server: Server, name: str, behind: dict[str, Cursor], cursors: dict[str, Cursor]
    ) -> Copied | None:
        """As `_stretches`, of one ledger; raises NotSent and NoReply where its server does not answer."""
        after = cursors[name]
        reading = read_redis(self._servers, slot_keys(name), after, ENTRIES_STEP, copied=True)
        try:
            entries = await self._servers.in_time(server, reading)
        except Gap:
            there = (await self._cursors())[name]
            if there != after:
                cursors[name] = there
                return None  # somebody copied or recovered it meanwhile: the next turn goes on from there
            del behind[name]
            self.gaps.add(name)
            self._alarm(f"{name}: the ledger in Redis does not continue at {after.floor}; run `holdfast recover`")
            return None
        except (ResponseError, LookupError, ValueError):
            # Damaged from outside. The others are copied all the same.
            del behind[name]
            self._alarm(f"{name}: its ledger in Redis cannot be read; run `holdfast recover`")
            return None
        if not entries:
            del behind[name]  # Redis was emptied or fenced a moment ago
            return None
        cursors[name] = Cursor(entries[-1].epoch, entries[-1].sequence)
        return Copied(name, after, entries)

    async def _copy(self, stretches: list[Copied]) -> int:
        if not stretches:
            return 0
        await self._store.append(stretches)
        total = 0
        copied = {}
        for stretch in stretches:
            last = stretch.entries[-1]
            cursor = copied[stretch.slot] = Cursor(last.epoch, last.sequence)
            total += last.sequence - stretch.after.sequence
            self._meters.copied += last.sequence - stretch.after.sequence
            self._slots.raise_floor(stretch.slot, cursor)
        await self._trim(copied)
        return total

    async def _trim(self, copied: Mapping[str, Cursor]) -> None:
        """Trims what live readers have had time for. Never at or above the cursor: only copied entries go."""
        now = asyncio.get_running_loop().time()
        commands: list[Command] = []
        for name, cursor in copied.items():
            past = self._past.setdefault(name, deque())
            past.append((now, cursor))
            keep = Cursor(cursor.epoch, max(0, cursor.sequence - KEEP_TRANSITIONS))
            while past and past[0][0] <= now - KEEP_MS / 1000:
                keep = max(keep, past.popleft()[1], key=lambda c: (c.epoch, c.sequence))
            if keep.sequence:
                commands.append((name, ("XTRIM", slot_keys(name).ledger, "MINID", "~", keep.floor)))
        try:
            replies = await self._servers.scatter(commands)
        except (NotSent, NoReply) as error:
            replies = [error] * len(commands)
        for (name, _), reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                log.info("the ledger of %s was not trimmed; the next snapshot will", name)

    def forget(self, slot: str) -> None:
        """Recovery has looked into this slot: its alarms are answered."""
        self.alarms = [alarm for alarm in self.alarms if not alarm.startswith((f"{slot}.", f"{slot}:"))]
        self.gaps.discard(slot)

    def _alarm(self, text: str) -> None:
        if text not in self.alarms:
            self.alarms.append(text)
            log.critical("ALARM %s", text)


def _before(one: Cursor, other: Cursor) -> bool:
    return (one.epoch, one.sequence) < (other.epoch, other.sequence)


def _unfolded(progress: Mapping[str, Progress]) -> dict[str, int]:
    """Up to where each of these slots is to be folded that has something to fold."""
    return {slot: each.cursor.sequence for slot, each in progress.items() if each.folded < each.cursor.sequence}
