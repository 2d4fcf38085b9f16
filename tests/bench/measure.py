"""What was used and how it spread: CPU time from /proc, medians, and waiting until the machine is quiet."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Seconds of one clock tick in /proc/PID/stat.
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

#: Share of one core below which all servers together count as quiet: idle ones tick a little.
QUIET_SHARE = 0.08

#: Seconds over which that share is taken: some 20 clock ticks.
QUIET_LOOK_S = 0.2

#: Seconds after which a run starts although something still works: a snapshot that catches up, a file rewritten.
QUIET_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat, in seconds; `reaped` is what its ended children used."""

    pid: int
    parent: int
    own: float
    reaped: float


def read_process(pid: int) -> Process | None:
    """None when there is no such process any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in brackets, may hold anything; what follows the last one is numbers.
    fields = text[text.rindex(")") + 2 :].split()
    user, system, child_user, child_system = (int(ticks) * TICK_S for ticks in fields[11:15])
    return Process(pid, int(fields[1]), user + system, child_user + child_system)


def _all_processes() -> dict[int, Process]:
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(root: int, *, without: Iterable[int] = ()) -> list[int]:
    """The process and all its living descendants.

    Parameters
    ----------
    without: processes to leave out, with theirs: Holdfast's Redis is its child, and counted apart.
    """
    children: dict[int, list[int]] = {}
    for process in _all_processes().values():
        children.setdefault(process.parent, []).append(process.pid)
    out, waiting, left_out = [], [root], set(without)
    while waiting:
        pid = waiting.pop()
        if pid not in left_out:
            out.append(pid)
            waiting += children.get(pid, [])
    return out


def cpu_seconds(root: int, *, without: Iterable[int] = ()) -> float:
    """CPU time of a process, its living descendants, and those that have ended."""
    processes = (read_process(pid) for pid in descendants(root, without=without))
    return sum(process.own + process.reaped for process in processes if process is not None)


def own_cpu_seconds(pid: int) -> float:
    """CPU time of one process with its threads, without children: a Redis without the rewriting of its file."""
    process = read_process(pid)
    return process.own if process is not None else 0.0


@dataclass(slots=True)
class Sample:
    """One measured run.

    Parameters
    ----------
    count: what was counted: requests, calls, pairs.
    seconds: for how long.
    cpu: CPU seconds by role: `server`, `database`, `generator`.
    extra: anything else that was seen, by name.
    """

    count: float
    seconds: float
    cpu: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Per second."""
        return self.count / self.seconds

    def cpu_us(self, *roles: str) -> float:
        """CPU microseconds for each one counted, of these roles together."""
        return sum(self.cpu.get(role, 0.0) for role in roles) / self.count * 1e6 if self.count else float("inf")

    def busy(self, role: str) -> float:
        """The share of one core that this role used."""
        return self.cpu.get(role, 0.0) / self.seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises `statistics.StatisticsError` when there is nothing."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known))

    def as_json(self) -> dict[str, float]:
        return {"median": self.median, "min": self.least, "max": self.most}


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio of each round, so that what slowed the machine down for one round slowed both sides.

    A bench that was stopped may have one round more of one side.
    """
    return Spread.of(a / b for a, b in zip(over, under, strict=False) if b)


class CpuMeter:
    """CPU seconds between its making and `read`, by role.

    Parameters
    ----------
    roles: for each role the roots of its processes, and the roots that are not its own.
    """

    def __init__(self, roles: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> None:
        self._roles = roles
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {
            role: sum(cpu_seconds(root, without=without) for root in roots)
            for role, (roots, without) in self._roles.items()
        }

    def read(self) -> dict[str, float]:
        return {role: after - self._before[role] for role, after in self._now().items()}


def wait_until_quiet(roots: Sequence[int]) -> bool:
    """Waits until these processes use next to nothing; False when they did not stop in time."""
    give_up = time.monotonic() + QUIET_SECONDS_MAX
    while True:
        before, began = sum(cpu_seconds(root) for root in roots), time.monotonic()
        time.sleep(QUIET_LOOK_S)
        used = sum(cpu_seconds(root) for root in roots) - before
        if used / (time.monotonic() - began) < QUIET_SHARE:
            return True
        if time.monotonic() > give_up:
            return False
