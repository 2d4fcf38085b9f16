"""Redis Clusters and Sentinel groups of our own on loopback, for the tests, the fault runs and the bench.

All calls block; in an event loop: `asyncio.to_thread(cluster.move, "gig", node)`. Whatever was started ends with the
`with` block, with this process, and, where `setpriv` is there, with the thread that started it, however that dies.

What a start costs. A cluster is not formed by CLUSTER MEET, but written into each node's `nodes.conf`, as if all of
them came back from a restart. Meeting takes a second or more: nodes shake hands ten times a second, learn of each other
by gossip (one random node a second), and two with the same epoch settle who has the later one. Written down, every node
knows all others, their slots and epochs, at once. What is left are the two seconds for which a primary that has just
started refuses writes (CLUSTER_WRITABLE_DELAY in cluster.c): nothing shortens them. Sentinels would find each other
within some seconds, and are written down in the same way. A replica's first copy would wait five seconds for others
(repl-diskless-sync-delay).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

#: Where everything listens, unless told otherwise.
LOOPBACK = "127.0.0.1"

#: Slots of a Redis Cluster.
SLOTS = 16_384

#: Seconds in which servers must have done what they are asked; six busy workers may share two cores.
PATIENCE_S = 40.0

#: The cluster's own port is this far above that for clients; a server of 6.2 knows no other.
BUS_ABOVE = 10_000

#: Ports of clients are drawn from here, so that both lie below those that the kernel gives to whoever names none.
PORTS = range(10_000, 22_000)

#: Seconds in which a node tells what it is; one that has no network does not.
ANSWER_S = 1.0

#: Keys of a slot that one MIGRATE carries: as redis-cli does.
KEYS_A_STEP = 10

#: Milliseconds that one MIGRATE may take.
MIGRATE_MS = 20_000

_taken: set[int] = set()


def _free_port() -> int:
    """A port that nobody listens on, nor on the one for the cluster's own traffic."""
    while True:
        port = PORTS[int.from_bytes(os.urandom(4), "big") % len(PORTS)]
        if port in _taken:
            continue
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind((LOOPBACK, port))
                other.bind((LOOPBACK, port + BUS_ABOVE))
            except OSError:
                continue
        _taken.add(port)
        return port


def until(what: str, condition: Callable[[], Any], seconds: float = PATIENCE_S, pause_s: float = 0.01) -> Any:
    """Waits for a condition; its first true value. A server that does not answer makes it false.

    Raises
    ------
    TimeoutError: it did not come to be in time.
    """
    give_up = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.exceptions.RedisError):
            if value := condition():
                return value
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause_s)


def hash_slot(name: str | int) -> int:
    """The cluster's slot of all keys with this hash tag: the name of a sale, or of a shard. A number is one already."""
    return name if isinstance(name, int) else int(key_slot(name.encode()))


