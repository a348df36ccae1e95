"""Compaction of a batch: exactly what later entries of it undo is emptied, and nothing is dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.block import SUPERSEDED, Block, NewRow, Row, join_blocks
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import STAMP_BITS, Incarnation, Inode, JournalId, Op, SiteId, entry_crc32, shard_of
from claudefs_repl.operations import Create, RemoveXattr, SetAttr, SetXattr, Truncate, Write
from claudefs_repl.sync import ROWS_MAX, BatchCompactor
from protocol.payload import OP_OF, decode_payload, encode_payload

ORIGIN = SiteId(1)
SHARDS = 4
BETA = JournalId(SiteId(2), Incarnation(2))
SHARD = shard_of(1, SHARDS)
INODES = [inode for inode in range(1, 100) if shard_of(inode, SHARDS) == SHARD][:3]
COMPACTOR = BatchCompactor(ORIGIN, SHARDS, decode_payload)


def row(seq, operation, inode=INODES[0], *, timestamp_us=None, crc_of=b"", flags=0):
    op, payload = OP_OF[type(operation)], encode_payload(operation)
    stamp = 1000 + seq if timestamp_us is None else timestamp_us
    return NewRow(
        stamp, op, Inode(inode), payload, entry_crc32(seq, SHARD, ORIGIN, stamp, inode, op, payload + crc_of), flags
    )


def batch(*operations, seen=None):
    """A batch of operations on one object; `seen` has a number for each, equal for those that had seen the same."""
    rows = [
        operation if isinstance(operation, NewRow) else row(seq, operation)
        for seq, operation in enumerate(operations, 1)
    ]
    return batch_of(rows, seen or [0] * len(rows))


def batch_of(rows, seen):
    return join_blocks(
        [
            Block.build(shard=SHARD, first_seq=seq, rows=[one], seen=encode_cursors({BETA: (0, 0, number, 0)}, SHARDS))
            for seq, (one, number) in enumerate(zip(rows, seen, strict=True), 1)
        ]
    )


def emptied(block):
    """The seqs that compaction empties; the batch must be whole but for their payloads."""
    compacted = COMPACTOR.compact(block)
    seqs = {one.seq for one in compacted.block.rows() if one.flags == SUPERSEDED}
    expected = [
        Row(*one[:3], SUPERSEDED, one.inode, b"", one.crc32, one.seen) if one.seq in seqs else one
        for one in block.rows()
    ]
    assert list(compacted.block.rows()) == expected
    assert compacted.block.seen_table == block.seen_table
    assert compacted.rows_emptied == len(seqs)
    assert compacted.bytes_saved == len(block.body) - len(compacted.block.body)
    compacted.block.check_rows()
    return seqs


W = Write
CASES = [
    ("a write of the same bytes", (W(10, b"abc"), W(10, b"xyz")), {1}),
    ("a write of more bytes", (W(10, b"abc"), W(9, b"vwxyz")), {1}),
    ("one byte before is left", (W(9, b"abc"), W(10, b"vwxyz")), set()),
    ("one byte behind is left", (W(12, b"abc"), W(10, b"wxyz")), set()),
    ("two that only together cover it", (W(0, b"abcd"), W(0, b"xx"), W(2, b"xx")), set()),
    ("the last of many", (W(0, b"a"), W(0, b"b"), W(0, b"c"), W(0, b"d")), {1, 2, 3}),
    ("what is emptied undoes nothing itself", (W(5, b"a"), W(4, b"bbb"), W(0, b"c" * 9)), {1, 2}),
    ("an empty write", (W(5, b""), W(4, b"bbb")), set()),
    ("an empty write covers nothing", (W(5, b"a"), W(5, b"")), set()),
    ("a truncate leaves the time and its rivals", (W(5, b"abc"), Truncate(0)), set()),
    ("a truncate between", (W(5, b"abc"), Truncate(0), W(5, b"abc")), {1}),
    ("truncates stay", (Truncate(5), Truncate(5), Truncate(1)), set()),
    ("attributes set again by one", (SetAttr.only(mode=1), SetAttr.only(mode=2, uid=3)), {1}),
    ("attributes set again by several", (SetAttr.only(mode=1, uid=1), SetAttr.only(uid=2), SetAttr.only(mode=2)), {1}),
    ("an attribute that is not set again", (SetAttr.only(mode=1, uid=1), SetAttr.only(mode=2, gid=2)), set()),
    ("a time is not set by a write", (SetAttr.only(mtime_ns=1), W(0, b"a")), set()),
    ("an extended attribute", (SetXattr(b"user.a", b"1"), SetXattr(b"user.b", b"1"), RemoveXattr(b"user.a")), {1}),
    ("one that is not the user's", (SetXattr(b"system.a", b"1"), SetXattr(b"system.a", b"2")), set()),
    ("a removed one", (RemoveXattr(b"user.a"), SetXattr(b"user.a", b"1")), {1}),
    ("a making", (Create(0o644, 0, 0, 0, None, None), SetAttr.only(mode=1, uid=1, gid=1, mtime_ns=1)), set()),
]


@pytest.mark.parametrize(("operations", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_undone_is_emptied(operations, expected):
    """A payload goes if later ones leave nothing of its effect but the time of a write, and only then."""
    assert emptied(batch(*operations)) == expected


def test_only_who_had_seen_the_same_undoes():
    """A write that had seen more is a change of what was seen: both stay whole, for who is concurrent with one of them."""
    again = [W(0, b"a"), W(0, b"b"), W(0, b"c")]
    assert emptied(batch(*again, seen=[0, 1, 1])) == {2}
    assert emptied(batch(*again, seen=[0, 1, 2])) == set()


def test_only_the_same_object_is_undone():
    """Equal ranges of other objects have nothing to do with each other."""
    rows = [row(1, W(0, b"a"), INODES[0]), row(2, W(0, b"a"), INODES[1]), row(3, W(0, b"b"), INODES[1])]
    assert emptied(batch_of(rows, [0, 0, 0])) == {2}


def test_what_is_no_sound_entry_neither_undoes_nor_is_emptied():
    """What ends as a dead letter must do so everywhere, with its payload, and without what it would have undone."""
    covering = row(2, W(0, b"xyz"), crc_of=b"!")
    assert emptied(batch(W(0, b"abc"), covering)) == set()
    assert emptied(batch(row(1, W(0, b"abc"), crc_of=b"!"), W(0, b"xyz"))) == set()
    parted = (W(0, b"abc"), row(2, W(9, b"xyz"), crc_of=b"!"), W(0, b"123"))
    assert emptied(batch(*parted)) == set()
    for parting in (row(2, Truncate(9), crc_of=b"!"), row(2, Truncate(9), flags=4)):
        assert emptied(batch(W(0, b"abc"), parting, W(0, b"123"), seen=[0, 1, 0])) == set()
    undecodable = NewRow(
        1002, Op.WRITE, INODES[0], b"?", entry_crc32(2, SHARD, ORIGIN, 1002, INODES[0], Op.WRITE, b"?")
    )
    assert emptied(batch(W(0, b"abc"), undecodable)) == set()
    assert emptied(batch(W(0, b"abc"), row(2, W(0, b"xyz"), timestamp_us=1 << STAMP_BITS))) == set()
    elsewhere = next(inode for inode in range(1, 100) if shard_of(inode, SHARDS) != SHARD)
    assert emptied(batch_of([row(1, W(0, b"a"), elsewhere), row(2, W(0, b"b"), elsewhere)], [0, 0])) == set()


def test_stamps_that_go_back_undo_nothing():
    """The later stamp wins, not the later seq: a batch whose stamps are out of order is sent as it is."""
    assert emptied(batch(row(1, W(0, b"abc"), timestamp_us=5), row(2, W(0, b"xyz"), timestamp_us=4))) == set()
    assert emptied(batch(row(1, W(0, b"abc"), timestamp_us=5), row(2, W(0, b"xyz"), timestamp_us=5))) == {1}


def test_a_batch_is_compacted_again_without_harm():
    """A relay passes on what it has: an emptied entry stays so, undoes nothing, and the rest is judged as ever."""
    first = COMPACTOR.compact(batch(W(0, b"abc"), W(0, b"xyz"))).block
    longer = join_blocks(
        [first, Block.build(shard=SHARD, first_seq=3, rows=[row(3, W(0, b"12345"))], seen=first.seen_table[0])]
    )
    again = COMPACTOR.compact(longer)
    assert [one.flags for one in again.block.rows()] == [SUPERSEDED, SUPERSEDED, 0]
    assert again.rows_emptied == 1
    assert COMPACTOR.compact(again.block).block is again.block


def test_a_batch_with_nothing_to_undo_is_not_copied():
    """The very same block goes on, whether its columns or its entries showed that nothing is undone."""
    for block in (batch(W(0, b"a")), batch(W(0, b"a"), Truncate(0)), batch(W(0, b"a"), W(1, b"b"))):
        assert COMPACTOR.compact(block).block is block


def test_a_batch_of_very_many_entries_is_left_alone():
    """The work for one batch is bounded: beyond so many entries it is sent as it is."""
    rows = [row(seq, SetAttr.only(mode=1)) for seq in range(1, ROWS_MAX + 2)]
    seen = encode_cursors({}, SHARDS)
    longest = Block.build(shard=SHARD, first_seq=1, rows=rows[:-1], seen=seen)
    assert len(emptied(longest)) == ROWS_MAX - 1
    assert emptied(Block.build(shard=SHARD, first_seq=1, rows=rows, seen=seen)) == set()


operations = st.one_of(
    st.builds(Write, st.integers(0, 12), st.binary(max_size=8)),
    st.builds(Truncate, st.integers(0, 14)),
    st.builds(SetAttr, st.none() | st.just(1), st.none() | st.just(1), st.none(), st.none() | st.just(1)),
    st.builds(SetXattr, st.sampled_from([b"a", b"b"]), st.just(b"v")),
    st.builds(RemoveXattr, st.sampled_from([b"a", b"b"])),
)
histories = st.lists(st.tuples(operations, st.sampled_from(INODES), st.integers(0, 1)), min_size=1, max_size=40)


def undone(operation, later):
    """Whether an operation is undone by later ones on the same object, as the table in the module tells it."""
    match operation:
        case Write(offset, data):
            own = set(range(offset, offset + len(data)))
            return bool(own) and any(
                isinstance(one, Write) and own <= set(range(one.offset, one.offset + len(one.data))) for one in later
            )
        case SetAttr():
            names = ("mode", "uid", "gid", "mtime_ns")
            again = [one for one in later if isinstance(one, SetAttr)]
            wanted = [name for name in names if getattr(operation, name) is not None]
            return bool(wanted) and all(any(getattr(one, name) is not None for one in again) for name in wanted)
        case SetXattr() | RemoveXattr():
            return any(isinstance(one, SetXattr | RemoveXattr) and one.name == operation.name for one in later)
    return False


@given(histories)
def test_exactly_what_is_undone_is_emptied(history):
    """Whatever the history, an entry is emptied if and only if the definition says so."""
    rows = [row(seq, operation, inode) for seq, (operation, inode, _) in enumerate(history, 1)]
    expected = {
        seq
        for seq, (operation, inode, seen) in enumerate(history, 1)
        if undone(operation, [later for later, *same in history[seq:] if same == [inode, seen]])
    }
    assert emptied(batch_of(rows, [seen for _, _, seen in history])) == expected
