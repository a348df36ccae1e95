"""The applier on a real log and store, with a disk that is full for a while."""

from __future__ import annotations

import os

import trio

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import DiskFull
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId, entry_crc32
from nodes.applier import Applier
from nodes.entry_log import LogReader
from nodes.events import make_logger
from nodes.journals import Journals, LogSettings
from nodes.runtime import SystemClock
from nodes.storage import DiskStorage
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import DISK_FULL, WriteGate

SHARDS = 2
OWN = JournalId(SiteId(2), Incarnation(2))
PEER = JournalId(SiteId(1), Incarnation(1))


async def test_what_a_full_disk_left_unapplied_is_applied_without_another_batch(tmp_path, nursery, monkeypatch):
    """A step that found no room is tried again by itself, also when nothing more comes."""
    monkeypatch.setattr("nodes.applier.DISK_RETRY_S", 0.01)
    journals = await Journals.open(
        storage=DiskStorage(tmp_path),
        settings=LogSettings("test", SHARDS, 1 << 20),
        entropy=os.urandom,
        own=OWN,
        is_new=True,
        evidence={},
    )
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=SHARDS)
    gate = WriteGate("beta", SiteMode.ACTIVE_READ_WRITE)
    transaction, failures = store.transaction, [DiskFull("no room"), DiskFull("no room")]

    def often_full():
        if failures:
            raise failures.pop()
        return transaction()

    monkeypatch.setattr(store, "transaction", often_full)
    applier = Applier(
        journals=journals,
        store=store,
        share=0.5,
        gate=gate,
        logger=make_logger(tmp_path / "events.jsonl", "beta", SystemClock()),
    )
    payload = b"\x93\x01\x00\xc4\x01x"
    row = NewRow(1000, Op.WRITE, 5, payload, entry_crc32(1, 0, PEER.origin, 1000, 5, Op.WRITE, payload))
    log = await journals.replica(PEER)
    await log.append([Block.build(shard=0, first_seq=1, rows=[row], seen=encode_cursors({}, SHARDS))])
    nursery.start_soon(applier.run)
    with trio.fail_after(10):
        while store.applied.get(PEER) != (1, 0):
            await trio.sleep(0.005)
    assert gate.is_closed(DISK_FULL)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await store.close()
        await journals.close()


async def test_an_applier_that_ends_leaves_no_file_open(tmp_path, monkeypatch):
    """Whoever ends the applier gets back the files that its readers had open."""
    journals = await Journals.open(
        storage=DiskStorage(tmp_path),
        settings=LogSettings("test", SHARDS, 1 << 20),
        entropy=os.urandom,
        own=OWN,
        is_new=True,
        evidence={},
    )
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=SHARDS)
    applier = Applier(
        journals=journals,
        store=store,
        share=0.5,
        gate=WriteGate("beta", SiteMode.ACTIVE_READ_WRITE),
        logger=make_logger(tmp_path / "events.jsonl", "beta", SystemClock()),
    )
    closed = []
    close = LogReader.close

    async def note(reader):
        closed.append(reader)
        await close(reader)

    monkeypatch.setattr(LogReader, "close", note)
    payload = b"\x93\x01\x00\xc4\x01x"
    row = NewRow(1000, Op.WRITE, 5, payload, entry_crc32(1, 0, PEER.origin, 1000, 5, Op.WRITE, payload))
    log = await journals.replica(PEER)
    await log.append([Block.build(shard=0, first_seq=1, rows=[row], seen=encode_cursors({}, SHARDS))])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(applier.run)
        with trio.fail_after(10):
            while store.applied.get(PEER) != (1, 0):
                await trio.sleep(0.005)
        closed.clear()
        nursery.cancel_scope.cancel()
    assert len(closed) == 1
    await store.close()
    await journals.close()
