"""Whose tasks are whose: each simulated process can be paused, as SIGSTOP does, and is dead once it was killed."""

from __future__ import annotations

import contextvars
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("simulated_process")
"""The process that the running task belongs to; tasks inherit it from their makers."""


class ProcessDied(BaseException):
    """Raised where a dead process asks for anything: no clean-up of its may have an effect any more."""


@dataclass(eq=False, slots=True)
class Process:
    """A running program on a machine.

    Attributes:
        name: for the trace.
        open_sockets, open_files: how many it has, to find what is left over.
    """

    machine: Machine
    name: str
    is_alive: bool = True
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    open_sockets: int = 0
    open_files: int = 0
    _calls: dict[Task, None] = field(default_factory=dict)

    def check(self) -> None:
        """Raise if it is dead."""
        if not self.is_alive:
            raise ProcessDied(self.name)

    async def wait(self, seconds: float) -> None:
        """Wait in a call of the kernel: nothing ends it but the end of the process."""
        self.check()
        task, world = current_task(), self.machine.world
        self._calls[task] = None
        world.at(world.now_s() + seconds, self._return, task)
        await wait_task_rescheduled(lambda _: Abort.FAILED)
        self.check()

    def _return(self, task: Task) -> None:
        if task in self._calls:
            del self._calls[task]
            reschedule(task)

    def die(self) -> None:
        """Nothing that its tasks do from now on has an effect."""
        self.is_alive = False
        calls, self._calls = self._calls, {}
        for task in calls:
            reschedule(task)
        self.scope.cancel()


class RunQueue(deque):  # type: ignore[type-arg]
    """Trio's queue of tasks that can run, which keeps those of paused processes back."""

    def __init__(self) -> None:
        super().__init__()
        self._paused: dict[Process, list[Any]] = {}

    def append(self, task: Any) -> None:
        """A task can run."""
        if self._paused:
            held = self._paused.get(task.context.get(PROCESS))
            if held is not None:
                held.append(task)
                return
        super().append(task)

    def pause(self, process: Process) -> None:
        """No task of this process runs from now on."""
        self._paused.setdefault(process, [])

    def resume(self, process: Process) -> None:
        """Its tasks run again."""
        for task in self._paused.pop(process, ()):
            super().append(task)
