"""A log's segments on a disk: how one is made, and how all of them are recovered after a stop or a crash.

What is durable when: a segment is written under a temporary name, header and all, and synced before the rename that
gives it its own name; the rename is synced before its first record is written. A record is durable when the write that
carried it returned from its sync. So every byte before a named segment's first position was durable when it was named,
and a crash leaves at most a torn group of records at the end of the last segment, or a file with the temporary name.
A failed sync leaves bytes that can be read and that no later sync brings to the disk: so a start writes the last group,
of which no later record proves that it was durable, once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from claudefs_repl.block import Block
from claudefs_repl.error import CallerError, DiskFull, WalCorrupted
from claudefs_repl.journal import JournalId
from claudefs_repl.wal import (
    HEADER_BYTES,
    SALT_BYTES,
    SCAN_BYTES,
    HeaderTorn,
    HeaderVersionUnknown,
    Record,
    RecordCodec,
    SegmentHeader,
    SegmentScan,
)
from nodes.seams import Entropy, File, Storage

SUFFIX = ".seg"
NAME_DIGITS = 20
"""Of any 64-bit position, so that names are in the order of positions."""
TEMPORARY_SUFFIX = ".new"
INDEX_BYTES = 256 * 1024
"""A start is looked up to this granularity: at most this much is read in vain, and a gigabyte needs 4,096 marks."""
_ZEROS_BYTES = 1 << 20
REMEDY = (
    "this was once known to be on disk, so the disk or someone changed it; nothing was altered now. "
    "Restore the file from a copy, or give up this site's data and let its peers fill it again"
)


class ForeignLog(CallerError):
    """A log of another cluster, journal, shard count or format version lies where this one is looked for."""


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What recovery found.

    Attributes:
        entries: entries in the log.
        bytes: record bytes in the log.
        torn_bytes: bytes of a write that a crash cut, now zeroed; nobody had been told of them.
        segments: files of the log.
    """

    entries: int
    bytes: int
    torn_bytes: int
    segments: int


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Which log it is, and what its segments are made with."""

    journal: JournalId
    cluster_id: str
    shard_count: int
    segment_bytes: int

    @property
    def directory(self) -> str:
        """Where its segments are, relative to the data directory."""
        return f"journals/{self.journal.origin}-{self.journal.incarnation:016x}"

    def path(self, first_position: int) -> str:
        """The file of the segment that begins at a position."""
        return f"{self.directory}/{first_position:0{NAME_DIGITS}d}{SUFFIX}"


@dataclass(slots=True, eq=False)
class Segment:
    """One file of a log. Changed by the log's appending task alone.

    Attributes:
        header: what it says about itself.
        path: where it is.
        file_bytes: its length on disk.
        end: position behind its last record, None while it is appended to.
        marks: sparse index: positions of records, with the seq that each shard's next entry has there.
    """

    header: SegmentHeader
    path: str
    file_bytes: int
    end: int | None = None
    marks: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    codec: RecordCodec = field(init=False)

    def __post_init__(self) -> None:
        self.codec = RecordCodec(self.header.salt)
        self.marks.append((self.header.first_position, self.header.next_seqs))

    @property
    def first(self) -> int:
        """Position of its first record."""
        return self.header.first_position

    def offset(self, position: int) -> int:
        """Where a position is in the file."""
        return HEADER_BYTES + position - self.first

    def mark(self, position: int, next_seqs: Sequence[int]) -> None:
        """Note a record's start in the sparse index, if the last note is far enough away."""
        if position - self.marks[-1][0] >= INDEX_BYTES:
            self.marks.append((position, tuple(next_seqs)))


async def make_segment(
    storage: Storage,
    identity: LogIdentity,
    entropy: Entropy,
    *,
    first_position: int,
    next_seqs: tuple[int, ...],
    last_timestamp_us: int,
    record_bytes: int = 0,
) -> tuple[Segment, File]:
    """Make a segment, durable with its name, that holds at least a number of record bytes.

    It takes the place of a segment of the same name, which can only be one that has no durable record.

    Raises:
        DiskFull: there is no room; the log is as it was.
    """
    header = SegmentHeader(
        journal=identity.journal,
        cluster_id=identity.cluster_id,
        first_position=first_position,
        next_seqs=next_seqs,
        last_timestamp_us=last_timestamp_us,
        salt=entropy(SALT_BYTES),
    )
    path = identity.path(first_position)
    temporary = path + TEMPORARY_SUFFIX
    file_bytes = max(identity.segment_bytes, HEADER_BYTES + record_bytes)
    await storage.remove(temporary)
    file = await storage.create(temporary, file_bytes)
    try:
        await file.write(0, [header.encode()], sync=True)
        await storage.rename(temporary, path)
    except DiskFull:
        await storage.remove(temporary)
        raise
    finally:
        await file.close()
    return Segment(header, path, file_bytes), await storage.open(path)


