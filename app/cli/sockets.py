"""The sockets that the service listens by: at a free port, and of several workers each by its own."""

import os
import socket
import sys
from typing import Any

from app.cli.failing import Failed

#: Connections that may wait to be accepted: a burst of clients must not be refused while the workers are busy.
BACKLOG = 4096


def listen(host: str, port: int, *, next_free: bool = False) -> socket.socket:
    """Listen, at the next free port if allowed.

    Raises:
        Failed: the port is taken, or the host is not ours.
    """
    for candidate in range(port, min(port + 100, 65_536)) if next_free else [port]:
        try:
            found = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return socket.create_server(found[0][4][:2], family=found[0][0], backlog=BACKLOG)
        except OSError as error:
            # strerror of create_server repeats the address; errno's own text is enough.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    raise Failed(f"Cannot listen on {host}:{port}: {reason}")


def url_of(listener: socket.socket) -> str:
    """Name the service for people on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{host}:{port}"


def for_workers(listener: socket.socket, count: int) -> socket.socket:
    """Make of a listening socket what so many workers are given: for a single one itself, for several one that only
    keeps the address for their own (`one_more`).
    """
    if count == 1 or sys.platform != "linux":  # elsewhere one of several sockets would get all connections
        return listener
    address = listener.getsockname()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # so that the address is never free in between
        kept = _bound(listener, address)
    except OSError as error:
        raise Failed(f"Cannot listen on {address[0]}:{address[1]}: {os.strerror(error.errno or 0)}") from error
    listener.close()
    # Before any worker listens, somebody else who asks for the address must be refused as well.
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return kept


def one_more(kept: socket.socket) -> socket.socket:
    """Make a worker's own socket at an address that is kept for it, to listen by when it is ready.

    The kernel gives each such socket its share of all connections. Of one that all workers share, whoever is awake
    takes what comes: of a hundred at once, one of two had up to 84. A worker that dies takes its socket with it, and
    what waited there; the others get whatever comes from then on.
    """
    return _bound(kept, kept.getsockname())


def _bound(like: socket.socket, address: Any) -> socket.socket:
    one = socket.socket(like.family, like.type)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the kernel lets only the same user do that
    if like.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as `create_server` does
    one.bind(address)
    return one
