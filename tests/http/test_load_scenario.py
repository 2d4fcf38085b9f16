"""Scenarios and plans: what may stand in them, what beats what, and that a seed gives one plan."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import ConfigurationError
from holdfast.http.load.plan import Intent, plan
from holdfast.http.load.scenario import PRESETS, Scenario, scenario_of


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_scenario(name: str) -> None:
    scenario = scenario_of(name, None, {})
    assert scenario.name == name
    assert len(plan(scenario)) == scenario.buyers + scenario.second_wave + scenario.bots


def test_flags_beat_the_file_which_beats_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "drop.toml"
    path.write_text('preset = "steady"\nbuyers = 7\nwalk-away = 0.5\nrate = 3\n')
    scenario = scenario_of(None, path, {"rate": 4.0})
    assert (scenario.name, scenario.buyers, scenario.walk_away, scenario.rate) == ("steady", 7, 0.5, 4.0)
    assert scenario.think_ms == PRESETS["steady"][1]["think_ms"]


def test_a_file_alone_is_a_scenario(tmp_path: Path) -> None:
    path = tmp_path / "drop.toml"
    path.write_text('name = "drop"\nbuyers = 3\n')
    assert scenario_of(None, path, {}) == Scenario(name="drop", buyers=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("buyers = 0", "buyers: input should be greater than or equal to 1, not 0"),
        ('buyers = "many"', "buyers: input should be a valid integer"),
        ("buyer = 3", "there is no field 'buyer'"),
        ('arrival = "soon"', "arrival: input should be 'at-once', 'rate' or 'clients'"),
        ("cancel = 0.6\nwalk_away = 0.6", "cancel and walk_away are 1.2 together"),
        ("units = 3\nmax_per_buyer = 2", "every buyer wants 3 units and may have 2"),
        ("processes = 9\nconnections = 8", "9 processes need as many connections"),
        ('arrival = "clients"\nclients = 9\nconnections = 8', "9 clients need as many connections"),
        ("rate = nan", "rate: input should be"),
        ('preset = "no-such"', "There is no scenario 'no-such'"),
        ("preset = 3", "preset must be a name"),
        ("buyers = ", "is not TOML"),
        ('name = "Load Test"', "name: string should match"),
    ],
)
def test_a_file_that_cannot_be_right_is_told_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "drop.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        scenario_of(None, path, {})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value).strip()


def test_a_scenario_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Name a scenario"):
        scenario_of(None, None, {})
    assert scenario_of(None, None, {"buyers": 3}) == Scenario(buyers=3)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        scenario_of(None, tmp_path / "none.toml", {})
    with pytest.raises(ConfigurationError, match="There is no scenario 'flood'"):
        scenario_of("flood", None, {})


MIXED: dict[str, Any] = {
    "buyers": 4_000,
    "cancel": 0.2,
    "walk_away": 0.3,
    "retry": 0.5,
    "duplicate": 0.1,
    "sales": 4,
    "skew": 1.0,
    "second_wave": 50,
    "bots": 5,
}


def test_a_seed_gives_one_plan_and_another_gives_another() -> None:
    assert plan(Scenario(**MIXED)) == plan(Scenario(**MIXED))
    assert plan(Scenario(**MIXED)) != plan(Scenario(**MIXED, seed=2))


def test_shares_and_skew_are_kept() -> None:
    scenario = Scenario(**MIXED)
    honest = plan(scenario)[: scenario.buyers]
    intents = Counter(buyer.intent for buyer in honest)
    assert intents[Intent.CANCEL] == pytest.approx(800, abs=120)
    assert intents[Intent.WALK_AWAY] == pytest.approx(1200, abs=150)
    assert sum(buyer.retries for buyer in honest) == pytest.approx(2000, abs=150)
    assert sum(buyer.duplicates for buyer in honest) == pytest.approx(400, abs=90)
    sales = Counter(buyer.sale for buyer in honest)
    # 1, 1/2, 1/3, 1/4 of what the first is chosen.
    assert sales[0] / sales[3] == pytest.approx(4, rel=0.3)


def test_a_ramp_grows_evenly_to_the_rate() -> None:
    scenario = Scenario(buyers=20_000, arrival="rate", rate=1_000, ramp_s=10)
    due = [buyer.due for buyer in plan(scenario)]
    assert due == sorted(due)
    # 10 s of ramp bring 5,000, of which a quarter in its first half.
    assert sum(at < 5 for at in due) == pytest.approx(1_250, rel=0.15)
    assert sum(at < 10 for at in due) == pytest.approx(5_000, rel=0.1)
    assert statistics.mean(sum(second <= at < second + 1 for at in due) for second in range(11, 20)) == pytest.approx(
        1_000, rel=0.1
    )


def test_at_once_is_within_so_many_milliseconds() -> None:
    assert {buyer.due for buyer in plan(Scenario(buyers=10))} == {0.0}
    assert 0.5 < max(buyer.due for buyer in plan(Scenario(buyers=100, within_ms=1_000))) < 1.0


def test_a_second_wave_comes_when_the_first_holds_run_out_and_pays() -> None:
    scenario = Scenario(buyers=10, hold_ms=3_000, second_wave=100)
    wave = plan(scenario)[10:]
    assert all(2.5 <= buyer.due <= 3.5 and buyer.retries and buyer.intent is Intent.PAY for buyer in wave)
