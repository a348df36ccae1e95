"""Who had seen what: the `seen` vectors of the entries that something may still be concurrent with.

Two entries are concurrent if neither had seen the other. Stamps respect what was seen: an entry orders after everything
that its writer had applied. So of two entries only the later one can have seen the other, and its vector decides.

Vectors are kept for runs of entries: a journal's neighbours in one shard with the same vector, one row for all of them. A
run is named by a hash of its vector, so that entries of one journal "with the same `seen`" are told without the vector.
An entry whose run is forgotten is causally stable: whatever comes has seen it, and it had seen whatever comes late.
"""

from __future__ import annotations

import hashlib
import sqlite3
from typing import NamedTuple

from claudefs_repl.checkpoint import Cursors, decode_cursors
from claudefs_repl.journal import Incarnation, JournalId, Shard, SiteId, Stamp
from nodes.store.schema import pack_incarnation

RUN_BYTES = 8
"""Of a vector's SHA-256: enough to tell the few thousand vectors apart that are kept at a time."""
_VECTORS_MAX = 1024
"""Decoded vectors and looked-up runs that are held; then all are forgotten, and looked up again."""

_RUN_AT = """
SELECT r.first_seq, r.last_seq, s.vector FROM seen_run r JOIN seen s ON s.id = r.seen
WHERE r.origin = ? AND r.incarnation = ? AND r.shard = ? AND r.first_seq <= ? ORDER BY r.first_seq DESC LIMIT 1
"""
_EXTEND = """
UPDATE seen_run SET last_seq = ?5 WHERE origin = ?1 AND incarnation = ?2 AND shard = ?3 AND last_seq = ?4 - 1 AND seen = ?6
AND first_seq = (SELECT max(first_seq) FROM seen_run WHERE origin = ?1 AND incarnation = ?2 AND shard = ?3)
"""
_BEGIN = "INSERT OR IGNORE INTO seen_run VALUES (?1, ?2, ?3, ?4, ?5, ?6)"


class Run(NamedTuple):
    """Consecutive entries of one journal and shard with one vector.

    Attributes:
        name: a hash of the vector.
    """

    first_seq: int
    last_seq: int
    vector: bytes
    name: bytes


class Cause(NamedTuple):
    """The entry that is being folded, without its payload.

    Attributes:
        stamp: its place in the order of all entries.
        packed: the same as bytes.
        seen: what its writer had applied, encoded.
        run: the name of its run.
        is_local: whether it is being written here, so that everything that is applied here it has seen.
    """

    stamp: Stamp
    packed: bytes
    seen: bytes
    run: bytes
    is_local: bool

    @property
    def journal(self) -> JournalId:
        """The journal that it is in."""
        return JournalId(self.stamp.origin, self.stamp.incarnation)


def run_name(seen: bytes) -> bytes:
    """The name of the runs of entries with a `seen` vector."""
    return hashlib.sha256(seen).digest()[:RUN_BYTES]


def is_same_journal(one: bytes, other: bytes) -> bool:
    """Whether two packed stamps are of one journal."""
    return one[8:24] == other[8:24]


def has_seen(later: Stamp, seen: Cursors, earlier: Stamp) -> bool:
    """Whether the writer of an entry knew of another."""
    if (later.origin, later.incarnation) == (earlier.origin, earlier.incarnation):
        return earlier.seq < later.seq if earlier.shard == later.shard else earlier < later
    seqs = seen.get(JournalId(earlier.origin, earlier.incarnation), ())
    return earlier.shard < len(seqs) and earlier.seq <= seqs[earlier.shard]


