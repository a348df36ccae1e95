"""What can be seen of a cluster from outside: the material on which `claudefs_repl.promises` judges.

The simulation and the experiments with real processes fill in the same values, from the clients' answers, the sites'
files and logs, and what was done to them. Nothing here knows how a site works. All times of one observation are of one
clock, the observer's, in microseconds.

What was not looked at is left empty: a promise that nothing was seen of is *not exercised*, never held.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import JournalId, Op, SiteId

# --- what clients were told


class Outcome(enum.Enum):
    """How a request ended, as its client knows it."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """No answer came: it may or may not have been done."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One entry that a site said is durable.

    Attributes:
        content_crc32: CRC-32 of the bytes that a write or an extended attribute carries; None of other operations.
    """

    journal: JournalId
    shard: int
    seq: int
    inode: int
    op: Op
    content_crc32: int | None = None

    def __str__(self) -> str:
        return f"{self.op.name} of inode {self.inode:x}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request of one client.

    Attributes:
        began_us: when it was sent.
        ended_us: when its answer came, or the client gave up.
        kind: what it was, for people.
        code: why it was refused.
        entries: what was acknowledged of it; also of one that was refused in its middle.
        is_read: whether it only reads.
    """

    site: str
    client: int
    began_us: int
    ended_us: int
    kind: str
    outcome: Outcome
    code: str | None = None
    entries: tuple[Acknowledged, ...] = ()
    is_read: bool = False


# --- what sites hold


@dataclass(frozen=True, slots=True)
class HeldLog:
    """What one site's log holds of one shard of a journal: columns, an element for each entry, as the log has them.

    Attributes:
        trimmed: seq of the last entry that is no longer held; 0 if the log is whole.
        crcs: the checksums that the entries carry; of one whose payload was emptied on its way, that of the original.
        contents: by seq, CRC-32 of the bytes that the entry's payload carries; only of what was decoded.
        damaged: seqs whose checksum is not that of their fields.
    """

    trimmed: int
    seqs: Sequence[int]
    timestamps_us: Sequence[int]
    inodes: Sequence[int]
    ops: Sequence[int]
    crcs: Sequence[int]
    contents: Mapping[int, int] = field(default_factory=dict)
    damaged: tuple[int, ...] = ()

    @property
    def tail(self) -> int:
        """Seq of the last entry; what was trimmed if there is none."""
        return max(self.seqs, default=self.trimmed)


