"""Many callers, one script call: what arrives while a call is under way goes out together in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from holdfast.engine.errors import NotReady, Overloaded
from holdfast.engine.limits import BATCH_CHARS_MAX, BATCH_MAX, QUEUE_MAX

T = TypeVar("T")


class Batcher(Generic[T]):
    """First come, first served, one call at a time. A lone caller goes out at once, with no wait for company.

    Parameters
    ----------
    run: takes a batch of entries and returns an answer for each, in order.
    batch_max: entries in one call. queue_max: entries that may wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[str]], Awaitable[Sequence[T]]],
        batch_max: int = BATCH_MAX,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._run = run
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._waiting: deque[tuple[str, asyncio.Future[T]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, entry: str) -> T:
        """The answer to this entry.

        A caller that is cancelled before its entry is sent leaves nothing behind; after that the entry takes its
        effect and the answer is dropped.

        Raises
        ------
        Overloaded: too many wait already; the entry was not queued.
        NotReady: the engine is closing.
        """
        if self._closed:
            raise NotReady("the engine is closing")
        if len(self._waiting) >= self._queue_max:
            raise Overloaded
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._task is None:
            # The task starts after those who are ready to run now: they join this first batch.
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            batch: list[tuple[str, asyncio.Future[T]]] = []
            room = BATCH_CHARS_MAX
            while self._waiting and len(batch) < self._batch_max and room > 0:
                entry, future = self._waiting.popleft()
                if not future.done():
                    batch.append((entry, future))
                    room -= len(entry)
            if not batch:
                break
            try:
                answers = await self._run([entry for entry, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                if not isinstance(error, Exception):
                    self._task = None
                    raise
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        self._task = None

    async def drained(self) -> None:
        """Takes nothing more, and returns once nothing waits or is under way."""
        self._closed = True
        while self._task is not None:
            await asyncio.wait([self._task])
