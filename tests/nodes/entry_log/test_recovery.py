"""Recovery: torn tails, damage, missing files, half-made segments; and real files."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from claudefs_repl import wal
from claudefs_repl.error import CallerError, WalCorrupted
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.wal import HEADER_BYTES, SegmentHeader
from nodes.entry_log import EntryLog, ForeignLog
from nodes.storage import DiskStorage


@pytest.mark.parametrize("missing", ["zeros", "truncated"])
async def test_a_log_cut_at_any_byte_keeps_every_whole_record(lab, missing):
    """Cut at any byte, the log recovers the records before the cut, takes new ones, and stays the same when reopened."""
    disk = lab.FakeStorage()
    blocks = await lab.fill(disk, lab.three_groups())
    image, ends = bytes(disk.last), lab.ends_of(blocks)
    path = max(disk.segments)
    for cut in range(ends[-1] + 1):
        keep = HEADER_BYTES + cut
        data = image[:keep] if missing == "truncated" else image[:keep].ljust(len(image), b"\0")
        disk.live[path].live = bytearray(data)
        whole = sum(data[: HEADER_BYTES + end] == image[: HEADER_BYTES + end] for end in ends)
        assert whole >= sum(end <= cut for end in ends)
        log = await EntryLog.open(**lab.fields(disk))
        assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks[:whole])
        assert log.position == ([0, *ends])[whole]
        assert not any(disk.live[path].live[HEADER_BYTES + log.position :])
        more = lab.Writer(log.tails).block(1, 3)
        await log.append([more])
        again = await EntryLog.open(**lab.fields(disk))
        assert again.recovered.torn_bytes == 0
        assert lab.rows_of(await lab.read_all(again)) == lab.rows_of([*blocks[:whole], more])
        for extra in [name for name in disk.live if name != path]:
            del disk.live[extra]


@pytest.mark.parametrize("name", ["7.seg", "0.seg", "copy.seg", "00000000000000000000 (copy).seg", "9" * 40 + ".seg"])
async def test_a_file_of_another_name_is_no_segment(lab, name):
    """What somebody copied into the directory is neither read nor removed."""
    disk = lab.FakeStorage()
    blocks = await lab.fill(disk, lab.three_groups())
    disk.live[f"{lab.DIRECTORY}/{name}"] = lab.FakeInode(100)
    log = await EntryLog.open(**lab.fields(disk))
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks)
    assert f"{lab.DIRECTORY}/{name}" in disk.live


async def test_a_flipped_byte_is_a_torn_tail_or_stops_the_site(lab):
    """Damage that a later record proves to be of durable bytes stops the site, by file and offset; nothing is changed."""
    disk = lab.FakeStorage()
    groups = lab.three_groups()
    blocks = await lab.fill(disk, groups)
    image, ends = bytes(disk.last), lab.ends_of(blocks)
    path = max(disk.segments)
    synced = ends[2]
    for at in range(ends[-1]):
        damaged = bytearray(image)
        damaged[HEADER_BYTES + at] ^= 1 << at % 8
        disk.live[path].live = bytearray(damaged)
        whole = sum(end <= at for end in ends)
        if at < synced:
            with pytest.raises(WalCorrupted) as caught:
                await EntryLog.open(**lab.fields(disk))
            assert (caught.value.path, caught.value.offset) == (path, HEADER_BYTES + ([0, *ends])[whole])
            assert disk.live[path].live == damaged
        else:
            log = await EntryLog.open(**lab.fields(disk))
            assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks[:whole])
            assert log.recovered.torn_bytes == ends[-1] - ([0, *ends])[whole]


async def test_a_saved_cursor_tells_a_lost_tail(lab):
    """When a saved cursor is beyond what the log holds, the site does not start, and the file is left as it is."""
    disk = lab.FakeStorage()
    blocks = await lab.fill(disk, lab.three_groups())
    disk.last[HEADER_BYTES + lab.ends_of(blocks)[-1] - 1] ^= 1
    before = bytes(disk.last)
    for evidence in ((4, 4), (0, 4)):
        with pytest.raises(WalCorrupted, match="saved cursor"):
            await EntryLog.open(**lab.fields(disk, evidence=evidence))
        assert disk.last == before
    log = await EntryLog.open(**lab.fields(disk, evidence=(4, 3)))
    assert log.tails == (4, 3)
    disk.live.clear()
    with pytest.raises(WalCorrupted, match="saved cursor"):
        await EntryLog.open(**lab.fields(disk, evidence=(1, 0)))
    assert not disk.live


async def test_damage_in_a_closed_segment_stops_the_site(lab):
    """A segment that another follows was durable to its end: any change of it is damage."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    await lab.fill(disk, [[writer.block(size=300)] for _ in range(8)])
    first, second = list(disk.segments)[:2]
    reach = int(second.removesuffix(".seg").rpartition("/")[2])
    image = bytes(disk.live[first].live)
    for at in range(HEADER_BYTES, HEADER_BYTES + reach, 7):
        disk.live[first].live = bytearray(image)
        disk.live[first].live[at] ^= 4
        with pytest.raises(WalCorrupted) as caught:
            await EntryLog.open(**lab.fields(disk))
        assert caught.value.path == first
    disk.live[first].live = bytearray(image[: HEADER_BYTES + reach - 1])
    with pytest.raises(WalCorrupted):
        await EntryLog.open(**lab.fields(disk))


