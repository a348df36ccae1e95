"""The journal's vocabulary: identifiers, operations, entries, stamps."""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple, NewType

SiteId = NewType("SiteId", int)
"""1 to SITE_ID_MAX."""
Incarnation = NewType("Incarnation", int)
"""64 random bits, made with a journal, so that a wiped or restored disk is never taken for the old one."""
Shard = NewType("Shard", int)
"""0 to shard_count - 1."""
Inode = NewType("Inode", int)
"""An object's number: site (11 bits) and the low 52 bits of the making entry's stamp."""

SITE_ID_MAX = 2047
"""11 bits beside the stamp's 52: an inode number stays a positive signed 64-bit integer, as SQLite and off_t want."""
SHARDS_MAX = 256
"""A shard's share of a cursor vector is 8 bytes in a block's `seen` table; 256 keep a vector near 2 KiB a journal."""
STAMP_BITS = 52
ROOT_INODE = Inode(1)
"""The root directory: it exists in every tree and no entry makes it."""
DATA_BYTES_MAX = 64 * 1024
"""One Write's data: the store keeps blobs of at most this size, so that no read or overwrite touches more."""
PAYLOAD_BYTES_MAX = DATA_BYTES_MAX + 4 * 1024
"""A full Write and the widest of the other operations, with room for their fields."""
NAME_BYTES_MAX = 255
"""As in Linux file systems (NAME_MAX)."""
SYMLINK_BYTES_MAX = 4095
"""As in Linux file systems (PATH_MAX without its NUL)."""
XATTR_VALUE_BYTES_MAX = 65536
"""As in Linux (XATTR_SIZE_MAX)."""
FILE_BYTES_MAX = 1 << 62
"""Offsets and lengths stay signed 64-bit integers with room for an end."""


class JournalId(NamedTuple):
    """One journal: a site and one of its incarnations."""

    origin: SiteId
    incarnation: Incarnation

    def __str__(self) -> str:
        return f"{self.origin}:{self.incarnation:016x}"

    @classmethod
    def parse(cls, text: object) -> JournalId:
        """Read the form that `str` writes.

        Raises:
            ValueError: it has another form, or is no text at all.
        """
        if not isinstance(text, str):
            raise ValueError(f"a journal is a text, not {type(text).__name__}")
        origin, _, incarnation = text.partition(":")
        journal = cls(SiteId(int(origin)), Incarnation(int(incarnation, 16)))
        is_canonical = str(journal) == text and len(incarnation) == 16
        if not is_canonical or not 1 <= journal.origin <= SITE_ID_MAX or journal.incarnation < 0:
            raise ValueError(f"not a journal: {text!r:.60}")
        return journal


class Op(enum.IntEnum):
    """What an entry does."""

    CREATE = 0
    UNLINK = 1
    RENAME = 2
    WRITE = 3
    TRUNCATE = 4
    SET_ATTR = 5
    LINK = 6
    SYMLINK = 7
    MKDIR = 8
    SET_XATTR = 9
    REMOVE_XATTR = 10


OP_MAX = max(Op)


class Stamp(NamedTuple):
    """An entry's place in the total order of all entries: tuples of this kind compare as the entries order."""

    timestamp_us: int
    origin: SiteId
    incarnation: Incarnation
    shard: Shard
    seq: int

    def pack(self) -> bytes:
        """36 bytes, big endian, whose byte order is the total order."""
        return _STAMP.pack(*self)

    @classmethod
    def unpack(cls, packed: bytes) -> Stamp:
        """The inverse of `pack`."""
        return tuple.__new__(cls, _STAMP.unpack(packed))


_STAMP = struct.Struct(">QQQIQ")
pack_stamp = _STAMP.pack
"""`Stamp(...).pack()` for who has the fields and needs no `Stamp`."""
_CRC_PREFIX = struct.Struct("<QIQQQB")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One entry of a journal: the row of a block as the rest of the code sees it.

    Attributes:
        seq: 1 and up, dense per journal and shard.
        shard_id: the shard of `inode`.
        site_id: the origin.
        timestamp_us: hybrid logical clock, microseconds; never repeats at one site.
        inode: the object acted on (the child, never the parent).
        op: what is done.
        payload: the operation's details, msgpack (`protocol.payload`).
        crc32: CRC-32/IEEE over seq, shard, site, timestamp, inode (8+4+8+8+8 bytes, little endian), op (1), payload.
    """

    seq: int
    shard_id: Shard
    site_id: SiteId
    timestamp_us: int
    inode: Inode
    op: Op
    payload: bytes
    crc32: int

    @classmethod
    def make(
        cls, *, seq: int, shard_id: Shard, site_id: SiteId, timestamp_us: int, inode: Inode, op: Op, payload: bytes
    ) -> JournalEntry:
        """An entry with its checksum computed."""
        crc32 = entry_crc32(seq, shard_id, site_id, timestamp_us, inode, op, payload)
        return cls(seq, shard_id, site_id, timestamp_us, inode, op, payload, crc32)

    def is_intact(self) -> bool:
        """Whether the checksum matches the fields."""
        return self.crc32 == entry_crc32(
            self.seq, self.shard_id, self.site_id, self.timestamp_us, self.inode, self.op, self.payload
        )


def entry_crc32(seq: int, shard: int, site: int, timestamp_us: int, inode: int, op: int, payload: bytes) -> int:
    """The checksum of an entry, as `JournalEntry.crc32` defines it."""
    return zlib.crc32(payload, zlib.crc32(_CRC_PREFIX.pack(seq, shard, site, timestamp_us, inode, op)))


def make_inode(origin: SiteId, timestamp_us: int) -> Inode:
    """The number of an object that the entry with this stamp makes."""
    return Inode(origin << STAMP_BITS | timestamp_us & (1 << STAMP_BITS) - 1)


def shard_of(inode: int, shard_count: int) -> Shard:
    """The shard whose order an object's operations keep.

    The multiplier is Knuth's for 64-bit Fibonacci hashing: inode numbers made one after another spread evenly.
    """
    return Shard(((inode * 0x9E3779B97F4A7C15 & 0xFFFF_FFFF_FFFF_FFFF) >> 32) % shard_count)
