"""A pocket cluster for hunting mutants: real sites on a network, disks and clocks in memory, broken from a seed, judged.

`run_seed(seed)` draws a configuration, a workload and faults, runs fourteen virtual seconds, heals everything, waits
for convergence and hands what it saw to the checkers of `claudefs_repl.promises`.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import trio
import trio.testing

from claudefs_repl.error import ReplError
from claudefs_repl.journal import SiteId
from claudefs_repl.observations import CursorsSeen, Limits, Measure, Observation
from claudefs_repl.promises import broken, judge
from claudefs_repl.topology import (
    ClusterConfig,
    FailoverConfig,
    JournalConfig,
    RateLimitConfig,
    ReplicationConfig,
    SiteConfig,
    StartupConfig,
)
from nodes.journal_writer import QUEUE_MAX
from protocol.keys import KeyRing, PairKey
from tests.simulation.pocket.disk import Disk
from tests.simulation.pocket.faults import Nemesis
from tests.simulation.pocket.host import BEGAN_US, Host, patched
from tests.simulation.pocket.network import Network
from tests.simulation.pocket.seen import end_of
from tests.simulation.pocket.workload import Workload

DURATION_S = 14.0
CONVERGE_S = 45.0
SAMPLE_S = 0.2
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Outcome:
    """What a seed came to."""

    violations: list[str]
    reached: Counter[str]
    observation: Observation


def draw_cluster(seed: int, root: Path) -> ClusterConfig:
    rng = random.Random(f"{seed} cluster")
    sites = tuple(
        SiteConfig(name, SiteId(i), f"127.0.0.{i}", 7400, root / name)
        for i, name in enumerate(("alpha", "beta", "gamma")[: rng.choice((2, 3, 3))], 1)
    )
    return ClusterConfig(
        path=root / "cluster.toml",
        cluster_id="pocket",
        shards=rng.choice((1, 2, 4)),
        keys_dir=root / "keys",
        sites=sites,
        journal=JournalConfig(
            segment_bytes=rng.choice((16, 64, 256)) * 1024,
            snapshot_every_bytes=rng.choice((32 * 1024, 64 * 1024, 1 << 30)),
            reserve_bytes=64 * 1024,
        ),
        replication=ReplicationConfig(
            batch_bytes_max=rng.choice((600, 4000, 1 << 20)),
            window_batches=rng.choice((2, 8, 64)),
            window_bytes=rng.choice((4000, 1 << 20)),
            max_clock_drift_s=5.0,
            reconnect_max_s=1.0,
            handshake_timeout_s=2.0,
            idle_timeout_s=4.0,
            compaction=rng.choice(("off", "on", "on")),
        ),
        failover=FailoverConfig(
            failure_threshold=rng.choice((2, 3)),
            recovery_threshold=rng.choice((2, 3)),
            check_interval_ms=rng.choice((250, 400)),
        ),
        startup=StartupConfig(startup_wait_s=2.0),
        rate_limit=RateLimitConfig(max_auth_attempts_per_minute=10_000),
    )


def run_seed(seed: int) -> Outcome:
    """Run one seed."""
    root = Path(tempfile.mkdtemp(prefix="pocket-", dir=SHM if SHM.is_dir() else None))
    try:
        return _Run(seed, root).run()
    finally:
        shutil.rmtree(root)


class _Run:
    def __init__(self, seed: int, root: Path) -> None:
        self.seed = seed
        self.cluster = draw_cluster(seed, root)
        self.net = Network(random.Random(f"{seed} net"))
        self.cursors: list[CursorsSeen] = []
        self.measures: list[Measure] = []
        self.reached: Counter[str] = Counter()
        rng = random.Random(f"{seed} keys")
        ids = [site.site_id for site in self.cluster.sites]
        secrets = [PairKey("k1", d, i, rng.randbytes(32)) for d in ids for i in ids if d != i]
        self.hosts: dict[str, Host] = {}
        for site in self.cluster.sites:
            disk = Disk(site.data_dir, random.Random(f"{seed} disk {site.name}"))
            own = [key for key in secrets if site.site_id in (key.dialer, key.listener)]
            keys = KeyRing(site.site_id, own, "k1")
            self.hosts[site.name] = Host(self.cluster, site, keys, self.net, disk, str(seed))

    def run(self) -> Outcome:
        clock = trio.testing.MockClock(autojump_threshold=0)
        with patched(str(self.seed)):
            observation = trio.run(self._main, clock=clock)
        violations = [str(verdict) for verdict in broken(judge(observation))]
        violations += [f"a site ended: {failure}" for host in self.hosts.values() for failure in host.failures]
        violations += self.nemesis.violations
        for host in self.hosts.values():
            self.reached.update(event for _, event, _ in host.log.events)
        return Outcome(violations, self.reached, observation)

    async def _main(self) -> Observation:
        self.net.install()
        converged_us = None
        async with trio.open_nursery() as nursery:
            for host in self.hosts.values():
                host.glance = self._glance
                host.start(nursery)
            workload = Workload(self.seed, self.hosts)
            self.nemesis = nemesis = Nemesis(self.seed, self.cluster, self.hosts, self.net, nursery)
            nursery.start_soon(self._sample)
            async with trio.open_nursery() as working:
                working.start_soon(workload.run, DURATION_S)
                await trio.sleep(1.0)
                await nemesis.run(DURATION_S - 4.0)
            await nemesis.heal()
            healed_us = _now_us()
            with trio.move_on_after(CONVERGE_S):
                await self._converged(workload)
                converged_us = _now_us()
            ended_us = _now_us()
            ends = {}
            for host in self.hosts.values():
                if host.is_ready:
                    try:
                        ends[host.name] = await end_of(host, workload.private)
                    except ReplError as error:
                        nemesis.violations.append(f"{host.name} cannot be read: {type(error).__name__}: {error}")
            nursery.cancel_scope.cancel()
        failover = self.cluster.failover
        interval_us = failover.check_interval_ms * 1000
        limits = Limits(
            check_interval_us=interval_us,
            failure_threshold=failover.failure_threshold,
            recovery_threshold=failover.recovery_threshold,
            probe_timeout_us=interval_us,
            redial_us=5_000_000,
            catch_up_us=5_000_000,
            converge_us=round(CONVERGE_S * 1e6),
            tolerance_us=20_000,
            max_clock_drift_us=5_000_000,
            clocks_ahead_us=nemesis.clocks_ahead_us,
            epoch_us=BEGAN_US,
        )
        hosts = self.hosts.values()
        return Observation(
            sites={site.name: site.site_id for site in self.cluster.sites},
            healed_us=healed_us,
            converged_us=converged_us,
            ended_us=ended_us,
            limits=limits,
            ends=ends,
            attempts=workload.attempts,
            submitted={name: frozenset(contents) for name, contents in workload.submitted.items()},
            cursors=self.cursors,
            modes=sorted((mode for host in hosts for mode in host.modes), key=lambda mode: mode.time_us),
            measures=self.measures,
            rejections=[rejection for host in hosts for rejection in host.rejections],
            bootstraps=(),
            faults=nemesis.faults,
            tampering=nemesis.tampering,
            disk_losses=nemesis.disk_losses,
            expected_tree=workload.expected(but=nemesis.wiped),
            dead_letters_planted=nemesis.dead_letters,
        )

    async def _sample(self) -> None:
        while True:
            await trio.sleep(SAMPLE_S)
            for host in self.hosts.values():
                if host.is_ready:
                    self._sample_host(host)

    def _glance(self, host: Host) -> None:
        """What all hosts hold at the moment at which one has just recovered, or is about to be gone."""
        for other in self.hosts.values():
            if other.is_ready or (other is host and host.is_recovered):
                self._sample_host(other)

    def _sample_host(self, host: Host) -> None:
        now_us, journals = _now_us(), host.recovered.journals
        acked = {
            record.site.name: record.acked
            for record in host.site._peers.values()
            if record.progress is not None and record.acked
        }
        seen = CursorsSeen(
            now_us,
            host.name,
            journals.own.journal,
            journals.received(),
            dict(host.recovered.store.applied),
            acked=acked,
            newest_us={log.journal: log.last_timestamp_us for log in journals.replicas.values()},
        )
        self.cursors.append(seen)
        config = self.cluster.replication
        for record in host.site._peers.values():
            if record.progress is not None:
                batches, count = record.progress.batches_in_flight, config.window_batches
                self.measures.append(Measure(now_us, host.name, "window_batches", batches, count))
        if not host.is_ready:
            return
        queue = host.running.writes.statistics()
        self.measures.append(Measure(now_us, host.name, "write_queue_requests", queue.max_buffer_size, QUEUE_MAX))

    async def _converged(self, workload: Workload) -> None:
        while True:
            await trio.sleep(0.25)
            hosts = list(self.hosts.values())
            if not all(host.is_ready for host in hosts):
                continue
            received = [host.recovered.journals.received() for host in hosts]
            applied = [host.recovered.store.applied for host in hosts]
            if all(_key(one) == _key(received[0]) for one in (*received, *applied)):
                return


def _key(cursors):
    return {journal: tuple(seqs) for journal, seqs in cursors.items() if any(seqs)}


def _now_us() -> int:
    return round(trio.current_time() * 1e6)


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        outcome = run_seed(number)
        text = "\n".join(outcome.violations) or "ok"
        sys.stdout.write(f"seed {number}: {text}\n{dict(outcome.reached)}\n")
