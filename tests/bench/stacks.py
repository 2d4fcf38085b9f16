"""Everything that is measured, as processes that can be started, loaded and stopped. One rule for all: what serves runs
on the first core; databases and the load run on the second.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import postgresql
import redis

from holdfast.engine.keys import slot_keys

from . import load, machine
from .callers import CAPACITY, MAX_PER_BUYER
from .load import Wrong
from .machine import Cores, Missing
from .measure import CpuMeter, Sample, descendants, own_cpu_seconds

#: Seconds that anything may take to start.
START_SECONDS_MAX = 30.0

#: Seconds for an orderly end, after which what is left is killed: its data are thrown away.
STOP_SECONDS_MAX = 5.0

#: Seconds in which the last requests of a run, whose answers nobody waited for, come to their end.
SETTLE_S = 0.1

#: Seconds that one of our own modules may run: filling the largest sale takes minutes.
MODULE_SECONDS_MAX = 900.0

#: Entries in one batch call: the most that the API takes.
BATCH_ENTRIES = 500

#: Tickets in one script call when a sale is filled: what the connections of a saturated run amount to.
FILL_BATCH = 64

#: Transitions that the snapshot may be behind and still count as caught up: what a moment of load makes.
BEHIND_MAX = 2000

#: Sales by what they are for.
HOT, FLOW, GONE = "hot", "flow", "gone"

OPERATOR_TOKEN = "operator-token-of-the-bench"
SECRET = "secret-of-the-bench-secret-of-the-bench"


class Child:
    """A process of ours, started on its cores, whose first line of output is waited for."""

    def __init__(
        self,
        command: Sequence[str],
        core: int | Sequence[int],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self._log = directory / "log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                Cores.pinned(core, *command),
                cwd=directory,
                env=dict(environment) if environment is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the bench, which stops them in order.
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Waits until `ready`.

        Raises
        ------
        Wrong: it ended, or it takes too long.
        """
        give_up = time.monotonic() + START_SECONDS_MAX
        while not ready():
            if self.process.poll() is not None:
                print(self.log(), file=sys.stderr)
                raise Wrong(f"{what} ended at its start: {last_line(self.log())}")
            if time.monotonic() > give_up:
                raise Wrong(f"{what} did not start: {last_line(self.log())}")
            time.sleep(0.01)

    def address(self, what: str) -> str:
        """The address in the line `... serves on http://...` that our servers print."""
        self.wait(lambda: "serves on http://" in self.log(), what)
        return "http://" + self.log().split("serves on http://", 1)[1].split()[0]

    def stop(self) -> None:
        everyone = descendants(self.pid)
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS_MAX)
        for pid in everyone:
            # Only what was ours: a number may have been given to another process meanwhile, but not this quickly.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class RedisServer:
    """A redis-server on the second core, set up as the one that Holdfast starts for itself."""

    def __init__(self, directory: Path, cores: Cores, appendfsync: str = "everysec") -> None:
        directory.mkdir()
        self.socket = str(directory / "s")
        self.url = f"unix://{self.socket}"
        settings = {
            "port": "0",
            "unixsocket": self.socket,
            "dir": str(directory),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "aof-use-rdb-preamble": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "notify-keyspace-events": "Ex",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._child = Child([machine.redis_server(), *words], cores.other, directory)
        self.pid = self._child.pid
        try:
            self._child.wait(self._answers, "redis-server")
        except BaseException:
            self._child.stop()
            raise

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.ConnectionError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=60)

    def stop(self) -> None:
        self._child.stop()


