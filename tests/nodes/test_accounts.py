"""A site's accounts over a real log and store, and what planted damage does to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.conduit import SendProgress
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId, entry_crc32, shard_of
from claudefs_repl.topology import SiteConfig
from nodes.accounts import Accounts, judge_sums
from nodes.journals import Journals, LogSettings
from nodes.peers import PeerRecord
from nodes.storage import DiskStorage
from nodes.store.sqlite_store import SqliteStore

SHARDS = 2
OWN = JournalId(SiteId(2), Incarnation(2))
PEER = JournalId(SiteId(1), Incarnation(1))
SEGMENT_BYTES = 16 * 1024


def block(seq, count=5, *, data=b"x", shard=0):
    inode = next(number for number in range(5, 99) if shard_of(number, SHARDS) == shard)
    payload = b"\x93\x01\x00\xc4" + bytes([len(data)]) + data
    rows = [
        NewRow(
            1000 + at,
            Op.WRITE,
            inode,
            payload,
            entry_crc32(at, shard, PEER.origin, 1000 + at, inode, Op.WRITE, payload),
        )
        for at in range(seq, seq + count)
    ]
    return Block.build(shard=shard, first_seq=seq, rows=rows, seen=encode_cursors({}, SHARDS))


class Site:
    """A site's journals and store, and its accounts."""

    def __init__(self, journals, store):
        self.journals, self.store = journals, store
        self.accounts = Accounts(journals=journals, store=store, peers={})

    async def fold(self, *blocks):
        async with self.store.transaction() as transaction:
            await transaction.fold_blocks(PEER, blocks)
            await transaction.commit()

    async def judge(self):
        told, cursors = await self.accounts.own_accounts({}), await self.accounts.own_cursors({})
        return judge_sums({"beta": told}, {"beta": cursors}, SHARDS)


@pytest.fixture
async def site(tmp_path):
    journals = await Journals.open(
        storage=DiskStorage(tmp_path),
        settings=LogSettings("test", SHARDS, SEGMENT_BYTES),
        entropy=os.urandom,
        own=OWN,
        is_new=True,
        evidence={},
    )
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=SHARDS)
    yield Site(journals, store)
    with trio.CancelScope(shield=True):
        await store.close()
        await journals.close()


async def test_a_sound_site_has_no_fault_and_its_sums(site):
    """What is durable and what is applied are counted for each journal, the own one without entries too."""
    log = await site.journals.replica(PEER)
    await log.append([block(1), block(6)])
    await site.fold(block(1), block(6, 2))
    faults, sums = await site.judge()
    assert faults == []
    told = sums["beta"][str(PEER)]
    assert (told["durable"], told["applied"], told["written"], told["dead_letters"]) == (10, 7, None, 0)
    assert told["current"] + told["lost"] + told["superseded"] == 7
    assert sums["beta"][str(OWN)]["written"] == 0


async def test_what_was_sent_is_told_of_the_own_journal(site):
    """A conduit carries former journals of others too; what is in flight to a peer is of the journal that is written."""
    record = PeerRecord(SiteConfig("alpha", PEER.origin, "127.0.0.1", 1, Path("alpha")))
    site.accounts = Accounts(journals=site.journals, store=site.store, peers={PEER.origin: record})
    assert (await site.accounts.own_cursors({}))["sent"] == {"alpha": []}
    record.acked = (3, 0)
    assert (await site.accounts.own_cursors({}))["sent"] == {"alpha": [3, 0]}
    record.progress = SendProgress(window_batches=8, window_bytes=1 << 20)
    record.progress.begin(OWN, (4, 0))
    record.progress.begin(JournalId(SiteId(3), Incarnation(3)), (9, 9), is_shared=True)
    assert (await site.accounts.own_cursors({}))["sent"] == {"alpha": [4, 0]}
    assert (await site.judge())[0] == []


async def test_an_entry_that_the_log_only_claims_is_found(site):
    """Entries are counted by reading the log, not by what it says of its end."""
    log = await site.journals.replica(PEER)
    await log.append([block(1)])
    log.tails = (6, 0)
    (fault,) = (await site.judge())[0]
    assert fault == "beta: journal 1:0000000000000001 shard 0: the log ends at seq 6, but 5 entries are in it"


async def test_a_log_that_holds_other_entries_than_were_folded_is_found(site):
    """The chain of the log's checksums is held against that of the view, as far as the view has applied."""
    log = await site.journals.replica(PEER)
    await log.append([block(1, data=b"altered"), block(6)])
    await site.fold(block(1))
    (fault,) = (await site.judge())[0]
    assert "what the view has folded up to seq 5 is not what the log has" in fault


async def test_a_trimmed_log_counts_what_it_has_given_up(site):
    """Entries below the first one on disk were durable; they are not read, and no chain is held against the view."""
    log = await site.journals.replica(PEER)
    for at in range(80):
        await log.append([block(1 + 5 * at, data=bytes(120))])
    await site.fold(*[block(1 + 5 * at, data=bytes(120)) for at in range(80)])
    assert await log.trim((400, 0))
    assert log.firsts[0] > 1
    faults, sums = await site.judge()
    assert faults == []
    assert sums["beta"][str(PEER)]["durable"] == 400


async def test_a_damaged_log_is_told_with_its_place(site, tmp_path):
    """Reading through is a check of the disk as well."""
    log = await site.journals.replica(PEER)
    await log.append([block(1)])
    (path,) = (tmp_path / "journals" / "1-0000000000000001").glob("*.seg")
    content = bytearray(path.read_bytes())
    at = content.index(b"\x93\x01\x00\xc4")
    content[at] ^= 1
    path.write_bytes(content)
    (fault,) = (await site.judge())[0]
    assert str(path.name) in fault
    assert "damaged at byte" in fault


@pytest.mark.parametrize(
    "change",
    [
        {"accounts": 5},
        {"accounts": {"x": []}},
        {"accounts": {str(PEER): [[0] * 10]}},
        {"accounts": {str(PEER): [[0] * 9, [0] * 9]}},
        {"accounts": {str(PEER): [[-1] * 10] * 2}},
        {"accounts": {str(PEER): [[0.5] * 10] * 2}},
        {"acked": {"alpha": [1]}},
        {"acked": None},
        {"damage": None},
    ],
)
async def test_an_answer_that_is_no_account_is_told(site, change):
    """What a peer says may be anything; it is then not counted, and the verdict says so."""
    told, cursors = await site.accounts.own_accounts({}), await site.accounts.own_cursors({})
    faults, sums = judge_sums({"beta": {**told, **change}}, {"beta": cursors}, SHARDS)
    assert faults == ["beta: not counted: its answer is no account"]
    assert sums == {}
    faults, sums = judge_sums({"beta": told}, {"beta": {**cursors, "own": "x"}}, SHARDS)
    assert len(faults) == 1
    faults, sums = judge_sums({"beta": {"unreachable": "paused"}}, {"beta": cursors}, SHARDS)
    assert faults == ["beta: not counted: paused"]
