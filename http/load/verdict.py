"""The verdict: what the clients' log and the server's last word say together. It accuses only where there is proof.

What a client was told holds from when it heard it; what it asked may have happened from when it was sent. So units are
counted twice: those that buyers surely had, to find too many; those that they possibly had, to find a wrong refusal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .claims import Bounds, Claim, End, Sale, peak
from .contract import ALWAYS
from .log import NEVER, NOT_SENT, Call, Operation, Outcome

#: Sentences of evidence that a check keeps; `wrong` says how many there were.
EVIDENCE_MAX: Final = 10

TERMINAL: Final = frozenset({"purchased", "cancelled", "expired"})

#: Refusals by state, which come after a replay: who asks again with the key of a ticket never hears them.
AFTER_REPLAY: Final = frozenset({"not_yet_open", "closed", "limit_reached", "sold_out", "all_held"})

#: Why a check could not be made.
NO_TOKEN: Final = "The operator's token is needed to list the tickets."
OTHERS_BUY: Final = "Others may buy in a sale that was there before."
NOT_QUIET: Final = "The run was interrupted before all holds had ended."
NOT_READ: Final = "The server did not answer in the end."


@dataclass(frozen=True, slots=True)
class Check:
    """One question, and its answer.

    Parameters
    ----------
    name: that never changes. title: what was asked. passed: None when it could not be asked.
    said: in a sentence, with the figures. wrong: how many things were wrong. evidence: the first of them.
    """

    name: str
    title: str
    passed: bool | None
    said: str
    wrong: int = 0
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks.

    Parameters
    ----------
    interrupted: whether the run was ended before its time. answered: requests that were answered at all.
    """

    checks: tuple[Check, ...]
    interrupted: bool
    answered: int

    @property
    def good(self) -> bool:
        """Nothing is wrong, and the run came to its end and showed something."""
        return not self.interrupted and self.answered > 0 and all(check.passed is not False for check in self.checks)

    @property
    def sentence(self) -> str:
        wrong = [check for check in self.checks if check.passed is False]
        if wrong:
            return f"WRONG: {', '.join(check.title.lower() for check in wrong)}."
        if self.interrupted:
            return "INTERRUPTED: nothing wrong was found in what was done."
        if not self.answered:
            return "NOTHING PROVED: no request was answered."
        unmade = sum(check.passed is None for check in self.checks)
        less = f", {unmade} could not be made" if unmade else ""
        return f"GOOD: {len(self.checks) - unmade} checks passed{less}."


def judge(
    operations: Sequence[Operation],
    ends: Sequence[End],
    *,
    interrupted: bool = False,
    is_honest: Callable[[int], bool] = lambda _: True,
) -> Verdict:
    """The verdict on a run.

    Parameters
    ----------
    ends: of the sales, by number, as the operations name them. is_honest: whether a buyer of this number is no bot.
    """
    by_sale: list[list[Operation]] = [[] for _ in ends]
    for each in operations:
        by_sale[each.sale].append(each)
    sales = [Sale(theirs, end) for theirs, end in zip(by_sale, ends, strict=True)]
    checks = [
        _oversold(sales),
        _leaked(sales),
        _counters(sales),
        _purchases(sales),
        _tickets(sales),
        _keys(sales),
        _endings(sales),
        _limits(sales),
        _refusals(sales),
        _share(sales, is_honest),
        _contract(operations),
    ]
    answered = sum(each.status > 0 for each in operations)
    return Verdict(tuple(each for each in checks if each is not None), interrupted, answered)


def _check(name: str, title: str, found: Sequence[str], said: str, unmade: str = "") -> Check:
    """A check with what it has found. `unmade`: why it could not be made, or not in full; then only a find counts."""
    if found:
        return Check(name, title, False, found[0], len(found), tuple(found[:EVIDENCE_MAX]))
    if unmade:
        return Check(name, title, None, unmade)
    return Check(name, title, True, said)


def _about(each: Operation) -> str:
    return f"buyer {each.buyer}, {each.call}, key {each.key or 'none'}"


# Stock ----------------------------------------------------------------------------------------------------------------


def _oversold(sales: Sequence[Sale]) -> Check:
    found, figures = [], []
    for sale in sales:
        end = sale.end
        most, _ = peak((*sale.surely(claim), claim.units) for claim in sale.claims.values())
        if most > end.capacity_max:
            found.append(f"{end.sale}: clients surely had {most} units at one moment, of {end.capacity_max}.")
        if end.counts is not None and end.counts.purchased > end.capacity_max:
            found.append(f"{end.sale}: {end.counts.purchased} units are purchased in the end, of {end.capacity_max}.")
        figures.append(f"{most} of {end.capacity_max}")
    said = f"At one moment clients surely had at the most {_listing(figures)} units."
    return _check("oversold", "No unit is sold twice", found, said)


