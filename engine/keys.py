"""Every key in Redis, with its data dictionary. No other module spells one.

A sale lives in the slot named by its id, and every key of a slot has the tag `{SLOT}`, so that one Redis Cluster node
holds them all and one script may touch them all. Behind the name of a shard the tag has a number, see `tag`.
`docs/keys.md` describes the values.

========================  ======  ====================================================  =====================
key                       type    holds                                                 lives
========================  ======  ====================================================  =====================
`hf:{SLOT}:sale`          hash    definition, rules, counters, epoch, sequence, fence   for good
`hf:{SLOT}:tickets`       hash    ticket id (without slot) -> packed record             to the retention time
`hf:{SLOT}:buyers`        hash    buyer hash -> units held and bought, ticket ids       while it has either
`hf:{SLOT}:deadlines`     zset    ids of the tickets of one reserve call -> expires_at  to the deadline
`hf:{SLOT}:ledger`        stream  every transition, ids `EPOCH-SEQUENCE`                trimmed below cursor
`hf:{SLOT}:lease:TICKET`  string  empty; PEXPIREAT is the ticket's `expires_at`         to the deadline
`hf:deployment`           string  id of the store whose sales these are                 for good
`hf:deployment:N`         string  the same on a node of a cluster, N of its own slots   for good
========================  ======  ====================================================  =====================
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

_LEASE = re.compile(r"^hf:\{([^}]+)\}:lease:(.+)$")

#: Which store this Redis belongs to. Asked at the start and by whoever asks whether all is ready; no slot's.
DEPLOYMENT = "hf:deployment"

#: Multiples of it, without their whole parts, lie far from each other, however many there are (the golden ratio).
_APART = 0.6180339887498949

#: How near to its place in a cluster a shard is put, in the cluster's numbers: a 25th of a node, of ten. A tag is then
#: found in some 250 tries, which take a tenth of a millisecond.
_NEAR = 64

#: Slots whose tags are kept.
_TAGS_KEPT = 65_536

#: The pub/sub pattern of Redis' own announcements that a key's TTL has run out, on every database.
EXPIRED_EVENTS = "__keyevent@*__:expired"


@dataclass(frozen=True, slots=True)
class SlotKeys:
    """The keys of one slot."""

    slot: str
    sale: str
    tickets: str
    buyers: str
    deadlines: str
    ledger: str
    lease_prefix: str


@lru_cache(_TAGS_KEPT)
def tag(slot: str) -> str:
    """What the keys of a slot have between their braces, by which a cluster places them.

    That is the name of the slot. A shard's is followed by a number, so that the shards of a sale lie evenly over the
    nodes: the names alone, which differ in a digit, would be put on four places by the cluster's checksum.
    """
    _, _, shard = slot.partition("~")
    if not shard:
        return slot
    place = int(int(shard) * _APART % 1 * REDIS_CLUSTER_HASH_SLOTS)
    tags = (f"{slot}~{number}" for number in itertools.count())
    return next(tag for tag in tags if (key_slot(tag.encode()) - place) % REDIS_CLUSTER_HASH_SLOTS <= _NEAR)


def slot_keys(slot: str) -> SlotKeys:
    """The keys of the slot of this name."""
    prefix = f"hf:{{{tag(slot)}}}:"
    return SlotKeys(
        slot=slot,
        sale=prefix + "sale",
        tickets=prefix + "tickets",
        buyers=prefix + "buyers",
        deadlines=prefix + "deadlines",
        ledger=prefix + "ledger",
        lease_prefix=prefix + "lease:",
    )


def deployment(number: int) -> str:
    """The deployment's key by this number: some of them lie on each node of a cluster."""
    return f"{DEPLOYMENT}:{number}"


def lease_ticket(key: str) -> str | None:
    """The ticket id that a lease key stands for, or None when the key is no lease."""
    match = _LEASE.fullmatch(key)
    return match[2] if match else None
