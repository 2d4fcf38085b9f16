"""`holdfast settings`: every setting, its value, and where that came from."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from cyclopts import App, Parameter

from ..settings import ServeSettings
from .app import ENV_PREFIX, OK, given
from .output import Json, print_json, print_table

#: What stands in the place of a secret.
MASK: Final = "***"

#: Settings that are addresses: of them the password is masked, and the rest is shown.
ADDRESSES: Final = ("redis", "store")

settings = App(
    name="settings",
    help_epilogue="""\
Examples:

    holdfast settings
    holdfast settings --config /etc/holdfast.toml --json
""",
)


@settings.default
def _settings_command(
    *, json: Json = False, settings: Annotated[ServeSettings | None, Parameter(name="*")] = None
) -> int:
    """Show every setting, its value, and where that came from.

    It takes the flags of `holdfast serve`. Secrets are masked.
    """
    values = settings or ServeSettings()
    rows = [
        {
            "setting": field.name,
            "value": _shown(field, getattr(values, field.name)),
            "from": _origin(field.name),
        }
        for field in dataclasses.fields(values)
    ]
    if json:
        print_json(rows)
    else:
        print_table(
            ("setting", "value", "from"),
            [(f"--{str(row['setting']).replace('_', '-')}", _text(row["value"]), row["from"]) for row in rows],
        )
    return OK


def _shown(field: dataclasses.Field[object], value: object) -> object:
    """A value as JSON has it, without secrets."""
    if isinstance(value, str) and field.name in ADDRESSES:
        return _masked(value)
    if value is not None and not field.repr:
        return MASK
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _text(value: object) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _masked(address: str) -> str:
    """An address without its password; all of it masked, where that cannot be told apart for certain."""
    try:
        parts = urlsplit(address)
        user, at, place = parts.netloc.rpartition("@")
        query = [(name, MASK if "password" in name else value) for name, value in parse_qsl(parts.query, True)]
    except ValueError:
        return MASK
    # What follows a '#' or a second '@' may be the rest of a password whose special characters were not escaped.
    if not parts.scheme or parts.fragment or "@" in user + parts.path:
        return MASK
    if at:
        name, colon, _ = user.partition(":")
        place = f"{name}:{MASK}@{place}" if colon else f"{name}@{place}"
    return urlunsplit((parts.scheme, place, parts.path, urlencode(query, safe="*/,=-"), ""))


def _origin(name: str) -> str:
    """Where a setting came from: its flag, its variable, a line of the file, or the default."""
    source = given().get(name.replace("_", "-"))
    if source is None:
        return "default"
    if source == "cli":
        return "flag"
    if source == "env":
        return f"{ENV_PREFIX}{name.upper()}"
    return f"{source}{_line(Path(source), name)}"


def _line(file: Path, name: str) -> str:
    """`:3`, when that is where the file sets it. It is flat: a setting is a line that begins with its name."""
    key = re.compile(rf"""\s*["']?{re.sub("_", "[-_]", name)}["']?\s*=""")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    at = next((at for at, line in enumerate(lines, 1) if key.match(line)), None)
    return "" if at is None else f":{at}"
