"""Row 19: bytes that no honest client sends, many at once and slowly, while a sale goes on beside them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

from ..clients import Habits
from ..deployment import Deployment
from ..plan import Case, Run, now
from ..servers import Broken, Redis

#: Connections that are kept half open beside the sale.
SLOW = 150

#: MiB by which the product's processes may grow under it.
GROWTH_MIB_MAX = 150

#: Seconds in which something that is complete is answered.
WAIT_S = 1.0

RESERVE = (
    b"POST /sales/large/tickets HTTP/1.1\r\nHost: x\r\nX-Buyer-Fingerprint: hostile-one\r\n"
    b"Content-Type: application/json\r\n"
)

#: Complete requests that must be refused with 4xx, or hung up on.
CORPUS: tuple[bytes, ...] = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 4096,
    b"GET /sales/large\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET " + b"/a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
    b"GARBAGE\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    RESERVE + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
    RESERVE + b"Content-Length: -1\r\n\r\n",
    RESERVE + b"Content-Length: 1e3\r\n\r\n{}",
    RESERVE + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    RESERVE + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    RESERVE + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    RESERVE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    RESERVE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    RESERVE + b"Transfer-Encoding: chunked\r\n\r\n" + (b"2000\r\n" + b" " * 8192 + b"\r\n") * 2 + b"0\r\n\r\n",
    RESERVE + b"Content-Length: 9000\r\n\r\n" + b" " * 9000,
    RESERVE + b"Content-Length: 20\r\nContent-Encoding: gzip\r\n\r\n" + b"\x1f\x8b" + b"\x00" * 18,
    RESERVE + b"Content-Length: 12\r\n\r\n{\"quantity\":",
    RESERVE + b"Content-Length: 8000\r\n\r\n" + b"[" * 8000,
    RESERVE + b"Content-Length: 15\r\n\r\n{\"quantity\":1e9",
    b"POST /tickets/large.AAAAAAAAAAAAAAAAAAAAAA/payment HTTP/1.1\r\nHost: x\r\nX-Buyer-Fingerprint: hostile-one\r\n"
    b"Content-Length: 0\r\n\r\n",
    b"DELETE /tickets/..%2f..%2fetc/payment HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /sales/large?x=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: x\r\n\r\n",
)  # fmt: skip


async def hostile(run: Run) -> None:
    redis = Redis(run.directory)
    async with Deployment(run.directory, redis, workers=2) as product:
        load = run.clients(product, Habits(think_s=0.02), clients=16)
        await load.more(20)
        before = resident_mib(product)
        load.phase("fault")
        slow = [asyncio.create_task(_slow(product, number)) for number in range(SLOW)]
        statuses: dict[str, int] = {}
        rounds = 2 if run.quick else 10
        rng = random.Random(run.key)
        for _ in range(rounds):
            batch = [*CORPUS, *(mutated(rng) for _ in range(40))]
            for answer in await asyncio.gather(*(_throw(product, raw) for raw in batch)):
                statuses[answer] = statuses.get(answer, 0) + 1
            run.trials += len(batch)
        grown = resident_mib(product) - before
        # The sale beside it has gone on all the while.
        await load.more(20)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await run.healed(now())
        await run.over(product)
        run.remarks.append(", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())))
        run.remarks.append(f"{SLOW} slow connections beside it, memory {grown:+.0f} MiB")
        if wrong := [status for status in statuses if status.startswith(("5", "silent"))]:
            raise Broken(f"hostile requests were answered {wrong}: {statuses}")
        if grown > GROWTH_MIB_MAX:
            raise Broken(f"the product grew by {grown:.0f} MiB")


def mutated(rng: random.Random) -> bytes:
    """An honest request with some bytes changed, cut or doubled."""
    raw = bytearray(RESERVE + b'Content-Length: 30\r\n\r\n{"lines":[{"sku":"nosuch","quantity":0}]}')
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(raw))
        match rng.randrange(3):
            case 0:
                raw[at] = rng.randrange(256)
            case 1:
                del raw[at : at + rng.randint(1, 20)]
            case _:
                raw[at:at] = raw[at : at + rng.randint(1, 50)]
    return bytes(raw)


async def _throw(product: Deployment, raw: bytes) -> str:
    """Sends bytes, says no more, and tells the status of the first answer; or that it was hung up on."""
    reader, writer = await asyncio.open_connection(*product.place())
    try:
        with contextlib.suppress(OSError):
            writer.write(raw)
            await writer.drain()
        try:
            async with asyncio.timeout(WAIT_S):
                first = await reader.readline()
        except TimeoutError:
            # The server waits for the rest, as it has to; then it hears that there is none.
            writer.write_eof()
            async with asyncio.timeout(30):
                first = await reader.readline()
        return first.split(b" ")[1].decode() if first.startswith(b"HTTP/1.") else "closed"
    except TimeoutError:
        return "silent for 30 s"
    except (OSError, asyncio.IncompleteReadError, ValueError):
        return "closed"
    finally:
        writer.transport.abort()


async def _slow(product: Deployment, number: int) -> None:
    """A byte at a time, for as long as it lasts."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(*product.place())
            try:
                for byte in RESERVE[: 30 + number] if number % 2 else b"":
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.2)
                await asyncio.sleep(5)
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.1)


def resident_mib(product: Deployment) -> float:
    """Memory of the product's processes."""
    total = 0
    for pid in (product.holdfast.pid, *product.holdfast.children()):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
    return total / 1024


CASES = (Case(19, "hostile HTTP", "corpus and mutations", hostile),)
