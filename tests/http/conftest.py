"""The application on a real server, and what every refusal has in common."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from holdfast.engine import Engine, ItemSpec
from holdfast.http.app import create_app
from holdfast.http.context import AppConfig
from holdfast.http.direct import Runner
from holdfast.http.server import SERVER_OPTIONS

OPERATOR_TOKEN = "operator-token-for-tests"


class Clients(Protocol):
    """Makes a client of a server with settings of its own."""

    def __call__(self, **settings: Any) -> Awaitable[TestClient[Any, Any]]: ...


class DirectTestServer(TestServer):
    """aiohttp's test server on the connections that serve in earnest, short way and all."""

    async def _make_runner(self, **options: Any) -> Runner:
        # aiohttp's would cancel every handler whose client is gone; ours does not.
        return Runner(self.app, **options | {"handler_cancellation": False})


@pytest.fixture
def operator() -> dict[str, str]:
    """The headers of the operator."""
    return {"Authorization": f"Bearer {OPERATOR_TOKEN}"}


@pytest.fixture
def clients(engine: Engine, aiohttp_client: Any) -> Clients:
    async def make(**settings: Any) -> TestClient[Any, Any]:
        server = DirectTestServer(create_app(engine, AppConfig.checked(operator_token=OPERATOR_TOKEN, **settings)))
        await server.start_server(**SERVER_OPTIONS)
        client: TestClient[Any, Any] = await aiohttp_client(server)
        return client

    return make


@pytest.fixture
async def client(clients: Clients) -> TestClient[Any, Any]:
    return await clients()


@pytest.fixture
def send(client: TestClient[Any, Any]) -> Callable[..., Any]:
    """Sends a path exactly as it is written, percent signs and all."""

    def request(method: str, path: str, **options: Any) -> Any:
        url = URL(f"{client.make_url('/')}".rstrip("/") + path, encoded=True)
        return client.session.request(method, url, **options)

    return request


@pytest.fixture
async def gig(engine: Engine) -> str:
    """A sale of ten units, four to a buyer."""
    return (await engine.create_sale("gig", name="The Gig", capacity=10, max_per_buyer=4)).id


@pytest.fixture
async def duo(engine: Engine) -> str:
    """A sale with two items."""
    items = [ItemSpec("seat", 5, max_per_buyer=3), ItemSpec("box", 2)]
    return (await engine.create_sale("duo", name="Two kinds", items=items)).id


@pytest.fixture
def refused() -> Callable[..., Awaitable[dict[str, Any]]]:
    """Checks that an answer is a well-formed problem with this status and code, and gives its body."""

    async def check(response: ClientResponse, status: int, code: str) -> dict[str, Any]:
        raw = await response.read()
        assert response.status == status, raw
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["Cache-Control"] == "no-store"
        problem: dict[str, Any] = json.loads(raw)
        assert problem["code"] == code
        assert problem["status"] == status
        assert problem["type"] == f"/docs/errors#{code}"
        assert problem["title"]
        assert problem["detail"]
        assert problem["request_id"] == response.headers["X-Request-Id"]
        assert b"Traceback" not in raw
        if code == "invalid_request":
            assert problem["errors"]
            for error in problem["errors"]:
                assert error["pointer"] == "" or error["pointer"].startswith("/")
                assert error["detail"]
                assert "Input should" not in error["detail"]
        if "retry_after_ms" in problem:
            assert int(response.headers["Retry-After"]) == max(1, -(-problem["retry_after_ms"] // 1000))
        return problem

    return check
