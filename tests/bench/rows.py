"""The table of figures to reach: for each row what it needs, what is compared, and whether it was reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import load, scale, special
from .measure import Sample, Spread
from .plan import Bench, Run

Unit = Literal["/s", "us", "ms", "s", "bytes", "pairs/s", "calls/s", ""]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be.

    Parameters
    ----------
    kind: at least or at most. aim: what would be better still.
    """

    kind: Literal["at least", "at most"]
    value: float
    suffix: str = ""
    aim: float | None = None

    def reached(self, value: float) -> bool:
        return value >= self.value if self.kind == "at least" else value <= self.value

    def __str__(self) -> str:
        aim = f" (aim: {self.aim:g})" if self.aim is not None else ""
        return f"{self.kind} {self.value:g}{self.suffix}{aim}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Parameters
    ----------
    what, against: what is compared with what.
    ours, theirs: both sides. unit: of both.
    ratio: of each round, where there are two sides.
    target: of the ratio, or of `ours` where there is no ratio. None is for information.
    skipped, failed: why there is no figure.
    """

    what: str
    against: str = ""
    ours: Spread | None = None
    theirs: Spread | None = None
    unit: Unit = ""
    ratio: Spread | None = None
    target: Target | None = None
    note: str = ""
    skipped: str = ""
    failed: str = ""

    @property
    def reached(self) -> bool | None:
        """None where there is nothing to reach, or nothing to say it of."""
        value = self.ratio or self.ours
        if self.target is None or value is None:
            return None
        return self.target.reached(value.median)

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "against": self.against,
            "unit": self.unit,
            "holdfast": self.ours.as_json() if self.ours else None,
            "peer": self.theirs.as_json() if self.theirs else None,
            "ratio": self.ratio.as_json() if self.ratio else None,
            "target": str(self.target) if self.target else None,
            "reached": self.reached,
            "note": self.note,
            "skipped": self.skipped or None,
            "failed": self.failed or None,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Parameters
    ----------
    key: its name in `--rows`.
    title: what the table calls it.
    runs: saturated runs, taken in turns with those of all other rows.
    evaluate: the figures; called when every run has samples.
    latency: runs at a rate, which come after the saturated ones.
    work: what the row measures by itself, after everything else.
    optional: runs without which the row still has figures.
    """

    key: str
    title: str
    evaluate: Callable[[Bench], Sequence[Figure]]
    runs: tuple[Run, ...] = ()
    latency: tuple[Run, ...] = ()
    work: Callable[[Bench], None] | None = None
    optional: tuple[Run, ...] = ()

    @property
    def work_run(self) -> Run:
        """Under which the row's own work is noted."""
        return Run(self.key, "the row's own measurements")

    def figures(self, bench: Bench) -> list[Figure]:
        """What came of it; one line that says why where nothing did."""
        needs = (*self.runs, *self.latency, *([self.work_run] if self.work else []))
        if failed := bench.broke(needs):
            return [Figure(self.title, failed=failed)]
        if lacks := bench.lacks(needs):
            return [Figure(self.title, skipped=lacks)]
        if not all(run in bench.samples for run in (*self.runs, *self.latency)) or (
            self.work and self.work_run not in bench.worked
        ):
            return [Figure(self.title, skipped="the bench was stopped before it was measured")]
        figures = list(self.evaluate(bench))
        for run in self.optional:
            if failed := bench.broke([run]):
                figures.append(Figure(f"{self.title} ({run})", failed=failed))
        return figures


def rate(sample: Sample) -> float:
    return sample.rate


def stack_cpu_us(sample: Sample) -> float:
    """CPU of server and database for each one counted; the load generator is no part of a stack."""
    return sample.cpu_us("server", "database")


HOLDFAST, BARE = "holdfast", "bare"

