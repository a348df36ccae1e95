"""Appending: what is durable when, roll-over, cancellation."""

from __future__ import annotations

import pytest
import trio

from claudefs_repl.error import CallerError
from claudefs_repl.wal import HEADER_BYTES
from nodes.entry_log import EntryLog, GapInLog


async def test_a_new_log_is_empty(lab):
    """A log begins with nothing at position 0, and its first entries are the first of their shards."""
    log = await EntryLog.create(**lab.fields(lab.FakeStorage()))
    assert (log.tails, log.firsts, log.position, log.last_timestamp_us) == ((0, 0), (1, 1), 0, 0)
    assert log.bytes_on_disk == HEADER_BYTES + 1500
    assert (log.journal, log.shard_count) == (lab.JOURNAL, lab.SHARDS)
    assert await lab.read_all(log) == []


async def test_a_log_can_begin_behind_what_it_will_never_hold(lab):
    """It goes on from there, also after a restart; what is before counts as trimmed."""
    disk, writer = lab.FakeStorage(), lab.Writer((7, 0))
    log = await EntryLog.create(**lab.fields(disk), after=(7, 0))
    assert (log.tails, log.firsts, log.position) == ((7, 0), (8, 1), 0)
    await log.append([writer.block(0), writer.block(1)])
    with pytest.raises(GapInLog):
        log.reader((6, 0))
    await log.close()
    again = await EntryLog.open(**lab.fields(disk))
    assert (again.tails, again.firsts) == ((8, 1), (8, 1))
    rows = lab.rows_of(await lab.read_all(again, (7, 0)))
    assert {shard: [row[0] for row in found] for shard, found in rows.items()} == {0: [8], 1: [1]}
    await again.close()
    with pytest.raises(CallerError, match="exists already"):
        await EntryLog.create(**lab.fields(disk), after=(7, 0))


async def test_the_checksum_of_any_entry_can_be_asked_for(lab):
    """Of the last of each shard at once, of others by reading; 0 for what is not there, before and behind."""
    disk, writer = lab.FakeStorage(), lab.Writer((7, 0))
    log = await EntryLog.create(**lab.fields(disk), after=(7, 0))
    assert log.last_crcs == (0, 0)
    blocks = [writer.block(0, count=3), writer.block(1), writer.block(0, count=2)]
    await log.append(blocks)
    crcs = [*blocks[0].crcs, *blocks[2].crcs]
    assert log.last_crcs == (crcs[-1], blocks[1].crcs[0])
    for one in (log, await EntryLog.open(**lab.fields(disk))):
        assert [await one.crc_at(0, seq) for seq in range(6, 15)] == [0, 0, *crcs, 0, 0]
        assert [await one.crc_at(1, seq) for seq in range(3)] == [0, blocks[1].crcs[0], 0]
        assert one.last_crcs == (crcs[-1], blocks[1].crcs[0])
        await one.close()


async def test_blocks_of_a_group_are_one_write_and_one_sync(lab):
    """However many blocks a group has, it costs one write that is synced."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk, segment_bytes=1 << 20))
    disk.calls.clear()
    await log.append([writer.block(n % 2, size=3) for n in range(100)])
    assert [call[0] for call in disk.calls] == ["write", "sync"]
    await log.append([])
    assert len(disk.calls) == 2
    assert log.tails == (50, 50)
    assert log.last_timestamp_us == writer.time_us


async def test_nothing_is_told_before_it_is_durable(lab):
    """Until the sync has returned, neither the tails nor a reader nor a waiter knows of a block."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    seen = []
    real = lab.FakeFile.sync

    async def sync(self):
        seen.append((log.tails, log.position, await log.reader((0, 0)).read(bytes_max=100)))
        await real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.FakeFile, "sync", sync)
        await log.append([writer.block()])
    assert seen == [((0, 0), 0, [])]
    assert log.tails == (1, 0)


async def test_a_waiter_wakes_when_the_end_has_moved(lab):
    """Waiting beyond a position returns at once when the end is beyond it, and else after the append that moves it."""
    log, writer = await EntryLog.create(**lab.fields(lab.FakeStorage())), lab.Writer()
    woken = []

    async def wait(position):
        await log.wait_beyond(position)
        woken.append(position)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 0)
        nursery.start_soon(wait, 70)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        await log.append([writer.block(size=0)])
        assert log.position > 70
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == [0, 70]
    with trio.fail_after(30):
        await log.wait_beyond(log.position - 1)


async def test_a_cancelled_append_has_happened_or_not(lab):
    """Cancelled before it begins, an append changes nothing; cancelled later, it goes on to its end."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    block = writer.block()
    with trio.CancelScope() as scope:
        scope.cancel()
        await log.append([block])
    assert (scope.cancelled_caught, log.tails) == (True, (0, 0))
    real = lab.FakeFile.sync

    async def sync(self):
        late.cancel()
        await real(self)

    with pytest.MonkeyPatch.context() as patch, trio.CancelScope() as late:
        patch.setattr(lab.FakeFile, "sync", sync)
        await log.append([block])
    assert log.tails == (1, 0)
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of([block])


async def test_a_hole_or_a_second_appender_is_a_fault_of_ours(lab):
    """Seqs follow one another, and one task appends."""
    log, writer = await EntryLog.create(**lab.fields(lab.FakeStorage())), lab.Writer()
    writer.block()
    with pytest.raises(AssertionError):
        await log.append([writer.block()])
    assert log.tails == (0, 0)
    writer = lab.Writer()
    refused = []

    async def append(block):
        try:
            await log.append([block])
        except AssertionError:
            refused.append(block)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, writer.block(0))
        nursery.start_soon(append, writer.block(1))
    assert len(refused) == 1
    assert sum(log.tails) == 1


async def test_a_log_rolls_over_and_reads_across_segments(lab):
    """A group that does not fit goes to a new segment as a whole, and readers go on there."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(n % 2, size=200), writer.block(0)] for n in range(20)])
    assert len(disk.segments) > 3
    log = await EntryLog.open(**lab.fields(disk))
    for bytes_max in (1, 500, 10_000):
        assert lab.rows_of(await lab.read_all(log, bytes_max=bytes_max)) == lab.rows_of(blocks)
    assert log.recovered.entries == 40
    assert log.recovered.segments == len(disk.segments)
    assert log.recovered.bytes == log.position
    assert log.bytes_on_disk == sum(map(len, disk.segments.values()))


async def test_a_group_longer_than_a_segment_gets_a_segment_of_its_own(lab):
    """A group is never split nor refused for its length, also when the segment before it holds nothing."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    reader = log.reader((0, 0))
    blocks = [writer.block(n % 2, size=900) for n in range(7)]
    await log.append(blocks[:3])
    assert len(disk.segments) == 1
    assert await reader.read(bytes_max=10_000)
    await log.append(blocks[3:])
    assert len(disk.segments) == 2
    assert log.bytes_on_disk == sum(map(len, disk.segments.values()))
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks)
    log = await EntryLog.open(**lab.fields(disk))
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks)
