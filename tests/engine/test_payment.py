"""The payment flow, and each mistake of the original ticket demo that must not come back."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.engine import (
    AlreadyCancelled,
    AlreadyPurchased,
    Engine,
    IdempotencyKeyReused,
    InvalidRequest,
    NotYourTicket,
    PaymentDeclined,
    Status,
    TicketExpired,
    UnknownTicket,
)


@pytest.fixture(autouse=True)
async def gig(engine: Engine) -> None:
    await engine.create_sale("gig", name="The Gig", capacity=10, hold_ms=60_000)


async def counters(engine: Engine) -> tuple[int, int, int]:
    (item,) = (await engine.sale("gig")).items
    return item.available, item.reserved, item.purchased


async def test_confirming_changes_reserved_to_purchased(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=2)
    assert ticket.status is Status.RESERVED
    assert await counters(engine) == (8, 2, 0)
    paid = await engine.confirm(ticket.id, buyer="ann", reference="pay_123")
    assert paid.status is Status.PURCHASED
    assert paid.reference == "pay_123"
    assert await counters(engine) == (8, 0, 2)


async def test_cancelling_returns_the_units_to_the_pool(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=2)
    cancelled = await engine.cancel(ticket.id, buyer="ann")
    assert cancelled.status is Status.CANCELLED
    assert await counters(engine) == (10, 0, 0)


@pytest.mark.parametrize("id", ["gig.AAAAAAAAAAAAAAAAAAAAAA", "nosale.AAAAAAAAAAAAAAAAAAAAAA", "gig.short", "", "gig"])
async def test_confirming_a_ticket_that_does_not_exist_is_refused(engine: Engine, id: str) -> None:
    with pytest.raises(UnknownTicket):
        await engine.confirm(id, buyer="ann")
    with pytest.raises(UnknownTicket):
        await engine.cancel(id, buyer="ann")
    with pytest.raises(UnknownTicket):
        await engine.ticket(id)
    assert await counters(engine) == (10, 0, 0)


async def test_confirming_one_already_purchased_is_refused(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    await engine.confirm(ticket.id, buyer="ann")
    with pytest.raises(AlreadyPurchased) as refused:
        await engine.confirm(ticket.id, buyer="ann")
    assert refused.value.ticket.status is Status.PURCHASED
    assert await counters(engine) == (9, 0, 1)


async def test_cancel_checks_the_buyer(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    with pytest.raises(NotYourTicket):
        await engine.cancel(ticket.id, buyer="bob")
    with pytest.raises(NotYourTicket):
        await engine.confirm(ticket.id, buyer="bob")
    assert await counters(engine) == (9, 1, 0)


async def test_two_cancels_give_the_stock_back_once(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=3)
    answers = await asyncio.gather(*(engine.cancel(ticket.id, buyer="ann") for _ in range(20)))
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 19
    assert await counters(engine) == (10, 0, 0)


async def test_the_retry_of_a_successful_confirm_looks_like_the_success(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    first = await engine.confirm(ticket.id, buyer="ann", reference="pay_1", key="k")
    again = await engine.confirm(ticket.id, buyer="ann", reference="pay_1", key="k")
    assert again == first
    assert (first.replayed, again.replayed) == (False, True)
    with pytest.raises(IdempotencyKeyReused):
        await engine.confirm(ticket.id, buyer="ann", reference="pay_2", key="k")
    with pytest.raises(AlreadyPurchased):
        await engine.confirm(ticket.id, buyer="ann", reference="pay_1", key="other")


async def test_times_are_kept(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    assert ticket.expires_at - ticket.reserved_at == 60_000
    assert 0 < ticket.expires_in_ms <= 60_000
    paid = await engine.confirm(ticket.id, buyer="ann")
    assert paid.ended_at is not None
    assert ticket.reserved_at <= paid.ended_at <= paid.as_of
    assert paid.expires_in_ms == 0


async def test_a_late_payment_is_impossible_before_any_sweep(engine: Engine) -> None:
    await engine.create_sale("brief", name="Brief", capacity=1, hold_ms=1)
    engine._sweeper.sweep = None  # type: ignore[assignment, method-assign]  # nobody sweeps
    ticket = await engine.reserve("brief", buyer="ann", quantity=1)
    while (await engine.ticket(ticket.id)).status is Status.RESERVED:
        await asyncio.sleep(0.001)
    with pytest.raises(TicketExpired) as refused:
        await engine.confirm(ticket.id, buyer="ann")
    assert refused.value.expired_at == ticket.expires_at
    with pytest.raises(TicketExpired):
        await engine.cancel(ticket.id, buyer="ann")


async def test_cancelled_and_declined(engine: Engine) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    with pytest.raises(PaymentDeclined):
        await engine.confirm(ticket.id, buyer="ann", declined=True)
    after = await engine.ticket(ticket.id)
    assert (after.status, after.expires_at) == (Status.RESERVED, ticket.expires_at)
    await engine.cancel(ticket.id, buyer="ann")
    with pytest.raises(AlreadyCancelled):
        await engine.confirm(ticket.id, buyer="ann")
    paid = await engine.reserve("gig", buyer="ann", quantity=1)
    await engine.confirm(paid.id, buyer="ann")
    with pytest.raises(AlreadyPurchased):
        await engine.cancel(paid.id, buyer="ann")


@pytest.mark.parametrize("reference", ["", "x" * 256, "two\nlines", "bell\x07", "\ud800", 7, "\u2028"])
async def test_a_reference_that_cannot_be_kept_is_refused(engine: Engine, reference: object) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    with pytest.raises(InvalidRequest) as refused:
        await engine.confirm(ticket.id, buyer="ann", reference=reference)  # type: ignore[arg-type]
    assert refused.value.pointer == "/reference"
    assert await counters(engine) == (9, 1, 0)


@pytest.mark.parametrize("reference", ["with spaces  inside ", "ünïcödé 🎟", "a|b:c,d", "x" * 255, " "])
async def test_any_printable_reference_is_kept_as_it_is(engine: Engine, reference: str) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    await engine.confirm(ticket.id, buyer="ann", reference=reference)
    assert (await engine.ticket(ticket.id)).reference == reference
    await engine.snapshot()
    slot = await engine._slots.get("gig")
    record = await engine._store.ticket("gig", ticket.id.partition(".")[2])
    assert record is not None
    assert record.ticket("gig", slot.definition, 0).reference == reference


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é", "a\n", 7, "\x00"])
async def test_a_key_that_is_no_key_is_refused(engine: Engine, key: object) -> None:
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    for call in (
        engine.reserve("gig", buyer="ann", quantity=1, key=key),  # type: ignore[arg-type]
        engine.confirm(ticket.id, buyer="ann", key=key),  # type: ignore[arg-type]
        engine.cancel(ticket.id, buyer="ann", key=key),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest) as refused:
            await call
        assert refused.value.pointer == "/key"
    assert await counters(engine) == (9, 1, 0)
