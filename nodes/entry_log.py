"""Entry logs: one journal's entries on this site's disk, all shards in order of arrival, and their readers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress

import trio

from claudefs_repl.block import Block
from claudefs_repl.cursor_history import CursorHistory
from claudefs_repl.error import CallerError, DiskFull, SyncFailed, WalCorrupted
from claudefs_repl.journal import JournalId
from claudefs_repl.wal import RECORD_HEAD_BYTES, Cut
from nodes.log_segments import (
    INDEX_BYTES,
    REMEDY,
    ForeignLog,
    LogIdentity,
    Recovery,
    RecoveryReport,
    Segment,
    make_segment,
    salvage,
)
from nodes.seams import Buffer, Entropy, File, Storage

__all__ = ["AheadOfLog", "EntryLog", "ForeignLog", "GapInLog", "LogReader", "RecoveryReport"]


class GapInLog(CallerError):
    """A reader wants entries that were trimmed away: it must start from a snapshot instead."""


class AheadOfLog(CallerError):
    """A reader wants to go on behind an entry that the log does not have."""


class EntryLog:
    """One journal's log. Appended to by one task; trimmed by one task; any task may make readers and wait.

    Attributes:
        recovered: what opening it found.
        tails: for each shard the seq of its last durable entry, 0 if there is none.
        position: the durable end, in record bytes.
        last_crcs: for each shard the crc32 of its last entry, 0 if the log holds none of it.
        last_timestamp_us: greatest timestamp of any entry ever appended, 0 if there is none.
        history: when the tails moved, in Trio's seconds, since the log was opened.
    """

    def __init__(
        self, storage: Storage, identity: LogIdentity, entropy: Entropy, recovery: Recovery, file: File
    ) -> None:
        """Use `create` or `open`."""
        self._storage = storage
        self._identity = identity
        self._entropy = entropy
        self._segments = recovery.segments
        self._file = file
        self._grown = trio.Event()
        self._is_appending = False
        self._is_trimming = False
        self._garbage_upto = 0
        self._failure: SyncFailed | None = None
        self.recovered = recovery.report()
        self.tails = tuple(seq - 1 for seq in recovery.next_seqs)
        self.position = recovery.position
        self.last_crcs = tuple(recovery.last_crcs)
        self.last_timestamp_us = recovery.last_timestamp_us
        self.history = CursorHistory(trio.current_time(), self.tails)

    @classmethod
    async def create(
        cls,
        *,
        storage: Storage,
        journal: JournalId,
        cluster_id: str,
        shard_count: int,
        segment_bytes: int,
        entropy: Entropy,
        after: tuple[int, ...] = (),
    ) -> EntryLog:
        """A new log, durable with its directory. A log without entries that is there already is taken over.

        Args:
            storage: where it will be.
            journal: whose entries it will hold.
            cluster_id: of the cluster.
            shard_count: of the cluster.
            segment_bytes: the size of its segments.
            entropy: for their salt.
            after: for each shard the last seq that it will never hold, as if it had been trimmed; empty for none.

        Raises:
            CallerError: there is such a log, and it has entries or begins elsewhere.
            DiskFull: there is no room for a segment.
        """
        after = after or (0,) * shard_count
        log = await cls.open(
            storage=storage,
            journal=journal,
            cluster_id=cluster_id,
            shard_count=shard_count,
            segment_bytes=segment_bytes,
            entropy=entropy,
            after=after,
        )
        if log.tails != after:
            await log.close()
            raise CallerError(f"{log._identity.directory}: this log exists already, and ends at {log.tails}")
        return log

    @classmethod
    async def open(
        cls,
        *,
        storage: Storage,
        journal: JournalId,
        cluster_id: str,
        shard_count: int,
        segment_bytes: int,
        entropy: Entropy,
        evidence: tuple[int, ...] = (),
        after: tuple[int, ...] = (),
    ) -> EntryLog:
        """Recover a log: what it holds is synced, and a torn tail cut, before this returns.

        Args:
            storage: where it is.
            journal: whose entries it holds.
            cluster_id: the cluster that it must belong to.
            shard_count: the shards that it must have.
            segment_bytes: the size of segments made from now on.
            entropy: for the salt of new segments.
            evidence: for each shard a seq that some saved cursor says was durable here; empty if none does.
            after: where a log that has no segment yet begins, as for `create`.

        Raises:
            WalCorrupted: what was durable is damaged or missing. Nothing on the disk was changed.
            ForeignLog: it is not the log that is meant. Nothing on the disk was changed.
            DiskFull: it has no segment and there is no room for one, or none to write its last group once more.
        """
        identity = LogIdentity(journal, cluster_id, shard_count, segment_bytes)
        recovery = Recovery(storage, identity)
        await recovery.read(evidence)
        await storage.make_dir(identity.directory)
        file = await recovery.repair()
        if file is None:
            if after:
                recovery.next_seqs = [seq + 1 for seq in after]
            segment, file = await make_segment(
                storage,
                identity,
                entropy,
                first_position=0,
                next_seqs=tuple(recovery.next_seqs),
                last_timestamp_us=0,
            )
            recovery.segments.append(segment)
        return cls(storage, identity, entropy, recovery, file)

    @classmethod
    async def salvage(
        cls,
        *,
        storage: Storage,
        journal: JournalId,
        cluster_id: str,
        shard_count: int,
        segment_bytes: int,
        entropy: Entropy,
    ) -> EntryLog | None:
        """What is whole of a damaged log, only to be read, as `log_segments.salvage` says; arguments as of `open`.

        Raises:
            ForeignLog: it is not the log that is meant.
        """
        identity = LogIdentity(journal, cluster_id, shard_count, segment_bytes)
        recovery = await salvage(storage, identity)
        if recovery is None:
            return None
        return cls(storage, identity, entropy, recovery, await storage.open(recovery.segments[-1].path))

    @property
    def journal(self) -> JournalId:
        """Whose entries these are."""
        return self._identity.journal

    @property
    def shard_count(self) -> int:
        """How many shards the journal has."""
        return self._identity.shard_count

    @property
    def firsts(self) -> tuple[int, ...]:
        """For each shard the seq of the first entry still on disk; one beyond its tail if there is none."""
        return self._segments[0].header.next_seqs

    @property
    def bytes_on_disk(self) -> int:
        """What the log's files take."""
        return sum(segment.file_bytes for segment in self._segments)

    async def append(self, blocks: Sequence[Block]) -> None:
        """Make blocks durable, in one write and one sync; then `tails` and `position` tell of them.

        Cancelled, it has not happened: once it is begun it goes on to its end.

        Raises:
            DiskFull: there was no room. Nothing was appended, and the log goes on from where it was.
            SyncFailed: the disk did not confirm; the process must end. Every later append raises it too.
            OSError: the disk failed. Nothing was appended.
        """
        assert not self._is_appending, "a log has one appending task"
        await trio.lowlevel.checkpoint_if_cancelled()
        if not blocks:
            return
        self._is_appending = True
        try:
            with trio.CancelScope(shield=True):
                await self._append(blocks)
        except SyncFailed as failure:
            self._failure = failure
            raise
        finally:
            self._is_appending = False

    async def trim(self, below: tuple[int, ...]) -> int:
        """Remove the oldest segments that hold nothing beyond some cursors, never the last; bytes freed.

        Each removal is durable before the next, so that no crash leaves a hole. A reader of a removed segment reads on
        to its end if it has the file open, and else raises GapInLog.
        """
        assert not self._is_trimming, "a log has one trimming task"
        self._is_trimming = True
        freed = 0
        try:
            while len(self._segments) > 1 and _is_covered(self._segments[1].header.next_seqs, below):
                oldest = self._segments[0]
                with trio.CancelScope(shield=True):
                    await self._storage.remove(oldest.path)
                    await self._storage.sync_dir(self._identity.directory)
                    del self._segments[0]
                freed += oldest.file_bytes
                await trio.lowlevel.checkpoint()
        finally:
            self._is_trimming = False
        return freed

    def reader(self, after: tuple[int, ...]) -> LogReader:
        """A reader of what follows some cursors.

        Raises:
            GapInLog: entries behind a cursor were trimmed away.
            AheadOfLog: a cursor is beyond the log's end.
        """
        assert len(after) == self.shard_count
        if not _is_covered(self.firsts, after):
            raise GapInLog(f"journal {self.journal} begins at {self.firsts} here; it cannot be read on from {after}")
        if any(seq > tail for seq, tail in zip(after, self.tails, strict=True)):
            raise AheadOfLog(f"journal {self.journal} ends at {self.tails} here; it cannot be read on from {after}")
        return LogReader(self, self._storage, after)

    async def crc_at(self, shard: int, seq: int) -> int:
        """The crc32 of one entry, 0 if the log does not hold it."""
        if not self.firsts[shard] <= seq <= self.tails[shard]:
            return 0
        if seq == self.tails[shard]:
            return self.last_crcs[shard]
        reader = self.reader((*self.tails[:shard], seq - 1, *self.tails[shard + 1 :]))
        try:
            blocks = await reader.read(bytes_max=INDEX_BYTES)
        except GapInLog:  # trimmed just now
            return 0
        finally:
            await reader.close()
        return blocks[0].crcs[0]

    async def crcs(self, shard: int, *, first_seq: int, last_seq: int) -> dict[int, int]:
        """The crc32 of each of a shard's entries from one seq to another that the log holds, by seq."""
        first_seq, last_seq = max(first_seq, self.firsts[shard]), min(last_seq, self.tails[shard])
        found: dict[int, int] = {}
        if first_seq > last_seq:
            return found
        reader = self.reader((*self.tails[:shard], first_seq - 1, *self.tails[shard + 1 :]))
        try:
            while reader.cursors[shard] < last_seq and (blocks := await reader.read(bytes_max=INDEX_BYTES)):
                for block in blocks:
                    if block.shard == shard:
                        found.update(zip(range(block.first_seq, last_seq + 1), block.crcs, strict=False))
        except GapInLog:  # trimmed just now
            pass
        finally:
            await reader.close()
        return found

    async def wait_beyond(self, position: int) -> None:
        """Return once the durable end is beyond a position."""
        while self.position <= position:
            await self._grown.wait()

    def position_of(self, cursors: tuple[int, ...]) -> int:
        """A position at or before the first entry beyond some cursors, as near as the sparse index tells."""
        if all(seq >= tail for seq, tail in zip(cursors, self.tails, strict=True)):
            return self.position
        later = bisect_left(
            self._segments, True, key=lambda segment: not _is_covered(segment.header.next_seqs, cursors)
        )
        marks = self._segments[max(0, later - 1)].marks
        later = bisect_left(marks, True, key=lambda mark: not _is_covered(mark[1], cursors))
        return marks[max(0, later - 1)][0]

    def segment_at(self, position: int) -> Segment:
        """The segment that holds the record at a position below the durable end.

        Raises:
            GapInLog: it was trimmed away.
        """
        later = bisect_left(self._segments, True, key=lambda segment: segment.first > position)
        if not later:
            raise GapInLog(f"journal {self.journal} was trimmed while it was read: position {position} is gone")
        return self._segments[later - 1]

    async def close(self) -> None:
        """Release the file; everything appended is durable already."""
        await self._file.close()

    async def _append(self, blocks: Sequence[Block]) -> None:
        if self._failure is not None:
            raise SyncFailed(str(self._failure))
        await self._clear_garbage()
        segment = await self._segment_for(sum(RECORD_HEAD_BYTES + len(block.encoded) for block in blocks))
        buffers: list[Buffer] = []
        position, seqs = self.position, [seq + 1 for seq in self.tails]
        marks = segment.marks[-1:]
        for block in blocks:
            assert block.first_seq == seqs[block.shard], "the entries of a shard follow one another"
            if position - marks[-1][0] >= INDEX_BYTES:
                marks.append((position, tuple(seqs)))
            seqs[block.shard] += block.count
            buffers += (segment.codec.head(position, self.position, block.encoded), block.encoded)
            position += RECORD_HEAD_BYTES + len(block.encoded)
        try:
            await self._file.write(segment.offset(self.position), buffers, sync=True)
        except (OSError, DiskFull) as error:
            self._garbage_upto = segment.offset(position)
            if isinstance(error, DiskFull):
                # Clients will be told that nothing was written, so no later recovery may find it. Where even zeros need
                # room (copy on write), the next append tries again.
                with suppress(DiskFull):
                    await self._clear_garbage()
            raise
        segment.marks += marks[1:]
        self.last_timestamp_us = max(self.last_timestamp_us, *[max(block.timestamps) for block in blocks])
        self.tails = tuple(seq - 1 for seq in seqs)
        crcs = list(self.last_crcs)
        for block in blocks:
            crcs[block.shard] = block.crcs[-1]
        self.last_crcs = tuple(crcs)
        self.position = position
        self.history.note(trio.current_time(), self.tails)
        self._grown.set()
        self._grown = trio.Event()

    async def _segment_for(self, record_bytes: int) -> Segment:
        """The last segment if there is room in it, else a new one."""
        last = self._segments[-1]
        if last.offset(self.position) + record_bytes <= last.file_bytes:
            return last
        segment, file = await make_segment(
            self._storage,
            self._identity,
            self._entropy,
            first_position=self.position,
            next_seqs=tuple(seq + 1 for seq in self.tails),
            last_timestamp_us=self.last_timestamp_us,
            record_bytes=record_bytes,
        )
        previous, self._file = self._file, file
        if last.first == self.position:
            # Nothing durable was in it, so no reader has opened it, and the new one took its name.
            self._segments[-1] = segment
        else:
            last.end = self.position
            self._segments.append(segment)
        await previous.close()
        return segment

    async def _clear_garbage(self) -> None:
        """Zero what a failed write left behind the end: only that, for writing over it takes no room."""
        start = self._segments[-1].offset(self.position)
        if self._garbage_upto > start:
            garbage = await self._file.read(start, self._garbage_upto - start)
            await self._file.write(start, [bytes(len(garbage.rstrip(b"\0")))], sync=True)
        self._garbage_upto = 0


