"""What the script tests run on: a fake, and every real server that this machine has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest
import redis

from holdfast import lua
from holdfast.engine.keys import SlotKeys, slot_keys

#: What the slot of each test is called: unlike the others, so that one server serves them all.
_numbers = itertools.count(1)

#: The clock of these tests, in milliseconds, unless a test moves it.
NOW = 1_800_000_000_000


@pytest.fixture(params=["fake", "embedded", "installed"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client of the fake, and of each real server that this machine has."""
    if request.param == "fake":
        with fakeredis.FakeRedis() as fake:
            yield fake
    else:
        yield from _client(request.getfixturevalue("servers")(request.param))


@pytest.fixture(params=["embedded", "installed"])
def real(request: pytest.FixtureRequest, servers: Callable[[str], Any]) -> Iterator[redis.Redis]:
    """A client of each real server, for what the fake cannot do."""
    yield from _client(servers(request.param))


def _client(server: Any) -> Iterator[redis.Redis]:
    server.empty()
    with server.client() as client:
        yield client


class Slot:
    """One slot on one server: runs scripts on it at a clock of its own, and shows what lies in it."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self.client = client
        self.name = name
        self.keys: SlotKeys = slot_keys(name)
        self.now = NOW
        self.floor = "0-0"

    def run(self, script: str, keys: str, *args: object) -> Any:
        """The reply of a script; `keys` names them as its header does. Texts are decoded."""
        clock = f"local function clock()\n  return {self.now}\nend"
        names = [getattr(self.keys, name) for name in keys.split()]
        return _text(self.client.eval(lua.load(script, {"clock": clock}), len(names), *names, *map(str, args)))

    def on_all(self, script: str, *args: object) -> Any:
        """The reply of a script that takes all five keys, and the floor first."""
        return self.run(script, "sale tickets buyers deadlines ledger", self.floor, *args)

    def create(self, capacity: str = "10", rules: str = "1000 0 0 0 0") -> Any:
        counts = " ".join(f"{units} 0 0" for units in capacity.split())
        return self.run("create", "sale ledger", '{"version":1}', "origin", rules, counts)

    def answers(self, script: str, *entries: tuple[str, ...]) -> list[str]:
        """The answers of one call of reserve, confirm or cancel, whose entries go in column by column."""
        reply = self.on_all(script, *itertools.chain(*zip(*entries, strict=True)))
        assert reply[0] == "ok", reply
        return list(reply[5 if script == "reserve" else 4 :])

    def counts(self) -> str:
        return str(_text(self.client.hget(self.keys.sale, "counts")))

    def ledger(self) -> list[tuple[str, str]]:
        """The stream's entries: id and text."""
        return [(id, fields["d"]) for id, fields in _text(self.client.xrange(self.keys.ledger))]

    def everything(self) -> dict[str, object]:
        """All values of the slot, to compare before and after."""
        client, keys = self.client, self.keys
        return {
            "sale": client.hgetall(keys.sale),
            "tickets": client.hgetall(keys.tickets),
            "buyers": client.hgetall(keys.buyers),
            "deadlines": client.zrange(keys.deadlines, 0, -1, withscores=True),
            "ledger": client.xrange(keys.ledger),
            "names": sorted(client.scan_iter(match=f"hf:{{{self.name}}}:*")),
        }


@pytest.fixture
def slot(client: redis.Redis) -> Slot:
    """An empty slot on the fake, and on each real server."""
    return Slot(client, f"s{next(_numbers)}")


@pytest.fixture
def real_slot(real: redis.Redis) -> Slot:
    """An empty slot on each real server."""
    return Slot(real, f"s{next(_numbers)}")


def _text(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return reply.decode()
    if isinstance(reply, (list, tuple)):
        return type(reply)(_text(each) for each in reply)
    if isinstance(reply, dict):
        return {_text(key): _text(value) for key, value in reply.items()}
    return reply
