"""The product with one thing taken out of it, to show that the checkers notice: a checker that catches nothing is none.

Each mutant is a copy of the package in which one text is replaced by another. It is served like the product, by
`python -P -m holdfast.http.cli serve`, with the copy first on the path.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import workloads
from .history import Violation
from .servers import Broken
from .workloads import Workload

#: The repository: its folders engine, lua and http are the package.
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "lua", "http")


@dataclass(frozen=True)
class Mutant:
    """One thing removed.

    Parameters
    ----------
    removed: what, in words. file: where, from the root. text: stands there once. replacement: stands there instead.
    caught_by: the checker that has to notice. alone: and no other does. workload: shows it in a few seconds.
    also: text and replacement of a second guard in the same file, which would hold alone.
    """

    name: str
    removed: str
    file: str
    text: str
    replacement: str
    caught_by: str
    workload: Workload
    alone: bool = False
    also: tuple[str, str] | None = None

    @property
    def edits(self) -> tuple[tuple[str, str], ...]:
        return ((self.text, self.replacement), *([self.also] if self.also else ()))


MUTANTS = (
    Mutant(
        "counters-of-two-moments",
        "the counters of a sale are of one moment",
        "engine/slots.py",
        "            return slot.definition.sale(counts, int(epoch), int(sequence))\n",
        '            later = await self._servers.call(slot.name, "HGET", slot.keys.sale, "counts")\n'
        '            counts = b" ".join([counts.split()[0], *later.split()[1:]])\n'
        "            return slot.definition.sale(counts, int(epoch), int(sequence))\n",
        "C",
        workloads.crowd,
        alone=True,
    ),
    Mutant(
        "given-back-twice",
        "a cancelled ticket gives its units back once",
        "lua/includes/tickets.lua",
        "      counts[at - 2] = counts[at - 2] + quantity",
        "      counts[at - 2] = counts[at - 2] + (status == 'c' and 2 or 1) * quantity",
        "C",
        workloads.crowd,
    ),
    Mutant(
        "never-given-back",
        "an expired ticket gives its units back",
        "lua/includes/tickets.lua",
        "      counts[at - 2] = counts[at - 2] + quantity",
        "      counts[at - 2] = counts[at - 2] + (status == 'x' and 0 or quantity)",
        "C",
        workloads.crowd,
    ),
    Mutant(
        "reference-dropped",
        "a purchase keeps the reference of its payment",
        "lua/confirm.lua",
        "'p', whole(slot.now), operation, reference)",
        "'p', whole(slot.now), operation, '')",
        "A",
        workloads.crowd,
        alone=True,
    ),
    Mutant(
        "stored-too-early",
        "a payment is acknowledged as stored once it is in the store",
        "engine/durability.py",
        "proof = Proof(True, await self._snapshot.reach({payment.slot.name for payment in group}, partly=True))",
        "proof = Proof(True)",
        "A",
        workloads.redis_lost,
        alone=True,
    ),
    Mutant(
        "no-floor",
        "a Redis that knows less than the store does not sell",
        "lua/includes/slot.lua",
        "  if epoch < floor_epoch or (epoch == floor_epoch and sequence < floor_sequence) then",
        "  if false then",
        "A",
        workloads.redis_rolled_back,
    ),
    Mutant(
        "no-fence",
        "a sale that is being rebuilt does not sell",
        "lua/includes/slot.lua",
        "  if field[1] then",
        "  if false then",
        "A",
        workloads.rebuilt_while_it_sells,
    ),
    Mutant(
        "one-too-many",
        "what is short by one unit is short",
        "lua/reserve.lua",
        "    if available < quantity then\n      if available",
        "    if available < quantity - 1 then\n      if available",
        "U",
        workloads.last_units,
    ),
    Mutant(
        "no-limit",
        "a buyer has no more than the sale allows",
        "lua/reserve.lua",
        "  if max_per_buyer > 0 and buyer.total + lines.total > max_per_buyer then",
        "  if false then",
        "U",
        workloads.greedy,
        alone=True,
    ),
    Mutant(
        "late-payment",
        "a ticket cannot be paid after its deadline",
        "lua/confirm.lua",
        "  if lines and holder == buyer and slot.now < expires_at and approved then",
        "  if lines and holder == buyer and approved then",
        "E",
        workloads.late,
        alone=True,
    ),
    Mutant(
        "never-swept",
        "holds that have run out are swept",
        "engine/sweeper.py",
        "if head and not isinstance(head, Exception) and left_s <= 0:",
        "if False:",
        "E",
        workloads.left_to_expire,
    ),
    Mutant(
        "purchases-expire",
        "a sweep passes over tickets that have ended",
        "lua/includes/sweep.lua",
        "        lines, expires_at, buyer = held(record)\n",
        "        lines, expires_at, buyer = held(record)\n"
        "        if string.sub(record, 1, 1) == 'p' then\n"
        "          local ticket = ticket_of(record)\n"
        "          lines, expires_at, buyer = ticket.lines, ticket.expires_at, ticket.buyer\n"
        "        end\n",
        "E",
        workloads.crowd,
    ),
    Mutant(
        "sent-again-blindly",
        "a reservation that is sent again is looked up first",
        "engine/transitions.py",
        "flagged = [AGAIN + order[1:] if order[0] == RANDOM else order for order in orders] if again else orders",
        "flagged = orders",
        "E",
        workloads.replies_lost,
    ),
    Mutant(
        "repeat-not-noticed",
        "a reservation whose ticket is there is a repeat",
        "lua/reserve.lua",
        "  if record then\n    local ticket",
        "  if false then\n    local ticket",
        "E",
        workloads.crowd,
    ),
    Mutant(
        "received-twice",
        "units that one shard lent to another are received once",
        "lua/receive.lua",
        "if number <= last then",
        "if number < last then",
        "E",
        workloads.borrowed,
    ),
    Mutant(
        "sold-out-next-door",
        "a shard that runs short asks the others",
        "engine/shards.py",
        "            slot.short = self._short\n",
        "            slot.short = None\n",
        "H",
        workloads.borrowed,
        alone=True,
    ),
    Mutant(
        "copied-with-gaps",
        "the cursor moves by what was copied",
        "engine/store/sqlite.py",
        "        [(copied.slot, entry.sequence, entry.epoch, entry.at, entry.text) for entry in copied.entries],",
        "        [(copied.slot, e.sequence, e.epoch, e.at, e.text) for e in (copied.entries[:-1] or copied.entries)],",
        "E",
        workloads.crowd,
    ),
    Mutant(
        "copied-by-two",
        "the cursor is compared before it is moved, and the key of the ledger is unique",
        "engine/store/sqlite.py",
        '        "UPDATE slots SET epoch = ?, sequence = ? WHERE slot = ? AND epoch = ? AND sequence = ?",\n'
        "        (last.epoch, last.sequence, copied.slot, copied.after.epoch, copied.after.sequence),\n",
        '        "UPDATE slots SET epoch = ?, sequence = ? WHERE slot = ?",\n'
        "        (last.epoch, last.sequence, copied.slot),\n",
        "E",
        workloads.two_who_copy,
        also=(
            "    PRIMARY KEY (slot, sequence)\n) WITHOUT ROWID;",
            "    CHECK (1)\n);\nCREATE INDEX ledger_by_sequence ON ledger (slot, sequence);",
        ),
    ),
    Mutant(
        "fsync-too-early",
        "a server that syncs once a second is not taken for one that syncs every write",
        "engine/durability.py",
        '        if always and appendfsync != "always":',
        "        if False:",
        "A",
        workloads.power_lost,
        alone=True,
    ),
    Mutant(
        "cancellations-not-folded",
        "the store's tickets follow its ledger",
        "engine/store/projection.py",
        "            if kind != SALE_LINE and kind != TRANSFER_LINE:\n",
        '            if kind not in (SALE_LINE, TRANSFER_LINE, "c"):\n',
        "L",
        workloads.crowd,
        alone=True,
    ),
    Mutant(
        "line-left-out",
        "every transition is in the ledger",
        "lua/includes/tickets.lua",
        "  log_line(slot, status .. ' ' .. id .. ' ' .. lines .. ' ' .. operation .. ' ' .. reference)",
        "  if status ~= 'c' then\n"
        "    log_line(slot, status .. ' ' .. id .. ' ' .. lines .. ' ' .. operation .. ' ' .. reference)\n"
        "  end",
        "L",
        workloads.crowd,
    ),
    Mutant(
        "strangers-pay",
        "only its buyer pays a ticket",
        "lua/confirm.lua",
        "  if lines and holder == buyer and slot.now < expires_at and approved then",
        "  if lines and slot.now < expires_at and approved then",
        "H",
        workloads.crowd,
        alone=True,
    ),
    Mutant(
        "strangers-cancel",
        "only its buyer cancels a ticket",
        "lua/cancel.lua",
        "  if lines and holder == buyer and slot.now < expires_at then",
        "  if lines and slot.now < expires_at then",
        "H",
        workloads.crowd,
    ),
    Mutant(
        "two-tickets-for-a-key",
        "the same key gives the same ticket",
        "engine/engine.py",
        "        return self._identity.ticket(slot.definition.id, who, key), who, KEYED + packed, waiter",
        "        return random_id(), who, RANDOM + packed, waiter",
        "H",
        workloads.crowd,
        alone=True,
    ),
)

#: For each checker a mutant that it alone catches.
SELECTION = tuple({mutant.caught_by: mutant for mutant in reversed(MUTANTS) if mutant.alone}.values())


def built(mutant: Mutant | None, directory: Path) -> dict[str, str]:
    """A copy of the package with the mutation in it; the environment that makes Python take it for the product.

    Parameters
    ----------
    mutant: None is the product as it is. directory: for the copy.

    Raises
    ------
    ValueError: the text does not stand there exactly once; the mutant has to follow the code.
    """
    package = directory / "holdfast"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        path = package / mutant.file
        source = path.read_text()
        for text, replacement in mutant.edits:
            if source.count(text) != 1:
                raise ValueError(
                    f"{mutant.name}: the text to replace stands {source.count(text)} times in {mutant.file}"
                )
            source = source.replace(text, replacement)
        path.write_text(source)
    return {"PYTHONPATH": str(directory)}


@dataclass(frozen=True)
class Row:
    """What came of one mutant.

    Parameters
    ----------
    caught_by: the checkers that noticed, in the order C A U E L H. seconds: with building and starting.
    alone: no other than the expected one may notice. broken: why the run came to no end, if so.
    """

    name: str
    removed: str
    expected: str
    caught_by: str
    seconds: float
    alone: bool = False
    broken: str = ""

    @property
    def good(self) -> bool:
        if self.broken:
            return False
        if self.alone:
            return self.caught_by == self.expected
        # H is asked of what the others let pass: in a short run it may be the one that notices.
        return self.expected in self.caught_by or (self.caught_by == "H" and self.expected != "")

    def cells(self) -> tuple[str, str, str]:
        """As a table shows it: what was removed, who noticed, and whether that is as it should be."""
        noticed = " ".join(self.caught_by) or "nobody"
        why = self.broken or f"expected {self.expected or 'nobody'}"
        return self.removed, noticed, "held" if self.good else f"FAILED: {why}"


async def run(mutant: Mutant | None, workload: Workload, directory: Path, seed: int = 1) -> Row:
    """Runs a workload on a mutant, or on the product as it is."""
    began = time.monotonic()
    environment = built(mutant, directory / "package")
    found: list[Violation] = []
    broken = ""
    try:
        found = await workload(directory, environment, seed)
    except Broken as error:
        # No checker has seen it: the run is told as what it is.
        broken = str(error)
    letters = {violation.checker for violation in found}
    caught_by = "".join(letter for letter in "CAUELH" if letter in letters)
    took = time.monotonic() - began
    if mutant is None:
        return Row(
            workload.__name__, f"nothing, in the workload {workload.__name__}", "", caught_by, took, True, broken
        )
    return Row(mutant.name, mutant.removed, mutant.caught_by, caught_by, took, mutant.alone, broken)


def run_all(
    directory: Path, seed: int = 1, say: Callable[[str], None] = print, mutants: Iterable[Mutant] = MUTANTS
) -> Sequence[Row]:
    """Every workload on the product as it is, which nothing may catch, and every mutant.

    Parameters
    ----------
    directory: for what the runs leave. seed: of all choices. say: hears a line for each.
    """
    mutants = list(mutants)
    plain = list(dict.fromkeys(mutant.workload for mutant in mutants))
    rows = []
    for mutant, workload in [*((None, workload) for workload in plain), *((each, each.workload) for each in mutants)]:
        row = asyncio.run(
            run(mutant, workload, directory / (mutant.name if mutant else f"plain-{workload.__name__}"), seed)
        )
        rows.append(row)
        judged = f"expected {row.expected or '-':3} caught by {row.caught_by or '-':6}"
        say(f"{row.name:28} {judged} {row.seconds:5.1f} s {row.broken}")
    return rows
