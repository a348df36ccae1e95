"""Blocks against a list of rows."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.block import (
    BLOCK_BYTES_MAX,
    BODY_BYTES_MAX,
    ENTRIES_MAX,
    SEEN_BYTES_MAX,
    SEEN_MAX,
    SUPERSEDED,
    Block,
    NewRow,
    Row,
    join_blocks,
)
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import PAYLOAD_BYTES_MAX, Incarnation, Inode, JournalEntry, JournalId, Op, Shard, SiteId

SHARDS = 4
HEAD = struct.Struct("<BBHIQIII")
ALPHA, BETA = (JournalId(SiteId(site), Incarnation(site)) for site in (1, 2))

seen_vectors = st.dictionaries(
    st.sampled_from([ALPHA, BETA]), st.tuples(*[st.integers(0, 3)] * SHARDS), max_size=2
).map(lambda cursors: encode_cursors(cursors, SHARDS))
payloads = st.binary(max_size=12)
new_rows = st.builds(
    NewRow,
    timestamp_us=st.integers(0, (1 << 64) - 1),
    op=st.sampled_from(Op),
    inode=st.integers(0, (1 << 63) - 1),
    payload=payloads,
    crc32=st.integers(0, (1 << 32) - 1),
    flags=st.integers(0, 127).map(lambda bits: bits << 1),  # SUPERSEDED has tests of its own
)
# a run: consecutive blocks as group commits make them, each with its own `seen`
runs = st.lists(st.tuples(st.lists(new_rows, min_size=1, max_size=5), seen_vectors), min_size=1, max_size=6)
first_seqs = st.integers(1, 1 << 62)


def build_run(first_seq, run, shard=1):
    blocks = []
    for rows, seen in run:
        blocks.append(Block.build(shard=Shard(shard), first_seq=first_seq, rows=rows, seen=seen))
        first_seq += len(rows)
    return blocks


def build(count=3, first_seq=10, payload=b"payload"):
    rows = [NewRow(1000 + i, Op.WRITE, Inode(70 + i), payload + bytes(i), i) for i in range(count)]
    return Block.build(
        shard=Shard(2), first_seq=first_seq, rows=rows, seen=encode_cursors({ALPHA: (1, 2, 3, 4)}, SHARDS)
    )


def model(first_seq, run):
    """The rows that a run stands for, each with its `seen` vector in place of an index."""
    flat = [(row, seen) for rows, seen in run for row in rows]
    return [
        (seq, row.timestamp_us, row.op, row.flags, row.inode, row.payload, row.crc32, seen)
        for seq, (row, seen) in enumerate(flat, first_seq)
    ]


def resolved(block):
    table = block.seen_table
    return [(*row[:-1], table[row.seen]) for row in block.rows()]


@given(first_seqs, runs)
def test_rows_are_what_was_built(first_seq, run):
    """A block gives back the rows that it was built of, with seqs that follow from the first."""
    blocks = build_run(first_seq, run)
    assert [row for block in blocks for row in resolved(block)] == model(first_seq, run)


@given(first_seqs, runs)
def test_columns_agree_with_rows(first_seq, run):
    """Each column holds one value for each row, in order."""
    joined = join_blocks(build_run(first_seq, run))
    rows = list(joined.rows())
    assert joined.count == len(rows) == len(joined.seen_indexes)
    assert (joined.first_seq, joined.last_seq) == (rows[0].seq, rows[-1].seq)
    assert joined.timestamps.tolist() == [row.timestamp_us for row in rows]
    assert joined.lengths.tolist() == [len(row.payload) for row in rows]
    assert joined.crcs.tolist() == [row.crc32 for row in rows]
    assert list(joined.ops) == [row.op for row in rows]
    assert list(joined.flags) == [row.flags for row in rows]
    assert bytes(joined.body) == b"".join(struct.pack("<QQ", row.seq, row.inode) + row.payload for row in rows)
    assert joined.seen_bytes == sum(map(len, joined.seen_table))


@given(first_seqs, runs)
def test_join_is_concatenation(first_seq, run):
    """Joining blocks joins their rows and keeps each row's `seen`, each vector once."""
    joined = join_blocks(build_run(first_seq, run))
    assert resolved(joined) == model(first_seq, run)
    assert sorted(joined.seen_table) == sorted({seen for _, seen in run})


