"""The log: lines for people, or lines of JSON for machines; and the log of requests."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, Final

from aiohttp.http_exceptions import HttpProcessingError

from .settings import LogFormat, LogLevel

#: What the request is called that is being answered, where it has a task of its own.
REQUEST: ContextVar[str | None] = ContextVar("request", default=None)

#: Every request, one line each; written only when it was switched on, whatever the level of the rest.
access_log: Final = logging.getLogger("holdfast.access")

#: The attribute of a record that holds more fields for a line of JSON, and the one with a request's id.
FIELDS: Final = "holdfast_fields"
REQUEST_ID: Final = "holdfast_request_id"


class _NoGarbage(logging.Filter):
    """Drops aiohttp's tracebacks of requests that were not HTTP: anybody can send those, and there is nothing to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


def _request_of(record: logging.LogRecord) -> str | None:
    known: str | None = getattr(record, REQUEST_ID, None)
    return known or REQUEST.get()


class TextFormatter(logging.Formatter):
    """Lines for people; with the request's id at the end where it is not in the message.

    Parameters
    ----------
    worker: what this process is called, when there are several.
    """

    def __init__(self, worker: str = "") -> None:
        super().__init__(f"%(asctime)s %(levelname)s {worker and worker + ' '}%(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without what follows it."""
        line, request = super().formatMessage(record), _request_of(record)
        return line if request is None or request in record.message else f"{line} [request {request}]"


class JsonFormatter(logging.Formatter):
    """One object of JSON per line, of these fields alone: whatever else is put on a record, secrets perhaps, is not.

    Parameters
    ----------
    worker: as of `TextFormatter`.
    """

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        instant = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{instant}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker:
            line["worker"] = self._worker
        if (request := _request_of(record)) is not None:
            line["request_id"] = request
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(worker: str = "", log_format: LogFormat = "text", log_level: LogLevel = "info") -> None:
    """Logs to standard error, from now on like this; not where somebody else has set the log up.

    Parameters
    ----------
    worker: what this process is called, when there are several.
    """
    root = logging.getLogger()
    ours = [each for each in root.handlers if isinstance(each.formatter, (TextFormatter, JsonFormatter))]
    if root.handlers and not ours:
        return
    for each in ours:
        root.removeHandler(each)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if log_format == "json" else TextFormatter(worker))
    root.addHandler(handler)
    root.setLevel(log_level.upper())
    access_log.setLevel(logging.INFO)
    server_log = logging.getLogger("aiohttp.server")
    if not any(isinstance(known, _NoGarbage) for known in server_log.filters):
        server_log.addFilter(_NoGarbage())


def log_access(method: str, route: str, status: int, outcome: str, seconds: float, request_id: str) -> None:
    """Logs a request: nothing that a client made up but its id, and no path with a ticket in it.

    Parameters
    ----------
    route: the path with placeholders; empty where there is none. outcome: `ok`, or the code of the refusal.
    """
    fields = {
        "method": method,
        "route": route,
        "status": status,
        "outcome": outcome,
        "duration_ms": round(seconds * 1000, 3),
    }
    access_log.info(
        "%s %s %d %s %.3f ms",
        method,
        route or "-",
        status,
        outcome,
        seconds * 1000,
        extra={FIELDS: fields, REQUEST_ID: request_id},
    )
