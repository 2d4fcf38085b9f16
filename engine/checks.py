"""What callers may say: values are checked here, before anything is asked of Redis or the store."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from holdfast.engine import limits
from holdfast.engine.errors import InvalidRequest
from holdfast.engine.records import Definition, ItemDefinition, pack_lines
from holdfast.engine.values import Durability, ItemSpec, Line

_NAME = re.compile(limits.NAME_PATTERN)
_KEY = re.compile(rf"[!-~]{{1,{limits.KEY_CHARS_MAX}}}")
#: Control characters, which would break a ledger line, and lone surrogates, which UTF-8 cannot carry.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: What an amendment may name.
AMENDABLE = ("name", "hold_ms", "max_per_buyer", "opens_at", "closes_at", "capacity", "items")


def name(pointer: str, value: object) -> str:
    """A sale's id or a sku."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(pointer, "must be 1 to 64 of a-z, 0-9 and '-', and not begin with '-'")
    return value


def integer(pointer: str, value: object, least: int, most: int) -> int:
    """A whole number within bounds. True is no number, and 1.0 is not whole enough."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(pointer, f"must be a whole number from {least} to {most}")
    return value


def text(pointer: str, value: object, least: int, most: int) -> str:
    """Text of so many characters, none of them a control character."""
    if not isinstance(value, str) or not least <= len(value) <= most or _UNPRINTABLE.search(value):
        raise InvalidRequest(pointer, f"must be {least} to {most} characters, without control characters")
    return value


def buyer(value: object) -> str:
    """Whatever names a buyer."""
    if not isinstance(value, str) or not 1 <= len(value) <= limits.BUYER_CHARS_MAX:
        raise InvalidRequest("/buyer", f"must be 1 to {limits.BUYER_CHARS_MAX} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("/buyer", "must be text that UTF-8 can carry") from None
    return value


def key(value: object) -> str | None:
    """An idempotency key, or None."""
    if value is not None and (not isinstance(value, str) or not _KEY.fullmatch(value)):
        raise InvalidRequest("/key", f"must be 1 to {limits.KEY_CHARS_MAX} visible ASCII characters")
    return value


def reference(value: object) -> str:
    """A payment's reference; empty when there is none."""
    return "" if value is None else text("/reference", value, 1, limits.REFERENCE_CHARS_MAX)


def level(value: object) -> Durability:
    """A durability, as such or by its name."""
    try:
        return Durability(value)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidRequest("/durability", f"must be one of {', '.join(Durability)}") from None


def definition(
    sale: str,
    name_: object,
    capacity: object,
    items: Sequence[ItemSpec] | None,
    hold_ms: object,
    max_per_buyer: object,
    opens_at: object,
    closes_at: object,
    durability: object,
    shards: object = None,
) -> Definition:
    """The definition of a new sale; `origin` is still empty."""
    if (capacity is None) == (items is None):
        raise InvalidRequest("/capacity", "give either 'capacity' (a sale of one item) or 'items', not both")
    specs = [ItemSpec("general", capacity)] if items is None else list(items)  # type: ignore[arg-type]
    if not 1 <= len(specs) <= limits.ITEMS_MAX:
        raise InvalidRequest("/items", f"must be 1 to {limits.ITEMS_MAX} items")
    made: list[ItemDefinition] = []
    for at, spec in enumerate(specs):
        pointer = "" if items is None else f"/items/{at}"
        made.append(_item(pointer, spec.sku, spec.name, spec.capacity, spec.max_per_buyer))
        if spec.sku in {item.sku for item in made[:-1]}:
            raise InvalidRequest(f"{pointer}/sku", f"'{spec.sku}' is the sku of an earlier item, too")
    values: dict[str, Any] = {
        "name": name_,
        "hold_ms": hold_ms,
        "max_per_buyer": max_per_buyer,
        "opens_at": opens_at,
        "closes_at": closes_at,
    }
    return _checked(
        Definition(
            id=name("/id", sale),
            items=tuple(made),
            version=1,
            origin="",
            durability=None if durability is None else level(durability),
            shards=_shards(shards),
            **values,
        )
    )


def _shards(value: object) -> int | None:
    """How many slots; None for a sale that has one."""
    if value is None:
        return None
    number = integer("/shards", value, 1, limits.SHARDS_MAX)
    return None if number == 1 else number


def _item(pointer: str, sku: object, name_: object, capacity: object, max_per_buyer: object) -> ItemDefinition:
    known = name(f"{pointer}/sku", sku)
    return ItemDefinition(
        known,
        known if name_ is None else text(f"{pointer}/name", name_, 1, limits.DISPLAY_NAME_CHARS_MAX),
        integer(f"{pointer}/capacity", capacity, 0, limits.CAPACITY_MAX),
        _limit(f"{pointer}/max_per_buyer", max_per_buyer),
    )


def _limit(pointer: str, value: object) -> int | None:
    return None if value is None else integer(pointer, value, 1, limits.CAPACITY_MAX)


def _instant(pointer: str, value: object) -> int | None:
    return None if value is None else integer(pointer, value, 1, limits.INSTANT_MS_MAX)


