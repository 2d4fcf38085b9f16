"""Many reservations or payments in one call: each with its own outcome, in order, and none for another's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import (
    AllHeld,
    AlreadyPurchased,
    Engine,
    HoldfastError,
    IdempotencyKeyReused,
    InvalidRequest,
    ItemSpec,
    LimitReached,
    Line,
    NotReady,
    NotYourTicket,
    Order,
    OutcomeUnknown,
    Overloaded,
    Payment,
    PaymentDeclined,
    SoldOut,
    Status,
    Ticket,
    UnknownSale,
    UnknownTicket,
)
from holdfast.engine.connection import NoReply


def connect(server: Any, tmp_path: Path, **options: Any) -> Engine:
    return Engine.connect(server.url, store=f"sqlite:///{tmp_path / 'store.db'}", **options)


def kinds(answers: list[Ticket | HoldfastError]) -> list[type]:
    return [type(answer) for answer in answers]


async def reserved(engine: Engine, sale: str = "gig") -> int:
    return (await engine.sale(sale)).items[0].reserved


# Reserve --------------------------------------------------------------------------------------------------------------


async def test_each_has_its_outcome_in_order(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", items=[ItemSpec("seat", 4, max_per_buyer=2), ItemSpec("box", 9)])
    answers = await engine.reserve_many(
        "gig",
        [
            Order("ann", lines={"seat": 2}),
            Order("ann", lines={"seat": 1}),
            Order("bob", lines=[Line("seat", 1), Line("box", 3)]),
            Order("cid", lines={"seat": 2}),
            Order("dan", lines={"box": 99}),
            Order("eve", lines={"seat": 1}),
        ],
    )
    assert kinds(answers) == [Ticket, LimitReached, Ticket, AllHeld, SoldOut, Ticket]
    hashes = [answer.buyer for answer in answers if isinstance(answer, Ticket)]
    assert hashes == [engine.buyer_hash(name) for name in ("ann", "bob", "eve")]
    seat, box = (await engine.sale("gig")).items
    assert (seat.available, seat.reserved, box.reserved) == (0, 4, 3)


async def test_nothing_asked_is_nothing_done(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=1)
    assert await engine.reserve_many("gig", []) == []
    assert await engine.confirm_many("gig", []) == []
    with pytest.raises(UnknownSale):
        await engine.reserve_many("nope", [Order("ann", 1)])
    with pytest.raises(UnknownSale):
        await engine.confirm_many("nope", [Payment("nope.x", "ann")])


async def test_the_buyers_hashes_are_those_of_single_calls(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=100)
    names = ["a", "ünïcode", "漢字" * 100, "x" * 512, " ", "fp-12345678"]
    answers = await engine.reserve_many("gig", [Order(name, 1) for name in names])
    assert [answer.buyer for answer in answers if isinstance(answer, Ticket)] == list(map(engine.buyer_hash, names))


async def test_a_key_means_the_same_in_both_ways(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=10)
    single = await engine.reserve("gig", buyer="ann", quantity=2, key="k-1")
    orders = [
        Order("ann", 2, key="k-1"),  # as the single call
        Order("ann", 1, key="k-1"),  # the same key for something else
        Order("bob", 2, key="k-1"),  # another buyer's key
        Order("bob", 2, key="k-1"),  # twice in one call
        Order("ann", 2, key="k-2"),
    ]
    answers = await engine.reserve_many("gig", orders)
    assert kinds(answers) == [Ticket, IdempotencyKeyReused, Ticket, Ticket, Ticket]
    first, _, theirs, again, last = answers
    assert isinstance(first, Ticket) and isinstance(theirs, Ticket) and isinstance(again, Ticket)  # noqa: PT018
    assert (first.id, first.replayed) == (single.id, True)
    assert (theirs.replayed, again.replayed, theirs.id) == (False, True, again.id)
    assert isinstance(last, Ticket)
    assert last.id == engine.ticket_id("gig", buyer="ann", key="k-2")
    assert (await engine.reserve("gig", buyer="ann", quantity=2, key="k-2")).replayed
    assert await reserved(engine) == 6
    repeated = await engine.reserve_many("gig", [orders[0], *orders[2:]])
    assert all(isinstance(answer, Ticket) and answer.replayed for answer in repeated)
    assert await reserved(engine) == 6


async def test_a_mistake_in_one_entry_leaves_all_undone(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=10)
    good = Order("ann", 1)
    bad: list[tuple[str, Any]] = [
        ("/quantity", Order("ann", 0)),
        ("/quantity", Order("ann", True)),
        ("/quantity", Order("ann")),
        ("/quantity", Order("ann", 1, {"general": 1})),
        ("/lines/0/sku", Order("ann", lines={"nope": 1})),
        ("/lines/1/quantity", Order("ann", lines=[Line("general", 1), Line("general", -1)])),
        ("/buyer", Order("", 1)),
        ("/buyer", Order("b" * 513, 1)),
        ("/buyer", Order("\ud800", 1)),
        ("/key", Order("ann", 1, key="a b")),
        ("/key", Order("ann", 1, key="")),
    ]
    for pointer, order in bad:
        with pytest.raises(InvalidRequest) as refusal:
            await engine.reserve_many("gig", [good, order, good])
        assert refusal.value.pointer == f"/entries/1{pointer}"
        assert len(refusal.value.mistakes) == 1
    with pytest.raises(InvalidRequest) as refusal:
        await engine.reserve_many("gig", [good, *(order for _, order in bad)])
    told = [pointer for pointer, _ in refusal.value.mistakes]
    assert told[:6] == [f"/entries/{at}{bad[at - 1][0]}" for at in range(1, 7)]
    assert {pointer.split("/")[2] for pointer in told} == set(map(str, range(1, len(bad) + 1)))
    assert "more)" in str(refusal.value)
    assert (await engine.sale("gig")).sequence == 1


async def test_an_item_that_another_process_added_is_found(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as one, connect(redis_server, tmp_path) as two:
        await one.create_sale("gig", name="Gig", capacity=5)
        await two.sale("gig")
        await one.amend_sale("gig", {"items": [{"sku": "vip", "capacity": 5}]})
        orders = [Order("ann", lines={"general": 1}), Order("bob", lines={"vip": 1})]
        assert kinds(await two.reserve_many("gig", orders)) == [Ticket, Ticket]


async def test_what_is_known_to_be_sold_out_refuses_no_other(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=3)
    with pytest.raises(SoldOut):
        await engine.reserve("gig", buyer="ann", quantity=9)
    answers = await engine.reserve_many("gig", [Order("ann", 9), Order("bob", 1), Order("cid", 9), Order("dan", 2)])
    assert kinds(answers) == [SoldOut, Ticket, SoldOut, Ticket]
    with pytest.raises(InvalidRequest):
        await engine.reserve_many("gig", [Order("ann", 9), Order("bob", 0)])


async def test_first_come_first_served_among_everybody(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=400)
        await engine.sale("gig")
        before = asyncio.gather(*(engine.reserve("gig", buyer=f"a{at}", quantity=1) for at in range(100)))
        await asyncio.sleep(0)
        many = asyncio.ensure_future(engine.reserve_many("gig", [Order(f"b{at}", 1) for at in range(350)]))
        await asyncio.sleep(0)
        after = await asyncio.gather(
            *(engine.reserve("gig", buyer=f"c{at}", quantity=1) for at in range(50)), return_exceptions=True
        )
        assert len(await before) == 100
        assert kinds(await many) == [Ticket] * 300 + [AllHeld] * 50
        assert {type(answer) for answer in after} == {AllHeld}


@pytest.mark.parametrize("processes", [1, 2])
async def test_500_entries_and_single_calls_share_100_units(redis_server: Any, tmp_path: Path, processes: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(connect(redis_server, tmp_path)) for _ in range(processes)]
        await engines[0].create_sale("gig", name="Gig", capacity=100, max_per_buyer=1)
        names = [f"b{at}" for at in range(500)]
        singles = [engines[at % processes].reserve("gig", buyer=f"s{at}", quantity=1, key="k") for at in range(300)]
        many = [
            engine.reserve_many("gig", [Order(name, 1, key="k") for name in names]) for engine in (*engines, *engines)
        ]
        told = await asyncio.gather(*singles, *many, return_exceptions=True)
        won = {answer.id for answer in told[:300] if isinstance(answer, Ticket)}
        for answers in told[300:]:
            assert isinstance(answers, list)
            assert set(kinds(answers)) <= {Ticket, AllHeld}
            won |= {answer.id for answer in answers if isinstance(answer, Ticket)}
        assert len(won) == 100
        assert await reserved(engines[0]) == 100


async def test_the_queue_is_full_for_those_who_do_not_fit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.create_sale("gig", name="Gig", capacity=1000)
    slot = await engine._slots.get("gig")
    monkeypatch.setattr(slot.reserves, "_queue_max", 7)
    answers = await engine.reserve_many("gig", [Order(f"b{at}", 1) for at in range(10)])
    assert kinds(answers) == [Ticket] * 7 + [Overloaded] * 3
    first, second = await asyncio.gather(
        engine.reserve_many("gig", [Order(f"b{at}", 1) for at in range(5)]),
        engine.reserve_many("gig", [Order(f"b{at}", 1) for at in range(5)]),
    )
    assert kinds(first + second) == [Ticket] * 7 + [Overloaded] * 3
    assert await reserved(engine) == 14


# Confirm --------------------------------------------------------------------------------------------------------------


async def test_payments_each_have_their_outcome(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=10)
    await engine.create_sale("other", name="Other", capacity=10)
    one, two, three = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(3)]
    elsewhere = await engine.reserve("other", buyer="ann", quantity=1)
    answers = await engine.confirm_many(
        "gig",
        [
            Payment(one.id, "ann", "pay_1", "k"),
            Payment(one.id, "ann", "pay_1", "k"),
            Payment(one.id, "ann", "pay_1"),
            Payment(two.id, "bob"),
            Payment(two.id, "ann", declined=True),
            Payment(elsewhere.id, "ann"),
            Payment("gig.aaaaaaaaaaaaaaaaaaaaaa", "ann"),
            Payment("no ticket", "ann"),
            Payment("", "ann"),
            Payment(three.id, "ann"),
        ],
    )
    unknown = [UnknownTicket] * 4
    expected = [Ticket, Ticket, AlreadyPurchased, NotYourTicket, PaymentDeclined, *unknown, Ticket]
    assert kinds(answers) == expected
    paid, again = answers[:2]
    assert isinstance(paid, Ticket) and isinstance(again, Ticket)  # noqa: PT018
    assert (paid.status, paid.reference, paid.replayed, again.replayed) == (Status.PURCHASED, "pay_1", False, True)
    assert (await engine.confirm(one.id, buyer="ann", reference="pay_1", key="k")).replayed
    assert (await engine.ticket(elsewhere.id)).status is Status.RESERVED
    assert (await engine.sale("gig")).items[0].purchased == 2


async def test_a_mistake_in_one_payment_leaves_all_undone(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=10)
    ticket = await engine.reserve("gig", buyer="ann", quantity=1)
    good = Payment(ticket.id, "ann")
    for pointer, bad in [
        ("/reference", Payment(ticket.id, "ann", "a\nb")),
        ("/reference", Payment("unknown anyway", "ann", "")),
        ("/buyer", Payment(ticket.id, "")),
        ("/key", Payment(ticket.id, "ann", key="ü")),
    ]:
        with pytest.raises(InvalidRequest) as refusal:
            await engine.confirm_many("gig", [good, bad])
        assert refusal.value.pointer == f"/entries/1{pointer}"
    assert (await engine.ticket(ticket.id)).status is Status.RESERVED


# When Redis, or the caller, goes away ---------------------------------------------------------------------------------


async def test_a_connection_lost_in_the_middle_has_one_effect(
    redis_server: Any, tmp_path: Path, losing_replies: Any
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=500)
        with losing_replies() as calls:
            tickets = await engine.reserve_many("gig", [Order(f"b{at}", 1) for at in range(400)])
            assert set(kinds(tickets)) == {Ticket}
            payments = [Payment(ticket.id, f"b{at}") for at, ticket in enumerate(tickets) if isinstance(ticket, Ticket)]
            paid = await engine.confirm_many("gig", payments)
        assert len(calls) > 4
        assert set(kinds(paid)) == {Ticket}
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (100, 0, 400)


async def test_a_script_call_that_is_lost_is_unknown_for_its_entries_alone(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.servers.Servers.patience_s", 0.1)
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=500)
        real = engine._scripts.reserve
        orders = [Order(f"b{at}", 1, key="k") for at in range(400)]
        second = engine.ticket_id("gig", buyer="b150", key="k").partition(".")[2]

        async def loses_the_second(keys: Any, floor: str, ids: Any, *columns: Any) -> Any:
            answer = await real(keys, floor, ids, *columns)
            if ids[0] == second:
                raise NoReply("lost")
            return answer

        monkeypatch.setattr(engine._scripts, "reserve", loses_the_second)
        answers = await engine.reserve_many("gig", orders)
        assert kinds(answers) == [Ticket] * 150 + [OutcomeUnknown] * 150 + [Ticket] * 100
        monkeypatch.setattr(engine._scripts, "reserve", real)
        again = await engine.reserve_many("gig", orders)
        assert all(isinstance(answer, Ticket) and answer.replayed for answer in again)
        assert await reserved(engine) == 400


async def test_a_redis_that_is_gone_refuses_each(
    private_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.servers.Servers.patience_s", 0.2)
    async with connect(private_redis, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        private_redis.kill()
        orders = [Order(f"b{at}", 1, key="k") for at in range(5)]
        for answers in (
            await engine.reserve_many("gig", orders),
            await engine.reserve_many("gig", orders),
            await engine.confirm_many("gig", [Payment(ticket.id, "ann")] * 5),
        ):
            assert set(kinds(answers)) <= {NotReady, OutcomeUnknown}
            assert len(answers) == 5
    # A process that has not met the sale cannot even look it up.
    private_redis.start()
    async with connect(private_redis, tmp_path, snapshot_ms=None) as fresh:
        private_redis.kill()
        assert kinds(await fresh.reserve_many("gig", orders)) == [NotReady] * 5
        assert kinds(await fresh.confirm_many("gig", [Payment(ticket.id, "ann")])) == [NotReady]
        with pytest.raises(UnknownSale):
            await fresh.reserve_many("nope", orders)
        private_redis.start()


async def test_a_mistake_of_ours_is_logged_and_leaves_the_outcome_open(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=500)
    await engine.sale("gig")

    async def broken(*args: Any) -> Any:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(engine._scripts, "reserve", broken)
    with caplog.at_level(logging.ERROR, "holdfast.engine"):
        answers = await engine.reserve_many("gig", [Order(f"b{at}", 1) for at in range(200)])
    assert kinds(answers) == [OutcomeUnknown] * 200
    assert len([record for record in caplog.records if record.exc_info]) == 2  # one for each script call


async def test_what_was_not_sent_when_the_caller_goes_is_not_done(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1000)
        real, sent = engine._scripts.reserve, asyncio.Event()

        async def held_up(*args: Any) -> Any:
            sent.set()
            await asyncio.sleep(0.05)
            return await real(*args)

        engine._scripts.reserve = held_up  # type: ignore[method-assign]
        task = asyncio.create_task(engine.reserve_many("gig", [Order(f"b{at}", 1) for at in range(500)]))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Somebody else's call comes behind what is left of it.
        await engine.reserve("gig", buyer="ann", quantity=1)
        assert await reserved(engine) == 151
        engine._scripts.reserve = real  # type: ignore[method-assign]


async def test_an_engine_that_closes_refuses_each(engine: Engine) -> None:
    await engine.create_sale("gig", name="Gig", capacity=10)
    await engine.reserve("gig", buyer="ann", quantity=1)
    await engine._slots.drained()
    assert kinds(await engine.reserve_many("gig", [Order("ann", 1)] * 3)) == [NotReady] * 3
