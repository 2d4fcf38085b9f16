"""What a payment survives: each level on real servers, what is refused, and what is said when it comes too late."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import (
    ConfigurationError,
    Durability,
    DurabilityUnavailable,
    Engine,
    InvalidRequest,
    NotReady,
    Order,
    OutcomeUnknown,
    Payment,
    Status,
    Ticket,
)
from holdfast.engine import durability as durability_module
from holdfast.engine import health as health_module
from holdfast.engine.connection import NotSent, Server
from holdfast.engine.keys import slot_keys
from holdfast.engine.store import StoreError
from holdfast.engine.store.sqlite import SqliteStore
from holdfast.engine.transitions import PAID_AGAIN_MAX
from holdfast.engine.wire import Wire

from ..conftest import RedisProcess, binary_of

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")

Start = Callable[..., RedisProcess]


def connect(server: RedisProcess, tmp_path: Path, **options: Any) -> Engine:
    return Engine.connect(server.url, store=f"sqlite:///{tmp_path / 'store.db'}", **options)


@pytest.fixture
def start(start_redis: Start) -> Start:
    """Starts a server of a kind."""
    return lambda kind, *options: start_redis(binary_of(kind), *options)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of what is sent in pipelines: a wait and what is written in front of it."""
    sent: list[list[str]] = []
    pipeline = Server.pipeline

    async def noted(self: Server, commands: Any) -> list[Any]:
        sent.append([str(command[0]) for command in commands])
        return await pipeline(self, commands)

    monkeypatch.setattr(Server, "pipeline", noted)
    return sent


async def bought(engine: Engine, level: Durability | None, buyer: str = "ann", **options: Any) -> Ticket:
    ticket = await engine.reserve("gig", buyer=buyer, quantity=1)
    return await engine.confirm(ticket.id, buyer=buyer, durability=level, **options)


