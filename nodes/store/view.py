"""Reading the namespace: names, attributes, content, over one connection and one snapshot of the store."""

from __future__ import annotations

import errno
import heapq
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import NAME_BYTES_MAX, ROOT_INODE, STAMP_BITS, Inode, JournalId, Shard, SiteId, Stamp
from claudefs_repl.operations import path_text
from nodes.store import digest
from nodes.store.claims import VISIBLE
from nodes.store.extents import data_runs
from nodes.store.schema import Kind, read_applied

READ_BYTES_MAX = 4 << 20
"""One read: what a client's frame carries, and what a reading thread may hold."""
PAGE_ROWS = 256
"""Rows of a directory that are fetched at a time."""
LIST_MAX = 10_000
"""Entries of one page of a directory."""
_CONFLICT = re.compile(rb"\.conflict-([0-9]+)-([0-9a-f]+)\Z")
_KIND_NAMES = {Kind.FILE: "file", Kind.DIR: "dir", Kind.SYMLINK: "symlink"}

_STAT = (
    "i.inode, i.kind, i.mode, i.uid, i.gid, i.mtime_ns, i.length, i.target, "
    "(SELECT e.high FROM extent e WHERE e.inode = i.inode AND e.data IS NOT NULL ORDER BY e.low DESC LIMIT 1), "
    "(SELECT count(DISTINCT quote(k.parent) || quote(k.name)) FROM link k WHERE k.inode = i.inode), "
    "max(i.made, i.uid_stamp), max(i.made, i.gid_stamp)"
)
_BY_INODE = f"""
SELECT {_STAT} FROM inode i WHERE i.inode = ? AND i.kind IS NOT NULL AND i.gone = 0
"""  # noqa: S608 -- joined from constants only
_CLAIMS = f"""
SELECT l.inode, max(l.stamp) AS latest FROM link l JOIN inode i ON i.inode = l.inode
WHERE l.parent = ? AND l.name = ? AND {VISIBLE} GROUP BY l.inode ORDER BY latest DESC
"""  # noqa: S608 -- joined from constants only
_PAGE = f"""
SELECT l.name, max(l.stamp), {_STAT} FROM link l JOIN inode i ON i.inode = l.inode
WHERE l.parent = ? AND l.name >= ? AND {VISIBLE} GROUP BY l.name ORDER BY l.name LIMIT ?
"""  # noqa: S608 -- joined from constants only
_NAMES_OF = f"""
SELECT DISTINCT l.parent, l.name FROM link l JOIN inode i ON i.inode = l.inode
WHERE l.inode = ? AND {VISIBLE} ORDER BY l.parent, l.name
"""  # noqa: S608 -- joined from constants only
_XATTRS = "SELECT name, value FROM xattr WHERE inode = ? AND value IS NOT NULL ORDER BY name"
_NAMELESS = (
    "SELECT inode FROM inode WHERE kind IN (1, 3) AND named = 0 AND gone = 0 AND inode BETWEEN ? AND ? "
    "AND substr(made, 9, 16) = ? ORDER BY inode"
)
_COUNTS = {
    "files": "SELECT count(*) FROM inode WHERE kind = 1 AND gone = 0",
    "dirs": "SELECT count(*) FROM inode WHERE kind = 2",
    "symlinks": "SELECT count(*) FROM inode WHERE kind = 3 AND gone = 0",
    "links": "SELECT count(*) FROM link",
    "runs": "SELECT count(*) FROM extent",
    "bytes": "SELECT coalesce(sum(high - low), 0) FROM extent WHERE data IS NOT NULL",
    "tombs": "SELECT count(*) FROM tomb",
    "moves": "SELECT count(*) FROM move",
    "dead_letters": "SELECT count(*) FROM dead_letter",
}


