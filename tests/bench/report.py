"""What was seen, for people and for programs: the table on the screen, the JSON, and the Markdown of the docs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import Sample, Spread
from .plan import Bench, Run
from .rows import Figure, Row

#: Between these two lines of docs/benchmarks.md stand the figures; everything else there is written by hand.
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

#: The roles whose CPU is told apart.
ROLES = ("server", "database", "generator")


def number(value: float) -> str:
    """Three or four digits, whatever the size."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(of: Mapping[str, float] | None, unit: str) -> str:
    """A median, and the least and the most where they are not the same."""
    if of is None:
        return ""
    text = number(of["median"]) + (f" {unit}" if unit and not unit.startswith("/") else unit)
    if of["min"] != of["max"]:
        text += f" ({number(of['min'])}..{number(of['max'])})"
    return text


def verdict(figure: Mapping[str, Any]) -> str:
    """In a word; a figure without a target is there for reference."""
    if figure["skipped"]:
        return "SKIPPED"
    if figure["failed"]:
        return "FAILED"
    return {True: "reached", False: "NOT REACHED", None: "reference"}[figure["reached"]]


def _remark(figure: Mapping[str, Any]) -> str:
    return str(figure["skipped"] or figure["failed"] or figure["note"])


def as_json(bench: Bench, rows: Sequence[Row], machine: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """Everything, down to the single rounds."""
    return {
        "machine": dict(machine),
        "mode": mode,
        "rounds": bench.plan.rounds,
        "seconds": bench.plan.seconds,
        "set_up": bench.notes,
        "rows": [{"row": row.key, "figures": [figure.as_json() for figure in row.figures(bench)]} for row in rows],
        "runs": [_run_json(run, samples) for run, samples in bench.samples.items()],
        "skipped": {str(run): why for run, why in bench.missing.items()},
        "failed": {str(run): why for run, why in bench.failures.items()},
    }


def _run_json(run: Run, samples: Sequence[Sample]) -> dict[str, Any]:
    def spread(values: Sequence[float]) -> dict[str, float]:
        return Spread.of(values).as_json()

    roles = [role for role in ROLES if any(role in sample.cpu for sample in samples)]
    return {
        "stack": run.stack,
        "scenario": run.scenario,
        "rate": spread([sample.rate for sample in samples]),
        "cpu_us": {role: spread([sample.cpu_us(role) for sample in samples]) for role in roles},
        "busy": {role: spread([sample.busy(role) for sample in samples]) for role in roles},
        "rounds": [
            {"count": sample.count, "seconds": sample.seconds, "cpu": sample.cpu, **sample.extra} for sample in samples
        ],
    }


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The two tables: the figures, and where the CPU time went."""
    figures = Table(title="Holdfast and its peers: medians (least..most of the rounds)", title_justify="left")
    for name in ("what", "Holdfast", "against", "", "ratio", "target", ""):
        figures.add_column(name, overflow="fold")
    remarks: list[str] = []
    for row in result["rows"]:
        for figure in row["figures"]:
            unit, colour = figure["unit"], {"reached": "green", "NOT REACHED": "yellow", "FAILED": "red"}
            said = verdict(figure)
            mark = ""
            if remark := _remark(figure):
                remarks.append(remark)
                mark = f" \\[{len(remarks)}]"
            figures.add_row(
                figure["what"],
                _spread(figure["holdfast"], unit),
                figure["against"],
                _spread(figure["peer"], unit),
                _spread(figure["ratio"], ""),
                figure["target"] or "",
                (f"[{colour[said]}]{said}[/]" if said in colour else said) + mark,
            )
        figures.add_section()
    console.print(figures)
    for at, remark in enumerate(remarks, start=1):
        console.print(f"[{at}] {remark}", highlight=False, markup=False)
    runs = Table(title="Where the CPU went: microseconds for each one, and share of a core", title_justify="left")
    for name in ("stack", "run", "/s", "server", "database", "generator"):
        runs.add_column(name, justify="left" if name in ("stack", "run") else "right")
    for run in result["runs"]:
        cells = [
            f"{number(run['cpu_us'][role]['median'])} us, {run['busy'][role]['median']:.0%}"
            if role in run["cpu_us"]
            else ""
            for role in ROLES
        ]
        runs.add_row(run["stack"], run["scenario"], _spread(run["rate"], ""), *cells)
    if result["runs"]:
        console.print(runs)
    for stack, chosen in result["set_up"].items():
        console.print(f"{stack}: {chosen}", highlight=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown(result: Mapping[str, Any]) -> str:
    """The figures as they stand in docs/benchmarks.md."""
    machine = result["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}, Linux "
        f"{machine['kernel']}; Python {machine['python']}, {packages}; {machine['redis']}, {machine['postgresql']}, "
        f"Node {machine['node']}, {machine['wrk']}. Mode {result['mode']}: {result['rounds']} rounds of "
        f"{result['seconds']} s.",
        "",
        "| what | Holdfast | against | | ratio | target | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        for figure in row["figures"]:
            cells = [
                figure["what"],
                _spread(figure["holdfast"], figure["unit"]),
                figure["against"],
                _spread(figure["peer"], figure["unit"]),
                _spread(figure["ratio"], ""),
                figure["target"] or "",
                ": ".join(filter(None, [verdict(figure), _remark(figure)])),
            ]
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    lines += [
        "",
        "CPU microseconds for each one counted, and the share of a core that was used:",
        "",
        "| stack | run | per second | server | database | load generator |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in result["runs"]:
        cells = [run["stack"], run["scenario"], _spread(run["rate"], "")]
        cells += [
            f"{number(run['cpu_us'][role]['median'])} us, {run['busy'][role]['median']:.0%}"
            if role in run["cpu_us"]
            else ""
            for role in ROLES
        ]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    lines += ["", *(f"- {stack}: {chosen}" for stack, chosen in result["set_up"].items())]
    return "\n".join(lines).rstrip() + "\n"


def put_into(page: Path, result: Mapping[str, Any]) -> None:
    """Replaces the figures in the page.

    Raises
    ------
    ValueError: the page has no place for them.
    """
    text = page.read_text()
    pattern = re.compile(re.escape(BEGIN) + r"\n.*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} has no lines '{BEGIN}' and '{END}'")
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n\n{markdown(result)}\n{END}", text))


def load_result(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def write(path: Path, result: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


__all__ = ["BEGIN", "END", "Figure", "as_json", "load_result", "markdown", "number", "put_into", "show", "write"]
