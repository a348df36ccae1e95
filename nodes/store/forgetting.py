"""Forgetting: what was kept only to judge concurrent entries goes once it is causally stable, never earlier.

Whatever comes has then seen it. So it is forgotten what it overwrote, which vectors there were, and all but the last place
of a directory; content that no name reaches any more goes as well, unless it is what an open conflict would restore.
None of that is seen in the tree, the digest or the conflict list. The work is done in small steps, a few rows at a time.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from nodes.store.causality import Causality
from nodes.store.conflicts import Facet
from nodes.store.judge import CLAIMS_OF
from nodes.store.schema import NOTHING_SEEN, SETTLED, Kind

_AFTER = """
SELECT object, facet, detail, stamp, inode FROM recent
WHERE (object, facet, detail, stamp) > (?, ?, ?, ?) ORDER BY object, facet, detail, stamp LIMIT ?
"""
_FORGET = "DELETE FROM recent WHERE object = ? AND facet = ? AND detail = ? AND stamp = ?"
_SAME_TARGET = "SELECT stamp FROM recent WHERE object = ? AND facet = ? AND detail = ?"
_RECENT_OF = "SELECT stamp FROM recent WHERE object = ?"
_IS_WANTED = """
SELECT 1 FROM (
    SELECT id FROM conflict WHERE object = ?1 AND is_kept
    UNION ALL SELECT id FROM conflict WHERE inode = ?1 AND inode <> object AND is_kept
    UNION ALL SELECT id FROM conflict WHERE parent = ?1 AND parent IS NOT NULL
) c WHERE NOT EXISTS (SELECT 1 FROM resolution r WHERE r.conflict = c.id) LIMIT 1
"""
_RUNS = (
    "SELECT origin, incarnation, seen, shard, max(last_seq) FROM seen_run GROUP BY origin, incarnation, seen, shard "
    "ORDER BY origin, incarnation, seen, shard"
)
_RUN_GONE = "DELETE FROM seen_run WHERE origin = ? AND incarnation = ? AND seen = ?"
_SEEN_GONE = f"""
DELETE FROM seen WHERE id NOT IN ({NOTHING_SEEN}, {SETTLED}) AND id NOT IN
(SELECT seen FROM seen_run UNION SELECT seen FROM tomb UNION SELECT seen FROM move)
"""  # noqa: S608 -- joined from constants only
_TOMBS = "SELECT inode, parent, name, stamp FROM tomb"
_TOMB_GONE = "DELETE FROM tomb WHERE inode = ? AND parent = ? AND name = ? AND stamp = ?"
_PLACES = "SELECT stamp, parent IS NULL, skipped FROM move WHERE child = ? ORDER BY stamp DESC"
_PLACE_GONE = "DELETE FROM move WHERE child = ? AND stamp = ?"
_PLACE_KEPT = f"UPDATE move SET seen = {SETTLED}, is_rename = 0 WHERE child = ?"  # noqa: S608 -- a constant
_HOLDS = "SELECT 1 FROM link WHERE parent = ?1 UNION ALL SELECT 1 FROM move WHERE parent = ?1 LIMIT 1"
_OBJECT_GONE = (
    "DELETE FROM extent WHERE inode = ?",
    "DELETE FROM xattr WHERE inode = ?",
    "DELETE FROM inode WHERE inode = ?",
)
_SETTLED = "SELECT conflict, stamp FROM resolution ORDER BY conflict"
_Place = tuple[int, int, bytes, bytes]
_START: _Place = (-1, 0, b"", b"")


@dataclass(slots=True)
class Forgotten:
    """What steps have done.

    Attributes:
        changes: remembered changes that were forgotten.
        objects: files and directories without a name that were reclaimed.
        conflicts: settled conflicts that went.
    """

    changes: int = 0
    objects: int = 0
    conflicts: int = 0


class Forgetting:
    """Sweeps over a store, from where the last step ended. Owned by the store's writer."""

    def __init__(self) -> None:
        self._place = _START
        self.total = Forgotten()

    def step(self, connection: sqlite3.Connection, stable: Cursors, *, rows_max: int) -> bool:
        """Look at some rows within the caller's transaction; whether the sweep has come to its end."""
        sweep = _Sweep(connection, stable, self.total)
        rows = connection.execute(_AFTER, (*self._place, rows_max)).fetchall()
        for *place, inode in rows:
            sweep.look_at((place[0], place[1], place[2], place[3]), inode)
        if len(rows) == rows_max:
            self._place = (rows[-1][0], rows[-1][1], rows[-1][2], rows[-1][3])
            return False
        self._place = _START
        sweep.finish()
        return True


