"""The old data of a site that is made anew: what its logs have that is carried over, or journaled again."""

from __future__ import annotations

import bisect
import heapq
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from claudefs_repl.block import ROW_HEAD_BYTES, Block
from claudefs_repl.checkpoint import cursor_of
from claudefs_repl.conduit import beyond
from claudefs_repl.error import WalCorrupted, WorldError
from claudefs_repl.journal import JournalId
from claudefs_repl.reincarnation import Restamped
from nodes.entry_log import EntryLog
from nodes.journals import JOURNALS_DIR, LogSettings, parse_journal_dir
from nodes.seams import Entropy, Storage
from nodes.small_json import parse_json
from nodes.snapshots import cursors_from_json, cursors_to_json
from nodes.store.refold import OldEntry
from nodes.store.sqlite_store import SqliteStore

CLOSED_FILE = "closed.json"
FORMAT = 1
WINDOW_BYTES = 16 << 20
"""Old entries that are held to be put in order: more than one group of the journal writer, whose shards interleave."""
READ_BYTES = 1 << 20
REFOLD_ENTRIES = 512
REFOLD_BYTES = 4 << 20
"""What is folded in one transaction and appended at once, as much as a group of the journal writer."""


@dataclass(slots=True)
class OldLogs:
    """The logs of the old data, as far as they can be read. Owned by the bootstrap.

    Attributes:
        own: the site's own journal, None if it is gone.
        replicas: all others.
        damage: why a log that is or should be there cannot be read, or not all of it, one line each.
    """

    own: EntryLog | None = None
    replicas: list[EntryLog] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    @classmethod
    async def open(cls, storage: Storage, settings: LogSettings, entropy: Entropy, own: JournalId | None) -> OldLogs:
        """Recover each log as a start does, but for what was once told of it: the copy may be an old one."""
        old = cls()
        for name in await storage.names(JOURNALS_DIR):
            journal = parse_journal_dir(name)
            if journal is None or not await storage.names(f"{JOURNALS_DIR}/{name}"):
                continue
            log: EntryLog | None
            try:
                log = await settings.open(storage, journal, entropy, {})
            except WalCorrupted as damage:
                log = await settings.salvage(storage, journal, entropy)
                old.damage.append(f"{damage}; {_describe(log)}")
            if log is None:
                continue
            if journal == own:
                old.own = log
            else:
                old.replicas.append(log)
        if own is not None and old.own is None:
            old.damage.append(f"the log of journal {own} is gone, or nothing of it can be read")
        return old

    async def close(self) -> None:
        """Release the files."""
        for log in self.all():
            await log.close()

    def all(self) -> tuple[EntryLog, ...]:
        """Every log, the own one last."""
        return (*self.replicas, *([] if self.own is None else [self.own]))

    async def rest(self, held: tuple[int, ...]) -> AsyncGenerator[Sequence[OldEntry], None]:
        """What the own journal has beyond what the peers hold, in the order in which it was made."""
        if self.own is None:
            return
        limits = zip(held, self.own.firsts, self.own.tails, strict=True)
        # A hole between what the peers hold and what this log still has is told as lost.
        after = tuple(min(tail, max(seq, first - 1)) for seq, first, tail in limits)
        async with aclosing(_in_order(self.own, after)) as entries:
            ready: list[OldEntry] = []
            ready_bytes = 0
            async for entry in entries:
                ready.append(entry)
                ready_bytes += _size(entry)
                if len(ready) == REFOLD_ENTRIES or ready_bytes >= REFOLD_BYTES:
                    yield ready
                    ready, ready_bytes = [], 0
            if ready:
                yield ready


def _describe(log: EntryLog | None) -> str:
    if log is None:
        return "nothing of it can be read"
    kept = [f"{first} to {tail}" for first, tail in zip(log.firsts, log.tails, strict=True)]
    return f"what is whole of it is used: seqs {', '.join(kept)} of its shards"


@dataclass(frozen=True, slots=True)
class Closed:
    """The site's journals that bootstraps have closed.

    Attributes:
        restamped: what of them was journaled again although peers may hold it.
    """

    journals: tuple[JournalId, ...]
    restamped: Restamped


