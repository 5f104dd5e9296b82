"""The listening socket, and what its address says of who may be calling."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import resource
import socket

from cove.errors import CoveError
from cove.gateway.holder import holder

BACKLOG = 2048
_MOST, _LEAST = 10_000, 64
_OWN = 512


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 asks for a free one. `conflict` where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets whose protocol says TCP.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "choose another address with --listen HOST:PORT"
        if error.errno == errno.EADDRINUSE and (who := holder(port)):
            hint = f"{who} has it: stop that, or {hint}"
        raise CoveError(
            "conflict",
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint=hint,
        ) from error
    sock.setblocking(False)
    return sock


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def most_connections() -> int:
    """How many callers' connections this process has descriptors for, which it may raise first.

    Each may need another to an instance; the rest is for what else Cove opens.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(_LEAST, min(_MOST, (soft - _OWN) // 2))
