"""One process that sends: it takes its share of the plan, says how it goes, and in the end hands over its log.

It talks with the process that watches over it through a pipe. Ctrl-C is that one's business.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final

import uvloop
from hdrh.histogram import HdrHistogram

from .clients import Clients
from .figures import new_histogram
from .log import Operation
from .plan import Buyer, plan
from .requests import Requests
from .scenario import Scenario
from .wire import Address, Wire

#: Seconds between two reports while it runs.
REPORT_SECONDS: Final = 0.25

#: Seconds between two beats by which the process measures how late its own loop is.
BEAT_SECONDS: Final = 0.01

#: Connections that are opened before the start where buyers come at a rate: more are opened when they are needed.
AHEAD: Final = 128

#: Buyers let loose in one go before the loop may do something else.
AT_A_TIME: Final = 50


@dataclass(frozen=True, slots=True)
class Task:
    """What one process is to do.

    Parameters
    ----------
    place: of this process, from 0. run: goes into all names. sales: ids, by number.
    sku: of the item, where it must be named.
    """

    scenario: Scenario
    address: Address
    place: int
    run: str
    sales: tuple[str, ...]
    sku: str | None
    buyer_token_key: str | None = field(repr=False)


@dataclass(slots=True)
class Progress:
    """How one process stands.

    Parameters
    ----------
    finished: buyers who have done all that they will do. under_way: requests without an answer.
    outcomes: operations by call and what they came to. latencies: from when they were due, HDR, encoded.
    """

    finished: int = 0
    started: int = 0
    under_way: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies: bytes = b""


@dataclass(slots=True)
class Log:
    """What one process hands over in the end.

    Parameters
    ----------
    lags: how late its loop was at each beat, microseconds, HDR, encoded. cpu: seconds that it used.
    """

    operations: list[Operation]
    lags: bytes
    cpu: float
    seconds: float


def main(pipe: Connection, task: Task) -> None:
    """The process: opens its connections, says so, waits for the instant of the start, and runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            uvloop.run(_Sender(pipe, task).run())
        except OSError as error:
            pipe.send(f"{task.address.host}:{task.address.port} takes no connections: {error.strerror or error}")


class _Sender:
    def __init__(self, pipe: Connection, task: Task) -> None:
        self._pipe, self._task, self._scenario = pipe, task, task.scenario
        scenario = task.scenario
        share = scenario.connections // scenario.processes
        self._wire = Wire(task.address, share, scenario.patience_s)
        requests = Requests(task.address, task.run, task.sku, task.buyer_token_key)
        self._clients = Clients(scenario, self._wire, requests, task.sales, self._heard)
        self._operations: list[Operation] = []
        self._progress = Progress()
        self._latencies: HdrHistogram = new_histogram()
        self._lags: HdrHistogram = new_histogram()
        self._stopping = False

    async def run(self) -> None:
        mine = plan(self._scenario)[self._task.place :: self._scenario.processes]
        await self._wire.open(self._ahead(len(mine)))
        # Everything that there is now stays; what comes has no cycles but those of a task that failed.
        gc.collect()
        gc.freeze()
        gc.disable()
        self._pipe.send("ready")
        start = await asyncio.to_thread(self._pipe.recv)
        if not isinstance(start, int):
            return
        # In a thread: a loop would make the pipe non-blocking, and a log is more than it takes at once.
        told = asyncio.create_task(self._told())
        cpu = time.process_time()
        begun = time.monotonic()
        beats = [asyncio.create_task(self._beat()), asyncio.create_task(self._report())]
        await self._all(mine, start)
        for beat in beats:
            beat.cancel()
        self._wire.close()
        self._send_progress()
        self._pipe.send(Log(self._operations, self._lags.encode(), time.process_time() - cpu, time.monotonic() - begun))
        # The other end closes the pipe when it has the log.
        await told

    def _ahead(self, buyers: int) -> int:
        if self._scenario.arrival == "at-once":
            return buyers
        if self._scenario.arrival == "clients":
            return -(-self._scenario.clients // self._scenario.processes)
        return min(AHEAD, buyers)

    async def _told(self) -> None:
        """The other end of the pipe says stop, or is gone."""
        with suppress(EOFError, OSError):
            await asyncio.to_thread(self._pipe.recv)
        self._stopping = True
        self._clients.stop()

    # Arrivals ---------------------------------------------------------------------------------------------------------

    async def _all(self, mine: Sequence[Buyer], start: int) -> None:
        waves = sorted((buyer for buyer in mine if not self._is_turn(buyer)), key=lambda buyer: buyer.due)
        turns = iter([buyer for buyer in mine if self._is_turn(buyer)])
        everybody: list[Awaitable[None]] = [self._arrivals(waves, start)]
        if self._scenario.arrival == "clients":
            share = len(range(self._task.place, self._scenario.clients, self._scenario.processes))
            everybody += [self._client(turns, start) for _ in range(share)]
        await asyncio.gather(*everybody)

    def _is_turn(self, buyer: Buyer) -> bool:
        """Whether it comes when it is its turn, and not at an instant of its own."""
        return self._scenario.arrival == "clients" and buyer.number < self._scenario.buyers

    async def _arrivals(self, buyers: Sequence[Buyer], start: int) -> None:
        async with asyncio.TaskGroup() as group:
            for count, buyer in enumerate(buyers):
                due = start + int(buyer.due * 1e9)
                ahead = (due - time.monotonic_ns()) / 1e9
                if ahead > 0:
                    await self._clients.rest(ahead)
                elif count % AT_A_TIME == 0:
                    await asyncio.sleep(0)
                if self._stopping:
                    break
                group.create_task(self._one(buyer, due))

    async def _client(self, turns: Iterator[Buyer], start: int) -> None:
        await self._clients.rest((start - time.monotonic_ns()) / 1e9)
        for buyer in turns:
            if self._stopping:
                return
            await self._one(buyer, time.monotonic_ns())

    async def _one(self, buyer: Buyer, due: int) -> None:
        self._progress.started += 1
        await self._clients.shop(buyer, due)
        self._progress.finished += 1

    # Reports ----------------------------------------------------------------------------------------------------------

    def _heard(self, operation: Operation) -> None:
        self._operations.append(operation)
        self._progress.outcomes[operation.call.value, operation.said] += 1
        self._latencies.record_value(max(1, (operation.ended - operation.due) // 1000))

    async def _beat(self) -> None:
        while True:
            before = time.monotonic_ns()
            await asyncio.sleep(BEAT_SECONDS)
            late = (time.monotonic_ns() - before) // 1000 - int(BEAT_SECONDS * 1e6)
            self._lags.record_value(max(1, late))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._send_progress()

    def _send_progress(self) -> None:
        self._progress.under_way = self._wire.under_way
        self._progress.latencies = self._latencies.encode()
        self._pipe.send(self._progress)
