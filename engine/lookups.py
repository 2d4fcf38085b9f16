"""What is looked up once for all who ask for it at the same time: in a stampede everybody asks for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from holdfast.engine.errors import UnknownSale

T = TypeVar("T")


class LookUps(Generic[T]):
    """Things by name, each looked up by whoever asks first.

    Parameters
    ----------
    load: looks one up; raises UnknownSale where there is none.

    Attributes
    ----------
    known: those that were found.
    """

    def __init__(self, load: Callable[[str], Awaitable[T]]) -> None:
        self.known: dict[str, T] = {}
        self._load = load
        self._loading: dict[str, asyncio.Task[T]] = {}

    async def get(self, name: str) -> T:
        """The one of this name; raises as `load`."""
        joined = True
        while (found := self.known.get(name)) is None:
            task = self._loading.get(name)
            # One that is done and still here has an end that nobody may wait for again.
            if task is None or task.done():
                joined = False
                task = self._loading[name] = asyncio.create_task(self._look(name))
                task.add_done_callback(lambda done: self._looked(name, done))
            try:
                return await asyncio.shield(task)
            except UnknownSale:
                # A look-up that had begun before we came may have missed a sale that is there now.
                if not joined:
                    raise
        return found

    async def _look(self, name: str) -> T:
        found = await self._load(name)
        return self.known.setdefault(name, found)

    def _looked(self, name: str, done: asyncio.Task[T]) -> None:
        if self._loading.get(name) is done:
            del self._loading[name]
        # Those who asked have gone, and nobody else needs to hear how it went.
        if not done.cancelled():
            done.exception()
