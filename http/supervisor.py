"""The process that was called when several serve: it starts them, starts them again, and ends them in order.

It holds what must outlive a worker: the private Redis with its lock, and the listening sockets. A worker is a fresh
program and no fork, which would carry our locks and connections along.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import select
import signal
import socket
import sys
from dataclasses import replace
from typing import Final, Self

from holdfast.engine import ConfigurationError, Engine
from holdfast.engine.leadership import Leadership

from .process import connections_max, engine_of
from .settings import ServeSettings
from .signals import stop_signal
from .sockets import admit_no_more, listening, patience
from .totals import Totals
from .welcome import established_token, welcome
from .worker import ALIVE, DRAINING, END_SECONDS, FAILED, SERVING, Orders

log = logging.getLogger("holdfast.supervisor")

#: Seconds in which a worker must serve: it starts in one, but sixty-four of them at once share few cores.
START_SECONDS: Final = 60.0

#: Seconds of silence after which a worker counts as stuck, when as many go by once more: it is killed. Twice, since
#: after a machine was suspended everybody looks silent at first.
SILENT_SECONDS: Final = 5.0

#: Seconds after which a worker counts as sound, so that one that dies then is replaced without a pause.
SOUND_SECONDS: Final = 10.0

#: Seconds of the first pause before a worker that died young is replaced, and of the longest; each is twice the one
#: before. Its share of the buyers waits meanwhile, but starting over without a pause would cost the others their cores.
PAUSE_SECONDS: Final = 0.1
PAUSE_SECONDS_MAX: Final = 5.0

#: Seconds for which a worker's share of the buyers may be left waiting, while its replacements do not start. Then the
#: whole ends, for whoever started it to see: clients have given up by now, and half a server looks like a whole one.
UNSERVED_SECONDS: Final = 60.0


async def supervise(settings: ServeSettings) -> None:
    """Start, let workers serve, and stop in order: the workers with their requests, a last snapshot, Redis.

    Raises
    ------
    ConfigurationError: it cannot start, or go on, like this; nothing is left running.
    """
    if sys.platform != "linux":
        raise ConfigurationError("--workers can only be 1 here: more of them need Linux.")
    stop = stop_signal()
    engine = engine_of(settings, sweep=False, listen=False, snapshot_ms=None, recover=settings.recover)
    # Checked with any token before anything is started, so that a slip costs nothing.
    settings.app_config("0" * 32)
    connections_max(settings)
    async with engine:
        operator_token = await established_token(engine, settings)
        established = replace(
            settings,
            redis=settings.redis if engine.embedded is None else engine.embedded.url,
            secret=settings.secret or await engine.kept("secret", secrets.token_urlsafe),
            operator_token=operator_token,
        )
        shares = await listening(settings.host, settings.port, settings.workers, patience(engine))
        workers = Workers(established, shares)
        try:
            if await workers.start(stop):
                await welcome(engine, settings, operator_token, shares[0][0].getsockname()[1])
                await workers.work(stop)
            print("Stopping: running requests are finished first.", flush=True)
        except asyncio.CancelledError:
            # Somebody has no more patience.
            workers.kill()
            raise
        finally:
            await workers.stop()
        await _last_snapshot(engine)


async def _last_snapshot(engine: Engine) -> None:
    """Copies what the last worker did after the last leader had gone."""
    try:
        await engine.snapshot()
    except Exception as error:
        # Whatever it is: Redis has still to be stopped.
        log.error("no last snapshot: %s; what is missing is copied after the next start", error)


class Workers:
    """Keeps a worker at every share of the sockets.

    Parameters
    ----------
    settings: for the workers, with everything that is the same for all of them.
    shares: the sockets of each, one for each address. They stay open here: when a worker dies, whoever waits in their
        queues is answered by the next one.
    """

    def __init__(self, settings: ServeSettings, shares: list[list[socket.socket]]) -> None:
        self._settings = settings
        self._shares = shares
        self._leadership = Leadership.create()
        self._totals = Totals.create()
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: set[_Worker] = set()
        #: Places in the totals of the workers that there are.
        self._places: set[int] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._serving: set[int] = set()
        self._all_serve = asyncio.Event()
        self._stopping = asyncio.Event()

    async def start(self, stop: asyncio.Event) -> bool:
        """Starts them; whether all serve, which they do not when it was stopped before.

        Raises
        ------
        ConfigurationError: one of them does not start.
        """
        self._tasks = [asyncio.create_task(self._keep(*share)) for share in enumerate(self._shares, start=1)]
        await self._until(stop, self._all_serve)
        return not stop.is_set()

    async def work(self, stop: asyncio.Event) -> None:
        """Replaces whoever dies or leaves, until it is stopped.

        Raises
        ------
        ConfigurationError: one cannot be replaced.
        """
        await self._until(stop)

    async def _until(self, *events: asyncio.Event) -> None:
        waiting = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait([*waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event_task in waiting:
                event_task.cancel()
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Has everyone answered who is connected or waits to be, and ends the workers."""
        await admit_no_more(sock for share in self._shares for sock in share)
        self._stopping.set()
        for worker in self._workers:
            worker.dismiss()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for share in self._shares:
            for sock in share:
                sock.close()
        self._leadership.close()
        os.close(self._totals)

    def kill(self) -> None:
        """Ends the workers at once."""
        for worker in self._workers:
            worker.kill()

    async def _keep(self, number: int, share: list[socket.socket]) -> None:
        """A worker at this share, one after the other, until the whole stops and nobody waits here any more."""
        loop = asyncio.get_running_loop()
        pause, unserved_since, last = 0.0, loop.time(), False
        # One at the most after the stop: where newcomers cannot be kept out, somebody always waits.
        while not self._stopping.is_set() or (not last and _somebody_waits(share)):
            last = self._stopping.is_set()
            worker = await self._begin(number, share)
            if await worker.serves():
                began = loop.time()
                self._serving.add(number)
                if len(self._serving) == len(self._shares):
                    self._all_serve.set()
                drains = await worker.leaves()
                unserved_since = loop.time()
                if drains:
                    # Its successor need not wait until it has finished.
                    leaving = asyncio.create_task(self._end(worker))
                    self._leaving.add(leaving)
                    leaving.add_done_callback(self._leaving.discard)
                    if self._stopping.is_set():
                        await leaving
                    else:
                        log.info("%s drains, and another takes its place", worker)
                    continue
                await self._end(worker)
                log.error("%s has ended without being asked (%s); another takes its place", worker, worker.status)
                if unserved_since - began > SOUND_SECONDS:
                    pause = 0.0
            else:
                await self._end(worker)
                if number not in self._serving or loop.time() - unserved_since > UNSERVED_SECONDS:
                    raise ConfigurationError(f"{worker} does not start: {worker.complaint or worker.status}")
                log.error("%s does not start: %s", worker, worker.complaint or worker.status)
                if self._stopping.is_set():
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(max(PAUSE_SECONDS, pause * 2), PAUSE_SECONDS_MAX)

    async def _begin(self, number: int, share: list[socket.socket]) -> _Worker:
        # One that drains still counts in its place while its successor serves.
        place = next(free for free in itertools.count() if free not in self._places)
        self._places.add(place)
        orders = Orders(
            settings=self._settings,
            sockets=tuple(sock.fileno() for sock in share),
            leadership=self._leadership.fileno,
            totals=self._totals,
            place=place,
        )
        try:
            worker = await _Worker.start(number, orders)
        except BaseException:
            self._places.discard(place)
            raise
        self._workers.add(worker)
        if self._stopping.is_set():
            # Only for those who still wait.
            worker.dismiss()
        return worker

    async def _end(self, worker: _Worker) -> None:
        await worker.ends()
        self._workers.discard(worker)
        self._places.discard(worker.place)


