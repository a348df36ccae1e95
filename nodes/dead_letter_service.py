"""What clients ask about dead letters: a list of them, and to try them again."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

from claudefs_repl.error import CallerError, OperationRefused
from claudefs_repl.journal import Op
from claudefs_repl.topology import ClusterConfig
from nodes.entry_address import parse_entry
from nodes.queries import Handler
from nodes.store.dead_letters import DeadLetter, EntryKey, find_letters, read_letters
from nodes.store.sqlite_store import SqliteStore
from nodes.store.view import View

PAGE_LETTERS = 100
"""Dead letters of one answer: their payloads are read, though not sent."""

Retry = Callable[[DeadLetter | None], Awaitable[tuple[list[EntryKey], int]]]


class DeadLetterService:
    """Serves the dead letters of one site. Reads the store; retrying is the applier's."""

    def __init__(self, *, cluster: ClusterConfig, store: SqliteStore, retry: Retry) -> None:
        self._cluster = cluster
        self._store = store
        self._retry_letters = retry

    def handlers(self) -> dict[str, Handler]:
        """What the client service asks."""
        return {"dead_letters": self._list, "retry_dead_letters": self._retry}

    async def _list(self, args: dict[str, Any]) -> Any:
        """A page of them beyond `after`, the `entry` of the last one before."""
        after = None if args.get("after") is None else self._key(args["after"])
        letters = await self._store.read(lambda view: read_letters(view.connection, after, PAGE_LETTERS))
        return {"letters": [self._told(letter) for letter in letters], "more": len(letters) == PAGE_LETTERS}

    async def _retry(self, args: dict[str, Any]) -> Any:
        only = None if args.get("entry") is None else await self._find(args["entry"])
        applied, left = await self._retry_letters(only)
        still_open = await self._store.read(View.open_dead_letters)
        return {"applied": len(applied), "left": left, "open": still_open}

    def _key(self, entry: object) -> EntryKey:
        address = parse_entry(entry, self._cluster)
        if address.incarnation is None:
            raise CallerError(f"after: {address} does not tell the incarnation")
        return EntryKey(address.origin, address.incarnation, address.shard, address.seq)

    async def _find(self, entry: object) -> DeadLetter:
        """The dead letter that a client named; the incarnation matters only where a site has had several."""
        address = parse_entry(entry, self._cluster)
        found = await self._store.read(
            lambda view: find_letters(view.connection, address.origin, address.incarnation, address.shard, address.seq)
        )
        if not found:
            raise OperationRefused(errno.ENOENT, f"entry {entry} is no dead letter here")
        if len(found) > 1:
            names = ", ".join(str(letter.key) for letter in found)
            raise CallerError(f"entry {entry} is in several journals of its site; name one of {names}")
        return found[0]

    def _told(self, letter: DeadLetter) -> dict[str, Any]:
        names = {site.site_id: site.name for site in self._cluster.sites}
        return {
            "entry": str(letter.key),
            "origin": names.get(letter.key.origin),
            "op": Op(letter.op).name.lower(),
            "inode": f"{letter.inode:x}",
            "time_us": letter.timestamp_us,
            "payload_bytes": len(letter.payload),
            "reason": letter.reason,
            "can_be_retried": not letter.is_unsound,
        }