RESERVE = Run(HOLDFAST, "reserve")
BARE_RESERVE = Run(BARE, "reserve")
FEW, BARE_FEW = Run(HOLDFAST, "reserve_few"), Run(BARE, "reserve_few")
SERVER_RESERVE, APPLICATION_RESERVE = Run("bare, web.Server", "reserve"), Run("bare, web.Application", "reserve")
PAY, BARE_PAY = Run(HOLDFAST, "pay"), Run(BARE, "pay")
GONE, BARE_GONE = Run(HOLDFAST, "sold_out"), Run(BARE, "sold_out")
FASTIFY, FASTIFY_PAY = Run("fastify", "reserve"), Run("fastify", "pay")
POSTGRES, POSTGRES_PAY = Run("postgres", "reserve"), Run("postgres", "pay")
BATCH = Run(HOLDFAST, "batch")
RARE = Run("holdfast, no snapshots", "reserve")
WORKERS = Run("holdfast, 2 workers", "reserve")
LATENCY, BARE_LATENCY = Run(HOLDFAST, "at rate"), Run(BARE, "at rate")
ENGINE, PAIRS, BATCHES = Run("engine", "reserve"), Run("engine", "pairs"), Run("engine", "batches")
BATCHES_FSYNC, BATCHES_STORED = Run("engine, fsync", "batches"), Run("engine, stored", "batches")
PAY_FSYNC, PAY_STORED = Run("holdfast, fsync", "pay"), Run("holdfast, stored", "pay")
REDIS_PY = Run("redis-py", "reserve")
FLASH_1, FLASH_16 = Run("flash-sale script", "1"), Run("flash-sale script", "16")


def _against_bare(title: str, ours: Run, theirs: Run, least: float) -> Callable[[Bench], list[Figure]]:
    def figures(bench: Bench) -> list[Figure]:
        return [
            Figure(
                title,
                "bare server of the same class, same bytes",
                bench.rates(ours),
                bench.rates(theirs),
                "/s",
                bench.ratio(ours, theirs, rate),
                Target("at least", least),
                _busy(bench, ours, theirs),
            )
        ]

    return figures


def _busy(bench: Bench, *runs: Run) -> str:
    """Whether the server was the bottleneck, which it should be."""
    idle = [
        f"{run.stack}'s server used only {share:.0%} of its core"
        for run in runs
        if (share := bench.spread(run, lambda sample: sample.busy("server")).median) < special.BUSY_SHARE
    ]
    return "; ".join(idle)


def reserve(bench: Bench) -> list[Figure]:
    title = "HTTP reserve, one worker, saturated"
    figures = _against_bare(title, RESERVE, BARE_RESERVE, 0.85)(bench)
    if FEW in bench.samples and BARE_FEW in bench.samples:
        ratio = bench.ratio(FEW, BARE_FEW, rate)
        few = f"the same, {load.FEW_CONNECTIONS} connections"
        figures.append(
            Figure(
                few, figures[0].against, bench.rates(FEW), bench.rates(BARE_FEW), "/s", ratio, note=_busy(bench, FEW)
            )
        )
    for peer in (SERVER_RESERVE, APPLICATION_RESERVE):
        if peer in bench.samples:
            ratio = bench.ratio(RESERVE, peer, rate)
            figures.append(
                Figure("the same", f"{peer.stack}, same bytes", bench.rates(RESERVE), bench.rates(peer), "/s", ratio)
            )
    return figures


def pay(bench: Bench) -> list[Figure]:
    title = "HTTP reserve + pay, whole flow, in requests"
    figures = _against_bare(title, PAY, BARE_PAY, 0.80)(bench)
    for peer, name in ((FASTIFY_PAY, "Fastify + ioredis"), (POSTGRES_PAY, "aiohttp + PostgreSQL")):
        if peer in bench.samples:
            ratio = bench.ratio(PAY, peer, rate)
            figures.append(Figure("the same", name, bench.rates(PAY), bench.rates(peer), "/s", ratio))
    return figures


def cpu(bench: Bench) -> list[Figure]:
    return [
        Figure(
            "CPU per HTTP reservation, server + Redis",
            "Fastify + ioredis + Lua",
            bench.spread(RESERVE, stack_cpu_us),
            bench.spread(FASTIFY, stack_cpu_us),
            "us",
            bench.ratio(RESERVE, FASTIFY, stack_cpu_us),
            Target("at most", 1.3, aim=1),
            bench.notes.get("fastify", ""),
        ),
        Figure(
            "HTTP reserve, one worker, saturated",
            "Fastify + ioredis + Lua",
            bench.rates(RESERVE),
            bench.rates(FASTIFY),
            "/s",
            bench.ratio(RESERVE, FASTIFY, rate),
        ),
    ]


