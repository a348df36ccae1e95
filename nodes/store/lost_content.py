"""The file as it would be if the write or truncate that lost had won: what it lost, put back over the file as it is.

Nothing of it is stored as a file: it is read, piece by piece, from the pieces that the conflict keeps.
"""

from __future__ import annotations

import errno
import sqlite3
from dataclasses import dataclass

from claudefs_repl.error import OperationRefused
from nodes.store.conflict_view import Conflict, recorded_conflict
from nodes.store.extents import data_runs
from nodes.store.view import READ_BYTES_MAX, View

_BOUNDS = "SELECT low, high FROM piece WHERE conflict = ? AND low < ? ORDER BY low"
_END = "SELECT max(high) FROM piece WHERE conflict = ?"
_DATA = "SELECT low, high, data FROM piece WHERE conflict = ? AND low < ? AND high > ? ORDER BY low"
_IS_HOLE = "SELECT 1 FROM piece WHERE conflict = ? AND data IS NULL LIMIT 1"
_CUT_FROM = "SELECT min(low) FROM extent WHERE inode = ? AND stamp = ? AND data IS NULL"
_LAST_DATA = "SELECT low, high FROM extent WHERE inode = ? AND low < ? AND data IS NOT NULL ORDER BY low DESC LIMIT 1"
_PIECE_AT = "SELECT low FROM piece WHERE conflict = ? AND low < ? AND high >= ? LIMIT 1"


@dataclass(frozen=True, slots=True)
class LostContent:
    """What putting the loser of a content conflict back would do.

    Attributes:
        size: of the file then, bytes.
        ranges: [low, high) of the bytes that would change, in order, none beyond the size.
    """

    size: int
    ranges: list[tuple[int, int]]


def lost_content(view: View, conflict: Conflict) -> LostContent:
    """What a content conflict lost.

    Raises:
        OperationRefused: ENOENT: the file is gone; ENODATA: the content was given up.
    """
    number = _check_kept(conflict)
    size = _size(view, conflict, number)
    ranges: list[tuple[int, int]] = []
    for low, high in view.connection.execute(_BOUNDS, (number, size)):
        cut = min(high, size)
        if ranges and ranges[-1][1] == low:
            ranges[-1] = ranges[-1][0], cut
        else:
            ranges.append((low, cut))
    return LostContent(size, ranges)


def read_lost(view: View, number: bytes, offset: int, length: int) -> bytes:
    """Bytes of the file with what was lost put back; holes are zeros, the end of the file cuts.

    Raises:
        OperationRefused: ENOENT: no such conflict of content; ENODATA: it was given up; EINVAL: a range that cannot be.
    """
    conflict = recorded_conflict(view.connection, number)
    if conflict is None or conflict.kind != "content":
        raise OperationRefused(errno.ENOENT, f"no conflict of content has the id {number.hex()}")
    _check_kept(conflict)
    if offset < 0 or not 0 <= length <= READ_BYTES_MAX:
        raise OperationRefused(errno.EINVAL, f"a read has 0 to {READ_BYTES_MAX} bytes, not {length} at {offset}")
    end = min(offset + length, _size(view, conflict, number))
    if end <= offset:
        return b""
    content = bytearray(end - offset)
    for at, data in data_runs(view.connection, conflict.object, offset, end):
        content[at - offset : at - offset + len(data)] = data
    for low, high, data in view.connection.execute(_DATA, (number, end, offset)):
        start, stop = max(low, offset), min(high, end)
        content[start - offset : stop - offset] = (
            bytes(stop - start) if data is None else data[start - low : stop - low]
        )
    return bytes(content)


def _check_kept(conflict: Conflict) -> bytes:
    if not conflict.is_kept:
        raise OperationRefused(
            errno.ENODATA,
            f"the content that lost in conflict {conflict.id} was given up here for [conflicts] keep_bytes_max; "
            "another site may have it still",
        )
    return bytes.fromhex(conflict.id)


def _size(view: View, conflict: Conflict, number: bytes) -> int:
    connection, size = view.connection, view.stat(conflict.object).size
    if connection.execute(_IS_HOLE, (number,)).fetchone() is None:
        (end,) = connection.execute(_END, (number,)).fetchone()
        return max(size, end or 0)
    return _size_when_cut(connection, conflict, number, size)


def _size_when_cut(connection: sqlite3.Connection, conflict: Conflict, number: bytes, size: int) -> int:
    """The size with a lost truncate put back: what it cut off goes from the end, down to data that it did not cut."""
    cut = _lowered(connection, number, size)
    if cut == size:
        return size
    while True:
        last = connection.execute(_LAST_DATA, (conflict.object, cut)).fetchone()
        end = 0 if last is None else min(int(last[1]), cut)
        lower = _lowered(connection, number, end)
        if lower == end:
            break
        cut = lower
    (cut_from,) = connection.execute(_CUT_FROM, (conflict.object, conflict.loser.pack())).fetchone()
    return max(end, cut if cut_from is None else min(int(cut_from), cut))


def _lowered(connection: sqlite3.Connection, number: bytes, end: int) -> int:
    """Where the pieces begin that lie end to end up to an offset, in however many a site keeps them."""
    while (row := connection.execute(_PIECE_AT, (number, end, end)).fetchone()) is not None:
        end = int(row[0])
    return end
