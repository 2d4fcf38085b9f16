"""The refusals of the engine: one exception per code, each with a sentence for a person and what a caller needs.

Each class has the stable `code`; the HTTP status of each stands in `holdfast.http.problems`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from holdfast.engine.values import Durability, Ticket


class HoldfastError(Exception):
    """Anything that the engine refuses or cannot do. `str(error)` is a sentence that a person understands."""

    code: ClassVar[str]

    def details(self) -> dict[str, object]:
        """What a caller can act on, by field name; times in Unix milliseconds, other figures as named."""
        return {}


class InvalidRequest(HoldfastError, ValueError):
    """A value that can never be right.

    Parameters
    ----------
    pointer: where, as a JSON pointer into the call's arguments (`/lines/0/sku`).
    detail: what is wrong and what would be right.
    more: further mistakes of the same call, each as pointer and detail.

    Attributes
    ----------
    mistakes: all of them.
    """

    code = "invalid_request"

    def __init__(self, pointer: str, detail: str, more: Sequence[tuple[str, str]] = ()) -> None:
        others = f" (and {len(more)} more)" if more else ""
        super().__init__(f"{pointer or 'the request'}: {detail}{others}")
        self.pointer = pointer
        self.detail = detail
        self.mistakes = ((pointer, detail), *more)


class UnknownSale(HoldfastError):
    """No sale has this id."""

    code = "unknown_sale"

    def __init__(self, sale: str) -> None:
        super().__init__(f"There is no sale '{sale}'.")
        self.sale = sale

    def details(self) -> dict[str, object]:
        return {"sale": self.sale}


class UnknownTicket(HoldfastError):
    """No ticket has this id."""

    code = "unknown_ticket"

    def __init__(self) -> None:
        super().__init__("There is no such ticket.")


class SaleExists(HoldfastError):
    """The id is taken by a sale that was described otherwise."""

    code = "sale_exists"

    def __init__(self, sale: str) -> None:
        super().__init__(f"A different sale '{sale}' exists already; amend it, or choose another id.")
        self.sale = sale

    def details(self) -> dict[str, object]:
        return {"sale": self.sale}


class CapacityInUse(HoldfastError):
    """A capacity below what is held and sold.

    Parameters
    ----------
    in_use: units held and sold now, the smallest capacity that this item can be given.
    """

    code = "capacity_in_use"

    def __init__(self, sku: str, in_use: int) -> None:
        super().__init__(f"{in_use} units of '{sku}' are held or sold; its capacity cannot be less than that.")
        self.sku = sku
        self.in_use = in_use

    def details(self) -> dict[str, object]:
        return {"sku": self.sku, "in_use": self.in_use}


class NotYetOpen(HoldfastError):
    """The selling window has not begun. `opens_at` and `retry_after_ms` are milliseconds."""

    code = "not_yet_open"

    def __init__(self, opens_at: int, retry_after_ms: int) -> None:
        super().__init__("This sale has not opened yet.")
        self.opens_at = opens_at
        self.retry_after_ms = retry_after_ms

    def details(self) -> dict[str, object]:
        return {"opens_at": self.opens_at, "retry_after_ms": self.retry_after_ms}


class Closed(HoldfastError):
    """The selling window is over."""

    code = "closed"

    def __init__(self) -> None:
        super().__init__("This sale is closed.")


class LimitReached(HoldfastError):
    """The buyer would have more than a buyer may.

    Parameters
    ----------
    remaining: units that this buyer may still take under the limit that was hit.
    sku: the item whose own limit it was; None for the sale's.
    """

    code = "limit_reached"

    def __init__(self, remaining: int, sku: str | None) -> None:
        what = f"of '{sku}' " if sku else ""
        super().__init__(
            f"A buyer's limit: {remaining} more {what}may be taken by this buyer, held and bought together."
        )
        self.remaining = remaining
        self.sku = sku

    def details(self) -> dict[str, object]:
        return {"remaining": self.remaining} | ({"sku": self.sku} if self.sku else {})


class SoldOut(HoldfastError):
    """Even if every held ticket ended, this could not be met. `available` units of `sku` are left."""

    code = "sold_out"

    def __init__(self, sku: str, available: int) -> None:
        super().__init__(f"{available} of '{sku}' are left, and even with what others hold there would not be enough.")
        self.sku = sku
        self.available = available

    def details(self) -> dict[str, object]:
        return {"sku": self.sku, "available": self.available}


class AllHeld(HoldfastError):
    """What is left is held by others and may come back; `retry_after_ms` is the time to the next deadline."""

    code = "all_held"

    def __init__(self, sku: str, available: int, retry_after_ms: int) -> None:
        super().__init__(f"'{sku}' is held by others, {available} left; some may come back when holds run out.")
        self.sku = sku
        self.available = available
        self.retry_after_ms = retry_after_ms

    def details(self) -> dict[str, object]:
        return {"sku": self.sku, "available": self.available, "retry_after_ms": self.retry_after_ms}


class NotYourTicket(HoldfastError):
    """The ticket belongs to another buyer."""

    code = "not_your_ticket"

    def __init__(self) -> None:
        super().__init__("This ticket belongs to another buyer.")


class AlreadyPurchased(HoldfastError):
    """Paid before, by another operation. `ticket` is the ticket as it stands, for its owner."""

    code = "already_purchased"

    def __init__(self, ticket: Ticket) -> None:
        super().__init__("This ticket was purchased already.")
        self.ticket = ticket


class AlreadyCancelled(HoldfastError):
    """Cancelled before; its units went back to the pool."""

    code = "already_cancelled"

    def __init__(self) -> None:
        super().__init__("This ticket was cancelled; reserve again.")


class TicketExpired(HoldfastError):
    """The hold ran out; its units went back to the pool."""

    code = "ticket_expired"

    def __init__(self, expired_at: int) -> None:
        super().__init__("The hold of this ticket has run out; reserve again.")
        self.expired_at = expired_at

    def details(self) -> dict[str, object]:
        return {"expired_at": self.expired_at}


class PaymentDeclined(HoldfastError):
    """The payment was refused; the ticket stays reserved until its deadline."""

    code = "payment_declined"

    def __init__(self) -> None:
        super().__init__("The payment was declined; the ticket stays reserved until its deadline.")


class DurabilityUnavailable(HoldfastError):
    """This deployment cannot give the durability that was asked for; nothing was done.

    Parameters
    ----------
    durability: the level. reason: why not, and what would help.
    """

    code = "durability_unavailable"

    def __init__(self, durability: Durability, reason: str) -> None:
        super().__init__(f"Durability '{durability}' cannot be had here: {reason}")
        self.durability = durability
        self.reason = reason

    def details(self) -> dict[str, object]:
        return {"durability": self.durability.value, "reason": self.reason}


class IdempotencyKeyReused(HoldfastError):
    """The same key came with another request."""

    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This idempotency key was used for a different request; use a new key for a new request.")


class NotReady(HoldfastError):
    """Nothing can be said or sold now, and nothing was done.

    Parameters
    ----------
    reason: what is not ready, for an operator.
    retry_after_ms: when to try again, milliseconds.
    """

    code = "not_ready"

    def __init__(self, reason: str, retry_after_ms: int = 1000) -> None:
        super().__init__(f"Not ready: {reason}")
        self.reason = reason
        self.retry_after_ms = retry_after_ms

    def details(self) -> dict[str, object]:
        return {"reason": self.reason, "retry_after_ms": self.retry_after_ms}


class Overloaded(HoldfastError):
    """Too many callers wait already; nothing was done."""

    code = "overloaded"

    def __init__(self, retry_after_ms: int = 1000) -> None:
        super().__init__("Too many requests are waiting; nothing was done, try again shortly.")
        self.retry_after_ms = retry_after_ms

    def details(self) -> dict[str, object]:
        return {"retry_after_ms": self.retry_after_ms}


class OutcomeUnknown(HoldfastError):
    """The call may or may not have taken effect: Redis went away in the middle. Repeat it with the same key."""

    code = "outcome_unknown"

    def __init__(self, retry_after_ms: int = 1000) -> None:
        super().__init__("It is not known whether this took effect; repeat it with the same idempotency key.")
        self.retry_after_ms = retry_after_ms

    def details(self) -> dict[str, object]:
        return {"retry_after_ms": self.retry_after_ms}


class ConfigurationError(HoldfastError):
    """The engine cannot start like this; the sentence says what, where, and what to do."""

    code = "configuration_error"
