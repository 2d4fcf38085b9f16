"""The plan of a run: what each buyer will do and when it comes, drawn from the seed before anything is sent."""

from __future__ import annotations

import random
from enum import StrEnum
from typing import NamedTuple

from .scenario import Scenario

#: Milliseconds over which a second wave is spread, around the instant at which the first holds run out.
WAVE_MS = 1_000


class Intent(StrEnum):
    """What a buyer does with a ticket."""

    PAY = "pay"
    CANCEL = "cancel"
    WALK_AWAY = "walk_away"


class Buyer(NamedTuple):
    """One buyer, or one bot.

    Parameters
    ----------
    number: from 0, over all who come. due: seconds after the start; with `clients`, when it is its turn.
    sale: which. think: seconds before it pays or cancels.
    repeats, retries, duplicates, hangs_up, comes_back: whether it does what the shares of the scenario are about.
    orders: of a bot; 0 for an honest buyer.
    """

    number: int
    due: float
    sale: int
    intent: Intent
    think: float
    repeats: bool = False
    retries: bool = False
    duplicates: bool = False
    hangs_up: bool = False
    comes_back: bool = False
    orders: int = 0


def plan(scenario: Scenario) -> list[Buyer]:
    """Everybody who comes, honest buyers first, then the second wave, then bots; each group in the order of `due`."""
    chance = random.Random(scenario.seed)
    weights = [1 / place**scenario.skew for place in range(1, scenario.sales + 1)]
    arrivals = _arrivals(scenario, chance)

    def sale() -> int:
        return chance.choices(range(scenario.sales), weights)[0] if scenario.sales > 1 else 0

    def think() -> float:
        return scenario.think_ms / 1000 * chance.uniform(0.5, 1.5)

    everybody = []
    for number, due in enumerate(arrivals):
        fate = chance.random()
        intent = (
            Intent.CANCEL
            if fate < scenario.cancel
            else Intent.WALK_AWAY
            if fate < scenario.cancel + scenario.walk_away
            else Intent.PAY
        )
        does = [
            chance.random() < share
            for share in (scenario.repeat, scenario.retry, scenario.duplicate, scenario.hang_up, scenario.come_back)
        ]
        everybody.append(Buyer(number, due, sale(), intent, think(), *does))
    begin = scenario.hold_ms / 1000 - WAVE_MS / 2000
    instants = sorted(max(0.0, begin + chance.random() * WAVE_MS / 1000) for _ in range(scenario.second_wave))
    for due in instants:
        everybody.append(Buyer(len(everybody), due, sale(), Intent.PAY, think(), retries=True))
    last = arrivals[-1] if arrivals else 0.0
    for due in sorted(chance.random() * last / 2 for _ in range(scenario.bots)):
        everybody.append(Buyer(len(everybody), due, sale(), Intent.PAY, 0.0, orders=scenario.bot_orders))
    return everybody


def _arrivals(scenario: Scenario, chance: random.Random) -> list[float]:
    """Seconds after the start at which each honest buyer comes."""
    if scenario.arrival == "clients":
        return [0.0] * scenario.buyers
    if scenario.arrival == "at-once":
        return sorted(chance.random() * scenario.within_ms / 1000 for _ in range(scenario.buyers))
    # A Poisson process by its operational time: after t seconds of a ramp of r seconds, rate * t^2 / 2r have come.
    instants, come = [], 0.0
    on_ramp = scenario.rate * scenario.ramp_s / 2
    for _ in range(scenario.buyers):
        come += chance.expovariate(1.0)
        if come < on_ramp:
            instants.append(float((2 * scenario.ramp_s * come / scenario.rate) ** 0.5))
        else:
            instants.append(scenario.ramp_s + (come - on_ramp) / scenario.rate)
    return instants
