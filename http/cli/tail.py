"""`holdfast tail`: every transition as it happens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Final

from cyclopts import App, Parameter, Token

from holdfast.engine import ConfigurationError, Engine, InvalidRequest, Kind, NotReady, SaleTransition, Tail
from holdfast.engine.tail import POLL_S, positions, transitions

from ..models import instant_text, transition_json
from ..settings import Settings
from ..signals import stop_signal
from .app import OK
from .beside import beside_server, place, server_on, until
from .output import Json, print_json, units
from .sale import every_sale

#: The place before everything, of any sale.
START: Final = "0-0"

#: Looks after which the list of sales is read again, for new ones: two seconds.
ROUNDS: Final = 20

#: How each kind of transition looks on a terminal.
STYLES: Final = {
    Kind.RESERVED: "yellow",
    Kind.PURCHASED: "bold green",
    Kind.CANCELLED: "magenta",
    Kind.EXPIRED: "red",
    Kind.SALE: "bold cyan",
    Kind.TRANSFER: "blue",
}


def _place(_: object, tokens: list[Token]) -> str:
    try:
        positions(tokens[0].value)
    except InvalidRequest:
        raise ValueError(
            "must be EPOCH-SEQUENCE, such as 1-250, or in a sale in shards that of each, joined by commas: 1-17,1-4"
        ) from None
    return tokens[0].value


tail = App(
    name="tail",
    help_epilogue="""\
Examples:

    holdfast tail
    holdfast tail gig --from-start --json | jq -r 'select(.kind == "purchased") | .ticket'
    holdfast tail gig --after 1-250
    holdfast tail hot --after 1-17,1-4,2-9
""",
)


@tail.default
def _tail_command(
    sale: str | None = None,
    /,
    *,
    after: Annotated[str | None, Parameter(converter=_place, n_tokens=1, accepts_keys=False, metavar="PLACE")] = None,
    from_start: bool = False,
    json: Json = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> int:
    """Print every transition as it happens, until Ctrl-C.

    Lines for people on a terminal, otherwise one line of JSON each, as in the live stream of the API; in a sale in
    shards with the place. In the order of each ledger, none missed and none repeated.

    Parameters
    ----------
    sale
        Only this sale; without it all, those that are created meanwhile included.
    after
        Go on at this place in the sale: epoch and sequence of the last transition that was seen; in a sale in shards
        those of each shard, joined by commas.
    from_start
        Begin with the sale's first transition, not with the next.
    """
    if after is not None and (sale is None or from_start):
        raise ConfigurationError("--after is a place in the ledger of one sale: name it, and leave out --from-start.")
    begin = START if from_start else after
    show = _print_lines() if sys.stdout.isatty() and not json else _print_json
    return asyncio.run(_tail(settings or Settings(), sale, begin, show))


async def _tail(settings: Settings, sale: str | None, begin: str | None, show: Callable[[SaleTransition], None]) -> int:
    stop = stop_signal()
    if settings.redis is None and await until(stop, server_on(settings)) is None:
        return OK
    async with beside_server(settings, only_reads=True) as engine:
        # Looked at before anything is said of it: the name may be a slip.
        one = None if sale is None else await engine.tail(sale, after=begin)
        print(f"holdfast: following {sale or 'every sale'} in {place(settings)}", file=sys.stderr, flush=True)
        await until(stop, _print_all(_of_every_sale(engine, begin) if one is None else transitions(one), show))
    return OK


async def _print_all(told: AsyncIterator[SaleTransition], show: Callable[[SaleTransition], None]) -> None:
    async for transition in told:
        show(transition)


async def _of_every_sale(engine: Engine, begin: str | None) -> AsyncIterator[SaleTransition]:
    """What happens in all sales; one that comes later is told from its beginning."""
    tails: dict[str, Tail] = {}
    while True:
        try:
            async for each in every_sale(engine):
                if each.ready and each.id not in tails:
                    tails[each.id] = await engine.tail(each.id, after=begin)
        except NotReady:
            pass  # looked for again in two seconds
        else:
            begin = START
        for _ in range(ROUNDS):
            told: list[SaleTransition] = []
            for tail in tails.values():
                try:
                    told += await tail.read()
                except NotReady:
                    continue
            for transition in sorted(told, key=lambda each: each.at):
                yield transition
            if not told:
                await asyncio.sleep(POLL_S)


def _print_json(transition: SaleTransition) -> None:
    # In one slot the position is the place.
    place = {"place": transition.place} if transition.slot != transition.sale else {}
    print_json([transition_json(transition) | place])


def _print_lines() -> Callable[[SaleTransition], None]:
    """Prints transitions as coloured lines."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)

    def show(transition: SaleTransition) -> None:
        console.print(
            Text.assemble(
                (instant_text(transition.at)[11:-1], "dim"),
                "  ",
                (f"{transition.kind.value:9}", STYLES[transition.kind]),
                f"  {_what(transition)}  ",
                (f"{transition.slot} {transition.position}", "dim"),
            )
        )

    return show


def _what(transition: SaleTransition) -> str:
    terms = transition.terms
    if terms is not None:
        items = ", ".join(f"{item.capacity} of {item.sku}" for item in terms.items)
        return f"{terms.name}: {items}, held {terms.hold_ms / 1000:g} s"
    lines = ", ".join(f"{line.quantity} of {line.sku}" for line in transition.lines) or units(0)
    if transition.ticket is None:
        return lines
    reference = f" ({transition.reference})" if transition.reference else ""
    return f"{transition.ticket}  {lines}{reference}"
