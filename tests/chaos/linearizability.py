"""Whether a sale's history is linearizable: whether there is an order in which every answer is the right one.

The algorithm is that of Wing and Gong with Lowe's memory of what was tried, on a history that is first made small:

1. **Settled.** Which transitions happened is known: the final reading says which tickets there are and how they ended,
   and terminal statuses never change. What is open is when, and, where outcomes are unknown, which call did it.
   A transition that nobody asked for, or that contradicts an answer, ends the check here.
2. **Windows.** Every answer about one ticket bounds its transitions: if somebody saw it purchased, the payment came
   before that answer. Linearizability is local, so that this settles these answers: there is an instant at which each
   was right if, and only if, the windows are not empty. Counters that no windows allow are found here, too.
3. **Search.** What is left are transitions with windows, and answers about what all share: counters, stock, limits. An
   order is looked for step by step. Answers change nothing, so each is taken as soon as it is right; only transitions
   are choices, and what has been tried without success is not tried again. The ledger of the store is the first order
   that is tried. It proves nothing: it only saves looking around when it is true.

Time: a hold ends by itself at any instant after its deadline, by the server's clock as the answers tell it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate

from holdfast.engine.slots import SOLD_OUT_S
from holdfast.http.load.clock import Clock

from .facts import (
    CANCELLED,
    EXPIRED,
    MS,
    PURCHASED,
    RESERVED,
    Ledger,
    Lines,
    Rules,
    bare,
    counts_by_tickets,
    counts_of,
    instant_ms,
    lines_of,
    may_have_happened,
    told,
)
from .history import Call, Final, Operation, Outcome

#: States that a search looks at before it gives up undecided: some ten seconds of Python.
STATES_MAX = 200_000

#: Nanoseconds for which `sold_out` may be answered from memory to a call without a key.
SOLD_OUT_NS = int(SOLD_OUT_S * 1000) * MS

#: Guesses of who made the tickets that nobody was told of. One buyer's calls are alike, so that the first is right.
MAKERS_MAX = 50

NEVER = 2**63
ALWAYS = -(2**63)


class Decision(StrEnum):
    """What came of a check."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, a sentence why, the operations that show it, and how many states were looked at."""

    decision: Decision
    why: str = ""
    operations: tuple[Operation, ...] = ()
    states: int = 0


class Contradiction(Exception):
    """No order can make these answers right."""

    def __init__(self, why: str, *operations: Operation) -> None:
        super().__init__(why)
        self.operations = operations


def decide(
    operations: Sequence[Operation], final: Final, clock: Clock | None = None, states_max: int = STATES_MAX
) -> Verdict:
    """Decides one sale.

    Parameters
    ----------
    operations: of this sale, all of them. final: its reading once all was quiet.
    clock: the server's; None where it has jumped or nothing tells: a hold may then end at any time.
    states_max: how many states to look at before giving up.
    """
    verdict, states = None, 0
    try:
        settled = _Settled(operations, final)
        for tried, makers in enumerate(settled.makers(), start=1):
            found = _decide(settled.tickets(makers), operations, final, clock, states_max - states)
            states += found.states
            # Who made a ticket that nobody was told of is nearly always clear: the first guess says why not.
            verdict = verdict or found
            if found.decision is not Decision.NOT_LINEARIZABLE:
                return replace(found, states=states)
            if tried == MAKERS_MAX:
                return Verdict(Decision.UNDECIDED, f"{verdict.why} (nor for others of {tried} guesses)", states=states)
    except Contradiction as wrong:
        return Verdict(Decision.NOT_LINEARIZABLE, str(wrong), wrong.operations)
    assert verdict is not None  # there is a guess, or a contradiction
    return replace(verdict, states=states)


def _decide(
    tickets: Mapping[str, _Ticket],
    operations: Sequence[Operation],
    final: Final,
    clock: Clock | None,
    states_max: int,
) -> Verdict:
    try:
        for ticket in tickets.values():
            _bound(ticket, clock)
        _agrees_in_the_end(tickets, final)
        _possible_counts(operations, tickets, final)
    except Contradiction as wrong:
        return Verdict(Decision.NOT_LINEARIZABLE, str(wrong), wrong.operations)
    reads = list(_shared_reads(operations, final.in_shards))
    return _Search(tickets, reads, final, Rules.of(operations)).run(states_max)


