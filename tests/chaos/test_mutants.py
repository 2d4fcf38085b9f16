"""The checkers catch what is broken and nothing else: mutants as real servers, beside the product as it is.

Here a selection, one mutant for each checker that it alone catches; `make chaos` runs them all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from . import mutants
from .mutants import MUTANTS, SELECTION, Mutant
from .workloads import Workload

#: The workloads of the selection, each once.
PLAIN = list(dict.fromkeys(mutant.workload for mutant in SELECTION))


def name_of(what: Mutant | Callable[..., object]) -> str:
    return what.name if isinstance(what, Mutant) else what.__name__


@pytest.mark.parametrize("mutant", SELECTION, ids=name_of)
async def test_a_mutant_is_caught_by_its_checker_alone(mutant: Mutant, tmp_path: Path) -> None:
    row = await mutants.run(mutant, mutant.workload, tmp_path)
    assert row.caught_by == mutant.caught_by


@pytest.mark.parametrize("workload", PLAIN, ids=name_of)
async def test_the_product_as_it_is_passes_the_same(workload: Workload, tmp_path: Path) -> None:
    assert (await mutants.run(None, workload, tmp_path)).caught_by == ""


def test_every_checker_has_a_mutant_that_it_alone_catches() -> None:
    assert {mutant.caught_by for mutant in SELECTION} == set("CAUELH")


@pytest.mark.parametrize("mutant", MUTANTS, ids=name_of)
def test_what_a_mutant_removes_is_still_there(mutant: Mutant, tmp_path: Path) -> None:
    mutants.built(mutant, tmp_path)
    assert mutant.replacement in (tmp_path / "holdfast" / mutant.file).read_text()


@pytest.mark.parametrize("text", ["what nobody wrote", "local "])
def test_a_text_that_does_not_stand_there_once_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stands \d+ times in"):
        mutants.built(replace(MUTANTS[1], text=text), tmp_path)


def test_python_takes_the_copy_for_the_product(tmp_path: Path) -> None:
    environment = mutants.built(None, tmp_path)
    show = "import holdfast.engine, holdfast.lua, holdfast.http.cli as c; print(holdfast.engine.__file__, c.__file__)"
    said = subprocess.run(
        [sys.executable, "-P", "-c", show], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [
        str(tmp_path / "holdfast" / "engine" / "__init__.py"),
        str(tmp_path / "holdfast" / "http" / "cli" / "__init__.py"),
    ]
