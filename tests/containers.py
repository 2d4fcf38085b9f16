"""Containers without their images: the commands of docker-compose.yml and deploy/kubernetes, carried out as they stand.

Each has a network of its own with a name, an address and all ports, a root of its own in which the volumes lie where
they are mounted, and the user that it runs as. What is in it is this machine's /usr. So nothing in a command, a
configuration or a health check has to be changed for a test, and only the images themselves are not tried. It takes
root, on Linux.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: The user `redis` of its image, by number.
USER = 999

#: Seconds in which what is awaited must have come.
PATIENCE = 60

#: What can be had without an image.
NEEDED = ("ip", "unshare", "nsenter", "redis-server")

possible = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, NEEDED)), reason=f"takes root, and {', '.join(NEEDED)}"
)

_BRIDGE = """
set -e
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
mount --bind "$HOSTS" /etc/hosts
ip link set lo up
ip link add net type bridge
ip address add 10.77.0.254/24 dev net
ip link set net up
echo ready
exec sleep infinity
"""

_CABLE = """
set -e
ip netns add "$NAME"
ip link add "c$NUMBER" type veth peer name eth0 netns "$NAME"
ip link set "c$NUMBER" master net up
ip -n "$NAME" link set lo up
ip -n "$NAME" link set eth0 up
"""

_ADDRESS = 'ip -n "$NAME" address add "$ADDRESS/24" dev eth0'

_NO_ADDRESS = 'ip -n "$NAME" address flush dev eth0'

_BOX = """
set -e
hostname "$BOX_NAME"
mount -t tmpfs -o mode=755 box "$BOX_ROOT"
cd "$BOX_ROOT"
mkdir usr proc dev tmp etc
chmod 1777 tmp
for each in usr proc dev; do mount --rbind "/$each" "$each"; done
for each in bin sbin lib lib64; do
    if [ -L "/$each" ]; then
        cp -P "/$each" .
    elif [ -d "/$each" ]; then
        mkdir "$each"
        mount --rbind "/$each" "$each"
    fi
done
cp -a /etc/passwd /etc/group /etc/alternatives etc/
echo 'hosts: files' >etc/nsswitch.conf
touch etc/hosts
mount --bind "$BOX_HOSTS" etc/hosts
echo "$BOX_VOLUMES" | while IFS='|' read -r from to mode; do
    [ -n "$from" ] || continue
    if [ -d "$from" ]; then mkdir -p "./$to"; else mkdir -p "./$(dirname "$to")"; touch "./$to"; fi
    mount --bind "$from" "./$to"
    [ "$mode" != ro ] || mount -o remount,bind,ro "./$to"
done
unset BOX_NAME BOX_HOSTS BOX_VOLUMES
mount -o remount,ro .
exec chroot --userspec="$BOX_USER" . /usr/bin/env -u BOX_ROOT -u BOX_USER "$@"
"""


def until(condition: Callable[[], Any], log: Path) -> Any:
    """What the condition finds, once it does; with the end of a log when it does not in time."""
    give_up = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < give_up, f"{log.name}:\n" + log.read_text(errors="replace")[-4000:]
        time.sleep(0.1)
    return found


class Box:
    """What a container would be.

    Parameters
    ----------
    name: the host name. command: what runs. environment: all of it but PATH.
    volumes: in turn where it lies here, where it is mounted, and `ro` or `rw`. user: as which it runs.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        volumes: Sequence[tuple[Path, str, str]],
        user: int = USER,
    ) -> None:
        self.name = name
        self._network = network
        self._command = list(command)
        self._environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", **environment}
        self._volumes = volumes
        self._user = user
        self._root = network.directory / f"{name}.root"
        self._root.mkdir(exist_ok=True)
        self.log = network.directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; it is in the network's list of names from now on."""
        self._network.plug(self.name)
        mine = {
            "BOX_NAME": self.name,
            "BOX_ROOT": str(self._root),
            "BOX_HOSTS": str(self._network.hosts),
            "BOX_VOLUMES": "\n".join("|".join(map(str, volume)) for volume in self._volumes),
            "BOX_USER": f"{self._user}:{self._user}",
        }
        command = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "sh", "-c", _BOX, "box"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._network.enter, *command, *self._command],
                env=self._environment | mine,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Carries out a command in it, as its user."""
        assert self.process is not None
        inside = ["nsenter", "--target", str(self.process.pid), "--net", "--uts", "--mount", "--root", "--wdns=/"]
        inside += ["--setuid", str(self._user), "--setgid", str(self._user)]
        return subprocess.run(
            [*inside, *command], env=self._environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def cli(self, *command: str) -> str:
        """What redis-cli answers, as the user admin, whose password is in its environment."""
        return self.run("redis-cli", "--user", "admin", "--no-auth-warning", *command).stdout.strip()

    def kill(self) -> None:
        """kill -9, and its name is gone, as with a container."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and its name is gone."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            # Whatever runs beside it in the background, too, as with a container.
            os.killpg(self.process.pid, how)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._network.unplug(self.name)

    def until(self, condition: Callable[[], Any]) -> Any:
        """What the condition finds, once it does; with the log of this box when it does not."""
        return until(condition, self.log)


