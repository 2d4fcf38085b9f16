"""What a run shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .figures import Latency, Stock, new_histogram
from .scenario import Scenario

#: Seconds between two plain lines, and between two pictures on a terminal.
LINE_SECONDS: Final = 1.0
PICTURE_SECONDS: Final = 0.2

#: Sales that are shown one by one.
SALES_SHOWN: Final = 5

#: Columns of the bar of a sale.
BAR: Final = 34

#: Outcomes in the colour of success; the others are refusals, in another.
GOOD: Final = frozenset({"ok", "replayed"})


@dataclass(slots=True)
class State:
    """How a run stands.

    Parameters
    ----------
    phase: what it does now. rate: answers a second. outcomes: by call and what was said. stock: as it was seen last.
    """

    scenario: Scenario
    sales: tuple[str, ...]
    buyers: int
    phase: str = ""
    seconds: float = 0.0
    started: int = 0
    finished: int = 0
    under_way: int = 0
    rate: float = 0.0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    latency: Latency = field(default_factory=lambda: Latency.of(new_histogram()))
    stock: Mapping[str, Stock] = field(default_factory=dict)


class Screen(Protocol):
    """Where a run is shown."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def show(self, state: State) -> None:
        """How it stands now; called often."""

    def close(self) -> None:
        """It is over."""


class Lines:
    """Plain lines, one a second, and one whenever something else begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._phase = ""

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def show(self, state: State) -> None:
        # A phase that counts down is still the same phase.
        phase = state.phase.partition("(")[0].rstrip("0123456789 ")
        now = time.monotonic()
        if phase == self._phase and now < self._next:
            return
        self._phase, self._next = phase, now + LINE_SECONDS
        self.say(plain(state))

    def close(self) -> None:
        pass


def plain(state: State) -> str:
    """A state in one line."""
    sold, held, free, moving = (
        sum(getattr(each, name) for each in state.stock.values())
        for name in ("purchased", "reserved", "available", "in_transit")
    )
    transit = f" in transit {moving}" if moving else ""
    latency = state.latency
    said = ", ".join(f"{call} {what} {count}" for (call, what), count in state.outcomes.most_common(6))
    return (
        f"{state.seconds:6.1f} s  {state.phase}: {state.finished}/{state.buyers} buyers, {state.rate:.0f}/s, "
        f"sold {sold} held {held} available {free}{transit}, p50 {latency.percentiles[50.0]:.1f} "
        f"p99 {latency.percentiles[99.0]:.1f} max {latency.max:.1f} ms" + (f"; {said}" if said else "")
    )


class Picture:
    """A live picture on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._next = 0.0
        self._phase = ""

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def show(self, state: State) -> None:
        now = time.monotonic()
        if state.phase == self._phase and now < self._next:
            return
        self._phase, self._next = state.phase, now + PICTURE_SECONDS
        self._live.update(picture(state), refresh=True)

    def close(self) -> None:
        self._live.stop()


def picture(state: State) -> RenderableType:
    """A state as it is drawn on a terminal."""
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(state.scenario.name, style="bold"),
        ProgressBar(total=max(1, state.buyers), completed=state.finished, width=BAR),
        Text(f"{state.finished:,} of {state.buyers:,} buyers are done"),
        Text(f"{state.seconds:.1f} s", style="dim"),
    )
    pace = Table.grid(padding=(0, 3))
    latency = state.latency
    pace.add_row(
        *(
            Text.assemble((f"{name} ", "dim"), (value, "bold"))
            for name, value in (
                ("rate", f"{state.rate:,.0f}/s"),
                ("under way", f"{state.under_way:,}"),
                ("p50", f"{latency.percentiles[50.0]:,.1f} ms"),
                ("p99", f"{latency.percentiles[99.0]:,.1f} ms"),
                ("max", f"{latency.max:,.1f} ms"),
            )
        )
    )
    outcomes = Table.grid(padding=(0, 2))
    calls = sorted({call for call, _ in state.outcomes})
    for call in calls:
        said = [(what, count) for (of, what), count in state.outcomes.most_common() if of == call]
        cells = Text()
        for what, count in said:
            cells.append(f"{what} ", style="green" if what in GOOD else "yellow")
            cells.append(f"{count:,}   ", style="bold")
        outcomes.add_row(Text(call, style="dim"), cells)
    return Group(Text(state.phase, style="italic"), head, pace, _stock(state), outcomes)


def _stock(state: State) -> Table:
    table = Table.grid(padding=(0, 2))
    for sale in state.sales[:SALES_SHOWN]:
        stock = state.stock.get(sale)
        if stock is None:
            continue
        total = max(1, stock.available + stock.reserved + stock.purchased + stock.in_transit)
        sold, held = (round(BAR * units / total) for units in (stock.purchased, stock.reserved))
        bar = Text.assemble(("█" * sold, "green"), ("█" * held, "yellow"), ("░" * max(0, BAR - sold - held), "dim"))
        table.add_row(
            Text(sale, style="dim"),
            bar,
            Text.assemble(("sold ", "green"), f"{stock.purchased:,}"),
            Text.assemble(("held ", "yellow"), f"{stock.reserved:,}"),
            Text.assemble(("available ", "dim"), f"{stock.available:,}"),
            Text.assemble(("in transit ", "dim"), f"{stock.in_transit:,}") if stock.in_transit else Text(),
        )
    if len(state.sales) > SALES_SHOWN:
        table.add_row(Text(f"and {len(state.sales) - SALES_SHOWN} more sales", style="dim"))
    return table


def screen() -> Screen:
    """The one that fits standard output."""
    console = Console()
    return Picture(console) if console.is_terminal else Lines(console)
