"""What all workers of a server have counted: a nameless file with a place for each, which all of them can read.

A file without a name, in memory, as `engine/leadership.py` has one: nothing to choose, to protect, or to clear away,
and written with system calls, so that a full memory is an error and no signal. A place belongs to one process at a
time. Whoever gets it next goes on from what stands there, so that counters of the dead go on counting, and their
number is that of the workers at most that there have been at once.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterable
from typing import Any, Final

#: Bytes of one half of a place: some 200 KB hold the outcomes of 500 sales. Only what is written takes memory.
HALF_BYTES: Final = 4 * 1024 * 1024

#: Seconds after which what somebody has now is not believed any more: they write each second, and were killed or hang.
FRESH_SECONDS: Final = 5.0

#: Times that a place is read until both of its halves are whole: one may be written at that moment, and a moment later
#: the other.
TRIES: Final = 3

#: In front of what is written: how often this place was written, its length, and a checksum of both and of the rest.
_HEADER: Final = struct.Struct("<QII")

#: Figures by name, and for each by labels, which are joined by this. What is added up is added figure by figure.
LABEL_END: Final = "\n"
Figures = dict[str, dict[str, list[float]]]


def add_up(into: Figures, more: Figures) -> None:
    """Adds figures to others of the same names and labels."""
    for name, by_labels in more.items():
        have = into.setdefault(name, {})
        for labels, figures in by_labels.items():
            known = have.get(labels)
            if known is None or len(known) != len(figures):
                have[labels] = list(figures)
            else:
                have[labels] = [one + other for one, other in zip(known, figures, strict=True)]


class Totals:
    """A process' place among those who count.

    Parameters
    ----------
    fileno: of the file, as `create` made it in the process that started them. place: of this process, from 0 on.

    Attributes
    ----------
    before: what those have counted who had this place before.
    """

    def __init__(self, fileno: int, place: int) -> None:
        self._fileno = fileno
        self._place = place
        self._written, content = self._read(place)
        self.before: Figures = content.get("sums", {})

    @staticmethod
    def create() -> int:
        """A file without a name; its descriptor."""
        return os.memfd_create("holdfast-totals")

    def write(self, sums: Figures, now: Figures) -> None:
        """Tells the others.

        Parameters
        ----------
        sums: all that was counted in this place, `before` included. now: what is at this moment.

        Raises
        ------
        OSError: there is no memory for it. ValueError: it does not fit.
        """
        content = json.dumps({"at": time.monotonic(), "sums": sums, "now": now}, separators=(",", ":")).encode()
        if len(content) + _HEADER.size > HALF_BYTES:
            raise ValueError(f"{len(content):,} bytes of figures do not fit")
        self._written += 1
        header = _HEADER.pack(self._written, len(content), zlib.crc32(content, self._written & 0xFFFFFFFF))
        # The halves take turns: who is killed while writing leaves what was written before.
        os.pwrite(self._fileno, header + content, self._offset(self._place, self._written))

    def others(self) -> Iterable[tuple[Figures, Figures]]:
        """What has been counted in each other place, and what is there now; nothing is, where nobody lives."""
        size = os.fstat(self._fileno).st_size
        for place in range(-(-size // (2 * HALF_BYTES))):
            if place != self._place:
                _, content = self._read(place)
                if content:
                    fresh = time.monotonic() - content["at"] < FRESH_SECONDS
                    yield content["sums"], content["now"] if fresh else {}

    @staticmethod
    def _offset(place: int, written: int) -> int:
        return (2 * place + written % 2) * HALF_BYTES

    def _read(self, place: int) -> tuple[int, dict[str, Any]]:
        """How often a place was written, and what was last."""
        for _ in range(TRIES):
            halves = [self._half(place, half) for half in (0, 1)]
            if None not in halves:
                break
        # One that is being written, or whose writer died, is not whole; the other is what was there before.
        written, content = max((half for half in halves if half is not None), default=(0, b"{}"))
        known: dict[str, Any] = json.loads(content)
        return written, known

    def _half(self, place: int, half: int) -> tuple[int, bytes] | None:
        """How often the place was written by then, and what; None when that is not whole."""
        offset = self._offset(place, half)
        header = os.pread(self._fileno, _HEADER.size, offset)
        written, length, checksum = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        if not written:
            return 0, b"{}"
        content = os.pread(self._fileno, min(length, HALF_BYTES), offset + _HEADER.size)
        return (written, content) if zlib.crc32(content, written & 0xFFFFFFFF) == checksum else None
