"""What clients ask of the conflict list: pages of it, one conflict with all that is known of it, and what it lost."""

from __future__ import annotations

import errno
from dataclasses import asdict
from typing import Any

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import Stamp
from nodes.client_ops import READS, check_fields
from nodes.queries import Handler
from nodes.store.conflict_places import (
    NAMES_MAX,
    conflict_path,
    current_value,
    loser_place,
    name_winner,
    shown_places,
    winner_place,
)
from nodes.store.conflict_view import Conflict, find_conflict, page_conflicts
from nodes.store.lost_content import lost_content, read_lost
from nodes.store.sqlite_store import SqliteStore
from nodes.store.view import View
from nodes.write_gate import WriteGate

PAGE_MAX = 500
"""Conflicts of one answer, each at most a path and a value long."""
VALUE_BYTES_MAX = 256
"""Of a value in a page; the whole of it is told of one conflict at a time."""
SCAN_MAX = 2000
"""Conflicts that are looked at for one answer, when a path is asked for that few of them have."""


class ConflictService:
    """Answers clients about the conflicts that one site shows."""

    def __init__(self, *, store: SqliteStore, gate: WriteGate) -> None:
        self._store = store
        self._gate = gate

    def handlers(self) -> dict[str, Handler]:
        """What the client service asks."""
        return {"conflicts": self._page, "conflict": self._one, "lost": self._lost}

    def _take(self, method: str, args: dict[str, Any]) -> dict[str, Any]:
        self._gate.check_read()
        return check_fields(method, args, READS[method])

    async def _page(self, args: dict[str, Any]) -> Any:
        """A page: `next` is the cursor to go on from, None at the end."""
        fields = self._take("conflicts", args)
        return await self._store.read(lambda view: conflict_page(view, **fields))

    async def _one(self, args: dict[str, Any]) -> Any:
        prefix = self._take("conflict", args)["id"]
        return await self._store.read(lambda view: conflict_details(view, find_conflict(view.connection, prefix)))

    async def _lost(self, args: dict[str, Any]) -> Any:
        fields = self._take("lost", args)
        number, offset, length = fields["id"], fields["offset"], fields["length"]
        return await self._store.read(lambda view: read_lost(view, number, offset, length))


def conflict_page(
    view: View,
    *,
    after: bytes | None,
    limit: int,
    kind: str | None,
    path: bytes | None,
    since_us: int | None,
    is_open: bool | None,
) -> dict[str, Any]:
    """A page of the list, in the order of the losers' stamps; `path` takes what is there or beneath it."""
    found: list[dict[str, Any]] = []
    scanned, limit = 0, min(limit, PAGE_MAX)
    wanted = None if path is None else path.rstrip(b"/")
    while True:
        rows = page_conflicts(view.connection, after, PAGE_MAX, kind=kind, since_us=since_us, is_open=bool(is_open))
        for conflict in rows:
            if len(found) == limit or scanned == SCAN_MAX:
                return {"conflicts": found, "next": after}
            scanned += 1
            after = conflict.cursor
            place = conflict_path(view, conflict)
            if wanted is None or (place is not None and (place + b"/").startswith(wanted + b"/")):
                found.append(conflict_map(conflict, place, value_bytes_max=VALUE_BYTES_MAX))
        if len(rows) < PAGE_MAX:
            return {"conflicts": found, "next": None}


def conflict_map(conflict: Conflict, path: bytes | None, *, value_bytes_max: int | None = None) -> dict[str, Any]:
    """A conflict as clients get it."""
    value = conflict.value
    if isinstance(value, bytes) and value_bytes_max is not None:
        value = value[:value_bytes_max]
    return {
        "id": conflict.id,
        "kind": conflict.kind,
        "path": path,
        "object": conflict.object,
        "inode": conflict.inode,
        "detail": conflict.detail,
        "value": value,
        "loser": _stamp_map(conflict.loser),
        "winner": _stamp_map(conflict.winner),
        "rule": conflict.rule,
        "resolution": conflict.resolution,
        "is_kept": conflict.is_kept,
    }


def _stamp_map(stamp: Stamp) -> dict[str, int]:
    return {
        "site_id": stamp.origin,
        "timestamp_us": stamp.timestamp_us,
        "incarnation": stamp.incarnation,
        "shard": stamp.shard,
        "seq": stamp.seq,
    }


def conflict_details(view: View, conflict: Conflict) -> dict[str, Any]:
    """A conflict with what its kind needs to show both versions and to restore the loser."""
    details = conflict_map(conflict, conflict_path(view, conflict))
    details["names"] = [asdict(place) for place in shown_places(view, conflict.inode)]
    place = loser_place(view, conflict)
    details["place"] = None if place is None else asdict(place)
    details["is_placed"] = place is not None and (place.parent, place.name) in view.names_of(conflict.inode)
    match conflict.kind:
        case "content":
            try:
                lost = lost_content(view, conflict)
                details["lost"] = {"size": lost.size, "ranges": [list(each) for each in lost.ranges]}
            except OperationRefused as refused:
                details["lost"] = None
                details["why_not"] = str(refused)
        case "attribute" | "xattr":
            details["current"] = current_value(view.connection, conflict)
        case "name":
            winner = name_winner(view, conflict)
            details["winner_inode"] = winner
            details["winner_names"] = [] if winner is None else [asdict(one) for one in shown_places(view, winner)]
        case "move" | "move_delete":
            won = winner_place(view, conflict)
            details["winner_place"] = None if won is None else asdict(won)
        case "rmdir_create":
            details["holds"] = _some_names(view, conflict.object)
    return details


def _some_names(view: View, directory: int) -> list[bytes]:
    """The first names that a directory shows; none if it is gone."""
    try:
        entries, _ = view.list_dir(directory, after=None, limit=NAMES_MAX)
    except OperationRefused as refused:
        if refused.errno != errno.ENOENT:
            raise
        return []
    return [entry.name for entry in entries if entry.name is not None]