@given(first_seqs, runs, st.data())
def test_join_is_associative(first_seq, run, data):
    """It does not matter in how many steps blocks are joined."""
    blocks = build_run(first_seq, run)
    at = data.draw(st.integers(1, len(blocks)))
    head, rest = join_blocks(blocks[:at]), blocks[at:]
    assert join_blocks([head, *rest]).encoded == join_blocks(blocks).encoded


@given(first_seqs, runs, st.data())
def test_cut_is_a_slice(first_seq, run, data):
    """A cut has exactly the rows of its range."""
    joined = join_blocks(build_run(first_seq, run))
    low = data.draw(st.integers(joined.first_seq, joined.last_seq))
    high = data.draw(st.integers(low, joined.last_seq))
    cut = joined.cut(first_seq=low, last_seq=high)
    assert (cut.first_seq, cut.last_seq, cut.shard) == (low, high, joined.shard)
    assert resolved(cut) == model(first_seq, run)[low - first_seq : high - first_seq + 1]


@given(first_seqs, runs, st.data())
def test_after_is_the_rest(first_seq, run, data):
    """What lies after a seq is cut from the next one; a seq before the block leaves it whole."""
    joined = join_blocks(build_run(first_seq, run))
    seq = data.draw(st.integers(0, joined.last_seq - 1))
    assert resolved(joined.after(seq)) == [row for row in model(first_seq, run) if row[0] > seq]


@given(first_seqs, runs, st.data())
def test_cuts_join_to_the_whole(first_seq, run, data):
    """A block cut in two and joined again has the same rows."""
    joined = join_blocks(build_run(first_seq, run))
    at = data.draw(st.integers(joined.first_seq, joined.last_seq))
    parts = [joined.cut(first_seq=joined.first_seq, last_seq=at)]
    if at < joined.last_seq:
        parts.append(joined.after(at))
    assert resolved(join_blocks(parts)) == model(first_seq, run)


def test_whole_cut_and_single_join_copy_nothing():
    """The block itself is given back where nothing is cut or joined."""
    block = build()
    assert block.cut(first_seq=10, last_seq=12) is block
    assert block.after(0) is block
    assert join_blocks([block]) is block


@pytest.mark.parametrize(("first_seq", "last_seq"), [(9, 11), (10, 13), (12, 11), (13, 13)])
def test_cut_outside_is_our_error(first_seq, last_seq):
    """A cut beyond the block, or of nothing, is a mistake of the caller's code."""
    with pytest.raises(AssertionError):
        build().cut(first_seq=first_seq, last_seq=last_seq)


def test_join_with_a_hole_is_our_error():
    """Blocks that do not follow one another, or are of two shards, are never joined."""
    with pytest.raises(AssertionError):
        join_blocks([build(first_seq=1), build(first_seq=5)])
    other_shard = build_run(13, [([NewRow(1, Op.WRITE, Inode(1), b"", 0)], encode_cursors({}, SHARDS))])[0]
    with pytest.raises(AssertionError):
        join_blocks([build(first_seq=10), other_shard])


def test_join_renumbers_up_to_256_vectors():
    """256 different `seen` vectors fit one block, and each row keeps its own; one more is refused."""
    run = [
        ([NewRow(seq, Op.WRITE, Inode(1), b"", 0)], encode_cursors({ALPHA: (seq, 0, 0, 0)}, SHARDS))
        for seq in range(1, SEEN_MAX + 2)
    ]
    blocks = build_run(1, run)
    joined = join_blocks([join_blocks(blocks[:100]), *blocks[100:SEEN_MAX]])
    assert resolved(joined) == model(1, run[:SEEN_MAX])
    with pytest.raises(AssertionError):
        join_blocks(blocks)


