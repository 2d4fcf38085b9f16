"""What a run does: the fields of a scenario, the presets, and scenario files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from holdfast.engine import ConfigurationError, Durability
from holdfast.engine.limits import CAPACITY_MAX, HOLD_MS_MAX, NAME_PATTERN, QUANTITY_MAX, SHARDS_MAX

#: Buyers of one run: each leaves about 300 bytes for every request that it makes, and all of it is kept until the end.
BUYERS_MAX: Final = 1_000_000

#: Sales of one run: each is looked at several times a second while it sells.
SALES_MAX: Final = 50

#: Connections of all processes: what one address can have open to another is about 28,000 on Linux.
CONNECTIONS_MAX: Final = 20_000

#: Processes of one run: more than a machine has cores only take turns.
PROCESSES_MAX: Final = 64

#: Characters of a scenario's name: it stands in the ids of sales, which have 64.
NAME_CHARS_MAX: Final = 40


class Scenario(BaseModel):
    """Who comes when, what they want, and what they do with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field("custom", pattern=NAME_PATTERN, max_length=NAME_CHARS_MAX, description="What it is called.")

    sales: int = Field(1, ge=1, le=SALES_MAX, description="Sales, which buyers choose between.")
    skew: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Sale n is chosen 1/n^skew times as often as the first; 0: all alike.",
    )
    capacity: int = Field(100, ge=0, le=CAPACITY_MAX, description="Units of each sale.")
    hold_ms: int = Field(5_000, ge=100, le=HOLD_MS_MAX, description="Milliseconds that a ticket keeps its units.")
    max_per_buyer: int | None = Field(None, ge=1, description="Units that one buyer may have; absent: no limit.")

    shards: int = Field(1, ge=1, le=SHARDS_MAX, description="Slots over which the units of each sale are divided.")
    durability: Durability | None = Field(
        None, description="What payments survive: memory, fsync, replica, stored; absent: what the server says."
    )

    buyers: int = Field(100, ge=1, le=BUYERS_MAX, description="Buyers, each with a fingerprint of its own.")
    units: int = Field(1, ge=1, le=QUANTITY_MAX, description="Units that each buyer wants.")
    arrival: Literal["at-once", "rate", "clients"] = Field(
        "at-once",
        description="at-once: all together; rate: so many a second, whatever the server does; "
        "clients: so many at a time, the next when one has finished.",
    )
    within_ms: int = Field(0, ge=0, description="at-once: milliseconds over which the buyers are spread.")
    rate: float = Field(100.0, gt=0, description="rate: buyers a second, at random instants (Poisson).")
    ramp_s: float = Field(0.0, ge=0, description="rate: seconds in which it grows from nothing.")
    clients: int = Field(32, ge=1, description="clients: how many shop at a time.")
    second_wave: int = Field(
        0,
        ge=0,
        le=BUYERS_MAX,
        description="Buyers who come as the first holds run out; all try again, and pay.",
    )

    think_ms: int = Field(1_000, ge=0, description="Milliseconds before paying or cancelling, half to one and a half.")
    cancel: float = Field(0.0, ge=0, le=1, description="Share of those with a ticket who cancel it.")
    walk_away: float = Field(
        0.0, ge=0, le=1, description="Share of those with a ticket who let it run out; the rest pay."
    )
    repeat: float = Field(0.0, ge=0, le=1, description="Share who send an answered request once more, with its key.")
    retry: float = Field(0.0, ge=0, le=1, description="Share who hear all_held, wait as told, and try again.")
    retry_for_s: float = Field(30.0, gt=0, description="Seconds after which they give up trying.")
    duplicate: float = Field(0.0, ge=0, le=1, description="Share who send their request twice at once, with one key.")
    hang_up: float = Field(0.0, ge=0, le=1, description="Share who close the connection before the answer.")
    come_back: float = Field(
        0.5, ge=0, le=1, description="Share of those who hung up who then send it again, with its key."
    )
    bots: int = Field(0, ge=0, le=BUYERS_MAX, description="Bots: many orders at once, twice, hung up, and garbage.")
    bot_orders: int = Field(20, ge=1, le=10_000, description="Orders of each bot, each with a key of its own.")

    failover: bool = Field(
        False, description="A Redis may be lost meanwhile: judged is what survives that, and not what was only held."
    )

    seed: int = Field(1, ge=0, description="The same seed gives the same plan.")
    connections: int = Field(2_500, ge=1, le=CONNECTIONS_MAX, description="Connections at the most, of all processes.")
    processes: int = Field(1, ge=1, le=PROCESSES_MAX, description="Processes that send.")
    patience_s: float = Field(30.0, gt=0, description="Seconds without an answer after which a client hangs up.")

    @property
    def pay(self) -> float:
        """Share of those with a ticket who pay."""
        return 1 - self.cancel - self.walk_away


