"""Reading the conflict list: what is shown of a conflict, and the content that lost."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import Stamp
from nodes.store.conflicts import ID_BYTES, ConflictKind, Facet
from nodes.store.resolutions import How

RULES = {
    ConflictKind.CONTENT: "the later write has the bytes",
    ConflictKind.ATTRIBUTE: "the later setting has the attribute",
    ConflictKind.XATTR: "the later setting has the attribute",
    ConflictKind.NAME: "the later claim shows the name, the other appears beside it",
    ConflictKind.MOVE: "the later rename has a directory; a file keeps both names",
    ConflictKind.MOVE_DELETE: "the later of rename and removal counts for a directory; a file keeps the new name",
    ConflictKind.DELETE_MODIFY: "the name is gone, the changed content is kept",
    ConflictKind.RMDIR_CREATE: "the directory stays, because something was put into it",
    ConflictKind.CYCLE: "the move would have put a directory beneath itself",
}
"""Why the winner won, in words."""
PREFIX_DIGITS_MIN = 4
"""Fewer digits of an id tell few conflicts apart, and are likelier a slip than a choice."""
CONFLICT_CURSOR_BYTES = 36 + ID_BYTES
"""A place in the list: a packed stamp and an id."""
_COLUMNS = (
    "c.id, c.object, c.facet, c.detail, c.kind, c.loser, c.winner, c.inode, c.parent, c.name, c.value, c.is_kept, "
    "(SELECT r.how FROM resolution r WHERE r.conflict = c.id)"
)
SHOWN = f"""
(c.kind <> {ConflictKind.DELETE_MODIFY} OR NOT EXISTS (SELECT 1 FROM link l WHERE l.inode = c.inode))
"""  # noqa: S608 -- joined from constants only
"""The condition on `conflict c`: a modification has lost to a removal only while the object has no name."""
_IN_ONE_QUERY = 100
_SOME = f"""
SELECT {_COLUMNS} FROM conflict c WHERE c.id IN ({", ".join("?" * _IN_ONE_QUERY)}) AND {SHOWN}
"""  # noqa: S608 -- joined from constants only
_RECORDED = f"SELECT {_COLUMNS} FROM conflict c WHERE c.id = ?"  # noqa: S608 -- joined from constants only
_PAGE = f"""
SELECT {_COLUMNS} FROM conflict c WHERE (c.loser, c.id) > (?, ?) AND (?4 IS NULL OR c.kind = ?4)
AND (?5 IS NULL OR c.winner >= ?5) AND (NOT ?6 OR NOT EXISTS (SELECT 1 FROM resolution r WHERE r.conflict = c.id))
AND {SHOWN} ORDER BY c.loser, c.id LIMIT ?3
"""  # noqa: S608 -- joined from constants only
_BY_PREFIX = f"""
SELECT {_COLUMNS} FROM conflict c WHERE c.id BETWEEN ? AND ? AND {SHOWN} ORDER BY c.id LIMIT 2
"""  # noqa: S608 -- joined from constants only
_COUNTS = f"""
SELECT c.kind, count(*) FROM conflict c
WHERE {SHOWN} AND NOT EXISTS (SELECT 1 FROM resolution r WHERE r.conflict = c.id) GROUP BY c.kind ORDER BY c.kind
"""  # noqa: S608 -- joined from constants only
_KIND_NAMES = {int(kind): kind.name.lower() for kind in ConflictKind}
_HOW_NAMES = {int(how): how.name.lower() for how in How}
_PIECES = "SELECT low, high, winner, data IS NOT NULL FROM piece WHERE conflict = ? ORDER BY low"


class Conflict(Struct, frozen=True):
    """A change that lost to a concurrent one.

    Attributes:
        id: 16 hex digits, equal at every site.
        kind: a `ConflictKind`, in small letters.
        object: what was changed; for a name or a removed directory, the directory.
        detail: which field, attribute or name; empty where there is one only.
        inode: the object that the losing entry acts on.
        parent: the directory of the name that it is about, if it is about one.
        name: that name.
        value: the value that lost, of an attribute; None where it was removed.
        loser: the entry that lost.
        winner: the latest entry that it lost to.
        resolution: `accepted` or `restored`; None while it is open.
        is_kept: whether the content that lost is still here, and not given up for its size.
    """

    id: str
    kind: str
    object: int
    detail: bytes
    inode: int
    parent: int | None
    name: bytes | None
    value: int | bytes | None
    loser: Stamp
    winner: Stamp
    resolution: str | None
    is_kept: bool

    @property
    def cursor(self) -> bytes:
        """Its place in the list, for `page_conflicts`."""
        return self.loser.pack() + bytes.fromhex(self.id)

    @property
    def rule(self) -> str:
        """Why the winner won, in words."""
        return RULES[ConflictKind[self.kind.upper()]]


@dataclass(frozen=True, slots=True)
class LostRange:
    """Bytes that lost, from one offset to before another; `is_hole` where a truncate had cut them off."""

    low: int
    high: int
    winner: Stamp
    is_hole: bool


def read_conflicts(connection: sqlite3.Connection, numbers: Sequence[bytes]) -> list[Conflict]:
    """Some conflicts by id, in this order; what is not there, or not shown, is left out."""
    found: dict[bytes, Conflict] = {}
    for begin in range(0, len(numbers), _IN_ONE_QUERY):
        some = list(numbers[begin : begin + _IN_ONE_QUERY])
        # Filled up with its last one, so that there is one form of the query.
        some += some[-1:] * (_IN_ONE_QUERY - len(some))
        found |= {row[0]: _conflict(row) for row in connection.execute(_SOME, some)}
    return [found[number] for number in numbers if number in found]


def recorded_conflict(connection: sqlite3.Connection, number: bytes) -> Conflict | None:
    """A conflict by id, also one that is not shown because its object has a name again."""
    row = connection.execute(_RECORDED, (number,)).fetchone()
    return None if row is None else _conflict(row)


def page_conflicts(
    connection: sqlite3.Connection,
    after: bytes | None,
    limit: int,
    *,
    kind: str | None = None,
    since_us: int | None = None,
    is_open: bool = False,
) -> list[Conflict]:
    """Conflicts in the order of their losers' stamps.

    Args:
        connection: to the store.
        after: the cursor of the last one before the page.
        limit: the most that are wanted.
        kind: only of one kind.
        since_us: only those whose winner was stamped then or later.
        is_open: only those that nobody has settled.
    """
    place = (after or b"")[:-ID_BYTES], (after or b"")[-ID_BYTES:]
    since = None if since_us is None else since_us.to_bytes(8, "big")
    kind_number = None if kind is None else ConflictKind[kind.upper()]
    return [_conflict(row) for row in connection.execute(_PAGE, (*place, limit, kind_number, since, is_open))]


def find_conflict(connection: sqlite3.Connection, prefix: str) -> Conflict:
    """The conflict whose id begins with some hex digits.

    Raises:
        OperationRefused: ENOENT if there is none, EINVAL if there are several or it is no such beginning.
    """
    digits = prefix.lower()
    if not PREFIX_DIGITS_MIN <= len(digits) <= 2 * ID_BYTES or not set(digits) <= set("0123456789abcdef"):
        asked = f"{PREFIX_DIGITS_MIN} to {2 * ID_BYTES} hex digits"
        raise OperationRefused(errno.EINVAL, f"a conflict is named by the first {asked} of its id, not {prefix!r}")
    first, last = (bytes.fromhex(digits.ljust(2 * ID_BYTES, filler)) for filler in "0f")
    rows = connection.execute(_BY_PREFIX, (first, last)).fetchall()
    if not rows:
        raise OperationRefused(errno.ENOENT, f"no such conflict: {prefix}; settled ones go once every site knows of it")
    if len(rows) > 1:
        ids = " and ".join(row[0].hex() for row in rows)
        raise OperationRefused(errno.EINVAL, f"several conflicts begin with {prefix}: {ids}; give more digits")
    return _conflict(rows[0])


def count_open(connection: sqlite3.Connection) -> dict[str, int]:
    """How many conflicts of each kind nobody has settled yet."""
    return {_KIND_NAMES[kind]: int(count) for kind, count in connection.execute(_COUNTS)}


def lost_ranges(connection: sqlite3.Connection, number: bytes) -> list[LostRange]:
    """The bytes of a content conflict that lost, in order, neighbours with one winner joined."""
    ranges: list[LostRange] = []
    for low, high, winner, has_data in connection.execute(_PIECES, (number,)):
        lost = LostRange(low, high, Stamp.unpack(winner), not has_data)
        last = ranges[-1] if ranges else None
        if last is not None and (last.high, last.winner, last.is_hole) == (low, lost.winner, lost.is_hole):
            ranges[-1] = LostRange(last.low, high, last.winner, last.is_hole)
        else:
            ranges.append(lost)
    return ranges


def lost_data(
    connection: sqlite3.Connection, number: bytes, after: int, limit: int
) -> list[tuple[int, bytes | None, int]]:
    """Pieces of the content that lost, from an offset on: (offset, bytes or None for a hole, end)."""
    query = "SELECT low, data, high FROM piece WHERE conflict = ? AND low >= ? ORDER BY low LIMIT ?"
    return connection.execute(query, (number, after, limit)).fetchall()


def _conflict(row: Sequence[Any]) -> Conflict:
    number, object_, facet, detail, kind, loser, winner, inode, parent, name, value, is_kept, how = row
    return Conflict(
        id=number.hex(),
        kind=_KIND_NAMES[kind],
        object=object_,
        detail=b"" if facet == Facet.LINK else detail,
        inode=inode,
        parent=parent,
        name=name,
        value=value,
        loser=Stamp.unpack(loser),
        winner=Stamp.unpack(winner),
        resolution=None if how is None else _HOW_NAMES[how],
        is_kept=bool(is_kept),
    )