class Stack:
    """What is measured.

    Parameters
    ----------
    directory: its files; made by `start`, removed by `stop`.
    """

    #: Its name in the table and in the JSON.
    name: ClassVar[str]

    def __init__(self, cores: Cores, directory: Path) -> None:
        self.cores = cores
        self.directory = directory
        #: What was chosen in the set-up, for the report.
        self.chosen = ""
        #: How often each choice is tried there; the best of them counts.
        self.trials = 1
        self._numbers = 0

    def start(self) -> None:
        """Sets it up.

        Raises
        ------
        Missing: this machine does not have what it needs.
        Wrong: it does not work.
        """
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def roots(self) -> list[int]:
        """Its processes, to wait until they are quiet."""
        return []

    def measure(self, scenario: str, seconds: int) -> Sample:
        """One run.

        Raises
        ------
        Missing: it cannot do that. Wrong: an answer was wrong.
        """
        raise NotImplementedError

    def _prefix(self) -> str:
        """Unlike that of any run before, and of one width."""
        self._numbers += 1
        return f"{secrets.token_hex(3)}{self._numbers:03d}"


# Over HTTP ------------------------------------------------------------------------------------------------------------


class HttpStack(Stack):
    """A stack that answers over HTTP."""

    #: Whether it counts what is sold: `GET /sales/{sale}`.
    counts: ClassVar[bool] = True

    def __init__(self, cores: Cores, directory: Path) -> None:
        super().__init__(cores, directory)
        self.url = ""
        self._child: Child | None = None
        self._verified: set[str] = set()

    def _serve(
        self, command: Sequence[str], what: str, core: int | Sequence[int], environment: Mapping[str, str]
    ) -> None:
        self.directory.mkdir(exist_ok=True)
        self._child = Child(command, core, self.directory, environment=environment)
        self.url = self._child.address(what)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def roots(self) -> list[int]:
        return [self._child.pid] if self._child is not None else []

    def _roles(self) -> dict[str, tuple[list[int], list[int]]]:
        """For each role the roots of its processes, and those below them that are another role's."""
        return {"server": (self.roots(), [])}

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, list[tuple[str, str]], str]:
        """One call; its status, headers and body."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        try:
            data = json.dumps(body, separators=(",", ":")) if body is not None else None
            typed = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, data, {**typed, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read().decode()
        finally:
            connection.close()

    def create_sale(self, sale: str, capacity: int = CAPACITY, **more: object) -> None:
        body = {"id": sale, "name": sale, "capacity": capacity, "max_per_buyer": MAX_PER_BUYER, **more}
        status, _, text = self.call("POST", "/sales", body, {"Authorization": f"Bearer {OPERATOR_TOKEN}"})
        if status != 201:
            raise Wrong(f"{self.name}: POST /sales answers {status}: {text}")

    def reserve(self, sale: str, buyer: str, **headers: str) -> tuple[int, list[tuple[str, str]], str]:
        sent = {"X-Buyer-Fingerprint": buyer, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.call("POST", f"/sales/{sale}/tickets", {"quantity": 1}, sent)

    def pay(self, ticket: str, buyer: str, **headers: str) -> tuple[int, list[tuple[str, str]], str]:
        sent = {"X-Buyer-Fingerprint": buyer, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.call("POST", f"/tickets/{ticket}/payment", headers=sent)

    def _create_sales(self) -> None:
        """One that never ends, one for the flow, and one that is sold out for good."""
        for sale in (HOT, FLOW):
            self.create_sale(sale)
        self.create_sale(GONE, 1)
        _, _, text = self.reserve(GONE, "the-one-who-got-it")
        status, _, text = self.pay(json.loads(text)["id"], "the-one-who-got-it")
        if status != 200:
            raise Wrong(f"{self.name}: a payment answers {status}: {text}")

    def counted(self, sale: str) -> tuple[int, int]:
        """Units reserved and purchased."""
        status, _, text = self.call("GET", f"/sales/{sale}")
        if status != 200:
            raise Wrong(f"{self.name}: GET /sales/{sale} answers {status}: {text}")
        sold = json.loads(text)
        return sold["reserved"], sold["purchased"]

    # The scenarios -------------------------------------------------------------------

    def measure(self, scenario: str, seconds: int) -> Sample:
        if scenario not in self._verified:
            # Apart from the measured runs: counting every status slows wrk down.
            self._load(scenario, 1, "verify")
            self._verified.add(scenario)
        return self._load(scenario, seconds, "-")

    def _load(self, scenario: str, seconds: int, verify: str, sale: str = "") -> Sample:
        sale = sale or {"pay": FLOW, "sold_out": GONE}.get(scenario, HOT)
        before = self.counted(sale) if self.counts else (0, 0)
        meter = CpuMeter(self._roles())
        result = self._wrk(scenario, sale, seconds, verify)
        cpu = meter.read() | {"generator": result.cpu}
        if result.broken or result.timeouts:
            raise Wrong(f"{self.name}, {scenario}: {result.broken} connections broke, {result.timeouts} timed out")
        self._check_statuses(scenario, result)
        if self.counts:
            time.sleep(SETTLE_S)
            after = self.counted(sale)
            self._check_counts(scenario, result, (after[0] - before[0], after[1] - before[1]))
        entries = BATCH_ENTRIES if scenario == "batch" else 1
        extra = {"p50_us": result.p50_us, "p99_us": result.p99_us}
        return Sample(result.requests * entries, result.seconds, cpu, extra)

    def _wrk(self, scenario: str, sale: str, seconds: int, verify: str) -> load.WrkResult:
        prefix = self._prefix()
        script = {"batch": "batch.lua", "pay": "pay.lua"}.get(scenario, "reserve.lua")
        more = (OPERATOR_TOKEN, str(BATCH_ENTRIES)) if scenario == "batch" else ()
        return load.wrk(
            self.cores, script, self.url, seconds, sale, prefix, verify, *more, connections=_connections(scenario)
        )

    def _check_statuses(self, scenario: str, result: load.WrkResult) -> None:
        expected = {"pay": {"200", "201"}, "sold_out": {"409"}, "batch": {"200", "201", "207"}}.get(scenario, {"201"})
        refused = result.requests if scenario == "sold_out" else 0
        if result.refused != refused or not set(result.statuses) <= expected or not result.requests:
            raise Wrong(
                f"{self.name}, {scenario}: of {result.requests} answers {result.refused} had a status from 400 up, and "
                f"{refused} should; counted: {result.statuses}"
            )

    def _check_counts(self, scenario: str, result: load.WrkResult, gone: tuple[int, int]) -> None:
        """What the sale has counted against what wrk has: requests that nobody waited for at the end may be more."""
        made = sum(gone)
        if scenario == "pay":
            at_least = (result.statuses.get("201", 0), result.statuses.get("200", 0))
            wrong = not all(
                least <= value <= least + _connections(scenario)
                for least, value in zip(at_least, (made, gone[1]), strict=True)
            )
        elif scenario == "sold_out":
            at_least = (0, 0)
            wrong = made != 0
        else:
            entries = BATCH_ENTRIES if scenario == "batch" else 1
            at_least = (result.requests * entries, 0)
            wrong = not at_least[0] <= made <= at_least[0] + _connections(scenario) * entries
        if wrong:
            raise Wrong(f"{self.name}, {scenario}: the sale counts {gone} more, and the answers were {at_least}")

    def open_loop(self, rate: float, seconds: float, seed: int, sale: str = HOT) -> tuple[load.OpenLoop, Sample]:
        """Reservations at a rate that does not depend on the answers.

        Raises
        ------
        Wrong: an answer was another than 201, or a connection broke.
        """
        out = self.directory / "latencies"
        meter = CpuMeter(self._roles())
        process = load.start_open_loop(self.cores, out, self.url, sale, self._prefix(), rate, seconds, seed)
        seen = load.finish_open_loop(process, out, seconds)
        self.check_open_loop(seen)
        cpu = meter.read() | {"generator": seen.cpu}
        return seen, Sample(len(seen.due), seconds, cpu, {"p99_ms": seen.p99_ms(), "unanswered": seen.unanswered})

    def check_open_loop(self, seen: load.OpenLoop) -> None:
        if set(seen.statuses) != {"201"} or seen.broken:
            raise Wrong(f"{self.name}, open loop: answers {seen.statuses}, {seen.broken} connections broke")


def _connections(scenario: str) -> int:
    return {"batch": load.BATCH_CONNECTIONS, "reserve_few": load.FEW_CONNECTIONS}.get(scenario, load.CONNECTIONS)


def clean_environment() -> dict[str, str]:
    """Ours, without the settings of a Holdfast that this shell may have."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "PYTHONPATH"))}


