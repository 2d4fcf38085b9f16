"""docker-compose.yml: what each profile starts, and every command and configuration of it carried out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import containers
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
EXAMPLE = (ROOT / ".env.example").read_text()

#: Of which one at a time is started.
TOPOLOGIES = ("single", "sentinel", "cluster")

SECRETS = {
    "HOLDFAST_REDIS_PASSWORD": "of1the2server3",
    "HOLDFAST_REDIS_ADMIN_PASSWORD": "of4people5and6nodes",
    "HOLDFAST_POSTGRES_PASSWORD": "of7the8store9",
    "HOLDFAST_OPERATOR_TOKEN": "operators-token-for-tests",
}

needs_compose = pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose on this machine")


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The services as docker-compose understands them."""
    written = subprocess.run(
        ["docker-compose", "config"],
        cwd=ROOT,
        env=os.environ | SECRETS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert written.returncode == 0, written.stderr
    services: dict[str, Any] = yaml.safe_load(written.stdout)["services"]
    return services


def of(services: Mapping[str, Any], *profiles: str) -> dict[str, Any]:
    """What these profiles start."""
    return {name: service for name, service in services.items() if set(service["profiles"]) & set(profiles)}


def server_of(services: Mapping[str, Any]) -> str:
    (name,) = (name for name, service in services.items() if "build" in service)
    return name


# What is started ------------------------------------------------------------------------------------------------------


def test_one_plain_command_starts_a_single_redis() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    # Nothing is started in every profile: what is not asked for would run beside what is.
    assert [name for name, service in services.items() if not service.get("profiles")] == []
    assert {name for service in services.values() for name in service["profiles"]} == {*TOPOLOGIES, "observability"}
    assert set(of(services, "single")) == {"server", "redis", "postgres"}
    assert re.findall(r"^COMPOSE_PROFILES=(\w+)$", EXAMPLE, re.MULTILINE) == ["single"]
    assert "docker compose up --build --wait" in COMPOSE.read_text()


def test_every_variable_is_in_the_example() -> None:
    text = COMPOSE.read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == set(SECRETS)
    assert set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE)) == required | {"COMPOSE_PROFILES"}


@needs_compose
@pytest.mark.parametrize("profile", TOPOLOGIES)
def test_a_profile_is_whole(resolved: dict[str, Any], profile: str) -> None:
    services = of(resolved, profile, "observability")
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("/") or Path(source).exists(), volume
    published = [port.rpartition(":")[0] for service in services.values() for port in service.get("ports", ())]
    assert len(set(published)) == len(published)
    assert all(port.startswith("127.0.0.1:") for port in published)
    # Every name of an address is a service of the profile.
    server = services[server_of(services)]
    assert server["networks"]["default"]["aliases"] == ["holdfast"]
    hosts = server["environment"]["HOLDFAST_REDIS"].partition("@")[2].partition("/")[0]
    assert {host.partition(":")[0] for host in hosts.split(",")} <= set(services)
    # Whoever may look at processes sees no password.
    for service in services.values():
        words = " ".join(service.get("command") or ())
        assert not any(secret in words for secret in SECRETS.values())


def test_what_redis_cannot_do_without_is_in_every_configuration() -> None:
    common = ROOT / "deploy" / "redis" / "redis.conf"
    settings = dict(line.split(" ", 1) for line in common.read_text().splitlines() if line and not line.startswith("#"))
    assert (settings["appendonly"], settings["maxmemory-policy"]) == ("yes", "noeviction")
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        if "redis/start.sh" in str(service.get("command")) or "greet.sh" in str(service.get("command")):
            assert "/etc/holdfast/redis/redis.conf" in service["command"]


# Carried out ----------------------------------------------------------------------------------------------------------


