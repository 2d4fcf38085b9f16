"""The report of a run: one HTML file that needs nothing else, and can be mailed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from .charts import colour, latency_chart, outcomes_chart, stock_chart
from .figures import PERCENTILES, Latency
from .plan import plan
from .run import Run
from .scenario import Scenario
from .verdict import Check

#: Sales whose stock is drawn.
SALES_DRAWN = 6

#: What the table of outcomes says of itself: some are no refusals, and no fault of the server's.
OUTCOMES_SAID = (
    "Every request, by what its client heard. hung_up: the client left before the answer, as the scenario asks; "
    "replayed: the answer of before, to the same key; the others but ok are refusals, explained at /docs/errors."
)

_MARKS = {True: ("good", "Passed"), False: ("bad", "Wrong"), None: ("none", "Not made")}


def page(run: Run) -> str:
    """The report."""
    figures, verdict = run.figures, run.verdict
    state = "good" if verdict.good else "bad" if any(check.passed is False for check in verdict.checks) else "none"
    outcomes, names = outcomes_chart(figures.timeline, figures.bin_seconds)
    all_due = figures.from_due.get("all")
    title = f"Load test {run.scenario.name}, {run.began:%Y-%m-%d %H:%M}"
    word, _, rest = verdict.sentence.partition(":")
    parts = [
        f'<header class="{state}"><p class="kind">Holdfast load test</p><h1>{escape(run.scenario.name)}</h1>'
        f'<p class="verdict"><strong>{escape(word)}</strong>{escape(rest and ":" + rest)}</p>'
        f'<p class="about">{escape(run.url)} · {run.began:%Y-%m-%d %H:%M:%S} UTC · {escape(_listed(run.sales))}</p>'
        "</header>",
        _tiles(run),
        _section("Verdict", _checks(verdict.checks)),
    ]
    if figures.late:
        parts.append(f'<p class="note">{escape(figures.late)}</p>')
    parts.append(
        _section(
            "Requests over time",
            _legend(names),
            f"<figure>{outcomes}<figcaption>Requests a second by what they came to; "
            f"seconds since the start, in steps of {figures.bin_seconds:g} s.</figcaption></figure>",
        )
    )
    for sale, stock in list(figures.stock.items())[:SALES_DRAWN]:
        if not stock:
            continue
        drawn, shown = stock_chart(stock)
        heading = "Stock" if len(figures.stock) == 1 else f"Stock of {sale}"
        caption = "Units" if "available" in shown else "Units that are taken (those available are left out, to scale)"
        parts.append(
            _section(
                heading,
                _legend(shown),
                f"<figure>{drawn}<figcaption>{caption}, as the server counted them; "
                "seconds since the start.</figcaption></figure>",
            )
        )
    if all_due is not None:
        drawn = latency_chart(all_due, figures.service["all"])
        parts.append(
            _section(
                "Latency",
                _legend(["from due", "service time"]),
                f"<figure>{drawn}<figcaption>Milliseconds by percentile, both to scales of tens. From due: since "
                "the instant at which a request was to be sent, whoever made it late. Service time: since it was sent."
                "</figcaption></figure>",
                _latencies(figures.from_due, figures.service),
            )
        )
    parts += [
        _section("Outcomes", _outcomes(figures.outcomes)),
        _section("Scenario", _scenario(run.scenario)),
        _section("Harness and machine", _machine(run)),
    ]
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _section(heading: str, *content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{''.join(content)}</section>"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} sales, {names[0]} and others"


def _tiles(run: Run) -> str:
    figures = run.figures
    due = figures.from_due.get("all")
    tiles = [
        (f"{len(plan(run.scenario)):,}", "buyers"),
        (f"{figures.requests:,}", f"requests in {figures.seconds:.1f} s"),
        (f"{figures.per_second:,.0f}/s", f"in the busiest {figures.bin_seconds:g} s"),
    ]
    if due is not None:
        tiles += [
            (_ms(due.percentiles[50.0]), "median, from due"),
            (_ms(due.percentiles[99.0]), "99th percentile"),
            (_ms(due.max), "slowest"),
        ]
    return (
        '<ul class="tiles">'
        + "".join(f"<li><b>{escape(value)}</b> {escape(what)}</li>" for value, what in tiles)
        + "</ul>"
    )


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def _checks(checks: Sequence[Check]) -> str:
    rows = []
    for check in checks:
        state, word = _MARKS[check.passed]
        more = "".join(f"<li>{escape(each)}</li>" for each in check.evidence[1:])
        if check.wrong > len(check.evidence):
            more += f"<li>and {check.wrong - len(check.evidence):,} more</li>"
        evidence = f"<ul>{more}</ul>" if more else ""
        rows.append(
            f'<li class="{state}"><span class="mark">{word}</span><div><h3>{escape(check.title)}</h3>'
            f"<p>{escape(check.said)}</p>{evidence}</div></li>"
        )
    return f'<ul class="checks">{"".join(rows)}</ul>'


def _legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<li><i style="background:{colour(name)}"></i>{escape(name.replace("_", " "))}</li>' for name in names
    )
    return f'<ul class="legend">{items}</ul>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(each)}</td>" for each in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _latencies(from_due: Mapping[str, Latency], service: Mapping[str, Latency]) -> str:
    heads = ["", "", "requests", "mean", *(f"p{each:g}" for each in PERCENTILES), "max"]
    rows = [
        (
            call if kind == "from due" else "",
            kind,
            f"{latency.count:,}",
            *(f"{value:,.2f}" for value in (latency.mean, *latency.percentiles.values(), latency.max)),
        )
        for call in from_due
        for kind, latency in (("from due", from_due[call]), ("service time", service[call]))
    ]
    return _table(
        heads,
        rows,
        "Latencies in milliseconds; requests without an answer count with the time until they were given up",
    )


def _outcomes(outcomes: Mapping[str, Mapping[str, int]]) -> str:
    rows = [
        (call if first == what else "", what, f"{count:,}")
        for call, said in outcomes.items()
        for first in [next(iter(said))]
        for what, count in said.items()
    ]
    return _table(["call", "outcome", "requests"], rows, OUTCOMES_SAID)


def _scenario(scenario: Scenario) -> str:
    rows = []
    for name, field in Scenario.model_fields.items():
        value = getattr(scenario, name)
        text = "none" if value is None else f"{value:,}" if type(value) is int and name != "seed" else str(value)
        rows.append((name, text, field.description or ""))
    return _table(
        ["field", "value", ""], rows, "What was asked for; the same fields and seed make the same plan"
    ).replace("<table>", '<table class="prose">', 1)


def _machine(run: Run) -> str:
    figures = run.figures
    rows = [
        *((name, value) for name, value in run.machine.items()),
        ("sent late", _spread(figures.lag)),
        ("loop late", _spread(figures.loop_lag)),
        ("opened or waited for a connection", f"{figures.waited:,} requests"),
        ("processor time", ", ".join(f"{100 * each:.0f} % of a core" for each in figures.cpu)),
    ]
    return _table(["", ""], rows, "The machine that sent, and how far it was behind its own plan")


def _spread(latency: Latency) -> str:
    percentiles = latency.percentiles
    return f"p50 {_ms(percentiles[50.0])}, p99 {_ms(percentiles[99.0])}, at worst {_ms(latency.max)}"
