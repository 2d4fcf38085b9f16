"""docs/howto/postgresql.md: its SQL, on a real server, from an empty one to the reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from documents import ROOT, examples

from holdfast.engine import Engine
from holdfast.engine.values import ItemSpec

PAGE = (ROOT / "docs" / "howto" / "postgresql.md").read_text()


def statements(block: str) -> list[str]:
    return [each.strip() for each in block.split(";") if each.strip()]


async def test_the_statements_in_their_order(empty_redis: str, start_postgres: Callable[..., Any]) -> None:
    import asyncpg
    import postgresql

    server = start_postgres()
    made, looks, *queries = (block.text for block in examples(PAGE, "sql"))
    # The superuser of the tests has that name already.
    made = made.replace("ROLE holdfast", "ROLE seller").replace("OWNER holdfast", "OWNER seller")
    for statement in statements(made):
        # Each by itself: a database is made outside of any transaction.
        postgresql.query(server.url(), statement)

    def url(role: str) -> str:
        (password,) = re.findall(rf"CREATE ROLE {role} LOGIN PASSWORD '([^']+)'", made + looks)
        return f"postgresql://{role}:{quote(password)}@/holdfast?host={quote(str(server._run), safe='')}"

    async with Engine.connect(empty_redis, store=url("seller")) as engine:
        await engine.create_sale("gig", name="The Gig", items=[ItemSpec("seat", 10), ItemSpec("box", 5)])
        for buyer in ("ann", "bob"):
            ticket = await engine.reserve("gig", buyer=buyer, lines={"seat": 2, "box": 1})
            await engine.confirm(ticket.id, buyer=buyer, reference=f"pay_{buyer}")
        await engine.reserve("gig", buyer="cleo", lines={"seat": 1})
        await engine.snapshot()

    for statement in statements(looks):
        # The database's owner grants what is in it; roles are the superuser's.
        postgresql.query(url("seller") if statement.startswith("GRANT SELECT") else server.url(), statement)
    asked = [postgresql.query(url("reports"), each) for query in queries for each in statements(query)]
    units, pace, references, behind, alarms, sizes = asked
    assert units == [("gig", "box", 2), ("gig", "seat", 4)]
    assert [(sale, count) for sale, _, count, _ in pace] in ([("gig", 2)], [("gig", 1), ("gig", 1)])
    assert [reference for reference, *_ in references] == ["pay_ann", "pay_bob"]
    assert behind == alarms == []
    assert {"tickets", "ledger", "slots"} <= {name for name, _ in sizes}
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        postgresql.query(url("reports"), "SELECT * FROM kept")
