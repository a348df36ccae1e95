"""The production storage over real files: durability calls, short writes, full disks, failed syncs, the lock."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from claudefs_repl.error import CallerError, DiskFull, SyncFailed
from nodes import storage as storage_module
from nodes.storage import DiskStorage


@pytest.fixture
def storage(tmp_path):
    return DiskStorage(tmp_path / "data")


def fail(error_number):
    def call(*_args):
        raise OSError(error_number, os.strerror(error_number))

    return call


async def test_a_new_file_is_all_zeros_and_allocated(storage, tmp_path):
    """A created file has its whole size on disk before anything is written to it."""
    await storage.make_dir("logs")
    file = await storage.create("logs/a", 100_000)
    assert await file.read(0, 200_000) == bytes(100_000)
    assert await storage.size("logs/a") == 100_000
    assert (tmp_path / "data/logs/a").stat().st_blocks * 512 >= 100_000
    await file.close()


async def test_a_file_is_not_created_over_another(storage):
    """Creating a file that exists is refused and leaves it as it is."""
    await storage.make_dir("")
    await storage.replace_file("a", b"kept")
    with pytest.raises(FileExistsError):
        await storage.create("a", 10)
    assert await storage.read_file("a") == b"kept"


@pytest.mark.parametrize("sizes", [[10], [0, 5, 0], [1] * 3000, [5000] * 1500, [70_000, 1, 70_000]])
async def test_buffers_are_written_one_after_another(storage, sizes):
    """Any number of buffers of any size arrive in order at the offset."""
    await storage.make_dir("")
    buffers = [bytes([i % 251 + 1]) * size for i, size in enumerate(sizes)]
    file = await storage.create("a", sum(sizes) + 7)
    await file.write(7, buffers, sync=True)
    assert await file.read(0, sum(sizes) + 7) == bytes(7) + b"".join(buffers)
    assert await file.read(7, 3) == b"".join(buffers)[:3]
    assert await file.read(sum(sizes) + 7, 10) == b""
    await file.close()


async def test_short_writes_are_continued(storage, monkeypatch):
    """A write that the kernel takes in pieces goes on until all of it is there."""
    await storage.make_dir("")
    file = await storage.create("a", 9000)
    real = os.pwritev

    def short(fd, buffers, offset):
        return real(fd, [bytes(b"".join(map(bytes, buffers)))[:1700]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    buffers = [b"a" * 2000, b"", b"b" * 3000, b"c" * 4000]
    await file.write(0, buffers, sync=False)
    assert await file.read(0, 9000) == b"".join(buffers)
    await file.close()


async def test_a_write_that_makes_no_progress_is_an_error(storage, monkeypatch):
    """A disk that takes no bytes and tells no error does not hang the site."""
    await storage.make_dir("")
    file = await storage.create("a", 10)
    monkeypatch.setattr(os, "pwritev", lambda *_args: 0)
    with pytest.raises(OSError, match="took no bytes"):
        await file.write(0, [b"x"], sync=False)
    await file.close()


@pytest.mark.parametrize("error_number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told_as_such(storage, monkeypatch, error_number):
    """No room is DiskFull, whether the disk or the quota is used up, and a file that could not be allocated is gone."""
    await storage.make_dir("")
    file = await storage.create("a", 10)
    monkeypatch.setattr(os, "pwritev", fail(error_number))
    monkeypatch.setattr(os, "posix_fallocate", fail(error_number))
    with pytest.raises(DiskFull):
        await file.write(0, [b"x"], sync=True)
    with pytest.raises(DiskFull):
        await storage.create("b", 10)
    with pytest.raises(DiskFull):
        await storage.replace_file("c", b"new")
    assert await storage.names("") == ["a"]
    await file.close()


async def test_other_write_errors_are_not_a_full_disk(storage, monkeypatch):
    """A disk that fails is told apart from one that is full."""
    await storage.make_dir("")
    file = await storage.create("a", 10)
    monkeypatch.setattr(os, "pwritev", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        await file.write(0, [b"x"], sync=True)
    await file.close()


@pytest.mark.parametrize("error_number", [errno.EIO, errno.ENOSPC])
async def test_a_failed_sync_is_told_as_such(storage, monkeypatch, error_number):
    """Whatever a sync fails with, the page cache can no longer be trusted."""
    await storage.make_dir("")
    file = await storage.create("a", 10)
    monkeypatch.setattr(os, "fdatasync", fail(error_number))
    monkeypatch.setattr(os, "fsync", fail(error_number))
    with pytest.raises(SyncFailed):
        await file.write(0, [b"x"], sync=True)
    with pytest.raises(SyncFailed):
        await file.sync()
    with pytest.raises(SyncFailed):
        await storage.sync_dir("")
    await file.close()


async def test_a_write_with_sync_syncs_after_the_last_byte(storage, monkeypatch):
    """With `sync`, the sync comes after the write and before the return."""
    await storage.make_dir("")
    file = await storage.create("a", 10)
    seen = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append(os.pread(fd, 10, 0)))
    await file.write(2, [b"xy"], sync=True)
    await file.write(4, [b"z"], sync=False)
    assert seen == [b"\0\0xy" + bytes(6)]
    await file.close()


async def test_replacing_a_small_file_is_atomic(storage, monkeypatch):
    """The new content is synced under another name before it takes the old one's place."""
    await storage.make_dir("")
    await storage.replace_file("state", b"old")
    calls = []
    real_rename, real_sync, real_dir_sync = Path.rename, os.fdatasync, os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append("sync"), real_sync(fd))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync_dir"), real_dir_sync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda *paths: (calls.append("rename"), real_rename(*paths))[1])
    await storage.replace_file("state", b"new")
    assert calls == ["sync", "rename", "sync_dir"]
    assert await storage.read_file("state") == b"new"
    assert await storage.names("") == ["state"]


