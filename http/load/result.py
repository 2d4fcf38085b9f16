"""What came of a run, as text for a terminal and as JSON for programs (docs/load.md has its shape)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from .figures import Latency
from .run import Run
from .verdict import Check

#: The version of the JSON's shape: it changes when a field is taken away or means something else.
FORMAT: Final = 1

MARKS: Final = {True: "ok", False: "WRONG", None: "not made"}


def text(run: Run) -> str:
    """The verdict and the main figures, some lines."""
    figures = run.figures
    lines = ["", f"{run.scenario.name} against {run.url}: {run.verdict.sentence}", ""]
    for check in run.verdict.checks:
        lines.append(f"  {MARKS[check.passed]:<9}{check.title}. {check.said}")
        lines += [f"             {each}" for each in check.evidence[1:]]
        if check.wrong > len(check.evidence):
            lines.append(f"             and {check.wrong - len(check.evidence)} more")
    lines += [
        "",
        f"  {figures.requests} requests in {figures.seconds:.1f} s, {figures.mean_per_second:.0f}/s,"
        f" {figures.per_second:.0f}/s in the busiest {figures.bin_seconds:g} s",
    ]
    for name, latency in figures.from_due.items():
        lines.append(f"  {name:<9}{_latency(latency)} from due; {_latency(figures.service[name])} service time")
    for call, outcomes in figures.outcomes.items():
        lines.append(f"  {call:<9}" + ", ".join(f"{what} {count}" for what, count in outcomes.items()))
    if figures.late:
        lines.append(f"  {figures.late}")
    return "\n".join([*lines, ""])


def _latency(latency: Latency) -> str:
    return f"p50 {latency.percentiles[50.0]:.1f} p99 {latency.percentiles[99.0]:.1f} max {latency.max:.1f} ms"


def as_json(run: Run) -> str:
    """All of it."""
    figures = run.figures
    body: dict[str, Any] = {
        "format": FORMAT,
        "scenario": run.scenario.model_dump(),
        "url": run.url,
        "run": run.run,
        "sales": list(run.sales),
        "began": run.began.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "machine": run.machine,
        "verdict": {
            "good": run.verdict.good,
            "interrupted": run.verdict.interrupted,
            "sentence": run.verdict.sentence,
            "checks": [_check(check) for check in run.verdict.checks],
        },
        "figures": {
            "seconds": round(figures.seconds, 3),
            "requests": figures.requests,
            "mean_per_second": round(figures.mean_per_second, 1),
            "busiest_per_second": round(figures.per_second, 1),
            "outcomes": figures.outcomes,
            "latency_ms": {
                name: {"from_due": _figures(latency), "service": _figures(figures.service[name])}
                for name, latency in figures.from_due.items()
            },
            "timeline": {
                "bin_seconds": figures.bin_seconds,
                "bins": [{"at": each.at, "outcomes": each.outcomes} for each in figures.timeline],
            },
            "stock": {
                sale: [
                    [round(each.at, 3), each.available, each.reserved, each.purchased, each.in_transit]
                    for each in stock
                ]
                for sale, stock in figures.stock.items()
            },
            "harness": {
                "sent_late_ms": _figures(figures.lag),
                "loop_late_ms": _figures(figures.loop_lag),
                "waited_for_connection": figures.waited,
                "cpu": [round(each, 3) for each in figures.cpu],
                "late": figures.late or None,
            },
        },
    }
    return json.dumps(body, indent=1) + "\n"


def _check(check: Check) -> Mapping[str, Any]:
    return {
        "name": check.name,
        "title": check.title,
        "passed": check.passed,
        "said": check.said,
        "wrong": check.wrong,
        "evidence": list(check.evidence),
    }


def _figures(latency: Latency) -> Mapping[str, Any]:
    return {
        "count": latency.count,
        "mean": round(latency.mean, 3),
        **{f"p{percentile:g}": value for percentile, value in latency.percentiles.items()},
        "max": latency.max,
        "curve": [[round(percentile, 5), value] for percentile, value in latency.curve],
    }
