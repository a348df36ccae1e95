"""Directories: each has one place, whatever is moved concurrently.

Source: Kleppmann, Mulligan, Gomes, Beresford, "A highly-available move operation for replicated trees" (2022). The moves
take effect in stamp order; one that would put a directory beneath itself, as the tree is at that point of the order, is
skipped. The paper undoes and redoes every move later than one that arrives late. Here the log is kept for each
directory, the place of a directory at a stamp is its last move before it that was not skipped, and only those later
moves are judged again that a change can reach: renames into the moved directory or into what was ever beneath it.

Two rules on single entries, checked before they come here, make most moves safe without judging: a directory's number
tells the stamp of its making, and it can only be placed into a directory that is older than the move. So the making of a
directory can never close a cycle.

A removal takes part in the same order, but leaves the directory at its place: it is hidden unless it holds something
(`nodes.store.claims`), and cycles through removed directories are cycles like any other. So what shows again, shows
beneath the root.
"""

from __future__ import annotations

import heapq
import sqlite3
from typing import NamedTuple

from claudefs_repl.journal import ROOT_INODE, Stamp
from nodes.store.causality import Causality, Cause, has_seen, is_same_journal
from nodes.store.claims import add_claim, refresh_all, remove_claim
from nodes.store.conflicts import ConflictKind, Facet, Loser, Target
from nodes.store.judge import Judge, Memory
from nodes.store.links import rivals_of
from nodes.store.schema import NOTHING_SEEN, SETTLED

_INSERT = (
    "INSERT OR IGNORE INTO move(child, stamp, parent, name, is_rename, skipped, seen) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_PLACE_AT = (
    "SELECT parent, stamp FROM move WHERE child = ? AND stamp < ? AND parent IS NOT NULL AND skipped = 0 "
    "ORDER BY stamp DESC LIMIT 1"
)
_PLACE = (
    "SELECT parent, name, stamp FROM move WHERE child = ? AND parent IS NOT NULL AND skipped = 0 "
    "ORDER BY stamp DESC LIMIT 1"
)
_LAST = "SELECT parent FROM move WHERE child = ? AND skipped = 0 ORDER BY stamp DESC LIMIT 1"
_IS_KNOWN = "SELECT 1 FROM move WHERE child = ? LIMIT 1"
_ANY_LATER_RENAME = "SELECT 1 FROM move WHERE is_rename AND stamp > ? LIMIT 1"
_INTO = "SELECT child, stamp, is_rename FROM move WHERE parent = ? ORDER BY child, stamp"
_CLAIMS_IN = (
    "SELECT stamp FROM link WHERE parent = ?1 AND is_dir = 0 UNION SELECT stamp FROM move WHERE parent = ?1 ORDER BY 1"
)
_MOVES_OF = (
    "SELECT m.stamp, m.parent, m.name, m.skipped, s.vector FROM move m JOIN seen s ON s.id = m.seen "
    "WHERE m.child = ? AND m.seen <> ? ORDER BY m.stamp"
)
_OLD_CLAIMS = "SELECT parent, name, stamp FROM link WHERE inode = ? AND is_dir = 1 ORDER BY parent, name, stamp"


def fold_making(judge: Judge, cause: Cause, child: int, parent: int, name: bytes) -> None:
    """A directory is made in a place."""
    connection, stamp = judge.connection, cause.packed
    _claim(judge, cause, child, parent, name)
    is_new = connection.execute(_IS_KNOWN, (child,)).fetchone() is None
    connection.execute(_INSERT, (child, stamp, parent, name, False, False, NOTHING_SEEN))
    changed = _judge_later(judge, child, stamp)
    if is_new and not changed:
        add_claim(connection, parent, name, child, stamp, is_dir=True)
        refresh_all(connection, (parent,))
    else:
        _settle(judge, cause, [child, *changed])