class Network:
    """A network in which names lead to boxes; not reached from outside, and gone with its process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts = directory / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.hosts.chmod(0o644)
        self._numbers: dict[str, int] = {}
        self._up: set[str] = set()
        self._process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", _BRIDGE],
            env=os.environ | {"HOSTS": str(self.hosts)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        #: What a command begins with that is to run inside, on this machine's own files.
        self.enter = ["nsenter", "--target", str(self._process.pid), "--net", "--mount"]

    def plug(self, name: str) -> None:
        """Gives a box its cable, its address and its name."""
        if name not in self._numbers:
            self._numbers[name] = max(self._numbers.values(), default=0) + 1
            self._sh(_CABLE, NAME=name, NUMBER=str(self._numbers[name]))
        if name not in self._up:
            self._up.add(name)
            self._sh(_ADDRESS, NAME=name, ADDRESS=self._address(name))
            self._write()

    def unplug(self, name: str) -> None:
        """Takes name and address from a box."""
        if name in self._up:
            self._up.remove(name)
            self._sh(_NO_ADDRESS, NAME=name)
            self._write()

    def curl(self, *arguments: str) -> str:
        """What curl prints, asked from inside; nothing when nobody answers."""
        command = [*self.enter, "curl", "-sS", "--max-time", "20", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def renumber(self) -> None:
        """Gives each an address that nobody has had, from its next start on."""
        highest = max(self._numbers.values())
        self._numbers = {name: highest + number for name, number in self._numbers.items()}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _address(self, name: str) -> str:
        return f"10.77.0.{self._numbers[name]}"

    def _write(self) -> None:
        lines = ["127.0.0.1 localhost", *(f"{self._address(name)} {name}" for name in sorted(self._up))]
        # In place: what is mounted elsewhere is this very file.
        self.hosts.write_text("\n".join(lines) + "\n")

    def _sh(self, script: str, **names: str) -> None:
        subprocess.run([*self.enter, "sh", "-c", script], env=os.environ | names, check=True)


class Holdfast:
    """A server in the network, as the image starts it, on this machine's Python and with a store in SQLite.

    Parameters
    ----------
    settings: what its container has in its environment; of the settings of Holdfast all but the store.
    """

    def __init__(self, network: Network, settings: Mapping[str, str]) -> None:
        self._network = network
        directory = network.directory / "holdfast"
        directory.mkdir(exist_ok=True)
        self.log = network.directory / "holdfast.log"
        self.environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            **settings,
            "HOLDFAST_STORE": f"sqlite:///{directory / 'store.db'}",
            "HOLDFAST_DATA_DIR": str(directory),
            "HOLDFAST_HOST": "0.0.0.0",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*network.enter, "holdfast", "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command beside it, with its environment."""
        inside = [*self._network.enter, *command]
        return subprocess.run(inside, env=self.environment, capture_output=True, text=True, check=False)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and answer of a call; 0 and None when nobody answers. `_` in the names of headers is `-`."""
        arguments = ["-X", method, "-w", "\n%{http_code}", "-H", "Content-Type: application/json"]
        for name, value in headers.items():
            arguments += ["-H", f"{name.replace('_', '-')}: {value}"]
        if body is not None:
            arguments += ["-d", json.dumps(body)]
        answer, _, status = self._network.curl(*arguments, f"http://127.0.0.1:8080{path}").rpartition("\n")
        return int(status or 0), json.loads(answer) if answer else None

    def sell(self, sale: str, buyer: str, seconds: float = PATIENCE) -> str:
        """Sells a unit, however often one has to ask with the same key; the ticket."""
        who = {"X_Buyer_Fingerprint": f"buyer-{buyer}", "Idempotency_Key": buyer}
        give_up = time.monotonic() + seconds
        while True:
            status, ticket = self.call("POST", f"/sales/{sale}/tickets", {"quantity": 1}, **who)
            if status == 201:
                status, paid = self.call("POST", f"/tickets/{ticket['id']}/payment", {"reference": buyer}, **who)
                if status == 200:
                    return str(paid["id"])
            assert status in (0, 503), self.log.read_text()[-4000:]
            assert time.monotonic() < give_up, self.log.read_text()[-4000:]
            time.sleep(0.2)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def network(directory: Path) -> Iterator[Network]:
    directory.mkdir(parents=True, exist_ok=True)
    made = Network(directory)
    try:
        yield made
    finally:
        made.close()