class Holdfast(HttpStack):
    """`holdfast serve` as a user runs it: its own Redis with `appendfsync everysec`, SQLite, everything on."""

    name = "holdfast"
    options: ClassVar[tuple[str, ...]] = ()
    one_core: ClassVar[bool] = True

    def __init__(self, cores: Cores, directory: Path) -> None:
        super().__init__(cores, directory)
        self.redis_pid = 0
        self.redis_socket = ""

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.data / 'holdfast.db'}"

    def start(self) -> None:
        machine.redis_server()
        command = [
            str(Path(sys.executable).with_name("holdfast")), "serve", "--port", "0", "--data-dir", str(self.data),
            "--operator-token", OPERATOR_TOKEN, "--secret", SECRET, *self.options,
        ]  # fmt: skip
        self._serve(
            command, "holdfast serve", self.cores.server if self.one_core else self.cores.all, clean_environment()
        )
        record = json.loads((self.data / "redis" / "server.json").read_text())
        self.redis_pid, self.redis_socket = record["pid"], record["socket"]
        Cores.move(self.redis_pid, self.cores.other)
        self._create_sales()

    def stop(self) -> None:
        super().stop()
        if self.redis_socket:
            # It outlives a server that was killed, and is nobody's child then.
            with contextlib.suppress(OSError):
                if self.redis_socket.encode() in Path(f"/proc/{self.redis_pid}/cmdline").read_bytes():
                    os.kill(self.redis_pid, signal.SIGKILL)
            shutil.rmtree(Path(self.redis_socket).parent, ignore_errors=True)

    def _roles(self) -> dict[str, tuple[list[int], list[int]]]:
        return {"server": (self.roots(), [self.redis_pid]), "database": ([self.redis_pid], [])}

    def redis(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.redis_socket, socket_timeout=60)

    def _wrk(self, scenario: str, sale: str, seconds: int, verify: str) -> load.WrkResult:
        if scenario == "batch" and verify == "verify":
            self._try_batch(sale)
        return super()._wrk(scenario, sale, seconds, verify)

    def measure_sale(self, sale: str, seconds: int) -> Sample:
        """Reservations at saturation in a sale of its own. The database's CPU is that of Redis alone, without the
        child that rewrites its file now and then."""
        before = own_cpu_seconds(self.redis_pid)
        sample = self._load("reserve", seconds, "-", sale)
        sample.cpu["database"] = own_cpu_seconds(self.redis_pid) - before
        return sample

    def fill(self, sale: str, count: int, **more: object) -> dict[str, Any]:
        """Puts tickets into a sale, in batches: see `fill.py`."""
        self._numbers += 1
        options = {
            "redis": f"unix://{self.redis_socket}", "store": self.store, "secret": SECRET, "sale": sale,
            "count": count, "batch": FILL_BATCH, "prefix": f"f{self._numbers:03d}", **more,
        }  # fmt: skip
        # Nothing is measured meanwhile: it may have all cores.
        result = run_module("fill", options, self.cores.all)
        if result["made"] != count:
            raise Wrong(f"{self.name}: {result['made']} of {count} tickets were made; {result['errors']}")
        return result

    def behind(self, sale: str) -> int:
        """Transitions of a sale that the snapshot has not copied yet."""
        with self.redis() as client, contextlib.closing(sqlite3.connect(self.data / "holdfast.db")) as store:
            there = int(client.hget(slot_keys(sale).sale, "sequence") or 0)
            (copied,) = store.execute("SELECT sequence FROM slots WHERE slot = ?", (sale,)).fetchone()
        return there - int(copied)

    def settled(self, sale: str, give_up: float) -> bool:
        """Waits until the snapshot has caught up and no file is being rewritten; False at `give_up`, Unix seconds."""
        while time.time() < give_up:
            with self.redis() as client:
                rewriting = client.info("persistence")["aof_rewrite_in_progress"]
            if not rewriting and self.behind(sale) < BEHIND_MAX:
                return True
            time.sleep(0.1)
        return False

    def due(self, sale: str, until_ms: int) -> int:
        """Members of the deadline index up to an instant: 0 once all of them are swept."""
        with self.redis() as client:
            return int(client.zcount(slot_keys(sale).deadlines, "-inf", until_ms))

    def _try_batch(self, sale: str) -> None:
        entries = [{"buyer": f"buyer-{number:03d}", "quantity": 1} for number in range(2)]
        operator = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
        status, _, text = self.call("POST", f"/sales/{sale}/tickets/batch", {"entries": entries}, operator)
        if status in (404, 405):
            raise Missing(f"POST /sales/{{sale}}/tickets/batch is not served (it answers {status})")
        if status >= 300:
            raise Wrong(f"{self.name}: a batch of two answers {status}: {text[:300]}")


