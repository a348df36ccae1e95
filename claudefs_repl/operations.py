"""The eleven operations as values: what an entry's payload says.

An entry's `inode` is the object acted on; what is here is the rest. Times are nanoseconds since 1970, as `os.utime` takes
them. Names are bytes: 1 to 255 of anything but `/` and NUL, and neither `.` nor `..`. A parent is an inode number.

A file's names are a set of links (parent, name); a directory has one place. `parent` and `name` are both None for a file
that has no name yet: `put` fills such a file and names it at the end.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import NAME_BYTES_MAX, Inode


@dataclass(frozen=True, slots=True)
class Create:
    """A regular file, empty."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    parent: Inode | None
    name: bytes | None


@dataclass(frozen=True, slots=True)
class MkDir:
    """A directory, placed."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    parent: Inode
    name: bytes


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link with its target, which is not interpreted."""

    uid: int
    gid: int
    mtime_ns: int
    parent: Inode | None
    name: bytes | None
    target: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """Another name for a file or symbolic link."""

    parent: Inode
    name: bytes


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name goes; for a directory, the directory goes. Without a name: a file that never had one is given up."""

    parent: Inode | None
    name: bytes | None
    is_dir: bool


@dataclass(frozen=True, slots=True)
class Replaced:
    """An object whose link (or place) at a Rename's target goes with that Rename."""

    inode: Inode
    is_dir: bool


@dataclass(frozen=True, slots=True)
class Rename:
    """One name goes and another comes; `from_parent` and `from_name` are None for a file that had no name."""

    from_parent: Inode | None
    from_name: bytes | None
    to_parent: Inode
    to_name: bytes
    is_dir: bool
    replaced: tuple[Replaced, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset; at most DATA_BYTES_MAX of them."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A new size; what lies beyond is a hole from then on."""

    length: int


@dataclass(frozen=True, slots=True)
class SetAttr:
    """New values for the attributes that are not None."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class SetXattr:
    """An extended attribute gets a value. The name includes its namespace, as in `user.comment`."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class RemoveXattr:
    """An extended attribute goes."""

    name: bytes


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
