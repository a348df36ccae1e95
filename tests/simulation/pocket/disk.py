"""A disk that can be killed under a process: real files are its page cache, and it knows what of them was synced.

A kill leaves the files as they are. A loss of power leaves what was synced, and of the rest any sectors and any names.
The store's database is kept as of its last `make_durable`.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import trio

from claudefs_repl.error import DiskFull
from nodes.storage import DiskStorage

SECTOR = 512
STORE = "view.sqlite"


@dataclass(eq=False)
class Content:
    """What one file has durably, and what was written since."""

    durable: bytes | None = None
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def after_power_loss(self, live: bytes, rng: random.Random) -> bytes:
        kept = bytearray(bytes(len(live)) if self.durable is None else self.durable)
        for offset, data in self.pending:
            for at in range(0, len(data), SECTOR):
                if rng.random() < 0.5:
                    piece = data[at : at + SECTOR]
                    kept[offset + at : offset + at + len(piece)] = piece
        return bytes(kept)


class Disk:
    """One host's disk, which outlives its processes.

    Attributes:
        root: where its files are.
        store_image: database and WAL as they were durable, None if they never were.
        is_full: whether nothing more fits.
        sync_s: how long a sync takes, least and most.
    """

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        root.mkdir()
        self.live: dict[str, Content] = {}
        self.named: dict[str, Content] = {}
        self.store_image: tuple[bytes, bytes] | None = None
        self.is_full = False
        self.sync_s = (0.0002, 0.004)

    def keep_store(self) -> None:
        """The store is durable as it is now."""
        wal = self.root / f"{STORE}-wal"
        self.store_image = (self.root / STORE).read_bytes(), wal.read_bytes() if wal.exists() else b""

    def lose_power(self) -> None:
        """Only what was synced is left, and some of the rest. No process has the disk any more."""
        rng, names = self.rng, dict(self.named)
        for path in sorted({*self.live, *self.named}):
            if self.live.get(path) is not self.named.get(path) and rng.random() < 0.5:
                if path in self.live:
                    names[path] = self.live[path]
                else:
                    del names[path]
        contents = {}
        for path, content in names.items():
            there = self.root / path
            live = there.read_bytes() if self.live.get(path) is content and there.exists() else content.durable or b""
            contents[path] = content.after_power_loss(live, rng)
        for path in {*self.live, *self.named}:
            (self.root / path).unlink(missing_ok=True)
        self.live = {}
        for path, data in contents.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(data)
            self.live[path] = Content(data)
        self.named = dict(self.live)
        for suffix in ("", "-wal", "-shm"):
            (self.root / f"{STORE}{suffix}").unlink(missing_ok=True)
        if self.store_image is not None:
            (self.root / STORE).write_bytes(self.store_image[0])
            (self.root / f"{STORE}-wal").write_bytes(self.store_image[1])

    def wipe(self) -> None:
        """Everything is gone."""
        shutil.rmtree(self.root)
        self.root.mkdir()
        self.live, self.named, self.store_image = {}, {}, None


class Mount(DiskStorage):
    """What one process sees of a disk. After `is_gone` nothing it does has any effect.

    Attributes:
        is_gone: the process was killed, or lost its power.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.root)
        self.disk = disk
        self.is_gone = False

    def check(self) -> None:
        if self.is_gone:
            raise OSError("this process is gone")

    async def pause(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self.disk.rng.uniform(*self.disk.sync_s))
        self.check()

    def check_room(self) -> None:
        self.check()
        if self.disk.is_full:
            raise DiskFull("the disk is full")

    async def create(self, path, size):
        self.check_room()
        (self.disk.root / path).parent.mkdir(parents=True, exist_ok=True)
        file = await super().create(path, size)
        await file.close()
        self.disk.live[path] = Content()
        return await self.open(path)

    async def open(self, path):
        self.check()
        await trio.lowlevel.checkpoint()
        fd = os.open(self.disk.root / path, os.O_RDWR)
        return MountedFile(self, path, fd)

    async def replace_file(self, path, content):
        self.check_room()
        await self.pause()
        await super().replace_file(path, content)
        self.disk.live[path] = self.disk.named[path] = Content(content)

    async def make_dir(self, path):
        self.check()
        await super().make_dir(path)

    async def remove(self, path):
        self.check()
        await super().remove(path)
        for known in [known for known in self.disk.live if known == path or known.startswith(path + "/")]:
            del self.disk.live[known]

    async def rename(self, old, new):
        self.check()
        await super().rename(old, new)
        disk = self.disk
        if old in disk.live:
            disk.live[new] = disk.live.pop(old)
        await self.pause()
        for path in {os.path.dirname(old), os.path.dirname(new)}:
            self._sync_names(path)

    async def copy(self, source, target):
        self.check_room()
        await super().copy(source, target)
        await self.pause()
        self.disk.live[target] = self.disk.named[target] = Content((self.disk.root / target).read_bytes())

    async def sync_dir(self, path):
        self.check()
        await self.pause()
        self._sync_names(path)

    def _sync_names(self, directory: str) -> None:
        disk = self.disk
        directory = "" if directory == "." else directory
        for path in [path for path in disk.named if os.path.dirname(path) == directory]:
            del disk.named[path]
        disk.named.update({path: held for path, held in disk.live.items() if os.path.dirname(path) == directory})


class MountedFile:
    """An open file of a mounted disk."""

    def __init__(self, mount: Mount, path: str, fd: int) -> None:
        self.path, self._mount, self._fd = path, mount, fd
        self._content = mount.disk.live.setdefault(path, Content((mount.disk.root / path).read_bytes()))

    async def read(self, offset, length):
        await trio.lowlevel.checkpoint()
        self._mount.check()
        return os.pread(self._fd, length, offset)

    async def write(self, offset, buffers, *, sync):
        mount = self._mount
        mount.check()
        data = b"".join(map(bytes, buffers))
        is_short = mount.disk.is_full and mount.disk.rng.random() < 0.5
        if is_short:
            data = data[: mount.disk.rng.randrange(len(data) + 1)]
        os.pwrite(self._fd, data, offset)
        self._content.pending.append((offset, data))
        await mount.pause()
        if is_short:
            raise DiskFull(f"{self.path}: no room")
        if sync:
            self._sync()

    async def sync(self):
        await self._mount.pause()
        self._sync()

    def _sync(self) -> None:
        size = os.fstat(self._fd).st_size
        self._content.durable = os.pread(self._fd, size, 0)
        self._content.pending.clear()

    async def close(self):
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        await trio.lowlevel.checkpoint()
