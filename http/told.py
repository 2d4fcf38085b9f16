"""What the API answered, as values and exceptions of the engine: the reverse of `models.py` and `problems.py`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from holdfast.engine import (
    AlreadyPurchased,
    ConfigurationError,
    Durability,
    HoldfastError,
    InvalidRequest,
    Item,
    ItemSpec,
    Kind,
    Line,
    Page,
    Readiness,
    Sale,
    SaleTransition,
    Status,
    Terms,
    Ticket,
)
from holdfast.engine.records import shard_of
from holdfast.engine.tail import positions

from .models import ENDED_FIELDS, instant_ms
from .problems import INSTANT_DETAILS, TABLE, HttpError, InvalidBody

#: The refusal of each code. `InvalidBody` is how the server says of a body what `InvalidRequest` says of any request.
REFUSALS: Final[Mapping[str, type[Exception]]] = {
    error.code: error  # type: ignore[attr-defined]
    for error in TABLE
    if error is not InvalidBody
}

#: Headers that belong to a refusal.
_HEADERS: Final = ("Allow", "WWW-Authenticate")

Json = Mapping[str, Any]


class UnexpectedAnswer(ConfigurationError):
    """Something else than a Holdfast server has answered, or a newer one: look at the address, and what is before it.

    Parameters
    ----------
    status: of the answer. what: it said, as far as that helps.
    """

    def __init__(self, status: int, what: str) -> None:
        super().__init__(f"The answer with status {status} is none that a Holdfast server gives: {what}")
        self.status = status


@contextmanager
def understood(status: int) -> Iterator[None]:
    """Has what is read within it be an `UnexpectedAnswer` where it lacks something, or has something else there."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UnexpectedAnswer(status, f"it cannot be read ({type(error).__name__}: {error})") from error


def refusal(problem: Json, headers: Mapping[str, str]) -> Exception | None:
    """The exception that the server raised, with the same attributes; None when it has a code that is not known here.

    Parameters
    ----------
    problem: the problem object. headers: of the answer.
    """
    kind = REFUSALS.get(problem["code"])
    if kind is None:
        return None
    if issubclass(kind, HttpError):
        ours = {name: headers[name] for name in _HEADERS if name in headers}
        return kind(problem["detail"], headers=ours, closes=headers.get("Connection") == "close")
    if kind is InvalidRequest:
        first, *more = ((each["pointer"], each["detail"]) for each in problem["errors"])
        return InvalidRequest(*first, more)
    if kind is AlreadyPurchased:
        return AlreadyPurchased(ticket(problem["ticket"]))
    # The parameters of the others have the names of their details.
    return kind(**{name: _detail(name, problem.get(name)) for name in inspect.signature(kind).parameters})


def _detail(name: str, value: Any) -> Any:
    if name in INSTANT_DETAILS:
        return instant_ms(value)
    if name == "retry_after_ms":
        return int(value)
    return Durability(value) if name == "durability" else value


def ticket(body: Json, *, replayed: bool = False) -> Ticket:
    """A ticket. Its `buyer` is empty: the API shows it to nobody."""
    status = Status(body["status"])
    expires_at = instant_ms(body["expires_at"])
    ended = ENDED_FIELDS.get(status)
    return Ticket(
        id=body["id"],
        sale=body["sale"],
        status=status,
        lines=_lines(body["lines"]),
        buyer="",
        reserved_at=instant_ms(body["reserved_at"]),
        expires_at=expires_at,
        ended_at=None if ended is None else instant_ms(body[ended]),
        reference=body.get("reference"),
        as_of=expires_at - body["expires_in_ms"],
        replayed=replayed,
        durability=_durability(body.get("durability")),
        pending=_durability(body.get("durability_pending")),
    )


def _lines(lines: list[Json]) -> tuple[Line, ...]:
    return tuple(Line(line["sku"], line["quantity"]) for line in lines)


def _durability(name: str | None) -> Durability | None:
    return None if name is None else Durability(name)


def sale(body: Json, *, created: bool = False, place: str = "") -> Sale:
    """A sale.

    Parameters
    ----------
    place: where its ledger stood, when that was told.
    """
    return Sale(
        id=body["id"],
        name=body["name"],
        items=tuple(
            Item(
                sku=item["sku"],
                name=item["name"],
                capacity=item["capacity"],
                max_per_buyer=item.get("max_per_buyer"),
                available=item["available"],
                reserved=item["reserved"],
                purchased=item["purchased"],
                in_transit=item.get("in_transit", 0),
            )
            for item in body["items"]
        ),
        sequence=body["sequence"],
        created=created,
        ready=body.get("ready", True),
        epoch=max((each.epoch for each in positions(place)), default=0) if place else 0,
        place=place,
        **_terms(body),
    )


def _terms(body: Json) -> dict[str, Any]:
    return {
        "hold_ms": body["hold_ms"],
        "max_per_buyer": body["max_per_buyer"],
        "opens_at": _instant(body["opens_at"]),
        "closes_at": _instant(body["closes_at"]),
        "durability": _durability(body["durability"]),
        "shards": body.get("shards"),
    }


def _instant(text: str | None) -> int | None:
    return None if text is None else instant_ms(text)


def transition(body: Json, place: str) -> SaleTransition:
    """A transition of the live stream.

    Parameters
    ----------
    place: the id of its event.
    """
    kind = Kind(body["kind"])
    position = (body["epoch"], body["sequence"], instant_ms(body["at"]), kind, body["sale"])
    slot = body.get("slot", body["sale"])
    at, each = max(0, shard_of(slot) - 1), place.split(",")
    around = "".join(f"{other}," for other in each[:at]), "".join(f",{other}" for other in each[at + 1 :])
    if kind is Kind.SALE:
        items = tuple(
            ItemSpec(item["sku"], item["capacity"], item["name"], item.get("max_per_buyer")) for item in body["items"]
        )
        terms = Terms(name=body["name"], items=items, **_terms(body))
        return SaleTransition(*position, terms=terms, slot=slot, around=around)
    return SaleTransition(
        *position,
        body.get("ticket"),
        _lines(body["lines"]),
        _instant(body.get("expires_at")),
        body.get("reference"),
        slot=slot,
        around=around,
    )


def tickets(body: Json) -> Page[Ticket]:
    """A page of tickets."""
    return Page(tuple(map(ticket, body["items"])), body["next"])


def sales(body: Json) -> Page[Sale]:
    """A page of sales."""
    return Page(tuple(map(sale, body["items"])), body["next"])


def readiness(body: Json) -> Readiness:
    """Whether all can be sold."""
    if "reasons" in body:
        return Readiness(False, tuple(body["reasons"]))
    if body["status"] != "ready":
        raise ValueError(f"status {body['status']}")
    return Readiness(True, (), tuple(body.get("alarms", ())))


def outcomes(body: Json, count: int) -> list[Ticket | HoldfastError]:
    """What became of the entries of a batch call, of which there were so many."""
    entries = body["entries"]
    if len(entries) != count:
        raise ValueError(f"{len(entries)} entries for {count}")
    return [outcome(entry) for entry in entries]


def outcome(entry: Json) -> Ticket | HoldfastError:
    """What became of one entry of a batch call."""
    if "ticket" in entry:
        return ticket(entry["ticket"], replayed=entry.get("replayed", False))
    problem = entry["problem"]
    error = refusal(problem, {})
    return error if isinstance(error, HoldfastError) else UnexpectedAnswer(entry["status"], str(problem["detail"]))
