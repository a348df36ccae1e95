"""Building a site anew beside its old data: what is carried over, and a crash at every step of it and of the switch."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.clock import HybridClock
from claudefs_repl.error import WorldError
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import ROOT_INODE, Incarnation, JournalId, SiteId
from claudefs_repl.reincarnation import Holdings, Restamped
from nodes.bootstrap_build import NEW_DIR, SWITCH_FILE, Plan, begin_switch, build, finish_switch
from nodes.bootstrap_fetch import PART_FILE, Fetch
from nodes.bootstrap_old import Closed, OldLogs, read_closed
from nodes.config import load_cluster, write_cluster
from nodes.events import make_logger
from nodes.journals import LogSettings
from nodes.recovery import read_identity, recover
from nodes.runtime import SystemClock
from nodes.snapshots import cursors_to_json
from nodes.storage import DiskStorage
from nodes.store.local import CreateFile, LocalRequest, MakeDir, Move, StampSource, WriteData
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate

SHARDS = 2
ALPHA, NEW = JournalId(SiteId(1), Incarnation(0xA)), JournalId(SiteId(2), Incarnation(0xB2))
FORMER, GAMMA = JournalId(SiteId(3), Incarnation(0xC)), JournalId(SiteId(3), Incarnation(0xC2))
TRIMMED = JournalId(SiteId(3), Incarnation(0xC1))
REPORT = {
    "site": "beta",
    "from": "alpha",
    "journal": "2:0000000000000001",
    "former_journal": None,
    "fetched_bytes": 5,
    "journaled_again": 0,
    "refused": [],
    "lost": [],
}
START_US = 1_700_000_000_000_000


def make(name, parent=ROOT_INODE, data=b"", **more):
    return [
        CreateFile(parent, name, 0o644, 0, 0, 0),
        WriteData(-1, 0, data),
    ]


class Site:
    """A site's data directory, used by hand."""

    def __init__(self, root, cluster, site):
        self.root, self.cluster, self.site = root, cluster, site
        self.storage = DiskStorage(root)
        self.settings = LogSettings(cluster.cluster_id, SHARDS, cluster.journal.segment_bytes)

    async def open(self):
        return await recover(
            cluster=self.cluster,
            site=self.site,
            storage=self.storage,
            entropy=os.urandom,
            gate=WriteGate("beta", SiteMode.STANDBY_READ_ONLY),
            logger=make_logger(self.root / "events.jsonl", "beta", SystemClock()),
        )

    def digest_of_old_files(self):
        """Everything in the directory but what a bootstrap has of its own, and the log."""
        files = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and not name.startswith("bootstrap") and name not in ("events.jsonl", "lock"):
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return files


async def write(store, log, ops, at_us):
    """One group of operations, as the journal writer does it; the results."""
    clock = HybridClock(floor_us=max(at_us, store.applied_timestamp_us))
    source = StampSource(log.journal, SHARDS, tuple(seq + 1 for seq in log.tails), clock, at_us)
    async with store.transaction() as transaction:
        fold = await transaction.fold_local([LocalRequest(ops)], source)
        await log.append(fold.blocks)
        await transaction.commit()
    (outcome,) = fold.outcomes
    assert outcome.error is None
    return [result.inode for result in outcome.results]


@pytest.fixture
async def prepared(tmp_path):
    """Site beta with an old journal, and a fetched snapshot that has applied the first part of it."""
    path = write_cluster(
        tmp_path / "cluster", cluster_id="test", shards=SHARDS, settings={"journal": {"segment_bytes": 8 << 20}}
    )
    cluster = load_cluster(path)
    beta = cluster.sites[1]
    site = Site(beta.data_dir, cluster, beta)
    await site.storage.make_dir(".")
    running = await site.open()
    own, store = running.journals.own, running.store
    await write(store, own, make(b"shared", data=b"shared"), START_US)
    directory, *_ = await write(store, own, [MakeDir(ROOT_INODE, b"dir", 0o755, 0, 0, 0)], START_US)
    peer_store = await SqliteStore.open(tmp_path / "peer.sqlite", shard_count=SHARDS)
    await copy_entries(own, peer_store)
    await site.storage.make_dir("bootstrap")
    applied = await peer_store.snapshot_to(site.root / PART_FILE)
    snapshot_tails = own.tails
    # What the peers hold beyond the snapshot, what nobody holds, and what no longer fits.
    await write(store, own, make(b"held", directory, b"held"), START_US)
    held = own.tails
    await write(store, own, make(b"rest", directory, b"rest"), START_US)
    await write(store, own, [MakeDir(directory, b"sub", 0o700, 0, 0, 0), *make(b"x", -1, b"deep")[:1]], START_US)
    await write(store, own, [Move(directory, b"held", ROOT_INODE, b"moved")], START_US)
    former = await running.journals.replica(FORMER)
    other_store = await SqliteStore.open(tmp_path / "other.sqlite", shard_count=SHARDS)
    await write(other_store, former, make(b"formers", data=b"only here"), START_US)
    await running.store.make_durable()
    await other_store.close()
    await peer_store.close()
    await running.close()
    sha256 = hashlib.sha256((site.root / PART_FILE).read_bytes()).hexdigest()
    size = (site.root / PART_FILE).stat().st_size
    fetch = Fetch(1, "000000000001", sha256, size, cursors_to_json(applied), size)
    return SimpleNamespace(
        site=site,
        fetch=fetch,
        held=held,
        old=own.journal,
        closed=Closed((own.journal,), Restamped({own.journal: snapshot_tails}, {own.journal: held})),
        tails=own.tails,
        snapshot_tails=snapshot_tails,
        peers={ALPHA.origin: holds(ALPHA, {own.journal: held}), GAMMA.origin: holds(GAMMA, {own.journal: held})},
    )


