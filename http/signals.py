"""How a process hears that it shall stop."""

from __future__ import annotations

import asyncio
import math
import signal
from typing import Final

#: Seconds in which a repeated signal counts as the first one. After that, the next but one ends the process at once.
REPEATED_SECONDS: Final = 1.0


def stop_signal() -> asyncio.Event:
    """An event that the first SIGINT or SIGTERM sets; one that comes later acts as it always does."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    first = math.inf

    def on_signal() -> None:
        nonlocal first
        first = min(first, loop.time())
        stop.set()
        # The same signal often comes more than once: to the group, and again from make. That is not impatience.
        if loop.time() - first > REPEATED_SECONDS:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return stop