def _leaked(sales: Sequence[Sale]) -> Check:
    found, unmade, free, sold = [], "", 0, 0
    for sale in sales:
        end = sale.end
        if end.counts is None:
            unmade = unmade or NOT_READ
            continue
        available, reserved, purchased, capacity, in_transit = end.counts
        if not end.quiet:
            unmade = unmade or NOT_QUIET
            continue
        held = [claim.tickets[0] for claim in sale.claims.values() if claim.given and _is_held(sale, claim.tickets[0])]
        found += [f"{end.sale}: {ticket} is still reserved after its hold has ended." for ticket in held]
        if not end.own:
            unmade = unmade or OTHERS_BUY
            continue
        if reserved or in_transit or available + purchased != capacity:
            transit = f", {in_transit} in transit" if end.shards else ""
            found.append(
                f"{end.sale}: after every hold has ended {available} are available, {reserved} reserved{transit} and"
                f" {purchased} purchased, of {capacity}."
            )
        if end.tickets is not None:
            units = sum(ticket.quantity for ticket in end.tickets.values() if ticket.status == "purchased")
            if units != purchased:
                found.append(f"{end.sale} counts {purchased} purchased, and its tickets add up to {units}.")
        free, sold = free + available, sold + purchased
    said = f"After every hold has ended: {free} available and {sold} purchased, which is all."
    return _check("leaked", "No unit is lost", found, said, unmade)


def _is_held(sale: Sale, ticket: str) -> bool:
    listed = sale.listed(ticket)
    return listed is not None and listed.status == "reserved"


def _counters(sales: Sequence[Sale]) -> Check:
    found, count = [], 0
    for sale in sales:
        for available, reserved, purchased, capacity, in_transit in sale.end.readings:
            count += 1
            units = available, reserved, purchased, in_transit
            if min(units) < 0 or sum(units) != capacity:
                transit = f", {in_transit} in transit" if sale.end.shards else ""
                found.append(
                    f"{sale.end.sale} said {available} available, {reserved} reserved, {purchased} purchased{transit},"
                    f" of {capacity}."
                )
    return _check(
        "counters", "The counters always add up", found, f"They did, each of {count} times that they were read."
    )


# Outcomes -------------------------------------------------------------------------------------------------------------


def _purchases(sales: Sequence[Sale]) -> Check:
    found, unseen, count = [], 0, 0
    for sale in sales:
        for ticket, claim in sale.by_ticket.items():
            paid = claim.kept() if sale.end.failover else claim.acknowledged()
            if paid is None or paid.ticket != ticket:
                continue
            count += 1
            listed = sale.listed(ticket)
            if listed is None and sale.end.tickets is None:
                unseen += 1
            elif listed is None or listed.status != "purchased":
                found.append(f"{ticket} was acknowledged as paid, and is {listed.status if listed else 'not there'}.")
            elif listed.quantity != paid.units:
                found.append(f"{ticket} was paid with {paid.units} units, and has {listed.quantity}.")
            elif (again := sale.end.looked_up.get(ticket, listed)).status != "purchased":
                found.append(f"{ticket} was acknowledged as paid and listed so, and read once more is {again.status}.")
    unmade = f"{unseen} of {count} purchases could not be read." if unseen else ""
    return _check("purchases", "Every acknowledged purchase is there", found, f"All {count} were read.", unmade)


def _tickets(sales: Sequence[Sale]) -> Check:
    """Every ticket that the server has is one that a client knows, or may have without having been told."""
    found, unmade, count, untold = [], "", 0, 0
    for sale in sales:
        end = sale.end
        if end.tickets is None:
            unmade = unmade or NO_TOKEN
            continue
        if not end.own:
            unmade = unmade or OTHERS_BUY
        excused = _untold(sale)
        for id, listed in end.tickets.items():
            claim = sale.by_ticket.get(id)
            if claim is None:
                if not end.own:
                    continue
                if id not in excused:
                    found.append(f"{id} ({listed.status}) is nobody's: no client was told of it, or may have it.")
                untold += 1
            else:
                found += _unasked(claim, id, listed.status)
            count += 1
        if end.failover:
            continue
        # A ticket that a client was told of never goes: lost purchases are for the check of purchases.
        for id, claim in sale.by_ticket.items():
            if id not in end.tickets and claim.acknowledged() is None:
                found.append(f"{id} was given to buyer {claim.buyer}, and is not there.")
    more = f", {untold} of them to clients that had hung up or lost their connection" if untold else ""
    said = f"All {count} tickets that the server has are accounted for{more}."
    return _check("tickets", "Every ticket is explained", found, said, unmade)


