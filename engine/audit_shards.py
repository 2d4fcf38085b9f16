"""The audit of what lies between the shards of a sale: every transfer is known to both sides, and nothing else is out.

That each shard's counters agree with what it has lent and borrowed by its own ledger is `audit.py`'s.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from holdfast.engine.audit import SlotAudit
from holdfast.engine.errors import HoldfastError
from holdfast.engine.records import shard_of, units_of
from holdfast.engine.shards import Family, Look

#: How often two shards may disagree, while units move between them, before that is a finding.
LOOKS_MAX: Final = 20

#: Seconds between two looks: several transfers may begin and end meanwhile.
PAUSE_S: Final = 0.1


async def audit_shards(family: Family) -> SlotAudit:
    """Compares the shards of a sale with each other. Writes nothing."""
    findings: list[str] = []
    for _ in range(LOOKS_MAX):
        try:
            look = await family.whole()
        except HoldfastError as error:
            return SlotAudit(family.name, findings=(f"{family.name}: {error}",))
        findings = _disagreements(family, look)
        if not findings:
            break
        await asyncio.sleep(PAUSE_S)
    sale = look.sale()
    held, purchased = sum(item.reserved for item in sale.items), sum(item.purchased for item in sale.items)
    return SlotAudit(family.name, sale.place, 0, held, purchased, tuple(findings))


def _disagreements(family: Family, look: Look) -> list[str]:
    findings: list[str] = []
    by_number = {shard_of(shard.slot.name): shard for shard in look.shards}
    under_way: Counter[int] = Counter()
    for number, lender in by_number.items():
        for borrower, (sent, lines) in lender.transfers.out.items():
            there = by_number.get(borrower)
            received = there.transfers.into.get(number, 0) if there else 0
            if received not in ((sent, sent - 1) if lines else (sent,)):
                findings.append(
                    f"{family.name}: shard {number} has sent {sent} transfers to shard {borrower}, which knows of "
                    f"{received}"
                )
            elif received < sent:
                under_way.update(dict(units_of(lines)))
        for other, received in lender.transfers.into.items():
            if other not in by_number or number not in by_number[other].transfers.out:
                findings.append(
                    f"{family.name}: shard {number} has received {received} transfers from shard {other}, "
                    "which knows of none"
                )
    if not look.level:
        findings.append(f"{family.name}: its shards were amended differently, and nobody finishes that")
    for at, item in enumerate(look.definition.items):
        if look.in_transit(at) != under_way[at + 1]:
            findings.append(
                f"{family.name}, item '{item.sku}': {look.in_transit(at)} units have left shards and reached none, and "
                f"transfers of {under_way[at + 1]} are under way"
            )
    return findings
