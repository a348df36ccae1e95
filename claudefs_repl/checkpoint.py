"""Replication checkpoints: cursor vectors over all journals and shards, and how they compare.

A cursor is the count of entries of one journal's shard that have passed a point, which is also the `seq` of the last
of them, because seqs are dense from 1. 0 is "none of them"; a journal that is absent from a vector is the same as all
zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from claudefs_repl.journal import SITE_ID_MAX, Incarnation, JournalId, SiteId

Cursors = Mapping[JournalId, tuple[int, ...]]
"""Cursors of every journal: one seq for each shard. Treated as immutable."""

JOURNALS_MAX = 4096
"""Journals in one vector: every site that a configuration can name, twice."""
SEQ_MAX = (1 << 63) - 1
"""Seqs stay signed 64-bit integers, as SQLite wants them."""
_HEAD = struct.Struct("<HH")
_JOURNAL = struct.Struct("<QQ")


def cursor_of(cursors: Cursors, journal: JournalId, shard_count: int) -> tuple[int, ...]:
    """The cursors of one journal, zeros if nothing of it has passed."""
    return cursors.get(journal) or (0,) * shard_count


def covers(upper: Cursors, lower: Cursors) -> bool:
    """Whether everything that passed `lower` has passed `upper`."""
    for journal, seqs in lower.items():
        above = upper.get(journal)
        if above is None:
            if any(seqs):
                return False
        elif any(a < b for a, b in zip(above, seqs, strict=True)):
            return False
    return True


def equal(one: Cursors, other: Cursors) -> bool:
    """Whether the same entries have passed both; absent journals count as zeros."""
    return covers(one, other) and covers(other, one)


def meet(vectors: Iterable[Cursors], journal: JournalId, shard_count: int) -> tuple[int, ...]:
    """What has passed all of the vectors in one journal: the minimum for each shard.

    Raises:
        ValueError: there are no vectors, whose minimum would be everything.
    """
    columns = [cursor_of(v, journal, shard_count) for v in vectors]
    if not columns:
        raise ValueError("the meet of no cursors is unbounded")
    return tuple(map(min, *columns)) if len(columns) > 1 else columns[0]


def join(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The maximum for each shard: cursors only move forward."""
    return tuple(map(max, one, other))


def distance(ahead: tuple[int, ...], behind: tuple[int, ...]) -> int:
    """How many entries `ahead` has that `behind` lacks, summed over the shards."""
    return sum(max(0, a - b) for a, b in zip(ahead, behind, strict=True))


def encode_cursors(cursors: Cursors, shard_count: int) -> bytes:
    """A vector as bytes: journals (2), shards (2), then origin (8), incarnation (8), a seq (8) for each shard.

    Little endian, journals in ascending order, all-zero journals left out: equal vectors have equal bytes.
    """
    kept = sorted((journal, seqs) for journal, seqs in cursors.items() if any(seqs))
    parts = [_HEAD.pack(len(kept), shard_count)]
    for journal, seqs in kept:
        parts.append(_JOURNAL.pack(*journal))
        parts.append(struct.pack(f"<{shard_count}Q", *seqs))
    return b"".join(parts)


def decode_cursors(encoded: bytes | memoryview) -> dict[JournalId, tuple[int, ...]]:
    """The inverse of `encode_cursors`.

    Raises:
        ValueError: the bytes are not what `encode_cursors` writes for some vector.
    """
    if len(encoded) < _HEAD.size:
        raise ValueError(f"a cursor vector has at least {_HEAD.size} bytes, not {len(encoded)}")
    journals, shards = _HEAD.unpack_from(encoded)
    size = _JOURNAL.size + 8 * shards
    if journals > JOURNALS_MAX:
        raise ValueError(f"a cursor vector has at most {JOURNALS_MAX} journals, not {journals}")
    if len(encoded) != _HEAD.size + journals * size:
        raise ValueError(f"{journals} journals of {shards} shards do not fit {len(encoded)} bytes")
    cursors: dict[JournalId, tuple[int, ...]] = {}
    last = JournalId(SiteId(0), Incarnation(0))
    for at in range(_HEAD.size, len(encoded), size):
        origin, incarnation = _JOURNAL.unpack_from(encoded, at)
        seqs = struct.unpack_from(f"<{shards}Q", encoded, at + _JOURNAL.size)
        journal = JournalId(SiteId(origin), Incarnation(incarnation))
        if journal <= last or not 1 <= origin <= SITE_ID_MAX:
            raise ValueError(f"journal {journal} is out of order or range")
        if not 0 < max(seqs, default=0) <= SEQ_MAX:
            raise ValueError(f"journal {journal} has no cursor above 0, or one beyond {SEQ_MAX}")
        cursors[journal] = seqs
        last = journal
    return cursors


def encode_incarnations(current: Mapping[SiteId, Incarnation]) -> bytes:
    """Which incarnation of each origin is the current one: origin (8), incarnation (8) each, by ascending origin."""
    return b"".join(_JOURNAL.pack(origin, current[origin]) for origin in sorted(current))


def decode_incarnations(encoded: bytes | memoryview) -> dict[SiteId, Incarnation]:
    """The inverse of `encode_incarnations`.

    Raises:
        ValueError: the bytes are not what `encode_incarnations` writes for some sites.
    """
    if len(encoded) % _JOURNAL.size:
        raise ValueError(f"incarnations have {_JOURNAL.size} bytes each, not {len(encoded)} in all")
    current: dict[SiteId, Incarnation] = {}
    last = 0
    for origin, incarnation in _JOURNAL.iter_unpack(encoded):
        if not last < origin <= SITE_ID_MAX:
            raise ValueError(f"site {origin} is out of order or range")
        current[SiteId(origin)] = Incarnation(incarnation)
        last = origin
    return current


def encoded_cursors_length(encoded: memoryview | bytes, at: int) -> int:
    """The length of the vector that begins at a position.

    Raises:
        ValueError: its head is cut off.
    """
    if at + _HEAD.size > len(encoded):
        raise ValueError("a cursor vector's head is cut off")
    journals, shards = _HEAD.unpack_from(encoded, at)
    return int(_HEAD.size + journals * (_JOURNAL.size + 8 * shards))
