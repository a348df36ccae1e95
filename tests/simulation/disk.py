"""A simulated disk: what is written can be read at once, but outlives a loss of power only as far as it was synced."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SECTOR_BYTES = 512
"""What a disk writes at once: a loss of power may leave any of a write's sectors out."""


@dataclass(eq=False, slots=True)
class DiskContent:
    """A file's bytes.

    Attributes:
        live: what a read sees.
        durable: what is surely there after a loss of power.
        pending: writes that were not synced yet, in order.
    """

    live: bytearray
    durable: bytearray
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        """Change what a read sees."""
        _put(self.live, offset, data)
        self.pending.append((offset, data))

    def make_durable(self, count: int) -> None:
        """The oldest so many pending writes are on the disk."""
        for offset, data in self.pending[:count]:
            _put(self.durable, offset, data)
        del self.pending[:count]

    def lose_power(self, rng: random.Random) -> int:
        """Some of what was pending is there, some not; returns how many writes were pending."""
        pending, self.pending = self.pending, []
        manner = rng.choice(("drop", "keep", "tear", "tear", "scatter"))
        if manner == "keep":
            kept = pending
        elif manner == "tear" and pending:
            whole = rng.randrange(len(pending))
            offset, data = pending[whole]
            kept = [*pending[:whole], (offset, data[: rng.randrange(len(data) + 1)])]
        elif manner == "scatter":
            kept = [
                (offset + at, data[at : at + SECTOR_BYTES])
                for offset, data in pending
                for at in range(0, len(data), SECTOR_BYTES)
                if rng.random() < 0.5
            ]
        else:
            kept = []
        for offset, data in kept:
            _put(self.durable, offset, data)
        self.live = bytearray(self.durable)
        return len(pending)


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if offset > len(target):
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


@dataclass(frozen=True, slots=True)
class NameChange:
    """A change of directories that need not be durable yet: a name appears, vanishes, or becomes another in one step.

    Attributes:
        tree: the directory with which the name vanishes: once that is known to be gone, so is all that was in it.
    """

    name: str
    content: DiskContent | None
    was: str | None = None
    tree: str | None = None

    def names(self) -> set[str]:
        """What it is about."""
        return {name for name in (self.name, self.was) if name is not None}

    def directories(self) -> set[str]:
        """Where it happens."""
        return {parent_of(name) for name in (*self.names(), *([] if self.tree is None else [self.tree]))}


def parent_of(name: str) -> str:
    """The directory of a file, `.` for the data directory itself."""
    return name.rpartition("/")[0] or "."


@dataclass(frozen=True, slots=True)
class SyncCrash:
    """The process or the power ends at a sync.

    Attributes:
        number: of the sync, from 1.
        moment: `before`, `in` or `after` it.
        is_power_loss: else the process alone.
    """

    number: int
    moment: str
    is_power_loss: bool


