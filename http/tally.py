"""What callers heard and how long they waited for it, counted while they are answered.

Plain figures, since reserving and paying cost this process some 30 us each, and a labelled counter of a metrics library
takes one to three of them. What this takes is in `docs/design.md`. `metrics.py` shows the sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from time import perf_counter
from typing import Final

from holdfast.engine import OutcomeUnknown
from holdfast.engine.meters import Spread
from holdfast.engine.records import sale_of

from .problems import outcome_of

#: The calls whose outcomes are counted by sale, by method and path. All others are counted as requests.
RESERVE: Final = "reserve"
PAY: Final = "pay"
CANCEL: Final = "cancel"
CALLS: Final = {
    ("POST", "/sales/{sale}/tickets"): RESERVE,
    ("POST", "/tickets/{ticket}/payment"): PAY,
    ("DELETE", "/tickets/{ticket}/payment"): CANCEL,
}

#: The outcome of whoever got what they asked for. All others are the codes of refusals.
OK: Final = "ok"

#: Sales whose outcomes a process tells apart; those of others are counted together, with no name. Three calls with
#: some ten outcomes each are 60 KB of memory for 500 sales, and 15,000 lines of a scrape if all of them are called.
SALES_MAX: Final = 500

#: Seconds for an answer. A lone reservation takes half a millisecond, in a stampede it waits for its turn, and a
#: payment that is to be stored for up to 3 s.
CALL_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: Methods that requests are told apart by; anybody can send others.
METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST"})
OTHER_METHOD: Final = "other"

#: How often callers of one sale heard what: by outcome. Two are there from the first call on, since nobody can tell how
#: fast a line grows that has just appeared, and an outcome that is not known is worth an alert when it is the first.
Outcomes = defaultdict[str, int]


def _none_yet() -> Outcomes:
    return defaultdict(int, {OK: 0, OutcomeUnknown.code: 0})


class Group:
    """Calls of one kind on one sale that began in one turn of the event loop: most of them are answered together, too.

    Attributes
    ----------
    heard: by those who were answered in this turn: nothing but their ticket, or why there is none.
    began: by `perf_counter`.
    """

    __slots__ = ("_outcomes", "_seconds", "began", "heard")

    def __init__(self, outcomes: Outcomes, seconds: Spread, began: float) -> None:
        self._outcomes = outcomes
        self._seconds = seconds
        self.began = began
        self.heard: list[BaseException | None] = []

    def count(self, now: float) -> None:
        """Counts those who were answered, alike ones at once."""
        heard = self.heard
        self._seconds.add(now - self.began, len(heard))
        last, times = heard[0], 0
        for each in heard:
            if each is last:
                times += 1
            else:
                self._outcomes[OK if last is None else outcome_of(last)] += times
                last, times = each, 1
        self._outcomes[OK if last is None else outcome_of(last)] += times
        heard.clear()


class Tally:
    """What a process has answered.

    Parameters
    ----------
    knows: whether a sale exists, as far as this process knows.

    Attributes
    ----------
    by_sale: what callers heard, by call and sale; changed through `of_sale` alone.
    seconds: how long reserving, paying and cancelling took.
    requests: all others, by method, path with placeholders, and status. request_seconds: by method and path.
    turned_away: connections for which there was no room. connections: how many are open.
    reserving, paying: what began in this turn of the event loop on the short way, by sale; by the slot of the ticket.
    answering: groups of which somebody was answered in this turn.
    """

    def __init__(self, knows: Callable[[str], bool] = lambda sale: False) -> None:
        self._knows = knows
        self.by_sale: dict[str, dict[str, Outcomes]] = {call: {"": _none_yet()} for call in CALLS.values()}
        self.seconds = {call: Spread(CALL_BOUNDS) for call in CALLS.values()}
        self.requests: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self.request_seconds: dict[tuple[str, str], Spread] = {}
        self.turned_away = 0
        self.connections: Callable[[], int] = lambda: 0
        self.reserving: dict[str, Group] = {}
        self.paying: dict[str, Group] = {}
        self.answering: list[Group] = []
        self._began = 0.0

    def of_sale(self, call: str, sale: str) -> Outcomes:
        """Where the outcomes of a call are counted: by sale, if it is one that exists, and for all others together."""
        by_sale = self.by_sale[call]
        found = by_sale.get(sale)
        if found is None:
            if len(by_sale) > SALES_MAX or not self._knows(sale):
                return by_sale[""]
            found = by_sale[sale] = _none_yet()
        return found

    def outcomes(self) -> list[tuple[tuple[str, str, str], int]]:
        """How often which call of which sale had which outcome."""
        return [
            ((call, sale, outcome), times)
            for call, by_sale in self.by_sale.items()
            for sale, outcomes in by_sale.items()
            for outcome, times in outcomes.items()
        ]

    def answered(self, method: str, path: str, status: int, seconds: float | None) -> None:
        """A request that is none of `CALLS` was answered.

        Parameters
        ----------
        path: with placeholders; empty for what has no route. seconds: None where nobody knows.
        """
        method = method if method in METHODS else OTHER_METHOD
        self.requests[method, path, str(status)] += 1
        if seconds is not None:
            spread = self.request_seconds.get((method, path))
            if spread is None:
                spread = self.request_seconds[method, path] = Spread(CALL_BOUNDS)
            spread.add(seconds)

    def turn(self) -> None:
        """Another turn of the event loop begins."""
        self._began = perf_counter()
        self.reserving, self.paying = {}, {}

    def begin(self, call: str, slot: str) -> Group:
        """A group of calls on one sale, or on tickets of one of its slots, that begin in this turn."""
        group = Group(self.of_sale(call, sale_of(slot)), self.seconds[call], self._began)
        (self.reserving if call == RESERVE else self.paying)[slot] = group
        return group

    def written(self) -> None:
        """What was answered in this turn is written."""
        if self.answering:
            now = perf_counter()
            for group in self.answering:
                group.count(now)
            self.answering.clear()
