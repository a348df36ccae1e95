"""What a store counts beside its cursors."""

from __future__ import annotations

import random
import zlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claudefs_repl.journal import JournalId
from nodes.store.fold import Fold
from nodes.store.local import CreateFile, MakeDir, Move, Remove, RemoveDir, SetAttributes, SetX, WriteData
from nodes.store.sums import JournalSums, count_dead_letters, count_showing, read_all_sums


def written(site):
    """A history with something of each kind that goes and that stays."""
    site.do(MakeDir(1, b"d", 0o700, 0, 0, 0), CreateFile(-1, b"a", 0o600, 0, 0, 0), CreateFile(1, b"b", 0o600, 0, 0, 0))
    directory, file = site.listing()[b"d"], site.listing()[b"b"]
    site.do(WriteData(file, 0, b"old"), WriteData(file, 0, b"new"), SetX(file, b"user.x", b"1"))
    site.do(SetAttributes(file, mode=0o640), Move(1, b"b", directory, b"c"), MakeDir(1, b"e", 0, 0, 0, 0))
    site.do(Remove(directory, b"a"), RemoveDir(1, b"e"))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_the_sums_do_not_depend_on_how_entries_are_cut_or_repeated(site, memory_site, seed):
    """The chain is over the entries' checksums in order; each entry is counted once, however it comes."""
    chance = random.Random(seed)
    if not any(site.blocks.values()):
        written(site)
    other = memory_site(2)
    for blocks in site.blocks.values():
        for block in blocks:
            at = block.first_seq
            while at <= block.last_seq:
                end = chance.randint(at, block.last_seq)
                other.take(site.journal, [block.cut(first_seq=chance.randint(block.first_seq, at), last_seq=end)])
                at = end + 1
    rows = {shard: [row for block in blocks for row in block.rows()] for shard, blocks in site.blocks.items()}
    for each in (site, other):
        sums = read_all_sums(each.connection)[site.journal]
        assert sums.folded == [len(rows[shard]) for shard in rows]
        assert sums.chains == [
            zlib.crc32(b"".join(row.crc32.to_bytes(4, "little") for row in rows[shard])) for shard in rows
        ]
    other.close()


def test_sums_come_back_as_they_went_in():
    """Counts have 64 bits and chains 32."""
    sums = JournalSums([(1 << 64) - 1, 0], [(1 << 32) - 1, 5])
    assert JournalSums.unpack(sums.pack()).folded == sums.folded
    assert JournalSums.unpack(sums.pack()).chains == sums.chains


def test_a_cursor_that_moves_without_folding_leaves_the_sums_behind(site, memory_site):
    """Counting is where folding is, not where cursors are moved."""
    written(site)
    other = memory_site(2)
    other.connection.execute("BEGIN")
    fold = Fold(other.connection)
    fold.sums_of(site.journal)
    fold.advance(site.journal, site.view.applied()[site.journal])
    fold.save()
    other.connection.execute("COMMIT")
    assert sum(other.view.applied()[site.journal]) == 11
    assert read_all_sums(other.connection)[site.journal].folded == [0, 0]
    other.close()


def test_current_are_the_entries_of_which_something_shows(site):
    """What was overwritten or removed, and removals themselves, have nothing current any more."""
    written(site)
    counts = count_showing(site.connection)
    # Of the eleven: two directories and two files made, one of each removed but its object known; the second write,
    # the attribute, the mode, and the new name of the moved file. Gone: the first write and the two removals.
    assert sum(each.current for each in counts.values()) == 8
    assert sum(each.lost for each in counts.values()) == 0
    last = site.view.applied()[site.journal]
    assert all(each.last_seq <= last[shard] for (_, shard), each in counts.items())
    assert count_dead_letters(site.connection) == {}


def test_dead_letters_are_counted_by_journal_and_shard(site):
    """Each is one entry that was dealt with."""
    from claudefs_repl.block import Block, NewRow
    from claudefs_repl.checkpoint import encode_cursors
    from claudefs_repl.journal import Op

    journal = JournalId(9, 9)
    rows = [NewRow(5, Op.WRITE, 0, b"\xc1", 0)] * 3
    site.take(journal, [Block.build(shard=1, first_seq=1, rows=rows, seen=encode_cursors({}, 2))])
    assert count_dead_letters(site.connection) == {(journal, 1): 3}
    assert read_all_sums(site.connection)[journal].folded == [0, 3]


def test_what_lost_to_a_concurrent_change_is_counted_apart(pair):
    """A loser that shows in no other way is on the conflict list, at every site; one that does is current."""
    one, two = pair
    (made,) = one.do(CreateFile(1, b"f", 0o600, 0, 0, 0))
    two.pull(one)
    one.do(SetAttributes(made.inode, mode=0o640), WriteData(made.inode, 0, b"abcd"))
    two.do(SetAttributes(made.inode, mode=0o644), WriteData(made.inode, 2, b"xy"))
    one.pull(two)
    two.pull(one)
    for site in pair:
        showing = count_showing(site.connection).values()
        # The earlier mode has lost and nothing else of it shows; of the earlier write two bytes still show.
        assert (sum(each.current for each in showing), sum(each.lost for each in showing)) == (4, 1)