def postgres(bench: Bench) -> list[Figure]:
    return [
        Figure(
            "HTTP reserve, hot sale",
            "aiohttp + asyncpg + PostgreSQL FOR UPDATE",
            bench.rates(RESERVE),
            bench.rates(POSTGRES),
            "/s",
            bench.ratio(RESERVE, POSTGRES, rate),
            Target("at least", 10, " x"),
            bench.notes.get("postgres", ""),
        )
    ]


def engine_reserve(bench: Bench) -> list[Figure]:
    return [
        Figure(
            "engine.reserve, 1,000 callers, one process",
            "redis-py, one EVALSHA per call",
            bench.rates(ENGINE),
            bench.rates(REDIS_PY),
            "calls/s",
            bench.ratio(ENGINE, REDIS_PY, rate),
            Target("at least", 5, " x"),
            bench.notes.get("redis-py", ""),
        )
    ]


def engine_pairs(bench: Bench) -> list[Figure]:
    return [
        Figure(
            "engine.reserve then confirm, 512 callers, pairs/s",
            "redis-py, one EVALSHA per call, calls/s",
            bench.rates(PAIRS),
            bench.rates(REDIS_PY),
            "/s",
            bench.ratio(PAIRS, REDIS_PY, rate),
            Target("at least", round(25_000 / 14_000, 2), " x"),
            "the target is 25,000 pairs/s where redis-py makes 14,000 calls/s",
        )
    ]


def per_redis_core(sample: Sample) -> float:
    """How many for each second of Redis' CPU."""
    return sample.count / sample.cpu["database"]


def engine_batches(bench: Bench) -> list[Figure]:
    size = bench.spread(BATCHES, lambda sample: sample.extra["batch"]).median
    ours = bench.spread(BATCHES, per_redis_core)
    figures = [
        Figure(
            "reserve + confirm in full batches, pairs/s per Redis core",
            "flash-sale script, pipeline of 16, calls/s",
            ours,
            bench.rates(FLASH_16),
            "/s",
            bench.ratio(BATCHES, FLASH_16, per_redis_core, rate),
            Target("at least", 0.5, " x"),
            f"durability memory; {size:.0f} tickets in a script call; "
            f"the engine makes {bench.rates(BATCHES).median:,.0f} pairs/s",
        ),
        Figure(
            "the same",
            "flash-sale script, pipeline of 16, calls per second of Redis' CPU",
            ours,
            bench.spread(FLASH_16, per_redis_core),
            "/s",
            bench.ratio(BATCHES, FLASH_16, per_redis_core),
            note="the script's calls/s, had Redis been busy all the time",
        ),
        Figure(
            "the same",
            "flash-sale script, no pipeline, calls/s",
            ours,
            bench.rates(FLASH_1),
            "/s",
            bench.ratio(BATCHES, FLASH_1, per_redis_core, rate),
        ),
        Figure(
            "Redis CPU per pair",
            "per call of the flash-sale script, pipeline of 16",
            bench.spread(BATCHES, lambda sample: sample.cpu_us("database")),
            bench.spread(FLASH_16, lambda sample: sample.cpu_us("database")),
            "us",
            bench.ratio(BATCHES, FLASH_16, lambda sample: sample.cpu_us("database")),
        ),
        Figure(
            "the same with durability fsync",
            "flash-sale script, pipeline of 16, calls/s (everysec)",
            bench.spread(BATCHES_FSYNC, per_redis_core),
            bench.rates(FLASH_16),
            "/s",
            bench.ratio(BATCHES_FSYNC, FLASH_16, per_redis_core, rate),
            note=f"appendfsync always; {bench.rates(BATCHES_FSYNC).median:,.0f} pairs/s",
        ),
    ]
    return figures


