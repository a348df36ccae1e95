"""What a site does before anybody hears of it: identity, logs, store, and the view brought up to its own journal."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import cursor_of
from claudefs_repl.error import ConfigInvalid, DiskFull, WalCorrupted, WorldError
from claudefs_repl.incarnations import Incarnations
from claudefs_repl.journal import Incarnation, JournalId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.applier import Applier
from nodes.entry_log import GapInLog
from nodes.evidence import Evidence, read_evidence, write_evidence
from nodes.journals import JOURNALS_DIR, Journals, LogSettings
from nodes.lost_disk import WAS_EMPTY
from nodes.runtime import NEW_NAME
from nodes.seams import Entropy, Storage, StoreRunner
from nodes.small_json import parse_json
from nodes.snapshots import SNAPSHOTS_DIR, Snapshot, newest_snapshot, remove_store, restore_snapshot
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import LOST, WriteGate

IDENTITY_FILE = "site.json"
STORE_FILE = "view.sqlite"
FORMAT = 1


@dataclass(slots=True)
class Recovered:
    """A site's durable state, ready to serve."""

    journals: Journals
    incarnations: Incarnations
    store: SqliteStore
    snapshot: Snapshot | None
    replayed: int
    evidence: Evidence

    async def close(self) -> None:
        """Close the store and the logs."""
        await self.store.close()
        await self.journals.close()


async def recover(
    *,
    cluster: ClusterConfig,
    site: SiteConfig,
    storage: Storage,
    entropy: Entropy,
    gate: WriteGate,
    logger: FilteringBoundLogger,
    rebuild: bool = False,
    store_runner: StoreRunner | None = None,
) -> Recovered:
    """Read, check and sync everything on disk; fold into the view what its own journal has and the view has not.

    With `rebuild` the view is made anew, from the newest local snapshot and the logs after it, all of them.

    Raises:
        ConfigInvalid: the data directory is another site's, or of another cluster or format.
        WalCorrupted: a log is damaged where it was known to be durable, or shorter than what was told of it.
        WorldError: the view cannot be made from what is here.
        DiskFull: there is no room to open what is here, or to make it anew.
    """
    own = await read_identity(cluster, site, storage)
    is_new = own is None
    if own is None:
        own = await _begin_journal(cluster, site, storage, entropy)
    evidence = await _take_evidence(cluster, site, storage, gate, logger, is_new=is_new)
    journals = await Journals.open(
        storage=storage,
        settings=LogSettings(cluster.cluster_id, cluster.shards, cluster.journal.segment_bytes),
        entropy=entropy,
        own=own,
        is_new=is_new,
        evidence=evidence.durable,
    )
    if is_new:
        await write_identity(storage, cluster, site, own, is_ready=True)
        await storage.remove(NEW_NAME)
        logger.info("journal_created", journal=str(own))
    else:
        for log in journals.all():
            _log_recovery(log.journal, log.recovered, logger)
    incarnations = Incarnations(own, evidence.current)
    snapshot = await newest_snapshot(storage)
    store = await _open_store(site, storage, store_runner, journals, snapshot, cluster.shards, rebuild=rebuild)
    _check_not_ahead(site, store, journals)
    started_s = trio.current_time()
    applier = Applier(journals=journals, store=store, share=1.0, gate=gate, logger=logger)
    try:
        replayed = 0
        for log in journals.all():
            if rebuild or log is journals.own:
                replayed += await applier.catch_up(log)
            else:
                # Applied later; whether it can be is told now.
                log.reader(cursor_of(store.applied, log.journal, log.shard_count))
    except DiskFull as full:
        if rebuild:
            raise
        # The journal writer brings the view up to its journal before it takes anything, and tries until it can.
        gate.close_for_disk(full, logger)
    except GapInLog as gap:
        raise WorldError(
            f"site {site.name}: the view lacks entries that the logs no longer hold ({gap}); rebuild it from its newest "
            f"snapshot with: claudefs-repl rebuild {site.name}"
        ) from gap
    if replayed:
        duration_ms = round((trio.current_time() - started_s) * 1000)
        logger.info("view_rebuilt" if rebuild else "replayed", entries=replayed, duration_ms=duration_ms)
    return Recovered(journals, incarnations, store, snapshot, replayed, evidence)


async def _take_evidence(
    cluster: ClusterConfig,
    site: SiteConfig,
    storage: Storage,
    gate: WriteGate,
    logger: FilteringBoundLogger,
    *,
    is_new: bool,
) -> Evidence:
    """What the directory tells beside the logs; the gate is closed for what has to be overcome first."""
    evidence = await read_evidence(storage)
    if is_new and cluster.peers_of(site.site_id) and await storage.read_file(NEW_NAME) is None:
        # Durable before the site counts as one that has run: the next start knows no more of its past than this one.
        evidence = replace(evidence, refusing={**evidence.refusing, LOST: WAS_EMPTY})
        await write_evidence(storage, evidence)
    for name, why in evidence.refusing.items():
        gate.close(name, why)
    if LOST in evidence.refusing:
        logger.warning("past_unknown", detail=evidence.refusing[LOST])
    return evidence