class HoldfastRareSnapshots(Holdfast):
    """The same, with an hour between two snapshots: none falls into a run."""

    name = "holdfast, no snapshots"
    options = ("--snapshot-ms", "3600000")


class HoldfastFsync(Holdfast):
    """The same with every payment on Redis' disk before it is acknowledged."""

    name = "holdfast, fsync"
    options = ("--durability", "fsync")


class HoldfastStored(Holdfast):
    """The same with every payment in the store before it is acknowledged."""

    name = "holdfast, stored"
    options = ("--durability", "stored")


class HoldfastTwoWorkers(Holdfast):
    """The same with two workers, which may use both cores."""

    name = "holdfast, 2 workers"
    options = ("--workers", "2")
    one_core = False

    def start(self) -> None:
        try:
            super().start()
        except Wrong as error:
            if "--workers can only be 1" in str(error):
                raise Missing("holdfast serve --workers 2 is not there yet") from error
            raise


class Bare(HttpStack):
    """Constant answers: see `peers/bare.py`."""

    name = "bare"
    kind: ClassVar[str] = "fast path"
    counts = False

    def __init__(self, cores: Cores, directory: Path, answers: Path) -> None:
        super().__init__(cores, directory)
        self._answers = answers

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "bench.peers.bare", self.kind, str(self._answers)]
        self._serve(command, self.name, self.cores.server, load.python_environment())


