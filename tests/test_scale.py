"""docs/scale.md: its arithmetic as it is printed."""

from __future__ import annotations

import subprocess
import sys

from documents import ROOT, blocks, environment

PAGE = (ROOT / "docs" / "scale.md").read_text()


def test_the_arithmetic() -> None:
    every = blocks(PAGE)
    tables = [at for at, block in enumerate(every) if block.language == "python"]
    assert len(tables) == 2
    for at in tables:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", every[at].text], env=environment(), capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, every[at + 1].text), done.stderr
