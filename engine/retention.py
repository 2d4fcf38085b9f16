"""Ended tickets leave Redis, so that it does not grow for ever; the store answers for them from then on."""

from __future__ import annotations

import logging
from itertools import takewhile

from holdfast.engine.connection import NoReply, NotSent, Server
from holdfast.engine.keys import slot_keys
from holdfast.engine.limits import BATCH_MAX
from holdfast.engine.records import Entry
from holdfast.engine.scripts import Refused, Scripts
from holdfast.engine.servers import Servers, each, milliseconds
from holdfast.engine.store import Cursor, Progress, Store
from holdfast.engine.store.projection import read

log = logging.getLogger("holdfast.retention")

#: Ledger entries looked at in one step.
ENTRIES_STEP = 100


class Retention:
    """Drops tickets that ended at least `retention_ms` ago and whose end is folded into the tickets of the store.

    Parameters
    ----------
    retention_ms: also the time for which a call may be repeated with its key without asking the store.
    """

    def __init__(self, servers: Servers, scripts: Scripts, store: Store, retention_ms: int) -> None:
        self._servers = servers
        self._scripts = scripts
        self._store = store
        self._retention_ms = retention_ms
        #: Per slot, when there may be something to drop again, Unix milliseconds.
        self._not_before: dict[str, int] = {}

    async def run(self) -> int:
        """Drops what may go now; how many tickets left.

        Raises
        ------
        StoreError, NotSent, NoReply: a side does not answer; the rest goes next time.
        """
        clocks: dict[Server, int] = {
            server: milliseconds(clock)
            for server, clock in (await each(self._servers.all(), lambda server: server.call("TIME"))).items()
            if not isinstance(clock, Exception)
        }
        dropped = 0
        failure: NotSent | NoReply | None = None
        for name, progress in (await self._store.cursors()).items():
            try:
                horizon = clocks.get(self._servers.of(name), 0) - self._retention_ms
                if progress.dropped < progress.folded and horizon >= self._not_before.get(name, 0):
                    dropped += await self._drop(name, progress, horizon)
            except Refused:
                continue  # being rebuilt, or behind: nothing may leave
            except (NotSent, NoReply) as error:
                failure = error  # the others' nodes may answer
        if failure is not None:
            raise failure
        return dropped

    async def _drop(self, name: str, progress: Progress, horizon: int) -> int:
        keys, cursor, dropped = slot_keys(name), progress.cursor, 0
        after = progress.dropped
        while True:
            entries = await self._store.ledger(name, Cursor(cursor.epoch, after), ENTRIES_STEP)
            # In order, and no further: a clock that was set back makes later entries look older.
            # Only what is folded: whoever misses a ticket in Redis then finds it in the store's table.
            due = list(takewhile(lambda entry: entry.at <= horizon and entry.sequence <= progress.folded, entries))
            ids = _ended(due)
            for at in range(0, len(ids), BATCH_MAX):
                step = ids[at : at + BATCH_MAX]
                dropped += await self._scripts.drop(keys, cursor.floor, progress.folded, horizon, step)
            if due:
                after = due[-1].sequence
                await self._store.set_dropped(name, after)
            if len(due) < ENTRIES_STEP:
                self._not_before[name] = entries[len(due)].at if len(due) < len(entries) else 0
                return dropped


def _ended(entries: list[Entry]) -> list[str]:
    return [end.id for end in read(entries)[1]]
