"""Recovery: a slot rebuilt after Redis lost something, from the union of store and Redis.

Behind a fence that makes every script refuse: first the store is made complete (whatever only Redis knows is appended
to the stored ledger, under a raised epoch), then Redis is emptied and filled from the store alone, and one script sets
the counters and lifts the fence. Killed at any point it leaves the fence standing, and running it again starts over.

What it holds in memory does not grow with the sale: `STEP` tickets of the store, `SCAN_STEP` of Redis.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from redis.exceptions import RedisError, ResponseError

from holdfast.engine.feed import Gap, read_redis
from holdfast.engine.identity import random_id
from holdfast.engine.keys import SlotKeys, slot_keys
from holdfast.engine.leases import Leases
from holdfast.engine.limits import BATCH_MAX
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import (
    ID_CHARS,
    LETTER_OF,
    NO_LINES,
    SALE_LINE,
    TRANSFER_LINE,
    Definition,
    Entry,
    Record,
    Transfers,
    shard_of,
)
from holdfast.engine.scripts import Fenced, Refused, Restored, Scripts
from holdfast.engine.servers import Servers, milliseconds
from holdfast.engine.slots import Slots
from holdfast.engine.store import Copied, Cursor, CursorMoved, Store, StoredSale, TicketQuery
from holdfast.engine.values import Status

log = logging.getLogger("holdfast.recovery")

#: Tickets read from the store, and transitions folded, at a time.
STEP = 5_000

#: Tickets scanned from Redis at a time: half a millisecond for which others wait.
SCAN_STEP = 1_000

#: Ids that `lua/includes/buyers.lua` keeps per buyer.
BUYER_TICKETS_MAX = 512

#: How often it starts over because somebody else wrote to the store while the fence was ours: a snapshot that was under
#: way can do so once, a recovery that lost its fence to us once more.
ROUNDS_MAX = 10

#: Sentences of one kind in a report. A hash full of damage must not become a report of a gigabyte.
LISTED_MAX = 100

#: What a fence begins with that stays because more was sold than there is; the skus follow.
OVERSOLD = "oversold:"

_ID = re.compile(rf"[A-Za-z0-9_-]{{{ID_CHARS}}}")
_LINES = re.compile(r"[1-9]\d{0,8}:[1-9]\d{0,14}(,[1-9]\d{0,8}:[1-9]\d{0,14})*")


@dataclass(frozen=True, slots=True)
class SlotReport:
    """What recovery did to one slot.

    Parameters
    ----------
    redis, store: where each stood before, `EPOCH-SEQUENCE`; Redis without the sale stands at 0-0.
    tickets: put back into Redis. held, purchased: units that count as such now.
    appended: transitions that only Redis knew, now in the store as well.
    conflicts: tickets with two different endings, in the ledger or between the two sides, as sentences; what the store
        had was kept.
    damaged: what lay in Redis and could not be read, as sentences.
    oversold: skus of which more was sold than there is; their sale stays fenced.
    accepted: skus whose capacity was raised to what is held and sold, since the caller said so.
    last_known_at: when the last transition was that either side knows; None when there is none.
    fenced_at: when the sale was closed for this recovery. Both are Unix milliseconds of Redis' clock.
    missing: transitions that happened and are lost; None when nothing tells.
    started_at: Redis may have lost its last moments then, at its own start, without leaving a trace; Unix
        milliseconds. None when it has run since before the last known transition.
    resumed: a recovery before this one was interrupted: it closed the sale, and what it found is not known here.
    """

    slot: str
    redis: str
    store: str
    tickets: int = 0
    held: int = 0
    purchased: int = 0
    appended: int = 0
    conflicts: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    oversold: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    last_known_at: int | None = None
    fenced_at: int = 0
    missing: int | None = None
    started_at: int | None = None
    resumed: bool = False

    @property
    def loss(self) -> str:
        """What was lost, from when to when, as far as it can be known."""
        known = f"the last transition that is known is of {_instant(self.last_known_at)}"
        if self.last_known_at is None:
            known = "no transition is known"
        if self.resumed:
            return (
                f"an earlier recovery was interrupted and had closed the sale; {known}, and what came between that and "
                "the loss is gone"
            )
        if self.missing is None:
            return (
                f"{known}; what happened between that and {_instant(self.fenced_at)}, when the sale was closed, is "
                "lost, and nothing tells how much that was"
            )
        if self.missing:
            return (
                f"{self.missing} transitions are lost; {known}, and the sale was closed at {_instant(self.fenced_at)}"
            )
        if self.started_at is not None:
            return (
                f"nothing that Redis had is lost; {known}. Redis was started, or took over from another, by "
                f"{_instant(self.started_at)}: what it lost by that would have left no trace"
            )
        return f"nothing is lost; {known}"

    def __str__(self) -> str:
        text = (
            f"{self.slot}: Redis stood at {self.redis}, the store at {self.store}; {self.tickets} tickets put back, "
            f"{self.held} units held, {self.purchased} purchased, {self.appended} transitions that only Redis knew"
            f"\n  {self.loss}"
        )
        for conflict in self.conflicts:
            text += f"\n  conflict: {conflict}"
        for damage in self.damaged:
            text += f"\n  damaged: {damage}"
        for sku in self.accepted:
            text += f"\n  oversold and accepted: {sku}; its capacity is now what is held and sold"
        for sku in self.oversold:
            text += f"\n  OVERSOLD: {sku}; the sale stays closed. {_way_out(self.slot)}"
        return text


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What recovery did; `clean` when nothing contradicts anything and all could be read."""

    slots: tuple[SlotReport, ...]

    @property
    def clean(self) -> bool:
        return not any(report.conflicts or report.damaged or report.oversold for report in self.slots)


