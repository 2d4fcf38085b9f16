"""Keyed hashes: who a buyer is, what a ticket is called, which operation a call is. None is made without the secret."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

#: Bytes of a hash: 128 bits, 22 base64url characters. Guessing one of a million tickets takes 2^108 tries.
DIGEST_BYTES = 16

_TICKET = re.compile(r"^([a-z0-9][a-z0-9-]{0,63}(?:~[0-9]{1,4})?)\.([A-Za-z0-9_-]{22})$")


def _text(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Identity:
    """Derives ids from the secret.

    Parameters
    ----------
    secret: 16 to 64 bytes, the same in every process that serves the same sales.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _hash(self, purpose: bytes, *parts: str) -> str:
        # Lengths in front of the parts: ("a", "bc") and ("ab", "c") are different things.
        data = b"".join(len(raw := part.encode()).to_bytes(4, "big") + raw for part in parts)
        return _text(hashlib.blake2b(data, key=self._secret, person=purpose, digest_size=DIGEST_BYTES).digest())

    def buyer(self, buyer: str) -> str:
        """The only form of a buyer that is ever kept."""
        return self._hash(b"buyer", buyer)

    def ticket(self, sale: str, buyer_hash: str, key: str) -> str:
        """The id of the ticket that this key makes for this buyer of this sale, without its slot."""
        return self._hash(b"ticket", sale, buyer_hash, key)

    def operation(self, call: str, ticket: str, key: str) -> str:
        """The id of one operation on a ticket, kept in its record to tell a repeat from a conflict."""
        return self._hash(b"operation", call, ticket, key)

    def check(self) -> str:
        """A fingerprint of the secret itself, kept in the store to notice another one."""
        return self._hash(b"check")


def random_id() -> str:
    """A fresh id or operation, for calls that came without a key."""
    return _text(secrets.token_bytes(DIGEST_BYTES))


def split_ticket(ticket: str) -> tuple[str, str] | None:
    """Slot and id of a ticket, or None for something that cannot be one."""
    match = _TICKET.fullmatch(ticket)
    return (match[1], match[2]) if match else None
