"""Bringing the loser of a conflict back: ordinary operations, replicated as any others, and then its resolution.

What was begun and cut off is finished by running it again: each step is found done, or done again with the same effect.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import NAME_BYTES_MAX, ROOT_INODE, Inode
from claudefs_repl.operations import path_text
from nodes.commands import ops, remote
from nodes.commands.remote import RemoteNode, SiteClient, SubmitRefused
from nodes.commands.tree import Kind

Found = Mapping[str, Any]
"""A conflict, as the client service's `conflict` tells of it."""
Read = Callable[[int, int], Awaitable[bytes]]
"""Bytes at an offset of some content; fewer only at its end."""
KEPT_NAMES_MAX = 100
"""Names that are tried for what makes way."""
WAYS_MAX = 100
"""Objects that make way for one name."""
_ACCEPT_IT = "or accept the conflict as it is"
PLACED_KINDS = ("content", "name", "delete_modify")
"""The conflicts whose loser can be restored at another place than its own."""


async def restore_loser(client: SiteClient, found: Found, to: bytes | None, *, now_ns: int) -> str:
    """Restore what lost in a conflict, and settle it.

    Args:
        client: a connection to a site that takes writes.
        found: the conflict.
        to: the path of what is restored, instead of its own; for the kinds of `PLACED_KINDS`.
        now_ns: the time of day.

    Returns:
        what was done, in words.

    Raises:
        OperationRefused: the tree does not allow it any more; the message has the remedy. Nothing is settled.
        ClientError: the site takes no writes, or went away.
    """
    if found["resolution"] is not None:
        raise OperationRefused(errno.EALREADY, f"conflict {found['id']} is settled already: {found['resolution']}")
    if to is not None and found["kind"] not in PLACED_KINDS:
        kinds = ", ".join(PLACED_KINDS)
        raise OperationRefused(
            errno.EINVAL, f"--as goes with conflicts of {kinds}, not of {found['kind']}: restore it, then use mv or ln"
        )
    match found["kind"]:
        case "content":
            return await (_put_back(client, found) if to is None else _put_beside(client, found, to, now_ns))
        case "attribute" | "xattr":
            return await _set_value(client, found)
        case "name":
            return await _name(client, found, to)
        case "delete_modify":
            return await _bring_back(client, found, to)
        case "rmdir_create":
            return await _remove_directory(client, found)
        case "cycle":
            return await _move_directory(client, found)
    return await _undo_move(client, found)


async def accept(client: SiteClient, conflicts: Sequence[Found]) -> list[OperationRefused | None]:
    """Settle conflicts as they are, many with one sync.

    Returns:
        for each of them None, or why not: it is settled already, or gone.

    Raises:
        ClientError: the site takes no writes, or went away.
    """
    outcomes: list[OperationRefused | None] = []
    while len(outcomes) < len(conflicts):
        at_once = conflicts[len(outcomes) : len(outcomes) + ops.SUBMIT_OPS_MAX]
        try:
            done = await remote.submit(client, [_settle(found, "accepted") for found in at_once])
            outcomes += [None] * len(done)
        except SubmitRefused as refused:
            outcomes += [*([None] * len(refused.done)), refused]
    return outcomes


def _settle(found: Found, how: str) -> ops.Op:
    return {"op": "settle", "conflict": bytes.fromhex(found["id"]), "how": how}


async def _finish(client: SiteClient, found: Found, *steps: ops.Op) -> None:
    """The last steps, and the resolution with them: none is told without them."""
    await remote.submit(client, [*steps, _settle(found, "restored")])


async def _put_back(client: SiteClient, found: Found) -> str:
    lost = _kept_content(found)
    path = _own_path(found, "the file has no name any more; give it one with --as PATH")
    node = await _node(client, found["object"])
    restored = 0
    for low, high in lost["ranges"]:
        for at in range(low, high, ops.CHUNK_BYTES):
            data = await read_lost(client, found, at, min(ops.CHUNK_BYTES, high - at))
            if data:  # what lost may reach beyond the end that a truncate gave the file
                await remote.submit(client, ops.write(node.inode, at, data))
            restored += len(data)
    if lost["size"] < node.size:
        await _finish(client, found, ops.truncate(node.inode, lost["size"]))
        return f"{path} is cut to {lost['size']:,} bytes, {restored:,} bytes are put back"
    await _finish(client, found)
    return f"{restored:,} bytes are put back into {path}"


