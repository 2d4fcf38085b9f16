"""What an engine does on the side: tasks that go on after a failure, until it closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from redis.exceptions import RedisError

from holdfast.engine.connection import NoReply, NotSent
from holdfast.engine.store import StoreError

log = logging.getLogger("holdfast.background")


#: Seconds until a task that goes on after its cancellation is cancelled once more: libraries that wait through
#: asyncio.wait_for may swallow one before Python 3.12.
STOP_AGAIN_S = 0.05


class Background:
    """The tasks of one engine, and the wake-up that they share with whoever waits for expiries."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._wakers: set[asyncio.Event] = set()
        self._failing: set[str] = set()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs this until the engine closes."""
        self._tasks.append(asyncio.create_task(work, name=f"holdfast-{name}"))

    def repeat(self, name: str, work: Callable[[], Awaitable[object]], pause: Callable[[], Awaitable[object]]) -> None:
        """Does this again and again; a side that does not answer is said once and tried again."""
        self.start(name, self._repeat(name, work, pause))

    async def _repeat(
        self, name: str, work: Callable[[], Awaitable[object]], pause: Callable[[], Awaitable[object]]
    ) -> None:
        while True:
            try:
                await work()
                if name in self._failing:
                    self._failing.discard(name)
                    log.warning("%s: works again", name)
            except (NotSent, NoReply, StoreError, RedisError) as error:
                if name not in self._failing:
                    self._failing.add(name)
                    log.error("%s: %s; it is tried again", name, error)
            except Exception:
                # A defect: said in full, and not allowed to stop what others rely on.
                log.exception("%s failed", name)
            await pause()

    async def stop(self) -> None:
        """Cancels every task and waits for it."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Asked again when a library under way has swallowed the cancellation.
            _, pending = await asyncio.wait(self._tasks, timeout=STOP_AGAIN_S)
            self._tasks = list(pending)

    def add_waker(self) -> asyncio.Event:
        """An event that is set whenever Redis announces that a lease ran out."""
        event = asyncio.Event()
        self._wakers.add(event)
        return event

    def remove_waker(self, event: asyncio.Event) -> None:
        self._wakers.discard(event)

    def wake_listeners(self) -> None:
        for event in self._wakers:
            event.set()
