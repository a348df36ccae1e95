"""File descriptors: some are kept for the disk and for what is connected already, so that newcomers never take the last."""

from __future__ import annotations

import resource
from collections.abc import Callable

import trio

WANTED = 65_536
"""More than all connections and files that the limits of a site allow together."""
RESERVED = 64
"""For segments and their readers, the store's, small files that are replaced, and dialling peers."""

IsScarce = Callable[[trio.SocketStream], bool]
"""Whether a connection that has just come is one too many."""


def raise_limit() -> None:
    """Take as many descriptors as this process may have, up to WANTED."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft not in (resource.RLIM_INFINITY, wanted) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def is_scarce(stream: trio.SocketStream) -> bool:
    """Whether a new connection has taken one of the last descriptors: they are given out from the lowest that is free.

    Of a small limit a third is kept. The limit is asked each time, because it can be changed from outside.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return False
    return stream.socket.fileno() >= limit - min(RESERVED, limit // 3)


def never_scarce(stream: trio.SocketStream) -> bool:
    """Where connections are no descriptors."""
    return False
