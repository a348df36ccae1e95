"""A local tree goes to a site.

Each file fills a fresh object that has no name and is then named with one Rename, so that readers and other sites see
whole files. What is there and equal is skipped, so that an interrupted run is finished by running it again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import XATTR_VALUE_BYTES_MAX, Inode
from claudefs_repl.operations import path_text
from nodes.commands import ops, remote
from nodes.commands.remote import (
    NotStill,
    RefusedNode,
    RemoteNode,
    SiteClient,
    SubmitRefused,
    Workers,
    first_cause,
    in_parts,
)
from nodes.commands.transfer_report import TransferReport
from nodes.commands.tree import Kind, LocalNode, data_ranges, look, node_of, read_xattrs, scan_directory

FILES_AT_ONCE = 32
"""Files on their way at the same time: enough that one group commit at the site answers many."""
SMALL_BYTES_MAX = 256 * 1024
"""A file up to this size goes in one request; 32 of them stay below 10 MiB of memory."""
CHUNKS_AT_ONCE = 8
"""Requests with parts of large files on their way: 8 MiB of memory, and the site never waits for the disk here."""
DIRECTORIES_AT_ONCE = 16
"""Directories that are looked into before their subdirectories are made with one round trip."""
DIRECTORIES_A_REQUEST = 256
"""Siblings made with one round trip; the names alone may be 64 KiB."""
assert SMALL_BYTES_MAX + ops.XATTRS_A_REQUEST * XATTR_VALUE_BYTES_MAX <= ops.CHUNK_BYTES
assert DIRECTORIES_A_REQUEST <= ops.SUBMIT_OPS_MAX


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an object goes.

    Attributes:
        before: what has the name now, None if nothing.
    """

    parent: Inode
    name: bytes
    before: RemoteNode | None


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory that is at the site now.

    Attributes:
        before: as it was before this run, None if this run made it.
    """

    local: LocalNode
    inode: Inode
    before: RemoteNode | None


async def put_tree(
    client: SiteClient,
    local: bytes,
    remote_path: bytes,
    *,
    now_ns: int,
    checksum: bool = False,
    report: TransferReport | None = None,
) -> TransferReport:
    """Carry a local object, with all that is beneath it, to a path of a site.

    Args:
        client: a connection to the site.
        local: what to carry; a symbolic link is carried as a link.
        remote_path: the path of the copy itself; missing parents are made.
        now_ns: the time that missing parents get.
        checksum: compare content before skipping, not only size and mtime.
        report: filled in as the work goes on, for a progress bar.

    Raises:
        OSError: `local` cannot be reached at all.
        OperationRefused: `remote_path` cannot be a place for it.
        ClientError: the site went away or takes no writes; what was carried so far is there.
    """
    report = report if report is not None else TransferReport()
    root = look(local)
    names = remote.split_path(remote_path)
    before = await remote.resolve_if_there(client, remote_path)
    if names:
        parent = await remote.make_parents(client, names[:-1], uid=os.getuid(), gid=os.getgid(), now_ns=now_ns)
        place = _Place(parent.inode, names[-1], before)
    elif root.kind is Kind.DIR:
        assert before is not None, "every tree has a root"
        place = _Place(before.inode, b"", before)
    else:
        raise OperationRefused(
            errno.EISDIR, f"/ is a directory and {path_text(local)} is not: name the copy, as in SITE:/x"
        )
    put = _Put(client, report, checksum=checksum)
    try:
        async with trio.open_nursery() as nursery:
            await put.run(root, place, Workers(nursery, limit=FILES_AT_ONCE))
        async with trio.open_nursery() as nursery:
            await put.finish(Workers(nursery, limit=FILES_AT_ONCE))
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    return report


class _Put:
    """One run of `put_tree`: its memory of directories to settle and of hard links. Owned by that call."""

    def __init__(self, client: SiteClient, report: TransferReport, *, checksum: bool) -> None:
        self._client = client
        self._report = report
        self._checksum = checksum
        self._chunk_places = trio.Semaphore(CHUNKS_AT_ONCE)
        self._directories: list[_Directory] = []
        self._first_names: set[tuple[int, int]] = set()
        self._objects: dict[tuple[int, int], Inode] = {}
        self._kept_for: dict[Inode, tuple[int, int]] = {}
        self._other_names: list[tuple[LocalNode, _Place]] = []

    async def run(self, root: LocalNode, place: _Place, workers: Workers) -> None:
        """Carry everything but further names of files and the attributes of directories that were there."""
        if root.kind is not Kind.DIR:
            await self._start(root, place, workers)
            return
        pending = await self._make_directories([(root, place)])
        while pending:
            batch, pending = pending[-DIRECTORIES_AT_ONCE:], pending[:-DIRECTORIES_AT_ONCE]
            found = [pair for directory in reversed(batch) for pair in await self._look_into(directory)]
            made = await self._make_directories([pair for pair in found if pair[0].kind is Kind.DIR])
            pending += reversed(made)
            for node, child in found:
                if node.kind is not Kind.DIR:
                    await self._start(node, child, workers)

    async def finish(self, workers: Workers) -> None:
        """What has to wait until all content is there: further names, and the attributes of directories."""
        names_of: dict[tuple[int, int], list[tuple[LocalNode, _Place]]] = {}
        for node, place in self._other_names:
            names_of.setdefault(node.key, []).append((node, place))
        for names in names_of.values():
            await workers.start(self._link_all, names)
        for directory in reversed(self._directories):
            if directory.before is not None:
                await workers.start(self._guarded, directory.local, self._settle, directory.local, directory.before)

    async def _look_into(self, directory: _Directory) -> list[tuple[LocalNode, _Place]]:
        """What a directory holds, each with its place at the site."""
        self._directories.append(directory)
        try:
            nodes, problems = scan_directory(directory.local.path)
        except OSError as error:
            self._report.refuse(directory.local.path, error)
            return []
        self._report.problems += problems
        there = await remote.list_all(self._client, directory.inode) if directory.before is not None else {}
        found: list[tuple[LocalNode, _Place]] = []
        for node in nodes:
            before = there.get(node.name)
            if isinstance(before, RefusedNode):
                self._report.problem(node.path, before.reason)
            else:
                found.append((node, _Place(directory.inode, node.name, before)))
        return found

    async def _make_directories(self, wanted: list[tuple[LocalNode, _Place]]) -> list[_Directory]:
        """Directories that are there or were made; those that cannot be are reported."""
        directories: list[_Directory] = []
        missing: list[tuple[LocalNode, _Place]] = []
        for node, place in wanted:
            if place.before is None:
                missing.append((node, place))
            elif place.before.kind is Kind.DIR:
                directories.append(_Directory(node, place.before.inode, place.before))
            else:
                self._report.problem(node.path, _in_the_way(place.before))
        while missing:
            batch, missing = missing[:DIRECTORIES_A_REQUEST], missing[DIRECTORIES_A_REQUEST:]
            try:
                inodes = await remote.submit(self._client, [_make_directory_at(node, place) for node, place in batch])
            except SubmitRefused as error:
                inodes = error.done
                self._report.refuse(batch[len(inodes)][0].path, error)
                missing = batch[len(inodes) + 1 :] + missing
            for (node, _), inode in zip(batch, inodes, strict=False):
                directories.append(_Directory(node, inode, None))
                self._report.add(Kind.DIR)
                await self._guarded(node, self._set_xattrs, inode, node)
        return directories

    async def _start(self, node: LocalNode, place: _Place, workers: Workers) -> None:
        """Give one object to a worker, or keep it for later if it is a further name of another."""
        if node.kind is Kind.SPECIAL:
            self._report.special.append(node.refusal())
        elif node.nlink > 1 and node.key in self._first_names:
            self._other_names.append((node, place))
        else:
            self._first_names.add(node.key)
            await workers.start(self._guarded, node, self._carry, node, place)

    async def _guarded(self, node: LocalNode, step: remote.AsyncStep, *args: object) -> None:
        """A step about one object: what goes wrong with it is reported, and the rest goes on."""
        try:
            await step(*args)
        except NotStill:
            self._report.problem(node.path, "it changed while it was read: run put again")
        except (OSError, OperationRefused) as error:
            self._report.refuse(node.path, error)

    async def _carry(self, node: LocalNode, place: _Place) -> None:
        """One file or symbolic link, whatever is at its place."""
        if place.before is not None:
            if place.before.kind is Kind.DIR:
                self._report.problem(node.path, _in_the_way(place.before))
                return
            if await self._content_stays(node, place.before):
                self._objects[node.key] = place.before.inode
                await self._settle(node, place.before)
                return
        send = self._send_symlink if node.kind is Kind.SYMLINK else self._send_file
        inode = await send(node, place)
        if node.nlink > 1:
            self._objects[node.key] = inode
        self._report.add(node.kind)

    async def _content_stays(self, node: LocalNode, before: RemoteNode) -> bool:
        """Whether what is at the place has the type and content, and is shared with no object that differs."""
        if before.kind is not node.kind or (node.nlink == 1 and before.nlink > 1):
            return False
        if node.kind is Kind.SYMLINK:
            if os.readlink(node.path) != before.target:
                return False
        elif not await self._same_file(node, before):
            return False
        return self._kept_for.setdefault(before.inode, node.key) == node.key

    async def _same_file(self, node: LocalNode, before: RemoteNode) -> bool:
        if (node.size, node.mtime_ns) != (before.size, before.mtime_ns):
            return False
        if not self._checksum:
            return True
        with _opened(node.path) as descriptor:
            for offset in range(0, node.size, ops.CHUNK_BYTES):
                async with self._chunk_places:
                    data = await remote.read_range(self._client, before.inode, offset, ops.CHUNK_BYTES)
                    if data != os.pread(descriptor, ops.CHUNK_BYTES, offset):
                        return False
        return True

    async def _settle(self, node: LocalNode, before: RemoteNode) -> None:
        """Make the attributes of an object whose content stays those of the original."""
        there = {} if node.kind is Kind.SYMLINK else await remote.read_xattrs(self._client, before.inode)
        steps = ops.change_xattrs(before.inode, read_xattrs(node), there)
        same_mode = node.kind is Kind.SYMLINK or node.mode == before.mode
        if not same_mode or node.mtime_ns != before.mtime_ns:
            # An owner that shows as it should stays as it was written, by whichever site.
            owner = remote.change_owner(node.uid, node.gid, before)
            steps.append(ops.copy_attributes(node, before.inode) | owner)
        if not steps:
            self._report.skip(node.size)
            return
        await self._submit_few(steps)
        self._report.add(node.kind)

    async def _set_xattrs(self, inode: Inode, node: LocalNode) -> None:
        await self._submit_few(ops.change_xattrs(inode, read_xattrs(node), {}))

    async def _submit_few(self, steps: list[ops.Op]) -> None:
        """Operations with a value of up to 64 KiB each, in as many requests as they need."""
        for at in range(0, len(steps), ops.XATTRS_A_REQUEST):
            await remote.submit(self._client, steps[at : at + ops.XATTRS_A_REQUEST])

    async def _send_symlink(self, node: LocalNode, place: _Place) -> Inode:
        made = ops.make_symlink(
            place.parent,
            place.name,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns,
            target=os.readlink(node.path),
        )
        return (await remote.submit(self._client, [*_clear(place), made]))[-1]

    async def _send_file(self, node: LocalNode, place: _Place) -> Inode:
        """Fill a nameless file and name it.

        Raises:
            NotStill: the file did not hold still; nothing has its name.
        """
        with _opened(node.path) as descriptor:
            opened = node_of(node.path, os.fstat(descriptor))
            if opened.kind is not Kind.FILE:
                raise NotStill
            xattrs = read_xattrs(opened)
            if opened.size <= SMALL_BYTES_MAX and len(xattrs) <= ops.XATTRS_A_REQUEST:
                return await self._send_small(descriptor, opened, xattrs, place)
            return await self._send_large(descriptor, opened, place)

    async def _send_small(self, descriptor: int, node: LocalNode, xattrs: dict[bytes, bytes], place: _Place) -> Inode:
        data = os.pread(descriptor, node.size + 1, 0)
        _check_still(descriptor, node, len(data))
        steps = [_create(node), *ops.write(-1, 0, data)]
        if data:  # a Write moves the mtime
            steps.append(ops.copy_attributes(node, -1))
        steps += ops.change_xattrs(-1, xattrs, {})
        steps.append(ops.name_file(-1, place.parent, place.name))
        try:
            inode = (await remote.submit(self._client, steps))[0]
        except SubmitRefused as error:
            if error.done:
                await self._give_up(error.done[0])
            raise
        self._report.file_bytes += node.size
        return inode

    async def _send_large(self, descriptor: int, node: LocalNode, place: _Place) -> Inode:
        inode = (await remote.submit(self._client, [_create(node)]))[0]
        try:
            with self._report.content(node.size) as count:
                sent = await self._send_content(descriptor, node, inode, count)
                _check_still(descriptor, node, node.size)
                await self._set_xattrs(inode, node)
                steps = [ops.copy_attributes(node, inode), ops.name_file(inode, place.parent, place.name)]
                if sent < node.size:  # it ends in a hole
                    steps.insert(0, ops.truncate(inode, node.size))
                await remote.submit(self._client, steps)
        except (NotStill, OSError, OperationRefused):
            await self._give_up(inode)
            raise
        return inode

    async def _send_content(self, descriptor: int, node: LocalNode, inode: Inode, count: Callable[[int], None]) -> int:
        """The parts that hold data, several on their way at once; where the last of them ends.

        Raises:
            NotStill: it became shorter.
        """
        sent = 0

        async def send(offset: int, length: int) -> None:
            nonlocal sent
            data = os.pread(descriptor, length, offset)
            if len(data) != length:
                raise NotStill
            await remote.submit(self._client, ops.write(inode, offset, data))
            count(length)
            sent = max(sent, offset + length)

        await in_parts(_chunks(descriptor, node.size), send, self._chunk_places)
        return sent

    async def _give_up(self, inode: Inode) -> None:
        """A nameless file that will not be finished; the site would reclaim it by itself, but later."""
        with contextlib.suppress(OperationRefused):
            await remote.submit(self._client, [ops.give_up(inode)])

    async def _link_all(self, names: list[tuple[LocalNode, _Place]]) -> None:
        """The further names of one file, one after the other: if its first name failed, the next has the content."""
        for node, place in names:
            await self._guarded(node, self._link, node, place)

    async def _link(self, node: LocalNode, place: _Place) -> None:
        """A further name of a file; if its first name failed, this one carries the content."""
        inode = self._objects.get(node.key)
        if inode is None:
            await self._carry(node, place)
        elif place.before is not None and place.before.inode == inode:
            self._report.skip(0)
        elif place.before is not None and place.before.kind is Kind.DIR:
            self._report.problem(node.path, _in_the_way(place.before))
        else:
            await remote.submit(self._client, [*_clear(place), ops.link(inode, place.parent, place.name)])
            self._report.links += 1


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    """A file open for reading; never a link, and never waiting for the writer of a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _chunks(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    for start, end in data_ranges(descriptor, size):
        for offset in range(start, end, ops.CHUNK_BYTES):
            yield offset, min(ops.CHUNK_BYTES, end - offset)


def _check_still(descriptor: int, node: LocalNode, length: int) -> None:
    status = os.fstat(descriptor)
    if (status.st_size, status.st_mtime_ns) != (node.size, node.mtime_ns) or length != node.size:
        raise NotStill


def _in_the_way(before: RemoteNode) -> str:
    name = path_text(before.name or b"/")
    return f"a {before.kind.value} named {name} is in its place at the site: remove it and run put again"


def _create(node: LocalNode) -> ops.Op:
    return ops.create_nameless(mode=node.mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns)


def _make_directory_at(node: LocalNode, place: _Place) -> ops.Op:
    return ops.make_directory(
        place.parent,
        place.name,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns,
        exist_ok=True,
    )


def _clear(place: _Place) -> list[ops.Op]:
    """What frees the name, for objects that cannot replace another in one step."""
    return [ops.remove(place.parent, place.name)] if place.before is not None else []
