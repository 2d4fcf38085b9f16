"""The documents as the tests read them: their pages, tables and blocks of code."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: The addresses in the examples, which tests replace.
ADDRESS = "http://127.0.0.1:8080"
REDIS = "redis://localhost:6379/0"
STORE = "sqlite:///holdfast.db"


class Block(NamedTuple):
    """A block of code. `tested` is None, or what stands in the mark above it: the statuses that its calls get."""

    tested: list[int] | None
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    found = re.findall(r"(<!-- tested(?:: ([\d ]+))? -->\n)?^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [
        Block([int(status) for status in statuses.split()] if mark else None, language, text)
        for mark, statuses, language, text in found
    ]


def examples(page: str, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.tested is not None and block.language == language]


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = (line for line in page.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def first_cells(page: str) -> list[str]:
    return [row[0] for row in rows(page)]


def environment() -> dict[str, str]:
    """Ours without settings, and with this Python first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return kept | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])}