class Project:
    """What `docker compose up` starts, but for the store, which is SQLite."""

    def __init__(self, net: containers.Network, services: Mapping[str, Any]) -> None:
        self.net = net
        self.services = {name: services[name] for name in services if "redis:" in services[name].get("image", "")}
        self.boxes = {name: self._box(name, service) for name, service in self.services.items()}
        self._server = services[server_of(services)]
        self.holdfast: containers.Holdfast | None = None

    def _box(self, name: str, service: Mapping[str, Any]) -> containers.Box:
        volumes = []
        for volume in service["volumes"]:
            source, target, mode = volume.split(":")
            here = Path(source) if source.startswith("/") else self.net.directory / source
            if not here.exists():
                here.mkdir()
                os.chown(here, containers.USER, containers.USER)
            volumes.append((here, target, mode))
        assert service["user"] == "redis"
        return containers.Box(self.net, name, service["command"], service["environment"], volumes)

    def up(self) -> None:
        """Starts all in the order in which they depend on each other, and waits as compose does."""
        started: set[str] = set()
        while waiting := [name for name in self.boxes if name not in started]:
            for name in waiting:
                needed = self.services[name].get("depends_on", {})
                if set(needed) <= started:
                    for other, how in needed.items():
                        self.await_(other, how["condition"])
                    self.boxes[name].start()
                    started.add(name)
        for name, how in self._server["depends_on"].items():
            if name in self.boxes:
                self.await_(name, how["condition"])

    def await_(self, name: str, condition: str) -> None:
        box = self.boxes[name]
        if condition == "service_completed_successfully":
            assert box.process is not None
            assert box.process.wait(containers.PATIENCE) == 0, box.log.read_text()
            return
        assert condition == "service_healthy"
        kind, *test = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        box.until(lambda: box.run("sh", "-c", *test).returncode == 0)

    def serve(self) -> containers.Holdfast:
        """The server, once it is healthy."""
        self.holdfast = holdfast = containers.Holdfast(self.net, self._server["environment"])
        _, *test = self._server["healthcheck"]["test"]
        containers.until(lambda: holdfast.run(*test).returncode == 0, holdfast.log)
        return holdfast

    def down(self) -> None:
        if self.holdfast is not None:
            self.holdfast.stop()
        for box in self.boxes.values():
            box.stop()


@pytest.fixture
def project(resolved: dict[str, Any], tmp_path: Path) -> Iterator[Callable[[str], Project]]:
    """A profile, up; everything of it ends with the test."""
    made: list[Project] = []
    with containers.network(tmp_path / "net") as net:

        def up(profile: str) -> Project:
            made.append(Project(net, of(resolved, profile)))
            made[-1].up()
            return made[-1]

        yield up
        for each in made:
            each.down()


OPERATOR = {"Authorization": f"Bearer {SECRETS['HOLDFAST_OPERATOR_TOKEN']}"}


def put_on_sale(holdfast: containers.Holdfast, *sales: str) -> None:
    for sale in sales:
        status, answer = holdfast.call("POST", "/sales", {"id": sale, "name": sale, "capacity": 100}, **OPERATOR)
        assert status == 201, answer


def purchased(holdfast: containers.Holdfast, sale: str) -> int:
    status, answer = holdfast.call("GET", f"/sales/{sale}")
    assert status == 200, answer
    return int(answer["purchased"])


@needs_compose
@containers.possible
@pytest.mark.timeout(240)
def test_single(project: Callable[[str], Project]) -> None:
    up = project("single")
    redis = up.boxes["redis"]
    holdfast = up.serve()
    put_on_sale(holdfast, "gig")
    holdfast.sell("gig", "ann")
    # Nobody gets in without a password, and the server's user may not do what only people may.
    assert "NOAUTH" in redis.run("env", "-u", "REDISCLI_AUTH", "redis-cli", "ping").stdout
    password = SECRETS["HOLDFAST_REDIS_PASSWORD"]
    refused = redis.run("redis-cli", "--user", "holdfast", "--pass", password, "--no-auth-warning", "flushall").stdout
    assert "NOPERM" in refused
    # What was written is there again, which takes the rights of the user `default`.
    redis.kill()
    redis.start()
    holdfast.sell("gig", "bob")
    assert purchased(holdfast, "gig") == 2
    assert holdfast.run("holdfast", "audit").returncode == 0


@needs_compose
@containers.possible
@pytest.mark.timeout(300)
def test_sentinel(project: Callable[[str], Project]) -> None:
    up = project("sentinel")
    boxes = up.boxes

    def primary() -> str:
        # A name: an address would be another one tomorrow.
        told = boxes["sentinel-2"].cli("-p", "26379", "sentinel", "get-master-addr-by-name", "holdfast").split()
        assert told[1] == "6379"
        return str(told[0])

    assert primary() == "redis-1"
    holdfast = up.serve()
    put_on_sale(holdfast, "gig")
    holdfast.sell("gig", "ann")
    boxes["redis-1"].kill()
    holdfast.sell("gig", "bob")
    second = primary()
    assert second in ("redis-2", "redis-3")
    # Whoever comes back follows, and would do so again after the next start: Sentinel had it written down.
    boxes["redis-1"].start()
    boxes["redis-1"].until(lambda: "master_link_status:up" in boxes["redis-1"].cli("info", "replication"))
    boxes["redis-1"].until(lambda: f"replicaof {second} 6379" in boxes["redis-1"].run("cat", "/data/redis.conf").stdout)
    holdfast.sell("gig", "cleo")
    # A primary without replicas takes nothing: what it took would be gone when another is promoted.
    rest = sorted({"redis-1", "redis-2", "redis-3"} - {second})
    for name in rest:
        boxes[name].kill()
    key = f"{{gig}}:{second}"
    boxes[second].until(lambda: "NOREPLICAS" in boxes[second].cli("set", key, "1"))
    # All of it is stopped and made anew, each with an address that nobody had: names are what counts.
    for box in boxes.values():
        box.stop()
    up.net.renumber()
    up.up()
    assert primary() == second
    holdfast.sell("gig", "dora")
    assert purchased(holdfast, "gig") == 4
    assert holdfast.run("holdfast", "audit").returncode == 0


