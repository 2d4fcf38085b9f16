"""What was seen, for people: the table of faults, the matrix of durabilities, the mutants."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .plan import LEVELS, Case, Result

#: Between these two lines of docs/reliability.md stand the tables; everything else there is written by hand.
BEGIN, END = "<!-- runs: begin -->", "<!-- runs: end -->"

HEADS = (
    "#", "fault", "runs", "operations", "purchases", "lost", "oversold", "leaked", "recovered in, s", "verdict"
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """All runs of one case."""

    case: Case
    results: tuple[Result, ...]

    @property
    def verdict(self) -> str:
        if not self.results or any(result.skipped for result in self.results):
            return "SKIPPED"
        if any(result.violations for result in self.results):
            return "BROKEN"
        if any(result.broken for result in self.results):
            return "FAILED"
        return "held"

    @property
    def acknowledged(self) -> Counter[str]:
        return sum((result.acknowledged for result in self.results), Counter())

    @property
    def lost(self) -> Counter[str]:
        return sum((result.lost for result in self.results), Counter())

    @property
    def remark(self) -> str:
        for result in self.results:
            if why := result.skipped or result.broken or (result.violations and result.violations[0].text):
                return str(why).split("\n")[0]
        return "; ".join(remark for result in self.results for remark in result.run.remarks)

    def cells(self) -> list[str]:
        """As in `HEADS`."""
        ran = [result for result in self.results if not result.skipped]
        trials = sum(result.run.trials for result in ran)
        lost = [f"{level} {self.lost[level]}" for level in LEVELS if self.lost[level]]
        recovered = [seconds for result in ran for seconds in result.run.recover_s]
        spread = f"{statistics.median(recovered):.2f} (to {max(recovered):.2f})" if recovered else ""
        return [
            str(self.case.row),
            f"{self.case.fault}: {self.case.form}",
            f"{len(ran)} x {trials // max(1, len(ran))}" if ran else "0",
            str(sum(len(result.run.operations) for result in ran)) if ran else "",
            str(self.acknowledged.total()) if ran else "",
            ", ".join(lost) or "0" if ran else "",
            str(sum(result.oversold for result in ran)) if ran else "",
            str(sum(result.leaked for result in ran)) if ran else "",
            spread,
            self.verdict,
        ]


def lines(results: Sequence[Result]) -> list[Line]:
    """One for each case, in order."""
    cases = list(dict.fromkeys(result.run.case for result in results))
    return [Line(case, tuple(result for result in results if result.run.case is case)) for case in cases]


def matrix(table: Sequence[Line]) -> list[list[str]]:
    """A row for each fault and form that ran: what became of the purchases acknowledged at each level."""
    rows = []
    for line in table:
        if line.verdict == "SKIPPED":
            continue
        cells = [f"{line.case.row} {line.case.fault}: {line.case.form}"]
        for level in LEVELS:
            of, lost = line.acknowledged[level], line.lost[level]
            promised = level in line.case.survives
            if not of:
                cells.append("")
            elif lost:
                cells.append(f"{'LOST' if promised else 'lost'} {lost} of {of}")
            else:
                cells.append(f"survived, {of}" if promised else f"not promised; 0 of {of} lost")
        rows.append(cells)
    return rows


MATRIX_HEADS = ("fault", *LEVELS)
MUTANT_HEADS = ("taken out", "found by", "")


def show(console: Console, table: Sequence[Line], mutants: Sequence[Sequence[str]]) -> None:
    """The tables on the screen."""
    _show(console, "Faults", HEADS, [line.cells() for line in table])
    for line in table:
        if line.remark:
            console.print(f"{line.case.row} {line.case.form}: {line.remark}", highlight=False, markup=False)
    _show(
        console,
        "What survives: purchases by the durability at which they were acknowledged",
        MATRIX_HEADS,
        matrix(table),
    )
    if mutants:
        _show(console, "Mutants: what is broken on purpose must be found", MUTANT_HEADS, mutants)


def _show(console: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = Table(title=title, title_justify="left")
    for head in heads:
        shown.add_column(head, overflow="fold")
    colours = {"held": "green", "SKIPPED": "yellow", "BROKEN": "red", "FAILED": "red"}
    for row in rows:
        shown.add_row(*(f"[{colours[cell]}]{cell}[/]" if cell in colours else cell for cell in row))
    console.print(shown)


def markdown(table: Sequence[Line], mutants: Sequence[Sequence[str]], described: str) -> str:
    """The tables as they stand in docs/reliability.md."""
    parts = [described, "", *_markdown(HEADS, [line.cells() for line in table]), ""]
    parts += [f"- {line.case.row} {line.case.form}: {line.remark}" for line in table if line.remark]
    parts += ["", "### What survives", "", *_markdown(MATRIX_HEADS, matrix(table))]
    if mutants:
        parts += ["", "### Mutants", "", *_markdown(MUTANT_HEADS, mutants)]
    return "\n".join(parts) + "\n"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (heads, ["---"] * len(heads), *rows)
    ]


def put_into(page: Path, text: str) -> None:
    """Replaces the tables in the page.

    Raises
    ------
    ValueError: the page has no place for them.
    """
    old = page.read_text()
    pattern = re.compile(re.escape(BEGIN) + r"\n.*?" + re.escape(END), re.DOTALL)
    if not pattern.search(old):
        raise ValueError(f"{page} has no lines '{BEGIN}' and '{END}'")
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n\n{text}\n{END}", old))
