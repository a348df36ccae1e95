"""Blocks: runs of entries of one journal and shard in the form in which they rest on disk and travel on the wire.

Byte layout, little endian:

| bytes        | field                                                                         |
|--------------|-------------------------------------------------------------------------------|
| 1            | layout version, 1                                                             |
| 1            | number of `seen` vectors minus 1                                              |
| 2            | zero                                                                          |
| 4            | shard                                                                         |
| 8            | seq of the first entry; the others follow without a hole                      |
| 4            | number of entries n, at least 1                                               |
| 4            | bytes of the `seen` table                                                     |
| 4            | bytes of the body                                                             |
| 8n           | timestamps, microseconds                                                      |
| 4n           | payload lengths                                                               |
| 4n           | CRCs                                                                          |
| n            | operations                                                                    |
| n            | flags: 0, or SUPERSEDED; an entry with others is of a version not known here  |
| n            | for each entry, the index of its `seen` vector                                |
| as told      | the `seen` table: cursor vectors as `checkpoint.encode_cursors` writes them   |
| as told      | the body: for each entry seq (8), inode (8), payload                          |

A superseded entry was sent without its payload, because a later entry of the block undoes what it said (see
`claudefs_repl.sync`): its payload length is 0, its CRC still that of the entry as it was written.

The body is one run of bytes so that the batch tag is an HMAC over a prefix and that run. Joining blocks joins columns.
Nothing but `rows`, `check_rows`, `without_payloads` and a cut in the middle costs Python work for each entry.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, repeat
from typing import NamedTuple

from claudefs_repl.checkpoint import encoded_cursors_length
from claudefs_repl.journal import OP_MAX, PAYLOAD_BYTES_MAX, Inode, JournalEntry, Op, Shard, SiteId

VERSION = 1
SUPERSEDED = 0x01
"""The flag of an entry whose payload was emptied."""
ENTRIES_MAX = 1 << 16
"""Entries of one block: a cut, and a rows pass, stay well under a tenth of a second."""
BODY_BYTES_MAX = 4 << 20
"""A block is read, verified and sent as a whole; a few of them must fit in memory for every peer."""
SEEN_MAX = 256
"""Vectors of one block: an index fits a byte, so that joined blocks are renumbered by `bytes.translate`."""
SEEN_BYTES_MAX = 256 * 1024
"""The `seen` table: SEEN_MAX vectors of 20 journals at 4 shards, or one of 127 journals at 256 shards."""

_HEAD = struct.Struct("<BBHIQIII")
_ROW_HEAD = struct.Struct("<QQ")
ROW_HEAD_BYTES = _ROW_HEAD.size
unpack_row_head = _ROW_HEAD.unpack_from
"""An entry's seq and inode, before its payload in the body."""
_COLUMN_BYTES = 8 + 4 + 4 + 1 + 1 + 1
BLOCK_BYTES_MAX = _HEAD.size + ENTRIES_MAX * _COLUMN_BYTES + SEEN_BYTES_MAX + BODY_BYTES_MAX
"""No block is longer, so no reader of one takes more memory than this."""
assert sys.byteorder == "little", "columns are read in place, in the machine's byte order"


class Row(NamedTuple):
    """One entry of a block, unpacked; `seen` is an index into `Block.seen_table`."""

    seq: int
    timestamp_us: int
    op: int
    flags: int
    inode: int
    payload: bytes
    crc32: int
    seen: int


@dataclass(frozen=True, slots=True)
class NewRow:
    """What the writer of a block gives for each entry; seqs follow from the block's first."""

    timestamp_us: int
    op: Op
    inode: Inode
    payload: bytes
    crc32: int
    flags: int = 0


