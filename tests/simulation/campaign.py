"""Many seeds, in a process for each core: what was violated, what was reached, what was never."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.run import Outcome, run_seed
from tests.simulation.schedule import Fault, to_json
from tests.simulation.shrink import shrink
from tests.simulation.sometimes import required

COMPLETE_FROM = 200
"""A campaign of fewer seeds may well miss a rare path."""
SHRINK_RUNS_MAX = 40
SHOWN_MAX = 5


@dataclass(slots=True)
class Campaign:
    """What came of many seeds.

    Attributes:
        failed: outcomes with violations.
        missing: rare paths that none of enough seeds was on.
        cpu_s: processor time of all runs.
    """

    count: int = 0
    failed: list[Outcome] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def missing(self) -> list[str]:
        return sorted(required() - set(self.reached)) if self.count >= COMPLETE_FROM else []

    @property
    def is_good(self) -> bool:
        return not self.failed and not self.missing


def _timed(seed: int) -> tuple[Outcome, float]:
    began_s = time.process_time()
    outcome = run_seed(seed)
    return outcome, time.process_time() - began_s


def outcomes(first: int, count: int, processes: int) -> Iterator[tuple[Outcome, float]]:
    """Run seeds; those that are done first come first."""
    seeds = range(first, first + count)
    if processes <= 1:
        yield from map(_timed, seeds)
        return
    # Fresh processes: a forked one would share what the first had set up.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_timed, seeds)


def run_campaign(first: int, count: int, processes: int, *, is_quiet: bool = False) -> Campaign:
    """Run so many seeds and tell of those that fail, each with the command that replays it."""
    campaign = Campaign()
    for outcome, cpu_s in outcomes(first, count, processes):
        campaign.count += 1
        campaign.cpu_s += cpu_s
        campaign.virtual_s += outcome.virtual_s
        campaign.reached += Counter(dict.fromkeys(outcome.reached, 1))
        if outcome.violations:
            campaign.failed.append(outcome)
            if not is_quiet:
                _say(explain(outcome))
        elif not is_quiet and campaign.count % 50 == 0:
            _say(f"{campaign.count} seeds, {campaign.cpu_s / campaign.count:.2f} s of processor time each")
    campaign.failed.sort(key=lambda outcome: outcome.seed)
    return campaign


def explain(outcome: Outcome) -> str:
    """A failed run for people: what did not hold, the faults, and how to see it again."""
    lines = [f"seed {outcome.seed} FAILED, trace {outcome.trace_hash[:16]}"]
    lines += [f"  {violation}" for violation in outcome.violations[:SHOWN_MAX]]
    if len(outcome.violations) > SHOWN_MAX:
        lines.append(f"  and {len(outcome.violations) - SHOWN_MAX} more")
    lines += [f"  fault {fault}" for fault in outcome.schedule]
    lines.append(f"  {replay_command(outcome.seed)}")
    return "\n".join(lines)


def replay_command(seed: int, schedule: list[Fault] | None = None) -> str:
    """What to type to see a run again."""
    command = f"python -m tests.simulation --seeds 1 --first {seed} --trace"
    return command if schedule is None else f"{command} --schedule '{to_json(schedule)}'"


def explain_smallest(outcome: Outcome) -> str:
    """The fewest faults with which a seed still fails, and the command that shows it."""
    schedule = shrink(outcome.seed, outcome.schedule, runs_max=SHRINK_RUNS_MAX)
    lines = [f"seed {outcome.seed} needs {len(schedule)} of its {len(outcome.schedule)} faults to fail:"]
    lines += [f"  fault {fault}" for fault in schedule]
    lines.append(f"  {replay_command(outcome.seed, schedule)}")
    return "\n".join(lines)


def as_json(campaign: Campaign) -> dict[str, Any]:
    """A campaign for programs."""
    return {
        "seeds": campaign.count,
        "failed": [
            {"seed": one.seed, "violations": one.violations, "schedule": json.loads(to_json(one.schedule))}
            for one in campaign.failed
        ],
        "reached": dict(sorted(campaign.reached.items())),
        "missing": campaign.missing,
        "virtual_s": round(campaign.virtual_s, 1),
        "cpu_s": round(campaign.cpu_s, 1),
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