def segment_positions(names: Sequence[str]) -> list[int]:
    """Where the segments begin that are among a directory's files, in order."""
    stems = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    # Any other name is not one of ours, but a copy, say, that somebody put there.
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) == NAME_DIGITS)


async def read_header(file: File, identity: LogIdentity, position: int) -> SegmentHeader:
    """The header of the segment that begins at a position.

    Raises:
        HeaderTorn: it cannot be read.
        WalCorrupted: it is another segment's.
        ForeignLog: it is of another log, or of a version that is not known.
    """
    path = identity.path(position)
    try:
        header = SegmentHeader.decode(await file.read(0, HEADER_BYTES))
    except HeaderVersionUnknown as unknown:
        raise ForeignLog(f"{path}: {unknown}") from unknown
    for what, found, meant in (
        ("cluster", header.cluster_id, identity.cluster_id),
        ("journal", header.journal, identity.journal),
        ("number of shards", len(header.next_seqs), identity.shard_count),
    ):
        if found != meant:
            raise ForeignLog(f"{path}: its {what} is {found}, not {meant}; is this another site's data directory?")
    if header.first_position != position:
        raise WalCorrupted(path, 0, f"it begins at position {header.first_position}, not where its name says")
    return header


class Recovery:
    """One log's recovery: reads and judges everything first, and changes the disk only when nothing is refused.

    Attributes:
        segments: in order of position; the last has no `end`.
        next_seqs: for each shard the seq that its next entry gets.
        last_timestamp_us: greatest timestamp in the log.
        position: the log's end.
        entries: entries read.
        last_crcs: for each shard the crc32 of its last entry, 0 if no entry of it is in the log.
        torn_bytes: bytes behind the end that a cut write left.
    """

    def __init__(self, storage: Storage, identity: LogIdentity) -> None:
        self._storage = storage
        self._identity = identity
        self.segments: list[Segment] = []
        self.next_seqs = [1] * identity.shard_count
        self.last_timestamp_us = 0
        self.last_crcs = [0] * identity.shard_count
        self.position = 0
        self.entries = 0
        self.torn_bytes = 0
        self._proven_upto = 0
        self._unused: list[str] = []

    async def read(self, evidence: tuple[int, ...]) -> None:
        """Read the whole log and judge it; nothing on the disk changes.

        Raises:
            WalCorrupted: what was durable is damaged, missing or out of order.
            ForeignLog: it is not the log that is meant.
        """
        segments = await self._read_headers()
        for segment, following in zip_longest(segments, segments[1:]):
            await self.go_on(segment, following)
        self._check_evidence(evidence)

    def follows(self, segment: Segment) -> bool:
        """Whether a segment begins where what was read so far ends."""
        ends = self.position, tuple(self.next_seqs)
        return not self.segments or (segment.first, segment.header.next_seqs) == ends

    async def go_on(self, segment: Segment, following: Segment | None) -> None:
        """Read the next segment; `following` is the one behind it, None if it is the last.

        Raises:
            WalCorrupted: it is damaged, or does not follow. What was read up to there stands.
        """
        if not self.follows(segment):
            detail = f"it goes on at {segment.header.next_seqs}, but the log before it ends at {tuple(self.next_seqs)}"
            raise WalCorrupted(segment.path, 0, f"{detail}; {REMEDY}")
        if not self.segments:
            self.next_seqs, self.position = list(segment.header.next_seqs), segment.first
            self.last_timestamp_us = segment.header.last_timestamp_us
        self.segments.append(segment)
        await self._read_segment(segment, following)

    async def repair(self) -> File | None:
        """Remove what no record is in, zero the torn tail, and write the last group once more; the last segment's open file.

        Raises:
            DiskFull: there is no room even to write over what is there, as there may be none where a write is a copy.
        """
        for path in self._unused:
            await self._storage.remove(path)
        file = None
        if self.segments:
            last = self.segments[-1]
            file = await self._storage.open(last.path)
            start = last.offset(self.position)
            # From the back, so that a crash in between leaves no whole record behind a hole.
            for at in reversed(range(start, start + self.torn_bytes, _ZEROS_BYTES)):
                length = min(_ZEROS_BYTES, start + self.torn_bytes - at)
                await file.write(at, [bytes(length)], sync=True)
            # What was read may still be only in the page cache, and nobody may hear of it before it is on disk.
            await self._write_again(last, file)
            await file.sync()
        await self._storage.sync_dir(self._identity.directory)
        return file

    async def _write_again(self, segment: Segment, file: File) -> None:
        at, end = segment.offset(max(segment.first, self._proven_upto)), segment.offset(self.position)
        while at < end:
            data = await file.read(at, min(SCAN_BYTES, end - at))
            await file.write(at, [data], sync=False)
            at += len(data)

    def report(self) -> RecoveryReport:
        """What was found, for the event log."""
        first = self.segments[0].first if self.segments else self.position
        return RecoveryReport(self.entries, self.position - first, self.torn_bytes, len(self.segments))

    async def _read_headers(self) -> list[Segment]:
        directory = self._identity.directory
        names = await self._storage.names(directory)
        self._unused = [f"{directory}/{name}" for name in names if name.endswith(SUFFIX + TEMPORARY_SUFFIX)]
        positions = segment_positions(names)
        segments: list[Segment] = []
        for position in positions:
            path = self._identity.path(position)
            file_bytes = await self._storage.size(path)
            file = await self._storage.open(path)
            try:
                header = await read_header(file, self._identity, position)
            except HeaderTorn as torn:
                could_be_new = position == positions[-1] and (position == 0 or bool(segments))
                if not could_be_new or await _is_used(file, file_bytes):
                    raise WalCorrupted(path, 0, f"the header cannot be read ({torn}); {REMEDY}") from torn
                # Its name came to disk without its header: no record was ever written to it.
                self._unused.append(path)
                continue
            finally:
                await file.close()
            segments.append(Segment(header, path, file_bytes))
        return segments

    async def _read_segment(self, segment: Segment, following: Segment | None) -> None:
        next_position = None if following is None else following.first
        scan = SegmentScan(segment.header, file_bytes=segment.file_bytes, next_position=next_position)
        file = await self._storage.open(segment.path)
        try:
            while (wanted := scan.wanted) is not None:
                data = await file.read(*wanted)
                if len(data) < wanted[1]:
                    raise WalCorrupted(segment.path, wanted[0] + len(data), "the file became shorter while it was read")
                for record in scan.feed(data):
                    self._take(segment, record)
        finally:
            await file.close()
        self.position = scan.end
        if scan.is_damaged:
            reach = next_position or scan.proven_upto
            detail = f"no valid record is there, but the log was durable up to position {reach}; {REMEDY}"
            raise WalCorrupted(segment.path, segment.offset(scan.end), detail)
        if following is None:
            self.torn_bytes = max(0, scan.used_upto - segment.offset(scan.end))
        else:
            segment.end = scan.end

    def _take(self, segment: Segment, record: Record) -> None:
        self.position = record.position
        offset = segment.offset(record.position)
        try:
            block = Block(record.body)
        except ValueError as error:
            raise WalCorrupted(segment.path, offset, f"a record holds no block: {error}") from error
        if block.shard >= len(self.next_seqs) or block.first_seq != self.next_seqs[block.shard]:
            detail = f"shard {block.shard} goes on at seq {block.first_seq}, which does not continue {self.next_seqs}"
            raise WalCorrupted(segment.path, offset, detail)
        self._proven_upto = max(self._proven_upto, record.synced_upto)
        segment.mark(record.position, self.next_seqs)
        self.next_seqs[block.shard] += block.count
        self.last_crcs[block.shard] = block.crcs[-1]
        self.last_timestamp_us = max(self.last_timestamp_us, *block.timestamps)
        self.entries += block.count

    def _check_evidence(self, evidence: tuple[int, ...]) -> None:
        tails = tuple(seq - 1 for seq in self.next_seqs)
        if any(seq > tail for seq, tail in zip(evidence, tails, strict=False)):
            path = self.segments[-1].path if self.segments else self._identity.directory
            offset = self.segments[-1].offset(self.position) if self.segments else 0
            detail = f"the log ends at {tails}, but a saved cursor says that it reached {evidence}; {REMEDY}"
            raise WalCorrupted(path, offset, detail)


