"""`holdfast sale`: put something on sale, look at it, change it while it sells, and end it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from holdfast.engine import ConfigurationError, Durability, Engine, Sale, limits

from ..models import instant_text, sale_json
from ..settings import Settings
from .app import OK, default_text
from .beside import on_engine, place
from .output import Json, print_json, print_table
from .typed import NONE, Duration, Instant, InstantOrNone, Items, UnitsOrNone, item_changes

#: What an amendment may take away.
REMOVABLE: Final = frozenset({"max_per_buyer", "opens_at", "closes_at"})

# The id comes first and has no flag, in all of them.
Id = Annotated[str, Parameter(name="SALE", help="The sale's id.")]
Where = Annotated[Settings | None, Parameter(name="*")]

# Nothing here comes from a variable or the settings file but where the data is, which the other commands' help tells.
sale = App(
    name="sale",
    help="Put things on sale, look at them, change them while they sell.",
    default_parameter=Parameter(negative=(), show_env_var=False, show_default=default_text),
)

create = App(
    name="create",
    help_epilogue="""\
Examples:

    holdfast sale create gig --name "The Gig" --capacity 100 --max-per-buyer 4
    holdfast sale create gig --name "The Gig" --item seat=80:Seats --item box=5:Boxes:1
    holdfast sale create drop --name "The Drop" --capacity 50 --hold 90s --opens-at 2026-11-27T12:00:00Z
    holdfast sale create hot --name "The Hot" --capacity 20000 --shards 6
""",
)


@create.default
def _create_command(
    id: Id,
    /,
    *,
    name: str,
    capacity: int | None = None,
    item: Items = (),
    hold: Duration = limits.HOLD_MS_DEFAULT,
    max_per_buyer: int | None = None,
    opens_at: Instant | None = None,
    closes_at: Instant | None = None,
    durability: Durability | None = None,
    shards: int | None = None,
    json: Json = False,
    settings: Where = None,
) -> int:
    """Put something on sale.

    The same call again changes nothing and shows the sale.

    Parameters
    ----------
    name
        What people read.
    capacity
        Units, of a sale of one item; or --item.
    item
        An item, such as seat=80, seat=80:Seats or seat=80:Seats:4 (at most four to a buyer); repeatable.
    hold
        How long a ticket keeps its units until it is paid, such as 90s, 15m or 1h30m.
    max_per_buyer
        Units that one buyer may hold and have bought together.
    opens_at
        When selling begins: 2026-11-27T12:00:00Z, or +10m from now.
    closes_at
        When selling ends.
    durability
        What its payments survive: memory, fsync, replica or stored. Without it, what the server says.
    shards
        Over how many slots its units are divided, for a sale hotter than one core (docs/howto/shards.md).
    """

    async def work(engine: Engine) -> Sale:
        return await engine.create_sale(
            id,
            name=name,
            capacity=capacity,
            items=item or None,
            hold_ms=hold,
            max_per_buyer=max_per_buyer,
            opens_at=opens_at,
            closes_at=closes_at,
            durability=durability,
            shards=shards,
        )

    return _show(on_engine(settings, work, begins=True), json)


show = App(
    name="show",
    help_epilogue="""\
Examples:

    holdfast sale show gig
    holdfast sale show gig --json | jq .available
""",
)


@show.default
def _show_command(id: Id, /, *, json: Json = False, settings: Where = None) -> int:
    """Show a sale with its counters."""
    return _show(on_engine(settings, lambda engine: engine.sale(id), only_reads=True), json)


list_ = App(
    name="list",
    help_epilogue="""\
Examples:

    holdfast sale list
    holdfast sale list --json | jq -r .id
""",
)


@list_.default
def _list_command(*, json: Json = False, settings: Where = None) -> int:
    """List all sales, one line each."""

    async def work(engine: Engine) -> list[Sale]:
        return [each async for each in every_sale(engine)]

    sales = on_engine(settings, work, only_reads=True)
    if json:
        print_json(map(sale_json, sales))
    elif sales:
        sharded = any(each.shards for each in sales)
        counted = _columns(sharded)
        columns = ("sale", "name", *counted, *(("shards",) if sharded else ()), "")
        rows = (
            (each.id, each.name, *_totals(each, counted), *((each.shards,) if sharded else ()), _state(each))
            for each in sales
        )
        print_table(columns, rows, numbers=columns[2:-1])
    else:
        print(f"There are no sales in {place(settings or Settings())}.")
    return OK


amend = App(
    name="amend",
    help_epilogue="""\
Examples:

    holdfast sale amend gig --capacity 150
    holdfast sale amend gig --item seat=120 --item standing=40:Standing
    holdfast sale amend gig --closes-at +2h --max-per-buyer none
