"""A TCP proxy in the hands of a run: the address that stays when the server behind it changes, and a bad network."""

from __future__ import annotations

import asyncio
import contextlib

from .servers import free_port

#: Bytes that are carried at a time.
STEP_BYTES = 65_536


class Proxy:
    """Carries bytes between who connects and the target, unless told otherwise.

    Attributes
    ----------
    target: host and port of connections from now on. delay_s: seconds that each piece of an answer is held back.
    """

    def __init__(self, host: str, port: int, listen: str = "127.0.0.1") -> None:
        self.target = (host, port)
        self.listen, self.port = listen, free_port()
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._refusing = False
        #: Set while answers may pass; what arrives while it is clear waits.
        self._answers = asyncio.Event()
        self._answers.set()
        #: Answers wait only on connections on which this has been asked since.
        self._after = b""
        self._held: set[asyncio.StreamWriter] = set()
        self._requests = asyncio.Event()
        self._requests.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://{self.listen}:{self.port}/0"

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, self.listen, self.port)
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._server is not None
        self._server.close()
        self.release()
        # Hung up on, each ends by itself: asyncio complains of those that are cancelled.
        self.hang_up()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    # -- what a run does to it -------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Resets every connection; answers that were held are lost."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    def refuse(self, refusing: bool = True) -> None:
        """Resets whoever connects from now on, and those that are there."""
        self._refusing = refusing
        if refusing:
            self.hang_up()

    def hold_answers(self, after: bytes = b"") -> None:
        """Requests pass, answers wait; with `after`, on connections on which these bytes have been asked since."""
        self._after = after
        self._held.clear()
        self._answers.clear()

    def hold_requests(self) -> None:
        """Nothing passes that way; answers do."""
        self._requests.clear()

    def release(self) -> None:
        """Everything passes again, what was held first."""
        self._answers.set()
        self._requests.set()

    def switch(self, host: str, port: int) -> None:
        """Another target; who was connected to the old one is hung up on."""
        self.target = (host, port)
        self.hang_up()

    # -- carrying --------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, back}
        self._open |= both
        try:
            ways = [
                asyncio.ensure_future(self._ask(reader, back, writer)),
                asyncio.ensure_future(self._answer(there, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open -= both
            for each in both:
                each.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, back: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(STEP_BYTES):
                await self._requests.wait()
                if self._after and self._after in data:
                    self._held.add(writer)
                back.write(data)
                await back.drain()

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(STEP_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not self._after or writer in self._held:
                    await self._answers.wait()
                writer.write(data)
                await writer.drain()
