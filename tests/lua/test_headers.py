"""Headers against code: what a script says of its keys, arguments, answers and ledger is what it does.

The reader here is no Lua parser. It knows the few shapes in which our scripts are written, and a script in another
shape fails: the shapes are the rule.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import lupa.lua51  # type: ignore[import-untyped]
import pytest

from holdfast import lua
from holdfast.engine.outcomes import Outcome

FOLDER = Path(str(files("holdfast.lua")))
INCLUDES = sorted(path.stem for path in (FOLDER / "includes").glob("*.lua"))
EVERY_FILE = [*lua.SCRIPTS, *(f"includes/{name}" for name in INCLUDES)]

#: The keys of a slot, as headers and `keys.` name them.
KEYS = ("sale", "tickets", "buyers", "deadlines", "ledger")

#: What a script may use of its surroundings: common to every server, and to the fake.
GLOBALS = {"KEYS", "ARGV", "redis", "cjson", "string", "table", "math", "ipairs", "pairs", "tonumber", "type", "unpack"}

#: Commands that take several keys, of those that scripts use.
MANY_KEYS = {"UNLINK"}
NO_KEYS = {"TIME"}


def body(name: str) -> str:
    """The code of one file: no comments, no blank lines, no includes expanded."""
    lines = (re.sub(r"(^|\s)--.*$", "", line).rstrip() for line in lua.source(name).splitlines())
    return "\n".join(line for line in lines if line)


def section(name: str, which: str) -> str:
    return lua.header(name).sections[which]


def split_top(text: str) -> list[str]:
    """Text at its commas outside brackets and quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == "'"
        depth += 0 if quoted else (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def call_arguments(code: str, function: str) -> Iterator[list[str]]:
    """The arguments of every call of a function."""
    for match in re.finditer(rf"\b{re.escape(function)}\(", code):
        depth = 1
        for end in range(match.end(), len(code)):
            depth += (code[end] in "([{") - (code[end] in ")]}")
            if not depth:
                yield split_top(code[match.end() : end])
                break


# The header itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_a_header_has_every_section_in_order(name: str) -> None:
    header = lua.header(name)
    assert header.purpose.endswith(".")
    assert list(header.sections) == ["KEYS", "ARGV", "Returns", "Ledger"]
    assert all(header.sections.values())


@pytest.mark.parametrize("name", INCLUDES)
def test_an_include_says_what_it_is(name: str) -> None:
    assert lua.source(f"includes/{name}").startswith("-- ")


# KEYS and ARGV --------------------------------------------------------------------------------------------------------


def fixed_and_rest(name: str) -> tuple[list[str], bool]:
    """The arguments that a header names one by one, and whether more follow."""
    names, rest = [], False
    for part in re.split(r"; | (?=\w+\.\.\.:)", section(name, "ARGV")):
        match = re.match(r"(\w+)(\.\.\.)?(?::|$)", part)
        if match and not match[2]:
            assert not rest, "what repeats comes last"
            names.append(match[1])
        rest = rest or bool(match and match[2]) or part.startswith("then ")
    return names, rest


def bound_arguments(code: str) -> dict[str, int]:
    """Local names and the positions in ARGV that they are bound to."""
    bound: dict[str, int] = {}
    for names, values in re.findall(r"^local ([\w, ]+) = (.*(?:\bARGV\[\d+\]).*)$", code, re.MULTILINE):
        for local, value in zip(names.split(", "), split_top(values), strict=True):
            match = re.search(r"ARGV\[(\d+)\]", value)
            assert match, f"'{local}' is bound beside arguments and is none"
            bound[local] = int(match[1])
    return bound


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_keys_are_bound_as_the_header_names_them(name: str) -> None:
    named = section(name, "KEYS").split()
    bound = re.findall(r"(\w+) = KEYS\[(\d+)\]", body(name))
    assert bound == [(key, str(at)) for at, key in enumerate(named, start=1)]
    assert set(named) <= set(KEYS)
    assert body(name).count("KEYS") == len(named), "KEYS is used elsewhere, too"


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_arguments_are_bound_as_the_header_names_them(name: str) -> None:
    code = body(name)
    named, rest = fixed_and_rest(name)
    assert named
    assert bound_arguments(code) == {argument: at for at, argument in enumerate(named, start=1)}
    first = len(named) + 1
    # One by one, as they are, or column by column.
    ways = (f"for i = {first}, #ARGV do", f"unpack(ARGV, {first})", f"local size = (#ARGV - {len(named)}) /")
    assert any(way in code for way in ways) == rest
    assert rest or not re.search(r"#ARGV|unpack\(ARGV", code)


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_keys_and_arguments_become_names_in_the_first_lines(name: str) -> None:
    code = body(name)
    beginnings = ("\nif ", "\nfor ", "\nlocal function ", "redis.call")
    end_of_bindings = min(code.find(word) for word in beginnings if word in code)
    for match in re.finditer(r"\b(?:KEYS|ARGV)\[([^\]]+)\]", code):
        if match[1].isdigit():
            assert match.start() < end_of_bindings, f"{match[0]} in the body: give it a name"
        else:
            # The entries of a batch, in a loop over them.
            assert re.fullmatch(r"i|\d( \+ (\d \* )?size)? \+ i", match[1])


@pytest.mark.parametrize("name", [f"includes/{name}" for name in INCLUDES])
def test_includes_know_nothing_of_keys_and_arguments(name: str) -> None:
    assert not re.search(r"\b(KEYS|ARGV)\b", body(name))


@pytest.mark.parametrize("name", EVERY_FILE)
def test_only_declared_keys_are_touched(name: str) -> None:
    code = body(name)
    calls = [*call_arguments(code, "redis.call"), *call_arguments(code, "redis.pcall")]
    assert len(calls) == code.count("redis.")
    for command, *arguments in calls:
        if command.strip("'") in NO_KEYS:
            assert not arguments
            continue
        for key in arguments if command.strip("'") in MANY_KEYS else arguments[:1]:
            declared = re.fullmatch(r"(?:slot\.)?keys\.(\w+)", key)
            if declared:
                assert declared[1] in KEYS
                assert name.startswith("includes/") or declared[1] in section(name, "KEYS").split()
            else:
                # A key that was handed over.
                assert (name, key) == ("includes/fence", "sale_key")


# Returns --------------------------------------------------------------------------------------------------------------


def named_outcomes(returns: str) -> set[str]:
    """The outcomes that a Returns section names: first in braces, and first in back-ticks unless it is a field."""
    braces = re.findall(r"\{([^}]*)\}", returns)
    first = {outcome for text in braces for outcome in text.split(",")[0].split("|")}
    fields = {field.strip() for text in braces for field in text.split(",")[1:]}
    return first | {match for match in re.findall(r"`(\w+)[^`]*`", returns) if match not in fields}


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_the_outcomes_answered_are_those_named(name: str) -> None:
    named = named_outcomes(section(name, "Returns"))
    silent = {"outcomes": "-- the table itself answers nothing"}
    if "open_slot(" not in body(name):
        silent["slot"] = "-- brought in by other includes, and refuses nobody"
    code = lua.load(name, silent)
    answered = set(re.findall(r"\bOUTCOME\.(\w+)", code))
    assert answered == named
    assert named <= {outcome.value for outcome in Outcome}
    assert "OUTCOME[" not in code


def test_every_outcome_is_answered_by_some_script() -> None:
    named = {outcome for name in lua.SCRIPTS for outcome in named_outcomes(section(name, "Returns"))}
    assert named == {outcome.value for outcome in Outcome}


# Ledger ---------------------------------------------------------------------------------------------------------------


def written_letters(name: str) -> set[str]:
    """The kinds of ledger lines that a script writes."""
    code = body(name)
    lines = [line for line in code.splitlines() if "log_line(" in line or "'XADD'" in line]
    letters = {letter for line in lines for letter in re.findall(r"'(\w) '", line)}
    assert len(lines) == sum(bool(re.search(r"'\w '", line)) for line in lines), "a line of no known kind"
    letters |= {arguments[5].strip("'") for arguments in call_arguments(code, "end_ticket")}
    if "sweep(slot)" in code:
        letters |= {arguments[5].strip("'") for arguments in call_arguments(body("includes/sweep"), "end_ticket")}
    if "log_reservation(" in code:
        letters |= set(re.findall(r"'(\w) '", body("includes/ledger")))
    return letters


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_the_ledger_lines_written_are_those_named(name: str) -> None:
    parts = section(name, "Ledger").split("; ")
    named = {part[0] for part in parts if re.match(r"\w ", part)}
    assert written_letters(name) == named
    assert named or parts[0].startswith("nothing")


@pytest.mark.parametrize("name", EVERY_FILE)
def test_sequences_of_the_ledger_are_explicit(name: str) -> None:
    for _, _, stream_id, *_ in (call for call in call_arguments(body(name), "redis.call") if call[0] == "'XADD'"):
        assert "*" not in stream_id


# Globals --------------------------------------------------------------------------------------------------------------


class Dumped:
    """Compiled Lua 5.1 (`string.dump`), read for the globals that it gets and sets."""

    GETGLOBAL, SETGLOBAL = 5, 7

    def __init__(self, dumped: bytes) -> None:
        assert dumped[:6] == b"\x1bLua\x51\x00"
        little, self._int, self._size, instruction, number, integral = dumped[6:12]
        assert (little, instruction, number, integral) == (1, 4, 8, 0)
        self._data = dumped
        self._at = 12
        self.got: set[str] = set()
        self.set: set[str] = set()
        self._function()

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def _integer(self, size: int | None = None) -> int:
        return int.from_bytes(self._take(size or self._int), "little")

    def _string(self) -> str:
        return self._take(self._integer(self._size)).rstrip(b"\0").decode()

    def _function(self) -> None:
        self._string()
        self._take(2 * self._int + 4)
        code = struct.unpack(f"<{(count := self._integer())}I", self._take(4 * count))
        constants = [self._constant() for _ in range(self._integer())]
        for instruction in code:
            if instruction & 0x3F in (self.GETGLOBAL, self.SETGLOBAL):
                names = self.got if instruction & 0x3F == self.GETGLOBAL else self.set
                names.add(str(constants[instruction >> 14]))
        for _ in range(self._integer()):
            self._function()
        self._take(self._int * self._integer())  # line numbers
        for _ in range(self._integer()):  # names of locals
            self._string()
            self._take(2 * self._int)
        for _ in range(self._integer()):  # names of upvalues
            self._string()

    def _constant(self) -> object:
        kind = self._integer(1)
        return {0: lambda: None, 1: lambda: self._take(1), 3: lambda: self._take(8), 4: self._string}[kind]()


def compiled(text: str) -> Dumped:
    runtime = lupa.lua51.LuaRuntime(encoding=None)
    dump = runtime.eval(b"function(text) return string.dump(assert(loadstring(text))) end")
    return Dumped(dump(text.encode()))


def test_the_reader_of_compiled_lua_finds_globals() -> None:
    found = compiled("local a = here\nlocal function f(x) return x + a + there end\nfunction made() end\nreturn f")
    assert found.got == {"here", "there"}
    assert found.set == {"made"}


@pytest.mark.parametrize("name", lua.SCRIPTS)
def test_scripts_use_no_global_but_the_common_ones(name: str) -> None:
    found = compiled(lua.load(name))
    assert found.got <= GLOBALS
    assert found.set == set()
