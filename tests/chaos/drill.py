"""The drill: a hot sale in shards on a cluster of six nodes, and a primary killed in the middle.

The exit status is 0 when every verdict is good: that of the load test on what each client was told, that of the audit
on Redis' counters, that of the checkers on store, ledgers and Redis. 1 otherwise; 2 when the call was wrong.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clusters import Cluster
from cyclopts import App
from rich.console import Console

from holdfast.engine.embedded import candidates
from holdfast.engine.keys import slot_keys
from holdfast.http.load import result
from holdfast.http.load.figures import Latency, new_histogram
from holdfast.http.load.log import Call, Operation
from holdfast.http.load.run import Run, Target
from holdfast.http.load.run import run as drive
from holdfast.http.load.scenario import Scenario, scenario_of
from holdfast.http.load.screen import Lines

from . import checkers
from .clients import SaleSpec
from .deployment import Deployment, slots_of
from .facts import Ledger
from .groups import Group
from .servers import OPERATOR_TOKEN, Broken, command, until

#: The primary dies after this part of the time in which buyers come.
IN_THE_MIDDLE = 0.4

#: Buyers a second: what two cores carry that also have the cluster, the server and the buyers to run.
RATE = 150.0

app = App(name="make drill ARGS=", help="Kill a primary of a cluster in the middle of a hot sale.", version_flags=[])


@dataclass
class Seen:
    """What the one who kills has seen. Instants are nanoseconds of the monotonic clock.

    Attributes
    ----------
    shards: how many of the sale each node had before the kill, in the order of the nodes. cpu: seconds of each node's
    CPU, as it was read when the first buyers came, before the kill, and in the end.
    """

    sale: str = ""
    victim: int = 0
    killed: int = 0
    failed_over: int = 0
    back: int = 0
    shards: list[int] = field(default_factory=list)
    cpu: list[list[float | None]] = field(default_factory=list)


@app.default
def main(*, seed: int = 1, seconds: float = 20.0, shards: int = 6, rate: float = RATE, keep: Path | None = None) -> int:
    """Run it, print the verdicts and the figures.

    Parameters
    ----------
    seed
        Of who comes when and does what.
    seconds
        In which buyers come.
    shards
        Slots over which the units of the sale are divided.
    rate
        Buyers a second.
    keep
        Where everything stays that is needed to look into a run that went wrong.
    """
    directory = (keep or Path(tempfile.mkdtemp(prefix="holdfast-drill-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    print(f"six nodes of {candidates()[0]}, seed {seed}", flush=True)
    try:
        good = asyncio.run(_drill(directory, _scenario(seed, seconds, shards, rate)))
    except Broken as error:
        print(f"\nWRONG: {error}")
        good = False
    if good and keep is None:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"kept: {directory}")
    return 0 if good else 1


def _scenario(seed: int, seconds: float, shards: int, rate: float) -> Scenario:
    buyers = int(rate * seconds)
    fields = {
        "name": "drill", "seed": seed, "shards": shards, "buyers": buyers, "capacity": buyers * 7 // 10,
        "arrival": "rate", "rate": rate, "max_per_buyer": 2, "hold_ms": 3_000, "think_ms": 500,
        "walk_away": 0.1, "cancel": 0.05, "repeat": 0.02, "duplicate": 0.02, "hang_up": 0.01,
        "retry": 0.5, "retry_for_s": 15.0, "failover": True,
    }  # fmt: skip
    return scenario_of(None, None, fields)


async def _drill(directory: Path, scenario: Scenario) -> bool:
    group = Group(Cluster(candidates()[0].path))
    # What was paid is stored, and what a failover has lost all the same is put right without an operator.
    more = ("--durability", "stored", "--recover")
    async with Deployment(directory, group, workers=2, sales=(), more=more) as product:
        target = Target(f"http://127.0.0.1:{product.holdfast.port}", OPERATOR_TOKEN, keep_open=True)
        killing = asyncio.create_task(_kill_in_the_middle(product, group.servers, scenario))
        try:
            done = await drive(scenario, target, Lines(Console()), asyncio.Event())
            seen = await killing
        finally:
            killing.cancel()
        seen.cpu.append(await asyncio.to_thread(_cpu, group.servers))
        product.sales = [SaleSpec(seen.sale, {}, scenario.hold_ms)]
        finals = await product.finals()
        status, said = await command(
            "audit", "--redis", group.url, "--store", product.store, "--tickets", directory=directory
        )
    found = checkers.check([], finals, lambda operation: True)
    print(result.text(done))
    _figures(done, seen, Ledger.of(finals[0]))
    print(f"\nload test   {done.verdict.sentence}")
    print(f"audit       {'GOOD' if not status else 'WRONG'}: {said.strip().splitlines()[-1]}")
    print(f"checkers    {'GOOD: store, ledgers and Redis say the same.' if not found else 'WRONG'}")
    for violation in found:
        print(f"            {violation.checker} {violation.sale}: {violation.text}")
    return done.verdict.good and not status and not found


async def _kill_in_the_middle(product: Deployment, cluster: Cluster, scenario: Scenario) -> Seen:
    """kill -9 of the primary that has the first shard; it is started again when its replica has taken over."""
    seen = Seen()

    async def sells() -> bool:
        for sale in (await product.operator("GET", "/sales"))["items"]:
            seen.sale, slots[:] = sale["id"], slots_of(sale)
            return bool(sale["reserved"])
        return False

    slots: list[str] = []
    await until("buyers come", sells, pause=0.05)
    keys = [slot_keys(slot).sale for slot in slots]
    owners = await asyncio.to_thread(lambda: [cluster.primary(key) for key in keys])
    seen.shards = [owners.count(node) for node in cluster.nodes]
    seen.cpu.append(await asyncio.to_thread(_cpu, cluster))
    await asyncio.sleep(scenario.buyers / scenario.rate * IN_THE_MIDDLE)
    seen.cpu.append(await asyncio.to_thread(_cpu, cluster))
    victim = owners[0]
    seen.victim, seen.killed = cluster.nodes.index(victim), time.monotonic_ns()
    victim.kill()
    await asyncio.to_thread(cluster.wait_failed_over, keys[0], victim)
    seen.failed_over = time.monotonic_ns()
    await asyncio.to_thread(victim.restart)
    await asyncio.to_thread(cluster.wait_ok)
    seen.back = time.monotonic_ns()
    return seen


def _cpu(cluster: Cluster) -> list[float | None]:
    return [node.cpu_s() if node.alive else None for node in cluster.nodes]


# -- figures -----------------------------------------------------------------------------------------------------------


def _figures(run: Run, seen: Seen, ledger: Ledger) -> None:
    operations = run.operations
    put_off = [each for each in operations if each.status == 503]
    # Over when nobody hears 503 any more.
    over = max([seen.failed_over, *(each.ended for each in put_off if each.ended > seen.killed)])
    first, last = operations[0].begun, max(each.due for each in operations)
    print(
        f"node {seen.victim} killed {_s(seen.killed - first)} after the start; its replica had taken over "
        f"{_s(seen.failed_over - seen.killed)} later, and it was back as a replica after {_s(seen.back - seen.killed)}"
    )
    if put_off:
        spread = max(each.ended for each in put_off) - min(each.begun for each in put_off)
        heard = f"{len(put_off)} answers of 503, within {_s(spread)}"
        codes = ", ".join(f"{code} {count}" for code, count in Counter(each.code for each in put_off).most_common())
        print(f"{heard} ({codes}); {len({each.buyer for each in put_off})} buyers of {run.scenario.buyers} heard one")
    else:
        print("nobody heard 503")
    spans = (
        ("before", first, seen.killed, [each for each in operations if each.ended < seen.killed]),
        ("during", seen.killed, over, [each for each in operations if each.ended >= seen.killed and each.due < over]),
        ("after", over, last, [each for each in operations if each.due >= over]),
    )
    print(f"\n{'':<8}{'seconds':>9}{'answers/s':>11}   reservations from due, ms: {'p50':>7}{'p99':>9}{'max':>9}")
    for name, since, until_, within in spans:
        latency, seconds = _latency(within), max(1e-9, (until_ - since) / 1e9)
        print(
            f"{name:<8}{seconds:>9.1f}{sum(each.status > 0 for each in within) / seconds:>11.0f}{'':<29}"
            f"{latency.percentiles[50.0]:>7.1f}{latency.percentiles[99.0]:>9.1f}{latency.max:>9.1f}"
        )
    print(f"\n{'node':<8}{'shards':>7}{'CPU, s, before the kill':>26}{'after':>9}")
    for number, shards in enumerate(seen.shards):
        begin, middle, end = (cpu[number] for cpu in seen.cpu)
        before = (middle or 0) - (begin or 0)
        # A process that was started again has counted from nothing.
        after = (end or 0) - (0 if number == seen.victim else middle or 0)
        print(f"{number:<8}{shards:>7}{before:>26.2f}{after:>9.2f}{'   killed' if number == seen.victim else ''}")
    units = sum(_units(said["received"]) for said in ledger.transfers.values() if "received" in said)
    print(f"\n{units} units borrowed between shards, in {len(ledger.transfers)} transfers")


def _units(lines: str) -> int:
    return sum(int(line.partition(":")[2]) for line in lines.split(",") if ":" in line)


def _latency(operations: Sequence[Operation]) -> Latency:
    histogram = new_histogram()
    for each in operations:
        if each.call is Call.RESERVE and each.status:
            histogram.record_value(max(1, (each.ended - each.due) // 1000))
    return Latency.of(histogram)


def _s(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.2f} s"


if __name__ == "__main__":
    sys.exit(app())
