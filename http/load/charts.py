"""The plots of a report: inline SVG by pygal, in colours that the page's style sheet names."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from xml.etree import ElementTree

# pygal takes lxml where it is installed, whose elements are others; the standard library's are enough.
os.environ.setdefault("NO_LXML", "1")

import pygal
from pygal.style import Style

from .figures import Bin, Latency, Stock

# It leaves a finder behind for charts in other packages, which would be asked at every import, and which Python 3.11
# warns of.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "pygal"]

#: Pixels of a plot in its own coordinates; the page scales it to its width.
WIDTH: Final = 920
HEIGHT: Final = 330

#: Labels on an axis of time, about: more run into each other on a telephone.
LABELS: Final = 8

#: Instants at which stock is drawn, at the most.
STOCK_POINTS: Final = 120

#: Seconds that are round, for what is even.
STEPS: Final = (0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)

#: Colours by what is shown; variables of the page, which has them for light and for dark.
COLOURS: Final[Mapping[str, str]] = {
    "reserved": "var(--held)",
    "paid": "var(--sold)",
    "cancelled": "var(--grey)",
    "replayed": "var(--sea)",
    "all_held": "var(--amber)",
    "sold_out": "var(--rust)",
    "limit_reached": "var(--plum)",
    "garbage": "var(--faint)",
    "hung_up": "var(--pale)",
    "sold": "var(--sold)",
    "held": "var(--held)",
    "in transit": "var(--sea)",
    "available": "var(--free)",
    "from due": "var(--held)",
    "service time": "var(--grey)",
}
OTHER: Final = "var(--red)"

#: Share of all units below which those that are sold and held are drawn without the rest, which would hide them.
SMALL: Final = 0.2

_SVG: Final = "{http://www.w3.org/2000/svg}"


def colour(name: str) -> str:
    """The colour in which something is drawn."""
    return COLOURS.get(name, OTHER)


def outcomes_chart(bins: Sequence[Bin], width: float) -> tuple[str, list[str]]:
    """What requests came to, as requests a second, over time; and the names in the order of the plot."""
    names = sorted({name for each in bins for name in each.outcomes}, key=_order)
    chart = _chart(pygal.StackedBar, names, value_formatter=lambda value: f"{value:,.0f}/s")
    _time_axis(chart, [each.at for each in bins])
    for name in names:
        chart.add(name, [each.outcomes.get(name, 0) / width for each in bins])
    return _svg(chart, "Requests a second by what they came to, over the seconds of the run."), names


def stock_chart(stock: Sequence[Stock]) -> tuple[str, list[str]]:
    """Sold, held and available units over time, and those between shards; and the names in the order of the plot."""
    points = _even(stock)
    total = max((each.available + each.reserved + each.purchased + each.in_transit for each in points), default=0)
    taken = max((each.reserved + each.purchased for each in points), default=0)
    moved = ["in transit"] if any(each.in_transit for each in points) else []
    names = ["sold", "held"] if taken < SMALL * total else ["sold", "held", *moved, "available"]
    values = {"sold": "purchased", "held": "reserved", "in transit": "in_transit", "available": "available"}
    chart = _chart(pygal.StackedLine, names, fill=True, show_dots=False, value_formatter=lambda value: f"{value:,.0f}")
    _time_axis(chart, [each.at for each in points])
    for name in names:
        chart.add(name, [getattr(each, values[name]) for each in points])
    return _svg(chart, f"Units that are {', '.join(names)}, over the seconds of the run."), names


def latency_chart(from_due: Latency, service: Latency) -> str:
    """Latency by percentile. To the right each step is a tenth of what is left, and upwards ten times as long.

    pygal's own logarithmic scale would be one for both axes.
    """
    names = ["from due", "service time"]
    right = math.log10(max(from_due.count, service.count, 100))
    lines = {
        name: [(min(_nines(each), right), math.log10(max(value, 0.01))) for each, value in latency.curve]
        for name, latency in zip(names, (from_due, service), strict=True)
    }
    heights = [height for line in lines.values() for _, height in line]
    low, high = math.floor(min(heights)), math.ceil(max(heights))
    chart = _chart(pygal.XY, names, show_dots=False, show_minor_x_labels=True, xrange=(0, right), range=(low, high))
    percentiles = [0, 50, *(100 - 100 / 10**nines for nines in range(1, math.floor(right) + 1))]
    chart.x_labels = [{"value": _nines(each), "label": f"{each:.7g} %"} for each in percentiles]
    marks = [decade + math.log10(times) for decade in range(low, high) for times in (1, 2, 5)]
    chart.y_labels = [{"value": mark, "label": f"{10**mark:,.6g} ms"} for mark in [*marks, high]]
    for name, points in lines.items():
        chart.add(name, points, stroke_style={"dasharray": "7, 5"} if name == "service time" else None)
    return _svg(chart, "Latency in milliseconds by percentile, from due and as service time.")


def _nines(percentile: float) -> float:
    return math.log10(100 / max(1e-9, 100 - percentile))


def _order(name: str) -> tuple[int, str]:
    """Successes below, then refusals as the colours have them, then whatever should not be there."""
    return (list(COLOURS).index(name) if name in COLOURS else len(COLOURS), name)


def _even(stock: Sequence[Stock]) -> list[Stock]:
    """What was seen last at even and round instants."""
    last = stock[-1].at
    step = next((each for each in STEPS if last / each <= STOCK_POINTS), STEPS[-1])
    points, at = [], 0
    for place in range(math.floor(last / step) + 1):
        while at + 1 < len(stock) and stock[at + 1].at <= place * step:
            at += 1
        points.append(replace(stock[at], at=place * step))
    return points


def _time_axis(chart: Any, instants: Sequence[float]) -> None:
    """Labels at round instants, in seconds."""
    chart.x_labels = [f"{each:.6g}" for each in instants]
    apart = next((each for each in STEPS if max(instants, default=0) / each <= LABELS), STEPS[-1])
    chart.x_labels_major = [
        label for label, at in zip(chart.x_labels, instants, strict=True) if _is_multiple(at, apart)
    ]


def _is_multiple(value: float, of: float) -> bool:
    return abs(value / of - round(value / of)) < 1e-6


def _chart(kind: Any, names: Sequence[str], **options: Any) -> Any:
    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--soft)",
        foreground_strong="var(--soft)",
        foreground_subtle="var(--line)",
        opacity=".88",
        opacity_hover="1",
        transition="0s",
        colors=tuple(colour(name) for name in names),
        font_family="inherit",
        label_font_size=13,
        major_label_font_size=13,
        guide_stroke_dasharray="0",
        major_guide_stroke_dasharray="0",
    )
    return kind(
        style=style,
        js=[],
        width=WIDTH,
        height=HEIGHT,
        show_legend=False,
        margin=4,
        max_scale=8,
        spacing=8,
        order_min=-1,
        x_label_rotation=0,
        truncate_label=-1,
        **{"show_minor_x_labels": False, **options},
    )


def _svg(chart: Any, said: str) -> str:
    """The plot as it stands in a page: no comments, no addresses, a name for those who do not see it, and what each
    mark means as the browser's own tooltip."""
    root = chart.render_tree()
    root.attrib = {
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "class": root.get("class", ""),
        "id": root.get("id", ""),
        "role": "img",
        "aria-label": said,
    }
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag is ElementTree.Comment or _tag(child) in ("title", "script"):
                parent.remove(child)
        told = [child for child in parent if _tag(child) == "desc"]
        value = next((child.text for child in told if child.get("class") == "value"), None)
        label = next((child.text for child in told if child.get("class") == "x_label"), None)
        for child in told:
            parent.remove(child)
        if value:
            title = ElementTree.SubElement(parent, "title")
            title.text = f"{label} s: {value}" if label else value
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    return (
        text.replace(' xmlns="http://www.w3.org/2000/svg"', "")
        .replace(' xmlns:ns0="http://www.w3.org/2000/svg"', "")
        .replace("ns0:", "")
    )


def _tag(element: Any) -> str:
    return str(element.tag).removeprefix(_SVG)