@dataclass(frozen=True, slots=True)
class ShardSums:
    """What one site counts of one shard of a journal.

    Attributes:
        durable: entries in its log, and those trimmed.
        applied: the view's cursor.
        folded: entries that the view counted while it applied them.
        chain: a running checksum over what it applied, equal at two sites that applied the same.
        current: entries of which something still shows.
        lost: others that are on the conflict list.
        superseded: others that took effect and of which nothing shows.
        dead_letters: entries that were put aside.
    """

    durable: int
    applied: int
    folded: int
    chain: int
    current: int
    lost: int
    superseded: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class ConflictSeen:
    """One row of a site's conflict list.

    Attributes:
        id: equal at every site.
        what: the object or name that it is about, for people.
        loser: the entry that lost, in any form that is equal at every site.
        winner: likewise the latest entry that it lost to.
        content_crc32: of the bytes that were fetched as what lost; None if it has none or they were not asked for.
        written_crc32: of the bytes that a client was told are durable and that lost, where they lost as a whole.
        is_content_missing: whether the site said that it does not have them any more.
    """

    id: str
    kind: str
    what: str
    loser: str
    winner: str
    content_crc32: int | None = None
    written_crc32: int | None = None
    is_content_missing: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that a site put aside because it cannot be applied, and told of."""

    journal: JournalId
    shard: int
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class SiteEnd:
    """What one site held at the end, after all faults had been healed and clients had stopped.

    Attributes:
        own: the journal that it writes.
        logs: for each journal one for each shard; None if they were not read.
        received: where its logs end, by its own word.
        applied: what its view holds.
        durable: what of that would survive a loss of power.
        digest: of its tree and conflict list.
        tree: every path and a description or digest of what is there; None if it was not listed.
        conflicts: its list of open conflicts (each site forgets settled ones in its own time); None if it was not asked.
        sums: its accounts, for each journal one for each shard; None if it was not asked.
        dead_letters: its open dead letters; None if it was not asked.
    """

    own: JournalId
    logs: Mapping[JournalId, tuple[HeldLog, ...]] | None = None
    received: Cursors | None = None
    applied: Cursors | None = None
    durable: Cursors | None = None
    digest: str | None = None
    tree: Mapping[str, str] | None = None
    conflicts: tuple[ConflictSeen, ...] | None = None
    sums: Mapping[JournalId, tuple[ShardSums, ...]] | None = None
    dead_letters: tuple[DeadLetter, ...] | None = None


@dataclass(frozen=True, slots=True)
class CursorsSeen:
    """What one site's cursors were at a moment in the run.

    Attributes:
        own: the journal that it writes.
        received: what its logs hold, durably, of every journal, its own among them.
        applied: what its view holds.
        durable: what of that would survive a loss of power; None if it is not known.
        acked: for each peer by name, what that peer has acknowledged of `own`.
        digest: of the tree at `applied`, where it was asked.
        newest_us: of journals of other sites, the greatest stamp that its logs hold.
    """

    time_us: int
    site: str
    own: JournalId
    received: Cursors
    applied: Cursors
    durable: Cursors | None = None
    acked: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    digest: str | None = None
    newest_us: Mapping[JournalId, int] = field(default_factory=dict)


# --- modes


@dataclass(frozen=True, slots=True)
class ModeSeen:
    """A mode begins: of the site itself, or what it thinks of a peer.

    Attributes:
        site: whose word it is.
        about: whose mode it is.
        mode: None when the site's process is not there.
        is_forced: whether an operator set it, also before a start.
    """

    time_us: int
    site: str
    about: str
    mode: SiteMode | None
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class GateClosed:
    """For some time a site refused client writes beside its mode: a full disk, a clock out of bounds, a shutdown."""

    site: str
    reason: str
    began_us: int
    ended_us: int


# --- limits and work


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that has a limit, measured: a queue, a buffer, a table, memory.

    Attributes:
        what: its name with its unit, such as `send_window_bytes`.
        limit: what it may be at most.
    """

    time_us: int
    site: str
    what: str
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that was still there after a site had ended: a task, a file, a socket."""

    site: str
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A site told that it refused a frame, a batch or a connection."""

    time_us: int
    site: str
    code: str


@dataclass(frozen=True, slots=True)
class LinkWork:
    """What one direction between two sites did in the whole run.

    Attributes:
        connections: conduits that were made.
        duplicate_batches: batches that the receiver had already.
        window_batches: the most that may be under way when a conduit ends.
    """

    sender: str
    receiver: str
    connections: int
    duplicate_batches: int
    window_batches: int


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A site was made anew from a peer's snapshot.

    Attributes:
        cause: why it had to be, if not because its disk was lost.
    """

    time_us: int
    site: str
    cause: str | None = None


# --- what was done


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done to the cluster on purpose.

    Attributes:
        kind: for people, such as `kill`, `power`, `partition`.
        ended_us: when it was undone; equal to `began_us` if there was nothing to undo.
        sites: whose process, disk or clock it was done to.
        cuts: pairs (site, peer): probes of the peer by the site could not succeed because of it.
        ends_process: whether the processes of those sites were ended without warning.
        is_power_loss: whether what was not synced at those sites may be gone.
        disturbs_probes: whether a probe may fail because of it.
    """

    kind: str
    began_us: int
    ended_us: int
    sites: tuple[str, ...] = ()
    cuts: tuple[tuple[str, str], ...] = ()
    ends_process: bool = False
    is_power_loss: bool = False
    disturbs_probes: bool = True


@dataclass(frozen=True, slots=True)
class DiskLoss:
    """A site's disk was wiped or put back to an old copy on purpose.

    Attributes:
        others_held: what the others' logs held together at that time, of every journal; an absent journal means nothing.
        held: likewise what the logs on the lost disk held.
    """

    time_us: int
    site: str
    others_held: Cursors
    held: Cursors