def fold_rename(judge: Judge, cause: Cause, child: int, parent: int, name: bytes) -> None:
    """A directory gets another place, unless that would put it beneath itself."""
    connection, stamp = judge.connection, cause.packed
    _claim(judge, cause, child, parent, name)
    is_skipped = _closes_cycle(connection, child, parent, stamp)
    connection.execute(_INSERT, (child, stamp, parent, name, True, is_skipped, judge.causality.intern(cause.seen)))
    _remember(judge, cause, child)
    changed = [] if is_skipped else _judge_later(judge, child, stamp)
    _settle(judge, cause, [child, *changed])


def fold_removal(judge: Judge, cause: Cause, child: int) -> None:
    """A directory is removed; a later rename brings it back."""
    seen = judge.causality.intern(cause.seen)
    judge.connection.execute(_INSERT, (child, cause.packed, None, None, False, False, seen))
    _remember(judge, cause, child)
    judge.remove_dir(child, cause, [] if cause.is_local else _claims_in(judge.connection, child))
    _settle(judge, cause, [child])


def _remember(judge: Judge, cause: Cause, child: int) -> None:
    """Have the moves of a directory looked at again when this one is stable."""
    if judge.watched.has_conflict(child, Facet.PLACE):
        judge.conflicts.cover(Target(child, Facet.PLACE, b""), cause)
    judge.remember(Target(child, Facet.PLACE, b""), Memory(cause.packed, child, None, None, None))


def _claim(judge: Judge, cause: Cause, child: int, parent: int, name: bytes) -> None:
    if not cause.is_local or judge.is_name_watched(parent):
        judge.claim(parent, name, child, cause, () if cause.is_local else rivals_of(judge.connection, parent, name))


def _claims_in(connection: sqlite3.Connection, directory: int) -> list[bytes]:
    return [stamp for (stamp,) in connection.execute(_CLAIMS_IN, (directory,))]


def _closes_cycle(connection: sqlite3.Connection, child: int, parent: int, stamp: bytes) -> bool:
    """Whether `parent` is `child` or beneath it, just before a stamp."""
    directory = parent
    while directory != child:
        if directory == ROOT_INODE:
            return False
        row = connection.execute(_PLACE_AT, (directory, stamp)).fetchone()
        if row is None:
            return False
        directory = row[0]
    return True


def _judge_later(judge: Judge, moved: int, stamp: bytes) -> list[int]:
    """Judge again, in stamp order, the renames that a new place of a directory can concern.

    Those that are skipped are skipped by other moves, perhaps, than before: their conflicts are brought in line.

    Returns:
        the directories of which a rename is now skipped, or no longer.
    """
    connection = judge.connection
    if connection.execute(_ANY_LATER_RENAME, (stamp,)).fetchone() is None:
        return []
    changed: list[int] = []
    skipped: dict[int, None] = {}
    expanded: set[int] = set()
    renames: list[tuple[bytes, int, int]] = []

    def expand(root: int, after: bytes) -> None:
        # Renames into what was ever beneath `root`: more than needed, never fewer. A directory is expanded once:
        # the first time is with the earliest stamp.
        beneath = [root]
        while beneath:
            directory = beneath.pop()
            if directory in expanded:
                continue
            expanded.add(directory)
            for child, move_stamp, is_rename in connection.execute(_INTO, (directory,)):
                beneath.append(child)
                if is_rename and move_stamp > after:
                    heapq.heappush(renames, (move_stamp, child, directory))

    expand(moved, stamp)
    while renames:
        rename_stamp, child, parent = heapq.heappop(renames)
        is_skipped = _closes_cycle(connection, child, parent, rename_stamp)
        if is_skipped:
            skipped[child] = None
        updated = connection.execute(
            "UPDATE move SET skipped = ?3 WHERE child = ?1 AND stamp = ?2 AND skipped <> ?3",
            (child, rename_stamp, is_skipped),
        )
        if updated.rowcount:
            changed.append(child)
            expand(child, rename_stamp)
    for child in [directory for directory in skipped if directory not in changed]:
        _judge_places(judge, child)
    return changed