async def test_what_is_not_there_is_empty(storage):
    """A missing small file is None, a missing directory has no names, removing what is missing changes nothing."""
    assert await storage.read_file("a") is None
    assert await storage.names("no/such") == []
    await storage.remove("no")
    with pytest.raises(FileNotFoundError):
        await storage.open("a")
    with pytest.raises(FileNotFoundError):
        await storage.size("a")


async def test_directories_are_made_with_their_parents_and_synced(storage, tmp_path, monkeypatch):
    """Every directory on the way is made, and the entry of each synced, also when it exists already."""
    synced = []
    real = storage_module._sync_dir
    monkeypatch.setattr(storage_module, "_sync_dir", lambda path: (synced.append(path), real(path))[1])
    await storage.make_dir("x/y")
    data = tmp_path / "data"
    assert synced == [tmp_path, data, data / "x"]
    assert (data / "x/y").is_dir()
    synced.clear()
    await storage.make_dir("x/y")
    assert synced == [tmp_path, data, data / "x"]


async def test_names_are_sorted_and_trees_removed(storage):
    """Names come in order; a directory is removed with all that is in it; a rename moves between directories."""
    await storage.make_dir("d/e")
    for name in ("b", "a", "c"):
        await storage.replace_file(f"d/{name}", name.encode())
    assert await storage.names("d") == ["a", "b", "c", "e"]
    await storage.rename("d/a", "d/e/z")
    await storage.remove("d/b")
    assert await storage.names("d") == ["c", "e"]
    assert await storage.names("d/e") == ["z"]
    await storage.remove("d")
    assert await storage.names("") == []


async def test_paths_stay_in_the_data_directory(storage):
    """A path that leaves the data directory is a fault of ours."""
    for path in ("/etc/passwd", "a/../../b"):
        with pytest.raises(AssertionError):
            await storage.read_file(path)


async def test_one_process_at_a_time_has_the_data_directory(storage, tmp_path):
    """A second holder is refused by the pid of the first, and may go on when that one has let go."""
    await storage.lock("lock")
    assert (tmp_path / "data/lock").read_text() == f"{os.getpid()}\n"
    second = DiskStorage(tmp_path / "data")
    with pytest.raises(CallerError, match=f"pid {os.getpid()}"):
        await second.lock("lock")
    storage.close()
    await second.lock("lock")
    second.close()
    second.close()


async def test_the_lock_survives_a_longer_pid(storage, tmp_path):
    """What an earlier holder wrote into the lock file is replaced, whatever its length."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/lock").write_text("123456789012345\n")
    await storage.lock("lock")
    assert (tmp_path / "data/lock").read_text() == f"{os.getpid()}\n"
    storage.close()


async def test_a_quota_leaves_no_room_for_new_files_and_lets_old_ones_be_written(tmp_path):
    """As on a full disk: what is new is refused with nothing left behind, until the quota goes or something is removed."""
    storage = DiskStorage(tmp_path / "data", quota_bytes=100_000)
    await storage.make_dir("logs")
    file = await storage.create("logs/one", 64 * 1024)
    for refused in (
        partial(storage.create, "logs/two", 64 * 1024),
        partial(storage.replace_file, "small", bytes(64 * 1024)),
        partial(storage.copy, "logs/one", "copy"),
    ):
        with pytest.raises(DiskFull) as full:
            await refused()
        assert "disk_quota_bytes" in str(full.value)
    assert await storage.names("logs") == ["one"]
    assert await storage.names(".") == ["logs"]
    await file.write(0, [b"x" * 64 * 1024], sync=True)
    await file.close()

    storage.set_quota(0)
    await storage.replace_file("small", bytes(64 * 1024))
    storage.set_quota(100_000)
    await storage.remove("small")
    await (await storage.create("logs/two", 16 * 1024)).close()
