"""`GET /metrics`: what this server has counted, in all of its workers, and how everything stands at this moment.

Counted is in plain figures, by the engine (`engine/meters.py`) and on the way of requests (`tally.py`). Workers tell
each other their sums each second (`totals.py`), so that those of the others are that old. Redis, the store and the
sales are looked at once for each scrape, by whoever answers. The library writes it down in the format asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from aiohttp import hdrs, web
from prometheus_client import openmetrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_TYPE
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from holdfast.engine import Condition, Engine
from holdfast.engine.meters import BATCH_BOUNDS, REDIS_BOUNDS, SNAPSHOT_BOUNDS, Spread

from .bodies import read_query
from .callers import asked_by, require_operator
from .stream import STREAMS, Streams
from .tally import CALL_BOUNDS, Tally
from .totals import LABEL_END, Figures, Totals, add_up

log = logging.getLogger("holdfast.metrics")

#: Seconds between two looks at the event loop, which is late by what kept it; and between two reports to the others.
LOOK_SECONDS: Final = 0.1
TELL_SECONDS: Final = 1.0

#: Seconds by which the event loop is late. 10 ms is a busy turn; from a second on, clients notice.
LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: The media type of OpenMetrics, for those who say that they take it.
OPENMETRICS: Final = "application/openmetrics-text"

Kind = Literal["counter", "gauge", "histogram"]


class Described(NamedTuple):
    """A metric.

    Parameters
    ----------
    name: with its unit; of a counter without the `_total` that is added to it. bounds: of a histogram.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: Sequence[float] = ()

    @property
    def shown(self) -> str:
        """The name under which it is found."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


#: What was counted since the server started, over all workers.
COUNTED: Final = (
    Described(
        "holdfast_outcomes",
        "counter",
        "What callers heard, entries of batch calls included: ok, or the code of the refusal.",
        ("call", "sale", "outcome"),
    ),
    Described(
        "holdfast_call_duration_seconds",
        "histogram",
        "From the request being there to its answer being written.",
        ("call",),
        CALL_BOUNDS,
    ),
    Described(
        "holdfast_http_requests",
        "counter",
        "Requests that are not counted as outcomes.",
        ("method", "route", "status"),
    ),
    Described(
        "holdfast_http_request_duration_seconds",
        "histogram",
        "The same for requests that are not counted as outcomes; a stream until it begins.",
        ("method", "route"),
        CALL_BOUNDS,
    ),
    Described("holdfast_connections_turned_away", "counter", "Connections for which there was no room."),
    Described("holdfast_stream_readers_dropped", "counter", "Readers of streams who were cut off: they did not read."),
    Described("holdfast_batch_calls", "histogram", "Calls that one script call took.", ("script",), BATCH_BOUNDS),
    Described(
        "holdfast_batch_duration_seconds",
        "histogram",
        "From sending a script call to its last answer.",
        ("script",),
        REDIS_BOUNDS,
    ),
    Described("holdfast_swept_tickets", "counter", "Tickets expired by sweeping."),
    Described("holdfast_snapshot_transitions", "counter", "Transitions copied into the store."),
    Described("holdfast_snapshot_duration_seconds", "histogram", "One snapshot of all sales.", (), SNAPSHOT_BOUNDS),
    Described(
        "holdfast_payments_below_durability",
        "counter",
        "Payments that were not as durable as asked when their caller was answered.",
    ),
    Described(
        "holdfast_event_loop_lag_seconds", "histogram", "How late event loops came to what was due.", (), LAG_BOUNDS
    ),
    Described("holdfast_worker_starts", "counter", "Processes that began to serve."),
    Described("holdfast_worker_cpu_seconds", "counter", "CPU time of the processes that serve."),
)

#: What is at this moment, added up over the workers that live.
PRESENT: Final = (
    Described("holdfast_workers", "gauge", "Processes that serve."),
    Described("holdfast_worker_memory_bytes", "gauge", "Resident memory of the processes that serve."),
    Described("holdfast_connections_open", "gauge", "Connections that are open."),
    Described("holdfast_calls_waiting", "gauge", "Calls that wait for their script call.", ("script",)),
    Described("holdfast_stream_readers", "gauge", "Readers of sales' streams."),
)

#: What is looked at for each scrape.
LOOKED_AT: Final = (
    Described("holdfast_build_info", "gauge", "Always 1.", ("version", "python")),
    Described("holdfast_ready", "gauge", "1 when everything can be sold, as /readyz says."),
    Described(
        "holdfast_alarms", "gauge", "What is wrong without keeping anything from being sold, as /readyz lists it."
    ),
    Described(
        "holdfast_contradictions", "gauge", "Transitions that contradict the store, and ledgers that cannot be copied."
    ),
    Described("holdfast_redis_up", "gauge", "1 when Redis answers."),
    Described("holdfast_store_up", "gauge", "1 when the store answers."),
    Described("holdfast_redis_memory_used_bytes", "gauge", "Memory of Redis that counts towards its limit."),
    Described("holdfast_redis_memory_limit_bytes", "gauge", "maxmemory of Redis, or the memory of its machine."),
    Described(
        "holdfast_redis_memory_used_ratio", "gauge", "The first of these by the second; above 0.9 nothing is reserved."
    ),
    Described("holdfast_expiry_lag_seconds", "gauge", "How long ago the oldest hold was due that has not ended yet."),
    Described("holdfast_snapshot_behind_transitions", "gauge", "Transitions that the store does not have yet."),
    Described(
        "holdfast_snapshot_behind_seconds", "gauge", "Age of the oldest transition that the store does not have yet."
    ),
    Described(
        "holdfast_unfolded_transitions", "gauge", "Transitions that the store's tables of tickets do not show yet."
    ),
    Described("holdfast_sales", "gauge", "Sales that there are."),
    Described("holdfast_sale_ready", "gauge", "1 when this sale can be sold.", ("sale",)),
    Described(
        "holdfast_units",
        "gauge",
        "Units of an item by state; in_transit is there in sales in shards.",
        ("sale", "sku", "state"),
    ),
    Described("holdfast_capacity_units", "gauge", "All units of an item.", ("sale", "sku")),
)

METRICS: Final = COUNTED + PRESENT + LOOKED_AT


class Metrics:
    """What a process of the server shows of itself and of the others.

    Parameters
    ----------
    engine, streams: of this process. tally: what it has answered.
    totals: what the other workers count; None where there are none.
    """

    def __init__(self, engine: Engine, tally: Tally, streams: Streams, totals: Totals | None = None) -> None:
        self._engine = engine
        self._tally = tally
        self._totals = totals
        self._streams = streams
        self._lag = Spread(LAG_BOUNDS)
        self._complained = False

    async def work(self) -> AsyncIterator[None]:
        """Measures and tells the others for as long as the application serves."""
        tasks = [asyncio.create_task(self._look())]
        if self._totals is not None:
            tasks.append(asyncio.create_task(self._report()))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The last that this process has to say; it is not there any more.
        self._tell(self._counted(), {})

    async def _look(self) -> None:
        while True:
            due = time.perf_counter() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self._lag.add(max(0.0, time.perf_counter() - due))

    async def _report(self) -> None:
        while True:
            self._tell(self._counted(), self._present())
            await asyncio.sleep(TELL_SECONDS)

    def _tell(self, counted: Figures, now: Figures) -> None:
        if self._totals is None:
            return
        try:
            self._totals.write(counted, now)
        except (OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                log.error("other workers are not told what was counted here: %s", error)

    def _counted(self) -> Figures:
        """What was counted here, by this process and those before it."""
        tally, meters = self._tally, self._engine.meters
        figures: Figures = {
            "holdfast_outcomes": {_joined(labels): [times] for labels, times in tally.outcomes()},
            "holdfast_call_duration_seconds": {call: spread.figures() for call, spread in tally.seconds.items()},
            "holdfast_http_requests": {_joined(labels): [times] for labels, times in tally.requests.items()},
            "holdfast_http_request_duration_seconds": {
                _joined(labels): spread.figures() for labels, spread in tally.request_seconds.items()
            },
            "holdfast_connections_turned_away": {"": [tally.turned_away]},
            "holdfast_stream_readers_dropped": {"": [self._streams.dropped]},
            "holdfast_batch_calls": {kind: meter.sizes.figures() for kind, meter in meters.batches.items()},
            "holdfast_batch_duration_seconds": {
                kind: meter.seconds.figures() for kind, meter in meters.batches.items()
            },
            "holdfast_swept_tickets": {"": [meters.expired]},
            "holdfast_snapshot_transitions": {"": [meters.copied]},
            "holdfast_snapshot_duration_seconds": {"": meters.snapshots.figures()},
            "holdfast_payments_below_durability": {"": [meters.below_durability]},
            "holdfast_event_loop_lag_seconds": {"": self._lag.figures()},
            "holdfast_worker_starts": {"": [1]},
            "holdfast_worker_cpu_seconds": {"": [time.process_time()]},
        }
        if self._totals is not None:
            add_up(figures, self._totals.before)
        return figures

    def _present(self) -> Figures:
        """What is here at this moment."""
        return {
            "holdfast_workers": {"": [1]},
            "holdfast_worker_memory_bytes": {"": [_resident_bytes()]},
            "holdfast_connections_open": {"": [self._tally.connections()]},
            "holdfast_calls_waiting": {kind: [waiting] for kind, waiting in self._engine.waiting().items()},
            "holdfast_stream_readers": {"": [len(self._streams.readers)]},
        }

    async def shown(self) -> Shown:
        """Everything, as of now."""
        condition = await self._engine.condition()
        figures, now = self._counted(), self._present()
        # What was shown once may not be less on the next page, whoever makes that and whoever dies before.
        self._tell(figures, now)
        if self._totals is not None:
            for theirs, their_now in self._totals.others():
                add_up(figures, theirs)
                add_up(now, their_now)
        return Shown(figures | now | _looked_at(condition))


class Shown(Collector):
    """Figures, as the library asks for them.

    Parameters
    ----------
    figures: by the names in `METRICS`; those that are missing are not shown.
    """

    def __init__(self, figures: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """The metrics with their figures, in the order of the table."""
        for described in METRICS:
            by_labels = self._figures.get(described.name)
            if by_labels is not None:
                yield _family(described, by_labels)


def _family(described: Described, by_labels: Mapping[str, Sequence[float]]) -> Metric:
    labels = described.labels
    if described.kind == "histogram":
        histogram = HistogramMetricFamily(described.name, described.help, labels=labels)
        bounds = [*map(floatToGoString, described.bounds), "+Inf"]
        for joined, (*counts, total) in by_labels.items():
            histogram.add_metric(_split(joined, labels), list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    family = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    simple = family(described.name, described.help, labels=labels)
    for joined, (figure,) in by_labels.items():
        simple.add_metric(_split(joined, labels), figure)
    return simple


def _joined(labels: Sequence[str]) -> str:
    return LABEL_END.join(labels)


def _split(joined: str, labels: Sequence[str]) -> list[str]:
    return joined.split(LABEL_END) if labels else []


def _looked_at(condition: Condition) -> Figures:
    figures: Figures = {
        "holdfast_build_info": {_joined((version("holdfast"), platform.python_version())): [1]},
        "holdfast_ready": {"": [condition.readiness.ready]},
        "holdfast_alarms": {"": [len(condition.readiness.alarms)]},
        "holdfast_contradictions": {"": [condition.contradictions]},
        "holdfast_redis_up": {"": [condition.redis]},
        "holdfast_store_up": {"": [condition.store]},
        "holdfast_sales": {"": [condition.sales_known]},
        "holdfast_sale_ready": {sale.id: [sale.ready] for sale in condition.sales},
        "holdfast_units": {
            _joined((sale.id, item.sku, state)): [units]
            for sale in condition.sales
            for item in sale.items
            for state, units in (
                ("available", item.available),
                ("reserved", item.reserved),
                ("purchased", item.purchased),
                *((("in_transit", item.in_transit),) if sale.shards is not None else ()),
            )
        },
        "holdfast_capacity_units": {
            _joined((sale.id, item.sku)): [item.available + item.reserved + item.purchased + item.in_transit]
            for sale in condition.sales
            for item in sale.items
        },
    }
    told = {
        "holdfast_redis_memory_used_bytes": condition.memory_used,
        "holdfast_redis_memory_limit_bytes": condition.memory_limit,
        "holdfast_expiry_lag_seconds": _seconds(condition.expiry_lag_ms),
        "holdfast_snapshot_behind_transitions": condition.behind,
        "holdfast_snapshot_behind_seconds": _seconds(condition.behind_ms),
        "holdfast_unfolded_transitions": condition.unfolded,
    }
    if condition.memory_used is not None and condition.memory_limit:
        told["holdfast_redis_memory_used_ratio"] = condition.memory_used / condition.memory_limit
    return figures | {name: {"": [figure]} for name, figure in told.items() if figure is not None}


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


#: What the application counts and shows.
TALLY: web.AppKey[Tally] = web.AppKey("tally", Tally)
SHOWN: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


def install(app: web.Application, engine: Engine, totals: Totals | None) -> None:
    """Has an application, with its streams, count, and measure itself while it serves."""
    tally = app[TALLY] = Tally(engine.knows)
    metrics = app[SHOWN] = Metrics(engine, tally, app[STREAMS], totals)

    async def working(_: web.Application) -> AsyncIterator[None]:
        async for each in metrics.work():
            yield each

    app.cleanup_ctx.append(working)


async def show_metrics(request: web.Request) -> web.Response:
    """`GET /metrics`: what was counted in all workers, and how everything stands, for Prometheus."""
    require_operator(asked_by(request))
    read_query(request)
    shown = await request.app[SHOWN].shown()
    if OPENMETRICS in request.headers.get(hdrs.ACCEPT, ""):
        body, content_type = openmetrics.exposition.generate_latest(shown), OPENMETRICS_TYPE  # type: ignore[no-untyped-call]
    else:
        body, content_type = generate_latest(shown), CONTENT_TYPE_PLAIN_0_0_4
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: "no-store"})
