"""Reading on from cursors, and trimming."""

from __future__ import annotations

import itertools
import random

import pytest

from claudefs_repl.error import DiskFull
from claudefs_repl.wal import HEADER_BYTES, RECORD_HEAD_BYTES
from nodes import log_segments
from nodes.entry_log import AheadOfLog, EntryLog, GapInLog


async def test_a_reader_starts_inside_a_block(lab):
    """A cursor in the middle of a block yields the rest of that block, for each shard on its own."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(0, 5), writer.block(1, 7), writer.block(0, 4)]])
    rows = lab.rows_of(blocks)
    log = await EntryLog.open(**lab.fields(disk))
    for after in itertools.product(range(10), range(8)):
        got = lab.rows_of(await lab.read_all(log, after))
        assert got == {shard: rows[shard][after[shard] :] for shard in range(lab.SHARDS)}


async def test_a_reader_yields_about_what_it_is_asked_for(lab):
    """A read takes at least one block however long, and not more bytes than asked when one fits."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(0, size=10), writer.block(0, size=1000), writer.block(0, size=10)]])
    log = await EntryLog.open(**lab.fields(disk))
    reader = log.reader((0, 0))
    lengths = [RECORD_HEAD_BYTES + len(block.encoded) for block in blocks]
    assert [b.first_seq for b in await reader.read(bytes_max=lengths[0] + 5)] == [1]
    assert reader.position == lengths[0]
    assert [b.first_seq for b in await reader.read(bytes_max=10)] == [2]
    assert [b.first_seq for b in await reader.read(bytes_max=10_000)] == [3]
    assert await reader.read(bytes_max=10_000) == []
    assert reader.cursors == (3, 0)


async def test_readers_outside_the_log_are_refused(lab):
    """A cursor beyond the end, or before what trimming left, is refused with a reason."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    await lab.fill(disk, [[writer.block(size=600)] for _ in range(6)])
    log = await EntryLog.open(**lab.fields(disk))
    with pytest.raises(AheadOfLog):
        log.reader((7, 0))
    await log.trim((6, 0))
    assert log.firsts[0] > 1
    with pytest.raises(GapInLog):
        log.reader((log.firsts[0] - 2, 0))
    assert lab.rows_of([*await lab.read_all(log)])[0][0][0] == log.firsts[0]


async def test_the_index_finds_a_near_start(lab, monkeypatch):
    """A start is found to the index's granularity, never behind the first entry that is wanted."""
    monkeypatch.setattr(log_segments, "INDEX_BYTES", 300)
    monkeypatch.setattr("nodes.entry_log.INDEX_BYTES", 300)
    disk, writer = lab.FakeStorage(), lab.Writer()
    starts, position, groups = [], 0, []
    for n in range(60):
        block = writer.block(n % 2, size=30 + n)
        starts.append((n % 2, block.first_seq, position))
        position += RECORD_HEAD_BYTES + len(block.encoded)
        groups.append([block])
    log = await EntryLog.create(**lab.fields(disk))
    for group in groups:
        await log.append(group)
    for each in (log, await EntryLog.open(**lab.fields(disk))):
        for after in itertools.product(range(31), range(31)):
            wanted = [at for shard, seq, at in starts if seq > after[shard]]
            found = each.position_of(after)
            assert found <= min(wanted, default=position)
            assert found > min(wanted, default=position) - 600
        assert each.position_of(each.tails) == each.position


async def test_trimming_removes_whole_segments_below_the_cursors(lab):
    """Only closed segments whose every entry is covered go; what is left reads as before, also after reopening."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(n % 2, size=300)] for n in range(20)])
    log = await EntryLog.open(**lab.fields(disk))
    rows = lab.rows_of(blocks)
    before = log.bytes_on_disk
    assert await log.trim((0, 10)) == 0
    freed = await log.trim((5, 5))
    assert freed > 0
    assert log.bytes_on_disk == before - freed == sum(map(len, disk.segments.values()))
    assert all(first <= 6 for first in log.firsts)
    assert await log.trim((5, 5)) == 0
    for each in (log, await EntryLog.open(**lab.fields(disk))):
        got = lab.rows_of(await lab.read_all(each))
        assert got == {shard: rows[shard][each.firsts[shard] - 1 :] for shard in range(lab.SHARDS)}
    await log.trim(log.tails)
    assert len(disk.segments) == 1
    assert log.tails == (10, 10)
    assert log.last_timestamp_us == writer.time_us
    again = await EntryLog.open(**lab.fields(disk))
    assert (again.tails, again.firsts, again.last_timestamp_us) == (log.tails, log.firsts, writer.time_us)


async def test_a_log_whose_last_segment_is_empty_keeps_its_seqs(lab):
    """After trimming to an empty last segment, its header alone tells where seqs and stamps go on."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    for _ in range(3):
        await log.append([writer.block(size=900)])
    disk.room = HEADER_BYTES + 1500
    real = lab.FakeFile.write

    async def write(self, offset, buffers, *, sync):
        if offset >= HEADER_BYTES and any(len(buffer) > 900 for buffer in buffers):
            raise DiskFull(self.path)
        await real(self, offset, buffers, sync=sync)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.FakeFile, "write", write)
        with pytest.raises(DiskFull):
            await log.append([writer.block(size=901)])
    await log.trim(log.tails)
    assert len(disk.segments) == 1
    assert (log.firsts, log.tails) == ((4, 1), (3, 0))
    disk.room = None
    log = await EntryLog.open(**lab.fields(disk))
    assert (log.firsts, log.tails, log.last_timestamp_us) == ((4, 1), (3, 0), 1003)
    blocks = [lab.Writer(log.tails).block(size=5000)]
    await log.append(blocks)
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks)
    assert lab.rows_of(await lab.read_all(await EntryLog.open(**lab.fields(disk)))) == lab.rows_of(blocks)


async def test_readers_of_trimmed_segments_notice(lab):
    """A reader finishes the removed file that it has open, and is told of the gap behind it; others are told at once."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    await lab.fill(disk, [[writer.block(size=600)] for _ in range(8)])
    log = await EntryLog.open(**lab.fields(disk))
    started, waiting = log.reader((0, 0)), log.reader((0, 0))
    assert [b.first_seq for b in await started.read(bytes_max=1)] == [1]
    await log.trim((8, 0))
    assert [b.first_seq for b in await started.read(bytes_max=10_000)] == [2]
    for reader in (started, waiting):
        with pytest.raises(GapInLog):
            await reader.read(bytes_max=10_000)


async def test_a_power_loss_during_trimming_leaves_no_hole(lab):
    """Wherever trimming stops, what is left is the end of the log without a hole."""
    for steps, seed in itertools.product(range(8), range(3)):
        disk, writer = lab.FakeStorage(), lab.Writer()
        blocks = await lab.fill(disk, [[writer.block(size=600)] for _ in range(10)])
        log = await EntryLog.open(**lab.fields(disk))
        disk.steps_left = steps
        with pytest.raises(lab.PowerLossError):
            await log.trim((10, 0))
        log = await EntryLog.open(**lab.fields(disk.power_loss(random.Random(seed))))
        assert log.tails == (10, 0)
        assert lab.rows_of(await lab.read_all(log))[0] == lab.rows_of(blocks)[0][log.firsts[0] - 1 :]