class Block:
    """An immutable run of entries over its encoded bytes.

    Attributes:
        encoded: the whole block as laid out above.
        shard: the shard of every entry.
        first_seq: seq of the first entry.
        count: number of entries, at least 1.
    """

    __slots__ = ("_body_at", "_seen_at", "count", "encoded", "first_seq", "shard")

    def __init__(self, encoded: bytes | memoryview) -> None:
        """Read the layout and check its arithmetic; entries are not looked at one by one.

        Raises:
            ValueError: the bytes are not exactly one block.
        """
        if len(encoded) < _HEAD.size:
            raise ValueError(f"a block has at least {_HEAD.size} bytes, not {len(encoded)}")
        version, seen_last, zero, shard, first_seq, count, seen_bytes, body_bytes = _HEAD.unpack_from(encoded)
        if version != VERSION or zero:
            raise ValueError(f"block layout {version} is not known")
        if not 1 <= count <= ENTRIES_MAX:
            raise ValueError(f"a block has 1 to {ENTRIES_MAX} entries, not {count}")
        if first_seq < 1 or first_seq + count > 1 << 63:
            raise ValueError(f"seq {first_seq} is out of range")
        if seen_bytes > SEEN_BYTES_MAX:
            raise ValueError(f"a `seen` table has at most {SEEN_BYTES_MAX} bytes, not {seen_bytes}")
        if body_bytes > BODY_BYTES_MAX:
            raise ValueError(f"a body has at most {BODY_BYTES_MAX} bytes, not {body_bytes}")
        self.encoded = memoryview(encoded)
        self.shard = Shard(shard)
        self.first_seq: int = first_seq
        self.count: int = count
        self._seen_at = _HEAD.size + _COLUMN_BYTES * count
        self._body_at = self._seen_at + seen_bytes
        if self._body_at + body_bytes != len(encoded):
            raise ValueError(f"lengths add up to {self._body_at + body_bytes} bytes, not {len(encoded)}")
        lengths = self.lengths
        if sum(lengths) + ROW_HEAD_BYTES * count != body_bytes:
            raise ValueError("the payload lengths do not add up to the body")
        if max(lengths) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"a payload has at most {PAYLOAD_BYTES_MAX} bytes, not {max(lengths)}")
        if max(self.ops) > OP_MAX:
            raise ValueError(f"operation {max(self.ops)} is not known")
        if max(self.seen_indexes) > seen_last:
            raise ValueError("a `seen` index is beyond the table")
        if sum(map(len, self._split_seen(seen_last + 1))) != seen_bytes:
            raise ValueError("the `seen` table has another length")

    @classmethod
    def build(cls, *, shard: Shard, first_seq: int, rows: Sequence[NewRow], seen: bytes) -> Block:
        """A block of new entries that all had seen the same (one encoded cursor vector)."""
        count = len(rows)
        body = bytearray()
        for seq, row in enumerate(rows, first_seq):
            body += _ROW_HEAD.pack(seq, row.inode)
            body += row.payload
        head = _HEAD.pack(VERSION, 0, 0, shard, first_seq, count, len(seen), len(body))
        columns = (
            struct.pack(f"<{count}Q", *[row.timestamp_us for row in rows]),
            struct.pack(f"<{count}I", *[len(row.payload) for row in rows]),
            struct.pack(f"<{count}I", *[row.crc32 for row in rows]),
            bytes([row.op for row in rows]),
            bytes([row.flags for row in rows]),
            bytes(count),
        )
        return cls(b"".join((head, *columns, seen, body)))

    @property
    def last_seq(self) -> int:
        """Seq of the last entry."""
        return self.first_seq + self.count - 1

    @property
    def timestamps(self) -> memoryview:
        """Microseconds, one 64-bit integer for each entry."""
        return self._column(0, 8).cast("Q")

    @property
    def lengths(self) -> memoryview:
        """Payload bytes, one 32-bit integer for each entry."""
        return self._column(8, 4).cast("I")

    @property
    def crcs(self) -> memoryview:
        """Entry checksums, one 32-bit integer for each entry."""
        return self._column(12, 4).cast("I")

    @property
    def ops(self) -> memoryview:
        """Operations, one byte for each entry."""
        return self._column(16, 1)

    @property
    def flags(self) -> memoryview:
        """Flags, one byte for each entry."""
        return self._column(17, 1)

    @property
    def seen_indexes(self) -> memoryview:
        """Indexes into `seen_table`, one byte for each entry."""
        return self._column(18, 1)

    @property
    def seen_table(self) -> tuple[bytes, ...]:
        """The encoded cursor vectors that `seen_indexes` point into."""
        return tuple(map(bytes, self._split_seen(self.encoded[1] + 1)))

    @property
    def seen_bytes(self) -> int:
        """Length of the encoded `seen_table`."""
        return int(self._body_at - self._seen_at)

    @property
    def body(self) -> memoryview:
        """What the batch tag covers: seq (8), inode (8), payload of each entry, without a gap."""
        return self.encoded[self._body_at :]

    def _column(self, before: int, width: int) -> memoryview:
        start = _HEAD.size + before * self.count
        return self.encoded[start : start + width * self.count]

    def _split_seen(self, vectors: int) -> list[memoryview]:
        table = self.encoded[self._seen_at : self._body_at]
        parts, at = [], 0
        for _ in range(vectors):
            end = at + encoded_cursors_length(table, at)
            if end > len(table):
                raise ValueError("a `seen` vector is cut off")
            parts.append(table[at:end])
            at = end
        return parts

    def check_rows(self) -> None:
        """Look at each entry's seq and inode in the body, once, when a block comes from another site.

        Raises:
            ValueError: the seqs are not the ones that the head tells, or an inode is beyond 63 bits.
        """
        lengths, body, count = self.lengths, self.body, self.count
        if min(lengths) == max(lengths):
            stride = lengths[0] + ROW_HEAD_BYTES
            expected = struct.pack(f"<{count}Q", *range(self.first_seq, self.last_seq + 1))
            seqs_fit = all(body[at::stride].tobytes() == expected[at::8] for at in range(8))
            highest_byte = max(body[ROW_HEAD_BYTES - 1 :: stride])
        else:
            starts = accumulate([length + ROW_HEAD_BYTES for length in lengths.tolist()], initial=0)
            seqs, inodes = zip(*map(_ROW_HEAD.unpack_from, repeat(body), islice(starts, count)), strict=True)
            seqs_fit = list(seqs) == list(range(self.first_seq, self.last_seq + 1))
            highest_byte = max(inodes) >> 56
        if not seqs_fit:
            raise ValueError("the seqs in the body are not the ones that the head tells")
        if highest_byte > 0x7F:
            raise ValueError("an inode is beyond 63 bits")

    def rows(self) -> Iterator[Row]:
        """The entries one by one.

        Raises:
            ValueError: the seqs inside the body are not the ones that the head tells.
        """
        body, at = self.body, 0
        columns = zip(self.timestamps, self.ops, self.flags, self.lengths, self.crcs, self.seen_indexes, strict=True)
        for seq, (timestamp_us, op, flags, length, crc32, seen) in enumerate(columns, self.first_seq):
            body_seq, inode = _ROW_HEAD.unpack_from(body, at)
            if body_seq != seq:
                raise ValueError(f"the body has seq {body_seq} where the head tells {seq}")
            at += ROW_HEAD_BYTES
            payload = bytes(body[at : at + length])
            at += length
            yield Row(seq, timestamp_us, op, flags, inode, payload, crc32, seen)

    def entries(self, site_id: SiteId) -> Iterator[JournalEntry]:
        """The entries as the rest of the code sees them, for a journal of a given origin."""
        for row in self.rows():
            yield JournalEntry(
                row.seq, self.shard, site_id, row.timestamp_us, Inode(row.inode), Op(row.op), row.payload, row.crc32
            )

    def without_payloads(self, indexes: Collection[int]) -> Block:
        """The same entries, those at some indexes (from 0) superseded: without their payloads, all else as it is."""
        lengths, flags = self.lengths.tolist(), bytearray(self.flags)
        body, parts, at = self.body, [], 0
        ends = list(accumulate(length + ROW_HEAD_BYTES for length in lengths))
        for index in sorted(indexes):
            parts.append(body[at : ends[index] - lengths[index]])
            at = ends[index]
            lengths[index] = 0
            flags[index] |= SUPERSEDED
        parts.append(body[at:])
        head = _HEAD.pack(
            VERSION, self.encoded[1], 0, self.shard, self.first_seq, self.count, self.seen_bytes, sum(map(len, parts))
        )
        columns = (
            self.timestamps.cast("B"),
            struct.pack(f"<{self.count}I", *lengths),
            self.crcs.cast("B"),
            self.ops,
            flags,
            self.seen_indexes,
            self.encoded[self._seen_at : self._body_at],
        )
        return Block(b"".join((head, *columns, *parts)))

    def after(self, seq: int) -> Block:
        """The entries beyond a seq, which must be at least one: the cut that a resume in mid-block needs."""
        return self.cut(first_seq=max(seq + 1, self.first_seq), last_seq=self.last_seq)

    def cut(self, *, first_seq: int, last_seq: int) -> Block:
        """The entries from one seq to another, both included; none superseded, unless all that follow are among them."""
        assert self.first_seq <= first_seq <= last_seq <= self.last_seq
        kept = self.flags[first_seq - self.first_seq : last_seq - self.first_seq + 1]
        assert last_seq == self.last_seq or not any(flags & SUPERSEDED for flags in kept), "what undid it would be lost"
        if first_seq == self.first_seq and last_seq == self.last_seq:
            return self
        low, high = first_seq - self.first_seq, last_seq - self.first_seq + 1
        ends = [0, *accumulate(length + ROW_HEAD_BYTES for length in self.lengths)]
        body = self.body[ends[low] : ends[high]]
        seen = self.encoded[self._seen_at : self._body_at]
        head = _HEAD.pack(VERSION, self.encoded[1], 0, self.shard, first_seq, high - low, len(seen), len(body))
        widths = ((0, 8), (8, 4), (12, 4), (16, 1), (17, 1), (18, 1))
        columns = [self._column(before, width)[width * low : width * high] for before, width in widths]
        return Block(b"".join((head, *columns, seen, body)))


def join_blocks(blocks: Sequence[Block]) -> Block:
    """One block of consecutive blocks of one shard, together within a block's limits (entries, body, `seen`)."""
    if len(blocks) == 1:
        return blocks[0]
    table: dict[bytes, int] = {}
    indexes = []
    expected = blocks[0].first_seq
    for block in blocks:
        assert block.shard == blocks[0].shard
        assert block.first_seq == expected
        expected += block.count
        renumbered = [table.setdefault(vector, len(table)) for vector in block.seen_table]
        assert len(table) <= SEEN_MAX
        indexes.append(bytes(block.seen_indexes).translate(bytes(renumbered).ljust(256, b"\0")))
    seen = b"".join(table)
    body_bytes = sum(len(block.body) for block in blocks)
    count = expected - blocks[0].first_seq
    head = _HEAD.pack(VERSION, len(table) - 1, 0, blocks[0].shard, blocks[0].first_seq, count, len(seen), body_bytes)
    columns = [
        block._column(before, width)
        for before, width in ((0, 8), (8, 4), (12, 4), (16, 1), (17, 1))
        for block in blocks
    ]
    return Block(b"".join((head, *columns, *indexes, seen, *[block.body for block in blocks])))
