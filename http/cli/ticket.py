"""`holdfast ticket`: what became of a ticket."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from holdfast.engine import Engine, Kind, SaleTransition, Status, Ticket

from ..models import instant_text, ticket_json, transition_json
from ..settings import Settings
from .app import OK, default_text
from .beside import on_engine
from .output import Json, print_json, print_table, units

# As in `sale`: what is asked for is no setting.
ticket = App(
    name="ticket",
    help="Look at a ticket.",
    default_parameter=Parameter(negative=(), show_env_var=False, show_default=default_text),
)

show = App(
    name="show",
    help_epilogue="""\
Examples:

    holdfast ticket show gig.d-iAqJ3xx-KMw1CUtmUIDw
    holdfast ticket show gig.d-iAqJ3xx-KMw1CUtmUIDw --json | jq .history
""",
)


@show.default
def _show_command(
    id: Annotated[str, Parameter(name="TICKET", help="The ticket's id.")],
    /,
    *,
    json: Json = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> int:
    """Show a ticket as it stands, and every transition that the ledger has of it.

    The sale's ledger is read from its beginning: after a million tickets that takes some seconds.
    """

    async def work(engine: Engine) -> tuple[Ticket, list[SaleTransition]]:
        shown = await engine.ticket(id)
        return shown, await _history(engine, shown)

    shown, history = on_engine(settings, work, only_reads=True)
    if json:
        print_json([ticket_json(shown, private=True) | {"history": [transition_json(each) for each in history]}])
        return OK
    lines = ", ".join(f"{line.quantity} of {line.sku}" for line in shown.lines)
    print(f"{shown.id}: {shown.status.value}, {lines}")
    if shown.status is Status.RESERVED:
        print(f"must be paid until {instant_text(shown.expires_at)}, in {shown.expires_in_ms / 1000:.0f} s")
    if shown.reference is not None:
        print(f"reference: {shown.reference}")
    print_table(
        ("position", "at", "", "units"),
        [(each.position, instant_text(each.at), each.kind.value, units(each.quantity)) for each in history],
        numbers=("units",),
    )
    return OK


ticket.command(show)


async def _history(engine: Engine, shown: Ticket) -> list[SaleTransition]:
    """What the ledger has of this ticket; ended, when its end has been read."""
    tail = await engine.tail(shown.sale, after=(0, 0))
    found: list[SaleTransition] = []
    while transitions := await tail.read():
        found += (each for each in transitions if each.ticket == shown.id)
        if found and found[-1].kind is not Kind.RESERVED:
            break
    return found
