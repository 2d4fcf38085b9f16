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

from holdfast.engine.spread import NEAR, PLACES

_LEASE = re.compile(r"^hf:\{([^}]+)\}:lease:(.+)$")

#: Which store this Redis belongs to. Asked at the start and by whoever asks whether all is ready; no slot's.
DEPLOYMENT = "hf:deployment"

#: Slots whose tags and keys are kept.
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
    nodes (`spread.py`): the names alone, which differ in a digit, would be put on four places by the cluster's
    checksum. The number is the first that leads near enough: some 250 tries, a tenth of a millisecond.
    """
    _, _, shard = slot.partition("~")
    if not shard:
        return slot
    # Somebody may ask for a shard that is not there.
    place = PLACES[(int(shard) - 1) % len(PLACES)]
    tags = (f"{slot}~{number}" for number in itertools.count())
    return next(tag for tag in tags if (key_slot(tag.encode()) - place) % REDIS_CLUSTER_HASH_SLOTS <= NEAR)


@lru_cache(_TAGS_KEPT)
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
