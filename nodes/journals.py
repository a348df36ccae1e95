"""All journals of a site: its own and the replicas of its peers', each one a log on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from claudefs_repl.block import Block
from claudefs_repl.checkpoint import Cursors
from claudefs_repl.conduit import beyond
from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from nodes.entry_log import EntryLog
from nodes.seams import Entropy, Storage
from nodes.wakeup import Wakeup

JOURNALS_DIR = "journals"
JOURNALS_OF_ORIGIN_MAX = 64
"""A site begins a journal when its disk was lost, and each costs its peers a segment: a site that makes one after another
is refused before it has filled their disks."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What every log of a site is made with."""

    cluster_id: str
    shard_count: int
    segment_bytes: int

    async def create(
        self, storage: Storage, journal: JournalId, entropy: Entropy, *, after: tuple[int, ...] = ()
    ) -> EntryLog:
        """A new, empty log; what is up to `after` it will never hold."""
        return await EntryLog.create(
            storage=storage,
            journal=journal,
            cluster_id=self.cluster_id,
            shard_count=self.shard_count,
            segment_bytes=self.segment_bytes,
            entropy=entropy,
            after=after,
        )

    async def open(self, storage: Storage, journal: JournalId, entropy: Entropy, evidence: Cursors) -> EntryLog:
        """A log that is there, recovered; `evidence` is what was once known to be durable.

        Raises:
            WalCorrupted: it is damaged where it was known to be durable.
        """
        return await EntryLog.open(
            storage=storage,
            journal=journal,
            cluster_id=self.cluster_id,
            shard_count=self.shard_count,
            segment_bytes=self.segment_bytes,
            entropy=entropy,
            evidence=evidence.get(journal, ()),
        )

    async def salvage(self, storage: Storage, journal: JournalId, entropy: Entropy) -> EntryLog | None:
        """What is whole of a damaged log, only to be read; None if nothing is."""
        return await EntryLog.salvage(
            storage=storage,
            journal=journal,
            cluster_id=self.cluster_id,
            shard_count=self.shard_count,
            segment_bytes=self.segment_bytes,
            entropy=entropy,
        )


class Journals:
    """The logs by journal. The own log has one appending task, the journal writer; replicas grow through `append`.

    Attributes:
        own: this site's log.
        replicas: every other journal that this site holds.
        replica_grew: notified after each append to a replica; the applier waits for it.
    """

    def __init__(self, storage: Storage, settings: LogSettings, entropy: Entropy, own: EntryLog) -> None:
        self._storage = storage
        self._settings = settings
        self._entropy = entropy
        self.own = own
        self.replicas: dict[JournalId, EntryLog] = {}
        self._creating = trio.Lock()
        self._appending: dict[JournalId, trio.Lock] = {}
        self.replica_grew = Wakeup()

    @classmethod
    async def open(
        cls,
        *,
        storage: Storage,
        settings: LogSettings,
        entropy: Entropy,
        own: JournalId,
        is_new: bool,
        evidence: Cursors,
    ) -> Journals:
        """Recover every log; the own one is made if the site is new.

        Raises:
            WalCorrupted: a log is damaged where it was known to be durable.
        """
        if is_new:
            own_log = await settings.create(storage, own, entropy)
        else:
            own_log = await settings.open(storage, own, entropy, evidence)
        journals = cls(storage, settings, entropy, own_log)
        found = {parse_journal_dir(name) for name in await storage.names(JOURNALS_DIR)}
        # A replica that was told to be durable and is not here must be missed, so it is opened like the others.
        for journal in sorted({journal for journal in found if journal is not None} | set(evidence)):
            if journal != own:
                journals.replicas[journal] = await settings.open(storage, journal, entropy, evidence)
        return journals

    async def replica(self, journal: JournalId) -> EntryLog:
        """The log of a peer's journal, made if it is the first time that this site hears of it.

        Raises:
            PeerRefused: the peer has made too many.
            DiskFull: there is no room for a segment.
        """
        async with self._creating:
            log = self.replicas.get(journal)
            if log is None:
                if sum(other.origin == journal.origin for other in self.replicas) >= JOURNALS_OF_ORIGIN_MAX:
                    raise PeerRefused(
                        "too_many_journals",
                        f"site {journal.origin} has begun {JOURNALS_OF_ORIGIN_MAX} journals already",
                    )
                log = await self._settings.create(self._storage, journal, self._entropy)
                self.replicas[journal] = log
            return log

    async def append(self, log: EntryLog, blocks: Sequence[Block]) -> list[Block]:
        """Make what a replica does not have yet of some blocks durable in it; returns that.

        Several peers may pass on the same former journal at once: they append one after another, each what is new by then.

        Raises:
            DiskFull, SyncFailed, OSError: as `EntryLog.append`.
        """
        async with self._appending.setdefault(log.journal, trio.Lock()):
            new = beyond(blocks, log.tails)
            await log.append(new)
        self.replica_grew.notify()
        return new

    def all(self) -> tuple[EntryLog, ...]:
        """Every log, the own one first, the others by journal."""
        return (self.own, *(self.replicas[journal] for journal in sorted(self.replicas)))

    def received(self) -> dict[JournalId, tuple[int, ...]]:
        """What is durable here, of every journal."""
        return {log.journal: log.tails for log in self.all()}

    async def close(self) -> None:
        """Close every log."""
        for log in self.all():
            await log.close()


def parse_journal_dir(name: str) -> JournalId | None:
    """The journal that a directory's name tells, None if it is not such a name."""
    origin, _, incarnation = name.partition("-")
    try:
        return JournalId(SiteId(int(origin)), Incarnation(int(incarnation, 16)))
    except ValueError:
        return None
