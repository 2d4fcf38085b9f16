"""What a history and a final reading say, read once for all checkers: tickets, statuses, instants, the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from holdfast.engine.records import LETTERS, SALE_LINE, TRANSFER_LINE, Definition, Entry
from holdfast.http.load.clock import Clock
from holdfast.http.load.log import MS as MS

from .history import Call, Final, Operation, Outcome

RESERVED, PURCHASED, CANCELLED, EXPIRED = "reserved", "purchased", "cancelled", "expired"

#: What a refusal says of the ticket that it is about.
TOLD_BY_CODE = {
    "already_purchased": PURCHASED,
    "already_cancelled": CANCELLED,
    "ticket_expired": EXPIRED,
    "payment_declined": RESERVED,
}

Lines = tuple[tuple[str, int], ...]


def instant_ms(text: str) -> int:
    """An instant of the API as Unix milliseconds."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def bare(ticket: str) -> str:
    """A ticket's id without its slot, as the ledger has it."""
    return ticket.rpartition(".")[2]


def lines_of(lines: Iterable[Mapping[str, Any]] | Mapping[str, int] | Sequence[tuple[str, int]]) -> Lines:
    """Lines in any of their forms, by sku; the same sku on two lines is added up."""
    if isinstance(lines, Mapping):
        return tuple(sorted(lines.items()))
    units: Counter[str] = Counter()
    for line in lines:
        sku, quantity = (line["sku"], line["quantity"]) if isinstance(line, Mapping) else line
        units[sku] += quantity
    return tuple(sorted(units.items()))


def told(operation: Operation) -> str | None:
    """The status of its ticket, as the answer says it; None when it says nothing of it."""
    if operation.call is Call.SALE:
        return None
    if operation.outcome is Outcome.DONE:
        status = operation.answer.get("status")
        return str(status) if status is not None else None
    if operation.outcome is Outcome.REFUSED and operation.call in (Call.PAY, Call.CANCEL):
        return TOLD_BY_CODE.get(operation.code or "")
    return None


def may_have_happened(operation: Operation) -> bool:
    """Whether it was done, or may have been."""
    return operation.outcome is not Outcome.REFUSED


def clock_of(operations: Iterable[Operation]) -> Clock | None:
    """The server's clock as the answers of a run tell it: those that show a running hold tell the server's instant."""
    return Clock.of(_clock_readings(operations))


