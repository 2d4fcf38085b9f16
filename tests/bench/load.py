"""Load from outside: wrk for saturation, the open loop for latencies, redis-benchmark for a script."""

from __future__ import annotations

import array
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import machine

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

#: Connections of the saturated runs. With 64 all who ask may wait for the same batch, and the server has nothing to do.
CONNECTIONS = 256

#: Connections of the same at a smaller load, which is measured beside it.
FEW_CONNECTIONS = 64

#: Connections of batch calls: a gateway has few, and 64 times 500 entries are more than may wait for one sale.
BATCH_CONNECTIONS = 8

#: Seconds beyond its measured time after which a load generator counts as hung.
GRACE_SECONDS = 60

#: Microseconds, least and most, and significant digits of the histograms.
HISTOGRAM_US = (1, 60_000_000, 3)

HERE = Path(__file__).parent


class Wrong(Exception):
    """Something did not work, or an answer was not right: the bench fails, as it never does for being slow."""


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk says of one run.

    Parameters
    ----------
    requests: answers that came. refused: those among them with a status from 400 up.
    broken, timeouts: connections that failed, answers that took more than wrk's two seconds.
    statuses: answers by status, where the script counted them.
    cpu: CPU seconds of wrk.
    """

    requests: int
    seconds: float
    refused: int
    broken: int
    timeouts: int
    p50_us: int
    p99_us: int
    statuses: dict[str, int]
    cpu: float = 0.0


def parse_wrk(output: str, cpu: float = 0.0) -> WrkResult:
    """Reads the line that our scripts make wrk print.

    Raises
    ------
    Wrong: it is not there; what wrk said instead is.
    """
    found = re.search(r"^RESULT (\{.*\})$", output, re.MULTILINE)
    if found is None:
        raise Wrong(f"wrk gave no result: {output.strip()[-500:]}")
    return WrkResult(**json.loads(found[1]), cpu=cpu)


def wrk(
    cores: machine.Cores, script: str, url: str, seconds: int, *args: str, connections: int = CONNECTIONS
) -> WrkResult:
    """One run of wrk with one thread on the second core.

    Parameters
    ----------
    script: a file of wrk/. args: what it takes.
    """
    command = [machine.find("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "wrk" / script)]
    output, cpu = _run([*command, url, "--", *args], cores.other, seconds, {"BENCH_WRK": str(HERE / "wrk")})
    return parse_wrk(output, cpu)


def _run(command: Sequence[str], core: int, seconds: float, environment: dict[str, str]) -> tuple[str, float]:
    """Runs a generator to its end; what it printed, and its CPU seconds."""
    before = os.times()
    done = subprocess.run(
        machine.Cores.pinned(core, *command),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=seconds + GRACE_SECONDS,
    )
    after = os.times()
    if done.returncode != 0:
        raise Wrong(f"{command[0]} failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-800:]}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, used


# The open loop --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Latencies of requests that were due whether or not the ones before had been answered.

    Parameters
    ----------
    due: when each request was due, Unix seconds.
    took: seconds from then to the end of its answer.
    statuses: answers by status.
    unanswered: requests without an answer when the generator gave up: they count with the time until then.
    broken: connections that failed.
    cpu: CPU seconds of the generator.
    """

    due: Sequence[float]
    took: Sequence[float]
    statuses: dict[str, int]
    unanswered: int
    broken: int
    cpu: float

    def histogram(self, begin: float = 0.0, end: float = float("inf")) -> HdrHistogram:
        """Latencies in microseconds of what was due in [begin, end)."""
        # Only here, so that the tests of the harness need no more than the tests of the product.
        from hdrh.histogram import HdrHistogram

        histogram = HdrHistogram(*HISTOGRAM_US)
        for due, took in zip(self.due, self.took, strict=True):
            if begin <= due < end:
                histogram.record_value(max(1, int(took * 1e6)))
        return histogram

    def p99_ms(self, begin: float = 0.0, end: float = float("inf")) -> float:
        return float(self.histogram(begin, end).get_value_at_percentile(99)) / 1000


def start_open_loop(
    cores: machine.Cores, out: Path, url: str, sale: str, prefix: str, rate: float, seconds: float, seed: int
) -> subprocess.Popen[str]:
    """Starts the generator on the second core; `finish_open_loop` waits for it.

    Parameters
    ----------
    out: where it writes what it saw. rate: requests/s. seed: of the instants at which they are due.
    """
    command = [sys.executable, "-P", "-m", "bench.openloop", str(out), url, sale, prefix]
    return subprocess.Popen(
        machine.Cores.pinned(cores.other, *command, str(rate), str(seconds), str(seed)),
        env=python_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_open_loop(process: subprocess.Popen[str], out: Path, seconds: float) -> OpenLoop:
    """Waits for the generator, and reads what it saw."""
    output, errors = process.communicate(timeout=seconds + GRACE_SECONDS)
    if process.returncode != 0:
        raise Wrong(f"the open-loop generator failed: {errors.strip()[-800:]}")
    summary: dict[str, Any] = json.loads(output)
    values = array.array("d")
    values.frombytes(out.read_bytes())
    out.unlink()
    return OpenLoop(values[0::2], values[1::2], **summary)


def python_environment() -> dict[str, str]:
    """For modules of this package in a process of their own."""
    return os.environ | {"PYTHONPATH": str(HERE.parent), "PYTHONUNBUFFERED": "1"}


# redis-benchmark ------------------------------------------------------------------------------------------------------


def parse_redis_benchmark(output: str) -> float:
    """Calls per second, of the only test in the CSV that redis-benchmark prints.

    Raises
    ------
    Wrong: it is not there.
    """
    lines = [line for line in output.splitlines() if line.startswith('"')]
    try:
        ((_, rate, *_),) = list(csv.reader(lines))[1:]
        return float(rate)
    except ValueError:
        raise Wrong(f"redis-benchmark gave no result: {output.strip()[-500:]}") from None


def redis_benchmark(core: int, socket: str, calls: int, pipeline: int, *command: str) -> tuple[float, float]:
    """One command over and over, by 50 connections; calls/s, and the client's CPU seconds.

    Parameters
    ----------
    command: `__rand_int__` in it becomes 12 random digits in each call.
    """
    program = machine.find("redis-benchmark")
    options = ["-s", socket, "-c", "50", "-n", str(calls), "-P", str(pipeline), "-r", str(10**11), "--csv"]
    output, cpu = _run([program, *options, *command], core, 60, {})
    return parse_redis_benchmark(output), cpu
