"""A site's tree as the file commands see it, over the client service.

Everything here works on whatever has the client's `call`, so that tests hand in a stand-in. An error that tells a POSIX
number is about one object and comes out as `OperationRefused`; any other (the site is gone, takes no writes) ends the
command.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import Inode
from claudefs_repl.operations import check_name, path_text
from nodes.client import ClientError
from nodes.commands.ops import Op, make_directory
from nodes.commands.tree import Kind

LIST_LIMIT = 1000
"""Entries of a directory in one answer: about 200 KiB, and few round trips even for large directories."""

AsyncStep = Callable[..., Awaitable[Any]]


class SiteClient(Protocol):
    """What the file commands need of a connection to a site."""

    async def call(self, method: str, /, **args: Any) -> Any:
        """Ask, and wait for the answer. Several tasks may ask at once."""


@dataclass(frozen=True, slots=True)
class RemoteNode:
    """One object of a site's tree at one moment; the fields are those of the client service's stat map.

    Attributes:
        size: bytes of a file, 0 for anything else.
        uid, gid: as the site shows them, or as they were written, by what was asked for.
        uid_origin, gid_origin: the ids of the sites that wrote them; None if none did.
    """

    inode: Inode
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    target: bytes | None
    parent: Inode | None
    name: bytes | None
    uid_origin: int | None
    gid_origin: int | None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> RemoteNode:
        """The object that a stat map tells of."""
        return cls(
            inode=Inode(answer["inode"]),
            kind=Kind(answer["kind"]),
            mode=answer["mode"],
            uid=answer["uid"],
            gid=answer["gid"],
            mtime_ns=answer["mtime_ns"],
            size=answer["size"] if answer["kind"] == Kind.FILE.value else 0,
            nlink=answer["nlink"],
            target=answer["target"],
            parent=answer["parent"],
            name=answer["name"],
            uid_origin=answer["uid_origin"],
            gid_origin=answer["gid_origin"],
        )


@dataclass(frozen=True, slots=True)
class RefusedNode:
    """An object whose attributes the site refuses to show, by its policy for ids that other sites wrote.

    Attributes:
        reason: the site's words, with what would map the id.
    """

    inode: Inode
    kind: Kind
    parent: Inode | None
    name: bytes | None
    reason: str

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> RefusedNode:
        """The object that such an entry of a list tells of."""
        return cls(Inode(answer["inode"]), Kind(answer["kind"]), answer["parent"], answer["name"], answer["refused"])


RemoteEntry = RemoteNode | RefusedNode
"""What a directory of a site holds."""


async def ask(client: SiteClient, method: str, **args: Any) -> Any:
    """Call a method; an error about one object becomes `OperationRefused`.

    Raises:
        OperationRefused: the site answered with a POSIX error.
        ClientError: it answered with any other error.
    """
    try:
        return await client.call(method, **args)
    except ClientError as error:
        if error.errno is not None and errno.errorcode.get(error.errno) == error.code:
            raise OperationRefused(error.errno, str(error)) from error
        raise


async def submit(client: SiteClient, steps: Sequence[Op]) -> list[Inode]:
    """Carry out operations in order, durable when this returns; the inode that each was about.

    If one is refused, those before it stand; the exception's `done` lists their inodes.

    Raises:
        SubmitRefused: an operation does not fit the tree.
        ClientError: the site takes no writes, or another error that is not about one object.
    """
    answer = await ask(client, "submit", ops=list(steps))
    inodes = [Inode(result[0]) for result in answer["results"]]
    error = answer["error"]
    if error is not None:
        raise SubmitRefused(error["errno"], error["message"], inodes)
    return inodes


class SubmitRefused(OperationRefused):
    """A submit stopped at an operation.

    Attributes:
        done: the inodes of the operations before it, which stand.
    """

    def __init__(self, errno: int, detail: str, done: list[Inode]) -> None:
        super().__init__(errno, detail)
        self.done = done


def split_path(path: bytes) -> list[bytes]:
    """The names that a path from the root passes; none for the root itself.

    Raises:
        OperationRefused: a part cannot be a name.
    """
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    for name in names:
        check_name(name)
    return names


def join_path(names: Sequence[bytes]) -> bytes:
    """The inverse of `split_path`."""
    return b"/" + b"/".join(names)


async def resolve(client: SiteClient, path: bytes, *, as_written: bool = False) -> RemoteNode:
    """The object at a path.

    Args:
        client: a connection to the site.
        path: from the root.
        as_written: with the ids as they were written; also for who does not look at ids, because nothing is refused then.

    Raises:
        OperationRefused: ENOENT or ENOTDIR, naming the path; EPERM, if the site refuses to show its attributes.
    """
    return RemoteNode.of(await ask(client, "resolve", path=join_path(split_path(path)), as_written=as_written))


async def resolve_if_there(client: SiteClient, path: bytes, *, as_written: bool = False) -> RemoteNode | None:
    """The object at a path, None if there is none.

    Raises:
        OperationRefused: something on the way is no directory; EPERM, as `resolve`.
    """
    try:
        return await resolve(client, path, as_written=as_written)
    except OperationRefused as error:
        if error.errno == errno.ENOENT:
            return None
        raise


async def resolve_entry(client: SiteClient, path: bytes, *, as_written: bool = False) -> RemoteEntry:
    """The object at a path, also if the site refuses to show its attributes.

    Raises:
        OperationRefused: ENOENT or ENOTDIR, naming the path.
    """
    try:
        return await resolve(client, path, as_written=as_written)
    except OperationRefused as error:
        if error.errno != errno.EPERM:
            raise
        node = await resolve(client, path, as_written=True)
        return RefusedNode(node.inode, node.kind, node.parent, node.name, str(error))


async def resolve_directory(client: SiteClient, path: bytes) -> RemoteNode:
    """The directory at a path.

    Raises:
        OperationRefused: there is none.
    """
    node = await resolve(client, path, as_written=True)
    if node.kind is not Kind.DIR:
        raise OperationRefused(errno.ENOTDIR, f"{path_text(path)} is a {node.kind.value}, not a directory")
    return node


async def list_pages(
    client: SiteClient, inode: Inode, *, as_written: bool = False
) -> AsyncGenerator[list[RemoteEntry], None]:
    """A directory's entries in bytes order of their names, page by page; with `as_written` none is refused.

    Use it under `contextlib.aclosing`.

    Raises:
        OperationRefused: it is no directory any more.
    """
    after: bytes | None = None
    while True:
        answer = await ask(client, "list", inode=inode, after=after, limit=LIST_LIMIT, as_written=as_written)
        page = [RefusedNode.of(entry) if "refused" in entry else RemoteNode.of(entry) for entry in answer["entries"]]
        yield page
        if not answer["more"] or not page:
            return
        after = page[-1].name


async def walk(
    client: SiteClient, root: RemoteEntry, *, as_written: bool = False
) -> AsyncGenerator[tuple[list[bytes], RemoteEntry], None]:
    """An object and all beneath it, parents first, names in bytes order; each with its path from `root` as names.

    Use it under `contextlib.aclosing`.
    """
    pending: list[tuple[list[bytes], RemoteEntry]] = [([], root)]
    while pending:
        path, node = pending.pop()
        yield path, node
        if node.kind is Kind.DIR:
            children = await list_all(client, node.inode, as_written=as_written)
            pending += [([*path, name], child) for name, child in reversed(children.items())]


async def list_all(client: SiteClient, inode: Inode, *, as_written: bool = False) -> dict[bytes, RemoteEntry]:
    """A directory's entries by name, in bytes order."""
    found: dict[bytes, RemoteEntry] = {}
    async with aclosing(list_pages(client, inode, as_written=as_written)) as pages:
        async for page in pages:
            found.update((node.name, node) for node in page if node.name is not None)
    return found


