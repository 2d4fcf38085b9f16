"""One typed call per script. The only module that talks to scripts; raw replies do not leave it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, ResponseError

from holdfast import lua
from holdfast.engine.connection import refusal
from holdfast.engine.keys import SlotKeys
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import Record
from holdfast.engine.servers import Servers


class Refused(Exception):
    """The whole call was refused for its slot: `outcome` is missing, fenced or behind."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Answer(NamedTuple):
    """What a script said to one call of a batch.

    Parameters
    ----------
    outcome: see `Outcome`.
    text: what follows it: a packed record, or numbers.
    """

    outcome: Outcome
    text: str

    @staticmethod
    def parse(raw: bytes) -> Answer:
        outcome, _, text = raw.decode().partition(" ")
        return Answer(Outcome(outcome), text)

    def numbers(self) -> list[int]:
        return [int(number) for number in self.text.split(" ")]


class Batch(NamedTuple):
    """The reply to a batch.

    Parameters
    ----------
    now: the server's clock in that call, Unix milliseconds.
    expires_at: the deadline of every ticket reserved in it; 0 for other scripts.
    epoch, sequence: where the slot's ledger stands after it.
    answers: one for each call, raw: what `Answer.parse` reads, or a short form that the script's header names.
    """

    now: int
    expires_at: int
    epoch: int
    sequence: int
    answers: list[bytes]


@dataclass(frozen=True, slots=True)
class Swept:
    """What one call of expire did; `deadline` is the next one, or None."""

    now: int
    sequence: int
    expired: int
    more_due: bool
    deadline: int | None


@dataclass(frozen=True, slots=True)
class Fenced:
    """Where a slot stood when it was fenced.

    Parameters
    ----------
    now: the server's clock, Unix milliseconds. epoch, sequence: 0 where the slot has none.
    resumed: a fence stood already that another recovery had left.
    """

    now: int
    epoch: int
    sequence: int
    resumed: bool


class Restored(NamedTuple):
    """A ticket on its way back into Redis.

    Parameters
    ----------
    id, record: both empty for a purchase that stays in the store alone and counts for its buyer all the same.
    lines: packed, what counts for the buyer; `-` for a ticket that ended unpaid. deadline: of a held one, else 0.
    """

    id: str
    buyer: str
    lines: str
    record: str
    deadline: int = 0


class Audited(NamedTuple):
    """A part of a slot, and where the slot stood at the same instant.

    Parameters
    ----------
    epoch, sequence: 0 where damage lies in their place. counts, version, rules, transfers: as they lie there.
    cursor: where a scan goes on; `0` at its end.
    found: values by name, of what was met or asked for; empty where there is none.
    """

    epoch: int
    sequence: int
    counts: str
    version: str
    rules: str
    transfers: str
    cursor: str
    found: dict[str, str]


