"""A run's configuration, all of it drawn from the seed: sizes, rates, limits, latencies, clients."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claudefs_repl.journal import SiteId
from claudefs_repl.topology import (
    ClusterConfig,
    ConflictsConfig,
    FailoverConfig,
    JournalConfig,
    RateLimitConfig,
    ReplicationConfig,
    SiteConfig,
    StartupConfig,
)
from nodes.chaos.operation_mix import OPERATIONS
from protocol.keys import KeyRing, PairKey

NAMES = ("alpha", "beta", "gamma", "delta")
KIB = 1024
RUN_S = 20.0
"""Virtual seconds of work and faults."""
CONVERGE_S = 60.0
"""After the last fault all sites must be equal within this."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of, but for its faults.

    Attributes:
        clients: at each site.
        pause_s: between two requests of a client, on average.
        meet_s: between two moments at which all clients turn to the same object.
        mix: weights of the operations that clients ask for.
        shared: how often a client works where others do.
        clock_offsets_s: of the sites' clocks at the begin.
        quota_bytes: of each disk.
    """

    seed: int
    cluster: ClusterConfig
    clients: int
    pause_s: float
    meet_s: float
    mix: Mapping[str, float]
    shared: float
    names: int
    bytes_max: int
    latency_s: tuple[float, float]
    bytes_per_s: float
    write_s: float
    sync_s: float
    quota_bytes: int
    clock_offsets_s: tuple[float, ...]
    run_s: float = RUN_S

    def describe(self) -> dict[str, Any]:
        """What differs from run to run, for people."""
        return {
            "sites": len(self.cluster.sites),
            "shards": self.cluster.shards,
            "clients": self.clients,
            "pause_s": round(self.pause_s, 3),
            "latency_ms": tuple(round(1000 * each, 2) for each in self.latency_s),
            "sync_ms": round(1000 * self.sync_s, 2),
            "segment_kib": self.cluster.journal.segment_bytes // KIB,
            "compaction": self.cluster.replication.compaction,
        }


def draw_plan(seed: int) -> Plan:
    """The configuration of a seed."""
    rng = random.Random(f"{seed}/plan")
    count = rng.choice((2, 3, 3, 3, 4))
    sites = tuple(
        SiteConfig(name=name, site_id=SiteId(i), address=f"10.0.0.{i}", port=7400, data_dir=Path("/data") / name)
        for i, name in enumerate(NAMES[:count], 1)
    )
    rate = 0 if rng.random() < 0.7 else rng.choice((30, 100)) * KIB
    cluster = ClusterConfig(
        path=Path("/cluster.toml"),
        cluster_id="simulated",
        shards=rng.choice((1, 2, 4, 4, 7)),
        keys_dir=Path("/keys"),
        sites=sites,
        journal=JournalConfig(
            segment_bytes=rng.choice((16, 16, 64)) * KIB,
            retention_max_bytes=rng.choice((64, 256)) * KIB * KIB,
            snapshot_every_bytes=rng.choice((24, 64, 512)) * KIB,
            reserve_bytes=64 * KIB,
        ),
        replication=ReplicationConfig(
            batch_bytes_max=rng.choice((1, 4, 64, 1024)) * KIB,
            window_batches=rng.choice((1, 2, 8, 64)),
            window_bytes=rng.choice((64, 1024, 8192)) * KIB,
            applier_share=rng.choice((0.2, 0.5)),
            max_clock_drift_s=rng.choice((2.0, 30.0, 300.0)),
            reconnect_max_s=rng.choice((1.0, 3.0)),
            handshake_timeout_s=rng.choice((2.0, 5.0)),
            idle_timeout_s=rng.choice((3.0, 6.0)),
            drain_deadline_s=rng.choice((0.5, 2.0)),
            compaction=rng.choice(("off", "throttled", "on", "on")),
        ),
        failover=FailoverConfig(
            failure_threshold=rng.choice((1, 2, 3)),
            recovery_threshold=rng.choice((1, 2)),
            check_interval_ms=rng.choice((500, 1000)),
        ),
        startup=StartupConfig(startup_wait_s=rng.choice((1.0, 3.0))),
        rate_limit=RateLimitConfig(
            max_auth_attempts_per_minute=rng.choice((60, 60, 240)),
            max_batches_per_second=rng.choice((50, 1000)),
            max_global_bytes_per_second=rate,
            lockout_duration_secs=rng.choice((2, 5)),
        ),
        conflicts=ConflictsConfig(),
    )
    slow = rng.choice((0.0002, 0.002, 0.02))
    offset_s = cluster.replication.max_clock_drift_s * rng.choice((0.0, 0.0, 0.2))
    return Plan(
        seed=seed,
        cluster=cluster,
        clients=rng.choice((1, 1, 1, 2, 3)),
        pause_s=rng.choice((0.2, 0.4, 0.8)),
        meet_s=rng.choice((0.7, 1.5, 5.0)),
        mix={kind: weight * rng.choice((0.2, 1.0, 1.0, 5.0)) for kind, weight in OPERATIONS.items()},
        shared=rng.choice((0.1, 0.5, 0.9)),
        names=rng.choice((3, 8, 20)),
        bytes_max=rng.choice((200, 2000, 8000)),
        latency_s=(slow, slow * rng.choice((1.5, 4.0))),
        bytes_per_s=rng.choice((200_000.0, 10e6, 100e6)),
        write_s=0.00005,
        sync_s=rng.choice((0.0005, 0.003, 0.01)),
        quota_bytes=64 * KIB * KIB,
        clock_offsets_s=tuple(rng.uniform(-offset_s, offset_s) for _ in sites),
    )


def make_rings(cluster: ClusterConfig, rng: random.Random) -> dict[str, KeyRing]:
    """Each site's keys."""
    keys = [
        PairKey("k1", dialer.site_id, listener.site_id, rng.randbytes(32))
        for dialer in cluster.sites
        for listener in cluster.sites
        if dialer is not listener
    ]
    return {
        site.name: KeyRing(site.site_id, [key for key in keys if site.site_id in (key.dialer, key.listener)], "k1")
        for site in cluster.sites
    }
