"""Where the shards of a sale lie in a cluster: evenly over its nodes, and always in the same place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from holdfast.engine import Engine
from holdfast.engine.keys import lease_ticket, slot_keys, tag
from holdfast.engine.limits import SHARDS_MAX
from holdfast.engine.spread import PLACES

SLOTS = 16_384


def crowd(sale: str, shards: int, nodes: int) -> float:
    """The shards on the fullest node, as a multiple of the mean."""
    on = Counter(key_slot(slot_keys(f"{sale}~{at}").ledger.encode()) * nodes // SLOTS for at in range(1, shards + 1))
    return max(on.values()) * nodes / shards


@pytest.mark.parametrize("sale", ["gig", "a", "2026-final-friday", "x" * 64])
def test_shards_lie_evenly_over_the_nodes(sale: str) -> None:
    for nodes in range(2, 18):
        assert crowd(sale, nodes, nodes) == 1
    for nodes in (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15):
        assert crowd(sale, 2 * nodes, nodes) == 1
    for shards in (6, 9, 12):
        assert crowd(sale, shards, 3) == 1
    for nodes in range(2, 19):
        assert crowd(sale, SHARDS_MAX, nodes) < 1.25


def test_every_shard_has_a_place() -> None:
    assert len(set(PLACES)) == SHARDS_MAX
    # Whatever a ticket's id names, there is an answer: that it is unknown.
    assert tag("gig~65") != tag("gig~1")
    assert key_slot(tag("gig~99999").encode()) in range(SLOTS)


def test_keys_are_those_of_the_slot() -> None:
    assert slot_keys("gig").sale == "hf:{gig}:sale"
    first = slot_keys("gig~1")
    # For good: a later release that found another number would look for the sale elsewhere.
    assert first.sale == f"hf:{{{tag('gig~1')}}}:sale" == "hf:{gig~1~155}:sale"
    assert lease_ticket(f"{first.lease_prefix}gig~1.x") == "gig~1.x"


async def test_each_node_of_a_cluster_has_a_shard(cluster: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'store.db'}", "listen": False}
    async with Engine.connect(cluster.address(), **options) as engine:
        await engine.create_sale("gig", name="Gig", capacity=60, shards=3)
        keys = {slot_keys(f"gig~{at}").sale.encode() for at in (1, 2, 3)}
        have = [keys & set(node.ask("KEYS", "hf:*:sale")) for node in cluster.primaries]
        assert [len(each) for each in have] == [1, 1, 1]
        for at in range(60):
            await engine.reserve("gig", buyer=f"b{at}", quantity=1)
        assert (await engine.sale("gig")).items[0].reserved == 60