class BareServer(Bare):
    """The same on aiohttp's low-level server, for reference."""

    name = "bare, web.Server"
    kind = "web.Server"


class BareApplication(Bare):
    """The same with a plain `web.Application`, for reference."""

    name = "bare, web.Application"
    kind = "web.Application"


def record_answers(holdfast: Holdfast, path: Path) -> None:
    """Writes down what a running Holdfast answers, for the bare server to answer with the same bytes."""

    def answer(got: tuple[int, list[tuple[str, str]], str], status: int) -> dict[str, Any]:
        if got[0] != status:
            raise Wrong(f"Holdfast answers {got[0]} in place of {status}: {got[2]}")
        return {"status": got[0], "headers": got[1], "body": got[2]}

    # As wide as the names that the load generator makes.
    buyer = "0123456789-000000001"
    reserved = answer(holdfast.reserve(FLOW, buyer, X_Request_Id=buyer), 201)
    ticket = json.loads(reserved["body"])["id"]
    answers = {
        f"/sales/{HOT}/tickets": answer(holdfast.reserve(HOT, buyer), 201),
        f"/sales/{FLOW}/tickets": reserved,
        f"/sales/{GONE}/tickets": answer(holdfast.reserve(GONE, buyer), 409),
        "*/payment": answer(holdfast.pay(ticket, buyer, X_Request_Id=buyer), 200),
    }
    path.write_text(json.dumps(answers, indent=1))


