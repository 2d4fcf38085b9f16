"""The figures of a run: latencies, rates, outcomes, stock, all made of the clients' log."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hdrh.histogram import HdrHistogram

from .log import LOST, NO_ANSWER, Call, Operation

#: Microseconds, least and most, and significant digits of the histograms: up to ten minutes, three digits.
HISTOGRAM_US: Final = (1, 600_000_000, 3)

#: The percentiles that tables show.
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)

#: Points of the percentile curve per halving of what is left: enough for a smooth line.
CURVE_TICKS: Final = 5

#: Bins of everything that is shown over time, about, and milliseconds of one that are round.
BINS: Final = 60
BIN_MS: Final = (50, 100, 200, 250, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000)

#: Milliseconds by which requests may be sent late, at the 99th percentile, before a run says so: it is then of the size
#: of the latencies that are measured.
LATE_MS: Final = 10.0


def new_histogram() -> HdrHistogram:
    """An empty histogram of microseconds."""
    return HdrHistogram(*HISTOGRAM_US)


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of some requests, milliseconds.

    Parameters
    ----------
    percentiles: by percentile. curve: percentile and milliseconds, as far as there are requests to tell.
    """

    count: int
    mean: float
    max: float
    percentiles: Mapping[float, float]
    curve: tuple[tuple[float, float], ...]

    @staticmethod
    def of(histogram: HdrHistogram) -> Latency:
        count = histogram.get_total_count()
        if not count:
            return Latency(0, 0.0, 0.0, dict.fromkeys(PERCENTILES, 0.0), ())
        return Latency(
            count,
            histogram.get_mean_value() / 1000,
            histogram.get_max_value() / 1000,
            {each: histogram.get_value_at_percentile(each) / 1000 for each in PERCENTILES},
            tuple(
                (min(each.percentile_level_iterated_to, 100.0), each.value_iterated_to / 1000)
                for each in histogram.get_percentile_iterator(CURVE_TICKS)
            ),
        )


@dataclass(frozen=True, slots=True)
class Stock:
    """The counters of a sale, as it answered them. `at` is in seconds after the start."""

    at: float
    available: int
    reserved: int
    purchased: int
    in_transit: int = 0


@dataclass(frozen=True, slots=True)
class Bin:
    """What ended in a stretch of time. `at` is its begin, seconds after the start; outcomes by what was said."""

    at: float
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run came to.

    Parameters
    ----------
    seconds: from the start to the last answer. requests: with an answer or without.
    per_second: requests in the busiest bin, as a rate; mean_per_second over `seconds`.
    from_due, service: latencies of all requests and of each call, from when they were due and from when they were sent.
    outcomes: by call and what was said. timeline: `bin_seconds` each. stock: of each sale, by id.
    lag: how late requests were sent, milliseconds. loop_lag: how late the senders' loops were.
    waited: requests that had to wait for a connection. late: a sentence when the harness was the one who was late.
    cpu: share of one core that each process used.
    """

    seconds: float
    requests: int
    per_second: float
    mean_per_second: float
    from_due: Mapping[str, Latency]
    service: Mapping[str, Latency]
    outcomes: Mapping[str, Mapping[str, int]]
    bin_seconds: float
    timeline: tuple[Bin, ...]
    stock: Mapping[str, tuple[Stock, ...]]
    lag: Latency
    loop_lag: Latency
    waited: int
    late: str
    cpu: tuple[float, ...]


def figures(
    operations: Sequence[Operation],
    start: int,
    stock: Mapping[str, Sequence[Stock]],
    loop_lags: HdrHistogram,
    cpu: tuple[float, ...] = (),
) -> Figures:
    """All of it.

    Parameters
    ----------
    start: of the run, nanoseconds. stock: by sale. loop_lags: of all processes. cpu: of each, as a share of one core.
    """
    due: dict[str, HdrHistogram] = defaultdict(new_histogram)
    service: dict[str, HdrHistogram] = defaultdict(new_histogram)
    lag = new_histogram()
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    waited = 0
    for each in operations:
        outcomes[each.call.value][each.said] += 1
        waited += each.waited
        lag.record_value(max(1, (each.begun - each.due) // 1000))
        if not _answered(each):
            continue
        for name in ("all", each.call.value):
            due[name].record_value(max(1, (each.ended - each.due) // 1000))
            service[name].record_value(max(1, (each.ended - each.begun) // 1000))
    seconds = max((each.ended - start for each in operations), default=0) / 1e9
    width, timeline = _timeline(operations, start, seconds)
    lags = Latency.of(lag)
    busiest = max((sum(each.outcomes.values()) for each in timeline), default=0)
    return Figures(
        seconds,
        len(operations),
        busiest / width,
        len(operations) / seconds if seconds else 0.0,
        {name: Latency.of(due[name]) for name in _names(due)},
        {name: Latency.of(service[name]) for name in _names(service)},
        {name: dict(each.most_common()) for name, each in sorted(outcomes.items())},
        width,
        timeline,
        {name: tuple(each) for name, each in stock.items()},
        lags,
        Latency.of(loop_lags),
        waited,
        _late(lags, waited),
        cpu,
    )


def _answered(operation: Operation) -> bool:
    """Whether its time says something of the server: an answer, or the lack of one for as long as the client waited."""
    return bool(operation.status) or operation.code in (LOST, NO_ANSWER)


def _names(histograms: Iterable[str]) -> list[str]:
    known = ["all", *(call.value for call in Call)]
    return sorted(histograms, key=known.index)


def _late(lag: Latency, waited: int) -> str:
    p99 = lag.percentiles[99.0]
    if p99 <= LATE_MS:
        return ""
    why = f", and {waited} had to wait for a connection" if waited else ""
    return (
        f"The harness sent late: one request in a hundred by {p99:.0f} ms or more, one by {lag.max:.0f} ms{why}. "
        "Latencies from due have this in them; the service time has not."
    )


def _timeline(operations: Sequence[Operation], start: int, seconds: float) -> tuple[float, tuple[Bin, ...]]:
    width = next((each for each in BIN_MS if seconds * 1000 / each <= BINS), BIN_MS[-1])
    bins: dict[int, Counter[str]] = defaultdict(Counter)
    for each in operations:
        bins[max(0, each.ended - start) // (width * 1_000_000)][kind(each)] += 1
    last = max(bins, default=-1)
    return width / 1000, tuple(Bin(at * width / 1000, dict(bins[at])) for at in range(last + 1))


def kind(operation: Operation) -> str:
    """What an operation came to, for the plot of outcomes: a success by its call, a refusal by its code."""
    if operation.call is Call.GARBAGE:
        return "garbage"
    if 200 <= operation.status < 300:
        if operation.replayed:
            return "replayed"
        return {Call.RESERVE: "reserved", Call.PAY: "paid", Call.CANCEL: "cancelled"}[operation.call]
    return operation.code or f"status {operation.status}"
