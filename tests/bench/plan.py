"""What is measured, in which order: runs, taken in turns, and what came of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis

from . import stacks
from .load import Wrong
from .machine import Cores, Missing
from .measure import Sample, Spread, ratios, wait_until_quiet
from .stacks import HttpStack, Stack

#: What goes wrong when something does not work, however it shows.
FAILURES = (Wrong, OSError, subprocess.SubprocessError, redis.exceptions.RedisError)

#: The share of Holdfast's own saturation at which latencies are compared.
LATENCY_LOAD = 0.7


@dataclass(frozen=True, slots=True)
class Run:
    """One thing to measure: a stack, and what it is asked to do."""

    stack: str
    scenario: str

    def __str__(self) -> str:
        return f"{self.stack}: {self.scenario}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything.

    Parameters
    ----------
    rounds: how often each run is taken. seconds: how long each one is.
    trials: how often a choice of the set-up is tried.
    tickets_large: tickets in the large sale. tickets_memory: those whose memory is taken.
    holds: holds that run out in the same second, in each of the two figures, and how often each is taken.
    """

    rounds: int
    seconds: int
    trials: int
    tickets_large: int
    tickets_memory: int
    holds: tuple[tuple[int, int], tuple[int, int]]


FULL = Plan(
    rounds=5,
    seconds=2,
    trials=2,
    tickets_large=5_000_000,
    tickets_memory=200_000,
    holds=((100_000, 2), (1_000_000, 1)),
)
QUICK = Plan(
    rounds=2,
    seconds=1,
    trials=1,
    tickets_large=500_000,
    tickets_memory=100_000,
    holds=((100_000, 1), (200_000, 1)),
)


