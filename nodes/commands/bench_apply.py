"""Applying to the view: entries that arrive from another site, at growing depths of history, directory and conflict list.

The store is a site's own, on disk; the blocks are made here, so that nothing but folding and committing is measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import Cursors, encode_cursors
from claudefs_repl.journal import (
    ROOT_INODE,
    Incarnation,
    Inode,
    JournalId,
    Shard,
    SiteId,
    entry_crc32,
    make_inode,
    shard_of,
)
from claudefs_repl.operations import Create, Operation, SetAttr, Write
from nodes.commands.figures import Figure, Scale
from nodes.store.sqlite_store import SqliteStore
from protocol.payload import OP_OF, encode_payload

SHARDS = 4
FILES = 64
"""As many as the other parts write to."""
ENTRY_BYTES = 200
STEP_ENTRIES = 1024
"""Entries of one transaction, as the applier takes them."""
WINDOW_ENTRIES = 40_960
"""Entries that are timed at each depth."""
DURABLE_EVERY = 256
"""Transactions between two syncs of the store; a site makes one every few seconds."""
START_US = 1_700_000_000_000_000

Change = tuple[Inode, Operation]


class Writer:
    """A site's journal, written entry by entry. What it has `seen` is nothing, or what it is told."""

    def __init__(self, site: int, start_us: int) -> None:
        self.journal = JournalId(SiteId(site), Incarnation(site))
        self.seqs = [0] * SHARDS
        self.now_us = start_us
        self.seen: Cursors = {}

    def new_inode(self) -> Inode:
        """The number of the object that the next entry makes."""
        return make_inode(self.journal.origin, self.now_us + 1)

    def blocks(self, changes: Iterator[Change]) -> list[Block]:
        """Entries of some changes, a block for each shard."""
        rows: list[list[NewRow]] = [[] for _ in range(SHARDS)]
        for inode, operation in changes:
            self.now_us += 1
            shard = shard_of(inode, SHARDS)
            self.seqs[shard] += 1
            op, payload = OP_OF[type(operation)], encode_payload(operation)
            crc32 = entry_crc32(self.seqs[shard], shard, self.journal.origin, self.now_us, inode, op, payload)
            rows[shard].append(NewRow(self.now_us, op, inode, payload, crc32))
        seen = encode_cursors(self.seen, SHARDS)
        return [
            Block.build(shard=Shard(shard), first_seq=self.seqs[shard] - len(some) + 1, rows=some, seen=seen)
            for shard, some in enumerate(rows)
            if some
        ]


async def measure_applying(parent: Path, scale: Scale) -> list[Figure]:
    """Entries applied per second, for appends, for new files in one directory, and for changes that all conflict."""
    figures: list[Figure] = []
    for name, history, meaning in (
        ("append", _appends, f"{ENTRY_BYTES}-byte writes to {FILES} files"),
        ("create", _creations, "new files in one directory"),
        ("conflict", _conflicts, "attributes of new files set at two sites: every third entry is a conflict"),
    ):
        with tempfile.TemporaryDirectory(prefix="claudefs-repl-bench-", dir=parent) as directory:
            store = await SqliteStore.open(Path(directory) / "view.sqlite", shard_count=SHARDS)
            try:
                rates = await _rates(store, history, scale.apply_depths)
            finally:
                await store.close()
        figures += [
            Figure(f"{name}_at_{depth}_per_s", rate, f"{meaning}, after {depth:,} such entries")
            for depth, rate in rates.items()
        ]
    return figures


async def _rates(
    store: SqliteStore, history: Callable[[int], Iterator[tuple[JournalId, list[Block]]]], depths: tuple[int, ...]
) -> dict[int, float]:
    """The rate over a window that begins at each depth, entries per second."""
    rates: dict[int, float] = {}
    entries, window_entries, window_s = 0, 0, 0.0
    pending = list(depths)
    for step, (journal, blocks) in enumerate(history(depths[-1] + WINDOW_ENTRIES), 1):
        began_s = time.perf_counter()
        async with store.transaction() as transaction:
            await transaction.fold_blocks(journal, blocks)
            await transaction.commit()
        took_s = time.perf_counter() - began_s
        count = sum(block.count for block in blocks)
        entries += count
        if step % DURABLE_EVERY == 0:
            await store.make_durable()
        if pending and entries > pending[0]:
            window_entries += count
            window_s += took_s
            if window_entries >= WINDOW_ENTRIES:
                rates[pending.pop(0)] = window_entries / window_s
                window_entries, window_s = 0, 0.0
    return rates


def _appends(entries: int) -> Iterator[tuple[JournalId, list[Block]]]:
    writer = Writer(1, START_US)
    files: list[Inode] = []

    def make() -> Iterator[Change]:
        for index in range(FILES):
            files.append(writer.new_inode())
            yield files[-1], Create(0o644, 0, 0, 0, ROOT_INODE, b"file-%d" % index)

    yield writer.journal, writer.blocks(make())
    data = bytes(range(ENTRY_BYTES))
    for first in range(0, entries + STEP_ENTRIES, STEP_ENTRIES):
        steps = ((files[index % FILES], index // FILES) for index in range(first, first + STEP_ENTRIES))
        yield writer.journal, writer.blocks((inode, Write(turn * ENTRY_BYTES, data)) for inode, turn in steps)


def _creations(entries: int) -> Iterator[tuple[JournalId, list[Block]]]:
    writer = Writer(1, START_US)

    def make(first: int) -> Iterator[Change]:
        for index in range(first, first + STEP_ENTRIES):
            yield writer.new_inode(), Create(0o644, 0, 0, 0, ROOT_INODE, b"file-%d" % index)

    for first in range(0, entries + STEP_ENTRIES, STEP_ENTRIES):
        yield writer.journal, writer.blocks(make(first))


def _conflicts(entries: int) -> Iterator[tuple[JournalId, list[Block]]]:
    one, other = Writer(1, START_US), Writer(2, START_US + (1 << 40))
    third = STEP_ENTRIES // 3
    for first in range(0, entries + STEP_ENTRIES, STEP_ENTRIES):
        made: list[Inode] = []

        def make(first: int = first, made: list[Inode] = made) -> Iterator[Change]:
            for index in range(first, first + third):
                made.append(one.new_inode())
                yield made[-1], Create(0o644, 0, 0, 0, ROOT_INODE, b"file-%d" % index)

        yield one.journal, one.blocks(make())
        other.seen = {one.journal: tuple(one.seqs)}
        yield one.journal, one.blocks((inode, SetAttr.only(mode=0o600)) for inode in made)
        yield other.journal, other.blocks((inode, SetAttr.only(mode=0o640)) for inode in made)
