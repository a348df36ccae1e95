"""One simulated world: virtual time, the seeded scheduler, the queue of what happens outside, and the trace of it all."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
import random
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any
from unittest import mock

import trio
import trio.testing
from trio._core import _run as trio_run

from tests.simulation.processes import RunQueue

EPOCH_US = 1_700_000_000_000_000
"""The observer's time of day when a run begins."""
TAIL_LINES = 4000
EVENTS_MAX = 3_000_000
"""Far more than a run has: one that passes it is in a loop in which no time goes by."""


class Stuck(Exception):
    """Nothing will ever happen again, or time stands still."""


class Trace:
    """Everything that happened, in order: a digest of all of it, and the last lines for people."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._hash = hashlib.sha256()
        self.count = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.sink: Callable[[str], None] | None = None

    def note(self, kind: str, *fields: object) -> None:
        """Something happened now."""
        line = f"{self._now_s():.9f} {kind} {' '.join(map(str, fields))}\n"
        self._hash.update(line.encode())
        self.tail.append(line)
        self.count += 1
        if self.sink is not None:
            self.sink(line)
        if self.count > EVENTS_MAX:
            raise Stuck(f"{self.count} events at {self._now_s()} s")

    def digest(self) -> str:
        """SHA-256 over every line so far."""
        return self._hash.hexdigest()


class World:
    """Owns time and chance. Each use of chance has a stream of its own, so that a draw more in one shifts no other."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.clock = trio.testing.MockClock(autojump_threshold=0)
        self.trace = Trace(self.now_s)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._error: Exception | None = None
        self._root: trio.CancelScope | None = None
        self.run_queue = RunQueue()

    def rng(self, name: str) -> random.Random:
        """A stream of chance of its own."""
        return random.Random(f"{self.seed}/{name}")

    def now_s(self) -> float:
        """Virtual seconds since the begin of the run."""
        return self.clock._virtual_base

    def now_us(self) -> int:
        """The observer's time of day."""
        return EPOCH_US + round(self.now_s() * 1e6)

    def at(self, when_s: float, function: Callable[..., None], *args: Any) -> None:
        """Something outside the tasks happens then, such as the arrival of bytes."""
        heapq.heappush(self._queue, (when_s, next(self._numbers), function, args))

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run to the end of `main`, with nothing real within reach.

        Raises:
            Stuck: no task can run and nothing is due, or no time goes by.
        """

        async def guarded() -> None:
            runner = trio_run.GLOBAL_RUN_CONTEXT.runner
            runner.runq = self.run_queue
            with trio.CancelScope() as self._root, _tripwires():
                await main()

        # The clock is asked to jump when no task can run: it is then that the outside world moves.
        self.clock._autojump = self._jump  # type: ignore[method-assign]
        # Time is asked for many times in each step, and stands still between two jumps.
        self.clock.current_time = self.now_s  # type: ignore[method-assign]
        with _seeded_scheduler(self.seed):
            try:
                trio.run(guarded, clock=self.clock)
            finally:
                del self.clock._autojump, self.clock.current_time
        if self._error is not None:
            raise self._error

    def _jump(self) -> None:
        deadline_s = trio_run.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        outside_s = self._queue[0][0] if self._queue else inf
        if deadline_s == outside_s == inf:
            self._error = Stuck("no task can run, no time is awaited, nothing is under way")
            assert self._root is not None
            self._root.cancel()
        elif deadline_s < outside_s:
            self.clock._virtual_base = max(self.clock._virtual_base, deadline_s)
        else:
            self.clock._virtual_base = max(self.clock._virtual_base, outside_s)
            while self._queue and self._queue[0][0] <= outside_s:
                _, _, function, args = heapq.heappop(self._queue)
                function(*args)


@contextmanager
def _seeded_scheduler(seed: int) -> Iterator[None]:
    """Trio runs what is runnable in an order that only the seed decides."""
    was, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(f"{seed}/scheduler")
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = was
        trio_run._r.setstate(state)


@contextmanager
def _tripwires() -> Iterator[None]:
    """Whoever reaches for the real world past the seams is told."""

    def trip(what: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"the simulated path has touched {what}")

        return refuse

    with ExitStack() as stack:
        for owner, name in (
            (threading.Thread, "start"),
            (socket.socket, "connect"),
            (socket.socket, "bind"),
            (socket, "socketpair"),
            (subprocess, "Popen"),
            (os, "urandom"),
            (time, "time"),
            (time, "time_ns"),
            (time, "sleep"),
            (trio.lowlevel, "start_thread_soon"),
            (trio.to_thread, "run_sync"),
        ):
            stack.enter_context(mock.patch.object(owner, name, trip(f"{owner.__name__}.{name}")))
        yield
