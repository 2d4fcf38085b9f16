"""`holdfast load`: buyers of a scenario against a running server, and a verdict from what they were told."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

from cyclopts import App, Parameter

from holdfast.engine import ConfigurationError

from ..load.scenario import PRESETS, Scenario, scenario_of
from .app import FOUND_WRONG, OK, given

if TYPE_CHECKING:
    from ..load.run import Target

#: Where the operator's token lies in a data directory.
TOKEN_FILE: Final = "operator_token"

_SCENARIOS: Final = "\n".join(f"- `{name}`: {what}" for name, (what, _) in PRESETS.items())

load = App(
    name="load",
    help_epilogue=f"""\
Scenarios:

{_SCENARIOS}

Examples:

    holdfast load 2000-for-100
    holdfast load steady --rate 1500 --buyers 60000 --json result.json
    holdfast load hot-sale --failover --durability stored
    holdfast load --scenario drop.toml --url https://shop.example --report drop.html

docs/load.md has every field, what the verdict proves, and what it does not.
""",
)


@load.default
def _load_command(
    preset: Annotated[str | None, Parameter(name="PRESET", help="A scenario by name; see below.")] = None,
    /,
    *,
    list: bool = False,
    scenario: Path | None = None,
    url: str = "http://127.0.0.1:8080",
    operator_token: str | None = None,
    data_dir: Path = Path("holdfast-data"),
    buyer_token_key: str | None = None,
    sale: str | None = None,
    sku: str | None = None,
    keep_open: bool = False,
    json: Path | None = None,
    report: Path | None = None,
    fields: Annotated[Scenario | None, Parameter(name="*", group="Fields of the scenario", show_default=False)] = None,
) -> int:
    """Drive a server with buyers, and judge it by what they were told.

    Parameters
    ----------
    list
        Tell of the scenarios, and do nothing.
    scenario
        A scenario in a file (TOML), instead of or on top of one by name.
    url
        Where the server is.
    operator_token
        Makes the sales and lists the tickets. Without it, what lies in the data directory.
    data_dir
        Directory in which to look for the operator's token. One that was not named is looked into for a server on this
        machine alone.
    buyer_token_key
        The server's key for buyer tokens, when it wants them signed.
    sale
        Buy in this sale, instead of one that is made for the run.
    sku
        The item to buy, where that sale has several.
    keep_open
        Leave the sales open that were made for the run.
    json
        Write what came of it into this file, as JSON.
    report
        Write the report into this file; by default holdfast-load-DATE-TIME.html.
    """
    if list:
        for name, (what, _) in PRESETS.items():
            print(f"{name:<14}{what}")
        return OK
    flags = {} if fields is None else fields.model_dump(exclude_unset=True)
    for name in ("sales", "capacity", "hold_ms", "max_per_buyer", "shards", "durability"):
        if sale is not None and name in flags:
            raise ConfigurationError(
                f"--{name.replace('_', '-')} is for sales that the run makes; --sale {sale} has its own."
            )
    chosen = scenario_of(preset, scenario, flags)
    try:
        from ..load.run import Target
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The load harness needs the package {error.name}: pip install 'holdfast[load]', or make install."
        ) from None
    target = Target(
        url.rstrip("/"), operator_token or _kept_token(data_dir, url), buyer_token_key, sale, sku, keep_open=keep_open
    )
    began = datetime.now()
    report = report or Path(f"holdfast-load-{began:%Y%m%d-%H%M%S}.html")
    for path in (json, report):
        if path is None:
            continue
        if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise ConfigurationError(
                f"{path} cannot be written: it is a directory, is in none, or may not be written to."
            )
    return _run(chosen, target, json, report)


def _kept_token(data_dir: Path, url: str) -> str | None:
    # What lies in the directory by default is the token of a server here: no server elsewhere is to hear it.
    if "data-dir" not in given() and not _is_here(url):
        return None
    try:
        return (data_dir / TOKEN_FILE).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _is_here(url: str) -> bool:
    """Whether an address can be no other machine's."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _run(scenario: Scenario, target: Target, json: Path | None, report: Path) -> int:
    import uvloop

    from ..load import page, result
    from ..load.run import Run, run
    from ..load.screen import screen
    from ..load.seller import CannotRun
    from ..signals import stop_signal

    async def driven() -> Run:
        return await run(scenario, target, shown, stop_signal())

    shown = screen()
    try:
        done = uvloop.run(driven())
    except CannotRun as error:
        shown.close()
        print(f"holdfast: {' '.join(str(error).split())}", file=sys.stderr)
        return FOUND_WRONG
    finally:
        shown.close()
    shown.say(result.text(done))
    if json is not None:
        json.write_text(result.as_json(done), encoding="utf-8")
        shown.say(f"figures: {json}")
    report.write_text(page.page(done), encoding="utf-8")
    shown.say(f"report: {report}")
    return OK if done.verdict.good else FOUND_WRONG
