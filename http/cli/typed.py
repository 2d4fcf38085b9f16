"""What people type for durations, instants and items, as values."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Final

from cyclopts import Parameter, Token, convert
from cyclopts.exceptions import CycloptsError
from pydantic_core import PydanticCustomError

from holdfast.engine import ItemSpec

from ..models import instant_ms

#: What takes a limit or an end of the window away, where an amendment may.
NONE: Final = "none"

#: The capacity of an item that was typed without one: nothing that could be on sale.
NO_CAPACITY: Final = -1

#: `SKU=CAPACITY`, then optionally a name, then optionally a limit per buyer. A name may have colons in it.
_ITEM: Final = re.compile(r"(?P<sku>[^=]*)=(?P<capacity>[0-9]*)(?::(?P<name>.*?))?(?::(?P<max>[0-9]+))?", re.DOTALL)

MILLISECOND: Final = timedelta(milliseconds=1)


def _duration(_: Any, tokens: Sequence[Token]) -> int:
    """`15m`, `1h30m`, `0.5s` in milliseconds."""
    value = tokens[0].value
    try:
        duration: timedelta = convert(timedelta, [value])
    except CycloptsError:
        raise ValueError("must be a duration such as 90s, 15m, 1h30m or 2d") from None
    return duration // MILLISECOND


def _text(duration_ms: int | None) -> str | None:
    """A default as it would be typed."""
    return None if duration_ms is None else f"{duration_ms / 60_000:g}m"


def _instant(_: Any, tokens: Sequence[Token]) -> int:
    """`2026-11-27T12:00:00Z`, `now`, or `+10m` from now, in Unix milliseconds."""
    value = tokens[0].value
    now = int(time.time() * 1000)
    if value == "now":
        return now
    if value.startswith("+"):
        return now + _duration(_, [Token(value=value[1:])])
    try:
        return instant_ms(value)
    except PydanticCustomError:
        raise ValueError("must be an instant such as 2026-11-27T12:00:00Z, +10m or now") from None


def _instant_or_none(_: Any, tokens: Sequence[Token]) -> int | str:
    return NONE if tokens[0].value == NONE else _instant(_, tokens)


def _units_or_none(_: Any, tokens: Sequence[Token]) -> int | str:
    value = tokens[0].value
    if value != NONE and not value.isdecimal():
        raise ValueError(f"must be a whole number, or {NONE}")
    return NONE if value == NONE else int(value)


def _items(_: Any, tokens: Sequence[Token]) -> tuple[ItemSpec, ...]:
    return tuple(ItemSpec(**{"capacity": NO_CAPACITY} | _parts(token.value)) for token in tokens)


def _parts(text: str) -> dict[str, Any]:
    match = _ITEM.fullmatch(text)
    if match is None:
        raise ValueError("must be SKU=CAPACITY, and may go on with :NAME and :MAX_PER_BUYER, such as seat=100:Seats:4")
    parts: dict[str, Any] = {"sku": match["sku"]}
    if match["capacity"]:
        parts["capacity"] = int(match["capacity"])
    if match["name"]:
        parts["name"] = match["name"]
    if match["max"]:
        parts["max_per_buyer"] = int(match["max"])
    return parts


def item_changes(items: Sequence[ItemSpec]) -> list[dict[str, object]]:
    """What an amendment says of these items: only what was typed."""
    said = []
    for item in items:
        change: dict[str, object] = {"sku": item.sku}
        if item.capacity != NO_CAPACITY:
            change["capacity"] = item.capacity
        if item.name is not None:
            change["name"] = item.name
        if item.max_per_buyer is not None:
            change["max_per_buyer"] = item.max_per_buyer
        said.append(change)
    return said


# What the parameters of commands are annotated with.
Duration = Annotated[
    int, Parameter(converter=_duration, n_tokens=1, accepts_keys=False, metavar="DURATION", show_default=_text)
]
Instant = Annotated[int, Parameter(converter=_instant, n_tokens=1, accepts_keys=False, metavar="INSTANT")]
InstantOrNone = Annotated[
    int | str, Parameter(converter=_instant_or_none, n_tokens=1, accepts_keys=False, metavar="INSTANT")
]
UnitsOrNone = Annotated[int | str, Parameter(converter=_units_or_none, n_tokens=1, accepts_keys=False, metavar="INT")]
Items = Annotated[
    tuple[ItemSpec, ...],
    Parameter(name="--item", converter=_items, n_tokens=1, accepts_keys=False, metavar="SKU=N[:NAME[:MAX]]"),
]