class LogReader:
    """Reads a log's durable blocks beyond some cursors, in the log's order. Owned by one task.

    Attributes:
        cursors: for each shard the seq of the last entry read.
        position: how far it has read.
    """

    def __init__(self, log: EntryLog, storage: Storage, after: tuple[int, ...]) -> None:
        """Use `EntryLog.reader`."""
        self._log = log
        self._storage = storage
        self._segment: Segment | None = None
        self._file: File | None = None
        self._wanted = 0
        self._cursors = list(after)
        self.position = log.position_of(after)

    @property
    def cursors(self) -> tuple[int, ...]:
        """For each shard the seq of the last entry read."""
        return tuple(self._cursors)

    async def read(self, *, bytes_max: int) -> list[Block]:
        """The next durable blocks: about `bytes_max` bytes of them, at least one; none at the durable end.

        They share the memory of one read. Cancelled, nothing was read.

        Raises:
            WalCorrupted: what was durable is damaged.
            GapInLog: it was trimmed away.
        """
        while self.position < self._log.position:
            segment, file = await self._open()
            end = self._log.position if segment.end is None else segment.end
            length = min(max(bytes_max, self._wanted), end - self.position)
            offset = segment.offset(self.position)
            data = await file.read(offset, length)
            if len(data) < length:
                raise WalCorrupted(segment.path, offset + len(data), f"the file ends there; {REMEDY}")
            cut = segment.codec.cut(memoryview(data), position=self.position, room=end - self.position)
            if cut.is_bad and not cut.records:
                raise WalCorrupted(segment.path, offset, f"the record there does not match its checksum; {REMEDY}")
            blocks = self._beyond_cursors(cut)
            self.position, self._wanted = cut.end, cut.wanted
            if blocks:
                return blocks
        return []

    async def close(self) -> None:
        """Release its file."""
        if self._file is not None:
            file, self._file, self._segment = self._file, None, None
            await file.close()

    async def _open(self) -> tuple[Segment, File]:
        """The segment at the position, and its file."""
        segment = self._segment
        if segment is not None and self._file is not None and segment.end != self.position:
            return segment, self._file
        await self.close()
        segment = self._log.segment_at(self.position)
        try:
            self._file = await self._storage.open(segment.path)
        except FileNotFoundError as error:
            raise GapInLog(f"journal {self._log.journal} was trimmed while it was read: {segment.path}") from error
        self._segment = segment
        return segment, self._file

    def _beyond_cursors(self, cut: Cut) -> list[Block]:
        blocks = []
        cursors = self._cursors
        for record in cut.records:
            block = Block(record.body)
            shard, last_seq = block.shard, block.first_seq + block.count - 1
            cursor = cursors[shard]
            if last_seq <= cursor:
                continue
            assert block.first_seq <= cursor + 1, "recovery and append let no hole into a log"
            blocks.append(block if block.first_seq > cursor else block.after(cursor))
            cursors[shard] = last_seq
        return blocks


def _is_covered(next_seqs: tuple[int, ...], cursors: tuple[int, ...]) -> bool:
    """Whether cursors have passed every entry before those that come next at a place in a log."""
    return all(seq <= cursor + 1 for seq, cursor in zip(next_seqs, cursors, strict=True))