def durability(bench: Bench) -> list[Figure]:
    title = "HTTP reserve + pay, whole flow, payments at "
    figures = [
        Figure(
            f"{title}{level}",
            "the same at memory",
            bench.rates(run),
            bench.rates(PAY),
            "/s",
            bench.ratio(run, PAY, rate),
            target,
        )
        for level, run, target in (("stored", PAY_STORED, Target("at least", 0.5)), ("fsync", PAY_FSYNC, None))
    ]
    figures += [
        Figure(
            f"engine.reserve then confirm at {level}, 1,500 callers, pairs/s",
            "the same at memory",
            bench.rates(run),
            bench.rates(BATCHES),
            "/s",
            bench.ratio(run, BATCHES, rate),
            target,
        )
        for level, run, target in (
            ("stored", BATCHES_STORED, Target("at least", 0.5)),
            ("fsync", BATCHES_FSYNC, None),
        )
    ]
    return figures


def batch(bench: Bench) -> list[Figure]:
    return [
        Figure(
            "batch call over HTTP, reservations/s",
            "single HTTP reserve",
            bench.rates(BATCH),
            bench.rates(RESERVE),
            "/s",
            bench.ratio(BATCH, RESERVE, rate),
            Target("at least", 5, " x"),
        )
    ]


def redis_cpu(bench: Bench) -> list[Figure]:
    def database(sample: Sample) -> float:
        return sample.cpu_us("database")

    small, large = special.SMALL_SALE, special.LARGE_SALE
    note = f"{bench.plan.tickets_large:,} tickets"
    if bench.plan.tickets_large < special.TICKETS_LARGE:
        note += f" stand for {special.TICKETS_LARGE:,}"
    return [
        Figure(
            "Redis CPU per HTTP reservation, all features on, sale of 1,000 tickets",
            "",
            bench.spread(small, database),
            unit="us",
            target=Target("at most", 10, " us"),
        ),
        Figure(
            f"the same, sale of {bench.plan.tickets_large:,} tickets",
            "sale of 1,000 tickets",
            bench.spread(large, database),
            bench.spread(small, database),
            "us",
            bench.ratio(large, small, database),
            Target("at most", 1.3, " x"),
            note,
        ),
        Figure(
            f"HTTP reserve, sale of {bench.plan.tickets_large:,} tickets",
            "sale of 1,000 tickets",
            bench.rates(large),
            bench.rates(small),
            "/s",
            bench.ratio(large, small, rate),
        ),
    ]


def memory(bench: Bench) -> list[Figure]:
    def held(sample: Sample) -> float:
        return float(sample.extra["bytes"])

    note = f"{bench.plan.tickets_memory:,} tickets, each of a buyer of its own"
    return [
        Figure(
            "Redis memory per held ticket, without the lease",
            "",
            bench.spread(special.WITHOUT_LEASE, held),
            unit="bytes",
            target=Target("at most", 450, " bytes"),
            note=note,
        ),
        Figure(
            "Redis memory per held ticket, with the lease",
            "",
            bench.spread(special.WITH_LEASE, held),
            unit="bytes",
            target=Target("at most", 600, " bytes"),
            note=note,
        ),
    ]


def latency(bench: Bench) -> list[Figure]:
    def p99(sample: Sample) -> float:
        return float(sample.extra["p99_ms"])

    at = bench.spread(LATENCY, lambda sample: sample.extra["rate"]).median
    return [
        Figure(
            "p99 of reserve at 70 % of saturation",
            "bare server, same bytes, same rate",
            bench.spread(LATENCY, p99),
            bench.spread(BARE_LATENCY, p99),
            "ms",
            bench.ratio(LATENCY, BARE_LATENCY, p99),
            Target("at most", 1.5, " x"),
            f"{at:,.0f} requests/s, from when they were due",
        )
    ]