async def test_of_a_damaged_log_what_is_whole_behind_the_damage_can_be_read_or_else_what_is_before_it(lab):
    """Whichever byte has turned, or whichever segment is gone: a run of the log's entries, and the disk is as it was."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(n % 2, size=300), writer.block(0)] for n in range(8)])
    rows = lab.rows_of(blocks)
    whole = await EntryLog.salvage(**lab.fields(disk))
    assert lab.rows_of(await lab.read_all(whole)) == rows
    images = {path: bytes(content) for path, content in disk.segments.items()}
    assert len(images) >= 3
    begins = {}
    for path in images:
        log = await EntryLog.open(**lab.fields(disk))
        begins[path] = next(segment.header.next_seqs for segment in log._segments if segment.path == path)
    paths = list(images)
    for path, image in images.items():
        follower = paths[paths.index(path) + 1] if path != paths[-1] else None
        for at in range(0, len(image.rstrip(b"\0")), 11):
            damaged = bytearray(image)
            damaged[at] ^= 1 << at % 8
            disk.live[path].live = bytearray(damaged)
            log = await EntryLog.salvage(**lab.fields(disk))
            found = lab.rows_of(await lab.read_all(log))
            for shard, some in found.items():
                assert some == rows[shard][log.firsts[shard] - 1 : log.tails[shard]]
            if follower is not None:
                assert (log.firsts, log.tails) == (begins[follower], (12, 4))
            else:
                assert log.firsts == (1, 1)
                assert all(first - 1 <= tail for first, tail in zip(begins[path], log.tails, strict=True))
            assert disk.live[path].live == damaged
            await log.close()
        disk.live[path].live = bytearray(image)
    for gone in paths[:-1]:
        inode = disk.live.pop(gone)
        log = await EntryLog.salvage(**lab.fields(disk))
        assert (log.firsts, log.tails) == (begins[paths[paths.index(gone) + 1]], (12, 4))
        disk.live[gone] = inode
    disk.live.clear()
    assert await EntryLog.salvage(**lab.fields(disk)) is None


async def test_a_missing_segment_stops_the_site(lab):
    """A hole in the chain of segments is never read over."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    await lab.fill(disk, [[writer.block(size=300)] for _ in range(12)])
    paths = list(disk.segments)
    assert len(paths) >= 3
    for path in paths[1:-1]:
        inode = disk.live.pop(path)
        with pytest.raises(WalCorrupted):
            await EntryLog.open(**lab.fields(disk))
        disk.live[path] = inode
    assert (await EntryLog.open(**lab.fields(disk))).tails == (12, 0)


async def test_bit_rot_under_a_reader_is_found(lab):
    """A reader checks every record that it yields, and never yields a damaged one."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(size=300)] for _ in range(8)])
    log = await EntryLog.open(**lab.fields(disk))
    disk.segments[min(disk.segments)][HEADER_BYTES + lab.ends_of(blocks)[0] + 100] ^= 1
    reader = log.reader((0, 0))
    assert [block.first_seq for block in await reader.read(bytes_max=10_000)] == [1]
    for _ in range(2):
        with pytest.raises(WalCorrupted, match="checksum"):
            await reader.read(bytes_max=10_000)
    assert reader.cursors == (1, 0)


async def test_a_last_segment_with_a_torn_header_is_left_out(lab):
    """A segment whose header was not written in full was never told to anybody: the log goes on before it."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(size=600)] for _ in range(4)])
    path = max(disk.segments)
    image = bytes(disk.last)
    position = int(path.removesuffix(".seg").rpartition("/")[2])
    kept = [block for block, end in zip(blocks, lab.ends_of(blocks), strict=True) if end <= position]
    assert 0 < len(kept) < len(blocks)
    for cut in [*range(0, len(image[:HEADER_BYTES].rstrip(b"\0")), 5), None]:
        torn = bytearray() if cut is None else bytearray(image[:cut].ljust(len(image), b"\0"))
        disk.live[path] = lab.FakeInode(0)
        disk.live[path].live = torn
        log = await EntryLog.open(**lab.fields(disk))
        assert path not in disk.live
        assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(kept)
        more = [lab.Writer(log.tails).block(size=900)]
        await log.append(more)
        assert lab.rows_of(await lab.read_all(await EntryLog.open(**lab.fields(disk)))) == lab.rows_of([*kept, *more])


