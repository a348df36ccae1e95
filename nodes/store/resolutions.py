"""Resolutions: that somebody looked at a conflict and settled it, told to every site.

A resolution travels as an ordinary entry: an extended attribute of the conflict's object, with a name that no client can
set. It is kept beside the tree, not in it, so it changes no digest. The latest by stamp counts.
"""

from __future__ import annotations

import sqlite3
from enum import IntEnum

from nodes.store.causality import Cause
from nodes.store.conflicts import ID_BYTES

PREFIX = b"system.claudefs-repl.conflict-"
"""Linux gives `system.` to the kernel: no user's attribute has such a name."""
_SETTLE = (
    "INSERT INTO resolution VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET stamp = excluded.stamp, how = excluded.how "
    "WHERE stamp < excluded.stamp"
)


class How(IntEnum):
    """What was decided."""

    ACCEPTED = 1
    RESTORED = 2


def is_resolution(name: bytes) -> bool:
    """Whether an extended attribute's name is that of a resolution."""
    return name.startswith(PREFIX)


def resolution_name(conflict: bytes) -> bytes:
    """The attribute that tells of a conflict's resolution."""
    return PREFIX + conflict.hex().encode()


def fold_resolution(connection: sqlite3.Connection, cause: Cause, name: bytes, value: bytes | None) -> None:
    """Take a resolution in; what is not well formed has no effect."""
    try:
        conflict, how = bytes.fromhex(name[len(PREFIX) :].decode()), How(int(value or b""))
    except ValueError:
        return
    if len(conflict) == ID_BYTES:
        connection.execute(_SETTLE, (conflict, cause.packed, how))
