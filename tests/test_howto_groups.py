"""docs/howto/sentinel.md and docs/howto/cluster.md: done as they say, on a machine of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks, environment

#: What it takes to be alone with all ports, and to leave no process behind.
NEEDED = ("unshare", "ip", "redis-server", "redis-cli", "curl")

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, NEEDED)), reason=f"takes root, and {', '.join(NEEDED)}"
    ),
    # Several servers, and waiting for elections.
    pytest.mark.timeout(300),
]

#: Seconds for a page: more than it ever takes, less than the test has.
PATIENCE = 240


def run_page(name: str, directory: Path) -> list[tuple[Block, str, Block | None]]:
    """Carries out the page's commands in one shell: of each block its output, and the output that the page shows."""
    every = blocks((ROOT / "docs" / "howto" / name).read_text())
    steps = [at for at, block in enumerate(every) if block.tested is not None and block.language == "sh"]
    script = ["set -eu", "ip link set lo up", *(f"{every[at].text}\necho; echo ---" for at in steps)]
    # The first process of its own kind of machine: with it, everything ends that it has started.
    alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*alone, "bash", "-c", "\n".join(script)],
        cwd=directory,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    outputs = [part.strip() for part in done.stdout.split("---\n")[:-1]]
    shown = [every[at + 1] if at + 1 < len(every) else None for at in steps]
    return [
        (every[at], output, block if block is not None and block.tested is None and block.language == "" else None)
        for at, output, block in zip(steps, outputs, shown, strict=True)
    ]


def steady(text: str) -> list[str]:
    """Lines without what differs from run to run: which replica it is, and ids of nodes."""
    text = re.sub(r"\b[0-9a-f]{40}\b", "ID", text)
    return [re.sub(r"\b700[1-9]\b", "PORT", line).strip() for line in text.splitlines()]


@pytest.mark.parametrize(("page", "compared"), [("sentinel.md", 2), ("cluster.md", 4)])
def test_the_page(page: str, compared: int, tmp_path: Path) -> None:
    held = 0
    for block, output, shown in run_page(page, tmp_path):
        if shown is not None:
            assert steady(output) == steady(shown.text), block.text
            held += 1
    assert held == compared