# -- 1. settled ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Window:
    """When something can have happened, nanoseconds of the clients' clock, both ends included; and who says so."""

    low: int = ALWAYS
    high: int = NEVER
    low_by: Operation | None = None
    high_by: Operation | None = None

    def after(self, instant: int, by: Operation | None = None) -> None:
        if instant > self.low:
            self.low, self.low_by = instant, by

    def before(self, instant: int, by: Operation | None = None) -> None:
        if instant < self.high:
            self.high, self.high_by = instant, by

    def witnesses(self) -> tuple[Operation, ...]:
        return tuple(by for by in (self.low_by, self.high_by) if by is not None)


@dataclass(slots=True)
class _Ticket:
    """A ticket that there is in the end.

    Parameters
    ----------
    asked: reserve calls that are, or may be, the one that made it. about: calls about it.
    """

    id: str
    buyer: str
    lines: Lines
    asked: list[Operation]
    status: str
    expires_at: int
    made_at: int
    ended_at: int | None
    rank: tuple[int, int]  # of its two transitions in the ledger
    about: list[Operation] = field(default_factory=list)
    begin: _Window = field(default_factory=_Window)
    end: _Window = field(default_factory=_Window)


class _Settled:
    """What happened, as the final reading says it and the answers confirm."""

    def __init__(self, operations: Sequence[Operation], final: Final) -> None:
        self._final = final
        self._ledger = Ledger.of(final)
        self._about: dict[str, list[Operation]] = defaultdict(list)
        #: Reservations by the ticket that they were answered with, and those that were not answered.
        self._answered: dict[str, list[Operation]] = {}
        self._open: list[list[Operation]] = []
        for group in _reservations(operations):
            self._sort_in(group)
        for operation in operations:
            if operation.call in (Call.PAY, Call.CANCEL, Call.TICKET) and operation.ticket is not None:
                self._about[operation.ticket].append(operation)
                says = told(operation) is not None or operation.code == "not_your_ticket"
                if says and operation.ticket not in final.tickets:
                    raise Contradiction(f"{operation.ticket} was spoken of, and is not there in the end", operation)

    def _sort_in(self, group: list[Operation]) -> None:
        answered = [operation for operation in group if operation.outcome is Outcome.DONE]
        if not answered:
            self._open.append(group)
            return
        ids = sorted({str(operation.ticket) for operation in answered})
        if len(ids) > 1:
            raise Contradiction(f"one key gave the tickets {', '.join(ids)}", *answered)
        (id,) = ids
        if id in self._answered:
            raise Contradiction(f"two reservations were given the ticket {id}", self._answered[id][0], answered[0])
        if id not in self._final.tickets:
            raise Contradiction(f"{id} was given, and is not there in the end", answered[0])
        self._answered[id] = group

    def makers(self) -> Iterator[dict[str, list[Operation]]]:
        """The reservation of every ticket: for those that nobody was told of one guess after the other, the most likely
        first.

        Raises
        ------
        Contradiction: there is a ticket that nobody can have asked for.
        """
        hashes: dict[str, str] = {}
        for id, group in self._answered.items():
            if bare(id) in self._ledger.begun:
                hashes[group[0].buyer] = self._ledger.begun[bare(id)][1]
        orphans = [id for id in self._final.tickets if id not in self._answered]
        orphans.sort(key=lambda id: self._ledger.order.get(("r", bare(id)), NEVER))
        waiting: dict[Lines, list[list[Operation]]] = defaultdict(list)
        for group in sorted(self._open, key=lambda group: group[0].begun):
            waiting[lines_of(group[0].lines)].append(group)
        wanted = Counter(lines_of(self._final.tickets[id]["lines"]) for id in orphans)
        for lines, tickets in wanted.items():
            if tickets > len(waiting[lines]):
                raise Contradiction(f"there are {tickets} tickets of {lines}, and {len(waiting[lines])} calls for them")

        def guess(at: int, made: dict[str, list[Operation]]) -> Iterator[dict[str, list[Operation]]]:
            if at == len(orphans):
                yield made
                return
            id = orphans[at]
            candidates = waiting[lines_of(self._final.tickets[id]["lines"])]
            hashed = self._ledger.begun.get(bare(id), ((), ""))[1]

            def unlikely(group: list[Operation]) -> int:
                known = hashes.get(group[0].buyer)
                return 0 if known == hashed else 1 if known is None else 2

            for group in sorted(candidates, key=unlikely):
                candidates.remove(group)
                yield from guess(at + 1, made | {id: group})
                candidates.append(group)
                candidates.sort(key=lambda group: group[0].begun)

        return guess(0, dict(self._answered))

    def tickets(self, makers: Mapping[str, list[Operation]]) -> dict[str, _Ticket]:
        """Every ticket, with the calls that made it and those that are about it."""
        tickets = {}
        for id, asked in makers.items():
            body = self._final.tickets[id]
            lines = lines_of(body["lines"])
            for operation in asked:
                if lines_of(operation.lines) != lines:
                    raise Contradiction(f"{id} was asked for {operation.lines} and is of {lines}", operation)
            ended = body.get("purchased_at") or body.get("cancelled_at")
            letter = {PURCHASED: "p", CANCELLED: "c", EXPIRED: "x", RESERVED: "-"}[body["status"]]
            order = self._ledger.order
            tickets[id] = _Ticket(
                id,
                asked[0].buyer,
                lines,
                asked,
                body["status"],
                instant_ms(body["expires_at"]),
                instant_ms(body["reserved_at"]),
                instant_ms(ended) if ended else None,
                (order.get(("r", bare(id)), NEVER), order.get((letter, bare(id)), NEVER)),
                self._about.get(id, []),
            )
        return tickets