def test_entries_are_journal_entries():
    """The rest of the code sees rows as entries of a given origin."""
    rows = []
    for seq in (4, 5):
        entry = JournalEntry.make(
            seq=seq,
            shard_id=Shard(1),
            site_id=SiteId(9),
            timestamp_us=seq * 100,
            inode=Inode(7),
            op=Op.SET_ATTR,
            payload=b"p" * seq,
        )
        rows.append(entry)
    block = Block.build(
        shard=Shard(1),
        first_seq=4,
        rows=[NewRow(e.timestamp_us, e.op, e.inode, e.payload, e.crc32) for e in rows],
        seen=encode_cursors({}, SHARDS),
    )
    assert list(block.entries(SiteId(9))) == rows
    assert all(entry.is_intact() for entry in block.entries(SiteId(9)))


def test_golden_vector():
    """The layout, which logs and peers keep, never changes."""
    block = Block.build(
        shard=Shard(2),
        first_seq=10,
        rows=[
            NewRow(0x1122, Op.WRITE, Inode(0x33), b"AB", 0x44556677),
            NewRow(0x1123, Op.MKDIR, Inode(0x34), b"", 0x8899AABB, flags=1),
        ],
        seen=encode_cursors({ALPHA: (5,)}, 1),
    )
    assert bytes(block.encoded).hex() == (
        "01" "00" "0000" "02000000" "0a00000000000000" "02000000" "1c000000" "22000000"
        "2211000000000000" "2311000000000000"
        "02000000" "00000000"
        "77665544" "bbaa9988"
        "0308" "0001" "0000"
        "0100" "0100" "0100000000000000" "0100000000000000" "0500000000000000"
        "0a00000000000000" "3300000000000000" "4142"
        "0b00000000000000" "3400000000000000"
    )  # fmt: skip
    assert list(Block(bytes(block.encoded)).rows()) == [
        Row(10, 0x1122, 3, 0, 0x33, b"AB", 0x44556677, 0),
        Row(11, 0x1123, 8, 1, 0x34, b"", 0x8899AABB, 0),
    ]


def test_golden_vector_of_a_superseded_entry():
    """An emptied entry keeps everything but its payload, and has the flag."""
    rows = [NewRow(7, Op.WRITE, Inode(3), b"AB", 0x44556677), NewRow(8, Op.WRITE, Inode(3), b"CDE", 0x8899AABB)]
    block = Block.build(shard=Shard(0), first_seq=1, rows=rows, seen=encode_cursors({}, 1)).without_payloads([0])
    assert bytes(block.encoded).hex() == (
        "01" "00" "0000" "00000000" "0100000000000000" "02000000" "04000000" "23000000"
        "0700000000000000" "0800000000000000"
        "00000000" "03000000"
        "77665544" "bbaa9988"
        "0303" "0100" "0000"
        "0000" "0100"
        "0100000000000000" "0300000000000000"
        "0200000000000000" "0300000000000000" "434445"
    )  # fmt: skip


@given(first_seqs, runs, st.data())
def test_without_payloads_empties_and_flags_the_chosen_rows(first_seq, run, data):
    """Those rows have no payload and the flag; everything else of them, and all other rows, are as they were."""
    joined = join_blocks(build_run(first_seq, run))
    chosen = data.draw(st.sets(st.integers(0, joined.count - 1)))
    emptied = joined.without_payloads(chosen)
    expected = [
        (*row[:3], row[3] | SUPERSEDED, row[4], b"", *row[6:]) if index in chosen else row
        for index, row in enumerate(model(first_seq, run))
    ]
    assert resolved(emptied) == expected
    assert emptied.seen_table == joined.seen_table


def test_what_undid_an_entry_is_not_cut_off_from_it():
    """The beginning of a block may be cut off, but the end only behind entries that are whole."""
    block = build(count=5, first_seq=1).without_payloads([1, 2])
    assert [row.flags for row in block.after(2).rows()] == [SUPERSEDED, 0, 0]
    assert block.cut(first_seq=1, last_seq=1).count == 1
    assert block.cut(first_seq=4, last_seq=4).count == 1
    with pytest.raises(AssertionError):
        block.cut(first_seq=1, last_seq=4)


