"""The command line: `holdfast serve`, `recover`, `audit`, `listen`.

A setting is looked for in its flag, then in `HOLDFAST_` and its name in capitals, then in `holdfast.toml`.
Exit statuses: 0 all went well, 1 it found something wrong, 2 the call was wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tomllib
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from cyclopts import App, Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Env
from cyclopts.exceptions import CycloptsError

from holdfast.engine import ConfigurationError, Engine, Expiration, HoldfastError
from holdfast.engine.embedded import running_url

from ..models import instant_text
from ..process import stop_signal
from ..serve import run
from ..settings import ServeSettings, Settings

OK: Final = 0
FOUND_WRONG: Final = 1
WRONG_CALL: Final = 2

#: The settings file, in the directory in which the command is run.
SETTINGS_FILE: Final = Path("holdfast.toml")

#: Seconds between two looks for a server to listen to.
WAIT_SECONDS: Final = 0.5

#: Seconds until work that goes on after its cancellation is cancelled once more.
CANCEL_AGAIN_SECONDS: Final = 0.05

#: What the variables of all settings begin with.
ENV_PREFIX: Final = "HOLDFAST_"

T = TypeVar("T")

_COMMANDS: Final = ("serve", "recover", "audit", "listen")


# Settings from the file -----------------------------------------------------------------------------------------------


def _from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what flag and environment left open from the settings file, which all commands share.

    Raises
    ------
    CycloptsError: it cannot be read, or has a setting that no command knows.
    """
    try:
        settings = tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise CycloptsError(msg=f"{SETTINGS_FILE} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        # Not TOML, or not UTF-8.
        raise CycloptsError(msg=f"{SETTINGS_FILE} cannot be read: {error}.") from None
    known = _setting_names()
    for name in settings:
        if name.replace("_", "-") not in known:
            raise CycloptsError(msg=f"{SETTINGS_FILE}: there is no setting '{name}'.")
    own = _names(arguments)
    here: dict[str, Any] = {name: value for name, value in settings.items() if name.replace("_", "-") in own}
    # Nested under the command: at the top, cyclopts would take the setting `recover` for the command of that name.
    for command in reversed(commands):
        here = {command: here}
    Dict(here, source=str(SETTINGS_FILE))(app, commands, arguments)


@cache
def _setting_names() -> frozenset[str]:
    return frozenset().union(*(_names(app[command].assemble_argument_collection()) for command in _COMMANDS))


def _names(arguments: ArgumentCollection) -> frozenset[str]:
    return frozenset(argument.name.removeprefix("--") for argument in arguments)


app = App(
    name="holdfast",
    help="Sell scarce things under a stampede: reserve, pay, expire, and never sell one twice.",
    version=lambda: version("holdfast"),
    default_parameter=Parameter(negative=()),
    config=[Env(ENV_PREFIX, command=False), _from_file],
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments: what was typed after `holdfast`; None takes it from the process.

    Returns
    -------
    The exit status. A mistake is told in one line on standard error, and never with a secret in it.
    """
    known = {ENV_PREFIX + name.upper().replace("-", "_") for name in _setting_names()}
    for name in sorted(os.environ.keys() - known):
        if name.startswith(ENV_PREFIX):
            print(f"holdfast: {name} is set, and there is no such setting", file=sys.stderr)
    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, ConfigurationError) as error:
        return _complain(str(error), WRONG_CALL)
    except HoldfastError as error:
        return _complain(str(error), FOUND_WRONG)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return OK
    return status if isinstance(status, int) else OK


def _complain(sentence: str, status: int) -> int:
    print("holdfast:", " ".join(sentence.split()), file=sys.stderr)
    return status


# Commands -------------------------------------------------------------------------------------------------------------


@app.command
def serve(settings: Annotated[ServeSettings | None, Parameter(name="*")] = None) -> int:
    """Serve the HTTP API until Ctrl-C or SIGTERM."""
    run(settings or ServeSettings())
    return OK


@app.command
def recover(
    *,
    sale: tuple[str, ...] = (),
    accept_oversold: bool = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> int:
    """Rebuild what Redis has lost from the store: sales, counters, limits, purchases and unexpired holds.

    Parameters
    ----------
    sale
        Only this sale; repeatable. Without it every sale that is not ready.
    accept_oversold
        Where more is held and sold than there is, raise the capacity to that instead of keeping the sale closed.
    """
    return asyncio.run(_recover(settings or Settings(), sale, accept_oversold))


async def _recover(settings: Settings, sales: tuple[str, ...], accept_oversold: bool) -> int:
    stop = stop_signal()
    async with _beside_server(settings) as engine:
        report = await _until(stop, engine.recover(sales or None, accept_oversold=accept_oversold))
    if report is None:
        print("holdfast: interrupted; run it again, it goes on where it stopped.", file=sys.stderr)
        return FOUND_WRONG
    for slot in report.slots:
        print(slot)
    if not report.slots:
        print(f"There is nothing to recover: the sales in {_place(settings)} are ready.")
    return OK if report.clean else FOUND_WRONG


@app.command
def audit(
    *,
    sale: tuple[str, ...] = (),
    tickets: bool = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> int:
    """Compare what Redis counts, of each item and each buyer, with what the ledger tells. Changes nothing.

    Parameters
    ----------
    sale
        Only this sale; repeatable.
    tickets
        Compare each ticket that is held, too.
    """
    return asyncio.run(_audit(settings or Settings(), sale, tickets))


async def _audit(settings: Settings, sales: tuple[str, ...], tickets: bool) -> int:
    stop = stop_signal()
    async with _beside_server(settings, only_reads=True) as engine:
        report = await _until(stop, engine.audit(sales or None, tickets=tickets))
    if report is None:
        print("holdfast: interrupted; not everything was looked at.", file=sys.stderr)
        return FOUND_WRONG
    print(report if report.slots else f"There are no sales in {_place(settings)}.")
    return OK if report.clean else FOUND_WRONG


@app.command
def listen(
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
    if settings.redis is None and await _until(stop, _server_on(settings)) is None:
        return OK
    async with _beside_server(settings) as engine:
        print(f"holdfast: listening to {sale or 'every sale'} in {_place(settings)}", file=sys.stderr, flush=True)
        await _until(stop, _print_all(engine.expirations(sale=sale, name=name, from_start=from_start)))
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


async def _server_on(settings: Settings) -> bool:
    """Waits until a server runs on the data directory. A listener does not become one: it would lock the server out."""
    data_dir, said = settings.data_dir, False
    while running_url(_existing(data_dir)) is None or (settings.secret is None and _kept_secret(data_dir) is None):
        if not said:
            print(f"holdfast: waiting for a server on {data_dir}", file=sys.stderr, flush=True)
            said = True
        await asyncio.sleep(WAIT_SECONDS)
    return True


def _existing(data_dir: Path) -> Path:
    """The data directory, which a command beside a server must not make: a slip would look like an empty shop.

    Raises
    ------
    ConfigurationError: there is none.
    """
    if not data_dir.is_dir():
        raise ConfigurationError(f"There is no data directory {data_dir}; name the server's with --data-dir.")
    return data_dir


def _place(settings: Settings) -> str:
    return "the Redis that was given" if settings.redis else str(settings.data_dir)


def _beside_server(settings: Settings, *, only_reads: bool = False) -> Engine:
    """An engine on the Redis of a server that runs on this data directory, or on one of its own when none runs.

    Beside a server it leaves sweeping and snapshots to it.

    Parameters
    ----------
    only_reads: it does neither, wherever it is, and asks Redis for no announcements.
    """
    url = settings.redis or running_url(_existing(settings.data_dir))
    alone = url is None
    works = alone and not only_reads
    # On the private Redis of a running server, the secret that this server made; elsewhere the engine knows.
    secret = settings.secret or (_kept_secret(settings.data_dir) if settings.redis is None and not alone else None)
    if secret is None and settings.redis is None and not alone:
        raise ConfigurationError(f"The server on {settings.data_dir} has a secret of its own: give the same --secret.")
    return Engine.connect(
        url,
        store=settings.store,
        data_dir=settings.data_dir,
        secret=secret,
        redis_server=settings.redis_server,
        sweep=works,
        listen=not only_reads,
        snapshot_ms=1000 if works else None,
    )


def _kept_secret(data_dir: Path) -> str | None:
    """The secret that a server made for this data directory: on its Redis, nobody may use another."""
    try:
        return (data_dir / "secret").read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{data_dir / 'secret'} cannot be read: {error.strerror}.") from None


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work results in, or None when it was stopped before: the engine then still closes in order."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    while not task.done():
        task.cancel()
        # Asked again: redis-py waits through wait_for, which before Python 3.12 may swallow a cancellation.
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_SECONDS)
    return None if task.cancelled() else task.result()
