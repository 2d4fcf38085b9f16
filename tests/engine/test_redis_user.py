"""The Redis user of `deploy/redis-users.acl` is allowed everything that Holdfast needs, and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clusters
import pytest

from holdfast.engine import ConfigurationError, Durability, Engine, NotReady, Status, durability
from holdfast.engine.keys import EXPIRED_EVENTS, slot_keys

RULES = Path(__file__).parents[2] / "deploy" / "redis-users.acl"
SENTINEL_RULES = RULES.with_name("sentinel-users.acl")

#: What only a cluster is asked, and what it is never asked.
CLUSTERS_OWN = {"cluster|slots", "cluster|nodes", "asking"}
NOT_CLUSTERS = {"select"}

#: What nodes say to each other, and what the tests ask them.
NODES_OWN = {"replconf", "psync", "auth", "acl|setuser", "acl|log", "config|resetstat", "del", "flushall"}
PASSWORD = "p w/%:@?#é"
ESCAPED = "p%20w%2F%25%3A%40%3F%23%C3%A9"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def with_password(rules: str) -> str:
    """The file as `docs/security.md` has it completed, with a user beside it for the test."""
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    assert rules.count("user holdfast on ") == 1
    completed = rules.replace("user holdfast on ", f"user holdfast on #{digest} ")
    return completed + "user test on nopass ~* &* +@all\n"


class Guarded:
    """A Redis with the users of the file, and what its test user sees."""

    def __init__(self, start_redis: Callable[..., Any], binary: str, tmp_path: Path, rules: str) -> None:
        acl = tmp_path / "users.acl"
        acl.write_text(with_password(rules))
        port = str(free_port())
        options = ("--bind", "127.0.0.1", "--port", port, "--aclfile", str(acl), "--notify-keyspace-events", "Ex")
        options += ("--appendonly", "yes")
        self.process = start_redis(binary, *options, user="test")
        self.test = self.process.client()
        self.url = f"redis://holdfast:{ESCAPED}@127.0.0.1:{port}/1"

    def used(self) -> set[str]:
        """The commands that were carried out, those within scripts included."""
        stats = self.test.info("commandstats")
        return {name.removeprefix("cmdstat_") for name, figures in stats.items() if figures["calls"]}

    def denied(self) -> list[Any]:
        return [(entry["reason"], entry["object"], entry["username"]) for entry in self.test.acl_log()]

    def lose_ledger(self, sale: str) -> None:
        self.test.execute_command("SELECT", 1)
        self.test.execute_command("DEL", slot_keys(sale).ledger)

    def lose_everything(self) -> None:
        self.test.flushall()


class GuardedGroup:
    """A cluster, or a primary under sentinels, with the user of the file beside the one of the tests and the nodes."""

    def __init__(self, group: Any, cluster: bool) -> None:
        self._cluster = cluster
        self.group = group
        place = group.address().partition("//")[2]
        digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
        self._add_user(group.nodes, RULES, digest)
        for node in group.nodes:
            node.ask("CONFIG", "RESETSTAT")
        if cluster:
            self.url = f"redis+cluster://holdfast:{ESCAPED}@{place}"
        else:
            self._add_user(group.sentinels, SENTINEL_RULES, digest)
            login = f"sentinel_username=holdfast&sentinel_password={ESCAPED}"
            self.url = f"redis+sentinel://holdfast:{ESCAPED}@{place}?{login}"

    @staticmethod
    def _add_user(nodes: Any, rules: Path, digest: str) -> None:
        words = rules.read_text().splitlines()[1].split()[2:]
        for node in nodes:
            node.ask("ACL", "SETUSER", "holdfast", "reset", f"#{digest}", *words)

    def _primary(self, sale: str) -> Any:
        return self.group.primary(sale) if self._cluster else self.group.primary()

    def lose_ledger(self, sale: str) -> None:
        self._primary(sale).ask("DEL", slot_keys(sale).ledger)

    def lose_everything(self) -> None:
        for node in self.group.primaries if self._cluster else [self.group.primary()]:
            node.ask("FLUSHALL")

    def used(self) -> set[str]:
        found: set[bytes] = set()
        for node in self.group.nodes:
            lines = node.ask("INFO", "commandstats")
            found |= lines.keys() if isinstance(lines, dict) else set(re.findall(rb"cmdstat_([\w|-]+)", lines))
        return {name.decode() if isinstance(name, bytes) else name.removeprefix("cmdstat_") for name in found}

    def denied(self) -> list[Any]:
        everybody = self.group.processes
        return [entry for node in everybody if node.alive for entry in node.ask("ACL", "LOG")]


async def live(
    guarded: Guarded | GuardedGroup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    durability: Durability = Durability.MEMORY,
) -> None:
    """The whole life of sales, through everything that talks to Redis."""
    monkeypatch.setattr("holdfast.engine.snapshot.KEEP_TRANSITIONS", 1)
    options: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'store.db'}", "snapshot_ms": 20, "retention_ms": 0}
    async with Engine.connect(guarded.url, **options) as engine:
        async with asyncio.timeout(20):
            await engine._listeners.subscribed()
        await engine.create_sale("gig", name="Gig", capacity=100, hold_ms=600_000, max_per_buyer=4)
        await engine.amend_sale("gig", {"capacity": 120})
        await engine.create_sale("brief", name="Brief", capacity=3, hold_ms=20)
        held = await engine.reserve("gig", buyer="ann", quantity=1, key="h")
        bought = await engine.reserve("gig", buyer="bob", quantity=1)
        await engine.confirm(bought.id, buyer="bob", reference="pay_1", durability=durability)
        cancelled = await engine.reserve("gig", buyer="eve", quantity=1)
        await engine.cancel(cancelled.id, buyer="eve")
        brief = await engine.reserve("brief", buyer="ann", quantity=1)
        async with asyncio.timeout(20):
            async for expiration in engine.expirations(from_start=True):
                assert expiration.ticket == brief.id
                break
        assert (await engine.ticket(held.id)).status is Status.RESERVED
        assert len((await engine.tickets("gig")).items) == 3
        assert [ticket.id for ticket in (await engine.tickets("gig", buyer="ann")).items] == [held.id]
        await engine.snapshot()
        await engine._retention.run()
        await engine.snapshot()
        # The ledger is lost with something in it that was not copied: recovery reads the tickets themselves.
        late = await engine.reserve("gig", buyer="zoe", quantity=1)
        await asyncio.to_thread(guarded.lose_ledger, "gig")
        report = await engine.recover()
        assert report.clean
        assert (await engine.ticket(late.id)).status is Status.RESERVED
        # Everything is lost.
        await asyncio.to_thread(guarded.lose_everything)
        with pytest.raises(NotReady):
            await engine.reserve("gig", buyer="zoe", quantity=1)
        assert (await engine.recover()).clean
        assert (await engine.ticket(bought.id)).status is Status.PURCHASED
        assert (await engine.audit()).clean
        # Another sale's scripts are loaded by now; an engine that comes later finds its keys.
        assert (await engine.readiness()).ready


def commands_in(rules: str) -> set[str]:
    return set(re.findall(r" \+(\S+)", rules.splitlines()[1]))


@pytest.mark.parametrize("kind", ["embedded", "installed", "valkey"])
async def test_it_may_do_what_holdfast_does_and_nothing_else(
    kind: str, server_binary: Any, start_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = RULES.read_text()
    if kind == "valkey":
        # As docs/security.md has it where payments are to be on disk; older servers do not know the word. Asked of
        # Valkey here, since there is no newer Redis.
        rules = rules.replace(" +evalsha", " +evalsha +waitaof")
        monkeypatch.setattr(durability, "can_wait", lambda server: True)
    allowed = commands_in(rules) - CLUSTERS_OWN
    guarded = Guarded(start_redis, server_binary(kind), tmp_path, rules)
    # What the test's own user does: log in, look, lose data.
    ours = {"auth", "acl", "acl|log", "flushall", "del", "ping"} | guarded.used()
    await live(guarded, tmp_path, monkeypatch, Durability.FSYNC if kind == "valkey" else Durability.MEMORY)
    assert guarded.denied() == []
    used = guarded.used()
    if kind == "embedded":
        allowed = {name.partition("|")[0] for name in allowed}  # 6.2 does not count subcommands
    assert (used - ours - {"hello", "acl|log"}) - allowed == set(), "used, and not allowed?"
    assert allowed - used == set(), "allowed, and not used"


@pytest.mark.parametrize("kind", ["installed", "valkey"])
async def test_in_a_cluster_it_may_do_what_holdfast_does_and_nothing_else(
    kind: str, server_binary: Any, start_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"notify-keyspace-events": "Ex"}
    group = await asyncio.to_thread(start_cluster, server_binary(kind), replicas=0, settings=settings)
    guarded = GuardedGroup(group, cluster=True)
    await live(guarded, tmp_path, monkeypatch)
    # A slot whose keys have moved, and which has not: they are asked for where they are.
    (source, target), number = group.primaries[:2], clusters.hash_slot("moved")
    if group.primary("moved") is not source:
        source, target = group.primary("moved"), source
    ids = {node: group.seats()[node].id for node in (source, target)}
    async with Engine.connect(guarded.url, store=f"sqlite:///{tmp_path / 'store.db'}") as engine:
        await engine.create_sale("moved", name="Moved", capacity=2)
        target.ask("CLUSTER", "SETSLOT", number, "IMPORTING", ids[source])
        source.ask("CLUSTER", "SETSLOT", number, "MIGRATING", ids[target])
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", number, 100)
        source.ask("MIGRATE", target.host, target.port, "", 0, 10_000, "KEYS", *keys)
        assert (await engine.sale("moved")).items[0].capacity == 2
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", number, "NODE", ids[target])
        await engine.reserve("moved", buyer="ann", quantity=1)
    assert guarded.denied() == []
    used = guarded.used()
    assert (
        used
        - NODES_OWN
        - {"hello", "cluster|setslot", "cluster|getkeysinslot", "migrate", "restore-asking"}
        - commands_in(RULES.read_text())
        == set()
    )
    assert commands_in(RULES.read_text()) - NOT_CLUSTERS - used == set(), "allowed, and not used"


async def test_under_sentinels_it_may_do_what_holdfast_does_and_nothing_else(
    server_binary: Any, start_sentinels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"notify-keyspace-events": "Ex"}
    group = await asyncio.to_thread(start_sentinels, server_binary("installed"), replicas=1, settings=settings)
    guarded = GuardedGroup(group, cluster=False)
    await live(guarded, tmp_path, monkeypatch)
    async with Engine.connect(guarded.url, store=f"sqlite:///{tmp_path / 'store.db'}") as engine:
        await asyncio.to_thread(group.primary().kill)
        async with asyncio.timeout(40):
            while True:
                try:
                    await engine.reserve("gig", buyer="kim", quantity=1)
                    break
                except NotReady:
                    await engine.recover()
    assert guarded.denied() == []
    (asked,) = (line for line in SENTINEL_RULES.read_text().splitlines() if " holdfast " in line)
    assert re.findall(r" \+(\S+)", asked) == ["sentinel|get-master-addr-by-name", "sentinel|master"]


@pytest.mark.parametrize("kind", ["embedded", "installed", "valkey"])
async def test_redis_reads_its_file_again_with_these_users(
    kind: str, server_binary: Any, start_redis: Any, tmp_path: Path
) -> None:
    """What a script has written is read as a transaction of the user `default`, and dropped where it has no rights."""
    guarded = Guarded(start_redis, server_binary(kind), tmp_path, RULES.read_text())
    async with Engine.connect(guarded.url, store=f"sqlite:///{tmp_path / 'store.db'}", snapshot_ms=None) as engine:
        await engine.create_sale("gig", name="Gig", capacity=10)
        held = await engine.reserve("gig", buyer="ann", quantity=2)
        bought = await engine.reserve("gig", buyer="bob", quantity=1)
        await engine.confirm(bought.id, buyer="bob")
        guarded.test.close()
        guarded.process.kill()
        guarded.process.start()
        assert (await engine.ticket(held.id)).status is Status.RESERVED
        assert (await engine.ticket(bought.id)).status is Status.PURCHASED
        (item,) = (await engine.sale("gig")).items
        assert (item.available, item.reserved, item.purchased) == (7, 2, 1)
        assert (await engine.readiness()).ready


def test_the_file_gives_nothing_away() -> None:
    off, holdfast = RULES.read_text().splitlines()
    # Nobody can log in as it. Its rights are those with which Redis reads its own append-only file.
    assert off == "user default off ~* &* +@all"
    words = holdfast.split()
    assert words[:2] == ["user", "holdfast"]
    assert "-@all" in words
    # Categories grow with every version of Redis; a user without a password cannot log in until it has one.
    assert not [word for word in words if word.startswith(("+@", ">", "#", "<")) or word in ("nopass", "~*", "&*")]
    assert [word for word in words if word.startswith("~")] == ["~hf:*"]
    assert [word for word in words if word.startswith("&")] == [f"&{EXPIRED_EVENTS}"]


@pytest.mark.parametrize("missing", ["+info", "+get", "~hf:*"])
async def test_a_user_that_may_too_little_is_told_at_the_start(
    missing: str, server_binary: Any, start_redis: Any, tmp_path: Path
) -> None:
    guarded = Guarded(start_redis, server_binary("installed"), tmp_path, RULES.read_text().replace(f" {missing}", ""))
    with pytest.raises(ConfigurationError, match=r"give .* the rules of deploy/redis-users\.acl"):
        async with Engine.connect(guarded.url, store=f"sqlite:///{tmp_path / 'store.db'}"):
            pass


async def test_a_policy_that_is_not_told_is_refused(server_binary: Any, start_redis: Any, tmp_path: Path) -> None:
    rules = RULES.read_text().replace("+info", "+info|server +info|replication")
    guarded = Guarded(start_redis, server_binary("installed"), tmp_path, rules)
    with pytest.raises(ConfigurationError, match="does not tell its maxmemory-policy"):
        async with Engine.connect(guarded.url, store=f"sqlite:///{tmp_path / 'store.db'}"):
            pass


async def test_a_wrong_password_is_told_without_it(server_binary: Any, start_redis: Any, tmp_path: Path) -> None:
    guarded = Guarded(start_redis, server_binary("installed"), tmp_path, RULES.read_text())
    with pytest.raises(ConfigurationError, match="does not accept this user and password") as told:
        async with Engine.connect(guarded.url.replace("%20w", "x"), store=f"sqlite:///{tmp_path / 'store.db'}"):
            pass
    assert "px" not in str(told.value)
