"""Readiness tells what a reservation would hear, and why; a condition is told whatever does not answer."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import Engine, HoldfastError, NotReady, OutcomeUnknown
from holdfast.engine import health as health_module
from holdfast.engine.keys import DEPLOYMENT, slot_keys
from holdfast.engine.store import StoreError
from holdfast.engine.store.sqlite import SqliteStore

from ..conftest import RedisProcess


@pytest.fixture
async def shop(private_redis: RedisProcess, tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine on a Redis of its own, with nothing on sale."""
    async with Engine.connect(private_redis.url, store=f"sqlite:///{tmp_path / 'store.db'}") as engine:
        yield engine


@pytest.fixture
async def gig(shop: Engine) -> Engine:
    """The same with a sale."""
    await shop.create_sale("gig", name="The Gig", capacity=100)
    return shop


async def away(*_: Any) -> Any:
    raise StoreError("the store does not answer: gone")


async def reserves(engine: Engine, sale: str = "gig") -> bool:
    """Whether a reservation is taken now."""
    try:
        await engine.reserve(sale, buyer="ann", quantity=1)
    except (NotReady, OutcomeUnknown):
        return False
    return True


async def ready_again(engine: Engine) -> None:
    """Waits until it is ready, and sees that it sells."""
    give_up = time.monotonic() + 20
    while not (await engine.readiness()).ready:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    assert await reserves(engine)


# -- reasons ----------------------------------------------------------------------------------------------------------


async def test_redis_is_away_and_nothing_is_on_sale(shop: Engine, private_redis: RedisProcess) -> None:
    assert (await shop.readiness()).ready
    private_redis.kill()
    readiness = await shop.readiness()
    assert not readiness.ready
    assert "cannot be reached" in readiness.reasons[0]
    with pytest.raises(NotReady):
        await shop.create_sale("gig", name="The Gig", capacity=1)


@pytest.mark.parametrize(
    ("broken", "mended", "reason"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read only replica"),
        (
            ("CONFIG", "SET", "min-replicas-to-write", "1"),
            ("CONFIG", "SET", "min-replicas-to-write", "0"),
            "NOREPLICAS",
        ),
    ],
    ids=["a replica", "without its replicas"],
)
async def test_redis_reads_and_takes_no_writes(
    gig: Engine, private_redis: RedisProcess, broken: tuple[str, ...], mended: tuple[str, ...], reason: str
) -> None:
    with private_redis.client() as client:
        client.execute_command(*broken)
        readiness = await gig.readiness()
        assert not readiness.ready
        assert reason in readiness.reasons[0]
        assert not await reserves(gig)
        client.execute_command(*mended)
        await ready_again(gig)


async def test_redis_is_frozen(gig: Engine, private_redis: RedisProcess) -> None:
    assert private_redis.process is not None
    private_redis.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        readiness = await gig.readiness()
        # Whoever probes does not wait for as long as a reservation does.
        assert time.monotonic() - began < 3 * health_module.ANSWER_S
        assert not readiness.ready
        assert "does not answer within 0.8 s" in readiness.reasons[0]
        condition = await gig.condition()
        assert (condition.redis, condition.store, condition.expiry_lag_ms) == (False, True, None)
    finally:
        private_redis.process.send_signal(signal.SIGCONT)
    await ready_again(gig)


async def test_redis_holds_the_sales_of_another_store(gig: Engine, private_redis: RedisProcess) -> None:
    with private_redis.client() as client:
        client.set(DEPLOYMENT, "somebody else's")
    readiness = await gig.readiness()
    assert not readiness.ready
    assert "holds the sales of another store" in readiness.reasons[0]


async def test_redis_was_emptied(gig: Engine, private_redis: RedisProcess) -> None:
    await gig.snapshot()
    with private_redis.client() as client:
        client.flushall()
    readiness = await gig.readiness()
    assert not readiness.ready
    assert "'gig' is not in Redis" in readiness.reasons[0]
    assert not await reserves(gig)


async def test_a_sale_is_being_rebuilt(gig: Engine, private_redis: RedisProcess) -> None:
    with private_redis.client() as client:
        client.hset(slot_keys("gig").sale, "fence", "token")
        readiness = await gig.readiness()
        assert not readiness.ready
        assert "'gig' is being rebuilt" in readiness.reasons[0]
        assert not await reserves(gig)
        (sale,) = (await gig.condition()).sales
        assert not sale.ready
        client.hdel(slot_keys("gig").sale, "fence")
    await ready_again(gig)


