"""Whether the process is up, and whether it can sell."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from holdfast.engine import Engine, Readiness
from holdfast.http.app import create_app
from holdfast.http.context import AppConfig
from holdfast.http.health import STOPPING
from holdfast.http.server import HttpServer
from holdfast.http.sockets import listening


async def test_healthy_and_ready(client: Any, gig: str) -> None:
    health, ready = await client.get("/healthz"), await client.get("/readyz")
    assert (health.status, await health.json()) == (200, {"status": "ok"})
    assert (ready.status, await ready.json()) == (200, {"status": "ready"})


async def test_health_asks_for_no_token(client: Any) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    assert (await client.get("/healthz", headers=wrong)).status == 200
    assert (await client.get("/readyz", headers=wrong)).status == 200


async def test_not_ready_says_why(client: Any, engine: Engine, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def behind() -> Readiness:
        return Readiness(False, ("'gig' is behind the store", "'duo' is being rebuilt"))

    monkeypatch.setattr(engine, "readiness", behind)
    problem = await refused(await client.get("/readyz"), 503, "not_ready")
    assert problem["reasons"] == ["'gig' is behind the store", "'duo' is being rebuilt"]
    assert problem["retry_after_ms"] > 0
    assert (await client.get("/healthz")).status == 200


async def test_what_is_wrong_without_stopping_sales_is_an_alarm(
    client: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def alarmed() -> Readiness:
        return Readiness(True, (), ("the store does not answer",))

    monkeypatch.setattr(engine, "readiness", alarmed)
    ready = await client.get("/readyz")
    assert (ready.status, await ready.json()) == (200, {"status": "ready", "alarms": ["the store does not answer"]})


async def test_a_server_that_drains_takes_no_more_buyers(engine: Engine, gig: str) -> None:
    server = HttpServer(create_app(engine, AppConfig.checked(operator_token="a-token-of-the-operator")))
    ((sock,),) = await listening("127.0.0.1", 0, 1, 0.0)
    port = sock.getsockname()[1]
    await server.start(sock)
    # Connected beforehand, as a load balancer is, and not yet looked at.
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as answer:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: here\r\n\r\n")
        await server.drain()
        head, _, body = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["reasons"] == [STOPPING]
