"""Where a conflict is in the tree: the path of what it is about, and the places that its entries name."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from claudefs_repl.journal import ROOT_INODE
from nodes.store.conflict_view import Conflict
from nodes.store.conflicts import Facet
from nodes.store.view import View

NAMES_MAX = 16
"""Of an object's names, and of what a directory holds: enough to see what it is."""
_TRASH = "SELECT parent, name FROM trash WHERE inode = ? AND parent IS NOT NULL"
_LINK_OF = "SELECT parent, name FROM link WHERE inode = ? AND stamp = ? ORDER BY parent, name LIMIT 1"
_CLAIMANT = "SELECT inode FROM link WHERE parent = ? AND name = ? AND stamp = ? ORDER BY inode LIMIT 1"
_LAST_REMOVED = f"""
SELECT parent, name FROM conflict WHERE object = ? AND facet = {Facet.BEING} AND parent IS NOT NULL
ORDER BY winner DESC LIMIT 1
"""  # noqa: S608 -- joined from constants only
_FIELDS = ("mode", "uid", "gid", "mtime_ns")
_FIELD = "SELECT mode, uid, gid, mtime_ns FROM inode WHERE inode = ?"
_XATTR = "SELECT value FROM xattr WHERE inode = ? AND name = ?"


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a directory.

    Attributes:
        path: of the name; where the directory was removed, by the last name it had; None if that is not known.
        is_there: whether the directory shows, so that a name can be given in it.
    """

    parent: int
    name: bytes
    path: bytes | None
    is_there: bool


def place_of(view: View, parent: int, name: bytes) -> Place:
    """A name in a directory, with its path."""
    path, is_there = _directory_path(view, parent)
    return Place(parent, name, None if path is None else join(path, name), is_there)


def shown_places(view: View, inode: int) -> list[Place]:
    """Where an object shows, by all of its names up to `NAMES_MAX`; none if it has no name."""
    return [
        place_of(view, parent, view.shown_name(parent, name, inode))
        for parent, name in view.names_of(inode)[:NAMES_MAX]
    ]


def conflict_path(view: View, conflict: Conflict) -> bytes | None:
    """The path of what a conflict is about; of what shows no more, the last one that is known.

    For a name it is that name, for anything else the object's first name.
    """
    if conflict.kind == "name":
        return place_of(view, conflict.object, conflict.detail).path
    if conflict.object == ROOT_INODE:
        return b"/"
    shown = view.names_of(conflict.object)
    if shown:
        parent, name = shown[0]
        return place_of(view, parent, view.shown_name(parent, name, conflict.object)).path
    for query in (_LAST_REMOVED, _TRASH):
        row = view.connection.execute(query, (conflict.object,)).fetchone()
        if row is not None:
            return place_of(view, *row).path
    return None


def loser_place(view: View, conflict: Conflict) -> Place | None:
    """The place that the losing entry names, if it names one; for a removed object, the one that was removed."""
    if conflict.parent is None or conflict.name is None:
        return None
    return place_of(view, conflict.parent, conflict.name)


def winner_place(view: View, conflict: Conflict) -> Place | None:
    """The place that the winning rename gave, if it is still there."""
    row = view.connection.execute(_LINK_OF, (conflict.inode, conflict.winner.pack())).fetchone()
    if row is None:
        return None
    parent, name = row
    return place_of(view, parent, view.shown_name(parent, name, conflict.inode))


def name_winner(view: View, conflict: Conflict) -> int | None:
    """The object whose claim to a name won; if that is gone, another one that shows the name now, None if none does."""
    place = conflict.object, conflict.detail
    row = view.connection.execute(_CLAIMANT, (*place, conflict.winner.pack())).fetchone()
    if row is not None:
        return int(row[0])
    holder = view.find(*place)
    return None if holder is None or holder.inode == conflict.inode else holder.inode


def current_value(connection: sqlite3.Connection, conflict: Conflict) -> Any:
    """What the attribute of a conflict is now; None if there is none."""
    if conflict.kind == "xattr":
        row = connection.execute(_XATTR, (conflict.object, conflict.detail)).fetchone()
        return None if row is None else row[0]
    row = connection.execute(_FIELD, (conflict.object,)).fetchone()
    return None if row is None else row[_FIELDS.index(conflict.detail.decode())]


def join(directory: bytes, name: bytes) -> bytes:
    """The path of a name in a directory."""
    return directory.rstrip(b"/") + b"/" + name


def _directory_path(view: View, inode: int) -> tuple[bytes | None, bool]:
    """A directory's path, and whether it shows; a removed one has the path of the place that it last had."""
    names: list[bytes] = []
    is_there = True
    while inode != ROOT_INODE:
        shown = view.names_of(inode)
        if shown:
            parent, name = shown[0]
            names.append(view.shown_name(parent, name, inode))
        else:
            is_there = False
            row = view.connection.execute(_TRASH, (inode,)).fetchone()
            if row is None:
                return None, False
            parent, name = row
            names.append(name)
        inode = parent
    return b"/" + b"/".join(reversed(names)), is_there
