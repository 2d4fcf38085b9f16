"""A failpoint for the product's processes, by PYTHONPATH: kill -9 before or after a statement of SQLite.

The file that `FAILPOINT` names says `NUMBER before` or `NUMBER after`. The first process to begin a write transaction
then takes the file away, counts that as statement 1, and dies at the statement of that number.
"""

import os
import signal
import sqlite3
from contextlib import suppress

_armed = os.environ.get("FAILPOINT")
_real = sqlite3.connect


class _Mortal(sqlite3.Connection):
    left = 0
    side = ""

    def _die(self, side):
        if self.left == 1 and self.side == side:
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, run, sql, *more):
        if self.left == 0 and sql.lstrip().upper().startswith("BEGIN") and os.path.exists(_armed):
            with suppress(OSError):
                with open(_armed) as file:
                    number, side = file.read().split()
                os.unlink(_armed)
                self.left, self.side = int(number), side
        self._die("before")
        result = run(sql, *more)
        self._die("after")
        self.left = max(0, self.left - 1)
        return result

    def execute(self, sql, *more):
        return self._counted(super().execute, sql, *more)

    def executemany(self, sql, *more):
        return self._counted(super().executemany, sql, *more)


if _armed:
    sqlite3.connect = lambda *args, **more: _real(*args, factory=_Mortal, **more)
