"""One run: the stage is set, clients work while faults come and go, everything is healed, and what is left is gathered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from claudefs_repl.error import WorldError
from claudefs_repl.journal import JournalId
from claudefs_repl.observations import DiskLoss, Leftover, ShardSums
from nodes.chaos.disk_logs import LogOnDisk, read_logs
from nodes.chaos.disks import why_not
from nodes.chaos.fault_kinds import KINDS
from nodes.chaos.faults import Breaking, FaultRun
from nodes.chaos.history import History
from nodes.chaos.leftovers import find_leftovers, read_store_sums
from nodes.chaos.sampler import Sample, Sampler
from nodes.chaos.scenario import Scenario
from nodes.chaos.settle import Settled, heal, settle
from nodes.chaos.stage import Note, Stage, open_stage
from nodes.chaos.workload import Workload
from nodes.client import ClientError, SiteUnreachable
from nodes.commands.lab import wait_writable
from nodes.runtime import SystemClock, socket_candidates

Say = Callable[[str], None]
HEAL_TIMEOUT_S = 120.0
"""For undoing every fault and starting what is down; recovery of small logs takes a second or two."""


class CouldNotRun(WorldError):
    """The run did not get so far that there is anything to judge."""

    exit_code = 3


@dataclass(slots=True)
class Run:
    """All that is known of a run when it is over.

    Attributes:
        began_us: when the clients began, by the machine's clock.
        faults_over_us: when every fault was undone.
        ended_us: when the sites were level, or their time was over.
        events: what the sites logged, in the order of time.
        logs: by site, what its disk holds in the end.
        counters: what the proxies did, by direction.
        sums: by site, what its store counts.
        leftovers: what sites left behind that were stopped in order.
        stalls: when the machine was so busy that a probe may have waited for it.
        process_ends: when which site's process was gone, until the end of the run.
    """

    scenario: Scenario
    began_us: int = 0
    faults_over_us: int = 0
    ended_us: int = 0
    faults: list[FaultRun] = field(default_factory=list)
    history: History = field(default_factory=History)
    samples: list[Sample] = field(default_factory=list)
    stalls: list[tuple[int, int]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    settled: Settled = field(default_factory=Settled)
    logs: dict[str, Mapping[JournalId, LogOnDisk]] = field(default_factory=dict)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    sums: dict[str, dict[JournalId, list[ShardSums]]] = field(default_factory=dict)
    leftovers: list[Leftover] = field(default_factory=list)
    process_ends: list[tuple[int, str]] = field(default_factory=list)
    disk_losses: list[DiskLoss] = field(default_factory=list)
    peak_rss_bytes: dict[str, int] = field(default_factory=dict)


async def why_skipped(scenario: Scenario) -> list[str]:
    """What this machine does not permit of a scenario, a line for each; empty if it can run."""
    found = []
    for need in scenario.needs:
        reason = await why_not(need)
        if reason:
            kinds = ", ".join(sorted({fault.kind for fault in scenario.timeline if KINDS[fault.kind].needs is need}))
            found.append(f"not run: {kinds} needs {need.value} ({reason})")
    return found


async def run_scenario(scenario: Scenario, directory: Path, say: Say) -> Run:
    """Run a scenario in an empty directory, from the first start to the last stop.

    Raises:
        CouldNotRun: the cluster did not come up.
        ConfigInvalid: no ports are free.
        DiskFailed: a disk could not be made or removed.
    """
    run = Run(scenario)
    async with open_stage(scenario, directory) as stage:
        workload = Workload(stage.cluster, scenario.workload, SystemClock())
        await _begin(stage, workload, say)
        sampler = Sampler(stage)
        async with trio.open_nursery() as watching:
            watching.start_soon(sampler.run)
            await _break(run, stage, workload, say)
            run.settled = await settle(stage, scenario.expect.converged_within_s)
            run.ended_us = SystemClock().now_us()
            run.process_ends = list(stage.ends)
            watching.cancel_scope.cancel()
        say(_settled_text(run))
        for name in stage.names:
            await stage.stop(name)
        await _gather(run, stage, workload, sampler)
    return run


async def _gather(run: Run, stage: Stage, workload: Workload, sampler: Sampler) -> None:
    """What is known when every site has stopped; the disks are still there."""
    stage.events.poll()
    run.history, run.samples, run.notes = workload.history, sampler.samples, stage.notes
    run.stalls = sampler.stalls
    run.events = stage.events.merged()
    run.counters = stage.mesh.counters()
    run.disk_losses = stage.disk_losses
    for site in stage.cluster.sites:
        run.logs[site.name] = await trio.to_thread.run_sync(read_logs, site.data_dir)
        if site.name in run.settled.statuses:
            run.sums[site.name] = await trio.to_thread.run_sync(read_store_sums, site.data_dir)
        run.leftovers += find_leftovers(site.name, site.data_dir, socket_candidates(site, stage.cluster))
        memory = (sample.rss_bytes for sample in run.samples if sample.site == site.name)
        run.peak_rss_bytes[site.name] = max(memory, default=0)


async def _begin(stage: Stage, workload: Workload, say: Say) -> None:
    try:
        await stage.start_all()
        for name in stage.names:
            await wait_writable(stage.cluster, name)
        await workload.prepare()
    except (WorldError, SiteUnreachable, ClientError, trio.TooSlowError) as error:
        raise CouldNotRun(f"the cluster did not come up: {error}") from error
    say(f"{len(stage.names)} sites take writes; {len(stage.mesh.proxies)} proxies are between them")


async def _break(run: Run, stage: Stage, workload: Workload, say: Say) -> None:
    """Clients work while the timeline is done; returns when all of it is undone."""
    scenario = run.scenario
    breaking = Breaking(stage, workload, say)
    run.began_us = SystemClock().now_us()
    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(breaking.run, scenario, started_s)
        await workload.run()
        await trio.sleep_until(started_s + scenario.end_s)
        stage.healed.set()
        with trio.CancelScope(deadline=trio.current_time() + HEAL_TIMEOUT_S):
            while any(fault.ended_us is None for fault in breaking.runs):
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    run.faults = breaking.runs
    await heal(stage)
    run.faults_over_us = SystemClock().now_us()
    say("every fault is over; the sites get their time to become level")


def _settled_text(run: Run) -> str:
    if run.settled.took_s is None:
        return f"not level after {run.scenario.expect.converged_within_s:g} s: {run.settled.missing}"
    return f"all sites are level {run.settled.took_s:.1f} s after the last fault"
