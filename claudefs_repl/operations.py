"""The eleven operations as values: what an entry's payload says, field by field, with each field's type and range.

An entry's `inode` is the object acted on; what is here is the rest. Times are nanoseconds since 1970, as `os.utime` takes
them. Names are bytes: 1 to 255 of anything but `/` and NUL, and neither `.` nor `..`. A parent is an inode number.

A file's names are a set of links (parent, name); a directory has one place. `parent` and `name` are both None for a file
that has no name yet: `put` fills such a file and names it at the end.
"""

from __future__ import annotations

import errno
from typing import Annotated

from msgspec import Meta, Struct

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import (
    DATA_BYTES_MAX,
    FILE_BYTES_MAX,
    NAME_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    Inode,
)

PAYLOAD_VERSION = 1
"""Of the fields below in their order, as they rest on disk and travel."""
INODE_MAX = (1 << 63) - 1
REPLACED_MAX = 64
"""One name shows one object, and its concurrent rivals as conflict names: a Rename never replaces more than a few."""

Mode = Annotated[int, Meta(ge=0, le=0o7777)]
UserOrGroup = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
TimeNs = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Length = Annotated[int, Meta(ge=0, le=FILE_BYTES_MAX)]
AnyInode = Annotated[Inode, Meta(ge=1, le=INODE_MAX)]
Name = Annotated[bytes, Meta(min_length=1, max_length=NAME_BYTES_MAX)]


class Payload(Struct, tag=PAYLOAD_VERSION, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """What an operation's payload says: an array that begins with its version. Values cannot be changed."""


class Create(Payload, frozen=True):
    """A regular file, empty."""

    mode: Mode
    uid: UserOrGroup
    gid: UserOrGroup
    mtime_ns: TimeNs
    parent: AnyInode | None
    name: Name | None


class MkDir(Payload, frozen=True):
    """A directory, placed."""

    mode: Mode
    uid: UserOrGroup
    gid: UserOrGroup
    mtime_ns: TimeNs
    parent: AnyInode
    name: Name


class Symlink(Payload, frozen=True):
    """A symbolic link with its target, which is not interpreted."""

    uid: UserOrGroup
    gid: UserOrGroup
    mtime_ns: TimeNs
    parent: AnyInode | None
    name: Name | None
    target: Annotated[bytes, Meta(max_length=SYMLINK_BYTES_MAX)]


class Link(Payload, frozen=True):
    """Another name for a file or symbolic link."""

    parent: AnyInode
    name: Name


class Unlink(Payload, frozen=True):
    """A name goes; for a directory, the directory goes. Without a name: a file that never had one is given up."""

    parent: AnyInode | None
    name: Name | None
    is_dir: bool


class Replaced(Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """An object whose link (or place) at a Rename's target goes with that Rename."""

    inode: AnyInode
    is_dir: bool


class Rename(Payload, frozen=True):
    """One name goes and another comes; `from_parent` and `from_name` are None for a file that had no name."""

    from_parent: AnyInode | None
    from_name: Name | None
    to_parent: AnyInode
    to_name: Name
    is_dir: bool
    replaced: Annotated[tuple[Replaced, ...], Meta(max_length=REPLACED_MAX)]


class Write(Payload, frozen=True):
    """Bytes at an offset; at most DATA_BYTES_MAX of them, and none beyond FILE_BYTES_MAX."""

    offset: Length
    data: Annotated[bytes, Meta(max_length=DATA_BYTES_MAX)]


class Truncate(Payload, frozen=True):
    """A new size; what lies beyond is a hole from then on."""

    length: Length


class SetAttr(Payload, frozen=True):
    """New values for the attributes that are not None."""

    mode: Mode | None
    uid: UserOrGroup | None
    gid: UserOrGroup | None
    mtime_ns: TimeNs | None

    @classmethod
    def only(
        cls, *, mode: int | None = None, uid: int | None = None, gid: int | None = None, mtime_ns: int | None = None
    ) -> SetAttr:
        """With just those that are named; a payload always tells of all four."""
        return cls(mode, uid, gid, mtime_ns)


class SetXattr(Payload, frozen=True):
    """An extended attribute gets a value. The name includes its namespace, as in `user.comment`."""

    name: Name
    value: Annotated[bytes, Meta(max_length=XATTR_VALUE_BYTES_MAX)]


class RemoveXattr(Payload, frozen=True):
    """An extended attribute goes."""

    name: Name


Operation = Create | Unlink | Rename | Write | Truncate | SetAttr | Link | Symlink | MkDir | SetXattr | RemoveXattr


def path_text(path: bytes) -> str:
    """A name or path for people: what is not UTF-8, or could steer a terminal, is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def check_name(name: bytes) -> None:
    """Refuse what cannot be the name of a directory entry.

    Raises:
        OperationRefused: EINVAL or ENAMETOOLONG.
    """
    if len(name) > NAME_BYTES_MAX:
        raise OperationRefused(
            errno.ENAMETOOLONG,
            f"a name has at most {NAME_BYTES_MAX} bytes, this one {len(name)}: {path_text(name[:40])}...",
        )
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OperationRefused(errno.EINVAL, f"not a name for a file: '{path_text(name)}'")