@pytest.fixture
async def gig(private_redis: RedisProcess, tmp_path: Path) -> AsyncIterator[Engine]:
    async with connect(private_redis, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        yield engine


# -- which level ------------------------------------------------------------------------------------------------------


async def test_a_payment_says_what_it_has_reached(gig: Engine) -> None:
    ticket = await bought(gig, None)
    assert (ticket.durability, ticket.pending) == (Durability.MEMORY, None)
    ticket = await bought(gig, Durability.STORED)
    assert (ticket.durability, ticket.pending) == (Durability.STORED, None)
    held = await gig.reserve("gig", buyer="ann", quantity=1)
    assert held.durability is None
    assert (await gig.cancel(held.id, buyer="ann")).durability is None
    assert (await gig.ticket(ticket.id)).durability is None


async def test_a_sale_has_a_level_of_its_own_for_good(gig: Engine, tmp_path: Path) -> None:
    sale = await gig.create_sale("safe", name="Safe", capacity=5, durability=Durability.STORED)
    assert sale.durability is Durability.STORED
    ticket = await gig.reserve("safe", buyer="ann", quantity=1)
    assert (await gig.confirm(ticket.id, buyer="ann")).durability is Durability.STORED
    ticket = await gig.reserve("safe", buyer="ann", quantity=1)
    less = await gig.confirm(ticket.id, buyer="ann", durability=Durability.MEMORY)
    assert less.durability is Durability.MEMORY
    with pytest.raises(InvalidRequest, match="durability"):
        await gig.amend_sale("safe", {"durability": "memory"})
    assert (await gig.amend_sale("safe", {"name": "Safer"})).durability is Durability.STORED
    assert (await gig.sale("gig")).durability is None
    with pytest.raises(InvalidRequest, match="must be one of memory, fsync, replica, stored"):
        await gig.create_sale("odd", name="Odd", capacity=1, durability="disk")  # type: ignore[arg-type]


async def test_the_engine_has_a_level_for_payments_that_ask_for_none(
    private_redis: RedisProcess, tmp_path: Path
) -> None:
    async with connect(private_redis, tmp_path, durability=Durability.STORED) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        assert (await bought(engine, None)).durability is Durability.STORED


# -- fsync ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Valkey's WAITAOF is taken for that of Redis, which is not here. What it says is not true, but it can be asked."""
    monkeypatch.setattr(durability_module, "can_wait", lambda server: True)


async def test_only_redis_from_7_2_on_is_asked_to_wait(start: Start, tmp_path: Path) -> None:
    async with connect(start("valkey", *EVERYSEC), tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1)
        with pytest.raises(
            DurabilityUnavailable, match=r"Valkey \d+\.\d+\.\d+ can only give it with appendfsync always"
        ):
            await bought(engine, Durability.FSYNC)
        server = engine._servers.one
        assert server.is_valkey
        server.is_valkey = False
        for version, can in (("6.2.14", False), ("7.0.15", False), ("7.2.0", True), ("8.0.2", True), ("10.0", True)):
            server.version = version
            assert durability_module.can_wait(server) == can


async def test_with_no_sync_at_all_there_is_nothing_to_wait_for(start: Start, tmp_path: Path, believed: None) -> None:
    async with connect(start("valkey", "--appendonly", "yes", "--appendfsync", "no"), tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=1)
        with pytest.raises(DurabilityUnavailable, match="set appendfsync everysec"):
            await bought(engine, Durability.FSYNC)


@pytest.mark.parametrize("kind", ["embedded", "installed", "valkey"])
async def test_without_waitaof_fsync_needs_a_server_that_syncs_every_write(
    start: Start, tmp_path: Path, kind: str
) -> None:
    server = start(kind, *ALWAYS)
    async with connect(server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        assert (await bought(engine, Durability.FSYNC)).durability is Durability.FSYNC
        with server.client() as client:
            client.config_set("appendfsync", "everysec")
            # What was found out holds until a connection is made anew.
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(DurabilityUnavailable, match="appendfsync always, and has everysec"):
            await bought(engine, Durability.FSYNC)
        with server.client() as client:
            client.config_set("appendfsync", "always")
            client.config_set("no-appendfsync-on-rewrite", "yes")
        with pytest.raises(DurabilityUnavailable, match="set no-appendfsync-on-rewrite no"):
            await bought(engine, Durability.FSYNC)
        with server.client() as client:
            client.config_set("no-appendfsync-on-rewrite", "no")
        assert (await bought(engine, Durability.FSYNC)).durability is Durability.FSYNC


async def test_a_server_that_comes_back_with_other_settings_does_not_give_fsync(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its settings and the payment Redis is started anew, without what was seen."""
    monkeypatch.setattr(durability_module, "REACH_S", 0.5)
    server = start("installed", *ALWAYS)
    async with connect(server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        require = engine._assurance.require

        async def restarted(level: Durability, slot: str, **how: Any) -> None:
            await require(level, slot, **how)
            monkeypatch.setattr(engine._assurance, "require", require)
            server.kill()
            server._options = EVERYSEC
            server.start()

        monkeypatch.setattr(engine._assurance, "require", restarted)
        late = await engine.confirm(ticket.id, buyer="ann", key="k", durability=Durability.FSYNC)
        assert (late.status, late.pending) == (Status.PURCHASED, Durability.FSYNC)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "writes no append-only file; set appendonly yes"),
        (("--appendonly", "yes", "--appendfsync", "no"), "with appendfsync always, and has no"),
    ],
)
@pytest.mark.parametrize("kind", ["installed", "valkey"])
async def test_fsync_needs_an_append_only_file_that_is_synced(
    start: Start, tmp_path: Path, kind: str, options: tuple[str, ...], why: str
) -> None:
    server = start(kind, *options)
    async with connect(server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        with pytest.raises(DurabilityUnavailable, match=why):
            await engine.confirm(ticket.id, buyer="ann", durability=Durability.FSYNC)
        assert (await engine.ticket(ticket.id)).status is Status.RESERVED
        with pytest.raises(DurabilityUnavailable):
            await engine.create_sale("safe", name="Safe", capacity=1, durability=Durability.FSYNC)
        with pytest.raises(DurabilityUnavailable):
            await engine.confirm_many("gig", [Payment(ticket.id, "ann")], durability=Durability.FSYNC)
    with pytest.raises(ConfigurationError, match=f"--durability: .*{why}"):
        await connect(server, tmp_path, durability=Durability.FSYNC).start()


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
async def test_waitaof_proves_that_it_is_on_disk(
    start: Start, tmp_path: Path, commands: list[list[str]], appendfsync: str, believed: None
) -> None:
    server = start("valkey", "--appendonly", "yes", "--appendfsync", appendfsync)
    async with connect(server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        ticket = await bought(engine, Durability.FSYNC, key="k")
        assert (ticket.durability, ticket.pending) == (Durability.FSYNC, None)
        # The first time the server had not the script.
        assert [words for words in commands if "WAITAOF" in words] == [["EVALSHA", "WAITAOF"], ["EVAL", "WAITAOF"]]
        await engine.confirm(ticket.id, buyer="ann", key="k", durability=Durability.FSYNC)
        assert commands.count(["EVALSHA", "WAITAOF"]) == 2


async def test_many_payments_share_a_wait(
    start: Start, tmp_path: Path, commands: list[list[str]], believed: None
) -> None:
    server = start("valkey", *EVERYSEC)
    async with connect(server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=400)
        tickets = await asyncio.gather(*(bought(engine, Durability.FSYNC, f"b{at}") for at in range(400)))
        assert {ticket.durability for ticket in tickets} == {Durability.FSYNC}
    # Each waits for a look at the disk, once a second: one for each payment would take minutes.
    assert len([words for words in commands if "WAITAOF" in words]) <= 6


async def test_a_repeat_that_changes_nothing_waits_for_the_first_one(start: Start, tmp_path: Path) -> None:
    """On its own connection there is nothing to wait for: it must write something first."""
    primary = start("valkey", *EVERYSEC)
    replica, port = start("valkey"), free_port()
    with primary.client() as client:
        client.config_set("port", str(port))
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", port)
        until(lambda: client.info("replication")["master_link_status"] == "up")
    async with connect(primary, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        ticket = await bought(engine, Durability.REPLICA, key="first")
        assert ticket.durability is Durability.REPLICA
        assert replica.process is not None
        os.kill(replica.process.pid, signal.SIGSTOP)
        try:
            late = await bought(engine, Durability.REPLICA, "bob", key="second")
            assert (late.status, late.durability, late.pending) == (
                Status.PURCHASED,
                Durability.MEMORY,
                Durability.REPLICA,
            )
            again = await engine.confirm(late.id, buyer="bob", key="second", durability=Durability.REPLICA)
            assert (again.replayed, again.pending) == (True, Durability.REPLICA)
        finally:
            os.kill(replica.process.pid, signal.SIGCONT)
        again = await engine.confirm(late.id, buyer="bob", key="second", durability=Durability.REPLICA)
        assert (again.replayed, again.durability, again.pending) == (True, Durability.REPLICA, None)
        # What it says is true: the replica has the payment.
        with replica.client() as client:
            record = client.hget(slot_keys("gig").tickets, late.id.partition(".")[2])
        assert isinstance(record, bytes)
        assert record.startswith(b"p ")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


# -- replica ----------------------------------------------------------------------------------------------------------


async def test_replica_needs_replicas(gig: Engine) -> None:
    ticket = await gig.reserve("gig", buyer="ann", quantity=1)
    with pytest.raises(DurabilityUnavailable, match="0 replicas are connected to Redis, and 1 must have a payment"):
        await gig.confirm(ticket.id, buyer="ann", durability=Durability.REPLICA)
    assert (await gig.ticket(ticket.id)).status is Status.RESERVED


# -- stored -----------------------------------------------------------------------------------------------------------


async def test_stored_is_in_the_store_when_it_is_acknowledged(redis_server: Any, store_at: Any) -> None:
    """Nothing else copies: it is the wait itself."""
    async with Engine.connect(redis_server.url, store=store_at.url, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100)
        tickets = await asyncio.gather(*(bought(engine, Durability.STORED, f"b{at}") for at in range(60)))
        assert {ticket.durability for ticket in tickets} == {Durability.STORED}
        ledger = "\n".join(row[0] for row in store_at.rows("SELECT transitions FROM ledger"))
    for ticket in tickets:
        assert f"p {ticket.id.partition('.')[2]} " in ledger


async def test_many_payments_share_a_commit(gig: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = 0
    append = gig._store.append

    async def counted(copied: Any) -> None:
        nonlocal commits
        commits += 1
        await append(copied)

    monkeypatch.setattr(gig._store, "append", counted)
    tickets = await asyncio.gather(*(gig.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(100)))
    commits = 0
    await asyncio.gather(
        *(gig.confirm(t.id, buyer=f"b{at}", durability=Durability.STORED) for at, t in enumerate(tickets))
    )
    assert commits <= 4


async def test_a_payment_that_is_not_stored_in_time_says_so(
    gig: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability_module, "REACH_S", 0.2)
    monkeypatch.setattr(durability_module, "LOOK_S", 0.05)
    ticket = await gig.reserve("gig", buyer="ann", quantity=1)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    late = await gig.confirm(ticket.id, buyer="ann", key="k", durability=Durability.STORED)
    assert (late.status, late.durability, late.pending) == (Status.PURCHASED, Durability.MEMORY, Durability.STORED)
    other.execute("ROLLBACK")
    other.close()
    while (again := await gig.confirm(ticket.id, buyer="ann", key="k", durability=Durability.STORED)).pending:
        pass
    assert (again.replayed, again.durability) == (True, Durability.STORED)


async def test_what_the_copy_did_not_reach_is_not_stored(
    gig: Engine, private_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery has fenced the sale since the payment: nothing is copied, though nothing fails."""
    monkeypatch.setattr(durability_module, "REACH_S", 0.2)
    held = await gig.reserve("gig", buyer="ann", quantity=1)
    await gig.snapshot()
    prove = gig._assurance._prove

    async def fenced(*args: Any) -> Any:
        with private_redis.client() as client:
            client.hset(slot_keys("gig").sale, "fence", "a recovery's")
        return await prove(*args)

    monkeypatch.setattr(gig._assurance, "_prove", fenced)
    late = await gig.confirm(held.id, buyer="ann", key="k", durability=Durability.STORED)
    assert (late.durability, late.pending) == (Durability.MEMORY, Durability.STORED)
    monkeypatch.setattr(gig._assurance, "_prove", prove)
    await gig.recover(["gig"])
    again = await gig.confirm(held.id, buyer="ann", key="k", durability=Durability.STORED)
    assert (again.replayed, again.durability) == (True, Durability.STORED)


async def test_a_batch_is_as_durable_as_asked(gig: Engine) -> None:
    ids = [(await gig.reserve("gig", buyer="ann", quantity=1)).id for _ in range(3)]
    answers = await gig.confirm_many("gig", [Payment(id, "ann") for id in ids], durability=Durability.STORED)
    assert [getattr(answer, "durability", None) for answer in answers] == [Durability.STORED] * 3


# -- a server that is not the one that was paid at --------------------------------------------------------------------


async def test_a_server_that_was_replaced_proves_nothing(
    gig: Engine, private_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis comes back without the payment between the payment and the wait; all levels are asked alike."""
    held = [await gig.reserve("gig", buyer="ann", quantity=1) for _ in range(2)]
    prove = gig._assurance._prove
    went = asyncio.Event()

    async def replaced(*args: Any) -> Any:
        if not went.is_set():
            went.set()
            private_redis.kill()
            private_redis.start()
        return await prove(*args)

    monkeypatch.setattr(gig._assurance, "_prove", replaced)
    # It is made once more, at the server that is there now, and waited for there.
    paid = await gig.confirm(held[0].id, buyer="ann", key="k", durability=Durability.STORED)
    assert (paid.status, paid.durability, paid.replayed) == (Status.PURCHASED, Durability.STORED, False)
    again = await gig.confirm(held[0].id, buyer="ann", key="k", durability=Durability.STORED)
    assert (again.ended_at, again.durability, again.replayed) == (paid.ended_at, Durability.STORED, True)


async def test_a_payment_is_not_made_again_for_ever(gig: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    held = await gig.reserve("gig", buyer="ann", quantity=1)
    prove, proofs = gig._assurance._prove, []

    async def replaced(*args: Any) -> Any:
        proofs.append(args)
        gig._servers.one.generation += 1
        return await prove(*args)

    monkeypatch.setattr(gig._assurance, "_prove", replaced)
    with pytest.raises(OutcomeUnknown):
        await gig.confirm(held.id, buyer="ann", key="k", durability=Durability.STORED)
    assert len(proofs) == 1 + PAID_AGAIN_MAX


async def test_a_payment_that_was_lost_and_cannot_be_made_again_is_not_known(
    gig: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made once, and somebody may have seen it."""
    held = await gig.reserve("gig", buyer="ann", quantity=1)
    prove, confirm = gig._assurance._prove, gig._scripts.confirm

    async def replaced(*args: Any) -> Any:
        gig._servers.one.generation += 1
        monkeypatch.setattr(gig._scripts, "confirm", too_late)
        return await prove(*args)

    async def too_late(*args: Any) -> Any:
        return (await confirm(*args))._replace(answers=[b"ticket_expired"])

    monkeypatch.setattr(gig._assurance, "_prove", replaced)
    with pytest.raises(OutcomeUnknown):
        await gig.confirm(held.id, buyer="ann", key="k", durability=Durability.STORED)


async def test_a_payment_waits_for_a_server_that_is_replaced_before_its_level_is_known(
    gig: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the next primary can give it is asked for as long as any call is sent again."""
    held = await gig.reserve("gig", buyer="ann", quantity=1)
    require, asked = gig._assurance._require_of, []

    async def away_at_first(*args: Any) -> None:
        asked.append(args)
        if len(asked) == 1:
            raise NotSent("Redis cannot be reached")
        await require(*args)

    monkeypatch.setattr(gig._assurance, "_require_of", away_at_first)
    with pytest.raises(DurabilityUnavailable, match="appendfsync"):
        await gig.confirm(held.id, buyer="ann", durability=Durability.FSYNC)
    assert len(asked) == 2


async def test_a_connection_to_a_server_that_is_not_the_primary_any_more_is_not_used(gig: Engine) -> None:
    await gig.sale("gig")
    server = gig._servers.one
    assert server._free
    server.generation += 1  # as when another process was met on another connection
    old = list(server._free)
    await gig.sale("gig")
    assert not any(connection in server._free for connection in old)


async def test_the_reply_of_a_server_that_was_replaced_meanwhile_is_not_believed(
    gig: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old primary that was only slow: another call has met the new one when its reply comes."""
    ticket = await gig.reserve("gig", buyer="ann", quantity=1)
    await bought(gig, None, "warm")  # the server knows the script
    exchange, late = Wire.exchange, [True]

    async def slow(self: Wire, packed: bytes, replies: int) -> list[Any]:
        answers = await exchange(self, packed, replies)
        if late and b"ann-pays" in packed:
            late.clear()
            gig._servers.one.generation += 1
        return answers

    monkeypatch.setattr(Wire, "exchange", slow)
    paid = await gig.confirm(ticket.id, buyer="ann", reference="ann-pays", durability=Durability.STORED)
    # Sent again, to the server that is there now, which had it already.
    assert (paid.replayed, paid.durability) == (True, Durability.STORED)


async def test_a_process_that_knows_an_old_cursor_finds_the_new_one(
    gig: Engine, private_redis: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has recovered the sale, or copied and trimmed its ledger, since this one has copied."""
    await bought(gig, None)
    async with connect(private_redis, tmp_path) as other:
        assert (await other.recover(["gig"])).clean
    prove, proofs = gig._assurance._prove, []

    async def counted(*args: Any) -> Any:
        proofs.append(await prove(*args))
        return proofs[-1]

    monkeypatch.setattr(gig._assurance, "_prove", counted)
    assert (await bought(gig, Durability.STORED)).durability is Durability.STORED
    assert len(proofs) == 1


async def test_who_waits_while_a_proof_hangs_hears_in_time(gig: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durability_module, "REACH_S", 0.1)
    monkeypatch.setattr(durability_module, "LOOK_S", 0.02)
    held = [await gig.reserve("gig", buyer="ann", quantity=1) for _ in range(2)]
    hangs = asyncio.Event()

    async def silent(*_: Any) -> Any:
        await hangs.wait()
        return durability_module.Proof(False)

    monkeypatch.setattr(gig._assurance, "_prove", silent)
    for ticket in held:
        late = await gig.confirm(ticket.id, buyer="ann", durability=Durability.STORED)
        assert late.pending is Durability.STORED
    hangs.set()


async def test_a_defect_leaves_nobody_waiting(gig: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> bool:
        raise KeyError("gig")

    with monkeypatch.context() as patch:
        patch.setattr(durability_module.Proof, "contradicts", broken)
        with pytest.raises(OutcomeUnknown):
            await bought(gig, Durability.STORED)
    assert (await bought(gig, Durability.STORED)).durability is Durability.STORED


async def test_one_looks_for_the_store_and_the_others_do_not_wait(
    private_redis: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durability_module, "REACH_S", 0.1)

    async def silent() -> int:
        return await asyncio.Future()

    # Without snapshots of its own, which would find the store.
    async with connect(private_redis, tmp_path, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        tickets = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(3)]
        engine._snapshot.away = "the store is silent"
        monkeypatch.setattr(engine._snapshot, "run", silent)
        for ticket in tickets:
            with pytest.raises(NotReady, match="the store is silent"):
                await engine.confirm(ticket.id, buyer="ann", durability=Durability.STORED)
        assert engine._assurance._look is not None


async def test_a_believed_server_is_asked_for_each_group(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings are changed while it runs, and no connection is made anew."""
    monkeypatch.setattr(durability_module, "REACH_S", 0.3)
    server = start("installed", *ALWAYS)
    async with connect(server, tmp_path) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        ticket = await engine.reserve("gig", buyer="ann", quantity=1)
        await engine._assurance.require(Durability.FSYNC)
        with server.client() as client:
            client.config_set("appendfsync", "everysec")
        monkeypatch.setattr(engine._assurance, "known_available", lambda level: True)
        late = await engine.confirm(ticket.id, buyer="ann", durability=Durability.FSYNC)
        assert late.pending is Durability.FSYNC


@pytest.mark.parametrize("damage", ["another type", "an entry that cannot be read", "no number"])
async def test_a_damaged_sale_does_not_stop_the_copying_of_others(
    gig: Engine, private_redis: RedisProcess, damage: str
) -> None:
    await gig.create_sale("bad", name="Bad", capacity=5)
    await gig.snapshot()
    keys = slot_keys("bad")
    await gig.reserve("bad", buyer="ann", quantity=1)
    with private_redis.client() as client:
        if damage == "another type":
            client.set(keys.ledger, "x")
        elif damage == "no number":
            client.hset(keys.sale, "sequence", "many")
        else:
            client.delete(keys.ledger)
            client.xadd(keys.ledger, {"at": "soon"}, id="1-2")
    ticket = await bought(gig, None)
    assert await gig.snapshot() > 0
    stored = await gig._store.ticket("gig", ticket.id.partition(".")[2])
    assert stored is not None
    assert stored.status is Status.PURCHASED
    assert any(alarm.startswith("bad:") for alarm in gig._snapshot.alarms)


async def test_readiness_does_not_wait_for_a_silent_store(gig: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "ANSWER_S", 0.05)
    await gig.sale("gig")

    async def silent(*_: Any) -> Any:
        await asyncio.Future()

    with monkeypatch.context() as patch:
        patch.setattr(gig._store, "slots", silent)
        readiness = await gig.readiness()
    assert (readiness.ready, readiness.alarms) == (
        True,
        ("the store does not answer within 0.05 s; what is sold waits in Redis alone",),
    )


# -- the store is away, memory is short -------------------------------------------------------------------------------


async def test_selling_goes_on_while_the_store_is_away(
    gig: Engine, private_redis: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await bought(gig, None)

    async def away(*_: Any) -> Any:
        raise StoreError("the store store.db does not answer: gone")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_write", away)
        patch.setattr(SqliteStore, "_read", away)
        ticket = await bought(gig, Durability.MEMORY, "bob")
        held = await gig.reserve("gig", buyer="cleo", quantity=1)
        await gig.cancel(held.id, buyer="cleo")
        with pytest.raises(NotReady, match="does not answer"):
            await gig.snapshot()
        readiness = await gig.readiness()
        assert (readiness.ready, readiness.reasons) == (True, ())
        assert "what is sold waits in Redis alone" in readiness.alarms[0]
        with pytest.raises(NotReady, match="payments are to be stored, and the store"):
            await bought(gig, Durability.STORED, "dan")
        with pytest.raises(NotReady):
            await gig.create_sale("more", name="More", capacity=1)
        private_redis.kill()
        private_redis.start()
        # Nothing can be said of a Redis that was replaced, and nothing is sold from it.
        with pytest.raises((NotReady, OutcomeUnknown)):
            await gig.reserve("gig", buyer="eve", quantity=1)
    await gig.snapshot()
    assert (await gig.readiness()).alarms == ()
    assert (await gig.ticket(ticket.id)).status is Status.PURCHASED
    assert (await bought(gig, Durability.STORED, "dan")).durability is Durability.STORED
    with sqlite3.connect(tmp_path / "store.db") as db:
        (ledger,) = db.execute("SELECT group_concat(transitions, char(10)) FROM ledger").fetchone()
    db.close()
    for each in (before, ticket):
        assert f"p {each.id.partition('.')[2]} " in ledger


async def test_short_of_memory_nothing_is_reserved_and_what_is_held_can_end(
    gig: Engine, private_redis: RedisProcess
) -> None:
    held = [await gig.reserve("gig", buyer=f"b{at}", quantity=1) for at in range(3)]
    await gig.create_sale("brief", name="Brief", capacity=5, hold_ms=50)
    due = await gig.reserve("brief", buyer="ann", quantity=1)
    with private_redis.client() as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", str(int(used / 0.95)))
        await gig._memory.run()
        with pytest.raises(NotReady, match="reserving goes on below 85%"):
            await gig.reserve("gig", buyer="dan", quantity=1)
        (refused,) = await gig.reserve_many("gig", [Order("dan", 1)])
        assert isinstance(refused, NotReady)
        readiness = await gig.readiness()
        assert not readiness.ready
        assert "Redis uses" in readiness.reasons[0]
        # Full to the last byte.
        client.config_set("maxmemory", str(used // 2))
        assert (await gig.confirm(held[0].id, buyer="b0")).status is Status.PURCHASED
        assert (await gig.confirm(held[1].id, buyer="b1", durability=Durability.STORED)).pending is None
        assert (await gig.cancel(held[2].id, buyer="b2")).status is Status.CANCELLED
        while (await gig.sale("brief")).items[0].available < 5:
            await asyncio.sleep(0.01)
        assert (await gig.ticket(due.id)).status is Status.EXPIRED
        client.config_set("maxmemory", "0")
        await gig._memory.run()
        assert (await gig.reserve("gig", buyer="dan", quantity=1)).status is Status.RESERVED
        assert (await gig.readiness()).ready


async def test_a_slot_that_is_met_while_memory_is_short_does_not_reserve_either(
    gig: Engine, private_redis: RedisProcess, tmp_path: Path
) -> None:
    async with connect(private_redis, tmp_path) as other:
        with private_redis.client() as client:
            client.config_set("maxmemory", str(int(client.info("memory")["used_memory"] / 0.95)))
            await other._memory.run()
        with pytest.raises(NotReady, match="Redis uses"):
            await other.reserve("gig", buyer="ann", quantity=1)