def holds(journal, received):
    return Holdings(journal, received, {journal: (1,) * SHARDS}, {}, START_US, Restamped({}, {}))


async def copy_entries(log, store):
    reader = log.reader((0,) * SHARDS)
    blocks = await reader.read(bytes_max=1 << 20)
    await reader.close()
    async with store.transaction() as transaction:
        await transaction.fold_blocks(log.journal, blocks)
        await transaction.commit()


async def run(prepared, storage, site=None):
    """The part of a bootstrap that follows the fetching."""
    site = site or prepared.site
    old = await OldLogs.open(storage, site.settings, os.urandom, prepared.old)
    try:
        plan = Plan(
            cluster=site.cluster,
            site=site.site,
            settings=site.settings,
            own=NEW,
            closed=prepared.closed,
            held=prepared.held,
            upto={log.journal: log.tails for log in old.replicas},
            peers=prepared.peers,
            floor_us=START_US + 10**9,
            wall_us=START_US,
        )
        built = await build(plan, storage, os.urandom, prepared.fetch, old)
    finally:
        await old.close()
    await begin_switch(storage, REPORT)
    await finish_switch(storage)
    return built


async def tree_of(running):
    """Every file's content by path."""

    def read(view):
        found = {}
        for path, _ in view.manifest(None, 1000)[0]:
            stat = view.resolve(path)
            if stat.kind == "file":
                found[path] = view.read(stat.inode, 0, 100)
        return found

    return await running.store.read(read)


async def test_the_new_site_has_what_peers_hold_and_what_nobody_else_has(prepared):
    """Old entries that peers hold stay in their journal, the rest is journaled again; a sole copy of another's is kept."""
    built = await run(prepared, prepared.site.storage)
    assert (list(built.refused), built.refused_file) == ([], None)
    assert built.journaled_again == 5
    running = await prepared.site.open()
    try:
        assert running.journals.own.journal == NEW
        assert sum(running.journals.own.tails) == 5
        assert running.journals.replicas[prepared.old].tails == prepared.held
        assert running.journals.replicas[prepared.old].firsts == tuple(seq + 1 for seq in prepared.snapshot_tails)
        assert running.journals.replicas[FORMER].tails == running.store.applied[FORMER]
        assert await tree_of(running) == {
            b"/shared": b"shared",
            b"/moved": b"held",
            b"/dir/rest": b"rest",
            b"/dir/sub/x": b"",
            b"/formers": b"only here",
        }
        reader = running.journals.own.reader((0,) * SHARDS)
        stamps = [stamp for block in await reader.read(bytes_max=1 << 20) for stamp in block.timestamps]
        await reader.close()
        assert min(stamps) > START_US + 10**9
        assert await read_closed(prepared.site.storage) == prepared.closed
    finally:
        await running.close()
    assert not (prepared.site.root / "bootstrap").exists()


async def test_what_the_view_has_and_a_peer_lacks_stays_in_the_log(prepared):
    """A peer that is behind the snapshot gets the rest from this site, which may be the only one that still has it."""
    lacks = prepared.peers[GAMMA.origin] = holds(GAMMA, {prepared.old: (0,) * SHARDS})
    await run(prepared, prepared.site.storage)
    running = await prepared.site.open()
    try:
        log = running.journals.replicas[prepared.old]
        assert log.tails == prepared.held
        assert log.firsts == (1,) * SHARDS
        assert running.store.applied[prepared.old] == prepared.held
        reader = log.reader(lacks.received[prepared.old])
        assert sum(block.count for block in await reader.read(bytes_max=1 << 20)) == sum(prepared.held)
        await reader.close()
        assert len(await tree_of(running)) == 5
    finally:
        await running.close()


