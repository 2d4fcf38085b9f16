"""The application behind `holdfast`: its commands, where settings come from, and how mistakes are told.

A setting is looked for in its flag, then in `HOLDFAST_` and its name in capitals, then in `holdfast.toml`.
Commands are loaded when they are called: `holdfast --help` needs neither the engine nor the server.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from cyclopts import App, Group, Parameter
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.config import Dict, Env
from cyclopts.exceptions import CycloptsError, MissingArgumentError

# Exit statuses.
OK: Final = 0
#: An audit that disagrees, a sale that is not ready: the call was right, and something is wrong.
FOUND_WRONG: Final = 1
#: A flag that does not exist, a value that can never be right, a sale that nobody knows.
WRONG_CALL: Final = 2

#: Families of commands whose own flags say what a sale or a ticket is: not settings, and in no variable or file.
ABOUT_THINGS: Final = ("sale", "ticket")

#: Flags of all commands that are no settings: how it is printed.
NO_SETTINGS: Final = ("json",)

#: Settings that are secrets, or addresses with a password: what is wrong with them is told without them.
SECRETS: Final = ("operator-token", "buyer-token-key", "secret", "redis", "store")

#: The settings file, when none is named.
SETTINGS_FILE: Final = Path("holdfast.toml")

#: What the variables of all settings begin with.
ENV_PREFIX: Final = "HOLDFAST_"


# Settings from variables and the file ---------------------------------------------------------------------------------


def _from_variables(app: App, words: tuple[str, ...], arguments: ArgumentCollection) -> None:
    _VARIABLES(app, words, _settings_among(words, arguments))


_VARIABLES: Final = Env(ENV_PREFIX, command=False)


def _from_file(app: App, words: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what flag and variable left open from the settings file, which all commands share.

    Raises
    ------
    CycloptsError: it cannot be read, or has a setting that no command knows.
    """
    own = {name: argument for argument in _settings_among(words, arguments) for name in [_name(argument)]}
    if "config" not in own:
        return
    named = own["config"].tokens
    file = Path(named[0].value) if named else SETTINGS_FILE
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise CycloptsError(msg=f"There is no settings file {file}.") from None
        return
    except OSError as error:
        raise CycloptsError(msg=f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        # Not TOML, or not UTF-8.
        raise CycloptsError(msg=f"{file} cannot be read: {error}.") from None
    known = _setting_names() - {"config"}
    for name in settings:
        if name.replace("_", "-") not in known:
            raise CycloptsError(msg=f"{file}: there is no setting '{name}'.")
        if name.replace("_", "-") in SECRETS and not isinstance(settings[name], str):
            raise CycloptsError(msg=f"{file}: '{name}' must be text, in quotes.")
    here: dict[str, Any] = {name: value for name, value in settings.items() if name.replace("_", "-") in own}
    # Nested under the command: at the top, cyclopts would take the setting `recover` for the command of that name.
    for word in reversed(words):
        here = {word: here}
    Dict(here, source=str(file))(app, words, arguments)


@cache
def _setting_names() -> frozenset[str]:
    return frozenset(
        _name(argument)
        for words, command in commands()
        for argument in _settings_among(words, command.assemble_argument_collection())
    )


def _settings_among(words: Sequence[str], arguments: ArgumentCollection) -> ArgumentCollection:
    """Those of a command's arguments that are settings: what the dataclasses of settings have, and most flags."""
    about_a_thing = words[0] in ABOUT_THINGS
    some = arguments.copy()
    some[:] = [each for each in arguments if each.keys or not (about_a_thing or _name(each) in NO_SETTINGS)]
    return some


def _name(argument: Argument) -> str:
    return argument.name.removeprefix("--")


_given: dict[str, str] = {}


def _remember(app: App, words: tuple[str, ...], arguments: ArgumentCollection) -> None:
    _given.clear()
    _given.update({_name(argument): argument.tokens[0].source for argument in arguments if argument.tokens})


def given() -> Mapping[str, str]:
    """Where each setting of the command that runs came from: `cli`, `env` or the file's path; not those left out."""
    return _given


# Commands -------------------------------------------------------------------------------------------------------------

HELP: Final = Group("Help", sort_key=9)

app = App(
    name="holdfast",
    help="Sell scarce things under a stampede: reserve, pay, expire, and never sell one twice.",
    version=lambda: _version(),
    default_parameter=Parameter(negative=(), show_default=lambda value: default_text(value)),
    config=[_from_variables, _from_file, _remember],
)


def default_text(value: object) -> str | None:
    """A default as the help shows it: not that a flag is off, or that there is none of something."""
    return None if value is None or value is False or value == () else str(value)


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


for _flag in ("--help", "--version"):
    app[_flag].group = HELP

SERVING: Final = Group("Serving", sort_key=1)
SELLING: Final = Group("Selling", sort_key=2)
WATCHING: Final = Group("Watching", sort_key=3)
CARE: Final = Group("Care", sort_key=4)

_command("serve", "serve", SERVING, "Serve the HTTP API until Ctrl-C or SIGTERM.")
_command("settings", "settings", SERVING, "Show every setting, its value, and where that came from.")
_command("sale", "sale", SELLING, "Put things on sale, look at them, change them while they sell.")
_command("ticket", "ticket", SELLING, "Look at a ticket.")
_command("tail", "tail", WATCHING, "Print every transition as it happens, until Ctrl-C.")
_command("listen", "listen", WATCHING, "Print each expired ticket as one line of JSON, until Ctrl-C.")
_command("recover", "care", CARE, "Rebuild from the store what Redis has lost.")
_command("audit", "care", CARE, "Compare what Redis counts with what the ledger tells, and change nothing.")
_command("snapshot", "care", CARE, "Copy what is new into the store now, and say how much it was.")
_command("load", "load", CARE, "Drive a server with buyers, and judge it by what they were told.")


def commands(of: App = app, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command that can be called, as its words (`sale`, `create`) and itself; loads them all."""
    for name in of:
        if not name.startswith("-"):
            if of[name].default_command is not None:
                yield (*words, name), of[name]
            yield from commands(of[name], (*words, name))


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
        # Here, where a reader who has gone is no mistake, and not when the interpreter ends.
        sys.stdout.flush()
    except CycloptsError as error:
        return _complain(_mistake(error), WRONG_CALL)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return OK
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            raise
        return _complain(*refused)
    return status if isinstance(status, int) else OK


def _mistake(error: CycloptsError) -> str:
    """What cyclopts says; of a flag that was left out it says what it says of a flag without a value.

    The fields of a scenario are a model of pydantic's, whose words are for programmers.
    """
    wrong = getattr(error.__cause__, "errors", None)
    if callable(wrong):
        first = wrong()[0]
        flag = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        return f"{flag}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']}."
    if isinstance(error, MissingArgumentError) and error.keyword is None:
        return str(error).replace(" requires an argument", " is missing")
    return str(error)


def _name_unknown_variables() -> None:
    ours = sorted(name for name in os.environ if name.startswith(ENV_PREFIX))
    known = {ENV_PREFIX + name.upper().replace("-", "_") for name in _setting_names()} if ours else set()
    for name in ours:
        if name not in known:
            print(f"holdfast: {name} is set, and there is no such setting", file=sys.stderr)


def _refusal(error: Exception) -> tuple[str, int] | None:
    """A refusal of the engine as it is told here, and the exit status; None for what is none."""
    from holdfast.engine import (
        ConfigurationError,
        DurabilityUnavailable,
        HoldfastError,
        InvalidRequest,
        SaleExists,
        UnknownSale,
        UnknownTicket,
    )

    if isinstance(error, InvalidRequest):
        mistakes = (f"{_place(pointer)} {detail}" for pointer, detail in error.mistakes)
        return "; ".join(mistakes), WRONG_CALL
    if isinstance(error, (ConfigurationError, DurabilityUnavailable, SaleExists, UnknownSale, UnknownTicket)):
        return str(error), WRONG_CALL
    return (str(error), FOUND_WRONG) if isinstance(error, HoldfastError) else None


#: What a field of the engine's calls is called on the command line, where that is not its own name.
_FLAGS: Final = {"id": "SALE", "hold_ms": "--hold"}


def _place(pointer: str) -> str:
    """A place in the arguments of the engine's call as it was typed: `--hold`, or `--item, number 2: sku`."""
    field, _, rest = pointer.removeprefix("/").partition("/")
    if field == "items" and rest:
        at, _, part = rest.partition("/")
        return f"--item, number {int(at) + 1}: {part}"
    return _FLAGS.get(field, f"--{field.replace('_', '-')}")


def _complain(sentence: str, status: int) -> int:
    print("holdfast:", " ".join(sentence.split()), file=sys.stderr)
    return status
