"""Dialling an instance on its own loopback, whichever family it listens on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable

LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


async def dial(
    make: Callable[[socket.AddressFamily], socket.socket], port: int
) -> socket.socket | None:
    """A connected, non-blocking socket from those that `make` makes; None if nobody listens.

    Small writes are sent at once (TCP_NODELAY): the gateway flushes per event.
    """
    loop = asyncio.get_running_loop()
    for family, address in LOOPBACK:
        try:
            made = make(family)
        except OSError:  # a host without IPv6, or a network that has just been closed
            continue
        try:
            await loop.sock_connect(made, (address, port))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError:
            made.close()
        except BaseException:
            made.close()
            raise
    return None


def here(family: socket.AddressFamily) -> socket.socket:
    """A non-blocking TCP socket in this process's own network."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    return made


def only_other(ports: Iterable[int], told: int) -> int | None:
    """The port that is meant where a program ignores the one it was told: the only other one.

    Looks no further than the second; a port may come twice, once for each family.
    """
    meant: int | None = None
    for port in ports:
        if port not in (told, meant):
            if meant is not None:
                return None
            meant = port
    return meant
