"""Judging: whether an entry that is being folded and one that was folded before compete, and which of them loses.

The tables of the tree hold the latest value of each target with its stamp. What a later entry overwrites or removes, and
what arrives too late to show, is remembered in `recent` until it is causally stable: some entry that is still on its way
may be concurrent with it. So whichever of two entries comes second meets the first, in the tree or in `recent`.

Nothing is looked up where nothing is remembered, which is nearly everywhere: `Judge.watched` holds the other places.
An object is known to its maker alone until it has a name. What its maker does to its attributes before belongs to the
making: it takes part in no conflict, though somebody may have found the object by a name that came by a detour. The bytes
that it writes before are judged as any others. The maker is a journal: what its site does in a later one may come before
the making, as anybody else's changes may.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.journal import DATA_BYTES_MAX, STAMP_BITS, Stamp
from nodes.store.causality import Causality, Cause, is_same_journal
from nodes.store.conflicts import ConflictKind, ConflictList, Facet, Loser, Target, cut_data
from nodes.store.schema import Named
from nodes.store.watched import Watched, contested, remembered

LOW = struct.Struct(">Q")
_REMEMBER = "INSERT OR IGNORE INTO recent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_RECALL = (
    "SELECT stamp, inode, parent, name, value FROM recent WHERE object = ? AND facet = ? AND detail = ? ORDER BY stamp"
)
_FORGET = "DELETE FROM recent WHERE object = ? AND facet = ? AND detail = ? AND stamp = ?"
_FORGET_BEING = f"DELETE FROM recent WHERE object = ? AND facet = {Facet.BEING} AND detail = ?"  # noqa: S608 -- a constant
_REMEMBER_BEING = f"INSERT OR IGNORE INTO recent VALUES (?1, {Facet.BEING}, ?2, ?3, NULL, ?1, NULL, NULL, NULL)"  # noqa: S608 -- likewise
_RECALL_RUNS = """
SELECT detail, stamp, high, value, name FROM recent
WHERE object = ?1 AND facet = ?2 AND high > ?3 AND detail >= ?4 AND detail < ?5
UNION ALL SELECT detail, stamp, high, value, name FROM recent
WHERE object = ?1 AND facet = ?2 AND high > ?3 AND detail >= ?6 AND detail < ?7
"""
_RECALL_FACET = (
    "SELECT stamp, inode, parent, name, value FROM recent WHERE object = ? AND facet = ? ORDER BY detail, stamp"
)
_HAS = "SELECT EXISTS (SELECT 1 FROM tomb), EXISTS (SELECT 1 FROM trash)"
_IS_REMOVED = "SELECT 1 FROM trash WHERE inode = ?"
CLAIMS_OF = (
    "SELECT stamp FROM link WHERE parent = ?1 AND name = ?2 "
    "UNION ALL SELECT stamp FROM move WHERE parent = ?1 AND name = ?2"
)
"""All claims to a name: a directory's former places are among its rivals as well."""
_LONG = b"\xff"
"""Before the offset of a remembered piece that is longer than any write, in its `detail`: behind all others."""
_LEFT = b"left"
_COVERED = b"covered"
_NAMED = "SELECT named, named_stamp, made FROM inode WHERE inode = ?"
_HAS_BEING = remembered(Facet.BEING)
_HAS_LOST_BEING = contested(Facet.BEING)
_HAS_REMOVAL = remembered(Facet.REMOVED)
_HAS_CLAIM = remembered(Facet.NAME) | remembered(Facet.EMPTY)


class Piece(NamedTuple):
    """A run of bytes that an entry wrote, or a hole that it left (`data` is None), in part or whole.

    Attributes:
        is_covered: a later hole of its own run covers it, so it loses to nothing, and its bytes are not kept; but it
            wins against holes, which that hole does not.
    """

    low: int
    high: int
    stamp: bytes
    data: bytes | None
    is_covered: bool = False


class Memory(NamedTuple):
    """A remembered entry; what the fields mean depends on the facet."""

    stamp: bytes
    inode: int
    parent: int | None
    name: bytes | None
    value: Any