class Fastify(HttpStack):
    """Fastify and ioredis: see `peers/fastify/server.js`."""

    name = "fastify"

    def __init__(self, cores: Cores, directory: Path) -> None:
        super().__init__(cores, directory)
        self._redis: RedisServer | None = None

    def start(self) -> None:
        node, modules = machine.node_packages()
        self.directory.mkdir()
        self._redis = RedisServer(self.directory / "redis", self.cores)
        rates = {"0": 0.0, "1": 0.0}
        for automatic in tuple(rates) * self.trials:
            self._serve_with(node, modules, automatic)
            rates[automatic] = max(rates[automatic], self._load("reserve", 1, "-").rate)
        best = max(rates, key=lambda automatic: rates[automatic])
        if best != "1":
            self._serve_with(node, modules, best)
        seen = ", ".join(f"{rate:,.0f}/s {'with' if auto == '1' else 'without'}" for auto, rate in rates.items())
        self.chosen = f"enableAutoPipelining {'on' if best == '1' else 'off'} ({seen})"

    def _serve_with(self, node: str, modules: Path, automatic: str) -> None:
        assert self._redis is not None
        if self._child is not None:
            self._child.stop()
            (self.directory / "log").unlink()
        with self._redis.client() as client:
            client.flushall()
        script = str(Path(__file__).parent / "peers" / "fastify" / "server.js")
        environment = clean_environment() | {"NODE_PATH": str(modules), "NODE_ENV": "production"}
        self._serve([node, script, self._redis.socket, automatic], "the Fastify peer", self.cores.server, environment)
        self._create_sales()

    def stop(self) -> None:
        if self._redis is not None:
            self._redis.stop()
        super().stop()

    def roots(self) -> list[int]:
        return [*super().roots(), *([self._redis.pid] if self._redis else [])]

    def _roles(self) -> dict[str, tuple[list[int], list[int]]]:
        assert self._redis is not None
        return {"server": (super().roots(), []), "database": ([self._redis.pid], [])}


class Postgres(HttpStack):
    """aiohttp, asyncpg and PostgreSQL: see `peers/postgres.py`."""

    name = "postgres"

    #: Pool sizes that the set-up tries: on one hot row more of them mostly queue for its lock.
    POOL_SIZES = (4, 10, 32)

    #: Settings of a server with a few GB that must lose nothing: the defaults, but for what every guide changes.
    SETTINGS: ClassVar[dict[str, str]] = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "shared_buffers": "512MB",
        "effective_cache_size": "2GB",
        "work_mem": "16MB",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "wal_buffers": "16MB",
        "random_page_cost": "1.1",
        "max_connections": "100",
        "listen_addresses": "",
    }

    def __init__(self, cores: Cores, directory: Path) -> None:
        super().__init__(cores, directory)
        self._database: Child | None = None

    def start(self) -> None:
        server = machine.find("postgres")
        try:
            user = postgresql.user()
        except LookupError as error:
            raise machine.Missing(str(error)) from error
        self.directory.mkdir()
        self.directory.chmod(0o755)
        cluster = self.directory / "pg"
        cluster.mkdir()
        if user is not None:
            shutil.chown(cluster, user)
        data = cluster / "data"
        try:
            postgresql.make_cluster(Path(server).parent, data, "bench", "--auth=trust")
        except subprocess.CalledProcessError as error:
            raise Wrong(f"initdb failed: {error.stderr.strip()[-500:]}") from error
        settings = {**self.SETTINGS, "unix_socket_directories": str(cluster)}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        (self.directory / "db").mkdir()
        (self.directory / "db").chmod(0o755)
        self._database = Child(
            [server, "-D", str(data), *words],
            self.cores.other,
            self.directory / "db",
            environment=clean_environment(),
            user=user,
        )
        self._database.wait(lambda: "ready to accept connections" in self._log(), "postgres")
        rates = dict.fromkeys(self.POOL_SIZES, 0.0)
        for size in self.POOL_SIZES * self.trials:
            self._serve_with(cluster, size)
            if not any(rates.values()):
                self._create_sales()
            rates[size] = max(rates[size], self._load("reserve", 1, "-").rate)
        best = max(rates, key=lambda size: rates[size])
        if best != self.POOL_SIZES[-1]:
            self._serve_with(cluster, best)
        seen = ", ".join(f"{size}: {rate:,.0f}/s" for size, rate in rates.items())
        self.chosen = f"a pool of {best} connections (tried {seen})"

    def _log(self) -> str:
        assert self._database is not None
        return self._database.log()

    def _serve_with(self, cluster: Path, size: int) -> None:
        if self._child is not None:
            self._child.stop()
            (self.directory / "log").unlink()
        command = [sys.executable, "-P", "-m", "bench.peers.postgres", str(cluster), str(size)]
        self._serve(command, "the PostgreSQL peer", self.cores.server, load.python_environment())

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None
        if self._database is not None:
            self._database.stop()
        super().stop()

    def roots(self) -> list[int]:
        return [*super().roots(), *([self._database.pid] if self._database else [])]

    def _roles(self) -> dict[str, tuple[list[int], list[int]]]:
        assert self._database is not None
        return {"server": (super().roots(), []), "database": ([self._database.pid], [])}