@dataclass(frozen=True, slots=True)
class Stat:
    """An object as a client sees it.

    Attributes:
        kind: `file`, `dir` or `symlink`.
        uid, gid: as they were written.
        size: bytes; of a symbolic link, those of its target; 0 for a directory.
        nlink: its names; 1 for a directory, as in file systems that do not count its children.
        target: of a symbolic link.
        parent: the directory in which it was found by name; None if it was asked for by number.
        name: the name that it shows there, which may be a conflict name.
        uid_origin, gid_origin: the sites that wrote these ids; None for those of the root that no entry has set.
    """

    inode: Inode
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    target: bytes | None
    parent: Inode | None
    name: bytes | None
    uid_origin: SiteId | None
    gid_origin: SiteId | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a shown name stands for: the object, and the name that its link really has."""

    inode: int
    name: bytes
    stamp: bytes


def conflict_name(name: bytes, origin: int, inode: int) -> bytes:
    """The name under which an object shows whose own name another object has."""
    suffix = b".conflict-%d-%x" % (origin, inode)
    return name[: NAME_BYTES_MAX - len(suffix)] + suffix


def is_conflict_name(name: bytes) -> bool:
    """Whether a name has the form of a conflict name, which clients cannot give."""
    return _CONFLICT.search(name) is not None


class View:
    """The namespace as one snapshot has it. Owned by whoever owns the connection; synchronous."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def applied(self) -> Cursors:
        """What has been folded into this snapshot."""
        return read_applied(self.connection)

    def open_dead_letters(self) -> int:
        """How many entries could not be decoded."""
        (count,) = self.connection.execute("SELECT count(*) FROM dead_letter").fetchone()
        return int(count)

    def resolve(self, path: bytes) -> Stat:
        """The object at an absolute path. Symbolic links are not followed.

        Raises:
            OperationRefused: EINVAL, ENOENT or ENOTDIR; the message names the path.
        """
        if not path.startswith(b"/"):
            raise OperationRefused(errno.EINVAL, f"not an absolute path: {path_text(path)}")
        found = self.stat(ROOT_INODE)
        for name in filter(None, path.split(b"/")):
            if found.kind != "dir":
                way = f"{path_text(path)}: {path_text(found.name or b'/')}"
                raise OperationRefused(errno.ENOTDIR, f"not a directory on the way to {way}")
            claim = self.find(found.inode, name)
            if claim is None:
                raise OperationRefused(errno.ENOENT, f"no such file or directory: {path_text(path)}")
            found = replace(self.stat(claim.inode), parent=found.inode, name=name)
        return found

    def stat(self, inode: int) -> Stat:
        """The object of a number.

        Raises:
            OperationRefused: ENOENT.
        """
        row = self.connection.execute(_BY_INODE, (inode,)).fetchone()
        if row is None:
            raise OperationRefused(errno.ENOENT, f"no such object: {inode:x}")
        return _stat(row, None, None)

    def find(self, parent: int, name: bytes) -> Claim | None:
        """What a name in a directory shows, None if nothing does."""
        first = self.connection.execute(_CLAIMS, (parent, name)).fetchone()
        if first is not None:
            return Claim(first[0], name, first[1])
        match = _CONFLICT.search(name)
        if match is None:
            return None
        inode = int(match[2], 16)
        if inode >> 63:
            return None
        for claim_parent, claim_name in self.names_of(inode):
            if claim_parent == parent:
                for shown, claim in self._losers(parent, claim_name):
                    if shown == name:
                        return claim
        return None

    def names_of(self, inode: int) -> list[tuple[int, bytes]]:
        """The (parent, name) pairs that an object claims."""
        return self.connection.execute(_NAMES_OF, (inode,)).fetchall()

    def shown_name(self, parent: int, name: bytes, inode: int) -> bytes:
        """The name under which an object that claims (parent, name) shows."""
        for shown, claim in self._losers(parent, name):
            if claim.inode == inode:
                return shown
        return name

    def list_dir(self, inode: int, *, after: bytes | None, limit: int) -> tuple[list[Stat], bool]:
        """A page of a directory in the byte order of the shown names, and whether there is more.

        Raises:
            OperationRefused: ENOENT or ENOTDIR.
        """
        self.check_dir(inode)
        page: list[Stat] = []
        for entry in self.walk_dir(inode, low=b"" if after is None else after + b"\0"):
            if len(page) == min(limit, LIST_MAX):
                return page, True
            page.append(entry)
        return page, False

    def walk_dir(self, inode: int, *, low: bytes = b"") -> Iterator[Stat]:
        """What a directory shows, in the byte order of the shown names, from the first that is not below `low`."""
        return heapq.merge(
            self._holders(inode, low), self._all_losers(inode, low), key=lambda entry: (entry.name, entry.inode)
        )

    def _holders(self, parent: int, low: bytes) -> Iterator[Stat]:
        # Page by page: a cursor left open in the middle would keep the connection at this snapshot.
        while rows := self.connection.execute(_PAGE, (parent, low, PAGE_ROWS)).fetchall():
            for name, _stamp, *row in rows:
                yield _stat(row, Inode(parent), name)
            low = rows[-1][0] + b"\0"

    def _all_losers(self, parent: int, low: bytes) -> list[Stat]:
        rows = self.connection.execute("SELECT name FROM contested WHERE parent = ? ORDER BY name", (parent,))
        losers = [
            replace(self.stat(claim.inode), parent=Inode(parent), name=shown)
            for (name,) in rows.fetchall()
            for shown, claim in self._losers(parent, name)
            if shown >= low
        ]
        return sorted(losers, key=lambda entry: (entry.name, entry.inode))

    def _losers(self, parent: int, name: bytes) -> list[tuple[bytes, Claim]]:
        """The claims to a name that do not have it, each with the name it shows instead."""
        rows = self.connection.execute(_CLAIMS, (parent, name)).fetchall()
        return [
            (conflict_name(name, Stamp.unpack(stamp).origin, inode), Claim(inode, name, stamp))
            for inode, stamp in rows[1:]
        ]

    def check_dir(self, inode: int) -> None:
        """Make sure that a directory is there to be listed or to be put into.

        Raises:
            OperationRefused: ENOENT or ENOTDIR.
        """
        row = self.connection.execute(
            "SELECT i.kind, t.is_shown FROM inode i LEFT JOIN trash t ON t.inode = i.inode "
            "WHERE i.inode = ? AND i.kind IS NOT NULL AND i.gone = 0",
            (inode,),
        ).fetchone()
        if row is None or (row[0] == Kind.DIR and row[1] == 0):
            raise OperationRefused(errno.ENOENT, f"no such directory: {inode:x}")
        if row[0] != Kind.DIR:
            raise OperationRefused(errno.ENOTDIR, f"not a directory: {inode:x}")

    def is_empty(self, directory: int) -> bool:
        """Whether a directory shows nothing."""
        return next(self._holders(directory, b""), None) is None

    def read(self, inode: int, offset: int, length: int) -> bytes:
        """Bytes of a file: holes are zeros, the end of the file cuts.

        Raises:
            OperationRefused: ENOENT, EISDIR, or EINVAL for a symbolic link or a range that cannot be.
        """
        found = self.stat(inode)
        if found.kind != "file":
            number = errno.EISDIR if found.kind == "dir" else errno.EINVAL
            raise OperationRefused(number, f"not a regular file: {inode:x}")
        if offset < 0 or not 0 <= length <= READ_BYTES_MAX:
            raise OperationRefused(errno.EINVAL, f"a read has 0 to {READ_BYTES_MAX} bytes, not {length} at {offset}")
        end = min(offset + length, found.size)
        if end <= offset:
            return b""
        content = bytearray(end - offset)
        for at, data in data_runs(self.connection, inode, offset, end):
            content[at - offset : at - offset + len(data)] = data
        return bytes(content)

    def xattrs(self, inode: int) -> dict[bytes, bytes]:
        """An object's extended attributes, by name."""
        return dict(self.connection.execute(_XATTRS, (inode,)))

    def nameless(self, journal: JournalId) -> list[Inode]:
        """What a site made without a name in a journal, and neither named nor gave up."""
        first = journal.origin << STAMP_BITS
        place = first, first + (1 << STAMP_BITS) - 1, Stamp(0, *journal, Shard(0), 0).pack()[8:24]
        return [inode for (inode,) in self.connection.execute(_NAMELESS, place)]

    def counts(self) -> dict[str, int]:
        """How much of each thing the store holds, hidden things included; reads every table through."""
        return {what: int(self.connection.execute(query).fetchone()[0]) for what, query in _COUNTS.items()}

    def tree_digest(self) -> bytes:
        """SHA-256 over the whole visible tree (`nodes.store.digest`)."""
        return digest.tree_digest(self)

    def manifest(self, after: bytes | None, limit: int) -> tuple[list[tuple[bytes, bytes]], bool]:
        """A page of (path, digest of the object there), in the order of the digest (`nodes.store.digest`)."""
        return digest.manifest(self, after, limit)


def _stat(row: Sequence[Any], parent: Inode | None, name: bytes | None) -> Stat:
    inode, kind, mode, uid, gid, mtime_ns, length, target, data_end, links, uid_stamp, gid_stamp = row
    match kind:
        case Kind.FILE:
            size = max(length, data_end or 0)
        case Kind.SYMLINK:
            size = len(target)
        case _:
            size = 0
    return Stat(
        inode=Inode(inode),
        kind=_KIND_NAMES[Kind(kind)],
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        size=size,
        nlink=1 if kind == Kind.DIR else links,
        target=target,
        parent=parent,
        name=name,
        uid_origin=Stamp.unpack(uid_stamp).origin if uid_stamp else None,
        gid_origin=Stamp.unpack(gid_stamp).origin if gid_stamp else None,
    )
