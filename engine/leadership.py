"""Which of several engines on one machine sweeps and takes snapshots, and what all of them know to be wrong.

Processes that share the work inherit one nameless file. Whoever has its lock leads. It is a lock of POSIX, because that
belongs to a process and not to the opened file, which they share: when the process dies, however it dies, the kernel
frees the lock, and the next that asks has it. Two leaders, as on two machines with one Redis, would be wasteful and not
wrong: expiry is idempotent and the snapshot is fenced.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from typing import Final

#: Seconds between two attempts to lead: how long nobody does when the leader has died. An attempt is one system call.
TAKE_SECONDS: Final = 0.1


class Leadership:
    """A place among processes of which one leads; each has one of its own on the file that they all inherited.

    Parameters
    ----------
    fileno: of the file, as `Leadership.create` made it in the process that started them.
    """

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno
        self._read = 0
        #: What each process posted last, by its pid. What a dead one found out is still true.
        self._posted: dict[int, list[str]] = {}
        self._own: list[str] = []

    @classmethod
    def create(cls) -> Leadership:
        """A file without a name: nothing to choose, to protect, or to clear away."""
        fileno = os.memfd_create("holdfast-leadership")
        # Kept by everyone who inherits it: what two processes write at once comes one after the other.
        fcntl.fcntl(fileno, fcntl.F_SETFL, fcntl.fcntl(fileno, fcntl.F_GETFL) | os.O_APPEND)
        return cls(fileno)

    def take(self) -> bool:
        """Whether this process leads: from now on until it ends, or not yet."""
        try:
            fcntl.lockf(self.fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def post(self, alarms: Sequence[str]) -> None:
        """Tells the others which alarms this process has raised and not yet seen answered."""
        if alarms != self._own:
            self._own = list(alarms)
            os.write(self.fileno, json.dumps([os.getpid(), self._own]).encode() + b"\n")

    def alarms(self) -> list[str]:
        """The alarms of all, each once."""
        while more := os.pread(self.fileno, os.fstat(self.fileno).st_size - self._read, self._read):
            # A line that is being written is read when it is whole.
            whole, newline, _ = more.rpartition(b"\n")
            if not newline:
                break
            self._read += len(whole) + 1
            for line in whole.splitlines():
                pid, alarms = json.loads(line)
                self._posted[pid] = alarms
        return list(dict.fromkeys(alarm for alarms in self._posted.values() for alarm in alarms))

    def close(self) -> None:
        os.close(self.fileno)
