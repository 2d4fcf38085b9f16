"""A network of its own for one server, on the other end of a wire that can be cut."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from .servers import Skipped

#: Addresses of both ends, from a block that nothing on a test machine should use (RFC 2544).
HERE, THERE = "198.18.231.1", "198.18.231.2"

#: Another address on this end, for servers that shall be cut off from the one over there while clients are not.
PEERS = "198.18.231.5"


class Wire:
    """A network namespace and a pair of virtual interfaces, while it lasts. One at a time on a machine.

    Attributes
    ----------
    prefix: a command that runs others in the namespace. host: the address there.

    Raises
    ------
    Skipped: only root may make it, with `ip` (Debian's package iproute2).
    """

    def __init__(self) -> None:
        self._name, self._end = f"hf-chaos-{os.getpid()}", f"hfc{os.getpid() % 100_000}"
        self.prefix = ["ip", "netns", "exec", self._name]
        self.host = THERE

    def __enter__(self) -> Wire:
        try:
            self._ip("netns", "add", self._name)
            self._ip("link", "add", self._end, "type", "veth", "peer", "name", "far", "netns", self._name)
            self._ip("addr", "add", f"{HERE}/30", "dev", self._end)
            # On an interface that stays up: those who are here go on to see each other.
            self._ip("addr", "add", f"{PEERS}/32", "dev", "lo")
            self._ip("-n", self._name, "addr", "add", f"{THERE}/30", "dev", "far")
            for where, interface in ((("-n", self._name), "lo"), (("-n", self._name), "far"), ((), self._end)):
                self._ip(*where, "link", "set", interface, "up")
            self._to_peers("via", HERE)
        except Skipped:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        subprocess.run(["ip", "addr", "del", f"{PEERS}/32", "dev", "lo"], capture_output=True, check=False)
        # The pair goes with its end in there.
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._end], capture_output=True, check=False)

    def cut(self) -> None:
        """Nothing passes any more."""
        # The far end: the route to it stays here, and nothing is sent another way.
        self._ip("-n", self._name, "link", "set", "far", "down")

    def mend(self) -> None:
        self._ip("-n", self._name, "link", "set", "far", "up")
        # The route went with the link.
        self._to_peers("via", HERE)

    def part(self) -> None:
        """Nothing passes between there and `PEERS` any more; clients, who come from `HERE`, notice nothing."""
        self._ip("-n", self._name, "route", "replace", "blackhole", f"{PEERS}/32")

    def join(self) -> None:
        self._to_peers("via", HERE)

    def _to_peers(self, *way: str) -> None:
        self._ip("-n", self._name, "route", "replace", f"{PEERS}/32", *way)

    @staticmethod
    def _ip(*words: str) -> None:
        command: Sequence[str] = ("ip", *words)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise Skipped("no network namespace: apt-get install iproute2") from None
        if done.returncode:
            raise Skipped(f"no network namespace: {done.stderr.strip()}")