def expiry(number: int) -> Callable[[Bench], list[Figure]]:
    def figures(bench: Bench) -> list[Figure]:
        holds, _ = bench.plan.holds[number]
        run = special.expiry_run(number)

        def seen(name: str) -> Spread:
            return bench.spread(run, lambda sample: float(sample.extra[name]))

        stated = special.HOLDS[number]
        title = f"{holds:,} holds run out in the same second: "
        note = f"stand for {stated:,}" if holds < stated else ""
        load_rate = seen("rate").median
        return [
            Figure(
                title + "reserve p99 while they are swept",
                "before",
                seen("p99_during_ms"),
                seen("p99_before_ms"),
                "ms",
                seen("ratio"),
                Target("at most", 3, " x"),
                "; ".join(filter(None, [note, f"{load_rate:,.0f} requests/s, half of saturation"])),
            ),
            Figure(
                title + "from the first deadline until all are swept",
                "",
                seen("drained_s"),
                unit="s",
                target=Target("at most", 2, " s") if stated == special.HOLDS[0] else None,
                note="the last deadline is a second after the first" + ("" if number == 0 else "; reported"),
            ),
            Figure(
                title + "a reserve that needs a due unit gets it in",
                "",
                seen("due_unit_ms"),
                unit="ms",
                target=Target("at most", special.AT_ONCE_MS, " ms"),
                note="in a sale whose every unit is held and due",
            ),
        ]

    return figures


def snapshot(bench: Bench) -> list[Figure]:
    return [
        Figure(
            "HTTP reserve, saturated, with a snapshot each second",
            "a server that takes none meanwhile",
            bench.rates(RESERVE),
            bench.rates(RARE),
            "/s",
            bench.ratio(RESERVE, RARE, rate),
            Target("at least", 0.9),
        )
    ]


def workers(bench: Bench) -> list[Figure]:
    return [
        Figure(
            "HTTP reserve, two workers, not pinned",
            "one worker",
            bench.rates(WORKERS),
            bench.rates(RESERVE),
            "/s",
            bench.ratio(WORKERS, RESERVE, rate),
            note="Redis and the load share the two cores with them",
        )
    ]


def _redis_us(sample: Sample) -> float:
    return sample.cpu_us("database")


def _batch(sample: Sample) -> float:
    return float(sample.extra["batch"])


def scale_nodes(bench: Bench) -> list[Figure]:
    figures = []
    kinds = (
        (scale.SATURATED, "saturated"),
        (scale.EVEN, "as much for each node"),
        (scale.STEADY, "half of saturated"),
    )
    for kind, told in kinds:
        one = scale.nodes_run(1, kind)
        for nodes in scale.NODES:
            run = scale.nodes_run(nodes, kind)
            rates, calls = bench.rates(run), bench.spread(run, _batch)
            figures.append(
                Figure(
                    f"Redis CPU for a reservation and its payment, {scale.SALES} sales, {told}, {nodes} nodes",
                    "1 node" if nodes > 1 else "",
                    bench.spread(run, _redis_us),
                    bench.spread(one, _redis_us) if nodes > 1 else None,
                    "us",
                    bench.ratio(run, one, _redis_us) if nodes > 1 else None,
                    Target("at most", 1.2, " x") if nodes > 1 else None,
                    f"{rates.median:,.0f} pairs/s, {calls.median:.2f} calls in a script call",
                )
            )
    idle = bench.samples[scale.nodes_run(1, scale.IDLE)][0]
    figures.append(
        Figure(
            "CPU for a sale on which nothing happens, each second",
            "the same of the process",
            Spread.of([idle.cpu["database"] / scale.SALES * 1e6]),
            Spread.of([idle.cpu["server"] / scale.SALES * 1e6]),
            "us",
            note="sweeper, snapshot and the server itself",
        )
    )
    return figures


