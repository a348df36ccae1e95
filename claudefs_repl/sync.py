"""From blocks as they lie in the log to batches as they travel: cutting them, and compacting them where a link is slow.

Compacting empties payloads and drops no entry: seq, stamp, operation, inode, `seen` and checksum travel, with the flag
SUPERSEDED, and nothing is left for the receiver to do for such an entry. Emptied is what one later entry of the same batch
undoes, for a SetAttr several, about the same object and with the same `seen`:

| emptied                   | undone by                                                                              |
|---------------------------|----------------------------------------------------------------------------------------|
| Write                     | a later Write of all its bytes                                                         |
| SetAttr                   | later SetAttrs that together set every field that it sets                              |
| SetXattr, RemoveXattr     | a later one of the same name                                                           |

The later stamp wins wherever the earlier one would have. Whatever of another site is concurrent with the earlier entry is
concurrent with the later one too, and is a rival to it in the same way; so it wins or loses against that one alone. The
two travel in one block, which is applied as a whole, so no site shows the state between them.

A Truncate undoes no Write, although it takes its bytes: it does not touch the mtime, and is no rival to another Truncate.
It is not undone by another either, which may leave more of the file. What has a name in `system.` is not emptied: it may
mean something else than its last value. An entry that cannot be read parts those before it from those behind it,
and so does a removal, which may drop an object with all that was done to it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from claudefs_repl.block import ENTRIES_MAX, SEEN_BYTES_MAX, SEEN_MAX, SUPERSEDED, Block, Row, join_blocks
from claudefs_repl.conduit import gather_by_shard
from claudefs_repl.journal import STAMP_BITS, Op, SiteId, entry_crc32, shard_of
from claudefs_repl.operations import Operation, RemoveXattr, SetAttr, SetXattr, Write

SUPERSEDABLE = frozenset({Op.WRITE, Op.SET_ATTR, Op.SET_XATTR, Op.REMOVE_XATTR})
"""The operations whose payload may be emptied."""
ROWS_MAX = 8192
"""A batch of more entries is not compacted: at 6 microseconds each it would hold up the site, and payloads are small."""
SYSTEM = b"system."
"""The namespace of extended attributes that are not the user's."""


def cut_batches(blocks: Sequence[Block], *, batch_bytes_max: int) -> Iterator[Block]:
    """Join neighbours of each shard into blocks of at most a number of body bytes.

    A block that is larger by itself travels alone. Blocks of different shards have no order between them.
    """
    for run in gather_by_shard(blocks).values():
        yield from _join_run(run, batch_bytes_max)


def _join_run(run: Sequence[Block], batch_bytes_max: int) -> Iterator[Block]:
    pending: list[Block] = []
    body_bytes = entries = 0
    vectors: set[bytes] = set()
    for block in run:
        seen = block.seen_table
        if pending and (
            body_bytes + len(block.body) > batch_bytes_max
            or entries + block.count > ENTRIES_MAX
            or len(vectors.union(seen)) > SEEN_MAX
            or sum(map(len, vectors.union(seen))) > SEEN_BYTES_MAX
        ):
            yield join_blocks(pending)
            pending, body_bytes, entries, vectors = [], 0, 0, set()
        pending.append(block)
        body_bytes += len(block.body)
        entries += block.count
        vectors.update(seen)
    if pending:
        yield join_blocks(pending)


@dataclass(frozen=True, slots=True)
class Compacted:
    """A batch as it is sent.

    Attributes:
        rows_emptied: how many of its entries have no payload any more.
        bytes_saved: by how much its body is shorter.
    """

    block: Block
    rows_emptied: int = 0
    bytes_saved: int = 0