# In one process -------------------------------------------------------------------------------------------------------


class Callers(Stack):
    """Concurrent callers in one process: see `callers.py`. Each run has a Redis of its own, empty."""

    name = "engine"
    appendfsync: ClassVar[str] = "everysec"
    durability: ClassVar[str] = "memory"

    #: For each scenario the mode of `callers.py` and the callers. `batches` has so many that every batch is full.
    SCENARIOS: ClassVar[dict[str, tuple[str, int]]] = {
        "reserve": ("engine-reserve", 1000),
        "pairs": ("engine-pairs", 512),
        "batches": ("engine-pairs", 1500),
    }

    def start(self) -> None:
        machine.redis_server()
        self.directory.mkdir()

    def stop(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def measure(self, scenario: str, seconds: float, pool: int = 0) -> Sample:
        mode, callers = self.SCENARIOS[scenario]
        self._numbers += 1
        directory = self.directory / str(self._numbers)
        server = RedisServer(directory, self.cores, self.appendfsync)
        try:
            options = {
                "mode": mode, "redis": server.url, "redis_pid": server.pid, "directory": str(directory),
                "callers": callers, "seconds": seconds, "pool": pool, "durability": self.durability,
            }  # fmt: skip
            result = run_module("callers", options, self.cores.server)
        finally:
            server.stop()
            shutil.rmtree(directory, ignore_errors=True)
        if result["counted"] != result["total"]:
            raise Wrong(f"{self.name}: {result['total']} calls went well, and Redis has {result['counted']}")
        extra = {"batch": result["batch"]} if "batch" in result else {}
        return Sample(result["count"], result["seconds"], result["cpu"], extra)


class CallersFsync(Callers):
    """The same with every payment on Redis' disk before it is acknowledged."""

    name = "engine, fsync"
    appendfsync = "always"
    durability = "fsync"


class CallersStored(Callers):
    """The same with every payment in the store before it is acknowledged."""

    name = "engine, stored"
    durability = "stored"


class RedisPy(Callers):
    """One EVALSHA for each call through redis-py: see `callers.py`."""

    name = "redis-py"
    SCENARIOS: ClassVar[dict[str, tuple[str, int]]] = {"reserve": ("redis-py", 1000)}

    #: Pool sizes that the set-up tries.
    POOL_SIZES = (16, 64, 256)

    def __init__(self, cores: Cores, directory: Path) -> None:
        super().__init__(cores, directory)
        self._pool = 0

    def start(self) -> None:
        super().start()
        rates = dict.fromkeys(self.POOL_SIZES, 0.0)
        for size in self.POOL_SIZES * self.trials:
            rates[size] = max(rates[size], super().measure("reserve", 1.0, size).rate)
        self._pool = max(rates, key=lambda size: rates[size])
        seen = ", ".join(f"{size}: {rate:,.0f}/s" for size, rate in rates.items())
        self.chosen = f"a pool of {self._pool} connections (tried {seen})"

    def measure(self, scenario: str, seconds: float, pool: int = 0) -> Sample:
        return super().measure(scenario, seconds, pool or self._pool)


class FlashScript(Stack):
    """The usual flash-sale script, driven from C by redis-benchmark, which takes the place of a server on the first
    core: see `peers/lua/flash.lua`."""

    name = "flash-sale script"

    #: Calls in the run that finds out how many make a second.
    TRIAL_CALLS = 20_000

    def __init__(self, cores: Cores, directory: Path) -> None:
        super().__init__(cores, directory)
        self._redis: RedisServer | None = None
        self._rates: dict[int, float] = {}

    def start(self) -> None:
        machine.find("redis-benchmark")
        self.directory.mkdir()
        self._redis = RedisServer(self.directory / "redis", self.cores)

    def stop(self) -> None:
        if self._redis is not None:
            self._redis.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def roots(self) -> list[int]:
        return [self._redis.pid] if self._redis else []

    def measure(self, scenario: str, seconds: int) -> Sample:
        """`scenario` is the pipeline's depth."""
        depth = int(scenario)
        if depth not in self._rates:
            self._rates[depth] = self._run(depth, self.TRIAL_CALLS).rate
        sample = self._run(depth, int(self._rates[depth] * seconds))
        self._rates[depth] = sample.rate
        return sample

    def _run(self, depth: int, calls: int) -> Sample:
        assert self._redis is not None
        script = (Path(__file__).parent / "peers" / "lua" / "flash.lua").read_text()
        with self._redis.client() as client:
            client.flushall()
            client.set("fl:{hot}:stock", CAPACITY)
            sha = str(client.script_load(script))
            keys = ("fl:{hot}:stock", "fl:{hot}:buyers", "fl:{hot}:orders")
            meter = CpuMeter({"database": ([self._redis.pid], [])})
            command = ("EVALSHA", sha, "3", *keys, "buyer-__rand_int__")
            rate, client_cpu = load.redis_benchmark(self.cores.server, self._redis.socket, calls, depth, *command)
            cpu = meter.read() | {"generator": client_cpu}
            sold, orders = CAPACITY - int(client.get(keys[0])), client.xlen(keys[2])
            # redis-benchmark sends whole pipelines, so that a few more calls than asked for may be made; and of
            # 10^11 names some come twice.
            if sold != orders or not 0.99 * calls <= orders <= calls + 64 * depth:
                raise Wrong(f"{self.name}: {calls} calls, {sold} units gone, {orders} orders")
        return Sample(calls, calls / rate, cpu)


def run_module(
    module: str, options: Mapping[str, Any], core: int | Sequence[int], seconds_max: float = MODULE_SECONDS_MAX
) -> dict[str, Any]:
    """Runs a module of this package in a process of its own, and reads the JSON that it prints.

    Raises
    ------
    Wrong: it failed.
    """
    done = subprocess.run(
        Cores.pinned(core, sys.executable, "-P", "-m", f"bench.{module}", json.dumps(options)),
        env=load.python_environment(),
        capture_output=True,
        text=True,
        timeout=seconds_max,
    )
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise Wrong(f"bench.{module} failed: {last_line(done.stderr)}")
    result: dict[str, Any] = json.loads(last_line(done.stdout))
    return result


def last_line(text: str) -> str:
    """The line of a traceback, or of a log, that says it."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]
