"""The housekeeper: samples of the lag, evidence of what others hold, snapshots, trimming, and the way out of a full disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import Cursors, covers, cursor_of, join
from claudefs_repl.error import CallerError, DiskFull
from claudefs_repl.fanout import retention_floor
from claudefs_repl.health import LagSample
from claudefs_repl.incarnations import Incarnations
from claudefs_repl.journal import SiteId
from claudefs_repl.stability import StableFrontier
from claudefs_repl.topology import JournalConfig
from nodes.conflict_keeper import ConflictKeeper
from nodes.entry_log import EntryLog
from nodes.evidence import Evidence, write_evidence
from nodes.journals import Journals
from nodes.peers import PeerRecord
from nodes.seams import Storage
from nodes.snapshots import Snapshot, is_snapshot_name, read_snapshot, take_snapshot
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import DISK_FULL, WriteGate

TICK_S = 1.0
EVIDENCE_EVERY_TICKS = 5
"""Evidence may be a few seconds old: it only widens what recovery can tell from a torn tail."""
DURABLE_EVERY_TICKS = 5
"""How often the store's own log is synced: a power loss costs as much applying again, nothing else."""
RESERVE_FILE = "reserve"
PROBE_FILE = "reserve.probe"
FORGET_S = 0.1
"""A tenth of each round at most goes to forgetting, so that it never holds writers up for long."""
START_ROOM_BYTES = 512 * 1024
"""What a start writes before anything can be trimmed: the store's shared index and the first pages of its WAL, log lines."""
HOLD_S = 600.0
"""A snapshot that a peer fetches is kept for so long after each of its questions: ten minutes without one is a peer that
has gone away, and begins again."""
STALLED_S = 10.0
"""A connected link that has lag and no ack for so long is an event of its own."""


async def make_room_to_start(storage: Storage, gate: WriteGate, logger: FilteringBoundLogger) -> None:
    """On a disk too full for a start, give the reserve up and close the gate; the housekeeper opens it."""
    try:
        await _probe_room(storage, START_ROOM_BYTES)
    except DiskFull as full:
        await storage.remove(RESERVE_FILE)
        gate.close_for_disk(full, logger)


async def _probe_room(storage: Storage, room_bytes: int) -> None:
    """Return if so much can be allocated now.

    Raises:
        DiskFull: it cannot.
    """
    await storage.remove(PROBE_FILE)  # a crash may have left one
    probe = await storage.create(PROBE_FILE, room_bytes)
    await probe.close()
    await storage.remove(PROBE_FILE)


@dataclass(slots=True)
class HousekeeperStats:
    """Numbers for status. Owned by the housekeeper."""

    snapshots: int = 0
    trimmed_bytes: int = 0
    snapshot_applied: Cursors | None = None
    stable: Cursors = field(default_factory=dict)


