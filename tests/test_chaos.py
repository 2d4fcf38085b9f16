"""The fault runs: their parts, that every row of the table is there, and a few of them in short."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHAOS = Path(__file__).resolve().parent / "chaos"


@pytest.fixture(scope="module")
def chaos() -> Iterator[Any]:
    """Imports a module of the fault runs by name, without a folder of tests on the path."""
    spec = importlib.util.spec_from_file_location(
        "chaos", CHAOS / "__init__.py", submodule_search_locations=[str(CHAOS)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["chaos"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    yield lambda name: importlib.import_module(f"chaos.{name}")
    for name in [name for name in sys.modules if name == "chaos" or name.startswith("chaos.")]:
        del sys.modules[name]


def test_every_row_of_the_table_is_there(chaos: Any) -> None:
    cases = chaos("rows").CASES
    assert sorted({case.row for case in cases}) == list(range(1, 21))
    assert len({case.name for case in cases}) == len(cases)
    # A quick selection leaves no row out.
    assert {case.row for case in cases if case.quick} == set(range(1, 21))


def test_what_did_not_run_counts_as_missing(chaos: Any, tmp_path: Path) -> None:
    plan, runner, report = chaos("plan"), chaos("runner"), chaos("report")

    async def skips(run: Any) -> None:
        raise chaos("servers").Skipped("no such thing here")

    async def breaks(run: Any) -> None:
        raise chaos("servers").Broken("it leaked")

    said: list[str] = []
    cases = [plan.Case(1, "fault", form, play) for form, play in (("one", skips), ("other", breaks))]
    table = report.lines(list(runner.run_all(cases, 7, tmp_path, False, said.append)))
    assert [line.verdict for line in table] == ["SKIPPED", "FAILED"]
    assert [line.remark for line in table] == ["no such thing here", "it leaked"]
    # Only what went wrong is kept, and it says how to see it again.
    assert [path.name for path in tmp_path.iterdir()] == ["01-other-seed7-0"]
    assert "make chaos ARGS='--rows 1 --form other --seed 7'" in "\n".join(said)
    assert "| 1 | fault: one |" in report.markdown(table, [], "here")


def test_choices_hang_on_the_seed(chaos: Any, tmp_path: Path) -> None:
    plan = chaos("plan")
    case = chaos("rows").CASES[0]
    drawn = [plan.Run(case, seed, 0, tmp_path, print).rng.random() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_requests_are_read_back(chaos: Any) -> None:
    clients, replay, history, wire = (chaos(name) for name in ("clients", "replay", "history", "wire"))
    ask = clients.Ask(history.Call.RESERVE, "buyer-0001", "hot", lines=(("general", 2),), key="r-1")
    raw = wire.request(*ask.http()[:2], "here", *ask.http()[2:])
    seen = replay.described(raw, 9, "load")
    assert (seen.call, seen.buyer, seen.sale, seen.lines, seen.key) == (ask.call, ask.buyer, "hot", ask.lines, "r-1")
    assert replay.repeatable(raw)
    assert not replay.repeatable(raw.replace(b"Idempotency-Key", b"X-Other"))


def test_an_answer_that_is_somebody_elses_is_strange(chaos: Any) -> None:
    clients, history = chaos("clients"), chaos("history")
    ask = clients.Ask(history.Call.PAY, "buyer-0001", "hot", ticket="hot.a", reference="pay-1")
    answer = {"id": "hot.a", "sale": "hot", "lines": [], "reference": "pay-1", "status": "purchased"}

    def heard(**other: Any) -> Any:
        body = answer | other
        return clients.strange(ask, history.Operation(1, "b", ask.call, "hot", 1, 2, "hot.a", status=200, answer=body))

    assert heard() is None
    assert "hot.b" in heard(id="hot.b")
    assert "pay-2" in heard(reference="pay-2")


def test_a_power_loss_takes_what_was_not_flushed(chaos: Any, tmp_path: Path) -> None:
    servers, power = chaos("servers"), chaos("power")

    async def lose(fsync: str) -> tuple[int, object]:
        directory = tmp_path / fsync
        directory.mkdir()
        redis = servers.Redis(directory, kind="installed", fsync=fsync, env=power.environment(directory))
        try:
            await redis.start()
            await redis.ask("SET", "paid", "yes")
            redis.kill()
            cut = power.cut(redis)
            await redis.start()
            return cut, await redis.ask("GET", "paid")
        finally:
            redis.kill()

    try:
        cut, paid = asyncio.run(lose("always"))
        assert paid == b"yes"
        cut, paid = asyncio.run(lose("no"))
        assert (paid, cut > 0) == (None, True)
    except servers.Skipped as skipped:
        pytest.skip(str(skipped))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("row", "form"),
    [
        (2, "everysec"),
        (6, "Cluster, killed"),
        (6, "Sentinel, killed"),
        (7, "slots moved"),
        (18, "SCRIPT FLUSH"),
        (20, "deadline"),
    ],
)
def test_a_row_in_short(row: int, form: str, tmp_path: Path) -> None:
    words = ["--quick", "--rows", str(row), "--form", form, "--keep", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "chaos", *words],
        env={"PYTHONPATH": str(CHAOS.parent), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    if "SKIPPED" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(180)
def test_the_drill_in_short(tmp_path: Path) -> None:
    words = ["--seconds", "5", "--rate", "60", "--shards", "3", "--keep", str(tmp_path / "drill")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "chaos.drill", *words],
        env={"PYTHONPATH": str(CHAOS.parent), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    # The one that was killed had a shard, and all three verdicts are there.
    (killed,) = [line.split() for line in done.stdout.splitlines() if line.endswith("killed")]
    assert int(killed[1]) > 0
    assert [line.split()[0] for line in done.stdout.splitlines() if " GOOD: " in line][-3:] == [
        "load",
        "audit",
        "checkers",
    ]
