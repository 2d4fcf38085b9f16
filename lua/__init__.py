"""The Lua scripts and what puts them together. Knows Redis and Lua, and no domain type of Python.

A script says `--@include NAME` on a line of its own to bring in `includes/NAME.lua`, once, however often asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

#: Every script, by its verb.
SCRIPTS = (
    "create",
    "amend",
    "reserve",
    "confirm",
    "cancel",
    "expire",
    "lend",
    "receive",
    "settle",
    "read",
    "mine",
    "audit",
    "drop",
    "fence",
    "clear",
    "restore",
    "unfence",
    "touch",
    "renew",
)

_INCLUDE = re.compile(r"^--@include\s+(\S+)\s*$")
_SECTION = re.compile(r"^-- (KEYS|ARGV|Returns|Ledger)\s+(.*)$")


class IncludeError(ValueError):
    """An include that is not there or that includes itself; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a script says of itself in the comment that it opens with.

    Parameters
    ----------
    purpose: its first line.
    sections: the text after `KEYS`, `ARGV`, `Returns` and `Ledger`, lines joined by one space.
    """

    purpose: str
    sections: Mapping[str, str]


def source(name: str) -> str:
    """The text of one file as it lies in the package.

    Parameters
    ----------
    name: `reserve`, or `includes/clock`.

    Raises
    ------
    FileNotFoundError: there is no such file.
    """
    return files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


def load(name: str, replaced: Mapping[str, str] | None = None) -> str:
    """A script with its includes expanded, ready for Redis.

    Parameters
    ----------
    name: one of `SCRIPTS`.
    replaced: texts to take instead of includes, by include name. Tests replace `clock` to move time.

    Raises
    ------
    IncludeError: an include is missing or part of a cycle.
    """
    return "\n".join(_expand(name, (), set(), replaced or {})) + "\n"


def header(name: str) -> Header:
    """The header of a script, for the test that holds it against the code and for the docs."""
    lines = []
    for line in source(name).splitlines():
        if not line.startswith("--") or line.startswith("--@"):
            break
        lines.append(line)
    sections: dict[str, str] = {}
    current = ""
    for line in lines[1:]:
        if match := _SECTION.match(line):
            current = match[1]
            sections[current] = match[2].strip()
        elif current:
            sections[current] += " " + line.removeprefix("--").strip()
    return Header(lines[0].removeprefix("--").strip(), {key: text.strip() for key, text in sections.items()})


def _expand(name: str, path: tuple[str, ...], done: set[str], replaced: Mapping[str, str]) -> list[str]:
    out: list[str] = []
    text = replaced.get(name.removeprefix("includes/")) if path else None
    for number, line in enumerate((text or source(name)).splitlines(), start=1):
        match = _INCLUDE.match(line)
        if not match:
            out.append(line)
            continue
        include = f"includes/{match[1]}"
        where = f"{name}.lua, line {number}"
        if include in (*path, name):
            raise IncludeError(f"{where}: '{match[1]}' includes itself")
        if include in done:
            continue
        try:
            out += _expand(include, (*path, name), done, replaced)
        except FileNotFoundError:
            raise IncludeError(f"{where}: there is no include '{match[1]}'") from None
        done.add(include)
    return out