class Node:
    """A server of a group: its process, its files, its address.

    Parameters
    ----------
    settings: lines of its configuration, name to value. sentinel: whether it is one, and no Redis.
    prefix: a command in front of it, such as `ip netns exec NAME`.
    """

    def __init__(
        self,
        binary: str,
        directory: Path,
        settings: Mapping[str, object],
        *,
        host: str = LOOPBACK,
        prefix: Sequence[str] = (),
        password: str | None = None,
        sentinel: bool = False,
    ) -> None:
        self.host, self.port = host, _free_port()
        self.directory = directory
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        self._binary, self._prefix, self._password = binary, list(prefix), password
        self._is_sentinel = sentinel
        directory.mkdir(parents=True)
        # A file, and no flags: the server writes into it whom it follows, and knows that again after a restart.
        self._file = directory / "conf"
        self.configure(f"port {self.port}", f"bind {host}", "protected-mode no", f"dir {directory}")
        if host != LOOPBACK:
            # By itself it would speak to others from whatever address is nearest to them (6.2 has no such setting).
            self.configure(f"bind-source-addr {host}")
        self.configure(*(f"{name} {value}" for name, value in settings.items()))

    def __repr__(self) -> str:
        return f"<{'sentinel' if self._is_sentinel else 'node'} {self.host}:{self.port}>"

    def configure(self, *lines: str) -> None:
        """More lines for its file, before it starts."""
        with self._file.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def launch(self) -> None:
        """Starts it and does not wait."""
        tied = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*self._prefix, *tied, self._binary, str(self._file), *(["--sentinel"] if self._is_sentinel else [])]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.paused = False

    def answers(self) -> None:
        """Waits until it answers with its data loaded."""

        def pong() -> bool:
            if not self.alive:
                raise RuntimeError(f"{self} did not start:\n{self.log.read_text()[-2000:]}")
            return bool(self.ask("PING"))

        until(f"{self} answers", pong)

    def start(self) -> None:
        """Starts it, also after it was killed, and returns when it answers with its data loaded."""
        self.launch()
        self.answers()

    restart = start

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and nothing of it is left when this returns."""
        if self.process is not None and self.alive:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)
        self.paused = False

    def forget(self) -> None:
        """Its data is gone, and what it is in the cluster is not; it must not run."""
        assert not self.alive
        for path in self.directory.iterdir():
            if path.name not in ("conf", "log", "nodes.conf"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def client(self, timeout_s: float = PATIENCE_S) -> redis.Redis:
        return redis.Redis(
            host=self.host, port=self.port, password=self._password, socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2, driver_info=None,
        )  # fmt: skip

    def ask(self, *command: Any, timeout_s: float = PATIENCE_S) -> Any:
        """One command on a connection of its own."""
        with self.client(timeout_s) as client:
            return client.execute_command(*command)

    def ask_all(self, *commands: Sequence[Any]) -> list[Any]:
        """Many commands in one round trip."""
        with self.client() as client, client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute())

    def info(self, section: str = "everything") -> dict[str, Any]:
        with self.client() as client:
            return dict(client.info(section))

    def cpu_s(self) -> float:
        """Seconds of CPU that its main thread, which runs commands and scripts, has taken since it started."""
        cpu = self.info("cpu")
        return float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


class _Group:
    """Nodes that end together, and their directory."""

    def __init__(self, binary: str, password: str | None) -> None:
        self.binary, self.password = binary, password
        self.directory = Path(tempfile.mkdtemp(prefix="hf-group-"))
        self.nodes: list[Node] = []
        atexit.register(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def processes(self) -> list[Node]:
        return self.nodes

    def stop(self) -> None:
        """kill -9 of everything, and its files go."""
        for node in self.processes:
            node.kill()
            _taken.discard(node.port)
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.stop)

    @property
    def running(self) -> list[Node]:
        """Nodes with data that can answer."""
        return [node for node in self.nodes if node.alive and not node.paused]

    def wait_ok(self, seconds: float = PATIENCE_S) -> None:
        raise NotImplementedError

    def empty(self) -> None:
        """Forgets every key, on all nodes, once all is well."""
        self.wait_ok()
        for node in self.nodes:
            with contextlib.suppress(redis.exceptions.ReadOnlyError):
                node.ask("FLUSHALL")
            node.ask("CONFIG", "SET", "notify-keyspace-events", "")
        self.wait_ok()

    def _login(self) -> str:
        return f":{self.password}@" if self.password is not None else ""

    def _add(self, settings: Mapping[str, object], host: str, prefix: Sequence[str] = ()) -> Node:
        common: dict[str, object] = {
            "save": '""', "appendonly": "yes", "appendfsync": "everysec",
            "repl-diskless-sync": "yes", "repl-diskless-sync-delay": 0,
        }  # fmt: skip
        if self.password is not None:
            common |= {"requirepass": self.password, "masterauth": self.password}
        directory = self.directory / f"node-{len(self.nodes)}"
        node = Node(self.binary, directory, common | dict(settings), host=host, prefix=prefix, password=self.password)
        self.nodes.append(node)
        return node


@dataclass(frozen=True)
class Seat:
    """What a node says of itself in the cluster.

    Parameters
    ----------
    of: the id of its primary, when it is a replica. slots: that it has, in ranges with both ends.
    """

    id: str
    primary: bool
    of: str
    epoch: int
    slots: tuple[tuple[int, int], ...]

    @staticmethod
    def parse(line: str) -> Seat:
        id, _, flags, of, _, _, epoch, _, *slots = line.split()
        ranges = [part.partition("-") for part in slots if not part.startswith("[")]
        return Seat(
            id, "master" in flags, of, int(epoch), tuple((int(low), int(high or low)) for low, _, high in ranges)
        )

    def has(self, slot: int) -> bool:
        return any(low <= slot <= high for low, high in self.slots)

    @property
    def count(self) -> int:
        return sum(high - low + 1 for low, high in self.slots)


class Cluster(_Group):
    """A Redis Cluster, formed and ready.

    Parameters
    ----------
    binary: redis-server or valkey-server. primaries, replicas: how many, and how many of each; all have as many slots.
    node_timeout_ms: cluster-node-timeout, after which a node that is silent is failed over.
    settings: of all nodes.
    host: of the nodes. elsewhere: by number, primaries first, nodes that are somewhere else, such as in a network of
    their own: host, and a command in front of the server.

    With `cluster-require-full-coverage no`, as Holdfast wants it: one shard that is away takes no other along.
    """

    def __init__(
        self,
        binary: str,
        *,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 2_000,
        password: str | None = None,
        settings: Mapping[str, object] | None = None,
        host: str = LOOPBACK,
        elsewhere: Mapping[int, tuple[str, Sequence[str]]] | None = None,
    ) -> None:
        super().__init__(binary, password)
        self._settings: dict[str, object] = {
            "cluster-enabled": "yes", "cluster-config-file": "nodes.conf", "cluster-node-timeout": node_timeout_ms,
            "cluster-require-full-coverage": "no",
        }  # fmt: skip
        self._settings |= settings or {}
        self._host = host
        try:
            for number in range(primaries * (1 + replicas)):
                self._add(self._settings, *(elsewhere or {}).get(number, (host, ())))
            self._write_down(primaries)
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.answers()
            self.wait_ok()
        except BaseException:
            self.stop()
            raise

    def _write_down(self, primaries: int) -> None:
        """Tells every node of all: ids, addresses, slots, epochs, as it would have kept them itself."""
        ids = [secrets.token_hex(20) for _ in self.nodes]
        ends = [SLOTS * part // primaries for part in range(primaries + 1)]
        for me, node in enumerate(self.nodes):
            lines = []
            for number, other in enumerate(self.nodes):
                is_primary, of = number < primaries, number % primaries
                flags = ("myself," if number == me else "") + ("master" if is_primary else "slave")
                slots = f" {ends[of]}-{ends[of + 1] - 1}" if is_primary else ""
                place = f"{other.host}:{other.port}@{other.port + BUS_ABOVE}"
                lines.append(
                    f"{ids[number]} {place} {flags} {'-' if is_primary else ids[of]} 0 0 {of + 1} connected{slots}"
                )
            text = "\n".join([*lines, f"vars currentEpoch {primaries} lastVoteEpoch 0"])
            (node.directory / "nodes.conf").write_text(text + "\n")

    # -- who is what ---------------------------------------------------------------------------------------------------

    def address(self, nodes: Sequence[Node] | None = None) -> str:
        """What Holdfast is given: these nodes, or all that were there in the beginning."""
        hosts = ",".join(f"{node.host}:{node.port}" for node in nodes or self.nodes)
        return f"redis+cluster://{self._login()}{hosts}"

    def seats(self) -> dict[Node, Seat]:
        """What each running node says of itself."""
        found = {}
        for node in self.running:
            with contextlib.suppress(redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                text = node.ask("CLUSTER", "NODES", timeout_s=ANSWER_S).decode()
                found[node] = Seat.parse(next(line for line in text.splitlines() if "myself" in line))
        return found

    @property
    def primaries(self) -> list[Node]:
        """The running ones that have slots, in the order of these."""
        seats = self.seats()
        return sorted((node for node, seat in seats.items() if seat.primary and seat.slots),
                      key=lambda node: seats[node].slots)  # fmt: skip

    def primary(self, name: str | int) -> Node:
        """The running node that has the slot of a sale, or this slot; of two that say so the one with the later epoch.

        Raises
        ------
        LookupError: nobody has it.
        """
        slot = hash_slot(name)
        having = [(seat.epoch, node) for node, seat in self.seats().items() if seat.primary and seat.has(slot)]
        if not having:
            raise LookupError(f"no running node has slot {slot}")
        return max(having, key=lambda each: each[0])[1]

    def replicas(self, of: Node | str | int) -> list[Node]:
        """The running replicas of a node, or of the node that has a sale."""
        seats = self.seats()
        id = seats[of if isinstance(of, Node) else self.primary(of)].id
        return [node for node, seat in seats.items() if not seat.primary and seat.of == id]

    def slots(self, node: Node) -> Iterator[int]:
        """The slots that a node has."""
        for low, high in self.seats()[node].slots:
            yield from range(low, high + 1)

    def wait_ok(self, seconds: float = PATIENCE_S) -> None:
        """Waits until every running node finds the cluster well, knows all that run, and every replica is in step."""

        def well(node: Node) -> bool:
            told = dict(line.split(":", 1) for line in node.ask("CLUSTER", "INFO").decode().splitlines())
            return bool(told["cluster_state"] == "ok") and int(told["cluster_known_nodes"]) >= len(self.running)

        def in_step(node: Node, seats: dict[Node, Seat]) -> bool:
            told = node.info("replication")
            if not seats[node].primary:
                return bool(told["role"] == "slave" and told["master_link_status"] == "up")
            attached = [each for each in told.values() if isinstance(each, dict)]
            online = sum(each["state"] == "online" for each in attached)
            return bool(online >= sum(seat.of == seats[node].id for seat in seats.values()))

        def all_well() -> bool:
            seats = self.seats()
            covered = sum(seat.count for seat in seats.values() if seat.primary) == SLOTS
            return covered and all(well(node) and in_step(node, seats) for node in seats)

        until("the cluster is well", all_well, seconds)

    # -- what happens to it --------------------------------------------------------------------------------------------

    def wait_failed_over(self, name: str | int, old: Node, seconds: float = PATIENCE_S) -> Node:
        """Waits until another node than `old` has the slot of a sale, and says so to clients; that node."""

        def taken_over() -> Node | None:
            with contextlib.suppress(LookupError):
                node = self.primary(name)
                if node is not old and b"cluster_state:ok" in node.ask("CLUSTER", "INFO"):
                    return node
            return None

        found: Node = until(f"slot {hash_slot(name)} has failed over", taken_over, seconds)
        return found

    def fail_over(self, name: str | int) -> Node:
        """Hands the node that has a sale over to its replica, in good order: nothing is lost; the new primary."""
        old = self.primary(name)
        replica, *_ = self.replicas(old)
        replica.ask("CLUSTER", "FAILOVER")
        return self.wait_failed_over(name, old)

    def begin_move(self, name: str | int, to: Node) -> Node:
        """From now on the slot is on its way: keys that are not at its old node any more are looked for at the new one.

        Returns the old node.
        """
        slot, old = hash_slot(name), self.primary(name)
        seats = self.seats()
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", seats[old].id)
        old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", seats[to].id)
        return old

    def carry(self, name: str | int, old: Node, to: Node, keys: int = KEYS_A_STEP) -> int:
        """Moves so many keys of the slot, at most; how many these were."""
        slot = hash_slot(name)
        found = old.ask("CLUSTER", "GETKEYSINSLOT", slot, keys)
        if found:
            login = ("AUTH", self.password) if self.password is not None else ()
            old.ask("MIGRATE", to.host, to.port, "", 0, MIGRATE_MS, *login, "KEYS", *found)
        return len(found)

    def end_move(self, name: str | int, old: Node, to: Node) -> None:
        """The slot is the new node's. It is told first: at no time has nobody the slot."""
        slot, id = hash_slot(name), self.seats()[to].id
        for node in (to, old, *self.primaries):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", id)

    def move(self, name: str | int, to: Node, *, keys: int = KEYS_A_STEP, pause_s: float = 0.0) -> None:
        """Moves the slot of a sale, live: `keys` at a time with a pause between."""
        old = self.begin_move(name, to)
        while self.carry(name, old, to, keys):
            time.sleep(pause_s)
        self.end_move(name, old, to)

    def migrate(self, name: str | int, to: Node) -> None:
        """Moves the slot of a sale as Valkey 9 does: in one piece, beside the selling (CLUSTER MIGRATESLOTS)."""
        slot, old = hash_slot(name), self.primary(name)
        old.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.seats()[to].id)

        def moved() -> bool:
            # For a moment nobody says that it has it.
            with contextlib.suppress(LookupError):
                return self.primary(slot) is to
            return False

        until(f"slot {slot} has moved", moved)

    def add_node(self) -> Node:
        """A new primary without slots, that all know."""
        old = self.running
        node = self._add(self._settings, self._host)
        node.start()
        # Introduced to everybody at once: gossip would take its time.
        for other in old:
            node.ask("CLUSTER", "MEET", other.host, other.port)
        self.wait_ok()
        return node

    def rebalance(self, to: Node, slots: int | None = None) -> int:
        """Moves slots from all other primaries to this node, live: so many in all, or its fair share; how many."""
        givers = [node for node in self.primaries if node is not to]
        wanted = SLOTS // (len(givers) + 1) if slots is None else slots
        id = self.seats()[to].id
        moved = 0
        for number, old in enumerate(givers):
            share = wanted * (number + 1) // len(givers) - wanted * number // len(givers)
            own, chosen = self.seats()[old].id, list(self.slots(old))[:share]
            to.ask_all(*(("CLUSTER", "SETSLOT", slot, "IMPORTING", own) for slot in chosen))
            old.ask_all(*(("CLUSTER", "SETSLOT", slot, "MIGRATING", id) for slot in chosen))
            # From here on a key that is new is made at the new node, so that a slot that is empty stays so.
            left = old.ask_all(*(("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in chosen))
            for slot, count in zip(chosen, left, strict=True):
                while count and self.carry(slot, old, to):
                    pass
            for node in (to, old, *(other for other in givers if other is not old)):
                node.ask_all(*(("CLUSTER", "SETSLOT", slot, "NODE", id) for slot in chosen))
            moved += len(chosen)
        return moved


class Sentinels(_Group):
    """A primary with its replicas, and the sentinels that watch them: all of it well.

    Parameters
    ----------
    replicas, sentinels: how many. quorum: sentinels that must miss the primary.
    min_replicas_to_write: replicas without which the primary refuses writes, ten seconds after it last heard of them.
    sentinel_password: of the sentinels, when they have one. settings: of the nodes with data.
    host, elsewhere: as for `Cluster`; the first node is the primary.
    """

    #: The name of the primary, for those who ask a sentinel.
    NAME = "holdfast"

    def __init__(
        self,
        binary: str,
        *,
        replicas: int = 2,
        sentinels: int = 3,
        quorum: int = 2,
        down_after_ms: int = 1_000,
        failover_timeout_ms: int = 5_000,
        min_replicas_to_write: int = 0,
        password: str | None = None,
        sentinel_password: str | None = None,
        settings: Mapping[str, object] | None = None,
        host: str = LOOPBACK,
        elsewhere: Mapping[int, tuple[str, Sequence[str]]] | None = None,
    ) -> None:
        super().__init__(binary, password)
        self.sentinels: list[Node] = []
        self.sentinel_password = sentinel_password
        common = {"min-replicas-to-write": min_replicas_to_write, "min-replicas-max-lag": 10} | dict(settings or {})
        try:
            places = [(elsewhere or {}).get(number, (host, ())) for number in range(1 + replicas)]
            first = self._add(common, *places[0])
            for place in places[1:]:
                self._add(common | {"replicaof": f"{first.host} {first.port}"}, *place)
            for number in range(sentinels):
                directory = self.directory / f"sentinel-{number}"
                own = {"requirepass": sentinel_password} if sentinel_password is not None else {}
                self.sentinels.append(
                    Node(binary, directory, own, host=host, password=sentinel_password, sentinel=True)
                )
            ids = [secrets.token_hex(20) for _ in self.sentinels]
            for me, sentinel in enumerate(self.sentinels):
                lines = [
                    f"sentinel myid {ids[me]}",
                    f"sentinel monitor {self.NAME} {first.host} {first.port} {quorum}",
                    f"sentinel down-after-milliseconds {self.NAME} {down_after_ms}",
                    f"sentinel failover-timeout {self.NAME} {failover_timeout_ms}",
                    f"sentinel parallel-syncs {self.NAME} {replicas or 1}",
                    *([f"sentinel auth-pass {self.NAME} {password}"] if password is not None else []),
                    *([f"sentinel sentinel-pass {sentinel_password}"] if sentinel_password is not None else []),
                    *(f"sentinel known-replica {self.NAME} {node.host} {node.port}" for node in self.nodes[1:]),
                    *(
                        f"sentinel known-sentinel {self.NAME} {other.host} {other.port} {ids[number]}"
                        for number, other in enumerate(self.sentinels)
                        if number != me
                    ),
                ]
                sentinel.configure(*lines)
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.answers()
            for sentinel in self.sentinels:
                sentinel.launch()
            for sentinel in self.sentinels:
                sentinel.answers()
            self.wait_ok()
        except BaseException:
            self.stop()
            raise

    @property
    def processes(self) -> list[Node]:
        return [*self.nodes, *self.sentinels]

    def address(self, db: int = 0) -> str:
        """What Holdfast is given."""
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.sentinels)
        own = f"?sentinel_password={self.sentinel_password}" if self.sentinel_password is not None else ""
        return f"redis+sentinel://{self._login()}{hosts}/{self.NAME}{f'/{db}' if db else ''}{own}"

    def _asked(self) -> list[Node]:
        return [node for node in self.sentinels if node.alive and not node.paused]

    def primary(self) -> Node:
        """The node that most of the sentinels which run name as the primary, dead or alive."""
        said = []
        for sentinel in self._asked():
            host, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)
            said += [node for node in self.nodes if (node.host, node.port) == (host.decode(), int(port))]
        return max(said, key=said.count)

    def replicas(self) -> list[Node]:
        """All other nodes that run."""
        primary = self.primary()
        return [node for node in self.running if node is not primary]

    def wait_ok(self, seconds: float = PATIENCE_S) -> None:
        """Waits until the nodes that run follow one primary, and each sentinel that runs could fail it over.

        A sentinel looks at replicas every ten seconds, and leads a killed primary that came back to the new one then.
        """

        def well() -> bool:
            primary = self.primary()
            told = primary.info("replication")
            online = [each for each in told.values() if isinstance(each, dict) and each.get("state") == "online"]
            in_step = told["role"] == "master" and len(online) >= len(self.running) - 1
            return in_step and all(self._finds_well(sentinel, primary) for sentinel in self._asked())

        until("the sentinels find all well", well, seconds, pause_s=0.05)

    def _finds_well(self, sentinel: Node, primary: Node) -> bool:
        def fields(reply: Sequence[bytes]) -> dict[bytes, bytes]:
            return dict(zip(reply[::2], reply[1::2], strict=True))

        sentinel.ask("SENTINEL", "CKQUORUM", self.NAME)
        state = fields(sentinel.ask("SENTINEL", "MASTER", self.NAME))
        if int(state[b"port"]) != primary.port or state[b"flags"] != b"master":
            return False
        # It promotes none of which it does not know that it is in step.
        seen = [fields(replica) for replica in sentinel.ask("SENTINEL", "REPLICAS", self.NAME)]
        return len(self.running) == 1 or any(
            each[b"flags"] == b"slave" and each[b"master-link-status"] == b"ok" for each in seen
        )

    def wait_failed_over(self, old: Node, seconds: float = PATIENCE_S) -> Node:
        """Waits until the sentinels name another primary, which is one; that node."""

        def taken_over() -> Node | None:
            node = self.primary()
            return node if node is not old and node.info("replication")["role"] == "master" else None

        found: Node = until("the sentinels have another primary", taken_over, seconds)
        return found

    def fail_over(self) -> Node:
        """SENTINEL FAILOVER: a replica is promoted though the primary is well; the new primary.

        Writes that had not reached it are lost: Sentinel does not wait for the replica.
        """
        old = self.primary()
        self._asked()[0].ask("SENTINEL", "FAILOVER", self.NAME)
        return self.wait_failed_over(old)
