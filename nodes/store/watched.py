"""What must be looked up: the facets of objects of which something is remembered, or in conflict.

Nothing is looked up where nothing is, which is nearly everywhere, so a look here must cost next to nothing and take the
same memory however much there is. What is told may be more than there is, never less.
"""

from __future__ import annotations

import sqlite3
from array import array

WATCHED_MAX = 100_000
"""Objects that are told apart exactly: about 12 MiB."""
_WORD_BITS = 20
"""2^20 words are 8 MiB."""
_SPREAD = 0x9E3779B97F4A7C15
"""As `shard_of` spreads numbers that follow each other."""
_MASK = (1 << 64) - 1
_CONFLICT = 16
"""Added to the number of a facet: the flag of its conflicts. They are watched by the facet's own flag as well."""
_REMEMBERED = "SELECT object, facet, count(*) FROM recent GROUP BY object, facet"
_CONTESTED = "SELECT object, facet, count(*) FROM conflict GROUP BY object, facet"


def remembered(facet: int) -> int:
    """The flag that something is remembered of a facet (`conflicts.Facet`), or in conflict."""
    return 1 << facet


def contested(facet: int) -> int:
    """The flag that something of a facet is in conflict."""
    return 1 << facet + _CONFLICT


class Watched:
    """Flags of objects. Owned by the store; outlives its transactions.

    Up to a number of objects they are exact. Beyond it each word of a table holds the flags of all objects that a hash
    leads to it, each turned by more bits of the hash, so that they seldom meet: a Bloom filter (Bloom, "Space/time
    trade-offs in hash coding with allowable errors", 1970) that answers for all facets of an object with one look, and is
    wrong for one in sixteen at a million objects of three flags.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._flags: dict[int, int] = {}
        self._words: array[int] | None = None
        self._forgotten = self._rows = 0
        self._load(connection)

    def of(self, inode: int) -> int:
        """The flags of an object, to be compared with those of its facets; higher bits mean nothing."""
        if self._words is None:
            return self._flags.get(inode, 0)
        mixed = inode * _SPREAD & _MASK
        word, turn = self._words[mixed >> 64 - _WORD_BITS], mixed >> 20 & 63
        return word >> turn | word << 64 - turn

    def has(self, inode: int, facet: int) -> bool:
        """Whether something may be there to look up."""
        return bool(self.of(inode) & 1 << facet)

    def has_conflict(self, inode: int, facet: int) -> bool:
        """Whether what may be there may be a conflict."""
        return bool(self.of(inode) & contested(facet))

    def add(self, inode: int, facet: int) -> None:
        """Watch one more."""
        self._add(inode, 1 << facet)

    def add_conflict(self, inode: int, facet: int) -> None:
        """Watch one more that has a conflict."""
        self._add(inode, 1 << facet | contested(facet))

    def reload(self, connection: sqlite3.Connection, forgotten: int) -> None:
        """Watch just what must be, once as many changes were forgotten as were read the last time; for a table, many."""
        self._forgotten += forgotten
        if self._forgotten >= max(self._rows, 1 if self._words is None else WATCHED_MAX):
            self._load(connection)

    def _load(self, connection: sqlite3.Connection) -> None:
        self._flags, self._words, self._forgotten, self._rows = {}, None, 0, 0
        for inode, facet, rows in connection.execute(_REMEMBERED):
            self.add(inode, facet)
            self._rows += rows
        for inode, facet, rows in connection.execute(_CONTESTED):
            self.add_conflict(inode, facet)
            self._rows += rows

    def _add(self, inode: int, flags: int) -> None:
        if self._words is not None:
            mixed = inode * _SPREAD & _MASK
            turn = mixed >> 20 & 63
            self._words[mixed >> 64 - _WORD_BITS] |= flags << turn & _MASK | flags >> 64 - turn
            return
        self._flags[inode] = self._flags.get(inode, 0) | flags
        if len(self._flags) > WATCHED_MAX:
            exact, self._flags = self._flags, {}
            self._words = array("Q", bytes(8 << _WORD_BITS))
            for watched, its_flags in exact.items():
                self._add(watched, its_flags)
