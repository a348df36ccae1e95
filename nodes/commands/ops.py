"""Operations of a submit, as the client service takes them: the fields of the store's local operations, and `op`.

A negative inode -k is the inode of the k-th operation (from 1) of the same submit.
"""

from __future__ import annotations

from typing import Any

from claudefs_repl.journal import DATA_BYTES_MAX
from nodes.commands.tree import Kind, LocalNode

CHUNK_BYTES = 1 << 20
"""Data in one request: the most that the client service takes, and 16 Writes of the largest size."""
SUBMIT_OPS_MAX = 1024
"""Operations in one request, as the client service takes them."""
XATTRS_A_REQUEST = 8
"""Values are at most 64 KiB: eight of them beside a small file stay below the data of one request."""

Op = dict[str, Any]


def make_directory(parent: int, name: bytes, *, mode: int, uid: int, gid: int, mtime_ns: int, exist_ok: bool) -> Op:
    """A directory, placed; with `exist_ok` nothing happens if one is there."""
    return {
        "op": "mkdir",
        "parent": parent,
        "name": name,
        "mode": mode,
        "uid": uid,
        "gid": gid,
        "mtime_ns": mtime_ns,
        "exist_ok": exist_ok,
    }


def create_nameless(*, mode: int, uid: int, gid: int, mtime_ns: int) -> Op:
    """A file that gets its name when it is filled."""
    return {
        "op": "create",
        "parent": None,
        "name": None,
        "mode": mode,
        "uid": uid,
        "gid": gid,
        "mtime_ns": mtime_ns,
    }


def make_symlink(parent: int, name: bytes, *, uid: int, gid: int, mtime_ns: int, target: bytes) -> Op:
    """A symbolic link, placed."""
    return {
        "op": "symlink",
        "parent": parent,
        "name": name,
        "uid": uid,
        "gid": gid,
        "mtime_ns": mtime_ns,
        "target": target,
    }


def write(inode: int, offset: int, data: bytes) -> list[Op]:
    """Data at an offset, in pieces none of which is larger than a Write may be."""
    view = memoryview(data)
    return [
        {"op": "write", "inode": inode, "offset": offset + at, "data": bytes(view[at : at + DATA_BYTES_MAX])}
        for at in range(0, len(view), DATA_BYTES_MAX)
    ]


def truncate(inode: int, length: int) -> Op:
    """A new size."""
    return {"op": "truncate", "inode": inode, "length": length}


def set_attributes(
    inode: int, *, mode: int | None = None, uid: int | None = None, gid: int | None = None, mtime_ns: int | None = None
) -> Op:
    """New values for those that are not None."""
    return {"op": "setattr", "inode": inode, "mode": mode, "uid": uid, "gid": gid, "mtime_ns": mtime_ns}


def copy_attributes(node: LocalNode, inode: int) -> Op:
    """The attributes of a local object; a symbolic link has no mode of its own."""
    mode = None if node.kind is Kind.SYMLINK else node.mode
    return set_attributes(inode, mode=mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns)


def change_xattrs(inode: int, wanted: dict[bytes, bytes], existing: dict[bytes, bytes]) -> list[Op]:
    """What makes the existing extended attributes those that are wanted."""
    removals: list[Op] = [
        {"op": "removexattr", "inode": inode, "name": name} for name in sorted(existing.keys() - wanted.keys())
    ]
    settings: list[Op] = [
        {"op": "setxattr", "inode": inode, "name": name, "value": value}
        for name, value in wanted.items()
        if existing.get(name) != value
    ]
    return removals + settings


def name_file(inode: int, parent: int, name: bytes) -> Op:
    """A nameless file gets its name; what had the name goes with the same entry."""
    return {"op": "name", "inode": inode, "to_parent": parent, "to_name": name, "replace": True}


def link(inode: int, parent: int, name: bytes) -> Op:
    """One more name for a file or symbolic link."""
    return {"op": "link", "inode": inode, "parent": parent, "name": name}


def remove(parent: int, name: bytes) -> Op:
    """The name of a file or symbolic link goes."""
    return {"op": "remove", "parent": parent, "name": name}


def remove_directory(parent: int, name: bytes) -> Op:
    """An empty directory goes."""
    return {"op": "rmdir", "parent": parent, "name": name}


def give_up(inode: int) -> Op:
    """A nameless file will not be finished."""
    return {"op": "give_up", "inode": inode}


def move(from_parent: int, from_name: bytes, to_parent: int, to_name: bytes, *, replace: bool) -> Op:
    """A name goes and another comes."""
    return {
        "op": "move",
        "from_parent": from_parent,
        "from_name": from_name,
        "to_parent": to_parent,
        "to_name": to_name,
        "replace": replace,
    }
