"""What an engine counts while it works: plain figures, written by whoever does the work, shown by whoever likes to.

Nothing here knows how figures are shown. They only grow, but for those that are what is at this moment.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

#: Calls in one script call, up to `limits.BATCH_MAX`.
BATCH_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 125.0, 150.0)

#: Seconds for Redis to carry a batch out, there and back: one takes 0.2 to 2 ms, a rewrite of the append-only file may
#: stall it, and a call is given up after 3 s.
REDIS_BOUNDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: Seconds for one snapshot of all sales: it is due each second.
SNAPSHOT_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

#: The kinds of batches, as their scripts are called.
KINDS: Final = ("reserve", "confirm", "cancel", "read")


class Spread:
    """How figures are spread: how many came up to each bound, and their sum.

    Parameters
    ----------
    bounds: ascending; a figure belongs to the first that it does not exceed, or to one more beyond the last.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, figure: float, times: int = 1) -> None:
        """Takes up a figure that was met so often."""
        self.counts[bisect_left(self.bounds, figure)] += times
        self.total += figure * times

    def figures(self) -> list[float]:
        """The counts, not accumulated, and then the sum."""
        return [*self.counts, self.total]


class BatchMeter:
    """The batches of one kind.

    Attributes
    ----------
    sizes: calls in one. seconds: from the script call to the last answer.
    """

    __slots__ = ("seconds", "sizes")

    def __init__(self) -> None:
        self.sizes = Spread(BATCH_BOUNDS)
        self.seconds = Spread(REDIS_BOUNDS)

    def ran(self, size: int, seconds: float) -> None:
        """A batch was carried out, or failed."""
        self.sizes.add(size)
        self.seconds.add(seconds)


class Meters:
    """What one engine has counted since it was made.

    Attributes
    ----------
    batches: by kind, see `KINDS`.
    expired: tickets that this engine's sweeps have expired; those that a reservation finds due are not among them.
    copied: transitions that this engine has copied into the store. snapshots: seconds that each snapshot took.
    below_durability: payments that were told to be less durable than asked, since it took too long.
    """

    def __init__(self) -> None:
        self.batches = {kind: BatchMeter() for kind in KINDS}
        self.expired = 0
        self.copied = 0
        self.snapshots = Spread(SNAPSHOT_BOUNDS)
        self.below_durability = 0
