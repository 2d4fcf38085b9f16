"""Recovery: a slot rebuilt after Redis lost something, from the union of store and Redis.

Behind a fence that makes every script refuse: first the store is made complete (whatever only Redis knows is appended
to the stored ledger, under a raised epoch), then Redis is emptied and filled from the store alone, and one script sets
the counters and lifts the fence. Killed at any point it leaves the fence standing, and running it again starts over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from holdfast.engine.connection import Server
from holdfast.engine.feed import Gap, read_redis
from holdfast.engine.identity import random_id
from holdfast.engine.keys import SlotKeys, slot_keys
from holdfast.engine.leases import Leases
from holdfast.engine.limits import BATCH_MAX
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import LETTER_OF, SALE_LINE, Definition, Entry, Record
from holdfast.engine.scripts import Refused, Scripts
from holdfast.engine.slots import Slots
from holdfast.engine.store import Copied, Cursor, Store, StoredSale, TicketQuery
from holdfast.engine.values import Status

log = logging.getLogger("holdfast.recovery")

#: Tickets read from the store, or scanned from Redis, and transitions folded, at a time.
STEP = 5_000

#: Ids that `lua/includes/buyers.lua` keeps per buyer.
BUYER_TICKETS_MAX = 512


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
    oversold: skus of which more was sold than there is; their sale stays fenced.
    """

    slot: str
    redis: str
    store: str
    tickets: int = 0
    held: int = 0
    purchased: int = 0
    appended: int = 0
    conflicts: tuple[str, ...] = ()
    oversold: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{self.slot}: Redis stood at {self.redis}, the store at {self.store}; {self.tickets} tickets put back, "
            f"{self.held} units held, {self.purchased} purchased, {self.appended} transitions that only Redis knew"
        )
        for conflict in self.conflicts:
            text += f"\n  conflict: {conflict}"
        for sku in self.oversold:
            text += f"\n  OVERSOLD: {sku}; the sale stays closed behind its fence"
        return text


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What recovery did; `clean` when nothing contradicts anything."""

    slots: tuple[SlotReport, ...]

    @property
    def clean(self) -> bool:
        return not any(report.conflicts or report.oversold for report in self.slots)


@dataclass
class _Tally:
    """What the tickets of a slot add up to."""

    counts: list[list[int]]
    buyers: dict[str, _Buyer] = field(default_factory=dict)
    tickets: int = 0
    dropped: bool = False


@dataclass
class _Buyer:
    units: dict[int, int] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)

    def packed(self) -> str:
        counts = ",".join(f"{item}:{units}" for item, units in sorted(self.units.items()) if units)
        return f"{counts or '-'} {''.join(self.ids[-BUYER_TICKETS_MAX:])}"


class Recovery:
    """Rebuilds slots.

    Parameters
    ----------
    retention_ms: tickets that ended longer ago stay in the store alone.
    """

    def __init__(
        self, server: Server, scripts: Scripts, store: Store, slots: Slots, leases: Leases, retention_ms: int
    ) -> None:
        self._server = server
        self._scripts = scripts
        self._store = store
        self._slots = slots
        self._leases = leases
        self._retention_ms = retention_ms

    async def unready(self, sales: Sequence[StoredSale]) -> dict[str, str]:
        """The slots among these that cannot sell as they are, each with the reason."""
        heads = await self._server.pipeline(
            [("HMGET", slot_keys(sale.id).sale, "fence", "epoch", "sequence") for sale in sales]
        )
        reasons: dict[str, str] = {}
        for sale, head in zip(sales, heads, strict=True):
            if isinstance(head, Exception):
                reasons[sale.id] = f"'{sale.id}': Redis answers {type(head).__name__}"
            elif head[0]:
                reasons[sale.id] = f"'{sale.id}' is being rebuilt, or was when its recovery was interrupted"
            elif not head[1] and sale.definition is not None:
                reasons[sale.id] = f"'{sale.id}' is not in Redis, and the store has it at {sale.cursor.floor}"
            elif head[1] and (int(head[1]), int(head[2])) < (sale.cursor.epoch, sale.cursor.sequence):
                reasons[sale.id] = (
                    f"'{sale.id}' stands at {int(head[1])}-{int(head[2])} in Redis, the store at {sale.cursor.floor}"
                )
        return reasons

    async def recover(self, sale: StoredSale) -> SlotReport:
        """Rebuilds the slot of one sale.

        Raises
        ------
        Refused: another recovery took the fence over; it will finish, or be run again.
        StoreError, CursorMoved, NotSent, NoReply: a side did not answer; the fence stands, run it again.
        """
        keys, token = slot_keys(sale.id), random_id()
        epoch, sequence = await self._scripts.fence(keys, token)
        stood, stored = f"{epoch}-{sequence}", sale.cursor.floor
        appended = await self._drain(sale.id, keys, Cursor(epoch, sequence))
        # Each ticket of Redis is compared with the store's, which would look through all that is not folded.
        conflicts = await self._fold(sale.id)
        corrections, differ = await self._only_in_redis(sale.id, keys)
        sale = await self._again(sale.id)
        definition = await self._newest(sale, keys)
        await self._still_ours(keys, token)
        cursor = await self._raise_epoch(sale, definition, epoch, corrections)
        conflicts += await self._fold(sale.id) + differ
        await self._scripts.clear(keys, token)
        tally = await self._fill(sale.id, keys, token, definition)
        oversold = tuple(
            item.sku for item, (left, _, _) in zip(definition.items, tally.counts, strict=True) if left < 0
        )
        report = SlotReport(
            slot=sale.id,
            redis=stood,
            store=stored,
            tickets=tally.tickets,
            held=sum(held for _, held, _ in tally.counts),
            purchased=sum(sold for _, _, sold in tally.counts),
            appended=appended + len(corrections),
            conflicts=tuple(conflicts),
            oversold=oversold,
        )
        if not oversold:
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
            )
            if slot := self._slots.known(sale.id):
                slot.floor, slot.definition = cursor, definition
        log.info("recovered %s", report)
        if (await self._again(sale.id)).cursor.epoch > cursor.epoch:
            # A recovery that had lost its fence to us raised the epoch after we had read it: Redis is behind again.
            return await self.recover(await self._again(sale.id))
        return report

    async def _newest(self, sale: StoredSale, keys: SlotKeys) -> Definition:
        """The newest definition that either side has: tickets may name items of an amendment that was not copied."""
        text = await self._server.call("HGET", keys.sale, "definition")
        there = Definition.from_json(text) if text else None
        known = sale.known
        return there if there is not None and there.origin == known.origin and there.version > known.version else known

    async def _still_ours(self, keys: SlotKeys, token: str) -> None:
        fence = await self._server.call("HGET", keys.sale, "fence")
        if fence != token.encode():
            raise Refused(Outcome.FENCED)

    async def _again(self, id: str) -> StoredSale:
        sale = await self._store.sale(id)
        assert sale is not None  # sales are never removed from the registry
        return sale

    async def _drain(self, slot: str, keys: SlotKeys, head: Cursor) -> int:
        """Copies what Redis' ledger has beyond the store, where it goes on from it; how many transitions."""
        appended = 0
        while True:
            sale = await self._again(slot)
            if (head.epoch, head.sequence) <= (sale.cursor.epoch, sale.cursor.sequence):
                return appended
            try:
                entries = await read_redis(self._server, keys, sale.cursor)
            except Gap:
                return appended  # what lies beyond is read from the tickets themselves
            if not entries:
                return appended
            await self._store.append([Copied(slot, sale.cursor, entries)])
            appended += entries[-1].sequence - sale.cursor.sequence

    async def _only_in_redis(self, slot: str, keys: SlotKeys) -> tuple[list[tuple[int, str]], list[str]]:
        """Ledger lines, with times, for what the tickets in Redis say and the store does not; and the conflicts."""
        lines: list[tuple[int, str]] = []
        conflicts: list[str] = []
        async for record in self._scan(keys):
            known = await self._store.ticket(slot, record.id)
            letter = LETTER_OF[record.status]
            if known is None:
                born = f"r {record.lines} {record.expires_at} {record.id}{record.buyer}"
                lines.append((record.reserved_at, born))
            if record.status is Status.RESERVED or (known is not None and known.status is record.status):
                continue
            if known is not None and known.status is not Status.RESERVED:
                conflicts.append(f"{slot}.{record.id} is {known.status} in the store and {record.status} in Redis")
                continue
            last = record.expires_at if record.status is Status.EXPIRED else record.reference
            ending = f"{letter} {record.id} {record.lines} {record.operation} {last}"
            lines.append((record.ended_at or record.expires_at, ending))
        return lines, conflicts

    async def _scan(self, keys: SlotKeys) -> AsyncIterator[Record]:
        at = b"0"
        while True:
            at, fields = await self._server.call("HSCAN", keys.tickets, at, "COUNT", STEP)
            for id, packed in zip(fields[::2], fields[1::2], strict=True):
                yield Record.parse(id.decode(), packed.decode())
            if at in (b"0", "0", 0):
                return

    async def _raise_epoch(
        self, sale: StoredSale, definition: Definition, epoch: int, corrections: list[tuple[int, str]]
    ) -> Cursor:
        """Commits the new epoch to the store, before Redis sells in it: an older Redis that comes back is behind it."""
        raised = max(epoch, sale.cursor.epoch) + 1
        sequence = sale.cursor.sequence
        (seconds, _) = await self._server.call("TIME")
        lines = [*corrections, (int(seconds) * 1000, f"{SALE_LINE} {definition.json()}")]
        entries = [Entry(raised, sequence + at, time, line) for at, (time, line) in enumerate(lines, start=1)]
        await self._store.append([Copied(sale.id, sale.cursor, entries)])
        return Cursor(raised, entries[-1].sequence)

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

    async def _fill(self, slot: str, keys: SlotKeys, token: str, definition: Definition) -> _Tally:
        """Puts tickets, buyers and deadlines of the store into Redis, and adds up the counters."""
        (seconds, _) = await self._server.call("TIME")
        horizon = int(seconds) * 1000 - self._retention_ms
        tally = _Tally([[item.capacity, 0, 0] for item in definition.items])
        deadlines: dict[int, list[str]] = {}
        async for records in self._stored_tickets(slot):
            values: list[str] = []
            for record in records:
                _add(tally, record)
                if record.status is not Status.RESERVED and (record.ended_at or 0) <= horizon:
                    tally.dropped = True
                    continue
                values += (record.id, record.pack())
                tally.tickets += 1
                tally.buyers.setdefault(record.buyer, _Buyer()).ids.append(record.id)
                if record.status is Status.RESERVED:
                    deadlines.setdefault(record.expires_at, []).append(record.id)
            await self._put(keys, token, "tickets", values)
        await self._put(
            keys, token, "buyers", [text for name, buyer in tally.buyers.items() for text in (name, buyer.packed())]
        )
        values = []
        for deadline, ids in deadlines.items():
            for at in range(0, len(ids), BATCH_MAX):
                values += (str(deadline), "".join(ids[at : at + BATCH_MAX]))
                self._leases.set(f"{keys.lease_prefix}{slot}.", ids[at : at + BATCH_MAX], deadline)
        await self._put(keys, token, "deadlines", values)
        return tally

    async def _put(self, keys: SlotKeys, token: str, part: str, values: list[str]) -> None:
        for at in range(0, len(values), 2 * BATCH_MAX):
            await self._scripts.restore(keys, token, part, values[at : at + 2 * BATCH_MAX])
            await asyncio.sleep(0)

    async def _stored_tickets(self, slot: str) -> AsyncIterator[list[Record]]:
        after = (0, "")
        while records := await self._store.tickets(TicketQuery(slot, STEP, after=after)):
            yield records
            after = (records[-1].reserved_at, records[-1].id)


def _add(tally: _Tally, record: Record) -> None:
    if record.status not in (Status.RESERVED, Status.PURCHASED):
        return
    buyer = tally.buyers.setdefault(record.buyer, _Buyer())
    for part in record.lines.split(","):
        item, quantity = (int(number) for number in part.split(":"))
        tally.counts[item - 1][0] -= quantity
        tally.counts[item - 1][1 if record.status is Status.RESERVED else 2] += quantity
        buyer.units[item] = buyer.units.get(item, 0) + quantity
