"""The documents as the tests read them: their pages, tables and blocks of code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.engine import Engine

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


@contextlib.asynccontextmanager
async def running(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is ended in the end."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment())
    try:
        yield process
    finally:
        # One that only answers a question has ended already.
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        # Closes the pipe now, and not when it is collected.
        process._transport.close()  # type: ignore[attr-defined]


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def lines_until(process: asyncio.subprocess.Process, last: str) -> list[str]:
    """What a process prints, up to the line that has this in it."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or last not in lines[-1]:
        lines.append((await asyncio.wait_for(process.stdout.readline(), 10)).decode().rstrip("\n"))
        assert lines[-1], "it ended"
    return lines


async def some_of_each(engine: Engine) -> tuple[list[str], str]:
    """Tickets that are paid, cancelled and left alone, and one that runs out after all of them."""
    await engine.create_sale("gig", name="The Gig", capacity=100, hold_ms=600)
    await engine.create_sale("last", name="Last", capacity=1, hold_ms=1200)
    tickets = [await engine.reserve("gig", buyer="ann", quantity=1) for _ in range(9)]
    last = await engine.reserve("last", buyer="ann", quantity=1)
    for paid in tickets[:3]:
        await engine.confirm(paid.id, buyer="ann")
    for cancelled in tickets[3:6]:
        await engine.cancel(cancelled.id, buyer="ann")
    return [ticket.id for ticket in tickets[6:]], last.id


class Served(NamedTuple):
    """A server as the README starts it: the directory that it was started in, its address, and what it printed."""

    directory: Path
    address: str
    printed: list[str]
    process: subprocess.Popen[str]


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Served]:
    """A server in a directory, that ends in good order unless somebody has killed it."""
    command = ["holdfast", "serve", "--demo", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=directory, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    printed: list[str] = []
    try:
        while len([line for line in printed if line.startswith("  curl")]) < 3:
            line = process.stdout.readline()
            assert line, "it did not start"
            printed.append(line.rstrip("\n"))
        yield Served(directory, printed[0].rpartition(" ")[2], printed, process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(20)
        process.stdout.close()
    assert process.returncode in (0, -9)


def run_shell(served: Served, pieces: list[str], seconds: float = 50) -> tuple[list[list[int]], list[str]]:
    """Runs pieces of shell one after the other in one shell; of each the statuses of its calls, and its output."""
    script = [
        "set -eu",
        """curl() { command curl "$@" -w '%{stderr}%{http_code} '; }""",
        *(f"{piece.replace(ADDRESS, served.address)}\necho; echo ---; echo --- >&2" for piece in pieces),
    ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=served.directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    statuses = [[int(word) for word in part.split() if word.isdigit()] for part in done.stderr.split("---\n")[:-1]]
    return statuses, [part.strip() for part in done.stdout.split("---\n")[:-1]]


#: Members that differ from run to run.
VOLATILE = ("id", "reserved_at", "expires_at", "expires_in_ms", "purchased_at", "request_id", "retry_after_ms")


def steady(text: str) -> Any:
    """An answer without what differs from run to run."""
    return json.loads(text, object_hook=lambda value: {k: "..." if k in VOLATILE else v for k, v in value.items()})
