"""A run from the scenario to the verdict: sales made, processes started and watched, holds waited for, all read."""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from hdrh.histogram import HdrHistogram

from holdfast.engine import ConfigurationError

from . import sender
from .figures import Figures, Latency, figures, new_histogram
from .log import Operation
from .machine import allow_connections, describe
from .plan import plan
from .requests import Requests
from .scenario import Scenario
from .screen import Screen, State
from .seller import CannotRun, Seller
from .verdict import Verdict, judge
from .wire import Wire, address_of

#: Seconds between everybody being ready and the start, so that all processes hear of it before.
LEAD_SECONDS: Final = 0.3

#: Seconds over which the rate on the screen is taken.
RATE_SECONDS: Final = 2.0

#: Connections of the process that watches.
OWN_CONNECTIONS: Final = 40

#: Seconds for a process that has handed over its log to end.
END_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is driven.

    Parameters
    ----------
    token: the operator's. sale, sku: to buy in, instead of sales made for the run. keep_open: the sales that were made.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    buyer_token_key: str | None = field(default=None, repr=False)
    sale: str | None = None
    sku: str | None = None
    keep_open: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is over.

    Parameters
    ----------
    start: nanoseconds of the monotonic clock, as in the log. operations: the clients' log, in the order of `begun`.
    """

    scenario: Scenario
    url: str
    run: str
    sales: tuple[str, ...]
    began: datetime
    figures: Figures
    verdict: Verdict
    machine: dict[str, str]
    start: int
    operations: Sequence[Operation] = field(repr=False)


async def run(scenario: Scenario, target: Target, screen: Screen, stop: asyncio.Event) -> Run:
    """Drive a server by a scenario.

    Parameters
    ----------
    stop: ends the run in order: what is under way is finished, and judged.

    Raises
    ------
    ConfigurationError: something was called for that cannot be.
    CannotRun: the server is away, or cannot be driven from here.
    """
    address = address_of(target.url)
    if target.sale is None and target.token is None:
        raise ConfigurationError(
            "Making a sale needs the operator's token: --operator-token, or --sale for one that is there."
        )
    allow_connections(scenario.connections // scenario.processes + OWN_CONNECTIONS)
    name = secrets.token_hex(3)
    wire = Wire(address, OWN_CONNECTIONS, scenario.patience_s)
    requests = Requests(address, name, None, target.buyer_token_key)
    seller = Seller(wire, requests, scenario, target.token, name)
    try:
        try:
            await wire.open(1)
        except OSError as error:
            raise CannotRun(f"Nothing answers at {target.url}: {error.strerror or error}.") from None
        sku = None
        if target.sale is not None:
            sku = await seller.use(target.sale, target.sku)
            scenario = scenario.model_copy(update={"sales": 1})
        else:
            await seller.create()
        try:
            return await _Session(scenario, target, screen, stop, seller, name, sku).run()
        finally:
            if not target.keep_open:
                with suppress(CannotRun):
                    await seller.close()
    finally:
        wire.close()


class _Process:
    """One process that sends, seen from here."""

    def __init__(self, task: sender.Task) -> None:
        # Not forked: this process has a loop, and perhaps threads.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=sender.main, args=(theirs, task), name="holdfast-load", daemon=True)
        self._process.start()
        theirs.close()
        self.progress = sender.Progress()
        self.log: sender.Log | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        # In a thread: a loop would make the pipe non-blocking, and a log is more than it takes at once.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._take, self.pipe.recv())
            except (EOFError, OSError):
                self._loop.call_soon_threadsafe(self._failed, "a process that sends has died; its log is lost.")

    def _take(self, message: object) -> None:
        if isinstance(message, sender.Progress):
            self.progress = message
        elif isinstance(message, sender.Log):
            self.log = message
            self.tell("goodbye")
            self.done.set_result(None)
        elif message == "ready":
            self.ready.set_result(None)
        else:
            self._failed(str(message))

    def _failed(self, why: str) -> None:
        for waits in (self.ready, self.done):
            if not waits.done():
                waits.set_exception(CannotRun(why))

    def tell(self, message: object) -> None:
        with suppress(OSError):
            self.pipe.send(message)

    def end(self) -> None:
        """Ends it, if it has not ended by itself."""
        for waits in (self.ready, self.done):
            waits.cancel()
        self._process.join(END_SECONDS if self.log is not None else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        # It has heard that the other end is closed.
        self._listener.join(END_SECONDS)
        self.pipe.close()


class _Session:
    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        screen: Screen,
        stop: asyncio.Event,
        seller: Seller,
        name: str,
        sku: str | None,
    ) -> None:
        self._scenario, self._target, self._screen, self._stop = scenario, target, screen, stop
        self._seller, self._name = seller, name
        self._buyers = plan(scenario)
        sales = tuple(sale.id for sale in seller.sales)
        self._tasks = [
            sender.Task(scenario, address_of(target.url), place, name, sales, sku, target.buyer_token_key)
            for place in range(scenario.processes)
        ]
        self._state = State(scenario, tuple(sales), len(self._buyers))
        self._rates: deque[tuple[float, int]] = deque()

    async def run(self) -> Run:
        for sale in self._seller.sales:
            self._screen.say(f"Watch it at {self._target.url}/#sale={sale.id} (in a tab that is signed in)")
        self._show("connecting")
        processes = [_Process(task) for task in self._tasks]
        try:
            return await self._driven(processes)
        finally:
            self._screen.close()
            for process in processes:
                process.end()

    async def _driven(self, processes: Sequence[_Process]) -> Run:
        await self._until_stopped(asyncio.gather(*(process.ready for process in processes)))
        began = datetime.now(UTC)
        start = time.monotonic_ns() + int(LEAD_SECONDS * 1e9)
        for process in processes:
            process.tell(start)
        watching = asyncio.create_task(self._seller.watch(start, lambda: self._progress(start, processes)))
        try:
            interrupted = await self._sent(processes)
            logs = [process.log for process in processes if process.log is not None]
            operations = [each for log in logs for each in log.operations]
            operations.sort(key=lambda each: each.begun)
            self._progress(start, processes)
            settled = await self._settled(operations)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        self._show("reading what the server says")
        ends = await self._seller.ends(operations, quiet=settled)
        self._show("judging")
        lags = new_histogram()
        for log in logs:
            lags.decode_and_add(log.lags)
        stock = {sale.id: sale.stock for sale in self._seller.sales}
        cpu = tuple(log.cpu / log.seconds for log in logs)
        bots = {buyer.number for buyer in self._buyers if buyer.orders}
        verdict = judge(
            operations, ends, interrupted=interrupted or not settled, is_honest=lambda number: number not in bots
        )
        return Run(
            self._scenario,
            self._target.url,
            self._name,
            tuple(sale.id for sale in self._seller.sales),
            began,
            figures(operations, start, stock, lags, cpu),
            verdict,
            describe(),
            start,
            operations,
        )

    async def _until_stopped(self, work: asyncio.Future[list[None]]) -> bool:
        """Waits for it; True when the run was stopped before."""
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if work.done():
            work.result()
            return False
        return True

    async def _sent(self, processes: Sequence[_Process]) -> bool:
        """Waits until all is sent and answered; True when it was stopped before."""
        self._show("running")
        work = asyncio.gather(*(process.done for process in processes))
        stopped = await self._until_stopped(work)
        if stopped:
            self._show("ending: what is under way is finished")
            for process in processes:
                process.tell("stop")
            await work
        return stopped

    async def _settled(self, operations: Sequence[Operation]) -> bool:
        """Waits for the holds to end; False when it was told not to."""

        def waits(seconds: float, reserved: int) -> None:
            left = f"{seconds:.0f} s at the most" if seconds > 0 else "their time is over"
            units = f"{reserved} held units are back" if reserved else "every hold has ended"
            self._show(f"waiting until {units} ({left})")

        settling = asyncio.ensure_future(self._seller.settle(operations, waits))
        # A second Ctrl-C, after one that ended the sending, ends the waiting.
        self._stop.clear()
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((settling, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not settling.done():
            settling.cancel()
            with suppress(asyncio.CancelledError):
                await settling
            return False
        settling.result()
        return True

    # The screen -------------------------------------------------------------------------------------------------------

    def _show(self, phase: str) -> None:
        self._state.phase = phase
        self._screen.show(self._state)

    def _progress(self, start: int, processes: Sequence[_Process]) -> None:
        state = self._state
        latencies: HdrHistogram = new_histogram()
        outcomes: Counter[tuple[str, str]] = Counter()
        for process in processes:
            outcomes.update(process.progress.outcomes)
            if process.progress.latencies:
                latencies.decode_and_add(process.progress.latencies)
        state.seconds = max(0.0, (time.monotonic_ns() - start) / 1e9)
        state.started = sum(process.progress.started for process in processes)
        state.finished = sum(process.progress.finished for process in processes)
        state.under_way = sum(process.progress.under_way for process in processes)
        state.outcomes = outcomes
        state.latency = Latency.of(latencies)
        state.stock = {sale.id: sale.stock[-1] for sale in self._seller.sales if sale.stock}
        self._rates.append((state.seconds, outcomes.total()))
        while self._rates[-1][0] - self._rates[0][0] > RATE_SECONDS:
            self._rates.popleft()
        (since, before), (until, now) = self._rates[0], self._rates[-1]
        state.rate = (now - before) / (until - since) if until > since else 0.0
        self._screen.show(state)
