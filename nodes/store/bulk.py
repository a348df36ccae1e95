"""The short way for what most entries do: appends to files, new files that are filled and named, attributes that are set.

What these write is gathered and written many rows at a time. Whatever else comes takes the long way, after what is
gathered; so nothing here needs to know the rules of judging, only to recognise that none of them can matter: nothing is
remembered of the object or directory, nobody else claims the name, no run of the file lies beyond the append. Attributes
are judged as on the long way, but against what was looked up for the whole block.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from claudefs_repl.operations import Create, SetAttr, Symlink
from nodes.store.attributes import FIELDS_OF, SET_FIELD, judge_attributes
from nodes.store.causality import Cause
from nodes.store.conflicts import Facet
from nodes.store.judge import Judge
from nodes.store.schema import SYMLINK_MODE, Kind, Named

_IN_ONE_QUERY = 200
_IN_SMALL_QUERY = 8
"""Values of one look-up; SQLite compiles as many forms of the query as there are lengths, so there are two."""
_OBJECTS_BETWEEN = "SELECT inode FROM inode WHERE inode BETWEEN ? AND ? LIMIT ?"
_CLAIMS_BETWEEN = (
    "SELECT parent, name FROM link WHERE (parent, name) >= (?1, ?2) AND (parent, name) <= (?3, ?4) UNION ALL "
    "SELECT parent, name FROM move WHERE parent IS NOT NULL "
    "AND (parent, name) >= (?1, ?2) AND (parent, name) <= (?3, ?4) LIMIT ?5"
)
_OBJECTS = "SELECT inode FROM inode WHERE inode IN ({})"
_CLAIMS = (
    "WITH asked(parent, name) AS (VALUES {}) SELECT parent, name FROM asked a WHERE "
    "EXISTS (SELECT 1 FROM link l WHERE l.parent = a.parent AND l.name = a.name) "
    "OR EXISTS (SELECT 1 FROM move m WHERE m.parent = a.parent AND m.name = a.name)"
)
_FIELDS = f"SELECT inode, {FIELDS_OF} FROM inode WHERE inode IN ({{}})"  # noqa: S608 -- joined from constants only
_LAST_END = "SELECT high FROM extent WHERE inode = ? ORDER BY low DESC LIMIT 1"
_IN_ONE_INSERT = 32
"""Rows of one statement: a quarter less time than one by one. Not for runs: SQLite would copy their bytes once more."""
_ADD_RUN = "INSERT INTO extent(inode, low, high, stamp, data) VALUES (?, ?, ?, ?, ?)"
_ADD_FILES = (
    "INSERT INTO inode(inode, kind, made, mode, uid, gid, mtime_ns, named) VALUES ",
    f"(?, {Kind.FILE}, ?, ?, ?, ?, ?, {Named.BY_MAKER})",
)
"""What every named file begins with is not bound again for each: a bound value costs as much as a stored one."""
_ADD_OBJECTS = (
    "INSERT INTO inode(inode, kind, made, target, mode, uid, gid, mtime_ns, mtime_stamp, named, named_stamp) VALUES ",
    "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
)
_ADD_LINKS = "INSERT INTO link(parent, name, inode, stamp, is_dir) VALUES ", "(?, ?, ?, ?, 0)"


class NewObject(NamedTuple):
    """A file or symbolic link as its making tells it; later entries may give it a time, or a name if it has none."""

    inode: int
    kind: Kind
    made: bytes
    target: bytes | None
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    mtime_stamp: bytes
    named: Named
    named_stamp: bytes


_NewFile = tuple[int, bytes, int, int, int, int]
"""A file that was made with its name, and not changed since: inode, stamp, mode, uid, gid, mtime_ns."""


class Bulk:
    """What is gathered of one transaction. Owned by its `Fold`.

    Every `add_` returns whether it took the change; if not, the caller flushes and goes the long way.
    """

    def __init__(self, connection: sqlite3.Connection, judge: Judge) -> None:
        self._connection = connection
        self._judge = judge
        self._ends: dict[int, int] = {}
        self._runs: list[tuple[int, int, int, bytes, bytes]] = []
        self._files: dict[int, _NewFile] = {}
        self._objects: dict[int, NewObject] = {}
        self._links: list[tuple[int, bytes, int, bytes]] = []
        self._known: set[int] = set()
        self._taken: set[tuple[int, bytes]] = set()
        self._quiet: set[int] = set()
        self._fields: dict[int, list[Any]] = {}
        self._settings: dict[str, list[tuple[int, int, bytes]]] = {field: [] for field in SET_FIELD}

    def begin(self, makings: list[int], claims: list[tuple[int, bytes]], changed: list[int]) -> None:
        """Look up together what the entries of a block will ask for.

        Args:
            makings: objects that they make.
            claims: names that they claim.
            changed: objects whose attributes they set.
        """
        self._flush_settings()
        self._fields = {inode: fields for inode, *fields in self._look_up(_FIELDS, 1, changed)}
        self._known.update(inode for (inode,) in self._found(_OBJECTS_BETWEEN, _OBJECTS, 1, makings))
        self._taken.update(self._found(_CLAIMS_BETWEEN, _CLAIMS, 2, claims))

    def add_run(self, inode: int, offset: int, data: bytes, stamp: bytes) -> bool:
        """Bytes are written behind everything that a file has."""
        if self._judge.watched.has(inode, Facet.DATA):
            return False
        end = self._ends.get(inode)
        if end is None:
            is_new = inode in self._files or inode in self._objects
            row = None if is_new else self._connection.execute(_LAST_END, (inode,)).fetchone()
            end = self._ends[inode] = 0 if row is None else row[0]
        if offset < end or not data:
            return False
        high = self._ends[inode] = offset + len(data)
        self._runs.append((inode, offset, high, stamp, data))
        return True

    def add_file(self, inode: int, made: Create, stamp: bytes) -> bool:
        """A file is made, of which nobody has told before."""
        mode, uid, gid, mtime_ns, parent, name = made.mode, made.uid, made.gid, made.mtime_ns, made.parent, made.name
        if not self._add_making(inode, parent, name, stamp):
            return False
        if parent is not None:
            self._files[inode] = inode, stamp, mode, uid, gid, mtime_ns
        else:
            self._objects[inode] = NewObject(
                inode, Kind.FILE, stamp, None, mode, uid, gid, mtime_ns, b"", Named.NOT, b""
            )
        return True

    def add_symlink(self, inode: int, made: Symlink, stamp: bytes) -> bool:
        """Likewise a symbolic link."""
        uid, gid, mtime_ns, target = made.uid, made.gid, made.mtime_ns, made.target
        if not self._add_making(inode, made.parent, made.name, stamp):
            return False
        named = Named.NOT if made.parent is None else Named.BY_MAKER
        self._objects[inode] = NewObject(
            inode, Kind.SYMLINK, stamp, target, SYMLINK_MODE, uid, gid, mtime_ns, b"", named, b""
        )
        return True

    def name_object(self, inode: int, place: tuple[int, bytes], stamp: bytes) -> bool:
        """A file that was made here without a name gets one."""
        made = self._objects.get(inode)
        if made is None or made.named or not self._add_link(place, inode, stamp):
            return False
        self._objects[inode] = made._replace(named=Named.BY_MAKER, named_stamp=stamp)
        return True

    def set_mtime(self, inode: int, mtime_ns: int, stamp: bytes) -> bool:
        """A file that was made here and has no name gets a time."""
        made = self._objects.get(inode)
        return made is not None and not made.named and self.touch(inode, mtime_ns, stamp)

    def touch(self, inode: int, mtime_ns: int, stamp: bytes) -> bool:
        """A file that was made here gets a time, if the change is the latest."""
        file = self._files.pop(inode, None)
        if file is not None:
            made = NewObject(inode, Kind.FILE, file[1], None, *file[2:], b"", Named.BY_MAKER, b"")
            self._objects[inode] = made
        elif inode in self._objects:
            made = self._objects[inode]
        else:
            return False
        if max(made.made, made.mtime_stamp) < stamp:
            self._objects[inode] = made._replace(mtime_ns=mtime_ns, mtime_stamp=stamp)
        return True

    def set_attributes(self, cause: Cause, inode: int, fields: SetAttr) -> bool:
        """Attributes are set of an object of which they were looked up, and which nothing has changed since."""
        row = self._fields.pop(inode, None)
        if row is None:
            return False
        judge_attributes(self._judge, cause, inode, fields, row)
        for settings, value in zip(
            self._settings.values(), (fields.mode, fields.uid, fields.gid, fields.mtime_ns), strict=True
        ):
            if value is not None:
                settings.append((inode, value, cause.packed))
        return True

    def flush(self, inode: int | None = None, place: tuple[int, bytes] | None = None) -> None:
        """Insert what is gathered, before an object is changed on the long way, and perhaps claims a name.

        What was looked up of them for the block does not hold any more.
        """
        # In the tables' orders: shards come one after another, and their rows lie between each other.
        if self._files:
            self._insert(_ADD_FILES, sorted(self._files.values()))
            self._files.clear()
        if self._objects:
            self._insert(_ADD_OBJECTS, sorted(self._objects.values()))
            self._objects.clear()
        if self._links:
            self._insert(_ADD_LINKS, sorted(self._links))
            self._links.clear()
        if self._runs:
            self._connection.executemany(_ADD_RUN, self._runs)
            self._runs.clear()
        self._flush_settings()
        self._quiet.clear()
        if inode is not None:
            self._fields.pop(inode, None)
            self._ends.pop(inode, None)
            self._known.add(inode)
        if place is not None:
            self._taken.add(place)

    def _flush_settings(self) -> None:
        for field, settings in self._settings.items():
            if settings:
                self._connection.executemany(SET_FIELD[field], settings)
                settings.clear()

    def _add_making(self, inode: int, parent: int | None, name: bytes | None, stamp: bytes) -> bool:
        if inode in self._known:
            return False
        if parent is not None and name is not None and not self._add_link((parent, name), inode, stamp):
            return False
        self._known.add(inode)
        return True

    def _add_link(self, place: tuple[int, bytes], inode: int, stamp: bytes) -> bool:
        if place in self._taken or (place[0] not in self._quiet and not self._is_quiet(place[0])):
            return False
        self._taken.add(place)
        self._links.append((*place, inode, stamp))
        return True

    def _is_quiet(self, directory: int) -> bool:
        """Whether a claim there can meet nothing but other claims, until something takes the long way."""
        judge = self._judge
        if judge.has_tombs or judge.has_trash or judge.is_name_watched(directory):
            return False
        self._quiet.add(directory)
        return True

    def _insert(self, statement: tuple[str, str], rows: Sequence[tuple[Any, ...]]) -> None:
        into, row = statement
        whole = len(rows) - len(rows) % _IN_ONE_INSERT
        if whole:
            flat = list(chain.from_iterable(rows[:whole]))
            width = len(rows[0]) * _IN_ONE_INSERT
            many = into + ", ".join([row] * _IN_ONE_INSERT)
            self._connection.executemany(many, [flat[at : at + width] for at in range(0, len(flat), width)])
        if whole < len(rows):
            self._connection.executemany(into + row, rows[whole:])

    def _found(self, between: str, exactly: str, width: int, asked: list[Any]) -> list[Any]:
        """Those of some keys that are in a table, and perhaps others."""
        if not asked:
            return []
        # What is made together lies together, and mostly nothing lies between: one look tells so.
        low, high = min(asked), max(asked)
        bounds = (low, high) if width == 1 else (*low, *high)
        found = self._connection.execute(between, (*bounds, len(asked))).fetchall()
        return found if len(found) < len(asked) else self._look_up(exactly, width, asked)

    def _look_up(self, query: str, width: int, values: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        mark = "?" if width == 1 else f"({', '.join('?' * width)})"
        size = _IN_ONE_QUERY if len(values) > _IN_SMALL_QUERY else _IN_SMALL_QUERY
        for begin in range(0, len(values), size):
            part = list(values[begin : begin + size])
            # Filled up with its last value, so that its form is one of the two.
            part += [part[-1]] * (size - len(part))
            flat = part if width == 1 else list(chain.from_iterable(part))
            found += self._connection.execute(query.format(", ".join([mark] * size)), flat).fetchall()
        return found
