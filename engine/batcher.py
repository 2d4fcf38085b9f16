"""Many callers, one script call: what arrives while a call is under way goes out together in the next one."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from time import perf_counter
from typing import Any, Protocol, TypeVar

from holdfast.engine.errors import HoldfastError, NotReady, OutcomeUnknown, Overloaded
from holdfast.engine.limits import BATCH_CHARS_MAX, BATCH_MAX, QUEUE_MAX
from holdfast.engine.meters import BatchMeter

log = logging.getLogger("holdfast.engine")

T = TypeVar("T")


class Waiter(Protocol):
    """Who waits for an answer: an `asyncio.Future` is one, and so is whatever needs no task to take an answer."""

    def done(self) -> bool:
        """Nobody waits any more, or the answer is there."""

    def set_result(self, result: Any, /) -> None:
        """Hears the answer."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Hears why there is none."""


#: One call: its columns as text, the last of them the one whose length varies, and then its waiter. A plain tuple, so
#: that a batch becomes columns by one `zip`.
Call = tuple[Any, ...]


def tell(waiter: Waiter, error: BaseException) -> None:
    """Lets a waiter hear an error, unless it has gone."""
    if not waiter.done():
        waiter.set_exception(error)


async def collected(waiters: Sequence[asyncio.Future[T]]) -> list[T | HoldfastError]:
    """What many calls of one caller have heard, in their order, once all have: results and refusals.

    Whatever else goes wrong leaves open what has happened: it is logged, and heard as OutcomeUnknown. When the caller
    stops to wait, the calls that were not sent are not.
    """
    try:
        for waiter in waiters:
            # In the order of the calls: after the first of a batch, the others have been answered, too.
            if not waiter.done():
                await asyncio.wait([waiter])
    except BaseException:
        for waiter in waiters:
            if not waiter.cancel():
                # Looked at, or it would be reported as overlooked.
                waiter.exception()
        raise
    heard: list[T | HoldfastError] = []
    logged: BaseException | None = None
    for waiter in waiters:
        error = waiter.exception()
        if error is None:
            heard.append(waiter.result())
        elif isinstance(error, HoldfastError):
            heard.append(error)
        else:
            # A batch that fails tells all of its calls the same.
            if error is not logged and not isinstance(error, asyncio.CancelledError):
                logged = error
                log.error("calls failed, and what became of them is not known", exc_info=error)
            heard.append(OutcomeUnknown())
    return heard


class Batcher:
    """First come, first served, one call at a time. A lone caller goes out at once, with no wait for company.

    Parameters
    ----------
    run: takes a batch of calls and answers the waiter of each; when it raises, all of them hear that.
    batch_max: calls in one batch. queue_max: calls that may wait.
    meter: counts the batches; None counts them for nobody.

    Attributes
    ----------
    refusal: what new calls hear, if they are not taken now.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Call]], Awaitable[None]],
        batch_max: int = BATCH_MAX,
        queue_max: int = QUEUE_MAX,
        meter: BatchMeter | None = None,
    ) -> None:
        self._run = run
        self._meter = meter or BatchMeter()
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._waiting: deque[Call] = deque()
        self._task: asyncio.Task[None] | None = None
        self.refusal: HoldfastError | None = None

    def put(self, call: Call) -> None:
        """Queues a call; its waiter hears the answer.

        A waiter that is done before its call is sent leaves nothing behind; after that the call takes its effect and
        the answer is dropped.

        Raises
        ------
        Overloaded: too many wait already; the call was not queued.
        HoldfastError: the `refusal`.
        """
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        if len(self._waiting) >= self._queue_max:
            raise Overloaded
        self._waiting.append(call)
        if self._task is None:
            # The task starts after those who are ready to run now: they join this first batch.
            self._begin()

    def put_all(self, calls: Sequence[Call]) -> None:
        """Queues many calls, in their order; those for whom there is no room hear why, as `put` would raise it."""
        room = 0 if self.refusal is not None else max(0, self._queue_max - len(self._waiting))
        self._waiting.extend(calls[:room])
        if self._task is None and self._waiting:
            self._begin()
        if room < len(calls):
            refusal = self.refusal or Overloaded()
            for call in calls[room:]:
                tell(call[-1], refusal)

    def put_first(self, calls: Sequence[Call]) -> None:
        """Queues calls that have waited before, in front of all others; when none is taken now, they hear why."""
        if self.refusal is not None:
            for call in calls:
                tell(call[-1], self.refusal)
            return
        self._waiting.extendleft(reversed(calls))
        if self._task is None and self._waiting:
            self._begin()

    def _begin(self) -> None:
        # In a context of its own: what goes wrong in a batch is not the request's that happened to begin it.
        self._task = asyncio.create_task(self._drain(), context=Context())

    def waiting(self) -> int:
        """Calls that wait for their batch."""
        return len(self._waiting)

    def _take(self) -> list[Call]:
        batch: list[Call] = []
        waiting, room = self._waiting, BATCH_CHARS_MAX
        while waiting and len(batch) < self._batch_max and room > 0:
            call = waiting.popleft()
            if not call[-1].done():
                batch.append(call)
                room -= len(call[-2])
        return batch

    async def _drain(self) -> None:
        while batch := self._take():
            began = perf_counter()
            try:
                await self._run(batch)
            except BaseException as error:
                passed_on = error if isinstance(error, Exception) else asyncio.CancelledError()
                for call in batch:
                    tell(call[-1], passed_on)
                if passed_on is not error:
                    self._task = None
                    raise
            self._meter.ran(len(batch), perf_counter() - began)
        self._task = None

    async def drained(self) -> None:
        """Takes nothing more, and returns once nothing waits or is under way."""
        self.refusal = NotReady("the engine is closing")
        while self._task is not None:
            await asyncio.wait([self._task])