@dataclass
class _Found:
    """What was found out about a slot, over all rounds."""

    appended: int = 0
    conflicts: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    #: Of the last transition known, Unix milliseconds.
    last_known_at: int = 0
    missing: int | None = None
    #: The loss has been looked at, in the first round that got so far; later ones find their own writes.
    looked: bool = False


@dataclass
class _Tally:
    """What the tickets of a slot add up to.

    Parameters
    ----------
    counts: available, reserved, purchased of each item; all available until `count` was called.
    """

    counts: list[list[int]]
    tickets: int = 0
    dropped: bool = False
    #: Tickets by lines and status: most of a sale have the same few.
    kinds: Counter[tuple[str, Status]] = field(default_factory=Counter)

    def count(self) -> None:
        """Takes what is held and sold from what is available."""
        for (lines, status), tickets in self.kinds.items():
            for part in lines.split(","):
                item, quantity = (int(number) for number in part.split(":"))
                self.counts[item - 1][0] -= quantity * tickets
                self.counts[item - 1][1 if status is Status.RESERVED else 2] += quantity * tickets


class _Overtaken(Exception):
    """The store has a newer epoch than the one that was just opened in Redis."""


class Recovery:
    """Rebuilds slots.

    Parameters
    ----------
    retention_ms: tickets that ended longer ago stay in the store alone.
    """

    def __init__(
        self, servers: Servers, scripts: Scripts, store: Store, slots: Slots, leases: Leases, retention_ms: int
    ) -> None:
        self._servers = servers
        self._scripts = scripts
        self._store = store
        self._slots = slots
        self._leases = leases
        self._retention_ms = retention_ms
        #: Has the first shard and the store take up a raised capacity, before another shard opens with it.
        self.raise_elsewhere: Callable[[Definition], Awaitable[Definition]] | None = None

    async def recover(self, sale: StoredSale, *, accept_oversold: bool = False) -> SlotReport:
        """Rebuilds the slot of one sale.

        Parameters
        ----------
        accept_oversold: raise the capacity of an item to what is held and sold, where that is more than there is.

        Raises
        ------
        Refused: another recovery took the fence over; it will finish, or be run again.
        StoreError, CursorMoved, NotSent, NoReply: a side did not answer; the fence stands, run it again.
        """
        keys, token, found = slot_keys(sale.slot), random_id(), _Found()
        fenced = await self._scripts.fence(keys, token)
        for _ in range(ROUNDS_MAX):
            try:
                report = await self._rebuild(sale, keys, token, fenced, found, accept_oversold)
            except CursorMoved:
                # A snapshot that had read before the fence, or a recovery that lost it to us, wrote to the store.
                await self._still_ours(keys, token)
                continue
            except _Overtaken:
                return await self.recover(await self._again(sale.slot), accept_oversold=accept_oversold)
            log.info("recovered %s", report)
            return report
        raise CursorMoved(sale.slot)

    async def _rebuild(
        self, stood: StoredSale, keys: SlotKeys, token: str, fenced: Fenced, found: _Found, accept_oversold: bool
    ) -> SlotReport:
        slot = stood.slot
        found.appended += await self._drain(slot, keys, found)
        found.conflicts += await self._fold(slot)  # each ticket of Redis is compared with the folded ones
        sale = await self._again(slot)
        drained = sale.cursor
        definition = await self._newest(sale, keys, found)
        transfers = await self._newest_transfers(sale, keys, fenced, found)
        append = _Appending(self, sale, keys, token, max(fenced.epoch, sale.cursor.epoch, 1) + 1)
        amended = max(0, definition.version - sale.known.version)
        told = [(fenced.now, _sale_line(definition))] if amended else []
        if transfers.text != (sale.transfers or ""):
            told.append((fenced.now, _transfer_line(transfers)))
            amended += 1
        if told:
            # First, since tickets may name its items, and be sold from what another shard has sent.
            await append.lines(told)
        only_there = await self._take_from_redis(keys, definition, append, found)
        found.appended += only_there
        found.last_known_at = max(found.last_known_at, await self._last_at(slot, drained))
        if not found.looked:
            found.missing = self._missing(keys, fenced, drained, only_there + amended)
        await append.lines([(fenced.now, _sale_line(definition))])
        found.looked = True
        found.conflicts += append.conflicts + await self._fold(slot)

        tally = await self._filled(slot, keys, token, definition, transfers)
        oversold = _oversold(definition, tally)
        if oversold and await self._expire_due(slot, append):
            await append.lines([(fenced.now, _sale_line(definition))])
            await self._fold(slot)
            tally = await self._filled(slot, keys, token, definition, transfers)
            oversold = _oversold(definition, tally)
        accepted: tuple[str, ...] = ()
        if oversold and accept_oversold and definition.version < sale.known.version:
            # The capacity to raise is the one that the sale has by now.
            definition = sale.known
            await append.lines([(fenced.now, _sale_line(definition))])
            await self._fold(slot)
            tally = await self._filled(slot, keys, token, definition, transfers)
            oversold = _oversold(definition, tally)
        if oversold and accept_oversold:
            raised = _raised(definition, slot, tally)
            if self.raise_elsewhere is not None and shard_of(slot) > 1:
                raised = await self.raise_elsewhere(raised)
            definition, accepted, oversold = raised, oversold, ()
            await append.lines([(fenced.now, _sale_line(definition))])
            await self._fold(slot)
        report = SlotReport(
            slot=slot,
            redis=f"{fenced.epoch}-{fenced.sequence}",
            store=stood.cursor.floor,
            tickets=tally.tickets,
            held=sum(held for _, held, _ in tally.counts),
            purchased=sum(sold for _, _, sold in tally.counts),
            appended=found.appended,
            conflicts=_listed(found.conflicts),
            damaged=_listed(found.damaged),
            oversold=oversold,
            accepted=accepted,
            last_known_at=found.last_known_at or None,
            fenced_at=fenced.now,
            missing=found.missing,
            started_at=await self._started_since(slot, found.last_known_at),
            resumed=fenced.resumed,
        )
        if oversold:
            await self._still_ours(keys, token)
            await self._scripts.fence(keys, OVERSOLD + " ".join(oversold))
        else:
            await self._open(sale, keys, token, definition, append.cursor, tally, transfers)
            if (await self._again(slot)).cursor.epoch > append.cursor.epoch:
                # A recovery that had lost its fence to us raised the epoch after we had read it: Redis is behind again.
                raise _Overtaken
        return report

    async def _open(
        self,
        sale: StoredSale,
        keys: SlotKeys,
        token: str,
        definition: Definition,
        cursor: Cursor,
        tally: _Tally,
        transfers: Transfers,
    ) -> None:
        await self._scripts.unfence(
            keys,
            token,
            str(cursor.epoch),
            str(cursor.sequence),
            definition.json(),
            definition.origin,
            str(definition.version),
            definition.rules(),
            " ".join(f"{left} {held} {sold}" for left, held, sold in tally.counts),
            "1" if tally.dropped or sale.dropped else "0",
            transfers.text,
        )
        if slot := self._slots.known(sale.slot):
            slot.floor, slot.definition = cursor, definition

    # -- the store made complete -----------------------------------------------------------------------------------

    async def _newest(self, sale: StoredSale, keys: SlotKeys, found: _Found) -> Definition:
        """The newest definition that either side has of this slot: tickets may name items of an amendment that was not
        copied. A shard to which an amendment of the sale was not brought yet has the one before, and gets it later:
        units may have to be moved first."""
        text = await self._servers.call(keys.slot, "HGET", keys.sale, "definition")
        known = sale.known if sale.known.shards is None else await self._store.amended(sale.slot) or sale.known
        if not text:
            return known
        try:
            there = Definition.from_json(text)
            there.rules(), there.fresh_counts()
        except (ValueError, TypeError, KeyError, AttributeError):
            _note(found.damaged, f"{sale.slot}: its definition in Redis cannot be read; the store's is used")
            return known
        return there if there.origin == known.origin and there.version > known.version else known

    async def _newest_transfers(self, sale: StoredSale, keys: SlotKeys, fenced: Fenced, found: _Found) -> Transfers:
        """What the shard has lent and borrowed, by the side that knows more. Redis alone may know a step that nobody
        relies on yet; it is taken up, since tickets may have been sold from what came by it."""
        known = Transfers.parse(sale.transfers)
        if fenced.epoch and (fenced.epoch, fenced.sequence) <= (sale.cursor.epoch, sale.cursor.sequence):
            return known  # Redis does not know more, whatever it says
        try:
            there = Transfers.parse(await self._servers.call(keys.slot, "HGET", keys.sale, "transfers"))
        except ValueError:
            _note(
                found.damaged,
                f"{sale.slot}: what it has lent cannot be read in Redis; the store's is used",
            )
            return known
        return there if there.steps > known.steps else known

    async def _still_ours(self, keys: SlotKeys, token: str) -> None:
        fence = await self._servers.call(keys.slot, "HGET", keys.sale, "fence")
        if fence != token.encode():
            raise Refused(Outcome.FENCED)

    async def _again(self, id: str) -> StoredSale:
        sale = await self._store.sale(id)
        assert sale is not None  # sales are never removed from the registry
        return sale

    async def _drain(self, slot: str, keys: SlotKeys, found: _Found) -> int:
        """Copies what Redis' ledger has beyond the store, where it goes on from it; how many transitions."""
        appended = 0
        while True:
            sale = await self._again(slot)
            try:
                raw = await read_redis(self._servers, keys, sale.cursor, copied=True)
            except Gap:
                return appended  # what lies beyond is read from the tickets themselves
            except ResponseError:
                _note(found.damaged, f"{slot}: its ledger in Redis is none")
                return appended
            except (ValueError, KeyError, IndexError):
                _note(
                    found.damaged,
                    f"{slot}: its ledger or its sequence in Redis cannot be read beyond {sale.cursor.floor}",
                )
                return appended
            entries = _sound(raw, sale.cursor)
            if len(entries) < len(raw):
                _note(found.damaged, f"{slot}: its ledger in Redis breaks off after {_end(entries, sale.cursor)}")
            if not entries:
                return appended
            await self._store.append([Copied(slot, sale.cursor, entries)])
            appended += entries[-1].sequence - sale.cursor.sequence
            found.last_known_at = max(found.last_known_at, *(entry.at for entry in entries))
            if len(entries) < len(raw):
                return appended

    async def _take_from_redis(self, keys: SlotKeys, definition: Definition, append: _Appending, found: _Found) -> int:
        """Appends what the tickets in Redis say and the store does not; how many transitions."""
        taken = 0
        async for fields in self._scan(keys, append.slot, found):
            records: dict[str, Record] = {}
            for raw_id, packed in fields.items():
                record = _readable(raw_id, packed, len(definition.items))
                if record is not None:
                    records[record.id] = record
            known = await self._store.records(append.slot, list(records))
            lines: list[tuple[int, str]] = []
            for record in records.values():
                lines += self._differing(append.slot, record, known.get(record.id), found)
            if len(records) < len(fields):
                await self._note_damaged(append.slot, fields, records, found)
            if lines:
                found.last_known_at = max(found.last_known_at, *(at for at, _ in lines))
                await append.lines(lines)
                append.conflicts += await self._fold(append.slot)  # a scan may meet a ticket twice
                taken += len(lines)
        return taken

    @staticmethod
    def _differing(slot: str, record: Record, known: Record | None, found: _Found) -> list[tuple[int, str]]:
        """Ledger lines, with times, for what this record of Redis says and the store's does not."""
        lines: list[tuple[int, str]] = []
        if known is None:
            lines.append((record.reserved_at, f"r {record.lines} {record.expires_at} {record.id}{record.buyer}"))
        elif (known.lines, known.buyer, known.expires_at) != (record.lines, record.buyer, record.expires_at):
            _note(found.conflicts, f"{slot}.{record.id} is of another buyer, units or deadline in Redis")
            return lines
        if record.status is Status.RESERVED or (known is not None and known.status is record.status):
            return lines
        if known is not None and known.status is not Status.RESERVED:
            _note(found.conflicts, f"{slot}.{record.id} is {known.status} in the store and {record.status} in Redis")
            return lines
        last = record.expires_at if record.status is Status.EXPIRED else record.reference
        ending = f"{LETTER_OF[record.status]} {record.id} {record.lines} {record.operation} {last}"
        lines.append((record.ended_at or record.expires_at, ending))
        return lines

    async def _note_damaged(
        self, slot: str, fields: dict[bytes, bytes], records: dict[str, Record], found: _Found
    ) -> None:
        names = [raw.decode("ascii", "backslashreplace") for raw in fields]
        names = [name for name in names if name not in records]
        known = await self._store.records(slot, [name for name in names if _ID.fullmatch(name)])
        for name in names:
            rest = "the store's is kept" if name in known else "and the store does not know it"
            _note(found.damaged, f"{slot}.{name[:ID_CHARS]}: its record in Redis cannot be read; {rest}")

    async def _scan(self, keys: SlotKeys, slot: str, found: _Found) -> AsyncIterator[dict[bytes, bytes]]:
        at = b"0"
        # Another server's cursors would lead elsewhere: when the slot has moved, this recovery is run again.
        generation = self._servers.generation(slot)
        while True:
            try:
                scan = ("HSCAN", keys.tickets, at, "COUNT", SCAN_STEP)
                at, fields = await self._servers.call(slot, *scan, generation=generation)
            except ResponseError:
                _note(found.damaged, f"{slot}: its tickets in Redis are none")
                return
            yield dict(zip(fields[::2], fields[1::2], strict=True))
            if at in (b"0", "0", 0):
                return

    def _missing(self, keys: SlotKeys, fenced: Fenced, drained: Cursor, made_up: int) -> int | None:
        """Transitions that happened and that neither the ledgers nor the tickets tell; None when nothing tells.

        Parameters
        ----------
        drained: how far both ledgers together reach. made_up: transitions beyond that which were found otherwise.
        """
        seen = self._scripts.seen.get(keys.sale, (0, 0))
        heads = [head for head in ((fenced.epoch, fenced.sequence), seen) if head[0] == drained.epoch]
        furthest = max((sequence for _, sequence in heads), default=0)
        if furthest > drained.sequence:
            return max(0, furthest - drained.sequence - made_up)
        # Redis stands where both ledgers end: it has lost nothing of what it had.
        return 0 if (fenced.epoch, fenced.sequence) == (drained.epoch, drained.sequence) else None

    async def _last_at(self, slot: str, cursor: Cursor) -> int:
        """When the transition at this cursor was, Unix milliseconds; 0 when there is none."""
        entries = (
            await self._store.ledger(slot, Cursor(cursor.epoch, cursor.sequence - 1), 1) if cursor.sequence else []
        )
        return entries[0].at if entries else 0

    async def _started_since(self, slot: str, last_known_at: int) -> int | None:
        """When Redis was started, or last became a primary, if that may be after the last known transition."""
        try:
            info, (seconds, _) = await self._servers.of(slot).pipeline([("INFO",), ("TIME",)])
            fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
            # Whole seconds, rounded down: it was started by then.
            started_at = (int(seconds) + 1 - int(fields["uptime_in_seconds"])) * 1000
            replica_once = fields.get("master_replid2", "").strip("0") != ""
        except (RedisError, AttributeError, TypeError, ValueError, KeyError):
            return int(datetime.now(UTC).timestamp() * 1000)  # it does not tell: any time until now
        if replica_once:
            return int(seconds) * 1000
        return started_at if started_at > last_known_at else None

    async def _expire_due(self, slot: str, append: _Appending) -> bool:
        """Ends in the ledger the holds whose deadline has passed; whether there were any.

        Otherwise whoever opens the slot sweeps them. Done here only when their units are what is missing.
        """
        now, any_due = milliseconds(await self._servers.of(slot).call("TIME")), False
        async for records in self._stored_tickets(slot, Status.RESERVED):
            lines = [
                (now, f"x {record.id} {record.lines} - {record.expires_at}")
                for record in records
                if record.expires_at <= now
            ]
            if lines:
                await append.lines(lines)
                any_due = True
        return any_due

    async def _fold(self, slot: str) -> list[str]:
        """Brings the tickets in the store up to date with all of its ledger; what contradicted what in it."""
        upto = {slot: (await self._again(slot)).cursor.sequence}
        alarms: list[str] = []
        left = 1
        while left:
            folded = await self._store.fold(upto, STEP)
            left = folded.left
            alarms += folded.alarms
        for alarm in alarms:
            log.critical("ALARM %s", alarm)
        return alarms

    # -- Redis filled from it --------------------------------------------------------------------------------------

    async def _filled(
        self, slot: str, keys: SlotKeys, token: str, definition: Definition, transfers: Transfers
    ) -> _Tally:
        """Empties Redis, puts tickets, buyers and deadlines of the store into it, and adds up the counters."""
        await self._scripts.clear(keys, token)
        horizon = milliseconds(await self._servers.of(slot).call("TIME")) - self._retention_ms
        share = definition.share(slot)
        tally = _Tally([[units - transfers.lent_of(at), 0, 0] for at, units in enumerate(share)])
        # One step is under way while the next is put together: Redis works on it for as long as this process does.
        under_way: asyncio.Task[None] | None = None
        try:
            async for records in self._stored_tickets(slot):
                for at in range(0, len(records), BATCH_MAX):
                    tickets = _restored(records[at : at + BATCH_MAX], horizon, tally)
                    if under_way is not None:
                        await under_way
                    if tickets:
                        self._lease(keys, tickets)
                        restoring = self._scripts.restore(keys, token, len(definition.items), tickets)
                        under_way = asyncio.create_task(restoring)
                        await asyncio.sleep(0)  # now it is sent
            if under_way is not None:
                await under_way
        finally:
            if under_way is not None:
                under_way.cancel()
        tally.count()
        return tally

    async def _stored_tickets(self, slot: str, status: Status | None = None) -> AsyncIterator[list[Record]]:
        """Tickets of the store in the order of their reservation; the next ones are read while these are used."""

        def page(after: tuple[int, str]) -> asyncio.Task[list[Record]]:
            return asyncio.create_task(self._store.tickets(TicketQuery(slot, STEP, status=status, after=after)))

        task = page((0, ""))
        try:
            while records := await task:
                task = page((records[-1].reserved_at, records[-1].id))
                yield records
        finally:
            task.cancel()

    def _lease(self, keys: SlotKeys, tickets: Iterable[Restored]) -> None:
        """Gives the held ones of these their leases, which ride along with the call that restores them."""
        held: dict[int, list[str]] = {}
        for ticket in tickets:
            if ticket.deadline:
                held.setdefault(ticket.deadline, []).append(ticket.id)
        for deadline, ids in held.items():
            self._leases.set(keys, ids, deadline)