def _reservations(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Reserve calls that were, or may have been, carried out; those of one buyer and key are one reservation."""
    groups: dict[object, list[Operation]] = {}
    for at, operation in enumerate(operations):
        if operation.call is Call.RESERVE and may_have_happened(operation):
            name = (operation.buyer, operation.key) if operation.key is not None else at
            groups.setdefault(name, []).append(operation)
    return list(groups.values())


# -- 2. windows ------------------------------------------------------------------------------------------------------


def _bound(ticket: _Ticket, clock: Clock | None) -> None:
    """Bounds the two transitions of a ticket by all that was said of it."""
    begin, end = ticket.begin, ticket.end
    first = min(ticket.asked, key=lambda operation: operation.begun)
    begin.after(first.begun, first)
    due = clock.earliest(ticket.expires_at) if clock else ALWAYS
    over = clock.latest(ticket.expires_at) if clock else NEVER
    if ticket.status == EXPIRED:
        end.after(due)
    elif ticket.status in (PURCHASED, CANCELLED):
        doers = _doers(ticket)
        doer = min(doers, key=lambda operation: operation.begun)
        end.after(doer.begun, doer)
        end.before(over)
    else:
        end.after(NEVER - 1)
    for operation in [*ticket.asked, *ticket.about]:
        _bound_by(ticket, operation, clock is not None, due, over)
    end.after(begin.low, begin.low_by)
    begin.before(end.high, end.high_by)
    for what, window in (("begun", begin), ("ended", end)):
        if window.low > window.high:
            raise Contradiction(
                f"{ticket.id}, {ticket.status} in the end, cannot have {what} at any instant", *window.witnesses()
            )


def _doers(ticket: _Ticket) -> list[Operation]:
    """The calls that can have ended a ticket: those that were answered, or else those whose outcome is unknown."""
    call = Call.PAY if ticket.status == PURCHASED else Call.CANCEL
    calls = [
        operation
        for operation in ticket.about
        if operation.call is call and operation.buyer == ticket.buyer and may_have_happened(operation)
    ]
    done = [operation for operation in calls if operation.outcome is Outcome.DONE]
    if call is Call.PAY and done:
        keys = {operation.key for operation in done}
        if len(done) > 1 and (len(keys) > 1 or None in keys):
            raise Contradiction(f"{ticket.id} was paid by two operations", *done)
        calls = [operation for operation in calls if operation.key in keys and (operation.key or operation in done)]
    if not calls:
        raise Contradiction(f"{ticket.id} is {ticket.status}, and its buyer never asked for that")
    return calls


def _bound_by(ticket: _Ticket, operation: Operation, timed: bool, due: int, over: int) -> None:
    """Bounds it by one answer: at some instant between begin and end of the call, it was right."""
    if operation.outcome is Outcome.UNKNOWN:
        return
    begin, end = ticket.begin, ticket.end
    begun, ended = operation.begun, operation.ended
    assert ended is not None
    stranger = operation.call in (Call.PAY, Call.CANCEL) and operation.buyer != ticket.buyer
    if operation.code == "unknown_ticket":
        begin.after(begun, operation)
        return
    status = PURCHASED if operation.code == "idempotency_key_reused" else told(operation)
    if operation.code == "not_your_ticket":
        begin.before(ended, operation)
    if stranger == (status is not None) and (stranger or operation.code == "not_your_ticket"):
        raise Contradiction(f"{ticket.id} is of {ticket.buyer}, and {operation.buyer} heard otherwise", operation)
    if status is None:
        return
    begin.before(ended, operation)
    if status == RESERVED:
        end.after(begun, operation)
        if begun > over:
            raise Contradiction(f"{ticket.id} was reserved when its deadline had passed", operation)
    elif status == EXPIRED:
        # From its deadline on it is expired for everybody, whether its units have gone back yet or not.
        if ticket.status in (PURCHASED, CANCELLED):
            if timed:
                raise Contradiction(f"{ticket.id} was expired, and is {ticket.status} in the end", operation)
            end.after(begun, operation)
        if ended < due:
            raise Contradiction(f"{ticket.id} was expired before its deadline", operation)
    elif status != ticket.status:
        raise Contradiction(f"{ticket.id} was {status}, and is {ticket.status} in the end", operation)
    else:
        end.before(ended, operation)
    _same_operation(ticket, operation)


def _same_operation(ticket: _Ticket, operation: Operation) -> None:
    """A payment that was done is replayed to its own key, and to no other."""
    if operation.code == "already_purchased" and operation.call is Call.PAY and operation.key is not None:
        for other in ticket.about:
            if other.call is Call.PAY and other.outcome is Outcome.DONE and other.key == operation.key:
                raise Contradiction(f"the payment of {ticket.id} was refused to its own key", other, operation)


def _agrees_in_the_end(tickets: Mapping[str, _Ticket], final: Final) -> None:
    counts = counts_by_tickets(final.capacity, ((ticket.lines, ticket.status) for ticket in tickets.values()))
    for sku, units in final.counts.items():
        if units != counts[sku]:
            raise Contradiction(f"'{sku}' has {units} in the end, and the tickets add up to {counts[sku]}")


def _possible_counts(operations: Sequence[Operation], tickets: Mapping[str, _Ticket], final: Final) -> None:
    """Answers with counters that no instant of theirs can have had, by the windows alone.

    The search would find them, too, but only after it has tried every order of what went on at that time.
    """
    for sku, capacity in final.capacity.items():
        sums = _Sums(sku, tickets.values())
        for operation in operations:
            if operation.call is not Call.SALE or operation.outcome is not Outcome.DONE:
                continue
            _, reserved, purchased = counts_of(operation.answer)[sku]
            for what, units, (least, most) in (
                ("reserved", reserved, sums.reserved(operation)),
                ("purchased", purchased, sums.purchased(operation)),
            ):
                if not least <= units <= min(most, capacity):
                    text = f"{units} of '{sku}' were {what}, and by all other answers it was {least} to {most}"
                    raise Contradiction(text, operation)


class _Sums:
    """Units of an item whose tickets had begun, or ended, by an instant: surely, and possibly."""

    def __init__(self, sku: str, tickets: Iterable[_Ticket]) -> None:
        self._steps: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for ticket in tickets:
            if units := dict(ticket.lines).get(sku, 0):
                for name, instant in (
                    ("may begin", ticket.begin.low),
                    ("has begun", ticket.begin.high),
                    ("may end", ticket.end.low),
                    ("has ended", ticket.end.high),
                    ("may be paid", ticket.end.low if ticket.status == PURCHASED else NEVER),
                    ("is paid", ticket.end.high if ticket.status == PURCHASED else NEVER),
                ):
                    self._steps[name].append((instant, units))
        for steps in self._steps.values():
            steps.sort()
        self._sums = {name: [0, *accumulate(units for _, units in steps)] for name, steps in self._steps.items()}

    def _by(self, name: str, instant: int) -> int:
        """Units of which it is so at this instant, which counts itself."""
        return self._sums[name][bisect_right(self._steps[name], (instant, NEVER))] if name in self._sums else 0

    def reserved(self, read: Operation) -> tuple[int, int]:
        assert read.ended is not None
        least = self._by("has begun", read.begun - 1) - self._by("may end", read.ended)
        return max(0, least), self._by("may begin", read.ended) - self._by("has ended", read.begun - 1)

    def purchased(self, read: Operation) -> tuple[int, int]:
        assert read.ended is not None
        return self._by("is paid", read.begun - 1), self._by("may be paid", read.ended)


# -- 3. search -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _State:
    """What all tickets of a sale share, between two transitions."""

    available: dict[str, int]
    reserved: Counter[str]
    purchased: Counter[str]
    had: dict[str, Counter[str]]
    keys: set[tuple[str, str]]  # buyers' keys that have their ticket


@dataclass(slots=True)
class _Item:
    """A transition, or an answer about what all share. Begin and end are nanoseconds; `bit` names it in sets."""

    low: int
    high: int
    bit: int = 0
    operation: Operation | None = None
    ticket: _Ticket | None = None
    kind: str = ""
    rank: tuple[int, int, int] = (0, 0, 0)
    right: Callable[[_State, Rules], bool] | None = None
    # Neighbours among what has not been taken yet: by begin, and by end.
    before: _Item | None = None
    after: _Item | None = None
    sooner: _Item | None = None
    later: _Item | None = None


def _shared_reads(operations: Sequence[Operation], in_shards: bool) -> Iterator[_Item]:
    """Answers about counters, stock and limits.

    Counters of a sale in shards are sums of what was read at several instants: the windows alone judge them.
    """
    for operation in operations:
        begun, ended = operation.begun, operation.ended
        if operation.call is Call.SALE and operation.outcome is Outcome.DONE:
            if in_shards:
                continue
            assert ended is not None
            yield _Item(begun, ended, operation=operation, right=_shows(counts_of(operation.answer)))
        elif operation.call is Call.RESERVE and operation.outcome is Outcome.REFUSED:
            assert ended is not None
            right = _refuses(operation, in_shards)
            if right is not None:
                # To a call without a key it may be said for a while after it was true.
                memory = SOLD_OUT_NS if operation.code == "sold_out" and operation.key is None else 0
                yield _Item(begun - memory, ended, operation=operation, right=right)


def _shows(counts: Mapping[str, tuple[int, int, int]]) -> Callable[[_State, Rules], bool]:
    def right(state: _State, rules: Rules) -> bool:
        return all(
            (state.available[sku], state.reserved[sku], state.purchased[sku]) == units for sku, units in counts.items()
        )

    return right


def _refuses(operation: Operation, in_shards: bool) -> Callable[[_State, Rules], bool] | None:
    """When a refusal to reserve is right; None of those that say nothing of stock and limits."""
    lines, answer, code = dict(lines_of(operation.lines)), operation.answer, operation.code
    key = (operation.buyer, operation.key or "")
    if code == "idempotency_key_reused":
        return lambda state, rules: key in state.keys
    if code in ("sold_out", "all_held"):
        sku, left = answer["sku"], answer["available"]
        wanted = lines.get(sku, 0)

        def short(state: _State, rules: Rules) -> bool:
            for_good = state.available[sku] + state.reserved[sku] < wanted
            # Of shards: nobody hears `sold_out` while any of them has units, or units are between them. What is free
            # in another shard, or on its way, may be `all_held` for a moment.
            right = in_shards or (state.available[sku] == left and left < wanted)
            return right and for_good == (code == "sold_out") and key not in state.keys

        return short
    if code == "limit_reached":
        remaining, item = answer["remaining"], answer.get("sku")

        def limited(state: _State, rules: Rules) -> bool:
            most = rules.most_of.get(item) if item else rules.most
            if not most:
                return not rules.any  # the run never read the sale, so that nothing is known of its limits
            mine = state.had.get(operation.buyer, Counter())
            had = mine[item] if item else mine.total()
            more = lines.get(item, 0) if item else sum(lines.values())
            return had + more > most and max(0, most - had) == remaining and key not in state.keys

        return limited
    return None


def _transitions(ticket: _Ticket, ledger_knows: bool) -> Iterator[_Item]:
    """The transitions of a ticket, ranked as the ledger has them, or else by the server's clock."""
    made = (ticket.rank[0], 0, 0) if ledger_knows else (ticket.made_at, 0, ticket.begin.high)
    yield _Item(ticket.begin.low, ticket.begin.high, ticket=ticket, kind=RESERVED, rank=made)
    if ticket.status != RESERVED:
        at = ticket.ended_at or ticket.expires_at
        ended = (ticket.rank[1], 0, 0) if ledger_knows else (at, 1, ticket.end.high)
        yield _Item(ticket.end.low, ticket.end.high, ticket=ticket, kind=ticket.status, rank=ended)


def _name(item: _Item) -> str:
    """An item in a sentence."""
    if item.operation is not None:
        operation = item.operation
        heard = operation.code or counts_of(operation.answer)
        return f"{operation.call} of client {operation.client}, which heard {heard}"
    assert item.ticket is not None
    return f"{item.ticket.id} becoming {item.kind}"


def _operations(item: _Item) -> tuple[Operation, ...]:
    if item.operation is not None:
        return (item.operation,)
    return tuple(item.ticket.asked) if item.ticket is not None else ()


class _Search:
    """Looks for an order of transitions in which all answers about what is shared are right."""

    def __init__(self, tickets: Mapping[str, _Ticket], reads: list[_Item], final: Final, rules: Rules) -> None:
        self._rules = rules
        self._state = _State(dict(final.capacity), Counter(), Counter(), defaultdict(Counter), set())
        self._reserved: set[str] = set()
        self._chosen: list[_Item] = []
        items = reads
        # The ledgers of shards do not say what came first in two of them.
        known = not final.in_shards and all(
            ticket.rank[0] < NEVER and (ticket.rank[1] < NEVER or ticket.status == RESERVED)
            for ticket in tickets.values()
        )
        for ticket in tickets.values():
            items += _transitions(ticket, known)
        self._by_begin = self._by_end = self._chain(items)

    def _chain(self, items: list[_Item]) -> _Item:
        """Links what is not taken yet, in the order of begins and in that of ends; a head that is never taken."""
        head = _Item(ALWAYS, ALWAYS)
        last = head
        for at, item in enumerate(sorted(items, key=lambda item: item.low)):
            item.bit = 1 << at
            item.before, last.after, last = last, item, item
        last = head
        for item in sorted(items, key=lambda item: item.high):
            item.sooner, last.later, last = last, item, item
        return head

    # Taking and giving back leave the item's own links as they were, so that undoing in reverse order is exact.

    def _take(self, item: _Item) -> None:
        assert item.before is not None
        assert item.sooner is not None
        item.before.after, item.sooner.later = item.after, item.later
        if item.after is not None:
            item.after.before = item.before
        if item.later is not None:
            item.later.sooner = item.sooner

    def _give_back(self, item: _Item) -> None:
        assert item.before is not None
        assert item.sooner is not None
        item.before.after = item.sooner.later = item
        if item.after is not None:
            item.after.before = item
        if item.later is not None:
            item.later.sooner = item

    def _possible(self) -> Iterator[_Item]:
        """What may come next: it began before all that is left has ended."""
        first = self._by_end.later
        horizon = first.high if first is not None else NEVER
        item = self._by_begin.after
        while item is not None and item.low <= horizon:
            yield item
            item = item.after

    def run(self, states_max: int) -> Verdict:
        tried: dict[int, list[int]] = {}
        transitions, answers = 0, 0
        path: list[tuple[list[_Item], Iterator[_Item]]] = []
        states = 0
        furthest, stuck = -1, self._by_end
        while True:
            # A new state: every answer that is right now is taken now.
            taken = self._take_answers()
            answers |= sum(item.bit for item in taken)
            first = self._by_end.later
            if first is None:
                return Verdict(Decision.LINEARIZABLE, states=states)
            if len(path) > furthest:
                furthest, stuck = len(path), first
            states += 1
            if states > states_max:
                return Verdict(
                    Decision.UNDECIDED,
                    f"no order found among {states_max} states; the furthest came to {_name(stuck)}",
                    _operations(stuck),
                    states,
                )
            choices: list[_Item] = []
            before = tried.setdefault(transitions, [])
            # Whoever came here with as many answers right has tried all that can follow.
            if not any(answers & ~old == 0 for old in before):
                before.append(answers)
                choices = sorted((i for i in self._possible() if self._allowed(i)), key=lambda i: i.rank)
            path.append((taken, iter(choices)))
            # The next choice, of the last state that has one.
            while True:
                if not path:
                    return Verdict(
                        Decision.NOT_LINEARIZABLE,
                        f"in no order all answers are right; the furthest came to {_name(stuck)}",
                        _operations(stuck),
                        states,
                    )
                taken, rest = path[-1]
                choice = next(rest, None)
                if choice is not None:
                    break
                path.pop()
                for item in reversed(taken):
                    self._give_back(item)
                answers &= ~sum(item.bit for item in taken)
                if path:
                    undone = self._chosen.pop()
                    self._apply(undone, -1)
                    self._give_back(undone)
                    transitions &= ~undone.bit
            self._take(choice)
            self._apply(choice, 1)
            self._chosen.append(choice)
            transitions |= choice.bit

    def _take_answers(self) -> list[_Item]:
        taken: list[_Item] = []
        more = True
        while more:
            more = False
            for item in list(self._possible()):
                if item.right is not None and item.right(self._state, self._rules):
                    self._take(item)
                    taken.append(item)
                    more = True
        return taken

    def _allowed(self, item: _Item) -> bool:
        ticket = item.ticket
        if ticket is None:
            return False
        if item.kind != RESERVED:
            return ticket.id in self._reserved
        state = self._state
        return all(state.available[sku] >= quantity for sku, quantity in ticket.lines) and (
            not self._rules.any or self._rules.over(state.had[ticket.buyer], ticket.lines) is None
        )

    def _apply(self, item: _Item, sign: int) -> None:
        """Makes a transition, or with -1 takes it back."""
        ticket, state = item.ticket, self._state
        assert ticket is not None
        mine = state.had[ticket.buyer]
        if (item.kind == RESERVED) == (sign > 0):
            self._reserved.add(ticket.id)
        else:
            self._reserved.discard(ticket.id)
        key = ticket.asked[0].key
        if item.kind == RESERVED and key is not None:
            (state.keys.add if sign > 0 else state.keys.discard)((ticket.buyer, key))
        for sku, quantity in ticket.lines:
            units = sign * quantity
            if item.kind == RESERVED:
                state.available[sku] -= units
                state.reserved[sku] += units
                mine[sku] += units
            else:
                state.reserved[sku] -= units
                if item.kind == PURCHASED:
                    state.purchased[sku] += units
                else:
                    state.available[sku] += units
                    mine[sku] -= units
