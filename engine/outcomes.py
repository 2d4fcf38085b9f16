"""The outcome codes: what a script can answer and what a caller can hear. One table for Lua, Python, HTTP and the docs.

`lua/includes/outcomes.lua` names the same script outcomes, `docs/api.md` documents every code and
`http/problems.py` gives each refusal its status; tests hold all of them equal.
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """What a script answers, for the slot or for one entry of its batch."""

    OK = "ok"  #: the transition was made
    REPLAYED = "replayed"  #: the same operation had succeeded before; nothing was done
    MISSING = "missing"  #: the slot has no sale here
    FENCED = "fenced"  #: the slot is being rebuilt
    BEHIND = "behind"  #: the slot knows less than the store
    UNKNOWN_TICKET = "unknown_ticket"
    UNKNOWN_ITEM = "unknown_item"  #: a line names an item that this sale does not have
    NOT_YOUR_TICKET = "not_your_ticket"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    CHECK_STORE = "check_store"  #: old tickets were dropped here: ask the store about this id, then call again
    SWEEP_FIRST = "sweep_first"  #: more holds have run out than one call may sweep: sweep, then call again
    NOT_YET_OPEN = "not_yet_open"
    CLOSED = "closed"
    LIMIT_REACHED = "limit_reached"
    SOLD_OUT = "sold_out"
    ALL_HELD = "all_held"
    ALREADY_PURCHASED = "already_purchased"
    ALREADY_CANCELLED = "already_cancelled"
    TICKET_EXPIRED = "ticket_expired"
    PAYMENT_DECLINED = "payment_declined"
    SALE_EXISTS = "sale_exists"
    CAPACITY_IN_USE = "capacity_in_use"
    VERSION_CHANGED = "version_changed"  #: the sale was amended meanwhile: read it and merge again
