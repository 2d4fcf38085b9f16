"""Random histories, side by side: the engine on a real server, and a plain Python model of what it should do.

Time is the slot's own (`test-now`), so that a history of days takes milliseconds and replays exactly. The same machine
runs on the embedded 6.2, on an installed server, on one in cluster mode, on every deployment, with sales in one slot
and in shards, and on fakeredis as far as that goes. The model knows nothing of any of this.
`HOLDFAST_EXAMPLES=1000 pytest tests/engine/test_model.py` looks longer, and elsewhere each time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fakeredis
import pytest
import redis.asyncio as redis_asyncio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from holdfast.engine import CapacityInUse, Engine, HoldfastError, ItemSpec, Status, Ticket
from holdfast.engine.keys import slot_keys

#: A clock that the tests set: the scripts read it from the slot's own hash instead of asking Redis for TIME.
MOVABLE_CLOCK = "local function clock() return tonumber(redis.call('HGET', KEYS[1], 'test-now')) end"
START = 1_800_000_000_000
EXAMPLES = int(os.environ.get("HOLDFAST_EXAMPLES", "15"))

SALES = ("one", "two")
BUYERS = ("ann", "bob", "cyd")
KEYS = st.sampled_from([None, "k1", "k2", "k3"])
LINES = st.dictionaries(st.sampled_from(["vip", "floor"]), st.integers(1, 4), min_size=1)


@dataclass
class Held:
    """A ticket in the model."""

    id: str
    buyer: str
    lines: dict[str, int]
    reserved_at: int
    expires_at: int
    status: Status = Status.RESERVED
    end_key: str | None = None
    reference: str | None = None
    ended_at: int | None = None


@dataclass
class Model:
    """A sale in the model: what was said of it, and every ticket there ever was."""

    capacity: dict[str, int]
    item_max: dict[str, int | None]
    max_per_buyer: int | None = None
    hold_ms: int = 1000
    opens_at: int | None = None
    closes_at: int | None = None
    tickets: dict[str, Held] = field(default_factory=dict)

    def status(self, ticket: Held, now: int) -> Status:
        due = ticket.status is Status.RESERVED and now >= ticket.expires_at
        return Status.EXPIRED if due else ticket.status

    def live(self, now: int) -> list[Held]:
        return [t for t in self.tickets.values() if self.status(t, now) in (Status.RESERVED, Status.PURCHASED)]

    def units(self, sku: str, status: Status, now: int) -> int:
        return sum(t.lines.get(sku, 0) for t in self.tickets.values() if self.status(t, now) is status)

    def refusal(self, buyer: str, lines: dict[str, int], now: int) -> tuple[str, dict[str, Any]] | None:
        """What a reservation should hear, or None when it should be met."""
        if self.opens_at and now < self.opens_at:
            return "not_yet_open", {"opens_at": self.opens_at}
        if self.closes_at and now >= self.closes_at:
            return "closed", {}
        mine = [t for t in self.live(now) if t.buyer == buyer]
        had = sum(sum(t.lines.values()) for t in mine)
        if self.max_per_buyer and had + sum(lines.values()) > self.max_per_buyer:
            return "limit_reached", {"remaining": max(0, self.max_per_buyer - had)}
        for sku in (sku for sku in self.capacity if sku in lines):
            most, had = self.item_max[sku], sum(t.lines.get(sku, 0) for t in mine)
            if most and had + lines[sku] > most:
                return "limit_reached", {"remaining": max(0, most - had), "sku": sku}
        held_by_others = None
        for sku in (sku for sku in self.capacity if sku in lines):
            sold = self.units(sku, Status.PURCHASED, now)
            available = self.capacity[sku] - sold - self.units(sku, Status.RESERVED, now)
            if self.capacity[sku] - sold < lines[sku]:
                return "sold_out", {"sku": sku}
            if available < lines[sku] and held_by_others is None:
                held_by_others = {"sku": sku, "available": available}
        return ("all_held", held_by_others) if held_by_others else None


class Histories(RuleBasedStateMachine):
    """Drives engine and model, and compares every answer."""

    #: Gives the engine its server: an address, or a pool on a fake.
    connect: ClassVar[Callable[[], str | redis_asyncio.ConnectionPool]]
    loses_data: ClassVar[bool] = True
    #: Over how many slots each sale is divided.
    shards: ClassVar[int | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.home = tempfile.mkdtemp(prefix="hf-model-")
        self.now = START
        self.models: dict[str, Model] = {}
        self.server = type(self).connect()
        self.lost = False
        self.engine = self.open()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def open(self) -> Engine:
        url = self.server if isinstance(self.server, str) else "redis://fake"
        engine = Engine.connect(
            url,
            store=f"sqlite:///{self.home}/store.db",
            secret="a secret of the tests",
            sweep=False,
            listen=False,
            snapshot_ms=None,
            # Whatever has ended may be dropped at once: the clock of the tests is far from the server's.
            retention_ms=-(10**13),
        )
        if not isinstance(self.server, str):
            engine._pool = self.server
        engine._replaced = {"clock": MOVABLE_CLOCK}
        self.run(engine.start())
        clocked = engine._servers.clocked

        async def at_our_time(*args: Any, **how: Any) -> list[tuple[int, Any]]:
            return [(self.now, reply) for _, reply in await clocked(*args, **how)]

        engine._servers.clocked = at_our_time  # type: ignore[method-assign]
        return engine

    def slots(self, *sales: str) -> list[str]:
        """The slots of these sales, or of all."""
        numbers = range(1, self.shards + 1) if self.shards else None
        return [slot for sale in sales or SALES for slot in ([f"{sale}~{n}" for n in numbers] if numbers else [sale])]

    def teardown(self) -> None:
        if not self.lost:
            self.sweep_all()
            self.everything_agrees()
        self.run(self.engine.close())
        self.runner.close()
        shutil.rmtree(self.home)

    def tell_time(self, *sales: str) -> None:
        async def tell() -> None:
            for slot in self.slots(*(sales or self.models)):
                await self.engine._servers.call(slot, "HSET", slot_keys(slot).sale, "test-now", str(self.now))

        self.run(tell())

    @initialize(vip=st.integers(0, 5), floor=st.integers(0, 8), vip_max=st.sampled_from([None, 2]))
    def create(self, vip: int, floor: int, vip_max: int | None) -> None:
        for sale, most in zip(SALES, (None, 4), strict=True):
            self.models[sale] = Model({"vip": vip, "floor": floor}, {"vip": vip_max, "floor": None}, most)
            self.tell_time(sale)
            items = [ItemSpec("vip", vip, max_per_buyer=vip_max), ItemSpec("floor", floor)]
            for created in (True, False):
                made = self.run(
                    self.engine.create_sale(
                        sale, name=sale, items=items, hold_ms=1000, max_per_buyer=most, shards=self.shards
                    )
                )
                assert made.created is created

    def attempt(self, call: Coroutine[Any, Any, Ticket]) -> tuple[str, Ticket | HoldfastError]:
        try:
            ticket: Ticket = self.run(call)
            return ("replayed" if ticket.replayed else "ok"), ticket
        except HoldfastError as error:
            return error.code, error

    def matches(self, sale: str, ticket: Ticket, held: Held) -> None:
        """The engine's ticket says what the model's does."""
        model = self.models[sale]
        assert ticket.id == held.id
        assert ticket.status is model.status(held, self.now)
        assert {line.sku: line.quantity for line in ticket.lines} == held.lines
        assert (ticket.reserved_at, ticket.expires_at) == (held.reserved_at, held.expires_at)
        assert ticket.reference == held.reference
        expired = ticket.status is Status.EXPIRED
        assert ticket.ended_at == (held.expires_at if expired else held.ended_at)
        assert ticket.buyer == self.engine.buyer_hash(held.buyer)

    @rule(sale=st.sampled_from(SALES), buyer=st.sampled_from(BUYERS), lines=LINES, key=KEYS)
    def reserve(self, sale: str, buyer: str, lines: dict[str, int], key: str | None) -> None:
        model = self.models[sale]
        got, answer = self.attempt(self.engine.reserve(sale, buyer=buyer, lines=lines, key=key))
        if self.lost:
            assert got == "not_ready"
            return
        known = model.tickets.get(self.engine.ticket_id(sale, buyer=buyer, key=key)) if key else None
        if known is not None:
            assert got == ("replayed" if known.lines == lines else "idempotency_key_reused")
            if got == "replayed":
                self.matches(sale, answer, known)  # type: ignore[arg-type]
            return
        refusal = model.refusal(buyer, lines, self.now)
        if refusal is None:
            assert isinstance(answer, Ticket), answer
            assert got == "ok"
            held = Held(answer.id, buyer, dict(lines), self.now, self.now + model.hold_ms)
            model.tickets[answer.id] = held
            self.matches(sale, answer, held)
            return
        assert isinstance(answer, HoldfastError), (answer, refusal)
        code, details = refusal
        assert got == code
        said = answer.details()
        assert details.items() <= said.items(), (said, details)
        if code == "all_held":
            ends = [t.expires_at for t in model.live(self.now) if t.status is Status.RESERVED]
            wait = min(ends) - self.now
            # With many dead members at its head the index may name an earlier instant, never a later one.
            assert 0 < said["retry_after_ms"] <= wait  # type: ignore[operator]
            if len(model.tickets) <= 8:
                assert said["retry_after_ms"] == wait

    def pick(self, data: st.DataObject) -> tuple[str, Held] | None:
        tickets = [(sale, held) for sale, model in self.models.items() for held in model.tickets.values()]
        return data.draw(st.sampled_from(tickets)) if tickets else None

    @rule(
        data=st.data(),
        stranger=st.booleans(),
        key=KEYS,
        reference=st.sampled_from([None, "pay 1"]),
        declined=st.booleans(),
    )
    def confirm(
        self, data: st.DataObject, stranger: bool, key: str | None, reference: str | None, declined: bool
    ) -> None:
        if (picked := self.pick(data)) is None:
            return
        sale, held = picked
        status = self.models[sale].status(held, self.now)
        buyer = held.buyer if not stranger else "zoe"
        got, answer = self.attempt(
            self.engine.confirm(held.id, buyer=buyer, key=key, reference=reference, declined=declined)
        )
        if self.lost:
            assert got == "not_ready"
        elif stranger:
            assert got == "not_your_ticket"
        elif status is Status.PURCHASED and key is not None and key == held.end_key:
            same = reference == held.reference and not declined
            assert got == ("replayed" if same else "idempotency_key_reused")
        elif status is not Status.RESERVED:
            assert (
                got
                == {
                    Status.PURCHASED: "already_purchased",
                    Status.CANCELLED: "already_cancelled",
                    Status.EXPIRED: "ticket_expired",
                }[status]
            )
        elif declined:
            assert got == "payment_declined"
        else:
            assert got == "ok"
            held.status, held.end_key, held.reference, held.ended_at = Status.PURCHASED, key, reference, self.now
        if isinstance(answer, Ticket):
            self.matches(sale, answer, held)

    @rule(data=st.data(), stranger=st.booleans(), key=KEYS)
    def cancel(self, data: st.DataObject, stranger: bool, key: str | None) -> None:
        if (picked := self.pick(data)) is None:
            return
        sale, held = picked
        status = self.models[sale].status(held, self.now)
        got, answer = self.attempt(self.engine.cancel(held.id, buyer="zoe" if stranger else held.buyer, key=key))
        if self.lost:
            assert got == "not_ready"
        elif stranger:
            assert got == "not_your_ticket"
        elif status is Status.RESERVED:
            assert got == "ok"
            held.status, held.end_key, held.ended_at = Status.CANCELLED, key, self.now
        else:
            assert (
                got
                == {
                    Status.CANCELLED: "replayed",
                    Status.PURCHASED: "already_purchased",
                    Status.EXPIRED: "ticket_expired",
                }[status]
            )
        if isinstance(answer, Ticket):
            self.matches(sale, answer, held)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        if (picked := self.pick(data)) is None:
            return
        sale, held = picked
        got, answer = self.attempt(self.engine.ticket(held.id))
        assert got == ("not_ready" if self.lost else "ok")
        if isinstance(answer, Ticket):
            self.matches(sale, answer, held)

    @rule(by=st.sampled_from([1, 400, 999, 1000, 1001, 5000]))
    def time_passes(self, by: int) -> None:
        self.now += by
        if not self.lost:
            self.tell_time()

    @precondition(lambda self: not self.lost)
    @rule(by=st.sampled_from([1, 700, 3000]))
    def clock_jumps_back(self, by: int) -> None:
        # What was swept stays expired; what was not yet lives a little longer.
        self.sweep_all()
        self.now -= by
        self.tell_time()

    @precondition(lambda self: not self.lost)
    @rule()
    def sweep_all(self) -> None:
        for sale, model in self.models.items():
            for slot in self.slots(sale):
                self.run(self.engine._sweeper.sweep(slot))
            for held in model.tickets.values():
                held.status = model.status(held, self.now)

    @precondition(lambda self: not self.lost)
    @rule(
        sale=st.sampled_from(SALES),
        vip=st.integers(0, 6),
        most=st.sampled_from([None, 2, 5]),
        hold_ms=st.sampled_from([1, 1000, 3000]),
        opens=st.sampled_from([None, -500, 500]),
        closes=st.sampled_from([None, 600, 2000]),
    )
    def amend(self, sale: str, vip: int, most: int | None, hold_ms: int, opens: int | None, closes: int | None) -> None:
        model = self.models[sale]
        opens_at = None if opens is None else self.now + opens
        closes_at = None if closes is None else self.now + closes
        changes: dict[str, object] = {
            "items": [{"sku": "vip", "capacity": vip}],
            "max_per_buyer": most,
            "hold_ms": hold_ms,
            "opens_at": opens_at,
            "closes_at": closes_at,
        }
        in_use = model.units("vip", Status.RESERVED, self.now) + model.units("vip", Status.PURCHASED, self.now)
        if vip < in_use:
            with pytest.raises(CapacityInUse) as refused:
                self.run(self.engine.amend_sale(sale, changes))
            assert refused.value.details() == {"sku": "vip", "in_use": in_use}
            return
        self.run(self.engine.amend_sale(sale, changes))
        model.capacity["vip"], model.max_per_buyer, model.hold_ms = vip, most, hold_ms
        model.opens_at, model.closes_at = opens_at, closes_at

    @precondition(lambda self: not self.lost)
    @rule()
    def snapshot(self) -> None:
        self.run(self.engine.snapshot())
        assert self.engine._snapshot.alarms == []

    @precondition(lambda self: not self.lost)
    @rule()
    def drop_the_ended(self) -> None:
        self.run(self.engine.snapshot())
        self.run(self.engine._retention.run())

    @rule()
    def another_process(self) -> None:
        if not isinstance(self.server, str):
            return
        self.run(self.engine.close())
        self.engine = self.open()

    @precondition(lambda self: not self.lost and type(self).loses_data)
    @rule()
    def redis_loses_everything(self) -> None:
        """After a snapshot, so that the model still holds; from here on nothing is sold until recovery."""
        self.run(self.engine.snapshot())

        async def lose() -> None:
            for slot in self.slots():
                names = ("sale", "tickets", "buyers", "deadlines", "ledger")
                await self.engine._servers.call(slot, "UNLINK", *[getattr(slot_keys(slot), name) for name in names])

        self.run(lose())
        self.lost = True

    @precondition(lambda self: not self.lost and type(self).loses_data)
    @rule()
    def recover_what_is_whole(self) -> None:
        report = self.run(self.engine.recover(list(SALES)))
        assert report.clean

    @precondition(lambda self: self.lost)
    @rule()
    def recover(self) -> None:
        assert not self.run(self.engine.readiness()).ready
        # The hash is new: the clock of the tests has to be told before the scripts can ask for it.
        self.tell_time()
        report = self.run(self.engine.recover())
        assert report.clean
        assert {slot.slot for slot in report.slots} == set(self.slots())
        assert self.run(self.engine.readiness()).ready
        self.lost = False

    @invariant()
    def nothing_is_sold_twice_or_lost(self) -> None:
        if self.lost:
            return
        for name, model in self.models.items():
            sale = self.run(self.engine.sale(name))
            for item in sale.items:
                counts = (item.available, item.reserved, item.purchased, item.in_transit)
                assert min(counts) >= 0
                assert sum(counts) == item.capacity == model.capacity[item.sku]
                assert item.purchased == model.units(item.sku, Status.PURCHASED, self.now)
                # Holds that have run out and were not swept yet still count as reserved.
                assert item.reserved >= model.units(item.sku, Status.RESERVED, self.now)

    def everything_agrees(self) -> None:
        """Once swept: counters, the operator's list and each buyer's list against the model."""
        for name, model in self.models.items():
            sale = self.run(self.engine.sale(name))
            for item in sale.items:
                assert item.reserved == model.units(item.sku, Status.RESERVED, self.now)
            listed = {t.id: t for t in self.run(self.engine.tickets(name, limit=500)).items}
            assert listed.keys() == model.tickets.keys()
            for held in model.tickets.values():
                self.matches(name, listed[held.id], held)
            for buyer in BUYERS:
                mine = self.run(self.engine.tickets(name, buyer=buyer, limit=500)).items
                assert {t.id for t in mine} == {t.id for t in model.tickets.values() if t.buyer == buyer}


def run_histories(connect: Callable[[], str | redis_asyncio.ConnectionPool], **attributes: object) -> None:
    machine = type("Machine", (Histories,), {"connect": staticmethod(connect), **attributes})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            derandomize="HOLDFAST_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["embedded", "installed", "cluster"])
def test_engine_does_what_the_model_does(kind: str, servers: Callable[[str], Any]) -> None:
    process = servers(kind)
    run_histories(process.empty)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sentinels", "cluster", "valkey cluster"])
def test_it_does_so_on_every_deployment(kind: str, deployment: Callable[[str], str]) -> None:
    run_histories(lambda: deployment(kind))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["one server", "cluster"])
@pytest.mark.parametrize("shards", [2, 5])
def test_a_sale_in_shards_does_what_the_model_of_one_slot_does(
    kind: str, shards: int, deployment: Callable[[str], str]
) -> None:
    run_histories(lambda: deployment(kind), shards=shards)


@pytest.mark.timeout(600)
def test_fakeredis_follows_as_far_as_it_goes() -> None:
    def connect() -> redis_asyncio.ConnectionPool:
        return redis_asyncio.ConnectionPool(
            connection_class=fakeredis.FakeAsyncRedisConnection, server=fakeredis.FakeServer(version=(7,)), version=(7,)
        )

    run_histories(connect)