class _Sweep:
    def __init__(self, connection: sqlite3.Connection, stable: Cursors, total: Forgotten) -> None:
        self._connection = connection
        self._stable = stable
        self._causality = Causality(connection, stable)
        self._total = total

    def look_at(self, place: _Place, inode: int) -> None:
        """Forget a remembered change if it is stable, with what hangs on it."""
        facet, stamp = Facet(place[1]), place[3]
        if not self._causality.is_stable(stamp):
            return
        match facet:
            case Facet.REMOVED if not self._reclaim_file(inode):
                return
            case Facet.EMPTY if not self._reclaim_dir(inode):
                return
            case Facet.NAME | Facet.LINK if not self._is_target_stable(place):
                return
            case Facet.BEING:
                self._reclaim_phantom(inode)
            case Facet.PLACE if not self._forget_places(inode):
                return
            case _:
                pass
        self._connection.execute(_FORGET, place)
        self._total.changes += 1

    def finish(self) -> None:
        """What needs no sweep: runs, tombs, settled conflicts, and the vectors that nothing refers to any more."""
        for run, rows in groupby(self._connection.execute(_RUNS).fetchall(), key=itemgetter(0, 1, 2)):
            # Of a run all shards go together: what covers an entry of it may be in another one.
            if all(seq <= self._stable_seq(run[0], run[1], shard) for *_, shard, seq in rows):
                self._connection.execute(_RUN_GONE, run)
        # What such a removal had seen was told by the sites that have shown it, and is applied here; or it is lost for good.
        for *tomb, stamp in self._connection.execute(_TOMBS).fetchall():
            if self._causality.is_stable(stamp):
                self._connection.execute(_TOMB_GONE, (*tomb, stamp))
        for conflict, stamp in self._connection.execute(_SETTLED).fetchall():
            if self._causality.is_stable(stamp):
                self._connection.execute("DELETE FROM resolution WHERE conflict = ?", (conflict,))
                self._connection.execute("DELETE FROM piece WHERE conflict = ?", (conflict,))
                gone = self._connection.execute("DELETE FROM conflict WHERE id = ?", (conflict,))
                self._total.conflicts += gone.rowcount
        self._connection.execute(_SEEN_GONE)

    def _stable_seq(self, origin: int, incarnation: bytes, shard: int) -> int:
        journal = JournalId(SiteId(origin), Incarnation(int.from_bytes(incarnation, "big")))
        seqs = self._stable.get(journal)
        return 0 if seqs is None else seqs[shard]

    def _is_target_stable(self, place: _Place) -> bool:
        """Whether no entry of another shard may still be waiting for one that covers it."""
        stamps = self._connection.execute(_SAME_TARGET, place[:3]).fetchall()
        if place[1] == Facet.NAME:
            stamps += self._connection.execute(CLAIMS_OF, (place[0], place[2])).fetchall()
        return all(self._causality.is_stable(stamp) for (stamp,) in stamps)

    def _reclaim_file(self, inode: int) -> bool:
        """Whether a removal can be forgotten; if the object has no name left, it goes first."""
        if self._connection.execute("SELECT 1 FROM link WHERE inode = ? LIMIT 1", (inode,)).fetchone() is not None:
            return True
        if not self._is_settled(inode):
            return False
        self._remove(inode)
        return True

    def _reclaim_dir(self, inode: int) -> bool:
        """Whether the removal of a directory can be forgotten; if it shows no more, it goes first."""
        row = self._connection.execute("SELECT is_shown FROM trash WHERE inode = ?", (inode,)).fetchone()
        if row is None:
            return True
        if row[0] or self._connection.execute(_HOLDS, (inode,)).fetchone() is not None:
            return False
        if not self._is_settled(inode):
            return False
        self._connection.execute("DELETE FROM trash WHERE inode = ?", (inode,))
        self._connection.execute("DELETE FROM move WHERE child = ?", (inode,))
        self._remove(inode)
        return True

    def _reclaim_phantom(self, inode: int) -> None:
        """What a late change left of an object that is gone, goes."""
        row = self._connection.execute("SELECT kind FROM inode WHERE inode = ?", (inode,)).fetchone()
        if row is not None and row[0] is None:
            for statement in _OBJECT_GONE:
                self._connection.execute(statement, (inode,))

    def _is_settled(self, inode: int) -> bool:
        """Whether everything that is remembered of an object is stable, and no open conflict needs it.

        One could bring it back, or have its path by it.
        """
        stamps = self._connection.execute(_RECENT_OF, (inode,)).fetchall()
        return all(self._causality.is_stable(stamp) for (stamp,) in stamps) and (
            self._connection.execute(_IS_WANTED, (inode,)).fetchone() is None
        )

    def _remove(self, inode: int) -> None:
        row = self._connection.execute("SELECT kind FROM inode WHERE inode = ?", (inode,)).fetchone()
        self._total.objects += row is not None and row[0] in (Kind.FILE, Kind.DIR, Kind.SYMLINK)
        for statement in _OBJECT_GONE:
            self._connection.execute(statement, (inode,))

    def _forget_places(self, child: int) -> bool:
        """Keep of a directory's moves what shows it: its last place, and its removal if that came last."""
        moves = self._connection.execute(_PLACES, (child,)).fetchall()
        if not all(self._causality.is_stable(stamp) for stamp, _, _ in moves):
            return False
        has_place = has_last = False
        for stamp, is_removal, skipped in moves:
            if skipped or has_place or (is_removal and has_last):
                self._connection.execute(_PLACE_GONE, (child, stamp))
                continue
            has_last = True
            has_place = not is_removal
        self._connection.execute(_PLACE_KEPT, (child,))
        return True