async def count(client: SiteClient, root: RemoteNode) -> tuple[int, int]:
    """Objects and file bytes beneath an object, itself included: what a progress bar needs."""
    objects = total_bytes = 0
    async with aclosing(walk(client, root)) as found:
        async for _, node in found:
            objects += 1
            total_bytes += node.size if isinstance(node, RemoteNode) else 0
    return objects, total_bytes


async def read_xattrs(client: SiteClient, inode: Inode) -> dict[bytes, bytes]:
    """An object's extended attributes."""
    answer: dict[bytes, bytes] = await ask(client, "xattrs", inode=inode)
    return dict(answer)


async def read_range(client: SiteClient, inode: Inode, offset: int, length: int) -> bytes:
    """A part of a file; shorter only at its end."""
    data: bytes = await ask(client, "read", inode=inode, offset=offset, length=length)
    return data


def change_owner(uid: int | None, gid: int | None, there: RemoteEntry) -> dict[str, int | None]:
    """The ids to set so that an object has an owner, of those that are not None: what it shows already stays as written.

    The id that a site shows may be what it maps another site's to; to write the same would make it this site's own.
    """
    shown = (there.uid, there.gid) if isinstance(there, RemoteNode) else (None, None)
    return {"uid": None if uid == shown[0] else uid, "gid": None if gid == shown[1] else gid}


