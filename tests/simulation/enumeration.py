"""Every sync call of a short run, crashed once before, in and after it: the process alone, and with the power."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.plan import Plan, draw_plan
from tests.simulation.run import Outcome, run_seed
from tests.simulation.schedule import Fault

RUN_S = 2.5
CHECK_MS = 250
"""Sites that find each other soon begin to write soon."""
SITE = "alpha"


def short_plan(seed: int) -> Plan:
    """A run of a few seconds with two sites, so that there are not many syncs."""
    plan = draw_plan(seed)
    failover = replace(plan.cluster.failover, check_interval_ms=CHECK_MS, recovery_threshold=1)
    cluster = replace(plan.cluster, sites=plan.cluster.sites[:2], failover=failover)
    return replace(plan, cluster=cluster, clients=1, clock_offsets_s=plan.clock_offsets_s[:2], run_s=RUN_S)


def count_syncs(seed: int) -> int:
    """How many syncs the site makes when nothing goes wrong, until no crash comes any more."""
    lines: list[str] = []
    run_seed(seed, schedule=[], plan=short_plan(seed), sink=lines.append)
    return sum(f" disk {SITE}.1 sync " in line and float(line.partition(" ")[0]) < RUN_S for line in lines)


def crash_at_every_sync(seed: int, *, moment: str, is_power_loss: bool) -> list[Outcome]:
    """Crash at each sync, one run for each; the runs that did not hold, or in which nothing crashed."""
    failed = []
    end = f" {'power_loss' if is_power_loss else 'kill'} {SITE}.1\n"
    for number in range(1, count_syncs(seed) + 1):
        args = {"site": SITE, "after": number, "moment": moment, "is_power_loss": is_power_loss}
        lines: list[str] = []
        schedule = [Fault(0.0, "crash_at_sync", args)]
        outcome = run_seed(seed, schedule=schedule, plan=short_plan(seed), sink=lines.append)
        if not any(line.endswith(end) for line in lines):
            outcome.violations.append(f"nothing crashed at sync {number}")
        if outcome.violations:
            failed.append(outcome)
    return failed
