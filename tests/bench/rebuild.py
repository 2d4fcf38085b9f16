"""How long it takes to rebuild a large sale in Redis from the store, and to audit it; no row of `make bench`.

`PYTHONPATH=tests .venv/bin/python -P -m bench.rebuild --tickets 1000000`. One process fills the store and another
measures, so that what the first one held is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis

from holdfast.engine import Engine
from holdfast.engine.embedded import candidates
from holdfast.engine.identity import random_id
from holdfast.engine.records import Entry
from holdfast.engine.store import Copied, Cursor

#: Tickets of one script call, as in a stampede.
BATCH = 100

#: Ledger entries appended at a time.
STRETCH = 500

#: Every so many tickets one stays reserved; the others are purchased.
HELD_EVERY = 10

SALE = "large"


async def fill(url: str, store: str, tickets: int) -> None:
    """Makes a sale of which this many tickets are known to the store alone, each of a buyer of its own."""
    async with Engine.connect(url, store=store, snapshot_ms=None, sweep=False, listen=False) as engine:
        await engine.create_sale(SALE, name="Large", capacity=tickets + 1000, hold_ms=86_400_000, max_per_buyer=4)
        await engine.snapshot()
        stored = await engine._store.sale(SALE)
        assert stored is not None
        cursor, now = stored.cursor, int(time.time() * 1000)
        expires_at, entries = now + 86_400_000, []

        async def flush() -> None:
            nonlocal cursor, entries
            if entries:
                await engine._store.append([Copied(SALE, cursor, entries)])
                cursor, entries = Cursor(1, entries[-1].sequence), []

        sequence = cursor.sequence
        for made in range(0, tickets, BATCH):
            ids = [random_id() for _ in range(min(BATCH, tickets - made))]
            at = now + made // BATCH
            sequence += len(ids)
            entries.append(Entry(1, sequence, at, f"r 1:1 {expires_at} " + "".join(id + random_id() for id in ids)))
            paid = [f"p {id} 1:1 {random_id()} pay_{made}" for at, id in enumerate(ids) if at % HELD_EVERY]
            sequence += len(paid)
            entries.append(Entry(1, sequence, at + 1, "\n".join(paid)))
            if len(entries) >= STRETCH:
                await flush()
        await flush()
        await engine._snapshot.fold(SALE)


async def measure(url: str, store: str, tickets: int) -> dict[str, Any]:
    """Recovers the sale into an empty Redis, then audits it twice; what each of these took."""
    client = redis.Redis(unix_socket_path=url.removeprefix("unix://"))

    def cpu() -> tuple[float, float, float]:
        own = resource.getrusage(resource.RUSAGE_SELF)
        info: Any = client.info("cpu")
        theirs = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
        return time.monotonic(), own.ru_utime + own.ru_stime, theirs

    def since(before: tuple[float, float, float]) -> dict[str, float]:
        names = ("seconds", "cpu_s", "redis_cpu_s")
        return {name: round(now - then, 2) for name, now, then in zip(names, cpu(), before, strict=True)}

    async with Engine.connect(url, store=store, snapshot_ms=None, sweep=False, listen=False) as engine:
        client.config_set("slowlog-log-slower-than", 500)
        client.config_set("slowlog-max-len", 100_000)
        result: dict[str, Any] = {"tickets": tickets}
        before = cpu()
        report = await engine.recover([SALE])
        result["recover"] = since(before) | {
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "redis_mb": client.info("memory")["used_memory"] // 2**20,
            "longest_call_ms": longest(client),
        }
        assert report.clean
        assert report.slots[0].tickets == tickets
        for what, options in (("audit", {}), ("audit_tickets", {"tickets": True})):
            client.slowlog_reset()
            before = cpu()
            audit = await engine.audit([SALE], **options)
            result[what] = since(before) | {"longest_call_ms": longest(client)}
            assert audit.clean, str(audit)
            result[what]["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def longest(client: redis.Redis) -> float:
    """Milliseconds of the longest call that Redis remembers, of those that hold it for more than half of one."""
    entries: Any = client.slowlog_get(100_000)
    return max((entry["duration"] for entry in entries), default=0) / 1000


def main() -> None:
    """Measures, and prints what came of it as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--phase", choices=("fill", "measure"))
    parser.add_argument("--url", default="")
    parser.add_argument("--store", default="")
    told = parser.parse_args()
    if told.phase == "fill":
        asyncio.run(fill(told.url, told.store, told.tickets))
        return
    if told.phase == "measure":
        print(json.dumps(asyncio.run(measure(told.url, told.store, told.tickets)), indent=2))
        return
    home = Path(tempfile.mkdtemp(prefix="hf-rebuild-"))
    options = ["--port", "0", "--unixsocket", str(home / "s"), "--save", "", "--appendonly", "yes", "--dir", str(home)]
    server = subprocess.Popen([candidates()[0].path, *options], stdout=subprocess.DEVNULL)
    try:
        while not (home / "s").exists():
            time.sleep(0.01)
        again = [sys.executable, "-P", "-m", "bench.rebuild", "--tickets", str(told.tickets)]
        again += ["--url", f"unix://{home / 's'}", "--store", f"sqlite:///{home / 'store.db'}"]
        subprocess.run([*again, "--phase", "fill"], check=True)
        client = redis.Redis(unix_socket_path=str(home / "s"))
        client.flushall()
        subprocess.run([*again, "--phase", "measure"], check=True)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
