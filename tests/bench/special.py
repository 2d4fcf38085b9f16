"""What a row measures by itself: large sales, memory, and holds that run out all at once."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import time
from urllib.parse import urlsplit

from . import load, stacks
from .callers import CAPACITY
from .load import Wrong
from .measure import Sample
from .plan import Bench, Run
from .stacks import SECRET, Holdfast, RedisServer, run_module

#: Below this share of its core a server was not what limited a saturated run.
BUSY_SHARE = 0.9

#: Tickets in the large sale, and holds that run out together, as the figures to reach state them.
TICKETS_LARGE = 5_000_000
HOLDS = (100_000, 1_000_000)

#: Tickets in the small sale when a run begins.
TICKETS_SMALL = 1000

#: Milliseconds in which a reserve that needs a due unit must have it to have got it at once: less than one round of
#: the sweeper, which would have brought the unit back by itself.
AT_ONCE_MS = 50

#: Rounds of the two sales, which share one server.
SALE_ROUNDS_MAX = 3

#: Seconds for which the tickets of the large sale are held: longer than the row takes.
LARGE_HOLD_MS = 7_200_000

#: Seconds that the snapshot may take to copy what was filled in.
COPY_SECONDS_MAX = 240.0

#: Tickets by which it is found out how quickly holds can be filled in and copied on this machine, now.
TRIAL_TICKETS = 20_000

#: How much longer than by that the filling may take. When it takes longer still, it is done anew with twice the time.
FILL_MARGIN = 1.5

#: How often that is tried.
FILL_TRIES = 3

#: Seconds for two fillers and the load generator to start.
FILLERS_START_S = 3.0

#: Seconds of load before the first deadline, of which the first is left out.
BEFORE_S = 3.0

#: Seconds of load after it, and tickets swept in each further one, for which the load goes on.
AFTER_S = 4.0
SWEEP_RATE = 60_000

#: Seconds after which sweeping counts as hung, for each 10,000 holds, and on top.
SWEEP_SECONDS_MAX = 30.0

#: The load while holds run out: half of saturation, so that there is room for what is measured.
EXPIRY_LOAD = 0.5

#: Units of the sale in which a due unit is needed, all of them held.
NEEDED_UNITS = 1000

SMALL_SALE, LARGE_SALE = Run("holdfast", "sale of 1,000"), Run("holdfast", "large sale")
WITH_LEASE, WITHOUT_LEASE = Run("redis", "memory with leases"), Run("redis", "memory without leases")


def expiry_run(number: int) -> Run:
    return Run("holdfast", f"expiry {number}")


def redis_cpu(bench: Bench) -> None:
    """Reservations at saturation in a new sale of 1,000 tickets, and in one of millions, in turns on one server."""
    server = bench.holdfast("holdfast, large sale")
    server.create_sale("large", hold_ms=LARGE_HOLD_MS)
    bench.say(f"filling a sale with {bench.plan.tickets_large:,} tickets")
    filled = server.fill("large", bench.plan.tickets_large)
    bench.say(f"filled in {filled['seconds']:.0f} s; waiting until the snapshot has copied them")
    server.settled("large", time.time() + COPY_SECONDS_MAX)
    for number in range(min(bench.plan.rounds, SALE_ROUNDS_MAX)):
        small = f"small-{number}"
        server.create_sale(small)
        server.fill(small, TICKETS_SMALL)
        for run, sale in ((SMALL_SALE, small), (LARGE_SALE, "large")):
            bench.quiet()
            sample = server.measure_sale(sale, bench.plan.seconds)
            bench.samples.setdefault(run, []).append(sample)
            bench.say(f"{run}: {sample.cpu_us('database'):.1f} us of Redis each, {sample.rate:,.0f}/s")


def memory(bench: Bench) -> None:
    """What Redis has allocated before and after many tickets were made, with their leases and without."""
    for run, leases in ((WITH_LEASE, True), (WITHOUT_LEASE, False)):
        directory = bench.scratch / f"memory-{leases}"
        server = RedisServer(directory, bench.cores)
        try:
            options = {
                "redis": server.url, "store": f"sqlite:///{directory / 'store.db'}", "secret": SECRET, "sale": "memory",
                "batch": stacks.FILL_BATCH, "leases": leases, "capacity": CAPACITY,
            }  # fmt: skip
            # The first tickets bring everything that is there only once: scripts, the sale.
            run_module("fill", {**options, "count": stacks.FILL_BATCH, "prefix": "a"}, bench.cores.all)
            before = _allocated(server)
            count = bench.plan.tickets_memory
            made = run_module("fill", {**options, "count": count, "prefix": "b"}, bench.cores.all)
            after = _allocated(server)
            with server.client() as client:
                present = client.dbsize()
        finally:
            server.stop()
            shutil.rmtree(directory, ignore_errors=True)
        if made["made"] != count or (present > count) != leases:
            raise Wrong(f"memory: {made['made']} of {count} tickets were made, {present} keys; {made['errors']}")
        bytes_each = (after - before) / count
        bench.samples.setdefault(run, []).append(Sample(count, made["seconds"], {}, {"bytes": bytes_each}))
        bench.say(f"{run}: {bytes_each:.0f} bytes for each ticket")


def _allocated(server: RedisServer) -> int:
    """Bytes that hold data: without clients, and without what waits to be written to the file."""
    time.sleep(1.5)
    with server.client() as client:
        info = client.info("memory")
    return int(info["used_memory"]) - int(info["mem_clients_normal"]) - int(info["mem_aof_buffer"])


def expiry(bench: Bench, number: int) -> None:
    """Reservations at a steady rate while a great many holds run out within one second."""
    holds, rounds = bench.plan.holds[number]
    server = bench.holdfast(f"holdfast, expiry {number}")
    rate = EXPIRY_LOAD * bench.saturation()
    for turn in range(rounds):
        bench.quiet()
        sample = _expire(bench, server, f"{number}-{turn}", holds, rate)
        bench.samples.setdefault(expiry_run(number), []).append(sample)
        seen = sample.extra
        bench.say(
            f"{holds:,} holds ran out: p99 {seen['p99_before_ms']:.1f} ms before, {seen['p99_during_ms']:.1f} ms "
            f"meanwhile; all swept after {seen['drained_s']:.2f} s; a due unit in {seen['due_unit_ms']:.1f} ms"
        )


def _expire(bench: Bench, server: Holdfast, name: str, holds: int, rate: float) -> Sample:
    big, needed, first = _held(bench, server, name, holds)
    last_ms = int(first * 1000) + 1000
    length = BEFORE_S + AFTER_S + holds / SWEEP_RATE
    time.sleep(max(0.0, first - BEFORE_S - time.time()))
    out = server.directory / "latencies"
    generator = load.start_open_loop(bench.cores, out, server.url, big, f"exp-{name}", rate, length, seed=1)
    try:
        due_unit_ms = _take_due_unit(server, needed, first)
        drained = _drained(server, big, last_ms, first, holds)
    except BaseException:
        generator.kill()
        generator.communicate()
        raise
    seen = load.finish_open_loop(generator, out, length)
    server.check_open_loop(seen)
    # The generator's own start is not the server's.
    began = min(seen.due) + 1.0
    before, during = seen.p99_ms(began, first), seen.p99_ms(first, first + drained)
    if not before:
        raise Wrong("the load began after the holds ran out")
    extra = {
        "p99_before_ms": before,
        "p99_during_ms": during,
        "ratio": during / before,
        "drained_s": drained,
        "due_unit_ms": due_unit_ms,
        "rate": rate,
        "unanswered": seen.unanswered,
    }
    return Sample(holds, drained, {}, extra)


def _held(bench: Bench, server: Holdfast, name: str, holds: int) -> tuple[str, str, float]:
    """Two sales full of holds that run out together: one large, one without a unit to spare; and when, Unix seconds.

    The deadline is set before the filling, by how long that should take, and anew when it took longer.
    """
    seconds = FILL_MARGIN * holds / TRIAL_TICKETS * _trial(bench, server, name)
    for attempt in range(FILL_TRIES):
        big, needed = f"due-{name}-{attempt}", f"needed-{name}-{attempt}"
        server.create_sale(big)
        server.create_sale(needed, NEEDED_UNITS)
        first = time.time() + seconds + BEFORE_S + FILLERS_START_S
        deadline = int(first * 1000)
        bench.say(f"filling a sale with {holds:,} holds that run out together")
        server.fill(big, holds, deadline=deadline, seconds=seconds)
        server.fill(needed, NEEDED_UNITS, deadline=deadline, spread_ms=0)
        if server.settled(big, first - BEFORE_S - 0.5) or time.time() < first - BEFORE_S:
            return big, needed, deadline / 1000
        seconds *= 2
    raise Wrong(f"{holds} holds could not be made in {seconds:.0f} s")


def _trial(bench: Bench, server: Holdfast, name: str) -> float:
    """Seconds until a few tickets are filled in and copied."""
    sale = f"trial-{name}"
    server.create_sale(sale)
    began = time.monotonic()
    server.fill(sale, TRIAL_TICKETS)
    server.settled(sale, time.time() + COPY_SECONDS_MAX)
    return time.monotonic() - began


def _take_due_unit(server: Holdfast, sale: str, first: float) -> float:
    """Milliseconds that a reserve takes in a sale whose every unit is held, just after all of them ran out."""
    address = urlsplit(server.url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)) as connection:
        # Connected before it matters.
        connection.request("GET", f"/sales/{sale}")
        connection.getresponse().read()
        time.sleep(max(0.0, first - 0.5 - time.time()))
        headers = {"Content-Type": "application/json", "X-Buyer-Fingerprint": "who-needs-it"}
        connection.request("POST", f"/sales/{sale}/tickets", b'{"quantity":1}', headers)
        early = connection.getresponse()
        text = early.read().decode()
        if early.status != 409 or "all_held" not in text:
            raise Wrong(f"while every unit was held, reserve answered {early.status}: {text}")
        time.sleep(max(0.0, first + 0.002 - time.time()))
        began = time.monotonic()
        connection.request("POST", f"/sales/{sale}/tickets", b'{"quantity":1}', headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        took = time.monotonic() - began
    if answer.status != 201:
        raise Wrong(f"a reserve that needed a due unit got {answer.status}: {text}")
    return took * 1000


def _drained(server: Holdfast, sale: str, last_ms: int, first: float, holds: int) -> float:
    """Seconds from the first deadline until nothing that was due is left."""
    give_up = first + SWEEP_SECONDS_MAX + holds / 10_000
    while time.time() * 1000 < last_ms or server.due(sale, last_ms):
        if time.time() > give_up:
            raise Wrong(
                f"{server.due(sale, last_ms)} script calls' holds are not swept {time.time() - first:.0f} s later"
            )
        time.sleep(0.02)
    return time.time() - first
