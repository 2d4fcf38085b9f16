"""The engine of a command: on the Redis of a server that runs on the same data directory, or on one of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from holdfast.engine import ConfigurationError, Engine
from holdfast.engine.embedded import running_url

from ..settings import Settings

#: Seconds between two looks for a server to listen to.
WAIT_SECONDS: Final = 0.5

#: Seconds until work that goes on after its cancellation is cancelled once more.
CANCEL_AGAIN_SECONDS: Final = 0.05

T = TypeVar("T")


def beside_server(settings: Settings, *, only_reads: bool = False, begins: bool = False) -> Engine:
    """An engine on the Redis of a server that runs on this data directory, or on one of its own when none runs.

    Beside a server it leaves sweeping and snapshots to it.

    Parameters
    ----------
    only_reads: it does neither, wherever it is, and asks Redis for no announcements.
    begins: its command may be the first that is called for a deployment.
    """
    url = settings.redis or running_url(existing(settings.data_dir, begins=begins))
    alone = url is None
    works = alone and not only_reads
    # On the private Redis of a running server, the secret that this server made; elsewhere the engine knows.
    secret = settings.secret or (kept_secret(settings.data_dir) if settings.redis is None and not alone else None)
    if secret is None and settings.redis is None and not alone:
        raise ConfigurationError(f"The server on {settings.data_dir} has a secret of its own: give the same --secret.")
    return Engine.connect(
        url,
        store=settings.store,
        data_dir=settings.data_dir,
        secret=secret,
        redis_server=settings.redis_server,
        sweep=works,
        listen=not only_reads,
        snapshot_ms=1000 if works else None,
    )


def on_engine(
    settings: Settings | None, work: Callable[[Engine], Awaitable[T]], *, only_reads: bool = False, begins: bool = False
) -> T:
    """What the work of a command results in, on the engine of `beside_server`."""

    async def run() -> T:
        async with beside_server(settings or Settings(), only_reads=only_reads, begins=begins) as engine:
            return await work(engine)

    return asyncio.run(run())


async def server_on(settings: Settings) -> bool:
    """Waits until a server runs on the data directory. A listener does not become one: it would lock the server out."""
    data_dir, said = settings.data_dir, False
    while running_url(existing(data_dir)) is None or (settings.secret is None and kept_secret(data_dir) is None):
        if not said:
            print(f"holdfast: waiting for a server on {data_dir}", file=sys.stderr, flush=True)
            said = True
        await asyncio.sleep(WAIT_SECONDS)
    return True


def existing(data_dir: Path, *, begins: bool = False) -> Path:
    """The data directory, which a command beside a server must not make: a slip would look like an empty shop.

    Raises
    ------
    ConfigurationError: there is none.
    """
    if not data_dir.is_dir():
        new = f", or make a new one (mkdir {data_dir})" if begins else ""
        raise ConfigurationError(f"There is no data directory {data_dir}; name the server's with --data-dir{new}.")
    return data_dir


def place(settings: Settings) -> str:
    return "the Redis that was given" if settings.redis else str(settings.data_dir)


def kept_secret(data_dir: Path) -> str | None:
    """The secret that a server made for this data directory: on its Redis, nobody may use another."""
    try:
        return (data_dir / "secret").read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{data_dir / 'secret'} cannot be read: {error.strerror}.") from None


async def until(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work results in, or None when it was stopped before: the engine then still closes in order."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    while not task.done():
        task.cancel()
        # Asked again: redis-py waits through wait_for, which before Python 3.12 may swallow a cancellation.
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_SECONDS)
    return None if task.cancelled() else task.result()
