"""Disks of a site's own that can be filled or lose power, mounted beneath a run's directory. They need root.

A disk that loses power is ext4 on a loop device, whose shutdown ioctl drops everything that was not synced, as the power's
end does. All disks are unmounted at the end, however the run ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from claudefs_repl.error import WorldError
from nodes.chaos.fault_kinds import Needs

_IOC_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
"""EXT4_IOC_SHUTDOWN of Linux: `_IOR('X', 125, __u32)`."""
_WITHOUT_FLUSH = struct.pack("I", 2)
"""EXT4_GOING_FLAGS_NOLOGFLUSH: not even the journal is written."""
_FILLER = "filler"
_BLOCK_BYTES = 4096
_UNMOUNT_TRIES = 50
_UNMOUNT_POLL_S = 0.1


class DiskFailed(WorldError):
    """A disk for an experiment could not be made, mounted or removed."""


class Disk:
    """A small disk at a path. Owned by the stage."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._is_mounted = False

    async def mount(self) -> None:
        """Put it there.

        Raises:
            DiskFailed: the machine does not let us.
        """
        self._path.mkdir(parents=True, exist_ok=True)
        await self._mount()
        self._is_mounted = True

    async def _mount(self) -> None:
        await _run("mount", "-t", "tmpfs", "-o", f"size={self._size},mode=700", "claudefs-repl-chaos", str(self._path))

    async def unmount(self) -> None:
        """Take it away; nothing may be open on it. Nothing happens if it is not there.

        Raises:
            DiskFailed: somebody uses it.
        """
        if not self._is_mounted:
            return
        for left in reversed(range(_UNMOUNT_TRIES)):
            try:
                await _run("umount", str(self._path))
                break
            except DiskFailed:
                if not left:
                    # Gone from the tree at least, and for good once its last user is.
                    await _run("umount", "-l", str(self._path))
                    raise
                await trio.sleep(_UNMOUNT_POLL_S)
        self._is_mounted = False

    def fill(self, leave_bytes: int) -> None:
        """Take all room but so many bytes.

        What is written anew meanwhile finds none; what a log had allocated before stays usable, as on any disk.
        """
        fd = os.open(self._path / _FILLER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            at = os.fstat(fd).st_size
            step = self._size
            while step >= _BLOCK_BYTES:
                room = os.statvfs(self._path)
                wanted = min(step, room.f_bavail * room.f_frsize - leave_bytes)
                if wanted < _BLOCK_BYTES:
                    return
                try:
                    os.posix_fallocate(fd, at, wanted)
                    at += wanted
                except OSError:
                    step //= 2
        finally:
            os.close(fd)

    def free(self) -> None:
        """Give back what `fill` took."""
        with suppress(FileNotFoundError):
            (self._path / _FILLER).unlink()


class PowerDisk(Disk):
    """A disk that can lose power."""

    def __init__(self, path: Path, size: int, image: Path) -> None:
        super().__init__(path, size)
        self._image = image

    async def _mount(self) -> None:
        if not self._image.exists():
            self._image.parent.mkdir(parents=True, exist_ok=True)
            with self._image.open("xb") as file:
                file.truncate(self._size)
            await _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        await _run("mount", "-t", "ext4", "-o", "loop", str(self._image), str(self._path))

    def lose_power(self) -> None:
        """Whatever was not synced is gone; every use of the disk fails until it is mounted again."""
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _IOC_SHUTDOWN, _WITHOUT_FLUSH)
        finally:
            os.close(fd)


async def _run(*command: str) -> None:
    try:
        done = await trio.run_process(command, check=False, capture_stdout=True, stderr=subprocess.STDOUT)
    except OSError as error:
        raise DiskFailed(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        told = done.stdout.decode(errors="replace").strip().partition("\n")[0]
        raise DiskFailed(f"{' '.join(command)}: {told}")


@asynccontextmanager
async def removed_at_end(disks: list[Disk]) -> AsyncIterator[None]:
    """Unmount every disk at the end, whatever happens; those that are mounted by then."""
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            failures = []
            for disk in disks:
                try:
                    await disk.unmount()
                except DiskFailed as failure:
                    failures.append(failure)
        if failures:
            raise failures[0]


async def why_not(need: Needs) -> str:
    """Why this machine does not permit what a fault needs, empty if it does."""
    if need is Needs.NOTHING:
        return ""
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    return await why_no_disk(has_power=True)


async def why_no_disk(*, has_power: bool) -> str:
    """Why this machine permits no small disk, or none that can lose power; empty if it does. One is made and removed."""
    if os.geteuid() != 0:
        return "this is not root"
    with tempfile.TemporaryDirectory(prefix="claudefs-repl-chaos-") as name:
        directory = Path(name)
        disk: Disk = (
            PowerDisk(directory / "disk", 16 << 20, directory / "image")
            if has_power
            else Disk(directory / "disk", 1 << 20)
        )
        try:
            async with removed_at_end([disk]):
                await disk.mount()
                if isinstance(disk, PowerDisk):
                    disk.lose_power()
        except DiskFailed as failure:
            return str(failure)
        except OSError as error:
            return f"the shutdown ioctl of ext4: {error.strerror}"
    return ""
