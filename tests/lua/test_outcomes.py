"""One outcome table: what Lua answers and what Python understands are the same names."""

from __future__ import annotations

import lupa.lua51  # type: ignore[import-untyped]

from holdfast import lua
from holdfast.engine.outcomes import Outcome


def test_lua_and_python_have_the_same_outcomes() -> None:
    table = lupa.lua51.LuaRuntime().execute(lua.source("includes/outcomes") + "\nreturn OUTCOME")
    assert dict(table) == {outcome.value: outcome.value for outcome in Outcome}
