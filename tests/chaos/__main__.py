"""The command line of the fault runs.

The exit status is 0 when every promise held, every row ran and every mutant was found; 1 otherwise; 2 when the call was
wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from . import report
from .plan import Result
from .rows import CASES
from .runner import run_all

#: The table needs this many columns; a narrower terminal, or a file, wraps its lines itself.
WIDTH_MIN = 150

app = App(name="make chaos ARGS=", help="Make go wrong what can, and check what was promised.", version_flags=[])


@app.default
def run(
    *,
    rows: str | None = None,
    form: str | None = None,
    seed: int = 1,
    quick: Annotated[bool, Parameter(negative="")] = False,
    keep: Path | None = None,
    markdown: Path | None = None,
    mutants: bool | None = None,
) -> int:
    """Run the faults, print the tables.

    Parameters
    ----------
    rows
        Only these rows of the table of faults, with commas between them.
    form
        Only forms with this in their name.
    seed
        Of every choice: times, errands, damage. The order in which processes run is not in its power.
    quick
        A third of it, with fewer repetitions.
    keep
        Where runs that went wrong leave their history and logs.
    markdown
        Put the tables into this page.
    mutants
        Also break the product on purpose, and see that it is found; by itself with a full run of all rows.
    """
    try:
        numbers = {int(number) for number in rows.split(",")} if rows else {case.row for case in CASES}
    except ValueError:
        print(f"--rows takes numbers with commas between them, not {rows!r}", file=sys.stderr)
        return 2
    chosen = [case for case in CASES if case.row in numbers and (form or "") in case.form]
    if not chosen:
        print(
            "no such row: there are " + ", ".join(sorted({str(case.row) for case in CASES}, key=int)), file=sys.stderr
        )
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    keep = (keep or Path(tempfile.mkdtemp(prefix="holdfast-chaos-"))).resolve()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    results: list[Result] = []
    status = 0
    try:
        for result in run_all(chosen, seed, keep, quick, say):
            results.append(result)
            verdict = report.Line(result.run.case, (result,))
            say(f"{result.run.case.row:>2} {result.run.case.fault}: {result.run.case.form}: {verdict.verdict}"
                f" ({result.run.seconds:.1f} s)")  # fmt: skip
    except KeyboardInterrupt:
        say("stopped; what was seen so far:")
        status = 130
    table = report.lines(results)
    broken: Sequence[Any] = ()
    if not status and (mutants if mutants is not None else not (rows or form or quick)):
        from . import mutants as on_purpose

        broken = on_purpose.run_all(keep / "mutants", seed, say)
    found = [row.cells() for row in broken]
    report.show(_console(), table, found)
    took = time.monotonic() - began
    if markdown is not None:
        report.put_into(markdown, report.markdown(table, found, described(seed, quick, took)))
    wrong = [line for line in table if line.verdict != "held"]
    print(
        f"{len(table) - len(wrong)} of {len(table)} forms of {len(numbers)} faults held, in {took:.0f} s, seed {seed}."
    )
    if wrong:
        print("Not: " + "; ".join(f"{line.case.row} {line.case.form} {line.verdict}" for line in wrong))
    got_away = [row.name for row in broken if not row.good]
    if got_away:
        print("Mutants that were not found as they should be: " + ", ".join(got_away))
    else:
        shutil.rmtree(keep / "mutants", ignore_errors=True)
    if keep.exists() and not any(keep.iterdir()):
        keep.rmdir()
    return status or int(bool(wrong or got_away))


def described(seed: int, quick: bool, took: float) -> str:
    """The machine and the run, for the page."""
    return (
        f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}; "
        f"{'a quick' if quick else 'a full'} run with seed {seed}, {took:.0f} s."
    )


def _console() -> Console:
    console = Console()
    return console if console.width >= WIDTH_MIN else Console(width=WIDTH_MIN)


if __name__ == "__main__":
    sys.exit(app())
