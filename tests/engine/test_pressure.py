"""Full memory, eviction, lost connections, queues that are full: refused in words, and nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import ConfigurationError, Engine, NotReady, OutcomeUnknown, Overloaded, Status, UnknownSale
from holdfast.engine.batcher import Batcher, Call
from holdfast.engine.connection import CONNECTIONS_MAX, NoReply, NotSent
from holdfast.engine.keys import slot_keys


def connect(server: Any, tmp_path: Path, **options: Any) -> Engine:
    return Engine.connect(server.url, store=f"sqlite:///{tmp_path / 'store.db'}", **options)


async def test_full_memory_refuses_reserve_whole_and_still_confirms_cancels_and_expires(
    redis_server: Any, tmp_path: Path
) -> None:
    async with connect(redis_server, tmp_path, sweep=False, listen=False, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100, hold_ms=60_000)
        await engine.create_sale("brief", name="Brief", capacity=5, hold_ms=300)
        paid = await engine.reserve("gig", buyer="ann", quantity=1)
        cancelled = await engine.reserve("gig", buyer="bob", quantity=1)
        expired = await engine.reserve("brief", buyer="cyd", quantity=1)
        await engine._leases.drained()
        with redis_server.client() as client:
            client.config_set("maxmemory", "1")
            before = client.dump("hf:{gig}:tickets"), client.dump("hf:{gig}:buyers"), client.dump("hf:{gig}:sale")
            with pytest.raises(NotReady, match="OOM"):
                await engine.reserve("gig", buyer="zoe", quantity=1)
            after = client.dump("hf:{gig}:tickets"), client.dump("hf:{gig}:buyers"), client.dump("hf:{gig}:sale")
            assert after == before
            assert (await engine.confirm(paid.id, buyer="ann")).status is Status.PURCHASED
            assert (await engine.cancel(cancelled.id, buyer="bob")).status is Status.CANCELLED
            while not await engine._sweeper.sweep("brief"):
                await asyncio.sleep(0.01)
            assert (await engine.ticket(expired.id)).status is Status.EXPIRED
            assert await engine.snapshot() == 8
            client.config_set("maxmemory", "0")
        await engine.reserve("gig", buyer="zoe", quantity=1)
        await engine.snapshot()
        assert engine._snapshot.alarms == []


async def test_a_redis_that_evicts_is_refused(redis_server: Any, tmp_path: Path) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ConfigurationError, match="noeviction"):
                async with connect(redis_server, tmp_path):
                    pass
        finally:
            client.config_set("maxmemory-policy", "noeviction")


async def test_an_address_where_nothing_answers(tmp_path: Path) -> None:
    for url in ("redis://127.0.0.1:1/0", f"unix://{tmp_path}/none", "nonsense://x"):
        with pytest.raises(ConfigurationError):
            async with Engine.connect(url, store=f"sqlite:///{tmp_path / 'store.db'}"):
                pass


async def test_redis_gone_is_not_ready_and_back_is_ready(
    private_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.servers.Servers.patience_s", 0.2)
    async with connect(private_redis, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        private_redis.kill()
        with pytest.raises((NotReady, OutcomeUnknown)):
            await engine.reserve("gig", buyer="ann", quantity=1, key="k")
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="ann", quantity=1, key="k")
        assert not (await engine.readiness()).ready
        private_redis.start()
        assert (await engine.reserve("gig", buyer="ann", quantity=1, key="k")).quantity == 1


async def test_a_connection_lost_in_the_middle_is_tried_again_with_one_effect(
    redis_server: Any, tmp_path: Path, losing_replies: Any
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=500)
        with losing_replies() as calls:
            tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(300)))
            paid = await asyncio.gather(*(engine.confirm(t.id, buyer=f"b{at}") for at, t in enumerate(tickets)))
        assert len(calls) > 4
        assert len({ticket.id for ticket in tickets}) == 300
        assert {ticket.status for ticket in paid} == {Status.PURCHASED}
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (200, 0, 300)


async def test_when_no_reply_comes_the_outcome_is_unknown(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.servers.Servers.patience_s", 0.1)
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5)
        real = engine._scripts.reserve

        async def no_reply(*args: Any) -> Any:
            await real(*args)
            raise NoReply("lost")

        engine._scripts.reserve = no_reply  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknown):
            await engine.reserve("gig", buyer="ann", quantity=1, key="k")
        engine._scripts.reserve = real  # type: ignore[method-assign]
        assert (await engine.reserve("gig", buyer="ann", quantity=1, key="k")).replayed

        async def not_sent(*args: Any) -> Any:
            raise NotSent("gone")

        engine._scripts.reserve = not_sent  # type: ignore[method-assign]
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="ann", quantity=1)


async def test_callers_that_hang_up_never_see_anothers_answer(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=3000)

        async def buy(at: int) -> None:
            ticket = await engine.reserve("gig", buyer=f"b{at}", quantity=1 + at % 3)
            assert (ticket.buyer, ticket.quantity) == (engine.buyer_hash(f"b{at}"), 1 + at % 3)
            paid = await engine.confirm(ticket.id, buyer=f"b{at}", reference=f"r{at}")
            assert (paid.id, paid.reference) == (ticket.id, f"r{at}")

        tasks = [asyncio.create_task(buy(at)) for at in range(900)]
        for at, task in enumerate(tasks):
            if at % 2:
                asyncio.get_running_loop().call_later(0.0002 * (at % 97), task.cancel)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(answer) for answer in answers} <= {type(None), asyncio.CancelledError}
        assert all(answer is None for answer in answers[::2])
        sale = await engine.sale("gig")
        assert sale.items[0].available + sale.items[0].reserved + sale.items[0].purchased == 3000


def put(batcher: Batcher, name: str) -> asyncio.Future[str]:
    waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    batcher.put((name, waiter))
    return waiter


async def test_a_lone_call_goes_out_at_once_and_others_together() -> None:
    sizes: list[int] = []
    under_way = asyncio.Event()

    async def run(batch: Sequence[Call]) -> None:
        sizes.append(len(batch))
        await under_way.wait()
        for name, waiter in batch:
            if not waiter.done():
                waiter.set_result(name.upper())

    batcher = Batcher(run, batch_max=3, queue_max=5)
    first = put(batcher, "a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sizes == [1]
    others = [put(batcher, name) for name in "bcdef"]
    with pytest.raises(Overloaded):
        put(batcher, "g")
    others[1].cancel()
    under_way.set()
    assert await first == "A"
    answers = await asyncio.gather(*others, return_exceptions=True)
    assert [a if isinstance(a, str) else None for a in answers] == ["B", None, "D", "E", "F"]
    assert sizes == [1, 3, 1]
    await batcher.drained()


async def test_a_batch_that_fails_fails_for_each_and_the_next_goes_on() -> None:
    calls = 0

    async def run(batch: Sequence[Call]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise NotReady("no")
        for name, waiter in batch:
            waiter.set_result(name)

    batcher = Batcher(run)
    answers = await asyncio.gather(put(batcher, "a"), put(batcher, "b"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [NotReady, NotReady]
    assert await put(batcher, "c") == "c"


async def test_a_stampede_on_a_sale_that_this_process_has_not_met_looks_it_up_once(
    redis_server: Any, tmp_path: Path
) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=5000)
    async with connect(redis_server, tmp_path) as engine:
        looked = 0
        sale = engine._store.sale

        async def counted(name: str) -> Any:
            nonlocal looked
            looked += 1
            return await sale(name)

        engine._store.sale = counted  # type: ignore[method-assign]
        tickets = await asyncio.gather(*(engine.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(2000)))
        assert len({ticket.id for ticket in tickets}) == 2000
        assert looked == 1
        assert len(engine._servers.one._free) <= CONNECTIONS_MAX


async def test_a_look_up_that_began_too_early_does_not_hide_a_new_sale(engine: Engine) -> None:
    async def ask() -> bool:
        try:
            await engine.sale("gig")
        except UnknownSale:
            return False
        return True

    asking = [asyncio.create_task(ask()) for _ in range(50)]
    await asyncio.sleep(0)
    made = await engine.create_sale("gig", name="Gig", capacity=1)
    assert made.created
    await asyncio.gather(*asking)
    assert await ask()


async def test_full_memory_does_not_stop_what_makes_room(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path, sweep=False, listen=False, snapshot_ms=None, retention_ms=0) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1, key="k")
        await engine.cancel(ticket.id, buyer="ann")
        await engine.snapshot()
        with redis_server.client() as client:
            client.config_set("maxmemory", "1")
            while not await engine._retention.run():
                await asyncio.sleep(0.05)
            client.config_set("maxmemory", "0")
        await engine._memory.run()
        assert (await engine.reserve("gig", buyer="ann", quantity=1, key="k")).status is Status.CANCELLED


async def test_a_reservation_whose_reply_was_lost_has_its_lease_all_the_same(redis_server: Any, tmp_path: Path) -> None:
    async with connect(redis_server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        real, lost = engine._scripts.reserve, [True]

        async def loses_the_first_reply(*args: Any) -> Any:
            reply = await real(*args)
            if lost:
                lost.clear()
                raise NoReply("lost")
            return reply

        engine._scripts.reserve = loses_the_first_reply  # type: ignore[method-assign]
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        await engine._leases.drained()
        with redis_server.client() as client:
            assert 0 < client.pttl(f"hf:{{gig}}:lease:{ticket.id}") <= 900_000


async def test_closing_ends_everything_even_when_a_step_fails(tmp_path: Path) -> None:
    engine = Engine.connect(data_dir=tmp_path / "data", snapshot_ms=60_000)
    await engine.start()
    await engine.create_sale("gig", name="Gig", capacity=100)
    redis_of_ours = engine.embedded
    assert redis_of_ours is not None
    pid = redis_of_ours.pid
    assert pid is not None

    async def fails() -> int:
        raise RuntimeError("a defect")

    engine._snapshot.run = fails  # type: ignore[method-assign]
    engine._leases.drained = fails  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError):
        await engine.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(NotReady):
        await engine.reserve("gig", buyer="ann", quantity=1)


async def test_closing_does_not_wait_for_those_who_keep_calling(redis_server: Any, tmp_path: Path) -> None:
    engine = connect(redis_server, tmp_path)
    await engine.start()
    await engine.create_sale("gig", name="Gig", capacity=10**6)
    sold = 0

    async def sell(at: int) -> None:
        nonlocal sold
        while True:
            await engine.reserve("gig", buyer=f"b{at}", quantity=1)
            sold += 1

    sellers = [asyncio.create_task(sell(at)) for at in range(50)]
    while sold < 200:
        await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        await engine.close()
        ends = await asyncio.gather(*sellers, return_exceptions=True)
    assert {type(end) for end in ends} == {NotReady}
    async with connect(redis_server, tmp_path) as again:
        assert (await again.sale("gig")).items[0].reserved == sold


async def test_an_address_with_a_mistake_is_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with Engine.connect("redis://user:pa/s3cret@host", store=f"sqlite:///{tmp_path / 'store.db'}"):
            pass
    assert "pa" not in str(refused.value).replace("password", "")
    assert "s3cret" not in str(refused.value)


async def test_leases_that_are_lost_with_the_call_they_ride_along_with_are_told(
    redis_server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(redis_server, tmp_path, sweep=False, listen=False, snapshot_ms=None) as engine:
        await engine._servers.one.call("PING")

        async def lost(*args: Any) -> Any:
            raise NoReply("the connection to Redis was lost")

        real = engine._servers.one._exchange
        engine._servers.one._exchange = lost  # type: ignore[method-assign]
        engine._leases.set(slot_keys("gig"), ["a" * 22], 1)
        with pytest.raises(NoReply):
            await engine._servers.one.call("PING")
        assert "leases were not written: the connection to Redis was lost" in caplog.text
        engine._servers.one._exchange = real  # type: ignore[method-assign]