class _Appending:
    """The stored ledger of a slot as a recovery writes to it, under its raised epoch.

    The epoch is committed to the store before Redis sells in it: an older Redis that comes back is behind it.

    Attributes
    ----------
    cursor: where it has come to. conflicts: contradictions that folding found on the way.
    """

    def __init__(self, recovery: Recovery, sale: StoredSale, keys: SlotKeys, token: str, epoch: int) -> None:
        self._recovery = recovery
        self._keys = keys
        self._token = token
        self._epoch = epoch
        self.slot = sale.slot
        self.cursor = sale.cursor
        self.conflicts: list[str] = []

    async def lines(self, lines: Sequence[tuple[int, str]]) -> None:
        """Appends transitions with their times, all or none.

        Raises
        ------
        Refused: the fence is another's. CursorMoved: somebody wrote to the ledger since this began.
        """
        recovery, sequence = self._recovery, self.cursor.sequence
        # Only then: whoever took the fence over reads the store afterwards, and one of the two finds the cursor moved.
        await recovery._still_ours(self._keys, self._token)
        entries = [Entry(self._epoch, sequence + at, time, line) for at, (time, line) in enumerate(lines, start=1)]
        await recovery._store.append([Copied(self.slot, self.cursor, entries)])
        self.cursor = Cursor(self._epoch, entries[-1].sequence)


