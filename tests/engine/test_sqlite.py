"""The SQLite store where it is a file: that it is there after a power failure, and what a full disk does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import Engine, NotReady, Order, Ticket
from holdfast.engine.store import open_store


async def test_the_name_of_a_new_file_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    for expected in ([tmp_path.stat().st_ino], []):
        store = open_store(f"sqlite:///{tmp_path / 'store.db'}")
        await store.open()
        await store.close()
        assert synced == expected
        synced.clear()


async def test_a_full_disk_leaves_the_cursor_and_the_stream_as_they_were(
    empty_redis: str, fresh_store: Any, tmp_path: Path
) -> None:
    store_at = fresh_store("sqlite", tmp_path)
    async with Engine.connect(empty_redis, store=store_at.url, snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=100_000)
        await engine.snapshot()
        db: Any = engine._store._write_db  # type: ignore[attr-defined]
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        tickets = await engine.reserve_many("gig", [Order(f"b{at}", quantity=1) for at in range(500)])
        with pytest.raises(NotReady, match="full"):
            await engine.snapshot()
        assert store_at.rows("SELECT sequence, folded FROM slots") == [(1, 1)]
        assert isinstance(tickets[0], Ticket)
        paid = await engine.confirm(tickets[0].id, buyer="b0")
        # There is space again.
        db.execute(f"PRAGMA max_page_count = {2**30}")
        assert await engine.snapshot() == 501
        assert store_at.rows("SELECT ticket FROM purchases") == [(paid.id,)]
        assert store_at.rows("SELECT count(*) FROM tickets") == [(500,)]
        assert store_at.rows("SELECT * FROM alarms") == []
