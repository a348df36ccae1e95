"""The production end of the storage seam: a directory of real files.

Every call that may wait for the disk runs in one thread hop, a write and its sync together.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import trio

from claudefs_repl.error import ConfigInvalid, DiskFull, SyncFailed
from nodes.seams import Buffer

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BUFFERS_MAX = 1024
"""Buffers of one system call: Linux's IOV_MAX."""
_JOIN_BYTES_MAX = 1024
"""When buffers are shorter than this on average, one copy of all costs less than handing them over one by one."""
_INLINE_BYTES_MAX = 64 * 1024
"""Up to this a copy out of the page cache takes less time than a thread hop."""
_READ_CACHED_ONLY = getattr(os, "RWF_NOWAIT", 0)

_STAT_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the file system's blocks are."""
_COPY_BYTES = 1 << 20
"""A copy reads and writes so much at a time."""


class DiskStorage:
    """A site's disk: the files beneath one directory."""

    def __init__(self, root: Path, *, quota_bytes: int = 0) -> None:
        """Nothing is touched yet; `make_dir` and `lock` make the directory if there is none.

        Args:
            root: the directory.
            quota_bytes: as `set_quota`.
        """
        self._root = root
        self._quota_bytes = quota_bytes
        self._lock_fd: int | None = None

    async def lock(self, path: str) -> None:
        """Take the data directory for this process, until `close` or its end, and write its pid into the lock file.

        Raises:
            ConfigInvalid: another process has it.
        """
        await trio.to_thread.run_sync(self._lock, self._path(path))

    def close(self) -> None:
        """Give up the lock, if it was taken. Open files stay as they are."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def set_quota(self, quota_bytes: int) -> None:
        """From now on there is no room for new files beyond so many bytes in all; 0 for no limit. For experiments.

        Everything beneath the root counts. What is written into a file that is allocated already needs no room.
        """
        self._quota_bytes = quota_bytes

    async def create(self, path: str, size: int) -> DiskFile:
        """A new file of `size` zero bytes, all of them allocated. The directory entry is not synced yet.

        Raises:
            DiskFull: there is no room; nothing is left behind.
        """
        return DiskFile(path, await trio.to_thread.run_sync(self._create, self._path(path), size))

    async def open(self, path: str) -> DiskFile:
        """An existing file, for reading and writing."""
        flags = os.O_RDWR | os.O_CLOEXEC
        return DiskFile(path, await trio.to_thread.run_sync(os.open, self._path(path), flags))

    async def read_file(self, path: str) -> bytes | None:
        """A small file's content, None if there is no such file."""
        try:
            return await trio.to_thread.run_sync(self._path(path).read_bytes)
        except FileNotFoundError:
            return None

    async def replace_file(self, path: str, content: bytes) -> None:
        """Write a small file atomically and durably: afterwards it has the old content or the new, after any crash.

        Raises:
            DiskFull: there is no room; the old content stands.
        """
        await trio.to_thread.run_sync(self._replace, self._path(path), content)

    async def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; empty if there is no such directory."""
        try:
            return sorted(await trio.to_thread.run_sync(os.listdir, self._path(path)))
        except FileNotFoundError:
            return []

    async def size(self, path: str) -> int:
        """A file's length in bytes."""
        return (await trio.to_thread.run_sync(os.stat, self._path(path))).st_size

    async def make_dir(self, path: str) -> None:
        """Make a directory with its parents, durably; nothing happens if it exists."""
        await trio.to_thread.run_sync(self._make_dir, self._path(path))

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it; nothing happens if there is none."""
        await trio.to_thread.run_sync(_remove, self._path(path))

    async def rename(self, old: str, new: str) -> None:
        """Rename within the data directory; both directories are synced."""
        await trio.to_thread.run_sync(_rename, self._path(old), self._path(new))

    async def copy(self, source: str, target: str) -> None:
        """Copy a file within the data directory, in bounded memory; the copy is synced."""
        await trio.to_thread.run_sync(self._copy, self._path(source), self._path(target))

    async def sync_dir(self, path: str) -> None:
        """Return only when the directory's entries are on disk."""
        await trio.to_thread.run_sync(_sync_dir, self._path(path))

    def _path(self, path: str) -> Path:
        assert not path.startswith("/"), f"{path} is not relative"
        assert ".." not in path.split("/"), f"{path} leaves the data directory"
        return self._root / path

    def _create(self, path: Path, size: int) -> int:
        self._check_quota(path, size)
        return _create(path, size)

    def _replace(self, path: Path, content: bytes) -> None:
        self._check_quota(path, len(content))
        _replace(path, content)

    def _copy(self, source: Path, target: Path) -> None:
        self._check_quota(target, source.stat().st_size)
        _copy(source, target)

    def _check_quota(self, path: Path, size: int) -> None:
        if self._quota_bytes and size and used_bytes(self._root) + size > self._quota_bytes:
            raise DiskFull(f"{path}: the disk_quota_bytes of this site, {self._quota_bytes:,}, are used up")

    def _lock(self, path: Path) -> None:
        assert self._lock_fd is None
        self._make_dir(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise ConfigInvalid(
                [f"{self._root}: another process (pid {holder}) uses this data directory; stop it first"]
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd

    def _make_dir(self, path: Path) -> None:
        # A parent is synced although the directory exists: it may have been made just before a crash.
        missing = [path]
        while missing[-1] != self._root and missing[-1] != missing[-1].parent:
            missing.append(missing[-1].parent)
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for directory in reversed(missing):
            with _full_disk_told(directory):
                directory.mkdir(mode=0o700, exist_ok=True)
            _sync_dir(directory.parent)


class DiskFile:
    """An open file. Owned by one task."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        return self._path

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        if length <= _INLINE_BYTES_MAX:
            await trio.lowlevel.checkpoint()
            data = _read_cached(self._fd, offset, length)
            if data is not None:
                return data
        return await trio.to_thread.run_sync(_read, self._fd, offset, length)

    async def write(self, offset: int, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Put bytes at an offset, all or an error; with `sync`, return only when they are on disk.

        If it is cancelled, nothing was written: once begun it is not given up.

        Raises:
            DiskFull: there was no room. What was written in part is garbage beyond the caller's end.
            SyncFailed: the disk did not confirm; the process must end.
            OSError: anything else.
        """
        await trio.to_thread.run_sync(_write, self._fd, self._path, offset, buffers, sync)

    async def sync(self) -> None:
        """Return only when every earlier write is on disk.

        Raises:
            SyncFailed: the disk did not confirm; the process must end.
        """
        await trio.to_thread.run_sync(_sync, self._fd, self._path)

    async def close(self) -> None:
        """Release it, without a sync."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        await trio.lowlevel.checkpoint()


def used_bytes(root: Path) -> int:
    """What the files beneath a directory take on the disk; those that go meanwhile count as gone."""
    used = 0
    for directory, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                used += os.lstat(os.path.join(directory, name)).st_blocks * _STAT_BLOCK_BYTES
    return used


def _create(path: Path, size: int) -> int:
    with _full_disk_told(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with _full_disk_told(path):
            if size:
                os.posix_fallocate(fd, 0, size)
    except BaseException:
        os.close(fd)
        path.unlink()
        raise
    return fd


def _read(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    got = len(data)
    while got < length and (data := os.pread(fd, length - got, offset + got)):
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def _read_cached(fd: int, offset: int, length: int) -> bytes | None:
    """The bytes if all of them are in the page cache, so that nothing waits for the disk; else None."""
    if not _READ_CACHED_ONLY:
        return None
    buffer = bytearray(length)
    try:
        got = os.preadv(fd, [buffer], offset, _READ_CACHED_ONLY)
    except OSError:
        return None  # not cached, or a file system that cannot tell; the ordinary read shows any real error
    return bytes(buffer) if got == length else None


def _write(fd: int, path: str, offset: int, buffers: Sequence[Buffer], sync: bool) -> None:
    with _full_disk_told(path):
        _write_all(fd, offset, buffers)
    if sync:
        _sync(fd, path)


def _write_all(fd: int, offset: int, buffers: Sequence[Buffer]) -> None:
    total = sum(map(len, buffers))
    if len(buffers) > 1 and total <= _JOIN_BYTES_MAX * len(buffers):
        buffers = [b"".join(buffers)]
    pending = [memoryview(buffer) for buffer in reversed(buffers)]
    while pending:
        some = pending[-1 : -_BUFFERS_MAX - 1 : -1]
        written = os.pwritev(fd, some, offset)
        if not written and any(map(len, some)):
            raise OSError(errno.EIO, "the disk took no bytes")
        offset += written
        while pending and written >= len(pending[-1]):
            written -= len(pending.pop())
        if written:
            pending[-1] = pending[-1][written:]


def _sync(fd: int, path: object) -> None:
    try:
        os.fdatasync(fd)
    except OSError as error:
        _sync_failed(path, error)


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        _sync_failed(path, error)
    finally:
        os.close(fd)


def _sync_failed(path: object, error: OSError) -> NoReturn:
    raise SyncFailed(f"{path}: the disk did not confirm a sync: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with _full_disk_told(path):
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write(fd, str(path), 0, [content], True)
    except DiskFull:
        temporary.unlink()
        raise
    finally:
        os.close(fd)
    _rename(temporary, path)


def _rename(old: Path, new: Path) -> None:
    with _full_disk_told(new):
        old.rename(new)
    _sync_dir(new.parent)
    if old.parent != new.parent:
        _sync_dir(old.parent)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, _full_disk_told(target), target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, _COPY_BYTES)
        writing.flush()
        _sync(writing.fileno(), target)
    _sync_dir(target.parent)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _full_disk_told(path: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"{path}: {error.strerror}") from error
        raise