class Causality:
    """The vectors of one store. Owned by the `Fold` that is open.

    Args:
        stable: what is causally stable; of less than that nothing needs to be remembered.
    """

    def __init__(self, connection: sqlite3.Connection, stable: Cursors) -> None:
        self._connection = connection
        self._stable = stable
        self._vectors: dict[bytes, Cursors] = {}
        self._names: dict[bytes, bytes] = {}
        self._ids: dict[bytes, int] = {}
        self._runs: dict[tuple[int, int, int], Run] = {}
        self._open_from: tuple[int, ...] | None = None

    def begin_local(self, next_seqs: tuple[int, ...]) -> None:
        """Entries of the own journal are being written from these seqs on, all with the vector of their cause."""
        self._open_from = next_seqs

    def note(self, journal: JournalId, shard: Shard, *, first_seq: int, last_seq: int, seen: bytes) -> None:
        """Keep the vector of some entries that are being folded."""
        place = (journal.origin, pack_incarnation(journal.incarnation), shard, first_seq, last_seq, self.intern(seen))
        if not self._connection.execute(_EXTEND, place).rowcount:
            self._connection.execute(_BEGIN, place)

    def intern(self, seen: bytes) -> int:
        """The number of a vector in the store."""
        found = self._ids.get(seen)
        if found is None:
            self._connection.execute("INSERT OR IGNORE INTO seen(vector) VALUES (?)", (seen,))
            (found,) = self._connection.execute("SELECT id FROM seen WHERE vector = ?", (seen,)).fetchone()
            self._ids[seen] = int(found)
        return int(found)

    def decoded(self, seen: bytes) -> Cursors:
        """A vector, decoded once for all entries that have it."""
        vector = self._vectors.get(seen)
        if vector is None:
            if len(self._vectors) >= _VECTORS_MAX:
                self._vectors.clear()
            vector = self._vectors[seen] = decode_cursors(seen)
        return vector

    def name_of(self, seen: bytes) -> bytes:
        """The name of a vector's runs, hashed once for all entries that have it."""
        name = self._names.get(seen)
        if name is None:
            if len(self._names) >= _VECTORS_MAX:
                self._names.clear()
            name = self._names[seen] = run_name(seen)
        return name

    def is_stable(self, packed: bytes) -> bool:
        """Whether an entry is known to be causally stable."""
        if not self._stable:
            return False
        _, origin, incarnation, shard, seq = Stamp.unpack(packed)
        seqs = self._stable.get(JournalId(origin, incarnation))
        return seqs is not None and seq <= seqs[shard]

    def run_of(self, stamp: Stamp) -> Run | None:
        """The run of an entry that is applied here; None if it is forgotten, because the entry is stable."""
        key = (stamp.origin, stamp.incarnation, stamp.shard)
        run = self._runs.get(key)
        if run is not None and run.first_seq <= stamp.seq <= run.last_seq:
            return run
        place = (stamp.origin, pack_incarnation(stamp.incarnation), stamp.shard, stamp.seq)
        row = self._connection.execute(_RUN_AT, place).fetchone()
        if row is None or row[1] < stamp.seq:
            return None
        run = Run(row[0], row[1], row[2], self.name_of(row[2]))
        if len(self._runs) >= _VECTORS_MAX:
            self._runs.clear()
        self._runs[key] = run
        return run

    def is_concurrent(self, cause: Cause, other: bytes) -> bool:
        """Whether an entry that is applied here and the one that is being folded had not seen each other."""
        if cause.is_local or is_same_journal(cause.packed, other):
            return False
        stamp = Stamp.unpack(other)
        if other < cause.packed:
            return not has_seen(cause.stamp, self.decoded(cause.seen), stamp)
        run = self.run_of(stamp)
        return run is not None and not has_seen(stamp, self.decoded(run.vector), cause.stamp)

    def are_concurrent(self, earlier: bytes, later: bytes) -> bool:
        """Whether of two entries that are applied here the later one had not seen the earlier."""
        if is_same_journal(earlier, later):
            return False
        stamp = Stamp.unpack(later)
        run = self.run_of(stamp)
        return run is not None and not has_seen(stamp, self.decoded(run.vector), Stamp.unpack(earlier))

    def is_same_run(self, cause: Cause, other: bytes) -> bool:
        """Whether an entry is of the same journal and had seen the same as the one that is being folded."""
        if not is_same_journal(cause.packed, other):
            return False
        stamp = Stamp.unpack(other)
        if cause.is_local and self._open_from is not None and stamp.seq >= self._open_from[stamp.shard]:
            return True
        run = self.run_of(stamp)
        return run is not None and run.name == cause.run


def unpack_journal(key: bytes) -> JournalId:
    """The journal that 16 bytes of a packed stamp tell."""
    return JournalId(
        SiteId(int.from_bytes(key[:8], "big")),
        Incarnation(int.from_bytes(key[8:16], "big")),
    )