@given(first_seqs, runs)
def test_reading_back_is_the_same_block(first_seq, run):
    """A block reads back from bytes, and from a view of a larger buffer, as it was."""
    joined = join_blocks(build_run(first_seq, run))
    framed = b"before" + bytes(joined.encoded) + b"after"
    for encoded in (bytes(joined.encoded), memoryview(framed)[6:-5]):
        again = Block(encoded)
        assert (again.shard, again.first_seq, again.count) == (joined.shard, joined.first_seq, joined.count)
        assert list(again.rows()) == list(joined.rows())


def test_every_prefix_is_refused():
    """A block that is cut off anywhere, or followed by anything, is a ValueError."""
    encoded = bytes(build().encoded)
    for length in range(len(encoded)):
        with pytest.raises(ValueError):
            Block(encoded[:length])
    with pytest.raises(ValueError):
        Block(encoded + b"\0")


def accept_or_refuse(encoded):
    """Whatever the bytes, they are refused with a ValueError, or all that the block says of itself fits together."""
    try:
        block = Block(encoded)
        block.check_rows()
    except ValueError:
        return None
    rows = list(block.rows())
    assert len(rows) == block.count
    assert [row.seq for row in rows] == list(range(block.first_seq, block.last_seq + 1))
    assert all(row.inode < 1 << 63 and len(row.payload) <= PAYLOAD_BYTES_MAX for row in rows)
    assert all(row.seen < len(block.seen_table) for row in rows)
    assert all(row.op in list(Op) for row in rows)
    assert len(block.encoded) <= BLOCK_BYTES_MAX
    return block


@pytest.mark.parametrize("payload", [b"same", b""])
@pytest.mark.parametrize("count", [1, 3])
def test_every_changed_byte_is_refused_or_consistent(payload, count):
    """No change of one byte of a block makes anything but a ValueError or another consistent block."""
    encoded = bytearray(build(count, payload=payload).encoded)
    for at in range(len(encoded)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            encoded[at] ^= flip
            accept_or_refuse(bytes(encoded))
            encoded[at] ^= flip


@given(st.binary(min_size=HEAD.size, max_size=HEAD.size), st.binary(max_size=200))
def test_random_head_is_refused_or_consistent(head, rest):
    """Random bytes are refused with a ValueError and nothing else."""
    accept_or_refuse(head + rest)
    accept_or_refuse(b"\x01\x00\x00\x00" + head[4:] + rest)


@given(
    seen_last=st.integers(0, 255),
    shard=st.integers(0, (1 << 32) - 1),
    first_seq=st.integers(0, (1 << 64) - 1) | st.integers((1 << 63) - 3, (1 << 63) + 3),
    count=st.integers(0, 6) | st.integers(0, (1 << 32) - 1),
    seen_bytes=st.integers(0, 90) | st.integers(0, (1 << 32) - 1),
    body_bytes=st.integers(0, 90) | st.integers(0, (1 << 32) - 1),
)
def test_every_corrupted_head_is_refused_or_consistent(seen_last, shard, first_seq, count, seen_bytes, body_bytes):
    """Whatever numbers a head tells, the answer is a ValueError or a consistent block."""
    rest = bytes(build().encoded)[HEAD.size :]
    accept_or_refuse(HEAD.pack(1, seen_last, 0, shard, first_seq, count, seen_bytes, body_bytes) + rest)


def head_of(encoded, **changes):
    names = ("version", "seen_last", "zero", "shard", "first_seq", "count", "seen_bytes", "body_bytes")
    fields = dict(zip(names, HEAD.unpack_from(encoded), strict=True)) | changes
    return HEAD.pack(*fields.values()) + encoded[HEAD.size :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "layout"),
        ({"version": 0}, "layout"),
        ({"zero": 1}, "layout"),
        ({"count": 0}, "entries"),
        ({"count": ENTRIES_MAX + 1}, "entries"),
        ({"count": (1 << 32) - 1}, "entries"),
        ({"first_seq": 0}, "seq"),
        ({"first_seq": (1 << 63) - 2}, "seq"),
        ({"first_seq": (1 << 64) - 1}, "seq"),
        ({"seen_bytes": SEEN_BYTES_MAX + 1}, "table"),
        ({"body_bytes": BODY_BYTES_MAX + 1}, "body"),
        ({"body_bytes": 1}, "add up"),
        ({"count": 2}, "add up"),
        ({"seen_last": 1}, "cut off"),
    ],
)
def test_head_out_of_range_is_refused(changes, message):
    """Each number of the head has its range, and the refusal says which was left."""
    with pytest.raises(ValueError, match=message):
        Block(head_of(bytes(build().encoded), **changes))