@dataclass(frozen=True, slots=True)
class Tampering:
    """A whole frame was altered, replayed or forged on its way to a site, which got it.

    Attributes:
        what: how, for people.
        told_from_us, told_by_us: it must have been told within this time; earlier than it came if what is told is rationed.
        tellers: other sites that may tell it in the site's place.
    """

    time_us: int
    site: str
    what: str
    told_from_us: int
    told_by_us: int
    tellers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogDamage:
    """A log was damaged on purpose below what had been acknowledged, and its site started afterwards.

    Attributes:
        is_refused: whether the site refused to run, with a message.
    """

    time_us: int
    site: str
    what: str
    is_refused: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """How the cluster was configured, and what the observer allows for its own inexactness.

    Attributes:
        probe_timeout_us: how long a probe may take.
        redial_us: the longest pause before a peer that comes back is probed again.
        catch_up_us: what catching up may take beyond the counted checks.
        converge_us: from the end of the last fault until all must be equal.
        tolerance_us: how much later than it happened an event may have been seen.
        max_clock_drift_us: how far ahead of a site's clock a stamp may be.
        clocks_ahead_us: by site, the most that its clock was ahead of the observer's.
        epoch_us: what the sites' clocks show when the observer's shows 0.
    """

    check_interval_us: int = 5_000_000
    failure_threshold: int = 3
    recovery_threshold: int = 2
    probe_timeout_us: int = 5_000_000
    redial_us: int = 5_000_000
    catch_up_us: int = 10_000_000
    converge_us: int = 60_000_000
    tolerance_us: int = 100_000
    max_clock_drift_us: int = 300_000_000
    clocks_ahead_us: Mapping[str, int] = field(default_factory=dict)
    epoch_us: int = 0

    @property
    def detect_us(self) -> int:
        """Within this a peer that is gone is Offline in the eyes of others: 2N + 1 checks and one probe's timeout."""
        return (2 * self.failure_threshold + 1) * self.check_interval_us + self.probe_timeout_us

    @property
    def recover_us(self) -> int:
        """Within this a peer that is back is Active in the eyes of others: 2M + 1 checks after it was dialled again."""
        checks = (2 * self.recovery_threshold + 1) * self.check_interval_us
        return checks + self.probe_timeout_us + self.redial_us + self.catch_up_us


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that was seen of one run.

    Attributes:
        sites: their ids by their names.
        began_us: when the run began.
        healed_us: when the last fault was over and clients had stopped.
        converged_us: when all sites were seen to hold the same; None if that did not come.
        ended_us: when the observer stopped looking.
        ends: what each site held at the end, by name.
        attempts: in the order in which they ended.
        submitted: by site, CRC-32 of every content that clients asked it to write, whatever came of it; None if not kept.
        cursors: in the order of time, by site in the order in which they were taken.
        modes: in the order of time. Which mode a site has, and what it thinks of each peer, from its start.
        gates: None if it is not known when they were closed.
        expected_tree: paths that no fault or concurrency can have taken away, with their descriptions as in
            `SiteEnd.tree`: what a tree must show of acknowledged writes.
        expected_conflicts: what conflict lists must have, because it was provoked: kind, and text found in `what`.
        peaceful: objects that sites changed only one after another, as text found in a conflict's `what`: no conflict is
            about them.
        dead_letters_planted: entries that cannot be applied, put into a journal on purpose.
        planted_refused: those of them that were told as not journaled again, when their site was made anew.
    """

    sites: Mapping[str, SiteId]
    began_us: int = 0
    healed_us: int = 0
    converged_us: int | None = None
    ended_us: int = 0
    limits: Limits = field(default_factory=Limits)
    ends: Mapping[str, SiteEnd] = field(default_factory=dict)
    attempts: Sequence[Attempt] = ()
    submitted: Mapping[str, frozenset[int]] | None = None
    cursors: Sequence[CursorsSeen] = ()
    modes: Sequence[ModeSeen] = ()
    gates: Sequence[GateClosed] | None = None
    measures: Sequence[Measure] = ()
    leftovers: Sequence[Leftover] | None = None
    rejections: Sequence[Rejection] = ()
    work: Sequence[LinkWork] = ()
    bootstraps: Sequence[Bootstrap] | None = None
    faults: Sequence[Fault] = ()
    disk_losses: Sequence[DiskLoss] = ()
    tampering: Sequence[Tampering] = ()
    log_damage: Sequence[LogDamage] = ()
    expected_tree: Mapping[str, str] = field(default_factory=dict)
    expected_conflicts: Sequence[tuple[str, str]] = ()
    peaceful: Sequence[str] = ()
    dead_letters_planted: int = 0
    planted_refused: int = 0
