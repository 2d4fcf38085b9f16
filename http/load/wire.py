"""HTTP/1.1 as a client speaks it, with as little as possible in between: bytes out, status and body in.

A connection carries one request at a time. Those that are open and idle wait in a pool.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from holdfast.engine import ConfigurationError

from .log import HUNG_UP, LOST, NO_ANSWER, NOT_SENT

#: Connections that are being opened at a time: more would fill the queue of those that wait to be accepted (128 on
#: many systems), where what is beyond is dropped and tried again a second later.
OPENING_MAX: Final = 100

#: Seconds in which a connection must be made.
CONNECT_SECONDS: Final = 10.0

#: Seconds between two looks at the requests that are under way for those without an answer.
LOOK_SECONDS: Final = 0.25


class Address(NamedTuple):
    """Where a server is. `host_header` is what requests name as their host; `base` is a path before all others."""

    host: str
    port: int
    secure: bool
    host_header: str
    base: str = ""


def address_of(url: str) -> Address:
    """A server's URL, read.

    Raises
    ------
    ConfigurationError: it is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        # Said without it: it may be the dashboard's, with the operator's token, or have a password.
        raise ConfigurationError(
            "--url must look like http://127.0.0.1:8080: http or https, a host, perhaps a port and a path, no more."
        )
    secure = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if secure else 80), secure, parts.netloc, parts.path.rstrip("/"))


class Answer(NamedTuple):
    """An answer: its status, its headers by name in lower case, its body."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Exchange(NamedTuple):
    """What became of one request.

    Parameters
    ----------
    begun: just before it was sent; ended: when the client knew, nanoseconds of the monotonic clock.
    waited: whether it first had to wait for a connection.
    answer: None when there was none. why: in that case, one of the words of `log.py`.
    """

    begun: int
    ended: int
    waited: bool
    answer: Answer | None
    why: str = ""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._waiter: asyncio.Future[Answer] | None = None
        self.closed = False
        self.begun = self.ended = 0
        self.gave_up = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports derive from none of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    # the parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self.ended = time.monotonic_ns()
        status = self._parser.get_status_code()
        if status < 200:
            return
        answer = Answer(status, self._headers, b"".join(self._body))
        self._headers, self._body = {}, []
        if not self._parser.should_keep_alive():
            self.closed = True
            if self._transport is not None:
                self._transport.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    # our side

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """The answer, or `ConnectionError` when the connection is lost before it."""
        assert self._transport is not None
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        self.begun = time.monotonic_ns()
        self._transport.write(request)
        return waiter

    def close(self) -> None:
        """Closes it now; what waits for an answer fails."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        self._fail()

    def _fail(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionResetError())


class Wire:
    """Requests to one server over as many connections as are needed, up to a number.

    Parameters
    ----------
    connections_max: at the most. patience_s: seconds without an answer after which a request is given up.
    """

    def __init__(self, address: Address, connections_max: int, patience_s: float) -> None:
        self._address = address
        self._most = connections_max
        self._patience_ns = int(patience_s * 1e9)
        self._ssl = ssl.create_default_context() if address.secure else None
        self._free: list[Connection] = []
        self._busy: set[Connection] = set()
        self._count = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._opening = asyncio.Semaphore(OPENING_MAX)
        self._looking: asyncio.TimerHandle | None = None

    @property
    def under_way(self) -> int:
        return len(self._busy)

    async def open(self, count: int) -> None:
        """Opens connections beforehand.

        Raises
        ------
        OSError: the server does not take them.
        """
        made = await asyncio.gather(
            *(self._connect() for _ in range(min(count, self._most) - self._count)), return_exceptions=True
        )
        self._free += [one for one in made if isinstance(one, Connection)]
        for one in made:
            if isinstance(one, BaseException):
                raise one

    async def _connect(self) -> Connection:
        self._count += 1
        try:
            async with self._opening, asyncio.timeout(CONNECT_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self._address.host, self._address.port, ssl=self._ssl
                )
            return connection
        except BaseException:
            self._count -= 1
            raise

    async def ask(self, request: bytes) -> Exchange:
        """Sends a request and waits for its answer."""
        connection, waited = self._idle(), False
        if connection is None:
            came = time.monotonic_ns()
            connection, waited = await self._another(), True
            if connection is None:
                return Exchange(came, time.monotonic_ns(), True, None, NOT_SENT)
        self._busy.add(connection)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        try:
            answer = await connection.send(request)
        except ConnectionError:
            why = NO_ANSWER if connection.gave_up else LOST
            return Exchange(connection.begun, time.monotonic_ns(), waited, None, why)
        except asyncio.CancelledError:
            # Its answer is still to come, and must not be taken for that of the next request.
            connection.close()
            raise
        else:
            return Exchange(connection.begun, connection.ended, waited, answer)
        finally:
            self._busy.discard(connection)
            self._give_back(connection)

    async def hang_up(self, request: bytes) -> Exchange:
        """Sends a request and closes the connection without waiting for the answer."""
        connection, waited = self._idle(), False
        if connection is None:
            connection, waited = await self._another(), True
            if connection is None:
                now = time.monotonic_ns()
                return Exchange(now, now, True, None, NOT_SENT)
        answer = connection.send(request)
        # One turn of the loop: the bytes are on their way, and then the connection is gone.
        await asyncio.sleep(0)
        connection.close()
        if answer.done():
            answer.exception()
        self._give_back(connection)
        return Exchange(connection.begun, time.monotonic_ns(), waited, None, HUNG_UP)

    def _idle(self) -> Connection | None:
        while self._free:
            connection = self._free.pop()
            if not connection.closed:
                return connection
            self._count -= 1
        return None

    async def _another(self) -> Connection | None:
        """A new connection, or where there are as many as may be the next that is free; None when it cannot be made."""
        if self._count < self._most:
            try:
                return await self._connect()
            except OSError:
                return None
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        connection = await waiter
        if connection is not None and not connection.closed:
            return connection
        if connection is not None:
            self._count -= 1
        try:
            return await self._connect()
        except OSError:
            self._hand_on()
            return None

    def _give_back(self, connection: Connection) -> None:
        if connection.closed:
            self._count -= 1
            self._hand_on()
        elif not self._pass_to_waiting(connection):
            self._free.append(connection)

    def _hand_on(self) -> None:
        """There is room for another connection: the next that waits makes it."""
        self._pass_to_waiting(None)

    def _pass_to_waiting(self, connection: Connection | None) -> bool:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _look(self) -> None:
        """Gives up what has been without an answer for too long."""
        late = time.monotonic_ns() - self._patience_ns
        for connection in [each for each in self._busy if each.begun < late]:
            connection.gave_up = True
            connection.close()
        self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look) if self._busy else None

    def close(self) -> None:
        """Closes every connection."""
        if self._looking is not None:
            self._looking.cancel()
        for connection in [*self._free, *self._busy]:
            connection.close()
