"""The audit: Redis' counters and buyers against the ledger, while everything goes on selling.

What the store has folded up to some sequence is carried on, transition by transition, to exactly the sequence at which
Redis was read: that one is read in the same step as the counters or the buyers. So both sides are always compared as of
one instant, and a difference is one. Nothing is written, on neither side.

What it holds in memory is a name and a short text for each buyer that has units: 0.25 KB each at the most, measured.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from redis.exceptions import ResponseError

from holdfast.engine.feed import read as read_ledger
from holdfast.engine.keys import slot_keys
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import SHARD_MARK, Definition, Entry, Record, Transfers
from holdfast.engine.scripts import Audited, Refused, Scripts
from holdfast.engine.servers import Servers
from holdfast.engine.store import Cursor, Standing, Store, StoredSale, TicketQuery, Units
from holdfast.engine.store.projection import definitions, read, transfers
from holdfast.engine.values import Status

#: Buyers that one call takes out of Redis, and tickets or buyers that one asks for by name: one millisecond there.
STEP = 300

#: Tickets looked up in the store at a time.
RECORDS_STEP = 1_000

#: Ledger entries read from the store at a time.
LEDGER_STEP = 20

#: Buyers taken up between two looks at what else there is to do: a few milliseconds.
UNITS_STEP = 5_000

#: How often a slot is looked at anew because it was recovered meanwhile.
ROUNDS_MAX = 5

#: Seconds between two of these rounds: a snapshot is taken each second.
ROUND_PAUSE_S = 0.5

#: Disagreements named for one slot; a counter that is wrong for a million buyers is told once.
FINDINGS_MAX = 100


@dataclass(frozen=True, slots=True)
class SlotAudit:
    """What an audit of one slot found.

    Parameters
    ----------
    at: `EPOCH-SEQUENCE` of the last comparison; empty when the slot could not be compared.
    buyers: how many were compared. held, purchased: units by the ledger, at `at`.
    findings: disagreements, each a sentence.
    """

    slot: str
    at: str = ""
    buyers: int = 0
    held: int = 0
    purchased: int = 0
    findings: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.findings:
            return (
                f"{self.slot}: Redis and the ledger agree at {self.at}: {self.held} units held, {self.purchased} "
                f"purchased, {self.buyers} buyers compared"
            )
        return "\n".join(self.findings)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found; `clean` when nothing disagrees."""

    slots: tuple[SlotAudit, ...]

    @property
    def clean(self) -> bool:
        return not any(slot.findings for slot in self.slots)

    def __str__(self) -> str:
        return "\n".join(map(str, self.slots))


class _Torn(Exception):
    """The ledger does not lead to where Redis stands; the text says where it breaks off."""


class _Recovered(Exception):
    """The slot was recovered while it was looked at."""


# The arithmetic of a replay -------------------------------------------------------------------------------------------


class Tally:
    """What transitions add up to: units held and sold of each item, and what each buyer has of both together.

    Attributes
    ----------
    held, sold: units by item, from the first. buyers: packed lines by buyer, none for who has nothing.
    """

    def __init__(self, items: int) -> None:
        self.held = [0] * items
        self.sold = [0] * items
        self.buyers: dict[str, str] = {}

    def grow(self, items: int) -> None:
        """The sale has so many items now."""
        more = [0] * (items - len(self.held))
        self.held += more
        self.sold += more

    def add(self, units: Units) -> None:
        """Tickets of one buyer."""
        times = units.tickets
        self._count(self.held if units.status is Status.RESERVED else self.sold, units.lines, times)
        known = self.buyers.get(units.buyer)
        if known is None and times == 1:
            self.buyers[units.buyer] = units.lines
        else:
            self._give(units.buyer, units.lines, times)

    def begin(self, buyer: str, lines: str) -> None:
        """A reservation."""
        self._count(self.held, lines, 1)
        self._give(buyer, lines, 1)

    def end(self, buyer: str, lines: str, status: Status) -> None:
        """The end of a reservation."""
        self._count(self.held, lines, -1)
        if status is Status.PURCHASED:
            self._count(self.sold, lines, 1)
        else:
            self._give(buyer, lines, -1)

    @staticmethod
    def _count(counts: list[int], lines: str, times: int) -> None:
        for item, quantity in _units(lines):
            counts[item - 1] += times * quantity

    def _give(self, buyer: str, lines: str, times: int) -> None:
        left = _sum(self.buyers.get(buyer, ""), lines, times)
        if left:
            self.buyers[buyer] = left
        else:
            self.buyers.pop(buyer, None)


@lru_cache(maxsize=4096)
def _units(lines: str) -> tuple[tuple[int, int], ...]:
    """Packed lines as item numbers and quantities."""
    return tuple((int(item), int(units)) for item, _, units in (part.partition(":") for part in lines.split(",")))


