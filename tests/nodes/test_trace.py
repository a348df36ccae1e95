"""What a site tells of single entries, over a real log and store; whatever its peers answer, it answers."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import CallerError
from claudefs_repl.journal import ROOT_INODE, Incarnation, JournalId, Op, SiteId, entry_crc32, make_inode, shard_of
from claudefs_repl.operations import Create
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.journals import Journals, LogSettings
from nodes.peers import PeerRecord
from nodes.queries import PeerUnreachable
from nodes.storage import DiskStorage
from nodes.store.sqlite_store import SqliteStore
from nodes.trace import Tracer
from protocol.payload import encode_payload

SHARDS = 2
ALPHA = SiteConfig("alpha", SiteId(1), "127.0.0.1", 1, Path("alpha"))
BETA = SiteConfig("beta", SiteId(2), "127.0.0.2", 2, Path("beta"))
OWN = JournalId(BETA.site_id, Incarnation(2))
PEER = JournalId(ALPHA.site_id, Incarnation(1))
STAMPS = [us for us in range(1000, 2000) if shard_of(make_inode(PEER.origin, us), SHARDS) == 0]


def block(seq, *, version=1, padding=0):
    """One entry that makes a file; `padding` makes its name long."""
    timestamp_us = STAMPS[seq]
    inode = make_inode(PEER.origin, timestamp_us)
    payload = encode_payload(Create(0o600, 0, 0, 0, ROOT_INODE, b"f%d" % seq + b"x" * padding))
    payload = payload[:1] + bytes([version]) + payload[2:]
    crc32 = entry_crc32(seq, 0, PEER.origin, timestamp_us, inode, Op.CREATE, payload)
    rows = [NewRow(timestamp_us, Op.CREATE, inode, payload, crc32)]
    return Block.build(shard=0, first_seq=seq, rows=rows, seen=encode_cursors({}, SHARDS))


class Wall:
    """A clock that is as far ahead of Trio's as it was told."""

    def __init__(self):
        self.offset_us = 1_700_000_000_000_000

    def now_us(self):
        return self.offset_us + round(trio.current_time() * 1e6)


class Peer:
    """Answers, or cannot be asked."""

    def __init__(self):
        self.answer = None

    async def ask(self, peer, method, args, *, timeout_s):
        await trio.lowlevel.checkpoint()
        if self.answer is None:
            raise PeerUnreachable(f"site {peer.name} cannot be asked: it is down")
        return self.answer


class Site:
    """Site beta with a replica of alpha's journal."""

    def __init__(self, journals, store):
        self.journals, self.store = journals, store
        self.wall, self.peer, self.record = Wall(), Peer(), PeerRecord(ALPHA)
        self.tracer = Tracer(
            cluster=ClusterConfig(Path("cluster.toml"), "test", SHARDS, Path("keys"), (ALPHA, BETA)),
            site=BETA,
            journals=journals,
            store=store,
            peers={ALPHA.site_id: self.record},
            queries=self.peer,
            wall_clock=self.wall,
        )

    async def append(self, *blocks):
        await (await self.journals.replica(PEER)).append(blocks)

    async def fold(self, *blocks):
        async with self.store.transaction() as transaction:
            await transaction.fold_blocks(PEER, blocks)
            await transaction.commit()

    async def own(self, *key):
        (told,) = (await self.tracer.own_trace({"entries": [list(key)]}))["entries"]
        return told

    async def ask(self, told=None, **question):
        async def ask_all(method, own, timeout_s, args):
            return {"alpha": told or {"unreachable": "down"}, "beta": await own(args)}

        return (await self.tracer.trace(question, ask_all))["entries"]


