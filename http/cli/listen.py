"""`holdfast listen`: each ticket whose hold ran out."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Annotated

from cyclopts import App, Parameter

from holdfast.engine import Expiration

from ..models import instant_text
from ..settings import Settings
from ..signals import stop_signal
from .app import OK
from .beside import beside_server, place, server_on, until

listen = App(
    name="listen",
    help_epilogue="""\
Examples:

    holdfast listen
    holdfast listen --sale gig --name mailer
""",
)


@listen.default
def _listen_command(
    *,
    sale: str | None = None,
    name: str | None = None,
    from_start: bool = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> int:
    """Print each expired ticket as one line of JSON, until Ctrl-C.

    Each comes once per process and at least once over restarts; (slot, epoch, sequence) tells repeats.

    Parameters
    ----------
    sale
        Only this sale.
    name
        Go on where the listener of this name stopped.
    from_start
        Begin with the oldest that is known, not with the next.
    """
    return asyncio.run(_listen(settings or Settings(), sale, name, from_start))


async def _listen(settings: Settings, sale: str | None, name: str | None, from_start: bool) -> int:
    stop = stop_signal()
    if settings.redis is None and await until(stop, server_on(settings)) is None:
        return OK
    async with beside_server(settings) as engine:
        print(f"holdfast: listening to {sale or 'every sale'} in {place(settings)}", file=sys.stderr, flush=True)
        await until(stop, _print_all(engine.expirations(sale=sale, name=name, from_start=from_start)))
    return OK


async def _print_all(expirations: AsyncIterator[Expiration]) -> None:
    async for expiration in expirations:
        print(expiration_line(expiration), flush=True)


def expiration_line(expiration: Expiration) -> str:
    """An expired ticket as one line of JSON."""
    return json.dumps(
        {
            "slot": expiration.slot,
            "epoch": expiration.epoch,
            "sequence": expiration.sequence,
            "sale": expiration.sale,
            "ticket": expiration.ticket,
            "lines": [{"sku": line.sku, "quantity": line.quantity} for line in expiration.lines],
            "expired_at": instant_text(expiration.expired_at),
            "at": instant_text(expiration.at),
        }
    )
