"""The conflict list: which changes lost to a concurrent one, and what is needed to bring them back.

There is one conflict for each losing entry and target. It exists when some entry on that target is concurrent with the
loser and wins over it; the winner shown is the latest such. A loser that a later entry of its own journal with the same
`seen` covers is left out, so that two partitions of a thousand writes are not a million conflicts. Like the tree, the
list is a function of the set of entries that are folded; a conflict's id is a hash of target and loser, equal at every site.

| kind          | target                    | who loses                                                              |
|---------------|---------------------------|------------------------------------------------------------------------|
| content       | a file's bytes            | the earlier of two overlapping writes or truncates, piece by piece      |
| attribute     | mode, uid, gid or mtime   | the earlier of two settings                                            |
| xattr         | an extended attribute     | the earlier of two settings or removals                                |
| name          | (directory, name)         | the earlier of two claims of different objects                         |
| move          | a link, or a directory's place | the earlier of two renames to different places; a file keeps both names |
| move_delete   | the same                  | the earlier of a rename and a removal                                  |
| delete_modify | an object's being there   | the modification, whichever came first; it is told while no name is left |
| rmdir_create  | a directory's being empty | the removal, whichever came first: the directory stays                  |
| cycle         | a directory's place       | the rename that would have closed a cycle                              |
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Container, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from nodes.store.causality import Cause, is_same_journal
from nodes.store.schema import bind_as
from nodes.store.watched import Watched

ID_BYTES = 8


class Facet(IntEnum):
    """What of an object, or in a directory, changes can compete for."""

    DATA = 1
    FIELD = 2
    XATTR = 3
    NAME = 4
    LINK = 5
    BEING = 6
    REMOVED = 7
    EMPTY = 8
    PLACE = 9


class ConflictKind(IntEnum):
    """Kinds of conflicts; the table above tells what they mean."""

    CONTENT = 1
    ATTRIBUTE = 2
    XATTR = 3
    NAME = 4
    MOVE = 5
    MOVE_DELETE = 6
    DELETE_MODIFY = 7
    RMDIR_CREATE = 8
    CYCLE = 9


bind_as(Facet, int)
bind_as(ConflictKind, int)


class Target(NamedTuple):
    """What two changes compete for.

    Attributes:
        object: an inode number: the object's, or the directory's for `Facet.NAME` and `Facet.EMPTY`.
        facet: of it.
        detail: which field, attribute, name or link; empty where there is one only.
    """

    object: int
    facet: Facet
    detail: bytes


class Loser(NamedTuple):
    """An entry that lost, with what brings it back.

    Attributes:
        stamp: packed.
        run: the name of its run.
        inode: the object that it acts on.
        parent: the directory that it names, or whose link it is about.
        name: likewise.
        value: what it would have set.
    """

    stamp: bytes
    run: bytes
    inode: int
    parent: int | None = None
    name: bytes | None = None
    value: Any = None


_HEAD = struct.Struct(">QBI")
_INSERT = (
    "INSERT INTO conflict(id, object, facet, detail, kind, loser, run, winner, inode, parent, name, value) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)
_RAISE = "UPDATE conflict SET kind = ?2, winner = ?3, parent = ?4, name = ?5 WHERE id = ?1 AND winner < ?3"
_DECIDE = "UPDATE conflict SET kind = ?2, winner = ?3 WHERE id = ?1"
_OF_TARGET = "SELECT id, loser FROM conflict WHERE object = ? AND facet = ? AND detail = ? ORDER BY id"
_OF_RUN = "SELECT id, loser FROM conflict WHERE object = ? AND facet = ? AND detail = ? AND run = ? ORDER BY id"
_DROP = "DELETE FROM conflict WHERE id = ?"
_PIECES = "SELECT low, high, winner, data FROM piece WHERE conflict = ? AND low < ? AND high > ? ORDER BY low"
_DROP_PIECES = "DELETE FROM piece WHERE conflict = ? AND low < ? AND high > ?"
_ADD_PIECE = "INSERT INTO piece VALUES (?, ?, ?, ?, ?)"
_LATEST_PIECE = "SELECT max(winner) FROM piece WHERE conflict = ?"


def conflict_id(target: Target, loser: bytes) -> bytes:
    """The number of a conflict, equal at every site."""
    whole = hashlib.sha256(_HEAD.pack(target.object, target.facet, len(target.detail)))
    whole.update(target.detail)
    whole.update(loser)
    return whole.digest()[:ID_BYTES]


class ConflictList:
    """Writes the list. Owned by the `Fold` that is open.

    Attributes:
        found: ids of the conflicts that this fold brought, in order; some may be gone again.
    """

    def __init__(self, connection: sqlite3.Connection, watched: Watched) -> None:
        """`watched` is told of each object that has a conflict."""
        self._connection = connection
        self._watched = watched
        self.found: dict[bytes, None] = {}

    def lose(self, target: Target, kind: ConflictKind, loser: Loser, winner: bytes) -> bytes:
        """An entry has lost to another, or to one more; the conflict's id."""
        number = conflict_id(target, loser.stamp)
        row = (number, *target, kind, loser.stamp, loser.run, winner, *loser[2:])
        if self._connection.execute(_INSERT, row).rowcount:
            self._watched.add_conflict(target.object, target.facet)
            self.found[number] = None
        else:
            self._connection.execute(_RAISE, (number, kind, winner, loser.parent, loser.name))
        return number

    def decide(
        self, target: Target, losers: Mapping[bytes, tuple[ConflictKind, Loser, bytes]], judged: Container[bytes]
    ) -> None:
        """Some entries were judged anew: those that lose, by stamp, with kind and winner; the others lose no more."""
        for number, loser in self.of_target(target).items():
            if loser in judged and loser not in losers:
                self.drop(number)
        for kind, lost, winner in losers.values():
            number = self.lose(target, kind, lost, winner)
            self._connection.execute(_DECIDE, (number, kind, winner))

    def lose_piece(self, target: Target, loser: Loser, winner: bytes, low: int, high: int, data: bytes | None) -> None:
        """Bytes of a write, or of a hole (`data` is None), have lost to another write or hole."""
        number = self.lose(target, ConflictKind.CONTENT, loser, winner)
        position = low
        for piece_low, piece_high, piece_winner, piece_data in self._cut_out(number, low, high):
            if piece_low > position:
                self._add_piece(number, position, piece_low, winner, data, low)
            self._connection.execute(_ADD_PIECE, (number, piece_low, piece_high, max(winner, piece_winner), piece_data))
            position = piece_high
        if position < high:
            self._add_piece(number, position, high, winner, data, low)

    def cover(self, target: Target, cause: Cause) -> None:
        """Leave out the losers of a target that a later entry of their own run covers."""
        for number in self._covered(target, cause):
            self.drop(number)

    def cover_pieces(self, target: Target, cause: Cause, low: int, high: int) -> None:
        """Leave out the bytes of losers that a later entry of their own run writes again."""
        for number in self._covered(target, cause):
            self._cut_out(number, low, high)
            (winner,) = self._connection.execute(_LATEST_PIECE, (number,)).fetchone()
            if winner is None:
                self.drop(number)
            else:
                self._connection.execute("UPDATE conflict SET winner = ? WHERE id = ?", (winner, number))

    def _covered(self, target: Target, cause: Cause) -> list[bytes]:
        """The conflicts whose loser is an earlier entry of the same run."""
        found = self._connection.execute(_OF_RUN, (*target, cause.run)).fetchall()
        return [number for number, loser in found if loser < cause.packed and is_same_journal(loser, cause.packed)]

    def drop(self, number: bytes) -> None:
        """A conflict goes, with its pieces."""
        self._connection.execute(_DROP, (number,))
        self._connection.execute("DELETE FROM piece WHERE conflict = ?", (number,))
        self.found.pop(number, None)

    def of_target(self, target: Target) -> dict[bytes, bytes]:
        """The losers of a target, by conflict."""
        return dict(self._connection.execute(_OF_TARGET, target).fetchall())

    def _cut_out(self, number: bytes, low: int, high: int) -> list[tuple[int, int, bytes, bytes | None]]:
        """Take a range out of a conflict's pieces; what lay in it."""
        rows = self._connection.execute(_PIECES, (number, high, low)).fetchall()
        self._connection.execute(_DROP_PIECES, (number, high, low))
        inside = []
        for piece_low, piece_high, winner, data in rows:
            if piece_low < low:
                self._add_piece(number, piece_low, low, winner, data, piece_low)
            if piece_high > high:
                self._add_piece(number, high, piece_high, winner, data, piece_low)
            cut_low, cut_high = max(piece_low, low), min(piece_high, high)
            inside.append((cut_low, cut_high, winner, cut_data(data, piece_low, cut_low, cut_high)))
        return inside

    def _add_piece(self, number: bytes, low: int, high: int, winner: bytes, data: bytes | None, data_low: int) -> None:
        self._connection.execute(_ADD_PIECE, (number, low, high, winner, cut_data(data, data_low, low, high)))


def cut_data(data: bytes | None, data_low: int, low: int, high: int) -> bytes | None:
    """The bytes between two offsets of data that begins at another; a hole stays a hole."""
    return None if data is None else data[low - data_low : high - data_low]