def _untold(sale: Sale) -> set[str]:
    """Tickets that are there because of requests whose outcome nobody was told: no more of a buyer than it has such."""
    excused: set[str] = set()
    open_claims = Counter(claim.buyer for claim in sale.claims.values() if claim.unresolved)
    for buyer, theirs in sale.end.of_buyers.items():
        strange = [ticket.id for ticket in theirs if ticket.id not in sale.by_ticket]
        excused.update(strange[: open_claims[buyer]])
    return excused


def _unasked(claim: Claim, id: str, status: str) -> list[str]:
    if status == "purchased" and claim.may_be_paid() is None:
        return [f"{id} is purchased, and buyer {claim.buyer} never paid."]
    if status == "cancelled" and not any(
        each.call is Call.CANCEL and each.outcome is not Outcome.REFUSED for each in claim.about
    ):
        return [f"{id} is cancelled, and buyer {claim.buyer} never cancelled."]
    return []


def _keys(sales: Sequence[Sale]) -> Check:
    found, repeats = [], 0
    for sale in sales:
        for claim in sale.claims.values():
            if len(claim.tickets) > 1:
                found.append(f"Buyer {claim.buyer} got {' and '.join(claim.tickets)} with the key {claim.key}.")
            for ticket in claim.tickets:
                if (other := sale.by_ticket[ticket]) is not claim:
                    found.append(
                        f"{ticket} was given to buyer {other.buyer} for {other.key}, and to buyer {claim.buyer} for"
                        f" {claim.key}."
                    )
            if claim.given is None:
                continue
            repeats += len(claim.requests) - 1
            # What was lost is refused to its repeat like anything that is new.
            for each in () if sale.end.failover else claim.requests:
                if each.begun > claim.given.ended and each.code in AFTER_REPLAY:
                    found.append(
                        f"Buyer {claim.buyer} heard {each.code} for {claim.key}, which had its ticket already."
                    )
    return _check("keys", "No key gives two tickets", found, f"None did; {repeats} requests were sent more than once.")


def _endings(sales: Sequence[Sale]) -> Check:
    found: list[str] = []
    count = 0
    for sale in sales:
        for ticket, claim in sale.by_ticket.items():
            count += 1
            seen: dict[str, None] = {}
            told = [each for each in (*claim.requests, *claim.about) if each.ticket == ticket]
            for each in told:
                if each.state in TERMINAL:
                    seen.setdefault(each.state)
                found += _out_of_time(sale, each)
            listed = sale.listed(ticket)
            if listed is not None and listed.status in TERMINAL and claim.acknowledged() is None:
                seen.setdefault(listed.status)
            # What was told and then lost may end otherwise, but for a payment that was to survive that.
            if len(seen) > 1 and (not sale.end.failover or claim.kept() is not None):
                found.append(f"{ticket} was {' and '.join(seen)}.")
    return _check("endings", "Every hold ends once, at its time", found, f"So did those of {count} tickets.")


def _out_of_time(sale: Sale, each: Operation) -> Iterable[str]:
    if each.state == "purchased" and each.expires_at and each.ended_at >= each.expires_at:
        yield f"{each.ticket} was paid {each.ended_at - each.expires_at} ms after its hold had ended."
    clock = sale.clock(each.ticket)
    # Where the server's clock jumped, nothing else can be said.
    if clock is None or not each.expires_at:
        return
    if each.state == "expired" and each.ended < clock.earliest(each.expires_at):
        yield f"{each.ticket} had expired before its deadline ({_about(each)})."
    if each.state == "reserved" and each.begun > clock.latest(each.expires_at):
        yield f"{each.ticket} was still reserved after its deadline ({_about(each)})."


# Refusals and limits --------------------------------------------------------------------------------------------------