def why_unready(sale: StoredSale, head: object) -> str | None:
    """Why a slot cannot sell, given fence, epoch, sequence and counters of its hash; None when it can."""
    if not isinstance(head, list):
        return f"'{sale.slot}': Redis answers {type(head).__name__}; what lies there is no sale"
    fence, epoch, sequence, counts = head
    if fence and fence.startswith(OVERSOLD.encode()):
        skus = fence.decode().removeprefix(OVERSOLD)
        return f"'{sale.slot}' has sold more than there is of {skus}, and stays closed. {_way_out(sale.slot)}"
    if fence:
        return f"'{sale.slot}' is being rebuilt, or was when its recovery was interrupted"
    if not epoch:
        at = sale.cursor.floor
        return None if sale.definition is None else f"'{sale.slot}' is not in Redis, and the store has it at {at}"
    try:
        stands = Cursor(int(epoch), int(sequence))
        [int(count) for count in counts.split()]
    except (TypeError, ValueError, AttributeError):
        return f"'{sale.slot}' is damaged in Redis: its epoch, sequence or counters are none"
    if (stands.epoch, stands.sequence) < (sale.cursor.epoch, sale.cursor.sequence):
        return f"'{sale.slot}' stands at {stands.floor} in Redis, the store at {sale.cursor.floor}"
    return None