async def test_a_used_segment_with_a_damaged_header_stops_the_site(lab):
    """When anything lies behind a header that cannot be read, the header was whole once."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    await lab.fill(disk, [[writer.block(size=600)] for _ in range(4)])
    for path in disk.segments:
        disk.live[path].live[30] ^= 1
        with pytest.raises(WalCorrupted) as caught:
            await EntryLog.open(**lab.fields(disk))
        assert (caught.value.path, caught.value.offset) == (path, 0)
        disk.live[path].live[30] ^= 1
    assert (await EntryLog.open(**lab.fields(disk))).tails == (4, 0)


@pytest.mark.parametrize("left", ["nothing", "torn", "empty", "temporary"])
async def test_a_creation_that_a_crash_cut_is_made_good(lab, left):
    """Whatever a crash left of a log's making, the log can be made and opened, and is empty."""
    disk = lab.FakeStorage()
    first = f"{lab.DIRECTORY}/{0:020d}.seg"
    if left == "torn":
        disk.live[first] = lab.FakeInode(HEADER_BYTES + 1500)
        disk.live[first].live[:8] = b"CFSRWAL\n"
    elif left == "empty":
        disk.live[first] = lab.FakeInode(0)
    elif left == "temporary":
        disk.live[first + ".new"] = lab.FakeInode(100)
    for opening in (EntryLog.open, EntryLog.create, EntryLog.open):
        log = await opening(**lab.fields(disk))
        assert (log.tails, log.position) == ((0, 0), 0)
        assert list(disk.live) == [first]
    await log.append([lab.Writer().block()])
    with pytest.raises(CallerError, match="exists already"):
        await EntryLog.create(**lab.fields(disk))


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"cluster_id": "other"}, "cluster"), ({"shard_count": 3}, "number of shards")],
)
async def test_a_foreign_log_is_refused(lab, changes, word):
    """A log of another cluster or shard count is refused by name, and left as it is."""
    disk = lab.FakeStorage()
    await lab.fill(disk, lab.three_groups())
    before = bytes(disk.last)
    with pytest.raises(ForeignLog, match=word):
        await EntryLog.open(**lab.fields(disk, **changes))
    assert disk.last == before


async def test_a_log_of_another_journal_or_version_is_refused(lab, monkeypatch):
    """A segment that was put into the wrong directory, or is a later program's, is refused by name."""
    disk = lab.FakeStorage()
    await lab.fill(disk, lab.three_groups())
    (path,) = disk.live
    other = JournalId(SiteId(4), Incarnation(1))
    disk.live[f"journals/4-0000000000000001/{0:020d}.seg"] = disk.live[path]
    with pytest.raises(ForeignLog, match="journal"):
        await EntryLog.open(**lab.fields(disk, journal=other))
    ours, theirs = disk.live[path], lab.FakeStorage()
    with monkeypatch.context() as later:
        later.setattr(wal, "VERSION", 9)
        await lab.fill(theirs, lab.three_groups())
    disk.live[path] = theirs.live[path]
    for find in (EntryLog.open, EntryLog.salvage):
        with pytest.raises(ForeignLog, match="version 9"):
            await find(**lab.fields(disk))
    disk.live[path] = ours
    disk.live[f"{lab.DIRECTORY}/{55:020d}.seg"] = disk.live.pop(path)
    with pytest.raises(WalCorrupted, match="name"):
        await EntryLog.open(**lab.fields(disk))


async def test_recovery_syncs_what_it_read(lab):
    """What a killed process left in the page cache is on disk before recovery returns: a later power loss keeps it."""
    for seed in range(20):
        disk, writer = lab.FakeStorage(), lab.Writer()
        log = await EntryLog.create(**lab.fields(disk))
        await log.append([writer.block()])
        blocks = [writer.block(n % 2, size=300) for n in range(3)]
        disk.steps_left = 0
        with pytest.raises(lab.PowerLossError):
            await log.append(blocks)
        disk = disk.killed()
        log = await EntryLog.open(**lab.fields(disk))
        assert sum(log.tails) == 4
        again = await EntryLog.open(**lab.fields(disk.power_loss(random.Random(seed))))
        assert again.tails == log.tails


