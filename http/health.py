"""Whether the process is up, and whether it can sell."""

from __future__ import annotations

import asyncio

from aiohttp import web

from holdfast.engine import NotReady

from .bodies import json_response
from .context import ENGINE, REQUEST_ID
from .problems import problem

#: Why a server takes no more buyers that answers still.
STOPPING = "draining: this server is stopping, and answers those who are connected already"

#: Set once the server begins to stop.
DRAINING: web.AppKey[asyncio.Event] = web.AppKey("draining", asyncio.Event)


async def healthz(request: web.Request) -> web.Response:
    """`GET /healthz`: whether the process answers.

    Restart it when it does not.
    """
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """`GET /readyz`: whether everything can be sold.

    With `alarms`, when something is wrong all the same; or 503 with the reasons. Send no buyers while it is not.
    """
    if request.app[DRAINING].is_set():
        return problem(NotReady(STOPPING), request[REQUEST_ID], reasons=[STOPPING])
    readiness = await request.app[ENGINE].readiness()
    if readiness.ready:
        alarms = {"alarms": list(readiness.alarms)} if readiness.alarms else {}
        return json_response({"status": "ready", **alarms})
    return problem(
        NotReady("; ".join(readiness.reasons)), request[REQUEST_ID], reasons=list(readiness.reasons + readiness.alarms)
    )
