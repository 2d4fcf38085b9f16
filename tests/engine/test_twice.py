"""Every call sent twice with the same operation id, in every state: one effect, the same answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import Engine, HoldfastError, Status, Ticket
from holdfast.engine.scripts import Batch

STATES = ["reserved", "purchased", "cancelled", "expired", "due"]


@pytest.fixture
async def forgetful(redis_server: Any, tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine that drops what has ended as soon as it is asked to."""
    async with Engine.connect(
        redis_server.url,
        store=f"sqlite:///{tmp_path / 'store.db'}",
        sweep=False,
        listen=False,
        snapshot_ms=None,
        retention_ms=0,
    ) as engine:
        yield engine


async def answer(call: Any) -> tuple[str, object, Ticket | None]:
    """What a call said: how it went, what it carried, and the ticket as it stands."""
    try:
        ticket = await call
        return "success", None, ticket
    except HoldfastError as error:
        return error.code, error.details(), None


async def make(engine: Engine, state: str) -> Ticket:
    """A ticket in this state, reserved with the key `r` and ended with `p` or `c`."""
    hold_ms = 40 if state in ("expired", "due") else 60_000
    await engine.create_sale("gig", name="Gig", capacity=5, hold_ms=hold_ms)
    ticket = await engine.reserve("gig", buyer="ann", quantity=2, key="r")
    if state == "purchased":
        await engine.confirm(ticket.id, buyer="ann", reference="pay", key="p")
    elif state == "cancelled":
        await engine.cancel(ticket.id, buyer="ann", key="c")
    elif state in ("expired", "due"):
        while (await engine.ticket(ticket.id)).status is Status.RESERVED:
            await asyncio.sleep(0.002)
        if state == "expired":
            await engine._sweeper.sweep("gig")
    return ticket


def calls(engine: Engine, ticket: Ticket) -> dict[str, Callable[[], Any]]:
    return {
        "reserve": lambda: engine.reserve("gig", buyer="ann", quantity=2, key="r"),
        "reserve otherwise": lambda: engine.reserve("gig", buyer="ann", quantity=1, key="r"),
        "confirm": lambda: engine.confirm(ticket.id, buyer="ann", reference="pay", key="p"),
        "confirm otherwise": lambda: engine.confirm(ticket.id, buyer="ann", reference="other", key="p"),
        "confirm anew": lambda: engine.confirm(ticket.id, buyer="ann", reference="pay", key="p2"),
        "cancel": lambda: engine.cancel(ticket.id, buyer="ann", key="c"),
        "cancel anew": lambda: engine.cancel(ticket.id, buyer="ann"),
        "confirm by another": lambda: engine.confirm(ticket.id, buyer="bob", key="p"),
        "cancel by another": lambda: engine.cancel(ticket.id, buyer="bob", key="c"),
    }


@pytest.mark.parametrize("call", ["reserve", "confirm", "cancel"])
@pytest.mark.parametrize("state", STATES)
async def test_twice_is_once(forgetful: Engine, state: str, call: str) -> None:
    ticket = await make(forgetful, state)
    first = await answer(calls(forgetful, ticket)[call]())
    before = await forgetful.sale("gig")
    again = await answer(calls(forgetful, ticket)[call]())
    assert again == first
    assert await forgetful.sale("gig") == before


