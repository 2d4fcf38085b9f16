"""`holdfast recover`, `audit` and `snapshot`: what an operator does for sales that are there."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

from cyclopts import App, Parameter

from ..settings import Settings
from ..signals import stop_signal
from .app import FOUND_WRONG, OK
from .beside import beside_server, on_engine, place, until
from .output import Json, print_json

recover = App(
    name="recover",
    help_epilogue="""\
Examples:

    holdfast recover
    holdfast recover --sale gig --accept-oversold
""",
)

audit = App(
    name="audit",
    help_epilogue="""\
Examples:

    holdfast audit
    holdfast audit --sale gig --tickets
""",
)


@recover.default
def _recover_command(
    *,
    sale: tuple[str, ...] = (),
    accept_oversold: bool = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> int:
    """Rebuild from the store what Redis has lost.

    Sales, counters, limits, purchases and unexpired holds.

    Parameters
    ----------
    sale
        Only this sale, or one of its shards (gig~3); repeatable. Without it every sale that is not ready.
    accept_oversold
        Where more is held and sold than there is, raise the capacity to that instead of keeping the sale closed.
    """
    return asyncio.run(_recover(settings or Settings(), sale, accept_oversold))


async def _recover(settings: Settings, sales: tuple[str, ...], accept_oversold: bool) -> int:
    stop = stop_signal()
    async with beside_server(settings) as engine:
        report = await until(stop, engine.recover(sales or None, accept_oversold=accept_oversold))
    if report is None:
        print("holdfast: interrupted; run it again, it goes on where it stopped.", file=sys.stderr)
        return FOUND_WRONG
    for slot in report.slots:
        print(slot)
    if not report.slots:
        print(f"There is nothing to recover: the sales in {place(settings)} are ready.")
    return OK if report.clean else FOUND_WRONG


@audit.default
def _audit_command(
    *,
    sale: tuple[str, ...] = (),
    tickets: bool = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> int:
    """Compare what Redis counts with what the ledger tells, and change nothing.

    Of each item and each buyer, while everything sells.

    Parameters
    ----------
    sale
        Only this sale, or one of its shards (gig~3); repeatable.
    tickets
        Compare each ticket that is held, too.
    """
    return asyncio.run(_audit(settings or Settings(), sale, tickets))


async def _audit(settings: Settings, sales: tuple[str, ...], tickets: bool) -> int:
    stop = stop_signal()
    async with beside_server(settings, only_reads=True) as engine:
        report = await until(stop, engine.audit(sales or None, tickets=tickets))
    if report is None:
        print("holdfast: interrupted; not everything was looked at.", file=sys.stderr)
        return FOUND_WRONG
    print(report if report.slots else f"There are no sales in {place(settings)}.")
    return OK if report.clean else FOUND_WRONG


snapshot = App(
    name="snapshot",
    help_epilogue="""\
Examples:

    holdfast snapshot
    holdfast snapshot --json
""",
)


@snapshot.default
def _snapshot_command(*, json: Json = False, settings: Annotated[Settings | None, Parameter(name="*")] = None) -> int:
    """Copy what is new into the store now, and say how much it was.

    The server does so every second by itself. When this returns, the store's tables have everything that was sold
    before it was called.
    """
    copied = on_engine(settings, lambda engine: engine.snapshot())
    if json:
        print_json([{"copied": copied}])
    else:
        print(f"{copied} transition{'' if copied == 1 else 's'} copied.")
    return OK
