"""Whether the process is up, and whether it can sell."""

from __future__ import annotations

from aiohttp import web

from holdfast.engine import NotReady

from .bodies import json_response
from .context import ENGINE, REQUEST_ID
from .problems import problem


async def healthz(request: web.Request) -> web.Response:
    """`GET /healthz`: whether the process answers.

    Restart it when it does not.
    """
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """`GET /readyz`: whether everything can be sold.

    With `alarms`, when something is wrong all the same; or 503 with the reasons. Send no buyers while it is not.
    """
    readiness = await request.app[ENGINE].readiness()
    if readiness.ready:
        alarms = {"alarms": list(readiness.alarms)} if readiness.alarms else {}
        return json_response({"status": "ready", **alarms})
    return problem(
        NotReady("; ".join(readiness.reasons)), request[REQUEST_ID], reasons=list(readiness.reasons + readiness.alarms)
    )
