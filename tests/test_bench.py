"""The harness of the benchmarks: what it reads and reckons, and that it has every row. Nothing is measured here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

BENCH = Path(__file__).resolve().parent / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Imports a module of the harness by name, without a folder of tests on the path."""
    spec = importlib.util.spec_from_file_location(
        "bench", BENCH / "__init__.py", submodule_search_locations=[str(BENCH)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["bench"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    yield lambda name: importlib.import_module(f"bench.{name}")
    for name in [name for name in sys.modules if name == "bench" or name.startswith("bench.")]:
        del sys.modules[name]


@pytest.fixture
def empty(bench: Any, tmp_path: Path) -> Any:
    """A bench on which nothing was measured yet."""
    plan = bench("plan")
    return plan.Bench(plan.QUICK, bench("machine").Cores(), tmp_path, lambda text: None)


#: What wrk 4.1 prints with our scripts.
WRK = """Running 1s test @ http://127.0.0.1:8080
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.10ms    1.02ms  22.10ms   91.00%
    Req/Sec    15.61k     1.20k   17.00k    80.00%
  15610 requests in 1.00s, 9.10MB read
Requests/sec:  15610.00
Transfer/sec:      9.10MB

RESULT {"requests":15610,"seconds":1.000100,"refused":3,"broken":0,"timeouts":0,"p50_us":4000,"p99_us":9000,"statuses":{"201":15607,"409":3}}
"""  # noqa: E501

REDIS_BENCHMARK = """"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms"
"EVALSHA e0e1 3 a b c","152905.20","0.312","0.120","0.300","0.500"
"""


def test_wrk_is_read(bench: Any) -> None:
    result = bench("load").parse_wrk(WRK, 0.5)
    assert (result.requests, result.refused, result.seconds) == (15610, 3, 1.0001)
    assert (result.statuses, result.p99_us, result.cpu) == ({"201": 15607, "409": 3}, 9000, 0.5)


def test_a_wrk_that_broke_is_no_result(bench: Any) -> None:
    load = bench("load")
    with pytest.raises(load.Wrong, match="unable to connect"):
        load.parse_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def test_redis_benchmark_is_read(bench: Any) -> None:
    assert bench("load").parse_redis_benchmark("WARNING: no config\n" + REDIS_BENCHMARK) == 152905.2


def test_a_redis_benchmark_that_broke_is_no_result(bench: Any) -> None:
    load = bench("load")
    with pytest.raises(load.Wrong, match="refused"):
        load.parse_redis_benchmark("Could not connect to Redis: Connection refused")


def test_medians_and_spread(bench: Any) -> None:
    measure = bench("measure")
    assert measure.Spread.of([3.0, 1.0, 2.0]).as_json() == {"median": 2.0, "min": 1.0, "max": 3.0}
    # Of each round, and not of the medians: 10/10, 9/3, 8/4.
    assert measure.ratios([10.0, 9.0, 8.0], [10.0, 3.0, 4.0]).as_json() == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_a_sample_reckons_by_what_was_counted(bench: Any) -> None:
    sample = bench("measure").Sample(2000, 2.0, {"server": 1.9, "database": 0.1, "generator": 0.5})
    assert (sample.rate, sample.busy("server")) == (1000.0, 0.95)
    assert sample.cpu_us("server", "database") == pytest.approx(1000.0)


def test_cpu_time_is_read(bench: Any) -> None:
    measure = bench("measure")
    before = measure.cpu_seconds(os.getpid())
    give_up = time.monotonic() + 20
    while measure.cpu_seconds(os.getpid()) < before + 0.05:
        assert time.monotonic() < give_up
    assert measure.cpu_seconds(os.getpid(), without=[os.getpid()]) == 0.0
    assert measure.read_process(2**22 + 1) is None


def test_latencies_by_when_they_were_due(bench: Any) -> None:
    pytest.importorskip("hdrh", reason="the extra 'bench' is not installed: make bench brings it")
    seen = bench("load").OpenLoop([1.0, 2.0, 3.0], [0.001, 0.010, 0.100], {"201": 3}, 0, 0, 0.0)
    assert seen.p99_ms(0.0, 2.5) == pytest.approx(10, rel=0.01)
    assert seen.p99_ms() == pytest.approx(100, rel=0.01)


#: The rows of the table of figures to reach, and those beside it.
TABLE = [
    "reserve", "pay", "sold-out", "cpu", "postgres", "engine-reserve", "engine-pairs", "engine-batches",
    "durability", "batch",
    "redis-cpu", "memory", "latency", "expiry-100k", "expiry-1m", "snapshot",
]  # fmt: skip
BESIDE = ["workers", "scale", "shards", "processes"]


def test_every_row_of_the_table_is_there(bench: Any) -> None:
    assert [row.key for row in bench("rows").ROWS] == TABLE + BESIDE


def test_sales_are_spread_evenly(bench: Any) -> None:
    sales = bench("sales")
    names = sales.spread_names(60)
    assert len(set(names)) == 60
    for nodes in bench("scale").NODES:
        on = Counter(key_slot(name.encode()) * nodes // sales.SLOTS for name in names)
        assert set(on.values()) == {60 // nodes}


def test_what_processes_did_at_the_same_time_is_one_sample(bench: Any) -> None:
    one = {"count": 10, "server": 0.1, "nodes": [0.5], "calls": 8.0, "seconds": 1.0}
    other = {"count": 30, "server": 0.2, "nodes": [0.6], "calls": 9.0, "seconds": 1.1}
    both = bench("several").together([one, other])
    assert both == one | {"count": 40, "server": pytest.approx(0.3)}


def test_every_run_has_a_stack_that_can_do_it(bench: Any, empty: Any) -> None:
    scenarios = {
        "HttpStack": {"reserve", "reserve_few", "pay", "sold_out", "batch"},
        "FlashScript": {"1", "16"},
    }
    (empty.scratch / "answers.json").write_text("{}")
    for row in bench("rows").ROWS:
        for run in (*row.runs, *row.optional):
            stack = empty._make(run.stack)
            kinds = {kind.__name__ for kind in type(stack).__mro__}
            assert stack.name == run.stack
            known = getattr(stack, "SCENARIOS", None) or next(scenarios[kind] for kind in scenarios if kind in kinds)
            assert run.scenario in known


def test_what_was_skipped_says_why_and_what_failed_says_what(bench: Any, empty: Any) -> None:
    rows, report = bench("rows"), bench("report")
    empty.missing[rows.FASTIFY] = "no Node.js"
    empty.failures[rows.BARE_RESERVE] = "it broke"
    result = report.as_json(empty, rows.chosen(["reserve", "cpu"]), bench("machine").describe(), "quick")
    reserve, cpu = (row["figures"] for row in result["rows"])
    assert (report.verdict(reserve[0]), reserve[0]["failed"]) == ("FAILED", "it broke")
    assert (report.verdict(cpu[0]), cpu[0]["skipped"]) == ("SKIPPED", "no Node.js")
    assert "SKIPPED: no Node.js" in report.markdown(json.loads(json.dumps(result)))


def test_a_figure_says_whether_it_was_reached(bench: Any, empty: Any) -> None:
    rows, report, measure = bench("rows"), bench("report"), bench("measure")
    for run, count in ((rows.RESERVE, 900), (rows.BARE_RESERVE, 1000)):
        empty.samples[run] = [measure.Sample(count, 1.0, {"server": 1.0})] * 2
    (row,) = rows.chosen(["reserve"])
    (figure,) = row.figures(empty)
    assert (figure.reached, figure.ratio.median) == (True, 0.9)
    empty.samples[rows.RESERVE] = [measure.Sample(500, 1.0, {"server": 0.5})] * 2
    (figure,) = row.figures(empty)
    assert figure.reached is False
    assert "used only 50% of its core" in figure.note
    assert report.verdict(figure.as_json()) == "NOT REACHED"


def test_an_unknown_row_is_refused(bench: Any) -> None:
    with pytest.raises(ValueError, match="no row 'speed'"):
        bench("rows").chosen(["speed"])


def test_figures_go_into_the_page_and_nothing_else_changes(bench: Any, empty: Any, tmp_path: Path) -> None:
    report, page = bench("report"), tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    report.put_into(page, report.as_json(empty, [], bench("machine").describe(), "quick"))
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "stale" not in text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        report.put_into(page, report.as_json(empty, [], bench("machine").describe(), "quick"))


def test_the_documented_page_has_a_place_for_the_figures(bench: Any) -> None:
    report = bench("report")
    page = (BENCH.parent.parent / "docs" / "benchmarks.md").read_text()
    assert page.count(report.BEGIN) == page.count(report.END) == 1
    assert all(f"`{row.key}`" in page for row in bench("rows").ROWS), "a row is not documented"


def test_without_node_there_is_a_reason(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = bench("machine")
    monkeypatch.setattr(machine.shutil, "which", lambda command: None)
    with pytest.raises(machine.Missing, match=r"no Node\.js"):
        machine.node_packages()


def test_nothing_is_installed_by_those_who_may_not(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = bench("machine")
    monkeypatch.setattr(machine.shutil, "which", lambda command: None)
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(machine.Missing, match="package wrk is not installed"):
        machine.find("wrk")
