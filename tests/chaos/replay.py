"""A proxy in front of the product that knows requests, and repeats those that may be: at once, later, too late."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace

from .clients import History
from .history import Call, Operation, Outcome
from .servers import free_port
from .wire import Lost, read_answer

#: Numbers of the clients in whose name repeats are written down.
REPEATS_FROM = 10_000


class Replayer:
    """Carries requests, some of them late, and repeats some of those with a key, some of them much later.

    Parameters
    ----------
    target: the product, as of now. again: probability that a request is repeated, up to three times.
    late_s: seconds until the latest repeat, longer than the holds. delay_s: seconds by which a request may be late.
    """

    def __init__(
        self, target: Callable[[], tuple[str, int]], history: Callable[[], History], seed: str, *, again: float = 0.4,
        late_s: float = 1.5, delay_s: float = 0.03,
    ) -> None:  # fmt: skip
        self.port = free_port()
        self.repeats = 0
        self.differing: list[str] = []
        self._target, self._history = target, history
        self._rng = random.Random(f"{seed}/replay")
        self._again, self._late_s, self._delay_s = again, late_s, delay_s
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def __aenter__(self) -> Replayer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        await self.done()

    async def done(self) -> None:
        """Waits for the repeats that are still to come."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                raw = await self._request(reader)
                await asyncio.sleep(self._rng.uniform(0, self._delay_s))
                repeats = self._rng.choice((1, 1, 2, 3)) if self._rng.random() < self._again else 0
                if repeatable(raw):
                    # Some set out before the first is answered, or even sent: it is then the repeat that comes first.
                    answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
                    for _ in range(repeats):
                        wait = self._rng.uniform(0, self._rng.choice((0.01, 0.1, self._late_s)))
                        task = asyncio.create_task(self._repeat(raw, wait, answer))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                else:
                    answer = asyncio.get_running_loop().create_future()
                try:
                    status, _, body = await send(self._target(), raw)
                except (OSError, Lost, asyncio.IncompleteReadError):
                    answer.set_result((0, b""))
                    break
                answer.set_result((status, body))
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
                await writer.drain()
        writer.transport.abort()

    @staticmethod
    async def _request(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head + await reader.readexactly(length)

    async def _repeat(self, raw: bytes, wait: float, answer: asyncio.Future[tuple[int, bytes]]) -> None:
        await asyncio.sleep(wait)
        self.repeats += 1
        operation = described(raw, REPEATS_FROM + self.repeats, self._history().phase)
        try:
            status, _, body = await send(self._target(), raw)
        except (OSError, Lost, asyncio.IncompleteReadError):
            self._history().add(operation)
            return
        said = json.loads(body) if body else {}
        operation = replace(operation, ended=time.monotonic_ns(), status=status, code=said.get("code"), answer=said)
        if operation.call is Call.RESERVE and status < 300:
            operation = replace(operation, ticket=said["id"])
        self._history().add(operation)
        first, first_body = await answer
        if first and first < 300 and operation.outcome is Outcome.DONE:
            told = json.loads(first_body)
            same = ("id", "sale", "lines", "reserved_at", "expires_at", "reference", "purchased_at", "cancelled_at")
            # A reservation is repeated as it is now; what was true of it then stays true.
            if status != first or any(name in told and said.get(name) != told[name] for name in same):
                asked = raw.partition(b"\r\n")[0].decode()
                self.differing.append(f"{asked}: first {first} {told}, then {status} {said}")


def repeatable(raw: bytes) -> bool:
    """Whether a client may send this twice: it reads, it cancels, or it has a key."""
    return raw.startswith((b"GET", b"DELETE")) or b"\r\nIdempotency-Key:" in raw


def described(raw: bytes, client: int, phase: str) -> Operation:
    """A request of our clients, read back from its bytes."""
    head, _, payload = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name: value for name, _, value in (line.partition(": ") for line in rest)}
    body = json.loads(payload) if payload else {}
    words = path.strip("/").split("/")
    ticket = words[1] if words[0] == "tickets" else None
    call = {
        ("POST", True): Call.PAY, ("DELETE", True): Call.CANCEL, ("GET", True): Call.TICKET,
        ("POST", False): Call.RESERVE, ("GET", False): Call.SALE,
    }[method, ticket is not None]  # fmt: skip
    return Operation(
        client, headers["X-Buyer-Fingerprint"], call, ticket.split(".")[0] if ticket else words[1], time.monotonic_ns(),
        ticket=ticket, lines=tuple((line["sku"], line["quantity"]) for line in body.get("lines", ())),
        key=headers.get("Idempotency-Key"), durability=headers.get("Prefer", "").removeprefix("durability=") or None,
        phase=phase,
    )  # fmt: skip


async def send(place: tuple[str, int], raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Bytes of a request on a connection of their own, and the answer."""
    reader, writer = await asyncio.open_connection(*place, limit=2**22)
    try:
        writer.write(raw)
        async with asyncio.timeout(20):
            return await read_answer(reader)
    except TimeoutError as error:
        raise Lost("no answer") from error
    finally:
        writer.transport.abort()
