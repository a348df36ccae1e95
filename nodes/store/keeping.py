"""What the content that lost takes, and giving it up: the oldest conflicts first, when it is more than a site may keep.

A conflict's content is the pieces that it keeps, the value of an extended attribute that it would have set, and the whole
object, if that has no name any more and is there for the conflict alone. Which of it is kept is each site's own affair: the
conflict stays in the list.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from nodes.store.conflict_view import Conflict, count_open, recorded_conflict

_IS_SETTLED = "EXISTS (SELECT 1 FROM resolution r WHERE r.conflict = c.id)"
_IS_NAMELESS = "NOT EXISTS (SELECT 1 FROM link l WHERE l.inode = c.inode)"
_PIECES = "SELECT coalesce(sum(length(data)), 0) FROM piece"
_VALUES = "SELECT coalesce(sum(length(value)), 0) FROM conflict WHERE typeof(value) = 'blob'"
_OBJECTS = f"""
SELECT coalesce(sum(high - low), 0) FROM extent WHERE data IS NOT NULL AND inode IN (
    SELECT DISTINCT c.inode FROM conflict c WHERE c.is_kept AND {_IS_NAMELESS} AND NOT {_IS_SETTLED})
"""  # noqa: S608 -- joined from constants only
_GIVEN_UP = f"SELECT count(*) FROM conflict c WHERE NOT c.is_kept AND NOT {_IS_SETTLED}"  # noqa: S608 -- constants only
_BYTES = f"""
coalesce((SELECT sum(length(p.data)) FROM piece p WHERE p.conflict = c.id), 0)
+ CASE WHEN typeof(c.value) = 'blob' THEN length(c.value) ELSE 0 END
+ CASE WHEN c.is_kept AND {_IS_NAMELESS} THEN
    (SELECT coalesce(sum(e.high - e.low), 0) FROM extent e WHERE e.inode = c.inode AND e.data IS NOT NULL)
  ELSE 0 END
"""  # noqa: S608 -- joined from constants only
_SETTLED = f"""
SELECT c.loser, c.id, {_BYTES} FROM resolution r JOIN conflict c ON c.id = r.conflict ORDER BY c.id LIMIT ?
"""  # noqa: S608 -- joined from constants only
_OPEN = f"""
SELECT c.loser, c.id, {_BYTES} FROM conflict c WHERE (c.loser, c.id) > (?, ?) AND NOT {_IS_SETTLED}
ORDER BY c.loser, c.id LIMIT ?
"""  # noqa: S608 -- joined from constants only
_GIVE_UP = (
    "UPDATE piece SET data = NULL WHERE conflict = ?",
    "UPDATE conflict SET is_kept = 0, value = CASE WHEN typeof(value) = 'blob' THEN NULL ELSE value END WHERE id = ?",
)
_START = (b"", b"")


@dataclass(frozen=True, slots=True)
class KeptContent:
    """The conflict list in numbers.

    Attributes:
        open: conflicts that nobody has settled, by kind.
        kept_bytes: what the content takes that lost.
        given_up: open conflicts whose content was given up here.
    """

    open: dict[str, int] = field(default_factory=dict)
    kept_bytes: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A conflict whose content is not here any more.

    Attributes:
        conflict: as it was before.
        content_bytes: what its content took.
    """

    conflict: Conflict
    content_bytes: int


def count_kept(connection: sqlite3.Connection) -> KeptContent:
    """Count anew; reads the list, and of the content only how long it is."""
    return KeptContent(
        open=count_open(connection),
        kept_bytes=sum(int(connection.execute(query).fetchone()[0]) for query in (_PIECES, _VALUES, _OBJECTS)),
        given_up=int(connection.execute(_GIVEN_UP).fetchone()[0]),
    )


class GivingUp:
    """Lets content go, oldest conflicts first, in rounds over the list. Owned by the store's writer.

    What comes in with an older stamp than where a round is has its turn in the next one: so a step costs no more, however
    many conflicts before it have nothing left to give.
    """

    def __init__(self) -> None:
        self._place = _START

    def step(
        self, connection: sqlite3.Connection, excess_bytes: int, *, rows_max: int, conflicts_max: int
    ) -> tuple[list[GivenUp], int]:
        """Let go of so many bytes in a transaction of the caller's, or stop after some rows or conflicts.

        Returns:
            the open conflicts whose content went, and how many bytes did, with those of settled ones. These go first,
            because nobody wants them.
        """
        wanted_bytes = excess_bytes
        for _, number, content_bytes in connection.execute(_SETTLED, (rows_max,)).fetchall():
            if content_bytes and excess_bytes > 0:
                _give_up(connection, number)
                excess_bytes -= content_bytes
        given_up: list[GivenUp] = []
        is_new_round = self._place == _START
        while rows_max > 0 and excess_bytes > 0:
            rows = connection.execute(_OPEN, (*self._place, rows_max)).fetchall()
            for loser, number, content_bytes in rows:
                if excess_bytes <= 0 or len(given_up) == conflicts_max:
                    return given_up, wanted_bytes - excess_bytes
                self._place = loser, number
                if content_bytes:
                    conflict = recorded_conflict(connection, number)
                    assert conflict is not None
                    _give_up(connection, number)
                    excess_bytes -= content_bytes
                    given_up.append(GivenUp(conflict, content_bytes))
            if len(rows) < rows_max:
                self._place = _START
                if is_new_round:
                    break
                is_new_round = True
            rows_max -= len(rows)
        return given_up, wanted_bytes - excess_bytes


def _give_up(connection: sqlite3.Connection, number: bytes) -> None:
    for statement in _GIVE_UP:
        connection.execute(statement, (number,))