@pytest.fixture
async def site(tmp_path):
    journals = await Journals.open(
        storage=DiskStorage(tmp_path),
        settings=LogSettings("test", SHARDS, 16 * 1024),
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


async def test_an_entry_is_durable_then_applied(site):
    """Each step has its time as soon as it is made, and none before."""
    assert (await site.own(*PEER, 0, 1))["durable"] is None
    began_us = site.wall.now_us()
    await site.append(block(1), block(2))
    told = await site.own(*PEER, 0, 2)
    assert told["applied"] is None
    assert began_us <= told["durable"]["after_us"] == told["durable"]["by_us"] <= site.wall.now_us()
    assert told["content"]["time_us"] == STAMPS[2]
    assert told["content"]["inode"] == f"{make_inode(PEER.origin, STAMPS[2]):x}"
    assert told["shows"] is False
    await site.fold(block(1), block(2))
    told = await site.own(*PEER, 0, 2)
    assert told["applied"]["by_us"] >= told["durable"]["by_us"]
    assert told["shows"] is True
    assert "peers" not in told


async def test_times_are_those_of_the_clock_as_it_is_now(site):
    """A clock that was set meanwhile does not tear the times of one site apart."""
    await site.append(block(1))
    before = (await site.own(*PEER, 0, 1))["durable"]["by_us"]
    site.wall.offset_us += 3_600_000_000
    after = (await site.own(*PEER, 0, 1))["durable"]["by_us"]
    assert abs(after - before - 3_600_000_000) < 1_000


async def test_a_dead_letter_is_told_with_its_reason(site):
    """Durable, passed by the applied cursor, and without effect."""
    await site.append(block(1, version=2))
    await site.fold(block(1, version=2))
    told = await site.own(*PEER, 0, 1)
    assert told["dead_letter"] == "payload version 2 is not known"
    assert told["shows"] is False


async def test_of_a_trimmed_entry_the_times_are_left(site):
    """What it was is not known here any more, and that is told."""
    blocks = [block(seq, padding=200) for seq in range(1, 200)]
    for one in blocks:
        await site.append(one)
    await site.fold(*blocks)
    log = await site.journals.replica(PEER)
    assert await log.trim((199, 0))
    told = await site.own(*PEER, 0, 1)
    assert told["content"] is told["shows"] is None
    assert "trimmed from the log of site beta" in told["content_missing"]
    assert told["durable"]["by_us"] <= told["applied"]["by_us"]
    assert (await site.own(*PEER, 0, 199))["content"]["op"] == "create"
    (together,) = await site.ask(entry=f"{PEER}/0/1")
    assert (together["content"], together["content_missing"]) == (None, told["content_missing"])


async def test_the_origin_tells_what_was_sent_and_acknowledged(site):
    """What a peer had at first contact it has acknowledged some time before."""
    assert (await site.own(*OWN, 0, 1))["peers"] == {"alpha": {"sent": False, "acked": None}}
    site.record.note_acked(trio.current_time(), (1, 0))
    site.record.progress = SimpleNamespace(sent={OWN: (3, 0)})
    site.record.note_acked(trio.current_time(), (2, 0))
    peers = [(await site.own(*OWN, 0, seq))["peers"]["alpha"] for seq in (1, 2, 3, 4)]
    assert [peer["sent"] for peer in peers] == [True, True, True, False]
    assert peers[0]["acked"]["after_us"] is None
    assert peers[1]["acked"]["after_us"] == peers[1]["acked"]["by_us"]
    assert peers[2]["acked"] is peers[3]["acked"] is None


async def test_a_journal_or_shard_that_is_not_here_is_told_as_nothing(site):
    """No site holds everything that can be asked for."""
    for key in ((9, 9, 0, 1), (*OWN, 7, 1)):
        told = await site.own(*key)
        assert (told["durable"], told["content"]) == (None, None)


async def test_the_latest_entries_of_a_path_are_asked_of_all(site):
    """Each comes with what it was to the object."""
    await site.append(block(1))
    await site.fold(block(1))
    (entry,) = await site.ask(path=b"/f1")
    assert entry["roles"] == ["made", "last name"]
    assert entry["entry"] == f"{PEER}/0/1"
    assert entry["sites"]["alpha"] == {"unreachable": "down"}
    assert entry["sites"]["beta"]["shows"]


async def test_the_journal_that_a_site_writes_now_is_asked_of_it(site):
    """Of several that are known here the peer's word counts; if it cannot be asked, the only one known."""
    await site.append(block(1))
    assert (await site.ask(entry="alpha/0/1"))[0]["entry"] == f"{PEER}/0/1"
    newer = JournalId(ALPHA.site_id, Incarnation(5))
    await site.journals.replica(newer)
    with pytest.raises(CallerError, match=f"name one of its journals: .*{newer}"):
        await site.ask(entry="alpha/0/1")
    site.peer.answer = {"own": str(newer)}
    assert (await site.ask(entry="alpha/0/1"))[0]["entry"] == f"{newer}/0/1"
    for nonsense in ({}, {"own": 5}, {"own": "x"}, {"own": str(OWN)}):
        site.peer.answer = nonsense
        with pytest.raises(CallerError, match="makes no sense"):
            await site.ask(entry="alpha/0/1")
    with pytest.raises(CallerError, match="no site has id 77"):
        await site.ask(entry="77/0/1")
    assert (await site.ask(entry="beta/0/1"))[0]["entry"] == f"{OWN}/0/1"


@pytest.mark.parametrize(
    "entries",
    [None, 5, [5], [[1, 1, 0]], [[1, 1, 0, 0]], [[1, 1, 0, 1 << 63]], [[1, -1, 0, 1]], [[1, 1, 0, "1"]], [[1] * 4] * 9],
)
async def test_a_question_of_another_shape_is_refused(site, entries):
    """A peer may ask anything."""
    with pytest.raises(CallerError, match="trace"):
        await site.tracer.own_trace({"entries": entries})


@pytest.mark.parametrize(
    "change",
    [
        {"durable": 5},
        {"applied": {"by_us": 5}},
        {"shows": "yes"},
        {"dead_letter": 5},
        {"content": {"op": 5}},
        {"content_missing": 5},
        {"lost_to": [{"rule": 5}]},
        {"peers": {"alpha": {"acked": 5, "sent": True}}},
        {"peers": {"alpha": {"acked": None}}},
        {"peers": 5},
    ],
)
async def test_an_answer_of_another_shape_counts_as_none(site, change):
    """What a peer says may be anything; it is told that it made no sense."""
    sound = await site.own(*OWN, 0, 1)
    (entry,) = await site.ask({"entries": [sound]}, entry="beta/0/1")
    assert entry["sites"]["alpha"] == sound
    for told in ({"entries": [{**sound, **change}]}, {"entries": []}, {"entries": 5}, {"x": 1}):
        (entry,) = await site.ask(told, entry="beta/0/1")
        assert entry["sites"]["alpha"] == {"unreachable": "site alpha: its answer is no trace"}
