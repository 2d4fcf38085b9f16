"""Power losses: what Redis wrote and had not yet flushed to the disk is gone.

kill -9 loses nothing that was written, since the kernel keeps it. So a small library, preloaded into redis-server,
writes down how long its append-only file was at each fsync that succeeded; after the kill the file is cut to that.

What is assumed. Files are cut at their end, and never have holes or old blocks in the middle. The base file, the
manifest and their directory, which Redis 7 writes and syncs once at its first start, are durable: runs switch rewrites
off. The store (SQLite, synchronous FULL) is not cut: what it committed is on the disk.
"""

from __future__ import annotations

from pathlib import Path

from .preload import library
from .servers import Redis


def environment(directory: Path, delay_ms: int = 0) -> dict[str, str]:
    """What a redis-server needs around it so that its power can be cut.

    Parameters
    ----------
    delay_ms: milliseconds that each fsync of the append-only file takes longer.
    """
    env = {"LD_PRELOAD": library("fsyncs", directory), "FSYNCS": str(directory / "fsyncs.log")}
    return env | ({"FSYNC_DELAY_MS": str(delay_ms)} if delay_ms else {})


def cut(redis: Redis) -> int:
    """Takes from a killed server's append-only files what had not been flushed; how many bytes that were."""
    durable: dict[str, int] = {}
    log = Path(redis.env["FSYNCS"])
    for line in log.read_text().splitlines() if log.exists() else []:
        path, _, size = line.rpartition(" ")
        durable[path] = max(int(size), durable.get(path, 0))
    lost = 0
    for file in append_only(redis):
        size = file.stat().st_size
        keep = min(size, durable.get(str(file.resolve()), 0))
        lost += size - keep
        with file.open("r+b") as opened:
            opened.truncate(keep)
    return lost


def append_only(redis: Redis) -> list[Path]:
    """The files to which a server appends."""
    several = sorted(redis.data.glob("appendonlydir/*.incr.aof"))
    return several or sorted(redis.data.glob("*.aof"))
