"""What a store has folded, counted beside its applied cursors: they must tell the same, here and at every other site.

For each journal and shard two numbers are kept in the transaction that moves the cursors. `folded` counts the entries that
were given an effect or put aside, one by one, where that happens. `chain` is the CRC-32 of the checksums of all of them in
the order of their seqs, as one stream of bytes: it does not depend on how entries are cut into blocks, so it is the same at
every site that folded the same entries once each and in order. An entry that was passed over, folded twice or altered shows.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from claudefs_repl.journal import Incarnation, JournalId, SiteId
from nodes.store.conflict_view import SHOWN
from nodes.store.schema import pack_incarnation

_READ = "SELECT sums FROM journal WHERE origin = ? AND incarnation = ?"
_READ_ALL = "SELECT origin, incarnation, sums FROM journal ORDER BY origin, incarnation"
_WRITE = "UPDATE journal SET sums = ? WHERE origin = ? AND incarnation = ?"


class JournalSums:
    """The sums of one journal. Owned by the transaction that reads and writes them.

    Attributes:
        folded: for each shard the number of entries that took effect or were put aside.
        chains: for each shard the CRC-32 over the checksums of those entries, 0 for none.
    """

    __slots__ = ("chains", "folded")

    def __init__(self, folded: Sequence[int], chains: Sequence[int]) -> None:
        self.folded = list(folded)
        self.chains = list(chains)

    def add(self, shard: int, *, folded: int, crcs: memoryview) -> None:
        """Take note of the next entries of a shard: how many were dealt with, and their checksums as they came."""
        self.folded[shard] += folded
        self.chains[shard] = zlib.crc32(crcs, self.chains[shard])

    def pack(self) -> bytes:
        """As the table holds them."""
        count = len(self.folded)
        return struct.pack(f"<{count}Q{count}I", *self.folded, *self.chains)

    @classmethod
    def unpack(cls, packed: bytes) -> JournalSums:
        """The inverse of `pack`."""
        count = len(packed) // 12
        numbers = struct.unpack(f"<{count}Q{count}I", packed)
        return cls(numbers[:count], numbers[count:])


def read_sums(connection: sqlite3.Connection, journal: JournalId, shard_count: int) -> JournalSums:
    """The sums of a journal, zeros if nothing of it is applied."""
    row = connection.execute(_READ, (journal.origin, pack_incarnation(journal.incarnation))).fetchone()
    return JournalSums([0] * shard_count, [0] * shard_count) if row is None else JournalSums.unpack(row[0])


def read_all_sums(connection: sqlite3.Connection) -> dict[JournalId, JournalSums]:
    """The sums of every journal that is applied at least in part."""
    return {
        JournalId(SiteId(origin), Incarnation(int.from_bytes(incarnation, "big"))): JournalSums.unpack(packed)
        for origin, incarnation, packed in connection.execute(_READ_ALL).fetchall()
    }


def write_sums(connection: sqlite3.Connection, sums: Mapping[JournalId, JournalSums]) -> None:
    """Store the sums of some journals, whose cursors are stored before."""
    rows = [(one.pack(), journal.origin, pack_incarnation(journal.incarnation)) for journal, one in sums.items()]
    connection.executemany(_WRITE, rows)


_SHOWING = f"""
WITH current(stamp) AS (
    SELECT made FROM inode WHERE made <> x'' AND gone = 0
    UNION SELECT mode_stamp FROM inode WHERE mode_stamp <> x'' AND gone = 0
    UNION SELECT uid_stamp FROM inode WHERE uid_stamp <> x'' AND gone = 0
    UNION SELECT gid_stamp FROM inode WHERE gid_stamp <> x'' AND gone = 0
    UNION SELECT mtime_stamp FROM inode WHERE mtime_stamp <> x'' AND gone = 0
    UNION SELECT length_stamp FROM inode WHERE length_stamp <> x'' AND gone = 0
    UNION SELECT stamp FROM extent WHERE data IS NOT NULL
    UNION SELECT stamp FROM xattr WHERE value IS NOT NULL
    UNION SELECT stamp FROM link
), lost(stamp) AS (SELECT c.loser FROM conflict c WHERE {SHOWN} EXCEPT SELECT stamp FROM current)
SELECT substr(stamp, 9, 8), substr(stamp, 17, 8), substr(stamp, 25, 4),
    sum(is_current), sum(1 - is_current), max(substr(stamp, 29, 8))
FROM (SELECT stamp, 1 AS is_current FROM current UNION ALL SELECT stamp, 0 FROM lost) GROUP BY 1, 2, 3
"""  # noqa: S608 -- joined from constants only
"""The stamps of the current values and of the losers; what is kept only to judge what is still to come does not count."""


@dataclass(frozen=True, slots=True)
class Showing:
    """How many entries of one journal's shard have left something in the view.

    Attributes:
        current: those of which something is the current value.
        lost: those of which nothing is, but that are on the conflict list.
        last_seq: the greatest seq of both, 0 if there are none.
    """

    current: int = 0
    lost: int = 0
    last_seq: int = 0


def count_showing(connection: sqlite3.Connection) -> dict[tuple[JournalId, int], Showing]:
    """By journal and shard, how many entries show. Reads every table through."""
    number, counts = partial(int.from_bytes, byteorder="big"), {}
    for origin, incarnation, shard, current, lost, last in connection.execute(_SHOWING).fetchall():
        journal = JournalId(SiteId(number(origin)), Incarnation(number(incarnation)))
        counts[journal, number(shard)] = Showing(current, lost, number(last))
    return counts


def count_dead_letters(connection: sqlite3.Connection) -> dict[tuple[JournalId, int], int]:
    """By journal and shard, how many entries are dead letters."""
    query = "SELECT origin, incarnation, shard, count(*) FROM dead_letter GROUP BY 1, 2, 3"
    return {
        (JournalId(SiteId(origin), Incarnation(int.from_bytes(incarnation, "big"))), shard): count
        for origin, incarnation, shard, count in connection.execute(query).fetchall()
    }
