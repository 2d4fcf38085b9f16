"""Runs cases one after the other, each in a directory of its own, which stays when something was wrong."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .history import save
from .plan import Case, Result, Run
from .servers import Broken, Skipped
from .verdict import SHOWN, judge

#: Seconds that one run may take before it counts as hung.
RUN_S = 240.0


def run_all(cases: Sequence[Case], seed: int, keep: Path, quick: bool, say: Callable[[str], None]) -> Iterator[Result]:
    """Results as they come."""
    for case in cases:
        for number in range(case.quick if quick else case.runs):
            directory = keep / f"{case.name}-seed{seed}-{number}"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            yield run_one(Run(case, seed, number, directory, say, quick))


def run_one(run: Run) -> Result:
    """One run and its verdict. Its directory goes when all was well."""
    began = time.monotonic()
    try:
        asyncio.run(asyncio.wait_for(run.case.play(run), RUN_S))
        result = judge(run)
    except Skipped as skipped:
        result = Result(run, skipped=str(skipped))
    except (Broken, TimeoutError) as error:
        result = Result(run, broken=str(error) or f"hung for {RUN_S:.0f} s")
    except Exception as error:
        # A mistake of ours or a surprise of the product's: the row fails, the others go on.
        result = Result(run, broken=f"{type(error).__name__}: {error}")
        (run.directory / "traceback.txt").write_text(traceback.format_exc())
    run.seconds = time.monotonic() - began
    if result.violations or result.broken:
        _keep(run, result)
    else:
        shutil.rmtree(run.directory, ignore_errors=True)
    return result


def replay(run: Run) -> str:
    """The command that makes the same choices again."""
    words = ["--rows", str(run.case.row), "--form", run.case.form, "--seed", str(run.seed)]
    return f"make chaos ARGS={shlex.quote(shlex.join(words + (['--quick'] if run.quick else [])))}"


def _keep(run: Run, result: Result) -> None:
    save(run.directory / "history.jsonl", run.operations)
    (run.directory / "finals.json").write_text(json.dumps([asdict(final) for final in run.finals]))
    lines = [f"{run.case.row} {run.case.fault}: {run.case.form}", replay(run), "", result.broken or ""]
    lines += [f"{each.checker} {each.sale}: {each.text}" for each in result.violations]
    (run.directory / "verdict.txt").write_text("\n".join(lines) + "\n")
    run.say(f"  kept: {run.directory}\n  again: {replay(run)}")
    for line in lines[3 : 4 + SHOWN]:
        if line:
            run.say(f"  {line[:600]}")