async def _put_beside(client: SiteClient, found: Found, to: bytes, now_ns: int) -> str:
    lost = _kept_content(found)
    parent, name = await _new_place(client, to)

    async def read(offset: int, length: int) -> bytes:
        return await read_lost(client, found, offset, length)

    node = replace(await _node(client, found["object"], as_written=False), size=lost["size"], mtime_ns=now_ns)
    naming = await _make_copy(client, node, read, parent.inode, name)
    with _free(to):
        await _finish(client, found, *naming)
    return f"{path_text(to)} is the file with what was lost, {lost['size']:,} bytes"


async def _make_copy(client: SiteClient, node: RemoteNode, read: Read, parent: int, name: bytes) -> list[ops.Op]:
    """Make a file, symbolic link or empty directory like another; the last steps, by which it gets its name, are left."""
    place = {"uid": node.uid, "gid": node.gid, "mtime_ns": node.mtime_ns}
    xattrs = await remote.read_xattrs(client, node.inode)
    if node.kind is Kind.DIR:
        made_dir = ops.make_directory(parent, name, mode=node.mode, exist_ok=False, **place)
        return [made_dir, *ops.change_xattrs(-1, xattrs, {})]
    if node.target is not None:
        return [ops.make_symlink(parent, name, target=node.target, **place), *ops.change_xattrs(-1, xattrs, {})]
    made = (await remote.submit(client, [ops.create_nameless(mode=node.mode, **place)]))[0]
    await remote.submit(client, [ops.truncate(made, node.size)])
    for at in range(0, node.size, ops.CHUNK_BYTES):
        data = await read(at, ops.CHUNK_BYTES)
        if data.count(0) < len(data):  # holes stay holes
            await remote.submit(client, ops.write(made, at, data))
    settings = ops.change_xattrs(made, xattrs, {})
    for at in range(0, len(settings), ops.XATTRS_A_REQUEST):
        await remote.submit(client, settings[at : at + ops.XATTRS_A_REQUEST])
    return [ops.set_attributes(made, mtime_ns=node.mtime_ns), ops.name_file(made, parent, name) | {"replace": False}]


async def _copy_of_removed(client: SiteClient, inode: int, parent: int, name: bytes) -> list[ops.Op]:
    """The last steps, which give a name to a copy of an object that has none any more.

    The object itself stays without one: another site may have given its content up, and could not show it.
    """
    node = await _node(client, inode, as_written=False)

    async def read(offset: int, length: int) -> bytes:
        return await remote.read_range(client, node.inode, offset, length)

    return await _make_copy(client, node, read, parent, name)


async def _set_value(client: SiteClient, found: Found) -> str:
    inode, detail, value = found["object"], found["detail"], found["value"]
    if inode != ROOT_INODE:
        _own_path(found, f"what the attribute is of has no name any more; {_ACCEPT_IT}")
    if found["kind"] == "attribute":
        await _finish(client, found, ops.set_attributes(inode, **{detail.decode(): value}))
        return f"{detail.decode()} of {_shown_path(found)} is {attribute_text(detail, value)}"
    if not found["is_kept"]:
        raise OperationRefused(errno.ENODATA, _given_up(found))
    if value is not None:
        await _finish(client, found, {"op": "setxattr", "inode": inode, "name": detail, "value": value})
        return f"{path_text(detail)} of {_shown_path(found)} has its {len(value):,} bytes again"
    is_there = detail in await remote.read_xattrs(client, inode)
    await _finish(client, found, *([{"op": "removexattr", "inode": inode, "name": detail}] if is_there else []))
    return f"{path_text(detail)} of {_shown_path(found)} is removed"


