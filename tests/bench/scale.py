"""What rows about scale measure by themselves: many sales on clusters of 1, 3 and 6 nodes, one hot sale in shards, and
one in one slot that several processes sell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import clusters

from . import machine
from .load import Wrong
from .measure import Sample
from .plan import Bench, Run
from .sales import Side
from .stacks import run_module

#: Sizes of the clusters, in primaries: each divides the parts over which `sales.py` spreads the sales.
NODES = (1, 3, 6)

#: Sales on each of them, all with the same load.
SALES = 600

#: Nodes of the cluster with the hot sale, and over how many shards it goes; 0 is one slot.
HOT_NODES = 3
SHARDS = (0, 3, 12)

#: Processes that sell one sale in one slot, at the same time.
PROCESSES = (1, 2, 4)

#: Units of the sale that is sold out in the end.
LAST_UNITS = 4_000

#: Runs are this many times as many as those of other rows, and shorter: each is a turn of a few seconds.
ROUNDS_TIMES = 2

#: Seconds for all turns of a row on a busy machine.
SECONDS_MAX = 900.0

CALM, EVEN, STEADY, SATURATED = "calm", "even", "steady", "saturated"
HELD, IDLE, LAST = "all held", "idle", "sold out"


def nodes_run(nodes: int, kind: str) -> Run:
    return Run(f"{SALES} sales, {nodes} node{'s' * (nodes > 1)}", kind)


def shards_run(shards: int, kind: str) -> Run:
    return Run(f"one sale, {shards} shards" if shards else "one sale, one slot", kind)


def processes_run(processes: int, kind: str) -> Run:
    return Run(f"one sale, {processes} process{'es' * (processes > 1)}", kind)


def many_sales(bench: Bench) -> None:
    """The same load on the same number of sales, on clusters of every size."""
    sides = {nodes_run(nodes, "").stack: (nodes, SALES, 0) for nodes in NODES}
    _take_turns(bench, sides, 0)


def hot_sale(bench: Bench) -> None:
    """One hot sale in one slot and in shards, each on a cluster of its own, and sold out in the end."""
    sides = {shards_run(shards, "").stack: (HOT_NODES, 1, shards) for shards in SHARDS}
    _take_turns(bench, sides, LAST_UNITS)


def several_processes(bench: Bench) -> None:
    """One hot sale in one slot, sold by more and more processes."""
    directory = bench.scratch / "several"
    directory.mkdir()
    bench.say("starting a server for one sale, and those who sell it")
    with _cluster(1) as cluster:
        options = {
            "redis": cluster.address(), "nodes": _places(cluster), "directory": str(directory),
            "processes": PROCESSES, "rounds": ROUNDS_TIMES * bench.plan.rounds,
            "seconds": bench.plan.seconds / ROUNDS_TIMES,
        }  # fmt: skip
        result = run_module("several", options, bench.cores.server, seconds_max=SECONDS_MAX)
    for processes in PROCESSES:
        for kind in (CALM, STEADY, SATURATED):
            _keep(bench, processes_run(processes, kind), result["samples"][str(processes)][kind])


@contextmanager
def _cluster(nodes: int) -> Iterator[clusters.Cluster]:
    """A cluster of so many primaries, without replicas: all of them share one core as it is."""
    try:
        cluster = clusters.Cluster(machine.redis_server(), primaries=nodes, replicas=0)
    except (OSError, TimeoutError) as error:
        raise Wrong(f"no cluster of {nodes}: {error}") from error
    with cluster:
        yield cluster


def _places(cluster: clusters.Cluster) -> list[tuple[str, int]]:
    return [(node.host, node.port) for node in cluster.nodes]


def _take_turns(bench: Bench, sides: Mapping[str, tuple[int, int, int]], units: int) -> None:
    directory = bench.scratch / f"clusters-{units}"
    directory.mkdir()
    with ExitStack() as stack:
        found: dict[str, dict[str, Any]] = {}
        for name, (nodes, sales, shards) in sides.items():
            bench.say(f"starting {name}")
            cluster = stack.enter_context(_cluster(nodes))
            found[name] = asdict(Side(redis=cluster.address(), nodes=_places(cluster), sales=sales, shards=shards))
        options = {
            "sides": found, "directory": str(directory), "units": units,
            "rounds": ROUNDS_TIMES * bench.plan.rounds, "seconds": bench.plan.seconds / ROUNDS_TIMES,
        }  # fmt: skip
        result = run_module("sales", options, bench.cores.server, seconds_max=SECONDS_MAX)
    for name in sides:
        for kind in (STEADY, SATURATED) if units else (EVEN, STEADY, SATURATED):
            _keep(bench, Run(name, kind), result["samples"][name][kind])
        bench.samples[Run(name, IDLE)] = [Sample(1, 1, result["idle"][name])]
        if units:
            _keep(bench, Run(name, HELD), result["samples"][name][HELD], transitions=1)
            _keep(bench, Run(name, LAST), [result["last"][name]])


def _keep(bench: Bench, run: Run, samples: Sequence[Mapping[str, Any]], transitions: int = 2) -> None:
    """Keeps what was seen; a pair are two transitions, a refusal is one that did not come to be."""
    kept = [
        Sample(
            each["count"],
            each["seconds"],
            {"server": each["server"], "database": sum(each["nodes"])},
            {
                "batch": transitions * each["count"] / each["calls"],
                "crowd": max(each["nodes"]) * len(each["nodes"]) / sum(each["nodes"]),
                "waits_ms": each.get("waits_ms", []),
                "transfers": each.get("transfers", 0),
                **{name: each[name] / each["count"] for name in ("bytes_in", "bytes_out", "file")},
            },
        )
        for each in samples
    ]
    bench.samples[run] = kept
    bench.say(f"{run}: {sum(s.cpu_us('database') for s in kept) / len(kept):.0f} us of Redis each")
