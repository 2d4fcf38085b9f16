"""The sockets on which a server listens: made, shared out, and shut for newcomers at the end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

from holdfast.engine import ConfigurationError, Engine

from .server import BACKLOG

#: Seconds between two attempts to get a port.
RETRY_SECONDS: Final = 0.05

#: Seconds in which a handshake that has begun is over: a round trip to the client, and many times that nearby.
HANDSHAKE_SECONDS: Final = 0.2

#: Of Linux: a filter for what arrives at a socket. Python does not name it.
_SO_ATTACH_FILTER: Final = 26

#: Seconds for which a start waits for a port that is taken, where workers of a server that was killed may still be
#: about to leave it: they shut their sockets as soon as they notice.
PORT_SECONDS: Final = 5.0

#: In the language of that filter (code, jump if true, jump if false, operand): take the flags out of the TCP header;
#: if SYN stands alone of SYN and ACK, as in the first packet of a connection, drop it; else take it whole.
_DROP_SYN: Final = (
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)


def patience(engine: Engine) -> float:
    """Seconds for which to wait for a port: none when no server can have been killed on this data directory."""
    return 0.0 if engine.embedded is not None and not engine.embedded.taken_over else PORT_SECONDS


async def listening(host: str, port: int, processes: int, patience: float) -> list[list[socket.socket]]:
    """Listens once for each process, on every address of a host.

    The sockets of several processes share the port, and the kernel shares out the connections among them. A single
    process has the port for itself.

    Parameters
    ----------
    port: 0 takes a free one, the same for all. patience: seconds for which to wait while somebody else has the port.

    Raises
    ------
    ConfigurationError: it cannot be had; nothing stays open.
    """
    give_up = asyncio.get_running_loop().time() + patience
    while True:
        try:
            return _listening(host, port, processes)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and asyncio.get_running_loop().time() < give_up:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            # An unknown host has a number below zero and words of its own.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise ConfigurationError(f"Cannot listen on {host} port {port}: {reason.lower()}.") from None


def _listening(host: str, port: int, processes: int) -> list[list[socket.socket]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places = dict.fromkeys((family, address) for family, _, _, _, address in found if _is_here(family))
    with contextlib.ExitStack() as opened:
        if processes > 1 and port:
            for family, address in places:
                # Sharing asks nobody: without this look, a second server would quietly get half of our buyers.
                _bound(family, address, shared=False).close()
        made: list[list[socket.socket]] = []
        for _ in range(processes):
            of_process = []
            for family, address in places:
                sock = opened.enter_context(_bound(family, (address[0], port, *address[2:]), shared=processes > 1))
                sock.listen(BACKLOG)
                port = port or sock.getsockname()[1]
                of_process.append(sock)
            made.append(of_process)
        opened.pop_all()
    return made


def _is_here(family: int) -> bool:
    """Whether this machine can do IPv6 at all, which an address of its own does not tell."""
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Connections of a server that has ended may still be closing.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # The addresses of IPv4 have a socket of their own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


async def admit_no_more(sockets: Iterable[socket.socket]) -> None:
    """Lets nobody new into the queues of these sockets, and those who are at the door still in.

    A queue that is emptied and then closed would lose whoever came in between: their client believes itself connected.
    Kept out, it tries again, and is refused as soon as the socket is closed.
    """
    for sock in sockets:
        program = b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN)
        code = ctypes.create_string_buffer(program, len(program))
        # Elsewhere than on Linux, and where a sandbox forbids it, that moment remains.
        with contextlib.suppress(OSError):
            wanted = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(code))
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, wanted)
    await asyncio.sleep(HANDSHAKE_SECONDS)
