"""The bytes of every request that the harness makes."""

from __future__ import annotations

import json
import time
from typing import Final, NamedTuple

import jwt

from ..callers import FINGERPRINT_HEADER, TOKEN_HEADER
from .wire import Address

#: Seconds for which the buyers' signed tokens are good: longer than any run.
TOKEN_SECONDS: Final = 24 * 3600

#: Bytes of a body that is too large for every call of a buyer.
TOO_LARGE: Final = 9_000


class Garbage(NamedTuple):
    """What a bot sends that is not right: a request, and status and code of the refusal that it has to get."""

    method: str
    path: str
    headers: tuple[str, ...]
    body: bytes
    expected: tuple[int, str]


_JSON = ("Content-Type: application/json",)

#: By how they are wrong; `{sale}` is the sale's id.
GARBAGE: Final = (
    Garbage("POST", "/sales/{sale}/tickets", _JSON, b'{"quantity":', (400, "malformed_json")),
    Garbage("POST", "/sales/{sale}/tickets", _JSON, b'{"quantity":"2"}', (422, "invalid_request")),
    Garbage("POST", "/sales/{sale}/tickets", _JSON, b'{"quantity":-1}', (422, "invalid_request")),
    Garbage("POST", "/sales/{sale}/tickets", _JSON, b'{"quantity":1,"price":0}', (422, "invalid_request")),
    Garbage("POST", "/sales/{sale}/tickets", (), b'{"quantity":1}', (415, "unsupported_media_type")),
    Garbage("POST", "/sales/{sale}/tickets", _JSON, b"[" * TOO_LARGE, (413, "body_too_large")),
    Garbage("POST", "/sales/no-such-sale/tickets", _JSON, b'{"quantity":1}', (404, "unknown_sale")),
    Garbage("POST", "/tickets/{sale}.AAAAAAAAAAAAAAAAAAAAAA/payment", (), b"", (404, "unknown_ticket")),
    Garbage("PUT", "/sales/{sale}/tickets", _JSON, b'{"quantity":1}', (405, "method_not_allowed")),
    Garbage("GET", "/admin.php", (), b"", (404, "unknown_route")),
    Garbage("GET", "/sales", ("Authorization: Bearer guessed",), b"", (401, "operator_token_required")),
)


class Requests:
    """Requests to one server.

    Parameters
    ----------
    run: goes into the names of buyers and keys, so that no two runs share any.
    sku: of the item; None in sales of a single one.
    buyer_token_key: signs the buyers' tokens, where the server wants them.
    """

    def __init__(self, address: Address, run: str, sku: str | None = None, buyer_token_key: str | None = None) -> None:
        self._host = f"Host: {address.host_header}\r\n"
        self._base = address.base
        self._run, self._sku, self._token_key = run, sku, buyer_token_key
        self._expires = int(time.time()) + TOKEN_SECONDS

    def buyer(self, number: int) -> str:
        """The header that says who asks."""
        name = f"load-{self._run}-{number:07d}"
        if self._token_key is None:
            return f"{FINGERPRINT_HEADER}: {name}\r\n"
        token = jwt.encode({"sub": name, "exp": self._expires}, self._token_key, algorithm="HS256")
        return f"{TOKEN_HEADER}: {token}\r\n"

    def reserve(self, sale: str, buyer: str, key: str, quantity: int) -> bytes:
        body = f'{{"quantity":{quantity}}}'
        if self._sku is not None:
            body = f'{{"lines":[{{"sku":"{self._sku}","quantity":{quantity}}}]}}'
        return (
            f"POST {self._base}/sales/{sale}/tickets HTTP/1.1\r\n{self._host}{buyer}Idempotency-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def pay(self, ticket: str, buyer: str, key: str) -> bytes:
        return (
            f"POST {self._base}/tickets/{ticket}/payment HTTP/1.1\r\n{self._host}{buyer}Idempotency-Key: {key}\r\n"
            "Content-Length: 0\r\n\r\n"
        ).encode()

    def cancel(self, ticket: str, buyer: str) -> bytes:
        return f"DELETE {self._base}/tickets/{ticket}/payment HTTP/1.1\r\n{self._host}{buyer}\r\n".encode()

    def garbage(self, garbage: Garbage, sale: str, buyer: str) -> bytes:
        headers = "".join(f"{header}\r\n" for header in garbage.headers)
        path = garbage.path.format(sale=sale)
        length = f"Content-Length: {len(garbage.body)}\r\n" if garbage.method != "GET" else ""
        return f"{garbage.method} {self._base}{path} HTTP/1.1\r\n{self._host}{buyer}{headers}{length}\r\n".encode() + (
            garbage.body
        )

    def call(self, method: str, path: str, *, headers: str = "", body: object = None) -> bytes:
        """Any other call, as the operator and readers make them.

        Parameters
        ----------
        headers: whole lines. body: sent as JSON when it is not None.
        """
        content = b"" if body is None else json.dumps(body).encode()
        described = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        return f"{method} {self._base}{path} HTTP/1.1\r\n{self._host}{headers}{described}\r\n".encode() + content
