"""What a site is handed of the world: the machine's in its own process, a simulated one in tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio
from structlog.typing import FilteringBoundLogger

from nodes.descriptors import IsScarce, never_scarce
from nodes.runtime import ShiftedClock
from nodes.seams import Entropy, LimitedStorage, StoreRunner


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything that differs between the machine and a simulation; the network stands behind Trio's own hooks.

    Attributes:
        storage: the data directory, which is this site's alone as long as it runs.
        store_runner: of the view's SQLite.
        wall_clock: the time of day, which the administrator may shift.
        rng: for jitter, never for secrets.
        pid: of the process, for people.
        open_clients: makes the socket that clients of this machine connect to, and removes it at the end.
        make_logger: of the site's events. Called once the data directory is known to be the site's.
        is_scarce: whether a connection that has just come takes one of the last file descriptors.
    """

    storage: LimitedStorage
    store_runner: StoreRunner
    wall_clock: ShiftedClock
    entropy: Entropy
    rng: random.Random
    pid: int
    open_clients: Callable[[], AbstractAsyncContextManager[trio.SocketListener]]
    make_logger: Callable[[], FilteringBoundLogger]
    is_scarce: IsScarce = never_scarce
