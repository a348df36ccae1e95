"""A disk in memory that loses what was not synced, and helpers to make and read logs on it.

They reach the tests as one fixture, `lab`: test modules cannot import each other.
"""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import DiskFull, SyncFailed
from claudefs_repl.journal import Incarnation, Inode, JournalId, Op, Shard, SiteId
from claudefs_repl.wal import HEADER_BYTES, RECORD_HEAD_BYTES
from nodes.entry_log import EntryLog

JOURNAL = JournalId(SiteId(3), Incarnation(0xFEED))
DIRECTORY = "journals/3-000000000000feed"
SHARDS = 2
SECTOR = 512
SEEN = encode_cursors({}, SHARDS)


class PowerLossError(Exception):
    """The machine stopped in the middle of a call."""


class FakeInode:
    def __init__(self, size):
        self.live = bytearray(size)
        self.durable = None
        self.pending = []
        self.used_upto = 0


class FakeFile:
    def __init__(self, disk, path, inode):
        self.disk, self.path, self.inode = disk, path, inode

    async def read(self, offset, length):
        await trio.lowlevel.checkpoint()
        return bytes(self.inode.live[offset : offset + length])

    async def write(self, offset, buffers, *, sync):
        await trio.lowlevel.checkpoint()
        data = b"".join(map(bytes, buffers))
        self.disk.calls.append(("write", self.path, len(data), sync))
        allowed = self.disk.take_room(self.inode, offset, len(data))
        assert offset + len(data) <= len(self.inode.live), "the log writes only into what is allocated"
        self.inode.live[offset : offset + allowed] = data[:allowed]
        self.inode.pending.append((offset, data[:allowed]))
        self.disk.step()
        if allowed < len(data):
            raise DiskFull(self.path)
        if sync:
            await self.sync()

    async def sync(self):
        await trio.lowlevel.checkpoint()
        inode = self.inode
        if self.disk.sync_fails:
            inode.pending.clear()  # such pages can be read, and Linux never writes them again
            raise SyncFailed(self.path)
        self.disk.calls.append(("sync", self.path))
        if inode.durable is None:
            inode.durable = bytearray(len(inode.live))
        for offset, data in inode.pending:
            inode.durable[offset : offset + len(data)] = data
        inode.pending.clear()
        self.disk.step()

    async def close(self):
        await trio.lowlevel.checkpoint()


class FakeStorage:
    """A disk in memory with a page cache: what is not synced is lost in part by `power_loss`."""

    def __init__(self):
        self.live, self.durable, self.pending = {}, {}, []
        self.calls = []
        self.room = None
        self.is_copy_on_write = False
        self.sync_fails = False
        self.steps_left = None

    def step(self):
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise PowerLossError

    def take_room(self, inode, offset, length):
        """How much of a write there is room for; writing again over the same bytes takes none, but on copy on write."""
        if self.room is None:
            return length
        new_from = offset if self.is_copy_on_write else min(max(offset, inode.used_upto), offset + length)
        taken = min(self.room, offset + length - new_from)
        self.room -= taken
        inode.used_upto = max(inode.used_upto, new_from + taken)
        return new_from + taken - offset

    def power_loss(self, rng):
        """The disk after power came back: of what was not synced, any sectors and any directory changes stayed."""
        after = FakeStorage()
        names = dict(self.durable)
        for kind, path, other in self.pending:
            if rng.random() < 0.5:
                self._apply(names, kind, path, other)
        for path, inode in names.items():
            kept = after.live[path] = after.durable[path] = FakeInode(0)
            if inode.durable is None:
                kept.live = bytearray(len(inode.live)) if rng.random() < 0.5 else bytearray()
            else:
                kept.live = bytearray(inode.durable)
            for offset, data in inode.pending:
                for at in range(offset, offset + len(data)):
                    if at % SECTOR == 0 or at == offset:
                        keep = rng.random() < 0.5
                    if keep and at < len(kept.live):
                        kept.live[at] = data[at - offset]
            kept.durable = bytearray(kept.live)
        return after

    def killed(self):
        """The disk as the next process finds it when this one was killed: the page cache stays, unsynced as it was."""
        self.steps_left, self.room = None, None
        return self

    @staticmethod
    def _apply(names, kind, path, other):
        if kind == "set":
            names[path] = other
        elif kind == "remove":
            names.pop(path, None)
        elif path in names:
            names[other] = names.pop(path)

    def _change(self, kind, path, other=None):
        self._apply(self.live, kind, path, other)
        self.pending.append((kind, path, other))

    async def create(self, path, size):
        await trio.lowlevel.checkpoint()
        self.calls.append(("create", path))
        assert path not in self.live
        if self.room is not None and size > self.room:
            raise DiskFull(path)
        inode = FakeInode(size)
        self._change("set", path, inode)
        self.step()
        return FakeFile(self, path, inode)

    async def open(self, path):
        await trio.lowlevel.checkpoint()
        if path not in self.live:
            raise FileNotFoundError(path)
        return FakeFile(self, path, self.live[path])

    async def names(self, path):
        await trio.lowlevel.checkpoint()
        return sorted(name.removeprefix(path + "/") for name in self.live if name.startswith(path + "/"))

    async def size(self, path):
        await trio.lowlevel.checkpoint()
        return len(self.live[path].live)

    async def make_dir(self, path):
        await trio.lowlevel.checkpoint()

    async def remove(self, path):
        await trio.lowlevel.checkpoint()
        if path in self.live:
            self._change("remove", path)
            self.step()

    async def rename(self, old, new):
        await trio.lowlevel.checkpoint()
        self._change("rename", old, new)
        self.step()
        await self.sync_dir("")

    async def sync_dir(self, path):
        await trio.lowlevel.checkpoint()
        if self.sync_fails:
            raise SyncFailed(path)
        self.durable = dict(self.live)
        self.pending.clear()
        self.step()

    @property
    def segments(self):
        return {path: self.live[path].live for path in sorted(self.live) if path.endswith(".seg")}

    @property
    def last(self):
        return self.segments[max(self.segments)]


