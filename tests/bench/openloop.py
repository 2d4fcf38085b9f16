"""An open loop: requests are due at instants of their own, and a slow answer delays none that comes after it.

Latency counts from the instant at which a request was due, whoever made it late: the server, or this generator, which
is the same for every server. Arrivals are a Poisson process of a given seed. A process of its own, on a raw asyncio
protocol; a timerfd wakes it, since the timers of event loops only know whole milliseconds.

Usage: python -P -m bench.openloop OUT URL SALE PREFIX RATE SECONDS SEED
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import json
import os
import random
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

#: Connections, opened before the first request is due; a request waits (and its latency counts) when all are in use.
CONNECTIONS = 256

#: Nanoseconds between two looks at the clock: how late a request may be sent at the most, on an idle core.
TICK_NS = 200_000

#: Seconds for the answers that are still missing when the last request was due. After that their latency is taken to
#: be what it is by then: less than it would have been, and never left out.
DRAIN_SECONDS_MAX = 10.0

#: Seconds before the first request is due, in which the connections settle.
LEAD_S = 0.2

_CLOCK_MONOTONIC = 1


class _Spec(ctypes.Structure):
    """`struct itimerspec`: interval and first expiry, seconds and nanoseconds each."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


def timer() -> int:
    """A descriptor that can be read every TICK_NS (`os.timerfd_create` is Python 3.13's)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0 or libc.timerfd_settime(fd, 0, ctypes.byref(_Spec(0, TICK_NS, 0, TICK_NS)), None) != 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return fd


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self.due = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from none of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, due: float, request: bytes) -> None:
        assert self._transport is not None
        self.due, self.busy = due, True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            at = data.lower().find(b"content-length:", 0, head)
            length = int(data[at + 15 : data.find(b"\r", at)])
            if len(data) >= head + 4 + length:
                self._buffer, self.busy = b"", False
                self._load.answered(self, data[9:12])
                return
        self._buffer = data

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self._load.broken += 1


class Load:
    """The requests of one run.

    Parameters
    ----------
    head, tail: the bytes of a request before and after the buyer.
    """

    def __init__(self, head: bytes, tail: bytes, prefix: str, rate: float, seconds: float, seed: int) -> None:
        self._head, self._tail, self._prefix = head, tail, prefix
        self._rate, self._seconds = rate, seconds
        self._random = random.Random(seed)
        self._all: list[Connection] = []
        self._free: list[Connection] = []
        self._late: deque[float] = deque()
        self._sent = 0
        self._next = self._end = 0.0
        self.seen = array.array("d")
        self.statuses: dict[bytes, int] = {}
        self.broken = 0
        self.outstanding = 0
        self.cpu = 0.0

    async def run(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: Connection(self), host, port)
            self._all.append(connection)
        self._free = list(self._all)
        cpu = time.process_time()
        self._next = time.monotonic() + LEAD_S
        self._end = self._next + self._seconds
        fd = timer()
        loop.add_reader(fd, self._tick, fd)
        try:
            while self._next < self._end or self.outstanding or self._late:
                await asyncio.sleep(0.02)
                if time.monotonic() > self._end + DRAIN_SECONDS_MAX or self.broken:
                    break
        finally:
            loop.remove_reader(fd)
            os.close(fd)
            self.cpu = time.process_time() - cpu
        self._give_up()

    def _give_up(self) -> None:
        now = time.monotonic()
        for due in [*(connection.due for connection in self._all if connection.busy), *self._late]:
            self.seen.append(due)
            self.seen.append(now - due)

    def _tick(self, fd: int) -> None:
        os.read(fd, 8)
        now = time.monotonic()
        while self._next <= now and self._next < self._end:
            due = self._next
            self._next = due + self._random.expovariate(self._rate)
            if self._free:
                self._send(self._free.pop(), due)
            else:
                self._late.append(due)

    def _send(self, connection: Connection, due: float) -> None:
        self._sent += 1
        self.outstanding += 1
        connection.send(due, self._head + f"{self._prefix}-{self._sent:09d}".encode() + self._tail)

    def answered(self, connection: Connection, status: bytes) -> None:
        self.outstanding -= 1
        self.seen.append(connection.due)
        self.seen.append(time.monotonic() - connection.due)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if self._late:
            self._send(connection, self._late.popleft())
        else:
            self._free.append(connection)

    def summary(self) -> dict[str, Any]:
        return {
            "statuses": {status.decode(): times for status, times in self.statuses.items()},
            "unanswered": self.outstanding + len(self._late),
            "broken": self.broken,
            "cpu": self.cpu,
        }


def main() -> None:
    out, url, sale, prefix, rate, seconds, seed = sys.argv[1:]
    address = urlsplit(url)
    head = (
        f"POST /sales/{sale}/tickets HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        "Content-Length: 14\r\nX-Buyer-Fingerprint: "
    )
    load = Load(head.encode(), b'\r\n\r\n{"quantity":1}', prefix, float(rate), float(seconds), int(seed))
    uvloop.run(load.run(address.hostname or "127.0.0.1", address.port or 80))
    # From the clock that only runs forward to the one that other processes know.
    offset = time.time() - time.monotonic()
    for at in range(0, len(load.seen), 2):
        load.seen[at] += offset
    Path(out).write_bytes(load.seen.tobytes())
    print(json.dumps(load.summary()))


if __name__ == "__main__":
    main()
