"""One outcome table: what Lua answers and what Python understands are the same names."""

from __future__ import annotations

import lupa.lua51  # type: ignore[import-untyped]

from holdfast import lua
from holdfast.engine.outcomes import Outcome
from holdfast.engine.recovery import BUYER_TICKETS_MAX


def test_lua_and_python_have_the_same_outcomes() -> None:
    table = lupa.lua51.LuaRuntime().execute(lua.source("includes/outcomes") + "\nreturn OUTCOME")
    assert dict(table) == {outcome.value: outcome.value for outcome in Outcome}


def test_recovery_keeps_as_many_tickets_of_a_buyer_as_the_scripts_do() -> None:
    assert f"local BUYER_TICKETS_MAX = {BUYER_TICKETS_MAX}\n" in lua.source("includes/buyers")