async def _is_used(file: File, file_bytes: int) -> bool:
    """Whether there is anything behind a segment's header."""
    for at in range(HEADER_BYTES, file_bytes, SCAN_BYTES):
        if (await file.read(at, SCAN_BYTES)).rstrip(b"\0"):
            return True
    return False


async def salvage(storage: Storage, identity: LogIdentity) -> Recovery | None:
    """The part of a damaged log that is whole behind its last damage, or, if nothing is there, before it.

    Nothing on the disk changes. It begins where a segment does, as a log of which the rest was trimmed, and nothing may be
    appended to it. None if no entry can be read.

    Raises:
        ForeignLog: it is not the log that is meant.
    """
    segments: list[Segment | None] = []
    for position in segment_positions(await storage.names(identity.directory)):
        path = identity.path(position)
        file = await storage.open(path)
        try:
            header = await read_header(file, identity, position)
            segments.append(Segment(header, path, await storage.size(path)))
        except (HeaderTorn, WalCorrupted):
            segments.append(None)
        finally:
            await file.close()
    whole, part = None, Recovery(storage, identity)
    for segment, following in zip_longest(segments, segments[1:]):
        if segment is None or not part.follows(segment):
            part = Recovery(storage, identity)
        if segment is None:
            continue
        is_damaged = False
        try:
            await part.go_on(segment, following)
        except WalCorrupted:
            is_damaged = True
        whole = part if part.entries else whole
        if is_damaged:
            part = Recovery(storage, identity)
    return whole
