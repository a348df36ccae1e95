"""Identifiers, stamps, entries: their forms and orders."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.journal import (
    ROOT_INODE,
    SITE_ID_MAX,
    Incarnation,
    Inode,
    JournalEntry,
    JournalId,
    Op,
    Shard,
    SiteId,
    Stamp,
    entry_crc32,
    make_inode,
    shard_of,
)

u64 = st.integers(0, (1 << 64) - 1)
small = st.integers(0, 3)
stamps = st.builds(Stamp, u64 | small, u64 | small, u64 | small, st.integers(0, 255), u64 | small)


@given(stamps, stamps)
def test_packed_stamps_order_as_stamps_do(one, other):
    """The byte order of packed stamps is the total order of entries."""
    assert (one < other) == (one.pack() < other.pack())
    assert (one == other) == (one.pack() == other.pack())


@given(stamps)
def test_packed_stamp_round_trips(stamp):
    """A stamp is 36 bytes and comes back as it was."""
    assert len(stamp.pack()) == 36
    assert Stamp.unpack(stamp.pack()) == stamp


def test_packed_stamp_golden_vector():
    """The layout of a stamp, which stores keep, never changes."""
    stamp = Stamp(0x0102030405060708, SiteId(2), Incarnation(3), Shard(4), 5)
    assert stamp.pack().hex() == (
        "0102030405060708" + "0000000000000002" + "0000000000000003" + "00000004" + "0000000000000005"
    )


def test_crc_is_the_specified_one():
    """The checksum is CRC-32/IEEE over seq, shard, site, timestamp, inode (little endian), op, payload."""

    def crc32_from_scratch(data):
        crc = 0xFFFF_FFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0xEDB8_8320 if crc & 1 else 0)
        return crc ^ 0xFFFF_FFFF

    message = struct.pack("<QIQQQ", 7, 3, 1, 1_700_000_000_000_000, 99) + bytes([Op.WRITE]) + b"payload"
    assert entry_crc32(7, 3, 1, 1_700_000_000_000_000, 99, Op.WRITE, b"payload") == crc32_from_scratch(message)
    assert crc32_from_scratch(b"123456789") == 0xCBF4_3926


ENTRY = JournalEntry.make(
    seq=7,
    shard_id=Shard(3),
    site_id=SiteId(1),
    timestamp_us=1_700_000_000_000_000,
    inode=Inode(99),
    op=Op.WRITE,
    payload=b"payload",
)


def test_made_entry_is_intact():
    """An entry that was just made matches its checksum, whose value never changes."""
    assert ENTRY.is_intact()
    assert ENTRY.crc32 == 2942374483


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"shard_id": Shard(2)},
        {"site_id": SiteId(2)},
        {"timestamp_us": 1},
        {"inode": Inode(98)},
        {"op": Op.UNLINK},
        {"payload": b"payloae"},
        {"payload": b""},
        {"crc32": 0},
    ],
)
def test_changed_entry_is_not_intact(change):
    """The checksum covers every field of an entry."""
    assert not replace(ENTRY, **change).is_intact()


@given(st.integers(1, SITE_ID_MAX), u64)
def test_journal_id_text_round_trips(origin, incarnation):
    """A journal's text form reads back as the journal."""
    journal = JournalId(SiteId(origin), Incarnation(incarnation))
    assert JournalId.parse(str(journal)) == journal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1:",
        ":0000000000000001",
        "1:1",
        "1:000000000000000G",
        "01:0000000000000001",
        "+1:0000000000000001",
        " 1:0000000000000001",
        "1:0x00000000000001",
        "1:00000000_0000001",
        "1:000000000000000A",
        "1:00000000000000001",
        "1:10000000000000000",
        "0:0000000000000001",
        "-1:0000000000000001",
        "1:0000000000000001:2",
        "٣:0000000000000001",
    ],
)
def test_other_journal_texts_are_refused(text):
    """One journal has one text form; every other one is a ValueError."""
    with pytest.raises(ValueError):
        JournalId.parse(text)


@given(st.integers(1, SITE_ID_MAX), st.integers(1, (1 << 64) - 1))
def test_inode_numbers_fit_and_tell_their_site(origin, timestamp_us):
    """An inode number is a positive signed 64-bit integer, is never the root's, and begins with its site."""
    inode = make_inode(SiteId(origin), timestamp_us)
    assert ROOT_INODE < inode < 1 << 63
    assert inode >> 52 == origin
    assert inode & (1 << 52) - 1 == timestamp_us % (1 << 52)


@given(u64, st.integers(1, 256))
def test_shard_is_in_range(inode, shard_count):
    """Every inode has a shard of the cluster, always the same one."""
    assert 0 <= shard_of(inode, shard_count) < shard_count
    assert shard_of(inode, shard_count) == shard_of(inode, shard_count)


def test_shard_golden_vector():
    """The assignment of inodes to shards never changes: sites of different versions must agree on it."""
    assert [shard_of(inode, 4) for inode in (1, 2, 3, 1 << 52, (5 << 52) + 77)] == [1, 2, 0, 0, 3]
    assert shard_of((7 << 52) + 1_700_000_000_000_000, 256) == 35


@pytest.mark.parametrize("shard_count", [2, 4, 16, 256])
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_neighbouring_inodes_spread(shard_count, step):
    """Inodes made one after another, at any regular pace, share the shards evenly within a factor of two."""
    made = 100 * shard_count
    counts = Counter(shard_of(make_inode(SiteId(1), 10**15 + step * i), shard_count) for i in range(made))
    assert len(counts) == shard_count
    assert max(counts.values()) <= 200


def test_operation_numbers():
    """The numbers of the operations are the original crate's."""
    names = "CREATE UNLINK RENAME WRITE TRUNCATE SET_ATTR LINK SYMLINK MKDIR SET_XATTR REMOVE_XATTR"
    assert [op.name for op in sorted(Op)] == names.split()
    assert sorted(Op) == list(range(11))


@pytest.mark.parametrize(
    "text",
    [
        *(5, None, b"1:0000000000000009", [], "", "1", "1:9", "0:0000000000000009", "2048:0000000000000009"),
        "-1:0000000000000009",
        "1:-000000000000009",
        "1:000000000000000G",
        "9" * 5000 + ":0000000000000009",
        "01:" + "0" * 16,
    ],
)
def test_what_is_no_journal_is_a_value_error(text):
    """A peer may send anything where a journal's name belongs."""
    with pytest.raises(ValueError):
        JournalId.parse(text)
