"""Fetching a snapshot from a peer that a test plays: gone on with, begun again, and never taken for what it is not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import trio

from claudefs_repl.error import WorldError
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.topology import SiteConfig
from nodes.bootstrap_fetch import FETCH_FILE, NOTE_BYTES, PART_FILE, ask_holdings, fetch_snapshot, read_fetch
from nodes.client import SiteUnreachable
from nodes.queries import PeerUnreachable
from nodes.runtime import SystemClock
from nodes.storage import DiskStorage

ALPHA = SiteConfig("alpha", SiteId(1), "127.0.0.1", 1, Path("alpha"))
JOURNAL = JournalId(SiteId(1), Incarnation(9))
APPLIED = {str(JOURNAL): [3, 4]}
PART = 1 << 20


class Peer:
    """A peer with snapshots by name, that can fail after so many parts."""

    def __init__(self, **snapshots):
        self.snapshots = snapshots
        self.newest = max(snapshots)
        self.parts_left = None
        self.asked = []

    async def ask(self, peer, method, args, *, timeout_s):
        await trio.lowlevel.checkpoint()
        if method == "snapshot_offer":
            name = args["begun"] if args["begun"] in self.snapshots else self.newest
            content = self.snapshots[name]
            digest = hashlib.sha256(content).hexdigest()
            return {"name": name, "bytes": len(content), "sha256": digest, "applied": APPLIED}
        if self.parts_left is not None:
            if not self.parts_left:
                raise PeerUnreachable("site alpha cannot be asked: connection lost")
            self.parts_left -= 1
        self.asked.append((args["name"], args["offset"]))
        if args["name"] not in self.snapshots:
            return {"gone": True, "data": b""}
        return {"gone": False, "data": self.snapshots[args["name"]][args["offset"] :][:PART]}


@pytest.fixture
def storage(tmp_path):
    return DiskStorage(tmp_path)


async def fetch(peer, storage, told=None):
    return await fetch_snapshot(peer, ALPHA, storage, {}, 2, lambda *bytes_: told is None or told.append(bytes_))


def content(size, seed=1):
    return bytes([seed]) * (size // 2) + bytes(size - size // 2)


async def test_a_snapshot_comes_whole(storage, tmp_path):
    """Its bytes, what it has applied, and on the way how far it is."""
    peer, told = Peer(s1=content(3 * PART + 5)), []
    got = await fetch(peer, storage, told)
    assert (tmp_path / PART_FILE).read_bytes() == peer.snapshots["s1"]
    assert got.cursors == {JOURNAL: (3, 4)}
    assert told[0] == (0, 3 * PART + 5)
    assert told[-1] == (3 * PART + 5, 3 * PART + 5)


async def test_a_fetch_that_was_cut_off_goes_on_from_what_is_noted(storage, tmp_path):
    """Of the same snapshot only what is not known to be on disk is asked for again."""
    peer = Peer(s1=content(NOTE_BYTES + 5 * PART))
    peer.parts_left = NOTE_BYTES // PART + 2
    with pytest.raises(SiteUnreachable, match="run the same command again"):
        await fetch(peer, storage)
    peer.parts_left, peer.asked = None, []
    peer.newest, peer.snapshots["s2"] = "s2", b"newer"
    await fetch(peer, storage)
    assert peer.asked[0] == ("s1", NOTE_BYTES)
    assert (tmp_path / PART_FILE).read_bytes() == peer.snapshots["s1"]


async def test_a_snapshot_that_is_gone_is_replaced_by_the_next(storage, tmp_path):
    """What was fetched of the one is no part of the other."""
    peer = Peer(s1=content(NOTE_BYTES + 5 * PART))
    peer.parts_left = NOTE_BYTES // PART + 2
    with pytest.raises(SiteUnreachable):
        await fetch(peer, storage)
    peer.parts_left = None
    peer.snapshots = {"s2": content(2 * PART, seed=2)}
    peer.newest = "s2"
    await fetch(peer, storage)
    assert (tmp_path / PART_FILE).read_bytes() == peer.snapshots["s2"]


async def test_a_snapshot_that_vanishes_while_it_is_fetched_is_begun_again(storage, tmp_path):
    """The peer says so, and offers what it has by then."""
    peer = Peer(s1=content(2 * PART), s0=content(3 * PART, seed=3))
    ask = peer.ask

    async def forget(site, method, args, **more):
        if method == "snapshot_part" and args["offset"]:
            peer.snapshots.pop("s1", None)
            peer.newest = "s0"
        return await ask(site, method, args, **more)

    peer.ask = forget
    await fetch(peer, storage)
    assert (tmp_path / PART_FILE).read_bytes() == peer.snapshots["s0"]


async def test_what_does_not_match_its_digest_is_not_taken(storage, tmp_path):
    """A peer, or a disk, that gives other bytes than were promised ends the bootstrap, and nothing is kept of them."""
    peer = Peer(s1=content(2 * PART))
    ask = peer.ask

    async def change(site, method, args, **more):
        answer = await ask(site, method, args, **more)
        if "data" in answer:
            answer["data"] = answer["data"][:-1] + b"!"
        return answer

    peer.ask = change
    with pytest.raises(WorldError, match="gone or damaged"):
        await fetch(peer, storage)
    assert not (tmp_path / FETCH_FILE).exists()


@pytest.mark.parametrize("part", [{}, {"gone": False, "data": "text"}, {"gone": False, "data": b""}, {"data": b"x"}])
async def test_a_part_that_makes_no_sense_is_no_part(storage, part):
    """What a peer answers is its word: anything else than some bytes counts as a snapshot that is not there."""
    peer = Peer(s1=content(PART))
    ask = peer.ask

    async def answer(site, method, args, **more):
        return part if method == "snapshot_part" else await ask(site, method, args, **more)

    peer.ask = answer
    with pytest.raises(WorldError, match="gone or damaged"):
        await fetch(peer, storage)


GOOD = {
    "journal": str(JOURNAL),
    "received": {},
    "firsts": {str(JOURNAL): [1, 1]},
    "told": {},
    "timestamp_us": 5,
    "wall_us": 7,
    "restamped_after": {},
    "restamped_upto": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"journal": "2:0000000000000009"},
        {"journal": 5},
        {"firsts": {}},
        {"received": {str(JOURNAL): [1]}},
        {"told": {str(JOURNAL): [1, -1]}},
        {"timestamp_us": None},
        {"wall_us": "x"},
        {"wall_us": float("inf")},
        {"timestamp_us": float("nan")},
        {"timestamp_us": 1 << 63},
        {"journal": b"1:0000000000000009"},
        {"told": {str(JOURNAL): "11"}},
        {"restamped_after": {str(JOURNAL): [1]}},
        {"restamped_upto": None},
    ],
)
async def test_holdings_that_make_no_sense_count_as_no_answer(change):
    """A peer of another shape, or that speaks for another site, is told as one that cannot be asked."""

    class Answering:
        async def ask(self, peer, method, args, *, timeout_s):
            await trio.lowlevel.checkpoint()
            return {**GOOD, **change}

    with pytest.raises(PeerUnreachable, match="site alpha"):
        await ask_holdings(Answering(), ALPHA, 2, SystemClock())


@pytest.mark.parametrize(
    "change",
    [{"done_bytes": "5"}, {"done_bytes": 99}, {"size_bytes": None}, {"name": 5}, {"applied": []}, {"more": 1}, None],
)
async def test_a_note_of_a_fetch_that_makes_no_sense_counts_as_none(storage, tmp_path, change):
    """Whatever lies in the file, the fetch begins anew."""
    note = {"peer": 1, "name": "s1", "sha256": "x", "size_bytes": 9, "applied": APPLIED, "done_bytes": 5}
    await storage.make_dir(FETCH_FILE.partition("/")[0])
    await storage.replace_file(FETCH_FILE, json.dumps(note).encode())
    assert await read_fetch(storage, SiteId(1)) is not None
    await storage.replace_file(FETCH_FILE, b"[" * 100_000 if change is None else json.dumps(note | change).encode())
    assert await read_fetch(storage, SiteId(1)) is None


async def test_holdings_tell_how_far_the_clocks_are_apart():
    """The peer's clock against the middle of the question."""

    class Answering:
        async def ask(self, peer, method, args, *, timeout_s):
            await trio.lowlevel.checkpoint()
            return {**GOOD, "wall_us": SystemClock().now_us() + 3_600_000_000}

    answer = await ask_holdings(Answering(), ALPHA, 2, SystemClock())
    assert answer.clock_offset_us == pytest.approx(3_600_000_000, abs=1_000_000)
    assert answer.holdings.journal == JOURNAL
    assert json.dumps(answer.holdings.timestamp_us) == "5"