async def test_a_shard_that_was_trimmed_keeps_nothing_of_the_others_out(prepared, tmp_path):
    """Of a log that no longer reaches back in one shard the others are carried over: this may be the only copy."""
    whole = await prepared.site.settings.create(DiskStorage(tmp_path / "gamma"), TRIMMED, os.urandom)
    store = await SqliteStore.open(tmp_path / "gamma.sqlite", shard_count=SHARDS)
    while not all(whole.tails):
        await write(store, whole, [MakeDir(ROOT_INODE, b"%d" % sum(whole.tails), 0o755, 0, 0, 0)], START_US)
    await store.close()
    reader = whole.reader((whole.tails[0], 0))
    old = await prepared.site.settings.create(prepared.site.storage, TRIMMED, os.urandom, after=(whole.tails[0], 0))
    await old.append(await reader.read(bytes_max=1 << 20))
    await reader.close()
    await whole.close()
    await old.close()
    await run(prepared, prepared.site.storage)
    running = await prepared.site.open()
    try:
        assert running.journals.replicas[TRIMMED].tails == (0, whole.tails[1])
        assert running.store.applied[TRIMMED] == (0, whole.tails[1])
    finally:
        await running.close()


async def test_what_no_longer_fits_is_kept_with_its_reason(prepared, tmp_path):
    """A name that another object has by now, and all that hangs on it, is told one by one and kept in a file."""
    prepared.held = prepared.snapshot_tails  # as if no peer had got further
    store = await SqliteStore.open(prepared.site.root / PART_FILE, shard_count=SHARDS)
    log = await prepared.site.settings.create(DiskStorage(tmp_path / "alpha"), ALPHA, os.urandom)
    await write(store, log, make(b"moved", data=b"of alpha"), START_US + 5)
    applied = await store.make_durable()
    await log.close()
    await store.close()
    content = (prepared.site.root / PART_FILE).read_bytes()
    prepared.fetch.sha256 = hashlib.sha256(content).hexdigest()
    prepared.fetch.applied = cursors_to_json(applied)
    built = await run(prepared, prepared.site.storage)
    assert [one.reason for one in built.refused] == ["another object has the name moved by now"]
    assert built.journaled_again == 6
    lines = (prepared.site.root / built.refused_file).read_text().splitlines()
    (kept,) = map(json.loads, lines)
    assert (kept["op"], kept["reason"]) == ("RENAME", built.refused[0].reason)
    running = await prepared.site.open()
    try:
        tree = await tree_of(running)
    finally:
        await running.close()
    assert tree[b"/moved"] == b"of alpha"
    assert tree[b"/dir/held"] == b"held"


class Crash(Exception):
    pass


class CrashingStorage:
    """A storage that dies at its n-th call that changes the disk, before it or after it has had its effect."""

    CHANGES = frozenset({"create", "replace_file", "make_dir", "remove", "rename", "copy", "sync_dir"})

    def __init__(self, storage, at=None, *, after=False):
        self._storage, self._at, self._after = storage, at, after
        self.calls = 0

    def __getattr__(self, name):
        method = getattr(self._storage, name)
        if name not in self.CHANGES:
            return method

        async def call(*args):
            self.calls += 1
            dies = self.calls == self._at
            if dies and not self._after:
                raise Crash
            result = await method(*args)
            if dies:
                if hasattr(result, "close"):
                    await result.close()
                raise Crash
            return result

        return call


async def test_a_crash_at_any_step_leaves_the_old_site_or_the_new_one(prepared, tmp_path):
    """Whatever call to the disk was the last, the next start has all of the one or all of the other, and starts."""
    pristine = tmp_path / "pristine"
    shutil.copytree(prepared.site.root, pristine)
    before = prepared.site.digest_of_old_files()
    outcomes = set()
    for step in itertools.count(2):
        at, after = step // 2, bool(step % 2)
        storage = CrashingStorage(DiskStorage(prepared.site.root), at, after=after)
        try:
            await run(prepared, storage)
        except Crash:
            pass
        else:
            break
        finished = await finish_switch(DiskStorage(prepared.site.root))
        own = await read_identity(prepared.site.cluster, prepared.site.site, prepared.site.storage)
        if own == prepared.old:
            outcomes.add("old")
            assert finished is None
            assert prepared.site.digest_of_old_files() == before
        else:
            outcomes.add("new")
            assert own == NEW
            assert finished in (REPORT, None)
            assert not (prepared.site.root / NEW_DIR).exists()
            running = await prepared.site.open()
            assert len(await tree_of(running)) == 5
            await running.close()
        shutil.rmtree(prepared.site.root)
        shutil.copytree(pristine, prepared.site.root)
        await trio.lowlevel.checkpoint()
    assert outcomes == {"old", "new"}
    assert at > 40


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"lost": 5}', b'{"lost": [{"shard": 1}]}']
)
async def test_a_report_that_cannot_be_read_is_told_once_and_does_not_undo_the_switch(tmp_path, content):
    """The new data is taken all the same, the start after it fails with the reason, and the next one goes on."""
    storage = DiskStorage(tmp_path)
    await storage.make_dir(NEW_DIR)
    await storage.replace_file(f"{NEW_DIR}/site.json", b"new")
    await storage.replace_file(SWITCH_FILE, content)
    with pytest.raises(WorldError, match="start the site again"):
        await finish_switch(storage)
    assert (tmp_path / "site.json").read_bytes() == b"new"
    assert await finish_switch(storage) is None
