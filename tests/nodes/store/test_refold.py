"""Folding again what a closed journal has alone: the same effect under new numbers, or a reason why not."""

from __future__ import annotations

import pytest

from claudefs_repl.clock import HybridClock
from claudefs_repl.journal import ROOT_INODE, Incarnation, JournalId, SiteId
from nodes.store.local import (
    CreateFile,
    GiveUp,
    LocalRequest,
    MakeDir,
    MakeLink,
    MakeSymlink,
    Move,
    NameFile,
    Remove,
    RemoveDir,
    RemoveX,
    SetAttributes,
    SetX,
    StampSource,
    TruncateFile,
    WriteData,
)
from nodes.store.refold import OldEntry
from nodes.store.sqlite_store import SqliteStore

SHARDS = 2
OLD, NEW = JournalId(SiteId(2), Incarnation(1)), JournalId(SiteId(2), Incarnation(2))
START_US = 1_700_000_000_000_000


class Store:
    """A store and one journal that its operations go into."""

    def __init__(self, store, journal, floor_us):
        self.store, self.journal = store, journal
        self.clock = HybridClock(floor_us=floor_us)
        self.next_seqs = (1,) * SHARDS

    def source(self):
        return StampSource(self.journal, SHARDS, self.next_seqs, self.clock, START_US)

    async def write(self, *ops):
        """One request; its entries as a log would keep them, and the objects."""
        async with self.store.transaction() as transaction:
            fold = await transaction.fold_local([LocalRequest(ops)], self.source())
            await transaction.commit()
        self.next_seqs = fold.next_seqs
        (outcome,) = fold.outcomes
        assert outcome.error is None, outcome.error
        entries = [
            OldEntry(row.timestamp_us, block.shard, row.seq, row.inode, row.op, row.payload)
            for block in fold.blocks
            for row in block.rows()
        ]
        return sorted(entries), [result.inode for result in outcome.results]

    async def refold(self, entries):
        numbers = {}
        async with self.store.transaction() as transaction:
            done = await transaction.refold(entries, self.source(), numbers)
            await transaction.commit()
        self.next_seqs = done.next_seqs
        return done, numbers

    async def tree(self):
        """What the view shows at every path, but for inode numbers."""

        def read(view):
            found = {}
            for path, _ in view.manifest(b"/", 1000)[0]:
                stat = view.resolve(path)
                content = view.read(stat.inode, 0, 1000) if stat.kind == "file" else None
                found[path] = (stat.kind, stat.mode, content, dict(view.xattrs(stat.inode)))
            return found

        return await self.store.read(read)


@pytest.fixture
async def stores(tmp_path):
    """The old site's store, and the new one's, which is empty."""
    old = Store(await SqliteStore.open(tmp_path / "old.sqlite", shard_count=SHARDS), OLD, START_US)
    new = Store(await SqliteStore.open(tmp_path / "new.sqlite", shard_count=SHARDS), NEW, START_US + 10**9)
    yield old, new
    await old.store.close()
    await new.store.close()