@lru_cache(maxsize=4096)
def _sum(known: str, lines: str, times: int) -> str:
    """Packed lines, and others so many times on top; an item of which nothing is left is left out."""
    counts = dict(_units(known)) if known else {}
    for item, quantity in _units(lines):
        counts[item] = counts.get(item, 0) + times * quantity
    return ",".join(f"{item}:{units}" for item, units in sorted(counts.items()) if units)


# A slot as the ledger tells it ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """A ticket that a transition was met of since the replay began."""

    lines: str
    buyer: str
    expires_at: int
    status: Status


@dataclass
class _Findings:
    """Sentences, each told once."""

    sentences: list[str] = field(default_factory=list)
    _about: set[object] = field(default_factory=set)
    more: int = 0

    def add(self, about: object, sentence: str) -> None:
        """A sentence, unless one was told about the same before."""
        if about in self._about:
            return
        if len(self.sentences) >= FINDINGS_MAX:
            self.more += 1
            return
        self._about.add(about)
        self.sentences.append(sentence)

    def all(self, slot: str) -> tuple[str, ...]:
        rest = (f"{slot}: {self.more} more that disagree",) if self.more else ()
        return (*self.sentences, *rest)


class _Replay:
    """A slot carried on from what the store has folded.

    Attributes
    ----------
    at: the transition up to which it has come. tickets: those that began or ended on the way, by id.
    """

    def __init__(self, servers: Servers, store: Store, sale: StoredSale, standing: Standing, out: _Findings) -> None:
        self._servers = servers
        self._store = store
        self._out = out
        self._keys = slot_keys(sale.slot)
        self._ahead: list[Entry] = []
        self.slot = sale.slot
        self.definition = definition = sale.known
        #: As of the store's cursor; no counters are compared before that.
        self.transfers = Transfers.parse(sale.transfers)
        self.at = Cursor(standing.progress.cursor.epoch, standing.progress.folded)
        self.tally = Tally(len(definition.items))
        self.tickets: dict[str, _Seen] = {}

    async def take_up(self, units: Sequence[Units]) -> None:
        """What was folded."""
        for at in range(0, len(units), UNITS_STEP):
            for each in units[at : at + UNITS_STEP]:
                self.tally.add(each)
            await asyncio.sleep(0)

    async def advance(self, sequence: int) -> None:
        """Replays the ledger up to and including this transition.

        Raises
        ------
        _Torn: it does not lead there.
        """
        try:
            while self.at.sequence < sequence:
                due = self._due(sequence) or await self._more(sequence)
                if not due:
                    raise _Torn(
                        f"{self.slot}: Redis stands at transition {sequence}, and transition {self.at.sequence + 1} is "
                        "neither in its ledger nor in the store's"
                    )
                await self._apply(due)
                self.at = Cursor(due[-1].epoch, due[-1].sequence)
        except (ValueError, KeyError, IndexError) as error:
            raise _Torn(f"{self.slot}: the ledger cannot be read after transition {self.at.sequence}") from error

    async def _more(self, sequence: int) -> list[Entry]:
        """Reads on where what was read before ends, or does not go on."""
        self._ahead = await read_ledger(self._servers, self._store, self._keys, self.at)
        if due := self._due(sequence):
            return due
        # Gone from the middle of what Redis has: the store may have copied it before.
        self._ahead = await self._store.ledger(self.slot, self.at, LEDGER_STEP)
        return self._due(sequence)

    def _due(self, sequence: int) -> list[Entry]:
        """Takes the entries that follow on each other, up to this transition."""
        due: list[Entry] = []
        last = self.at.sequence
        for entry in self._ahead:
            if entry.sequence > sequence or entry.first != last + 1:
                break
            due.append(entry)
            last = entry.sequence
        self._ahead = self._ahead[len(due) :]
        return due

    async def _apply(self, entries: Sequence[Entry]) -> None:
        for definition in definitions(entries):
            self.definition = definition
            self.tally.grow(len(definition.items))
        if SHARD_MARK in self.slot and (told := transfers(entries)) is not None:
            self.transfers = Transfers.parse(told)
        begun, ended = read(entries)
        for begin in begun:
            self.tally.begin(begin.buyer, begin.lines)
            self.tickets[begin.id] = _Seen(begin.lines, begin.buyer, begin.expires_at, Status.RESERVED)
        older = [end.id for end in ended if end.id not in self.tickets]
        known: dict[str, Record] = {}
        for at in range(0, len(older), RECORDS_STEP):
            known |= await self._store.records(self.slot, older[at : at + RECORDS_STEP])
        for end in ended:
            seen = self.tickets.get(end.id)
            if seen is None and (record := known.get(end.id)):
                seen = self.tickets[end.id] = _Seen(record.lines, record.buyer, record.expires_at, Status.RESERVED)
                # The store may have folded this very transition meanwhile.
                if record.status is not Status.RESERVED and record.sequence != end.sequence:
                    seen.status = record.status
            name = f"{self.slot}.{end.id}"
            if seen is None:
                self._out.add(end.id, f"{name}: transition {end.sequence} ends it, and the ledger never began it")
            elif seen.status is not Status.RESERVED:
                self._out.add(
                    end.id, f"{name}: transition {end.sequence} says {end.status}, but it was {seen.status} before"
                )
            else:
                self.tally.end(seen.buyer, seen.lines, end.status)
                seen.status = end.status