class _Worker:
    """A process that serves one share."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, place: int = 0) -> None:
        self._number = number
        #: In the totals.
        self.place = place
        self._process = process
        #: Why it did not start, in its own words or ours.
        self.complaint = ""

    def __str__(self) -> str:
        return f"worker {self._number} (pid {self._process.pid})"

    @classmethod
    async def start(cls, number: int, orders: Orders) -> Self:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Not from the current directory, which may hold modules of the same names.
            "-P",
            "-m",
            f"{__package__}.worker",
            str(number),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(*orders.sockets, orders.leadership, orders.totals),
            # Ctrl-C reaches the whole foreground group: they are told by us, and once.
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(orders.line())
        return cls(number, process, orders.place)

    @property
    def status(self) -> str:
        """How it ended."""
        code = self._process.returncode or 0
        return f"exit status {code}" if code >= 0 else signal.Signals(-code).name

    async def serves(self) -> bool:
        """Whether it has come to accept connections."""
        try:
            async with asyncio.timeout(START_SECONDS):
                said = await self._says()
        except TimeoutError:
            said, self.complaint = "", f"it took longer than {START_SECONDS:g} seconds"
            self.kill()
        if said.startswith(FAILED):
            self.complaint = said.removeprefix(FAILED).strip()
        return said == SERVING

    async def leaves(self) -> bool:
        """Waits until it accepts no more, or is killed because it gives no sign of life; whether it goes in order."""
        said, silent = ALIVE, 0
        while said == ALIVE:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    said, silent = await self._says(), 0
            except TimeoutError:
                silent += 1
                if silent > 1:
                    log.error("%s has been silent for %g seconds, and is killed", self, 2 * SILENT_SECONDS)
                    self.kill()
                    return False
        return said == DRAINING

    async def _says(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode(errors="replace").strip()

    def dismiss(self) -> None:
        """Has it answer who is there, and end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def ends(self) -> None:
        """Waits until it has ended, and sees to it that it does."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.error("%s does not end, and is killed", self)
            self.kill()
            await self._process.wait()
        self.dismiss()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def _somebody_waits(share: list[socket.socket]) -> bool:
    """Whether a connection waits to be accepted."""
    poll = select.poll()
    for sock in share:
        poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
