"""The machine: its cores, what it is, and what has to be installed before something can be measured on it."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import postgresql

from holdfast.engine.embedded import candidates

#: The packages of Debian behind the commands that we use.
PACKAGES = {
    "wrk": "wrk",
    "redis-server": "redis-server",
    "redis-benchmark": "redis-tools",
    "postgres": "postgresql",
    "taskset": "util-linux",
}

#: The Python packages whose versions belong to the figures.
PYTHON_PACKAGES = ("holdfast", "aiohttp", "uvloop", "redis", "hiredis", "pydantic", "asyncpg")

#: What Fastify 5 needs. Debian 12 has 18, so that Node is used where it is and never installed.
NODE_MAJOR_MIN = 20

#: Where npm puts the Node peer's packages; ignored by git.
NODE_BUILD = Path(__file__).parent / "build" / "fastify"

#: Seconds that an installation may take.
INSTALL_SECONDS_MAX = 600


class Missing(Exception):
    """Something that is measured, or measured with, is not there; the sentence says what and why."""


class Cores:
    """Who runs where: servers on the first core, everything that they talk to and that talks to them on the second."""

    def __init__(self) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        self.server = allowed[0]
        self.other = allowed[1] if len(allowed) > 1 else allowed[0]
        self.all = allowed

    @staticmethod
    def pinned(core: int | Sequence[int], *command: str) -> list[str]:
        """A command that runs on one core, or on some, with everything that it starts."""
        allowed = [core] if isinstance(core, int) else core
        return ["taskset", "--cpu-list", ",".join(map(str, allowed)), *command]

    @staticmethod
    def move(pid: int, *cores: int) -> None:
        """Moves a running process with all its threads."""
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)


def find(command: str) -> str:
    """The path of a command, installed with apt-get when it is missing and we may.

    Raises
    ------
    Missing: with the reason.
    """
    path = _installed(command)
    if path is None:
        _install(PACKAGES[command])
        path = _installed(command)
    if path is None:
        raise Missing(f"no {command} on this machine; Debian's package {PACKAGES[command]} has it")
    return path


def redis_server() -> str:
    """The newest redis-server or valkey-server, as `holdfast serve` would choose it.

    Raises
    ------
    Missing: there is none, and none can be installed.
    """
    if _installed("redis-server") is None and _installed("valkey-server") is None:
        try:
            _install(PACKAGES["redis-server"])
        except Missing:
            if not candidates():
                raise
    return candidates()[0].path


def _installed(command: str) -> str | None:
    if command == "postgres":
        folder = postgresql.binaries()
        return str(folder / "postgres") if folder else None
    return shutil.which(command)


@functools.cache
def _install(package: str) -> None:
    """Tried once for each package: what failed fails again.

    Raises
    ------
    Missing: not root, no apt-get, or it failed.
    """
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Missing(f"Debian's package {package} is not installed, and only root with apt-get can do that here")
    print(f"installing {package} ...", flush=True)
    commands = (
        ["apt-get", "update"],
        ["apt-get", "install", "--yes", "--no-install-recommends", package],
    )
    with _no_services():
        for command in commands:
            done = subprocess.run(
                command,
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS_MAX,
            )
            if done.returncode != 0:
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise Missing(f"apt-get could not install {package}: {' '.join(last)}")


@contextmanager
def _no_services() -> Iterator[None]:
    """No package may start its service: the bench starts its own servers, and none may run beside them."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def node_packages() -> tuple[str, Path]:
    """Node, and the folder with the packages of the Fastify peer, installed by npm when they are not there yet.

    Raises
    ------
    Missing: no Node, one that is too old, or npm failed.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing(f"no Node.js with npm on this machine (Fastify needs {NODE_MAJOR_MIN} or newer)")
    version = _first_line(node, "--version")
    if int(re.findall(r"\d+", version)[0]) < NODE_MAJOR_MIN:
        raise Missing(f"Node.js {version} is too old: Fastify needs {NODE_MAJOR_MIN} or newer")
    wanted = (Path(__file__).parent / "peers" / "fastify" / "package.json").read_text()
    stamp = NODE_BUILD / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("installing the Node peer's packages ...", flush=True)
        NODE_BUILD.mkdir(parents=True, exist_ok=True)
        (NODE_BUILD / "package.json").write_text(wanted)
        command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev"]
        done = subprocess.run(command, cwd=NODE_BUILD, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
        if done.returncode != 0:
            raise Missing(f"npm could not install fastify and ioredis (exit status {done.returncode})")
        stamp.write_text(wanted)
    return node, NODE_BUILD / "node_modules"


def scratch() -> Path:
    """A directory for everything that this run writes; short, since sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="hf-bench-"))
    # PostgreSQL's user goes through it.
    path.chmod(0o711)
    return path


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError:
        return ""
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    release = Path("/etc/os-release")
    system = re.search(r'^PRETTY_NAME="(.*)"$', release.read_text(), re.MULTILINE) if release.exists() else None
    postgres, node = _installed("postgres"), shutil.which("node")
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": system[1] if system else platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: found for name in PYTHON_PACKAGES if (found := _version(name))},
        "redis": str(candidates()[0]) if candidates() else None,
        "postgresql": _first_line(postgres, "--version") if postgres else None,
        "node": _first_line(node, "--version") if node else None,
        "wrk": _first_line("wrk", "-v").split(" Copyright")[0] if shutil.which("wrk") else None,
    }