@needs_compose
@containers.possible
@pytest.mark.timeout(300)
@pytest.mark.again
def test_cluster(project: Callable[[str], Project]) -> None:
    up = project("cluster")
    boxes = up.boxes
    shape = _shape(boxes["node-1"])
    assert sorted(shape) == ["node-1", "node-2", "node-3"]
    assert sorted(follower for followers in shape.values() for follower in followers) == ["node-4", "node-5", "node-6"]
    assert all(len(followers) == 1 for followers in shape.values())
    holdfast = up.serve()
    sales = [f"gig-{number}" for number in range(12)]
    put_on_sale(holdfast, *sales)
    for sale in sales:
        holdfast.sell(sale, "ann")
    assert {_owner(boxes["node-1"], sale) for sale in sales} == set(shape)
    # A primary dies, and comes back after its replica has taken over.
    boxes["node-2"].kill()
    (replica,) = shape["node-2"]
    boxes["node-1"].until(lambda: replica in _shape(boxes["node-1"]))
    boxes["node-2"].start()
    for sale in sales:
        holdfast.sell(sale, "bob")
    boxes["node-1"].until(lambda: _shape(boxes["node-1"]).get(replica) == ["node-2"])
    # Forming again changes nothing.
    shape = _shape(boxes["node-1"])
    boxes["cluster-form"].start()
    up.await_("cluster-form", "service_completed_successfully")
    assert _shape(boxes["node-1"]) == shape
    # All of it is stopped and made anew, each with an address that nobody had: the nodes find each other by name.
    for box in boxes.values():
        box.stop()
    up.net.renumber()
    up.up()
    # Who is found late may have been replaced meanwhile.
    assert [len(followers) for followers in _shape(boxes["node-1"]).values()] == [1, 1, 1]
    for sale in sales:
        holdfast.sell(sale, "cleo")
    assert [purchased(holdfast, sale) for sale in sales] == [3] * len(sales)
    # A node that has lost its data gets somebody to follow.
    empty = min(follower for followers in _shape(boxes["node-1"]).values() for follower in followers)
    boxes[empty].kill()
    data = up.net.directory / f"{empty}-data"
    shutil.rmtree(data)
    data.mkdir()
    os.chown(data, containers.USER, containers.USER)
    other = boxes["node-1" if empty != "node-1" else "node-2"]
    other.until(lambda: "fail" in _line(other, empty))
    boxes[empty].start()
    boxes["cluster-form"].start()
    up.await_("cluster-form", "service_completed_successfully")
    assert [len(followers) for followers in _shape(boxes["node-1"]).values()] == [1, 1, 1]


def _lines(box: containers.Box) -> list[list[str]]:
    return [line.split() for line in box.cli("cluster", "nodes").splitlines()]


def _line(box: containers.Box, name: str) -> str:
    return next(" ".join(line) for line in _lines(box) if line[1].endswith(f",{name}"))


def _shape(box: containers.Box) -> dict[str, list[str]]:
    """The primaries that are well, each with those that follow it, as one node sees it."""
    lines = [line for line in _lines(box) if "fail" not in line[2]]
    names = {line[0]: line[1].partition(",")[2] for line in lines}
    return {
        name: sorted(names[line[0]] for line in lines if line[3] == ident)
        for ident, name in names.items()
        if any(line[0] == ident and "master" in line[2] for line in lines)
    }


def _owner(box: containers.Box, sale: str) -> str:
    slot = int(box.cli("cluster", "keyslot", f"{{{sale}}}"))
    for line in _lines(box):
        for part in line[8:]:
            first, _, last = part.partition("-")
            if first.isdigit() and int(first) <= slot <= int(last or first):
                return line[1].partition(",")[2]
    raise AssertionError(f"nobody has slot {slot}")