class SimDisk:
    """One machine's disk, which outlives its processes.

    Attributes:
        slow: how many times slower than usual it is.
        quota_bytes: what fits on it.
        is_copy_on_write: whether writing over what is there takes room as well.
        failing_syncs: so many of the next syncs fail.
        syncs, operations: how many there were.
        crash: called when a planned crash is due.
    """

    def __init__(self, rng: random.Random, *, write_s: float, sync_s: float, quota_bytes: int) -> None:
        self.rng = rng
        self.files: dict[str, DiskContent] = {}
        self.directories: set[str] = {"."}
        self._durable: dict[str, DiskContent] = {}
        self._changes: list[NameChange] = []
        self._write_s, self._sync_s = write_s, sync_s
        self.slow = 1.0
        self.is_copy_on_write = False
        self.quota_bytes = quota_bytes
        self.failing_syncs = 0
        self.syncs = 0
        self.operations = 0
        self.sync_crashes: list[SyncCrash] = []
        self.crash_at_operation: tuple[int, bool] | None = None
        self.crash: Callable[[bool], None] = lambda is_power_loss: None

    def delay_s(self, *, is_sync: bool) -> float:
        """How long the next operation takes."""
        usual_s = self._sync_s if is_sync else self._write_s
        return self.slow * usual_s * self.rng.uniform(0.3, 1.7)

    def used_bytes(self) -> int:
        """What the files take."""
        return sum(len(content.live) for content in self.files.values())

    def change(self, name: str, content: DiskContent | None, was: str | None = None, tree: str | None = None) -> None:
        """A name appears, vanishes, perhaps with the directory that it is in, or is another one's from now on."""
        if was is not None:
            self.files.pop(was, None)
        if content is None:
            self.files.pop(name, None)
        else:
            self.files[name] = content
        self._changes.append(NameChange(name, content, was, tree))

    def sync_names(self, directory: str) -> None:
        """The names in a directory are durable, and what had happened to the same names before, wherever that was."""
        rest: list[NameChange] = []
        for change in self._changes:
            if directory in change.directories():
                for earlier in [one for one in rest if one.names() & change.names()]:
                    rest.remove(earlier)
                    self._settle(earlier)
                self._settle(change)
            else:
                rest.append(change)
        self._changes = rest

    def _settle(self, change: NameChange) -> None:
        if change.was is not None:
            self._durable.pop(change.was, None)
        if change.content is None:
            self._durable.pop(change.name, None)
        else:
            self._durable[change.name] = change.content

    def put(self, name: str, data: bytes, durable: bytes | None = None) -> None:
        """A file comes from outside the storage's own calls; what is not durable of it counts as one write."""
        content = DiskContent(bytearray(data), bytearray(data if durable is None else durable))
        if durable is not None and durable != data:
            content.pending.append((0, data))
        self.files[name] = self._durable[name] = content
        self._changes = [change for change in self._changes if change.name != name]

    def take(self, name: str) -> tuple[bytes, bytes] | None:
        """A file goes to whoever keeps it now; its bytes and those of them that are durable."""
        content = self.files.pop(name, None)
        self._durable.pop(name, None)
        self._changes = [change for change in self._changes if name not in (change.name, change.was)]
        return None if content is None else (bytes(content.live), bytes(content.durable))

    def lose_power(self) -> int:
        """What was not synced is there in part, in any order, or not; returns how many writes and names were open."""
        open_ = len(self._changes)
        for change in self._changes:
            if self.rng.random() < 0.5:
                self._settle(change)
        self._changes = []
        self.files = dict(self._durable)
        for name in sorted(self.files):
            open_ += self.files[name].lose_power(self.rng)
        return open_

    def wipe(self) -> None:
        """A new disk."""
        self.files, self._durable, self._changes = {}, {}, []
        self.directories = {"."}

    def copy(self) -> dict[str, bytes]:
        """What a backup of it holds."""
        return {name: bytes(content.live) for name, content in self.files.items()}

    def restore(self, backup: Mapping[str, bytes]) -> None:
        """Put a backup in the place of everything."""
        directories = self.directories
        self.wipe()
        self.directories = directories
        for name, data in backup.items():
            self.put(name, data)

    def names(self, directory: str) -> list[str]:
        """What is in a directory."""
        prefix = "" if directory == "." else f"{directory}/"
        found = {name[len(prefix) :].partition("/")[0] for name in self.files if name.startswith(prefix)}
        found |= {
            name[len(prefix) :].partition("/")[0]
            for name in self.directories
            if name not in (".", directory) and name.startswith(prefix)
        }
        return sorted(found)

    def rot(self, name: str, at: int) -> None:
        """A bit of a file is another from now on."""
        content = self.files[name]
        for image in (content.live, content.durable):
            image[at] ^= 1 << self.rng.randrange(8)


def join(buffers: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """Bytes as they lie on the disk."""
    return b"".join(buffers)