# Both sides -----------------------------------------------------------------------------------------------------------


class Audit:
    """Compares slots."""

    def __init__(self, servers: Servers, scripts: Scripts, store: Store) -> None:
        self._servers = servers
        self._scripts = scripts
        self._store = store

    async def audit(self, slot: str, *, tickets: bool = False) -> SlotAudit:
        """Compares one slot.

        Parameters
        ----------
        tickets: also each ticket that is held.

        Raises
        ------
        StoreError, NotSent, NoReply: a side does not answer.
        """
        for _ in range(ROUNDS_MAX):
            try:
                return await self._compare(slot, tickets)
            except _Recovered:
                # Or Redis is in the epoch of a failover, which the next snapshot copies.
                await asyncio.sleep(ROUND_PAUSE_S)
        return SlotAudit(slot, findings=(f"{slot} was recovered or amended again and again while it was audited",))

    async def _compare(self, slot: str, tickets: bool) -> SlotAudit:
        out = _Findings()
        # In this order: whatever the store knows when it is read, Redis has come at least as far afterwards.
        standing = await self._store.standing(slot)
        sale = await self._store.sale(slot)
        assert sale is not None  # sales are never removed from the registry
        replay = _Replay(self._servers, self._store, sale, standing, out)
        await replay.take_up(standing.units)
        cursor = standing.progress.cursor
        del standing
        look = _Look(self._scripts, replay, cursor, out)
        try:
            await look.buyers()
            if tickets:
                await look.tickets(self._store)
        except Refused as refused:
            if refused.outcome is Outcome.MISSING and sale.definition is None:
                return SlotAudit(slot, "0-0")  # it is being created
            out.add("slot", _unusable(slot, refused.outcome, cursor))
            return SlotAudit(slot, findings=out.all(slot))
        except ResponseError as error:
            out.add("slot", f"{slot}: one of its keys in Redis is damaged ({error})")
        except _Torn as torn:
            out.add("ledger", str(torn))
        return SlotAudit(
            slot,
            replay.at.floor,
            look.compared,
            sum(replay.tally.held),
            sum(replay.tally.sold),
            out.all(slot),
        )