""",
)


@amend.default
def _amend_command(
    id: Id,
    /,
    *,
    name: str | None = None,
    capacity: int | None = None,
    item: Items = (),
    hold: Duration | None = None,
    max_per_buyer: UnitsOrNone | None = None,
    opens_at: InstantOrNone | None = None,
    closes_at: InstantOrNone | None = None,
    json: Json = False,
    settings: Where = None,
) -> int:
    """Change a sale while it sells: restock it, move its end; what is not named stays.

    Parameters
    ----------
    name
        What people read.
    capacity
        Units that are on sale in all, of a sale of one item; never less than are held and sold.
    item
        An item's capacity in all, seat=120; one that is not there yet is added; repeatable.
    hold
        How long new tickets keep their units, such as 90s, 15m or 1h30m.
    max_per_buyer
        Units that one buyer may hold and have bought together; none takes the limit away.
    opens_at
        When selling begins: 2026-11-27T12:00:00Z, +10m from now, or none.
    closes_at
        When selling ends, or none.
    """
    said: dict[str, Any] = {
        "name": name,
        "capacity": capacity,
        "items": item_changes(item) or None,
        "hold_ms": hold,
        "max_per_buyer": max_per_buyer,
        "opens_at": opens_at,
        "closes_at": closes_at,
    }
    changes = {
        field: None if value == NONE and field != "name" else value
        for field, value in said.items()
        if value is not None
    }
    if not changes:
        raise ConfigurationError("There is nothing to change: name it, such as --capacity 150.")
    return _show(on_engine(settings, lambda engine: engine.amend_sale(id, changes)), json)


close = App(
    name="close",
    help_epilogue="""\
Examples:

    holdfast sale close gig
    holdfast sale amend gig --closes-at none
""",
)


@close.default
def _close_command(id: Id, /, *, json: Json = False, settings: Where = None) -> int:
    """Stop selling now; what is held can still be paid.

    A sale that has ended already stays as it is. `holdfast sale amend SALE --closes-at none` opens it again.
    """

    async def work(engine: Engine) -> Sale:
        now = int(time.time() * 1000)
        current = await engine.sale(id)
        if current.closes_at is not None and current.closes_at <= now:
            return current
        # A sale whose window has not begun is one that never opens: its end may not lie before its beginning.
        opens_at = current.opens_at
        changes = {"closes_at": now} | ({"opens_at": None} if opens_at is not None and opens_at >= now else {})
        return await engine.amend_sale(id, changes)

    return _show(on_engine(settings, work), json)


for _each in (create, show, list_, amend, close):
    sale.command(_each)


async def every_sale(engine: Engine) -> AsyncIterator[Sale]:
    """All sales, in the order of their ids."""
    cursor = None
    while True:
        page = await engine.sales(limit=limits.PAGE_MAX, cursor=cursor)
        for each in page.items:
            yield each
        cursor = page.next
        if cursor is None:
            return


def _show(shown: Sale, as_json: bool) -> int:
    if as_json:
        print_json([sale_json(shown)])
        return OK
    print(f"{shown.id}: {shown.name}" + (f" ({_state(shown)})" if _state(shown) else ""))
    counted = _columns(shown.shards is not None)
    columns = ("item", "name", *counted, "per buyer")
    rows: list[Iterable[object]] = [
        (each.sku, each.name, *(getattr(each, _field(name)) for name in counted), each.max_per_buyer)
        for each in shown.items
    ]
    if len(shown.items) > 1:
        rows.append(("", "all", *_totals(shown, counted), shown.max_per_buyer))
    print_table(columns, [tuple(row) for row in rows], numbers=columns[2:])
    shards = f"; shards: {shown.shards}" if shown.shards else ""
    print(f"hold: {shown.hold_ms / 1000:g} s; per buyer: {shown.max_per_buyer or 'no limit'}{shards}")
    print(f"opens: {_instant(shown.opens_at, 'at once')}; closes: {_instant(shown.closes_at, 'never')}")
    return OK


def _columns(sharded: bool) -> tuple[str, ...]:
    """The columns of units."""
    return ("capacity", "available", "reserved", "purchased", *(("in transit",) if sharded else ()))


def _field(column: str) -> str:
    return column.replace(" ", "_")


def _totals(shown: Sale, columns: Iterable[str]) -> tuple[int, ...]:
    return tuple(sum(getattr(each, _field(name)) for each in shown.items) for name in columns)


def _state(shown: Sale) -> str:
    """What keeps it from being sold now, by this machine's clock."""
    now = time.time() * 1000
    if not shown.ready:
        return "not ready"
    if shown.closes_at is not None and shown.closes_at <= now:
        return "closed"
    return "not open yet" if shown.opens_at is not None and shown.opens_at > now else ""


def _instant(instant_ms: int | None, absent: str) -> str:
    return absent if instant_ms is None else instant_text(instant_ms)
