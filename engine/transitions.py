"""Batches of calls run as one script call, and every answer turned into what its caller awaits.

A batch is a sequence of calls as `batcher.py` describes them:

| kind | columns, then the waiter | hears |
| --- | --- | --- |
| reserve | id, buyer, order (flag and lines) | `Ticket` |
| confirm | id, buyer, operation, payment (mode and reference) | `Ticket` |
| cancel | id, buyer, operation | `Ticket` |
| read | id | the server's clock, and `Record` or None |

Most answers are told at once, from the loop over the batch: that loop is what a reservation costs in this process. An
answer that needs another look (at the store, after a sweep) goes on in a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.engine.batcher import Call, Waiter, tell
from holdfast.engine.errors import (
    AllHeld,
    AlreadyCancelled,
    AlreadyPurchased,
    Closed,
    HoldfastError,
    IdempotencyKeyReused,
    LimitReached,
    NotReady,
    NotYetOpen,
    NotYourTicket,
    OutcomeUnknown,
    PaymentDeclined,
    SoldOut,
    TicketExpired,
    UnknownSale,
    UnknownTicket,
)
from holdfast.engine.leases import Leases
from holdfast.engine.meters import Meters
from holdfast.engine.outcomes import Outcome
from holdfast.engine.records import Record
from holdfast.engine.scripts import Answer, Batch, Scripts
from holdfast.engine.store import Cursor, Store, StoreError
from holdfast.engine.values import Durability, Status, Ticket

if TYPE_CHECKING:
    from holdfast.engine.slots import Slot

T = TypeVar("T")

#: How long a gentle sweep leaves Redis alone, as a share of the time that its last call took: when 100,000 holds run
#: out together, those who buy have Redis for a third of the time at least.
SWEEP_REST = 0.5

#: Seconds for which a reservation waits for the store to tell whether its key was used long ago: a person waits.
STORE_ANSWER_S = 3.0

#: Flags of an order, see `lua/reserve.lua`: made at random, derived from a key, and perhaps sent before.
RANDOM, KEYED, AGAIN = "n", "k", "s"

#: Modes of a payment, see `lua/confirm.lua`.
APPROVED, DECLINED = "a", "d"

#: How often a payment is made once more because its server was replaced before it was as durable as it is to be: a
#: slot that is moved, or a failover, is one such time.
PAID_AGAIN_MAX = 3

#: Columns of a payment's call with its waiter, by which it is told from a cancellation.
PAYMENT_COLUMNS = 5


class Assured:
    """The waiter of a payment with a durability: hears the ticket, and tells it once that is reached.

    Parameters
    ----------
    waiter: who asked. add: takes this, once Redis has the payment.

    Attributes
    ----------
    call: the payment, with this as its waiter.
    generation, position: of the server and of the slot's ledger, when Redis answered.
    give_up: when it has waited too long, by the loop's clock.
    """

    __slots__ = (
        "_add",
        "_again",
        "_heard",
        "_replayed",
        "call",
        "generation",
        "give_up",
        "level",
        "position",
        "slot",
        "ticket",
        "waiter",
    )

    def __init__(self, waiter: Waiter, slot: Slot, level: Durability, add: Callable[[Assured], None]) -> None:
        self.waiter = waiter
        self.slot = slot
        self.level = level
        self.give_up = 0.0
        self.call: Call = ()
        self._add = add
        self._again = 0
        self._heard = self._replayed = False

    def done(self) -> bool:
        """As of the one who asked."""
        return self.waiter.done()

    def hear(self) -> None:
        """Redis has answered, and the answer needs another look: whatever takes its place meanwhile has not."""
        if not self._heard:
            self._heard = True
            self.generation = self.slot.generation
            self.position = self.slot.position

    def set_result(self, ticket: Ticket, /) -> None:
        """Redis has the payment."""
        self.hear()
        if not self._again:
            self._replayed = ticket.replayed
        self.ticket = ticket._replace(replayed=self._replayed)
        self._add(self)

    def set_exception(self, error: BaseException, /) -> None:
        """There is no payment, or it is not known what became of it."""
        self.waiter.set_exception(OutcomeUnknown() if self._again else error)

    def ask_again(self) -> bool:
        """Has the payment made once more: another server may have taken the place of the one that has answered, and
        may not know of it. It is the same operation, and done once. Whether it is, since nobody waits for ever."""
        if self._again >= PAID_AGAIN_MAX:
            return False
        self._again += 1
        self._heard = False
        self.slot.confirms.put_first([self.call])
        return True

    def reached(self) -> None:
        """It is as durable as was asked."""
        if not self.waiter.done():
            self.waiter.set_result(self.ticket._replace(durability=self.level))

    def not_reached(self) -> None:
        """It is not, in time."""
        if not self.waiter.done():
            self.waiter.set_result(self.ticket._replace(durability=Durability.MEMORY, pending=self.level))


class Transitions:
    """Runs batches; used by the batchers of the slots."""

    def __init__(self, scripts: Scripts, store: Store, leases: Leases, meters: Meters) -> None:
        self._scripts = scripts
        self._meters = meters
        self._store = store
        self._leases = leases
        #: Tasks of answers that need another look; held here, or nobody would.
        self._following: set[asyncio.Task[None]] = set()

    # -- reserve ---------------------------------------------------------------------------------------------------

    async def reserve(self, slot: Slot, batch: Sequence[Call]) -> None:
        """Reserves a batch; the leases of what was reserved are set behind its back."""
        ids, buyers, orders, waiters = zip(*batch, strict=True)

        def send(floor: str, again: bool) -> Awaitable[Batch]:
            # What was sent and not answered may have made its ticket: then no id is nobody's any more.
            flagged = [AGAIN + order[1:] if order[0] == RANDOM else order for order in orders] if again else orders
            return self._scripts.reserve(slot.keys, floor, ids, buyers, flagged)

        asked_at = slot.time()
        now, expires_at, _, _, answers = await slot.run(send)
        prefix, sale, known_lines = slot.ticket_prefix, slot.definition.id, slot.lines
        reserved, new = Status.RESERVED, tuple.__new__
        made, others = [], []
        for id, buyer, order, waiter, answer in zip(ids, buyers, orders, waiters, answers, strict=True):
            if answer == b"ok":
                made.append(id)
                if not waiter.done():
                    try:
                        lines = known_lines[order[1:]]
                    except IndexError:
                        # Another process has added the item, or this one has heard of it in another shard.
                        self._show(slot, waiter, Record(id, reserved, order[1:], now, expires_at, buyer), now)
                        continue
                    times = now, expires_at, None
                    held = (prefix + id, sale, reserved, lines, buyer, *times, None, now, False, None, None)
                    waiter.set_result(new(Ticket, held))
            else:
                others.append((id, buyer, order, waiter, answer))
        if made:
            self._leases.set(slot.keys, made, expires_at)
        if others:
            if slot.short is not None:
                others = slot.short(slot, others)
            self._not_reserved(slot, now, asked_at, others)

    def _not_reserved(
        self, slot: Slot, now: int, asked_at: float, others: Sequence[tuple[str, str, str, Waiter, bytes]]
    ) -> None:
        after_sweep: list[Call] = []
        refusals: dict[bytes, HoldfastError] = {}
        for id, buyer, order, waiter, raw in others:
            answer = Answer.parse(raw)
            if answer.outcome is Outcome.SWEEP_FIRST:
                after_sweep.append((id, buyer, order, waiter))
            elif answer.outcome is Outcome.CHECK_STORE:
                self._follow(waiter, self._reserved_long_ago(slot, now, id, buyer, order, waiter))
            elif answer.outcome is Outcome.REPLAYED:
                record = Record.parse(id, answer.text)
                if record.status is Status.RESERVED:
                    # One that was sent again may have made its ticket the first time, and then it has no lease yet.
                    self._leases.set(slot.keys, [id], record.expires_at)
                self._show(slot, waiter, record, now, replayed=True)
            else:
                # One for all who are refused alike: when everything is gone that is the whole batch.
                refusal = refusals.get(raw)
                if refusal is None:
                    refusal = refusals[raw] = _refusal(slot, now, answer)
                if isinstance(refusal, SoldOut):
                    slot.remember_sold_out(order[1:], asked_at, refusal)
                tell(waiter, refusal)
        if after_sweep:
            self._start(self._reserve_after_sweep(slot, after_sweep))

    async def _reserve_after_sweep(self, slot: Slot, calls: Sequence[Call]) -> None:
        await self.sweep(slot)
        for call in calls:
            self._put_again(slot, call)

    def _put_again(self, slot: Slot, call: Call) -> None:
        try:
            slot.reserves.put(call)
        except HoldfastError as error:
            tell(call[-1], error)

    async def _reserved_long_ago(
        self, slot: Slot, now: int, id: str, buyer: str, order: str, waiter: Waiter
    ) -> Ticket | None:
        """The ticket of this key when it has left Redis; None when there was none, and the call goes on."""
        # What has left Redis is folded. A sale that is older than the retention time asks for every new key.
        try:
            async with asyncio.timeout(STORE_ANSWER_S):
                stored = await _stored(self._store.ticket(slot.name, id, pending=False))
        except TimeoutError:
            raise NotReady(f"the store has not told within {STORE_ANSWER_S:g} s whether this is a repeat") from None
        if stored is None:
            self._put_again(slot, (id, buyer, AGAIN + order[1:], waiter))
            return None
        if stored.lines != order[1:]:
            raise IdempotencyKeyReused
        return await self.shown(slot, stored, now, replayed=True)

    # -- confirm and cancel ----------------------------------------------------------------------------------------

    async def confirm(self, slot: Slot, batch: Sequence[Call]) -> None:
        """Confirms a batch; the leases of what was paid are deleted."""
        ids, buyers, operations, payments, waiters = zip(*batch, strict=True)
        now, _, epoch, sequence, answers = await slot.run(
            lambda floor, _: self._scripts.confirm(slot.keys, floor, ids, buyers, operations, payments)
        )
        slot.position = Cursor(epoch, sequence)
        prefix, sale, known_lines = slot.ticket_prefix, slot.definition.id, slot.lines
        purchased, memory, new = Status.PURCHASED, Durability.MEMORY, tuple.__new__
        paid = []
        for at, raw in enumerate(answers):
            if raw[:2] == b"r ":
                paid.append(ids[at])
                waiter = waiters[at]
                if waiter.done():
                    continue
                _, packed, reserved_at, expires_at, buyer = raw.decode().split(" ")
                try:
                    lines = known_lines[packed]
                except IndexError:
                    # Another process has added the item.
                    record = Record.parse(ids[at], raw.decode())
                    paid_now = record._replace(status=purchased, ended_at=now, reference=payments[at][1:])
                    self._show(slot, waiter, paid_now, now, durability=memory)
                    continue
                reference = payments[at][1:] or None
                id, times = prefix + ids[at], (int(reserved_at), int(expires_at), now)
                bought = (id, sale, purchased, lines, buyer, *times, reference, now, False, memory, None)
                waiter.set_result(new(Ticket, bought))
            elif self._not_ended(slot, now, batch[at], raw):
                paid.append(ids[at])
        if paid:
            self._leases.delete(slot.keys, paid)

    async def cancel(self, slot: Slot, batch: Sequence[Call]) -> None:
        """Cancels a batch; the leases of what was cancelled are deleted."""
        ids, buyers, operations, _ = zip(*batch, strict=True)
        now, _, _, _, answers = await slot.run(
            lambda floor, _: self._scripts.cancel(slot.keys, floor, ids, buyers, operations)
        )
        gone = [call[0] for call, raw in zip(batch, answers, strict=True) if self._not_ended(slot, now, call, raw)]
        if gone:
            self._leases.delete(slot.keys, gone)

    def _not_ended(self, slot: Slot, now: int, call: Call, raw: bytes) -> bool:
        """Answers a call that should end a ticket; whether its lease goes."""
        id, buyer, waiter = call[0], call[1], call[-1]
        answer = Answer.parse(raw)
        if answer.outcome in (Outcome.OK, Outcome.REPLAYED):
            replayed = answer.outcome is Outcome.REPLAYED
            self._show(slot, waiter, Record.parse(id, answer.text), now, replayed=replayed, durability=_reached(call))
            # A repeat deletes again: the process that did it first may have died before its lease was gone.
            return True
        if answer.outcome is Outcome.UNKNOWN_TICKET:
            self._follow(waiter, self._ended_long_ago(slot, now, id, buyer, call))
        elif answer.outcome is Outcome.ALREADY_PURCHASED:
            self._follow(waiter, self._raise_ended(slot, Record.parse(id, answer.text), now))
        else:
            tell(waiter, _refusal(slot, now, answer))
        return False

    async def _ended_long_ago(self, slot: Slot, now: int, id: str, buyer: str, call: Call) -> Ticket:
        """What the call would have heard of a ticket that has left Redis, had it not."""
        record = await self.left_redis(slot, id)
        if record.buyer != buyer:
            raise NotYourTicket
        if len(call) != PAYMENT_COLUMNS:
            if record.status is Status.CANCELLED:
                return await self.shown(slot, record, now, replayed=True)
        elif record.status is Status.PURCHASED and record.operation == call[2]:
            if APPROVED + record.reference != call[3]:
                raise IdempotencyKeyReused
            return await self.shown(slot, record, now, replayed=True, durability=_reached(call))
        return await self._raise_ended(slot, record, now)

    async def _raise_ended(self, slot: Slot, record: Record, now: int) -> Ticket:
        if record.status is Status.PURCHASED:
            raise AlreadyPurchased(await self.shown(slot, record, now))
        raise AlreadyCancelled() if record.status is Status.CANCELLED else TicketExpired(record.expires_at)

    # -- read ------------------------------------------------------------------------------------------------------

    async def read(self, slot: Slot, batch: Sequence[Call]) -> None:
        """Reads a batch of tickets."""
        ids, waiters = zip(*batch, strict=True)
        now, records = await slot.run(lambda floor, _: self._scripts.read(slot.keys, floor, ids), reads=True)
        for waiter, record in zip(waiters, records, strict=True):
            if not waiter.done():
                waiter.set_result((now, record))

    async def left_redis(self, slot: Slot, id: str) -> Record:
        """A ticket that Redis does not have: an old one that the store knows.

        Raises
        ------
        UnknownTicket: or none.
        NotReady: the store has it as reserved, so that Redis has lost it.
        """
        # Only what was folded has left; looking further would let anybody who makes up ids keep the store busy.
        record = await _stored(self._store.ticket(slot.name, id, pending=False))
        if record is None:
            raise UnknownTicket
        if record.status is Status.RESERVED:
            raise NotReady(
                f"Redis has lost tickets of '{slot.name}' that the store knows; run `holdfast recover`", 5000
            )
        return record

    async def shown(
        self, slot: Slot, record: Record, now: int, *, replayed: bool = False, durability: Durability | None = None
    ) -> Ticket:
        """The record as callers see it. Another process may have added the item it names: then the sale is read."""
        if record.last_item > len(slot.definition.items):
            await slot.sale()
        return record.ticket(slot.name, slot.definition, now, replayed=replayed, durability=durability)

    def _show(
        self,
        slot: Slot,
        waiter: Waiter,
        record: Record,
        now: int,
        *,
        replayed: bool = False,
        durability: Durability | None = None,
    ) -> None:
        if record.last_item > len(slot.definition.items):
            self._follow(waiter, self.shown(slot, record, now, replayed=replayed, durability=durability))
        elif not waiter.done():
            waiter.set_result(record.ticket(slot.name, slot.definition, now, replayed=replayed, durability=durability))

    # -- expire ----------------------------------------------------------------------------------------------------

    async def sweep(self, slot: Slot, *, gently: bool = False) -> int:
        """Expires everything that is due in a slot, a bounded call at a time; nothing in one that is not ready.

        Parameters
        ----------
        gently: leaves Redis to others between the calls: nobody waits for what comes back. Who needs a due unit takes
            it when reserving.

        Through the slot, like every transition: a sweep that wrote into a Redis which has lost something would bring
        its sequence up to the store's, and it would pass for whole.
        """
        expired, time = 0, asyncio.get_running_loop().time
        try:
            while True:
                began = time()
                swept = await slot.run(lambda floor, _: self._scripts.expire(slot.keys, floor), patient=False)
                expired += swept.expired
                self._meters.expired += swept.expired
                if not swept.more_due:
                    return expired
                if gently:
                    await asyncio.sleep(SWEEP_REST * (time() - began))
        except (NotReady, OutcomeUnknown, UnknownSale):
            return expired

    # -- answers that need another look ----------------------------------------------------------------------------

    def _follow(self, waiter: Waiter, work: Coroutine[Any, Any, Ticket | None]) -> None:
        if isinstance(waiter, Assured):
            waiter.hear()
        self._start(_settle(waiter, work))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def drained(self) -> None:
        """Returns once no answer is being looked up."""
        while self._following:
            await asyncio.wait(self._following)


async def _settle(waiter: Waiter, work: Coroutine[Any, Any, Ticket | None]) -> None:
    """Tells the outcome of the work; None is told by whoever goes on with the call."""
    try:
        ticket = await work
    except BaseException as error:
        tell(waiter, error)
        if not isinstance(error, Exception):
            raise
    else:
        if ticket is not None and not waiter.done():
            waiter.set_result(ticket)


async def _stored(work: Awaitable[T]) -> T:
    try:
        return await work
    except StoreError as error:
        raise NotReady(str(error)) from error


def _reached(call: Call) -> Durability | None:
    """What Redis' reply says of the durability of what the call did: a payment is in its memory."""
    return Durability.MEMORY if len(call) == PAYMENT_COLUMNS else None


