"""What a server prints when it has started: its address, the operator's token, its pages, and what to try first."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Final

import jwt

from holdfast.engine import Engine, NotReady, Sale

from .callers import FINGERPRINT_HEADER, TOKEN_HEADER
from .settings import ServeSettings

#: What the operator's token is called where it is kept.
OPERATOR_TOKEN: Final = "operator_token"

#: Reasons that the start prints; `/readyz` has them all.
REASONS_SHOWN: Final = 10

#: The sale of `--demo`.
DEMO_SALE: Final = "demo"
DEMO_CAPACITY: Final = 100
DEMO_MAX_PER_BUYER: Final = 4

#: Seconds for which the buyer token in the printed lines is good.
DEMO_TOKEN_SECONDS: Final = 3600


async def established_token(engine: Engine, settings: ServeSettings) -> str:
    """The operator's token: as configured, or made once and kept."""
    return settings.operator_token or await engine.kept(OPERATOR_TOKEN, lambda: secrets.token_urlsafe(24))


async def welcome(engine: Engine, settings: ServeSettings, operator_token: str, port: int) -> None:
    """Print the first lines; with `--demo`, and no sale at all, the sale is created here."""
    address = f"http://{_host_text(settings.host)}:{port}"
    print(f"Holdfast serves on {address}")
    made = operator_token if settings.operator_token is None else None
    print(f"operator token: {_token_text(made, settings)}")
    # A fragment is not sent to the server; the page takes it out of the address. A configured token is not shown.
    print(f"dashboard: {address}/{'' if made is None else f'#token={made}'}")
    for line in await _first_lines(engine, settings, address):
        print(line)
    sys.stdout.flush()


def _host_text(host: str) -> str:
    """A host as it stands in an address that works from this machine."""
    if host in ("", "0.0.0.0"):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _token_text(token: str | None, settings: ServeSettings) -> str:
    if token is None:
        return "as configured"
    return f"{token} (kept in {settings.data_dir / OPERATOR_TOKEN if settings.redis is None else 'the store'})"


async def _first_lines(engine: Engine, settings: ServeSettings, address: str) -> list[str]:
    """What to try first; or, when nothing can be sold yet, why. `/readyz` goes on telling it."""
    readiness = await engine.readiness()
    if not readiness.ready:
        return [
            "Not ready; what is named here is not sold. Run `holdfast recover`, or start with --recover:",
            *(f"  {reason}" for reason in readiness.reasons[:REASONS_SHOWN]),
        ]
    try:
        if settings.demo and not (await engine.sales(limit=1)).items:
            await engine.create_sale(DEMO_SALE, name="Demo", capacity=DEMO_CAPACITY, max_per_buyer=DEMO_MAX_PER_BUYER)
        return await _try_it(engine, settings, address)
    except NotReady as error:
        return [str(error)]


async def _try_it(engine: Engine, settings: ServeSettings, address: str) -> list[str]:
    """The shop, and three lines to paste, one after the other: reserve, pay, look. Empty without a sale to show.

    The ticket's id is derived from the sale, the buyer and the idempotency key, so that it is known beforehand.
    """
    sale = _sale_to_show((await engine.sales()).items)
    if sale is None:
        return []
    buyer, key = f"demo-{secrets.token_hex(6)}", secrets.token_hex(8)
    ticket = engine.ticket_id(sale.id, buyer=buyer, key=key)
    named = _buyer_header(settings, buyer)
    order: dict[str, object] = (
        {"quantity": 1} if len(sale.items) == 1 else {"lines": [{"sku": sale.items[0].sku, "quantity": 1}]}
    )
    headers = {"Content-Type": "application/json", "Idempotency-Key": key, **named}
    # Where buyers need signed tokens the shop page cannot sell.
    shop = [f"shop: {address}/shop/{sale.id}"] if settings.buyer_token_key is None else []
    return [
        *shop,
        "Try it:",
        _curl("POST", f"{address}/sales/{sale.id}/tickets", headers, json.dumps(order)),
        _curl("POST", f"{address}/tickets/{ticket}/payment", named),
        _curl("GET", f"{address}/sales/{sale.id}"),
    ]


def _sale_to_show(sales: tuple[Sale, ...]) -> Sale | None:
    """The demo sale, or one that still has something to sell, or any."""
    ranked = sorted(sales, key=lambda sale: (all(item.available == 0 for item in sale.items), sale.id != DEMO_SALE))
    return ranked[0] if ranked else None


def _buyer_header(settings: ServeSettings, buyer: str) -> dict[str, str]:
    if settings.buyer_token_key is None:
        return {FINGERPRINT_HEADER: buyer}
    claims = {"sub": buyer, "exp": int(time.time()) + DEMO_TOKEN_SECONDS}
    return {TOKEN_HEADER: jwt.encode(claims, settings.buyer_token_key, algorithm="HS256")}


def _curl(method: str, url: str, headers: Mapping[str, str] | None = None, body: str | None = None) -> str:
    words = ["curl", "-sS", *([] if method == "GET" else ["-X", method]), url]
    for name, value in (headers or {}).items():
        words += ["-H", f"{name}: {value}"]
    if body is not None:
        words += ["-d", body]
    return "  " + shlex.join(words)