def _way_out(slot: str) -> str:
    return (
        f"Run `holdfast recover --sale {slot}` again when holds have run out, if those are too many, or with "
        "--accept-oversold, which raises the capacity to what is held and sold"
    )


def _sound(entries: list[Entry], after: Cursor) -> list[Entry]:
    """As many of these entries as follow on each other and can be read."""
    sequence = after.sequence
    for at, entry in enumerate(entries):
        try:
            begins = entry.first
            entry.transitions()
        except (ValueError, IndexError):
            return entries[:at]
        if begins != sequence + 1:
            return entries[:at]
        sequence = entry.sequence
    return entries


def _end(entries: Sequence[Entry], after: Cursor) -> str:
    return f"{entries[-1].epoch}-{entries[-1].sequence}" if entries else after.floor


def _readable(id: bytes, packed: bytes, items: int) -> Record | None:
    """A record of Redis, if it is one.

    Parameters
    ----------
    items: how many the sale has; a record that names another is damaged.
    """
    try:
        record = Record.parse(id.decode(), packed.decode())
    except (ValueError, KeyError, IndexError):
        return None
    names = [record.id, record.buyer]
    if record.status in (Status.PURCHASED, Status.CANCELLED):
        names.append(record.operation)
    if not all(_ID.fullmatch(name) for name in names) or not _LINES.fullmatch(record.lines):
        return None
    if any(int(part.partition(":")[0]) > items for part in record.lines.split(",")):
        return None
    # A newline would begin another line of the ledger.
    return record if record.reserved_at > 0 and record.expires_at > 0 and "\n" not in record.reference else None