def scale_shards(bench: Bench) -> list[Figure]:
    figures = []
    for shards in scale.SHARDS:
        name = f"{shards} shards" if shards else "one slot"
        slot, target = scale.shards_run(0, scale.SATURATED), Target("at most", 1.3, " x") if shards else None
        run, last = scale.shards_run(shards, scale.SATURATED), scale.shards_run(shards, scale.LAST)
        crowds = [sample.extra["crowd"] for sample in (*bench.samples[run], *bench.samples[last])]
        figures.append(
            Figure(
                f"one hot sale on {scale.HOT_NODES} nodes, {name}: Redis CPU of the busiest node, of the mean",
                ours=Spread.of(crowds),
                target=target,
                note="saturated, and until the last unit is sold",
            )
        )
        figures.append(
            Figure(
                f"the same, {name}: Redis CPU for a reservation and its payment",
                "one slot" if shards else "",
                bench.spread(run, _redis_us),
                bench.spread(slot, _redis_us) if shards else None,
                "us",
                bench.ratio(run, slot, _redis_us) if shards else None,
                note=f"{bench.rates(run).median:,.0f} pairs/s, {bench.spread(run, _batch).median:.0f} calls in a "
                f"script call; {_bytes(bench, run)}, {bench.spread(run, _file).median:.0f} into the file",
            )
        )
        figures.append(_refused(bench, shards, name))
        if shards:
            (sample,) = bench.samples[last]
            waits = sample.extra["waits_ms"]
            figures.append(
                Figure(
                    f"the same, {name}: waited for units of another shard, until the last unit is sold",
                    ours=Spread.of(waits) if waits else None,
                    unit="ms",
                    skipped="" if waits else "nobody had to wait",
                    note=f"{sample.extra['transfers'] / sample.count * 1e3:.2f} transfers for 1,000 reservations; "
                    f"{len(waits):,} calls waited, {sample.count:,.0f} units were sold at {sample.rate:,.0f}/s",
                )
            )
    return figures


def _file(sample: Sample) -> float:
    return float(sample.extra["file"])


def _bytes(bench: Bench, run: Run) -> str:
    """What went to Redis and came back for each one."""
    there, back = (bench.spread(run, lambda sample, way=way: sample.extra[way]) for way in ("bytes_in", "bytes_out"))
    return f"{there.median:.0f} bytes there and {back.median:.0f} back"


def _refused(bench: Bench, shards: int, name: str) -> Figure:
    run, slot = scale.shards_run(shards, scale.HELD), scale.shards_run(0, scale.HELD)
    return Figure(
        f"the same, {name}: Redis CPU for a refusal while all is held",
        "one slot" if shards else "",
        bench.spread(run, _redis_us),
        bench.spread(slot, _redis_us) if shards else None,
        "us",
        bench.ratio(run, slot, _redis_us) if shards else None,
        note=f"{bench.rates(run).median:,.0f}/s, {bench.spread(run, _batch).median:.0f} calls in a script call; "
        f"{_bytes(bench, run)}; the process {bench.spread(run, _server_us).median:.1f} us",
    )


def _server_us(sample: Sample) -> float:
    return sample.cpu_us("server")


def scale_processes(bench: Bench) -> list[Figure]:
    figures = []
    kinds = (
        (scale.CALM, "a twentieth of what one process does"),
        (scale.STEADY, "half of that"),
        (scale.SATURATED, "saturated"),
    )
    for kind, told in kinds:
        one = scale.processes_run(1, kind)
        for processes in scale.PROCESSES:
            run = scale.processes_run(processes, kind)
            busy = bench.spread(run, lambda sample: sample.busy("database"))
            figures.append(
                Figure(
                    f"Redis CPU for a reservation and its payment, one slot, {told}, {processes} process"
                    + "es" * (processes > 1),
                    "1 process" if processes > 1 else "",
                    bench.spread(run, _redis_us),
                    bench.spread(one, _redis_us) if processes > 1 else None,
                    "us",
                    bench.ratio(run, one, _redis_us) if processes > 1 else None,
                    note=f"{bench.rates(run).median:,.0f} pairs/s, {bench.spread(run, _batch).median:.2f} calls in a "
                    f"script call, Redis {busy.median:.0%} busy",
                )
            )
    return figures