def _limits(sales: Sequence[Sale]) -> Check | None:
    found, most_of_all, limits = [], 0, set()
    for sale in sales:
        limit = sale.end.max_per_buyer
        if limit is None:
            continue
        limits.add(limit)
        for buyer, claims in sale.by_buyer().items():
            most, _ = peak((*sale.surely(claim), claim.units) for claim in claims)
            most_of_all = max(most, most_of_all)
            if most > limit:
                found.append(
                    f"{sale.end.sale}: buyer {buyer} surely had {most} units at one moment, and may have {limit}."
                )
            refused = [each for claim in claims for each in claim.requests if each.code == "limit_reached"]
            if not refused:
                continue
            bounds = Bounds((*sale.possibly(claim), claim.units) for claim in claims)
            for each in refused:
                had = bounds.between(each.begun, each.ended)
                if had + each.quantity <= limit:
                    found.append(f"{sale.end.sale}: buyer {buyer} had {had} units at the most and heard limit_reached.")
    if not limits:
        return None
    said = f"At one moment a buyer surely had at the most {most_of_all}, and may have {_listing(sorted(limits))}."
    return _check("limits", "No buyer has more than the limit", found, said)


def _refusals(sales: Sequence[Sale]) -> Check:
    found, unmade, count = [], "", 0
    for sale in sales:
        refused = [
            each for each in sale.operations if each.code in ("sold_out", "all_held") and each.call is Call.RESERVE
        ]
        if not sale.end.own:
            unmade = unmade or (OTHERS_BUY if refused else "")
            continue
        if not refused:
            continue
        # No end of a purchase: units that are paid never come back.
        paid = ((claim.may_be_paid(), claim.units) for claim in sale.claims.values())
        bought = Bounds((each.begun, NEVER, units) for each, units in paid if each is not None)
        had = Bounds((*sale.possibly(claim), claim.units) for claim in sale.claims.values())
        for each in refused:
            count += 1
            sold = bought.between(each.begun, each.ended)
            taken = had.between(each.begun, each.ended)
            if each.code == "sold_out" and sold + each.quantity <= sale.end.capacity:
                found.append(
                    f"{sale.end.sale}: sold_out, and {sold} of {sale.end.capacity} can have been sold ({_about(each)})."
                )
            # Units that are on their way between shards are nobody's, and the log knows nothing of them.
            elif not sale.end.shards and taken + each.quantity <= sale.end.capacity:
                found.append(
                    f"{sale.end.sale}: {each.code}, and {taken} of {sale.end.capacity} can have been taken"
                    f" ({_about(each)})."
                )
    said = f"{count} times clients heard sold_out or all_held, and each may have been true."
    return _check("refusals", "Nobody is refused what is free", found, said, unmade)


def _share(sales: Sequence[Sale], is_honest: Callable[[int], bool]) -> Check | None:
    """Where the stock is enough for everybody's limit, bots can keep no honest buyer from theirs."""
    found, honest, bots = [], set(), set()
    for sale in sales:
        buyers = sale.by_buyer()
        theirs = {buyer for buyer in buyers if is_honest(buyer)}
        wanted = sum(max(claim.units for claim in buyers[buyer]) for buyer in theirs)
        limit = sale.end.max_per_buyer
        others = len(buyers) - len(theirs)
        if not sale.end.own or not others or limit is None or wanted + others * limit > sale.end.capacity:
            continue
        honest |= theirs
        bots |= buyers.keys() - theirs
        for buyer in sorted(theirs):
            for claim in buyers[buyer]:
                code = claim.requests[-1].code
                in_transit = sale.end.shards and code == "all_held"
                if claim.given is None and code in AFTER_REPLAY and not in_transit:
                    found.append(
                        f"{sale.end.sale}: buyer {buyer} heard {code}, and there was enough for everybody's limit."
                    )
    if not bots:
        return None
    said = f"{len(bots)} bots kept none of {len(honest)} honest buyers from theirs."
    return _check("share", "Honest buyers get their share", found, said)


# Answers --------------------------------------------------------------------------------------------------------------


def _contract(operations: Sequence[Operation]) -> Check:
    found, count, silent = [], 0, 0
    for each in operations:
        if not each.status:
            silent += each.code != NOT_SENT
            continue
        count += 1
        if each.wrong:
            found.append(f"{each.wrong} ({_about(each)}).")
        elif each.status >= 500 and each.code not in ALWAYS:
            found.append(f"{each.status} {each.code or 'without a code'} ({_about(each)}).")
    less = f"; {silent} requests have none" if silent else ""
    return _check("contract", "Every answer keeps the contract", found, f"All {count} answers do{less}.")


def _listing(parts: Sequence[object], most: int = 3) -> str:
    """Some of them in words."""
    shown = [str(part) for part in parts[:most]]
    if len(parts) > most:
        shown.append(f"{len(parts) - most} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + f" and {shown[-1]}"
