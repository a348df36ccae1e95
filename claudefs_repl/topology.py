"""The cluster as its configuration tells it: sites, addresses, limits. Values only; `nodes.config` reads the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from claudefs_repl.error import SiteUnknown
from claudefs_repl.journal import SiteId
from claudefs_repl.uidmap import OriginIdentity

MIB = 1 << 20
COMPACTION_MODES = ("off", "throttled", "on")
"""`throttled`: to a peer for which batches had to wait at the rate limiter lately."""


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """One site: a name for people, a number for the wire, where it listens and where it keeps its data.

    Attributes:
        identity: how it shows the ids that other sites wrote; those of an origin that is not named show as they are.
        clock_offset_s: how far its wall clock is set ahead of the machine's, seconds; for experiments.
        disk_quota_bytes: beyond it the site finds no room for new files, as on a full disk; 0 for no limit; for experiments.
    """

    name: str
    site_id: SiteId
    address: str
    port: int
    data_dir: Path
    identity: tuple[OriginIdentity, ...] = ()
    clock_offset_s: float = 0.0
    disk_quota_bytes: int = 0


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """The logs on disk.

    Attributes:
        segment_bytes: a log grows by files of this size, allocated in full before use.
        retention_max_bytes: the most that one log may keep for a peer that lags; beyond it the peer is cut off.
        snapshot_every_bytes: a local snapshot is taken after so many new log bytes; only below one may a log be trimmed.
        reserve_bytes: a file given up when the disk is full, so that the site can trim and recover by itself.
    """

    segment_bytes: int = 16 * MIB
    retention_max_bytes: int = 8192 * MIB
    snapshot_every_bytes: int = 512 * MIB
    reserve_bytes: int = 8 * MIB


@dataclass(frozen=True, slots=True)
class ReplicationConfig:
    """The conduits and the applier.

    Attributes:
        batch_bytes_max: a batch's body, bytes.
        window_batches: unacknowledged batches of one conduit.
        window_bytes: unacknowledged bytes of one conduit.
        applier_share: the part of the time that applying may take while a received backlog grows, 0 to 1.
        max_clock_drift_s: how far ahead of this site's wall clock a stamp may be, seconds.
        reconnect_min_s: the first pause before a dialler tries again, seconds; it doubles, with jitter.
        reconnect_max_s: the longest such pause, seconds.
        handshake_timeout_s: for the whole handshake, seconds.
        idle_timeout_s: a conduit on which nothing came for so long is closed, seconds; both sides ping within a third of it.
        drain_deadline_s: how long a stopping site goes on sending what it has, seconds.
        compaction: when batches are sent without what later entries in them undo, one of COMPACTION_MODES.
    """

    batch_bytes_max: int = 1 * MIB
    window_batches: int = 64
    window_bytes: int = 8 * MIB
    applier_share: float = 0.2
    max_clock_drift_s: float = 300.0
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 5.0
    handshake_timeout_s: float = 5.0
    idle_timeout_s: float = 15.0
    drain_deadline_s: float = 5.0
    compaction: str = "throttled"


@dataclass(frozen=True, slots=True)
class FailoverConfig:
    """When a site changes its mode.

    Attributes:
        failure_threshold: consecutive failures for a step down, at least 1.
        recovery_threshold: consecutive successes for a step up, at least 1.
        check_interval_ms: between two probes of a peer, milliseconds.
        active_active: whether every healthy site takes writes.
        initial_active: without `active_active`, the site that takes writes once it has caught up after its start; every
            other one only by an operator's hand.
    """

    failure_threshold: int = 3
    recovery_threshold: int = 2
    check_interval_ms: int = 5000
    active_active: bool = True
    initial_active: str = ""


@dataclass(frozen=True, slots=True)
class StartupConfig:
    """How a starting site catches up before it takes writes.

    Attributes:
        startup_wait_s: how long it waits for a first peer before it goes on alone, seconds.
    """

    startup_wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class RateLimitConfig:
    """Limits on connection attempts and on batches.

    Attributes:
        max_auth_attempts_per_minute: attempts of one key in any 60 s, at least 1.
        max_batches_per_second: of one site, at least 1.
        max_global_bytes_per_second: over all sites, 0 for no limit.
        lockout_duration_secs: how long a key that passed the limit is refused, seconds.
    """

    max_auth_attempts_per_minute: int = 60
    max_batches_per_second: int = 1000
    max_global_bytes_per_second: int = 0
    lockout_duration_secs: int = 300


@dataclass(frozen=True, slots=True)
class ConflictsConfig:
    """What a site does with conflicts, which every site lists alike.

    Attributes:
        keep_bytes_max: the content that lost which a site keeps, bytes; beyond it the oldest is given up. 0 for no limit.
        command: a program with its arguments that is told of new conflicts; none if empty.
        command_timeout_s: how long one run of it may take, seconds.
    """

    keep_bytes_max: int = 4096 * MIB
    command: tuple[str, ...] = ()
    command_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """All that `cluster.toml` says.

    Attributes:
        path: the file it was read from.
        cluster_id: equal at all sites; a peer with another one is refused.
        shards: 1 to 256, fixed for the life of the cluster.
        keys_dir: where each site's key file lies.
        sites: in ascending order of their ids.
    """

    path: Path
    cluster_id: str
    shards: int
    keys_dir: Path
    sites: tuple[SiteConfig, ...]
    journal: JournalConfig = field(default_factory=JournalConfig)
    replication: ReplicationConfig = field(default_factory=ReplicationConfig)
    failover: FailoverConfig = field(default_factory=FailoverConfig)
    startup: StartupConfig = field(default_factory=StartupConfig)
    rate_limit: RateLimitConfig = field(default_factory=RateLimitConfig)
    conflicts: ConflictsConfig = field(default_factory=ConflictsConfig)

    def site(self, name: str) -> SiteConfig:
        """The site of a name.

        Raises:
            SiteUnknown: there is none; the message lists those there are.
        """
        for site in self.sites:
            if site.name == name:
                return site
        known = ", ".join(site.name for site in self.sites)
        raise SiteUnknown(f"no site is named {name!r} in {self.path}; there are: {known}")

    def by_id(self, site_id: int) -> SiteConfig | None:
        """The site of an id, None if there is none."""
        return next((site for site in self.sites if site.site_id == site_id), None)

    def peers_of(self, site_id: SiteId) -> tuple[SiteConfig, ...]:
        """All sites but one."""
        return tuple(site for site in self.sites if site.site_id != site_id)

    def key_file(self, site: SiteConfig) -> Path:
        """Where a site's keys are."""
        return self.keys_dir / f"{site.name}.json"