async def _name(client: SiteClient, found: Found, to: bytes | None) -> str:
    if to is not None:
        directory, name = await _new_place(client, to)
        with _free(to):
            await _finish(client, found, *await _naming(client, found, directory.inode, name))
        return f"what lost the name is {path_text(to)}"
    parent, name, path = _place(found)
    await _node(client, found["inode"])
    kept: list[bytes] = []
    for _ in range(WAYS_MAX):
        holder = await remote.resolve_if_there(client, path, as_written=True)
        if holder is None or holder.inode == found["inode"]:
            break
        kept.append(await _make_way(client, parent, name, found["id"]))
    found = await remote.ask(client, "conflict", id=found["id"])
    shows = any((one["parent"], one["name"]) == (parent, name) for one in found["names"])
    with _free(path):
        await _finish(client, found, *([] if shows else await _naming(client, found, parent, name)))
    beside = f"; what had it is {', '.join(map(path_text, kept))} in the same directory" if kept else ""
    return f"what lost the name is {path_text(path)}{beside}"


async def _naming(client: SiteClient, found: Found, parent: int, name: bytes) -> list[ops.Op]:
    """What gives an object a free name: a move from where it shows; if it shows nowhere, a copy gets it."""
    if found["names"]:
        shown = found["names"][0]
        return [ops.move(shown["parent"], shown["name"], parent, name, replace=False)]
    return await _copy_of_removed(client, found["inode"], parent, name)


async def _make_way(client: SiteClient, parent: int, name: bytes, conflict: str) -> bytes:
    """Move what shows a name to a free one beside it, so that nothing of it is lost."""
    for number in range(1, KEPT_NAMES_MAX + 1):
        suffix = b".replaced-" + conflict[:8].encode() + (b"" if number == 1 else b"-%d" % number)
        kept = name[: NAME_BYTES_MAX - len(suffix)] + suffix
        try:
            await remote.submit(client, [ops.move(parent, name, parent, kept, replace=False)])
        except OperationRefused as refused:
            if refused.errno != errno.EEXIST:
                raise
            continue
        return kept
    raise OperationRefused(errno.EEXIST, f"no name is free beside {path_text(name)} for what has it; choose --as PATH")


async def _bring_back(client: SiteClient, found: Found, to: bytes | None) -> str:
    if to is None:
        parent, name, to = _place(found)
    else:
        directory, name = await _new_place(client, to)
        parent = directory.inode
    naming = await _copy_of_removed(client, found["inode"], parent, name)
    with _free(to):
        await _finish(client, found, *naming)
    return f"{path_text(to)} is back with its changes"


async def _remove_directory(client: SiteClient, found: Found) -> str:
    if not found["names"]:
        await _finish(client, found)
        return "the directory is gone already"
    shown = found["names"][0]
    path = path_text(shown["path"])
    try:
        await _finish(client, found, ops.remove_directory(shown["parent"], shown["name"]))
    except OperationRefused as refused:
        if refused.errno != errno.ENOTEMPTY:
            raise
        raise OperationRefused(
            refused.errno, f"{path} holds something: move or remove that first; {_ACCEPT_IT}"
        ) from refused
    return f"{path} is removed"


async def _move_directory(client: SiteClient, found: Found) -> str:
    parent, name, path = _place(found)
    if found["names"]:
        shown = found["names"][0]
        try:
            with _free(path):
                step = ops.move(shown["parent"], shown["name"], parent, name, replace=False)
                await _finish(client, found, step)
        except OperationRefused as refused:
            if refused.errno != errno.EINVAL:
                raise
            raise OperationRefused(
                refused.errno,
                f"{path_text(path)} is still beneath {path_text(shown['path'])}: move it out of there first; "
                f"{_ACCEPT_IT}",
            ) from refused
        return f"{path_text(shown['path'])} is moved to {path_text(path)}"
    # It was empty when it was removed: one like it is all that was lost.
    with _free(path):
        await _finish(client, found, *await _copy_of_removed(client, found["inode"], parent, name))
    return f"{path_text(path)} is made again"


