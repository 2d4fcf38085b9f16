"""A server process, from its settings to an orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import resource
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

import jwt
import uvloop
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from holdfast.engine import ConfigurationError, Engine, NotReady, Sale

from .app import create_app
from .callers import FINGERPRINT_HEADER, TOKEN_HEADER
from .context import AppConfig
from .settings import ServeSettings

#: Seconds for which an idle connection is kept, and in which the head of a request must have arrived: longer than
#: the 60 s after which common proxies give up theirs, so that it is never we who close one in use.
KEEP_ALIVE_SECONDS: Final = 75.0

#: Seconds in which a refused request may still send its body before the connection is closed on it.
LINGER_SECONDS: Final = 2.0

#: Seconds that running requests get to finish at shutdown; they wait for Redis, which answers in milliseconds.
SHUTDOWN_SECONDS: Final = 10.0

#: Seconds in which a repeated signal counts as the first one. After that, the next but one ends the process at once.
REPEATED_SECONDS: Final = 1.0

#: Connections that wait to be accepted: in a stampede they all come at once (the kernel may cap it lower).
BACKLOG: Final = 4096

#: How aiohttp's server is run.
SERVER_OPTIONS: Final[dict[str, Any]] = {
    "access_log": None,
    "keepalive_timeout": KEEP_ALIVE_SECONDS,
    "lingering_time": LINGER_SECONDS,
    "shutdown_timeout": SHUTDOWN_SECONDS,
    # A compressed body is refused; nothing may unpack it first.
    "auto_decompress": False,
}

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


def run(settings: ServeSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises
    ------
    ConfigurationError: it cannot start like this.
    """
    _set_up_logging()
    _allow_many_connections()
    uvloop.run(serve(settings))


def _allow_many_connections() -> None:
    """Use what the system allows: a connection is an open file, and the usual soft limit is 1,024 of them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(settings: ServeSettings) -> None:
    """Start, serve, and stop in order: no new requests, then the running ones, then the engine.

    Raises
    ------
    ConfigurationError: it cannot start like this; nothing is left running.
    """
    stop = stop_signal()
    engine = Engine.connect(
        settings.redis,
        store=settings.store,
        data_dir=settings.data_dir,
        secret=settings.secret,
        redis_server=settings.redis_server,
        snapshot_ms=settings.snapshot_ms,
        retention_ms=settings.retention_ms,
        recover=settings.recover,
    )
    # Checked with any token before anything is started, so that a slip costs nothing.
    _app_config(settings, "0" * 32)
    async with engine:
        kept = settings.operator_token is None
        operator_token = settings.operator_token or await engine.kept(OPERATOR_TOKEN, lambda: secrets.token_urlsafe(24))
        runner = web.AppRunner(create_app(engine, _app_config(settings, operator_token)), **SERVER_OPTIONS)
        await runner.setup()
        try:
            port = await _listen(runner, settings.host, settings.port)
            address = f"http://{_host_text(settings.host)}:{port}"
            print(f"Holdfast serves on {address}")
            print(f"operator token: {_token_text(operator_token if kept else None, settings)}")
            for line in await _first_lines(engine, settings, address):
                print(line)
            sys.stdout.flush()
            await stop.wait()
            print("Stopping: running requests are finished first.", flush=True)
        finally:
            await runner.cleanup()


def stop_signal() -> asyncio.Event:
    """An event that the first SIGINT or SIGTERM sets; one that comes later acts as it always does."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    first = math.inf

    def on_signal() -> None:
        nonlocal first
        first = min(first, loop.time())
        stop.set()
        # The same signal often comes more than once: to the group, and again from make. That is not impatience.
        if loop.time() - first > REPEATED_SECONDS:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return stop


def _app_config(settings: ServeSettings, operator_token: str) -> AppConfig:
    return AppConfig.checked(
        operator_token=settings.operator_token if settings.operator_token is not None else operator_token,
        buyer_token_key=settings.buyer_token_key,
        trusted_proxy=settings.trusted_proxy,
        allow_origin=settings.allow_origin,
    )


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    """Begin to accept connections; returns the real port."""
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OSError as error:
        # asyncio wraps the system's words in its own; an unknown host has a number below zero and words of its own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise ConfigurationError(f"Cannot listen on {host} port {port}: {reason.lower()}.") from None
    addresses = runner.addresses
    return int(addresses[0][1])


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


# The demo -------------------------------------------------------------------------------------------------------------


async def _first_lines(engine: Engine, settings: ServeSettings, address: str) -> list[str]:
    """What to try first; or, when nothing can be sold yet, why. `/readyz` goes on telling it."""
    readiness = await engine.readiness()
    if not readiness.ready:
        return [
            f"Not ready, for {len(readiness.reasons)} reasons; what is named here is not sold. Run `holdfast recover`,"
            " or start with --recover:",
            *(f"  {reason}" for reason in readiness.reasons[:REASONS_SHOWN]),
        ]
    try:
        if settings.demo and not (await engine.sales(limit=1)).items:
            await engine.create_sale(DEMO_SALE, name="Demo", capacity=DEMO_CAPACITY, max_per_buyer=DEMO_MAX_PER_BUYER)
        return await _try_it(engine, settings, address)
    except NotReady as error:
        return [str(error)]


async def _try_it(engine: Engine, settings: ServeSettings, address: str) -> list[str]:
    """Three lines to paste, one after the other: reserve, pay, look. Empty without a sale to show.

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
    return [
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


# Logs -----------------------------------------------------------------------------------------------------------------


class _NoGarbage(logging.Filter):
    """Drops aiohttp's tracebacks of requests that were not HTTP: anybody can send those, and there is nothing to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


def _set_up_logging() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiohttp.server").addFilter(_NoGarbage())