class Bench:
    """The stacks of one run of the bench, and everything that was seen.

    Attributes
    ----------
    samples: of each run, one for each round. missing, failures: why a run has none, by run.
    notes: what was chosen in the set-up, by stack. worked: the rows' own measurements that came to their end.
    """

    def __init__(self, plan: Plan, cores: Cores, scratch: Path, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.cores = cores
        self.scratch = scratch
        self.say = say
        self.samples: dict[Run, list[Sample]] = {}
        self.missing: dict[Run, str] = {}
        self.failures: dict[Run, str] = {}
        self.notes: dict[str, str] = {}
        self.worked: set[Run] = set()
        self._running: dict[str, Stack] = {}
        self._cannot: dict[str, Missing | Wrong] = {}
        self._started = 0

    # Stacks --------------------------------------------------------------------------

    def stack(self, name: str) -> Stack:
        """The stack of this name, started when it does not run yet.

        Raises
        ------
        Missing, Wrong: it cannot be started; the same again when asked again.
        """
        if name in self._cannot:
            raise self._cannot[name]
        if name not in self._running:
            self.say(f"starting {name}")
            stack = self._make(name)
            stack.trials = self.plan.trials
            try:
                stack.start()
            except BaseException as error:
                stack.stop()
                if isinstance(error, Missing):
                    self._cannot[name] = error
                elif isinstance(error, FAILURES):
                    self._cannot[name] = Wrong(f"{name} could not be set up: {error}")
                    raise self._cannot[name] from error
                raise
            self._running[name] = stack
            if stack.chosen:
                self.notes[name] = stack.chosen
        return self._running[name]

    def http(self, name: str) -> HttpStack:
        stack = self.stack(name)
        assert isinstance(stack, HttpStack)
        return stack

    def holdfast(self, name: str = stacks.Holdfast.name) -> stacks.Holdfast:
        stack = self.stack(name)
        assert isinstance(stack, stacks.Holdfast)
        return stack

    def _make(self, name: str) -> Stack:
        self._started += 1
        directory = self.scratch / f"{self._started}"
        kinds: dict[str, type[Stack]] = {
            kind.name: kind
            for kind in (
                stacks.Holdfast,
                stacks.HoldfastFsync,
                stacks.HoldfastStored,
                stacks.HoldfastRareSnapshots,
                stacks.HoldfastTwoWorkers,
                stacks.Fastify,
                stacks.Postgres,
                stacks.Callers,
                stacks.CallersFsync,
                stacks.CallersStored,
                stacks.RedisPy,
                stacks.FlashScript,
            )
        }
        for kind in (stacks.Bare, stacks.BareServer, stacks.BareApplication):
            if name == kind.name:
                return kind(self.cores, directory, self._answers())
        return kinds.get(name, stacks.Holdfast)(self.cores, directory)

    def _answers(self) -> Path:
        path = self.scratch / "answers.json"
        if not path.exists():
            stacks.record_answers(self.holdfast(), path)
        return path

    def stop(self, *, but: Iterable[str] = ()) -> None:
        """Stops every stack, except some."""
        for name in [name for name in self._running if name not in set(but)]:
            self._running.pop(name).stop()

    def quiet(self) -> None:
        """Waits until what the last run left behind has been worked off: every stack's figures are its own."""
        wait_until_quiet([root for stack in self._running.values() for root in stack.roots()])

    # Measuring -----------------------------------------------------------------------

    def take_turns(self, runs: Sequence[Run], measure: Callable[[Run], Sample]) -> None:
        """Each run once, then each run again: what disturbs the machine for a while disturbs all of them."""
        for run in runs:
            with self.noting(run):
                self.stack(run.stack)
        for number in range(self.plan.rounds):
            for run in runs:
                if run in self.missing or run in self.failures:
                    continue
                with self.noting(run):
                    self.quiet()
                    sample = measure(run)
                    self.samples.setdefault(run, []).append(sample)
                    self.say(f"round {number + 1} of {self.plan.rounds}: {run}: {sample.rate:,.0f}/s")

    def noting(self, run: Run) -> Noting:
        """A context in which what is missing and what is wrong is written down for this run."""
        return Noting(self, run)

    def saturated(self, run: Run) -> Sample:
        return self.stack(run.stack).measure(run.scenario, self.plan.seconds)

    def at_rate(self, run: Run) -> Sample:
        """An open loop at the same rate for every stack; in each round the same requests at the same instants."""
        rate = LATENCY_LOAD * self.saturation()
        seed = len(self.samples.get(run, []))
        _, sample = self.http(run.stack).open_loop(rate, self.plan.seconds, seed)
        sample.extra["rate"] = rate
        return sample

    def saturation(self) -> float:
        """Holdfast's reservations/s over HTTP, the median.

        Raises
        ------
        Missing: it was not measured.
        """
        run = Run(stacks.Holdfast.name, "reserve")
        if run not in self.samples:
            raise Missing("it needs Holdfast's saturation, which could not be measured")
        return self.rates(run).median

    # Looking at it -------------------------------------------------------------------

    def lacks(self, runs: Iterable[Run]) -> str | None:
        """Why these runs have no figures; None when they have."""
        return next((self.missing[run] for run in runs if run in self.missing), None)

    def broke(self, runs: Iterable[Run]) -> str | None:
        """What went wrong in these runs; None when nothing did."""
        return next((self.failures[run] for run in runs if run in self.failures), None)

    def each(self, run: Run, value: Callable[[Sample], float]) -> list[float]:
        return [value(sample) for sample in self.samples[run]]

    def spread(self, run: Run, value: Callable[[Sample], float]) -> Spread:
        return Spread.of(self.each(run, value))

    def rates(self, run: Run) -> Spread:
        return self.spread(run, lambda sample: sample.rate)

    def ratio(
        self, over: Run, under: Run, value: Callable[[Sample], float], other: Callable[[Sample], float] | None = None
    ) -> Spread:
        """Of each round; `other` is the value of `under` where that is not the same."""
        return ratios(self.each(over, value), self.each(under, other or value))


@dataclass(slots=True)
class Noting:
    """See `Bench.noting`."""

    bench: Bench
    run: Run

    def __enter__(self) -> Noting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Missing):
            self.bench.missing[self.run] = str(error)
            self.bench.say(f"SKIPPED {self.run}: {error}")
            return True
        if isinstance(error, FAILURES):
            self.bench.failures[self.run] = str(error)
            self.bench.say(f"FAILED {self.run}: {error}")
            return True
        return False
