"""The clients' log: what each asked, when, and what it was told. The verdict believes nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: Nanoseconds of a millisecond.
MS: Final = 1_000_000

#: Later than everything, nanoseconds.
NEVER: Final = 2**63

#: Said in place of a code when no answer came: the connection was never made (nothing was sent), was lost, was closed
#: by the client itself, or brought nothing for as long as the client was patient.
NOT_SENT: Final = "not_sent"
LOST: Final = "connection_lost"
HUNG_UP: Final = "hung_up"
NO_ANSWER: Final = "no_answer"

#: The status of a payment that was made, and is not yet as durable as it should be.
PENDING: Final = 202

#: Codes of a 503 that promise that nothing was done.
NOTHING_DONE: Final = frozenset({"not_ready", "overloaded"})


class Call(StrEnum):
    """What was asked."""

    RESERVE = "reserve"
    PAY = "pay"
    CANCEL = "cancel"
    GARBAGE = "garbage"


class Outcome(StrEnum):
    """What a client knows afterwards."""

    DONE = "done"  # it happened
    REFUSED = "refused"  # nothing happened
    UNKNOWN = "unknown"  # it may have happened, now or later


@dataclass(slots=True)
class Operation:
    """One request. Instants are nanoseconds of the monotonic clock, those of the server milliseconds of its own.

    Parameters
    ----------
    buyer: its number. sale: its number. key: of the request. quantity: units asked for.
    due: when it was to be sent. begun: just before it was. ended: when the client knew what it was ever to know.
    waited: whether there was no free connection when it was due.
    status: of HTTP; 0 without an answer. code: of a refusal, or why there is no answer; empty for a success.
    ticket: asked about, or given. state: of the ticket, as the answer says. units: of the ticket, as the answer says.
    expires_at, now: its deadline and the server's clock, as the answer says; 0 where it does not.
    ended_at: when it was purchased or cancelled; 0 where the answer does not say.
    replayed: whether the answer says that it repeats another. retry_after_ms: as the refusal says.
    wrong: what about the answer breaks the contract; empty when nothing does.
    """

    buyer: int
    call: Call
    sale: int
    key: str
    quantity: int
    due: int
    begun: int
    ended: int
    waited: bool = False
    status: int = 0
    code: str = ""
    ticket: str = ""
    state: str = ""
    units: int = 0
    expires_at: int = 0
    now: int = 0
    ended_at: int = 0
    replayed: bool = False
    retry_after_ms: int = 0
    wrong: str = ""

    @property
    def outcome(self) -> Outcome:
        if 200 <= self.status < 300:
            return Outcome.DONE
        if self.status == 0:
            return Outcome.REFUSED if self.code == NOT_SENT else Outcome.UNKNOWN
        # 503 not_ready and overloaded promise that nothing was done; any other 5xx promises nothing.
        if self.status >= 500 and self.code not in NOTHING_DONE:
            return Outcome.UNKNOWN
        return Outcome.REFUSED

    @property
    def said(self) -> str:
        """What it came to, in a word."""
        return self.code or ("replayed" if self.replayed else "ok")