async def test_recovery_syncs_the_names_that_it_read(lab):
    """A segment's name that a killed process left unsynced is on disk before anything is appended to that segment."""
    for seed in range(8):
        disk, writer = lab.FakeStorage(), lab.Writer()
        log = await EntryLog.create(**lab.fields(disk))
        await log.append([writer.block(size=900)])
        # The new segment is allocated, its header written and synced; its name is given, but not synced.
        disk.steps_left = 3
        refused = lab.Writer(log.tails).block(size=900)
        with pytest.raises(lab.PowerLossError):
            await log.append([refused])
        disk = disk.killed()
        assert len(disk.segments) == 2
        log = await EntryLog.open(**lab.fields(disk))
        await log.append([refused])
        again = await EntryLog.open(**lab.fields(disk.power_loss(random.Random(seed))))
        assert again.tails == log.tails == (2, 0)


async def test_a_header_that_does_not_continue_the_log_stops_the_site(lab):
    """An empty last segment whose header tells other seqs than the records before it is not taken for their end."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block()]])
    position = lab.ends_of(blocks)[-1]
    for next_seqs in ((1, 1), (3, 1), (2, 1)):
        header = SegmentHeader(lab.JOURNAL, "test", position, next_seqs, 0, bytes(range(16)))
        path = f"{lab.DIRECTORY}/{position:020d}.seg"
        disk.live[path] = lab.FakeInode(HEADER_BYTES + 100)
        disk.live[path].live[:HEADER_BYTES] = header.encode()
        if next_seqs == (2, 1):
            assert (await EntryLog.open(**lab.fields(disk))).tails == (1, 0)
        else:
            with pytest.raises(WalCorrupted):
                await EntryLog.open(**lab.fields(disk))


async def test_a_payload_that_holds_records_is_never_read_as_one(lab):
    """Records that a client reads from the disk and writes into its data are data, also when the log is damaged there."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    log = await EntryLog.create(**lab.fields(disk, segment_bytes=1 << 16))
    first = [writer.block(0, size=10), writer.block(1, size=10)]
    await log.append(first[:1])
    await log.append(first[1:])
    stolen = bytes(disk.last[HEADER_BYTES : HEADER_BYTES + log.position])
    start = log.position
    await log.append([writer.block(0, payload=stolen * 3)])
    disk.last[HEADER_BYTES + start + 1] ^= 1
    log = await EntryLog.open(**lab.fields(disk, segment_bytes=1 << 16))
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(first)
    assert not any(disk.last[HEADER_BYTES + start :])


async def test_a_log_on_real_files(lab, tmp_path: Path):
    """The same log works on a directory of real files: append, reopen, read, trim, damage."""
    storage, writer = DiskStorage(tmp_path), lab.Writer()
    log = await EntryLog.create(**lab.fields(storage, entropy=os.urandom))
    blocks = [writer.block(n % 2, 3, 100) for n in range(30)]
    for group in (
        itertools.batched(blocks, 2) if hasattr(itertools, "batched") else zip(*[iter(blocks)] * 2, strict=True)
    ):
        await log.append(group)
    await log.close()
    assert len(list((tmp_path / lab.DIRECTORY).iterdir())) > 2
    log = await EntryLog.open(**lab.fields(storage, entropy=os.urandom, evidence=log.tails))
    assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks)
    await log.trim((20, 20))
    rest = lab.rows_of(await lab.read_all(log))
    assert rest == {shard: lab.rows_of(blocks)[shard][log.firsts[shard] - 1 :] for shard in range(lab.SHARDS)}
    await log.close()
    newest = max((tmp_path / lab.DIRECTORY).iterdir())
    data = bytearray(newest.read_bytes())
    data[HEADER_BYTES + 5] ^= 1
    newest.write_bytes(data)
    with pytest.raises(WalCorrupted, match="saved cursor"):
        await EntryLog.open(**lab.fields(storage, evidence=log.tails))


async def test_recovery_reads_in_pieces(lab, monkeypatch):
    """Recovery holds no more than a piece of a segment in memory, whatever the pieces' size."""
    disk, writer = lab.FakeStorage(), lab.Writer()
    blocks = await lab.fill(disk, [[writer.block(n % 2, 2, 150)] for n in range(12)])
    for size in (21, 100, 333):
        monkeypatch.setattr(wal, "SCAN_BYTES", size)
        log = await EntryLog.open(**lab.fields(disk))
        assert lab.rows_of(await lab.read_all(log)) == lab.rows_of(blocks)