async def test_redis_was_restarted_while_the_store_is_away(
    gig: Engine, private_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await reserves(gig)
    await asyncio.sleep(1.1)  # the log is on disk, so that Redis loses nothing
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_write", away)
        patch.setattr(SqliteStore, "_read", away)
        assert (await gig.readiness()).ready
        private_redis.kill()
        private_redis.start()
        readiness = await gig.readiness()
        assert not readiness.ready
        assert "nobody can say what it has lost" in readiness.reasons[0]
        assert "waits in Redis alone" in readiness.alarms[0]
        assert not await reserves(gig)
    await ready_again(gig)


async def test_the_store_is_away_and_a_process_has_not_met_a_sale(
    gig: Engine, private_redis: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine.connect(private_redis.url, store=f"sqlite:///{tmp_path / 'store.db'}", sweep=False) as other:
        await other._health.learn()
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_write", away)
            patch.setattr(SqliteStore, "_read", away)
            readiness = await other.readiness()
            assert not readiness.ready
            assert "'gig' has not been met by this process" in readiness.reasons[0]
            assert not await reserves(other)
            # The one that sells it goes on.
            assert (await gig.readiness()).ready
            assert await reserves(gig)
        await ready_again(other)


async def test_the_store_is_away_before_anything_is_known(
    private_redis: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine.connect(private_redis.url, store=f"sqlite:///{tmp_path / 'store.db'}", sweep=False) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_write", away)
            patch.setattr(SqliteStore, "_read", away)
            readiness = await engine.readiness()
        assert not readiness.ready
        assert "knows no sale yet" in readiness.reasons[0]


async def test_the_store_reads_and_takes_no_copies(gig: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "BEHIND_MS_MAX", 100)
    await gig.snapshot()
    assert (await gig.readiness()).alarms == ()
    with monkeypatch.context() as patch:
        patch.setattr(gig._store, "append", away)
        assert await reserves(gig)
        give_up = time.monotonic() + 20
        while not (readiness := await gig.readiness()).alarms:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)
        assert readiness.ready
        assert "behind Redis" in readiness.alarms[0]
        condition = await gig.condition()
        assert condition.behind == 1
        assert condition.behind_ms is not None
        assert condition.behind_ms > 100
        assert await reserves(gig)
    await gig.snapshot()
    assert (await gig.readiness()).alarms == ()
    assert (await gig.condition()).behind == 0


# -- conditions -------------------------------------------------------------------------------------------------------


async def test_a_condition_tells_units_and_lags(private_redis: RedisProcess, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with Engine.connect(private_redis.url, store=store, sweep=False, listen=False, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="The Gig", capacity=10, hold_ms=50)
        ticket = await engine.reserve("gig", buyer="ann", quantity=2)
        await engine.confirm(ticket.id, buyer="ann")
        await engine.reserve("gig", buyer="bob", quantity=3)
        await asyncio.sleep(0.2)
        condition = await engine.condition()
        ((item,),) = (sale.items for sale in condition.sales)
        assert (item.available, item.reserved, item.purchased) == (5, 3, 2)
        assert condition.expiry_lag_ms is not None
        assert 100 < condition.expiry_lag_ms < 20_000
        assert (condition.behind, condition.unfolded, condition.sales_known) == (4, 0, 1)
        assert condition.behind_ms is not None
        assert condition.behind_ms > 100
        assert condition.memory_used
        assert condition.memory_limit
        await engine._snapshot.run()
        condition = await engine.condition()
        assert (condition.behind, condition.behind_ms, condition.unfolded) == (0, 0, 4)
        await engine._sweeper.run()
        assert (await engine.condition()).expiry_lag_ms == 0
        assert engine.meters.expired == 1
        assert engine.meters.copied == 4
        assert sum(engine.meters.batches["reserve"].sizes.counts) == 2


async def test_a_condition_shows_as_many_sales_as_it_may(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "SALES_SHOWN_MAX", 2)
    for name in ("c", "a", "b"):
        await shop.create_sale(name, name=name, capacity=1)
    condition = await shop.condition()
    assert condition.sales_known == 3
    assert [sale.id for sale in condition.sales] == ["a", "b"]


async def test_nothing_answers_and_a_condition_is_told(
    gig: Engine, private_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_redis.kill()
    with monkeypatch.context() as patch:
        patch.setattr(gig._store, "cursors", away)
        condition = await gig.condition()
    assert (condition.redis, condition.store, condition.readiness.ready) == (False, False, False)
    assert (condition.sales, condition.behind, condition.unfolded) == ((), None, None)


async def test_what_goes_wrong_in_a_batch_is_nobodys_request(gig: Engine) -> None:
    from contextvars import ContextVar

    request: ContextVar[str] = ContextVar("request")
    request.set("r-1")
    seen: list[str | None] = []
    run = gig._transitions.reserve

    async def noting(*args: Any) -> None:
        seen.append(request.get(None))
        await run(*args)

    gig._transitions.reserve = noting  # type: ignore[method-assign]
    with pytest.raises(HoldfastError):
        await gig.reserve("gig", buyer="ann", quantity=1000)
    assert seen == [None]
