"""Judges a run by its history: what the checkers find, what was lost at which level, what was sold twice or leaked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from . import checkers
from .history import Call, Final, Operation, Outcome, Violation
from .plan import Result, Run

#: Sentences of each kind that are shown of a run that broke a promise; the rest is in its directory.
SHOWN = 5


def verdict(
    operations: Sequence[Operation], finals: Sequence[Final], promised: Callable[[Operation], bool]
) -> list[Violation]:
    """What the checkers C, A, U, E, L and H find."""
    return checkers.check(operations, finals, promised)


def judge(run: Run) -> Result:
    """What a run that came to its end amounts to."""
    result = Result(run)
    finals, operations = run.finals, run.operations
    assert run.load is not None
    if "memory" not in run.case.survives:
        operations = without_lost_holds(operations, finals, run.case.survives)
    found = verdict(operations, finals, lambda operation: operation.level in run.case.survives)
    # Where Redis may lose what it acknowledged in memory, there are two histories, before and after, and each is only
    # linearizable by itself: what was lost with the reservations in between cannot be told from here.
    result.violations = [each for each in found if each.checker != "H" or "memory" in run.case.survives]
    result.acknowledged = by_level(run.operations)
    result.lost = by_level(checkers.lost(run.operations, finals))
    result.oversold = checkers.oversold(operations, finals)
    result.leaked = checkers.leaked(operations, finals)
    wrong = list(run.load.history.strange)
    if result.oversold:
        wrong.append(f"{result.oversold} units more were sold than there are")
    if result.leaked:
        wrong.append(f"{result.leaked} units are gone")
    if run.case.shows_loss and not result.lost[run.case.shows_loss]:
        wrong.append(f"nothing was lost at {run.case.shows_loss}, though this fault has to cost something there")
    if missing := [sale.id for sale in run.load.sales if sale.id not in {final.sale for final in finals}]:
        wrong.append(f"the final reading has no {missing}")
    if not result.acknowledged and any(operation.call is Call.PAY for operation in operations):
        wrong.append("no purchase was acknowledged")
    result.broken = "; ".join(wrong[:SHOWN]) or None
    return result


def without_lost_holds(
    operations: Sequence[Operation], finals: Sequence[Final], survives: frozenset[str]
) -> list[Operation]:
    """The operations but for those on tickets that Redis lost with its memory: their units are given to others.

    Those of which a payment was acknowledged at a level that survives stay: they are what A is about.
    """
    there = {ticket for final in finals for ticket in final.tickets}
    kept = there | {operation.ticket for operation in operations if operation.level in survives}
    return [operation for operation in operations if operation.ticket is None or operation.ticket in kept]


def by_level(operations: Sequence[Operation]) -> Counter[str]:
    """Tickets by the level at which they were acknowledged as purchased; `memory` only where no other was reached."""
    levels: dict[str, set[str]] = defaultdict(set)
    for operation in operations:
        if operation.outcome is Outcome.DONE and operation.level is not None and operation.ticket is not None:
            levels[operation.ticket].add(operation.level)
    return Counter(level for reached in levels.values() for level in (reached - {"memory"} or {"memory"}))
