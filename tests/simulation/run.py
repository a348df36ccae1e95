"""One seeded run: a cluster works while it is broken, is healed, must converge, and is judged."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from claudefs_repl.observations import Observation
from claudefs_repl.promises import broken, judge
from claudefs_repl.verdict import Verdict
from tests.simulation.cluster import Cluster
from tests.simulation.keeper import Keeper
from tests.simulation.look import Lookout
from tests.simulation.nemesis import Nemesis
from tests.simulation.observe import observe
from tests.simulation.plan import CONVERGE_S, Plan, draw_plan
from tests.simulation.schedule import Fault, draw_schedule
from tests.simulation.settle import Settled, settle
from tests.simulation.sockets import SocketWorld
from tests.simulation.sometimes import reached
from tests.simulation.workload import Workload
from tests.simulation.world import Stuck, World

LOOK_S = 0.3
STOP_S = 20.0
"""Sites that stop must be gone by then."""


@dataclass(slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        trace_hash: SHA-256 over everything that happened.
        violations: what did not hold, one line each.
        reached: the rare paths that it was on.
        tail: the last lines of the trace.
    """

    seed: int
    trace_hash: str
    violations: list[str]
    reached: Counter[str]
    schedule: list[Fault]
    virtual_s: float
    events: int = 0
    tail: list[str] = field(default_factory=list)


class _Run:
    """One run under way."""

    def __init__(self, world: World, plan: Plan, schedule: Sequence[Fault], root: Path) -> None:
        self.world = world
        self.plan = plan
        self.schedule = list(schedule)
        self.cluster = Cluster(world, plan, root)
        self.lookout = Lookout(self.cluster.machines, plan.cluster, plan.quota_bytes)
        for machine in self.cluster.machines.values():
            machine.on_turn = self.lookout.look
        self.workload = Workload(self.cluster)
        self.settled = Settled()
        self.nemesis: Nemesis | None = None
        self.healed_us = 0

    async def main(self) -> None:
        """Work and faults, then healing, convergence, and an orderly stop."""
        SocketWorld(self.cluster.network).install()
        async with trio.open_nursery() as nursery:
            keeper = Keeper(self.cluster, nursery)
            nemesis = self.nemesis = Nemesis(self.cluster, keeper)
            async with trio.open_nursery() as around:
                around.start_soon(keeper.run)
                around.start_soon(self._look_around)
                with trio.move_on_after(self.plan.run_s):
                    async with trio.open_nursery() as working:
                        working.start_soon(self.workload.run)
                        working.start_soon(nemesis.run, self.schedule)
                nemesis.finish()
                nemesis.heal()
                self.healed_us = self.world.now_us()
                self.settled = await settle(self.cluster, keeper, CONVERGE_S, self.workload.private.paths)
                around.cancel_scope.cancel()
            with trio.move_on_after(STOP_S):
                async with trio.open_nursery() as stopping:
                    for machine in self.cluster.machines.values():
                        stopping.start_soon(machine.stop)
            nursery.cancel_scope.cancel()

    async def _look_around(self) -> None:
        """Look at every site from time to time."""
        while True:
            await trio.sleep(LOOK_S)
            assert self.nemesis is not None
            self.nemesis.note_clocks()
            self.lookout.look()

    def forgotten(self) -> list[str]:
        """Files that sites did not know any more, unless no disk is left that never was lost."""
        assert self.nemesis is not None
        lost = {loss.site for loss in self.nemesis.done.disk_losses}
        return [] if lost >= set(self.cluster.machines) else self.workload.private.failures

    def observation(self) -> Observation:
        """What was seen."""
        assert self.nemesis is not None
        return observe(
            self.cluster,
            self.nemesis,
            self.workload,
            self.settled,
            self.lookout.cursors,
            self.lookout.measures + self.nemesis.done.measures,
            self.healed_us,
        )


def run_seed(
    seed: int,
    *,
    schedule: Sequence[Fault] | None = None,
    sink: Callable[[str], None] | None = None,
    plan: Plan | None = None,
) -> Outcome:
    """Run a seed, with its own faults or others; `sink` gets every line of the trace."""
    world = World(seed)
    world.trace.sink = sink
    plan = draw_plan(seed) if plan is None else plan
    faults = draw_schedule(plan) if schedule is None else list(schedule)
    violations: list[str] = []
    found: Counter[str] = Counter()
    verdicts: list[Verdict] = []
    with _memory_directory() as root:
        run = _Run(world, plan, faults, root)
        try:
            world.run(run.main)
            violations += run.nemesis.done.failures if run.nemesis is not None else []
            violations += run.forgotten()
            violations += _begun_twice(run.cluster.events)
            verdicts = judge(run.observation())
            violations += [f"{each.promise}: {finding}" for each in broken(verdicts) for finding in each.findings]
            if run.settled.converged_us is None:
                violations.append(f"link up, nothing moves: {run.settled.missing}")
        except Stuck as stuck:
            violations.append(f"stuck: {stuck}")
        except BaseExceptionGroup as group:
            violations.append(f"the simulation failed: {_first(group)!r}")
        found = reached(run.cluster, run.settled, run.workload.history.refusals(), verdicts)
    return Outcome(
        seed,
        world.trace.digest(),
        violations,
        found,
        faults,
        world.now_s(),
        world.trace.count,
        list(world.trace.tail),
    )


def _begun_twice(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """A journal that a site begins has a name that no journal ever had."""
    begun = Counter(event["journal"] for event in events if event["event"] == "journal_created")
    return [f"P3: journal {journal} was begun {count} times" for journal, count in begun.items() if count > 1]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _memory_directory() -> Iterator[Path]:
    """A directory for SQLite's files, in memory where there is such a place."""
    memory = Path("/dev/shm")
    with suppress(OSError):
        memory = memory if memory.is_dir() else Path(tempfile.gettempdir())
    directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=memory))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
