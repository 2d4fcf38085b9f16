"""Peer `bare`: what an HTTP request costs in aiohttp when nothing is done for it.

Reads the body and answers with constant bytes: those that a running Holdfast gave for the same request, recorded
before. Nothing is validated, no buyer is looked at, there is no database. The event loop is uvloop, and the parser
aiohttp's in C, and the garbage collector looks as rarely, as in `holdfast serve`.

Three kinds of server:

- `fast path`: the server class under Holdfast's own fast path, with a desk that knows nothing but its answers. This is
  what the figures are compared with.
- `web.Server`: aiohttp's low-level server with a handler; for reference.
- `web.Application`: routes and handlers, as most people would write it; for reference.

Usage: python -P -m bench.peers.bare KIND ANSWERS

ANSWERS is a JSON file: for each path, or `*/payment`, an answer {"status", "headers": [[name, value]], "body"}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import uvloop
from aiohttp import web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict

from holdfast.http.desk import Desk
from holdfast.http.direct import Connection, DirectServer, Turn
from holdfast.http.process import collect_rarely
from holdfast.http.server import BACKLOG, SERVER_OPTIONS
from holdfast.http.tally import Tally

#: Headers that aiohttp writes by itself.
OWN_HEADERS = frozenset({"date", "content-length", "connection", "server"})

#: Where the answer to every payment stands among the answers.
PAYMENT = "*/payment"

Protocols = Callable[[], asyncio.Protocol]


class Answer:
    """One recorded answer, ready to be given again.

    Attributes
    ----------
    raw: all of its bytes.
    """

    def __init__(self, recorded: Mapping[str, Any]) -> None:
        self._status = int(recorded["status"])
        self._body = str(recorded["body"]).encode()
        headers: list[tuple[str, str]] = recorded["headers"]
        self._headers = CIMultiDict((name, value) for name, value in headers if name.lower() not in OWN_HEADERS)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        phrase = HTTPStatus(self._status).phrase
        self.raw = f"HTTP/1.1 {self._status} {phrase}\r\n{lines}\r\n".encode() + self._body

    def response(self) -> web.Response:
        """For aiohttp's own servers: a response of theirs can be sent only once."""
        return web.Response(status=self._status, body=self._body, headers=self._headers)


def load_answers(path: Path) -> dict[str, Answer]:
    return {where: Answer(recorded) for where, recorded in json.loads(path.read_text()).items()}


class ConstantDesk:
    """In the place of Holdfast's desk: takes every request, and answers at once."""

    draining = False

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = {path: answer.raw for path, answer in answers.items()}
        self._payment = answers[PAYMENT].raw

    def take(self, connection: Connection, message: RawRequestMessage, body: bytes) -> bool:
        connection.answer(self._answers.get(message.path, self._payment))
        return True


class BareServer(DirectServer):
    """THE ONE PLACE that has to follow when the class under Holdfast's fast path changes."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        web.Server.__init__(self, _handler(answers), **_options())
        self.desk = cast(Desk, ConstantDesk(answers))
        self.turn = Turn(self._loop, Tally())


def _options() -> dict[str, Any]:
    return {name: value for name, value in SERVER_OPTIONS.items() if name != "shutdown_timeout"}


def _handler(answers: Mapping[str, Answer]) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    payment = answers[PAYMENT]

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        return answers.get(request.raw_path, payment).response()

    return handle


def make_application(answers: Mapping[str, Answer]) -> web.Application:
    def handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            await request.read()
            return answer.response()

        return handle

    app = web.Application()
    for path, answer in answers.items():
        app.router.add_post("/tickets/{ticket}/payment" if path == PAYMENT else path, handler(answer))
    return app


async def make_protocols(kind: str, answers: Mapping[str, Answer]) -> Protocols:
    """What makes a connection of this kind of server."""
    if kind == "fast path":
        return BareServer(answers)
    if kind == "web.Server":
        return web.Server(_handler(answers), **_options())
    runner = web.AppRunner(make_application(answers), **SERVER_OPTIONS)
    await runner.setup()
    assert runner.server is not None
    return runner.server


async def serve(kind: str, answers: Mapping[str, Answer]) -> None:
    protocols = await make_protocols(kind, answers)
    server = await asyncio.get_running_loop().create_server(protocols, "127.0.0.1", 0, backlog=BACKLOG)
    print(f"serves on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    collect_rarely()
    uvloop.run(serve(sys.argv[1], load_answers(Path(sys.argv[2]))))
