"""The product with its Redis and its store, as a run needs it: started, healed, and read once it is quiet."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import redis.asyncio as aioredis

from holdfast.engine.keys import slot_keys
from holdfast.engine.records import SHARD_MARK, Record

from .clients import SALES, SaleSpec, operator
from .facts import in_transit_of
from .groups import Group
from .history import Final
from .servers import OPERATOR_TOKEN, PATIENCE_S, Broken, Holdfast, Process, Redis, until
from .wire import Connection, Lost

#: Seconds that a server which answers may be not ready for the same reasons, before somebody runs `holdfast recover`.
OPERATOR_WAITS_S = 0.5


def slots_of(sale: Mapping[str, Any]) -> list[str]:
    """The slots of a sale, as it is answered."""
    name, shards = sale["id"], sale.get("shards")
    return [name] if shards is None else [f"{name}{SHARD_MARK}{number}" for number in range(1, shards + 1)]


class Deployment:
    """One product. Everything that it starts ends with it.

    Parameters
    ----------
    directory: for everything. redis: started with it. redis_url: what the product is given, where that is not `redis`.
    store: its address, or SQLite in the directory. product: further arguments of `Holdfast`.
    """

    def __init__(
        self,
        directory: Path,
        redis: Redis | Group,
        *,
        redis_url: str | None = None,
        store: str | None = None,
        sales: Sequence[SaleSpec] = SALES,
        **product: Any,
    ) -> None:
        self.directory = directory
        self.redis = redis
        self.store = store or f"sqlite:///{directory / 'store.db'}"
        self.sales = sales
        self.holdfast = Holdfast(directory, redis=redis_url or redis.url, store=self.store, **product)
        self.processes: list[Process | Group] = [redis, self.holdfast]
        self.recoveries: list[str] = []

    async def __aenter__(self) -> Deployment:
        try:
            if not self.redis.alive:
                await self.redis.start()
            await self.holdfast.start()
            for sale in self.sales:
                body = sale.body()
                if sale.max_per_buyer:
                    body["max_per_buyer"] = sale.max_per_buyer
                await self.operator("POST", "/sales", body)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        for process in reversed(self.processes):
            if isinstance(process, Holdfast):
                process.kill_all()
            process.kill()

    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.holdfast.port

    async def operator(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return await operator(self.place(), OPERATOR_TOKEN, method, path, body)

    # -- after a fault ---------------------------------------------------------------------------------------------

    async def readiness(self) -> list[str] | None:
        """Why it is not ready; empty when it is, None when it does not answer."""
        connection = Connection(*self.place())
        try:
            async with asyncio.timeout(8):
                status, _, answer = await connection.ask("GET", "/readyz")
        except (Lost, OSError, TimeoutError):
            return None
        finally:
            connection.close()
        return [] if status == 200 else list(answer.get("reasons", [answer.get("detail", "?")]))

    async def ready(self, *, recover: bool = True) -> None:
        """Waits until everything can be sold; where that does not come by itself, does what an operator does.

        Raises
        ------
        Broken: not even then.
        """
        give_up, unready_since = time.monotonic() + PATIENCE_S, 0.0
        while (reasons := await self.readiness()) != []:
            if time.monotonic() > give_up:
                raise Broken(f"not ready again: {reasons}\n{self.holdfast.tail()}")
            if reasons is None or not self.needs_recovery(reasons):
                unready_since = 0.0
            elif not unready_since:
                unready_since = time.monotonic()
            elif recover and time.monotonic() > unready_since + OPERATOR_WAITS_S:
                await self.recover()
                unready_since = 0.0
            await asyncio.sleep(0.05)

    @staticmethod
    def needs_recovery(reasons: Sequence[str]) -> bool:
        """Whether these reasons do not pass by themselves."""
        signs = ("holdfast recover", "is not in Redis", "the store at", "being rebuilt")
        return any(sign in reason for reason in reasons for sign in signs)

    async def recover(self, *sales: str) -> None:
        """`holdfast recover`, as an operator runs it.

        Raises
        ------
        Broken: it found contradictions, or could not finish.
        """
        status, said = await self.holdfast.recover(*sales)
        self.recoveries.append(said)
        if status:
            raise Broken(f"holdfast recover ended with {status}:\n{said}")

    # -- the final reading -----------------------------------------------------------------------------------------

    async def quiet(self, seconds: float = PATIENCE_S) -> None:
        """Waits until no hold is left and the store has, folded, all that Redis has.

        Raises
        ------
        Broken: holds never ended, or the store never came up to it: something leaked.
        """
        state = ""

        async def done() -> bool:
            nonlocal state
            try:
                sales = (await self.operator("GET", "/sales?limit=500"))["items"]
            except Broken as error:
                state = str(error)
                return False
            stored = {
                slot: (sequence, folded)
                for slot, sequence, folded in await self.query("SELECT slot, sequence, folded FROM slots")
            }
            held = {sale["id"]: units for sale in sales if (units := sale["reserved"] + sale.get("in_transit", 0))}
            behind = []
            for sale in sales:
                # The sequence of a sale in shards is the sum of theirs.
                rows = [stored.get(slot, (0, 0)) for slot in slots_of(sale)]
                come = tuple(map(sum, zip(*rows, strict=True)))
                if come != (sale["sequence"], sale["sequence"]):
                    behind.append(f"{sale['id']}: Redis at {sale['sequence']}, the store at {come}")
            state = f"held {held}; {behind}"
            return not held and not behind

        try:
            await until("quiet", done, seconds, pause=0.05)
        except Broken as error:
            raise Broken(f"{error}: {state}") from error

    async def finals(self) -> list[Final]:
        """What it says of every sale, once it is quiet."""
        await self.quiet()
        sales = (await self.operator("GET", "/sales?limit=500"))["items"]
        return [await self._final(sale) for sale in sales if sale["id"] in {spec.id for spec in self.sales}]

    async def _final(self, sale: dict[str, Any]) -> Final:
        name = sale["id"]
        tickets: dict[str, dict[str, Any]] = {}
        cursor = ""
        while True:
            page = await self.operator("GET", f"/sales/{name}/tickets?limit=500{cursor}")
            tickets |= {ticket["id"]: ticket for ticket in page["items"]}
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        redis: dict[str, str] = {}
        store: dict[str, dict[str, Any]] = {}
        ledgers: list[tuple[tuple[int, str], ...]] = []
        for slot in slots_of(sale):
            packed = await self.redis.ask_about(slot, "HGETALL", slot_keys(slot).tickets)
            fields = packed if isinstance(packed, dict) else dict(zip(packed[::2], packed[1::2], strict=True))
            for id, record in fields.items():
                redis[f"{slot}.{id.decode()}"] = str(Record.parse(id.decode(), record.decode()).status)
            for id, status, lines, sequence, reference in await self.query(
                "SELECT id, status, lines, sequence, reference FROM tickets WHERE slot = :slot", slot=slot
            ):
                store[f"{slot}.{id}"] = {
                    "status": status,
                    "lines": {sku: int(units) for sku, units in (part.split(":") for part in lines.split(","))},
                    "sequence": sequence,
                    "reference": reference,
                }
            ledger = await self.query(
                "SELECT sequence, transitions FROM ledger WHERE slot = :slot ORDER BY epoch, sequence", slot=slot
            )
            ledgers.append(tuple((sequence, text) for sequence, text in ledger))
        return Final(
            sale=name,
            capacity={item["sku"]: item["capacity"] for item in sale["items"]},
            counts={item["sku"]: (item["available"], item["reserved"], item["purchased"]) for item in sale["items"]},
            tickets=tickets,
            redis=redis,
            store=store,
            ledgers=tuple(ledgers),
            in_transit=in_transit_of(sale),
        )

    async def query(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Rows of the store, read beside the product."""
        if self.store.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(self.store.removeprefix("sqlite:///"), timeout=10)) as db:
                return db.execute(sql, values).fetchall()
        connection = await asyncpg.connect(self.store, timeout=10, command_timeout=20)
        try:
            return [tuple(row) for row in await connection.fetch(sql.replace(":slot", "$1"), *values.values())]
        finally:
            await connection.close()

    async def sequence(self, sale: str) -> int:
        """The last transition of a sale, as Redis has it; 0 without it."""
        try:
            return int(await self.redis.ask_about(sale, "HGET", slot_keys(sale).sale, "sequence", timeout=2) or 0)
        except (aioredis.RedisError, OSError):
            return 0
