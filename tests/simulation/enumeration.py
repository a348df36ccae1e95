"""Every sync call of a short run, crashed once before, in and after it: the process alone, and with the power."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.plan import Plan, draw_plan
from tests.simulation.run import Outcome, run_seed
from tests.simulation.schedule import Fault

RUN_S = 4.0
SITE = "alpha"


def short_plan(seed: int) -> Plan:
    """A run of a few seconds with two sites, so that there are not many syncs."""
    plan = draw_plan(seed)
    cluster = replace(plan.cluster, sites=plan.cluster.sites[:2])
    return replace(plan, cluster=cluster, clients=1, clock_offsets_s=plan.clock_offsets_s[:2], run_s=RUN_S)


def count_syncs(seed: int) -> int:
    """How many syncs the site makes when nothing goes wrong."""
    lines: list[str] = []
    run_seed(seed, schedule=[], plan=short_plan(seed), sink=lines.append)
    return sum(f" disk {SITE}.1 sync " in line for line in lines)


def crash_at_every_sync(seed: int, *, moment: str, is_power_loss: bool) -> list[Outcome]:
    """Crash at each sync, one run for each; the runs that did not hold."""
    failed = []
    for number in range(1, count_syncs(seed) + 1):
        args = {"site": SITE, "after": number, "moment": moment, "is_power_loss": is_power_loss}
        outcome = run_seed(seed, schedule=[Fault(0.0, "crash_at_sync", args)], plan=short_plan(seed))
        if outcome.violations:
            failed.append(outcome)
    return failed
