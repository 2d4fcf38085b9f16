"""The loader: what a script brings in, once, and what it refuses."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from holdfast import lua


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files to load instead of the packaged ones, by name."""
    texts: dict[str, str] = {}

    def source(name: str) -> str:
        try:
            return texts[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    monkeypatch.setattr(lua, "source", source)
    return texts


def test_every_script_is_there_and_no_other() -> None:
    folder = files("holdfast.lua")
    assert {path.name for path in folder.iterdir() if path.name.endswith(".lua")} == {
        f"{name}.lua" for name in lua.SCRIPTS
    }
    assert len(set(lua.SCRIPTS)) == len(lua.SCRIPTS)


def test_every_include_is_used() -> None:
    folder = Path(str(files("holdfast.lua")))
    texts = [path.read_text() for path in folder.rglob("*.lua")]
    used = {name for text in texts for name in re.findall(r"^--@include (\S+)$", text, re.MULTILINE)}
    assert {path.stem for path in (folder / "includes").glob("*.lua")} == used


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_nothing_is_left_to_include_and_nothing_stands_twice(name: str) -> None:
    text = lua.load(name)
    assert not re.search(r"^\s*--@", text, re.MULTILINE)
    functions = re.findall(r"^local function (\w+)", text, re.MULTILINE)
    assert len(functions) == len(set(functions))


def test_an_include_stands_once_however_often_it_is_asked_for(lying: dict[str, str]) -> None:
    lying |= {
        "a": "--@include left\n--@include right\n--@include base\nend_of_a",
        "includes/left": "--@include base\nleft",
        "includes/right": "--@include base\nright",
        "includes/base": "base",
    }
    assert lua.load("a") == "base\nleft\nright\nend_of_a\n"


def test_a_cycle_is_refused_with_file_and_line(lying: dict[str, str]) -> None:
    lying |= {
        "a": "-- purpose\n--@include b",
        "includes/b": "one\ntwo\n--@include c",
        "includes/c": "--@include b",
    }
    with pytest.raises(lua.IncludeError, match=r"^includes/c\.lua, line 1: 'b' includes itself$"):
        lua.load("a")
    lying["includes/c"] = "\n--@include c"
    with pytest.raises(lua.IncludeError, match=r"^includes/c\.lua, line 2: 'c' includes itself$"):
        lua.load("a")


def test_a_missing_include_is_refused_with_file_and_line(lying: dict[str, str]) -> None:
    lying |= {"a": "--@include b", "includes/b": "one\n--@include nope"}
    with pytest.raises(lua.IncludeError, match=r"^includes/b\.lua, line 2: there is no include 'nope'$"):
        lua.load("a")


def test_a_missing_script_is_refused() -> None:
    with pytest.raises(FileNotFoundError):
        lua.load("nope")


def test_an_include_can_be_replaced() -> None:
    clock = "local function clock()\n  return 42\nend"
    text = lua.load("reserve", {"clock": clock})
    assert text.count("return 42") == 1
    assert "'TIME'" not in text
    assert "'TIME'" in lua.load("reserve")


def test_only_includes_are_replaced(lying: dict[str, str]) -> None:
    lying |= {"clock": "script\n--@include clock", "includes/clock": "include"}
    assert lua.load("clock", {"clock": "replaced"}) == "script\nreplaced\n"


def test_a_header_is_read_in_sections(lying: dict[str, str]) -> None:
    lying["a"] = (
        "-- What it does.\n--\n-- KEYS     sale\n-- ARGV     one: 1;\n--          two: 2\n--@include x\n-- Returns  no"
    )
    header = lua.header("a")
    assert header.purpose == "What it does."
    assert header.sections == {"KEYS": "sale", "ARGV": "one: 1; two: 2"}
