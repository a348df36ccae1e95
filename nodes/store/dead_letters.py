"""Dead letters: entries that this program cannot apply, kept with the reason until a later one can.

An entry whose payload is of a version that is not known here may mean anything for its object, and what its own journal
did to that object afterwards was done on top of it. So the later entries of the same journal and object wait, as dead
letters too, and everything else goes on: each object's entries are folded in the order of their journal, on which the
rules of folding rest, while other journals, other objects of the shard, and the applied cursor are not held up.

An entry that breaks a rule (`EntryUnsound`) is different: no version of this program gives it an effect, at no site, so
nothing waits for it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from claudefs_repl.journal import Incarnation, JournalId, Shard, SiteId
from nodes.store.schema import pack_incarnation
from protocol.payload import PayloadInvalid

_INSERT = "INSERT INTO dead_letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_HOLDER = (
    "SELECT min(seq) FROM dead_letter "
    "WHERE inode = ? AND origin = ? AND incarnation = ? AND shard = ? AND is_unsound = 0"
)
_IS_OPEN_FOR = "SELECT 1 FROM dead_letter WHERE inode = ? AND is_unsound = 0 LIMIT 1"
_COLUMNS = "origin, incarnation, shard, seq, op, inode, timestamp_us, payload, seen, reason, is_unsound"
_PAGE = f"""
SELECT {_COLUMNS} FROM dead_letter WHERE (origin, incarnation, shard, seq) > (?, ?, ?, ?)
ORDER BY origin, incarnation, shard, seq LIMIT ?
"""  # noqa: S608 -- joined from constants only
_NAMED = f"""
SELECT {_COLUMNS} FROM dead_letter WHERE origin = ?1 AND (?2 IS NULL OR incarnation = ?2) AND shard = ?3 AND seq = ?4
ORDER BY incarnation
"""  # noqa: S608 -- joined from constants only
_KEEP = (
    "UPDATE dead_letter SET reason = ?, is_unsound = ? WHERE origin = ? AND incarnation = ? AND shard = ? AND seq = ?"
)
_REMOVE = "DELETE FROM dead_letter WHERE origin = ? AND incarnation = ? AND shard = ? AND seq = ?"


class EntryUnsound(PayloadInvalid):
    """An entry that no sound site writes: it breaks a rule on which convergence rests, and never takes effect."""


class EntryKey(NamedTuple):
    """Which entry, in the order in which dead letters are kept."""

    origin: SiteId
    incarnation: Incarnation
    shard: Shard
    seq: int

    @property
    def journal(self) -> JournalId:
        """The journal that it is in."""
        return JournalId(self.origin, self.incarnation)

    def __str__(self) -> str:
        return f"{self.journal}/{self.shard}/{self.seq}"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry that could not be applied.

    Attributes:
        op: as the entry tells it.
        inode: as the entry tells it: 64 bits, which may be out of the range of inode numbers.
        payload: as it came.
        seen: what its writer had applied, encoded.
        reason: why it was put aside, for people.
        is_unsound: whether no program will ever apply it.
    """

    key: EntryKey
    op: int
    inode: int
    timestamp_us: int
    payload: bytes
    seen: bytes
    reason: str
    is_unsound: bool


def put_aside(connection: sqlite3.Connection, letter: DeadLetter) -> None:
    """Keep an entry as a dead letter."""
    details = (letter.op, str(letter.inode), str(letter.timestamp_us), letter.payload, letter.seen, letter.reason)
    connection.execute(_INSERT, (*_key_row(letter.key), *details, letter.is_unsound))


def any_waiting(connection: sqlite3.Connection) -> bool:
    """Whether there is any dead letter that may still be applied: an unsound one holds up nothing."""
    return bool(connection.execute("SELECT EXISTS(SELECT 1 FROM dead_letter WHERE is_unsound = 0)").fetchone()[0])


def holder(connection: sqlite3.Connection, key: EntryKey, inode: int) -> int | None:
    """The seq of the first dead letter that an entry of an object must wait for, None if there is none."""
    origin, incarnation, shard, seq = _key_row(key)
    (first,) = connection.execute(_HOLDER, (str(inode), origin, incarnation, shard)).fetchone()
    return None if first is None or first >= seq else int(first)


def waits_for(seq: int) -> str:
    """The reason of a dead letter that could be decoded and waits for an earlier one of its object."""
    return f"waits for entry {seq} of the same journal and shard, which is about the same object"


def is_open_for(connection: sqlite3.Connection, inode: int) -> bool:
    """Whether some entry of an object may still take effect here although the applied cursors have passed it."""
    return connection.execute(_IS_OPEN_FOR, (str(inode),)).fetchone() is not None


def read_letters(connection: sqlite3.Connection, after: EntryKey | None, limit: int) -> list[DeadLetter]:
    """A page of the dead letters, in the order of their keys."""
    start = (0, b"", 0, 0) if after is None else _key_row(after)
    return [_letter(row) for row in connection.execute(_PAGE, (*start, limit)).fetchall()]


def find_letters(
    connection: sqlite3.Connection, origin: SiteId, incarnation: Incarnation | None, shard: Shard, seq: int
) -> list[DeadLetter]:
    """The dead letter of a shard and seq in a journal of a site, or in each of its journals."""
    packed = None if incarnation is None else pack_incarnation(incarnation)
    return [_letter(row) for row in connection.execute(_NAMED, (origin, packed, shard, seq)).fetchall()]


def keep_letter(connection: sqlite3.Connection, key: EntryKey, reason: str, *, is_unsound: bool) -> None:
    """A dead letter stays one, for a reason that may be another now."""
    connection.execute(_KEEP, (reason, is_unsound, *_key_row(key)))


def remove_letter(connection: sqlite3.Connection, key: EntryKey) -> None:
    """An entry is a dead letter no longer."""
    connection.execute(_REMOVE, _key_row(key))


def _key_row(key: EntryKey) -> tuple[int, bytes, int, int]:
    return key.origin, pack_incarnation(key.incarnation), key.shard, key.seq


def _letter(row: Sequence[Any]) -> DeadLetter:
    origin, incarnation, shard, seq, op, inode, timestamp_us, payload, seen, reason, is_unsound = row
    key = EntryKey(SiteId(origin), Incarnation(int.from_bytes(incarnation, "big")), Shard(shard), seq)
    return DeadLetter(key, op, int(inode), int(timestamp_us), payload, seen, reason, bool(is_unsound))
