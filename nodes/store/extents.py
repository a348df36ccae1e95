"""File data as runs: last writer wins for each byte, by stamp.

The runs of a file never overlap. A write is a run of data, a truncate a run without data from its length to the end of
all files. A newer run cuts older ones; an older run that arrives late fills only what newer ones leave.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from claudefs_repl.journal import FILE_BYTES_MAX
from nodes.store.causality import Cause
from nodes.store.conflicts import Facet, cut_data
from nodes.store.judge import Judge, Piece

_LAST_BEFORE = "SELECT low, high, stamp, data IS NULL FROM extent WHERE inode = ? AND low < ? ORDER BY low DESC LIMIT 1"
_MOVE_HOLE = "UPDATE extent SET low = ? WHERE inode = ? AND low = ?"
_INSERT = "INSERT INTO extent(inode, low, high, stamp, data) VALUES (?, ?, ?, ?, ?)"
_FIRST_REACHING = "SELECT low FROM extent WHERE inode = ? AND low <= ? ORDER BY low DESC LIMIT 1"
_DROP_COVERED = "DELETE FROM extent WHERE inode = ? AND low >= ? AND low < ? AND high <= ? AND stamp < ?"
_RUNS = "SELECT low, high, stamp FROM extent WHERE inode = ? AND low >= ? AND low < ? ORDER BY low"
_RUN = "SELECT low, high, stamp, data FROM extent WHERE inode = ? AND low >= ? AND low < ? ORDER BY low LIMIT 1"
_KEEP_RIGHT = (
    "INSERT INTO extent(inode, low, high, stamp, data) "
    "SELECT inode, ?3, high, stamp, substr(data, ?3 - low + 1) FROM extent WHERE inode = ?1 AND low = ?2"
)
_KEEP_LEFT = "UPDATE extent SET high = ?3, data = substr(data, 1, ?3 - low) WHERE inode = ?1 AND low = ?2"
_DROP = "DELETE FROM extent WHERE inode = ? AND low = ?"
_DATA = "SELECT low, high, data FROM extent WHERE inode = ? AND low >= ? AND low < ? AND data IS NOT NULL ORDER BY low"


def write_run(judge: Judge, cause: Cause, inode: int, offset: int, data: bytes) -> None:
    """Fold a write in."""
    if data:
        _put_run(judge, cause, inode, Piece(offset, offset + len(data), cause.packed, data))


def truncate_run(judge: Judge, cause: Cause, inode: int, length: int) -> None:
    """Fold the hole of a truncate in; the size it gives is an attribute of the inode."""
    if length < FILE_BYTES_MAX:
        _put_run(judge, cause, inode, Piece(length, FILE_BYTES_MAX, cause.packed, None))


def drop_runs(connection: sqlite3.Connection, inode: int) -> None:
    """Forget all of a file's data."""
    connection.execute("DELETE FROM extent WHERE inode = ?", (inode,))


def data_runs(connection: sqlite3.Connection, inode: int, low: int, high: int) -> Iterator[tuple[int, bytes]]:
    """The data between two offsets, in order, as (offset, bytes); what is not told is zero."""
    for run_low, _run_high, data in connection.execute(_DATA, (inode, _reach(connection, inode, low), high)):
        start = max(run_low, low)
        piece = data[start - run_low : high - run_low]
        if piece:
            yield start, piece


def _put_run(judge: Judge, cause: Cause, inode: int, new: Piece) -> None:
    connection, (low, high, stamp, data, _) = judge.connection, new
    # Most writes append: the last run that begins below the new end is then wholly below the new start,
    # or it is the hole that a truncate left, which begins there.
    last = connection.execute(_LAST_BEFORE, (inode, high)).fetchone()
    if last is None or last[1] <= low:
        if judge.watched.has(inode, Facet.DATA):
            judge.write(inode, cause, new, ())
        connection.execute(_INSERT, (inode, low, high, stamp, data))
        return
    run_low, run_high, run_stamp, is_hole = last
    if is_hole and run_low == low and run_high > high and run_stamp < stamp:
        judge.write(inode, cause, new, [Piece(low, high, run_stamp, None)])
        connection.execute(_MOVE_HOLE, (high, inode, low))
        connection.execute(_INSERT, (inode, low, high, stamp, data))
        return
    judge.write(inode, cause, new, _overlapped(connection, inode, low, high))
    connection.execute(_DROP_COVERED, (inode, low, high, high, stamp))
    overlapping = connection.execute(_RUNS, (inode, _reach(connection, inode, low), high)).fetchall()
    gaps, position = [], low
    for run_low, run_high, run_stamp in overlapping:
        if run_high <= low:
            continue
        if run_stamp > stamp:
            if run_low > position:
                gaps.append((position, run_low))
            position = max(position, run_high)
        else:
            _cut_run(connection, inode, (run_low, run_high), (low, high))
    if position < high:
        gaps.append((position, high))
    connection.executemany(
        _INSERT,
        [(inode, a, b, stamp, None if data is None else data[a - low : b - low]) for a, b in gaps],
    )


def _overlapped(connection: sqlite3.Connection, inode: int, low: int, high: int) -> Iterator[Piece]:
    """What the runs of a file have between two offsets; one run at a time is in memory."""
    after = _reach(connection, inode, low)
    while (row := connection.execute(_RUN, (inode, after, high)).fetchone()) is not None:
        run_low, run_high, stamp, data = row
        cut_low, cut_high = max(run_low, low), min(run_high, high)
        if cut_low < cut_high:
            yield Piece(cut_low, cut_high, stamp, cut_data(data, run_low, cut_low, cut_high))
        after = run_low + 1


def _cut_run(connection: sqlite3.Connection, inode: int, run: tuple[int, int], cut: tuple[int, int]) -> None:
    """Take the bytes of `cut` from a run that reaches beyond it on at least one side."""
    if run[1] > cut[1]:
        connection.execute(_KEEP_RIGHT, (inode, run[0], cut[1]))
    if run[0] < cut[0]:
        connection.execute(_KEEP_LEFT, (inode, run[0], cut[0]))
    else:
        connection.execute(_DROP, (inode, run[0]))


def _reach(connection: sqlite3.Connection, inode: int, offset: int) -> int:
    """Where the run begins that may hold the byte at an offset; nothing before it does."""
    row = connection.execute(_FIRST_REACHING, (inode, offset)).fetchone()
    return offset if row is None else int(row[0])
