"""docs/howto/rehearsal.md: its commands, beside a server."""

from __future__ import annotations

import re
from pathlib import Path

from documents import ROOT, blocks, run_shell, serving

METRIC = re.compile(r"`(holdfast_\w+)`")

REHEARSAL = (ROOT / "docs" / "howto" / "rehearsal.md").read_text()


def test_the_commands_of_the_rehearsal(tmp_path: Path) -> None:
    steps = [block for block in blocks(REHEARSAL) if block.tested is not None]
    with serving(tmp_path) as served:
        _, outputs = run_shell(served, [block.text for block in steps])
        assert len(outputs) == 2
        assert "opens: 2099-11-27T12:00:00.000Z" in outputs[0]
        # The Redis that Holdfast has started is found as the page finds it.
        (line,) = (line for line in REHEARSAL.splitlines() if "server.json" in line)
        _, (pid,) = run_shell(served, [line.replace("kill -9 ", "echo ")])
        assert b"redis" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert (ROOT / "http" / "worker.py").exists()
    assert "pgrep -f 'holdfast.http.worker'" in REHEARSAL


def test_the_metrics_that_are_named_are_there() -> None:
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    named = {name for page in (ROOT / "docs" / "howto").glob("*.md") for name in METRIC.findall(page.read_text())}
    assert len(named) >= 2
    assert {name for name in named if f"| `{name}` |" not in metrics} == set()