def _clock_readings(operations: Iterable[Operation]) -> Iterator[tuple[int, int, int]]:
    for operation in operations:
        answer = operation.answer
        if operation.outcome is Outcome.DONE and answer.get("status") == RESERVED:
            assert operation.ended is not None
            yield operation.begun, operation.ended, instant_ms(answer["expires_at"]) - answer["expires_in_ms"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a buyer may have, as the sale says of itself: units over all items, and by sku. None is no limit."""

    most: int | None = None
    most_of: Mapping[str, int | None] = field(default_factory=dict)

    @staticmethod
    def of(operations: Iterable[Operation]) -> Rules:
        """As the answers about the sale say; nothing where there is none, or where they differ: it was amended."""
        said = {
            (
                operation.answer.get("max_per_buyer"),
                tuple((item["sku"], item.get("max_per_buyer")) for item in operation.answer["items"]),
            )
            for operation in operations
            if operation.call is Call.SALE and operation.outcome is Outcome.DONE and "items" in operation.answer
        }
        if len(said) != 1:
            return Rules()
        ((most, items),) = said
        return Rules(most, dict(items))

    @property
    def any(self) -> bool:
        return bool(self.most or any(self.most_of.values()))

    def over(self, had: Mapping[str, int], lines: Lines) -> str | None:
        """The limit that these lines break for a buyer who has so much, in words."""
        if self.most and sum(had.values()) + sum(quantity for _, quantity in lines) > self.most:
            return f"{self.most} units"
        for sku, quantity in lines:
            most = self.most_of.get(sku)
            if most and had.get(sku, 0) + quantity > most:
                return f"{most} units of {sku}"
        return None


def counts_of(answer: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Available, reserved and purchased by sku, as a sale is answered."""
    return {item["sku"]: (item["available"], item["reserved"], item["purchased"]) for item in answer["items"]}


def in_transit_of(answer: Mapping[str, Any]) -> dict[str, int]:
    """Units between shards by sku, as a sale is answered."""
    return {item["sku"]: item.get("in_transit", 0) for item in answer["items"]}


@dataclass(slots=True)
class Ledger:
    """The store's ledger, replayed by its own words: those of all slots of a sale.

    Attributes
    ----------
    begun: by bare id, lines by sku and the buyer's hash. endings: by bare id, status and sequence of every ending.
    order: of (kind, bare id), its place among all transitions. twice: ids that were begun more than once.
    gaps: sentences about sequences that do not follow on each other.
    transfers: of (lender, borrower, number), lines by what was done: lent, received, settled.
    recovered: whether a slot was rebuilt, in which transfers may end without a word.
    """

    begun: dict[str, tuple[Lines, str]] = field(default_factory=dict)
    endings: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    order: dict[tuple[str, str], int] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    transfers: dict[tuple[int, int, int], dict[str, str]] = field(default_factory=dict)
    recovered: bool = False

    @staticmethod
    def of(final: Final) -> Ledger:
        ledger = Ledger()
        for shard, lines in enumerate(final.ledgers, start=1):
            ledger._replay(shard, lines, list(final.capacity))
        return ledger

    def _replay(self, shard: int, lines: Sequence[tuple[int, str]], skus: list[str]) -> None:
        """One slot."""
        ledger, last = self, 0
        for sequence, text in lines:
            self._transfers(shard, text)
            for transition in Entry(0, sequence, 0, text).transitions():
                if transition.sequence != last + 1:
                    ledger.gaps.append(f"transition {transition.sequence} follows on {last}")
                last = transition.sequence
                id, kind = transition.ticket, transition.kind
                if kind == SALE_LINE:
                    skus = [item.sku for item in Definition.from_json(transition.lines).items]
                    continue
                if kind == TRANSFER_LINE:
                    continue
                if kind == "r":
                    if id in ledger.begun:
                        ledger.twice.append(id)
                    packed = [part.split(":") for part in transition.lines.split(",")]
                    taken = tuple(sorted((skus[int(item) - 1], int(quantity)) for item, quantity in packed))
                    ledger.begun[id] = taken, transition.buyer
                else:
                    ledger.endings.setdefault(id, []).append((str(LETTERS[kind]), transition.sequence))
                ledger.order.setdefault((kind, id), len(ledger.order))

    def _transfers(self, shard: int, text: str) -> None:
        """Units that were lent to other shards, and received from them: `t DONE PEER NUMBER LINES STATE`."""
        for line in text.split("\n"):
            if not line.startswith(f"{TRANSFER_LINE} "):
                continue
            _, done, peer, number, units, _ = line.split(" ", 5)
            if done == "recovered":
                self.recovered = True
                continue
            lender, borrower = (int(peer), shard) if done == "received" else (shard, int(peer))
            said = self.transfers.setdefault((lender, borrower, int(number)), {})
            if done in said:
                self.twice.append(f"transfer {number} from shard {lender} to {borrower} ({done})")
            said[done] = units

    def status(self, id: str) -> str:
        """The status of a ticket that was begun; its first ending counts."""
        endings = self.endings.get(id)
        return endings[0][0] if endings else RESERVED

    def counts(self, capacity: Mapping[str, int]) -> dict[str, tuple[int, int, int]]:
        """Available, reserved and purchased by sku."""
        return counts_by_tickets(capacity, ((lines, self.status(id)) for id, (lines, _) in self.begun.items()))


def counts_by_tickets(
    capacity: Mapping[str, int], tickets: Iterable[tuple[Lines, str]]
) -> dict[str, tuple[int, int, int]]:
    """What tickets, each with lines and status, add up to."""
    reserved: Counter[str] = Counter()
    purchased: Counter[str] = Counter()
    for lines, status in tickets:
        if status in (RESERVED, PURCHASED):
            (reserved if status == RESERVED else purchased).update(dict(lines))
    return {
        sku: (units - reserved[sku] - purchased[sku], reserved[sku], purchased[sku]) for sku, units in capacity.items()
    }
