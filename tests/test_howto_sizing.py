"""docs/howto/sizing.md: its arithmetic as it is printed, and its bytes measured again."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from documents import ROOT, blocks, environment, rows

from holdfast.engine import Engine
from holdfast.engine.values import Order, Payment

PAGE = (ROOT / "docs" / "howto" / "sizing.md").read_text()

#: Enough that what is there once no longer counts, and few enough for a test.
TICKETS = 8_000


def test_the_arithmetic() -> None:
    every = blocks(PAGE)
    (at,) = (at for at, block in enumerate(every) if block.language == "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", every[at].text], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, every[at + 1].text), done.stderr


def figure(row: str) -> float:
    """Bytes, as the page has them in KB."""
    (cell,) = (cells[1] for cells in rows(PAGE) if cells[0] == row)
    return float(re.match(r"([\d.]+) KB", cell)[1]) * 1000  # type: ignore[index]


async def test_the_bytes_of_a_ticket(empty_redis: str, store_at: Any) -> None:
    with redis.Redis.from_url(empty_redis) as client:
        async with Engine.connect(empty_redis, store=store_at.url) as engine:
            await engine.create_sale("gig", name="The Gig", capacity=TICKETS, hold_ms=3_600_000)

            def memory() -> int:
                return int(client.info("memory")["used_memory"])

            before, stored_before = memory(), stored(store_at)
            tickets = []
            for at in range(0, TICKETS, 500):
                orders = [Order(f"buyer-{n}", 1, key=f"cart-{n}") for n in range(at, at + 500)]
                tickets += [ticket.id for ticket in await engine.reserve_many("gig", orders)]  # type: ignore[union-attr]
            await engine._leases.drained()
            held = (memory() - before) / TICKETS
            for at in range(0, TICKETS, 500):
                payments = [
                    Payment(ticket, f"buyer-{n}", f"pay_{n}", f"pay-{n}")
                    for n, ticket in enumerate(tickets[at : at + 500], at)
                ]
                await engine.confirm_many("gig", payments)
            await engine._leases.drained()
            await all_folded(engine, store_at)
            paid = (memory() - before) / TICKETS
            kept = (stored(store_at) - stored_before) / TICKETS
    assert held == pytest.approx(figure("memory of Redis for one held ticket"), rel=0.25)
    assert paid == pytest.approx(figure("memory of Redis for one paid ticket, for 24 hours"), rel=0.3)
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[store_at.kind]
    assert kept == pytest.approx(figure(f"disk of the store for one purchase, {name}"), rel=0.25)


async def all_folded(engine: Engine, store_at: Any) -> None:
    async with asyncio.timeout(40):
        while True:
            await engine.snapshot()
            if store_at.rows("SELECT count(*) FROM tickets WHERE status = 'purchased'") == [(TICKETS,)]:
                return
            await asyncio.sleep(0.05)


def stored(store_at: Any) -> int:
    """Bytes that the store takes."""
    if store_at.kind == "sqlite":
        path = Path(store_at.url.removeprefix("sqlite:///"))
        # What the write-ahead log still has is moved into the file first.
        store_at.do("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size
    ((size,),) = store_at.rows(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
        " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    return int(size)