class Judge:
    """Compares entries over one transaction. Owned by the `Fold` that is open.

    Attributes:
        watched: what must be looked up; outlives the transaction, and may name more than there is.
        conflicts: the list that is written.
        applied: the cursors before the entries that are being folded.
        shard_count: of the cluster.
        has_tombs: whether there may be tombs.
        has_trash: whether there may be removed directories.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        causality: Causality,
        watched: Watched,
        *,
        applied: Cursors,
        shard_count: int,
    ) -> None:
        self.causality = causality
        self.applied = applied
        self.shard_count = shard_count
        self.watched = watched
        self.has_tombs, self.has_trash = map(bool, connection.execute(_HAS).fetchone())
        self.conflicts = ConflictList(connection, watched)
        self.connection = connection
        self._named: dict[int, bytes] = {}

    def note_named(self, inode: int, named: int, stamp: bytes) -> None:
        """What an object's row tells of its naming: once its maker has named it, that stays."""
        if named == Named.BY_MAKER:
            self._named[inode] = stamp

    def is_named(self, inode: int) -> bool:
        """Whether the maker of an object is known to have named it; if not, the table may still tell so."""
        return inode in self._named

    def is_of_making(self, inode: int, packed: bytes) -> bool:
        """Whether an entry on an object, applied or about to be, is its maker's from before the maker named it."""
        if inode >> STAMP_BITS != int.from_bytes(packed[8:16], "big"):
            return False
        named_stamp = self._named.get(inode)
        if named_stamp is None:
            row = self.connection.execute(_NAMED, (inode,)).fetchone()
            if row is None or row[0] != Named.BY_MAKER:
                return row is not None and is_same_journal(row[2], packed)
            named_stamp = self._named[inode] = row[1]
        return packed < named_stamp and is_same_journal(packed, named_stamp)

    def is_name_watched(self, directory: int) -> bool:
        """Whether a claim to a name in a directory may have something to meet beside the claims in the tree."""
        return bool(self.watched.of(directory) & _HAS_CLAIM)

    def remember(self, target: Target, memory: Memory, *, high: int | None = None) -> None:
        """Keep an entry of which the tree keeps no trace, unless whatever comes has seen it, and all that it may cover."""
        if self.causality.is_stable(memory.stamp) and not self._may_cover(target):
            return
        self.connection.execute(
            _REMEMBER,
            (*target, memory.stamp, high, memory.inode, memory.parent, memory.name, memory.value),
        )
        self.watched.add(target.object, target.facet)

    def _may_cover(self, target: Target) -> bool:
        """Whether a stable entry must be kept, as `forgetting` keeps it, for one of another shard that it may cover."""
        if target.facet not in (Facet.NAME, Facet.LINK):
            return False
        stamps = [memory.stamp for memory in self.recall(target)]
        if target.facet is Facet.NAME:
            stamps += [stamp for (stamp,) in self.connection.execute(CLAIMS_OF, (target.object, target.detail))]
        return not all(map(self.causality.is_stable, stamps))

    def recall(self, target: Target) -> list[Memory]:
        """What is remembered of a target."""
        return self._recall(target) if self.watched.has(target.object, target.facet) else []

    def _recall(self, target: Target) -> list[Memory]:
        return [Memory(*row) for row in self.connection.execute(_RECALL, target).fetchall()]

    def set_value(self, target: Target, cause: Cause, value: Any, there: tuple[bytes, Any] | None) -> None:
        """A field or extended attribute is set; `there` is what the tree has, with its stamp."""
        inode, stamp = target.object, cause.packed
        watch = self.watched.of(inode)
        rivals = self._recall(target) if watch & remembered(target.facet) else []
        if watch & contested(target.facet):
            self.conflicts.cover(target, cause)
        if there is not None:
            rivals.append(Memory(there[0], inode, None, None, there[1]))
        kind = ConflictKind.XATTR if target.facet is Facet.XATTR else ConflictKind.ATTRIBUTE
        for rival in rivals:
            if self.causality.is_same_run(cause, rival.stamp):
                self.connection.execute(_FORGET, (*target, rival.stamp))
            elif self.causality.is_concurrent(cause, rival.stamp) and not self.is_of_making(inode, rival.stamp):
                self._settle(target, kind, cause, Memory(stamp, inode, None, None, value), rival)
        if there is None:
            return
        if there[0] > stamp:
            self.remember(target, Memory(stamp, inode, None, None, value))
        elif not self.causality.is_same_run(cause, there[0]):
            self.remember(target, Memory(there[0], inode, None, None, there[1]))

    def claim(self, parent: int, name: bytes, inode: int, cause: Cause, rivals: Iterable[tuple[int, bytes]]) -> None:
        """An object claims a name; rivals are the claims that the tree has, as (inode, stamp)."""
        target = Target(parent, Facet.NAME, name)
        mine = Memory(cause.packed, inode, parent, name, None)
        there = [Memory(stamp, other, parent, name, None) for other, stamp in rivals]
        self._meet_removals(parent, cause)
        self._meet(
            target,
            cause,
            mine,
            [*self.recall(target), *there],
            lambda rival: ConflictKind.NAME if rival.inode != inode else None,
        )

    def unclaim(self, parent: int, name: bytes, inode: int, claim: bytes) -> None:
        """A claim to a name is removed, or came after its removal."""
        self.remember(Target(parent, Facet.NAME, name), Memory(claim, inode, parent, name, None))

    def unlink(self, inode: int, link: tuple[int, bytes], cause: Cause, to: tuple[int, bytes] | None) -> None:
        """A file's link goes: by a rename to another place, or for good."""
        parent, name = link
        target = Target(inode, Facet.LINK, LOW.pack(parent) + name)
        to_parent, to_name = to or (None, None)
        mine = Memory(cause.packed, inode, to_parent, to_name, None)

        def kind(rival: Memory) -> ConflictKind | None:
            if (rival.parent, rival.name) == (to_parent, to_name):
                return None
            return ConflictKind.MOVE_DELETE if None in (to_parent, rival.parent) else ConflictKind.MOVE

        self._meet(target, cause, mine, self.recall(target), kind)
        self.remember(target, mine)
        if to is None:
            self._remove(Memory(cause.packed, inode, parent, name, None), cause)

    def _meet(
        self,
        target: Target,
        cause: Cause,
        mine: Memory,
        rivals: list[Memory],
        kind: Callable[[Memory], ConflictKind | None],
    ) -> None:
        """Compare with rivals whose order of arrival is that of no shard: each may come before what it covers."""
        if self.watched.has_conflict(target.object, target.facet):
            self.conflicts.cover(target, cause)
        if not rivals:
            return
        runs = {rival.stamp: rival.stamp[8:24] + self._run_of(rival.stamp) for rival in rivals}
        latest: dict[bytes, bytes] = {cause.packed[8:24] + cause.run: cause.packed}
        for stamp, run in runs.items():
            latest[run] = max(stamp, latest.get(run, b""))
        is_covered = latest[cause.packed[8:24] + cause.run] != cause.packed
        for rival in rivals:
            found = kind(rival)
            if found is None or not self.causality.is_concurrent(cause, rival.stamp):
                continue
            if is_covered if mine.stamp < rival.stamp else latest[runs[rival.stamp]] != rival.stamp:
                continue
            self._settle(target, found, cause, mine, rival)

    def _remove(self, removal: Memory, cause: Cause) -> None:
        """A link of an object goes for good: what was done to the object concurrently has lost."""
        for modification in self._memories(removal.inode, Facet.BEING):
            if self.causality.is_concurrent(cause, modification.stamp):
                self._lose_being(modification.stamp, self._run_of(modification.stamp), removal)
        self.remember(Target(removal.inode, Facet.REMOVED, b""), removal)

    def modify(self, modified: Iterable[tuple[int, bytes, bytes]]) -> None:
        """Bytes or attributes of objects were changed: a removal of one's last name that had not seen it is a conflict.

        Args:
            modified: objects with stamp and `seen` of the last change of each run; no object twice with one run.
        """
        outdated: list[tuple[int, bytes]] = []
        kept: list[tuple[int, bytes, bytes]] = []
        for inode, packed, seen in modified:
            name = self.causality.name_of(seen)
            run = packed[8:24] + name
            watch = self.watched.of(inode)
            if watch & _HAS_BEING:
                outdated.append((inode, run))
            if watch & (_HAS_LOST_BEING | _HAS_REMOVAL):
                self._modify_removed(inode, Cause(Stamp.unpack(packed), packed, seen, name, is_local=False), watch)
            if not self.causality.is_stable(packed):
                kept.append((inode, run, packed))
                self.watched.add(inode, Facet.BEING)
        self.connection.executemany(_FORGET_BEING, outdated)
        self.connection.executemany(_REMEMBER_BEING, kept)

    def _modify_removed(self, inode: int, cause: Cause, watch: int) -> None:
        if watch & _HAS_LOST_BEING:
            self.conflicts.cover(Target(inode, Facet.BEING, b""), cause)
        if watch & _HAS_REMOVAL:
            for removal in self._recall(Target(inode, Facet.REMOVED, b"")):
                if self.causality.is_concurrent(cause, removal.stamp):
                    self._lose_being(cause.packed, cause.run, removal)

    def remove_dir(self, directory: int, cause: Cause, claims: Iterable[bytes]) -> None:
        """A directory is removed that was empty to who removed it; claims are the stamps of those that are in it here."""
        target = Target(directory, Facet.EMPTY, b"")
        others = self.recall(target)
        if self.watched.has_conflict(directory, Facet.EMPTY):
            self.conflicts.cover(target, cause)
        mine = Loser(cause.packed, cause.run, directory)
        if not any(other.stamp > cause.packed and self.causality.is_same_run(cause, other.stamp) for other in others):
            for claim in (*claims, *(claim.stamp for claim in self._memories(directory, Facet.NAME))):
                if self.causality.is_concurrent(cause, claim):
                    self.conflicts.lose(target, ConflictKind.RMDIR_CREATE, mine, claim)
        self.remember(target, Memory(cause.packed, directory, None, None, None))

    def note_removed_from(self, directory: int, cause: Cause) -> None:
        """Something left a directory: if that is a removed one, somebody may still put something into it meanwhile."""
        if self.has_trash and self.connection.execute(_IS_REMOVED, (directory,)).fetchone() is not None:
            self.remember(Target(directory, Facet.EMPTY, _LEFT), Memory(cause.packed, directory, None, None, None))

    def write(self, inode: int, cause: Cause, mine: Piece, overlapped: Iterable[Piece]) -> None:
        """Bytes are written or cut off; overlapped are the pieces that the tree has in their place."""
        target = Target(inode, Facet.DATA, b"")
        if self.watched.has(inode, Facet.DATA):
            self.conflicts.cover_pieces(target, cause, mine.low, mine.high)
            for rival in self._recall_runs(inode, mine.low, mine.high):
                if self.causality.is_same_run(cause, rival.stamp):
                    self._cut_memory(inode, rival, mine)
                else:
                    self._meet_piece(target, cause, mine, rival)
        for rival in overlapped:
            if self.causality.is_same_run(cause, rival.stamp):
                if mine.data is None and rival.data is not None:
                    self.remember_piece(inode, rival._replace(data=b"", is_covered=True))
                continue
            self._meet_piece(target, cause, mine, rival)
            self.remember_piece(inode, rival if rival.stamp < mine.stamp else _cut(mine, rival.low, rival.high))

    def remember_piece(self, inode: int, piece: Piece) -> None:
        """Keep bytes that the tree does not show."""
        target = Target(inode, Facet.DATA, _detail_of(piece))
        name = _COVERED if piece.is_covered else None
        self.remember(target, Memory(piece.stamp, inode, None, name, piece.data), high=piece.high)

    def _meet_piece(self, target: Target, cause: Cause, mine: Piece, rival: Piece) -> None:
        if (mine.data is None and rival.data is None) or not self.causality.is_concurrent(cause, rival.stamp):
            return
        if rival.is_covered and rival.stamp < mine.stamp:
            return
        low, high = max(mine.low, rival.low), min(mine.high, rival.high)
        if mine.stamp < rival.stamp:
            loser, data, winner = Loser(mine.stamp, cause.run, target.object), _cut(mine, low, high).data, rival.stamp
        else:
            loser = Loser(rival.stamp, self._run_of(rival.stamp), target.object)
            data, winner = _cut(rival, low, high).data, mine.stamp
        self.conflicts.lose_piece(target, loser, winner, low, high, data)

    def _recall_runs(self, inode: int, low: int, high: int) -> list[Piece]:
        # What begins further below does not reach here, unless it is long.
        short = LOW.pack(max(0, low - DATA_BYTES_MAX)), LOW.pack(high)
        long = _LONG + LOW.pack(0), _LONG + LOW.pack(high)
        rows = self.connection.execute(_RECALL_RUNS, (inode, Facet.DATA, low, *short, *long)).fetchall()
        pieces = [
            Piece(LOW.unpack(detail[-LOW.size :])[0], run_high, stamp, data, name == _COVERED)
            for detail, stamp, run_high, data, name in rows
        ]
        return sorted(pieces, key=itemgetter(0, 2))

    def _cut_memory(self, inode: int, piece: Piece, later: Piece) -> None:
        """A remembered piece loses the bytes that a later entry of its run writes again, and is covered by its hole."""
        self.connection.execute(_FORGET, (inode, Facet.DATA, _detail_of(piece), piece.stamp))
        if piece.low < later.low:
            self.remember_piece(inode, _cut(piece, piece.low, later.low))
        if later.data is None and piece.data is not None:
            self.remember_piece(inode, _cut(piece, later.low, later.high)._replace(data=b"", is_covered=True))
        if piece.high > later.high:
            self.remember_piece(inode, _cut(piece, later.high, piece.high))

    def _settle(self, target: Target, kind: ConflictKind, cause: Cause, mine: Memory, rival: Memory) -> None:
        """Of two concurrent entries the earlier loses."""
        if mine.stamp < rival.stamp:
            self.conflicts.lose(target, kind, Loser(mine.stamp, cause.run, *mine[1:]), rival.stamp)
        else:
            loser = Loser(rival.stamp, self._run_of(rival.stamp), *rival[1:])
            self.conflicts.lose(target, kind, loser, mine.stamp)

    def _lose_being(self, modification: bytes, run: bytes, removal: Memory) -> None:
        loser = Loser(modification, run, removal.inode, removal.parent, removal.name)
        self.conflicts.lose(Target(removal.inode, Facet.BEING, b""), ConflictKind.DELETE_MODIFY, loser, removal.stamp)

    def _meet_removals(self, directory: int, cause: Cause) -> None:
        target = Target(directory, Facet.EMPTY, b"")
        latest: dict[bytes, Memory] = {}
        for removal in self.recall(target):
            latest[removal.stamp[8:24] + self._run_of(removal.stamp)] = removal
        for removal in latest.values():
            if self.causality.is_concurrent(cause, removal.stamp):
                loser = Loser(removal.stamp, self._run_of(removal.stamp), directory)
                self.conflicts.lose(target, ConflictKind.RMDIR_CREATE, loser, cause.packed)

    def _memories(self, inode: int, facet: Facet) -> list[Memory]:
        """What is remembered of a facet, whatever the detail."""
        if not self.watched.has(inode, facet):
            return []
        return [Memory(*row) for row in self.connection.execute(_RECALL_FACET, (inode, facet)).fetchall()]

    def _run_of(self, packed: bytes) -> bytes:
        run = self.causality.run_of(Stamp.unpack(packed))
        return b"" if run is None else run.name


def _cut(piece: Piece, low: int, high: int) -> Piece:
    low, high = max(piece.low, low), min(piece.high, high)
    return piece._replace(low=low, high=high, data=cut_data(piece.data, piece.low, low, high))


def _detail_of(piece: Piece) -> bytes:
    """What finds a remembered piece among those of its file: where it begins."""
    return LOW.pack(piece.low) if piece.high - piece.low <= DATA_BYTES_MAX else _LONG + LOW.pack(piece.low)