class _Look:
    """Redis, read part after part, and each part compared with the replay of that instant.

    Attributes
    ----------
    compared: buyers.
    """

    def __init__(self, scripts: Scripts, replay: _Replay, cursor: Cursor, out: _Findings) -> None:
        self._scripts = scripts
        self._replay = replay
        self._cursor = cursor
        self._keys = slot_keys(replay.slot)
        self._out = out
        self.compared = 0

    async def _part(self, what: str, *args: str) -> Audited:
        """A part of Redis, with the replay brought to the same instant and the counters compared."""
        part = await self._scripts.audit(self._keys, what, *args)
        if (part.epoch, part.sequence) < (self._cursor.epoch, self._cursor.sequence):
            raise Refused(Outcome.BEHIND)
        if part.epoch != max(self._cursor.epoch, 1):
            raise _Recovered
        await self._replay.advance(part.sequence)
        if SHARD_MARK in self._replay.slot and part.version != str(self._replay.definition.version):
            # The registry has an amendment that this shard is about to get.
            raise _Recovered
        self._counters(part)
        return part

    def _counters(self, part: Audited) -> None:
        replay, where = self._replay, f"at {part.epoch}-{part.sequence}"
        definition, tally = replay.definition, replay.tally
        share = definition.share(replay.slot)
        there = [int(number) for number in re.findall(r"-?\d+", part.counts)]
        for at, item in enumerate(definition.items):
            held, sold = tally.held[at], tally.sold[at]
            own = share[at] - replay.transfers.lent_of(at)
            expected = [own - held - sold, held, sold]
            counted = there[3 * at : 3 * at + 3]
            if counted != expected or min(expected) < 0:
                self._out.add(
                    ("item", at),
                    f"{replay.slot}, item '{item.sku}': Redis has {_counted(counted)}, the ledger {_counted(expected)} "
                    f"of {own}, {where}",
                )
        if not _same_transfers(part.transfers, replay.transfers):
            self._out.add(
                "transfers",
                f"{replay.slot}: Redis has {part.transfers or 'nothing'} lent and borrowed, the ledger "
                f"{replay.transfers.text or 'nothing'}, {where}",
            )
        if (part.version, part.rules) != (str(definition.version), definition.rules()):
            self._out.add(
                "rules",
                f"{replay.slot}: Redis has version {part.version} with the rules {part.rules}, the ledger version "
                f"{definition.version} with {definition.rules()}, {where}",
            )

    async def buyers(self) -> None:
        """What each buyer has."""
        met: set[str] = set()
        cursor = "0"
        while True:
            part = await self._part("scan", cursor, "COUNT", str(STEP))
            self._buyers(part)
            met.update(part.found)
            cursor = part.cursor
            if cursor == "0":
                break
        # A buyer who came during the scan may have been passed over; so may one whose record is gone.
        unmet = [buyer for buyer in self._replay.tally.buyers if buyer not in met]
        self.compared = len(met) + len(unmet)
        for at in range(0, len(unmet), STEP):
            self._buyers(await self._part("buyers", *unmet[at : at + STEP]))

    def _buyers(self, part: Audited) -> None:
        buyers = self._replay.tally.buyers
        for buyer, there in part.found.items():
            expected = buyers.get(buyer, "")
            if there != (expected or "-") and (there or expected) and not _same(there, expected):
                definition = self._replay.definition
                self._out.add(
                    ("buyer", buyer),
                    f"{self._replay.slot}, buyer {buyer}: Redis has {_readable(definition, there)}, the ledger "
                    f"{_readable(definition, expected)}, at {part.epoch}-{part.sequence}",
                )

    async def tickets(self, store: Store) -> None:
        """Every ticket that is held."""
        slot, after = self._replay.slot, (0, "")
        while page := await store.tickets(TicketQuery(slot, STEP, status=Status.RESERVED, after=after)):
            after = (page[-1].reserved_at, page[-1].id)
            await self._tickets({record.id: record for record in page})
        new = [id for id, seen in self._replay.tickets.items() if seen.status is Status.RESERVED]
        for at in range(0, len(new), STEP):
            await self._tickets(dict.fromkeys(new[at : at + STEP]))

    async def _tickets(self, stored: Mapping[str, Record | None]) -> None:
        """Compares these; each as the store has it, None for one that only the replay knows."""
        part = await self._part("tickets", *stored)
        for id, packed in part.found.items():
            seen, record = self._replay.tickets.get(id), stored[id]
            if seen is None and record is not None:
                seen = _Seen(record.lines, record.buyer, record.expires_at, Status.RESERVED)
            assert seen is not None  # it was asked for since one of the two knows it
            there = _parsed(id, packed)
            if there is None or there != seen:
                if not packed and seen.status is not Status.RESERVED:
                    continue  # it ended, and has left Redis
                says = f"{there.status} {there.lines}" if there else "what cannot be read" if packed else "nothing"
                self._out.add(
                    ("ticket", id),
                    f"{self._replay.slot}.{id}: Redis has {says}, the ledger {seen.status} {seen.lines}, "
                    f"at {part.epoch}-{part.sequence}",
                )


def _parsed(id: str, packed: str) -> _Seen | None:
    try:
        record = Record.parse(id, packed)
    except (ValueError, KeyError, IndexError):
        return None
    return _Seen(record.lines, record.buyer, record.expires_at, record.status)


def _same_transfers(there: str, expected: Transfers) -> bool:
    """Whether two texts are the same transfers; Lua writes them in any order."""
    try:
        return replace(Transfers.parse(there), text="") == replace(expected, text="")
    except ValueError:
        return False


def _same(there: str, expected: str) -> bool:
    """Whether two packed texts are the same units, however they are written."""
    try:
        return _sum("", there, 1) == expected if there not in ("", "-") else not expected
    except ValueError:
        return False


def _readable(definition: Definition, packed: str) -> str:
    if packed in ("", "-"):
        return "nothing"
    try:
        return ", ".join(f"{line.quantity} of '{line.sku}'" for line in definition.lines(packed))
    except (ValueError, IndexError):
        return f"'{packed}'"


def _counted(counts: Iterable[int]) -> str:
    names = ("available", "reserved", "purchased")
    return ", ".join(f"{count} {name}" for count, name in zip(counts, names, strict=False)) or "no counters"


def _unusable(slot: str, outcome: Outcome, cursor: Cursor) -> str:
    state = {
        Outcome.FENCED: "is fenced: it is being recovered, or its recovery was interrupted",
        Outcome.MISSING: f"is not in Redis, and the store has it at {cursor.floor}",
        Outcome.BEHIND: f"stands in Redis before {cursor.floor}, where the store has come",
    }
    return f"{slot} {state.get(outcome, str(outcome))}; run `holdfast recover --sale {slot}`"