@pytest.mark.parametrize("state", ["purchased", "cancelled", "expired"])
async def test_answers_are_the_same_before_and_after_redis_has_dropped_the_ticket(
    forgetful: Engine, state: str
) -> None:
    ticket = await make(forgetful, state)
    before = {name: await answer(call()) for name, call in calls(forgetful, ticket).items()}
    shown = await forgetful.ticket(ticket.id)
    counted = await forgetful.sale("gig")
    await forgetful.snapshot()
    # TIME in whole seconds decides what has ended long enough ago.
    give_up = time.monotonic() + 10
    while not await forgetful._retention.run():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
    assert await forgetful._servers.one.call("HLEN", "hf:{gig}:tickets") == 0
    after = {name: await answer(call()) for name, call in calls(forgetful, ticket).items()}
    assert after == before
    assert await forgetful.ticket(ticket.id) == shown
    assert await forgetful.sale("gig") == counted
    mine = await forgetful.tickets("gig", buyer="ann")
    assert [t.id for t in mine.items] == [ticket.id]
    # What was bought still counts against the buyer, whatever Redis has forgotten.
    await forgetful.amend_sale("gig", {"max_per_buyer": 2})
    code, details, _ = await answer(forgetful.reserve("gig", buyer="ann", quantity=1))
    assert (code, details) == (("limit_reached", {"remaining": 0}) if state == "purchased" else ("success", None))


async def test_the_same_operation_many_times_at_once(forgetful: Engine) -> None:
    await forgetful.create_sale("gig", name="Gig", capacity=5)
    reserved = await asyncio.gather(*(forgetful.reserve("gig", buyer="ann", quantity=2, key="r") for _ in range(50)))
    assert len({ticket.id for ticket in reserved}) == 1
    assert sum(not ticket.replayed for ticket in reserved) == 1
    paid = await asyncio.gather(*(forgetful.confirm(reserved[0].id, buyer="ann", key="p") for _ in range(50)))
    assert sum(not ticket.replayed for ticket in paid) == 1
    (item,) = (await forgetful.sale("gig")).items
    assert (item.available, item.reserved, item.purchased) == (3, 0, 2)


def words(batch: Batch) -> set[str]:
    """The first words of the answers."""
    return {raw.split(b" ")[0].decode() for raw in batch.answers}


async def test_a_script_call_repeated_whole_changes_nothing(forgetful: Engine) -> None:
    """What the engine does after a lost connection: the very same batch again."""
    await forgetful.create_sale("gig", name="Gig", capacity=100, hold_ms=60_000)
    slot = await forgetful._slots.get("gig")
    scripts = forgetful._scripts
    ids = [f"{at:022d}" for at in range(40)]
    who = forgetful.buyer_hash("ann")
    reserve = ids, [who] * 40, ["k1:2"] * 40
    confirm = ids[:20], [who] * 20, ["o" * 22] * 20, ["aref"] * 20
    cancel = ids[20:], [who] * 20, ["q" * 22] * 20
    assert set((await scripts.reserve(slot.keys, "0-0", *reserve)).answers) == {b"ok"}
    assert words(await scripts.reserve(slot.keys, "0-0", *reserve)) == {"replayed"}
    assert words(await scripts.confirm(slot.keys, "0-0", *confirm)) == {"r"}
    paid = await scripts.confirm(slot.keys, "0-0", *confirm)
    assert words(paid) == {"replayed"}
    assert (await scripts.confirm(slot.keys, "0-0", *confirm)).answers == paid.answers
    gone = await scripts.cancel(slot.keys, "0-0", *cancel)
    assert words(gone) == {"ok"}
    again = await scripts.cancel(slot.keys, "0-0", *cancel)
    assert [raw.replace(b"replayed", b"ok") for raw in again.answers] == gone.answers
    (item,) = (await forgetful.sale("gig")).items
    assert (item.available, item.reserved, item.purchased) == (60, 0, 40)


async def test_an_answer_of_a_server_that_was_replaced_meanwhile_is_asked_for_again(
    forgetful: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replica may have taken over without what it has just done."""
    ticket = await make(forgetful, "reserved")
    confirm, asked = forgetful._scripts.confirm, []

    async def replaced(*args: Any) -> Batch:
        answered = await confirm(*args)
        asked.append(answered)
        if len(asked) == 1:
            forgetful._servers.one.generation += 1
        return answered

    monkeypatch.setattr(forgetful._scripts, "confirm", replaced)
    paid = await forgetful.confirm(ticket.id, buyer="ann", key="p")
    assert (paid.status, len(asked)) == (Status.PURCHASED, 2)
