"""What clients did and heard, as they saw it: the only thing that the checkers believe."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Call(StrEnum):
    """What was asked."""

    RESERVE = "reserve"
    PAY = "pay"
    CANCEL = "cancel"
    TICKET = "ticket"  # reads one ticket
    SALE = "sale"  # reads the counters


class Outcome(StrEnum):
    """What a client knows afterwards."""

    DONE = "done"  # 2xx: it happened, or was read
    REFUSED = "refused"  # the answer says why not, and nothing happened
    UNKNOWN = "unknown"  # it may have happened, now or later: no answer, or one that says so


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of one client, from when it began until the client knew what it was ever to know.

    Parameters
    ----------
    client: does one operation at a time. buyer: as whom.
    sale: of the ticket, too. ticket: as answered to reserve, as asked otherwise; None when reserve was not answered.
    lines: sku and quantity, of a reserve. key: its idempotency key; None without.
    durability: asked of a payment; None for the default.
    begun, ended: nanoseconds of one monotonic clock; `ended` None when no answer came.
    status: of HTTP. code: of the problem. answer: the body.
    phase: what the run was doing, as it names its phases (`load`, `fault`, `after`).
    """

    client: int
    buyer: str
    call: Call
    sale: str
    begun: int
    ended: int | None = None
    ticket: str | None = None
    lines: tuple[tuple[str, int], ...] = ()
    key: str | None = None
    durability: str | None = None
    status: int | None = None
    code: str | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    phase: str = ""

    @property
    def outcome(self) -> Outcome:
        if self.ended is None or self.status is None or self.code == "outcome_unknown":
            return Outcome.UNKNOWN
        if 200 <= self.status < 300:
            return Outcome.DONE
        # 503 not_ready and overloaded promise that nothing was done; any other 5xx promises nothing.
        if self.status >= 500 and self.code not in ("not_ready", "overloaded"):
            return Outcome.UNKNOWN
        return Outcome.REFUSED

    @property
    def level(self) -> str | None:
        """The durability at which a payment was acknowledged; None when it was not."""
        if self.call is not Call.PAY or self.outcome is not Outcome.DONE:
            return None
        return str(self.answer.get("durability", "memory"))


@dataclass(frozen=True, slots=True)
class Final:
    """What the system says once it is quiet, read over HTTP and from Redis and the store.

    Parameters
    ----------
    capacity: units by sku. counts: by sku available, reserved, purchased, as `GET /sales/{sale}` answers.
    in_transit: by sku, units between shards; nothing in a sale of one slot.
    tickets: by id, as the operator lists them. redis: status by id, of the tickets that Redis has.
    store: rows by id: status, lines by sku, sequence, reference, as the store's tables have them.
    ledgers: the store's, of each slot of the sale: lines in order, each (sequence, text).
    """

    sale: str
    capacity: dict[str, int]
    counts: dict[str, tuple[int, int, int]]
    tickets: dict[str, dict[str, Any]]
    redis: dict[str, str]
    store: dict[str, dict[str, Any]]
    ledgers: tuple[tuple[tuple[int, str], ...], ...] = ()
    in_transit: dict[str, int] = field(default_factory=dict)

    @property
    def in_shards(self) -> bool:
        """Whether several slots have it, which nobody sees at one instant."""
        return len(self.ledgers) > 1


@dataclass(frozen=True, slots=True)
class Violation:
    """What a checker found.

    Parameters
    ----------
    checker: one of C A U E L H. text: a sentence with the ids. operations: those that show it.
    """

    checker: str
    sale: str
    text: str
    operations: tuple[Operation, ...] = ()


def save(path: Path, operations: Iterable[Operation]) -> None:
    """Writes a history, one operation a line."""
    with path.open("w") as file:
        for operation in operations:
            file.write(json.dumps(asdict(operation)) + "\n")


def load(path: Path) -> list[Operation]:
    """Reads a history back."""
    operations = []
    for line in path.read_text().splitlines():
        body = json.loads(line)
        body["lines"] = tuple((sku, quantity) for sku, quantity in body["lines"])
        operations.append(Operation(**body | {"call": Call(body["call"])}))
    return operations
