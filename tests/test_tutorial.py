"""docs/tutorial.md: done as it says, from the first command to the last."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ADDRESS, ROOT, Block, blocks, environment, run_shell, serving, steady

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()

#: What ends the server, and no other server on this machine.
KILL = "kill -9 $(cat holdfast-data/server.lock)"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")


def shown(every: list[Block], at: int) -> str | None:
    """The output that stands behind a block, if one does."""
    following = every[at + 1]
    return following.text.rstrip() if following.tested is None and following.language in ("", "json") else None


def compare(every: list[Block], at: int, output: str) -> bool:
    """Hold an output against the one in the page, but for ids and times; False when the page has none."""
    expected = shown(every, at)
    if expected is None or expected.startswith("make "):
        return False
    if every[at + 1].language == "json":
        assert list(map(steady, output.splitlines())) == list(map(steady, expected.splitlines()))
    else:
        assert [line.rstrip() for line in output.splitlines()] == [line.rstrip() for line in expected.splitlines()]
    return True


@pytest.fixture(autouse=True)
def no_redis_is_left(tmp_path: Path) -> Iterator[None]:
    """A test that fails between the kill and the next start would leave the Redis of the server that was killed."""
    yield
    record = tmp_path / "holdfast-data" / "redis" / "server.json"
    pid = json.loads(record.read_text()).get("pid") if record.exists() else None
    if pid and str(tmp_path) in os.path.realpath(f"/proc/{pid}/cwd"):
        os.kill(pid, signal.SIGTERM)


@pytest.mark.timeout(240)
def test_the_tutorial(tmp_path: Path) -> None:
    every = blocks(TUTORIAL)
    steps = [at for at, block in enumerate(every) if block.tested is not None and block.language == "sh"]
    (killing,) = (at for at in steps if KILL in every[at].text)
    with serving(tmp_path) as served:
        first = [at for at in steps if at <= killing]
        pieces = [every[at].text.replace("holdfast load", f"holdfast load --url {served.address}") for at in first]
        statuses, outputs = run_shell(served, pieces, seconds=150)
        assert statuses == [every[at].tested for at in first]
        compared = sum(
            compare(every, at, output)
            for at, output in zip(first, outputs, strict=True)
            if "load" not in every[at].text
        )
        assert compared >= 4
        (load,) = (output for at, output in zip(first, outputs, strict=True) if "holdfast load" in every[at].text)
        verdict = "GOOD: 10 checks passed"
        assert verdict in load
        assert verdict in TUTORIAL
        assert list(tmp_path.glob("holdfast-load-*.html"))
    assert served.process.returncode == -9
    with serving(tmp_path) as served:
        last = [at for at in steps if at > killing]
        _, outputs = run_shell(served, [every[at].text for at in last])
        assert [compare(every, at, output) for at, output in zip(last, outputs, strict=True)] == [True] * len(last)


def test_the_lines_that_the_tutorial_shows_first_are_printed(tmp_path: Path) -> None:
    (start,) = (block.text.splitlines() for block in blocks(TUTORIAL) if block.text.startswith("Holdfast serves on"))
    made = re.compile(r"(?<=token[:=])\s*\S{32}")
    with serving(tmp_path) as served:
        printed = [made.sub("...", line.replace(served.address, ADDRESS)) for line in served.printed]
    assert [made.sub("...", line) for line in start] == printed[: len(start)]


def test_the_engine_in_the_tutorial(tmp_path: Path) -> None:
    every = blocks(TUTORIAL)
    (at,) = (at for at, block in enumerate(every) if block.language == "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", every[at].text],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, every[at + 1].text), done.stderr
