"""The command line of the bench.

The exit status is 0 when everything worked, however fast; 1 when something did not work or an answer was wrong; 2 when
the call was wrong.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from . import machine, report, rows
from .plan import FULL, QUICK, Bench, Plan

#: Where the figures are kept when nothing else is said; ignored by git.
OUT_DEFAULT = Path("bench-results.json")

#: The page that `--markdown` fills.
PAGE_DEFAULT = Path("docs/benchmarks.md")

#: The table needs this many columns; a narrower terminal, or a file, wraps its lines itself.
WIDTH_MIN = 160

#: The exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130

app = App(name="make bench ARGS=", help="Measure Holdfast beside its peers, in one run.", version_flags=[])


@app.default
def run(
    *,
    rows_: Annotated[str | None, Parameter(name="--rows")] = None,
    rounds: int | None = None,
    seconds: int | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    out: Path = OUT_DEFAULT,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    into: Path = PAGE_DEFAULT,
) -> int:
    """Measure, print the table, write the JSON.

    Parameters
    ----------
    rows_
        Only these rows of the table, with commas between them.
    rounds
        How often each run is taken.
    seconds
        How long each run is; whole seconds.
    quick
        Everything in two or three minutes: fewer and shorter rounds, smaller sales.
    out
        The JSON.
    markdown
        Measure nothing: put the figures of the JSON into the page.
    into
        That page.
    """
    try:
        if markdown:
            report.put_into(into, report.load_result(out))
            print(f"{into} has the figures of {out}")
            return 0
        chosen = rows.chosen([key.strip() for key in rows_.split(",")]) if rows_ else list(rows.ROWS)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    plan = QUICK if quick else FULL
    plan = replace(plan, rounds=rounds or plan.rounds, seconds=seconds or plan.seconds)
    return _measure(chosen, plan, out, "quick" if quick else "full")


def _measure(chosen: list[rows.Row], plan: Plan, out: Path, mode: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    cores = machine.Cores()
    described = machine.describe()
    # Everything that is not measured stays off the servers' core.
    os.sched_setaffinity(0, {cores.other})
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    if cores.server == cores.other:
        say("this machine has one core: everything shares it, and no ratio means much")
    scratch = machine.scratch()
    bench = Bench(plan, cores, scratch, say)
    status = 0
    try:
        rows.measure(bench, chosen)
    except KeyboardInterrupt:
        say("stopped; what was measured so far:")
        status = INTERRUPTED
    finally:
        bench.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    result = report.as_json(bench, chosen, described, mode)
    report.write(out, result)
    report.show(_console(), result)
    print(f"The rounds are in {out}.")
    for run, why in bench.failures.items():
        print(f"FAILED {run}: {why}", file=sys.stderr)
    return 1 if bench.failures else status


def _console() -> Console:
    console = Console()
    return console if console.width >= WIDTH_MIN else Console(width=WIDTH_MIN)


if __name__ == "__main__":
    sys.exit(app())
