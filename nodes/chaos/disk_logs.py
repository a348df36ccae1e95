"""What the sites' logs hold, read from their files by a reader of its own, which trusts nothing that a site says."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from claudefs_repl.block import SUPERSEDED, Block
from claudefs_repl.error import ReplError
from claudefs_repl.journal import JournalId, entry_crc32
from claudefs_repl.observations import HeldLog
from claudefs_repl.operations import SetXattr, Write
from claudefs_repl.wal import HEADER_BYTES, RecordCodec, SegmentHeader
from protocol.payload import PayloadInvalid, decode_payload

SEGMENT_SUFFIX = ".seg"


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    """One entry as a log holds it.

    Attributes:
        crc32: as it was written.
        is_intact: whether the checksum is that of what is here.
        content_crc32: of the bytes that a write or an extended attribute carries; None of other operations.
        is_superseded: its payload was emptied on its way, because what it did was undone in the same batch.
    """

    shard: int
    seq: int
    timestamp_us: int
    inode: int
    op: int
    crc32: int
    is_intact: bool
    content_crc32: int | None
    is_superseded: bool


@dataclass(frozen=True, slots=True)
class LogOnDisk:
    """One journal's log at one site.

    Attributes:
        first_seqs: for each shard the seq of the first entry that the log could hold; those before were trimmed.
        entries: in the order in which they lie there.
        damage: what is wrong with the files, in words.
    """

    journal: JournalId
    first_seqs: tuple[int, ...]
    entries: tuple[LoggedEntry, ...]
    damage: tuple[str, ...]

    @property
    def tails(self) -> tuple[int, ...]:
        """For each shard the seq of its last entry; of what was trimmed if it has none."""
        tails = [seq - 1 for seq in self.first_seqs]
        for entry in self.entries:
            tails[entry.shard] = max(tails[entry.shard], entry.seq)
        return tuple(tails)

    def by_shard(self) -> tuple[HeldLog, ...]:
        """Each shard's entries, in columns."""
        return tuple(self._held(shard, first - 1) for shard, first in enumerate(self.first_seqs))

    def _held(self, shard: int, trimmed: int) -> HeldLog:
        entries = [entry for entry in self.entries if entry.shard == shard]
        return HeldLog(
            trimmed=trimmed,
            seqs=[entry.seq for entry in entries],
            timestamps_us=[entry.timestamp_us for entry in entries],
            inodes=[entry.inode for entry in entries],
            ops=[entry.op for entry in entries],
            crcs=[entry.crc32 for entry in entries],
            contents={entry.seq: entry.content_crc32 for entry in entries if entry.content_crc32 is not None},
            damaged=tuple(entry.seq for entry in entries if not entry.is_intact),
        )


def read_logs(data_dir: Path) -> dict[JournalId, LogOnDisk]:
    """Every log in the data directory of a site that does not run."""
    found: dict[JournalId, LogOnDisk] = {}
    journals = data_dir / "journals"
    if not journals.is_dir():
        return found
    for directory in sorted(journals.iterdir()):
        origin, _, incarnation = directory.name.partition("-")
        if directory.is_dir() and origin.isdigit():
            journal = JournalId.parse(f"{origin}:{incarnation}")
            found[journal] = _read_log(journal, directory)
    return found


def _read_log(journal: JournalId, directory: Path) -> LogOnDisk:
    entries: list[LoggedEntry] = []
    damage: list[str] = []
    firsts: tuple[int, ...] = ()
    position = None
    paths = sorted(path for path in directory.iterdir() if path.suffix == SEGMENT_SUFFIX)
    for path in paths:
        data = path.read_bytes()
        try:
            header = SegmentHeader.decode(data[:HEADER_BYTES])
        except ReplError as error:
            damage.append(f"the header of {path.name} cannot be read: {error}")
            continue
        if not firsts:
            firsts = header.next_seqs
        if header.journal != journal:
            damage.append(f"{path.name} is of journal {header.journal}")
        if position not in (None, header.first_position):
            damage.append(f"{path.name} begins at {header.first_position}, the one before it ends at {position}")
        body = memoryview(data)[HEADER_BYTES:]
        cut = RecordCodec(header.salt).cut(body, position=header.first_position, room=len(body))
        for record in cut.records:
            try:
                entries += _rows_of(journal, Block(record.body))
            except ValueError as error:
                damage.append(f"the record at {record.position} of {path.name} holds no block: {error}")
        position = cut.end
        if any(body[position - header.first_position :]):
            damage.append(f"{path.name} has bytes behind its last record, at {position}")
    return LogOnDisk(journal, firsts, tuple(entries), tuple(damage))


def _rows_of(journal: JournalId, block: Block) -> Iterator[LoggedEntry]:
    for row in block.rows():
        is_superseded = bool(row.flags & SUPERSEDED)
        crc32 = entry_crc32(row.seq, block.shard, journal.origin, row.timestamp_us, row.inode, row.op, row.payload)
        yield LoggedEntry(
            shard=block.shard,
            seq=row.seq,
            timestamp_us=row.timestamp_us,
            inode=row.inode,
            op=row.op,
            crc32=row.crc32,
            is_intact=is_superseded or crc32 == row.crc32,
            content_crc32=None if is_superseded else _content_crc32(row.op, row.payload),
            is_superseded=is_superseded,
        )


def _content_crc32(op: int, payload: bytes) -> int | None:
    try:
        operation = decode_payload(op, payload)
    except PayloadInvalid:
        return None
    match operation:
        case Write(data=content) | SetXattr(value=content):
            return zlib.crc32(content)
    return None