def fixed_entropy():
    count = itertools.count(1)
    return lambda length: random.Random(next(count)).randbytes(length)


def fields(storage, **changes):
    return {
        "storage": storage,
        "journal": JOURNAL,
        "cluster_id": "test",
        "shard_count": SHARDS,
        "segment_bytes": HEADER_BYTES + 1500,
        "entropy": fixed_entropy(),
    } | changes


class Writer:
    """Makes blocks that continue a log and remembers what the log should hold."""

    def __init__(self, tails=(0,) * SHARDS):
        self.next = [tail + 1 for tail in tails]
        self.time_us = 1000

    def block(self, shard=0, count=1, size=20, payload=None):
        rows = []
        for n in range(count):
            self.time_us += 1
            data = payload if payload is not None else bytes([self.next[shard] + n & 0xFF]) * size
            rows.append(NewRow(self.time_us, Op.WRITE, Inode(77), data, self.time_us & 0xFFFFFFFF))
        block = Block.build(shard=Shard(shard), first_seq=self.next[shard], rows=rows, seen=SEEN)
        self.next[shard] += count
        return block


def rows_of(blocks):
    """Every entry of some blocks, by shard, as plain tuples."""
    rows = {shard: [] for shard in range(SHARDS)}
    for block in blocks:
        rows[block.shard] += [tuple(row)[:-1] for row in block.rows()]
    return rows


async def read_all(log, after=None, bytes_max=700):
    reader = log.reader(after or tuple(first - 1 for first in log.firsts))
    blocks = []
    while some := await reader.read(bytes_max=bytes_max):
        blocks += some
    assert reader.position == log.position
    assert reader.cursors == log.tails
    await reader.close()
    return blocks


async def fill(storage, groups, **changes):
    """A log with some groups of blocks, each one append; the blocks."""
    log = await EntryLog.create(**fields(storage, **changes))
    for group in groups:
        await log.append(group)
    await log.close()
    return [block for group in groups for block in group]


def three_groups():
    writer = Writer()
    return [
        [writer.block(0, 2, 10), writer.block(1, 1, 5)],
        [writer.block(0, 1, 30)],
        [writer.block(1, 2, 8), writer.block(0, 1, 0), writer.block(1, 1, 40)],
    ]


def ends_of(blocks):
    return list(itertools.accumulate(RECORD_HEAD_BYTES + len(block.encoded) for block in blocks))


@pytest.fixture
def lab():
    return SimpleNamespace(
        JOURNAL=JOURNAL,
        DIRECTORY=DIRECTORY,
        SHARDS=SHARDS,
        PowerLossError=PowerLossError,
        FakeInode=FakeInode,
        FakeFile=FakeFile,
        FakeStorage=FakeStorage,
        fields=fields,
        Writer=Writer,
        rows_of=rows_of,
        read_all=read_all,
        fill=fill,
        three_groups=three_groups,
        ends_of=ends_of,
    )
