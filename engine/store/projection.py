"""What ledger entries say of tickets, for any store: rows to write, and one ticket as entries change it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from holdfast.engine.records import ID_CHARS, LETTERS, SALE_LINE, TRANSFER_LINE, Definition, Entry, Record
from holdfast.engine.values import Status


class Begun(NamedTuple):
    """A reservation. `lines` are packed."""

    id: str
    lines: str
    buyer: str
    reserved_at: int
    expires_at: int


class Ended(NamedTuple):
    """The end of a ticket. `ended_at` is None where the deadline is meant."""

    id: str
    status: Status
    ended_at: int | None
    sequence: int
    operation: str
    reference: str


#: What the text of an entry is like, in SQL, that tells a definition: in its first line, or in a later one.
SALE_LINE_LIKE = (f"{SALE_LINE} %", f"%\n{SALE_LINE} %")


def definitions(entries: Iterable[Entry]) -> list[Definition]:
    """The definitions that these entries tell of; what else they say is not looked at."""
    return [
        Definition.from_json(line[len(SALE_LINE) + 1 :])
        for entry in entries
        # A newline begins a line and nothing else: no text that a caller gives may have one in it.
        if entry.text.startswith(f"{SALE_LINE} ") or f"\n{SALE_LINE} " in entry.text
        for line in entry.text.split("\n")
        if line.startswith(f"{SALE_LINE} ")
    ]


def transfers(entries: Sequence[Entry]) -> str | None:
    """What the last of these entries that tells it says of what a shard has lent and borrowed; None when none does."""
    for entry in reversed(entries):
        if entry.text.startswith(f"{TRANSFER_LINE} ") or f"\n{TRANSFER_LINE} " in entry.text:
            lines = [line for line in entry.text.split("\n") if line.startswith(f"{TRANSFER_LINE} ")]
            return lines[-1].split(" ", 5)[5]
    return None


def read(entries: Sequence[Entry]) -> tuple[list[Begun], list[Ended]]:
    """What these entries began and ended, each in order. In a stampede this is most of what Python does here, so it
    slices the text and makes no `Transition`."""
    begun: list[Begun] = []
    ended: list[Ended] = []
    pair, new = 2 * ID_CHARS, tuple.__new__
    # Backwards: an entry's sequence is that of its last transition.
    for entry in reversed(entries):
        sequence, at = entry.sequence, entry.at
        for line in reversed(entry.text.split("\n")):
            kind = line[0]
            if kind == "r":
                _, lines, expires_at, pairs = line.split(" ")
                deadline = int(expires_at)
                begun += [
                    new(Begun, (pairs[i : i + ID_CHARS], lines, pairs[i + ID_CHARS : i + pair], at, deadline))
                    for i in range(len(pairs) - pair, -1, -pair)
                ]
                sequence -= len(pairs) // pair
                continue
            if kind != SALE_LINE and kind != TRANSFER_LINE:
                _, id, _, operation, rest = line.split(" ", 4)
                # What stands last is an expiry's deadline, which the ticket knows, or a payment's reference.
                ended_at, reference = (None, "") if kind == "x" else (at, rest)
                ended.append(Ended(id, LETTERS[kind], ended_at, sequence, operation, reference))
            sequence -= 1
    begun.reverse()
    ended.reverse()
    return begun, ended


def changed(record: Record | None, id: str, entries: Sequence[Entry]) -> Record | None:
    """The ticket of this id after these entries; what contradicts it is passed over, as in the tables."""
    begun, ended = read(entries)
    if record is None:
        for begin in begun:
            if begin.id == id:
                record = Record(id, Status.RESERVED, begin.lines, begin.reserved_at, begin.expires_at, begin.buyer)
                break
    if record is None or record.status is not Status.RESERVED:
        return record
    for end in ended:
        if end.id == id:
            at = record.expires_at if end.ended_at is None else end.ended_at
            return record._replace(
                status=end.status, ended_at=at, sequence=end.sequence, operation=end.operation, reference=end.reference
            )
    return record


def conflicts(slot: str, ended: Sequence[Ended], begun_twice: int, have: Mapping[str, tuple[str, int]]) -> list[str]:
    """The transitions that contradict what is stored, as sentences: a ticket ended twice, or begun twice.

    Parameters
    ----------
    begun_twice: reservations of tickets that were there. have: status and last transition of the tickets that `ended`
        names, after they were written.
    """
    alarms = [f"{slot}: {begun_twice} tickets were reserved a second time"] if begun_twice else []
    for end in ended:
        found = have.get(end.id)
        if found != (end.status, end.sequence):
            is_ = f"{found[0]} by transition {found[1]}" if found else "not stored"
            alarms.append(f"{slot}.{end.id}: transition {end.sequence} says {end.status}, but it is {is_}")
    return alarms
