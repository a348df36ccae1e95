"""The storage seam on a simulated disk: one for each life of a site's process."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from claudefs_repl.error import DiskFull, SyncFailed
from nodes.seams import Buffer
from tests.simulation.disk import DiskContent, SimDisk, join, parent_of
from tests.simulation.processes import Process
from tests.simulation.world import Trace


class SimStorage:
    """A site's disk as its process sees it."""

    def __init__(self, disk: SimDisk, process: Process, trace: Trace) -> None:
        self.disk = disk
        self.process = process
        self._trace = trace

    async def turn(self, what: str, name: str, *, is_sync: bool = False) -> None:
        """The time that one operation takes, and the crash that may come of it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._step(what, name, is_sync=is_sync)

    async def _step(self, what: str, name: str, *, is_sync: bool) -> None:
        self.process.check()
        disk = self.disk
        disk.operations += 1
        planned = disk.crash_at_operation
        if planned is not None and disk.operations >= planned[0]:
            disk.crash_at_operation = None
            self._crash(planned[1])
        await self.process.wait(disk.delay_s(is_sync=is_sync))
        self._trace.note("disk", self.process.name, what, name)

    def _crash(self, is_power_loss: bool) -> None:
        self.disk.crash(is_power_loss)
        self.process.check()

    async def sync_point(self, name: str, content: DiskContent | None, directory: str | None) -> None:
        """One call that must reach the disk: a file's bytes, or the names in a directory."""
        disk = self.disk
        disk.syncs += 1
        planned = next((each for each in disk.sync_crashes if each.number == disk.syncs), None)
        if planned is not None and planned.moment == "before":
            self._crash(planned.is_power_loss)
        count = 0 if content is None else len(content.pending)
        await self._step("sync", name, is_sync=True)
        if planned is not None and planned.moment == "in":
            if content is not None:
                content.make_durable(disk.rng.randint(0, count))
            self._crash(planned.is_power_loss)
        if disk.failing_syncs > 0:
            disk.failing_syncs -= 1
            if content is not None:
                del content.pending[:count]  # readable, but never on the disk: as Linux leaves such pages
            self._trace.note("sync_failed", self.process.name, name)
            raise SyncFailed(f"{name}: the disk did not confirm a sync: Input/output error")
        if content is not None:
            content.make_durable(count)
        if directory is not None:
            disk.sync_names(directory)
        if planned is not None and planned.moment == "after":
            self._crash(planned.is_power_loss)

    def _room(self, name: str, size: int) -> None:
        if self.disk.used_bytes() + size > self.disk.quota_bytes:
            self._trace.note("disk_full", self.process.name, name)
            raise DiskFull(f"{name}: No space left on device")

    async def create(self, path: str, size: int) -> SimFile:
        """As `Storage.create`."""
        await self.turn("create", path)
        if path in self.disk.files:
            raise FileExistsError(path)
        self._room(path, size)
        content = DiskContent(bytearray(size), bytearray(size))
        self.disk.change(path, content)
        return SimFile(self, path, content)

    async def open(self, path: str) -> SimFile:
        """As `Storage.open`."""
        await self.turn("open", path)
        content = self.disk.files.get(path)
        if content is None:
            raise FileNotFoundError(path)
        return SimFile(self, path, content)

    async def read_file(self, path: str) -> bytes | None:
        """As `Storage.read_file`."""
        await self.turn("read_file", path)
        content = self.disk.files.get(path)
        return None if content is None else bytes(content.live)

    async def replace_file(self, path: str, content: bytes) -> None:
        """As `Storage.replace_file`."""
        await self.turn("replace", path)
        temporary = f"{path}.tmp"
        self._room(path, len(content))
        written = DiskContent(bytearray(), bytearray())
        self.disk.change(temporary, written)
        written.write(0, bytes(content))
        await self.sync_point(temporary, written, None)
        await self._rename(temporary, path)

    async def names(self, path: str) -> list[str]:
        """As `Storage.names`."""
        await self.turn("names", path)
        return self.disk.names(path)

    async def size(self, path: str) -> int:
        """As `Storage.size`."""
        await self.turn("size", path)
        return len(self.disk.files[path].live)

    async def make_dir(self, path: str) -> None:
        """As `Storage.make_dir`; directories are always durable at once."""
        await self.turn("make_dir", path)
        while path not in self.disk.directories:
            self.disk.directories.add(path)
            path = parent_of(path)

    async def remove(self, path: str) -> None:
        """As `Storage.remove`."""
        await self.turn("remove", path)
        for name in [name for name in self.disk.files if name == path or name.startswith(f"{path}/")]:
            self.disk.change(name, None, tree=None if name == path else path)
        gone = {name for name in self.disk.directories if name == path or name.startswith(f"{path}/")}
        self.disk.directories -= gone

    async def rename(self, old: str, new: str) -> None:
        """As `Storage.rename`, of a file or of a directory with all that is in it."""
        await self.turn("rename", f"{old} {new}")
        await self._rename(old, new)

    async def _rename(self, old: str, new: str) -> None:
        disk = self.disk
        if old in disk.files:
            disk.change(new, disk.files[old], was=old)
        else:
            if old not in disk.directories:
                raise FileNotFoundError(old)
            inside = [name for name in disk.files if name.startswith(f"{old}/")]
            for name in inside:
                disk.change(new + name[len(old) :], disk.files[name], was=name)
                # One rename of one name: it is there for all of them or for none.
                disk.sync_names(parent_of(name))
            moved = {name for name in disk.directories if name == old or name.startswith(f"{old}/")}
            disk.directories -= moved
            disk.directories |= {new + name[len(old) :] for name in moved}
        await self.sync_point(new, None, parent_of(new))
        if parent_of(old) != parent_of(new):
            await self.sync_point(old, None, parent_of(old))

    async def copy(self, source: str, target: str) -> None:
        """As `Storage.copy`."""
        await self.turn("copy", f"{source} {target}")
        data = bytes(self.disk.files[source].live)
        self._room(target, len(data))
        content = DiskContent(bytearray(), bytearray())
        self.disk.change(target, content)
        content.write(0, data)
        await self.sync_point(target, content, parent_of(target))

    async def sync_dir(self, path: str) -> None:
        """As `Storage.sync_dir`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.sync_point(path, None, path)


class SimFile:
    """An open file."""

    def __init__(self, storage: SimStorage, path: str, content: DiskContent) -> None:
        self._storage = storage
        self._path = path
        self._content = content
        self._is_open = True
        storage.process.open_files += 1

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        return self._path

    async def read(self, offset: int, length: int) -> bytes:
        """As `File.read`: mostly out of the page cache."""
        await trio.lowlevel.checkpoint()
        self._storage.process.check()
        assert self._is_open
        return bytes(self._content.live[offset : offset + length])

    async def write(self, offset: int, buffers: Sequence[Buffer], *, sync: bool) -> None:
        """As `File.write`: once begun it is not given up, but by a crash."""
        assert self._is_open
        await self._storage.turn("write", self._path)
        data = join(buffers)
        disk = self._storage.disk
        if disk.is_copy_on_write and disk.used_bytes() + len(data) > disk.quota_bytes:
            self._content.write(offset, data[: disk.rng.randrange(len(data) + 1)])
            raise DiskFull(f"{self._path}: No space left on device")
        self._content.write(offset, data)
        if sync:
            await self._storage.sync_point(self._path, self._content, None)

    async def sync(self) -> None:
        """As `File.sync`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._storage.sync_point(self._path, self._content, None)

    async def close(self) -> None:
        """As `File.close`."""
        if self._is_open:
            self._is_open = False
            self._storage.process.open_files -= 1
        await trio.lowlevel.checkpoint()
