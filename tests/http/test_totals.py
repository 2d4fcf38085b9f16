"""Figures shared between processes: whole or not at all, and never forgotten by a death."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.http import totals as totals_module
from holdfast.http.totals import Figures, Totals, add_up


@pytest.fixture
def file() -> Iterator[int]:
    fileno = Totals.create()
    yield fileno
    os.close(fileno)


def figures(count: float) -> Figures:
    return {"calls": {"a": [count], "b": [1, 2]}}


def test_others_are_read_and_added_up(file: int) -> None:
    one, two, three = (Totals(file, place) for place in range(3))
    assert list(one.others()) == []
    two.write(figures(3), {"open": {"": [1]}})
    three.write(figures(4), {"open": {"": [2]}})
    mine = figures(5)
    for theirs, _ in one.others():
        add_up(mine, theirs)
    assert mine == {"calls": {"a": [12], "b": [3, 6]}}
    assert [now for _, now in two.others()] == [{"open": {"": [2]}}]


def test_a_place_is_taken_over_with_what_was_counted_there(file: int) -> None:
    first = Totals(file, 1)
    for count in range(5):
        first.write(figures(count), {})
    successor = Totals(file, 1)
    assert successor.before == figures(4)
    successor.write(figures(9), {})
    assert [sums for sums, _ in Totals(file, 0).others()] == [figures(9)]


def test_what_a_dead_process_had_is_over_and_what_it_counted_stays(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Totals(file, 1).write(figures(3), {"open": {"": [7]}})
    reader = Totals(file, 0)
    assert list(reader.others()) == [(figures(3), {"open": {"": [7]}})]
    monkeypatch.setattr(totals_module, "FRESH_SECONDS", -1.0)
    assert list(reader.others()) == [(figures(3), {})]


@pytest.mark.parametrize("written", [1, 2, 3])
def test_who_dies_while_writing_leaves_what_was_there_before(
    file: int, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Totals(file, 1)
    for count in range(1, written + 1):
        writer.write(figures(count), {})

    def torn(fileno: int, content: bytes, offset: int) -> int:
        real(fileno, content[: len(content) // 2], offset)
        raise KeyboardInterrupt

    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", torn)
        with pytest.raises(KeyboardInterrupt):
            writer.write(figures(100), {})
    assert [sums for sums, _ in Totals(file, 0).others()] == [figures(written)]
    assert Totals(file, 1).before == figures(written)


def test_what_does_not_fit_is_not_written(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals_module, "HALF_BYTES", 200)
    writer = Totals(file, 0)
    writer.write(figures(1), {})
    with pytest.raises(ValueError, match="do not fit"):
        writer.write({"calls": {"x" * 300: [1]}}, {})
    assert Totals(file, 0).before == figures(1)


READ_WHILE_WRITTEN = """
import sys, time
from holdfast.http.totals import Totals
writer = Totals(int(sys.argv[1]), 1)
count, end = 0, time.monotonic() + 3
while time.monotonic() < end:
    count += 1
    writer.write({"calls": {str(at): [count] for at in range(2000)}}, {})
"""


def test_a_reader_never_sees_half_of_it(file: int) -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", READ_WHILE_WRITTEN, str(file)], pass_fds=(file,)) as process:
        reader, seen, last = Totals(file, 0), 0, 0.0
        while process.poll() is None:
            for sums, _ in reader.others():
                counts: set[Any] = {figure for (figure,) in sums["calls"].values()}
                (count,) = counts
                # At most the one before, while the newest is being written.
                assert count >= last
                last, seen = count, seen + 1
    assert process.returncode == 0
    assert seen > 10
