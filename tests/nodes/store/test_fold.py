"""Folding blocks: exactly once, in order, and nothing that cannot be decoded stops it."""

from __future__ import annotations

import struct

import pytest

from claudefs_repl.block import Block, NewRow, join_blocks
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import ROOT_INODE, STAMP_BITS, JournalId, Op, SiteId, entry_crc32, make_inode, shard_of
from claudefs_repl.operations import Create, Link, MkDir, Rename, Replaced, SetAttr, Unlink, Write
from nodes.store.conflict_view import count_open
from nodes.store.local import CreateFile, MakeDir, MakeLink, Remove, RemoveDir, WriteData
from nodes.store.view import conflict_name
from protocol.payload import OP_OF, encode_payload

SHARDS = 2
JOURNAL = JournalId(SiteId(5), 0xFFFF_FFFF_FFFF_FFFF)


def entry(timestamp_us, inode, operation, *, seq=1, payload=None, crc32=None, op=None):
    """A block of one entry of JOURNAL, sound unless told otherwise."""
    op = OP_OF[type(operation)] if op is None else op
    payload = encode_payload(operation) if payload is None else payload
    shard = shard_of(inode, SHARDS)
    if crc32 is None:
        crc32 = entry_crc32(seq, shard, JOURNAL.origin, timestamp_us, inode, op, payload)
    rows = [NewRow(timestamp_us, op, inode, payload, crc32)]
    return Block.build(shard=shard, first_seq=seq, rows=rows, seen=encode_cursors({}, SHARDS))


def made(timestamp_us):
    return make_inode(JOURNAL.origin, timestamp_us)


CREATE = Create(0o600, 0, 0, 0, ROOT_INODE, b"f")


def test_duplicates_have_no_effect(site, memory_site):
    """Blocks that were folded already, or in part, take effect once."""
    site.do(*[CreateFile(1, b"f%d" % number, 0, 0, 0, 0) for number in range(10)])
    site.do(*[WriteData(inode, 0, b"x") for inode in site.listing().values()])
    other = memory_site(2)
    counts = []
    for blocks in site.blocks.values():
        whole = join_blocks(blocks)
        counts.append([other.take(site.journal, [piece]).entries for piece in (blocks[0], whole, whole, blocks[1])])
        assert sum(counts[-1]) == whole.count
    assert other.view.tree_digest() == site.view.tree_digest()
    assert other.view.applied() == site.view.applied()
    other.close()


def test_a_gap_is_our_fault(site, memory_site):
    """Whoever hands over blocks has checked their order against the cursors: a hole is never folded."""
    site.do(*[CreateFile(1, b"f%d" % number, 0, 0, 0, 0) for number in range(10)])
    other = memory_site(2)
    block = site.blocks[0][0]
    with pytest.raises(AssertionError):
        other.take(site.journal, [block.after(block.first_seq)])
    other.connection.execute("ROLLBACK")
    assert other.view.applied() == {}
    other.close()


def test_the_report_tells_the_greatest_stamp(site, memory_site):
    """The clock of a site must pass every stamp that it has applied."""
    site.do(CreateFile(1, b"a", 0, 0, 0, 0))
    site.do(CreateFile(1, b"b", 0, 0, 0, 0))
    other = memory_site(2)
    reports = [other.take(site.journal, blocks) for blocks in site.blocks.values()]
    stamps = [stamp for blocks in site.blocks.values() for block in blocks for stamp in block.timestamps]
    assert max(report.last_timestamp_us for report in reports) == max(stamps)
    other.do(CreateFile(1, b"c", 0, 0, 0, 0))
    assert min(stamp for blocks in other.blocks.values() for block in blocks for stamp in block.timestamps) > max(
        stamps
    )
    other.close()