def test_last_seq_may_be_the_last_of_all():
    """The greatest seq is 2^63 - 1."""
    assert build(first_seq=(1 << 63) - 3).last_seq == (1 << 63) - 1


@pytest.mark.parametrize("payload", [b"", b"same length"])
def test_seq_in_the_body_must_be_the_heads(payload):
    """A body whose seqs are not the head's is found by both ways of looking."""
    encoded = bytearray(build(1, payload=payload).encoded) + b""
    at = len(encoded) - len(payload) - 16
    encoded[at] ^= 1
    block = Block(bytes(encoded))
    with pytest.raises(ValueError, match="seq"):
        block.check_rows()
    with pytest.raises(ValueError, match="seq"):
        list(block.rows())


@given(st.lists(payloads, min_size=1, max_size=5), st.data())
def test_check_rows_finds_each_wrong_head(row_payloads, data):
    """A wrong seq or an inode beyond 63 bits is found in any row, whether the payloads are of one length or not."""
    rows = [NewRow(1, Op.WRITE, Inode(5), payload, 0) for payload in row_payloads]
    block = Block.build(shard=Shard(0), first_seq=7, rows=rows, seen=encode_cursors({}, SHARDS))
    block.check_rows()
    encoded = bytearray(block.encoded)
    wrong = data.draw(st.integers(0, len(rows) - 1))
    at = len(encoded) - len(block.body) + 16 * wrong + sum(map(len, row_payloads[:wrong]))
    at += data.draw(st.sampled_from([*range(8), 15]))
    encoded[at] ^= 0x80
    with pytest.raises(ValueError):
        Block(bytes(encoded)).check_rows()


def test_builder_refuses_what_a_reader_would():
    """No block is built that could not be read."""
    seen = encode_cursors({}, SHARDS)
    too_long = [NewRow(1, Op.WRITE, Inode(1), bytes(PAYLOAD_BYTES_MAX + 1), 0)]
    longest = NewRow(1, Op.WRITE, Inode(1), bytes(PAYLOAD_BYTES_MAX), 0)
    for rows, vector in (
        ([], seen),
        (too_long, seen),
        ([longest] * (BODY_BYTES_MAX // PAYLOAD_BYTES_MAX + 1), seen),
        ([longest], b""),
        ([longest], seen + b"\0"),
        ([longest], seen[:-1]),
        ([longest], seen + seen),
    ):
        with pytest.raises(ValueError):
            Block.build(shard=Shard(0), first_seq=1, rows=rows, seen=vector)


def test_largest_block():
    """A block of the most entries is built, read, cut, and stays within the limit that readers rely on."""
    row = NewRow(1, Op.WRITE, Inode(1), b"x" * 40, 0)
    seen = encode_cursors({ALPHA: (1,) * 256}, 256)
    block = Block.build(shard=Shard(0), first_seq=1, rows=[row] * ENTRIES_MAX, seen=seen)
    block.check_rows()
    assert block.count == ENTRIES_MAX
    assert len(block.encoded) <= BLOCK_BYTES_MAX
    assert block.cut(first_seq=ENTRIES_MAX, last_seq=ENTRIES_MAX).count == 1
    with pytest.raises(ValueError):
        Block.build(shard=Shard(0), first_seq=1, rows=[row] * (ENTRIES_MAX + 1), seen=seen)
