"""How commands print: tables for people, a line of JSON each for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

from cyclopts import Parameter

#: Columns of a table that goes to no terminal: wide enough that nothing of it is broken or cut.
WIDTH_ELSEWHERE: Final = 500

#: `--json` of every command that prints a table.
Json = Annotated[bool, Parameter(name="--json", help="Print one line of JSON for each, for programs.")]


def print_json(values: Iterable[object]) -> None:
    """Print each value as a line of JSON."""
    for value in values:
        print(json.dumps(value), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """Print rows under the names of their columns.

    Parameters
    ----------
    numbers: the columns that stand to the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    print_rich(table)


def print_rich(thing: Any) -> None:
    """Print what rich renders, in colours where they can be seen."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE, highlight=False, markup=False)
    # Through print, so that a reader who has gone is noticed like everywhere else.
    with console.capture() as rendered:
        console.print(thing)
    print("\n".join(line.rstrip() for line in rendered.get().strip("\n").split("\n")), flush=True)


def units(quantity: int) -> str:
    """`1 unit`, `2 units`."""
    return f"{quantity} unit{'' if quantity == 1 else 's'}"