def _refusal(slot: Slot, now: int, answer: Answer) -> HoldfastError:
    items = slot.definition.items
    match answer.outcome:
        case Outcome.IDEMPOTENCY_KEY_REUSED:
            return IdempotencyKeyReused()
        case Outcome.NOT_YET_OPEN:
            (opens_at,) = answer.numbers()
            return NotYetOpen(opens_at, max(1, opens_at - now))
        case Outcome.CLOSED:
            return Closed()
        case Outcome.LIMIT_REACHED:
            item, remaining = answer.numbers()
            return LimitReached(remaining, items[item - 1].sku if item else None)
        case Outcome.SOLD_OUT:
            item, available = answer.numbers()
            return SoldOut(items[item - 1].sku, available)
        case Outcome.ALL_HELD:
            item, available, deadline = answer.numbers()
            return AllHeld(items[item - 1].sku, available, max(1, deadline - now))
        case Outcome.UNKNOWN_ITEM:
            return NotReady(f"'{slot.name}' in Redis lacks an item that this process knows")
        case Outcome.NOT_YOUR_TICKET:
            return NotYourTicket()
        case Outcome.ALREADY_CANCELLED:
            return AlreadyCancelled()
        case Outcome.TICKET_EXPIRED:
            return TicketExpired(*answer.numbers())
        case Outcome.PAYMENT_DECLINED:
            return PaymentDeclined()
    raise AssertionError(f"a script answered {answer.outcome}")