async def read_closed(storage: Storage) -> Closed:
    """What earlier bootstraps have closed.

    Raises:
        WorldError: the file is there and cannot be understood.
    """
    content = await storage.read_file(CLOSED_FILE)
    if content is None:
        return Closed((), Restamped({}, {}))
    try:
        value = parse_json(content)
        restamped = Restamped(*(cursors_from_json(value.get(f"restamped_{end}", {})) for end in ("after", "upto")))
        return Closed(tuple(map(JournalId.parse, value["closed"])), restamped)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorldError(
            f"{CLOSED_FILE} cannot be read ({error!r}); remove it: losses of long ago are told again"
        ) from error


async def write_closed(storage: Storage, closed: Closed) -> None:
    """Note which journals are closed: what nobody holds of them is settled."""
    value = {
        "format": FORMAT,
        "closed": [str(journal) for journal in closed.journals],
        "restamped_after": cursors_to_json(closed.restamped.after),
        "restamped_upto": cursors_to_json(closed.restamped.upto),
    }
    await storage.replace_file(CLOSED_FILE, json.dumps(value).encode())


async def sound_tails(log: EntryLog, limit_us: int) -> tuple[int, ...]:
    """For each shard the last seq of a log before the first entry that is stamped later than a limit."""
    tails = list(log.tails)
    if log.last_timestamp_us <= limit_us:
        return log.tails
    reader = log.reader(tuple(first - 1 for first in log.firsts))
    try:
        while blocks := await reader.read(bytes_max=READ_BYTES):
            for block in blocks:
                sound = block.first_seq + bisect.bisect_right(block.timestamps, limit_us) - 1
                if sound < block.last_seq:
                    tails[block.shard] = min(sound, tails[block.shard])
    finally:
        await reader.close()
    return tuple(tails)


async def carry_over(old: EntryLog, new: EntryLog, store: SqliteStore, *, upto: tuple[int, ...]) -> None:
    """Append to a new log what the old one of the same journal has more, and fold of that what the view has not applied.

    It may be the only one that has it.

    Args:
        old: where it comes from. Of a shard in which it no longer reaches back to where the new one ends, nothing can be
            carried over.
        new: where it goes.
        store: the new view, which has applied all that is before the new log's end.
        upto: for each shard the last seq to carry over.
    """
    places = zip(new.tails, old.firsts, old.tails, strict=True)
    reader = old.reader(tuple(tail if first > seq + 1 else min(seq, tail) for seq, first, tail in places))
    try:
        while blocks := await reader.read(bytes_max=READ_BYTES):
            kept = beyond([block for one in blocks for block in _cut(one, upto)], new.tails)
            if kept:
                await new.append(kept)
            if unseen := beyond(kept, cursor_of(store.applied, new.journal, new.shard_count)):
                async with store.transaction() as transaction:
                    await transaction.fold_blocks(new.journal, unseen)
                    await transaction.commit()
    finally:
        await reader.close()


def _cut(block: Block, upto: tuple[int, ...]) -> list[Block]:
    last_seq = min(block.last_seq, upto[block.shard])
    return [block.cut(first_seq=block.first_seq, last_seq=last_seq)] if last_seq >= block.first_seq else []


async def _in_order(log: EntryLog, after: tuple[int, ...]) -> AsyncGenerator[OldEntry, None]:
    """A log's entries beyond some cursors, in the order in which they were made: the shards of a group interleave."""
    window: list[OldEntry] = []
    window_bytes = 0
    reader = log.reader(after)
    try:
        while blocks := await reader.read(bytes_max=READ_BYTES):
            for block in blocks:
                for row in block.rows():
                    entry = OldEntry(row.timestamp_us, block.shard, row.seq, row.inode, row.op, bytes(row.payload))
                    heapq.heappush(window, entry)
                    window_bytes += _size(entry)
            while window_bytes > WINDOW_BYTES:
                entry = heapq.heappop(window)
                window_bytes -= _size(entry)
                yield entry
    finally:
        await reader.close()
    while window:
        yield heapq.heappop(window)


def _size(entry: OldEntry) -> int:
    return ROW_HEAD_BYTES + len(entry.payload)