async def _undo_move(client: SiteClient, found: Found) -> str:
    """A rename or a removal lost to another: what that one did is undone."""
    is_dir = (await _node(client, found["inode"])).kind is Kind.DIR
    if found["place"] is None and is_dir:
        return await _remove_directory(client, found)
    if is_dir:
        return await _move_directory(client, found)
    won = found["winner_place"]
    if found["place"] is None:
        if won is None:
            raise OperationRefused(errno.ENOENT, f"the name that won is gone already; {_ACCEPT_IT}")
        await _finish(client, found, ops.remove(won["parent"], won["name"]))
        return f"{path_text(won['path'])} is removed"
    parent, name, path = _place(found)
    if found["is_placed"]:
        is_undone = found["kind"] == "move" and won is not None
        await _finish(client, found, *([ops.remove(won["parent"], won["name"])] if is_undone else []))
        removed = f"; {path_text(won['path'])} is removed" if is_undone else ""
        return f"{path_text(path)} stays{removed}"
    with _free(path):
        if won is not None:
            await _finish(client, found, ops.move(won["parent"], won["name"], parent, name, replace=False))
        elif found["names"]:
            await _finish(client, found, ops.link(found["inode"], parent, name))
        else:
            await _finish(client, found, *await _copy_of_removed(client, found["inode"], parent, name))
    return f"{path_text(path)} has the file again"


async def read_lost(client: SiteClient, found: Found, offset: int, length: int) -> bytes:
    """Bytes of the file with what a conflict of content lost put back; shorter only at its end."""
    data: bytes = await remote.ask(client, "lost", id=bytes.fromhex(found["id"]), offset=offset, length=length)
    return data


def attribute_text(detail: bytes, value: Any) -> str:
    """The value of an attribute, as people write it."""
    return f"{value:04o}" if detail == b"mode" and isinstance(value, int) else str(value)


async def _node(client: SiteClient, inode: int, *, as_written: bool = True) -> RemoteNode:
    """An object by number; one that is to be copied with the owner as it is shown, because the copy is this site's own."""
    try:
        return RemoteNode.of(await remote.ask(client, "stat", inode=inode, as_written=as_written))
    except OperationRefused as refused:
        if refused.errno != errno.ENOENT:
            raise
        raise OperationRefused(
            refused.errno, f"what lost is not kept here any more (object {inode:x}); another site may have it still"
        ) from refused


async def _new_place(client: SiteClient, path: bytes) -> tuple[RemoteNode, bytes]:
    names = remote.split_path(path)
    if not names:
        raise OperationRefused(errno.EINVAL, "--as names something in the root directory, not the root itself")
    directory = await remote.resolve_directory(client, remote.join_path(names[:-1]))
    with _free(path):
        if await remote.resolve_if_there(client, path, as_written=True) is not None:
            raise OperationRefused(errno.EEXIST, "taken")
    return directory, names[-1]


def _place(found: Found) -> tuple[Inode, bytes, bytes]:
    """The directory, name and path that the losing entry names."""
    place = found["place"]
    if place["path"] is None or not place["is_there"]:
        where = "" if place["path"] is None else f" {path_text(place['path'].rpartition(b'/')[0] or b'/')}"
        remedy = "give it another place with --as PATH" if found["kind"] in PLACED_KINDS else _ACCEPT_IT
        raise OperationRefused(errno.ENOENT, f"the directory{where} is gone; {remedy}")
    return Inode(place["parent"]), place["name"], place["path"]


def _kept_content(found: Found) -> Mapping[str, Any]:
    lost: Mapping[str, Any] | None = found["lost"]
    if lost is None:
        raise OperationRefused(errno.ENODATA, found["why_not"])
    return lost


def _own_path(found: Found, remedy: str) -> str:
    if not found["names"]:
        raise OperationRefused(errno.ENOENT, remedy)
    return path_text(found["names"][0]["path"])


def _shown_path(found: Found) -> str:
    return path_text(found["path"]) if found["path"] is not None else f"object {found['object']:x}"


def _given_up(found: Found) -> str:
    return f"the value that lost in conflict {found['id']} was given up here; another site may have it still"


@contextmanager
def _free(path: bytes) -> Iterator[None]:
    """Tells what to do when a path is not free."""
    try:
        yield
    except OperationRefused as refused:
        if refused.errno != errno.EEXIST:
            raise
        raise OperationRefused(
            errno.EEXIST, f"{path_text(path)} is taken: move away what is there, or choose another place"
        ) from refused
