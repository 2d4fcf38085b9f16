"""Peer `postgres`: aiohttp, asyncpg and PostgreSQL, as the ticket demos do it: `SELECT ... FOR UPDATE` on the hot row.

One transaction for a reservation: lock the row of the sale, check the buyer's limit and the stock, take the units,
insert the ticket with its deadline, insert the ledger's row. A payment ends the ticket where it is still reserved and
not yet due, moves the units, and writes its row. Holds that have run out are swept five times a second.

What is done for it: uvloop, statements prepared once per connection (asyncpg's cache), a pool (its size is tried in the
set-up and the best kept), an index for each question, and as few round trips as the design allows while the row is
locked: the transaction begins with the lock, and counters, ticket and ledger are one statement. Durability is
PostgreSQL's usual one: `fsync` and `synchronous_commit` are on. A buyer is the fingerprint as it came.

Usage: python -P -m bench.peers.postgres SOCKET_DIRECTORY POOL_SIZE
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import uvloop
from aiohttp import web

#: Connections that wait to be accepted, as in `holdfast serve`.
BACKLOG = 4096

#: Seconds between two sweeps, and tickets in one.
SWEEP_S = 0.2
SWEEP_MAX = 500

SCHEMA = """
CREATE TABLE IF NOT EXISTS sales (
    id text PRIMARY KEY, available bigint NOT NULL, reserved bigint NOT NULL DEFAULT 0,
    purchased bigint NOT NULL DEFAULT 0, hold_ms bigint NOT NULL, max_per_buyer bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS tickets (
    id text PRIMARY KEY, sale text NOT NULL, buyer text NOT NULL, quantity bigint NOT NULL, status "char" NOT NULL,
    reserved_at bigint NOT NULL, expires_at bigint NOT NULL, ended_at bigint
);
CREATE INDEX IF NOT EXISTS tickets_of_buyer ON tickets (sale, buyer);
CREATE INDEX IF NOT EXISTS tickets_due ON tickets (expires_at) WHERE status = 'r';
CREATE TABLE IF NOT EXISTS ledger (
    sequence bigserial PRIMARY KEY, at bigint NOT NULL, kind "char" NOT NULL, ticket text NOT NULL,
    quantity bigint NOT NULL
);
"""

LOCK = "SELECT available, hold_ms, max_per_buyer FROM sales WHERE id = $1 FOR UPDATE"

HAS = "SELECT coalesce(sum(quantity), 0) FROM tickets WHERE sale = $1 AND buyer = $2 AND status IN ('r', 'p')"

TAKE = """
WITH taken AS (
    UPDATE sales SET available = available - $4, reserved = reserved + $4 WHERE id = $2
), ticket AS (
    INSERT INTO tickets (id, sale, buyer, quantity, status, reserved_at, expires_at)
    VALUES ($1, $2, $3, $4, 'r', $5, $6)
)
INSERT INTO ledger (at, kind, ticket, quantity) VALUES ($5, 'r', $1, $4)
"""

PAY = """
WITH ticket AS (
    UPDATE tickets SET status = 'p', ended_at = $3
    WHERE id = $1 AND buyer = $2 AND status = 'r' AND expires_at > $3
    RETURNING id, sale, quantity, reserved_at, expires_at
), moved AS (
    UPDATE sales SET reserved = reserved - ticket.quantity, purchased = purchased + ticket.quantity
    FROM ticket WHERE sales.id = ticket.sale
), entry AS (
    INSERT INTO ledger (at, kind, ticket, quantity) SELECT $3, 'p', id, quantity FROM ticket
)
SELECT sale, quantity, reserved_at, expires_at FROM ticket
"""

SWEEP = """
WITH due AS (
    SELECT id FROM tickets WHERE status = 'r' AND expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE tickets SET status = 'x', ended_at = expires_at FROM due WHERE tickets.id = due.id
    RETURNING tickets.id, sale, quantity
), sums AS (
    SELECT sale, sum(quantity) AS units FROM ended GROUP BY sale
), moved AS (
    UPDATE sales SET available = available + units, reserved = reserved - units FROM sums WHERE sales.id = sums.sale
)
INSERT INTO ledger (at, kind, ticket, quantity) SELECT $1, 'x', id, quantity FROM ended
"""

#: Without blanks, as all stacks write it; made once, which saves `json.dumps` from making one for each answer.
_COMPACT = json.JSONEncoder(separators=(",", ":"))

POOL = web.AppKey("POOL", asyncpg.Pool)


def _instant(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _ticket(
    id: str, sale: str, status: str, quantity: int, reserved_at: int, expires_at: int, now: int
) -> dict[str, Any]:
    return {
        "id": id,
        "sale": sale,
        "status": status,
        "lines": [{"sku": "general", "quantity": quantity}],
        "quantity": quantity,
        "reserved_at": _instant(reserved_at),
        "expires_at": _instant(expires_at),
        "expires_in_ms": expires_at - now if status == "reserved" else 0,
    }


def _json(body: dict[str, Any], status: int = 200, **more: Any) -> web.Response:
    return web.json_response(body, status=status, dumps=_COMPACT.encode, **more)


def _refusal(status: int, code: str) -> web.Response:
    return _json({"code": code, "status": status}, status=status, content_type="application/problem+json")


async def create_sale(request: web.Request) -> web.Response:
    """`POST /sales`."""
    body = await request.json()
    await request.app[POOL].execute(
        "INSERT INTO sales (id, available, hold_ms, max_per_buyer) VALUES ($1, $2, $3, $4)",
        body["id"],
        body["capacity"],
        body.get("hold_ms", 900_000),
        body.get("max_per_buyer", 0),
    )
    return _json({"id": body["id"]}, status=201)


async def show_sale(request: web.Request) -> web.Response:
    """`GET /sales/{sale}`."""
    row = await request.app[POOL].fetchrow(
        "SELECT available, reserved, purchased FROM sales WHERE id = $1", request.match_info["sale"]
    )
    return _json(dict(row)) if row else _refusal(404, "unknown_sale")


async def reserve(request: web.Request) -> web.Response:
    """`POST /sales/{sale}/tickets`."""
    sale, buyer = request.match_info["sale"], request.headers.get("X-Buyer-Fingerprint", "")
    try:
        quantity = json.loads(await request.read())["quantity"]
    except (ValueError, KeyError, TypeError):
        return _refusal(400, "malformed_json")
    if type(quantity) is not int or quantity < 1 or not 8 <= len(buyer) <= 128:
        return _refusal(422, "invalid_request")
    id = secrets.token_urlsafe(16)
    async with request.app[POOL].acquire() as connection, connection.transaction():
        row = await connection.fetchrow(LOCK, sale)
        if row is None:
            return _refusal(404, "unknown_sale")
        available, hold_ms, max_per_buyer = row
        if max_per_buyer and await connection.fetchval(HAS, sale, buyer) + quantity > max_per_buyer:
            return _refusal(409, "limit_reached")
        if available < quantity:
            return _refusal(409, "sold_out")
        now = _now()
        await connection.execute(TAKE, id, sale, buyer, quantity, now, now + hold_ms)
    return _json(
        _ticket(id, sale, "reserved", quantity, now, now + hold_ms, now),
        status=201,
        headers={"Location": f"/tickets/{id}", "X-Request-Id": request.headers.get("X-Request-Id", "-")},
    )


async def pay(request: web.Request) -> web.Response:
    """`POST /tickets/{ticket}/payment`."""
    await request.read()
    id, now = request.match_info["ticket"], _now()
    row = await request.app[POOL].fetchrow(PAY, id, request.headers.get("X-Buyer-Fingerprint", ""), now)
    if row is None:
        return _refusal(409, "not_payable")
    ticket = _ticket(id, row["sale"], "purchased", row["quantity"], row["reserved_at"], row["expires_at"], now)
    return _json(ticket | {"purchased_at": _instant(now)})


async def sweep(pool: asyncpg.Pool) -> None:
    while True:
        while (await pool.execute(SWEEP, _now(), SWEEP_MAX)).endswith(f" {SWEEP_MAX}"):
            pass
        await asyncio.sleep(SWEEP_S)


async def connected(app: web.Application, directory: str, size: int) -> AsyncIterator[None]:
    async with asyncpg.create_pool(
        host=directory, user="bench", database="postgres", min_size=size, max_size=size
    ) as pool:
        await pool.execute(SCHEMA)
        app[POOL] = pool
        sweeper = asyncio.create_task(sweep(pool))
        yield
        sweeper.cancel()


async def serve(directory: str, size: int) -> None:
    app = web.Application()
    app.cleanup_ctx.append(lambda app: connected(app, directory, size))
    app.router.add_post("/sales", create_sale)
    app.router.add_get("/sales/{sale}", show_sale)
    app.router.add_post("/sales/{sale}/tickets", reserve)
    app.router.add_post("/tickets/{ticket}/payment", pay)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=BACKLOG).start()
    print(f"serves on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