#: In the order of the table.
ROWS: tuple[Row, ...] = (
    Row(
        "reserve",
        "HTTP reserve, one worker, saturated",
        reserve,
        (RESERVE, BARE_RESERVE),
        optional=(FEW, BARE_FEW, SERVER_RESERVE, APPLICATION_RESERVE),
    ),
    Row(
        "pay",
        "HTTP reserve + pay, whole flow, in requests",
        pay,
        (PAY, BARE_PAY),
        optional=(FASTIFY_PAY, POSTGRES_PAY),
    ),
    Row(
        "sold-out",
        "HTTP sold-out refusal",
        _against_bare("HTTP sold-out refusal", GONE, BARE_GONE, 0.95),
        (GONE, BARE_GONE),
    ),
    Row("cpu", "CPU per HTTP reservation, server + Redis", cpu, (RESERVE, FASTIFY)),
    Row("postgres", "HTTP reserve, hot sale, against PostgreSQL", postgres, (RESERVE, POSTGRES)),
    Row("engine-reserve", "engine.reserve, 1,000 callers, one process", engine_reserve, (ENGINE, REDIS_PY)),
    Row("engine-pairs", "engine.reserve then confirm, 512 callers", engine_pairs, (PAIRS, REDIS_PY)),
    Row(
        "engine-batches",
        "reserve + confirm in full batches, pairs/s per Redis core",
        engine_batches,
        (BATCHES, BATCHES_FSYNC, FLASH_1, FLASH_16),
    ),
    Row(
        "durability",
        "payments that survive more than Redis' memory",
        durability,
        (PAY, PAY_STORED, PAY_FSYNC, BATCHES, BATCHES_STORED, BATCHES_FSYNC),
    ),
    Row("batch", "batch call over HTTP, reservations/s", batch, (BATCH, RESERVE)),
    Row("redis-cpu", "Redis CPU per HTTP reservation, all features on", redis_cpu, work=special.redis_cpu),
    Row("memory", "Redis memory per held ticket", memory, work=special.memory),
    Row("latency", "p99 of reserve at 70 % of saturation", latency, (RESERVE,), (LATENCY, BARE_LATENCY)),
    Row(
        "expiry-100k",
        "100,000 holds run out in the same second",
        expiry(0),
        (RESERVE,),
        work=lambda bench: special.expiry(bench, 0),
    ),
    Row(
        "expiry-1m",
        "1,000,000 holds run out in the same second",
        expiry(1),
        (RESERVE,),
        work=lambda bench: special.expiry(bench, 1),
    ),
    Row("snapshot", "HTTP reserve, saturated, with a snapshot each second", snapshot, (RESERVE, RARE)),
    Row("workers", "HTTP reserve, two workers", workers, (RESERVE, WORKERS)),
    Row("scale", "many sales on 1, 3 and 6 nodes", scale_nodes, work=scale.many_sales),
    Row("shards", "one hot sale in shards", scale_shards, work=scale.hot_sale),
    Row("processes", "one hot sale, several processes", scale_processes, work=scale.several_processes),
)

KEYS = tuple(row.key for row in ROWS)


def chosen(keys: Sequence[str]) -> list[Row]:
    """The rows of these names, in the order of the table.

    Raises
    ------
    ValueError: one of them is no row.
    """
    for key in keys:
        if key not in KEYS:
            raise ValueError(f"there is no row '{key}'; there are {', '.join(KEYS)}")
    return [row for row in ROWS if row.key in keys]


def _distinct(rows: Sequence[Row], of: Callable[[Row], Sequence[Run]]) -> list[Run]:
    return list(dict.fromkeys(run for row in rows for run in of(row)))


def measure(bench: Bench, rows: Sequence[Row]) -> None:
    """Everything that these rows need: over HTTP, at a rate, in one process, and what rows do by themselves."""
    runs = _distinct(rows, lambda row: (*row.runs, *row.optional))
    in_process = {"engine", "engine, fsync", "engine, stored", "redis-py", "flash-sale script"}
    began = time.monotonic()
    bench.take_turns([run for run in runs if run.stack not in in_process], bench.saturated)
    latency_runs = _distinct(rows, lambda row: row.latency)
    if latency_runs and RESERVE in bench.samples:
        bench.stop(but={run.stack for run in latency_runs})
        bench.take_turns(latency_runs, bench.at_rate)
    bench.stop()
    bench.take_turns([run for run in runs if run.stack in in_process], bench.saturated)
    bench.stop()
    for row in rows:
        if row.work is not None:
            with bench.noting(row.work_run):
                row.work(bench)
                bench.worked.add(row.work_run)
            bench.stop()
    bench.say(f"measured in {time.monotonic() - began:.0f} s")
