"""Names that become contested are told once, whichever entry made them so."""

from __future__ import annotations

import sqlite3

from claudefs_repl.clock import HybridClock
from claudefs_repl.journal import ROOT_INODE, JournalId
from nodes.store.fold import Fold, NameConflict
from nodes.store.local import CreateFile, LocalRequest, Move, Remove, StampSource
from nodes.store.schema import set_up
from nodes.store.validate import fold_local


class Place:
    """One site's store in memory."""

    def __init__(self, site):
        self.journal = JournalId(site, 10 + site)
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        set_up(self.connection, shard_count=2)
        self.clock = HybridClock(floor_us=1000 * site)

    def write(self, *ops):
        fold = Fold(self.connection)
        next_seqs = tuple(seq + 1 for seq in fold.cursors_of(self.journal))
        source = StampSource(self.journal, 2, next_seqs, self.clock, 0)
        done = fold_local(fold, [LocalRequest(ops)], source)
        assert done.outcomes[0].error is None
        fold.save()
        return done.blocks, [result.inode for result in done.outcomes[0].results]

    def take(self, origin, blocks):
        fold = Fold(self.connection)
        report = fold.fold_blocks(origin.journal, blocks)
        fold.save()
        return report.conflicts

    def close(self):
        self.connection.close()


def create(name):
    return CreateFile(ROOT_INODE, name, 0o644, 0, 0, 0)


def test_two_files_of_one_name_are_one_conflict_at_both_sites():
    """Each site finds the same winner and loser, and tells it once."""
    one, two = Place(1), Place(2)
    blocks_1, (inode_1,) = one.write(create(b"f"))
    blocks_2, (inode_2,) = two.write(create(b"f"))
    expected = [NameConflict(b"f", winner=inode_2, loser=inode_1, loser_origin=1)]
    assert one.take(two, blocks_2) == expected
    assert two.take(one, blocks_1) == expected
    more, _ = two.write(create(b"g"))
    assert one.take(two, more) == []
    one.close()
    two.close()


def test_replacing_a_name_that_was_seen_is_no_conflict():
    """A rename over a file, and a name that is given again after a removal, are updates."""
    one, two = Place(1), Place(2)
    blocks, _ = one.write(create(b"a"), create(b"b"), Move(ROOT_INODE, b"a", ROOT_INODE, b"b", replace=True))
    assert two.take(one, blocks) == []
    again, _ = two.write(Remove(ROOT_INODE, b"b"), create(b"b"))
    assert one.take(two, again) == []
    one.close()
    two.close()
