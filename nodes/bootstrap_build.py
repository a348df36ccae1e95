"""Building a site anew beside its old data, and the switch from the one to the other, which no crash can cut in half."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import Cursors, cursor_of, equal
from claudefs_repl.clock import HybridClock
from claudefs_repl.error import WorldError
from claudefs_repl.journal import JournalId, Op, SiteId
from claudefs_repl.reincarnation import Holdings, log_begin
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.bootstrap_fetch import BOOTSTRAP_DIR, PART_FILE, Fetch
from nodes.bootstrap_old import Closed, OldLogs, carry_over, write_closed
from nodes.entry_log import EntryLog
from nodes.evidence import Evidence, write_evidence
from nodes.journals import LogSettings
from nodes.recovery import STORE_FILE, write_identity
from nodes.seams import Entropy, File, Storage, StoreRunner
from nodes.small_json import parse_json
from nodes.snapshots import SNAPSHOTS_DIR, STORE_NAME, Snapshot, remove_store, write_manifest
from nodes.store.local import StampSource
from nodes.store.refold import RefusedEntry
from nodes.store.sqlite_store import SqliteStore

NEW_DIR = f"{BOOTSTRAP_DIR}/new"
SWITCH_FILE = f"{BOOTSTRAP_DIR}/switch.json"
"""There from the moment at which the new data is whole and the old is given up, until the new is in its place."""
DONE_DIR = f"{BOOTSTRAP_DIR}.done"
SNAPSHOT_NAME = f"{1:012d}"


class Beneath:
    """A storage's directory as a storage of its own."""

    def __init__(self, storage: Storage, directory: str) -> None:
        self._storage = storage
        self._directory = directory

    def _path(self, path: str) -> str:
        return self._directory if path == "." else f"{self._directory}/{path}"

    async def create(self, path: str, size: int) -> File:
        """As `Storage.create`."""
        return await self._storage.create(self._path(path), size)

    async def open(self, path: str) -> File:
        """As `Storage.open`."""
        return await self._storage.open(self._path(path))

    async def read_file(self, path: str) -> bytes | None:
        """As `Storage.read_file`."""
        return await self._storage.read_file(self._path(path))

    async def replace_file(self, path: str, content: bytes) -> None:
        """As `Storage.replace_file`."""
        await self._storage.replace_file(self._path(path), content)

    async def names(self, path: str) -> list[str]:
        """As `Storage.names`."""
        return await self._storage.names(self._path(path))

    async def size(self, path: str) -> int:
        """As `Storage.size`."""
        return await self._storage.size(self._path(path))

    async def make_dir(self, path: str) -> None:
        """As `Storage.make_dir`."""
        await self._storage.make_dir(self._path(path))

    async def remove(self, path: str) -> None:
        """As `Storage.remove`."""
        await self._storage.remove(self._path(path))

    async def rename(self, old: str, new: str) -> None:
        """As `Storage.rename`."""
        await self._storage.rename(self._path(old), self._path(new))

    async def copy(self, source: str, target: str) -> None:
        """As `Storage.copy`."""
        await self._storage.copy(self._path(source), self._path(target))

    async def sync_dir(self, path: str) -> None:
        """As `Storage.sync_dir`."""
        await self._storage.sync_dir(self._path(path))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new site is built from, beside a snapshot and the old logs.

    Attributes:
        settings: of its logs.
        own: its new journal.
        closed: the site's journals that are closed now, in this run and in earlier ones.
        held: for each shard up to which seq the old own log has what the peers hold of that journal and may go on to hold;
            what it has behind that is journaled again.
        upto: for each shard the last seq of every other old log that is carried over.
        peers: what those hold that were asked, by their ids.
        floor_us: every new stamp is above it.
        wall_us: the time of day.
    """

    cluster: ClusterConfig
    site: SiteConfig
    settings: LogSettings
    own: JournalId
    closed: Closed
    held: tuple[int, ...]
    upto: Cursors
    peers: Mapping[SiteId, Holdings]
    floor_us: int
    wall_us: int


@dataclass(frozen=True, slots=True)
class Built:
    """What became of the rest of the old journal.

    Attributes:
        journaled_again: entries of it that are in the new journal.
        refused: those that did not fit.
        refused_file: which file of the data directory keeps them, None if there are none.
    """

    journaled_again: int
    refused: Sequence[RefusedEntry]
    refused_file: str | None


async def build(
    plan: Plan,
    storage: Storage,
    entropy: Entropy,
    fetch: Fetch,
    old: OldLogs,
    *,
    store_runner: StoreRunner | None = None,
) -> Built:
    """Make the whole new content of the data directory in NEW_DIR, durable; what an earlier run left there goes first.

    Raises:
        WorldError: the fetched store is not what its peer said.
        DiskFull: there is no room beside the old data.
    """
    await storage.remove(NEW_DIR)
    new = Beneath(storage, NEW_DIR)
    snapshot = Snapshot(SNAPSHOT_NAME, fetch.cursors, fetch.sha256)
    await new.make_dir(f"{SNAPSHOTS_DIR}/{SNAPSHOT_NAME}")
    await storage.copy(PART_FILE, f"{NEW_DIR}/{snapshot.store_path}")
    await write_manifest(new, snapshot)
    await new.copy(snapshot.store_path, STORE_FILE)
    place = plan.site.data_dir / NEW_DIR / STORE_FILE
    store = await SqliteStore.open(place, shard_count=plan.cluster.shards, runner=store_runner)
    try:
        if not equal(store.applied, snapshot.applied):
            raise WorldError(f"the fetched {STORE_NAME} has applied {store.applied}, not what its peer said")
        durable = await _make_replicas(plan, new, entropy, store, old)
        own = await plan.settings.create(new, plan.own, entropy)
        try:
            journaled_again, refused = await _journal_again(plan, store, own, old)
            durable[plan.own] = own.tails
        finally:
            await own.close()
        await store.make_durable()
    finally:
        await store.close()
    refused_file = None
    if refused and old.own is not None:
        refused_file = f"refused-{old.own.journal.incarnation:016x}.jsonl"
        await new.replace_file(refused_file, _refused_lines(refused))
    await write_closed(new, plan.closed)
    await write_evidence(new, Evidence(durable=durable))
    await write_identity(new, plan.cluster, plan.site, plan.own, is_ready=True)
    return Built(journaled_again, refused, refused_file)


async def _make_replicas(
    plan: Plan, new: Storage, entropy: Entropy, store: SqliteStore, old: OldLogs
) -> dict[JournalId, tuple[int, ...]]:
    """A log for each journal, which goes on where the snapshot ends, with what only the old logs may have."""
    durable: dict[JournalId, tuple[int, ...]] = {}
    logs = {log.journal: log for log in old.all()}
    silent = {peer.site_id for peer in plan.cluster.peers_of(plan.site.site_id)} - set(plan.peers)
    for journal in sorted({*store.applied, *logs}):
        after = cursor_of(store.applied, journal, plan.cluster.shards)
        upto = None
        if journal in logs:
            had = logs[journal]
            upto = tuple(map(min, plan.held, had.tails)) if had is old.own else plan.upto[journal]
            after = log_begin(journal, applied=after, peers=plan.peers, silent=silent, firsts=had.firsts, tails=upto)
        log = await plan.settings.create(new, journal, entropy, after=after)
        try:
            if upto is not None:
                await carry_over(logs[journal], log, store, upto=upto)
            durable[journal] = log.tails
        finally:
            await log.close()
    return durable


async def _journal_again(plan: Plan, store: SqliteStore, own: EntryLog, old: OldLogs) -> tuple[int, list[RefusedEntry]]:
    """Fold and journal the rest of the old own journal; how many entries that were, and those that did not fit."""
    clock = HybridClock(floor_us=max(plan.floor_us, store.applied_timestamp_us))
    source = StampSource(plan.own, plan.cluster.shards, (1,) * plan.cluster.shards, clock, plan.wall_us)
    numbers: dict[int, int] = {}
    refused: list[RefusedEntry] = []
    count = 0
    async with aclosing(old.rest(plan.held)) as rest:
        async for entries in rest:
            async with store.transaction() as transaction:
                done = await transaction.refold(entries, source, numbers)
                await own.append(done.blocks)
                await transaction.commit()
            source = replace(source, next_seqs=done.next_seqs)
            count += len(entries) - len(done.refused)
            refused += done.refused
    return count, refused


def _refused_lines(refused: Sequence[RefusedEntry]) -> bytes:
    """One JSON object a line, with all that the entry was."""
    lines = []
    for one in refused:
        entry = one.entry
        fields = {
            "shard": entry.shard,
            "seq": entry.seq,
            "op": Op(entry.op).name if entry.op in set(Op) else entry.op,
            "inode": entry.inode,
            "timestamp_us": entry.timestamp_us,
            "payload_base64": base64.b64encode(entry.payload).decode(),
            "reason": one.reason,
        }
        lines.append(json.dumps(fields) + "\n")
    return "".join(lines).encode()


async def begin_switch(storage: Storage, report: Mapping[str, Any]) -> None:
    """From here on the new data is the site's; the report tells what became of the old when `finish_switch` is done."""
    await storage.replace_file(SWITCH_FILE, json.dumps(report).encode())