async def make_parents(client: SiteClient, names: Sequence[bytes], *, uid: int, gid: int, now_ns: int) -> RemoteNode:
    """The directory at a path, made with its parents where they are missing.

    Raises:
        OperationRefused: something on the way is no directory.
    """
    for depth in range(len(names) + 1):
        path = join_path(names[:depth])
        found = await resolve_if_there(client, path, as_written=True)
        if found is None:
            break
        if found.kind is not Kind.DIR:
            raise OperationRefused(
                errno.ENOTDIR,
                f"{path_text(path)} is a {found.kind.value}, not a directory: choose another path or remove it",
            )
        node = found
    else:
        return node
    steps = []
    parent: int = node.inode
    for made, name in enumerate(names[depth - 1 :], start=1):
        steps.append(make_directory(parent, name, mode=0o755, uid=uid, gid=gid, mtime_ns=now_ns, exist_ok=True))
        parent = -made
    await submit(client, steps)
    return await resolve_directory(client, join_path(names))


class Workers:
    """Starts tasks in a nursery, at most so many at once: `start` waits for a free place.

    Several of them may share one set of places. Owned by the task that opened the nursery.
    """

    def __init__(self, nursery: trio.Nursery, *, limit: int = 1, places: trio.Semaphore | None = None) -> None:
        self._nursery = nursery
        self._places = places if places is not None else trio.Semaphore(limit)

    async def start(self, function: AsyncStep, *args: Any) -> None:
        """Run an async function with arguments as soon as there is a place."""
        await self._places.acquire()
        self._nursery.start_soon(self._run, function, args)

    async def _run(self, function: AsyncStep, args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        finally:
            self._places.release()


async def in_parts(
    ranges: Iterable[tuple[int, int]], step: Callable[[int, int], Awaitable[None]], places: trio.Semaphore
) -> None:
    """Run a step on each (offset, length), several at once; the ranges are drawn as there is a place.

    A failure keeps further steps from starting, and is raised when those under way have ended: to cancel them could
    cut a request in the middle, and the connection with it.

    Raises:
        OSError, OperationRefused, NotStill: what the first step that failed raised.
    """
    failures: list[Exception] = []

    async def run(offset: int, length: int) -> None:
        try:
            await step(offset, length)
        except (OSError, OperationRefused, NotStill) as error:
            failures.append(error)

    try:
        async with trio.open_nursery() as nursery:
            workers = Workers(nursery, places=places)
            for offset, length in ranges:
                await workers.start(run, offset, length)
                if failures:
                    break
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    if failures:
        raise failures[0]


class NotStill(Exception):
    """A file changed while it was read."""


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of several that ended a nursery: an interrupt before anything else, else the first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending = [*error.exceptions, *pending]
        else:
            leaves.append(error)
    return min(leaves, key=lambda leaf: (not isinstance(leaf, KeyboardInterrupt), isinstance(leaf, Exception)))
