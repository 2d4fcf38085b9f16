"""The application behind `holdfast`: its commands, where settings come from, and how mistakes are told.

A setting is looked for in its flag, then in `HOLDFAST_` and its name in capitals, then in `holdfast.toml`.
Commands are loaded when they are called: `holdfast --help` needs neither the engine nor the server.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from cyclopts import App, Group, Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Env
from cyclopts.exceptions import CycloptsError

# Exit statuses.
OK: Final = 0
#: An audit that disagrees, a sale that is not ready: the call was right, and something is wrong.
FOUND_WRONG: Final = 1
#: A flag that does not exist, a value that can never be right, a sale that nobody knows.
WRONG_CALL: Final = 2

#: The settings file, in the directory in which the command is run.
SETTINGS_FILE: Final = Path("holdfast.toml")

#: What the variables of all settings begin with.
ENV_PREFIX: Final = "HOLDFAST_"


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
    return frozenset().union(*(_names(each.assemble_argument_collection()) for each in commands()))


def _names(arguments: ArgumentCollection) -> frozenset[str]:
    return frozenset(argument.name.removeprefix("--") for argument in arguments)


# Commands -------------------------------------------------------------------------------------------------------------

app = App(
    name="holdfast",
    help="Sell scarce things under a stampede: reserve, pay, expire, and never sell one twice.",
    version=lambda: _version(),
    default_parameter=Parameter(negative=()),
    config=[Env(ENV_PREFIX, command=False), _from_file],
)


def _version() -> str:
    from importlib.metadata import version

    return version("holdfast")


def _command(name: str, module: str, group: Group, sentence: str) -> None:
    """Name a command, which is the `App` of this name in a module beside this one.

    Parameters
    ----------
    sentence: what the command does, in the list of all; the same as in its docstring, without loading it.
    """
    app.command(f"{__package__}.{module}:{name}", name=name, group=group, help=sentence)


SERVING: Final = Group("Serving", sort_key=1)
CARE: Final = Group("Care", sort_key=3)
WATCHING: Final = Group("Watching", sort_key=4)

_command("serve", "serve", SERVING, "Serve the HTTP API until Ctrl-C or SIGTERM.")
_command("recover", "care", CARE, "Rebuild from the store what Redis has lost.")
_command("audit", "care", CARE, "Compare what Redis counts with what the ledger tells, and change nothing.")
_command("listen", "listen", WATCHING, "Print each expired ticket as one line of JSON, until Ctrl-C.")


def commands(of: App = app) -> Iterator[App]:
    """Every command that can be called, `sale create` as well as `serve`; loads them all."""
    for name in of:
        if not name.startswith("-"):
            if of[name].default_command is not None:
                yield of[name]
            yield from commands(of[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments: what was typed after `holdfast`; None takes it from the process.

    Returns
    -------
    The exit status. A mistake is told in one line on standard error, and never with a secret in it.
    """
    try:
        _name_unknown_variables()
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(str(error), WRONG_CALL)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return OK
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        return _complain(str(error), status)
    return status if isinstance(status, int) else OK


def _name_unknown_variables() -> None:
    ours = sorted(name for name in os.environ if name.startswith(ENV_PREFIX))
    known = {ENV_PREFIX + name.upper().replace("-", "_") for name in _setting_names()} if ours else set()
    for name in ours:
        if name not in known:
            print(f"holdfast: {name} is set, and there is no such setting", file=sys.stderr)


def _status_of(error: Exception) -> int | None:
    """The exit status of a refusal of the engine; None for what is none."""
    from holdfast.engine import ConfigurationError, HoldfastError

    if not isinstance(error, HoldfastError):
        return None
    return WRONG_CALL if isinstance(error, ConfigurationError) else FOUND_WRONG


def _complain(sentence: str, status: int) -> int:
    print("holdfast:", " ".join(sentence.split()), file=sys.stderr)
    return status
