"""deploy/kubernetes: manifests that the schemas allow, that fit together, and whose scripts do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import containers
import kubernetes_validate
import pytest
import yaml

from holdfast.http.cli.app import ENV_PREFIX
from holdfast.http.cli.app import _setting_names as setting_names
from holdfast.http.worker import END_SECONDS

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


MANIFESTS = [manifest for name in KUSTOMIZATION["resources"] for manifest in documents(DEPLOY / name)]
(SECRET,) = documents(DEPLOY / "kubernetes" / "secret.example.yaml")

#: The files of the ConfigMap, by key.
FILES = {
    name.partition("=")[0]: DEPLOY / name.rpartition("=")[2]
    for generator in KUSTOMIZATION["configMapGenerator"]
    for name in generator["files"]
}


def one(kind: str, name: str) -> Any:
    (found,) = (each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


PODS = {
    name: one(kind, name)["spec"]["template"]
    for kind, name in (("StatefulSet", "redis"), ("Job", "redis-form"), ("Deployment", "holdfast"))
}


def container(name: str) -> Any:
    (found,) = PODS[name]["spec"]["containers"]
    return found


# What they say --------------------------------------------------------------------------------------------------------


# The newest that the schemas are of, and one that is a year older.
@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_the_schemas_allow_them(version: str) -> None:
    for manifest in [*MANIFESTS, SECRET]:
        kubernetes_validate.validate(manifest, version, strict=True)
        assert "namespace" not in manifest["metadata"], "it goes where kubectl is set to"


def test_nothing_lies_about_that_is_not_applied() -> None:
    named = {DEPLOY / name for name in KUSTOMIZATION["resources"]} | set(FILES.values())
    here = set((DEPLOY / "kubernetes").iterdir())
    assert here - named == {DEPLOY / "kubernetes" / "secret.example.yaml"}
    assert all(path.is_file() for path in named)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
def test_kubectl_puts_the_same_together() -> None:
    made = subprocess.run(["kubectl", "kustomize", str(DEPLOY)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    built = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(made.stdout)}
    configuration = built.pop(("ConfigMap", "redis"))
    assert configuration["data"] == {key: path.read_text() for key, path in FILES.items()}
    assert built == {(each["kind"], each["metadata"]["name"]): each for each in MANIFESTS}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_what_it_names(name: str) -> None:
    pod, inside = PODS[name], container(name)
    for variable in inside["env"]:
        if "secretKeyRef" in (source := variable.get("valueFrom", {})):
            assert source["secretKeyRef"]["name"] == SECRET["metadata"]["name"]
            assert source["secretKeyRef"]["key"] in SECRET["stringData"]
        for used in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
            earlier = [each["name"] for each in inside["env"][: inside["env"].index(variable)]]
            assert used in earlier, "Kubernetes knows only what stands above"
    for volume in pod["spec"].get("volumes", ()):
        for item in volume.get("configMap", {}).get("items", ()):
            assert FILES[item["key"]] == DEPLOY / item["path"], "as in docker-compose.yml"
    volumes = pod["spec"]["volumes"]
    mounted = {item["path"] for volume in volumes for item in volume.get("configMap", {}).get("items", ())}
    before_the_end = inside.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    words = [*inside.get("command", []), *before_the_end]
    used = {word.removeprefix("/etc/holdfast/") for word in words if word.startswith("/etc/holdfast/")}
    assert used <= mounted
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["enableServiceLinks"] is False, "a Service would add variables that look like settings"
    assert inside["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} <= set(inside["resources"])


def test_selectors_find_their_pods() -> None:
    for manifest in MANIFESTS:
        if manifest["kind"] in ("Service", "PodDisruptionBudget", "StatefulSet", "Deployment"):
            selector = manifest["spec"]["selector"]
            labels = PODS[manifest["metadata"]["name"]]["metadata"]["labels"]
            assert selector.get("matchLabels", selector) == labels
    ports = {port["name"] for port in container("holdfast")["ports"]}
    assert one("Service", "holdfast")["spec"]["ports"][0]["targetPort"] in ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container("holdfast")[probe]["httpGet"]["port"] in ports


def test_the_network_lets_in_who_has_to_reach_a_node() -> None:
    policy = one("NetworkPolicy", "redis")["spec"]
    assert policy["podSelector"]["matchLabels"] == PODS["redis"]["metadata"]["labels"]
    for_commands, for_the_bus = policy["ingress"]
    (reach,) = for_commands["from"][0]["podSelector"]["matchExpressions"]
    assert set(reach["values"]) == {PODS[name]["metadata"]["labels"]["app"] for name in PODS}
    assert for_the_bus["from"] == [{"podSelector": policy["podSelector"]}]
    ports = [rule["ports"][0]["port"] for rule in policy["ingress"]]
    assert ports == [port["containerPort"] for port in container("redis")["ports"]]


def test_the_server_has_settings_and_time_to_end() -> None:
    names = {variable["name"] for variable in container("holdfast")["env"]}
    known = {ENV_PREFIX + name.upper().replace("-", "_") for name in setting_names()}
    assert {name for name in names if name.startswith(ENV_PREFIX)} <= known
    pause = int(container("holdfast")["lifecycle"]["preStop"]["exec"]["command"][1])
    spec = PODS["holdfast"]["spec"]
    # Twice what the server itself takes at the most: the last snapshot comes on top.
    assert spec["terminationGracePeriodSeconds"] >= pause + 2 * END_SECONDS
    page = (DEPLOY / "kubernetes" / "holdfast.yaml").read_text()
    assert f"{END_SECONDS:.0f} seconds at the most for those who are connected" in page


def test_every_node_is_named_everywhere() -> None:
    service = one("StatefulSet", "redis")["spec"]["serviceName"]
    nodes = [f"redis-{number}.{service}" for number in range(one("StatefulSet", "redis")["spec"]["replicas"])]
    values = {variable["name"]: variable.get("value") for variable in container("redis")["env"]}
    assert values["CLUSTER_NODES"].split() == nodes
    assert values["ANNOUNCE"] == f"$(POD_NAME).{service}"
    assert container("redis-form")["command"][3:] == nodes
    values = {variable["name"]: variable.get("value") for variable in container("holdfast")["env"]}
    assert values["HOLDFAST_REDIS"].partition("@")[2].split(",") == nodes


def test_redis_refuses_before_its_pod_is_killed() -> None:
    (limit,) = re.findall(r"^maxmemory (\d+)mb$", (DEPLOY / "kubernetes" / "memory.conf").read_text(), re.MULTILINE)
    assert container("redis")["resources"]["limits"]["memory"] == f"{int(limit) * 2 // 1024}Gi"


# Carried out ----------------------------------------------------------------------------------------------------------

VALUES = {key: f"{key.replace('-', '')}0for0tests" for key in SECRET["stringData"]}


def environment(pod: str, name: str) -> dict[str, str]:
    """The variables of a pod's container, as Kubernetes makes them."""
    made: dict[str, str] = {}
    for variable in container(pod)["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            value = VALUES[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.name"
            value = name
        else:
            value = re.sub(r"\$\((\w+)\)", lambda match: made[match[1]], variable["value"])
        made[variable["name"]] = value
    return made


class Pods:
    """The nodes and the job, without images."""

    def __init__(self, net: containers.Network) -> None:
        self.net = net
        self.nodes = {f"redis-{number}": self._box("redis", f"redis-{number}") for number in range(6)}
        self.form = self._box("redis-form", "redis-form")

    def _box(self, pod: str, name: str) -> containers.Box:
        configuration = self.net.directory / f"{pod}-configuration"
        volumes = {volume["name"]: volume for volume in PODS[pod]["spec"]["volumes"]}
        for item in volumes["configuration"]["configMap"]["items"]:
            there = configuration / item["path"]
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(FILES[item["key"]], there)
        mounted = [(configuration, "/etc/holdfast", "ro")]
        if pod == "redis":
            mounted.append((self.fresh(name), "/data", "rw"))
        assert PODS[pod]["spec"]["securityContext"]["runAsUser"] == containers.USER
        # In Kubernetes it is the name of the headless service that makes it redis-0.redis.
        full = f"{name}.redis" if pod == "redis" else name
        return containers.Box(self.net, full, container(pod)["command"], environment(pod, name), mounted)

    def fresh(self, name: str) -> Path:
        """An empty volume."""
        data = self.net.directory / f"{name}-data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        os.chown(data, containers.USER, containers.USER)
        return data

    def run_job(self) -> None:
        self.form.start()
        assert self.form.process is not None
        assert self.form.process.wait(containers.PATIENCE) == 0, self.form.log.read_text()
        self.form.stop()

    def probe(self, name: str, which: str = "readinessProbe") -> bool:
        return self.nodes[name].run(*container("redis")[which]["exec"]["command"]).returncode == 0

    def await_ready(self) -> None:
        for name, box in self.nodes.items():
            box.until(lambda name=name: self.probe(name))

    def primaries(self) -> list[str]:
        """The nodes that have slots."""
        has_slots = re.compile(r"myself,master.*connected \d")
        return sorted(name for name, box in self.nodes.items() if has_slots.search(box.cli("cluster", "nodes")))


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with containers.network(tmp_path / "net") as net:
        made = Pods(net)
        yield made
        for box in [*made.nodes.values(), made.form]:
            box.stop()


@containers.possible
@pytest.mark.timeout(300)
@pytest.mark.again
def test_the_nodes_become_a_cluster_and_stay_one(pods: Pods) -> None:
    for box in pods.nodes.values():
        box.start()
    pods.nodes["redis-0"].until(lambda: pods.probe("redis-0", "livenessProbe"))
    assert not pods.probe("redis-0"), "ready before there is a cluster"
    pods.run_job()
    pods.await_ready()
    assert pods.primaries() == ["redis-0", "redis-1", "redis-2"]
    assert "536870912" in pods.nodes["redis-3"].cli("config", "get", "maxmemory")

    # A primary is replaced, as in an update: its replica has taken over before it ends.
    box = pods.nodes["redis-1"]
    done = box.run(*container("redis")["lifecycle"]["preStop"]["exec"]["command"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "takes over: OK" in done.stdout
    assert "redis-1" not in pods.primaries()
    assert len(pods.primaries()) == 3
    box.stop()
    box.start()
    pods.await_ready()
    # A replica has nothing to hand over.
    assert box.run(*container("redis")["lifecycle"]["preStop"]["exec"]["command"]).stdout == ""

    # All pods are gone at once and come back, each with an address that nobody had; the job has long been cleared away.
    for box in pods.nodes.values():
        box.stop()
    pods.net.renumber()
    for box in pods.nodes.values():
        box.start()
    pods.await_ready()
    # Who is found late may have been replaced meanwhile.
    assert len(pods.primaries()) == 3
    # The same, and the first of them is not back yet: the others do not wait for it.
    for box in pods.nodes.values():
        box.stop()
    pods.net.renumber()
    first, *others = pods.nodes.values()
    for box in others:
        box.start()
    for box in others:
        box.until(lambda box=box: box.cli("cluster", "nodes").count(" connected") == len(others))
        box.until(lambda box=box: "cluster_state:ok" in box.cli("cluster", "info"))
    first.start()
    pods.await_ready()
    before = pods.primaries()
    # Running it again changes nothing.
    pods.run_job()
    assert pods.primaries() == before