def _settle(judge: Judge, cause: Cause, directories: list[int]) -> None:
    """Bring claims, trash and conflicts in line with the moves of some directories."""
    connection = judge.connection
    touched: list[int] = []
    for directory in dict.fromkeys(directories):
        _judge_places(judge, directory)
        touched.append(directory)
        for parent, name, stamp in connection.execute(_OLD_CLAIMS, (directory,)).fetchall():
            remove_claim(connection, parent, name, directory, stamp)
            touched.append(parent)
            judge.note_removed_from(parent, cause)
        connection.execute("DELETE FROM trash WHERE inode = ?", (directory,))
        place = connection.execute(_PLACE, (directory,)).fetchone()
        last = connection.execute(_LAST, (directory,)).fetchone()
        if last is not None and last[0] is None:
            parent, name, stamp = place or (None, None, None)
            connection.execute("INSERT INTO trash VALUES (?, ?, ?, ?, 0)", (directory, parent, name, stamp))
            judge.has_trash = True
        elif place is not None:
            parent, name, stamp = place
            add_claim(connection, parent, name, directory, stamp, is_dir=True)
            touched.append(parent)
    refresh_all(connection, dict.fromkeys(touched))


class _Move(NamedTuple):
    stamp: bytes
    parent: int | None
    name: bytes | None
    skipped: bool
    vector: bytes


def _judge_places(judge: Judge, child: int) -> None:
    """Find the moves of a directory that lost: to a later one, or by closing a cycle.

    A settled one is concurrent with none that are here; what it lost to is in the list.
    """
    moves = [_Move(*row) for row in judge.connection.execute(_MOVES_OF, (child, SETTLED)).fetchall()]
    if not moves:
        return
    causality = judge.causality
    runs = [move.stamp[8:24] + causality.name_of(move.vector) for move in moves]
    losers: dict[bytes, tuple[ConflictKind, Loser, bytes]] = {}
    judged = {move.stamp for move in moves}
    for index, move in enumerate(moves):
        if runs[index] in runs[index + 1 :]:
            continue
        loser = Loser(move.stamp, runs[index][16:], child, move.parent, move.name)
        if move.skipped:
            is_known, blocker = _blocker(judge, child, move)
            if not is_known:
                judged.discard(move.stamp)
            elif blocker is not None:
                losers[move.stamp] = ConflictKind.CYCLE, loser, blocker
            continue
        rivals = [
            later
            for later in moves[index + 1 :]
            if not later.skipped and later[1:3] != move[1:3] and _is_unseen(causality, later, move.stamp)
        ]
        if rivals:
            is_removal = None in (rivals[-1].parent, move.parent)
            kind = ConflictKind.MOVE_DELETE if is_removal else ConflictKind.MOVE
            losers[move.stamp] = kind, loser, rivals[-1].stamp
    target = Target(child, Facet.PLACE, b"")
    if losers or judge.watched.has_conflict(child, Facet.PLACE):
        judge.conflicts.decide(target, losers, judged)


def _is_unseen(causality: Causality, later: _Move, stamp: bytes) -> bool:
    seen = causality.decoded(later.vector)
    return not is_same_journal(later.stamp, stamp) and not has_seen(
        Stamp.unpack(later.stamp), seen, Stamp.unpack(stamp)
    )


def _blocker(judge: Judge, child: int, move: _Move) -> tuple[bool, bytes | None]:
    """The latest move, unseen by a skipped one, that put the place it names beneath the directory.

    Returns:
        whether all the way is known, and that move. Of moves that are forgotten the list has what they led to; it holds,
        because whatever comes later has seen them.
    """
    latest: bytes | None = None
    directory = move.parent
    while directory not in (child, None, ROOT_INODE):
        row = judge.connection.execute(_PLACE_AT, (directory, move.stamp)).fetchone()
        if row is None:
            return False, None
        directory, stamp = row
        if _is_unseen(judge.causality, move, stamp) and (latest is None or stamp > latest):
            latest = stamp
    return True, latest
