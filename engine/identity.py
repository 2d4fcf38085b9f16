"""Keyed hashes: who a buyer is, what a ticket is called, which operation a call is. None is made without the secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections.abc import Iterable

from holdfast.engine.records import ID_CHARS

#: Bytes of a hash: 128 bits, 22 base64url characters. Guessing one of a million tickets takes 2^108 tries.
DIGEST_BYTES = 16

_TICKET = re.compile(r"^([a-z0-9][a-z0-9-]{0,63}(?:~[0-9]{1,4})?)\.([A-Za-z0-9_-]{22})$")


#: Random characters drawn at a time: one call of the system for so many ids.
DRAW_IDS = 512

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _text(digest: bytes) -> str:
    return binascii.b2a_base64(digest, newline=False)[:ID_CHARS].translate(_URL_SAFE).decode()


class Identity:
    """Derives ids from the secret.

    Parameters
    ----------
    secret: 16 to 64 bytes, the same in every process that serves the same sales.
    """

    def __init__(self, secret: bytes) -> None:
        #: Begun once with key and purpose; whatever is hashed is hashed on a copy.
        self._buyer, self._ticket, self._operation, self._check = (
            hashlib.blake2b(key=secret, person=purpose, digest_size=DIGEST_BYTES)
            for purpose in (b"buyer", b"ticket", b"operation", b"check")
        )

    @staticmethod
    def _hash(begun: hashlib.blake2b, *parts: str) -> str:
        hashed = begun.copy()
        for part in parts:
            raw = part.encode()
            # Lengths in front of the parts: ("a", "bc") and ("ab", "c") are different things.
            hashed.update(len(raw).to_bytes(4, "big"))
            hashed.update(raw)
        return _text(hashed.digest())

    def buyer(self, buyer: str) -> str:
        """The only form of a buyer that is ever kept.

        Raises
        ------
        UnicodeEncodeError: UTF-8 cannot carry it.
        """
        raw = buyer.encode()
        hashed = self._buyer.copy()
        hashed.update(b"%b%b" % (len(raw).to_bytes(4, "big"), raw))
        return _text(hashed.digest())

    def buyers(self, buyers: Iterable[str]) -> list[str]:
        """As `buyer` for many at once, in half the time."""
        begun = self._buyer
        digests: list[bytes] = []
        for buyer in buyers:
            raw = buyer.encode()
            hashed = begun.copy()
            hashed.update(b"%b%b" % (len(raw).to_bytes(4, "big"), raw))
            digests.append(hashed.digest())
        # Filled up to a multiple of 3 bytes, each begins a character of its own; zeros do not show in the first 22.
        text = binascii.b2a_base64(b"\0\0".join((*digests, b"")), newline=False).translate(_URL_SAFE).decode()
        return [text[at : at + ID_CHARS] for at in range(0, len(text), ID_CHARS + 2)]

    def ticket(self, sale: str, buyer_hash: str, key: str) -> str:
        """The id of the ticket that this key makes for this buyer of this sale, without its slot."""
        return self._hash(self._ticket, sale, buyer_hash, key)

    def operation(self, call: str, ticket: str, key: str) -> str:
        """The id of one operation on a ticket, kept in its record to tell a repeat from a conflict."""
        return self._hash(self._operation, call, ticket, key)

    def check(self) -> str:
        """A fingerprint of the secret itself, kept in the store to notice another one."""
        return self._hash(self._check)


_WHOLE_ID = re.compile(f".{{{ID_CHARS}}}")

#: Drawn and not yet handed out. A forked process must not hand out the same ones.
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)


def random_id() -> str:
    """A fresh id or operation, for calls that came without a key: 132 bits of the system's randomness."""
    if not _drawn:
        # Every 4 characters are 3 bytes; 22 characters of them are as random as each character is.
        text = base64.urlsafe_b64encode(secrets.token_bytes(DRAW_IDS * ID_CHARS * 3 // 4)).decode()
        _drawn.extend(_WHOLE_ID.findall(text))
    return _drawn.pop()


def split_ticket(ticket: str) -> tuple[str, str] | None:
    """Slot and id of a ticket, or None for something that cannot be one."""
    match = _TICKET.fullmatch(ticket)
    return (match[1], match[2]) if match else None