class Housekeeper:
    """Periodic work of one site that nobody waits for."""

    def __init__(
        self,
        *,
        storage: Storage,
        root: Path,
        config: JournalConfig,
        shard_count: int,
        journals: Journals,
        incarnations: Incarnations,
        store: SqliteStore,
        peers: Mapping[SiteId, PeerRecord],
        gate: WriteGate,
        snapshot: Snapshot | None,
        keeper: ConflictKeeper,
        logger: FilteringBoundLogger,
    ) -> None:
        self._storage = storage
        self._root = root
        self._config = config
        self._limit = config.retention_max_bytes
        self._shard_count = shard_count
        self._journals = journals
        self._incarnations = incarnations
        self._store = store
        self._peers = peers
        self._gate = gate
        self._snapshot = snapshot
        self._keeper = keeper
        self._logger = logger
        self._bytes_at_snapshot = 0 if snapshot is None else self._applied_bytes(snapshot.applied)
        self._snapshotting = trio.Lock()
        self._held_until_s: dict[str, float] = {}
        self._stalled: set[SiteId] = set()
        self._written = Evidence()
        self._frontier = StableFrontier(peers)
        self._current = incarnations.current
        self._is_swept = True
        self.stats = HousekeeperStats(snapshot_applied=None if snapshot is None else snapshot.applied)

    async def run(self) -> None:
        """Do the rounds for ever."""
        try:
            if not self._gate.is_closed(DISK_FULL):
                await self._make_reserve()
        except DiskFull as full:
            self._gate.close_for_disk(full, self._logger)
        tick = 0
        while True:
            await trio.sleep(TICK_S)
            tick += 1
            self._sample_lag()
            if self._gate.is_closed(DISK_FULL):
                await self._recover_disk()
                continue
            try:
                if tick % EVIDENCE_EVERY_TICKS == 0 or self._gate.lasting != self._written.refusing:
                    await self.write_evidence()
                if tick % DURABLE_EVERY_TICKS == 0:
                    await self._store.make_durable()
                applied_bytes = self._applied_bytes(self._store.applied)
                if applied_bytes - self._bytes_at_snapshot >= self._config.snapshot_every_bytes:
                    async with self._snapshotting:
                        await self._take_snapshot()
                await self._trim()
                if await self._keeper.keep_within_limit():
                    # What was kept for these conflicts alone goes with the next sweep.
                    self._is_swept = False
                await self._forget()
            except DiskFull as full:
                self._gate.close_for_disk(full, self._logger)

    async def write_evidence(self) -> None:
        """Persist what is durable here and was told to others, and what peers acknowledged of the own journal."""
        durable = self._journals.received()
        own = self._journals.own.journal
        acked: dict[SiteId, tuple[int, ...]] = {}
        for site_id, record in self._peers.items():
            if len(record.acked) == self._shard_count and not record.ahead:
                acked[site_id] = record.acked
                durable[own] = join(durable[own], record.acked)
        told = {journal: seqs for record in self._peers.values() for journal, seqs in record.told.items()}
        evidence = Evidence(durable, acked, self._incarnations.current, told, self._gate.lasting)
        if evidence != self._written:
            await write_evidence(self._storage, evidence)
            self._written = evidence

    def _applied_bytes(self, applied: Cursors) -> int:
        """Log bytes that a view with these cursors has folded: a snapshot is worth what it lets go, not what came in."""
        return sum(log.position_of(cursor_of(applied, log.journal, log.shard_count)) for log in self._journals.all())

    def _sample_lag(self) -> None:
        now_s = trio.current_time()
        tails = sum(self._journals.own.tails)
        for site_id, record in self._peers.items():
            acked = sum(record.acked)
            record.lag.add(LagSample(now_s, max(0, tails - acked), acked))
            stalled = record.connected_at_s is not None and tails > acked and now_s - record.last_ack_at_s > STALLED_S
            if stalled and site_id not in self._stalled:
                self._stalled.add(site_id)
                self._logger.warning("link_stalled", peer=record.site.name, lag_entries=tails - acked)
            elif not stalled:
                self._stalled.discard(site_id)

    async def snapshot_covering(self, needs: Cursors, *, begun: object = None) -> Snapshot:
        """A local snapshot that has applied what is needed; it is held as `hold` says.

        That named `begun` is the first choice, because a part of it was fetched already; then the newest; else a new one.

        Raises:
            CallerError: this site itself has not applied that much.
            DiskFull: there is no room for a new one.
        """
        async with self._snapshotting:
            kept = await read_snapshot(self._storage, begun) if is_snapshot_name(begun) else None
            if kept is not None and covers(kept.applied, needs):
                self.hold(kept.name)
                return kept
            if self._snapshot is None or not covers(self._snapshot.applied, needs):
                if not covers(self._store.applied, needs):
                    raise CallerError("this site has not applied yet what the other sites' logs no longer hold")
                await self._take_snapshot()
            assert self._snapshot is not None
            self.hold(self._snapshot.name)
            return self._snapshot

    def hold(self, name: str) -> None:
        """Keep a snapshot for a while although newer ones come: a peer fetches it."""
        self._held_until_s[name] = trio.current_time() + HOLD_S

    async def _take_snapshot(self) -> None:
        started_s = trio.current_time()
        self._held_until_s = {name: until_s for name, until_s in self._held_until_s.items() if until_s > started_s}
        snapshot = await take_snapshot(self._storage, self._root, self._store, keep=self._held_until_s)
        # Logs are cut below it next: the store itself must not fall behind that when the power goes.
        await self._store.make_durable()
        self._snapshot = snapshot
        self._bytes_at_snapshot = self._applied_bytes(snapshot.applied)
        self.stats.snapshots += 1
        self.stats.snapshot_applied = self._snapshot.applied
        self._logger.info(
            "snapshot_taken", name=self._snapshot.name, duration_ms=round((trio.current_time() - started_s) * 1000)
        )

    async def _forget(self) -> None:
        """Let go what was kept only to judge concurrent entries, a part of a sweep in each round."""
        for site_id, record in self._peers.items():
            if record.word is not None:
                self._frontier.hear(site_id, record.word)
        if self._has_reincarnated():
            self._frontier.restart()
        cut_off = [site_id for site_id, record in self._peers.items() if record.cut_off]
        stable = self._frontier.advance(self._store.applied, cut_off=cut_off)
        if stable == self.stats.stable and self._is_swept:
            return
        self.stats.stable = stable
        until_s = trio.current_time() + FORGET_S
        self._is_swept = False
        while not self._is_swept and trio.current_time() < until_s:
            self._is_swept = await self._store.forget(stable)

    def _has_reincarnated(self) -> bool:
        """Whether a peer has been met with another journal since this was last asked."""
        before, self._current = self._current, self._incarnations.current
        return any(before.get(site_id, incarnation) != incarnation for site_id, incarnation in self._current.items())

    async def _trim(self) -> None:
        if self._snapshot is None:
            return
        told = {site_id: record.received for site_id, record in self._peers.items()}
        for log in self._journals.all():
            beyond = [site_id for site_id, cursors in told.items() if self._bytes_behind(log, cursors) > self._limit]
            if log is self._journals.own:
                self._cut_off(beyond, log)
            floor = retention_floor(
                journal=log.journal,
                shard_count=self._shard_count,
                snapshot=self._snapshot.applied,
                peers=told,
                cut_off=beyond,
                is_former=self._incarnations.is_former(log.journal),
            )
            if freed := await log.trim(floor):
                self.stats.trimmed_bytes += freed
                self._logger.info("log_trimmed", journal=str(log.journal), bytes=freed, floor=list(floor))

    def _bytes_behind(self, log: EntryLog, cursors: Cursors) -> int:
        """How many bytes of a log are kept for a peer with these cursors."""
        return log.position - log.position_of(cursor_of(cursors, log.journal, self._shard_count))

    def _cut_off(self, beyond: Sequence[SiteId], own: EntryLog) -> None:
        """Tell, once, that the own log keeps nothing more for a peer: what it lacks is never skipped, it must bootstrap."""
        for site_id in beyond:
            record = self._peers[site_id]
            if not record.cut_off:
                record.cut_off = True
                self._logger.error(
                    "peer_cut_off", peer=record.site.name, log_bytes=own.bytes_on_disk, limit_bytes=self._limit
                )

    async def _make_reserve(self) -> None:
        if RESERVE_FILE not in await self._storage.names("."):
            file = await self._storage.create(RESERVE_FILE, self._config.reserve_bytes)
            await file.close()

    async def _recover_disk(self) -> None:
        """Give up the reserve, trim with it, and open the gate once there is room for a segment and a new reserve."""
        await self._storage.remove(RESERVE_FILE)
        try:
            await self._trim()
            await _probe_room(self._storage, self._config.reserve_bytes + self._config.segment_bytes)
            await self._make_reserve()
        except DiskFull:
            return
        if self._gate.open(DISK_FULL):
            self._logger.info("disk_recovered")