async def read_identity(cluster: ClusterConfig, site: SiteConfig, storage: Storage) -> JournalId | None:
    """Whose data directory this is: the site's own journal, None if the site has not begun one.

    Raises:
        ConfigInvalid: it is another site's, or of another cluster, shard count or format.
        WorldError: the file cannot be understood.
    """
    content = await storage.read_file(IDENTITY_FILE)
    where = site.data_dir / IDENTITY_FILE
    if content is None:
        return None
    try:
        identity = parse_json(content)
        found = {key: identity[key] for key in _THING}
        incarnation = Incarnation(int(identity["incarnation"], 16))
        is_ready = bool(identity["is_ready"])
    except (ValueError, KeyError, TypeError) as error:
        raise WorldError(f"{where} cannot be read ({error!r}); restore it from a copy of this directory") from error
    wanted = {
        "format": FORMAT,
        "cluster_id": cluster.cluster_id,
        "site_id": site.site_id,
        "shards": cluster.shards,
    }
    for key, value in wanted.items():
        if found[key] != value:
            raise ConfigInvalid(
                [
                    f"{site.data_dir} belongs to another {_THING[key]}: {where} has {key} {found[key]!r}, "
                    f"{cluster.path} wants {value!r}; give site {site.name} a data_dir of its own"
                ]
            )
    return JournalId(site.site_id, incarnation) if is_ready else None


async def _begin_journal(cluster: ClusterConfig, site: SiteConfig, storage: Storage, entropy: Entropy) -> JournalId:
    if await storage.read_file(IDENTITY_FILE) is None and await storage.names(JOURNALS_DIR):
        raise WalCorrupted(
            str(site.data_dir / IDENTITY_FILE),
            0,
            "it is missing, but there are journals beside it; restore it from a copy of this directory",
        )
    # A first start that was cut off acknowledged nothing: it begins again.
    for leftover in (JOURNALS_DIR, SNAPSHOTS_DIR, STORE_FILE, f"{STORE_FILE}-wal", f"{STORE_FILE}-shm"):
        await storage.remove(leftover)
    own = JournalId(site.site_id, Incarnation(int.from_bytes(entropy(8), "big")))
    await write_identity(storage, cluster, site, own, is_ready=False)
    return own


_THING = {"format": "format version", "cluster_id": "cluster", "site_id": "site", "shards": "shard count"}


async def write_identity(
    storage: Storage, cluster: ClusterConfig, site: SiteConfig, own: JournalId, *, is_ready: bool
) -> None:
    """Tell whose data directory this is; until it is ready, a start begins again."""
    identity = {
        "format": FORMAT,
        "cluster_id": cluster.cluster_id,
        "site": site.name,
        "site_id": site.site_id,
        "shards": cluster.shards,
        "incarnation": f"{own.incarnation:016x}",
        "is_ready": is_ready,
    }
    await storage.replace_file(IDENTITY_FILE, json.dumps(identity, indent=1).encode())


async def _open_store(
    site: SiteConfig,
    storage: Storage,
    runner: StoreRunner | None,
    journals: Journals,
    snapshot: Snapshot | None,
    shard_count: int,
    *,
    rebuild: bool,
) -> SqliteStore:
    names = await storage.names(".")
    if rebuild or STORE_FILE not in names:
        trimmed = [log.journal for log in journals.all() if any(first > 1 for first in log.firsts)]
        if snapshot is None and trimmed:
            raise WorldError(
                f"site {site.name}: the view cannot be made: there is no local snapshot, and the log of journal "
                f"{trimmed[0]} no longer reaches back to its first entry"
            )
        if snapshot is not None:
            await restore_snapshot(storage, snapshot, STORE_FILE)
        else:
            await remove_store(storage, STORE_FILE)
    return await SqliteStore.open(Path(site.data_dir) / STORE_FILE, shard_count=shard_count, runner=runner)


def _check_not_ahead(site: SiteConfig, store: SqliteStore, journals: Journals) -> None:
    tails = journals.received()
    for journal, applied in store.applied.items():
        here = cursor_of(tails, journal, len(applied))
        if any(a > t for a, t in zip(applied, here, strict=True)):
            raise WalCorrupted(
                str(site.data_dir / JOURNALS_DIR / f"{journal.origin}-{journal.incarnation:016x}"),
                0,
                f"the view has applied {applied} of journal {journal}, its log ends at {here}; restore the log from a copy",
            )


def _log_recovery(journal: JournalId, report: object, logger: FilteringBoundLogger) -> None:
    fields = {name: getattr(report, name) for name in ("entries", "bytes", "segments", "torn_bytes")}
    logger.info("journal_recovered", journal=str(journal), **fields)
    if fields["torn_bytes"]:
        logger.warning("torn_tail_cut", journal=str(journal), torn_bytes=fields["torn_bytes"])
