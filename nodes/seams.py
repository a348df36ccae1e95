"""The seams: everything a site asks of the world other than its network.

Production hands in the real thing, a simulation its own; the same site code runs on both. Sockets come from
`trio.open_tcp_stream` and `trio.serve_tcp`, whose public hooks let a simulated network stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview
Entropy = Callable[[int], bytes]
"""Unpredictable bytes, as `os.urandom` gives them: for keys, nonces and incarnations."""


class WallClock(Protocol):
    """The time of day: for stamps and logs, never for deadlines (those are Trio's)."""

    def now_us(self) -> int:
        """Microseconds since 1970."""


class File(Protocol):
    """An open file of fixed size that is read and written at offsets. Owned by one task."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""

    async def write(self, offset: int, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """Put bytes at an offset, all or an error; with `sync`, return only when they are on disk.

        Raises:
            DiskFull: there was no room. What was written in part is garbage beyond the caller's end.
            SyncFailed: the disk did not confirm; the process must end.
            OSError: anything else.
        """

    async def sync(self) -> None:
        """Return only when every earlier write is on disk.

        Raises:
            SyncFailed: the disk did not confirm; the process must end.
        """

    async def close(self) -> None:
        """Release it, without a sync."""


class Storage(Protocol):
    """A site's disk. Paths are relative to the site's data directory, with `/` between parts."""

    async def create(self, path: str, size: int) -> File:
        """A new file of `size` zero bytes, all of them allocated. The directory entry is not synced yet.

        Raises:
            DiskFull: there is no room; nothing is left behind.
        """

    async def open(self, path: str) -> File:
        """An existing file, for reading and writing."""

    async def read_file(self, path: str) -> bytes | None:
        """A small file's content, None if there is no such file."""

    async def replace_file(self, path: str, content: bytes) -> None:
        """Write a small file atomically and durably: afterwards it has the old content or the new, after any crash."""

    async def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; empty if there is no such directory."""

    async def size(self, path: str) -> int:
        """A file's length in bytes."""

    async def make_dir(self, path: str) -> None:
        """Make a directory with its parents, durably; nothing happens if it exists."""

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it; nothing happens if there is none."""

    async def rename(self, old: str, new: str) -> None:
        """Rename within the data directory; both directories are synced."""

    async def copy(self, source: str, target: str) -> None:
        """Copy a file of any size within the data directory, in bounded memory; the copy is synced.

        Raises:
            DiskFull: there was no room; what was copied in part is left at the target.
        """

    async def sync_dir(self, path: str) -> None:
        """Return only when the directory's entries are on disk."""


class StoreRunner(Protocol):
    """What runs SQLite's calls, which may wait for the disk, and keeps its files in the site's data directory."""

    async def run(self, function: Callable[[], T]) -> T:
        """Run a call that reads, or writes what need not be durable yet."""

    async def open(self, path: Path, function: Callable[[], T]) -> T:
        """Run the call that opens the database at a path."""

    async def sync(self, path: Path, function: Callable[[], T]) -> T:
        """Run a call after which what is at a path, the database or a copy of it, outlives a loss of power."""

    async def close(self, path: Path, function: Callable[[], T]) -> T:
        """Run the call that closes the database at a path."""


class LimitedStorage(Storage, Protocol):
    """A disk that can be made to look full, for experiments."""

    def set_quota(self, quota_bytes: int) -> None:
        """From now on there is no room for new files beyond so many bytes in all; 0 for no limit."""