def _restored(records: Iterable[Record], horizon: int, tally: _Tally) -> list[Restored]:
    """These tickets as they go back into Redis, added to the tally.

    Parameters
    ----------
    horizon: Unix milliseconds; what ended by then stays in the store alone.
    """
    tickets: list[Restored] = []
    for record in records:
        status, lines = record.status, "-"
        if status is Status.RESERVED or status is Status.PURCHASED:
            lines = record.lines
            tally.kinds[lines, status] += 1
        if status is not Status.RESERVED and (record.ended_at or 0) <= horizon:
            tally.dropped = True
            if status is Status.PURCHASED:
                tickets.append(Restored("", record.buyer, lines, ""))
            continue
        deadline = record.expires_at if status is Status.RESERVED else 0
        tickets.append(Restored(record.id, record.buyer, lines, record.pack(), deadline))
        tally.tickets += 1
    return tickets


def _sale_line(definition: Definition) -> str:
    return f"{SALE_LINE} {definition.json()}"


def _transfer_line(transfers: Transfers) -> str:
    return f"{TRANSFER_LINE} recovered 0 0 {NO_LINES} {transfers.text}"


def _oversold(definition: Definition, tally: _Tally) -> tuple[str, ...]:
    return tuple(item.sku for item, (left, _, _) in zip(definition.items, tally.counts, strict=True) if left < 0)