async def test_every_operation_has_its_effect_again_under_new_numbers(stores):
    """The tree that was written comes out the same; every object has a number of a new stamp."""
    old, new = stores
    entries = []

    async def write(*ops):
        made, inodes = await old.write(*ops)
        entries.extend(made)
        return inodes

    (directory,) = await write(MakeDir(ROOT_INODE, b"dir", 0o755, 0, 0, 0))
    file, *_ = await write(CreateFile(directory, b"file", 0o600, 0, 0, 0), WriteData(-1, 0, b"0123456789"))
    await write(TruncateFile(file, 4), SetAttributes(file, mode=0o640), SetX(file, b"user.a", b"1"))
    await write(SetX(file, b"user.b", b"2"), RemoveX(file, b"user.b"))
    await write(MakeLink(file, ROOT_INODE, b"hard"), MakeSymlink(ROOT_INODE, b"soft", 0, 0, 0, b"dir/file"))
    (put,) = await write(CreateFile(None, None, 0o644, 0, 0, 0))
    await write(WriteData(put, 0, b"second"), NameFile(put, directory, b"file", replace=True))
    (gone,) = await write(CreateFile(None, None, 0o644, 0, 0, 0))
    await write(GiveUp(gone))
    await write(CreateFile(ROOT_INODE, b"removed", 0o644, 0, 0, 0))
    await write(Remove(ROOT_INODE, b"removed"))
    await write(MakeDir(ROOT_INODE, b"empty", 0o755, 0, 0, 0))
    await write(RemoveDir(ROOT_INODE, b"empty"))
    await write(MakeDir(directory, b"deep", 0o755, 0, 0, 0))
    await write(Move(directory, b"deep", ROOT_INODE, b"moved"), Move(ROOT_INODE, b"hard", directory, b"harder"))

    done, numbers = await new.refold(entries)
    assert done.refused == []
    assert sum(block.count for block in done.blocks) == len(entries)
    assert await new.tree() == await old.tree()
    assert directory in numbers
    assert set(numbers.values()).isdisjoint(numbers)


async def test_a_name_that_shows_another_object_by_now_is_not_removed_moved_or_replaced(stores):
    """Whatever came to a name meanwhile is somebody else's: the old operation is refused, and says so."""
    old, new = stores
    await old.write(CreateFile(ROOT_INODE, b"a", 0o644, 0, 0, 0))
    rest = []
    rest += (await old.write(Move(ROOT_INODE, b"a", ROOT_INODE, b"b")))[0]
    rest += (await old.write(CreateFile(ROOT_INODE, b"c", 0o644, 0, 0, 0)))[0]
    rest += (await old.write(Move(ROOT_INODE, b"c", ROOT_INODE, b"b", replace=True)))[0]
    rest += (await old.write(Remove(ROOT_INODE, b"b")))[0]
    await new.write(CreateFile(ROOT_INODE, b"a", 0o600, 0, 0, 0), CreateFile(ROOT_INODE, b"b", 0o600, 0, 0, 0))
    done, _ = await new.refold(rest)
    assert [one.reason for one in done.refused] == [
        "another object has the name b by now",
        "another object has the name b by now",
        "the object no longer has the name b",
    ]
    assert {path: mode for path, (_, mode, _, _) in (await new.tree()).items()} == {
        b"/a": 0o600,
        b"/b": 0o600,
        b"/c": 0o644,
    }


async def test_what_hangs_on_an_object_that_could_not_be_made_is_refused_too(stores):
    """A directory whose name is taken is not made, nor is what was put into it; the rest goes on."""
    old, new = stores
    entries, _ = await old.write(MakeDir(ROOT_INODE, b"taken", 0o755, 0, 0, 0), CreateFile(-1, b"in", 0o644, 0, 0, 0))
    entries += (await old.write(CreateFile(ROOT_INODE, b"other", 0o644, 0, 0, 0)))[0]
    await new.write(CreateFile(ROOT_INODE, b"taken", 0o600, 0, 0, 0))
    done, _ = await new.refold(entries)
    assert [one.entry for one in done.refused] == entries[:2]
    assert "there is already a taken" in done.refused[0].reason
    assert "no such directory" in done.refused[1].reason
    assert set(await new.tree()) == {b"/taken", b"/other"}


async def test_an_entry_that_cannot_be_decoded_is_refused_and_stops_nothing(stores):
    """A payload of an unknown version is kept aside like everything that does not fit."""
    old, new = stores
    entries, _ = await old.write(CreateFile(ROOT_INODE, b"file", 0o644, 0, 0, 0))
    broken = OldEntry(START_US, 0, 9, 5, 3, b"\x91\x07")
    done, _ = await new.refold([broken, *entries])
    assert [one.entry for one in done.refused] == [broken]
    assert set(await new.tree()) == {b"/file"}
