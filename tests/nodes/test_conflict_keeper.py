"""The keeper counts when something changed, no more often than it may, and keeps content within the limit, loudly."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.clock import HybridClock
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.topology import ConflictsConfig
from nodes import conflict_keeper
from nodes.conflict_keeper import ConflictKeeper
from nodes.events import make_logger
from nodes.runtime import SystemClock
from nodes.store.conflict_view import page_conflicts
from nodes.store.local import CreateFile, LocalRequest, Settle, StampSource, WriteData
from nodes.store.resolutions import How
from nodes.store.sqlite_store import SqliteStore
from tests.nodes.store.conftest import MemorySite

SHARDS = 2


@pytest.fixture
async def alpha(tmp_path):
    """A store on disk that takes what two sites wrote, and its keeper."""
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=SHARDS)
    log = tmp_path / "events.jsonl"
    keeper = ConflictKeeper(store=store, config=ConflictsConfig(), logger=make_logger(log, "alpha", SystemClock()))

    async def take(site):
        async with store.transaction() as transaction:
            for shard in range(SHARDS):
                await transaction.fold_blocks(site.journal, site.blocks[shard])
            await transaction.commit()

    def events():
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in lines]

    yield SimpleNamespace(store=store, keeper=keeper, take=take, events=events)
    with trio.CancelScope(shield=True):
        await store.close()


@pytest.fixture
def rivals():
    """Three files that both sites wrote: 100 bytes of each lost."""
    one, two = MemorySite(1), MemorySite(2)
    files = [one.do(CreateFile(1, b"%d" % n, 0o644, 0, 0, 0), WriteData(-1, 0, bytes(100)))[0].inode for n in range(3)]
    two.pull(one)
    for site in (one, two):
        for inode in files:
            site.do(WriteData(inode, 0, b"%d" % site.journal.origin * 100))
    yield one, two
    one.close()
    two.close()


async def test_the_count_follows_what_is_applied(alpha, rivals, monkeypatch):
    """Nothing is counted while nothing changes; what came is counted at the next question."""
    monkeypatch.setattr(conflict_keeper, "REST", 0)
    reads = []
    read = alpha.store.read

    async def counted(function):
        reads.append(function)
        return await read(function)

    monkeypatch.setattr(alpha.store, "read", counted)
    assert (await alpha.keeper.count()).open == {}
    for site in rivals:
        await alpha.take(site)
    kept = await alpha.keeper.count()
    assert (kept.open, kept.kept_bytes) == ({"content": 3}, 300)
    for _ in range(5):
        assert await alpha.keeper.count() == kept
    assert len(reads) == 2


async def test_counting_takes_a_small_part_of_the_time(alpha, rivals, monkeypatch):
    """After a count nothing is counted for many times as long as it took, whatever comes in."""
    monkeypatch.setattr(conflict_keeper, "REST", 1e9)
    assert (await alpha.keeper.count()).open == {}
    for site in rivals:
        await alpha.take(site)
    assert (await alpha.keeper.count()).open == {}


async def test_content_beyond_the_limit_is_given_up_with_an_event_each(alpha, rivals, monkeypatch):
    """The oldest goes, the rest stays; a limit that a reload raises or lifts lets the others stay."""
    monkeypatch.setattr(conflict_keeper, "REST", 0)
    for site in rivals:
        await alpha.take(site)
    assert not await alpha.keeper.keep_within_limit()
    alpha.keeper.config = ConflictsConfig(keep_bytes_max=250)
    assert await alpha.keeper.keep_within_limit()
    (event,) = alpha.events()
    assert (event["event"], event["level"], event["kind"]) == ("conflict_content_given_up", "error", "content")
    assert (event["content_bytes"], event["limit_bytes"]) == (100, 250)
    assert not await alpha.keeper.keep_within_limit()
    kept = await alpha.keeper.count()
    assert (kept.open, kept.kept_bytes, kept.given_up) == ({"content": 3}, 200, 1)
    alpha.keeper.config = ConflictsConfig(keep_bytes_max=0)
    assert not await alpha.keeper.keep_within_limit()
    assert len(alpha.events()) == 1


async def test_what_settled_conflicts_free_spares_the_open_ones(alpha, rivals, monkeypatch):
    """Content that nobody wants goes first, without an event, and no more than must."""
    monkeypatch.setattr(conflict_keeper, "REST", 0)
    for site in rivals:
        await alpha.take(site)
    newest = (await alpha.store.read(lambda view: page_conflicts(view.connection, None, 10)))[-1]
    rivals[0].pull(rivals[1])
    rivals[0].do(Settle(bytes.fromhex(newest.id), How.ACCEPTED))
    await alpha.take(rivals[0])
    alpha.keeper.config = ConflictsConfig(keep_bytes_max=200)
    assert await alpha.keeper.keep_within_limit()
    assert not await alpha.keeper.keep_within_limit()
    kept = await alpha.keeper.count()
    assert (kept.open, kept.kept_bytes, kept.given_up) == ({"content": 2}, 200, 0)
    assert alpha.events() == []


async def test_a_local_write_is_seen_too(alpha, monkeypatch):
    """The count is made anew after local writes as after those of others."""
    monkeypatch.setattr(conflict_keeper, "REST", 0)
    await alpha.keeper.count()
    before = alpha.keeper._counted_at
    journal = JournalId(SiteId(9), Incarnation(int.from_bytes(os.urandom(4), "big")))
    source = StampSource(journal, SHARDS, (1, 1), HybridClock(), 1_800_000_000_000_000)
    async with alpha.store.transaction() as transaction:
        await transaction.fold_local([LocalRequest([CreateFile(1, b"x", 0o644, 0, 0, 0)])], source)
        await transaction.commit()
    await alpha.keeper.count()
    assert alpha.keeper._counted_at != before
