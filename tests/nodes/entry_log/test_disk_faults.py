"""Full disks, failed syncs, and power loss at every step."""

from __future__ import annotations

import itertools
import random

import pytest

from claudefs_repl.error import DiskFull, SyncFailed
from claudefs_repl.wal import HEADER_BYTES
from nodes.entry_log import EntryLog


@pytest.mark.parametrize("is_copy_on_write", [False, True])
async def test_a_full_disk_in_the_middle_of_a_write_appends_nothing(lab, is_copy_on_write):
    """However much of a group was written, nothing of it is there: not now, not after later appends, not after a crash."""
    for room in range(0, 330, 11):
        disk, writer = lab.FakeStorage(), lab.Writer()
        log = await EntryLog.create(**lab.fields(disk))
        kept = [writer.block()]
        await log.append(kept)
        before = (log.tails, log.position, log.last_timestamp_us)
        refused = [writer.block(0, size=40), writer.block(1, size=40), writer.block(0, size=40)]
        disk.room, disk.is_copy_on_write = room, is_copy_on_write
        for _ in range(2):
            with pytest.raises(DiskFull):
                await log.append(refused)
            assert (log.tails, log.position, log.last_timestamp_us) == before
            assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(kept)
        if not is_copy_on_write:
            assert not any(disk.last[HEADER_BYTES + log.position :])
        disk.room = None
        # It takes exactly the place of the first that was refused: the second must not be found behind it.
        other = lab.Writer(log.tails)
        other.time_us = 5000
        kept.append(other.block(0, size=40))
        await log.append(kept[1:])
        again = await EntryLog.open(**lab.fields(disk))
        assert lab.rows_of(await lab.read_all(again)) == lab.rows_of(kept)


async def test_a_refused_group_does_not_come_back_after_a_crash(lab):
    """What was refused for want of room and cut back is not found by recovery, though it was whole on the disk."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    group = [writer.block(0, size=40), writer.block(1, size=40)]
    real = lab.FakeFile.write

    async def write(self, offset, buffers, *, sync):
        await real(self, offset, buffers, sync=sync)
        if any(bytes(buffer).strip(b"\0") for buffer in buffers):
            raise DiskFull(self.path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.FakeFile, "write", write)
        with pytest.raises(DiskFull):
            await log.append(group)
    for after in (disk.power_loss(random.Random(1)), disk.killed()):
        assert (await EntryLog.open(**lab.fields(after))).tails == (0, 0)


@pytest.mark.parametrize("room", [0, 100, HEADER_BYTES - 1])
async def test_a_full_disk_at_a_roll_over_appends_nothing(lab, room):
    """Without room for a new segment the log stays as it is, leaves nothing behind, and goes on when there is room."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    blocks = [writer.block(size=900)]
    await log.append(blocks)
    names = list(disk.live)
    disk.room = room
    for _ in range(2):
        with pytest.raises(DiskFull):
            await log.append([lab.Writer(log.tails).block(size=900)])
        assert list(disk.live) == names
        assert log.tails == (1, 0)
    disk.room = None
    blocks.append(lab.Writer(log.tails).block(size=900))
    await log.append(blocks[1:])
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks)
    assert lab.rows_of(await lab.read_all(await EntryLog.open(**lab.fields(disk)))) == lab.rows_of(blocks)


async def test_a_full_disk_at_a_new_segments_header_leaves_nothing(lab):
    """A segment that could be allocated but not written is removed again."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    await log.append([writer.block(size=900)])
    real = lab.FakeStorage.create

    async def create(self, path, size):
        file = await real(self, path, size)
        self.room = 50
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab.FakeStorage, "create", create)
        with pytest.raises(DiskFull):
            await log.append([writer.block(size=900)])
    assert len(disk.live) == 1
    assert log.tails == (1, 0)


async def test_after_a_failed_sync_nothing_is_appended_any_more(lab):
    """A failed sync moves nothing, and every later append fails too, also when the disk would confirm again."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    disk.sync_fails = True
    block = writer.block()
    for fails in (True, False):
        disk.sync_fails = fails
        with pytest.raises(SyncFailed):
            await log.append([block])
        assert (log.tails, log.position) == ((0, 0), 0)
    disk.sync_fails = True
    with pytest.raises(SyncFailed):
        await EntryLog.open(**lab.fields(disk))


async def test_what_a_failed_sync_left_in_the_page_cache_is_written_again(lab):
    """A start finds what a failed sync left to be read; once it is told, no loss of power takes it away."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk))
    told = [writer.block(0, 2), writer.block(1)]
    await log.append(told)
    disk.sync_fails = True
    unconfirmed = [writer.block(0), writer.block(1, 2)]
    with pytest.raises(SyncFailed):
        await log.append(unconfirmed)
    disk.sync_fails = False
    log = await EntryLog.open(**lab.fields(disk.killed()))
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(told + unconfirmed)
    more = [writer.block(0)]
    await log.append(more)
    log = await EntryLog.open(**lab.fields(disk.power_loss(random.Random(0))))
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(told + unconfirmed + more)


async def test_a_power_loss_at_any_step_loses_nothing_acknowledged(lab):
    """Wherever power goes, and whatever sectors and names reached the disk, what was acknowledged is there, in order."""
    for steps in itertools.count():
        outcomes = [await crash_at(lab, steps, seed) for seed in range(4)]
        if all(outcomes):
            break
    assert steps > 30


async def crash_at(lab, steps, seed):
    """Fill a log until power goes after some steps, recover and check; whether the filling came to its end."""
    disk, writer, acked, group = lab.FakeStorage(), lab.Writer(), [], []
    disk.steps_left = steps
    is_complete = False
    try:
        log = await EntryLog.create(**lab.fields(disk))
        for n in range(8):
            group = [writer.block((n + k) % 2, 1 + k, 150) for k in range(3)]
            await log.append(group)
            acked, group = acked + group, []
        is_complete = True
    except lab.PowerLossError:
        pass
    rng = random.Random(seed)
    disk = disk.power_loss(rng)
    for again in range(3):
        # Power may go once more while the log recovers.
        disk.steps_left = rng.randrange(4) if again < 2 else None
        try:
            log = await EntryLog.open(**lab.fields(disk, evidence=evidence_of(lab, acked)))
        except lab.PowerLossError:
            disk = disk.power_loss(rng)
            continue
        break
    got = lab.rows_of(await lab.read_all(log))
    possible = [lab.rows_of(acked + group[:k]) for k in range(len(group) + 1)]
    assert got in possible, f"crash after {steps} steps, seed {seed}"
    more = lab.Writer(log.tails).block(0, 2)
    disk.steps_left = None
    await log.append([more])
    final = await EntryLog.open(**lab.fields(disk.power_loss(rng)))
    assert lab.rows_of(await lab.read_all(final))[0] == got[0] + lab.rows_of([more])[0]
    return is_complete


def evidence_of(lab, blocks):
    return tuple(max((b.last_seq for b in blocks if b.shard == shard), default=0) for shard in range(lab.SHARDS))
