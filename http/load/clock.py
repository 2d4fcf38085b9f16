"""The server's clock against that of the clients, as far as answers tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .log import MS

#: Milliseconds by which the two clocks may drift apart in a run, beyond what answers tell.
SLACK_MS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Clock:
    """`low <= server - client <= high`, milliseconds."""

    low: float
    high: float

    @staticmethod
    def of(readings: Iterable[tuple[int, int, int]]) -> Clock | None:
        """What readings of the server's clock narrow it down to; None where there are none, or where a clock jumped.

        Parameters
        ----------
        readings: begin and end of a request (nanoseconds, the clients' clock), and the server's clock in its answer
            (milliseconds), which lies between them.
        """
        low, high = float("-inf"), float("inf")
        for begun, ended, server in readings:
            low = max(low, server - ended / MS)
            high = min(high, server + 1 - begun / MS)
        if low == float("-inf") or low > high + SLACK_MS:
            return None
        return Clock(low - SLACK_MS, high + SLACK_MS)

    def earliest(self, server_ms: int) -> int:
        """The clients' clock, nanoseconds, before which it was surely not yet this instant of the server."""
        return int((server_ms - self.high) * MS)

    def latest(self, server_ms: int) -> int:
        """The clients' clock, nanoseconds, at which it was surely this instant of the server, or later."""
        return int((server_ms - self.low) * MS)
