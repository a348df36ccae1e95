"""A site's tree comes to a local directory: the mirror image of `put`.

Each file is written beside its place and renamed onto it, so that nobody sees half a file. What is there and equal is
skipped, so that an interrupted run is finished by running it again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import Inode
from claudefs_repl.operations import check_name
from nodes.commands import ops, remote
from nodes.commands.put import CHUNKS_AT_ONCE, FILES_AT_ONCE
from nodes.commands.remote import NotStill, RefusedNode, RemoteNode, SiteClient, Workers, first_cause, in_parts
from nodes.commands.transfer_report import TransferReport
from nodes.commands.tree import Kind, LocalNode, look_if_there, read_xattrs, write_xattrs

_FILLING_MODE = 0o700
"""A directory's permissions until its content is there: its own may forbid writing into it."""
_ZEROS = bytes(ops.CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an object goes, and what it is at the site."""

    path: bytes
    node: RemoteNode


async def get_tree(
    client: SiteClient,
    remote_path: bytes,
    local: bytes,
    *,
    checksum: bool = False,
    owner: bool = False,
    as_written: bool = False,
    report: TransferReport | None = None,
) -> TransferReport:
    """Carry an object of a site, with all that is beneath it, to a local path.

    Args:
        client: a connection to the site.
        remote_path: what to carry.
        local: the path of the copy itself; missing parents are made.
        checksum: compare content before skipping, not only size and mtime.
        owner: set the user and group ids too, as the site shows them; this needs root.
        as_written: set those that were written, whichever site wrote them; nothing is refused then.
        report: filled in as the work goes on, for a progress bar.

    Raises:
        OperationRefused: there is nothing at `remote_path`.
        OSError: the parents of `local` cannot be made.
        ClientError: the site went away; what was carried so far is there.
    """
    report = report if report is not None else TransferReport()
    root = await remote.resolve(client, remote_path, as_written=as_written)
    destination = _with_parents(local)
    get = _Get(client, report, checksum=checksum, owner=owner, as_written=as_written)
    try:
        async with trio.open_nursery() as nursery:
            await get.run(_Place(destination, root), nursery)
        await get.finish()
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    return report


class _Get:
    """One run of `get_tree`: its memory of directories to settle and of hard links. Owned by that call."""

    def __init__(
        self, client: SiteClient, report: TransferReport, *, checksum: bool, owner: bool, as_written: bool
    ) -> None:
        self._client = client
        self._report = report
        self._checksum = checksum
        self._owner = owner
        self._as_written = as_written
        self._chunk_places = trio.Semaphore(CHUNKS_AT_ONCE)
        self._directories: list[_Place] = []
        self._made: set[bytes] = set()
        self._first_names: set[Inode] = set()
        self._objects: dict[Inode, bytes] = {}
        self._kept_for: dict[tuple[int, int], Inode] = {}
        self._other_names: list[_Place] = []
        self._without_xattrs = False

    async def run(self, root: _Place, nursery: trio.Nursery) -> None:
        """Carry everything but further names of files and the attributes of directories."""
        workers = Workers(nursery, limit=FILES_AT_ONCE)
        if root.node.kind is not Kind.DIR:
            await self._start(root, workers)
            return
        pending = [root]
        while pending:
            place = pending.pop()
            subdirectories: list[_Place] = []
            await self._guarded(place, self._fill, place, workers, subdirectories)
            pending += reversed(subdirectories)

    async def finish(self) -> None:
        """What has to wait until all content is there: further names, then directories from the deepest up."""
        for place in self._other_names:
            await self._guarded(place, self._link, place)
        for place in reversed(self._directories):
            await self._guarded(place, self._settle_directory, place)

    async def _fill(self, place: _Place, workers: Workers, subdirectories: list[_Place]) -> None:
        """Make one directory and start its files; its subdirectories are added to the list."""
        there = look_if_there(place.path)
        if there is None:
            os.mkdir(place.path, _FILLING_MODE)
            self._made.add(place.path)
        elif there.kind is not Kind.DIR:
            self._report.problem(
                place.path, f"a {there.kind.value} is in the directory's place: remove it, run get again"
            )
            return
        elif not os.access(place.path, os.W_OK | os.X_OK):
            os.chmod(place.path, there.mode | _FILLING_MODE)
        self._directories.append(place)
        listing = remote.list_pages(self._client, place.node.inode, as_written=self._as_written)
        async with contextlib.aclosing(listing) as pages:
            async for page in pages:
                for node in page:
                    assert node.name is not None, "what is listed has a name"
                    check_name(node.name)  # a name from the network never leads out of the directory
                    path = os.path.join(place.path, node.name)
                    if isinstance(node, RefusedNode):
                        self._report.problem(path, node.reason)
                        continue
                    child = _Place(path, node)
                    if node.kind is Kind.DIR:
                        subdirectories.append(child)
                    else:
                        await self._start(child, workers)

    async def _start(self, place: _Place, workers: Workers) -> None:
        """Give one object to a worker, or keep it for later if it is a further name of another."""
        if place.node.nlink > 1 and place.node.inode in self._first_names:
            self._other_names.append(place)
        else:
            self._first_names.add(place.node.inode)
            await workers.start(self._guarded, place, self._carry, place)

    async def _guarded(self, place: _Place, step: remote.AsyncStep, *args: object) -> None:
        """A step about one object: what goes wrong with it is reported, and the rest goes on."""
        try:
            await step(*args)
        except NotStill:
            self._report.problem(place.path, "it changed at the site while it was read: run get again")
        except OverflowError as error:
            self._report.problem(place.path, f"an attribute does not fit this file system: {error}")
        except (OSError, OperationRefused) as error:
            self._report.refuse(place.path, error)

    async def _carry(self, place: _Place) -> None:
        """One file or symbolic link, whatever is at its place."""
        node = place.node
        xattrs = {} if node.kind is Kind.SYMLINK else await remote.read_xattrs(self._client, node.inode)
        there = look_if_there(place.path)
        if there is not None:
            if self._is_in_the_way(there):
                return
            if await self._content_stays(place, there):
                self._objects[node.inode] = place.path
                if self._settled(place, there, xattrs):
                    self._report.skip(node.size)
                else:
                    self._report.add(node.kind)
                return
        with _beside(place) as beside:
            if node.kind is Kind.SYMLINK:
                os.symlink(node.target or b"", beside)
            else:
                with self._report.content(node.size) as count:
                    await self._receive(place, beside, count)
            self._set_attributes(beside, node, xattrs, {})
            os.rename(beside, place.path)
        self._objects[node.inode] = place.path
        self._report.add(node.kind)

    def _is_in_the_way(self, there: LocalNode) -> bool:
        """Whether a file or link may not replace what is at its place: a directory, or root's /dev/null; reported."""
        if there.kind not in (Kind.DIR, Kind.SPECIAL):
            return False
        what = there.special or "a directory"
        self._report.problem(there.path, f"{what} is in its place: remove it and run get again")
        return True

    async def _content_stays(self, place: _Place, there: LocalNode) -> bool:
        """Whether what is at the place has the type and content, and is shared with no object that differs."""
        node = place.node
        if there.kind is not node.kind or (node.nlink == 1 and there.nlink > 1):
            return False
        if node.kind is Kind.SYMLINK:
            if os.readlink(place.path) != node.target:
                return False
        elif not await self._same_file(place, there):
            return False
        return self._kept_for.setdefault(there.key, node.inode) == node.inode

    async def _same_file(self, place: _Place, there: LocalNode) -> bool:
        if (there.size, there.mtime_ns) != (place.node.size, place.node.mtime_ns):
            return False
        if not self._checksum:
            return True
        descriptor = os.open(place.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for offset in range(0, place.node.size, ops.CHUNK_BYTES):
                async with self._chunk_places:
                    data = await remote.read_range(self._client, place.node.inode, offset, ops.CHUNK_BYTES)
                    if data != os.pread(descriptor, ops.CHUNK_BYTES, offset):
                        return False
        finally:
            os.close(descriptor)
        return True

    async def _receive(self, place: _Place, beside: bytes, count: Callable[[int], None]) -> None:
        """A file's content, several parts on their way at once.

        Raises:
            NotStill: it did not hold still.
        """
        node = place.node
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

        async def receive(offset: int, length: int) -> None:
            data = await remote.read_range(self._client, node.inode, offset, length)
            if len(data) != length:
                raise NotStill
            if data != _ZEROS[:length]:  # what is all zeros stays a hole
                _write_at(descriptor, data, offset)
            count(length)

        parts = ((at, min(ops.CHUNK_BYTES, node.size - at)) for at in range(0, node.size, ops.CHUNK_BYTES))
        try:
            await in_parts(parts, receive, self._chunk_places)
            os.ftruncate(descriptor, node.size)
        finally:
            os.close(descriptor)
        if node.size > ops.CHUNK_BYTES:
            after = RemoteNode.of(await remote.ask(self._client, "stat", inode=node.inode, as_written=True))
            if (after.size, after.mtime_ns) != (node.size, node.mtime_ns):
                raise NotStill

    def _settled(self, place: _Place, there: LocalNode, xattrs: dict[bytes, bytes]) -> bool:
        """Make the attributes of a kept object those of the original; whether they were already."""
        node = place.node
        existing = read_xattrs(there)
        same_mode = node.kind is Kind.SYMLINK or there.mode == node.mode
        same_owner = not self._owner or (there.uid, there.gid) == (node.uid, node.gid)
        if same_mode and same_owner and there.mtime_ns == node.mtime_ns and existing == xattrs:
            return True
        self._set_attributes(place.path, node, xattrs, existing)
        return False

    def _set_attributes(
        self, path: bytes, node: RemoteNode, xattrs: dict[bytes, bytes], existing: dict[bytes, bytes]
    ) -> None:
        """In the order in which one does not undo another: owner, attributes, mode, times."""
        if self._owner:
            os.chown(path, node.uid, node.gid, follow_symlinks=False)
        if xattrs != existing and not write_xattrs(path, xattrs, existing) and not self._without_xattrs:
            self._without_xattrs = True
            self._report.problem(path, "extended attributes were left out here: the file system keeps none")
        if node.kind is not Kind.SYMLINK:
            os.chmod(path, node.mode)
        os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)

    async def _settle_directory(self, place: _Place) -> None:
        xattrs = await remote.read_xattrs(self._client, place.node.inode)
        there = look_if_there(place.path)
        if there is None or there.kind is not Kind.DIR:
            self._report.problem(place.path, "it was taken away while it was filled: run get again")
        elif self._settled(place, there, xattrs) and place.path not in self._made:
            self._report.skip(0)
        else:
            self._report.add(Kind.DIR)

    async def _link(self, place: _Place) -> None:
        """A further name of a file; if its first name failed, this one carries the content."""
        first = self._objects.get(place.node.inode)
        if first is None:
            await self._carry(place)
            return
        there = look_if_there(place.path)
        original = os.lstat(first)
        if there is not None and there.key == (original.st_dev, original.st_ino):
            self._report.skip(0)
            return
        if there is not None and self._is_in_the_way(there):
            return
        with _beside(place) as beside:
            os.link(first, beside, follow_symlinks=False)
            os.rename(beside, place.path)
        self._report.links += 1


def _with_parents(local: bytes) -> bytes:
    destination = os.path.abspath(local)
    os.makedirs(os.path.dirname(destination), exist_ok=True)
    return destination


@contextlib.contextmanager
def _beside(place: _Place) -> Iterator[bytes]:
    """A path in the directory of a place where its object is made; nothing is left there.

    The name follows from the object, so that what a killed run left is found and replaced by the next.
    """
    directory, name = os.path.split(place.path)
    beside = os.path.join(directory, b".claudefs-repl-%x.part" % place.node.inode)
    assert name != beside
    _remove_if_there(beside)
    try:
        yield beside
    finally:
        _remove_if_there(beside)


def _remove_if_there(path: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