class Scripts:
    """The scripts, each run where its slot is.

    Parameters
    ----------
    replaced: includes to put in place of the packaged ones, for tests that move time.

    Attributes
    ----------
    seen: the furthest epoch and sequence that a reply told of, by the key of the sale; what is lost later is measured
        by it.
    """

    def __init__(self, servers: Servers, replaced: Mapping[str, str] | None = None) -> None:
        self._servers = servers
        self.seen: dict[str, tuple[int, int]] = {}
        self._texts = {name: lua.load(name, replaced) for name in lua.SCRIPTS}
        self._shas = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in self._texts.items()}

    async def _run(self, slot: str, name: str, keys: Sequence[str], *args: str) -> list[Any]:
        """Runs a script; a server that does not know it gets its text (and every script checks the slot's floor).

        Raises
        ------
        NotSent, NoReply: as `Server.call`.
        """
        # The floor among the arguments was learnt of this server.
        generation = self._servers.generation(slot)
        form = len(keys), *keys, *args
        try:
            reply = await self._servers.call(slot, "EVALSHA", self._shas[name], *form, generation=generation)
        except NoScriptError:
            # Loaded and run in one step: between two of them the server may forget it once more.
            reply = await self._servers.call(slot, "EVAL", self._texts[name], *form, generation=generation)
        return reply if isinstance(reply, list) else [reply]

    async def _run_slot(self, slot: str, name: str, keys: Sequence[str], *args: str) -> list[Any]:
        reply = await self._run(slot, name, keys, *args)
        if reply[0] != b"ok":
            outcome = Outcome(reply[0].decode())
            if outcome in (Outcome.MISSING, Outcome.FENCED, Outcome.BEHIND):
                raise Refused(outcome)
        return reply

    def _heard(self, keys: SlotKeys, epoch: int, sequence: int) -> None:
        """A reply told where the slot stands; replies of two connections may come in another order."""
        if (epoch, sequence) > self.seen.get(keys.sale, (0, 0)):
            self.seen[keys.sale] = epoch, sequence

    async def create(self, keys: SlotKeys, definition: str, origin: str, rules: str, counts: str) -> Outcome:
        reply = await self._run_slot(keys.slot, "create", (keys.sale, keys.ledger), definition, origin, rules, counts)
        return Outcome(reply[0].decode())

    async def amend(
        self, keys: SlotKeys, floor: str, version: int, definition: str, rules: str, capacities: str
    ) -> tuple[Outcome, int, int]:
        """The outcome, and for `capacity_in_use` the item's number and its units in use."""
        reply = await self._run_slot(keys.slot, "amend", _all(keys), floor, str(version), definition, rules, capacities)
        item, in_use = reply[1:3] if len(reply) > 1 else (0, 0)
        return Outcome(reply[0].decode()), item, in_use

    async def reserve(
        self, keys: SlotKeys, floor: str, ids: Sequence[str], buyers: Sequence[str], orders: Sequence[str]
    ) -> Batch:
        reply = await self._run_slot(keys.slot, "reserve", _all(keys), floor, *ids, *buyers, *orders)
        self._heard(keys, reply[3], reply[4])
        return Batch(reply[1], reply[2], reply[3], reply[4], reply[5:])

    async def confirm(
        self,
        keys: SlotKeys,
        floor: str,
        ids: Sequence[str],
        buyers: Sequence[str],
        operations: Sequence[str],
        payments: Sequence[str],
    ) -> Batch:
        reply = await self._run_slot(keys.slot, "confirm", _all(keys), floor, *ids, *buyers, *operations, *payments)
        self._heard(keys, reply[2], reply[3])
        return Batch(reply[1], 0, reply[2], reply[3], reply[4:])

    async def cancel(
        self, keys: SlotKeys, floor: str, ids: Sequence[str], buyers: Sequence[str], operations: Sequence[str]
    ) -> Batch:
        reply = await self._run_slot(keys.slot, "cancel", _all(keys), floor, *ids, *buyers, *operations)
        self._heard(keys, reply[2], reply[3])
        return Batch(reply[1], 0, reply[2], reply[3], reply[4:])

    async def expire(self, keys: SlotKeys, floor: str) -> Swept:
        _, now, _, sequence, expired, more_due, deadline = await self._run_slot(keys.slot, "expire", _all(keys), floor)
        return Swept(now, sequence, expired, bool(more_due), None if deadline < 0 else deadline)

    async def lend(self, keys: SlotKeys, floor: str, borrower: int, wanted: str) -> tuple[int, str]:
        """Number and lines of what is in transit to this borrower then; lines that are empty where it is nothing."""
        _, number, lines = await self._run_slot(keys.slot, "lend", _all(keys), floor, str(borrower), wanted)
        return number, lines.decode()

    async def receive(self, keys: SlotKeys, floor: str, lender: int, number: int, lines: str) -> None:
        """Makes available what was in transit; once, however often it is called."""
        await self._run_slot(keys.slot, "receive", (keys.sale, keys.ledger), floor, str(lender), str(number), lines)

    async def settle(self, keys: SlotKeys, floor: str, borrower: int, number: int) -> None:
        """Ends a transfer that was received for good."""
        await self._run_slot(keys.slot, "settle", (keys.sale, keys.ledger), floor, str(borrower), str(number))

    async def read(self, keys: SlotKeys, floor: str, ids: Sequence[str]) -> tuple[int, list[Record | None]]:
        """The server's clock, and the records in the order asked for."""
        reply = await self._run_slot(keys.slot, "read", (keys.sale, keys.tickets), floor, *ids)
        records = [raw and Record.parse(id, raw.decode()) for id, raw in zip(ids, reply[2:], strict=True)]
        return reply[1], records

    async def mine(self, keys: SlotKeys, floor: str, buyer: str) -> tuple[int, list[Record]]:
        """The server's clock, and the buyer's newest tickets, oldest first."""
        reply = await self._run_slot(keys.slot, "mine", (keys.sale, keys.tickets, keys.buyers), floor, buyer)
        pairs = zip(reply[2::2], reply[3::2], strict=True)
        return reply[1], [Record.parse(id.decode(), raw.decode()) for id, raw in pairs]

    async def audit(self, keys: SlotKeys, what: str, *args: str) -> Audited:
        """Part of a slot: `scan` of its buyers, with what HSCAN takes after the key; `buyers` or `tickets` by name."""
        reply = await self._run_slot(keys.slot, "audit", (keys.sale, keys.tickets, keys.buyers), what, *args)
        counts, version, rules, transfers, cursor, *found = (raw.decode(errors="backslashreplace") for raw in reply[3:])
        pairs = dict(zip(found[::2], found[1::2], strict=True))
        return Audited(_number(reply[1]), _number(reply[2]), counts, version, rules, transfers, cursor, pairs)

    async def drop(self, keys: SlotKeys, floor: str, cursor: int, before: int, ids: Sequence[str]) -> int:
        """How many of the tickets left."""
        names = (keys.sale, keys.tickets, keys.buyers)
        reply = await self._run_slot(keys.slot, "drop", names, floor, str(cursor), str(before), *ids)
        return int(reply[1])

    async def fence(self, keys: SlotKeys, token: str) -> Fenced:
        _, now, epoch, sequence, resumed = await self._run(keys.slot, "fence", (keys.sale,), token)
        return Fenced(now, _number(epoch), _number(sequence), bool(resumed))

    async def clear(self, keys: SlotKeys, token: str) -> None:
        await self._run_slot(keys.slot, "clear", _all(keys), token)

    async def restore(self, keys: SlotKeys, token: str, items: int, tickets: Sequence[Restored]) -> None:
        """Puts tickets into a fenced slot; `items` is how many the sale has."""
        names = (keys.sale, keys.tickets, keys.buyers, keys.deadlines)
        ids, buyers, lines, records, _ = zip(*tickets, strict=True)
        await self._run_slot(keys.slot, "restore", names, token, str(items), *ids, *buyers, *lines, *records)

    async def unfence(self, keys: SlotKeys, token: str, *fields: str) -> None:
        """`fields`: epoch, sequence, definition, origin, version, rules, counts, dropped, transfers."""
        await self._run_slot(keys.slot, "unfence", (keys.sale, keys.ledger), token, *fields)

    async def renew(self, keys: SlotKeys, floor: str, reign: str) -> int:
        """Marks the slot with the history of the server that has it; the epoch in which it is then."""
        reply = await self._run_slot(keys.slot, "renew", (keys.sale, keys.ledger), floor, reign)
        self._heard(keys, reply[1], reply[2])
        return int(reply[1])

    async def wait(self, keys: SlotKeys, command: Sequence[Any]) -> Any:
        """What WAIT or WAITAOF answers, on a connection that has written something just before.

        Raises
        ------
        NotSent, NoReply: as `Server.call`.
        """
        touch = ("EVALSHA", self._shas["touch"], 1, keys.sale, "-")
        server = self._servers.of(keys.slot)
        touched, waited = await server.pipeline([touch, command])
        if isinstance(touched, NoScriptError):
            # As in `_run`.
            touch = ("EVAL", self._texts["touch"], 1, keys.sale, "-")
            touched, waited = await server.pipeline([touch, command])
        for reply in (touched, waited):
            if isinstance(reply, ResponseError):
                raise refusal(reply) or reply
        return waited


def _number(raw: bytes) -> int:
    """A number of a sale's hash; 0 where there is none, or damage in its place."""
    return int(raw) if raw.isdigit() else 0


def _all(keys: SlotKeys) -> tuple[str, ...]:
    return keys.sale, keys.tickets, keys.buyers, keys.deadlines, keys.ledger
