"""The clusters and sentinel groups that other tests stand on: formed, failed over, moved about, and gone in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clusters
import pytest
import redis


def fill(cluster: Any, name: str, keys: int = 25) -> None:
    cluster.primary(name).ask_all(*(("SET", f"hf:{{{name}}}:{number}", number) for number in range(keys)))


def read(cluster: Any, name: str, keys: int = 25) -> list[int]:
    return [int(each) for each in cluster.primary(name).ask_all(*(("GET", f"hf:{{{name}}}:{n}") for n in range(keys)))]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Nobody may have waited for it yet.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("kind", ["installed", "embedded", "valkey"])
def test_six_nodes_are_a_cluster(kind: str, server_binary: Callable[[str], str], start_cluster: Any) -> None:
    cluster = start_cluster(binary=server_binary(kind), password="secret")
    assert len(cluster.primaries) == 3
    assert all(len(cluster.replicas(node)) == 1 for node in cluster.primaries)
    assert sum(seat.count for seat in cluster.seats().values()) == 16_384
    assert cluster.address().startswith(f"redis+cluster://:secret@127.0.0.1:{cluster.nodes[0].port},")
    fill(cluster, "gig")
    assert read(cluster, "gig") == list(range(25))
    # Another node sends on to the one that has it.
    other = next(node for node in cluster.primaries if node is not cluster.primary("gig"))
    with pytest.raises(redis.exceptions.ResponseError, match=str(cluster.primary("gig").port)):
        other.ask("GET", "hf:{gig}:1")


@pytest.mark.parametrize("primaries", [1, 6])
def test_a_cluster_without_replicas(primaries: int, start_cluster: Any) -> None:
    cluster = start_cluster(primaries=primaries, replicas=0)
    assert len(cluster.primaries) == len(cluster.nodes) == primaries
    assert all(node.cpu_s() > 0 for node in cluster.nodes)


def test_a_replica_takes_over_by_order_and_by_itself(start_cluster: Any) -> None:
    cluster = start_cluster(node_timeout_ms=1_000)
    fill(cluster, "gig")
    first = cluster.primary("gig")
    second = cluster.fail_over("gig")
    assert read(cluster, "gig") == list(range(25))
    cluster.wait_ok()
    assert cluster.replicas("gig") == [first]
    second.kill()
    assert cluster.wait_failed_over("gig", second) is first
    assert read(cluster, "gig") == list(range(25))
    second.restart()
    cluster.wait_ok()
    assert cluster.replicas("gig") == [second]


def test_a_slot_moves_key_by_key(cluster: Any) -> None:
    fill(cluster, "gig")
    old = cluster.primary("gig")
    new = next(node for node in cluster.primaries if node is not old)
    assert cluster.begin_move("gig", new) is old
    assert cluster.carry("gig", old, new, keys=20) == 20
    # Half of it is here and half of it there: nobody can see both.
    assert int(old.ask("CLUSTER", "COUNTKEYSINSLOT", clusters.hash_slot("gig"))) == 5
    with pytest.raises(redis.exceptions.AskError):
        old.ask("GET", "hf:{gig}:not-there")
    with pytest.raises(redis.exceptions.TryAgainError):
        old.ask("MGET", *(f"hf:{{gig}}:{number}" for number in range(25)))
    assert cluster.carry("gig", old, new) == 5
    cluster.end_move("gig", old, new)
    assert cluster.primary("gig") is new
    assert read(cluster, "gig") == list(range(25))
    cluster.move("gig", old)
    assert read(cluster, "gig") == list(range(25))
    cluster.wait_ok()


def test_a_node_is_added_and_given_slots(start_cluster: Any) -> None:
    cluster = start_cluster(replicas=0)
    names = [f"gig-{number}" for number in range(40)]
    for name in names:
        fill(cluster, name, 3)
    new = cluster.add_node()
    moved = cluster.rebalance(new, 900)
    assert moved == 900
    assert cluster.seats()[new].count == moved
    assert any(cluster.primary(name) is new for name in names)
    assert all(read(cluster, name, 3) == [0, 1, 2] for name in names)
    cluster.wait_ok()


def test_a_paused_node_is_failed_over_and_comes_back_as_a_replica(start_cluster: Any) -> None:
    cluster = start_cluster(node_timeout_ms=1_000)
    old = cluster.primary("gig")
    old.pause()
    new = cluster.wait_failed_over("gig", old)
    old.resume()
    cluster.wait_ok()
    assert cluster.primary("gig") is new
    assert cluster.replicas("gig") == [old]


@pytest.mark.parametrize("kind", ["installed", "valkey"])
def test_sentinels_promote_a_replica(kind: str, server_binary: Callable[[str], str], start_sentinels: Any) -> None:
    group = start_sentinels(binary=server_binary(kind), password="secret", sentinel_password="other")
    assert group.address(db=1).endswith("/holdfast/1?sentinel_password=other")
    first = group.primary()
    first.ask("SET", "a", 1)
    until(lambda: all(node.ask("GET", "a") == b"1" for node in group.replicas()))
    first.kill()
    second = group.wait_failed_over(first)
    assert second.ask("GET", "a") == b"1"
    assert first not in group.replicas()


def test_sentinels_hand_over_by_order_and_want_replicas(start_sentinels: Any) -> None:
    group = start_sentinels(min_replicas_to_write=1, settings={"min-replicas-max-lag": 1})
    first = group.primary()
    second = group.fail_over()
    assert second is not first
    assert second.info("replication")["role"] == "master"
    until(lambda: second.info("replication")["min_slaves_good_slaves"] >= 1)
    second.ask("SET", "a", 1)
    for node in group.nodes:
        if node is not second:
            node.pause()
    until(lambda: not second.info("replication")["min_slaves_good_slaves"])
    with pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
        second.ask("SET", "a", 2)


def test_all_processes_end_with_those_who_started_them(any_binary: str) -> None:
    script = (
        "import clusters, sys, time\n"
        f"group = clusters.Sentinels({any_binary!r}, replicas=1, sentinels=1, quorum=1)\n"
        "print(*(node.pid for node in group.processes), flush=True)\n"
        "sys.stdin.read()\n"
    )
    for end in (signal.SIGKILL, None):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", script],
            env={"PYTHONPATH": str(Path(__file__).parent), "PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as owner:
            assert owner.stdout is not None
            pids = [int(pid) for pid in owner.stdout.readline().split()]
            assert len(pids) == 3
            assert not any(gone(pid) for pid in pids)
            if end is not None:
                owner.send_signal(end)
        until(lambda pids=pids: all(gone(pid) for pid in pids))


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)
