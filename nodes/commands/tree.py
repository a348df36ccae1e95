"""A local tree as `put`, `get` and `compare` see it: what an object is, not where its bytes lie on the disk.

Paths are bytes throughout, because a name need not be UTF-8. Nothing here follows a symbolic link.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

XATTR_PREFIX = b"user."
"""The only namespace whose attributes are the user's own: the others belong to the kernel or to root."""
_NO_XATTRS = frozenset({errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EACCES})
"""What a file system, or an object on it, answers that keeps no attributes for this user."""


class Kind(enum.Enum):
    """What an object is. The values are the words of the client service."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    SPECIAL = "special"


_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIR, stat.S_IFLNK: Kind.SYMLINK}
_SPECIAL_NAMES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass(frozen=True, slots=True)
class LocalNode:
    """One object of a local tree at one moment.

    Attributes:
        path: as it was reached.
        kind: `SPECIAL` is whatever a site does not carry.
        mode: permission bits, 0 to 0o7777.
        mtime_ns: nanoseconds since 1970.
        size: bytes of a file, 0 for anything else.
        nlink: names of the object anywhere on its file system.
        key: (device, inode number): equal for two names of one object.
        special: what a special file is, in words; empty otherwise.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    key: tuple[int, int]
    special: str = ""

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return os.path.basename(self.path)

    def refusal(self) -> Problem:
        """Why a special file is not carried."""
        return Problem(self.path, f"{self.special} is no file that a site can carry")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was not carried over.

    Attributes:
        path: what it is about.
        reason: why, and what to do if that is not plain.
    """

    path: bytes
    reason: str


def node_of(path: bytes, status: os.stat_result) -> LocalNode:
    """The object that a stat result tells of."""
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), Kind.SPECIAL)
    return LocalNode(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if kind is Kind.FILE else 0,
        nlink=status.st_nlink,
        key=(status.st_dev, status.st_ino),
        special=_SPECIAL_NAMES.get(stat.S_IFMT(status.st_mode), "a special file") if kind is Kind.SPECIAL else "",
    )


def look(path: bytes) -> LocalNode:
    """The object at a path, not following a symbolic link.

    Raises:
        OSError: there is none, or it cannot be reached.
    """
    return node_of(path, os.lstat(path))


def look_if_there(path: bytes) -> LocalNode | None:
    """The object at a path, None if there is none.

    Raises:
        OSError: it cannot be reached.
    """
    try:
        return look(path)
    except FileNotFoundError:
        return None


def scan_directory(path: bytes) -> tuple[list[LocalNode], list[Problem]]:
    """What a directory holds, in bytes order of the names, and what vanished while it was looked at.

    Raises:
        OSError: the directory itself cannot be read.
    """
    with os.scandir(path) as entries:
        paths = sorted(entry.path for entry in entries)
    nodes: list[LocalNode] = []
    problems: list[Problem] = []
    for child in paths:
        try:
            nodes.append(look(child))
        except OSError as error:
            problems.append(Problem(child, describe(error)))
    return nodes, problems


def walk(root: LocalNode) -> Iterator[LocalNode]:
    """A node and all that is beneath it, parents first. What vanishes or cannot be read is left out.

    For counting and for comparing trees at rest; `put` scans each directory itself, so that it can report.
    """
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        if node.kind is Kind.DIR:
            with contextlib.suppress(OSError):
                pending += reversed(scan_directory(node.path)[0])


def count(root: LocalNode) -> tuple[int, int]:
    """Objects and file bytes beneath a node, itself included: what a progress bar needs."""
    objects = total_bytes = 0
    for node in walk(root):
        objects += 1
        total_bytes += node.size
    return objects, total_bytes


def read_xattrs(node: LocalNode) -> dict[bytes, bytes]:
    """The user's extended attributes; none on a file system without them, and none of a symbolic link.

    Raises:
        OSError: the object vanished.
    """
    if node.kind is Kind.SYMLINK:
        return {}
    try:
        names = [os.fsencode(name) for name in os.listxattr(node.path, follow_symlinks=False)]
        return {
            name: os.getxattr(node.path, name, follow_symlinks=False)
            for name in sorted(names)
            if name.startswith(XATTR_PREFIX)
        }
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return {}
        raise


def write_xattrs(path: bytes, wanted: dict[bytes, bytes], existing: dict[bytes, bytes]) -> bool:
    """Make an object's user attributes those that are wanted; whether its file system keeps them.

    Raises:
        OSError: anything but a file system without extended attributes.
    """
    try:
        for name in existing.keys() - wanted.keys():
            os.removexattr(path, name, follow_symlinks=False)
        for name, value in wanted.items():
            if existing.get(name) != value:
                os.setxattr(path, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return False
        raise
    return True


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts (start, end) of a file that hold data, in order; the whole file where holes are not told."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            start, end = position, size
        if start >= size:
            return
        yield start, end
        position = end


def describe(error: OSError) -> str:
    """An operating system's error in the words of a report."""
    if isinstance(error, FileNotFoundError):
        return "it vanished while it was looked at"
    if isinstance(error, PermissionError):
        return "permission denied: run this as a user who may read and write it"
    return (error.strerror or str(error)).lower()
