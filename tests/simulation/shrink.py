"""From a schedule with which a seed fails to one that is as small as few runs can make it (delta debugging)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.simulation.run import run_seed
from tests.simulation.schedule import Fault


def shrink(seed: int, schedule: Sequence[Fault], *, runs_max: int) -> list[Fault]:
    """The fewest faults found with which the seed still fails."""
    return smallest(schedule, lambda faults: bool(run_seed(seed, schedule=faults).violations), runs_max=runs_max)


def smallest(schedule: Sequence[Fault], fails: Callable[[list[Fault]], bool], *, runs_max: int) -> list[Fault]:
    """Leave out parts, large ones first, as long as what is left fails (Zeller and Hildebrandt's ddmin)."""
    left = list(schedule)
    if not left or (runs_max > 0 and fails([])):
        return []
    runs, parts = 1, 2
    while len(left) >= 2 and runs < runs_max:
        size = -(-len(left) // parts)
        for begin in range(0, len(left), size):
            rest = left[:begin] + left[begin + size :]
            runs += 1
            if fails(rest):
                left, parts = rest, max(2, parts - 1)
                break
            if runs >= runs_max:
                return left
        else:
            if size == 1:
                break
            parts = min(len(left), 2 * parts)
    return left