def _checked(made: Definition) -> Definition:
    text("/name", made.name, 1, limits.DISPLAY_NAME_CHARS_MAX)
    integer("/hold_ms", made.hold_ms, limits.HOLD_MS_MIN, limits.HOLD_MS_MAX)
    _limit("/max_per_buyer", made.max_per_buyer)
    opens_at, closes_at = _instant("/opens_at", made.opens_at), _instant("/closes_at", made.closes_at)
    if opens_at is not None and closes_at is not None and closes_at <= opens_at:
        raise InvalidRequest("/closes_at", "must be later than opens_at")
    return made


def amended(known: Definition, changes: Mapping[str, object]) -> Definition:
    """The definition after a merge patch: absent is unchanged, None removes; items are merged by sku, never removed."""
    values: dict[str, Any] = {}
    for field, value in changes.items():
        if field not in AMENDABLE:
            raise InvalidRequest(f"/{field}", f"cannot be amended; {', '.join(AMENDABLE)} can")
        if field not in ("capacity", "items"):
            values[field] = value
    items = {item.sku: item for item in known.items}
    if "capacity" in changes:
        if len(items) > 1 or "items" in changes:
            raise InvalidRequest("/capacity", "is for sales of one item; name the item under 'items'")
        (only,) = items.values()
        items[only.sku] = _item("", only.sku, only.name, changes["capacity"], only.max_per_buyer)
    for at, patch in enumerate(_patches(changes.get("items", ()))):
        pointer = f"/items/{at}"
        sku = name(f"{pointer}/sku", patch.get("sku"))
        old = items.get(sku)
        if old is None and patch.get("capacity") is None:
            raise InvalidRequest(f"{pointer}/capacity", f"is needed for the new item '{sku}'")
        merged: dict[str, object] = {
            "name": old and old.name,
            "capacity": old and old.capacity,
            "max_per_buyer": old and old.max_per_buyer,
        }
        for field, value in patch.items():
            if field != "sku":
                if field not in merged:
                    raise InvalidRequest(
                        f"{pointer}/{field}", "cannot be amended; name, capacity and max_per_buyer can"
                    )
                merged[field] = value
        items[sku] = _item(pointer, sku, merged["name"], merged["capacity"], merged["max_per_buyer"])
    if len(items) > limits.ITEMS_MAX:
        raise InvalidRequest("/items", f"a sale has at most {limits.ITEMS_MAX} items")
    return _checked(replace(known, items=tuple(items.values()), **values))


def _patches(value: object) -> Sequence[Mapping[str, object]]:
    if isinstance(value, (list, tuple)) and all(isinstance(patch, Mapping) for patch in value):
        return value
    raise InvalidRequest("/items", "must be a list of items, each with its sku")


def lines(
    known: Definition, item_of: Mapping[str, int], quantity: object, wanted: Mapping[str, int] | Sequence[Line] | None
) -> str:
    """The lines of a request, packed: the same sku on two lines is added up."""
    if (quantity is None) == (wanted is None):
        raise InvalidRequest("/quantity", "give either 'quantity' (in a sale of one item) or 'lines', not both")
    if wanted is None:
        if len(known.items) != 1:
            raise InvalidRequest("/quantity", "this sale has several items: give 'lines', each with sku and quantity")
        return f"1:{integer('/quantity', quantity, 1, limits.QUANTITY_MAX)}"
    asked = [Line(*pair) for pair in wanted.items()] if isinstance(wanted, Mapping) else wanted
    if not 1 <= len(asked) <= limits.LINES_MAX:
        raise InvalidRequest("/lines", f"must be 1 to {limits.LINES_MAX} lines")
    units: dict[int, int] = {}
    for at, line in enumerate(asked):
        amount = integer(f"/lines/{at}/quantity", line.quantity, 1, limits.QUANTITY_MAX)
        item = item_of.get(line.sku)
        if item is None:
            name(f"/lines/{at}/sku", line.sku)
            raise UnknownSku(f"/lines/{at}/sku", f"this sale has no item '{line.sku}'")
        units[item] = units.get(item, 0) + amount
        if units[item] > limits.QUANTITY_MAX:
            raise InvalidRequest(
                f"/lines/{at}/quantity", f"with the other lines of '{line.sku}' this is over {limits.QUANTITY_MAX}"
            )
    return pack_lines(units.items())


class UnknownSku(InvalidRequest):
    """A sku that this process does not know in the sale; another process may have added it a moment ago."""


def all_of(mistakes: Sequence[tuple[int, InvalidRequest]]) -> InvalidRequest:
    """Mistakes of several entries, each with its entry's number, as one refusal: UnknownSku when one of them is."""
    told = [(f"/entries/{at}{pointer}", detail) for at, error in mistakes for pointer, detail in error.mistakes]
    kind = UnknownSku if any(isinstance(error, UnknownSku) for _, error in mistakes) else InvalidRequest
    return kind(*told[0], told[1:])


def page_limit(value: object) -> int:
    """Rows of a page."""
    return integer("/limit", value, 1, limits.PAGE_MAX)