UNSOUND = {
    "not msgpack": entry(9, made(9), CREATE, payload=b"\xc1"),
    "another version": entry(9, made(9), CREATE, payload=b"\x91\x02"),
    "a wrong checksum": entry(9, made(9), CREATE, crc32=1),
    "an inode of another stamp": entry(8, made(9), CREATE),
    "an inode beyond 63 bits": entry(9, 1 << 63, Write(0, b"x")),
    "inode 0": entry(9, 0, Write(0, b"x")),
    "a stamp that no inode number holds": entry(1 << 52, made(9), Write(0, b"x")),
    "the root linked": entry(9, ROOT_INODE, Link(ROOT_INODE, b"x")),
    "the root removed": entry(9, ROOT_INODE, Unlink(ROOT_INODE, b"x", is_dir=True)),
    "the root moved": entry(9, ROOT_INODE, Rename(None, None, ROOT_INODE, b"x", True, ())),
    "the root replaced": entry(
        9, made(3), Rename(None, None, ROOT_INODE, b"x", True, (Replaced(ROOT_INODE, is_dir=True),))
    ),
    "a directory made in a younger one": entry(9, made(9), MkDir(0, 0, 0, 0, made(10), b"x")),
    "a directory moved into a younger one": entry(9, made(3), Rename(None, None, made(10), b"x", True, ())),
    "another site's file given up": entry(9, make_inode(SiteId(6), 3), Unlink(None, None, is_dir=False)),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_entry_is_a_dead_letter(site, name):
    """It is kept with its reason, changes nothing, and what follows it is applied."""
    block = UNSOUND[name]
    inode = next(number for number in range(20, 99) if shard_of(made(number), SHARDS) == block.shard)
    after = entry(inode, made(inode), CREATE, seq=2)
    before = site.dump()
    report = site.take(JOURNAL, [block])
    assert report.entries == 1
    assert report.last_timestamp_us == 0
    assert [(letter.key.shard, letter.key.seq) for letter in report.dead_letters] == [(block.shard, 1)]
    assert report.dead_letters[0].reason
    changed = [table for table, rows in site.dump().items() if rows != before[table]]
    assert set(changed) == {"dead_letter", "journal"}
    assert site.view.open_dead_letters() == 1
    assert site.take(JOURNAL, [after]).dead_letters == []
    assert list(site.listing()) == [b"f"]


def test_an_entry_in_the_wrong_shard_is_a_dead_letter(site):
    """All of an object's entries keep one order, which is that of its shard."""
    shard = 1 - shard_of(made(9), SHARDS)
    payload = encode_payload(CREATE)
    crc32 = entry_crc32(1, shard, JOURNAL.origin, 9, made(9), Op.CREATE, payload)
    rows = [NewRow(9, Op.CREATE, made(9), payload, crc32)]
    block = Block.build(shard=shard, first_seq=1, rows=rows, seen=encode_cursors({}, SHARDS))
    assert "shard" in site.take(JOURNAL, [block]).dead_letters[0].reason


def test_a_body_with_another_seq_is_a_dead_letter(site):
    """Head and body must tell the same."""
    encoded = bytearray(entry(9, made(9), CREATE).encoded)
    body = len(Block(bytes(encoded)).body)
    encoded[-body : -body + 8] = struct.pack("<Q", 7)
    assert len(site.take(JOURNAL, [Block(bytes(encoded))]).dead_letters) == 1


def test_a_link_that_comes_before_its_object_waits_for_it(site):
    """Shards arrive in any order: what refers to an unknown object is stored, invisible, until it is made."""
    file, directory = made(40), made(30)
    assert shard_of(file, SHARDS) != shard_of(directory, SHARDS)
    site.take(JOURNAL, [entry(40, file, Create(0o600, 0, 0, 0, directory, b"f"))])
    assert site.listing() == {}
    site.take(JOURNAL, [entry(30, directory, MkDir(0o700, 0, 0, 0, ROOT_INODE, b"d"))])
    assert site.view.resolve(b"/d/f").inode == file


def test_a_removal_that_comes_before_the_add_it_has_seen_stops_it(pair, memory_site):
    """A link that was removed elsewhere does not appear when its making arrives late."""
    one, two = pair
    (made,) = one.do(CreateFile(1, b"f", 0, 0, 0, 0))
    two.pull(one)
    two.do(Remove(1, b"f"))
    three = memory_site(3)
    three.pull(two)
    assert three.view.counts()["tombs"] == 1
    three.pull(one)
    assert three.listing() == {}
    assert three.view.stat(made.inode).nlink == 0
    three.close()


def test_a_removal_keeps_no_tomb_when_all_that_it_has_seen_is_here(pair):
    """In the common order of arrival nothing is left behind."""
    one, two = pair
    one.do(CreateFile(1, b"f", 0, 0, 0, 0))
    two.pull(one)
    two.do(Remove(1, b"f"))
    one.pull(two)
    assert one.view.counts()["tombs"] == two.view.counts()["tombs"] == 0


def test_an_object_that_becomes_known_late_shows_the_removed_directory_that_holds_it(memory_site):
    """A removed directory appears when the maker of what is linked into it is heard of at last."""
    maker, remover, linker, late = (memory_site(number) for number in (1, 2, 3, 4))
    remover.do(MakeDir(1, b"d", 0, 0, 0, 0))
    directory = remover.listing()[b"d"]
    (created,) = maker.do(CreateFile(1, b"f", 0, 0, 0, 0))
    linker.pull(remover)
    linker.pull(maker)
    linker.do(MakeLink(created.inode, directory, b"g"))
    remover.do(RemoveDir(1, b"d"))
    late.pull(remover)
    late.pull(linker)
    assert late.listing() == {}
    late.pull(maker)
    assert late.listing() == {b"d": directory, b"f": created.inode}
    assert late.listing(directory) == {b"g": created.inode}
    for site in (maker, remover, linker, late):
        site.close()


def test_a_name_that_was_claimed_the_long_way_is_taken_within_the_same_block(site):
    """Two entries of one block claim a name, the first of an object that another site has told of before: both show."""
    first, second = [made(number) for number in range(20, 60) if shard_of(made(number), SHARDS) == 0][:2]
    stamps = [inode & (1 << STAMP_BITS) - 1 for inode in (first, second)]
    op, payload = Op.SET_ATTR, encode_payload(SetAttr.only(mode=0o640))
    crc32 = entry_crc32(1, 0, 6, 99, first, op, payload)
    seen = encode_cursors({JOURNAL: (2, 0)}, SHARDS)
    rows = [NewRow(99, op, first, payload, crc32)]
    site.take(JournalId(SiteId(6), 6), [Block.build(shard=0, first_seq=1, rows=rows, seen=seen)])
    blocks = [entry(stamp, made(stamp), CREATE, seq=seq) for seq, stamp in enumerate(stamps, 1)]
    site.take(JOURNAL, [join_blocks(blocks)])
    assert site.listing() == {b"f": second, conflict_name(b"f", 5, first): first}


@pytest.mark.parametrize("names", ["4", "86420", "0a5z"])
@pytest.mark.parametrize("is_dir", [False, True])
def test_taken_names_are_found_however_many_lie_between_those_that_are_claimed(pair, memory_site, names, is_dir):
    """Two sites claim names of a directory that others have: every site shows both, whoever comes first."""
    one, other = pair
    make = MakeDir if is_dir else CreateFile
    one.do(*[make(1, b"%d" % number, 0, 0, 0, 0) for number in range(10)])
    other.do(*[CreateFile(1, name.encode(), 0, 0, 0, 0) for name in names])
    backwards = memory_site(3)
    for site in (other, one):
        backwards.pull(site)
    one.pull(other)
    other.pull(one)
    taken = sum(name.isdigit() for name in names)
    assert count_open(one.connection) == {"name": taken}
    assert len(one.listing()) == 10 + len(names)
    assert one.dump() == other.dump() == backwards.dump()
    backwards.close()


def test_what_is_gathered_of_one_block_is_known_to_the_next(site, memory_site):
    """A forged journal makes an object, and claims a name, in two blocks of one fold: as if they had come one by one."""
    first, second = [made(number) for number in range(20, 60) if shard_of(made(number), SHARDS) == 0][:2]
    stamps = [inode & (1 << STAMP_BITS) - 1 for inode in (first, second)]
    directory = MkDir(0o700, 0, 0, 0, ROOT_INODE, b"d")
    blocks = [
        entry(stamps[0], first, CREATE),
        entry(stamps[1], second, directory, seq=2),
        entry(stamps[0], first, Create(0o640, 0, 0, 0, ROOT_INODE, b"g"), seq=3),
    ]
    site.take(JOURNAL, [blocks[0], join_blocks(blocks[1:])])
    one_by_one = memory_site(1)
    for block in blocks:
        one_by_one.take(JOURNAL, [block])
    assert site.dump() == one_by_one.dump()
    one_by_one.close()