async def finish_switch(storage: Storage) -> dict[str, Any] | None:
    """Put new data that was built whole into the place of the old, also after a crash in the middle of it.

    Returns:
        the report that the bootstrap left, None if no switch was begun.

    Raises:
        WorldError: the new data is in its place, but the report cannot be understood.
    """
    await storage.remove(DONE_DIR)
    content = await storage.read_file(SWITCH_FILE)
    if content is None:
        return None
    waiting = await storage.names(NEW_DIR)
    if STORE_FILE in waiting:
        # An old WAL beside a new database would be taken for its own.
        await remove_store(storage, STORE_FILE)
    for name in waiting:
        await storage.remove(name)
        await storage.sync_dir(".")
        await storage.rename(f"{NEW_DIR}/{name}", name)
    # In one step, so that no crash leaves a fetched snapshot behind that nobody will ever ask for.
    await storage.rename(BOOTSTRAP_DIR, DONE_DIR)
    await storage.remove(DONE_DIR)
    return _parse_report(content)


def _parse_report(content: bytes) -> dict[str, Any]:
    try:
        report: dict[str, Any] = parse_json(content)
        if not _REPORTED.issubset(report):
            raise ValueError("a field is missing")
        if not all(map(_LOST.issubset, report["lost"])) or not all(map(_REFUSED.issubset, report["refused"])):
            raise ValueError("a field of what was lost is missing")
    except (ValueError, KeyError, TypeError) as error:
        raise WorldError(
            f"the bootstrap is done, but what {SWITCH_FILE} told of it cannot be read ({error!r}): which entries were lost "
            "or not journaled again is not known; start the site again to go on without it"
        ) from error
    return report


_REPORTED = frozenset({"from", "journal", "former_journal", "fetched_bytes", "journaled_again"})
_LOST = frozenset({"journal", "shard", "first_seq", "last_seq"})
_REFUSED = frozenset({"shard", "seq", "reason"})


def log_bootstrap(report: Mapping[str, Any], logger: FilteringBoundLogger) -> None:
    """Log what a bootstrap came to, once its switch is done."""
    for one in report["lost"]:
        logger.error(
            "entries_lost",
            journal=one["journal"],
            shard=one["shard"],
            first_seq=one["first_seq"],
            last_seq=one["last_seq"],
        )
    for one in report["refused"]:
        logger.warning(
            "entry_not_journaled_again",
            journal=report["former_journal"],
            shard=one["shard"],
            seq=one["seq"],
            reason=one["reason"],
        )
    logger.info(
        "bootstrapped",
        peer=report["from"],
        journal=report["journal"],
        fetched_bytes=report["fetched_bytes"],
        journaled_again=report["journaled_again"],
        refused=len(report["refused"]),
    )