def _raised(definition: Definition, slot: str, tally: _Tally) -> Definition:
    """The definition with the capacity of whatever is oversold raised to what is held and sold; the counters follow.
    Of a shard the share is raised with it, and those of the others stay."""
    items, more = [], []
    for item, counts in zip(definition.items, tally.counts, strict=True):
        more.append(max(0, -counts[0]))
        counts[0] = max(0, counts[0])
        items.append(replace(item, capacity=item.capacity + more[-1]))
    raised = replace(definition, items=tuple(items), version=definition.version + 1)
    if definition.shards is None:
        return raised
    excess = dict(definition.excess or {})
    had = list(excess.get(str(shard_of(slot)), ()))
    had += [0] * (len(more) - len(had))
    excess[str(shard_of(slot))] = [units + beyond for units, beyond in zip(had, more, strict=True)]
    return replace(raised, excess=excess)


def _note(sentences: list[str], sentence: str) -> None:
    if sentence not in sentences[-1:]:
        sentences.append(sentence)


def _listed(sentences: Sequence[str]) -> tuple[str, ...]:
    more = len(sentences) - LISTED_MAX
    return (*sentences[:LISTED_MAX], f"and {more} more") if more > 0 else tuple(sentences)


def _instant(at: int | None) -> str:
    return datetime.fromtimestamp((at or 0) / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
