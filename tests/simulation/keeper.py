"""Keeps the sites of a run running, as their operators would."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

import trio

from claudefs_repl.checkpoint import join
from claudefs_repl.error import DiskFull, ReplError, SyncFailed, WorldError
from claudefs_repl.health import remedy_stamps
from claudefs_repl.journal import JournalId
from claudefs_repl.observations import DiskLoss, Measure, Tampering
from claudefs_repl.observations import Fault as FaultSeen
from nodes.client import SiteUnreachable
from nodes.recovery import IDENTITY_FILE
from tests.simulation.cluster import Cluster
from tests.simulation.logs import read_tails
from tests.simulation.machine import Machine

LOOK_S = 0.05
ALARMS = ("peer_ahead_of_origin", "journal_diverged")
"""After these an operator makes a site anew before it starts again: over a restart it forgets that peers are ahead."""
ITS_OWN = "this site's journal"
"""In such an alarm it is the site itself that went back, and not a peer."""
PATIENCE_S = 15.0
"""So long an operator waits for a site to be made anew before he tries again."""
RETRY_S = 1.0
"""An operator starts a site that ended by itself again after this."""


@dataclass(slots=True)
class _Keeping:
    """How one site is kept running.

    Attributes:
        holds: reasons to leave it down.
        not_before_s: it is not started earlier.
        needs_bootstrap: it cannot go on as it was.
        is_broken: nor can it be started as it is, to answer others: its disk is empty, or a log on it is damaged.
    """

    holds: int = 0
    not_before_s: float = 0.0
    needs_bootstrap: bool = False
    is_broken: bool = False


@dataclass(slots=True)
class Done:
    """What was done in a run, for the checkers.

    Attributes:
        rotten: bits of logs that were turned below what is proven to be durable: when, whose, where. The site did not run.
    """

    faults: list[FaultSeen] = field(default_factory=list)
    disk_losses: list[DiskLoss] = field(default_factory=list)
    rotten: list[tuple[int, str, str]] = field(default_factory=list)
    tampering: list[Tampering] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    bootstraps: list[str] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    planted: int = 0


class Keeper:
    """Owned by the run.

    Attributes:
        done: what happened, for the checkers.
    """

    def __init__(self, cluster: Cluster, nursery: trio.Nursery) -> None:
        self._cluster = cluster
        self._nursery = nursery
        self._keeping = {name: _Keeping() for name in cluster.machines}
        self.done = Done()

    def hold(self, name: str) -> None:
        """Leave a site down from now on."""
        self._keeping[name].holds += 1

    def release(self, name: str) -> None:
        """One reason less to leave it down."""
        self._keeping[name].holds = max(0, self._keeping[name].holds - 1)

    def start_after(self, name: str, seconds: float) -> None:
        """Leave a site down for so long."""
        self._keeping[name].not_before_s = trio.current_time() + seconds

    def needs_bootstrap(self, name: str, *, is_broken: bool = False) -> None:
        """The site cannot go on as it was; if it is broken, it cannot be started either."""
        keeping = self._keeping[name]
        keeping.needs_bootstrap = True
        keeping.is_broken |= is_broken

    def note_loss(self, site: str, *, broken: Collection[str] = ()) -> int:
        """A disk is about to be lost: what it holds, and what the others hold, which is what there will be; when.

        Where all are broken, what is given up was there before it was damaged, and what others have damaged is not there.
        """
        machines = self._cluster.machines
        others: dict[JournalId, tuple[int, ...]] = {}
        for name, other in machines.items():
            for journal, seqs in read_tails(other.disk).items() if name not in (site, *broken) else ():
                others[journal] = join(others.get(journal, seqs), seqs)
        machines[site].disk_since_s = self._cluster.world.now_s()
        # After what was seen of the site when its process was ended for this.
        after_us = self._cluster.world.now_us() + 1
        held = read_tails(machines[site].disk)
        damaged = {lost_us for lost_us, name, _ in self.done.rotten if name == site and broken}
        for before in self.done.disk_losses:
            if before.site == site and before.time_us in damaged:
                held |= {journal: join(held.get(journal, seqs), seqs) for journal, seqs in before.held.items()}
        loss = DiskLoss(after_us, site, others, held)
        self.done.disk_losses.append(loss)
        return after_us

    def heal(self) -> None:
        """Nothing keeps a site down any more."""
        for keeping in self._keeping.values():
            keeping.holds, keeping.not_before_s = 0, 0.0

    async def run(self) -> None:
        """Start sites that are down and may run; make those anew that cannot go on, as an operator would."""
        read = 0
        while True:
            for event in self._cluster.events[read:]:
                if event["event"] in ALARMS and ITS_OWN in event["detail"]:
                    self.needs_bootstrap(event["site"])
            read = len(self._cluster.events)
            for name, machine in self._cluster.machines.items():
                keeping = self._keeping[name]
                if machine.process is None and not keeping.holds and trio.current_time() >= keeping.not_before_s:
                    self._look_at_failure(machine, keeping)
                    if keeping.needs_bootstrap:
                        # It may wait for an answer of another site, which has to be started for that.
                        self._nursery.start_soon(self.bootstrap, name)
                    else:
                        self._start(name)
            await trio.sleep(LOOK_S)

    def _look_at_failure(self, machine: Machine, keeping: _Keeping) -> None:
        """A site may end by itself only for what the world did; a damaged log is for the operator."""
        failure, machine.failure = machine.failure, None
        if failure is None:
            return
        self._cluster.world.trace.note("failure", machine.name, type(failure).__name__, failure)
        if isinstance(failure, WorldError) and not isinstance(failure, SyncFailed | DiskFull):
            self.needs_bootstrap(machine.name, is_broken=True)
            # A damaged log is not all that this may be: a view may lack what was trimmed.
            if not any(loss.site == machine.name for loss in self.done.disk_losses):
                self.done.failures.append(f"I6: {machine.name}: nothing has damaged its disk, but {failure}")
        if not isinstance(failure, ReplError):
            self.done.failures.append(f"{machine.name}: {type(failure).__name__}: {failure}")

    def _start(self, name: str) -> None:
        self._keeping[name].not_before_s = trio.current_time() + RETRY_S
        self._cluster.start(self._nursery, name)

    async def _lose_patience(self, machine: Machine) -> None:
        """Who waits for a peer that does not come back begins again, and goes on with what was fetched."""
        await trio.sleep(PATIENCE_S)
        machine.crash(is_power_loss=False)

    async def bootstrap(self, name: str) -> bool:
        """Make a site anew from a peer, without those that are as broken; whether it is. What fails is tried again later.

        A peer that only has to be started is waited for. Where all are broken, one whose disk is empty begins again; if
        there is none, the operator gives up the data of one, for he has no copy of its damaged log.
        """
        broken = {other for other, its in self._keeping.items() if its.is_broken and not its.holds and other != name}
        if self._keeping[name].is_broken and len(broken) == len(self._keeping) - 1:
            if not any(map(self._is_empty, (name, *broken))):
                self.note_loss(name, broken=broken)
                self._cluster.machines[name].disk.wipe()
            if self._is_empty(name):
                self._begin_again(name)
            return False
        failure = await self._make_anew(name, broken)
        if failure is None:
            return True
        ahead = [other for other in self._keeping if remedy_stamps(other) in str(failure)]
        if ahead and self._keeping[name].is_broken:
            self._wait_for_stamps(str(failure))
            return False
        if ahead or isinstance(failure, SiteUnreachable):
            self._start_meanwhile(name)
        if ahead:
            await trio.sleep(RETRY_S)
        for other in ahead:
            await self._make_anew(other, broken)
        return False

    def _wait_for_stamps(self, refusal: str) -> None:
        """Nobody is left to begin anew from but sites with stamps too far ahead: all clocks come to where they are taken.

        Nor can those be repaired, for that takes a site that answers and is free of such stamps.
        """
        beyond_s = min(float(number.replace(",", "")) for number in re.findall(r"([\d,.]+) s beyond", refusal))
        for machine in self._cluster.machines.values():
            machine.clock.jump(beyond_s + 1)

    def _is_empty(self, name: str) -> bool:
        return IDENTITY_FILE not in self._cluster.machines[name].disk.files

    def _begin_again(self, name: str) -> None:
        """There is nothing to be had for a site that has nothing: it starts as a new one."""
        keeping = self._keeping[name]
        keeping.needs_bootstrap = keeping.is_broken = False
        self._start_meanwhile(name)

    def _start_meanwhile(self, name: str) -> None:
        """It may be what another one waits for."""
        keeping = self._keeping[name]
        if not keeping.is_broken and not keeping.holds:
            self._start(name)

    async def _make_anew(self, name: str, without: Collection[str]) -> BaseException | None:
        """Stop a site and make it anew; why that failed."""
        machine, keeping = self._cluster.machines[name], self._keeping[name]
        began_us = self._cluster.world.now_us()
        keeping.holds += 1
        try:
            await machine.stop()
            machine.is_powered = True
            cluster = self._cluster
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lose_patience, machine)
                failure = await machine.bootstrap(
                    cluster.plan.cluster, cluster.keys[name], cluster.root, without=sorted({*without} - {name})
                )
                nursery.cancel_scope.cancel()
        finally:
            keeping.holds = max(0, keeping.holds - 1)
            self.done.faults.append(FaultSeen("bootstrap", began_us, self._cluster.world.now_us(), (name,)))
        keeping.not_before_s = trio.current_time() + RETRY_S
        if failure is None:
            keeping.needs_bootstrap = keeping.is_broken = False
            self.done.bootstraps.append(name)
        else:
            self._cluster.world.trace.note("bootstrap_failed", name, failure)
            if not isinstance(failure, ReplError):
                self.done.failures.append(f"bootstrap of {name}: {type(failure).__name__}: {failure}")
        return failure
