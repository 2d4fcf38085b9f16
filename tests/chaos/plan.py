"""What a fault run is: cases, the run of one with its seed, and what came of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .clients import Habits, Load
from .deployment import Deployment
from .history import Call, Final, Operation, Outcome, Violation

#: The durabilities of a payment, as the product names them.
LEVELS = ("memory", "fsync", "replica", "stored")
ALL = frozenset(LEVELS)
STORED = frozenset({"stored"})


@dataclass(frozen=True)
class Case:
    """A fault in one of its forms.

    Parameters
    ----------
    row: of the table of faults. fault: what the row is about. form: which form of it this is.
    play: makes the fault happen. survives: durabilities at which an acknowledged purchase must survive it.
    shows_loss: a durability at which the fault has to cost something, or it has not been a fault.
    runs, quick: how often, in a full and in a quick selection.
    """

    row: int
    fault: str
    form: str
    play: Callable[[Run], Awaitable[None]]
    survives: frozenset[str] = ALL
    shows_loss: str | None = None
    runs: int = 1
    quick: int = 1

    @property
    def name(self) -> str:
        return f"{self.row:02}-" + "-".join("".join(c if c.isalnum() else " " for c in self.form.lower()).split())


@dataclass
class Run:
    """One run of a case, filled in as it goes.

    Attributes
    ----------
    recover_s: from the end of a fault to the first reservation that began and was done after it.
    trials: repetitions of the fault within the run.
    """

    case: Case
    seed: int
    number: int
    directory: Path
    say: Callable[[str], None]
    quick: bool = False
    load: Load | None = None
    finals: Sequence[Final] = ()
    recover_s: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    trials: int = 1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.key)

    @property
    def key(self) -> str:
        """What all choices of the run hang on."""
        return f"{self.seed}/{self.case.name}/{self.number}"

    def clients(self, product: Deployment, habits: Habits | None = None, clients: int = 32) -> Load:
        """Clients at work on the product, from now on."""
        self.load = Load(product.place, self.key, clients, habits or Habits(), product.sales)
        return self.load.start()

    async def healed(self, since: int) -> None:
        """Waits for the first reservation that was begun and done after `since`, and notes how long that took."""
        assert self.load is not None
        await self.load.more(1, Call.RESERVE)
        first = min(
            each.ended or 0
            for each in self.load.history.operations
            if each.call is Call.RESERVE and each.begun >= since and each.outcome is Outcome.DONE
        )
        self.recover_s.append((first - since) / 1e9)

    async def over(self, product: Deployment, more: int = 30) -> None:
        """The last phase: some more purchases, then quiet, then the final reading."""
        assert self.load is not None
        self.load.phase("after")
        await self.load.more(more)
        await self.load.stop()
        self.finals = await product.finals()

    @property
    def operations(self) -> list[Operation]:
        return self.load.history.operations if self.load is not None else []


@dataclass
class Result:
    """What came of a run.

    Attributes
    ----------
    broken: the sentence of what did not work, if anything; not the same as a broken promise.
    acknowledged, lost: purchases by the best level at which each was acknowledged.
    """

    run: Run
    violations: list[Violation] = field(default_factory=list)
    acknowledged: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    oversold: int = 0
    leaked: int = 0
    broken: str | None = None
    skipped: str | None = None

    @property
    def good(self) -> bool:
        return not (self.violations or self.broken or self.skipped)


def now() -> int:
    """The clock of the histories, nanoseconds."""
    return time.monotonic_ns()