#: Scenarios by name: what it is for, and its fields.
PRESETS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "2000-for-100": (
        "2,000 buyers within a second for 100 units; most pay, some walk away, who hears all_held may try again. 20 s.",
        {
            "buyers": 2_000,
            "within_ms": 1_000,
            "capacity": 100,
            "max_per_buyer": 2,
            "hold_ms": 5_000,
            "think_ms": 1_500,
            "walk_away": 0.15,
            "cancel": 0.05,
            "retry": 0.3,
            "retry_for_s": 12.0,
            "repeat": 0.05,
            "duplicate": 0.05,
            "hang_up": 0.02,
        },
    ),
    "steady": (
        "500 buyers a second for a minute, after a ramp, with stock for everybody: what a server does day in, day out.",
        {
            "buyers": 30_000,
            "capacity": 1_000_000,
            "arrival": "rate",
            "rate": 500.0,
            "ramp_s": 5.0,
            "hold_ms": 5_000,
            "think_ms": 500,
            "walk_away": 0.1,
            "cancel": 0.1,
            "repeat": 0.02,
        },
    ),
    "expiry-storm": (
        "5,000 buyers take everything and walk away; the holds end in the same second, into which a second wave comes.",
        {
            "buyers": 5_000,
            "capacity": 5_000,
            "hold_ms": 5_000,
            "walk_away": 1.0,
            "second_wave": 5_000,
            "think_ms": 200,
        },
    ),
    "hot-sale": (
        "10,000 buyers in five seconds for 2,000 units in six shards, which lend each other the last of them. 20 s.",
        {
            "buyers": 10_000,
            "within_ms": 5_000,
            "capacity": 2_000,
            "shards": 6,
            "max_per_buyer": 2,
            "hold_ms": 5_000,
            "think_ms": 1_000,
            "walk_away": 0.1,
            "cancel": 0.05,
            "retry": 0.3,
            "retry_for_s": 12.0,
            "repeat": 0.05,
            "duplicate": 0.02,
            "hang_up": 0.02,
        },
    ),
    "bots": (
        "50 bots hammer a sale with many keys, doubles, hang-ups and garbage; 300 honest buyers still get their units.",
        {
            "buyers": 300,
            "capacity": 500,
            "max_per_buyer": 2,
            "arrival": "rate",
            "rate": 60.0,
            "hold_ms": 4_000,
            "think_ms": 500,
            "bots": 50,
            "bot_orders": 40,
        },
    ),
}


def scenario_of(preset: str | None, path: Path | None, flags: Mapping[str, Any]) -> Scenario:
    """A scenario: the preset's fields, under those of the file, under the flags.

    Parameters
    ----------
    preset: one of `PRESETS`. path: a file in TOML, whose field `preset` may name one as well. flags: by field.

    Raises
    ------
    ConfigurationError: none of these, a field that is not there or cannot be right, fields that contradict each other.
    """
    fields: dict[str, Any] = {}
    where = "the scenario"
    if path is not None:
        where = str(path)
        written = _read(path)
        fields = {name.replace("-", "_"): value for name, value in written.items()}
        named = fields.pop("preset", None)
        if named is not None and not isinstance(named, str):
            raise ConfigurationError(f"{path}: preset must be a name, such as {next(iter(PRESETS))!r}.")
        if preset is not None and named is not None:
            raise ConfigurationError(f"{path} names the preset '{named}' already; leave '{preset}' out.")
        preset = preset or named
        fields.setdefault("name", preset or "custom")
    elif preset is None and not flags:
        raise ConfigurationError(
            f"Name a scenario ({', '.join(PRESETS)}), a file with --scenario, or its fields as flags."
        )
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigurationError(f"There is no scenario '{preset}'; there are {', '.join(PRESETS)}.")
        fields = {"name": preset, **PRESETS[preset][1], **fields}
    try:
        scenario = Scenario.model_validate({**fields, **flags})
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {_sentence(error)}") from None
    return _consistent(scenario, where)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not TOML: {error}.") from None


def _sentence(error: ValidationError) -> str:
    """The first mistake in one line."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"there is no field '{name}'; there are {', '.join(Scenario.model_fields)}."
    return f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}."


def _consistent(scenario: Scenario, where: str) -> Scenario:
    if scenario.cancel + scenario.walk_away > 1:
        total = scenario.cancel + scenario.walk_away
        raise ConfigurationError(f"{where}: cancel and walk_away are {total:g} together, and cannot be more than 1.")
    if scenario.max_per_buyer is not None and scenario.units > scenario.max_per_buyer:
        raise ConfigurationError(
            f"{where}: every buyer wants {scenario.units} units and may have {scenario.max_per_buyer} (max_per_buyer)."
        )
    if scenario.processes > scenario.connections:
        raise ConfigurationError(f"{where}: {scenario.processes} processes need as many connections at least.")
    if scenario.arrival == "clients" and scenario.clients > scenario.connections:
        raise ConfigurationError(f"{where}: {scenario.clients} clients need as many connections at least.")
    return scenario