class BatchCompactor:
    """Compacts the batches of one origin's journals. It keeps nothing from one batch to the next.

    Args:
        origin: whose entries they are.
        shard_count: of the cluster.
        decode: the operation that an `op` and a payload tell; raises ValueError if they tell none.
    """

    def __init__(self, origin: SiteId, shard_count: int, decode: Callable[[int, bytes], Operation]) -> None:
        self._origin = origin
        self._shard_count = shard_count
        self._decode = decode

    def compact(self, block: Block) -> Compacted:
        """Empty what later entries of a batch undo; a batch in which there is nothing to undo costs next to nothing."""
        if block.count > ROWS_MAX or not _may_undo(bytes(block.ops)):
            return Compacted(block)
        if any(later < earlier for earlier, later in pairwise(block.timestamps)):
            return Compacted(block)  # the stamp decides what undoes what, and no sound site turns them back
        objects: dict[int, list[Row]] = {}
        for row in block.rows():
            if row.flags != SUPERSEDED:
                objects.setdefault(row.inode, []).append(row)
        emptied = [seq for rows in objects.values() if len(rows) > 1 for seq in self._superseded(block, rows)]
        if not emptied:
            return Compacted(block)
        shorter = block.without_payloads([seq - block.first_seq for seq in emptied])
        return Compacted(shorter, len(emptied), len(block.body) - len(shorter.body))

    def _superseded(self, block: Block, rows: Sequence[Row]) -> Iterator[int]:
        """The seqs of those rows of one object which later ones undo."""
        later: defaultdict[int, _Later] = defaultdict(_Later)
        for row in reversed(rows):
            operation = self._read(block, row)
            if operation is None or row.op == Op.UNLINK:
                later.clear()
            elif row.op not in SUPERSEDABLE:
                continue
            elif later[row.seen].undoes(operation):
                yield row.seq
            else:
                later[row.seen].add(operation)

    def _read(self, block: Block, row: Row) -> Operation | None:
        """The operation of an entry; None if it has none, here or wherever it is applied."""
        is_sound = (
            not row.flags
            and not row.timestamp_us >> STAMP_BITS
            and shard_of(row.inode, self._shard_count) == block.shard
            and row.crc32
            == entry_crc32(row.seq, block.shard, self._origin, row.timestamp_us, row.inode, row.op, row.payload)
        )
        if not is_sound:
            return None
        try:
            return self._decode(row.op, row.payload)
        except ValueError:
            return None


def _may_undo(ops: bytes) -> bool:
    """Whether there are two operations of which one could undo the other."""
    xattrs = ops.count(Op.SET_XATTR) + ops.count(Op.REMOVE_XATTR)
    return ops.count(Op.WRITE) > 1 or ops.count(Op.SET_ATTR) > 1 or xattrs > 1


@dataclass(slots=True)
class _Later:
    """What the entries of one object do that come later, and that had seen the same.

    Attributes:
        lows, highs: the ranges that are written, in ascending order, none within another.
    """

    lows: list[int] = field(default_factory=list)
    highs: list[int] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    xattrs: set[bytes] = field(default_factory=set)

    def undoes(self, operation: Operation) -> bool:
        """Whether nothing remains of an earlier operation."""
        match operation:
            case Write(offset, data):
                last = bisect_right(self.lows, offset) - 1
                return bool(data) and last >= 0 and offset + len(data) <= self.highs[last]
            case SetAttr():
                attributes = _attributes_of(operation)
                return bool(attributes) and attributes <= self.attributes
            case SetXattr(name=name) | RemoveXattr(name=name):
                return name in self.xattrs and not name.startswith(SYSTEM)
        return False

    def add(self, operation: Operation) -> None:
        """Take an operation in that the later ones do not undo."""
        match operation:
            case Write(offset, data) if data:
                low = bisect_left(self.lows, offset)
                high = bisect_right(self.highs, offset + len(data))
                self.lows[low:high], self.highs[low:high] = [offset], [offset + len(data)]
            case SetAttr():
                self.attributes |= _attributes_of(operation)
            case SetXattr(name=name) | RemoveXattr(name=name):
                self.xattrs.add(name)


def _attributes_of(fields: SetAttr) -> set[str]:
    return {name for name in SetAttr.__struct_fields__ if getattr(fields, name) is not None}
